"""The graph of the live rows under other ids. Nothing is searched: edges are translated."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ..errors import CorruptionError
from ..kernels.renumber import translate_edges
from ..kernels.rows import NORM
from ..storage.commit import NO_IDS
from ..storage.format import AGREED, BOOK, CHOSEN, GROWN, GROWTH, LINKED, LOOKED, MISSED, SINCE, SLACK, TRIED
from ..storage.renumber import Renumbering
from ..storage.store import Store
from . import codebook
from .insert import Linker
from .scratch import ScratchPool
from .threads import Helpers
from .view import entries_of, raise_radius, take_view

MADE_BY = [CHOSEN, SLACK, MISSED, AGREED, SINCE]  # what the header of codes.slab says of codes that are made alike


def copy_edges(source: Store, target: Store, renumbering: Renumbering) -> Iterator[int]:
    """Copy edges, without those to rows that do not go along; yields the rows copied so far.

    What is there already is not written again.

    Raises:
        CorruptionError: at a row whose lifeline leads nowhere.
    """
    for start, ids in renumbering.blocks(source.edges.spec.row_bytes):
        edges = source.edges.array  # another one when the source has grown
        translated = np.empty((len(ids), edges.shape[1]), np.uint32)
        done = translate_edges(edges, ids, renumbering.numbers, translated)
        if done < len(ids):
            raise CorruptionError(
                f"the lifeline of row {ids[done]} leads nowhere in edges.slab; run repair(), then compact again"
            )
        if not np.array_equal(target.edges.array[start : start + len(ids)], translated):
            target.edges.write(start, translated)
        if target.seals.spec.columns > NORM:
            raise_radius(target, target.seals.array[start : start + len(ids)].view(np.float32)[:, NORM])
        yield start + len(ids)


def finish_graph(
    source: Store, target: Store, renumbering: Renumbering, helpers: Helpers, stop: Callable[[], bool]
) -> None:
    """What goes with the edges: entries, codes, and the sample in which queries find their way.

    Where walks begin is chosen anew: what was chosen among rows that are mostly gone does not spread over the rest.
    """
    head = renumbering.head
    linker = Linker(target, ScratchPool(), helpers)
    linker.elect_entries(head, head.live, stop)
    if source.codes is not None and target.codes is not None:
        target.codes.header[MADE_BY] = source.codes.header[MADE_BY]
        if (book := codebook.codebook_of(source, source.codes)) is not None:
            target.codes.header[BOOK] = codebook.keep(target, book)
        for word in (TRIED, LOOKED):
            target.codes.header[word] = min(int(source.codes.header[word]), head.live)
        entries = entries_of(target)
        linker.coder.make_again(take_view(target, head, NO_IDS), int(entries[0]) if len(entries) else 0)


def catch_up_graph(source: Store, target: Store, renumbering: Renumbering, helpers: Helpers) -> None:
    """Marks, and codes of what has come since `finish_graph`."""
    head, header = renumbering.head, target.edges.header
    header[[GROWTH, GROWN]] = source.edges.header[[GROWTH, GROWN]]
    header[LINKED] = head.commit
    linker = Linker(target, ScratchPool(), helpers)
    linker.coder.extend(take_view(target, head, NO_IDS))
    if linker.empty and head.live:
        linker.elect_entries(head, head.live)

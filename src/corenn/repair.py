"""verify() and repair(): what is stored, held against itself.

Hard data is checked by its checksums and never changed but to isolate what is lost; soft data is checked against hard
data and made again from it.
"""

from __future__ import annotations

import logging
from contextlib import suppress
from dataclasses import replace
from typing import NamedTuple

import numpy as np

from .errors import CorruptionError, ReadOnlyError
from .graph.check import GraphFaults, check_graph
from .graph.codes import wrong_codes
from .graph.disk import wrong_rows
from .graph.view import View, entries_of, failing, radius_needed, set_entries, set_radius
from .kernels.link import ANY, NO_CODES, thread_ring
from .kernels.search import BORN, DEGREE, DIED, LIFELINE
from .storage.commit import NO_IDS, Head
from .storage.format import JOURNAL, NO_ID
from .storage.keys import unpack_key
from .storage.rocks import RocksMetadata
from .storage.state import broken_states
from .storage.store import Store
from .types import Key, Problem, Report, UInt32s
from .writer import Writer

log = logging.getLogger("corenn.repair")

BLOCK = 8192
WRONG_CODES = "rows whose codes are missing or not those of their vectors"
WRONG_FIELDS = "rows of which the index of payloads says something else than their payloads"
WRONG_TEXTS = "rows of which the full-text index holds something else than their texts"
WRONG_ROWS = "rows of disk.slab that are not those of the other files"
PAYLOADS = "rows whose payloads were lost, if they had any, with damaged metadata"
STATES = "rows whose births and deaths are damaged or lost"
TRIES = 3  # of a reader, beside a writer that goes on


def verify_settled(writer: Writer) -> Report:
    """The same, once what a failed call has left half done is taken back, if the disk lets it. In the writer thread."""
    with suppress(ReadOnlyError):
        writer.take_back()
    report = verify(writer.store, writer.view)
    if not report.ok:
        return report
    wrong, astray = writer.payload_index.faults(), writer.payload_index.texts.faults(*writer.view.snapshot)
    found = Problem("fields", WRONG_FIELDS, wrong), Problem("texts", WRONG_TEXTS, astray)
    return replace(report, problems=tuple(problem for problem in found if problem.count))


class _Keys(NamedTuple):
    """keyless: live ids without a readable key. unknown: live ids whose key the metadata does not know.
    stolen: live ids whose key the metadata gives to another row. stray: keys that point at rows of other keys.
    """

    keyless: list[int]
    unknown: list[int]
    stolen: list[int]
    stray: list[Key]


def verify(store: Store, view: View, *, exclusive: bool = True, gone: UInt32s = NO_IDS) -> Report:
    """Check checksums, keys both ways, counts, edges and reachability.

    Not exclusive: beside a writer. gone: rows that have died since the view was taken.
    """
    problems: list[Problem] = []
    if isinstance(view.metadata, RocksMetadata):
        try:
            view.metadata.scan()
        except CorruptionError as error:  # nothing else can be held against it then
            return Report(view.head.live, view.head.dead, 0, 0, (Problem("metadata", f"{error}", 1),), ())
    damaged = damaged_rows(store, view)
    if len(damaged):
        live = _live_among(view, damaged)
        lost = tuple(key for row in live.tolist() if (key := unpack_key(view.keys[row], view.heap)) is not None)
        problems.append(Problem("vectors", "rows that fail their checksum; repair() deletes them", len(damaged), lost))
    lost_rows = np.union1d(*lost_states(view))
    if len(lost_rows):
        problems.append(Problem("state", STATES, len(lost_rows)))
    problems += _key_problems(_check_keys(view))
    counted = _count(view)
    if counted != view.head:
        problems.append(
            Problem("metadata", f"counts {view.head.live:,} live, {view.head.dead:,} dead rows; the state says "
                    f"{counted.live:,} and {counted.dead:,}", 1)
        )  # fmt: skip
    faults = check_graph(view, exclusive=exclusive, freed=store.horizon > 0, gone=gone)
    problems += _graph_problems(faults)
    wrong = np.setdiff1d(wrong_codes(store, view), damaged)
    if len(wrong):
        problems.append(Problem("codes", WRONG_CODES, len(wrong)))
    if exclusive and len(wrong := wrong_rows(store, view.head.rows)):
        problems.append(Problem("disk", WRONG_ROWS, len(wrong)))
    repaired = tuple(Problem("open", fault, 1) for fault in store.recovered.faults)
    return Report(counted.live, counted.dead, faults.edges, len(faults.unreachable), tuple(problems), repaired)


def verify_beside_a_writer(store: Store, view: View) -> Report:
    """The same for a reader. What is out of step for a moment only is no fault: one counts if it is seen again."""
    for left in reversed(range(TRIES)):
        graph = view.graph._replace(edges=store.newest("edges.slab"))
        gone = np.flatnonzero(store.newest("state.slab")[: view.head.rows, 1]).astype(np.uint32)
        report = verify(store, view._replace(graph=graph), exclusive=False, gone=gone)
        if report.ok or not left:
            break
    return report


def damaged_rows(store: Store, view: View) -> UInt32s:
    """Born rows whose checksum does not hold."""
    born = np.flatnonzero(view.live.state[: view.head.rows, BORN]).astype(np.uint32)
    found = []
    for start in range(0, len(born), BLOCK):
        found.append(failing(view, born[start : start + BLOCK]))
        store.look()
    return np.concatenate([NO_IDS, *found])


def _live_ids(view: View) -> UInt32s:
    return np.flatnonzero(view.alive()).astype(np.uint32)


def _live_among(view: View, ids: UInt32s) -> UInt32s:
    alive: UInt32s = ids[view.alive()[ids]]
    return alive


def _count(view: View) -> Head:
    live = int(view.alive().sum())
    return view.head._replace(live=live, dead=int(view.born().sum()) - live)


def _check_keys(view: View) -> _Keys:
    found = _Keys([], [], [], [])
    ids = _live_ids(view)
    for start in range(0, len(ids), BLOCK):
        block = ids[start : start + BLOCK].tolist()
        keys = [unpack_key(view.keys[row], view.heap) for row in block]
        found.keyless.extend(row for row, key in zip(block, keys, strict=True) if key is None)
        readable = [(row, key) for row, key in zip(block, keys, strict=True) if key is not None]
        owners = view.metadata.lookup([key for _, key in readable], view.lookup_view)
        for (row, _), owner in zip(readable, owners, strict=True):
            if owner != row:
                (found.unknown if owner < 0 else found.stolen).append(row)
    for key, now, before in view.metadata.names():
        row = view.lookup_view.choose(now, before)
        if row >= 0 and unpack_key(view.keys[row], view.heap) != key:
            found.stray.append(key)
    return found


def _key_problems(found: _Keys) -> list[Problem]:
    described = {
        "keyless": "live rows without a readable key in keys.slab",
        "unknown": "live rows whose key the metadata does not know",
        "stolen": "live rows whose key belongs to another row",
        "stray": "keys that point at a row with another key",
    }
    counts = found._asdict()
    return [Problem("keys", text, len(counts[name])) for name, text in described.items() if counts[name]]


def _graph_problems(faults: GraphFaults) -> list[Problem]:
    problems = []
    if len(faults.damaged):
        problems.append(Problem("edges", "rows whose edges are missing or out of bounds", len(faults.damaged)))
    if len(faults.unreachable):
        problems.append(Problem("edges", "live rows that no walk reaches", len(faults.unreachable)))
    if faults.torn:
        problems.append(Problem("edges", "the ring of lifelines is torn", 1))
    if faults.lifted:
        problems.append(Problem("edges", "the radius in the header is not that of the rows", 1))
    return problems


def repair(writer: Writer) -> Report:
    """Mend everything that verify finds. Called in the writer thread.

    Raises:
        ReadOnlyError: if a call has failed half done, and the disk does not let it be taken back.
    """
    writer.take_back()
    store = writer.store
    mended = [Problem("open", fault, 1) for fault in store.recovered.faults]
    if store.recovered.lost:
        mended.append(Problem("payloads", PAYLOADS, len(store.recovered.lost), store.recovered.lost))
    store.recovered.faults.clear()
    store.recovered.lost = ()
    writer.recoder.give_up()  # it may have codes of rows that are about to be blanked
    mended += _mend_state(writer)
    mended += _mend_vectors(writer)
    mended += _mend_keys(writer)
    mended += mend_graph(writer)
    mended += _mend_codes(writer)
    mended += _mend_disk(writer)
    mended += _mend_fields(writer)
    mended += _mend_texts(writer)
    counted = _count(writer.view)
    if counted != writer.view.head and isinstance(store.metadata, RocksMetadata):
        store.metadata.rewrite_head(counted)
        writer.republish()
        mended.append(Problem("metadata", f"counts corrected to {counted.live:,} live, {counted.dead:,} dead rows", 1))
    writer.checkpoint()
    report = verify(store, writer.view)
    for problem in mended:
        log.warning("repaired: %s: %s (%d)", problem.part, problem.description, problem.count)
    return Report(report.rows, report.tombstones, report.edges, report.unreachable, report.problems, tuple(mended))


def lost_states(view: View) -> tuple[UInt32s, UInt32s]:
    """Rows whose births and deaths are damaged, and rows that were never born although keys point at them."""
    found = []
    for start in range(0, view.head.rows, BLOCK):
        ids = np.arange(start, min(start + BLOCK, view.head.rows), dtype=np.uint32)
        found.append(broken_states(view.live.state, ids))
    owned = _owned(view)
    state = view.live.state[owned]
    unborn = owned[(state[:, BORN] == 0) & (state[:, DIED] == 0)]
    return np.concatenate([NO_IDS, *found]), unborn


def _owned(view: View) -> UInt32s:
    """Rows that keys of the metadata point at, ascending, unless they were cut off."""
    seen, owned = view.lookup_view, np.zeros(view.head.rows, np.bool_)
    for _, now, before in view.metadata.names():
        if now < view.head.rows and not (before != NO_ID and seen.sees(before)):
            owned[now] = True
    return np.flatnonzero(owned).astype(np.uint32)


def _mend_state(writer: Writer) -> list[Problem]:
    """Births and deaths that are damaged or lost: a row lives if a key points at it and no kept record killed it."""
    store, view = writer.store, writer.view
    if not isinstance(store.metadata, RocksMetadata):
        return []
    broken, unborn = lost_states(view)
    lost = np.union1d(broken, unborn)
    if not len(lost):
        return []
    killed: set[int] = set()
    for record in store.metadata.records(0):
        killed.difference_update(record.born.tolist())
        killed.update(record.died.tolist())
    alive = np.isin(lost, _owned(view)) & ~np.isin(lost, np.array(sorted(killed), np.uint32))
    store.mend_state(lost[alive], lost[~alive])
    writer.republish()
    return [Problem("state", STATES, len(lost))]


def _mend_vectors(writer: Writer) -> list[Problem]:
    """Rows that fail their checksum cannot be saved: delete them, and say which."""
    store, view = writer.store, writer.view
    damaged = damaged_rows(store, view)
    if not len(damaged):
        return []
    live = _live_among(view, damaged)
    lost = tuple(key for key in _names_of(store, live) if key is not None)
    if len(live):
        writer.kill(live)
    store.blank_rows(damaged)
    return [Problem("vectors", "rows that failed their checksum were deleted", len(damaged), lost)]


def _names_of(store: Store, ids: UInt32s) -> list[Key | None]:
    """The keys of rows: from the slab, or else, for all that lack one there, by a look at every key."""
    keys = {int(row): store.key_of(int(row)) for row in ids}
    if any(key is None for key in keys.values()):
        for key, now, _ in store.metadata.names():
            if now in keys:
                keys[now] = key
    return list(keys.values())


def _mend_keys(writer: Writer) -> list[Problem]:
    store = writer.store
    found = _check_keys(writer.view)
    problems = _key_problems(found)
    if not problems:
        return []
    # Rows to which no key of the metadata leads are the only ones that keys.slab knows better: save them first.
    owned = np.zeros(writer.view.head.rows, bool)
    for _, now, before in store.metadata.names():
        row = writer.view.lookup_view.choose(now, before)
        if row >= 0:
            owned[row] = True
    saved = [(key, row) for row in found.unknown if not owned[row] and (key := store.key_of(row)) is not None]
    if saved and isinstance(store.metadata, RocksMetadata):
        store.metadata.rewrite_keys(saved)
    store.rebuild_keys()
    writer.republish()
    left = _check_keys(writer.view)
    nameless = np.array(sorted({*left.keyless, *left.stolen}), np.uint32)
    if len(nameless):
        writer.kill(nameless)
        problems.append(Problem("keys", "rows whose key is lost were deleted", len(nameless)))
    return problems


def mend_graph(writer: Writer) -> list[Problem]:
    """Link damaged and unreachable rows again, and thread the ring anew. Called in the writer thread."""
    store = writer.store
    faults = check_graph(writer.view, freed=store.horizon > 0)
    sound = _sound_entries(store, writer.view)
    if not faults.any and len(sound) == len(entries_of(store)):
        store.recovered.suspect = False
        return []
    writer.mender.forget()
    if faults.lifted:  # first: everything below measures distances with it
        set_radius(store, radius_needed(writer.view))
    edges, rows = store.edges.array, writer.view.head.rows
    store.edges.note(slice(0, rows))
    for row in faults.damaged.tolist():
        edges[row] = 0
    sound = _sound_entries(store, writer.view)
    linked = np.setdiff1d(_live_ids(writer.view), writer.view.pending)
    if not len(sound) and len(linked):
        whole = linked[edges[linked, DEGREE] > 0]
        sound = (whole if len(whole) else linked)[:1]
    set_entries(store, sound)
    writer.republish()
    # All edges first, so that each row can be threaded behind a neighbour.
    edges[:rows, LIFELINE] = 0
    again = np.union1d(faults.damaged, faults.unreachable).astype(np.uint32)
    again = again[writer.view.live.state[again, 1] == 0]
    if len(again):
        writer.relink(again)
    _thread_all(writer)
    writer.linker.elect_entries(store.metadata.head, rows)
    _thread_all(writer)
    writer.republish()
    store.recovered.suspect = False
    problems = _graph_problems(faults)
    for problem in problems:
        log.warning("mended: %s (%d)", problem.description, problem.count)
    return problems


def _sound_entries(store: Store, view: View) -> UInt32s:
    """Those of the entries that are rows of the graph. After a restart some may be of commits that are lost."""
    entries = entries_of(store)
    entries = entries[entries < view.head.rows]
    there = (store.edges.array[entries, DEGREE] > 0) & (view.live.state[entries, 0] != 0)
    sound: UInt32s = entries[there & ~np.isin(entries, view.pending)]
    return sound


def _mend_codes(writer: Writer) -> list[Problem]:
    wrong = wrong_codes(writer.store, writer.view)
    if not len(wrong):
        return []
    writer.linker.coder.make_again(writer.view)
    writer.republish()
    return [Problem("codes", WRONG_CODES, len(wrong))]


def _mend_disk(writer: Writer) -> list[Problem]:
    """Have rows of disk.slab written again that are not what they are said to be: until then nothing reads them."""
    store = writer.store
    wrong = wrong_rows(store, writer.view.head.rows)
    if store.disk is None or not len(wrong):
        return []
    store.disk.displace(wrong)  # where it lies may be what is wrong
    return [Problem("disk", WRONG_ROWS, len(wrong))]


def _mend_fields(writer: Writer) -> list[Problem]:
    """Whatever has been mended, the index of payloads is made anew if it does not agree with what there is now."""
    wrong = writer.payload_index.faults()
    writer.payload_index.rebuild()
    writer.payload_index.finish()
    return [Problem("fields", WRONG_FIELDS, wrong)] if wrong else []


def _mend_texts(writer: Writer) -> list[Problem]:
    """The same of the full-text index."""
    texts = writer.payload_index.texts
    wrong = texts.faults(*writer.view.snapshot)
    texts.rebuild()
    texts.keep(*writer.view.snapshot, whole=True)
    return [Problem("texts", WRONG_TEXTS, wrong)] if wrong else []


def _thread_all(writer: Writer) -> None:
    """Thread every row that has edges onto one ring that starts at the first entry."""
    store, view = writer.store, writer.view
    edges, rows = store.edges.array, view.head.rows
    if not len(view.graph.entries):
        return
    store.edges.note(slice(0, rows))
    edges[:rows, LIFELINE] = 0
    root = np.array([view.graph.entries[0]], np.uint32)
    waiting = np.zeros(len(view.live.state), bool)
    waiting[view.pending] = True
    linked = np.flatnonzero((view.live.state[:rows, 0] != 0) & ~waiting[:rows]).astype(np.uint32)
    linked = linked[(edges[linked, DEGREE] > 0) | (view.live.state[linked, 1] == 0)]
    journal = store.edges.header[JOURNAL : JOURNAL + 2]
    for start in range(0, len(linked), BLOCK):
        batch = np.concatenate((root, linked[start : start + BLOCK]))
        vector = np.empty(view.settings.dim, np.float32)
        thread_ring(view.rows, edges, batch, int(root[0]), journal, np.full(1, ANY), vector, NO_CODES, 0)

"""What the comparison of filtered searches asks: fields of the rows, queries, and for each cell what restricts them.

Numbers are filtered by ranges and texts by equality. One field gives every selectivity by ranges, and no range occurs
twice, so that nobody answers from memory; a text is asked for again and again, as it is in use, and so is one range.
"""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ..datasets import open_vectors
from ..errors import DatasetError, InvalidArgumentError
from ..types import AnyArray, Float32s, Float64s, Int64s
from .conditions import Condition, Fields, Where, is_text, save
from .recall import distances_of
from .subject import Subject

SHARES = (1.0, 0.5, 0.1, 0.01, 0.001, 0.0001)
ONE, NONE = "one row", "none"
GROUPS = 4  # queries lie around so many of them; each has a field of ranks by the distance to it
NEAREST_VALUE = 3.0  # a text stands for a share if its own is within this factor
PLAIN = "unfiltered"


@dataclass(frozen=True, slots=True)
class Cell:
    """Queries with filters of one kind and selectivity.

    kind: what the filter has to do with the vectors, or which fields it names. share: as it is shown. wheres: the
    conditions of each query; None for all rows.
    """

    kind: str
    share: str
    wheres: Sequence[Where | None]

    @property
    def common(self) -> bool:
        """Whether all queries have the same filter, so that whoever can may remember it."""
        return all(where == self.wheres[0] for where in self.wheres)


@dataclass(frozen=True, slots=True)
class Asked:
    """Data, fields and cells. distances: of every query to every row, float64 (queries, rows)."""

    subject: Subject
    fields: Fields
    cells: Sequence[Cell]
    distances: Float64s


def shown(share: float) -> str:
    """A share as a percentage."""
    return f"{share * 100:g} %"


def prepare(
    file: Path, payloads: Path | None, names: Sequence[str], folder: Path, *, rows: int | None, queries: int,
    shares: Sequence[float],
) -> Asked:  # fmt: skip
    """Read vectors, make or read fields, and think of cells.

    Args:
        file: HDF5 in the layout of ann-benchmarks.
        payloads: JSON lines, one for each row in order, plain or .gz; None for labels that are made up.
        names: the fields of `payloads` to filter by; numbers must be whole.
        folder: where the files for the systems go.
        rows: to index, the first of the file; None for all.
        queries: to ask.
        shares: selectivities, from 1 down; beside them one row and none are asked for.

    Raises:
        DatasetError: for a file without a metric, or payloads that lack rows or fields.
        InvalidArgumentError: for a share that is not above 0 and at most 1.
    """
    for share in shares:
        if not 0 < share <= 1:
            raise InvalidArgumentError(f"share {share:g}: must be above 0 and at most 1")
    with open_vectors(file, "train") as train, open_vectors(file, "test") as test:
        if train.metric is None:
            raise DatasetError(f"{file} does not say its metric; ann-benchmarks keep it in the attribute `distance`")
        metric = train.metric
        base = np.array(train.rows(0, min(len(train), rows or len(train))), np.float32)
        pool = np.array(test.rows(0, len(test)), np.float32)
    if payloads is None:
        chosen, anchors = around(pool, queries)
        asked = pool[chosen]
        fields = labels(base, anchors)
        cells = [*made_up(len(base), len(asked), len(anchors), shares)]
    else:
        asked = pool[:queries]
        fields = read_fields(payloads, names, len(base))
        cells = [*of_fields(fields, len(asked), shares)]
    np.save(folder / "base.npy", base)
    np.save(folder / "queries.npy", asked)
    distances = distances_of(np.tile(np.arange(len(base)), (len(asked), 1)), base, asked, metric)
    about = {"name": file.name, "rows": len(base), "dim": base.shape[1], "metric": metric, "fields": [*fields]}
    subject = Subject(
        folder / "base.npy", folder / "queries.npy", base, asked, distances[:, :0], metric, about,
        save(fields, folder / "fields.npz"),
    )  # fmt: skip
    return Asked(subject, fields, [Cell("all rows", PLAIN, [None] * len(asked)), *cells], distances)


# --- made-up labels ---------------------------------------------------------------------------------------------------


def around(pool: Float32s, count: int) -> tuple[Int64s, Float32s]:
    """Which queries to ask, in turns from each of several neighbourhoods, and what these lie around."""
    anchors = pool[:GROUPS]
    each = -(-count // len(anchors))
    nearest = [np.argsort(((pool - anchor) ** 2).sum(axis=1), kind="stable")[:each] for anchor in anchors]
    return np.stack(nearest, axis=1).reshape(-1)[:count].astype(np.int64), anchors


def labels(base: Float32s, anchors: Float32s) -> Fields:
    """`label`, a rank that says nothing; and near0 …, ranks by the distance to each anchor."""
    count = len(base)
    fields: dict[str, AnyArray] = {"label": np.random.default_rng(0).permutation(count).astype(np.int64)}
    for number, anchor in enumerate(anchors):
        ranks = np.empty(count, np.int64)
        ranks[np.argsort(((base - anchor) ** 2).sum(axis=1), kind="stable")] = np.arange(count)
        fields[f"near{number}"] = ranks
    return fields


def made_up(rows: int, queries: int, groups: int, shares: Sequence[float]) -> Iterator[Cell]:
    """Ranges of labels that are independent of the vectors, of those near the query and of those far from it.

    Ranks run from 0 to `rows` − 1, so bounds beyond them make filters differ and matches not.
    """
    rng = np.random.default_rng(1)
    for share, size in sizes(rows, shares):
        if size > 1:
            yield Cell("independent, one for all", share, [between("label", -1, size)] * queries)
        firsts = rng.integers(0, rows - size + 1, queries).tolist()
        whole = size in (0, rows)
        yield Cell("independent", share, [
            between("label", -1 - at, rows) if size == rows else
            between("label", rows, rows + 1 + at) if not size else between("label", first, first + size)
            for at, first in enumerate(firsts)
        ])  # fmt: skip
        if not whole:
            near = [between(f"near{at % groups}", -1 - at, size) for at in range(queries)]
            far = [between(f"near{at % groups}", rows - size, rows + 1 + at) for at in range(queries)]
            yield Cell("near the query", share, near)
            yield Cell("far from the query", share, far)


def sizes(rows: int, shares: Sequence[float]) -> Iterator[tuple[str, int]]:
    """How each selectivity is shown, and how many rows it is; shares of less than two rows are left out."""
    for share in shares:
        if round(share * rows) >= 2:
            yield shown(share), round(share * rows)
    yield ONE, 1
    yield NONE, 0


def between(field: str, low: int, high: int) -> Where:
    """low ≤ field < high."""
    return Condition(field, ">=", low), Condition(field, "<", high)


# --- real payloads ----------------------------------------------------------------------------------------------------


def read_fields(file: Path, names: Sequence[str], rows: int) -> Fields:
    """Columns of whole numbers and of texts; see `prepare`."""
    opener: Callable[..., Any] = gzip.open if file.suffix == ".gz" else open
    with opener(file, "rt", encoding="utf-8") as lines:
        read = [json.loads(line) for line, _ in zip(lines, range(rows), strict=False)]
    if len(read) < rows:
        raise DatasetError(f"{file} has {len(read):,} lines; the vectors are {rows:,}")
    fields: dict[str, AnyArray] = {}
    for name in names:
        column = np.array([each.get(name) for each in read])
        if column.dtype.kind not in "iU":
            raise DatasetError(f"{file}: {name!r} is not a text in every row, nor a whole number in every row")
        fields[name] = column
    return fields


def of_fields(fields: Fields, queries: int, shares: Sequence[float]) -> Iterator[Cell]:
    """Ranges of each number; each text whose share comes near one that is asked for; and both together."""
    texts = [name for name, column in fields.items() if is_text(column)]
    numbers = [name for name in fields if name not in texts]
    for name in numbers:
        for share, size in sizes(len(fields[name]), shares):
            yield Cell(name, share, [*ranges(name, fields[name], size, queries)])
    for name in texts:
        common = values(fields[name], shares)
        for share, value in common:
            yield Cell(name, share, [[Condition(name, "==", value)]] * queries)
        for number in numbers:
            for share, value in common[:2]:
                held = fields[number][fields[name] == value]
                found = ranges(number, held, max(len(held) // 2, 1), queries)
                wheres = [(Condition(name, "==", value), *each) for each in found]
                yield Cell(f"{name} and {number}", f"half of {share}", wheres)


def ranges(name: str, column: AnyArray, size: int, queries: int) -> Iterator[Where]:
    """A range for each query, of about `size` rows: equal values are in it or not, all of them."""
    rng, ordered = np.random.default_rng(2), np.sort(column)
    least, most = int(ordered[0]), int(ordered[-1])
    alone = np.flatnonzero(np.diff(ordered, prepend=least - 1, append=most + 1).astype(bool))
    single = ordered[alone[:-1][np.diff(alone) == 1]]
    for at in range(queries):
        if size == len(column):
            yield between(name, least - 1 - at, most + 1)
        elif not size:
            yield between(name, most + 1, most + 2 + at)
        elif size == 1 and len(single):
            value = int(rng.choice(single))
            yield between(name, value, value + 1)
        else:
            first = int(rng.integers(0, len(column) - size))
            low, high = int(ordered[first]), int(ordered[first + size])
            yield between(name, low, max(high, low + 1))


def values(column: AnyArray, shares: Sequence[float]) -> list[tuple[str, str]]:
    """For each share the text that comes nearest to it, shown with its own; each once."""
    texts, counts = np.unique(column, return_counts=True)
    own = counts / len(column)
    found: dict[str, str] = {}
    for share in shares:
        best = int(np.argmin(np.abs(np.log(own / share))))
        if share < 1 and 1 / NEAREST_VALUE <= own[best] / share <= NEAREST_VALUE:
            found.setdefault(str(texts[best]), shown(round(float(own[best]), 6)))
    return [(share, value) for value, share in found.items()]

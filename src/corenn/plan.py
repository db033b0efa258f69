"""What a database of so many rows takes: disk, memory, time to build, pages and time per query. docs/scale.md explains
the model, and compares it with what was measured.

Sizes are computed from the layout and exact up to the growth of files. Work per query follows from walks that were
measured on real vectors, and grows with the logarithm of the rows. Time is work multiplied by the constants of a
machine. Every figure carries a range and what it follows from.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass, field, replace
from typing import Any

from .config import MAX_ROWS, Settings
from .errors import CapacityError, InvalidArgumentError
from .graph.bulk import CLUSTER, CLUSTER_MOST, INNER, KEPT, OUTER
from .graph.disk import HOT_SHARE
from .graph.navigation import EDGES as SAMPLE_EDGES
from .graph.navigation import LEAST, MOST, SHARE
from .graph.view import CACHE_BYTES as NARROW_BYTES
from .kernels.carve import MOST as MOST_LEADERS
from .kernels.codes import bits_of, code_width
from .kernels.disk import PAGE, unit_of
from .measure import Machine
from .storage.disk import SLOT_BYTES, words_of
from .storage.rocksdb import CACHE_BYTES, WRITE_BUFFER_BYTES
from .storage.store import slab_specs

# --- what walks were measured to do: SIFT, 128 dimensions, k = 10, recall .95, one row per step; docs/scale.md --------
HOPS_AT = 100_000
HOPS, HOPS_LESS = 23.6, 1.3  # rows expanded among so many with 32 edges, and fewer for each doubling of these
GAIN, GAIN_LESS, GAIN_LEAST = 7.6, 2.6, 3.0  # more for each tenfold number of rows, and fewer as above
FRESH = 19  # rows per expansion that were not seen before, with 32 edges; they grow with the cube root of the edges
WIDE = 1.2  # times, where several rows are expanded at once, since what is touched fits into no cache
RECALL_EXPONENT = 0.45  # hops grow as (1 - recall) ** -RECALL_EXPONENT
EASY, HARD = 0.65, 1.5  # times, vectors of fewer and of more intrinsic dimensions than SIFT
EASY_FRESH = 0.6  # times, of the former: their neighbours share neighbours
FARTHEST = 1_000_000  # rows up to which it was measured; the range widens by BEYOND for each tenfold number beyond
BEYOND = 1.12
LEAST_HOPS = 8.0
SAMPLED_DISTANCES, FEWEST_SAMPLED = 90, 50  # of a walk in the sample that finds where to enter

FEW_EDGES, MORE_EDGES, MANY_ROWS = 32, 64, 4_000_000
PROCESS_BYTES = 180_000_000  # Python, NumPy, the compiler and the kernels of one dtype
SCRATCH_BYTES = 2_000_000  # per thread
BUILD_BYTES = 300  # per row, on the way of a bulk build, beside its candidates
PRODUCTS_PER_S = 22e9  # multiply-adds of one thread where rows are compared with leaders
OVERLAP = 2.0  # parts in which a row is linked where the whole does not fit into memory
# A walk over the disk finds the rows that are nearest to its entries in memory: so many expansions read nothing.
KEPT_ROWS, KEPT_SAVES, KEPT_GAIN = 500, 5.0, 2.2  # saved by so many, and by each tenfold of them
KEPT_MOST = 10.0  # nobody has measured more: what comes after the way there is different for each query
# Rows that share a page are near to each other, and expanded as well: measured with 5 and 11; docs/scale.md.
MATES_EXPONENT = 0.23  # pages are as many as a walk with one row to a page expands, × rows of a page ** -MATES_EXPONENT
MATES_DISTANCES = 2.0  # times, where three rows or more share a page
IN_FLIGHT = 4  # pages of one query that are read at once
GROWTH = 1.125  # files are allocated up to an eighth beyond what they hold
TIME_RANGE = 1.5  # times either way: caches, clocks and neighbours
# How many times more is expanded for the same recall, measured with SIFT: docs/scale.md.
CODES = {"sq8": 1.0, "sq4": 1.03}
RABITQ = {4: 1.07, 2: 1.21, 1: 1.8}  # by bits per component; the last is a guess
PRODUCT_SLOWER = 3.0  # times the scoring of one, in a cache: a look-up per byte
PRODUCT_CODES = {2: 1.03, 3: 1.08, 4: 1.15, 6: 1.45, 8: 1.8}  # dimensions per byte of opq; 3 and 6 lie between


@dataclass(frozen=True, slots=True)
class Figure:
    """A number, the range in which it is to be expected, and what it follows from."""

    value: float
    low: float
    high: float
    why: str

    def times(self, factor: float, why: str) -> Figure:
        """Another one that grows with this."""
        return Figure(self.value * factor, self.low * factor, self.high * factor, why)


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    """What is to be planned. memory: bytes for the whole process. key_bytes: of a text key, 0 for integers."""

    rows: int
    dim: int
    dtype: str = "f32"
    metric: str = "cosine"
    memory: int
    recall: float = 0.95
    k: int = 10
    max_edges: int | None = None
    key_bytes: int = 0

    def __post_init__(self) -> None:
        if self.rows > MAX_ROWS:
            raise CapacityError(f"rows={self.rows:,}: a collection holds {MAX_ROWS:,} at most; plan several")
        if self.rows < 1 or self.key_bytes < 0 or not 1 <= self.k <= self.rows:
            raise InvalidArgumentError(
                f"rows={self.rows}, k={self.k}, key_bytes={self.key_bytes}: needs rows ≥ k ≥ 1 and key_bytes ≥ 0"
            )
        if not 0.5 <= self.recall < 1:
            raise InvalidArgumentError(f"recall={self.recall}: must be at least 0.5 and below 1")
        self.settings()

    def settings(self, compression: str = "none") -> Settings:
        """The settings of the database."""
        edges = self.max_edges or (FEW_EDGES if self.rows <= MANY_ROWS else MORE_EDGES)
        return Settings(
            dim=self.dim, dtype=self.dtype, metric=self.metric, max_edges=edges, compression_mode=compression
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Way:
    """One way to have the database. Sizes are bytes: memory by part, disk by file.

    codes: over which walks go. settings: that it takes, beside those that were asked for. fits: into the memory that
    was asked for. least_memory: with which it would, with the smallest codes. notes: what has to be known besides.
    """

    name: str
    codes: str
    settings: dict[str, Any]
    fits: bool
    memory: dict[str, int]
    memory_bytes: int
    least_memory: int
    disk: dict[str, int]
    disk_bytes: int
    build_s: Figure
    build_memory: int
    hops: Figure
    distances: Figure
    pages: Figure
    latency_ms: Figure
    qps: Figure
    notes: tuple[str, ...] = field(default=())


@dataclass(frozen=True, slots=True)
class Plan:
    """ways: the faster first. advice: which one to take, in a sentence."""

    ask: Ask
    machine: Machine
    ways: tuple[Way, ...]
    advice: str

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {
            "ask": {**asdict(self.ask), "max_edges": self.ask.settings().max_edges},
            "machine": self.machine.as_dict(),
            "ways": [asdict(way) for way in self.ways],
            "advice": self.advice,
        }


def plan(ask: Ask, machine: Machine) -> Plan:
    """What is to be expected of `ask` on `machine`."""
    ways = (_in_memory(ask, machine), _on_disk(ask, machine))
    return Plan(ask, machine, ways, _advice(ask, ways))


# --- the work ---------------------------------------------------------------------------------------------------------


def hops(ask: Ask) -> Figure:
    """Rows that a query expands, several at once."""
    doubled = math.log2(ask.settings().max_edges / FEW_EDGES)
    begun, gain = HOPS - HOPS_LESS * doubled, max(GAIN - GAIN_LESS * doubled, GAIN_LEAST)
    at_95 = max(begun + gain * math.log10(ask.rows / HOPS_AT), LEAST_HOPS)
    wide = WIDE if ask.rows * (slab_row_bytes(ask, "edges") + ask.dim // 2) > NARROW_BYTES else 1.0
    factor = ((1 - ask.recall) / 0.05) ** -RECALL_EXPONENT * math.sqrt(max(ask.k / 10, 0.5)) * wide
    beyond = BEYOND ** max(0.0, math.log10(ask.rows / FARTHEST))
    return Figure(
        at_95 * factor, at_95 * factor * EASY / beyond, at_95 * factor * HARD * beyond,
        f"{begun:.1f} + {gain:.1f} for each tenfold of {HOPS_AT:,} rows at recall .95, "
        f"(1 - recall)^-{RECALL_EXPONENT}, {wide} × for the rows at once",
    )  # fmt: skip


def _distances(ask: Ask, expanded: Figure) -> Figure:
    fresh = FRESH * (ask.settings().max_edges / FEW_EDGES) ** (1 / 3)
    found = expanded.times(fresh, f"{expanded.value:.0f} expansions with {fresh:.0f} rows that were not seen before")
    entry = SAMPLED_DISTANCES if ask.rows >= SHARE * LEAST else 0
    least = FEWEST_SAMPLED if entry else 0
    # Neighbours of rows of few intrinsic dimensions do not fill more edges than FEW_EDGES.
    low = expanded.low * min(fresh, FRESH) * EASY_FRESH + least
    return Figure(found.value + entry, low, found.high + entry, found.why)


# --- sizes ------------------------------------------------------------------------------------------------------------


def _slabs(ask: Ask, compression: str, code_bytes: int) -> dict[str, int]:
    """Bytes of each slab, by its name without the ending."""
    sizes = {
        name.removesuffix(".slab"): spec.row_bytes * ask.rows
        for name, spec in slab_specs(ask.settings()).items()
        if name != "keys.heap"
    }
    if ask.key_bytes:
        sizes["keys.heap"] = ask.key_bytes * ask.rows
    if compression != "none":
        sizes["codes"] = code_bytes * ask.rows
    return sizes


def slab_row_bytes(ask: Ask, name: str) -> int:
    """Bytes of a row of a slab."""
    return slab_specs(ask.settings())[f"{name}.slab"].row_bytes


def _disk_words(ask: Ask) -> int:
    """Words of four bytes in a row of disk.slab."""
    settings = ask.settings()
    return words_of(settings, slab_specs(settings)["edges.slab"].columns)


def _saved(rows: int) -> float:
    """Expansions that so many rows in memory save."""
    if rows < KEPT_ROWS:
        return KEPT_SAVES * rows / KEPT_ROWS
    return min(KEPT_SAVES + KEPT_GAIN * math.log10(rows / KEPT_ROWS), KEPT_MOST)


def _fixed(ask: Ask, machine: Machine) -> dict[str, int]:
    sampled = min(ask.rows // SHARE, MOST) if ask.rows >= SHARE * LEAST else 0
    return {
        "process": PROCESS_BYTES,
        "metadata caches": CACHE_BYTES + 2 * WRITE_BUFFER_BYTES,
        "scratch": SCRATCH_BYTES * machine.cores,
        "navigation": sampled * 4 * (3 + SAMPLE_EDGES),
    }


def _code_choices(ask: Ask) -> list[tuple[str, int, float]]:
    """Codes by name, bytes per row and how much more is expanded, from the best on."""
    modes = {**CODES, "rabitq": RABITQ[bits_of("rabitq", ask.dim)]}
    scalar = [(mode, _code_bytes(ask, mode), factor) for mode, factor in modes.items()]
    product = [("opq", _code_bytes(ask, "opq", -(-ask.dim // per)), factor) for per, factor in PRODUCT_CODES.items()]
    # What takes more and finds less than another one is no choice.
    found: list[tuple[str, int, float]] = []
    for each in sorted(scalar + product, key=lambda choice: (choice[2], choice[1])):
        if not found or each[1] < found[-1][1]:
            found.append(each)
    return found


def _code_bytes(ask: Ask, mode: str, subspaces: int = 0) -> int:
    """Bytes of a row of codes."""
    return code_width(replace(ask.settings(mode), pq_subspaces=subspaces), mode)


# --- in memory --------------------------------------------------------------------------------------------------------


def _in_memory(ask: Ask, machine: Machine) -> Way:
    vector_bytes = slab_row_bytes(ask, "vectors")
    coded = vector_bytes > 128  # see graph.codes.WORTH_BYTES
    mode, size = ("sq4", _code_bytes(ask, "sq4")) if coded else ("none", 0)
    slabs = _slabs(ask, mode, size)
    memory = {**_fixed(ask, machine), **slabs}
    disk = _disk_files(slabs, machine, ask)
    expanded = hops(ask)
    if coded:
        expanded = expanded.times(CODES[mode], f"{expanded.why}, {CODES[mode]} × for {mode} codes")
    distances = _distances(ask, expanded)
    edge_bytes = slabs["edges"] // ask.rows
    scored = size if coded else vector_bytes
    missed = max(0.0, 1 - machine.cache / (ask.rows * (scored + edge_bytes)))
    cost = _scoring(ask, machine, mode, scored, missed)
    us = distances.value * cost + expanded.value * (_lines(machine, edge_bytes) * missed)
    if coded:  # the best are measured again
        us += expanded.value * _lines(machine, vector_bytes) * missed
    query = _spread(
        us / 1e3, distances,
        f"{distances.value:,.0f} distances of {cost * 1e3:.0f} ns, of rows {missed:.0%} of which no cache holds",
    )  # fmt: skip
    total = sum(memory.values())
    whole = total + _build_bytes(ask) <= ask.memory
    link = _link_seconds(ask, machine, 1.0 if whole else OVERLAP)
    return Way(
        name="in memory",
        codes=f"{mode} codes of {size} bytes" if coded else "vectors",
        settings=_chosen(ask, "auto"),
        fits=total <= ask.memory,
        memory=memory,
        memory_bytes=total,
        least_memory=total,
        disk=disk,
        disk_bytes=sum(disk.values()),
        build_s=link,
        build_memory=total + _build_bytes(ask),
        hops=expanded,
        distances=distances,
        pages=Figure(0, 0, 0, "all that a walk touches is resident"),
        latency_ms=Figure(
            query.value + machine.call_us / 1e3, query.low, query.high + 2 * machine.call_us / 1e3,
            f"{query.why}; {machine.call_us:.0f} µs for a call with one query",
        ),
        qps=Figure(
            machine.cores * 1e3 / query.value, machine.cores * 1e3 / query.high, machine.cores * 1e3 / query.low,
            f"{machine.cores} threads of one query at a time, in batches",
        ),
        notes=tuple(_build_notes(ask, total)),
    )  # fmt: skip


def _scoring(ask: Ask, machine: Machine, codes: str, size: int, missed: float) -> float:
    """Microseconds per distance to rows of so many bytes."""
    if codes == "none":
        line = machine.vector_ns.get(ask.dtype)
        ns = line.at(size) if line else machine.vector_ns["f32"].at(4 * ask.dim)  # others decode to as many floats
    else:
        ns = machine.code_ns.at(size) * (PRODUCT_SLOWER if codes == "opq" else 1.0)
    return ns / 1e3 + _lines(machine, size) * missed


def _lines(machine: Machine, size: int) -> float:
    """Microseconds for so many adjacent bytes that no cache holds."""
    return machine.line_ns.at(-(-size // 64) - 1) / 1e3


def _spread(value: float, work: Figure, why: str) -> Figure:
    """A time in the range of its work, and of what machines make of it."""
    return Figure(
        value, value * work.low / work.value / TIME_RANGE, value * work.high / work.value * TIME_RANGE, why
    )  # fmt: skip


# --- on disk ----------------------------------------------------------------------------------------------------------


def _on_disk(ask: Ask, machine: Machine) -> Way:
    choices = [_with_codes(ask, machine, *choice) for choice in _code_choices(ask)]
    # With larger codes less is expanded, with smaller ones more pages are cached.
    fitting = [way for way in choices if way.fits] or choices[-1:]
    best = min(fitting, key=lambda way: way.pages.value)
    return replace(best, least_memory=choices[-1].least_memory)


def _with_codes(ask: Ask, machine: Machine, mode: str, size: int, worse: float) -> Way:
    """The walk that reads a page for each row that it expands, over codes that stay in memory."""
    words = _disk_words(ask)
    unit_rows, unit_bytes = unit_of(words)
    pages_per_row, disk_slab = max(unit_bytes // (PAGE * unit_rows), 1), -(-ask.rows // unit_rows) * unit_bytes
    fixed, state, keys = _fixed(ask, machine), 16 * ask.rows, (16 + ask.key_bytes) * ask.rows
    memory = {**fixed, "codes": size * ask.rows, "state": state, "slots": SLOT_BYTES * ask.rows}
    least = sum(memory.values())
    left, notes = max(ask.memory - least, 0), []
    kept = min((ask.memory - sum(fixed.values())) // HOT_SHARE, left, ask.rows * 4 * words)
    memory["kept rows"], left = max(kept, 0), left - max(kept, 0)
    if left >= keys:
        memory["keys"], left = keys, left - keys
    else:
        notes.append(f"keys do not fit as well: {ask.k} more pages per query, for those of its hits")
    cached = min(left / disk_slab, 1.0)
    memory["cached pages"] = int(disk_slab * cached)
    expanded = hops(ask)
    expanded = expanded.times(worse, f"{expanded.why}, {worse} × for {mode} codes")
    distances = _distances(ask, expanded)
    if unit_rows > 2:
        why = f"{distances.why}, {MATES_DISTANCES} × for {unit_rows} rows of a page"
        distances = distances.times(MATES_DISTANCES, why)
    shared = unit_rows**-MATES_EXPONENT
    pages = _pages(expanded, memory["kept rows"] // (4 * words), pages_per_row * shared, cached)
    if "keys" not in memory:
        pages = Figure(pages.value + ask.k, pages.low + ask.k, pages.high + ask.k, f"{pages.why}; {ask.k} for keys")
    latency, qps = _reading(ask, machine, mode, size, distances, pages)
    slabs = _slabs(ask, mode, size)
    disk = {**_disk_files(slabs, machine, ask), "disk.slab": disk_slab, "slots.slab": SLOT_BYTES * ask.rows}
    resident = sum(slabs.values()) + sum(fixed.values())
    whole = resident + _build_bytes(ask) <= ask.memory
    return Way(
        name="on disk",
        codes=f"{mode} codes of {size} bytes",
        settings={**_chosen(ask, mode, size), "memory_limit": max(ask.memory - PROCESS_BYTES, 1)},
        fits=least <= ask.memory,
        memory=memory,
        memory_bytes=sum(memory.values()),
        least_memory=least,
        disk=disk,
        disk_bytes=sum(disk.values()),
        build_s=_link_seconds(ask, machine, 1.0 if whole else OVERLAP, sum(disk.values())),
        build_memory=resident + _build_bytes(ask),
        hops=expanded,
        distances=distances,
        pages=pages,
        latency_ms=latency,
        qps=qps,
        notes=(*notes, *_build_notes(ask, resident)),
    )


def _pages(expanded: Figure, kept: int, pages_per_row: float, cached: float) -> Figure:
    """Pages of disk.slab that a query reads. pages_per_row: less than one where expanded rows share pages."""
    saved = min(_saved(kept), expanded.low)
    each = pages_per_row * (1 - cached)
    return Figure(
        (expanded.value - saved) * each, (expanded.low - saved) * each, (expanded.high - saved) * each,
        f"{pages_per_row:.2g} for each of {expanded.value:.0f} expansions but {saved:.0f} among {kept:,} kept rows, "
        f"{cached:.0%} of them cached; {expanded.why}",
    )  # fmt: skip


def _reading(
    ask: Ask, machine: Machine, mode: str, size: int, distances: Figure, pages: Figure
) -> tuple[Figure, Figure]:
    """Latency and queries per second of walks that read pages."""
    missed = max(0.0, 1 - machine.cache / (ask.rows * size))
    scoring = _scoring(ask, machine, mode, size, missed)
    cpu = distances.value * scoring + pages.value * machine.read_cpu_us  # microseconds
    wait = max(machine.read_us, IN_FLIGHT * 1e6 / machine.reads_per_s)
    rounds = pages.value / IN_FLIGHT
    latency = _spread(
        (rounds * wait + cpu) / 1e3, distances,
        f"{rounds:.0f} rounds of {IN_FLIGHT} reads, {wait:.0f} µs each, and {cpu:.0f} µs of processor time",
    )  # fmt: skip
    by_cpu = machine.cores * 1e6 / max(cpu, 1e-9)
    by_disk = machine.reads_per_s / max(pages.value, 1e-9)
    value = min(by_cpu, by_disk)
    scarce = "reads per second" if by_disk < by_cpu else "processors"
    asking = max(math.ceil(value * latency.value / 1e3), machine.cores)
    spread = distances.high / distances.value * TIME_RANGE, distances.low / distances.value / TIME_RANGE
    why = (
        f"the lesser of {by_disk:,.0f} by {machine.reads_per_s:,.0f} reads per second and {by_cpu:,.0f} by "
        f"{machine.cores} processors; scarce: {scarce}; about {asking} threads asking"
    )
    return latency, Figure(value, value / spread[0], value / spread[1], why)


# --- building ---------------------------------------------------------------------------------------------------------


def _disk_files(slabs: dict[str, int], machine: Machine, ask: Ask) -> dict[str, int]:
    files = {name if "." in name else f"{name}.slab": int(size * GROWTH) for name, size in slabs.items()}
    return {**files, "meta": int((machine.meta_bytes + ask.key_bytes) * ask.rows)}


def _build_bytes(ask: Ask) -> int:
    """What a bulk build takes beside the database."""
    twice = 2 if ask.metric == "ip" else 1
    return (BUILD_BYTES + OUTER * INNER * KEPT * 4 * twice) * ask.rows


def _build_notes(ask: Ask, resident: int) -> list[str]:
    needed = resident + _build_bytes(ask)
    if needed <= ask.memory:
        return []
    return [
        f"built at once it takes {needed:,} bytes, of which {_build_bytes(ask):,} are for the building: more than the "
        "memory, so the figure is that of building in parts, which overlap"
    ]


def _link_seconds(ask: Ask, machine: Machine, overlap: float, written: int = 0) -> Figure:
    """Seconds from the first row to a database that answers."""
    line = machine.link_us.get(ask.dtype, machine.link_us["f32"])
    products = _leader_products(ask.rows) * ask.dim
    link = line.at(ask.dim) + products / PRODUCTS_PER_S * 1e6
    encode = ask.dim * machine.encode_ns / 1e3
    seconds = ask.rows * (link * overlap + encode) / machine.cores / 1e6
    commits = ask.rows * machine.commit_us / 1e6
    writing = written / machine.write
    value = seconds + commits + writing
    return Figure(
        value, value / TIME_RANGE, value * 2 * overlap,  # nobody has built in parts yet
        f"{link:.0f} µs of a processor per row" + (f", each in {overlap:g} parts" if overlap > 1 else "")
        + f", {machine.cores} of them; {commits:,.0f} s for commits"
        + (f", {writing:,.0f} s to write" if written else ""),
    )  # fmt: skip


def _leader_products(rows: int) -> float:
    """Leaders with which a row is compared until it is in its clusters."""
    compared = float(min(-(-rows * OUTER // CLUSTER), MOST_LEADERS))
    members = rows * OUTER / compared
    while members > CLUSTER_MOST:
        count = min(-(-int(members) // CLUSTER), MOST_LEADERS)
        compared += OUTER * count
        members /= count
    return compared


# --- in words ---------------------------------------------------------------------------------------------------------


def _chosen(ask: Ask, mode: str, size: int = 0) -> dict[str, Any]:
    settings: dict[str, Any] = {"max_edges": ask.settings().max_edges, "compression_mode": mode}
    if mode == "opq":
        settings["pq_subspaces"] = min(size, ask.dim)
    return settings


def _advice(ask: Ask, ways: tuple[Way, ...]) -> str:
    for way in ways:
        if way.fits:
            return f"{way.name}, with {', '.join(f'{name}={value!r}' for name, value in way.settings.items())}"
    least = min(way.least_memory for way in ways)
    return f"does not fit: it takes {least:,} bytes of memory at least, {least - ask.memory:,} more than there are"

"""What a machine does: the constants of the cost model in plan.py, measured by small runs of the real thing.

Processor time counts where threads compute, so that other work on the machine does not; the clock counts for the disk.
What is kept stands in the user's cache folder under the name of the machine.
"""

from __future__ import annotations

import itertools
import json
import math
import mmap
import os
import platform
import re
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from .config import Settings
from .database import CoreNN
from .datasets.synthetic import Shape, Synthetic
from .errors import FormatError, StorageError
from .graph.codes import Coder
from .graph.recode import Recoder
from .graph.scratch import ScratchPool
from .graph.threads import Helpers
from .graph.view import rows_of, take_view
from .kernels.rows import decode_rows
from .storage.commit import NO_IDS, Commit
from .storage.encode import encode
from .storage.files import translated
from .storage.format import NO_ID
from .storage.platform import cpu_count, map_anonymous, memory_bytes
from .storage.store import Store
from .types import Float32s

PAGE = 4096
DEPTHS = (1, 2, 4, 8, 16, 32, 64)  # reads that wait at once
FILE_BYTES = 1 << 30  # of the file that is read; larger than the caches of a disk would be better, and take longer
READ_SECONDS = 0.4  # for each depth
ROWS, QUERIES, DIMS = 12_000, 1_000, (64, 256)  # of the small databases
LIST = 20
INTRINSIC = 16
FAR_BYTES, NEAR_BYTES = 1 << 29, 1 << 19  # arrays that no cache holds, and that the second one does
TURNS = 5  # the best counts: whatever disturbs makes it longer
VERSION = 1
Progress = Callable[[str], None]


class Line(NamedTuple):
    """A cost that grows evenly: `base` + `slope` for each unit."""

    base: float
    slope: float

    def at(self, units: float) -> float:
        """The cost of so many units."""
        return self.base + self.slope * units


@dataclass(frozen=True, slots=True, kw_only=True)
class Machine:
    """The constants. Costs of computing are of one thread.

    origin: where they come from. cache: bytes of the last cache. read_us: of one random page of 4 KiB, alone.
    read_cpu_us: processor time of the same. reads_per_s: random pages with so many reads waiting at once, at the depth
    that is best; depth: that depth. stream, write: bytes per second from and to the disk, in order. vector_ns: by
    dtype, per distance to a stored vector in a cache, by its bytes. code_ns: the same for codes. line_ns: what the
    first cache line and each further one cost more where no cache holds them. call_us: of a query
    that comes alone, beyond one of many. link_us: by dtype, per row of a bulk build, by dimensions. encode_ns: per
    component that becomes a code. commit_us: per row, keys and all. meta_bytes: per row, of the metadata on disk.
    """

    name: str
    origin: str
    cpu: str
    cores: int
    memory: int
    cache: int
    read_us: float
    read_cpu_us: float
    reads_per_s: float
    depth: int
    stream: float
    write: float
    vector_ns: Mapping[str, Line]
    code_ns: Line
    line_ns: Line
    call_us: float
    link_us: Mapping[str, Line]
    encode_ns: float
    commit_us: float
    meta_bytes: float

    def as_dict(self) -> dict[str, Any]:
        """Ready for JSON."""
        return {"version": VERSION, **asdict(self)}

    @classmethod
    def from_dict(cls, values: Any) -> Machine:
        """What as_dict has made.

        Raises:
            ValueError: for anything else.
        """
        if not isinstance(values, dict) or values.get("version") != VERSION:
            raise ValueError("it is not of this version")
        return cls(**{item.name: _read_field(item.name, values.get(item.name)) for item in fields(cls)})


_TEXTS, _LINES, _TABLES = ("name", "origin", "cpu"), ("code_ns", "line_ns"), ("vector_ns", "link_us")


def _read_field(name: str, value: Any) -> Any:
    if value is None:
        raise ValueError(f"{name} is missing")
    if name in _TEXTS and isinstance(value, str):
        return value
    if name in _LINES:
        return _read_line(name, value)
    if name in _TABLES and isinstance(value, dict) and "f32" in value:
        return {str(dtype): _read_line(name, line) for dtype, line in value.items()}
    if name not in (*_TEXTS, *_TABLES) and _is_number(value) and value > 0:
        return value
    raise ValueError(f"{name} is {value!r}")


def _read_line(name: str, value: Any) -> Line:
    if isinstance(value, list | tuple) and len(value) == 2 and all(_is_number(each) and each >= 0 for each in value):
        return Line(*value)
    raise ValueError(f"{name} is {value!r}; it takes two numbers, a base and a slope")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


# --- keeping ----------------------------------------------------------------------------------------------------------


def kept_file() -> Path:
    """Where the constants of this machine are kept."""
    base = os.environ.get("CORENN_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    name = re.sub(r"[^A-Za-z0-9_.-]", "_", platform.node()) or "unnamed"
    return Path(base) / "corenn" / f"machine-{name}.json"


def keep(machine: Machine) -> Path:
    """Keep constants for later plans."""
    file = kept_file()
    with translated("write", file):
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        draft = file.with_name(f".{file.name}.{os.getpid()}")
        draft.write_text(json.dumps(machine.as_dict(), indent=1) + "\n")
        draft.replace(file)
    return file


def read_machine(file: Path) -> Machine:
    """Constants from a file.

    Raises:
        FormatError: if it holds anything else.
        StorageError: if it cannot be read.
    """
    try:
        with translated("read", file):
            return Machine.from_dict(json.loads(file.read_bytes()))
    except ValueError as error:
        raise FormatError(f"{file} holds no constants of a machine: {error}; run corenn plan --measure") from None


def known_machine() -> Machine:
    """The constants of this machine if they have been measured, else those of another one with this one's size."""
    try:
        return read_machine(kept_file())
    except (FormatError, StorageError):
        return replace(DEFAULT, cores=cpu_count(), memory=memory_bytes(), name=platform.node() or "unnamed")


# --- measuring --------------------------------------------------------------------------------------------------------


def measure(folder: Path, dtypes: Sequence[str] = ("f32",), tell: Progress = lambda step: None) -> Machine:
    """Measure this machine, and the disk that `folder` is on. A minute, more where kernels are yet to be compiled.

    dtypes: stored types of which the kernels are measured.

    Raises:
        DiskFullError: if there is no room for a file of 1 GiB and a small database.
        StorageError
    """
    tell("random reads")
    with translated("measure", folder), tempfile.TemporaryDirectory(dir=folder, prefix=".corenn-plan-") as place:
        disk = _measure_disk(Path(place), tell)
        tell("commits")
        commit_us, meta_bytes = _measure_commits(Path(place))
    vector_ns, link_us = {}, {}
    for dtype in dict.fromkeys(("f32", *dtypes)):
        tell(f"{dtype} vectors")
        vector_ns[dtype], link_us[dtype] = _measure_vectors(dtype)
    tell("codes")
    code_ns, call_us = _measure_codes()
    tell("memory")
    return Machine(
        name=platform.node() or "unnamed", origin=f"measured by corenn plan --measure on {time.strftime('%Y-%m-%d')}",
        cpu=_cpu(), cores=cpu_count(), memory=memory_bytes(), cache=_last_cache(), **disk, vector_ns=vector_ns,
        code_ns=code_ns, line_ns=_measure_lines(), call_us=call_us, link_us=link_us,
        encode_ns=_measure_encoding(), commit_us=commit_us, meta_bytes=meta_bytes,
    )  # fmt: skip


def _best(run: Callable[[], object], clock: Callable[[], float] = time.thread_time) -> float:
    """The least seconds of several calls."""
    taken = []
    for _ in range(TURNS):
        began = clock()
        run()
        taken.append(clock() - began)
    return max(min(taken), 1e-9)


# --- the disk ---------------------------------------------------------------------------------------------------------


def _measure_disk(place: Path, tell: Progress) -> dict[str, Any]:
    file = place / "pages"
    began = time.perf_counter()
    _write_pages(file, FILE_BYTES)
    write = FILE_BYTES / (time.perf_counter() - began)
    with _uncached(file) as read:
        cpu = time.thread_time()
        alone = _reads_per_second(read, 1)
        # Other threads wait meanwhile, so this one's processor time is that of its reads.
        cpu_us = (time.thread_time() - cpu) / max(alone * READ_SECONDS, 1) * 1e6
        rates = {1: alone, **{depth: _reads_per_second(read, depth) for depth in DEPTHS[1:]}}
        tell("bandwidth")
        stream = _stream(read)
    depth = max(rates, key=lambda each: rates[each])
    return {
        "read_us": 1e6 / alone, "read_cpu_us": max(cpu_us, 0.1), "reads_per_s": rates[depth], "depth": depth,
        "stream": stream, "write": write,
    }  # fmt: skip


def _write_pages(file: Path, size: int) -> None:
    """A file that no compression makes smaller, on the disk."""
    block = np.random.default_rng(0).bytes(1 << 22)
    with file.open("wb", buffering=0) as out:
        for _ in range(size // len(block)):
            out.write(block)
        os.fsync(out.fileno())


Read = Callable[[mmap.mmap, int], int]


@contextmanager
def _uncached(file: Path) -> Iterator[Read]:
    """A way to read that always asks the disk: past the page cache, or else with the file dropped from it before."""
    direct = getattr(os, "O_DIRECT", 0)
    try:
        descriptor = os.open(file, os.O_RDONLY | direct)
        os.preadv(descriptor, [mmap.mmap(-1, PAGE)], 0)
    except OSError:  # as on tmpfs
        direct, descriptor = 0, os.open(file, os.O_RDONLY)

    def read(buffer: mmap.mmap, offset: int) -> int:
        if not direct and hasattr(os, "posix_fadvise"):
            os.posix_fadvise(descriptor, offset, len(buffer), os.POSIX_FADV_DONTNEED)
        return os.preadv(descriptor, [buffer], offset)

    try:
        yield read
    finally:
        os.close(descriptor)


def _reads_per_second(read: Read, depth: int) -> float:
    """Random pages per second with `depth` threads, each of which waits for its own."""
    counts = [0] * depth
    random = np.random.default_rng(depth)
    places = [(random.integers(0, FILE_BYTES // PAGE, 1 << 14) * PAGE).tolist() for _ in range(depth)]
    end = time.perf_counter() + READ_SECONDS

    def run(number: int) -> None:
        buffer = mmap.mmap(-1, PAGE)
        for offset in itertools.cycle(places[number]):
            if time.perf_counter() >= end:
                return
            read(buffer, offset)
            counts[number] += 1

    if depth == 1:
        run(0)
    else:
        threads = [threading.Thread(target=run, args=(number,)) for number in range(depth)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    return max(sum(counts), 1) / READ_SECONDS


def _stream(read: Read) -> float:
    """Bytes per second in order, the whole file, in blocks of a MiB by four threads."""
    block, threads = 1 << 20, 4

    def run(number: int) -> None:
        buffer = mmap.mmap(-1, block)
        for offset in range(number * block, FILE_BYTES, threads * block):
            read(buffer, offset)

    began = time.perf_counter()
    running = [threading.Thread(target=run, args=(number,)) for number in range(threads)]
    for thread in running:
        thread.start()
    for thread in running:
        thread.join()
    return FILE_BYTES / (time.perf_counter() - began)


def _measure_commits(place: Path) -> tuple[float, float]:
    """Microseconds per row until it is committed, and bytes of metadata per row."""
    rows, taken = _made(DIMS[0], "f32"), math.inf
    for turn in range(2):  # what is loaded or compiled first is not measured
        began = time.perf_counter()

        def note(step: str, done: int, total: int) -> None:
            nonlocal taken
            if step == "rows" and done == total:
                taken = time.perf_counter() - began  # noqa: B023 - called within the turn

        with CoreNN.build(place / f"{turn}", range(ROWS), rows, dim=DIMS[0], metric="l2", progress=note) as db:
            db.checkpoint()
            size = sum(each.stat().st_blocks * 512 for each in (place / f"{turn}" / "meta").iterdir())
    return taken / ROWS * 1e6, size / ROWS


# --- kernels ----------------------------------------------------------------------------------------------------------


def _made(dim: int, dtype: str) -> Float32s:
    """ROWS on a manifold of INTRINSIC dimensions, in the range of the dtype."""
    made = np.concatenate(list(Synthetic(Shape(dim, INTRINSIC)).blocks(ROWS)))
    if dtype != "u8":
        return made
    low, high = float(made.min()), float(made.max())
    return np.rint((made - low) * (255 / (high - low)))


def _walk_ns(db: CoreNN, queries: Float32s) -> float:
    """Nanoseconds per distance of walks, all else that a query takes included."""
    run = partial(db.query, queries, k=10, search_list=LIST, threads=1)
    hits: Any = run(explain=True)
    distances = sum(int(each.explain.distances) for each in hits)
    return _best(run) / distances * 1e9


def _line_between(at: Sequence[float], found: Sequence[float]) -> Line:
    slope = max((found[1] - found[0]) / (at[1] - at[0]), 0.0)
    return Line(max(found[0] - slope * at[0], 0.0), slope)


def _measure_vectors(dtype: str) -> tuple[Line, Line]:
    """Walks over vectors by their bytes, and bulk builds by dimensions."""
    sizes, speeds, builds = [], [], []
    for dim in DIMS:
        rows = _made(dim, dtype)
        build = partial(
            CoreNN.build, None, range(ROWS), rows, dim=dim, metric="l2", dtype=dtype, compression_mode="none"
        )
        build().close()  # whatever is compiled or loaded first
        began = time.process_time()
        with build() as db:
            builds.append((time.process_time() - began) / ROWS * 1e6)
            sizes.append(float(db.stats().memory["vectors"] // ROWS))
            speeds.append(_walk_ns(db, np.ascontiguousarray(rows[:QUERIES])))
    return _line_between(sizes, speeds), _line_between(DIMS, builds)


def _measure_codes() -> tuple[Line, float]:
    """Walks over codes by their bytes, and what a call with one query takes beyond one of many."""
    sizes, speeds, calls = [], [], []
    for dim in DIMS:
        rows = _made(dim, "f32")
        build = partial(CoreNN.build, None, range(ROWS), rows, dim=dim, metric="l2")
        with build(compression_mode="sq4", compression_threshold=0) as db:
            queries = rows[:QUERIES]
            sizes.append(float(db.stats().memory["codes"] // ROWS))
            speeds.append(_walk_ns(db, queries))
            run = partial(db.query, k=10, search_list=LIST, threads=1)
            alone = _best(lambda: [run(each) for each in queries])  # noqa: B023 - called here
            calls.append((alone - _best(partial(run, queries))) / QUERIES * 1e6)
    return _line_between(sizes, speeds), max(min(calls), 0.1)


def _measure_lines() -> Line:
    """What cache lines cost beyond those in a cache, by comparing reads of rows in a random order."""
    lines, found = (1, 8), []
    for each in lines:
        far, near = (_read_ns(each * 16, size) for size in (FAR_BYTES, NEAR_BYTES))
        found.append(max(far - near, 0.0))
    line = _line_between(lines, found)
    return Line(line.base + line.slope, line.slope)  # the base is that of the first line


def _read_ns(dim: int, size: int) -> float:
    """Nanoseconds per float32 row of `dim` dimensions, read in a random order from `size` bytes."""
    count = size // (4 * dim)
    # In huge pages, as the slabs of a database in memory. What is touched is there.
    vectors = np.frombuffer(map_anonymous(count * dim * 4), np.float32).reshape(count, dim)
    vectors[:] = 1
    rows = rows_of(Settings(dim=dim, metric="l2"), vectors, np.zeros((1, 1), np.uint32), 0.0)
    ids = np.random.default_rng(0).integers(0, count, 1 << 16).astype(np.uint32)
    out = np.empty((len(ids), dim), np.float32)
    decode_rows(rows, ids, out)
    return _best(lambda: decode_rows(rows, ids, out)) / len(ids) * 1e9


def _measure_encoding() -> float:
    """Nanoseconds per component that becomes a code of four bits."""
    dim = DIMS[0]
    settings = Settings(dim=dim, metric="l2", compression_mode="sq4", compression_threshold=0)
    encoded, ids = encode(settings, _made(dim, "f32")), np.arange(ROWS, dtype=np.uint32)
    store, helpers = Store.in_memory(settings), Helpers(1)
    store.commit(Commit(1, ids, range(ROWS), [NO_ID] * ROWS, [None] * ROWS, encoded.rows, encoded.seals))
    coder, view = Coder(store, helpers), take_view(store, store.metadata.head, NO_IDS)
    Recoder(store, coder, ScratchPool(), helpers).first(view, 0, ROWS)
    taken = _best(lambda: coder.make_again(view))
    helpers.close()
    store.close()
    return taken / (ROWS * dim) * 1e9


# --- facts ------------------------------------------------------------------------------------------------------------


def _cpu() -> str:
    """The processor by its name."""
    try:
        found = re.search(r"^model name\s*:\s*(.+)$", Path("/proc/cpuinfo").read_text(), re.M)
    except OSError:
        found = None
    return found[1].strip() if found else platform.processor() or platform.machine() or "unknown"


def _last_cache() -> int:
    """Bytes of the last cache of the first processor; 16 MiB where that cannot be told."""
    sizes = []
    for file in Path("/sys/devices/system/cpu/cpu0/cache").glob("index*/size"):
        found = re.fullmatch(r"(\d+)K", file.read_text().strip())
        sizes.append(int(found[1]) << 10 if found else 0)
    return max(sizes, default=0) or 16 << 20


# Two cores of AMD EPYC (Zen 4, AVX-512) in a virtual machine, and its disk, busy with other work: docs/scale.md.
DEFAULT = Machine(
    name="unnamed",
    origin="as measured on 2 cores of AMD EPYC and the disk of a virtual machine; measure yours: corenn plan --measure",
    cpu="AMD EPYC", cores=2, memory=24 << 30, cache=32 << 20, read_us=60.0, read_cpu_us=18.0, reads_per_s=70_000.0,
    depth=32, stream=1.5e9, write=3.5e8, vector_ns={"f32": Line(12.5, 0.045), "u8": Line(20.0, 0.08)},
    code_ns=Line(22.0, 0.06), line_ns=Line(14.0, 6.5), call_us=13.0,
    link_us={"f32": Line(21.0, 0.2), "u8": Line(23.0, 0.19)}, encode_ns=2.3, commit_us=15.0, meta_bytes=20.0,
)  # fmt: skip

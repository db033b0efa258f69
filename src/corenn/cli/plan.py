"""`corenn plan`: disk, memory, time to build and speed of a database, before there is one."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from ..errors import InvalidArgumentError
from ..sizes import as_size
from . import console

if TYPE_CHECKING:
    from ..measure import Machine
    from ..plan import Figure, Plan, Way


def plan(
    rows: Annotated[str | None, typer.Option(help="Rows, such as 1e9 or 50M.")] = None,
    dim: Annotated[int | None, typer.Option(min=1, help="Dimensions of every vector.")] = None,
    dtype: Annotated[str, typer.Option(help="Stored type: f32, f16, bf16, i8 or u8.")] = "f32",
    metric: Annotated[str, typer.Option(help="Metric: l2, cosine or ip.")] = "l2",
    memory: Annotated[
        str | None, typer.Option(help="Memory for the process, such as 64GB. Default: that of the machine.")
    ] = None,
    recall: Annotated[float, typer.Option(help="recall@k that queries are to have.")] = 0.95,
    k: Annotated[int, typer.Option("-k", min=1, help="Neighbours to ask for.")] = 10,
    max_edges: Annotated[
        int | None, typer.Option(min=4, max=512, help="Edges per row. Default: 32, above four million rows 64.")
    ] = None,
    key_bytes: Annotated[int, typer.Option(min=0, help="Bytes of a text key; 0 for integers.")] = 0,
    measure: Annotated[bool, typer.Option("--measure", help="Measure this machine first, and keep that.")] = False,
    path: Annotated[
        Path | None, typer.Option(help="With --measure, a folder on the disk for the data. Default: the present one.")
    ] = None,
    machine: Annotated[Path | None, typer.Option(help="Constants of another machine, from a JSON file.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Tell what a database will take: disk, memory, time to build, pages and time per query.

    Every figure has a range, and says what it follows from. Without --rows and --dim, the constants of the machine are
    shown.

    Example: corenn plan --rows 1e9 --dim 96 --dtype u8 --memory 64GB
    """
    if (rows is None) != (dim is None):
        raise InvalidArgumentError("--rows and --dim go together; without both, the constants of the machine are shown")
    if measure and machine is not None:
        raise InvalidArgumentError("--measure and --machine exclude each other")
    from ..measure import read_machine
    from ..plan import Ask
    from ..plan import plan as make

    known = _machine(measure, path, dtype) if machine is None else read_machine(machine)
    if rows is None or dim is None:
        if as_json:
            console.print_json(known.as_dict())
        else:
            console.print_figures(f"{known.name}, {known.origin}", _constants(known))
        return
    ask = Ask(
        rows=_size("--rows", rows), dim=dim, dtype=dtype, metric=metric, recall=recall, k=k, max_edges=max_edges,
        memory=known.memory if memory is None else _size("--memory", memory), key_bytes=key_bytes,
    )  # fmt: skip
    found = make(ask, known)
    if as_json:
        console.print_json(found.as_dict())
    else:
        _show(found)


def _size(option: str, text: str) -> int:
    from ..sizes import parse_bytes

    try:
        return parse_bytes(text)
    except ValueError as error:
        raise InvalidArgumentError(f"{option} {error}") from None


def _machine(measured: bool, path: Path | None, dtype: str) -> Machine:
    from ..config import Settings
    from ..measure import keep, known_machine, measure

    if not measured:
        return known_machine()
    for each in dict.fromkeys(("f32", dtype)):
        console.compile_kernels(Settings(dim=1, dtype=each))
    with console.status("measuring this machine, for about a minute"):
        found = measure(path or Path(), (dtype,))
    console.say(f"Kept in {keep(found)}.")
    return found


def _constants(known: Machine) -> Iterator[tuple[str, str]]:
    yield "processor", f"{known.cpu}, {known.cores} cores, cache {as_size(known.cache)}"
    yield "memory", as_size(known.memory)
    yield "random read", f"{known.read_us:,.0f} µs alone, of which {known.read_cpu_us:,.0f} of a processor"
    yield "reads at once", f"{known.reads_per_s:,.0f} per second, {known.depth} waiting"
    yield "in order", f"{as_size(int(known.stream))} per second read, {as_size(int(known.write))} written"
    for dtype, line in known.vector_ns.items():
        yield f"{dtype} vector", f"{line.base:.1f} + {line.slope:.3f} ns per distance and byte"
    for dtype, line in known.link_us.items():
        yield f"{dtype} link", f"{line.base:.1f} + {line.slope:.3f} µs per row, dimension"
    yield "code", f"{known.code_ns.base:.1f} + {known.code_ns.slope:.3f} ns per distance and byte"
    yield "uncached line", f"{known.line_ns.base:.1f} ns, each further one {known.line_ns.slope:.1f}"
    yield "single call", f"{known.call_us:.1f} µs beyond one of many"
    yield "encode", f"{known.encode_ns:.2f} ns per component"
    yield "commit", f"{known.commit_us:.1f} µs per row, {known.meta_bytes:.0f} bytes of metadata"


def _show(found: Plan) -> None:
    ask = found.ask
    console.say(f"On {found.machine.name}, {found.machine.origin}.")
    console.stdout().print(
        f"{ask.rows:,} rows, {ask.dim} dimensions, {ask.dtype}, {ask.metric}, recall@{ask.k} {ask.recall:g}, "
        f"{as_size(ask.memory)} of memory: {found.advice}",
        markup=False, highlight=False, soft_wrap=True,
    )  # fmt: skip
    for way in found.ways:
        console.print_figures(f"{way.name}, walks over {way.codes}", _way(way))


def _way(way: Way) -> Iterator[tuple[str, str]]:
    missing = "" if way.fits else f"; does not fit, {as_size(way.least_memory)} would do"
    yield "memory", f"{as_size(way.memory_bytes)}{missing}"
    yield "", ", ".join(f"{name} {as_size(size)}" for name, size in way.memory.items())
    yield "disk", as_size(way.disk_bytes)
    yield "", ", ".join(f"{name} {as_size(size)}" for name, size in way.disk.items())
    yield from _figure("build", way.build_s, _as_time)
    yield "building takes", f"{as_size(way.build_memory)} of memory, at once"
    yield from _figure("distances", way.distances, lambda value: f"{value:,.0f} per query")
    yield from _figure("pages", way.pages, lambda value: f"{value:,.0f} per query")
    yield from _figure("latency", way.latency_ms, lambda value: f"{value:,.3g} ms")
    yield from _figure("throughput", way.qps, lambda value: f"{_rounded(value):,} queries per second")
    yield from (("note", note) for note in way.notes)


def _figure(name: str, figure: Figure, shown: Callable[[float], str]) -> Iterator[tuple[str, str]]:
    between = f", {shown(figure.low)} to {shown(figure.high)}" if figure.high > figure.low else ""
    yield name, f"{shown(figure.value)}{between}"
    yield "", figure.why


def _rounded(value: float) -> int:
    """Two digits: more are not known."""
    digits = max(len(f"{int(value)}") - 2, 0)
    return int(round(value, -digits))


def _as_time(seconds: float) -> str:
    for unit, size in (("days", 86_400), ("hours", 3_600), ("minutes", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:,.1f} {unit}"
    return f"{seconds:,.1f} s"

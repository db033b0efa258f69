"""Plots of a log by matplotlib, as SVG and PNG: recall against speed and latency, build time, memory.

matplotlib is imported at the first plot. Figures are made without pyplot: no window, no global state.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..types import AnyArray
from .curve import bracket, interpolate
from .palette import Look, looks, own
from .runs import Entry, Line, Setting, number

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

EPSILON = 5e-4  # recall 1 stands where .9995 would on a scale of -log(1 - recall)
RECALL_TICKS = (0.1, 0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 0.98, 0.99, 0.995, 0.999, 1.0)
FROM_RECALL = 0.7  # plots begin here if there is something beyond .9 to be seen
AT_RECALL = 0.95  # legends are ordered by what is seen there
STYLE: Any = {
    "font.family": "DejaVu Sans", "font.size": 9, "axes.titlesize": 10, "axes.labelsize": 9,
    "axes.spines.top": False, "axes.spines.right": False, "axes.edgecolor": "#444444", "axes.linewidth": 0.8,
    "xtick.color": "#444444", "ytick.color": "#444444", "grid.color": "#E3E3E3", "grid.linewidth": 0.7,
    "legend.frameon": False, "legend.fontsize": 8.5, "svg.hashsalt": "corenn", "svg.fonttype": "path",
}  # fmt: skip
MB = 1e6
LEAST_SPAN = 4.0  # of a log axis, as a factor
TEXT_WIDTH = 0.2  # of a text beside a dot, as a share of the axis
SPACE = 1.35  # of a log axis beyond its values, as a factor
HEADER = 0.56  # inches of title and subtitle
LEGEND_LINE = 0.205  # inches of a system in a legend
NAME_LENGTH, LETTER = 18, 0.066  # longer names widen the figure, by so many inches a letter


def draw(setting: Setting, entries: Sequence[Entry], stem: Path) -> list[Path]:
    """Every plot for which there are figures: the files, .svg and .png, whose names begin with `stem`.

    Systems that keep files have plots of speed of their own if there are others beside them.
    """
    from matplotlib import rc_context

    measured = [entry for entry in entries if entry.points]
    on_disk = [entry for entry in measured if entry.number("disk_bytes")]
    others = [entry for entry in measured if not entry.number("disk_bytes")]
    made: list[Path] = []
    with rc_context(STYLE):
        for name, plot in SPEED.items():
            made += _save(plot(setting, others or on_disk), stem.with_name(f"{stem.name}-{name}"))
            if others and on_disk:
                made += _save(plot(setting, on_disk), stem.with_name(f"{stem.name}-{name}-disk"))
        for name, plot in SIZES.items():
            made += _save(plot(setting, measured), stem.with_name(f"{stem.name}-{name}"))
    return made


def _save(figure: Figure | None, stem: Path) -> Iterator[Path]:
    """Both files, if there is anything to see. Without dates and random ids, the same figures give the same bytes."""
    if figure is not None:
        figure.draw_without_rendering()  # lays out, once for both
        figure.set_layout_engine("none")
    for kind in ("svg", "png") if figure is not None else ():
        path = stem.with_name(f"{stem.name}.{kind}")
        part = path.with_name(f".{path.name}.part")
        details = {"Date": None} if kind == "svg" else {}
        assert figure is not None
        figure.savefig(part, format=kind, dpi=170, metadata=details)
        part.replace(path)
        yield path


# --- recall against something -----------------------------------------------------------------------------------------


def recall_qps(setting: Setting, entries: Sequence[Entry]) -> Figure | None:
    """Queries per second over recall: the points of each system that none of its others beats."""
    curves = [
        (entry, [(point["recall"], point["qps"], _slowest(point)) for point in entry.frontier]) for entry in entries
    ]
    if not curves:
        return None
    figure, (axes,) = _figure(setting, 1, f"Queries per second at recall@{setting.k}", entries)
    _recall_axis(axes, setting, [recall for _, points in curves for recall, *_ in points], room=0.07)
    _log_axis(axes, curves, "queries per second")
    _curves(axes, curves)
    _legend(figure, axes, curves)
    _corner(axes, "better ↗", top=True)
    if any(low < value for _, points in curves for _, value, low in points):
        axes.set_ylabel("queries per second, best repetition (bar: to the worst)")
    return figure


def recall_latency(setting: Setting, entries: Sequence[Entry]) -> Figure | None:
    """Latency of single calls over recall, median and 99th percentile beside each other."""
    panels = {"p50": "median", "p99": "99th percentile"}
    found = {name: [(entry, points) for entry in entries if (points := _latencies(entry, name))] for name in panels}
    if not found["p50"]:
        return None
    every = [curve for curves in found.values() for curve in curves]
    figure, all_axes = _figure(setting, 2, f"Latency of one query per call at recall@{setting.k}", entries)
    for axes, (name, title) in zip(all_axes, panels.items(), strict=True):
        axes.set_title(title, loc="left", fontsize=9, color="#444444")
        _recall_axis(axes, setting, [recall for _, points in every for recall, *_ in points], room=0.12)
        _log_axis(axes, every, "milliseconds" if name == "p50" else "")
        _curves(axes, found[name])
        _corner(axes, "better ↘", top=False)
    _legend(figure, all_axes[0], found["p50"])
    return figure


def _latencies(entry: Entry, name: str) -> list[tuple[float, float, float]]:
    """Recall and latency, twice, of the points that no other beats in both."""
    told = [
        (point["recall"], value)
        for point in entry.points
        if (value := number((point.get("latency_ms") or {}).get(name))) is not None and value > 0
    ]
    best: list[tuple[float, float]] = []
    for recall, value in sorted(told, key=lambda pair: (-pair[0], pair[1])):
        if not best or value < best[-1][1]:
            best.append((recall, value))
    return [(recall, value, value) for recall, value in best[::-1]]


def _slowest(point: Line) -> float:
    runs = [rate for rate in point.get("qps_runs") or [] if number(rate)]
    return float(min(runs, default=point["qps"]))


Curve = tuple[Entry, list[tuple[float, float, float]]]


def _curves(axes: Axes, curves: Sequence[Curve]) -> None:
    """A line and markers for each system, and a thin bar from each point to its worst repetition; ours on top."""
    for (entry, points), style in zip(curves, looks([entry.system for entry, _ in curves]), strict=True):
        recalls, values, worst = (np.array(column) for column in zip(*points, strict=True))
        ours = own(entry.system)
        axes.vlines(recalls, worst, values, color=style.colour, alpha=0.3, linewidth=2.5 if ours else 1.6, zorder=2)
        axes.plot(recalls, values, label=entry.label, zorder=5 if ours else 3, **line_of(style, ours))


def line_of(style: Look, ours: bool) -> dict[str, Any]:
    """How a line with markers is drawn: arguments of matplotlib's `plot`."""
    return {
        "color": style.colour, "linestyle": style.line, "linewidth": 2.6 if ours else 1.3, "marker": style.marker,
        "markersize": 6.5 if ours else 4.8, "markeredgewidth": 1.0,
        "markerfacecolor": "white" if style.hollow else style.colour,
        "markeredgecolor": style.colour if style.hollow or not ours else "white",
    }  # fmt: skip


def _recall_axis(axes: Axes, setting: Setting, recalls: Sequence[float], room: float) -> None:
    """A scale on which .9 and .99 are as far apart as 0 and .9; `room` is the share of the width a label needs."""
    low, high = min(recalls), max(recalls)
    if high > 0.9:
        low = max(low, FROM_RECALL)
    left, right = opened(np.array([low, high]))
    space = 0.03 * max(right - left, 0.3)
    axes.set_xscale("function", functions=(opened, closed))
    axes.set_xlim(*closed(np.array([max(left - space, 0), right + space])))
    ticks = _spaced([tick for tick in RECALL_TICKS if low <= tick <= high] or [round(high, 3)], room)
    axes.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    axes.set_xticks([], minor=True)
    axes.set_xlabel(f"recall@{setting.k}")
    axes.grid(True, which="major")
    axes.set_axisbelow(True)


def opened(recall: AnyArray) -> AnyArray:
    """Where a recall stands: -log10(1 - recall), with 1 at a finite place and some room beyond it."""
    return -np.log10(np.maximum(1 + EPSILON - np.asarray(recall, np.float64), EPSILON / 100))


def closed(place: AnyArray) -> AnyArray:
    """The recall that stands at a place."""
    return 1 + EPSILON - 10 ** -np.asarray(place, np.float64)


def _spaced(ticks: Sequence[float], room: float) -> list[float]:
    """Those of `ticks` that leave room for their labels, from the right."""
    kept: list[float] = []
    places = opened(np.array(ticks))
    gap = room * max(float(places[-1] - places[0]), 0.3)
    for tick, place in zip(ticks[::-1], places[::-1], strict=True):
        if not kept or float(opened(np.array(kept[-1]))) - place >= gap:
            kept.append(tick)
    return kept[::-1]


def _log_axis(axes: Axes, curves: Sequence[Curve], title: str) -> None:
    """A log scale around all values and their bars; a hair's breadth does not fill the plot."""
    from matplotlib.ticker import FuncFormatter, LogLocator, NullLocator

    values = [value for _, points in curves for _, *pair in points for value in pair]
    middle, span = math.sqrt(min(values) * max(values)), max(values) / min(values)
    half = math.sqrt(max(span * SPACE, LEAST_SPAN))
    axes.set_yscale("log")
    axes.set_ylim(middle / half, middle * half)
    axes.yaxis.set_major_locator(LogLocator(10, subs=(1.0, 2.0, 5.0) if span < 2e3 else (1.0,)))
    axes.yaxis.set_minor_locator(NullLocator())
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.set_ylabel(title)


def shown(value: float) -> str:
    """A figure for an axis or beside a dot: three digits, thousands apart."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _legend(figure: Figure, axes: Axes, curves: Sequence[Curve]) -> None:
    """Beside the plot, in the order in which the lines are met at AT_RECALL."""
    handles, labels = axes.get_legend_handles_labels()
    places = [_height(points) for _, points in curves]
    order = sorted(range(len(handles)), key=lambda at: places[at], reverse=True)
    legend = figure.legend(
        [handles[at] for at in order], [labels[at] for at in order], loc="outside right upper", handlelength=3.2,
        labelspacing=0.55, title=f"from top to bottom\nas at recall {AT_RECALL:g}", title_fontsize=7.5,
        alignment="left",
    )  # fmt: skip
    legend.get_title().set_color("#767676")
    for text, at in zip(legend.get_texts(), order, strict=True):
        text.set_fontweight("bold" if own(curves[at][0].system) else "normal")


class _Spot:
    """A point as `bracket` wants it."""

    def __init__(self, recall: float) -> None:
        self.recall = recall


def _height(points: Sequence[tuple[float, float, float]]) -> tuple[bool, float]:
    """The value at AT_RECALL; after all that reach it, the last value of those that do not."""
    spots = [_Spot(recall) for recall, *_ in points]
    near = bracket(spots, AT_RECALL)
    if not near:
        return False, points[-1][1]
    return True, interpolate(near, [points[spots.index(spot)][1] for spot in near], AT_RECALL)


# --- one figure per system --------------------------------------------------------------------------------------------


def build_time(setting: Setting, entries: Sequence[Entry]) -> Figure | None:
    """Seconds of the build of each system."""
    found = [_Dot(entry, seconds, f"{shown(seconds)} s") for entry in entries
             if (seconds := entry.number("build_seconds"))]  # fmt: skip
    if not found:
        return None
    threads = f"{setting.build_threads} thread{'' if setting.build_threads == 1 else 's'}"
    figure, (axes,) = _figure(setting, 1, f"Build time, {threads}", entries, rows=len(found))
    _dots(axes, found)
    axes.set_xlabel("seconds until every row is searchable (less is better)")
    return figure


def memory(setting: Setting, entries: Sequence[Entry]) -> Figure | None:
    """Bytes of each index in memory, or on disk for systems that keep files, beside those of the vectors alone."""
    found = [_weighed(entry, size) for entry in entries if (size := _size(entry))]
    if not found:
        return None
    figure, (axes,) = _figure(setting, 1, "Size of the index", entries, rows=len(found) + 1)
    _dots(axes, found)
    told = any(dot.beside is not None for dot in found)
    axes.set_xlabel("MB (less is better)" + ("\n▏ memory by which the process has grown" if told else ""))
    if setting.n and setting.dim:
        raw = 4 * setting.n * setting.dim / MB
        axes.axvline(raw, color="#767676", linewidth=1, linestyle=(0, (4, 3)), zorder=1)
        axes.annotate(
            f"the vectors as float32: {shown(raw)} MB", (raw, 1.0), xycoords=("data", "axes fraction"),
            xytext=(-3, 3), textcoords="offset points", fontsize=7.5, color="#767676", va="bottom", ha="left",
        )  # fmt: skip
    return figure


@dataclass(frozen=True, slots=True)
class _Dot:
    """A figure of a system, the text beside it, and a second figure that is shown as a bar."""

    entry: Entry
    value: float
    text: str
    beside: float | None = None


def _size(entry: Entry) -> float | None:
    return entry.number("disk_bytes") or entry.number("index_bytes")


def _weighed(entry: Entry, size: float) -> _Dot:
    rss = entry.facts.get("rss") or {}
    start, steady = number(rss.get("start")), number(rss.get("steady"))
    grown = (steady - start) / MB if start is not None and steady is not None and steady > start else None
    where = " on disk" if entry.number("disk_bytes") else ""
    return _Dot(entry, size / MB, f"{shown(size / MB)} MB{where}", grown)


def _dots(axes: Axes, unsorted: Sequence[_Dot]) -> None:
    """A dot with its text for each system, the least on top; on a log scale if they differ more than thirtyfold."""
    dots = sorted(unsorted, key=lambda dot: dot.value)
    every = [value for dot in dots for value in (dot.value, dot.beside) if value is not None]
    wide = max(every) > 30 * min(every)
    left = min(every) / 2 if wide else 0.0
    right = max(every) * (4 if wide else 1.25)
    axes.set_xlim(left, right)
    if wide:
        _plain_log(axes)
    styles = looks([dot.entry.system for dot in dots])
    for place, dot, style in zip(range(len(dots) - 1, -1, -1), dots, styles, strict=True):
        ours = own(dot.entry.system)
        axes.hlines(
            place, left, dot.value, color=style.colour, linewidth=2.2 if ours else 1.1, alpha=1 if ours else 0.55
        )
        axes.plot([dot.value], [place], **{**line_of(style, ours), "markersize": 8 if ours else 6})
        if dot.beside is not None:
            axes.plot([dot.beside], [place], marker="|", markersize=9, markeredgewidth=1.6, color="#444444")
        where = (_text_place(dot, left, right, wide), place)
        axes.annotate(dot.text, where, xytext=(8, 0), textcoords="offset points", va="center", fontsize=8,
                      fontweight="bold" if ours else "normal", color="#222222")  # fmt: skip
    axes.set_yticks(range(len(dots) - 1, -1, -1), [dot.entry.label for dot in dots])
    for text, dot in zip(axes.get_yticklabels(), dots, strict=True):
        text.set_fontweight("bold" if own(dot.entry.system) else "normal")
    axes.set_ylim(-0.6, len(dots) - 0.4)
    axes.tick_params(axis="y", length=0)
    axes.grid(True, axis="x")
    axes.set_axisbelow(True)


def _text_place(dot: _Dot, left: float, right: float, wide: bool) -> float:
    """After the dot, or after the bar where the text would run into it."""
    at, end = (math.log(dot.value / left), math.log(right / left)) if wide else (dot.value, right)
    if dot.beside is None or dot.beside < dot.value:
        return dot.value
    bar = math.log(dot.beside / left) if wide else dot.beside
    return dot.beside if bar - at < TEXT_WIDTH * end else dot.value


def _plain_log(axes: Axes) -> None:
    from matplotlib.ticker import FuncFormatter, NullLocator

    axes.set_xscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: shown(value)))
    axes.xaxis.set_minor_locator(NullLocator())


# --- frame ------------------------------------------------------------------------------------------------------------


def _figure(
    setting: Setting, panels: int, title: str, entries: Sequence[Entry], rows: int | None = None
) -> tuple[Figure, Sequence[Axes]]:
    """A titled figure with as many axes beside each other; `rows` sets the height of one with a row per system.

    Without it, the figure is as high as the legend needs. Long names do not take the room of the axes.
    """
    from matplotlib.figure import Figure

    height = HEADER + 0.6 + (max(3.54, LEGEND_LINE * len(entries)) if rows is None else 0.26 * rows)
    longer = max(max(len(entry.label) for entry in entries) - NAME_LENGTH, 0)
    figure = Figure(figsize=((7.2 if panels == 1 else 9.4) + LETTER * longer, height), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.01, 0.98, 1 - HEADER / height - 0.01), wspace=0.04)
    figure.text(0.015, 1 - 0.1 / height, title, va="top", fontsize=11, fontweight="bold")
    figure.text(0.015, 1 - 0.34 / height, _about(setting, entries), va="top", fontsize=8, color="#555555")
    return figure, list(figure.subplots(1, panels, sharey=panels > 1, squeeze=False)[0])


def _about(setting: Setting, entries: Sequence[Entry]) -> str:
    machines = {str((entry.facts.get("machine") or {}).get("cpu") or "") for entry in entries} - {""}
    where = f"; {next(iter(machines))}" if len(machines) == 1 else ""
    return f"{setting}{where}"


def _corner(axes: Axes, text: str, *, top: bool) -> None:
    axes.annotate(
        text, (0.985, 0.98 if top else 0.02), xycoords="axes fraction", ha="right", va="top" if top else "bottom",
        fontsize=8, color="#999999",
    )  # fmt: skip


SPEED: dict[str, Callable[[Setting, Sequence[Entry]], Any]] = {
    "recall-qps": recall_qps, "recall-latency": recall_latency,
}  # fmt: skip
SIZES: dict[str, Callable[[Setting, Sequence[Entry]], Any]] = {"build-time": build_time, "memory": memory}

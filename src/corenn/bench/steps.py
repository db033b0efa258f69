"""A played runbook as a plot: recall over steps, and what was in the database meanwhile."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from .palette import BLUE, GREY, VERMILION
from .plots import STYLE

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LEAST_SPAN = 0.02  # of the recall axis: a hair's breadth must not fill it
Line = dict[str, Any]


def draw(lines: Sequence[Line], stem: Path) -> list[Path]:
    """Recall at each search above, live and dead rows after each step below; `stem`.svg and .png.

    Nothing is drawn without a search.
    """
    from matplotlib import rc_context

    searches = [line for line in lines if line.get("recall") is not None]
    if not searches:
        return []
    made = []
    with rc_context(STYLE):
        figure = _figure(lines, searches)
        for kind in ("svg", "png"):
            path = stem.with_name(f"{stem.name}.{kind}")
            part = path.with_name(f".{path.name}.part")
            figure.savefig(part, format=kind, dpi=170, metadata={"Date": None} if kind == "svg" else {})
            part.replace(path)
            made.append(path)
    return made


def _figure(lines: Sequence[Line], searches: Sequence[Line]) -> Figure:
    from matplotlib.figure import Figure

    last = lines[-1]
    figure = Figure(figsize=(7.2, 4.8), layout="constrained")
    engine: Any = figure.get_layout_engine()
    engine.set(rect=(0.01, 0.01, 0.98, 0.88))
    figure.text(0.015, 0.98, f"Recall@{last['k']} over the steps of {last['runbook']}", va="top", fontsize=11,
                fontweight="bold")  # fmt: skip
    figure.text(0.015, 0.925, _about(last), va="top", fontsize=8, color="#555555")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(3, 2))
    _recall(above, searches)
    _rows(below, lines)
    return figure


def _about(line: Line) -> str:
    processor = (line.get("machine") or {}).get("cpu")
    where = f"; {processor}" if processor else ""
    return (
        f"{line['section']}, {line['dim']} dimensions, search list {line['params']['search_list'] or 'default'}{where}"
    )


def _recall(axes: Axes, searches: Sequence[Line]) -> None:
    recalls = [line["recall"] for line in searches]
    axes.plot([line["step"] for line in searches], recalls, color=VERMILION, marker="o", markersize=4, linewidth=1.6)
    low, high = min(recalls), max(recalls)
    room = max(high - low, LEAST_SPAN) * 0.08
    axes.set_ylim(min(low, high - LEAST_SPAN) - room, high + room)
    axes.set_ylabel(f"recall@{searches[-1]['k']}")
    axes.grid(True)


def _rows(axes: Axes, lines: Sequence[Line]) -> None:
    from matplotlib.ticker import FuncFormatter, MaxNLocator

    steps = np.array([line["step"] for line in lines])
    live = np.array([line["n"] for line in lines])
    dead = np.array([line["tombstones"] for line in lines])
    axes.fill_between(steps, live, step="post", color=BLUE, alpha=0.75, linewidth=0, label="live rows")
    axes.fill_between(
        steps, live, live + dead, step="post", color=GREY, alpha=0.45, linewidth=0, label="deleted, space not reclaimed"
    )
    axes.set_ylim(0, None)
    axes.set_ylabel("rows")
    axes.set_xlabel("step")
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(loc="upper left", ncols=2)
    axes.margins(x=0.02)

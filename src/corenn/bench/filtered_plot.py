"""The plot of filtered searches: speed over the share of rows that match, a line for each system."""

from __future__ import annotations

from collections.abc import Iterator
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from .filtered_data import PLAIN
from .filtered_tables import Results
from .palette import GREY, looks, own
from .plots import STYLE, line_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(results: Results, path: Path) -> Path:
    """Draw into `path`, .svg or .png: what reaches the recall, a panel for each kind of filter."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    about = results.asked.subject.about
    kinds = list(dict.fromkeys(cell.kind for cell in results.asked.cells if cell.share != PLAIN))
    with rc_context(STYLE):
        figure = Figure(figsize=(3.4 * len(kinds) + 1.6, 4.4), layout="constrained")
        figure.suptitle(
            f"Filtered queries per second at recall@10 ≥ {results.target:g}: {about['name']}, {about['rows']:,} rows",
            x=0.01, ha="left", fontweight="bold", fontsize=11,
        )  # fmt: skip
        panels = figure.subplots(1, len(kinds), sharex=True, sharey=True, squeeze=False)[0]
        for axes, kind in zip(panels, kinds, strict=True):
            _panel(axes, results, kind)
        panels[0].set_ylabel(f"queries per second (dotted: corenn, {PLAIN})")
        found = {name: each for axes in panels for each, name in zip(*axes.get_legend_handles_labels(), strict=True)}
        figure.legend(list(found.values()), list(found), loc="outside right upper")
        figure.savefig(path, dpi=170, metadata={"Date": None} if path.suffix == ".svg" else {})
    return path


def _panel(axes: Axes, results: Results, kind: str) -> None:
    from matplotlib.ticker import FuncFormatter, NullFormatter

    styles = looks([each.spec.name for each in results.systems])
    for system, style in zip(results.systems, styles, strict=True):
        points = sorted(_points(results, system.spec.label, kind))
        if points:
            ours = own(system.spec.name)
            shares, rates = zip(*points, strict=True)
            axes.plot(shares, rates, label=system.spec.label, zorder=5 if ours else 3, **line_of(style, ours))
    if not isnan(results.plain):
        axes.axhline(results.plain, color=GREY, linestyle=":", linewidth=1)
    axes.set_title(kind, loc="left", fontsize=9, color="#444444")
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.set_xlabel("rows that match, %")
    axes.grid(axis="y")


def _points(results: Results, label: str, kind: str) -> Iterator[tuple[float, float]]:
    """Percentages and speeds of one system; sets of rows are made for each query, unless one serves all."""
    rows = results.asked.subject.about["rows"]
    for each in results.answers:
        if each.label == label and each.cell.kind == kind and each.matches > 0 and results.reached(each):
            yield each.matches / rows * 100, results.rate(each, beforehand=False)

"""The plot of a calibration curve: recall over the search list, with its interval and the lists that targets get."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from ..types import Recall
from .palette import GREY, VERMILION
from .plots import RECALL_TICKS, STYLE, closed, opened

MOST = 0.9999  # nothing is drawn above, so that a recall of 1 stands within the plot


def draw(points: Sequence[Recall], lists: Mapping[float, int], about: str, path: Path) -> None:
    """Draw the curve into `path`, .svg or .png. lists: the search list of each target, 0 for a scan."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import NullLocator

    size = np.array([point.search_list for point in points])
    recall, low, high = (
        np.array([min(getattr(point, name), MOST) for point in points]) for name in ("recall", "low", "high")
    )
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), layout="constrained")
        axes = figure.subplots()
        axes.set_title(f"recall@{points[0].k} by search list", loc="left", fontweight="bold", pad=22)
        axes.text(
            0, 1.03, f"{about}, {points[0].samples:,} of them asked for; band: 95 % confidence",
            transform=axes.transAxes, color=GREY, fontsize=8.5,
        )  # fmt: skip
        axes.fill_between(size, low, high, color=VERMILION, alpha=0.18, linewidth=0)
        axes.plot(size, recall, color=VERMILION, marker="o", markersize=5, linewidth=2)
        axes.set_xscale("log")
        axes.set_yscale("function", functions=(opened, closed))
        least = float(low.min())
        axes.set_ylim(least, MOST + (1 - MOST) / 2)
        axes.set_yticks([tick for tick in (*RECALL_TICKS[:-1], MOST) if tick >= least])
        axes.set_yticklabels([f"{tick:g}" for tick in (*RECALL_TICKS[:-1], MOST) if tick >= least])
        axes.set_xticks(size, [f"{each}" for each in size])
        axes.xaxis.set_minor_locator(NullLocator())
        axes.yaxis.set_minor_locator(NullLocator())
        for target, length in lists.items():
            if length > 0 and least < target < MOST:
                axes.hlines(target, size[0], length, color=GREY, linestyle=":", linewidth=1)
                axes.vlines(length, least, target, color=GREY, linestyle=":", linewidth=1)
                axes.annotate(
                    f"{target:g}: {length}", (length, target), xytext=(6, -10), textcoords="offset points",
                    fontsize=8.5, color="#444444",
                )  # fmt: skip
        axes.set_xlabel("search list")
        axes.set_ylabel(f"recall@{points[0].k}")
        axes.grid(axis="y")
        details = {"Date": None} if path.suffix == ".svg" else {}
        figure.savefig(path, dpi=170, metadata=details)

"""A report of a log: tables and plots into a folder, and the generated part of a page of the documentation."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import InvalidArgumentError
from . import tables
from .compare import Change, between
from .plots import draw
from .runs import Entry, Setting, file_names, latest, read, settings

REPORT = "report.md"
BEGIN, END = "<!-- corenn bench report: begin -->", "<!-- corenn bench report: end -->"


@dataclass(frozen=True, slots=True)
class Part:
    """The systems of one setting, each in its newest run, and their plots. older: runs left out as there are newer."""

    setting: Setting
    entries: list[Entry]
    older: int
    plots: list[Path]


@dataclass(frozen=True, slots=True)
class Report:
    """What was written. unread: lines of the log that could not be read. changes: between two commits, if asked for."""

    parts: list[Part]
    unread: int
    page: Path
    changes: list[Change]

    def as_dict(self) -> dict[str, Any]:
        """Plain values, ready for JSON."""
        return {
            "page": str(self.page), "unread": self.unread, "changes": [change.as_dict() for change in self.changes],
            "parts": [
                {"setting": str(part.setting), "older": part.older, "plots": [str(path) for path in part.plots],
                 "systems": [_told(entry) for entry in part.entries]}
                for part in self.parts
            ],
        }  # fmt: skip


def _told(entry: Entry) -> dict[str, Any]:
    return {
        "label": entry.label, "version": entry.version, "commit": entry.commit, "points": len(entry.points),
        "build_seconds": entry.number("build_seconds"), "index_bytes": entry.number("index_bytes"),
        "disk_bytes": entry.number("disk_bytes"),
        "qps": {f"{target:g}": line.get("qps") for target, line in sorted(entry.targets.items())},
        "failures": [line.get("reason") for line in entry.failures],
    }  # fmt: skip


def write_report(
    logs: Sequence[Path], out: Path, *, plots: bool = True, compared: tuple[str, str] | None = None
) -> Report:
    """Read logs, and write report.md and, unless they are not wanted, its plots into `out`; made if it is missing.

    compared: two commits in the logs, or two other logs, whose comparison ends the report.

    Raises:
        InvalidArgumentError: for a path without a log, or if no line can be read; as of compare.between.
    """
    lines, unread = read(logs)
    changes = between(*compared, logs) if compared else []
    out.mkdir(parents=True, exist_ok=True)
    parts = []
    found = settings(lines)
    names = file_names(found)
    for setting, group in found.items():
        entries, older = latest(group)
        drawn = draw(setting, entries, out / names[setting]) if plots else []
        parts.append(Part(setting, entries, older, drawn))
    text = f"# Benchmark report\n\n{body(parts, unread)}"
    if compared:
        text += f"\n## From {compared[0]} to {compared[1]}\n\n{tables.comparison(changes)}"
    _write(out / REPORT, text)
    return Report(parts, unread, out / REPORT, changes)


def body(parts: Sequence[Part], unread: int, images: str = "") -> str:
    """The sections of all settings. `images`: what stands before the name of a plot in its links."""
    texts = []
    for part in parts:
        notes = [f"{part.older} older measurements of these systems are left out.\n"] if part.older else []
        plots = [f"{images}{path.name}" for path in part.plots]
        texts.append("\n".join([tables.section(part.setting, part.entries, plots), *notes]))
    if unread:
        texts.append(f"{unread} lines of the log could not be read.\n")
    return "\n".join(texts)


def update_page(page: Path, report: Report) -> list[Path]:
    """Put tables and plots between the markers of `page`, and copy the plots to images/ beside it: what was written.

    Raises:
        InvalidArgumentError: as of split_page.
    """
    before, after = split_page(page)
    images = page.parent / "images"
    images.mkdir(exist_ok=True)
    plots = [plot for part in report.parts for plot in part.plots]
    copies = [images / plot.name for plot in plots]
    for plot, copy in zip(plots, copies, strict=True):
        part = copy.with_name(f".{copy.name}.part")
        shutil.copyfile(plot, part)
        part.replace(copy)
    inside = body(report.parts, report.unread, "images/")
    _write(page, f"{before}{BEGIN}\n\n{inside}\n{END}{after}")
    return [page, *copies]


def split_page(page: Path) -> tuple[str, str]:
    """What stands before and after the generated part of a page.

    Raises:
        InvalidArgumentError: if the page does not exist, or has not each marker once, in their order.
    """
    if not page.is_file():
        raise InvalidArgumentError(f"{page}: no page here; write one with the lines {BEGIN} and {END}")
    text = page.read_text("utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end or BEGIN in rest or END in before or END in after:
        raise InvalidArgumentError(f"{page}: needs one line {BEGIN} and, after it, one line {END}")
    return before, after


def _write(path: Path, text: str) -> None:
    part = path.with_name(f".{path.name}.part")
    part.write_text(text, "utf-8")
    part.replace(path)

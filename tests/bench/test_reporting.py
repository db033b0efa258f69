"""Reports of made-up logs, through `corenn bench report`: tables, plots, and the generated part of a page.

Rules out figures in the wrong row or column, a system, failure or circumstance that is left out, a log with odd lines
that cannot be reported, plots that change with whoever else is in them, and a page that is damaged by its update.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.bench import plots
from corenn.bench.palette import FIXED, look, looks
from corenn.bench.runs import TARGETS, entries, read, settings
from tests.bench.made_up import Line, common, curve, failure, target, write
from tests.test_cli import corenn, figures, refused

PNG = b"\x89PNG\r\n\x1a\n"
PLOTS = ("recall-qps", "recall-latency", "build-time", "memory")


def report(tmp_path: Path, lines: list[Line], *more: object, plots: bool = False) -> str:
    """The report of a log."""
    log = write(tmp_path / "log" / "runs.jsonl", lines)
    result = corenn("bench", "report", log, "--out", tmp_path / "out", *more, *([] if plots else ["--no-plots"]))
    assert result.exit_code == 0, result.output
    return (tmp_path / "out" / "report.md").read_text()


def table(page: str, head: str) -> dict[str, dict[str, str]]:
    """The table whose second column is `head`: cells by system and column."""
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in page.splitlines() if line.startswith("|")]
    at = next(number for number, row in enumerate(rows) if row[1] == head)
    names = rows[at]
    found = {}
    for row in rows[at + 2 :]:
        if len(row) != len(names) or row[1] == "---" or row[0] == "system":
            break
        found[row[0].strip("*")] = dict(zip(names, row, strict=True))
    return found


@pytest.fixture
def lines() -> list[Line]:
    """Three systems of one run, one of them on disk, and two that failed."""
    ours: Line = {"build_seconds": 8.8, "index_bytes": 50_000_000}
    disk = {"disk_bytes": 70_000_000, "open_seconds": 0.012, "first_query_seconds": 0.003, "build_seconds": 24.0}
    return [
        *curve("corenn", 90_000, 2.2, **ours),
        target("corenn", 0.9, 80_000.0, **ours), target("corenn", 0.95, 60_000.0, **ours),
        target("corenn", 0.99, 30_000.0, **ours),
        *curve("hnswlib", 60_000, 2.6),
        target("hnswlib", 0.9, 65_000.0, at_least=True), target("hnswlib", 0.95, 50_000.0),
        target("hnswlib", 0.99, None),
        *curve("chroma", 1_500, 2.6, **disk), target("chroma", 0.95, 900.0, **disk),
        failure("svs"), failure("vsag", reason="crashed", stage="build", message="signal 11 | after\n3 s"),
    ]  # fmt: skip


# --- tables -----------------------------------------------------------------------------------------------------------


def test_tables_have_every_system_and_figure(tmp_path: Path, lines: list[Line]) -> None:
    page = report(tmp_path, lines)
    speed = table(page, "version")
    assert list(speed) == ["corenn", "hnswlib", "chroma"]  # by the speed at .95
    assert speed["corenn"]["QPS at recall@10 0.99"] == "**30,000** (28,500)"
    assert speed["hnswlib"]["QPS at recall@10 0.9"] == "≥ 65,000 (61,750)"
    assert speed["hnswlib"]["QPS at recall@10 0.99"] == "max 0.700"
    assert speed["chroma"]["QPS at recall@10 0.9"] == "–" and speed["chroma"]["at 0.95"] == "ef 20–28"
    beside = table(page, "at 0.9")["corenn"]
    assert beside["at 0.9"] == "1.23 × hnswlib" and beside["at 0.99"] == "–"
    build = table(page, "build s")
    assert list(build) == ["corenn", "hnswlib", "chroma"]
    assert (build["corenn"]["build s"], build["corenn"]["index MB"], build["corenn"]["disk MB"]) == ("8.8", "50", "–")
    assert (build["chroma"]["disk MB"], build["chroma"]["open + first query ms"]) == ("70", "12 + 3")
    assert build["hnswlib"]["peak RSS MB"] == "260" and build["hnswlib"]["steady RSS MB"] == "140"
    waits = table(page, "p50 / p99 ms at 0.9")
    assert (
        waits["corenn"]["p50 / p99 ms at 0.95"] == "0.0167 / 0.0333" and waits["hnswlib"]["p50 / p99 ms at 0.99"] == "–"
    )
    failed = table(page, "why")
    assert failed["svs"]["why"] == "not installed"
    assert "signal 11 \\| after 3 s" in page and "crashed" in page


def test_circumstances_are_named(tmp_path: Path, lines: list[Line]) -> None:
    page = report(tmp_path, lines)
    for part in (
        "100,000 of 1,000,000 rows of 128 dimensions, l2", "true neighbours computed", "searched on 1 thread",
        "built on 2 threads", "3 repetitions in turns, the best counts", "Made-up Processor 9000, 2 cores, 16 GB",
        "huge pages: madvise", f"Commit {'a' * 9};", "2026-01-02", "numba 0.68.1",
    ):  # fmt: skip
        assert part in page, part
    assert "quick" not in page and "runs:" not in page
    quick = [line | {"config": {"quick": True}} for line in lines]
    assert "A quick run" in report(tmp_path, quick)


def test_settings_that_differ_make_sections(tmp_path: Path, lines: list[Line]) -> None:
    more = [line | {"threads": 2} for line in lines] + [line | {"n": 5_000} for line in lines]
    page = report(tmp_path, lines + more)
    assert [line for line in page.splitlines() if line.startswith("### ")] == [
        "### sift-128-euclidean.hdf5, 5,000 × 128, k = 10, 1 thread",
        "### sift-128-euclidean.hdf5, 100,000 × 128, k = 10, 1 thread",
        "### sift-128-euclidean.hdf5, 100,000 × 128, k = 10, 2 threads",
    ]


def test_of_two_commits_the_newer_is_shown(tmp_path: Path) -> None:
    old = curve("corenn", 50_000, 2.2, build_seconds=20.0) + curve("hnswlib", 40_000, 2.6)
    new = curve("corenn", 90_000, 2.2, run="second", commit="b" * 40 + "+", time="2026-03-01T00:00:00+00:00",
                build_seconds=9.0)  # fmt: skip
    page = report(tmp_path, new + old)  # in whatever order they come
    assert table(page, "build s")["corenn"]["build s"] == "9"
    assert "beside the best other" not in page  # hnswlib ran at another time
    assert f"Commit {'b' * 9}+ and {'a' * 9}" in page and "2026-01-02 to 2026-03-01" in page
    assert "1 older measurements" in page and "From 2 runs: only systems of the same run" in page


def test_speeds_are_interpolated_where_the_log_has_no_targets(tmp_path: Path) -> None:
    page = report(tmp_path, curve("corenn", 90_000, 4.0, noise=0.0))
    row = table(page, "version")["corenn"]
    points = sorted((line["recall"], line["qps"]) for line in curve("corenn", 90_000, 4.0, noise=0.0))
    for recall in TARGETS:
        speed = float(re.sub(r"[^\d.]", "", row[f"QPS at recall@10 {recall:g}"].partition("(")[0]))
        above = next(at for at, (reached, _) in enumerate(points) if reached >= recall)
        assert points[above][1] <= speed <= (points[above - 1][1] if above else speed)


# --- awkward logs -----------------------------------------------------------------------------------------------------


def test_lines_that_cannot_be_read_are_counted_and_left_out(tmp_path: Path, lines: list[Line]) -> None:
    log = write(tmp_path / "runs.jsonl", lines)
    log.write_text(
        log.read_text() + '{"kind": "point", "syst\n[1, 2]\n{"kind": "song", "system": "x"}\n\n{"kind": "point"}\n'
    )
    told = figures("bench", "report", log, "--out", tmp_path / "out", "--no-plots")
    assert told["unread"] == 4 and [each["label"] for each in told["parts"][0]["systems"]] == [
        "chroma", "corenn", "hnswlib", "svs", "vsag",
    ]  # fmt: skip
    assert "4 lines of the log could not be read" in (tmp_path / "out" / "report.md").read_text()


def test_a_log_with_the_fewest_fields(tmp_path: Path) -> None:
    """What the command promises at least, as somebody else may write it."""
    least = [
        {"system": "corenn", "version": "1", "n": 1_000, "dim": 8, "k": 10, "threads": 1, "params": {"ef": ef},
         "build_seconds": 2.0, "recall": recall, "qps": qps}
        for ef, recall, qps in ((10, 0.93, 4_000), (20, 0.97, 3_000), (40, 1.0, 2_000.0))
    ]  # fmt: skip
    page = report(tmp_path, least)
    assert table(page, "version")["corenn"]["QPS at recall@10 0.95"] == "**3,464** (3,464)"
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"report.md"}


@pytest.mark.few(2)
@pytest.mark.parametrize(
    "points",
    [
        [common("corenn", recall=0.95, qps=1_000.0)],
        [common("corenn", recall=1.0, qps=0.3)],
        [common("corenn", recall=0.0, qps=5.0), common("corenn", recall=0.2, qps=4.0)],
        [common("corenn", recall=0.9, qps=1e6, latency_ms={"p50": 0.1}), common("corenn", recall=0.9, qps=1e6)],
        [common("corenn", recall=None, qps=4.0), common("corenn", recall=0.5, qps=None), failure("corenn")],
        [common("corenn", recall=0.5, qps=0.0), common("corenn", recall=1.5, qps=3.0)],
        [common("corenn", recall=0.5, qps=3.0, build_seconds=None, index_bytes=None, rss=None, machine={}, config={},
                dataset="name only", versions={}, commit=None, time=None, latency_ms=None, qps_runs=[])],
        [failure("corenn"), failure("hnswlib")],
    ],
)  # fmt: skip
def test_any_figures_make_a_report(tmp_path: Path, points: list[Line]) -> None:
    page = report(tmp_path, points, plots=True)
    assert page.startswith("# Benchmark report") and "corenn" in page
    for plot in (tmp_path / "out").glob("*.svg"):
        ElementTree.parse(plot)


def test_no_log_is_one_line(tmp_path: Path) -> None:
    assert "no log here" in refused("bench", "report", tmp_path)
    (tmp_path / "runs.jsonl").write_text("\n")
    assert "no run in the log" in refused("bench", "report", tmp_path)
    assert not (tmp_path / "report.md").exists()


def test_without_matplotlib_the_extra_is_named(
    tmp_path: Path, lines: list[Line], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "matplotlib", None)
    log = write(tmp_path / "runs.jsonl", lines)
    assert "pip install 'corenn[bench]'" in refused("bench", "report", log)


# --- plots ------------------------------------------------------------------------------------------------------------


def test_plots_are_whole_files_under_names_that_tell(tmp_path: Path, lines: list[Line]) -> None:
    report(tmp_path, lines, plots=True)
    stem = "sift-128-euclidean-n100000-k10-t1"
    speed = ("recall-qps", "recall-qps-disk", "recall-latency", "recall-latency-disk")  # chroma is on disk
    expected = {f"{stem}-{name}.{kind}" for name in (*speed, "build-time", "memory") for kind in ("svg", "png")}
    out = tmp_path / "out"
    assert {path.name for path in out.iterdir()} == {*expected, "report.md"}
    for path in out.glob("*.png"):
        assert path.read_bytes().startswith(PNG)
    for path in out.glob("*.svg"):
        root = ElementTree.parse(path).getroot()
        assert root.tag.endswith("svg") and len(list(root.iter())) > 100


def test_settings_that_differ_in_what_names_do_not_say_have_plots_of_their_own(tmp_path: Path) -> None:
    once = curve("corenn", 90_000, 2.2)
    twice = [line | {"build_threads": 4, "build_seconds": 4.0} for line in curve("corenn", 90_000, 2.2)]
    page = report(tmp_path, once + twice, plots=True)
    links = re.findall(r"\]\(([^)]+)\)", page)
    assert len(set(links)) == len(links) == 8
    assert len(list((tmp_path / "out").glob("*-build-time.svg"))) == 2


def test_the_same_log_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("one", "two"):
        report(tmp_path / name, curve("corenn", 90_000, 2.2, latency_ms=None), plots=True)
    assert len(list((tmp_path / "one" / "out").iterdir())) == 7  # without figures there is no plot of latency
    for path in (tmp_path / "one" / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "two" / "out" / path.name).read_bytes(), path.name


@given(st.lists(st.sampled_from([*FIXED, "unheard-of", "another"]), min_size=1, unique=True))
def test_a_system_looks_the_same_whoever_else_is_there(systems: list[str]) -> None:
    assert looks(systems) == [look(system) for system in systems]


def test_no_two_known_systems_look_alike_and_ours_stands_out() -> None:
    shapes = {(each.colour, each.marker) for each in FIXED.values()}
    assert len(shapes) == len(FIXED)
    ours = {name for name, each in FIXED.items() if each.colour == look("corenn").colour}
    assert ours == {"corenn", "corenn-disk", "corenn-py"}
    twice = looks(["hnswlib", "hnswlib"])
    assert {(each.colour, each.marker) for each in twice} == {(look("hnswlib").colour, look("hnswlib").marker)}
    assert twice[0] != twice[1]
    assert len(set(looks(["hnswlib"] * 8))) == 8


@pytest.mark.parametrize("plot", [plots.recall_qps, plots.recall_latency])
def test_many_systems_with_long_names_leave_the_plot_its_room(plot: Any) -> None:
    names = [f"hnswlib:M={number},ef_construction={100 * number}" for number in range(8, 38)]
    every = entries(
        [line for at, name in enumerate(names) for line in curve("hnswlib", 9e4 / (1 + at), 2.2, label=name)]
    )
    (setting,) = settings(every[0].points)
    figure = plot(setting, every)
    figure.draw_without_rendering()
    whole, legend = figure.bbox, figure.legends[0].get_window_extent()
    assert len(figure.legends[0].get_texts()) == len(names)
    assert legend.y0 >= whole.y0 and legend.x1 <= whole.x1 + 1
    for axes in figure.axes:
        box = axes.get_window_extent()
        assert box.x1 <= legend.x0 and box.width / figure.dpi >= 2.5


def test_strangers_never_look_alike_in_a_plot() -> None:
    """Those without a look of their own choose among a few by their names, and a relative has that of its family."""
    strangers = [f"mine.system{number}" for number in range(24)]
    assert len({look(system) for system in strangers}) < len(strangers)
    assert len(set(looks(strangers))) == len(strangers)
    assert looks(["faiss-hnsw", "faiss-hnsw-pq"])[0] != looks(["faiss-hnsw", "faiss-hnsw-pq"])[1]


def test_every_system_of_the_harness_has_a_look_of_its_own() -> None:
    from corenn.bench import systems

    folder = Path(systems.__file__).parent
    names = {path.stem.replace("_", "-") for path in folder.glob("*.py")} - {"--init--", "base"}
    assert names and names <= set(FIXED), names - set(FIXED)


def test_the_frontier_leaves_out_what_another_point_beats(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    lines = [common("x", recall=float(recall), qps=float(qps)) for recall, qps in rng.uniform((0, 1), (1, 2), (40, 2))]
    (entry,) = entries(lines)
    kept = {(point["recall"], point["qps"]) for point in entry.frontier}
    for recall, qps in ((line["recall"], line["qps"]) for line in lines):
        beaten = any(r >= recall and q >= qps and (r, q) != (recall, qps) for r, q in kept)
        assert beaten != ((recall, qps) in kept)
    assert list(kept) and [point["recall"] for point in entry.frontier] == sorted(recall for recall, _ in kept)


# --- pages ------------------------------------------------------------------------------------------------------------

BEGIN, END = "<!-- corenn bench report: begin -->", "<!-- corenn bench report: end -->"


def test_a_page_is_updated_between_its_markers(tmp_path: Path, lines: list[Line]) -> None:
    page = tmp_path / "docs" / "benchmarks.md"
    page.parent.mkdir()
    page.write_text(f"# Benchmarks\n\nBefore.\n\n{BEGIN}\nold\n{END}\n\nAfter.\n")
    report(tmp_path, lines, "--update", page, plots=True)
    once = page.read_text()
    assert once.startswith(f"# Benchmarks\n\nBefore.\n\n{BEGIN}\n\n### sift") and once.endswith(f"{END}\n\nAfter.\n")
    assert "old\n" not in once
    links = re.findall(r"\]\(([^)]+)\)", once)
    assert len(links) == 6 and all((page.parent / link).read_bytes() for link in links)
    assert len(list((page.parent / "images").glob("*.png"))) == 6
    (page.parent / "images" / "kept.svg").write_text("not ours")
    shorter = report(tmp_path, lines, "--update", page)
    assert page.read_text().count("![") == 0 and shorter.count("![") == 0  # with --no-plots
    assert page.read_text().startswith(once.partition("![")[0].rstrip()) and page.read_text().endswith("After.\n")
    assert (page.parent / "images" / "kept.svg").read_text() == "not ours"


def test_a_page_without_its_markers_is_left_alone(tmp_path: Path, lines: list[Line]) -> None:
    log, page = write(tmp_path / "runs.jsonl", lines), tmp_path / "page.md"
    assert "no page here" in refused("bench", "report", log, "--update", page)
    for text in (
        "# Page\n",
        f"{END}\n{BEGIN}\n",
        f"{BEGIN}\n",
        f"{BEGIN}\n{BEGIN}\n{END}\n",
        f"{BEGIN}\n{END}\n{END}\n",
    ):
        page.write_text(text)
        assert "needs one line" in refused("bench", "report", log, "--update", page)
        assert page.read_text() == text


def test_json_tells_what_was_made(tmp_path: Path, lines: list[Line]) -> None:
    log = write(tmp_path / "runs.jsonl", lines)
    told = figures("bench", "report", tmp_path, log, "--no-plots")  # the log twice, as folder and as file
    (part,) = told["parts"]
    assert part["setting"] == "sift-128-euclidean.hdf5, 100,000 × 128, k = 10, 1 thread"
    by_label = {each["label"]: each for each in part["systems"]}
    assert by_label["corenn"]["qps"] == {"0.9": 80_000, "0.95": 60_000, "0.99": 30_000}
    assert by_label["svs"]["failures"] == ["not installed"] * 2 and told["unread"] == 0
    assert all(Path(path).exists() for path in (told["page"], *part["plots"]))
    assert json.loads(json.dumps(told, allow_nan=False)) == told


def test_reading_keeps_runs_apart(tmp_path: Path) -> None:
    lines = (
        curve("corenn", 1e4, 2.2)
        + curve("corenn", 2e4, 2.2, run="second")
        + curve("corenn", 3e4, 2.2, label="corenn:a=1")
    )
    read_back, unread = read([write(tmp_path / "runs.jsonl", lines)])
    assert unread == 0 and read_back == lines and len(settings(lines)) == 1
    assert {(entry.label, entry.run, len(entry.points)) for entry in entries(lines)} == {
        ("corenn", "first", 10), ("corenn", "second", 10), ("corenn:a=1", "first", 10),
    }  # fmt: skip

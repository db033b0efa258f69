"""Runbooks: read, checked against a model, played against an oracle, and from the command line.

Rules out a bad step that is found only when others are done, a good one that is refused, recall against rows that are
not live (or without those that are), hits that count twice, steps whose effect is not looked at, and a log that an
interruption or a second run loses.
"""

from __future__ import annotations

import builtins
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner, Result

from corenn import CoreNN, CorruptionError
from corenn.bench.player import Player, stored_type
from corenn.bench.recall import recall_by_distance
from corenn.bench.runbook import Runbook, read_runbook
from corenn.cli import app
from corenn.datasets import Vectors, create_vectors, open_vectors
from corenn.errors import DatasetError
from corenn.types import HitBlock, Hits
from tests.conftest import DATA, Sample

yaml = pytest.importorskip("yaml")
BOOKS = DATA / "runbooks"
INSERT, DELETE, SEARCH = ({"operation": name} for name in ("insert", "delete", "search"))


def book(path: Path, *steps: Any, name: str = "data", **entries: Any) -> Path:
    """A runbook with these steps, numbered from 1."""
    section = {"max_pts": 100, **entries, **dict(enumerate(steps, 1))}
    path.write_text(yaml.safe_dump({name: section}))
    return path


def insert(start: int, end: int) -> dict[str, Any]:
    return {**INSERT, "start": start, "end": end}


def delete(start: int, end: int) -> dict[str, Any]:
    return {**DELETE, "start": start, "end": end}


def replace(tags: int, ids: int, count: int) -> dict[str, Any]:
    return {
        "operation": "replace", "tags_start": tags, "tags_end": tags + count, "ids_start": ids, "ids_end": ids + count
    }  # fmt: skip


# --- reading ----------------------------------------------------------------------------------------------------------


def test_a_runbook_as_the_benchmark_writes_it() -> None:
    found = read_runbook(BOOKS / "simple.yaml", 6_000)
    assert (found.name, found.most, found.peak, found.searches) == ("sift", 6_000, 4_000, 3)
    assert [step.number for step in found.steps] == [1, 2, 3, 4, 5, 6, 7]
    assert [step.operation for step in found.steps[:3]] == ["insert", "search", "delete"]
    assert (found.steps[0].tags, found.steps[0].ids) == (range(4_000), range(4_000))
    assert (found.steps[5].tags, found.steps[5].ids) == (range(2_000, 3_000), range(4_000, 5_000))
    assert found.steps[5].shown == "replace 2,000–2,999 by 4,000–4,999" and found.steps[6].shown == "search"


TEXTS = {
    "": "no runbook",
    "[1, 2]": "no runbook",
    "a: {1: {operation: search}": "not YAML",
    "a: !!python/object/apply:os.getcwd []": "not YAML",
    "a: 3": "max_pts and numbered steps",
    "a: {max_pts: 3}": "no step 1",
    "a: {1: {operation: search}}": "max_pts is None",
    "a: {max_pts: 0, 1: {operation: search}}": "max_pts is 0",
    "a: {max_pts: yes, 1: {operation: search}}": "max_pts is True",
    "a: {max_pts: 3, 1: {operation: search}, 3: {operation: search}}": "no step 2",
    "a: {max_pts: 3, 0: {operation: search}}": "no step 1",
    "a: {max_pts: 3, 1: {operation: search}, x: 1}": "unknown entry 'x'",
    "a:\n  max_pts: 3\n  1: {operation: search}\n  1: {operation: search}\n": "line 4: 1 is there twice",
    "a: {max_pts: 3, 1: {operation: insert, start: 0, end: 1, end: 2}}": "end is there twice",
    "a: {max_pts: 3, 1: {operation: search}}\na: {max_pts: 3}": "a is there twice",
    "a: {max_pts: 3, 1: search}": "step 1: operation is None",
    "a: {max_pts: 3, 1: {operation: [search]}}": "operation is ['search']",
    "a: {max_pts: 3, 1: {operation: upsert}}": "operation is 'upsert'",
    "a: {max_pts: 3, 1: {operation: search, k: 3}}": "k is not right",
    "a: {max_pts: 3, 1: {operation: insert, start: 0}}": "end is not right",
    "a: {max_pts: 3, 1: {operation: insert, start: 0, end: 2, batch: 1}}": "batch is not right",
}


@pytest.mark.parametrize(("content", "message"), TEXTS.items())
def test_files_that_are_no_runbook(tmp_path: Path, content: str, message: str) -> None:
    path = tmp_path / "bad.yaml"
    path.write_text(content)
    with pytest.raises(DatasetError) as raised:
        read_runbook(path, 10)
    assert message in str(raised.value) and str(path) in str(raised.value) and "\n" not in str(raised.value)


def test_a_file_that_is_no_text(tmp_path: Path) -> None:
    (tmp_path / "bad.yaml").write_bytes(b"\xff\xfe\x00a")
    with pytest.raises(DatasetError, match="not YAML"):
        read_runbook(tmp_path / "bad.yaml", 10)


STEPS = [
    ([insert(-1, 5)], "start -1 to end 5"),
    ([insert(5, 5)], "start 5 to end 5"),
    ([insert(0, 51)], "at most 50"),
    ([insert(0, 2.5)], "end 2.5"),  # type: ignore[arg-type]
    ([insert(0, True)], "end True"),
    ([{**insert(0, 5), "end": "5"}], "end '5'"),
    ([insert(0, 10), insert(9, 12)], "step 2: insert of tag 9, which is there already"),
    ([insert(0, 10), delete(5, 12)], "step 2: delete of tag 10, which is not there"),
    ([delete(0, 1)], "step 1: delete of tag 0"),
    ([insert(0, 10), delete(3, 5), delete(4, 6)], "step 3: delete of tag 4"),
    ([insert(0, 10), delete(3, 5), replace(2, 20, 2)], "step 3: replace of tag 3"),
    ([insert(0, 10), {**replace(0, 20, 2), "ids_end": 23}], "2 tags but 3 ids"),
    ([insert(0, 10), replace(0, 49, 2)], "ids_start 49 to ids_end 51"),
    ([insert(0, 30), delete(0, 5), insert(30, 36)], "step 3: 31 rows are live, above max_pts, 30"),
]


@pytest.mark.parametrize(("steps", "message"), STEPS, ids=[message for _, message in STEPS])
def test_steps_that_do_not_fit(tmp_path: Path, steps: list[Any], message: str) -> None:
    path = book(tmp_path / "bad.yaml", *steps, SEARCH, max_pts=30)
    with pytest.raises(DatasetError) as raised:
        read_runbook(path, 50)
    assert message in str(raised.value)


def test_the_data_set_is_chosen_by_name(tmp_path: Path) -> None:
    path = tmp_path / "two.yaml"
    path.write_text("a: {max_pts: 1, 1: {operation: search}}\nb: {max_pts: 2, 1: {operation: search}}\n")
    assert read_runbook(path, 5, "b").most == 2
    with pytest.raises(DatasetError, match="choose one of a, b"):
        read_runbook(path, 5)
    with pytest.raises(DatasetError, match="nothing for c; has a, b"):
        read_runbook(path, 5, "c")


OPERATIONS = st.one_of(
    st.builds(lambda at, count: insert(at, at + count), st.integers(0, 11), st.integers(1, 5)),
    st.builds(lambda at, count: delete(at, at + count), st.integers(0, 11), st.integers(1, 5)),
    st.builds(replace, st.integers(0, 11), st.integers(0, 11), st.integers(1, 5)),
    st.just(SEARCH),
)


def fits(steps: list[dict[str, Any]], rows: int, most: int) -> bool:
    """Whether steps can be played, by a set of tags."""
    live: set[int] = set()
    for step in steps:
        first, last = ("tags_start", "tags_end") if step["operation"] == "replace" else ("start", "end")
        tags = set(range(step.get(first, 0), step.get(last, 0)))
        if step.get(last, 0) > rows or step.get("ids_end", 0) > rows:
            return False
        if step["operation"] == "insert":
            if tags & live:
                return False
            live |= tags
        elif not tags <= live:
            return False
        elif step["operation"] == "delete":
            live -= tags
        if len(live) > most:
            return False
    return True


@settings(max_examples=150)
@given(steps=st.lists(OPERATIONS, min_size=1, max_size=7), most=st.integers(1, 12))
def test_exactly_what_can_be_played_is_accepted(
    steps: list[dict[str, Any]], most: int, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = book(tmp_path_factory.mktemp("book") / "any.yaml", *steps, max_pts=most)
    try:
        read_runbook(path, 12)
        accepted = True
    except DatasetError:
        accepted = False
    assert accepted == fits(steps, 12, most)


# --- playing ----------------------------------------------------------------------------------------------------------


def vectors(path: Path, rows: Any) -> Vectors:
    with create_vectors(path, rows.shape[1], rows.dtype) as out:
        out.append(rows)
    return open_vectors(path)


def player(runbook: Runbook, base: Vectors, queries: Any, db: Any, **options: Any) -> Player:
    return Player(
        runbook, base, queries.astype(np.float32), options.pop("metric", "l2"), options.pop("k", 10), db, **options
    )


def oracle(rows: Any, queries: Any, live: dict[int, int], answers: Any, k: int, metric: str) -> float:
    """Recall of hits against all rows that are live, from the definition; tags that are not live do not count."""
    base = rows[list(live.values())].astype(np.float64)

    def distances(query: Any, vectors: Any) -> Any:
        if metric == "l2":
            return ((vectors - query) ** 2).sum(axis=1)
        return (
            1 - vectors @ query
            if metric == "ip"
            else 1 - vectors @ query / np.linalg.norm(vectors, axis=1) / np.linalg.norm(query)
        )

    queries = queries.astype(np.float64)
    truth = np.stack([np.sort(distances(query, base))[:k] for query in queries])
    found = [
        distances(query, rows[[live[tag] for tag in dict.fromkeys(hits.keys) if tag in live]].astype(np.float64))
        for query, hits in zip(queries, answers, strict=True)
    ]
    full = np.full(truth.shape, np.inf)
    for at, each in enumerate(found):
        full[at, : len(each)] = each
    return recall_by_distance(full, truth, k)


@pytest.mark.compiled
@pytest.mark.parametrize("on_disk", [pytest.param(False, marks=pytest.mark.slow), True])
def test_recall_is_that_of_an_oracle(sift: Sample, tmp_path: Path, on_disk: bool) -> None:
    """At a search list so short that there is something to miss."""
    rows, queries = sift[0].astype(np.uint8), sift[1]
    found = read_runbook(BOOKS / "simple.yaml", len(rows))
    lines, live = [], {}
    settings = {"dim": 128, "metric": "l2", "dtype": stored_type(rows.dtype)}
    db = CoreNN.create(tmp_path / "played.corenn", **settings) if on_disk else CoreNN.in_memory(**settings)
    with db, vectors(tmp_path / "rows.npy", rows) as base:
        advanced: list[int] = []
        playing = player(found, base, queries, db, search_list=10, batch=700, about={"dataset": {"name": "some"}})
        for step, line in zip(found.steps, playing.play(advanced.append), strict=True):
            lines.append(line)
            if step.operation in ("insert", "replace"):
                live.update(zip(step.tags, step.ids, strict=True))
            for tag in step.tags if step.operation == "delete" else ():
                del live[tag]
            assert line["n"] == len(live) == len(db)
            if step.operation == "search":
                answers = db.query(queries, k=10, search_list=10)
                assert line["recall"] == pytest.approx(oracle(rows, queries, live, answers, 10, "l2"), abs=1e-9)
                assert 0.7 < line["recall"] < 1 and line["stale"] == 0 and line["distances"] > 10 and line["hops"] > 1
                assert line["recall_1"] <= 1 and line["count"] == len(queries)
    assert sum(advanced) == 4_000 + 2_000 + 1_000 + 1_000 and max(advanced) == 700
    gone = [0, 0, 2_000, 2_000, 2_000, 3_000, 3_000]
    assert all(line["tombstones"] <= most for line, most in zip(lines, gone, strict=True))
    assert lines[2]["tombstones"] > 0
    assert [line["step"] for line in lines] == list(range(1, 8))
    assert lines[0]["tags"] == [0, 4_000] == lines[0]["ids"] and lines[2]["ids"] is None and lines[1]["tags"] is None
    for line in lines:
        json.dumps(line, allow_nan=False)
        assert line["kind"] == "step" and line["dataset"] == {"name": "some"} and line["machine"]["cores"] >= 1
        assert line["rate"] == pytest.approx(line["count"] / line["seconds"]) and line["rss_bytes"] > 1e6
        assert line["memory_parts"]["vectors"] > 0 and line["params"]["dtype"] == "u8" and line["pending"] == 0
        assert line["system"] == ("corenn-disk" if on_disk else "corenn") and bool(line["disk_bytes"]) == on_disk


@settings(max_examples=25)
@example(steps=[{"operation": "insert", "start": 0, "end": 2}, replace(0, 1, 1)], metric="l2")  # a row under two tags
@given(steps=st.lists(OPERATIONS, min_size=1, max_size=8), metric=st.sampled_from(["l2", "cosine", "ip"]))
def test_any_runbook_on_few_rows_has_full_recall(
    steps: list[dict[str, Any]], metric: str, tmp_path_factory: pytest.TempPathFactory
) -> None:
    """Few rows are scanned, so that every miss is one of the player; ties, k above the live rows and none at all."""
    folder = tmp_path_factory.mktemp("play")
    if not fits(steps, 12, 12):
        steps = [step for at, step in enumerate(steps) if fits([*steps[:at], step], 12, 12)]
        steps = steps if fits(steps, 12, 12) else []
    found = read_runbook(book(folder / "any.yaml", *steps, SEARCH, max_pts=12), 12)
    rng = np.random.default_rng(1)
    rows = rng.integers(-2, 3, (12, 3)).astype(np.float32)
    with CoreNN.in_memory(dim=3, metric=metric) as db, vectors(folder / "rows.fvecs", rows) as base:
        for line in player(found, base, rng.normal(size=(5, 3)), db, k=4, metric=metric).play():
            if line["operation"] == "search":
                assert line["recall"] == (1 if line["n"] else None)
                assert line["stale"] == 0


def test_recall_of_negative_distances(few: Any) -> None:
    """Under ip distances may be negative, and a tolerance must not turn exact hits into misses."""
    found, base, queries = few
    with CoreNN.in_memory(dim=4, metric="ip") as db:
        for line in player(found, base, 50 * queries, db, k=3, metric="ip").play():
            assert line.get("recall", 1) == 1


class Wrong:
    """A database that does something wrong."""

    def __init__(self, db: CoreNN, **ways: Any) -> None:
        self._db, self._ways = db, ways

    def __len__(self) -> int:
        return len(self._db)

    def __getattr__(self, name: str) -> Any:
        return self._ways.get(name) or getattr(self._db, name)


@pytest.fixture
def few(tmp_path: Path, rng: np.random.Generator) -> Any:
    """A runbook on 30 rows, the rows as an open file, and queries."""
    rows = rng.normal(size=(30, 4)).astype(np.float32)
    found = read_runbook(book(tmp_path / "few.yaml", insert(0, 30), delete(0, 10), SEARCH), 30)
    with vectors(tmp_path / "few.npy", rows) as base:
        yield found, base, rng.normal(size=(6, 4))


def test_a_delete_that_deletes_nothing_is_found(few: Any) -> None:
    found, base, queries = few
    with CoreNN.in_memory(dim=4, metric="l2") as db:
        playing = player(found, base, queries, Wrong(db, delete=lambda tags: 0))
        with pytest.raises(CorruptionError, match="step 2: 30 rows are there, not 20"):
            list(playing.play())


@pytest.mark.parametrize("way", ["deleted", "twice"])
def test_wrong_hits_are_misses(few: Any, way: str) -> None:
    found, base, queries = few
    with CoreNN.in_memory(dim=4, metric="l2") as db, CoreNN.in_memory(dim=4, metric="l2") as old:
        old.insert(range(30), base.rows(0, 30))

        def query(*arguments: Any, **options: Any) -> Any:
            if way == "deleted":  # the nearest of those that are gone, too
                return old.query(*arguments, **options)
            answers = db.query(*arguments, **options)
            return [
                Hits(HitBlock([hits.keys[:1] * len(hits)], hits.distances[None], explains=[hits.explain]), 0)
                for hits in answers
            ]

        line = list(player(found, base, queries, Wrong(db, query=query), k=5).play())[-1]
    if way == "twice":
        assert line["recall"] == pytest.approx(1 / 5) and line["stale"] == 0
    else:
        assert 0 < line["stale"] <= 6 * 5 and line["recall"] == pytest.approx(1 - line["stale"] / 30)


# --- the command ------------------------------------------------------------------------------------------------------


def corenn(*arguments: object) -> Result:
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["bench", "runbook", *map(str, arguments)])


@pytest.fixture
def data(tmp_path: Path, rng: np.random.Generator) -> list[object]:
    """Options that name data of 60 rows."""
    for name, count in (("rows", 60), ("queries", 7)):
        np.save(tmp_path / f"{name}.npy", rng.normal(size=(count, 5)).astype(np.float32))
    return ["--dataset", tmp_path / "rows.npy", "--query-file", tmp_path / "queries.npy", "--metric", "l2"]


@pytest.fixture
def small(tmp_path: Path) -> Path:
    return book(tmp_path / "small.yaml", insert(0, 50), SEARCH, delete(0, 20), replace(20, 50, 10), SEARCH)


def logged(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / "runbook.jsonl").read_text().splitlines()]


def test_the_command_plays_logs_shows_and_draws(tmp_path: Path, small: Path, data: list[object]) -> None:
    pytest.importorskip("matplotlib")
    out = tmp_path / "out"
    result = corenn(small, *data, "--out", out)
    assert result.exit_code == 0, result.output
    assert "delete 0–19" in result.stdout and "replace 20–29" in result.stdout and "1.0000" in result.stdout
    assert str(out / "small.svg") in result.stdout and str(out / "runbook.jsonl") in result.stdout
    assert (out / "small.svg").read_bytes().startswith(b"<?xml") and (out / "small.png").read_bytes()[:4] == b"\x89PNG"
    lines = logged(out)
    assert [line["operation"] for line in lines] == ["insert", "search", "delete", "replace", "search"]
    assert lines[-1]["recall"] == 1 and lines[-1]["n"] == 30 and lines[-1]["dataset"]["rows"] == 60
    assert {line["run"] for line in lines} == {lines[0]["run"]}
    told = corenn(
        small, *data, "--out", out, "--json", "--path", tmp_path / "kept.corenn", "--search-list", 30, "-k", 3
    )
    assert told.exit_code == 0, told.output
    assert json.loads(told.stdout) == logged(out)[5:], "lines are added, not replaced"
    assert logged(out)[:5] == lines and logged(out)[5]["run"] != lines[0]["run"]
    assert logged(out)[-1]["k"] == 3 and logged(out)[-1]["params"]["search_list"] == 30
    with CoreNN.open(tmp_path / "kept.corenn") as db:
        assert len(db) == 30 and db.stats().metric == "l2" and 0 not in db and 25 in db
        rows = np.load(tmp_path / "rows.npy")
        record = db.get([25])[0]
        assert record is not None and np.array_equal(record.vector, rows[55])


def test_a_runbook_can_be_checked_only(tmp_path: Path, small: Path, data: list[object]) -> None:
    result = corenn(small, *data, "--out", tmp_path / "out", "--check", "--json")
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {
        "runbook": str(small), "section": "data", "rows": 60, "steps": 5, "searches": 2, "peak_rows": 50, "max_pts": 100
    }  # fmt: skip
    assert "every step fits" in corenn(small, *data, "--check").stdout
    assert not (tmp_path / "out").exists()


def test_a_bad_runbook_is_refused_before_anything_is_done(tmp_path: Path, data: list[object]) -> None:
    path = book(tmp_path / "late.yaml", insert(0, 50), SEARCH, delete(40, 51))
    result = corenn(path, *data, "--out", tmp_path / "out", "--path", tmp_path / "never.corenn")
    assert result.exit_code == 1 and result.stdout == ""
    assert result.stderr == f"error: {path}: step 3: delete of tag 50, which is not there\n"
    assert not (tmp_path / "out").exists() and not (tmp_path / "never.corenn").exists()


def test_data_that_do_not_fit_are_refused(tmp_path: Path, small: Path, data: list[object]) -> None:
    np.save(tmp_path / "wide.npy", np.zeros((3, 9), np.float32))
    for options, message in (
        ([], "data"),  # what the file calls its data is no file, and not in the catalogue
        (["--name", "other"], "nothing for other; has data"),
        (["--dataset", tmp_path / "rows.npy"], "--query-file"),
        (data[:4], "name it with --metric"),
        ([*data[:2], "--query-file", tmp_path / "wide.npy", *data[4:]], "queries of 9 dimensions; the rows have 5"),
        ([*data[:5], "hamming"], "metric='hamming'"),
        ([*data, "--name", "other"], "nothing for other; has data"),
    ):
        result = corenn(small, *options, "--out", tmp_path / "out")
        assert result.exit_code == 1 and message in result.stderr and "Traceback" not in result.output, result.output
        assert result.stderr.count("\n") == 1
    (tmp_path / "taken.corenn").mkdir()
    (tmp_path / "taken.corenn" / "file").write_text("mine")
    result = corenn(small, *data, "--out", tmp_path / "out", "--path", tmp_path / "taken.corenn")
    assert result.exit_code == 1 and "taken.corenn" in result.stderr
    assert (tmp_path / "taken.corenn" / "file").read_text() == "mine"


def test_what_was_logged_stays_after_ctrl_c(
    tmp_path: Path, small: Path, data: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*_: object) -> int:
        raise KeyboardInterrupt

    monkeypatch.setattr(CoreNN, "delete", interrupted)
    result = corenn(small, *data, "--out", tmp_path / "out")
    assert result.exit_code == 130
    assert "Interrupted after step 2 of 5" in result.stderr and "1.0000" in result.stdout
    assert [line["step"] for line in logged(tmp_path / "out")] == [1, 2]


def test_a_torn_line_of_a_killed_run_spoils_no_other(tmp_path: Path, small: Path, data: list[object]) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runbook.jsonl").write_text('{"kind": "st')
    assert corenn(small, *data, "--out", tmp_path / "out").exit_code == 0
    torn, *lines = (tmp_path / "out" / "runbook.jsonl").read_text().splitlines()
    assert torn == '{"kind": "st' and len([json.loads(line) for line in lines]) == 5


def test_an_absent_package_is_named(
    tmp_path: Path, small: Path, data: list[object], monkeypatch: pytest.MonkeyPatch
) -> None:
    real, hidden = builtins.__import__, "yaml"

    def absent(name: str, *arguments: Any, **options: Any) -> Any:
        if name.partition(".")[0] == hidden:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", absent)
    result = corenn(small, *data, "--out", tmp_path / "out")
    assert result.exit_code == 1 and "pip install 'corenn[bench]'" in result.stderr
    hidden = "matplotlib"
    result = corenn(small, *data, "--out", tmp_path / "out")
    assert result.exit_code == 0 and "no plot" in result.stderr and len(logged(tmp_path / "out")) == 5


@pytest.mark.compiled
def test_the_shipped_samples_fit_the_shipped_data(sift: Sample, tmp_path: Path) -> None:
    found = read_runbook(BOOKS / "sliding.yaml", len(sift[0]))
    assert found.peak == 2_500 and found.searches == 12
    rows = sift[0].astype(np.uint8)
    with CoreNN.in_memory(dim=128, metric="l2", dtype="u8") as db, vectors(tmp_path / "rows.u8bin", rows) as base:
        lines = list(player(found, base, sift[1][:60], db).play())
    assert min(line["recall"] for line in lines if line["operation"] == "search") > 0.97
    assert lines[-1]["n"] == 2_000 and 0 < lines[-1]["tombstones"] <= 1_000

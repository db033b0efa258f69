"""Filtered searches beside other systems: what is asked, how it is judged, and a whole run of tiny size.

Rules out filters that select other rows than a cell says, a recall or a number of results that is off by one, a system
that falls over and takes the run with it, and systems that are given a filter in wrong words.
"""

from __future__ import annotations

import gzip
import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.bench.conditions import Condition, bits, matching, records, spoken
from corenn.bench.filtered import main
from corenn.bench.filtered_data import NONE, ONE, PLAIN, Asked, Cell, prepare
from corenn.bench.filtered_race import judge
from corenn.bench.recall import MISSING
from corenn.bench.systems import load
from corenn.errors import DatasetError, InvalidArgumentError

ROOT = Path(__file__).parents[2]
FAKE = "tests.bench.fake_filtered"
ROWS, DIM, K = 600, 8, 10
SHARES = (1.0, 0.5, 0.1, 0.01)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Vectors and queries in the layout of ann-benchmarks, and payloads beside them."""
    rng = np.random.default_rng(5)
    path = tmp_path_factory.mktemp("data") / "made.hdf5"
    with h5py.File(path, "w") as out:
        out.attrs["distance"] = "euclidean"
        out["train"] = rng.normal(size=(ROWS, DIM)).astype(np.float32)
        out["test"] = rng.normal(size=(60, DIM)).astype(np.float32)
    sections, sizes = rng.choice(["libs", "doc", "net"], ROWS, p=[0.85, 0.1, 0.05]), rng.integers(0, 400, ROWS)
    with gzip.open(path.with_name("made.jsonl.gz"), "wt") as lines:
        for section, size in zip(sections.tolist(), sizes.tolist(), strict=True):
            lines.write(json.dumps({"section": section, "size": size, "half": size / 2}) + "\n")
    return path


def asked(file: Path, folder: Path, *, payloads: bool = False, **changes: Any) -> Asked:
    named = file.with_name("made.jsonl.gz") if payloads else None
    given = {"rows": None, "queries": 20, "shares": SHARES, **changes}
    return prepare(file, named, ["section", "size"], folder, **given)


def by_hand(asked: Asked, where: Any) -> list[int]:
    """The rows that meet conditions, in plain Python."""
    holds = {"==": lambda a, b: a == b, ">=": lambda a, b: a >= b, "<": lambda a, b: a < b}
    told = records(asked.fields, 0, ROWS)
    return [row for row, each in enumerate(told) if all(holds[op](each[name], value) for name, op, value in where)]


# --- what is asked ----------------------------------------------------------------------------------------------------


@given(st.data())
def test_rows_that_meet_conditions(data: st.DataObject) -> None:
    numbers = data.draw(st.lists(st.integers(-5, 5), min_size=1, max_size=40))
    texts = [data.draw(st.sampled_from(["a", "bc", "d'"])) for _ in numbers]
    fields = {"n": np.array(numbers), "t": np.array(texts)}
    low, high, text = data.draw(st.integers(-6, 6)), data.draw(st.integers(-6, 6)), data.draw(st.sampled_from(texts))
    where = [Condition("n", ">=", low), Condition("n", "<", high), Condition("t", "==", text)]
    met = [low <= n < high and t == text for n, t in zip(numbers, texts, strict=True)]
    assert matching(fields, where).tolist() == met
    packed = np.unpackbits(bits(fields, where), bitorder="little")
    assert packed[: len(met)].astype(bool).tolist() == met
    assert records(fields, 0, len(met)) == [{"n": n, "t": t} for n, t in zip(numbers, texts, strict=True)]


def test_conditions_in_words() -> None:
    where = [Condition("size", ">=", 5), Condition("section", "==", "libs")]
    assert spoken(where, "=", "AND") == "size >= 5 AND section = 'libs'"
    assert spoken(where[1:], "==", "and") == "section == 'libs'"


def test_made_up_labels_select_what_cells_say(file: Path, tmp_path: Path) -> None:
    found = asked(file, tmp_path)
    told = {"100 %": 600, "50 %": 300, "10 %": 60, "1 %": 6, ONE: 1, NONE: 0}
    kinds: dict[str, set[str]] = {}
    for cell in found.cells[1:]:
        kinds.setdefault(cell.kind, set()).add(cell.share)
        assert len(cell.wheres) == 20
        for where in cell.wheres:
            rows = by_hand(found, where)
            assert len(rows) == told[cell.share]
            assert matching(found.fields, where).nonzero()[0].tolist() == rows
        alike = len({repr(where) for where in cell.wheres}) == 1
        assert alike == cell.common == (cell.kind == "independent, one for all")
    assert found.cells[0].share == PLAIN and found.cells[0].wheres == [None] * 20
    assert kinds["independent"] == set(told)
    assert kinds["near the query"] == kinds["far from the query"] == set(told) - {"100 %", NONE}


def test_near_and_far_are_near_and_far(file: Path, tmp_path: Path) -> None:
    found = asked(file, tmp_path)
    means = {}
    for cell in found.cells:
        if cell.share == "10 %":
            apart = [found.distances[at][matching(found.fields, w)].mean() for at, w in enumerate(cell.wheres)]
            means[cell.kind] = np.mean(apart)
    assert means["near the query"] < 0.7 * means["independent"] < 0.7 * means["far from the query"]


def test_cells_of_real_payloads(file: Path, tmp_path: Path) -> None:
    found = asked(file, tmp_path, payloads=True, shares=(1.0, 0.5, 0.1, 0.05))
    sizes = {(cell.kind, cell.share): [len(by_hand(found, where)) for where in cell.wheres] for cell in found.cells[1:]}
    assert set(sizes["size", "100 %"]) == {ROWS} and set(sizes["size", ONE]) == {1} and set(sizes["size", NONE]) == {0}
    assert np.mean(sizes["size", "10 %"]) == pytest.approx(60, rel=0.15)
    shares = {share: set(counts) for (kind, share), counts in sizes.items() if kind == "section"}
    counted = {f"{count / ROWS:.4%}".rstrip("0%").rstrip(".") + " %": {count} for count in (
        sum(each["section"] == name for each in records(found.fields, 0, ROWS)) for name in ("libs", "doc", "net")
    )}  # fmt: skip
    assert shares == counted
    both = [np.mean(counts) / ROWS for (kind, _), counts in sizes.items() if kind == "section and size"]
    assert len(both) == 2 and all(0.01 < share < 0.5 for share in both)


def test_what_cannot_be_asked(file: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match=r"share 2"):
        asked(file, tmp_path, shares=(2.0,))
    with pytest.raises(DatasetError, match="half"):
        prepare(
            file, file.with_name("made.jsonl.gz"), ["half"], tmp_path, rows=None, queries=5, shares=SHARES
        )  # fmt: skip
    with pytest.raises(DatasetError, match="metric"):
        with h5py.File(tmp_path / "plain.hdf5", "w") as out:
            out["train"] = out["test"] = np.ones((5, 2), np.float32)
        prepare(tmp_path / "plain.hdf5", None, [], tmp_path, rows=None, queries=5, shares=SHARES)


# --- how it is judged -------------------------------------------------------------------------------------------------


@given(st.data())
def test_answers_are_judged_as_by_hand(data: st.DataObject) -> None:
    rows, k = data.draw(st.integers(1, 12)), data.draw(st.integers(1, 5))
    apart = [data.draw(st.lists(st.integers(0, 4), min_size=rows, max_size=rows)) for _ in range(2)]
    fields = {"label": np.arange(rows)}
    bounds = [data.draw(st.integers(0, rows)) for _ in apart]
    ids = [data.draw(st.lists(st.integers(-1, rows - 1), min_size=k, max_size=k)) for _ in apart]
    cell = Cell("", "", [(Condition("label", "<", bound),) for bound in bounds])
    whole = Asked(None, fields, [cell], np.array(apart, np.float64))  # type: ignore[arg-type]
    judged = judge(np.array(ids), cell, whole, k)
    hits = short = strangers = 0
    for row, bound, distances in zip(ids, bounds, apart, strict=True):
        there = list(dict.fromkeys(each for each in row if each != MISSING))
        right, want = [each for each in there if each < bound], min(k, bound)
        exact = sorted(distances[:bound])[:want]
        hits += sum(distances[each] <= exact[-1] for each in right[:want]) if want else 0
        short, strangers = short + (len(right) < want), strangers + len(there) - len(right)
    wanted = sum(min(k, bound) for bound in bounds)
    assert (judged.short, judged.strangers) == (short / 2, strangers)
    assert (judged.matches, judged.wanted) == (sum(bounds) / 2, wanted / 2)
    assert judged.recall == (pytest.approx(hits / wanted) if wanted else float(not strangers))


# --- systems ----------------------------------------------------------------------------------------------------------


@pytest.mark.compiled
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of what others import and call
@pytest.mark.parametrize(
    "name",
    [
        "corenn",
        "corenn-disk",
        "hnswlib",
        "faiss-hnsw",
        "faiss-ivf",
        "faiss-flat",
        "zvec",
        "lancedb",
        "chroma",
        "milvus-lite",
        "qdrant-memory",
    ],
)
def test_a_system_takes_the_filter(name: str, file: Path, tmp_path: Path) -> None:
    """In its own words: every answer matches, is exact at the most thorough setting, and has min(k, matches) rows."""
    chosen = load(name)
    if find_spec(chosen.module.partition(".")[0]) is None:
        pytest.skip(f"{chosen.package} is not installed")
    found = asked(file, tmp_path, payloads=True, shares=(0.5, 0.1))
    (tmp_path / "files").mkdir()
    system = chosen(tmp_path / "files", 1)
    system.fields = found.fields
    system.build(found.subject.base, "l2", 1)
    if system.on_disk:
        system.close()
        system = chosen(tmp_path / "files", 1)
        system.open(DIM, "l2")
    system.configure(**system.grid_within(K)[-1])
    for cell in found.cells[1:]:
        ids = np.full((3, K), MISSING)
        for at, where in enumerate(cell.wheres[:3]):
            assert where is not None
            got = np.asarray(system.query_within(found.subject.queries[at], K, system.restriction(where)))
            ids[at, : len(got)] = got
        judged = judge(ids, cell, found, K)
        assert (judged.recall, judged.short, judged.strangers) == (1, 0, 0), (cell.kind, cell.share)
    system.close()


def test_a_system_that_cannot_filter_says_so(tmp_path: Path) -> None:
    for name in ("voyager", "usearch"):
        with pytest.raises((NotImplementedError, ModuleNotFoundError)):
            load(name)(tmp_path, 1).restriction([Condition("n", "<", 1)])


# --- a whole run ------------------------------------------------------------------------------------------------------


@pytest.fixture
def run(file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Any:
    """Run systems on made-up labels; what is written to --json, and what is printed."""
    monkeypatch.setenv("PYTHONPATH", f"{ROOT}:{ROOT / 'src'}")
    monkeypatch.setattr("corenn.bench.filtered_race.LEAST_SECONDS", 0.0)

    def go(data: str, *systems: str, plots: bool = False, **options: Any) -> tuple[dict[str, Any], str]:
        if not plots:
            monkeypatch.setattr("corenn.bench.filtered.draw", lambda *_: None)
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        out = tmp_path / "out.json"
        main([
            data, "--systems", ",".join(systems), "--queries", "8", "--repetitions", "2", "--no-costs",
            "--json", str(out), "--shares", "0.1", *words,
        ])  # fmt: skip
        return json.loads(out.read_text())["data"][0], capsys.readouterr().out

    return go


def answers(told: dict[str, Any], label: str) -> list[dict[str, Any]]:
    return [each for each in told["answers"] if each["system"] == label and each["kind"] != "all rows"]


def test_a_run_compares_and_goes_on_without_what_fails(run: Any, file: Path, tmp_path: Path) -> None:
    broken = [f"{FAKE}:fault={fault}" for fault in ("few", "strangers", "raise", "abort")]
    told, printed = run(str(file), FAKE, *broken, plots=True)
    for each in answers(told, FAKE):
        judged = each["judged"]
        assert each["reached"] and judged["recall"] >= 0.95 and not judged["strangers"]
        assert len(each["qps_runs"]) == 2 and each["qps"] == pytest.approx(np.median(each["qps_runs"]))
        assert each["plans"] == ["by heart"] and each["making"] > 0
    for each in answers(told, f"{FAKE}:fault=few"):
        judged = each["judged"]
        wanted = judged["wanted"]
        assert judged["returned"] == min(3, wanted) and judged["short"] == float(wanted > 3)
        assert judged["recall"] == (pytest.approx(3 / wanted) if wanted > 3 else 1)
    for each in answers(told, f"{FAKE}:fault=strangers"):
        assert not each["reached"] and each["judged"]["recall"] == 0 and each["judged"]["strangers"] > 0
    raised = answers(told, f"{FAKE}:fault=raise")
    assert len(raised) == len(answers(told, FAKE)) and all("it is broken" in each["error"] for each in raised)
    aborted = answers(told, f"{FAKE}:fault=abort")
    assert len(aborted) == 1 and "SIGABRT" in aborted[0]["error"]  # gone after its first filter, the others are not
    assert "SIGABRT" in printed and "it is broken" in printed and "wrong rows" in printed and "3 of 10" in printed
    assert {each.name for each in tmp_path.iterdir()} == {"out.json", "out-0.svg", "out-0.png"}


@pytest.mark.compiled
def test_corenn_beside_a_fake(run: Any, file: Path) -> None:
    told, printed = run(f"{file},{file.with_name('made.jsonl.gz')}", "corenn", FAKE)
    ours = answers(told, "corenn")
    assert {each["kind"] for each in ours} == {"size", "section", "section and size"}
    for each in ours:
        assert each["reached"] and each["judged"]["short"] == each["judged"]["strangers"] == 0 and each["plans"]
        assert [*each["params"]] == ["search_list"]
    assert told["summary"]["least_recall"] >= 0.95 and told["summary"]["queries_with_too_few"] == 0
    assert f"{FAKE} " in printed and "| corenn |" in printed


def test_no_time_is_said(run: Any, file: Path) -> None:
    told, printed = run(str(file), FAKE, **{"system-seconds": 0})
    late = [each["error"] for each in told["answers"]]
    assert late[0] is None and set(late[1:]) == {"out of time"} and "no time" in printed

"""The cost model beside databases that are built for it.

Rules out figures that are of another recall than they say, a table without its ranges, and a plot that is not drawn.
"""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from corenn.bench import scale
from corenn.measure import DEFAULT
from corenn.plan import Ask, plan


def test_figures_stand_at_the_recall_that_was_asked_for() -> None:
    points = [{"recall": 0.9, "hops": 10.0, "us": 1.0}, {"recall": 0.98, "hops": 18.0, "us": 3.0}]
    assert scale._at(points, 0.94) == pytest.approx({"recall": 0.94, "hops": 14.0, "us": 2.0})
    assert scale._at(points[:1], 0.8) == points[0]  # the shortest list finds more already
    assert scale._at(points, 0.99) == points[1]  # the longest one finds less


def test_the_model_is_that_of_the_plan() -> None:
    ask = Ask(rows=10**6, dim=96, memory=10**12)
    found, way = scale.foretold(ask, DEFAULT), plan(ask, DEFAULT).ways[0]
    assert found["model"]["hops"] == way.hops.value and found["model"]["us"] == DEFAULT.cores * 1e6 / way.qps.value
    assert found["model"]["build_us"] < way.build_s.value / 10**6 * DEFAULT.cores * 1e6  # no commits to a disk
    for name, value in found["model"].items():
        low, high = found["range"][name]
        assert low < value < high


@pytest.mark.compiled
def test_a_run(tmp_path: Path, capsys: pytest.CaptureFixture[str], rng: np.random.Generator) -> None:
    pytest.importorskip("matplotlib")
    h5py = pytest.importorskip("h5py")
    with h5py.File(tmp_path / "some.hdf5", "w") as file:
        file["train"] = rng.normal(size=(3_000, 24)).astype(np.float32)
        file["test"] = rng.normal(size=(50, 24)).astype(np.float32)
    out, plot = tmp_path / "out.json", tmp_path / "plot.svg"
    scale.main(
        ["--data", f"{tmp_path / 'some.hdf5'}", "--name", "noise", "--rows", "1500,3e3", "--queries", "40",
         "--json", f"{out}", "--plot", f"{plot}"]
    )  # fmt: skip
    told = json.loads(out.read_text())
    first, second = told["results"]
    assert (first["rows"], second["rows"], first["data"]) == (1_500, 3_000, "noise")
    assert told["machine"]["version"] and first["measured"]["recall"] >= 0.95
    assert 0 < first["measured"]["hops"] < first["measured"]["distances"] < second["measured"]["distances"] < 3_000
    printed = capsys.readouterr().out
    assert "| noise | 3,000 | 32 |" in printed and "µs per row built" in printed
    assert plot.read_text().startswith("<?xml")

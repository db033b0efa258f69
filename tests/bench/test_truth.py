"""Our exact search beside faiss: the comparison, not the speed.

Rules out that the two answer different questions, and a comparison that would not notice.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn.bench import truth
from corenn.datasets import create_vectors

faiss = pytest.importorskip("faiss")


@pytest.mark.compiled
@pytest.mark.parametrize("metric", ["l2", "ip"])
def test_faiss_finds_the_same_up_to_ties(metric: str, sift: Any) -> None:
    base, queries = sift
    told = truth.compare(base, queries[:50], 20, metric, 1, 1)
    assert told["farther_in_faiss"] == 0 and told["nearer_in_faiss"] == 0
    assert told["rows"] == 6_000 and told["speed_over_faiss"] == pytest.approx(told["faiss_s"] / told["ours_s"])


def test_a_worse_answer_is_noticed(sift: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    base, queries = sift[0][:500], sift[1][:5]
    search = faiss.IndexFlatL2.search
    monkeypatch.setattr(
        faiss.IndexFlatL2, "search", lambda self, asked, k: (None, search(self, asked, k + 1)[1][:, 1:])
    )
    assert truth.compare(base, queries, 3, "l2", 1, 1)["farther_in_faiss"] > 0


def test_the_program(tmp_path: Path, sift: Any, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("h5py")
    path = tmp_path / "set.hdf5"
    for part, rows in (("train", sift[0][:400]), ("test", sift[1][:10])):
        with create_vectors(path, 128, np.float32, part=part, metric="l2") as out:
            out.append(rows)
    told = tmp_path / "told.json"
    truth.main(["--data", str(path), "-k", "3", "5", "--turns", "1", "--json", str(told)])
    assert capsys.readouterr().out.count("speed over faiss") == 2
    written = json.loads(told.read_text())
    assert [each["k"] for each in written["results"]] == [3, 5] and written["cores"] >= 1

"""Rules out rows that straddle pages, a check that misses damage, and reads that are not those of the file."""

from __future__ import annotations

import os
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from corenn import CoreNN, writer
from corenn.graph import query
from corenn.kernels import intrinsics
from corenn.kernels.candidates import VACANT
from corenn.kernels.disk import BIRTH, PAGE, check_of, cool_rows, index_rows, row_words, unit_of
from corenn.kernels.jit import kernel
from corenn.storage.residence import Residence
from tests.oracle import distances


@pytest.fixture(autouse=True)
def _any_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    """So small a limit that everything outgrows it."""
    monkeypatch.setattr(Residence, "check", lambda self, fixed, limit=None: None)


@kernel
def read(descriptor: Any, offset: Any, size: Any, out: Any, row: Any, byte: Any) -> Any:
    return intrinsics.read_at(descriptor, offset, size, out, row, byte)


@kernel
def ask(descriptor: Any, offset: Any, size: Any) -> None:
    intrinsics.ask_for(descriptor, offset, size)


@kernel
def copy(source: Any, row: Any, byte: Any, out: Any, out_row: Any, size: Any) -> None:
    intrinsics.copy_bytes(source, row, byte, out, out_row, size)


@kernel
def check(words: Any, row: Any) -> Any:
    return check_of(words, row)


@pytest.mark.parametrize("words", [*range(6, 80, 2), 184, 510, 512, 1022, 1024, 1026, 2048, 2050, 70_000])
def test_no_row_lies_in_more_pages_than_it_must(words: int) -> None:
    rows, size = unit_of(words)
    assert size % PAGE == 0
    for row in range(3 * rows):
        first = row // rows * size + row % rows * 4 * words
        last = first + 4 * words - 1
        assert last // PAGE - first // PAGE + 1 == -(-4 * words // PAGE)
    assert rows == 1 or (rows + 1) * 4 * words > PAGE


def test_a_row_has_room_for_its_parts() -> None:
    assert row_words(1, 48, 128) >= 5 + 1 + 48 + 128
    assert row_words(1, 48, 128) % 2 == 0


def test_reads_are_those_of_the_file(tmp_path: Path) -> None:
    data = np.random.default_rng(0).integers(0, 256, 5_000, dtype=np.uint8)
    (tmp_path / "file").write_bytes(data.tobytes())
    descriptor = os.open(tmp_path / "file", os.O_RDONLY)
    try:
        for dtype in (np.uint8, np.uint16, np.float32, np.uint32):
            out = np.zeros((3, 400 // np.dtype(dtype).itemsize), dtype)
            assert read(descriptor, 123, 300, out, 1, 40) == 300
            found = out.view(np.uint8)
            assert (found[1, 40:340] == data[123:423]).all()
            found[1, 40:340] = 0
            assert not found.any()
        out = np.zeros((1, 100), np.uint32)
        assert read(descriptor, 4_900, 400, out, 0, 0) == 100  # the end of the file
        assert read(descriptor, 9_000, 400, out, 0, 0) == 0
        ask(descriptor, 0, 4_096)
    finally:
        os.close(descriptor)
    assert read(descriptor, 0, 400, out, 0, 0) == -1  # no such file
    ask(descriptor, 0, 4_096)


def test_bytes_are_copied_between_rows_of_any_type() -> None:
    source = np.random.default_rng(0).integers(0, 2**32, (3, 20), dtype=np.uint32)
    out = np.zeros((2, 40), np.uint16)
    copy(source, 2, 12, out, 1, 60)
    assert (out.view(np.uint8)[1, :60] == source.view(np.uint8)[2, 12:72]).all()
    assert not out.view(np.uint8)[1, 60:].any()
    assert not out[0].any()


def test_the_check_finds_damage() -> None:
    random = np.random.default_rng(0)
    words, other = (random.integers(0, 2**32, (1, 184), dtype=np.uint32) for _ in range(2))
    right = check(words, 5)
    assert right != check(words, 6)  # a misplaced row
    for at in range(BIRTH, 184):
        for bit in (0, 13, 31):
            flipped = words.copy()
            flipped[0, at] ^= np.uint32(1 << bit)
            assert check(flipped, 5) != right
    for at in range(BIRTH + 1, 184):  # a row torn between two writes
        torn = words.copy()
        torn[0, at:] = other[0, at:]
        assert check(torn, 5) != right
    swapped = words.copy()
    swapped[0, [10, 11]] = words[0, [11, 10]]
    assert check(swapped, 5) != right
    assert check(np.zeros((1, 184), np.uint32), 0) != 0  # what was never written


def test_rows_in_memory_are_forgotten_when_they_change() -> None:
    ids = np.unique(np.random.default_rng(0).integers(0, 10_000, 500)).astype(np.uint32)
    table, places = np.full(1_024, VACANT), np.full(1_024, VACANT)
    index_rows(ids, table, places)
    kept = table != VACANT
    assert sorted(table[kept].tolist()) == ids.tolist()
    assert (ids[places[kept]] == table[kept]).all()
    assert cool_rows(np.arange(5_000, dtype=np.uint32), table, places) == (ids < 5_000).sum()
    assert cool_rows(np.arange(5_000, dtype=np.uint32), table, places) == 0
    assert sorted(table[places != VACANT].tolist()) == ids[ids >= 5_000].tolist()


@pytest.mark.parametrize("metric", ["l2", "cosine", "ip"])
def test_a_search_as_plain_python_says_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, metric: str) -> None:
    """Few enough rows for kernels that are not compiled."""
    monkeypatch.setattr(query, "FEW_ROWS", 1)
    monkeypatch.setattr(writer, "IDLE_SECONDS", 0.001)
    rows = np.random.default_rng(0).normal(size=(80, 6)).astype(np.float32)
    options = {"metric": metric, "compression_mode": "sq8", "compression_threshold": 0, "memory_limit": 1}
    with CoreNN.create(tmp_path / "db", dim=6, recall_target=0, **options) as db:
        db.insert(range(80), rows)
        until = time.monotonic() + 240
        while db.stats().disk_backlog or not db.query(rows[0], k=2, search_list=16, explain=True).explain.pages:
            assert time.monotonic() < until, "there are no codes, which walks over the disk need"
            time.sleep(0.01)
        table = distances(metric, rows, rows[:20])
        found = db.query(rows[:20], k=2, search_list=16, explain=True)
        for at, hits in enumerate(found):
            assert hits.explain is not None
            assert 0 < hits.explain.pages <= hits.explain.hops
            assert hits.distances == pytest.approx(table[at, hits.keys], abs=1e-4)
        if metric != "ip":
            assert np.mean([hits.keys[0] == at for at, hits in enumerate(found)]) >= 0.9

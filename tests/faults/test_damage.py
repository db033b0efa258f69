"""Flipped bits, zeroed pages and truncated files, in every file of a database.

Rules out a wrong vector or payload that is served, a key that is gone without a word, damage that verify() overlooks,
a lost row that repair() does not name, and one that it names although it is not lost.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import numpy as np
import pytest

from corenn import CoreNN, Report
from corenn.errors import CoreNNError, CorruptionError
from corenn.storage.state import broken_states, state_words
from tests.faults.conftest import Bases
from tests.faults.operations import State, differs, key, served_rightly, some

PAGE = 4096
SLABS = ("vectors.slab", "seals.slab", "state.slab", "edges.slab", "keys.slab", "keys.heap")
TABLES = ("*.sst", "MANIFEST-*", "CURRENT", "*.log")
Damage = Callable[[bytearray, np.random.Generator, list[int]], str]


def flip(data: bytearray, rng: np.random.Generator, spots: list[int]) -> str:
    """One bit: of the spots, or anywhere."""
    at = spots.pop() if spots else int(rng.integers(len(data)))
    bit = int(rng.integers(8))
    data[at] ^= 1 << bit
    return f"bit {bit} of byte {at}"


def zero(data: bytearray, rng: np.random.Generator, _: list[int]) -> str:
    """One page."""
    page = int(rng.integers(-(-len(data) // PAGE)))
    data[page * PAGE : (page + 1) * PAGE] = bytes(len(data[page * PAGE : (page + 1) * PAGE]))
    return f"page {page}"


def cut(data: bytearray, rng: np.random.Generator, _: list[int]) -> str:
    """The end."""
    length = int(rng.integers(len(data)))
    del data[length:]
    return f"cut to {length} bytes"


def lost_of(problems: object) -> set[object]:
    return {key for problem in problems for key in problem.lost}  # type: ignore[attr-defined]


def survives(path: Path, state: State) -> str:
    """Open a damaged database, read it, verify and repair it. Returns what became of the damage."""
    refused, seen = set(state), False
    try:
        with CoreNN.open(path) as db:
            refused = set(served_rightly(db, state))
            report = db.verify()
            seen = bool(report.problems or report.repaired)
            assert seen or not refused, "what get() refuses, verify() overlooks"
    except CoreNNError as error:
        assert str(path) in str(error), f"the error does not name the file: {error}"
        assert any(word in str(error) for word in ("run `corenn repair`", "repair()", "snapshot", "put back")), error
        seen = True
    try:
        db = CoreNN.open(path, mode="rescue")
    except CoreNNError as error:
        raise AssertionError(f"not even opened for rescue: {error!r}") from error
    with db:
        report: Report = db.repair()
        assert report.ok, report
        lost = lost_of(report.repaired)
        assert lost <= set(state), f"names keys that were never there: {lost - set(state)}"
        check_left(db, state, lost)
    with CoreNN.open(path) as db:
        report = db.verify()
        assert report.ok, report
        assert not report.repaired, report
        check_left(db, state, lost)
        db.upsert(*some(range(300, 310)))
        assert db.verify().ok
    if refused and not lost:
        return "mended"
    return "isolated" if lost else "seen" if seen else "harmless"


def check_left(db: CoreNN, state: State, lost: set[object]) -> None:
    """All that was not named as lost is as it was; what was named is gone, or has lost its payload only."""
    left = {name: row for name, row in state.items() if name not in lost}
    for name in lost:
        (record,) = db.get([name])
        if record is not None:
            assert np.array_equal(record.vector, state[name][0]), name
            assert record.payload in (None, state[name][1]), name
            left[name] = (record.vector, record.payload)
    assert (wrong := differs(db, left)) is None, wrong


def spots_in(name: str, data: bytes, rng: np.random.Generator) -> list[int]:
    """Places in a slab where every bit means something: header, its words, and rows in use."""
    if not name.endswith((".slab", ".heap")):
        return []
    width = int.from_bytes(data[24:32], "little")
    header = [int(at) for at in rng.choice(64, 4, replace=False)]
    rows = [PAGE + int(at) for at in rng.choice(min(40 * width, len(data) - PAGE), 10, replace=False)]
    return [*rows, *header, 256, 260, 264, 512]


def damage_all(
    folder: Path, base: str, state: State, place: Path, damage: Damage, patterns: tuple[str, ...], times: int, seed: int
) -> dict[str, int]:
    """Damage each file in turn, that many times. Returns what became of it."""
    rng = np.random.default_rng(seed)
    outcomes: dict[str, int] = {}
    files = sorted(
        path for part in (folder / base, folder / base / "meta") for pattern in patterns for path in part.glob(pattern)
    )
    assert files
    for file in files:
        whole = file.read_bytes()
        if not whole:
            continue
        spots = spots_in(file.name, whole, rng)
        for _ in range(times):
            path = place / "db"
            with suppress(FileNotFoundError):
                shutil.rmtree(path)
            shutil.copytree(folder / base, path)
            data = bytearray(whole)
            what = damage(data, rng, spots)
            (path / file.relative_to(folder / base)).write_bytes(data)
            try:
                outcome = survives(path, state)
            except BaseException as problem:
                problem.add_note(f"{base}, {file.name}: {what}")
                raise
            outcomes[outcome] = outcomes.get(outcome, 0) + 1
    return outcomes


@pytest.mark.few(2)
@pytest.mark.parametrize("name", SLABS)
def test_a_flipped_bit_in_a_slab(bases: Bases, place: Path, name: str) -> None:
    folder, states = bases["os"]
    damage_all(folder, "some", states["some"], place, flip, (name,), 18, 1)


@pytest.mark.parametrize("damage", [zero, cut])
@pytest.mark.parametrize("name", SLABS)
def test_a_slab_with_a_zeroed_page_or_cut_off(bases: Bases, place: Path, name: str, damage: Damage) -> None:
    folder, states = bases["os"]
    damage_all(folder, "some", states["some"], place, damage, (name,), 4, 2)


@pytest.mark.few(4)
@pytest.mark.parametrize("damage", [flip, zero, cut])
@pytest.mark.parametrize("pattern", TABLES)
def test_damaged_metadata(bases: Bases, place: Path, pattern: str, damage: Damage) -> None:
    folder, states = bases["os"]
    damage_all(folder, "some", states["some"], place, damage, (pattern,), 6, 3)


@pytest.mark.parametrize("damage", [flip, zero, cut])
def test_a_damaged_log_of_a_killed_process(bases: Bases, place: Path, damage: Damage) -> None:
    """What the log alone holds is refused or isolated, not dropped."""
    folder, states = bases["os"]
    damage_all(folder, "dirty", states["dirty"], place, damage, ("*.log",), 12, 4)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(10, 20))
@pytest.mark.parametrize("base", ["some", "dirty"])
@pytest.mark.parametrize("damage", [flip, zero, cut])
def test_damage_anywhere(bases: Bases, place: Path, base: str, damage: Damage, seed: int) -> None:
    folder, states = bases["sync"]
    damage_all(folder, base, states[base], place, damage, (*SLABS, *TABLES), 15, seed)


def test_every_bit_of_a_birth_and_a_death_is_checked() -> None:
    """One row stands for all: what a flipped bit does to the check does not depend on the numbers."""
    for born, died in ((5, 0), (12345, 67890)):
        words = state_words(np.array([7], np.uint32), born, died)
        assert not len(broken_states(np.tile(words, (8, 1)), np.array([7], np.uint32)))
        for bit in range(128):
            damaged = words.copy()
            damaged[0, bit // 64] ^= np.uint64(1 << bit % 64)
            state = np.tile(damaged, (8, 1))
            assert len(broken_states(state, np.array([7], np.uint32))) == 1, f"bit {bit} of {born}, {died}"
        assert len(broken_states(np.tile(words, (9, 1)), np.array([8], np.uint32))) == 1, "a row at a wrong place"


def test_rows_whose_states_are_zeroed_are_refused_and_mended(bases: Bases, place: Path) -> None:
    folder, states = bases["os"]
    path, state = shutil.copytree(folder / "some", place / "db"), states["some"]
    with (path / "state.slab").open("r+b") as slab:
        slab.seek(PAGE)
        slab.write(bytes(PAGE))
    with CoreNN.open(path, mode="r") as reader:
        assert len(served_rightly(reader, state)) == len(state)
    assert survives(path, state) == "mended"


def test_a_row_whose_death_is_damaged_is_refused_and_mended(bases: Bases, place: Path) -> None:
    """A live row that seems dead is not gone without a word, and a dead one does not come back."""
    folder, states = bases["os"]
    path, state = shutil.copytree(folder / "some", place / "db"), states["some"]
    with CoreNN.open(path) as db:
        (row,) = db._find(db._current(), [key(7)])[1]
    with (path / "state.slab").open("r+b") as slab:
        slab.seek(PAGE + 16 * row + 8 + 2)
        slab.write(b"\x01")  # died at commit 1
    for mode in ("r", "rw"):
        with CoreNN.open(path, mode=mode) as db:
            with pytest.raises(CorruptionError, match="repair"):
                db.get([key(7)])
            assert [problem.part for problem in db.verify().problems][:1] == ["state"]
    with CoreNN.open(path) as db:
        report = db.repair()
        assert report.ok
        assert lost_of(report.repaired) == set()
        assert (wrong := differs(db, state)) is None, wrong

"""The plug is pulled at any step.

Rules out an acknowledged commit that is lost under `sync`, a checkpoint that does not hold under `os`, a commit that is
half there, rows of two commits mixed, a vector that fails its checksum and is served, and a lost row that repair() does
not name.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest

from corenn import CoreNN
from tests.faults.faulty import Faults, injected
from tests.faults.operations import DIM, State, differs, key, put, served_rightly, some
from tests.faults.power import SHARES, Outage, PoweredFiles


@dataclass
class History:
    """states: after each call, the first without any. kept: the last one that the disk has promised to keep."""

    states: list[State] = field(default_factory=lambda: [{}])
    kept: int = 0
    begun: State | None = None


def churn(db: CoreNN, history: History, rng: np.random.Generator, calls: int, sync: bool) -> None:
    """Insert, replace, change and delete, with checkpoints now and then."""
    for call in range(calls):
        state = dict(history.states[-1])
        there = [n for n in range(400) if key(n) in state]
        free = [n for n in range(400) if key(n) not in state]
        kind = rng.choice(["insert", "upsert", "delete", "set_payload", "checkpoint"], p=[0.4, 0.15, 0.2, 0.1, 0.15])
        numbers = [int(n) for n in rng.choice(there or [0], min(len(there), int(rng.integers(1, 25))), replace=False)]
        if kind == "insert" or (kind in ("upsert", "set_payload") and not there):
            kind, numbers = (
                "insert",
                [int(n) for n in rng.choice(free, min(len(free), int(rng.integers(1, 60))), False)],
            )
        keys, vectors, payloads = some(numbers, call + 1, 100_000 if call == calls // 2 and kind == "insert" else 0)
        if kind in ("insert", "upsert"):
            put(state, keys, vectors, payloads)
        elif kind == "delete":
            for name in keys:
                state.pop(name, None)
        elif kind == "set_payload":
            for name, payload in zip(keys, payloads, strict=True):
                state[name] = (state[name][0], payload)
        history.begun = state
        if kind == "checkpoint":
            db.checkpoint()
        elif kind == "delete":
            db.delete(keys)
        elif kind == "set_payload":
            db.set_payload(keys, payloads)
        else:
            getattr(db, kind)(keys, vectors, payloads)
        history.states.append(state)
        history.begun = None
        if sync or kind == "checkpoint":
            history.kept = len(history.states) - 1


def check(path: Path, history: History, mode: str = "rw") -> None:
    """One of the states since the last that was promised is there; what is lost of it is refused, found and named."""
    possible = history.states[history.kept :] + ([] if history.begun is None else [history.begun])
    promised = history.states[history.kept]
    with CoreNN.open(path, mode=mode) as db:
        keys = set(db.keys())
        fitting = [state for state in possible if set(state) == keys]
        assert fitting, f"{len(keys)} keys, those of no state: {[len(keys ^ set(state)) for state in possible]} differ"
        for state in fitting:
            try:
                refused = served_rightly(db, state)
                for name in refused:
                    assert state[name] is not promised.get(name), f"{name!r} was promised"
                break
            except AssertionError:
                if state is fitting[-1]:
                    raise
        report = db.verify()
        assert {name for problem in report.problems for name in problem.lost} == set(refused), report
        if mode == "r":
            return
        report = db.repair()
        assert report.ok, report
        assert {name for problem in report.repaired for name in problem.lost} == set(refused), report
        left = {name: row for name, row in state.items() if name not in refused}
        assert (wrong := differs(db, left)) is None, wrong
        db.upsert(*some(range(500, 520)))
        put(left, *some(range(500, 520)))
        assert (wrong := differs(db, left)) is None, wrong
    with CoreNN.open(path) as db:
        assert db.verify().ok
        assert (wrong := differs(db, left)) is None, wrong


def outages(place: Path, durability: str, seed: int, calls: int, often: float) -> Iterator[tuple[str, Outage, History]]:
    """Churn, and at some of its steps the disk as it is then."""
    rng, chance = np.random.default_rng(seed), np.random.default_rng([seed, 1])
    history, found = History(), []
    faults = Faults()
    files = PoweredFiles(faults)

    def look(step: str) -> None:
        if chance.random() < often:
            outage = Outage(place / "db", files, place / f"outage-{len(found)}")
            found.append((step, outage, History(list(history.states), history.kept, history.begun)))

    with injected(files), patch("corenn.graph.mend.LEAST", 4):  # so that ids of few dead rows are used again
        db = CoreNN.create(place / "db", dim=DIM, metric="l2", durability=durability)
        faults.watch = look
        churn(db, history, rng, calls, durability == "sync")
        faults.watch = None
        freed = db._store.horizon
        db.close()
    assert freed, "no id was to be used again"
    yield from found


def pull(place: Path, durability: str, seed: int, calls: int, often: float, monkeypatch: pytest.MonkeyPatch) -> int:
    """Returns at how many steps the plug was pulled."""
    rng = np.random.default_rng([seed, 2])
    count = 0
    found = list(outages(place, durability, seed, calls, often))
    for module in ("store", "rocks"):
        monkeypatch.setattr(f"corenn.storage.{module}.boot_id", lambda: "another boot")
    for step, outage, history in found:
        share = SHARES[count % len(SHARES)]
        image = outage.image(place / f"image-{count}", rng, share)
        kept = shutil.copytree(image, place / "kept")
        try:
            check(image, history)
        except BaseException as problem:
            problem.add_note(
                f"{durability}, seed {seed}, {step}, outage {count}, {share:.0%} of what was not synced; {kept}"
            )
            raise
        count += 1
        for folder in (image, kept, outage.copy):
            shutil.rmtree(folder)
    return count


@pytest.mark.few(1)
@pytest.mark.parametrize("seed", [1, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("durability", ["os", "sync"])
def test_a_loss_of_power_keeps_what_was_promised(
    place: Path, durability: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull(place, durability, seed, 40, 0.05, monkeypatch) > 10


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(100, 110))
@pytest.mark.parametrize("durability", ["os", "sync"])
def test_a_loss_of_power_at_many_steps(
    place: Path, durability: str, seed: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert pull(place, durability, seed, 60, 0.15, monkeypatch) > 30

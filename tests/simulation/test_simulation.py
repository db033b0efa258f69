"""The simulator itself, and a few of its seeds.

Rules out a seed that does not replay, a simulator that finds nothing, and whatever the seeds find: see run.py.
"""

from __future__ import annotations

from collections import Counter
from unittest.mock import patch

import pytest

from corenn import CorruptionError
from corenn.graph.mend import Mender
from corenn.types import UInt32s
from corenn.writer import Writer
from tests.crash.tape import WrongAnswerError
from tests.simulation.run import Simulation

pytestmark = pytest.mark.compiled

SEEDS = range(1_000, 1_001)  # the same on any machine; `make simulate` plays others
MOST_SEEDS = 40  # within which what is planted must be found


def test_a_seed_replays_exactly() -> None:
    runs = [Simulation(seed, lives=1) for seed in (3, 3, 4)]
    one, again, other = (each.run() for each in runs)
    assert one == again
    assert runs[0].seen == runs[1].seen
    assert one != other


def test_seeds_hold() -> None:
    seen = Counter[str]()
    for seed in SEEDS:
        simulation = Simulation(seed)
        try:
            simulation.run()
        except BaseException as error:
            error.add_note(f"replay: python -m tests.simulation --seed {seed} --trace")
            raise
        seen += simulation.seen
    assert all(seen[name] for name in ("calls", "lives", "refreshes", "exact", "get", "keys"))


def find(*likely: int) -> None:
    """Some seed fails, as it ought to. likely: those that did so soonest when it was last looked."""
    for seed in (*likely, *range(1, MOST_SEEDS + 1)):
        try:
            Simulation(seed).run()
        except (WrongAnswerError, CorruptionError):  # a vector of another row does not fit the birth of this one
            return
    pytest.fail(f"{MOST_SEEDS} seeds have not found it")


def test_ids_that_are_freed_under_a_reader_are_found() -> None:
    with patch.object(Writer, "_oldest", lambda self: self.store.metadata.head.commit):
        find(2, 4, 10)


def test_ids_that_are_given_out_twice_are_found() -> None:
    committed = Mender.committed

    def forgetful(self: Mender, ids: UInt32s, freed: UInt32s) -> None:
        committed(self, ids[:0], freed)

    with patch.object(Mender, "committed", forgetful):
        find()

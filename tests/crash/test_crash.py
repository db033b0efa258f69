"""Fifteen kills, on every run of the suite; `make crash` does two hundred."""

from __future__ import annotations

import secrets
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from corenn import CoreNN
from corenn.errors import NotADatabaseError
from tests.crash.harness import ROOT, environment, run

CREATE = """
import sys
from corenn import CoreNN
print("ready", flush=True)
for number in range(1000):
    CoreNN.create(f"{sys.argv[1]}/{number}", dim=4, metric="l2").close()
"""


@pytest.mark.compiled
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    tally = run(15, secrets.randbits(32), tmp_path)
    assert tally.rounds == 15
    assert tally.acknowledged >= 15 * 500


def test_a_killed_create_leaves_a_database_or_none(tmp_path: Path, rng: np.random.Generator) -> None:
    for attempt, delay in enumerate(rng.uniform(0.05, 0.5, 4)):
        place = tmp_path / str(attempt)
        place.mkdir()
        child = subprocess.Popen(
            [sys.executable, "-c", CREATE, str(place)], cwd=ROOT, env=environment(), stdout=subprocess.PIPE
        )
        assert child.stdout is not None
        assert child.stdout.readline() == b"ready\n"
        time.sleep(delay)
        child.send_signal(signal.SIGKILL)
        child.communicate()
        for folder in place.iterdir():
            check_created(folder)


def check_created(folder: Path) -> None:
    """Either a database that works, or none; then the folder can be removed and used again."""
    try:
        db = CoreNN.open(folder)
    except NotADatabaseError:
        return
    with db:
        assert len(db) == 0
        db.insert(["a"], [[1, 2, 3, 4]])
        assert db.query([1, 2, 3, 4]).keys == ["a"]
        assert db.verify().ok

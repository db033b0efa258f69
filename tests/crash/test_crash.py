"""Eight kills, on every run of the suite; `make crash` does a thousand."""

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
from tests.usual import USUAL

CREATE = """
import sys
from corenn import CoreNN
print("ready", flush=True)
for number in range(1000):
    CoreNN.create(f"{sys.argv[1]}/{number}", dim=4, metric="l2").close()
"""

PAYLOADS = """
import sys
from corenn import CoreNN
db, number = CoreNN.open(sys.argv[1]), int(sys.argv[2])
while True:
    payloads = [{"number": number, "padding": "x" * 20_000}] * 800
    print(number, flush=True)
    db.set_payload(list(range(800)), payloads)
    number += 1
"""


@pytest.mark.compiled
def test_nothing_acknowledged_is_lost_when_the_process_is_killed(tmp_path: Path) -> None:
    tally = run(8, secrets.randbits(32), tmp_path, USUAL)
    assert tally.rounds == 8
    assert tally.acknowledged >= 8 * 500


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


def test_a_large_batch_that_was_cut_off_stays_absent(tmp_path: Path, rng: np.random.Generator) -> None:
    """It comes in parts; what follows after the crash must not make the parts that were written count."""
    path, number = tmp_path / "db", 0
    with CoreNN.create(path, dim=1) as db:
        db.insert(range(800), np.ones((800, 1)), [{"number": 0}] * 800)
    for attempt in range(5):
        child = subprocess.Popen(
            [sys.executable, "-c", PAYLOADS, str(path), str(number + 1)],
            cwd=ROOT, env=environment(), stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdout is not None
        first = int(child.stdout.readline())
        time.sleep(rng.uniform(0, 0.2))
        child.send_signal(signal.SIGKILL)
        begun = [first, *map(int, child.communicate()[0].split())]
        with CoreNN.open(path) as db:
            found = numbers(db)
            assert found in ({begun[-1]}, {begun[-1] - 1}, {number}), f"begun {begun[-1]}, found {found}"
            db.insert([f"after {attempt}"], [[1.0]])
            assert numbers(db) == found
        with CoreNN.open(path) as db:
            assert numbers(db) == found
            assert db.verify().ok
        number = found.pop()


def numbers(db: CoreNN) -> set[int]:
    """The numbers in the payloads of the 800 rows."""
    return {record.payload["number"] for record in db.get(range(800)) if record and record.payload}

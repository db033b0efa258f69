"""A compaction that is killed leaves exactly one valid generation, at whichever of its steps."""

from __future__ import annotations

import secrets
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.harness import ROOT, environment


@pytest.mark.compiled
@pytest.mark.timeout(900)
@pytest.mark.parametrize("every", [pytest.param(1, marks=pytest.mark.slow), 6])
def test_a_compaction_killed_at_any_step_leaves_one_valid_generation(tmp_path: Path, every: int) -> None:
    first = 1 + secrets.randbelow(every)
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.compaction", str(tmp_path), str(first), str(every)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"from {first} on: {done.stderr}"
    kills, before = map(int, done.stdout.split())
    assert kills > 60 // every
    assert 40 // every < before < kills, "some kills come before the switch, and some after it"

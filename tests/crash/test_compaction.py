"""A compaction that is killed leaves exactly one valid generation, at whichever of its steps."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.harness import ROOT, environment


@pytest.mark.compiled
@pytest.mark.timeout(900)
def test_a_compaction_killed_at_any_step_leaves_one_valid_generation(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tests.crash.compaction", str(tmp_path)],
        cwd=ROOT, env=environment(), capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    steps, before = map(int, done.stdout.split())
    assert steps > 60
    assert 40 < before < steps, "some kills come before the switch, and some after it"

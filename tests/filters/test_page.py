"""Rules out a page of filters whose examples do not run, one after the other, as they stand."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.crash.harness import environment

PAGE = Path(__file__).parents[2] / "docs" / "filters.md"


@pytest.mark.compiled
def test_the_examples_of_the_page_run(tmp_path: Path) -> None:
    code = "\n".join(re.findall(r"^```python\n(.*?)^```", PAGE.read_text(), re.S | re.M))
    assert code.count("assert") > 5
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", code],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=200,
        check=False,
    )
    assert (done.returncode, done.stderr) == (0, "")

"""Rules out a kernel cache that serves stale or torn code, or that a second process can break."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.compiled
USE = """
import sys, logging
logging.basicConfig(level=logging.WARNING)
from corenn.kernels.checksum import TABLES, checksum_rows
from corenn.kernels.jit import cache_folder
import numpy as np
sums = np.zeros(2, np.uint32)
checksum_rows(TABLES, np.zeros((2, 2), np.uint64), np.zeros((2, 1), np.uint32), np.arange(2, dtype=np.uint64), sums)
print(len(set(sums.tolist())), sum(checksum_rows.stats.cache_hits.values()), cache_folder())
"""


def use(cache: Path, **environment: str) -> tuple[str, str, Path]:
    """Run one kernel in a new process: its result, whether it came from the cache, and the folder."""
    done = subprocess.run(
        [sys.executable, "-c", USE], capture_output=True, text=True, check=True,
        env={**os.environ, "CORENN_CACHE_DIR": str(cache), **environment},
    )  # fmt: skip
    result, hits, folder = done.stdout.split()
    return result, hits, Path(folder)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[str, str, Path]:
    """What the first process tells, which finds an empty cache."""
    return use(tmp_path_factory.mktemp("cache"))


@pytest.fixture
def folder(first: tuple[str, str, Path], tmp_path: Path) -> Path:
    """A copy of what it has left."""
    return shutil.copytree(first[2], tmp_path / "corenn" / first[2].name)


def test_the_second_process_loads_what_the_first_compiled(
    first: tuple[str, str, Path], folder: Path, tmp_path: Path
) -> None:
    second = use(tmp_path)
    assert first[1] == "0"
    assert second[1] == "1"
    assert first[0] == second[0] == "2"
    assert second[2] == folder


def test_the_folder_is_private_and_named_by_mode(first: tuple[str, str, Path], tmp_path: Path) -> None:
    plain, checked = first[2], use(tmp_path, NUMBA_BOUNDSCHECK="1")[2]
    assert plain.name != checked.name
    assert plain.stat().st_mode & 0o077 == 0


@pytest.mark.few(1)
@pytest.mark.parametrize("ending", [".nbi", ".nbc"])
def test_a_torn_file_is_compiled_again(folder: Path, tmp_path: Path, ending: str) -> None:
    for path in folder.glob(f"*{ending}"):
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    assert use(tmp_path)[0] == "2"
    assert use(tmp_path)[1] == "1", "what was compiled again is kept"


def test_an_unwritable_folder_is_replaced_by_a_private_one(tmp_path: Path) -> None:
    (tmp_path / "corenn").write_text("in the way")
    result, _, folder = use(tmp_path)
    assert result == "2"
    assert not folder.is_relative_to(tmp_path)
    assert not folder.exists(), "it goes with its process"


def test_a_folder_that_others_can_write_is_not_trusted(folder: Path, tmp_path: Path) -> None:
    folder.chmod(0o777)
    result, hits, other = use(tmp_path)
    assert result == "2"
    assert other != folder
    assert hits != "1"


def test_two_processes_may_compile_at_once(tmp_path: Path) -> None:
    environment = {**os.environ, "CORENN_CACHE_DIR": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", USE], stdout=subprocess.PIPE, text=True, env=environment)
        for _ in range(2)
    ]
    assert [process.communicate()[0].split()[0] for process in both] == ["2", "2"]
    assert use(tmp_path)[1] == "1"

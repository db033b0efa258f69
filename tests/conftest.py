"""Shared fixtures: a database in memory or on disk, and samples of real vectors."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from hypothesis import HealthCheck, settings
from numpy.typing import NDArray

import tests.usual  # noqa: F401 - before anything is compiled
from corenn import CoreNN, Root, writer

DATA = Path(__file__).parent / "data"
COMPILED = os.environ.get("NUMBA_DISABLE_JIT", "0") in ("", "0")

Create: TypeAlias = Callable[..., CoreNN]
Sample: TypeAlias = tuple[NDArray[np.float32], NDArray[np.float32]]

settings.register_profile(
    "corenn",
    deadline=None,  # times are not asserted
    print_blob=True,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large],
)
settings.load_profile("corenn")


writer.IDLE_SECONDS = 3600.0  # nothing is measured in the background unless a test wants it: lists stay what they are


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        # A shell starts what it puts into the background deaf to Ctrl-C, and the programs under test would inherit it.
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.hookimpl(tryfirst=True)  # before those that are slow are left out
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Of tests with many cases of which few will do, make the others slow; those that are kept differ in all they can.

    Without the JIT a kernel is hundreds of times slower: leave out what needs thousands of rows.
    """
    cases = defaultdict[str, list[pytest.Item]](list)
    for item in items:
        if item.get_closest_marker("few") and not item.get_closest_marker("slow"):
            cases[item.nodeid.partition("[")[0]].append(item)
        if item.get_closest_marker("compiled") and not COMPILED:
            item.add_marker(pytest.mark.skip(reason="needs compiled kernels (NUMBA_DISABLE_JIT is set)"))
    for each in cases.values():
        (count,) = next(each[0].iter_markers("few")).args
        for item in unlike(each)[count:]:
            item.add_marker(pytest.mark.slow)


def unlike(cases: Sequence[pytest.Item]) -> list[pytest.Item]:
    """The last of some cases, and then always that with the most values that none before it has."""
    left, found, seen = list(reversed(cases)), list[pytest.Item](), set[tuple[str, int]]()
    while left:
        found.append(max(left, key=lambda item: len(values_of(item) - seen)))
        left.remove(found[-1])
        seen |= values_of(found[-1])
    return found


def values_of(item: pytest.Item) -> set[tuple[str, int]]:
    """The values of a case, each by its number."""
    assert isinstance(item, pytest.Function)
    return set(item.callspec.indices.items())


@pytest.fixture(params=["memory", "disk"])
def create(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Create]:
    """Make a database with the given settings, in memory or on disk; all are closed at the end."""
    yield from making(request.param, tmp_path)


def making(kind: str, folder: Path) -> Iterator[Create]:
    """Make databases "memory", on "disk", or as collections of a "root"; all are closed at the end."""
    made: list[CoreNN] = []

    def make(**given: Any) -> CoreNN:
        if kind == "memory":
            db = CoreNN.in_memory(**given)
        elif kind == "disk":
            db = CoreNN.create(folder / f"database-{len(made)}", **given)
        else:
            db = Root(folder / "root").create(f"database-{len(made)}", **given)
        made.append(db)
        return db

    yield make
    for db in made:
        db.close()


@pytest.fixture
def memory() -> Iterator[Create]:
    """Make a database in memory with the given settings; all are closed at the end."""
    made: list[CoreNN] = []

    def make(**given: Any) -> CoreNN:
        made.append(CoreNN.in_memory(**given))
        return made[-1]

    yield make
    for db in made:
        db.close()


@pytest.fixture
def mount(tmp_path: Path) -> Iterator[Callable[..., Path]]:
    """Mount a small file system in memory; skip where that is not allowed."""
    mounted: list[Path] = []

    def make(options: str) -> Path:
        place = tmp_path / f"mount-{len(mounted)}"
        place.mkdir()
        done = subprocess.run(
            ["mount", "-t", "tmpfs", "-o", options, "none", str(place)], capture_output=True, text=True, check=False
        )
        if done.returncode:
            pytest.skip(f"cannot mount a tmpfs: {done.stderr.strip()}")
        mounted.append(place)
        return place

    if shutil.which("mount") is None:
        pytest.skip("no mount command")
    yield make
    for place in mounted:
        subprocess.run(["umount", "-l", str(place)], check=True)


@pytest.fixture(scope="session")
def sift() -> Sample:
    """6,000 rows and 200 queries of 128 dimensions, whole numbers from 0 to 255."""
    with np.load(DATA / "sift.npz") as file:
        return file["rows"].astype(np.float32), file["queries"].astype(np.float32)


@pytest.fixture(scope="session")
def embeddings() -> Sample:
    """2,000 rows and 100 queries of 384 dimensions, about unit length."""
    with np.load(DATA / "embeddings.npz") as file:
        rows = file["rows"].astype(np.float32) * file["row_scales"][:, None]
        queries = file["queries"].astype(np.float32) * file["query_scales"][:, None]
    return rows, queries


@pytest.fixture
def rng() -> np.random.Generator:
    """The same numbers in every run."""
    return np.random.default_rng(20_240_607)

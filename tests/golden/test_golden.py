"""Databases of every version of the format that there has been.

Rules out a change after which a database of today is not opened, is not found to be whole, or answers otherwise; and a
change of the format that nobody has noticed.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import corenn
from corenn import CoreNN
from corenn.graph import query
from corenn.storage import changes, rocks, store
from corenn.storage import format as fmt
from corenn.storage.files import Files
from corenn.storage.generation import METADATA, folder_of, read_generation
from corenn.storage.readers import FOLDER as READERS
from tests.golden.contents import read_expected, unpack, unpacked
from tests.golden.layout import LAYOUT, layout
from tests.oracle import tolerance

pytestmark = pytest.mark.compiled
HERE = Path(__file__).parent
VERSIONS = sorted(HERE.glob("v*"), key=lambda folder: int(folder.name[1:]))
EXPECTED = {folder.name: read_expected(folder / "expected.json.xz") for folder in VERSIONS}
GOLDEN = [(version, name) for version, found in EXPECTED.items() for name in found]
WALKED = 48  # the search list of walks
Found = dict[str, Any]


@pytest.fixture(params=GOLDEN, ids="/".join)
def golden(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Path, Found]:
    """A golden database, brought to the present version, and what must be found in it."""
    version, name = request.param
    path = tmp_path / name
    if (archive := HERE / version / f"{name}.tar.gz").exists():
        CoreNN.restore(archive, path)
    else:
        unpack(HERE / version / f"{name}.tar.xz", path)
    if version != f"v{fmt.VERSION}":
        corenn.upgrade(path)
    return path, EXPECTED[version][name]


def check(db: CoreNN, found: Found) -> None:
    """Everything is there, and nothing else; exact queries and walks find what they are to find."""
    settings, keys = db.settings, found["keys"]
    stored = settings.as_dict()
    assert {name: stored[name] for name in found["settings"]} == found["settings"]
    assert len(db) == len(keys)
    assert set(db.keys()) == set(keys)
    records = db.get(keys)
    assert [None if record is None else record.key for record in records] == keys
    assert [record.payload for record in records if record] == found["payloads"]
    vectors = np.array([record.vector for record in records if record])
    wanted = unpacked(found["vectors"], settings.dim)
    if settings.metric == "cosine" or settings.dtype == "i8":
        # Computed with the norm or scale: the processor may round once or twice.
        np.testing.assert_array_max_ulp(vectors, wanted, maxulp=2)
    else:
        assert vectors.tobytes() == wanted.tobytes()
    check_queries(db, found, vectors)
    report = db.verify()
    assert report.ok, report
    assert report.unreachable == 0


def check_queries(db: CoreNN, found: Found, vectors: Any) -> None:
    queries = unpacked(found["queries"], db.settings.dim)
    slack = tolerance(db.settings.metric, vectors, queries)
    k = len(found["answers"][0])
    exact = db.query(queries, k=k, exact=True, with_payloads=True)
    payloads = dict(zip(found["keys"], found["payloads"], strict=True))
    for hits, keys, distances in zip(exact, found["answers"], found["distances"], strict=True):
        assert list(hits.keys) == keys
        assert np.allclose(hits.distances, distances, rtol=0, atol=slack)
        assert [hit.payload for hit in hits] == [payloads[key] for key in keys]
    walked = db.query(queries, k=k, search_list=WALKED)
    share = [len(set(hits.keys) & set(keys)) / k for hits, keys in zip(walked, found["answers"], strict=True)]
    assert np.mean(share) >= 0.9


@pytest.fixture(autouse=True)
def walk_in_few_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    """Golden databases are small: have queries walk all the same."""
    monkeypatch.setattr(query, "scans", lambda live, k, search_list: 2 * search_list > live)


def stay_up(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the machine not been restarted since a database was written."""
    copy = path.with_name("for the boot")
    shutil.copytree(path, copy)
    metadata = rocks.RocksMetadata(folder_of(copy, read_generation(copy)) / METADATA, Files(), reader=True)
    boot = metadata.marks()[1]
    metadata.close()
    for module in (store, rocks, changes):
        monkeypatch.setattr(module, "boot_id", lambda: boot)


def content(path: Path) -> dict[str, str]:
    """Hashes of all files, but for those of the processes that read."""
    return {
        str(each.relative_to(path)): hashlib.sha256(each.read_bytes()).hexdigest()
        for each in sorted(path.rglob("*"))
        if each.is_file() and READERS not in each.relative_to(path).parts
    }


def test_a_golden_database_is_read_as_it_was_written_and_not_changed(golden: tuple[Path, Found]) -> None:
    path, found = golden
    with CoreNN.open(path, mode="r") as db:  # a snapshot that was cut off is finished first
        check(db, found)
    before = content(path)
    with CoreNN.open(path, mode="r") as db:
        check(db, found)
        db.refresh()
    assert content(path) == before


@pytest.mark.parametrize("restarted", [True, False], ids=["restarted", "same boot"])
def test_a_golden_database_is_opened_and_written_to(
    golden: tuple[Path, Found], restarted: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, found = golden
    if not restarted:
        CoreNN.open(path, mode="r").close()  # finishes a snapshot that was cut off
        stay_up(path, monkeypatch)
    with CoreNN.open(path) as db:
        check(db, found)
        write(db, found)
        check(db, found)
        db.checkpoint()
    with CoreNN.open(path) as db:
        check(db, found)
        db.compact()
        check(db, found)
    with CoreNN.open(path, mode="r") as db:
        check(db, found)


def write(db: CoreNN, found: Found) -> None:
    """Go on with it, and come back to the same rows."""
    rng = np.random.default_rng(3)
    new = [f"new {number}" for number in range(80)]
    db.insert(new, rng.uniform(0, 255, (80, db.settings.dim)), [{"n": n} for n in range(80)])
    assert db.get(new[7:8])[0].payload == {"n": 7}  # type: ignore[union-attr]
    db.set_payload(found["keys"][:5], [{"other": 1}] * 5)
    db.set_payload(found["keys"][:5], found["payloads"][:5])
    assert db.delete(new) == 80
    db.checkpoint()


def test_a_golden_database_is_repaired_and_copied(golden: tuple[Path, Found], tmp_path: Path) -> None:
    path, found = golden
    with CoreNN.open(path, mode="rescue") as db:
        report = db.repair()
        assert report.ok
        assert not any(problem.lost for problem in report.repaired)
        check(db, found)
        db.snapshot(tmp_path / "copy")
        db.backup(tmp_path / "copy.tar.gz")
    CoreNN.restore(tmp_path / "copy.tar.gz", tmp_path / "restored")
    for copy in ("copy", "restored"):
        with CoreNN.open(tmp_path / copy) as db:
            check(db, found)


def test_golden_databases_of_the_present_version_are_there() -> None:
    assert f"v{fmt.VERSION}" in EXPECTED, (
        f"version {fmt.VERSION} of the format has no golden databases: run `python -m tests.golden.make`, and check in "
        f"tests/golden/v{fmt.VERSION}; keep those of earlier versions"
    )
    sizes = {folder.name: sum(file.stat().st_size for file in folder.iterdir()) for folder in VERSIONS}
    assert max(sizes.values()) < 300_000, sizes


def test_the_format_does_not_change_without_a_version() -> None:
    kept = json.loads((HERE / f"v{fmt.VERSION}" / LAYOUT).read_text())
    now = layout()
    changed = sorted(name for name in {*kept, *now} if kept.get(name) != now.get(name))
    assert not changed, (
        f"the format of version {fmt.VERSION} has changed: {', '.join(changed)}. If that was not meant, take it back. "
        "If an older CoreNN would misread the files, or this one those of before: raise VERSION in storage/format.py, "
        "register the step in STEPS of storage/upgrade.py, describe both in docs/format.md, and run "
        "`python -m tests.golden.make`, which leaves the files of earlier versions alone. If neither is so, or the "
        "version was never released, run that as well, and check in what it has written"
    )

"""Whole data sets: from servers of this machine through the command line to files ready for use.

Rules out a fetch whose files are not those of the source, neighbours that are not those of the rows, a source that
stops a fetch although another one works, a fetch that is interrupted and begins anew, and a file without a manifest.
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import tarfile
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import h5py
import numpy as np
import pytest
from numpy.typing import NDArray
from typer.testing import CliRunner, Result

from corenn.cli import app
from corenn.datasets import create_vectors, open_vectors, read_truth, transfer, write_truth
from corenn.datasets.catalogue import read_catalogue
from corenn.datasets.fetch import located
from corenn.datasets.manifest import verify_manifests
from corenn.datasets.recipes import bvecs
from corenn.datasets.recipes import texmex as texmex_recipe
from corenn.errors import DatasetError
from tests.crash.harness import environment
from tests.datasets.servers import Fault, Ftp, Web, ftp, web

ROWS, QUERIES, DIM, K = 300, 7, 5, 10
Matrix = NDArray[Any]


@pytest.fixture(scope="module")
def running() -> Iterator[Web]:
    with web() as server:
        yield server


@pytest.fixture
def server(running: Web, monkeypatch: pytest.MonkeyPatch) -> Web:
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(transfer, "time", SimpleNamespace(sleep=lambda _: None))
    running.files.clear()
    running.requests.clear()
    return running


@pytest.fixture(scope="module")
def base() -> Matrix:
    return np.random.default_rng(5).integers(0, 256, (ROWS, DIM)).astype(np.float32)


@pytest.fixture(scope="module")
def queries() -> Matrix:
    return np.random.default_rng(6).integers(0, 256, (QUERIES, DIM)).astype(np.float32)


def neighbours(base: Matrix, queries: Matrix) -> tuple[Matrix, Matrix]:
    """Numbers and squared distances of the K nearest rows."""
    squares = np.square(queries[:, None, :].astype(np.float64) - base[None]).sum(axis=2)
    ids = np.argsort(squares, axis=1, kind="stable")[:, :K]
    return ids, np.take_along_axis(squares, ids, axis=1)


def packed(tmp_path: Path, name: str, rows: Matrix, dtype: str) -> bytes:
    """The bytes of a file of vectors, of the format of its name."""
    with create_vectors(tmp_path / name, DIM if rows.shape[1] == DIM else rows.shape[1], dtype) as out:
        out.append(rows)
    return (tmp_path / name).read_bytes()


def hdf5(base: Matrix, queries: Matrix) -> bytes:
    ids, squares = neighbours(base, queries)
    raw = io.BytesIO()
    with h5py.File(raw, "w") as file:
        file.attrs.update({"type": "dense", "distance": "euclidean", "dimension": DIM, "point_type": "float"})
        file["train"], file["test"] = base, queries
        file["neighbors"], file["distances"] = ids.astype(np.int32), np.sqrt(squares).astype(np.float32)
    return raw.getvalue()


def archive(members: dict[str, bytes]) -> bytes:
    raw = io.BytesIO()
    with tarfile.open(fileobj=raw, mode="w:gz") as out:
        for name, body in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(body)
            out.addfile(info, io.BytesIO(body))
    return raw.getvalue()


def texmex(tmp_path: Path, base: Matrix, queries: Matrix) -> bytes:
    ids, _ = neighbours(base, queries)
    return archive({
        "tiny/tiny_base.fvecs": packed(tmp_path, "b.fvecs", base, "f32"),
        "tiny/tiny_learn.fvecs": packed(tmp_path, "l.fvecs", base, "f32"),
        "tiny/tiny_query.fvecs": packed(tmp_path, "q.fvecs", queries, "f32"),
        "tiny/tiny_groundtruth.ivecs": packed(tmp_path, "t.ivecs", ids, "i32"),
    })  # fmt: skip


# --- catalogues -------------------------------------------------------------------------------------------------------


def file(name: str, body: bytes | None, *urls: str) -> dict[str, Any]:
    """A file of a catalogue; verified, if its bytes are given."""
    known = {} if body is None else {
        "size": len(body), "checksum": f"sha256:{hashlib.sha256(body).hexdigest()}", "cited": "this test",
    }  # fmt: skip
    return {"name": name, "urls": list(urls), **known}


def catalogue(tmp_path: Path, *sources: dict[str, Any], **more: Any) -> Path:
    """A catalogue with one data set, tiny."""
    entry = {
        "name": "tiny", "title": "a trial", "rows": ROWS, "queries": QUERIES, "dim": DIM, "dtype": "f32",
        "metric": "l2", "homepage": "https://example.org/", "sources": list(sources), **more,
    }  # fmt: skip
    path = tmp_path / "catalogue.json"
    path.write_text(json.dumps([entry]))
    return path


def one_file(name: str, body: bytes, *urls: str, form: str = "hdf5") -> dict[str, Any]:
    members = {"members": [f"tiny_{part}" for part in ("base.fvecs", "query.fvecs", "groundtruth.ivecs")]}
    return {"form": form, "total": ROWS, "base": file(name, body, *urls), **(members if form == "texmex" else {})}


def corenn(*arguments: object) -> Result:
    """Run `corenn dataset` in this process."""
    return CliRunner(env={"COLUMNS": "200"}).invoke(app, ["dataset", *map(str, arguments)])


def fetched(tmp_path: Path, path: Path, *more: object) -> dict[str, Any]:
    """What a fetch prints; all that it left is verified, and was found by the name of the data set."""
    root = tmp_path / "root"
    result = corenn("fetch", "tiny", "--catalogue", path, "--root", root, "--json", *QUICK, *more)
    assert result.exit_code == 0, result.output
    found: dict[str, Any] = json.loads(result.stdout)
    verdicts = verify_manifests(root)
    assert verdicts and all(each.problem is None for each in verdicts), verdicts
    assert not [each for each in root.rglob(".*") if each.is_file()], "something hidden was left behind"
    return found


def refused(tmp_path: Path, path: Path, *more: object) -> str:
    """The one line of a fetch that fails."""
    result = corenn("fetch", "tiny", "--catalogue", path, "--root", tmp_path / "root", *QUICK, *more)
    assert result.exit_code == 1, result.output
    assert result.stdout == ""
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1 and "Traceback" not in result.stderr, result.stderr
    assert not (tmp_path / "root/tiny/processed").exists()
    return errors[0]


QUICK = ("--timeout", 10, "--attempts", 1)


def check(found: dict[str, Any], base: Matrix, queries: Matrix, truth: bool) -> None:
    """Rows, queries and neighbours are those that were served."""
    with open_vectors(found["base"], found["base_part"]) as vectors:
        assert vectors.metric in ("l2", None)
        np.testing.assert_array_equal(vectors.rows(0, len(vectors)), base)
    with open_vectors(found["queries"], found["queries_part"]) as vectors:
        np.testing.assert_array_equal(vectors.rows(0, len(vectors)), queries)
    assert (found["rows"], found["dim"], found["metric"]) == (len(base), DIM, "l2")
    assert (found["truth"] is not None) == truth
    if truth:
        ids, squares = neighbours(base, queries)
        known = read_truth(found["truth"])
        np.testing.assert_array_equal(known.ids, ids)
        assert known.distances is not None
        np.testing.assert_allclose(known.distances, squares, rtol=1e-5)


def the_prepared(tmp_path: Path, path: Path) -> Any:
    return located(read_catalogue(path)[0], tmp_path / "root")


# --- every form -------------------------------------------------------------------------------------------------------


def test_hdf5(server: Web, tmp_path: Path, base: Matrix, queries: Matrix) -> None:
    body = hdf5(base, queries)
    path = catalogue(tmp_path, one_file("tiny.hdf5", body, server.serve("t", body, Fault(drop=900), Fault(drop=900))))
    found = fetched(tmp_path, path, "--attempts", 2)
    check(found, base, queries, truth=True)
    assert Path(found["base"]).read_bytes() == body
    assert str(the_prepared(tmp_path, path).base) == found["base"]
    server.files.clear()
    assert fetched(tmp_path, path) == found  # nothing is fetched twice


def test_the_first_rows_of_hdf5_come_without_the_neighbours_among_all(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    body = hdf5(base, queries)
    path = catalogue(tmp_path, one_file("tiny.hdf5", body, server.serve("t", body)))
    found = fetched(tmp_path, path, "--rows", 40)
    check(found, base[:40], queries, truth=False)
    with h5py.File(found["base"]) as made:
        assert set(made) == {"train", "test"}
    assert the_prepared(tmp_path, path).rows == 40
    check(fetched(tmp_path, path), base, queries, truth=True)
    assert len(server.requests) == 1
    assert the_prepared(tmp_path, path).rows == ROWS


@pytest.mark.parametrize("rows", [None, 123])
def test_texmex(server: Web, tmp_path: Path, base: Matrix, queries: Matrix, rows: int | None) -> None:
    body = texmex(tmp_path, base, queries)
    path = catalogue(tmp_path, one_file("tiny.tar.gz", body, server.serve("t", body), form="texmex"))
    found = fetched(tmp_path, path, *(("--rows", rows) if rows else ()))
    check(found, base[:rows], queries, truth=rows is None)


@pytest.mark.parametrize("metric", ["l2", "cosine"])
def test_distances_of_neighbours_that_are_only_named(
    tmp_path: Path, base: Matrix, queries: Matrix, metric: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(texmex_recipe, "PAIRS", 3)
    rows = base.copy()
    rows[7] = 0  # at a right angle to all
    ids = np.random.default_rng(1).integers(0, ROWS, (QUERIES, K))
    ids[2] = 7
    packed(tmp_path, "b.fvecs", rows, "f32")
    packed(tmp_path, "q.fvecs", queries, "f32")
    with open_vectors(tmp_path / "b.fvecs") as stored, open_vectors(tmp_path / "q.fvecs") as asked:
        found = texmex_recipe.distances(metric, stored, asked, ids)
        with pytest.raises(DatasetError, match="only l2 and cosine"):
            texmex_recipe.distances("ip", stored, asked, ids)
    for query, named, values in zip(queries, ids, found, strict=True):
        for row, value in zip(rows[named], values, strict=True):
            norms = float(np.linalg.norm(row) * np.linalg.norm(query))
            cosine = 1 - float(row @ query) / norms if norms else 1.0
            expected = float(np.linalg.norm(row - query)) if metric == "l2" else cosine
            assert value == pytest.approx(expected, rel=1e-5, abs=1e-6)


def billion(tmp_path: Path, base: Matrix, queries: Matrix) -> dict[str, bytes]:
    """Base, queries and the neighbours among the first 100 and all rows, as big-ann-benchmarks serves them."""
    files = {
        "base.fbin": packed(tmp_path, "b.fbin", base, "f32"),
        "query.fbin": packed(tmp_path, "q.fbin", queries, "f32"),
    }
    for rows in (100, ROWS):
        ids, squares = neighbours(base[:rows], queries)
        write_truth(tmp_path / "t.ibin", ids, squares.astype(np.float32))
        files[f"truth-{rows}"] = (tmp_path / "t.ibin").read_bytes()
    return files


def bigann(files: dict[str, bytes], *folders: str, verified: bool = True) -> dict[str, Any]:
    def one(name: str) -> dict[str, Any]:
        return file(name, files[name] if verified else None, *(f"{folder}{name}" for folder in folders))

    truths = {rows: one(f"truth-{rows}") for rows in (100, ROWS)}
    return {"form": "bigann", "total": ROWS, "base": one("base.fbin"), "queries": one("query.fbin"), "truths": truths}


@pytest.mark.parametrize(("rows", "truth"), [(None, True), (100, True), (1, False), (299, False)])
def test_bigann_and_its_slices(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, rows: int | None, truth: bool
) -> None:
    files = billion(tmp_path, base, queries)
    for name, body in files.items():
        server.serve(name, body)
    path = catalogue(tmp_path, bigann(files, server.url("")))
    found = fetched(tmp_path, path, *(("--rows", rows) if rows else ()))
    check(found, base[:rows], queries, truth)
    wanted = dict(server.requests)["/base.fbin"]
    assert wanted == (f"bytes=0-{8 + 4 * DIM * rows - 1}" if rows else None)
    assert the_prepared(tmp_path, path).rows == (rows or ROWS)


def test_a_slice_whose_connection_drops_within_the_header(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    files = billion(tmp_path, base, queries)
    for name, body in files.items():
        server.serve(name, body, Fault(drop=3))
    found = fetched(tmp_path, catalogue(tmp_path, bigann(files, server.url(""))), "--rows", 100, "--attempts", 2)
    check(found, base[:100], queries, truth=True)


@pytest.mark.parametrize("rows", [None, 100])
def test_a_base_whose_header_says_something_else(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, rows: int | None
) -> None:
    files = billion(tmp_path, base, queries)
    files["base.fbin"] = (ROWS + 1).to_bytes(4, "little") + files["base.fbin"][4:]
    for name, body in files.items():
        server.serve(name, body)
    path = catalogue(tmp_path, bigann(files, server.url(""), verified=False))
    assert "its header says 301 × 5, not 300 × 5" in refused(tmp_path, path, *(("--rows", rows) if rows else ()))


@pytest.mark.parametrize("change", ["shorter", "other queries", "a page", "queries"])
def test_neighbours_and_queries_that_nobody_vouches_for_are_checked_by_their_form(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, change: str
) -> None:
    files = billion(tmp_path, base, queries)
    good = files[name := "query.fbin" if change == "queries" else f"truth-{ROWS}"]
    files[name] = {
        "shorter": good[:-4], "other queries": b"\x06" + good[1:], "a page": b"<html>", "queries": good + b"\0",
    }[change]  # fmt: skip
    for each, body in files.items():
        server.serve(each, body)
    path = catalogue(tmp_path, bigann(files, server.url(""), verified=False))
    assert f"{len(files[name])} bytes" in refused(tmp_path, path)
    assert not (tmp_path / "root/tiny/raw" / name).exists()
    server.serve(name, good)
    check(fetched(tmp_path, path), base, queries, truth=True)


@pytest.mark.parametrize("rows", [None, 100])
def test_bvecs(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, rows: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bvecs, "MARGIN", 300)
    packed_base = gzip.compress(packed(tmp_path, "b.bvecs", base, "u8"))
    bodies = {
        "base.bvecs.gz": packed_base,
        "query.bvecs.gz": gzip.compress(packed(tmp_path, "q.bvecs", queries, "u8")),
        "gnd.tar.gz": archive(
            {name: body for each in (100, ROWS) for name, body in known(tmp_path, base[:each], queries)}
        ),
    }
    files = {name: file(name, body, server.serve(name, body)) for name, body in bodies.items()}
    source = {
        "form": "bvecs", "total": ROWS, "base": files["base.bvecs.gz"], "queries": files["query.bvecs.gz"],
        "truths": {str(each): files["gnd.tar.gz"] for each in (100, ROWS)},
        "members": ["idx_{rows}.ivecs", "dis_{rows}.fvecs"],
    }  # fmt: skip
    found = fetched(tmp_path, catalogue(tmp_path, source, dtype="u8"), *(("--rows", rows) if rows else ()))
    check(found, base[:rows], queries, truth=True)
    assert Path(found["base"]).suffix == ".u8bin"
    if rows:
        (beginning,) = (tmp_path / "root/tiny/raw").glob("base.bvecs.gz.beginning-100")
        assert beginning.read_bytes() == packed_base[: beginning.stat().st_size]
        assert beginning.stat().st_size < len(packed_base)


def known(tmp_path: Path, base: Matrix, queries: Matrix) -> Iterator[tuple[str, bytes]]:
    """The members with the neighbours among all rows of `base`."""
    ids, squares = neighbours(base, queries)
    yield f"gnd/idx_{len(base)}.ivecs", packed(tmp_path, "i.ivecs", ids, "i32")
    yield f"gnd/dis_{len(base)}.fvecs", packed(tmp_path, "d.fvecs", squares, "f32")


# --- sources and mirrors ----------------------------------------------------------------------------------------------


@pytest.fixture
def ftp_server(tmp_path: Path) -> Iterator[Ftp]:
    (tmp_path / "served").mkdir()
    with ftp(tmp_path / "served") as running:
        yield running


def test_the_last_mirror_of_the_last_source_by_ftp(
    server: Web, ftp_server: Ftp, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    whole, packed_ = hdf5(base, queries), texmex(tmp_path, base, queries)
    (ftp_server.folder / "tiny.tar.gz").write_bytes(packed_)
    ftp_server.drops = [1_000]
    first = one_file("tiny.hdf5", whole, server.url("nothing"), server.serve("bad", whole, always=Fault(corrupt=5_000)))
    gone = server.serve("busy", packed_, always=Fault(status=503))
    second = one_file("tiny.tar.gz", packed_, gone, ftp_server.url("tiny.tar.gz"), form="texmex")
    path = catalogue(tmp_path, first, second)
    found = fetched(tmp_path, path, "--attempts", 2)
    check(found, base, queries, truth=True)
    assert any(line.startswith("REST") for line in ftp_server.commands)


def test_a_slice_by_ftp(ftp_server: Ftp, tmp_path: Path, base: Matrix, queries: Matrix) -> None:
    files = billion(tmp_path, base, queries)
    for name, body in files.items():
        (ftp_server.folder / name).write_bytes(body)
    found = fetched(tmp_path, catalogue(tmp_path, bigann(files, ftp_server.url(""))), "--rows", 100)
    check(found, base[:100], queries, truth=True)


def test_the_source_that_was_begun_is_finished_though_a_better_one_is_back(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    whole, packed_ = hdf5(base, queries), texmex(tmp_path, base, queries)
    first = one_file("tiny.hdf5", whole, server.url("t"))
    url = server.serve("u", packed_, Fault(drop=1_000), always=Fault(status=503))
    path = catalogue(tmp_path, first, one_file("tiny.tar.gz", packed_, url, form="texmex"))
    assert "HTTP 503" in refused(tmp_path, path, "--attempts", 2)
    server.serve("t", whole)
    server.files["/u"].always = Fault()
    server.requests.clear()
    check(fetched(tmp_path, path), base, queries, truth=True)
    assert server.requests == [("/u", "bytes=1000-")]


def test_a_hostile_archive_gives_way_to_the_next_source(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    whole, evil = hdf5(base, queries), archive({"../../../tiny_base.fvecs": b"boo", "tiny_query.fvecs": b"boo"})
    first = one_file("tiny.tar.gz", evil, server.serve("evil", evil), form="texmex")
    path = catalogue(tmp_path, first, one_file("tiny.hdf5", whole, server.serve("t", whole)))
    check(fetched(tmp_path, path), base, queries, truth=True)
    assert not list(tmp_path.rglob("tiny_base.fvecs"))


def test_all_sources_fail_in_one_line(server: Web, tmp_path: Path, base: Matrix, queries: Matrix) -> None:
    body, evil = hdf5(base, queries), archive({"/tiny_base.fvecs": b"boo"})
    first = one_file("tiny.tar.gz", evil, server.serve("evil", evil), form="texmex")
    path = catalogue(tmp_path, first, one_file("tiny.hdf5", body, server.url("nothing")))
    message = refused(tmp_path, path)
    assert "lies outside of the archive" in message and "HTTP 404" in message


def test_a_fetch_that_brings_nothing_leaves_nothing(server: Web, tmp_path: Path) -> None:
    path = catalogue(tmp_path, one_file("tiny.hdf5", b"", server.url("nothing")))
    refused(tmp_path, path)
    assert not (tmp_path / "root/tiny").exists()


@pytest.mark.parametrize("what", ["shape", "neighbours", "no HDF5"])
def test_files_that_are_not_what_the_catalogue_says(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, what: str
) -> None:
    if what == "no HDF5":
        body = b"\x89HDF\r\n\x1a\n" + bytes(5_000)
        source = one_file("tiny.hdf5", body, server.serve("t", body))
    elif what == "shape":
        body = hdf5(base[:-1], queries)
        source = one_file("tiny.hdf5", body, server.serve("t", body))
    else:
        body = archive({
            "tiny_base.fvecs": packed(tmp_path, "b.fvecs", base, "f32"),
            "tiny_query.fvecs": packed(tmp_path, "q.fvecs", queries, "f32"),
            "tiny_groundtruth.ivecs": packed(tmp_path, "t.ivecs", np.full((QUERIES, K), ROWS), "i32"),
        })  # fmt: skip
        source = one_file("tiny.tar.gz", body, server.serve("t", body), form="texmex")
    said = {"shape": "has shape (299, 5)", "neighbours": "ids 300 to 300", "no HDF5": "not a whole HDF5 file"}
    result = corenn("fetch", "tiny", "--catalogue", catalogue(tmp_path, source), "--root", tmp_path / "r", *QUICK)
    assert result.exit_code == 1
    assert said[what] in " ".join(result.stderr.split())
    assert not list((tmp_path / "r").rglob("tiny/processed/*"))


def test_another_address_and_what_would_be_fetched(server: Web, tmp_path: Path, base: Matrix, queries: Matrix) -> None:
    body = hdf5(base, queries)
    (tmp_path / "copy.hdf5").write_bytes(body)
    path = catalogue(tmp_path, one_file("tiny.hdf5", body, server.url("nothing")), licence="CC0")
    given = ("--url", (tmp_path / "copy.hdf5").as_uri())
    options = ("--catalogue", path, "--root", tmp_path / "root", *given)
    shown = corenn("fetch", "tiny", *options, "--dry-run")
    assert shown.exit_code == 0 and "tiny.hdf5" in shown.stdout and "copy.hdf5" in shown.stdout
    assert "verified by the checksum in this test" in shown.stdout
    planned = json.loads(corenn("fetch", "tiny", *options, "--dry-run", "--json").stdout)
    assert planned["sources"][0][0]["urls"] == [given[1], server.url("nothing")]
    assert planned["sources"][0][0]["bytes"] == len(body) and not planned["sources"][0][0]["there"]
    assert not (tmp_path / "root").exists() and server.requests == []
    check(fetched(tmp_path, path, *given), base, queries, truth=True)
    assert json.loads(corenn("fetch", "tiny", *options, "--dry-run", "--json").stdout)["sources"][0][0]["there"]


def test_a_plan_shows_no_secrets(tmp_path: Path) -> None:
    path = catalogue(tmp_path, one_file("tiny.hdf5", b"", "https://me:s3cret@mirror.example/tiny.hdf5?key=s3cret"))
    for more in ((), ("--json",)):
        given = ("--url", "ftp://you:s3cret@other.example/tiny.hdf5", *more)
        shown = corenn("fetch", "tiny", "--catalogue", path, "--root", tmp_path / "root", "--dry-run", *given)
        assert shown.exit_code == 0 and "s3cret" not in shown.output
        assert "ftp://other.example/tiny.hdf5" in shown.stdout and "https://mirror.example/tiny.hdf5" in shown.stdout


@pytest.mark.parametrize("form", ["hdf5", "texmex"])
def test_a_data_set_that_is_the_first_rows_of_a_file(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, form: str
) -> None:
    """As Deep-10M is of Deep1B; the neighbours in the file are then not its own."""
    body = hdf5(base, queries) if form == "hdf5" else texmex(tmp_path, base, queries)
    source = one_file("tiny.hdf5" if form == "hdf5" else "tiny.tar.gz", body, server.serve("t", body), form=form)
    path = catalogue(tmp_path, source, rows=200)
    check(fetched(tmp_path, path), base[:200], queries, truth=False)
    assert (the_prepared(tmp_path, path).rows, the_prepared(tmp_path, path).truth) == (200, None)
    check(fetched(tmp_path, path, "--rows", 50), base[:50], queries, truth=False)


def test_a_file_that_was_put_there_is_held_against_the_catalogue(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix
) -> None:
    body = hdf5(base, queries)
    path = catalogue(tmp_path, one_file("tiny.hdf5", body, server.url("nothing")))
    raw = tmp_path / "root/tiny/raw"
    raw.mkdir(parents=True)
    (raw / "tiny.hdf5").write_bytes(body[:-1])
    assert f"has {len(body) - 1:,} bytes, not {len(body):,}; remove it" in refused(tmp_path, path)
    (raw / "tiny.hdf5").write_bytes(body[:-1] + bytes([body[-1] ^ 1]))
    assert "its sha256 is" in refused(tmp_path, path)
    (raw / "tiny.hdf5").write_bytes(body)
    check(fetched(tmp_path, path), base, queries, truth=True)


def test_a_data_set_that_was_not_fetched(tmp_path: Path) -> None:
    path = catalogue(tmp_path, one_file("tiny.hdf5", b"", "file:///nothing"))
    with pytest.raises(DatasetError, match="corenn dataset fetch tiny"):
        the_prepared(tmp_path, path)


def test_what_a_user_may_get_wrong(tmp_path: Path) -> None:
    path = catalogue(tmp_path, one_file("tiny.hdf5", b"", "file:///nothing"))
    for arguments, reason in (
        (("tiny", "--rows", ROWS + 1), "it has 300"),
        (("tony",), "did you mean tiny?"),
        (("tiny", "--url", "nowhere"), "begins with"),
        (("tiny", "--catalogue", tmp_path / "none.json"), "No such file"),
    ):
        result = corenn("fetch", "--catalogue", path, "--root", tmp_path / "root", *arguments)
        assert result.exit_code == 1 and reason in result.stderr and "Traceback" not in result.stderr, result.stderr


# --- interruption -----------------------------------------------------------------------------------------------------


def command(tmp_path: Path, path: Path) -> subprocess.Popen[str]:
    arguments = ["dataset", "fetch", "tiny", "--catalogue", str(path), "--root", str(tmp_path / "root"), "--json"]
    return subprocess.Popen(
        [sys.executable, "-m", "corenn", *arguments], env={**environment(), "NO_PROXY": "127.0.0.1"},
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGKILL])
def test_a_fetch_that_is_stopped_goes_on(
    server: Web, tmp_path: Path, base: Matrix, queries: Matrix, end: signal.Signals
) -> None:
    body = hdf5(base, queries)
    path = catalogue(tmp_path, one_file("tiny.hdf5", body, server.serve("t", body, Fault(stall=4_000))))
    part = tmp_path / "root/tiny/raw/.tiny.hdf5.part"
    with command(tmp_path, path) as process:
        while not (part.exists() and part.stat().st_size):
            assert process.poll() is None
            time.sleep(0.01)
        other = corenn("fetch", "tiny", "--catalogue", path, "--root", tmp_path / "root")
        assert other.exit_code == 1 and "another process is fetching tiny" in other.stderr
        process.send_signal(end)
        printed, said = process.communicate(timeout=60)
    assert printed == "" and "Traceback" not in said
    if end == signal.SIGINT:
        assert process.returncode == 130
        assert "the same command goes on from here" in said
    assert part.stat().st_size == 4_000
    assert [each.name for each in part.parent.iterdir() if each.name[0] != "."] == []
    with command(tmp_path, path) as process:
        printed, said = process.communicate(timeout=60)
    assert process.returncode == 0, said
    check(json.loads(printed), base, queries, truth=True)
    assert [wanted for _, wanted in server.requests] == [None, "bytes=4000-"]
    assert os.listdir(part.parent) == ["tiny.hdf5"]  # noqa: PTH208

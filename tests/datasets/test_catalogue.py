"""The catalogue against itself, and catalogues of others.

Rules out an entry that names no mirror, an order that is not the promised one, a size that contradicts the shape of its
file, a checksum without a source, and a catalogue file that is taken although it is wrong.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from corenn.datasets.catalogue import ENTRIES, find, read_catalogue
from corenn.datasets.fetch import fetch, plan
from corenn.datasets.remote import Entry, RemoteFile, Source
from corenn.errors import DatasetError, InvalidArgumentError

FILES = [(entry, source, file) for entry in ENTRIES for source in entry.sources for file in source.files]
DIGITS = {"md5": 32, "sha256": 64, "sha512": 128}
MADE_UP: dict[str, Any] = {
    "name": "tiny", "title": "a trial", "rows": 10, "queries": 2, "dim": 3, "dtype": "f32", "metric": "l2",
    "homepage": "https://example.org/",
    "sources": [{"form": "hdf5", "total": 10, "base": {"name": "tiny.hdf5", "urls": ["https://example.org/t.hdf5"]}}],
}  # fmt: skip


def test_the_data_sets_of_the_issue_are_there() -> None:
    assert {entry.name for entry in ENTRIES} == {
        "sift1m", "sift-small", "gist1m", "glove-25", "glove-100", "glove-200", "deep-10m", "deep-100m", "deep-1b",
        "bigann-10m", "bigann-100m", "bigann-1b", "fashion-mnist", "nytimes",
    }  # fmt: skip


@pytest.mark.parametrize("file", [file for *_, file in FILES], ids=lambda file: file.name)
def test_every_size_and_checksum_has_a_source(file: RemoteFile) -> None:
    assert bool(file.cited) == bool(file.checksum or file.size)
    if file.checksum:
        kind, _, digest = file.checksum.partition(":")
        assert len(digest) == DIGITS[kind]


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_ftp_comes_last_and_hdf5_first(entry: Entry) -> None:
    urls = [url for source in entry.sources for url in source.base.urls]
    assert urls == sorted(urls, key=lambda url: url.startswith("ftp:"))
    forms = [source.form for source in entry.sources]
    assert forms == sorted(forms, key=lambda form: form != "hdf5")


@pytest.mark.parametrize("entry", ENTRIES, ids=lambda entry: entry.name)
def test_sizes_agree_with_shapes(entry: Entry) -> None:
    """An HDF5 file of ann-benchmarks is its arrays and a few kilobytes; the other format is 8 bytes and its rows."""
    for source in entry.sources:
        size = source.base.size
        if source.form == "hdf5":
            arrays = (entry.rows + entry.queries) * entry.row_bytes + entry.queries * 100 * 8
            assert size is not None and 0 < size - arrays < 16_384
        elif source.form == "bigann":
            assert size == 8 + source.total * entry.row_bytes
            assert source.queries is not None and source.queries.size == 8 + entry.queries * entry.row_bytes
            assert source.truths.keys() >= {entry.rows}
        elif source.form == "texmex":
            assert size is not None and size < entry.rows * entry.row_bytes * 2


def test_names_are_found_however_they_are_written() -> None:
    for name in ("sift1m", "SIFT1M", "SIFT-1M", "sift_1m", "sift-128-euclidean"):
        assert find(name).name == "sift1m"
    assert find("Deep-1B").name == "deep-1b"
    with pytest.raises(DatasetError, match=r"did you mean .*glove-100"):
        find("glove-10")
    with pytest.raises(DatasetError, match="known: sift1m, "):
        find("???")


def test_a_slice_of_a_billion_is_the_beginning_of_its_file() -> None:
    base, queries = plan(find("deep-1b"), rows=10_000_000)[0][:2]
    assert (base.bytes, base.verified, base.target.name) == (3_840_000_008, False, "base.1B.first-10000000.fbin")
    assert queries.bytes == 3_840_008
    http, ftp = plan(find("bigann-1b"), rows=1_000_000)
    assert http[0].bytes == 128_000_008
    assert ftp[0].bytes is not None and 132_000_000 < ftp[0].bytes < 134_000_000
    assert [each.name for each in ftp][2] == "bigann_gnd.tar.gz"


@pytest.mark.parametrize("rows", [0, -1, 1_000_001])
def test_rows_that_a_data_set_does_not_have(rows: int, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgumentError, match="it has 1,000,000"):
        fetch(find("sift1m"), rows=rows, folder=tmp_path)


def test_the_documents_name_every_data_set_with_its_shape() -> None:
    docs = Path(__file__).parents[2] / "docs"
    page = next(text for each in docs.glob("*.md") if "## The catalogue" in (text := each.read_text()))
    table = page.partition("## The catalogue")[2].partition("\nEach has")[0]
    for entry in ENTRIES:
        (row,) = [line for line in table.splitlines() if line.startswith("|") and f"`{entry.name}`" in line]
        cells = [cell.strip() for cell in row.split("|")]
        assert cells[5:7] == [entry.dtype, entry.metric] and str(entry.dim) in cells[4]
        assert cells[3] == f"{entry.queries:,}" and cells[7] in (entry.licence or "unverified")


# --- other addresses --------------------------------------------------------------------------------------------------


def urls_of(name: str, *given: str) -> list[list[tuple[str, ...]]]:
    return [[each.urls for each in source] for source in plan(find(name), urls=given)]


def test_another_address_of_a_file_is_tried_first() -> None:
    found = urls_of("sift1m", "file:///mnt/sift.tar.gz", "https://mirror.example/x/my-copy.hdf5")
    assert [each[0][0] for each in found] == ["https://mirror.example/x/my-copy.hdf5", "file:///mnt/sift.tar.gz"]
    found = urls_of("sift1m", "file:///mnt/sift.tar.gz")
    assert found[0][0][0] == "file:///mnt/sift.tar.gz"
    assert found[1][0] == find("sift1m").sources[0].base.urls


def test_another_folder_serves_all_files() -> None:
    base, queries, truth = urls_of("deep-10m", "https://mirror.example/deep/")[0]
    assert base[0] == "https://mirror.example/deep/base.1B.fbin"
    assert queries[0] == "https://mirror.example/deep/query.public.10K.fbin"
    assert truth[0] == "https://mirror.example/deep/deep-10M"


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("sift1m", "https://me:s3cret@mirror.example/sift.zip?token=s3cret"),
        ("sift1m", "sftp://me:s3cret@mirror.example/sift.tar.gz"),
        ("sift1m", "https://me:s3cret/#1@mirror.example/sift.tar.gz"),
    ],
)
def test_an_address_that_fits_nothing_keeps_its_secrets(name: str, url: str) -> None:
    with pytest.raises((InvalidArgumentError, DatasetError)) as error:
        urls_of(name, url)
    assert "s3cret" not in str(error.value) and "mirror.example" in str(error.value)


@pytest.mark.parametrize(
    ("name", "url", "reason"),
    [
        ("sift1m", "https://mirror.example/sift.zip", "ends in none of"),
        ("sift1m", "gopher://mirror.example/sift.tar.gz", "begins with https, http, ftp, file"),
        ("deep-10m", "https://mirror.example/base.txt", "ends in none of"),
        ("sift1m", "http://[::1/sift.tar.gz", "no address"),
        ("sift1m", "http://mirror.example:99999/sift.tar.gz", "no address"),
    ],
)
def test_an_address_that_fits_nothing(name: str, url: str, reason: str) -> None:
    with pytest.raises((InvalidArgumentError, DatasetError), match=reason):
        urls_of(name, url)


# --- catalogues of others ---------------------------------------------------------------------------------------------


def write(path: Path, catalogue: object) -> Path:
    path.write_text(json.dumps(catalogue))
    return path


def test_a_catalogue_file(tmp_path: Path) -> None:
    source = {
        "form": "bigann", "total": 100, "base": {"name": "b.fbin", "urls": ["http://e/b.fbin"], "size": 1_208},
        "queries": {"name": "q.fbin", "urls": ["ftp://e/q.fbin"]},
        "truths": {"10": {"name": "t", "urls": ["file:///t"], "checksum": f"md5:{'00' * 16}", "cited": "me"}},
    }  # fmt: skip
    (entry,) = read_catalogue(write(tmp_path / "c.json", [{**MADE_UP, "sources": [source], "aliases": ["t"]}]))
    assert entry.aliases == ("t",)
    assert entry.sources[0] == Source(
        "bigann",
        RemoteFile("b.fbin", ("http://e/b.fbin",), 1_208),
        100,
        RemoteFile("q.fbin", ("ftp://e/q.fbin",)),
        {10: RemoteFile("t", ("file:///t",), None, f"md5:{'00' * 16}", "me")},
    )


SOURCE = MADE_UP["sources"][0]
BASE = SOURCE["base"]


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ({"name": "../up"}, "not a plain file name"),
        ({"name": ""}, "not a plain file name"),
        ({"name": ".hidden"}, "not a plain file name"),
        ({"rows": 0}, "at least 1"),
        ({"rows": "many"}, "rows is 'many'"),
        ({"rows": True}, "rows is True"),
        ({"dtype": "f8"}, "unknown type 'f8'"),
        ({"metric": "cos"}, "unknown metric 'cos'"),
        ({"colour": "red"}, "no field colour"),
        ({"sources": []}, "no source"),
        ({"sources": ["x"]}, "needs an object for Source"),
        ({"sources": 5}, "sources is 5; needs a list"),
        ({"sources": {"form": "hdf5"}}, "needs a list"),
        ({"name": "a\0b"}, "not a plain file name"),
        ({"sources": [{**SOURCE, "base": {**BASE, "urls": ["http://[::1/x"]}}]}, "no address"),
        ({"sources": [{**SOURCE, "base": {**BASE, "urls": ["http://host:port/x"]}}]}, "no address"),
        ({"sources": [{**SOURCE, "base": {**BASE, "checksum": "md5:"}}]}, "checksum 'md5:'"),
        ({"sources": [{**SOURCE, "base": {**BASE, "checksum": f"sha256:{'0' * 63}"}}]}, "all its digits"),
        ({"sources": [{**SOURCE, "form": "csv"}]}, "unknown form 'csv'"),
        ({"sources": [{**SOURCE, "total": 9}]}, "9 rows of 10"),
        ({"sources": [{**SOURCE, "form": "bigann"}]}, "needs a file of queries"),
        ({"sources": [{**SOURCE, "form": "texmex"}]}, "members must name"),
        ({"sources": [{**SOURCE, "truths": {"ten": BASE}}]}, "truths must be"),
        ({"sources": [{**SOURCE, "base": {"name": "x"}}]}, "needs urls"),
        ({"sources": [{**SOURCE, "base": {**BASE, "urls": []}}]}, "has no URL"),
        ({"sources": [{**SOURCE, "base": {**BASE, "urls": ["x"]}}]}, "begins with"),
        ({"sources": [{**SOURCE, "base": {**BASE, "urls": [1]}}]}, "urls is"),
        ({"sources": [{**SOURCE, "base": {**BASE, "name": "a/b"}}]}, "not a plain file name"),
        ({"sources": [{**SOURCE, "base": {**BASE, "checksum": "crc:1"}}]}, "checksum 'crc:1'"),
        ({"sources": [{**SOURCE, "base": {**BASE, "checksum": "md5:xyz"}}]}, "checksum 'md5:xyz'"),
    ],
)
def test_a_catalogue_that_is_wrong(tmp_path: Path, change: dict[str, Any], reason: str) -> None:
    path = write(tmp_path / "c.json", [{**MADE_UP, **change}])
    with pytest.raises(DatasetError, match=reason) as error:
        read_catalogue(path)
    assert str(path) in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", '{"a": 1}', "7", "[7]", "\udcff", "[" * 100_000])
def test_a_file_that_is_no_catalogue(tmp_path: Path, text: str) -> None:
    path = tmp_path / "c.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DatasetError, match=r"c\.json"):
        read_catalogue(path)

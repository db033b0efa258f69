"""Index files of hnswlib, real, torn and hostile.

Rules out an element read differently from what hnswlib holds in memory, a damaged file that is taken for whole, that
ends in anything but one line, or that makes the reader allocate more than the file justifies.
"""

from __future__ import annotations

import shutil
import struct
import tracemalloc
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from corenn import CoreNN
from corenn.errors import CoreNNError, DatasetError, StorageError
from corenn.migrate import HnswFile, migrate_hnsw
from tests.migrate.indexes import gaussian, lists_of, make, save

HEADER = struct.Struct("<6QiI3QdQ")
FIELDS = ("level0_offset", "max_elements", "elements", "element_bytes", "label_offset", "vector_offset", "max_level",
          "entry", "max_m", "max_m0", "m", "mult", "ef_construction")  # fmt: skip
SMALL = 60  # elements of the index that is damaged


# --- what hnswlib holds -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("dim", "m", "rows"), [(1, 2, 90), (3, 4, 200), (8, 16, 300), (33, 5, 120), (2, 48, 250)])
def test_elements_are_those_that_hnswlib_holds(tmp_path: Path, dim: int, m: int, rows: int) -> None:
    labels = np.random.default_rng(1).permutation(rows * 10)[:rows]
    index = make("l2", gaussian(rows, dim), labels, m)
    for label in labels[::9]:
        index.mark_deleted(label)
    held: dict[str, Any] = index.__getstate__()[0]
    level0 = held["data_level0"].tobytes()
    with HnswFile(save(index, tmp_path / "index"), dim) as file:
        found, deleted = file.labels()
        edges, vectors = file.edges(0, rows), file.vectors(0, rows)
        upper = list(lists_of(file))
    assert (file.count, file.m, file.dim) == (rows, m, dim)
    assert sorted(found[deleted].tolist()) == sorted(labels[::9].tolist())
    links = np.frombuffer(held["link_lists"].tobytes(), np.uint32).reshape(-1, 1 + m).tolist()
    expected = []
    for element, level in enumerate(held["element_levels"][:rows].tolist()):
        mine, links = links[:level], links[level:]
        expected += [(element, names[1 : 1 + names[0]]) for names in reversed(mine)]
    assert upper == expected
    assert len({owner for owner, _ in upper}) > 1
    for element in range(rows):
        row = level0[element * held["size_data_per_element"] :]
        count = struct.unpack_from("<H", row)[0]
        assert edges.degrees[element] == count
        assert edges.neighbours[element, :count].tolist() == list(struct.unpack_from(f"<{count}I", row, 4))
        assert vectors[element].tobytes() == row[held["offset_data"] : held["label_offset"]]
        assert found[element] == struct.unpack_from("<Q", row, held["label_offset"])[0]


def test_searches_begin_at_the_highest_elements(tmp_path: Path) -> None:
    index = make("l2", gaussian(400, 4), m=3)
    held = index.__getstate__()[0]
    levels = held["element_levels"][:400]
    with HnswFile(save(index, tmp_path / "index"), 4) as file:
        highest = file.highest(20).tolist()
        assert sorted(file.highest(1000).tolist()) == list(range(400))
    assert highest[0] == held["enterpoint_node"]
    assert len(set(highest)) == 20
    assert levels[highest].min() >= np.sort(levels)[-20]


def test_ranges_give_what_the_whole_gives(tmp_path: Path) -> None:
    with HnswFile(save(make("l2", gaussian(150, 4), m=3), tmp_path / "index"), 4) as file:
        whole = list(lists_of(file))
        parts = [edges for start in range(0, 150, 40) for edges in file.upper_edges(start, min(start + 40, 150))]
        owners = np.concatenate([owners for owners, _ in parts]).tolist()
        assert owners == [owner for owner, _ in whole]
        assert (file.edges(30, 60).neighbours == file.edges(0, 150).neighbours[30:60]).all()


# --- files that are not what they should be ---------------------------------------------------------------------------


def read_all(path: Path, dim: int) -> None:
    """Read whatever is in a file; what is read must hold together."""
    with HnswFile(path, dim) as file:
        labels, _ = file.labels()
        assert len(labels) == file.count
        for start, stop in file.blocks():
            assert file.vectors(start, stop).shape == (stop - start, dim)
            edges = file.edges(start, stop)
            used = np.arange(edges.neighbours.shape[1]) < edges.degrees[:, None]
            assert (edges.neighbours[used] < file.count).all()
        assert all(name < file.count for _, names in lists_of(file) for name in names)


def write(path: Path, data: bytes) -> None:
    """Write a new file: some file systems wait for the disk where an old one is truncated."""
    path.unlink(missing_ok=True)
    path.write_bytes(data)


def refused(path: Path, data: bytes, dim: int = 4) -> str:
    """The one line with which `data` is refused."""
    write(path, data)
    with pytest.raises(DatasetError) as caught:
        read_all(path, dim)
    assert str(path) in str(caught.value)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """An index of 60 elements of 4 dimensions, three of them deleted."""
    index = make("l2", gaussian(SMALL, 4), np.arange(SMALL) * 3, m=3)
    for label in (0, 30, 60):
        index.mark_deleted(label)
    return save(index, tmp_path_factory.mktemp("small") / "index").read_bytes()


def patched(data: bytes, **fields: int) -> bytes:
    """The file with other values in its header."""
    values = dict(zip(FIELDS, HEADER.unpack_from(data), strict=True)) | fields
    return HEADER.pack(*values.values()) + data[HEADER.size :]


def test_the_dimensions_of_the_file_are_named(small: bytes, tmp_path: Path) -> None:
    assert "its dim is 4" in refused(tmp_path / "index", small, dim=5)


def test_vectors_that_are_no_floats_are_refused(tmp_path: Path) -> None:
    elements = b"".join(struct.pack("<HBB2I3BQ", 0, 0, 0, 0, 0, 1, 2, 3, 7) for _ in range(1))
    header = HEADER.pack(0, 1, 1, 23, 15, 12, 0, 0, 1, 2, 1, 1.0, 10)
    assert "float32" in refused(tmp_path / "index", header + elements + bytes(4), dim=3)


@pytest.mark.parametrize("dim", [0, -1, 1 << 40])
def test_dimensions_out_of_range_are_refused(small: bytes, tmp_path: Path, dim: int) -> None:
    (tmp_path / "index").write_bytes(small)
    with pytest.raises(DatasetError, match="dim="):
        HnswFile(tmp_path / "index", dim)


@pytest.mark.parametrize("data", [b"", b"x", bytes(95), bytes(96), b"\xff" * 96, b"\x93NUMPY" + bytes(500)])
def test_other_files_are_refused(tmp_path: Path, data: bytes) -> None:
    refused(tmp_path / "index", data)


def test_what_is_not_a_file_is_refused(tmp_path: Path) -> None:
    for path in (tmp_path, tmp_path / "nothing"):
        with pytest.raises(DatasetError, match="not a file"):
            HnswFile(path, 4)
    with pytest.raises(StorageError, match="cannot read"):
        HnswFile(tmp_path / ("x" * 300), 4)


WRONG: dict[str, list[int]] = {
    "level0_offset": [1, 4, 2**64 - 1],
    "max_elements": [0, SMALL - 1],
    "elements": [0, 1, SMALL - 1, SMALL + 1, 2**31, 2**32 + SMALL, 2**64 - 1],
    "element_bytes": [0, 51, 53, 56, 2**32, 2**64 - 1],
    "label_offset": [0, 43, 45, 48, 2**64 - 1],
    "vector_offset": [0, 27, 29, 32, 2**64 - 1],
    "max_level": [-1, 0, 1, 40, 2**31 - 1, -(2**31)],
    "entry": [0, SMALL, 2**32 - 1],
    "max_m": [0, 2, 4, 2**64 - 1],
    "max_m0": [0, 5, 7, 2**64 - 1],
    "m": [0, 2, 4, 2**63, 2**64 - 1],
}


def test_all_fields_of_the_header_are_tried() -> None:
    assert {*WRONG, "mult", "ef_construction"} == set(FIELDS)  # these two are not read


@pytest.mark.parametrize("field", WRONG)
def test_a_wrong_field_of_the_header_is_refused(small: bytes, tmp_path: Path, field: str) -> None:
    for value in WRONG[field]:
        refused(tmp_path / "index", patched(small, **{field: value}))


def test_a_torn_file_is_refused_wherever_it_ends(small: bytes, tmp_path: Path) -> None:
    for length in {*range(0, len(small), 11), *range(90, 100), *range(len(small) - 40, len(small))}:
        refused(tmp_path / "index", small[:length])


@pytest.mark.parametrize("extra", [1, 4, 16, 4096])
def test_bytes_behind_the_end_are_refused(small: bytes, tmp_path: Path, extra: int) -> None:
    refused(tmp_path / "index", small + bytes(extra))


def element_at(element: int) -> int:
    return HEADER.size + element * (4 + 6 * 4 + 4 * 4 + 8)


@pytest.mark.parametrize(
    ("offset", "value", "said"),
    [(0, struct.pack("<H", 7), "7 neighbours where 6"), (0, struct.pack("<H", 65535), "65535 neighbours"),
     (2, b"\x02", "deleted mark"), (3, b"\x01", "deleted mark"), (4, struct.pack("<I", SMALL), f"neighbour {SMALL}"),
     (4, struct.pack("<I", 2**32 - 1), "neighbour 4294967295")],
)  # fmt: skip
def test_links_that_lead_nowhere_are_refused(
    small: bytes, tmp_path: Path, offset: int, value: bytes, said: str
) -> None:
    at = element_at(17) + offset
    message = refused(tmp_path / "index", small[:at] + value + small[at + len(value) :])
    assert said in message
    assert "element 17" in message


def test_a_neighbour_above_its_own_level_is_refused(small: bytes, tmp_path: Path) -> None:
    path = tmp_path / "index"
    path.write_bytes(small)
    with HnswFile(path, 4) as file:
        owner, _ = next(lists_of(file))
        low = next(each for each in range(SMALL) if each not in {owner for owner, _ in lists_of(file)})
    # The first list stands behind the sizes of the elements up to its owner.
    at = element_at(SMALL) + 4 * (owner + 1) + 4
    assert struct.unpack_from("<I", small, at - 8)[0]
    assert f"element {owner} has the neighbour {low}" in refused(
        path, small[:at] + struct.pack("<I", low) + small[at + 4 :]
    )


# --- fuzz -------------------------------------------------------------------------------------------------------------

EXTREMES = [0, 1, 2, 3, 0x7F, 0xFF, 0xFFFF, 0x10000, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1]


@st.composite
def damaged(draw: st.DrawFn, data: bytes) -> bytes:
    """`data` after one to four injuries."""
    for _ in range(draw(st.integers(1, 4))):
        kind = draw(st.sampled_from(["flip", "word", "field", "truncate", "extend", "splice", "repeat"]))
        at = draw(st.integers(0, max(0, len(data) - 1)))
        if kind == "flip" and data:
            data = data[:at] + bytes([data[at] ^ draw(st.integers(1, 255))]) + data[at + 1 :]
        elif kind == "word":
            at -= at % 4
            value = draw(st.sampled_from(EXTREMES) | st.integers(0, 2**32 - 1)) & 0xFFFFFFFF
            data = data[:at] + struct.pack("<I", value) + data[at + 4 :]
        elif kind == "field":
            at = draw(st.integers(0, 11)) * 8
            value = draw(st.sampled_from(EXTREMES) | st.integers(0, 2 * SMALL))
            data = data[:at] + struct.pack("<Q", value) + data[at + 8 :]
        elif kind == "truncate":
            data = data[:at]
        elif kind == "extend":
            data += draw(st.binary(min_size=1, max_size=64))
        elif kind == "splice":
            length = draw(st.integers(1, 200))
            source = draw(st.integers(0, max(0, len(data) - 1)))
            data = data[:at] + data[source : source + length] + data[at + length :]
        else:
            data = data[:at] + data[at - draw(st.integers(0, at)) : at] + data[at:]
    return data


def survives(path: Path, data: bytes) -> bool:
    """Whether `data` can be read; it is read right or refused, in memory that it justifies."""
    write(path, data)
    tracemalloc.start()
    try:
        read_all(path, 4)
        sound = True
    except DatasetError as error:
        assert "\n" not in str(error)
        sound = False
    finally:
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert peak < 500_000 + 64 * len(data)
    return sound


def migrates(path: Path) -> None:
    """A file that can be read becomes a database without a fault, or is refused for what a database cannot hold."""
    out = path.with_name("database")
    try:
        with HnswFile(path, 4) as file:
            made = migrate_hnsw(file, out, metric="l2", duplicates="last")
    except CoreNNError as error:
        assert isinstance(error, DatasetError)
        assert not out.exists()
        return
    with CoreNN.open(out) as db:
        assert db.verify().ok
        assert len(db) == made.rows
    shutil.rmtree(out)


@given(st.data())
@settings(max_examples=200)
def test_a_damaged_file_is_right_or_refused(small: bytes, tmp_path: Path, data: st.DataObject) -> None:
    survives(tmp_path / "index", data.draw(damaged(small)))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@given(st.data())
@settings(max_examples=20_000)
def test_damaged_files_are_refused_or_migrate(small: bytes, tmp_path: Path, data: st.DataObject) -> None:
    if survives(tmp_path / "index", data.draw(damaged(small))):
        migrates(tmp_path / "index")


@given(st.integers(0, SMALL - 1), st.integers(4, 51), st.binary(min_size=1, max_size=12))
@settings(max_examples=12)
def test_a_damaged_element_is_refused_or_migrates(
    small: bytes, tmp_path: Path, element: int, offset: int, value: bytes
) -> None:
    at = element_at(element) + offset
    if survives(tmp_path / "index", small[:at] + value + small[at + len(value) :]):
        migrates(tmp_path / "index")

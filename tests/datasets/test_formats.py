"""Every format of vector files against the contract, and what only one of them can get wrong."""

from __future__ import annotations

import json
import struct
import warnings
from pathlib import Path
from typing import Any, ClassVar

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from corenn.datasets import ENDINGS, create_vectors, open_vectors
from corenn.datasets.dtypes import NAMES, converted, dtype_named, name_of
from corenn.datasets.vectors import carried, fitting
from corenn.errors import DatasetError, InvalidArgumentError

from .contract import FormatContract, Rows, read, same, some_rows, written

h5py = pytest.importorskip("h5py")
pa = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

NATIVE = ("f32", "f16", "f64", "i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64")


# --- NumPy ------------------------------------------------------------------------------------------------------------


class TestNpy(FormatContract):
    ending, dtypes = ".npy", NATIVE

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        np.save(path, rows)

    def read_elsewhere(self, path: Path) -> Rows:
        found: Rows = np.load(path)
        return found

    @pytest.mark.parametrize("version", [(1, 0), (2, 0), (3, 0)])
    def test_every_version_either_order_and_foreign_bytes(self, tmp_path: Path, version: tuple[int, int]) -> None:
        rows = some_rows(9, 4, "f32")
        for array in (rows, np.asfortranarray(rows), rows.astype(">f4"), np.asfortranarray(rows.astype(">f4"))):
            with (tmp_path / "a.npy").open("wb") as file, warnings.catch_warnings(action="ignore"):
                np.lib.format.write_array(file, array, version)
            assert same(read(tmp_path / "a.npy"), rows)

    @pytest.mark.parametrize(
        "array",
        [
            np.zeros(3), np.zeros((2, 2, 2)), np.zeros((0, 4)), np.zeros((4, 0)), np.zeros((2, 2), complex),
            np.zeros((2, 2), bool), np.zeros((2, 2), "U3"), np.zeros((2, 2), [("a", "f4")]), np.array([[None]]),
            np.zeros((2, 2), ml_dtypes.bfloat16),
        ],
    )  # fmt: skip
    def test_other_arrays_are_refused(self, tmp_path: Path, array: Any) -> None:
        np.save(tmp_path / "a.npy", array, allow_pickle=True)
        with pytest.raises(DatasetError, match=r"a\.npy"):
            open_vectors(tmp_path / "a.npy")

    @pytest.mark.parametrize(
        "shape", ["(-2, 3)", "(2, 3, )*9", f"({2**62}, {2**62})", "(2, 3.0)", "(" * 500, "-" * 9_000 + "1"]
    )
    def test_hostile_headers(self, tmp_path: Path, shape: str) -> None:
        header = f"{{'descr': '<f4', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x01\0" + struct.pack("<H", len(header)) + header + bytes(24))
        with pytest.raises(DatasetError, match=r"a\.npy"):
            open_vectors(tmp_path / "a.npy")

    def test_a_header_of_gigabytes_is_not_allocated(self, tmp_path: Path) -> None:
        (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\x02\0" + struct.pack("<I", 2**32 - 1) + bytes(100))
        with pytest.raises(DatasetError, match=r"a\.npy"):
            open_vectors(tmp_path / "a.npy")


# --- TexMex -----------------------------------------------------------------------------------------------------------


class Texmex(FormatContract):
    whole_rows_look_whole = True
    code: ClassVar[str]

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        path.write_bytes(b"".join(struct.pack(f"<i{len(row)}{self.code}", len(row), *row.tolist()) for row in rows))

    def read_elsewhere(self, path: Path) -> Rows:
        content = path.read_bytes()
        dim = struct.unpack_from("<i", content)[0]
        found = np.array([row[1:] for row in struct.iter_unpack(f"<i{dim}{self.code}", content)])
        return found.astype(dtype_named(self.dtypes[0]))

    def test_a_row_of_another_dimension(self, tmp_path: Path) -> None:
        path = self.file(tmp_path, 9, 4)
        stride = path.stat().st_size // 9
        for row in (4, 8):
            content = bytearray(path.read_bytes())
            content[row * stride : row * stride + 4] = struct.pack("<i", 5)
            (tmp_path / f"odd{self.ending}").write_bytes(content)
            with pytest.raises(DatasetError, match=f"row {row} says 5 dimensions, the first 4"):
                read(tmp_path / f"odd{self.ending}")

    @pytest.mark.parametrize("dim", [0, -1, 2**31 - 1, 2**20 + 1])
    def test_hostile_dimensions(self, tmp_path: Path, dim: int) -> None:
        (tmp_path / f"a{self.ending}").write_bytes(struct.pack("<i", dim) + bytes(400))
        with pytest.raises(DatasetError, match="dimensions"):
            open_vectors(tmp_path / f"a{self.ending}")


class TestFvecs(Texmex):
    ending, dtypes, code = ".fvecs", ("f32",), "f"


class TestIvecs(Texmex):
    ending, dtypes, code = ".ivecs", ("i32",), "i"


class TestBvecs(Texmex):
    ending, dtypes, code = ".bvecs", ("u8",), "B"


# --- big-ann ----------------------------------------------------------------------------------------------------------


class BigAnn(FormatContract):
    code: ClassVar[str]

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        path.write_bytes(struct.pack(f"<II{rows.size}{self.code}", *rows.shape, *rows.ravel().tolist()))

    def read_elsewhere(self, path: Path) -> Rows:
        content = path.read_bytes()
        rows, dim = struct.unpack_from("<II", content)
        found = np.array(struct.unpack_from(f"<{rows * dim}{self.code}", content, 8)).reshape(rows, dim)
        assert len(content) == 8 + found.size * struct.calcsize(self.code)
        return found.astype(dtype_named(self.dtypes[0]))

    @pytest.mark.parametrize("header", [(0, 4), (4, 0), (2**32 - 1, 2**32 - 1), (1, 5), (3, 4)])
    def test_headers_that_do_not_fit(self, tmp_path: Path, header: tuple[int, int]) -> None:
        size = 2 * 4 * struct.calcsize(self.code)
        (tmp_path / f"a{self.ending}").write_bytes(struct.pack("<II", *header) + bytes(size))
        with pytest.raises(DatasetError, match=rf"a{self.ending}"):
            open_vectors(tmp_path / f"a{self.ending}")

    def test_a_file_of_many_gigabytes_opens_at_once(self, tmp_path: Path) -> None:
        rows = 2**32 - 1
        path = tmp_path / f"sparse{self.ending}"
        with path.open("wb") as file:
            file.write(struct.pack("<II", rows, 2))
            file.truncate(8 + rows * 2 * struct.calcsize(self.code))
        with open_vectors(path) as opened:
            assert opened.shape == (rows, 2)
            assert not opened.rows(rows - 3, rows).any()


class TestFbin(BigAnn):
    ending, dtypes, code = ".fbin", ("f32",), "f"


class TestF16bin(BigAnn):
    ending, dtypes, code = ".f16bin", ("f16",), "e"


class TestU8bin(BigAnn):
    ending, dtypes, code = ".u8bin", ("u8",), "B"


class TestI8bin(BigAnn):
    ending, dtypes, code = ".i8bin", ("i8",), "b"


class TestIbin(BigAnn):
    ending, dtypes, code = ".ibin", ("i32",), "i"


# --- HDF5 -------------------------------------------------------------------------------------------------------------


class TestHdf5(FormatContract):
    ending, dtypes = ".hdf5", NATIVE

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        with h5py.File(path, "w") as file:
            file.create_dataset("train", data=rows)

    def read_elsewhere(self, path: Path) -> Rows:
        with h5py.File(path) as file:
            found: Rows = file["train"][:]
        return found

    def test_a_tail_is_refused(self, tmp_path: Path) -> None:
        """HDF5 allows one, and nothing in it is read."""
        path = self.file(tmp_path)
        path.write_bytes(path.read_bytes() + b"\x01")
        assert same(read(path), self.rows())

    @pytest.mark.parametrize("metric", [("l2", "euclidean"), ("cosine", "angular"), ("ip", "ip")])
    def test_attributes_are_those_of_ann_benchmarks(self, tmp_path: Path, metric: tuple[str, str]) -> None:
        path = written(tmp_path / "a.hdf5", some_rows(5, 6, "f32"), metric=metric[0])
        with h5py.File(path) as file:
            assert dict(file.attrs) == {
                "type": "dense", "distance": metric[1], "dimension": 6, "point_type": "float",
            }  # fmt: skip
        with open_vectors(path) as opened:
            assert opened.metric == metric[0]

    def test_attributes_stay_those_of_the_vectors(self, tmp_path: Path) -> None:
        path = written(tmp_path / "a.hdf5", some_rows(5, 6, "f32"))
        written(path, some_rows(5, 1, "i32"), part="clusters")
        with h5py.File(path) as file:
            assert (file.attrs["dimension"], file.attrs["point_type"]) == (6, "float")
        written(path, some_rows(5, 3, "i32"), part="train")
        with h5py.File(path) as file:
            assert (file.attrs["dimension"], file.attrs["point_type"]) == (3, "int")

    def test_parts_are_kept_beside_each_other(self, tmp_path: Path) -> None:
        path, train, test = tmp_path / "a.h5", some_rows(9, 4, "f32"), some_rows(3, 4, "f32", 1)
        written(path, train, metric="cosine")
        written(path, test, part="test")
        assert same(read(path), train) and same(read(path, part="test"), test)
        written(path, test, part="train")
        assert same(read(path), test) and same(read(path, part="test"), test)
        with open_vectors(path, "test") as opened:
            assert opened.metric == "cosine"
        written(path, train)
        with pytest.raises(DatasetError, match="no data set 'test'; has 'train'"):
            open_vectors(path, "test")

    def test_compressed_and_chunked(self, tmp_path: Path) -> None:
        rows = some_rows(100, 8, "f32")
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file.create_dataset("train", data=rows, chunks=(7, 3), compression="gzip", shuffle=True)
        assert same(read(tmp_path / "a.hdf5"), rows)

    def test_what_was_never_written_is_torn(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file.create_dataset("train", (10**9, 100), "f4")
            file.create_dataset("chunks", (100, 4), "f4", chunks=(10, 4))[:20] = 1
            file.create_dataset("huge", (10**7, 400), "f4", chunks=(10**6, 400))
        for part, said in (
            ("train", "0 of 400,000,000,000 bytes"),
            ("chunks", "2 of 10 chunks"),
            ("huge", "too large"),
        ):
            with pytest.raises(DatasetError, match=said):
                open_vectors(tmp_path / "a.hdf5", part)

    def test_data_outside_of_the_file_is_not_read(self, tmp_path: Path) -> None:
        (tmp_path / "secret").write_bytes(bytes(64))
        self.write_elsewhere(tmp_path / "other.hdf5", self.rows())
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file.create_dataset("outside", (4, 4), "f4", external=[("secret", 0, 64)])
            file["link"] = h5py.ExternalLink("other.hdf5", "train")
            file["soft"] = h5py.SoftLink("/nowhere")
            layout = h5py.VirtualLayout((7, 3), "f4")
            layout[:] = h5py.VirtualSource("other.hdf5", "train", (7, 3))
            file.create_virtual_dataset("virtual", layout)
            file.create_group("group")
        for part in ("outside", "link", "soft", "virtual", "group"):
            with pytest.raises(DatasetError, match="not a data set stored in this file"):
                open_vectors(tmp_path / "a.hdf5", part)

    def test_other_data_sets_are_refused(self, tmp_path: Path) -> None:
        with h5py.File(tmp_path / "a.hdf5", "w") as file:
            file["flat"], file["bits"], file["none"] = np.zeros(3), np.zeros((3, 8), bool), np.zeros((0, 3))
            file["text"] = [["a", "b"]]
        for part in ("flat", "bits", "none", "text"):
            with pytest.raises(DatasetError, match=part):
                open_vectors(tmp_path / "a.hdf5", part)


# --- Arrow ------------------------------------------------------------------------------------------------------------


class Tables(FormatContract):
    dtypes = NATIVE

    def write_table(self, path: Path, table: Any, batch: int = 1000) -> None:
        raise NotImplementedError

    def read_table(self, path: Path) -> Any:
        raise NotImplementedError

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        lists = pa.array(list(rows), pa.list_(pa.from_numpy_dtype(rows.dtype)))
        self.write_table(path, pa.table({"id": np.arange(len(rows)), "emb": lists}), 4)

    def read_elsewhere(self, path: Path) -> Rows:
        column = self.read_table(path).column("vector")
        return np.stack(column.to_numpy())

    def held_elsewhere(self) -> int:
        return int(pa.total_allocated_bytes())

    def lists(self, kind: Any) -> Any:
        return pa.array([[1, 2], [3, 4], [5, 6]], kind)

    def test_every_kind_of_list(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.ending}"
        for kind in (pa.list_(pa.float32()), pa.large_list(pa.float32()), pa.list_(pa.float32(), 2)):
            whole = pa.table({"vector": pa.chunked_array([self.lists(kind), self.lists(kind).slice(1)])})
            self.write_table(path, whole, 2)
            assert read(path).tolist() == [[1, 2], [3, 4], [5, 6], [3, 4], [5, 6]]

    def test_the_column_is_chosen(self, tmp_path: Path) -> None:
        path, numbers = tmp_path / f"a{self.ending}", self.lists(pa.list_(pa.int8()))
        self.write_table(path, pa.table({"id": [1, 2, 3], "emb": numbers}))
        assert read(path).tolist() == [[1, 2], [3, 4], [5, 6]]
        with pytest.raises(DatasetError, match="no column 'x'; has 'id', 'emb'"):
            open_vectors(path, "x")
        with pytest.raises(DatasetError, match="'id' is int64; needs lists of numbers"):
            open_vectors(path, "id")
        self.write_table(path, pa.table({"a": numbers, "b": numbers}))
        with pytest.raises(DatasetError, match="several columns of vectors, 'a', 'b'"):
            open_vectors(path)
        assert read(path, part="b").tolist() == [[1, 2], [3, 4], [5, 6]]
        self.write_table(path, pa.table({"a": numbers, "vector": numbers.slice(0, 3)}))
        assert len(read(path)) == 3

    @pytest.mark.parametrize(
        "values", [[[1, 2], [3]], [[1, 2], None], [[1, 2], [3, None]], [[], []], [[1, 2]] * 5 + [[1]] + [[1, 2]] * 5]
    )
    def test_ragged_and_missing(self, tmp_path: Path, values: list[Any]) -> None:
        path = tmp_path / f"a{self.ending}"
        self.write_table(path, pa.table({"vector": pa.array(values, pa.list_(pa.float32()))}), 2)
        with pytest.raises(DatasetError, match=r"no vector|dimensions|missing"):
            read(path)

    def test_no_rows(self, tmp_path: Path) -> None:
        path = tmp_path / f"a{self.ending}"
        self.write_table(path, pa.table({"vector": pa.array([], pa.list_(pa.float32(), 4))}))
        with pytest.raises(DatasetError, match="empty"):
            open_vectors(path)

    def test_going_back_and_forth(self, tmp_path: Path) -> None:
        rows = some_rows(40, 2, "f32")
        self.write_elsewhere(tmp_path / f"a{self.ending}", rows)
        with open_vectors(tmp_path / f"a{self.ending}") as opened:
            for first, last in ((0, 3), (30, 40), (2, 17), (17, 18), (0, 40), (39, 40)):
                assert same(opened.rows(first, last), rows[first:last])

    def test_a_tail_is_refused(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        path.write_bytes(path.read_bytes() + b"\x01")
        with pytest.raises(DatasetError, match=rf"whole{self.ending}"):
            read(path)


class TestParquet(Tables):
    ending = ".parquet"

    def write_table(self, path: Path, table: Any, batch: int = 1000) -> None:
        parquet.write_table(table, path, row_group_size=batch)

    def read_table(self, path: Path) -> Any:
        return parquet.read_table(path)


class TestArrow(Tables):
    ending = ".arrow"

    def write_table(self, path: Path, table: Any, batch: int = 1000) -> None:
        with pa.ipc.new_file(str(path), table.schema) as out:
            out.write_table(table, max_chunksize=batch)

    def read_table(self, path: Path) -> Any:
        return pa.ipc.open_file(str(path)).read_all()

    def test_a_closed_file_is_not_mapped_any_more(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        opened = open_vectors(path)
        opened.rows(0, 2)
        opened.close()
        maps = Path("/proc/self/maps")
        assert not maps.exists() or str(path) not in maps.read_text()

    def test_compressed_feather(self, tmp_path: Path) -> None:
        feather, rows = pytest.importorskip("pyarrow.feather"), some_rows(300, 8, "f32")
        for compression in ("lz4", "zstd", "uncompressed"):
            table = pa.table({"x": ["text"] * 300, "v": pa.array(list(rows))})
            feather.write_feather(table, str(tmp_path / "a.feather"), compression=compression, chunksize=70)
            assert same(read(tmp_path / "a.feather"), rows)


# --- raw --------------------------------------------------------------------------------------------------------------


class TestRaw(FormatContract):
    ending, dtypes, foreign = ".raw", tuple(NAMES), False

    def beside(self, whole: Path, name: str) -> Path:
        copy = super().beside(whole, name)
        copy.with_name(f"{copy.name}.json").write_bytes(whole.with_name(f"{whole.name}.json").read_bytes())
        return copy

    def test_nothing_and_something_else(self, tmp_path: Path) -> None:
        """Any bytes of the right length are numbers."""
        other = self.beside(self.file(tmp_path), "other")
        for content in (b"", b"\0", b"\xff" * 200):
            other.write_bytes(content)
            with pytest.raises(DatasetError, match=r"other\.raw"):
                open_vectors(other)

    def test_dim_and_type_are_all_it_needs(self, tmp_path: Path) -> None:
        rows = some_rows(6, 4, "bf16")
        (tmp_path / "a.bin").write_bytes(rows.tobytes())
        with pytest.raises(DatasetError, match=r"a\.bin has no header; say what it holds in a\.bin\.json"):
            open_vectors(tmp_path / "a.bin")
        (tmp_path / "a.bin.json").write_text('{"dim": 4, "dtype": "bf16"}')
        assert same(read(tmp_path / "a.bin"), rows)

    @pytest.mark.parametrize(
        "manifest",
        [
            {}, {"dim": 4}, {"dtype": "f32"}, {"dim": "4", "dtype": "f32"}, {"dim": 0, "dtype": "f32"},
            {"dim": True, "dtype": "f32"}, {"dim": 4, "dtype": "f31"}, {"dim": 4, "dtype": 1},
            {"dim": 7, "dtype": "f32"}, {"dim": 4, "dtype": "f32", "count": 5}, {"dim": 2**40, "dtype": "f32"}, [], "x", None,  # noqa: E501
        ],
    )  # fmt: skip
    def test_manifests_that_do_not_fit(self, tmp_path: Path, manifest: Any) -> None:
        (tmp_path / "a.raw").write_bytes(bytes(6 * 4 * 4))
        (tmp_path / "a.raw.json").write_text(json.dumps(manifest))
        with pytest.raises(DatasetError, match=r"a\.raw"):
            open_vectors(tmp_path / "a.raw")

    def test_the_metric_is_kept(self, tmp_path: Path) -> None:
        with open_vectors(written(tmp_path / "a.raw", self.rows(), metric="ip")) as opened:
            assert opened.metric == "ip"


# --- endings and types ------------------------------------------------------------------------------------------------


def test_every_ending_is_under_contract() -> None:
    tested = {each.ending for each in _contracts(FormatContract) if hasattr(each, "ending")}
    assert tested == set(ENDINGS) - {".h5", ".feather", ".bin"}  # other names of the same formats
    for each in _contracts(FormatContract):
        if hasattr(each, "ending"):
            assert {name_of(dtype) for dtype in carried(Path(f"x{each.ending}"))} == set(each.dtypes)


def _contracts(base: type[FormatContract]) -> list[type[FormatContract]]:
    return [one for each in base.__subclasses__() for one in (each, *_contracts(each))]


@pytest.mark.parametrize("name", ["a", "a.csv", "a.tar.gz", ".npy", "a.fvecs.part"])
def test_unknown_endings(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"x")
    for action in (lambda path: open_vectors(path), lambda path: create_vectors(path, 3, "f32")):
        with pytest.raises(DatasetError, match=r"unknown format; the name must end in one of \.npy"):
            action(tmp_path / name)


def test_endings_in_capitals(tmp_path: Path) -> None:
    assert same(read(written(tmp_path / "A.FVECS", some_rows(4, 3, "f32"))), some_rows(4, 3, "f32"))


def test_the_type_that_fits() -> None:
    assert name_of(fitting(Path("a.fvecs"), dtype_named("u8"))) == "f32"
    assert name_of(fitting(Path("a.npy"), dtype_named("u8"))) == "u8"
    assert name_of(fitting(Path("a.npy"), dtype_named("bf16"))) == "f32"


@pytest.mark.parametrize(
    ("value", "given", "to"),
    [
        (0.5, "f32", "i8"), (128.0, "f32", "i8"), (-1.0, "f32", "u8"), (np.nan, "f32", "i32"), (np.inf, "f64", "i64"),
        (2.0**31, "f32", "i32"), (2.0**63, "f64", "i64"), (2.0**64, "f64", "u64"), (-1, "i8", "u64"),
        (2**63, "u64", "i64"), (256, "i16", "u8"), (70000.0, "f32", "f16"), (1e39, "f64", "f32"), (3.4e38, "f32", "f16"), (0.1, "bf16", "u8"),  # noqa: E501
        (65520, "i32", "f16"),
    ],
)  # fmt: skip
def test_values_that_would_be_lost(value: float, given: str, to: str) -> None:
    block = np.zeros((3, 2), dtype_named(given))
    block[1, 1] = value
    with pytest.raises(DatasetError, match=rf"file, row 11: .* cannot be kept as {to}"):
        converted(block, dtype_named(to), "file", 10)


@given(st.lists(st.integers(-128, 127), min_size=1), st.sampled_from(sorted(NAMES)), st.sampled_from(sorted(NAMES)))
def test_small_whole_numbers_survive_any_conversion(numbers: list[int], given_: str, to: str) -> None:
    if given_[0] == "u" or to[0] == "u":
        numbers = [abs(number) % 128 for number in numbers]
    block = np.array([numbers]).astype(dtype_named(given_))
    found = converted(block, dtype_named(to), "file")
    assert found.dtype == dtype_named(to) and found.flags.c_contiguous
    assert found.astype(np.int64).tolist() == [numbers]


def test_infinity_and_nan_stay_what_they_are() -> None:
    for to in ("f16", "bf16", "f32", "f64"):
        found = converted(np.array([[np.inf, -np.inf, np.nan]], np.float32), dtype_named(to), "file")
        assert np.array_equal(found.astype(np.float64), [[np.inf, -np.inf, np.nan]], equal_nan=True)


@pytest.mark.parametrize("ending", [".npy", ".raw", ".hdf5", ".fvecs"])
def test_dimensions_of_any_integer_type_and_known_metrics_only(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"a{ending}"
    with create_vectors(path, np.int64(3), "f32") as out:  # type: ignore[arg-type]
        out.append(some_rows(2, 3, "f32"))
    assert same(read(path), some_rows(2, 3, "f32"))
    with pytest.raises(InvalidArgumentError, match="unknown metric 'l1'"):
        create_vectors(path, 3, "f32", metric="l1")

"""What every format of vector files must do; a subclass for each says how others write and read it."""

from __future__ import annotations

import os
import tracemalloc
from itertools import pairwise
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from corenn.datasets import create_vectors, open_vectors, vectors
from corenn.datasets.dtypes import dtype_named, is_integer
from corenn.errors import DatasetError, InvalidArgumentError

Rows = NDArray[Any]
MEGABYTE = 1 << 20


def some_rows(rows: int, dim: int, dtype: str, seed: int = 0) -> Rows:
    """Rows that every value of which `dtype` holds exactly."""
    kind = dtype_named(dtype)
    low, high = (0, 100) if dtype.startswith("u") else (-100, 100)
    numbers = np.random.default_rng(seed).integers(low, high, (rows, dim))
    return numbers.astype(kind) if is_integer(kind) else (numbers / 4).astype(kind)


def written(path: Path, rows: Rows, **options: Any) -> Path:
    """`path` with `rows` in it, in blocks of three."""
    with create_vectors(path, rows.shape[1], rows.dtype, **options) as out:
        for first in range(0, len(rows), 3):
            out.append(rows[first : first + 3])
    return path


def read(path: Path, **options: Any) -> Rows:
    """All rows of `path`."""
    with open_vectors(path, **options) as opened:
        return np.concatenate([block.copy() for _, block in opened.blocks(5)])


def same(one: Rows, other: Rows) -> bool:
    return one.dtype == other.dtype and one.shape == other.shape and one.tobytes() == other.tobytes()


class FormatContract:
    """Rules out rows that come back changed, in another order or of another type; a torn, overlong, empty or foreign
    file that is read as if it were whole; a half file under the final name; and memory that grows with the file.
    """

    ending: ClassVar[str]
    dtypes: ClassVar[tuple[str, ...]]
    whole_rows_look_whole: ClassVar[bool] = False  # cut between rows, the file is a shorter one of the same format
    foreign: ClassVar[bool] = True  # someone else's code can write and read it

    def write_elsewhere(self, path: Path, rows: Rows) -> None:
        """Write `rows` without our code."""
        raise NotImplementedError

    def read_elsewhere(self, path: Path) -> Rows:
        """Read all rows without our code."""
        raise NotImplementedError

    def rows(self, count: int = 7, dim: int = 3) -> Rows:
        return some_rows(count, dim, self.dtypes[0])

    def file(self, folder: Path, count: int = 7, dim: int = 3) -> Path:
        return written(folder / f"whole{self.ending}", self.rows(count, dim))

    # --- round trips --------------------------------------------------------------------------------------------------

    def test_every_type_comes_back(self, tmp_path: Path) -> None:
        for dtype in self.dtypes:
            rows = some_rows(11, 4, dtype)
            path = written(tmp_path / f"{dtype}{self.ending}", rows)
            with open_vectors(path) as opened:
                assert (opened.path, opened.shape, len(opened), opened.dim) == (path, (11, 4), 11, 4)
                assert opened.dtype == rows.dtype
            assert same(read(path), rows)

    def test_what_others_write_is_read_and_the_other_way_round(self, tmp_path: Path) -> None:
        if not self.foreign:
            pytest.skip("nobody else writes it")
        for dtype in self.dtypes:
            rows = some_rows(6, 5, dtype)
            theirs, ours = tmp_path / f"theirs{self.ending}", tmp_path / f"ours{self.ending}"
            self.write_elsewhere(theirs, rows)
            assert same(read(theirs), rows)
            assert same(self.read_elsewhere(written(ours, rows)), rows)

    def test_other_types_are_refused_with_the_formats_that_take_them(self, tmp_path: Path) -> None:
        for dtype in {"f16", "bf16", "i8", "f64"} - set(self.dtypes):
            with pytest.raises(DatasetError, match=rf"not {dtype}; {dtype} goes into .*\.raw"):
                create_vectors(tmp_path / f"x{self.ending}", 3, dtype)

    @settings(max_examples=25, suppress_health_check=list(HealthCheck))
    @given(
        shape=st.tuples(st.integers(1, 60), st.integers(1, 9)), announced=st.booleans(), seed=st.integers(0, 2**32),
        cuts=st.lists(st.integers(0, 60)), ranges=st.lists(st.tuples(st.integers(0, 60), st.integers(0, 60))),
    )  # fmt: skip
    @example(shape=(1, 1), announced=False, seed=0, cuts=[], ranges=[])
    def test_rows_of_any_shape_by_blocks_and_ranges(
        self,
        tmp_path: Path,
        shape: tuple[int, int],
        announced: bool,
        seed: int,
        cuts: list[int],
        ranges: list[tuple[int, int]],
    ) -> None:
        rows = some_rows(*shape, self.dtypes[seed % len(self.dtypes)], seed)
        path = tmp_path / f"any{self.ending}"
        with create_vectors(path, shape[1], rows.dtype, len(rows) if announced else None) as out:
            edges = sorted({0, len(rows), *(cut % len(rows) for cut in cuts)})
            for first, last in pairwise(edges):
                out.append(rows[first:last])
        with open_vectors(path) as opened:
            for one, other in ranges:
                first, last = sorted((one % (len(rows) + 1), other % (len(rows) + 1)))
                part = opened.rows(first, last)
                assert same(part, rows[first:last])
                assert part.flags.c_contiguous
            size = 1 + seed % 7
            blocks = list(opened.blocks(size))
            assert [first for first, _ in blocks] == list(range(0, len(rows), size))
            assert same(np.concatenate([block for _, block in blocks]), rows)
            middle = list(opened.blocks(size, len(rows) // 3, len(rows) // 2 + 1))
            assert same(np.concatenate([block for _, block in middle]), rows[len(rows) // 3 : len(rows) // 2 + 1])

    def test_rows_out_of_bounds_are_refused(self, tmp_path: Path) -> None:
        with open_vectors(self.file(tmp_path)) as opened:
            for bounds in ((-1, 2), (3, 2), (0, 8), (8, 9)):
                with pytest.raises(InvalidArgumentError, match="of 7"):
                    opened.rows(*bounds)
            assert opened.rows(7, 7).shape == (0, 3)

    def test_a_closed_file_says_so(self, tmp_path: Path) -> None:
        with open_vectors(self.file(tmp_path)) as opened:
            first = opened.rows(0, 2)
        assert same(first, self.rows()[:2])  # what was read before stays
        opened.close()
        with pytest.raises(DatasetError, match="closed"):
            opened.rows(0, 2)

    # --- damaged files ------------------------------------------------------------------------------------------------

    def test_torn_at_every_byte(self, tmp_path: Path) -> None:
        whole = self.file(tmp_path, 4)
        rows, torn = self.rows(4), self.beside(whole, "torn")
        torn.write_bytes(whole.read_bytes())
        for size in reversed(range(whole.stat().st_size)):
            os.truncate(torn, size)
            try:
                found = read(torn)
            except DatasetError as error:
                assert str(torn) in str(error) and "\n" not in str(error)
            else:
                assert self.whole_rows_look_whole and 0 < len(found) < 4
                assert same(found, rows[: len(found)])

    def test_a_tail_is_refused(self, tmp_path: Path) -> None:
        whole = self.file(tmp_path)
        longer = self.beside(whole, "longer")
        longer.write_bytes(whole.read_bytes() + b"\x01")
        with pytest.raises(DatasetError, match="longer"):
            read(longer)

    def test_nothing_and_something_else(self, tmp_path: Path) -> None:
        whole = self.file(tmp_path)
        other = self.beside(whole, "other")
        for content, said in ((b"", "empty"), (b"\0", ""), (b"\xff" * 200, ""), (b"hello, world\n" * 40, "")):
            other.write_bytes(content)
            with pytest.raises(DatasetError, match=rf"other{self.ending}.*{said}"):
                open_vectors(other)
        with pytest.raises(DatasetError, match="does not exist"):
            open_vectors(tmp_path / f"none{self.ending}")
        (tmp_path / f"folder{self.ending}").mkdir()
        with pytest.raises(DatasetError, match="not a file"):
            open_vectors(tmp_path / f"folder{self.ending}")

    @settings(max_examples=60, suppress_health_check=list(HealthCheck))
    @given(data=st.data())
    def test_flipped_bytes_give_rows_or_one_clear_error(self, tmp_path: Path, data: st.DataObject) -> None:
        whole = self.file(tmp_path)
        content, damaged = bytearray(whole.read_bytes()), self.beside(whole, "damaged")
        for _ in range(data.draw(st.integers(1, 3))):
            content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
        damaged.write_bytes(content)
        try:
            with open_vectors(damaged) as opened:
                assert sum(len(block) for _, block in opened.blocks(64)) == len(opened)
        except DatasetError as error:
            assert "damaged" in str(error)

    def beside(self, whole: Path, name: str) -> Path:
        """The path of a changed copy of `whole`, with whatever describes `whole` beside it."""
        return whole.with_name(f"{name}{self.ending}")

    # --- writing ------------------------------------------------------------------------------------------------------

    def test_an_error_leaves_what_was_there(self, tmp_path: Path) -> None:
        path = self.file(tmp_path)
        before = {each: each.read_bytes() for each in tmp_path.iterdir()}
        for error in (ZeroDivisionError, KeyboardInterrupt):
            with pytest.raises(error), create_vectors(path, 3, self.dtypes[0]) as out:
                out.append(self.rows())
                raise error
        assert {each: each.read_bytes() for each in tmp_path.iterdir()} == before
        written(path, self.rows(2))
        assert same(read(path), self.rows(2))
        assert len(list(tmp_path.iterdir())) == len(before)

    def test_nothing_is_under_the_name_before_the_end(self, tmp_path: Path) -> None:
        path = tmp_path / "deep" / f"new{self.ending}"
        with create_vectors(path, 3, self.dtypes[0]) as out:
            out.append(self.rows())
            assert not path.exists()
        assert same(read(path), self.rows())

    def test_rows_that_do_not_fit_are_refused(self, tmp_path: Path) -> None:
        path, rows = tmp_path / f"new{self.ending}", self.rows()
        with pytest.raises(DatasetError, match="no rows"), create_vectors(path, 3, rows.dtype):
            pass
        for block in (rows[0], rows[:, :2], rows[None]):
            with pytest.raises(DatasetError, match="shape"), create_vectors(path, 3, rows.dtype) as out:
                out.append(block)
        with pytest.raises(DatasetError, match="7 rows came, 8"), create_vectors(path, 3, rows.dtype, 8) as out:
            out.append(rows)
        with pytest.raises(DatasetError, match="more rows"), create_vectors(path, 3, rows.dtype, 6) as out:
            out.append(rows)
        with pytest.raises(DatasetError, match="0 dimensions"):
            create_vectors(path, 0, rows.dtype)
        assert list(tmp_path.iterdir()) == []

    def test_memory_does_not_grow_with_the_file(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        """16 MB go through blocks of 256 kB."""
        monkeypatch.setattr(vectors, "BLOCK_BYTES", MEGABYTE // 4)
        path, block = tmp_path / f"large{self.ending}", some_rows(4096, 64, self.dtypes[0])
        count = 16 * MEGABYTE // block.nbytes
        tracemalloc.start()
        try:
            with create_vectors(path, 64, block.dtype) as out:
                for _ in range(count):
                    out.append(block)
            with open_vectors(path) as opened:
                assert len(opened) == count * len(block)
                for first, part in opened.blocks():
                    assert part.nbytes <= MEGABYTE // 4
                    assert same(part[:1], block[first % 4096][None])
                    assert self.held_elsewhere() < 4 * MEGABYTE
            assert tracemalloc.get_traced_memory()[1] < 4 * MEGABYTE
        finally:
            tracemalloc.stop()

    def held_elsewhere(self) -> int:
        """Bytes that a library holds outside of Python's sight."""
        return 0

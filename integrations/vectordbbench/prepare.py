"""Make the Parquet files of a custom data set of VectorDBBench from an HDF5 file of ann-benchmarks.

python prepare.py FILE.hdf5 DATA --rows 100000
"""

import argparse
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as parquet

from corenn.bench.recall import exact_neighbours
from corenn.bench.sample import load

BLOCK = 10_000


def main() -> None:
    """Write train.parquet, test.parquet and neighbors.parquet; neighbours are computed, for the rows that are taken."""
    parser = argparse.ArgumentParser(description="Parquet files for VectorDBBench from an HDF5 file of ann-benchmarks.")
    parser.add_argument("file", type=Path, help="HDF5 file with train, test and distance")
    parser.add_argument("data", type=Path, help="folder to write to")
    parser.add_argument("--rows", type=int, default=100_000, help="rows to take (default: %(default)s)")
    parser.add_argument("--queries", type=int, default=1_000, help="queries to take (default: %(default)s)")
    parser.add_argument("--neighbours", type=int, default=100, help="true neighbours per query (default: 100)")
    asked = parser.parse_args()
    sample = load(asked.file, asked.rows, asked.queries, 0, 1)
    asked.data.mkdir(parents=True, exist_ok=True)
    ids, _ = exact_neighbours(sample.base, sample.queries, asked.neighbours, sample.metric)
    write(asked.data / "train.parquet", "emb", sample.base)
    write(asked.data / "test.parquet", "emb", sample.queries)
    write(asked.data / "neighbors.parquet", "neighbors_id", ids)
    print(f"{len(sample.base):,} rows, {len(sample.queries):,} queries, metric {sample.metric}: {asked.data}")


def write(path: Path, name: str, rows: np.ndarray) -> None:
    """A file with the columns id, the row number, and `name`, a list of the row's values."""
    kind = pa.list_(pa.from_numpy_dtype(rows.dtype))
    partial = path.with_name(f"{path.name}.partial")
    with parquet.ParquetWriter(partial, pa.schema([("id", pa.int64()), (name, kind)])) as file:
        for first in range(0, len(rows), BLOCK):
            block = rows[first : first + BLOCK]
            offsets = pa.array(np.arange(len(block) + 1, dtype=np.int32) * block.shape[1])
            lists = pa.ListArray.from_arrays(offsets, pa.array(block.ravel()))
            file.write_table(pa.table({"id": np.arange(first, first + len(block)), name: lists}))
    partial.replace(path)


if __name__ == "__main__":
    main()

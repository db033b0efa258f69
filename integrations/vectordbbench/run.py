"""Run VectorDBBench's PerformanceCustomDataset case on CoreNN with local Parquet files.

    python run.py DATA --metric l2 --out RESULTS

DATA holds train.parquet (id, emb), test.parquet (id, emb) and neighbors.parquet (id, neighbors_id); prepare.py makes
them from an HDF5 file of ann-benchmarks. Loads, optimizes, and searches concurrently and serially, in the processes
that VectorDBBench starts. Prints its metrics as JSON; its own result file and log lie in RESULTS.
"""

import argparse
import dataclasses
import json
import os
import sys
import uuid
from pathlib import Path


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="VectorDBBench on CoreNN, with local Parquet files.")
    parser.add_argument("data", type=Path, help="folder with train.parquet, test.parquet and neighbors.parquet")
    parser.add_argument("--metric", required=True, choices=("l2", "cosine", "ip"), help="metric of the data set")
    parser.add_argument("--out", type=Path, default=Path("vectordbbench-results"), help="results, log and database")
    parser.add_argument("-k", type=int, default=100, help="neighbours per query (default: %(default)s)")
    parser.add_argument("--concurrency", default="1,2", help="searching processes, one run for each (default: 1,2)")
    parser.add_argument("--seconds", type=int, default=30, help="length of a concurrent run (default: %(default)s)")
    parser.add_argument("--batch", type=int, default=1_000, help="rows per insert (default: %(default)s)")
    parser.add_argument("--loaders", type=int, default=0, help="inserting threads (default: as VectorDBBench chooses)")
    parser.add_argument("--dtype", default="f32", help="stored type (default: f32)")
    parser.add_argument("--max-edges", type=int, default=32, help="edges per node (default: %(default)s)")
    parser.add_argument("--update-search-list", type=int, default=96, help="search list of inserts (default: 96)")
    parser.add_argument("--search-list", type=int, default=128, help="search list of queries (default: 128)")
    return parser.parse_args()


def main() -> None:
    """Run the case and print its metrics."""
    asked = arguments()
    out = asked.out.resolve()
    out.mkdir(parents=True, exist_ok=True)
    # Read by vectordb_bench when it is imported.
    os.environ.setdefault("RESULTS_LOCAL_DIR", str(out))
    os.environ.setdefault("LOG_FILE", str(out / "vectordb_bench.log"))
    from registry import register

    db = register()
    import pyarrow.parquet as parquet
    from vectordb_bench.backend.assembler import Assembler
    from vectordb_bench.backend.cases import CaseType
    from vectordb_bench.backend.data_source import DatasetSource
    from vectordb_bench.models import CaseConfig, CaseResult, ConcurrencySearchConfig, TaskConfig, TestResult

    train = parquet.ParquetFile(asked.data / "train.parquet")
    first = next(train.iter_batches(1, columns=["emb"])).column(0)[0]
    data = {
        "name": asked.data.resolve().name, "dir": str(asked.data.resolve()), "size": train.metadata.num_rows,
        "dim": len(first), "metric_type": asked.metric.upper(), "file_count": 1, "use_shuffled": False, "with_gt": True,
    }  # fmt: skip
    case = {
        "name": f"CoreNN on {data['name']}", "description": "", "load_timeout": 86_400, "optimize_timeout": 86_400,
        "dataset_config": data,
    }  # fmt: skip
    task = TaskConfig(
        db=db,
        db_config=db.config_cls(path=str(out), version=_version(), db_label=asked.dtype),
        db_case_config=db.case_config_cls()(
            dtype=asked.dtype, max_edges=asked.max_edges, update_search_list_cap=asked.update_search_list,
            search_list=asked.search_list,
        ),
        case_config=CaseConfig(
            case_id=CaseType.PerformanceCustomDataset, custom_case=case, k=asked.k,
            concurrency_search_config=ConcurrencySearchConfig(
                num_concurrency=[int(number) for number in asked.concurrency.split(",")],
                concurrency_duration=asked.seconds,
            ),
        ),
        load_concurrency=asked.loaders,
        insert_batch_size=asked.batch,
    )  # fmt: skip
    run = uuid.uuid4().hex
    metrics = Assembler.assemble(run, task, DatasetSource.S3).run(drop_old=True)
    TestResult(run_id=run, task_label=run, results=[CaseResult(metrics=metrics, task_config=task)]).flush()
    json.dump(dataclasses.asdict(metrics), sys.stdout, indent=2, default=str)
    print()


def _version() -> str:
    from importlib.metadata import version

    return version("corenn")


if __name__ == "__main__":
    main()

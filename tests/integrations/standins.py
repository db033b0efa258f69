"""The harnesses as far as a module can see them: folders, base classes, data sets, and the order of the calls.

Written from their documented interfaces. The modules of `integrations/` are copied into these trees, as their users do.
"""

from __future__ import annotations

import importlib
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

INTEGRATIONS = Path(__file__).parents[2] / "integrations"
BASE = """
class BaseANN:
    def done(self): ...
    def get_additional(self): return {}
    def __str__(self): return self.name
"""
ANN_BENCHMARKS = {"ann_benchmarks/algorithms/base/module.py": BASE}
BIG_ANN = {
    "benchmark/algorithms/base.py": BASE + "    def get_results(self): return self.res\n",
    "benchmark/datasets.py": "DATASETS = {}\n",
    "neurips23/streaming/base.py": """
from benchmark.algorithms.base import BaseANN

class BaseStreamingANN(BaseANN):
    def track(self): return "stream"
    def load_index(self, dataset): return False
""",
    "neurips23/filter/base.py": """
from benchmark.algorithms.base import BaseANN

class BaseFilterANN(BaseANN):
    def filtered_query(self, X, filter, k): raise NotImplementedError
""",
}
Load = Callable[[str], ModuleType]


def plant(monkeypatch: pytest.MonkeyPatch, root: Path, tree: dict[str, str], ours: str) -> Load:
    """Write a harness, copy our folder over it, and make `root` the working directory and import path."""
    for name, text in tree.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    shutil.copytree(INTEGRATIONS / ours, root, dirs_exist_ok=True)
    monkeypatch.chdir(root)
    monkeypatch.syspath_prepend(root)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    tops = {name.partition("/")[0] for name in tree}
    for name in [name for name in sys.modules if name.partition(".")[0] in tops]:
        monkeypatch.delitem(sys.modules, name)

    def load(name: str) -> ModuleType:
        module = importlib.import_module(name)
        for each in [each for each in sys.modules if each.partition(".")[0] in tops]:
            monkeypatch.setitem(sys.modules, each, sys.modules[each])  # taken out again when the test ends
        return module

    return load


class DataSet:
    """A data set of big-ann-benchmarks; its iterator hands out float32 whatever the file holds."""

    def __init__(
        self, rows: NDArray[Any], queries: NDArray[Any], search_type: str = "knn", metadata: Any = None
    ) -> None:
        self.rows, self.queries, self.metadata = rows, queries, metadata
        self.nb, self.d = rows.shape
        self.dtype = rows.dtype.name
        self._type = search_type

    def search_type(self) -> str:
        return self._type

    def short_name(self) -> str:
        return f"DataSet-{self.nb}"

    def get_dataset_iterator(self, bs: int = 512, split: tuple[int, int] = (1, 0)) -> Any:
        for start in range(0, self.nb, bs):
            yield np.ascontiguousarray(self.rows[start : start + bs], np.float32)

    def get_data_in_range(self, start: int, end: int) -> NDArray[Any]:
        assert 0 <= start <= end <= self.nb
        return self.rows[start:end]

    def get_queries(self) -> NDArray[np.float32]:
        return np.ascontiguousarray(self.queries, np.float32)

    def get_dataset_metadata(self) -> Any:
        return self.metadata


def product(groups: Any) -> list[list[Any]]:
    """Every combination of one element of each group, groups that are no lists being of one."""
    combined: list[list[Any]] = [[]]
    for group in groups:
        combined = [[*head, each] for head in combined for each in (group if isinstance(group, list) else [group])]
    return combined

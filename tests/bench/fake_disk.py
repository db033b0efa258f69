"""A system that keeps its rows in a file."""

import os

import numpy as np

from tests.bench import fake


class OnDisk(fake.Fake):
    """As the other, opened again before it is searched."""

    name = "tests.bench.fake_disk"
    on_disk = True

    def close(self) -> None:
        np.save(self.folder / "rows.npy", self.base)

    def open(self, dim: int, metric: str) -> None:
        self._note(f"open pool {os.environ['OMP_NUM_THREADS']}")
        self._misbehave("open")
        self.base = np.load(self.folder / "rows.npy")
        assert self.base.shape[1] == dim

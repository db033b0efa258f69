"""Made vectors whose intrinsic dimension and clusters are known, for tests of scale: any number of rows, streamed.

Rows lie on a random manifold of `intrinsic_dim` dimensions. In its own coordinates, each cluster is a normal
distribution of standard deviation 1 around a centre, and the centres are drawn from one of SEPARATION. The manifold is
either a flat, laid into space by a random rotation, or curved: random Fourier features (Rahimi & Recht, 2007), which
keep small distances and bend large ones. Rows are drawn in chunks of fixed size, each with random numbers of its own,
so that a row depends on its number and the shape alone.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from ..errors import InvalidArgumentError
from ..types import AnyArray, Float32s
from .dtypes import DType, is_integer
from .work import single_threaded_products

CHUNK = 4096
SEPARATION = 3.0
BEND = 0.5  # distance, in standard deviations of a pair within a cluster, to the length over which space is bent
MARGIN = 0.1  # room beyond the range of the first chunk, as a share of it, for types of whole numbers
_TRAIN, _TEST, _FORM = 0, 1, 2  # streams of random numbers


@dataclass(frozen=True, slots=True)
class Shape:
    """What is made.

    dim: numbers per row. intrinsic_dim: dimensions of the manifold, at most `dim`. clusters: how many. noise: length of
    a random step off the manifold, in standard deviations of a cluster. seed: of everything. curved: whether the
    manifold is bent.
    """

    dim: int
    intrinsic_dim: int
    clusters: int = 1
    noise: float = 0.0
    seed: int = 0
    curved: bool = True

    def __post_init__(self) -> None:
        numbers = self.clusters >= 1 and self.seed >= 0 and 0 <= self.noise < math.inf
        if not 1 <= self.intrinsic_dim <= self.dim or not numbers:
            raise InvalidArgumentError(
                f"dim {self.dim}, intrinsic dim {self.intrinsic_dim}, clusters {self.clusters}, noise {self.noise}, "
                f"seed {self.seed}: needs 1 ≤ intrinsic dim ≤ dim, clusters ≥ 1, finite noise ≥ 0 and seed ≥ 0"
            )


class Synthetic:
    """Rows and queries of a shape."""

    def __init__(self, shape: Shape) -> None:
        self.shape = shape
        random = self._random(_FORM, 0)
        self._centres = random.normal(0, SEPARATION, (shape.clusters, shape.intrinsic_dim))
        self._frame = random.normal(size=(shape.dim, shape.intrinsic_dim))
        self._phases = random.uniform(0, 2 * math.pi, shape.dim)
        if not shape.curved:
            self._frame = np.linalg.qr(self._frame)[0]

    def blocks(self, rows: int) -> Iterator[Float32s]:
        """The first `rows` rows, at most CHUNK at a time: float32 (n, dim)."""
        return self._blocks(_TRAIN, rows)

    def queries(self, count: int) -> Float32s:
        """Queries from the same distribution, none of which is a row: float32 (count, dim)."""
        found = list(self._blocks(_TEST, count))
        return np.concatenate(found) if found else np.empty((0, self.shape.dim), np.float32)

    def _blocks(self, stream: int, rows: int) -> Iterator[Float32s]:
        for first in range(0, rows, CHUNK):
            yield self._chunk(stream, first // CHUNK)[: rows - first]

    def _chunk(self, stream: int, number: int) -> Float32s:
        shape = self.shape
        random = self._random(stream, number)
        labels = random.integers(shape.clusters, size=CHUNK)
        inner = self._centres[labels] + random.standard_normal((CHUNK, shape.intrinsic_dim))
        with single_threaded_products():
            outer = self._laid_out(inner)
        if shape.noise:
            outer += random.normal(0, shape.noise / math.sqrt(shape.dim), outer.shape)
        return outer.astype(np.float32)

    def _laid_out(self, inner: NDArray[np.float64]) -> NDArray[np.float64]:
        """Points of the manifold in space; small distances are kept."""
        if not self.shape.curved:
            return inner @ self._frame.T
        bend = BEND / math.sqrt(2 * self.shape.intrinsic_dim)
        waves: NDArray[np.float64] = np.cos(bend * (inner @ self._frame.T) + self._phases)
        return waves * (math.sqrt(2 / self.shape.dim) / bend)

    def _random(self, stream: int, number: int) -> np.random.Generator:
        return np.random.default_rng(np.random.SeedSequence([self.shape.seed, stream, number]))


@dataclass(frozen=True, slots=True)
class Scale:
    """How float rows become rows of a type: a type of whole numbers gets its whole range, others are rounded.

    Distances keep their order under l2, since all coordinates are moved and stretched alike.
    """

    dtype: DType
    low: float
    step: float

    @classmethod
    def of(cls, dtype: DType, made: Synthetic) -> Scale:
        """The scale by the first chunk, whatever the number of rows."""
        if not is_integer(dtype):
            return cls(dtype, 0.0, 1.0)
        first = next(made.blocks(CHUNK))
        low, high = float(first.min()), float(first.max())
        room = MARGIN * (high - low)
        whole = np.iinfo(np.int8 if dtype.kind == "i" else np.uint8)
        step = (high - low + 2 * room) / (float(whole.max) - float(whole.min)) or 1.0
        return cls(dtype, low - room - step * float(whole.min), step)

    def apply(self, block: Float32s) -> AnyArray:
        """The rows in the type."""
        if not is_integer(self.dtype):
            return block.astype(self.dtype)
        whole = np.iinfo(np.int8 if self.dtype.kind == "i" else np.uint8)
        codes: AnyArray = np.clip(np.rint((block - self.low) / self.step), whole.min, whole.max).astype(self.dtype)
        return codes

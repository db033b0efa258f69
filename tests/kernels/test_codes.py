"""One class of tests that every kind of codes passes, and what each kind promises besides.

Rules out a product of bytes that differs between the instruction and the plain loop, errors beyond the stated bound,
estimates that lie on one side, an order that is lost, codes that depend on who makes them, and codes of empty, constant
or extreme vectors that poison a walk.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from numpy.typing import NDArray

from corenn.config import Settings
from corenn.graph import codebook
from corenn.graph.threads import Helpers
from corenn.kernels.codes import (
    ALIGNED,
    TAIL,
    TRAINED,
    Asked,
    Codes,
    Form,
    aim_codes,
    asked_of,
    code_width,
    codes_of,
    encode_rows,
    form_in,
    form_of,
    scorer_of,
)
from corenn.kernels.intrinsics import dot_bytes
from corenn.kernels.jit import kernel
from corenn.kernels.product import subspaces_of
from corenn.kernels.rotation import padded, rotated, rotation_signs
from corenn.kernels.rows import Float32Rows, flat_distance
from tests.conftest import COMPILED, Sample

Floats = NDArray[np.float32]
SEED = 7
HELPERS = Helpers(1)


class Kind(NamedTuple):
    """error: of an estimate, in standard deviations of the residuals' product; see test_errors_stay_within_bounds."""

    name: str
    bits: int
    turned: bool

    @property
    def trained(self) -> bool:
        return self.name in TRAINED

    def form(self, dim: int) -> Form:
        if self.turned:
            return Form(padded(dim), self.bits)
        return form_of(Settings(dim=dim, compression_mode=self.name), self.name)


KINDS = [Kind("sq8", 8, False), Kind("sq4", 4, False), Kind("rabitq4", 4, True), Kind("rabitq2", 2, True),
         Kind("rabitq1", 1, True), Kind("pq", 8, False), Kind("opq", 8, False), Kind("trunc", 8, False)]  # fmt: skip


def need_training(kind: Kind) -> None:
    """Leave out what trains by many rows where the kernels are plain Python."""
    if kind.trained and not COMPILED:
        pytest.skip("training by so many rows takes minutes as plain Python")


@kernel
def estimate_all(codes: Any, asked: Any, queries: Any, out: Any) -> None:
    scorer = scorer_of(codes, asked)
    for i in range(queries.shape[0]):
        aim_codes(codes, queries[i], asked)
        for row in range(out.shape[1]):
            out[i, row] = flat_distance(scorer, queries[i], row)


@kernel
def product(codes: Any, row: Any, levels: Any, body: Any, bits: Any) -> Any:
    return dot_bytes(codes, row, levels, body, bits)


def rows_of(vectors: Floats) -> Float32Rows:
    return Float32Rows(vectors, np.zeros((len(vectors), 1), np.float32), vectors.shape[1], np.float32(0))


def encoded(kind: Kind, vectors: Floats, seed: int = SEED) -> tuple[Codes, Asked]:
    dim = vectors.shape[1]
    form, signs, centre, book = kind.form(dim), None, None, None
    if kind.turned:
        signs = rotation_signs(dim, seed)
        centre = (vectors.mean(axis=0) if len(vectors) else np.zeros(dim)).astype(np.float32)
    if kind.trained:
        points = vectors.copy() if len(vectors) else np.zeros((1, dim), np.float32)
        book = codebook.train(points, form.subspaces, 1, HELPERS, rotated=kind.name == "opq")
    codes = codes_of(np.zeros((len(vectors), form.row_bytes), np.uint8), rows_of(vectors), form, signs=signs,
                     centre=centre, book=book)  # fmt: skip
    encode_rows(rows_of(vectors), codes, 0, codes.vectors, np.empty(dim, np.float32), asked_of(form))
    return codes, asked_of(form)


def meant(kind: Kind, vectors: Floats, queries: Floats) -> NDArray[np.float64]:
    """What estimates are of: squared distances; of truncated vectors, those that follow from the beginnings."""
    kept = kind.form(vectors.shape[1]).length
    if kind.name != "trunc" or kept == vectors.shape[1]:
        return exact(vectors, queries)
    lengths, asked = (np.linalg.norm(each.astype(np.float64), axis=1) for each in (vectors, queries))
    parts = [each[:, :kept] / np.linalg.norm(each[:, :kept].astype(np.float64), axis=1)[:, None]
             for each in (vectors, queries)]  # fmt: skip
    whole: NDArray[np.float64] = (
        asked[:, None] ** 2 + lengths[None, :] ** 2 - 2 * asked[:, None] * lengths[None, :] * (parts[1] @ parts[0].T)
    )
    return whole


def estimates(kind: Kind, vectors: Floats, queries: Floats, seed: int = SEED) -> Floats:
    codes, asked = encoded(kind, vectors, seed)
    out = np.zeros((len(queries), len(vectors)), np.float32)
    estimate_all(codes, asked, queries, out)
    return out


def exact(vectors: Floats, queries: Floats) -> NDArray[np.float64]:
    wide, asked = vectors.astype(np.float64), queries.astype(np.float64)
    return np.array([((wide - query) ** 2).sum(axis=1) for query in asked])


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@given(st.integers(1, 300), st.integers(0, 2**32 - 1))
def test_a_product_of_bytes_is_that_of_its_fields(bits: int, body: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    width, part = -(-(body + TAIL) // ALIGNED) * ALIGNED, -(-body // ALIGNED) * ALIGNED
    codes = random.integers(0, 256, (2, width), dtype=np.uint8)
    levels = np.zeros((8 // bits, part), np.int8)
    levels[:, :body] = random.integers(-127, 128, (8 // bits, body))
    wanted = sum(
        int(
            (codes[1, :body].astype(np.int64) >> field * bits & (1 << bits) - 1) @ levels[field, :body].astype(np.int64)
        )
        for field in range(8 // bits)
    )
    assert product(codes, 1, levels.reshape(-1), body, bits) == wanted


@pytest.mark.parametrize("bits", [8, 4, 2, 1])
@pytest.mark.parametrize("level", [-127, 127])
def test_the_largest_products_fit(bits: int, level: int) -> None:
    codes = np.full((1, 176), 255, np.uint8)
    levels = np.full(8 // bits * 160, level, np.int8)
    assert product(codes, 0, levels, 160, bits) == 8 // bits * 160 * ((1 << bits) - 1) * level


@pytest.mark.parametrize("dim", [1, 3, 31, 64, 96, 100, 128, 384, 1000])
def test_a_rotation_keeps_lengths_and_angles(rng: np.random.Generator, dim: int) -> None:
    vectors = rng.normal(size=(6, dim)).astype(np.float32)
    turned = rotated(vectors, rotation_signs(dim, SEED)).astype(np.float64)
    assert turned.shape == (6, padded(dim))
    assert np.allclose(turned @ turned.T, vectors.astype(np.float64) @ vectors.T.astype(np.float64), atol=1e-4 * dim)


@pytest.mark.parametrize("dim", [64, 96, 384])
def test_a_rotation_spreads_a_single_component_over_all(dim: int) -> None:
    turned = rotated(np.eye(dim, dtype=np.float32)[:8], rotation_signs(dim, SEED))
    assert np.abs(turned).max() < 8 / np.sqrt(padded(dim))


def standing_for(codes: Codes) -> Floats:
    """What product codes stand for, by the codebook alone: float32 (rows, dim)."""
    rows, dim = len(codes.vectors), codes.dim
    turned = np.empty((rows, dim), np.float32)
    for number in range(len(codes.starts) - 1):
        piece = slice(codes.starts[number], codes.starts[number + 1])
        turned[:, piece] = codes.books[piece][:, codes.vectors[:, number]].T
    if len(codes.turn):
        turned = codebook.rotate(turned, whole(codes.turn).T.copy())
    return turned + codes.centre


def whole(turn: Floats) -> Floats:
    """A rotation as one matrix."""
    dim, width = turn.shape
    made = np.zeros((dim, dim), np.float32)
    for row in range(dim):
        first = row // width * width
        made[row, first : first + width] = turn[row, : min(width, dim - first)]
    return made


@pytest.mark.parametrize(("dim", "most", "width"), [(40, 1 << 20, 40), (40, 40 * 15, 14), (7, 3, 1)])
def test_principal_axes_keep_lengths_and_are_dealt_out(
    rng: np.random.Generator, monkeypatch: pytest.MonkeyPatch, dim: int, most: int, width: int
) -> None:
    monkeypatch.setattr(codebook, "MOST_TURNED", most)
    mixed = np.linalg.qr(rng.normal(size=(dim, dim)))[0]
    points = (rng.normal(size=(500, dim)) * 0.95 ** np.arange(dim) @ mixed).astype(np.float32)
    starts = subspaces_of(dim, 4 if dim > 7 else 2)
    turn = codebook.at_once(codebook.rotation(points, starts))
    assert turn.shape == (dim, width)
    assert np.allclose(whole(turn) @ whole(turn).T, np.eye(dim), atol=1e-5)
    turned = codebook.rotate(points, turn)
    assert np.allclose(turned, points @ whole(turn).T, rtol=1e-4, atol=1e-3)
    if width == dim:  # nothing is said twice, and no subspace says much more than another one
        spread = np.cov(turned.T)
        assert np.abs(spread - np.diag(np.diag(spread))).max() < 0.02 * spread.max()
        logs = np.add.reduceat(np.log(np.diag(spread)), starts[:-1])
        assert np.ptp(logs) < 1.5


@pytest.mark.parametrize("kind", KINDS, ids=lambda kind: kind.name)
class TestEveryKind:
    @pytest.mark.parametrize("dim", [1, 5, 64, 97, 128, 200])
    def test_errors_stay_within_bounds(self, rng: np.random.Generator, kind: Kind, dim: int) -> None:
        """Of scalar codes: half a step per component, of the row and of the query, and what is cut off. Of RaBitQ: with
        a probability of 1 - exp(-2 e²) or so, e / sqrt(D) times what the code misses of a residual (their theorem 3.2).
        """
        if dim > 5:
            need_training(kind)
        vectors = rng.normal(size=(200 if COMPILED else 40, dim)).astype(np.float32) + 3
        queries = rng.normal(size=(20, dim)).astype(np.float32) + 3
        errors = estimates(kind, vectors, queries) - meant(kind, vectors, queries)
        scale = np.sqrt(exact(vectors, queries)) + 1e-9
        if kind.trained:
            codes, _ = encoded(kind, vectors)
            stood = standing_for(codes)
            missed = np.linalg.norm(stood - vectors, axis=1)[None, :]
            most = exact(stood, queries).max()  # the steps of a table are a 65,535th of less than that
            assert (np.abs(errors) <= (2 * scale + missed) * missed + most * dim / 65_000 + 1e-3).all()
            return
        if not kind.turned:
            span = np.ptp(vectors, axis=1)[None, :]
            step = span / ((1 << kind.bits) - 1) + 0.5 * span * (0.24 if kind.bits < 8 else 0)
            level = np.abs(queries).max(axis=1)[:, None] / 127
            lengths = np.linalg.norm(vectors, axis=1)[None, :]
            bound = scale * step * np.sqrt(dim) + step**2 * dim / 2 + level * np.sqrt(dim) * lengths + 1e-3
            if kind.name == "trunc":
                bound *= 2  # as much longer, squared, as the whole is than its beginning
            assert (np.abs(errors) <= bound).all()
            return
        centre = vectors.mean(axis=0)
        residuals = np.linalg.norm(vectors - centre, axis=1)[None, :]
        asked = np.linalg.norm(queries - centre, axis=1)[:, None]
        missed = {4: 0.13, 2: 0.40, 1: 0.80}[kind.bits]
        deviation = 2 * residuals * asked * (missed + 0.03) / np.sqrt(padded(dim) - 1) + 1e-3
        assert np.mean(np.abs(errors) > 2.5 * deviation) < 0.02
        assert (np.abs(errors) <= 6 * deviation).all()

    def test_estimates_are_right_on_the_whole(self, rng: np.random.Generator, kind: Kind) -> None:
        """Of scalar codes for queries near the vector; of RaBitQ for any, over all rotations. Of product codes at the
        vector, but for the square of what they miss.
        """
        need_training(kind)
        vectors = rng.normal(size=(100, 64)).astype(np.float32)
        if not kind.turned:
            queries = vectors + 0.1 * rng.normal(size=vectors.shape).astype(np.float32)
            errors = np.diag(estimates(kind, vectors, queries) - meant(kind, vectors, queries))
            if kind.trained:
                errors = errors - ((standing_for(encoded(kind, vectors)[0]) - vectors) ** 2).sum(axis=1)
            assert abs(errors.mean()) < 5 * errors.std() / np.sqrt(len(errors)) + 2e-3
            return
        queries = rng.normal(size=(10, 64)).astype(np.float32)
        seeds = 40 if COMPILED else 4
        errors = np.array([estimates(kind, vectors, queries, seed) - exact(vectors, queries) for seed in range(seeds)])
        means, spread = errors.mean(axis=0).ravel(), errors.std() / np.sqrt(seeds)
        assert abs(means.mean()) < 5 * spread / np.sqrt(len(means)) + 2e-3
        assert means.std() < 1.5 * spread + 1e-3

    @pytest.mark.compiled
    def test_the_order_is_kept(self, sift: Sample, embeddings: Sample, kind: Kind) -> None:
        """Of the ten nearest, nearly all are among the first few by estimate."""
        wide = 60 if kind.trained else {8: 12, 4: 20, 2: 60, 1: 200}[kind.bits]
        for rows, queries in (sift, embeddings):
            if kind.name == "trunc":  # of vectors whose first components say most
                rows, queries = (each * 0.97 ** np.arange(rows.shape[1], dtype=np.float32) for each in (rows, queries))
                wide = 40
            near, few = np.ascontiguousarray(rows[:1500]), np.ascontiguousarray(queries[:40])
            found = np.argsort(estimates(kind, near, few), axis=1)[:, :wide]
            best = np.argsort(exact(near, few), axis=1)[:, :10]
            assert np.mean([np.isin(one, other).mean() for one, other in zip(best, found, strict=True)]) > 0.97

    def test_codes_depend_on_nothing_but_the_vector(self, rng: np.random.Generator, kind: Kind) -> None:
        vectors = rng.normal(size=(40, 50)).astype(np.float32)
        whole, _ = encoded(kind, vectors)
        part = whole._replace(vectors=np.zeros_like(whole.vectors))
        work = np.empty(50, np.float32), asked_of(form_in(whole))
        for first in (33, 20, 0):
            encode_rows(rows_of(vectors), part, first, part.vectors[first : first + 20], *work)
        assert np.array_equal(whole.vectors, part.vectors)

    def test_no_rows_and_one_row(self, kind: Kind) -> None:
        vectors = np.ones((1, 20), np.float32)
        assert len(encoded(kind, vectors[:0])[0].vectors) == 0
        assert np.allclose(estimates(kind, vectors, vectors * 2), 20, rtol=0.2)

    @pytest.mark.parametrize("value", [0.0, 1.0, -3.5, 1e-30, 1e15])
    def test_constant_vectors(self, kind: Kind, value: float) -> None:
        vectors = np.full((3, 33), value, np.float32)
        found = estimates(kind, vectors, vectors)
        assert np.isfinite(found).all()
        assert (np.abs(found) <= 0.05 * 33 * value**2 + 1e-6).all()

    def test_extreme_values_are_far_and_never_nan(self, kind: Kind) -> None:
        vectors = np.array([[3e38] * 8, [-3e38] * 8, [3e38, -3e38] * 4, [1e-45] * 8, [1.0] * 8], np.float32)
        with np.errstate(all="ignore"):  # with the JIT off NumPy says what overflows
            found = estimates(kind, vectors, np.ones((1, 8), np.float32))
        assert not np.isnan(found).any()

    def test_every_row_has_room(self, kind: Kind) -> None:
        mode = kind.name.rstrip("124") if kind.turned else kind.name
        for dim in (1, 2, 15, 16, 17, 255, 256, 1023, 1024, 4097):
            for pieces in (0, 1, 7, 5000):
                settings = Settings(dim=dim, compression_mode=mode, pq_subspaces=pieces, trunc_dims=pieces)
                form = form_of(settings, mode)
                assert code_width(settings, mode) == form.row_bytes >= form.used >= form.body > 0
                assert form.row_bytes % ALIGNED == 0
                assert 1 <= form.length <= padded(dim) and 0 <= form.subspaces <= dim
                assert code_width(settings, "auto") >= code_width(settings, "sq4")

"""A fast random rotation: signs turned at random and Walsh-Hadamard transforms, in turns.

It spreads what a vector holds evenly over all components, whatever the data, so that a sign each says most about it.
Where the length is no power of two the transforms cover the beginning and the end in turns, and a step that adds and
subtracts the two halves mixes them (Gao & Long 2024 and their library; the halves: Kac's walk).
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from ..types import AnyArray, Float32s
from .jit import inlined

ROUNDS = 4
_HALF = np.float32(math.sqrt(0.5))


def padded(dim: int) -> int:
    """Components of a rotated vector of `dim`: whole words of 32 signs, and never so few that signs say nothing."""
    return max(64, -(-dim // 32) * 32)


def window(length: int) -> int:
    """The largest power of two that is no more than `length`."""
    return 1 << (length.bit_length() - 1)


def rotation_signs(dim: int, seed: int) -> Float32s:
    """What makes a rotation: float32 (ROUNDS, padded(dim)), signs with the factor that keeps a transform's length."""
    length = padded(dim)
    part = window(length)
    signs = np.where(np.random.default_rng(seed).random((ROUNDS, length)) < 0.5, -1.0, 1.0)
    for turn in range(ROUNDS):
        start = 0 if turn % 2 == 0 else length - part
        signs[turn, start : start + part] /= math.sqrt(part)
    return signs.astype(np.float32)


@inlined
def rotate(signs: Any, work: Any) -> None:
    """Rotate work[0], float32 (length,), in place. signs: see rotation_signs. work: two rows."""
    length = signs.shape[1]
    part = 1
    while 2 * part <= length:
        part *= 2
    for turn in range(signs.shape[0]):
        here, there = work[0], work[1]
        for i in range(length):
            here[i] *= signs[turn, i]
        start = 0 if turn % 2 == 0 else length - part
        left = part
        swapped = False
        while left > 1:
            source, target = (there, here) if swapped else (here, there)
            _butterflies(source[start : start + part], target[start : start + part])
            swapped = not swapped
            left >>= 1
        if swapped:
            for i in range(start, start + part):
                here[i] = there[i]
        if part < length:
            _mix(here[: length // 2], here[length // 2 : 2 * (length // 2)])


@inlined
def _butterflies(source: Any, target: Any) -> None:
    """One stage of the transform. All stages are alike (Pease 1968), so that each is a loop that vectorises."""
    half = source.shape[0] >> 1
    low, high = target[:half], target[half:]
    for i in range(half):
        one, other = source[2 * i], source[2 * i + 1]
        low[i] = one + other
        high[i] = one - other


@inlined
def _mix(low: Any, high: Any) -> None:
    for i in range(low.shape[0]):
        one, other = low[i], high[i]
        low[i] = _HALF * (one + other)
        high[i] = _HALF * (one - other)


def rotated(vectors: AnyArray, signs: Float32s) -> Float32s:
    """Several vectors, float32 (n, dim), rotated: float32 (n, padded(dim)). For tests and tools."""
    out = np.zeros((len(vectors), signs.shape[1]), np.float32)
    work = np.zeros((2, signs.shape[1]), np.float32)
    for i, vector in enumerate(vectors):
        work[0] = 0
        work[0, : len(vector)] = vector
        rotate(signs, work)
        out[i] = work[0]
    return out

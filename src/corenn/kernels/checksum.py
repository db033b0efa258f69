"""CRC-32C of hard rows (Castagnoli polynomial, RFC 3720), eight bytes a step."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..types import UInt32s
from .jit import inlined, kernel


def _tables() -> UInt32s:
    tables = np.zeros((8, 256), np.uint32)
    for byte in range(256):
        value = byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
        tables[0, byte] = value
    for at in range(1, 8):
        previous = tables[at - 1]
        tables[at] = (previous >> np.uint32(8)) ^ tables[0][previous & np.uint32(0xFF)]
    return tables


TABLES = _tables()
_BYTE = np.uint64(0xFF)
_EIGHT = np.uint64(8)


@inlined
def _step(tables: Any, checksum: Any, word: Any) -> Any:
    word = np.uint64(word) ^ np.uint64(checksum)
    result = np.uint32(0)
    for at in range(7, -1, -1):
        result ^= tables[at, np.int64(word & _BYTE)]
        word >>= _EIGHT
    return result


@kernel
def checksum_rows(tables: Any, vectors: Any, seals: Any, ids: Any, out: Any) -> None:
    """CRC-32C of each row: its stored vector, the constants behind its checksum, and its id.

    tables: TABLES. vectors: uint64 (n, words). seals: uint32 (n, 1 … 4), column 0 left out. ids: uint32 (n,), part
    of the sum so that a row written to a wrong place is found. out: uint32 (n,).
    """
    for i in range(ids.shape[0]):
        checksum = np.uint32(0xFFFFFFFF)
        for word in range(vectors.shape[1]):
            checksum = _step(tables, checksum, vectors[i, word])
        for word in range(1, seals.shape[1]):
            checksum = _step(tables, checksum, np.uint64(seals[i, word]))
        out[i] = _step(tables, checksum, np.uint64(ids[i])) ^ np.uint32(0xFFFFFFFF)

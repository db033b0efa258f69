"""Rules out a checksum that is not CRC-32C, or that misses a changed bit, a changed constant or a swapped row."""

from __future__ import annotations

import numpy as np

from corenn.kernels.checksum import TABLES, checksum_rows


def crc32c(data: bytes) -> int:
    """One bit at a time, from the definition in RFC 3720."""
    value = 0xFFFFFFFF
    for byte in data:
        value ^= byte
        for _ in range(8):
            value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value ^ 0xFFFFFFFF


def checksums(vectors: np.ndarray, seals: np.ndarray, ids: np.ndarray) -> np.ndarray:
    out = np.zeros(len(ids), np.uint32)
    checksum_rows(TABLES, vectors, seals, ids, out)
    return out


def sample() -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    random = np.random.default_rng(0)
    vectors = random.integers(0, 2**63, (6, 5), dtype=np.uint64)
    return vectors, random.integers(0, 2**32, (6, 4), dtype=np.uint32), np.arange(6, dtype=np.uint32)


def test_the_reference_is_crc32c() -> None:
    assert crc32c(b"123456789") == 0xE3069283


def test_checksums_are_crc32c_of_row_constants_and_id() -> None:
    vectors, seals, ids = sample()
    for row, found in enumerate(checksums(vectors, seals, ids)):
        words = [*vectors[row], *seals[row, 1:].astype(np.uint64), np.uint64(row)]
        assert found == crc32c(b"".join(int(word).to_bytes(8, "little") for word in words))


def test_every_single_bit_matters() -> None:
    vectors, seals, ids = sample()
    right = checksums(vectors, seals, ids)
    for column in range(vectors.shape[1]):
        for bit in range(0, 64, 7):
            changed = vectors.copy()
            changed[:, column] ^= np.uint64(1 << bit)
            assert (checksums(changed, seals, ids) != right).all()
    for column in range(1, 4):
        changed = seals.copy()
        changed[:, column] ^= np.uint32(1)
        assert (checksums(vectors, changed, ids) != right).all()
    assert (checksums(vectors, seals, ids[::-1].copy()) != right).all()

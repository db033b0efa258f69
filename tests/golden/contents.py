"""What is in a golden database: a model that is written to beside it, what it must answer, and both as files."""

from __future__ import annotations

import base64
import io
import json
import lzma
import tarfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from corenn import CoreNN
from tests.oracle import distances, nearest, rounding, tolerance

Key = str | int
Payload = dict[str, Any] | None
Rows = NDArray[np.float32]
K = 10
UNKEPT = ("LOG", "LOCK", "readers")  # what RocksDB says about itself, and what belongs to a process


def coarse(rng: np.random.Generator, count: int, dim: int, dtype: str) -> Rows:
    """Made vectors of few significant bits: they get small in an archive."""
    drawn: NDArray[np.float64] = rng.normal(size=(count, dim))
    if dtype == "u8":
        return np.minimum(np.rint(np.abs(drawn) * 60), 255).astype(np.float32)
    return (np.rint(drawn * 16) / 16).astype(np.float32)


class Book:
    """Writes to a database and remembers what has to be in it; with db=None it only remembers."""

    def __init__(self, db: CoreNN | None) -> None:
        self.db = db
        self.rows: dict[Key, tuple[Rows, Payload]] = {}

    def insert(self, keys: Sequence[Key], vectors: Rows, payloads: Sequence[Payload]) -> None:
        if self.db is not None:
            self.db.insert(keys, vectors, payloads)
        self.rows.update(zip(keys, zip(vectors, payloads, strict=True), strict=True))

    def upsert(self, keys: Sequence[Key], vectors: Rows, payloads: Sequence[Payload]) -> None:
        if self.db is not None:
            self.db.upsert(keys, vectors, payloads)
        for key in keys:
            self.rows.pop(key, None)
        self.rows.update(zip(keys, zip(vectors, payloads, strict=True), strict=True))

    def set_payload(self, keys: Sequence[Key], payloads: Sequence[Payload]) -> None:
        if self.db is not None:
            self.db.set_payload(keys, payloads)
        self.rows.update({key: (self.rows[key][0], payload) for key, payload in zip(keys, payloads, strict=True)})

    def delete(self, keys: Sequence[Key]) -> None:
        if self.db is not None:
            self.db.delete(keys)
        for key in keys:
            del self.rows[key]

    def checkpoint(self) -> None:
        if self.db is not None:
            self.db.checkpoint()


# --- what must be found -----------------------------------------------------------------------------------------------


def packed(vectors: Rows) -> str:
    """Vectors as text, bit by bit."""
    return base64.b64encode(np.ascontiguousarray(vectors, "<f4").tobytes()).decode()


def unpacked(text: str, dim: int) -> Rows:
    return np.frombuffer(base64.b64decode(text), "<f4").reshape(-1, dim).astype(np.float32)


def expected_of(db: CoreNN, book: Book, queries: Rows) -> dict[str, Any]:
    """What a database answers, which must be what the book and the definitions of the distances say."""
    settings, keys = db.settings, list(book.rows)
    wanted = np.array([book.rows[key][0] for key in keys])
    records = db.get(keys)
    assert set(db.keys()) == set(keys)
    vectors = np.array([record.vector for record in records if record])
    assert [record.payload for record in records if record] == [book.rows[key][1] for key in keys]
    assert (np.abs(vectors - wanted) <= rounding(settings.dtype, wanted) * 1.5 + 1e-6).all()
    table = distances(settings.metric, vectors, queries)
    chosen = nearest(table, K)
    slack = tolerance(settings.metric, vectors, queries)
    for hits, line, row in zip(db.query(queries, k=K, exact=True), chosen, table, strict=True):
        assert np.allclose([hit.distance for hit in hits], row[line], rtol=0, atol=slack)
        # Where two are as near as each other either may come first; the queries are chosen so that there are none.
        assert [hit.key for hit in hits] == [keys[at] for at in line]
    return {
        "settings": settings.as_dict(),
        "keys": keys,
        "vectors": packed(vectors),
        "payloads": [book.rows[key][1] for key in keys],
        "queries": packed(queries),
        "answers": [[keys[at] for at in line] for line in chosen],
        "distances": [[float(row[at]) for at in line] for line, row in zip(chosen, table, strict=True)],
    }


# --- files ------------------------------------------------------------------------------------------------------------


def pack(folder: Path, target: Path) -> None:
    """The files of a database as an archive; the same for the same files."""
    with tarfile.open(target, "w:xz", format=tarfile.USTAR_FORMAT, preset=9) as archive:
        for path in sorted(folder.rglob("*")):
            name = path.relative_to(folder)
            if path.is_file() and not any(part.partition(".")[0] in UNKEPT for part in name.parts):
                member = tarfile.TarInfo(str(name))
                member.size = path.stat().st_size
                archive.addfile(member, io.BytesIO(path.read_bytes()))


def unpack(archive: Path, folder: Path) -> None:
    """The files of a database in a new folder."""
    folder.mkdir()
    with tarfile.open(archive) as members:
        # Python 3.11.4 has filters, and later ones warn where none is named; the archives are our own.
        members.extractall(folder, **({"filter": "data"} if hasattr(tarfile, "data_filter") else {}))


def write_expected(found: dict[str, Any], path: Path) -> None:
    path.write_bytes(lzma.compress(json.dumps(found, sort_keys=True).encode(), preset=9 | lzma.PRESET_EXTREME))


def read_expected(path: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(lzma.decompress(path.read_bytes()))
    return found

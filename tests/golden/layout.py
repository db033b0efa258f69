"""What the format is, part by part, as hashes: a change that nobody meant, or that has no version, is told by them."""

from __future__ import annotations

import hashlib
import io
import json
import struct
import tempfile
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from corenn import CoreNN, Settings
from corenn.config import COMPRESSIONS, DTYPES, METRICS
from corenn.graph import codebook, curve, navigation
from corenn.kernels.checksum import TABLES, checksum_rows
from corenn.kernels.product import Codebook
from corenn.kernels.search import Navigation
from corenn.storage import archive, changes, commit, generation, rocks, snapshot, update
from corenn.storage import format as fmt
from corenn.storage.encode import encode
from corenn.storage.files import Files
from corenn.storage.keys import key_name, pack_keys
from corenn.storage.rocksdb import Rocks
from corenn.storage.state import salted, state_words
from corenn.storage.store import Drawn, slab_specs

LAYOUT = "layout.json"
KEYS = ("a", "größer", 5, -7, (1 << 63) - 1)


def layout() -> dict[str, str]:
    """A hash for each part of the format."""
    parts = {
        "constants of storage/format.py": constants(fmt),
        "header of a slab": fmt.Header("vectors.slab", 3, 448, 100, 7).pack().hex(),
        "rows of slabs": slabs(),
        "vectors and seals": vectors(),
        "checksums and states": sums(),
        "keys": [[key_name(key).hex() for key in KEYS], *(part.tobytes().hex() for part in pack_keys(KEYS, 10))],
        "records of commits": records(),
        "names in the metadata": [sorted(map(str, constants(rocks).values())), commit.SOFT],
        "files and metadata of a database": database(),
        "notes of changes": [changes.COLUMNS, changes.NAME],
        "curves and navigation graph": soft(),
        "codebooks": books(),
        "generations": generation_line(),
        "snapshots": [
            sorted(json.loads(snapshot.Marker(1, commit.Head(), changes.Stamp(1, 2), {}).pack())),
            snapshot.MARKER_VERSION, constants(update),
        ],
        "backups": [
            sorted(json.loads(archive.Manifest(1, commit.Head(), ()).pack())), archive.VERSION, archive.NEEDED,
            archive._NAME.pattern,
        ],
    }  # fmt: skip
    return {name: hashlib.sha256(json.dumps(part).encode()).hexdigest()[:16] for name, part in parts.items()}


def constants(module: Any) -> dict[str, Any]:
    """What a module fixes of bytes: its names, numbers of header words, and shapes of rows."""
    tuning = {
        "BATCH_BYTES",
        "RECORD_WORDS",
        "MOST_FOLLOWED",
        "PATIENCE_SECONDS",
        "FORGOTTEN_AT_ONCE",
        "LEAST_BUFFER_BYTES",
        "WRITE_BUFFER_BYTES",
    }
    found: dict[str, Any] = {}
    for name, value in vars(module).items():
        if isinstance(value, struct.Struct):
            found[name] = value.format
        elif name.isupper() and name not in tuning and isinstance(value, int | str | bytes | tuple):
            found[name] = value.hex() if isinstance(value, bytes) else value
    return found


def slabs() -> list[Any]:
    found = []
    for metric, dtype, mode, dim, edges in product(METRICS, DTYPES, COMPRESSIONS, (3, 100, 300), (8, 32)):
        settings = Settings(dim=dim, metric=metric, dtype=dtype, compression_mode=mode, max_edges=edges)
        specs = slab_specs(settings).values()
        found.append([[spec.name, spec.dtype.str, spec.columns, spec.hard, spec.dim] for spec in specs])
    return found


def vectors() -> list[str]:
    found = []
    for metric, dtype in product(METRICS, DTYPES):
        encoded = encode(Settings(dim=3, metric=metric, dtype=dtype), np.array([[3, 4, 0], [0, 0, 0]], np.float32))
        found += [encoded.rows.tobytes().hex(), encoded.seals.tobytes().hex()]
    return found


def sums() -> list[str]:
    ids, made = np.array([0, 5], np.uint32), np.empty(2, np.uint32)
    seals = np.array([[0, 9], [0, 8]], np.uint32)
    checksum_rows(TABLES, np.arange(8, dtype=np.uint64).reshape(2, 4), seals, salted(ids, 3), made)
    return [made.tobytes().hex(), state_words(ids, np.array([1, 2]), np.array([0, 7])).tobytes().hex()]


def records() -> list[str]:
    ids = np.array([3, 4, 5, 9], np.uint32)
    return [part.hex() for part in commit.Record(7, ids, ids[1:], ids[:2]).parts(1000)]


def soft() -> list[Any]:
    ids = np.zeros(2, np.uint32)
    graph = Navigation(ids, np.zeros((2, 6), np.uint32), 1, 1)
    raw = navigation._pack(graph, Drawn(1, 2, np.zeros(2, np.uint64)))
    with np.load(io.BytesIO(raw)) as kept:
        return [curve.pack([]).decode(), [[name, kept[name].dtype.str, kept[name].ndim] for name in sorted(kept)]]


def books() -> list[list[Any]]:
    one = Codebook(
        1, np.zeros(3, np.float32), np.eye(3, dtype=np.float32), np.arange(4), np.zeros((3, 256), np.float32)
    )
    with np.load(io.BytesIO(codebook.pack(one))) as kept:
        return [[name, kept[name].dtype.str, kept[name].ndim] for name in sorted(kept)]


def generation_line() -> str:
    with tempfile.TemporaryDirectory() as scratch:
        generation.draft_generation(Path(scratch), 2, Files())
        generation.adopt_generation(Path(scratch), Files())
        return (Path(scratch) / generation.FILE).read_text()


def database() -> list[Any]:
    """The files of a database and the rows of its metadata: what is random or depends on the machine is left out."""
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "db"
        with CoreNN.create(path, dim=3, metric="l2", max_edges=8) as db:
            db.insert([1, "b", 3], np.eye(3), [{"n": 1}, None, {"n": 3}])
            db.checkpoint()
            db.upsert(["b", "c"], np.ones((2, 3)), [{"n": 4}, None])
            db.set_payload([1], [{"n": 5}])
            db.delete([3])
        with CoreNN.open(path) as db:
            db.upsert([1], np.eye(3)[:1])
        names = sorted(each.name for each in path.iterdir())
        metadata = Rocks(path / generation.METADATA)
        try:
            return [names, [_described(name, raw) for name, raw in metadata.items(b"")]]
        finally:
            metadata.close()


def _described(name: bytes, raw: bytes) -> list[Any]:
    if name == b"msettings":
        stored = json.loads(raw)
        return [name.hex(), sorted(stored), sorted(stored["settings"])]
    return [name.hex(), "" if name == b"mboot" else raw.hex()]


def write_layout(path: Path) -> None:
    path.write_text(json.dumps(layout(), indent=1, ensure_ascii=False) + "\n")

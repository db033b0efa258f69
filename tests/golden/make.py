"""Makes the golden databases of the present version of the format: `python -m tests.golden.make [NAME ...]`.

Run it once for a version, when its format is final, and check in what it writes to tests/golden/vN. The databases of
earlier versions are never made again: no program can write them any more.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from corenn import CoreNN, copies, writer
from corenn.graph import navigation
from corenn.storage import format as fmt
from corenn.storage import rocks
from corenn.storage.rocksdb import Rocks
from corenn.storage.update import UPDATE
from tests.crash.harness import ROOT, environment
from tests.golden.contents import Book, Key, Payload, Rows, coarse, expected_of, pack, write_expected
from tests.golden.layout import LAYOUT, write_layout

HERE = Path(__file__).parent
EXPECTED = "expected.json.xz"
QUERIES = 6
FIRST, MORE, ROUNDS = 150, 15, 8


@dataclass(frozen=True)
class Recipe:
    """How a golden database is made. key: of a number. finish: what is done at the end, in place of closing."""

    settings: dict[str, Any]
    key: Callable[[int], Key] = lambda number: number
    finish: str = "close"
    navigated: bool = False
    zero: bool = False  # a vector of zeros is among the rows
    codes: str | None = None  # that must be in use at the end


def text(number: int) -> Key:
    return f"key {number} " + "äß€𝄞"[number % 4] * (number % 5)


def mixed(number: int) -> Key:
    return (-number - 1, f"s{number}", number, (1 << 63) - 1 - number)[number % 4]


SQ8 = {"compression_mode": "sq8", "compression_threshold": 100}
SQ4 = {"compression_mode": "sq4", "compression_threshold": 100}
RABITQ = {"compression_mode": "rabitq", "compression_threshold": 100}
NONE = {"compression_mode": "none"}

RECIPES = {
    "l2-f32": Recipe({"dim": 12, "metric": "l2", "dtype": "f32", **SQ8, "durability": "sync"}, codes="sq8"),
    "cosine-f16": Recipe({"dim": 9, "metric": "cosine", "dtype": "f16", **SQ4}, text, zero=True, codes="sq4"),
    "ip-bf16": Recipe({"dim": 20, "metric": "ip", "dtype": "bf16", **RABITQ}, mixed, navigated=True, codes="rabitq"),
    "l2-i8": Recipe({"dim": 16, "metric": "l2", "dtype": "i8", "max_edges": 12, **NONE}),
    "cosine-u8": Recipe({"dim": 10, "metric": "cosine", "dtype": "u8", "max_edges": 12}, text),
    "killed": Recipe({"dim": 8, "metric": "cosine", "dtype": "f32", **NONE}, text, "kill"),
    "compacted": Recipe({"dim": 8, "metric": "l2", "dtype": "f16", **SQ8}, mixed, "compact", codes="sq8"),
    "snapshot": Recipe({"dim": 8, "metric": "l2", "dtype": "f32", **NONE}, finish="snapshot"),
    "snapshot-cut-off": Recipe({"dim": 8, "metric": "l2", "dtype": "f32", **NONE}, finish="cut off"),
    "backup": Recipe({"dim": 8, "metric": "ip", "dtype": "f32", **NONE}, mixed, "backup"),
}
KILLED = ("kill", "cut off")


def payload(number: int, version: int = 0) -> Payload:
    return None if number % 3 == 0 else {"number": number, "version": version, "text": "größer"[: number % 7]}


def write(book: Book, recipe: Recipe, rng: np.random.Generator) -> int:
    """Everything that can happen to rows; returns the number of the next key."""
    dim, dtype, key = *(recipe.settings[name] for name in ("dim", "dtype")), recipe.key

    def insert(first: int, count: int) -> None:
        vectors = coarse(rng, count, dim, dtype)
        if recipe.zero and not first:
            vectors[7] = 0
        numbers = range(first, first + count)
        book.insert([key(n) for n in numbers], vectors, [payload(n) for n in numbers])

    insert(0, FIRST)
    book.checkpoint()
    book.set_payload([key(n) for n in range(10, 20)], [payload(n + 1, 1) for n in range(10, 20)])
    book.set_payload([key(n) for n in range(15, 25)], [payload(n + 2, 2) for n in range(15, 25)])
    book.upsert([key(n) for n in range(30, 50)], coarse(rng, 20, dim, dtype), [payload(n, 3) for n in range(30, 50)])
    book.checkpoint()
    at = FIRST
    for start in range(50, 50 + 8 * ROUNDS, 8):  # ids are given back, and given away again
        book.delete([key(n) for n in range(start, start + 8)])
        book.checkpoint()
        if book.db is not None:
            time.sleep(0.05)
        insert(at, MORE)
        at += MORE
    book.set_payload([key(n) for n in range(140, 150)], [payload(n, 4) for n in range(140, 150)])
    book.delete([key(n) for n in range(5, 8)] if not recipe.zero else [key(5)])
    return at


def late(book: Book, recipe: Recipe, rng: np.random.Generator, at: int) -> int:
    """What comes after the last checkpoint, or after a compaction."""
    dim, dtype, key = *(recipe.settings[name] for name in ("dim", "dtype")), recipe.key
    numbers = range(at, at + 20)
    book.insert([key(n) for n in numbers], coarse(rng, 20, dim, dtype), [payload(n, 5) for n in numbers])
    book.upsert([key(at + 2), key(20)], coarse(rng, 2, dim, dtype), [None, {"late": True}])
    book.delete([key(at + 4), key(21)])
    book.set_payload([key(22), key(at + 6)], [{"late": [1, 2.5, None]}, None])
    return at + 20


def finish(book: Book, recipe: Recipe, rng: np.random.Generator, at: int, folder: Path) -> None:
    """The end of a database. What is golden is then in `folder`/golden, or golden.tar.gz."""
    db, golden = book.db, folder / "golden"
    match recipe.finish:
        case "kill":
            if db is not None:
                leave_unlinked()
            late(book, recipe, rng, at)
            if db is not None:
                kill_between_parts(db, recipe)
        case "compact":
            if db is not None:
                db.compact()
            late(book, recipe, rng, at)
        case "snapshot" | "cut off":
            if db is not None:
                db.snapshot(golden)
            late(book, recipe, rng, at)
            if db is not None:
                if recipe.finish == "cut off":
                    kill_before_the_update()
                db.snapshot(golden)
        case "backup":
            if db is not None:
                db.backup(folder / "golden.tar.gz")


def leave_unlinked() -> None:
    """From now on rows are committed and not linked."""
    writer.Writer._may_link = lambda self: False  # type: ignore[method-assign]
    writer.Writer._link = lambda self, ids, head, stop: ids  # type: ignore[method-assign]


def kill_between_parts(db: CoreNN, recipe: Recipe) -> None:
    """Be killed in the middle of a commit that comes in several parts."""
    rocks.BATCH_BYTES = 500
    former = Rocks.write

    def write_one(self: Rocks, batch: Any) -> None:
        former(self, batch)
        os.kill(os.getpid(), signal.SIGKILL)

    Rocks.write = write_one  # type: ignore[method-assign]
    db.upsert([recipe.key(n) for n in range(60)], np.ones((60, recipe.settings["dim"])), [{"cut": "off"}] * 60)


def kill_before_the_update() -> None:
    """Be killed once a new snapshot counts, and before it is written over the earlier one."""

    def killing(folder: Path, files: Any) -> None:
        if (folder / UPDATE).exists():
            os.kill(os.getpid(), signal.SIGKILL)

    copies.finish = killing  # type: ignore[attr-defined]


def build(name: str, folder: Path) -> None:
    """Make a database in `folder`. Some end with the death of the process."""
    recipe = RECIPES[name]
    rng = np.random.default_rng([*name.encode()])
    writer.IDLE_SECONDS = 0.01
    if recipe.navigated:
        navigation.LEAST, navigation.SHARE = 16, 4
    own = folder / ("golden" if recipe.finish in ("close", "kill", "compact") else "source")
    with CoreNN.create(own, **recipe.settings) as db:
        book = Book(db)
        at = write(book, recipe, rng)
        finish(book, recipe, rng, at, folder)
        if recipe.finish in ("close", "compact"):
            check_coverage(db, recipe, at)


def check_coverage(db: CoreNN, recipe: Recipe, at: int) -> None:
    """The file holds what it is there for."""
    found = db.stats()
    if recipe.finish == "close":
        assert found.rows + found.tombstones + found.free < at + 20, "no id was used again"
    assert recipe.codes in (None, found.compression_mode), found.compression_mode
    if recipe.navigated:
        assert found.memory["navigation"]


def remembered(recipe: Recipe, name: str) -> Book:
    """What must be in a database, which is not looked at for it."""
    rng = np.random.default_rng([*name.encode()])
    book = Book(None)
    at = write(book, recipe, rng)
    if recipe.finish != "backup":
        finish(book, recipe, rng, at, Path())
    return book


def make(name: str, target: Path) -> dict[str, Any]:
    """Make a golden database, pack it, and say what must be found in it."""
    recipe = RECIPES[name]
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        done = subprocess.run(
            [sys.executable, "-m", "tests.golden.make", "--child", name, scratch],
            cwd=ROOT,
            env=environment(),
            check=False,
        )
        assert done.returncode == (-signal.SIGKILL if recipe.finish in KILLED else 0)
        golden = folder / "golden"
        if recipe.finish == "backup":
            shutil.copyfile(folder / "golden.tar.gz", target / f"{name}.tar.gz")
            CoreNN.restore(folder / "golden.tar.gz", golden)
        else:
            pack(golden, target / f"{name}.tar.xz")
        queries = query_vectors(recipe, name)
        with CoreNN.open(golden) as db:  # a copy would do, but it is packed by now
            return {"finish": recipe.finish, **expected_of(db, remembered(recipe, name), queries)}


def query_vectors(recipe: Recipe, name: str) -> Rows:
    rng = np.random.default_rng([99, *name.encode()])
    return rng.normal(size=(QUERIES, recipe.settings["dim"])).astype(np.float32)


def main(names: list[str]) -> None:
    target = HERE / f"v{fmt.VERSION}"
    target.mkdir(exist_ok=True)
    found = {}
    for name in names or RECIPES:
        found[name] = make(name, target)
        print(name, *(f"{path.stat().st_size:,} bytes" for path in target.glob(f"{name}.tar.*")))
    if not names:
        write_expected(found, target / EXPECTED)
        write_layout(target / LAYOUT)
    print(f"{sum(path.stat().st_size for path in target.iterdir()):,} bytes in all")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--child"]:
        build(sys.argv[2], Path(sys.argv[3]))
    else:
        main(sys.argv[1:])

"""What a file of a data set is, where it came from and how to tell that it is whole: a JSON object beside it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .atomic import replacing
from .contents import contents, readable
from .layout import MANIFESTS, Layout, layout_of, layouts, manifest_path

READ = 1 << 20


@dataclass(frozen=True, slots=True)
class Manifest:
    """One file of a data set.

    name: of the data set. source: where the file came from, an address or another file. dim, dtype, count: of its
    vectors (of `train` in HDF5), None where it holds none, such as an archive. metric: "l2", "cosine", "ip" or None.
    sha256: of all its bytes, in hexadecimal. command: what made it. created: when, in UTC and ISO 8601. file: its path
    relative to the folder of the data set, or its name if the manifest lies beside it. size: bytes.
    """

    name: str
    source: str
    dim: int | None
    dtype: str | None
    count: int | None
    metric: str | None
    sha256: str
    command: str
    created: str
    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """What verification said about one file; `problem` is None if it is as its manifest says."""

    file: Path
    problem: str | None


def describe(
    file: Path,
    *,
    name: str | None = None,
    source: str = "",
    command: str = "",
    metric: str | None = None,
    root: Path | None = None,
    progress: Callable[[int], None] | None = None,
) -> Manifest:
    """The manifest of a whole file, read once from beginning to end.

    Args:
        file: a file of vectors, or any other, whose dim, dtype and count are then None.
        name: of the data set; that of its layout, or the name of the file, unless given.
        source, command, metric: as in Manifest; the metric is that of the file unless given.
        root: of the layout; see layout.root.
        progress: called with each number of bytes read.

    Raises:
        DatasetError: for a file of vectors that is torn, empty or inconsistent.
    """
    inside = layout_of(file, root)
    dim, dtype, count, named = _held(file)
    return Manifest(
        name=name or (inside.name if inside else file.stem),
        source=source,
        dim=dim,
        dtype=dtype,
        count=count,
        metric=metric or named,
        sha256=digest(file, progress),
        command=command,
        created=now(),
        file=f"{file.parent.name}/{file.name}" if inside else file.name,
        size=file.stat().st_size,
    )


def _held(file: Path) -> tuple[int | None, str | None, int | None, str | None]:
    """dim, dtype, count and metric of what `file` holds; all None unless it holds vectors or neighbours."""
    if not readable(file):
        return None, None, None, None
    found = contents(file)
    return found.dim, found.dtype, found.rows, found.metric


def digest(file: Path, progress: Callable[[int], None] | None = None) -> str:
    """The SHA-256 of `file` in hexadecimal, read in pieces."""
    total = hashlib.sha256()
    with file.open("rb") as opened:
        while piece := opened.read(READ):
            total.update(piece)
            if progress is not None:
                progress(len(piece))
    return total.hexdigest()


def now() -> str:
    """This moment in UTC, ISO 8601 to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def write_manifest(file: Path, manifest: Manifest, root: Path | None = None) -> Path:
    """Write the manifest of `file` where it belongs, and return that path."""
    path = manifest_path(file, root)
    text = json.dumps(asdict(manifest), indent=2, ensure_ascii=False) + "\n"
    with replacing(path) as part:
        # Of a file name that is no UTF-8, what Python has for its bytes becomes an escape that JSON knows.
        part.write_bytes(text.encode("utf-8", "backslashreplace"))
    return path


def read_manifest(path: Path) -> Manifest:
    """The manifest at `path`.

    Raises:
        DatasetError: if it is missing, not JSON, or a field is missing or of a wrong type.
    """
    found = read_json(path)
    names = [field.name for field in fields(Manifest)]
    missing = [name for name in names if name not in found]
    if missing:
        raise DatasetError(f"{path}: no field {', '.join(map(repr, missing))}; not a manifest")
    for field in fields(Manifest):
        if not _fits(found[field.name], str(field.type)):
            raise DatasetError(f"{path}: {field.name} is {found[field.name]!r}; needs {field.type}")
    return Manifest(**{name: found[name] for name in names})


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in `path`.

    Raises:
        DatasetError: if it is missing or something else.
    """
    try:
        found = json.loads(path.read_bytes())
    except FileNotFoundError as error:
        raise DatasetError(f"{path} does not exist") from error
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path}: not JSON ({error})") from error
    if not isinstance(found, dict):
        raise DatasetError(f"{path}: not a JSON object")
    return found


def _fits(value: Any, annotation: str) -> bool:
    if value is None:
        return annotation.endswith("None")
    return type(value).__name__ == annotation.partition(" ")[0]


def verify_manifests(root: Path | None = None, progress: Callable[[int], None] | None = None) -> list[Verdict]:
    """Check every file of every data set below `root` against its manifest: size, sha256, dim, count and dtype.

    A manifest without its file is a problem, and a file without a manifest too.

    Args:
        root: see layout.root.
        progress: called with each number of bytes read.
    """
    return [verdict for each in layouts(root) for verdict in verify_layout(each, progress)]


def verify_layout(layout: Layout, progress: Callable[[int], None] | None = None) -> Iterator[Verdict]:
    """Check the files of one data set; see verify_manifests."""
    known = set()
    for path in manifests(layout):
        file = layout.folder / path.parent.name / path.name.removesuffix(".json")
        known.add(file)
        yield Verdict(file, _problem(file, path, progress))
    for file in layout.files():
        if file not in known and file.suffix != ".json":
            yield Verdict(file, f"no manifest {MANIFESTS}/{file.parent.name}/{file.name}.json")


def manifests(layout: Layout) -> list[Path]:
    """The manifests of one data set, in order."""
    return sorted(each for each in layout.manifests.glob("*/*.json") if each.name[0] != ".")


def verify_file(file: Path, root: Path | None = None, progress: Callable[[int], None] | None = None) -> Verdict:
    """Check one file against its manifest; see verify_manifests."""
    return Verdict(file, _problem(file, manifest_path(file, root), progress))


def _problem(file: Path, path: Path, progress: Callable[[int], None] | None) -> str | None:
    try:
        manifest = read_manifest(path)
        if not file.is_file():
            return "the file is missing"
        size = file.stat().st_size
        if size != manifest.size:
            return f"size is {size:,} bytes, its manifest says {manifest.size:,}"
        dim, dtype, count, _ = _held(file)
        for name, have in (("dim", dim), ("count", count), ("dtype", dtype)):
            if have != (said := getattr(manifest, name)):
                return f"{name} is {have}, its manifest says {said}"
        found = digest(file, progress)
    except (DatasetError, OSError) as error:
        return str(error)
    return None if found == manifest.sha256 else f"sha256 is {found}, its manifest says {manifest.sha256}"

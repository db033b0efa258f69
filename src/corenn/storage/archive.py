"""Backups: the files of a database with a SHA-256 for each, in a folder or in an archive (`.tar`, `.tar.gz`).

The first member of an archive is `MANIFEST.json`, which names all others in their order, with their sizes. Whoever
reads one takes nothing on trust: a member is the next of the manifest or the archive is refused, and no more is read
than was announced. So a link, a device, a path out of the folder, a name that comes twice and an archive that unpacks
without end are all one case: not what comes next.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import re
import stat
import tarfile
import zlib
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, NamedTuple

from ..errors import (
    CoreNNError,
    CorruptionError,
    FormatError,
    InvalidArgumentError,
    NewerFormatError,
    StorageError,
)
from .commit import Head
from .files import Files, translated

Tell = Callable[[int], None]

MANIFEST = "MANIFEST.json"
VERSION = 1
READ_BYTES = 1 << 20
MOST_MANIFEST_BYTES = 1 << 24
GZIP_LEVEL = 1  # vectors hardly get smaller, however long one tries
NEEDED = ("vectors.slab", "seals.slab", "state.slab", "edges.slab", "keys.slab", "keys.heap", "meta/CURRENT")
_BLOCK = tarfile.BLOCKSIZE
_END = bytes(2 * _BLOCK)
_NAME = re.compile(
    r"(vectors|seals|state|edges|keys|codes)\.slab|keys\.heap|settings\.json"
    r"|meta/(CURRENT|IDENTITY|(MANIFEST|OPTIONS)-\d{6,20}|\d{6,20}\.(sst|log|blob))",
    re.ASCII,
)
_PLAIN = (tarfile.REGTYPE, tarfile.AREGTYPE)


class Entry(NamedTuple):
    """A file of a backup: its name below the folder, its bytes, and their SHA-256 in hexadecimal."""

    name: str
    bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a backup holds, and as of when."""

    database: int
    head: Head
    files: tuple[Entry, ...]

    @property
    def size(self) -> int:
        return sum(entry.bytes for entry in self.files)

    def pack(self) -> bytes:
        """As JSON."""
        body = {
            "corenn": "backup", "version": VERSION, "database": self.database, "head": self.head._asdict(),
            "files": [entry._asdict() for entry in self.files],
        }  # fmt: skip
        return json.dumps(body, indent=1).encode() + b"\n"

    @classmethod
    def unpack(cls, raw: bytes, source: Path) -> Manifest:
        """The manifest of a backup that nobody has vouched for.

        Raises:
            FormatError, NewerFormatError
        """
        try:
            body = json.loads(raw)
            if body["corenn"] != "backup" or type(body["version"]) is not int:
                raise ValueError("it is not that of a backup")
            if body["version"] > VERSION:
                raise NewerFormatError(f"{source} is a backup of version {body['version']}: upgrade CoreNN")
            files = tuple(Entry(item["name"], item["bytes"], item["sha256"]) for item in body["files"])
            _check_entries(files)
            return cls(int(body["database"]), Head(**body["head"]), files)
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise FormatError(f"{source}: its {MANIFEST} is wrong ({error}); refused") from error


def _check_entries(files: tuple[Entry, ...]) -> None:
    names = [entry.name for entry in files]
    for name, size, sha256 in files:
        if not isinstance(name, str) or not _NAME.fullmatch(name):
            raise ValueError(f"{name!r} is no file of a database")
        if type(size) is not int or not 0 <= size < 1 << 62:
            raise ValueError(f"{name} has {size!r} bytes")
        if not isinstance(sha256, str) or not re.fullmatch("[0-9a-f]{64}", sha256):
            raise ValueError(f"{name} has no SHA-256")
    if len(set(names)) < len(names):
        raise ValueError("it names a file twice")
    if missing := set(NEEDED) - set(names):
        raise ValueError(f"it lacks {', '.join(sorted(missing))}")


def is_archive(target: Path) -> bool:
    """Whether a backup of this name is an archive, and no folder.

    Raises:
        InvalidArgumentError: for an archive of a kind that is not written.
    """
    name = target.name.lower()
    if name.endswith((".tar", ".tar.gz", ".tgz")):
        return True
    if name.endswith((".zip", ".7z", ".zst", ".xz", ".bz2", ".gz")):
        raise InvalidArgumentError(f"{target}: choose a name that ends in .tar.gz or .tar, or the name of a folder")
    return False


# --- making -----------------------------------------------------------------------------------------------------------


def names_in(folder: Path) -> list[str]:
    """The files of a database in a folder: the metadata, then the slabs."""
    with translated("look into", folder):
        found = [f"meta/{path.name}" for path in (folder / "meta").iterdir()] + [path.name for path in folder.iterdir()]
    return [name for name in sorted(found, key=lambda name: ("/" not in name, name)) if _NAME.fullmatch(name)]


def describe(folder: Path, database: int, head: Head, tell: Tell) -> Manifest:
    """The manifest of a database that nobody writes to: reads every byte."""
    entries = []
    for name in names_in(folder):
        digest, size = hashlib.sha256(), 0
        with translated("read", folder / name), (folder / name).open("rb") as file:
            while piece := file.read(READ_BYTES):
                digest.update(piece)
                size += len(piece)
                tell(len(piece))
        entries.append(Entry(name, size, digest.hexdigest()))
    return Manifest(database, head, tuple(entries))


def pack(folder: Path, manifest: Manifest, archive: Path, files: Files, tell: Tell) -> None:
    """Write an archive of what a manifest describes, and bring it to the disk."""
    descriptor = files.open(archive, writable=True, create=True)
    try:
        out = _Appended(descriptor, archive, files)
        packed: Any = out
        if not archive.name.lower().endswith(".tar"):
            packed = gzip.GzipFile(filename="", mode="wb", compresslevel=GZIP_LEVEL, fileobj=out, mtime=0)
        raw = manifest.pack()
        packed.write(_header(MANIFEST, len(raw)) + raw + _padding(len(raw)))
        for entry in manifest.files:
            packed.write(_header(entry.name, entry.bytes))
            for piece in _pieces(folder / entry.name, entry.bytes):
                packed.write(piece)
                tell(len(piece))
            packed.write(_padding(entry.bytes))
        packed.write(_END)
        if packed is not out:
            packed.close()
        files.sync(descriptor, archive)
    finally:
        files.close(descriptor)


class _Appended:
    """A file that is written from its beginning to its end, by way of Files."""

    def __init__(self, descriptor: int, path: Path, files: Files) -> None:
        self._descriptor, self._path, self._files = descriptor, path, files
        self._end = 0

    def write(self, data: bytes) -> int:
        self._files.write(self._descriptor, memoryview(data), self._end, self._path)
        self._end += len(data)
        return len(data)

    def flush(self) -> None:
        """Nothing is kept back."""


def _header(name: str, size: int) -> bytes:
    member = tarfile.TarInfo(name)
    member.size, member.mode = size, 0o644
    return member.tobuf(tarfile.GNU_FORMAT)


def _padding(size: int) -> bytes:
    return bytes(-size % _BLOCK)


def _pieces(path: Path, size: int) -> Iterator[bytes]:
    """Exactly `size` bytes of a plain file."""
    with translated("read", path), path.open("rb") as file:
        while size:
            piece = file.read(min(READ_BYTES, size))
            if not piece:
                raise StorageError(f"{path} has become shorter while it was read")
            size -= len(piece)
            yield piece


# --- reading ----------------------------------------------------------------------------------------------------------


class Backup:
    """A backup that is read: its manifest, then the content of each file, once, in the order of the manifest."""

    def __init__(self, source: Path, manifest: Manifest, content: Callable[[Entry], IO[bytes]]) -> None:
        self.source = source
        self.manifest = manifest
        self._content = content

    def unpack(self, folder: Path, files: Files, tell: Tell) -> None:
        """Write all files into a new folder, and test their checksums.

        Raises:
            FormatError, CorruptionError
        """
        (folder / "meta").mkdir(parents=True)
        for entry in self.manifest.files:
            self._unpack_file(entry, folder / entry.name, files, tell)
        current = (folder / "meta" / "CURRENT").read_bytes()
        if f"meta/{current[:-1].decode(errors='replace')}" not in {entry.name for entry in self.manifest.files}:
            raise FormatError(f"{self.source}: meta/CURRENT names {current[:80]!r}, which is not there; refused")
        files.sync_folder(folder / "meta")

    def _unpack_file(self, entry: Entry, path: Path, files: Files, tell: Tell) -> None:
        digest, done = hashlib.sha256(), 0
        content = self._content(entry)
        descriptor = files.open(path, writable=True, create=True)
        try:
            while done < entry.bytes:
                piece = content.read(min(READ_BYTES, entry.bytes - done))
                if not piece:
                    raise CorruptionError(f"{self.source} ends within {entry.name}; use another backup")
                digest.update(piece)
                files.write(descriptor, memoryview(piece), done, path)
                done += len(piece)
                tell(len(piece))
            files.sync(descriptor, path)
        finally:
            files.close(descriptor)
        if digest.hexdigest() != entry.sha256:
            raise CorruptionError(f"{self.source}: {entry.name} fails its checksum; use another backup")


@contextmanager
def open_backup(source: Path) -> Iterator[Backup]:
    """A backup in a folder or an archive, whatever its name.

    Raises:
        FormatError, NewerFormatError, CorruptionError, StorageError
    """
    with translated("look at", source):
        folder = stat.S_ISDIR(source.stat().st_mode)
    with ExitStack() as opened, _damage(source):
        if folder:
            yield _open_folder(source, opened)
            return
        archive = _Archive(source, opened)
        yield Backup(source, archive.manifest, archive.content)
        archive.finish()


@contextmanager
def _damage(source: Path) -> Iterator[None]:
    """What the libraries say about a damaged archive, as one line of ours."""
    try:
        yield
    except CoreNNError:
        raise
    except (tarfile.TarError, gzip.BadGzipFile, zlib.error, EOFError, UnicodeError) as error:
        raise CorruptionError(f"{source} is torn or damaged ({error}); use another backup") from error
    except OSError as error:
        raise StorageError(f"cannot read {source}: {error.strerror or error}") from error


def _open_folder(source: Path, opened: ExitStack) -> Backup:
    if (source / "meta").is_symlink():
        raise FormatError(f"{source}/meta is a link; refused")
    if not (source / MANIFEST).exists():
        raise FormatError(f"{source} is no backup: it has no {MANIFEST}; a snapshot is opened or copied as it is")

    def content(name: str) -> IO[bytes]:
        path = source / name
        with translated("read", path):  # a link is refused by the system
            descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
        file = opened.enter_context(os.fdopen(descriptor, "rb"))
        if not stat.S_ISREG(os.fstat(descriptor).st_mode):
            raise FormatError(f"{path} is a device or the like; refused")
        return file

    manifest = Manifest.unpack(content(MANIFEST).read(MOST_MANIFEST_BYTES), source)

    def next_file(entry: Entry) -> IO[bytes]:
        file = content(entry.name)
        if os.fstat(file.fileno()).st_size != entry.bytes:
            raise CorruptionError(f"{source}: {entry.name} has not the {entry.bytes:,} bytes of the manifest")
        return file

    return Backup(source, manifest, next_file)


class _Archive:
    """The members of an archive, one after the other."""

    def __init__(self, source: Path, opened: ExitStack) -> None:
        self._source = source
        with translated("open", source):
            file = opened.enter_context(source.open("rb"))
            packed = file.read(2) == b"\x1f\x8b"
            file.seek(0)
        self._stream: Any = opened.enter_context(gzip.GzipFile(fileobj=file)) if packed else file
        self._left = 0  # of the member at hand, with its padding
        size = self._begin(MANIFEST, set())
        if size > MOST_MANIFEST_BYTES:
            raise FormatError(f"{source}: its {MANIFEST} has {size:,} bytes; refused")
        raw = self._exactly(size)
        self._exactly(-size % _BLOCK)
        self._seen = {MANIFEST}
        self.manifest = Manifest.unpack(raw, source)

    def _exactly(self, size: int) -> bytes:
        data: bytes = self._stream.read(size)
        if len(data) < size:
            raise CorruptionError(f"{self._source} ends in the middle; use another backup")
        return data

    def _begin(self, name: str, seen: set[str]) -> int:
        """Read the header of the next member, which must be this one; returns its size."""
        raw = self._exactly(_BLOCK)
        if raw == bytes(_BLOCK):
            raise FormatError(f"{self._source} ends before {name}; refused")
        member = tarfile.TarInfo.frombuf(raw, "utf-8", "strict")
        if member.name != name or member.type not in _PLAIN or member.size < 0:
            raise FormatError(f"{self._source}: {_wrong(member, name, seen)}; refused")
        return member.size

    def content(self, entry: Entry) -> IO[bytes]:
        """The stream, at the beginning of the next file."""
        if self._left:
            self._exactly(self._left)
        size = self._begin(entry.name, self._seen)
        if size != entry.bytes:
            raise FormatError(
                f"{self._source}: {entry.name} has {size:,} bytes, {entry.bytes:,} by its manifest; refused"
            )
        self._seen.add(entry.name)
        self._left = -size % _BLOCK
        stream: IO[bytes] = self._stream
        return stream

    def finish(self) -> None:
        """See that there is nothing behind the last file but the end, which has the checksum of the compression."""
        self._exactly(self._left)
        if self._exactly(len(_END)) != _END:
            raise FormatError(f"{self._source} goes on behind the files of its manifest; refused")
        rest = self._stream.read(tarfile.RECORDSIZE + 1)
        if len(rest) > tarfile.RECORDSIZE or rest.strip(b"\0"):
            raise FormatError(f"{self._source} goes on behind its end; refused")


def _wrong(member: tarfile.TarInfo, expected: str, seen: set[str]) -> str:
    """Why a member is not the one that comes next."""
    if member.type not in _PLAIN:
        return f"{member.name!r} is a link, a folder, a device or the like"
    if member.name.startswith("/") or ".." in member.name.split("/"):
        return f"{member.name!r} lies outside of the archive"
    if member.name in seen:
        return f"{member.name!r} comes twice"
    if expected == MANIFEST:
        return f"it begins with {member.name!r} and not with its {MANIFEST}"
    if not _NAME.fullmatch(member.name):
        return f"{member.name!r} is no file of a database"
    return f"{member.name!r} stands where its manifest has {expected!r}"

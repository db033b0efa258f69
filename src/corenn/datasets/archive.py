"""Files out of archives that nobody has vouched for: `.tar` in any compression, `.zip`, `.gz`.

Nothing is written but the members that were asked for, each to a name that the caller gives, and never more bytes than
the caller allows. Any member that is not a plain file or folder below the archive's own root condemns the archive, and
so does damage anywhere in it: files appear when the last byte has been read.
"""

from __future__ import annotations

import bz2
import errno
import gzip
import lzma
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path, PurePosixPath
from typing import IO, Any

from ..errors import DatasetError
from .atomic import replacing
from .transfer import Unwatched, Watcher

READ_BYTES = 1 << 20
MAX_MEMBERS = 10_000
MAX_HEADER_BYTES = 1 << 20
DAMAGE = (
    tarfile.TarError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error, EOFError, NotImplementedError,
    OverflowError, RuntimeError, UnicodeError, ValueError,
)  # fmt: skip
# What gzip and bz2 say of wrong bytes, and zipfile of a position before the beginning.
BYTES_AT_FAULT = (None, errno.EINVAL)
_COMPRESSIONS: Mapping[bytes, Callable[[Path], Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}


def extract(archive: Path, wanted: Mapping[str, Path], max_bytes: int, watch: Watcher | None = None) -> None:
    """Write members of a tar or zip archive to files; those that are there already are replaced.

    Args:
        archive: its ending says which kind it is: .zip, or else tar with whatever compression it has.
        wanted: where each member goes, by the last part of its name.
        max_bytes: the most that all members together may have, unpacked.
        watch: told how it goes.

    Raises:
        DatasetError: for an archive that is torn, lacks a wanted member, has it twice, has a member outside of its own
            root, a link, a device or an encrypted one, or unpacks to more than `max_bytes`.
    """
    watch = watch or Unwatched()
    watch.begin(f"unpacking {archive.name}", None)
    members = _zip if archive.name.lower().endswith(".zip") else _tar
    done: set[str] = set()
    with _translated(archive), ExitStack() as files:
        for name, size, content in members(archive, max_bytes):
            if name not in wanted:
                continue
            if name in done:
                raise DatasetError(f"{archive}: holds {name} twice; refused")
            done.add(name)
            part = files.enter_context(replacing(wanted[name]))
            _copy(archive, content, part, size, watch)
        if missing := wanted.keys() - done:
            raise DatasetError(f"{archive}: holds no {', '.join(sorted(missing))}")


def gunzip(packed: Path, target: Path, max_bytes: int, *, prefix: bool = False, watch: Watcher | None = None) -> None:
    """Unpack a .gz file to `target`.

    Args:
        packed: the file; any number of gzip members one after the other.
        target: where the bytes go.
        max_bytes: the most that may come out; with `prefix`, how many are taken, and `packed` may be cut behind them.
        prefix: take the first bytes only.
        watch: told how it goes.

    Raises:
        DatasetError: if it is torn or damaged, has more bytes than allowed or, with `prefix`, fewer.
    """
    watch = watch or Unwatched()
    watch.begin(f"unpacking {packed.name}", max_bytes if prefix else None)
    left = max_bytes
    with _translated(packed), gzip.open(packed) as content, replacing(target) as part, part.open("xb") as out:
        while piece := content.read(min(READ_BYTES, left if prefix else left + 1)):
            left -= len(piece)
            if left < 0:
                raise DatasetError(f"{packed}: unpacks to more than {max_bytes:,} bytes; refused")
            out.write(piece)
            watch.advance(len(piece))
        if prefix and left:
            raise DatasetError(f"{packed}: unpacks to {max_bytes - left:,} bytes; {max_bytes:,} are wanted")


@contextmanager
def _translated(archive: Path) -> Iterator[None]:
    """What the libraries say about a damaged archive, as one line of ours."""
    try:
        yield
    except DatasetError:
        raise
    except DAMAGE as error:
        raise _damaged(archive, error) from error
    except OSError as error:
        if error.errno not in BYTES_AT_FAULT:
            raise
        raise _damaged(archive, error) from error


def _damaged(archive: Path, why: object) -> DatasetError:
    return DatasetError(f"{archive} is torn or damaged ({why}); remove it and fetch it again")


def _copy(archive: Path, content: IO[bytes], part: Path, size: int, watch: Watcher) -> None:
    """Write exactly `size` bytes to `part`, whatever comes."""
    left = size
    with part.open("xb") as out:
        while left >= 0 and (piece := content.read(min(READ_BYTES, left + 1))):
            left -= len(piece)
            out.write(piece)
            watch.advance(len(piece))
    if left:
        raise _damaged(archive, f"a member has not the {size:,} bytes that it should")


# --- tar --------------------------------------------------------------------------------------------------------------


class _Member(tarfile.TarInfo):
    """A member whose extended headers, which tarfile reads whole into memory, are of a bounded size."""

    def _proc_member(self, tar: tarfile.TarFile) -> tarfile.TarInfo | None:
        plain = self.type in (*tarfile.REGULAR_TYPES, tarfile.DIRTYPE)
        if not plain and self.size > MAX_HEADER_BYTES:
            raise tarfile.ReadError(f"a header of {self.size:,} bytes")
        found: tarfile.TarInfo | None = super()._proc_member(tar)  # type: ignore[misc]
        return found


def _tar(archive: Path, max_bytes: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    """The plain files of a tar archive: last part of the name, size, content. One pass; each is valid until the next.

    The stream is read to its end, where the checksum of the compression stands.
    """
    total = 0
    with _unpacked(archive) as stream, tarfile.open(fileobj=stream, mode="r|", tarinfo=_Member) as tar:
        for number, member in enumerate(tar):
            total += member.size
            _check(archive, member.name, number, total, max_bytes)
            if member.isdir():
                continue
            if not member.isreg() or member.issparse():
                raise DatasetError(f"{archive}: {member.name} is a link, a device or the like; refused")
            if hasattr(tarfile, "data_filter"):  # Python 3.11.4; the checks here do not rely on it
                tarfile.data_filter(member, str(archive.parent))
            content = tar.extractfile(member)
            assert content is not None  # it is a plain file
            yield PurePosixPath(member.name).name, member.size, content
        _drain(archive, stream, max_bytes)


def _unpacked(archive: Path) -> Any:
    with archive.open("rb") as file:
        magic = file.read(8)
    opener = next((each for start, each in _COMPRESSIONS.items() if magic.startswith(start)), None)
    return opener(archive) if opener else archive.open("rb")


def _drain(archive: Path, stream: IO[bytes], max_bytes: int) -> None:
    left = max_bytes
    while piece := stream.read(READ_BYTES):
        left -= len(piece)
        if left < 0:
            raise DatasetError(f"{archive}: goes on for more than {max_bytes:,} bytes behind its last member; refused")


# --- zip --------------------------------------------------------------------------------------------------------------


def _zip(archive: Path, max_bytes: int) -> Iterator[tuple[str, int, IO[bytes]]]:
    """The plain files of a zip archive, as _tar gives them."""
    with zipfile.ZipFile(archive) as packed:
        total = 0
        for number, member in enumerate(packed.infolist()):
            total += member.file_size
            _check(archive, member.filename, number, total, max_bytes)
            if stat.S_IFMT(member.external_attr >> 16) not in (0, stat.S_IFREG, stat.S_IFDIR):
                raise DatasetError(f"{archive}: {member.filename} is a link, a device or the like; refused")
            if member.flag_bits & 1:
                raise DatasetError(f"{archive}: {member.filename} is encrypted; refused")
        for member in packed.infolist():
            if not member.is_dir():
                with packed.open(member) as content:
                    yield PurePosixPath(member.filename).name, member.file_size, content


def _check(archive: Path, name: str, number: int, total: int, max_bytes: int) -> None:
    """The rules of every member: where it lies, how many there are, and how much comes out."""
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or "\0" in name or ":" in name.partition("/")[0]:
        raise DatasetError(f"{archive}: {name!r} lies outside of the archive; refused")
    if number >= MAX_MEMBERS:
        raise DatasetError(f"{archive}: has more than {MAX_MEMBERS:,} members; refused")
    if total > max_bytes:
        raise DatasetError(f"{archive}: unpacks to more than {max_bytes:,} bytes; refused")

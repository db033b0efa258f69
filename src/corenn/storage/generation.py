"""Which files of a directory are the database.

Generation 1 lies in the directory itself, each later one in a folder of its own. The file GENERATION names the valid
one; a new one takes its place by a rename, which is the commit of a compaction. What other generations have left
behind is removed by the next writer.
"""

from __future__ import annotations

import logging
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

from ..errors import CoreNNError, FormatError, NotADatabaseError
from .files import Files, translated

log = logging.getLogger("corenn.storage")

FILE = "GENERATION"
METADATA = "meta"
FIRST = 1
_DRAFT = "GENERATION.new"
_LINE = re.compile(rb"generation ([1-9][0-9]{0,8}) crc ([0-9a-f]{8})\n")
_FOLDER = re.compile(r"generation-([1-9][0-9]{0,8})")
_OWN = re.compile(
    r"(?:\w+\.slab|keys\.heap|meta|fields\.index|text\.index)(?:\.damaged|\.new|\.salvage)?|\.?settings\.json"
)


def folder_of(path: Path, number: int) -> Path:
    """Where the files of a generation are."""
    return path if number == FIRST else path / f"generation-{number}"


def read_generation(path: Path) -> int:
    """The number of the valid generation.

    Raises:
        NotADatabaseError: if there is none.
        FormatError: if the file that names it is damaged or lost.
    """
    try:
        with translated("read", path / FILE):
            raw = (path / FILE).read_bytes() if (path / FILE).exists() else None
    except FileNotFoundError:
        raw = None
    if raw is None:
        if _holds(path):
            return FIRST
        if not any(_holds(folder) for _, folder in _folders(path)):
            remedy = "; `corenn restore` makes one of a backup" if path.is_file() else ""
            raise NotADatabaseError(f"{path} is not a CoreNN database; create one with CoreNN.create{remedy}")
        raise FormatError(f"{path / FILE} is missing, but there are generations; run `corenn repair`")
    found = _LINE.fullmatch(raw)
    if found is None or int(found[2], 16) != zlib.crc32(found[1]):
        raise FormatError(f"{path / FILE} is damaged: it reads {raw[:60]!r}; run `corenn repair`")
    return int(found[1])


def rescue_generation(path: Path, files: Files) -> int:
    """The number of the valid generation; where the file that names it is of no use, that of the only one there is.

    Raises:
        NotADatabaseError
        FormatError: if several are there, and only that file could tell which one is valid.
    """
    try:
        return read_generation(path)
    except FormatError as error:
        there = [number for number, folder in ((FIRST, path), *_folders(path)) if _holds(folder)]
        if len(there) != 1:
            raise FormatError(
                f"{error}: generations {there} are there; move all but the right one away first"
            ) from None
        log.warning("%s; it is the only one", error)
        draft_generation(path, there[0], files)
        adopt_generation(path, files)
        files.sync_folder(path)
        return there[0]


def draft_generation(path: Path, number: int, files: Files) -> None:
    """Write a file that names a generation, and bring it to the disk, beside the one that is in force."""
    draft, digits = path / _DRAFT, str(number).encode()
    files.remove(draft)
    descriptor = files.open(draft, writable=True, create=True)
    try:
        files.write(descriptor, memoryview(b"generation %b crc %08x\n" % (digits, zlib.crc32(digits))), 0, draft)
        files.sync(descriptor, draft)
    finally:
        files.close(descriptor)


def adopt_generation(path: Path, files: Files) -> None:
    """Put what `draft_generation` wrote into force. It survives a loss of power once the folder is synced."""
    files.rename(path / _DRAFT, path / FILE)


def discard_draft(path: Path, files: Files) -> None:
    """Remove what `draft_generation` wrote, as far as that goes."""
    with suppress(CoreNNError):
        files.remove(path / _DRAFT)


def files_of(path: Path, number: int) -> list[Path]:
    """What there is of a generation."""
    if number != FIRST:
        return [folder for folder in (folder_of(path, number),) if folder.exists()]
    return [each for each in path.iterdir() if _OWN.fullmatch(each.name)]


def remove_generation(path: Path, number: int, files: Files) -> None:
    """Give back the space of a generation that is not valid any more. What cannot be removed is when a writer opens."""
    try:
        for each in files_of(path, number):
            log.info("removing %s", each)
            (files.remove_tree if each.is_dir() else files.remove)(each)
    except (CoreNNError, OSError):
        log.warning("generation %d in %s could not be removed", number, path, exc_info=True)


def remove_leftovers(path: Path, valid: int, files: Files) -> None:
    """Remove all other generations, and what a switch that was cut off has left."""
    others = [number for number in (FIRST, *(number for number, _ in _folders(path))) if number != valid]
    try:
        if any(files_of(path, number) for number in others):
            files.sync_folder(path)  # no loss of power may bring back the name of a generation that is gone
        for number in others:
            remove_generation(path, number, files)
        files.remove(path / _DRAFT)
    except (CoreNNError, OSError):
        log.warning("what other generations have left in %s could not be removed", path, exc_info=True)


def _folders(path: Path) -> Iterator[tuple[int, Path]]:
    """The generations that have a folder of their own, in order."""
    named = ((_FOLDER.fullmatch(each.name), each) for each in path.iterdir()) if path.is_dir() else ()
    yield from sorted((int(found[1]), each) for found, each in named if found and each.is_dir())


def _holds(folder: Path) -> bool:
    """Whether the metadata of a generation is there."""
    with translated("look for", folder):
        return any((folder / name).exists() for name in (f"{METADATA}/CURRENT", "settings.json"))

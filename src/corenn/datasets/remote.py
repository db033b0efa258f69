"""What the catalogue says of a data set: its shape, and the files that its sources serve."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePosixPath
from urllib.parse import urlsplit

from ..errors import DatasetError
from .dtypes import NAMES
from .transports import shown

CHECKSUMS = {"sha256": 64, "sha512": 128, "md5": 32}  # digits
FORMS = ("hdf5", "texmex", "bigann", "bvecs")
METRICS = ("l2", "cosine", "ip")
SCHEMES = ("https", "http", "ftp", "file")


def check_url(url: str) -> None:
    """Refuse what is no address of a kind that can be fetched.

    Raises:
        DatasetError: for such a one.
    """
    scheme, colon, _ = url.partition(":")
    if not colon or scheme.lower() not in SCHEMES:
        raise DatasetError(f"{shown(url)}: needs an address that begins with {', '.join(SCHEMES)}")
    try:
        _ = urlsplit(url).port
    except ValueError:
        raise DatasetError(f"{shown(url)}: no address; host or port cannot be read") from None


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """One file, the same bytes at each of its addresses.

    name: what it is called below raw/. urls: its addresses, the preferred one first. size: bytes, None if nobody that
    could be cited says so. checksum: "sha256:…", "sha512:…" or "md5:…" in hexadecimal, empty if unknown. cited: where
    size and checksum were read; empty means that the file cannot be verified.
    """

    name: str
    urls: tuple[str, ...]
    size: int | None = None
    checksum: str = ""
    cited: str = ""

    def __post_init__(self) -> None:
        plain = PurePosixPath(self.name).name == self.name and "\0" not in self.name
        if not self.name or not plain or self.name.startswith("."):
            raise DatasetError(f"{self.name!r} is not a plain file name")
        if not self.urls:
            raise DatasetError(f"{self.name} has no URL")
        for url in self.urls:
            check_url(url)
        kind, _, digest = self.checksum.partition(":")
        if self.checksum and (len(digest) != CHECKSUMS.get(kind) or not set(digest) <= set("0123456789abcdef")):
            raise DatasetError(
                f"{self.name}: checksum {self.checksum!r}; needs one of {', '.join(CHECKSUMS)}, a colon, and all "
                "its digits in hexadecimal, small letters"
            )

    @property
    def verified(self) -> bool:
        """True if there is a checksum to hold the file against."""
        return bool(self.checksum)


@dataclass(frozen=True, slots=True)
class Source:
    """One way to get all of a data set.

    form: the module of recipes/ that knows its files. base: the file with the rows, or with everything. total: rows in
    that file, of which the data set is the first ones. queries: the file of queries, where it is one of its own.
    truths: files of true neighbours, each for so many first rows of the base. members: names of base, queries and
    truth within an archive.
    """

    form: str
    base: RemoteFile
    total: int
    queries: RemoteFile | None = None
    truths: Mapping[int, RemoteFile] = field(default_factory=dict)
    members: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.form not in FORMS:
            raise DatasetError(f"unknown form {self.form!r}; choose one of {', '.join(FORMS)}")
        if self.form == "texmex" and len(self.members) != 3:
            raise DatasetError(f"{self.base.name}: members must name base, queries and truth of the archive")
        if self.form in ("bigann", "bvecs") and self.queries is None:
            raise DatasetError(f"{self.base.name}: form {self.form} needs a file of queries")

    @property
    def files(self) -> tuple[RemoteFile, ...]:
        """All files that a fetch may need."""
        return tuple(file for file in (self.base, self.queries, *self.truths.values()) if file is not None)


@dataclass(frozen=True, slots=True)
class Entry:
    """A data set of the catalogue.

    rows, queries: how many. dim: numbers per row. dtype: short name of their type. metric: "l2", "cosine" or "ip".
    licence: empty if no source could be cited, then `homepage` is where to look. sources: the preferred one first.
    aliases: other names that find it.
    """

    name: str
    title: str
    rows: int
    queries: int
    dim: int
    dtype: str
    metric: str
    homepage: str
    sources: tuple[Source, ...]
    licence: str = ""
    aliases: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        RemoteFile(self.name, ("file:",))  # the name of a folder obeys the rules of a file's
        if min(self.rows, self.queries, self.dim) < 1:
            raise DatasetError(f"{self.name}: rows, queries and dim must be at least 1")
        if self.dtype not in NAMES:
            raise DatasetError(f"{self.name}: unknown type {self.dtype!r}; choose one of {', '.join(NAMES)}")
        if self.metric not in METRICS:
            raise DatasetError(f"{self.name}: unknown metric {self.metric!r}; choose one of {', '.join(METRICS)}")
        if not self.sources:
            raise DatasetError(f"{self.name} has no source")
        for source in self.sources:
            if source.total < self.rows:
                raise DatasetError(f"{self.name}: {source.base.name} has {source.total:,} rows of {self.rows:,}")

    @property
    def row_bytes(self) -> int:
        """Bytes of one row of numbers."""
        return self.dim * NAMES[self.dtype].itemsize

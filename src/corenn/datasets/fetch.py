"""A data set of the catalogue, from the first source and mirror that serve it, made ready for use.

What is already there and whole is not fetched again; what broke off goes on. See transfer.py for one file, recipes/ for
what becomes of them, layout.py for where they lie.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

from ..errors import DatasetError, InvalidArgumentError
from .formats.hdf5 import parts
from .layout import layout, root
from .manifest import read_manifest
from .recipes import Job, Prepared, Wanted, prepare, wanted
from .remote import Entry, RemoteFile, Source, check_url
from .transfer import Patience, Unwatched, Watcher, download, held, mismatch
from .transports import shown

__all__ = ["Planned", "Prepared", "fetch", "located", "plan"]

BASES = (".hdf5", ".fbin", ".u8bin", ".i8bin")


@dataclass(frozen=True, slots=True)
class Planned:
    """A file that a fetch would get.

    name: as the catalogue calls it. target: where it would go. urls: in the order in which they would be tried, as
    they may be shown. bytes: how many would come, None if unknown. verified: whether there is a checksum to check them
    by. cited: where size and checksum come from. there: whether it is there already.
    """

    name: str
    target: Path
    urls: tuple[str, ...]
    bytes: int | None
    verified: bool
    cited: str
    there: bool


def plan(
    entry: Entry, *, rows: int | None = None, folder: Path | None = None, urls: Sequence[str] = ()
) -> list[list[Planned]]:
    """What a fetch would get, for each of the sources in order; the next is tried only if one fails.

    Args: as of `fetch`.

    Raises:
        InvalidArgumentError: for rows that the data set does not have.
    """
    jobs = _jobs(entry, rows, root(folder), urls, "", Unwatched())
    return [[_planned(job, each) for each in wanted(job)] for job in jobs]


def _planned(job: Job, each: Wanted) -> Planned:
    size = each.file.size if each.stop is None else each.stop
    verified = each.file.verified and each.stop is None
    urls = tuple(map(shown, each.file.urls))
    return Planned(
        each.file.name, each.target, urls, size, verified, each.file.cited, job.recorded(each.target)
    )  # fmt: skip


def fetch(
    entry: Entry,
    *,
    rows: int | None = None,
    folder: Path | None = None,
    urls: Sequence[str] = (),
    command: str = "",
    patience: Patience | None = None,
    watch: Watcher | None = None,
) -> Prepared:
    """Fetch a data set, and make it ready for use.

    Args:
        entry: of the catalogue.
        rows: take the first ones only; all unless given.
        folder: of all data sets; see layout.root.
        urls: further addresses, tried first: of a file by its name, or of a folder, which ends in "/".
        command: what the manifests say was run.
        patience: when to give up a mirror.
        watch: told how it goes.

    Raises:
        InvalidArgumentError: for rows that the data set does not have, or an address that fits none of its files.
        DatasetError: if no source gives it, with the reasons; or if another process is fetching it.
        DiskFullError: if there is no room for it.
    """
    top = root(folder)
    jobs = _jobs(entry, rows, top, urls, command, watch or Unwatched())
    place = layout(entry.name, top)
    try:
        with held(place.folder / ".fetch.lock", entry.name):
            return _first_that_works(jobs, patience or Patience())
    finally:
        for empty in (place.raw, place.folder):
            with suppress(OSError):  # there is something in it, or it was never made
                empty.rmdir()


def _first_that_works(jobs: Sequence[Job], patience: Patience) -> Prepared:
    reasons = []
    ordered = sorted(jobs, key=lambda job: not _begun(job))
    for job in ordered:
        try:
            for each in wanted(job):
                _bring(job, each, patience)
            return prepare(job)
        except DatasetError as error:
            reasons.append(str(error))
            if job is not ordered[-1]:
                job.watch.note(str(error))
    raise DatasetError(" / ".join(reasons))


def _begun(job: Job) -> bool:
    """True if a file of this source is there, or a part of one: it is then tried before the others."""
    targets = [each.target for each in wanted(job)]
    return any(target.exists() or target.with_name(f".{target.name}.part").exists() for target in targets)


def _jobs(entry: Entry, rows: int | None, top: Path, urls: Sequence[str], command: str, watch: Watcher) -> list[Job]:
    if rows is not None and not 1 <= rows <= entry.rows:
        raise InvalidArgumentError(f"{rows:,} rows of {entry.name}; it has {entry.rows:,}")
    place = layout(entry.name, top)
    sources = _with_urls(entry, urls)
    return [Job(entry, source, rows or entry.rows, place, top, command, watch) for source in sources]


# --- further addresses ------------------------------------------------------------------------------------------------


def _with_urls(entry: Entry, urls: Sequence[str]) -> list[Source]:
    """The sources with `urls` in front of the addresses of the files that they fit; such a source comes first."""
    names = {name for source in entry.sources for file in source.files for name in _names(file)}
    for url in urls:
        check_url(url)
        name = _last(url)
        if name and name not in names and len(names) > 1 and not _fits_base(entry, name):
            raise InvalidArgumentError(
                f"--url {shown(url)}: ends in none of {', '.join(sorted(names))}; end it in / if it is a folder of "
                "such files"
            )
    return sorted((_extended(source, urls) for source in entry.sources), key=lambda each: each in entry.sources)


def _last(url: str) -> str:
    return urlsplit(url).path.rpartition("/")[2]


def _names(file: RemoteFile) -> set[str]:
    """What the file is called here, and by its first mirror."""
    return {file.name, _last(file.urls[0])}


def _fits_base(entry: Entry, name: str) -> bool:
    """True for a name that no file has, but whose ending is that of exactly one source's base: a renamed copy."""
    return sum(_same_kind(name, source.base) for source in entry.sources) == 1


def _same_kind(name: str, file: RemoteFile) -> bool:
    return Path(name).suffixes[-2:] == Path(file.name).suffixes[-2:] or (
        Path(name).suffix == Path(file.name).suffix and Path(name).suffix not in ("", ".gz")
    )


def _extended(source: Source, urls: Sequence[str]) -> Source:
    known = {name for file in source.files for name in _names(file)}

    def more(file: RemoteFile) -> RemoteFile:
        given = []
        for url in urls:
            name = _last(url)
            if not name:
                given.append(url + _last(file.urls[0]))
            elif name in _names(file) or (file is source.base and name not in known and _same_kind(name, file)):
                given.append(url)
        return replace(file, urls=(*given, *file.urls)) if given else file

    return replace(
        source,
        base=more(source.base),
        queries=None if source.queries is None else more(source.queries),
        truths={rows: more(file) for rows, file in source.truths.items()},
    )


# --- files ------------------------------------------------------------------------------------------------------------


def _bring(job: Job, each: Wanted, patience: Patience) -> None:
    """Have the file at its target, with a manifest."""
    if not each.target.exists():
        each.target.parent.mkdir(parents=True, exist_ok=True)
        if not each.file.verified or each.stop is not None:
            job.watch.note(f"{each.target.name}: nobody has published a checksum for it; its form is checked only")
        url = download(
            each.file, each.target, stop=each.stop, clip=each.clip, finish=each.finish, patience=patience,
            watch=job.watch,
        )  # fmt: skip
        job.record(each.target, shown(url))
        return
    if wrong := _wrong(job, each):
        raise DatasetError(f"{each.target}: {wrong}; remove it to fetch it again")
    if not job.recorded(each.target):
        job.record(each.target, shown(each.file.urls[0]))


def _wrong(job: Job, each: Wanted) -> str | None:
    """What is wrong with a file that is there; its bytes are read only if its manifest does not vouch for it."""
    size = each.target.stat().st_size
    expected = each.file.size if each.stop is None else each.stop
    if expected is not None and size != expected and not each.clip:
        return f"has {size:,} bytes, not {expected:,}"
    if not each.file.verified or each.stop is not None:
        return None
    if job.recorded(each.target):
        known = f"sha256:{read_manifest(job.layout.manifest_of(each.target)).sha256}"
        if known == each.file.checksum or not each.file.checksum.startswith("sha256:"):
            return None
    job.watch.begin(f"checking {each.target.name}", size)
    return mismatch(each.target, each.file.checksum, job.watch.advance)


# --- what was fetched -------------------------------------------------------------------------------------------------


def located(entry: Entry, folder: Path | None = None) -> Prepared:
    """The data set as it was fetched to this machine: all of it, else the longest slice.

    Args:
        entry: of the catalogue.
        folder: of all data sets; see layout.root.

    Raises:
        DatasetError: if it was not fetched yet.
    """
    place = layout(entry.name, folder)
    for rows in (entry.rows, *sorted(_slices(entry, place.processed), reverse=True)):
        stem = entry.name if rows == entry.rows else f"{entry.name}-{rows}"
        base = next((file for end in BASES if (file := place.processed / f"{stem}{end}").is_file()), None)
        if base is None:
            continue
        if base.suffix == ".hdf5":
            truth = base if "neighbors" in parts(base) else None
            return Prepared(entry.name, entry.metric, rows, entry.dim, base, base, truth, "train", "test")
        queries = place.processed / f"{entry.name}.queries{base.suffix}"
        neighbours = place.gt / f"{stem}.ibin"
        if queries.is_file():
            known = neighbours if neighbours.is_file() else None
            return Prepared(entry.name, entry.metric, rows, entry.dim, base, queries, known)
    raise DatasetError(f"{entry.name} is not in {place.folder}; get it with: corenn dataset fetch {entry.name}")


def _slices(entry: Entry, processed: Path) -> set[int]:
    """Numbers of rows of the slices below processed/."""
    names = {file.stem.removeprefix(f"{entry.name}-") for file in processed.glob(f"{entry.name}-*")}
    return {int(name) for name in names if name.isdecimal()}

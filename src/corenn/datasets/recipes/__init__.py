"""What a fetch makes of the files of a source: one module per form, found by its name.

A recipe is a module with two functions:

    wanted(job) -> list of the files to fetch
    prepare(job) -> Prepared: the files for use, made from those

What `wanted` names is below raw/ when `prepare` begins.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from importlib import import_module
from pathlib import Path

from ...errors import DatasetError
from ..atomic import replacing
from ..layout import Layout
from ..manifest import describe, read_manifest, write_manifest
from ..remote import Entry, RemoteFile, Source
from ..transfer import Watcher

__all__ = ["Job", "Prepared", "Wanted", "prepare", "wanted"]


@dataclass(frozen=True, slots=True)
class Wanted:
    """A file to fetch: where it goes, and how much of it is needed. The rest as in transfer.download."""

    file: RemoteFile
    target: Path
    stop: int | None = None
    clip: bool = False
    finish: Callable[[Path], None] | None = None


@dataclass(frozen=True, slots=True)
class Prepared:
    """A data set that is ready for use.

    name: of the data set. metric: "l2", "cosine" or "ip". rows, dim: of the base. base, queries: files for
    open_vectors, with the part of each (None where a file has one only). truth: a file for read_truth, or None if
    nobody has published the true neighbours among these rows.
    """

    name: str
    metric: str
    rows: int
    dim: int
    base: Path
    queries: Path
    truth: Path | None
    base_part: str | None = None
    queries_part: str | None = None


@dataclass(frozen=True, slots=True)
class Job:
    """One data set from one source.

    rows: how many first rows are wanted. layout: the folders of the data set. root: of all data sets. command: what the
    manifests say was run. watch: told how it goes.
    """

    entry: Entry
    source: Source
    rows: int
    layout: Layout
    root: Path
    command: str
    watch: Watcher

    @property
    def sliced(self) -> bool:
        """True if fewer rows are wanted than the data set has."""
        return self.rows < self.entry.rows

    @property
    def cut(self) -> bool:
        """True if fewer rows are wanted than the file of the source has: its neighbours are then not those of these."""
        return self.rows < self.source.total

    @property
    def stem(self) -> str:
        """What the files of this job are called below processed/ and gt/, without the ending."""
        return f"{self.entry.name}-{self.rows}" if self.sliced else self.entry.name

    def raw(self, name: str) -> Path:
        """A file below raw/."""
        return self.layout.raw / name

    def record(self, file: Path, source: str) -> None:
        """Write the manifest of a file that was fetched or made."""
        self.watch.begin(f"checking {file.name}", file.stat().st_size)
        manifest = describe(
            file, name=self.entry.name, source=source, command=self.command, root=self.root,
            metric=self.entry.metric, progress=self.watch.advance,
        )  # fmt: skip
        write_manifest(file, manifest, self.root)

    def recorded(self, file: Path) -> bool:
        """True if the file is there, with a manifest, and of the size that this says."""
        try:
            return file.stat().st_size == read_manifest(self.layout.manifest_of(file)).size
        except (DatasetError, OSError):
            return False

    def make(self, file: Path, source: str, write: Callable[[Path], None]) -> Path:
        """Let `write` make a file, unless it is recorded already, and record it."""
        if not self.recorded(file):
            write(file)
            self.record(file, source)
        return file

    def share(self, source: Path, target: Path) -> Path:
        """Give a file of this data set a second name, at no cost where the file system can link."""
        if not self.recorded(target):
            with replacing(target) as part:
                try:
                    os.link(source, part)
                except OSError:
                    shutil.copyfile(source, part)
            file, origin = (f"{each.parent.name}/{each.name}" for each in (target, source))
            if target.suffix == source.suffix:
                known = read_manifest(self.layout.manifest_of(source))
                write_manifest(target, replace(known, source=origin, file=file, command=self.command), self.root)
            else:
                self.record(target, origin)
        return target


def wanted(job: Job) -> list[Wanted]:
    """The files that the recipe of the job's source needs."""
    found: list[Wanted] = import_module(f".{job.source.form}", __package__).wanted(job)
    return found


def prepare(job: Job) -> Prepared:
    """Make the files for use from those that were fetched.

    Raises:
        DatasetError: if they are not what the catalogue says.
    """
    found: Prepared = import_module(f".{job.source.form}", __package__).prepare(job)
    return found

"""Where data sets lie: `<root>/<name>/{raw,processed,gt,manifests}`."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FOLDERS = ("raw", "processed", "gt")
MANIFESTS = "manifests"
ROOT = "CORENN_DATASETS"


def root(given: Path | None = None) -> Path:
    """The folder of all data sets: `given`, else that of the environment, else ./datasets."""
    return given or Path(os.environ.get(ROOT) or "datasets")


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one data set. None of them need exist.

    folder: `<root>/<name>`.
    """

    folder: Path

    @property
    def name(self) -> str:
        """The name of the data set."""
        return self.folder.name

    @property
    def raw(self) -> Path:
        """Files as they were fetched."""
        return self.folder / "raw"

    @property
    def processed(self) -> Path:
        """Files made from those: converted, sampled, split."""
        return self.folder / "processed"

    @property
    def gt(self) -> Path:
        """Ground truth."""
        return self.folder / "gt"

    @property
    def manifests(self) -> Path:
        """The manifest of raw/base.fvecs is manifests/raw/base.fvecs.json."""
        return self.folder / MANIFESTS

    def manifest_of(self, file: Path) -> Path:
        """Where the manifest of a file in one of the folders is."""
        return self.manifests / file.parent.name / f"{file.name}.json"

    def files(self) -> Iterator[Path]:
        """All whole files of the data set, in order."""
        for folder in FOLDERS:
            inside = self.folder / folder
            if inside.is_dir():
                yield from sorted(each for each in inside.iterdir() if each.is_file() and each.name[0] != ".")


def layout(name: str, given: Path | None = None) -> Layout:
    """The folders of the data set `name` below `root(given)`."""
    return Layout(root(given) / name)


def layouts(given: Path | None = None) -> list[Layout]:
    """All data sets below `root(given)`, by name."""
    top = root(given)
    if not top.is_dir():
        return []
    known = (*FOLDERS, MANIFESTS)
    folders = sorted(each for each in top.iterdir() if any((each / part).is_dir() for part in known))
    return [Layout(folder) for folder in folders]


def layout_of(file: Path, given: Path | None = None) -> Layout | None:
    """The data set that `file` lies in, or would lie in; None outside of a layout."""
    if file.parent.name not in FOLDERS:
        return None
    found = Layout(file.parent.parent)
    inside = found.folder.resolve().parent == root(given).resolve()
    return found if inside or found.manifests.is_dir() else None


def manifest_path(file: Path, given: Path | None = None) -> Path:
    """Where the manifest of `file` belongs: in the manifests of its data set, else beside it as NAME.json."""
    found = layout_of(file, given)
    return found.manifest_of(file) if found else file.with_name(f"{file.name}.json")

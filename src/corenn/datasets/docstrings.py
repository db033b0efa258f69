"""The demo's data: the documentation of the Python installation that runs it. Sources are parsed, never imported."""

from __future__ import annotations

import ast
import sysconfig
import warnings
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from itertools import chain, zip_longest
from pathlib import Path

SKIPPED_FOLDERS = {"test", "tests", "testing", "idle_test", "site-packages", "dist-packages", "__pycache__"}
LARGEST_FILE = 1_000_000
SHORTEST_TEXT = 20
Definition = ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef


@dataclass(frozen=True, slots=True)
class Docstring:
    """What one module, class, function or method says about itself.

    name: dotted, such as package.module.Class.method. text: the docstring without its indentation.
    """

    name: str
    text: str

    @property
    def line(self) -> str:
        """The first line of the text."""
        return self.text.partition("\n")[0].strip()


def installed() -> list[Path]:
    """Folders of the standard library and of the installed packages, in this order."""
    return [
        Path(folder) for folder in dict.fromkeys(sysconfig.get_path(name) for name in ("stdlib", "purelib", "platlib"))
    ]


def harvest(roots: Iterable[Path]) -> Iterator[Docstring]:
    """Every docstring below `roots`, each name and each text once, always in the same order."""
    names: set[str] = set()
    texts: set[str] = set()
    for file, module in chain.from_iterable(map(source_files, roots)):
        for found in docstrings_of(file, module):
            if found.name not in names and found.text not in texts:
                names.add(found.name)
                texts.add(found.text)
                yield found


def source_files(root: Path) -> Iterator[tuple[Path, str]]:
    """Python files below `root` with their module names: one of each package in turn, so that a few give all topics."""
    packages: dict[str, list[tuple[Path, str]]] = defaultdict(list)
    for file in sorted(root.rglob("*.py")):
        parts = file.relative_to(root).with_suffix("").parts
        if not SKIPPED_FOLDERS.intersection(parts) and all(part.isidentifier() for part in parts):
            packages[parts[0]].append((file, ".".join(parts).removesuffix(".__init__")))
    for turn in zip_longest(*packages.values()):
        yield from (item for item in turn if item is not None)


def docstrings_of(file: Path, module: str) -> Iterator[Docstring]:
    """The docstrings of one source file, in the order of its lines; none if it cannot be read or parsed."""
    try:
        source = file.read_bytes()
        if len(source) > LARGEST_FILE or not any(quotes in source for quotes in (b'"""', b"'''")):
            return
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what the parser thinks of other people's escapes
            tree = ast.parse(source)
    except (OSError, SyntaxError, ValueError, RecursionError):
        return
    yield from _documented(tree, module)


def _documented(node: ast.Module | Definition, name: str) -> Iterator[Docstring]:
    text = (ast.get_docstring(node) or "").strip()
    if len(text) >= SHORTEST_TEXT:
        yield Docstring(name, text)
    if isinstance(node, ast.Module | ast.ClassDef):
        for child in node.body:
            if isinstance(child, Definition) and _is_public(child.name):
                yield from _documented(child, f"{name}.{child.name}")


def _is_public(name: str) -> bool:
    return not name.startswith("_") or (name.startswith("__") and name.endswith("__"))

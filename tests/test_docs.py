"""The documentation against the code.

Rules out a setting, command, flag, error, method or word of the format that the documents do not name or name wrongly,
an example that does not run, a link that leads nowhere, and a promise whose test does not exist.
"""

from __future__ import annotations

import ast
import re
import signal
import struct
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
from inspect import signature
from pathlib import Path
from typing import Any

import pytest
import typer

import corenn
from corenn import CoreNN, errors
from corenn.cli import app
from corenn.config import META, Settings
from corenn.storage import format as fmt
from tests.crash.harness import environment

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md"))]
DEFAULTS = {item.name: item.default for item in fields(Settings)}


def commands(group: Any, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Every command below `group`, by its name as it is typed, such as `bench run`."""
    for name in group.list_commands(None):
        each = group.commands[name]
        if hasattr(each, "commands"):
            yield from commands(each, f"{prefix}{name} ")
        else:
            yield f"{prefix}{name}", each


COMMANDS: dict[str, Any] = dict(commands(typer.main.get_command(app)))
PUBLIC = [name for name in vars(CoreNN) if not name.startswith("_")]
WORDS = (
    "PUBLISHED",
    "FREED",
    "LINKED",
    "JOURNAL",
    "RADIUS",
    "ELECTED",
    "ENTRY_COUNT",
    "GROWTH",
    "GROWN",
    "NAVIGATED",
    "ENTRIES",
    "HEAP_END",
    "CODED",
    "CHOSEN",
    "CENTRE",
    "TRIED",
    "BOOK",
    "SLACK",
    "MISSED",
    "AGREED",
    "SINCE",
    "LOOKED",
    "CLOCK",
    "BOOT",
    "SETTLED",
    "PLACED",
    "TICKS",
)


@cache
def text(name: str) -> str:
    """A page, by its path below the root."""
    return (ROOT / name).read_text()


@cache
def everything() -> str:
    """All pages, one after the other."""
    return "\n".join(page.read_text() for page in PAGES)


def table(page: str) -> dict[str, list[str]]:
    """The table rows of a text whose first cell is `code`: the other cells by that name."""
    rows = {}
    for line in page.splitlines():
        cells = [cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        if len(cells) > 1 and re.fullmatch(r"`[^`]+`", cells[0]):
            rows[cells[0].strip("`")] = cells[1:]
    return rows


def section(page: str, heading: str) -> str:
    """The text below a heading, up to the next of its rank."""
    rank = heading.partition(" ")[0]
    found = re.search(rf"^{re.escape(heading)}\n(.*?)(?=^{rank} |\Z)", page, re.S | re.M)
    assert found, f"no heading {heading!r}"
    return found[1]


def settings_table() -> dict[str, list[str]]:
    return table(section(text("docs/tuning.md"), "## Settings").partition("\n### ")[0])


# --- settings and arguments -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", META)
def test_settings_are_described(name: str) -> None:
    default, bounds, change, meaning = settings_table()[name]
    meta = META[name]
    assert default == ("required" if name == "dim" else str(DEFAULTS[name]))
    assert bounds == (", ".join(meta["choices"]) or f"{meta['low']} to {meta['high']}")
    assert change == ("yes" if meta["mutable"] else "no")
    assert meaning


def test_settings_that_do_not_exist_are_not_described() -> None:
    assert list(settings_table()) == list(META)


def test_arguments_of_a_query_are_described() -> None:
    described = table(section(text("docs/tuning.md"), "## Query arguments"))
    arguments = {name: each.default for name, each in signature(CoreNN.query).parameters.items() if name != "self"}
    assert set(described) == set(arguments)
    for name, default in arguments.items():
        assert described[name][0] == ("" if name == "vectors" else str(default)), name


def test_environment_variables_are_described() -> None:
    sources = "\n".join(path.read_text() for path in Path(corenn.__file__).parent.rglob("*.py"))
    for name in set(re.findall(r"CORENN_[A-Z_]+", sources)):
        assert f"`{name}`" in text("docs/tuning.md"), name


# --- names ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PUBLIC)
def test_public_methods_are_named(name: str) -> None:
    assert re.search(rf"(?:`|\.){name}(?:\(|`)", everything()), name


@pytest.mark.parametrize("name", corenn.__all__)
def test_exports_are_named(name: str) -> None:
    assert re.search(rf"\b{name}s?\b", everything()), name


ERRORS = [value for value in vars(errors).values() if isinstance(value, type) and issubclass(value, Exception)]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.__name__)
def test_errors_are_described_with_their_builtin(error: type[Exception]) -> None:
    also, when, _ = table(text("docs/errors.md"))[error.__name__]
    builtin = next(base for base in error.__mro__ if base.__module__ == "builtins")
    assert f"`{builtin.__name__}`" in also
    assert when


def test_errors_that_do_not_exist_are_not_described() -> None:
    assert set(table(text("docs/errors.md"))) == {error.__name__ for error in ERRORS}


def test_the_changelog_knows_this_version() -> None:
    assert re.search(rf"(?<!\d){re.escape(corenn.__version__)}(?!\.?\d)", text("CHANGELOG.md"))


# --- the command line -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", COMMANDS)
def test_commands_and_their_options_are_described(name: str) -> None:
    part = section(text("docs/cli.md"), f"## corenn {name}")
    described = table(part)
    options = {(each.opts[0].upper() if each.param_type_name == "argument" else each.opts[0]): each
               for each in COMMANDS[name].params}  # fmt: skip
    known = {flag for each in COMMANDS[name].params for flag in (*each.opts, *each.secondary_opts)}
    assert {row for row in described if row.startswith("-") or row.isupper()} == set(options)
    for flag, option in options.items():
        default, meaning = described[flag]
        assert meaning
        if option.required:
            assert default == "required", flag
        elif option.default not in (None, False):
            assert default == str(option.default), flag
    assert set(re.findall(r"(?<![\w-])--[a-z][a-z0-9-]*", part)) <= known, "an option that does not exist"
    assert f"    $ corenn {name}" in part, "no example"


def test_commands_that_do_not_exist_are_not_described() -> None:
    assert re.findall(r"^## corenn (.+)$", text("docs/cli.md"), re.M) == list(COMMANDS)
    first = {name.partition(" ")[0] for name in COMMANDS}
    assert set(re.findall(r"(?:^|[`$] ?)corenn ([a-z][a-z-]*)", everything(), re.M)) <= first


def test_examples_in_the_help_and_in_the_readme_use_options_that_exist() -> None:
    for line in re.findall(r"(?:\$ |`)corenn ([a-z].*?)(?:`|$)", everything(), re.M):
        name = max((name for name in COMMANDS if f"{line} ".startswith(f"{name} ")), key=len, default="")
        params = COMMANDS[name].params if name else []  # the name of a group stands alone
        options = {flag for each in params for flag in (*each.opts, *each.secondary_opts)} | {"--help"}
        assert set(re.findall(r"(?<![\w-])--?[a-z][a-z0-9-]*", line[len(name) :])) <= options, line


def test_options_of_the_program_are_described() -> None:
    head = text("docs/cli.md").partition("\n## ")[0]
    program = typer.main.get_command(app)
    assert set(table(head)) == {"--help", *(flag for each in program.params for flag in each.opts)}


# --- the format -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", WORDS)
def test_words_of_the_header_stand_where_the_format_says(name: str) -> None:
    offset = getattr(fmt, name) * 8
    rows = [line for line in text("docs/format.md").splitlines() if f"| `{name}` |" in line]
    assert len(rows) == 1
    assert f"| {offset} |" in rows[0]


def test_every_word_of_the_header_is_described() -> None:
    limits = {"VERSION", "PAGE", "MAX_ENTRIES", "MAX_TICKS", "NO_ID", "NEVER"}
    assert {name for name, value in vars(fmt).items() if name.isupper() and isinstance(value, int)} == {*WORDS, *limits}


def test_the_header_is_drawn_as_it_is_packed() -> None:
    page = text("docs/format.md")
    packed = fmt.Header("vectors.slab", 1, 448, 100, 7).pack()
    drawn = re.findall(r"^\| (\d+) \| (u32|u64|\d+ bytes) \| (\w+)", page, re.M)
    kinds = {"u32": "I", "u64": "Q", "8 bytes": "8s", "16 bytes": "16s"}
    assert struct.calcsize("<" + "".join(kinds[kind] for _, kind, _ in drawn)) == len(packed)
    found = {field: struct.unpack_from("<" + kinds[kind], packed, int(at))[0] for at, kind, field in drawn}
    found.pop("crc")
    name = b"vectors.slab".ljust(16, b"\0")
    expected = {
        "magic": fmt.MAGIC,
        "version": fmt.VERSION,
        "flags": 0,
        "generation": 1,
        "bytes": 448,
        "dim": 100,
        "database": 7,
    }
    assert found == {**expected, "name": name}
    assert re.search(rf"^Version {fmt.VERSION}\.", page, re.M)


# --- kernels ----------------------------------------------------------------------------------------------------------


def test_kernels_are_as_many_as_the_design_says() -> None:
    source = Path(corenn.__file__).parent
    others = "\n".join(path.read_text() for path in source.rglob("*.py") if path.parent.name != "kernels")
    taking = [
        node.args.args[0].arg
        for path in (source / "kernels").glob("*.py")
        for node in ast.parse(path.read_text()).body
        if isinstance(node, ast.FunctionDef)
        and any(getattr(each, "id", "") == "kernel" for each in node.decorator_list)
        and re.search(rf"\b{node.name}\b", others)
    ]
    found = re.search(
        r"Of (\d+) kernels in use, (\d+) take .*?; (\d+) do not .*? makes (\d+) in all", text("docs/design.md"), re.S
    )
    assert found
    rows = taking.count("rows")
    kinds = len(META["dtype"]["choices"])
    twice = kinds  # choose_edges
    counted = (len(taking), rows, len(taking) - rows, rows * kinds + twice + len(taking) - rows)
    assert tuple(map(int, found.groups())) == counted


# --- examples, links, promises ----------------------------------------------------------------------------------------


EXAMPLES = re.findall(r"^```python\n(.*?)^```", text("README.md"), re.S | re.M)


@pytest.mark.compiled
@pytest.mark.parametrize("number", range(len(EXAMPLES)))
def test_examples_run_as_they_stand_in_an_empty_folder(number: int, tmp_path: Path) -> None:
    """One that kills itself is run once more, as its reader is told to. Kernels of unusual types are compiled as they
    are needed: those that no example calls would take minutes.
    """
    for expected in (-signal.SIGKILL, 0) if "SIGKILL" in EXAMPLES[number] else (0,):
        done = subprocess.run(
            [sys.executable, "-W", "error", "-c", "import tests.usual\n" + EXAMPLES[number]],
            cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=200, check=False,
        )  # fmt: skip
        assert done.returncode == expected, done.stderr
        assert done.stderr == ""
    shown = re.search(r"second finds everything:\n\n((?:    .*\n)+)", text("README.md"))
    if number == 0:
        assert shown
        assert done.stdout.splitlines() == [line.strip() for line in shown[1].splitlines()]


def links() -> Iterator[tuple[Path, str]]:
    for page in PAGES:
        for target in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
            if not target.startswith(("http://", "https://", "mailto:")):
                yield page, target


def anchors(page: Path) -> set[str]:
    """The anchors of the headings of a page, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize(("page", "target"), list(links()), ids=lambda value: getattr(value, "name", value))
def test_links_lead_somewhere(page: Path, target: str) -> None:
    path, _, anchor = target.partition("#")
    other = (page.parent / path).resolve() if path else page
    assert other.is_relative_to(ROOT)
    assert other.exists(), f"{page.name} links to {target}"
    assert not anchor or anchor in anchors(other), f"{page.name} links to {target}"


PROMISES = sorted(set(re.findall(r"`(tests/[\w/]+\.py)::(\w+)`", everything())))


@pytest.mark.parametrize(("file", "name"), PROMISES, ids=lambda value: value)
def test_promises_name_tests_that_exist(file: str, name: str) -> None:
    tree = ast.parse((ROOT / file).read_text())
    assert name in {node.name for node in tree.body if isinstance(node, ast.FunctionDef | ast.ClassDef)}

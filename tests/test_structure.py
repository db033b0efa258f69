"""Rules out a project whose layers, kernels or settings have grown out of their places."""

from __future__ import annotations

import ast
import importlib
import pkgutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import corenn

SOURCE = Path(corenn.__file__).parent
# From the bottom up; a layer imports itself and what stands before it.
LAYERS = (
    "errors", "names", "deadline", "once", "sizes", "config", "types", "durations", "projection", "kernels", "storage",
    "filters", "graph", "writer", "compact", "repair", "inputs", "build", "warmup", "copies", "database", "root",
    "wire", "client", "__init__", "datasets", "measure", "plan", "migrate", "server", "bench", "cli", "__main__",
)  # fmt: skip


def modules() -> Iterator[tuple[Path, ast.Module]]:
    for path in sorted(SOURCE.rglob("*.py")):
        yield path, ast.parse(path.read_text())


def layer(path: Path) -> str:
    return path.relative_to(SOURCE).parts[0].removesuffix(".py")


def imported_layers(path: Path, tree: ast.Module) -> Iterator[str]:
    """The layers that a module imports, wherever in it."""
    package = ("corenn", *path.relative_to(SOURCE).with_suffix("").parts[:-1])
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names if alias.name.split(".")[0] == "corenn"]
        elif isinstance(node, ast.ImportFrom) and (node.level or (node.module or "").split(".")[0] == "corenn"):
            base = ".".join(package[: len(package) - node.level + 1]) if node.level else ""
            module = ".".join(part for part in (base, node.module) if part)
            names = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            parts = name.split(".")
            yield parts[1] if len(parts) > 1 and parts[1] in LAYERS else "__init__"


def test_every_module_belongs_to_a_layer() -> None:
    assert {layer(path) for path, _ in modules()} <= set(LAYERS)


@pytest.mark.parametrize(
    ("path", "tree"), list(modules()), ids=lambda value: value.stem if isinstance(value, Path) else ""
)
def test_imports_point_down(path: Path, tree: ast.Module) -> None:
    own = LAYERS.index(layer(path))
    for name in imported_layers(path, tree):
        assert LAYERS.index(name) <= own, f"{path} imports {name}, which stands above it"


def test_the_layer_check_sees_an_upward_import() -> None:
    tree = ast.parse("from ..database import CoreNN\nfrom .. import CoreNN as C\nimport corenn.cli")
    assert list(imported_layers(SOURCE / "kernels" / "x.py", tree)) == ["database", "__init__", "cli"]


def test_only_kernels_import_numba() -> None:
    for path, tree in modules():
        names = {
            alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
        }
        names |= {(node.module or "").split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
        assert layer(path) == "kernels" or not names & {"numba", "llvmlite"}, path


def test_compiler_options_stand_in_one_file() -> None:
    """No kernel is compiled but through the decorators of jit.py."""
    for path, tree in modules():
        if path.name == "jit.py":
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("numba"):
                names = {alias.name for alias in node.names}
                assert not names & {
                    "njit",
                    "jit",
                    "vectorize",
                    "guvectorize",
                    "prange",
                    "register_jitable",
                    "overload",
                }, path
            if isinstance(node, ast.keyword):
                assert node.arg not in {"nogil", "fastmath", "parallel", "error_model"}, f"{path}:{node.value.lineno}"


def test_settings_are_declared_in_one_place() -> None:
    """Every default of a setting is in config.py: nobody else calls `setting`."""
    for path, tree in modules():
        calls = [
            node for node in ast.walk(tree) if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "setting"
        ]
        assert path.name == "config.py" or not calls, path


def test_nothing_unpickles_or_evaluates() -> None:
    for path, tree in modules():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call):
                name = getattr(node.func, "id", getattr(node.func, "attr", ""))
                assert name not in {"eval", "exec"} or isinstance(node.func, ast.Attribute), f"{path}:{node.lineno}"
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & {"pickle", "marshal", "shelve"}, path
            if isinstance(node, ast.keyword) and node.arg == "allow_pickle":
                assert isinstance(node.value, ast.Constant) and node.value.value is False, path


def test_public_names_have_docstrings() -> None:
    for name in corenn.__all__:
        assert getattr(corenn, name).__doc__, name
    for name, member in vars(corenn.CoreNN).items():
        if not name.startswith("_") and callable(getattr(member, "__func__", member)):
            assert getattr(corenn.CoreNN, name).__doc__, name


def test_every_module_imports_on_its_own() -> None:
    names = [
        info.name for info in pkgutil.walk_packages([str(SOURCE)], "corenn.") if not info.name.endswith("__main__")
    ]
    for name in names:
        if ".bench" not in name:
            importlib.import_module(name)


def test_importing_the_package_is_quiet_and_leaves_heavy_modules_alone() -> None:
    code = "import sys, corenn; print([m for m in ('sklearn', 'pyarrow', 'typer', 'rich', 'h5py') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert done.stderr == ""

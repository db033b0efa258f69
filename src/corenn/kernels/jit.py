"""The one place where kernels are compiled: options, decorators and the cache on disk.

A kernel is a module-level function without closures over data. Numba's own cache notices only changes of the file that
defines a function, so the folder is named by a hash of everything that can change the machine code: all kernel sources,
the options, the versions and the modes of the compiler.
"""

from __future__ import annotations

import atexit
import fcntl
import hashlib
import logging
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar

import llvmlite
import numba
import numpy as np
from numba import njit
from numba.core import config
from numba.core.caching import CompileResultCacheImpl, FunctionCache, _CacheLocator
from numba.extending import overload, register_jitable

log = logging.getLogger("corenn.kernels")

JIT = not getattr(config, "DISABLE_JIT")  # noqa: B009 - set at run time, unknown to type checkers
# Not `True`: that would drop NaN and infinity, which the sentinels need. Without `reassoc` a sum does not vectorise.
FASTMATH = {"nsz", "arcp", "contract", "afn", "reassoc"}
# No kernel allocates, so none counts references: the atomic increments cost 64 ns against 18 for one 128-d distance.
OPTIONS: Any = {"nogil": True, "fastmath": FASTMATH, "error_model": "numpy", "_nrt": False}

# What kernels are made of is put in their place: a call would push the fields of every NamedTuple, for each distance.
PART_OPTIONS: Any = {**OPTIONS, "forceinline": True}

# What users write: their sums stay as they are, and a division by zero is infinity, as in a payload's column.
USER_OPTIONS: Any = {"nopython": True, "nogil": True, "error_model": "numpy"}

IRRELEVANT = {"NUMBA_NUM_THREADS"}  # a mode of the compiler that changes no machine code of ours

F = TypeVar("F", bound=Callable[..., Any])
KERNELS: list[Any] = []


def kernel(function: F) -> F:
    """Compile `function`, release the GIL while it runs, and keep the machine code on disk."""
    if not JIT:
        # Machine arithmetic wraps around and overflows in silence.
        return np.errstate(over="ignore")(function)
    compiled: Any = njit(**OPTIONS)(function)
    compiled._cache = _KernelCache(function)
    KERNELS.append(compiled)
    return compiled


def entry_point(compiled: F, *example: Any) -> F:
    """The machine code of a kernel for arguments of exactly the types of `example`.

    Calling it costs 1 µs where the dispatcher, which looks at every field of every NamedTuple, takes 12. It checks
    nothing: only for arguments whose types our own code fixes.
    """
    if not JIT:
        return compiled
    dispatcher: Any = compiled
    code: F = dispatcher.compile(tuple(dispatcher.typeof_pyval(value) for value in example))
    return code


def compiled_for(function: Callable[..., Any]) -> Callable[[F], F]:
    """Give a plain function, which runs when the JIT is off, the body to compile instead, by the types of arguments."""
    if not JIT:
        return lambda body: body
    return overload(function, jit_options=PART_OPTIONS, strict=False, inline="never")


def inlined(function: F) -> F:
    """Part of a kernel: compiled into its callers, callable as it is when the JIT is off."""
    return register_jitable(**PART_OPTIONS)(function)


@cache
def cache_folder() -> Path:
    """Folder of the machine code of this version of the kernels, private to the user."""
    base = os.environ.get("CORENN_CACHE_DIR") or os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    folder = Path(base) / "corenn" / f"kernels-{_fingerprint()}"
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        owner = folder.stat()
        # The files are pickles: a folder that others can write is a way to run their code.
        if owner.st_uid == os.getuid() and not owner.st_mode & 0o022 and os.access(folder, os.W_OK | os.X_OK):
            return folder
        log.warning("kernel cache %s is not a private folder of this user; compiling into a temporary one", folder)
    except OSError as error:
        log.warning("kernel cache %s is not usable (%s); compiling into a temporary folder", folder, error)
    return _temporary_folder()


def _temporary_folder() -> Path:
    """A folder that goes with this process; a fork of it leaves the folder alone."""
    folder, owner = Path(tempfile.mkdtemp(prefix="corenn-kernels-")), os.getpid()

    def remove() -> None:
        if os.getpid() == owner:
            shutil.rmtree(folder, ignore_errors=True)

    atexit.register(remove)
    return folder


def _fingerprint() -> str:
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    names = sorted(name for name in os.environ if name.startswith("NUMBA_") and name not in IRRELEVANT)
    modes = [f"{name}={os.environ[name]}" for name in names]
    versions = [sys.version, numba.__version__, llvmlite.__version__, np.__version__]
    digest.update(repr((sorted(FASTMATH), sorted(map(str, PART_OPTIONS)), versions, modes)).encode())
    return digest.hexdigest()[:16]


@contextmanager
def _exclusive(folder: Path) -> Iterator[None]:
    """Hold the folder's lock: an index and its data files are written by one process at a time."""
    with (folder / "lock").open("a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


class _Locator(_CacheLocator):
    def __init__(self, function: Callable[..., Any]) -> None:
        self._name = f"{function.__module__}.{function.__qualname__}"

    def get_cache_path(self) -> str:
        return str(cache_folder())

    def get_source_stamp(self) -> str:
        return "the folder is the stamp"

    def get_disambiguator(self) -> str:
        return hashlib.sha256(self._name.encode()).hexdigest()[:10]

    @classmethod
    def from_function(cls, function: Callable[..., Any], _file: str) -> _Locator:
        return cls(function)


class Loading:
    """What loading machine code has added to the private memory of this process.

    bytes: that. measure: tells the bytes of such memory now; nothing is counted until somebody says how.
    """

    bytes: int = 0
    measure: Callable[[], int] = staticmethod(lambda: 0)


class _KernelCacheImpl(CompileResultCacheImpl):
    _locator_classes: Any = [_Locator]  # noqa: RUF012 - numba's own attribute


class _KernelCache(FunctionCache):
    """Numba's function cache in our folder, where a damaged file means compiling again and nothing worse."""

    _impl_class = _KernelCacheImpl

    def load_overload(self, signature: Any, target: Any) -> Any:
        before = Loading.measure()
        try:
            found = super().load_overload(signature, target)
            Loading.bytes += max(Loading.measure() - before, 0)
            return found
        except Exception as error:  # noqa: BLE001 - whatever a torn pickle raises
            log.warning("kernel cache of %s is damaged (%r); compiling it again", self._name, error)
            self._discard()
            return None

    def save_overload(self, signature: Any, data: Any) -> None:
        try:
            with _exclusive(cache_folder()):
                try:
                    super().save_overload(signature, data)
                except Exception as error:  # noqa: BLE001 - a torn index cannot be read back before it is written
                    log.warning("kernel cache of %s is damaged (%r); starting it afresh", self._name, error)
                    self._discard()
                    super().save_overload(signature, data)
        except OSError as error:
            log.warning("kernel %s is not kept on disk: %s", self._name, error)

    def _discard(self) -> None:
        Path(self._cache_file._index_path).unlink(missing_ok=True)

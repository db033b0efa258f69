"""System calls and facts that differ between platforms, with their fallbacks."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import mmap
import os
import struct
import subprocess
import sys
import time
import uuid
from contextlib import suppress
from functools import cache
from pathlib import Path

from ..errors import UnsupportedPlatformError

GIVE_WAY_SECONDS = 2e-5  # long enough for another thread to wake up
PAGE_BYTES = mmap.PAGESIZE
_NORESERVE = getattr(mmap, "MAP_NORESERVE", 0x4000 if sys.platform == "linux" else 0x40)
_NOT_FOR_THESE = (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP, errno.EPERM)
_ANONYMOUS = getattr(mmap, "MAP_ANONYMOUS", getattr(mmap, "MAP_ANON", 0))


def require_supported() -> None:
    """Refuse platforms on which the crash contract has not been tested.

    Raises:
        UnsupportedPlatformError: on anything but Linux and macOS.
    """
    if sys.platform not in ("linux", "darwin"):
        raise UnsupportedPlatformError(f"CoreNN does not support {sys.platform} yet; it runs on Linux and macOS")


@cache
def boot_id() -> str:
    """A name for the time since the machine started: a new one means that pages not synced may be lost."""
    kernel = Path("/proc/sys/kernel/random/boot_id")
    if kernel.exists():
        return kernel.read_text().strip()
    if sys.platform == "darwin":
        return subprocess.run(
            ["sysctl", "-n", "kern.bootsessionuuid"], capture_output=True, text=True, check=True
        ).stdout
    return uuid.uuid4().hex  # unknown: every open is treated as a restart


def cpu_count() -> int:
    """CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def give_way() -> None:
    """Let threads that wait for the interpreter have it.

    One that goes on in Python, or in calls that do not release it, is asked for it only every five milliseconds
    (`sys.getswitchinterval`): as long as that a query would wait.
    """
    time.sleep(GIVE_WAY_SECONDS)


@cache
def memory_bytes() -> int:
    """Physical memory."""
    return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")


def resident_bytes() -> int:
    """Resident set of this process, 0 where it cannot be told."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[1]) * PAGE_BYTES if status.exists() else 0


def mapped_bytes() -> int:
    """The part of the resident set of this process that is of files, 0 where it cannot be told."""
    status = Path("/proc/self/statm")
    return int(status.read_text().split()[2]) * PAGE_BYTES if status.exists() else 0


def private_bytes() -> int:
    """The other part, of no file, 0 where it cannot be told."""
    return max(resident_bytes() - mapped_bytes(), 0)


def mapped_of(folder: Path) -> int:
    """The part of it that is of the files in a folder, counted by the mapping, which takes milliseconds.

    A process has thousands of mappings, and to look at each holds the interpreter for a tenth of a second: so what is
    told of them is searched for those of the folder.
    """
    smaps = Path("/proc/self/smaps")
    if not smaps.exists():
        return 0
    # The system names files as they are found without links and dots.
    told, prefix, found = smaps.read_bytes(), os.fsencode(f" {folder.resolve()}{os.sep}"), 0
    at = told.find(prefix)
    while at >= 0:
        at = told.index(b"\nRss:", at) + len(b"\nRss:")
        found += int(told[at : told.index(b"kB", at)]) * 1024
        at = told.find(prefix, at)
    return found


def let_go(memory: mmap.mmap) -> None:
    """Take the pages of a mapped file out of this process; the next touch finds them in the file."""
    if hasattr(mmap, "MADV_DONTNEED"):
        memory.madvise(mmap.MADV_DONTNEED)


_ON_FAULT = 1  # for mlock2(2): pages are held from the moment they are touched


def hold(memory: mmap.mmap) -> bool:
    """Keep what is touched of a mapped file in memory until `leave_hold`, whatever else is read; False where that is
    not allowed: `ulimit -l` bounds it.

    The system takes a page that was read once for as good as one that is needed all the time, if memory is so scarce.
    """
    return _locked("mlock2", memory, _ON_FAULT)


def leave_hold(memory: mmap.mmap) -> None:
    """Take that back."""
    _locked("munlock", memory)


def _locked(call: str, memory: mmap.mmap, *flags: int) -> bool:
    function = getattr(ctypes.CDLL(None), call, None) if sys.platform == "linux" else None
    if function is None:
        return False
    first = (ctypes.c_char * 1).from_buffer(memory)
    try:
        return int(function(ctypes.c_void_p(ctypes.addressof(first)), ctypes.c_size_t(len(memory)), *flags)) == 0
    finally:
        del first


def touch_at_random(memory: mmap.mmap) -> None:
    """Say that a mapped file is touched here and there: nothing is to be read around what is touched."""
    if hasattr(mmap, "MADV_RANDOM"):
        memory.madvise(mmap.MADV_RANDOM)


def touch_as_usual(memory: mmap.mmap) -> None:
    """Take that back."""
    if hasattr(mmap, "MADV_NORMAL"):
        memory.madvise(mmap.MADV_NORMAL)


# userfaultfd(2): flags and features of asynchronous write protection, which serves all kinds of mappings.
_USERFAULT_CALL = {"x86_64": 323, "aarch64": 282}
_USER_MODE_ONLY, _API, _WP_ASYNC, _WP = 1, 0xAA, 1 << 15, 2
_ASK, _REGISTER = (3 << 30 | size << 16 | _API << 8 | number for number, size in ((0x3F, 24), (0x00, 32)))


@cache
def _userfaults(pid: int) -> int:
    """By which a process has its faults handled one by one: a descriptor, -1 where there is none. pid: its own."""
    call = _USERFAULT_CALL.get(os.uname().machine) if sys.platform == "linux" else None
    try:
        # A filter of system calls may end the process for one that it does not know.
        unfiltered = "Seccomp:\t0\n" in Path("/proc/self/status").read_text()
    except OSError:
        return -1
    if call is None or not unfiltered:
        return -1
    descriptor = int(ctypes.CDLL(None).syscall(call, os.O_CLOEXEC | _USER_MODE_ONLY))
    if descriptor >= 0:
        try:
            fcntl.ioctl(descriptor, _ASK, struct.pack("QQQ", _API, _WP_ASYNC, 0))
        except OSError:
            os.close(descriptor)
            return -1
    return descriptor


def touches_alone() -> bool:
    """Whether `touch_alone` has an effect here."""
    return _userfaults(os.getpid()) >= 0


def touch_alone(memory: mmap.mmap) -> bool:
    """Have a touch of a mapped file bring the touched page into this process, and nothing around it; False where the
    system offers no way to say so.

    Linux maps what is cached around a page as well, 64 KiB and more: a hundred rows that lie apart take 20 MB. It does
    not where a mapping is registered to be told of writes, of which nothing else is made here.
    """
    descriptor = _userfaults(os.getpid())
    if descriptor < 0:
        return False
    first = (ctypes.c_char * 1).from_buffer(memory)
    try:
        size = -(-len(memory) // PAGE_BYTES) * PAGE_BYTES
        memory.madvise(mmap.MADV_NOHUGEPAGE)  # what is cached in one piece is mapped in one, 2 MiB
        fcntl.ioctl(descriptor, _REGISTER, struct.pack("QQQQ", ctypes.addressof(first), size, _WP, 0))
    except OSError:
        return False
    finally:
        del first
    return True


def free_bytes(path: Path) -> int:
    """Bytes that a user without privileges may still write on the file system of a path."""
    found = os.statvfs(path)
    return found.f_bavail * found.f_frsize


def map_anonymous(size: int) -> mmap.mmap:
    """Zeroed private memory that takes none until it is touched, in huge pages where there are any."""
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | _ANONYMOUS | _NORESERVE)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def map_shared(descriptor: int, size: int) -> mmap.mmap:
    """A file's bytes, in which stores reach the file."""
    return mmap.mmap(descriptor, size, flags=mmap.MAP_SHARED)


def map_private(descriptor: int, size: int) -> mmap.mmap:
    """A file's bytes, following the file, in which stores stay in this process."""
    return mmap.mmap(
        descriptor, size, flags=mmap.MAP_PRIVATE | _NORESERVE, prot=mmap.PROT_READ | mmap.PROT_WRITE
    )  # fmt: skip


def allocate(descriptor: int, size: int) -> None:
    """Give a file real blocks up to `size`: a store into a hole of a full disk would kill the process."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(descriptor, 0, size)
        return
    present = os.fstat(descriptor).st_size
    block = bytes(1 << 20)
    while present < size:
        present += os.pwrite(descriptor, block[: size - present], present)


def will_need(descriptor: int, offset: int, size: int) -> None:
    """Have the system begin to read a part of a file. Where it does not, nothing is lost but time."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, offset, size, os.POSIX_FADV_WILLNEED)


def read_at_random(descriptor: int) -> None:
    """Say that a file is read here and there: nothing is to be read ahead."""
    if hasattr(os, "posix_fadvise"):
        with suppress(OSError):
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_RANDOM)


def copy_range(source: int, target: int, size: int, offset: int) -> int:
    """Copy bytes to the same place in another file within the kernel, which shares the blocks where the file system can
    (XFS, Btrfs). Returns how many; 0 where there is no such call for these files.
    """
    if not hasattr(os, "copy_file_range"):
        return 0
    try:
        return os.copy_file_range(source, target, size, offset, offset)
    except OSError as error:
        if error.errno in _NOT_FOR_THESE:
            return 0
        raise


def data_sync(descriptor: int) -> None:
    """Bring a file's data to the disk."""
    if hasattr(os, "fdatasync"):
        os.fdatasync(descriptor)
        return
    fcntl.fcntl(descriptor, fcntl.F_FULLFSYNC)  # type: ignore[attr-defined]


_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # for mallopt(3)
_KEPT_HEAP_BYTES = 1 << 20


def give_back_heap() -> None:
    """Let the system have what was freed and the allocator still holds, and have it hold little from now on.

    glibc has a heap for each of many threads, at the end of each of which it keeps up to 64 MB, the more the larger the
    blocks are that have come and gone, and `malloc_trim` leaves the ends alone.
    """
    if sys.platform == "linux":
        with suppress(OSError, AttributeError):  # another libc
            _keep_heaps_small()
            ctypes.CDLL(None).malloc_trim(0)


@cache
def _keep_heaps_small() -> None:
    for threshold in (_TRIM_THRESHOLD, _MMAP_THRESHOLD):
        ctypes.CDLL(None).mallopt(threshold, _KEPT_HEAP_BYTES)

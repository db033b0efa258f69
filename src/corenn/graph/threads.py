"""Work by range on several threads: kernels release the GIL, and write disjoint parts of what the caller allocated."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextvars import copy_context
from copy import copy

from ..deadline import check
from ..storage.platform import cpu_count

WAITERS = 8  # threads for each CPU, where they wait for a disk


def _nothing() -> None:
    """Nobody wants to be called."""


class Helpers:
    """The helper threads of one database, started when first needed. Safe for any number of callers."""

    def __init__(
        self, threads: int | None = None, between: Callable[[], None] = _nothing, grain: Callable[[], int] = lambda: 1
    ) -> None:
        """between: called after each range, by the thread that has done it; also by whoever works without ranges.
        grain: into how many each range is divided, so that this is often enough.
        """
        self.threads = threads or cpu_count()
        self._pool = ThreadPoolExecutor(max(1, WAITERS * self.threads), thread_name_prefix="corenn")
        self._guests: Callable[[], bool] | None = None
        self._between, self.grain = between, grain

    def between(self) -> None:
        """What is done after each range. A deadline of the caller is seen here, by whichever thread works for it.

        Raises:
            DeadlineError: after a deadline.
        """
        self._between()
        check()

    def beside(self, guests: Callable[[], bool]) -> Helpers:
        """The same threads, for work that leaves one processor free as long as `guests` is true."""
        shared = copy(self)
        shared._guests = guests
        return shared

    def visited(self) -> bool:
        """Whether there are guests now, to whom a processor is left."""
        return self._guests is not None and self._guests()

    def run(self, work: Callable[[int, int], object], count: int, step: int, threads: int | None = None) -> None:
        """Call work(start, stop) on ranges that cover 0 … count, here and on up to `threads` - 1 helpers.

        threads: all that there are if None, but for the one that is left to guests.

        The first error is raised. After an error or Ctrl-C no further range is begun.
        """
        if threads is None:
            threads = max(self.threads - 1, 1) if self.visited() else self.threads
        step = max(1, step // self.grain())
        threads = min(threads, -(-count // step))
        starts = iter(range(0, count, step))  # taking the next one is atomic

        def drain() -> None:
            for start in starts:
                work(start, min(start + step, count))
                self.between()

        others = [self._submit(drain) for _ in range(threads - 1)]
        try:
            drain()
        finally:
            for _ in starts:
                pass
            for other in others:
                if other is not None and not other.cancel():
                    other.result()

    def later(self, work: Callable[[], None]) -> bool:
        """Have a helper do some work, which tells nobody how it went; False where none does any more."""
        try:
            self._pool.submit(work)
        except RuntimeError:
            return False
        return True

    def _submit(self, drain: Callable[[], None]) -> Future[None] | None:
        try:
            return self._pool.submit(copy_context().run, drain)
        except RuntimeError:
            return None  # the interpreter is on its way out and starts no more threads: the caller does it all

    def close(self) -> None:
        """Let the helpers end."""
        self._pool.shutdown(wait=False)

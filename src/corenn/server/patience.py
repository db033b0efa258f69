"""How long is waited for bodies."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable
from typing import Any

from ..errors import DeadlineError

_LATE = "the body is late"


class Patience:
    """Gives up bodies that do not come in time. Used by the event loop alone.

    One timer looks after all of them: one for each would cost as much as reading the body does.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._waiting: dict[asyncio.Task[Any], float] = {}  # until when, ascending
        self._timer: asyncio.TimerHandle | None = None

    async def wait(self, body: Awaitable[bytes]) -> bytes:
        """A body.

        Raises:
            DeadlineError: if it does not come in time.
        """
        loop, task = asyncio.get_running_loop(), asyncio.current_task()
        assert task is not None
        self._waiting[task] = loop.time() + self._seconds
        if self._timer is None:
            self._timer = loop.call_later(self._seconds, self._look, loop)
        try:
            return await body
        except asyncio.CancelledError as error:
            if error.args != (_LATE,):
                raise
            task.uncancel()
            raise DeadlineError(f"the body did not arrive within {self._seconds:g} seconds") from None
        finally:
            self._waiting.pop(task, None)

    def _look(self, loop: asyncio.AbstractEventLoop) -> None:
        now = loop.time()
        for task, until in list(self._waiting.items()):
            if until > now:
                self._timer = loop.call_at(until, self._look, loop)
                return
            del self._waiting[task]
            task.cancel(_LATE)
        self._timer = None

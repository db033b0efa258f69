"""When a call is sent again, and after which wait.

Every call may be: reads change nothing, and writes carry a key by which the server knows them again.
"""

from __future__ import annotations

import random

from ..errors import InvalidArgumentError, ServerError
from .answers import Answer

BUSY = {429, 503}
FIRST_WAIT, MOST_WAIT = 0.05, 5.0  # seconds; twice as long each time


class Retries:
    """The attempts at one call."""

    def __init__(self, left: int) -> None:
        self._left = left
        self._wait = FIRST_WAIT

    def after(self, answer: Answer) -> float | None:
        """Seconds to wait before the call is sent again; None if this answer is the one."""
        if answer.status not in BUSY or not self._left:
            return None
        asked = answer.headers.get("retry-after", "")
        return max(self._next(), min(float(asked), MOST_WAIT) if asked.isdigit() else 0.0)

    def after_break(self, url: str, error: Exception) -> float:
        """The same after a connection that failed.

        Raises:
            ServerError: if there were enough attempts.
        """
        if not self._left:
            told = str(error) or type(error).__name__
            raise ServerError(f"{url} does not answer: {told}; is `corenn serve` running there?") from error
        return self._next()

    def _next(self) -> float:
        self._left -= 1
        wait, self._wait = self._wait, min(2 * self._wait, MOST_WAIT)
        return wait * random.uniform(0.5, 1.0)


def check_retries(retries: object) -> int:
    """Raises: InvalidArgumentError: for what is no number of retries."""
    if type(retries) is not int or retries < 0:
        raise InvalidArgumentError(f"retries={retries!r}: give a whole number, 0 for none")
    return retries

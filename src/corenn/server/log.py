"""What the server logs: a JSON object a line, with the id of its request. Keys and bodies never stand in it."""

from __future__ import annotations

import json
import logging
import sys
import time
import traceback
from typing import Any

from .visit import Visit

log = logging.getLogger("corenn.server")


class Journal:
    """Which requests are logged, and how."""

    def __init__(self, slow_query: float, *, every: bool = False) -> None:
        """slow_query: seconds, from which on a query is logged with its plan. every: log all other requests too."""
        self._slow, self._every = slow_query, every

    def served(self, visit: Visit) -> None:
        """A request has been answered."""
        took = time.monotonic() - visit.started
        slow = "plan" in visit.note and took >= self._slow
        if not (self._every or slow or visit.sent >= 500):
            return
        said = {
            "method": visit.method, "path": visit.path, "status": visit.sent, "seconds": round(took, 6),
            "bytes": visit.size, **visit.note,
        }  # fmt: skip
        level = logging.WARNING if slow or visit.sent >= 500 else logging.INFO
        log.log(level, "slow query" if slow else "request", extra={"request": visit.id, "said": said})

    def failed(self, visit: Visit, error: BaseException) -> None:
        """A fault of ours, with all that can be known of it."""
        said = {"error": "".join(traceback.format_exception(error)), "path": visit.path}
        log.error("the server has failed", extra={"request": visit.id, "said": said})


class JSONLines(logging.Formatter):
    """A record as one JSON object."""

    def format(self, record: logging.LogRecord) -> str:
        """The line."""
        line: dict[str, Any] = {
            "time": self.formatTime(record, "%Y-%m-%dT%H:%M:%S") + f".{int(record.msecs):03d}",
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request := getattr(record, "request", None):
            line["request"] = request
        line.update(getattr(record, "said", {}))
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, ensure_ascii=True, default=str)


def log_to_stderr(level: str) -> None:
    """Log what is of this level or above, as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JSONLines())
    ours = logging.getLogger("corenn")
    ours.addHandler(handler)
    ours.setLevel(level.upper())

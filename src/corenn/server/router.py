"""Which route a request is for."""

from __future__ import annotations

import re
from collections.abc import Iterable
from http import HTTPStatus

from ..errors import InvalidArgumentError
from .faults import RefusedError
from .routes import Entrance

NAME = "{name}"  # that of a collection
PART = re.compile(r"(\{\w+\})")


class Router:
    """Routes by their paths, of which a part may be a name, as that of a collection."""

    def __init__(self, entrances: Iterable[Entrance]) -> None:
        self._fixed: dict[str, dict[str, Entrance]] = {}
        self._named: dict[str, dict[str, dict[str, Entrance]]] = {}  # by what stands before the name, and behind it
        for each in entrances:
            before, name, behind = re.split(PART, each.path, maxsplit=1) if "{" in each.path else (each.path, "", "")
            routes = (
                self._named.setdefault(before, {}).setdefault(behind, {})
                if name
                else self._fixed.setdefault(before, {})
            )
            routes[each.method] = each
            if each.method == "GET":
                routes["HEAD"] = each

    def find(self, method: str, path: str) -> tuple[Entrance, str]:
        """The route, and the name of a collection in its path, "" if it has none.

        Raises:
            RefusedError: with 404 or 405.
        """
        name, routes = "", self._fixed.get(path)
        if routes is None:
            for before, behinds in self._named.items():
                if path.startswith(before):
                    name, slash, rest = path[len(before) :].partition("/")
                    routes = behinds.get(slash + rest) if name else None
                    break
        if routes is None:
            raise _refused(HTTPStatus.NOT_FOUND, {})
        found = routes.get(method)
        if found is None:
            raise _refused(HTTPStatus.METHOD_NOT_ALLOWED, {"allow": ", ".join(sorted(routes))})
        return found, name if NAME in found.path else ""


def _refused(status: HTTPStatus, headers: dict[str, str]) -> RefusedError:
    error = InvalidArgumentError(f"{status.phrase}: see /openapi.json for what there is")
    return RefusedError(status, error, headers)

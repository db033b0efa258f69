"""How much a command may use: options that those which compute share."""

from __future__ import annotations

from typing import Annotated

import typer

METRICS = ("l2", "cosine", "ip")
MB = 10**6

Threads = Annotated[int | None, typer.Option(min=1, help="Threads. Default: all cores.")]
Memory = Annotated[int, typer.Option(min=1, help="Memory for all that is in work, in MB.")]

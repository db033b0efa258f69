"""`corenn serve`: a directory of collections over HTTP."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from . import console

if TYPE_CHECKING:
    from ..server.keys import Keys

KEY, READ_KEY = "CORENN_API_KEY", "CORENN_READ_ONLY_KEY"
LEVELS = ("debug", "info", "warning", "error")


def serve(
    root: Annotated[Path, typer.Argument(help="Directory of collections; made if it is missing.")],
    host: Annotated[str, typer.Option(help="Address to listen at.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=1, max=65535, help="Port to listen at.")] = 4224,
    api_key_file: Annotated[
        Path | None, typer.Option(help="File of keys, one a line, and the collections each is for.")
    ] = None,
    read_only_key_file: Annotated[Path | None, typer.Option(help="File of keys that may only read.")] = None,
    insecure: Annotated[bool, typer.Option("--insecure", help="Listen to other machines without keys.")] = False,
    tls_cert: Annotated[Path | None, typer.Option(help="Certificate, PEM; with --tls-key.")] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    collection: Annotated[str | None, typer.Option(help="Collection that /insert and /query go to.")] = None,
    memory_limit: Annotated[str | None, typer.Option(help="Memory of all collections together, such as 2GB.")] = None,
    limit: Annotated[list[str] | None, typer.Option(help="A limit, as NAME=VALUE; may be repeated.")] = None,
    slow_query: Annotated[float, typer.Option(min=0, help="Log queries that take so many seconds.")] = 1.0,
    measure_recall: Annotated[
        float, typer.Option(min=0, help="Measure the recall of open collections every so many seconds; 0 for never.")
    ] = 0.0,
    log_requests: Annotated[bool, typer.Option("--log-requests", help="Log every request.")] = False,
    log_level: Annotated[str, typer.Option(help=f"What is logged: {', '.join(LEVELS)}.")] = "info",
) -> None:
    """Serve a directory of collections over HTTP, until SIGTERM or Ctrl-C.

    Keys come from files, or from the environment: CORENN_API_KEY, CORENN_READ_ONLY_KEY.

    Example: corenn serve shelf --port 4224 --api-key-file keys.txt
    """
    from ..server import Limits, Options
    from ..server.log import log_to_stderr
    from ..server.run import Address, check, run

    if log_level not in LEVELS:
        console.fail(f"--log-level {log_level}: choose one of {', '.join(LEVELS)}")
    options = Options(
        limits=Limits.of(_named(limit or ())), keys=_keys(api_key_file, read_only_key_file),
        memory_limit=memory_limit, collection=collection, slow_query=slow_query, log_requests=log_requests,
        local=not insecure, measure_recall=measure_recall,
    )  # fmt: skip
    address = Address(host=host, port=port, certificate=tls_cert, key=tls_key)
    check(address, options, insecure=insecure)
    log_to_stderr(log_level)
    run(root, address, options)


def _named(limits: Iterable[str]) -> dict[str, str]:
    found = {}
    for each in limits:
        name, separator, value = each.partition("=")
        if not separator:
            console.fail(f"--limit {each}: write NAME=VALUE, such as body=64MB")
        found[name.strip()] = value.strip()
    return found


def _keys(writing: Path | None, reading: Path | None) -> Keys:
    from ..server.keys import Holder, Keys, read_keys

    for path in (writing, reading):
        if path is not None and path.exists() and path.stat().st_mode & 0o077:
            console.say(f"{path} can be read by others: chmod 600 {path}")
    found = [] if writing is None else read_keys(writing, writes=True)
    found += [] if reading is None else read_keys(reading, writes=False)
    for name, writes in ((KEY, True), (READ_KEY, False)):
        if key := os.environ.get(name):
            found.append((key, Holder(writes)))
    if found and not any(holder.writes for _, holder in found):
        console.say("no key may write: this server is for reading alone")
    return Keys(found)

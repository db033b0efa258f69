"""`corenn query`, `count` and `facets`: look at rows, all of them or those that a filter selects."""

from __future__ import annotations

import json
import sys
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..types import Hits

FILTER = 'Only rows that meet this filter, as JSON: {"year": {"$gte": 2020}}.'
Filter = Annotated[str | None, typer.Option("--filter", help=FILTER)]
Where = Annotated[Path, typer.Argument(help="Directory of the database.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def query(
    path: Where,
    k: Annotated[int, typer.Option("-k", min=1, help="Rows to find.")] = 10,
    vector: Annotated[str | None, typer.Option(help="The query, as a JSON list; - reads it from stdin.")] = None,
    key: Annotated[str | None, typer.Option(help="Search with the vector of this key.")] = None,
    number: Annotated[int | None, typer.Option(help="The same for a key that is a number.")] = None,
    text: Annotated[str | None, typer.Option(help="Rank by these words; with a vector, by both.")] = None,
    fusion: Annotated[str | None, typer.Option(help="How to join both: rrf or weighted. Default: rrf.")] = None,
    filter: Filter = None,
    group_by: Annotated[str | None, typer.Option(help="No more than --per-group hits with one value here.")] = None,
    per_group: Annotated[int | None, typer.Option(min=1, help="Hits of one group. Default: 1.")] = None,
    min_recall: Annotated[float | None, typer.Option(help="Share of the true nearest that is to be found.")] = None,
    max_distance: Annotated[float | None, typer.Option(help="Leave out what is farther.")] = None,
    exact: Annotated[bool, typer.Option("--exact", help="Look at every row.")] = False,
    payloads: Annotated[bool, typer.Option(help="Show payloads.")] = True,
    as_json: AsJson = False,
) -> None:
    """Find the rows nearest to a vector or to a row that is there, those that have some words, or both in one list.

    Opens it for reading: a writer may be at work beside.

    Example: corenn query books.corenn --key moby-dick -k 5 --filter '{"year": {"$lt": 1900}}'

    By words, where the database has text_fields: corenn query books.corenn --text "white whale"

    With a vector: echo '[0.1, 0.2, 0.3]' | corenn query small.corenn --vector -
    """
    given = [name for name, value in (("--vector", vector), ("--key", key), ("--number", number)) if value is not None]
    if len(given) != 1 and (given or text is None):
        named = " and ".join(given) or "nothing"
        console.fail(f"{named} given: give one of --vector, --key and --number, or none of them and --text")
    asked: dict[str, Any] = {"vectors": _json("--vector", _text(vector))} if vector is not None else {"key": key}
    if number is not None:
        asked = {"key": number}
    if fusion is not None:
        asked["fusion"] = fusion
    with console.open_database(path, mode="r") as db:
        hits: Hits = db.query(
            **asked, k=k, text=text, filter=parsed(filter), group_by=group_by, per_group=per_group,
            min_recall=min_recall, max_distance=max_distance, exact=exact, with_payloads=payloads, explain=True,
        )  # fmt: skip
    told = hits.explain
    assert told is not None
    if as_json:
        found = [{"key": hit.key, "distance": hit.distance, "payload": hit.payload} for hit in hits]
        console.print_json({"hits": found, "explain": asdict(told)})
        return
    typer.echo(f"{len(hits)} of {told.matches:,} rows, plan {told.plan}")
    console.print_figures("", ((_shown(hit.key), _line(hit.distance, hit.payload)) for hit in hits))


def count(path: Where, filter: Filter = None, as_json: AsJson = False) -> None:
    """Count the rows of a database, or those that meet a filter.

    Example: corenn count books.corenn --filter '{"tags": {"$contains": "red"}}'
    """
    with console.open_database(path, mode="r") as db:
        found = db.count(parsed(filter))
    if as_json:
        console.print_json({"count": found})
    else:
        typer.echo(found)


def facets(
    path: Where,
    field: Annotated[str, typer.Argument(help="Field of the payloads, such as author.name.")],
    filter: Filter = None,
    limit: Annotated[int, typer.Option(min=1, help="Values to show, the most frequent.")] = 20,
    as_json: AsJson = False,
) -> None:
    """Show which values a field has, and how many rows have each.

    Example: corenn facets books.corenn author --filter '{"year": {"$gte": 2020}}' --limit 5
    """
    with console.open_database(path, mode="r") as db:
        found = db.facets(field, parsed(filter))
    if as_json:
        values = [asdict(each) for each in found[:limit]]
        console.print_json({"field": field, "values": len(found), "facets": values})
        return
    typer.echo(f"{field}: {len(found):,} value{'s'[: len(found) != 1]}")
    console.print_figures("", ((_shown(each.value), f"{each.count:,}") for each in found[:limit]))


def parsed(filter: str | None) -> Any:
    """A filter in wire form from the text of an option."""
    return None if filter is None else _json("--filter", filter)


def _json(option: str, text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError as error:
        console.fail(f"{option} is no JSON ({error}): {text[:80]}")


def _text(vector: str) -> str:
    return sys.stdin.read() if vector == "-" else vector


def _shown(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _line(distance: float, payload: Any) -> str:
    return f"{distance:<9.6g} {'' if payload is None else json.dumps(payload, ensure_ascii=False)}".rstrip()

"""What can be asked of a collection: each operation takes a call and returns an answer. They hold no state."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from typing import Any, TypeVar

import numpy as np

from .. import wire
from ..database import CoreNN
from ..deadline import deadline
from ..errors import InvalidArgumentError
from ..once import once
from ..projection import project
from ..types import Recall, Record
from ..wire import encode
from .calls import Call, as_rows, fields_of, reply, reply_records, result
from .faults import busy
from .search import as_filter_text, as_question
from .service import Service
from .shelf import Entry
from .visit import Reply, Visit

T = TypeVar("T")


async def describe(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """A collection as it is. Where it lies on the server is nobody's business."""
    stats = fields_of(await _read(service, visit, entry.database.stats))
    del stats["path"]
    return wire.State(entry.name, fields_of(entry.database.settings), stats)


# --- writing ----------------------------------------------------------------------------------------------------------


async def insert(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Insert new rows, all or none."""
    return await _write_rows(service, visit, entry, call, "insert")


async def upsert(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Insert rows or replace those whose keys exist, payload included, all or none."""
    return await _write_rows(service, visit, entry, call, "upsert")


async def _write_rows(service: Service, visit: Visit, entry: Entry, call: Call, operation: str) -> wire.Done:
    asked: wire.InsertRequest = call.arguments
    if call.rows is not None and asked.vectors:
        raise InvalidArgumentError("vectors are given twice, in JSON and behind it; leave out one of them")
    service.limits.within("batch_rows", len(asked.keys), "the number of keys")
    _check_payloads(service, asked.payloads)

    def write() -> None:
        database = entry.database
        vectors = as_rows(asked.vectors, database.settings.dim) if call.rows is None else call.rows
        getattr(database, operation)(
            asked.keys, vectors, asked.payloads, scales=asked.scales, zero_points=asked.zero_points
        )

    await _write(service, visit, entry, operation, write)
    return wire.Done()


async def set_payload(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Replace the payloads of existing rows, all or none."""
    asked: wire.PayloadRequest = call.arguments
    service.limits.within("batch_rows", len(asked.keys), "the number of keys")
    _check_payloads(service, asked.payloads)
    write = partial(entry.database.set_payload, asked.keys, asked.payloads)
    await _write(service, visit, entry, "set_payload", write)
    return wire.Done()


async def delete(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Delete rows by key, by filter, or both, all or none."""
    asked: wire.DeleteRequest = call.arguments
    service.limits.within("batch_rows", len(asked.keys or ()), "the number of keys")
    as_filter_text(asked.filter, service.limits)
    write = partial(entry.database.delete, asked.keys, filter=asked.filter)
    return wire.Deleted(await _write(service, visit, entry, "delete", write))


async def _write(service: Service, visit: Visit, entry: Entry, operation: str, call: Callable[[], T]) -> T:
    """Hand in a write, with others that share its commit. Once a thread has it, nothing calls it back."""
    if entry.writes >= service.limits.writes:
        raise busy(f"{entry.writes:,} writes of this collection wait already")
    entry.writes += 1
    began = time.perf_counter()

    def write() -> T:
        with once(visit.token):
            return call()

    try:
        return await service.in_thread(service.writers, write)
    finally:
        entry.writes -= 1
        service.metrics.wrote(operation, time.perf_counter() - began)


def _check_payloads(service: Service, payloads: wire.messages.Payloads | None) -> None:
    most = service.limits.payload_bytes
    for payload in payloads or ():
        if payload and len(text := encode(payload)) > most:
            service.limits.within("payload_bytes", len(text), "the size of a payload")


# --- reading ----------------------------------------------------------------------------------------------------------


async def query(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """The nearest rows."""
    kind, question = as_question(call, entry.database.settings.dim, service.limits)
    found = await entry.batches.ask(kind, question, visit.deadline)
    if found and found[0].explain is not None:
        visit.note.update(
            plan=found[0].explain.plan, distances=found[0].explain.distances, k=kind.k, queries=len(found),
            search_list=found[0].explain.search_list, matches=found[0].explain.matches,
        )  # fmt: skip
    explain = call.arguments.explain
    return wire.Results([result(hits, payloads=kind.with_payloads, explain=explain) for hits in found])


async def get(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """The rows of keys, in their order; null for one that does not exist."""
    keys = call.arguments.keys
    _check_answer(service, entry.database, len(keys))
    return reply_records(visit, await _read(service, visit, lambda: entry.database.get(keys)))


async def scroll(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """The next rows in the order of insertion, and a cursor for the rest."""
    asked: wire.ScrollRequest = call.arguments
    _check_answer(service, entry.database, asked.limit)
    as_filter_text(asked.filter, service.limits)
    records, cursor = await _read(
        service, visit, lambda: entry.database.scroll(asked.filter, asked.limit, asked.cursor)
    )  # fmt: skip
    return reply_records(visit, records, cursor)


async def sample(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Rows at random."""
    return reply_records(visit, await _read(service, visit, lambda: _sample(service, entry.database, call.arguments)))


async def map(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """A sample of rows on the plane on which they are spread the most."""
    asked: wire.SampleRequest = call.arguments
    database = entry.database

    def draw() -> Reply:
        records = _sample(service, database, asked)
        rows = np.stack([each.vector for each in records]) if records else np.empty((0, database.settings.dim))
        unit = database.settings.metric == "cosine"
        if unit:
            rows = rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), np.finfo(np.float32).tiny)
        plane = project(rows)
        points = [
            wire.Point(each.key, x, y, each.payload)
            for each, (x, y) in zip(records, plane.places.tolist(), strict=True)
        ]
        of = database.count(asked.filter)
        found = wire.Map(points, of, plane.shares.tolist(), plane.origin.tolist(), plane.axes.tolist(), unit)
        return reply(visit, found)

    return await _read(service, visit, draw)


def _sample(service: Service, database: CoreNN, asked: wire.SampleRequest) -> list[Record]:
    _check_answer(service, database, asked.size)
    as_filter_text(asked.filter, service.limits)
    return database.sample(asked.size, asked.filter)


async def count(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """How many rows there are, or a filter selects."""
    filter = call.arguments.filter
    as_filter_text(filter, service.limits)
    return wire.Count(await _read(service, visit, lambda: entry.database.count(filter)))


async def facets(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """The values of a field, and how many rows have each."""
    asked: wire.FacetsRequest = call.arguments
    as_filter_text(asked.filter, service.limits)
    found = await _read(service, visit, lambda: entry.database.facets(asked.field, asked.filter))
    service.limits.within("k", len(found), "the number of values of this field")
    return wire.Facets([wire.FacetEntry(each.value, each.count) for each in found])


async def _read(service: Service, visit: Visit, call: Callable[[], T]) -> T:
    until = visit.deadline

    def read() -> T:
        with deadline(until):
            return call()

    return await service.in_thread(service.readers, read)


def _check_answer(service: Service, database: CoreNN, rows: int) -> None:
    service.limits.within("rows", rows, "the number of rows asked for")
    service.limits.within("answer_vectors", rows * database.settings.dim * 4, "the size of the vectors asked for")


# --- upkeep -----------------------------------------------------------------------------------------------------------


async def recall(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Measure the recall of queries."""
    asked: wire.RecallRequest = call.arguments
    _check_recall(service, asked)
    found = await service.job(
        lambda: entry.database.recall(
            asked.k, asked.samples, min_recall=asked.min_recall, search_list=asked.search_list
        ),
        visit.deadline,
    )
    entry.recall = found
    return _as_result(found)


async def recall_curve(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Measure how recall grows with the search list."""
    asked: wire.RecallRequest = call.arguments
    _check_recall(service, asked)
    if asked.min_recall is not None or asked.search_list is not None:
        raise InvalidArgumentError("recall_curve takes k and samples alone: it goes over all search lists")
    found = await service.job(lambda: entry.database.recall_curve(asked.k, asked.samples), visit.deadline)
    return wire.Curve([_as_result(each) for each in found])


def _check_recall(service: Service, asked: wire.RecallRequest) -> None:
    service.limits.within("k", asked.k, "k")
    service.limits.within("samples", asked.samples, "samples")
    service.limits.within("search_list", asked.search_list or 0, "search_list")


def _as_result(found: Recall) -> wire.RecallResult:
    plain = asdict(found)
    unknown = {name: None for name in ("distances", "seconds") if np.isnan(plain[name])}
    return wire.RecallResult(**{**plain, **unknown})


async def checkpoint(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Bring everything to the disk."""
    await service.job(entry.database.checkpoint, visit.deadline)
    return wire.Done()


async def compact(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Give the space of deleted rows back."""
    await service.job(entry.database.compact, None)
    return wire.Done()


async def snapshot(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Copy a collection into the folder of snapshots of the root."""
    target = service.snapshot_path(entry.name, call.arguments.name)
    copied = await service.job(lambda: entry.database.snapshot(target), None)
    return wire.Copy(**{**asdict(copied), "path": call.arguments.name})


# --- the earlier system -----------------------------------------------------------------------------------------------


async def legacy_insert(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Rows for the default collection; those whose keys exist are replaced."""
    asked: wire.LegacyInsert = call.arguments
    rows = wire.InsertRequest(
        keys=[each.key for each in asked.vectors], vectors=[each.vector for each in asked.vectors]
    )
    return await _write_rows(service, visit, entry, Call(rows), "upsert")


async def legacy_query(service: Service, visit: Visit, entry: Entry, call: Call) -> Any:
    """Pairs of key and distance from the default collection."""
    asked: wire.LegacyQuery = call.arguments
    modern = Call(wire.QueryRequest(vector=asked.vector, k=asked.k))
    kind, question = as_question(modern, entry.database.settings.dim, service.limits)
    found = await entry.batches.ask(kind, question, visit.deadline)
    pairs = zip(found[0].keys, found[0].distances.tolist(), strict=True)
    return wire.LegacyResults([[str(key), distance] for key, distance in pairs])

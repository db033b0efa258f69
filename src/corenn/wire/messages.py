"""The bodies of requests and answers. The OpenAPI document is made of these types, and names them as they are here.

Arguments have the names that they have in Python; docs/server.md says which type belongs to which route.
"""

from __future__ import annotations

from typing import Annotated, Any, TypeAlias

from msgspec import UNSET, Meta, Struct, UnsetType

from ..config import MAX_TEXT

Name: TypeAlias = Annotated[
    str, Meta(min_length=1, max_length=128, pattern=r"^[A-Za-z0-9_]([A-Za-z0-9_.-]*[A-Za-z0-9_-])?$")
]
Text: TypeAlias = Annotated[str, Meta(min_length=1, max_length=1024)]
Number: TypeAlias = Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)]
KeyName: TypeAlias = Text | Number
Positive: TypeAlias = Annotated[int, Meta(ge=1, le=2**31 - 1)]
Natural: TypeAlias = Annotated[int, Meta(ge=0)]
Share: TypeAlias = Annotated[float, Meta(gt=0, le=1)]
Words: TypeAlias = Annotated[str, Meta(max_length=MAX_TEXT)]
Vector: TypeAlias = Annotated[list[float], Meta(min_length=1)]
Fields: TypeAlias = dict[str, Any]
Payloads: TypeAlias = list[Fields | None]


class _Request(Struct, kw_only=True, forbid_unknown_fields=True, omit_defaults=True):
    """A body that names nothing but what is known."""


# --- requests ---------------------------------------------------------------------------------------------------------


class CreateRequest(_Request):
    """A new collection. settings: as `CoreNN.create` takes them, by name."""

    name: Name
    dim: Annotated[int, Meta(ge=1, le=65_536)]
    metric: str = "cosine"
    dtype: str = "f32"
    durability: str = "os"
    settings: Fields = {}


class InsertRequest(_Request):
    """Rows to insert or upsert, all or none. In the binary form the vectors follow the other fields."""

    keys: list[KeyName]
    vectors: list[Vector] = []
    payloads: Payloads | None = None
    scales: list[float] | None = None
    zero_points: list[float] | None = None


class PayloadRequest(_Request):
    """Payloads to put in the place of those of existing rows; null removes one."""

    keys: list[KeyName]
    payloads: Payloads


class DeleteRequest(_Request):
    """Rows to delete: by key, by filter, or those of the keys that the filter selects."""

    keys: list[KeyName] | None = None
    filter: Fields | None = None


class GetRequest(_Request):
    """Rows to read by key."""

    keys: list[KeyName]


class ScrollRequest(_Request):
    """The next rows in the order of insertion."""

    filter: Fields | None = None
    limit: Positive = 100
    cursor: str | None = None


class SampleRequest(_Request):
    """Rows at random."""

    size: Positive = 1000
    filter: Fields | None = None


class CountRequest(_Request):
    """How many rows there are, or a filter selects."""

    filter: Fields | None = None


class FacetsRequest(_Request):
    """The values of a field."""

    field: str
    filter: Fields | None = None


class QueryRequest(_Request):
    """The nearest rows to one vector, to several, or to that of a key: one of the three, or none with a text.

    In the binary form the vectors follow the other fields. filter, text: one for all, or a list with one for each
    query.
    """

    vector: Vector | None = None
    vectors: list[Vector] | None = None
    key: KeyName | None = None
    text: Words | list[Words] | None = None
    k: Positive = 10
    min_recall: Share | None = None
    search_list: Positive | None = None
    exact: bool = False
    max_distance: float | None = None
    filter: Fields | list[Fields | None] | None = None
    group_by: str | None = None
    per_group: Positive | None = None
    fusion: str = "rrf"
    plan: str | None = None
    with_payloads: bool = False
    explain: bool = False


class RecallRequest(_Request):
    """How recall is to be measured."""

    k: Positive = 10
    samples: Positive = 1000
    min_recall: Share | None = None
    search_list: Positive | None = None


class SnapshotRequest(_Request):
    """The name of a snapshot, in the folder of snapshots of the root."""

    name: Name


class Nothing(_Request):
    """No arguments."""


class LegacyVector(_Request):
    """One row, as the earlier system took it."""

    key: Text
    vector: Vector


class LegacyInsert(_Request):
    """Rows for the default collection, as the earlier system took them."""

    vectors: list[LegacyVector]


class LegacyQuery(_Request):
    """A query to the default collection, as the earlier system took it."""

    vector: Vector
    k: Positive


# --- answers ----------------------------------------------------------------------------------------------------------


class Collections(Struct):
    """The names of all collections that the key may see, sorted."""

    collections: list[str]


class Rights(Struct):
    """What the key that was sent may do. collections: those that it is for, sorted; null for all."""

    writes: bool
    collections: list[str] | None


class Created(Struct):
    """A collection as it is: its settings."""

    name: str
    settings: Fields


class State(Struct):
    """A collection as it is: its settings, and what `stats()` tells."""

    name: str
    settings: Fields
    stats: Fields


class Done(Struct):
    """What was asked for has been done."""

    ok: bool = True


class Deleted(Struct):
    """How many rows were deleted."""

    deleted: int


class Count(Struct):
    """How many rows there are."""

    count: int


class RecordEntry(Struct):
    """One stored row. payload: null where there is none."""

    key: str | int
    vector: list[float]
    payload: Fields | None = None


class Records(Struct):
    """Rows; for `get` one for each key, null where there is none. cursor: for the next page, null at the end.

    In the binary form `records` has no vectors; those of the rows that are not null follow, in their order.
    """

    records: list[RecordEntry | None]
    cursor: str | None = None


class FacetEntry(Struct):
    """A value of a field, and how many rows have it."""

    value: str | int | float | bool | None
    count: int


class Facets(Struct):
    """The values of a field, the most frequent first."""

    facets: list[FacetEntry]


class Point(Struct, omit_defaults=True):
    """Where a row lies on a map. payload: missing where there is none."""

    key: str | int
    x: float
    y: float
    payload: Fields | None = None


class Map(Struct):
    """A sample of rows on a plane: that on which they are spread the most.

    rows: as many as the sample was taken from. shares: of the variance of the sample, along x and y. A vector lies at
    its products with both axes, origin taken off, brought to unit length before where `unit` is true.
    """

    points: list[Point]
    rows: int
    shares: list[float]
    origin: list[float]
    axes: list[list[float]]
    unit: bool


class Plan(Struct):
    """How a query was answered: see `Explain`."""

    plan: str
    search_list: int
    distances: int
    hops: int
    matches: int
    expected_recall: float | None
    least_recall: float | None
    chosen_by: str
    pages: int
    estimated: int
    terms: tuple[str, ...] = ()
    text_matches: int = 0
    fusion: str = ""


class Result(Struct, omit_defaults=True):
    """The hits of one query, nearest first; payloads and explain only if they were asked for.

    A distance that float32 cannot hold is null.
    """

    keys: list[str | int]
    distances: list[float | None]
    payloads: list[Fields | None] | UnsetType = UNSET
    explain: Plan | UnsetType = UNSET


class Results(Struct):
    """A result for each vector, in their order; one for a single vector, key or text."""

    results: list[Result]


class RecallResult(Struct):
    """recall@k as it was measured: see `Recall`. distances and seconds are null where queries scan all rows."""

    recall: float
    low: float
    high: float
    k: int
    samples: int
    search_list: int
    distances: float | None
    seconds: float | None


class Curve(Struct):
    """How recall grows with the search list; empty where queries scan all rows."""

    curve: list[RecallResult]


class Copy(Struct):
    """What a snapshot holds: see `Copied`. path: its name."""

    path: str
    commit: int
    rows: int
    bytes: int
    copied: int


class LegacyResults(Struct):
    """Pairs of key and distance, nearest first."""

    results: list[list[str | float]]


class Health(Struct):
    """Whether the server answers."""

    status: str
    version: str


class Fault(Struct):
    """What went wrong. code: the name of the error, as in docs/errors.md. request: its id, also in the log."""

    code: str
    message: str
    request: str


class ErrorBody(Struct):
    """The answer to a request that was refused or failed."""

    error: Fault

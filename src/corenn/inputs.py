"""Everything the user passes, checked and brought to one form before anything is written or a kernel sees it."""

from __future__ import annotations

import json
import math
import operator
from collections.abc import Iterable, Sequence
from numbers import Real
from typing import Any

import numpy as np

from .config import MAX_KEY_BYTES, MAX_PAYLOAD_BYTES, MAX_PAYLOAD_DEPTH, MAX_SEARCH_LIST, MAX_TEXT
from .errors import (
    DimensionError,
    DuplicateKeyError,
    InvalidArgumentError,
    InvalidKeyError,
    InvalidPayloadError,
    InvalidVectorError,
    UnsupportedDtypeError,
)
from .graph.planner import FUSIONS, PLANS
from .types import AnyArray, Float32s, Key

_INT_LOW, _INT_HIGH = -(2**63), 2**63 - 1
_SHORT = 1e38  # a squared norm below is finite in float32, in whatever order it is summed
_NO_LISTS = (str, bytes, bytearray, memoryview, int, np.integer, dict)  # as one may take for a list of keys


def shown(value: Any, length: int = 60) -> str:
    """A value for a message, cut short."""
    text = repr(value)
    return text if len(text) <= length else text[: length - 1] + "…"


# --- keys -------------------------------------------------------------------------------------------------------------


def check_key(key: Any) -> Key:
    """One key as a plain str or int.

    Raises:
        InvalidKeyError: for another type, an empty or over-long string, or a number beyond 64 bits.
    """
    if isinstance(key, str):
        text = str.__str__(key)  # a subclass may show itself as something else
        try:
            size = len(text.encode())
        except UnicodeEncodeError:
            raise InvalidKeyError(f"key {shown(text)} holds a lone surrogate, which is not text") from None
        if not 1 <= size <= MAX_KEY_BYTES:
            raise InvalidKeyError(f"key {shown(text)} has {size:,} bytes of UTF-8; a key has 1 to {MAX_KEY_BYTES:,}")
        return text
    if isinstance(key, (bool, np.bool_, np.timedelta64)) or not isinstance(key, (int, np.integer)):
        raise InvalidKeyError(f"key {shown(key)} is a {type(key).__name__}; keys are str or int")
    number = int(key)
    if not _INT_LOW <= number <= _INT_HIGH:
        raise InvalidKeyError(f"key {number} does not fit in 64 bits; use a str")
    return number


def as_keys(keys: Any) -> list[Key]:
    """A list of keys; one bare key is refused, since a str is a sequence of str."""
    if isinstance(keys, _NO_LISTS) or not isinstance(keys, Iterable):
        raise InvalidKeyError(f"keys must be a list, not {shown(keys)}; for one key pass [{shown(keys)}]")
    if isinstance(keys, (set, frozenset)):
        raise InvalidKeyError("keys are a set, which has no order; pass a list")
    if not isinstance(keys, np.ndarray):
        return [check_key(key) for key in keys]
    if keys.ndim != 1:
        raise InvalidKeyError(f"keys must have one dimension, not shape {keys.shape}")
    if keys.dtype.kind in "mM":
        raise InvalidKeyError(f"keys have dtype {keys.dtype}; keys are str or int")
    if np.ma.is_masked(keys):
        raise InvalidKeyError("keys are masked in part; every row needs its key")
    return [check_key(key) for key in keys.tolist()]


def as_unique_keys(keys: Any) -> list[Key]:
    """A list of keys, none twice.

    Raises:
        InvalidKeyError, DuplicateKeyError
    """
    checked = as_keys(keys)
    if len(set(checked)) != len(checked):
        seen: set[Key] = set()
        for key in checked:
            if key in seen:
                raise DuplicateKeyError(f"key {key!r} is given twice in one call; pass each key once")
            seen.add(key)
    return checked


# --- vectors ----------------------------------------------------------------------------------------------------------


def as_array(vectors: Any, what: str = "vectors") -> AnyArray:
    """Anything NumPy takes, as real numbers."""
    if np.ma.is_masked(vectors):
        raise InvalidVectorError(f"{what} are masked in part; fill in the missing values")
    try:
        array = np.asarray(vectors)
    except (ValueError, TypeError) as error:
        raise DimensionError(f"{what} do not form a rectangular array: {error}") from error
    # Extension floats, such as bfloat16, are of kind V and do convert.
    extension = (
        array.dtype.kind == "V" and array.dtype.names is None and array.dtype.name.startswith(("bfloat", "float"))
    )
    if array.dtype.kind not in "fiub" and not extension:
        if array.dtype.kind == "O" and array.size and all(isinstance(item, (list, tuple)) for item in array.flat):
            raise DimensionError(f"{what} do not form a rectangular array: rows have different lengths")
        raise UnsupportedDtypeError(f"{what} have dtype {array.dtype}; pass real numbers")
    return array.astype(np.float32) if extension else array


def as_vectors(vectors: Any, dim: int, count: int) -> AnyArray:
    """Vectors of shape (count, dim), finite, in float32 or the input's own integer type.

    Raises:
        DimensionError, UnsupportedDtypeError, InvalidVectorError
    """
    array = as_array(vectors)
    if array.size == 0 and count == 0:
        return np.empty((0, dim), np.float32)
    if array.ndim != 2 or array.shape[1] != dim:
        raise DimensionError(f"vectors have shape {array.shape}; this database takes (n, {dim})")
    if len(array) != count:
        raise InvalidVectorError(f"{count} keys but {len(array)} vectors; pass one vector per key")
    return as_finite(array)


def as_finite(array: AnyArray) -> AnyArray:
    """The array in float32 (integers as they are), refused if a value is or becomes infinite or NaN."""
    if array.dtype.kind in "iub":
        return array
    with np.errstate(over="ignore"):
        converted = array.astype(np.float32, copy=False)
    finite = np.isfinite(converted)
    if not finite.all():
        at = tuple(int(i) for i in np.argwhere(~finite)[0])
        raise InvalidVectorError(
            f"vectors{list(at)} is {array[at]}; every component must be finite and fit in float32"
        )  # fmt: skip
    return converted


def as_parameters(values: Any, count: int, name: str) -> Float32s:
    """Per-vector scales or zero points, float32 of shape (count,)."""
    array = as_array(values, name)
    if array.shape != (count,):
        raise InvalidVectorError(f"{name} has shape {array.shape}; pass one number per vector, ({count},)")
    return as_finite(array).astype(np.float32, copy=False)


def as_queries(vectors: Any, dim: int) -> tuple[Float32s, bool]:
    """Queries as float32 (n, dim), and whether a single vector was given."""
    array = (
        vectors if type(vectors) is np.ndarray and vectors.dtype == np.float32 else as_array(vectors, "query vectors")
    )
    single = array.ndim == 1
    if array.ndim not in (1, 2) or array.shape[-1] != dim:
        raise DimensionError(f"query vectors have shape {array.shape}; this database takes ({dim},) or (n, {dim})")
    if array.dtype == np.float32:
        queries = np.ascontiguousarray(array.reshape(-1, dim))
    else:
        with np.errstate(over="ignore"):
            queries = np.ascontiguousarray(array.reshape(-1, dim), dtype=np.float32)
    if not queries.flags.writeable:
        queries = queries.copy()  # read-only arrays are another type to the compiler
    # A finite sum of squares has finite terms, and is cheaper to look at than each of them.
    # Unlike dot, vdot overflows in silence.
    if single:
        finite = math.isfinite(np.vdot(queries[0], queries[0]))
    else:
        long = queries[~(np.einsum("ij,ij->i", queries, queries) < _SHORT)]
        finite = all(math.isfinite(np.vdot(query, query)) for query in long)
    if not finite:
        as_finite(array.reshape(-1, dim))
        raise InvalidVectorError("query vectors are so long that float32 cannot hold their squared norms: scale them")
    return queries, single


# --- payloads ---------------------------------------------------------------------------------------------------------


def as_payloads(payloads: Any, count: int) -> list[bytes | None]:
    """Payloads as JSON text, one or None for each key.

    Raises:
        InvalidPayloadError: for anything but a list of JSON objects of bounded size and depth.
    """
    if payloads is None:
        return [None] * count
    if isinstance(payloads, (str, bytes, dict)) or not isinstance(payloads, Sequence | np.ndarray):
        raise InvalidPayloadError(f"payloads must be a list with one dict or None per key, not {shown(payloads)}")
    if len(payloads) != count:
        raise InvalidPayloadError(f"{count} keys but {len(payloads)} payloads; pass one per key, None for none")
    return [None if payload is None else _as_json(payload, row) for row, payload in enumerate(payloads)]


def _as_json(payload: Any, row: int) -> bytes:
    if not isinstance(payload, dict):
        raise InvalidPayloadError(f"payload {row} is {shown(payload)}; a payload is a JSON object, a dict")
    _check_json(payload, row, 1)
    try:
        text = json.dumps(payload, allow_nan=False, ensure_ascii=False, separators=(",", ":")).encode()
    except (ValueError, TypeError) as error:
        raise InvalidPayloadError(f"payload {row}, {shown(payload)}, is not JSON: {error}") from error
    if len(text) > MAX_PAYLOAD_BYTES:
        raise InvalidPayloadError(f"payload {row} takes {len(text):,} bytes; at most {MAX_PAYLOAD_BYTES:,} are stored")
    return text


def _check_json(value: Any, row: int, depth: int) -> None:
    """Refuse what json.dumps would change on the way: keys that are no strings; and nesting without end."""
    if depth > MAX_PAYLOAD_DEPTH:
        raise InvalidPayloadError(f"payload {row} is nested more than {MAX_PAYLOAD_DEPTH} deep")
    if isinstance(value, dict):
        for name, item in value.items():
            if not isinstance(name, str):
                raise InvalidPayloadError(f"payload {row} has the field name {shown(name)}; names are strings")
            if isinstance(item, (dict, list, tuple)):
                _check_json(item, row, depth + 1)
    else:
        for item in value:
            if isinstance(item, (dict, list, tuple)):
                _check_json(item, row, depth + 1)


# --- arguments --------------------------------------------------------------------------------------------------------


def as_count(value: Any, name: str, most: int | None = None) -> int:
    """A positive integer argument.

    Raises:
        InvalidArgumentError: naming it.
    """
    if type(value) is int and 1 <= value <= (most or value):
        return value
    try:
        number = operator.index(value)
    except TypeError:
        raise InvalidArgumentError(f"{name}={shown(value)}: must be an integer") from None
    if isinstance(value, (bool, np.bool_)):
        raise InvalidArgumentError(f"{name}={value!r}: must be an integer")
    if number < 1 or (most is not None and number > most):
        raise InvalidArgumentError(f"{name}={number}: must be at least 1" + (f" and at most {most:,}" if most else ""))
    return number


def as_search_list(value: Any, k: int) -> int:
    """The search list that a query asks for, at least k."""
    wanted = as_count(value, "search_list", MAX_SEARCH_LIST)
    if wanted < k:
        raise InvalidArgumentError(f"search_list={wanted} is less than k={k}: the list must hold at least k candidates")
    return wanted


def as_recall(value: Any, name: str = "min_recall") -> float:
    """A recall to be had: above 0, at most 1."""
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or not 0 < float(value) <= 1:
        raise InvalidArgumentError(f"{name}={shown(value)}: must be a number above 0 and at most 1, such as 0.95")
    return float(value)


def check_one_of(search_list: Any, min_recall: Any, exact: Any) -> None:
    """Refuse a query that says in two ways how well it is to search."""
    if min_recall is not None and search_list is not None:
        raise InvalidArgumentError(
            f"min_recall={shown(min_recall)} and search_list={shown(search_list)}: give one of them; "
            "min_recall chooses the list"
        )
    if min_recall is not None and exact:
        raise InvalidArgumentError(
            f"min_recall={shown(min_recall)} and exact={shown(exact)}: give one of them; an exact scan misses nothing"
        )


def check_plan(plan: Any, *, filtered: bool, exact: bool) -> None:
    """Refuse a plan that does not exist, or that the rest of the query rules out."""
    if not isinstance(plan, str) or plan not in PLANS:
        raise InvalidArgumentError(f"plan={shown(plan)}: choose one of {', '.join(map(repr, PLANS))}, or None")
    if exact and plan != "exact":
        raise InvalidArgumentError(f"plan={plan!r} and exact={exact!r}: give one of them")
    if not filtered and plan in ("scan", "cells", "two-hop"):
        raise InvalidArgumentError(f"plan={plan!r} goes over the matches of a filter: give one, or choose 'exact'")


def check_filters(filters: Any, queries: int, *, single: bool) -> None:
    """Refuse a list of filters that are not as many as the queries."""
    if isinstance(filters, list) and (single or len(filters) != queries):
        asked = "one query, of shape (dim,)" if single else f"{queries:,} queries"
        raise InvalidArgumentError(
            f"filter= is a list of {len(filters):,} filters for {asked}: pass one filter, or one for each query"
        )


def as_bound(value: Any) -> float | None:
    """max_distance: a number, not NaN."""
    if value is None:
        return None
    if isinstance(value, (bool, np.bool_)) or not isinstance(value, Real) or math.isnan(value):
        raise InvalidArgumentError(f"max_distance={shown(value)}: must be a number")
    return float(value)


def as_texts(text: Any) -> str | list[str]:
    """A text to rank by, or one for each query."""
    each = text if isinstance(text, (list, tuple)) else [text]
    for one in each:
        if not isinstance(one, str):
            raise InvalidArgumentError(f"text={shown(text)}: must be a str, or a list with one for each query")
        if any("\ud800" <= letter <= "\udfff" for letter in one):
            raise InvalidArgumentError(f"text={shown(one)} holds a lone surrogate, which is not text")
        if len(one) > MAX_TEXT:
            raise InvalidArgumentError(f"a text of {len(one):,} characters is more than the {MAX_TEXT:,} of a query")
    return text if isinstance(text, str) else list(each)


def check_texts(texts: str | list[str], queries: int, *, single: bool) -> None:
    """Refuse texts that are not as many as the queries."""
    if isinstance(texts, list) and (single or len(texts) != queries):
        asked = "one query" if single else f"{queries:,} queries"
        raise InvalidArgumentError(
            f"text= is a list of {len(texts):,} for {asked}: pass one text, or one for each query"
        )


def check_fusion(fusion: Any, *, texts: bool, vectors: bool) -> None:
    """Refuse a way to join lists that does not exist, or where there are not both of them."""
    if not isinstance(fusion, str) or fusion not in FUSIONS:
        raise InvalidArgumentError(f"fusion={shown(fusion)}: choose one of {', '.join(map(repr, FUSIONS))}")
    if fusion != FUSIONS[0] and not (texts and vectors):
        raise InvalidArgumentError(f"fusion={fusion!r} joins what a vector finds and what a text does: give both")


def refuse(reason: str, **given: Any) -> None:
    """Refuse arguments that are given although the rest of the query rules them out."""
    for name, value in given.items():
        if value is not None and value is not False:
            raise InvalidArgumentError(f"{name}={shown(value)} {reason}")

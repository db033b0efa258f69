"""Every setting: default, bounds, meaning, and whether it may change after creation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from numbers import Integral, Real
from typing import Any

from .errors import InvalidSettingError
from .sizes import parse_bytes

MAX_DIM = 65_536
MAX_ROWS = 2**31 - 1  # ids are 31 bits wide: one more bit marks an expanded candidate
MAX_KEY_BYTES = 1_024
MAX_PAYLOAD_BYTES = 1 << 20
MAX_PAYLOAD_DEPTH = 64
MAX_TEXT = 1 << 16  # characters of a text to look for
MAX_K = MAX_ROWS
MAX_SEARCH_LIST = 1 << 16

METRICS = ("l2", "cosine", "ip")
DTYPES = ("f32", "f16", "bf16", "i8", "u8")
DURABILITIES = ("os", "sync")
COMPRESSIONS = ("auto", "none", "sq8", "sq4", "rabitq", "pq", "opq", "trunc")


def setting(
    default: Any, meaning: str, *, low: float | None = None, high: float | None = None,
    choices: tuple[str, ...] = (), mutable: bool = False, size: bool = False, names: bool = False,
) -> Any:  # fmt: skip
    """Declare one setting; bounds are inclusive. size: in bytes, also written as "2GB", and None for 0.
    names: a list of texts, of which the bounds say how many.
    """
    return field(
        default=default,
        metadata={
            "meaning": meaning,
            "low": low,
            "high": high,
            "choices": choices,
            "mutable": mutable,
            "size": size,
            "names": names,
        },
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """The settings of one database, in force and stored with it."""

    dim: int = setting(0, "Dimensions of every vector.", low=1, high=MAX_DIM)
    metric: str = setting(
        "cosine", "Distance: l2 (squared Euclidean), cosine (1 - cos) or ip (1 - dot).", choices=METRICS
    )
    dtype: str = setting("f32", "Type in which vectors are stored.", choices=DTYPES)
    durability: str = setting(
        "os", "What an acknowledged write survives: os = death of the process, sync = loss of power.",
        choices=DURABILITIES, mutable=True,
    )  # fmt: skip
    compression_mode: str = setting(
        "auto",
        "Codes over which walks go before the best are ranked by their vectors: none, sq8, sq4, rabitq, pq, opq, "
        "trunc, or auto, which picks once there are enough rows.",
        choices=COMPRESSIONS, mutable=True,
    )  # fmt: skip
    compression_threshold: int = setting(
        10_000, "Rows from which on there are codes; below, walks measure vectors.", low=0, high=MAX_ROWS, mutable=True
    )
    pq_subspaces: int = setting(
        0, "Pieces of a vector under pq and opq, a byte each; at most one per dimension. 0 for one per four or so.",
        low=0, high=MAX_DIM,
    )  # fmt: skip
    pq_sample_size: int = setting(
        32_768, "Rows, at most, by which a codebook for pq or opq is trained.", low=256, high=1 << 24, mutable=True
    )
    trunc_dims: int = setting(
        0, "Components, from the first on, that codes of the kind trunc hold. 0 for a quarter or so.",
        low=0, high=MAX_DIM,
    )  # fmt: skip
    max_edges: int = setting(
        32, "Out-edges per node after a prune (R); up to half as many again before one.", low=4, high=512
    )
    distance_threshold: float = setting(
        1.2,
        "Slack of the prune on squared distances (α); larger keeps more long edges.",
        low=1.0,
        high=4.0,
        mutable=True,
    )
    recall_target: float = setting(
        0.97,
        "Recall for which the calibration curve gives the list of a query that names neither; 0 leaves it to the cap.",
        low=0.0,
        high=0.999,
        mutable=True,
    )
    query_search_list_cap: int = setting(
        96, "Search list of a query that names none while there is no curve.", low=1, high=MAX_SEARCH_LIST, mutable=True
    )
    update_search_list_cap: int = setting(
        96, "Search list with which an insert finds its neighbours.", low=8, high=4_096, mutable=True
    )
    beam_width: int = setting(
        4, "Nodes expanded per step of a search, once edges and codes take more than 16 MiB; else one.",
        low=1, high=16, mutable=True,
    )  # fmt: skip
    index_fields: tuple[str, ...] = setting(
        (), "Fields of payloads that are indexed, with all below them; none named stands for every field.",
        low=0, high=1_000, mutable=True, names=True,
    )  # fmt: skip
    no_index_fields: tuple[str, ...] = setting(
        (), 'Fields of payloads that are not, with all below them; `["*"]` for no index at all.',
        low=0, high=1_000, mutable=True, names=True,
    )  # fmt: skip
    text_fields: tuple[str, ...] = setting(
        (), "Fields of payloads whose texts are kept in a full-text index, for `text=` and `$text`; needs tantivy.",
        low=0, high=64, mutable=True, names=True,
    )  # fmt: skip
    memory_limit: int = setting(
        0, "Bytes of memory to live in, beyond those of an open empty database; 0 for as many as it takes.",
        low=0, high=1 << 62, mutable=True, size=True,
    )  # fmt: skip

    def __post_init__(self) -> None:
        for item in fields(self):
            checked = _checked(item.name, getattr(self, item.name), item.type, item.metadata)
            object.__setattr__(self, item.name, checked)

    def changed(self, changes: Mapping[str, Any]) -> Settings:
        """These settings with `changes`, all of which must be known and mutable.

        Raises:
            InvalidSettingError: for an unknown name, a value out of bounds, or a setting fixed at creation.
        """
        for name in changes:
            if name not in META:
                raise _unknown(name)
        changed = replace(self, **changes)
        for name in changes:
            if not META[name]["mutable"] and getattr(changed, name) != getattr(self, name):
                raise InvalidSettingError(
                    f"{name!r} is fixed at creation ({getattr(self, name)!r}); create a new database to change it"
                )
        return changed

    def as_dict(self) -> dict[str, Any]:
        """Plain dictionary, ready for JSON."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Settings:
        """Settings from user input.

        Raises:
            InvalidSettingError: for an unknown name or a value out of bounds.
        """
        for name in values:
            if name not in META:
                raise _unknown(name)
        return cls(**values)


META: dict[str, Mapping[str, Any]] = {item.name: item.metadata for item in fields(Settings)}


def _unknown(name: str) -> InvalidSettingError:
    return InvalidSettingError(f"unknown setting {name!r}; known settings: {', '.join(META)}")


def _size(name: str, value: Any) -> int:
    if value is None or (isinstance(value, Integral) and not isinstance(value, bool) and value == 0):
        return 0
    try:
        return parse_bytes(value)
    except ValueError as error:
        raise InvalidSettingError(f"{name}={error}; None for no limit") from None


def _names(name: str, value: Any, most: int) -> tuple[str, ...]:
    if value is None:
        return ()
    if isinstance(value, str) or not isinstance(value, Sequence):
        raise InvalidSettingError(f"{name}={value!r}: must be a list of names, such as [{value!r}]")
    if len(value) > most or not all(isinstance(each, str) and each for each in value):
        raise InvalidSettingError(f"{name}={value!r}: must be at most {most:,} names of fields, such as 'author.name'")
    return tuple(map(str, value))


def _checked(name: str, value: Any, kind: Any, meta: Mapping[str, Any]) -> Any:
    """The value as a plain str, int or float."""
    if meta["choices"]:
        if not isinstance(value, str) or value not in meta["choices"]:
            raise InvalidSettingError(f"{name}={value!r}: choose one of {', '.join(meta['choices'])}")
        return value
    if meta["names"]:
        return _names(name, value, meta["high"])
    if meta["size"]:
        value = _size(name, value)
    wanted = Real if kind == "float" else Integral
    if isinstance(value, bool) or not isinstance(value, wanted):
        raise InvalidSettingError(f"{name}={value!r}: must be {'a number' if kind == 'float' else 'an integer'}")
    number: float = int(value) if isinstance(value, Integral) else float(value)
    if not meta["low"] <= number <= meta["high"]:
        raise InvalidSettingError(f"{name}={value!r}: must be between {meta['low']} and {meta['high']}")
    return number

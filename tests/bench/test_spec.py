"""Systems as they are asked for.

Rules out an option that goes to the wrong system or is dropped, a value of the wrong type, and a typo that is measured.
"""

from __future__ import annotations

import sys

import pytest

from corenn import InvalidArgumentError
from corenn.bench.spec import parse_systems
from corenn.bench.systems import System, load, names


def test_systems_and_their_options() -> None:
    specs = parse_systems(["corenn, hnswlib:M=32,ef_construction=400,faiss-hnsw", "hnswlib"])
    assert [spec.label for spec in specs] == ["corenn", "hnswlib:M=32,ef_construction=400", "faiss-hnsw", "hnswlib"]
    assert specs[1].name == "hnswlib" and specs[1].options == {"M": 32, "ef_construction": 400}
    assert specs[1].build_params == {"M": 32, "ef_construction": 400}
    assert specs[3].build_params == {"M": 16, "ef_construction": 200}
    assert specs[1].file_name == "hnswlib_M=32_ef_construction=400"


def test_values_have_the_type_of_their_default() -> None:
    (spec,) = parse_systems(["corenn:distance_threshold=1,dtype=f16,max_edges=48"])
    assert spec.options == {"distance_threshold": 1.0, "dtype": "f16", "max_edges": 48}
    assert [type(value) for value in spec.options.values()] == [float, str, int]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nobody", "unknown system 'nobody'; choose from chroma, corenn,"),
        ("base", "unknown system 'base'"),
        ("no.such.module", "unknown system 'no.such.module'"),
        ("json.decoder", "json.decoder must define one System; it defines 0"),
        ("hnswlib:M", "'M' is no option; the options and their defaults: M=16, ef_construction=200"),
        ("hnswlib:m=16", "'m=16' is no option"),
        ("qdrant:M=16", "defaults: none"),
        ("hnswlib:M=many", "hnswlib:M='many': must be an integer"),
        ("corenn:distance_threshold=big", "must be a number"),
        ("hnswlib:M=16,M=32", "option 'M' is given twice"),
        ("corenn,corenn", "system 'corenn' is given twice"),
        ("", "no system is given"),
        (" , ", "no system is given"),
        ("M=3", "unknown system 'M=3'"),
    ],
)
def test_what_cannot_be_asked_for(text: str, message: str) -> None:
    with pytest.raises(InvalidArgumentError) as raised:
        parse_systems([text])
    assert message in str(raised.value)


def test_a_module_that_fails_to_import_something_else_says_so() -> None:
    with pytest.raises(InvalidArgumentError, match="cannot be imported: No module named 'no_such_package'"):
        load("tests.bench.fake_broken")


@pytest.mark.parametrize("name", names())
def test_every_file_is_a_system_that_describes_itself(name: str) -> None:
    before = set(sys.modules)
    system = load(name)
    assert issubclass(system, System) and system.name == name
    assert system.module and system.package and system.__doc__
    assert all(isinstance(value, int | float | str) for value in system.options.values())
    heavy = {each.partition(".")[0] for each in set(sys.modules) - before} - {"corenn"}
    assert not heavy & {"numba", "faiss", "hnswlib", "lancedb", "chromadb", "pymilvus", system.module.partition(".")[0]}


def test_the_systems_of_the_comparison_are_all_there() -> None:
    assert names() == sorted([
        "chroma", "corenn", "corenn-disk", "corenn-py", "diskann", "faiss-flat", "faiss-hnsw", "faiss-hnsw-sq8",
        "faiss-ivf", "faiss-ivfpq", "hnswlib", "lancedb", "milvus-lite", "ngt", "pynndescent", "qdrant",
        "qdrant-memory", "sqlite-vec", "svs", "usearch", "voyager", "vsag", "zvec",
    ])  # fmt: skip

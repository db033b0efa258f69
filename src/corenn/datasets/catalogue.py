"""The data sets that `corenn dataset fetch` knows, with the source of every size and checksum.

A size or checksum without a source that can be cited is left out: the file is then unverified, which a fetch says.
Where the format fixes the size of a file (bytes of header, rows × dimensions × bytes per number), that is its source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from difflib import get_close_matches
from pathlib import Path
from typing import Any

from ..errors import DatasetError
from .remote import Entry, RemoteFile, Source

# Sizes and SHA-256 that TensorFlow Datasets checks its own downloads against: tensorflow/datasets,
# tensorflow_datasets/nearest_neighbors/{sift1m,glove_100_angular}/checksums.tsv.
_TFDS = "tensorflow/datasets, nearest_neighbors/*/checksums.tsv"
# arclabs561/vicinity at 729a6e5b, scripts/download_ann_benchmarks.py; sizes agree with the shapes of the arrays.
_VICINITY = "arclabs561/vicinity at 729a6e5b, scripts/download_ann_benchmarks.py"
# The corpus's own list, ftp://ftp.irisa.fr/local/texmex/corpus/MD5SUM, as quoted with the sizes by
# ShengzeWang/LearnedHash at 542528c8, tools/vortex_dataset_prepare.py.
_TEXMEX = "MD5SUM of corpus-texmex.irisa.fr, quoted by ShengzeWang/LearnedHash, tools/vortex_dataset_prepare.py"
# MD5SUM as above, quoted by the list of data sets of the same repository.
_BVECS = "MD5SUM of corpus-texmex.irisa.fr, quoted by ShengzeWang/LearnedHash"
# harsha-simhadri/big-ann-benchmarks at 07c5daaf, benchmark/datasets.py: rows, dimensions, type and addresses; the
# format, benchmark/dataset_io.py: 8 bytes of header, then the numbers.
_FORMAT = "8 + rows × dim × bytes per number; harsha-simhadri/big-ann-benchmarks, benchmark/datasets.py"

_PDDL = "PDDL 1.0 (README of stanfordnlp/GloVe)"
_MIT = "MIT (LICENSE of zalandoresearch/fashion-mnist)"

_FTP = "ftp://ftp.irisa.fr/local/texmex/corpus/"
_FACEBOOK = "https://dl.fbaipublicfiles.com/billion-scale-ann-benchmarks/"
_YANDEX = "https://storage.yandexcloud.net/yandex-research/ann-datasets/"
_BILLION = 1_000_000_000


def _hdf5(name: str, rows: int, size: int, sha256: str, cited: str) -> Source:
    """A file of ann-benchmarks: its own site, then the mirror that pyglass (hhy3) keeps and downloads from."""
    file = f"{name}.hdf5"
    urls = (
        f"https://ann-benchmarks.com/{file}",
        f"http://ann-benchmarks.com/{file}",
        f"https://huggingface.co/datasets/hhy3/ann-datasets/resolve/main/{file}",
    )
    return Source("hdf5", RemoteFile(file, urls, size, f"sha256:{sha256}", cited), rows)


def _texmex(name: str, rows: int, size: int, md5: str, mirrors: Sequence[str] = ()) -> Source:
    """An archive of the TexMex corpus; its FTP server comes last."""
    file = f"{name}.tar.gz"
    base = RemoteFile(file, (*(mirror + file for mirror in mirrors), _FTP + file), size, f"md5:{md5}", _TEXMEX)
    members = (f"{name}_base.fvecs", f"{name}_query.fvecs", f"{name}_groundtruth.ivecs")
    return Source("texmex", base, rows, members=members)


def _bin(url: str, name: str, rows: int, row_bytes: int) -> RemoteFile:
    return RemoteFile(name, (url + name,), 8 + rows * row_bytes, cited=_FORMAT)


def _truth(*urls: str) -> RemoteFile:
    """True neighbours with distances. Nobody that could be cited gives their sizes or checksums."""
    return RemoteFile(urls[0].rpartition("/")[2].removesuffix(".bin").removesuffix(".ibin") + ".truth", urls)


def _deep(rows: int) -> Entry:
    source = Source(
        "bigann",
        _bin(_YANDEX + "DEEP/", "base.1B.fbin", _BILLION, 96 * 4),
        _BILLION,
        _bin(_YANDEX + "DEEP/", "query.public.10K.fbin", 10_000, 96 * 4),
        {
            10_000_000: _truth(_FACEBOOK + "GT_10M/deep-10M"),
            100_000_000: _truth(_FACEBOOK + "GT_100M/deep-100M"),
            _BILLION: _truth(_YANDEX + "deep_new_groundtruth.public.10K.bin"),
        },
    )
    label = _label(rows)
    return Entry(
        f"deep-{label.lower()}", f"The first {rows:,} rows of Deep1B, descriptors of images", rows, 10_000, 96, "f32",
        "l2", "https://research.yandex.com/blog/benchmarks-for-billion-scale-similarity-search", (source,),
    )  # fmt: skip


def _bigann(rows: int) -> Entry:
    common = Source(
        "bigann",
        _bin(_FACEBOOK + "bigann/", "base.1B.u8bin", _BILLION, 128),
        _BILLION,
        _bin(_FACEBOOK + "bigann/", "query.public.10K.u8bin", 10_000, 128),
        {
            10_000_000: _truth(_FACEBOOK + "GT_10M/bigann-10M"),
            100_000_000: _truth(_FACEBOOK + "GT_100M/bigann-100M"),
            _BILLION: _truth(_FACEBOOK + "bigann/GT.public.1B.ibin"),
        },
    )
    return Entry(
        f"bigann-{_label(rows).lower()}", f"The first {rows:,} rows of BigANN, SIFT descriptors of photographs", rows,
        10_000, 128, "u8", "l2", "http://corpus-texmex.irisa.fr/", (common, _bvecs()),
    )  # fmt: skip


def _bvecs() -> Source:
    """BigANN as the TexMex corpus serves it: compressed, so that a slice is a prefix of the stream."""
    truth = RemoteFile(
        "bigann_gnd.tar.gz", (_FTP + "bigann_gnd.tar.gz",), None, "md5:f40646ba10e152229818e82cd5bd84b2", _BVECS
    )
    return Source(
        "bvecs",
        RemoteFile(
            "bigann_base.bvecs.gz", (_FTP + "bigann_base.bvecs.gz",), None, "md5:4346fa68813d71e7f3d75d2faba669ec",
            _BVECS,
        ),
        _BILLION,
        RemoteFile(
            "bigann_query.bvecs.gz", (_FTP + "bigann_query.bvecs.gz",), None, "md5:b5f61050d3c435911d54db122b5469b5",
            _BVECS,
        ),
        {millions * 1_000_000: truth for millions in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000)},
        ("idx_{millions}M.ivecs", "dis_{millions}M.fvecs"),
    )  # fmt: skip


def _label(rows: int) -> str:
    return "1B" if rows == _BILLION else f"{rows // 1_000_000}M"


def _glove(dim: int, size: int, sha256: str, cited: str) -> Entry:
    name = f"glove-{dim}-angular"
    return Entry(
        f"glove-{dim}", f"Word vectors of Twitter in {dim} dimensions", 1_183_514, 10_000, dim, "f32", "cosine",
        "https://nlp.stanford.edu/projects/glove/", (_hdf5(name, 1_183_514, size, sha256, cited),), _PDDL, (name,),
    )  # fmt: skip


# Rows, queries, dimensions and metrics of the HDF5 files: README of erikbern/ann-benchmarks. Those of the TexMex
# archives: corpus-texmex.irisa.fr.
ENTRIES: tuple[Entry, ...] = (
    Entry(
        "sift1m", "SIFT descriptors of photographs", 1_000_000, 10_000, 128, "f32", "l2",
        "http://corpus-texmex.irisa.fr/",
        (
            _hdf5(
                "sift-128-euclidean", 1_000_000, 525_128_288,
                "dd6f0a6ed6b7ebb8934680f861a33ed01ff33991eaee4fd60914d854a0ca5984", _TFDS,
            ),
            _texmex(
                "sift", 1_000_000, 168_280_445, "b23d1b3b2ee8469d819b61ca900ef0ed",
                ("https://huggingface.co/datasets/qbo-odp/sift1m/resolve/main/",),
            ),
        ),
        aliases=("sift", "sift-128-euclidean"),
    ),
    Entry(
        "sift-small", "SIFT descriptors of photographs, for trials", 10_000, 100, 128, "f32", "l2",
        "http://corpus-texmex.irisa.fr/",
        (
            _texmex(
                "siftsmall", 10_000, 5_305_734, "0b8324a7a82d7f2663d7dcbd57642df7",
                ("https://huggingface.co/datasets/qbo-odp/sift1m/resolve/main/",),
            ),
        ),
        aliases=("sift10k",),
    ),
    Entry(
        "gist1m", "GIST descriptors of photographs", 1_000_000, 1_000, 960, "f32", "l2",
        "http://corpus-texmex.irisa.fr/",
        (
            _hdf5(
                "gist-960-euclidean", 1_000_000, 3_844_648_288,
                "8e95831936bfdbfa0a56086942e2cf98cd703517c67f985914183eb4cdbf026a", _VICINITY,
            ),
            _texmex("gist", 1_000_000, 2_740_172_684, "31185e0f00854f74d27e8ad8d52628a9"),
        ),
        aliases=("gist", "gist-960-euclidean"),
    ),
    _glove(25, 127_359_688, "51004cb0ae962159f0db507a51fec2b395de14b166f55976c89f16bd2f8b6391", _VICINITY),
    _glove(100, 485_413_888, "544af1d5e84e112cd4749571dcfd8ca109818a572f850af75a3a09e093a953c4", _TFDS),
    _glove(200, 962_819_488, "4839085e5a8bb293434a1a66e1aa0193afc3f07c6797a85f1dbd91656172da20", _VICINITY),
    _deep(10_000_000),
    _deep(100_000_000),
    _deep(_BILLION),
    _bigann(10_000_000),
    _bigann(100_000_000),
    _bigann(_BILLION),
    Entry(
        "fashion-mnist", "Pictures of clothes, 28 × 28", 60_000, 10_000, 784, "f32", "l2",
        "https://github.com/zalandoresearch/fashion-mnist",
        (
            _hdf5(
                "fashion-mnist-784-euclidean", 60_000, 227_528_288,
                "7f24e5122b71346346686a6ea80e08d9145b9c020f9f2db4c4c799dfcfc96a07", _VICINITY,
            ),
        ),
        _MIT, ("fashion-mnist-784-euclidean",),
    ),
    Entry(
        "nytimes", "Articles of the New York Times, bags of words projected at random", 290_000, 10_000, 256, "f32",
        "cosine", "https://archive.ics.uci.edu/ml/datasets/bag+of+words",
        (
            _hdf5(
                "nytimes-256-angular", 290_000, 315_208_288,
                "6ad5d2cde6d6a6f21528d541901304ebfd40885d6ce6afae37bccbe278254a93", _VICINITY,
            ),
        ),
        aliases=("nytimes-256-angular",),
    ),
)  # fmt: skip


def find(name: str, entries: Sequence[Entry] = ENTRIES) -> Entry:
    """The data set called `name`; case, hyphens and underscores do not matter.

    Raises:
        DatasetError: if there is none; the message names the likeliest ones.
    """
    names = {_plain(each): entry for entry in entries for each in (*entry.aliases, entry.name)}
    found = names.get(_plain(name))
    if found is None:
        near = get_close_matches(_plain(name), names, n=3)
        hint = f"did you mean {' or '.join(dict.fromkeys(names[each].name for each in near))}? " if near else ""
        raise DatasetError(f"no data set {name!r} in the catalogue; {hint}known: {', '.join(e.name for e in entries)}")
    return found


def _plain(name: str) -> str:
    return "".join(letter for letter in name.lower() if letter.isalnum())


# --- catalogues of others ---------------------------------------------------------------------------------------------


def read_catalogue(path: Path) -> tuple[Entry, ...]:
    """A catalogue in a JSON file: a list of objects with the fields of Entry.

    Raises:
        DatasetError: if it is not one, with the field that is wrong.
    """
    try:
        listed = json.loads(path.read_text())
    except (ValueError, RecursionError) as error:
        raise DatasetError(f"{path} is not JSON: {error}") from None
    if not isinstance(listed, list) or not listed:
        raise DatasetError(f"{path}: needs a list of data sets")
    try:
        return tuple(_entry(each) for each in listed)
    except DatasetError as error:
        raise DatasetError(f"{path}: {error}") from None


def _entry(given: object) -> Entry:
    values = _values(Entry, given)
    sources = values["sources"]
    if not isinstance(sources, list):
        raise DatasetError(f"Entry: sources is {sources!r}; needs a list")
    values["sources"] = tuple(map(_source, sources))
    return Entry(**values)


def _source(given: object) -> Source:
    values = _values(Source, given)
    values["base"] = RemoteFile(**_values(RemoteFile, values["base"]))
    if values.get("queries") is not None:
        values["queries"] = RemoteFile(**_values(RemoteFile, values["queries"]))
    truths = values.pop("truths", {})
    if not isinstance(truths, dict) or not all(rows.isdecimal() for rows in truths):
        raise DatasetError("truths must be an object with numbers of rows as names")
    files = {int(rows): RemoteFile(**_values(RemoteFile, file)) for rows, file in truths.items()}
    return Source(**values, truths=files)


_KINDS: Mapping[str, type] = {"str": str, "int": int, "int | None": int, "tuple[str, ...]": tuple}


def _values(kind: type, given: object) -> dict[str, Any]:
    """The fields of a data class from an object, with lists of text as tuples."""
    if not isinstance(given, dict):
        raise DatasetError(f"needs an object for {kind.__name__}, not {given!r}")
    known = {each.name: each for each in fields(kind)}
    needed = {name for name, each in known.items() if each.default is MISSING and each.default_factory is MISSING}
    if wrong := given.keys() - known.keys():
        raise DatasetError(f"{kind.__name__} has no field {', '.join(sorted(wrong))}; known: {', '.join(known)}")
    if missing := needed - given.keys():
        raise DatasetError(f"{kind.__name__} needs {', '.join(sorted(missing))}")
    values = {}
    for name, value in given.items():
        expected = _KINDS.get(str(known[name].type))
        if expected is tuple and isinstance(value, list) and all(isinstance(each, str) for each in value):
            value = tuple(value)
        optional = value is None and "None" in str(known[name].type)
        if expected and not optional and (not isinstance(value, expected) or isinstance(value, bool)):
            raise DatasetError(f"{kind.__name__}: {name} is {value!r}; needs {known[name].type}")
        values[name] = value
    return values

"""`corenn demo`: the whole path on real data, without a download."""

from __future__ import annotations

import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from . import console

if TYPE_CHECKING:
    from ..database import CoreNN
    from ..datasets.corpus import Corpus
    from ..datasets.lsa import Lsa
    from ..types import Hits

HELD_BACK = 300
BATCH = 1_000
K = 10
SHOWN = 3
QUESTIONS = (
    "parse an XML document",
    "wait until several threads are done",
    "draw random numbers from a normal distribution",
    "run a command in another process",
    "convert a string to a date",
)


def demo(
    path: Annotated[Path | None, typer.Option(help="Keep the database here. Default: a temporary folder.")] = None,
    rows: Annotated[int, typer.Option(min=1, help="Texts to take at most.")] = 20_000,
    dim: Annotated[int, typer.Option(min=2, max=1024, help="Dimensions of the vectors.")] = 256,
    no_ask: Annotated[bool, typer.Option("--no-ask", help="Do not wait for questions at the end.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON; asks nothing.")] = False,
) -> None:
    """Index the documentation of this Python installation and search it: about a minute, no download.

    Embeds the docstrings of the standard library and of the installed packages, builds a database on disk, measures
    recall and latency, closes it, opens it again and answers a few questions. Then it is your turn.

    Needs: pip install 'corenn\\[demo]'

    Example: corenn demo --path docs.corenn
    """
    if path is not None and console.exists(path):
        console.fail(f"{path} already exists; choose another --path or remove it")
    with ExitStack() as stack:
        place = path or Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="corenn-demo-"))) / "docs.corenn"
        corpus, figures = prepare(rows, dim)
        figures |= build(place, corpus)
        db, seconds = reopen(place)
        stack.enter_context(db)
        figures |= {"reopen_ms": round(seconds * 1e3, 1), "rows_after_reopening": len(db)}
        answers = {question: ask(db, corpus.embedder, question) for question in QUESTIONS}
        if as_json:
            console.print_json({"path": str(path) if path else None, **figures, "answers": answers})
            return
        show(figures, answers)
        if sys.stdin.isatty() and not no_ask:
            converse(db, corpus.embedder)
    if path is not None:
        console.say(f"The database stays in {path}: corenn stats {path}")


def prepare(rows: int, dim: int) -> tuple[Corpus, dict[str, Any]]:
    """Harvest and embed; a few texts are held back as queries."""
    from ..datasets import lsa  # noqa: F401 - first of all: without the extra there is no point in harvesting
    from ..datasets.corpus import embed, read

    began = time.perf_counter()
    held_back = min(HELD_BACK, rows // 10 + 1)
    with console.progress("reading documentation", rows + held_back) as advance:
        found = read(rows + held_back, advance)
    held_back = min(held_back, len(found) // 10 + 1)
    if len(found) - held_back <= dim:
        console.fail(f"only {len(found) - held_back} texts found: choose --dim below that, or more --rows")
    with console.status(f"embedding {len(found):,} texts in {dim} dimensions"):
        corpus = embed(found, held_back, dim)
    console.say(f"Embedded {len(found):,} documentation texts of this Python installation.")
    return corpus, {"dim": dim, "texts_s": round(time.perf_counter() - began, 2)}


def build(path: Path, corpus: Corpus) -> dict[str, Any]:
    """Create the database, fill it in batches, and measure it."""
    import numpy as np

    from ..bench.recall import recall_by_distance, table
    from ..bench.timing import one_by_one, percentiles_ms

    with console.create(path, {"dim": corpus.vectors.shape[1], "metric": "cosine"}) as db:
        seconds = _insert(db, corpus)
        found, exact = (db.query(corpus.queries, k=K, exact=exact) for exact in (False, True))
        near, truth = (table([hits.distances for hits in answers], K, np.inf) for answers in (found, exact))
        one_by_one(db, corpus.queries[:20], K)
        return {
            "rows": len(db),
            "build_s": round(seconds, 2),
            "rows_per_s": round(len(db) / seconds),
            "queries": len(corpus.queries),
            # one unit of float32 at 1: the two plans add the same products in another order
            "recall_at_10": round(recall_by_distance(near, truth, min(K, len(db)), absolute=1e-6), 4),
            **percentiles_ms(one_by_one(db, corpus.queries, K), 50, 99),
            "disk_bytes": db.stats().disk_bytes,
        }


def _insert(db: CoreNN, corpus: Corpus) -> float:
    """Seconds taken, in batches: each is on disk and searchable when its call returns."""
    began = time.perf_counter()
    with console.progress("inserting", len(corpus.documents)) as advance:
        for first in range(0, len(corpus.documents), BATCH):
            batch = corpus.documents[first : first + BATCH]
            payloads = [{"name": document.name, "line": document.line} for document in batch]
            db.insert([document.name for document in batch], corpus.vectors[first : first + BATCH], payloads)
            advance(len(batch))
    return time.perf_counter() - began


def reopen(path: Path) -> tuple[CoreNN, float]:
    """The database, closed before, and the seconds it took to open."""
    from ..database import CoreNN

    began = time.perf_counter()
    db = CoreNN.open(path)
    return db, time.perf_counter() - began


def ask(db: CoreNN, embedder: Lsa, question: str) -> list[dict[str, Any]]:
    """The names nearest to a question, with their distances and first lines; none if no word of it is known."""
    vector = embedder.transform([question])[0]
    hits: Hits = db.query(vector, k=SHOWN, with_payloads=True)
    known = hits if vector.any() else ()
    return [{"name": hit.key, "distance": round(hit.distance, 4), "line": (hit.payload or {})["line"]} for hit in known]


def show(figures: dict[str, Any], answers: dict[str, list[dict[str, Any]]]) -> None:
    """The figures, then each question with what was found."""
    shown = {
        "rows": f"{figures['rows']:,} of {figures['dim']} dimensions, {figures['disk_bytes'] / 1e6:,.1f} MB on disk",
        "build": f"{figures['rows_per_s']:,} rows/s, each batch on disk and searchable when its call returned",
        "recall@10": f"{figures['recall_at_10']:.4f} against exact search, {figures['queries']} queries held back",
        "latency": f"p50 {figures['p50_ms']:.3f} ms, p99 {figures['p99_ms']:.3f} ms, one query per call",
        "reopened": f"in {figures['reopen_ms']:.0f} ms with {figures['rows_after_reopening']:,} rows",
    }
    console.print_figures("CoreNN on the documentation of this Python installation", shown.items())
    print_answers(answers)


def print_answers(answers: dict[str, list[dict[str, Any]]]) -> None:
    """Each question, and below it the names and first lines that were found."""
    from rich.text import Text

    out = console.stdout()
    for question, hits in answers.items():
        out.print(Text(question, style="bold"))
        width = max((len(hit["name"]) for hit in hits), default=0)
        for hit in hits:
            out.print(Text(f"  {hit['name']:<{width}}  {hit['line']}"), no_wrap=True, overflow="ellipsis")
        if not hits:
            out.print("  no word of this occurs in the texts")


def converse(db: CoreNN, embedder: Lsa) -> None:
    """Answer questions from the terminal until an empty line."""
    console.say("Ask something; an empty line ends.")
    while True:
        try:
            question = input("> ").strip()
        except EOFError:
            return
        if not question:
            return
        print_answers({question: ask(db, embedder, question)})

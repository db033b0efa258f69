"""The full-text engine: tantivy, of the extra `text`, behind a few calls that know of rows, texts and scores.

A document is a row that has texts: its id, a number that tells its texts from others, and the texts of each field.
Every write is one commit by one thread, which ends with all merges that follow from it: no thread of the engine lives
on after a call, and what is on the disk changes within calls alone.
"""

from __future__ import annotations

import errno
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np

from ..errors import CoreNNError, DiskFullError, MissingExtraError, StorageError
from ..storage.platform import give_way
from ..types import Float32s, UInt32s, UInt64s

if TYPE_CHECKING:
    from .terms import Sought

    Query: TypeAlias = Any

ROW, DIGEST, TEXT = "row", "digest", "text"
WRITE_BYTES = 1 << 25  # of memory that a write takes at most, beside what it is given; at least 15 MB
READ_ROWS = 256  # documents given before other threads have their turn
NO_ROOM = f"(os error {errno.ENOSPC})"
NO_ROW = -1
WIDER = 4  # times as many rows are looked for, where the last ones are alike
LONGEST = 40  # bytes from which on a word is left out


class Document(NamedTuple):
    """A row, a number that tells its texts, and these, for each field."""

    row: int
    digest: int
    texts: Sequence[Sequence[str]]


class Ranked(NamedTuple):
    """Rows from the best score downwards; those of equal scores by ascending id."""

    rows: UInt32s
    scores: Float32s


def library() -> Any:
    """tantivy.

    Raises:
        MissingExtraError
    """
    try:
        import tantivy
    except ImportError as error:
        raise MissingExtraError(
            f"a full-text index needs tantivy ({error}): pip install 'corenn[text]', or leave out text_fields and text"
        ) from error
    return tantivy


def analyzer() -> Any:
    """What cuts texts into words as the engine does."""
    tantivy = library()
    cut = tantivy.TextAnalyzerBuilder(tantivy.Tokenizer.simple())
    return cut.filter(tantivy.Filter.remove_long(LONGEST)).filter(tantivy.Filter.lowercase()).build()


@contextmanager
def _translated(action: str) -> Iterator[None]:
    """Turn whatever the engine raises into an error of ours."""
    try:
        yield
    except CoreNNError:
        raise
    except BaseException as error:
        if NO_ROOM in str(error):
            raise DiskFullError(f"no room for the full-text index: {error}; free some space") from error
        if isinstance(error, Exception) or type(error).__name__ == "PanicException":  # which is no Exception
            raise StorageError(f"the full-text index cannot be {action}: {error}; run repair()") from error
        raise


class Engine:
    """An index in a folder, or in memory. Writes go one after the other; anybody asks what `snapshot` returned."""

    def __init__(self, index: Any, fields: int) -> None:
        self._index = index
        self._fields = fields
        index.config_reader("manual", 0)  # or else a thread of its own would look for what is new

    @classmethod
    def create(cls, folder: Path | None, fields: int) -> Engine:
        """An empty index for so many fields. folder: an empty one; None for memory.

        Raises:
            MissingExtraError, StorageError
        """
        tantivy = library()
        schema = tantivy.SchemaBuilder()
        schema.add_integer_field(ROW, indexed=True, fast=True)
        schema.add_unsigned_field(DIGEST, fast=True)
        for number in range(fields):
            schema.add_text_field(f"{TEXT}{number}")
        with _translated("made"):
            return cls(tantivy.Index(schema.build(), None if folder is None else str(folder)), fields)

    @classmethod
    def open(cls, folder: Path, fields: int) -> Engine:
        """The index in a folder.

        Raises:
            MissingExtraError, StorageError
        """
        tantivy = library()
        with _translated("read"):
            return cls(tantivy.Index.open(str(folder)), fields)

    def write(self, gone: Iterable[int], documents: Iterable[Document], ready: Callable[[], None]) -> None:
        """Remove the documents of rows, then add others, in one commit. ready: called before it holds.

        Raises:
            StorageError: nothing has changed.
        """
        tantivy = library()
        with _translated("written"):
            writer = self._index.writer(WRITE_BYTES, 1)
            try:
                writer.delete_documents_by_term(ROW, NO_ROW)  # the counter of the engine goes by what it is told
                for row in gone:
                    writer.delete_documents_by_term(ROW, row)
                for number, document in enumerate(documents):
                    writer.add_document(self._made(tantivy, document))
                    if number % READ_ROWS == READ_ROWS - 1:
                        give_way()
                ready()
                writer.commit()
            finally:
                writer.wait_merging_threads()  # and let go of the lock, which a traceback would keep

    @staticmethod
    def _made(tantivy: Any, document: Document) -> Any:
        made = tantivy.Document()
        made.add_integer(ROW, document.row)
        made.add_unsigned(DIGEST, document.digest)
        for number, texts in enumerate(document.texts):
            for text in texts:
                made.add_text(f"{TEXT}{number}", text)
        return made

    def snapshot(self) -> Searches:
        """What is in the index now, whatever is written later.

        Raises:
            StorageError
        """
        with _translated("read"):
            self._index.reload()
            return Searches(self._index.searcher(), self._index.schema, self._fields)


class Searches:
    """The documents of one commit. Safe for any number of threads."""

    def __init__(self, searcher: Any, schema: Any, fields: int) -> None:
        self._searcher = searcher
        self._schema = schema
        self._fields = fields

    def rank(self, sought: Sought, limit: int) -> Ranked:
        """The best rows by BM25, `limit` of them and all others that are as good as the last of these.

        Raises:
            StorageError
        """
        wanted = limit
        while True:
            found = self._ranked(sought, wanted + 1)
            if len(found.rows) <= wanted:
                return found
            if found.scores[-1] < (last := found.scores[limit - 1]):
                count = int((found.scores >= last).sum())
                return Ranked(found.rows[:count], found.scores[:count])
            wanted *= WIDER

    def _ranked(self, sought: Sought, limit: int) -> Ranked:
        with _translated("read"):
            hits = self._searcher.search(self._query(sought), limit, count=False).hits
            rows = np.array(self._searcher.fast_field_values(ROW, [at for _, at in hits]), np.uint32)
        scores = np.array([score for score, _ in hits], np.float32)
        order = np.lexsort((rows, -scores))
        return Ranked(rows[order], scores[order])

    def count(self, sought: Sought) -> int:
        """How many rows have a word or phrase of a text.

        Raises:
            StorageError
        """
        with _translated("read"):
            return int(self._searcher.search(self._query(sought), 1, count=True).count)

    def matching(self, sought: Sought) -> UInt32s:
        """The rows that have a word or phrase of a text, in any order.

        Raises:
            StorageError
        """
        return self._values(self._query(sought), ROW).astype(np.uint32)

    def digests(self) -> tuple[UInt32s, UInt64s]:
        """All rows, and the number that tells the texts of each.

        Raises:
            StorageError
        """
        everything = library().Query.all_query()
        return self._values(everything, ROW).astype(np.uint32), self._values(everything, DIGEST)

    def _values(self, query: Query, field: str) -> UInt64s:
        with _translated("read"):
            hits = self._searcher.search(query, max(1, self._searcher.num_docs), count=False).hits
            return np.array(self._searcher.fast_field_values(field, [at for _, at in hits]), np.uint64)

    def _query(self, sought: Sought) -> Query:
        """Any of the parts in any of the fields: their scores are added."""
        tantivy = library()
        parts: list[Any] = []
        for words in sought.parts:
            for number in range(self._fields):
                name = f"{TEXT}{number}"
                if len(words) == 1:
                    part = tantivy.Query.term_query(self._schema, name, words[0][1])
                else:
                    part = tantivy.Query.phrase_query(self._schema, name, [*words])
                parts.append((tantivy.Occur.Should, part))
        return tantivy.Query.boolean_query(parts) if parts else tantivy.Query.empty_query()

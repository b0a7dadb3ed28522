"""Arguments of the collection's verbs → what the public API takes."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import pyarrow as pa

from shoal import _columns as columns
from shoal._columns import Given, Vectors
from shoal._embedder import Embedder, with_embeddings
from shoal._sparse import embed_sparse, makes_sparse
from shoal_core.errors import InvalidArgument
from shoal_core.filters import Filter, all_of, parse_where, parse_where_document
from shoal_core.limits import Limits
from shoal_core.records import Operation, dimension_of
from shoal_core.schema import Schema

T = TypeVar("T")

Where = Mapping[str, Any]

# Converting fewer records than this is quicker than handing them to a thread.
_INLINE_RECORDS = 128

# A level of a filter is at most a mapping, the operator's mapping in it, and a list.
_CONTAINERS_PER_LEVEL = 3


@dataclass(frozen=True, slots=True)
class WriteInput:
    """What `add`, `upsert` and `update` are called with: columns one by one, or a table."""

    ids: Any = None
    embeddings: Any = None
    documents: Any = None
    metadatas: Any = None
    uris: Any = None
    table: pa.Table | pa.RecordBatch | None = None

    def check(self) -> None:
        """Raise `InvalidArgument` unless it is one or the other."""
        single = (self.ids, self.embeddings, self.documents, self.metadatas, self.uris)
        if self.table is None and self.ids is None:
            raise InvalidArgument("give ids, or a table", field="ids")
        if self.table is not None and any(item is not None for item in single):
            raise InvalidArgument("give a table or the single columns, not both", field="table")
        if self.table is not None and not isinstance(self.table, pa.Table | pa.RecordBatch):
            raise InvalidArgument(f"expected an Arrow table, got {type(self.table).__name__}", field="table")

    @property
    def takes_long(self) -> bool:
        """Whether to convert it apart from the event loop: it is large."""
        if self.table is not None:
            return True
        return hasattr(self.ids, "__len__") and len(self.ids) > _INLINE_RECORDS

    def read(self, operation: Operation) -> Given:
        """Checked and in columns."""
        if self.table is not None:
            return columns.read_table(operation, self.table)
        return columns.read_input(operation, self.ids, self.embeddings, self.documents, self.metadatas, self.uris)


async def write_batch(
    operation: Operation,
    given: WriteInput,
    embedder: Embedder,
    dimension: int | None,
    limits: Limits,
    schema: Schema,
) -> pa.RecordBatch:
    """The operation batch of a write, embedded where needed. Raises `InvalidArgument`."""
    given.check()
    records = await run(lambda: given.read(operation), apart=given.takes_long)
    if embedder.embeds(records, dimension):
        assert records.documents is not None
        documents = records.documents.drop_null()
        if len(documents):
            texts = await run(documents.to_pylist, apart=len(documents) > _INLINE_RECORDS)
            rows = np.flatnonzero(np.asarray(records.documents.is_valid())).tolist()
            vectors = await embedder.documents(texts, rows, dimension)
            records = await run(lambda: with_embeddings(records, vectors), apart=len(documents) > _INLINE_RECORDS)

    def convert() -> pa.RecordBatch:
        complete = embed_sparse(records, schema)
        columns.check_complete(complete)
        batch = columns.to_batch(complete, limits)
        if (found := dimension_of(batch.schema)) is not None:
            columns.check_dimension(found, dimension, "embeddings")
        return batch

    return await run(convert, apart=given.takes_long or makes_sparse(schema))


def joined_batch(batches: Sequence[pa.RecordBatch], limits: Limits) -> pa.RecordBatch:
    """Batches one after another as one, with the columns of all. Raises `InvalidArgument` if it is over a limit."""
    if len(batches) == 1:
        return batches[0]
    tables = [pa.Table.from_batches([batch]) for batch in batches]
    table = pa.concat_tables(tables, promote_options="default").combine_chunks()
    batch = table.to_batches()[0]
    columns.check_size(batch, limits, "make several of it")
    return batch


def delete_batch(ids: Any, limits: Limits) -> pa.RecordBatch:
    """The operation batch that deletes the ids. Raises `InvalidArgument`."""
    column = columns.id_column([ids] if isinstance(ids, str) else ids)
    return columns.to_batch(Given(Operation.DELETE, column, None, None, {}), limits)


async def query_vectors(
    embeddings: Any, texts: Sequence[str] | str | None, embedder: Embedder, dimension: int | None
) -> Vectors:
    """The vectors of a query, (q, dim) float32. Raises `InvalidArgument`."""
    if (embeddings is None) == (texts is None):
        raise InvalidArgument("give either query_embeddings or query_texts", field="query_embeddings")
    if texts is None:
        return columns.query_matrix(embeddings, dimension)
    listed = [texts] if isinstance(texts, str) else list(texts)
    if not listed:
        raise InvalidArgument("give at least one text", field="query_texts")
    return await embedder.queries(listed, dimension)


def filter_of(where: Where | None, where_document: Where | None, limits: Limits) -> Filter | None:
    """Both filters as one tree. numpy values count as the Python ones. Raises `InvalidArgument` naming the place."""
    levels = _CONTAINERS_PER_LEVEL * (limits.filter_depth + 1)
    return all_of(parse_where(plain(where, levels), limits), parse_where_document(where_document, limits))


def plain(value: Any, levels: int) -> Any:
    """A JSON value without numpy, down to a depth at which parsers refuse it anyway."""
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        return value.tolist()
    if levels and isinstance(value, Mapping):
        return {key: plain(item, levels - 1) for key, item in value.items()}
    if levels and isinstance(value, list | tuple):
        return [plain(item, levels - 1) for item in value]
    return value


def id_list(ids: Any) -> tuple[str, ...] | None:
    """The ids that a read is about; one alone is a list of one. Raises `InvalidArgument`."""
    if ids is None:
        return None
    column = columns.text_column([ids] if isinstance(ids, str) else ids, None, "ids")
    if column.null_count:
        raise InvalidArgument("an id is missing", field="ids")
    return tuple(column.to_pylist())


def text(given: str, field: str) -> str:
    """The text. Raises `InvalidArgument` for anything else, and for what UTF-8 cannot encode."""
    if not isinstance(given, str):
        raise InvalidArgument(f"expected a text, got {type(given).__name__}", field=field)
    columns.check_unicode(given, field)
    return given


def whole(number: int, field: str, *, least: int) -> int:
    """A count as an int. Raises `InvalidArgument` unless it is whole and at least ``least``."""
    if isinstance(number, bool) or not isinstance(number, int | np.integer) or number < least:
        raise InvalidArgument(f"expected a whole number, at least {least}, got {number!r}", field=field)
    return int(number)


def share(number: float, field: str) -> float:
    """A part of the whole as a float. Raises `InvalidArgument` unless it is 0 to below 1."""
    if isinstance(number, bool) or not isinstance(number, int | float | np.number) or not 0 <= number < 1:
        raise InvalidArgument(f"expected a number from 0 to below 1, got {number!r}", field=field)
    return float(number)


async def run(function: Callable[[], T], *, apart: bool) -> T:
    """The result of ``function``, in a thread if ``apart``."""
    return await asyncio.to_thread(function) if apart else function()

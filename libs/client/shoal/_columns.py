"""User input → operation batch (see `shoal_core.records`): checked, typed, in columns, copied only where it must be."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from types import NoneType
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.metadata import Columns, check_key, column_of, metadata_columns
from shoal_core.records import (
    DOCUMENT,
    EMBEDDING,
    ID,
    OP,
    URI_KEY,
    Kind,
    MetadataField,
    Operation,
    embedding_array,
    embedding_matrix,
    one_chunk,
)

Vectors = npt.NDArray[np.float32]
Mask = npt.NDArray[np.bool_]

URI_COLUMN = MetadataField(URI_KEY, Kind.STRING).column
_URI = "uri"
_SHOWN = 3


@dataclass(frozen=True, slots=True)
class Given:
    """The input of one write, checked, before documents are embedded.

    Attributes:
        ids: string, distinct, non-empty.
        embeddings: an embedding column, or None.
        documents: string, or None.
        metadata: metadata columns, the uri and the deleted keys among them.
    """

    operation: Operation
    ids: pa.Array
    embeddings: pa.Array | None
    documents: pa.Array | None
    metadata: Columns


def read_input(operation: Operation, ids: Any, embeddings: Any, documents: Any, metadatas: Any, uris: Any) -> Given:
    """Check and convert what `Collection.add` and its like take. Raises `InvalidArgument` naming the field and row."""
    column = id_column(ids)
    count = len(column)
    metadata = {} if metadatas is None else metadata_columns(metadatas, count, deletes=operation is not Operation.ADD)
    if uris is not None:
        metadata |= _uri_column(text_column(uris, count, "uris"))
    return Given(
        operation,
        column,
        embedding_column(embeddings, count),
        None if documents is None else text_column(documents, count, "documents"),
        metadata,
    )


def read_table(operation: Operation, table: pa.Table | pa.RecordBatch) -> Given:
    """As `read_input`, from the columns ``id``, ``embedding``, ``document`` and ``uri``; the others are metadata.

    A column named ``m:<kind>:<key>`` is the metadata key of that kind, as `GetResult.to_arrow` writes keys of several kinds.
    """
    names = table.schema.names
    if ID not in names:
        raise InvalidArgument(f"the table needs a column {ID!r}, it has {', '.join(names) or 'none'}", field="table")
    if len(set(names)) < len(names):
        raise InvalidArgument("the table has two columns of one name", field="table")
    columns = {name: one_chunk(table.column(name)) for name in names}
    ids = id_column(columns.pop(ID))
    embeddings, documents, uris = (columns.pop(name, None) for name in (EMBEDDING, DOCUMENT, _URI))
    metadata: Columns = {}
    for name, column in columns.items():
        key = _key_of(name)
        check_key(key, f"table.{name}")
        found = column_of(key, column, len(ids), f"table.{name}")
        if metadata.keys() & found.keys():
            raise InvalidArgument(f"the table has the key {key!r} twice", field=f"table.{name}")
        metadata |= found
    if uris is not None:
        metadata |= _uri_column(text_column(uris, len(ids), "table.uri"))
    return Given(
        operation,
        ids,
        embedding_column(embeddings, len(ids), "table.embedding"),
        None if documents is None else text_column(documents, len(ids), "table.document"),
        metadata,
    )


def to_batch(given: Given, limits: Limits) -> pa.RecordBatch:
    """The operation batch; columns without any value are left out. Raises `InvalidArgument` if it is over a limit."""
    count = len(given.ids)
    columns = {OP: pa.array(np.full(count, int(given.operation), dtype=np.uint8)), ID: given.ids}
    for name, array in ((EMBEDDING, given.embeddings), (DOCUMENT, given.documents), *given.metadata.items()):
        if array is not None and array.null_count < count:
            columns[name] = array
    batch = pa.RecordBatch.from_arrays(list(columns.values()), names=list(columns))
    check_size(batch, limits, "use load(), which cuts it into batches of batch_size")
    return batch


def check_size(batch: pa.RecordBatch, limits: Limits, advice: str) -> None:
    """Raise `InvalidArgument` if the batch has too many records or bytes."""
    if batch.num_rows > limits.batch_records:
        raise InvalidArgument(
            f"{batch.num_rows} records, at most {limits.batch_records} in one batch; {advice}", field="ids"
        )
    if batch.nbytes > limits.batch_size_bytes:
        raise InvalidArgument(
            f"the batch has {batch.nbytes} bytes, at most {limits.batch_size_bytes}; {advice}", field="ids"
        )


def check_complete(given: Given, field: str = "embeddings") -> None:
    """Raise `InvalidArgument` if an add or upsert has a record without an embedding, which creating it needs."""
    if given.operation in (Operation.UPDATE, Operation.DELETE):
        return
    if given.embeddings is None:
        verb = given.operation.name.lower()
        raise InvalidArgument(f"{verb} needs embeddings, or documents to make them from", field=field)
    if given.embeddings.null_count:
        row = int(np.argmin(_valid(given.embeddings)))
        raise InvalidArgument(
            "a new record needs an embedding or a document; update() changes parts", field=f"{field}[{row}]"
        )


# --- ids and texts


def id_column(ids: Any, field: str = "ids") -> pa.Array:
    """Distinct non-empty ids as an Arrow string array. Raises `InvalidArgument`."""
    column = text_column(ids, None, field)
    if len(column) == 0:
        raise InvalidArgument("give at least one id", field=field)
    if column.null_count:
        raise InvalidArgument("an id is missing", field=f"{field}[{int(np.argmin(_valid(column)))}]")
    empty = np.diff(np.frombuffer(column.buffers()[1], np.int32)[column.offset : column.offset + len(column) + 1]) == 0
    if empty.any():
        raise InvalidArgument("an id is empty", field=f"{field}[{int(np.argmax(empty))}]")
    if len(column.unique()) < len(column):
        raise InvalidArgument(f"ids must be distinct in one batch, but {_twice(column)} occur twice", field=field)
    return column


def _twice(ids: pa.Array) -> str:
    counts = Counter(ids.to_pylist())
    return ", ".join(repr(name) for name, times in islice(counts.most_common(), _SHOWN) if times > 1)


def text_column(texts: Any, count: int | None, field: str) -> pa.Array:
    """Texts or None as an Arrow string array of ``count`` rows. Raises `InvalidArgument` naming the row."""
    if isinstance(texts, str):
        raise InvalidArgument("expected a list of texts, got one text; put it into a list", field=field)
    if not isinstance(texts, Sequence | np.ndarray | pa.Array | pa.ChunkedArray) or isinstance(texts, bytes):
        raise InvalidArgument(f"expected a list of texts, got {type(texts).__name__}", field=field)
    if count is not None and len(texts) != count:
        raise InvalidArgument(f"{len(texts)} entries for {count} ids", field=field)
    if isinstance(texts, pa.Array | pa.ChunkedArray):
        return _text_array(one_chunk(texts), field)
    values = texts.tolist() if isinstance(texts, np.ndarray) else texts
    for cls in set(map(type, values)):
        if not issubclass(cls, str | NoneType):
            row = next(row for row, value in enumerate(values) if type(value) is cls)
            raise InvalidArgument(f"expected a text, got {cls.__name__}", field=f"{field}[{row}]")
    try:
        return pa.array(values, pa.string())
    except UnicodeEncodeError as error:
        for row, value in enumerate(values):
            check_unicode(value or "", f"{field}[{row}]")
        raise InvalidArgument(f"not texts: {error}", field=field) from error


def _text_array(array: pa.Array, field: str) -> pa.Array:
    if pa.types.is_dictionary(array.type):
        array = array.dictionary_decode()
    types = pa.types
    if not any(
        test(array.type) for test in (types.is_string, types.is_large_string, types.is_string_view, types.is_null)
    ):
        raise InvalidArgument(f"expected an array of strings, got {array.type}", field=field)
    return array.cast(pa.string())


def check_unicode(text: str, field: str) -> None:
    """Raise `InvalidArgument` for a text that has no UTF-8."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise InvalidArgument("holds a lone surrogate, which UTF-8 cannot encode", field=field) from error


def _uri_column(uris: pa.Array) -> Columns:
    return {URI_COLUMN: uris}


def _key_of(name: str) -> str:
    try:
        field = MetadataField.of_column(name)
    except ValueError:  # a user's key that happens to start like one of ours
        return name
    return name if field is None else field.key


# --- vectors


def embedding_column(embeddings: Any, count: int, field: str = "embeddings") -> pa.Array | None:
    """One vector or None per record as an embedding column, None if there is no vector.

    float32 C-contiguous arrays and Arrow arrays are not copied.

    Raises:
        InvalidArgument: naming the row whose type, length or numbers are wrong.
    """
    if embeddings is None:
        return None
    if isinstance(embeddings, pa.Array | pa.ChunkedArray):
        matrix, valid = _vectors_of_arrow(one_chunk(embeddings), field)
    elif isinstance(embeddings, np.ndarray) and embeddings.dtype != object:
        matrix, valid = vector_matrix(embeddings, field), None
    else:
        matrix, valid = _vectors_of_list(embeddings, field)
    if len(matrix) != count:
        raise InvalidArgument(f"{len(matrix)} entries for {count} ids", field=field)
    if matrix.shape[1] == 0:
        raise InvalidArgument("an embedding needs at least one number", field=field)
    if valid is not None and not valid.any():
        return None
    _check_finite(matrix, valid, field)
    return embedding_array(matrix, valid)


def vector_matrix(vectors: Any, field: str) -> Vectors:
    """Vectors as (n, dim) float32, without a copy if they are that already. Raises `InvalidArgument` naming the row."""
    if isinstance(vectors, str | bytes) or not hasattr(vectors, "__len__"):
        raise InvalidArgument(f"expected rows of numbers, got {type(vectors).__name__}", field=field)
    try:
        array = np.asarray(vectors)
    except ValueError as error:
        raise _uneven(vectors, field) or InvalidArgument(f"not rows of numbers: {error}", field=field) from error
    if array.ndim != 2 and (uneven := _uneven(vectors, field)):
        raise uneven
    if array.dtype.kind not in "fiu":
        raise InvalidArgument(f"expected numbers, got {array.dtype}", field=field)
    if array.ndim != 2:
        raise InvalidArgument(f"expected rows of numbers (2 axes), got {array.ndim} axes", field=field)
    with np.errstate(over="ignore"):  # too large for float32 becomes infinite, which is refused
        return np.ascontiguousarray(array, dtype=np.float32)


def query_matrix(vectors: Any, dimension: int | None) -> Vectors:
    """Query vectors as (q, dim) float32; a single vector is one query. Raises `InvalidArgument`, `DimensionMismatch`."""
    field = "query_embeddings"
    if hasattr(vectors, "__len__") and len(vectors) == 0:
        raise InvalidArgument("give at least one vector", field=field)
    if isinstance(vectors, pa.Array | pa.ChunkedArray):
        matrix, valid = _vectors_of_arrow(one_chunk(vectors), field)
        if valid is not None and not valid.all():
            raise InvalidArgument("a vector is missing", field=f"{field}[{int(np.argmin(valid))}]")
    else:
        single = isinstance(vectors, Sequence | np.ndarray) and np.ndim(vectors[0]) == 0
        matrix = vector_matrix([vectors] if single else vectors, field)
    _check_finite(matrix, None, field)
    check_dimension(matrix.shape[1], dimension, field)
    return matrix


def check_dimension(found: int, dimension: int | None, field: str) -> None:
    """Raise `DimensionMismatch` if the collection has another dimension."""
    if dimension is not None and found != dimension:
        raise DimensionMismatch(f"vectors of dimension {found}, the collection has {dimension}", field=field)


def _vectors_of_list(embeddings: Any, field: str) -> tuple[Vectors, Mask | None]:
    if isinstance(embeddings, str | bytes) or not hasattr(embeddings, "__len__"):
        raise InvalidArgument(f"expected rows of numbers, got {type(embeddings).__name__}", field=field)
    absent = [row for row, vector in enumerate(embeddings) if vector is None]
    if not absent:
        return vector_matrix(embeddings, field), None
    valid = np.ones(len(embeddings), dtype=bool)
    valid[absent] = False
    present = [vector for vector in embeddings if vector is not None]
    if not present:
        return np.zeros((len(embeddings), 1), dtype=np.float32), valid
    some = vector_matrix(present, field)
    matrix = np.zeros((len(embeddings), some.shape[1]), dtype=np.float32)
    matrix[valid] = some
    return matrix, valid


def _vectors_of_arrow(array: pa.Array, field: str) -> tuple[Vectors, Mask | None]:
    types = pa.types
    if types.is_list(array.type) or types.is_large_list(array.type):
        array = _fixed_size(array, field)
    if not types.is_fixed_size_list(array.type) or not types.is_floating(array.type.value_type):
        raise InvalidArgument(f"expected lists of float32, got {array.type}", field=field)
    if array.type.value_type != pa.float32():
        array = array.cast(pa.list_(pa.float32(), array.type.list_size), safe=False)
    return embedding_matrix(array), _valid(array) if array.null_count else None


def _fixed_size(array: pa.Array, field: str) -> pa.Array:
    lengths = array.value_lengths()
    sizes = lengths.drop_null().unique().to_pylist()
    if len(sizes) > 1:
        row = int(np.argmax(np.asarray(lengths.fill_null(sizes[0])) != sizes[0]))
        raise InvalidArgument(f"vectors of different length: {sizes[:_SHOWN]}", field=f"{field}[{row}]")
    return array.cast(pa.list_(array.type.value_type, sizes[0] if sizes else 1))


def _uneven(vectors: Any, field: str) -> InvalidArgument | None:
    lengths = [len(vector) if hasattr(vector, "__len__") else None for vector in vectors]
    row = next((row for row, length in enumerate(lengths) if length != lengths[0]), None)
    if row is None:
        return None
    have = "is no vector" if lengths[row] is None else f"{lengths[row]} numbers"
    return InvalidArgument(f"{have}, the first has {lengths[0]}", field=f"{field}[{row}]")


def _check_finite(matrix: Vectors, valid: Mask | None, field: str) -> None:
    finite = np.isfinite(matrix)
    if finite.all():
        return
    bad = ~finite.all(axis=1) if valid is None else ~finite.all(axis=1) & valid
    if bad.any():
        raise InvalidArgument(
            "holds NaN, infinity or a number too large for float32", field=f"{field}[{int(np.argmax(bad))}]"
        )


def _valid(array: pa.Array) -> Mask:
    return np.asarray(array.is_valid())

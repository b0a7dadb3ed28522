"""Checks of what a user sends, before anything is written or sent on; `validate_batch`, `validate_filter` and `validate_search` go on.

Errors name the field, the first row at fault and the limit.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping, Sequence
from ipaddress import AddressValueError, IPv4Address
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.contracts import CollectionRef, Condition, Include, Json, NewCollection, NewFunction
from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.rank_json import check_metadata_key, check_selected
from shoal_core.schema import DOCUMENT_KEY, LARGEST_RECALL, LEAST_RECALL, Schema

NAME = re.compile(r"[a-zA-Z0-9][a-zA-Z0-9._-]{1,510}[a-zA-Z0-9]")
_SPACES = ("l2", "cosine", "ip")
_LONGEST_SQUARE = 8e37  # four times this, the square of a distance, still is a float32


def check_text(text: str, field: str, most_bytes: int) -> None:
    """Raise `InvalidArgument` for a text that is too long, or that the catalog cannot hold."""
    try:
        size = len(text.encode())
    except UnicodeEncodeError as error:
        raise InvalidArgument("not valid Unicode: it has a lone surrogate", field=field) from error
    if size > most_bytes:
        raise InvalidArgument(f"{size} bytes, at most {most_bytes}", field=field)
    if "\0" in text:
        raise InvalidArgument("contains the character U+0000", field=field)


def check_names(limits: Limits, **names: str) -> None:
    """Raise `InvalidArgument`, naming the argument, for a name that nothing can have, before it is looked up."""
    for field, name in names.items():
        check_text(name, field, limits.name_size_bytes)


def check_ref(ref: CollectionRef, limits: Limits) -> None:
    """Raise `InvalidArgument` for names that nothing can have."""
    check_names(limits, tenant=ref.tenant, database=ref.database, name=ref.name, id=ref.id)


def check_tenant_name(name: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a name too short or too long."""
    check_text(name, "tenant.name", limits.name_size_bytes)
    if len(name.encode()) < limits.tenant_name_min_size_bytes:
        raise InvalidArgument(f"at least {limits.tenant_name_min_size_bytes} bytes are needed", field="tenant.name")


def check_resource_name(name: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a tenant's second name that could not be told apart in ``resource:database:collection``."""
    check_text(name, "resource_name", limits.name_size_bytes)
    if not name or ":" in name:
        raise InvalidArgument("1 character at least, and no colon", field="resource_name")


def check_name(name: str, field: str) -> None:
    """Raise `InvalidArgument` unless this is a name for a database or collection."""
    if not NAME.fullmatch(name) or ".." in name or _is_address(name):
        raise InvalidArgument(
            f"{name[:64]!r} is not a name: 3 to 512 characters from [a-zA-Z0-9._-], starting and ending with a letter or "
            "digit, without '..', and not an IPv4 address",
            field=field,
        )


def _is_address(name: str) -> bool:
    try:
        IPv4Address(name)
    except AddressValueError:
        return False
    return True


def check_new_collection(new: NewCollection, limits: Limits) -> None:
    """Raise `InvalidArgument` for anything a collection cannot be created with."""
    check_name(new.name, "name")
    if new.space not in _SPACES:
        raise InvalidArgument(f"{new.space!r} is not one of {', '.join(_SPACES)}", field="space")
    if not 1 <= new.shards <= limits.shards:
        raise InvalidArgument(f"{new.shards}; between 1 and {limits.shards} are allowed", field="shards")
    if new.dimension is not None and not 1 <= new.dimension <= limits.dimension:
        raise InvalidArgument(f"{new.dimension}; between 1 and {limits.dimension} are allowed", field="dimension")
    check_names(limits, tenant=new.tenant, database=new.database)
    check_collection_metadata(new.metadata, limits)
    check_json(new.configuration, "configuration", limits)
    check_schema(new.schema, limits)


def check_new_function(new: NewFunction, limits: Limits) -> None:
    """Raise `InvalidArgument` for anything a function cannot be attached with. Which functions there are the catalog knows."""
    check_function_name(new.name, limits)
    check_text(new.function, "function", limits.name_size_bytes)
    check_name(new.output_collection, "output_collection")
    if new.params:
        raise InvalidArgument("params must be empty - no functions currently accept parameters", field="params")


def check_function_name(name: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a name that no attached function has."""
    if not name:
        raise InvalidArgument("an attached function has a name", field="name")
    check_text(name, "name", limits.function_name_size_bytes)


def check_schema(schema: Schema, limits: Limits) -> None:
    """Raise `InvalidArgument` for a schema that is too large, or that names keys which no record has."""
    check_json(schema.to_json(), "schema", limits)
    for key in schema.keys:
        if key != DOCUMENT_KEY:
            check_metadata_key(key, limits, f"schema.keys.{key[:64]}")
    for key, config in schema.sparse.items():
        check_metadata_key(key, limits, f"schema.sparse.{key[:64]}")
        if config.source_key not in (None, DOCUMENT_KEY):
            check_metadata_key(config.source_key or "", limits, f"schema.sparse.{key[:64]}.source_key")


def check_idempotency_key(key: str, limits: Limits) -> None:
    """Raise `InvalidArgument` for a key that is too long or no text. An empty one is none."""
    check_text(key, "idempotency_key", limits.idempotency_key_size_bytes)


def check_condition(condition: Condition | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for a read set that is too large, or with what is no id."""
    if condition is None:
        return
    if len(condition.read_ids) > limits.batch_records:
        raise InvalidArgument(
            f"{len(condition.read_ids)} ids, at most {limits.batch_records}; let the write depend on fewer records",
            field="condition.read_ids",
        )
    check_ids(id_array(condition.read_ids, "condition.read_ids"), limits, "condition.read_ids")


def check_collection_metadata(metadata: Json | None, limits: Limits) -> None:
    """Raise `InvalidArgument` unless metadata is None or a mapping from names to scalars."""
    if metadata is None:
        return
    check_json(metadata, "metadata", limits)
    for key, value in metadata.items():
        if not key or not isinstance(value, str | int | float | bool | None):
            raise InvalidArgument("values are strings, numbers, bools or null", field=f"metadata.{key}")


def check_json(value: Json, field: str, limits: Limits) -> None:
    """Raise `InvalidArgument` unless this is a JSON object of bounded size."""
    if not isinstance(value, Mapping):
        raise InvalidArgument("expected an object", field=field)
    try:
        size = len(json.dumps(value, allow_nan=False, ensure_ascii=False).encode())
    except (TypeError, ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}", field=field) from error
    if size > limits.collection_metadata_size_bytes:
        raise InvalidArgument(f"{size} bytes, at most {limits.collection_metadata_size_bytes}", field=field)


def id_array(ids: Sequence[str], field: str = "ids") -> pa.Array:
    """Ids as an Arrow array. Raises `InvalidArgument` for what is no text."""
    try:
        return pa.array(ids, pa.string())
    except (pa.ArrowException, TypeError, UnicodeError) as error:
        raise InvalidArgument(f"ids are strings: {error}", field=field) from error


def check_ids(ids: pa.Array, limits: Limits, field: str = "ids") -> None:
    """Raise `InvalidArgument` for null, empty or oversized ids."""
    if ids.null_count:
        raise InvalidArgument("an id is missing", field=at_first(field, mask_of(pc.is_null(ids))))
    sizes = pc.binary_length(ids).to_numpy(zero_copy_only=False)
    if (sizes == 0).any():
        raise InvalidArgument("an id is empty", field=at_first(field, sizes == 0))
    if sizes.max(initial=0) > limits.id_size_bytes:
        raise InvalidArgument(
            f"{sizes.max()} bytes, at most {limits.id_size_bytes}", field=at_first(field, sizes > limits.id_size_bytes)
        )


def check_vectors(vectors: npt.NDArray[np.float32], dimension: int | None, limits: Limits) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch` for query vectors (q, dim)."""
    if vectors.dtype.kind != "f":
        raise InvalidArgument(f"vectors are of floats, not {vectors.dtype}", field="query_embeddings")
    if vectors.ndim != 2 or not 1 <= len(vectors) <= limits.query_vectors:
        raise InvalidArgument(f"between 1 and {limits.query_vectors} vectors are allowed", field="query_embeddings")
    if not 1 <= vectors.shape[1] <= limits.dimension:
        raise InvalidArgument(
            f"dimension {vectors.shape[1]}; between 1 and {limits.dimension} are allowed", field="query_embeddings"
        )
    if dimension is not None and vectors.shape[1] != dimension:
        raise DimensionMismatch(
            f"the collection has embeddings of dimension {dimension}, the query has {vectors.shape[1]}",
            field="query_embeddings",
        )
    check_numbers(vectors, np.ones(len(vectors), dtype=bool), "query_embeddings")


def check_query_texts(texts: Sequence[str] | None, vectors: npt.NDArray[np.float32], limits: Limits) -> None:
    """Raise `InvalidArgument` unless the texts, where there are any, are as many as vectors may be, and there are no vectors."""
    if texts is None:
        return
    if vectors.size:
        raise InvalidArgument("give either vectors or texts", field="query_texts")
    if not 1 <= len(texts) <= limits.query_vectors:
        raise InvalidArgument(f"between 1 and {limits.query_vectors} texts are allowed", field="query_texts")
    for row, text in enumerate(texts):
        if len(text.encode("utf-8", "surrogatepass")) > limits.document_size_bytes:
            raise InvalidArgument(f"more than {limits.document_size_bytes} bytes", field=f"query_texts[{row}]")


def check_numbers(vectors: npt.NDArray[np.floating[Any]], valid: npt.NDArray[np.bool_], field: str) -> None:
    """Raise unless each valid row is finite and so short that the square of a distance is a float32 too."""
    squares = np.einsum("ij,ij->i", vectors, vectors)  # one pass: NaN and infinity show in the sum
    bad = valid & ~(squares < _LONGEST_SQUARE)
    if not bad.any():
        return
    at = int(np.argmax(bad))
    if not np.isfinite(vectors[at]).all():
        raise InvalidArgument("NaN and infinite numbers cannot be searched", field=f"{field}[{at}]")
    raise InvalidArgument("its length is 9e18 or more, whose square overflows; scale it down", field=f"{field}[{at}]")


def check_page(limit: int | None, offset: int, most: int, field: str = "limit") -> None:
    """Raise `InvalidArgument` for a limit or offset out of bounds."""
    if limit is not None and not 0 <= limit <= most:
        raise InvalidArgument(f"{limit}; between 0 and {most} are allowed", field=field)
    if offset < 0:
        raise InvalidArgument(f"{offset} is negative", field="offset")


def check_recall(recall: float) -> None:
    """Raise `InvalidArgument` for a recall that cannot be asked for; 0 stands for the collection's."""
    if recall and not LEAST_RECALL <= recall <= LARGEST_RECALL:
        raise InvalidArgument(
            f"{recall:g}; {LEAST_RECALL:g} to {LARGEST_RECALL:g} are allowed, or ask for an exact answer",
            field="recall",
        )


def check_include(include: Include, limits: Limits) -> None:
    """Raise `InvalidArgument` for too many single metadata keys, or one that no record has."""
    check_selected(include.keys, limits, "include.keys")


def check_key(key: str | None, limits: Limits) -> None:
    """Raise `InvalidArgument` for a metadata key that is empty, too long or reserved."""
    if not key or len(key.encode()) > limits.metadata_key_size_bytes:
        raise InvalidArgument(
            f"keys have 1 to {limits.metadata_key_size_bytes} bytes", field=f"metadatas.{(key or '')[:64]}"
        )
    if key[0] in "#$":
        raise InvalidArgument("keys that start with # or $ are reserved", field=f"metadatas.{key}")


def mask_of(array: pa.Array) -> npt.NDArray[np.bool_]:
    """(n,) bool of a bool column without nulls."""
    found: npt.NDArray[np.bool_] = array.to_numpy(zero_copy_only=False).astype(bool)
    return found


def at_first(field: str, wrong: npt.NDArray[np.bool_]) -> str:
    """The field with the number of the first row that is wrong."""
    return f"{field}[{int(np.argmax(wrong))}]"

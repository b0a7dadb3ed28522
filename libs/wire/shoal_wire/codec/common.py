"""Small values that several services share: JSON, ids, vectors, tokens, consistency, include."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt

from shoal_core.consistency import Consistency, ReadLevel, ServedAt, VersionToken
from shoal_core.contracts import Include, Json
from shoal_core.errors import InvalidArgument
from shoal_wire.codec.columns import check_size
from shoal_wire.v1 import types_pb2 as pb

_WORK_PER_ID = 100


def encode_json(value: Json | None, field: str) -> str:
    """A JSON object as text, empty for None. Raises `InvalidArgument` for what JSON cannot say, NaN among it."""
    if value is None:
        return ""
    try:
        return _utf8(json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"), default=_plain))
    except (ValueError, TypeError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}", field=field) from error


def decode_json(text: str, field: str) -> dict[str, Any] | None:
    """A JSON object, None for empty text. Raises `InvalidArgument` for anything else."""
    if not text:
        return None
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        if "\\u" in text:  # an escape may say half of a surrogate pair, which is no text
            _utf8(json.dumps(value, ensure_ascii=False))
    except (ValueError, RecursionError) as error:
        raise InvalidArgument(f"not JSON: {error}", field=field) from error
    if not isinstance(value, dict):
        raise InvalidArgument(f"expected a JSON object, got {type(value).__name__}", field=field)
    return value


def _utf8(text: str) -> str:
    text.encode("utf-8")
    return text


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic | np.ndarray):
        return value.tolist()
    raise TypeError(f"{type(value).__name__} is not a JSON type")


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not JSON")


def encode_ids(ids: Iterable[str] | None) -> pb.IdList | None:
    """A list of ids; None stays None, which is "all"."""
    return None if ids is None else pb.IdList(ids=ids)


def decode_ids(message: pb.IdList, present: bool) -> tuple[str, ...] | None:
    """The ids, or None if the field was not ``present``."""
    return tuple(message.ids) if present else None


def ids_work(count: int) -> int:
    """The size in bytes of a message that takes about as long to copy as so many ids to encode or decode."""
    return _WORK_PER_ID * count


def encode_vectors(vectors: npt.NDArray[np.float32]) -> tuple[int, bytes]:
    """The dimension and the packed values of (q, dim) float32. Raises `InvalidArgument` for another shape."""
    if vectors.ndim != 2:
        raise InvalidArgument(f"expected vectors of shape (q, dimension), got {vectors.shape}", field="vectors")
    return vectors.shape[1], np.ascontiguousarray(vectors, dtype=np.float32).tobytes()


def decode_vectors(dimension: int, data: bytes) -> npt.NDArray[np.float32]:
    """(q, dim) float32, a read-only view of ``data``. Raises `InvalidArgument`."""
    if dimension == 0:
        check_size(data, 0, 4, "vectors")
        return np.zeros((0, 0), dtype=np.float32)
    if len(data) % (4 * dimension):
        raise InvalidArgument(f"{len(data)} bytes are no whole number of {dimension} float32", field="vectors")
    return np.frombuffer(data, np.float32).reshape(-1, dimension)


def encode_array(values: npt.NDArray[Any], dtype: npt.DTypeLike) -> bytes:
    """The packed values of (n,) numbers. Raises `InvalidArgument` for another shape."""
    if values.ndim != 1:
        raise InvalidArgument(f"expected numbers of shape (n,), got {values.shape}", field="vectors")
    return np.ascontiguousarray(values, dtype=dtype).tobytes()


def decode_array(data: bytes, dtype: npt.DTypeLike, field: str, length: int | None = None) -> npt.NDArray[Any]:
    """(n,) numbers, a read-only view of ``data``. Raises `InvalidArgument` for a part of one, or where n is not ``length``."""
    width = np.dtype(dtype).itemsize
    if len(data) % width:
        raise InvalidArgument(f"{len(data)} bytes are no whole number of {width}-byte values", field=field)
    if length is not None and len(data) != length * width:
        raise InvalidArgument(f"{len(data) // width} values, expected {length}", field=field)
    return np.frombuffer(data, dtype)


def encode_consistency(consistency: Consistency) -> pb.Consistency:
    """A read's demand as a message."""
    level = pb.ReadLevel.ValueType(int(consistency.level))
    return pb.Consistency(level=level, offset=consistency.offset, staleness_ms=consistency.staleness_ms)


def decode_consistency(message: pb.Consistency) -> Consistency:
    """The demand; an absent message is strong. Raises `InvalidArgument` for an unknown level."""
    try:
        level = ReadLevel(message.level)
    except ValueError as error:
        raise InvalidArgument(f"unknown read level {message.level}", field="consistency.level") from error
    return Consistency(level, message.offset, message.staleness_ms)


def encode_token(token: VersionToken) -> pb.VersionToken:
    """A version token as a message."""
    return pb.VersionToken(collection_id=token.collection_id, incarnation=token.incarnation, offset=token.offset)


def decode_token(message: pb.VersionToken) -> VersionToken:
    """The version token."""
    return VersionToken(message.collection_id, message.incarnation, message.offset)


def encode_served_at(served_at: ServedAt) -> pb.ServedAt:
    """A snapshot as a message."""
    return pb.ServedAt(offset=served_at.offset, version=served_at.version)


def decode_served_at(message: pb.ServedAt) -> ServedAt:
    """The snapshot."""
    return ServedAt(message.offset, message.version)


def encode_include(include: Include) -> pb.Include:
    """Columns asked for, as a message."""
    return pb.Include(
        documents=include.documents,
        metadatas=include.metadatas,
        embeddings=include.embeddings,
        distances=include.distances,
        uris=include.uris,
        keys=include.keys,
    )


def decode_include(message: pb.Include) -> Include:
    """The columns asked for."""
    return Include(
        message.documents,
        message.metadatas,
        message.embeddings,
        message.distances,
        message.uris,
        tuple(message.keys),
    )


def decode_recall(recall: float) -> float:
    """A recall to reach, 0 for the default. Raises `InvalidArgument`."""
    if not 0.0 <= recall < 1.0:
        raise InvalidArgument(
            f"{recall}; from 0.5 to below 1, 0 for the default, or ask for an exact answer", field="recall"
        )
    return recall

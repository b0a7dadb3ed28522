"""Embedding in the frontend: documents and query texts of clients that send no vectors, by functions that the configuration names.

Which of them a collection's texts go through is found by comparing data: what the collection stores of its function with what the
configuration says of its own. Nothing is ever made from what a collection stores.
"""

from __future__ import annotations

import logging
import math
from collections import OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal.embedding import Gateway, GatewayLimits, Vectors
from shoal.embedding.gateway import default_limits
from shoal.embedding.limits import TokenBucket
from shoal.embedding.registry import Stored, described, read_stored, same_function, stored_function
from shoal_core.contracts import Collection
from shoal_core.errors import (
    FailedPrecondition,
    InvalidArgument,
    PermissionDenied,
    ResourceExhausted,
    ShoalError,
    Unauthenticated,
)
from shoal_core.ports import Clock
from shoal_core.records import DOCUMENT, EMBEDDING, OP, Operation, dimension_of, embedding_array, embedding_matrix
from shoal_frontend.apart import MANY_ROWS, apart

T = TypeVar("T")
Mask = npt.NDArray[np.bool_]

_MANY_BYTES = 256 << 10  # of vectors: more are put into their rows in a thread

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class FunctionSettings:
    """One function that the server offers.

    Attributes:
        kind: its name in `shoal.embedding.registry`.
        config: as collections store it: no secrets, but names of environment variables.
        texts_per_call, concurrency, calls_per_second, timeout_ms: see `GatewayLimits`; None for those that suit the kind.
    """

    kind: str
    config: Mapping[str, Any]
    texts_per_call: int | None = None
    concurrency: int | None = None
    calls_per_second: float | None = None
    timeout_ms: int | None = 20_000


@dataclass(frozen=True, slots=True)
class EmbeddingSettings:
    """What the server embeds.

    Attributes:
        functions: by a name of the administrator's.
        default: the name of the one for collections that name no function; empty for none.
        texts_per_second, burst_texts: of a tenant: a token bucket.
        characters_per_request: of all texts of one request.
        tenants: whose buckets are remembered.
    """

    functions: Mapping[str, FunctionSettings]
    default: str = ""
    texts_per_second: float = 100.0
    burst_texts: int = 1_000
    characters_per_request: int = 1_000_000
    tenants: int = 10_000


class Embedded(Generic[T]):
    """What the texts of one request became. A request that is tried again, as its collection had changed, is not embedded and
    charged again, unless the texts go through another function now.
    """

    def __init__(self) -> None:
        self._made: tuple[Stored | None, T] | None = None

    async def once(self, collection: Collection, make: Callable[[], Awaitable[T]]) -> T:
        """What ``make()`` gives, for this collection; raises what it raises."""
        function = stored_function(collection.configuration)
        if self._made is None or self._made[0] != function:
            self._made = (function, await make())
        return self._made[1]


@dataclass(frozen=True, slots=True)
class _Offered:
    stored: Stored
    gateway: Gateway


class ServerEmbedding:
    """The functions of one frontend.

    Raises:
        InvalidArgument, FailedPrecondition: a function is not known, its configuration is none of it, or the default is missing.
    """

    def __init__(self, settings: EmbeddingSettings, clock: Clock) -> None:
        self._settings = settings
        self._clock = clock
        self._offered = {name: _offered(name, function) for name, function in settings.functions.items()}
        self._buckets: OrderedDict[str, TokenBucket] = OrderedDict()
        if settings.default and settings.default not in self._offered:
            raise InvalidArgument(f"{settings.default!r} is none of the functions", field="frontend.embedding.default")

    def rows_to_embed(self, batch: pa.RecordBatch, collection: Collection) -> Mask:
        """(n,) which records get a vector of their document: those that have one and bring no vector.

        An update of a document alone stays one where the collection's vectors come from elsewhere.
        """
        names = batch.schema.names
        types = {name: batch.schema.field(name).type for name in (DOCUMENT, OP) if names.count(name) == 1}
        if types != {DOCUMENT: pa.string(), OP: pa.uint8()} or names.count(EMBEDDING) > 1:
            return np.zeros(batch.num_rows, dtype=bool)
        wanted: Mask = np.asarray(batch.column(DOCUMENT).is_valid())
        if EMBEDDING in names:
            wanted &= np.asarray(batch.column(EMBEDDING).is_null())
        operations = np.asarray(batch.column(OP).fill_null(int(Operation.DELETE)))
        if not self._updates(collection):
            wanted &= operations != Operation.UPDATE
        return wanted & (operations != Operation.DELETE)

    async def with_embeddings(self, batch: pa.RecordBatch, rows: Mask, collection: Collection) -> pa.RecordBatch:
        """The batch with a vector in each of these rows. Nothing else of it changes.

        Raises:
            InvalidArgument: no function of the configuration is the collection's; too many characters; or a text or its vector
                will not do.
            ResourceExhausted: the tenant's quota, with ``retry_after_ms``; or the service's.
            FailedPrecondition: the function is not set up well here.
        """
        offered = self._of(collection, "embeddings")
        texts = await apart(len(rows) > MANY_ROWS, lambda: batch.column(DOCUMENT).filter(pa.array(rows)).to_pylist())
        self._charge(texts, collection.tenant, "documents")
        dimension = dimension_of(batch.schema) or collection.dimension
        places = np.flatnonzero(rows).tolist()
        made = await self._asked(offered, offered.gateway.aembed_documents(texts, dimension=dimension, rows=places))
        return await apart(made.nbytes > _MANY_BYTES, _placed, batch, rows, made)

    async def query_vectors(
        self,
        texts: Sequence[str],
        collection: Collection,
        *,
        field: str = "query_texts",
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        """(q, dim) float32, a row for each text. Errors call a text ``field`` and its number, or that in ``rows``.

        Raises as `with_embeddings` does.
        """
        offered = self._of(collection, field)
        self._charge(texts, collection.tenant, field)
        work = offered.gateway.aembed_queries(texts, dimension=collection.dimension, field=field, rows=rows)
        return await self._asked(offered, work)

    def _of(self, collection: Collection, field: str) -> _Offered:
        found = self._matching(collection)
        if found is not None:
            return found
        wanted = stored_function(collection.configuration)
        there = ", ".join(described(offered.stored) for offered in self._offered.values())
        if wanted is None:
            problem = "the collection names no embedding function, and this server has no default one"
        else:
            problem = (
                f"the collection was made with the embedding function {described(wanted)}, and this server has {there}"
            )
        raise InvalidArgument(f"{problem}; send embeddings", field=field)

    def _matching(self, collection: Collection) -> _Offered | None:
        wanted = stored_function(collection.configuration)
        if wanted is None:
            return self._offered.get(self._settings.default)
        same = (offered for offered in self._offered.values() if same_function(wanted, offered.stored))
        return next(same, None)

    def _updates(self, collection: Collection) -> bool:
        found = self._matching(collection)
        if found is None:
            return False
        known = found.gateway.dimension
        named = stored_function(collection.configuration) is not None
        return named or None in (known, collection.dimension) or known == collection.dimension

    def _charge(self, texts: Sequence[str], tenant: str, field: str) -> None:
        characters, most = sum(map(len, texts)), self._settings.characters_per_request
        if characters > most:
            raise InvalidArgument(
                f"{characters} characters, at most {most} are embedded in one request; send fewer records at a time",
                field=field,
            )
        now = self._clock.monotonic()
        bucket = self._buckets.setdefault(tenant, self._new_bucket())
        self._buckets.move_to_end(tenant)
        while len(self._buckets) > self._settings.tenants:
            self._buckets.popitem(last=False)
        wait_s = bucket.wait_s(now, len(texts))
        if wait_s > 0:
            raise ResourceExhausted(
                f"more than {self._settings.texts_per_second:g} texts per second; wait, or send embeddings",
                field=field,
                retry_after_ms=math.ceil(wait_s * 1_000),
            )
        bucket.take(now, len(texts))

    def _new_bucket(self) -> TokenBucket:
        return TokenBucket(self._settings.texts_per_second, self._settings.burst_texts)

    async def _asked(self, offered: _Offered, work: Awaitable[T]) -> T:
        """What becomes of it; of failures the client learns their kind, and the log where."""
        try:
            return await work
        except ShoalError as error:
            _log.warning("embedding with %r failed: %s", offered.stored.name, error)
            raise _told(error, offered) from error


def offered(settings: EmbeddingSettings | None, clock: Clock) -> ServerEmbedding | None:
    """What the settings offer; None where they offer nothing. Raises as `ServerEmbedding` does."""
    return ServerEmbedding(settings, clock) if settings is not None and settings.functions else None


def _offered(name: str, settings: FunctionSettings) -> _Offered:
    place = f"frontend.embedding.functions.{name}"
    stored = Stored(settings.kind, settings.config)
    function = read_stored(stored, place)
    wanted = {
        field: value
        for field in ("texts_per_call", "concurrency", "calls_per_second", "timeout_ms")
        if (value := getattr(settings, field)) is not None
    }
    limits: GatewayLimits = replace(default_limits(function), **wanted)
    return _Offered(stored, Gateway(function, limits))


def _placed(batch: pa.RecordBatch, rows: Mask, made: Vectors) -> pa.RecordBatch:
    """The vectors in their rows; the i-th is that of the i-th chosen row."""
    matrix = np.zeros((batch.num_rows, made.shape[1]), dtype=np.float32)
    valid = rows.copy()
    at = batch.schema.get_field_index(EMBEDDING)
    if at >= 0:
        given = batch.column(at)
        own: Mask = np.asarray(given.is_valid())
        matrix[own] = embedding_matrix(given)[own]
        valid |= own
    matrix[rows] = made
    column = embedding_array(matrix, valid)
    return batch.append_column(EMBEDDING, column) if at < 0 else batch.set_column(at, EMBEDDING, column)


def _told(error: ShoalError, offered: _Offered) -> ShoalError:
    """Without the server's addresses and variables; a key that is refused is the server's, not the client's."""
    name = f"this server's embedding function {offered.stored.name!r}"
    if isinstance(error, Unauthenticated | PermissionDenied | FailedPrecondition):
        return FailedPrecondition(f"{name} is not set up well; its administrator finds why in the log")
    if "://" not in error.message:
        return error
    return type(error)(
        f"{name} gave no vectors for these texts", field=error.field, retry_after_ms=error.retry_after_ms
    )

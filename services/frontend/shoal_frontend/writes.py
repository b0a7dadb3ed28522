"""Writing: a batch, or what a filter matches, through validation to the log."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.consistency import VersionToken, as_of
from shoal_core.contracts import (
    Answer,
    AppendRequest,
    Collection,
    CollectionRef,
    Condition,
    GetRequest,
    Log,
    WriteResult,
)
from shoal_core.errors import IdempotencyMismatch, InvalidArgument, ShoalError, StaleRead, WriteConflict
from shoal_core.filters import Filter
from shoal_core.limits import Limits
from shoal_core.ports import Random
from shoal_core.records import ID, OP, Operation, encode_batch
from shoal_frontend import validate
from shoal_frontend.apart import MANY_ROWS, apart
from shoal_frontend.embedding import Embedded, ServerEmbedding
from shoal_frontend.fanout import Fanout, target_of
from shoal_frontend.indexed import check_indexed
from shoal_frontend.names import Names
from shoal_frontend.outcomes import outcomes as outcomes_of
from shoal_frontend.validate_batch import check_batch
from shoal_frontend.validate_filter import check_selection, takes_long

_DELETE_ATTEMPTS = 10
_MANY_OUTCOMES = 100
_LARGE_BYTES = 256 << 10  # above this, checking and encoding a batch would hold up the event loop


@dataclass(frozen=True, slots=True)
class Writes:
    """The verbs that write. See `PublicApi`."""

    log: Log
    fanout: Fanout
    names: Names
    random: Random
    limits: Limits
    embedding: ServerEmbedding | None = None

    async def write(
        self,
        ref: CollectionRef,
        batch: pa.RecordBatch,
        *,
        idempotency_key: str = "",
        condition: Condition | None = None,
        outcomes: bool = False,
    ) -> WriteResult:
        """See `PublicApi`. The outcomes are looked up after the append; if that fails they are left out, as the write stands."""
        validate.check_idempotency_key(idempotency_key, self.limits)
        validate.check_condition(condition, self.limits)
        # A key of our own makes the retries between here and the log safe.
        key = idempotency_key or self.random.token().hex()

        embedded: Embedded[pa.RecordBatch] = Embedded()

        def prepared(batch: pa.RecordBatch, dimension: int | None) -> pa.Buffer:
            check_batch(batch, dimension, self.limits)
            return encode_batch(batch)

        async def append(collection: Collection) -> WriteResult:
            batch_of_vectors = await embedded.once(collection, lambda: self._embedded(batch, collection))
            if batch_of_vectors.nbytes > _LARGE_BYTES:
                payload = await asyncio.to_thread(prepared, batch_of_vectors, collection.dimension)
            else:
                payload = prepared(batch_of_vectors, collection.dimension)
            result = await self._append(collection, payload, batch.num_rows, key, condition)
            return await self._with_outcomes(collection, batch, result) if outcomes else result

        return await self.names.with_collection(ref, append)

    async def _embedded(self, batch: pa.RecordBatch, collection: Collection) -> pa.RecordBatch:
        """With vectors of documents that came without, where this server makes them. All else is checked before it is paid for."""
        if self.embedding is None:
            return batch
        rows = self.embedding.rows_to_embed(batch, collection)
        if not rows.any():
            return batch
        await apart(batch.nbytes > _LARGE_BYTES, check_batch, batch, collection.dimension, self.limits, rows)
        return await self.embedding.with_embeddings(batch, rows, collection)

    async def _append(
        self, collection: Collection, payload: pa.Buffer, records: int, key: str, condition: Condition | None
    ) -> WriteResult:
        request = AppendRequest(collection.id, collection.epoch, collection.tenant, payload, key, condition)
        result = await self.log.append(request)
        return WriteResult(result.token, result.first_offset, records)

    async def _with_outcomes(self, collection: Collection, batch: pa.RecordBatch, result: WriteResult) -> WriteResult:
        before = result.first_offset - 1
        known = pa.array([], pa.string())
        if before:
            wanted = await apart(batch.num_rows > MANY_ROWS, lambda: tuple(batch.column(ID).unique().to_pylist()))
            try:
                answer = await self.fanout.get(collection, GetRequest(target_of(collection), as_of(before), ids=wanted))
            except ShoalError:
                return result
            assert isinstance(answer, Answer)
            known = answer.rows.column(ID).combine_chunks()

        def found() -> bytes:
            existed = pc.is_in(batch.column(ID), value_set=known).to_numpy(zero_copy_only=False)
            return outcomes_of(batch, existed)

        return replace(result, outcomes=await apart(batch.num_rows > _MANY_OUTCOMES, found))

    async def delete_where(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None = None,
        idempotency_key: str = "",
        allow_scan: bool = False,
    ) -> WriteResult:
        """See `PublicApi`. Ids alone are deleted unread; a filter is read at a strong snapshot and deleted on condition that
        none of its matches was written since, else it is read again.
        """
        if ids is None and where is None:
            raise InvalidArgument("give ids, a filter or both; nothing deletes everything", field="where")
        await apart(takes_long(ids, where), check_selection, ids, where, self.limits)
        validate.check_page(limit, 0, self.limits.get_results)
        validate.check_idempotency_key(idempotency_key, self.limits)
        if where is None and limit is None and ids:
            return await self.write(ref, _deletions(tuple(dict.fromkeys(ids))), idempotency_key=idempotency_key)
        wanted, most = None if ids is None else tuple(ids), self.limits.batch_records
        asked = most + 1 if limit is None else min(limit, most + 1)

        async def delete(collection: Collection) -> WriteResult:
            # What was read and what is written must be one collection: the name may pass to another in between.
            check_indexed(where, collection.schema, allow_scan=allow_scan)
            answer = await self.fanout.get(
                collection, GetRequest(target_of(collection), ids=wanted, where=where, limit=asked)
            )
            assert isinstance(answer, Answer)
            found = tuple(answer.rows.column(ID).to_pylist())
            at = answer.served_at.offset
            if len(found) > most:
                raise InvalidArgument(
                    f"more than {most} records match, which one write cannot delete; set limit to {most} and repeat",
                    field="limit",
                )
            if not found:
                return WriteResult(VersionToken(collection.id, collection.incarnation, at), at, 0, read_offset=at)
            return replace(await self._delete(collection, ids=found, read_at=at, key=idempotency_key), read_offset=at)

        for _ in range(_DELETE_ATTEMPTS):
            try:
                return await self.names.with_collection(ref, delete)
            except (WriteConflict, StaleRead):
                continue
            except IdempotencyMismatch as error:
                raise IdempotencyMismatch(
                    "a write with this key happened before; if it was this delete, it stands, and other records match now: take "
                    "a new key to delete them too",
                    field=error.field,
                ) from error
        raise WriteConflict(f"the matches changed during each of {_DELETE_ATTEMPTS} tries; try again")

    async def _delete(self, collection: Collection, ids: tuple[str, ...], read_at: int, key: str) -> WriteResult:
        payload = encode_batch(_deletions(ids))
        key = key or self.random.token().hex()
        return await self._append(collection, payload, len(ids), key, Condition(read_at, ids))


def _deletions(ids: Sequence[str]) -> pa.RecordBatch:
    operations = np.full(len(ids), Operation.DELETE, dtype=np.uint8)
    return pa.record_batch({OP: pa.array(operations), ID: pa.array(ids, pa.string())})

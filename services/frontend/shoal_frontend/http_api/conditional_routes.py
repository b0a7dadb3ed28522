"""Routes of conditional reads and writes: what a transaction reads at one snapshot, and its writes, which hold only if nobody has
written what it read.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial

from fastapi import Request, Response

from shoal_core.consistency import STRONG, as_of
from shoal_core.contracts import Condition
from shoal_core.errors import DimensionMismatch, NotFound, OffsetExpired, StaleRead, WriteConflict
from shoal_frontend.http_api.answers import get_json
from shoal_frontend.http_api.bodies import json_response, parsed
from shoal_frontend.http_api.conditional import parse_commit, parse_conditional_get
from shoal_frontend.http_api.errors import reworded
from shoal_frontend.http_api.gateway import COLLECTION, Gateway, Route, ref_by_id
from shoal_frontend.http_api.read_token import offset_of, read_token
from shoal_frontend.http_api.reads import include_of
from shoal_frontend.http_api.sending import sent
from shoal_frontend.http_api.vectors import wrong_dimension

_CONFLICT = "conditional write conflict: a record that was read has been written since; read again"
_STALE = "the snapshot of the read token is kept no longer; read again without it"


@dataclass(frozen=True, slots=True)
class ConditionalRoutes:
    """Transactions."""

    gateway: Gateway

    def routes(self) -> Sequence[Route]:
        """All of them."""
        return (
            Route("POST", f"{COLLECTION}/conditional/get", self.get),
            Route("POST", f"{COLLECTION}/conditional/commit", self.commit),
        )

    async def get(self, request: Request) -> Response:
        """A get, with the token of its snapshot; given one, at that snapshot."""
        ref = ref_by_id(request)
        body = await parsed(request, partial(parse_conditional_get, limits=self.gateway.limits))
        with reworded(NotFound, f"Collection [{ref.id}] does not exist."), reworded(OffsetExpired, _STALE, StaleRead):
            collection = await self.gateway.api_of(request).get_collection(ref)
            token, asked = body.read_token, body.get
            answer = await self.gateway.api_of(request).get(
                ref,
                ids=asked.selection.ids,
                where=asked.selection.where,
                limit=asked.limit,
                offset=asked.offset,
                include=include_of(asked.include),
                consistency=STRONG if token is None else as_of(offset_of(token, collection)),
            )
        more = {"read_token": read_token(collection, answer.served_at.offset)}
        return await sent([answer], lambda size_bytes: get_json(answer, size_bytes, asked.include, more))

    async def commit(self, request: Request) -> Response:
        """All of the writes or none: 409 if a record was written that was read, 412 if that can no longer be told."""
        ref = ref_by_id(request)
        make = partial(parse_commit, limits=self.gateway.limits, embeds=self.gateway.embeds)
        body = await parsed(request, make, quick=False)
        with reworded(NotFound, f"Collection [{ref.id}] does not exist."), reworded(WriteConflict, _CONFLICT):
            collection = await self.gateway.api_of(request).get_collection(ref)
            offset = None if body.read_token is None else offset_of(body.read_token, collection)
            if body.batch is None:
                return json_response({"first_inserted_record_offset": None, "record_count": 0})
            condition = None if offset is None or not body.read_ids else Condition(offset, body.read_ids)
            try:
                result = await self.gateway.api_of(request).write(ref, body.batch, condition=condition)
            except DimensionMismatch as error:
                if collection.dimension is None or body.dimension is None:
                    raise
                raise wrong_dimension(collection.dimension, body.dimension) from error
        return json_response({"first_inserted_record_offset": result.first_offset, "record_count": result.records})

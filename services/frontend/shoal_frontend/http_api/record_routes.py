"""Routes of the records of one collection."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

import numpy as np
from fastapi import Request, Response

from shoal_core.contracts import CollectionRef
from shoal_core.errors import DimensionMismatch, InvalidArgument, NotFound
from shoal_core.filters import TextMatcher
from shoal_core.records import Operation
from shoal_frontend.http_api.answers import get_json, no_queries_json, query_json, search_json
from shoal_frontend.http_api.bodies import json_response, parsed
from shoal_frontend.http_api.errors import reworded
from shoal_frontend.http_api.gateway import COLLECTION, Gateway, Route, ref_by_id
from shoal_frontend.http_api.reads import (
    include_of,
    level_of,
    parse_delete,
    parse_get,
    parse_query,
    parse_searches,
)
from shoal_frontend.http_api.records import parse_records
from shoal_frontend.http_api.sending import sent
from shoal_frontend.http_api.vectors import wrong_dimension

_PATTERNS = tuple(f"where_document.{matcher}" for matcher in (TextMatcher.REGEX, TextMatcher.NOT_REGEX))


@dataclass(frozen=True, slots=True)
class RecordRoutes:
    """Writes and reads."""

    gateway: Gateway

    def routes(self) -> Sequence[Route]:
        """All of them."""
        return (
            Route("POST", f"{COLLECTION}/add", self.add),
            Route("POST", f"{COLLECTION}/update", self.update),
            Route("POST", f"{COLLECTION}/upsert", self.upsert),
            Route("POST", f"{COLLECTION}/delete", self.delete),
            Route("GET", f"{COLLECTION}/count", self.count),
            Route("GET", f"{COLLECTION}/indexing_status", self.indexing_status),
            Route("POST", f"{COLLECTION}/get", self.get),
            Route("POST", f"{COLLECTION}/query", self.query),
            Route("POST", f"{COLLECTION}/search", self.search),
        )

    # --- writes

    async def add(self, request: Request) -> Response:
        """Records whose ids are there already stay as they are, silently."""
        return await self._write(request, Operation.ADD, 201)

    async def update(self, request: Request) -> Response:
        """Records that are not there are passed over, silently."""
        return await self._write(request, Operation.UPDATE, 200)

    async def upsert(self, request: Request) -> Response:
        """Add or update."""
        return await self._write(request, Operation.UPSERT, 200)

    async def _write(self, request: Request, operation: Operation, status: int) -> Response:
        ref = ref_by_id(request)
        make = partial(parse_records, operation=operation, embeds=self.gateway.embeds)
        records = await parsed(request, make, matrix="embeddings")
        with _missing(ref):
            if records.batch is None:
                await self.gateway.api_of(request).get_collection(ref)
                return json_response({}, status)
            try:
                await self.gateway.api_of(request).write(ref, records.batch)
            except DimensionMismatch as error:
                raise await self._wrong_dimension(request, ref, records.dimension, error) from error
        return json_response({}, status)

    async def delete(self, request: Request) -> Response:
        """``{"deleted": n}``: of ids alone all of them, whether or not they were there; of a filter those that matched."""
        ref = ref_by_id(request)
        body = await parsed(request, partial(parse_delete, limits=self.gateway.limits))
        ids, where = body.selection.ids, body.selection.where
        with _missing(ref), _patterns():
            if ids is None and where is None:
                await self.gateway.api_of(request).get_collection(ref)
                return json_response({"deleted": 0})
            result = await self.gateway.api_of(request).delete_where(ref, ids=ids, where=where, limit=body.limit)
        return json_response({"deleted": result.records})

    # --- reads

    async def count(self, request: Request) -> Response:
        """A number."""
        ref, consistency = ref_by_id(request), level_of(request.query_params.get("read_level"))
        with _missing(ref):
            answer = await self.gateway.api_of(request).count(ref, consistency=consistency)
        return json_response(answer.count)

    async def indexing_status(self, request: Request) -> Response:
        """How much of the log is compacted, in operations."""
        ref = ref_by_id(request)
        with _missing(ref):
            status = await self.gateway.api_of(request).indexing_status(ref)
        total, indexed = status.head_offset, status.indexed_offset
        return json_response(
            {
                "op_indexing_progress": indexed / total if total else 1.0,
                "num_unindexed_ops": total - indexed,
                "num_indexed_ops": indexed,
                "total_ops": total,
            }
        )

    async def get(self, request: Request) -> Response:
        """In order of creation, whatever the order of the ids."""
        ref = ref_by_id(request)
        body = await parsed(request, partial(parse_get, limits=self.gateway.limits))
        with _missing(ref), _patterns():
            answer = await self.gateway.api_of(request).get(
                ref,
                ids=body.selection.ids,
                where=body.selection.where,
                limit=body.limit,
                offset=body.offset,
                include=include_of(body.include),
            )
        return await sent([answer], lambda size_bytes: get_json(answer, size_bytes, body.include))

    async def query(self, request: Request) -> Response:
        """The nearest of each vector, or of each text where the server embeds."""
        ref = ref_by_id(request)
        make = partial(parse_query, limits=self.gateway.limits, embeds=self.gateway.embeds)
        body = await parsed(request, make, matrix="query_embeddings")
        with _missing(ref), _patterns():
            vectors = np.zeros((0, 0), np.float32) if body.vectors is None else body.vectors
            if body.vectors is None and body.texts is None:
                await self.gateway.api_of(request).get_collection(ref)
                return json_response(no_queries_json(body.include))
            try:
                answer = await self.gateway.api_of(request).query(
                    ref,
                    vectors,
                    body.k,
                    ids=body.selection.ids,
                    where=body.selection.where,
                    include=include_of(body.include),
                    texts=body.texts,
                )
            except DimensionMismatch as error:
                raise await self._wrong_dimension(request, ref, vectors.shape[1] or None, error) from error
        return await sent([answer], lambda size_bytes: query_json(answer, size_bytes, body.include))

    async def search(self, request: Request) -> Response:
        """Several searches at one snapshot."""
        ref = ref_by_id(request)
        body = await parsed(request, partial(parse_searches, limits=self.gateway.limits))
        with _missing(ref):
            answers = await self.gateway.api_of(request).search(ref, body.searches, consistency=body.consistency)
        return await sent(answers, lambda _: search_json(answers, body.searches, body.selected))

    async def _wrong_dimension(
        self, request: Request, ref: CollectionRef, got: int | None, error: DimensionMismatch
    ) -> DimensionMismatch:
        """The error in the words that clients know."""
        expected = (await self.gateway.api_of(request).get_collection(ref)).dimension
        return error if expected is None or got is None else wrong_dimension(expected, got)


@contextmanager
def _missing(ref: CollectionRef) -> Iterator[None]:
    with reworded(NotFound, f"Collection [{ref.id}] does not exist."):
        yield


@contextmanager
def _patterns() -> Iterator[None]:
    """What is wrong with a regular expression, as clients know it."""
    try:
        yield
    except InvalidArgument as error:
        if error.field not in _PATTERNS:
            raise
        raise InvalidArgument(f"Regex syntax errror: {error.message}") from error

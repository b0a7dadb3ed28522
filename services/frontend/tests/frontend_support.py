"""Several frontends over several query nodes, calls between them of lengths that a seed decides, and an oracle for each offset."""

from __future__ import annotations

import copy
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.consistency import STRONG, Consistency
from shoal_core.contracts import (
    Answer,
    AppendRequest,
    AppendResult,
    CollectionRef,
    CountAnswer,
    CountRequest,
    EncodedAnswer,
    GetRequest,
    Include,
    QueryNode,
    QueryRequest,
    SearchRequest,
    StatisticsAnswer,
    StatisticsRequest,
    Target,
)
from shoal_core.filters import parse_where
from shoal_core.records import ID, decode_batch
from shoal_frontend.database import DatabaseService
from shoal_query.node import Node
from shoal_query.services import Services
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.oracle import OracleCollection
from shoal_testing.schedules import Hook, LaterExecutor, Turns, hooked, no_hook
from shoal_testing.strategies import Op, from_row_table, to_operation_batch

DIMENSION = 2
EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, distances=True, uris=True)


def put(name: str, value: float = 0.0, *, text: str | None = None, **metadata: Any) -> Op:
    """An upsert at ``(value, 0)``."""
    return ("upsert", name, (value, 0.0), text, None, metadata or None)


def remove(name: str) -> Op:
    """A delete."""
    return ("delete", name, None, None, None, None)


Call = tuple[str, Any]


@dataclass
class Nodes:
    """A `QueryNode` that passes each call on to any of several, after a hook, and remembers it."""

    nodes: Sequence[QueryNode]
    before: Hook = no_hook
    choose: Callable[[Sequence[QueryNode]], QueryNode] = field(default=lambda nodes: nodes[0])
    calls: list[Call] = field(default_factory=list)
    change: Callable[[Any], Any] = field(default=lambda request: request)

    async def _node(self, name: str, request: Any) -> QueryNode:
        self.calls.append((name, request))
        await self.before(name)
        return self.choose(self.nodes)

    async def get(self, request: GetRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        return await (await self._node("get", request)).get(self.change(request), encoded=encoded)

    async def query(self, request: QueryRequest, *, encoded: bool = False) -> Answer | EncodedAnswer:
        return await (await self._node("query", request)).query(self.change(request), encoded=encoded)

    async def count(self, request: CountRequest) -> CountAnswer:
        return await (await self._node("count", request)).count(self.change(request))

    async def search(self, request: SearchRequest) -> Answer:
        return await (await self._node("search", request)).search(self.change(request))

    async def statistics(self, request: StatisticsRequest) -> StatisticsAnswer:
        return await (await self._node("statistics", request)).statistics(self.change(request))

    def targets(self, name: str) -> list[Target]:
        """Of the calls of one method."""
        return [request.target for called, request in self.calls if called == name]


class Cluster:
    """See the module. Without a seed nothing waits."""

    def __init__(self, seed: int | None = None, *, nodes: int = 1, log: tuple[Hook, Hook] = (no_hook, no_hook)) -> None:
        settings = CompactorSettings(flush=FlushSettings(graph_rows=10**9, threads=1), policy=MergePolicy(fanout=2))
        self.system = DirectSystem(settings=settings)
        self.seed = seed
        self.log_hooks = log
        self.batches: dict[int, Sequence[Op]] = {}
        self._pending: dict[str, Sequence[Op]] = {}
        self._note_appends()
        chance = random.Random(seed)
        self.backends = [self._node(number) for number in range(nodes)]
        self.nodes = Nodes(self.backends, self._turns(1), chance.choice)
        self.database = self.frontend(0)
        self.ref: CollectionRef
        self.space = "l2"

    def _note_appends(self) -> None:
        """Note each batch in the moment it is in the log; its writer may hear of it later than a reader."""
        append = self.system.log.append

        async def noted(request: AppendRequest) -> AppendResult:
            result = await append(request)
            known = self._pending.get(request.idempotency_key)
            names = decode_batch(request.payload).column(ID).to_pylist()
            self.batches[result.token.offset] = [remove(name) for name in names] if known is None else known
            return result

        self.system.log.append = noted  # type: ignore[method-assign]

    def _turns(self, number: int) -> Hook:
        return no_hook if self.seed is None else Turns(self.seed * 100 + number)

    def _node(self, number: int) -> Node:
        system, turns = self.system, self._turns(10 + number)
        services = Services(
            hooked(system.catalog, before=turns, after=turns),
            hooked(system.log, before=turns, after=turns),
            hooked(system.objects, before=turns, after=turns),
            system.blocks,
            system.clock,
            InlineExecutor() if self.seed is None else LaterExecutor(self.seed * 100 + number),
            no_thread_use,
        )
        return Node(f"node-{number}", services)

    def frontend(self, number: int) -> DatabaseService:
        """A frontend of its own over the same services."""
        turns = self._turns(20 + number)
        before, after = self.log_hooks if self.seed is None else (turns, turns)
        return DatabaseService(
            hooked(self.system.catalog, before=turns, after=turns),
            hooked(self.system.log, before=before, after=after),
            self.nodes,
            self.system.random,
            self.system._view,
        )

    async def start(self, shards: int, space: str = "l2") -> Cluster:
        """With an empty collection."""
        self.space = space
        self.ref = await self.system.create(shards=shards, space=space)
        return self

    async def close(self) -> None:
        """Stop the nodes."""
        for node in (*self.backends, self.system.node):
            await node.close()

    async def write(self, *ops: Op, database: DatabaseService | None = None, **fields: Any) -> int:
        """One batch; its end offset. What is appended without it, `noted` takes for deletes."""
        batch = to_operation_batch(ops, DIMENSION)
        key = f"write-{len(self._pending)}"
        self._pending[key] = ops
        result = await (database or self.database).write(self.ref, batch, idempotency_key=key, **fields)
        return result.token.offset

    async def compact(self, *, merge: bool = True, trim: bool = False) -> None:
        """Publish; perhaps forget the log below."""
        await self.system.compact(self.ref, merge=merge)
        if trim:
            info = await self.system.catalog.get_version(self.ref.id)
            self.system.log.trim(self.ref.id, info.compacted_offset)

    def oracle(self, offset: int) -> OracleCollection:
        """The collection at the end of a batch."""
        oracle = OracleCollection(self.space, DIMENSION)
        for end in sorted(self.batches):
            if end <= offset:
                for op, record_id, embedding, document, uri, metadata in self.batches[end]:
                    oracle.apply(op, [record_id], [embedding], [document], [uri], [metadata])
        assert oracle.head_offset == offset, "a snapshot is at the end of a batch"
        return oracle

    # --- reads, compared with the oracle at the offset they say they were served at; they return that offset

    async def get(
        self,
        *,
        ids: Sequence[str] | None = None,
        where: Any = None,
        limit: int | None = None,
        offset: int = 0,
        include: Include = EVERYTHING,
        consistency: Consistency = STRONG,
        database: DatabaseService | None = None,
    ) -> int:
        answer = await (database or self.database).get(
            self.ref,
            ids=ids,
            where=parse_where(where),
            limit=limit,
            offset=offset,
            include=include,
            consistency=consistency,
        )
        expected = self.oracle(answer.served_at.offset).get(ids, where, None, limit, offset)
        assert from_row_table(answer.rows) == included(expected, include)
        assert answer.row_counts.tolist() == [len(expected)]
        assert answer.complete
        return answer.served_at.offset

    async def count(
        self, *, where: Any = None, consistency: Consistency = STRONG, database: DatabaseService | None = None
    ) -> int:
        answer = await (database or self.database).count(self.ref, where=parse_where(where), consistency=consistency)
        assert answer.count == self.oracle(answer.served_at.offset).count(where)
        return answer.served_at.offset

    async def query(
        self,
        vectors: Sequence[Sequence[float]] = ((0.2, 0.0), (7.0, 1.0)),
        k: int = 4,
        *,
        ids: Sequence[str] | None = None,
        where: Any = None,
        include: Include = EVERYTHING,
        consistency: Consistency = STRONG,
        database: DatabaseService | None = None,
    ) -> int:
        answer = await (database or self.database).query(
            self.ref,
            np.array(vectors, np.float32),
            k,
            ids=ids,
            where=parse_where(where),
            include=include,
            consistency=consistency,
        )
        oracle = self.oracle(answer.served_at.offset)
        hits = oracle.query([list(vector) for vector in vectors], k, ids, where)
        flat = [hit for part in hits for hit in part]
        assert answer.row_counts.tolist() == [len(part) for part in hits]
        rows = from_row_table(answer.rows)
        np.testing.assert_allclose([row.pop("distance") for row in rows], [hit.distance for hit in flat], 1e-5, 1e-7)
        records = {record["id"]: record for record in oracle.get()}
        assert rows == included([records[hit.id] for hit in flat], include)
        return answer.served_at.offset


def included(records: Sequence[dict[str, Any]], include: Include) -> list[dict[str, Any]]:
    """The oracle's records as an answer shows them."""
    found = []
    for record in map(copy.deepcopy, records):
        del record["updated_offset"]
        record["document"] = record["document"] if include.documents else None
        record["embedding"] = record["embedding"] if include.embeddings else None
        record["uri"] = record["uri"] if include.uris else None
        record["metadata"] = record["metadata"] if include.metadatas else {}
        found.append(record)
    return found


Read = Callable[[], Awaitable[int]]

"""Any order of writes, deletes, flushes, merges and reads of all verbs on one collection: engine and oracle never part.

What the bulk of pairs cannot show: pages turned while the collection changes under them, and reads of old offsets after merges.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from random import Random
from typing import Any

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef, Include, NewCollection
from shoal_core.filters import parse_where
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.oracle import OracleCollection
from shoal_testing.random_queries import draw_where
from shoal_testing.random_records import DIMENSION, SHARDS, SPACES, Plan, draw_batch, draw_schema
from shoal_testing.strategies import examples
from tests.semantics.pairs import State, compare, draw_settled, write

_seeds = st.integers(0, 2**32 - 1)
_PAGE = 7


class Collections(RuleBasedStateMachine):
    """One system, its oracle, and a cursor that may be open."""

    def __init__(self) -> None:
        super().__init__()
        self._runner = asyncio.Runner()
        self._system = DirectSystem(
            settings=CompactorSettings(flush=FlushSettings(threads=1), policy=MergePolicy(fanout=2))
        )
        self._cursor = ""
        self._where: Any = None
        self._rest: list[str] = []

    @initialize(seed=_seeds, shards=st.sampled_from(SHARDS), space=st.sampled_from(SPACES))
    def create(self, seed: int, shards: int, space: str) -> None:
        schema = draw_schema(Random(seed))
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things", space=space, shards=shards, schema=schema)
        collection, _ = self._run(self._system.database.create_collection(new))
        ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=collection.id)
        oracle = OracleCollection(space, DIMENSION, schema, keep_history=True)
        self._state = State(Plan(0, shards, "any", space, schema, ()), self._system.database, ref, oracle)
        self.write(seed)

    @rule(seed=_seeds)
    def write(self, seed: int) -> None:
        random = Random(seed)
        state = self._state
        ops = draw_batch(random, random.randint(1, 20))
        found, expected = self._run(write(state.database, state.ref, state.oracle, ops))
        assert found == expected

    @rule(seed=_seeds, limit=st.sampled_from((None, None, 2)))
    def delete(self, seed: int, limit: int | None) -> None:
        where = draw_where(Random(seed))
        delete = self._state.database.delete_where(
            self._state.ref, ids=None, where=parse_where(where), limit=limit, allow_scan=True
        )
        assert self._run(delete).records == self._state.oracle.delete_where(where=where, limit=limit)

    @rule(merge=st.booleans())
    def compact(self, merge: bool) -> None:
        self._run(self._system.compact(self._state.ref, merge=merge))

    @rule(seed=_seeds)
    def read(self, seed: int) -> None:
        random = Random(seed)
        for _ in range(8):
            self._run(compare(self._state, draw_settled(random, self._state.oracle)))

    @precondition(lambda self: not self._cursor)
    @rule(seed=_seeds)
    def open_pages(self, seed: int) -> None:
        self._where = draw_where(Random(seed)) if seed % 2 else None
        self._rest = [row["id"] for row in self._state.oracle.get(where=self._where)]
        self._turn("")

    @precondition(lambda self: bool(self._cursor))
    @rule()
    def turn_page(self) -> None:
        self._turn(self._cursor)

    def _turn(self, cursor: str) -> None:
        answer = self._run(
            self._state.database.get(
                self._state.ref,
                where=parse_where(self._where),
                limit=_PAGE,
                cursor=cursor,
                include=Include(),
                allow_scan=True,
            )
        )
        page, self._rest = self._rest[:_PAGE], self._rest[_PAGE:]
        assert answer.rows.column("id").to_pylist() == page
        self._cursor = answer.cursor
        assert self._cursor or not self._rest

    def _run(self, work: Coroutine[Any, Any, Any]) -> Any:
        return self._runner.run(work)

    def teardown(self) -> None:
        self._run(self._system.node.close())
        self._runner.close()


TestCollections = Collections.TestCase
TestCollections.settings = examples(30, stateful_step_count=25)

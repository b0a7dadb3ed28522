"""20,160 random reads of 60 states, on 1, 2 and 5 shards, uncompacted, half and wholly compacted: engine and oracle agree on all.

Frontend, query node and compactor are the real ones, wired directly over in-memory stores.
"""

from __future__ import annotations

from random import Random

import pytest

from shoal_compactor.compactor import CompactorSettings
from shoal_compactor.flush import FlushSettings
from shoal_compactor.policy import MergePolicy
from shoal_core.contracts import CollectionRef
from shoal_testing.direct import DirectSystem
from shoal_testing.oracle import OracleCollection
from shoal_testing.random_records import DIMENSION, draw_plan
from tests.semantics.pairs import READS, SEED, STATES, Coverage, build, compare_reads, draw_settled


@pytest.mark.parametrize("number", range(STATES))
async def test_every_read_of_a_state_agrees(number: int, coverage: Coverage) -> None:
    settings = CompactorSettings(flush=FlushSettings(threads=1), policy=MergePolicy(fanout=2))
    system = DirectSystem(settings=settings, seed=number)

    async def compact(ref: CollectionRef, merge: bool) -> None:
        await system.compact(ref, merge=merge)

    state = await build(draw_plan(number, SEED), system.database, compact)
    await compare_reads(state, READS, coverage)
    await system.node.close()


def test_every_cell_of_the_language_is_covered(coverage: Coverage) -> None:
    """Operators, types, shards and layouts. States that ran elsewhere or not at all are drawn again, without reading them."""
    counted = Coverage(coverage.counts.copy(), set(coverage.states), coverage.pairs)
    for number in set(range(STATES)) - coverage.states:
        plan = draw_plan(number, SEED)
        oracle = OracleCollection(plan.space, DIMENSION, plan.schema, keep_history=True)
        for kind, what in plan.steps:
            if kind == "write":
                oracle.write(what)
            elif kind == "delete":
                oracle.delete_where(where=what)
        random = Random(f"reads {SEED}/{number}")
        for _ in range(READS):
            counted.add(plan, draw_settled(random, oracle))
    assert counted.missing() == []
    assert counted.pairs >= 20_000

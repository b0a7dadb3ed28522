"""What metrics are made of: a compactor's share of the backlog, and numbers that are read when a page is."""

from __future__ import annotations

from shoal_cli import metrics
from shoal_core.contracts import AppendRequest, NewCollection
from shoal_query.node import Node
from shoal_query.queue_time import ADMISSION
from shoal_query.services import Services
from shoal_runtime.telemetry import Telemetry
from shoal_testing.compaction import CompactionWorld
from shoal_testing.contract_stores import upserts
from shoal_testing.direct import DirectSystem, InlineExecutor, no_thread_use
from shoal_testing.fake_catalog import DEFAULT_DATABASE, DEFAULT_TENANT


async def test_a_compactor_counts_the_collections_that_it_prefers() -> None:
    world = await CompactionWorld.create()
    new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "other")
    other, _ = await world.catalog.create_collection(new, get_or_create=False)
    await world.upsert("a")
    await world.clock.advance(2)
    await world.log.append(AppendRequest(other.id, other.epoch, other.tenant, upserts(["a", "b", "c"])))
    everything = await metrics.compaction_backlog(world.catalog, lambda collection_id: True)
    assert everything == metrics.CompactionBacklog(2, 4, 2_000)
    mine = await metrics.compaction_backlog(world.catalog, lambda collection_id: collection_id == other.id)
    assert mine == metrics.CompactionBacklog(1, 3, 0)
    none = await metrics.compaction_backlog(world.catalog, lambda collection_id: False)
    assert none == metrics.CompactionBacklog(0, 0, 0)


def test_a_query_node_tells_waits_by_queue_and_their_mean() -> None:
    system, telemetry = DirectSystem(), Telemetry("querynode")
    services = Services(
        system.catalog, system.log, system.objects, system.blocks, system.clock, InlineExecutor(), no_thread_use
    )
    metrics.measure_node(telemetry, Node("node", services))
    services.queue_time.waited(ADMISSION, 30)
    lines = telemetry.render().decode().splitlines()
    telemetry.close()
    assert 'shoal_query_queue_ms_sum{queue="admission"} 30.0' in lines
    assert "shoal_query_queue_time_ms 30.0" in lines
    assert "shoal_query_version_age_ms 0.0" in lines


def test_http_and_groups_are_counted() -> None:
    telemetry = Telemetry("frontend")
    metrics.measure_http(telemetry)("POST", "/a/{b}", 201, 7.0)
    metrics.measure_groups(telemetry)(3, 12.0)
    lines = telemetry.render().decode().splitlines()
    telemetry.close()
    assert 'shoal_http_requests_total{code="201",method="POST",route="/a/{b}"} 1.0' in lines
    assert 'shoal_http_duration_ms_sum{method="POST",route="/a/{b}"} 7.0' in lines
    assert "shoal_log_group_appends_sum 3.0" in lines
    assert "shoal_log_group_duration_ms_sum 12.0" in lines

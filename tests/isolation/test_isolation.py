"""Nothing of another tenant, database or collection is ever read, changed, or told apart from what does not exist."""

from __future__ import annotations

import asyncio
import inspect
from collections.abc import Callable
from typing import Any

import pytest
from fastapi.routing import APIRoute
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.contracts import CollectionRef
from shoal_core.errors import ShoalError
from shoal_frontend.api import Api
from shoal_frontend.http_api.app import all_routes, create_app
from shoal_frontend.http_api.gateway import Gateway
from shoal_testing.direct import DirectSystem
from shoal_testing.strategies import examples
from tests.isolation.isolation_routes import CALLS, ROUTES, Aim, filled
from tests.isolation.isolation_worlds import (
    COLLECTIONS,
    DATABASES,
    TENANTS,
    Place,
    Plan,
    World,
    grants,
    places,
    two_worlds,
)

EXAMPLES = examples(30)
PLACES = st.sampled_from(list(places()))
HOME = st.sampled_from([place for place in places() if (place.tenant, place.database) == ("acme", "main")])


@st.composite
def attempts(draw: st.DrawFn, names: list[Any], *, guarded: bool) -> tuple[Plan, list[Any]]:
    """A plan and what to try in it: what is called, the names of the path, the collection aimed at, the name of something new, and
    a further collection. Half of the aims are at what the caller has, so that there is something to compare.
    """
    there = draw(st.lists(HOME | PLACES, min_size=4, max_size=12, unique=True))
    plan = Plan(tuple(there), draw(st.sampled_from(list(grants()))) if guarded else None)
    own = [place for place in there if plan.sees(place)]
    aimed = (st.sampled_from(own) if own else PLACES) | st.sampled_from(there) | PLACES
    step = st.tuples(
        st.sampled_from(names),
        st.booleans(),
        st.sampled_from(TENANTS),
        st.sampled_from(DATABASES),
        aimed,
        st.sampled_from((*COLLECTIONS, "docs-new")),
        aimed,
        st.booleans(),
    )
    return plan, draw(st.lists(step, min_size=5, max_size=14))


def aim_of(world: World, full: World, step: Any) -> Aim:
    _, through_its_own_path, tenant, database, place, new_name, other, _ = step
    if through_its_own_path:
        tenant, database = place.tenant, place.database
    if world.plan.grant is None:  # whoever sends a request chooses its path; the path is what keeps apart
        tenant, database = world.plan.home
    cursor = world.cursors.get(place) or full.cursors.get(place, "")
    return Aim(tenant, database, place.collection, world.known(place, full), new_name, cursor, world.known(other, full))


def run(plan: Plan, todo: list[Any], act: Callable[[World, Any, Aim], Any]) -> None:
    async def check() -> None:
        full, bare = await two_worlds(plan)
        before = await full.hidden()
        for step in todo:
            answers = [await act(world, step, aim_of(world, full, step)) for world in (full, bare)]
            assert answers[0] == answers[1], step
        assert await full.hidden() == before

    asyncio.run(check())


async def _requested(world: World, step: Any, aim: Aim) -> Any:
    route = step[0]
    shot = ROUTES[route]
    if shot.tenant_wide and world.plan.grant is None:
        return None
    answer = await world.request(route[0], filled(route[1], aim, shot), shot.body(aim))
    headers = {
        name: value for name, value in answer.headers.items() if name not in ("chroma-trace-id", "content-length")
    }
    return answer.status, headers, world.plain(answer.json if answer.body else None)


async def _called(world: World, step: Any, aim: Aim) -> Any:
    call = CALLS[step[0]]
    if call.tenant_wide and world.plan.grant is None:
        return None
    name, collection_id = (aim.name, "") if step[-1] else ("", aim.id)
    ref = CollectionRef(aim.tenant, aim.database, name=name, id=collection_id)
    try:
        return world.plain(await call.call(await world.api(), aim, ref))
    except ShoalError as error:
        return world.plain(error)


@EXAMPLES
@given(attempts(sorted(ROUTES), guarded=True))
def test_over_http_with_authentication(tried: tuple[Plan, list[Any]]) -> None:
    run(*tried, _requested)


@EXAMPLES
@given(attempts(sorted(ROUTES), guarded=False))
def test_over_http_without_authentication(tried: tuple[Plan, list[Any]]) -> None:
    run(*tried, _requested)


@EXAMPLES
@given(attempts(sorted(CALLS), guarded=True))
def test_over_the_public_api_with_authentication(tried: tuple[Plan, list[Any]]) -> None:
    run(*tried, _called)


@EXAMPLES
@given(attempts(sorted(CALLS), guarded=False))
def test_over_the_public_api_without_authentication(tried: tuple[Plan, list[Any]]) -> None:
    run(*tried, _called)


def test_every_route_is_tried() -> None:
    world = asyncio.run(World(Plan((), None), False, DirectSystem()).start())
    gateway = Gateway(world.entrance, world.system.clock, world.system.random)
    closed = {(route.method, route.path) for route in all_routes(gateway) if not route.is_open}
    served = {
        (method, route.path)
        for route in create_app(gateway).routes
        if isinstance(route, APIRoute)
        for method in route.methods or ()
    }
    assert set(ROUTES) == closed
    open_paths = {path for _, path in served - closed}
    assert open_paths == {
        "/health",
        "/api/v1/{rest:path}",
        *(f"/api/v2{path}" for path in ("", "/heartbeat", "/healthcheck", "/pre-flight-checks", "/version")),
    }


def test_every_verb_is_tried() -> None:
    verbs = {name for name, member in inspect.getmembers(Api) if inspect.iscoroutinefunction(member)}
    assert set(CALLS) == verbs


@pytest.mark.parametrize("place", [Place("acme2", "main", "docs"), Place("acme", "main2", "docs")])
def test_the_worlds_do_differ(place: Place) -> None:
    """Otherwise nothing would be tested."""

    async def check() -> None:
        full, bare = await two_worlds(Plan((place, Place("acme", "main", "docs")), None))
        assert place in full.ids
        assert place not in bare.ids
        assert len(await full.hidden()) > len(await bare.hidden())

    asyncio.run(check())

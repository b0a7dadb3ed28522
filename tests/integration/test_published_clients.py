"""Published, unmodified clients against Shoal: Chroma's own for Python and JavaScript, and what is built on them.

They live in environments of their own (`make clients`); what they do is in ``tests/compat/clients`` and ``tests/compat/javascript``.
The numbers say how many tests there are: a run with fewer fails.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import pytest_asyncio

from shoal_cli.local_cluster import LocalCluster
from tests.compat.runs import javascript_tests, python_tests
from tests.compat.servers import shoal_up

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

TOUR = {
    "tour_catalog.py": 26,
    "tour_records.py": 38,
    "tour_errors.py": 32,
    "tour_search.py": 20,
    "tour_forks.py": 2,
}
STORES = {"store_langchain.py": 9, "store_llamaindex.py": 13, "store_haystack.py": 2}
JAVASCRIPT = {"tour.mjs": 17, "tour_forks.mjs": 1}


@dataclass(frozen=True, slots=True)
class Auth:
    """How clients say who they are. ``server``: options of ``shoal up``; ``clients``: the environment of the tours."""

    name: str
    server: tuple[str, ...] = ()
    clients: Mapping[str, str] = field(default_factory=dict)


AUTH = (Auth("none"),)


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=AUTH, ids=lambda auth: auth.name)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[tuple[str, Mapping[str, str]]]:
    """Everything in one process: its address, and what clients must be told."""
    auth: Auth = request.param
    directory = Path(tempfile.mkdtemp(prefix="shoal-clients-"))
    async with shoal_up(directory, *auth.server) as address:
        yield address, auth.clients
    shutil.rmtree(directory)


async def test_chromas_python_client(served: tuple[str, Mapping[str, str]]) -> None:
    address, environment = served
    await python_tests(address, TOUR, environment)


async def test_chromas_javascript_client(served: tuple[str, Mapping[str, str]]) -> None:
    address, environment = served
    await javascript_tests(address, JAVASCRIPT, environment)


@pytest.mark.parametrize("store", STORES)
async def test_stores_built_on_chroma(served: tuple[str, Mapping[str, str]], store: str) -> None:
    address, environment = served
    await python_tests(address, {store: STORES[store]}, environment)


async def test_reset_where_it_is_allowed() -> None:
    directory = Path(tempfile.mkdtemp(prefix="shoal-reset-"))
    async with shoal_up(directory, "--allow-reset") as address:
        await python_tests(address, {"tour_reset.py": 1})
    shutil.rmtree(directory)


async def test_chromas_clients_and_a_cluster(cluster: LocalCluster) -> None:
    one, other = (role.http for role in cluster.roles.values() if role.role == "frontend")
    await python_tests(one, {name: TOUR[name] for name in ("tour_records.py", "tour_search.py", "tour_forks.py")})
    await javascript_tests(other, JAVASCRIPT)

"""Published, unmodified clients against Shoal: Chroma's own for Python and JavaScript, and what is built on them.

They live in environments of their own (`make clients`); what they do is in ``tests/compat/clients`` and ``tests/compat/javascript``.
The numbers say how many tests there are: a run with fewer fails.
"""

from __future__ import annotations

import asyncio
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest
import pytest_asyncio

from shoal_cli.local_cluster import LocalCluster
from tests.compat.runs import javascript_tests, python_tests
from tests.compat.servers import SHOAL, shoal_up

pytestmark = [pytest.mark.integration, pytest.mark.asyncio(loop_scope="session")]

TOUR = {
    "tour_catalog.py": 26,
    "tour_records.py": 38,
    "tour_errors.py": 32,
    "tour_search.py": 20,
    "tour_forks.py": 2,
    "tour_embedding.py": 8,
    "tour_functions.py": 2,
}
STORES = {"store_langchain.py": 9, "store_llamaindex.py": 13, "store_haystack.py": 2}
JAVASCRIPT = {"tour.mjs": 17, "tour_forks.mjs": 1}


ROOT_TOKEN = "root-token-of-the-tests-with-published-clients"
USER, PASSWORD = "keeper", "password-of-the-tests-with-published-clients"


@dataclass(frozen=True, slots=True)
class Auth:
    """How clients say who they are.

    Attributes:
        credentials: a token, or user and password; empty for none.
        whole: whether the whole tour is made this way, or only some of it.
    """

    name: str
    credentials: str = ""
    whole: bool = True


AUTH = (
    Auth("none"),
    Auth("token", ROOT_TOKEN),
    Auth("x-chroma-token", ROOT_TOKEN, whole=False),
    Auth("basic", f"{USER}:{PASSWORD}", whole=False),
)


@dataclass(frozen=True, slots=True)
class Served:
    """A server, and how clients come in."""

    address: str
    auth: Auth

    @property
    def environment(self) -> Mapping[str, str]:
        """Of the tours."""
        return {"SHOAL_AUTH": self.auth.name, "SHOAL_CREDENTIALS": self.auth.credentials}


@pytest_asyncio.fixture(scope="module", loop_scope="session", params=AUTH, ids=lambda auth: auth.name)
async def served(request: pytest.FixtureRequest) -> AsyncIterator[Served]:
    """Everything in one process, which asks who calls unless clients do not say so."""
    auth: Auth = request.param
    directory = Path(tempfile.mkdtemp(prefix="shoal-clients-"))
    environment = {"SHOAL_FRONTEND__ACCESS__ROOT_TOKEN": ROOT_TOKEN} if auth.credentials else {}
    async with shoal_up(directory, environment=environment) as up:
        if auth.name == "basic":
            await asyncio.to_thread(make_user, up.grpc)
        yield Served(up.http, auth)
    shutil.rmtree(directory)


def make_user(grpc: str) -> None:
    """The one that basic authentication is tried with."""
    command = [str(SHOAL), "access", "user", "create", USER, "--grant", "owner", "--address", grpc]
    environment = {**os.environ, "SHOAL_TOKEN": ROOT_TOKEN, "SHOAL_PASSWORD": PASSWORD}
    subprocess.run(command, env=environment, check=True, timeout=60)


async def test_chromas_python_client(served: Served) -> None:
    files = TOUR if served.auth.whole else {"tour_catalog.py": TOUR["tour_catalog.py"]}
    await python_tests(served.address, files, served.environment)


async def test_chromas_javascript_client(served: Served) -> None:
    await javascript_tests(served.address, JAVASCRIPT, served.environment)


async def test_stores_built_on_chroma(served: Served) -> None:
    files = STORES if served.auth.whole else {"store_haystack.py": STORES["store_haystack.py"]}
    await python_tests(served.address, files, served.environment)


async def test_reset_where_it_is_allowed() -> None:
    directory = Path(tempfile.mkdtemp(prefix="shoal-reset-"))
    async with shoal_up(directory, "--allow-reset") as up:
        await python_tests(up.http, {"tour_reset.py": 1})
    shutil.rmtree(directory)


async def test_chromas_clients_and_a_cluster(cluster: LocalCluster) -> None:
    one, other = (role.http for role in cluster.roles.values() if role.role == "frontend")
    await python_tests(one, {name: TOUR[name] for name in ("tour_records.py", "tour_search.py", "tour_forks.py")})
    await javascript_tests(other, JAVASCRIPT)

"""Addresses of ``shoal up``."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shoal_cli import up
from shoal_core.errors import InvalidArgument
from shoal_frontend.access.entrance import Entrance
from shoal_frontend.access.gate import Gate
from shoal_frontend.http_api.gateway import Gateway
from shoal_testing.direct import DirectSystem


async def test_the_gateway_names_the_port_that_it_took() -> None:
    system = DirectSystem()
    entrance = Entrance(system.database, Gate(system.clock))
    gateway = Gateway(entrance, system.clock, system.random)
    async with AsyncExitStack() as stack:
        host, _, port = (await up._serve_http(gateway, "127.0.0.1:0", stack)).rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert await up._serve_http(gateway, "", stack) == ""


@pytest.mark.parametrize(("grpc", "http", "field"), [("here", "", "grpc"), ("127.0.0.1:0", "here", "http")])
async def test_a_cluster_is_not_started_with_a_wrong_address(tmp_path: Path, grpc: str, http: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        await up.serve_cluster(tmp_path / "data", grpc, http, 1)
    assert not (tmp_path / "data").exists()


@pytest.mark.parametrize(("grpc", "http", "field"), [("0.0.0.0:0", "", "grpc"), ("127.0.0.1:0", "[::]:0", "http")])
async def test_strangers_are_not_served_unasked(tmp_path: Path, grpc: str, http: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=rf"^{field}: .*frontend\.access\.root_token") as caught:
        await up.serve_cluster(tmp_path / "data", grpc, http, 1)
    assert caught.value.field == field
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        async with up.embedded_server(tmp_path / "data", grpc, http):
            raise AssertionError("it listens")
    assert not (tmp_path / "data").exists()

"""Addresses of ``shoal up``."""

from __future__ import annotations

from contextlib import AsyncExitStack
from pathlib import Path

import pytest

from shoal_cli import up
from shoal_core.errors import InvalidArgument
from shoal_testing.direct import DirectSystem


async def test_the_gateway_names_the_port_that_it_took() -> None:
    database = DirectSystem().database
    async with AsyncExitStack() as stack:
        host, _, port = (await up._serve_http(database, "127.0.0.1:0", stack)).rpartition(":")
        assert host == "127.0.0.1"
        assert int(port) > 0
        assert await up._serve_http(database, "", stack) == ""


@pytest.mark.parametrize(("grpc", "http", "field"), [("here", "", "grpc"), ("127.0.0.1:0", "here", "http")])
async def test_a_cluster_is_not_started_with_a_wrong_address(tmp_path: Path, grpc: str, http: str, field: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{field}: "):
        await up.serve_cluster(tmp_path / "data", grpc, http, 1)
    assert not (tmp_path / "data").exists()

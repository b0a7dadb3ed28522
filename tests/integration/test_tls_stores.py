"""Postgres, etcd and S3 over TLS, as the settings of the configuration reach them, and not by whom they should not."""

from __future__ import annotations

import asyncio
import ssl
import struct
import sys
import urllib.parse
from contextlib import AsyncExitStack, ExitStack
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import pytest

from shoal_cli.peers import find_peers
from shoal_cli.security import open_security
from shoal_core.errors import ShoalError, Unavailable
from shoal_core.ports import Member
from shoal_runtime.authority import Authority
from shoal_runtime.config import Config, load
from shoal_runtime.servers.etcd import EtcdServer
from shoal_runtime.servers.ports import free_ports
from shoal_runtime.servers.process import ServerCommand
from shoal_runtime.servers.seaweedfs import SeaweedServer
from shoal_runtime.system import SystemClock
from shoal_runtime.telemetry import Telemetry
from shoal_storage.postgres import open_pool
from shoal_storage.s3_objects import S3Config, S3ObjectStore, ensure_bucket

pytestmark = [pytest.mark.integration, pytest.mark.asyncio]


class Certificates:
    """An authority, a server's certificate and a client's, and an authority that nobody knows."""

    def __init__(self, directory: Path) -> None:
        directory.mkdir()
        self.directory = directory
        now = datetime.now(UTC)
        authority = Authority.make("test", 5, now)
        for name, content in (("ca", authority), ("other", Authority.make("other", 5, now))):
            self.path(f"{name}.crt").write_bytes(content.pair.certificate)
        for name in ("server", "client"):
            authority.issue((name, "localhost", "127.0.0.1"), 5, now).write(
                self.path(f"{name}.crt"), self.path(f"{name}.key")
            )

    def path(self, name: str) -> Path:
        return self.directory / name


@pytest.fixture
def certificates(tmp_path: Path) -> Certificates:
    return Certificates(tmp_path / "certificates")


class SecureEtcd(EtcdServer):
    """Wants TLS and a certificate from its clients; its health is told in plain text elsewhere."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        super().__init__(directory)
        self._certificates = certificates
        self._metrics_port = free_ports(1)[0]

    def _command(self, program: Path) -> ServerCommand:
        command = super()._command(program)
        files = {"cert-file": "server.crt", "key-file": "server.key", "trusted-ca-file": "ca.crt"}
        more = [f"--{name}={self._certificates.path(file)}" for name, file in files.items()]
        plain = f"--listen-metrics-urls=http://127.0.0.1:{self._metrics_port}"
        secure = [part.replace("client-urls=http:", "client-urls=https:") for part in command.argv]
        return replace(command, argv=(*secure, *more, "--client-cert-auth=true", plain))

    async def _is_healthy(self) -> bool:
        try:
            _, writer = await asyncio.open_connection("127.0.0.1", self._metrics_port)
        except OSError:
            return False
        writer.close()
        return True


class SecureSeaweed(SeaweedServer):
    """Serves S3 over TLS too."""

    def __init__(self, directory: Path, certificates: Certificates) -> None:
        super().__init__(directory)
        self._certificates = certificates
        self._https_port = free_ports(1)[0]

    @property
    def https_url(self) -> str:
        return f"https://127.0.0.1:{self._https_port}"

    def _command(self, program: Path) -> ServerCommand:
        command = super()._command(program)
        files = [f"-s3.{name}.file={self._certificates.path(f'server.{end}')}" for name, end in _SEAWEED_FILES]
        return replace(command, argv=(*command.argv, f"-s3.port.https={self._https_port}", *files))


_SEAWEED_FILES = (("cert", "crt"), ("key", "key"))


async def test_members_meet_in_an_etcd_that_wants_certificates(tmp_path: Path, certificates: Certificates) -> None:
    server = SecureEtcd(tmp_path / "etcd", certificates)
    await server.start()
    try:
        files = {"ca_file": "ca.crt", "cert_file": "client.crt", "key_file": "client.key"}
        etcd = {name: certificates.path(file) for name, file in files.items()}
        endpoint = f"localhost:{server.endpoint.rpartition(':')[2]}"
        known = load({"etcd": {"endpoints": [server.endpoint], "server_name": "server", **etcd}})
        assert await meets_itself(known)
        assert await meets_itself(load({"etcd": {"endpoints": [endpoint], **etcd}}))
        assert not await meets_itself(load({"etcd": {"endpoints": [endpoint]}}))  # plain text
        wrong = {**etcd, "ca_file": certificates.path("other.crt")}
        assert not await meets_itself(load({"etcd": {"endpoints": [endpoint], **wrong}}))
        assert not await meets_itself(load({"etcd": {"endpoints": [endpoint], "ca_file": etcd["ca_file"]}}))
    finally:
        await server.stop()


async def meets_itself(config: Config) -> bool:
    """Whether a member that registers is in the registry."""
    async with AsyncExitStack() as stack:
        telemetry = Telemetry("sysdb")
        stack.callback(telemetry.close)
        security = open_security(
            "sysdb", config, SystemClock(), telemetry, stack.enter_context(ExitStack()), sys.stderr
        )
        peers = find_peers(config, security)
        stack.push_async_callback(peers.close)
        try:
            async with asyncio.timeout(4):
                await peers.start()
                await peers.registry.register(Member("sysdb", "sysdb-1", "127.0.0.1:1", 1.0))
                while not peers.registry.view().of("sysdb"):
                    await asyncio.sleep(0.05)
        except (TimeoutError, ShoalError):
            return False
        return True


async def test_objects_go_to_a_server_whose_authority_is_given(tmp_path: Path, certificates: Certificates) -> None:
    server = SecureSeaweed(tmp_path / "s3", certificates)
    await server.start()
    try:
        config = S3Config(
            "tls", server.https_url, server.access_key, server.secret_key, ca_file=certificates.path("ca.crt")
        )
        await asyncio.to_thread(ensure_bucket, config)
        store = S3ObjectStore(config)
        await store.put("a/b", b"hello")
        assert bytes(await store.get("a/b")) == b"hello"
        for wrong in (certificates.path("other.crt"), None):
            stranger = replace(config, ca_file=wrong, retries=0)
            with pytest.raises(Unavailable):
                await S3ObjectStore(stranger).get("a/b")
            with pytest.raises(Unavailable):
                await asyncio.to_thread(ensure_bucket, stranger)
    finally:
        await server.stop()


class TlsRelay:
    """Speaks TLS before a Postgres that cannot: the packaged one is built without it. Hands everything else on."""

    def __init__(self, port: int, certificates: Certificates) -> None:
        self._port = port
        self._context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        self._context.load_cert_chain(certificates.path("server.crt"), certificates.path("server.key"))

    async def start(self) -> asyncio.Server:
        return await asyncio.start_server(self._serve, "127.0.0.1", 0)

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            assert await reader.readexactly(8) == struct.pack("!ii", 8, 80_877_103)  # SSLRequest
            writer.write(b"S")
            await writer.start_tls(self._context)
            behind_reader, behind = await asyncio.open_connection("127.0.0.1", self._port)
            await asyncio.gather(_copy(reader, behind), _copy(behind_reader, writer))
        except (OSError, ssl.SSLError, EOFError):
            writer.close()


async def _copy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    while data := await reader.read(1 << 16):
        writer.write(data)
        await writer.drain()
    writer.close()


async def test_postgres_is_reached_by_its_authority_and_name(fresh_database: str, certificates: Certificates) -> None:
    place = urllib.parse.urlsplit(fresh_database)
    relay = await TlsRelay(place.port or 0, certificates).start()
    port = relay.sockets[0].getsockname()[1]
    try:
        secure = place._replace(netloc=f"{place.netloc.rpartition(':')[0]}:{port}")

        def dsn(authority: str) -> str:
            query = f"sslmode=verify-full&sslrootcert={certificates.path(authority)}"
            return urllib.parse.urlunsplit(secure._replace(query=query))

        pool = await open_pool(dsn("ca.crt"), application_name="test")
        assert await pool.fetchval("SELECT 1") == 1
        await pool.close()
        with pytest.raises(Unavailable):
            await open_pool(dsn("other.crt"), application_name="test")
    finally:
        relay.close()

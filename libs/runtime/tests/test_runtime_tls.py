"""TLS over real loopback connections: who is let in, by which certificate, and what changes while it runs."""

from __future__ import annotations

import asyncio
import os
import socket
import ssl
import subprocess
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from shoal_cluster.channels import ChannelPool
from shoal_core.audit import AuditEvent, Outcome
from shoal_runtime.authority import Authority
from shoal_runtime.callers import CALLERS, OPERATOR, RoleCheck
from shoal_runtime.certificates import CertificateFiles, Certificates
from shoal_runtime.config import ROLES
from shoal_runtime.handshakes import failed_handshake, refused_handshakes
from shoal_runtime.logs import standard_error as own_standard_error
from shoal_runtime.pages import Page, Pages
from shoal_runtime.server import GrpcServer
from shoal_runtime.system import SystemClock
from shoal_runtime.tls import MemberTls, ServerContext, channel_credentials, grpc_server_credentials, role_name

DOMAIN = "shoal.internal"
CLOCK = SystemClock()
LOG_SERVICE = "shoal.v1.LogService"

pytestmark = pytest.mark.asyncio


class Site:
    """An authority, and certificates by role in a directory."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.authority = self.new_authority()

    def new_authority(self) -> Authority:
        return Authority.make("test", 30, datetime.now(UTC))

    def issue(self, role: str, *, authority: Authority | None = None, trusted: Authority | None = None) -> Certificates:
        """A certificate of ``role`` by ``authority``, for one who trusts ``trusted``; as it is in the files now."""
        paths = [self.directory / f"{role}.{suffix}" for suffix in ("crt", "key", "ca")]
        names = (role_name(role, DOMAIN), "127.0.0.1")
        (authority or self.authority).issue(names, 5, datetime.now(UTC) + timedelta(0)).write(paths[0], paths[1])
        paths[2].write_bytes((trusted or self.authority).pair.certificate)
        return Certificates(CertificateFiles(paths[0], paths[1], paths[2], names[0]), CLOCK)


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@asynccontextmanager
async def serving(
    certificates: Certificates,
    *,
    clients: bool = True,
    interceptors: tuple[grpc.aio.ServerInterceptor, ...] = (),
) -> AsyncIterator[str]:
    """A server with `LOG_SERVICE` that echoes; its address."""
    credentials = grpc_server_credentials(certificates, clients=certificates if clients else None)
    server = GrpcServer([], CLOCK, credentials=credentials, interceptors=interceptors)

    async def echo(request: bytes, context: Any) -> bytes:
        return request

    handlers: dict[str, Any] = {"Append": grpc.unary_unary_rpc_method_handler(echo)}
    server.grpc_server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(LOG_SERVICE, handlers),))
    port = await server.start("127.0.0.1", 0)
    try:
        yield f"127.0.0.1:{port}"
    finally:
        await server.drain(0)


async def code_of(channel: grpc.aio.Channel) -> grpc.StatusCode:
    """How a call on the channel ends."""
    try:
        call: Any = channel.unary_unary(f"/{LOG_SERVICE}/Append")
        assert await call(b"x", timeout=5) == b"x"
    except grpc.aio.AioRpcError as error:
        return error.code()
    return grpc.StatusCode.OK


async def reached(address: str, caller: Certificates, role: str = "logservice") -> grpc.StatusCode:
    """How a call by a member with these certificates ends, to one that should be of ``role``."""
    pool = ChannelPool(clock=CLOCK, security=MemberTls(caller, DOMAIN))
    try:
        return await code_of(pool.get(address, role))
    finally:
        await pool.close()


async def test_members_know_each_other_by_their_roles(site: Site) -> None:
    caller = site.issue("frontend")
    async with serving(site.issue("logservice")) as address:
        assert await reached(address, caller) is grpc.StatusCode.OK
        assert await reached(address, caller, "sysdb") is grpc.StatusCode.UNAVAILABLE  # it is no sysdb
        stranger = Site(site.directory).issue("querynode", trusted=site.authority)
        assert await reached(address, stranger) is grpc.StatusCode.UNAVAILABLE
        believer = site.issue("compactor", trusted=site.new_authority())
        assert await reached(address, believer) is grpc.StatusCode.UNAVAILABLE
        async with grpc.aio.insecure_channel(address) as plain:
            assert await code_of(plain) is grpc.StatusCode.UNAVAILABLE


async def test_a_certificate_of_ones_own_is_needed_only_where_it_is_asked_for(site: Site) -> None:
    certificates = site.issue("logservice")
    named = (("grpc.ssl_target_name_override", role_name("logservice", DOMAIN)),)
    credentials = grpc.ssl_channel_credentials(certificates.material.roots)
    for clients, expected in ((False, grpc.StatusCode.OK), (True, grpc.StatusCode.UNAVAILABLE)):
        async with (
            serving(certificates, clients=clients) as address,
            grpc.aio.secure_channel(address, credentials, options=named) as channel,
        ):
            assert await code_of(channel) is expected


async def test_a_role_may_call_what_the_table_says_and_is_audited_otherwise(site: Site) -> None:
    events: list[AuditEvent] = []
    check = RoleCheck(DOMAIN, events.append)
    async with serving(site.issue("logservice"), interceptors=(check,)) as address:
        for role in (*ROLES, OPERATOR):
            allowed = role in CALLERS[LOG_SERVICE]
            code = await reached(address, site.issue(role) if role != "logservice" else site.issue("sysdb"))
            assert code is (grpc.StatusCode.OK if allowed else grpc.StatusCode.PERMISSION_DENIED), role
        refused = {event.principal for event in events}
        assert refused == {"sysdb", "operator"}
        assert all(event.outcome is Outcome.REFUSED and event.peer.startswith("127.0.0.1:") for event in events)
        assert {event.verb for event in events} == {f"{LOG_SERVICE}/Append"}


async def test_health_is_for_every_member(site: Site) -> None:
    check = RoleCheck(DOMAIN, lambda event: None)
    named = (("grpc.ssl_target_name_override", role_name("logservice", DOMAIN)),)
    async with serving(site.issue("logservice"), interceptors=(check,)) as address:
        credentials = channel_credentials(site.issue(OPERATOR))
        async with grpc.aio.secure_channel(address, credentials, options=named) as channel:
            stub: Any = health_pb2_grpc.HealthStub(channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=5)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING


async def test_new_connections_have_new_certificates_and_old_ones_go_on(site: Site) -> None:
    server, caller = site.issue("logservice"), site.issue("frontend")
    pool = ChannelPool(clock=CLOCK, security=MemberTls(caller, DOMAIN))
    caller.subscribe(pool.renew)
    async with serving(server) as address:
        before = pool.get(address, "logservice")
        assert await code_of(before) is grpc.StatusCode.OK
        second = site.new_authority()
        for role, certificates in (("logservice", server), ("frontend", caller)):
            site.issue(role, authority=second, trusted=second)
            assert await certificates.refresh()
        assert await code_of(before) is grpc.StatusCode.OK
        after = pool.get(address, "logservice")
        assert after is not before
        assert await code_of(after) is grpc.StatusCode.OK
        assert await reached(address, site.issue("compactor")) is grpc.StatusCode.UNAVAILABLE  # of the first authority
    await pool.close()


@asynccontextmanager
async def pages(context: ServerContext) -> AsyncIterator[int]:
    served = Pages({"/live": lambda: Page(b"ok\n")}, tls=context.context)
    port = await served.start("127.0.0.1", 0)
    try:
        yield port
    finally:
        await served.close()


async def fetched(port: int, client: ssl.SSLContext) -> bytes:
    """The page; empty if the handshake fails."""
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=client, server_hostname="127.0.0.1")
        writer.write(b"GET /live HTTP/1.1\r\n\r\n")
        answer = await reader.read()
        writer.close()
    except (OSError, ssl.SSLError):
        return b""
    return answer.rpartition(b"\r\n")[2]


def client_context(site: Site, authority: Authority | None = None, certificates: Certificates | None = None) -> Any:
    context = ssl.create_default_context(cadata=(authority or site.authority).pair.certificate.decode())
    if certificates is not None and (files := certificates.files).cert_file is not None:
        context.load_cert_chain(files.cert_file, files.key_file)
    return context


async def test_http_ports_change_certificate_and_authority_while_they_run(site: Site) -> None:
    own = site.issue("querynode")
    member = client_context(site, certificates=site.issue("frontend"))
    async with pages(ServerContext(own, clients=own)) as port:
        assert await fetched(port, member) == b"ok\n"
        second = site.new_authority()
        site.issue("querynode", authority=second, trusted=second)
        assert await own.refresh()
        assert await fetched(port, member) == b""  # it does not trust the server any more
        member = client_context(site, second, site.issue("frontend"))
        assert await fetched(port, member) == b""  # and the server does not trust it
        member = client_context(site, second, site.issue("frontend", authority=second))
        assert await fetched(port, member) == b"ok\n"


async def test_where_members_are_asked_for_certificates_no_session_outlives_an_authority(site: Site) -> None:
    own = site.issue("querynode")
    member = client_context(site, certificates=site.issue("frontend"))
    async with pages(ServerContext(own, clients=own)) as port:
        older = client_context(site, certificates=site.issue("compactor"))
        older.maximum_version = ssl.TLSVersion.TLSv1_2  # whose sessions could be resumed
        with pytest.raises(OSError):  # noqa: PT011  # by the time, the alert or the end of the connection
            await asyncio.to_thread(_session, port, older, None)
        session = await asyncio.to_thread(_session, port, member, None)
        second = site.new_authority()
        site.issue("querynode", trusted=second)
        assert await own.refresh()
        with pytest.raises(OSError):  # noqa: PT011  # as above
            await asyncio.to_thread(_session, port, member, session)


def _session(port: int, client: ssl.SSLContext, session: ssl.SSLSession | None) -> ssl.SSLSession | None:
    """Fetch a page, resuming a session if there is one; the session afterwards."""
    plain = socket.create_connection(("127.0.0.1", port), timeout=5)
    with client.wrap_socket(plain, server_hostname="127.0.0.1", session=session) as secure:
        secure.sendall(b"GET /live HTTP/1.1\r\n\r\n")
        if not secure.recv(1 << 16):
            raise ConnectionError("closed")
        return secure.session


async def test_http_ports_tell_of_handshakes_that_failed(site: Site) -> None:
    own = site.issue("querynode")
    reasons: list[str] = []
    async with pages(ServerContext(own, clients=own, refused=reasons.append)) as port:
        assert await fetched(port, client_context(site)) == b""
        assert reasons == ["peer did not return a certificate"]
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /live HTTP/1.1\r\n\r\n")
        await reader.read()
        writer.close()
        assert reasons[1:] == ["http request"]


async def test_every_service_is_in_the_table_and_is_called_by_roles_that_there_are() -> None:
    assert set(CALLERS) == {
        f"shoal.v1.{name}Service" for name in ("Catalog", "Access", "Functions", "Log", "Query", "Compactor")
    }
    assert {role for roles in CALLERS.values() for role in roles} <= {*ROLES, OPERATOR}


@contextmanager
def standard_error() -> Iterator[Callable[[], bytes]]:
    """Standard error of this process into a pipe; what came out of it."""
    before = os.dup(2)
    reading, writing = os.pipe()
    os.dup2(writing, 2)
    os.close(writing)
    try:
        yield lambda: os.read(reading, 1 << 16)
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(reading)


@contextmanager
def standard_error_drained() -> Iterator[None]:
    """Standard error into nothing."""
    before, nothing = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    os.dup2(nothing, 2)
    try:
        yield
    finally:
        os.dup2(before, 2)
        os.close(before)
        os.close(nothing)


async def test_standard_error_goes_on_and_failed_handshakes_are_told() -> None:
    line = (
        b"I1126 20:28:51.791798   29464 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
        b"error:100000c0:SSL routines:OPENSSL_internal:PEER_DID_NOT_RETURN_A_CERTIFICATE: Invalid certificate"
    )
    assert failed_handshake(line) == "peer did not return a certificate"
    assert failed_handshake(b'{"message": "' + line) is None  # what a caller can bring into a log line
    assert failed_handshake(b"I1126 ssl_transport_security.cc:2563] something else") is None
    reasons: list[str] = []
    with standard_error() as written:
        with refused_handshakes(reasons.append):
            os.write(2, b"before\n" + line[:40])
            os.write(2, line[40:] + b"\nafter\n")
        assert written() == b"before\n" + line + b"\nafter\n"
    assert reasons == ["peer did not return a certificate"]


async def test_who_is_told_may_log_at_length() -> None:
    """Into the standard error of its own: into the pipe, its only reader would wait for itself."""
    line = (
        b"I1126 20:28:51.791798   29464 ssl_transport_security.cc:2563] Handshake failed with error SSL_ERROR_SSL: "
        b"error:1:SSL routines:OPENSSL_internal:WRONG_VERSION_NUMBER: Invalid\n"
    )

    def told(reason: str) -> None:
        logs.write(f"{reason * 50}\n")

    with standard_error_drained():
        logs = own_standard_error()
        with refused_handshakes(told):
            await asyncio.to_thread(lambda: [os.write(2, line) for _ in range(2_000)])
    logs.close()


_REFUSING = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import grpc.aio
from test_runtime_tls import Site, code_of, serving
from shoal_runtime.handshakes import refused_handshakes

async def main():
    async with serving(Site(Path({directory!r})).issue("logservice")) as address:
        async with grpc.aio.insecure_channel(address) as plain:
            print(await code_of(plain))

with refused_handshakes(lambda reason: print(reason)):
    asyncio.run(main())
"""


async def test_grpc_tells_of_handshakes_on_standard_error(tmp_path: Path) -> None:
    """What `refused_handshakes` depends on, with the gRPC that is installed."""
    script = _REFUSING.format(tests=str(Path(__file__).parent), directory=str(tmp_path))
    done = await asyncio.to_thread(
        subprocess.run, [sys.executable, "-c", script], capture_output=True, text=True, timeout=60, check=True
    )
    assert "wrong version number" in done.stdout
    assert "Handshake failed" in done.stderr

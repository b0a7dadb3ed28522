"""Where a client's `PublicApi` comes from: frontends over gRPC, or a whole system in this process."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from shoal_core.contracts import PublicApi
from shoal_core.errors import FailedPrecondition, InvalidArgument

if TYPE_CHECKING:
    import grpc

EMBEDDED_GROUP = "shoal.embedded"
EMBEDDED_NAME = "default"

_ADDRESS = re.compile(r"(\[[0-9A-Fa-f:.%]+\]|[^\s:/\[\],]+):([0-9]{1,5})")

# Probing every 10 s is what servers allow; a lost frontend is given up 5 s later, an unreachable one after 2 s.
_CHANNEL_OPTIONS = (
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 5_000),
    ("grpc.http2.ping_timeout_ms", 5_000),
    ("grpc.http2.max_pings_without_data", 0),
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 2_000),
    ("grpc.max_reconnect_backoff_ms", 2_000),
    ("grpc.enable_retries", 0),  # `_calls` retries; two layers would multiply
    ("grpc.enable_http_proxy", 0),
)


class EmbeddedSystem(Protocol):
    """A whole Shoal in this process, as the entry point ``default`` of the group ``shoal.embedded`` makes it.

    The entry point is a callable ``(path: Path, **options) -> EmbeddedSystem`` that does nothing yet.
    """

    @property
    def api(self) -> PublicApi:
        """The public API; usable between `start` and `close`."""
        ...

    async def start(self) -> None:
        """Start on the running event loop, which every later call uses too."""
        ...

    async def close(self) -> None:
        """Stop everything; also after a `start` that failed."""
        ...


@dataclass(frozen=True, slots=True)
class Connection:
    """Endpoints that serve the same data, and what releases them. ``name`` is for display."""

    endpoints: tuple[PublicApi, ...]
    name: str
    close: Callable[[], Awaitable[None]]


def parse_addresses(text: str) -> tuple[str, ...]:
    """The addresses in ``"host1:port,host2:port"``, each once. Raises `InvalidArgument`."""
    addresses = tuple(dict.fromkeys(part.strip() for part in text.split(",")))
    for address in addresses:
        match = _ADDRESS.fullmatch(address)
        if match is None or not 0 < int(match[2]) < 65_536:
            hint = " without a scheme: the SDK speaks gRPC" if "//" in address else ""
            raise InvalidArgument(f"expected host:port{hint}, got {address!r}", field="address")
    return addresses


def tls_credentials(
    ca_file: str | Path | None = None, cert_file: str | Path | None = None, key_file: str | Path | None = None
) -> grpc.ChannelCredentials:
    """For ``credentials`` of `connect`: TLS, with a certificate of one's own where the frontend wants one. Files are PEM.

    Args:
        ca_file: who signs the frontends' certificates; None for the authorities that come with gRPC.
        cert_file, key_file: a certificate with its chain, and its private key; both or neither.

    Raises:
        InvalidArgument: a file cannot be read, or only one of certificate and key is given.
    """
    import grpc

    if (cert_file is None) != (key_file is None):
        missing = "cert_file" if cert_file is None else "key_file"
        raise InvalidArgument("give both a certificate and its key", field=missing)
    roots = _pem(ca_file, "ca_file")
    return grpc.ssl_channel_credentials(roots, _pem(key_file, "key_file"), _pem(cert_file, "cert_file"))


def _pem(path: str | Path | None, field: str) -> bytes | None:
    if path is None:
        return None
    try:
        return Path(path).read_bytes()
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}", field=field) from error


async def connect_frontends(
    addresses: tuple[str, ...], timeout_ms: int, credentials: grpc.ChannelCredentials | None, token: str = ""
) -> Connection:
    """One channel per address; nothing is sent yet. Needs the running event loop.

    Raises `InvalidArgument` for a token that no metadata can carry.
    """
    if not token.isascii() or not token.isprintable():
        raise InvalidArgument("expected printable ASCII", field="token")
    # gRPC and its messages take longest to import; an embedded system does not need them here.
    import grpc.aio

    from shoal_wire.clients.public import PublicClient
    from shoal_wire.messages import message_options

    options = [*message_options(), *_CHANNEL_OPTIONS]
    channels = [
        grpc.aio.insecure_channel(address, options=options)
        if credentials is None
        else grpc.aio.secure_channel(address, credentials, options=options)
        for address in addresses
    ]

    async def close() -> None:
        for channel in channels:
            await channel.close()

    return Connection(
        tuple(PublicClient(channel, timeout_ms, token=token) for channel in channels), ",".join(addresses), close
    )


async def open_embedded(path: str | Path, options: Mapping[str, Any]) -> Connection:
    """Start the whole system on the directory ``path``, on the running event loop.

    Raises:
        FailedPrecondition: no installed package offers it.
        ShoalError: what the start raises.
    """
    system = _make_embedded(Path(path), options)
    try:
        await system.start()
    except BaseException:
        await system.close()
        raise
    return Connection((system.api,), str(path), system.close)


def _make_embedded(path: Path, options: Mapping[str, Any]) -> EmbeddedSystem:
    make: Callable[..., EmbeddedSystem] = _embedded_entry_point().load()
    return make(path.expanduser(), **options)


def _embedded_entry_point() -> EntryPoint:
    found = tuple(entry_points(group=EMBEDDED_GROUP, name=EMBEDDED_NAME))
    if not found:
        raise FailedPrecondition(
            "connect(path=...) runs the whole system in this process, which the package shoal-cli brings; install "
            "shoal-cli[local], or connect to a running frontend with connect('host:port')",
            field="path",
        )
    return found[0]

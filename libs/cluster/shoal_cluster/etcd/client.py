"""etcd over grpc.aio: get, put, delete, lease, watch.

Every method is one request and raises `Unavailable` for whatever may pass by itself (no connection, no leader, no
answer in time). Nothing is retried here: the registry decides what a failure means.
"""

from __future__ import annotations

import asyncio
import ipaddress
from collections.abc import AsyncGenerator, Callable, Sequence
from dataclasses import dataclass
from typing import TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message

from shoal_cluster.etcd import messages_pb2 as pb
from shoal_core.errors import InvalidArgument, NotFound, OffsetExpired, ShoalError, Unavailable

Request = TypeVar("Request", bound=Message)
Response = TypeVar("Response", bound=Message)

# A watch that reached a server cut off from its cluster would be silent for ever; with this etcd ends it instead.
REQUIRE_LEADER = (("hasleader", "true"),)


@dataclass(frozen=True, slots=True)
class KeyValue:
    """One key. ``mod_revision`` is the store's revision at its last change."""

    key: bytes
    value: bytes
    mod_revision: int
    lease_id: int = 0


@dataclass(frozen=True, slots=True)
class Snapshot:
    """The keys under a prefix at one revision. ``cluster_id`` and ``raft_term`` help to notice another store."""

    cluster_id: int
    raft_term: int
    revision: int
    pairs: tuple[KeyValue, ...]


@dataclass(frozen=True, slots=True)
class Lease:
    """A granted lease and its time to live in seconds, which etcd may have raised."""

    id: int
    ttl_s: float


@dataclass(frozen=True, slots=True)
class WatchEvent:
    """One change of one key; ``value`` is None for a deletion."""

    key: bytes
    value: bytes | None
    mod_revision: int


@dataclass(frozen=True, slots=True)
class WatchBatch:
    """What one message of a watch brings.

    Attributes:
        created: True for the first one, which has no events: from here on nothing is missed.
        events: in revision order; empty for ``created`` and for progress notices.
        resume_at: the ``start_revision`` that continues after this batch without loss.
    """

    created: bool
    events: tuple[WatchEvent, ...]
    resume_at: int


def channel_target(endpoints: Sequence[str]) -> str:
    """The gRPC target of ``host:port`` endpoints: several of them as literal addresses, or one name to be resolved.

    Raises:
        InvalidArgument: no endpoint, one without a port, or several that are not addresses of one family.
    """
    parts = [endpoint.rpartition(":") for endpoint in endpoints]
    if not parts or not all(host and port.isdigit() for host, _, port in parts):
        raise InvalidArgument("give at least one endpoint as host:port", field="etcd.endpoints")
    versions = {_ip_version(host.strip("[]")) for host, _, _ in parts}
    if versions == {4} or versions == {6}:
        return f"ipv{versions.pop()}:{','.join(endpoints)}"
    if len(endpoints) == 1:
        return f"dns:///{endpoints[0]}"
    raise InvalidArgument(
        "several endpoints must be addresses of one family; else give one name that resolves to all of them",
        field="etcd.endpoints",
    )


def _ip_version(host: str) -> int:
    try:
        return ipaddress.ip_address(host).version
    except ValueError:
        return 0


def channel_options(timeout_ms: int) -> tuple[tuple[str, int | str], ...]:
    """Options that notice a closed connection at once, a frozen etcd within 8 s and a revived one within 1 s."""
    return (
        ("grpc.lb_policy_name", "round_robin"),
        # etcd drops clients that probe more often than every 5 s, unless its --grpc-keepalive-min-time allows it.
        ("grpc.keepalive_time_ms", 6_000),
        ("grpc.keepalive_timeout_ms", 2_000),
        ("grpc.http2.ping_timeout_ms", 2_000),  # this one decides; its default is a minute
        ("grpc.http2.max_pings_without_data", 0),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", timeout_ms),
        ("grpc.max_reconnect_backoff_ms", 1_000),
        ("grpc.max_receive_message_length", 64 << 20),
        ("grpc.enable_retries", 0),
        ("grpc.enable_http_proxy", 0),
    )


def prefix_end(prefix: bytes) -> bytes:
    """The first key after all keys that start with ``prefix``; ``\\0`` (all keys) if there is none."""
    stripped = prefix.rstrip(b"\xff")
    return stripped[:-1] + bytes([stripped[-1] + 1]) if stripped else b"\0"


class EtcdClient:
    """One channel to an etcd cluster.

    Args:
        endpoints: see `channel_target`.
        timeout_ms: bound of one request.
        credentials: for TLS; None speaks plain text.
        server_name: that the servers' certificates must have; empty for the host of the endpoint.
    """

    def __init__(
        self,
        endpoints: Sequence[str],
        *,
        timeout_ms: int = 2_000,
        credentials: grpc.ChannelCredentials | None = None,
        server_name: str = "",
    ) -> None:
        named = (("grpc.ssl_target_name_override", server_name),) if server_name else ()
        self._target, self._options = channel_target(endpoints), (*channel_options(timeout_ms), *named)
        self._channel = self._open(credentials)
        self._timeout_s = timeout_ms / 1_000

    def _open(self, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
        if credentials is None:
            return grpc.aio.insecure_channel(self._target, options=self._options)
        return grpc.aio.secure_channel(self._target, credentials, options=self._options)

    def renew(self, credentials: grpc.ChannelCredentials) -> None:
        """Use other credentials for what begins from now on. A watch under way keeps its connection until that ends."""
        self._channel = self._open(credentials)

    async def get_prefix(self, prefix: bytes) -> Snapshot:
        """All keys under ``prefix`` at the newest revision, linearizable."""
        request = pb.RangeRequest(key=prefix, range_end=prefix_end(prefix))
        response = await self._unary("/etcdserverpb.KV/Range", request, pb.RangeResponse.FromString)
        pairs = tuple(KeyValue(kv.key, kv.value, kv.mod_revision, kv.lease) for kv in response.kvs)
        header = response.header
        return Snapshot(header.cluster_id, header.raft_term, header.revision, pairs)

    async def put(self, key: bytes, value: bytes, lease_id: int = 0) -> int:
        """Set a key and return the revision. Raises `NotFound` if the lease is gone."""
        request = pb.PutRequest(key=key, value=value, lease=lease_id)
        response = await self._unary("/etcdserverpb.KV/Put", request, pb.PutResponse.FromString)
        return response.header.revision

    async def delete(self, key: bytes) -> int:
        """Delete a key and return the revision; an absent key is success."""
        request = pb.DeleteRangeRequest(key=key)
        response = await self._unary("/etcdserverpb.KV/DeleteRange", request, pb.DeleteRangeResponse.FromString)
        return response.header.revision

    async def compact(self, revision: int) -> None:
        """Drop the history below ``revision``. Raises `OffsetExpired` if that has happened before."""
        request = pb.CompactionRequest(revision=revision, physical=True)
        await self._unary("/etcdserverpb.KV/Compact", request, pb.CompactionResponse.FromString)

    async def lease_grant(self, ttl_s: int) -> Lease:
        """A new lease. It ends ``ttl_s`` after the last keepalive; count from before the request was sent."""
        request = pb.LeaseGrantRequest(TTL=ttl_s)
        response = await self._unary("/etcdserverpb.Lease/LeaseGrant", request, pb.LeaseGrantResponse.FromString)
        if response.error:
            raise Unavailable(f"etcd granted no lease: {response.error}")
        return Lease(response.ID, float(response.TTL))

    async def lease_keepalive(self, lease_id: int) -> float:
        """Renew once; the new time to live in seconds, 0.0 if there is no such lease any more."""
        call = self._channel.stream_stream(
            "/etcdserverpb.Lease/LeaseKeepAlive",
            request_serializer=_serialize,
            response_deserializer=pb.LeaseKeepAliveResponse.FromString,
        )(timeout=self._timeout_s, metadata=REQUIRE_LEADER)
        try:
            await call.write(pb.LeaseKeepAliveRequest(ID=lease_id))
            async for response in call:
                return float(response.TTL)
            raise Unavailable("etcd ended the keepalive without an answer")
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await _stream_error(call, error) from error
        finally:
            call.cancel()

    async def lease_revoke(self, lease_id: int) -> None:
        """End a lease and delete its keys; an absent lease is success."""
        request = pb.LeaseRevokeRequest(ID=lease_id)
        try:
            await self._unary("/etcdserverpb.Lease/LeaseRevoke", request, pb.LeaseRevokeResponse.FromString)
        except NotFound:
            return

    async def watch(self, prefix: bytes, start_revision: int = 0) -> AsyncGenerator[WatchBatch, None]:
        """Changes under ``prefix`` from ``start_revision`` on (0: from now on), until it raises.

        The first batch comes within the client's time limit and has ``created`` set. Continue a broken watch at the
        last ``resume_at``, but only where the data directory is sure to be the same: revisions start again in an
        empty one.

        Raises:
            OffsetExpired: ``start_revision`` was compacted; list and watch from there.
            Unavailable: the stream ended.
        """
        create = pb.WatchCreateRequest(
            key=prefix, range_end=prefix_end(prefix), start_revision=start_revision, progress_notify=True
        )
        call = self._channel.stream_stream(
            "/etcdserverpb.Watch/Watch",
            request_serializer=_serialize,
            response_deserializer=pb.WatchResponse.FromString,
        )(metadata=REQUIRE_LEADER)
        try:
            async with asyncio.timeout(self._timeout_s):
                await call.write(pb.WatchRequest(create_request=create))
                response = await call.read()
            while isinstance(response, pb.WatchResponse):
                yield _batch(response, start_revision)
                response = await call.read()
            raise Unavailable("etcd ended the watch")
        except TimeoutError as error:
            raise Unavailable("etcd did not open the watch in time") from error
        except (grpc.aio.AioRpcError, asyncio.InvalidStateError) as error:
            raise await _stream_error(call, error) from error
        finally:
            call.cancel()

    async def close(self) -> None:
        """Release the connection; calls in flight are cancelled."""
        await self._channel.close()

    async def _unary(self, method: str, request: Message, parse: Callable[[bytes], Response]) -> Response:
        call = self._channel.unary_unary(method, request_serializer=_serialize, response_deserializer=parse)
        try:
            return await call(request, timeout=self._timeout_s)
        except grpc.aio.AioRpcError as error:
            raise _error(error.code(), error.details()) from error


def _serialize(message: Message) -> bytes:
    return message.SerializeToString()


def _batch(response: pb.WatchResponse, start_revision: int) -> WatchBatch:
    if response.compact_revision:
        raise OffsetExpired(
            f"revision {start_revision} lies below etcd's compaction at {response.compact_revision}; list again"
        )
    if response.canceled:
        raise Unavailable(f"etcd cancelled the watch: {response.cancel_reason}")
    events = tuple(
        WatchEvent(e.kv.key, e.kv.value if e.type == pb.Event.PUT else None, e.kv.mod_revision) for e in response.events
    )
    if events:
        # The header's revision may be ahead of the events of this message: resuming there would lose the rest.
        return WatchBatch(False, events, events[-1].mod_revision + 1)
    if response.created and start_revision:
        return WatchBatch(True, (), start_revision)
    return WatchBatch(response.created, (), response.header.revision + 1)


async def _stream_error(call: grpc.aio.Call, error: Exception) -> ShoalError:
    # Writing to a stream that has failed raises InvalidStateError; the call itself knows the reason.
    if isinstance(error, grpc.aio.AioRpcError):
        return _error(error.code(), error.details())
    call.cancel()
    return _error(await call.code(), await call.details())


def _error(code: grpc.StatusCode, details: str | None) -> ShoalError:
    if code == grpc.StatusCode.NOT_FOUND:
        return NotFound(f"etcd: {details}")
    if code == grpc.StatusCode.OUT_OF_RANGE:
        return OffsetExpired(f"etcd: {details}")
    return Unavailable(f"etcd: {code.name}: {details}")

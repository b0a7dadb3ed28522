"""One gRPC channel per address, opened on first use and closed when the last member at it leaves."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Protocol

import grpc
import grpc.aio

from shoal_core.errors import Unavailable
from shoal_core.ports import Clock, MembershipView


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """Limits and keepalive of the connections between processes; both ends use the same ones.

    Attributes:
        max_message_bytes: bound of one request or answer.
        keepalive_time_ms: an idle connection with calls is probed after this time.
        keepalive_timeout_ms: and given up this much later without an answer.
        max_reconnect_backoff_ms: the longest wait before a lost peer is tried again.
    """

    max_message_bytes: int = 64 << 20
    keepalive_time_ms: int = 10_000
    keepalive_timeout_ms: int = 5_000
    max_reconnect_backoff_ms: int = 2_000

    def client_options(self) -> tuple[tuple[str, int], ...]:
        """Options of a channel."""
        return (
            *self._common(),
            ("grpc.http2.max_pings_without_data", 0),
            ("grpc.initial_reconnect_backoff_ms", 100),
            ("grpc.min_reconnect_backoff_ms", self.max_reconnect_backoff_ms),
            ("grpc.max_reconnect_backoff_ms", self.max_reconnect_backoff_ms),
            ("grpc.enable_retries", 0),  # `calls` retries; two layers would multiply
            ("grpc.enable_http_proxy", 0),
        )

    def server_options(self) -> tuple[tuple[str, int], ...]:
        """Options of a server that accepts these clients: without them it drops whoever probes this often."""
        return (
            *self._common(),
            ("grpc.http2.min_ping_interval_without_data_ms", self.keepalive_time_ms // 2),
            ("grpc.http2.max_ping_strikes", 0),
        )

    def _common(self) -> tuple[tuple[str, int], ...]:
        return (
            ("grpc.max_send_message_length", self.max_message_bytes),
            ("grpc.max_receive_message_length", self.max_message_bytes),
            ("grpc.keepalive_time_ms", self.keepalive_time_ms),
            ("grpc.keepalive_timeout_ms", self.keepalive_timeout_ms),
            ("grpc.http2.ping_timeout_ms", self.keepalive_timeout_ms),  # this one decides; its default is a minute
        )


class ChannelSecurity(Protocol):
    """TLS towards members."""

    def credentials(self) -> grpc.ChannelCredentials:
        """Of channels opened now."""
        ...

    def server_name(self, role: str) -> str:
        """What the certificate of a member of this role must name: addresses come and go."""
        ...


class ChannelPool:
    """Channels by address. Ask with `get` for every call: a channel that was kept may be closed.

    Args:
        clock: for the grace time.
        security: for TLS; None speaks plain text. Call `renew` when its certificates change.
        close_grace_ms: how long calls in flight may go on when their member has left the view.
    """

    def __init__(
        self,
        settings: ChannelSettings | None = None,
        *,
        clock: Clock,
        security: ChannelSecurity | None = None,
        close_grace_ms: float = 30_000.0,
    ) -> None:
        self._options = (settings or ChannelSettings()).client_options()
        self._clock = clock
        self._security = security
        self._close_grace_s = close_grace_ms / 1_000
        self._channels: dict[tuple[str, str], grpc.aio.Channel] = {}
        self._leaving: dict[asyncio.Task[None], grpc.aio.Channel] = {}
        self._closed = False

    def get(self, address: str, role: str = "") -> grpc.aio.Channel:
        """The channel to a member of ``role`` at ``host:port``; connects at its first call. Raises `Unavailable` after `close`."""
        if self._closed:
            raise Unavailable("this process is shutting down; call another one")
        # An address may pass to a member of another role, whose certificate has another name.
        channel = self._channels.get((address, role))
        if channel is None:
            channel = self._channels[address, role] = self._open(address, role)
        return channel

    def addresses(self) -> frozenset[str]:
        """Addresses with a channel."""
        return frozenset(address for address, _ in self._channels)

    def follow(self, view: MembershipView) -> None:
        """A listener for `Registry.subscribe`: drop the channels to addresses that are in no member of ``view``."""
        self.retain({member.address for members in view.members.values() for member in members})

    def retain(self, addresses: Collection[str]) -> None:
        """Drop the channels to all other addresses, and close them when the grace time is over."""
        kept = set(addresses)
        self._drop([key for key in self._channels if key[0] not in kept])

    def renew(self) -> None:
        """Open all channels anew, with the credentials of now; calls under way end on the old ones within the grace time."""
        self._drop([*self._channels])

    def _drop(self, keys: Collection[tuple[str, str]]) -> None:
        for key in keys:
            channel = self._channels.pop(key)
            task = asyncio.get_running_loop().create_task(self._close_later(channel), name=f"close-channel-{key[0]}")
            self._leaving[task] = channel
            task.add_done_callback(lambda done: self._leaving.pop(done, None))

    async def close(self) -> None:
        """Close every channel now; calls in flight are cancelled."""
        self._closed = True
        channels = (*self._channels.values(), *self._leaving.values())
        tasks = tuple(self._leaving)
        self._channels.clear()
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, *(channel.close() for channel in channels), return_exceptions=True)

    async def _close_later(self, channel: grpc.aio.Channel) -> None:
        # Not gRPC's own grace time: a close that waits can no longer be hurried.
        await self._clock.sleep(self._close_grace_s)
        await channel.close()

    def _open(self, address: str, role: str) -> grpc.aio.Channel:
        if self._security is None:
            return grpc.aio.insecure_channel(address, options=self._options)
        options = (*self._options, ("grpc.ssl_target_name_override", self._security.server_name(role)))
        return grpc.aio.secure_channel(address, self._security.credentials(), options=options)

"""The member registry: `EtcdRegistry` for a cluster, `StaticRegistry` for one process or a fixed list of members."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Callable, Iterable

from shoal_cluster.calls import Deadline, RetryPolicy, call_with_retry
from shoal_cluster.etcd.client import EtcdClient
from shoal_cluster.membership import (
    LeaseState,
    MembershipState,
    encode_member,
    member_key,
    members_prefix,
    membership_view,
    validate_member,
)
from shoal_core.errors import NotFound, ShoalError
from shoal_core.ports import Clock, Member, MembershipView, Random

logger = logging.getLogger(__name__)

Listener = Callable[[MembershipView], None]
RECONNECT = RetryPolicy(max_attempts=3, initial_backoff_ms=50, max_backoff_ms=1_000, multiplier=2.0, jitter=0.5)


class _Listeners:
    """The listeners of a registry. One that raises is logged and keeps nobody from hearing."""

    def __init__(self) -> None:
        self._listeners: dict[object, Listener] = {}

    def add(self, listener: Listener) -> Callable[[], None]:
        handle = object()
        self._listeners[handle] = listener

        def remove() -> None:
            self._listeners.pop(handle, None)

        return remove

    def notify(self, view: MembershipView) -> None:
        for listener in tuple(self._listeners.values()):
            try:
                listener(view)
            except Exception:
                logger.exception("a listener of the member registry failed")


class StaticRegistry:
    """A registry inside one process: a fixed list of members, plus those that register here."""

    def __init__(self, members: Iterable[Member] = ()) -> None:
        self._fixed = tuple(members)
        for member in self._fixed:
            validate_member(member)
        self._own: dict[tuple[str, str], Member] = {}
        self._listeners = _Listeners()
        self._view = membership_view(0, self._fixed)

    async def register(self, member: Member) -> None:
        """Add ``member``; several may be registered."""
        validate_member(member)
        self._own[member.role, member.id] = member
        self._publish()

    async def deregister(self) -> None:
        """Remove all members that were registered."""
        if self._own:
            self._own.clear()
            self._publish()

    def view(self) -> MembershipView:
        """The present view, always connected."""
        return self._view

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `Registry.subscribe`."""
        return self._listeners.add(listener)

    async def start(self) -> None:
        """Nothing to wait for."""

    async def close(self) -> None:
        """Remove what was registered."""
        await self.deregister()

    def _publish(self) -> None:
        members = {(m.role, m.id): m for m in self._fixed} | self._own
        self._view = membership_view(self._view.revision + 1, members.values())
        self._listeners.notify(self._view)


class EtcdRegistry:
    """The members of a cluster in etcd, under keys ``/shoal/<cluster>/members/<role>/<id>``.

    Nothing here waits for etcd to come back: `register` and `start` try once and go on in the background, the last
    known view stays with ``connected=False``. Members register again by themselves when their lease or key is gone.

    Args:
        client: owned from now on; closed by `close`. Its time limit should be well below ``lease_ttl_s``.
        cluster: name of the cluster, a path segment.
        lease_ttl_s: how long a silent member stays in the views; whole seconds, at least 2.
    """

    def __init__(self, client: EtcdClient, cluster: str, *, clock: Clock, random: Random, lease_ttl_s: int = 5) -> None:
        self._client = client
        self._cluster = cluster
        self._clock = clock
        self._random = random
        self._lease_ttl_s = lease_ttl_s
        self._prefix = members_prefix(cluster)
        self._own: dict[bytes, bytes] = {}
        self._lease = LeaseState()
        self._state = MembershipState(self._prefix, linger_s=2.0 * lease_ttl_s)
        self._view = self._state.view()
        self._listeners = _Listeners()
        self._keeper: asyncio.Task[None] | None = None
        self._watcher: asyncio.Task[None] | None = None
        self._expirer: asyncio.Task[None] | None = None

    @property
    def registered(self) -> bool:
        """Whether others certainly see every member registered here: lease alive by the local clock, keys put."""
        return self._lease.held(self._clock.monotonic()) and self._own.keys() <= self._lease.put_revisions.keys()

    async def register(self, member: Member) -> None:
        """Announce ``member`` until `deregister`. Several may be registered; they share the lease.

        Returns after the first attempt, whether it succeeded or not (see `registered`); later ones follow by
        themselves.

        Raises:
            InvalidArgument: role, id, address or weight is wrong.
        """
        validate_member(member)
        await _stop(self._keeper)
        self._own[member_key(self._cluster, member)] = encode_member(member)
        attempted = asyncio.Event()
        self._keeper = asyncio.create_task(self._keep_registered(attempted), name="registry-lease")
        await attempted.wait()

    async def deregister(self) -> None:
        """Withdraw all members registered here. If etcd cannot be reached, their lease runs out by itself."""
        await _stop(self._keeper)
        self._keeper = None
        self._own.clear()
        lease_id, deadline = self._lease.lease_id, Deadline.after(self._clock, 1_000.0 * self._lease_ttl_s)
        self._lease.drop()
        if not lease_id:
            return
        with contextlib.suppress(ShoalError):
            await call_with_retry(
                lambda: self._client.lease_revoke(lease_id),
                policy=RECONNECT,
                clock=self._clock,
                random=self._random,
                deadline=deadline,
                retryable=lambda error: error.retryable,
            )

    def view(self) -> MembershipView:
        """The last known view; ``connected`` is False until the first list and while etcd cannot be reached."""
        return self._view

    def subscribe(self, listener: Listener) -> Callable[[], None]:
        """See `Registry.subscribe`. Listeners run on the event loop and must not block."""
        return self._listeners.add(listener)

    async def start(self) -> None:
        """Begin to watch; returns after the first list, or after the first attempt at it failed."""
        if self._watcher is not None:
            return
        attempted = asyncio.Event()
        self._watcher = asyncio.create_task(self._watch_forever(attempted), name="registry-watch")
        await attempted.wait()

    async def close(self) -> None:
        """Withdraw, stop watching, release the connection."""
        await self.deregister()
        await _stop(self._watcher)
        await _stop(self._expirer)
        await self._client.close()

    async def _keep_registered(self, attempted: asyncio.Event) -> None:
        failures = 0
        while True:
            try:
                await self._registration_step()
                failures = 0
            except NotFound:
                self._lease.drop()
                failures += 1
            except Exception as error:  # whatever it is, this loop must not end
                failures += 1
                if failures == 1:
                    logger.warning("member registration failed, trying again: %r", error)
            attempted.set()
            await self._clock.sleep(self._pause_s(failures) if failures else self._renewal_pause_s())

    async def _registration_step(self) -> None:
        """Bring etcd to the wanted state: a live lease, and every own key under it."""
        now = self._clock.monotonic()
        if self._lease.held(now) and now >= self._lease.renew_at():
            self._lease.renewed(await self._client.lease_keepalive(self._lease.lease_id), now)
        now = self._clock.monotonic()
        if not self._lease.held(now):
            granted = await self._client.lease_grant(self._lease_ttl_s)
            self._lease.granted(granted.id, granted.ttl_s, now)
        for key, value in self._own.items():
            put_revision = self._lease.put_revisions.get(key)
            if put_revision is None or self._state.has_lost(key, put_revision):
                self._lease.put(key, await self._client.put(key, value, self._lease.lease_id))

    def _renewal_pause_s(self) -> float:
        return max(0.0, self._lease.renew_at() - self._clock.monotonic())

    def _pause_s(self, failures: int) -> float:
        return RECONNECT.backoff_ms(failures, self._random.uniform()) / 1_000

    async def _watch_forever(self, attempted: asyncio.Event) -> None:
        failures = 0
        while True:
            try:
                await self._watch_once(attempted)
            except Exception as error:  # whatever it is, this loop must not end
                failures = 1 if self._view.connected else failures + 1
                if failures == 1:
                    logger.warning("the watch of the member registry broke, trying again: %r", error)
            self._state.disconnected()
            self._publish()
            attempted.set()
            await self._clock.sleep(self._pause_s(failures))

    async def _watch_once(self, attempted: asyncio.Event) -> None:
        async with contextlib.aclosing(self._client.watch(self._prefix)) as batches:
            async for batch in batches:
                if batch.created:
                    snapshot = await self._client.get_prefix(self._prefix)
                    self._state.listed(snapshot, self._clock.monotonic())
                    await self._schedule_expiry()
                else:
                    self._state.changed(batch.events)
                self._publish()
                attempted.set()

    async def _schedule_expiry(self) -> None:
        await _stop(self._expirer)
        self._expirer = None
        if self._state.expires_at() is not None:
            self._expirer = asyncio.create_task(self._expire(), name="registry-linger")

    async def _expire(self) -> None:
        while (expires_at := self._state.expires_at()) is not None:
            await self._clock.sleep(max(0.0, expires_at - self._clock.monotonic()))
            self._state.expire(self._clock.monotonic())
            self._publish()

    def _publish(self) -> None:
        view = self._state.view()
        if view != self._view:
            self._view = view
            self._listeners.notify(view)


async def _stop(task: asyncio.Task[None] | None) -> None:
    if task is None:
        return
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)

"""What a process knows of the registry, without I/O: the members listed and watched, and the lease it holds.

`MembershipState` and `LeaseState` take times and answers as inputs; `registry.EtcdRegistry` drives them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence

from shoal_cluster.etcd.client import Snapshot, WatchEvent
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member, MembershipView

WIRE_VERSION = 1  # of the protos' package, shoal.v1


def validate_member(member: Member) -> None:
    """Raise `InvalidArgument` unless role and id are path segments, the address is given and the weight is a share."""
    for field, value in (("member.role", member.role), ("member.id", member.id)):
        if not value or "/" in value or "\0" in value:
            raise InvalidArgument(f"must be a non-empty name without '/', not {value!r}", field=field)
    if not member.address:
        raise InvalidArgument("must be host:port", field="member.address")
    if not (math.isfinite(member.weight) and member.weight >= 0):
        raise InvalidArgument(f"must be finite and not negative, not {member.weight}", field="member.weight")


def members_prefix(cluster: str) -> bytes:
    """The key prefix of a cluster's members."""
    return f"/shoal/{cluster}/members/".encode()


def member_key(cluster: str, member: Member) -> bytes:
    """``/shoal/<cluster>/members/<role>/<id>``."""
    return members_prefix(cluster) + f"{member.role}/{member.id}".encode()


def encode_member(member: Member) -> bytes:
    """The JSON value of a member's key; role and id are in the key. It serves the wire versions ``wire_min`` to ``wire_max``."""
    wire = {"wire_min": WIRE_VERSION, "wire_max": WIRE_VERSION}
    return json.dumps({"address": member.address, "weight": member.weight} | wire).encode()


def decode_member(prefix: bytes, key: bytes, value: bytes) -> Member | None:
    """The member behind a key, or None if another hand wrote something else there, or it does not serve our wire version.

    Members of the value that are not known are ignored; those that an earlier release did not write mean 1.
    """
    try:
        role, member_id = key.removeprefix(prefix).decode().split("/")
        fields = json.loads(value)
        member = Member(role, member_id, str(fields["address"]), float(fields.get("weight", 1.0)))
        validate_member(member)
        serves = int(fields.get("wire_min", 1)) <= WIRE_VERSION <= int(fields.get("wire_max", 1))
    except (ValueError, KeyError, TypeError, AttributeError, InvalidArgument):
        return None
    return member if serves else None


def membership_view(revision: int, members: Iterable[Member], *, connected: bool = True) -> MembershipView:
    """A view of ``members`` by role, each role sorted by id."""
    by_role: dict[str, list[Member]] = {}
    for member in sorted(members, key=lambda m: (m.role, m.id)):
        by_role.setdefault(member.role, []).append(member)
    return MembershipView(revision, {role: tuple(found) for role, found in by_role.items()}, connected)


class MembershipState:
    """The members as listed and then watched.

    The protocol with etcd is: open a watch, and only then list. Every change after the list is in the watch, and
    those that are in both carry a revision that the list covers. So a view is gapless without comparing revisions of
    two connections, which an etcd that lost its data makes meaningless. Compaction cannot hurt either.

    When etcd comes back with an older store than the one seen before (its data was lost), members missing in the list
    are probably alive and about to register again: they stay in the view for ``linger_s``, so that service goes on.
    """

    def __init__(self, prefix: bytes, *, linger_s: float) -> None:
        self._prefix = prefix
        self._linger_s = linger_s
        self._position: Snapshot | None = None
        self._revision = 0
        self._members: dict[bytes, Member] = {}
        self._lingering: dict[bytes, tuple[float, Member]] = {}
        self._connected = False

    @property
    def revision(self) -> int:
        """The store's revision up to which everything is known."""
        return self._revision

    def listed(self, snapshot: Snapshot, now: float) -> None:
        """A list arrived while a watch is open: it replaces what was known."""
        before, self._members = self._members, self._decode(snapshot)
        if self._is_older_store(snapshot):
            expires_at = now + self._linger_s
            self._lingering |= {key: (expires_at, member) for key, member in before.items()}
        self._lingering = {k: entry for k, entry in self._lingering.items() if k not in self._members}
        self._position = snapshot
        self._revision = snapshot.revision
        self._connected = True

    def changed(self, events: Sequence[WatchEvent]) -> None:
        """Events of the watch, in order; those that the list covers are skipped."""
        covered = self._revision
        for event in events:
            if event.mod_revision <= covered:
                continue
            self._revision = event.mod_revision
            self._lingering.pop(event.key, None)
            member = None if event.value is None else decode_member(self._prefix, event.key, event.value)
            if member is None:
                self._members.pop(event.key, None)
            else:
                self._members[event.key] = member

    def disconnected(self) -> None:
        """The watch broke: what is known stays, marked as such."""
        self._connected = False

    def expire(self, now: float) -> None:
        """Forget members of a lost store that did not register again in time."""
        self._lingering = {key: entry for key, entry in self._lingering.items() if entry[0] > now}

    def expires_at(self) -> float | None:
        """When `expire` has something to do next."""
        return min((expires_at for expires_at, _ in self._lingering.values()), default=None)

    def has_lost(self, key: bytes, put_revision: int) -> bool:
        """Whether a key put at ``put_revision`` is known to be gone since, though nobody was told to delete it."""
        return self._connected and self._revision >= put_revision and key not in self._members

    def view(self) -> MembershipView:
        """The present view."""
        lingering = {key: member for key, (_, member) in self._lingering.items()}
        return membership_view(self._revision, (lingering | self._members).values(), connected=self._connected)

    def _decode(self, snapshot: Snapshot) -> dict[bytes, Member]:
        found = ((pair.key, decode_member(self._prefix, pair.key, pair.value)) for pair in snapshot.pairs)
        return {key: member for key, member in found if member is not None}

    def _is_older_store(self, snapshot: Snapshot) -> bool:
        seen = self._position
        if seen is None:
            return False
        return (
            snapshot.cluster_id != seen.cluster_id
            or snapshot.raft_term < seen.raft_term
            or snapshot.revision < self._revision
        )


class LeaseState:
    """The lease of this process and the keys put under it.

    The lease counts as lost by the local clock, from the moment its last successful renewal was *sent*: a process that
    cannot reach etcd knows that others no longer see it, at the latest when they do.
    """

    def __init__(self) -> None:
        self.lease_id = 0
        self._sent_at = 0.0
        self._ttl_s = 0.0
        self._put_revisions: dict[bytes, int] = {}

    @property
    def put_revisions(self) -> Mapping[bytes, int]:
        """The keys put under the present lease and the revision of each put."""
        return self._put_revisions

    def granted(self, lease_id: int, ttl_s: float, sent_at: float) -> None:
        """A new lease, without keys yet."""
        self.lease_id, self._ttl_s, self._sent_at = lease_id, ttl_s, sent_at
        self._put_revisions = {}

    def renewed(self, ttl_s: float, sent_at: float) -> None:
        """The answer to a keepalive; a time to live of 0 says that there is no such lease."""
        if ttl_s <= 0:
            self.drop()
        else:
            self._ttl_s, self._sent_at = ttl_s, sent_at

    def put(self, key: bytes, revision: int) -> None:
        """``key`` is stored under the present lease."""
        self._put_revisions[key] = revision

    def drop(self) -> None:
        """The lease is gone, and its keys with it."""
        self.granted(0, 0.0, 0.0)

    def held(self, now: float) -> bool:
        """Whether the lease is certainly alive."""
        return self.lease_id != 0 and now < self._sent_at + self._ttl_s

    def renew_at(self) -> float:
        """When to renew: after a third of the time to live, so that two renewals may fail."""
        return self._sent_at + self._ttl_s / 3

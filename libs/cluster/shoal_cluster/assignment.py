"""Which members serve which key: deterministic functions of the key and the view, the same in every process.

A member is hashed by its id. A process that keeps its id over a restart (its host name, say) gets its old keys back and
finds its caches warm; one with a new id is a new member.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Sequence
from typing import Protocol

from shoal_core.errors import InvalidArgument
from shoal_core.ports import Member


class AssignmentPolicy(Protocol):
    """Chooses members for a key."""

    def assign(self, key: str, members: Sequence[Member], replicas: int) -> tuple[Member, ...]:
        """The best ``replicas`` distinct members for ``key``, most preferred first; fewer if there are fewer.

        Members of weight 0 are never chosen. The order of ``members`` does not matter.

        Raises:
            InvalidArgument: ``replicas`` is below 1.
        """
        ...


def log_key(collection_id: str) -> str:
    """The key of a collection's log node."""
    return f"log/{collection_id}"


def query_key(collection_id: str, shard: int) -> str:
    """The key of a shard's query nodes."""
    return f"query/{collection_id}/{shard}"


def compaction_key(collection_id: str) -> str:
    """The key of a collection's compactor."""
    return f"compaction/{collection_id}"


def hash64(*parts: str) -> int:
    """BLAKE2b with an 8-byte digest over the UTF-8 parts joined by a zero byte, read big-endian."""
    return int.from_bytes(hashlib.blake2b("\0".join(parts).encode(), digest_size=8).digest(), "big")


def rendezvous_score(key: str, member: Member) -> float:
    """Weighted rendezvous score: ``-weight / ln(h)`` with h the hash of key and member id in (0, 1).

    The highest score wins a key with probability weight / total weight, and a weight that changes moves no key but the
    member's own. Source: Schindelhauer and Schomaker, "Weighted distributed hash tables", SPAA 2005 (logarithmic
    method).
    """
    # 52 bits and a half are exact in a double, so h is never 0 or 1.
    h = ((hash64(key, member.id) >> 12) + 0.5) * 2.0**-52
    return -member.weight / math.log(h)


class RendezvousPolicy:
    """Weighted rendezvous hashing. When a member leaves only its keys move, each to its next preference."""

    def assign(self, key: str, members: Sequence[Member], replicas: int) -> tuple[Member, ...]:
        """See `AssignmentPolicy.assign`."""
        ranked = sorted(_eligible(members, replicas), key=lambda m: (-rendezvous_score(key, m), m.id))
        return tuple(ranked[:replicas])


class ModuloPolicy:
    """Hash modulo over the members sorted by id, replicas following in that order.

    Most even for few members, and one hash per key; but nearly every key moves when a member comes or goes, and weights
    other than 0 are ignored.
    """

    def assign(self, key: str, members: Sequence[Member], replicas: int) -> tuple[Member, ...]:
        """See `AssignmentPolicy.assign`."""
        ring = sorted(_eligible(members, replicas), key=lambda m: m.id)
        if not ring:
            return ()
        start = hash64(key) % len(ring)
        return tuple(ring[(start + i) % len(ring)] for i in range(min(replicas, len(ring))))


def bounded_load(
    keys: Iterable[str], members: Sequence[Member], factor: float = 1.25, policy: AssignmentPolicy | None = None
) -> dict[str, Member]:
    """One member per key, none with more than ``ceil(factor * keys * weight / total weight)`` of them.

    Keys choose in the order of their hash, each the first member of its preference (`RendezvousPolicy` if none is
    given) that has room. The result depends on the set of keys, not on their order; it is empty if no member has a
    weight. Source: the bound of Mirrokni, Thorup and Zadimoghaddam, "Consistent hashing with bounded loads", SODA
    2018, over rendezvous orders.

    Raises:
        InvalidArgument: ``factor`` is below 1, so that not all keys would find room.
    """
    if not factor >= 1:
        raise InvalidArgument(f"must be at least 1, not {factor}", field="factor")
    eligible = _eligible(members, 1)
    if not eligible:
        return {}
    chosen_policy = policy or RendezvousPolicy()
    ordered = sorted(set(keys), key=lambda key: (hash64(key), key))
    total = math.fsum(m.weight for m in eligible)
    room = {m.id: math.ceil(factor * len(ordered) * m.weight / total) for m in eligible}
    placed: dict[str, Member] = {}
    for key in ordered:
        placed[key] = next(m for m in chosen_policy.assign(key, eligible, len(eligible)) if room[m.id] > 0)
        room[placed[key].id] -= 1
    return placed


def _eligible(members: Sequence[Member], replicas: int) -> list[Member]:
    if replicas < 1:
        raise InvalidArgument(f"must be at least 1, not {replicas}", field="replicas")
    return [member for member in members if member.weight > 0]

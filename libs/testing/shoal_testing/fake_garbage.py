"""What the catalog in memory knows about garbage. ``cutoff_ms``: what happened then or before is past its retention."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from shoal_core.contracts import ExpiredUpload, GarbageCollection, GarbageRoots, VersionInfo
from shoal_core.errors import FailedPrecondition
from shoal_testing.fake_state import CollectionState, UploadState


def expired_uploads(uploads: Mapping[str, UploadState], cutoff_ms: float) -> list[ExpiredUpload]:
    """Uploads that began before ``cutoff_ms``, oldest first."""
    old = sorted((upload.began_ms, upload_id) for upload_id, upload in uploads.items() if upload.began_ms < cutoff_ms)
    return [ExpiredUpload(name, uploads[name].collection_id, int(cutoff_ms - began_ms)) for began_ms, name in old]


def find_garbage(
    states: Mapping[str, CollectionState], version_cutoff_ms: float, deleted_cutoff_ms: float, everything: bool
) -> list[GarbageCollection]:
    """Collections in order of id."""
    found = []
    for collection_id, state in sorted(states.items()):
        if state.deleted_ms is not None:
            if state.deleted_ms <= deleted_cutoff_ms:
                overdue_ms = int(deleted_cutoff_ms - state.deleted_ms)
                found.append(GarbageCollection(collection_id, deleted=True, overdue_ms=overdue_ms))
            continue
        first = max(state.oldest, 1)
        expired = state.oldest_retained(version_cutoff_ms) > first
        overdue_ms = int(version_cutoff_ms - state.published_ms[first + 1]) if expired else 0
        if expired or everything:
            found.append(GarbageCollection(collection_id, deleted=False, overdue_ms=overdue_ms))
    return found


def find_roots(state: CollectionState, cutoff_ms: float, uploads: set[str]) -> GarbageRoots:
    """Retained versions, ascending."""
    return GarbageRoots(_retained(state, cutoff_ms), frozenset(uploads))


def borrowing_versions(
    states: Iterable[CollectionState], collection_id: str, version_cutoff_ms: float, deleted_cutoff_ms: float
) -> tuple[VersionInfo, ...]:
    """The oldest retained version of each fork of a collection that lives, or was deleted later than that."""
    forks = (state for state in states if collection_id in state.ancestors)
    needed = (fork for fork in forks if fork.deleted_ms is None or fork.deleted_ms > deleted_cutoff_ms)
    return tuple(info for fork in needed for info in _retained(fork, version_cutoff_ms)[:1])


def _retained(state: CollectionState, cutoff_ms: float) -> tuple[VersionInfo, ...]:
    first = max(1, state.oldest, state.oldest_retained(cutoff_ms))
    return tuple(state.versions[first:])


def purge(states: dict[str, CollectionState], collection_id: str, cutoff_ms: float, limit: int) -> bool:
    """Forget log entries of a deleted collection, then the collection."""
    state = states.get(collection_id)
    if state is None:
        return True
    if state.deleted_ms is None or state.deleted_ms > cutoff_ms:
        raise FailedPrecondition(f"collection {collection_id} lives, or was deleted too short a time ago")
    full_page = len(state.entries) >= limit
    del state.entries[:limit]
    if full_page:
        return False
    del states[collection_id]
    return True

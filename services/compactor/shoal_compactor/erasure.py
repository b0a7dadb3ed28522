"""By when deleted data are gone: which collections have rows that have been dead for too long.

A dead row lies in its segment until that is rewritten, which sizes and shares alone may never ask for. So a segment is rewritten for
its age too, in time for what comes after: the version that names the old segment is retained for a while, and then swept.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass

from shoal_compactor.garbage import GarbageSettings
from shoal_compactor.policy import is_overdue
from shoal_compactor.publish import Publisher
from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument, NotFound, ShoalError
from shoal_storage.manifest import Manifest

_log = logging.getLogger(__name__)

_PAGE = 1_000
_PASSES = 16  # over all collections, within the deadline


@dataclass(frozen=True, slots=True)
class ErasureTimes:
    """What follows from the deadline.

    Attributes:
        rewrite_after_ms: a segment whose first dead row has been dead for so long is rewritten.
        pass_ms: between two looks at every collection.
    """

    rewrite_after_ms: int
    pass_ms: int


def erasure_times(deadline_ms: int, garbage: GarbageSettings) -> ErasureTimes | None:
    """None without a deadline (0).

    Retention, grace and two rounds of the sweeper come off the deadline, and a quarter of it is for finding the segment and for
    rewriting it when its turn comes.

    Raises:
        InvalidArgument: the deadline is shorter than twice what the sweeper takes.
    """
    if deadline_ms == 0:
        return None
    swept_ms = garbage.version_retention_ms + garbage.grace_ms + 2 * garbage.interval_ms
    if deadline_ms < 2 * swept_ms:
        raise InvalidArgument(
            f"{deadline_ms} is less than {2 * swept_ms}, twice garbage.version_retention_ms + grace_ms + 2 × interval_ms; "
            "make it longer or these shorter, or 0 for no deadline",
            field="compactor.erasure_deadline_ms",
        )
    return ErasureTimes(deadline_ms - deadline_ms // 4 - swept_ms, max(1, deadline_ms // _PASSES))


async def overdue_collections(
    publisher: Publisher, mine: Callable[[str], bool], garbage: GarbageSettings, erase_before_ms: int
) -> AsyncIterator[Collection]:
    """One pass: those of ``mine`` with a row that died before ``erase_before_ms``, Unix time.

    What cannot be read is logged and left to the next pass. Raises what the catalog raises for a page.
    """
    after = ""
    while True:
        page = await publisher.catalog.collections_with_garbage(
            after=after,
            limit=_PAGE,
            version_retention_ms=garbage.version_retention_ms,
            deleted_retention_ms=garbage.deleted_retention_ms,
            everything=True,
        )
        for item in page:
            after = item.collection_id
            if item.deleted or not mine(item.collection_id):
                continue
            try:
                collection = await publisher.catalog.get_collection_by_id(item.collection_id)
                manifest = await publisher.current(collection)
            except NotFound:
                continue  # deleted meanwhile, or its version was replaced and swept: the next pass sees the newer one
            except ShoalError as error:  # of this collection: those after it have deadlines too
                _log.warning("cannot look for rows to erase in collection %s: %s", item.collection_id, error)
                continue
            if _has_overdue(manifest, erase_before_ms):
                yield collection
        if len(page) < _PAGE:
            return


def _has_overdue(manifest: Manifest, erase_before_ms: int) -> bool:
    return any(is_overdue(segment, erase_before_ms) for shard in manifest.shards for segment in shard.segments)

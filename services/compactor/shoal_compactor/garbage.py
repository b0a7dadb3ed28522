"""The sweeper: deletes objects that nothing names and never will, then what the catalog knew of them.

What is garbage follows from the catalog, by the database's clock:

* An upload intent is consumed by the transaction that names its objects, which refuses one older than T. An intent that is still
  there after 2T is an orphan's: a job or an append died, or was too slow and is refused from then on.
* A version is needed while it is current, and for a retention after it was replaced: query nodes open a version within that
  time (once open they hold its blocks), and compactors finish reading their inputs. Objects that no retained version names, and
  whose intent is gone, were replaced, or left by a publish that lost a race.
* A deleted collection is refused everywhere; after a retention all of it goes.
* Forks go on reading objects of the collection they come from: what a retained version of a fork, or an entry of its log, names is
  kept, and a deleted collection is not forgotten before that.
* A payload of the log that no entry names, and whose intent is gone, is left from an entry that was trimmed.

Objects go first and the row that tells of them last, so a sweeper may die at any moment and the next one finds the rest. Whatever is
done here may be done twice, or by two sweepers at once.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Sequence
from dataclasses import dataclass, field, fields
from uuid import UUID

from shoal_core.contracts import BorrowedObjects, Catalog, ExpiredUpload, GarbageCollection, GarbageRoots, VersionInfo
from shoal_core.errors import Corrupt, NotFound, ShoalError
from shoal_core.ports import Clock, ObjectInfo, ObjectStore
from shoal_storage.manifest import decode_manifest
from shoal_wire.spans import root_span

_log = logging.getLogger(__name__)

_DELETE_KEYS = 1000
_PURGE_PAGES = 100


@dataclass(frozen=True, slots=True)
class GarbageSettings:
    """How a sweeper works. What is beyond a bound waits for the next round.

    Attributes:
        interval_ms: between rounds.
        version_retention_ms: a version is kept for so long after it was replaced. No reader or compaction may need longer to
            open a version that it has looked up.
        deleted_retention_ms: what a deleted collection holds is kept for so long.
        grace_ms: in a live collection no object younger than this, by the store's clock, is swept, whatever the catalog says.
            A second guard: nothing relies on it.
        orphan_age_ms: garbage that its preferred sweeper left alone for longer is taken by any.
        uploads: expired uploads swept per round.
        collections: collections known to have garbage, swept per round.
        patrol: other collections looked at per round, for objects that came when their intent had been swept already; 0 for
            none.
        objects: objects deleted per collection and round.
        log_entries: log entries of a deleted collection forgotten per statement.
        dry_run: say what would go, and delete nothing.
    """

    interval_ms: int = 300_000
    version_retention_ms: int = 900_000
    deleted_retention_ms: int = 3_600_000
    grace_ms: int = 900_000
    orphan_age_ms: int = 3_600_000
    uploads: int = 1_000
    collections: int = 1_000
    patrol: int = 20
    objects: int = 10_000
    log_entries: int = 1_000
    dry_run: bool = False


@dataclass(slots=True)
class SweepCounters:
    """What went: expired uploads, versions, deleted collections, and objects with their bytes.

    ``failures``: collections that could not be swept.
    """

    rounds: int = 0
    uploads: int = 0
    versions: int = 0
    collections: int = 0
    objects: int = 0
    size_bytes: int = 0
    failures: int = 0

    def add(self, other: SweepCounters) -> None:
        """Add another's numbers to these."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))


@dataclass(slots=True)
class SweepReport:
    """What one round did, or would have done in a dry run. ``keys``: of the objects that would go in a dry run."""

    dry_run: bool = False
    counters: SweepCounters = field(default_factory=lambda: SweepCounters(rounds=1))
    keys: list[str] = field(default_factory=list)


@dataclass(slots=True)
class _Cursor:
    """Where the last round stopped, so that those at the end of the order have their turn too."""

    after: str = ""


@dataclass(slots=True)
class Sweeper:
    """See the module. ``mine`` says whether this process is the preferred one for a collection id.

    Attributes:
        counters: since start; dry runs are not counted.
    """

    catalog: Catalog
    objects: ObjectStore
    clock: Clock
    mine: Callable[[str], bool]
    settings: GarbageSettings = field(default_factory=GarbageSettings)
    counters: SweepCounters = field(default_factory=SweepCounters)
    _due: _Cursor = field(default_factory=_Cursor)
    _patrol: _Cursor = field(default_factory=_Cursor)

    async def run(self) -> None:
        """Work until cancelled. A failure is logged and does not stop the next round."""
        while True:
            try:
                with root_span("compactor sweep"):
                    report = await self.sweep()
                _log.log(logging.INFO if report.dry_run else logging.DEBUG, "swept: %s", report)
            except ShoalError as error:
                _log.warning("cannot look for garbage: %s", error)
            except Exception:
                _log.exception("cannot look for garbage")
            await self.clock.sleep(self.settings.interval_ms / 1000)

    async def sweep(self, *, dry_run: bool | None = None) -> SweepReport:
        """One round; ``dry_run`` overrides the setting.

        Raises what the catalog raises when asked for the work to do; failures with one collection are counted.
        """
        report = SweepReport(self.settings.dry_run if dry_run is None else dry_run)
        try:
            await self._sweep(report)
        finally:
            if not report.dry_run:
                self.counters.add(report.counters)
        return report

    async def _sweep(self, report: SweepReport) -> None:
        await self._sweep_uploads(report)
        async for item in self._next(self._due, self.settings.collections, everything=False):
            await self._try(item.collection_id, self._sweep_collection(item, report), report)
        async for item in self._next(self._patrol, self.settings.patrol, everything=True):
            if not item.deleted and not item.overdue_ms:
                await self._try(item.collection_id, self._sweep_live(item.collection_id, report), report)

    # --- what to do --------------------------------------------------------------------------------------------------

    async def _next(self, cursor: _Cursor, bound: int, *, everything: bool) -> AsyncIterator[GarbageCollection]:
        """The next so many collections for this sweeper, from where the last round stopped to the end of the order."""
        taken = 0
        while bound:
            page = await self.catalog.collections_with_garbage(
                after=cursor.after,
                limit=bound,
                version_retention_ms=self.settings.version_retention_ms,
                deleted_retention_ms=self.settings.deleted_retention_ms,
                everything=everything,
            )
            for item in page:
                if taken == bound:
                    return
                cursor.after = item.collection_id
                if self._takes(item.collection_id, item.overdue_ms):
                    taken += 1
                    yield item
            if len(page) < bound:
                cursor.after = ""
                return

    def _takes(self, collection_id: str, overdue_ms: int) -> bool:
        return self.mine(collection_id) or overdue_ms > self.settings.orphan_age_ms

    async def _try(self, collection_id: str, work: Awaitable[None], report: SweepReport) -> None:
        try:
            await work
        except ShoalError as error:
            report.counters.failures += 1
            _log.warning("cannot sweep collection %s: %s", collection_id, error)
        except Exception:
            report.counters.failures += 1
            _log.exception("cannot sweep collection %s", collection_id)

    # --- orphans -----------------------------------------------------------------------------------------------------

    async def _sweep_uploads(self, report: SweepReport) -> None:
        orphans: dict[str, list[ExpiredUpload]] = {}
        for upload in await self.catalog.expired_uploads(limit=self.settings.uploads):
            if self._takes(upload.collection_id, upload.overdue_ms):
                orphans.setdefault(upload.collection_id, []).append(upload)
        for collection_id, uploads in orphans.items():
            await self._try(collection_id, self._sweep_orphans(collection_id, uploads, report), report)

    async def _sweep_orphans(self, collection_id: str, uploads: list[ExpiredUpload], report: SweepReport) -> None:
        """Of a compaction and of an append alike: nobody knows any more which one began the upload."""
        ids = [upload.id for upload in uploads]
        for upload_id in ids:
            prefix = f"{_segments(collection_id)}{upload_id}/"
            await self._delete([info async for info in self.objects.list(prefix)], report)
        payloads = {f"{_payloads(collection_id)}{upload_id}" for upload_id in ids}
        stored = self.objects.list(_payloads(collection_id))
        await self._delete([info async for info in stored if info.key in payloads], report)
        report.counters.uploads += len(ids)
        if not report.dry_run:
            await self.catalog.drop_uploads(ids)

    # --- collections -------------------------------------------------------------------------------------------------

    async def _sweep_collection(self, item: GarbageCollection, report: SweepReport) -> None:
        if item.deleted:
            await self._sweep_deleted(item.collection_id, report)
        else:
            await self._sweep_live(item.collection_id, report)

    async def _sweep_live(self, collection_id: str, report: SweepReport) -> None:
        """Delete what neither a retained version, nor one of a fork, nor an intent keeps.

        The objects are listed before the catalog is asked what keeps them. An object that is on the list was put under an
        intent that is either there now, or was consumed by a version before now, or is gone for good. A later version names
        objects of the current one, and of intents that are there now or begin after the list was made.
        """
        roots = await self._roots(collection_id, ())
        if roots is None:
            return
        borrowed = await self._borrowed(collection_id)
        kept = await self._named(collection_id, (*roots.versions, *borrowed.versions))
        suspects, all_of_them = await self._suspects(collection_id, kept)
        uploads = sorted({upload for info in suspects if (upload := _upload_of(info.key))})
        now = await self._roots(collection_id, uploads) if suspects else roots
        if now is None:
            return
        kept |= await self._named(collection_id, [info for info in now.versions if info not in roots.versions])
        garbage = [info for info in suspects if info.key not in kept and _upload_of(info.key) not in now.uploads]
        if garbage:  # asked again and last: a fork that comes later begins with a version that is current then
            later = await self._borrowed(collection_id)
            lent = await self._named(collection_id, [info for info in later.versions if info not in borrowed.versions])
            garbage = [info for info in garbage if info.key not in lent]
        await self._delete(garbage, report)
        if all_of_them and roots.versions and not report.dry_run:
            report.counters.versions += await self.catalog.drop_versions(
                collection_id,
                below=roots.versions[0].version,
                version_retention_ms=self.settings.version_retention_ms,
            )
        await self._sweep_payloads(collection_id, report)

    async def _sweep_payloads(self, collection_id: str, report: SweepReport) -> None:
        """Payloads of the log are listed before it is asked which of them are needed: entries name only what has an intent."""
        garbage: list[ObjectInfo] = []
        page: list[ObjectInfo] = []
        async for info in self._old(_payloads(collection_id)):
            page.append(info)
            if len(page) == _DELETE_KEYS:
                garbage += await self._unneeded(page)
                page = []
            if len(garbage) >= self.settings.objects:
                break
        garbage += await self._unneeded(page)
        await self._delete(garbage[: self.settings.objects], report)

    async def _unneeded(self, payloads: Sequence[ObjectInfo]) -> list[ObjectInfo]:
        if not payloads:
            return []
        needed = await self.catalog.needed_payloads([info.key for info in payloads])
        return [info for info in payloads if info.key not in needed]

    async def _borrowed(self, collection_id: str) -> BorrowedObjects:
        return await self.catalog.borrowed_objects(
            collection_id,
            version_retention_ms=self.settings.version_retention_ms,
            deleted_retention_ms=self.settings.deleted_retention_ms,
        )

    async def _roots(self, collection_id: str, upload_ids: Iterable[str]) -> GarbageRoots | None:
        """None when the collection was deleted: that has a retention of its own."""
        try:
            return await self.catalog.garbage_roots(
                collection_id, tuple(upload_ids), version_retention_ms=self.settings.version_retention_ms
            )
        except NotFound:
            return None

    async def _named(self, collection_id: str, versions: Iterable[VersionInfo]) -> set[str]:
        """Keys that versions name, those of their manifests among them. Raises `Corrupt` when a manifest is not there."""
        keys: set[str] = set()
        for info in versions:
            if info.manifest_key in keys:  # forks begin with the version of another
                continue
            try:
                data = await self.objects.get(info.manifest_key)
            except NotFound as error:  # or its retention is over, and another sweeper was faster
                raise Corrupt(f"version {info.version} of {collection_id} lacks its manifest; not swept") from error
            manifest = await asyncio.to_thread(decode_manifest, data)
            keys.add(info.manifest_key)
            keys.update(manifest.object_keys())
        return keys

    async def _suspects(self, collection_id: str, kept: set[str]) -> tuple[list[ObjectInfo], bool]:
        """Up to ``settings.objects`` of segments that may be garbage, and whether these are all."""
        found: list[ObjectInfo] = []
        async for info in self._old(_segments(collection_id)):
            if len(found) == self.settings.objects:
                return found, False
            if info.key not in kept and _upload_of(info.key):
                found.append(info)
        return found, True

    async def _old(self, prefix: str) -> AsyncIterator[ObjectInfo]:
        """Those that are not young."""
        youngest_ns = self.clock.time_ns() - self.settings.grace_ms * 1_000_000
        async for info in self.objects.list(prefix):
            if info.modified_ns <= youngest_ns:
                yield info

    async def _sweep_deleted(self, collection_id: str, report: SweepReport) -> None:
        borrowed = await self._borrowed(collection_id)
        lent = await self._named(collection_id, borrowed.versions) | borrowed.payload_keys
        left = self.settings.objects
        any_lent = False
        for prefix in (_segments(collection_id), _payloads(collection_id)):
            found: list[ObjectInfo] = []
            async for info in self.objects.list(prefix):
                if left == 0:
                    break
                if info.key in lent:
                    any_lent = True
                    continue
                found.append(info)
                left -= 1
            await self._delete(found, report)
        if left == 0 or any_lent:
            return
        if report.dry_run:
            report.counters.collections += 1
            return
        for _ in range(_PURGE_PAGES):
            if await self.catalog.purge_collection(
                collection_id,
                deleted_retention_ms=self.settings.deleted_retention_ms,
                limit=self.settings.log_entries,
            ):
                report.counters.collections += 1
                return

    async def _delete(self, found: list[ObjectInfo], report: SweepReport) -> None:
        for start in range(0, len(found), _DELETE_KEYS):
            page = found[start : start + _DELETE_KEYS]
            keys = [info.key for info in page]
            if report.dry_run:
                report.keys.extend(keys)
            else:
                await self.objects.delete(keys)
            report.counters.objects += len(page)
            report.counters.size_bytes += sum(info.size_bytes for info in page)


def _segments(collection_id: str) -> str:
    """Prefix of what compactions of a collection wrote; see `publish.job_prefix`."""
    return f"segments/{collection_id}/"


def _payloads(collection_id: str) -> str:
    """Prefix of the payloads that the log keeps as objects, each named by its intent."""
    return f"log/{collection_id}/"


def _upload_of(key: str) -> str:
    """The upload under which an object of a segment was written; empty for a key of another form, which is nobody's garbage."""
    parts = key.split("/")
    if len(parts) < 4:
        return ""
    try:
        return str(UUID(parts[2]))
    except ValueError:
        return ""

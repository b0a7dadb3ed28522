"""Group commit: what is queued while one transaction runs goes into the next, over all collections of this node.

`groups` says what goes together, `decide` what becomes of each item, `store` knows the statements; this drives them.
Correctness does not depend on which node appends to a collection: the transaction decides, under its locks.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable, Sequence
from contextlib import ExitStack, suppress

from opentelemetry import trace

from shoal_core.consistency import VersionToken
from shoal_core.contracts import AppendResult
from shoal_core.errors import BackPressure, Internal, OutcomeUnknown, ShoalError, Unavailable, WriteConflict
from shoal_core.ports import Clock, Random
from shoal_log.decide import Append, Entry, Found, Outcome, Plan, Recorded, plan
from shoal_log.groups import MAIN, GroupQueue
from shoal_log.settings import AppendSettings, LogCounters
from shoal_log.store import AppendTransaction, LogStore, NoPartition
from shoal_storage.postgres import LockBusy
from shoal_wire.spans import shared_span


class _Pending:
    """An append and who waits for it, within which span. ``in_doubt``: an earlier try may have committed."""

    __slots__ = ("append", "asker", "future", "in_doubt")

    def __init__(self, append: Append, future: asyncio.Future[AppendResult]) -> None:
        self.append = append
        self.future = future
        self.asker = trace.get_current_span()
        self.in_doubt = False

    @property
    def collection_id(self) -> str:
        return self.append.collection_id

    @property
    def cost_bytes(self) -> int:
        return self.append.cost_bytes


class _Work:
    """One group on its way: its items once taken, and the plan of the try that runs or ran last."""

    __slots__ = ("done", "group", "lane", "lock_timeouts", "plan", "taken", "tries")

    def __init__(self, lane: str, group: Sequence[_Pending] = ()) -> None:
        self.lane = lane
        self.group = list(group)
        self.taken = bool(group)
        self.plan: Plan | None = None
        self.tries = 0
        self.lock_timeouts = 0
        self.done = False

    def fail(self, error: ShoalError) -> None:
        """Nothing more is tried."""
        _fail(self.group, error)
        self.done = True

    @property
    def stuck(self) -> bool:
        """Whether a lock was what it failed for."""
        return self.lock_timeouts > 0 and self.plan is None


class GroupCommitter:
    """Appends, in groups. One transaction at a time, plus one for each of a few collections whose lock is held elsewhere.

    Args:
        committed: called with every plan once it is durable and before anybody is answered.
        in_doubt: called with the collections of a group whose COMMIT was sent and not answered.
        make_partition: called when ``log_entry`` has no partition for the present time.
        on_group: called with the appends of each transaction that committed, and its milliseconds from the wait for a connection on.
    """

    def __init__(
        self,
        store: LogStore,
        settings: AppendSettings,
        clock: Clock,
        random: Random,
        counters: LogCounters,
        *,
        committed: Callable[[Plan], None],
        in_doubt: Callable[[Iterable[str]], None],
        make_partition: Callable[[], Awaitable[object]],
        on_group: Callable[[int, float], None] = lambda appends, duration_ms: None,
    ) -> None:
        self._store = store
        self._settings = settings
        self._clock = clock
        self._random = random
        self._counters = counters
        self._committed = committed
        self._in_doubt = in_doubt
        self._make_partition = make_partition
        self._on_group = on_group
        self._queue: GroupQueue[_Pending] = GroupQueue(
            group_items=settings.group_items, group_size_bytes=settings.group_size_bytes, lanes=settings.lanes
        )
        self._tasks: set[asyncio.Task[None]] = set()
        self._closing = False  # no new appends
        self._stopped = False  # no new groups

    async def append(self, append: Append) -> AppendResult:
        """Durable when it returns. A caller that is cancelled does not take its group with it."""
        if self._closing:
            raise _stopping()
        pending = _Pending(append, asyncio.get_running_loop().create_future())
        self._queue.offer(pending)
        self._start_lanes()
        return await pending.future

    async def close(self, timeout_ms: int) -> None:
        """Refuse new appends and finish those under way; what is left after ``timeout_ms`` is `Unavailable` or unknown."""
        self._closing = True
        deadline = self._clock.monotonic() + timeout_ms / 1000
        while self._tasks and (left := deadline - self._clock.monotonic()) > 0:
            await asyncio.wait(self._tasks, timeout=left, return_when=asyncio.FIRST_COMPLETED)
        self._stopped = True
        for task in list(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)
        _fail(self._queue.drain(), _stopping())

    def _start_lanes(self) -> None:
        if self._stopped:
            return
        for lane in self._queue.startable():
            task = asyncio.get_running_loop().create_task(self._serve(lane))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _serve(self, lane: str) -> None:
        """One group after another of the main lane, one group of any other: lanes take turns."""
        work = _Work(lane)
        try:
            await self._run(work)
            while lane == MAIN and self._queue.has_work(MAIN):
                await self._run(_Work(MAIN))
        finally:
            self._queue.finish(lane, stuck=work.stuck)
            self._start_lanes()

    async def _run(self, work: _Work) -> None:
        """Try until every item of a group has its answer or is in another lane."""
        try:
            await self._try(work)
            while not work.done:
                await self._clock.sleep(self._delay(work.tries))
                await self._try(work)
        except asyncio.CancelledError:
            work.fail(_stopping())
            raise
        except Exception as error:  # a defect: its callers must hear of it, and the next group must run
            work.fail(Internal(f"append failed: {error!r}"))

    async def _try(self, work: _Work) -> None:
        work.tries += 1
        work.plan = None
        try:
            await self._transact(work)
        except LockBusy as error:
            self._counters.lock_timeouts += 1
            self._after_lock_timeout(work, error)
        except NoPartition as error:
            await self._after_missing_partition(work, error)
        except OutcomeUnknown as error:
            self._after_lost_commit(work, error)
        except Unavailable as error:
            self._counters.transient_failures += 1
            self._give_up(work, error)
        except asyncio.CancelledError:
            if work.plan is not None:
                self._after_lost_commit(work, OutcomeUnknown("this log node was stopped while it committed"))
            raise
        except ShoalError as error:
            await self._one_by_one(work, error)
        else:
            self._answer(work)
            work.done = True

    async def _transact(self, work: _Work) -> None:
        began = self._clock.monotonic()
        with ExitStack() as stack:
            await self._transact_within(stack, work)
        if work.plan is not None:
            with suppress(Exception):  # it is committed: what is measured of it must not change the answer
                self._on_group(len(work.group), (self._clock.monotonic() - began) * 1_000)

    async def _transact_within(self, stack: ExitStack, work: _Work) -> None:
        """``stack``: ends the group's span, after COMMIT. It begins when the group is taken: only then its callers are known."""
        async with self._store.appending() as transaction:
            if not work.taken:
                # Taken as late as possible: what came while BEGIN was under way goes with it.
                work.group = [item for item in self._queue.take(work.lane) if not item.future.done()]
                work.taken = True
            if not work.group:
                return
            appends = [item.append for item in work.group]
            askers = [item.asker for item in work.group]
            stack.enter_context(shared_span("log commit", askers, {"shoal.log.appends": len(appends)}))
            found = await _find(transaction, appends, self._settings)
            decided = plan(appends, found, self._settings)
            await transaction.write(decided)
            work.plan = decided

    def _answer(self, work: _Work) -> None:
        if work.plan is None:
            return
        _count(self._counters, work.plan)
        self._committed(work.plan)
        for item, outcome in zip(work.group, work.plan.outcomes, strict=True):
            state = work.plan.states.get(item.collection_id)
            _settle(item, outcome, state.incarnation if state else "")

    def _after_lock_timeout(self, work: _Work, error: LockBusy) -> None:
        if work.lane == MAIN:
            self._queue.set_apart(work.group)
            work.done = True
            self._start_lanes()
            return
        work.lock_timeouts += 1
        if work.lock_timeouts >= self._settings.lock_attempts:
            work.fail(Unavailable(f"another transaction keeps the collection locked; try again: {error}"))

    async def _after_missing_partition(self, work: _Work, error: NoPartition) -> None:
        try:
            await self._make_partition()
        except ShoalError as failure:
            self._give_up(work, Unavailable(f"{error}: {failure}"))
        else:
            self._give_up(work, Unavailable(str(error)))

    def _after_lost_commit(self, work: _Work, error: OutcomeUnknown) -> None:
        """COMMIT was sent. The keyed go again: under the same locks, their key says what became of them."""
        self._counters.commits_in_doubt += 1
        self._in_doubt({item.collection_id for item in work.group})
        outcomes = work.plan.outcomes if work.plan else ()
        again: list[_Pending] = []
        for item, outcome in zip(work.group, outcomes, strict=True):
            if isinstance(outcome, ShoalError):
                _settle(item, outcome, "")
            elif item.append.key is None:
                _fail([item], error)
            else:
                item.in_doubt = item.in_doubt or isinstance(outcome, Entry)
                again.append(item)
        work.group = again
        work.done = not again
        self._give_up(work, error)

    def _give_up(self, work: _Work, error: ShoalError) -> None:
        """Fail the group if it was tried often enough."""
        if work.tries < self._settings.attempts:
            return
        if not work.taken:
            work.group = self._queue.take(work.lane)
        work.fail(error)

    async def _one_by_one(self, work: _Work, error: ShoalError) -> None:
        """The database refused the group for one item's sake: only that item may fail."""
        if not work.taken:  # it refused a connection, for nobody's sake
            self._give_up(work, error)
            return
        if len(work.group) <= 1:
            work.fail(error)
            return
        for item in work.group:
            await self._run(_Work(work.lane, [item]))
        work.done = True

    def _delay(self, tries: int) -> float:
        longest: int = self._settings.retry_delay_ms << min(tries - 1, 6)
        return longest * (0.5 + self._random.uniform() / 2) / 1000


async def _find(transaction: AppendTransaction, appends: Sequence[Append], settings: AppendSettings) -> Found:
    """Lock, then look up what `plan` needs. Statements with nothing to ask are not sent."""
    states = await transaction.lock(append.collection_id for append in appends)
    recorded = await transaction.recorded(list({append.key for append in appends if append.key}))
    after: dict[str, int] = {}
    for append in appends:
        state = states.get(append.collection_id)
        if append.check is None or state is None or append.check.read_offset < state.trim_floor:
            continue
        if append.check.scanned_offset < state.head_offset:
            scanned = append.check.scanned_offset
            after[append.collection_id] = min(scanned, after.get(append.collection_id, scanned))
    uploads = [append.upload.intent_id for append in appends if append.upload]
    return Found(
        states=states,
        recorded=recorded,
        scanned=await transaction.scan(after),
        intents=await transaction.lock_intents(uploads, settings.max_upload_age_ms),
    )


def _count(counters: LogCounters, decided: Plan) -> None:
    counters.groups += 1
    for outcome in decided.outcomes:
        if isinstance(outcome, Entry):
            counters.appended_batches += 1
            counters.appended_records += outcome.append.batch.rows
            counters.appended_bytes += outcome.append.batch.size_bytes
        counters.replays += isinstance(outcome, Recorded)
        counters.write_conflicts += isinstance(outcome, WriteConflict)
        counters.back_pressure += isinstance(outcome, BackPressure)


def _stopping() -> Unavailable:
    return Unavailable("this log node is shutting down; try another")


def _settle(item: _Pending, outcome: Outcome, incarnation: str) -> None:
    if item.future.done():
        return
    if isinstance(outcome, ShoalError):
        item.future.set_exception(outcome)
        return
    token = VersionToken(item.collection_id, incarnation, outcome.end_offset)
    item.future.set_result(AppendResult(token, outcome.first_offset, replayed=isinstance(outcome, Recorded)))


def _fail(items: Iterable[_Pending], error: ShoalError) -> None:
    for item in items:
        if item.future.done():
            continue
        if item.in_doubt and not isinstance(error, OutcomeUnknown):
            item.future.set_exception(OutcomeUnknown(f"a COMMIT went unanswered, and then: {error.message}"))
        else:
            item.future.set_exception(type(error)(error.message, retry_after_ms=error.retry_after_ms))

"""The gateway's core: texts in batches through a backend, within bounds, with retries; every vector at its text's place.

Runs on one event loop and has no threads, sockets or time of its own: those are the backend's and the clock's.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Callable, Coroutine, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, TypeVar

import numpy as np

from shoal.embedding.cache import VectorCache
from shoal.embedding.limits import CircuitBreaker, GatewayLimits, TokenBucket, backoff_s
from shoal.embedding.protocol import Side, Vectors, check_vectors
from shoal_core.errors import DeadlineExceeded, ResourceExhausted, ShoalError, Unavailable
from shoal_core.ports import Clock, Random

T = TypeVar("T")

Progress = Callable[[int, int], None]

_SHORTEST_SLEEP_S: Final = 0.001  # less may not move a clock, and would be waited for without end


class Backend(Protocol):
    """Where vectors come from: a service, or a thread with a model."""

    async def call(self, texts: Sequence[str], side: Side) -> object:
        """Rows of numbers in the order of the texts, unchecked.

        Raises `Unavailable` or `ResourceExhausted` if another try may help; anything else is final.
        """
        ...


@dataclass(frozen=True, slots=True)
class Identity:
    """What is known of a function beforehand.

    Attributes:
        name: for errors.
        key: what determines its vectors besides the texts.
        dimension: None if only a call can tell.
    """

    name: str
    key: str
    dimension: int | None


@dataclass(slots=True)
class Counters:
    """What happened so far. ``calls`` are attempts; ``retries`` those after the first; ``texts`` those that were asked for."""

    calls: int = 0
    retries: int = 0
    texts: int = 0
    cached_texts: int = 0


@dataclass(frozen=True, slots=True)
class Job:
    """Texts that were given together.

    Attributes:
        field: what errors call them.
        rows: the places of the texts in ``field``.
        dimension: that their vectors must have; None for that of the first ones.
        deadline: by the clock; infinite for none.
    """

    texts: Sequence[str]
    side: Side
    field: str
    dimension: int | None
    deadline: float
    on_progress: Progress | None
    rows: Sequence[int] | None


class GatewayCore:
    """See `shoal.embedding.Gateway`, whose bounds these are."""

    def __init__(
        self, identity: Identity, backend: Backend, limits: GatewayLimits, clock: Clock, random: Random
    ) -> None:
        self._identity = identity
        self._backend = backend
        self._limits = limits
        self._clock = clock
        self._random = random
        self._slots = asyncio.Semaphore(limits.concurrency)
        self._turn = asyncio.Lock()
        self._bucket = TokenBucket(limits.calls_per_second, limits.burst_calls)
        self._breaker = CircuitBreaker(limits.failures_to_open, limits.open_ms)
        self._cache = VectorCache(identity.key, limits.cache_size_bytes)
        self.counters = Counters()

    async def embed(
        self,
        texts: Sequence[str],
        side: Side,
        *,
        field: str,
        dimension: int | None = None,
        on_progress: Progress | None = None,
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        """One row per text, in their order, shape (len(texts), dim). The texts are known to be texts.

        ``rows``: the places of the texts in ``field``, for errors; None if they are 0, 1, 2 …

        The first failure ends it: calls under way are cancelled.

        Raises:
            InvalidArgument, DimensionMismatch: the function refuses the texts, or its answer does not fit them.
            Unavailable, ResourceExhausted, DeadlineExceeded: it failed, and further attempts too or there was no time for them.
        """
        expected = self._identity.dimension if dimension is None else dimension
        if not texts:
            return np.empty((0, expected or 0), dtype=np.float32)
        timeout_ms = self._limits.timeout_ms
        timeout_s = math.inf if timeout_ms is None else timeout_ms / 1_000
        job = Job(texts, side, field, expected, self._clock.monotonic() + timeout_s, on_progress, rows)
        message = f"{self._name} did not embed {len(texts)} texts within {timeout_ms} ms"
        return await self._within(timeout_s, self._embed(job), message)

    @property
    def _name(self) -> str:
        return f"embedding function {self._identity.name!r}"

    async def _embed(self, job: Job) -> Vectors:
        output = _Output(job.rows or range(len(job.texts)), job.dimension)
        batches = self._batches(job.texts)
        workers = [
            asyncio.ensure_future(self._work(job, batches, output))
            for _ in range(min(self._limits.concurrency, len(job.texts)))
        ]
        try:
            await asyncio.gather(*workers)
        finally:
            for worker in workers:
                worker.cancel()
            await asyncio.gather(*workers, return_exceptions=True)
        return output.vectors

    def _batches(self, texts: Sequence[str]) -> Iterator[range]:
        """Places of texts that go together, one batch after the other."""
        start, characters = 0, 0
        for place, text in enumerate(texts):
            characters += len(text)
            full = place - start == self._limits.texts_per_call or characters > self._limits.characters_per_call
            if full and place > start:
                yield range(start, place)
                start, characters = place, len(text)
        yield range(start, len(texts))

    async def _work(self, job: Job, batches: Iterator[range], output: _Output) -> None:
        for places in batches:
            output.put(places, await self._batch(job, places, output))
            self.counters.texts += len(places)
            if job.on_progress is not None:
                job.on_progress(output.done, len(job.texts))

    async def _batch(self, job: Job, places: range, output: _Output) -> Vectors:
        """The vectors of the texts at ``places``: kept ones, and those that are asked for, each text once."""
        texts = job.texts[places.start : places.stop]
        if not self._cache.enabled:
            return output.checked(await self._ask(job, texts), self._identity.name, job.field, places)
        keys = self._cache.keys(texts, job.side)
        known = {key: self._cache.get(key) for key in keys}
        wanted = {key: place for place, key in reversed([*enumerate(keys)]) if known[key] is None}
        order = sorted(wanted.values())
        self.counters.cached_texts += len(texts) - len(order)
        if order:
            answer = await self._ask(job, [texts[place] for place in order])
            rows = [places[place] for place in order]
            made = output.checked(answer, self._identity.name, job.field, rows)
            self._cache.put([keys[place] for place in order], made)
            known |= {keys[place]: row.tobytes() for place, row in zip(order, made, strict=True)}
        rows_of_all = [np.frombuffer(known[key] or b"", np.float32) for key in keys]
        return output.checked(rows_of_all, self._identity.name, job.field, places)

    async def _ask(self, job: Job, texts: Sequence[str]) -> object:
        """The answer of the backend, with as many attempts as are allowed and make sense.

        An open circuit refuses what comes new. What has begun waits for it as for any pause, and has lost no attempt: batches that
        fail together open it before the attempts of any of them are used up.
        """
        attempt = 1
        while True:
            try:
                return await self._attempt(texts, job.side)
            except _CircuitOpen as refused:
                pause_s = refused.error.retry_after_ms / 1_000
                if attempt == 1 or self._clock.monotonic() + pause_s >= job.deadline:
                    raise refused.error from None
                await self._clock.sleep(pause_s)
            except (Unavailable, ResourceExhausted, DeadlineExceeded) as error:
                pause_s = max(backoff_s(self._limits, attempt, self._random.uniform()), error.retry_after_ms / 1_000)
                late = self._clock.monotonic() + pause_s >= job.deadline
                if attempt >= self._limits.attempts or late:
                    raise _after(attempt, error) from error
                self.counters.retries += 1
                attempt += 1
                await self._clock.sleep(pause_s)

    async def _attempt(self, texts: Sequence[str], side: Side) -> object:
        async with self._slots:
            await self._token()
            try:
                self._breaker.admit(self._clock.monotonic(), self._identity.name)
            except Unavailable as error:
                raise _CircuitOpen(error) from error
            self.counters.calls += 1
            try:
                answer = await self._call(texts, side)
            except asyncio.CancelledError:
                self._breaker.abandoned()
                raise
            except (Unavailable, DeadlineExceeded):
                self._breaker.failed(self._clock.monotonic())
                raise
            except ResourceExhausted as error:
                self._breaker.succeeded()
                self._pause(error.retry_after_ms)
                raise
            except BaseException:
                self._breaker.succeeded()
                raise
            self._breaker.succeeded()
            return answer

    async def _call(self, texts: Sequence[str], side: Side) -> object:
        timeout_ms = self._limits.call_timeout_ms
        timeout_s = math.inf if timeout_ms is None else timeout_ms / 1_000
        message = f"{self._name} did not answer within {timeout_ms} ms"
        return await self._within(timeout_s, self._backend.call(texts, side), message)

    async def _token(self) -> None:
        """Wait for the token of a call and take it. One waits for time, the others for it."""
        async with self._turn:
            while (wait_s := self._bucket.wait_s(self._clock.monotonic())) > 0:
                await self._clock.sleep(max(wait_s, _SHORTEST_SLEEP_S))
            self._bucket.take(self._clock.monotonic())

    def _pause(self, wanted_ms: int) -> None:
        """Who was told to wait speaks for all calls. But not for ever."""
        most_ms = self._limits.timeout_ms
        wanted_ms = wanted_ms if most_ms is None else min(wanted_ms, most_ms)
        self._bucket.pause(self._clock.monotonic() + wanted_ms / 1_000)

    async def _within(self, seconds: float, work: Coroutine[Any, Any, T], message: str) -> T:
        """What ``work`` comes to. Raises `DeadlineExceeded` after so many seconds, when it was cancelled."""
        if seconds == math.inf:
            return await work
        task, timer = asyncio.ensure_future(work), asyncio.ensure_future(self._clock.sleep(seconds))
        try:
            await asyncio.wait({task, timer}, return_when=asyncio.FIRST_COMPLETED)
            if not task.done():
                raise DeadlineExceeded(message)
            return task.result()
        finally:
            task.cancel()
            timer.cancel()
            await asyncio.gather(task, timer, return_exceptions=True)


class _CircuitOpen(Exception):
    """Nothing was asked."""

    def __init__(self, error: Unavailable) -> None:
        super().__init__(error.message)
        self.error = error


def _after(attempts: int, error: ShoalError) -> ShoalError:
    if attempts == 1:
        return error
    message = f"{error.message} (after {attempts} attempts)"
    return type(error)(message, field=error.field, retry_after_ms=error.retry_after_ms)


class _Output:
    """The matrix that is filled, whatever order batches end in. Its dimension is that of the first rows, unless it is known."""

    def __init__(self, rows: Sequence[int], dimension: int | None) -> None:
        self._rows = rows
        self._dimension = dimension
        self._matrix: Vectors | None = None
        self.done = 0

    @property
    def vectors(self) -> Vectors:
        """Of all texts, once all are put."""
        assert self._matrix is not None
        assert self.done == len(self._rows)
        return self._matrix

    def checked(self, answer: object, name: str, field: str, places: Sequence[int]) -> Vectors:
        """See `check_vectors`. Errors of the whole answer name the part of the texts that it was for."""
        rows = [self._rows[place] for place in places]
        place = field if len(places) == len(self._rows) else f"{field}[{rows[0]}:{rows[-1] + 1}]"
        try:
            vectors = check_vectors(answer, len(places), dimension=self._dimension, name=name, field=field, rows=rows)
        except ShoalError as error:
            if error.field != field:
                raise
            raise type(error)(error.message, field=place) from error
        self._dimension = vectors.shape[1]
        return vectors

    def put(self, places: range, vectors: Vectors) -> None:
        """The vectors of the texts at ``places``."""
        if self._matrix is None:
            self._matrix = np.empty((len(self._rows), vectors.shape[1]), dtype=np.float32)
        self._matrix[places.start : places.stop] = vectors
        self.done += len(places)

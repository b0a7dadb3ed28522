"""Calls of an embedding function within bounds: how many texts in each, how many at once, how many in a second.

For functions that ask a service. What it answers is checked call by call and put together in the order of the texts.
"""

from __future__ import annotations

import math
import threading
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Final, Protocol

import numpy as np

from shoal.embedding.protocol import EmbeddingFunction, Vectors, check_texts, check_vectors
from shoal_core.errors import InvalidArgument

_Call = Callable[[Sequence[str]], Vectors]


class BlockingClock(Protocol):
    """Time for threads; the module `time` is one. Safe for threads."""

    def monotonic(self) -> float:
        """Seconds since an arbitrary start; never goes back."""
        ...

    def sleep(self, seconds: float, /) -> None:
        """Return after ``seconds``."""
        ...


class Bounded:
    """An embedding function that calls another one in parts. Its name and dimension are the other's.

        function = Bounded(CallableEmbedding("my-service", 768, ask), texts_per_call=32, calls_per_second=5)

    The bounds hold for all threads that use this object together. The first failure ends the whole: no further call is started for
    those texts, the calls under way are waited for, and what failed first in the order of the texts is raised as it is.

    Args:
        function: must be safe to call from ``concurrency`` threads.
        texts_per_call: at most.
        concurrency: calls under way at once, each in a thread.
        calls_per_second: by a token bucket of one token: calls start at least so far apart. None for no bound.
        clock: where time comes from.

    Raises:
        InvalidArgument: a bound is not positive, or ``function`` is no embedding function.
    """

    def __init__(
        self,
        function: EmbeddingFunction,
        *,
        texts_per_call: int = 64,
        concurrency: int = 4,
        calls_per_second: float | None = None,
        clock: BlockingClock = time,
    ) -> None:
        if isinstance(function, type) or not isinstance(function, EmbeddingFunction):
            raise InvalidArgument(f"{function!r} is no embedding function", field="function")
        self._function: Final = function
        self._texts_per_call: Final = _count(texts_per_call, "texts_per_call")
        self._concurrency: Final = _count(concurrency, "concurrency")
        self._bucket: Final = _Bucket(calls_per_second, clock)
        self._places: Final = threading.BoundedSemaphore(self._concurrency)

    @property
    def name(self) -> str:
        """Of the function within."""
        return self._function.name

    @property
    def dimension(self) -> int | None:
        """Of the function within."""
        return self._function.dimension

    def embed_documents(self, texts: Sequence[str]) -> Vectors:
        """One row per text, in their order. Raises what the function raises, `InvalidArgument` and `DimensionMismatch`."""
        return self._embed(self._function.embed_documents, texts, "documents")

    def embed_queries(self, texts: Sequence[str]) -> Vectors:
        """As `embed_documents`, for texts that are searched with."""
        return self._embed(self._function.embed_queries, texts, "query_texts")

    def _embed(self, call: _Call, texts: Sequence[str], field: str) -> Vectors:
        check_texts(texts, field)
        if not texts:
            return np.empty((0, self.dimension or 0), dtype=np.float32)
        work = _Work(call, texts, field, self.dimension)
        starts = range(0, len(texts), self._texts_per_call)
        with ThreadPoolExecutor(min(self._concurrency, len(starts)), "embedding") as threads:
            try:
                parts = list(threads.map(lambda start: self._part(work, start), starts))
            finally:
                work.ended.set()  # also when this thread is interrupted while it waits
        return np.concatenate([part for part in parts if part is not None])

    def _part(self, work: _Work, start: int) -> Vectors | None:
        """The vectors of one call; None where another has failed before this one began."""
        texts = work.texts[start : start + self._texts_per_call]
        try:
            with self._places:
                if not self._bucket.take(work.ended):
                    return None
                answer = work.call(texts)
            return work.checked(answer, start, len(texts), self.name)
        except BaseException:
            work.ended.set()
            raise


class _Work:
    """Texts on their way. ``ended``: no further call is to be started."""

    def __init__(self, call: _Call, texts: Sequence[str], field: str, dimension: int | None) -> None:
        self.call = call
        self.texts = texts
        self.ended = threading.Event()
        self._field = field
        self._dimension = dimension
        self._checking = threading.Lock()

    def checked(self, answer: object, start: int, count: int, name: str) -> Vectors:
        """See `check_vectors`; every answer must have the dimension of the first. Errors name the texts by their places."""
        place = self._field if count == len(self.texts) else f"{self._field}[{start}:{start + count}]"
        with self._checking:
            vectors = check_vectors(answer, count, dimension=self._dimension, name=name, field=place)
            self._dimension = vectors.shape[1]
        return vectors


class _Bucket:
    """A token bucket that holds one token."""

    def __init__(self, per_second: float | None, clock: BlockingClock) -> None:
        if per_second is not None and not (_is_number(per_second) and 0 < per_second < math.inf):
            raise InvalidArgument(f"{per_second!r}; a positive number, or None for no bound", field="calls_per_second")
        self._interval_s = 0.0 if per_second is None else 1 / per_second
        self._clock = clock
        self._turn = threading.Lock()
        self._next_at = -math.inf

    def take(self, ended: threading.Event) -> bool:
        """Wait for the token and take it; False, and none is taken, once ``ended`` is set."""
        if not self._interval_s:
            return not ended.is_set()
        with self._turn:  # one sleeps, the others wait for it: whoever gives up has not reserved a time
            while not ended.is_set() and (left_s := self._next_at - self._clock.monotonic()) > 0:
                self._clock.sleep(left_s)
            if ended.is_set():
                return False
            self._next_at = self._clock.monotonic() + self._interval_s
            return True


def _count(value: int, field: str) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise InvalidArgument(f"{value!r}; a whole number from 1", field=field)
    return value


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

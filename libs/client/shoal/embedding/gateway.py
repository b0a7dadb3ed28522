"""`Gateway`: any embedding function, within bounds, for sync and async code."""

from __future__ import annotations

import asyncio
import functools
import os
import threading
from collections.abc import Sequence
from concurrent.futures import Future
from dataclasses import replace
from typing import Final

from shoal._calls import SystemClock, SystemRandom
from shoal._loop import LoopThread
from shoal.embedding.core import Backend, Counters, GatewayCore, Identity, Progress
from shoal.embedding.limits import LOCAL_LIMITS, GatewayLimits
from shoal.embedding.local import LocalBackend
from shoal.embedding.prefixed import Prefixed, PrefixedBackend
from shoal.embedding.protocol import (
    EmbeddingFunction,
    RemoteFunction,
    Side,
    Vectors,
    check_texts,
)
from shoal.embedding.registry import Function, identity_of, is_known
from shoal.embedding.remote import HttpTransport, RemoteBackend
from shoal_core.errors import InvalidArgument

_CHECKED_INLINE: Final = 1_000

# Of a user's own functions nothing is known: whether the same text always has the same vector is theirs to say.
_OWN_LIMITS: Final = replace(LOCAL_LIMITS, cache_size_bytes=0)

_starting: Final = threading.Lock()
os.register_at_fork(before=_starting.acquire, after_in_parent=_starting.release, after_in_child=_starting.release)


class Gateway:
    """Calls an embedding function in batches, within bounds, with retries, and checks what it answers.

        function = Gateway(Ollama(model_name="nomic-embed-text"), GatewayLimits(concurrency=2))
        function.embed_documents(["a text"])             # blocks
        await function.aembed_documents(["a text"])      # does not

    The bounds hold for all threads and event loops that use the object: everything runs on one loop, in a thread of all
    gateways of the process. Collections put functions into a gateway by themselves; make one to choose the bounds. It is an
    embedding function too. Its methods are safe for threads, and in a process forked from this one they begin anew.

    Args:
        function: a local or a remote one.
        limits: None for those that suit its kind.

    Raises:
        InvalidArgument: it is no embedding function, or a gateway already.
    """

    def __init__(self, function: Function, limits: GatewayLimits | None = None) -> None:
        self._function: Final = check_function(function)
        if isinstance(function, Gateway):
            raise InvalidArgument("it is a gateway already", field="function")
        self._limits: Final = limits or default_limits(function)
        self._core: tuple[int, GatewayCore] | None = None

    def __repr__(self) -> str:
        return f"Gateway({self._function!r})"

    @property
    def function(self) -> Function:
        """The function within."""
        return self._function

    @property
    def limits(self) -> GatewayLimits:
        """The bounds."""
        return self._limits

    @property
    def name(self) -> str:
        """Of the function within."""
        return self._function.name

    @property
    def dimension(self) -> int | None:
        """Of the function within."""
        return self._function.dimension

    @property
    def counters(self) -> Counters:
        """What happened in this process so far."""
        core = self._core
        return Counters() if core is None or core[0] != os.getpid() else core[1].counters

    def embed_documents(
        self, texts: Sequence[str], *, dimension: int | None = None, on_progress: Progress | None = None
    ) -> Vectors:
        """One row per text, in their order, float32 (len(texts), dim). Blocks.

        Args:
            dimension: that the vectors must have; None for the function's, or else that of the first ones.
            on_progress: called with (texts done, texts in total) after each batch, in the gateway's thread; must be quick.

        Raises:
            InvalidArgument, DimensionMismatch: a text is none, or the answer does not fit the texts.
            Unavailable, ResourceExhausted, DeadlineExceeded: the service failed and there is no further attempt.
            Unauthenticated, PermissionDenied, FailedPrecondition: the service refuses, or the function is not set up.
        """
        return self._run(texts, Side.DOCUMENTS, "documents", dimension, on_progress)

    def embed_queries(
        self, texts: Sequence[str], *, dimension: int | None = None, on_progress: Progress | None = None
    ) -> Vectors:
        """As `embed_documents`, for texts that are searched with."""
        return self._run(texts, Side.QUERIES, "query_texts", dimension, on_progress)

    async def aembed_documents(
        self,
        texts: Sequence[str],
        *,
        dimension: int | None = None,
        on_progress: Progress | None = None,
        field: str = "documents",
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        """As `embed_documents`, without blocking; errors call the texts ``field`` and by their places in it, ``rows``. Cancelling it
        ends its calls.
        """
        return await self._arun(texts, Side.DOCUMENTS, field, dimension, on_progress, rows)

    async def aembed_queries(
        self,
        texts: Sequence[str],
        *,
        dimension: int | None = None,
        on_progress: Progress | None = None,
        field: str = "query_texts",
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        """As `aembed_documents`, for texts that are searched with."""
        return await self._arun(texts, Side.QUERIES, field, dimension, on_progress, rows)

    def _run(
        self, texts: Sequence[str], side: Side, field: str, dimension: int | None, on_progress: Progress | None
    ) -> Vectors:
        check_texts(texts, field)
        return _loop(os.getpid()).run(lambda: self._embed(texts, side, field, dimension, on_progress))

    async def _arun(
        self,
        texts: Sequence[str],
        side: Side,
        field: str,
        dimension: int | None,
        on_progress: Progress | None,
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        if len(texts) <= _CHECKED_INLINE:
            check_texts(texts, field)
        else:
            await asyncio.to_thread(check_texts, texts, field)
        started: Future[Vectors] = _loop(os.getpid()).start(
            lambda: self._embed(texts, side, field, dimension, on_progress, rows)
        )
        return await asyncio.wrap_future(started)

    async def _embed(
        self,
        texts: Sequence[str],
        side: Side,
        field: str,
        dimension: int | None,
        on_progress: Progress | None,
        rows: Sequence[int] | None = None,
    ) -> Vectors:
        """On the loop of the gateways."""
        if self._core is None or self._core[0] != os.getpid():
            self._core = (os.getpid(), self._new_core())
        core = self._core[1]
        return await core.embed(texts, side, field=field, dimension=dimension, on_progress=on_progress, rows=rows)

    def _new_core(self) -> GatewayCore:
        function = self._function
        identity = Identity(function.name, identity_of(function), function.dimension)
        return GatewayCore(identity, self._backend(function), self._limits, SystemClock(), SystemRandom())

    def _backend(self, function: Function) -> Backend:
        if isinstance(function, Prefixed):
            return PrefixedBackend(self._backend(function.function), function)
        if isinstance(function, RemoteFunction):
            answer_size_bytes = self._limits.answer_size_bytes
            return RemoteBackend(function, _transport(os.getpid()), SystemClock(), answer_size_bytes=answer_size_bytes)
        return LocalBackend(function, self._limits.concurrency)


def in_gateway(function: Function) -> Gateway:
    """The function within its default bounds, unless it is in a gateway. Raises `InvalidArgument` for what is no function."""
    return function if isinstance(function, Gateway) else Gateway(function)


def check_function(function: Function) -> Function:
    """The function, if it is one. Raises `InvalidArgument`."""
    if isinstance(function, type) or not isinstance(function, EmbeddingFunction | RemoteFunction | Prefixed):
        hint = "; wrap a callable: shoal.embedding.CallableEmbedding(name, dimension, function)"
        raise InvalidArgument(f"{function!r} is no embedding function{hint}", field="embedding_function")
    return function


def default_limits(function: Function) -> GatewayLimits:
    """Those that suit a function of its kind."""
    if isinstance(function, Prefixed):
        return default_limits(function.function)
    for name in ("limits", "LIMITS"):
        if isinstance(own := getattr(function, name, None), GatewayLimits):
            return own
    if isinstance(function, RemoteFunction):
        return GatewayLimits()
    return LOCAL_LIMITS if is_known(function) else _OWN_LIMITS


# One loop and one pool of connections for all gateways of a process; they end when the interpreter exits.
def _loop(pid: int) -> LoopThread:
    with _starting:  # threads may come here for the first time at the same time
        return _started(pid)


@functools.cache
def _started(pid: int) -> LoopThread:
    return LoopThread(f"shoal-embedding-{pid}")


@functools.cache
def _transport(pid: int) -> HttpTransport:
    transport = HttpTransport()
    _loop(pid).on_close(transport.close)
    return transport

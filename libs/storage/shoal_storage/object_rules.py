"""What every object store shares: which keys are valid, and how an immutable object is created exactly once."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Sequence

import pyarrow as pa

from shoal_core.errors import AlreadyExists, InvalidArgument, NotFound, Unavailable

MAX_KEY_BYTES = 900
"""S3 allows 1024 bytes; the rest is room for the store's own prefix."""

MAX_SEGMENT_BYTES = 255
"""The longest file name that local file systems accept."""

_KEY = re.compile(r"[A-Za-z0-9._=\-/]*")

ObjectData = bytes | memoryview | Sequence[bytes | memoryview]


def check_key(key: str) -> str:
    """Return ``key`` if it may name an object; raises `InvalidArgument` that says why not."""
    if not key:
        raise InvalidArgument("an object key must not be empty", field="key")
    _check_characters(key, field="key")
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            raise InvalidArgument(
                f"{key!r} has a segment {segment!r}; keys are relative, without empty, '.' or '..' segments",
                field="key",
            )
        if len(segment) > MAX_SEGMENT_BYTES:
            raise InvalidArgument(f"{key!r} has a segment longer than {MAX_SEGMENT_BYTES} bytes", field="key")
    return key


def check_prefix(prefix: str) -> str:
    """Return ``prefix`` if keys may start with it; the empty prefix means every key. Raises `InvalidArgument`."""
    _check_characters(prefix, field="prefix")
    if prefix:
        check_key(prefix.removesuffix("/"))
    return prefix


def _check_characters(text: str, *, field: str) -> None:
    if len(text) > MAX_KEY_BYTES:
        raise InvalidArgument(f"{len(text)} characters; the limit is {MAX_KEY_BYTES} bytes", field=field)
    if not _KEY.fullmatch(text):
        raise InvalidArgument(f"{text!r} has characters outside [A-Za-z0-9._=-/]; encode the name first", field=field)


def check_range(start: int, length: int) -> None:
    """Raise `InvalidArgument` unless ``start`` is at least 0 and ``length`` at least 1."""
    if start < 0:
        raise InvalidArgument(f"{start} is negative", field="start")
    if length < 1:
        raise InvalidArgument(f"{length} is less than 1; an empty range needs no read", field="length")


def range_past_end(key: str, start: int, length: int) -> InvalidArgument:
    """The error of a range that the object does not hold in full."""
    return InvalidArgument(f"bytes {start} to {start + length} reach past the end of {key!r}", field="length")


def as_views(data: ObjectData) -> tuple[memoryview, ...]:
    """The parts of one object as flat byte views, without copying; empty parts are dropped."""
    parts = (data,) if isinstance(data, bytes | memoryview) else data
    views = (memoryview(part).cast("B") for part in parts if memoryview(part).nbytes)
    return tuple(views)


def size_of(views: Sequence[memoryview]) -> int:
    """Total bytes of the parts."""
    return sum(view.nbytes for view in views)


def same_content(existing: memoryview, views: Sequence[memoryview]) -> bool:
    """Whether ``existing`` equals the concatenated parts; compared as memory, without copying."""
    if existing.nbytes != size_of(views):
        return False
    start = 0
    for view in views:
        part = existing[start : start + view.nbytes]
        if not pa.py_buffer(part).equals(pa.py_buffer(view)):
            return False
        start += view.nbytes
    return True


def different_content(key: str) -> AlreadyExists:
    """The error of a put that finds other content under its key."""
    return AlreadyExists(f"object {key!r} exists with other content; objects are never overwritten, use a new key")


async def create_once(
    key: str,
    views: Sequence[memoryview],
    *,
    create: Callable[[], Awaitable[None]],
    read: Callable[[], Awaitable[memoryview]],
    attempts: int,
) -> None:
    """Create an object through a conditional ``create`` whose outcome may get lost on the way.

    ``create`` raises `AlreadyExists` if the key is taken and `Unavailable` if it cannot tell what happened. Either way the
    object is read back: identical content is success, other content is `AlreadyExists`, nothing there means the put never
    took effect and is sent again, at most ``attempts`` times in all. Safe because keys are immutable: whichever attempt
    lands, the content is the same. Raises `Unavailable` when the store cannot be read or every attempt was lost.
    """
    lost: Unavailable | None = None
    for _ in range(attempts):
        try:
            await create()
            return
        except AlreadyExists:
            pass
        except Unavailable as error:
            lost = error
        try:
            existing = await read()
        except NotFound:
            continue
        if await asyncio.to_thread(same_content, existing, views):
            return
        raise different_content(key)
    raise lost or Unavailable(f"object {key!r} was reported as existing but could not be read back; try again")

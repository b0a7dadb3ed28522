"""Work that would hold up the event loop goes to a thread; less of it is done sooner than handed over."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import ParamSpec, TypeVar

MANY_ROWS = 2_000  # to merge, group or look up by id: some 200 microseconds

_P = ParamSpec("_P")
_T = TypeVar("_T")


async def apart(much: bool, function: Callable[_P, _T], *args: _P.args, **kwargs: _P.kwargs) -> _T:
    """``function(...)``, in a thread if it is ``much`` work."""
    return await asyncio.to_thread(function, *args, **kwargs) if much else function(*args, **kwargs)

"""Holding a lease while a job runs."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from shoal_core.contracts import Catalog, Lease
from shoal_core.errors import Fenced, ShoalError
from shoal_core.ports import Clock

_log = logging.getLogger(__name__)


@asynccontextmanager
async def renewing(catalog: Catalog, lease: Lease, clock: Clock, lease_ms: int) -> AsyncIterator[None]:
    """Renew ``lease`` beside the body; end the body with `Fenced` when it was deposed."""
    body = asyncio.current_task()
    assert body is not None
    fenced: list[Fenced] = []

    async def renew() -> None:
        while True:
            await clock.sleep(lease_ms / 3000)
            try:
                await catalog.renew(lease, ttl_ms=lease_ms)
            except Fenced as error:
                fenced.append(error)
                body.cancel()
                return
            except ShoalError as error:
                _log.info("cannot renew a lease yet: %s", error)

    task = asyncio.create_task(renew())
    try:
        yield
    except asyncio.CancelledError:
        if fenced and body.uncancel() == 0:
            raise fenced[0] from None
        raise
    finally:
        task.cancel()


async def release(catalog: Catalog, lease: Lease) -> None:
    """End a lease; one that cannot be ended expires."""
    try:
        await catalog.release(lease)
    except ShoalError as error:
        _log.info("cannot release a lease, it will expire: %s", error)

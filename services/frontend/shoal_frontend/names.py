"""What the frontend remembers of collections, by name and by id. Never trusted: append and read index check the epoch."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Awaitable, Callable
from typing import TypeVar

from shoal_core.contracts import Catalog, Collection, CollectionRef
from shoal_core.errors import DimensionMismatch, NotFound, StaleEpoch
from shoal_core.limits import Limits
from shoal_frontend.validate import check_ref

T = TypeVar("T")

_ATTEMPTS = 3


class Names:
    """A bounded cache of collections, least recently used first out."""

    def __init__(self, catalog: Catalog, capacity: int = 10_000, limits: Limits | None = None) -> None:
        self._catalog = catalog
        self._capacity = capacity
        self._limits = limits or Limits()
        self._known: OrderedDict[CollectionRef, Collection] = OrderedDict()

    async def with_collection(self, ref: CollectionRef, use: Callable[[Collection], Awaitable[T]]) -> T:
        """Call ``use`` with the collection; look it up again and repeat when it turns out to be out of date.

        That is also when it has got a dimension since: then ``use`` can say where another one was given. ``use`` must raise
        `StaleEpoch`, `NotFound` or `DimensionMismatch` before it has any effect.
        """
        for attempt in range(_ATTEMPTS):
            remembered = self._remembered(ref)
            collection = remembered or await self._look_up(ref)
            try:
                return await use(collection)
            except (StaleEpoch, NotFound, DimensionMismatch) as error:
                if isinstance(error, DimensionMismatch) and collection.dimension is not None:
                    raise
                self.forget(ref)
                if attempt == _ATTEMPTS - 1 or (remembered is None and isinstance(error, NotFound)):
                    raise
        raise AssertionError("unreachable")

    async def resolve(self, ref: CollectionRef) -> Collection:
        """The collection as the catalog has it now. Raises `NotFound`."""
        return await self._look_up(ref)

    def forget(self, ref: CollectionRef) -> None:
        """Look it up again next time."""
        self._known.pop(ref, None)

    def clear(self) -> None:
        """Look everything up again: many collections are gone."""
        self._known.clear()

    def learned(self, ref: CollectionRef, collection: Collection) -> None:
        """Remember what a call returned anyway."""
        self._known[ref] = collection
        self._known.move_to_end(ref)
        while len(self._known) > self._capacity:
            self._known.popitem(last=False)

    def _remembered(self, ref: CollectionRef) -> Collection | None:
        if ref not in self._known:
            return None
        self._known.move_to_end(ref)
        return self._known[ref]

    async def _look_up(self, ref: CollectionRef) -> Collection:
        check_ref(ref, self._limits)
        collection = await (self._by_id(ref) if ref.id else self._by_name(ref))
        self.learned(ref, collection)
        return collection

    async def _by_name(self, ref: CollectionRef) -> Collection:
        return await self._catalog.get_collection(ref.tenant, ref.database, ref.name)

    async def _by_id(self, ref: CollectionRef) -> Collection:
        """What is elsewhere, or has another name by now, cannot be told from what does not exist."""
        missing = NotFound(
            f"no collection {ref.id!r} in database {ref.database!r} of tenant {ref.tenant!r}", field="id"
        )
        try:
            found = await self._catalog.get_collection_by_id(ref.id)
        except NotFound:
            raise missing from None
        if (found.tenant, found.database) != (ref.tenant, ref.database) or ref.name not in ("", found.name):
            raise missing
        return found

"""What every part of an async collection stands on: how it is called, and what is known of it."""

from __future__ import annotations

from shoal._calls import Caller
from shoal._embedder import Embedder
from shoal_core import contracts
from shoal_core.contracts import CollectionRef
from shoal_core.limits import Limits
from shoal_core.schema import Schema


class AsyncHandle:
    """See `AsyncCollection`."""

    def __init__(self, caller: Caller, info: contracts.Collection, embedder: Embedder, limits: Limits) -> None:
        self._caller = caller
        self._info = info
        self._embedder = embedder
        self._limits = limits
        self._ref = CollectionRef(info.tenant, info.database, id=info.id)

    @property
    def id(self) -> str:
        """UUID text."""
        return self._info.id

    @property
    def name(self) -> str:
        """As of the last look-up or `modify`."""
        return self._info.name

    @property
    def metadata(self) -> contracts.Json | None:
        """The collection's own metadata."""
        return self._info.metadata

    @property
    def configuration(self) -> contracts.Json:
        """Settings as stored."""
        return self._info.configuration

    @property
    def schema(self) -> Schema:
        """Which indexes it keeps and how its text is analysed; as of the last look-up or `modify`."""
        return self._info.schema

    @property
    def dimension(self) -> int | None:
        """Of its vectors; None before the first write that this handle knows of."""
        return self._info.dimension

    @property
    def space(self) -> str:
        """``l2`` (squared), ``cosine`` or ``ip``."""
        return self._info.space

    @property
    def shards(self) -> int:
        """How many parts its records are spread over."""
        return self._info.shards

    def __repr__(self) -> str:
        return f"Collection({self.name!r}, id={self.id!r}, space={self.space!r}, dimension={self.dimension})"

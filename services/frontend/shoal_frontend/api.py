"""The public API as this process serves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
import numpy.typing as npt

from shoal_core.consistency import Consistency
from shoal_core.contracts import Answer, CollectionRef, EncodedAnswer, Include, PublicApi
from shoal_core.filters import Filter


class Api(PublicApi, Protocol):
    """`PublicApi`, with reads whose answer may be the bytes of the one shard that gave it."""

    async def get_encoded(
        self,
        ref: CollectionRef,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        limit: int | None,
        offset: int,
        include: Include,
        consistency: Consistency,
        explain: bool,
        allow_scan: bool,
        cursor: str | None,
    ) -> Answer | EncodedAnswer: ...

    async def query_encoded(
        self,
        ref: CollectionRef,
        vectors: npt.NDArray[np.float32],
        k: int,
        *,
        ids: Sequence[str] | None,
        where: Filter | None,
        include: Include,
        consistency: Consistency,
        ef: int,
        exact: bool,
        explain: bool,
        allow_scan: bool,
        texts: Sequence[str] | None = None,
        recall: float = 0.0,
    ) -> Answer | EncodedAnswer: ...

"""How much one tenant may have, and how much one request of it may ask for."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.errors import QuotaExceeded
from shoal_core.ranking import Search
from shoal_core.records import DOCUMENT, EMBEDDING


@dataclass(frozen=True, slots=True)
class Quotas:
    """Limits of a tenant beside those of the system; 0 is without one.

    Attributes:
        databases: of the tenant.
        collections: of the tenant.
        collections_per_database: of each of its databases.
        batch_records: of one write.
        dimension: of embeddings.
        document_size_bytes: of one document, in UTF-8.
        results: records of one get, of each vector of a query, of each search.
    """

    databases: int = 0
    collections: int = 0
    collections_per_database: int = 0
    batch_records: int = 0
    dimension: int = 0
    document_size_bytes: int = 0
    results: int = 0

    def check_count(self, name: str, there: int) -> None:
        """Whether there may be one more. Raises `QuotaExceeded`, as all of these."""
        most: int = getattr(self, name)
        if most and there >= most:
            raise QuotaExceeded(f"Quota exceeded: this tenant may have {most} {name.replace('_', ' ')}, and has them")

    def check_dimension(self, dimension: int | None) -> None:
        """Of a collection, or of vectors."""
        _check("dimension", dimension or 0, self.dimension)

    def check_batch(self, batch: pa.RecordBatch) -> None:
        """Of one write, whose columns may be anything yet: those of other types are left to the checks of the batch."""
        _check("batch_records", batch.num_rows, self.batch_records)
        names = batch.schema.names
        if self.dimension and names.count(EMBEDDING) == 1:
            self.check_dimension(getattr(batch.schema.field(EMBEDDING).type, "list_size", 0))
        if self.document_size_bytes and names.count(DOCUMENT) == 1 and batch.schema.field(DOCUMENT).type == pa.string():
            longest = pc.max(pc.binary_length(batch.column(DOCUMENT))).as_py()
            _check("document_size_bytes", longest or 0, self.document_size_bytes)

    def check_get(self, ids: Sequence[str] | None, limit: int | None) -> None:
        """Of one get: its limit, or the ids it names."""
        if not self.results:
            return
        asked = [given for given in (limit, None if ids is None else len(ids)) if given is not None]
        if not asked:
            raise QuotaExceeded(f"Quota exceeded: give a limit of at most {self.results}")
        _check("results", min(asked), self.results)

    def check_delete(self, ids: Sequence[str] | None) -> None:
        """Of one delete: the ids it names. What a filter finds is bounded by the system's limits alone."""
        _check("batch_records", len(ids or ()), self.batch_records)

    def check_query(self, vectors: np.ndarray[tuple[int, ...], np.dtype[np.float32]], k: int) -> None:
        """Of one query."""
        _check("results", k, self.results)
        if vectors.ndim == 2:
            self.check_dimension(vectors.shape[1])

    def check_searches(self, searches: Sequence[Search]) -> None:
        """Of each of several searches."""
        if not self.results:
            return
        for at, search in enumerate(searches):
            if search.limit is None:
                raise QuotaExceeded(f"Quota exceeded: give searches[{at}] a limit of at most {self.results}")
            _check("results", search.limit, self.results)


def _check(name: str, got: int, most: int) -> None:
    if most and got > most:
        raise QuotaExceeded(f"Quota exceeded: {name} of this tenant is {most}, the request has {got}")


UNLIMITED = Quotas()

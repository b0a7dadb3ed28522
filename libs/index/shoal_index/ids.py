"""Finding rows by id: a column of 64-bit hashes, sorted, with the row of each. A hash found is verified against the id."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from shoal_core.hashing import hash_ids

HASH = "hash"
ROW = "row"


@dataclass(frozen=True, slots=True)
class IdIndex:
    """Sorted (n,) uint64 hashes and the (n,) uint32 row of each."""

    hashes: npt.NDArray[np.uint64]
    rows: npt.NDArray[np.uint32]

    @classmethod
    def of_ids(cls, ids: pa.Array | pa.ChunkedArray) -> IdIndex:
        """The index of an id column, row numbers being positions in it."""
        hashes = hash_ids(ids)
        order = np.argsort(hashes, kind="stable")
        return cls(hashes[order], order.astype(np.uint32))

    @classmethod
    def of_table(cls, table: pa.Table) -> IdIndex:
        """The inverse of `to_table`, without copying."""
        return cls(table.column(HASH).to_numpy(), table.column(ROW).to_numpy())

    def to_table(self) -> pa.Table:
        """As stored in a block."""
        return pa.table({HASH: pa.array(self.hashes), ROW: pa.array(self.rows)})

    def locate(
        self,
        ids: pa.Array,
        hashes: npt.NDArray[np.uint64],
        ids_at: Callable[[npt.NDArray[np.int64]], pa.Array],
    ) -> npt.NDArray[np.int64]:
        """(m,) int64 rows of ``ids`` with these hashes, or -1.

        Args:
            ids_at: the ids of given rows, for verification.
        """
        found = np.full(len(hashes), -1, dtype=np.int64)
        position = np.searchsorted(self.hashes, hashes)
        open_ = np.arange(len(hashes))
        while len(open_):
            within = position[open_] < len(self.hashes)
            open_ = open_[within]
            open_ = open_[self.hashes[position[open_]] == hashes[open_]]
            if len(open_) == 0:
                break
            rows = self.rows[position[open_]].astype(np.int64)
            same = pc.equal(ids_at(rows), ids.take(pa.array(open_))).to_numpy(zero_copy_only=False)
            found[open_[same]] = rows[same]
            open_ = open_[~same]  # another id with the same hash: look at the next entry
            position[open_] += 1
        return found

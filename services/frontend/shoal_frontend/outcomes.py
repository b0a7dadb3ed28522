"""What becomes of each record of a batch, from what was there before it; the same rules as `shoal_core.materialize`."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.contracts import Outcome
from shoal_core.records import ID, OP, Operation

# By operation: when the id is not there, and when it is.
_OUTCOMES = {
    Operation.ADD: (Outcome.ADDED, Outcome.EXISTED),
    Operation.UPDATE: (Outcome.MISSING, Outcome.UPDATED),
    Operation.UPSERT: (Outcome.ADDED, Outcome.UPDATED),
    Operation.DELETE: (Outcome.MISSING, Outcome.DELETED),
}


def outcomes(batch: pa.RecordBatch, existed: npt.NDArray[np.bool_]) -> bytes:
    """One `Outcome` per row of an operation batch that passed validation: adds and upserts have an embedding that fits.

    Whether a row's id is there before its operation is decided by the last operation of the batch before it, with the same id,
    that adds or deletes; without one, by ``existed``.

    Args:
        batch: n rows, see `records`.
        existed: (n,) bool, whether the row's id was there before the batch.
    """
    codes = batch.column(ID).dictionary_encode().indices.to_numpy()
    order = np.argsort(codes, kind="stable")
    operation = batch.column(OP).to_numpy()[order]
    there = _there_before(codes[order], operation, existed[order])
    table = np.array([_OUTCOMES[kind] for kind in sorted(Operation)], dtype=np.uint8)
    found = np.empty(len(order), dtype=np.uint8)
    found[order] = table[operation, there.astype(np.intp)]
    return found.tobytes()


def _there_before(
    group: npt.NDArray[np.int32], operation: npt.NDArray[np.uint8], existed: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Per operation, sorted by group and in batch order within it, whether its id is there before it."""
    puts = (operation == int(Operation.ADD)) | (operation == int(Operation.UPSERT))
    decides = puts | (operation == int(Operation.DELETE))
    last = np.maximum.accumulate(np.where(decides, np.arange(len(group)), -1))
    previous = np.concatenate([np.array([-1]), last])[:-1]
    inside = (previous >= 0) & (group[previous] == group)
    return np.where(inside, puts[previous], existed)

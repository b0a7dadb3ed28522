"""What a write returns."""

from __future__ import annotations

from dataclasses import dataclass

from shoal_core import contracts
from shoal_core.consistency import VersionToken
from shoal_core.contracts import Outcome


@dataclass(frozen=True, slots=True)
class WriteResult:
    """An accepted batch.

    Attributes:
        token: for `session` and `as_of`.
        first_offset: of the batch in the log; it ends at ``token.offset``.
        records: operations in the batch; of a delete by filter, the records that matched.
        outcomes: what became of each record, where asked for: ``added``, ``existed`` (an add that did nothing), ``updated``,
            ``missing`` (an update or delete that did nothing) or ``deleted``; ``outcome_`` and a number for one that only a later
            release knows. None if not asked for, or if the look-up after the write failed: the write stands.
        read_offset: of a delete by filter, the snapshot that its matches are from. What came to match after it stays.
    """

    token: VersionToken
    first_offset: int
    records: int
    outcomes: list[str] | None = None
    read_offset: int | None = None


def write_result(result: contracts.WriteResult) -> WriteResult:
    """The result with names of outcomes."""
    codes = result.outcomes
    return WriteResult(
        result.token,
        result.first_offset,
        result.records,
        None if codes is None else [_NAMES.get(code, f"outcome_{code}") for code in codes],
        result.read_offset,
    )


_NAMES = {int(outcome): outcome.name.lower() for outcome in Outcome}

"""Bodies of conditional reads and of the commits that depend on them, and the rules of a transaction.

A transaction is of one collection, names its records by id, writes each at most once, and does not read what it has written. Adding
needs a read that did not find the id, updating and deleting one that did. Clients check this before they send; it is checked again
here, in their words. A commit has one of two forms: with ``read_ids``, or with its reads repeated among the operations, each with the
ids that it found.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa

from shoal_core.errors import DimensionMismatch, InvalidArgument
from shoal_core.limits import Limits
from shoal_core.records import ID, OP, Operation, concat_rows
from shoal_frontend.http_api.bodies import items, strings
from shoal_frontend.http_api.body_error import BodyError, described, member, one_of, text_of, within, wrong_type
from shoal_frontend.http_api.reads import GetBody, parse_delete, parse_get
from shoal_frontend.http_api.records import Records, parse_records

_GET = "get"
_WRITES = {name: Operation[name.upper()] for name in ("add", "update", "upsert", "delete")}


@dataclass(frozen=True, slots=True)
class ConditionalGet:
    """The body of a get with ``read_token``, None for a new snapshot."""

    get: GetBody
    read_token: int | None


@dataclass(frozen=True, slots=True, eq=False)
class Commit:
    """``{read_token?, read_ids?, operations}``.

    Attributes:
        read_ids: what the writes depend on, each once.
        batch: the writes in their order, None for none.
        dimension: of the embeddings, None without any.
    """

    read_token: int | None
    read_ids: tuple[str, ...]
    batch: pa.RecordBatch | None
    dimension: int | None


def parse_conditional_get(body: Mapping[str, Any], limits: Limits) -> ConditionalGet:
    """Raises `BodyError`, `InvalidArgument`."""
    found = ConditionalGet(parse_get(body, limits), _token(body))
    if found.get.selection.ids is None:
        _check_limited(found.get.limit)
    return found


def parse_commit(body: Mapping[str, Any], limits: Limits, *, embeds: bool = False) -> Commit:
    """``embeds``: see `parse_records`. Raises `BodyError`, `InvalidArgument`, `DimensionMismatch`."""
    token = _token(body)
    state = _Transaction()
    given = _strings(body, "read_ids")
    state.read(given, present=given, absent=given)
    operations = items(member(body, "operations", ""), "operations")
    if len(operations) > limits.batch_records:
        message = f"{len(operations)} operations, at most {limits.batch_records}; put several records into one"
        raise InvalidArgument(message, field="operations")
    for at, operation in enumerate(operations):
        with within(f"operations[{at}]"):
            _apply(operation, state, limits, embeds=embeds)
    if state.read_ids and token is None:
        raise InvalidArgument("a commit that depends on reads needs their token", field="read_token")
    return Commit(token, tuple(state.read_ids), *_joined(state.written))


@dataclass(slots=True)
class _Transaction:
    """What the operations so far have read and written. ``present`` and ``absent``: what reads have proved of ids."""

    read_ids: dict[str, None] = field(default_factory=dict)
    present: set[str] = field(default_factory=set)
    absent: set[str] = field(default_factory=set)
    ids: set[str] = field(default_factory=set)
    written: list[Records] = field(default_factory=list)

    def read(self, ids: Sequence[str], *, present: Iterable[str], absent: Iterable[str]) -> None:
        """A read that depends on ``ids``."""
        if not self.ids.isdisjoint(ids):
            id_ = next(id_ for id_ in ids if id_ in self.ids)
            raise InvalidArgument(f'cannot transactionally read id "{id_}" after buffering a write for it')
        self.read_ids |= dict.fromkeys(ids)
        self.present |= set(present)
        self.absent |= set(absent)

    def write(self, operation: Operation, ids: Sequence[str], records: Records) -> None:
        """Records to write, whose ids are these."""
        new = set(ids)
        if len(new) < len(ids):
            raise InvalidArgument(f'transactional write request contains duplicate id "{_repeated(ids)}"')
        if twice := _first(ids, self.ids & new):
            raise InvalidArgument(f'transaction already has a buffered write for id "{twice}"')
        known = {Operation.ADD: self.absent, Operation.UPDATE: self.present, Operation.DELETE: self.present}
        if operation in known and (unread := _first(ids, new - known[operation])):
            state = "absent" if operation is Operation.ADD else "present"
            verb = operation.name.lower()
            raise InvalidArgument(
                f'transactional {verb} for id "{unread}" requires a prior read proving the id is {state}'
            )
        self.ids |= new
        if records.batch is not None:
            self.written.append(records)


def _apply(operation: Any, state: _Transaction, limits: Limits, *, embeds: bool) -> None:
    if not isinstance(operation, Mapping):
        raise wrong_type(operation, "a map", "")
    name = one_of(text_of(member(operation, "operation", ""), "operation"), (_GET, *_WRITES), "operation")
    payload = member(operation, "payload", "")
    if not isinstance(payload, Mapping):
        raise wrong_type(payload, "a map", "payload")
    with within("payload"):
        if name == _GET:
            _read(payload, state, limits)
        elif name == "delete":
            _delete(payload, state, limits)
        else:
            records = parse_records(payload, _WRITES[name], embeds=embeds)
            state.write(_WRITES[name], payload["ids"], records)


def _read(payload: Mapping[str, Any], state: _Transaction, limits: Limits) -> None:
    """A read that was made, with the ids that it found."""
    get = parse_get(payload, limits)
    found = _strings(payload, "expected_ids")
    ids = get.selection.ids
    if ids is None:
        _check_limited(get.limit)
        ids = []
    absent = set(ids).difference(found) if get.selection.where is None else ()
    state.read([*ids, *found], present=found, absent=absent)


def _delete(payload: Mapping[str, Any], state: _Transaction, limits: Limits) -> None:
    delete = parse_delete(payload, limits)
    ids = delete.selection.ids
    if not ids or delete.selection.where is not None or delete.limit is not None:
        raise InvalidArgument("transactional predicate deletes are not supported")
    operations = np.full(len(ids), Operation.DELETE, dtype=np.uint8)
    batch = pa.record_batch({OP: pa.array(operations), ID: pa.array(ids, pa.string())})
    state.write(Operation.DELETE, ids, Records(batch, None))


def _joined(written: Sequence[Records]) -> tuple[pa.RecordBatch | None, int | None]:
    """All of it as one batch, and the dimension of its embeddings."""
    dimensions = {records.dimension for records in written} - {None}
    if len(dimensions) > 1:
        raise DimensionMismatch("Inconsistent dimensions in provided embeddings")
    if not written:
        return None, None
    table = concat_rows([pa.Table.from_batches([records.batch]) for records in written])
    return table.combine_chunks().to_batches()[0], next(iter(dimensions), None)


def _check_limited(limit: int | None) -> None:
    if not limit:
        raise InvalidArgument("transactional filter reads require a positive limit")


def _token(body: Mapping[str, Any]) -> int | None:
    value = body.get("read_token")
    if value is None:
        return None
    if not isinstance(value, int) or isinstance(value, bool):
        raise wrong_type(value, "u64", "read_token")
    if not 0 <= value < 2**64:
        raise BodyError(f"invalid value: {described(value)}, expected u64", "read_token")
    return value


def _strings(body: Mapping[str, Any], name: str) -> list[Any]:
    """A list of strings, empty for null."""
    return [] if body.get(name) is None else strings(body[name], name)


def _first(ids: Sequence[str], wanted: set[str]) -> str | None:
    return next((id_ for id_ in ids if id_ in wanted), None) if wanted else None


def _repeated(ids: Sequence[str]) -> str:
    """The first that is there twice."""
    counts = Counter(ids)
    return next(id_ for id_ in ids if counts[id_] > 1)

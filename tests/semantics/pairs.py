"""Reads of an engine compared with the oracle's, one (read, state) pair at a time.

Everything is drawn from one seed: a difference is reproduced by the numbers of its state and its read. Searches whose order hangs on
ties closer than arithmetic can tell are drawn anew.
"""

from __future__ import annotations

import json
import math
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Hashable, Sequence
from dataclasses import dataclass, field, replace
from random import Random
from typing import Any

import numpy as np
import pyarrow as pa

from shoal_core.consistency import STRONG, Consistency, ReadLevel
from shoal_core.contracts import Answer, CollectionRef, Include, NewCollection, Outcome, PublicApi
from shoal_core.filters import all_of, parse_where, parse_where_document
from shoal_core.rank_json import parse_search
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.oracle import OracleCollection, OracleState
from shoal_testing.oracle_measures import Measured, measure_dense
from shoal_testing.random_queries import EXPECTED, EXPECTED_OF_SEARCH, VERBS, Label, Query, draw_query
from shoal_testing.random_records import DIMENSION, LAYOUTS, SHARDS, Plan
from shoal_testing.strategies import from_row_table, to_operation_batch

SEED = 5
STATES = 60
READS = 336  # of one state

#: What of the engine is compared. All of it; a part may be taken out while it is being written.
ENABLED = VERBS
AS_OF = True
OUTCOMES = True

_EVERYTHING = Include(documents=True, metadatas=True, embeddings=True, uris=True)
_IDS = Include()
_DISTANCES = Include(distances=True)
_DRAWS = 20

Compact = Callable[[CollectionRef, bool], Awaitable[None]]


class Differs(AssertionError):
    """Engine and oracle answer differently."""


@dataclass(frozen=True, slots=True)
class State:
    """A collection of an engine and the oracle that had the same writes."""

    plan: Plan
    database: PublicApi
    ref: CollectionRef
    oracle: OracleCollection


@dataclass(slots=True)
class Coverage:
    """How many reads were compared, by what of the language they use and by the kind of state."""

    counts: Counter[tuple[Label, str, int]] = field(default_factory=Counter)
    states: set[int] = field(default_factory=set)
    pairs: int = 0

    def add(self, plan: Plan, query: Query) -> None:
        """Count one read."""
        self.pairs += 1
        self.counts.update((label, plan.layout, plan.shards) for label in query.labels)

    def missing(self) -> list[tuple[Label, str, int]]:
        """Cells of the table that no read is in."""
        return [cell for label in expected_labels() for cell in _cells(label) if not self.counts[cell]]

    def table(self) -> list[str]:
        """Lines: a row for each operator and type, a column for each layout and number of shards."""
        names = [f"{layout}/{shards}" for layout in LAYOUTS for shards in SHARDS]
        lines = [
            f"{self.pairs} pairs of a read and a state, in {len(self.states)} states",
            _line("operator", "type", names),
        ]
        labels = sorted({label for label, _, _ in self.counts})
        return lines + [_line(*label, [self.counts[cell] for cell in _cells(label)]) for label in labels]


def expected_labels() -> list[Label]:
    """What the reads must use in every kind of state."""
    verbs = [(verb, when) for verb in ENABLED for when in ("now", "as_of") if AS_OF or when == "now"]
    return sorted(EXPECTED | (EXPECTED_OF_SEARCH if "search" in ENABLED else frozenset()) | set(verbs))


def _cells(label: Label) -> list[tuple[Label, str, int]]:
    return [(label, layout, shards) for layout in LAYOUTS for shards in SHARDS]


def _line(operator: str, kind: str, cells: Sequence[Any]) -> str:
    return f"{operator:14} {kind:15}" + "".join(f"{cell:>12}" for cell in cells)


# --- states


async def build(plan: Plan, database: PublicApi, compact: Compact) -> State:
    """A state, written through ``database``. Raises `Differs` where a write answers otherwise than the oracle."""
    oracle = OracleCollection(plan.space, DIMENSION, plan.schema, keep_history=True)
    new = NewCollection(
        DEFAULT_TENANT,
        DEFAULT_DATABASE,
        f"state-{plan.number}",
        space=plan.space,
        shards=plan.shards,
        schema=plan.schema,
    )
    collection, _ = await database.create_collection(new)
    ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=collection.id)
    for step, (kind, what) in enumerate(plan.steps):
        if kind == "write":
            answers = await write(database, ref, oracle, what)
        elif kind == "delete":
            deleted = await database.delete_where(ref, ids=None, where=parse_where(what), allow_scan=True)
            answers = deleted.records, oracle.delete_where(where=what)
        else:
            await compact(ref, kind == "merge")
            continue
        _same(*answers, f"state {plan.number}, step {step} ({kind})")
    return State(plan, database, ref, oracle)


async def write(
    database: PublicApi, ref: CollectionRef, oracle: OracleCollection, ops: Sequence[Any]
) -> tuple[Any, Any]:
    """Write to both; the engine's outcomes and the oracle's."""
    expected = oracle.write(ops)
    batch = to_operation_batch(ops, DIMENSION)
    if not OUTCOMES:
        result = await database.write(ref, batch)
        return result.token.offset, oracle.head_offset
    result = await database.write(ref, batch, outcomes=True)
    found = [Outcome(byte).name.lower() for byte in result.outcomes or b""]
    return (result.token.offset, found), (oracle.head_offset, expected)


async def compare_reads(state: State, reads: int, coverage: Coverage, *, seed: int = SEED) -> None:
    """Draw and compare. Raises `Differs` with the first differences."""
    random = Random(f"reads {seed}/{state.plan.number}")
    differences = []
    for number in range(reads):
        query = draw_settled(random, state.oracle)
        try:
            await compare(state, query, wide=number % 6 == 0)
        except Exception as error:
            differences.append(f"{describe(state.plan, query, seed, number)}\n{type(error).__name__}: {error}")
        coverage.add(state.plan, query)
    coverage.states.add(state.plan.number)
    if differences:
        raise Differs(f"{len(differences)} of {reads} reads differ\n" + "\n".join(differences[:3]))


def draw_settled(random: Random, oracle: OracleCollection) -> Query:
    """A read whose answer does not hang on near ties."""
    for _ in range(_DRAWS):
        query = draw_query(random, ENABLED, oracle.head_offset, as_of=AS_OF)
        if query.verb != "search" or state_at(oracle, query).search(*_search_of(query)).settled:
            return query
    raise AssertionError(f"{_DRAWS} searches in a row hang on near ties")


def describe(plan: Plan, query: Query, seed: int, number: int) -> str:
    """What reproduces a read."""
    place = f"seed {seed}, state {plan.number} ({plan.layout}, {plan.shards} shards, {plan.space}), read {number}"
    return f"{place}: {query.verb} {json.dumps(query.arguments, ensure_ascii=False)}"


# --- one read


def state_at(oracle: OracleCollection, query: Query) -> OracleState:
    """What the read sees."""
    at = query.arguments.get("at")
    return oracle if at is None else oracle.at(at)


async def compare(state: State, query: Query, *, wide: bool = True) -> None:
    """Raise `Differs` unless the engine answers as the oracle does. ``wide``: with all columns."""
    given = query.arguments
    at = given.get("at")
    consistency = STRONG if at is None else Consistency(ReadLevel.AS_OF, at)
    oracle = state_at(state.oracle, query)
    verb = {"get": _get, "count": _count, "query": _query, "search": _search, "pages": _pages}[query.verb]
    try:
        await verb(state, oracle, given, {"consistency": consistency, "allow_scan": True}, wide)
    except Exception as error:
        error.add_note(f"{query.verb} {json.dumps(given, ensure_ascii=False)}")
        raise


async def _get(state: State, oracle: OracleState, given: Any, options: Any, wide: bool) -> None:
    page = {"limit": given["limit"], "offset": given["offset"]}
    include = _EVERYTHING if wide else _IDS
    answer = await state.database.get(
        state.ref, ids=given.get("ids"), where=_tree(given), include=include, **page, **options
    )
    expected = oracle.get(given.get("ids"), given["where"], given["where_document"], **page)
    _same_records(answer, expected, oracle.head_offset, wide)


async def _count(state: State, oracle: OracleState, given: Any, options: Any, _: bool) -> None:
    answer = await state.database.count(state.ref, where=_tree(given), **options)
    expected = oracle.count(given["where"], given["where_document"])
    _same((answer.count, answer.served_at.offset), (expected, oracle.head_offset))


async def _pages(state: State, oracle: OracleState, given: Any, options: Any, wide: bool) -> None:
    include = _EVERYTHING if wide else _IDS
    selection = {"ids": given.get("ids"), "where": _tree(given)}
    expected = oracle.pages(
        given.get("ids"), given["where"], given["where_document"], limit=given["limit"], offset=given["offset"]
    )
    cursor, offset = "", given["offset"]
    for page in expected or [[]]:
        answer = await state.database.get(
            state.ref, **selection, limit=given["limit"], offset=offset, cursor=cursor, include=include, **options
        )
        _same_records(answer, page, oracle.head_offset, wide)
        cursor, offset = answer.cursor, 0
        if not cursor:
            _same(page, (expected or [[]])[-1], "the cursor ends early")
    if cursor:  # allowed after a full page: whether more follows was not looked up
        rest = await state.database.get(state.ref, **selection, limit=given["limit"], cursor=cursor, **options)
        _same((rest.rows.num_rows, rest.cursor), (0, ""), "after the last page")


async def _query(state: State, oracle: OracleState, given: Any, options: Any, _: bool) -> None:
    vectors = np.asarray(given["vectors"], np.float32)
    answer = await state.database.query(
        state.ref,
        vectors,
        given["k"],
        ids=given.get("ids"),
        where=_tree(given),
        include=_DISTANCES,
        exact=True,
        **options,
    )
    records = oracle.get(given.get("ids"), given["where"], given["where_document"])
    ids, distances = answer.rows.column("id").to_pylist(), _column(answer.rows, "distance")
    start = 0
    for vector, count in zip(vectors.tolist(), answer.row_counts.tolist(), strict=True):
        measured = {row["id"]: measure_dense(oracle.space, vector, row["embedding"]) for row in records}
        _same_nearest(ids[start : start + count], distances[start : start + count], measured, given["k"])
        start += count
    _same((answer.served_at.offset, start), (oracle.head_offset, len(ids)))


async def _search(state: State, oracle: OracleState, given: Any, options: Any, _: bool) -> None:
    payload, ids = given["payload"], given.get("ids")
    search = replace(parse_search(payload), ids=None if ids is None else tuple(ids))
    [answer] = await state.database.search(state.ref, [search], exact=True, **options)
    _same_found(answer, payload, oracle, ids)
    limit = search.limit
    if not limit:
        return
    following = payload | {"limit": {"offset": search.offset + limit, "limit": limit}}
    if answer.cursor:  # the page after, of the same snapshot: offset and consistency do not matter then
        search = replace(search, cursor=answer.cursor, offset=1)
        [answer] = await state.database.search(state.ref, [search], exact=True, allow_scan=True)
        _same_found(answer, following, oracle, ids)
    else:
        _same([], oracle.search(following, ids).rows, "no cursor, but more")


def _same_found(answer: Answer, payload: Any, oracle: OracleState, ids: Any) -> None:
    found = oracle.search(payload, ids)
    keys = [key for key in payload["select"]["keys"] if key != "#score"]
    _same([_shown(row, keys) for row in from_row_table(answer.rows)], [_shown(row, keys) for row in found.rows])
    _same(answer.served_at.offset, oracle.head_offset)
    if "rank" in payload and "#score" in payload["select"]["keys"]:
        given_scores, scores = _column(answer.rows, "score"), [row["score"] for row in found.rows]
        near = [_near(*three) for three in zip(given_scores, scores, found.errors, strict=True)]
        if not all(near):
            raise Differs(f"scores\nengine: {given_scores}\noracle: {scores}")


def _search_of(query: Query) -> tuple[Any, Any]:
    return query.arguments["payload"], query.arguments.get("ids")


def _tree(given: Any) -> Any:
    return all_of(parse_where(given["where"]), parse_where_document(given["where_document"]))


def _column(rows: pa.Table, name: str) -> list[Any]:
    return list(rows.column(name).to_pylist()) if rows.num_rows else []


# --- equality


def _same(found: Any, expected: Any, what: str = "") -> None:
    if found != expected:
        raise Differs(f"{what}\nengine: {found}\noracle: {expected}")


def _near(found: float, expected: float, error: float) -> bool:
    if found == expected or (math.isnan(found) and math.isnan(expected)):
        return True
    return abs(found - expected) <= error + 1e-9 * abs(expected)


def _same_records(answer: Answer, expected: Sequence[dict[str, Any]], offset: int, wide: bool) -> None:
    if wide:
        keys = ["#document", "#embedding", "#metadata", "#uri"]
        found = [(row["created_offset"], _shown(row, keys)) for row in from_row_table(answer.rows)]
        _same(found, [(row["created_offset"], _shown(row, keys)) for row in expected])
    columns = [_column(answer.rows, "id"), _column(answer.rows, "created_offset")]
    _same(columns, [[row["id"] for row in expected], [row["created_offset"] for row in expected]])
    _same((answer.served_at.offset, answer.complete), (offset, True), "snapshot")


def _shown(row: dict[str, Any], keys: Sequence[str]) -> dict[str, str]:
    """What a row shows of the selected keys, numbers with their types: 1 is not 1.0 here."""
    shown = {"id": row["id"]}
    for name in ("document", "uri"):
        if row.get(name) is not None and f"#{name}" in keys:
            shown[f"#{name}"] = repr(row[name])
    if "#embedding" in keys:
        shown["#embedding"] = repr(np.asarray(row["embedding"], np.float32).tolist())
    metadata = row["metadata"].items()
    return shown | {key: repr(value) for key, value in metadata if "#metadata" in keys or key in keys}


def _same_nearest(ids: Sequence[str], distances: Sequence[float], measured: dict[str, Measured], k: int) -> None:
    """``measured`` in order of creation. Where distances are not exact, near ones may swap; records with equal grounds may not."""
    order = sorted(measured, key=lambda record_id: measured[record_id].value)[:k]
    expected = [measured[record_id].value for record_id in order]
    if all(one.exact for one in measured.values()):
        _same((list(ids), list(distances)), (order, expected))
        return
    _same((len(ids), len(set(ids))), (len(order), len(order)), "how many")
    alike: dict[Hashable, list[str]] = defaultdict(list)
    for record_id, one in measured.items():
        alike[one.grounds].append(record_id)
    reached = -math.inf  # no record is surely nearer than those before it
    for record_id, distance in zip(ids, distances, strict=True):
        own = measured[record_id]
        _same(record_id, alike[own.grounds].pop(0), f"creation decides between equals in {ids}")
        reached = max(reached, own.value - own.error)
        if own.value + own.error < reached or not _near(distance, own.value, own.error):
            raise Differs(f"{record_id}\nengine: {ids} {distances}\noracle: {order} {expected}")
    left_out = [record_id for record_id in measured if record_id not in ids]
    _same([key for key in left_out if measured[key].value + measured[key].error < reached], [], "left out")

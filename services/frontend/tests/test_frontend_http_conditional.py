"""Conditional reads and writes over HTTP: the forms that clients send, conflicts, tokens, and the rules of a transaction."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.frontend.tests.frontend_http_support import Answered, Site, T, http_of
from shoal_core.contracts import CollectionRef
from shoal_testing.strategies import examples

GET, COMMIT = "conditional/get", "conditional/commit"
CONFLICT = (
    409,
    "ConditionalWriteConflictError",
    "conditional write conflict: a record that was read has been written since; read again",
)
STALE = (
    412,
    "StaleReadError",
    "the snapshot of the read token is kept no longer; read again without it",
)
OTHERS = (
    400,
    "InvalidArgumentError",
    "read_token: a token of another collection; pass what a read of this one returned",
)


def add(*ids: str, text: str | None = None) -> dict[str, Any]:
    return write("add", *ids, text=text)


def write(verb: str, *ids: str, text: str | None = None) -> dict[str, Any]:
    payload: dict[str, Any] = {"ids": list(ids), "embeddings": [[1.0, 2.0]] * len(ids)}
    if verb == "update":
        payload["embeddings"] = None
    if text is not None:
        payload["documents"] = [text] * len(ids)
    return {"operation": verb, "payload": payload}


def delete(*ids: str, **more: Any) -> dict[str, Any]:
    return {"operation": "delete", "payload": {"ids": list(ids), "where": None, "where_document": None, **more}}


async def site_with(*ids: str) -> Site:
    site = await Site().start()
    if ids:
        await site.post("add", add(*ids, text="old")["payload"])
    return site


async def read(site: Site, *ids: str, token: int | None = None, **more: Any) -> Any:
    answer = await site.post(GET, {"ids": list(ids), "read_token": token, **more})
    assert answer.status == 200, answer.body
    return answer.json


async def commit(site: Site, token: int | None, read_ids: list[str], *operations: dict[str, Any]) -> Answered:
    return await site.post(COMMIT, {"read_token": token, "read_ids": read_ids, "operations": list(operations)})


async def documents(site: Site) -> dict[str, Any]:
    found = (await site.post("get", {})).json
    return dict(zip(found["ids"], found["documents"], strict=True))


async def test_a_transaction_reads_at_one_snapshot_and_writes_once() -> None:
    site = await site_with("a", "b", "c")
    first = await read(site, "a", "zz", include=["documents"])
    assert first["ids"] == ["a"]
    assert first["documents"] == ["old"]
    assert set(first) == {"ids", "embeddings", "documents", "uris", "metadatas", "include", "read_token"}
    await site.post("upsert", write("upsert", "b", "later", text="new")["payload"])
    second = await read(site, "b", "later", token=first["read_token"])
    assert (second["ids"], second["documents"]) == (["b"], ["old"])
    assert second["read_token"] == first["read_token"]

    operations = add("zz", text="added"), write("update", "a", text="changed"), delete("c")
    answer = await commit(site, first["read_token"], ["a", "c", "zz"], *operations)
    assert (answer.status, answer.json) == (200, {"first_inserted_record_offset": 6, "record_count": 3})
    assert await documents(site) == {"a": "changed", "b": "new", "later": "new", "zz": "added"}


async def test_the_loser_of_two_transactions_gets_a_conflict_and_writes_nothing() -> None:
    site = await site_with("a", "b")
    one, other = [(await read(site, "a", "b"))["read_token"] for _ in range(2)]
    assert (await commit(site, one, ["a"], write("update", "a", text="one"))).status == 200
    lost = await commit(site, other, ["a", "b"], write("update", "b", text="other"), write("upsert", "c", text="other"))
    assert lost.error == CONFLICT
    assert await documents(site) == {"a": "one", "b": "old"}


async def test_of_concurrent_transactions_over_one_record_one_wins() -> None:
    site = await site_with("counter")
    token = (await read(site, "counter"))["read_token"]
    updates = [commit(site, token, ["counter"], write("update", "counter", text=str(number))) for number in range(8)]
    statuses = [answer.status for answer in await asyncio.gather(*updates)]
    assert sorted(statuses) == [200] + [409] * 7
    assert await documents(site) == {"counter": str(statuses.index(200))}


async def test_the_absence_of_a_record_is_watched_too() -> None:
    site = await site_with()
    token = (await read(site, "new"))["read_token"]
    await site.post("add", add("new", text="first")["payload"])
    assert (await commit(site, token, ["new"], add("new", text="second"))).error == CONFLICT


async def test_reads_repeated_among_the_operations_are_what_a_commit_depends_on() -> None:
    site = await site_with("a", "b")
    token = (await read(site, "a", "n"))["read_token"]
    reads = {"operation": "get", "payload": {"ids": ["a", "n"], "where": None, "offset": 0, "expected_ids": ["a"]}}
    found = {"operation": "get", "payload": {"where": {"k": 1}, "limit": 5, "expected_ids": ["b"]}}
    writes = [add("n", text="new"), write("update", "a", text="new")]
    body = {"read_token": token, "operations": [reads, found, *writes]}
    await site.post("update", write("update", "b", text="between")["payload"])
    assert (await site.post(COMMIT, body)).error == CONFLICT  # b was found by the filter
    body["operations"] = [reads, *writes]
    assert (await site.post(COMMIT, body)).json["record_count"] == 2


async def test_writes_that_depend_on_nothing_need_no_token() -> None:
    site = await site_with()
    assert (await commit(site, None, [], write("upsert", "a", "b"))).json["record_count"] == 2
    nothing = await commit(site, None, [])
    assert (nothing.status, nothing.json) == (200, {"first_inserted_record_offset": None, "record_count": 0})
    assert (await commit(site, None, ["a"], write("upsert", "a"))).error == (
        400,
        "InvalidArgumentError",
        "read_token: a commit that depends on reads needs their token",
    )


# --- tokens


async def test_a_token_of_another_collection_database_or_tenant_is_refused() -> None:
    site = await site_with("a")
    await site.http("POST", "/api/v2/tenants", {"name": "others"})
    await site.http("POST", "/api/v2/tenants/others/databases", {"name": "theirs"})
    there = "/api/v2/tenants/others/databases/theirs/collections"
    for path in (f"{T}/collections", there):
        made = await site.http("POST", path, {"name": "second"})
        foreign = (await site.http("POST", f"{path}/{made.json['id']}/{GET}", {"ids": ["a"]})).json["read_token"]
        assert (await site.post(GET, {"ids": ["a"], "read_token": foreign})).error == OTHERS
        assert (await commit(site, foreign, ["a"], write("update", "a"))).error == OTHERS
        assert (await commit(site, foreign, [], write("upsert", "a"))).error == OTHERS
    own = (await read(site, "a"))["read_token"]
    stranger = await site.http("POST", f"{there}/{site.id}/{GET}", {"ids": ["a"], "read_token": own})
    assert stranger.error == (404, "NotFoundError", f"Collection [{site.id}] does not exist.")


async def test_a_token_is_a_number_that_every_client_can_keep() -> None:
    site = await site_with("a")
    token = (await read(site, "a"))["read_token"]
    assert isinstance(token, int)
    assert 0 < token < 2**53


async def test_a_token_of_the_future_is_refused() -> None:
    site = await site_with("a")
    token = (await read(site, "a"))["read_token"] + (100 << 13)
    assert (await site.post(GET, {"ids": ["a"], "read_token": token})).error[0] == 400
    assert (await commit(site, token, ["a"], write("update", "a"))).error[0] == 400


async def stale_site() -> tuple[Site, int]:
    """And a token that its log no longer reaches back to."""
    site = await site_with("a")
    token = (await read(site, "a"))["read_token"]
    await site.post("update", write("update", "a", text="new")["payload"])
    await site.system.compact(CollectionRef("default_tenant", "default_database", id=site.id))
    site.system.log.trim(site.id, 2)
    site.system.node = site.system.new_node("without what the other one remembers")
    site.http = http_of(site.system.new_database(), site.system)
    return site, token


async def test_writes_that_depend_on_what_is_kept_no_longer_are_stale() -> None:
    site, token = await stale_site()
    assert (await commit(site, token, ["a"], write("update", "a"))).error[:2] == (412, "StaleReadError")


async def test_reads_of_what_is_kept_no_longer_are_stale() -> None:
    site, token = await stale_site()
    assert (await site.post(GET, {"ids": ["a"], "read_token": token})).error == STALE


# --- rules and forms


@pytest.mark.parametrize(
    ("operations", "message"),
    [
        ([add("x", "x")], 'transactional write request contains duplicate id "x"'),
        ([write("upsert", "q"), write("upsert", "q")], 'transaction already has a buffered write for id "q"'),
        ([add("unread")], 'transactional add for id "unread" requires a prior read proving the id is absent'),
        (
            [write("update", "unread")],
            'transactional update for id "unread" requires a prior read proving the id is present',
        ),
        ([delete("unread")], 'transactional delete for id "unread" requires a prior read proving the id is present'),
        ([delete()], "Validation error: ids, where: Either ids or where must be specified"),
        ([delete("x", where={"k": 1})], "transactional predicate deletes are not supported"),
        ([delete("x", where={"k": 1}, limit=1)], "transactional predicate deletes are not supported"),
        (
            [write("upsert", "q"), {"operation": "get", "payload": {"ids": ["q"]}}],
            'cannot transactionally read id "q" after buffering a write for it',
        ),
        ([{"operation": "get", "payload": {"where": {"k": 1}}}], "transactional filter reads require a positive limit"),
        (
            [{"operation": "get", "payload": {"ids": ["p"], "expected_ids": []}}, write("update", "p")],
            'transactional update for id "p" requires a prior read proving the id is present',
        ),
        (
            [{"operation": "get", "payload": {"ids": ["p"], "where": {"k": 1}}}, add("p")],
            'transactional add for id "p" requires a prior read proving the id is absent',
        ),
        (
            [write("upsert", "q"), {"operation": "upsert", "payload": {"ids": ["r"], "embeddings": [[1.0]]}}],
            "Inconsistent dimensions in provided embeddings",
        ),
    ],
)
async def test_rules_of_a_transaction(operations: list[dict[str, Any]], message: str) -> None:
    site = await site_with("x")
    token = (await read(site, "x"))["read_token"]
    answer = await commit(site, token, ["x"], *operations)
    assert answer.error == (400, "InvalidArgumentError", message)
    assert await documents(site) == {"x": "old"}


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "missing field `operations` at line 1 column 2"),
        ({"operations": {}}, "operations: invalid type: map, expected a sequence at line 1 column 16"),
        ({"operations": [1]}, "operations[0]: invalid type: integer `1`, expected a map at line 1 column 16"),
        (
            {"operations": [{"operation": "steal", "payload": {}}]},
            "operations[0].operation: unknown variant `steal`, expected one of `get`, `add`, `update`, `upsert`, `delete` "
            "at line 1 column 35",
        ),
        ({"operations": [{"operation": "add"}]}, "operations[0]: missing field `payload` at line 1 column 34"),
        (
            {"operations": [{"operation": "add", "payload": {"ids": ["a"]}}]},
            "operations[0].payload: missing field `embeddings` at line 1 column 57",
        ),
        (
            {"operations": [{"operation": "add", "payload": {"ids": ["a"], "embeddings": [["b"]]}}]},
            'operations[0].payload.embeddings[0][0]: invalid type: string "b", expected f32 at line 1 column 75',
        ),
        (
            {"operations": [], "read_token": "t"},
            'read_token: invalid type: string "t", expected u64 at line 1 column 33',
        ),
        (
            {"operations": [], "read_token": -1},
            "read_token: invalid value: integer `-1`, expected u64 at line 1 column 32",
        ),
        (
            {"operations": [], "read_ids": [1]},
            "read_ids[0]: invalid type: integer `1`, expected a string at line 1 column 30",
        ),
    ],
)
async def test_bodies_of_another_form_are_refused_with_their_place(body: Any, message: str) -> None:
    site = await site_with()
    answer = await site.post(COMMIT, body)
    problem = f"Failed to deserialize the JSON body into the target type: {message}"
    assert answer.error == (422, "ChromaError", problem)


async def test_reads_by_filter_need_a_limit_and_reads_by_id_do_not() -> None:
    site = await site_with("a", "b")
    for limit in ({}, {"limit": 0}):
        answer = await site.post(GET, {"where_document": {"$contains": "old"}, **limit})
        assert answer.error == (400, "InvalidArgumentError", "transactional filter reads require a positive limit")
    assert (await site.post(GET, {"where_document": {"$contains": "old"}, "limit": 1})).json["ids"] == ["a"]


async def test_the_dimension_of_the_collection_holds() -> None:
    site = await site_with("a")
    body = {"operation": "upsert", "payload": {"ids": ["b"], "embeddings": [[1.0]]}}
    answer = await commit(site, None, [], body)
    assert answer.error[2] == "Collection expecting embedding with dimension of 2, got 1"


async def test_unknown_collections() -> None:
    site = await site_with()
    path = f"{T}/collections/00000000-0000-4000-8000-000000000000"
    for verb, body in ((GET, {"ids": ["a"]}), (COMMIT, {"operations": []})):
        assert (await site.http("POST", f"{path}/{verb}", body)).error[:2] == (404, "NotFoundError")


async def test_too_many_operations_are_refused() -> None:
    site = await site_with()
    answer = await site.post(COMMIT, {"operations": [write("upsert", "a")] * 10_001})
    assert answer.error[2].startswith("operations: 10001 operations, at most 10000")


# --- against a model

IDS = ("a", "b", "c")
steps = st.lists(
    st.one_of(
        st.tuples(st.just("read"), st.integers(0, 1), st.sets(st.sampled_from(IDS), min_size=1)),
        st.tuples(st.just("write"), st.sampled_from(("upsert", "delete")), st.sampled_from(IDS)),
        st.tuples(st.just("commit"), st.integers(0, 1), st.sampled_from(IDS)),
    ),
    max_size=12,
)


class Model:
    """Two transactions over a few records, as a plain history of states."""

    def __init__(self) -> None:
        self.history: list[dict[str, str]] = [{}]
        self.changed: dict[str, int] = {}

    @property
    def now(self) -> int:
        return len(self.history) - 1

    def apply(self, verb: str, id_: str, text: str) -> None:
        state = dict(self.history[-1])
        if verb == "delete":
            state.pop(id_, None)
        else:
            state[id_] = text
        self.history.append(state)
        self.changed[id_] = self.now


@pytest.fixture(scope="module")
def played() -> Iterator[tuple[asyncio.Runner, Site]]:
    with asyncio.Runner() as runner:
        yield runner, Site()


@examples(60)
@given(given_steps=steps)
def test_transactions_behave_as_in_a_history_of_states(
    played: tuple[asyncio.Runner, Site], given_steps: list[tuple[str, Any, Any]]
) -> None:
    runner, site = played
    runner.run(_play(site, given_steps))


async def _play(site: Site, given_steps: list[tuple[str, Any, Any]]) -> None:
    await site.http("DELETE", f"{T}/collections/coll1")
    await site.start()
    model = Model()
    tokens: dict[int, tuple[int, int]] = {}  # per transaction the token and the state it stands for
    seen: dict[int, set[str]] = {0: set(), 1: set()}
    for number, (step, what, ids) in enumerate(given_steps):
        text = str(number)
        if step == "read":
            token, at = tokens.get(what, (None, model.now))
            found = await read(site, *sorted(ids), token=token)
            expected = {id_: model.history[at][id_] for id_ in ids if id_ in model.history[at]}
            assert dict(zip(found["ids"], found["documents"], strict=True)) == expected
            tokens[what] = (found["read_token"], at)
            seen[what] |= ids
        elif step == "write":
            body = {"ids": [ids]} if what == "delete" else write("upsert", ids, text=text)["payload"]
            assert (await site.post(what, body)).status == 200
            model.apply(what, ids, text)
        else:
            token, at = tokens.pop(what, (None, model.now))
            answer = await commit(site, token, sorted(seen[what]), write("upsert", ids, text=text))
            conflict = any(model.changed.get(id_, 0) > at for id_ in seen[what])
            assert answer.status == (409 if conflict else 200), answer.body
            if not conflict:
                model.apply("upsert", ids, text)
            seen[what] = set()
        assert await documents(site) == model.history[-1]

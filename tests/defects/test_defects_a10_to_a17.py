"""Defects A10 to A17 of the reference system: each test says what went wrong there, and fails if it went wrong here."""

from __future__ import annotations

import asyncio
import json
import re
import sys
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from shoal._embedder import Functions
from shoal.embedding import Bm25 as ClientBm25
from shoal.embedding.registry import KINDS
from shoal_core.contracts import CollectionRef, Include, NewCollection, Outcome
from shoal_core.errors import AlreadyExists, DimensionMismatch, FailedPrecondition, InvalidArgument, NotFound
from shoal_core.filters import parse_where
from shoal_core.ranking import DenseQuery, Knn, Rank, Search, Select, Sum, TextQuery
from shoal_core.schema import DOCUMENT_KEY, Analyzer, Index, Schema
from shoal_core.scoring import rrf
from shoal_frontend.database import DatabaseService
from shoal_index.segment import Segment, open_segment
from shoal_query.node import Node, NodeSettings
from shoal_testing.compaction import Crash
from shoal_testing.direct import DirectSystem
from shoal_testing.fakes import DEFAULT_DATABASE, DEFAULT_TENANT
from shoal_testing.garbage import SweptWorld, two_segments
from shoal_testing.schedules import Gate
from shoal_testing.strategies import Op, to_operation_batch
from shoal_text.analysis import analyze_text
from tests.defects.defect_support import (
    Laid,
    another_database,
    collection,
    drop,
    every_layout,
    every_sharding,
    graphs_from,
    halves,
    laid_out,
    put,
)

GOLDEN = Path(__file__).parents[2] / "libs/text/tests/chroma_bm25_golden.json"


# --- A10: races of writes with the catalog


@every_sharding
async def test_a10_of_two_first_writes_with_different_dimensions_one_is_acknowledged(shards: int) -> None:
    """The dimension was set without a compare-and-set: both writes were acknowledged, and the loser's records made the collection
    impossible to compact for ever.
    """
    async with collection(shards=shards) as at:
        gate = Gate("append")
        frontends = [another_database(at.system, before=gate) for _ in range(2)]
        batches = [to_operation_batch([put(f"dim-{n}", (1.0,) * n)], n) for n in (2, 3)]
        writes = [
            asyncio.ensure_future(one.write(at.ref, batch)) for one, batch in zip(frontends, batches, strict=True)
        ]
        await gate.until_held(2)  # both have passed validation, where there was no dimension yet
        gate.open()
        results = await asyncio.gather(*writes, return_exceptions=True)
        [error] = [result for result in results if isinstance(result, BaseException)]
        assert isinstance(error, DimensionMismatch)
        state = at.system.catalog.state(at.ref.id)
        assert state.head_offset == 1
        await at.compact()
        assert await at.ids() == [f"dim-{state.collection.dimension}"]


async def test_a10_a_schema_changed_while_a_compaction_publishes_stays_changed() -> None:
    """A compaction wrote back the schema that it had read at its start, over one that was set meanwhile."""
    async with collection() as at:
        await at.write(put("a", text="a text", metadata={"k": 1}))
        changed = Schema(off=frozenset({Index.INT}), keys={DOCUMENT_KEY: {Index.RANKED: False}})
        steps = []

        async def change(name: str) -> None:
            steps.append(name)
            if name == "publish":
                await at.database.modify_collection(at.ref, schema=changed, configuration={"own": True})

        at.system.compactor.step = change
        await at.compact()
        assert "publish" in steps
        state = at.system.catalog.state(at.ref.id)
        assert state.current.compacted_offset == 1
        assert (state.collection.schema, state.collection.configuration) == (changed, {"own": True})
        at.system.compactor.step = lambda name: asyncio.sleep(0)
        await at.write(put("b", text="b text", metadata={"k": 2}))
        await at.compact()
        [_, newest] = await segments(at)
        assert newest.terms is None  # and what is built after it follows it
        assert not newest.values


async def segments(at: Laid) -> list[Segment]:
    """The segments of the only shard, read anew."""
    node = at.system.new_node("fresh")
    await another_database(at.system, node=node).count(at.ref)
    [shard] = node.loaded.shards.values()
    assert shard.view is not None
    found = [view.segment for view in shard.view.version.segments]
    await node.close()
    return found


# --- A11: texts

TEXTS = ("", "a", "ab", "b", "xayb", "日本", "本日", "é", "line\nbreak", "tab\there", "aa bb cc", None, None)


def texts() -> list[Op]:
    return [put(f"id-{n:02d}", text=text) for n, text in enumerate(TEXTS)]


@every_layout
@every_sharding
async def test_a11_substrings_of_one_and_two_characters_are_found(layout: str, shards: int) -> None:
    """The index of compacted documents held trigrams only: shorter texts were in no document, where the log found them."""
    async with laid_out(layout, halves(texts()), shards=shards) as at:
        for part in ("a", "ab", "b", "日", "本", "日本", "é", "\n", "\t", "xa", "yb", "zz", "q", " ", ""):
            expected = {f"id-{n:02d}" for n, text in enumerate(TEXTS) if text is not None and part in text}
            assert set(await at.ids(where_document={"$contains": part})) == expected, part
            everything = {f"id-{n:02d}" for n in range(len(TEXTS))}
            assert set(await at.ids(where_document={"$not_contains": part})) == everything - expected, part


@every_layout
@every_sharding
async def test_a11_expressions_without_literals_match_documents_and_nothing_else(layout: str, shards: int) -> None:
    """Expressions that may match the empty text also matched records without a document; others without a literal of three
    characters matched nothing after compaction.
    """
    async with laid_out(layout, halves(texts()), shards=shards) as at:
        for pattern in (
            ".",
            "^.$",
            "^$",
            "",
            "[ab]+",
            r"\s",
            "a?",
            "x*",
            "^[^a]*$",
            "a.b",
            "(a|日).",
            "^[a-z日本]{2}$",
        ):
            expected = {f"id-{n:02d}" for n, text in enumerate(TEXTS) if text is not None and re.search(pattern, text)}
            assert set(await at.ids(where_document={"$regex": pattern})) == expected, pattern
            everything = {f"id-{n:02d}" for n in range(len(TEXTS))}
            assert set(await at.ids(where_document={"$not_regex": pattern})) == everything - expected, pattern


# --- A12: narrow filters, scores over shards


@every_layout
@every_sharding
async def test_a12_a_narrow_filter_still_finds_k(layout: str, shards: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """The filter was applied to what the probed clusters gave: with few matches, far from the query, fewer than k came back."""
    graphs_from(monkeypatch, 5)
    ops = [put(f"id-{n}", (float(n), 0.0), metadata={"n": n}) for n in range(600)]
    async with laid_out(layout, halves(ops), shards=shards, dimension=2, graph_rows=20) as at:
        for where, matches in (
            ({"n": {"$gte": 590}}, range(590, 600)),  # the farthest ten
            ({"n": {"$in": [3, 300, 599]}}, [3, 300, 599]),
            ({"n": {"$gte": 300}}, range(300, 600)),
            ({"n": 599}, [599]),
        ):
            for k in (1, 10, 100):
                expected = [f"id-{n}" for n in list(matches)[:k]]
                assert await at.near((0.0, 0.0), k, where=parse_where(where)) == expected


WORDS = ("shoal", "fish", "sea", "reef", "tide", "wave", "coral", "kelp")


def library(count: int = 90) -> list[Op]:
    """Documents of many lengths, some records without one, with vectors."""
    random = np.random.default_rng(12)
    ops = []
    for number in range(count):
        size = int(random.integers(1, 12))
        text = " ".join(random.choice(WORDS, size, p=np.array([8, 7, 6, 5, 4, 3, 2, 1]) / 36))
        vector = random.standard_normal(3).tolist()
        ops.append(put(f"id-{number:03d}", vector, text=None if number % 9 == 0 else text, metadata={"n": number}))
    return ops


def ranks() -> dict[str, Rank]:
    vector = DenseQuery(np.array([0.3, -0.2, 0.9], np.float32))
    text = Knn(TextQuery("coral reef and a tide"), DOCUMENT_KEY, limit=20)
    positions = [
        Knn(vector, limit=40, return_rank=True, default=100.0),
        Knn(TextQuery("kelp wave"), DOCUMENT_KEY, limit=30, return_rank=True, default=100.0),
    ]
    return {
        "text": text,
        "vector": Knn(vector, limit=30),
        "sum": Sum((Knn(vector, limit=90), Knn(TextQuery("coral fish"), DOCUMENT_KEY, limit=90, default=1.0))),
        "rrf": rrf(positions),
    }


async def scores(at: Laid, rank: Rank, where: Any = None) -> list[tuple[str, float]]:
    search = Search(rank=rank, limit=25, select=Select(scores=True), where=parse_where(where))
    [answer] = await at.database.search(at.ref, [search], exact=True)
    return list(zip(answer.rows.column("id").to_pylist(), answer.rows.column("score").to_pylist(), strict=True))


@pytest.mark.parametrize("name", sorted(ranks()))
async def test_a12_scores_do_not_depend_on_shards_or_compaction(name: str) -> None:
    """Ranks and inverse document frequencies were those of each shard: the same search scored otherwise with other shards."""
    for where in (None, {"n": {"$lt": 30}}):
        found = []
        for shards in (1, 2, 5):
            for layout in ("tail", "mixed", "merged"):
                async with laid_out(layout, halves(library()), shards=shards, dimension=3) as at:
                    found.append(await scores(at, ranks()[name], where))
        assert len(found[0]) >= 10
        assert all(other == found[0] for other in found[1:])


@every_layout
@every_sharding
async def test_a12_inverse_document_frequencies_are_the_collections(layout: str, shards: int) -> None:
    """As above, against the formula: N, document frequencies and lengths of all documents, whatever the filter."""
    ops = library()
    documents = {op[1]: Counter(analyze_text(op[3], Analyzer())) for op in ops if op[3] is not None}
    frequency = sum("coral" in terms for terms in documents.values())
    idf = np.log1p((len(documents) - frequency + 0.5) / (frequency + 0.5))
    average = sum(terms.total() for terms in documents.values()) / len(documents)
    expected = {}
    for key, terms in documents.items():
        if terms["coral"] and int(key[3:]) < 60:
            weight = 1.2 * (0.25 + 0.75 * terms.total() / average)
            expected[key] = 1 - idf * terms["coral"] * 2.2 / (terms["coral"] + weight)
    async with laid_out(layout, halves(ops), shards=shards, dimension=3) as at:
        found = await scores(at, Knn(TextQuery("coral"), DOCUMENT_KEY, limit=100), {"n": {"$lt": 60}})
        assert len(found) == min(25, len(expected)) > 5
        assert all(score == pytest.approx(expected[key], abs=1e-9) for key, score in found)


# --- A13, A14: deletes


@every_sharding
async def test_a13_a_deleted_collection_is_refused_at_once_through_another_frontend(shards: int) -> None:
    """Another frontend went on with what it had in its cache for up to a minute: reads were answered, and writes acknowledged that
    were then lost.
    """
    async with laid_out("mixed", halves([put(f"id-{n}") for n in range(6)]), shards=shards) as at:
        by_name = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, name="things")
        knowing = [(at.system.new_database(), ref, verb) for ref in (by_name, at.ref) for verb in VERBS]
        for frontend, ref, _ in knowing:  # each of them knows it, and is asked one thing
            assert (await frontend.count(ref)).count == 6
        head = at.system.catalog.state(at.ref.id).head_offset
        await at.database.delete_collection(by_name)
        for frontend, ref, verb in knowing:
            with pytest.raises(NotFound):
                await verb(frontend, ref)
        assert at.system.catalog.any_state(at.ref.id).head_offset == head
        assert [ref.id for ref in await at.database.list_collections(DEFAULT_TENANT, DEFAULT_DATABASE)] == []


@every_sharding
async def test_a13_a_collection_made_again_under_the_same_name_is_another_one(shards: int) -> None:
    """As above, where a name has a successor: nothing of the old one shows, and nothing meant for the old one reaches the new."""
    async with laid_out("mixed", halves([put(f"id-{n}") for n in range(6)]), shards=shards) as at:
        by_name = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, name="things")
        knowing = [(at.system.new_database(), verb) for verb in VERBS]
        other = at.system.new_database()
        for frontend in (other, *(frontend for frontend, _ in knowing)):
            assert (await frontend.count(at.ref)).count == (await frontend.count(by_name)).count == 6
        await at.database.delete_collection(by_name)
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "things", shards=shards)
        made = (await at.database.create_collection(new))[0]
        assert made.id != at.ref.id
        assert (await other.count(by_name)).count == 0
        await other.write(by_name, to_operation_batch([put("new", (1.0, 2.0))], 2))  # with a dimension of its own
        for frontend, verb in knowing:
            with pytest.raises(NotFound):
                await verb(frontend, at.ref)
        assert (await at.database.get(by_name)).rows.column("id").to_pylist() == ["new"]
        assert (await knowing[0][0].get(by_name)).rows.column("id").to_pylist() == ["new"]


Verb = Callable[[DatabaseService, CollectionRef], Awaitable[Any]]
VERBS: tuple[Verb, ...] = (
    lambda database, ref: database.get(ref),
    lambda database, ref: database.count(ref),
    lambda database, ref: database.query(ref, np.zeros((1, 1), np.float32), 1),
    lambda database, ref: database.search(ref, [Search(limit=1)]),
    lambda database, ref: database.write(ref, to_operation_batch([put("lost")], 1)),
    lambda database, ref: database.delete_where(ref, ids=["id-0"], where=None),
    lambda database, ref: database.delete_where(ref, ids=None, where=parse_where({"k": {"$exists": False}})),
    lambda database, ref: database.get_collection(ref),
    lambda database, ref: database.modify_collection(ref, metadata={"a": 1}),
    lambda database, ref: database.indexing_status(ref),
)


RED = parse_where({"color": "red"})


@every_layout
@every_sharding
async def test_a14_a_delete_by_filter_is_conditional_and_atomic(layout: str, shards: int) -> None:
    """Matches were read, and deleted one by one later, whatever had become of them meanwhile."""
    ops = [put(f"id-{n}", metadata={"color": "red" if n % 2 else "blue"}) for n in range(10)]
    async with laid_out(layout, halves(ops), shards=shards) as at:
        gate = Gate("append")
        other = another_database(at.system, before=gate)
        deleting = asyncio.ensure_future(other.delete_where(at.ref, ids=None, where=RED))
        await gate.until_held()  # it has read its matches
        await at.write(put("id-1", metadata={"color": "green"}), put("late", metadata={"color": "blue"}))
        gate.open()
        result = await deleting
        assert (result.records, result.read_offset) == (4, 12)  # it read again: one no longer matches
        assert await at.ids() == ["id-0", "id-2", "id-4", "id-6", "id-8", "id-1", "late"]
        head = at.system.catalog.state(at.ref.id).head_offset
        assert head == result.token.offset == 16  # four deletes in one batch


@every_layout
@every_sharding
async def test_a14_counts_and_outcomes_are_of_what_was_there(layout: str, shards: int) -> None:
    """``deleted`` counted the ids asked for, there or not; and nobody was told that an add of an existing id did nothing."""
    ops = [put(f"id-{n}", metadata={"color": "red" if n < 3 else "blue"}) for n in range(6)]
    async with laid_out(layout, halves(ops), shards=shards) as at:
        for ids, deleted in ((["id-0", "id-3", "nobody"], 1), (["nobody"], 0), (None, 2), (None, 0)):
            assert (await at.database.delete_where(at.ref, ids=ids, where=RED)).records == deleted
        assert set(await at.ids()) == {"id-3", "id-4", "id-5"}
        written = await at.write(
            put("id-3", op="add"),
            put("new", op="add"),
            put("nobody", op="update"),
            put("id-4", op="update"),
            put("id-5"),
            drop("id-5"),
            drop("nobody"),
            put("id-5", op="add"),
            outcomes=True,
        )
        assert [Outcome(value).name for value in written.outcomes or b""] == [
            "EXISTED",
            "ADDED",
            "MISSING",
            "UPDATED",
            "UPDATED",
            "DELETED",
            "MISSING",
            "ADDED",
        ]


# --- A15: what is kept, and what is left behind


@pytest.fixture
def opened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The ids of all segments opened for reading, in order."""
    names: list[str] = []

    async def noted(ref: Any, space: str, blocks: Any, *, kinds: Any) -> Segment:
        if "graph" in kinds:
            names.append(ref.id)
        return await open_segment(ref, space, blocks, kinds=kinds)

    monkeypatch.setattr("shoal_index.version.open_segment", noted)
    return names


async def test_a15_a_segment_is_opened_once_over_versions_and_shards(opened: list[str]) -> None:
    """Indexes were kept by collection: two shards, or two versions, of one collection threw each other out with every read."""
    async with collection(shards=1) as at:
        sharded = Laid(at.system, await at.system.create("sharded", shards=3), 1)
        await sharded.write(*(put(f"id-{n}", (n,)) for n in range(30)))
        await sharded.compact()
        for version in range(1, 6):
            await at.write(put(f"id-{version}", (version,)))
            await at.compact()
            for _ in range(3):
                for one, expected in ((at, version), (sharded, 30)):
                    assert (await one.database.count(one.ref)).count == expected
                    assert len(await one.near((0.0,), 100)) == expected
            await served_by_version(at, version)
        assert sorted(opened) == sorted(set(opened))
        assert len(opened) == 5 + 3


async def served_by_version(at: Laid, version: int) -> None:
    """Read until the node has taken the newest version over, which it loads beside its reads."""
    async with asyncio.timeout(20):
        while (await at.database.count(at.ref)).served_at.version < version:
            await asyncio.sleep(0)


@pytest.mark.parametrize(("job", "dies_at"), [("flush", "publish"), ("flush", "uploaded"), ("merge", "manifest")])
async def test_a15_objects_of_crashed_jobs_are_swept(job: str, dies_at: str) -> None:
    """Blocks of a compaction that died before it registered its version stayed in the bucket for ever."""
    world: SweptWorld = await two_segments()

    async def die(name: str) -> None:
        if name == dies_at:
            raise Crash(name)

    with pytest.raises(Crash):
        await (world.flush(step=die) if job == "flush" else world.merge(step=die))
    assert set(await world.stored()) > await world.needed()
    await world.clock.advance(2 * 15 * 60 + 0.001)
    await world.sweeper().sweep()
    assert set(await world.stored()) == await world.needed()
    await world.check()


async def test_a15_what_a_node_has_loaded_is_bounded() -> None:
    """Prefetched roots were kept in a map that only grew."""
    system = DirectSystem()
    system.node = Node("node", system.node.services, NodeSettings(loaded_bytes=100_000, reads_per_shrink=1))
    system.database = system.new_database()
    refs = [await system.create(f"collection-{n}") for n in range(60)]
    for _ in range(2):
        for ref in refs:
            await system.database.write(ref, to_operation_batch([put("a")], 1))
            assert (await system.database.count(ref)).count == 1
            assert sum(shard.size_bytes for shard in system.node.loaded.shards.values()) <= 110_000
    assert len(system.node.loaded.shards) < 15
    assert system.node.counters.dropped_shards > 100
    await system.node.close()


# --- A16: names and configuration


@pytest.mark.parametrize("through", ["the same frontend", "another frontend"])
async def test_a16_a_rename_to_a_taken_name_is_already_exists(through: str) -> None:
    """It was an internal error."""
    async with collection() as at:
        second = await at.system.create("second")
        database = at.database if through == "the same frontend" else at.system.new_database()
        with pytest.raises(AlreadyExists):
            await database.modify_collection(second, name="things")
        with pytest.raises(AlreadyExists):
            await database.create_collection(NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "second"))
        assert (await database.get_collection(second)).name == "second"
        await database.modify_collection(second, name="second")  # its own name is free for it
        await database.modify_collection(at.ref, name="third")
        assert (await database.modify_collection(second, name="things")).name == "things"


async def test_a16_a_stored_embedding_function_is_opaque_and_never_imported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Servers and clients rebuilt the function from the stored configuration: whoever wrote it had code run where it was read
    (CVE-2026-45829).
    """
    (tmp_path / "shoal_bait.py").write_text("raise SystemExit('imported')\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    bait: dict[str, Any] = {
        "embedding_function": {
            "type": "known",
            "name": "shoal_bait",
            "config": {
                "model_name": "shoal_bait",
                "trust_remote_code": True,
                "module": "shoal_bait",
                "kwargs": {"__reduce__": ["os.system", "true"], "trust_remote_code": True},
            },
        },
        "anything": [1, None, {"else": "$ref"}],
    }
    before = set(sys.modules)
    async with collection() as at:
        new = NewCollection(DEFAULT_TENANT, DEFAULT_DATABASE, "bait", configuration=bait)
        made = (await at.database.create_collection(new))[0]
        ref = CollectionRef(DEFAULT_TENANT, DEFAULT_DATABASE, id=made.id)
        await at.database.write(ref, to_operation_batch([put("a", text="a text")], 1))
        await at.system.compact(ref, merge=True)
        await at.database.get(ref, include=Include(documents=True))
        found = (await at.database.get_collection(ref)).configuration
        assert found == bait
        assert json.dumps(found, sort_keys=True) == json.dumps(bait, sort_keys=True)
        await at.database.modify_collection(ref, configuration=bait | {"more": True})
        assert (await at.system.new_database().get_collection(ref)).configuration == bait | {"more": True}
    embedder = Functions(None).embedder(bait, None)
    assert (embedder.function, embedder.name) == (None, "shoal_bait")
    with pytest.raises(FailedPrecondition, match="not built in"):
        await embedder.queries(["a"], None)
    for name in KINDS:  # nor by a name that is known
        known = bait["embedding_function"] | {"name": name}
        embedder = Functions(None).embedder({"embedding_function": known}, None)
        assert embedder.function is None
        with pytest.raises(InvalidArgument, match="trust_remote_code"):
            await embedder.queries(["a"], None)
    new_modules = {name for name in set(sys.modules) - before if not name.startswith("shoal_") or name == "shoal_bait"}
    assert "shoal_bait" not in new_modules
    assert not {"sentence_transformers", "transformers", "torch"} & new_modules


# --- A17: lengths in characters


def golden() -> list[dict[str, Any]]:
    """What the reference's Python client makes of texts that are not ASCII."""
    [default, *_] = json.loads(GOLDEN.read_text(encoding="utf-8"))
    return [vector for vector in default["vectors"] if not vector["text"].isascii()]


def test_a17_bm25_vectors_of_other_scripts_are_the_golden_ones() -> None:
    """The Rust client measured tokens in bytes, the Python one in characters: mixed clients made different vectors of one text."""
    cases = golden()
    assert len(cases) > 20
    vectors = ClientBm25().embed_documents([case["text"] for case in cases])
    for case, vector in zip(cases, vectors, strict=True):
        assert vector["indices"] == case["indices"], case["text"]
        assert vector["values"] == np.array(case["values"], np.float32).tolist(), case["text"]


@pytest.mark.parametrize("letter", ["x", "é", "日", "я", "𐐨"])
def test_a17_bm25_lengths_count_characters(letter: str) -> None:
    """40 letters of four bytes are a token of 40, and 41 of one byte are too many."""
    kept, left_out = letter * 40, letter * 41
    plain = Analyzer(language="none")
    assert analyze_text(f"{kept} {left_out}", plain) == [kept]
    [vector] = ClientBm25().embed_documents([f"{kept} {left_out}"])
    assert len(vector["indices"]) == 1
    assert vector == ClientBm25().embed_documents([kept])[0]


@every_layout
async def test_a17_long_words_of_other_scripts_are_ranked_alike_everywhere(layout: str) -> None:
    """The same of the server's ranked index."""
    ops: Sequence[Op] = [put("kept", text="日" * 40), put("too long", text="日" * 41), put("other", text="本")]
    async with laid_out(layout, halves(ops), shards=3) as at:
        assert [key for key, _ in await scores(at, Knn(TextQuery("日" * 40), DOCUMENT_KEY))] == ["kept"]
        assert await scores(at, Knn(TextQuery("日" * 41), DOCUMENT_KEY)) == []

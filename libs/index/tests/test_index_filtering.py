"""Filters over segments: the answer is that of `evaluate` whatever indexes there are, also after merges; and how it was found."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.evaluate import evaluate
from shoal_core.filters import DOCUMENT_KEY, Filter, parse_where, parse_where_document
from shoal_core.records import (
    CREATED_OFFSET,
    DOCUMENT,
    EMBEDDING,
    ID,
    UPDATED_OFFSET,
    Kind,
    MetadataField,
    concat_rows,
    embedding_array,
)
from shoal_core.schema import Analyzer, Index, Schema, VectorConfig
from shoal_index import filtering
from shoal_index.build import build_segment, sort_rows
from shoal_index.filtering import Step
from shoal_index.indexes import Input
from shoal_index.segment import TO_FLUSH, TO_READ, Segment, open_segment
from shoal_storage.blocks import BlockRef
from shoal_testing.strategies import KEYS, Record, examples, records, to_row_table, where_documents, wheres

ALL_OFF = Schema(off=frozenset(Index))
SCHEMAS = (
    Schema(),
    Schema(off=frozenset([Index.INT, Index.STRING]), keys={"b": {Index.INT: True}, "k:1": {Index.FLOAT: False}}),
    Schema(keys={DOCUMENT_KEY: {Index.SUBSTRING: False}}),
    ALL_OFF,
)
VERIFY_NS = {"measured": 50_000, "always": -(10**12), "never": 10**12}


class Blocks:
    """A block reader over what was built."""

    def __init__(self, objects: dict[str, pa.Buffer]) -> None:
        self.objects = objects
        self.read: list[str] = []

    async def get(self, ref: BlockRef) -> pa.Buffer:
        self.read.append(ref.key)
        return self.objects[ref.key]


def opened(table: pa.Table, schema: Schema = Schema(), inputs: Sequence[Input] = (), **options: Any) -> Segment:
    built = build_segment(
        table, "l2", segment_id="s", tier=0, prefix="c", threads=1, schema=schema, inputs=inputs, **options
    )
    blocks = Blocks({ref.key: block.data for ref, block in built.objects})
    return asyncio.run(open_segment(built.ref, "l2", blocks))


def some_records() -> st.SearchStrategy[list[Record]]:
    return records(2, nan=True).filter(bool)


def filters() -> st.SearchStrategy[Filter]:
    trees: st.SearchStrategy[Any] = st.builds(parse_where, wheres()) | st.builds(
        parse_where_document, where_documents()
    )
    return trees


def merged(
    parts: Sequence[pa.Table], kept: np.ndarray, before: Sequence[Schema], after: Schema
) -> tuple[Segment, pa.Table]:
    """A segment of the kept rows of segments that were built by those schemas, and those rows."""
    starts = np.cumsum([0, *(part.num_rows for part in parts)])
    new_row = np.full(starts[-1], -1, dtype=np.int64)
    new_row[kept] = np.arange(len(kept))
    table = concat_rows(list(parts)).take(pa.array(kept)).combine_chunks()
    segments = [opened(part, schema) for part, schema in zip(parts, before, strict=True)]
    maps = [new_row[start : start + part.num_rows] for part, start in zip(parts, starts, strict=False)]
    return opened(table, after, list(zip(segments, maps, strict=True))), table


@pytest.mark.parametrize("verifying", VERIFY_NS)
@examples(50)
@given(rows=some_records(), schema=st.sampled_from(SCHEMAS), trees=st.lists(filters(), min_size=1, max_size=4))
def test_a_segment_answers_what_evaluate_says(
    verifying: str, rows: list[Record], schema: Schema, trees: list[Filter]
) -> None:
    table = to_row_table(rows, 2)
    segment = opened(table, schema)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(filtering, "_VERIFY_NS", VERIFY_NS[verifying])
        for tree in trees:
            matching = segment.select(tree)
            assert matching.mask.tolist() == evaluate(tree, table).tolist()
            for step in matching.steps:
                assert step.estimated == step.matched or step.how not in ("values", "validity")


@examples(50)
@given(data=st.data(), after=st.sampled_from(SCHEMAS))
def test_so_does_a_merged_one(data: st.DataObject, after: Schema) -> None:
    parts = [to_row_table(rows, 2) for rows in data.draw(st.lists(some_records(), min_size=2, max_size=3))]
    names = concat_rows(parts).column(ID).to_pylist()
    alive = [n for n, name in enumerate(names) if name not in names[:n]]
    order = np.array(data.draw(st.permutations(alive)), dtype=np.int64)
    before = [data.draw(st.sampled_from(SCHEMAS)) for _ in parts]
    segment, table = merged(parts, order[: data.draw(st.integers(1, len(alive)))], before, after)
    assert tables_of(segment) == tables_of(opened(table, after))
    for tree in data.draw(st.lists(filters(), min_size=1, max_size=3)):
        assert segment.matching(tree).tolist() == evaluate(tree, table).tolist()


def tables_of(segment: Segment) -> dict[str, list[dict[str, Any]]]:
    """All that the indexes store."""
    tables = segment.indexes.to_tables()
    return {
        kind: [{"meta": part.schema.metadata, **part.to_pydict()} for part in parts] for kind, parts in tables.items()
    }


def test_numbers_in_lists_of_either_kind() -> None:
    lists: list[list[float]] = [[1, 2], [1.0, 0.5], [0.5], [2]]
    rows = [record(f"r{n}", n, {"a": numbers}) for n, numbers in enumerate(lists, start=1)]
    segment = opened(to_row_table(rows, 2))
    tree = parse_where({"a": {"$contains": 1}})
    assert tree is not None
    assert segment.matching(tree).tolist() == [True, True, False, False]


def record(name: str, offset: int, metadata: dict[str, Any]) -> Record:
    return {
        "id": name,
        "embedding": (0.0, 1.0),
        "document": f"a text called {name}",
        "uri": None,
        "metadata": metadata,
        "created_offset": offset,
        "updated_offset": offset,
    }


# --- how ---------------------------------------------------------------------------------------------------------------

ROWS = 40_000


@pytest.fixture(scope="module")
def table() -> pa.Table:
    random = np.random.default_rng(7)
    numbers = np.arange(ROWS)
    columns = {
        ID: pa.array([f"id-{n}" for n in numbers]),
        CREATED_OFFSET: pa.array(numbers.astype(np.uint64) + 1),
        UPDATED_OFFSET: pa.array(numbers.astype(np.uint64) + 1),
        DOCUMENT: pa.array([f"text {n % 5_000} of many" if n % 2 else None for n in numbers]),
        "m:int:half": pa.array(numbers % 2),
        "m:int:n": pa.array(numbers, mask=numbers % 4 == 0),
        "m:float:n": pa.array(np.full(ROWS, 0.5), mask=numbers % 4 > 0),
        "m:str:tag": pa.array([f"tag {n % 400}" for n in numbers]),
        EMBEDDING: embedding_array(random.standard_normal((ROWS, 2), dtype=np.float32)),
    }
    return sort_rows(pa.table(columns))


@pytest.fixture(scope="module")
def indexed(table: pa.Table) -> Segment:
    return opened(table, graph_rows=10**9)


@pytest.fixture(scope="module")
def bare(table: pa.Table) -> Segment:
    return opened(table, ALL_OFF, graph_rows=10**9)


def steps(segment: Segment, where: dict[str, Any]) -> tuple[Step, ...]:
    tree = parse_where(where)
    assert tree is not None
    matching = segment.select(tree)
    names = [name for name in segment.schema.names if name != EMBEDDING]
    assert (matching.mask == evaluate(tree, segment.columns(names))).all()
    return matching.steps


def test_conditions_are_tried_from_the_rarest(indexed: Segment) -> None:
    found = steps(indexed, {"$and": [{"half": 1}, {"n": {"$gte": 100}}, {"tag": "tag 7"}]})
    assert [(step.condition, step.how, step.estimated) for step in found] == [
        ('{"tag": {"$eq": "tag 7"}}', "values", 100),
        ('{"half": {"$eq": 1}}', "values", 20_000),
        ('{"n": {"$gte": 100}}', "values", 29_925),
    ]


def test_comparisons_of_one_key_are_one_range(indexed: Segment) -> None:
    lower = {"$and": [{"n": {"$gt": 100}}, {"tag": {"$ne": "tag 7"}}]}
    found = steps(indexed, {"$and": [{"n": {"$lt": 201.5}}, lower, {"n": {"$ne": 150}}]})
    assert [(step.condition, step.estimated) for step in found] == [
        ('{"$and": [{"n": {"$lt": 201.5}}, {"n": {"$gt": 100}}]}', 76),
        ('{"tag": {"$ne": "tag 7"}}', 39_900),
        ('{"n": {"$ne": 150}}', 39_999),
    ]
    (found_none,) = steps(indexed, {"$and": [{"n": {"$lt": 5}}, {"n": {"$gt": 7}}]})
    assert (found_none.estimated, found_none.matched) == (0, 0)


def test_the_few_that_are_left_are_looked_at(indexed: Segment, bare: Segment) -> None:
    where = {
        "$and": [
            {"#document": {"$regex": "[0-9]7 "}},
            {"n": {"$lt": 300}},
            {"#id": {"$in": ["id-17", "id-3", "id-no"]}},
        ]
    }
    assert [step.how for step in steps(indexed, where)] == ["ids", "values", "verify"]
    assert [step.how for step in steps(bare, where)] == ["ids", "verify", "verify"]
    last = steps(bare, where)[-1]
    rejected = (("scan", "only 2 rows were left, looking at them costs less"),)
    assert last == Step('{"#document": {"$regex": "[0-9]7 "}}', "verify", None, 1, last.read_bytes, rejected)
    assert 0 < last.read_bytes < 100, "of one row or two"
    wide = {"$and": [{"n": {"$gte": 10}}, {"tag": {"$ne": "tag 1"}}]}
    scanned = steps(bare, wide)
    assert [step.how for step in scanned] == ["scan", "scan"]
    assert dict(scanned[0].rejected) == {"values": "this segment has no index of the key"}
    assert "too many to look at each" in dict(scanned[1].rejected)["verify"]
    (text,) = steps(indexed, {"#document": {"$regex": "[0-9]{9}"}})
    assert text.rejected == (("trigrams", "no part of the pattern leaves few enough documents"),)


def test_substrings_through_trigrams(indexed: Segment) -> None:
    assert indexed.trigrams is not None
    (found,) = steps(indexed, {"#document": {"$contains": "text 4999 of"}})
    assert (found.how, found.matched) == ("trigrams", 8)
    assert found.estimated is not None
    assert 8 <= found.estimated < ROWS // 10
    (found,) = steps(indexed, {"#document": {"$not_contains": "text 4999 of"}})
    assert (found.how, found.matched) == ("trigrams", ROWS - 8)
    some, rest = steps(indexed, {"$and": [{"half": 1}, {"#document": {"$contains": "text 4999 of"}}]})
    assert (some.how, rest.how, rest.matched) == ("values", "trigrams", 8)
    (found,) = steps(indexed, {"#document": {"$contains": ""}})
    assert (found.how, found.matched) == ("scan", ROWS // 2)


def test_keys_and_complements_have_exact_counts(indexed: Segment, bare: Segment) -> None:
    for segment in (indexed, bare):
        (found,) = steps(segment, {"n": {"$exists": False}})
        assert found == Step('{"n": {"$exists": false}}', "validity", 0, 0, 2 * (ROWS // 8 + 1))
    assert steps(indexed, {"n": {"$ne": 0.5}})[0].estimated == ROWS * 3 // 4
    assert steps(indexed, {"n": {"$lte": 1.0}})[0].estimated == ROWS // 4 + 1
    assert steps(indexed, {"absent": 1})[0].matched == 0


def test_steps_count_the_bytes_they_read(indexed: Segment, bare: Segment) -> None:
    assert steps(indexed, {"half": 1})[0].read_bytes == ROWS // 8
    assert steps(indexed, {"tag": "tag 7"})[0].read_bytes == 100 * 4
    assert steps(indexed, {"tag": {"$ne": "tag 7"}})[0].read_bytes == 100 * 4
    assert steps(indexed, {"#id": {"$in": ["id-1", "id-2"]}})[0].read_bytes == 24
    assert steps(indexed, {"absent": 1})[0].read_bytes == 0
    assert steps(bare, {"half": 1})[0].read_bytes == ROWS * 8
    few = steps(indexed, {"#document": {"$contains": "text 4999 of"}})[0].read_bytes
    every = steps(bare, {"#document": {"$contains": "text 4999 of"}})[0].read_bytes
    assert bare.columns([DOCUMENT]).nbytes == every
    assert 0 < few < every // 5


@pytest.mark.parametrize("where", [{"$regex": "("}, {"$not_regex": "("}])
def test_a_malformed_pattern_is_an_error_also_where_no_row_is_left(
    indexed: Segment, bare: Segment, where: dict[str, str]
) -> None:
    for segment in (indexed, bare):
        for tree in (parse_where({"#document": where}), parse_where({"$and": [{"absent": 1}, {"#document": where}]})):
            assert tree is not None
            with pytest.raises(InvalidArgument):
                segment.select(tree)


def test_masks_are_kept_and_read_only(indexed: Segment) -> None:
    tree = parse_where({"n": {"$lt": 10}})
    assert tree is not None
    assert indexed.select(tree) is indexed.select(tree)
    with pytest.raises(ValueError, match="read-only"):
        indexed.matching(tree)[0] = False


def test_what_is_kept_counts_and_is_bounded(table: pa.Table) -> None:
    segment = opened(table.slice(0, 1_000), ALL_OFF, graph_rows=10**9)
    assert segment.kept_bytes == 0
    for number in range(40):
        tree = parse_where({"tag": {"$in": [f"tag {number}", "x" * 1_000]}})
        assert tree is not None
        segment.select(tree)
    assert 16 * 2_000 < segment.kept_bytes < 16 * 2_500
    before = segment.kept_bytes
    index = segment.term_index(Analyzer())
    assert segment.kept_bytes == before + index.size_bytes
    assert index.size_bytes > 4 * len(index.postings.rows)


def test_long_conditions_are_shortened(indexed: Segment) -> None:
    (found,) = steps(indexed, {"n": {"$in": list(range(5_000))}})
    assert found.matched == 3_750
    assert len(found.condition) == 120


# --- what is built and opened ------------------------------------------------------------------------------------------


def small_table() -> pa.Table:
    sparse = MetadataField("s", Kind.SPARSE)
    vectors = [{"indices": [1], "values": [0.5]}, None, {"indices": [1, 9], "values": [0.5, 2.0]}]
    rows = [record(name, offset, {KEYS[0]: name}) for offset, name in enumerate(("one", "two", "three"), start=1)]
    return to_row_table(rows, 2).append_column(sparse.column, pa.array(vectors, sparse.arrow_type))


def test_only_indexes_that_are_on_are_built() -> None:
    table = small_table()
    on = opened(table)
    assert (list(on.values), list(on.sparse)) == (["m:str:a"], ["s"])
    assert on.trigrams is not None
    assert on.terms is not None
    off = opened(table, ALL_OFF)
    assert (off.values, off.trigrams, off.terms, off.sparse) == ({}, None, None, {})
    assert set(off.ref.blocks) == {"ids", "rows", "vectors", "lengths"}


def test_ranked_and_sparse_indexes_are_made_once_where_they_are_not_stored() -> None:
    table = small_table()
    on, off = opened(table), opened(table, ALL_OFF)
    assert on.term_index(Analyzer()) is on.terms
    assert off.term_index(Analyzer()) is off.term_index(Analyzer())
    assert off.term_index(Analyzer()).to_table().equals(on.term_index(Analyzer()).to_table())
    stored, made = on.sparse_index("s"), off.sparse_index("s")
    assert stored is on.sparse["s"]
    assert made is off.sparse_index("s")
    assert stored is not None
    assert made is not None
    assert made.to_table().equals(stored.to_table())
    assert off.sparse_index("a") is None


def test_indexes_built_for_reads_count() -> None:
    off = opened(small_table(), ALL_OFF)
    made = off.sparse_index("s")
    assert made is not None
    assert off.kept_bytes == made.size_bytes > 0


async def test_only_the_blocks_asked_for_are_fetched() -> None:
    built = build_segment(small_table(), "l2", segment_id="s", tier=0, prefix="c", threads=1, graph_rows=1)
    kinds = set(built.ref.blocks)
    assert kinds == {"ids", "rows", "vectors", "lengths", "graph", "values", "trigrams", "terms", "sparse"}
    for asked in (TO_FLUSH, TO_READ):
        blocks = Blocks({ref.key: block.data for ref, block in built.objects})
        segment = await open_segment(built.ref, "l2", blocks, kinds=asked)
        assert len(blocks.read) == sum(len(built.ref.blocks.get(kind, ())) for kind in asked)
        assert (not segment.ways, segment.terms is None) == (asked == TO_FLUSH, asked == TO_FLUSH)


def test_the_graph_is_built_as_the_schema_says() -> None:
    table = small_table().select([ID, CREATED_OFFSET, UPDATED_OFFSET, EMBEDDING])
    sizes = []
    for m in (4, 64):
        built = build_segment(
            table,
            "l2",
            segment_id="s",
            tier=0,
            prefix="c",
            threads=1,
            graph_rows=1,
            schema=Schema(vector=VectorConfig(m=m)),
        )
        sizes.append(built.ref.blocks["graph"][0].size_bytes)
    assert sizes[0] < sizes[1]

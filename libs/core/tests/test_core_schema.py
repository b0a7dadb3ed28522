"""The schema's JSON form: what comes back, what is refused and where, what may change."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.records import Kind
from shoal_core.schema import (
    INDEX_OF,
    Analyzer,
    Bm25,
    Index,
    Schema,
    SparseConfig,
    VectorConfig,
    check_change,
    parse_schema,
)
from shoal_testing.strategies import QUICK

_NAMES = st.text(min_size=1, max_size=3)
_JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(_NAMES, inner, max_size=2),
    max_leaves=4,
)
_SCHEMAS = st.builds(
    Schema,
    off=st.frozensets(st.sampled_from(Index)),
    keys=st.dictionaries(_NAMES, st.dictionaries(st.sampled_from(Index), st.booleans(), max_size=3), max_size=3),
    analyzer=st.builds(
        Analyzer,
        tokenizer=st.sampled_from(["words", "whitespace"]),
        language=st.sampled_from(["english", "none", "german"]),
        token_length=st.integers(1, 1000),
        stop_words=st.none() | st.lists(st.text(max_size=2), max_size=2).map(tuple),
    ),
    bm25=st.builds(Bm25, k1=st.floats(0, 100), b=st.floats(0, 1)),
    vector=st.builds(
        VectorConfig,
        m=st.integers(2, 256),
        ef_construction=st.integers(2, 4096),
        ef_search=st.integers(0, 4096),
        recall=st.floats(0.5, 0.999),
    ),
    sparse=st.dictionaries(
        _NAMES,
        st.builds(
            SparseConfig,
            idf=st.booleans(),
            source_key=st.none() | st.text(max_size=3),
            embedding_function=st.none() | st.dictionaries(_NAMES, _JSON, max_size=2),
        ),
        max_size=2,
    ),
)


@QUICK
@given(schema=_SCHEMAS)
def test_a_schema_survives_its_json(schema: Schema) -> None:
    plain = schema.to_json()
    assert parse_schema(json.loads(json.dumps(plain, allow_nan=False))) == schema == parse_schema(plain)


def test_what_is_as_by_default_is_not_stored() -> None:
    assert Schema().to_json() == {}
    assert parse_schema(None) == parse_schema({}) == Schema()
    changed = Schema(off=frozenset({Index.INT}), bm25=Bm25(b=0.5), sparse={"s": SparseConfig()})
    assert changed.to_json() == {"off": ["int"], "bm25": {"b": 0.5}, "sparse": {"s": {}}}
    assert type(changed.to_json()["off"][0]) is str


@pytest.mark.parametrize(
    ("value", "place"),
    [
        ([], "schema"),
        (0, "schema"),
        ("", "schema"),
        ({"": 1}, "schema"),
        ({"on": []}, r"schema\.on: unknown"),
        ({"off": "int"}, r"schema\.off"),
        ({"off": ["str"]}, r"schema\.off: 'str' is no index; one of int, float"),
        ({"off": [[]]}, r"schema\.off"),
        ({"keys": []}, r"schema\.keys"),
        ({"keys": {"k": True}}, r"schema\.keys\.k"),
        ({"keys": {"k": {"int": 1}}}, r"schema\.keys\.k\.int"),
        ({"keys": {"k": {"vector": True}}}, r"schema\.keys\.k"),
        ({"keys": {"": {}}}, r"schema\.keys"),
        ({"analyzer": {"tokenizer": "ngram"}}, r"schema\.analyzer\.tokenizer"),
        ({"analyzer": {"language": ""}}, r"schema\.analyzer\.language"),
        ({"analyzer": {"token_length": 0}}, r"schema\.analyzer\.token_length: 0; a whole number from 1 to 1000"),
        ({"analyzer": {"token_length": True}}, r"schema\.analyzer\.token_length"),
        ({"analyzer": {"stop_words": "a"}}, r"schema\.analyzer\.stop_words"),
        ({"analyzer": {"stop_words": [1]}}, r"schema\.analyzer\.stop_words"),
        ({"analyzer": {"stopwords": []}}, r"schema\.analyzer\.stopwords"),
        ({"bm25": {"b": 1.1}}, r"schema\.bm25\.b"),
        ({"bm25": {"k1": -1}}, r"schema\.bm25\.k1"),
        ({"bm25": {"k1": 10**400}}, r"schema\.bm25\.k1"),
        ({"bm25": {"k1": float("nan")}}, r"schema\.bm25\.k1"),
        ({"bm25": {"k1": "1"}}, r"schema\.bm25\.k1"),
        ({"vector": {"m": 1}}, r"schema\.vector\.m"),
        ({"vector": {"ef_construction": 4097}}, r"schema\.vector\.ef_construction"),
        ({"vector": {"ef_search": 1.0}}, r"schema\.vector\.ef_search"),
        ({"vector": {"recall": 1.0}}, r"schema\.vector\.recall"),
        ({"sparse": {"s": []}}, r"schema\.sparse\.s"),
        ({"sparse": {"s": {"idf": 1}}}, r"schema\.sparse\.s\.idf"),
        ({"sparse": {"s": {"source_key": 1}}}, r"schema\.sparse\.s\.source_key"),
        ({"sparse": {"s": {"embedding_function": "x"}}}, r"schema\.sparse\.s\.embedding_function"),
    ],
)
def test_what_is_refused_and_where(value: Any, place: str) -> None:
    with pytest.raises(InvalidArgument, match=f"^{place}"):
        parse_schema(value)


def test_a_key_overrides_what_is_off_for_all() -> None:
    schema = Schema(frozenset({Index.INT}), {"a": {Index.INT: True, Index.STRING: False}})
    on = {key: {index for index in Index if schema.enabled(key, index)} for key in ("a", "b")}
    assert on == {"a": set(Index) - {Index.STRING}, "b": set(Index) - {Index.INT}}


def test_every_kind_has_an_index() -> None:
    assert set(INDEX_OF) == set(Kind)


def test_the_analyzer_is_fixed_and_all_else_may_change() -> None:
    old = Schema(analyzer=Analyzer(language="german"))
    new = Schema(frozenset(Index), {"a": {}}, old.analyzer, Bm25(b=0.1), VectorConfig(m=4), {"s": SparseConfig()})
    check_change(old, new)
    for analyzer in (Analyzer(), replace(old.analyzer, token_length=41), replace(old.analyzer, stop_words=())):
        with pytest.raises(InvalidArgument, match=r"schema\.analyzer.*new collection"):
            check_change(old, replace(new, analyzer=analyzer))

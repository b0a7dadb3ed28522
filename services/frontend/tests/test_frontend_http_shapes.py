"""Collections as JSON of the reference system: what is created from it, and how it comes back."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pytest

from shoal_core.contracts import Collection, NewCollection
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.schema import Bm25, Index, Schema, SparseConfig, VectorConfig, parse_schema
from shoal_frontend.http_api.body_error import BodyError
from shoal_frontend.http_api.shapes import modification, new_collection, render_collection
from shoal_frontend.validate import check_new_collection

Json = dict[str, Any]

OPENAI = {"type": "known", "name": "openai", "config": {"model": "x", "nested": {"a": [1, None]}}, "extra": 1}
LEGACY = {"type": "legacy"}
HNSW = {
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "num_threads": 1,
    "batch_size": 100,
    "sync_threshold": 1000,
    "resize_factor": 1.2,
}
OFF = {"enabled": False, "config": {}}
ON = {"enabled": True, "config": {}}
DEFAULT: Json = {
    "name": "things",
    "configuration_json": {
        "hnsw": {
            "space": "l2",
            "ef_construction": 100,
            "ef_search": 100,
            "max_neighbors": 16,
            "resize_factor": 1.2,
            "sync_threshold": 1000,
        },
        "spann": None,
        "embedding_function": None,
    },
    "schema": {
        "defaults": {
            "string": {"fts_index": OFF, "string_inverted_index": ON},
            "float_list": {"vector_index": {"enabled": False, "config": {"space": "l2", "hnsw": HNSW}}},
            "sparse_vector": {
                "sparse_vector_index": {
                    "enabled": False,
                    "config": {"embedding_function": {"type": "unknown"}, "bm25": False},
                }
            },
            "int": {"int_inverted_index": ON},
            "float": {"float_inverted_index": ON},
            "bool": {"bool_inverted_index": ON},
        },
        "keys": {
            "#document": {"string": {"fts_index": ON, "string_inverted_index": OFF}},
            "#embedding": {
                "float_list": {
                    "vector_index": {
                        "enabled": True,
                        "config": {"space": "l2", "source_key": "#document", "hnsw": HNSW},
                    }
                }
            },
        },
    },
    "metadata": None,
    "dimension": None,
    "tenant": "t",
    "database": "d",
    "log_position": 0,
    "version": 0,
}


def made(**body: Any) -> Collection:
    """What would be in the catalog; checks what the frontend checks, and that the schema survives being stored."""
    new = asked(**body)
    check_new_collection(new, Limits())
    assert parse_schema(json.loads(json.dumps(new.schema.to_json()))) == new.schema
    return Collection(
        id="1",
        tenant=new.tenant,
        database=new.database,
        name=new.name,
        epoch=1,
        incarnation="2",
        space=new.space,
        shards=new.shards,
        dimension=new.dimension,
        metadata=new.metadata,
        configuration=json.loads(json.dumps(new.configuration)),
        schema=new.schema,
    )


def asked(**body: Any) -> NewCollection:
    return new_collection("t", "d", {"name": "things", **body})[0]


def shown(**body: Any) -> Json:
    return render_collection(made(**body))


def changed(collection: Collection, **body: Any) -> Collection:
    """The collection with what a modification says, as the catalog would store it."""
    return replace(collection, **modification(collection, body))


def in_keys(key: str, **types: Any) -> Json:
    return {"defaults": {}, "keys": {key: types}}


def embedding_schema(**config: Any) -> Json:
    return in_keys("#embedding", float_list={"vector_index": {"enabled": True, "config": config}})


def sparse_schema(enabled: bool = True, **config: Any) -> Json:
    return in_keys("sp", sparse_vector={"sparse_vector_index": {"enabled": enabled, "config": config}})


# --- rendering


def test_a_collection_of_defaults() -> None:
    found = shown()
    assert found.pop("id") == "1"
    assert found == DEFAULT


def test_counters_and_dimension() -> None:
    found = render_collection(replace(made(), dimension=3, compacted_offset=7, version=2))
    assert (found["dimension"], found["log_position"], found["version"]) == (3, 7, 2)


def test_what_another_api_stored_does_not_break_the_shape() -> None:
    other: Mapping[str, Any] = {"hnsw": 5, "embedding_function": {"name": "hash"}, "else": 1}
    collection = replace(made(), configuration=other, metadata={"a": None})
    found = render_collection(collection)
    assert found["configuration_json"] == DEFAULT["configuration_json"]
    assert found["metadata"] is None
    kept = changed(collection, new_configuration={"hnsw": {"num_threads": 3}}).configuration
    assert kept == {**other, "hnsw": {"num_threads": 3}}


# --- configuration


def test_hnsw_settings_are_kept() -> None:
    given = {"space": "cosine", "ef_construction": 50, "ef_search": 33, "max_neighbors": 8}
    idle = {"num_threads": 3, "resize_factor": 1.5, "sync_threshold": 500, "batch_size": 50}
    collection = made(configuration={"hnsw": given | idle})
    assert (collection.space, collection.schema.vector) == ("cosine", VectorConfig(8, 50, 33))
    assert collection.configuration == {"hnsw": idle}
    found = render_collection(collection)
    assert found["configuration_json"]["hnsw"] == {**given, "resize_factor": 1.5, "sync_threshold": 500}
    config = found["schema"]["keys"]["#embedding"]["float_list"]["vector_index"]["config"]
    assert {"space": config["space"], **config["hnsw"]} == {**given, **idle}


def test_an_effort_of_nothing_is_the_planners() -> None:
    collection = made(configuration={"hnsw": {"ef_search": 0}})
    assert collection.schema.vector.ef_search == 0
    assert render_collection(collection)["configuration_json"] == DEFAULT["configuration_json"]


def test_of_spann_the_space_is_kept() -> None:
    found = shown(configuration={"spann": {"space": "cosine", "ef_search": 10, "search_nprobe": 500}, "hnsw": None})
    hnsw = DEFAULT["configuration_json"]["hnsw"]
    assert found["configuration_json"] == {
        "hnsw": {**hnsw, "space": "cosine"},
        "spann": None,
        "embedding_function": None,
    }


@pytest.mark.parametrize("function", [OPENAI, LEGACY, {"type": "unknown", "x": 1}])
def test_embedding_functions_come_back_as_given(function: Json) -> None:
    by_configuration = shown(configuration={"embedding_function": function})
    by_schema = shown(schema=embedding_schema(embedding_function=function))
    assert by_configuration["configuration_json"]["embedding_function"] == function
    assert by_configuration == by_schema
    config = by_schema["schema"]["keys"]["#embedding"]["float_list"]["vector_index"]["config"]
    assert config["embedding_function"] == function


def test_legacy_metadata_set_the_index_and_stay() -> None:
    metadata = {"hnsw:space": "ip", "hnsw:construction_ef": 50, "hnsw:search_ef": 33, "hnsw:M": 8, "z": 1}
    collection = made(metadata=metadata)
    assert (collection.space, collection.schema.vector) == ("ip", VectorConfig(8, 50, 33))
    assert render_collection(collection)["metadata"] == metadata


def test_settings_other_than_the_defaults_win_over_metadata() -> None:
    metadata = {"hnsw:space": "ip", "hnsw:M": 8}
    assert asked(metadata=metadata, configuration={"hnsw": {"space": "l2"}}).space == "ip"
    assert asked(metadata=metadata, configuration={"embedding_function": LEGACY}).space == "ip"
    found = asked(metadata=metadata, configuration={"hnsw": {"ef_search": 10}})
    assert (found.space, found.schema.vector) == ("l2", VectorConfig(ef_search=10))
    assert asked(metadata=metadata, configuration={"spann": {}}).space == "l2"


def test_get_or_create() -> None:
    assert new_collection("t", "d", {"name": "abc", "get_or_create": True})[1]
    assert not new_collection("t", "d", {"name": "abc", "unknown": 1})[1]


# --- schema


def test_a_rendered_schema_read_again_is_the_same() -> None:
    schema: Json = {
        "defaults": {"int": {"int_inverted_index": OFF}, "string": {"string_inverted_index": OFF}},
        "keys": {
            "n": {
                "int": {"int_inverted_index": ON},
                "float": {"float_inverted_index": OFF},
                "bool": {"bool_inverted_index": OFF},
            },
            "color": {"string": {"string_inverted_index": ON}},
            "empty": {},
            "#document": {"string": {"fts_index": OFF}},
            "sp": {
                "sparse_vector": {
                    "sparse_vector_index": {
                        "enabled": True,
                        "config": {"bm25": True, "source_key": "#document", "embedding_function": OPENAI},
                    }
                }
            },
            "#embedding": {
                "float_list": {
                    "vector_index": {
                        "enabled": True,
                        "config": {
                            "space": "ip",
                            "source_key": "#document",
                            "embedding_function": OPENAI,
                            "hnsw": {"max_neighbors": 7, "ef_search": 5, "batch_size": 3},
                        },
                    }
                }
            },
        },
    }
    collection = made(schema=schema)
    first = render_collection(collection)
    for key in ("n", "color", "empty", "sp"):
        assert first["schema"]["keys"][key] == schema["keys"][key]
    assert first["schema"]["keys"]["#document"]["string"]["fts_index"] == OFF
    assert (
        first["configuration_json"]["hnsw"] | {"space": "ip", "max_neighbors": 7, "ef_search": 5}
        == first["configuration_json"]["hnsw"]
    )
    again = made(schema=first["schema"])
    assert render_collection(again) == first
    assert again.schema.to_json() == {**collection.schema.to_json()}


def test_indexes_of_the_canonical_schema() -> None:
    found = asked(
        schema={
            "defaults": {
                "string": {"string_inverted_index": OFF},
                "float": {"float_inverted_index": OFF},
                "sparse_vector": {"sparse_vector_index": OFF},
                "float_list": {"vector_index": OFF},
            },
            "keys": {
                "a": {"string": {"string_inverted_index": ON}, "int": {"int_inverted_index": OFF}},
                "#document": {"string": {"fts_index": OFF, "string_inverted_index": OFF}},
            },
        }
    ).schema
    assert found.off == {Index.STRING, Index.FLOAT}
    assert found.keys == {"a": {Index.STRING: True, Index.INT: False}, "#document": {Index.SUBSTRING: False}}


def test_a_schema_of_defaults_is_the_default() -> None:
    assert asked(schema=DEFAULT["schema"]).schema == Schema(vector=VectorConfig(16, 100, 100))
    assert asked(schema={"defaults": {}, "keys": {}}).schema == Schema()
    assert asked(schema=None).schema == Schema()


def test_sparse_keys() -> None:
    found = asked(
        schema=sparse_schema(bm25=True, source_key="text", embedding_function=OPENAI, algorithm="wand")
    ).schema
    assert found.keys == {"sp": {Index.SPARSE: True}}
    assert found.sparse == {"sp": SparseConfig(True, "text", OPENAI)}
    assert not asked(schema=sparse_schema(enabled=False)).schema.enabled("sp", Index.SPARSE)
    assert shown(schema=sparse_schema())["schema"]["keys"]["sp"] == sparse_schema()["keys"]["sp"]


def test_what_the_reference_has_no_words_for_is_not_shown() -> None:
    schema = Schema(
        frozenset({Index.SUBSTRING, Index.RANKED, Index.SPARSE}),
        {"a": {Index.RANKED: True}},
        bm25=Bm25(2.0),
        sparse={"s": SparseConfig(idf=True)},
    )
    keys = render_collection(replace(made(), schema=schema))["schema"]["keys"]
    assert keys["a"] == {}
    assert keys["s"] == {"sparse_vector": {"sparse_vector_index": {"enabled": False, "config": {"bm25": True}}}}
    assert keys["#document"]["string"]["fts_index"] == OFF


# --- modifications


def test_metadata_are_replaced_without_nulls() -> None:
    collection = made(metadata={"a": 1, "b": 2})
    assert modification(collection, {"new_metadata": {"a": None, "c": 3}}) == {"metadata": {"c": 3}}
    assert modification(collection, {"new_metadata": {"a": None}}) == {"metadata": {}}
    assert render_collection(changed(collection, new_metadata={"a": None}))["metadata"] is None


def test_nothing_given_nothing_changed() -> None:
    collection = made(configuration={"embedding_function": OPENAI, "hnsw": {"ef_search": 9, "batch_size": 7}})
    for body in (
        {},
        {"new_name": None, "new_metadata": None, "new_configuration": None},
        {"new_configuration": {"hnsw": None, "embedding_function": None}},
        {"new_configuration": {"hnsw": {"ef_search": 9, "batch_size": 7}, "embedding_function": OPENAI}},
        {"new_configuration": {"spann": {"ef_search": 10}}},
    ):
        assert modification(collection, body) == {}


def test_settings_of_the_index_are_changed_one_by_one() -> None:
    collection = made(
        configuration={
            "embedding_function": OPENAI,
            "hnsw": {"ef_construction": 50, "batch_size": 7, "num_threads": 2},
        }
    )
    found = changed(collection, new_configuration={"hnsw": {"ef_search": 200, "max_neighbors": 5, "batch_size": 8}})
    assert found.schema.vector == VectorConfig(5, 50, 200)
    assert found.configuration == {"embedding_function": OPENAI, "hnsw": {"batch_size": 8, "num_threads": 2}}
    again = changed(found, new_name="other", new_configuration={"embedding_function": LEGACY})
    assert again.configuration == {"embedding_function": LEGACY, "hnsw": {"batch_size": 8, "num_threads": 2}}
    assert (again.name, again.schema) == ("other", found.schema)


# --- errors


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"name": None}, "name: invalid type: null, expected a string"),
        ({"get_or_create": "x"}, 'get_or_create: invalid type: string "x", expected a boolean'),
        ({"metadata": []}, "metadata: invalid type: sequence, expected a map"),
        ({"metadata": {"a": None}}, "metadata.a: data did not match any variant of untagged enum MetadataValue"),
        ({"metadata": {"a": {"x": 1}}}, "metadata.a: data did not match any variant of untagged enum MetadataValue"),
        ({"configuration": 5}, "configuration: invalid type: integer `5`, expected a map"),
        (
            {"configuration": {"hnsw": {"bogus": 1}}},
            "configuration.hnsw.bogus: unknown field `bogus`, expected one of `space`, `ef_construction`, `ef_search`, "
            "`max_neighbors`, `num_threads`, `resize_factor`, `sync_threshold`, `batch_size`",
        ),
        (
            {"configuration": {"hnsw": {"space": "x"}}},
            "configuration.hnsw.space: unknown variant `x`, expected one of `l2`, `cosine`, `ip`",
        ),
        (
            {"configuration": {"hnsw": {"ef_search": -1}}},
            "configuration.hnsw.ef_search: invalid value: integer `-1`, expected usize",
        ),
        (
            {"configuration": {"hnsw": {"ef_search": 5.5}}},
            "configuration.hnsw.ef_search: invalid type: floating point `5.5`, expected usize",
        ),
        (
            {"configuration": {"hnsw": {"resize_factor": True}}},
            "configuration.hnsw.resize_factor: invalid type: boolean `true`, expected f64",
        ),
        ({"configuration": {"embedding_function": {}}}, "configuration.embedding_function: missing field `type`"),
        ({"configuration": {"embedding_function": {"type": "known"}}}, "embedding_function: missing field `name`"),
        ({"configuration": {"spann": {"bogus": 1}}}, "configuration.spann.bogus: unknown field `bogus`"),
        ({"schema": {}}, "schema: missing field `defaults`"),
        ({"schema": {"defaults": {}}}, "schema: missing field `keys`"),
        (
            {"schema": in_keys("a", int={"int_inverted_index": {"enabled": True}})},
            "schema.keys.a.int.int_inverted_index: missing field `config`",
        ),
        (
            {"schema": in_keys("a", int={"int_inverted_index": {"enabled": True, "config": {"z": 1}}})},
            "schema.keys.a.int.int_inverted_index.config.z: unknown field `z`, there are no fields",
        ),
        (
            {"schema": sparse_schema(algorithm="x")},
            "config.algorithm: unknown variant `x`, expected `wand` or `max_score`",
        ),
        (
            {"schema": embedding_schema(hnsw={"space": "l2"})},
            "vector_index.config.hnsw.space: unknown field `space`, expected one of `ef_construction`",
        ),
    ],
)
def test_wrong_bodies(body: Json, message: str) -> None:
    with pytest.raises(BodyError) as caught:
        asked(**body)
    assert caught.value.message.startswith("Failed to deserialize the JSON body into the target type: ")
    assert message in caught.value.message


def test_a_name_is_needed() -> None:
    with pytest.raises(BodyError, match="missing field `name`"):
        new_collection("t", "d", {})


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({"configuration": {"hnsw": {}, "spann": {}}}, "Multiple vector index configurations provided"),
        ({"name": "a"}, "Validation error: name: Expected a name containing 3-512 characters from"),
        ({"metadata": {}}, "Validation error: metadata: Metadata cannot be empty"),
        ({"metadata": {"": 1}}, "Validation error: metadata: Metadata key cannot be empty"),
        ({"metadata": {"#a": 1}}, "Validation error: metadata: Metadata key cannot start with '#' or '$': #a"),
        (
            {"metadata": {"hnsw:space": "x"}},
            "Failed to parse hnsw parameters from segment metadata: metadata.hnsw.space",
        ),
        ({"metadata": {"hnsw:M": 8.5}}, "Failed to parse hnsw parameters from segment metadata"),
        ({"metadata": {"hnsw:max_neighbors": 8}}, "from segment metadata: metadata.hnsw.max_neighbors"),
        ({"metadata": {"hnsw:M": 1}}, "metadata.hnsw.max_neighbors: 1; a whole number from 2 to 256"),
        ({"configuration": {"hnsw": {"ef_search": 4097}}}, "configuration.hnsw.ef_search: 4097; a whole number"),
        ({"configuration": {"hnsw": {"sync_threshold": 1}}}, "configuration.hnsw.sync_threshold: 1; a whole number"),
        ({"schema": {"defaults": {"string": {"fts_index": ON}}, "keys": {}}}, "schema: the full text index"),
        ({"schema": {"defaults": {"float_list": {"vector_index": ON}}, "keys": {}}}, "schema: the vector index"),
        ({"schema": {"defaults": {"sparse_vector": {"sparse_vector_index": ON}}, "keys": {}}}, "schema: the sparse"),
        ({"schema": {"defaults": {}, "keys": {}, "cmek": {"gcp": "k"}}}, "schema.cmek: encryption keys"),
        ({"schema": in_keys("a", string={"fts_index": ON})}, "the full text index can only be enabled on #document"),
        (
            {"schema": in_keys("a", float_list={"vector_index": ON})},
            "the vector index can only be enabled on #embedding",
        ),
        ({"schema": in_keys("#a", string={})}, "keys that start with # are reserved: #a"),
        ({"schema": in_keys("#document", string={"string_inverted_index": ON})}, "the string index cannot be enabled"),
        ({"schema": in_keys("#document", int={"int_inverted_index": ON})}, "#document has strings only"),
        ({"schema": in_keys("#embedding", int={"int_inverted_index": ON})}, "#embedding has vectors only"),
        ({"schema": in_keys("#embedding", float_list={"vector_index": OFF})}, "#embedding cannot be turned off"),
        ({"schema": embedding_schema(source_key="text")}, "can only have #document as its source_key"),
        (
            {"schema": embedding_schema(space="ip"), "configuration": {"hnsw": {"space": "cosine"}}},
            "Cannot set both collection config and schema simultaneously",
        ),
        ({"schema": sparse_schema(), "metadata": {"hnsw:space": "ip"}}, "Cannot set both collection config and schema"),
    ],
)
def test_wrong_values(body: Json, message: str) -> None:
    with pytest.raises(InvalidArgument) as caught:
        asked(**body)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("body", "cls", "message"),
    [
        ({"new_name": "a"}, InvalidArgument, "Validation error: new_name: Expected a name containing"),
        ({"new_name": 5}, BodyError, "new_name: invalid type: integer `5`, expected a string"),
        ({"new_metadata": {}}, InvalidArgument, "Validation error: new_metadata: Metadata cannot be empty"),
        (
            {"new_metadata": {"a": {}}},
            BodyError,
            "new_metadata.a: data did not match any variant of untagged enum Update",
        ),
        ({"new_configuration": 5}, BodyError, "new_configuration: invalid type: integer `5`"),
        (
            {"new_configuration": {"hnsw": {"ef_search": 9}, "spann": {"ef_search": 10}}},
            InvalidArgument,
            "Multiple vector index configurations provided",
        ),
        (
            {"new_configuration": {"hnsw": {"space": "ip"}}},
            BodyError,
            "new_configuration.hnsw.space: unknown field `space`, expected one of `ef_search`, `max_neighbors`, `num_threads`, "
            "`resize_factor`, `sync_threshold`, `batch_size`",
        ),
        (
            {"new_configuration": {"spann": {"x": 1}}},
            BodyError,
            "new_configuration.spann.x: unknown field `x`, expected `search_nprobe` or `ef_search`",
        ),
    ],
)
def test_wrong_modifications(body: Json, cls: type[Exception], message: str) -> None:
    with pytest.raises(cls) as caught:
        modification(made(), body)
    assert message in str(caught.value)

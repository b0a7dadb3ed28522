"""The reference system's JSON of collections, at the HTTP edge only: within Shoal there is one canonical schema.

Each collection is shown with an HNSW index, whichever settings it was asked for with. The settings come from the configuration,
from the schema, or from metadata whose keys start with ``hnsw:``; these stay in the metadata. `vector_shapes` says which of them
are without effect.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from shoal_core.contracts import Collection, NewCollection
from shoal_core.errors import InvalidArgument
from shoal_core.schema import VectorConfig
from shoal_frontend.http_api.body_error import BodyError, check_known, flag_of, inside, member, object_of, text_of
from shoal_frontend.http_api.schema_shapes import render_schema, schema_of
from shoal_frontend.http_api.vector_shapes import (
    DEFAULTS,
    FUNCTION,
    HNSW,
    Settings,
    function_of,
    hnsw_settings,
    kept_settings,
    space_of,
    stored_function,
    stored_settings,
    vector_config,
    without_effect,
)
from shoal_frontend.validate import NAME, check_name

_LEGACY = "hnsw:"
_LEGACY_NAMES: Mapping[str, str] = {
    "construction_ef": "ef_construction",
    "search_ef": "ef_search",
    "M": "max_neighbors",
}
_SHOWN = ("space", "ef_construction", "ef_search", "max_neighbors", "resize_factor", "sync_threshold")
_SPANN = (
    "search_nprobe",
    "write_nprobe",
    "space",
    "ef_construction",
    "ef_search",
    "max_neighbors",
    "reassign_neighbor_count",
    "split_threshold",
    "merge_threshold",
)
_LATER_SPANN = ("search_nprobe", "ef_search")
_LATER_SETTINGS = ("ef_search", "max_neighbors", "num_threads", "resize_factor", "sync_threshold", "batch_size")
_SETTINGS = ("space", "ef_construction", *_LATER_SETTINGS)


def render_collection(collection: Collection) -> dict[str, Any]:
    """The JSON of a collection. What a client said of its embedding function comes back as it was.

    ``log_position`` is the offset up to which the log is compacted.
    """
    settings, function = stored_settings(collection), stored_function(collection.configuration)
    metadata = {key: value for key, value in (collection.metadata or {}).items() if value is not None}
    return {
        "id": collection.id,
        "name": collection.name,
        "configuration_json": {HNSW: {name: settings[name] for name in _SHOWN}, "spann": None, FUNCTION: function},
        "schema": render_schema(collection.schema, settings, function),
        "metadata": metadata or None,
        "dimension": collection.dimension,
        "tenant": collection.tenant,
        "database": collection.database,
        "log_position": collection.compacted_offset,
        "version": collection.version,
    }


def new_collection(tenant: str, database: str, body: Mapping[str, Any]) -> tuple[NewCollection, bool]:
    """What to create, and whether one of that name that is there already will do.

    Args:
        body: ``{name, metadata?, configuration?: {hnsw?, spann?, embedding_function?}, schema?, get_or_create?}``. Of ``spann``
            only the space is kept.

    Raises:
        BodyError: a part is missing, unknown or of another type.
        InvalidArgument: a value is not allowed.
    """
    given = object_of(body, "")
    name = text_of(member(given, "name", ""), "name")
    get_or_create = flag_of(given.get("get_or_create", False), "get_or_create")
    asked = schema_of(given.get("schema"))
    configured, function = _configuration(given.get("configuration"))
    checked_name(name, "name")
    metadata = None if given.get("metadata") is None else _metadata(given["metadata"], "metadata")
    legacy = _legacy_settings(metadata or {})
    if asked.changed and (configured or legacy or function is not None):
        raise InvalidArgument("Failed to reconcile schema: Cannot set both collection config and schema simultaneously")
    settings = asked.settings or (legacy if configured is None else configured)
    new = NewCollection(
        tenant,
        database,
        name,
        space=settings.get("space", DEFAULTS["space"]),
        metadata=metadata,
        configuration=_to_store(settings, asked.function if function is None else function),
        schema=replace(asked.schema, vector=vector_config(settings, VectorConfig())),
    )
    return new, get_or_create


def modification(collection: Collection, body: Mapping[str, Any]) -> dict[str, Any]:
    """The keyword arguments of `PublicApi.modify_collection`.

    Args:
        collection: as it is now: settings that are not given stay as they are.
        body: ``{new_name?, new_metadata?, new_configuration?: {hnsw?, spann?, embedding_function?}}``. New metadata replace
            all there were, without their nulls. Settings of ``spann`` are without effect.

    Raises:
        BodyError, InvalidArgument: as `new_collection`.
    """
    given = object_of(body, "")
    changes: dict[str, Any] = {}
    if given.get("new_name") is not None:
        changes["name"] = checked_name(text_of(given["new_name"], "new_name"), "new_name")
    if given.get("new_metadata") is not None:
        metadata = _metadata(given["new_metadata"], "new_metadata", nulls=True)
        changes["metadata"] = {key: value for key, value in metadata.items() if value is not None}
    wanted = object_of(given.get("new_configuration"), "new_configuration")
    _check_one_index(wanted)
    settings = hnsw_settings(wanted.get(HNSW), _LATER_SETTINGS, "new_configuration.hnsw")
    check_known(object_of(wanted.get("spann"), "new_configuration.spann"), _LATER_SPANN, "new_configuration.spann")
    function = function_of(wanted.get(FUNCTION), inside("new_configuration", FUNCTION))
    vector = vector_config(settings, collection.schema.vector)
    if vector != collection.schema.vector:
        changes["schema"] = replace(collection.schema, vector=vector)
    stored = _to_store(kept_settings(collection.configuration) | settings, function)
    if not stored.items() <= collection.configuration.items():
        changes["configuration"] = {**collection.configuration, **stored}
    return changes


def _configuration(value: Any) -> tuple[Settings | None, Mapping[str, Any] | None]:
    """Settings and embedding function. The settings are None where metadata may say more: none differs from the default."""
    place = "configuration"
    given = object_of(value, place)
    function = function_of(given.get(FUNCTION), inside(place, FUNCTION))
    _check_one_index(given)
    if given.get("spann") is not None:
        spann = object_of(given["spann"], "configuration.spann")
        check_known(spann, _SPANN, "configuration.spann")
        space = space_of(spann.get("space"), "configuration.spann.space")
        return ({} if space is None else {"space": space}), function
    settings = hnsw_settings(given.get(HNSW), _SETTINGS, inside(place, HNSW))
    return (None if settings.items() <= DEFAULTS.items() else settings), function


def _legacy_settings(metadata: Mapping[str, Any]) -> Settings:
    """What metadata say of the index. Raises `InvalidArgument`."""
    given = {key.removeprefix(_LEGACY): value for key, value in metadata.items() if key.startswith(_LEGACY)}
    renamed = {_LEGACY_NAMES.get(name, name): value for name, value in given.items()}
    try:
        check_known(given, (*_LEGACY_NAMES, *DEFAULTS.keys() - _LEGACY_NAMES.values()), "metadata.hnsw")
        return hnsw_settings(renamed, _SETTINGS, "metadata.hnsw")
    except BodyError as error:
        raise InvalidArgument(f"Failed to parse hnsw parameters from segment metadata: {error.place}") from error


def _metadata(value: Any, place: str, *, nulls: bool = False) -> Mapping[str, Any]:
    given = object_of(value, place)
    if not given:
        raise InvalidArgument(f"Validation error: {place}: Metadata cannot be empty")
    for key, item in given.items():
        if isinstance(item, Mapping) or (item is None and not nulls):
            problem = f"data did not match any variant of untagged enum {'Update' if nulls else ''}MetadataValue"
            raise BodyError(problem, inside(place, key), path=(place, key), spot="around")
        if not key:
            raise InvalidArgument(f"Validation error: {place}: Metadata key cannot be empty")
        if key[0] in "#$":
            raise InvalidArgument(f"Validation error: {place}: Metadata key cannot start with '#' or '$': {key[:64]}")
    return given


def _check_one_index(configuration: Mapping[str, Any]) -> None:
    if configuration.get(HNSW) is not None and configuration.get("spann") is not None:
        raise InvalidArgument("Multiple vector index configurations provided")


def checked_name(name: str, place: str) -> str:
    """The name, if a collection may have it. Raises `InvalidArgument` in words that clients know."""
    try:
        check_name(name, place)
    except InvalidArgument as error:
        raise InvalidArgument(f"Validation error: {place}: Expected a name {_wanted_of(name)} {name[:512]}") from error
    return name


def _wanted_of(name: str) -> str:
    """What the reference system's message says of a name that is none."""
    if not NAME.fullmatch(name):
        return (
            "containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with a character in [a-zA-Z0-9]. Got:"
        )
    if ".." in name:
        return "that does not contains two consecutive periods (..). Got"
    return "that is not a valid ip address. Got"


def _to_store(settings: Settings, function: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a collection's configuration keeps."""
    kept = without_effect(settings)
    return {**({HNSW: kept} if kept else {}), **({} if function is None else {FUNCTION: function})}

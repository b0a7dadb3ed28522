"""Settings of the vector index as the reference system's JSON has them: of collections' configurations and of schemas.

Of its HNSW settings Shoal has the space, ``ef_construction``, ``ef_search`` and ``max_neighbors``. The others (``WITHOUT_EFFECT``)
are accepted, kept as given in the collection's configuration under ``hnsw``, and come back; nothing here reads them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument
from shoal_core.schema import VectorConfig
from shoal_frontend.http_api.body_error import (
    BodyError,
    check_known,
    inside,
    member,
    object_of,
    one_of,
    text_of,
    wrong_type,
)

Settings = Mapping[str, Any]

HNSW = "hnsw"
FUNCTION = "embedding_function"
SPACES = ("l2", "cosine", "ip")
WITHOUT_EFFECT = ("num_threads", "batch_size", "sync_threshold", "resize_factor")
# The reference system writes down how many cores its host has; this one has no such setting.
DEFAULTS: Settings = {
    "space": "l2",
    "ef_construction": 100,
    "max_neighbors": 16,
    "ef_search": 100,
    "num_threads": 1,
    "batch_size": 100,
    "sync_threshold": 1000,
    "resize_factor": 1.2,
}
_MOST = 2**63 - 1
_RANGES: Mapping[str, tuple[int, int]] = {
    "ef_construction": (2, 4096),
    "ef_search": (0, 4096),
    "max_neighbors": (2, 256),
    "num_threads": (0, _MOST),
    "batch_size": (2, _MOST),
    "sync_threshold": (2, _MOST),
}


def hnsw_settings(value: Any, names: tuple[str, ...], place: str) -> dict[str, Any]:
    """The settings that an object has, nulls left out.

    Raises:
        BodyError: it is no object, has a setting that is not one of ``names``, or one of another type.
        InvalidArgument: a setting is out of range.
    """
    given = object_of(value, place)
    check_known(given, names, place)
    return {name: _setting(name, item, inside(place, name)) for name, item in given.items() if item is not None}


def setting_ranges() -> Mapping[str, tuple[int, int]]:
    """The least and the most of each setting that is a whole number."""
    return _RANGES


def space_of(value: Any, place: str) -> str | None:
    """The space, None for null. Raises `BodyError`."""
    return None if value is None else one_of(value, SPACES, place)


def function_of(value: Any, place: str) -> dict[str, Any] | None:
    """What a client says of its embedding function, exactly as it came: nothing here makes anything of it.

    Raises `BodyError` unless it is null or an object of type ``legacy`` or ``unknown``, or ``known`` with a name and a config.
    """
    if value is None:
        return None
    given = object_of(value, place)
    kind = one_of(member(given, "type", place), ("legacy", "known", "unknown"), inside(place, "type"))
    if kind == "known":
        text_of(member(given, "name", place), inside(place, "name"))
        member(given, "config", place)
    return dict(given)


def stored_function(configuration: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """As `function_of` took it. None for one that another API stored: its name means nothing to clients of this one."""
    found = configuration.get(FUNCTION)
    return found if isinstance(found, Mapping) and isinstance(found.get("type"), str) else None


def vector_config(settings: Settings, old: VectorConfig) -> VectorConfig:
    """The settings that Shoal has; the others are as before."""
    return VectorConfig(
        settings.get("max_neighbors", old.m),
        settings.get("ef_construction", old.ef_construction),
        settings.get("ef_search", old.ef_search),
    )


def without_effect(settings: Settings) -> dict[str, Any]:
    """The settings that are only kept."""
    return {name: settings[name] for name in WITHOUT_EFFECT if name in settings}


def kept_settings(configuration: Mapping[str, Any]) -> dict[str, Any]:
    """The settings without effect that a collection's configuration has; what another API left there under that name is not."""
    stored = configuration.get(HNSW)
    kept = without_effect(stored if isinstance(stored, Mapping) else {})
    return {name: value for name, value in kept.items() if isinstance(value, int | float)}


def stored_settings(collection: Collection) -> dict[str, Any]:
    """All settings of a collection, those never given as by default."""
    vector = collection.schema.vector
    return {
        **DEFAULTS,
        "space": collection.space,
        "ef_construction": vector.ef_construction,
        "max_neighbors": vector.m,
        "ef_search": vector.ef_search or DEFAULTS["ef_search"],
        **kept_settings(collection.configuration),
    }


def _setting(name: str, value: Any, place: str) -> Any:
    if name == "space":
        return one_of(value, SPACES, place)
    if isinstance(value, bool) or not isinstance(value, int if name in _RANGES else int | float):
        raise wrong_type(value, "usize" if name in _RANGES else "f64", place)
    if name not in _RANGES:
        return float(value)
    if value < 0:
        raise BodyError(f"invalid value: integer `{value}`, expected usize", place)
    least, most = _RANGES[name]
    if not least <= value <= most:
        raise InvalidArgument(f"{value}; a whole number from {least} to {most}", field=place)
    return value

"""Embedding functions as data: what a collection stores of one, and the way back.

    {"type": "known", "name": "openai", "version": 1, "config": {"model_name": "text-embedding-3-small", ...}}

Names and members are those of Chroma's clients where they have the function, so that either reads what the other stored. A function
that nobody could make again, such as a callable, is stored by its name alone: ``{"name": "mine"}``.

Whoever may write a collection's configuration chooses what is in it. So it is read as data: it runs no code, and by itself it
sends neither texts nor keys anywhere but to a function's own public address; see `rebuild`.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Mapping
from dataclasses import MISSING, dataclass, fields
from types import MappingProxyType
from typing import Any, Final, TypeAlias
from urllib.parse import urlsplit

from shoal.embedding.config import check_no_secrets, read_config, write_config
from shoal.embedding.local_functions import SentenceTransformer
from shoal.embedding.minilm import MAX_TOKENS, MiniLM
from shoal.embedding.prefixed import Prefixed
from shoal.embedding.protocol import EmbeddingFunction, RemoteFunction
from shoal.embedding.services import HuggingFaceServer, Ollama, OpenAI
from shoal_core.errors import FailedPrecondition, InvalidArgument

Json = Mapping[str, Any]
Function: TypeAlias = EmbeddingFunction | RemoteFunction | Prefixed

KEY: Final = "embedding_function"
_PLACE: Final = f"configuration.{KEY}"
_LEGACY: Final = ("legacy", "unknown")
_SHOWN: Final = 64


@dataclass(frozen=True, slots=True)
class Kind:
    """One function by name.

    Attributes:
        name: as stored.
        canonical: names of one canonical name are the same function.
        version: of the configuration.
        make: the dataclass of the configuration, which is the function.
        members: those of its fields that are stored under this name.
        relevant: those that determine the vectors.
        ignored: members that other clients store, and that make no difference.
    """

    name: str
    canonical: str
    make: Callable[..., Any]
    members: tuple[str, ...]
    relevant: tuple[str, ...]
    version: int = 1
    ignored: tuple[str, ...] = ()


_OPENAI: Final = (
    "api_key_env_var",
    "model_name",
    "organization_id",
    "api_base",
    "api_type",
    "api_version",
    "deployment_id",
    "default_headers",
    "dimensions",
)
_PREFIXED: Final = ("function", "document_prefix", "query_prefix")


def _names(kind: Any) -> tuple[str, ...]:
    return tuple(field.name for field in fields(kind))


KINDS: Final[Mapping[str, Kind]] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("default", "default", MiniLM, (), ("max_tokens",)),
            Kind("onnx_mini_lm_l6_v2", "default", MiniLM, (), ("max_tokens",), ignored=("preferred_providers",)),
            Kind("all-MiniLM-L6-v2", "default", MiniLM, ("max_tokens",), ("max_tokens",)),
            Kind("ollama", "ollama", Ollama, _names(Ollama), Ollama.RELEVANT),
            Kind(OpenAI.NAME, OpenAI.NAME, OpenAI, _OPENAI, OpenAI.RELEVANT),
            Kind(OpenAI.WIDER_NAME, OpenAI.NAME, OpenAI, _names(OpenAI), OpenAI.RELEVANT),
            Kind(
                HuggingFaceServer.NAME,
                HuggingFaceServer.NAME,
                HuggingFaceServer,
                ("url", "api_key_env_var"),
                HuggingFaceServer.RELEVANT,
            ),
            Kind(
                HuggingFaceServer.WIDER_NAME,
                HuggingFaceServer.NAME,
                HuggingFaceServer,
                _names(HuggingFaceServer),
                HuggingFaceServer.RELEVANT,
            ),
            Kind(
                SentenceTransformer.NAME,
                SentenceTransformer.NAME,
                SentenceTransformer,
                _names(SentenceTransformer),
                SentenceTransformer.RELEVANT,
            ),
            Kind(Prefixed.NAME, Prefixed.NAME, Prefixed, _PREFIXED, _PREFIXED),
        )
    }
)


@dataclass(frozen=True, slots=True)
class Stored:
    """What a collection stores of its function.

    Attributes:
        name: never empty.
        config: None where it stores the name alone.
        version: of the configuration.
    """

    name: str
    config: Json | None
    version: int = 1


def stored_form(function: Function) -> dict[str, Any]:
    """What a collection stores of a function."""
    kind = KINDS.get(function.name)
    if kind is None or not is_known(function):
        return {"name": function.name}
    if isinstance(function, Prefixed):
        inner = stored_form(function.function)
        prefixes = {"document_prefix": function.document_prefix, "query_prefix": function.query_prefix}
        config: dict[str, Any] = {"function": inner, **prefixes}
    else:
        config = {name: value for name, value in write_config(function).items() if name in kind.members}  # type: ignore[arg-type]  # a dataclass
    return {"type": "known", "name": kind.name, "version": kind.version, "config": config}


def stored_function(configuration: Json) -> Stored | None:
    """What a collection's configuration says of its function; None where it names none. Nothing else is looked at."""
    found = configuration.get(KEY)
    if not isinstance(found, Mapping) or found.get("type") in _LEGACY:
        return None
    name, config, version = found.get("name"), found.get("config"), found.get("version", 1)
    if not isinstance(name, str) or not name:
        return None
    number = version if isinstance(version, int) and not isinstance(version, bool) else 0
    return Stored(name, config if isinstance(config, Mapping) else None, number)


def is_known(function: Function) -> bool:
    """Whether a collection's configuration can tell all of it."""
    kind = KINDS.get(function.name)
    if isinstance(function, Prefixed):
        return is_known(function.function)
    return kind is not None and type(function) is kind.make


def identity_of(function: Function) -> str:
    """What determines its vectors, as far as known: of equal ones the same."""
    return json.dumps(stored_form(function), sort_keys=True)


def same_function(one: Stored, other: Stored) -> bool:
    """Whether two make the same vectors, as far as their data tell: of functions known by name alone the names decide."""
    if canonical_name(one.name) != canonical_name(other.name):
        return False
    if one.config is None or other.config is None:
        return True
    return _relevant(one) == _relevant(other)


def canonical_name(name: str) -> str:
    """The one name of a function that has several."""
    kind = KINDS.get(name)
    return name if kind is None else kind.canonical


def described(stored: Stored) -> str:
    """For errors: the name, and what determines the vectors."""
    kind = KINDS.get(stored.name)
    if kind is None or stored.config is None or not kind.members:
        return repr(stored.name[:_SHOWN])
    members = {name: value for name, value in _relevant(stored).items() if value is not None}
    return f"{stored.name!r} ({', '.join(f'{name} {_shown(value)}' for name, value in members.items())})"


def read_stored(stored: Stored, place: str = _PLACE) -> Function:
    """The function that data describe. Makes no connection and loads nothing.

    Raises:
        FailedPrecondition: it is not built in, or its configuration is of a newer release.
        InvalidArgument: its configuration is none of its; the error names the member.
    """
    kind = KINDS.get(stored.name)
    if kind is None:
        raise FailedPrecondition(
            f"the embedding function {stored.name[:_SHOWN]!r} is not built in (there are: {', '.join(KINDS)}); pass it itself",
            field=KEY,
        )
    if not 1 <= stored.version <= kind.version:
        raise FailedPrecondition(f"the configuration of {kind.name!r} has a version that is not known here", field=KEY)
    config, place = stored.config or {}, f"{place}.config"
    check_no_secrets(config, place)
    config = {name: value for name, value in config.items() if name not in kind.ignored}
    foreign = next((name for name in config if name not in kind.members), None)
    if foreign is not None:
        allowed = ", ".join(kind.members) or "none"
        raise InvalidArgument(f"unknown; members are: {allowed}", field=f"{place}.{str(foreign)[:_SHOWN]}")
    if kind.name == Prefixed.NAME:
        return _read_prefixed(config, place)
    if kind.name == OpenAI.NAME and "text-embedding-3" not in str(config.get("model_name")):
        config = {**config, "dimensions": None}  # Chroma's clients do not send it for other models
    made: Function = read_config(kind.make, config, place)  # type: ignore[arg-type]  # a dataclass
    return made


def rebuild(stored: Stored, hosts: Collection[str] = ()) -> Function:
    """As `read_stored`, for data that somebody else may have written.

    Args:
        hosts: ``host`` or ``host:port`` of services that may be asked besides the public one of each function, and Ollama's on
            this machine. Texts go there, and keys.

    Raises:
        FailedPrecondition: also where it would ask another host, or take its key from a variable that is not the function's own.
    """
    function = read_stored(stored)
    _check_trusted(function.function if isinstance(function, Prefixed) else function, hosts)
    return function


def _check_trusted(function: Function, hosts: Collection[str]) -> None:
    if not isinstance(function, RemoteFunction):
        return
    parts = urlsplit(function.url)
    usual = getattr(function, "DEFAULT_URL", None) or (type(function)().url if isinstance(function, Ollama) else None)
    if function.url.rstrip("/") != usual and parts.netloc not in hosts and parts.hostname not in hosts:
        raise FailedPrecondition(
            f"the collection's embedding function {function.name!r} asks {parts.netloc}, which this client was not told to trust; "
            f"pass the function itself, or connect with embedding_hosts=[{parts.netloc!r}]",
            field=KEY,
        )
    variable = function.api_key_env_var
    if variable is not None and variable not in getattr(function, "VARIABLES", ()):
        raise FailedPrecondition(
            f"the collection's embedding function {function.name!r} takes its key from the variable {variable}, which is none of "
            f"its usual ones ({', '.join(getattr(function, 'VARIABLES', ()))}); pass the function itself",
            field=KEY,
        )


def _read_prefixed(config: Json, place: str) -> Prefixed:
    inner = stored_function({KEY: config.get("function")})
    if inner is None or inner.name == Prefixed.NAME:
        raise InvalidArgument("expected another function, as it is stored", field=f"{place}.function")
    prefixes = [config.get(name, "") for name in _PREFIXED[1:]]
    for name, prefix in zip(_PREFIXED[1:], prefixes, strict=True):
        if not isinstance(prefix, str):
            raise InvalidArgument("expected a text", field=f"{place}.{name}")
    function = read_stored(inner, f"{place}.function")
    assert not isinstance(function, Prefixed)
    return Prefixed(function, *prefixes)


def _relevant(stored: Stored) -> dict[str, Any]:
    """The members that determine the vectors, with defaults; by looking at the data only."""
    kind, config = KINDS.get(stored.name), stored.config or {}
    if kind is None:
        return dict(config)
    defaults = {
        field.name: field.default
        for field in fields(kind.make)  # type: ignore[arg-type]  # a dataclass
        if field.default is not MISSING
    }
    if kind.make is MiniLM and not kind.members:
        config = {"max_tokens": MAX_TOKENS}
    found = {name: config.get(name, defaults.get(name)) for name in kind.relevant}
    if kind.name == OpenAI.NAME and "text-embedding-3" not in str(found["model_name"]):
        found["dimensions"] = None
    if kind.name == Prefixed.NAME:
        inner = stored_function({KEY: config.get("function")})
        found["function"] = None if inner is None else (canonical_name(inner.name), _relevant(inner))
    return found


def _shown(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 2 * _SHOWN else f"{text[: 2 * _SHOWN]}…"

"""A function's configuration as data: members read into a frozen dataclass, one by one, and written back.

It comes from collections, which anybody who may write there can set: it names variables of the environment, never secrets, and
nothing in it chooses code.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, Field, fields
from types import NoneType
from typing import Any, ClassVar, Final, Protocol, TypeVar, get_args, get_type_hints
from urllib.parse import urlsplit

from shoal_core.errors import InvalidArgument

Json = Mapping[str, Any]

_VARIABLE: Final = re.compile(r"[A-Z_][A-Z0-9_]{0,127}")
_SECRET: Final = re.compile(
    r"(^|[_-])(api_?key|apikey|api-key|access_?key|auth|authorization|bearer|cookie|credentials?|passw(or)?d|secret|secret_key|"
    r"auth_token|access_token|bearer_token|token)$",
    re.IGNORECASE,
)
_CODE: Final = frozenset({"trust_remote_code", "module", "class", "callable", "code"})
_LONGEST: Final = 4096


class Configured(Protocol):
    """A frozen dataclass whose fields are the members of its configuration."""

    __dataclass_fields__: ClassVar[dict[str, Field[Any]]]


C = TypeVar("C", bound=Configured)


def read_config(kind: type[C], config: object, place: str) -> C:
    """The dataclass that a configuration describes. Raises `InvalidArgument` naming the member that is unknown, missing, of another
    type, or a secret; the value of that is not shown.
    """
    if not isinstance(config, Mapping):
        raise InvalidArgument(f"expected an object, got {type(config).__name__}", field=place)
    known = {field.name: field for field in fields(kind)}
    check_no_secrets(config, place)
    for member in config:
        if member not in known:
            allowed = ", ".join(known) or "none"
            raise InvalidArgument(f"unknown; members are: {allowed}", field=f"{place}.{str(member)[:64]}")
    for name, field in known.items():
        if name not in config and field.default is MISSING and field.default_factory is MISSING:
            raise InvalidArgument("missing", field=f"{place}.{name}")
    hints = get_type_hints(kind)
    values = {name: _value(value, hints[name], f"{place}.{name}") for name, value in config.items()}
    try:
        return kind(**values)
    except InvalidArgument as error:
        raise InvalidArgument(error.message, field=f"{place}.{error.field}") from error


def write_config(configured: Configured) -> dict[str, Any]:
    """All members as JSON."""
    return {
        field.name: dict(value) if isinstance(value := getattr(configured, field.name), Mapping) else value
        for field in fields(configured)
    }


def check_no_secrets(config: Json, place: str) -> None:
    """Raise `InvalidArgument` for a member that looks like a secret's value or chooses code, at any depth that is looked at."""
    for member, value in config.items():
        name = str(member)
        if name in _CODE:
            raise InvalidArgument("not allowed: no code is chosen by data", field=f"{place}.{name}")
        if not name.endswith("_env_var") and _SECRET.search(name):
            raise InvalidArgument(
                "a secret is not stored; name the environment variable that holds it in api_key_env_var",
                field=f"{place}.{name[:64]}",
            )
        if isinstance(value, Mapping):
            check_no_secrets(value, f"{place}.{name[:64]}")


def check_url(url: str, field: str = "url") -> str:
    """The URL without a slash at its end. Raises `InvalidArgument` unless it is http or https, with a host, without credentials."""
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise InvalidArgument("no URL", field=field) from error
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise InvalidArgument("expected http://host or https://host, and perhaps a path", field=field)
    if parts.username is not None or parts.password is not None or parts.query or parts.fragment:
        raise InvalidArgument("a URL here has no credentials, no query and no fragment", field=field)
    return url.rstrip("/")


def check_variable(name: str | None, field: str = "api_key_env_var") -> None:
    """Raise `InvalidArgument` unless it looks like the name of an environment variable; it is not shown, as it may be a secret."""
    if name is not None and not _VARIABLE.fullmatch(name):
        raise InvalidArgument(
            "expected the name of an environment variable, in capitals; the secret itself does not belong here",
            field=field,
        )


def check_text(value: str, field: str) -> None:
    """Raise `InvalidArgument` for an empty text."""
    if not value:
        raise InvalidArgument("empty", field=field)


def _value(value: Any, hint: Any, place: str) -> Any:
    kinds = get_args(hint) or (hint,)
    if value is None and NoneType in kinds:
        return None
    if isinstance(value, str) and str in kinds:
        if len(value) > _LONGEST:
            raise InvalidArgument(f"{len(value)} characters, at most {_LONGEST}", field=place)
        return value
    if isinstance(value, bool):
        if bool in kinds:
            return value
    elif isinstance(value, int) and (int in kinds or float in kinds):
        return value if int in kinds else float(value)
    elif isinstance(value, float) and float in kinds and math.isfinite(value):
        return value
    elif isinstance(value, Mapping) and any(getattr(kind, "__origin__", None) is Mapping for kind in (hint, *kinds)):
        return dict(value)
    raise InvalidArgument(f"expected {_spelled(kinds, hint)}, got {type(value).__name__}", field=place)


def _spelled(kinds: tuple[Any, ...], hint: Any) -> str:
    words = {str: "a text", int: "a whole number", float: "a number", bool: "true or false", NoneType: "null"}
    if getattr(hint, "__origin__", None) is Mapping:
        return "an object"
    return " or ".join(words.get(kind, "an object") for kind in kinds)

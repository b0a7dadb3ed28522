"""The one configuration of a Shoal process: flags over environment over file over defaults.

The environment spells a setting ``SHOAL_SECTION__NAME`` (two underscores per level; variables without them are not ours), the
file is TOML with a table per section. A process builds its configuration once with `load`, and hands sections on.
"""

from __future__ import annotations

import os
import tomllib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, SecretStr, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import (
    BaseSettings,
    EnvSettingsSource,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
    SettingsError,
)

from shoal_core.errors import InvalidArgument
from shoal_runtime.frontend_sections import FrontendSection
from shoal_runtime.sections import (
    AuditSection,
    CacheSection,
    EtcdSection,
    LimitsSection,
    ObjectsSection,
    PostgresSection,
    RpcSection,
    Section,
    TelemetrySection,
    TlsSection,
)
from shoal_runtime.service_sections import (
    CompactorSection,
    LogSection,
    QuerySection,
    ServiceSection,
    SysdbSection,
)

ENVIRONMENT_PREFIX = "SHOAL_"
FILE_VARIABLE = "SHOAL_CONFIG"
ROLES = ("frontend", "logservice", "querynode", "compactor", "sysdb")

_DELIMITER = "__"

# Of the constraints that pydantic keeps beside a field.
_BOUNDS = {"ge": "≥", "gt": ">", "le": "≤", "lt": "<", "multiple_of": "multiple of", "pattern": "like"}


class Config(BaseSettings):
    """Every setting of every process; each service reads the sections it needs. Made by `load`."""

    model_config = SettingsConfigDict(
        frozen=True, extra="forbid", env_prefix=ENVIRONMENT_PREFIX, env_nested_delimiter=_DELIMITER
    )

    postgres: PostgresSection = PostgresSection()
    objects: ObjectsSection = ObjectsSection()
    etcd: EtcdSection = EtcdSection()
    tls: TlsSection = TlsSection()
    rpc: RpcSection = RpcSection()
    cache: CacheSection = CacheSection()
    limits: LimitsSection = LimitsSection()
    telemetry: TelemetrySection = TelemetrySection()
    audit: AuditSection = AuditSection()
    sysdb: SysdbSection = SysdbSection()
    logservice: LogSection = LogSection()
    querynode: QuerySection = QuerySection()
    compactor: CompactorSection = CompactorSection()
    frontend: FrontendSection = FrontendSection()

    def service(self, role: str) -> ServiceSection:
        """The section of a role. Raises `InvalidArgument` for an unknown one."""
        if role not in ROLES:
            raise InvalidArgument(f"is none of {', '.join(ROLES)}: {role}", field="role")
        section: ServiceSection = getattr(self, role)
        return section

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """Only arguments: `load` alone looks at the world, so that ``Config()`` means the defaults everywhere."""
        return (init_settings,)


@dataclass(frozen=True, slots=True)
class SettingRow:
    """One setting, for generated docs. ``name`` as in the file: ``section.name``; a secret's default is empty.

    ``bounds``: what its value must meet, such as ``≥ 1``; empty for anything of the type.
    """

    name: str
    type: str
    default: str
    help: str
    bounds: str = ""

    @property
    def variable(self) -> str:
        """Its name in the environment."""
        return ENVIRONMENT_PREFIX + self.name.replace(".", _DELIMITER).upper()


def load(flags: Mapping[str, Any] | None = None, *, path: Path | None = None) -> Config:
    """The configuration of this process.

    Args:
        flags: nested overrides from the command line, such as ``{"postgres": {"dsn": …}}``.
        path: of the file; None takes the one that ``SHOAL_CONFIG`` names, if any.

    Raises:
        InvalidArgument: a file that cannot be read, an unknown key, a value that does not fit; the message names every setting
            at fault and no value, as it may be a secret.
    """
    named = os.environ.get(FILE_VARIABLE)
    file = path or (Path(named) if named else None)
    values = _read_file(file) if file else {}
    for source in (_read_environment(), flags or {}):
        values = _merged(values, source)
    try:
        return Config(**values)
    except ValidationError as error:
        details = error.errors(include_input=False, include_url=False, include_context=False)
        problems = [(".".join(map(str, each["loc"])), each["msg"]) for each in details]
        text = "; ".join(f"{name}: {_explained(message)}" for name, message in problems)
        raise InvalidArgument(f"the configuration is wrong: {text}", field=problems[0][0]) from None


def parse_flags(settings: Iterable[str]) -> dict[str, Any]:
    """Overrides for `load` from ``section.name=value`` texts; a later one wins. Raises `InvalidArgument` for another form."""
    flags: dict[str, Any] = {}
    for setting in settings:
        name, equals, value = setting.partition("=")
        *sections, last = name.split(".")
        if not equals or not sections or not all((*sections, last)):
            raise InvalidArgument("expected SECTION.NAME=VALUE", field=name or "--set")
        table = flags
        for section in sections:
            table = table.setdefault(section, {})
            if not isinstance(table, dict):
                raise InvalidArgument(f"{section} is a setting, not a section", field=name)
        table[last] = value
    return flags


def describe() -> list[SettingRow]:
    """Every setting in the order of the sections."""
    return list(_rows(Config, ""))


def _rows(model: type[BaseModel], prefix: str) -> Iterator[SettingRow]:
    for name, info in model.model_fields.items():
        if isinstance(info.default, Section):
            yield from _rows(type(info.default), f"{prefix}{name}.")
        else:
            yield SettingRow(
                prefix + name, _type_name(info), _default_text(info.default), _help(model, name), _bounds(info)
            )


def _help(model: type[BaseModel], name: str) -> str:
    """What stands below the field, here or where a base class declares it."""
    fields = (base.model_fields.get(name) for base in model.__mro__ if issubclass(base, Section))
    return next((field.description for field in fields if field and field.description), "")


def _type_name(info: FieldInfo) -> str:
    if isinstance(info.default, tuple):
        return "list of str"
    if isinstance(info.default, SecretStr):
        return "secret"
    if isinstance(info.default, dict):
        return "table"
    if get_origin(info.annotation) is Literal:
        return f"one of {', '.join(map(str, get_args(info.annotation)))}"
    return info.annotation.__name__ if isinstance(info.annotation, type) else "path"


def _bounds(info: FieldInfo) -> str:
    known = [(sign, getattr(each, name, None)) for each in info.metadata for name, sign in _BOUNDS.items()]
    return ", ".join(f"{sign} {value}" for sign, value in known if value is not None)


def _default_text(value: Any) -> str:
    if value is None or isinstance(value, SecretStr | dict):
        return ""
    return ",".join(map(str, value)) if isinstance(value, tuple) else str(value)


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "it is not UTF-8"
        raise InvalidArgument(f"the configuration file {path} cannot be read: {reason}", field="config") from error
    except tomllib.TOMLDecodeError as error:
        raise InvalidArgument(f"the configuration file {path} is not TOML: {error}", field="config") from None


def _read_environment() -> dict[str, Any]:
    for name in os.environ:
        section = name.removeprefix(ENVIRONMENT_PREFIX).partition(_DELIMITER)
        if name.startswith(ENVIRONMENT_PREFIX) and section[1] and section[0].lower() not in Config.model_fields:
            raise InvalidArgument(f"the environment variable {name} names no section of the configuration", field=name)
    try:
        return EnvSettingsSource(Config)()
    except SettingsError as error:
        raise InvalidArgument(f"the environment cannot be read: {error}") from None


def _merged(low: Mapping[str, Any], high: Mapping[str, Any]) -> dict[str, Any]:
    """``high`` over ``low``, level by level."""
    merged = dict(low)
    for name, value in high.items():
        below = merged.get(name)
        both = isinstance(below, Mapping) and isinstance(value, Mapping)
        merged[name] = _merged(below, value) if both else value  # type: ignore[arg-type]  # mypy does not follow `both`
    return merged


def _explained(message: str) -> str:
    return "there is no such setting" if message.startswith("Extra inputs") else message

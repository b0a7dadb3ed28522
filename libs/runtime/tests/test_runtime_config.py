"""The configuration: order of the sources, unknown keys, secrets, and agreement with the settings of the services."""

from __future__ import annotations

import logging
import os
from dataclasses import dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from shoal_cluster.channels import ChannelSettings
from shoal_cluster.routing import RoutingSettings
from shoal_compactor.compactor import CompactorSettings
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_frontend.embedding import EmbeddingSettings
from shoal_log.settings import LogSettings
from shoal_query.node import NodeSettings
from shoal_runtime.config import ROLES, Config, describe, load, parse_flags
from shoal_runtime.sections import Section, settings_of
from shoal_storage.objects import S3Config


@pytest.fixture(autouse=True)
def _no_settings_from_outside(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in os.environ if name.startswith("SHOAL_")]:
        monkeypatch.delenv(name)


def write(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    return path


def test_defaults_need_nothing() -> None:
    config = load()
    assert config == Config()
    assert config.limits.to_limits() == Limits()


def test_flags_over_environment_over_file_over_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "[compactor]\npoll_ms = 1\nmin_records = 1\nlease_ms = 1\n[compactor.flush]\nthreads = 7\n[etcd]\nendpoints = ['x:1']\n"
    path = write(tmp_path / "shoal.toml", text)
    monkeypatch.setenv("SHOAL_COMPACTOR__MIN_RECORDS", "2")
    monkeypatch.setenv("SHOAL_COMPACTOR__LEASE_MS", "2")
    monkeypatch.setenv("SHOAL_COMPACTOR__FLUSH__RECORDS", "3")
    compactor = load({"compactor": {"lease_ms": 3}}, path=path).compactor
    assert (compactor.poll_ms, compactor.min_records, compactor.lease_ms) == (1, 2, 3)
    assert (compactor.flush.threads, compactor.flush.records) == (7, 3)
    assert compactor.max_age_ms == CompactorSettings().max_age_ms


def test_the_file_may_be_named_by_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_CONFIG", str(write(tmp_path / "a.toml", "[etcd]\ncluster = 'from-variable'\n")))
    assert load().etcd.cluster == "from-variable"
    other = write(tmp_path / "b.toml", "[etcd]\ncluster = 'from-flag'\n")
    assert load(path=other).etcd.cluster == "from-flag"


def test_the_environment_spells_lists_with_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_ETCD__ENDPOINTS", "one:2379, two:2379")
    monkeypatch.setenv("SHOAL_FRONTEND__HEDGE", "false")
    monkeypatch.setenv("SHOAL_CACHE__DIRECTORY", "/var/cache/shoal")
    config = load()
    assert config.etcd.endpoints == ("one:2379", "two:2379")
    assert config.frontend.hedge is False
    assert config.cache.directory == Path("/var/cache/shoal")


def test_functions_that_the_frontend_offers_are_tables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = """
[frontend.embedding]
default = "small"
[frontend.embedding.functions.small]
kind = "openai"
calls_per_second = 5
config = { model_name = "m", api_key_env_var = "OPENAI_API_KEY", default_headers = { a = "b" } }
"""
    found = load(path=write(tmp_path / "shoal.toml", text)).frontend.embedding
    assert found.functions["small"].config["default_headers"] == {"a": "b"}
    assert (found.functions["small"].kind, found.functions["small"].calls_per_second) == ("openai", 5.0)
    monkeypatch.setenv("SHOAL_FRONTEND__EMBEDDING__FUNCTIONS", '{"own": {"kind": "default"}}')
    assert load().frontend.embedding.functions["own"].kind == "default"
    assert not Config().frontend.embedding.functions
    rows = {row.name: row for row in describe()}
    assert (rows["frontend.embedding.functions"].type, rows["frontend.embedding.functions"].default) == ("table", "")
    with pytest.raises(InvalidArgument, match=r"frontend\.embedding\.functions\.a\.knid"):
        load(path=write(tmp_path / "wrong.toml", "[frontend.embedding.functions.a]\nknid = 'x'\nkind = 'y'\n"))


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("[frontend]\ntimeout = 5\n", "frontend.timeout"),
        ("[frontent]\ntimeout_ms = 5\n", "frontent"),
        ("[compactor.flush]\nrow = 5\n", "compactor.flush.row"),
        ("[limits]\nid_size = 5\n", "limits.id_size"),
        ("[limits]\nid_size_bytes = 0\n", "limits.id_size_bytes"),
        ("[limits]\nid_size_bytes = 'many'\n", "limits.id_size_bytes"),
        ("[etcd]\nendpoints = ['nowhere']\n", "etcd.endpoints"),
        ("[querynode]\nlisten = 'somewhere'\n", "querynode.listen"),
        ("[logservice.trim]\nperiod_ms = 1500\n", "logservice.trim.period_ms"),
    ],
)
def test_wrong_settings_in_the_file_are_named(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InvalidArgument, match=named) as caught:
        load(path=write(tmp_path / "shoal.toml", text))
    assert caught.value.field.startswith(named)


def test_every_wrong_setting_is_named_at_once(tmp_path: Path) -> None:
    path = write(tmp_path / "shoal.toml", "[etcd]\nlease = 1\n[rpc]\nretries = 1\n")
    with pytest.raises(InvalidArgument, match=r"etcd\.lease: there is no such setting.*rpc\.retries"):
        load(path=path)


def test_wrong_variables_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_QUERYNODE__THREAD", "5")
    with pytest.raises(InvalidArgument, match=r"querynode\.thread"):
        load()
    monkeypatch.delenv("SHOAL_QUERYNODE__THREAD")
    monkeypatch.setenv("SHOAL_QUERRYNODE__THREADS", "5")
    with pytest.raises(InvalidArgument, match="SHOAL_QUERRYNODE__THREADS"):
        load()


def test_variables_of_an_orchestrator_are_not_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_FRONTEND_PORT", "tcp://10.0.0.1:8800")
    monkeypatch.setenv("SHOAL_FRONTEND_SERVICE_HOST", "10.0.0.1")
    assert load() == Config()


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="cannot be read"):
        load(path=tmp_path / "absent.toml")
    with pytest.raises(InvalidArgument, match="is not TOML"):
        load(path=write(tmp_path / "broken.toml", "[etcd\n"))


def test_secrets_are_shown_nowhere(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    text = (
        "[postgres]\ndsn = 'postgresql://u:hunter2@h/d'\n[objects.s3]\nsecret_key = 'hunter2'\naccess_key = 'hunter2'\n"
    )
    config = load(path=write(tmp_path / "shoal.toml", text))
    with caplog.at_level(logging.INFO):
        logging.getLogger("test").info("%s %r", config, config.postgres)
    assert "hunter2" not in caplog.text + repr(config) + str(config.model_dump()) + config.model_dump_json()
    assert config.postgres.dsn.get_secret_value().endswith("hunter2@h/d")


def test_errors_show_no_values(tmp_path: Path) -> None:
    path = write(tmp_path / "shoal.toml", "[postgres]\ndsn = ['hunter2']\n[objects.s3]\nkey = 'hunter2'\n")
    with pytest.raises(InvalidArgument) as caught:
        load(path=path)
    assert "postgres.dsn" in str(caught.value)
    assert "hunter2" not in repr(caught.value) + str(caught.value.__cause__)


def test_the_configuration_is_frozen() -> None:
    config = Config()
    with pytest.raises(ValidationError):
        config.etcd.cluster = "other"
    with pytest.raises(ValidationError):
        config.etcd = config.etcd


def test_roles_have_a_section_each() -> None:
    config = Config()
    assert len({config.service(role).listen for role in ROLES}) == len(ROLES)
    with pytest.raises(InvalidArgument, match="frontend, logservice"):
        config.service("etcd")


def test_every_setting_is_described() -> None:
    rows = describe()
    assert [row.name for row in rows if not row.help] == []
    assert len({row.name for row in rows}) == len(rows)
    by_name = {row.name: row for row in rows}
    assert by_name["postgres.dsn"].type == "secret"
    assert by_name["postgres.dsn"].default == ""
    assert by_name["compactor.flush.threads"].default == "2"
    assert by_name["compactor.flush.threads"].variable == "SHOAL_COMPACTOR__FLUSH__THREADS"
    assert by_name["cache.directory"].type == "path"
    assert by_name["cache.directory"].bounds == ""
    assert by_name["compactor.policy.dead_share"].bounds == "≥ 0, ≤ 1"
    assert by_name["logservice.trim.period_ms"].bounds == "≥ 1000, multiple of 1000"


@pytest.mark.parametrize(
    ("section", "component"),
    [
        (Config().limits, Limits()),
        (Config().logservice, LogSettings()),
        (Config().compactor, CompactorSettings()),
        (Config().querynode, NodeSettings()),
        (Config().frontend.embedding, EmbeddingSettings({})),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sections_agree_with_the_components(section: Section, component: Any) -> None:
    """Every field of a component's settings can be configured, and has the same default in both places."""
    missing = list(unconfigurable(type(component), type(section)))
    assert missing == ([] if not isinstance(component, LogSettings) else ["limits", "require_synchronous_standby"])
    assert settings_of(type(component), section) == component


@pytest.mark.parametrize(
    ("section", "component", "other"),
    [
        (Config().rpc, ChannelSettings(), {"max_message_bytes": Limits().message_size_bytes}),
        (Config().rpc, RoutingSettings().retry, {"max_attempts": RoutingSettings().retry.max_attempts}),
        (Config().frontend, RoutingSettings(), {"attempt_timeout_ms": Config().rpc.timeout_ms}),
        (Config().objects.s3, S3Config("", secret_key=""), {"access_key": "", "secret_key": ""}),
    ],
    ids=lambda value: type(value).__name__,
)
def test_sections_agree_with_the_shared_parts(section: Section, component: Any, other: dict[str, Any]) -> None:
    assert settings_of(type(component), section, **other) == component


def unconfigurable(kind: type[Any], section: type[Section]) -> list[str]:
    missing = []
    for each in fields(kind):
        info = section.model_fields.get(each.name)
        if info is None:
            missing.append(each.name)
        elif isinstance(info.default, Section):
            default = each.default_factory() if callable(each.default_factory) else each.default
            assert is_dataclass(default)
            missing += unconfigurable(type(default), type(info.default))
    return missing


def test_settings_of_takes_changed_values_and_what_the_section_lacks() -> None:
    @dataclass(frozen=True)
    class Inner:
        threads: int = 1

    @dataclass(frozen=True)
    class Outer:
        name: str
        poll_ms: int = 1
        flush: Inner = field(default_factory=Inner)

    globals().update(Inner=Inner, Outer=Outer)
    config = load({"compactor": {"poll_ms": 5, "flush": {"threads": 6}}})
    assert settings_of(Outer, config.compactor, name="n") == Outer("n", 5, Inner(6))


def test_flags_of_the_command_line() -> None:
    flags = parse_flags(
        ["etcd.endpoints=a:1,b:2", "objects.s3.bucket=x", "querynode.listen=0.0.0.0:1", "objects.s3.bucket=y=z"]
    )
    config = load(flags)
    assert config.etcd.endpoints == ("a:1", "b:2")
    assert config.objects.s3.bucket == "y=z"
    assert config.querynode.listen == "0.0.0.0:1"
    for wrong in ("etcd", "etcd.endpoints", "=x", ".x=1", "etcd.=1"):
        with pytest.raises(InvalidArgument):
            parse_flags([wrong])
    with pytest.raises(InvalidArgument):
        parse_flags(["etcd.cluster=a", "etcd.cluster.name=b"])
    with pytest.raises(InvalidArgument):
        load(parse_flags(["etcd.nonsense=1"]))

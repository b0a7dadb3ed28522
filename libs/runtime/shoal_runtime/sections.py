"""The sections of the configuration, each a frozen model. What a field means stands below it, and from there in the docs.

Where a section holds the settings of a component, its fields have that component's names and defaults: `settings_of` makes
one from the other. Components are on other floors, so they cannot be named here; a test compares them.
"""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, get_type_hints

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, SecretStr
from pydantic_settings import NoDecode

from shoal_core.limits import Limits

T = TypeVar("T")

Count = Annotated[int, Field(ge=1)]
SizeBytes = Annotated[int, Field(ge=0)]
TimeMs = Annotated[int, Field(ge=0)]
Share = Annotated[float, Field(ge=0, le=1)]
Address = Annotated[str, Field(pattern=r"^$|^.+:\d{1,5}$")]

_LIMITS = Limits()


def _split(value: Any) -> Any:
    return tuple(part.strip() for part in value.split(",") if part.strip()) if isinstance(value, str) else value


Addresses = Annotated[tuple[Address, ...], NoDecode, BeforeValidator(_split)]

Texts = Annotated[tuple[str, ...], NoDecode, BeforeValidator(_split)]


class Section(BaseModel):
    """Base of all sections: frozen, unknown keys are errors."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, validate_default=True)


def settings_of(kind: type[T], section: Section, **more: Any) -> T:
    """A component's settings dataclass from the section of the same field names; what the section lacks comes from ``more``.

    Raises what the dataclass raises when its fields do not fit together.
    """
    types = get_type_hints(kind)
    values = dict(more)
    for field in fields(kind):  # type: ignore[arg-type]  # T is a dataclass
        if field.name in values or field.name not in type(section).model_fields:
            continue
        value = getattr(section, field.name)
        nested = isinstance(value, Section) and is_dataclass(types[field.name])
        values[field.name] = settings_of(types[field.name], value) if nested else value
    return kind(**values)


class PostgresSection(Section):
    """The database of catalog and log."""

    dsn: SecretStr = SecretStr("")
    """postgresql://user:password@host:port/database; with several, as in host:port,host:port, the one that takes writes."""
    connections: Count = 8
    """Connections of the catalog's pool; the log service has its own figures."""
    connect_timeout_ms: TimeMs = 5_000
    """For one connection, and for waiting until one of the pool is free."""
    statement_timeout_ms: TimeMs = 10_000
    """A statement that takes longer is cancelled by the server."""
    require_synchronous_standby: bool = False
    """Refuse a server without synchronous_standby_names, or whose commits do not wait for them, at every new connection."""


class S3Section(Section):
    """A bucket of an S3-compatible server."""

    bucket: str = ""
    """Name of the bucket; made at start if it is missing. Empty: `objects.path` is used."""
    endpoint: str = ""
    """Such as http://127.0.0.1:8333; empty for AWS."""
    access_key: SecretStr = SecretStr("")
    """Empty: the credentials of the environment."""
    secret_key: SecretStr = SecretStr("")
    """Empty: the credentials of the environment."""
    region: str = "us-east-1"
    """Region of the bucket."""
    prefix: str = ""
    """Put before every key, without slash at its end."""
    allow_http: bool = False
    """Whether an endpoint without TLS is acceptable."""
    ca_file: Path | None = None
    """Who signs the certificate of the endpoint (PEM), where it is nobody whom everybody trusts. Read at start."""
    connect_timeout_ms: TimeMs = 1_000
    """For one connection."""
    request_timeout_ms: TimeMs = 10_000
    """For one request with its retries, besides one second for each 4 MiB moved."""
    retries: SizeBytes = 3
    """Of one request that was refused, dropped or answered by a 5xx."""
    put_attempts: Count = 3
    """How often a put whose outcome was lost is sent."""


class ObjectsSection(Section):
    """Where objects are kept: a bucket, or a folder of one machine."""

    path: Path | None = None
    """Folder of a local object store; only for one machine."""
    s3: S3Section = S3Section()
    """The bucket; takes precedence over `path`."""


class EtcdSection(Section):
    """The member registry."""

    endpoints: Addresses = ()
    """host:port: one name, which resolves to all servers, or the addresses of several, separated by commas in the environment."""
    cluster: Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]+$")] = "default"
    """Clusters of different names share an etcd without seeing each other."""
    lease_ttl_s: Annotated[int, Field(ge=2)] = 5
    """A member that is silent for so long leaves the registry."""
    ca_file: Path | None = None
    """Who signs the certificates of the etcd servers (PEM). None: plain text."""
    cert_file: Path | None = None
    """A certificate to show to them."""
    key_file: Path | None = None
    """Its private key."""
    server_name: str = ""
    """The name in their certificates; needed where several endpoints are given."""


class TlsSection(Section):
    """Certificates of this process for everything between Shoal's processes, which is mutual TLS where they are given. Files are
    PEM, and are read again when they change.
    """

    cert_file: Path | None = None
    """The certificate with its chain; it names ROLE.DOMAIN, see `tls.domain`. None: plain text."""
    key_file: Path | None = None
    """Its private key."""
    ca_file: Path | None = None
    """Who signs the certificates of the others."""
    domain: Annotated[str, Field(pattern=r"^[a-z0-9.-]+$")] = "shoal.internal"
    """A process with the certificate of querynode.DOMAIN is a query node, to callers and to those it calls."""
    reload_interval_ms: Count = 10_000
    """Between two looks at the files."""
    metrics: Literal["plain", "tls", "mutual"] = "tls"
    """How the pages with metrics and health are served where there are certificates; mutual: callers must have one too."""


class AuditSection(Section):
    """The log of administrative verbs and refusals, see docs/security.md."""

    enabled: bool = True
    """Whether there is one."""
    file: Path | None = None
    """Appended to, one JSON object per line; none: standard error, between the other logs."""
    refusals_per_s: Annotated[float, Field(gt=0)] = 20.0
    """Refusals and failures written on average; what is beyond is counted, and the next line says how many."""
    refusal_burst: Count = 200
    """Refusals and failures written at once."""


class RpcSection(Section):
    """Connections between processes, and the retries over them. Sizes of messages are a limit: `limits.message_size_bytes`."""

    keepalive_time_ms: Count = 10_000
    """An idle connection with calls is probed after this time."""
    keepalive_timeout_ms: Count = 5_000
    """And given up this much later without an answer."""
    max_reconnect_backoff_ms: Count = 2_000
    """The longest wait before a lost peer is tried again."""
    close_grace_ms: TimeMs = 30_000
    """How long calls to a member that left the registry may go on."""
    timeout_ms: Count = 10_000
    """Deadline of a call between services that brings none of its own."""
    initial_backoff_ms: TimeMs = 20
    """Pause after the first failure; it doubles from there."""
    max_backoff_ms: TimeMs = 500
    """The longest pause between two tries."""


class CacheSection(Section):
    """The block cache of query nodes and compactors. It only ever helps: a failing disk is a miss."""

    directory: Path | None = None
    """Of one process alone; none keeps everything in memory."""
    disk_size_bytes: SizeBytes = 20 << 30
    """Of the files in `directory`."""
    memory_size_bytes: SizeBytes = 2 << 30
    """Of the blocks kept mapped or in memory."""
    downloads: Count = 16
    """Downloads at a time."""
    max_age_ms: Annotated[int, Field(ge=1000)] = 86_400_000
    """A block that is not in use goes so long after it was downloaded, and a query node drops shards and earlier versions that were not
    read for so long: what they hold may have been deleted since."""


class TelemetrySection(Section):
    """Logs, metrics and traces. Nothing leaves the machine unless an endpoint is given."""

    log_level: Annotated[str, Field(pattern=r"^(DEBUG|INFO|WARNING|ERROR)$")] = "INFO"
    """DEBUG, INFO, WARNING or ERROR."""
    log_json: bool = True
    """One JSON object per line; otherwise text for people."""
    otlp_endpoint: str = ""
    """http://host:port of an OpenTelemetry collector (gRPC) for traces; empty: traces are not exported."""
    trace_share: Share = 0.01
    """Share of the traces begun here that are exported; a caller's decision is followed."""
    metrics_interval_ms: TimeMs = 0
    """How often metrics are sent to `otlp_endpoint`, besides being on the metrics page; 0: they are not sent."""
    measure_interval_ms: Count = 5_000
    """How often what a metric has to ask others for is asked again: log lag, compaction backlog."""


class LimitsSection(Section):
    """Limits of the data model and of requests. Sizes are UTF-8 bytes."""

    name_size_bytes: Count = _LIMITS.name_size_bytes
    """Names of tenants, databases and collections."""
    tenant_name_min_size_bytes: Count = _LIMITS.tenant_name_min_size_bytes
    """The shortest name of a tenant or database."""
    id_size_bytes: Count = _LIMITS.id_size_bytes
    """An id."""
    document_size_bytes: Count = _LIMITS.document_size_bytes
    """A document."""
    uri_size_bytes: Count = _LIMITS.uri_size_bytes
    """A uri."""
    metadata_key_size_bytes: Count = _LIMITS.metadata_key_size_bytes
    """A metadata key."""
    metadata_value_size_bytes: Count = _LIMITS.metadata_value_size_bytes
    """A metadata string."""
    metadata_keys: Count = _LIMITS.metadata_keys
    """Metadata keys of one record."""
    metadata_list_length: Count = _LIMITS.metadata_list_length
    """Items of a metadata list."""
    dimension: Count = _LIMITS.dimension
    """Dimension of embeddings."""
    batch_records: Count = _LIMITS.batch_records
    """Records of one write."""
    batch_size_bytes: Count = _LIMITS.batch_size_bytes
    """Bytes of one write."""
    query_vectors: Count = _LIMITS.query_vectors
    """Vectors of one query."""
    query_results: Count = _LIMITS.query_results
    """Results per vector of a query."""
    get_results: Count = _LIMITS.get_results
    """Records of one get."""
    filter_depth: Count = _LIMITS.filter_depth
    """Nesting of a filter."""
    filter_nodes: Count = _LIMITS.filter_nodes
    """Conditions of a filter."""
    filter_values: Count = _LIMITS.filter_values
    """Values of one `in`."""
    pattern_size_bytes: Count = _LIMITS.pattern_size_bytes
    """A text or regular expression to search documents for."""
    query_text_size_bytes: Count = _LIMITS.query_text_size_bytes
    """A text that documents are ranked by."""
    rank_depth: Count = _LIMITS.rank_depth
    """Nesting of a rank expression."""
    rank_nodes: Count = _LIMITS.rank_nodes
    """Nodes of a rank expression."""
    rank_leaves: Count = _LIMITS.rank_leaves
    """Ranked lists of one search."""
    searches: Count = _LIMITS.searches
    """Searches of one call."""
    group_by_keys: Count = _LIMITS.group_by_keys
    """Keys of a group-by, and of its aggregate."""
    select_keys: Count = _LIMITS.select_keys
    """Single metadata keys of a search's answer."""
    shards: Count = _LIMITS.shards
    """Shards of a collection."""
    collection_metadata_size_bytes: Count = _LIMITS.collection_metadata_size_bytes
    """Metadata of a collection, as JSON."""
    idempotency_key_size_bytes: Count = _LIMITS.idempotency_key_size_bytes
    """An idempotency key."""
    functions: Count = _LIMITS.functions
    """Functions attached to a collection."""
    function_name_size_bytes: Count = _LIMITS.function_name_size_bytes
    """The name of an attached function."""
    page_size: Count = _LIMITS.page_size
    """Collections of one page of a list."""
    list_length: Count = _LIMITS.list_length
    """Collections or databases of one list over HTTP, where clients may ask for all of them at once."""
    message_size_bytes: Count = _LIMITS.message_size_bytes
    """A message between processes."""

    def to_limits(self) -> Limits:
        """As the core takes them."""
        return settings_of(Limits, self)

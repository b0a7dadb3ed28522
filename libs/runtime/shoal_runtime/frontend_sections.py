"""The sections of the configuration that belong to the frontend."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field, SecretStr

from shoal_runtime.sections import Address, Count, Section, SizeBytes, Texts, TimeMs
from shoal_runtime.service_sections import ServiceSection


class AccessSection(Section):
    """Who may come in. Off, everybody who connects may do everything, so only loopback is listened on."""

    enabled: bool = False
    """Whether callers must show credentials; a root token turns it on too."""
    root_token: SecretStr = SecretStr("")
    """Owns the system; at least 32 characters. For the first credentials; best without one after that. Empty: none."""
    allow_unauthenticated: bool = False
    """Listen beyond loopback without authentication: behind something that has it, or in a network that is trusted."""
    cache_ttl_ms: TimeMs = 3_000
    """How long a credential is remembered; a revoked one works no longer than that."""
    cached_credentials: Count = 10_000
    """Credentials remembered at a time, good and bad."""
    password_checks: Count = 2
    """Passwords hashed at a time, each in 32 MiB."""
    waiting_password_checks: SizeBytes = 64
    """More may wait for their turn; the rest are refused."""
    password_attempts_per_s: Annotated[float, Field(gt=0)] = 0.2
    """Wrong passwords per user name, once the burst is used up."""
    password_burst: Count = 10
    """Wrong passwords at once."""


class RatesSection(Section):
    """How often and how many at a time, per frontend process; 0: without limit."""

    reads_per_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that only read."""
    read_burst: SizeBytes = 0
    """At once, after a pause; 0: as many as in a second."""
    writes_per_s: Annotated[float, Field(ge=0)] = 0.0
    """Requests that change something."""
    write_burst: SizeBytes = 0
    """At once, after a pause; 0: as many as in a second."""
    concurrent: SizeBytes = 0
    """Requests under way at a time."""


class QuotasSection(Section):
    """How much, beside the limits of the system; 0: without a quota."""

    databases: SizeBytes = 0
    """Databases of the tenant; two made at once may both get in."""
    collections: SizeBytes = 0
    """Collections of the tenant; two made at once may both get in."""
    collections_per_database: SizeBytes = 0
    """Collections of each database; two made at once may both get in."""
    batch_records: SizeBytes = 0
    """Records of one write."""
    dimension: SizeBytes = 0
    """Dimension of embeddings."""
    document_size_bytes: SizeBytes = 0
    """A document, in UTF-8."""
    results: SizeBytes = 0
    """Records of one get, of each vector of a query, of each search."""


class TenantSection(Section):
    """What one tenant may use."""

    rates: RatesSection = RatesSection()
    quotas: QuotasSection = QuotasSection()


class EmbeddingFunctionSection(Section):
    """One function that the frontend offers."""

    kind: str
    """Its name in the SDK's registry: default, ollama, openai, openai_compatible, huggingface_server, …"""
    config: dict[str, Any] = Field(default={})
    """As collections store it; of secrets the names of environment variables."""
    texts_per_call: Count | None = None
    """Texts of one call; absent: as suits the kind."""
    concurrency: Count | None = None
    """Calls under way at once; absent: as suits the kind."""
    calls_per_second: Annotated[float, Field(gt=0)] | None = None
    """Calls that start in a second; absent: no bound."""
    timeout_ms: Count | None = 20_000
    """Of all texts of one request; less than `frontend.timeout_ms`."""


class EmbeddingSection(Section):
    """Embedding of texts in the frontend, for clients that send no vectors. Off unless it names functions."""

    functions: dict[str, EmbeddingFunctionSection] = Field(default={})
    """A table for each function: [frontend.embedding.functions.NAME] with kind, config and bounds. Collections made with one of them
    are served by it."""
    default: str = ""
    """NAME of the one for collections that name no function; empty: none."""
    texts_per_second: Annotated[float, Field(gt=0)] = 100.0
    """Texts of a tenant that are embedded in a second, on average."""
    burst_texts: Count = 1_000
    """Texts that a tenant may save up."""
    characters_per_request: Count = 1_000_000
    """Of all texts of one request."""
    tenants: Count = 10_000
    """Tenants whose account is remembered."""


class FrontendTlsSection(Section):
    """What callers of the frontend see, over gRPC and HTTP alike. Files are PEM and are read again when they change."""

    cert_file: Path | None = None
    """The certificate with its chain; none: that of `tls.cert_file`."""
    key_file: Path | None = None
    """Its private key."""
    client_ca_file: Path | None = None
    """Who signs the certificates of callers; none: `tls.ca_file`."""
    client_certificates: Literal["none", "required"] = "none"
    """Whether callers must have a certificate. What they may do is a matter of their credentials all the same."""


class FrontendSection(ServiceSection):
    """The frontend."""

    listen: Address = "127.0.0.1:8800"
    metrics: Address = "127.0.0.1:9800"
    http: Address = "127.0.0.1:8000"
    """host:port of the HTTP side; empty: none."""
    timeout_ms: Count = 30_000
    """Deadline of a request that brings none of its own."""
    replicas: Count = 2
    """Query nodes that may answer for a shard."""
    hedge: bool = True
    """Whether a slow query node is raced by a second one."""
    hedge_percentile: Annotated[float, Field(gt=0, lt=1)] = 0.95
    """Of the latest latencies; beyond it the second one is asked."""
    hedge_min_ms: TimeMs = 10
    """But never sooner than this."""
    allow_reset: bool = False
    """Whether a client may delete everything."""
    cached_names: Count = 10_000
    """Collections whose name is remembered; a stale one is noticed and looked up again."""
    cors_allow_origins: Texts = ()
    """Origins whose web pages may call the HTTP side, such as https://app.example.com; *: all. Several are separated by commas."""
    tls: FrontendTlsSection = FrontendTlsSection()
    access: AccessSection = AccessSection()
    tenant: TenantSection = TenantSection()
    tenants: dict[str, TenantSection] = Field(default={})
    """Tenants with limits of their own, by name; what they leave out is as in `frontend.tenant`. In the environment: JSON."""
    credential: RatesSection = RatesSection()
    counted_keys: Count = 10_000
    """Tenants, and credentials, whose rates are counted at a time."""
    embedding: EmbeddingSection = EmbeddingSection()

"""TLS and the audit log of one role, from its configuration."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TextIO

import grpc
import grpc.aio

from shoal_cluster.channels import ChannelPool
from shoal_cluster.etcd.client import EtcdClient
from shoal_core.audit import Audit, AuditEvent, Outcome, no_audit
from shoal_core.errors import InvalidArgument
from shoal_core.ports import Clock
from shoal_runtime.audit import AuditLog, AuditSettings, configure_audit
from shoal_runtime.callers import RoleCheck
from shoal_runtime.certificates import CertificateFiles, Certificates
from shoal_runtime.config import Config
from shoal_runtime.frontend_sections import FrontendTlsSection
from shoal_runtime.handshakes import refused_handshakes
from shoal_runtime.lifecycle import Background
from shoal_runtime.sections import AuditSection, TlsSection, settings_of
from shoal_runtime.telemetry import Telemetry
from shoal_runtime.tls import MemberTls, Refused, ServerContext, channel_credentials, grpc_server_credentials, role_name

FRONTEND = "frontend"


@dataclass(frozen=True, slots=True)
class Security:
    """What of it there is; None is plain text.

    Attributes:
        own: for everything between Shoal's processes.
        public: what callers of the frontend see.
        clients: who signs the certificates that those callers must have; None: they need none.
        etcd: towards etcd.
        members: towards other members, with ``own``.
    """

    own: Certificates | None = None
    public: Certificates | None = None
    clients: Certificates | None = None
    etcd: Certificates | None = None
    members: MemberTls | None = None
    audit: Audit = no_audit

    def server_credentials(self, role: str) -> grpc.ServerCredentials | None:
        """Of the role's gRPC server."""
        if role == FRONTEND:
            return None if self.public is None else grpc_server_credentials(self.public, clients=self.clients)
        return None if self.own is None else grpc_server_credentials(self.own, clients=self.own)

    def interceptors(self, role: str, domain: str) -> Sequence[grpc.aio.ServerInterceptor]:
        """Of the role's gRPC server. What a caller of a frontend may do is a matter of its credentials."""
        return () if role == FRONTEND or self.own is None else (RoleCheck(domain, self.audit),)

    def public_context(self) -> ServerContext | None:
        """Of the frontend's HTTP side."""
        if self.public is None:
            return None
        return ServerContext(self.public, clients=self.clients, refused=self.refused("http"))

    def pages_context(self, mode: str) -> ServerContext | None:
        """Of the pages with metrics and health, by `TlsSection.metrics`."""
        if self.own is None or mode == "plain":
            return None
        clients = self.own if mode == "mutual" else None
        return ServerContext(self.own, clients=clients, refused=self.refused("metrics"))

    def follow(self, channels: ChannelPool, etcd: EtcdClient) -> None:
        """Let connections that are made from now on have the certificates of their moment."""
        if self.own is not None:
            self.own.subscribe(channels.renew)
        if (certificates := self.etcd) is not None:
            certificates.subscribe(lambda: etcd.renew(channel_credentials(certificates)))

    def watch(self, background: Background, interval_ms: int) -> None:
        """Read the files again when they change."""
        for certificates in dict.fromkeys((self.own, self.public, self.clients, self.etcd)):
            if certificates is not None:
                background.start("certificates", certificates.watch(interval_ms))

    def refused(self, port: str) -> Refused:
        """Audits a handshake that failed on a port."""
        audit = self.audit

        def told(reason: str) -> None:
            audit(AuditEvent("connect", Outcome.REFUSED, detail=port, reason=reason))

        return told


PLAIN = Security()


def open_security(
    role: str, config: Config, clock: Clock, telemetry: Telemetry, stack: ExitStack, stream: TextIO
) -> Security:
    """Read the certificates and open the audit log; ``stack`` undoes it. ``stream``: where logs go, see `standard_error`.

    Raises `InvalidArgument` naming a setting that cannot be used.
    """
    audit = open_audit(role, config.audit, clock, telemetry, stream)
    own = _own(role, config.tls, clock)
    public, clients = public_certificates(config.frontend.tls, own, clock) if role == FRONTEND else (None, None)
    security = Security(
        own, public, clients, _etcd(config, clock), None if own is None else MemberTls(own, config.tls.domain), audit
    )
    if own is not None or public is not None:
        stack.enter_context(refused_handshakes(security.refused("grpc")))
    _measure(security, telemetry)
    return security


def open_audit(role: str, section: AuditSection, clock: Clock, telemetry: Telemetry, stream: TextIO) -> Audit:
    """The audit log, as lines on ``stream`` if no file is set. Raises `InvalidArgument` for a file that cannot be used."""
    if not section.enabled:
        return no_audit
    configure_audit(section.file, service=role, stream=stream)
    log = AuditLog(clock, settings_of(AuditSettings, section))
    for outcome in Outcome:
        telemetry.total(
            "shoal_audit_events",
            "What the audit log was told, also what it left out.",
            lambda outcome=outcome: log.counts[outcome],  # type: ignore[misc]  # mypy does not infer the default
            {"outcome": outcome.value},
        )
    return log.record


def _own(role: str, section: TlsSection, clock: Clock) -> Certificates | None:
    if section.cert_file is None and section.key_file is None and section.ca_file is None:
        return None
    for name in ("cert_file", "key_file", "ca_file"):
        if getattr(section, name) is None:
            raise InvalidArgument("give all three of certificate, key and authority", field=f"tls.{name}")
    name = role_name(role, section.domain)
    return Certificates(CertificateFiles(section.cert_file, section.key_file, section.ca_file, name), clock)


def public_certificates(
    section: FrontendTlsSection, own: Certificates | None, clock: Clock
) -> tuple[Certificates | None, Certificates | None]:
    """What callers of a frontend see, and who signs theirs if they must have any; ``own`` stands in for what is not given.

    Raises `InvalidArgument` naming a setting that cannot be used.
    """
    where = "frontend.tls"
    public = own
    if section.cert_file is not None or section.key_file is not None:
        public = Certificates(CertificateFiles(section.cert_file, section.key_file, section=where), clock)
    clients = own
    if section.client_ca_file is not None:
        clients = Certificates(CertificateFiles(None, None, section.client_ca_file, section=where), clock)
    if section.client_certificates == "none":
        if section.client_ca_file is not None:
            raise InvalidArgument("is for frontend.tls.client_certificates=required", field=f"{where}.client_ca_file")
        return public, None
    if public is None or clients is None:
        raise InvalidArgument("needs a certificate and an authority", field=f"{where}.client_certificates")
    return public, clients


def _etcd(config: Config, clock: Clock) -> Certificates | None:
    section = config.etcd
    if section.ca_file is None and section.cert_file is None and section.key_file is None:
        return None
    files = CertificateFiles(section.cert_file, section.key_file, section.ca_file, section="etcd")
    return Certificates(files, clock)


def _measure(security: Security, telemetry: Telemetry) -> None:
    uses = {"internal": security.own, "public": security.public, "clients": security.clients, "etcd": security.etcd}
    for use, certificates in uses.items():
        if certificates is None:
            continue
        label = {"use": use}
        if certificates.material.chain:
            telemetry.gauge(
                "shoal_certificate_expires_s", "Until a certificate expires.", certificates.expires_in_s, label
            )
        telemetry.total(
            "shoal_certificate_failures",
            "Looks at certificate files that could not be used.",
            lambda certificates=certificates: certificates.failures,  # type: ignore[misc]  # as above
            label,
        )

"""TLS over certificates that change while it runs: gRPC servers, gRPC channels, HTTP servers."""

from __future__ import annotations

import ssl
from collections.abc import Callable
from typing import Any

import grpc

from shoal_runtime.certificates import Certificates, Material, load_pair

Refused = Callable[[str], None]
"""Hears why a handshake failed."""


def grpc_server_credentials(
    certificates: Certificates, *, clients: Certificates | None = None
) -> grpc.ServerCredentials:
    """Of a gRPC server. Each new connection gets the certificates of its moment.

    Args:
        clients: callers must have a certificate signed by its roots; None: they need none.
    """
    served: list[tuple[Material, bytes]] = []

    def now() -> tuple[Material, bytes]:
        return certificates.material, clients.material.roots if clients is not None else b""

    def make() -> Any:
        material, roots = now()
        served[:] = [(material, roots)]
        return grpc.ssl_server_certificate_configuration([(material.key, material.chain)], roots or None)

    def changed() -> Any:  # asked before each handshake, in a thread of gRPC
        return None if served == [now()] else make()

    return grpc.dynamic_ssl_server_credentials(make(), changed, require_client_authentication=clients is not None)


class MemberTls:
    """Implements `shoal_cluster.channels.ChannelSecurity`: this process's certificate, towards members known by their role."""

    def __init__(self, certificates: Certificates, domain: str) -> None:
        self._certificates = certificates
        self._domain = domain

    def credentials(self) -> grpc.ChannelCredentials:
        """As the files are now."""
        return channel_credentials(self._certificates)

    def server_name(self, role: str) -> str:
        """The name that a member of this role has in its certificate."""
        return role_name(role, self._domain)


def channel_credentials(certificates: Certificates) -> grpc.ChannelCredentials:
    """Of a channel, as the files are now."""
    material = certificates.material
    return grpc.ssl_channel_credentials(material.roots or None, material.key or None, material.chain or None)


def role_name(role: str, domain: str) -> str:
    """The DNS name in the certificate of a role."""
    return f"{role}.{domain}"


class ServerContext:
    """An `ssl.SSLContext` for HTTP servers, whose new connections get the certificates of their moment.

    Args:
        clients: as for `grpc_server_credentials`.
        refused: is told of handshakes that failed.
    """

    def __init__(
        self, certificates: Certificates, *, clients: Certificates | None = None, refused: Refused | None = None
    ) -> None:
        self._certificates = certificates
        self._clients = clients
        self.context = self._newest = self._make()
        # Called for every handshake, with or without a name.
        self.context.sni_callback = self._use_newest
        self.context.sslobject_class = _told(refused) if refused is not None else ssl.SSLObject
        certificates.subscribe(self._renew)
        if clients is not None and clients is not certificates:
            clients.subscribe(self._renew)

    def _make(self) -> ssl.SSLContext:
        material = self._certificates.material
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        load_pair(context, material.chain, material.key)
        if self._clients is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            context.load_verify_locations(cadata=self._clients.material.roots.decode("ascii"))
            # A session that is resumed would outlive an authority that was removed; TLS 1.2 cannot be told not to resume any.
            context.minimum_version = ssl.TLSVersion.TLSv1_3
            context.num_tickets = 0
        return context

    def _renew(self) -> None:
        self._newest = self._make()

    def _use_newest(self, connection: ssl.SSLObject | ssl.SSLSocket, name: str | None, context: ssl.SSLContext) -> None:
        if context is not self._newest:
            connection.context = self._newest


def _told(refused: Refused) -> type[ssl.SSLObject]:
    """Connections that say why their handshake failed: event loops do not."""

    class Told(ssl.SSLObject):
        def do_handshake(self) -> None:
            try:
                super().do_handshake()
            except (ssl.SSLWantReadError, ssl.SSLWantWriteError):
                raise
            except ssl.SSLError as error:
                refused((error.reason or "unknown").lower().replace("_", " "))
                raise

    return Told

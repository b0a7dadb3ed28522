"""Certificates of this process, read again when their files change.

A new certificate is taken only when it is whole: it can be parsed, is valid now, names what it must, and belongs to its key. Otherwise
what was there before stays, which may be while files are being replaced one after the other. Connections that are open keep the
certificates that they began with.
"""

from __future__ import annotations

import asyncio
import logging
import os
import ssl
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives.serialization import Encoding

from shoal_core.errors import InvalidArgument, ShoalError
from shoal_core.ports import Clock

_log = logging.getLogger(__name__)

_MAX_FILE_BYTES = 1 << 20
_NS_PER_S = 1_000_000_000


@dataclass(frozen=True, slots=True)
class CertificateFiles:
    """Where the PEM files are.

    Attributes:
        cert_file: a certificate with its chain; None together with ``key_file`` for a client without one.
        ca_file: who signs the certificates of others.
        name: a DNS name that the certificate must have; empty for any.
        section: of the configuration, for errors.
    """

    cert_file: Path | None
    key_file: Path | None
    ca_file: Path | None = None
    name: str = ""
    section: str = "tls"


@dataclass(frozen=True, slots=True)
class Material:
    """What is in the files. ``not_after_ns``: when the certificate expires, in ns since the epoch; 0 without one."""

    chain: bytes = b""
    key: bytes = field(default=b"", repr=False)
    roots: bytes = b""
    not_after_ns: int = 0


class Certificates:
    """The certificates as they are now.

    Raises `InvalidArgument` naming the setting whose file cannot be used.
    """

    def __init__(self, files: CertificateFiles, clock: Clock) -> None:
        self.files = files
        self._clock = clock
        self._listeners: list[Callable[[], None]] = []
        self.material = read_material(files, clock.time_ns())
        self.failures = 0

    def subscribe(self, changed: Callable[[], None]) -> None:
        """``changed()`` is called on the event loop after each change."""
        self._listeners.append(changed)

    async def watch(self, interval_ms: int) -> None:
        """Look at the files for ever. What cannot be used is logged once, and counted at each look."""
        refused = ""
        while True:
            await self._clock.sleep(interval_ms / 1_000)
            try:
                changed = await self.refresh()
            except ShoalError as error:
                self.failures += 1
                if str(error) != refused:
                    _log.error("the certificate in use stays: %s", error)
                refused = str(error)
                continue
            refused = ""
            if changed:
                _log.info("%s was read again", self.files.cert_file or self.files.ca_file)

    async def refresh(self) -> bool:
        """Read the files now; whether they changed. Raises as the constructor, and then nothing changed."""
        found = await asyncio.to_thread(read_material, self.files, self._clock.time_ns())
        if found == self.material:
            return False
        self.material = found
        for changed in self._listeners:
            try:
                changed()
            except Exception:
                _log.exception("somebody cannot use the new certificates, and keeps the old ones")
        return True

    def expires_in_s(self) -> float:
        """Seconds until the certificate expires; negative after it."""
        return (self.material.not_after_ns - self._clock.time_ns()) / _NS_PER_S


def read_material(files: CertificateFiles, now_ns: int) -> Material:
    """Read and check the files. Blocks."""
    if (files.cert_file is None) != (files.key_file is None):
        missing = "cert_file" if files.cert_file is None else "key_file"
        raise InvalidArgument("give both a certificate and its key", field=f"{files.section}.{missing}")
    roots = b"" if files.ca_file is None else _roots(files.ca_file, f"{files.section}.ca_file")
    if files.cert_file is None or files.key_file is None:
        return Material(roots=roots)
    setting = f"{files.section}.cert_file"
    chain, key = _read(files.cert_file, setting), _read(files.key_file, f"{files.section}.key_file")
    leaf = _parse(chain, setting)[0]
    not_after_ns = int(leaf.not_valid_after_utc.timestamp()) * _NS_PER_S
    if not_after_ns <= now_ns:
        raise InvalidArgument(f"{files.cert_file} expired at {leaf.not_valid_after_utc}", field=setting)
    if int(leaf.not_valid_before_utc.timestamp()) * _NS_PER_S > now_ns:
        raise InvalidArgument(f"{files.cert_file} is valid from {leaf.not_valid_before_utc} only", field=setting)
    _check_name(leaf, files, setting)
    _check_pair(chain, key, files)
    return Material(chain, key, roots, not_after_ns)


def load_pair(context: ssl.SSLContext, chain: bytes, key: bytes) -> None:
    """`ssl.SSLContext.load_cert_chain` from memory, so that what was checked is what is used. Raises `ssl.SSLError`."""
    descriptor = os.memfd_create("certificate")
    try:
        with open(descriptor, "wb", closefd=False) as file:
            file.write(key + b"\n" + chain)
        # Without a password given, OpenSSL would ask for one on the terminal.
        context.load_cert_chain(f"/proc/self/fd/{descriptor}", password="")
    finally:
        os.close(descriptor)


def _read(path: Path, setting: str) -> bytes:
    try:
        with path.open("rb") as file:
            data = file.read(_MAX_FILE_BYTES + 1)
    except OSError as error:
        raise InvalidArgument(f"{path} cannot be read: {error.strerror or error}", field=setting) from error
    if len(data) > _MAX_FILE_BYTES:
        raise InvalidArgument(f"{path} has more than {_MAX_FILE_BYTES} bytes", field=setting)
    return data


def _roots(path: Path, setting: str) -> bytes:
    """The certificates in the file, without what stands between them: not everybody who reads them later can."""
    found = _parse(_read(path, setting), setting)
    return b"".join(certificate.public_bytes(Encoding.PEM) for certificate in found)


def _parse(data: bytes, setting: str) -> list[x509.Certificate]:
    try:
        return x509.load_pem_x509_certificates(data)
    except ValueError as error:
        raise InvalidArgument("there is no PEM certificate in the file", field=setting) from error


def _check_name(leaf: x509.Certificate, files: CertificateFiles, setting: str) -> None:
    try:
        names = leaf.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        found: list[str] = []
    else:
        found = names.get_values_for_type(x509.DNSName)
    if files.name and files.name not in found:
        raise InvalidArgument(
            f"{files.cert_file} is for {', '.join(found) or 'no DNS name'}; others know this process by {files.name}",
            field=setting,
        )


def _check_pair(chain: bytes, key: bytes, files: CertificateFiles) -> None:
    try:
        load_pair(ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), chain, key)
    except (ssl.SSLError, ValueError) as error:
        raise InvalidArgument(
            f"{files.key_file} is not the key, in PEM and without a password, of {files.cert_file}",
            field=f"{files.section}.key_file",
        ) from error

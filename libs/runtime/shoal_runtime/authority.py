"""An authority of one's own: signs certificates for the roles of a cluster that has none yet, and for tests."""

from __future__ import annotations

import ipaddress
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from shoal_core.errors import AlreadyExists, InvalidArgument

_NOT_BEFORE = timedelta(minutes=5)  # clocks differ a little
_CURVE = ec.SECP256R1()


@dataclass(frozen=True, slots=True)
class Pair:
    """A certificate and its private key, in PEM."""

    certificate: bytes
    key: bytes

    def __repr__(self) -> str:
        return "Pair()"

    def write(self, certificate: Path, key: Path) -> None:
        """Put them into files; the key is for their owner alone. Each file is replaced as a whole."""
        for path, data, mode in ((key, self.key, 0o600), (certificate, self.certificate, 0o644)):
            fresh = path.with_name(f".{path.name}.new")
            fresh.unlink(missing_ok=True)  # one that was left behind has another mode
            descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
            with open(descriptor, "wb") as file:
                file.write(data)
            fresh.replace(path)


class Authority:
    """Signs certificates. ``now`` is the time of making, in UTC.

    Raises `InvalidArgument` for a key that belongs to none of the certificates, and for what cannot be read.
    """

    def __init__(self, pair: Pair) -> None:
        self.pair = pair
        try:
            certificates = x509.load_pem_x509_certificates(pair.certificate)
            key = serialization.load_pem_private_key(pair.key, password=None)
        except (ValueError, TypeError) as error:
            raise InvalidArgument("expected PEM, and a key without a password", field="ca.crt, ca.key") from error
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise InvalidArgument("expected a key on an elliptic curve, as this command makes", field="ca.key")
        found = [item for item in certificates if item.public_key() == key.public_key()]
        if not found:
            raise InvalidArgument("it is not the key of any certificate in ca.crt", field="ca.key")
        self._key = key
        self._certificate = found[0]
        self.not_after = found[0].not_valid_after_utc

    @classmethod
    def make(cls, name: str, days: int, now: datetime) -> Authority:
        """A new one."""
        key = ec.generate_private_key(_CURVE)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        usage = x509.KeyUsage(
            digital_signature=True,
            key_cert_sign=True,
            crl_sign=True,
            content_commitment=False,
            key_encipherment=False,
            data_encipherment=False,
            key_agreement=False,
            encipher_only=False,
            decipher_only=False,
        )
        builder = _builder(subject, subject, key, days, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(usage, critical=True)
        builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        return cls(_pair(builder.sign(key, hashes.SHA256()), key))

    def issue(self, names: Sequence[str], days: int, now: datetime) -> Pair:
        """A certificate for servers and clients of these names: DNS names and IP addresses."""
        key = ec.generate_private_key(_CURVE)
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, names[0][:64])])
        usages = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
        issuer = x509.AuthorityKeyIdentifier.from_issuer_public_key(self._key.public_key())
        builder = _builder(subject, self._certificate.subject, key, days, now)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(x509.SubjectAlternativeName([_name(name) for name in names]), critical=False)
        builder = builder.add_extension(x509.ExtendedKeyUsage(usages), critical=False)
        builder = builder.add_extension(issuer, critical=False)
        return _pair(builder.sign(self._key, hashes.SHA256()), key)


def open_authority(directory: Path, days: int) -> Authority:
    """That of ``ca.crt`` and ``ca.key`` in the directory, made if neither is there.

    Raises `AlreadyExists` if only one is, `InvalidArgument` if they are no good or no longer.
    """
    certificate, key = directory / "ca.crt", directory / "ca.key"
    if certificate.exists() != key.exists():
        raise AlreadyExists(
            f"{directory} has only one of ca.crt and ca.key; give a directory with both, or with neither"
        )
    if certificate.exists():
        found = Authority(Pair(certificate.read_bytes(), key.read_bytes()))
        if found.not_after <= datetime.now(UTC):
            raise InvalidArgument(f"the authority expired at {found.not_after}; make another one", field="ca.crt")
        return found
    directory.mkdir(parents=True, exist_ok=True)
    authority = Authority.make("Shoal authority", days, datetime.now(UTC))
    authority.pair.write(certificate, key)
    return authority


def issue_into(directory: Path, authority: Authority, file: str, names: Sequence[str], days: int) -> None:
    """Write ``file.crt`` and ``file.key``, over what was there."""
    pair = authority.issue(names, days, datetime.now(UTC))
    pair.write(directory / f"{file}.crt", directory / f"{file}.key")


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePrivateKey, days: int, now: datetime
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - _NOT_BEFORE)
        .not_valid_after(now + timedelta(days=days))
    )


def _name(text: str) -> x509.GeneralName:
    try:
        return x509.IPAddress(ipaddress.ip_address(text))
    except ValueError:
        pass
    try:
        return x509.DNSName(text)
    except ValueError as error:
        raise InvalidArgument(f"{text!r} is no DNS name; write one in its ASCII form (xn--…)", field="host") from error


def _pair(certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> Pair:
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    return Pair(
        certificate.public_bytes(encoding),
        key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password),
    )

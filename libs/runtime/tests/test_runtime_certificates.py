"""Certificates from files: what is taken, what is refused, and that a refused one changes nothing."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization

from shoal_core.errors import AlreadyExists, InvalidArgument
from shoal_runtime.authority import Authority, Pair, open_authority
from shoal_runtime.certificates import CertificateFiles, Certificates, read_material
from shoal_testing.virtual_clock import VirtualClock

CLOCK = VirtualClock()
NOW = datetime.fromtimestamp(CLOCK.time_ns() / 1e9, UTC)
NAME = "querynode.shoal.internal"


class Place:
    """A directory with an authority and a certificate of `NAME`."""

    def __init__(self, directory: Path) -> None:
        self.authority = Authority.make("test", 30, NOW)
        self.files = CertificateFiles(directory / "a.crt", directory / "a.key", directory / "ca.crt", NAME)
        (directory / "ca.crt").write_bytes(self.authority.pair.certificate)
        self.issue()

    def issue(self, *names: str, days: int = 5, now: datetime = NOW) -> None:
        self.write(self.authority.issue(names or (NAME,), days, now))

    def write(self, pair: Pair) -> None:
        assert self.files.cert_file is not None
        assert self.files.key_file is not None
        pair.write(self.files.cert_file, self.files.key_file)


@pytest.fixture
def place(tmp_path: Path) -> Place:
    return Place(tmp_path)


def test_a_certificate_is_read_with_the_time_that_it_expires(place: Place) -> None:
    certificates = Certificates(place.files, CLOCK)
    assert certificates.expires_in_s() == 5 * 86_400
    assert certificates.material.chain.startswith(b"-----BEGIN CERTIFICATE-----")
    assert "PRIVATE" not in repr(certificates.material)
    assert (place.files.key_file or Path()).stat().st_mode & 0o077 == 0


def test_what_is_no_good_is_refused_by_the_setting_at_fault(place: Place, tmp_path: Path) -> None:
    def refused(**changed: Path | str | None) -> InvalidArgument:
        with pytest.raises(InvalidArgument) as caught:
            read_material(replace(place.files, **changed), CLOCK.time_ns())  # type: ignore[arg-type]
        return caught.value

    empty = tmp_path / "empty"
    empty.write_bytes(b"")
    assert refused(cert_file=tmp_path / "missing").field == "tls.cert_file"
    assert refused(cert_file=empty).field == "tls.cert_file"
    assert refused(ca_file=empty.with_name("missing")).field == "tls.ca_file"
    assert refused(ca_file=empty).field == "tls.ca_file"
    assert refused(key_file=None).field == "tls.key_file"
    assert refused(cert_file=None, section="etcd").field == "etcd.cert_file"
    assert refused(key_file=empty).field == "tls.key_file"
    locked = tmp_path / "locked.key"
    key = serialization.load_pem_private_key((place.files.key_file or empty).read_bytes(), None)
    password = serialization.BestAvailableEncryption(b"secret")
    locked.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, password))
    assert refused(key_file=locked).field == "tls.key_file"  # and nobody is asked for the password
    other = tmp_path / "other.key"
    place.authority.issue((NAME,), 5, NOW).write(tmp_path / "other.crt", other)
    assert refused(key_file=other).field == "tls.key_file"
    wrong = refused(name="frontend.shoal.internal")
    assert wrong.field == "tls.cert_file"
    assert NAME in str(wrong)
    assert "frontend.shoal.internal" in str(wrong)


@pytest.mark.parametrize(
    ("days", "begins", "why"),
    [(5, timedelta(days=-6), "expired"), (5, timedelta(days=1), "is valid from")],
)
def test_a_certificate_is_good_at_its_time_only(place: Place, days: int, begins: timedelta, why: str) -> None:
    place.issue(days=days, now=NOW + begins)
    with pytest.raises(InvalidArgument, match=why):
        Certificates(place.files, CLOCK)


@pytest.mark.asyncio
async def test_a_changed_file_is_taken_and_told_once(place: Place) -> None:
    certificates = Certificates(place.files, CLOCK)
    told: list[float] = []
    certificates.subscribe(lambda: told.append(certificates.expires_in_s()))
    assert not await certificates.refresh()
    assert told == []
    place.issue(days=9)
    assert await certificates.refresh()
    assert told == [9 * 86_400]
    assert not await certificates.refresh()
    assert len(told) == 1


@pytest.mark.asyncio
async def test_while_files_do_not_fit_together_the_old_ones_are_used(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    clock = VirtualClock()
    certificates = Certificates(place.files, clock)
    before = certificates.material
    key_file = place.files.key_file or Path()
    key = key_file.read_bytes()
    fresh = place.authority.issue((NAME,), 9, NOW)
    watching = asyncio.create_task(certificates.watch(1_000))
    try:
        key_file.write_bytes(fresh.key)  # the certificate is still the old one
        await looks(clock, certificates, 3)
        assert certificates.material is before
        assert sum("the certificate in use stays" in record.message for record in caplog.records) == 1
        assert key.decode() not in caplog.text
        assert fresh.key.decode() not in caplog.text
        place.write(fresh)
        while certificates.material is before:
            await clock.advance(1)
            await asyncio.sleep(0)
        assert certificates.material.chain == fresh.certificate
    finally:
        watching.cancel()


async def looks(clock: VirtualClock, certificates: Certificates, failures: int) -> None:
    """Until so many looks failed; each is read in a thread."""
    while certificates.failures < failures:
        await clock.advance(1)
        await asyncio.sleep(0)


def test_authorities_are_taken_without_what_stands_between_them(place: Place, tmp_path: Path) -> None:
    second = Authority.make("second", 30, NOW).pair.certificate
    both = tmp_path / "both.crt"
    both.write_bytes(
        "# Zertifikate für alle\n".encode() + place.authority.pair.certificate + b"\n# half:\n" + second[:200]
    )
    found = read_material(replace(place.files, ca_file=both), CLOCK.time_ns())
    assert found.roots == place.authority.pair.certificate
    both.write_bytes(place.authority.pair.certificate + second)
    assert read_material(replace(place.files, ca_file=both), CLOCK.time_ns()).roots == both.read_bytes()


@pytest.mark.asyncio
async def test_who_cannot_use_a_new_certificate_keeps_nobody_from_it(
    place: Place, caplog: pytest.LogCaptureFixture
) -> None:
    certificates, told = Certificates(place.files, CLOCK), []

    def broken() -> None:
        raise ValueError("a defect")

    certificates.subscribe(broken)
    certificates.subscribe(lambda: told.append(True))
    place.issue(days=9)
    assert await certificates.refresh()
    assert told == [True]
    assert "keeps the old ones" in caplog.text


def test_an_authority_signs_only_with_its_own_key_and_while_it_is_good(tmp_path: Path) -> None:
    first, second = (Authority.make(name, 30, NOW) for name in ("first", "second"))
    with pytest.raises(InvalidArgument, match="not the key of any"):
        Authority(Pair(first.pair.certificate, second.pair.key))
    both = Authority(Pair(first.pair.certificate + second.pair.certificate, second.pair.key))
    signed = x509.load_pem_x509_certificate(both.issue((NAME,), 5, NOW).certificate)
    signed.verify_directly_issued_by(x509.load_pem_x509_certificate(second.pair.certificate))
    for broken in (b"", b"-----BEGIN CERTIFICATE-----"):
        with pytest.raises(InvalidArgument):
            Authority(Pair(broken, first.pair.key))
    with pytest.raises(InvalidArgument, match="DNS name"):
        first.issue(("bücher.de",), 5, NOW)
    old = Authority.make("old", 30, datetime.now(UTC) - timedelta(days=31))
    old.pair.write(tmp_path / "ca.crt", tmp_path / "ca.key")
    with pytest.raises(InvalidArgument, match="expired"):
        open_authority(tmp_path, 30)


def test_an_authority_is_made_once_and_never_half(tmp_path: Path) -> None:
    first = open_authority(tmp_path / "new", 30)
    assert open_authority(tmp_path / "new", 30).pair.certificate == first.pair.certificate
    (tmp_path / "new" / "ca.key").unlink()
    with pytest.raises(AlreadyExists):
        open_authority(tmp_path / "new", 30)

"""Tokens and passwords, and what is kept of them: nothing that could be shown again."""

from __future__ import annotations

import hashlib
import hmac
import re
from dataclasses import dataclass

from shoal_core.errors import InvalidArgument
from shoal_core.ports import Random

ROOT_TOKEN_MIN_LENGTH = 32
PASSWORD_MIN_LENGTH = 12
PASSWORD_MAX_BYTES = 1024

_TOKEN = re.compile(r"shoal_([0-9a-f]{16})_([0-9a-f]{64})")
_USER = re.compile(r"[A-Za-z0-9][A-Za-z0-9._@-]{0,127}")
_SALT_BYTES = 16
_MAX_LOG2_COST = 18


@dataclass(frozen=True, slots=True)
class Token:
    """A token in its two parts: the public id and the secret of 256 bits. `text` is what clients send."""

    id: str
    secret: str

    def __repr__(self) -> str:
        return f"Token({self.id})"

    @property
    def text(self) -> str:
        return f"shoal_{self.id}_{self.secret}"

    @property
    def verifier(self) -> bytes:
        """The SHA-256 of the secret. It needs no salt and no slowness: the secret is random."""
        return hashlib.sha256(self.secret.encode()).digest()


def new_token(random: Random) -> Token:
    """A token that nobody can guess."""
    return Token(random.token()[:8].hex(), (random.token() + random.token()).hex())


def parse_token(text: str) -> Token | None:
    """The token, or None for what was never one."""
    found = _TOKEN.fullmatch(text)
    return None if found is None else Token(found[1], found[2])


def digest(text: str) -> bytes:
    """For comparing two texts in constant time."""
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).digest()


def same(left: bytes, right: bytes) -> bool:
    """Compared in constant time."""
    return hmac.compare_digest(left, right)


@dataclass(frozen=True, slots=True)
class PasswordCost:
    """Of scrypt (RFC 7914). The defaults are among those that OWASP recommends: 32 MiB, some tenths of a second."""

    log2_n: int = 15
    r: int = 8
    p: int = 3


def check_new_user(name: str, password: str) -> None:
    """Raise `InvalidArgument` for a name or password that cannot be used; the password is not in it."""
    if not _USER.fullmatch(name):
        raise InvalidArgument("expected 1 to 128 characters from [a-zA-Z0-9._@-]", field="name")
    if len(password) < PASSWORD_MIN_LENGTH or len(password.encode("utf-8", "replace")) > PASSWORD_MAX_BYTES:
        raise InvalidArgument(
            f"expected at least {PASSWORD_MIN_LENGTH} characters and at most {PASSWORD_MAX_BYTES} bytes",
            field="password",
        )


def hash_password(password: str, salt: bytes, cost: PasswordCost) -> bytes:
    """What is kept of a password, with salt and cost in it. Takes long: call it in a thread."""
    key = _scrypt(password, salt, cost)
    return f"scrypt${cost.log2_n}${cost.r}${cost.p}${salt.hex()}${key.hex()}".encode()


def check_password(password: str, verifier: bytes) -> bool:
    """Whether it is the one. Takes long: call it in a thread."""
    name, log2_n, r, p, salt, key = verifier.decode().split("$")
    cost = PasswordCost(int(log2_n), int(r), int(p))
    if name != "scrypt" or cost.log2_n > _MAX_LOG2_COST:
        return False
    return same(_scrypt(password, bytes.fromhex(salt), cost), bytes.fromhex(key))


def _scrypt(password: str, salt: bytes, cost: PasswordCost) -> bytes:
    n = 1 << cost.log2_n
    memory_bytes = 128 * cost.r * (n + cost.p + 2)
    return hashlib.scrypt(
        password.encode("utf-8", "surrogatepass"), salt=salt, n=n, r=cost.r, p=cost.p, maxmem=memory_bytes, dklen=32
    )

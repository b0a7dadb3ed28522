"""What a request shows of credentials, read from the headers that clients send."""

from __future__ import annotations

import base64
import binascii
from collections.abc import Callable
from dataclasses import dataclass

AUTHORIZATION = "authorization"
TOKEN_HEADER = "x-chroma-token"
MAX_HEADER_CHARACTERS = 4096


@dataclass(frozen=True, slots=True)
class Presented:
    """A token, or a user's name and password."""

    secret: str
    user: str | None = None

    def __repr__(self) -> str:
        return f"Presented(user={self.user!r})"


def presented(header: Callable[[str], str | None]) -> Presented | None:
    """The credentials of a request; None for none, and for what cannot be read.

    ``Authorization: Bearer TOKEN``, ``Authorization: Basic BASE64(USER:PASSWORD)``, or ``X-Chroma-Token`` with a token, plain or
    after ``Bearer``. ``Authorization`` counts where there are both.

    Args:
        header: the value of the header of that name, in small letters.
    """
    authorization = header(AUTHORIZATION)
    if authorization is not None:
        return _authorization(authorization)
    token = header(TOKEN_HEADER)
    return None if token is None else _token(token)


def _authorization(value: str) -> Presented | None:
    scheme, _, rest = value.strip().partition(" ")
    if len(value) > MAX_HEADER_CHARACTERS:
        return None
    match scheme.lower():
        case "bearer":
            return _token(rest)
        case "basic":
            return _basic(rest.strip())
    return None


def _token(value: str) -> Presented | None:
    scheme, _, rest = value.strip().partition(" ")
    token = rest.strip() if scheme.lower() == "bearer" else value.strip()
    return Presented(token) if 0 < len(token) <= MAX_HEADER_CHARACTERS else None


def _basic(value: str) -> Presented | None:
    try:
        user, colon, password = base64.b64decode(value, validate=True).decode().partition(":")
    except (binascii.Error, ValueError):
        return None
    return Presented(password, user) if colon and user and password else None

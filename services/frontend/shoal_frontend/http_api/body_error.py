"""What a body can have wrong that is not a wrong value, and the checks that find it.

Places name a member as in ``configuration.hnsw.space``; the body itself is ``""``. Texts follow those of the reference system.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

from shoal_frontend.http_api.positions import path_of

_PREFIX = "Failed to deserialize the JSON body into the target type: "


class BodyError(Exception):
    """The body is JSON, but not what the route takes: a field is missing, unknown or of another type. Answered with 422.

    Attributes:
        message: the whole text of the answer, to which where in the text of the body it is may be added.
        problem: of it what is wrong.
        place: the member at fault, such as ``metadatas[0].k``; empty for the body itself.
        path: the same as keys and numbers; None where they follow from the place.
        spot: whether to point to the end of the ``value`` there, to that of its ``key``, or to what follows it (``around``).
    """

    def __init__(
        self, problem: str, place: str = "", *, path: Sequence[str | int] | None = None, spot: str = "value"
    ) -> None:
        """``problem``: such as ``missing field `ids` ``."""
        self.message = f"{_PREFIX}{place}: {problem}" if place else f"{_PREFIX}{problem}"
        self.problem, self.place, self.path, self.spot = problem, place, path, spot
        super().__init__(self.message)


def wrong_type(value: Any, expected: str, place: str) -> BodyError:
    """The error of a value of another type than ``expected``, such as ``a string``."""
    return BodyError(f"invalid type: {described(value)}, expected {expected}", place)


def object_of(value: Any, place: str) -> Mapping[str, Any]:
    """The object, an empty one for null. Raises `BodyError` for anything else."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise wrong_type(value, "a map", place)
    return value


def text_of(value: Any, place: str) -> str:
    """Raises `BodyError` for what is no string."""
    if not isinstance(value, str):
        raise wrong_type(value, "a string", place)
    return value


def flag_of(value: Any, place: str) -> bool:
    """Raises `BodyError` for what is not true or false."""
    if not isinstance(value, bool):
        raise wrong_type(value, "a boolean", place)
    return value


def one_of(value: Any, known: Collection[str], place: str) -> str:
    """Raises `BodyError` for a string that is not one of ``known``."""
    if text_of(value, place) not in known:
        raise BodyError(f"unknown variant `{str(value)[:64]}`, expected {_choice(known)}", place)
    return str(value)


def member(given: Mapping[str, Any], name: str, place: str) -> Any:
    """A member that must be there. Raises `BodyError`."""
    if name not in given:
        raise BodyError(f"missing field `{name}`", place)
    return given[name]


def check_known(given: Mapping[str, Any], known: Collection[str], place: str) -> None:
    """Raise `BodyError` for a member that is not one of ``known``."""
    for name in given:
        if name not in known:
            expected = f"expected {_choice(known)}" if known else "there are no fields"
            raise BodyError(f"unknown field `{name[:64]}`, {expected}", inside(place, name), spot="key")


def inside(place: str, name: str) -> str:
    """The place of a member."""
    return f"{place}.{name}" if place else name


@contextmanager
def within(place: str) -> Iterator[None]:
    """Errors of a part of the body become errors of the body, of which it is the member at ``place``, such as ``operations[1]``."""
    try:
        yield
    except BodyError as error:
        inner = path_of(error.place) if error.path is None else tuple(error.path)
        whole = place + error.place if error.place.startswith("[") else inside(place, error.place).rstrip(".")
        raise BodyError(error.problem, whole, path=(*path_of(place), *inner), spot=error.spot) from error


def _choice(names: Collection[str]) -> str:
    quoted = [f"`{name}`" for name in names]
    return " or ".join(quoted) if len(quoted) < 3 else "one of " + ", ".join(quoted)


def described(value: Any) -> str:
    """A JSON value as messages name it."""
    match value:
        case None:
            return "null"
        case bool():
            return f"boolean `{str(value).lower()}`"
        case int():
            return f"integer `{value}`"
        case float():
            return f"floating point `{value}`"
        case str():
            return f'string "{value[:64]}"'
        case Mapping():
            return "map"
    return "sequence"

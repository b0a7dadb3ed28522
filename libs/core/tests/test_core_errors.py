"""The error tree and the small values of the contract."""

from __future__ import annotations

import inspect

import pytest

from shoal_core import errors
from shoal_core.consistency import VersionToken
from shoal_core.errors import InvalidArgument, ShoalError, error_types


def test_error_types_covers_the_module() -> None:
    declared = {
        name
        for name, cls in inspect.getmembers(errors, inspect.isclass)
        if issubclass(cls, ShoalError) and cls.__module__ == errors.__name__
    }
    assert declared <= error_types().keys()
    assert all(error_types()[name] is getattr(errors, name) for name in declared)


def test_the_tree_is_drawn_as_it_is() -> None:
    drawn: dict[str, str] = {}
    parents: list[str] = []
    assert errors.__doc__ is not None
    for line in errors.__doc__.splitlines():
        if not line.startswith("    "):
            continue
        name = line.lstrip(" │├└─").split()[0]
        depth = line.index(name) // 4
        parents[depth - 1 :] = [name]
        if depth > 1:
            drawn[name] = parents[depth - 2]
    actual = {name: cls.__mro__[1].__name__ for name, cls in error_types().items() if cls.__module__ == errors.__name__}
    del actual["ShoalError"]
    assert actual == drawn


@pytest.mark.parametrize("name", sorted(error_types()))
def test_errors_carry_message_field_and_delay(name: str) -> None:
    error = error_types()[name]("too long", field="ids[3]", retry_after_ms=5)
    assert (error.message, error.field, error.retry_after_ms) == ("too long", "ids[3]", 5)
    assert str(error) == "ids[3]: too long"
    assert str(error_types()[name]("plain")) == "plain"


def test_version_tokens_come_back() -> None:
    token = VersionToken("3f2c", "9b1e", 2**64 - 1)
    assert VersionToken.parse(str(token)) == token


@pytest.mark.parametrize(
    "text",
    ["", "a", "a:b", "a:b:", "a:b:x", "a:b:-1", "a:b:1:2", "a:b: 1", "a:b:1.0", "a:b:²", "a:b:٣", ":b:1", "a::1",
     "a:b:" + "9" * 5000, f"a:b:{2**64}"],
)  # fmt: skip
def test_other_texts_are_not_tokens(text: str) -> None:
    with pytest.raises(InvalidArgument, match="token"):
        VersionToken.parse(text)

"""Which filters no collection can answer, and which are looked at off the event loop."""

from __future__ import annotations

import pytest

from shoal_core.errors import InvalidArgument
from shoal_core.filters import (
    And,
    Comparator,
    Compare,
    Exists,
    Filter,
    IdIn,
    ListContains,
    Membership,
    Or,
    Text,
    TextMatcher,
    parse_where,
)
from shoal_core.limits import Limits
from shoal_frontend.validate_filter import check_selection, takes_long

REGEXES = (TextMatcher.REGEX, TextMatcher.NOT_REGEX)


def refused(where: Filter, limits: Limits | None = None) -> tuple[str, str]:
    with pytest.raises(InvalidArgument) as caught:
        check_selection(None, where, limits or Limits())
    return caught.value.field, caught.value.message


@pytest.mark.parametrize("matcher", list(TextMatcher))
def test_patterns_are_measured_in_bytes(matcher: TextMatcher) -> None:
    limits = Limits(pattern_size_bytes=4)
    for pattern in ("abcd", "éé", ""):
        check_selection(None, Text(matcher, pattern), limits)
    for pattern in ("abcde", "ééa", "\ud800\ud800"):
        tree = And((Compare("a", Comparator.EQ, "x" * 99), Or((Text(matcher, pattern),))))
        field, message = refused(tree, limits)
        assert field == f"where_document.{matcher}"
        assert "bytes, at most 4" in message


def test_the_default_allows_4096_bytes() -> None:
    check_selection(None, Text(TextMatcher.REGEX, "a" * 4096), Limits())
    assert "4097 bytes, at most 4096" in refused(Text(TextMatcher.REGEX, "a" * 4097))[1]


@pytest.mark.parametrize("matcher", REGEXES)
@pytest.mark.parametrize("pattern", ["(", "a{2", "\\pN{1000}{1000}", "(?<x>"])
def test_a_pattern_that_is_none_is_an_error_wherever_it_stands(matcher: TextMatcher, pattern: str) -> None:
    wrong = pattern != "a{2"  # which RE2 takes literally
    tree = And((Compare("a", Comparator.EQ, 1), Or((Exists("b"), Text(matcher, pattern)))))
    if wrong:
        assert refused(tree)[0] == f"where_document.{matcher}"
    else:
        check_selection(None, tree, Limits())
    check_selection(None, Text(TextMatcher.CONTAINS, pattern), Limits())


@pytest.mark.parametrize("key", ["", "$or", "#id", "#document", "#embedding"])
def test_keys_that_no_record_has(key: str) -> None:
    for tree in (Compare(key, Comparator.EQ, 1), Membership(key, (1,)), ListContains(key, 1), Exists(key)):
        assert refused(And((tree,)))[0] == f"where.{key}"
    check_selection(None, Exists("#uri"), Limits())


def test_what_takes_long() -> None:
    assert not takes_long(None, None)
    assert not takes_long(("a",), parse_where({"$and": [{"a": 1}, {"#document": {"$contains": "x"}}]}))
    for matcher in REGEXES:
        assert takes_long(None, And((Exists("a"), Text(matcher, "a"))))
    many = tuple(f"{n}" for n in range(1_001))
    assert takes_long(many, None)
    assert takes_long(None, IdIn(many))
    assert takes_long(None, Membership("a", many))
    assert takes_long(None, Or((Exists("a"),) * 1_001))

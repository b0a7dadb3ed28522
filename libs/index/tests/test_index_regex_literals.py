"""Literals of regular expressions: RE2 itself is the judge of whether a match can do without them."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal_index.regex_literals import MAX_LENGTH, MAX_LITERALS, MAX_SETS, required_literals
from shoal_testing.strategies import examples


def sets(*alternatives: str) -> set[frozenset[bytes]]:
    return {frozenset(word.encode() for word in line.split("/")) for line in alternatives}


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("abc", sets("abc")),
        (r"a\.b\(c\)", sets("a.b(c)")),
        (r"tab\tend", sets("tab\tend")),
        ("größe", sets("größe")),
        ("^abc$", sets("abc")),
        (r"\babc\b", sets("abc")),
        ("ab.cd", sets("ab", "cd")),
        ("ab[xyz]cd", sets("ab", "cd")),
        ("ab[]x]cd", sets("ab", "cd")),
        ("ab[^]x]cd", sets("ab", "cd")),
        ("ab[[:alpha:]x]cd", sets("ab", "cd")),
        (r"ab[\]x]cd", sets("ab", "cd")),
        (r"ab\pN\p{Greek}\x41\x{263a}cd", sets("ab", "cd")),
        ("abc*d", sets("ab", "d")),
        ("abc*?d", sets("ab", "d")),
        ("abc{0,}d", sets("ab", "d")),
        ("colou?r", sets("colour/color")),
        ("abé+d", sets("abé", "éd")),
        ("abc{2,3}d", sets("abc", "cd")),
        ("a{,2}", sets("a{,2}")),
        ("gr(a|e)y", sets("gray/grey")),
        ("(?:cat|dog)s", sets("cats/dogs")),
        ("(?P<pet>cat|dog)(?<n>s)?", sets("cat/dog/cats/dogs")),
        ("cat|dog.*bone", sets("cat/bone", "cat/dog")),
        ("cat|.", set()),
        ("cat|", set()),
        ("(abc)+", sets("abc")),
        ("(abc.)*def", sets("def")),
        ("(ab.cd)+", sets("ab", "cd")),
        ("(?s)ab.(?-s:cd)", sets("ab", "cd")),
        ("", set()),
        (".*", set()),
        ("(?i)abc", set()),
        ("a(?i:bc)", set()),
        (r"\Qa+b\Ec", set()),
        (r"ab\07c", set()),
        ("ab(?=c)", set()),
        ("ab)", set()),
        ("(ab", set()),
        ("[ab", set()),
        ("ab\\", set()),
    ],
)
def test_named_patterns(pattern: str, expected: set[frozenset[bytes]]) -> None:
    assert set(required_literals(pattern)) == expected


CHARACTERS = st.sampled_from(
    ["a", "b", "ab", "é", "日", ".", r"\.", "[ab]", "[^a]", "[]b]", r"\w", r"\n", "^", "$", r"\b", "{", "-"]
)
REPEATS = st.sampled_from(["*", "+", "?", "*?", "{0}", "{1}", "{2}", "{0,2}", "{1,}", "{2,3}?"])


def grouped(inner: st.SearchStrategy[str]) -> st.SearchStrategy[str]:
    group = st.builds("{}{})".format, st.sampled_from(["(", "(?:", "(?P<n>", "(?s:", "(?i:"]), inner)
    return st.one_of(
        st.lists(inner, max_size=4).map("".join),
        st.lists(inner, min_size=2, max_size=3).map("|".join),
        group,
        st.builds("{}{}".format, st.one_of(group, st.sampled_from(["a", "b", "é", ".", "[ab]"])), REPEATS),
    )


PATTERNS = st.recursive(CHARACTERS, grouped, max_leaves=12)
DOCUMENTS = st.lists(st.text("abAé日.{- \n", max_size=12), min_size=1, max_size=30)


@given(PATTERNS, DOCUMENTS)
@examples(600)
@example("(?:a|bb)+(?:ab?){2}", ["aabab", "bbaa"])
def test_every_match_contains_a_literal_of_each_set(pattern: str, documents: list[str]) -> None:
    required = required_literals(pattern)
    try:
        found = pc.match_substring_regex(pa.array(documents), pattern).to_pylist()
    except pa.ArrowInvalid:
        return  # no regular expression: repeated repetitions, the same name twice
    for document in (text for text, matches in zip(documents, found, strict=True) if matches):
        for literals in required:
            assert any(literal in document.encode() for literal in literals), (pattern, document, literals)


@pytest.mark.parametrize(
    "pattern",
    [
        "abcdefgh" * 512,
        "ab." * 1365,
        "(" * 2048 + ")" * 2048,
        "(a|b)" * 819,
        "(?:" * 1000 + "a" + "|b)" * 1000,
        "[" * 4096,
        "[a" * 2048,
        "|".join(f"{n:03}" for n in range(1000)),
        "(a.b|c.d)?" * 400,
        "a{" + "1" * 5000 + "}",
    ],
    ids=lambda pattern: pattern[:9],
)
def test_long_patterns_give_few_short_literals(pattern: str) -> None:
    required = required_literals(pattern)  # were it not linear, some of these would never end
    assert len(required) <= MAX_SETS
    for literals in required:
        assert 0 < len(literals) <= MAX_LITERALS
        assert all(0 < len(literal) <= MAX_LENGTH for literal in literals)

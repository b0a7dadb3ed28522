"""What every match of a regular expression must contain, read off the pattern without running it.

The parser knows the common part of RE2's syntax. Whatever it does not know makes it answer "nothing", which is always true.
The algebra of starts, ends and insides follows Russ Cox, "Regular Expression Matching with a Trigram Index" (2012).
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

Literals = frozenset[bytes]

MAX_LITERALS: Final = 32  # in a set
MAX_LENGTH: Final = 64  # of a literal, bytes
MAX_SETS: Final = 32

_ANYTHING: Final[Literals] = frozenset({b""})
_CONTROL: Final = {"a": b"\a", "f": b"\f", "n": b"\n", "r": b"\r", "t": b"\t", "v": b"\v"}

_TOKEN: Final = re.compile(
    r"""
      (?P<repeat>  (?: [*+?] | \{ (?P<least>[0-9]+) (?: , [0-9]* )? \} ) \?? )
    | (?P<gap>     \. | \\[dDsSwWC] | \\[pP] (?: \{[^}]*\} | . ) | \\x (?: \{[0-9A-Fa-f]+\} | [0-9A-Fa-f]{2} )
                 | \[ \^? \]? (?: \[:[^\]]*:\] | \\. | [^\]\\] )*+ \] )
    | (?P<empty>   \^ | \$ | \\[AzbB] | \(\?[smU-]+\) )
    | (?P<open>    \( (?: \? (?: P?<\w+> | [smU-]*: ) )? (?!\?) )
    | (?P<close>   \) )
    | (?P<or>      \| )
    | \\ (?: (?P<control>[afnrtv]) | (?P<escaped>[\ -/:-@\[-^`{-~]) )
    | (?P<literal> [^\\()|\[*+?] )
    """,
    re.VERBOSE | re.DOTALL,
)


@dataclass(frozen=True, slots=True)
class _Part:
    """A part of a pattern: each of its matches starts with one of ``start``, ends with one of ``end``, and contains one of each
    of ``inner``. If ``exact``, the whole match is one of ``start``, which equals ``end``."""

    start: Literals
    end: Literals
    inner: tuple[Literals, ...] = ()
    exact: bool = False

    def required(self) -> tuple[Literals, ...]:
        """The sets that say something."""
        distinct = dict.fromkeys((self.start, *self.inner, self.end))
        return tuple(literals for literals in distinct if b"" not in literals)[:MAX_SETS]


def _exactly(literals: Literals) -> _Part:
    return _Part(literals, literals, exact=True)


_GAP: Final = _Part(_ANYTHING, _ANYTHING)
_EMPTY: Final = _exactly(_ANYTHING)


def required_literals(pattern: str) -> tuple[Literals, ...]:
    """Sets of byte strings such that every match of the RE2 pattern contains at least one of each set.

    Takes time linear in the pattern. There are at most `MAX_SETS` sets of at most `MAX_LITERALS` literals of at most
    `MAX_LENGTH` bytes, none of them empty. No sets means that nothing is known, also of a pattern that RE2 refuses.
    """
    frames = [_Frame()]
    position = 0
    while position < len(pattern):
        token = _TOKEN.match(pattern, position)
        if token is None:
            return ()
        position = token.end()
        match token.lastgroup:
            case "open":
                frames.append(_Frame())
            case "close":
                group = frames.pop().closed()
                if not frames:
                    return ()
                frames[-1].add(group)
            case "or":
                frames[-1].next_branch()
            case "repeat":
                frames[-1].repeat(token[0][0], token["least"])
            case "gap":
                frames[-1].add(_GAP)
            case "empty":
                frames[-1].add(_EMPTY)
            case _:
                frames[-1].add(_exactly(frozenset({_character(token)})))
    return frames[0].closed().required() if len(frames) == 1 else ()


def _character(token: re.Match[str]) -> bytes:
    if token["control"]:
        return _CONTROL[token["control"]]
    return (token["escaped"] or token["literal"]).encode()


class _Frame:
    """An open group: its finished branches, and of the current one all but the last item, which may be repeated yet."""

    def __init__(self) -> None:
        self._branches: list[_Part] = []
        self._before = self._last = _EMPTY

    def add(self, item: _Part) -> None:
        self._before = _concatenation(self._before, self._last)
        self._last = item

    def repeat(self, operator: str, least: str | None) -> None:
        """Replace the last item by its repetition."""
        item = self._last
        if operator == "+" or (least is not None and least.strip("0")):
            self._last = _Part(item.start, item.end, item.inner)
        elif operator == "?" and item.exact:
            self._last = _exactly(item.start | _ANYTHING)
        else:
            self._last = _GAP

    def next_branch(self) -> None:
        self.add(_EMPTY)
        self._branches.append(self._before)
        self._before = _EMPTY

    def closed(self) -> _Part:
        self.next_branch()
        return _alternation(self._branches)


def _concatenation(one: _Part, two: _Part) -> _Part:
    joined = frozenset(a + b for a in one.end for b in two.start) if _may_join(one.end, two.start) else None
    if joined is None:
        return _Part(one.start, two.end, _kept(*one.inner, one.end, two.start, *two.inner))
    if one.exact and two.exact:
        return _exactly(joined)
    if one.exact:
        return _Part(joined, two.end, two.inner)
    if two.exact:
        return _Part(one.start, joined, one.inner)
    return _Part(one.start, two.end, _kept(*one.inner, joined, *two.inner))


def _may_join(one: Literals, two: Literals) -> bool:
    return len(one) * len(two) <= MAX_LITERALS and max(map(len, one)) + max(map(len, two)) <= MAX_LENGTH


def _alternation(branches: Sequence[_Part]) -> _Part:
    if len(branches) == 1:
        return branches[0]
    start = _union([branch.start for branch in branches])
    if all(branch.exact for branch in branches) and start is not None:
        return _exactly(start)
    end = _union([branch.end for branch in branches])
    best = [max(branch.required(), key=_usefulness, default=_ANYTHING) for branch in branches]
    return _Part(start or _ANYTHING, end or _ANYTHING, _kept(_union(best) or _ANYTHING))


def _union(sets: Sequence[Literals]) -> Literals | None:
    """None if it is too large."""
    union = frozenset[bytes]().union(*sets)
    return union if len(union) <= MAX_LITERALS else None


def _usefulness(literals: Literals) -> tuple[int, int]:
    """Long literals are rare, and a few are rarer than many."""
    return min(map(len, literals)), -len(literals)


def _kept(*inner: Literals) -> tuple[Literals, ...]:
    return tuple(literals for literals in inner if b"" not in literals)[:MAX_SETS]

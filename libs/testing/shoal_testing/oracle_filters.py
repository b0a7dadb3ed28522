"""The oracle's filters: whether a record, a dict of plain Python values, satisfies a filter in its JSON form."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

Json = Mapping[str, Any]
Record = dict[str, Any]

_COMPLEMENTS = {"$ne": "$eq", "$nin": "$in", "$not_contains": "$contains"}
_CLASSES = {"d": "0-9", "s": r"\t\n\f\r ", "w": "A-Za-z0-9_"}


def matches(record: Record, where: Json) -> bool:
    """Whether a record satisfies a ``where`` mapping."""
    [(key, operand)] = where.items()
    if key == "$and":
        return all(matches(record, child) for child in operand)
    if key == "$or":
        return any(matches(record, child) for child in operand)
    if key == "#document":
        return matches_document(record, operand)
    operator, value = next(iter(operand.items())) if isinstance(operand, Mapping) else ("$eq", operand)
    found = value_of(record, key)
    if operator in _COMPLEMENTS:
        return not _holds(found, _COMPLEMENTS[operator], value)
    if operator == "$exists":
        return (found is not None) == value
    return _holds(found, operator, value)


def matches_document(record: Record, where: Json) -> bool:
    """Whether a record's document satisfies a ``where_document`` mapping."""
    [(operator, operand)] = where.items()
    document = record["document"]
    match operator:
        case "$and":
            return all(matches_document(record, child) for child in operand)
        case "$or":
            return any(matches_document(record, child) for child in operand)
        case "$contains":
            return document is not None and operand in document
        case "$not_contains":
            return document is None or operand not in document
        case "$regex":
            return document is not None and python_pattern(operand).search(document) is not None
        case "$not_regex":
            return document is None or python_pattern(operand).search(document) is None
        case _:
            raise ValueError(f"unknown operator {operator}")


@lru_cache(maxsize=256)
def python_pattern(pattern: str) -> re.Pattern[str]:
    """An RE2 pattern as Python has it: ``$`` and ``\\z`` are the end of the text and not also before a last line break, classes
    such as ``\\w`` and word borders are of ASCII."""
    multiline = re.match(r"\(\?[a-z]*m", pattern) is not None
    parts: list[str] = []
    in_class = False
    for token in re.findall(r"\\.|\[\^?\]?|.", pattern, re.DOTALL):
        letter = token[-1]
        if token[0] == "\\" and letter.lower() in _CLASSES:
            negated = letter.isupper()
            if in_class and negated:
                raise ValueError(f"{token} within a class is not translated")
            characters = _CLASSES[letter.lower()]
            token = characters if in_class else f"[{'^' if negated else ''}{characters}]"
        elif token in (r"\b", r"\B"):
            token = f"(?a:{token})"
        elif token == r"\z" or (token == "$" and not in_class and not multiline):
            token = r"\Z"
        elif in_class and token == "]":
            in_class = False
        elif token[0] == "[":
            token, in_class = (rf"\{token}", True) if in_class else (token, True)
        parts.append(token)
    return re.compile("".join(parts))


def kind_of(value: Any) -> str:
    """``bool``, ``number`` or ``string``; ``other`` for lists, sparse vectors and None."""
    if isinstance(value, bool):
        return "bool"
    if isinstance(value, int | float):
        return "number"
    return "string" if isinstance(value, str) else "other"


def value_of(record: Record, key: str) -> Any:
    """What a record has at a metadata key, ``#uri`` or ``#id``; None for nothing."""
    if key == "#id":
        return record["id"]
    if key == "#uri":
        return record["uri"]
    return record["metadata"].get(key)


def _holds(found: Any, operator: str, value: Any) -> bool:
    """A positive condition on a value that may be absent (None)."""
    match operator:
        case "$eq":
            return _same(found, value)
        case "$in":
            return any(_same(found, item) for item in value)
        case "$contains":
            return isinstance(found, list) and any(_same(item, value) for item in found)
    if kind_of(found) != kind_of(value) or kind_of(value) not in ("number", "string"):
        return False
    match operator:
        case "$gt":
            return bool(found > value)
        case "$gte":
            return bool(found >= value)
        case "$lt":
            return bool(found < value)
        case "$lte":
            return bool(found <= value)
        case _:
            raise ValueError(f"unknown operator {operator}")


def _same(left: Any, right: Any) -> bool:
    return kind_of(left) == kind_of(right) != "other" and bool(left == right)

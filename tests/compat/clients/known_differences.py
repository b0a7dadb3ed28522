"""What may differ between the reference system and Shoal in answers to the same request; the table of differences has the reasons."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from random_requests import Request

Answer = dict[str, Any]

# A query that its vector index answers without records that are there, and that it would answer with if it looked at all of them.
MISSED = "nearest records that the index does not find"


def as_shoal_says(request: Request, theirs: Answer, ours: Answer) -> tuple[Answer, list[str]]:
    """The reference system's answer in Shoal's way where that is known to differ, and the names of those differences."""
    found: list[str] = []
    for name, translated in KNOWN.items():
        changed = translated(request, theirs, ours)
        if changed != theirs:
            found.append(name)
        theirs = changed
    return theirs, found


def _regex(request: Request, theirs: Answer, ours: Answer) -> Answer:
    prefix = "Regex syntax errror: "
    both = (theirs.get("message", ""), ours.get("message", ""))
    return {**theirs, "message": ours["message"]} if all(text.startswith(prefix) for text in both) else theirs


def _uris(request: Request, theirs: Answer, ours: Answer) -> Answer:
    if not theirs.get("metadatas"):
        return theirs
    nested = request.method == "query"
    rows = theirs["metadatas"] if nested else [theirs["metadatas"]]
    emptied = [[metadata or None for metadata in row] for row in rows]
    return {**theirs, "metadatas": emptied if nested else emptied[0]}


def _ids(request: Request, theirs: Answer, ours: Answer) -> Answer:
    failed = request.method == "query" and "Error finding id" in theirs.get("message", "")
    return ours if failed and "ids" in request.arguments else theirs


KNOWN: Mapping[str, Callable[[Request, Answer, Answer], Answer]] = {
    "regular expressions": _regex,
    "query among ids that are not there": _ids,
    "metadata of a record with nothing but a uri": _uris,
}
NAMES = (*KNOWN, MISSED)

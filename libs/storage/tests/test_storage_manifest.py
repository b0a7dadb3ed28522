"""Manifests across releases: what is new is ignored or missing, and a newer format is refused by name."""

from __future__ import annotations

import json
from typing import Any

import pytest

from shoal_core.contracts import EVERYTHING
from shoal_core.errors import Corrupt, NewerFormat
from shoal_storage.blocks import encode_blob
from shoal_storage.manifest import Manifest, SegmentRef, ShardManifest, decode_manifest, encode_manifest

BLOCK = encode_blob(b"rows").ref("segments/c/u/rows-0000")
DEAD = encode_blob(b"dead").ref("segments/c/u/dead-0000")
SEGMENT = SegmentRef("s", 2, 10, 1, 100, {"rows": (BLOCK,)}, DEAD, 1_700_000_000_000)
MANIFEST = Manifest("c", 7, "l2", 3, (ShardManifest(0, EVERYTHING, 12, (SEGMENT,)),))


def _raw() -> Any:
    return json.loads(encode_manifest(MANIFEST))


def _bytes(raw: Any) -> bytes:
    return json.dumps(raw).encode()


def test_a_manifest_is_read_as_it_was_written() -> None:
    assert decode_manifest(encode_manifest(MANIFEST)) == MANIFEST
    assert _raw()["format"] == 1
    assert _raw()["shards"][0]["segments"][0]["format"] == 1


def test_members_of_a_later_release_are_ignored() -> None:
    raw = _raw()
    raw["later"] = {"a": 1}
    raw["shards"][0]["later"] = [1]
    raw["shards"][0]["segments"][0]["later"] = "x"
    raw["shards"][0]["segments"][0]["blocks"]["rows"][0]["later"] = 1
    assert decode_manifest(_bytes(raw)) == MANIFEST


def test_members_that_an_earlier_release_did_not_write_may_be_missing() -> None:
    raw = _raw()
    del raw["shards"][0]["segments"][0]["dead_since_ms"]
    del raw["shards"][0]["segments"][0]["format"]
    [segment] = decode_manifest(_bytes(raw)).shards[0].segments
    assert (segment.dead, segment.dead_since_ms, segment.format) == (1, None, 1)


def test_a_newer_format_is_refused_with_what_to_do() -> None:
    raw = _raw()
    raw["format"] = 2
    with pytest.raises(NewerFormat, match=r"newer release wrote this manifest: format 2, .* reads up to 1; upgrade it"):
        decode_manifest(_bytes({"format": 2, "all": "else is new"}))
    raw = _raw()
    raw["shards"][0]["segments"][0]["format"] = 2
    with pytest.raises(NewerFormat, match="segment: format 2"):
        decode_manifest(_bytes(raw))


@pytest.mark.parametrize("wrong", [0, -1, True, "2", None, 1.5])
def test_what_is_no_format_is_corrupt(wrong: object) -> None:
    with pytest.raises(Corrupt):
        decode_manifest(_bytes({**_raw(), "format": wrong}))
    with pytest.raises(Corrupt):
        decode_manifest(b"no JSON")

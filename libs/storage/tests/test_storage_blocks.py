"""Blocks: what is encoded comes back, without copies, and damage is found."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest

from shoal_core.errors import Corrupt
from shoal_storage.blocks import (
    BlockRef,
    checksum_of,
    decode_block,
    encode_blob,
    encode_block,
    pack_table_into_blocks,
    verify,
)

MIB = 1 << 20


def records(rows: int, dimension: int = 8) -> pa.Table:
    vectors = np.arange(rows * dimension, dtype=np.float32)
    return pa.table(
        {
            "id": [f"id-{i}" for i in range(rows)],
            "embedding": pa.FixedSizeListArray.from_arrays(pa.array(vectors), dimension),
            "document": [None if i % 3 == 0 else f"document {i}" for i in range(rows)],
            "tags": pa.array([["x"] * (i % 4) for i in range(rows)], pa.list_(pa.string())),
            "kind": pa.array([f"kind {i % 5}" for i in range(rows)]).dictionary_encode(),
        }
    ).replace_schema_metadata({"format": "1"})


@pytest.mark.parametrize("rows", [0, 1, 1000])
@pytest.mark.parametrize("compression", [None, "lz4", "zstd"])
def test_a_table_comes_back(rows: int, compression: str | None) -> None:
    table = records(rows)
    block = encode_block(table, compression=compression)
    assert block.rows == rows
    decoded = decode_block(block.data)
    assert decoded.equals(table, check_metadata=True)
    decoded.validate(full=True)


def test_a_batch_and_a_table_in_chunks_encode_alike() -> None:
    table = records(100).drop_columns(["kind"])
    whole = encode_block(table.combine_chunks().to_batches()[0])
    chunks = encode_block(pa.concat_tables([table.slice(0, 30), table.slice(30)]))
    assert whole.checksum == encode_block(table).checksum
    assert decode_block(chunks.data).equals(table)
    assert decode_block(chunks.data)["id"].num_chunks == 1


def test_an_uncompressed_block_is_read_without_copying() -> None:
    block = encode_block(records(5000))
    before = pa.total_allocated_bytes()
    table = decode_block(block.data)
    assert pa.total_allocated_bytes() - before < 4096
    vectors = table["embedding"].chunk(0).flatten().to_numpy(zero_copy_only=True)
    start = block.data.address
    assert start <= vectors.ctypes.data < start + block.data.size


def test_a_slice_is_stored_without_the_rest() -> None:
    table = records(10_000)
    assert encode_block(table.slice(0, 100)).data.size < encode_block(table).data.size / 50


def test_the_checksum_is_xxh3_128() -> None:
    assert checksum_of(b"").hex() == "99aa06d3014798d86001c324468d497f"
    assert encode_blob(b"").content_address == "99aa06d3014798d86001c324468d497f"


def test_verify_names_key_expected_and_found() -> None:
    blob = encode_blob(b"hello world", rows=2)
    ref = blob.ref("a/b")
    assert ref == BlockRef("a/b", 11, blob.content_address, 2)
    verify(b"hello world", ref)
    verify(pa.py_buffer(b"hello world"), ref)
    found = checksum_of(b"hello_world").hex()
    with pytest.raises(Corrupt, match=rf"'a/b'.*{ref.checksum}.*{found}"):
        verify(b"hello_world", ref)
    with pytest.raises(Corrupt, match=r"'a/b'.*11 bytes.*10"):
        verify(b"hello worl", ref)


@pytest.mark.parametrize("data", [b"", b"ARROW1\0\0", b"not an arrow file at all"])
def test_bytes_that_are_no_block_are_corrupt(data: bytes) -> None:
    with pytest.raises(Corrupt, match="Arrow"):
        decode_block(data)


def test_a_truncated_block_is_corrupt() -> None:
    data = memoryview(encode_block(records(100)).data)
    with pytest.raises(Corrupt, match="Arrow"):
        decode_block(data[: len(data) // 2])


def test_a_blob_is_not_copied() -> None:
    data = pa.py_buffer(b"opaque")
    assert encode_blob(data).data.address == data.address
    assert encode_blob(memoryview(data)).data.address == data.address


def test_a_reference_goes_through_json() -> None:
    ref = encode_block(records(7)).ref("c/1/blocks/x")
    assert BlockRef.from_json(json.loads(json.dumps(ref.to_json()))) == ref


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key", ""),
        ("key", 3),
        ("size_bytes", -1),
        ("size_bytes", "1"),
        ("checksum", "12"),
        ("checksum", "Z" * 32),
        ("rows", None),
    ],
)
def test_a_damaged_reference_names_its_member(name: str, value: object) -> None:
    with pytest.raises(Corrupt, match=name):
        BlockRef.from_json({**encode_blob(b"x").ref("k").to_json(), name: value})


def test_packing_gives_even_blocks_near_the_target() -> None:
    table = pa.table({"x": np.arange(4 * MIB, dtype=np.int64)})
    blocks = pack_table_into_blocks(table, 4 * MIB)
    assert len(blocks) == 8
    assert pa.concat_tables(blocks).equals(table)
    assert {block.nbytes for block in blocks} == {4 * MIB}


def test_packing_cuts_again_where_rows_are_large() -> None:
    sizes = [10] * 5000 + [200_000] * 30 + [3 * MIB] + [10] * 5000
    table = pa.table({"document": ["d" * size for size in sizes]})
    blocks = pack_table_into_blocks(table, MIB)
    assert pa.concat_tables(blocks).equals(table)
    assert all(block.nbytes <= 1.5 * MIB or block.num_rows == 1 for block in blocks)
    assert sum(block.num_rows == 1 for block in blocks) <= 3


def test_packing_small_tables() -> None:
    assert pack_table_into_blocks(records(0)) == []
    small = records(10)
    assert pack_table_into_blocks(small) == [small]

"""Only operation batches get into the log."""

from __future__ import annotations

from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from services.logservice.tests.log_support import payload_of
from shoal_core.errors import InvalidArgument
from shoal_core.hashing import hash_ids
from shoal_core.limits import Limits
from shoal_core.records import embedding_array, encode_batch
from shoal_log.batches import check_batch, checksum_of, hashes_from_bytes, hashes_to_bytes

LIMITS = Limits()


def columns(**changes: Any) -> pa.Buffer:
    arrays = {"op": pa.array([0, 3], pa.uint8()), "id": pa.array(["b", "a"])} | changes
    return encode_batch(pa.record_batch({name: array for name, array in arrays.items() if array is not None}))


def test_a_batch_and_what_the_log_knows_of_it() -> None:
    payload = columns(
        embedding=embedding_array(np.zeros((2, 3), np.float32)),
        document=pa.array(["x", None]),
        deleted_keys=pa.array([None, ["k"]], pa.list_(pa.string())),
        **{"m:int:n": pa.array([1, None], pa.int64()), "m:floats:f": pa.array([[1.0], None])},
    )
    batch = check_batch(payload, LIMITS)
    assert batch.payload is payload
    assert (batch.rows, batch.dimension, batch.size_bytes) == (2, 3, payload.size)
    assert batch.checksum == checksum_of(payload)
    assert len(batch.checksum) == 16
    assert batch.row_hashes.tolist() == hash_ids(pa.array(["b", "a"])).tolist()
    assert batch.sorted_hashes.tolist() == sorted(batch.row_hashes.tolist())
    assert hashes_from_bytes(hashes_to_bytes(batch.sorted_hashes)).tolist() == batch.sorted_hashes.tolist()
    assert check_batch(columns(), LIMITS).dimension is None


@pytest.mark.parametrize(
    "payload",
    [
        columns(op=None),
        columns(id=None),
        columns(op=pa.array([0, 4], pa.uint8())),
        columns(op=pa.array([0, None], pa.uint8())),
        columns(op=pa.array([0, 1], pa.int64())),
        columns(id=pa.array(["a", None])),
        columns(id=pa.array(["a", ""])),
        columns(id=pa.array(["a", "x" * 513])),
        columns(id=pa.array([1, 2])),
        columns(id=pa.array(["a", "b"], pa.large_string())),
        columns(embedding=pa.array([[1.0], [2.0]])),
        columns(embedding=pa.array([[1.0], [2.0]], pa.list_(pa.float64(), 1))),
        columns(embedding=embedding_array(np.zeros((2, LIMITS.dimension + 1), np.float32))),
        columns(document=pa.array([1, 2])),
        columns(deleted_keys=pa.array(["a", "b"])),
        columns(unknown=pa.array([1, 2])),
        columns(**{"m:int:n": pa.array([1.0, 2.0])}),
        columns(**{"m:nothing:n": pa.array([1, 2])}),
        columns(**{"m:int": pa.array([1, 2])}),
        encode_batch(
            pa.RecordBatch.from_arrays(
                [pa.array([0], pa.uint8()), pa.array(["a"]), pa.array(["b"])], ["op", "id", "id"]
            )
        ),
        encode_batch(pa.record_batch({"op": pa.array([], pa.uint8()), "id": pa.array([], pa.string())})),
        payload_of([str(number) for number in range(LIMITS.batch_records + 1)]),
        pa.py_buffer(b""),
        pa.py_buffer(b"not arrow at all"),
        payload_of(["a"])[:100],
    ],
)
def test_anything_else_is_refused(payload: pa.Buffer) -> None:
    with pytest.raises(InvalidArgument, match="payload"):
        check_batch(payload, LIMITS)


def test_a_stream_of_two_batches_is_refused() -> None:
    batch = pa.record_batch({"op": pa.array([0], pa.uint8()), "id": pa.array(["a"])})
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, batch.schema) as writer:
        writer.write_batch(batch)
        writer.write_batch(batch)
    with pytest.raises(InvalidArgument, match="2 record batches"):
        check_batch(sink.getvalue(), LIMITS)


def test_bytes_that_lie_about_their_lengths_are_refused() -> None:
    """String offsets that point outside of their data must not be followed."""
    payload = bytearray(memoryview(payload_of(["abcdefgh", "ijklmnop"])))
    at = payload.index(np.array([0, 8, 16], np.int32).tobytes())
    payload[at + 8 : at + 12] = np.array([1_000_000], np.int32).tobytes()
    with pytest.raises(InvalidArgument):
        check_batch(pa.py_buffer(bytes(payload)), LIMITS)


def test_ids_that_are_not_unicode_are_refused() -> None:
    payload = bytes(memoryview(payload_of(["abcdefgh"]))).replace(b"abcdefgh", b"\xff\xfeabcdef")
    with pytest.raises(InvalidArgument):
        check_batch(pa.py_buffer(payload), LIMITS)

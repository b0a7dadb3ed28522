"""The 64-bit hash of record ids: decides the shard, indexes ids in segments and names ids in conditional writes.

Stored and sent between services, so pinned by golden vectors; it must never change. Over the UTF-8 bytes in 8-byte little-endian
words, zero-padded: ``h = rotl(h ^ mix(word), 29) * P1 + P2``, then the length is folded in and the result passed through
MurmurHash3's 64-bit finaliser (Appleby, public domain constants). Vectorised over the whole column, one pass per word position.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shoal_core.records import one_chunk

_SEED = np.uint64(0x9E3779B97F4A7C15)
_P1 = np.uint64(0x87C37B91114253D5)
_P2 = np.uint64(0x52DCE729)
_M1 = np.uint64(0xFF51AFD7ED558CCD)
_M2 = np.uint64(0xC4CEB9FE1A85EC53)
_ONES = np.uint64(0xFFFFFFFFFFFFFFFF)


def hash_ids(ids: pa.Array | pa.ChunkedArray) -> npt.NDArray[np.uint64]:
    """(n,) uint64 hashes of a string column without nulls."""
    array = one_chunk(ids)
    rows = len(array)
    hashes = np.full(rows, _SEED, dtype=np.uint64)
    if rows == 0:
        return hashes
    starts, lengths, words = _layout(array)
    position = 0
    active = np.arange(rows)
    with np.errstate(over="ignore"):
        while True:
            left = lengths[active] - position
            active, left = active[left > 0], left[left > 0]
            if len(active) == 0:
                break
            word = words[starts[active] + position] & _low_bytes(left)
            hashes[active] = _rotl(hashes[active] ^ _mix(word), 29) * _P1 + _P2
            position += 8
        return _mix(hashes ^ lengths.astype(np.uint64))


def shard_of(hashes: npt.NDArray[np.uint64], shards: int) -> npt.NDArray[np.int64]:
    """(n,) int64 shard numbers: equal parts of the hash space, in order, as `contracts.shard_range` cuts them."""
    if shards == 1:
        return np.zeros(len(hashes), dtype=np.int64)
    bounds = np.array([(shard << 64) // shards for shard in range(1, shards)], dtype=np.uint64)
    return np.searchsorted(bounds, hashes, side="right").astype(np.int64)


def _layout(array: pa.Array) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64], npt.NDArray[np.uint64]]:
    _, offsets_buffer, data = array.buffers()
    width = np.int64 if pa.types.is_large_string(array.type) else np.int32
    offsets = np.frombuffer(offsets_buffer, dtype=width)[array.offset : array.offset + len(array) + 1].astype(np.int64)
    size = int(offsets[-1] - offsets[0])
    padded = np.zeros(size + 8, dtype=np.uint8)
    if size:
        padded[:size] = np.frombuffer(data, dtype=np.uint8)[offsets[0] : offsets[-1]]
    words = np.ndarray((size + 1,), dtype="<u8", buffer=padded.data, strides=(1,))
    return offsets[:-1] - offsets[0], np.diff(offsets), words


def _low_bytes(count: npt.NDArray[np.int64]) -> npt.NDArray[np.uint64]:
    shift = (8 - np.minimum(count, 8)).astype(np.uint64) * np.uint64(8)
    return _ONES >> shift


def _rotl(value: npt.NDArray[np.uint64], bits: int) -> npt.NDArray[np.uint64]:
    return (value << np.uint64(bits)) | (value >> np.uint64(64 - bits))


def _mix(value: npt.NDArray[np.uint64]) -> npt.NDArray[np.uint64]:
    value = (value ^ (value >> np.uint64(33))) * _M1
    value = (value ^ (value >> np.uint64(33))) * _M2
    return value ^ (value >> np.uint64(33))

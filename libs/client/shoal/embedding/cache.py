"""Vectors by the hash of what they were made from: bounded by bytes, least recently used first out."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from hashlib import blake2b
from typing import Final

import numpy as np

from shoal.embedding.protocol import Side, Vectors

_KEY_BYTES: Final = 16
_OVERHEAD_BYTES: Final = 200  # of an entry besides its numbers, about: the key, two objects, a place in the table


class VectorCache:
    """One function's vectors. Not safe for threads: its gateway uses it on one event loop.

    Args:
        identity: of the function: what determines its vectors besides the text.
        size_bytes: of all entries with their overhead; 0 keeps nothing.
    """

    def __init__(self, identity: str, size_bytes: int) -> None:
        # A digest of what all keys of a side have in common; `copy` continues it with the text.
        self._begun = {side: blake2b(f"{identity}\0{side}\0".encode(), digest_size=_KEY_BYTES) for side in Side}
        self._most_bytes = size_bytes
        self._size_bytes = 0
        self._rows: OrderedDict[bytes, bytes] = OrderedDict()

    @property
    def enabled(self) -> bool:
        """Whether it keeps anything."""
        return self._most_bytes > 0

    @property
    def size_bytes(self) -> int:
        """Of what is kept now."""
        return self._size_bytes

    def keys(self, texts: Sequence[str], side: Side) -> list[bytes]:
        """The key of each text."""
        found = []
        for text in texts:
            digest = self._begun[side].copy()
            digest.update(text.encode())
            found.append(digest.digest())
        return found

    def get(self, key: bytes) -> bytes | None:
        """The row as packed float32, if it is kept."""
        row = self._rows.get(key)
        if row is not None:
            self._rows.move_to_end(key)
        return row

    def put(self, keys: Sequence[bytes], vectors: Vectors) -> None:
        """Keep a row for each key; rows (n, dim)."""
        cost = vectors.shape[1] * np.dtype(np.float32).itemsize + _OVERHEAD_BYTES
        if cost > self._most_bytes:
            return
        for key, row in zip(keys, vectors, strict=True):
            old = self._rows.pop(key, None)
            if old is not None:
                self._size_bytes -= len(old) + _OVERHEAD_BYTES
            self._rows[key] = row.tobytes()
            self._size_bytes += cost
        while self._size_bytes > self._most_bytes:
            _, dropped = self._rows.popitem(last=False)
            self._size_bytes -= len(dropped) + _OVERHEAD_BYTES

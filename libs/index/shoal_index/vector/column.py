"""Vectors by row number: those of a segment, mapped from its blocks, or of a tail. What engines search."""

from __future__ import annotations

from collections.abc import Sequence
from threading import Lock

import numpy as np
import numpy.typing as npt

from shoal_index.vector import native
from shoal_index.vector.engine import Rows, Vectors

Floats = npt.NDArray[np.float32]

_AROUND_BYTES = 64 << 10  # the system maps so much of a file around what is read of it, if it has it


class VectorChunk:
    """(n, dim) float32 vectors, with their lengths, which are computed when first asked for and kept, if they are not known."""

    def __init__(self, vectors: Vectors, lengths: tuple[Floats, Floats] | None = None) -> None:
        self.vectors: Vectors = native.contiguous(vectors, np.float32)
        self.lengths_known = lengths is not None
        self._lengths = lengths

    def lengths(self) -> tuple[Floats, Floats]:
        """(n,) squared lengths and (n,) reciprocals of the lengths; see `native.lengths`."""
        if self._lengths is None:
            self._lengths = native.lengths(self.vectors)
        return self._lengths


class VectorColumn:
    """The vectors of one source, in chunks, none of them empty.

    Args:
        ties: (n,) uint64 that orders rows of equal distance.
        beside_bytes: of what searches read by row as they read vectors, and `touch` counts.
    """

    def __init__(self, chunks: Sequence[VectorChunk], ties: npt.NDArray[np.uint64], *, beside_bytes: int = 0) -> None:
        self.chunks = tuple(chunks)
        self.ties: npt.NDArray[np.uint64] = native.contiguous(ties, np.uint64)
        self.dimension = self.chunks[0].vectors.shape[1]
        sizes = [len(chunk.vectors) for chunk in self.chunks]
        self._starts = np.cumsum([0, *sizes], dtype=np.int64)
        self._shift = _shift(sizes)
        self._touched_bytes = 0
        self._beside_bytes = beside_bytes
        self._handles: dict[str, native.Handle] = {}
        self._preparing = Lock()
        if len(self.ties) != self.count:
            raise ValueError(f"{len(self.ties)} ties for {self.count} vectors")

    @property
    def count(self) -> int:
        """Of vectors."""
        return int(self._starts[-1])

    @property
    def kept_bytes(self) -> int:
        """Bytes of the lengths that searches made and left here: of each row two, if they were not known, and one for each handle."""
        made = 0 if all(chunk.lengths_known for chunk in self.chunks) else 2
        return 4 * self.count * (made + len(self._handles)) if self._handles else 0

    @property
    def size_bytes(self) -> int:
        """Of the vectors."""
        return 4 * self.count * self.dimension

    @property
    def touched_bytes(self) -> int:
        """Of the vectors, and of what is read beside them, that may be in memory: what was read, or read since it was released."""
        return min(self._touched_bytes, self.size_bytes + self._beside_bytes)

    def touch(self, rows: float) -> None:
        """So many rows were read, here and there. Threads may do so together: it need not be exact."""
        self._touched_bytes += int(rows * (4 * self.dimension + _AROUND_BYTES))

    def released(self) -> None:
        """The memory of all of them was let go of."""
        self._touched_bytes = 0

    def gather(self, rows: Rows) -> Vectors:
        """(len(rows), dim) float32 copy of the rows named."""
        self.touch(len(rows))
        if len(self.chunks) == 1:
            return self.chunks[0].vectors[rows]
        out = np.empty((len(rows), self.dimension), dtype=np.float32)
        piece = np.searchsorted(self._starts, rows, side="right") - 1
        for n in np.unique(piece):
            at = piece == n
            out[at] = self.chunks[n].vectors[rows[at] - self._starts[n]]
        return out

    def is_prepared(self, space: str) -> bool:
        """Whether there is a `handle` already: making one takes a look at all lengths."""
        return space in self._handles

    def handle(self, space: str) -> native.Handle:
        """What kernels take."""
        known = self._handles.get(space)
        if known is not None:
            return known
        with self._preparing:
            if space not in self._handles:
                self._handles[space] = self._made(space)
            return self._handles[space]

    def _made(self, space: str) -> native.Handle:
        squares, inverses = (np.concatenate(parts) for parts in zip(*(c.lengths() for c in self.chunks), strict=True))
        return native.make_vectors(
            [chunk.vectors for chunk in self.chunks],
            self._starts,
            self.ties,
            shift=self._shift,
            space=space,
            squares=squares,
            inverses=inverses,
        )


def _shift(sizes: Sequence[int]) -> int:
    """log2 of the size of all chunks but the last, which is no larger; -1 if there is none."""
    size = sizes[0]
    even = size & (size - 1) == 0 and all(other == size for other in sizes[:-1]) and sizes[-1] <= size
    return size.bit_length() - 1 if even else -1

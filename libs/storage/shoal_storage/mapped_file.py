"""Files in memory as far as they are read."""

from __future__ import annotations

import ctypes
import mmap
from functools import cache
from pathlib import Path

import pyarrow as pa

# Python's own mappings keep a descriptor open each; Arrow's do not, but cannot be advised on.


class MappedFile:
    """A file's content as a mapping that keeps no descriptor open, for as long as this or a buffer of it is held. Raises `OSError`.

    What is read of it is in memory until `forget`. Advice is taken where the system knows it.
    """

    def __init__(self, path: Path) -> None:
        with pa.memory_map(str(path)) as mapped:
            self._whole: pa.Buffer = mapped.read_buffer()

    def buffer(self) -> pa.Buffer:
        """The content."""
        return pa.foreign_buffer(self._whole.address, self._whole.size, base=self)

    def forget(self) -> None:
        """The process lets go of its pages; the system keeps them while it has room."""
        self._advise("MADV_DONTNEED")

    def expect_anywhere(self) -> None:
        """Reads are here and there: what follows need not be read too."""
        self._advise("MADV_RANDOM")

    def expect_in_order(self) -> None:
        """Reads are of what follows."""
        self._advise("MADV_NORMAL")

    def _advise(self, name: str) -> None:
        advice = getattr(mmap, name, None)
        if advice is not None and self._whole.size:
            _libc().madvise(ctypes.c_void_p(self._whole.address), ctypes.c_size_t(self._whole.size), advice)


@cache
def _libc() -> ctypes.CDLL:
    return ctypes.CDLL(None)

"""BLAS threads. Searches run in a thread each; BLAS threads on top of them only wait for each other.

Measured on two shared cores: a scan of 9,000 vectors of 384 dimensions takes 1.3 ms with one BLAS thread, 6 to 15 ms with two.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from threadpoolctl import ThreadpoolController


@contextmanager
def one_blas_thread() -> Iterator[None]:
    """One BLAS thread for this whole process, numpy's use elsewhere included, until the context ends."""
    with ThreadpoolController().limit(limits=1, user_api="blas"):
        yield

"""Which compiled kernels compute distances here, and whether this CPU can run them.

BLAS, numpy, Arrow and Shoal's own kernels are chosen when they are loaded. hnswlib, which builds graphs, has none to choose from:
installing it compiles it for the CPU at hand, so that an environment copied to an older one may hold instructions which that one
does not have.
"""

from __future__ import annotations

import signal
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pyarrow as pa
from threadpoolctl import threadpool_info

from shoal_core.errors import FailedPrecondition, Unavailable
from shoal_index.vector import native

_PROBE = "from shoal_index.vector import kernels; kernels.probe()"
_AGAIN = "run make setup here"
_PROBE_TIMEOUT_S = 60.0


def report() -> dict[str, str]:
    """By library, the kernels that run in this process: ``shoal``, ``blas``, ``numpy``, ``arrow`` and ``hnswlib``."""
    arrow = pa.runtime_info()
    simd = np.show_config(mode="dicts")["SIMD Extensions"]  # of the extensions compiled in, those that this CPU has
    return {
        "shoal": native.level(),
        "blas": _blas(),
        "numpy": f"{np.__version__}, {' '.join([*simd.get('baseline', []), *simd.get('found', [])]) or 'no SIMD'}",
        "arrow": f"{pa.__version__}, {arrow.simd_level} of {arrow.detected_simd_level}",
        "hnswlib": f"{version('hnswlib')}, native build: compiled for the CPU that installed it",
    }


def check(program: str = _PROBE) -> None:
    """Build and search a small graph in a child process, which an illegal instruction may kill. Takes about a second; blocks.

    Args:
        program: what the child runs.

    Raises:
        FailedPrecondition: the installed libraries do not run on this CPU, or do not answer right.
        Unavailable: the child did not end in time.
    """
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
            timeout=_PROBE_TIMEOUT_S,
        )
    except subprocess.TimeoutExpired as error:
        raise Unavailable(f"the check of the kernels did not end within {_PROBE_TIMEOUT_S:g} s; try again") from error
    if done.returncode == -signal.SIGILL:
        raise FailedPrecondition(f"the environment was compiled for another CPU: {_AGAIN}")
    if done.returncode:
        reason = (done.stderr.strip().splitlines() or [f"exit status {done.returncode}"])[-1]
        raise FailedPrecondition(f"the vector kernels do not work on this machine ({reason}): {_AGAIN}")


def probe() -> None:
    """What the child of `check` does: every vector of a small set must find itself, in every space."""
    from shoal_index.vector.column import VectorChunk, VectorColumn  # the imports alone may be what fails
    from shoal_index.vector.engine import SPACES
    from shoal_index.vector.hnsw import HnswIndex
    from shoal_index.vector.hnsw_build import GraphBuilder

    rows, dimension = 64, 37  # whole vector registers and a tail
    vectors = np.random.default_rng(0).standard_normal((rows, dimension)).astype(np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    column = VectorColumn([VectorChunk(vectors)], np.arange(rows, dtype=np.uint64))
    for space in SPACES:
        builder = GraphBuilder(column, space, threads=1)
        builder.add(np.arange(rows))
        found = HnswIndex(builder.graph(), column, space).search(vectors, 1, effort=rows, allowed=None, threads=1)
        if not np.array_equal(found.rows, np.arange(rows)):
            raise RuntimeError(f"a graph in space {space} gives wrong neighbours")


def _blas() -> str:
    """Library, version, kernels and threads of each BLAS that is loaded."""
    loaded = [info for info in threadpool_info() if info["user_api"] == "blas"]
    if not loaded:
        return "not found"
    return "; ".join(
        f"{info['internal_api']} {info['version']}, {info.get('architecture', 'unknown')}, threads: {info['num_threads']}"
        for info in loaded
    )

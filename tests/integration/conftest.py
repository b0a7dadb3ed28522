"""A real cluster for these tests, one for each worker: 3 query nodes, 2 of every other role, Postgres, etcd and S3, all processes."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import AsyncIterator
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import pytest_asyncio

from bench.datasets import wordnet384
from shoal_cli.local_cluster import ClusterPlan, LocalCluster

CACHE = Path(__file__).parents[2] / ".cache"


# Flush early and merge often: the faults of these tests are to hit compactions at work.
BUSY = {
    "SHOAL_COMPACTOR__MAX_AGE_MS": "500",
    "SHOAL_COMPACTOR__POLICY__FANOUT": "2",
    # For collections that name the default function; the others go without.
    "SHOAL_FRONTEND__EMBEDDING__FUNCTIONS": '{"minilm": {"kind": "default"}}',
}


@pytest_asyncio.fixture(scope="session", loop_scope="session")
async def cluster() -> AsyncIterator[LocalCluster]:
    """A running cluster; tests may kill its parts and must leave it running."""
    path = Path(tempfile.mkdtemp(prefix="shoal-cluster-"))
    running = LocalCluster(ClusterPlan(path, querynodes=3, environment=BUSY))
    await running.start()
    try:
        yield running
    finally:
        await running.stop()
        shutil.rmtree(path)


@pytest.fixture(scope="session")
def glosses() -> npt.NDArray[np.float32]:
    """20,000 vectors (384, unit length): 10,000 embedded glosses, and as many between pairs of them."""
    data = wordnet384(CACHE, limit=10_000)
    real = np.concatenate([data.base, data.queries])
    random = np.random.default_rng(7)
    between = real + 0.7 * real[random.permutation(len(real))]
    both = np.concatenate([real, between / np.linalg.norm(between, axis=1, keepdims=True)])
    return np.ascontiguousarray(both, dtype=np.float32)

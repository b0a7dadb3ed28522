"""faiss as a peer of the engines' benchmark: inverted lists with 4-bit product-quantised codes, a bitmap, exact rescoring."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import faiss
import numpy as np
import numpy.typing as npt

from bench.engine_datasets import EngineData

_PROBES = (2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)
_FACTORS = (4, 10, 30)

Search = Callable[[npt.NDArray[np.float32]], npt.NDArray[np.int64]]


def clusters(
    data: EngineData, queries: npt.NDArray[np.float32], recall_of: Callable[[Any, Any], float], k: int = 10
) -> Callable[[Any, float], Search | None]:
    """What finds the fastest setting of one index for a cell and a recall."""
    faiss.omp_set_num_threads(1)
    base = np.asarray(data.base)
    rows, dimension = base.shape
    unit = base / np.linalg.norm(base, axis=1, keepdims=True) if data.space == "cosine" else base
    metric = faiss.METRIC_L2 if data.space == "l2" else faiss.METRIC_INNER_PRODUCT
    lists = 1 << int(np.log2(4 * np.sqrt(rows)))
    index = faiss.index_factory(dimension, f"IVF{lists},PQ{dimension // 2}x4fs,RFlat", metric)
    index.train(unit[:: max(1, rows // (64 * lists))])
    index.add(unit)

    def at(cell: Any, recall: float) -> Search | None:
        selector = (
            None if cell.allowed is None else faiss.IDSelectorBitmap(np.packbits(cell.allowed, bitorder="little"))
        )
        for factor in _FACTORS:
            for probes in (n for n in _PROBES if n <= lists):
                inner = faiss.SearchParametersIVF(nprobe=probes, sel=selector)
                parameters = faiss.IndexRefineSearchParameters(k_factor=factor, base_index_params=inner)

                def search(asked: npt.NDArray[np.float32], parameters: Any = parameters) -> npt.NDArray[np.int64]:
                    lengths = np.linalg.norm(asked, axis=1, keepdims=True) if data.space == "cosine" else 1.0
                    return np.asarray(index.search(asked / lengths, k, params=parameters)[1])

                if recall_of(search(queries), cell.true[: len(queries)]) >= recall:
                    return search
        return None

    return at

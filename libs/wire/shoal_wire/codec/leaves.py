"""Ranked lists of one shard, and the statistics that weigh them ↔ protobuf."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from shoal_core.contracts import (
    DenseLeaf,
    Leaf,
    SparseLeaf,
    SparseStatistics,
    Statistics,
    StatisticsAnswer,
    TextLeaf,
    TextStatistics,
)
from shoal_core.errors import InvalidArgument
from shoal_core.schema import Analyzer
from shoal_wire.codec.common import decode_array, decode_served_at, encode_array, encode_served_at
from shoal_wire.v1 import query_pb2 as pb
from shoal_wire.v1 import types_pb2

# Bounds the work a message can cause. As many as there can be leaves in the expressions of one public request.
MAX_LEAVES = 20_000


def encode_analyzer(analyzer: Analyzer) -> types_pb2.Analyzer:
    """How text becomes terms, as a message."""
    return types_pb2.Analyzer(
        tokenizer=analyzer.tokenizer,
        language=analyzer.language,
        token_length=analyzer.token_length,
        has_stop_words=analyzer.stop_words is not None,
        stop_words=analyzer.stop_words,
    )


def decode_analyzer(message: types_pb2.Analyzer) -> Analyzer:
    """How text becomes terms."""
    stop_words = tuple(message.stop_words) if message.has_stop_words else None
    return Analyzer(message.tokenizer, message.language, message.token_length, stop_words)


def encode_leaf(leaf: Leaf) -> pb.Leaf:
    """A ranked list as a message."""
    match leaf:
        case DenseLeaf(vector, k):
            return pb.Leaf(k=k, dense=pb.Leaf.Dense(vector=encode_array(vector, np.float32)))
        case SparseLeaf(key, indices, values, k):
            sparse = pb.Leaf.Sparse(
                key=key, indices=encode_array(indices, np.uint32), values=encode_array(values, np.float64)
            )
            return pb.Leaf(k=k, sparse=sparse)
        case TextLeaf():
            text = pb.Leaf.Text(
                terms=leaf.terms,
                weights=encode_array(leaf.weights, np.float64),
                average_length=leaf.average_length,
                k1=leaf.k1,
                b=leaf.b,
                analyzer=encode_analyzer(leaf.analyzer),
            )
            return pb.Leaf(k=leaf.k, text=text)


def decode_leaves(messages: Sequence[pb.Leaf]) -> tuple[Leaf, ...]:
    """The ranked lists, arrays sharing the message's memory. Raises `InvalidArgument` naming the place at fault."""
    _check_count(messages, "leaves")
    return tuple(_decode_leaf(message, f"leaves[{index}]") for index, message in enumerate(messages))


def leaves_size_bytes(leaves: Sequence[Leaf]) -> int:
    """About the size of their messages."""
    return sum(leaf.vector.nbytes if isinstance(leaf, DenseLeaf) else 2 * _numbers(leaf).nbytes for leaf in leaves)


def encode_ask(ask: TextStatistics | SparseStatistics) -> pb.StatisticsAsk:
    """What statistics are asked for, as a message."""
    match ask:
        case TextStatistics(terms, analyzer):
            return pb.StatisticsAsk(text=pb.StatisticsAsk.Text(terms=terms, analyzer=encode_analyzer(analyzer)))
        case SparseStatistics(key, indices):
            return pb.StatisticsAsk(sparse=pb.StatisticsAsk.Sparse(key=key, indices=encode_array(indices, np.uint32)))


def decode_asks(messages: Sequence[pb.StatisticsAsk]) -> tuple[TextStatistics | SparseStatistics, ...]:
    """What statistics are asked for. Raises `InvalidArgument` naming the place at fault."""
    _check_count(messages, "asks")
    return tuple(_decode_ask(message, f"asks[{index}]") for index, message in enumerate(messages))


def encode_statistics_answer(answer: StatisticsAnswer) -> pb.ShardStatisticsAnswer:
    """Statistics as a message."""
    found = [
        pb.ShardStatisticsAnswer.Statistics(
            records=item.records, length=item.length, frequencies=encode_array(item.frequencies, np.int64)
        )
        for item in answer.statistics
    ]
    return pb.ShardStatisticsAnswer(statistics=found, served_at=encode_served_at(answer.served_at))


def decode_statistics_answer(message: pb.ShardStatisticsAnswer) -> StatisticsAnswer:
    """The statistics. Raises `InvalidArgument` for frequencies that are no int64."""
    found = tuple(
        Statistics(
            item.records, item.length, decode_array(item.frequencies, np.int64, f"statistics[{index}].frequencies")
        )
        for index, item in enumerate(message.statistics)
    )
    return StatisticsAnswer(found, decode_served_at(message.served_at))


def _decode_leaf(message: pb.Leaf, field: str) -> Leaf:
    match message.WhichOneof("query"):
        case "dense":
            return DenseLeaf(decode_array(message.dense.vector, np.float32, f"{field}.dense.vector"), message.k)
        case "sparse":
            indices = decode_array(message.sparse.indices, np.uint32, f"{field}.sparse.indices")
            values = decode_array(message.sparse.values, np.float64, f"{field}.sparse.values", indices.size)
            return SparseLeaf(message.sparse.key, indices, values, message.k)
        case "text":
            text = message.text
            terms = tuple(text.terms)
            weights = decode_array(text.weights, np.float64, f"{field}.text.weights", len(terms))
            analyzer = decode_analyzer(text.analyzer)
            return TextLeaf(terms, weights, message.k, text.average_length, text.k1, text.b, analyzer)
    raise InvalidArgument("a list without a query", field=field)


def _decode_ask(message: pb.StatisticsAsk, field: str) -> TextStatistics | SparseStatistics:
    match message.WhichOneof("ask"):
        case "text":
            return TextStatistics(tuple(message.text.terms), decode_analyzer(message.text.analyzer))
        case "sparse":
            indices = decode_array(message.sparse.indices, np.uint32, f"{field}.sparse.indices")
            return SparseStatistics(message.sparse.key, indices)
    raise InvalidArgument("neither a text nor a sparse key is asked about", field=field)


def _numbers(leaf: SparseLeaf | TextLeaf) -> Any:
    return leaf.values if isinstance(leaf, SparseLeaf) else leaf.weights


def _check_count(messages: Sequence[Any], field: str) -> None:
    if len(messages) > MAX_LEAVES:
        raise InvalidArgument(f"{len(messages)} of them, at most {MAX_LEAVES} in one request", field=field)

"""Rank expressions and searches ↔ protobuf."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from shoal_core.errors import InvalidArgument
from shoal_core.ranking import (
    Abs,
    DenseQuery,
    Div,
    Exp,
    GroupBy,
    Knn,
    Log,
    Max,
    Min,
    Mul,
    Rank,
    Search,
    Select,
    SparseQuery,
    Sub,
    Sum,
    TextQuery,
    Val,
)
from shoal_wire.codec.common import decode_array, decode_ids, encode_array, encode_ids
from shoal_wire.codec.filters import FilterDecoder, encode_filter
from shoal_wire.v1 import shoal_pb2 as pb

# These bound the work of one request; the limits of the model are for the validator. Protobuf refuses messages nested 100 deep,
# and a level of lists takes two of those.
MAX_SEARCHES = 1000
MAX_NODES = 20_000
MAX_DEPTH = 40

_LISTS: Mapping[str, type[Sum | Mul | Max | Min]] = {"sum": Sum, "mul": Mul, "max": Max, "min": Min}
_PAIRS: Mapping[str, type[Sub | Div]] = {"sub": Sub, "div": Div}
_SINGLES: Mapping[str, type[Abs | Exp | Log]] = {"abs": Abs, "exp": Exp, "log": Log}
_NAMES: Mapping[type, str] = {kind: name for kinds in (_LISTS, _PAIRS, _SINGLES) for name, kind in kinds.items()}


def encode_rank(rank: Rank) -> pb.Rank:
    """An expression as a message. Raises `InvalidArgument` for one beyond `MAX_DEPTH` or `MAX_NODES`."""
    message = pb.Rank()
    _encode_rank(rank, message, _Budget(), 1)
    return message


def decode_rank(message: pb.Rank, field: str = "rank") -> Rank:
    """The expression, vectors sharing the message's memory. Raises `InvalidArgument` naming the place at fault."""
    return _decode_rank(message, field, _Budget(), 1)


def encode_search(search: Search) -> pb.Search:
    """A search as a message. Raises `InvalidArgument`, see `encode_rank`."""
    select = search.select
    message = pb.Search(
        where=None if search.where is None else encode_filter(search.where),
        ids=encode_ids(search.ids),
        group_by=None if search.group_by is None else _encode_group_by(search.group_by),
        limit=search.limit,
        offset=search.offset,
        documents=select.documents,
        embeddings=select.embeddings,
        metadatas=select.metadatas,
        scores=select.scores,
        keys=select.keys,
        cursor=search.cursor,
    )
    if search.rank is not None:
        _encode_rank(search.rank, message.rank, _Budget(), 1)
    return message


def decode_searches(messages: Sequence[pb.Search]) -> list[Search]:
    """The searches of one request, which share its bounds. Raises `InvalidArgument` naming the place at fault."""
    if len(messages) > MAX_SEARCHES:
        raise InvalidArgument(f"{len(messages)} searches, at most {MAX_SEARCHES} in one request", field="searches")
    filters, budget = FilterDecoder(), _Budget()
    return [_decode_search(item, f"searches[{index}]", filters, budget) for index, item in enumerate(messages)]


class _Budget:
    """Counts the nodes of all expressions of a request."""

    def __init__(self) -> None:
        self._nodes = 0

    def spend(self, depth: int, field: str) -> None:
        self._nodes += 1
        if self._nodes > MAX_NODES:
            raise InvalidArgument(f"more than {MAX_NODES} nodes of rank expressions; send fewer searches", field=field)
        if depth > MAX_DEPTH:
            raise InvalidArgument(f"nested deeper than {MAX_DEPTH} levels", field=field)


def _encode_rank(rank: Rank, message: pb.Rank, budget: _Budget, depth: int) -> None:
    """Fill a message that is part of another: protobuf copies what is assigned to a field."""
    budget.spend(depth, "rank")
    match rank:
        case Knn():
            _encode_knn(rank, message.knn)
        case Val(value):
            message.val = value
        case Sum(children) | Mul(children) | Max(children) | Min(children):
            operands = getattr(message, _NAMES[type(rank)])
            operands.SetInParent()
            for child in children:
                _encode_rank(child, operands.children.add(), budget, depth + 1)
        case Sub(left, right) | Div(left, right):
            pair = getattr(message, _NAMES[type(rank)])
            _encode_rank(left, pair.left, budget, depth + 1)
            _encode_rank(right, pair.right, budget, depth + 1)
        case Abs(child) | Exp(child) | Log(child):
            _encode_rank(child, getattr(message, _NAMES[type(rank)]), budget, depth + 1)


def _encode_knn(knn: Knn, message: pb.Rank.Knn) -> None:
    match knn.query:
        case DenseQuery(vector):
            message.dense = encode_array(vector, np.float32)
        case SparseQuery(indices, values):
            message.sparse.indices = encode_array(indices, np.uint32)
            message.sparse.values = encode_array(values, np.float32)
            message.sparse.SetInParent()
        case TextQuery(text):
            message.text = text
    message.key = knn.key
    message.limit = knn.limit
    message.return_rank = knn.return_rank
    if knn.default is not None:
        message.default = knn.default


def _decode_rank(message: pb.Rank, field: str, budget: _Budget, depth: int) -> Rank:
    budget.spend(depth, field)
    name = message.WhichOneof("node")
    if name is None:
        raise InvalidArgument("an expression without content", field=field)
    if name == "knn":
        return _decode_knn(message.knn, f"{field}.$knn")
    if name == "val":
        return Val(message.val)
    node, place = getattr(message, name), f"{field}.${name}"
    if name in _LISTS:
        if not node.children:
            raise InvalidArgument("expected a non-empty list of expressions", field=place)
        items = enumerate(node.children)
        return _LISTS[name](tuple(_decode_rank(item, f"{place}[{index}]", budget, depth + 1) for index, item in items))
    if name in _PAIRS:
        left = _decode_rank(node.left, f"{place}.left", budget, depth + 1)
        return _PAIRS[name](left, _decode_rank(node.right, f"{place}.right", budget, depth + 1))
    return _SINGLES[name](_decode_rank(node, place, budget, depth + 1))


def _decode_knn(message: pb.Rank.Knn, field: str) -> Knn:
    return Knn(
        query=_decode_query(message, field),
        key=message.key,
        limit=message.limit,
        default=message.default if message.HasField("default") else None,
        return_rank=message.return_rank,
    )


def _decode_query(message: pb.Rank.Knn, field: str) -> DenseQuery | SparseQuery | TextQuery:
    match message.WhichOneof("query"):
        case "dense":
            return DenseQuery(decode_array(message.dense, np.float32, f"{field}.dense"))
        case "sparse":
            indices = decode_array(message.sparse.indices, np.uint32, f"{field}.sparse.indices")
            values = decode_array(message.sparse.values, np.float32, f"{field}.sparse.values", indices.size)
            return SparseQuery(indices, values)
        case "text":
            return TextQuery(message.text)
    raise InvalidArgument("give a vector, a sparse vector or a text", field=f"{field}.query")


def _encode_group_by(group_by: GroupBy) -> pb.GroupBy:
    return pb.GroupBy(keys=group_by.keys, aggregate=group_by.aggregate, k=group_by.k, largest=group_by.largest)


def _decode_group_by(message: pb.GroupBy) -> GroupBy:
    return GroupBy(tuple(message.keys), tuple(message.aggregate), message.k, message.largest)


def _decode_search(message: pb.Search, field: str, filters: FilterDecoder, budget: _Budget) -> Search:
    return Search(
        where=filters.decode(message.where, f"{field}.where") if message.HasField("where") else None,
        ids=decode_ids(message.ids, message.HasField("ids")),
        rank=_decode_rank(message.rank, f"{field}.rank", budget, 1) if message.HasField("rank") else None,
        group_by=_decode_group_by(message.group_by) if message.HasField("group_by") else None,
        limit=message.limit if message.HasField("limit") else None,
        offset=message.offset,
        select=Select(message.documents, message.embeddings, message.metadatas, message.scores, tuple(message.keys)),
        cursor=message.cursor,
    )

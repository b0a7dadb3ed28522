"""Filter trees ↔ protobuf."""

from __future__ import annotations

from shoal_core.errors import InvalidArgument
from shoal_core.filters import (
    And,
    Comparator,
    Compare,
    Exists,
    Filter,
    IdIn,
    ListContains,
    Membership,
    Or,
    Scalar,
    Text,
    TextMatcher,
)
from shoal_wire.v1 import types_pb2 as pb

# Trees are made node by node: what `messages.sized` should take a byte of a message for, and a value to encode.
_WORK_PER_BYTE = 256
_WORK_PER_VALUE = 3_000

# Bounds the work a message can cause. The limits of the model are `filters.check_size`.
MAX_NODES_AND_VALUES = 200_000

_COMPARATORS = {str(comparator): comparator for comparator in Comparator}
_MATCHERS = {str(matcher): matcher for matcher in TextMatcher}


def encode_filter(tree: Filter) -> pb.Filter:
    """A filter tree as a message. Raises `InvalidArgument` for integers beyond 64 bits."""
    match tree:
        case And(children):
            return pb.Filter(all_of=pb.Filter.List(children=[encode_filter(child) for child in children]))
        case Or(children):
            return pb.Filter(any_of=pb.Filter.List(children=[encode_filter(child) for child in children]))
        case Compare(key, comparator, value):
            return pb.Filter(compare=pb.Filter.Compare(key=key, comparator=comparator, value=_encode_scalar(value)))
        case Membership(key, values, negated):
            scalars = [_encode_scalar(value) for value in values]
            return pb.Filter(membership=pb.Filter.Membership(key=key, values=scalars, negated=negated))
        case ListContains(key, value, negated):
            scalar = _encode_scalar(value)
            return pb.Filter(list_contains=pb.Filter.ListContains(key=key, value=scalar, negated=negated))
        case Exists(key, expected):
            return pb.Filter(exists=pb.Filter.Exists(key=key, expected=expected))
        case IdIn(ids, negated):
            return pb.Filter(id_in=pb.Filter.IdIn(ids=ids, negated=negated))
        case Text(matcher, pattern):
            return pb.Filter(text=pb.Filter.Text(matcher=matcher, pattern=pattern))


def decode_filter(message: pb.Filter, field: str = "where") -> Filter:
    """The tree a message holds. Raises `InvalidArgument` naming the place of an unknown or missing node or operator.

    Depth needs no bound of its own: protobuf refuses messages nested 100 deep, which is 50 levels of filter.
    """
    return FilterDecoder().decode(message, field)


def decoding_work(message: pb.Filter) -> int:
    """The size in bytes of a message that takes about as long to copy as this one to decode."""
    return _WORK_PER_BYTE * message.ByteSize()


def encoding_work(tree: Filter | None) -> int:
    """The size in bytes of a message that takes about as long to copy as the tree to encode."""
    values, stack = 0, [] if tree is None else [tree]
    while stack:
        node = stack.pop()
        values += len(node.values) if isinstance(node, Membership) else 1
        stack.extend(node.children if isinstance(node, And | Or) else ())
    return _WORK_PER_VALUE * values


def _encode_scalar(value: Scalar) -> pb.Scalar:
    match value:
        case bool():
            return pb.Scalar(bool_value=value)
        case int():
            if not -(2**63) <= value < 2**63:
                raise InvalidArgument("integers are 64-bit signed", field="where")
            return pb.Scalar(int_value=value)
        case float():
            return pb.Scalar(float_value=value)
        case _:
            return pb.Scalar(string_value=value)


class FilterDecoder:
    """Decodes the trees of one request, counting what it has decoded. See `decode_filter`."""

    def __init__(self) -> None:
        self._count = 0

    def decode(self, message: pb.Filter, field: str) -> Filter:
        self._spend(1)
        match message.WhichOneof("node"):
            case "all_of":
                return And(self._children(message.all_of, f"{field}.$and"))
            case "any_of":
                return Or(self._children(message.any_of, f"{field}.$or"))
            case "compare":
                return self._compare(message.compare, field)
            case "membership":
                node = message.membership
                self._spend(len(node.values))
                return Membership(node.key, tuple(_scalar(value, field) for value in node.values), node.negated)
            case "list_contains":
                item = message.list_contains
                return ListContains(item.key, _scalar(item.value, field), item.negated)
            case "exists":
                return Exists(message.exists.key, message.exists.expected)
            case "id_in":
                return IdIn(tuple(message.id_in.ids), message.id_in.negated)
            case "text":
                matcher = _MATCHERS.get(message.text.matcher)
                if matcher is None:
                    raise InvalidArgument(
                        f"unknown operator; one of {', '.join(TextMatcher)}", field=f"{field}.text.matcher"
                    )
                return Text(matcher, message.text.pattern)
        raise InvalidArgument("a condition without content", field=field)

    def _children(self, message: pb.Filter.List, field: str) -> tuple[Filter, ...]:
        if not message.children:
            raise InvalidArgument("expected a non-empty list of conditions", field=field)
        return tuple(self.decode(child, f"{field}[{index}]") for index, child in enumerate(message.children))

    def _compare(self, message: pb.Filter.Compare, field: str) -> Compare:
        comparator = _COMPARATORS.get(message.comparator)
        if comparator is None:
            raise InvalidArgument(
                f"unknown operator; one of {', '.join(Comparator)}", field=f"{field}.compare.comparator"
            )
        return Compare(message.key, comparator, _scalar(message.value, field))

    def _spend(self, count: int) -> None:
        self._count += count
        if self._count > MAX_NODES_AND_VALUES:
            raise InvalidArgument(f"more than {MAX_NODES_AND_VALUES} conditions and values", field="where")


def _scalar(message: pb.Scalar, field: str) -> Scalar:
    match message.WhichOneof("value"):
        case "string_value":
            return message.string_value
        case "int_value":
            return message.int_value
        case "float_value":
            return message.float_value
        case "bool_value":
            return message.bool_value
    raise InvalidArgument("a comparison needs a value", field=field)

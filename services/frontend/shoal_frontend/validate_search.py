"""Checks of searches before any shard is asked. They also come as trees, past the parser of the JSON form.

Filters and ids are checked like those of other reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.rank_json import check_group_by, check_rank, check_selected, placed_leaves
from shoal_core.ranking import DenseQuery, Knn, Search, SparseQuery, TextQuery, leaves_of
from shoal_core.schema import DOCUMENT_KEY, Index
from shoal_frontend import validate
from shoal_frontend.indexed import check_indexed, index_off
from shoal_frontend.search_texts import text_of
from shoal_frontend.validate_filter import check_selection, takes_long

_FEW = 4


def searches_take_long(searches: Sequence[Search]) -> bool:
    """Whether `check_searches` would hold up the event loop."""
    return len(searches) > _FEW or any(takes_long(item.ids, item.where) for item in searches)


def check_searches(searches: Sequence[Search], limits: Limits, *, embeds: bool = False) -> None:
    """Raise `InvalidArgument`, naming the place, for what no collection can answer.

    Args:
        embeds: the server makes vectors of texts that are compared with embeddings.
    """
    if not 1 <= len(searches) <= limits.searches:
        raise InvalidArgument(f"{len(searches)}; 1 to {limits.searches} in one call are allowed", field="searches")
    for item, place in _placed(searches):
        _check_search(item, limits, place, embeds=embeds)
    size = sum(_texts_size_bytes(item) for item in searches)
    if size > limits.document_size_bytes:
        raise InvalidArgument(
            f"texts of {size} bytes, at most {limits.document_size_bytes} in one call; send fewer searches",
            field="searches",
        )


def _check_search(item: Search, limits: Limits, place: str, *, embeds: bool) -> None:
    with _within(place):
        check_selection(item.ids, item.where, limits)
        validate.check_page(item.limit, item.offset, limits.get_results)
    check_selected(item.select.keys, limits, f"{place}.select.keys")
    if item.rank is not None:
        check_rank(item.rank, limits, f"{place}.rank")
        for leaf, where in placed_leaves(item.rank, f"{place}.rank"):
            if not embeds and text_of(leaf) is not None:
                message = f"this server embeds no texts (frontend.embedding); send a vector, or rank by {DOCUMENT_KEY}"
                raise InvalidArgument(message, field=f"{where}.$knn.query")
    if item.group_by is None:
        return
    if item.rank is None:
        raise InvalidArgument("the best of a group needs a rank", field=f"{place}.group_by")
    check_group_by(item.group_by, limits, f"{place}.group_by")


def _texts_size_bytes(item: Search) -> int:
    leaves = () if item.rank is None else leaves_of(item.rank)
    texts = [leaf.query.text for leaf in leaves if isinstance(leaf.query, TextQuery)]
    return sum(len(text.encode(errors="replace")) for text in texts)


def check_searched(
    searches: Sequence[Search], collection: Collection, limits: Limits, *, allow_scan: bool = False
) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch`, naming the place, for what this collection cannot answer.

    Args:
        allow_scan: read all records where an index is off, instead of refusing.
    """
    for item, place in _placed(searches):
        with _within(place):
            check_indexed(item.where, collection.schema, allow_scan=allow_scan)
        if item.rank is None:
            continue
        for leaf, where in placed_leaves(item.rank, f"{place}.rank"):
            _check_leaf(leaf, collection, limits, f"{where}.$knn", allow_scan)


def _placed(searches: Sequence[Search]) -> Iterator[tuple[Search, str]]:
    return ((item, f"searches[{number}]") for number, item in enumerate(searches))


@contextmanager
def _within(place: str) -> Iterator[None]:
    """Errors of what searches share with other reads, placed within one search: there documents are a key of its filter."""
    try:
        yield
    except InvalidArgument as error:
        field = error.field.replace("where_document", f"where.{DOCUMENT_KEY}", 1)
        raise type(error)(error.message, field=f"{place}.{field}") from error


def _check_leaf(leaf: Knn, collection: Collection, limits: Limits, place: str, allow_scan: bool) -> None:
    if isinstance(leaf.query, DenseQuery):
        try:
            validate.check_vectors(leaf.query.vector[None], collection.dimension, limits)
        except InvalidArgument as error:
            raise type(error)(error.message, field=f"{place}.query") from error
        return
    if text_of(leaf) is not None:
        return
    index = Index.SPARSE if isinstance(leaf.query, SparseQuery) else Index.RANKED
    if not allow_scan and not collection.schema.enabled(leaf.key, index):
        raise index_off(leaf.key, index, f"{place}.key")

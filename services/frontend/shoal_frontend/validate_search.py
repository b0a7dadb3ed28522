"""Checks of searches before any shard is asked. They also come as trees, past the parser of the JSON form.

Filters and ids are checked like those of other reads.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from shoal_core.contracts import Collection
from shoal_core.errors import InvalidArgument
from shoal_core.limits import Limits
from shoal_core.rank_json import check_group_by, check_rank, check_select, placed_leaves
from shoal_core.ranking import DenseQuery, Knn, Search, SparseQuery
from shoal_core.schema import DOCUMENT_KEY, Index
from shoal_frontend import validate


def check_searches(searches: Sequence[Search], limits: Limits) -> None:
    """Raise `InvalidArgument`, naming the place, for what no collection can answer."""
    if not 1 <= len(searches) <= limits.searches:
        raise InvalidArgument(f"{len(searches)}; 1 to {limits.searches} in one call are allowed", field="searches")
    for item, place in _placed(searches):
        validate.check_page(item.limit, 0, limits.get_results, f"{place}.limit")
        if item.offset < 0:
            raise InvalidArgument(f"{item.offset} is negative", field=f"{place}.offset")
        check_select(item.select, limits, f"{place}.select")
        if item.rank is not None:
            check_rank(item.rank, limits, f"{place}.rank")
        if item.group_by is None:
            continue
        if item.rank is None:
            raise InvalidArgument("the best of a group needs a rank", field=f"{place}.group_by")
        check_group_by(item.group_by, limits, f"{place}.group_by")


def check_searched(
    searches: Sequence[Search], collection: Collection, limits: Limits, *, allow_scan: bool = False
) -> None:
    """Raise `InvalidArgument` or `DimensionMismatch`, naming the place, for what this collection cannot answer.

    Args:
        allow_scan: read all records where an index is off, instead of refusing.
    """
    for item, place in _placed(searches):
        if item.rank is None:
            continue
        for leaf, where in placed_leaves(item.rank, f"{place}.rank"):
            _check_leaf(leaf, collection, limits, f"{where}.$knn", allow_scan)


def _placed(searches: Sequence[Search]) -> Iterator[tuple[Search, str]]:
    return ((item, f"searches[{number}]") for number, item in enumerate(searches))


def _check_leaf(leaf: Knn, collection: Collection, limits: Limits, place: str, allow_scan: bool) -> None:
    if isinstance(leaf.query, DenseQuery):
        try:
            validate.check_vectors(leaf.query.vector[None], collection.dimension, limits)
        except InvalidArgument as error:
            raise type(error)(error.message, field=f"{place}.query") from error
        return
    index = Index.SPARSE if isinstance(leaf.query, SparseQuery) else Index.RANKED
    if allow_scan or collection.schema.enabled(leaf.key, index):
        return
    what = "documents" if leaf.key == DOCUMENT_KEY else f"{leaf.key!r}"
    raise InvalidArgument(
        f"the index {index} of {what} is off; turn it on in the schema or allow a scan", field=f"{place}.key"
    )

"""Metadata by record: records of the same keys take a shorter way to the same columns."""

from __future__ import annotations

from typing import Any

import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument
from shoal_core.metadata import metadata_columns
from shoal_testing.strategies import QUICK

values = st.one_of(st.none(), st.booleans(), st.integers(-5, 5), st.floats(-1, 1), st.sampled_from(["", "a"]))
records = st.lists(st.sampled_from(["k", "l", "m"]), unique=True).flatmap(
    lambda keys: st.lists(st.fixed_dictionaries(dict.fromkeys(keys, values)), min_size=1, max_size=6)
)


def columns(metadatas: list[Any]) -> Any:
    try:
        return metadata_columns(metadatas, len(metadatas), deletes=True)
    except InvalidArgument as error:
        return str(error)


@QUICK
@given(metadatas=records)
def test_records_of_the_same_keys_become_the_same_columns(metadatas: list[dict[str, Any]]) -> None:
    found, longer = columns(metadatas), columns([*metadatas, None])
    if isinstance(longer, str):
        assert found == longer
    else:
        assert found == {name: pa.concat_arrays([column[:-1]]) for name, column in longer.items()}


@pytest.mark.parametrize("wrong", [{"": 1}, {"#k": 1}, {1: 1}])
def test_keys_are_checked_on_the_shorter_way_too(wrong: dict[Any, Any]) -> None:
    with pytest.raises(InvalidArgument):
        metadata_columns([wrong, wrong], 2, deletes=True)

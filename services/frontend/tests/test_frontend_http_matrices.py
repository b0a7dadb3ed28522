"""Matrices of JSON bodies: what is parsed apart is exactly what the general parser gives, and all else is left to it."""

from __future__ import annotations

import json
from binascii import a2b_base64
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shoal_core.errors import InvalidArgument, ShoalError
from shoal_frontend.http_api.bodies import parse
from shoal_frontend.http_api.body_error import BodyError
from shoal_frontend.http_api.matrices import parse_with_matrix
from shoal_frontend.http_api.vectors import parse_vectors
from shoal_testing.strategies import QUICK, examples

NAME = "embeddings"

numbers = st.one_of(
    st.floats(allow_nan=False, allow_infinity=False),
    st.floats(width=32, allow_nan=False, allow_infinity=False),
    st.integers(-(2**63), 2**64 - 1),
    st.sampled_from((0, -0.0, 1e-45, 3.4028235e38, 3.5e38, 2**53 + 1, 1e308, 5e-324)),
)
matrices = st.integers(1, 4).flatmap(
    lambda width: st.lists(st.lists(numbers, min_size=width, max_size=width), min_size=1, max_size=5)
)
spaces = st.text(" \t\r\n", max_size=2)


def made(body: bytes, matrix: str) -> Any:
    """What a body says of its vectors, or what is wrong with it."""
    try:
        return parse(body, lambda value: parse_vectors(value.get(NAME), NAME), matrix)
    except (ShoalError, BodyError) as error:
        return type(error), str(error.message)


def spelled(value: Any, space: str) -> str:
    """JSON with spaces around everything."""
    if isinstance(value, list):
        return f"{space}[{space}{f'{space},{space}'.join(spelled(item, space) for item in value)}{space}]{space}"
    return json.dumps(value)


@QUICK
@given(matrix=matrices, space=spaces)
def test_a_matrix_is_what_the_general_parser_gives(matrix: list[list[float]], space: str) -> None:
    body = f'{{"ids":["a","[]"],"{NAME}"{space}:{spelled(matrix, space)},"more":{{"x":[1]}}}}'.encode()
    found = parse_with_matrix(body, NAME)
    assert found is not None
    with np.errstate(over="ignore"):
        expected = np.array(orjson.loads(body)[NAME], np.float32)
    np.testing.assert_array_equal(found.pop(NAME), expected)
    assert found == {"ids": ["a", "[]"], "more": {"x": [1]}}


@pytest.mark.parametrize("rows", [1, 2, 3, 7, 1000])
@pytest.mark.parametrize("width", [1, 3, 2000])
def test_matrices_of_several_pieces_are_whole(rows: int, width: int) -> None:
    matrix = np.random.default_rng(rows * width).standard_normal((rows, width)).astype(np.float32)
    body = orjson.dumps({NAME: matrix, "ids": []}, option=orjson.OPT_SERIALIZE_NUMPY)
    found = parse_with_matrix(body, NAME)
    assert found is not None
    assert found[NAME].dtype == np.float32
    np.testing.assert_array_equal(found[NAME], matrix)


FRAGMENTS = (
    "[",
    "]",
    "{",
    "}",
    ",",
    ":",
    " ",
    "1",
    "-1.5e3",
    "01",
    "1.",
    "NaN",
    "null",
    "true",
    '"x"',
    '"]"',
    '"embeddings"',
    '"\\u0065mbeddings"',
    '"here was the matrix"',
    '"embeddings":[[1,2],[3,4]]',
    '{"embeddings":[[1]]}',
    '"ids":["embeddings"]',
    "[1,2]",
    "[[1],[2]]",
    "[]",
    "1e400",
    "18446744073709551616",
    "123456789012345678901234567890",
)


@examples(2_000)
@given(
    parts=st.lists(st.sampled_from(FRAGMENTS), max_size=8), frame=st.sampled_from(("%s", "{%s}", '{"embeddings":[%s]}'))
)
@example(parts=["[1]", "]", ',"x":{"embeddings":[[2]'], frame='{"embeddings":[%s}')
@example(parts=['"\\u0065mbeddings":"here was the matrix","x":{"embeddings":[[1]]}'], frame="{%s}")
@example(parts=['"embeddings":[[1]],"embeddings":[[2]]'], frame="{%s}")
def test_bodies_mean_the_same_with_and_without(parts: list[str], frame: str) -> None:
    body = (frame % "".join(parts)).encode()
    plain, apart = made(body, ""), made(body, NAME)
    if isinstance(plain, tuple) or plain is None:
        assert apart == plain
    else:
        np.testing.assert_array_equal(apart.matrix, plain.matrix)
        np.testing.assert_array_equal(apart.valid, plain.valid)


@QUICK
@given(text=st.text("AQg+/-_= \n\u00e9", max_size=12))
@example(text="AAAAAA==")
@example(text="AAAAAB==")
@example(text="AAAA=AAA")
@example(text="AAAA====")
def test_texts_are_base64_exactly_where_the_standard_library_says_so(text: str) -> None:
    try:
        expected: Any = a2b_base64(text, strict_mode=True)
    except ValueError as error:
        expected = f"Validation error: {NAME}: not base64: {error}"
    body = orjson.dumps({NAME: [text]})
    found = made(body, NAME)
    if isinstance(expected, str):
        assert found == (InvalidArgument, expected)
    elif isinstance(found, tuple):
        assert len(expected) % 4 or not expected, found
    else:
        assert found.matrix.tobytes() == expected


@pytest.mark.parametrize(
    "body",
    [
        '{"embeddings":[[1,2],[3]]}',
        '{"embeddings":[[]]}',
        '{"embeddings":[]}',
        '{"embeddings":[[[1]]]}',
        '{"embeddings":[[1],2]}',
        '{"embeddings":[[1],123456789012345678901234567890,[2]]}',
        '{"embeddings":[[1,123456789012345678901234567890]]}',
        '{"embeddings":[["AAAA"]]}',
        '{"embeddings":["AAAA"]}',
        '{"embeddings":[[1],null]}',
        '{"embeddings":[[true]]}',
        '{"embeddings":[[1] [2]]}',
        '{"embeddings":[[1],[2]],}',
        '{"embeddings":[[1],[2]]',
        '{"embeddings":[[1],[2]',
        '{"x":{"embeddings":[[1]]}}',
        '{"embeddings":[[1]],"embeddings":[[2]]}',
        '[{"embeddings":[[1]]}]',
        "",
        "{}",
    ],
)
def test_anything_else_is_left_to_the_general_parser(body: str) -> None:
    assert parse_with_matrix(body.encode(), NAME) is None

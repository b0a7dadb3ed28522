"""Schemas of bodies and parsers say the same: what the schemas do not allow is refused, what they allow is of the right types."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from typing import Any

import jsonschema
import pytest

from services.frontend.tests.frontend_http_support import Site
from shoal_frontend.http_api.body_schemas import SCHEMAS
from shoal_frontend.http_api.openapi import body_name

# Routes whose bodies are not read, and those whose parsers other tests compare.
WITHOUT_BODY = {"/api/v2/reset"}
VALUES: tuple[Any, ...] = (
    None,
    True,
    -1,
    0,
    3,
    2**32,
    0.5,
    "",
    "text",
    [],
    [None],
    [0.5],
    ["text"],
    [[]],
    {},
    {"text": 1},
    {"$and": []},
)


async def described() -> tuple[Site, dict[str, Any]]:
    site = await Site().start("fishes")
    return site, (await site.http("GET", "/openapi.json")).json


def routes(openapi: dict[str, Any]) -> list[tuple[str, str]]:
    """Methods and paths of the routes with bodies."""
    return [
        (method.upper(), path)
        for path, methods in openapi["paths"].items()
        for method in methods
        if method in ("post", "put", "patch") and path not in WITHOUT_BODY
    ]


def validator(name: str) -> jsonschema.Draft202012Validator:
    return jsonschema.Draft202012Validator(
        {"$ref": f"#/components/schemas/{name}", "components": {"schemas": copy.deepcopy(dict(SCHEMAS))}}
    )


async def test_every_body_is_described() -> None:
    _, openapi = await described()
    missing = [(method, path) for method, path in routes(openapi) if body_name(method, path) not in SCHEMAS]
    assert missing == []
    assert openapi["components"]["schemas"].keys() >= SCHEMAS.keys()
    jsonschema.Draft202012Validator.check_schema({"$defs": openapi["components"]["schemas"]})
    names = {json.dumps(part) for part in _parts(openapi) if isinstance(part, dict) and "$ref" in part}
    assert {json.loads(name)["$ref"].rpartition("/")[2] for name in names} <= openapi["components"]["schemas"].keys()


def _parts(value: Any) -> Iterator[Any]:
    yield value
    children = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
    for child in children:
        yield from _parts(child)


def changed(body: Any) -> Iterator[Any]:
    """The body with one part left out, replaced by another value, or added, at every place."""
    if isinstance(body, dict):
        yield {**body, "text": 1}
        places: Any = [*body]
    elif isinstance(body, list):
        places = range(len(body))
    else:
        return
    for place in places:
        without = body.copy()
        del without[place]
        yield without
        for value in (*VALUES, *changed(body[place])):
            other = body.copy()
            other[place] = value
            yield other


@pytest.mark.parametrize("name", sorted(name for name, schema in SCHEMAS.items() if "examples" in schema))
async def test_the_schema_and_the_parser_agree(name: str) -> None:
    site, openapi = await described()
    check = validator(name)
    used = [(method, path) for method, path in routes(openapi) if body_name(method, path) == name]
    assert used
    for method, path in used:
        filled = path.format(tenant="default_tenant", database="default_database", collection=site.id)
        for example in SCHEMAS[name]["examples"]:
            assert check.is_valid(example)
            refused = 0
            for body in changed(example):
                answer = await site.http(method, filled, body)
                assert answer.status < 500, (body, answer.body)
                if check.is_valid(body):
                    assert answer.status != 422, (body, answer.body)
                else:
                    assert 400 <= answer.status < 500, (body, answer.body)
                    refused += 1
            assert refused > 3


@pytest.mark.parametrize("name", sorted(name for name, schema in SCHEMAS.items() if "examples" in schema))
async def test_examples_are_accepted(name: str) -> None:
    site, openapi = await described()
    for method, path in routes(openapi):
        if body_name(method, path) != name:
            continue
        filled = path.format(tenant="default_tenant", database="default_database", collection=site.id)
        for example in SCHEMAS[name]["examples"]:
            answer = await site.http(method, filled, example)
            assert answer.status in (200, 201), answer.body

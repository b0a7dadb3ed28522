"""The gateway as a whole: its routes, its errors, listing by pages, and what is refused."""

from __future__ import annotations

import json
import logging
import threading
import uuid
from typing import Any

import pytest

from services.frontend.tests.frontend_http_support import Site, T, http_of
from shoal_core import errors
from shoal_core.errors import ShoalError
from shoal_core.limits import Limits
from shoal_frontend.http_api import catalog_routes
from shoal_frontend.http_api.bodies import LARGE_BYTES
from shoal_frontend.http_api.errors import INTERNAL, answer_of, reworded
from shoal_frontend.http_api.gateway import Readiness
from shoal_frontend.http_api.shapes import modification
from shoal_testing.direct import DirectSystem
from shoal_testing.schedules import hooked

ID = str(uuid.UUID(int=7))


# --- errors


@pytest.mark.parametrize(
    ("error", "status", "name"),
    [
        (errors.InvalidArgument, 400, "InvalidArgumentError"),
        (errors.DimensionMismatch, 400, "InvalidArgumentError"),
        (errors.Unauthenticated, 401, "ChromaError"),
        (errors.PermissionDenied, 403, "ChromaError"),
        (errors.NotFound, 404, "NotFoundError"),
        (errors.AlreadyExists, 409, "ChromaError"),
        (errors.WriteConflict, 409, "ConditionalWriteConflictError"),
        (errors.VersionConflict, 409, "ChromaError"),
        (errors.StaleRead, 412, "StaleReadError"),
        (errors.OffsetExpired, 412, "ChromaError"),
        (errors.BackPressure, 429, "Backoff"),
        (errors.Internal, 500, "InternalError"),
        (errors.Corrupt, 500, "InternalError"),
        (errors.Unimplemented, 501, "ChromaError"),
        (errors.Unavailable, 503, "ChromaError"),
        (errors.StaleEpoch, 503, "ChromaError"),
        (errors.SnapshotGone, 503, "ChromaError"),
        (errors.DeadlineExceeded, 504, "ChromaError"),
        (errors.OutcomeUnknown, 504, "ChromaError"),
    ],
)
def test_errors_have_the_status_and_name_that_clients_know(error: type[ShoalError], status: int, name: str) -> None:
    message = INTERNAL if status == 500 else "place: because"
    assert answer_of(error("because", field="place")) == (status, {"error": name, "message": message})


def test_every_error_has_an_answer() -> None:
    for name, error in errors.error_types().items():
        status, body = answer_of(error("because"))
        assert 400 <= status < 600, name
        assert set(body) == {"error", "message"}


def test_reworded_errors_keep_what_they_are_and_how_long_to_wait() -> None:
    with pytest.raises(errors.BackPressure) as caught, reworded(errors.ResourceExhausted, "slower"):
        raise errors.BackPressure("full", field="batch", retry_after_ms=9)
    assert (str(caught.value), caught.value.retry_after_ms) == ("slower", 9)
    with pytest.raises(errors.NotFound), reworded(errors.AlreadyExists, "there"):
        raise errors.NotFound("other errors pass")


class Failing:
    """Verbs that all fail."""

    def __init__(self, error: Exception) -> None:
        self.error = error

    def __getattr__(self, name: str) -> Any:
        async def fail(*args: Any, **kwargs: Any) -> Any:
            raise self.error

        return fail


def failing(error: Exception) -> Any:
    return http_of(Failing(error), DirectSystem())


async def test_back_pressure_says_how_long_to_wait() -> None:
    http = failing(errors.BackPressure("too much", retry_after_ms=1_200))
    answer = await http("POST", f"{T}/collections/{ID}/add", {"ids": ["a"], "embeddings": [[1]]})
    assert answer.error == (429, "Backoff", "too much")
    assert answer.headers["retry-after"] == "2"


async def test_defects_are_logged_under_the_trace_id_and_not_told(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.ERROR, "shoal_frontend.http_api"):
        answer = await failing(ZeroDivisionError("secret"))("GET", f"{T}/collections/{ID}/count")
    assert answer.error == (500, "InternalError", INTERNAL)
    assert answer.headers["chroma-trace-id"] in caplog.text
    assert "ZeroDivisionError" in caplog.text


async def test_who_goes_in_the_middle_of_a_body_is_no_defect(caplog: pytest.LogCaptureFixture) -> None:
    site = await Site().start()
    answer = await site.http("POST", f"{T}/collections/{site.id}/add", connected=False)
    assert (answer.status, answer.body, caplog.text) == (400, b"", "")


async def test_a_collection_that_goes_while_it_is_written_to_is_missing() -> None:
    answer = await failing(errors.NotFound("gone"))(
        "POST", f"{T}/collections/{ID}/upsert", {"ids": [], "embeddings": []}
    )
    assert answer.error == (404, "NotFoundError", f"Collection [{ID}] does not exist.")


async def test_ids_of_any_spelling_are_ids() -> None:
    site = await Site().start()
    for spelled in (site.id.upper(), site.id.replace("-", "")):
        assert (await site.http("GET", f"{T}/collections/{spelled}/count")).json == 0
        assert (await site.http("GET", f"{T}/collections/by-id/{spelled}")).json["id"] == site.id


async def test_a_collection_is_found_in_its_own_database_only() -> None:
    site = await Site().start()
    elsewhere = "/api/v2/tenants/default_tenant/databases/other"
    await site.http("POST", "/api/v2/tenants/default_tenant/databases", {"name": "other"})
    assert (await site.http("GET", f"{elsewhere}/collections/{site.id}/count")).status == 404
    assert (await site.http("GET", f"{elsewhere}/collections/by-id/{site.id}")).status == 404


# --- the server itself


async def test_what_clients_ask_before_they_begin() -> None:
    system = DirectSystem()
    http = http_of(system.database, system, limits=Limits(batch_records=77))
    now = {"nanosecond heartbeat": system.clock.time_ns()}
    assert (await http("GET", "/api/v2")).json == now
    assert (await http("GET", "/health")).body == b"ok\n"
    assert (await http("GET", "/api/v2/version")).json == "1.0.0"
    checks = (await http("GET", "/api/v2/pre-flight-checks")).json
    assert checks == {"max_batch_size": 77, "supports_base64_encoding": True}
    identity = (await http("GET", "/api/v2/auth/identity")).json
    assert identity == {"user_id": "", "tenant": "default_tenant", "databases": ["default_database"]}


async def test_a_server_that_is_not_ready_says_what_is_missing() -> None:
    system = DirectSystem()
    answer = await http_of(system.database, system, readiness=lambda: Readiness(executor=False))(
        "GET", "/api/v2/healthcheck"
    )
    assert (answer.status, answer.json) == (503, {"is_executor_ready": False, "is_log_client_ready": True})


async def test_reset_is_refused_unless_allowed() -> None:
    system = DirectSystem()
    http = http_of(system.database, system)
    await system.create()
    assert (await http("POST", "/api/v2/reset")).error[:2] == (403, "ChromaError")
    assert (await http("GET", f"{T}/collections_count")).json == 1
    system.database.allow_reset = True
    allowed = await http("POST", "/api/v2/reset")
    assert (allowed.status, allowed.json) == (200, True)
    assert (await http("GET", f"{T}/collections_count")).json == 0


@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "DELETE", "PATCH"])
async def test_version_1_is_gone(method: str) -> None:
    system = DirectSystem()
    answer = await http_of(system.database, system)(method, "/api/v1/collections/x/add")
    assert answer.error == (410, "Unimplemented", "The v1 API is deprecated. Please use /v2 apis")


async def test_the_description_names_every_route() -> None:
    system = DirectSystem()
    http = http_of(system.database, system)
    assert (await http("GET", "/docs")).status == 200
    described = json.loads((await http("GET", "/openapi.json")).body)["paths"]
    add = described["/api/v2/tenants/{tenant}/databases/{database}/collections/{collection}/add"]["post"]
    assert [item["name"] for item in add["parameters"]] == ["tenant", "database", "collection"]
    operations = [operation["operationId"] for path in described.values() for operation in path.values()]
    assert len(operations) == len(set(operations)) == 40


async def test_trace_ids_differ() -> None:
    system = DirectSystem()
    http = http_of(system.database, system)
    found = {(await http("GET", path)).headers["chroma-trace-id"] for path in ("/api/v2", "/nowhere", "/docs")}
    assert len(found) == 3


# --- the catalog


async def test_listing_goes_through_all_pages_up_to_the_limit() -> None:
    system = DirectSystem()
    http = http_of(system.database, system, limits=Limits(page_size=3))
    names = [f"name{number}" for number in range(7)]
    for name in names:
        assert (await http("POST", f"{T}/collections", {"name": name})).status == 200

    async def listed(query: str) -> list[str]:
        return [item["name"] for item in (await http("GET", f"{T}/collections{query}")).json]

    assert await listed("") == names
    assert await listed("?limit=4") == names[:4]
    assert await listed("?limit=3&offset=5") == names[5:]
    assert await listed("?limit=0") == []
    assert await listed("?offset=9") == []
    for number in range(4):
        await http("POST", "/api/v2/tenants/default_tenant/databases", {"name": f"db{number}"})
    databases = (await http("GET", "/api/v2/tenants/default_tenant/databases?offset=1")).json
    assert [item["name"] for item in databases] == ["db1", "db2", "db3", "default_database"]


async def test_a_list_is_bounded_and_pages_of_more_are_not() -> None:
    system = DirectSystem()
    http = http_of(system.database, system, limits=Limits(page_size=3, list_length=5))
    for number in range(5):
        await http("POST", f"{T}/collections", {"name": f"coll{number}"})
    assert len((await http("GET", f"{T}/collections")).json) == 5
    await http("POST", f"{T}/collections", {"name": "another"})
    message = "limit: there are more than 5; ask for pages by limit and offset"
    for query in ("", "?limit=6", "?limit=100"):
        assert (await http("GET", f"{T}/collections{query}")).error == (400, "InvalidArgumentError", message)
    assert len((await http("GET", f"{T}/collections?limit=5")).json) == 5
    assert len((await http("GET", f"{T}/collections?offset=5")).json) == 1


@pytest.mark.parametrize("query", ["limit=-1", "limit=x", "offset=1.5", "limit=4294967296", "offset="])
async def test_pages_that_are_no_numbers_are_refused(query: str) -> None:
    site = await Site().start()
    answer = await site.http("GET", f"{T}/collections?{query}")
    assert answer.error[:2] == (400, "InvalidArgumentError")
    assert "Failed to deserialize query string: " in answer.error[2]


@pytest.mark.parametrize(
    ("body", "problem"),
    [
        ({}, "missing field `name` at line 1 column 2"),
        ({"name": 5}, "name: invalid type: integer `5`, expected a string at line 1 column 9"),
    ],
)
async def test_what_is_created_needs_a_name(body: Any, problem: str) -> None:
    site = await Site().start()
    message = f"Failed to deserialize the JSON body into the target type: {problem}"
    for path in ("/api/v2/tenants", "/api/v2/tenants/default_tenant/databases", f"{T}/collections"):
        assert (await site.http("POST", path, body)).error == (422, "ChromaError", message)


async def test_names_that_nothing_can_have_are_refused_not_failed() -> None:
    site = await Site().start()
    long, nul = "x" * 600, "a\0b"
    for name in (long, nul, "..", "1.2.3.4"):
        for path in ("/api/v2/tenants/default_tenant/databases", f"{T}/collections"):
            assert (await site.http("POST", path, {"name": name})).error[:2] == (400, "InvalidArgumentError")
    for name in (long, nul):
        for path in (f"{T}/collections/{name}", f"/api/v2/tenants/{name}", f"/api/v2/tenants/{name}/databases/{name}"):
            assert (await site.http("GET", path)).status in (400, 404)
    created = await site.http("POST", "/api/v2/tenants/nobody/databases", {"name": "fine"})
    assert created.error == (404, "NotFoundError", "Tenant [nobody] not found")


async def test_get_or_create_gives_what_there_is() -> None:
    site = await Site().start(metadata={"a": 1})
    again = await site.http("POST", f"{T}/collections", {"name": "coll1", "get_or_create": True, "metadata": {"b": 2}})
    assert (again.json["id"], again.json["metadata"]) == (site.id, {"a": 1})
    assert (await site.http("GET", f"{T}/collections_count")).json == 1


async def test_renaming_to_a_name_that_is_taken_or_nothing() -> None:
    site = await Site().start()
    await site.http("POST", f"{T}/collections", {"name": "other"})
    at = f"{T}/collections/{site.id}"
    assert (await site.http("PUT", at, {"new_name": "other"})).error[:2] == (409, "ChromaError")
    assert (await site.http("PUT", at, {})).json == {}
    missing = await site.http("PUT", f"{T}/collections/{ID}", {"new_name": "third"})
    assert missing.error == (404, "NotFoundError", f"Collection [{ID}] does not exist.")


@pytest.mark.parametrize("large", [False, True])
async def test_large_modifications_are_read_apart_from_the_event_loop(
    monkeypatch: pytest.MonkeyPatch, large: bool
) -> None:
    site, threads = await Site().start(), []

    def observed(*args: Any) -> Any:
        threads.append(threading.current_thread())
        return modification(*args)

    monkeypatch.setattr(catalog_routes, "modification", observed)
    metadata = {"k": "x" * (LARGE_BYTES if large else 1)}
    await site.http("PUT", f"{T}/collections/{site.id}", {"new_metadata": metadata})
    assert [thread is threading.current_thread() for thread in threads] == [not large]


async def test_the_dimension_that_was_expected_is_that_of_the_collection_now() -> None:
    """Two first writes of different dimensions: the loser learns the winner's."""
    site = await Site().start()

    async def other_first(name: str) -> None:
        if name == "append":
            hooks.clear()
            await site.post("add", {"ids": ["first"], "embeddings": [[1, 2, 3]]})

    hooks = [other_first]

    async def before(name: str) -> None:
        for hook in tuple(hooks):
            await hook(name)

    slow = DirectSystem.new_database(site.system)
    slow.log = hooked(site.system.log, before=before)
    slow.__post_init__()
    http = http_of(slow, site.system)
    answer = await http("POST", f"{T}/collections/{site.id}/add", {"ids": ["a"], "embeddings": [[1, 2]]})
    assert answer.error[2] == "Collection expecting embedding with dimension of 3, got 2"


@pytest.mark.parametrize(
    ("content_type", "status"),
    [
        ("", 200),
        ("application/json", 200),
        ("Application/JSON; charset=utf-8", 200),
        ("application/vnd.api+json", 200),
        ("text/plain", 415),
        ("application/x-www-form-urlencoded", 415),
        ("multipart/form-data; boundary=x", 415),
        ("application/jsonx", 415),
        (";", 415),
    ],
)
async def test_bodies_are_json_by_their_type(content_type: str, status: int) -> None:
    site = await Site().start()
    headers = {"content-type": content_type} if content_type else {}
    answer = await site.http("POST", f"{T}/collections/{site.id}/get", {}, headers=headers)
    assert answer.status == status
    if status == 415:
        assert answer.error == (415, "ChromaError", "Expected request with `Content-Type: application/json`")


@pytest.mark.parametrize(
    ("name", "wanted"),
    [
        (
            "ab",
            "containing 3-512 characters from [a-zA-Z0-9._-], starting and ending with a character in [a-zA-Z0-9]. Got: ab",
        ),
        ("a..b", "that does not contains two consecutive periods (..). Got a..b"),
        ("1..2.3.4", "that does not contains two consecutive periods (..). Got 1..2.3.4"),
        ("192.168.1.1", "that is not a valid ip address. Got 192.168.1.1"),
    ],
)
async def test_names_of_collections_that_are_none(name: str, wanted: str) -> None:
    site = await Site().start()
    made = await site.http("POST", f"{T}/collections", {"name": name})
    assert made.error == (400, "InvalidArgumentError", f"Validation error: name: Expected a name {wanted}")
    renamed = await site.http("PUT", f"{T}/collections/{site.id}", {"new_name": name})
    assert renamed.error == (400, "InvalidArgumentError", f"Validation error: new_name: Expected a name {wanted}")


async def test_names_that_only_look_like_addresses() -> None:
    site = await Site().start()
    for name in ("999.1.1.1", "01.1.1.1", "1.2.3"):
        assert (await site.http("POST", f"{T}/collections", {"name": name})).status == 200

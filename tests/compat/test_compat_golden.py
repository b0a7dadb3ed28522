"""The golden transcript against the HTTP gateway: the listed answers differ, as listed, and no others."""

from __future__ import annotations

from services.frontend.tests.frontend_http_support import Http, http_of
from shoal_testing.direct import DirectSystem
from tests.compat.golden import exchanges, listed, replay, row


def gateway() -> Http:
    """The gateway over a whole system in this process."""
    system = DirectSystem()
    system.database.allow_reset = True
    return http_of(system.database, system)


async def test_answers_differ_as_listed_and_no_others() -> None:
    http = gateway()

    async def send(method: str, path: str, body: bytes) -> tuple[int, bytes]:
        answer = await http(method, path, body)
        assert len(answer.headers["chroma-trace-id"]) == 32
        assert not answer.body or answer.headers["content-type"] == "application/json"
        return answer.status, answer.body

    found = await replay(send)
    assert "\n".join(map(row, found)) == "\n".join(map(row, listed()))


def test_the_transcript_is_whole() -> None:
    every = list(exchanges())
    assert [exchange.number for exchange in every] == list(range(1, 118))
    assert {exchange.status for exchange in every} == {200, 201, 400, 404, 405, 409, 410, 422, 500, 501}

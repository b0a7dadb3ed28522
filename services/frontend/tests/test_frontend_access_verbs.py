"""The table of verbs is whole, and what an address may be listened on."""

from __future__ import annotations

import inspect
import itertools

import pytest

from shoal_core.contracts import PublicApi
from shoal_core.errors import InvalidArgument
from shoal_frontend.access.guarded import Guarded
from shoal_frontend.access.listening import check_listening, is_loopback
from shoal_frontend.access.verbs import PERMISSIONS, VERBS
from shoal_frontend.api import Api
from shoal_frontend.database import DatabaseService


def verbs(protocol: type) -> set[str]:
    return {name for name, member in inspect.getmembers(protocol, inspect.iscoroutinefunction) if name[0] != "_"}


def test_every_verb_is_in_the_table_and_guarded() -> None:
    assert set(VERBS) == verbs(Api) == verbs(Guarded) == verbs(DatabaseService)
    assert verbs(PublicApi) <= verbs(Api)
    implemented: type[Api] = Guarded
    for verb in verbs(Api):
        assert inspect.signature(getattr(implemented, verb)) is not None
        assert f'"{verb}"' in inspect.getsource(getattr(Guarded, verb))


def test_each_role_includes_those_before() -> None:
    allowed = list(PERMISSIONS.values())
    for less, more in itertools.pairwise(allowed):
        assert less < more


@pytest.mark.parametrize(
    ("host", "local"),
    [
        ("127.0.0.1", True),
        ("127.9.9.9", True),
        ("::1", True),
        ("localhost", True),
        ("LOCALHOST", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("fe80::1%eth0", False),
        ("localhost.example.com", False),
        ("somewhere", False),
    ],
)
def test_strangers_are_not_served_unasked(host: str, local: bool) -> None:
    assert is_loopback(host) is local
    check_listening(host, "frontend.http", authenticates=True, allow_unauthenticated=False)
    check_listening(host, "frontend.http", authenticates=False, allow_unauthenticated=True)
    if local:
        check_listening(host, "frontend.http", authenticates=False, allow_unauthenticated=False)
        return
    with pytest.raises(InvalidArgument, match=r"frontend\.access\.allow_unauthenticated") as caught:
        check_listening(host, "frontend.http", authenticates=False, allow_unauthenticated=False)
    assert caught.value.field == "frontend.http"

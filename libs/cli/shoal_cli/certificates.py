"""``shoal certificates``: certificates for a cluster whose users have no authority of their own."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import typer

from shoal_core.errors import InvalidArgument
from shoal_runtime.authority import issue_into, open_authority
from shoal_runtime.callers import OPERATOR
from shoal_runtime.config import ROLES
from shoal_runtime.tls import role_name

LOOPBACK = ("localhost", "127.0.0.1", "::1")
CLIENT = "client"


def make(directory: Path, domain: str, hosts: Sequence[str], days: int) -> None:
    """An authority, once, and fresh certificates for every role, for an operator and for a client of the frontends.

    Args:
        hosts: names and addresses by which callers know the frontends, besides this machine's own.
        days: how long certificates are good; the authority ten times as long.
    """
    if days < 1:
        raise InvalidArgument(f"{days}; certificates are good for a day at least", field="--days")
    try:
        _make(directory, domain, hosts, days)
    except OSError as error:
        raise InvalidArgument(f"{directory} cannot be used: {error.strerror or error}", field="directory") from error
    typer.echo(f"{directory}: ca.crt, and ROLE.crt and ROLE.key of {', '.join((*ROLES, OPERATOR, CLIENT))}.")
    typer.echo("Keep ca.key away from the cluster: who has it can be any of its roles.")


def _make(directory: Path, domain: str, hosts: Sequence[str], days: int) -> None:
    authority = open_authority(directory, days * 10)
    for role in (*ROLES, OPERATOR):
        names = dict.fromkeys((role_name(role, domain), *LOOPBACK, *(hosts if role == "frontend" else ())))
        issue_into(directory, authority, role, [*names], days)
    issue_into(directory, authority, CLIENT, (CLIENT,), days)

"""``shoal access``: tokens and users of a running system."""

from __future__ import annotations

import json
import re
from collections.abc import AsyncIterator, Callable, Coroutine, Sequence
from contextlib import asynccontextmanager
from dataclasses import asdict
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal_cli.reach import credentials_of_command
from shoal_core.contracts import ANY, AccessAdmin, Credential, CredentialKind, Grant, Role
from shoal_core.contracts.access import position_of
from shoal_core.errors import InvalidArgument

if TYPE_CHECKING:
    import grpc
    import grpc.aio

Run = Callable[[Callable[[], Coroutine[Any, Any, None]]], None]

_PAGE = 100
_TTL = re.compile(r"(\d{1,9})([smhd])")
_UNIT_MS = {"s": 1_000, "m": 60_000, "h": 3_600_000, "d": 86_400_000}

AddressOption = Annotated[str, typer.Option("--address", help="host:port of a frontend.")]
TokenOption = Annotated[
    str,
    typer.Option("--token", envvar="SHOAL_TOKEN", help="Of an owner; better in SHOAL_TOKEN than on the command line."),
]
GrantOption = Annotated[
    list[str],
    typer.Option(
        "--grant",
        metavar="ROLE:TENANT[/DATABASE[/COLLECTION]]",
        help="What it allows; may be given many times. Roles: reader, writer, editor, admin (of a tenant), owner (of everything, "
        "without a tenant). Names may end in * for all that begin so.",
    ),
]
LabelOption = Annotated[str, typer.Option("--label", help="For people.")]
TtlOption = Annotated[str, typer.Option("--ttl", metavar="N[s|m|h|d]", help="How long it is good. Empty: without end.")]
_ADDRESS = "127.0.0.1:8800"


def parse_grant(text: str) -> Grant:
    """``reader:acme/main/docs*`` as a grant. Raises `InvalidArgument`."""
    role, _, scope = text.partition(":")
    parts = scope.split("/") if scope else []
    try:
        wanted = Role(role)
    except ValueError as error:
        raise InvalidArgument(f"{role!r} is none of {', '.join(Role)}", field="--grant") from error
    if len(parts) > 3 or not all(parts) or not (parts or wanted is Role.OWNER):
        raise InvalidArgument(f"expected ROLE:TENANT[/DATABASE[/COLLECTION]], got {text!r}", field="--grant")
    return Grant(wanted, *(parts or [ANY]))


def parse_ttl_ms(text: str) -> int | None:
    """``90d`` in milliseconds; None for empty. Raises `InvalidArgument`."""
    if not text:
        return None
    found = _TTL.fullmatch(text)
    if found is None:
        raise InvalidArgument(f"expected a number and s, m, h or d, got {text!r}", field="--ttl")
    return int(found[1]) * _UNIT_MS[found[2]]


def shown(grant: Grant) -> str:
    """A grant as the command line spells it."""
    parts = [grant.tenant, grant.database, grant.collection]
    while len(parts) > 1 and parts[-1] == ANY:
        parts.pop()
    return f"{grant.role}:{'/'.join(parts)}"


@asynccontextmanager
async def admin_of(address: str, token: str) -> AsyncIterator[AccessAdmin]:
    """The credentials of a running system."""
    from shoal_wire.clients.access import AccessAdminClient

    async with _channel(address, credentials_of_command()) as channel:
        yield AccessAdminClient(channel, token=token)


def _channel(address: str, credentials: grpc.ChannelCredentials | None) -> grpc.aio.Channel:
    import grpc.aio

    if credentials is None:
        return grpc.aio.insecure_channel(address)
    return grpc.aio.secure_channel(address, credentials)


def make_app(run: Run) -> typer.Typer:
    """The commands; ``run`` runs a coroutine and shows its errors."""
    app = typer.Typer(no_args_is_help=True, help="Who may come in: tokens and users of a running system.")
    token_app = typer.Typer(no_args_is_help=True, help="Tokens, for programs.")
    user_app = typer.Typer(no_args_is_help=True, help="Users with passwords, for basic authentication.")
    app.add_typer(token_app, name="token")
    app.add_typer(user_app, name="user")

    @token_app.command("create")
    def create_token(
        grant: GrantOption,
        label: LabelOption = "",
        ttl: TtlOption = "",
        address: AddressOption = _ADDRESS,
        token: TokenOption = "",
    ) -> None:
        """Make a token and print it, this once: it is kept nowhere."""

        async def create() -> None:
            grants = [parse_grant(text) for text in grant]
            async with admin_of(address, token) as admin:
                credential, made = await admin.create_token(label, grants, ttl_ms=parse_ttl_ms(ttl))
            typer.echo(f"Token {credential.id}. Keep it now: it is not shown again.", err=True)
            typer.echo(made)

        run(create)

    @user_app.command("create")
    def create_user(
        name: Annotated[str, typer.Argument()],
        grant: GrantOption,
        password: Annotated[
            str, typer.Option(prompt=True, hide_input=True, confirmation_prompt=True, envvar="SHOAL_PASSWORD")
        ],
        label: LabelOption = "",
        ttl: TtlOption = "",
        address: AddressOption = _ADDRESS,
        token: TokenOption = "",
    ) -> None:
        """Make a user; the password is asked for, or taken from SHOAL_PASSWORD."""

        async def create() -> None:
            grants = [parse_grant(text) for text in grant]
            async with admin_of(address, token) as admin:
                await admin.create_user(name, password, label, grants, ttl_ms=parse_ttl_ms(ttl))
            typer.echo(f"User {name}.")

        run(create)

    for kind, of in ((CredentialKind.TOKEN, token_app), (CredentialKind.USER, user_app)):
        _add_list_and_revoke(of, kind, run)
    return app


def _add_list_and_revoke(app: typer.Typer, kind: CredentialKind, run: Run) -> None:
    @app.command("list", help=f"Show the {kind}s and what they allow; never a secret.")
    def show(
        address: AddressOption = _ADDRESS,
        token: TokenOption = "",
        as_json: Annotated[bool, typer.Option("--json", help="JSON instead of a table.")] = False,
    ) -> None:
        async def show_all() -> None:
            async with admin_of(address, token) as admin:
                found = [item for item in await _all(admin) if item.kind is kind]
            typer.echo(json.dumps([asdict(item) for item in found], indent=2)) if as_json else _print(found)

        run(show_all)

    @app.command("revoke", help=f"End a {kind} for good; frontends notice within a few seconds.")
    def revoke(
        credential_id: Annotated[str, typer.Argument(metavar="ID")],
        address: AddressOption = _ADDRESS,
        token: TokenOption = "",
    ) -> None:
        async def end() -> None:
            async with admin_of(address, token) as admin:
                await admin.revoke_credential(kind, credential_id)
            typer.echo(f"Revoked {kind} {credential_id}.")

        run(end)


async def _all(admin: AccessAdmin) -> list[Credential]:
    found: list[Credential] = []
    while page := await admin.list_credentials(after=position_of(found[-1]) if found else "", limit=_PAGE):
        found += page
    return found


def _print(credentials: Sequence[Credential]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table("id", "label", "grants", "created", "expires", "revoked")
    for item in credentials:
        times = (_time(item.created_at_ms), _time(item.expires_at_ms), _time(item.revoked_at_ms))
        table.add_row(item.id, item.label, "\n".join(map(shown, item.grants)), *times)
    Console().print(table if credentials else "There are none.")


def _time(time_ms: int | None) -> str:
    return "" if time_ms is None else datetime.fromtimestamp(time_ms / 1000, UTC).strftime("%Y-%m-%d %H:%M:%S")

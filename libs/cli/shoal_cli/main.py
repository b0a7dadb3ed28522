"""The ``shoal`` command."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer

from shoal_cli.reach import Reach, reach_by
from shoal_core.errors import ShoalError

app = typer.Typer(
    name="shoal",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    help="""Shoal, a distributed vector database.

    Start here: **shoal demo** loads a dictionary and asks it a few questions by meaning. **shoal up** serves a data directory on this
    machine; **shoal up --cluster 3** runs a real cluster on it. From Python: `import shoal; shoal.connect("localhost:8800")`.
    """,
)

DEFAULT_PATH = Path("./data")
DEFAULT_GRPC = "127.0.0.1:8800"
DEFAULT_HTTP = "127.0.0.1:8000"

PathOption = Annotated[
    Path, typer.Option("--path", help="Data directory; made if it is missing. One process at a time.")
]
GrpcOption = Annotated[
    str, typer.Option("--grpc", metavar="HOST:PORT", help="Where clients connect. Port 0 takes a free one.")
]
HttpOption = Annotated[
    str,
    typer.Option(
        "--http",
        metavar="HOST:PORT",
        help="Where Chroma clients connect over HTTP. Port 0 takes a free one. Empty: none.",
    ),
]
ClusterOption = Annotated[
    int,
    typer.Option(
        "--cluster",
        metavar="N",
        min=0,
        help="Run a real cluster on this machine: Postgres, etcd, an S3 server, N query nodes and two each of the other roles, "
        "every one a process. 0: everything in this process, over an embedded Postgres and files.",
    ),
]
TokenOption = Annotated[
    str,
    typer.Option(
        "--token", envvar="SHOAL_TOKEN", help="Says who calls; better in SHOAL_TOKEN than on the command line."
    ),
]
ConfigOption = Annotated[Path | None, typer.Option("--config", help="TOML file with a table per section.")]
SettingsOption = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="SECTION.NAME=VALUE", help="One setting; may be given many times."),
]


@app.callback()
def reach(
    tls: Annotated[bool, typer.Option("--tls", help="Frontends are reached over TLS; implied by the files.")] = False,
    ca_file: Annotated[
        Path | None, typer.Option(envvar="SHOAL_CA_FILE", help="Who signs their certificates (PEM).")
    ] = None,
    cert_file: Annotated[
        Path | None, typer.Option(envvar="SHOAL_CERT_FILE", help="A certificate to show to them (PEM).")
    ] = None,
    key_file: Annotated[Path | None, typer.Option(envvar="SHOAL_KEY_FILE", help="Its private key (PEM).")] = None,
) -> None:
    """How commands that ask a frontend reach it."""
    reach_by(Reach(tls, ca_file, cert_file, key_file))


@app.command()
def up(
    path: PathOption = DEFAULT_PATH,
    grpc: GrpcOption = DEFAULT_GRPC,
    http: HttpOption = DEFAULT_HTTP,
    cluster: ClusterOption = 0,
    allow_reset: Annotated[bool, typer.Option("--allow-reset", help="Let clients delete everything.")] = False,
    certificates: Annotated[
        Path | None, typer.Option(help="TLS: a directory that `shoal certificates` made. None: plain text.")
    ] = None,
) -> None:
    """Serve a data directory in the foreground until Ctrl-C or SIGTERM, then stop all that was started.

    Connect with `shoal.connect("127.0.0.1:8800")`, look at it with `shoal status`. Nothing that was acknowledged is lost, however this
    ends. A directory is for one process or for a cluster, not for both in turn. To let others in, give it a root token in
    SHOAL_FRONTEND__ACCESS__ROOT_TOKEN and make credentials with `shoal access`.
    """
    from shoal_cli import up as serving

    _run(
        lambda: (
            serving.serve_cluster(path, grpc, http, cluster, allow_reset=allow_reset, certificates=certificates)
            if cluster
            else serving.serve_embedded(path, grpc, http, allow_reset=allow_reset, certificates=certificates)
        )
    )


@app.command()
def serve(
    role: Annotated[str, typer.Argument(help="frontend, logservice, querynode, compactor or sysdb.")],
    config: ConfigOption = None,
    settings: SettingsOption = None,
) -> None:
    """Serve one role of a cluster against external Postgres, etcd and S3.

    Settings come from `--set`, else from the environment, else from the file: `--set etcd.endpoints=etcd-0:2379`, or
    SHOAL_ETCD__ENDPOINTS (two underscores between section and name), or `endpoints` in the table `[etcd]`.
    """
    from shoal_cli import roles
    from shoal_runtime.config import load, parse_flags

    _run(lambda: roles.serve(role, load(parse_flags(settings or []), path=config)))


@app.command()
def certificates(
    directory: Annotated[Path, typer.Argument(help="Made if it is missing. An authority in it is used again.")],
    host: Annotated[
        list[str] | None, typer.Option(help="A name or address of the frontends; may be given many times.")
    ] = None,
    domain: Annotated[str, typer.Option(help="As in `tls.domain`.")] = "shoal.internal",
    days: Annotated[int, typer.Option(help="How long the certificates are good.")] = 90,
) -> None:
    """Make an authority and certificates for all roles, where there is no other source of them. Run it again to renew them."""
    from shoal_cli import certificates as making

    with errors_shown():
        making.make(directory, domain, host or [], days)


@app.command()
def demo(
    path: PathOption = Path("./demo-data"),
    records: Annotated[int, typer.Option(min=100, help="How many glosses to load, of 117,659.")] = 20_000,
    cluster: ClusterOption = 3,
    keep: Annotated[bool, typer.Option("--keep", help="Leave the data directory for another run.")] = False,
) -> None:
    """Start the system, load real text, ask it a few questions by meaning, and say where the answers came from."""
    from shoal_cli import demo as tour

    _run(lambda: tour.run(path, records, cluster, keep=keep))


@app.command()
def status(
    address: Annotated[str, typer.Argument(help="host:port of a frontend.")] = DEFAULT_GRPC,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    token: TokenOption = "",
) -> None:
    """Show the members by role and the collections that wait for compaction; `--json` adds the limits."""
    from shoal_cli import status as report

    _run(lambda: report.show(address, as_json=as_json, token=token))


@app.command()
def recall(
    collection: Annotated[str, typer.Argument(help="Its name.")],
    address: Annotated[str, typer.Option(help="host:port of a frontend.")] = DEFAULT_GRPC,
    tenant: Annotated[str, typer.Option(help="That the collection belongs to.")] = "default_tenant",
    database: Annotated[str, typer.Option(help="That it is in.")] = "default_database",
    sample: Annotated[int, typer.Option(min=1, max=1_000, help="Records to ask for their neighbours.")] = 100,
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of tables.")] = False,
    token: TokenOption = "",
) -> None:
    """Show what effort a recall takes in a collection, what its records get, and what live queries got."""
    from shoal_cli import recall as report

    _run(
        lambda: report.show(
            address, collection, tenant=tenant, database=database, token=token, sample=sample, as_json=as_json
        )
    )


@app.command()
def migrate(
    config: ConfigOption = None,
    settings: SettingsOption = None,
) -> None:
    """Bring the database to the schema of this release, and say what was done; safe to repeat and to run many times at once.

    It reads the settings as `serve` does and needs `postgres.dsn` only. With `sysdb.migrate_at_start`, which is the default, sysdb
    does the same when it starts.
    """
    from shoal_cli.migration import run_migrations
    from shoal_runtime.config import load, parse_flags

    _run(lambda: run_migrations(load(parse_flags(settings or []), path=config)))


def _register_access() -> None:
    from shoal_cli.access import make_app

    app.add_typer(make_app(_run), name="access")


def _run(make: Any) -> None:
    """Run a coroutine on uvloop; a typed error becomes one line and exit code 1."""
    from shoal_runtime.lifecycle import run

    with errors_shown():
        run(make)


@contextmanager
def errors_shown() -> Iterator[None]:
    """A typed error becomes one line and exit code 1."""
    try:
        yield
    except ShoalError as error:
        typer.secho(f"shoal: {type(error).__name__}: {error}", fg="red", err=True)
        raise typer.Exit(1) from None
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


_register_access()


def main() -> None:
    """Entry point of the console script."""
    app(prog_name="shoal" if sys.argv[0].endswith("__main__.py") else None)

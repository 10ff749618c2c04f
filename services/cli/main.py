"""The command `passerelle`. Exit codes: 0 done, 1 failed, 2 not asked for in a usable way."""

import asyncio
import sys
from collections.abc import Callable, Coroutine
from datetime import datetime
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn
from uuid import UUID

import orjson
import typer
from rich.console import Console

from services.cli import (
    account,
    auditing,
    authority,
    demo,
    house,
    operations,
    postgres,
    purging,
    rekeying,
    tokens,
    whatif,
)
from services.plumbing.migrate import MigrationError
from services.plumbing.region import RegionError
from services.plumbing.settings import SettingsError

app = typer.Typer(
    help="Tells a clinic, as far as consent allows, that its patient is a frequent user.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.add_typer(auditing.commands, name="audit")
app.add_typer(rekeying.commands, name="keys")
app.command("purge")(purging.purge_)
app.add_typer(purging.legal_holds, name="legal-hold")
terminal = Console(stderr=True, highlight=False, soft_wrap=True)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept. Default: /var/lib/passerelle as root."),
]
Port = Annotated[int, typer.Option(help="The first of four ports in a row.", min=1, max=65532)]


def fail(message: object, code: int = 1) -> NoReturn:
    """End with `message` on standard error."""
    terminal.print(str(message), style="red")
    raise typer.Exit(code)


def run(work: Callable[[], Coroutine[Any, Any, Any]]) -> Any:
    """Run `work`; what an operator can mend is said in one line, without a traceback."""
    try:
        return asyncio.run(work())
    except SettingsError as error:
        fail(error, 2)
    except (
        house.HouseError,
        postgres.PostgresError,
        MigrationError,
        RegionError,
        tokens.TokenError,
        whatif.WhatIfError,
    ) as error:
        fail(error)
    except KeyboardInterrupt:
        raise typer.Exit(130) from None


@app.command()
def up(
    data_dir: DataDir = None,
    port: Port = house.PORT,
    region: Annotated[
        Path | None, typer.Option(help="The region file; default: the demo's.")
    ] = None,
) -> None:
    """Run everything on this machine: PostgreSQL, authority, ingest, screening, notify."""
    run(lambda: demo.up(terminal, data_dir or house.default_data_dir(), port, region))


@app.command("demo")
def demo_(
    data_dir: DataDir = None,
    port: Port = house.PORT,
    seed: Annotated[int, typer.Option(help="Another number is another region.")] = demo.SEED,
) -> None:
    """Run everything, with a simulated region that sends a year of encounters and lives on."""
    folder = data_dir or house.default_demo_dir()
    run(lambda: demo.demo(terminal, folder, port, seed))


@app.command()
def ingest() -> None:
    """Run the hospitals' door. Configured by PASSERELLE_* variables."""
    from services.ingest.__main__ import main  # noqa: PLC0415 - a service loads only itself

    raise typer.Exit(main())


@app.command()
def screening() -> None:
    """Run counting. Configured by PASSERELLE_* variables."""
    from services.screening.__main__ import main  # noqa: PLC0415

    raise typer.Exit(main())


@app.command()
def notify() -> None:
    """Run the clinics' door and the pages. Configured by PASSERELLE_* variables."""
    from services.notify.__main__ import main  # noqa: PLC0415

    raise typer.Exit(main())


@app.command("authority", hidden=True)
def authority_() -> None:
    """Run the loopback authority of `up` and `demo`."""
    raise typer.Exit(authority.main())


@app.command()
def migrate() -> None:
    """Bring the database to this version. Needs PASSERELLE_OWNER_DATABASE_URL."""
    for name in run(operations.migrate):
        typer.echo(name)


@app.command()
def topics() -> None:
    """Create the Kafka topics that are missing. Needs PASSERELLE_KAFKA_BOOTSTRAP."""
    for name in run(operations.topics):
        typer.echo(name)


@app.command()
def token(
    as_: Annotated[str, typer.Option("--as", help="A client of the region file.")],
    scope: Annotated[str | None, typer.Option(help="Fewer scopes than are granted.")] = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Print an access token of a client of the running `up` or `demo`."""
    issuer = f"http://{house.LOOPBACK}:{port}"
    folder = operations.data_dir_of(data_dir, issuer)
    typer.echo(run(lambda: tokens.access_token(folder, issuer, as_, scope)))


@app.command()
def simulate(
    out: Annotated[Path, typer.Option(help="Folder for the files; must be empty.")],
    profile: Annotated[str, typer.Option(help="demo, region, wide or dense.")] = "demo",
    seed: Annotated[int, typer.Option()] = demo.SEED,
    clean: Annotated[bool, typer.Option("--clean", help="No feed noise.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder with files.")] = False,
) -> None:
    """Write the files of a simulated region, and the truth about it."""
    operations.simulate(out, profile, seed, clean=clean, force=force, fail=fail)


@app.command()
def replay(
    service: Annotated[
        str, typer.Argument(help="screening or notify: dead letters; ingest: refused bodies.")
    ],
    ids: Annotated[list[UUID] | None, typer.Argument(help="Which; none with --all.")] = None,
    every: Annotated[bool, typer.Option("--all", help="All that wait.")] = False,
    discard: Annotated[bool, typer.Option("--discard", help="Set aside instead.")] = False,
    by: Annotated[str, typer.Option(help="Who asks, for the record.")] = "operations",
) -> None:
    """List what a service could not take in, or have it taken in again.

    Uses PASSERELLE_DATABASE_URL of that service.
    """
    for line in run(
        lambda: operations.replay(service, ids or [], by, every=every, discard_them=discard)
    ):
        typer.echo(line)


@app.command("consent-decide")
def consent_decide(
    lines: Annotated[bool, typer.Option("--lines", help="One document a line.")] = False,
) -> None:
    """Decide a JSON document of standard input: consents, a request, a directory, a policy.

    Exit codes: 0 decided, whatever the outcome; 2 a document is unusable; 1 an error of ours.
    """
    raise typer.Exit(operations.consent_decide(lines=lines))


@app.command("what-if")
def what_if(
    policy: Annotated[
        str, typer.Argument(help="name@version, a preset's name, or a policy file (.yaml).")
    ],
    against: Annotated[
        str, typer.Option(help="What to compare with: as POLICY, `live`, or `none`.")
    ] = "live",
    first: Annotated[
        datetime | None, typer.Option("--from", formats=["%Y-%m-%d"], help="First day.")
    ] = None,
    last: Annotated[
        datetime | None, typer.Option("--to", formats=["%Y-%m-%d"], help="Last day.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="All of it, as data.")] = False,
    language: Annotated[account.Language, typer.Option("--language", "-l")] = (
        account.Language.FRENCH
    ),
    as_: Annotated[
        str, typer.Option("--as", help="A client of the running `up` or `demo`.")
    ] = "ops-client",
    url: Annotated[
        str | None, typer.Option(help="Screening elsewhere; needs --token-file.")
    ] = None,
    token_file: Annotated[Path | None, typer.Option(help="Holds an access token for it.")] = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Say what a policy would have listed over a period, beside the live one. Sends nothing.

    Default period: the 365 days up to yesterday.
    """
    days = [day and day.date() for day in (first, last)]

    async def told() -> Any:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        with terminal.status("0 %") as status:
            asked = (policy, against, days[0], days[1])
            return await whatif.answered(door, asked, lambda done: status.update(f"{done} %"))

    found = run(told)
    typer.echo(
        orjson.dumps(found, option=orjson.OPT_INDENT_2).decode()
        if as_json
        else whatif.written(found, language).rstrip("\n")
    )


class Source(StrEnum):
    LOG = "log"
    INGEST = "ingest"


@app.command()
def rebuild(
    service: Annotated[str, typer.Argument(help="screening or notify.")],
    source: Annotated[
        Source,
        typer.Option(
            "--from", help="The log, as far as it reaches back; or, for screening, ingest's store."
        ),
    ] = Source.LOG,
    by: Annotated[str, typer.Option(help="Who asks, for the record.")] = "operations",
) -> None:
    """Have a service take in again all that the log still holds, or all that ingest ever kept.

    Safe at any time, beside the live work: it ignores what it knows and announces only what is
    really different. From the log it uses PASSERELLE_DATABASE_URL of that service, from ingest
    that of ingest. Broken off, the latter goes on where it was when it is run again.
    """

    async def told() -> None:
        async for line in operations.rebuild(service, source, by):
            typer.echo(line)

    run(told)


if __name__ == "__main__":
    sys.exit(app())

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
    auditing,
    authority,
    demo,
    doctor,
    house,
    importing,
    operations,
    policies,
    postgres,
    purging,
    rekeying,
    reviewing,
    tokens,
    whatif,
)
from services.plumbing import account
from services.plumbing.migrate import MigrationError
from services.plumbing.region import RegionError
from services.plumbing.settings import SettingsError
from services.simulator.profiles import SimulateError

app = typer.Typer(
    help="Tells a clinic, as far as consent allows, that its patient is a frequent user.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
auditing.commands.command("review")(reviewing.review_)
auditing.commands.command("affected")(reviewing.affected_)
app.add_typer(auditing.commands, name="audit")
app.add_typer(rekeying.commands, name="keys")
app.add_typer(policies.commands, name="policy")
app.add_typer(importing.commands, name="import")
app.command("purge")(purging.purge_)
app.add_typer(purging.legal_holds, name="legal-hold")
terminal = Console(stderr=True, highlight=False, soft_wrap=True)

DataDir = Annotated[
    Path | None,
    typer.Option(help="Where everything is kept. Default: /var/lib/passerelle as root."),
]
Start = Annotated[
    datetime | None,
    typer.Option(formats=["%Y-%m-%d"], help="First day of the simulated time; default 2025-03-02."),
]
Effect = Annotated[
    float,
    typer.Option(help="Share of ED visits that the programme spares those enrolled, 0 to 1."),
]
Clean = Annotated[bool, typer.Option("--clean", help="No feed noise: all rates of it are 0.")]
Misbehave = Annotated[
    bool,
    typer.Option(
        "--misbehave",
        help="Also send bodies cut off, wrong tokens, and messages again under a new Bundle id.",
    ),
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
    except (SettingsError, SimulateError) as error:
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
    start: Start = None,
    speed: Annotated[
        float,
        typer.Option(
            help="Seconds of the region's life in a real second: 1 is real time, 3600 an hour a"
            " second, 0 as fast as it is taken in.",
            min=0,
        ),
    ] = demo.SPEED,
    clean: Clean = False,
    effect: Effect = 0.0,
    misbehave: Misbehave = False,
) -> None:
    """Run everything, with a simulated region that sends a year of encounters and lives on."""
    folder = data_dir or house.default_demo_dir()
    play = demo.Play(
        seed=seed,
        start=start.date() if start else None,
        speed=speed,
        clean=clean,
        effect=effect,
        misbehaves=misbehave,
    )
    run(lambda: demo.demo(terminal, folder, port, play))


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
    out: Annotated[
        Path | None, typer.Option(help="Write files into this folder, which must be empty.")
    ] = None,
    send: Annotated[
        bool, typer.Option("--send", help="Send it to the running `up`, as fast as it accepts.")
    ] = False,
    profile: Annotated[
        str,
        typer.Option(
            help="demo: 2,000 people, a year. region: 280,000, four hospitals. wide: 1,000,000,"
            " two years. dense: 100,000, nearly all frequent users."
        ),
    ] = "demo",
    seed: Annotated[int, typer.Option(help="Another number is another region.")] = demo.SEED,
    people: Annotated[int | None, typer.Option(help="How many; default: the profile's.")] = None,
    start: Start = None,
    days: Annotated[int | None, typer.Option(help="How long; default: the profile's.")] = None,
    clean: Clean = False,
    effect: Effect = 0.0,
    change: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="NAME=VALUE", help="Any other parameter; a wrong name lists them all."
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(help="Processes that write files; the bytes do not depend on it.")
    ] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder with files.")] = False,
    misbehave: Misbehave = False,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Simulate a region that never existed: as files (--out), or sent to the doors (--send).

    Files: for each hospital Patient.ndjson and Encounter.ndjson, as `passerelle import` reads
    them; panels/*.csv, of which bad.csv is wrong in every row; consents.ndjson; truth.ndjson,
    what really happened; enrolled.ndjson, who was in the programme when.

    Sent: panels, restrictions, then all that the hospitals have to say, live messages and all,
    each patient's in order. An interrupted run goes on where it was. It ends with what was sent,
    accepted, held, refused and retried, and with what became of the encounters that happened.

    The same profile, parameters and seed give the same bytes on every machine. Exit code 2: a
    parameter is unknown or impossible, and named; or the folder is not empty.
    """
    given: dict[str, object] = {"people": people, "days": days, "effect": effect or None}
    given["start"] = start.date() if start else None
    asked = operations.Asked(
        profile=profile,
        seed=seed,
        clean=clean,
        changes={name: value for name, value in given.items() if value is not None},
        texts=change or [],
    )
    if (out is None) is not send:
        fail("Say either --out FOLDER or --send.", 2)
    if out is None:
        run(lambda: operations.send(terminal, asked, data_dir, port, misbehaves=misbehave))
        return
    try:
        written = operations.write_files(out, asked, workers=workers, force=force)
    except SimulateError as error:
        fail(error, 2)
    for line in written:
        typer.echo(line)


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


@app.command("doctor")
def doctor_(
    service: Annotated[
        str | None,
        typer.Argument(help="ingest, screening or notify, by this process's variables."),
    ] = None,
    data_dir: DataDir = None,
    json: Annotated[bool, typer.Option("--json", help="Findings as data.")] = False,
) -> None:
    """Say what is wrong with an installation, and what to do about it.

    Without a service: all of the running `up` or `demo`. Exit codes: 0 nothing fails, 1
    something does, 2 not asked for in a usable way. Shows no secret and no patient.
    """
    found = run(lambda: doctor.run(service, data_dir))
    if json:
        typer.echo(doctor.as_json(found))
    else:
        for one in found:
            typer.echo(one)
    raise typer.Exit(doctor.exit_code(found))


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

"""`passerelle audit`: is it whole, and who was told what about a patient (CS-113, CS-114)."""

import asyncio
from collections.abc import AsyncIterator, Coroutine, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Annotated, Any, TypeVar
from uuid import UUID

import asyncpg
import orjson
import typer
from pydantic import SecretStr
from sqlalchemy import text
from sqlalchemy.exc import DBAPIError
from sqlalchemy.ext.asyncio import create_async_engine

from services.cli import house, postgres
from services.plumbing import account, audit, chain, region, settings
from services.plumbing.account import Language
from services.plumbing.audit import AuditRecord, Trail
from services.plumbing.chain import Verdict
from services.plumbing.clock import Clock
from services.plumbing.db import Tx, driver_url, sqlstate
from services.plumbing.migrate import AUDITOR
from services.plumbing.region import Region
from services.plumbing.settings import SERVICES, Settings, SettingsError

T = TypeVar("T")
commands = typer.Typer(help="Is the audit whole; who was told what.", no_args_is_help=True)

DataDir = Annotated[
    Path | None, typer.Option(help="Of a running `up` or `demo`, if no variable names a database.")
]


def database_of(said: Settings, data_dir: Path | None) -> str:
    """URL of a login that may take the auditor's or purger's role; the owner of the tables may."""
    for secret in (said.database_url, said.owner_database_url):
        if secret is not None:
            return secret.get_secret_value()
    data = data_of(data_dir)
    mark = data / "postgres" / "data" / "postmaster.pid"
    try:
        sockets = Path(mark.read_text().splitlines()[4])
    except (OSError, IndexError):
        raise SettingsError(
            f"Nothing runs from {data}. Start it, name its --data-dir, or set"
            f" PASSERELLE_DATABASE_URL to a login that was granted {AUDITOR}."
        ) from None
    server = postgres.Postgres(data / "postgres" / "data", sockets, 0, "")
    return server.url(postgres.OWNER, secrets_of(data)["passwords"]["owner"])


def data_of(data_dir: Path | None) -> Path:
    """The data directory asked for, else that of what runs here."""
    if data_dir is not None:
        return data_dir
    folders = (house.default_data_dir(), house.default_demo_dir())
    running = [folder for folder in folders if (folder / "issuer").exists()]
    return running[0] if running else folders[0]


def secrets_of(data: Path) -> dict[str, dict[str, str]]:
    """What `up` keeps there. SettingsError if it is none, or closed to the caller."""
    try:
        kept: dict[str, dict[str, str]] = orjson.loads((data / "secrets.json").read_bytes())
    except OSError:
        raise SettingsError(f"{data} is no data directory of `up`, or is closed to you.") from None
    return kept


def is_elsewhere(said: Settings) -> bool:
    """Whether the variables name a database; else it is that of `up` or `demo`."""
    return said.database_url is not None or said.owner_database_url is not None


def asked_by(by: str, data_dir: Path | None) -> tuple[Settings, Region]:
    """The settings and the region, of which `by` must be a person; SettingsError if not."""
    said = settings.read(Settings)
    file = said.region or data_of(data_dir) / "region.yaml"
    if said.region is None and not file.exists():
        raise SettingsError(
            f"There is no {file}. Name the --data-dir of `up` or `demo`, or set PASSERELLE_REGION."
        )
    known = region.load(file)
    if known.person(by) is None:
        raise SettingsError(f"--by {by}: is nobody in {file}")
    return said, known


async def verify(data_dir: Path | None, public: Sequence[str], folder: Path | None) -> Verdict:
    """Recompute all chains and hold them to all checkpoints there are."""
    said = settings.read(Settings)
    keys = [chain.verifying_key(one) for one in public]
    if said.checkpoint_key is not None:
        keys.append(chain.signing_key(said.checkpoint_key))
    elif not is_elsewhere(said):
        data = data_of(data_dir)
        keys.append(chain.signing_key(SecretStr(str(secrets_of(data)["checkpoint_key"]))))
        folder = folder or data / "checkpoints"
    folder = folder or said.checkpoint_folder
    kept = (
        [file.read_text() for file in sorted(folder.glob("*.jws"))]
        if folder is not None and folder.is_dir()
        else []
    )
    async with chain.as_auditor(database_of(said, data_dir)) as connection:
        return await chain.verify(connection, keys, kept)


_OF_PATIENT = text(
    " union all ".join(
        f"select * from {service}.audit where patient = any(cast(:patients as uuid[]))"  # noqa: S608 - constants
        for service in SERVICES
    )
)


@asynccontextmanager
async def as_auditor(url: str) -> AsyncIterator[Tx]:
    """One transaction of the auditor's role; what it adds to the audit is notify's."""
    engine = create_async_engine(driver_url(url), hide_parameters=True)
    try:
        async with engine.begin() as tx:
            await tx.execute(text(f"set local role {AUDITOR}"))
            await tx.execute(text("set local search_path = notify"))
            yield tx
    finally:
        await engine.dispose()


async def records_of(tx: Tx, patients: Sequence[UUID]) -> list[AuditRecord]:
    """All records about these patient keys, of all services."""
    return [audit.stored(row) for row in await tx.execute(_OF_PATIENT, {"patients": patients})]


async def report(
    patients: Sequence[UUID],
    by: str,
    language: Language,
    data_dir: Path | None,
    *,
    privacy: bool,
    as_json: bool,
) -> str:
    """The account of one patient, known by these keys. That it was drawn up is audited."""
    said, known = asked_by(by, data_dir)
    now = Clock(said.clock).now()
    async with as_auditor(database_of(said, data_dir)) as tx:
        lines = account.account(await records_of(tx, patients))
        trail = Trail(at=now, agent=by, agent_kind="person", roles=("privacy",))
        name = "disclosures-and-refusals" if privacy else "disclosures"
        await audit.record(tx, [trail.exported(name, patient) for patient in patients])
    shown = lines if privacy else account.for_patient(lines)
    if as_json:
        return orjson.dumps(shown, option=orjson.OPT_INDENT_2).decode()
    return account.written(shown, known, language, now, privacy=privacy)


def say(verdict: Verdict) -> list[str]:
    """A verdict, a line for each thing that is wrong."""
    lines = [str(bad) for bad in verdict.bad]
    lines.append(
        f"{'Not whole' if verdict.bad else 'Whole'}: {verdict.records} records in"
        f" {verdict.chains} chains, {verdict.checkpoints} checkpoints,"
        f" {verdict.pending} records not sealed yet."
    )
    return lines


def run(work: Coroutine[Any, Any, T], role: str = AUDITOR) -> T:
    """Run `work`; what an operator can mend is said in one line. Exit code 2: nothing was read."""
    try:
        return asyncio.run(work)
    except (SettingsError, region.RegionError, ValueError) as error:
        why = str(error)
    except (asyncpg.PostgresError, DBAPIError) as error:
        why = f"The database refused ({sqlstate(error)}). The login must have been granted {role}."
    except OSError:
        why = "The database does not answer."
    typer.echo(why, err=True)
    raise typer.Exit(2)


@commands.command("verify")
def verify_(
    data_dir: DataDir = None,
    public_key: Annotated[
        list[str] | None,
        typer.Option(help="Of checkpoints, as `passerelle audit key` prints it; each that was."),
    ] = None,
    checkpoints: Annotated[
        Path | None, typer.Option(help="Folder where checkpoints are kept besides.")
    ] = None,
) -> None:
    """Recompute the hash chain of every audit. Exit code 0: whole; 1: the first bad positions."""
    verdict = run(verify(data_dir, public_key or [], checkpoints))
    for line in say(verdict):
        typer.echo(line)
    raise typer.Exit(1 if verdict.bad else 0)


@commands.command("report")
def report_(
    patients: Annotated[list[UUID], typer.Argument(help="Patient key; all of a merged patient.")],
    by: Annotated[str, typer.Option(help="Who draws it up: a person of the region file.")],
    language: Annotated[Language, typer.Option("--language", "-l")] = Language.FRENCH,
    privacy: Annotated[
        bool, typer.Option("--privacy", help="The officer's copy: with refusals and writes.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="As data.")] = False,
    data_dir: DataDir = None,
) -> None:
    """Print who was told what about a patient, when, why and on what ground."""
    work = report(patients, by, language, data_dir, privacy=privacy, as_json=as_json)
    typer.echo(run(work), nl=False)


@commands.command("key")
def key_() -> None:
    """Print the public part of PASSERELLE_CHECKPOINT_KEY, for whoever verifies elsewhere."""
    said = settings.read(Settings)
    if said.checkpoint_key is None:
        typer.echo("PASSERELLE_CHECKPOINT_KEY: is not set", err=True)
        raise typer.Exit(2)
    typer.echo(chain.public_part(chain.signing_key(said.checkpoint_key)))

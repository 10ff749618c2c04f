"""What operators do from the command line, one function a command."""

import sys
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from uuid import UUID

from rich.console import Console

from schemas.generate import events
from services.cli import house, tokens, whatif
from services.plumbing import kafka, settings
from services.plumbing import migrate as migrations
from services.plumbing.clock import Clock, real_now
from services.plumbing.db import Database
from services.plumbing.eventlog import ask_replay, dead_letters, discard, reread
from services.plumbing.settings import IngestSettings, Settings, SettingsError
from services.simulator import profiles
from services.simulator.profiles import SimulateError


async def migrate() -> list[str]:
    """Names of the files that were run; one line when there was nothing to do."""
    said = settings.read(Settings)
    if said.owner_database_url is None:
        raise SettingsError("PASSERELLE_OWNER_DATABASE_URL: is not set")
    passwords = {name: secret.get_secret_value() for name, secret in said.role_passwords.items()}
    done = await migrations.migrate(said.owner_database_url.get_secret_value(), passwords)
    return done or ["The database is at this version."]


async def topics() -> list[str]:
    """A sentence for each topic: made, or there already."""
    said = settings.read(Settings)
    if said.kafka_bootstrap is None:
        raise SettingsError("PASSERELLE_KAFKA_BOOTSTRAP: is not set")
    kinds = [event.type for event in events() if event.published]
    return await kafka.create_topics(
        kafka.Link.of(said), kinds, said.kafka_partitions, said.kafka_replication
    )


def data_dir_of(chosen: Path | None, issuer: str) -> Path:
    """The data directory of the `up` or `demo` that answers at `issuer`, if none is chosen."""
    if chosen is not None:
        return chosen
    folders = (house.default_data_dir(), house.default_demo_dir())
    for folder in folders:
        mark = folder / "issuer"
        if mark.exists() and mark.read_text() == issuer:
            return folder
    raise house.HouseError(
        f"No passerelle is running at {issuer} from {' or '.join(map(str, folders))}."
        " Start `passerelle up`, or name its --data-dir and --port."
    )


@asynccontextmanager
async def _database(service: str) -> AsyncIterator[Database]:
    said = settings.read(Settings)
    if said.database_url is None:
        raise SettingsError(f"PASSERELLE_DATABASE_URL: is not set (that of {service})")
    db = Database(said.database_url.get_secret_value(), service, pool=2)
    try:
        yield db
    finally:
        await db.close()


async def replay(
    service: str, ids: Sequence[UUID], by: str, *, every: bool, discard_them: bool
) -> list[str]:
    """Have dead letters, or ingest's refused bodies, taken in again; else list what waits."""
    if service == "ingest":
        from services.ingest.__main__ import replay as refused  # noqa: PLC0415 - a service is loaded where it is asked for

        said = settings.read(IngestSettings)
        return await refused(said, ids, by, every=every, discard=discard_them)
    if service not in ("screening", "notify"):
        raise SettingsError(f"{service}: ingest, screening or notify may have refused something")
    async with _database(service) as db:
        if discard_them:
            clock = Clock(settings.read(Settings).clock)
            return [f"{await discard(db, ids, by, clock.now())} discarded"]
        if ids or every:
            return [f"{await ask_replay(db, None if every else ids, by)} asked for"]
        waiting = await dead_letters(db)
    return [
        f"{letter.id} {letter.type} {letter.first_failed:%Y-%m-%d %H:%M:%SZ}"
        f" {letter.attempts} tries: {letter.reason}"
        for letter in waiting
    ] or ["Nothing waits."]


async def rebuild(service: str, source: str, by: str) -> AsyncIterator[str]:
    """Have a service take in again all that the log holds; or screening, all of ingest's store."""
    if service not in ("screening", "notify"):
        raise SettingsError(f"{service}: screening or notify reads the log")
    if source == "ingest":
        if service != "screening":
            raise SettingsError("--from ingest: of facts, which are screening's alone")
        from services.ingest.__main__ import restate  # noqa: PLC0415 - as above

        async for line in restate(settings.read(Settings), by):
            yield line
        yield "All is stated again. Screening counts everybody anew when it has read it."
        return
    async with _database(service) as db:
        sources = await reread(db)
    if sources:
        yield f"{service} reads again all that the log holds of {', '.join(sources)}."
    else:
        yield f"{service} has read nothing yet."


async def screening_door(
    url: str | None, token_file: Path | None, data_dir: Path | None, port: int, client: str
) -> whatif.Door:
    """Screening at `url`, with the token of a file; else that of the running `up` or `demo`."""
    if (url is None) != (token_file is None):
        raise SettingsError("--url and --token-file: both or neither")
    if url is not None and token_file is not None:
        try:
            return whatif.Door(url, token_file.read_text().strip())
        except OSError as error:
            raise SettingsError(f"{token_file}: {error.strerror}") from None
    issuer = f"http://{house.LOOPBACK}:{port}"
    token = await tokens.access_token(data_dir_of(data_dir, issuer), issuer, client)
    return whatif.Door(f"http://{house.LOOPBACK}:{port + 2}", token)


@dataclass(frozen=True, slots=True)
class Asked:
    """A simulated region as the command asks for it."""

    profile: str
    seed: int
    clean: bool
    changes: Mapping[str, object]
    texts: Sequence[str]
    """More changes, each NAME=VALUE."""

    def parameters(self) -> dict[str, object]:
        """All changes. Raises SimulateError, which names what cannot be read."""
        told: dict[str, str] = {}
        for text in self.texts:
            name, equals, value = text.partition("=")
            if not equals:
                raise SimulateError(f"parameter {name}: say NAME=VALUE")
            told[name] = value
        return {**self.changes, **profiles.parameters(told)}


def write_files(out: Path, asked: Asked, *, workers: int, force: bool) -> list[str]:
    """Write a simulated region's files into `out`; a line each. Raises SimulateError (SIM-09)."""
    from services.simulator import files  # noqa: PLC0415 - not needed by a service's process

    lines = files.write(
        out,
        profile=asked.profile,
        seed=asked.seed,
        clean=asked.clean,
        force=force,
        workers=workers,
        **asked.parameters(),
    )
    return [f"{count:>9,}  {out / name}" for name, count in lines.items()]


async def send(
    terminal: Console, asked: Asked, data_dir: Path | None, port: int, *, misbehaves: bool
) -> None:
    """Send a simulated region to the running house, and say what became of it (SIM-08)."""
    from services.simulator import sending  # noqa: PLC0415 - not needed by a service's process

    region = profiles.profile(
        asked.profile, clean=asked.clean, seed=asked.seed, **asked.parameters()
    )
    issuer = f"http://{house.LOOPBACK}:{port}"
    folder = data_dir_of(data_dir, issuer)
    plan = house.Plan(data=folder, region=folder / "region.yaml", port=port)
    urls = {"ingest": f"{plan.url('ingest')}/fhir", "notify": plan.url("notify")}

    async def token_for(client: str) -> str:
        return await tokens.access_token(folder, issuer, client)

    with terminal.status("Sending") as status:
        account = await sending.send(
            region,
            urls,
            token_for,
            folder / "simulate.bookmark",
            lambda text, done, total: status.update(
                f"{text}: {done:,} of {total:,}" if total else text
            ),
            real_now(),
            misbehaves=misbehaves,
        )
    terminal.print(str(account))


def consent_decide(*, lines: bool) -> int:
    """Standard input to standard output; 0 decided, 2 unusable, 1 an error of ours (CS-62)."""
    from services.notify import decide  # noqa: PLC0415 - not needed by a service's process

    return decide.run(sys.stdin.buffer, sys.stdout.buffer, lines=lines)

"""The whole house on this machine: PostgreSQL, the authority, the three services.

Each service is a process of its own, as in production, and is started again if it dies. Secrets
are made once and kept in the data directory, readable by its owner only.
"""

import asyncio
import base64
import contextlib
import fcntl
import os
import secrets
import signal
import socket
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any
from urllib.parse import urlsplit

import asyncpg
import httpx
import orjson

from services.cli import postgres, tokens
from services.plumbing import region, settings
from services.plumbing.migrate import migrate
from services.plumbing.settings import SERVICES, Service

PARTS = ("authority", *SERVICES)
"""What runs, in the order of its ports."""
PORT = 8000
LOOPBACK = "127.0.0.1"
STOPPING = 30.0
"""Real seconds a part has to finish what is in hand."""
READY = 60.0

Say = Callable[[str], None]


class HouseError(Exception):
    """It cannot be started here; the message says what to do."""


def default_data_dir() -> Path:
    """`/var/lib/passerelle` for root, whose home must stay closed; else the user's own data."""
    if os.geteuid() == 0:
        return Path("/var/lib/passerelle")
    return Path.home() / ".local" / "share" / "passerelle"


def default_demo_dir() -> Path:
    """Beside the other, so that a demonstration never mixes with what `up` keeps."""
    own = default_data_dir()
    return own.with_name(f"{own.name}-demo")


@dataclass(frozen=True, slots=True)
class Plan:
    """Where and how the house is built."""

    data: Path
    region: Path
    port: int = PORT
    clock: Path | None = None
    extra: Mapping[str, str] = field(default_factory=dict)
    """More `PASSERELLE_*` variables for every part."""
    parts: Sequence[str] = PARTS
    """`relays` of tests leave some out."""

    def url(self, part: str) -> str:
        return f"http://{LOOPBACK}:{self.port + PARTS.index(part)}"


@dataclass(slots=True)
class Part:
    """One process of the house."""

    name: str
    environment: dict[str, str]
    log: Path
    process: asyncio.subprocess.Process | None = None
    restarts: int = 0

    async def start(self) -> None:
        with self.log.open("ab") as output:
            self.process = await asyncio.create_subprocess_exec(
                sys.executable,
                "-m",
                "services.cli.main",
                self.name,
                env=self.environment,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,  # Ctrl-C is for the house, which stops its parts in order
            )

    async def keep(self) -> None:
        """Start it again whenever it ends, a little later each time it ends early."""
        wait = 0.1
        while True:
            assert self.process is not None
            began = asyncio.get_running_loop().time()
            await self.process.wait()
            lived = asyncio.get_running_loop().time() - began
            wait = 0.1 if lived > 10 else min(wait * 2, 5.0)
            await asyncio.sleep(wait)
            self.restarts += 1
            await self.start()

    async def stop(self) -> None:
        process = self.process
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.send_signal(signal.SIGTERM)
        try:
            await asyncio.wait_for(process.wait(), STOPPING)
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                process.kill()
            await process.wait()


@dataclass(slots=True)
class House:
    """A running house."""

    plan: Plan
    server: postgres.Postgres
    parts: dict[str, Part]

    def url(self, part: str) -> str:
        return self.plan.url(part)

    async def token(self, client: str, scope: str | None = None) -> str:
        """An access token of a client of the region file, got like any hospital's or clinic's."""
        return await tokens.access_token(self.plan.data, self.url("authority"), client, scope)


@asynccontextmanager
async def running(plan: Plan, say: Say = lambda _: None) -> AsyncIterator[House]:
    """The house, ready to answer, for as long as the block lasts; data stays."""
    make_folder(plan.data)
    _ports_are_free(plan)
    with _alone(plan.data):
        _region_in_place(plan)
        say("PostgreSQL")
        server = await asyncio.to_thread(_server, plan)
        parts: dict[str, Part] = {}
        keepers: list[asyncio.Task[None]] = []
        try:
            kept = _secrets(plan.data)
            owner = kept["passwords"]["owner"]
            await make_owner(server, owner, postgres.DATABASE)
            done = await migrate(
                server.url(postgres.OWNER, owner),
                {name: kept["passwords"][name] for name in PARTS},
            )
            if done:
                say(f"{len(done)} migrations")
            for name in plan.parts:
                part = Part(name, environment(plan, server, kept, name), plan.data / f"{name}.log")
                parts[name] = part
                await part.start()
            say("authority and services")
            await _until_ready(plan, parts)
            (plan.data / "issuer").write_text(plan.url("authority"))
            keepers = [asyncio.create_task(part.keep()) for part in parts.values()]
            yield House(plan, server, parts)
        finally:
            (plan.data / "issuer").unlink(missing_ok=True)
            for keeper in keepers:
                keeper.cancel()
            await asyncio.gather(*keepers, return_exceptions=True)
            await asyncio.gather(*(part.stop() for part in parts.values()))
            await asyncio.to_thread(server.stop)


def environment(
    plan: Plan, server: postgres.Postgres, kept: Mapping[str, Any], part: str
) -> dict[str, str]:
    """All `PASSERELLE_*` variables of one part: only the secrets it needs."""
    keys = {name: orjson.dumps(ring).decode() for name, ring in kept["keyrings"].items()}
    own: dict[str, str] = {
        "PASSERELLE_LOCAL": "true",
        "PASSERELLE_HOST": LOOPBACK,
        "PASSERELLE_PORT": str(plan.port + PARTS.index(part)),
        "PASSERELLE_REGION": str(plan.data / "region.yaml"),
        "PASSERELLE_ISSUER": plan.url("authority"),
        "PASSERELLE_DATABASE_URL": server.url(f"passerelle_{part}", kept["passwords"][part]),
        **{f"PASSERELLE_{name.upper()}_URL": plan.url(name) for name in SERVICES},
        **plan.extra,
    }
    if plan.clock is not None:
        own["PASSERELLE_CLOCK"] = str(plan.clock)
    if part == "authority":
        own["PASSERELLE_SIGNING_KEY_FILE"] = str(plan.data / "authority.private.json")
        own["PASSERELLE_OIDC_CLIENT_SECRET"] = kept["oidc_client_secret"]
    else:
        own["PASSERELLE_DATE_KEYS"] = keys["dates"]
        own["PASSERELLE_CURSOR_KEY"] = kept["cursor_key"]
        own["PASSERELLE_CHECKPOINT_KEY"] = kept["checkpoint_key"]
        own["PASSERELLE_CHECKPOINT_FOLDER"] = str(plan.data / "checkpoints")
        own["PASSERELLE_OIDC_CLIENT_SECRET"] = kept["oidc_client_secret"]
    if part in ("ingest", "notify"):
        own["PASSERELLE_TOKEN_KEYS"] = keys["tokens"]
        own["PASSERELLE_SEAL_KEYS"] = keys["seals"]
    return {**settings.inherited(), **own}


def environments(data: Path | None) -> dict[Service, dict[str, str]]:
    """The variables of each service of a running house; of the one that runs, if none is named.

    HouseError if none runs there, or its secrets are closed to whoever asks.
    """
    folders = [data] if data is not None else [default_data_dir(), default_demo_dir()]
    running = [folder for folder in folders if (folder / "issuer").exists()]
    if not running:
        raise HouseError(
            f"No passerelle runs from {' or '.join(map(str, folders))}. Start it, name its"
            " --data-dir, or name a service to look at with this process's variables."
        )
    folder = running[0]
    try:
        port = urlsplit((folder / "issuer").read_text()).port or PORT
        sockets = (folder / "postgres" / "data" / "postmaster.pid").read_text().splitlines()[4]
        kept = orjson.loads((folder / "secrets.json").read_bytes())
    except (OSError, IndexError):
        raise HouseError(f"{folder} is closed to you: ask as who runs it.") from None
    server = postgres.Postgres(folder / "postgres" / "data", Path(sockets), 0, "")
    clock = folder / "clock.json"
    plan = Plan(folder, folder / "region.yaml", port, clock if clock.exists() else None)
    return {name: environment(plan, server, kept, name) for name in SERVICES}


async def make_owner(server: postgres.Postgres, password: str, database: str) -> None:
    """The owner role and its database, if they are missing. The owner is no superuser."""
    connection = await asyncpg.connect(server.superuser_url)
    try:
        secret = await connection.fetchval("select quote_literal($1::text)", password)
        known = await connection.fetchval(
            "select true from pg_roles where rolname = $1", postgres.OWNER
        )
        verb = "alter" if known else "create"
        await connection.execute(
            f"{verb} role {postgres.OWNER} login createrole nosuperuser password {secret}"
        )
        there = await connection.fetchval(
            "select true from pg_database where datname = $1", database
        )
        if not there:
            await connection.execute(f"create database {database} owner {postgres.OWNER}")
            await connection.execute(f"revoke all on database {database} from public")
    finally:
        await connection.close()


def make_folder(data: Path) -> None:
    """Make the data directory. HouseError if it cannot be used."""
    try:
        data.mkdir(parents=True, exist_ok=True)
        # As root the server's own user must pass through; what is secret in it is closed itself.
        data.chmod(0o711 if os.geteuid() == 0 else 0o700)
    except OSError as error:
        raise HouseError(
            f"{data} cannot be used: {error.strerror}. Choose another with --data-dir."
        ) from None


def _ports_are_free(plan: Plan) -> None:
    for part in plan.parts:
        port = plan.port + PARTS.index(part)
        with socket.socket() as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                probe.bind((LOOPBACK, port))
            except OSError:
                raise HouseError(
                    f"Port {port} ({part}) is in use. Stop what uses it, or choose four others"
                    f" with --port (now {plan.port} to {plan.port + len(PARTS) - 1})."
                ) from None


@contextlib.contextmanager
def _alone(data: Path) -> Any:
    """Hold the data directory; another `up` on it is refused."""
    lock: IO[str]
    with (data / "lock").open("a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            raise HouseError(f"Another passerelle is running on {data}.") from None
        yield


def _server(plan: Plan) -> postgres.Postgres:
    postgres.stop_orphan(plan.data / "postgres")
    return postgres.start(plan.data / "postgres")


def _region_in_place(plan: Plan) -> None:
    """`region.yaml` points at the region file; its clients without keys are given a pair."""
    link = plan.data / "region.yaml"
    if link.is_symlink() or link.exists():
        link.unlink()
    link.symlink_to(plan.region.resolve())
    for client in region.load(link).clients:
        if client.jwks is None and client.jwks_url is None:
            tokens.make_keys(plan.data, client.id)
    region.load(link)


def _secrets(data: Path) -> dict[str, Any]:
    file = data / "secrets.json"
    if not file.exists():
        made = {
            "passwords": {name: secrets.token_urlsafe(32) for name in ("owner", *PARTS)},
            "keyrings": {
                name: {"active": f"{name[0]}1", "keys": {f"{name[0]}1": _key()}}
                for name in ("tokens", "seals", "dates")
            },
            "cursor_key": _key(),
            "checkpoint_key": _key(),
            "oidc_client_secret": secrets.token_urlsafe(32),
        }
        new = file.with_suffix(".new")
        new.touch(mode=0o600)
        new.write_bytes(orjson.dumps(made, option=orjson.OPT_INDENT_2))
        new.rename(file)
    kept: dict[str, Any] = orjson.loads(file.read_bytes())
    return kept


def _key() -> str:
    return base64.b64encode(secrets.token_bytes(32)).decode()


async def _until_ready(plan: Plan, parts: Mapping[str, Part]) -> None:
    async with httpx.AsyncClient(timeout=2, trust_env=False) as http:
        for name, part in parts.items():
            await _ready(http, plan, name, part)


async def _ready(http: httpx.AsyncClient, plan: Plan, name: str, part: Part) -> None:
    end = asyncio.get_running_loop().time() + READY
    while asyncio.get_running_loop().time() < end:
        if part.process is not None and part.process.returncode is not None:
            last = part.log.read_text(errors="replace").strip().splitlines()[-3:]
            raise HouseError(f"{name} ended at once; its log is {part.log}:\n" + "\n".join(last))
        with contextlib.suppress(httpx.HTTPError):
            answer = await http.get(f"{plan.url(name)}/health/ready")
            if answer.status_code == httpx.codes.OK:
                return
        await asyncio.sleep(0.05)
    raise HouseError(f"{name} does not answer; its log is {part.log}")

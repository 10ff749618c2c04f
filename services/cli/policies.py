"""`passerelle policy`: counting rules checked, stored, compared and activated (CT-50, CT-51).

Asks screening's door, as any client does; only reading a file or a preset needs no door.
"""

import asyncio
from collections.abc import Coroutine, Mapping
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any, NoReturn, TypeVar

import httpx
import orjson
import typer
import yaml
from rich.console import Console

from services.cli import house, operations, postgres, tokens
from services.cli.whatif import Door
from services.plumbing.region import RegionError
from services.plumbing.settings import SettingsError
from services.screening import policy, presets
from services.screening.policy import Policy, PolicyRefused

T = TypeVar("T")
LONGEST = 30.0
"""Real seconds that an answer may take."""

commands = typer.Typer(
    help="Counting rules: check, store, compare, activate.", no_args_is_help=True
)
terminal = Console(stderr=True, highlight=False, soft_wrap=True)

As = Annotated[str, typer.Option("--as", help="A client of the running `up` or `demo`.")]
Url = Annotated[str | None, typer.Option(help="Screening elsewhere; needs --token-file.")]
TokenFile = Annotated[Path | None, typer.Option(help="Holds an access token for it.")]
DataDir = Annotated[Path | None, typer.Option(help="Of the running `up` or `demo`.")]
Port = Annotated[int, typer.Option(help="The first of its four ports.", min=1, max=65532)]
Preset = Annotated[str | None, typer.Option(help="A definition that comes with Passerelle.")]
Label = Annotated[str, typer.Argument(metavar="NAME@VERSION")]
File = Annotated[Path | None, typer.Argument(help="A policy file.")]


class Mode(StrEnum):
    """What an activation makes of a policy."""

    LIVE = "live"
    SHADOW = "shadow"
    RETIRE = "retire"


class PolicyError(Exception):
    """What was asked is not to be had; the message says why."""


def fail(message: object, code: int = 1) -> NoReturn:
    """End with `message` on standard error."""
    terminal.print(str(message), style="red", markup=False)
    raise typer.Exit(code)


def run(work: Coroutine[Any, Any, T]) -> T:
    """Run `work`; what an operator can mend is said in one line."""
    try:
        return asyncio.run(work)
    except SettingsError as error:
        fail(error, 2)
    except (
        PolicyError,
        house.HouseError,
        postgres.PostgresError,
        RegionError,
        tokens.TokenError,
    ) as error:
        fail(error)


async def ask(door: Door, method: str, path: str, **more: Any) -> dict[str, Any]:
    """What screening answers. PolicyError: its own words, where it refuses."""
    headers = {"Authorization": f"Bearer {door.token}", **more.pop("headers", {})}
    url = f"{door.url}/v1/policies{path}"
    try:
        async with httpx.AsyncClient(timeout=LONGEST) as http:
            answer = await http.request(method, url, headers=headers, **more)
        said: dict[str, Any] = answer.json()
    except (httpx.HTTPError, ValueError):
        raise PolicyError(f"Screening at {door.url} does not answer. Is it running?") from None
    if answer.is_success:
        return said
    texts = [issue["details"]["text"] for issue in said.get("issue", [])]
    raise PolicyError(" ".join(texts) or f"Screening refuses ({answer.status_code}).")


def place(label: str) -> str:
    """`name@version` as it stands in an address."""
    name, _, version = label.rpartition("@")
    if not policy.NAME.fullmatch(name) or not version.isdecimal():
        fail(f"{label}: a policy is named as name@version", 2)
    return f"/{name}/{version}"


def text_of(file: Path | None, preset: str | None) -> tuple[str, str]:
    """Where it comes from, and the text of it: of a file, or of a preset."""
    if (file is None) == (preset is None):
        fail("Name a file, or a preset with --preset.", 2)
    if preset is not None:
        try:
            return preset, presets.text(preset)
        except KeyError:
            fail(f"--preset: one of {', '.join(presets.names())}", 2)
    assert file is not None
    try:
        return f"{file}", file.read_text()
    except OSError as error:
        fail(f"{file}: {error.strerror}")
    except UnicodeDecodeError:
        fail(f"{file}: is not UTF-8 text")


def checked(file: Path | None, preset: str | None) -> tuple[str, Policy]:
    """The text and the policy that it is; else where it is wrong."""
    source, text = text_of(file, preset)
    try:
        return text, policy.load(text)
    except PolicyRefused as refused:
        fail(f"{source}, {refused}")


def line(found: Mapping[str, Any]) -> str:
    """One policy as `list` shows it: what it is called and stands for, and since when."""
    said = [f"{found['name']}@{found['version']}", found["status"]]
    if found["since"]:
        said.append(f"since {found['since']}")
        said.append("everybody looked at" if found["evaluated"] else "looking at everybody")
    said += [f"{one['mode']} from {one['at']}" for one in found["waiting"]]
    title = found["title"].get("en") or found["title"].get("fr") or found["source"]
    return f"{', '.join(said)}: {title}"


@commands.command()
def validate(file: File = None, preset: Preset = None) -> None:
    """Check a policy file, without any service. Exit code 0: it can be used; 1: where it cannot."""
    _, rule = checked(file, preset)
    typer.echo(f"{rule.label} {rule.sha256}")


@commands.command("list")
def list_(
    as_: As = "ops-client",
    url: Url = None,
    token_file: TokenFile = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """List what is stored: live, in shadow, or merely stored."""

    async def told() -> dict[str, Any]:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        return await ask(door, "GET", "")

    for one in run(told())["policies"]:
        typer.echo(line(one))


@commands.command()
def show(
    label: Annotated[str | None, typer.Argument(metavar="NAME@VERSION")] = None,
    preset: Preset = None,
    as_: As = "ops-client",
    url: Url = None,
    token_file: TokenFile = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Print a stored policy in full, as YAML; or the file of a preset."""
    if label is None:
        typer.echo(text_of(None, preset)[1], nl=False)
        return
    path = place(label)

    async def told() -> dict[str, Any]:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        return await ask(door, "GET", path)

    found = run(told())
    typer.echo(f"# {line(found)}")
    typer.echo(yaml.safe_dump(found["policy"], allow_unicode=True, sort_keys=False), nl=False)


@commands.command()
def diff(
    before: Label,
    after: Label,
    as_: As = "ops-client",
    url: Url = None,
    token_file: TokenFile = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Say where two stored policies differ. Exit code 0: nowhere; 1: somewhere."""
    place(before)
    path = place(after)

    async def told() -> dict[str, Any]:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        return await ask(door, "GET", f"{path}/diff", params={"against": before})

    found = run(told())["differences"]
    for one in found:
        values = [orjson.dumps(one[side]).decode() for side in ("before", "after")]
        typer.echo(f"{one['path']}: {values[0]} -> {values[1]}")
    raise typer.Exit(1 if found else 0)


@commands.command()
def load(
    file: File = None,
    preset: Preset = None,
    as_: As = "ops-client",
    url: Url = None,
    token_file: TokenFile = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Store a policy file, or a preset. It counts nothing until it is activated."""
    text, _ = checked(file, preset)

    async def told() -> dict[str, Any]:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        headers = {"Content-Type": "application/yaml"}
        return await ask(door, "POST", "", content=text, headers=headers)

    typer.echo(line(run(told())))


@commands.command()
def activate(
    label: Label,
    mode: Annotated[
        Mode, typer.Option(help="live; shadow: counted, never announced; retire: out of it.")
    ] = Mode.LIVE,
    at: Annotated[
        str | None, typer.Option(help="From when, with its offset: 2026-12-01T00:00:00-05:00.")
    ] = None,
    as_: As = "ops-client",
    url: Url = None,
    token_file: TokenFile = None,
    data_dir: DataDir = None,
    port: Port = house.PORT,
) -> None:
    """Make a stored policy live, or count with it in its shadow. Everybody is looked at again,
    quietly; `list` says when that is done.
    """
    path = place(label)
    wish = {"mode": mode} if at is None else {"mode": mode, "at": at}

    async def told() -> dict[str, Any]:
        door = await operations.screening_door(url, token_file, data_dir, port, as_)
        return await ask(door, "POST", f"{path}/activate", json=wish)

    typer.echo(line(run(told())))

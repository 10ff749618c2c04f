"""`passerelle import consents FILE`: Consents of an NDJSON file, through the clinics' door.

One Consent a line, oldest version first, sent as any client sends it, with a token, and in force
when it is answered. What is refused is kept by the service for a person; here it is named by its
line, path and rule, never by what it says.
"""

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Final, NoReturn

import httpx
import orjson
import typer

from services.cli import house, operations, tokens

FHIR: Final = "application/fhir+json"
TOKEN_SECONDS: Final = 200.0
"""How long a token is used; the authority grants 300 s at most (SM-06)."""
PATIENCE: Final = 8
"""Attempts at a door that is busy or away; waits double from half a second."""
LONGEST_LINE: Final = 1024 * 1024
"""Bytes."""

TokenFor = Callable[[], Awaitable[str]]


class ImportFailedError(Exception):
    """The rest of the file was not sent; the message says why, and how far it came."""


@dataclass(slots=True)
class Report:
    """What became of a file."""

    created: int = 0
    changed: int = 0
    same: int = 0
    held: int = 0
    """Of those taken: not computable, so a person must look."""
    refused: list[str] = field(default_factory=list)
    """A line each: number, status, path and rule."""

    def __str__(self) -> str:
        return (
            f"{self.created} created, {self.changed} changed, {self.same} as they were,"
            f" {len(self.refused)} refused; {self.held} wait for a person"
        )


def lines(file: Path) -> Iterator[tuple[int, bytes]]:
    """Number and text of each line that has any."""
    with file.open("rb") as opened:
        for number, line in enumerate(opened, start=1):
            if line.strip():
                yield number, line.strip()


async def consents(file: Path, base: str, token_for: TokenFor, http: httpx.AsyncClient) -> Report:
    """Send each line of `file` to `[base]/fhir/Consent`. OSError, ImportFailedError.

    A file may be sent again: what is there already is left as it is.
    """
    sender, report = _Sender(base, token_for, http), Report()
    for number, line in lines(file):
        resource = _consent(line)
        if isinstance(resource, str):
            report.refused.append(f"line {number}: {resource}")
            continue
        try:
            answer, was = await sender.put(resource)
        except ImportFailedError as error:
            raise ImportFailedError(f"line {number}: {error} Before it: {report}.") from None
        _count(report, number, answer, was)
    return report


def _consent(line: bytes) -> dict[str, Any] | str:
    """The resource, or why the line is none."""
    if len(line) > LONGEST_LINE:
        return "longer than 1 MiB"
    try:
        said = orjson.loads(line)
    except orjson.JSONDecodeError:
        return "not JSON"
    if not isinstance(said, dict) or said.get("resourceType") != "Consent":
        return "not a Consent"
    return said


def _count(report: Report, number: int, answer: httpx.Response, was: str | None) -> None:
    if not answer.is_success:
        report.refused.append(f"line {number}: {answer.status_code} {_why(answer)}")
        return
    if answer.status_code == httpx.codes.CREATED:
        report.created += 1
    elif answer.headers.get("ETag") == was:
        report.same += 1
    else:
        report.changed += 1
    report.held += "Warning" in answer.headers


def _why(answer: httpx.Response) -> str:
    """Path and rule of the first issue; the door repeats no value."""
    try:
        (issue, *_) = answer.json()["issue"]
        return " ".join([*issue.get("expression", []), issue["details"]["text"]])
    except (ValueError, KeyError, TypeError):
        return "refused"


@dataclass(slots=True)
class _Sender:
    base: str
    token_for: TokenFor
    http: httpx.AsyncClient
    token: tuple[str, float] | None = None

    async def put(self, resource: dict[str, Any]) -> tuple[httpx.Response, str | None]:
        """The answer, and the version that was there before, if one was (CA-21)."""
        id_ = resource.get("id")
        body = orjson.dumps(resource)
        if not isinstance(id_, str):
            return await self._send("POST", "Consent", body), None
        known = await self._send("GET", f"Consent/{id_}")
        was = known.headers.get("ETag") if known.is_success else None
        guard = {} if was is None else {"If-Match": was}
        return await self._send("PUT", f"Consent/{id_}", body, **guard), was

    async def _send(
        self, method: str, path: str, body: bytes | None = None, **headers: str
    ) -> httpx.Response:
        wait = 0.5
        for _ in range(PATIENCE):
            said = {"Content-Type": FHIR, "Authorization": f"Bearer {await self._bearer()}"}
            try:
                answer = await self.http.request(
                    method, f"{self.base}/fhir/{path}", content=body, headers={**said, **headers}
                )
            except httpx.TransportError:
                answer = None
            if answer is not None and answer.status_code == httpx.codes.UNAUTHORIZED:
                raise ImportFailedError("The token is not accepted.")
            if answer is not None and answer.status_code != 429 and answer.status_code < 500:
                return answer
            await asyncio.sleep(wait)
            wait *= 2
        raise ImportFailedError(f"{self.base} does not answer.")

    async def _bearer(self) -> str:
        now = asyncio.get_running_loop().time()
        if self.token is None or now >= self.token[1]:
            self.token = (await self.token_for(), now + TOKEN_SECONDS)
        return self.token[0]


# The command

commands = typer.Typer(help="Take in what others have kept.", no_args_is_help=True)


@commands.callback()
def import_() -> None:
    """Take in what others have kept."""


@commands.command("consents")
def consents_(
    file: Annotated[Path, typer.Argument(help="NDJSON: a Consent a line, oldest version first.")],
    as_: Annotated[
        str | None, typer.Option("--as", help="A client of the running `up` or `demo`.")
    ] = None,
    token_file: Annotated[
        Path | None, typer.Option(help="A file with an access token; elsewhere than `up`.")
    ] = None,
    url: Annotated[str | None, typer.Option(help="Of notify; default: that of `up`.")] = None,
    data_dir: Annotated[Path | None, typer.Option(help="Of that `up` or `demo`.")] = None,
    port: Annotated[int, typer.Option(help="The first of its four ports.")] = house.PORT,
) -> None:
    """Send the Consents of FILE through the clinics' door, as a client with system/Consent.cru.

    Exit codes: 0 all taken; 1 some refused, each by line, path and rule; 2 not to be sent.
    """
    if (as_ is None) == (token_file is None):
        _fail("Name a client with --as, or a file with a token with --token-file.")
    base = url or f"http://{house.LOOPBACK}:{port + 3}"
    issuer = f"http://{house.LOOPBACK}:{port}"

    async def token() -> str:
        if token_file is not None:
            return token_file.read_text().strip()
        folder = operations.data_dir_of(data_dir, issuer)
        return await tokens.access_token(folder, issuer, as_ or "")

    async def send() -> Report:
        async with httpx.AsyncClient(trust_env=False, timeout=30) as http:
            return await consents(file, base.rstrip("/"), token, http)

    try:
        report = asyncio.run(send())
    except OSError as error:
        _fail(f"{error.filename}: {error.strerror}")
    except (ImportFailedError, house.HouseError, tokens.TokenError) as error:
        _fail(str(error))
    for line in report.refused:
        typer.echo(line)
    typer.echo(str(report))
    raise typer.Exit(1 if report.refused else 0)


def _fail(message: str) -> NoReturn:
    typer.echo(message, err=True)
    raise typer.Exit(2)

"""One client's way to one service, as patient as a good integration engine (SIM-08)."""

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass

import httpx
import structlog

TokenFor = Callable[[str], Awaitable[str]]
"""From the id of a client to a bearer token for it, obtained as any client obtains it."""

TOKEN_SECONDS = 200.0
"""How long a token is used; the authority grants 300 s at most (SM-06)."""
FIRST_PAUSE = 0.1
LONGEST_PAUSE = 5.0
FHIR = "application/fhir+json"


@dataclass(slots=True)
class Tally:
    """What became of what was sent. `sent` = accepted + held + refused."""

    sent: int = 0
    accepted: int = 0
    held: int = 0
    """Answered 2xx with a warning: the hospital is told that something is missing."""
    refused: int = 0
    retried: int = 0
    mischief: int = 0
    """Requests that were wrong on purpose; not among those sent."""
    taken: int = 0
    """Of these, what a door took that it should have refused."""

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.sent + other.sent,
            self.accepted + other.accepted,
            self.held + other.held,
            self.refused + other.refused,
            self.retried + other.retried,
            self.mischief + other.mischief,
            self.taken + other.taken,
        )

    def __str__(self) -> str:
        mischief = f", wrong on purpose {self.mischief} (taken {self.taken})"
        return (
            f"sent {self.sent}, accepted {self.accepted}, held {self.held}, "
            f"refused {self.refused}, retried {self.retried}{mischief if self.mischief else ''}"
        )


class Door:
    """Sends requests of one client until each has an answer that waiting cannot change.

    429 makes the whole client wait for `Retry-After`; 5xx, time-outs and broken connections
    are tried again, the same request with the same ids, after 0.1 s doubling to 5 s. Anything
    else is the caller's to judge. It tries for ever: whoever runs it decides when to stop.
    """

    def __init__(
        self, base: str, client: str, token_for: TokenFor, http: httpx.AsyncClient
    ) -> None:
        self.client = client
        self.tally = Tally()
        self._base = base.rstrip("/")
        self._token_for = token_for
        self._http = http
        self._token: tuple[str, float] | None = None
        self._renewing = asyncio.Lock()
        self._open = asyncio.Event()
        self._open.set()
        self._opening: asyncio.TimerHandle | None = None

    async def send(
        self,
        method: str,
        path: str,
        body: bytes | None = None,
        *,
        token: str | None = None,
        **headers: str,
    ) -> httpx.Response:
        """`headers` by their names with `_` for `-`. Never raises for what a server may do.

        `token` is used instead of the client's own, and not renewed where it is refused.
        """
        named = {"Content-Type": FHIR, "Accept": FHIR}
        named |= {name.replace("_", "-"): value for name, value in headers.items()}
        pause, renewed = FIRST_PAUSE, token is not None
        while True:
            await self._open.wait()
            response = await self._attempt(method, path, body, named, token)
            if response is not None and response.status_code == 401 and not renewed:
                self._token, renewed = None, True
                continue
            if response is not None and response.status_code == 429:
                self._be_quiet(_told(response.headers, 1.0))
            elif response is not None and response.status_code < 500:
                return response
            else:
                wait = _told(response.headers, pause) if response is not None else pause
                await asyncio.sleep(wait)
                pause = min(pause * 2, LONGEST_PAUSE)
            self.tally.retried += 1

    async def _attempt(
        self,
        method: str,
        path: str,
        body: bytes | None,
        headers: Mapping[str, str],
        token: str | None,
    ) -> httpx.Response | None:
        try:
            bearer = {"Authorization": f"Bearer {token or await self._bearer()}"}
            return await self._http.request(
                method, f"{self._base}/{path}", content=body, headers={**headers, **bearer}
            )
        except httpx.TransportError as error:
            structlog.get_logger().info(
                "simulator.retry", client=self.client, error=type(error).__name__
            )
            return None

    async def _bearer(self) -> str:
        async with self._renewing:
            now = asyncio.get_running_loop().time()
            if self._token is None or now >= self._token[1]:
                self._token = (await self._token_for(self.client), now + TOKEN_SECONDS)
            return self._token[0]

    def _be_quiet(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        until = loop.time() + seconds
        if self._opening is not None and not self._open.is_set():
            until = max(until, self._opening.when())
            self._opening.cancel()
        self._open.clear()
        self._opening = loop.call_at(until, self._open.set)


def _told(headers: Mapping[str, str], otherwise: float) -> float:
    """Seconds of `Retry-After`; `otherwise` where it is absent, a date or not a number."""
    said = headers.get("Retry-After", "")
    return float(said) if said.isdecimal() else otherwise

"""A hospital's integration engine: it speaks to the ingest door as any hospital would.

The first hospital sends Da Vinci notifications to `$process-message`, and by PUT what has no
notification; the second puts its resources. Both send history in batch Bundles.
"""

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import httpx
import orjson
import structlog

from services.simulator import fhir
from services.simulator.door import Door
from services.simulator.draws import Draws, code
from services.simulator.feed import STRAY, Kind, Message

LANES = 8
"""Requests of one engine at a time; the messages of a patient share a lane, in order."""
BATCH = 100
HELD = "held"
REFUSED = "refused"
OUTCOME = "return=OperationOutcome"


MISCHIEF = 0.02
"""Of messages, for each kind of `--misbehave` (assumed)."""
NO_TOKEN = "TEST-no-token"  # noqa: S105 - what a door must refuse


class _Request(NamedTuple):
    method: str
    path: str
    resource: fhir.Json

    @property
    def body(self) -> bytes:
        return orjson.dumps(self.resource)


class Engine:
    """What one hospital sends, and a tally of what became of it.

    `misbehaves`: some messages come cut off or with a wrong token before they come right, some
    come again under a new Bundle id.
    """

    def __init__(self, site: str, in_place: bool, door: Door, *, misbehaves: bool = False) -> None:
        self.troubled: dict[str, str] = {}
        """The visits whose last word was held or refused, and which."""
        self._site = site
        self._in_place = in_place
        self._door = door
        self._misbehaves = misbehaves

    async def deliver(self, messages: Sequence[Message]) -> None:
        """Sends `messages`; returns when each has its answer. Order is kept per patient."""
        lanes: dict[int, list[Message]] = {}
        for message in messages:
            lanes.setdefault(message.lane % LANES, []).append(message)
        async with asyncio.TaskGroup() as together:
            for lane in lanes.values():
                together.create_task(self._one_by_one(lane))

    async def backfill(self, messages: Sequence[Message], done: Callable[[int], None]) -> None:
        """The fast path for history; `done` hears how many more messages have an answer."""
        for wave in waves(messages, BATCH):
            entries = [fhir.put(self._site, self._in_place, each) for each in wave]
            body = orjson.dumps(fhir.batch(entries))
            response = await self._door.send("POST", "", body, Prefer=OUTCOME)
            self._count_batch(response, wave)
            done(len(wave))

    async def _one_by_one(self, lane: Sequence[Message]) -> None:
        for message in lane:
            request = self._request(message)
            mischief = Draws(message.seed, message.name, "mischief") if self._misbehaves else None
            if mischief and mischief.chance(MISCHIEF):
                await self._wrong(request, request.body[: len(request.body) // 2])
            if mischief and mischief.chance(MISCHIEF):
                await self._wrong(request, request.body, token=NO_TOKEN)
            response = await self._send(request, request.body)
            self._count(message, response.status_code, _json(response))
            if mischief and mischief.chance(MISCHIEF) and request.method == "POST":
                await self._again(request, message)

    def _request(self, message: Message) -> _Request:
        if not self._in_place and message.kind not in (Kind.PATIENT, Kind.TAKEN_BACK):
            return _Request("POST", "$process-message", fhir.notification(self._site, message))
        return _Request("PUT", *fhir.put(self._site, self._in_place, message))

    async def _send(
        self, request: _Request, body: bytes, token: str | None = None
    ) -> httpx.Response:
        prefer = {"Prefer": OUTCOME} if request.method == "PUT" else {}
        return await self._door.send(request.method, request.path, body, token=token, **prefer)

    async def _wrong(self, request: _Request, body: bytes, token: str | None = None) -> None:
        response = await self._send(request, body, token)
        self._door.tally.mischief += 1
        if response.is_success:
            self._door.tally.taken += 1
            structlog.get_logger().warning(
                "simulator.mischief_taken", site=self._site, method=request.method
            )

    async def _again(self, request: _Request, message: Message) -> None:
        """The same under a new Bundle id: accepted as the first, and without effect (HA-46)."""
        bundle = {**request.resource, "id": code(message.id, "again")}
        await self._send(request, orjson.dumps(bundle))
        self._door.tally.mischief += 1

    def _count_batch(self, response: httpx.Response, wave: Sequence[Message]) -> None:
        answer = _json(response)
        entries = answer.get("entry") if response.is_success else None
        if not isinstance(entries, list) or len(entries) != len(wave):
            for message in wave:
                self._count(message, response.status_code, answer)
            return
        for message, entry in zip(wave, entries, strict=True):
            status = int(entry["response"]["status"][:3])
            said = entry["response"].get("outcome") or entry.get("resource") or {}
            self._count(message, status, said)

    def _count(self, message: Message, status: int, said: dict[str, Any]) -> None:
        tally = self._door.tally
        tally.sent += 1
        visit = message.encounter.visit if message.encounter else None
        if visit:
            self.troubled.pop(visit, None)
        if not 200 <= status < 300:
            tally.refused += 1
            if visit:
                self.troubled[visit] = REFUSED
            structlog.get_logger().warning(
                "simulator.refused",
                site=self._site,
                kind=message.kind.value,
                status=status,
                issues=[_where(issue) for issue in said.get("issue", [])],
            )
        elif is_held(said):
            tally.held += 1
            if visit:
                self.troubled[visit] = HELD
        else:
            tally.accepted += 1


class Truth(NamedTuple):
    """What really happened, and what became of it at the doors: encounters, not messages."""

    happened: int = 0
    held: int = 0
    refused: int = 0

    def plus(self, other: "Truth") -> "Truth":
        return Truth(
            self.happened + other.happened,
            self.held + other.held,
            self.refused + other.refused,
        )

    def __str__(self) -> str:
        known = self.happened - self.held - self.refused
        return (
            f"of {self.happened} encounters that happened {known} are taken in, "
            f"{self.held} held, {self.refused} refused"
        )


def compare(sent: Sequence[Message], engines: Sequence[Engine]) -> Truth:
    """What became of the encounters of `sent`; one registered by mistake never happened."""
    visits = {
        message.encounter.visit
        for message in sent
        if message.encounter and not message.encounter.visit.endswith(STRAY)
    }
    said = Counter(
        outcome
        for engine in engines
        for visit, outcome in engine.troubled.items()
        if visit in visits
    )
    return Truth(len(visits), said[HELD], said[REFUSED])


def waves(messages: Sequence[Message], size: int) -> Iterator[list[Message]]:
    """Bundles of at most `size` messages that keep the order of each patient.

    No resource stands twice in one (HA-32). Whoever has most left comes first, so that no
    long tail of small Bundles remains.
    """
    waiting: dict[int, deque[Message]] = {}
    for message in messages:
        waiting.setdefault(message.lane, deque()).append(message)
    while waiting:
        wave: list[Message] = []
        for lane in sorted(waiting, key=lambda each: (-len(waiting[each]), each)):
            there: set[str] = set()
            queue = waiting[lane]
            while queue and len(wave) < size and _resource(queue[0]) not in there:
                there.add(_resource(queue[0]))
                wave.append(queue.popleft())
            if not queue:
                del waiting[lane]
            if len(wave) == size:
                break
        yield wave


def is_held(said: dict[str, Any]) -> bool:
    """Whether a 2xx answer says that what was sent waits for something (HA, section 9)."""
    if said.get("resourceType") == "OperationOutcome":
        return any(issue.get("severity") == "warning" for issue in said.get("issue", []))
    return any(tag.get("code") == HELD for tag in said.get("meta", {}).get("tag", []))


def _resource(message: Message) -> str:
    if message.encounter is None:
        return f"Patient/{message.identity.record}"
    return f"Encounter/{message.encounter.visit}"


def _where(issue: dict[str, Any]) -> str:
    """Code and place of an issue; never its text, which is not ours to repeat."""
    return " ".join([str(issue.get("code")), *map(str, issue.get("expression", []))])


def _json(response: httpx.Response) -> dict[str, Any]:
    try:
        said = orjson.loads(response.content)
    except orjson.JSONDecodeError:
        return {}
    return said if isinstance(said, dict) else {}

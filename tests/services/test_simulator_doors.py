"""The simulator before doors that throttle, fail, refuse and hang up (SIM-07, SIM-08)."""

import asyncio
import contextlib
import json
import re
from collections import Counter, defaultdict
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from fastapi import FastAPI, Request, Response

from services.plumbing.clock import Clock, drive
from services.plumbing.region import load
from services.simulator import cast, flow, papers, sending
from services.simulator.clinic import Emr, keep_up, record_consents, upload_panel, working
from services.simulator.door import Door
from services.simulator.feed import STRAY, Kind, Message, feed
from services.simulator.hospital import Engine, Truth, compare
from services.simulator.profiles import Profile, SimulateError, profile
from services.simulator.region import ZONE
from tests.web.serving import served

Answer = Callable[["Seen"], Response | None]
OUTCOME = {"resourceType": "OperationOutcome", "issue": [{"severity": "information"}]}
WARNING = {"resourceType": "OperationOutcome", "issue": [{"severity": "warning"}]}


@dataclass(frozen=True)
class Seen:
    """One request as it arrived."""

    method: str
    path: str
    token: str
    body: bytes
    headers: dict[str, str]

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass
class Neighbour:
    """A server of somebody else: notes what comes, and answers as `faults` say, else 200."""

    seen: list[Seen] = field(default_factory=list)
    faults: list[Answer] = field(default_factory=list)
    """Each is asked in turn; the first that gives an answer is used up."""
    otherwise: Answer = lambda _: None
    """Asked when no fault answers, as often as it comes to that."""
    notice: Callable[[], None] = lambda: None
    """Called when something has come."""
    most_at_once: int = 0
    at_once: int = 0
    times: list[float] = field(default_factory=list)

    def app(self) -> FastAPI:
        app = FastAPI()

        @app.api_route("/{path:path}", methods=["GET", "PUT", "POST", "PATCH"])
        async def anything(request: Request, path: str) -> Response:
            self.at_once += 1
            self.most_at_once = max(self.most_at_once, self.at_once)
            try:
                return self._answer(await self._note(request, path))
            finally:
                self.at_once -= 1

        return app

    async def _note(self, request: Request, path: str) -> Seen:
        query = f"?{request.url.query}" if request.url.query else ""
        token = request.headers["authorization"].removeprefix("Bearer ")
        one = Seen(
            request.method, f"{path}{query}", token, await request.body(), dict(request.headers)
        )
        self.seen.append(one)
        self.times.append(asyncio.get_running_loop().time())
        self.notice()
        await asyncio.sleep(0.002)
        return one

    def _answer(self, one: Seen) -> Response:
        for fault in self.faults:
            answer = fault(one)
            if answer is not None:
                self.faults.remove(fault)
                return answer
        usual = self.otherwise(one)
        if usual is not None:
            return usual
        if one.method == "POST" and one.body.startswith(b'{"resourceType":"Bundle","type":"batch"'):
            entries = [{"response": {"status": "200 OK"}} for _ in one.json["entry"]]
            return reply(200, {"resourceType": "Bundle", "entry": entries})
        return reply(200, OUTCOME)


def reply(status: int, body: Any = OUTCOME, **headers: str) -> Response:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Response(json.dumps(body), status, named, "application/fhir+json")


def once(status: int, body: Any = OUTCOME, **headers: str) -> Answer:
    return lambda _: reply(status, body, **headers)


class Tokens:
    """An authority as far as a client sees it."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    async def __call__(self, client: str) -> str:
        self.asked.append(client)
        return f"{client}-{len(self.asked)}"


@contextlib.asynccontextmanager
async def door_to(neighbour: Neighbour, client: str = "hospital-a") -> AsyncIterator[Door]:
    async with served(neighbour.app()) as url, httpx.AsyncClient(timeout=0.5) as http:
        yield Door(url, client, Tokens(), http)


@pytest.fixture(scope="module")
def messages() -> list[Message]:
    return feed(profile("demo", people=150, clean=True), 365)


def at(messages: Sequence[Message], site: int) -> list[Message]:
    return [message for message in messages if message.site == site]


async def test_the_first_hospital_sends_notifications_and_the_second_puts(
    messages: list[Message],
) -> None:
    neighbour = Neighbour()
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:12])
        seen = len(neighbour.seen)
        await Engine("hospital-b", True, door).deliver(at(messages, 1)[:12])
    first, second = neighbour.seen[:seen], neighbour.seen[seen:]
    notified = [one for one in first if one.path == "$process-message"]
    assert notified
    assert all(one.path.startswith("Patient/TEST-") for one in first if one not in notified)
    assert {one.method for one in second} == {"PUT"}
    assert all(one.path.startswith(("Patient/TEST-", "Encounter/TEST-")) for one in second)
    assert door.tally.sent == door.tally.accepted == 24


async def test_after_429_nothing_is_sent_until_the_time_told(messages: list[Message]) -> None:
    neighbour = Neighbour(faults=[once(429, Retry_After="1")])
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:40])
    began, first = neighbour.times[0], neighbour.seen[0]
    in_flight = [time for time in neighbour.times[1:] if time - began < 0.5]
    assert len(in_flight) < 8
    assert all(time - began >= 0.95 or time - began < 0.5 for time in neighbour.times[1:])
    assert sum(one.body == first.body for one in neighbour.seen) == 2
    assert door.tally.retried == 1
    assert door.tally.accepted == 40


@pytest.mark.parametrize("status", [500, 502, 503, 504])
async def test_a_server_error_is_tried_again_with_the_same_ids(
    messages: list[Message], status: int
) -> None:
    neighbour = Neighbour(faults=[once(status), once(status)])
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:1])
    assert len(neighbour.seen) == 3
    assert len({one.body for one in neighbour.seen}) == 1
    assert (door.tally.sent, door.tally.accepted, door.tally.retried) == (1, 1, 2)


async def test_a_time_out_is_tried_again_with_the_same_ids(messages: list[Message]) -> None:
    slow = asyncio.Event()
    app = FastAPI()
    bodies: list[bytes] = []

    @app.put("/{path:path}")
    async def hang(request: Request, path: str) -> Response:
        bodies.append(await request.body())
        if len(bodies) == 1:
            await slow.wait()
        return reply(200)

    async with served(app) as url, httpx.AsyncClient(timeout=0.2) as http:
        door = Door(url, "hospital-a", Tokens(), http)
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:1])
        slow.set()
    assert len(bodies) == 2
    assert bodies[0] == bodies[1]
    assert door.tally.retried == 1


async def test_a_door_that_is_not_open_yet_is_waited_for(messages: list[Message]) -> None:
    neighbour = Neighbour()
    async with httpx.AsyncClient(timeout=0.5) as http:
        async with served(neighbour.app()) as url:
            port = int(url.rpartition(":")[2])
        door = Door(url, "hospital-a", Tokens(), http)
        sending = asyncio.create_task(
            Engine("hospital-a", False, door).deliver(at(messages, 0)[:1])
        )
        await asyncio.sleep(0.05)
        async with served(neighbour.app(), port):
            await sending
    assert door.tally.accepted == 1
    assert door.tally.retried >= 1


async def test_another_4xx_is_counted_and_not_tried_again(messages: list[Message]) -> None:
    neighbour = Neighbour(faults=[once(400), once(422), once(409), once(404)])
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:10])
    assert len(neighbour.seen) == 10
    assert (door.tally.sent, door.tally.accepted, door.tally.refused) == (10, 6, 4)


async def test_what_is_held_is_counted_apart(messages: list[Message]) -> None:
    tagged = {"resourceType": "Patient", "meta": {"tag": [{"code": "held"}]}}
    neighbour = Neighbour(faults=[once(200, WARNING), once(201, tagged)])
    async with door_to(neighbour) as door:
        await Engine("hospital-b", True, door).deliver(at(messages, 1)[:10])
    assert (door.tally.accepted, door.tally.held) == (8, 2)


async def test_a_refused_token_is_renewed_once(messages: list[Message]) -> None:
    neighbour = Neighbour(faults=[once(401)])
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:1])
    assert [one.token for one in neighbour.seen] == ["hospital-a-1", "hospital-a-2"]
    assert door.tally.accepted == 1


async def test_a_token_refused_again_is_counted_as_refused(messages: list[Message]) -> None:
    neighbour = Neighbour(faults=[once(401), once(401)])
    async with door_to(neighbour) as door:
        await Engine("hospital-a", False, door).deliver(at(messages, 0)[:1])
    assert door.tally.refused == 1


async def test_order_is_kept_per_patient_also_through_faults(messages: list[Message]) -> None:
    sent = at(messages, 1)[:150]
    faults = [once(503) for _ in range(9)]
    neighbour = Neighbour(faults=[*faults, once(429, Retry_After="0")])
    async with door_to(neighbour) as door:
        await Engine("hospital-b", True, door).deliver(sent)
    arrived: dict[str, list[str]] = defaultdict(list)
    for one in neighbour.seen:
        who = one.path.partition("/")[2].replace("TEST-V", "TEST-")[:13]
        if not arrived[who] or arrived[who][-1] != one.json["meta"]["lastUpdated"]:
            arrived[who].append(one.json["meta"]["lastUpdated"])
    for times in arrived.values():
        assert times == sorted(times, key=datetime.fromisoformat)
    assert 2 <= neighbour.most_at_once <= 8
    assert door.tally.accepted == 150


async def test_history_goes_in_bundles_and_is_counted_entry_by_entry(
    messages: list[Message],
) -> None:
    def some_refused(one: Seen) -> Response:
        entries: list[dict[str, Any]] = [
            {"response": {"status": "201 Created"}} for _ in one.json["entry"]
        ]
        entries[0] = {"response": {"status": "422 Unprocessable", "outcome": OUTCOME}}
        entries[1] = {"response": {"status": "200 OK", "outcome": WARNING}}
        return reply(200, {"resourceType": "Bundle", "entry": entries})

    neighbour = Neighbour(faults=[some_refused])
    heard: list[int] = []
    sent = at(messages, 1)
    async with door_to(neighbour) as door:
        await Engine("hospital-b", True, door).backfill(sent, heard.append)
    assert sum(heard) == len(sent) == door.tally.sent
    assert (door.tally.refused, door.tally.held) == (1, 1)
    assert max(len(one.json["entry"]) for one in neighbour.seen) == min(100, max(heard))


async def test_a_bundle_refused_as_a_whole_is_counted_for_each_entry(
    messages: list[Message],
) -> None:
    neighbour = Neighbour(faults=[once(413)])
    async with door_to(neighbour) as door:
        await Engine("hospital-b", True, door).backfill(at(messages, 1), lambda _: None)
    assert door.tally.refused == len(neighbour.seen[0].json["entry"])


async def test_what_became_of_it_is_told_against_the_truth(messages: list[Message]) -> None:
    """SIM-08: by the last word of each encounter; what never happened is not missed."""
    region = profile("demo", people=150, clean=True, void=1.0)
    sent = at(feed(region, 365), 1)
    last = {each.encounter.visit: each for each in sent if each.encounter}
    happened = [visit for visit in last if not visit.endswith(STRAY)]
    first, second = happened[:2]

    def refuse_last(one: Seen) -> Response | None:
        ended = one.path == f"Encounter/{first}" and one.json["status"] == "finished"
        return reply(422) if ended else None

    def refuse_first(one: Seen) -> Response | None:
        return reply(422) if one.path == f"Encounter/{second}" else None

    said_last = [each for each in sent if each.encounter and each.encounter.visit == first]
    again = sum(each.encounter.status == "finished" for each in said_last if each.encounter)
    neighbour = Neighbour(faults=[refuse_first, *[refuse_last] * again])
    async with door_to(neighbour) as door:
        engine = Engine("hospital-b", True, door)
        await engine.deliver(sent)
    assert len(last) == 2 * len(happened)
    assert compare(sent, [engine]) == Truth(len(happened), held=0, refused=1)
    assert str(compare(sent, [engine])).endswith("0 held, 1 refused")


async def test_mischief_is_done_besides_and_each_message_still_arrives_right(
    messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    """SIM-08, `--misbehave`: bodies cut off, wrong tokens, resends under a new Bundle id."""
    monkeypatch.setattr("services.simulator.hospital.MISCHIEF", 0.3)

    def strict(one: Seen) -> Response | None:
        try:
            json.loads(one.body)
        except ValueError:
            return reply(400)
        return reply(401) if one.token == "TEST-no-token" else None

    sent = at(messages, 0)[:120]
    neighbour = Neighbour(otherwise=strict)
    async with door_to(neighbour) as door:
        engine = Engine("hospital-a", False, door, misbehaves=True)
        await engine.deliver(sent)
    tally = door.tally
    assert (tally.sent, tally.accepted, tally.refused, tally.retried) == (120, 120, 0, 0)
    whole = [one for one in neighbour.seen if one.body.endswith(b"}") and _parses(one.body)]
    right = [one for one in whole if one.token != "TEST-no-token"]
    ids = Counter(one.json["id"] for one in right if one.path == "$process-message")
    assert set(ids.values()) == {1}
    notified = sum(each.kind is not Kind.PATIENT for each in sent)
    assert len(ids) > notified
    assert len(whole) < len(neighbour.seen)
    assert len(right) < len(whole)
    assert tally.mischief == len(neighbour.seen) - 120
    assert tally.taken == 0
    assert f"wrong on purpose {tally.mischief} (taken 0)" in str(tally)


def _parses(body: bytes) -> bool:
    with contextlib.suppress(ValueError):
        return bool(json.loads(body))
    return False


async def test_a_door_that_takes_mischief_is_told_of(
    messages: list[Message], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.simulator.hospital.MISCHIEF", 1.0)
    async with door_to(Neighbour()) as door:
        await Engine("hospital-b", True, door, misbehaves=True).deliver(at(messages, 1)[:5])
    assert door.tally.taken == door.tally.mischief == 10


async def test_panels_and_consents_reach_the_clinics_door() -> None:
    region = profile("demo", people=100)
    neighbour = Neighbour()
    (panel, *_), consents = papers.panels(region), list(papers.consents(region))
    async with door_to(neighbour, "clinic-a-emr") as door:
        await upload_panel(door, panel)
        await record_consents(door, consents)
    first = neighbour.seen[0]
    assert (first.method, first.path) == ("POST", "panel?mode=delta&dry_run=false")
    assert first.headers["content-type"] == "text/csv; charset=utf-8"
    assert first.body.decode().splitlines()[0] == ",".join(papers.COLUMNS)
    assert len(first.body.decode().splitlines()) == panel.rows + 1
    assert sorted(one.path for one in neighbour.seen[1:]) == sorted(
        f"fhir/Consent/{consent['id']}" for _, consent in consents
    )


async def test_the_emr_sees_each_version_of_a_card_once_and_takes_it_on() -> None:
    """CA-15: equal times may come again; id and version are the client's key."""
    task = {
        "resourceType": "Task",
        "id": "c1",
        "status": "requested",
        "meta": {"versionId": "1", "lastUpdated": "2026-03-02T19:05:10.998Z"},
    }
    page = {"resourceType": "Bundle", "entry": [{"resource": task}]}
    neighbour = Neighbour(faults=[once(200, page), once(200, page), once(200, {})])
    async with door_to(neighbour, "clinic-c-emr") as door:
        emr = Emr(door)
        (card,) = await emr.look()
        assert await emr.look() == []
        assert await emr.take_on(card)
    first, second, patch = neighbour.seen
    assert "_lastUpdated=" not in first.path
    assert "_lastUpdated=ge2026-03-02T19%3A05%3A10.998Z" in second.path
    assert patch.method == "PATCH"
    assert patch.path == "fhir/Task/c1"
    assert patch.headers["if-match"] == 'W/"1"'
    assert patch.headers["content-type"] == "application/merge-patch+json"
    assert patch.json == {"status": "accepted"}


async def test_the_emr_follows_the_pages_of_a_search() -> None:
    def page(number: int, following: str | None) -> dict[str, Any]:
        meta = {"versionId": "1", "lastUpdated": f"2026-03-02T19:0{number}:00Z"}
        task = {"resourceType": "Task", "id": f"c{number}", "status": "requested", "meta": meta}
        link = [{"relation": "next", "url": following}] if following else []
        return {"resourceType": "Bundle", "link": link, "entry": [{"resource": task}]}

    pages = [page(1, "https://notify.example.ca/fhir/Task?page=x%2By"), page(2, None)]
    neighbour = Neighbour(faults=[once(200, pages[0]), once(200, pages[1])])
    async with door_to(neighbour, "clinic-c-emr") as door:
        assert [card.id for card in await Emr(door).look()] == ["c1", "c2"]
    assert neighbour.seen[1].path == "fhir/Task?page=x%2By"


def test_a_nurse_answers_in_working_hours() -> None:
    """simulator.md section 3; Friday 6 March to Monday 9 March 2026, the clock changes between."""
    friday = datetime(2026, 3, 6, 14, 30, tzinfo=ZONE)
    hour = timedelta(hours=1)
    assert working(friday, hour) == friday + hour
    assert working(friday, 2 * hour) == datetime(2026, 3, 9, 8, 30, tzinfo=ZONE)
    assert working(friday.replace(hour=3), 4 * hour) == friday.replace(hour=12, minute=0)
    assert working(friday + timedelta(days=1), 9 * hour) == datetime(2026, 3, 10, 9, tzinfo=ZONE)


async def test_the_emr_takes_a_card_on_some_working_hours_after_it_came(tmp_path: Path) -> None:
    """And one in twenty never: none here, where `never` is 0; none at all where it is 1."""
    clock = Clock(tmp_path / "clock.json")
    began = datetime(2026, 3, 2, 13, tzinfo=UTC)
    drive(tmp_path / "clock.json", began, 0)
    task = {
        "resourceType": "Task",
        "id": "c1",
        "status": "requested",
        "meta": {"versionId": "1", "lastUpdated": "2026-03-02T13:00:00Z"},
    }
    looked, taken = asyncio.Event(), asyncio.Event()

    def answer(one: Seen) -> Response:
        (taken if one.method == "PATCH" else looked).set()
        entry = [{"resource": task}]
        return reply(200, {"resourceType": "Bundle", "entry": entry, "link": []})

    for never, expected in ((0.0, True), (1.0, False)):
        looked.clear()
        taken.clear()
        drive(tmp_path / "clock.json", began, 0)
        neighbour = Neighbour(otherwise=answer)
        async with door_to(neighbour, "clinic-c-emr") as door:
            keeping = asyncio.create_task(keep_up(Emr(door), clock, 1, never, every=0.005))
            for _ in range(2):  # at the second look, what the first showed has been considered
                await asyncio.wait_for(looked.wait(), 30)
                looked.clear()
            assert not taken.is_set()
            drive(tmp_path / "clock.json", began + timedelta(days=60), 0)
            looked.clear()
            await asyncio.wait_for(looked.wait(), 30)
            if expected:
                await asyncio.wait_for(taken.wait(), 30)
            keeping.cancel()
            await asyncio.wait({keeping})
        assert taken.is_set() is expected


# A region sent to a door that takes everything, as fast as it does


def to_send() -> Profile:
    return profile("demo", people=90, clean=True, cast=False, clinics=1)


@pytest.fixture
def few_together(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sending, "TOGETHER", 30)


async def a_sending(
    neighbour: Neighbour, bookmark: Path, *, stop: asyncio.Event | None = None
) -> sending.Account | None:
    """Sends a clean region; None if stopped before its end."""
    region = to_send()
    now = datetime(2026, 11, 24, tzinfo=UTC)
    async with served(neighbour.app()) as url:
        urls = {"ingest": f"{url}/ingest/fhir", "notify": f"{url}/notify"}
        task = asyncio.create_task(
            sending.send(region, urls, Tokens(), bookmark, lambda *_: None, now)
        )
        stopping = asyncio.create_task((stop or asyncio.Event()).wait())
        await asyncio.wait({task, stopping}, return_when=asyncio.FIRST_COMPLETED)
        stopping.cancel()
        if task.done():
            return task.result()
        task.cancel()
        await asyncio.wait({task})
        return None


@pytest.mark.usefixtures("few_together")
async def test_a_region_is_sent_whole_and_accounted_for(tmp_path: Path) -> None:
    """SIM-07 (speed 0), SIM-08"""
    neighbour = Neighbour()
    account = await a_sending(neighbour, tmp_path / "mark")
    assert account is not None
    region = to_send()
    due = [each for each in feed(region, region.days) if each.at < cast.live(region)]
    assert account.tally.sent == account.tally.accepted == len(due)
    visits = {each.encounter.visit for each in due if each.encounter}
    assert account.truth == Truth(len(visits))
    assert str(account).startswith(f"sent {len(due)}, accepted {len(due)}, held 0, refused 0")
    assert neighbour.seen[0].path.startswith("notify/panel?")
    assert not (tmp_path / "mark").exists()


@pytest.mark.usefixtures("few_together")
async def test_a_sending_that_was_interrupted_goes_on_after_what_was_answered(
    tmp_path: Path,
) -> None:
    """SIM-08: with the same ids, so that what is sent again has no effect."""
    whole, halves = Neighbour(), Neighbour()
    await a_sending(whole, tmp_path / "whole")
    stop = asyncio.Event()

    def look() -> None:
        if (tmp_path / "mark").exists():
            stop.set()

    halves.notice = look
    assert await a_sending(halves, tmp_path / "mark", stop=stop) is None
    before = len(halves.seen)
    halves.notice = lambda: None
    assert await a_sending(halves, tmp_path / "mark") is not None
    later = halves.seen[before:]
    assert not any("panel?" in one.path for one in later)
    assert 0 < len(later) < len(whole.seen) - 20
    assert {one.body for one in halves.seen} == {one.body for one in whole.seen}


async def test_a_region_whose_time_is_not_over_is_not_sent(tmp_path: Path) -> None:
    region = profile("demo", people=1, start=datetime(2026, 1, 1, tzinfo=UTC).date())
    with pytest.raises(SimulateError, match="parameter start"):
        await sending.send(
            region,
            {"ingest": "", "notify": ""},
            Tokens(),
            tmp_path / "mark",
            lambda *_: None,
            datetime(2026, 11, 24, tzinfo=UTC),
        )


# The whole play, before a door that takes everything


@dataclass
class Stage:
    """A data folder, a door, and what the terminal would show."""

    folder: Path
    neighbour: Neighbour
    said: list[str] = field(default_factory=list)

    @property
    def clock(self) -> Path:
        return self.folder / "clock.json"

    async def play_until(
        self, enough: Callable[[], bool], *, seed: int = 2018, speed: float = flow.SPEED
    ) -> None:
        """Plays until something comes or is said after which it is `enough`."""
        stop = asyncio.Event()

        def look() -> None:
            if enough():
                stop.set()

        def hear(text: str, _done: int, _total: int) -> None:
            self.said.append(text)
            look()

        self.neighbour.notice = look
        region = flow.demo(seed)
        flow.prepare(region, self.clock)
        async with served(self.neighbour.app()) as url:
            urls = {"ingest": f"{url}/ingest/fhir", "notify": f"{url}/notify"}
            await flow.play(region, urls, Tokens(), self.clock, hear, stop, speed=speed)

    def reached(self) -> datetime:
        """All that was to be sent before this has its answer."""
        place = self.clock.with_name(f"{self.clock.name}.bookmark")
        if not place.exists():
            return datetime.min.replace(tzinfo=UTC)
        return datetime.fromisoformat(json.loads(place.read_bytes())["until"])

    def says(self, beginning: str) -> Callable[[], bool]:
        return lambda: bool(self.said) and self.said[-1].startswith(beginning)

    def encounters(self) -> list[Any]:
        """All encounters that reached the door live: notified or put."""
        found = []
        for one in self.neighbour.seen:
            if one.path.endswith("$process-message"):
                found.append(one.json["entry"][1]["resource"])
            elif one.method == "PUT" and "/Encounter" in one.path:
                found.append(one.json)
        return found


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """Weeks and steps shortened by numbers only: the story is the real one."""
    monkeypatch.setattr(flow, "SHORTEST_STEP", 0.0)
    return Stage(tmp_path, Neighbour())


def live() -> datetime:
    return cast.live(profile("demo"))


async def test_before_anything_starts_the_clock_stands_where_the_region_goes_live(
    tmp_path: Path,
) -> None:
    """SIM-07"""
    file = tmp_path / "clock.json"
    flow.prepare(flow.demo(2018), file)
    assert Clock(file).now() == live() - flow.WEEKS
    assert json.loads(file.read_bytes())["speed"] == 0


async def test_the_demo_sends_its_year_and_lives_on_until_stopped(stage: Stage) -> None:
    """SIM-07: fast time, in which nothing is sent before it happened."""
    fourth = b"TEST-V90000001-04"
    await stage.play_until(lambda: any(fourth in one.body for one in stage.neighbour.seen[-8:]))
    panels = [one for one in stage.neighbour.seen if "panel?" in one.path]
    assert {one.token.rpartition("-")[0] for one in panels} == {
        "clinic-a-emr",
        "clinic-b-emr",
        "clinic-c-emr",
    }
    batches = [one for one in stage.neighbour.seen if b'"type":"batch"' in one.body[:60]]
    assert sum(len(one.json["entry"]) for one in batches) > 4_000
    visits = {each["identifier"][0]["value"] for each in stage.encounters()}
    assert fourth.decode() in visits
    assert stage.said[0].startswith("Uploading")
    assert any(text.startswith("Live") for text in stage.said)
    assert stage.said[-1].startswith("Stopped: sent")
    stopped = Clock(stage.clock).now()
    assert live() + timedelta(hours=6) <= stopped < live() + timedelta(days=30)
    assert json.loads(stage.clock.read_bytes())["speed"] == 0


async def test_a_second_start_goes_on_where_the_first_stopped(stage: Stage) -> None:
    """SIM-08: it resumes after the last message that was answered."""
    await stage.play_until(stage.says("Living"))
    first, reached = stage.encounters(), Clock(stage.clock).now()
    before = len(stage.neighbour.seen)
    assert not any(text.startswith("Live,") for text in stage.said)
    await stage.play_until(stage.says("Live,"))
    second = stage.neighbour.seen[before:]
    assert not any("panel?" in one.path or b'"type":"batch"' in one.body[:60] for one in second)
    latest = max(each["meta"]["lastUpdated"] for each in first) if first else ""
    again = [e for e in stage.encounters()[len(first) :] if e["meta"]["lastUpdated"] < latest]
    assert len(again) < 40
    assert Clock(stage.clock).now() > reached


async def test_a_clock_left_running_by_a_crash_goes_on_from_the_bookmark(stage: Stage) -> None:
    """However long the machine was off, the region has not lived meanwhile."""
    await stage.play_until(stage.says("Live,"))
    stopped = Clock(stage.clock).now()
    drive(stage.clock, stopped, flow.SPEED * 1e6)
    await asyncio.sleep(0.02)
    assert Clock(stage.clock).now() > stopped + timedelta(days=300)
    flow.prepare(flow.demo(2018), stage.clock)
    assert abs(Clock(stage.clock).now() - stopped) < timedelta(hours=3)


async def test_the_region_lives_on_beyond_what_was_drawn_and_leaves_nothing_out(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where a tick leaps over days, as on a machine that is busy."""
    monkeypatch.setattr(flow, "LOOK_AHEAD", 5)
    monkeypatch.setattr(flow, "STEP", timedelta(days=9))
    beyond = live() + timedelta(days=flow.LOOK_AHEAD + 20)
    await stage.play_until(lambda: stage.reached() >= beyond, speed=0)
    region = profile("demo")
    due = {
        message.encounter.visit
        for message in feed(region, region.days + flow.LOOK_AHEAD + 30)
        if message.encounter and live() <= message.sent < beyond
    }
    assert len(due) > 50
    assert due <= {each["identifier"][0]["value"] for each in stage.encounters()}


async def test_data_of_another_seed_is_refused_by_name(stage: Stage) -> None:
    await stage.play_until(stage.says("Sending"))
    with pytest.raises(SimulateError, match="seed 7: this data belongs to seed 2018"):
        await stage.play_until(lambda: False, seed=7)
    with pytest.raises(SimulateError, match="of other parameters"):
        flow.prepare(flow.demo(2018, effect=0.2), stage.clock)


async def test_at_speed_0_the_region_lives_as_fast_as_it_is_taken_in(stage: Stage) -> None:
    """SIM-07: the clock is moved on to what is sent, never behind it."""
    beyond = live() + timedelta(days=3)
    await stage.play_until(lambda: stage.reached() >= beyond, speed=0)
    assert any("as fast as it is taken in" in text for text in stage.said)
    assert Clock(stage.clock).now() >= beyond
    visits = {each["identifier"][0]["value"] for each in stage.encounters()}
    assert "TEST-V90000001-04" in visits
    assert re.search(r"; of \d+ encounters that happened \d+ are taken in", stage.said[-1])


def test_another_start_has_a_region_file_that_says_so(tmp_path: Path) -> None:
    """SIM-07: `--start`; coverage is stated from that day."""
    region = flow.demo(2018, start=datetime(2027, 1, 4, tzinfo=UTC).date())
    file = flow.region_file(region, tmp_path)
    assert {site.data_from for site in load(file).sites if site.connected} == {region.start}
    assert flow.region_file(flow.demo(2018), tmp_path) == flow.REGION_FILE


async def test_what_the_region_says_of_a_patient_is_never_ahead_of_its_clock(
    stage: Stage,
) -> None:
    """HA-76: no message comes before its business instant."""
    ahead: list[str] = []
    clock = Clock(stage.clock)

    def watch(one: Seen) -> None:
        if one.path.endswith("$process-message"):
            told = datetime.fromisoformat(one.json["timestamp"])
            if told > clock.now() + timedelta(seconds=1):
                ahead.append(one.path)

    stage.neighbour.faults.append(watch)
    await stage.play_until(stage.says("Live,"))
    assert ahead == []
    kinds = Counter(
        one.json["entry"][0]["resource"]["eventCoding"]["code"]
        for one in stage.neighbour.seen
        if one.path.endswith("$process-message")
    )
    assert set(kinds) == {"notification-admit", "notification-transfer", "notification-discharge"}


def test_history_is_older_than_an_alert_may_be(messages: list[Message]) -> None:
    """CR-31: what goes as history entered more than 72 h before it is recorded, or is few."""
    region = profile("demo")
    went_live = live() - flow.WEEKS
    fresh = [
        each
        for each in feed(region, region.days)
        if went_live - timedelta(hours=72) <= each.sent < went_live and each.kind is Kind.ADMIT
    ]
    assert len(fresh) < 40
    assert messages
    assert went_live.tzinfo is UTC

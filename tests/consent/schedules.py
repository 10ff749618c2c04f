"""Random schedules of what changes consent and what tells, on notify itself (CS-50).

A batch is a fresh database with a clinic of some patients, each with a schedule of its own. In
every step some Consents are written while couriers send, fail and are killed, pages are opened,
systems read and search. Steps overlap in real transactions; business time and the couriers' time
are driven. What happened is a list of `Wrote` and `Told`, which `faults` judges: it knows what a
form means and nothing of the engine.
"""

import asyncio
import contextlib
import random
from collections import Counter, defaultdict
from collections.abc import Awaitable, Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from itertools import count
from typing import Any, Final
from uuid import UUID, uuid4

import httpx
import orjson
from sqlalchemy import text
from starlette.requests import Request

from services.notify import flow, looking
from services.notify.delivery import Courier
from services.notify.web.desk import NotifyDesk
from services.notify.web.pages import Ask
from services.notify.web.views import Filter, Order
from services.notify.web.words import Language
from services.plumbing.auth import Caller, Kind
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_delivery import event, kind, parameters, subscription

URL: Final = "http://127.0.0.1:9/hook"
HOUR: Final = timedelta(hours=1)
CSV: Final = {"Content-Type": "text/csv; charset=utf-8"}
FHIR: Final = {"Content-Type": "application/fhir+json"}


# --- what a form means ------------------------------------------------------------------------


class Form(StrEnum):
    """What somebody ticks for clinic A."""

    PERMIT = "permit"
    RESTRICT = "restrict"
    WITHDRAW = "withdraw"
    """What stood on the form stands no more."""
    NOT_D = "not nurse D"
    """A permit for all of the clinic but one nurse."""
    PERMIT_UNTIL = "permit until"
    RESTRICT_FROM = "restrict from"
    RESTRICT_UNTIL = "restrict until"


@dataclass(frozen=True)
class Paper:
    form: Form
    when: datetime

    def denies(self, reader: str, at: datetime) -> bool:
        match self.form:
            case Form.RESTRICT:
                return True
            case Form.NOT_D:
                return reader in {"inbox", "nurse-d"}
            case Form.RESTRICT_FROM:
                return at >= self.when
            case Form.RESTRICT_UNTIL:
                return at <= self.when
            case _:
                return False

    def permits(self, at: datetime) -> bool:
        if self.form is Form.PERMIT_UNTIL:
            return at <= self.when
        return self.form in {Form.PERMIT, Form.NOT_D}


@dataclass(frozen=True)
class State:
    """All forms of one patient at a business time."""

    papers: Mapping[str, Paper]
    at: datetime
    implied: bool

    def allows(self, reader: str) -> bool:
        papers = self.papers.values()
        if any(paper.denies(reader, self.at) for paper in papers):
            return False
        return self.implied or any(paper.permits(self.at) for paper in papers)


def provision(paper: Paper) -> dict[str, Any]:
    role = {"coding": [{"system": build.TERMS + "v3-ParticipationType", "code": "IRCP"}]}

    def about(kind: str, reference: str, **more: Any) -> dict[str, Any]:
        return {
            "type": kind,
            "actor": [{"role": role, "reference": {"reference": reference}}],
            **more,
        }

    clinic, when = "Organization/clinic-a", paper.when.isoformat()
    match paper.form:
        case Form.RESTRICT:
            return about("deny", clinic)
        case Form.NOT_D:
            return about("permit", clinic, provision=[about("deny", "Practitioner/nurse-d")])
        case Form.PERMIT_UNTIL:
            return about("permit", clinic, period={"end": when})
        case Form.RESTRICT_FROM:
            return about("deny", clinic, period={"start": when})
        case Form.RESTRICT_UNTIL:
            return about("deny", clinic, period={"end": when})
        case Form.PERMIT | Form.WITHDRAW:
            return about("permit", clinic)


# --- what happened ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Wrote:
    """A form, or the passing of time, came into force between two ticks of the batch."""

    state: State
    begun: int
    acknowledged: int


@dataclass(frozen=True)
class Told:
    """Somebody looked, or was sent something; and whether that disclosed the patient."""

    channel: str
    reader: str
    begun: int
    """The decision was taken after this tick."""
    ended: int
    disclosed: bool
    must_show: bool = True
    """Where it is permitted all the time, it has to be there."""


@dataclass
class Sent:
    """One request a clinic's endpoint got."""

    number: int
    subscription: str
    focus: str | None
    content: bool
    """It says whom the card is about."""
    begun: int
    ended: int
    round: int
    taken: bool
    """Answered with 2xx."""


def possible(wrote: Sequence[Wrote], begun: int, ended: int) -> list[State]:
    """The states that somebody may have seen who decided between two ticks."""
    before = [w for w in wrote if w.acknowledged < begun]
    during = [w for w in wrote if w.acknowledged >= begun and w.begun < ended]
    return [w.state for w in (*before[-1:], *during)]


def faults(wrote: Sequence[Wrote], told: Sequence[Told]) -> Iterator[str]:
    """What of one patient was disclosed that could not be permitted, or kept back that had to be
    shown.
    """
    for one in told:
        allowed = {s.allows(one.reader) for s in possible(wrote, one.begun, one.ended)}
        if one.disclosed and True not in allowed:
            yield f"disclosed: {one.channel} to {one.reader}, ticks {one.begun} to {one.ended}"
        if not one.disclosed and one.must_show and False not in allowed:
            yield f"kept back: {one.channel} to {one.reader}, ticks {one.begun} to {one.ended}"


def late(wrote: Sequence[Wrote], told: Sequence[Told]) -> int:
    """How many began in the second that CS-50 allows between decision and request."""
    return sum(
        one.channel == "sent"
        and one.disclosed
        and not any(s.allows(one.reader) for s in possible(wrote, one.ended, one.ended))
        for one in told
    )


# --- the clinic's endpoint --------------------------------------------------------------------


@dataclass
class Endpoint(httpx.AsyncBaseTransport):
    """Answers or fails at random, and keeps what it got. No socket: nothing of ours is in it."""

    tick: Callable[[], int]
    chance: random.Random
    begun: Callable[[], int]
    round: int
    fails: float
    got: list[Sent]

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        bundle = orjson.loads(await request.aread())
        await asyncio.sleep(0)
        if kind(bundle) != "event-notification":
            return _answer(200)
        fate = self.chance.random()
        said, at = event(bundle), parameters(bundle)["subscription"]["valueReference"]
        focus = said.get("focus", {}).get("valueReference", {}).get("reference")
        self.got.append(
            Sent(
                number=int(said["event-number"]["valueString"]),
                subscription=at["reference"].rpartition("/")[2],
                focus=None if focus is None else focus.rpartition("/")[2],
                content=any("for" in e.get("resource", {}) for e in bundle["entry"]),
                begun=self.begun(),
                ended=self.tick(),
                round=self.round,
                taken=fate >= self.fails,
            )
        )
        if fate < self.fails / 4:
            raise httpx.ReadError("the line broke", request=request)
        return _answer(200 if fate >= self.fails else self.chance.choice((500, 503, 429)))


def _answer(status: int) -> httpx.Response:
    return httpx.Response(status, stream=httpx.ByteStream(b""))


# --- one batch --------------------------------------------------------------------------------


@dataclass
class Found:
    """What a batch came to."""

    schedules: int = 0
    told: Counter[str] = field(default_factory=Counter)
    writes: int = 0
    late: int = 0
    faults: list[str] = field(default_factory=list)

    def add(self, other: "Found") -> None:
        self.schedules += other.schedules
        self.told += other.told
        self.writes += other.writes
        self.late += other.late
        self.faults += other.faults


class Batch:
    """A clinic, its patients, and everybody who wants to know of them."""

    def __init__(self, db: Database, seed: int, patients: int, steps: int) -> None:
        self.chance = random.Random(seed)
        self.name = f"seed {seed}"
        self.steps = steps
        self.implied = self.chance.random() < 0.5
        region = build.region("implied" if self.implied else "opt-in")
        self.door = Doorway(db, build.house(region), resolved=("127.0.0.1",))
        self.patients = [uuid4() for _ in range(patients)]
        self.papers: dict[UUID, dict[str, Paper]] = {p: {} for p in self.patients}
        self.wrote: dict[UUID, list[Wrote]] = defaultdict(list)
        self.told: dict[UUID, list[Told]] = defaultdict(list)
        self.writing = {p: asyncio.Lock() for p in self.patients}
        self.tags: dict[str, str] = {}
        self._ticks = count(1)
        self.ahead = timedelta()
        self.jumped = 0
        """Tick of the last leap of the couriers' time by more than a second."""
        self.rounds = count(1)
        self.killed: set[int] = set()
        self.gate: asyncio.Event | None = None
        self.reached = asyncio.Event()
        self.pages = NotifyDesk(db=db, house=self.door.house, now=lambda: self.door.now)

    def tick(self) -> int:
        return next(self._ticks)

    # Who sends

    @contextlib.asynccontextmanager
    async def courier(self, fails: float = 0.2) -> Any:
        """A courier with an endpoint that knows in which round it is called."""
        begun, number = self.tick(), next(self.rounds)
        endpoint = Endpoint(
            self.tick, self.chance, lambda: max(begun, self.jumped), number, fails, self.got
        )

        async def resolve(_host: str, _port: int) -> Sequence[str]:
            self.reached.set()
            if self.gate is not None:
                await self.gate.wait()
            return ("127.0.0.1",)

        async with httpx.AsyncClient(transport=endpoint) as http:
            yield (
                Courier(
                    db=self.door.db,
                    house=self.door.house,
                    now=lambda: self.door.now,
                    gate=lambda _clinic: Egress(local=True),
                    http=http,
                    resolve=resolve,
                    real=lambda: real_now() + self.ahead,
                    chance=self.chance.random,
                ),
                number,
            )

    async def send(self) -> None:
        async with self.courier() as (courier, _):
            await courier.round()

    async def send_and_die(self) -> None:
        """A worker that is killed somewhere in its round."""
        async with self.courier() as (courier, number):
            task = asyncio.create_task(courier.round())
            for _ in range(self.chance.randrange(60)):
                await asyncio.sleep(0.0005)
            self.killed.add(number)
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await task

    async def send_late(self) -> None:
        """The name server takes its time; meanwhile a form is handed in, and perhaps a second
        passes.
        """
        gate = self.gate = asyncio.Event()
        self.reached.clear()
        async with self.courier() as (courier, _):
            task = asyncio.create_task(courier.round())
            waiting = asyncio.create_task(self.reached.wait())
            await asyncio.wait([task, waiting], return_when=asyncio.FIRST_COMPLETED)
            waiting.cancel()
            if not task.done():
                some = [p for p in await self._in_hand() if p in self.papers][:4]
                await asyncio.gather(*(self.write(p, Form.RESTRICT) for p in some))
                if self.chance.random() < 0.8:
                    self.leap(timedelta(seconds=2))
            self.gate = None
            gate.set()
            await task

    def leap(self, span: timedelta) -> None:
        self.ahead += span
        if span > timedelta(seconds=1):
            self.jumped = self.tick()

    # Who changes consent

    async def _in_hand(self) -> list[UUID]:
        """Whom a courier is about to tell of."""
        leased = text(
            "select distinct patient from notification where leased_until is not null"
            " and state = 'pending' and patient is not null"
        )
        async with self.door.db.work() as tx:
            return [row.patient for row in await tx.execute(leased)]

    async def write(self, patient: UUID, said: Form | None = None) -> None:
        async with self.writing[patient]:
            papers = self.papers[patient]
            name = self.chance.choice(("a", "b"))
            form = said or self.chance.choice(list(Form))
            if form is Form.WITHDRAW and name not in papers:
                form = Form.PERMIT
            when = self.door.now + self.chance.randint(0, 3) * HOUR + HOUR / 2
            paper = Paper(form, when)
            id_ = f"TEST-{name}-{patient}"
            status = "inactive" if form is Form.WITHDRAW else "active"
            body = consent(patient, provision(paper), id=id_, status=status)
            begun = self.tick()
            hospital = self.hospitals[name]
            guard = {"If-Match": self.tags[id_]} if id_ in self.tags else {}
            answer = await hospital.put(
                f"/fhir/Consent/{id_}", json=body, headers={**FHIR, **guard}
            )
            assert answer.is_success, answer.text
            self.tags[id_] = answer.headers["etag"]
            papers[name] = paper
            self._in_force(patient, begun)

    def _in_force(self, patient: UUID, begun: int) -> None:
        state = State(dict(self.papers[patient]), self.door.now, self.implied)
        self.wrote[patient].append(Wrote(state, begun, self.tick()))

    async def time_passes(self) -> None:
        """An hour; and those whose periods began or ended are looked at (CS-51)."""
        begun = self.tick()
        self.door.passes(hours=1)
        await self.sweep()
        for patient in self.patients:
            self._in_force(patient, begun)

    async def sweep(self) -> None:
        while True:
            async with self.door.db.work() as tx:
                turn = build.turn(tx, self.door.house, self.door.now)
                if await flow.sweep(turn) < flow.SWEEP:
                    return

    # Who looks

    def _heard(self, channel: str, reader: str, begun: int, disclosed: set[str]) -> None:
        ended = self.tick()
        for patient in self.patients:
            self.told[patient].append(
                Told(channel, reader, begun, ended, str(patient) in disclosed)
            )

    async def search(self) -> None:
        begun = self.tick()
        answer = await self.emr.get("/fhir/Task?_count=200")
        about = [
            entry["resource"].get("for", {}).get("reference", "")
            for entry in answer.json().get("entry", [])
        ]
        self._heard("search", "inbox", begun, {a.removeprefix("Patient/") for a in about})

    async def flags(self) -> None:
        begun = self.tick()
        answer = await self.emr.get("/fhir/Flag?_count=200")
        about = [e["resource"]["subject"]["reference"] for e in answer.json().get("entry", [])]
        self._heard("flags", "inbox", begun, {a.removeprefix("Patient/") for a in about})

    async def read(self) -> None:
        patient, begun = self.chance.choice(self.patients), self.tick()
        answer = await self.emr.get(f"/fhir/Patient/{patient}")
        shown = answer.status_code == 200
        self.told[patient].append(Told("read", "inbox", begun, self.tick(), shown))

    async def page(self) -> None:
        who, begun = self.chance.choice(("nurse-a", "nurse-d")), self.tick()
        seen = await self.pages.my_list(self._ask(who), Filter.ALL, Order.LATEST)
        cards = {card.key for card in seen.content.cards}
        self.listed.append((who, begun, self.tick(), cards))

    async def read_slowly(self) -> None:
        """An answer is composed, and sent only later; while it is in hand no form takes effect."""
        begun = self.tick()
        async with self.door.db.request("clinic-a") as tx:
            sight = await looking.look(tx, self.door.house, "clinic-a", self.door.now)
            shown = {
                f.resource["for"]["reference"].removeprefix("Patient/")
                for f in sight.tasks()
                if "for" in f.resource
            }
            some = [p for p in self.patients if str(p) in shown][:2]
            writing = [asyncio.create_task(self.write(p, Form.RESTRICT)) for p in some]
            if writing:
                await asyncio.wait(writing, timeout=1, return_when=asyncio.FIRST_COMPLETED)
            told = self.tick()
            for patient in self.patients:
                disclosed = str(patient) in shown
                first = told if disclosed else begun
                one = Told("slow read", "inbox", first, told + 1, disclosed)
                self.told[patient].append(one)
            self.tick()
        await asyncio.gather(*writing)

    def _ask(self, who: str) -> Ask:
        scope: dict[str, Any] = {
            "type": "http",
            "method": "GET",
            "path": "/",
            "headers": [],
            "client": None,
        }
        caller = Caller(who, Kind.PERSON, roles=frozenset({"clinic_cm"}), clinic="clinic-a")
        return Ask(caller, Language.FRENCH, uuid4(), Request(scope))

    # The whole of it

    async def run(self) -> Found:
        await self._begin()
        for _ in range(self.steps):
            if self.chance.random() < 0.3:
                await self.time_passes()
            if self.chance.random() < 0.3:
                await self.send_late()
            self.leap(timedelta(seconds=self.chance.choice((0, 0, 6, 60, 600))))
            await asyncio.gather(*(self._soon(act) for act in self._some()))
        await self._end()
        found = await self._found()
        await self.door.close()
        return found

    def _some(self) -> list[Callable[[], Awaitable[None]]]:
        """A step: forms of some patients, and who wants to know."""
        forms = [
            lambda p=p: self.write(p)
            for p in self.chance.sample(self.patients, max(1, len(self.patients) // 5))
        ]
        others: list[Callable[[], Awaitable[None]]] = [self.send, self.send]
        others += self.chance.sample(
            [
                self.search,
                self.flags,
                self.read,
                self.read,
                self.page,
                self.read_slowly,
                self.send_and_die,
            ],
            3,
        )
        acts = [*forms, *others]
        self.chance.shuffle(acts)
        return acts

    async def _soon(self, act: Callable[[], Awaitable[None]]) -> None:
        for _ in range(self.chance.randrange(12)):
            await asyncio.sleep(0.001)
        await act()

    async def _begin(self) -> None:
        door = self.door
        self.got: list[Sent] = []
        self.listed: list[tuple[str, int, int, set[UUID]]] = []
        self.emr = door.client("clinic-a-emr")
        self.hospitals = {"a": door.client("hospital-a"), "b": door.client("hospital-b")}
        async with door.db.work() as tx:
            turn = build.turn(tx, door.house, door.now)
            await flow.on_patients_identified([build.identified(p) for p in self.patients], turn)
        answer = await self.emr.post(
            "/panel?dry_run=false", content=panel(*self.patients), headers=CSV
        )
        assert answer.is_success, answer.text
        for client, content in (("clinic-a-emr", "full-resource"), ("clinic-a-other", "id-only")):
            made = await door.client(client).post(
                "/fhir/Subscription", json=subscription(URL, content=content), headers=FHIR
            )
            assert made.is_success, made.text
        await self.send()
        begun = self.tick()
        async with door.db.work() as tx:
            turn = build.turn(tx, door.house, door.now)
            await flow.on_flags_changed([build.flag(p) for p in self.patients], turn)
        for patient in self.patients:
            self._in_force(patient, begun)

    async def _end(self) -> None:
        """Everything that waits is sent; then everybody looks once more."""
        for _ in range(200):
            self.leap(timedelta(minutes=61))
            async with self.courier(fails=0.0) as (courier, _):
                await courier.round()
            async with self.door.db.work() as tx:
                pending = text("select count(*) from notification where state = 'pending'")
                if not (await tx.execute(pending)).scalar_one():
                    break
        await self.search()
        for _ in range(2):
            await self.page()

    async def _found(self) -> Found:
        async with self.door.db.work() as tx:
            cards = (await tx.execute(text("select id, patient, status from card"))).all()
            counted = (await tx.execute(text("select id, counter from subscription"))).all()
        whose = {str(card.id): card.patient for card in cards}
        for who, begun, ended, keys in self.listed:
            about = {whose[str(key)] for key in keys}
            for patient in self.patients:
                self.told[patient].append(Told("page", who, begun, ended, patient in about))
        for sent in sorted(self.got, key=lambda s: s.ended):
            if sent.focus is not None and (sent.content or not self._had(whose[sent.focus], sent)):
                one = Told("sent", "inbox", sent.begun, sent.ended, disclosed=True)
                self.told[whose[sent.focus]].append(one)
        found = Found(schedules=len(self.patients), writes=sum(map(len, self.wrote.values())))
        for patient in self.patients:
            wrote, told = self.wrote[patient], self.told[patient]
            found.late += late(wrote, told)
            found.told += Counter(one.channel for one in told)
            found.faults += [f"{self.name}, {patient}: {what}" for what in faults(wrote, told)]
        found.faults += [f"{self.name}: {what}" for what in self._numbers(counted)]
        found.faults += [f"{self.name}: {what}" for what in self._missing(cards)]
        return found

    def _had(self, patient: UUID, sent: Sent) -> bool:
        """Whether the clinic's systems knew of the patient already: then a card that is named
        alone may be one that was taken back.
        """
        return any(
            one.disclosed and one.reader == "inbox" and one.ended < sent.ended
            for one in self.told[patient]
        )

    def _numbers(self, counted: Sequence[Any]) -> Iterator[str]:
        """Each number came, and came again only after a worker was killed over it."""
        for row in counted:
            taken = [s for s in self.got if s.subscription == str(row.id) and s.taken]
            if {s.number for s in taken} != set(range(1, row.counter + 1)):
                yield f"lost: of {row.counter} numbers {len({s.number for s in taken})} came"
            again = [
                s for n, s in enumerate(taken) if s.number in {t.number for t in taken[n + 1 :]}
            ]
            if any(s.round not in self.killed for s in again):
                yield "doubled: a number that was taken came again"

    def _missing(self, cards: Sequence[Any]) -> Iterator[str]:
        """Who may be told of at the end was told of: one open card, named to both systems."""
        for patient in self.patients:
            state = self.wrote[patient][-1].state
            alive = [c for c in cards if c.patient == patient and c.status != "cancelled"]
            if len(alive) != int(state.allows("inbox") or state.allows("nurse-a")):
                yield f"{patient}: {len(alive)} open cards"
            elif state.allows("inbox"):
                named = {
                    s.subscription for s in self.got if s.taken and s.focus == str(alive[0].id)
                }
                if len(named) < 2:
                    yield f"{patient}: lost, the card was named to {len(named)} of 2 systems"

"""A suppressed alert and no alert look the same to the clinic, byte by byte (CS-42, CA-01, CA-56).

Two worlds have the same two patients on the same panel. In one the second patient becomes a
frequent user and restricts the clinic, or cannot be decided on; in the other nothing happens to
them. Everything a clinic can ask is asked in both, and what differs is a side channel.
"""

import contextlib
import itertools
import os
import re
from collections.abc import AsyncIterator
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest
from starlette.requests import Request

from schemas.episode_changed_v1 import EpisodeMoment
from services.cli import postgres
from services.notify import flow
from services.notify.web.desk import NotifyDesk
from services.notify.web.pages import Ask
from services.notify.web.views import Filter, Order
from services.notify.web.words import Language
from services.plumbing.auth import Caller, Kind
from services.plumbing.db import Database
from tests.conftest import TEMPLATE, Cluster, FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, panel
from tests.services.test_notify_api import CSV, DENY_A, FHIR, JSON_PATCH, MERGE, hear
from tests.services.test_notify_delivery import Scene, staged

OPEN, OTHER = (
    UUID(int=0x0A11CE << 96 | 4 << 76 | 8 << 60),
    UUID(int=0x0B0B << 96 | 4 << 76 | 8 << 60),
)
"""Somebody whose card is seen, and the one who is suppressed or whom nothing befell."""
TYPES = ("Task", "Flag", "Patient", "Provenance", "Communication", "Organization")
OTHERS = ("PractitionerRole", "Consent", "Subscription")
UUID_TEXT = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}")
REAL = re.compile(r"2[0-9]{3}-(?!03-02)[0-9-]{5}T[0-9:.]{8,12}Z")
"""When something was sent, on the machine's clock."""
CURSOR = re.compile(r"(_cursor=)[^&\"]+")
DENY_HIV = {
    "type": "deny",
    "securityLabel": [{"system": build.TERMS + "v3-ActCode", "code": "HIV"}],
}
_numbers = itertools.count(1)


@dataclass
class World:
    scene: Scene
    pages: NotifyDesk
    names: dict[str, str] = field(default_factory=dict)
    said: list[tuple[str, object]] = field(default_factory=list)

    @property
    def door(self) -> Doorway:
        return self.scene.door

    def plain(self, text: str) -> str:
        """With every random id replaced by its place in the order in which they came."""

        def name(found: re.Match[str]) -> str:
            if found[0] in {str(OPEN), str(OTHER)}:
                return found[0]
            return self.names.setdefault(found[0], f"id-{len(self.names)}")

        text = text.replace(self.scene.url, "http://endpoint.example.org/hook")
        return CURSOR.sub(r"\1…", UUID_TEXT.sub(name, REAL.sub("then", text)))

    def note(self, what: str, said: httpx.Response | str) -> None:
        if isinstance(said, str):
            self.said.append((what, self.plain(said)))
            return
        headers = {n: self.plain(v) for n, v in said.headers.items()}
        headers.pop("content-length", None) if CURSOR.search(said.text) else None
        self.said.append((what, (said.status_code, headers, self.plain(said.text))))


@contextlib.asynccontextmanager
async def world(cluster: Cluster) -> AsyncIterator[World]:
    name = f"silence{os.getpid()}_{next(_numbers)}"
    await cluster.run(f"create database {name} template {TEMPLATE} owner {postgres.OWNER}")
    db = Database(FreshDatabase(cluster, name).url("notify"), "notify")
    try:
        door = Doorway(db, build.house(), resolved=("127.0.0.1",))
        async with staged(door) as scene:
            yield World(scene, NotifyDesk(db=db, house=door.house, now=lambda: door.now))
    finally:
        await db.close()
        await cluster.run(f"drop database {name} with (force)")


async def begin(here: World) -> None:
    door = here.door
    await hear(door, build.identified(OPEN), build.identified(OTHER))
    emr = door.client("clinic-a-emr")
    await emr.post("/panel?dry_run=false", content=panel(OPEN, OTHER), headers=CSV)
    await here.scene.subscribe(emr, content="full-resource")
    await hear(door, build.flag(OPEN, visits=VISITS[OPEN]))
    await here.scene.rounds()


VISITS = {
    p: [build.ed_visit(days, UUID(int=p.int + n)) for n, days in enumerate((1, 40, 120, 300), 1)]
    for p in (OPEN, OTHER)
}


async def restricted(here: World) -> None:
    hospital = here.door.client("hospital-a")
    for version, since in enumerate(("2026-01-01", "2026-01-02")):
        body = consent(OTHER, {**DENY_A, "period": {"start": since}}, id="TEST-c1")
        guard = {"If-Match": f'W/"{version}"'} if version else {}
        answer = await hospital.put("/fhir/Consent/TEST-c1", json=body, headers={**FHIR, **guard})
        assert answer.is_success
    await befalls(here, labels=())


async def on_hold(here: World) -> None:
    body = consent(OTHER, DENY_HIV, id="TEST-c1")
    hospital = here.door.client("hospital-a")
    assert (await hospital.put("/fhir/Consent/TEST-c1", json=body, headers=FHIR)).is_success
    await befalls(here, labels=None)


async def befalls(here: World, *, labels: Any) -> None:
    """A threshold, an episode with its moments, a correction, and the sweep."""
    door, key = here.door, UUID(int=OTHER.int + 50)
    four = [build.ed_visit(d, UUID(int=OTHER.int + d), labels=labels) for d in (1, 40, 120, 300)]
    await hear(
        door,
        build.flag(OTHER, 1, four),
        build.episode(OTHER, key, EpisodeMoment.ARRIVED, 1, labels=labels),
        build.episode(OTHER, key, EpisodeMoment.LEFT, 2, labels=labels),
        build.flag(OTHER, 2, [*four, build.ed_visit(2, key, labels=labels)]),
    )
    await here.scene.rounds()


async def nothing(here: World) -> None:
    """Nothing happens to the second patient."""


async def ask(here: World) -> None:
    """Everything a clinic can ask, after one more change of the patient it knows."""
    door = here.door
    door.now += timedelta(minutes=5)
    async with door.db.work() as tx:
        await flow.sweep(build.turn(tx, door.house, door.now))
    five = [*VISITS[OPEN], build.ed_visit(3, UUID(int=OPEN.int + 9))]
    await hear(door, build.flag(OPEN, 2, five, at=door.now))
    await here.scene.rounds()
    emr, number = door.client("clinic-a-emr"), build.number(OTHER)
    for type_ in (*TYPES, *OTHERS):
        for query in ("", "?_count=1", "?_count=0", "?_id=" + str(OTHER)):
            here.note(f"{type_}{query}", await emr.get(f"/fhir/{type_}{query}"))
        first = (await emr.get(f"/fhir/{type_}?_count=1")).json()
        for link in first.get("link", []):
            if link["relation"] == "next":
                here.note(f"{type_} next", await emr.get(link["url"]))
    for type_ in ("Task", "Flag", "Communication", "Provenance"):
        query = f"?patient={OTHER}"
        here.note(f"{type_}{query}", await emr.get(f"/fhir/{type_}{query}"))
    for type_, name in (("Task", "patient:identifier"), ("Patient", "identifier")):
        form = {name: f"{build.CARD}|{number}"}
        here.note(f"POST {type_}/_search", await emr.post(f"/fhir/{type_}/_search", data=form))
    everything = "?_include=Task:patient&_include=Task:focus&_revinclude=Provenance:target"
    here.note("Task with all", await emr.get(f"/fhir/Task{everything}"))
    here.note("Patient", await emr.get(f"/fhir/Patient/{OTHER}"))
    here.note("$status", await emr.get("/fhir/Subscription/$status"))
    here.note("panel", await emr.post("/panel", content=panel(OPEN, OTHER), headers=CSV))
    for number_, (headers, body) in enumerate(here.scene.endpoint.got):
        kept = {n: v for n, v in headers.items() if n in {"content-type", "authorization"}}
        here.note(f"push {number_}", f"{kept} {body.decode()}")
    await pages(here)


async def pages(here: World) -> None:
    scope: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
    for person in ("nurse-a", "nurse-d"):
        who = Caller(person, Kind.PERSON, roles=frozenset({"clinic_cm"}), clinic="clinic-a")
        asked = Ask(who, Language.FRENCH, uuid4(), Request({**scope, "client": None}))
        for chosen in Filter:
            for order in Order:
                shown = await here.pages.my_list(asked, chosen, order)
                here.note(f"list {person} {chosen} {order}", repr(shown))


@pytest.mark.parametrize("story", [restricted, on_hold])
async def test_a_suppressed_alert_and_no_alert_look_the_same(cluster: Cluster, story: Any) -> None:
    heard = []
    for what in (story, nothing):
        async with world(cluster) as here:
            await begin(here)
            await what(here)
            await ask(here)
            heard.append(here.said)
    suppressed, quiet = heard
    assert len(quiet) > 60
    assert [name for name, _ in suppressed] == [name for name, _ in quiet]
    for (name, one), (_, other) in zip(suppressed, quiet, strict=True):
        assert one == other, name


async def test_what_is_hidden_answers_as_what_does_not_exist(cluster: Cluster) -> None:
    """CA-01: a card, a Flag and all about it, made and restricted before anybody had them."""
    async with world(cluster) as here:
        await begin(here)
        await hear(here.door, build.flag(OTHER, 1, VISITS[OTHER]))
        async with here.door.db.work() as tx:
            from services.notify import store

            (card,) = await store.cards_here(tx, "clinic-a", [OTHER])
            (flag,) = await store.flags_here(tx, "clinic-a", [OTHER])
        body = consent(OTHER, DENY_A, id="TEST-c1")
        hospital = here.door.client("hospital-a")
        assert (await hospital.put("/fhir/Consent/TEST-c1", json=body, headers=FHIR)).is_success
        emr = here.door.client("clinic-a-emr")
        foreign = here.door.client("clinic-b-emr")
        hidden, unknown = await _ways(emr, card.id, flag.id), await _ways(emr, uuid4(), uuid4())
        others = await _ways(foreign, card.id, flag.id)
        asked: dict[str, Any] = {"type": "http", "method": "GET", "path": "/", "headers": []}
        who = Caller("nurse-a", Kind.PERSON, roles=frozenset({"clinic_cm"}), clinic="clinic-a")
        ask_ = Ask(who, Language.FRENCH, uuid4(), Request({**asked, "client": None}))
        assert await here.pages.card(ask_, card.id) is None
        assert await here.pages.take(ask_, card.id, card.version) is None
    assert hidden == unknown == others


async def _ways(client: httpx.AsyncClient, card: UUID, flag: UUID) -> list[Any]:
    """Every way to ask for one card and its Flag by id: status, headers, body."""
    guard = {"If-Match": 'W/"1"'}
    accepted = {"resourceType": "Task", "id": str(card), "status": "accepted"}
    answers = [
        await client.get(f"/fhir/Task/{card}"),
        await client.get(f"/fhir/Task/{card}/_history/1"),
        await client.get(f"/fhir/Task/{card}/_history/2"),
        await client.get(f"/fhir/Flag/{flag}"),
        await client.get(f"/fhir/Provenance/task-{card}-1"),
        await client.get(f"/fhir/Provenance/flag-{flag}-1"),
        await client.get(f"/fhir/Communication/{card}"),
        await client.patch(
            f"/fhir/Task/{card}", json={"status": "accepted"}, headers={**MERGE, **guard}
        ),
        await client.patch(
            f"/fhir/Task/{card}",
            json=[{"op": "replace", "path": "/status", "value": "accepted"}],
            headers={**JSON_PATCH, **guard},
        ),
        await client.put(f"/fhir/Task/{card}", json=accepted, headers={**FHIR, **guard}),
    ]
    assert {answer.status_code for answer in answers} == {404}
    return [(a.status_code, sorted(a.headers.items()), a.text) for a in answers]

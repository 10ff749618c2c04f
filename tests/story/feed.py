"""People who never existed, their visits, and clients that push them at the real doors.

Everything here is plain arithmetic: what the services should answer follows from what was pushed.
"""

import asyncio
import random
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any

import httpx
import orjson

CARD_SYSTEM = "https://fhir.infoway-inforoute.ca/NamingSystem/ca-qc-patient-healthcare-id"
V2_TYPE = "http://terminology.hl7.org/CodeSystem/v2-0203"
ACT_CODE = "http://terminology.hl7.org/CodeSystem/v3-ActCode"
FLAGGED_AT = 4
FHIR = {"Content-Type": "application/fhir+json"}

Token = Callable[[str], Awaitable[str]]


@dataclass(frozen=True, slots=True)
class Person:
    """Somebody fictitious, with the starts of all their ED visits, oldest first."""

    number: int
    clinic: str
    visits: tuple[datetime, ...]

    @property
    def card(self) -> str:
        return f"TEST{self.number:08d}"

    @property
    def family(self) -> str:
        return f"Testfamily{self.number:05d}"

    @property
    def birth_date(self) -> str:
        return f"{1940 + self.number % 60}-{1 + self.number % 12:02d}-{1 + self.number % 28:02d}"

    @property
    def is_flagged(self) -> bool:
        return len(self.visits) >= FLAGGED_AT


def people(counts: Sequence[int], now: datetime, clinics: Sequence[str], seed: int) -> list[Person]:
    """One person a count of visits; visits lie days apart, the last within 72 h of `now`."""
    draw = random.Random(seed)
    made = []
    for number, count in enumerate(counts, start=1):
        last = now - timedelta(hours=draw.randint(1, 48), seconds=draw.randint(0, 3599))
        gaps = [timedelta(days=draw.randint(5, 60), seconds=draw.randint(0, 9999))] * (count - 1)
        visits, at = [last], last
        for gap in gaps:
            at -= gap
            visits.append(at)
        made.append(Person(number, clinics[number % len(clinics)], tuple(reversed(visits))))
    return made


def patient(person: Person, site: str) -> dict[str, Any]:
    """The Patient as `site` sends it."""
    return {
        "resourceType": "Patient",
        "id": f"p-{person.number}",
        "identifier": [
            {
                "type": {"coding": [{"system": V2_TYPE, "code": "JHN"}]},
                "system": CARD_SYSTEM,
                "value": person.card,
            },
            {
                "type": {"coding": [{"system": V2_TYPE, "code": "MR"}]},
                "system": f"https://{site}.example.ca/record",
                "value": f"TEST-{person.number}",
            },
        ],
        "name": [{"family": person.family, "given": ["Camille"]}],
        "birthDate": person.birth_date,
        "gender": "unknown",
    }


def encounter(
    person: Person,
    index: int,
    site: str,
    *,
    status: str = "finished",
    code: str = "EMER",
    hours: float = 4,
) -> dict[str, Any]:
    """Visit `index` of the person, as `site` sends it."""
    start = person.visits[index]
    return {
        "resourceType": "Encounter",
        "id": f"e-{person.number}-{index}",
        "identifier": [
            {
                "type": {"coding": [{"system": V2_TYPE, "code": "VN"}]},
                "system": f"https://{site}.example.ca/visit",
                "value": f"TEST-V-{person.number}-{index}",
            }
        ],
        "status": status,
        "class": {"system": ACT_CODE, "code": code},
        "subject": {
            "reference": f"Patient/p-{person.number}",
            "identifier": {"system": CARD_SYSTEM, "value": person.card},
        },
        "period": {
            "start": start.isoformat(),
            "end": (start + timedelta(hours=hours)).isoformat(),
        },
    }


def bundle(resources: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A batch that PUTs each resource."""
    return {
        "resourceType": "Bundle",
        "type": "batch",
        "entry": [
            {
                "resource": resource,
                "request": {"method": "PUT", "url": f"{resource['resourceType']}/{resource['id']}"},
            }
            for resource in resources
        ],
    }


def panel_csv(members: Sequence[Person], nurse: str) -> str:
    """A clinic's panel upload (CA-40)."""
    rows = [
        "card_system,card_number,local_number,family,given,birth_date,sex,phone,language,"
        "contact_note,nurse,physician,start,end"
    ]
    rows += [
        f"{CARD_SYSTEM},{one.card},,{one.family},Camille,{one.birth_date},,,fr,,{nurse},,2024-01-01,"
        for one in members
    ]
    return "\n".join(rows) + "\n"


@dataclass
class Caller:
    """A machine client: it renews its token in time, and retries as a good engine does."""

    base: str
    client: str
    token: Token
    http: httpx.AsyncClient = field(
        default_factory=lambda: httpx.AsyncClient(timeout=30, trust_env=False)
    )
    _held: str = ""
    _until: float = 0.0

    async def headers(self) -> dict[str, str]:
        now = asyncio.get_running_loop().time()
        if now > self._until:
            self._held = await self.token(self.client)
            self._until = now + 200
        return {"Authorization": f"Bearer {self._held}"}

    async def send(
        self,
        method: str,
        path: str,
        body: object = None,
        headers: dict[str, str] | None = None,
        params: dict[str, str] | None = None,
    ) -> httpx.Response:
        """One request, once."""
        content = body if isinstance(body, str | bytes | None) else orjson.dumps(body)
        return await self.http.request(
            method,
            f"{self.base}{path}",
            content=content,
            headers={**FHIR, **await self.headers(), **(headers or {})},
            params=params,
        )

    async def until_accepted(self, method: str, path: str, body: object) -> httpx.Response:
        """The same request until it is answered 2xx, as a good integration engine does it."""
        while True:
            try:
                answer = await self.send(method, path, body)
            except httpx.TransportError:
                await asyncio.sleep(0.1)
                continue
            if answer.is_success:
                return answer
            if answer.status_code == httpx.codes.UNAUTHORIZED:
                self._until = 0.0
            elif answer.status_code < 500 and answer.status_code != httpx.codes.TOO_MANY_REQUESTS:
                raise AssertionError(f"{method} {path}: {answer.status_code} {answer.text[:500]}")
            await asyncio.sleep(0.1)

    async def close(self) -> None:
        await self.http.aclose()


async def push_people(hospital: Caller, members: Sequence[Person], site: str) -> None:
    """All Patients, by batches of 100."""
    for at in range(0, len(members), 100):
        sent = bundle([patient(one, site) for one in members[at : at + 100]])
        answer = await hospital.until_accepted("POST", "", sent)
        failed = [e for e in answer.json()["entry"] if not e["response"]["status"].startswith("2")]
        assert not failed, failed[:1]


async def upload_panel(clinic: Caller, members: Sequence[Person], nurse: str) -> dict[str, Any]:
    """The clinic's panel, applied; the report."""
    answer = await clinic.send(
        "POST",
        "/panel",
        panel_csv(members, nurse),
        {"Content-Type": "text/csv; charset=utf-8"},
        {"mode": "delta", "dry_run": "false"},
    )
    assert answer.is_success, answer.text
    report: dict[str, Any] = answer.json()
    return report


async def all_tasks(clinic: Caller) -> list[dict[str, Any]]:
    """Every Task the clinic sees, page by page."""
    found: list[dict[str, Any]] = []
    answer = await clinic.send("GET", "/fhir/Task", params={"_count": "200"})
    while True:
        assert answer.is_success, answer.text
        page = answer.json()
        found += [entry["resource"] for entry in page.get("entry", [])]
        following = [link["url"] for link in page["link"] if link["relation"] == "next"]
        if not following:
            return found
        answer = await clinic.http.get(following[0], headers=await clinic.headers())


async def eventually(
    what: Callable[[], Awaitable[bool]], seconds: float, every: float = 0.2
) -> bool:
    """Whether `what` becomes true within `seconds`; gives up then."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    while loop.time() < end:
        if await what():
            return True
        await asyncio.sleep(every)
    return await what()

"""A whole story with trouble at every stage: no name, number or birth date gets out (CS-96).

Looked through: the logs of all processes and of PostgreSQL (by `a_house`), traces, metrics, error
bodies and headers, URLs we make, Kafka's keys, headers and values, what the command line lists.
"""

import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import orjson
import pytest

from services.cli import doctor
from services.cli import house as houses
from services.cli.house import House
from tests.services.test_notify_delivery import subscription
from tests.story.conftest import CANARY, a_house
from tests.story.feed import CARD_SYSTEM, Caller, Person, eventually, patient, upload_panel
from tests.story.test_story import (
    BAD_BODIES,
    SITE,
    callers,
    consent,
    no_canary_on,
    put,
    somebody,
    tasks,
    visits,
)


@dataclass
class Collector:
    """Receives traces as an OTLP collector does, and endpoints' notifications; keeps the bytes."""

    port: int = 0
    got: dict[str, list[bytes]] = field(default_factory=dict)

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                path = head.split(b" ")[1].decode()
                sizes = [
                    int(line.split(b":")[1])
                    for line in head.lower().split(b"\r\n")
                    if line.startswith(b"content-length:")
                ]
                body = await reader.readexactly(sizes[0]) if sizes else b""
                self.got.setdefault(path, []).append(head + body)
                # A destination that fails, and repeats in its answer what nobody may keep.
                status, said = (b"200 OK", b"")
                if path == "/hook":
                    status, said = b"500 Error", b"TEST00000077 Testfamily Camille 1957-03-14"
                writer.write(
                    b"HTTP/1.1 %s\r\ncontent-length: %d\r\n\r\n%s" % (status, len(said), said)
                )
                await writer.drain()
        writer.close()


@asynccontextmanager
async def collecting() -> AsyncIterator[Collector]:
    collector = Collector()
    server = await asyncio.start_server(collector.met, "127.0.0.1", 0, limit=2**22)
    collector.port = server.sockets[0].getsockname()[1]
    yield collector
    server.close()


@dataclass
class Seen:
    """Every answer that was got."""

    answers: list[httpx.Response] = field(default_factory=list)

    def faults(self) -> Iterator[str]:
        """Where an error or an address of ours repeats what was sent or is known."""
        for answer in self.answers:
            said = f"{answer.request.method} {answer.status_code}"
            if answer.status_code >= 400 and CANARY.search(answer.content):
                yield f"{said}: body"
            headers = b"\n".join(v for n, v in answer.headers.raw if n.lower() != b"location")
            if CANARY.search(headers):
                yield f"{said}: headers"
            # A Location leads back to what was asked for, by the words of who asked, or names the
            # resource by the id that its sender gave it: nothing else of a person.
            told = set(CANARY.findall(answer.headers.get("location", "").encode()))
            if told - set(CANARY.findall(str(answer.request.url).encode())):
                yield f"{said}: location"


async def send(seen: Seen, who: Caller, method: str, path: str, body: Any = None) -> httpx.Response:
    answer = await who.send(method, path, body)
    seen.answers.append(answer)
    return answer


async def owner_of(house: House) -> asyncpg.Connection:
    return await asyncpg.connect(house.server.url("postgres", house.server.password, "passerelle"))


async def refused_at_every_door(seen: Seen, hospital: Caller, emr: Caller, one: Person) -> None:
    """4xx: bodies, queries, panels, Consents, Subscriptions with canaries in the wrong places."""
    for body in BAD_BODIES:
        for path in ("/Encounter", "/Patient", "", "/$process-message"):
            await send(seen, hospital, "POST", path, body)
        for path in ("/fhir/Consent", "/fhir/Subscription", "/panel?dry_run=false"):
            await send(seen, emr, "POST", path, body)
    big = b'{"resourceType": "Patient", "x": "' + b"TEST00000042" * 100_000 + b'"}'
    await send(seen, hospital, "PUT", "/Patient/p1", big)
    for path in (
        f"/Patient?identifier={CARD_SYSTEM}|{one.card}&family={one.family}",
        f"/Encounter/{one.card}",
        f"/Encounter?{one.family}=1",
    ):
        await send(seen, hospital, "GET", path)
    for path in (
        f"/fhir/Patient?identifier={CARD_SYSTEM}|{one.card}&x={one.family}",
        f"/fhir/Task?patient.identifier={one.card}",
        f"/cards/{one.card}",
        f"/sign-in?to=//{one.card}.example.org",
        f"/sign-in/return?code={one.card}&state={one.family}",
    ):
        await send(seen, emr, "GET", path)
    wrong = f"card_system,card_number,family,birth_date,nurse\n{CARD_SYSTEM},{one.card},"
    wrong += f"{one.family},{one.birth_date},{one.family}\nx,{one.card},{one.family},1957-99-99,\n"
    await send(seen, emr, "POST", "/panel?dry_run=false", wrong.encode())
    broken = {**consent(one, "permit"), "status": one.family, "dateTime": one.birth_date + "T99"}
    await send(seen, emr, "POST", "/fhir/Consent", broken)


async def failing_inside(seen: Seen, house: House, hospital: Caller, one: Person) -> None:
    """5xx: a table that is gone, an audit that cannot be written, connections cut off."""
    owner = await owner_of(house)
    try:
        for spoil, mend in (
            (
                "alter table ingest.identifier rename to gone",
                "alter table ingest.gone rename to identifier",
            ),
            (
                "revoke insert on ingest.audit from passerelle_ingest_request",
                "grant insert on ingest.audit to passerelle_ingest_request",
            ),
            (
                "alter table ingest.patient add constraint odd check (version < 0) not valid",
                "alter table ingest.patient drop constraint odd",
            ),
        ):
            await owner.execute(spoil)
            try:
                answer = await send(
                    seen,
                    hospital,
                    "PUT",
                    "/Patient/p-spoilt",
                    {**patient(one, SITE), "id": "p-spoilt"},
                )
                assert answer.status_code >= 500, answer.status_code
            finally:
                await owner.execute(mend)
        await owner.execute(
            "select pg_terminate_backend(pid) from pg_stat_activity"
            " where usename in ('passerelle_ingest', 'passerelle_screening', 'passerelle_notify')"
        )
        await send(seen, hospital, "GET", f"/Patient?identifier={CARD_SYSTEM}|{one.card}")
    finally:
        await owner.close()


POISON = "poisoned-with-Camille"
"""In events that nobody can take in: planted by us, so looked for in what is said of them."""


async def poisoned(house: House) -> None:
    """Events of right types and wrong content, for both readers; they become dead letters."""
    owner = await owner_of(house)
    try:
        for type_ in ("encounter.recorded.v1", "patient.identified.v1"):
            await owner.execute(
                "insert into ingest.outbox (type, subject, time, data)"
                " values ($1, gen_random_uuid(), now(), $2)",
                type_,
                orjson.dumps({"patient": POISON, "version": POISON}).decode(),
            )

        async def buried() -> bool:
            count = await owner.fetchval(
                "select (select count(*) from screening.dead_letter)"
                " + (select count(*) from notify.dead_letter)"
            )
            return int(count) >= 3

        assert await eventually(buried, 60)
    finally:
        await owner.close()
    for service in ("screening", "notify"):
        environment = houses.environments(house.plan.data)[service]
        listed = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.cli.main", "replay", service,
            env=environment, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.STDOUT,
        )  # fmt: skip
        said, _ = await listed.communicate()
        assert b".v1" in said
        assert POISON.encode() not in said
    for log in house.plan.data.glob("*.log"):
        assert POISON not in log.read_text(errors="replace")


@pytest.mark.slow
async def test_nothing_of_a_patient_gets_out_whatever_goes_wrong(carried: dict[str, str]) -> None:
    one, other = somebody(42), somebody(43)
    async with collecting() as collector:
        traces = {"PASSERELLE_OTLP_ENDPOINT": f"http://127.0.0.1:{collector.port}/v1/traces"}
        async with (
            a_house(extra={**carried, **traces}) as house,
            callers(house) as (hospital, emr, _),
        ):
            seen = Seen()
            await upload_panel(emr, [one, other], "nurse-a")
            hook = subscription(
                f"http://127.0.0.1:{collector.port}/hook", channel={"header": []}, reason=one.family
            )
            made = await send(seen, emr, "POST", "/fhir/Subscription", hook)
            assert made.status_code == 201, made.text
            await refused_at_every_door(seen, hospital, emr, one)
            await put(hospital, patient(one, SITE))
            await failing_inside(seen, house, hospital, one)
            for name in ("screening", "notify"):  # in the middle of what comes
                process = house.parts[name].process
                assert process is not None
                process.kill()
            await visits(hospital, one)
            if not carried:  # on Kafka our own poison would be found on it
                await poisoned(house)
            [task] = await tasks(emr, 1, 90)
            assert task["status"] == "requested"
            office = Caller(house.url("notify"), SITE, house.token)
            await send(seen, office, "PUT", f"/fhir/Consent/c-{one.number}", consent(one, "deny"))
            await office.close()
            for part in ("ingest", "screening", "notify"):
                metrics = await emr.http.get(f"{house.url(part)}/metrics")
                assert metrics.is_success
                assert not CANARY.search(metrics.content)
            if carried:
                await no_canary_on(carried)
            assert list(seen.faults()) == []
            assert {answer.status_code // 100 for answer in seen.answers} >= {4, 5}

            async def traced() -> bool:
                return any(b"passerelle-ingest" in one for one in collector.got["/v1/traces"])

            assert await eventually(traced, 30)
            findings = await doctor.of_house(house.plan.data)
            assert {one.service for one in findings} == {"ingest", "screening", "notify"}
            assert [str(one) for one in findings if one.level == "fail"] == []
            assert not CANARY.search(doctor.as_json(findings).encode())
        spans = collector.got["/v1/traces"]  # what is left is sent when the processes stop
        assert any(b"ingest PUT" in one for one in spans)
        assert [found[0] for one in spans if (found := CANARY.search(one))] == []
        assert collector.got["/hook"], "the endpoint was called, and failed"
        assert not [said for said in collector.got["/hook"] if CANARY.search(said)]

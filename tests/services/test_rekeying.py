"""A new key for tokens, seals and dates: nothing is lost, nobody becomes another (CS-95, HA-98)."""

import asyncio
import base64
import contextlib
import subprocess
import sys
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import UUID

import asyncpg
import httpx
import orjson
import pytest
from pydantic import SecretStr

from schemas.patient_identified_v1 import Sealed, Token
from services.cli import rekeying
from services.cli.rekeying import Held, Tally, Vault, held, retire
from services.ingest import __main__ as ingest
from services.ingest import people
from services.notify import __main__ as notify
from services.notify import flow
from services.notify.__main__ import Built
from services.plumbing.clock import drive
from services.plumbing.db import Database
from services.plumbing.sealing import Seals, Tokens
from services.plumbing.settings import IngestSettings, Keyring, NotifySettings
from tests.conftest import FreshDatabase, keyring
from tests.services import notify_builders as build
from tests.services.notify_door import consent
from tests.services.test_access_matrix import SUBSCRIPTION, Scene, publishing, region_file
from tests.web.serving import served

CARD = "https://health-card.example.ca"
RECORD = "https://hospital-a.example.ca/record"
VISIT = "https://hospital-a.example.ca/visit"
WORDS = ("tokens", "seals", "dates")
OLD = {word: keyring(word) for word in WORDS}


def key_of(word: str) -> str:
    return base64.b64encode((f"new {word} " * 32).encode()[:32]).decode()


def ring(word: str, *, both: bool) -> Keyring:
    """The new key active; with `both`, the old one is still there."""
    old = {name: secret.get_secret_value() for name, secret in OLD[word].keys.items()}
    new = {f"{word[0]}2": key_of(word)}
    return Keyring.model_validate(
        {"active": f"{word[0]}2", "keys": {**old, **new} if both else new}
    )


BOTH = {word: ring(word, both=True) for word in WORDS}
NEW = {word: ring(word, both=False) for word in WORDS}


async def rotate(db: Database, with_keys: Vault) -> Tally:
    return await rekeying.rotate(db, with_keys, build.NOW)


def vault(rings: dict[str, Keyring]) -> Vault:
    return Vault(Tokens(rings["tokens"]), Seals(rings["dates"], rings["seals"]))


@dataclass
class Town:
    """Ingest and notify with one set of keys."""

    scene: Scene
    ingest: httpx.AsyncClient
    notify: httpx.AsyncClient
    built: Built
    hospital: dict[str, str]
    clinic: dict[str, str]

    async def send(self, kind: str, id_: str, **resource: Any) -> httpx.Response:
        body = {"resourceType": kind, "id": id_, **resource}
        return await self.ingest.put(f"/fhir/{kind}/{id_}", json=body, headers=self.hospital)


@contextlib.asynccontextmanager
async def town(
    database: FreshDatabase, folder: Path, rings: dict[str, Keyring]
) -> AsyncIterator[Town]:
    address: list[str] = []
    async with contextlib.AsyncExitStack() as stack:
        issuer = await stack.enter_async_context(served(publishing(lambda: address[0])))
        address.append(issuer)
        drive(folder / "clock.json", build.NOW, 1.0)
        said: dict[str, Any] = {
            "region": region_file(folder),
            "issuer": issuer,
            "local": True,
            "clock": folder / "clock.json",
            "token_keys": rings["tokens"],
            "seal_keys": rings["seals"],
            "date_keys": rings["dates"],
            "cursor_key": SecretStr("Q1VSU09S" * 6),
            "oidc_client_secret": SecretStr("synthetic-secret-of-the-tests"),
        }
        one = ingest.build(IngestSettings(**said, database_url=SecretStr(database.url("ingest"))))
        two = notify.build(NotifySettings(**said, database_url=SecretStr(database.url("notify"))))
        for db, authority in ((one.house.db, one.house.authority), (two.db, two.authority)):
            stack.push_async_callback(db.close)
            stack.push_async_callback(authority.http.aclose)
        stack.push_async_callback(two.courier.http.aclose)
        to_ingest, to_notify = [
            await stack.enter_async_context(
                httpx.AsyncClient(
                    transport=httpx.ASGITransport(app=app), base_url=f"http://127.0.0.1:{port}"
                )
            )
            for app, port in ((one.app, 8001), (two.app, 8003))
        ]
        scene = Scene({}, database, issuer, {})
        yield Town(
            scene,
            to_ingest,
            to_notify,
            two,
            scene.credentials("hospital-a"),
            scene.credentials("clinic-a-emr"),
        )


def patient(number: int, **more: Any) -> dict[str, Any]:
    return {
        "identifier": [
            {"system": CARD, "value": f"TEST{number:08}"},
            {"system": RECORD, "value": f"TEST-{number:04}"},
        ],
        "name": [{"family": "Fictif", "given": ["Zoé"]}],
        "birthDate": "1950-02-03",
        **more,
    }


def encounter(number: int, patient_number: int) -> dict[str, Any]:
    return {
        "identifier": [{"system": VISIT, "value": f"TEST-V{number}"}],
        "status": "finished",
        "class": {"system": "http://terminology.hl7.org/CodeSystem/v3-ActCode", "code": "EMER"},
        "subject": {"identifier": {"system": RECORD, "value": f"TEST-{patient_number:04}"}},
        "period": {"start": "2026-03-01T08:00:00-05:00", "end": "2026-03-01T14:00:00-05:00"},
    }


SOMEBODY = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")


async def live(here: Town) -> None:
    """Patients and encounters sent, a card, a Consent, a Subscription, a panel."""
    for number in range(3):
        answer = await here.send("Patient", f"TEST-P{number}", **patient(number))
        assert answer.status_code == 201, answer.text
        answer = await here.send("Encounter", f"TEST-E{number}", **encounter(number, number))
        assert answer.status_code == 201, answer.text

    async def hear(handler: Any, event: Any) -> None:
        async with here.built.db.work() as tx:
            turn = flow.Turn(tx=tx, now=here.built.clock.now(), house=here.built.house)
            await handler([event], turn)

    await hear(flow.on_patients_identified, build.identified(SOMEBODY))
    assert (await upload(here)).json()["added"] == 1
    await hear(flow.on_flags_changed, build.flag(SOMEBODY))
    for path, body in (
        ("/fhir/Consent", consent(SOMEBODY, {"type": "permit"})),
        ("/fhir/Subscription", SUBSCRIPTION),
    ):
        answer = await here.notify.post(path, json=body, headers=here.clinic)
        assert answer.status_code == 201, answer.text


async def upload(here: Town) -> httpx.Response:
    row = f"{build.CARD},{build.number(SOMEBODY)},Fictif,1950-02-03,nurse-a"
    return await here.notify.post(
        "/panel?dry_run=false",
        content=f"card_system,card_number,family,birth_date,nurse\n{row}\n",
        headers={"Content-Type": "text/csv", **here.clinic},
    )


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    made = await database.owner()
    yield made
    await made.close()


@contextlib.asynccontextmanager
async def service(database: FreshDatabase, name: str) -> AsyncIterator[Database]:
    made = Database(database.url(name), name)
    yield made
    await made.close()


async def keys_in_use(database: FreshDatabase) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for name in ("ingest", "notify"):
        async with service(database, name) as db:
            found |= {(one.ring, one.key) for one in await held(db)}
    return found


def test_a_field_s_digest_is_made_as_ingest_makes_it() -> None:
    assert rekeying.FIELD == people.FIELD


async def test_after_a_rotation_the_old_keys_are_not_needed(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    async with town(database, tmp_path, OLD) as here:
        await live(here)
        before = (await here.notify.get("/fhir/Patient", headers=here.clinic)).json()["entry"]
        task = (await here.notify.get("/fhir/Task", headers=here.clinic)).json()["entry"]
    known = await owner.fetchval("select count(*) from ingest.patient")
    handles = await owner.fetchval("select count(*) from ingest.handle")
    assert await keys_in_use(database) == {("tokens", "t1"), ("seals", "s1"), ("dates", "d1")}
    for name in ("ingest", "notify"):
        async with service(database, name) as db:
            tally = await rotate(db, vault(BOTH))
            assert tally.broken == 0
            assert tally.sealed
            assert tally.tokens
            again = await rotate(db, vault(BOTH))
            assert (again.sealed, again.tokens) == (0, 0)
    assert await keys_in_use(database) == {("tokens", "t2"), ("seals", "s2"), ("dates", "d2")}
    async with service(database, "ingest") as db:
        assert await retire(db, "t1")
    async with town(database, tmp_path, NEW) as here:
        for number in range(3):  # what is sent again has no effect
            answer = await here.send("Encounter", f"TEST-E{number}", **encounter(number, number))
            assert (answer.status_code, answer.headers["etag"]) == (200, 'W/"1"')
        assert await owner.fetchval("select count(*) from ingest.handle") == handles
        answer = await here.send("Encounter", "TEST-E9", **encounter(9, 1))
        assert answer.status_code == 201
        found = await here.ingest.get(
            f"/fhir/Encounter?identifier={VISIT}|TEST-V1", headers=here.hospital
        )
        assert found.json()["total"] == 1
        read = await here.ingest.get("/fhir/Patient/TEST-P1", headers=here.hospital)
        assert read.json()["name"][0]["family"] == "Fictif"
        after = await here.notify.get("/fhir/Patient", headers=here.clinic)
        assert [one["resource"] for one in after.json()["entry"]] == [
            one["resource"] for one in before
        ]
        same = await here.notify.get("/fhir/Task", headers=here.clinic)
        assert same.json()["entry"][0]["resource"] == task[0]["resource"]
        own = await here.notify.get("/fhir/Consent", headers=here.clinic)
        assert own.json()["total"] == 1
        assert (await upload(here)).json()["added"] == 0
    # The encounter sent under the new key is of a patient known under the old one.
    assert await owner.fetchval("select count(*) from ingest.patient") == known
    assert await owner.fetchval("select count(distinct patient) from ingest.resource") == 3


NEXT = {  # the new key is there and not yet active: what all processes have before the first turns
    word: Keyring.model_validate({"active": f"{word[0]}1", "keys": dict(BOTH[word].keys)})
    for word in WORDS
}


async def one_patient_a_number(owner: asyncpg.Connection, numbers: int) -> None:
    """Every number is one patient, all that was sent of it is theirs, no name is there twice."""
    of_records = await owner.fetch(
        "select r.patient, array_agg(r.id order by r.id) as ids from ingest.resource r group by 1"
    )
    assert None not in [row["patient"] for row in of_records]
    for row in of_records:
        assert len({one.split("-")[1].lstrip("PE") for one in row["ids"]}) == 1, row["ids"]
    assert len(of_records) == numbers
    assert await owner.fetchval("select count(*) from ingest.patient") == numbers
    assert await owner.fetchval("select count(*) from ingest.token") == 2 * numbers


async def test_ingest_takes_in_while_its_tokens_are_made_anew(
    database: FreshDatabase,
    owner: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """HA-98: known patients stay known, whether the job or a message comes to them first."""
    monkeypatch.setattr(rekeying, "BATCH", 2)
    numbers = 12
    async with town(database, tmp_path, OLD) as here:
        for number in range(numbers):
            assert (await here.send("Patient", f"TEST-P{number}", **patient(number))).is_success
    async with town(database, tmp_path, BOTH) as here, service(database, "ingest") as db:

        async def live_on(number: int) -> None:
            sent = [
                ("Encounter", f"TEST-E{number}", encounter(number, number)),
                ("Patient", f"TEST-P{number}", patient(number, gender="female")),
                ("Encounter", f"TEST-E{number}-2", encounter(100 + number, number)),
            ]
            for kind, id_, said in sent:
                answer = await here.send(kind, id_, **said)
                assert answer.status_code in (200, 201), answer.text
            found = await here.ingest.get(
                f"/fhir/Patient?identifier={RECORD}|TEST-{number:04}", headers=here.hospital
            )
            assert found.json()["total"] == 1

        job = asyncio.create_task(rotate(db, vault(BOTH)))
        await asyncio.gather(*(live_on(number) for number in reversed(range(numbers))))
        assert (await job).broken == 0
        await rotate(db, vault(BOTH))
    await one_patient_a_number(owner, numbers)
    held_ = await owner.fetch("select distinct key_id from ingest.token")
    assert [row["key_id"] for row in held_] == ["t2"]
    assert await owner.fetchval("select count(*) from ingest.version where hold is not null") == 0


async def test_two_processes_with_different_active_keys_make_one_patient_of_one(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """A restart of one process after the other: both meet the same new patients at once."""
    numbers = 10
    folders = (tmp_path / "a", tmp_path / "b")
    for folder in folders:
        folder.mkdir()
    async with (
        town(database, folders[0], NEXT) as before,
        town(database, folders[1], BOTH) as after,
    ):
        answers = await asyncio.gather(
            *(
                here.send(
                    "Encounter", f"TEST-E{number}-{at}", **encounter(number * 10 + at, number)
                )
                for number in range(numbers)
                for at, here in enumerate((before, after))
            )
        )
        assert {one.status_code for one in answers} == {201}
        # Back and forth: each finds what the other moved.
        for here in (before, after, before):
            answer = await here.send("Patient", "TEST-P3", **patient(3))
            assert answer.status_code in (200, 201)
    await one_patient_of_encounters(owner, numbers)


async def one_patient_of_encounters(owner: asyncpg.Connection, numbers: int) -> None:
    rows = await owner.fetch(
        "select r.patient, count(*) as n from ingest.resource r where kind = 'Encounter' group by 1"
    )
    assert sorted(row["n"] for row in rows) == [2] * numbers


async def test_who_lacks_a_key_that_tokens_were_made_with_takes_nothing_in(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """CS-95: or it would take a known patient for a new one. 503, said in the log, no effect."""
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    async with town(database, tmp_path, BOTH | {"tokens": NEW["tokens"]}) as here:
        answer = await here.send("Patient", "TEST-P1", **patient(1, gender="female"))
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "60")
        assert answer.json()["issue"][0]["code"] == "transient"
        assert "t1" not in answer.text
    async with town(database, tmp_path, BOTH) as here:  # the new one is in use from here on
        assert (await here.send("Patient", "TEST-P8", **patient(8))).status_code == 201
    async with town(database, tmp_path, BOTH | {"tokens": OLD["tokens"]}) as here:
        answer = await here.send("Patient", "TEST-P8", **patient(8))
        assert answer.status_code == 503
    assert await owner.fetchval("select count(*) from ingest.patient") == 4


async def test_a_retired_key_is_not_used_again(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    async with service(database, "ingest") as db:
        assert not await retire(db, "t1"), "it is in use"
        await rotate(db, vault(BOTH))
        assert await retire(db, "t1")
    async with town(database, tmp_path, OLD) as here:  # a process that was not restarted
        answer = await here.send("Patient", "TEST-P1", **patient(1, gender="female"))
        assert answer.status_code == 503
    async with town(database, tmp_path, NEW) as here:
        answer = await here.send("Patient", "TEST-P1", **patient(1, gender="female"))
        assert answer.status_code == 200
    assert await owner.fetchval("select count(*) from ingest.patient") == 3


UNCONFIRMED = "select count(*) from notify.panel where confirmed_on is null"


async def test_notify_matches_under_either_key_while_they_change(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """A panel or Consent under one key, a patient told under the other, whichever comes first."""
    someone = UUID("5c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c05")
    async with town(database, tmp_path, OLD) as here:
        await live(here)  # panel, Consent and patient under the old key

    async def hear(here: Town, *events: Any) -> None:
        async with here.built.db.work() as tx:
            turn = flow.Turn(tx=tx, now=here.built.clock.now(), house=here.built.house)
            await flow.on_patients_identified(events, turn)

    def told(patient: UUID, rings: dict[str, Keyring], version: int) -> Any:
        """As ingest with these keys says it."""
        event = build.identified(patient, version=version)
        keys = vault(rings)
        boxes = {
            name: keys.seals.seal(patient, name, build.house().seals.open(patient, name, *box))
            for name, box in ((n, (b.key_id, b.box)) for n, b in event.demographics.items())
        }
        token = keys.tokens.token(build.CARD, build.number(patient))
        return event.model_copy(
            update={
                "tokens": (Token(key_id=token[0], digest=token[1]),),
                "demographics": {n: Sealed(key_id=k, box=b) for n, (k, b) in boxes.items()},
            }
        )

    async with town(database, tmp_path, BOTH) as here:
        await hear(here, told(SOMEBODY, NEW, 2))  # ingest was quicker
        shown = await here.notify.get("/fhir/Patient", headers=here.clinic)
        assert shown.json()["total"] == 1
        report = (await upload(here)).json()
        assert (report["added"], report["changed"], report["unchanged"]) == (0, 0, 1)
        # A claim under the new key, and its patient told under the old one only.
        row = f"{build.CARD},{build.number(someone)},Fictif,1950-02-03,nurse-a"
        answer = await here.notify.post(
            "/panel?dry_run=false",
            content=f"card_system,card_number,family,birth_date,nurse\n{row}\n",
            headers={"Content-Type": "text/csv", **here.clinic},
        )
        assert answer.json()["added"] == 1, answer.text
        await hear(here, told(someone, OLD, 1))
        assert (
            await owner.fetchval("select count(*) from notify.panel where confirmed_on is null")
            == 0
        )
        async with service(database, "notify") as db:
            await rotate(db, vault(BOTH))
    rows = await owner.fetch("select distinct key_id from notify.token where key_id <> 'key'")
    assert [row["key_id"] for row in rows] == ["t2"]
    async with town(database, tmp_path, NEW) as here:
        shown = await here.notify.get("/fhir/Consent", headers=here.clinic)
        assert shown.json()["total"] == 1
        assert (
            await owner.fetchval("select count(*) from notify.panel where confirmed_on is null")
            == 0
        )


async def test_a_rotation_that_was_killed_goes_on_where_it_was(
    database: FreshDatabase, owner: asyncpg.Connection, tmp_path: Path
) -> None:
    """Kill -9 of the command between two of its pages; then once more, to the end."""
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    # The second page of tokens waits for a lock that this test holds.
    await owner.execute("select pg_advisory_lock(77)")
    await owner.execute(
        "create function ingest.linger() returns trigger language plpgsql as"
        " $$begin perform pg_advisory_xact_lock(77); return new; end$$;"
        " create trigger linger before update of retold on ingest.patient for each row"
        " execute function ingest.linger()"
    )
    process = await asyncio.create_subprocess_exec(
        *command("rotate", "ingest"),
        env=environment_of(database, tmp_path, BOTH, "ingest"),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    while not await owner.fetchval(
        "select exists (select from pg_locks where locktype = 'advisory' and not granted)"
    ):
        assert process.returncode is None, (await process.communicate())[1]
        await asyncio.sleep(0.02)
    process.kill()
    assert await process.wait() == -9
    await owner.execute("select pg_advisory_unlock(77)")
    await owner.execute("drop trigger linger on ingest.patient")
    done = await passerelle(database, tmp_path, BOTH, "rotate", "ingest")
    assert done.returncode == 0, done.stderr
    done = await passerelle(database, tmp_path, BOTH, "status", "ingest")
    assert "t1" not in {
        line.split()[1] for line in done.stdout.splitlines() if "outbox" not in line
    }
    assert await owner.fetchval("select count(*) from ingest.patient where retold = 't2'") == 3
    told = await owner.fetch(
        "select data from ingest.outbox where type = 'patient.identified.v1' order by position"
    )
    newest = {orjson.loads(row["data"])["patient"]: orjson.loads(row["data"]) for row in told}
    assert len(newest) == 3
    for said in newest.values():
        assert {one["key_id"] for one in said["tokens"]} == {"t2"}
        assert {one["key_id"] for one in said["demographics"].values()} == {"s2", "d2"}


async def test_services_go_on_with_both_keys_while_seals_are_made_anew(
    database: FreshDatabase, tmp_path: Path
) -> None:
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    async with town(database, tmp_path, BOTH) as here, service(database, "notify") as db:
        read = await here.notify.get("/fhir/Patient", headers=here.clinic)
        assert read.json()["total"] == 1
        await rotate(db, vault(BOTH))
        read = await here.notify.get("/fhir/Patient", headers=here.clinic)
        assert read.json()["total"] == 1


async def test_a_rotation_that_was_cut_off_goes_on_where_it_was(
    database: FreshDatabase,
    owner: asyncpg.Connection,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(rekeying, "BATCH", 2)
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    await owner.execute(
        "create function ingest.fail() returns trigger language plpgsql as"
        " $$begin if old.key_id = 's1' and (select count(*) from ingest.version"
        " where key_id = 's2') >= 3 then raise 'cut off'; end if; return new; end$$;"
        " create trigger cut before update on ingest.version for each row"
        " execute function ingest.fail()"
    )
    async with service(database, "ingest") as db:
        with pytest.raises(Exception, match="cut off"):
            await rotate(db, vault(BOTH))
        both = {one.key for one in await held(db) if one.table == "version"}
        assert both == {"s1", "s2"}
        await owner.execute("drop trigger cut on ingest.version")
        await rotate(db, vault(BOTH))
        assert {one.key for one in await held(db)} == {"t2", "s2", "d2"}


async def test_a_box_whose_key_is_gone_stays_as_it_is_and_is_counted(
    database: FreshDatabase, tmp_path: Path
) -> None:
    """Unknown key id: nothing is guessed and nothing destroyed."""
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    without = BOTH | {"seals": NEW["seals"]}
    async with service(database, "notify") as db:
        before = [one for one in await held(db) if one.ring == "seals"]
        tally = await rotate(db, vault(without))
        assert tally.broken
        assert [one for one in await held(db) if one.ring == "seals"] == before


async def test_events_not_yet_trimmed_hold_a_key_too(
    database: FreshDatabase, tmp_path: Path
) -> None:
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    async with service(database, "ingest") as db:
        found = await held(db, {"tokens": ["t1", "t2"], "seals": ["s1"]})
    assert Held("tokens", "t1", "outbox", 3) in found
    assert not [one for one in found if one.key == "t2"]


def environment_of(
    database: FreshDatabase, folder: Path, rings: dict[str, Keyring], name: str
) -> dict[str, str]:
    environment = {
        "PATH": "/usr/bin:/bin",
        "PASSERELLE_DATABASE_URL": database.url(name),
        "PASSERELLE_REGION": str(folder / "region.yaml"),
    }
    for word in WORDS:
        keys = {name: secret.get_secret_value() for name, secret in rings[word].keys.items()}
        value = orjson.dumps({"active": rings[word].active, "keys": keys}).decode()
        environment[f"PASSERELLE_{word.removesuffix('s').upper()}_KEYS"] = value
    return environment


def command(*said: str) -> list[str]:
    return [sys.executable, "-m", "services.cli.main", "keys", *said]


async def passerelle(
    database: FreshDatabase, folder: Path, rings: dict[str, Keyring], *said: str
) -> subprocess.CompletedProcess[str]:
    environment = environment_of(database, folder, rings, said[1])
    return await asyncio.to_thread(
        subprocess.run,
        command(*said),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )


async def test_the_commands_say_what_is_in_use_and_when_it_may_go(
    database: FreshDatabase, tmp_path: Path
) -> None:
    async with town(database, tmp_path, OLD) as here:
        await live(here)
    done = await passerelle(database, tmp_path, BOTH, "retire", "notify", "s1")
    assert (done.returncode, done.stderr) == (1, "s1 is in use: it cannot be retired.\n")
    done = await passerelle(database, tmp_path, BOTH, "rotate", "notify")
    assert done.returncode == 0, done.stderr
    assert "0 not opened" in done.stdout
    done = await passerelle(database, tmp_path, BOTH, "retire", "notify", "s1")
    assert done.returncode == 0
    assert done.stdout == "s1 holds nothing of notify: take it out of the keyring.\n"
    done = await passerelle(database, tmp_path, BOTH, "status", "notify")
    assert done.returncode == 0
    assert all(line.endswith("active") for line in done.stdout.splitlines())
    done = await passerelle(database, tmp_path, OLD, "status", "notify")
    assert done.returncode == 1
    assert "MISSING" in done.stdout

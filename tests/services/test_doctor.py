"""`passerelle doctor` finds what is wrong, says what to do, and shows nothing (CS-95, CS-91)."""

import base64
import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import asyncpg
import orjson
import pytest

from services.cli import doctor, main
from services.cli.doctor import Finding, exit_code
from services.plumbing.settings import SERVICES, Keyring, Service
from tests.conftest import PASSWORD, FreshDatabase, keyring
from tests.services.test_access_matrix import publishing, region_file
from tests.services.test_rekeying import BOTH, NEW, OLD, live, town
from tests.web.serving import served

CURSOR = base64.b64encode(b"cursor key of the tests, 32 bytes").decode()
CHECKPOINT = base64.b64encode(b"checkpoint key of the tests: 32 bytes").decode()
CLIENT_SECRET = "synthetic-secret-of-the-tests"


@dataclass
class Installation:
    """One service's variables, which a test may spoil."""

    database: FreshDatabase
    owner: asyncpg.Connection
    set_: Callable[[str, str], None]

    def rings(self, rings: dict[str, Keyring]) -> None:
        for word, ring in rings.items():
            keys = {name: secret.get_secret_value() for name, secret in ring.keys.items()}
            said = orjson.dumps({"active": ring.active, "keys": keys}).decode()
            self.set_(f"{word.removesuffix('s')}_keys", said)

    async def looked(self, service: Service = "ingest") -> list[Finding]:
        self.set_("database_url", self.database.url(service))
        found = await doctor.examine(service)
        told = "\n".join(map(str, found)) + doctor.as_json(found)
        for secret in (PASSWORD, CURSOR, CHECKPOINT, CLIENT_SECRET, "Fictif", "TEST000", "1950"):
            assert secret not in told
        for rings in (OLD, BOTH, NEW):
            for ring in rings.values():
                for key in ring.keys.values():
                    assert key.get_secret_value() not in told
        return found


@pytest.fixture
async def here(
    database: FreshDatabase, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[Installation]:
    address: list[str] = []
    async with served(publishing(lambda: address[0])) as issuer:
        address.append(issuer)
        owner = await database.owner()

        def set_(name: str, value: str) -> None:
            monkeypatch.setenv(f"PASSERELLE_{name.upper()}", value)

        made = Installation(database, owner, set_)
        made.rings({word: keyring(word) for word in ("tokens", "seals", "dates")})
        (tmp_path / "checkpoints").mkdir()
        for name, value in {
            "region": str(region_file(tmp_path)),
            "issuer": issuer,
            "local": "true",
            "cursor_key": CURSOR,
            "checkpoint_key": CHECKPOINT,
            "checkpoint_folder": str(tmp_path / "checkpoints"),
            "oidc_client_secret": CLIENT_SECRET,
        }.items():
            set_(name, value)
        yield made
        await owner.close()


def of(found: list[Finding], level: str) -> dict[str, str]:
    """Check → what was said, of one level."""
    return {one.check: one.said for one in found if one.level == level}


@pytest.mark.parametrize("service", SERVICES)
async def test_a_sound_installation_has_nothing_that_fails(
    here: Installation, service: Service
) -> None:
    found = await here.looked(service)
    assert of(found, "fail") == {}
    assert exit_code(found) == 0
    looked_at = {one.check for one in found}
    assert looked_at >= {
        "settings", "region", "urls", "authority", "clock", "database", "roles", "migrations",
        "row security", "carrier", "dead letters", "audit", "checkpoints", "retention",
    }  # fmt: skip
    assert set(of(found, "warn")) <= {"retention", "region"}
    assert all(one.remedy for one in found if one.level != "ok")


SPOILT = {
    "row security": (
        "create table ingest.planted (site text)",
        "table planted has no forced row security",
    ),
    "row security, open": (
        "drop policy request on ingest.resource;"
        " create policy request on ingest.resource to passerelle_ingest_request using (true);"
        " insert into ingest.resource (key, site, kind, id, version, digest, updated, told_at)"
        " values (gen_random_uuid(), 'hospital-a', 'Patient', 'x', 1, 'd', now(), now())",
        "table resource shows rows without a tenant",
    ),
    "row security, view": (
        "create view ingest.planted as select * from ingest.resource",
        "view planted sees as its owner",
    ),
    "row security, function": (
        "create function ingest.planted() returns int language sql security definer as 'select 1'",
        "function planted does not pin its search_path",
    ),
    "migrations": (
        "delete from plumbing.migration where name = '0004_rotation.sql'",
        "not run: ingest/0004_rotation.sql",
    ),
    "migrations, changed": (
        "update plumbing.migration set sha256 = '' where name = '0001_ingest.sql'",
        "changed since: ingest/0001_ingest.sql",
    ),
    "audit": (
        "insert into ingest.audit (shape, recorded, written, outcome, agent, agent_kind)"
        " values ('Refused', now(), now() - interval '5 minutes', 4, 'unknown', 'unknown')",
        "1 records older than a minute are not in the chain",
    ),
}


@pytest.mark.parametrize("what", SPOILT)
async def test_what_is_spoilt_in_the_database_is_found(here: Installation, what: str) -> None:
    sql, said = SPOILT[what]
    await here.owner.execute(sql)
    found = await here.looked()
    assert of(found, "fail") == {what.partition(",")[0]: said}
    assert exit_code(found) == 1


async def test_a_login_that_may_too_much_is_found(here: Installation) -> None:
    await here.owner.execute("alter role passerelle_ingest bypassrls")
    try:
        found = await here.looked()
    finally:
        await here.owner.execute("alter role passerelle_ingest nobypassrls")
    assert of(found, "fail") == {"roles": "passerelle_ingest bypasses row security"}


async def test_rows_are_counted_per_key_and_a_missing_key_fails(
    here: Installation, database: FreshDatabase, tmp_path: Path
) -> None:
    """CS-95."""
    (tmp_path / "town").mkdir()
    async with town(database, tmp_path / "town", OLD) as town_:
        await live(town_)
    here.rings(BOTH)
    found = await here.looked()
    assert of(found, "fail") == {}
    old = [one for one in found if one.check == "keys" and one.level == "warn"]
    assert {one.said.split(":")[0] for one in old} == {"tokens t1", "seals s1", "dates d1"}
    assert all("keys rotate ingest" in one.remedy for one in old)
    here.rings(NEW)
    found = await here.looked("notify")
    lost = [one for one in found if one.check == "keys" and one.level == "fail"]
    assert {one.said.split(":")[0] for one in lost} == {"tokens t1", "seals s1", "dates d1"}


async def test_what_waits_for_a_person_is_a_warning(here: Installation) -> None:
    await here.owner.execute(
        "insert into notify.dead_letter (id, reader, type, source, time, data, reason, attempts,"
        " first_failed, last_failed) select gen_random_uuid(), 'notify', 'x', 'y', now(), '{}',"
        " 'KeyError', 3, now(), now() from generate_series(1, 3)"
    )
    found = await here.looked("notify")
    assert of(found, "warn")["dead letters"] == "3 events wait for a person"
    assert exit_code(found) == 0


async def test_settings_that_are_wrong_are_named_and_nothing_else_is_looked_at(
    here: Installation,
) -> None:
    here.set_("token_keys", '{"active": "t1", "keys": {"t1": "c2hvcnQ="}}')
    found = await here.looked()
    assert {one.check for one in found} == {"settings"}
    assert [one.said for one in found] == [
        "PASSERELLE_TOKEN_KEYS: Value error, a key is shorter than 32 bytes"
    ]


async def test_what_is_away_is_a_finding_and_the_rest_is_looked_at(here: Installation) -> None:
    here.set_("issuer", "http://127.0.0.1:9")
    found = await here.looked()
    assert set(of(found, "fail")) == {"authority"}
    with contextlib.suppress(KeyError):
        assert of(found, "ok")["database"].startswith("PostgreSQL")


async def test_a_region_file_with_a_fault_is_a_finding(here: Installation, tmp_path: Path) -> None:
    file = tmp_path / "region.yaml"
    file.write_text(file.read_text().replace("hospital-a", "hospital_a", 1))
    found = await here.looked()
    assert "region" in of(found, "fail")


async def test_no_file_with_a_secret_is_open_to_all(here: Installation, tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text("{}")
    (tmp_path / "secrets.json").chmod(0o644)
    found = await here.looked()
    assert of(found, "fail") == {"files": "readable for everybody: secrets.json"}


async def test_a_database_that_is_away_fails_and_does_not_hang(here: Installation) -> None:
    url = here.database.url("ingest").replace(here.database.name, "nowhere")
    here.set_("database_url", url)
    found = await doctor.examine("ingest")
    failed = of(found, "fail")
    assert {"database", "roles", "migrations", "keys", "audit"} <= set(failed)
    assert all(said == "could not be looked at (3D000)" for said in failed.values())
    assert exit_code(found) == 1


def test_a_service_that_is_none_is_not_looked_at() -> None:
    from typer.testing import CliRunner

    done = CliRunner().invoke(main.app, ["doctor", "postgres"])
    assert done.exit_code == 2

"""Screening as it is wired: from ingest's log to its own, by its own reader and sweep."""

import asyncio
import base64
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import datetime
from pathlib import Path

import httpx
import pytest
import yaml

from schemas.flag_changed_v1 import Cause, State
from schemas.site_heard_v1 import SiteHeard
from services.plumbing import clock as clocks
from services.plumbing.clock import real_now
from services.plumbing.db import Database
from services.plumbing.eventlog import append
from services.plumbing.region import RegionError
from services.plumbing.settings import ScreeningSettings
from services.screening import policy as policies
from services.screening import registry
from services.screening.__main__ import PolicyTakenError, build, main, run
from services.screening.policy import PolicyRefused
from services.screening.registry import Asked, Mode
from tests.conftest import FreshDatabase, keyring
from tests.histories import P, at, ed_visit
from tests.services.screening import Screening, identified, recorded

REGION = {
    "name": {"fr": "Région fictive", "en": "Fictitious region"},
    "sites": [{"id": "site-a", "name": {"fr": "A", "en": "A"}, "data_from": "2024-01-01"}],
    "clinics": [],
}


@pytest.fixture
def said(database: FreshDatabase, tmp_path: Path) -> ScreeningSettings:
    (tmp_path / "region.yaml").write_text(yaml.safe_dump(REGION))
    return ScreeningSettings.model_validate(
        {
            "database_url": database.url("screening"),
            "region": tmp_path / "region.yaml",
            "clock": tmp_path / "clock",
            "date_keys": keyring("dates"),
            "cursor_key": base64.b64encode(b"cursor key of the tests, 32 bytes").decode(),
            "sweep_seconds": 0.05,
            "port": 0,
        }
    )


def clock_shows(said: ScreeningSettings, instant: datetime) -> None:
    assert said.clock
    clocks.drive(said.clock, instant, 0)


@pytest.fixture
async def running(
    said: ScreeningSettings, db: Callable[[str], Database]
) -> AsyncIterator[Screening]:
    """The reader and the sweep at work, the clock standing where a test puts it."""
    clock_shows(said, at("2026-08-08 13:00-04"))
    built = build(said)
    stop = asyncio.Event()
    tasks = [asyncio.ensure_future(work(stop)) for work in built.background[:2]]
    yield Screening(db("screening"))
    stop.set()
    await asyncio.gather(*tasks)
    await built.db.close()
    await built.authority.http.aclose()


async def until(enough: Callable[[], Awaitable[bool]], said: str) -> None:
    """Wait, a bounded time, until it is enough."""
    for _ in range(200):
        if await enough():
            return
        await asyncio.sleep(0.05)
    raise AssertionError(said)


async def test_events_of_ingest_become_flags_and_time_alone_changes_them(
    running: Screening, said: ScreeningSettings, db: Callable[[str], Database]
) -> None:
    visits = [
        ed_visit("e-1", "2025-11-24 10:00-05"),
        ed_visit("e-2", "2026-02-02 09:00-05"),
        ed_visit("e-3", "2026-05-05 09:00-04"),
        ed_visit("e-4", "2026-08-08 09:00-04"),
    ]
    now = at("2026-08-08 13:00-04")
    heard = SiteHeard(site="site-a", last_event=now, heard=now)
    async with db("ingest").work() as tx:
        await append(tx, [identified(P), heard, *map(recorded, visits)], now)

    async def flagged() -> bool:
        return len(await running.flags()) == 1

    await until(flagged, "the flag")
    (flag,) = await running.flags()
    assert (flag.explanation.state, flag.cause) == (State.FLAGGED, Cause.EVENT)
    assert flag.explanation.coverage.complete
    assert flag.explanation.coverage.sites[0].last_event == now
    clock_shows(said, at("2026-11-24 10:00-05"))

    async def held() -> bool:
        return len(await running.flags()) == 2

    await until(held, "decay by the sweep")
    assert (await running.flags())[1].cause is Cause.DECAY


async def test_ct_51_the_service_begins_an_activation_at_its_instant_and_sees_it_through(
    running: Screening, said: ScreeningSettings
) -> None:
    eager = policies.load(
        "name: TEST-eager\nversion: 1\nflag: {any: [{measure: ed_visits, at_least: 1}]}"
    )
    now, then = at("2026-08-08 13:00-04"), at("2026-09-01 00:00-04")
    await running.meet(P)
    await running.take(ed_visit("e-1", "2026-08-08 09:00-04"), now=now)
    async with running.at(now) as turn:
        assert await registry.adopt(turn.tx, running.policy, now)
        await registry.keep(turn.tx, eager, now)
        asked = Asked(eager.name, eager.version, Mode.LIVE, then, now, "ops-client")
        await registry.activate(turn.tx, asked)
    clock_shows(said, then)

    async def done() -> bool:
        async with running.db.work() as tx:
            activations = await registry.activations(tx, eager.name, eager.version)
            return all(one.evaluated for one in activations)

    await until(done, "everybody looked at again")
    assert [event.cause for event in await running.flags()] == [Cause.POLICY]


async def test_a_region_may_name_a_preset(said: ScreeningSettings, tmp_path: Path) -> None:
    (tmp_path / "region.yaml").write_text(yaml.safe_dump(REGION | {"policy": "qc-cohort"}))
    built = build(said)
    assert built.policy.label == "qc-cohort@1"
    await built.db.close()


async def test_the_service_says_that_it_lives_and_is_ready(said: ScreeningSettings) -> None:
    built = build(said)
    transport = httpx.ASGITransport(app=built.app)
    async with httpx.AsyncClient(transport=transport, base_url="http://127.0.0.1") as http:
        answers = [(await http.get(f"/health/{what}")).status_code for what in ("live", "ready")]
        assert answers == [200, 200]
        assert (await http.get("/v1/flags")).status_code == 401
    await built.db.close()


async def test_ct_50_a_changed_policy_under_an_old_name_does_not_start(
    said: ScreeningSettings, tmp_path: Path
) -> None:
    rule = tmp_path / "policy.yaml"
    rule.write_text("name: TEST-rule\nversion: 1\n")
    (tmp_path / "region.yaml").write_text(yaml.safe_dump(REGION | {"policy": "policy.yaml"}))
    built = build(said)
    async with built.db.work() as tx:
        assert await registry.adopt(tx, built.policy, real_now())
    await built.db.close()
    rule.write_text("name: TEST-rule\nversion: 1\nhold_days: 90\n")
    with pytest.raises(PolicyTakenError, match="new version"):
        await run(said)
    rule.write_text("name: TEST-rule\nversion: 1\nhold_dais: 90\n")
    with pytest.raises(PolicyRefused, match="line 3: hold_dais"):
        build(said)
    rule.unlink()
    with pytest.raises(RegionError, match="policy"):
        build(said)


def test_without_settings_it_says_which_and_ends(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("DATABASE_URL", "REGION", "DATE_KEYS", "CURSOR_KEY"):
        monkeypatch.delenv(f"PASSERELLE_{name}", raising=False)
    assert main() == 2
    assert "PASSERELLE_CURSOR_KEY: is not set" in capsys.readouterr().err

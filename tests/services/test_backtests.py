"""Back-tests at screening's door and behind it: CT-71, PT-14; `passerelle what-if`."""

import asyncio
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import orjson
import pytest
from fastapi import FastAPI
from sqlalchemy import text

from services.cli import whatif as words
from services.plumbing import audit
from services.plumbing.account import Language
from services.plumbing.auth import Auth, guard
from services.plumbing.db import Database
from services.plumbing.web import make_app
from services.screening import backtesting, registry, store
from services.screening.api import House
from services.screening.backtest import Period
from services.screening.backtesting import Asked
from services.screening.policy import load
from services.screening.store import Trial
from services.screening.whatif import add_backtests
from tests.histories import P, Q, at, ed_visit, key, qc_default
from tests.services.authorities import AUDIENCE, Stage, ec_key, rsa_key, staged
from tests.services.screening import SITES, Screening
from tests.web.serving import served

DOOR = "http://127.0.0.1:8002"
NOW = at("2026-11-24 12:00-05")
TWO_VISITS = "name: two-visits\nversion: 1\nflag: {any: [{measure: ed_visits, at_least: 2}]}\n"


@dataclass
class Door:
    """Screening's door of back-tests, and what runs behind it when a test says so."""

    screening: Screening
    stage: Stage
    app: FastAPI
    stop: asyncio.Event = field(default_factory=asyncio.Event)

    async def token(self, who: str = "ops-client") -> str:
        hospital = who == "hospital-a"
        return await self.stage.token(
            key=rsa_key("rs") if hospital else ec_key({"ops-client": "ops"}.get(who, "emr")),
            alg="RS384" if hospital else "ES384",
            iss=who,
            sub=who,
            scope="system/Encounter.cu" if hospital else "system/Flag.rs",
        )

    async def call(
        self, method: str, path: str, body: Any = None, who: str = "ops-client"
    ) -> httpx.Response:
        headers = {"Authorization": f"Bearer {await self.token(who)}"}
        return await self.stage.http.request(method, f"{DOOR}{path}", json=body, headers=headers)

    async def ask(self, **said: str) -> str:
        answer = await self.call("POST", "/v1/backtests", said)
        assert answer.status_code == 202, answer.text
        where: str = answer.headers["Location"]
        return where

    async def see(self, where: str) -> dict[str, Any]:
        answer = await self.call("GET", where)
        assert answer.status_code == 200, answer.text
        found: dict[str, Any] = answer.json()
        return found

    async def run(self) -> bool:
        return await backtesting.run_next(self.screening.db, lambda: NOW, self.stop)


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Door]:
    screening = Screening(db("screening"))
    async with screening.db.work() as tx:
        assert await registry.adopt(tx, qc_default(), at("2026-01-01 00:00-05"))
    async with staged(db("authority")) as stage:
        app = make_app("screening", screening.db)
        auth = Auth(stage.authority(), AUDIENCE, lambda: stage.region[0], stage.clock)
        guard(app, auth, audit.refusals(screening.db, lambda: NOW))
        add_backtests(app, House(screening.db, lambda: NOW, qc_default(), lambda: SITES, b"k" * 32))
        stage.hosts[DOOR] = app
        yield Door(screening, stage, app)


async def visits(screening: Screening, patient: UUID, *starts: str) -> None:
    await screening.meet(patient)
    facts = [
        ed_visit(f"{patient}-{start}", f"{start} 10:00-04", patient=patient) for start in starts
    ]
    await screening.take(*facts, now="2026-11-20 12:00-05")


async def six_with_four_visits(screening: Screening) -> None:
    """Six patients flagged since 1 October, one of them under a key since retired; two with two
    visits.
    """
    for n in range(6):
        days = ("2026-04-01", "2026-05-01", "2026-06-01", "2026-10-01")
        await visits(screening, key(f"TEST-many-{n}"), *days)
    await visits(screening, P, "2026-09-01")
    await visits(screening, Q, "2026-09-20")
    await screening.merge(Q, P, "2026-11-21 12:00-05")
    await visits(screening, key("TEST-other"), "2026-09-01", "2026-10-20")


async def test_ct_71_asked_for_run_in_the_background_and_answered(door: Door) -> None:
    await six_with_four_visits(door.screening)
    where = await door.ask(**{"policy": "qc-default", "against": TWO_VISITS, "from": "2026-09-25"})
    asked = await door.see(where)
    assert (asked["state"], asked["policy"], asked["against"]) == (
        "waiting",
        "qc-default@3",
        "two-visits@1",
    )
    assert (asked["from"], asked["to"]) == ("2026-09-25", "2026-11-23")
    assert await door.run()
    done = await door.see(where)
    assert (done["state"], done["error"], done["percent"]) == ("done", None, 100)
    days = {day["date"]: day for day in done["result"]["days"]}
    assert len(days) == 60
    assert days["2026-09-30"]["policy"] == {"watch": 5, "flagged": 0, "held": 0}
    assert days["2026-10-01"]["policy"] == {"watch": 0, "flagged": 5, "held": 0}
    assert days["2026-10-01"]["against"] == {"watch": 0, "flagged": 5, "held": 0}
    assert days["2026-11-23"]["overlap"] == {"both": 5, "only_policy": 0, "only_against": None}
    assert done["result"]["weeks"][0]["policy"] == {"entries": 5, "alerts": 5}
    assert done["result"]["weeks"][0]["against"] == {"entries": 0, "alerts": 0}
    listed = (await door.call("GET", "/v1/backtests")).json()["backtests"]
    assert [one["id"] for one in listed] == [done["id"]]
    assert not await door.run()
    async with door.screening.db.work() as tx:
        said = await tx.execute(text("select shape, entities from audit order by position"))
        shapes = [(row.shape, *row.entities) for row in said]
    assert shapes[0] == ("Create", where.removeprefix("/v1/"))
    assert ("Read", where.removeprefix("/v1/")) in shapes


async def everything(screening: Screening) -> list[Any]:
    """All that screening knows and has said, back-tests and audit aside."""
    tables = ("fact", "fact_version", "patient", "change", "episode", "outbox", "policy")
    async with screening.db.work() as tx:
        return [
            (await tx.execute(text(f"select t::text from {name} t order by 1"))).all()
            for name in tables
        ]


async def test_pt_14_it_leaves_flags_and_outbox_as_they_were(door: Door) -> None:
    await six_with_four_visits(door.screening)
    before = await everything(door.screening)
    where = await door.ask(policy=TWO_VISITS, against="live")
    assert await door.run()
    assert (await door.see(where))["state"] == "done"
    assert await everything(door.screening) == before


async def test_it_sees_one_snapshot_and_holds_up_no_live_recount(door: Door) -> None:
    """Whom it has read, and whom it has yet to read, are recounted meanwhile."""
    screening = door.screening
    for patient in (P, Q):
        await visits(screening, patient, "2026-04-01", "2026-05-01", "2026-06-01")
    asked = Asked([qc_default()], Period(date(2026, 11, 1), date(2026, 11, 19), qc_default().zone))
    flagged: list[int] = []

    async def live(_percent: int) -> None:
        if not flagged:
            for patient in (P, Q):
                fourth = ed_visit(f"TEST-4-{patient}", "2026-11-02 10:00-05", patient=patient)
                await asyncio.wait_for(screening.take(fourth, now="2026-11-20 13:00-05"), 30)
            flagged.append(len(await screening.flags(P)) + len(await screening.flags(Q)))

    async with screening.db.snapshot() as tx:
        tally = await backtesting.counted(tx, asked, live, batch=1)
    assert flagged == [4]
    assert tally.listings[0].flagged == [0] * 19
    async with screening.db.snapshot() as tx:
        later = await backtesting.counted(tx, asked)
    assert later.listings[0].flagged == [0] + [2] * 18


async def test_merged_keys_are_one_person(door: Door) -> None:
    """CT-01: their visits add up, in whatever batch the keys come, and nobody counts twice."""
    await visits(door.screening, P, "2026-09-01")
    await visits(door.screening, Q, "2026-09-20")
    rule = load(TWO_VISITS)
    asked = Asked([rule], Period(date(2026, 9, 19), date(2026, 9, 21), rule.zone))
    async with door.screening.db.snapshot() as tx:
        apart = await backtesting.counted(tx, asked, batch=1)
    await door.screening.merge(Q, P, "2026-11-21 12:00-05")
    async with door.screening.db.snapshot() as tx:
        one = await backtesting.counted(tx, asked, batch=1)
    assert (apart.listings[0].flagged, apart.listings[0].visits) == ([0, 0, 0], {1: 2})
    assert (one.listings[0].flagged, one.listings[0].visits) == ([0, 1, 1], {2: 1})


async def test_a_snapshot_cannot_write(door: Door) -> None:
    async with door.screening.db.snapshot() as tx:
        with pytest.raises(Exception, match="read-only"):
            await tx.execute(text("update patient set held = false"))


async def test_what_was_broken_off_is_begun_again_and_given_up_in_the_end(door: Door) -> None:
    """A process that dies takes its lock along; the next one begins again, three times in all."""
    await six_with_four_visits(door.screening)
    where = await door.ask(policy="qc-default")
    for _ in range(backtesting.TRIES - 1):
        async with door.screening.db.work() as tx:
            taken = await store.take_trial(tx, NOW)  # and is gone
        assert taken is not None
        assert (await door.see(where))["state"] == "running"
    assert await door.run()
    assert (await door.see(where))["state"] == "done"
    where = await door.ask(policy="qc-default")
    for _ in range(backtesting.TRIES):
        async with door.screening.db.work() as tx:
            await store.take_trial(tx, NOW)
    assert await door.run()
    failed = await door.see(where)
    assert (failed["state"], failed["error"]) == (
        "failed",
        "The service was stopped 3 times while it ran.",
    )
    assert "result" not in failed


async def test_a_service_told_to_stop_puts_it_back(door: Door) -> None:
    await six_with_four_visits(door.screening)
    where = await door.ask(policy="qc-default")
    door.stop.set()
    assert await door.run()
    assert (await door.see(where))["state"] == "waiting"
    door.stop.clear()
    assert await door.run()
    assert (await door.see(where))["state"] == "done"


async def test_one_runs_at_a_time_over_all_processes(door: Door) -> None:
    await door.ask(policy="qc-default")
    async with door.screening.db.snapshot() as elsewhere:
        assert await store.alone(elsewhere)
        assert not await door.run()
    assert await door.run()


async def test_so_many_wait_and_so_many_results_are_kept(door: Door) -> None:
    for _ in range(backtesting.MOST):
        await door.ask(policy="qc-default")
    refused = await door.call("POST", "/v1/backtests", {"policy": "qc-default"})
    assert (refused.status_code, refused.headers["Retry-After"]) == (429, "60")
    for n in range(backtesting.KEPT + 1):
        old = Trial(
            id=key(f"TEST-old-{n}"),
            asked_by="TEST",
            policy=qc_default().canonical,
            against=None,
            first=date(2026, 1, 1),
            last=date(2026, 1, 2),
            state="waiting",
            created=at("2026-01-03 00:00-05"),
        )
        async with door.screening.db.request("*", "ops") as asking:
            assert await store.ask_trial(asking, old, 1000)
        async with door.screening.db.work() as tx:
            await store.end_trial(tx, old.id, NOW, backtesting.KEPT, result="{}", error=None)
    assert await door.run()
    listed = (await door.call("GET", "/v1/backtests")).json()["backtests"]
    states = [one["state"] for one in listed]
    assert (states.count("done"), states.count("waiting")) == (
        backtesting.KEPT,
        backtesting.MOST - 1,
    )


@pytest.mark.parametrize(
    ("said", "status", "words"),
    [
        ({"policy": "no-such"}, 404, "No such policy"),
        ({"policy": "qc-default@99"}, 404, "No such policy"),
        ({"policy": "name: x\nversion: 1\nhold_dais: 3\n"}, 422, "line 3: hold_dais"),
        ({"policy": "live", "to": "2026-11-24"}, 422, "has ended"),
        ({"policy": "live", "from": "2026-11-24", "to": "2026-11-20"}, 422, "not be after"),
        ({"policy": "live", "from": "2020-01-01"}, 422, "At most"),
        ({"policy": "live", "until": "2026-01-01"}, 400, "not of its form"),
        ({}, 400, "not of its form"),
    ],
)
async def test_what_cannot_be_asked_is_refused_in_words(
    door: Door, said: dict[str, str], status: int, words: str
) -> None:
    answer = await door.call("POST", "/v1/backtests", said)
    assert answer.status_code == status, answer.text
    assert words in answer.json()["issue"][0]["details"]["text"]


async def test_cs_01_only_operations_and_privacy_ask_and_see(door: Door) -> None:
    where = await door.ask(policy="qc-default")
    for who in ("hospital-a", "clinic-a-emr"):
        for method, path in (
            ("POST", "/v1/backtests"),
            ("GET", "/v1/backtests"),
            ("GET", where),
        ):
            body = {"policy": "qc-default"} if method == "POST" else None
            assert (await door.call(method, path, body, who)).status_code == 403
    absent = await door.call("GET", f"/v1/backtests/{key('TEST-absent')}")
    assert absent.status_code == 404


# The command


async def what_if(door: Door, folder: Path, *arguments: str) -> tuple[int, str, str]:
    """The command as an operator runs it, against the door on a real port."""
    (folder / "token").write_text(await door.token())
    stop = asyncio.Event()
    async with served(door.app) as url:
        behind = asyncio.create_task(backtesting.running(door.screening.db, lambda: NOW, stop))
        command = [sys.executable, "-m", "services.cli.main", "what-if", *arguments]
        command += ["--url", url, "--token-file", str(folder / "token")]
        ran = await asyncio.create_subprocess_exec(
            *command, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE
        )
        out, err = await ran.communicate()
        stop.set()
        await behind
    assert ran.returncode is not None
    return ran.returncode, out.decode(), err.decode()


async def test_the_command_says_it_in_a_table_and_as_data(door: Door, tmp_path: Path) -> None:
    await six_with_four_visits(door.screening)
    (tmp_path / "rule.yaml").write_text(TWO_VISITS)
    rule = str(tmp_path / "rule.yaml")
    code, out, err = await what_if(door, tmp_path, rule, "--from", "2026-09-25", "-l", "en")
    assert code == 0, err
    lines = [" ".join(line.split()) for line in out.splitlines()]
    assert lines[0] == "What if: two-visits@1, compared with qc-default@3"
    assert lines[2].startswith("From September 25, 2026 to November 23, 2026, 60 days.")
    assert "two-visits@1 qc-default@3" in lines
    assert "On the list, on the last day 5 5" in lines
    assert "Alerts to nurses, in all <5 5" in lines
    assert "On both lists, on average 5 5" in lines
    assert "2 or more 5 5" in lines
    code, out, _ = await what_if(door, tmp_path, rule, "--from", "2026-09-25", "--json")
    assert code == 0
    assert orjson.loads(out)["result"]["against"]["name"] == "qc-default"
    code, out, _ = await what_if(door, tmp_path, "qc-default", "--against", "none")
    assert (code, out.splitlines()[0]) == (0, "Et si\u00a0: qc-default@3")


async def test_the_command_says_what_is_wrong_in_one_line(door: Door, tmp_path: Path) -> None:
    code, out, err = await what_if(door, tmp_path, "no-such")
    assert (code, out) == (1, "")
    assert "Refused (404): No such policy" in err
    code, _, err = await what_if(door, tmp_path, str(tmp_path / "absent.yaml"))
    assert code == 1
    assert "No such file" in err


def test_every_word_is_there_in_both_languages() -> None:
    for name, said in words._WORDS.items():
        assert set(said) == set(Language), name

"""The registry of policies: stored, compared, activated, run in shadow (CT-50, CT-51)."""

import hashlib
from collections.abc import AsyncIterator, Callable
from datetime import datetime, timedelta
from importlib import resources
from uuid import UUID

import pytest
from sqlalchemy import text

from schemas.flag_changed_v1 import Cause, Notice, State
from services.plumbing.db import Database
from services.screening import flow, presets, registry
from services.screening.ledger import Fact
from services.screening.policy import Policy, load
from services.screening.registry import Asked, Mode
from tests.conftest import FreshDatabase
from tests.histories import P, Q, ed_visit, key, policy, qc_default, stay
from tests.services.screening import Screening
from tests.services.screening_door import DOOR, NOW, Door, opened

EAGER = policy("flag: {any: [{measure: ed_visits, at_least: 2}]}\nwatch: null")
EAGER_TEXT = (
    "name: TEST-policy\nversion: 1\nflag: {any: [{measure: ed_visits, at_least: 2}]}\nwatch: null\n"
)
DAY = timedelta(days=1)


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Door]:
    async with opened(db) as found:
        async with found.screening.at("2026-01-01 00:00-05") as turn:
            assert await registry.adopt(turn.tx, qc_default(), turn.now)
        await found.screening.reevaluate("2026-01-01 00:00-05")
        yield found


async def activated(
    screening: Screening, rule: Policy, mode: Mode, now: str | datetime, at_: datetime | None = None
) -> None:
    async with screening.at(now) as turn:
        await registry.keep(turn.tx, rule, turn.now)
        asked = Asked(rule.name, rule.version, mode, at_ or turn.now, turn.now, "ops-client")
        await registry.activate(turn.tx, asked)


async def stands(screening: Screening) -> dict[str, str]:
    async with screening.db.work() as tx:
        return {one.policy.label: str(one.status) for one in await registry.everything(tx)}


async def in_shadow(screening: Screening) -> dict[UUID, tuple[str, int, int]]:
    async with screening.db.work() as tx:
        rows = await tx.execute(
            text("select patient, state, ed_visits, hospital_episodes from shadow")
        )
        return {r.patient: (r.state, r.ed_visits, r.hospital_episodes) for r in rows}


def two(patient: UUID = P, year: int = 2027) -> list[Fact]:
    return [ed_visit(f"{patient}-{n}", f"{year}-0{n}-10 10:00-05", patient=patient) for n in (1, 2)]


# Storing


async def test_ct_50_a_policy_is_stored_once_under_its_name(door: Door) -> None:
    made = await door.post("/v1/policies", EAGER_TEXT)
    assert (made.status_code, made.headers["Location"]) == (201, "/v1/policies/TEST-policy/1")
    said = made.json()
    assert (said["status"], said["sha256"]) == ("stored", EAGER.sha256)
    assert said["policy"]["ed"]["reregistration_minutes"] == 120  # the full form, with defaults
    again = await door.post("/v1/policies", EAGER_TEXT + "# another layout\n")
    assert (again.status_code, again.json()["sha256"]) == (200, EAGER.sha256)
    other = await door.post("/v1/policies", EAGER_TEXT + "hold_days: 3\n")
    assert other.status_code == 409
    assert "new version" in other.json()["issue"][0]["details"]["text"]
    next_one = await door.post("/v1/policies", EAGER_TEXT.replace("version: 1", "version: 2"))
    assert next_one.status_code == 201


async def test_the_digest_is_that_of_the_canonical_form_which_is_kept(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    async with door.screening.db.work() as tx:
        row = (await tx.execute(text("select * from policy where name = 'TEST-policy'"))).one()
    assert hashlib.sha256(row.canonical.encode()).hexdigest() == row.sha256 == EAGER.sha256
    assert load(row.canonical).sha256 == EAGER.sha256


async def test_json_will_do(door: Door) -> None:
    clause = {"measure": "ed_visits", "at_least": 2}
    body = {"name": "TEST-policy", "version": 1, "flag": {"any": [clause]}, "watch": None}
    made = await door.post("/v1/policies", body)
    assert (made.status_code, made.json()["sha256"]) == (201, EAGER.sha256)
    tabs = '{"name":\t"TEST-tab",\n\t"version":\t1}'
    made = await door.post("/v1/policies", tabs, media="application/json")
    assert made.status_code == 201


REFUSED = {
    "name: TEST-x\nversion: 1\nholddays: 3": ("holddays", "line 3"),
    "name: TEST-x\nversion: 1\nhold_days: -1": ("hold_days", "line 3"),
    "name: TEST-x\nversion: 1\nclasses:\n  ed: [EMER, IMP]": ("classes.ed[1]", "line 4"),
    "name: [": (None, "line 1"),
    "": ("name", "line 1"),
}


async def test_ct_50_what_cannot_be_used_is_refused_with_path_and_line(door: Door) -> None:
    for said, (path, line) in REFUSED.items():
        answer = await door.post("/v1/policies", said)
        assert answer.status_code == 422
        (issue,) = answer.json()["issue"]
        assert issue.get("expression", [None])[0] == path
        assert issue["details"]["text"].startswith(line)


async def test_a_body_that_is_no_policy_at_all_is_refused(door: Door) -> None:
    assert (await door.post("/v1/policies", "#" * 70_000)).status_code == 413
    headers = await door.headers("ops-client")
    answer = await door.stage.http.post(
        f"{DOOR}/v1/policies", content=b"name: \xff", headers=headers
    )
    assert answer.status_code == 422


async def test_each_preset_can_be_loaded(door: Door) -> None:
    for name in presets.names():
        answer = await door.post("/v1/policies", presets.text(name))
        assert answer.status_code == (200 if name == "qc-default" else 201)


async def test_the_list_and_one_of_it(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    listed = (await door.get("/v1/policies")).json()["policies"]
    assert [(one["name"], one["version"], one["status"]) for one in listed] == [
        ("TEST-policy", 1, "stored"),
        ("qc-default", 3, "live"),
    ]
    assert listed[1]["since"] == "2026-01-01T05:00:00+00:00"
    one = (await door.get("/v1/policies/qc-default/3")).json()
    assert one["policy"]["hold_days"] == 180
    assert [(a["mode"], a["agent"]) for a in one["activations"]] == [
        ("live", "passerelle/screening")
    ]
    assert (await door.get("/v1/policies/qc-default/4")).status_code == 404


async def test_the_difference_of_two_is_each_path_with_both_values(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    answer = await door.get("/v1/policies/TEST-policy/1/diff", against="qc-default@3")
    said = answer.json()
    assert (said["before"], said["after"]) == ("qc-default@3", "TEST-policy@1")
    found = {one["path"]: (one["before"], one["after"]) for one in said["differences"]}
    assert found["version"] == (3, 1)
    assert found["watch.any"][1] is None
    assert found["flag.any"][1] == [{"measure": "ed_visits", "at_least": 2, "days": None}]
    assert "hold_days" not in found
    same = await door.get("/v1/policies/TEST-policy/1/diff", against="TEST-policy@1")
    assert same.json()["differences"] == []
    assert (
        await door.get("/v1/policies/TEST-policy/1/diff", against="nobody@1")
    ).status_code == 404


# Who may


async def test_reading_is_for_whoever_reads_flags_and_writing_for_operations(door: Door) -> None:
    for who in ("clinic-a-emr", "hospital-a"):
        assert (await door.get("/v1/policies", who)).status_code == 403
        assert (await door.post("/v1/policies", EAGER_TEXT, who)).status_code == 403
        answer = await door.post("/v1/policies/qc-default/3/activate", None, who)
        assert answer.status_code == 403


async def test_cs_91_no_other_role_may_write_a_policy_even_where_the_door_forgets(
    door: Door,
) -> None:
    for role in ("privacy", "client"):
        with pytest.raises(Exception, match="row-level security"):
            async with door.screening.db.request("*", role) as tx:
                await registry.keep(tx, EAGER, NOW)


async def test_each_change_is_in_the_audit_as_one_of_the_configuration(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    await door.post("/v1/policies", EAGER_TEXT)
    await door.post("/v1/policies/TEST-policy/1/activate", {"mode": "shadow"})
    async with door.screening.db.work() as tx:
        rows = await tx.execute(text("select shape, agent, entities from audit order by position"))
        found = [(row.shape, row.agent, list(row.entities)) for row in rows]
    assert found == [
        ("Configuration", "ops-client", ["policies/TEST-policy/1"]),
        ("Configuration", "ops-client", ["policies/TEST-policy/1/shadow"]),
    ]


# Activating


async def test_ct_51_activation_re_evaluates_everyone_and_is_quiet(door: Door) -> None:
    await door.screening.meet(P, Q)
    await door.screening.take(*two(P), *two(Q)[:1], now="2027-02-10 14:00-05")
    await door.post("/v1/policies", EAGER_TEXT)
    answer = await door.post("/v1/policies/TEST-policy/1/activate")
    assert (answer.status_code, answer.json()["status"]) == (202, "live")
    assert await stands(door.screening) == {"TEST-policy@1": "live", "qc-default@3": "stored"}
    assert await door.screening.flags() == []
    assert await door.screening.reevaluate(NOW) == 2
    (change,) = await door.screening.flags()
    assert (change.explanation.state, change.cause) == (State.FLAGGED, Cause.POLICY)
    assert (change.notice, change.explanation.notice) == (Notice.QUIET, Notice.QUIET)
    assert change.explanation.policy.sha256 == EAGER.sha256
    assert await door.screening.flags(Q) == []
    assert (await door.get("/v1/policies/TEST-policy/1")).json()["evaluated"] is not None


async def test_a_fact_that_comes_first_does_not_take_the_blame_of_the_policy(door: Door) -> None:
    """What the policy changes is said as POLICY, then the fact as what it is."""
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    third = ed_visit("third", NOW, recorded=NOW)
    await door.screening.take(third, now=NOW)
    said = [(e.cause, e.notice) for e in await door.screening.flags()]
    assert said == [(Cause.POLICY, Notice.QUIET), (Cause.EVENT, Notice.QUIET)]


async def test_back_to_the_former_policy_takes_it_back_quietly(door: Door) -> None:
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    await door.screening.reevaluate(NOW)
    await activated(door.screening, qc_default(), Mode.LIVE, NOW + DAY)
    await door.screening.reevaluate(NOW + DAY)
    last = (await door.screening.flags())[-1]
    assert (last.explanation.state, last.cause, last.notice) == (
        State.BELOW,
        Cause.POLICY,
        Notice.QUIET,
    )


async def test_an_activation_waits_for_its_instant(door: Door) -> None:
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await door.post("/v1/policies", EAGER_TEXT)
    tomorrow = (NOW + DAY).isoformat()
    answer = await door.post("/v1/policies/TEST-policy/1/activate", {"at": tomorrow})
    assert (answer.status_code, answer.json()["status"]) == (202, "stored")
    assert [one["mode"] for one in answer.json()["waiting"]] == ["live"]
    for now, begun in ((NOW + DAY - timedelta(seconds=1), 0), (NOW + DAY, 1)):
        async with door.screening.at(now) as turn:
            assert await flow.begin(turn) == begun
    assert await door.screening.reevaluate(NOW + DAY) == 1
    door.now[0] = NOW + 2 * DAY
    assert (await door.flag())["state"] == "flagged"
    before = await door.flag(as_of=NOW.isoformat(), known_at=NOW.isoformat())
    assert (before["policy"]["name"], before["state"]) == ("qc-default", "below")


async def test_what_still_waits_may_be_withdrawn(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    wish = {"at": (NOW + DAY).isoformat()}
    await door.post("/v1/policies/TEST-policy/1/activate", wish)
    answer = await door.post("/v1/policies/TEST-policy/1/activate", {"mode": "retire"})
    assert (answer.status_code, answer.json()["waiting"]) == (202, [])
    async with door.screening.at(NOW + DAY) as turn:
        assert await flow.begin(turn) == 0
    assert (await stands(door.screening))["qc-default@3"] == "live"


WISHES = {
    '{"mode": "loud"}': 400,
    '{"at": "2027-03-02T11:59:59-05:00"}': 422,
    '{"at": "2027-03-03T12:00:00"}': 422,
    '{"at": "tomorrow"}': 422,
    '{"since": "2027-03-03T12:00:00Z"}': 400,
    '{"mode": "shadow"}': 409,
    '{"mode": "retire"}': 409,
}


async def test_an_activation_that_cannot_be_is_refused_in_words(door: Door) -> None:
    """There is always one live policy: it does not go, another comes."""
    path = "/v1/policies/qc-default/3/activate"
    for wish, status in WISHES.items():
        answer = await door.post(path, wish, media="application/json")
        assert (answer.status_code, answer.json()["resourceType"]) == (status, "OperationOutcome")
    assert await stands(door.screening) == {"qc-default@3": "live"}


async def test_a_policy_that_came_live_meanwhile_does_not_go_into_the_shadow(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    wish = {"mode": "shadow", "at": (NOW + DAY).isoformat()}
    await door.post("/v1/policies/TEST-policy/1/activate", wish)
    async with door.screening.at(NOW) as turn:  # by another's hand: nothing is withdrawn
        await turn.tx.execute(text("update policy set status = 'stored' where status = 'live'"))
        await turn.tx.execute(text("update policy set status = 'live' where name = 'TEST-policy'"))
    async with door.screening.at(NOW + DAY) as turn:
        assert await flow.begin(turn) == 1
    assert (await stands(door.screening))["TEST-policy@1"] == "live"


async def test_the_database_has_one_live_policy_at_most(
    door: Door, database: FreshDatabase
) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    with pytest.raises(Exception, match="policy_live"):
        async with door.screening.at(NOW) as turn:
            await turn.tx.execute(text("update policy set status = 'live'"))


async def test_who_is_flagged_by_a_midnight_in_the_bed_is_flagged_in_that_episode(
    door: Door,
) -> None:
    """CT-31, CT-43: an alert by time alone, with the stay as its episode: one card, not two."""
    nights = policy("flag: {any: [{measure: hospital_days, at_least: 3}]}\nwatch: null")
    await activated(door.screening, nights, Mode.LIVE, "2027-01-01 00:00-05")
    await door.screening.meet(P)
    admitted = stay("s", "2027-03-01 10:00-05", recorded="2027-03-01 10:05-05")
    await door.screening.take(admitted, now="2027-03-01 10:05-05")
    for now, swept in (("2027-03-03 23:59:59-05", 0), ("2027-03-04 00:00-05", 1)):
        assert await door.screening.sweep(now) == swept
    (flag,) = await door.screening.flags()
    assert (flag.cause, flag.notice) == (Cause.DECAY, Notice.ALERT)
    told = flag.explanation
    assert (told.episode, told.timezone) == (key("s"), "America/Toronto")
    assert [(c.measure, c.tally, c.count) for c in told.clauses] == [
        ("hospital_episodes", "days", 3)
    ]
    answered = await door.flag(
        as_of="2027-03-02T11:00:00-05:00", known_at="2027-03-02T11:00:00-05:00"
    )
    assert [(c["measure"], c["count"]) for c in answered["clauses"]] == [("hospital_days", 1)]
    assert "tally" not in answered["clauses"][0]


# Resuming


async def test_ct_51_a_re_evaluation_that_ended_in_the_middle_goes_on_there(
    door: Door, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(flow, "SWEEP", 2)
    keys = sorted(key(f"TEST-{n}") for n in range(5))
    await door.screening.meet(*keys)
    for patient in keys:
        await door.screening.take(*two(patient), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    for _ in range(2):
        async with door.screening.at(NOW) as turn:
            assert await flow.reevaluate(turn) == 2
    with pytest.raises(RuntimeError, match="killed"):
        await half(door)
    counted = [len(await door.screening.flags(patient)) for patient in keys]
    assert counted == [1, 1, 1, 1, 0]
    assert await door.screening.reevaluate(NOW) == 1
    assert [len(await door.screening.flags(patient)) for patient in keys] == [1] * 5
    assert await door.screening.reevaluate(NOW) == 0


async def half(door: Door) -> None:
    """A batch of the re-evaluation that is not committed."""
    async with door.screening.at(NOW) as turn:
        await flow.reevaluate(turn)
        raise RuntimeError("killed")


async def test_a_later_activation_ends_the_one_before(door: Door) -> None:
    await door.screening.meet(P)
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    await activated(door.screening, qc_default(), Mode.LIVE, NOW)
    assert await door.screening.reevaluate(NOW) == 1
    async with door.screening.at(NOW) as turn:
        done = await registry.activations(turn.tx)
    assert all(one.evaluated for one in done)


# In shadow


async def test_ct_51_a_shadow_counts_everybody_and_says_nothing(door: Door) -> None:
    await door.screening.meet(P, Q)
    await door.screening.take(*two(P), *two(Q)[:1], now="2027-02-10 14:00-05")
    before = await door.screening.said("flag.changed.v1")
    await activated(door.screening, EAGER, Mode.SHADOW, NOW)
    assert await door.screening.reevaluate(NOW) == 2
    assert await in_shadow(door.screening) == {P: ("flagged", 2, 0), Q: ("below", 1, 0)}
    second = ed_visit("second", NOW, patient=Q, recorded=NOW)
    await door.screening.take(second, stay("s", NOW, patient=Q, recorded=NOW), now=NOW)
    assert (await in_shadow(door.screening))[Q] == ("flagged", 2, 1)
    assert await door.screening.said("flag.changed.v1") == before
    assert await door.screening.said("episode.changed.v1") == []


async def test_ct_45_a_shadow_decays_by_itself(door: Door) -> None:
    quick = policy("flag: {any: [{measure: ed_visits, at_least: 2}]}\nwatch: null\nhold_days: 0")
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await activated(door.screening, quick, Mode.SHADOW, NOW)
    await door.screening.reevaluate(NOW)
    for now, swept, state in (
        ("2028-01-10 09:59-05", 0, ("flagged", 2, 0)),
        ("2028-01-10 10:00-05", 1, ("below", 1, 0)),
        ("2028-02-10 10:00-05", 1, ("below", 0, 0)),
        ("2029-02-10 10:00-05", 0, ("below", 0, 0)),
    ):
        async with door.screening.at(now) as turn:
            assert await flow.sweep_shadows(turn) == swept
        assert await in_shadow(door.screening) == {P: state}


async def test_a_merge_in_shadow_is_one_patient_and_an_unmerge_two(door: Door) -> None:
    await door.screening.meet(P, Q)
    await door.screening.take(*two(P)[:1], *two(Q)[1:], now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.SHADOW, "2027-02-11 00:00-05")
    await door.screening.reevaluate("2027-02-11 00:00-05")
    await door.screening.merge(Q, P, "2027-02-12 00:00-05")
    assert await in_shadow(door.screening) == {P: ("flagged", 2, 0)}
    await door.screening.unmerge(Q, P, "2027-02-13 00:00-05")
    assert await in_shadow(door.screening) == {P: ("below", 1, 0), Q: ("below", 1, 0)}


async def test_the_list_in_shadow_and_a_flag_in_shadow(door: Door) -> None:
    await door.screening.meet(P, Q)
    await door.screening.take(*two(P), *two(Q), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.SHADOW, "2027-02-11 00:00-05")
    await door.screening.reevaluate("2027-02-11 00:00-05")
    assert (await door.get("/v1/flags")).json() == {"flags": []}
    page = (await door.get("/v1/flags", policy="TEST-policy@1", _count="1")).json()
    rest = (await door.get(page["next"])).json()
    lines = [*page["flags"], *rest["flags"]]
    assert {line["patient"] for line in lines} == {str(P), str(Q)}
    assert {(line["state"], line["ed_visits"], line["sequence"]) for line in lines} == {
        ("flagged", 2, None)
    }
    assert [line["sites"] for line in lines] == [["site-a"], ["site-a"]]
    told = await door.flag(policy="TEST-policy@1")
    assert (told["state"], told["sequence"], told["cause"]) == ("flagged", 0, None)
    assert (await door.flag())["state"] == "below"


async def test_of_a_policy_that_is_only_stored_there_is_no_list(door: Door) -> None:
    await door.post("/v1/policies", EAGER_TEXT)
    answer = await door.get("/v1/flags", policy="TEST-policy@1")
    assert (answer.status_code, "neither live nor in shadow" in answer.text) == (404, True)
    assert (await door.get("/v1/flags", policy="qc-default@3")).status_code == 200
    for unknown in ("nobody@1", "qc-default", f"qc-default@{'9' * 5000}", "qc-default@٣"):
        assert (await door.get("/v1/flags", policy=unknown)).status_code == 404
    await door.post("/v1/policies/TEST-policy/1/activate", {"mode": "shadow"})
    then = await door.get("/v1/flags", policy="TEST-policy@1", as_of="2027-01-01T00:00:00Z")
    assert then.status_code == 422


async def test_a_shadow_that_is_over_leaves_nothing_and_begins_anew(door: Door) -> None:
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.SHADOW, NOW)
    await door.screening.reevaluate(NOW)
    await activated(door.screening, EAGER, Mode.RETIRE, NOW)
    assert (await stands(door.screening))["TEST-policy@1"] == "stored"
    await door.screening.take(ed_visit("third", NOW, recorded=NOW), now=NOW)
    await activated(door.screening, EAGER, Mode.SHADOW, NOW)
    await door.screening.reevaluate(NOW)
    async with door.screening.at(NOW) as turn:
        assert await flow.forget(turn) == 1
        assert await flow.forget(turn) == 0
    assert await in_shadow(door.screening) == {P: ("flagged", 3, 0)}


async def test_a_shadow_that_comes_live_is_announced_from_then_on(door: Door) -> None:
    await door.screening.meet(P)
    await door.screening.take(*two(), now="2027-02-10 14:00-05")
    await activated(door.screening, EAGER, Mode.SHADOW, NOW)
    await door.screening.reevaluate(NOW)
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    assert await door.screening.reevaluate(NOW) == 1
    assert [e.cause for e in await door.screening.flags()] == [Cause.POLICY]
    async with door.screening.at(NOW) as turn:
        assert await flow.forget(turn) == 1
    assert await in_shadow(door.screening) == {}


async def test_two_shadows_beside_the_live_one(door: Door) -> None:
    await door.screening.meet(P)
    five = load(presets.text("five-in-12"))
    await activated(door.screening, EAGER, Mode.SHADOW, NOW)
    await activated(door.screening, five, Mode.SHADOW, NOW)
    await door.screening.reevaluate(NOW)
    await door.screening.take(*two(), now=NOW)
    assert await stands(door.screening) == {
        "TEST-policy@1": "shadow",
        "five-in-12@1": "shadow",
        "qc-default@3": "live",
    }
    async with door.screening.db.work() as tx:
        rows = await tx.execute(text("select state from shadow order by run"))
        assert [row.state for row in rows] == ["flagged", "below"]


# The start


async def test_the_policy_of_the_settings_does_not_undo_what_operations_activated(
    door: Door,
) -> None:
    await activated(door.screening, EAGER, Mode.LIVE, NOW)
    async with door.screening.at(NOW + DAY) as turn:
        assert await registry.adopt(turn.tx, qc_default(), turn.now)
    assert (await stands(door.screening))["TEST-policy@1"] == "live"
    async with door.screening.at(NOW + DAY) as turn:
        changed = load("name: qc-default\nversion: 4\nhold_days: 90\n")
        assert await registry.adopt(turn.tx, changed, turn.now)
        assert not await registry.adopt(
            turn.tx, load("name: qc-default\nversion: 4\nhold_days: 91\n"), turn.now
        )
    assert (await stands(door.screening))["qc-default@4"] == "live"


async def test_an_installation_with_policies_keeps_the_one_that_was_live(
    database: FreshDatabase, db: Callable[[str], Database]
) -> None:
    """Migration 0002 on tables of 0001, of which the owner is bound by row security."""
    owner = await database.owner()
    await owner.execute(
        """
        set search_path = screening;
        drop table activation;
        drop table shadow;
        drop policy stating on policy;
        drop policy changing on policy;
        alter table policy drop column status, drop column run, drop column stored,
          add column activated timestamptz not null;
        alter table policy no force row level security;
        """
    )
    older, newer = policy(), qc_default()
    for rule, when in ((newer, NOW), (older, NOW - DAY)):
        await owner.execute(
            "insert into policy values ($1, $2, $3, $4, $5)",
            *(rule.name, rule.version, rule.sha256, rule.canonical, when),
        )
    await owner.execute("alter table policy force row level security")
    file = resources.files("services.screening") / "migrations" / "0002_policies.sql"
    await owner.execute(file.read_text())
    await owner.close()
    screening = Screening(db("screening"))
    assert await stands(screening) == {"TEST-policy@1": "stored", "qc-default@3": "live"}
    async with screening.at(NOW) as turn:
        live = (await registry.in_force(turn.tx)).live
        assert live
        assert live.sha256 == newer.sha256
        assert await registry.live_at(turn.tx, NOW - timedelta(seconds=1)) == older
        assert await registry.unfinished(turn.tx, NOW) is None

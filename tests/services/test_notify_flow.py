"""The story of notify on a real PostgreSQL: whose patient, may they be told, which card."""

import asyncio
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import asyncpg
import pytest

from schemas.episode_changed_v1 import EpisodeMoment
from schemas.flag_changed_v1 import Cause, Notice
from schemas.patient_merged_v1 import PatientMerged, PatientUnmerged
from services.notify import flow, intake, store, telling
from services.notify.card import Card, Status, Why
from services.notify.intake import Capture, Upload
from services.notify.panel import Mode
from services.notify.telling import House
from services.plumbing.audit import Trail
from services.plumbing.db import Database
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.notify_builders import DAY, NOW, TERMS
from tests.services.notify_door import consent, panel


class Desk:
    """notify with its handlers called directly, each in a transaction of its own."""

    def __init__(self, db: Database, house: House) -> None:
        self.db = db
        self.house = house
        self.now = NOW

    def turn(self, tx: Any) -> flow.Turn:
        return build.turn(tx, self.house, self.now)

    async def hear(self, *events: Any) -> None:
        """Each event as a batch of its own, in this order."""
        handlers = {
            "flag.changed.v1": flow.on_flags_changed,
            "episode.changed.v1": flow.on_episodes_changed,
            "patient.identified.v1": flow.on_patients_identified,
            "patient.merged.v1": flow.on_patients_merged,
            "patient.unmerged.v1": flow.on_patients_unmerged,
        }
        for event in events:
            async with self.db.work() as tx:
                await handlers[event.type]([event], self.turn(tx))  # type: ignore[operator]

    async def upload(
        self, *patients: UUID, clinic: str = "clinic-a", mode: Mode = Mode.DELTA, **more: Any
    ) -> dict[str, Any]:
        rows = [
            ",".join(
                (
                    build.CARD,
                    build.number(p),
                    more.get("family", "Fictif"),
                    "1950-02-03",
                    more.get("nurse", "nurse-a" if clinic == "clinic-a" else "nurse-b"),
                    more.get("end", ""),
                )
            )
            for p in patients
        ]
        text = "\n".join(["card_system,card_number,family,birth_date,nurse,end", *rows])
        upload = Upload(clinic, text.encode(), None, mode, more.get("dry_run", False))
        trail = Trail(self.now, f"{clinic}-emr", "client", tenant=clinic)
        async with self.db.work() as tx:
            return await intake.upload_panel(upload, self.turn(tx), trail)

    async def consent(
        self,
        patient: UUID,
        provision: dict[str, Any] | None,
        id_: str = "TEST-c1",
        tenant: str = "hospital-a",
        **more: Any,
    ) -> intake.Captured:
        resource: dict[str, Any] = {
            "resourceType": "Consent",
            "status": "active",
            "scope": {"coding": [{"system": TERMS + "consentscope", "code": "patient-privacy"}]},
            "category": [{"coding": [{"system": "http://loinc.org", "code": "59284-0"}]}],
            "patient": {"identifier": {"system": build.CARD, "value": build.number(patient)}},
            "dateTime": "2026-01-15T10:00:00-05:00",
            "policy": [{"uri": "https://example.ca/policies/sharing"}],
            **({} if provision is None else {"provision": provision}),
            **more,
        }
        capture = Capture(resource, tenant, tenant, id_)
        trail = Trail(self.now, tenant, "client", tenant=tenant)
        async with self.db.work() as tx:
            return await intake.capture_consent(capture, self.turn(tx), trail)

    async def cards(self, clinic: str = "clinic-a") -> list[Card]:
        async with self.db.work() as tx:
            found = await store.cards_of_clinic(tx, clinic)
        return sorted(found, key=lambda card: (card.opened, card.key))

    async def card(self, clinic: str = "clinic-a") -> Card:
        (card,) = await self.cards(clinic)
        return card

    async def change(self, card: Card, status: Status) -> None:
        from dataclasses import replace

        async with self.db.work() as tx:
            changed = replace(card, status=status, version=card.version + 1)
            await store.change_card(tx, changed, 1, "nurse-a")

    async def show(self, card: Card) -> None:
        async with self.db.work() as tx:
            await store.mark_shown(tx, [card.id])

    async def refusals(self) -> list[Any]:
        async with self.db.work() as tx:
            return list(await store.refusals(tx, None))

    async def told(self, patient: UUID, clinic: str = "clinic-a") -> telling.Told:
        async with self.db.work() as tx:
            facts = await store.facts(tx, [patient])
        return telling.tell_inbox(self.house, facts[patient], clinic, self.now)


@pytest.fixture
def desk(db: Callable[[str], Database]) -> Desk:
    return Desk(db("notify"), build.house())


@pytest.fixture
def opt_in(db: Callable[[str], Database]) -> Desk:
    return Desk(db("notify"), build.house(build.region("opt-in")))


@pytest.fixture
async def owner(database: FreshDatabase) -> Any:
    connection: asyncpg.Connection = await database.owner()
    yield connection
    await connection.close()


def patient() -> UUID:
    return uuid4()


def actor(reference: str) -> dict[str, Any]:
    role = {"coding": [{"system": TERMS + "v3-ParticipationType", "code": "IRCP"}]}
    return {"role": role, "reference": {"reference": reference}}


DENY_ALL = {"type": "deny"}
PERMIT_CLINIC_A = {"type": "permit", "actor": [actor("Organization/clinic-a")]}
DENY_CLINIC_A = {"type": "deny", "actor": [actor("Organization/clinic-a")]}


async def settled(desk: Desk) -> UUID:
    """A patient on clinic A's confirmed panel, flagged, with a card."""
    p = patient()
    await desk.hear(build.identified(p))
    await desk.upload(p)
    await desk.hear(build.flag(p))
    return p


# --- whose patient ----------------------------------------------------------------------------


async def test_a_flagged_patient_of_a_confirmed_panel_makes_one_card_for_its_nurse(
    desk: Desk,
) -> None:
    p = await settled(desk)
    card = await desk.card()
    assert (card.patient, card.status, card.owner, card.version) == (
        p,
        Status.REQUESTED,
        "nurse-a",
        1,
    )
    assert await desk.cards("clinic-b") == []


async def test_the_order_of_identity_panel_and_flag_does_not_matter(desk: Desk) -> None:
    """Whatever arrives first (architecture.md)."""
    p = patient()

    async def identity() -> None:
        await desk.hear(build.identified(p))

    async def panel() -> None:
        await desk.upload(p)

    async def flag() -> None:
        await desk.hear(build.flag(p))

    for steps in ((flag, panel, identity),):
        for step in steps:
            assert await desk.cards() == []
            await step()
    assert (await desk.card()).patient == p


async def test_the_same_flag_twice_changes_nothing(desk: Desk) -> None:
    p = patient()
    event = build.flag(p)
    await desk.hear(build.identified(p))
    await desk.upload(p)
    await desk.hear(event)
    before = await desk.card()
    await desk.hear(event, event)
    assert await desk.card() == before


async def test_a_panel_row_whose_name_differs_opens_nothing(desk: Desk) -> None:
    """CA-46."""
    p = patient()
    await desk.hear(build.identified(p), build.flag(p))
    report = await desk.upload(p, family="Autre")
    assert (report["added"], report["confirmed"], report["unconfirmed"]) == (1, 0, 1)
    assert await desk.cards() == []
    await desk.hear(build.identified(p, 2, family="Autre"))
    assert (await desk.card()).patient == p


async def test_a_hospital_that_recorded_the_clinic_confirms_its_row(desk: Desk) -> None:
    p = patient()
    await desk.hear(build.identified(p, family=None, attributed=("clinic-a",)))
    await desk.upload(p)
    await desk.hear(build.flag(p))
    assert (await desk.card()).patient == p


async def test_a_flagged_patient_nobody_has_is_in_the_unroutable_queue(
    desk: Desk, owner: asyncpg.Connection
) -> None:
    """CA-43."""
    p = patient()
    await desk.hear(build.identified(p), build.flag(p))
    assert await owner.fetchval("select reason from notify.unroutable") == "no-panel"
    await desk.upload(p, family="Autre")
    assert await owner.fetchval("select reason from notify.unroutable") == "unconfirmed"
    await desk.upload(p)
    assert await owner.fetchval("select count(*) from notify.unroutable") == 0
    assert (await desk.card()).patient == p


async def test_two_clinics_each_get_a_card(desk: Desk) -> None:
    """CA-44."""
    p = patient()
    await desk.hear(build.identified(p), build.flag(p))
    await desk.upload(p)
    await desk.upload(p, clinic="clinic-b")
    assert (await desk.card("clinic-a")).id != (await desk.card("clinic-b")).id


async def test_who_leaves_the_panel_takes_the_card_along(desk: Desk) -> None:
    p, stays = patient(), [patient() for _ in range(9)]
    await desk.hear(build.identified(p))
    await desk.upload(p, *stays)
    await desk.hear(build.flag(p))
    report = await desk.upload(*stays, mode=Mode.FULL)
    assert report["ended"] == 1
    card = await desk.card()
    assert (card.status, card.why) == (Status.CANCELLED, Why.PANEL_CHANGED)


async def test_a_panel_row_is_end_dated_and_never_deleted(
    desk: Desk, owner: asyncpg.Connection
) -> None:
    p, stays = patient(), [patient() for _ in range(9)]
    await desk.upload(p, *stays)
    await desk.upload(*stays, mode=Mode.FULL)
    await desk.upload(*stays, nurse="nurse-d")
    assert await owner.fetchval("select count(*) from notify.panel") == 19
    ended = await owner.fetchval("select count(*) from notify.panel where superseded is not null")
    assert ended == 10


async def test_a_dry_run_changes_nothing(desk: Desk, owner: asyncpg.Connection) -> None:
    report = await desk.upload(patient(), dry_run=True)
    assert (report["added"], report["applied"]) == (1, False)
    assert await owner.fetchval("select count(*) from notify.panel") == 0


async def overlapping(desk: Desk, first: Any, second: Any) -> None:
    """`first` begins and is open while `second` begins; then both commit."""
    begun, go_on = asyncio.Event(), asyncio.Event()

    async def slow() -> None:
        async with desk.db.work() as tx:
            await first(tx)
            begun.set()
            await go_on.wait()

    async def other() -> None:
        async with desk.db.work() as tx:
            await second(tx)

    slowly = asyncio.create_task(slow())
    await begun.wait()
    then = asyncio.create_task(other())
    await asyncio.wait([then], timeout=0.5)
    go_on.set()
    await asyncio.gather(slowly, then)


@pytest.mark.parametrize("identity_first", [True, False])
@pytest.mark.parametrize("claim", ["panel", "consent"])
async def test_an_identity_and_a_claim_in_overlapping_transactions_find_each_other(
    db: Callable[[str], Database], claim: str, *, identity_first: bool
) -> None:
    """Neither sees what the other has not committed; still none is left unmatched."""
    desk = Desk(
        db("notify"), build.house(build.region("opt-in" if claim == "consent" else "implied"))
    )
    p = patient()
    await desk.hear(build.flag(p))
    if claim == "consent":
        await desk.hear(build.identified(patient()))
        await desk.upload(p)

    async def identity(tx: Any) -> None:
        await flow.on_patients_identified([build.identified(p)], desk.turn(tx))

    async def claimed(tx: Any) -> None:
        if claim == "panel":
            upload = Upload("clinic-a", panel(p).encode(), None, Mode.DELTA, dry_run=False)
            trail = Trail(desk.now, "clinic-a-emr", "client", tenant="clinic-a")
            await intake.upload_panel(upload, desk.turn(tx), trail)
        else:
            capture = Capture(consent(p, PERMIT_CLINIC_A), "hospital-a", "hospital-a", "TEST-c1")
            trail = Trail(desk.now, "hospital-a", "client", tenant="hospital-a")
            await intake.capture_consent(capture, desk.turn(tx), trail)

    await overlapping(desk, *((identity, claimed) if identity_first else (claimed, identity)))
    assert (await desk.card()).patient == p


# --- may they be told -------------------------------------------------------------------------


async def test_under_opt_in_without_consent_there_is_one_withheld_decision(opt_in: Desk) -> None:
    p = await settled(opt_in)
    assert await opt_in.cards() == []
    await opt_in.hear(build.flag(p, 2, [*build.four_visits(), build.ed_visit(3)]))
    (refusal,) = await opt_in.refusals()
    assert (refusal.outcome, refusal.reasons, refusal.clinic) == (
        "withhold",
        ["no-consent"],
        "clinic-a",
    )


async def test_a_consent_that_comes_later_makes_the_card_without_a_new_encounter(
    opt_in: Desk,
) -> None:
    p = await settled(opt_in)
    assert await opt_in.cards() == []
    await opt_in.consent(p, PERMIT_CLINIC_A)
    assert (await opt_in.card()).status is Status.REQUESTED


async def test_a_consent_may_come_before_the_patient_is_known(opt_in: Desk) -> None:
    """CS-57: kept by token, applied when identified."""
    p = patient()
    await opt_in.consent(p, PERMIT_CLINIC_A)
    await opt_in.upload(p)
    await opt_in.hear(build.flag(p))
    assert await opt_in.cards() == []
    await opt_in.hear(build.identified(p))
    assert (await opt_in.card()).patient == p


async def test_a_withdrawn_consent_takes_the_card_back_in_every_state(opt_in: Desk) -> None:
    """CA-32, CS-58."""
    p = await settled(opt_in)
    await opt_in.consent(p, PERMIT_CLINIC_A)
    await opt_in.change(await opt_in.card(), Status.ACCEPTED)
    await opt_in.consent(p, PERMIT_CLINIC_A, status="inactive")
    card = await opt_in.card()
    assert (card.status, card.why) == (Status.CANCELLED, Why.CONSENT_WITHDRAWN)
    assert not card.by_own_consent


async def test_a_restriction_of_the_clinic_takes_its_card_and_leaves_the_others(
    desk: Desk,
) -> None:
    p = await settled(desk)
    await desk.upload(p, clinic="clinic-b")
    await desk.consent(p, DENY_CLINIC_A)
    assert (await desk.card("clinic-a")).status is Status.CANCELLED
    assert (await desk.card("clinic-b")).status is Status.REQUESTED
    (refusal,) = await desk.refusals()
    assert refusal.reasons == ["restricted"]
    assert refusal.basis == ["Consent/TEST-c1/_history/1"]


async def test_a_consent_given_again_makes_a_new_card(opt_in: Desk) -> None:
    p = await settled(opt_in)
    await opt_in.consent(p, PERMIT_CLINIC_A)
    await opt_in.consent(p, PERMIT_CLINIC_A, status="inactive")
    await opt_in.consent(p, PERMIT_CLINIC_A)
    assert sorted(c.status for c in await opt_in.cards()) == [Status.CANCELLED, Status.REQUESTED]


async def test_a_consent_that_cannot_be_computed_is_a_hold(desk: Desk) -> None:
    """CS-36: nothing goes out, a person sees it."""
    p = await settled(desk)
    captured = await desk.consent(p, {"type": "permit"}, implicitRules="https://example.ca/r")
    assert captured.warnings
    assert (await desk.card()).status is Status.CANCELLED
    (refusal,) = await desk.refusals()
    assert (refusal.outcome, refusal.reasons) == ("hold", ["not-computable"])


async def test_a_consent_period_that_ends_takes_the_card_without_an_event(opt_in: Desk) -> None:
    """CS-51."""
    p = await settled(opt_in)
    ending = {**PERMIT_CLINIC_A, "period": {"end": "2026-03-05"}}
    await opt_in.consent(p, ending)
    opt_in.now = datetime.fromisoformat("2026-03-05T23:59:59-05:00")
    assert await swept(opt_in) == 0
    assert (await opt_in.told(p)).view is not None
    opt_in.now = datetime.fromisoformat("2026-03-06T00:00:00-05:00")
    assert (await opt_in.told(p)).view is None
    assert await swept(opt_in) == 1
    assert (await opt_in.card()).status is Status.CANCELLED


async def test_a_consent_period_that_begins_makes_the_card_without_an_event(opt_in: Desk) -> None:
    p = await settled(opt_in)
    await opt_in.consent(p, {**PERMIT_CLINIC_A, "period": {"start": "2026-03-10"}})
    assert await opt_in.cards() == []
    opt_in.now = datetime.fromisoformat("2026-03-10T00:00:00-04:00")
    await swept(opt_in)
    assert (await opt_in.card()).status is Status.REQUESTED


async def swept(desk: Desk) -> int:
    async with desk.db.work() as tx:
        return await flow.sweep(desk.turn(tx))


async def test_a_card_the_inbox_may_not_see_goes_to_the_nurse_alone(desk: Desk) -> None:
    """CS-33."""
    p = await settled(desk)
    await desk.consent(p, {"type": "deny", "actor": [actor("Practitioner/nurse-d")]})
    card = await desk.card()
    assert (card.status, card.owner, card.inbox) == (Status.REQUESTED, "nurse-a", False)
    assert (await desk.told(p)).view is None


async def test_a_hidden_visit_leaves_no_card_below_the_threshold(desk: Desk) -> None:
    """CS-40: recount per recipient."""
    p = patient()
    hidden = build.ed_visit(1, labels=build.label("HIV"))
    visits = [hidden, *build.four_visits()[1:]]
    await desk.hear(build.identified(p))
    await desk.upload(p)
    await desk.hear(build.flag(p, 1, visits))
    assert (await desk.card()).status is Status.REQUESTED
    no_hiv = {"type": "deny", "securityLabel": [{"system": TERMS + "v3-ActCode", "code": "HIV"}]}
    await desk.consent(p, no_hiv)
    assert (await desk.card()).status is Status.CANCELLED
    assert (await desk.told(p)).shows(await desk.card()) is False
    await desk.hear(build.flag(p, 2, [*visits, build.ed_visit(2)]))
    told = await desk.told(p)
    assert told.view is not None
    assert (told.view.whole, [c.count for c in told.view.clauses]) == (False, [4, 0, 4])


# --- which card -------------------------------------------------------------------------------


async def test_a_quiet_entry_makes_no_card_and_a_later_panel_does(desk: Desk) -> None:
    """CT-42, CA-43."""
    known, unknown = patient(), patient()
    await desk.hear(build.identified(known), build.identified(unknown))
    await desk.upload(known)
    await desk.hear(
        build.flag(known, notice=Notice.QUIET), build.flag(unknown, notice=Notice.QUIET)
    )
    assert await desk.cards() == []
    await desk.upload(unknown)
    assert (await desk.card()).patient == unknown


async def test_leaving_the_ed_brings_a_flagged_patients_card_and_admission_brings_it_back(
    desk: Desk,
) -> None:
    """NW-11, NW-12: one card for ED, admission and discharge."""
    p = patient()
    await desk.hear(build.identified(p))
    await desk.upload(p)
    await desk.hear(build.flag(p, notice=Notice.QUIET))
    key = uuid4()
    await desk.hear(build.episode(p, key, EpisodeMoment.ARRIVED, 1))
    assert await desk.cards() == []
    await desk.hear(build.episode(p, key, EpisodeMoment.LEFT, 2))
    card = await desk.card()
    assert (card.what, card.key) == ("left-ed", f"episode:{key}")
    await desk.change(card, Status.COMPLETED)
    desk.now = NOW + DAY
    await desk.hear(build.episode(p, key, EpisodeMoment.DISCHARGED, 3, at=NOW + DAY, ended=True))
    again = await desk.card()
    assert (again.id, again.status, again.what) == (card.id, Status.REQUESTED, "discharged")


async def test_a_moment_more_than_72_hours_old_opens_nothing(desk: Desk) -> None:
    p = patient()
    await desk.hear(build.identified(p))
    await desk.upload(p)
    await desk.hear(build.flag(p, notice=Notice.QUIET))
    late = NOW - timedelta(hours=72, seconds=1)
    await desk.hear(build.episode(p, uuid4(), at=late))
    assert await desk.cards() == []


async def test_flag_and_episode_in_either_order_are_one_card(desk: Desk) -> None:
    for swapped in (False, True):
        p, key = patient(), uuid4()
        await desk.hear(build.identified(p))
        await desk.upload(p)
        events = [build.flag(p, episode=key), build.episode(p, key)]
        await desk.hear(*(reversed(events) if swapped else events))
        (card,) = [c for c in await desk.cards() if c.patient == p]
        assert (card.what, card.moment, card.key) == (
            "threshold-reached",
            "left-ed",
            f"episode:{key}",
        )


@pytest.mark.parametrize(
    ("cause", "why"),
    [
        (Cause.VOID, Why.VISIT_CANCELLED),
        (Cause.CORRECTION, Why.COUNT_CORRECTED),
        (Cause.DEATH, Why.DECEASED),
    ],
)
async def test_a_flag_that_was_never_true_takes_its_card_and_says_why(
    desk: Desk, cause: Cause, why: Why
) -> None:
    """CA-30."""
    p = await settled(desk)
    await desk.hear(build.flag(p, 2, build.four_visits()[1:], cause=cause, retracts=1))
    card = await desk.card()
    assert (card.status, card.why, card.version) == (Status.CANCELLED, why, 2)


async def test_an_accepted_card_stays_with_a_note(desk: Desk) -> None:
    """CA-31, CR-33."""
    p = await settled(desk)
    await desk.change(await desk.card(), Status.ACCEPTED)
    await desk.hear(build.flag(p, 2, build.four_visits()[1:], cause=Cause.VOID, retracts=1))
    card = await desk.card()
    assert (card.status, card.why) == (Status.ACCEPTED, None)
    assert [note.text for note in card.notes] == ["count corrected from 4 to 3"]


@pytest.mark.parametrize("cause", [Cause.DECAY, Cause.HOLD_END, Cause.POLICY])
async def test_decay_never_cancels_a_card(
    desk: Desk, owner: asyncpg.Connection, cause: Cause
) -> None:
    """CA-30: it changes the Flag and adds a note."""
    p = await settled(desk)
    await desk.hear(build.flag(p, 2, build.four_visits()[2:], cause=cause))
    card = await desk.card()
    assert (card.status, len(card.notes)) == (Status.REQUESTED, 1)
    assert await owner.fetchval("select status from notify.flag") == "inactive"


async def test_unmerged_flags_are_of_the_wrong_person_in_every_state(desk: Desk) -> None:
    p = await settled(desk)
    await desk.change(await desk.card(), Status.COMPLETED)
    await desk.hear(build.flag(p, 2, build.four_visits()[1:], cause=Cause.UNMERGE, retracts=1))
    assert (await desk.card()).status is Status.ENTERED_IN_ERROR


async def test_a_merge_moves_the_card_to_the_surviving_patient(desk: Desk) -> None:
    p = await settled(desk)
    survivor = patient()
    await desk.hear(build.identified(survivor))
    await desk.hear(build.flag(survivor, cause=Cause.MERGE))
    await desk.upload(survivor)
    mine = [c for c in await desk.cards() if c.patient == survivor]
    await desk.hear(PatientMerged(surviving=survivor, retired=p, version=1, recorded=NOW))
    (retired,) = [c for c in await desk.cards() if c.patient == p]
    assert (retired.status, retired.why, retired.surviving) == (
        Status.CANCELLED,
        Why.MERGED,
        mine[0].id,
    )


async def test_the_consents_of_both_keys_speak_after_a_merge_and_doubt_after_an_unmerge(
    desk: Desk,
) -> None:
    """CS-53."""
    p = await settled(desk)
    other = patient()
    await desk.hear(build.identified(other))
    await desk.consent(other, DENY_ALL)
    assert (await desk.told(p)).view is not None
    await desk.hear(PatientMerged(surviving=p, retired=other, version=1, recorded=NOW))
    assert (await desk.told(p)).view is None
    assert (await desk.card()).status is Status.CANCELLED
    await desk.hear(PatientUnmerged(surviving=p, retired=other, version=2, recorded=NOW + DAY))
    assert (await desk.told(p)).view is None or desk.now == NOW  # recorded with the merge
    desk.now = NOW + 2 * DAY


async def test_a_consent_recorded_while_two_keys_were_one_holds_both(desk: Desk) -> None:
    """CS-53."""
    p, other = await settled(desk), patient()
    await desk.hear(build.identified(other))
    await desk.hear(PatientMerged(surviving=p, retired=other, version=1, recorded=NOW))
    desk.now = NOW + DAY
    await desk.consent(other, DENY_CLINIC_A)
    await desk.hear(PatientUnmerged(surviving=p, retired=other, version=2, recorded=NOW + 2 * DAY))
    told = await desk.told(p)
    assert telling.kind_of(told.decision) == "hold"
    assert telling.kind_of((await desk.told(other)).decision) == "withhold"  # nothing is known


async def test_a_snoozed_card_wakes_at_its_time(desk: Desk) -> None:
    """NW-15."""
    from dataclasses import replace

    p = await settled(desk)
    card = await desk.card()
    async with desk.db.work() as tx:
        asleep = replace(
            card, status=Status.ON_HOLD, snoozed_until=NOW + DAY, version=card.version + 1
        )
        await store.change_card(tx, asleep, 1, "nurse-a")
        await flow.reconsider([p], desk.turn(tx))
    desk.now = NOW + DAY
    assert await swept(desk) == 1
    assert (await desk.card()).status is Status.REQUESTED


async def test_times_of_a_clinics_changes_never_go_back(desk: Desk) -> None:
    """CA-15: also when the business clock does."""
    await settled(desk)
    desk.now = NOW - DAY
    await settled(desk)
    first, second = sorted(await desk.cards(), key=lambda c: c.updated)
    assert second.updated > first.updated

"""The monthly review, and whom an incident reached (CS-114, CS-122)."""

import subprocess
import sys
from collections.abc import Callable, Iterable
from datetime import UTC, date, datetime, timedelta
from uuid import UUID
from zoneinfo import ZoneInfo

import orjson
import pytest
from sqlalchemy import text

from services.cli import reviewing
from services.cli.reviewing import Review, Volume, volumes
from services.plumbing import audit, region
from services.plumbing.account import Language
from services.plumbing.audit import AuditRecord, Content, Trail
from services.plumbing.db import Database
from services.simulator.flow import REGION_FILE
from tests.conftest import FreshDatabase
from tests.services.test_auditing import passerelle

OCTOBER = datetime(2026, 10, 3, 12, tzinfo=UTC)
NURSE = ("clinic_cm",)
CONTENT = Content(("ed-visit:4",), "L1", (), "qc/implied")


def someone(number: int) -> UUID:
    return UUID(int=1000 + number)


def looks(
    person: str, patients: Iterable[int], at: datetime = OCTOBER, **more: str
) -> list[AuditRecord]:
    trail = Trail(
        at=at,
        agent=person,
        agent_kind="person",
        tenant="clinic-a",
        roles=NURSE,
        **more,
    )
    return [trail.read(f"Task/{n}/_history/1", someone(n), content=CONTENT) for n in patients]


def sent(number: int, at: datetime = OCTOBER) -> AuditRecord:
    trail = Trail.background("notify", at, "clinic-b")
    return trail.disclosed(f"Task/{number}", someone(number), "clinic-b", content=CONTENT)


# Unusual volume, pure

MONTHS = [date(2026, month, 1) for month in (7, 8, 9, 10)]


def held(**people: list[int]) -> dict[tuple[str, tuple[str, ...], date], int]:
    """Patients looked at in the last months, October last; zeros are months without a look."""
    return {
        (person, NURSE, month): count
        for person, counts in people.items()
        for month, count in zip(MONTHS[-len(counts) :], counts, strict=True)
        if count
    }


@pytest.mark.parametrize(
    ("counts", "usual", "unusual"),
    [
        (held(a=[10, 10, 10, 30]), 10, False),  # three times as many is not more than three times
        (held(a=[10, 10, 10, 31]), 10, True),
        (held(a=[1, 1, 1, 19]), 1, False),  # too few to stand out
        (held(a=[12, 0, 0, 20]), 4, True),  # months without a look count once somebody began
        (held(b=[12, 12, 12, 12], a=[40]), 12, True),  # nobody's own months: those of the role
        (held(b=[20], a=[40]), 20, False),
        (held(a=[40]), 0, True),  # nothing to hold it against
    ],
)
def test_a_volume_is_held_against_ones_own_months_else_against_the_role(
    counts: dict[tuple[str, tuple[str, ...], date], int], usual: float, unusual: bool
) -> None:
    [found] = [one for one in volumes(counts, date(2026, 10, 1)) if one.person == "a"]
    assert (found.usual, found.is_unusual) == (usual, unusual)


def test_a_month_ends_where_the_region_s_does() -> None:
    zone = ZoneInfo("America/Toronto")
    since, until = reviewing._bounds(date(2026, 12, 1), date(2026, 12, 1), zone)
    assert (since, until) == (
        datetime(2026, 12, 1, 5, tzinfo=UTC),
        datetime(2027, 1, 1, 5, tzinfo=UTC),
    )


def test_a_review_is_plain_french_or_english() -> None:
    review = Review(date(2026, 10, 1), [], [], [Volume("nurse-a", 31, 10.0)], 4, [], [])
    known = region.load(REGION_FILE)
    french = reviewing.written(review, known, Language.FRENCH)
    assert french.startswith("Revue des accès, 2026-10\n========================\n")
    assert "Infirmière fictive A (nurse-a)\u00a0: 31 patients; d'ordinaire 10.0" in french
    assert "Break-glass\n-----------\nnothing" in reviewing.written(review, known, Language.ENGLISH)


# Out of the audit


@pytest.fixture
async def filled(database: FreshDatabase, db: Callable[[str], Database]) -> FreshDatabase:
    """Of nurse A many in October and few before; a delivery; a refusal; calls at the door."""
    stranger = Trail(at=OCTOBER, agent="TEST-stranger", agent_kind="unknown")
    decided = Trail.background("notify", OCTOBER, "clinic-b").decided(
        someone(3), "clinic-b", permitted=False, reasons=["restricted"], consents=[], policy="qc"
    )
    async with db("notify").work() as tx:
        await audit.record(
            tx,
            [
                *looks("nurse-a", range(25), token_id="TEST-token", network="127.0.0.7"),
                *looks("nurse-a", range(2), OCTOBER - timedelta(days=40)),
                *looks("nurse-b", range(3)),
                sent(50),
                decided,
                stranger.refused(401),
            ],
        )
    async with db("ingest").work() as tx:
        await audit.record(tx, [stranger.refused(403), stranger.refused(403)])
    return database


async def test_a_review_names_what_the_privacy_officer_must_look_at(
    filled: FreshDatabase, db: Callable[[str], Database]
) -> None:
    done = await passerelle(filled, "review", "2026-10", "--by", "privacy", "--json")
    assert done.returncode == 0, done.stderr
    said = orjson.loads(done.stdout)
    assert said["unusual"] == [{"person": "nurse-a", "patients": 25, "usual": 1.0}]
    assert said["looked"] == 2
    assert said["refusals"] == [
        {"recipient": "clinic-b", "reason": "restricted", "decisions": 1, "patients": 1}
    ]
    assert [(one["service"], one["attempts"]) for one in said["doors"]] == [
        ("ingest", 2),
        ("notify", 1),
    ]
    assert said["overrides"] == []
    async with db("notify").work() as tx:
        rows = await tx.execute(text("select agent, entities from audit where shape = 'Export'"))
        assert [tuple(row) for row in rows] == [("privacy", ["review-2026-10"])]


async def affected(database: FreshDatabase, *narrowed: str) -> list[dict[str, object]]:
    window = ("--since", "2026-10-01", "--until", "2026-11-01", "--by", "privacy", "--json")
    done = await passerelle(database, "affected", *window, *narrowed)
    assert done.returncode == 0, done.stderr
    found: list[dict[str, object]] = orjson.loads(done.stdout)
    return found


@pytest.mark.parametrize(
    ("narrowed", "persons"),
    [
        ((), 26),
        (("--agent", "nurse-b"), 3),
        (("--recipient", "clinic-b"), 1),
        (("--token", "TEST-token"), 25),
        (("--network", "127.0.0.7"), 25),
        (("--network", "127.0.0.8"), 0),
    ],
)
async def test_an_incident_names_whom_it_reached(
    filled: FreshDatabase, narrowed: tuple[str, ...], persons: int
) -> None:
    found = await affected(filled, *narrowed)
    assert len(found) == persons


async def test_of_each_person_reached_items_period_and_count_are_told(
    filled: FreshDatabase, db: Callable[[str], Database]
) -> None:
    async with db("notify").work() as tx:
        await audit.record(tx, looks("nurse-b", [1], OCTOBER + timedelta(hours=2)))
    [one] = [p for p in await affected(filled, "--agent", "nurse-b") if p["times"] == 2]
    assert one == {
        "patient": str(someone(1)),
        "first": "2026-10-03T12:00:00+00:00",
        "last": "2026-10-03T14:00:00+00:00",
        "times": 2,
        "items": ["ed-visit:4"],
        "recipients": ["clinic-a"],
    }
    async with db("notify").work() as tx:
        rows = await tx.execute(text("select patient from audit where shape = 'Export'"))
        assert {row.patient for row in rows} == {someone(n) for n in range(3)}


@pytest.mark.parametrize(
    "said",
    [
        ("review", "October", "--by", "privacy"),
        ("review", "2026-10", "--by", "TEST-nobody"),
        ("affected", "--since", "then", "--until", "now", "--by", "privacy"),
    ],
)
async def test_what_cannot_be_meant_is_said_in_one_line(
    database: FreshDatabase, said: tuple[str, ...]
) -> None:
    done = await passerelle(database, *said)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1


def test_help_says_what_there_is() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "audit", "--help"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert all(word in done.stdout for word in ("verify", "report", "key", "review", "affected"))

"""An incident's eight fields, and when it may be closed (CS-80, CS-122)."""

from dataclasses import replace
from datetime import date

import pytest

from services.notify.incident import FIELDS, LONGEST, Entered, Risk, entered, read

TODAY = date(2026, 11, 24)
OPENED = Entered(
    information="Alerts of one clinic, with names and dates of visits.",
    circumstances="A subscription named an endpoint of another clinic.",
    began="2026-11-20",
    known="2026-11-23",
)
CLOSED = replace(
    OPENED,
    ended="2026-11-23",
    persons="12",
    risk=Risk.SERIOUS.value,
    elements="Sensitive; read by professionals under secrecy; harm unlikely.",
    told_commission="2026-11-24",
    told_persons="2026-11-24",
    measures="Endpoint removed; each endpoint is confirmed by two people.",
    closed="1",
)


def test_an_incident_is_opened_with_what_is_known() -> None:
    found, faults = read(OPENED, TODAY)
    assert faults == {}
    assert found is not None
    assert (found.persons, found.risk, found.closed) == (None, Risk.UNDECIDED, False)


@pytest.mark.parametrize("said", [OPENED, CLOSED])
def test_a_form_says_the_incident_it_was_read_from(said: Entered) -> None:
    found, _ = read(said, TODAY)
    assert found is not None
    assert entered(found) == said


@pytest.mark.parametrize(
    ("changed", "field", "code"),
    [
        ({"information": "  "}, "information", "missing"),
        ({"circumstances": ""}, "circumstances", "missing"),
        ({"began": ""}, "began", "missing"),
        ({"known": "yesterday"}, "known", "date"),
        ({"known": "2026-11-25"}, "known", "future"),
        ({"known": "2026-11-19"}, "known", "order"),
        ({"ended": "2026-11-19"}, "ended", "order"),
        ({"persons": "many"}, "persons", "count"),
        ({"persons": "-1"}, "persons", "count"),
        ({"persons": "²"}, "persons", "count"),
        ({"persons": "100000001"}, "persons", "count"),
        ({"risk": "some"}, "risk", "missing"),
        ({"told_public": "2026-11-24"}, "public_reason", "missing"),
        ({"measures": "x" * (LONGEST + 1)}, "measures", "long"),
    ],
)
def test_what_is_wrong_is_said_of_its_field(changed: dict[str, str], field: str, code: str) -> None:
    found, faults = read(replace(OPENED, **changed), TODAY)
    assert found is None
    assert faults == {field: code}


@pytest.mark.parametrize(
    ("changed", "fields"),
    [
        ({}, set()),
        ({"risk": Risk.UNDECIDED.value}, {"risk"}),
        ({"elements": "", "measures": " "}, {"elements", "measures"}),
        ({"told_commission": ""}, {"told_commission"}),
        ({"told_persons": ""}, {"told_persons"}),
        (
            {"told_persons": "", "told_public": "2026-11-24", "public_reason": "No addresses."},
            set(),
        ),
        ({"risk": Risk.NOT_SERIOUS.value, "told_commission": "", "told_persons": ""}, set()),
        ({"persons": ""}, set()),
    ],
)
def test_it_is_closed_when_the_risk_is_decided_and_who_must_know_was_told(
    changed: dict[str, str], fields: set[str]
) -> None:
    found, faults = read(replace(CLOSED, **changed), TODAY)
    assert set(faults) == fields
    assert (found is not None) is (not fields)


def test_a_repr_says_nothing_that_was_written() -> None:
    found, _ = read(CLOSED, TODAY)
    for text in (repr(found), repr(CLOSED)):
        assert "endpoint" not in text.lower()
    assert len(FIELDS) == 14

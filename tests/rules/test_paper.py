"""What is ticked is what the Consent says, and what it says is what is shown (CS-44, CS-58)."""

from dataclasses import replace
from datetime import date
from zoneinfo import ZoneInfo

import pytest
from fhir.resources.R4B.consent import Consent
from hypothesis import given
from hypothesis import strategies as st

from services.notify import paper, reading
from services.notify.consent import SENSITIVITY_ABOVE, Effect
from services.notify.paper import Choices, Entered, Performer, Source, Wish
from tests.services.notify_builders import NOW

ZONE = ZoneInfo("America/Toronto")
PATIENT = {"identifier": {"system": "https://health-card.example.ca", "value": "TEST0001"}}
RECIPIENTS = ("Organization/clinic-a", "Practitioner/nurse-a", "Group/students")
TODAY = date(2026, 3, 2)
CHOICES = Choices(frozenset(RECIPIENTS), TODAY)

wishes = st.builds(
    Wish,
    effect=st.sampled_from(Effect),
    whom=st.lists(st.sampled_from(RECIPIENTS), min_size=1, unique=True).map(tuple),
    save=st.lists(st.sampled_from(RECIPIENTS), unique=True).map(tuple),
    level=st.integers(1, 3),
    labels=st.lists(st.sampled_from(sorted(SENSITIVITY_ABOVE)), unique=True).map(tuple),
    start=st.none() | st.dates(date(2020, 1, 1), date(2026, 1, 1)),
    end=st.none() | st.dates(date(2027, 1, 1), date(2030, 1, 1)),
    performer=st.sampled_from(Performer),
    relative=st.just("Parent Fictif"),
    source=st.sampled_from(Source),
    reference=st.sampled_from(["", "TEST-7"]),
    language=st.sampled_from(["fr", "en"]),
    risks=st.booleans(),
)


@given(wishes)
def test_every_wish_is_legal_r4_that_the_engine_can_decide_and_reads_back_as_it_was(
    wish: Wish,
) -> None:
    said = paper.resource(wish, PATIENT, "hospital-a", "qc/implied", NOW)
    Consent.model_validate(said)
    directive = reading.directive(said, ZONE)
    assert directive.computable
    assert directive.dated == NOW
    assert directive.by_relatives_alone == (wish.performer is Performer.RELATIVE)
    shown = paper.summary(directive, said)
    assert shown.whole
    assert (shown.risks, shown.signed) == (wish.risks, wish.source is Source.SIGNED)
    root, *inner = shown.lines
    assert (root.effect, root.whom) == (wish.effect, wish.whom)
    if wish.effect is Effect.PERMIT:
        assert root.level == wish.level
        assert [line.whom for line in inner if line.whom] == ([wish.save] if wish.save else [])
        assert [line.labels for line in inner if line.labels] == (
            [wish.labels] if wish.labels else []
        )
    else:
        assert root.level == (None if wish.level == 1 else wish.level)
        assert root.labels == wish.labels


def test_sharing_nothing_is_the_smallest_restriction() -> None:
    said = paper.resource(paper.NOTHING, PATIENT, None, "qc/implied", NOW)
    assert said["provision"] == {"type": "deny"}
    Consent.model_validate(said)


def test_withdrawing_changes_the_status_and_nothing_else() -> None:
    said = paper.resource(paper.NOTHING, PATIENT, None, "qc/implied", NOW)
    assert paper.withdrawn(said) == {**said, "status": "inactive"}


ENTERED = Entered(
    effect="permit",
    whom=("Organization/clinic-a",),
    performer="patient",
    source="said",
    language="fr",
    risks="yes",
)


@pytest.mark.parametrize(
    ("changed", "faults"),
    [
        ({}, {}),
        ({"effect": "maybe"}, {"effect": "effect"}),
        ({"whom": ()}, {"whom": "whom"}),
        ({"effect": "deny", "whom": ()}, {}),
        ({"whom": ("Organization/elsewhere",)}, {"whom": "unknown"}),
        ({"save": ("Organization/elsewhere",)}, {"whom": "unknown"}),
        ({"level": "4"}, {"level": "unknown"}),
        ({"labels": ("SECRET",)}, {"labels": "unknown"}),
        ({"start": "2 March"}, {"start": "date"}),
        ({"end": "2026-03-01"}, {"end": "past"}),
        ({"end": "2026-03-02"}, {}),
        ({"start": "2027-01-02", "end": "2027-01-01"}, {"end": "past"}),
        ({"performer": ""}, {"performer": "performer"}),
        ({"performer": "relative"}, {"relative": "relative"}),
        ({"source": "signed"}, {"reference": "reference"}),
        ({"source": "signed", "reference": "x" * 201}, {"reference": "long"}),
        ({"language": "de"}, {"language": "language"}),
        ({"risks": ""}, {"risks": "risks"}),
    ],
)
def test_what_is_wrong_is_said_of_its_field(
    changed: dict[str, object], faults: dict[str, str]
) -> None:
    said = replace(ENTERED, **changed)  # type: ignore[arg-type]  # a builder passes what is asked
    wish, found = paper.read(said, CHOICES, None)
    assert found == faults
    assert (wish is None) == bool(faults)


def test_the_fourteenth_birthday_is_the_day_a_person_decides_alone() -> None:
    """CS-16, CS-76."""
    assert not paper.is_fourteen(date(2012, 3, 3), TODAY)
    assert paper.is_fourteen(date(2012, 3, 2), TODAY)
    assert not paper.is_fourteen(date(2012, 2, 29), date(2026, 2, 28))
    assert paper.is_fourteen(date(2012, 2, 29), date(2026, 3, 1))


def test_a_reason_of_blanks_is_none() -> None:
    assert paper.is_reason("x" * 20)
    assert not paper.is_reason("x" * 19 + " " * 20)
    assert not paper.is_reason("x" * 4001)

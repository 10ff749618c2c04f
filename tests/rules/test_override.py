"""Who may break the glass, with what, and what opens it (CS-55)."""

import ast
from dataclasses import replace
from datetime import timedelta
from importlib.resources import files
from pathlib import Path

import pytest

from services.notify import override
from services.notify.consent import (
    ACT_REASON,
    Actor,
    Code,
    Default,
    Directive,
    Effect,
    Item,
    Permit,
    Policy,
    Reference,
    Request,
    Rule,
)
from services.notify.consent import PARTICIPATION as ROLES
from services.notify.override import By, Entered, Ground, Verdict
from tests.services.notify_builders import NOW

SYSTEM = "https://health-card.example.ca"
COMPLETE = Entered(SYSTEM, "TEST0001", Ground.LIFE, "yes", "Unconscious, nobody to ask here.")
DOCTOR = "Practitioner/physician"


def wrong(said: Entered, minutes: float = 1) -> set[str]:
    then = NOW - timedelta(minutes=minutes)
    return set(override.faults(said, [SYSTEM], then, NOW))


def test_a_complete_form_of_who_signed_in_a_moment_ago_has_no_fault() -> None:
    assert wrong(COMPLETE) == set()
    assert wrong(COMPLETE, minutes=5) == set()


@pytest.mark.parametrize(
    ("changed", "field"),
    [
        ({"system": "https://other.example.org"}, "system"),
        ({"number": " "}, "number"),
        ({"ground": "curiosity"}, "ground"),
        ({"ground": ""}, "ground"),
        ({"cannot_ask": ""}, "cannot_ask"),
        ({"cannot_ask": "no"}, "cannot_ask"),
        ({"why": "x" * 19}, "why"),
        ({"why": "x" + " " * 40}, "why"),
        ({"why": "x" * 4001}, "why"),
    ],
)
def test_each_part_is_needed(changed: dict[str, str], field: str) -> None:
    assert wrong(replace(COMPLETE, **changed)) == {field}


def test_twenty_characters_are_enough() -> None:
    assert wrong(replace(COMPLETE, why="x" * 20)) == set()


def test_who_signed_in_more_than_five_minutes_ago_or_nobody_knows_when_signs_in_again() -> None:
    assert wrong(COMPLETE, minutes=5.01) == {"again"}
    assert set(override.faults(COMPLETE, [SYSTEM], None, NOW)) == {"again"}


# What opens it


def asked(**more: object) -> Request:
    items = (
        Item("a", "Encounter", custodian="Organization/hospital-a"),
        Item("b", "Encounter", custodian="Organization/hospital-b"),
    )
    plain = Request(
        at=NOW,
        patient="Patient/p",
        recipient="Organization/clinic-a",
        readers=(DOCTOR,),
        items=items,
        circle=True,
    )
    return replace(plain, **more)  # type: ignore[arg-type]  # a builder passes what its caller says


def rule(effect: Effect, purpose: str | None = None, who: str | None = None) -> Rule:
    actor = Actor(Code(ROLES, "IRCP"), Reference(who))
    return Rule(
        effect,
        purposes=() if purpose is None else (Code(ACT_REASON, purpose),),
        actors=() if who is None else (actor,),
    )


def on_file(*rules: Rule) -> list[Directive]:
    return [
        Directive(
            id=f"c{n}",
            version=1,
            active=True,
            privacy=True,
            patient=Reference("Patient/p"),
            dated=NOW,
            base=None,
            root=one,
        )
        for n, one in enumerate(rules)
    ]


def opened(
    *rules: Rule, overriding: frozenset[str] = frozenset(), **more: object
) -> override.Judged:
    return override.judge(on_file(*rules), asked(**more), Policy(Default.IMPLIED), overriding)


def test_silence_opens_nothing_whatever_the_default_and_the_circle() -> None:
    assert opened().by is None


def test_a_consent_that_permits_this_reader_in_an_emergency_opens_it() -> None:
    judged = opened(rule(Effect.PERMIT, "BTG", DOCTOR))
    assert judged.by is By.CONSENT
    assert isinstance(judged.decision, Permit)
    assert judged.decision.released == {"a", "b"}
    assert opened(rule(Effect.PERMIT, "TREAT")).by is By.CONSENT  # care, emergencies among it


@pytest.mark.parametrize(
    "one",
    [
        rule(Effect.PERMIT, "COC"),  # coordination of care is no emergency
        rule(Effect.PERMIT, "BTG", "Practitioner/somebody-else"),
        rule(Effect.DENY),
        rule(Effect.DENY, "TREAT"),
    ],
)
def test_another_purpose_another_reader_and_a_restriction_do_not(one: Rule) -> None:
    assert opened(one).by is None


def test_a_hospitals_policy_opens_what_that_hospital_holds_and_no_more() -> None:
    judged = opened(rule(Effect.DENY), overriding=frozenset({"Organization/hospital-a"}))
    assert judged.by is By.POLICY
    assert isinstance(judged.decision, Permit)
    assert judged.decision.released == {"a"}
    assert opened(rule(Effect.DENY), overriding=frozenset({"Organization/hospital-c"})).by is None


def test_the_policy_opens_it_also_to_who_is_outside_the_circle() -> None:
    judged = opened(overriding=frozenset({"Organization/hospital-b"}), circle=False)
    assert judged.by is By.POLICY


def test_it_is_open_until_its_time_is_over_or_it_was_found_not_justified() -> None:
    ends = NOW + timedelta(minutes=60)
    assert override.is_open(ends, None, NOW)
    assert override.is_open(ends, Verdict.JUSTIFIED, NOW)
    assert not override.is_open(ends, None, ends)
    assert not override.is_open(None, None, NOW)
    assert not override.is_open(ends, Verdict.NOT_JUSTIFIED, NOW)
    assert not override.is_open(ends, Verdict.INCIDENT, NOW)


def importers(module: str) -> set[str]:
    """Modules of notify that import `module`, a module beside them."""
    folder = Path(str(files("services.notify")))
    found = set()
    for file in folder.rglob("*.py"):
        for node in ast.walk(ast.parse(file.read_text())):
            if isinstance(node, ast.ImportFrom) and (
                (node.module == "services.notify" and module in {a.name for a in node.names})
                or node.module == f"services.notify.{module}"
            ):
                found.add(file.relative_to(folder).as_posix())
    return found


def test_no_delivery_no_retry_no_search_and_no_machine_comes_near_the_glass() -> None:
    """Its story is told to the desk of the pages alone; `__main__` only has drafts forgotten."""
    assert importers("breaking") == {"web/office.py", "__main__.py"}
    assert importers("override") == {"breaking.py", "web/office.py", "web/consenting.py",
                                     "web/consent_views.py"}  # fmt: skip


def test_a_request_is_about_coordination_of_care_unless_the_glass_is_broken() -> None:
    assert asked().purpose == "COC"
    folder = Path(str(files("services.notify")))
    named = {f.name for f in folder.glob("*.py") if '"BTG"' in f.read_text()}
    assert named == {"consent.py", "override.py"}  # the code table, and the rule

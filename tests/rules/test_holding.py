"""What only a person can settle: one work item a patient and reason (CS-36, CS-53, CS-57)."""

from uuid import UUID, uuid4

from services.notify import holding
from services.notify.consent import Default, Directive, Effect, Policy, Reference, Request, Rule
from services.notify.consent import Item as Visit
from services.notify.consent import decide as decided
from services.notify.holding import Filed, Judgement, Open, Why
from tests.services.notify_builders import NOW

POLICY = Policy(Default.IMPLIED)
PATIENT = "Patient/p"


def directive(id_: str = "c1", *, computable: bool = True, active: bool = True) -> Directive:
    return Directive(
        id=id_,
        version=1,
        active=active,
        privacy=True,
        patient=Reference(PATIENT),
        dated=NOW,
        base=None,
        root=Rule(Effect.PERMIT),
        computable=computable,
    )


def a_hold() -> holding.Judgement:
    """Nobody knows who reads, and one of them may be denied."""
    asked = Request(
        at=NOW,
        patient=PATIENT,
        recipient="Organization/clinic-a",
        readers=(),
        items=(Visit("v1", "Encounter"),),
        circle=True,
    )
    decision = decided([directive(computable=False)], asked, POLICY)
    return Judgement(decision, keeps_back=True)


def reasons(*filed: Filed) -> list[Why]:
    return [one.why for one in holding.wanted([], filed)]


def test_a_consent_that_cannot_be_decided_is_a_persons_to_look_at_before_anything_is_on_hold() -> (
    None
):
    assert reasons(Filed(directive())) == []
    assert reasons(Filed(directive(computable=False))) == [Why.NOT_COMPUTABLE]
    assert reasons(Filed(directive(), disputed=True)) == [Why.DISPUTED]
    assert reasons(Filed(directive(computable=False), refused=True)) == [Why.REFUSED]


def test_one_that_is_withdrawn_is_nobodys() -> None:
    assert reasons(Filed(directive(computable=False, active=False))) == []
    assert reasons(Filed(directive(active=False), disputed=True)) == []


def test_two_consents_of_one_reason_are_one_item_that_names_both() -> None:
    filed = [Filed(directive(f"c{n}", computable=False)) for n in (1, 2)]
    (one,) = holding.wanted([], filed)
    assert one.basis == {"Consent/c1/_history/1", "Consent/c2/_history/1"}


def test_what_the_engine_cannot_compute_is_said_once() -> None:
    """By the Consent that is on file, not again by each decision that it holds."""
    (one,) = holding.wanted([a_hold(), a_hold()], [Filed(directive(computable=False))])
    assert one.why is Why.NOT_COMPUTABLE


# What becomes of the items that are there

ONE, OTHER = uuid4(), uuid4()
SITES = frozenset({"hospital-a"})


def wish(why: Why = Why.CONFLICT, *basis: str) -> holding.Wanted:
    return holding.Wanted(why, frozenset(basis))


def there(why: Why = Why.CONFLICT, patient: UUID | None = ONE, about: UUID | None = None) -> Open:
    return Open(uuid4(), patient, about, why, SITES, frozenset())


def test_an_item_opens_once_stays_and_closes() -> None:
    opened = holding.settle(ONE, [wish()], [], SITES)
    assert (len(opened.opens), opened.changes, opened.closes) == (1, (), ())
    known = there()
    assert holding.settle(ONE, [wish()], [known], SITES) == holding.Change((), (), ())
    assert holding.settle(ONE, [], [known], SITES).closes == (known.id,)


def test_an_item_that_rests_on_other_consents_or_sites_is_changed_not_made_anew() -> None:
    known = there()
    changed = holding.settle(ONE, [wish(Why.CONFLICT, "Consent/c1/_history/2")], [known], SITES)
    assert (changed.opens, [id_ for id_, _ in changed.changes], changed.closes) == (
        (),
        [known.id],
        (),
    )
    moved = holding.settle(ONE, [wish()], [known], frozenset({"hospital-b"}))
    assert [id_ for id_, _ in moved.changes] == [known.id]


def test_items_of_a_retired_key_and_of_nobody_known_become_the_surviving_patients() -> None:
    retired, nobodys = there(patient=OTHER), there(Why.REFUSED, None, uuid4())
    found = holding.settle(ONE, [wish(), wish(Why.REFUSED)], [retired, nobodys], SITES)
    assert {one.why for one in found.opens} == {Why.CONFLICT, Why.REFUSED}
    assert set(found.closes) == {retired.id, nobodys.id}

"""What is known of a person, over all keys and as of any knowledge: CT-01, CT-02, CT-15, CT-70."""

from dataclasses import replace
from datetime import date, timedelta

from services.screening.ledger import current, gather, in_force
from tests.histories import P, Q, at, ed_visit, history, key, link, person

VISIT = ed_visit("a", "2026-06-01 10:00-04")
LATER = replace(VISIT, version=2, site="site-b", recorded=at("2026-06-02 10:00-04"))


def test_ct_15_the_highest_version_speaks_and_remembers_when_the_first_was_recorded() -> None:
    for versions in ([VISIT, LATER], [LATER, VISIT], [LATER, VISIT, LATER]):
        (known,) = current(versions)
        assert (known.version, known.site, known.first_recorded) == (2, "site-b", VISIT.recorded)


def test_ct_70_what_was_recorded_later_is_not_known_and_what_was_superseded_is() -> None:
    gone = link(Q, P, "2026-06-05 10:00-04")
    back = link(Q, P, "2026-06-08 10:00-04", version=2, active=False)
    born = person(version=2, birth_date=date(1980, 1, 1), recorded=at("2026-06-03 10:00-04"))
    everything = history(VISIT, LATER, who=[person(), born], links=[gone, back])
    before = everything.at(at("2026-06-02 09:59:59-04"))
    assert [f.version for f in before.facts] == [1]
    assert [p.version for p in before.persons] == [1]
    assert in_force(before.links) == {}
    between = everything.at(at("2026-06-05 10:00-04"))
    assert [f.version for f in between.facts] == [2]
    assert in_force(between.links) == {Q: P}
    assert in_force(everything.at(at("2026-06-08 10:00-04")).links) == {}
    assert len(everything.instants()) == 6


def test_ct_01_a_merge_gathers_and_a_fact_of_an_unknown_person_waits() -> None:
    r, unknown = key("TEST-r"), key("TEST-unknown")
    facts = [
        replace(VISIT, encounter=key(name), patient=owner)
        for name, owner in (("p", P), ("q", Q), ("r", r), ("u", unknown))
    ]
    into = {Q: P, unknown: P}
    persons = [person(key=one) for one in (P, Q, r)]
    found = gather([P, Q, r, unknown], into, facts, persons)
    assert set(found) == {P, r}
    assert {f.patient for f in found[P].facts} == {P, Q}


def test_after_a_merge_the_survivors_birth_date_counts_and_any_death() -> None:
    died = at("2026-08-01 12:00-04")
    known = [
        person(birth_date=None),
        person(key=Q, birth_date=date(1990, 1, 1), death=died + timedelta(days=1)),
        person(key=key("TEST-r"), birth_date=date(1980, 1, 1), death=died),
    ]
    into = {Q: P, key("TEST-r"): Q}
    assert gather([P], into, [], known)[P].birth_date == date(1980, 1, 1)
    assert gather([P], into, [], known)[P].death == died
    own = [person(birth_date=date(1995, 1, 1)), *known[1:]]
    assert gather([P], into, [], own)[P].birth_date == date(1995, 1, 1)

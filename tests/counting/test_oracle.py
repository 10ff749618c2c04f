"""PT-04, ORC-03: random histories, and the region's people, by the rules and by the oracle.

Two hundred thousand histories: `make oracle`; all people of the region: `make oracle PEOPLE=2000`.
"""

from datetime import timedelta

from tests.counting.compare import compare_histories, differences, report, smallest
from tests.counting.lives import Life, a_life
from tests.counting.region import Comparison, lanes


def test_pt_04_random_histories_are_counted_as_the_oracle_counts_them() -> None:
    count, differing = compare_histories(range(400))
    assert count == 400
    assert not differing, report(differing[0])


def test_orc_03_the_people_of_the_region_are_counted_as_the_oracle_counts_them() -> None:
    """Live, replayed and shuffled, each at ten instants; every person with four encounters."""
    compare = Comparison(instants=10)
    visits = [{m.encounter.visit for m in lane if m.encounter} for lane in lanes()]
    busy = [n for n, numbers in enumerate(visits) if len(numbers) > 3]
    assert len(busy) > 20
    for number in [*busy[:40], *range(60)]:
        assert not compare.differences(number)


def test_a_number_makes_the_same_history_again() -> None:
    assert [str(a_life(n)) for n in range(20)] == [str(a_life(n)) for n in range(20)]


def test_orc_04_what_differs_is_cut_down_to_what_matters() -> None:
    """Were a history to differ by one late encounter, that encounter alone would be left."""

    def differs(life: Life) -> bool:
        return any(f.recorded - f.event_time > timedelta(days=100) for f in life.history.facts)

    number = next(n for n in range(500) if differs(a_life(n)))
    least = smallest(a_life(number), differs)
    assert len(least.history.facts) == 1
    assert (least.rule, least.history.links) == ("", [])
    assert not differences(least)

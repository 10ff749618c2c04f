"""The demo's cast: scripted people, the same in every run and in the documentation's pictures.

Everything is told from the first live instant. What the product cannot show yet of a story is
named in docs/simulator.md.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, date, datetime, time, timedelta

from services.simulator.feed import Message, Mishap, of_person
from services.simulator.life import Care, Happening, Leaving
from services.simulator.profiles import Profile
from services.simulator.region import (
    GENERAL,
    ZONE,
    Membership,
    Person,
    Restriction,
    Wish,
)

FIRST = 90_000_000
"""D-01 has the number after it."""
GOES_LIVE = time(8)
"""Local time of the first live day at which fast time begins."""


@dataclass(frozen=True, slots=True)
class Part:
    """One scripted person: who, on whose panel, what befalls them and what goes wrong."""

    person: Person
    panels: tuple[Membership, ...]
    happenings: tuple[Happening, ...]
    mishaps: dict[int, Mishap] = field(default_factory=dict)
    wishes: tuple[Wish, ...] = ()


def live(profile: Profile) -> datetime:
    """The first live instant, in UTC: the morning after the last day of history."""
    day = profile.start + timedelta(days=profile.days)
    return datetime.combine(day, GOES_LIVE, ZONE).astimezone(UTC)


def cast(profile: Profile) -> tuple[Part, ...]:
    """The scripted people; none if the profile has no cast."""
    if not profile.cast:
        return ()
    at = live(profile)
    return tuple(
        tell(profile, at)
        for tell in (
            _d01, _d02, _d03, _d04, _d05, _d06, _d07, _d08, _d09, _d10, _d11, _d12, _d13,
            _d14, _d15,
        )
    )  # fmt: skip


def messages(profile: Profile) -> list[Message]:
    """What is sent of the cast, without noise but its own."""
    return [
        message
        for part in cast(profile)
        for message in of_person(
            profile, part.person, part.happenings, profile.days, mishaps=part.mishaps
        )
    ]


def _d01(profile: Profile, at: datetime) -> Part:
    """The fourth ED visit comes in the first live minute: alert, explanation."""
    who = _person(1, "Passereau", "Colombe", date(1961, 5, 14), female=True)
    visits = _visits(
        who, at, days=(-301, -188, -64, 0.25), codes=("I50.0", "R07.4", "J18.9", "I50.0")
    )
    return Part(who, _on(profile, ("clinic-a", "nurse-a")), visits)  # fmt: skip


def _d02(profile: Profile, at: datetime) -> Part:
    """ED, admitted, transferred after 3 h, home: nine messages, one card."""
    who = _person(2, "Viaduc", "Martin", date(1949, 11, 2), female=False)
    before = _visits(who, at, days=(-240, -150, -33), codes=("S72.0", "N39.0", "R55"))
    arrived = _minute(at + timedelta(hours=27))
    admitted, left = arrived + timedelta(hours=9), arrived + timedelta(hours=30)
    back = left + timedelta(hours=3)
    ed = _visit(who, 4, 0, arrived, admitted, code="S72.0", leaving=Leaving.ADMITTED)
    first = Happening(
        who.number, 5, Care.STAY, 0, admitted, left,
        leaving=Leaving.TRANSFERRED, after=4, transfer_out=True, code="S72.0",
    )  # fmt: skip
    second = Happening(
        who.number,
        6,
        Care.STAY,
        1,
        back,
        back + timedelta(hours=22),
        transfer_in=True,
        code="S72.0",
    )
    at_once, late = Mishap(coded_late=False), Mishap(coded_late=True)
    return Part(
        who,
        _on(profile, ("clinic-a", "nurse-a")),
        (*before, ed, first, second),
        {4: at_once, 5: at_once, 6: late},
    )


def _d03(profile: Profile, at: datetime) -> Part:
    """The third visit: watch, no card."""
    who = _person(3, "Ponceau", "Lise", date(1972, 2, 20), female=True)
    visits = _visits(who, at, days=(-200, -90, 0.4), codes=("M54.5", "G43.9", "M54.5"), site=1)
    return Part(who, _on(profile, ("clinic-b", "nurse-b")), visits)


def _d04(profile: Profile, at: datetime) -> Part:
    """The fourth visit, then entered in error: the card is retracted."""
    who = _person(4, "Gué", "Basile", date(1988, 8, 8), female=False)
    visits = _visits(who, at, days=(-310, -170, -45, 0.6), codes=("K52.9", "R10.4", "R51", "R10.4"))
    wrong = Mishap(void=_minute(at + timedelta(days=1.1)))
    return Part(who, _on(profile, ("clinic-a", "nurse-a")), visits, {4: wrong})


def _d05(profile: Profile, at: datetime) -> Part:
    """Records at two hospitals merged, then unmerged: flagged for two days (CR-34)."""
    who = _person(5, "Arche", "Delphine", date(1955, 12, 1), female=True)
    here = _visits(who, at, days=(-280, -130, -55), codes=("J44.1", "J44.1", "J18.9"))
    start = _minute(at - timedelta(days=6))
    there = _visit(who, 4, 1, start, start + timedelta(hours=5), code="J44.1")
    merged, undone = _minute(at + timedelta(days=1.5)), _minute(at + timedelta(days=3.5))
    second = Mishap(second_record=(merged, undone))
    return Part(who, _on(profile, ("clinic-b", "nurse-b")), (*here, there), {4: second})


def _d06(profile: Profile, at: datetime) -> Part:
    """The oldest visit leaves the window: the count falls, the flag is held."""
    who = _person(6, "Jetée", "Alphonse", date(1940, 4, 30), female=False)
    visits = _visits(
        who, at, days=(-363, -260, -190, -100), codes=("I50.0", "I50.0", "R55", "I50.0"), site=1
    )
    return Part(who, _on(profile, ("clinic-b", "nurse-b")), visits)


def _d07(profile: Profile, at: datetime) -> Part:
    """The third hospital stay: the other clause."""
    who = _person(7, "Travée", "Rosalie", date(1951, 9, 9), female=True)
    stays = []
    for number, (day, length) in enumerate(((-250, 5.0), (-120, 4.0), (0.8, 6.0)), start=1):
        start = _minute(at + timedelta(days=day))
        end = start + timedelta(days=length)
        stays.append(Happening(who.number, number, Care.STAY, 0, start, end, code="J44.1"))
    return Part(who, _on(profile, ("clinic-c", "nurse-c")), tuple(stays))


def _d08(profile: Profile, at: datetime) -> Part:
    """Denies the clinic's only nurse: nothing is sent, and that can be proved."""
    who = _person(8, "Tablier", "Honoré", date(1966, 3, 17), female=False)
    visits = _visits(who, at, days=(-220, -140, -70, 0.9), codes=("R07.4", "S61.0", "R51", "R07.4"))
    said = Wish(Restriction.NAMED, _minute(at - timedelta(days=40)))
    return Part(who, _on(profile, ("clinic-b", "nurse-b")), visits, wishes=(said,))


def _d09(profile: Profile, at: datetime) -> Part:
    """A sensitive mental-health visit: counted, told without its service or reason."""
    who = _person(9, "Garde-Corps", "Violette", date(1990, 6, 21), female=True)
    visits = _visits(
        who, at, days=(-270, -180, -80, 1.2), codes=("F41.1", "R07.4", "F32.1", "F32.1")
    )
    return Part(who, _on(profile, ("clinic-a", "nurse-a")), visits)


def _d10(profile: Profile, at: datetime) -> Part:
    """On two panels: both clinics are told."""
    who = _person(10, "Pilier", "Gaston", date(1958, 1, 25), female=False)
    visits = _visits(who, at, days=(-230, -160, -50, 1.4), codes=("M54.5", "R10.4", "M54.5", "R51"))
    both = _on(profile, ("clinic-a", "nurse-a"), ("clinic-b", "nurse-b"))
    return Part(who, both, visits)


def _d11(profile: Profile, at: datetime) -> Part:
    """On no panel: the "no clinic" list of the hospital's case manager."""
    who = _person(11, "Culée", "Inès", date(1983, 10, 10), female=True)
    visits = _visits(
        who, at, days=(-210, -110, -30, 1.6), codes=("K52.9", "L03.1", "N39.0", "N39.0")
    )
    return Part(who, _on(profile), visits)  # fmt: skip


def _d12(profile: Profile, at: datetime) -> Part:
    """A planned return and a 90-minute re-registration: not counted, and why."""
    who = _person(12, "Haubans", "Sylvain", date(1977, 7, 7), female=False)
    first, second, third, fourth = _visits(
        who, at, days=(-260, -150, -75, 1.8), codes=("L03.1", "S61.0", "R07.4", "R07.4")
    )
    start = first.start + timedelta(days=2)
    planned = _visit(who, 5, 0, start, start + timedelta(minutes=40), code="L03.1", planned=True)
    again = third.end + timedelta(minutes=90)
    returned = _visit(who, 6, 0, again, again + timedelta(hours=2), code="R07.4")
    visits = (first, planned, second, third, returned, fourth)
    return Part(who, _on(profile, ("clinic-a", "nurse-a")), visits)


def _d13(profile: Profile, at: datetime) -> Part:
    """A frequent user whose card was taken on is back in the ED: the "now" card."""
    who = _person(13, "Quai", "Mathilde", date(1963, 3, 3), female=True)
    visits = _visits(
        who,
        at,
        days=(-230, -120, -60, -20, 2.1),
        codes=("R07.4", "J44.1", "R07.4", "J44.1", "R07.4"),
    )
    return Part(who, _on(profile, ("clinic-c", "nurse-c")), visits)


def _d14(profile: Profile, at: datetime) -> Part:
    """A fourth visit whose card nobody answers: escalation. The demo signs in no nurse-d."""
    who = _person(14, "Parapet", "Olivier", date(1974, 11, 11), female=False)
    visits = _visits(
        who, at, days=(-205, -115, -65, 0.35), codes=("M54.5", "S61.0", "M54.5", "M54.5")
    )
    return Part(who, _on(profile, ("clinic-a", "nurse-d")), visits)


def _d15(profile: Profile, at: datetime) -> Part:
    """Unidentified, identified the next day: told then (CR-35)."""
    who = _person(15, "Belvédère", "Jeanne", date(1969, 12, 24), female=True)
    visits = _visits(who, at, days=(-190, -100, -60, 0.5), codes=("R55", "S93.4", "R55", "R55"))
    known = Mishap(unidentified=_minute(at + timedelta(days=1.3)))
    return Part(who, _on(profile, ("clinic-b", "nurse-b")), visits, {4: known})


def _person(number: int, family: str, given: str, born: date, *, female: bool) -> Person:
    return Person(
        number=FIRST + number,
        segment=GENERAL,
        base=1.0,
        born=born,
        female=female,
        family=family,
        given=given,
        language="en" if number in (3, 5, 6, 8, 15) else "fr",
        tags=frozenset(),
        card=f"TEST{FIRST + number:08d}",
        home=0,
        scripted=f"D-{number:02d}",
    )


def _on(profile: Profile, *panels: tuple[str, str]) -> tuple[Membership, ...]:
    joined = profile.start - timedelta(days=400)
    return tuple(Membership(clinic, nurse, joined) for clinic, nurse in panels)


def _visits(
    who: Person, at: datetime, *, days: Sequence[float], codes: Sequence[str], site: int = 0
) -> tuple[Happening, ...]:
    """ED visits that begin `days` after `at`, each about four hours long."""
    found = []
    for number, (day, code) in enumerate(zip(days, codes, strict=True), start=1):
        start = _minute(at + timedelta(days=day))
        end = start + timedelta(hours=3, minutes=20 + 11 * number)
        found.append(_visit(who, number, site, start, end, code=code))
    return tuple(found)


def _visit(
    who: Person,
    number: int,
    site: int,
    start: datetime,
    end: datetime,
    *,
    code: str,
    leaving: Leaving = Leaving.HOME,
    planned: bool = False,
) -> Happening:
    label = "MH" if code.startswith("F") else None
    visit = Happening(who.number, number, Care.ED, site, start, end, leaving, code=code)
    return visit._replace(triaged=start + timedelta(minutes=14), planned=planned, label=label)


def _minute(at: datetime) -> datetime:
    return at.replace(second=0, microsecond=0)

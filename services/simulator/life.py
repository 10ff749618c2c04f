"""What befalls people: visits and stays as they really were, whoever gets to hear of them.

One random stream a person and purpose, drawn in time order: a longer time, more people or a
noisier feed leaves what was drawn as it was (SIM-02, SIM-05). Times are whole seconds before
anything depends on them (SIM-04). Figures: simulator.md section 1; what has no source there
is assumed.
"""

import math
from collections.abc import Iterable, Iterator, Sequence
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum
from functools import cache
from typing import Any, NamedTuple

from services.simulator.draws import Draws, running
from services.simulator.profiles import Profile
from services.simulator.region import (
    CRISIS_DAYS,
    CRISIS_FACTOR,
    YEAR,
    ZONE,
    Person,
    Restriction,
    Tag,
    Wish,
    calm_rate,
    crisis_hazard,
    crisis_share,
    memberships,
    wishes,
)

HOURS = (
    0.0166, 0.0134, 0.0115, 0.0102, 0.0091, 0.0102, 0.0141, 0.0256, 0.0447, 0.0626, 0.0703, 0.0716,
    0.0684, 0.0658, 0.0645, 0.0639, 0.0633, 0.0620, 0.0594, 0.0549, 0.0473, 0.0383, 0.0300, 0.0224,
)  # fmt: skip
"""Weights of local arrival hours at the emergency department, from midnight."""
WEEKDAYS = (0.160, 0.146, 0.141, 0.139, 0.139, 0.137, 0.138)
_HOUR_SUMS = running(HOURS)
_BUSIEST = 7 * max(WEEKDAYS)
_SEASON = 0.08
_PEAK = _BUSIEST * (1 + _SEASON)
WOMEN_OF_CHILDBEARING_AGE = 0.176
"""Their share of the population of region.py."""
MENTAL_HEALTH_SHARE = 0.30
"""Share of ED visits made by people with that tag; the rate of coded ones follows from it."""
NEWBORNS = 50_000_000
"""Numbers above belong to children of the people below."""
FREQUENT = 4
"""ED visits in 365 days from which somebody is told of as a frequent user."""
ENROLLED_AFTER = timedelta(days=14)
"""From the visit that makes a frequent user to consent and a first plan (assumed)."""
HESITATION = timedelta(minutes=1)
PROGRAMME = timedelta(days=183)
"""How long a person is enrolled."""
_WINDOW = timedelta(days=365)
_LONG_AGO = datetime.min.replace(tzinfo=UTC)


class Care(StrEnum):
    """Kind of care, as v3-ActCode."""

    ED = "EMER"
    STAY = "IMP"
    OBSERVATION = "OBSENC"
    DAY_SURGERY = "SS"
    NONACUTE = "NONAC"
    WALK_IN = "AMB"
    VIRTUAL = "VR"


class Leaving(StrEnum):
    HOME = "home"
    ADMITTED = "admitted"
    TRANSFERRED = "transferred"
    UNSEEN = "left-unseen"
    AGAINST_ADVICE = "against-advice"
    REDIRECTED = "redirected"
    CANCELLED = "cancelled"
    REVERTED = "reverted"
    """An admission taken back: the patient was in the ED all the time (CR-50)."""
    NONACUTE = "nonacute"
    DIED = "died"
    DEAD_ON_ARRIVAL = "dead-on-arrival"


DEATHS = (Leaving.DIED, Leaving.DEAD_ON_ARRIVAL)


class Service(StrEnum):
    OBSTETRICS = "obstetrics"
    NEWBORN = "newborn"
    DIALYSIS = "dialysis"
    CHEMOTHERAPY = "chemotherapy"
    PALLIATIVE = "palliative"
    PSYCHIATRY = "psychiatry"
    DAY_SURGERY = "day-surgery"
    ORGAN_DONATION = "organ-donation"


class Happening(NamedTuple):
    """One piece of care a person had, as it really was. Instants are UTC, whole seconds."""

    person: int
    number: int
    """Of this person's, in the order they were drawn."""
    care: Care
    site: int
    start: datetime
    end: datetime
    leaving: Leaving = Leaving.HOME
    triaged: datetime | None = None
    service: Service | None = None
    planned: bool = False
    after: int | None = None
    """Number of the one this continues in the same building, without a gap."""
    transfer_in: bool = False
    transfer_out: bool = False
    code: str = "R69"
    """ICD-10."""
    label: str | None = None
    """Sensitivity, v3-ActCode."""
    away: tuple[datetime, datetime] | None = None
    """A leave of absence (CR-45)."""


def life(profile: Profile, person: Person, days: int) -> list[Happening]:
    """What befalls `person` in the first `days` days, by time of drawing; newborns included."""
    return list(_Life(profile, person).until(days))


@cache
def _midnight(day: date) -> tuple[datetime, bool]:
    """Local midnight in UTC, and whether the clock stays as it is until the next."""
    here, following = (
        datetime.combine(each, time(), ZONE).astimezone(UTC)
        for each in (day, day + timedelta(days=1))
    )
    return here, following - here == timedelta(days=1)


def instant(profile: Profile, day: int, second: int, *, repeated: bool = False) -> datetime:
    """The local `second` of `day` (0 = profile.start) in UTC.

    A second that the spring skips is an hour later on the wall; one that the autumn has twice
    is the later one if `repeated`.
    """
    on = profile.start + timedelta(days=day)
    midnight, usual = _midnight(on)
    if usual:
        return midnight + timedelta(seconds=second)
    local = datetime.combine(on, time()) + timedelta(seconds=second)
    return local.replace(tzinfo=ZONE, fold=int(repeated)).astimezone(UTC)


def arrivals(profile: Profile, person: Person, days: int) -> Iterator[tuple[datetime, bool]]:
    """Arrivals at the emergency department if nothing were in the way; whether respiratory.

    A Poisson process whose rate jumps with crises, drawn by its cumulative rate, thinned by
    weekday and season, then placed in the day by the hour weights.
    """
    draws = Draws(profile.seed, person.number, "ed")
    breathless = 0.5 if Tag.LUNG_OR_HEART in person.tags else 0.15
    calm = calm_rate(person.segment, profile.shape) * person.base * profile.raised * _PEAK / YEAR
    at, need = 0.0, draws.exponential()
    for until, in_crisis in _crises(profile, person):
        rate = calm * (CRISIS_FACTOR if in_crisis else 1.0)
        end = min(until, days)
        while at + need / rate < end:
            at += need / rate
            day = int(at)
            respiratory = draws.unit() < breathless
            kept = draws.unit() * _PEAK < _weight(profile.start + timedelta(days=day), respiratory)
            second = draws.weighted(_HOUR_SUMS) * 3600 + draws.below(3600)
            repeated = draws.unit() < 0.5
            need = draws.exponential()
            if kept:
                yield instant(profile, day, second, repeated=repeated), respiratory
        if until >= days:
            return
        need -= (until - at) * rate
        at = until


_WEEKDAY_WEIGHTS = tuple(7 * weight for weight in WEEKDAYS)


def _weight(day: date, respiratory: bool) -> float:
    weight = _WEEKDAY_WEIGHTS[day.weekday()]
    return weight * _season(day) if respiratory else weight


@cache
def _season(day: date) -> float:
    return 1 + _SEASON * math.cos(2 * math.pi * (day.timetuple().tm_yday - 20) / 365)


def _crises(profile: Profile, person: Person) -> Iterator[tuple[float, bool]]:
    """Stretches as (the day they end, whether in crisis), for ever; the start is stationary."""
    draws = Draws(profile.seed, person.number, "crisis")
    calm_days = YEAR / crisis_hazard(person.segment, person.base, profile.shape)
    in_crisis = draws.chance(crisis_share(person.segment, person.base, profile.shape))
    at = 0.0
    while True:
        at += draws.exponential() * (CRISIS_DAYS if in_crisis else calm_days)
        yield at, in_crisis
        in_crisis = not in_crisis


class _Enrolment:
    """Who is in the programme, seen from visit to visit (simulator.md section 3, assumed).

    A frequent user of age on a panel who restricts nothing and whose nurse answers joins it
    two weeks after the visit that made them one, for half a year.
    """

    def __init__(self, profile: Profile, person: Person) -> None:
        self._profile = profile
        self._person = person
        self._recent: list[datetime] = []
        self.times: list[tuple[datetime, datetime]] = []

    def saw(self, at: datetime) -> bool:
        """Takes note of a visit; whether it is a frequent user's."""
        self._recent = [one for one in self._recent if one > at - _WINDOW]
        self._recent.append(at)
        if len(self._recent) < FREQUENT:
            return False
        if (not self.times or at >= self.times[-1][1]) and self._joins(at):
            since = at + ENROLLED_AFTER
            self.times.append((since, since + PROGRAMME))
        return True

    def spares(self, at: datetime, n: int) -> bool:
        """Whether the programme spares visit `n` that would come at `at`."""
        effect = self._profile.effect
        if not effect or not self.times or not self.times[-1][0] <= at < self.times[-1][1]:
            return False
        return Draws(self._profile.seed, self._person.number, "effect", n).chance(effect)

    def _joins(self, at: datetime) -> bool:
        profile, person = self._profile, self._person
        if person.age(at.date()) < 18 or person.card is None:
            return False
        there = any(
            each.flaw is None and each.start <= at.date() <= (each.end or at.date())
            for each in memberships(profile, person.number)
        )
        said = [each.restriction for each in wishes(profile, person.number) if each.said <= at]
        answered = Draws(profile.seed, person.number, "answered", len(self.times))
        return (
            there
            and (not said or said[-1] is Restriction.NONE)
            and not answered.chance(profile.never_acknowledged)
        )


def enrolments(
    profile: Profile, person: Person, had: Iterable[Happening]
) -> list[tuple[datetime, datetime]]:
    """From when to when `person`, to whom `had` happened, is in the programme."""
    programme = _Enrolment(profile, person)
    for each in had:
        if each.care is Care.ED and each.person == person.number:
            programme.saw(each.start)
    return programme.times


def changed(profile: Profile, said: Iterable[Wish], had: Sequence[Happening]) -> tuple[Wish, ...]:
    """`said`, in which a change of mind waits for the next ED arrival, if there is one.

    It comes a minute later: between the event and what is told of it (simulator.md section 3).
    """
    begun = instant(profile, 0, 0)
    arrived = sorted(each.start for each in had if each.care is Care.ED)
    found = []
    for wish in said:
        later = (at for at in arrived if at > wish.said)
        event = next(later, None) if wish.said >= begun else None
        found.append(wish if event is None else wish._replace(said=event + HESITATION))
    return tuple(found)


class _Life:
    """Walks a person's candidates in time order; what falls into another is not had."""

    def __init__(self, profile: Profile, person: Person) -> None:
        self._profile = profile
        self._person = person
        self._free = _LONG_AGO
        self._enrolment = _Enrolment(profile, person)
        self._births = 0
        self._next = 0
        self._alive = True

    def until(self, days: int) -> Iterator[Happening]:
        candidates = [
            (at, "ed", n, respiratory)
            for n, (at, respiratory) in enumerate(arrivals(self._profile, self._person, days))
        ]
        candidates += [(at, kind, n, False) for at, kind, n in self._others(days)]
        if not candidates:
            return
        end = instant(self._profile, days, 0)
        for at, kind, n, respiratory in sorted(candidates):
            if not self._alive:
                return
            if at < self._free or at >= end:
                continue
            if kind == "ed" and self._enrolment.spares(at, n):
                continue
            draws = Draws(self._profile.seed, self._person.number, kind, n)
            match kind:
                case "ed":
                    yield from self._visit(at, draws, respiratory)
                case "stay":
                    yield from self._direct_stay(at, draws)
                case "birth":
                    yield from self._birth(at, draws)
                case _:
                    yield from self._session(at, kind, draws)

    # What may happen, each kind by a stream of its own

    def _others(self, days: int) -> Iterator[tuple[datetime, str, int]]:
        """Care that no visit to the ED leads to. The first waits share a stream: few end in time.

        Those who need the ED most are also those who come to need dialysis (assumed).
        """
        profile, person = self._profile, self._person
        draws = Draws(profile.seed, person.number, "others")
        waits = [draws.exponential() for _ in _OTHERS]
        direct = max(profile.stay_rate - profile.birth_rate, 0.0)
        rates = (
            direct * draws.gamma(0.08),
            0.01,
            0.01,
            0.0008 * person.base,
            0.0009,
            profile.birth_rate / WOMEN_OF_CHILDBEARING_AGE,
        )
        for kind, wait, rate in zip(_OTHERS, waits, rates, strict=True):
            if wait * YEAR >= rate * days:
                continue
            if kind != "birth" or (person.female and 18 <= person.age(profile.start) < 45):
                for at, n in self._times(kind, wait * YEAR / rate, rate, days):
                    yield at, kind, n

    def _times(
        self, kind: str, day: float, rate: float, days: int
    ) -> Iterator[tuple[datetime, int]]:
        """When care of `kind` is due, first on `day`."""
        profile, n = self._profile, 0
        draws = Draws(profile.seed, self._person.number, "times", kind)
        while day < days:
            if kind in ("dialysis", "chemotherapy"):
                gap, sessions = (2.4, 6 + draws.below(10)) if kind == "dialysis" else (21, 6)
                for each in range(sessions):
                    on = int(day + gap * each)
                    yield instant(profile, on, 28_800 + draws.below(7_200)), n + each
                n += sessions
                day += gap * sessions
            else:
                office = kind != "birth"
                second = 25_200 + draws.below(36_000) if office else draws.below(86_400)
                yield instant(profile, int(day), second), n
                n += 1
                day += 300 if kind == "birth" else 0
            day += draws.exponential() * YEAR / rate

    # What does happen

    def _had(self, care: Care, site: int, start: datetime, end: datetime, **more: Any) -> Happening:
        self._next += 1
        self._free = max(self._free, end)
        return Happening(self._person.number, self._next, care, site, start, end, **more)

    def _where(self, draws: Draws, elsewhere: float) -> int:
        """The hospital. Always uses two draws, so that a hospital more changes nothing but it."""
        away, which = draws.unit() < elsewhere, draws.unit()
        home, others = self._person.home, len(self._profile.hospitals) - 1
        if not away or not others:
            return home
        return (home + 1 + int(which * others)) % (others + 1)

    def _visit(self, at: datetime, draws: Draws, respiratory: bool) -> Iterator[Happening]:
        p = self._profile
        frequent = self._enrolment.saw(at)
        site = self._where(draws, p.second_hospital_frequent if frequent else p.second_hospital)
        code, label = self._complaint(draws, respiratory)
        urgent, size, wait = draws.chance(0.6), draws.normal(), draws.lognormal(0.25, 0.6)
        dead, stopped, redirected = draws.chance(0.002), draws.chance(0.004), draws.chance(0.01)
        unseen, planned = draws.chance(p.left_unseen), draws.chance(p.planned_return)
        admitted = draws.chance(p.admitted_from_fourth if frequent else p.admitted)
        transfer, observed = draws.chance(p.ed_transfer), draws.chance(0.01)
        against, dies, again = draws.chance(0.01), draws.chance(0.001), draws.unit()
        minutes, gap = draws.between(2, 9), draws.unit()

        triaged: datetime | None = _later(at, hours=min(wait, 1.5))
        leaving, median, sigma = Leaving.HOME, *((4.1, 0.8) if urgent else (2.7, 0.7))
        elsewhere = len(p.hospitals) > 1
        if dead:
            leaving, median, sigma, triaged = Leaving.DEAD_ON_ARRIVAL, 0.8, 0.3, None
        elif stopped:
            leaving, median, sigma, triaged = Leaving.CANCELLED, minutes / 60, 0.0, None
        elif unseen:
            leaving = Leaving.UNSEEN
        elif redirected:
            leaving, median = Leaving.REDIRECTED, 1.0
        elif admitted:
            leaving, median, sigma = Leaving.ADMITTED, 15.7, 0.7
        elif transfer and elsewhere:
            leaving = Leaving.TRANSFERRED
        elif against:
            leaving = Leaving.AGAINST_ADVICE
        elif dies:
            leaving = Leaving.DIED
        end = _later(at, hours=min(median * math.exp(sigma * size), 90.0))
        if triaged is not None and triaged >= end:
            triaged = _later(at, hours=(end - at).total_seconds() / 7200)
        visit = self._had(
            Care.ED,
            site,
            at,
            end,
            leaving=leaving,
            triaged=triaged,
            planned=planned and leaving is Leaving.HOME,
            code=code,
            label=label,
            transfer_out=leaving is Leaving.TRANSFERRED,
        )
        self._alive = leaving not in DEATHS
        yield visit
        if leaving is Leaving.ADMITTED:
            yield from self._stay(end, site, draws, from_ed=visit)
        elif leaving is Leaving.TRANSFERRED:
            yield from self._moved_on(visit, draws)
        elif leaving is Leaving.HOME and observed:
            until = _later(end, hours=draws.between(8, 30))
            yield self._had(Care.OBSERVATION, site, end, until, after=visit.number, code=code)
        elif leaving is Leaving.HOME and again < 0.02:
            soon = draws.between(0.5, 1.85) if again < 0.01 else 2.1 + 8 * gap
            start = _later(end, hours=soon)
            until, triaged = _later(start, hours=draws.between(0.7, 5)), _later(start, hours=0.2)
            self._enrolment.saw(start)
            yield self._had(Care.ED, site, start, until, triaged=triaged, code=code)

    def _moved_on(self, visit: Happening, draws: Draws) -> Iterator[Happening]:
        """From one emergency department to another, coded as a transfer (CR-04)."""
        other = (visit.site + 1) % len(self._profile.hospitals)
        start = _later(visit.end, hours=draws.between(0.4, 4))
        end = _later(start, hours=draws.lognormal(4.1, 0.8))
        admitted = draws.chance(0.3)
        self._enrolment.saw(start)
        second = self._had(
            Care.ED,
            other,
            start,
            end,
            leaving=Leaving.ADMITTED if admitted else Leaving.HOME,
            triaged=_later(start, hours=0.1 * (end - start).total_seconds() / 3600),
            transfer_in=True,
            code=visit.code,
            label=visit.label,
        )
        yield second
        if admitted:
            yield from self._stay(end, other, draws, from_ed=second)

    def _direct_stay(self, at: datetime, draws: Draws) -> Iterator[Happening]:
        planned = draws.chance(0.6)
        site = self._where(draws, self._profile.second_hospital)
        yield from self._stay(at, site, draws, planned=planned)

    def _stay(
        self,
        at: datetime,
        site: int,
        draws: Draws,
        *,
        from_ed: Happening | None = None,
        planned: bool = False,
    ) -> Iterator[Happening]:
        """A stay and what follows it without the patient going home (CR-17, CR-18, CR-45)."""
        age = self._person.age(at.date())
        mental = Tag.MENTAL_HEALTH in self._person.tags and draws.chance(0.25)
        code, label = ("F32.2", "MH") if mental else self._complaint(draws, False)
        if from_ed is not None:
            code, label = from_ed.code, from_ed.label
        hours = max(24 * draws.lognormal(7.3 * math.exp(-(1.1**2) / 2), 1.1), 6.0)
        dies = draws.chance(0.08 if age >= 75 else 0.05 if age >= 65 else 0.02)
        palliative, donor = draws.chance(0.3), draws.chance(0.6)
        moved, rehab, away = draws.chance(0.04), draws.chance(0.04), draws.chance(0.08)
        during, reverted = draws.chance(0.006), draws.chance(0.02)
        gap = draws.one_of(((1, 6.9), (7, 12), (7, 12), (12.1, 20)))
        between, coded = draws.between(*gap), draws.chance(0.5)

        after = from_ed.number if from_ed else None
        taken_back = _later(at, hours=draws.between(0.7, 3.5))
        if from_ed is not None and reverted and _same_day(at, taken_back):
            yield self._had(
                Care.STAY,
                site,
                at,
                taken_back,
                leaving=Leaving.REVERTED,
                after=after,
                code=code,
                label=label,
            )
            return
        leaving = Leaving.HOME
        elsewhere = len(self._profile.hospitals) > 1
        if dies:
            leaving = Leaving.DIED
        elif moved and elsewhere:
            leaving = Leaving.TRANSFERRED
        elif rehab:
            leaving = Leaving.NONACUTE
        stay = self._had(
            Care.STAY,
            site,
            at,
            _later(at, hours=min(hours, 24 * 120)),
            leaving=leaving,
            service=Service.PSYCHIATRY if mental else None,
            planned=planned,
            after=after,
            transfer_out=leaving is Leaving.TRANSFERRED and coded,
            code=code,
            label=label,
        )
        if away and hours > 120:
            out = _later(at, hours=hours / 2)
            stay = stay._replace(away=(out, _later(out, hours=26)))
        if dies and palliative:
            stay = stay._replace(service=Service.PALLIATIVE, code="C34.9")
        self._alive = not dies
        yield stay
        if dies and donor and age < 75:
            until = _later(stay.end, hours=9)
            yield self._had(
                Care.STAY, site, stay.end, until, service=Service.ORGAN_DONATION, code="Z52.8"
            )
        if during and elsewhere and hours > 48:
            start = _later(at, hours=hours / 3)
            other = (site + 1) % len(self._profile.hospitals)
            self._enrolment.saw(start)
            yield self._had(
                Care.ED,
                other,
                start,
                _later(start, hours=5),
                triaged=_later(start, hours=0.3),
                transfer_in=True,
                code=code,
                label=label,
            )
        if leaving is Leaving.TRANSFERRED:
            start = _later(stay.end, hours=between)
            other = (site + 1) % len(self._profile.hospitals)
            length = draws.lognormal(4, 0.8) * 24
            yield self._had(
                Care.STAY,
                other,
                start,
                _later(start, hours=length),
                transfer_in=stay.transfer_out,
                code=code,
                label=label,
            )
        if leaving is Leaving.NONACUTE:
            days = draws.between(14, 40)
            until = _later(stay.end, hours=24 * days)
            yield self._had(Care.NONACUTE, site, stay.end, until, code="Z50.9")

    def _birth(self, at: datetime, draws: Draws) -> Iterator[Happening]:
        site = self._person.home
        end = _later(at, hours=24 * draws.lognormal(2.1 * math.exp(-(0.4**2) / 2), 0.4))
        yield self._had(Care.STAY, site, at, end, service=Service.OBSTETRICS, code="Z37.0")
        self._births += 1
        child = self._births * NEWBORNS + self._person.number
        born = _later(at, hours=min(draws.between(1, 12), (end - at).total_seconds() / 7200))
        yield Happening(child, 1, Care.STAY, site, born, end, service=Service.NEWBORN, code="Z38.0")

    def _session(self, at: datetime, kind: str, draws: Draws) -> Iterator[Happening]:
        """Care that is never an acute stay: series, day surgery, a walk-in or virtual visit."""
        site, hours = self._person.home, draws.between(3, 6)
        if kind == "office":
            care = Care.VIRTUAL if draws.chance(0.4) else Care.WALK_IN
            code, _ = self._complaint(draws, False)
            yield self._had(care, site, at, _later(at, hours=hours / 6), code=code)
            return
        service, code = {
            "surgery": (Service.DAY_SURGERY, "H26.9"),
            "dialysis": (Service.DIALYSIS, "Z49.1"),
            "chemotherapy": (Service.CHEMOTHERAPY, "Z51.1"),
        }[kind]
        # Some hospitals register each session of a series as an admission (CR-23, CR-24).
        admits = kind != "surgery" and (self._person.number + self._births) % 2 == 0
        care = Care.STAY if admits else Care.DAY_SURGERY
        until = _later(at, hours=hours)
        yield self._had(care, site, at, until, service=service, planned=True, code=code)

    def _complaint(self, draws: Draws, respiratory: bool) -> tuple[str, str | None]:
        """An ICD-10 code and, if it is a sensitive one, its label."""
        tags = self._person.tags
        sensitive, rare, which = draws.unit(), draws.chance(0.002), draws.unit()
        mental = Tag.MENTAL_HEALTH in tags
        woman = self._person.female and 18 <= self._person.age(self._profile.start) < 45
        if mental and sensitive < self._profile.sensitive / MENTAL_HEALTH_SHARE:
            choices = _SENSITIVE
        elif rare:
            choices = _RARE
        elif respiratory:
            choices = _BREATHLESS if Tag.LUNG_OR_HEART in tags else _COLD
        elif Tag.LUNG_OR_HEART in tags and which < 0.4:
            return "I50.0", None
        elif Tag.PAIN in tags and which < 0.4:
            choices = _PAIN
        elif Tag.FRAIL in tags and which < 0.4:
            choices = _FRAIL
        elif woman and which < 0.05:
            choices = _PREGNANT
        else:
            choices = _ANY
        return choices[int(which * 7919) % len(choices)]


_Complaints = tuple[tuple[str, str | None], ...]
_SENSITIVE: _Complaints = (("F32.1", "MH"), ("F41.1", "MH"), ("F43.2", "PSY"), ("F10.2", "ETHUD"))
_RARE: _Complaints = (("B24", "HIV"), ("T74.1", "SDV"))


def _plain(*codes: str) -> _Complaints:
    return tuple((code, None) for code in codes)


_BREATHLESS = _plain("J44.1", "J18.9", "J20.9")
_COLD = _plain("J06.9", "J18.9", "J20.9")
_PAIN = _plain("M54.5", "G43.9", "R10.4")
_FRAIL = _plain("S72.0", "N39.0", "R55")
_PREGNANT = _plain("O20.0", "O21.0")
_ANY = _plain("S93.4", "R07.4", "K52.9", "S61.0", "R51", "L03.1")
_OTHERS = ("stay", "surgery", "office", "dialysis", "chemotherapy", "birth")


def _later(at: datetime, *, hours: float) -> datetime:
    """`hours` after `at`, to the second, at least one."""
    return at + timedelta(seconds=max(round(hours * 3600), 1))


def _same_day(one: datetime, other: datetime) -> bool:
    return one.astimezone(ZONE).date() == other.astimezone(ZONE).date()

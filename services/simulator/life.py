"""What befalls people: visits and stays as they really were, whoever gets to hear of them.

One random stream a person and purpose, drawn in time order: a longer time, more people or a
noisier feed leaves what was drawn as it was (SIM-02, SIM-05). Times are whole seconds before
anything depends on them (SIM-04). Figures: simulator.md section 1; what has no source there
is assumed.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime, time, timedelta
from enum import StrEnum

from services.simulator.draws import Draws
from services.simulator.profiles import Profile
from services.simulator.region import (
    CRISIS_DAYS,
    CRISIS_FACTOR,
    YEAR,
    ZONE,
    Person,
    Tag,
    calm_rate,
    crisis_hazard,
    crisis_share,
)

HOURS = (
    0.0166, 0.0134, 0.0115, 0.0102, 0.0091, 0.0102, 0.0141, 0.0256, 0.0447, 0.0626, 0.0703, 0.0716,
    0.0684, 0.0658, 0.0645, 0.0639, 0.0633, 0.0620, 0.0594, 0.0549, 0.0473, 0.0383, 0.0300, 0.0224,
)  # fmt: skip
"""Weights of local arrival hours at the emergency department, from midnight."""
WEEKDAYS = (0.160, 0.146, 0.141, 0.139, 0.139, 0.137, 0.138)
_BUSIEST = 7 * max(WEEKDAYS)
_SEASON = 0.08
_PEAK = _BUSIEST * (1 + _SEASON)
WOMEN_OF_CHILDBEARING_AGE = 0.176
"""Their share of the population of region.py."""
MENTAL_HEALTH_SHARE = 0.30
"""Share of ED visits made by people with that tag; the rate of coded ones follows from it."""
NEWBORNS = 50_000_000
"""Numbers above belong to children of the people below."""


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


@dataclass(frozen=True, slots=True)
class Happening:
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


def instant(profile: Profile, day: int, second: int, *, repeated: bool = False) -> datetime:
    """The local `second` of `day` (0 = profile.start) in UTC.

    A second that the spring skips is an hour later on the wall; one that the autumn has twice
    is the later one if `repeated`.
    """
    local = datetime.combine(profile.start + timedelta(days=day), time()) + timedelta(
        seconds=second
    )
    return local.replace(tzinfo=ZONE, fold=int(repeated)).astimezone(UTC)


def arrivals(profile: Profile, person: Person, days: int) -> Iterator[tuple[datetime, bool]]:
    """Arrivals at the emergency department if nothing were in the way; whether respiratory.

    A Poisson process whose rate jumps with crises, drawn by its cumulative rate, thinned by
    weekday and season, then placed in the day by the hour weights.
    """
    draws = Draws(profile.seed, person.number, "ed")
    breathless = 0.5 if Tag.LUNG_OR_HEART in person.tags else 0.15
    calm = calm_rate(person.segment) * person.base * profile.raised * _PEAK / YEAR
    at, need = 0.0, draws.exponential()
    for until, in_crisis in _crises(profile, person):
        rate = calm * (CRISIS_FACTOR if in_crisis else 1.0)
        while at + need / rate < min(until, days):
            at += need / rate
            need = draws.exponential()
            day = int(at)
            respiratory = draws.chance(breathless)
            kept = draws.unit() * _PEAK < _weight(profile.start + timedelta(days=day), respiratory)
            second = draws.weighted(HOURS) * 3600 + draws.below(3600)
            repeated = draws.chance(0.5)
            if kept:
                yield instant(profile, day, second, repeated=repeated), respiratory
        if until >= days:
            return
        need -= (until - at) * rate
        at = until


def _weight(day: date, respiratory: bool) -> float:
    weight = 7 * WEEKDAYS[day.weekday()]
    if respiratory:
        weight *= 1 + _SEASON * math.cos(2 * math.pi * (day.timetuple().tm_yday - 20) / 365)
    return weight


def _crises(profile: Profile, person: Person) -> Iterator[tuple[float, bool]]:
    """Stretches as (the day they end, whether in crisis), for ever; the start is stationary."""
    draws = Draws(profile.seed, person.number, "crisis")
    calm_days = YEAR / crisis_hazard(person.segment, person.base)
    in_crisis = draws.chance(crisis_share(person.segment, person.base))
    at = 0.0
    while True:
        at += draws.exponential() * (CRISIS_DAYS if in_crisis else calm_days)
        yield at, in_crisis
        in_crisis = not in_crisis


class _Life:
    """Walks a person's candidates in time order; what falls into another is not had."""

    def __init__(self, profile: Profile, person: Person) -> None:
        self._profile = profile
        self._person = person
        self._free = datetime.min.replace(tzinfo=UTC)
        self._ed: list[datetime] = []
        self._births = 0
        self._next = 0
        self._alive = True

    def until(self, days: int) -> Iterator[Happening]:
        candidates = [
            (at, "ed", n, respiratory)
            for n, (at, respiratory) in enumerate(arrivals(self._profile, self._person, days))
        ]
        candidates += [(at, kind, n, False) for at, kind, n in self._others(days)]
        end = instant(self._profile, days, 0)
        for at, kind, n, respiratory in sorted(candidates):
            if not self._alive:
                return
            if at < self._free or at >= end:
                continue
            draws = Draws(self._profile.seed, self._person.number, kind, n)
            match kind:
                case "ed":
                    yield from self._visit(at, draws, n, respiratory)
                case "stay":
                    yield from self._direct_stay(at, draws, n)
                case "birth":
                    yield from self._birth(at, draws)
                case _:
                    yield from self._session(at, kind, draws)

    # What may happen, each kind by a stream of its own

    def _others(self, days: int) -> Iterator[tuple[datetime, str, int]]:
        profile, person = self._profile, self._person
        direct = profile.stay_rate - profile.birth_rate
        tendency = Draws(profile.seed, person.number, "stay tendency").gamma(0.08)
        rates = {"stay": max(direct, 0.0) * tendency, "surgery": 0.01, "office": 0.01}
        rates |= {"dialysis": 0.0008, "chemotherapy": 0.0009}
        if person.female and 18 <= person.age(profile.start) < 45:
            rates["birth"] = profile.birth_rate / WOMEN_OF_CHILDBEARING_AGE
        for kind, rate in rates.items():
            if rate <= 0:
                continue
            draws = Draws(profile.seed, person.number, "times", kind)
            day, n = draws.exponential() * YEAR / rate, 0
            while day < days:
                if kind in ("dialysis", "chemotherapy"):
                    gap, sessions = (2.4, 6 + draws.below(10)) if kind == "dialysis" else (21, 6)
                    for each in range(sessions):
                        on = int(day + gap * each)
                        yield instant(profile, on, 28_800 + draws.below(7_200)), kind, n + each
                    n += sessions
                    day += gap * sessions
                else:
                    office = kind != "birth"
                    second = 25_200 + draws.below(36_000) if office else draws.below(86_400)
                    yield instant(profile, int(day), second), kind, n
                    n += 1
                    day += 300 if kind == "birth" else 0
                day += draws.exponential() * YEAR / rate

    # What does happen

    def _had(self, care: Care, site: int, start: datetime, end: datetime) -> Happening:
        self._next += 1
        self._free = max(self._free, end)
        return Happening(self._person.number, self._next, care, site, start, end)

    def _where(self, n: int, kind: str, elsewhere: float) -> int:
        """The hospital; a stream of its own, so that a hospital more changes nothing but it."""
        draws = Draws(self._profile.seed, self._person.number, "site", kind, n)
        others = [i for i in range(len(self._profile.sites)) if i != self._person.home]
        if draws.chance(elsewhere) and others:
            return draws.one_of(others)
        return self._person.home

    def _visit(self, at: datetime, draws: Draws, n: int, respiratory: bool) -> Iterator[Happening]:
        p = self._profile
        self._ed = [one for one in self._ed if one > at - timedelta(days=365)] + [at]
        frequent = len(self._ed) >= 4
        site = self._where(n, "ed", p.second_hospital_frequent if frequent else p.second_hospital)
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
        elsewhere = len(p.sites) > 1
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
        visit = replace(
            self._had(Care.ED, site, at, end),
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
            yield replace(
                self._had(Care.OBSERVATION, site, end, _later(end, hours=draws.between(8, 30))),
                after=visit.number,
                code=code,
            )
        elif leaving is Leaving.HOME and again < 0.02:
            soon = draws.between(0.5, 1.85) if again < 0.01 else 2.1 + 8 * gap
            start = _later(end, hours=soon)
            yield replace(
                self._had(Care.ED, site, start, _later(start, hours=draws.between(0.7, 5))),
                triaged=_later(start, hours=0.2),
                code=code,
            )

    def _moved_on(self, visit: Happening, draws: Draws) -> Iterator[Happening]:
        """From one emergency department to another, coded as a transfer (CR-04)."""
        other = (visit.site + 1) % len(self._profile.sites)
        start = _later(visit.end, hours=draws.between(0.4, 4))
        end = _later(start, hours=draws.lognormal(4.1, 0.8))
        admitted = draws.chance(0.3)
        second = replace(
            self._had(Care.ED, other, start, end),
            leaving=Leaving.ADMITTED if admitted else Leaving.HOME,
            triaged=_later(start, hours=0.1 * (end - start).total_seconds() / 3600),
            transfer_in=True,
            code=visit.code,
            label=visit.label,
        )
        yield second
        if admitted:
            yield from self._stay(end, other, draws, from_ed=second)

    def _direct_stay(self, at: datetime, draws: Draws, n: int) -> Iterator[Happening]:
        planned = draws.chance(0.6)
        site = self._where(n, "stay", self._profile.second_hospital)
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
            yield replace(
                self._had(Care.STAY, site, at, taken_back),
                leaving=Leaving.REVERTED,
                after=after,
                code=code,
                label=label,
            )
            return
        leaving = Leaving.HOME
        elsewhere = len(self._profile.sites) > 1
        if dies:
            leaving = Leaving.DIED
        elif moved and elsewhere:
            leaving = Leaving.TRANSFERRED
        elif rehab:
            leaving = Leaving.NONACUTE
        stay = replace(
            self._had(Care.STAY, site, at, _later(at, hours=min(hours, 24 * 120))),
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
            stay = replace(stay, away=(out, _later(out, hours=26)))
        if dies and palliative:
            stay = replace(stay, service=Service.PALLIATIVE, code="C34.9")
        self._alive = not dies
        yield stay
        if dies and donor and age < 75:
            yield replace(
                self._had(Care.STAY, site, stay.end, _later(stay.end, hours=9)),
                service=Service.ORGAN_DONATION,
                code="Z52.8",
            )
        if during and elsewhere and hours > 48:
            start = _later(at, hours=hours / 3)
            other = (site + 1) % len(self._profile.sites)
            yield replace(
                self._had(Care.ED, other, start, _later(start, hours=5)),
                triaged=_later(start, hours=0.3),
                transfer_in=True,
                code=code,
                label=label,
            )
        if leaving is Leaving.TRANSFERRED:
            start = _later(stay.end, hours=between)
            other = (site + 1) % len(self._profile.sites)
            length = draws.lognormal(4, 0.8) * 24
            yield replace(
                self._had(Care.STAY, other, start, _later(start, hours=length)),
                transfer_in=stay.transfer_out, code=code, label=label,
            )  # fmt: skip
        if leaving is Leaving.NONACUTE:
            days = draws.between(14, 40)
            yield replace(
                self._had(Care.NONACUTE, site, stay.end, _later(stay.end, hours=24 * days)),
                code="Z50.9",
            )

    def _birth(self, at: datetime, draws: Draws) -> Iterator[Happening]:
        site = self._person.home
        end = _later(at, hours=24 * draws.lognormal(2.1 * math.exp(-(0.4**2) / 2), 0.4))
        yield replace(self._had(Care.STAY, site, at, end), service=Service.OBSTETRICS, code="Z37.0")
        self._births += 1
        child = self._births * NEWBORNS + self._person.number
        born = _later(at, hours=min(draws.between(1, 12), (end - at).total_seconds() / 7200))
        newborn = Happening(child, 1, Care.STAY, site, born, end)
        yield replace(newborn, service=Service.NEWBORN, code="Z38.0")

    def _session(self, at: datetime, kind: str, draws: Draws) -> Iterator[Happening]:
        """Care that is never an acute stay: series, day surgery, a walk-in or virtual visit."""
        site, hours = self._person.home, draws.between(3, 6)
        if kind == "office":
            care = Care.VIRTUAL if draws.chance(0.4) else Care.WALK_IN
            code, _ = self._complaint(draws, False)
            yield replace(self._had(care, site, at, _later(at, hours=hours / 6)), code=code)
            return
        service, code = {
            "surgery": (Service.DAY_SURGERY, "H26.9"),
            "dialysis": (Service.DIALYSIS, "Z49.1"),
            "chemotherapy": (Service.CHEMOTHERAPY, "Z51.1"),
        }[kind]
        # Some hospitals register each session of a series as an admission (CR-23, CR-24).
        admits = kind != "surgery" and (self._person.number + self._births) % 2 == 0
        care = Care.STAY if admits else Care.DAY_SURGERY
        yield replace(
            self._had(care, site, at, _later(at, hours=hours)),
            service=service,
            planned=True,
            code=code,
        )

    def _complaint(self, draws: Draws, respiratory: bool) -> tuple[str, str | None]:
        """An ICD-10 code and, if it is a sensitive one, its label."""
        tags = self._person.tags
        sensitive, rare, which = draws.unit(), draws.chance(0.002), draws.unit()
        mental = Tag.MENTAL_HEALTH in tags
        woman = self._person.female and 18 <= self._person.age(self._profile.start) < 45
        choices: tuple[tuple[str, str | None], ...]
        if mental and sensitive < self._profile.sensitive / MENTAL_HEALTH_SHARE:
            choices = (("F32.1", "MH"), ("F41.1", "MH"), ("F43.2", "PSY"), ("F10.2", "ETHUD"))
        elif rare:
            choices = (("B24", "HIV"), ("T74.1", "SDV"))
        elif respiratory:
            choices = _plain("J44.1" if Tag.LUNG_OR_HEART in tags else "J06.9", "J18.9", "J20.9")
        elif Tag.LUNG_OR_HEART in tags and which < 0.4:
            return "I50.0", None
        elif Tag.PAIN in tags and which < 0.4:
            choices = _plain("M54.5", "G43.9", "R10.4")
        elif Tag.FRAIL in tags and which < 0.4:
            choices = _plain("S72.0", "N39.0", "R55")
        elif woman and which < 0.05:
            choices = _plain("O20.0", "O21.0")
        else:
            choices = _plain("S93.4", "R07.4", "K52.9", "S61.0", "R51", "L03.1")
        return choices[int(which * 7919) % len(choices)]


def _plain(*codes: str) -> tuple[tuple[str, None], ...]:
    return tuple((code, None) for code in codes)


def _later(at: datetime, *, hours: float) -> datetime:
    """`hours` after `at`, to the second, at least one."""
    return at + timedelta(seconds=max(round(hours * 3600), 1))


def _same_day(one: datetime, other: datetime) -> bool:
    return one.astimezone(ZONE).date() == other.astimezone(ZONE).date()

"""What the hospitals send of what happens: message by message, with the noise of real feeds.

The first hospital opens an encounter for each piece of care; the second keeps one encounter
from the emergency department to the ward and changes its class (CR-02). Noise has streams of
its own and never disturbs what happened (SIM-02).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from datetime import datetime, timedelta
from enum import StrEnum
from functools import cache
from typing import NamedTuple

from services.simulator.draws import Draws, code
from services.simulator.life import (
    DEATHS,
    NEWBORNS,
    Care,
    Happening,
    Leaving,
    Service,
    instant,
    life,
)
from services.simulator.profiles import CLEAN, Noise, Profile
from services.simulator.region import YEAR, ZONE, Person, people

TRANSMISSION = timedelta(seconds=2)
STRAY = "-X"
"""Ends the number of an encounter registered by mistake."""
RENEWED = 40_000_000
"""Added to a health card's number when it is renewed."""
CARDS_RENEWED = 0.005
"""Per person and year (assumed)."""


class Kind(StrEnum):
    """What a message says happened; the first three are Da Vinci's notifications."""

    ADMIT = "admit"
    TRANSFER = "transfer"
    DISCHARGE = "discharge"
    TAKEN_BACK = "taken-back"
    """An encounter cancelled or entered in error."""
    PATIENT = "patient"


class Identity(NamedTuple):
    """One record that one hospital keeps of a patient."""

    record: str
    person: Person | None
    """None: nobody knows yet who it is."""
    cards: tuple[str, ...] = ()
    """Health cards, the one in force first."""
    active: bool = True
    replaced_by: str | None = None
    deceased: datetime | None = None


class Snapshot(NamedTuple):
    """An encounter as the hospital has it when it sends."""

    visit: str
    status: str
    classes: tuple[tuple[Care, datetime], ...]
    start: datetime
    end: datetime | None = None
    leaving: Leaving | None = None
    service: Service | None = None
    planned: bool = False
    from_ed: bool = False
    transfer_in: bool = False
    part_of: str | None = None
    code: str | None = None
    label: str | None = None
    day_only: bool = False
    shifted: bool = False
    """Its times bear the offset of the other season."""
    unmapped: bool = False


class Message(NamedTuple):
    name: str
    """Of what is said, for ever: what is sent twice has one."""
    seed: int
    at: datetime
    """When it happened."""
    sent: datetime
    site: int
    lane: int
    """Number of the person: order is kept within it."""
    order: int
    kind: Kind
    identity: Identity
    encounter: Snapshot | None = None

    @property
    def id(self) -> str:
        """Made when it is needed: files need none."""
        return code(self.seed, "message", self.name)


class Mishap(NamedTuple):
    """What goes wrong with one encounter."""

    void: datetime | None = None
    """It is entered in error, then."""
    stray: bool = False
    """Another is registered by mistake a day later, and entered in error."""
    second_record: tuple[datetime, datetime | None] | None = None
    """It is sent under a second record, merged then, and perhaps unmerged later."""
    unidentified: datetime | None = None
    """It is sent under a temporary record, merged then."""
    no_discharge: bool = False
    shifted: bool = False
    unmapped: bool = False
    day_only: bool = False
    coded_late: bool | None = None
    """Whether its code comes after its end only; None: by chance."""


class Visit(NamedTuple):
    """One encounter of one hospital: one piece of care, or two in place."""

    number: str
    pieces: tuple[Happening, ...]

    @property
    def first(self) -> Happening:
        return self.pieces[0]

    @property
    def last(self) -> Happening:
        return self.pieces[-1]


def feed(profile: Profile, days: int, extra: Iterable[Message] = ()) -> list[Message]:
    """All messages of the first `days` days and of `extra` people, in the order sent."""
    silent = list(_silences(profile, days))
    found = [*extra]
    for person in people(profile):
        found += of_person(profile, person, life(profile, person, days), days)
    return sorted((_after(silent, message) for message in found), key=in_order)


def in_order(message: Message) -> tuple[datetime, int, int]:
    return message.sent, message.lane, message.order


def visits(happenings: Sequence[Happening]) -> list[Visit]:
    """The encounters that hospitals make of `happenings`, by the hospital's own habit."""
    found: dict[tuple[int, int], Visit] = {}
    for each in happenings:
        earlier = found.get((each.person, each.after)) if each.after is not None else None
        if each.site % 2 == 1 and each.care is Care.STAY and earlier and len(earlier.pieces) == 1:
            visit = earlier._replace(pieces=(*earlier.pieces, each))
            del found[(each.person, earlier.first.number)]
            found[(each.person, earlier.first.number)] = visit
        else:
            visit = Visit(visit_number(each.person, each.number), (each,))
            found[(each.person, each.number)] = visit
    return list(found.values())


def of_person(
    profile: Profile,
    person: Person,
    happenings: Sequence[Happening],
    days: int,
    mishaps: Mapping[int, Mishap] | None = None,
) -> list[Message]:
    """What is sent of one person, and of children born meanwhile, in the order sent.

    `mishaps` as `said` takes them; where they are told, nothing else goes wrong on the way.
    """
    found = said(profile, person, happenings, days, mishaps)
    if mishaps is None and profile.noise != CLEAN:
        found = [one for message in found for one in _on_the_way(profile.noise, message)]
    return sorted(found, key=in_order)


def said(
    profile: Profile,
    person: Person,
    happenings: Sequence[Happening],
    days: int,
    mishaps: Mapping[int, Mishap] | None = None,
) -> list[Message]:
    """What connected hospitals have to say of one person, each thing once and without delay.

    `mishaps` by number of the encounter's first happening; drawn from the noise if None.
    """
    if not happenings:
        return []
    renewed = _renewal(profile, person, days) if mishaps is None else None
    by_patient: dict[int, list[Happening]] = {}
    for each in happenings:
        by_patient.setdefault(each.person, []).append(each)
    sender = _Sender(profile, person.number)
    for number, own in by_patient.items():
        patient = person if number == person.number else _child(person, number, own[0])
        heard = [each for each in visits(own) if each.first.site < len(profile.sites)]
        sender.patient(patient, heard, renewed, mishaps)
    return sender.messages


def _child(mother: Person, number: int, birth: Happening) -> Person:
    born = birth.start.astimezone(ZONE).date()
    return mother._replace(
        number=number,
        born=born,
        female=number % 2 == 0,
        given="Aube",
        tags=frozenset(),
        card=None,
    )


def _renewal(profile: Profile, person: Person, days: int) -> datetime | None:
    """When the health card gets another number (CR-36), if it does."""
    wait = Draws(profile.seed, person.number, "card").exponential() / CARDS_RENEWED
    return instant(profile, int(wait * YEAR), 43_200) if wait * YEAR < days else None


def record_number(number: int) -> str:
    return f"TEST-{number:08d}"


def visit_number(person: int, number: int) -> str:
    return f"TEST-V{person:08d}-{number:02d}"


class _Sender:
    """Gathers the messages of one lane: one person, at all hospitals."""

    def __init__(self, profile: Profile, lane: int) -> None:
        self.messages: list[Message] = []
        self._profile = profile
        self._lane = lane
        self._known: dict[tuple[int, str], Identity] = {}

    def patient(
        self,
        person: Person,
        own: Sequence[Visit],
        renewed: datetime | None,
        mishaps: Mapping[int, Mishap] | None,
    ) -> None:
        known = Identity(
            record_number(person.number), person, (person.card,) if person.card else ()
        )
        # The scripted are the same whatever the seed.
        seed = self._profile.seed if mishaps is None else "cast"
        for visit in sorted(own, key=lambda one: one.first.start):
            if mishaps is None:
                mishap = _mishap(self._profile, visit)
            else:
                mishap = mishaps.get(visit.first.number, NO_MISHAP)
            identity = known
            if person.card and renewed and visit.first.start > renewed:
                card = f"TEST{person.number + RENEWED:08d}"
                identity = known._replace(cards=(card, person.card))
            self._visit(visit, identity, mishap, seed)

    def _visit(self, visit: Visit, identity: Identity, mishap: Mishap, seed: object) -> None:
        site = visit.first.site
        used = identity
        if mishap.unidentified:
            used = Identity(visit.number.replace("TEST-V", "TEST-TMP-"), None)
        elif mishap.second_record:
            used = identity._replace(record=_second(identity, visit), cards=())
        self._introduce(site, used, visit.first.start)
        for number, (at, kind, snapshot) in enumerate(_steps(seed, visit, mishap)):
            self._say(site, at, kind, used, f"{visit.number}.{number}", snapshot)
        if mishap.stray:
            self._stray(visit, used)
        for since, undone in _merges(mishap):
            self._introduce(site, identity, since, again=True)
            gone = used._replace(active=False, replaced_by=identity.record)
            self._introduce(site, gone, since + timedelta(seconds=5))
            if undone is not None:
                self._introduce(site, used, undone, again=True)
        if visit.last.leaving in DEATHS:
            self._introduce(site, identity._replace(deceased=visit.last.end), visit.last.end)

    def _stray(self, visit: Visit, used: Identity) -> None:
        """An encounter registered for the wrong patient, and taken back."""
        start = visit.first.start + timedelta(hours=26)
        wrong = Snapshot(f"{visit.number}{STRAY}", "arrived", ((Care.ED, start),), start)
        site = visit.first.site
        self._say(site, start, Kind.ADMIT, used, f"{wrong.visit}.0", wrong)
        later = start + timedelta(hours=3)
        wrong = wrong._replace(status="entered-in-error")
        self._say(site, later, Kind.TAKEN_BACK, used, f"{wrong.visit}.1", wrong)

    def _introduce(
        self, site: int, identity: Identity, at: datetime, *, again: bool = False
    ) -> None:
        """A Patient message, where the hospital has something new to say of the record."""
        if self._known.get((site, identity.record)) == identity and not again:
            return
        self._known[(site, identity.record)] = identity
        name = f"{site}.{identity.record}.{at.isoformat()}"
        self._say(site, at, Kind.PATIENT, identity, name, None)

    def _say(
        self,
        site: int,
        at: datetime,
        kind: Kind,
        identity: Identity,
        name: str,
        snapshot: Snapshot | None,
    ) -> None:
        sent, order, seed = at + TRANSMISSION, len(self.messages), self._profile.seed
        self.messages.append(
            Message(name, seed, at, sent, site, self._lane, order, kind, identity, snapshot)
        )


def _second(identity: Identity, visit: Visit) -> str:
    return f"{identity.record}-{visit.first.number:02d}"


def _merges(mishap: Mishap) -> Iterator[tuple[datetime, datetime | None]]:
    if mishap.unidentified:
        yield mishap.unidentified, None
    elif mishap.second_record:
        yield mishap.second_record


NO_MISHAP = Mishap()


def _mishap(profile: Profile, visit: Visit) -> Mishap:
    """Draws all, whatever the rates, so that a changed rate moves nothing else."""
    rates = profile.noise
    if rates == CLEAN:
        return NO_MISHAP
    noise = Draws(profile.seed, visit.first.person, "noise", visit.first.number).unit
    stray, merge, temporary, lost = noise(), noise(), noise(), noise()
    shifted, unmapped, day_only, undone = noise(), noise(), noise(), noise()
    if min(stray, merge, temporary, lost, shifted, unmapped, day_only) >= _likeliest(rates):
        return NO_MISHAP
    known = visit.first.person < NEWBORNS
    merged = visit.last.end + timedelta(days=1)
    back = merged + timedelta(days=2) if undone < rates.merge_undone else None
    identified = visit.first.start + timedelta(hours=20)
    return Mishap(
        stray=stray < rates.void,
        second_record=(merged, back) if merge < rates.merge and known else None,
        unidentified=identified if temporary < rates.temporary_identity and known else None,
        no_discharge=lost < rates.missing_discharge,
        shifted=shifted < rates.wrong_offset,
        unmapped=unmapped < rates.unmapped_class,
        day_only=day_only < rates.day_only,
    )


@cache
def _likeliest(rates: Noise) -> float:
    """What no mishap of an encounter is likelier than."""
    return max(
        rates.void,
        rates.merge,
        rates.temporary_identity,
        rates.missing_discharge,
        rates.wrong_offset,
        rates.unmapped_class,
        rates.day_only,
    )


def _on_the_way(rates: Noise, message: Message) -> Iterator[Message]:
    """A message as it arrives: late perhaps, or twice. Who somebody is comes in time."""
    if message.encounter is None:
        yield message
        return
    noise = Draws(message.seed, message.name, "way")
    late, far, twice, size = noise.unit(), noise.unit(), noise.unit(), noise.unit()
    if far < rates.far_out_of_order:
        message = _later(message, 3600 * (6.0 + 24.0 * size))
    elif late < rates.out_of_order:
        message = _later(message, 60 * noise.lognormal(3.0, 1.0))
    yield message
    if twice < rates.duplicate:
        yield _later(message, 30 + 600 * size)


def _later(message: Message, seconds: float) -> Message:
    return message._replace(sent=message.sent + timedelta(seconds=round(seconds)))


def _steps(seed: object, visit: Visit, mishap: Mishap) -> Iterator[tuple[datetime, Kind, Snapshot]]:
    """The states an encounter is sent in: 3 to 6 for the most."""
    draws = Draws(seed, visit.first.person, "steps", visit.first.number)
    early, coded = draws.chance(0.5), draws.chance(0.5)
    if mishap.coded_late is not None:
        early, coded = not mishap.coded_late, mishap.coded_late
    first, last = visit.first, visit.last
    now = Snapshot(
        visit.number,
        "arrived" if first.care is Care.ED else "in-progress",
        ((first.care, first.start),),
        first.start,
        service=first.service,
        planned=first.planned,
        from_ed=first.after is not None and first.care is Care.STAY,
        transfer_in=first.transfer_in,
        part_of=visit_number(first.person, first.after) if first.after is not None else None,
        label=first.label,
        day_only=mishap.day_only,
        shifted=mishap.shifted,
        unmapped=mishap.unmapped,
    )
    yield first.start, Kind.ADMIT, now
    if mishap.void:
        yield mishap.void, Kind.TAKEN_BACK, now._replace(status="entered-in-error")
        return
    if first.leaving is Leaving.CANCELLED and early:
        yield first.end, Kind.TAKEN_BACK, now._replace(status="cancelled")
        return
    for piece in visit.pieces:
        if piece is not first:
            classes = (*now.classes, (piece.care, piece.start))
            service = piece.service or now.service
            now = now._replace(status="in-progress", classes=classes, service=service)
            yield piece.start, Kind.TRANSFER, now
        for at, kind, status in _course(piece, draws):
            now = _turned(now, status)
            yield at, kind, now
    if last.leaving is Leaving.REVERTED:
        if last is first:
            yield last.end, Kind.TAKEN_BACK, now._replace(status="cancelled")
            return
        classes = (*now.classes, (Care.ED, last.end))
        now = now._replace(classes=classes)
        yield last.end, Kind.TRANSFER, now
    if mishap.no_discharge:
        return
    end = last.end + timedelta(minutes=10) if last.leaving is Leaving.REVERTED else last.end
    now = now._replace(
        status="finished",
        end=end,
        leaving=_as_coded(last),
        code=last.code if early or not coded else None,
    )
    yield end, Kind.DISCHARGE, now
    if coded:
        at = end + timedelta(days=min(draws.lognormal(6.0, 0.8), 45.0))
        yield at.replace(microsecond=0), Kind.DISCHARGE, now._replace(code=last.code)


def _turned(now: Snapshot, status: str) -> Snapshot:
    """`now` with another status; `_replace` would cost twice as much, at every step of all."""
    return Snapshot(now.visit, status, *now[2:])


def _as_coded(piece: Happening) -> Leaving:
    """A transfer that nobody coded looks like going home (CR-17)."""
    uncoded = piece.leaving is Leaving.TRANSFERRED and not piece.transfer_out
    return Leaving.HOME if uncoded else piece.leaving


def _course(piece: Happening, draws: Draws) -> Iterator[tuple[datetime, Kind, str]]:
    """Between the first and the last word: triage, seen, another ward, a leave."""
    ward, seen = draws.unit(), draws.between(0.3, 0.7)
    length = piece.end - piece.start
    if piece.care is Care.ED:
        if piece.triaged:
            yield piece.triaged, Kind.ADMIT, "triaged"
            if piece.leaving not in (Leaving.UNSEEN, Leaving.REDIRECTED):
                between = (piece.end - piece.triaged) * seen
                at = piece.triaged + timedelta(seconds=int(between.total_seconds()))
                yield at, Kind.ADMIT, "in-progress"
        return
    if piece.away:
        yield piece.away[0], Kind.TRANSFER, "onleave"
        yield piece.away[1], Kind.TRANSFER, "in-progress"
        return
    moves = (
        0 if length < timedelta(days=1) else 2 if length > timedelta(days=7) and ward < 0.5 else 1
    )
    for each in range(moves):
        part = length * ((each + 1) * (0.2 + 0.2 * seen))
        at = piece.start + timedelta(seconds=int(part.total_seconds()))
        yield at, Kind.TRANSFER, "in-progress"


class _Silence(NamedTuple):
    site: int
    start: datetime
    end: datetime


def _silences(profile: Profile, days: int) -> Iterator[_Silence]:
    """Six hours in a month in which nothing comes from one hospital."""
    for month in range(days // 30 + 1):
        draws = Draws(profile.seed, "silence", month)
        site, day, second = draws.below(len(profile.sites)), draws.below(30), draws.below(64_800)
        start = instant(profile, month * 30 + day, second)
        if draws.chance(profile.noise.silence):
            yield _Silence(site, start, start + timedelta(hours=6))


def _after(silent: Sequence[_Silence], message: Message) -> Message:
    """What falls into a silence is sent at its end, in the order it would have had."""
    for each in silent:
        if message.site == each.site and each.start <= message.sent < each.end:
            shift = (message.sent - each.start).total_seconds() / 360
            return message._replace(sent=each.end + timedelta(seconds=int(shift)))
    return message

"""What the hospitals send of what happens: message by message, with the noise of real feeds.

The first hospital opens an encounter for each piece of care; the second keeps one encounter
from the emergency department to the ward and changes its class (CR-02). Noise has streams of
its own and never disturbs what happened (SIM-02).
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from enum import StrEnum

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
from services.simulator.profiles import Noise, Profile
from services.simulator.region import YEAR, ZONE, Person, people

TRANSMISSION = timedelta(seconds=2)
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


@dataclass(frozen=True, slots=True)
class Identity:
    """One record that one hospital keeps of a patient."""

    record: str
    person: Person | None
    """None: nobody knows yet who it is."""
    cards: tuple[str, ...] = ()
    """Health cards, the one in force first."""
    active: bool = True
    replaced_by: str | None = None
    deceased: datetime | None = None


@dataclass(frozen=True, slots=True)
class Snapshot:
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
    """The start's offset is wrong by an hour."""
    unmapped: bool = False


@dataclass(frozen=True, slots=True)
class Message:
    id: str
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


@dataclass(frozen=True, slots=True)
class Mishap:
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


@dataclass(frozen=True, slots=True)
class Visit:
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
            visit = replace(earlier, pieces=(*earlier.pieces, each))
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

    `mishaps` by number of the encounter's first happening; drawn from the noise if None.
    """
    renewed = _renewal(profile, person, days) if mishaps is None else None
    by_patient: dict[int, list[Happening]] = {}
    for each in happenings:
        by_patient.setdefault(each.person, []).append(each)
    sender = _Sender(profile, person.number)
    for number, own in by_patient.items():
        patient = person if number == person.number else _child(person, number, own[0])
        sender.patient(patient, visits(own), renewed, mishaps)
    return sorted(sender.messages, key=in_order)


def _child(mother: Person, number: int, birth: Happening) -> Person:
    born = birth.start.astimezone(ZONE).date()
    return replace(
        mother,
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
        for visit in sorted(own, key=lambda one: one.first.start):
            noise = Draws(self._profile.seed, person.number, "noise", visit.first.number)
            drawn = _mishap(self._profile.noise, noise, visit)
            mishap = drawn if mishaps is None else mishaps.get(visit.first.number, Mishap())
            cards = (person.card,) if person.card else ()
            if person.card and renewed and visit.first.start > renewed:
                cards = (f"TEST{person.number + RENEWED:08d}", *cards)
            identity = Identity(record_number(person.number), person, cards)
            self._visit(visit, identity, mishap, noise, noisy=mishaps is None)

    def _visit(
        self, visit: Visit, identity: Identity, mishap: Mishap, noise: Draws, *, noisy: bool
    ) -> None:
        site = visit.first.site
        used = identity
        if mishap.unidentified:
            used = Identity(visit.number.replace("TEST-V", "TEST-TMP-"), None)
        elif mishap.second_record:
            used = replace(identity, record=_second(identity, visit), cards=())
        self._introduce(site, used, visit.first.start)
        steps = list(_steps(self._profile, visit, mishap))
        for number, (at, kind, snapshot) in enumerate(steps):
            one = self._message(
                site, at, kind, used, snapshot=snapshot, name=f"{visit.number}.{number}"
            )
            if noisy:
                one = _delayed(self._profile.noise, noise, one)
            self.messages.append(one)
            if noisy and noise.chance(self._profile.noise.duplicate):
                again = replace(one, sent=one.sent + timedelta(seconds=30 + noise.below(600)))
                self.messages.append(again)
        if mishap.stray:
            self._stray(visit, used)
        for since, undone in _merges(mishap):
            self._introduce(site, identity, since, again=True)
            gone = replace(used, active=False, replaced_by=identity.record)
            self._introduce(site, gone, since + timedelta(seconds=5))
            if undone is not None:
                self._introduce(site, used, undone, again=True)
        if visit.last.leaving in DEATHS:
            self._introduce(site, replace(identity, deceased=visit.last.end), visit.last.end)

    def _stray(self, visit: Visit, used: Identity) -> None:
        """An encounter registered for the wrong patient, and taken back."""
        start = visit.first.start + timedelta(hours=26)
        wrong = Snapshot(f"{visit.number}-X", "arrived", ((Care.ED, start),), start)
        site = visit.first.site
        self.messages.append(
            self._message(site, start, Kind.ADMIT, used, snapshot=wrong, name=f"{wrong.visit}.0")
        )
        later = start + timedelta(hours=3)
        wrong = replace(wrong, status="entered-in-error")
        self.messages.append(
            self._message(
                site, later, Kind.TAKEN_BACK, used, snapshot=wrong, name=f"{wrong.visit}.1"
            )
        )

    def _introduce(
        self, site: int, identity: Identity, at: datetime, *, again: bool = False
    ) -> None:
        """A Patient message, where the hospital has something new to say of the record."""
        if self._known.get((site, identity.record)) == identity and not again:
            return
        self._known[(site, identity.record)] = identity
        name = f"{site}.{identity.record}.{at.isoformat()}"
        self.messages.append(self._message(site, at, Kind.PATIENT, identity, name=name))

    def _message(
        self,
        site: int,
        at: datetime,
        kind: Kind,
        identity: Identity,
        *,
        snapshot: Snapshot | None = None,
        name: str,
    ) -> Message:
        order = len(self.messages)
        id_ = code(self._profile.seed, "message", name)
        return Message(
            id_, at, at + TRANSMISSION, site, self._lane, order, kind, identity, snapshot
        )


def _second(identity: Identity, visit: Visit) -> str:
    return f"{identity.record}-{visit.first.number:02d}"


def _merges(mishap: Mishap) -> Iterator[tuple[datetime, datetime | None]]:
    if mishap.unidentified:
        yield mishap.unidentified, None
    elif mishap.second_record:
        yield mishap.second_record


def _mishap(rates: Noise, noise: Draws, visit: Visit) -> Mishap:
    """Draws all, whatever the rates, so that a changed rate moves nothing else."""
    stray, merge, undone = noise.unit(), noise.unit(), noise.unit()
    temporary, lost, shifted = noise.unit(), noise.unit(), noise.unit()
    unmapped, day_only = noise.unit(), noise.unit()
    end = visit.last.end
    merged = end + timedelta(days=1)
    back = merged + timedelta(days=2) if undone < rates.merge_undone else None
    known = visit.first.person < NEWBORNS
    return Mishap(
        stray=stray < rates.void,
        second_record=(merged, back) if merge < rates.merge and known else None,
        unidentified=visit.first.start + timedelta(hours=20)
        if temporary < rates.temporary_identity and known
        else None,
        no_discharge=lost < rates.missing_discharge,
        shifted=shifted < rates.wrong_offset,
        unmapped=unmapped < rates.unmapped_class,
        day_only=day_only < rates.day_only,
    )


def _delayed(rates: Noise, noise: Draws, one: Message) -> Message:
    late, far = noise.unit(), noise.unit()
    minutes, hours = noise.lognormal(3.0, 1.0), noise.between(6.0, 30.0)
    wait = 0.0
    if far < rates.far_out_of_order:
        wait = 3600 * hours
    elif late < rates.out_of_order:
        wait = 60 * minutes
    return replace(one, sent=one.sent + timedelta(seconds=round(wait)))


def _steps(
    profile: Profile, visit: Visit, mishap: Mishap
) -> Iterator[tuple[datetime, Kind, Snapshot]]:
    """The states an encounter is sent in: 3 to 6 for the most."""
    draws = Draws(profile.seed, visit.first.person, "steps", visit.first.number)
    early, coded, wait = draws.chance(0.5), draws.chance(0.5), draws.lognormal(6.0, 0.8)
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
        yield mishap.void, Kind.TAKEN_BACK, replace(now, status="entered-in-error")
        return
    if first.leaving is Leaving.CANCELLED:
        yield first.end, Kind.TAKEN_BACK, replace(now, status="cancelled")
        return
    for piece in visit.pieces:
        if piece is not first:
            classes = (*now.classes, (piece.care, piece.start))
            service = piece.service or now.service
            now = replace(now, status="in-progress", classes=classes, service=service)
            yield piece.start, Kind.TRANSFER, now
        for at, kind, status in _course(piece, draws):
            now = replace(now, status=status)
            yield at, kind, now
    if last.leaving is Leaving.REVERTED:
        if last is first:
            yield last.end, Kind.TAKEN_BACK, replace(now, status="cancelled")
            return
        classes = (*now.classes, (Care.ED, last.end))
        now = replace(now, classes=classes)
        yield last.end, Kind.TRANSFER, now
    if mishap.no_discharge:
        return
    end = last.end + timedelta(minutes=10) if last.leaving is Leaving.REVERTED else last.end
    now = replace(
        now,
        status="finished",
        end=end,
        leaving=_as_coded(last),
        code=last.code if early or not coded else None,
    )
    yield end, Kind.DISCHARGE, now
    if coded:
        at = end + timedelta(days=min(wait, 45.0))
        yield at.replace(microsecond=0), Kind.DISCHARGE, replace(now, code=last.code)


def _as_coded(piece: Happening) -> Leaving:
    """A transfer that nobody coded looks like going home (CR-17)."""
    uncoded = piece.leaving is Leaving.TRANSFERRED and not piece.transfer_out
    return Leaving.HOME if uncoded else piece.leaving


def _course(piece: Happening, draws: Draws) -> Iterator[tuple[datetime, Kind, str]]:
    """Between the first and the last word: triage, seen, another ward, a leave."""
    length = piece.end - piece.start
    ward, seen = draws.unit(), draws.between(0.3, 0.7)
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


@dataclass(frozen=True, slots=True)
class _Silence:
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
            return replace(message, sent=each.end + timedelta(seconds=int(shift)))
    return message

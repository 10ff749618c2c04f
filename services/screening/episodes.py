"""Which encounters are one event in a life: counting.md section 3.

Three groupings, each over all sites and whatever the diagnosis: encounters that are one ED
visit, encounters that are one hospital episode, and the ED visit with the episode that
follows it, which is one care episode and one card.
"""

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum
from uuid import UUID

from services.screening.ledger import VOID, Disposition, Fact, Moment, Status
from services.screening.policy import Link, Policy


class Kind(StrEnum):
    ED = "ed"
    HOSPITAL = "hospital"


EARLY = timedelta(minutes=5)
"""How long before its start a message may say `planned` of an ED visit that has come (CT-16)."""


@dataclass(frozen=True, slots=True)
class Segment:
    """The part of one encounter that is an ED visit, or a stay (CT-20)."""

    fact: Fact
    kind: Kind
    start: Moment
    end: Moment
    """Assumed if `is_open` (CT-23)."""
    is_open: bool
    coded_in: bool
    """A transfer in is coded, and the encounter begins with this segment."""
    coded_out: bool
    """A transfer out is coded, and the encounter ends with this segment."""
    alone: bool
    """The encounter has no segment of the other kind."""
    reverted: bool = False
    """A stay that was taken back: the encounter is an ED visit again (CR-50)."""


@dataclass(frozen=True, slots=True)
class Group:
    """Linked segments of one kind: one ED visit, or one hospital episode (CT-21)."""

    kind: Kind
    members: tuple[Segment, ...]
    """By start."""
    anchor: datetime
    end: Moment
    """Latest end; assumed while `is_open`."""
    is_open: bool

    @property
    def key(self) -> UUID:
        return self.members[0].fact.encounter


@dataclass(frozen=True, slots=True)
class Care:
    """An ED visit and the hospital episode that follows: what one card is about (CT-26)."""

    key: UUID
    """Of its first recorded encounter."""
    groups: tuple[Group, ...]
    """By anchor."""

    @property
    def facts(self) -> list[Fact]:
        """Each encounter once, by start."""
        return list({m.fact.encounter: m.fact for g in self.groups for m in g.members}.values())


def segments(fact: Fact, policy: Policy) -> list[Segment]:
    """The ED visit and the stay that one encounter is, by its class history (CT-16, CT-20).

    At most one of each: from the first instant with a class of the kind to the last. So an
    encounter is in exactly one item per kind (CT-60), and a stay that was taken back and
    given again is one stay.
    """
    if fact.start is None or not fact.classes or fact.status in VOID:
        return []
    kinds = [
        Kind.ED
        if code in policy.ed_classes
        else Kind.HOSPITAL
        if code in policy.hospital_classes
        else None
        for code, _ in fact.classes
    ]
    wanted = [Kind.ED, Kind.HOSPITAL]
    if fact.status is Status.PLANNED:
        if fact.event_time < fact.start.earliest - EARLY:
            return []
        wanted = [Kind.ED]
    wanted = [kind for kind in wanted if kind in kinds]
    if not wanted:
        return []
    end = fact.end
    if end is not None and end.latest < fact.start.earliest:
        end = fact.start
    starts = [fact.start] + [_within(since, fact.start, end) for _, since in fact.classes[1:]]
    last = len(kinds) - 1
    found = []
    for kind in wanted:
        first = kinds.index(kind)
        final = last - kinds[::-1].index(kind)
        begin = starts[first]
        finish = end if final == last else starts[final + 1]
        assumed = policy.ed.assumed_end if kind is Kind.ED else policy.hospital.assumed_end
        found.append(
            Segment(
                fact=fact,
                kind=kind,
                start=begin,
                end=finish or Moment(begin.earliest + assumed, begin.latest + assumed),
                is_open=finish is None,
                coded_in=first == 0 and fact.transfer_in,
                coded_out=final == last
                and (fact.transfer_out or fact.disposition is Disposition.TRANSFERRED),
                alone=len(wanted) == 1,
                reverted=kind is Kind.HOSPITAL and kinds[-1] is Kind.ED,
            )
        )
    return found


def _within(since: datetime, start: Moment, end: Moment | None) -> Moment:
    """A class change lies inside its encounter, whatever the clocks of its messages say."""
    if since <= start.earliest:
        return start
    if end is not None and since > end.latest:
        return end
    return Moment(since, since)


def grouped(parts: Iterable[Segment], policy: Policy) -> list[Group]:
    """All ED visits and hospital episodes of one person, by anchor (CT-21 to CT-24)."""
    by_kind: dict[Kind, list[Segment]] = {}
    for part in parts:
        by_kind.setdefault(part.kind, []).append(part)
    groups = [
        _group(members)
        for kind, members in by_kind.items()
        for members in _closed(members, _is_one_visit if kind is Kind.ED else _is_one_stay, policy)
    ]
    groups.sort(key=lambda g: (g.anchor, g.key, g.kind))
    return groups


Linked = Callable[[Segment, Segment, Policy], bool]


def _closed(parts: list[Segment], linked: Linked, policy: Policy) -> list[list[Segment]]:
    """The transitive closure of `linked`, comparing only what can still touch."""
    if len(parts) == 1:
        return [parts]
    parts.sort(key=lambda s: (s.start.earliest, s.end.earliest, s.fact.encounter))
    root = list(range(len(parts)))

    def find(i: int) -> int:
        while root[i] != i:
            root[i] = i = root[root[i]]
        return i

    at = {s.fact.encounter: i for i, s in enumerate(parts)}
    reach = _reach(policy)
    near: list[int] = []
    for j, later in enumerate(parts):
        near = [i for i in near if parts[i].end.latest + reach >= later.start.earliest]
        for i in near:
            if find(i) != find(j) and linked(parts[i], later, policy):
                root[find(j)] = find(i)
        near.append(j)
        if later.fact.part_of in at:
            root[find(j)] = find(at[later.fact.part_of])
    found: dict[int, list[Segment]] = {}
    for i, part in enumerate(parts):
        found.setdefault(find(i), []).append(part)
    return list(found.values())


def _reach(policy: Policy) -> timedelta:
    """What begins longer after an end than this is linked to it by `partOf` alone."""
    return max(
        policy.ed.reregistration,
        policy.ed.link.coded_up_to,
        policy.ed.link.below,
        policy.hospital.link.coded_up_to,
        policy.hospital.link.below,
        timedelta(days=3),  # a day, and the date after it, wherever the clock changes
    )


def _group(members: list[Segment]) -> Group:
    return Group(
        kind=members[0].kind,
        members=tuple(members),
        anchor=members[0].start.earliest,
        end=max((m.end for m in members), key=lambda e: (e.latest, e.earliest)),
        is_open=any(m.is_open for m in members),
    )


def _is_one_visit(earlier: Segment, later: Segment, policy: Policy) -> bool:
    """ED: registered again at the same site (CR-05), or transferred to another (CR-04)."""
    if earlier.fact.site == later.fact.site:
        return _is_registered_again(earlier, later, policy)
    return _passes(earlier, later, policy.ed.link, policy)


def _is_registered_again(earlier: Segment, later: Segment, policy: Policy) -> bool:
    """Overlapping, or within the time a policy allows (CR-05); zero: never."""
    gap, longest = between(earlier, later), policy.ed.reregistration
    return bool(longest) and gap is not None and gap <= longest


def _is_one_stay(earlier: Segment, later: Segment, policy: Policy) -> bool:
    """Stays: transferred, at the same site or to another (CR-17)."""
    return _passes(earlier, later, policy.hospital.link, policy)


def link(earlier: Segment, later: Segment, policy: Policy) -> str | None:
    """The rule by which two parts of one kind are linked, if they are: without a third."""
    if earlier.fact.part_of == later.fact.encounter or later.fact.part_of == earlier.fact.encounter:
        return "CR-03"
    if earlier.kind is Kind.HOSPITAL:
        return "CR-17" if _is_one_stay(earlier, later, policy) else None
    if not _is_one_visit(earlier, later, policy):
        return None
    return "CR-05" if earlier.fact.site == later.fact.site else "CR-04"


def _passes(earlier: Segment, later: Segment, link: Link, policy: Policy) -> bool:
    """The gap rule (CT-22). Zero links nothing, not even an overlap: `below` at zero nothing
    uncoded, `coded_up_to` at zero nothing that is coded.
    """
    coded = bool(link.coded_up_to) and (earlier.coded_out or later.coded_in)
    gap = between(earlier, later)
    if gap is None:
        return coded and _days_apart(earlier, later, policy) <= 1
    return (bool(link.below) and gap < link.below) or (coded and gap <= link.coded_up_to)


def between(earlier: Segment, later: Segment) -> timedelta | None:
    """From the earlier end to the later start, negative if they overlap; None unless both
    are exact (CT-24).
    """
    if not (earlier.end.exact and later.start.exact):
        return None
    return later.start.earliest - earlier.end.earliest


def _days_apart(earlier: Segment, later: Segment, policy: Policy) -> int:
    """Local dates from the earlier end to the later start.

    The middle of a day is on that date in every zone of the country.
    """
    dates = [
        (m.earliest + (m.latest - m.earliest) / 2).astimezone(policy.zone).date()
        for m in (earlier.end, later.start)
    ]
    return (dates[1] - dates[0]).days


def tied(visit: Group, stay: Group, policy: Policy) -> str | None:
    """The rule by which `stay` follows the ED visit, if it does (CT-26)."""
    ed = {m.fact.encounter: m.fact for m in visit.members}
    hospital = {m.fact.encounter: m.fact for m in stay.members}
    if ed.keys() & hospital.keys():
        return "CR-02"
    if any(f.part_of in ed for f in hospital.values()) or any(
        f.part_of in hospital for f in ed.values()
    ):
        return "CR-03"
    last = max(visit.members, key=lambda m: (m.end.latest, m.end.earliest, m.fact.encounter))
    first = stay.members[0]
    if stay.anchor >= visit.anchor and _passes(last, first, policy.hospital.link, policy):
        return "CR-03" if first.fact.from_emergency else "CR-01"
    return None


class Stays:
    """The hospital episodes of one person, to find those an ED visit can be tied to: a long life
    has many of both, and nearly all pairs are years apart.
    """

    def __init__(self, groups: Sequence[Group], policy: Policy) -> None:
        self._stays = [g for g in groups if g.kind is Kind.HOSPITAL]
        self._anchors = [stay.anchor for stay in self._stays]
        self._reach = _reach(policy)
        self._named: dict[UUID, set[int]] = {}
        for i, stay in enumerate(self._stays):
            for member in stay.members:
                for name in (member.fact.encounter, member.fact.part_of):
                    if name is not None:
                        self._named.setdefault(name, set()).add(i)

    def near(self, visit: Group) -> list[Group]:
        """By anchor, those that `tied` may tie to `visit`, and few others."""
        low = bisect_left(self._anchors, visit.anchor)
        high = bisect_right(self._anchors, visit.end.latest + self._reach)
        found = set(range(low, high))
        for member in visit.members:
            for name in (member.fact.encounter, member.fact.part_of):
                if name in self._named:
                    found |= self._named[name]
        return [self._stays[i] for i in sorted(found)]


def care(groups: Sequence[Group], policy: Policy) -> list[Care]:
    """The care episodes that `groups` make up, by their first anchor (CT-26)."""
    root = {id(g): i for i, g in enumerate(groups)}
    stays = Stays(groups, policy)
    for visit in groups:
        if visit.kind is not Kind.ED:
            continue
        for stay in stays.near(visit):
            if tied(visit, stay, policy):
                old, new = root[id(stay)], root[id(visit)]
                root = {g: new if r == old else r for g, r in root.items()}
    found: dict[int, list[Group]] = {}
    for group in groups:
        found.setdefault(root[id(group)], []).append(group)
    return [
        Care(
            key=min((m.fact.first_recorded, m.fact.encounter) for g in members for m in g.members)[
                1
            ],
            groups=tuple(members),
        )
        for members in found.values()
    ]

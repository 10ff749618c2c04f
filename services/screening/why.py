"""What counted, what did not, and the reason: counting.md sections 7 and 8.

A rule that takes something out of the count leaves its code as the reason; a rule that
merely applied leaves a note. Either way a person can see which rule it was (CT-60).
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from uuid import UUID

from services.screening import episodes
from services.screening.episodes import Group, Kind, Segment
from services.screening.ledger import Disposition, Fact, Moment, Service, Status
from services.screening.policy import Policy
from services.screening.window import Window


@dataclass(frozen=True, slots=True)
class Note:
    code: str
    rule: str | None = None
    gap: timedelta | None = None


@dataclass(frozen=True, slots=True)
class Judged:
    """An ED visit or hospital episode, and why it does not count; None: it does."""

    group: Group
    reason: Note | None


@dataclass(frozen=True, slots=True)
class Item:
    """What an explanation says of one visit, episode or other encounter (CT-60)."""

    kind: Kind
    anchor: datetime
    end: datetime | None
    exact: bool
    sites: tuple[str, ...]
    facts: tuple[Fact, ...]
    counted: bool
    reason: Note | None
    notes: tuple[Note, ...]


@dataclass(frozen=True, slots=True)
class Why:
    items: tuple[Item, ...]
    """Newest first, then by key."""
    outside_window: int
    """Items that have left all that is looked back to."""
    entered_in_error: int
    pathway: str | None
    restless: datetime | None
    """Next instant at which any of this reads differently without a new fact (CT-45)."""


MANUAL = Note("MANUAL", "CT-17")
"""A hospital case manager took it out, whatever the policy and the site say."""

ICD_10 = ("icd-10", "2.16.840.1.113883.6.3", "2.16.840.1.113883.6.90")
"""What the name of a code system contains if its codes are ICD-10, of any country."""


def judge(groups: Sequence[Group], policy: Policy) -> list[Judged]:
    """Which of `groups` count. An exclusion takes a group out only if every member has one;
    the reason is the first member's (CT-25).
    """
    stays = [m for g in groups if g.kind is Kind.HOSPITAL for m in g.members]
    judged = []
    for group in groups:
        visit = group.kind is Kind.ED
        by_hand = all(m.fact.excluded for m in group.members)
        if visit and not (policy.ed.admitted or by_hand) and _admission(group, groups, policy):
            judged.append(Judged(group, Note("ADMITTED", "CR-01")))
            continue
        reasons = [_reason(_said_of(m, stays, policy)) for m in group.members]
        judged.append(Judged(group, reasons[0] if all(reasons) else None))
    return judged


Said = Iterator[tuple[Note, bool]]
"""Each rule that applies to a segment, and whether it keeps it from counting."""

REASONS_ONLY = frozenset({"EXCLUDED_SITE", "PREGNANCY", "MENTAL_HEALTH"})
"""Codes that section 7 does not give to what counts: it says no more than yes."""


def _reason(said: Said) -> Note | None:
    """The first rule by which it does not count, in the order of the chapter."""
    return next((note for note, excludes in said if excludes), None)


def _said_of(member: Segment, stays: Sequence[Segment], policy: Policy) -> Said:
    if member.kind is Kind.ED:
        return _said_of_visit(member, stays, policy)
    return _said_of_stay(member, policy)


def _said_of_visit(visit: Segment, stays: Sequence[Segment], policy: Policy) -> Said:
    fact, rules = visit.fact, policy.ed
    if fact.excluded:
        yield MANUAL, True
    if fact.planned:
        yield Note("PLANNED", "CR-07"), not rules.planned
    if fact.disposition is Disposition.LEFT_WITHOUT_BEING_SEEN:
        yield Note("LWBS", "CR-08"), not rules.lwbs
    if _was_nothing(fact, policy):
        yield Note("CANCELLED", "CR-10"), True
    if fact.disposition is Disposition.REDIRECTED:
        yield Note("REDIRECTED", "CR-11"), not rules.redirected
    if fact.disposition is Disposition.DEAD_ON_ARRIVAL:
        yield Note("DOA", "CR-12"), True
    if fact.site in rules.excluded_sites:
        yield Note("EXCLUDED_SITE", "CR-13"), True
    if not rules.pregnancy and _coded(fact, policy.codes.pregnancy):
        yield Note("PREGNANCY", "CR-21"), True
    if fact.service is Service.NEWBORN or _coded(fact, policy.codes.newborn):
        yield Note("NEWBORN", "CR-22"), True
    if fact.service is Service.ORGAN_DONATION:
        yield Note("DONOR", "CR-27"), True
    if _from_a_ward(visit, stays, policy):
        yield Note("DURING_STAY", "CR-49"), not rules.during_stay


def _was_nothing(fact: Fact, policy: Policy) -> bool:
    """Finished within minutes, untriaged, and not because the patient had enough of waiting."""
    return (
        fact.status is Status.FINISHED
        and not fact.triaged
        and fact.disposition is not Disposition.LEFT_WITHOUT_BEING_SEEN
        and fact.start is not None
        and fact.end is not None
        and fact.start.exact
        and fact.end.exact
        and fact.end.earliest - fact.start.earliest < policy.ed.min_if_untriaged
    )


def _from_a_ward(visit: Segment, stays: Sequence[Segment], policy: Policy) -> bool:
    """Whether the patient came from a stay at another site: inside a closed one; or, if a
    transfer in is coded, out of any that the transfer can have begun in (CR-49).
    """
    at = visit.start.earliest
    for stay in stays:
        if stay.fact.site == visit.fact.site or stay.start.earliest >= at:
            continue
        if not stay.is_open and at < stay.end.latest:
            return True
        if visit.coded_in and at <= stay.end.latest + policy.hospital.link.coded_up_to:
            return True
    return False


def _said_of_stay(stay: Segment, policy: Policy) -> Said:
    fact, rules, codes = stay.fact, policy.hospital, policy.codes
    if fact.excluded:
        yield MANUAL, True
    if fact.service is Service.DAY_SURGERY or all(
        c == "SS" for c, _ in fact.classes if c in policy.hospital_classes
    ):
        yield Note("DAY_SURGERY", "CR-16"), not rules.day_surgery
    if _is_elective(stay):
        yield Note("ELECTIVE", "CR-19"), not rules.elective
    if fact.service is Service.OBSTETRICS or _coded(fact, codes.obstetric) or _delivered(fact):
        yield Note("OBSTETRIC", "CR-20"), not rules.obstetric
    if fact.service is Service.NEWBORN or _coded(fact, codes.newborn):
        yield Note("NEWBORN", "CR-22"), True
    if fact.service is Service.SERIES or _coded(fact, codes.series):
        yield Note("SERIES", "CR-23"), not rules.series
    if fact.service is Service.DIALYSIS or _coded(fact, codes.dialysis):
        yield Note("DIALYSIS", "CR-24"), not rules.dialysis
    if not rules.mental_health and (
        fact.service is Service.MENTAL_HEALTH or _coded(fact, codes.mental_health)
    ):
        yield Note("MENTAL_HEALTH", "CR-25"), True
    if _is_palliative(fact, policy):
        yield Note("PALLIATIVE", "CR-26"), not rules.palliative
    if fact.service is Service.ORGAN_DONATION:
        yield Note("DONOR", "CR-27"), True
    if stay.reverted and not _sees_midnight(stay, policy):
        yield Note("REVERTED", "CR-50"), not rules.reverted_same_day


def _is_elective(stay: Segment) -> bool:
    """Who was admitted from the ED of the same encounter had planned the visit, not the stay."""
    return stay.fact.planned and stay.alone


def _is_palliative(fact: Fact, policy: Policy) -> bool:
    return fact.service is Service.PALLIATIVE or _coded(fact, policy.codes.palliative)


def _sees_midnight(stay: Segment, policy: Policy) -> bool:
    first = stay.start.earliest.astimezone(policy.zone).date()
    return stay.end.latest.astimezone(policy.zone).date() > first


def _coded(fact: Fact, prefixes: tuple[str, ...]) -> bool:
    return bool(fact.codes) and any(code.startswith(prefixes) for _, code in _icd_10(fact))


def _delivered(fact: Fact) -> bool:
    """ICD-10-CA says in the sixth character of an O code whether the delivery was in this stay."""
    return bool(fact.codes) and any(
        "icd-10-ca" in system and code.startswith("O") and code[5:6] in {"1", "2"}
        for system, code in _icd_10(fact)
    )


def _icd_10(fact: Fact) -> Iterable[tuple[str, str]]:
    for coding in fact.codes or ():
        system = coding.system.lower()
        if any(name in system for name in ICD_10):
            yield system, coding.code.replace(".", "").upper()


def explain(facts: Sequence[Fact], judged: Sequence[Judged], policy: Policy, now: datetime) -> Why:
    """Everything that a clause can look back to from `now`, counted or not."""
    window = Window.ending(now, policy.lookback)
    groups = [j.group for j in judged]
    stays = [m for g in groups if g.kind is Kind.HOSPITAL for m in g.members]
    shown = [_item(j, groups, stays, policy, now) for j in judged if j.group.anchor in window]
    placed = {(m.fact.encounter, g.kind) for g in groups for m in g.members}
    loose = [
        item
        for fact in facts
        if fact.start is not None
        for item in _uncounted(fact, fact.start, placed, policy)
    ]
    shown += [item for item in loose if item.anchor in window]
    shown.sort(key=lambda i: (min(f.encounter for f in i.facts), i.kind))
    shown.sort(key=lambda i: i.anchor, reverse=True)
    anchors = [g.anchor for g in groups] + [i.anchor for i in loose]
    turns = [
        turn for anchor in anchors for turn in (anchor, anchor + policy.lookback) if turn > now
    ] + [turn for g in groups if g.is_open for turn in _doubts(g, policy) if turn > now]
    return Why(
        items=tuple(shown),
        outside_window=sum(anchor <= window.after for anchor in anchors),
        entered_in_error=sum(f.status is Status.ENTERED_IN_ERROR for f in facts),
        pathway="palliative"
        if any(
            i.kind is Kind.HOSPITAL and any(_is_palliative(f, policy) for f in i.facts)
            for i in shown
            if i.reason is None or i.reason.code != "CANCELLED"
        )
        else None,
        restless=min(turns, default=None),
    )


def _item(
    judged: Judged,
    groups: Sequence[Group],
    stays: Sequence[Segment],
    policy: Policy,
    now: datetime,
) -> Item:
    group = judged.group
    facts = tuple(m.fact for m in group.members)
    notes = _notes(group, groups, stays, policy, now)
    reason = judged.reason
    return Item(
        kind=group.kind,
        anchor=group.anchor,
        end=None if group.is_open else group.end.earliest,
        exact=group.members[0].start.exact,
        sites=tuple(dict.fromkeys(f.site for f in facts)),
        facts=facts,
        counted=reason is None,
        reason=reason,
        notes=tuple(n for n in notes if reason is None or n.code != reason.code),
    )


def _notes(
    group: Group,
    groups: Sequence[Group],
    stays: Sequence[Segment],
    policy: Policy,
    now: datetime,
) -> list[Note]:
    """Each rule that applied, once, in the order of the encounters."""
    found = _links(group, policy)
    if doubt := _doubt(group, policy, now):
        found.append(doubt)
    if group.kind is Kind.ED and (rule := _admission(group, groups, policy)):
        found.append(Note("ADMITTED", rule))
    for member in group.members:
        fact = member.fact
        classes = {code for code, _ in fact.classes}
        found += [n for n, _ in _said_of(member, stays, policy) if n.code not in REASONS_ONLY]
        if group.kind is Kind.ED or member.alone:
            counted = policy.ed_classes | policy.hospital_classes
            if "OBSENC" in classes - counted:
                found.append(Note("OBSERVATION", "CR-15"))
        if (group.kind is Kind.HOSPITAL or member.alone) and "NONAC" in classes - (
            policy.ed_classes | policy.hospital_classes
        ):
            found.append(Note("NONACUTE", "CR-18"))
        if fact.start_is_assumed:
            found.append(Note("START_ASSUMED", "CR-30"))
        if fact.backfill or _is_late(fact, policy):
            found.append(Note("LATE", "CR-31"))
        if fact.time_is_ambiguous:
            found.append(Note("AMBIGUOUS_TIME", "CR-42"))
    return list(dict.fromkeys(found))


def _is_late(fact: Fact, policy: Policy) -> bool:
    return fact.start is not None and fact.first_recorded - fact.start.latest > policy.alert_max_age


def _links(group: Group, policy: Policy) -> list[Note]:
    """What made its members one: for each rule that links one to what was before it, the gap to
    the last of those. Two that only a third has joined are not said to be linked.
    """
    found = []
    for i, later in enumerate(group.members[1:], start=1):
        before = sorted(group.members[:i], key=lambda m: m.end.latest)
        tied = {rule: m for m in before if (rule := episodes.link(m, later, policy))}
        for rule, last in tied.items():
            gap = None if last.is_open else episodes.between(last, later)
            if gap is not None and gap < timedelta(0):
                gap = None
            found.append(Note("REREGISTERED" if rule == "CR-05" else "LINKED", rule, gap))
    return found


def _doubts(group: Group, policy: Policy) -> list[datetime]:
    """When an open group ceases to be believed present, and when it is called stale."""
    rules = policy.ed if group.kind is Kind.ED else policy.hospital
    return [
        turn
        for m in group.members
        if m.is_open
        for turn in (m.end.latest, m.start.earliest + rules.stale_open)
    ]


def _doubt(group: Group, policy: Policy, now: datetime) -> Note | None:
    rules = policy.ed if group.kind is Kind.ED else policy.hospital
    still = [m for m in group.members if m.is_open]
    if any(now >= m.start.earliest + rules.stale_open for m in still):
        return Note("STALE_OPEN", "CR-29")
    if any(now >= m.end.latest for m in still):
        return Note("NOT_CLOSED", "CT-23")
    return Note("OPEN") if still else None


def _admission(visit: Group, groups: Sequence[Group], policy: Policy) -> str | None:
    """The rule by which an ED visit ended in an admission, if it did (CR-01 to CR-03)."""
    for group in groups:
        if group.kind is Kind.HOSPITAL and (rule := episodes.tied(visit, group, policy)):
            return rule
    if any(m.fact.disposition is Disposition.ADMITTED for m in visit.members):
        return "CR-01"
    return None


_NEVER = {
    "NONAC": (Kind.HOSPITAL, Note("NONACUTE", "CR-18")),
    "OBSENC": (Kind.HOSPITAL, Note("OBSERVATION", "CR-15")),
    "SS": (Kind.HOSPITAL, Note("DAY_SURGERY", "CR-16")),
    "AMB": (Kind.ED, Note("NOT_ED", "CR-14")),
    "HH": (Kind.ED, Note("NOT_ED", "CR-14")),
    "VR": (Kind.ED, Note("NOT_ED", "CR-14")),
    "FLD": (Kind.ED, Note("NOT_ED", "CR-14")),
    "PRENC": (Kind.HOSPITAL, Note("NOT_ADMITTED", "CT-04")),
    "EMER": (Kind.ED, Note("NOT_ED", "CT-04")),
    "IMP": (Kind.HOSPITAL, Note("NOT_COUNTED", "CT-04")),
    "ACUTE": (Kind.HOSPITAL, Note("NOT_COUNTED", "CT-04")),
}
"""What an encounter is, and why it is not counted, that never had a counted class (CT-04)."""


def _uncounted(
    fact: Fact, start: Moment, placed: set[tuple[UUID, Kind]], policy: Policy
) -> Iterable[Item]:
    """The encounters that no visit and no episode holds: void, planned, or of another class."""
    if fact.status is Status.ENTERED_IN_ERROR or not fact.classes:
        return
    reasons: dict[Kind, Note] = {}
    for code, _ in fact.classes:
        if code in policy.ed_classes:
            reasons[Kind.ED] = Note("PLANNED", "CT-16")
        elif code in policy.hospital_classes:
            reasons[Kind.HOSPITAL] = Note("PLANNED", "CT-16")
    if not reasons:
        kind, why = _NEVER[fact.classes[-1][0]]
        reasons = {kind: why}
    if fact.status is Status.CANCELLED:
        reasons = dict.fromkeys(reasons, Note("CANCELLED", "CR-10"))
    for kind, reason in reasons.items():
        if (fact.encounter, kind) not in placed:
            yield Item(
                kind=kind,
                anchor=start.earliest,
                end=fact.end.earliest if fact.end else None,
                exact=start.exact,
                sites=(fact.site,),
                facts=(fact,),
                counted=False,
                reason=reason,
                notes=(),
            )

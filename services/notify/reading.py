"""FHIR and events → the values the rules decide on.

A Consent that cannot be read becomes a Directive that is not computable (CS-13): it denies
everything and is a Hold. Nothing here raises on a Consent's content.
"""

import re
from calendar import monthrange
from collections.abc import Container, Iterable, Mapping, Sequence
from datetime import UTC, date, datetime, time, timedelta, tzinfo
from functools import cache
from typing import Any, Final
from zoneinfo import ZoneInfo

from schemas.envelope import Coding
from schemas.episode_changed_v1 import EpisodeChanged, EpisodeMoment
from schemas.flag_changed_v1 import Explanation, Item, Measure
from services.notify import card, recount
from services.notify.consent import (
    PARTICIPATION,
    TERMINOLOGY,
    Actor,
    Base,
    Code,
    Datum,
    Directive,
    Effect,
    Period,
    Reference,
    Rule,
)

CONSENT_SCOPE: Final = frozenset({TERMINOLOGY + "consentscope", "http://hl7.org/fhir/consentscope"})
POLICY_RULE: Final = frozenset({TERMINOLOGY + "v3-ActCode", "http://hl7.org/fhir/v3/ActCode"})
RULE_ELEMENTS: Final = frozenset(
    {
        "id",
        "extension",
        "type",
        "period",
        "actor",
        "action",
        "securityLabel",
        "purpose",
        "class",
        "code",
        "dataPeriod",
        "data",
        "provision",
    }
)
CONDITIONS: Final = ("actor", "action", "securityLabel", "purpose", "class", "code", "data")
CONSENT_ELEMENTS: Final = frozenset(
    {
        "resourceType",
        "id",
        "meta",
        "implicitRules",
        "language",
        "text",
        "contained",
        "extension",
        "modifierExtension",
        "identifier",
        "status",
        "scope",
        "category",
        "patient",
        "dateTime",
        "performer",
        "organization",
        "sourceAttachment",
        "sourceReference",
        "policy",
        "policyRule",
        "verification",
        "provision",
    }
)
STATUSES: Final = frozenset(
    {"draft", "proposed", "active", "rejected", "inactive", "entered-in-error"}
)
BASES: Final = frozenset(Base)
EFFECTS: Final = frozenset(Effect)
_ID: Final = re.compile(r"[A-Za-z0-9.-]{1,64}")
_VERSION: Final = re.compile(r"[0-9]{1,18}")
_FIRST: Final = datetime.min.replace(tzinfo=UTC)
_FOREVER: Final = datetime.max.replace(tzinfo=UTC)
_PARTIAL: Final = re.compile(r"(\d{4})(?:-(\d{2})(?:-(\d{2}))?)?")
_INSTANT: Final = re.compile(r"\d{4}-\d{2}-\d{2}T\d{2}:\d{2}:\d{2}(\.\d+)?(Z|[+-]\d{2}:\d{2})")
_LAST: Final = timedelta(microseconds=1)
Json = Mapping[str, Any]


class UnreadableError(ValueError):
    """A Consent element we cannot turn into a value. Says which, never what stood there."""


def directive(resource: Json, zone: tzinfo) -> Directive:
    """A FHIR R4 Consent as the engine judges it. `zone` gives partial dates their bounds."""
    version = _version(resource)
    dated, base, root, performers = None, None, None, None
    computable = version is not None
    try:
        dated = _first_instant(resource, "dateTime", zone)
        performers = _performers(resource)
        base = _base(resource.get("policyRule"))
        provision = resource.get("provision")
        root = None if provision is None else _rule(_object(provision), zone, root=True)
        if _is_odd(resource) or _modifies(resource):
            computable = False
    except (UnreadableError, ValueError, OverflowError, RecursionError):
        computable, root = False, None
    status = resource.get("status")
    return Directive(
        id=_id(resource),
        version=version,
        active=status == "active" or not _among(status, STATUSES),
        privacy=_is_privacy(resource),
        patient=_reference(resource.get("patient")),
        dated=dated,
        base=base,
        root=root,
        by_relatives_alone=bool(performers) and all(p is None for p in performers or ()),
        performers=tuple(p for p in performers or () if p is not None),
        computable=computable,
    )


def _is_odd(resource: Json) -> bool:
    """Not an R4 Consent as far as the rules read one, or read differently by others."""
    return (
        resource.get("resourceType") != "Consent"
        or resource.get("implicitRules") is not None
        or not _among(resource.get("status"), STATUSES)
        or (resource.get("id") is not None and not _id(resource))
        or not _is_concept(resource.get("scope"))
        or any(e not in CONSENT_ELEMENTS for e in resource if not e.startswith("_"))
    )


def _among(value: Any, known: Container[str]) -> bool:
    return isinstance(value, str) and value in known


def _is_concept(node: Any) -> bool:
    """Absent, or a CodeableConcept whose codings can be read."""
    if node is None:
        return True
    codings = node.get("coding", []) if isinstance(node, Mapping) else None
    return isinstance(codings, list) and all(isinstance(c, Mapping) for c in codings)


def _id(resource: Json) -> str:
    """Empty if it has none that is legal."""
    id_ = resource.get("id")
    return id_ if isinstance(id_, str) and _ID.fullmatch(id_) else ""


def unreadable(id_: str) -> Directive:
    """A Consent whose text cannot be had: it denies everything (CS-13)."""
    return Directive(
        id=id_,
        version=None,
        active=True,
        privacy=True,
        patient=Reference(None),
        dated=None,
        base=None,
        root=None,
        computable=False,
    )


def _version(resource: Json) -> int | None:
    meta = resource.get("meta")
    if meta is None or (isinstance(meta, Mapping) and meta.get("versionId") is None):
        return 1
    text = meta.get("versionId") if isinstance(meta, Mapping) else None
    return int(text) if isinstance(text, str) and _VERSION.fullmatch(text) else None


def _modifies(node: Any) -> bool:
    """Any `modifierExtension`, at any depth."""
    if isinstance(node, Mapping):
        return bool(node.get("modifierExtension")) or any(_modifies(v) for v in node.values())
    if isinstance(node, list):
        return any(_modifies(v) for v in node)
    return False


def _is_privacy(resource: Json) -> bool:
    """CS-11. Of a scope that cannot be read it cannot be said that it is another one."""
    if not _is_concept(resource.get("scope")):
        return True
    scope = _codings(resource.get("scope"))
    if any(_among(c.get("system"), CONSENT_SCOPE) for c in scope):
        return any(_says_privacy(c) for c in scope)
    category = resource.get("category")
    several = category if isinstance(category, list) else []
    return any(_says_privacy(c) for concept in several for c in _codings(concept))


def _says_privacy(coding: Json) -> bool:
    return _among(coding.get("system"), CONSENT_SCOPE) and coding.get("code") == "patient-privacy"


def _performers(resource: Json) -> list[Reference | None]:
    """None for a RelatedPerson; nothing if one of them is surely none (CS-16)."""
    found: list[Reference | None] = []
    contained = [c for c in _list(resource.get("contained")) if isinstance(c, Mapping)]
    relatives = {f"#{c.get('id')}" for c in contained if c.get("resourceType") == "RelatedPerson"}
    for performer in _list(resource.get("performer")):
        reference = _reference(_object(performer))
        literal = reference.literal or ""
        if (
            performer.get("type") == "RelatedPerson"
            or "RelatedPerson" in literal.split("/")
            or literal in relatives
        ):
            found.append(None)
        elif not literal and reference.identifier and performer.get("type") is None:
            found.append(reference)
        else:
            return []
    return found


def _base(concept: Any) -> Base | None:
    """The base it names, if known; two different ones cannot both be meant."""
    if not _is_concept(concept):
        raise UnreadableError("policyRule")
    found = {
        Base(coding["code"])
        for coding in _codings(concept)
        if _among(coding.get("system"), POLICY_RULE) and _among(coding.get("code"), BASES)
    }
    if len(found) > 1:
        raise UnreadableError("policyRule")
    return next(iter(found), None)


def _rule(node: Json, zone: tzinfo, *, root: bool) -> Rule:
    if unknown := set(node) - RULE_ELEMENTS - {f"_{e}" for e in RULE_ELEMENTS}:
        raise UnreadableError(f"{len(unknown)} unknown elements")
    effect = node.get("type")
    if effect is not None and not _among(effect, EFFECTS):
        raise UnreadableError("type")
    if effect is None and not root:
        raise UnreadableError("type")
    if any(node.get(condition) == [] for condition in CONDITIONS):
        raise UnreadableError("a condition without content")
    return Rule(
        effect=None if effect is None else Effect(effect),
        period=_period(node.get("period"), zone),
        actors=tuple(a for node_ in _list(node.get("actor")) for a in _actor(node_)),
        actions=_concepts(node.get("action")),
        purposes=tuple(_code(c) for c in _list(node.get("purpose"))),
        labels=tuple(_code(c) for c in _list(node.get("securityLabel"))),
        classes=tuple(_code(c) for c in _list(node.get("class"))),
        codes=_concepts(node.get("code")),
        data_period=_period(node.get("dataPeriod"), zone),
        data=tuple(_datum(d) for d in _list(node.get("data"))),
        children=tuple(_rule(_object(p), zone, root=False) for p in _list(node.get("provision"))),
    )


def _object(node: Any) -> Json:
    if not isinstance(node, Mapping):
        raise UnreadableError("an object was expected")
    return node


def _list(node: Any) -> Sequence[Any]:
    if node is None:
        return ()
    if not isinstance(node, list):
        raise UnreadableError("a list was expected")
    return node


def _text(node: Any) -> str | None:
    return node if isinstance(node, str) and node else None


def _codings(concept: Any) -> list[Json]:
    codings = concept.get("coding") if isinstance(concept, Mapping) else None
    return [c for c in codings if isinstance(c, Mapping)] if isinstance(codings, list) else []


def _code(node: Any) -> Code:
    coding = _object(node)
    return Code(_text(coding.get("system")), _text(coding.get("code")))


def _concepts(node: Any) -> tuple[Code, ...]:
    """Each concept's codings; one of text only becomes a code nobody can read."""
    found: list[Code] = []
    for concept in _list(node):
        codings = _codings(_object(concept))
        found.extend(_code(c) for c in codings)
        if not codings:
            found.append(Code(None, None))
    return tuple(found)


def _reference(node: Any) -> Reference:
    if not isinstance(node, Mapping):
        return Reference(None)
    identifier = node.get("identifier")
    named = None
    if isinstance(identifier, Mapping):
        named = f"{identifier.get('system', '')}|{identifier.get('value', '')}"
    return Reference(_text(node.get("reference")), named)


def _actor(node: Any) -> list[Actor]:
    """One for each role of the actor that can be read; if none can, one with what stands there."""
    actor = _object(node)
    who = _reference(actor.get("reference"))
    roles = [_code(c) for c in _codings(actor.get("role"))]
    known = [role for role in roles if role.system == PARTICIPATION]
    return [Actor(role, who) for role in known or roles[:1] or [Code(None, None)]]


def _datum(node: Any) -> Datum:
    datum = _object(node)
    return Datum(_text(datum.get("meaning")), _reference(datum.get("reference")))


def _period(node: Any, zone: tzinfo) -> Period | None:
    if node is None:
        return None
    period = _object(node)
    if any(e not in {"id", "extension", "start", "end", "_start", "_end"} for e in period):
        raise UnreadableError("period")
    start, end = _bounds(period, "start", zone), _bounds(period, "end", zone)
    if start and end and start[0] > end[1]:
        raise UnreadableError("period")
    return Period(start[0] if start else None, end[1] if end else None)


def _first_instant(node: Json, element: str, zone: tzinfo) -> datetime | None:
    bounds = _bounds(node, element, zone)
    return bounds[0] if bounds else None


def _bounds(node: Json, element: str, zone: tzinfo) -> tuple[datetime, datetime] | None:
    """First and last instant that a FHIR dateTime may mean (CS-14); None if absent."""
    text = node.get(element)
    if text is None:
        if node.get(f"_{element}") is not None:
            raise UnreadableError("a date of which only an extension is given")
        return None
    if not isinstance(text, str):
        raise UnreadableError("dateTime")
    return instants(text, zone)


def instants(text: str, zone: tzinfo) -> tuple[datetime, datetime]:
    """First and last instant that a FHIR dateTime may mean. UnreadableError, ValueError."""
    if _INSTANT.fullmatch(text):
        exact = _utc(datetime.fromisoformat(text))
        return exact, exact
    partial = _PARTIAL.fullmatch(text)
    if partial is None:
        raise UnreadableError("dateTime")
    year, month, day = (int(g) if g else None for g in partial.groups())
    if year is None:
        raise UnreadableError("dateTime")
    first = date(year, month or 1, day or 1)
    last = date(year, month or 12, day or monthrange(year, month or 12)[1])
    ends = _FOREVER if last == date.max else after(last, zone) - _LAST
    return midnight(first, zone), ends


@cache
def zone(name: str) -> ZoneInfo:
    return ZoneInfo(name)


def midnight(day: date, zone: tzinfo) -> datetime:
    """The first instant of a day."""
    return _utc(datetime.combine(day, time(), zone))


def after(day: date, zone: tzinfo) -> datetime:
    """The first instant that is not of that day any more."""
    return midnight(day + timedelta(days=1), zone)


def _utc(instant: datetime) -> datetime:
    """In UTC; at the ends of the calendar, where it has no such instant, the nearest one."""
    try:
        return instant.astimezone(UTC)
    except OverflowError:
        return _FIRST if instant.year == 1 else _FOREVER


# --- screening's events -----------------------------------------------------------------------

_KIND: Final = {
    Measure.ED_VISITS: recount.Kind.ED,
    Measure.HOSPITAL_EPISODES: recount.Kind.HOSPITAL,
}
_MOMENT: Final = {
    EpisodeMoment.ARRIVED: card.Moment.ARRIVED,
    EpisodeMoment.LEFT: card.Moment.LEFT,
    EpisodeMoment.ADMITTED: card.Moment.ADMITTED,
    EpisodeMoment.DISCHARGED: card.Moment.DISCHARGED,
    EpisodeMoment.DIED: card.Moment.DIED,
    EpisodeMoment.CORRECTED: card.Moment.CORRECTED,
}


def standing(told: Explanation, sequence: int) -> recount.Standing:
    """An explanation as the rules see it."""
    return recount.Standing(
        patient=told.patient,
        sequence=sequence,
        state=recount.State(told.state),
        held=told.held,
        since=told.since,
        next_change=None if told.next_change is None else told.next_change.at,
        as_of=told.as_of,
        policy=f"{told.policy.name}/{told.policy.version}",
        clauses=tuple(
            recount.Clause(
                kind=_KIND[c.measure],
                at_least=c.at_least,
                days=c.days,
                leads_to=recount.State(c.state),
                count=c.count,
                met=c.met,
                tally=recount.Tally(c.tally),
                earlier=c.earlier,
            )
            for c in told.clauses
        ),
        every=told.flag_when == "all",
        units=tuple(_unit(item) for item in told.items),
        known_sites=told.coverage.known_sites,
        connected_sites=told.coverage.connected_sites,
        complete=told.coverage.complete,
        episode=told.episode,
        pathway=told.pathway,
        hold_until=told.hold_until,
        outside_window=told.outside_window,
        windows=told.consecutive,
        days=told.window_days,
        every_watch=told.watch_when == "all",
        zone=None if told.timezone is None else ZoneInfo(told.timezone),
    )


def _unit(item: Item) -> recount.Unit:
    return recount.Unit(
        kind=recount.Kind(item.kind),
        anchor=item.anchor,
        end=item.end,
        sites=item.sites,
        visits=tuple(
            recount.Visit(
                key=e.key,
                site=e.site,
                start=e.start,
                end=e.end,
                labels=codes(e.labels),
                codes=codes(e.codes),
                disposition=None if e.disposition is None else str(e.disposition),
            )
            for e in item.encounters
        ),
        counted=item.counted,
        precision=item.precision,
        reason=None if item.reason is None else item.reason.code,
        rule=None if item.reason is None else item.reason.rule,
        notes=tuple(note.code for note in item.notes),
    )


def codes(codings: Iterable[Coding] | None) -> frozenset[Code] | None:
    """None = not known; an empty set = known and none."""
    return None if codings is None else frozenset(Code(c.system, c.code) for c in codings)


def episode_news(event: EpisodeChanged) -> card.EpisodeNews:
    return card.EpisodeNews(
        episode=event.episode,
        sequence=event.sequence,
        moment=_MOMENT[event.moment],
        at=event.at,
        site=event.site,
        in_hospital=event.in_hospital,
        ended=event.ended,
        void=event.void,
        encounters=event.encounters,
        joined_into=event.joined_into,
        labels=codes(event.labels),
    )


# --- a card's values as FHIR has them ---------------------------------------------------------


def owner_reference(owner: str | None, clinic: str) -> str:
    """The nurse's role, or the clinic as a pool."""
    return f"Organization/{clinic}" if owner is None else f"PractitionerRole/{owner}"


def priority(tier: card.Tier) -> str:
    return "urgent" if tier is card.Tier.NOW else "routine"

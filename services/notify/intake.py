"""What clinics and hospitals hand in: panels and Consents. In force when it is answered."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from fhir.resources.R4B.consent import Consent
from pydantic import ValidationError
from sqlalchemy import Row

from services.notify import consent, panel, reading, store, telling, worklist
from services.notify.flow import Turn, match_panels, reconsider
from services.notify.holding import Why
from services.notify.panel import Member, Mode, Plan, Reading
from services.notify.telling import House
from services.plumbing import audit, telemetry
from services.plumbing.audit import Trail
from services.plumbing.db import Database
from services.plumbing.identifiers import canonical_system, normalise
from services.plumbing.sealing import SealBrokenError, UnknownKeyError
from services.plumbing.web import Issue, Rejection

LARGEST_ATTACHMENT = 512 * 1024
"""Bytes, decoded (CS-57)."""
LARGEST_CONSENT = 1024 * 1024
"""Bytes."""


# --- panels -----------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Upload:
    """A panel file as a clinic sent it."""

    clinic: str
    body: bytes
    charset: str | None
    mode: Mode
    dry_run: bool
    confirm: UUID | None = None
    """Report that said how many members a full list would end."""


async def upload_panel(upload: Upload, turn: Turn, trail: Trail) -> dict[str, Any]:
    """Apply a panel file, or say what it would do (CA-40). The report holds no value.

    Rejection 422 for a file that cannot be read, 409 for a full list that would end many
    without being confirmed.
    """
    house = turn.house
    read = _read(upload, house)
    members, mentioned = _by_digest(read, house)
    tx = turn.tx
    await store.hold_tokens(tx, [digest for tokens in mentioned for _, digest in tokens])
    async with store.acting(tx, upload.clinic):
        present = {
            (row.key_id, row.digest): row for row in await store.present_panel(tx, upload.clinic)
        }
    sent = {_known(tokens, present): member for tokens, member in members.items()}
    known = {_name(key): row.fingerprint for key, row in present.items()}
    plan = panel.plan(
        known,
        {
            _name(key): _fingerprint(member, house, known.get(_name(key)))
            for key, member in sent.items()
        },
        frozenset(_name(_known(tokens, present)) for tokens in mentioned),
        upload.mode,
    )
    _, digest = house.tokens.token("panel-file", upload.body.hex())
    applies = not upload.dry_run
    if applies and plan.ends_many:
        await _check_confirmed(upload, digest, turn)
    report = _report(telemetry.new_id(), upload, read, plan, applied=applies)
    if applies:
        for tokens in members if house.tokens.rotating else ():
            await store.also_known(tx, tokens)
        await _apply(upload.clinic, sent, present, plan, turn)
        await _settle(sent, present, plan, turn)
        report |= await _confirmations(upload.clinic, turn)
    async with store.acting(tx, upload.clinic):
        await store.add_report(
            tx,
            id=UUID(report["report"]),
            clinic=upload.clinic,
            at=turn.now,
            mode=upload.mode,
            dry_run=upload.dry_run,
            file=digest,
            report=report,
        )
        name = f"Group/{upload.clinic}"
        await audit.record(tx, [trail.updated(name, None) if applies else trail.configured(name)])
    return report


def _read(upload: Upload, house: House) -> Reading:
    region = house.region()

    def normal(system: str, value: str) -> tuple[str, str] | None:
        canonical = canonical_system(system, region.aliases)
        plain = normalise(canonical, value) if system and value else None
        return None if plain is None else (canonical, plain)

    nurses = [p.id for p in region.people if p.clinic == upload.clinic and p.roles]
    try:
        return panel.read(panel.decode(upload.body, upload.charset), normal, nurses)
    except panel.PanelError as error:
        raise Rejection(issue="invalid", advice=str(error), status=422) from None


Tokens = tuple[tuple[str, str], ...]
"""All tokens of one card, the active key's first."""


def _tokens(card: tuple[str, str], house: House) -> Tokens:
    active = house.tokens.token(*card)
    return (active, *(t for t in house.tokens.all(*card) if t != active))


def _by_digest(read: Reading, house: House) -> tuple[dict[Tokens, Member], list[Tokens]]:
    members = {_tokens(member.card, house): member for member in read.members}
    return members, [_tokens(card, house) for card in read.mentioned]


def _known(tokens: Tokens, present: Mapping[tuple[str, str], store.Present]) -> tuple[str, str]:
    """The token under which the panel has this card already; else the active key's."""
    return next((token for token in tokens if token in present), tokens[0])


def _name(token: tuple[str, str]) -> str:
    return "|".join(token)


def _fingerprint(member: Member, house: House, known: str | None) -> str:
    """Of a row as it came: the one it is kept by, if it is that under any key; else a new one."""
    every = [digest for _, digest in house.tokens.all("panel-row", member.text)]
    return known if known in every else house.tokens.token("panel-row", member.text)[1]


async def _check_confirmed(upload: Upload, digest: str, turn: Turn) -> None:
    async with store.acting(turn.tx, upload.clinic):
        confirmed = upload.confirm is not None and await store.is_reported(
            turn.tx, id=upload.confirm, clinic=upload.clinic, file=digest, mode=upload.mode
        )
    if not confirmed:
        raise Rejection(
            issue="business-rule",
            advice=(
                "This full list would end more than 20 % of the panel. Make a dry run of the same"
                " file and repeat with confirm=<its report id>."
            ),
            status=409,
        )


async def _apply(
    clinic: str,
    sent: Mapping[tuple[str, str], Member],
    present: Mapping[tuple[str, str], store.Present],
    plan: Plan,
    turn: Turn,
) -> None:
    gone = [present[token].id for token in present if _name(token) in plan.changed | plan.ended]
    rows = [
        _row(clinic, member, turn)
        for token, member in sent.items()
        if _name(token) in plan.added | plan.changed
    ]
    async with store.acting(turn.tx, clinic):
        today = telling.today(turn.house.region(), turn.now)
        await store.supersede(turn.tx, gone, turn.now, today)
        await store.add_panel(turn.tx, rows)


def _row(clinic: str, member: Member, turn: Turn) -> dict[str, Any]:
    id_ = telemetry.new_id()
    seals = turn.house.seals
    token = turn.house.tokens.token(*member.card)
    return {
        "id": id_,
        "clinic": clinic,
        "key_id": token[0],
        "digest": token[1],
        "fingerprint": _fingerprint(member, turn.house, None),
        "boxes": {n: list(seals.seal(id_, n, v)) for n, v in member.private.items() if v},
        "language": member.language,
        "nurse": member.nurse,
        "physician": member.physician,
        "starts": member.start,
        "ends": member.end,
        "source": "csv",
        "recorded": turn.now,
        "superseded": None,
        "confirmed_on": None,
        "confirmed_by": None,
    }


async def _settle(
    sent: Mapping[tuple[str, str], Member],
    present: Mapping[tuple[str, str], store.Present],
    plan: Plan,
    turn: Turn,
) -> None:
    """Match and confirm what changed, and settle the cards of whom it concerns."""
    touched = {t for t in {*sent, *present} if _name(t) not in plan.unchanged}
    touched |= {turn.house.tokens.token(*sent[t].card) for t in touched if t in sent}
    patients = await store.matched(turn.tx, touched)
    await store.lock(turn.tx, patients)
    await match_panels(patients, turn)
    await reconsider(patients, turn, access=True)


async def _confirmations(clinic: str, turn: Turn) -> dict[str, int]:
    async with store.acting(turn.tx, clinic):
        rows = await store.count_confirmed(turn.tx, clinic)
    return {"confirmed": rows.confirmed, "unconfirmed": rows.unconfirmed}


def _report(
    id_: UUID, upload: Upload, read: Reading, plan: Plan, *, applied: bool
) -> dict[str, Any]:
    bad = len({fault.row for fault in read.faults})
    return {
        "report": str(id_),
        "clinic": upload.clinic,
        "mode": str(upload.mode),
        "dry_run": upload.dry_run,
        "applied": applied,
        "good": len(read.members),
        "bad": bad,
        "duplicate": read.duplicates,
        "added": len(plan.added),
        "changed": len(plan.changed),
        "ended": len(plan.ended),
        "unchanged": len(plan.unchanged),
        "needs_confirmation": plan.ends_many,
        "rows": [{"row": f.row, "column": f.column, "reason": f.reason} for f in read.faults],
    }


# --- Consents ---------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Capture:
    """A Consent as somebody recorded it."""

    resource: Mapping[str, Any] = field(repr=False)
    tenant: str
    """Site or clinic; empty: the region's privacy officer."""
    by: str
    id: str | None = None
    """None: make one."""
    if_version: int | None = None
    """Change only this version; 0: make it, if there is none."""
    saw: int | None = None
    """The version its sender had in front of them, as the resource says; a guard of a change."""
    may_create: bool = True
    only_own_panel: bool = False
    """A clinic captures for its own patients alone (CS-56)."""
    guarded: bool = False
    """A change must say which version was seen (CA-21)."""
    any_tenant: bool = False
    """The privacy officer also changes what others captured; it stays theirs."""


@dataclass(frozen=True, slots=True)
class Captured:
    id: str
    version: int
    recorded: datetime
    resource: dict[str, Any] = field(repr=False)
    created: bool
    warnings: tuple[str, ...]


@dataclass(eq=False)
class InvalidConsent(Rejection):
    """No valid R4, or of nobody that can be read: refused, and kept (CS-57)."""


async def take_consent(
    db: Database, house: House, capture: Capture, trail: Trail, now: datetime
) -> Captured:
    """`capture_consent` in a transaction of its own; what it refuses as invalid is kept.

    InvalidConsent says the paths and rules, no value.
    """
    try:
        async with db.work() as tx:
            return await capture_consent(capture, Turn(tx=tx, now=now, house=house), trail)
    except InvalidConsent as refusal:
        async with db.work() as tx:
            turn = Turn(tx=tx, now=now, house=house)
            await keep_refused(capture, refusal.all(), turn, trail)
        raise


async def capture_consent(capture: Capture, turn: Turn, trail: Trail) -> Captured:
    """Keep a Consent's new version; it is in force for the next attempt (CS-56).

    The patient's cards are settled in the same transaction. InvalidConsent for what is no valid
    R4; Rejection 404 for another's, 403 for a patient who is not the clinic's, 400 without a
    guard, 412 for a stale version. A repeat whose whole effect is there changes nothing (CA-21).
    """
    tx, house = turn.tx, turn.house
    resource = {k: v for k, v in capture.resource.items() if k not in {"id", "meta", "text"}}
    _check_valid(resource)
    spelt = _subject(resource, house)
    id_ = capture.id or str(telemetry.new_id())
    await store.hold_consent(tx, id_)
    known = await store.consent(tx, id_, hold=True)
    wrong = await store.refused_under(tx, capture.tenant if known is None else known.tenant, id_)
    tokens = [*spelt, *((row.key_id, row.digest) for row in wrong if row.key_id is not None)]
    if known is not None:
        tokens.append((known.key_id, known.digest))
        tokens += [] if known.disputed_with is None else [(store.KEY, str(known.disputed_with))]
    await store.hold_tokens(tx, [digest for _, digest in tokens])
    await store.also_known(tx, spelt)
    roots = sorted(await store.families(tx, await store.matched(tx, spelt)))
    concerned = sorted(await store.families(tx, await store.matched(tx, tokens)))
    await store.change_consents(tx, concerned)
    await store.lock(tx, concerned)
    _check_whose(capture, known)
    tenant = capture.tenant if known is None else known.tenant
    withdraws = known is not None and resource["status"] != "active"
    if capture.only_own_panel and not withdraws and not await _is_own(tenant, roots, turn):
        raise Rejection(
            issue="forbidden",
            advice="A clinic records Consents of patients on its own confirmed panel.",
            expression="Consent.patient",
            status=403,
        )
    directive = reading.directive(resource, telling.policy_of(house.region()).zone)
    warnings = () if consent.is_computable(directive) else (_NOT_COMPUTABLE,)
    was = None if known is None else opened_consent(house, known)
    resource = with_attachment(resource, was)
    if known is not None and was == resource and known.disputed_with is None:
        return Captured(
            id_, known.version, known.recorded, resource, created=False, warnings=warnings
        )
    version = _guarded(capture, known) + 1
    uid = telemetry.new_id()
    key_id, box = house.seals.seal(uid, "consent", orjson.dumps(resource).decode())
    name = f"Consent/{id_}/_history/{version}"
    async with store.acting(tx, tenant):
        await store.add_consent(
            tx,
            uid=uid,
            id=id_,
            version=version,
            tenant=tenant,
            captured_by=capture.by,
            key_id=spelt[0][0],
            digest=spelt[0][1],
            status=str(resource["status"]),
            computable=not warnings,
            body_key_id=key_id,
            body=box,
            recorded=turn.now,
        )
    subject = roots[0] if roots else None
    await audit.record(
        tx, [trail.created(name, subject) if known is None else trail.updated(name, subject)]
    )
    await _put_right([row.id for row in wrong], name, capture.by, turn)
    await reconsider(concerned, turn, access=True)
    return Captured(id_, version, turn.now, resource, created=known is None, warnings=warnings)


def _check_whose(capture: Capture, known: Row[Any] | None) -> None:
    """A change is its captor's, or the privacy officer's; of another's nothing is told."""
    theirs = known is not None and known.tenant != capture.tenant and not capture.any_tenant
    if theirs or (known is None and not capture.may_create):
        raise Rejection(issue="not-found", advice="There is no such Consent.", status=404)


def _guarded(capture: Capture, known: Row[Any] | None) -> int:
    """The version that is changed, which must be the one that was seen (CA-21)."""
    version: int = 0 if known is None else known.version
    wanted = capture.if_version
    if wanted is None and known is not None:
        wanted = capture.saw
    if wanted is None and known is not None and capture.guarded:
        raise Rejection(
            issue="required",
            advice="Say which version you saw: If-Match, or meta.versionId.",
            status=400,
        )
    if wanted is not None and wanted != version:
        raise Rejection(
            issue="conflict",
            advice=f"The current version is {version}. Read it and send the change again.",
            status=412,
        )
    return version


async def _put_right(refused: Sequence[UUID], name: str, by: str, turn: Turn) -> None:
    """What was refused under this id is settled by what was now taken."""
    tx, now = turn.tx, turn.now
    for id_ in refused:
        await store.resolve_refused(
            tx, id=id_, by=by, resolution="replaced", why=None, successor=name, now=now
        )
    items = await store.open_items(tx, refused)
    await store.close_items(tx, [item.id for item in items], now, by=by, outcome="replaced")


async def keep_refused(
    capture: Capture, issues: Sequence[Issue], turn: Turn, trail: Trail
) -> UUID | None:
    """Keep an invalid Consent, sealed, for a person; its id, or None if it waits already.

    If it says whose it is, nothing about that patient goes out until it is resolved, unless the
    operator chose to reject such a Consent and no more.
    """
    tx, house = turn.tx, turn.house
    body = orjson.dumps(capture.resource, option=orjson.OPT_SORT_KEYS).decode()
    id_ = telemetry.new_id()
    key_id, box = house.seals.seal(id_, "consent", body)
    spelt = readable_subject(capture.resource, house) or ()
    await store.hold_tokens(tx, [digest for _, digest in spelt])
    await store.also_known(tx, spelt)
    patients = await store.matched(tx, spelt)
    roots = sorted(await store.families(tx, patients))
    await store.change_consents(tx, roots)
    await store.lock(tx, roots)
    holds = bool(spelt) and house.invalid_holds
    if capture.only_own_panel and not await _is_own(capture.tenant, roots, turn):
        holds = False  # a clinic holds nobody's cards but its own patients'
    kept = await store.add_refused(
        tx,
        id=id_,
        tenant=capture.tenant,
        captured_by=capture.by,
        consent=capture.id,
        key_id=spelt[0][0] if spelt else None,
        digest=spelt[0][1] if spelt else None,
        fingerprint=house.tokens.token("refused-consent", body)[1],
        issues=[{"path": i.expression or "Consent", "rule": i.text} for i in issues],
        body_key_id=key_id,
        body=box,
        holds=holds,
        received=turn.now,
    )
    if not kept:
        return None
    name = f"Consent/refused-{id_}"
    await audit.record(tx, [trail.created(name, roots[0] if roots else None)])
    if not roots or not holds:
        sites = [capture.tenant] if house.region().site(capture.tenant) else []
        await worklist.open_about(tx, id_, Why.REFUSED, turn.now, patient=None, sites=sites)
    await reconsider(roots, turn, access=True)
    return id_


async def _is_own(clinic: str, roots: Sequence[UUID], turn: Turn) -> bool:
    facts = await store.facts(turn.tx, roots)
    region = turn.house.region()
    return any(
        route.clinic == clinic
        for one in facts.values()
        for route in telling.routes(region, one, turn.now)
    )


_NOT_COMPUTABLE = (
    "This Consent was kept, but says something that cannot be decided by rule. Until a person has"
    " looked at it, nothing about the patient goes out."
)


def opened_consent(house: House, row: Row[Any]) -> dict[str, Any] | None:
    """The resource of a version as it was sent; None if it cannot be opened now."""
    return _opened(house, row.uid, row)


def opened_refused(house: House, row: Row[Any]) -> dict[str, Any] | None:
    """A refused Consent as it was sent; None if it cannot be opened now."""
    return _opened(house, row.id, row)


def _opened(house: House, owner: UUID, row: Row[Any]) -> dict[str, Any] | None:
    try:
        said = orjson.loads(house.seals.open(owner, "consent", row.body_key_id, row.body))
    except (UnknownKeyError, SealBrokenError):
        return None
    return dict(said)


# What is attached


def without_attachments(node: Any) -> Any:
    """As a clinic reads it: what is attached is named, and not sent (CS-57)."""
    if isinstance(node, Mapping):
        return {
            name: without_attachments(value)
            for name, value in node.items()
            if not (name == "data" and isinstance(value, str))
        }
    if isinstance(node, list):
        return [without_attachments(one) for one in node]
    return node


def with_attachment(resource: dict[str, Any], was: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a reader was not sent is kept when it writes back what it read."""
    known = None if was is None else was.get("sourceAttachment")
    said = resource.get("sourceAttachment")
    if known is None or said is None or said != without_attachments(known):
        return resource
    return {**resource, "sourceAttachment": known}


def _decoded(base64: str) -> int:
    """Bytes that base64 text stands for."""
    return len(base64) // 4 * 3 - base64[-2:].count("=")


def _check_attachments(node: Any, path: str = "Consent") -> None:
    """Each at most LARGEST_ATTACHMENT bytes, decoded."""
    if isinstance(node, Mapping):
        data = node.get("data")
        if isinstance(data, str) and _decoded(data) > LARGEST_ATTACHMENT:
            raise Rejection(
                issue="too-long",
                advice=f"An attachment may have {LARGEST_ATTACHMENT // 1024} KiB.",
                expression=f"{path}.data",
                status=413,
            )
        for name, value in node.items():
            _check_attachments(value, f"{path}.{name}")
    elif isinstance(node, list):
        for place, one in enumerate(node):
            _check_attachments(one, f"{path}[{place}]")


# Whose it is, and whether it is R4


def readable_subject(resource: Mapping[str, Any], house: House) -> Tokens | None:
    """Tokens of the patient a Consent is about: our key, or an identifier a hospital also sent.

    Under each key of the ring, the active one's first.
    """
    said = resource.get("patient")
    named = said if isinstance(said, Mapping) else {}
    literal = str(named.get("reference", "")).removeprefix(f"{house.base}/")
    if literal.startswith("Patient/"):
        try:
            return ((store.KEY, str(UUID(literal.removeprefix("Patient/")))),)
        except ValueError:
            pass
    identifier = named.get("identifier")
    if isinstance(identifier, Mapping):
        system = canonical_system(str(identifier.get("system", "")), house.region().aliases)
        value = normalise(system, str(identifier.get("value", "")))
        if system and value is not None:
            return _tokens((system, value), house)
    return None


def _subject(resource: Mapping[str, Any], house: House) -> Tokens:
    tokens = readable_subject(resource, house)
    if tokens is None:
        raise InvalidConsent(
            issue="value",
            expression="Consent.patient",
            advice="Name the patient by identifier (health card), or as Patient/ with our own key.",
            status=422,
        )
    return tokens


def _check_valid(resource: Mapping[str, Any]) -> None:
    """R4, by the models; which element and which rule, never a value (ST-03)."""
    if len(orjson.dumps(resource)) > LARGEST_CONSENT:
        raise Rejection(issue="too-long", advice="A Consent may have 1 MiB.", status=413)
    try:
        Consent.model_validate(dict(resource))
    except ValidationError as error:
        raise InvalidConsent(status=422, issues=_issues(error)) from None
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise InvalidConsent(
            issue="invalid", advice="This is not a valid R4 Consent.", status=422
        ) from None
    issues = list(_wrong_codes(resource))
    if not (resource.get("policy") or resource.get("policyRule")):
        issues.append(Issue("invariant", "A policy or a policyRule is needed (ppc-1).", "Consent"))
    if issues:
        raise InvalidConsent(status=422, issues=issues)
    _check_attachments(resource)


_MEANINGS = frozenset({"instance", "related", "dependents", "authoredby"})


def _wrong_codes(resource: Mapping[str, Any]) -> Iterator[Issue]:
    """Codes of required bindings, which the models do not check."""
    if resource.get("status") not in reading.STATUSES:
        yield _wrong_code("Consent.status", reading.STATUSES)
    rules = [("Consent.provision", resource.get("provision"))]
    while rules:
        path, rule = rules.pop()
        if not isinstance(rule, Mapping):
            continue
        if rule.get("type", "deny") not in reading.EFFECTS:
            yield _wrong_code(f"{path}.type", reading.EFFECTS)
        for place, datum in enumerate(rule.get("data") or ()):
            if datum.get("meaning") not in _MEANINGS:
                yield _wrong_code(f"{path}.data[{place}].meaning", _MEANINGS)
        inner = rule.get("provision") or ()
        rules += [(f"{path}.provision[{place}]", one) for place, one in enumerate(inner)]


def _wrong_code(path: str, codes: Iterable[str]) -> Issue:
    return Issue("code-invalid", f"One of {', '.join(sorted(codes))} is needed.", path)


def _issues(error: ValidationError) -> list[Issue]:
    found = []
    for fault in error.errors(include_input=False, include_url=False, include_context=False):
        unknown = fault["type"] == "extra_forbidden"
        parts = fault["loc"][:-1] if unknown else fault["loc"]
        path = "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in parts)
        rule = (
            "An element here is not of R4."
            if unknown
            else f"This is not as R4 has it ({fault['type']})."
        )
        found.append(Issue("structure", rule, f"Consent{path}"))
    return found

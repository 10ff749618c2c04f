"""What clinics and hospitals hand in: panels and Consents. In force when it is answered."""

from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Any
from uuid import UUID

import orjson
from fhir.resources.R4B.consent import Consent
from pydantic import ValidationError
from sqlalchemy import Row

from services.notify import consent, panel, reading, store, telling
from services.notify.flow import Turn, match_panels, reconsider
from services.notify.panel import Member, Mode, Plan, Reading
from services.notify.telling import House
from services.plumbing import audit, telemetry
from services.plumbing.audit import Trail
from services.plumbing.identifiers import canonical_system, normalise
from services.plumbing.sealing import SealBrokenError, UnknownKeyError
from services.plumbing.web import Issue, Rejection

LARGEST_ATTACHMENT = 512 * 1024
"""Bytes of base64 text in a Consent (CS-57)."""


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
        {_name(key): _fingerprint(member, house) for key, member in sent.items()},
        frozenset(_name(_known(tokens, present)) for tokens in mentioned),
        upload.mode,
    )
    _, digest = house.tokens.token("panel-file", upload.body.hex())
    applies = not upload.dry_run
    if applies and plan.ends_many:
        await _check_confirmed(upload, digest, turn)
    report = _report(telemetry.new_id(), upload, read, plan, applied=applies)
    if applies:
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


def _fingerprint(member: Member, house: House) -> str:
    return house.tokens.token("panel-row", member.text)[1]


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
        _row(clinic, token, member, turn)
        for token, member in sent.items()
        if _name(token) in plan.added | plan.changed
    ]
    async with store.acting(turn.tx, clinic):
        today = telling.today(turn.house.region(), turn.now)
        await store.supersede(turn.tx, gone, turn.now, today)
        await store.add_panel(turn.tx, rows)


def _row(clinic: str, token: tuple[str, str], member: Member, turn: Turn) -> dict[str, Any]:
    id_ = telemetry.new_id()
    seals = turn.house.seals
    return {
        "id": id_,
        "clinic": clinic,
        "key_id": token[0],
        "digest": token[1],
        "fingerprint": _fingerprint(member, turn.house),
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
    touched = [t for t in {*sent, *present} if _name(t) not in plan.unchanged]
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

    resource: Mapping[str, Any]
    tenant: str
    by: str
    id: str | None = None
    """None: make one."""
    if_version: int | None = None
    may_create: bool = True
    only_own_panel: bool = False
    """A clinic captures for its own patients alone (CS-56)."""


@dataclass(frozen=True, slots=True)
class Captured:
    id: str
    version: int
    recorded: datetime
    resource: dict[str, Any]
    created: bool
    warnings: tuple[str, ...]


async def capture_consent(capture: Capture, turn: Turn, trail: Trail) -> Captured:
    """Keep a Consent's new version; it is in force for the next attempt (CS-56).

    The patient's cards are settled in the same transaction. Rejection 422 for what is no valid
    R4 Consent, 404 for another's, 412 for a stale version.
    """
    tx, house = turn.tx, turn.house
    resource = {k: v for k, v in capture.resource.items() if k not in {"id", "meta", "text"}}
    _check_valid(resource)
    token = _subject(resource, house)
    directive = reading.directive(resource, telling.policy_of(house.region()).zone)
    id_ = capture.id or str(telemetry.new_id())
    await store.hold_tokens(tx, [token[1]])
    patients = await store.matched(tx, [token])
    roots = sorted(await store.families(tx, patients))
    await store.change_consents(tx, roots)
    await store.lock(tx, roots)
    known = await store.consent(tx, id_, hold=True)
    if known is not None and known.tenant != capture.tenant:
        raise Rejection(issue="not-found", advice="There is no such Consent.", status=404)
    if known is None and not capture.may_create:
        raise Rejection(issue="not-found", advice="There is no such Consent.", status=404)
    if capture.only_own_panel and not await _is_own(capture.tenant, roots, turn):
        raise Rejection(
            issue="forbidden",
            advice="A clinic records Consents of patients on its own confirmed panel.",
            expression="Consent.patient",
            status=403,
        )
    version = known.version if known is not None else 0
    if capture.if_version is not None and capture.if_version != version:
        raise Rejection(
            issue="conflict",
            advice=f"The current version is {version}. Read it and send the change again.",
            status=412,
        )
    warnings = () if consent.is_computable(directive) else (_NOT_COMPUTABLE,)
    if known is not None and opened_consent(house, known) == resource:
        return Captured(id_, version, known.recorded, resource, created=False, warnings=warnings)
    uid = telemetry.new_id()
    key_id, box = house.seals.seal(uid, "consent", orjson.dumps(resource).decode())
    async with store.acting(tx, capture.tenant):
        await store.add_consent(
            tx,
            uid=uid,
            id=id_,
            version=version + 1,
            tenant=capture.tenant,
            captured_by=capture.by,
            key_id=token[0],
            digest=token[1],
            status=str(resource["status"]),
            computable=not warnings,
            body_key_id=key_id,
            body=box,
            recorded=turn.now,
        )
        name = f"Consent/{id_}/_history/{version + 1}"
        subject = roots[0] if roots else None
        made = trail.created(name, subject) if known is None else trail.updated(name, subject)
        await audit.record(tx, [made])
    moved = [] if known is None else await store.matched(tx, [(known.key_id, known.digest)])
    await reconsider({*roots, *moved}, turn, access=True)
    return Captured(id_, version + 1, turn.now, resource, created=known is None, warnings=warnings)


async def _is_own(clinic: str, roots: list[UUID], turn: Turn) -> bool:
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
    try:
        said = orjson.loads(house.seals.open(row.uid, "consent", row.body_key_id, row.body))
    except (UnknownKeyError, SealBrokenError):
        return None
    return dict(said)


def _subject(resource: Mapping[str, Any], house: House) -> tuple[str, str]:
    """Token of the patient a Consent is about: our key, or an identifier a hospital also sent."""
    said = resource.get("patient")
    named = said if isinstance(said, Mapping) else {}
    literal = str(named.get("reference", "")).removeprefix(f"{house.base}/")
    if literal.startswith("Patient/"):
        try:
            return store.KEY, str(UUID(literal.removeprefix("Patient/")))
        except ValueError:
            pass
    identifier = named.get("identifier")
    if isinstance(identifier, Mapping):
        system = canonical_system(str(identifier.get("system", "")), house.region().aliases)
        value = normalise(system, str(identifier.get("value", "")))
        if system and value is not None:
            return house.tokens.token(system, value)
    raise Rejection(
        issue="value",
        expression="Consent.patient",
        advice="Name the patient by identifier (health card), or as Patient/ with our own key.",
        status=422,
    )


def _check_valid(resource: Mapping[str, Any]) -> None:
    """R4, by the models; which element and which rule, never a value (ST-03)."""
    if len(orjson.dumps(resource)) > LARGEST_ATTACHMENT * 2:
        raise Rejection(issue="too-long", advice="A Consent may have 1 MiB.", status=413)
    try:
        Consent.model_validate(dict(resource))
    except ValidationError as error:
        raise Rejection(status=422, issues=_issues(error)) from None
    except (TypeError, ValueError, AttributeError, RecursionError):
        raise Rejection(
            issue="invalid", advice="This is not a valid R4 Consent.", status=422
        ) from None


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

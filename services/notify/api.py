"""The clinics' door (clinic-api.md): search, acknowledge, subscribe; panels and Consents in.

Every read is decided for the token's clinic at that moment, in a transaction that sees only its
rows, and answered only after its audit record is committed. Foreign, withheld and unknown are
the same 404.
"""

import asyncio
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import Annotated, Any, Final
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, FastAPI, Request, Response

from services.notify import (
    acknowledge,
    capability,
    fhir,
    flow,
    intake,
    looking,
    search,
    store,
    subscriptions,
    telling,
)
from services.notify.acknowledge import BadPatchError, NoGuardError, RefusedError, Wanted
from services.notify.card import Card, NotAllowedError
from services.notify.fhir import Json, Language, Voice
from services.notify.flow import Act, Stale, Turn
from services.notify.intake import Capture, Upload
from services.notify.looking import Found, Sight
from services.notify.panel import Mode
from services.notify.search import BadSearchError, Query
from services.notify.subscriptions import MASK, NotOfferedError, Wish
from services.notify.telling import House
from services.plumbing import audit, egress, telemetry
from services.plumbing.audit import Trail
from services.plumbing.auth import (
    Authority,
    AuthorityAwayError,
    Caller,
    require,
    smart_configuration,
)
from services.plumbing.clock import real_now
from services.plumbing.db import Database, Tx
from services.plumbing.egress import Egress, ForbiddenTargetError, Resolve
from services.plumbing.identifiers import canonical_system, normalise
from services.plumbing.region import Clinic, Site
from services.plumbing.web import Issue, Rejection, fhir_response, outcome

LARGEST_BODY: Final = 1024 * 1024
LARGEST_PANEL: Final = 32 * 1024 * 1024
SLOWEST_BODY: Final = 30
"""Real seconds."""
SECRET_HEADER: Final = "Passerelle-Webhook-Secret"  # noqa: S105 - a header's name
CLINIC_TYPES: Final = ("Task", "Flag", "Patient", "Provenance", "Communication")
_FHIR_JSON: Final = ("application/fhir+json", "application/json")
_CORS: Final = {"Access-Control-Allow-Origin": "*"}


@dataclass(frozen=True, slots=True)
class Door:
    """What the clinics' door needs of its service."""

    db: Database
    house: House
    now: Callable[[], datetime]
    cursor_key: bytes = field(repr=False)
    gate: Callable[[str], Egress]
    """What a clinic's endpoints may be."""
    authority: Authority
    resolve: Resolve = egress.resolve

    @property
    def base(self) -> str:
        return self.house.base


@dataclass(frozen=True, slots=True)
class Visit:
    """One request of one client."""

    door: Door
    request: Request = field(repr=False)
    who: Caller
    clinic: str
    now: datetime
    language: Language

    @property
    def trail(self) -> Trail:
        return Trail.of(self.request, self.who, self.now)

    @property
    def voice(self) -> Voice:
        return Voice(self.door.house.region(), self.door.base, self.language)

    def turn(self, tx: Tx) -> Turn:
        return Turn(tx=tx, now=self.now, house=self.door.house)


def add_door(app: FastAPI, door: Door) -> None:
    """Every route of the clinics' door on `app`."""
    router = APIRouter()
    _open_routes(router, door)
    _subscription_routes(router, door)  # first: `$status` is no id
    for type_ in capability.OFFERED:
        _read_routes(router, door, type_)
    _task_routes(router, door)
    _consent_routes(router, door)
    _panel_route(router, door)
    app.include_router(router)


# --- what every answer has in common ----------------------------------------------------------


def _visit(door: Door, request: Request, who: Caller) -> Visit:
    _check_accept(request)
    if who.clinic is None:
        raise Rejection("forbidden", "This is for the systems of a clinic.", status=403)
    return Visit(door, request, who, who.clinic, door.now(), _language(request))


def _check_accept(request: Request) -> None:
    said = request.query_params.get("_format")
    if said is not None:
        plain = said.split(";")[0].strip().replace(" ", "+")
        if plain not in {"json", "text/json", *_FHIR_JSON}:
            raise Rejection("not-supported", "FHIR JSON is what is served.", status=406)
        return
    offers = [o.split(";") for o in request.headers.get("accept", "*/*").split(",")]
    for media, *parameters in offers:
        version = re.search(r"fhirversion\s*=\s*\"?([\d.]+)", ";".join(parameters), re.IGNORECASE)
        fits = version is None or version[1].startswith("4.0")
        if fits and media.strip().lower() in {"*/*", "application/*", *_FHIR_JSON}:
            return
    raise Rejection("not-supported", "FHIR 4.0 JSON is what is served.", status=406)


def _language(request: Request) -> Language:
    for one in request.headers.get("accept-language", "").split(","):
        said = one.strip()[:2].lower()
        if said == "en":
            return "en"
        if said == "fr":
            return "fr"
    return "fr"


def _not_found() -> Rejection:
    return Rejection("not-found", "There is nothing at this address.", status=404)


def _uuid(text: str) -> UUID:
    try:
        return UUID(text)
    except ValueError:
        raise _not_found() from None


async def _body(request: Request, limit: int) -> bytes:
    body = bytearray()
    try:
        async with asyncio.timeout(SLOWEST_BODY):
            async for piece in request.stream():
                body += piece
                if len(body) > limit:
                    raise Rejection("too-long", f"At most {limit} bytes.", status=413)
    except TimeoutError:
        raise Rejection(
            "timeout", f"The body did not come in {SLOWEST_BODY} s.", status=408
        ) from None
    return bytes(body)


def _media(request: Request) -> str:
    return request.headers.get("content-type", "").split(";")[0].strip().lower()


async def _json(request: Request, medias: Sequence[str] = _FHIR_JSON) -> Any:
    if _media(request) not in medias:
        raise Rejection("not-supported", f"Send {' or '.join(medias)}.", status=415)
    try:
        return orjson.loads(await _body(request, LARGEST_BODY))
    except orjson.JSONDecodeError:
        raise Rejection("structure", "The body is not JSON.") from None


def _if_match(request: Request) -> str | None:
    said = request.headers.get("if-match")
    if said is None:
        return None
    found = re.fullmatch(r'(?:W/)?"(\d{1,9})"', said.strip())
    if found is None:
        raise Rejection("value", 'If-Match has the form W/"3".')
    return found[1]


def _answer(found: Found, status: int = 200, headers: Mapping[str, str] | None = None) -> Response:
    updated = found.resource.get("meta", {}).get("lastUpdated")
    said = {"ETag": f'W/"{found.version}"'} if updated is not None else {}
    return fhir_response(found.resource, status, {**said, **(headers or {})})


# --- open to all ------------------------------------------------------------------------------


def _open_routes(router: APIRouter, door: Door) -> None:
    @router.get("/fhir/metadata")
    async def metadata(request: Request) -> Response:
        _check_accept(request)
        try:
            token_url = await door.authority.endpoint("token_endpoint")
        except AuthorityAwayError:
            token_url = None
        return fhir_response(capability.capability(door.base, token_url), headers=_CORS)

    @router.get("/fhir/.well-known/smart-configuration")
    async def smart() -> Response:
        try:
            said = await smart_configuration(door.authority, capability.SCOPES)
        except AuthorityAwayError:
            raise Rejection(
                "transient", "The authority does not answer. Try again.", status=503
            ) from None
        return Response(orjson.dumps(said), media_type="application/json", headers=_CORS)


# --- read and search --------------------------------------------------------------------------


def _read_routes(router: APIRouter, door: Door, type_: str) -> None:
    may_read, may_search = Depends(require(type_, "r")), Depends(require(type_, "s"))
    if type_ == "Consent":
        may_search = may_read  # the scope for it is `system/Consent.cru` (CA-70)
    gather = _GATHER.get(type_, _seen)

    @router.get(f"/fhir/{type_}/{{id_}}", name=f"read {type_}")
    async def read(request: Request, id_: str, who: Annotated[Caller, may_read]) -> Response:
        visit = _any_visit(door, request, who, type_)
        async with _transaction(visit) as tx:
            found = [f for f in await gather(tx, visit, type_, id_) if f.resource["id"] == id_]
            if not found:
                raise _not_found()
            await _note_read(tx, visit, found[0])
        return _answer(found[0])

    @router.get(f"/fhir/{type_}", name=f"search {type_}")
    async def by_get(request: Request, who: Annotated[Caller, may_search]) -> Response:
        visit = _any_visit(door, request, who, type_)
        return await _search(visit, type_, gather, request.query_params.multi_items(), [])

    @router.post(f"/fhir/{type_}/_search", name=f"search {type_} by POST")
    async def by_post(request: Request, who: Annotated[Caller, may_search]) -> Response:
        visit = _any_visit(door, request, who, type_)
        body: list[tuple[str, str]] = []
        if _media(request) == "application/x-www-form-urlencoded":
            text = (await _body(request, LARGEST_BODY)).decode("utf-8", "replace")
            body = parse_qsl(text, keep_blank_values=True)
        elif await _body(request, LARGEST_BODY):
            raise Rejection("not-supported", "Send a form (x-www-form-urlencoded).", status=415)
        return await _search(visit, type_, gather, request.query_params.multi_items(), body)


Gather = Callable[[Tx, Visit, str, str | None], Awaitable[list[Found]]]
"""All of a type that may be seen now; with an id, at least that one if it may."""


def _any_visit(door: Door, request: Request, who: Caller, type_: str) -> Visit:
    """Of a clinic's system; Consents are also a site's."""
    if type_ != "Consent" or who.clinic is not None:
        return _visit(door, request, who)
    _check_accept(request)
    return Visit(door, request, who, _site(who, None), door.now(), _language(request))


def _site(who: Caller, resource: Any) -> str:
    """The site a hospital's client speaks for: its only one, or the one the resource names."""
    if who.tenant is not None:
        return who.tenant
    named = set()
    if isinstance(resource, dict):
        for one in resource.get("organization", []):
            reference = one.get("reference", "") if isinstance(one, dict) else ""
            named.add(str(reference).removeprefix("Organization/"))
    found = sorted(named & who.sites)
    if len(found) != 1:
        raise Rejection(
            "forbidden",
            "Name one of your own sites in Consent.organization.",
            "Consent.organization",
            status=403,
        )
    return found[0]


def _transaction(visit: Visit) -> Any:
    return visit.door.db.request(visit.clinic)


async def _note_read(tx: Tx, visit: Visit, found: Found, interaction: str = "read") -> None:
    if found.card is not None:
        await store.mark_shown(tx, [found.card])
    made = visit.trail.read(found.entity, found.patient, interaction, content=found.content)
    await audit.record(tx, [made])


async def _search(
    visit: Visit,
    type_: str,
    gather: Gather,
    in_url: Sequence[tuple[str, str]],
    in_body: Sequence[tuple[str, str]],
) -> Response:
    strict = "handling=strict" in visit.request.headers.get("prefer", "").replace(" ", "")
    door = visit.door
    try:
        query = search.read(
            type_, [*in_url, *in_body], strict=strict, in_url=frozenset(n for n, _ in in_url)
        )
        async with _transaction(visit) as tx:
            found = {f.resource["id"]: f for f in await gather(tx, visit, type_, None)}
            query = await _without_identifiers(tx, visit, query, found.values())
            after = search.open_cursor(query, visit.clinic, door.cursor_key, real_now())
            matching = [
                f.resource
                for f in found.values()
                if search.matches(query, f.sought or f.resource, door.base)
            ]
            page = search.page(query, matching, after)
            shown = [found[resource["id"]] for resource in page.resources]
            included = await _included(tx, visit, query, shown)
            await _note_search(tx, visit, query, shown, included)
    except BadSearchError as error:
        raise Rejection("value", error.text, error.parameter) from None
    links = {"self": f"{door.base}/{type_}?{urlencode(query.parameters())}"}
    if page.next is not None:
        cursor = search.seal_cursor(query, visit.clinic, page.next, door.cursor_key, real_now())
        following = [*query.parameters(), (search.CURSOR, cursor)]
        links["next"] = f"{door.base}/{type_}?{urlencode(following)}"
    return fhir_response(
        fhir.searchset(door.base, page.resources, [f.resource for f in included], page.total, links)
    )


async def _without_identifiers(tx: Tx, visit: Visit, query: Query, seen: Iterable[Found]) -> Query:
    """Identifiers become the keys they match, so that no link carries them (CA-11); and only keys
    of whom something may be seen, for a key alone says that a hospital knows the person (CS-42).
    """
    if not query.identifiers:
        return query
    tokens: set[tuple[str, str]] = set()
    region, house = visit.door.house.region(), visit.door.house
    for said in ",".join(query.identifiers).split(","):
        system, _, value = said.partition("|")
        canonical = canonical_system(system, region.aliases)
        plain = normalise(canonical, value)
        if plain is not None:
            tokens |= set(house.tokens.all(canonical, plain))
    keys = set(await store.matched(tx, tokens))
    if query.type == "Consent":  # its patient may be nobody we know yet
        tokens |= set(await store.tokens_of(tx, keys))
        rows = await store.consents_about(tx, tokens, visit.clinic)
        resolved = ("_id", ",".join(sorted(row.id for row in rows)) or "none")
    else:
        keys &= {found.patient for found in seen if found.patient is not None}
        name = "_id" if query.type == "Patient" else "patient"
        resolved = (name, ",".join(sorted(str(key) for key in keys)) or "none")
    return search.Query(
        type=query.type,
        filters=(*query.filters, resolved),
        count=query.count,
        sort=query.sort,
        includes=query.includes,
        revincludes=query.revincludes,
        cursor=query.cursor,
    )


async def _included(tx: Tx, visit: Visit, query: Query, shown: Sequence[Found]) -> list[Found]:
    """What goes along, if the token may read it (CA-16)."""
    if not shown or not (query.includes or query.revincludes):
        return []
    wanted: set[str] = set()
    for name, element in (
        ("Task:patient", "for"),
        ("Task:focus", "focus"),
        ("Task:owner", "owner"),
    ):
        if name in query.includes:
            wanted |= {f.resource[element]["reference"] for f in shown if element in f.resource}
    types = {w.partition("/")[0] for w in wanted}
    found: list[Found] = []
    for type_ in sorted(types):
        if visit.who.may(type_, "r"):
            several = await _GATHER.get(type_, _seen)(tx, visit, type_, None)
            found += [f for f in several if f.reference in wanted]
    if "Provenance:target" in query.revincludes and visit.who.may("Provenance", "r"):
        targets = {f.entity for f in shown}
        several = await _seen(tx, visit, "Provenance", None)
        found += [f for f in several if f.resource["target"][0]["reference"] in targets]
    return found


async def _note_search(
    tx: Tx, visit: Visit, query: Query, shown: Sequence[Found], included: Sequence[Found]
) -> None:
    await store.mark_shown(tx, [f.card for f in shown if f.card is not None])
    said = f"{query.type}?{urlencode(query.parameters())}"
    patients = [f.patient for f in shown if f.patient is not None]
    told = {f.patient: f.content for f in shown if f.patient is not None and f.content is not None}
    records = visit.trail.searched(said, patients, told)
    records += [visit.trail.read(f.entity, f.patient, content=f.content) for f in included]
    await audit.record(tx, records)


async def _seen(tx: Tx, visit: Visit, type_: str, id_: str | None) -> list[Found]:
    """Cards, and what hangs on them."""
    patients: list[UUID] | None = None
    if id_ is not None:
        # Of what does not exist we ask as well, for nobody: it takes as long (CS-42).
        patients = [await _about(tx, visit, type_, id_) or telemetry.new_id()]
    sight = await looking.look(
        tx, visit.door.house, visit.clinic, visit.now, language=visit.language, patients=patients
    )
    match type_:
        case "Task":
            return sight.tasks()
        case "Flag":
            return sight.flags_seen()
        case "Patient":
            return sight.patients()
        case "Provenance":
            return sight.provenances()
        case _:
            return sight.communications(await store.communications(tx, visit.clinic))


async def _about(tx: Tx, visit: Visit, type_: str, id_: str) -> UUID | None:
    """Whom a resource's id is about, so that a read decides for that patient alone."""
    if type_ == "Patient":
        return _uuid(id_)
    if type_ == "Provenance":
        kind, _, rest = id_.partition("-")
        if kind not in {"task", "flag"}:
            return None
        return await store.patient_of(tx, visit.clinic, kind.capitalize(), _uuid(rest[:36]))
    if type_ == "Communication":
        row = await store.notification(tx, visit.clinic, _uuid(id_))
        return None if row is None else row.patient
    return await store.patient_of(tx, visit.clinic, type_, _uuid(id_))


async def _organizations(_tx: Tx, visit: Visit, _type: str, _id: str | None) -> list[Found]:
    region = visit.door.house.region()
    organisations: list[Site | Clinic] = [*region.sites, *region.clinics]
    return [Found(fhir.organization(one, visit.voice), None) for one in organisations]


async def _roles(_tx: Tx, visit: Visit, _type: str, _id: str | None) -> list[Found]:
    region = visit.door.house.region()
    today = telling.today(region, visit.now)
    return [
        Found(fhir.practitioner_role(p, active=telling.is_active(p, today)), None)
        for p in region.people
        if p.clinic == visit.clinic
    ]


async def _own_consents(tx: Tx, visit: Visit, _type: str, id_: str | None) -> list[Found]:
    """What the caller's site or clinic captured, and no other (CS-56)."""
    rows = await store.consents_captured_by(tx, visit.clinic)
    if id_ is not None:
        rows = [row for row in rows if row.id == id_]
    found = [await _kept_consent(tx, visit, row) for row in rows]
    return [one for one in found if one is not None]


async def _kept_consent(tx: Tx, visit: Visit, row: Any) -> Found | None:
    """A version as its captor reads it back; None if it cannot be opened now."""
    body = intake.opened_consent(visit.door.house, row)
    if body is None:
        return None
    patients = await store.matched(tx, [(row.key_id, row.digest)])
    found = _consent(body, row.id, row.version, row.recorded, patients, visit.who)
    named = [f"Patient/{key}" for key in patients]
    named += [f"Patient/{row.digest}"] if row.key_id == store.KEY else []
    about = [{"reference": one} for one in named]
    return replace(found, sought={**found.resource, "patient": about})


def _consent(
    body: Json,
    id_: str,
    version: int,
    recorded: datetime,
    patients: Sequence[UUID],
    who: Caller,
) -> Found:
    resource = {
        **(body if who.clinic is None else intake.without_attachments(body)),
        "resourceType": "Consent",
        "id": id_,
        "meta": fhir.meta(version, recorded),
    }
    return Found(resource, patients[0] if patients else None, version)


async def _own_subscriptions(tx: Tx, visit: Visit, _type: str, _id: str | None) -> list[Found]:
    """Only the owner sees a Subscription (CA-54)."""
    rows = await store.subscriptions(tx, visit.clinic, visit.who.id)
    return [_subscription(row) for row in rows]


def _subscription(row: Any, headers: Mapping[str, str] | None = None) -> Found:
    shown = dict.fromkeys(row.headers, MASK) if headers is None else headers
    return Found(subscriptions.resource(row, shown), None, row.version)


_GATHER: Final[Mapping[str, Gather]] = {
    "Organization": _organizations,
    "PractitionerRole": _roles,
    "Consent": _own_consents,
    "Subscription": _own_subscriptions,
}


# --- Task: versions and acknowledgement -------------------------------------------------------


def _task_routes(router: APIRouter, door: Door) -> None:
    may_read, may_update = Depends(require("Task", "r")), Depends(require("Task", "u"))

    @router.get("/fhir/Task/{id_}/_history/{version}")
    async def vread(
        request: Request, id_: str, version: str, who: Annotated[Caller, may_read]
    ) -> Response:
        visit = _visit(door, request, who)
        async with _transaction(visit) as tx:
            found = await _version(tx, visit, _uuid(id_), version)
            if found is None:
                raise _not_found()
            await _note_read(tx, visit, found, "vread")
        return _answer(found)

    @router.patch("/fhir/Task/{id_}")
    async def patch(request: Request, id_: str, who: Annotated[Caller, may_update]) -> Response:
        visit = _visit(door, request, who)
        media = _media(request)
        if media == acknowledge.JSON_PATCH:
            body = await _json(request, [media])
            return await _acknowledge(visit, _uuid(id_), body, acknowledge.by_patch)
        if media in acknowledge.PATCHES:
            body = await _json(request, [media])
            return await _acknowledge(visit, _uuid(id_), body, acknowledge.by_merge)
        wanted = f"{acknowledge.JSON_PATCH} or application/merge-patch+json"
        raise Rejection("not-supported", f"Send {wanted}.", status=415)

    @router.put("/fhir/Task/{id_}")
    async def put(request: Request, id_: str, who: Annotated[Caller, may_update]) -> Response:
        visit = _visit(door, request, who)
        body = await _json(request)
        return await _acknowledge(visit, _uuid(id_), body, acknowledge.by_put)


async def _version(tx: Tx, visit: Visit, id_: UUID, version: str) -> Found | None:
    sight, card = await _card(tx, visit, id_)
    if card is None or not re.fullmatch(r"[1-9]\d{0,8}", version):
        return None
    if int(version) == card.version:
        return sight.task(card)
    rows = {row.version: row for row in await store.history(tx, id_)}
    row = rows.get(int(version))
    if row is None:
        return None
    key = (card.patient, row.sequence)
    then = (await store.standings_at(tx, [key])).get(key)
    return sight.version(card, row.state, then)


async def _card(tx: Tx, visit: Visit, id_: UUID) -> tuple[Sight, Card | None]:
    patient = await store.patient_of(tx, visit.clinic, "Task", id_)
    sight = await looking.look(
        tx,
        visit.door.house,
        visit.clinic,
        visit.now,
        language=visit.language,
        patients=[patient or telemetry.new_id()],  # it takes as long (CS-42)
    )
    return sight, next((card for card in sight.cards if card.id == id_), None)


async def _acknowledge(
    visit: Visit, id_: UUID, body: Any, read: Callable[[Json, Any, str | None], Wanted]
) -> Response:
    """CA-20 to CA-26."""
    if_match = _if_match(visit.request)
    async with _transaction(visit) as tx:
        sight, card = await _card(tx, visit, id_)
        current = None if card is None else sight.task(card)
        if card is None or current is None:
            raise _not_found()
        wanted = _read_wanted(read, current.resource, body, if_match)
        if acknowledge.differences(current.resource, wanted.task):
            if not wanted.fresh:
                raise _stale(card)
            current = await _apply(tx, visit, card, current, wanted)
        await _note_read(tx, visit, current)
    return _answer(current)


def _read_wanted(
    read: Callable[[Json, Any, str | None], Wanted], current: Json, body: Any, if_match: str | None
) -> Wanted:
    try:
        return read(current, body, if_match)
    except NoGuardError:
        raise Rejection(
            "required",
            "Say which version you saw: If-Match, meta.versionId, or a JSON Patch test on"
            " /meta/versionId or /status.",
        ) from None
    except BadPatchError as error:
        raise Rejection("structure", str(error), status=400) from None


def _stale(card: Card) -> Rejection:
    return Rejection(
        "conflict",
        f"The current version is {card.version}, status {card.status}. Read it and decide again.",
        status=412,
    )


async def _apply(tx: Tx, visit: Visit, card: Card, current: Found, wanted: Wanted) -> Found:
    try:
        ask = acknowledge.ask_of(
            current.resource, wanted.task, lambda reference: _owner(visit, reference)
        )
        act = Act(visit.clinic, card.id, ask, by=visit.who.id, version=card.version)
        done = await flow.acknowledge(act, visit.turn(tx), visit.trail)
    except RefusedError as error:
        raise _refused(error.faults) from None
    except NotAllowedError as error:
        raise _refused([error]) from None
    if isinstance(done, Stale):
        raise _stale(done.card)
    if done is None:
        raise _not_found()
    sight, _ = await _card(tx, visit, card.id)
    found = sight.task(done)
    if found is None:
        raise _not_found()
    return found


def _refused(faults: Sequence[NotAllowedError]) -> Rejection:
    return Rejection(
        status=422, issues=[Issue(fault.code, fault.text, fault.element) for fault in faults]
    )


def _owner(visit: Visit, reference: str) -> str | None:
    """A person of the clinic, its pool, or None if the reference is neither (CA-22)."""
    local = reference.removeprefix(f"{visit.door.base}/")
    if local == f"Organization/{visit.clinic}":
        return acknowledge.POOL
    region = visit.door.house.region()
    person = region.person(local.removeprefix("PractitionerRole/"))
    is_role = local.startswith("PractitionerRole/") and person is not None
    if not is_role or person is None or person.clinic != visit.clinic:
        return None
    return person.id if telling.is_active(person, telling.today(region, visit.now)) else None


# --- Consent ----------------------------------------------------------------------------------


def _consent_routes(router: APIRouter, door: Door) -> None:
    may_read = Depends(require("Consent", "r"))
    may_create, may_update = Depends(require("Consent", "c")), Depends(require("Consent", "u"))

    @router.post("/fhir/Consent")
    async def create(request: Request, who: Annotated[Caller, may_create]) -> Response:
        return await _capture(door, request, who, None)

    @router.put("/fhir/Consent/{id_}")
    async def update(request: Request, id_: str, who: Annotated[Caller, may_update]) -> Response:
        if not re.fullmatch(r"[A-Za-z0-9.-]{1,64}", id_):
            raise Rejection("value", "An id has letters, digits, `-` and `.`, 64 at most.")
        return await _capture(door, request, who, id_)

    @router.get("/fhir/Consent/{id_}/_history/{version}")
    async def vread(
        request: Request, id_: str, version: str, who: Annotated[Caller, may_read]
    ) -> Response:
        visit = _any_visit(door, request, who, "Consent")
        if not re.fullmatch(r"[1-9]\d{0,8}", version):
            raise _not_found()
        async with _transaction(visit) as tx:
            row = await store.consent(tx, id_, int(version))
            if row is None or row.tenant != visit.clinic:
                raise _not_found()
            found = await _kept_consent(tx, visit, row)
            if found is None:
                raise _cannot_be_opened()
            await _note_read(tx, visit, found, "vread")
        return _answer(found)

    @router.get("/fhir/Consent/{id_}/_history")
    async def history(request: Request, id_: str, who: Annotated[Caller, may_read]) -> Response:
        visit = _any_visit(door, request, who, "Consent")
        async with _transaction(visit) as tx:
            rows = await store.consent_history(tx, id_)
            if not rows or rows[0].tenant != visit.clinic:
                raise _not_found()
            several = [await _kept_consent(tx, visit, row) for row in rows]
            versions = [one for one in several if one is not None]
            if len(versions) < len(several):
                raise _cannot_be_opened()
            name = f"Consent/{id_}/_history"
            await audit.record(
                tx, [visit.trail.read(name, versions[0].patient, "history-instance")]
            )
        return fhir_response(fhir.history(door.base, [one.resource for one in versions]))


def _cannot_be_opened() -> Rejection:
    return Rejection("transient", "It cannot be opened now.", status=503)


async def _capture(door: Door, request: Request, who: Caller, id_: str | None) -> Response:
    """In force for the next attempt; the patient's cards are settled before it is answered."""
    _check_accept(request)
    body = await _json(request)
    if not isinstance(body, dict) or body.get("resourceType") != "Consent":
        raise Rejection("structure", "Send a Consent.")
    if id_ is not None and body.get("id") != id_:
        raise Rejection("value", "The Consent's id must be that of the address.", "Consent.id")
    if_match = _if_match(request)
    tenant = _site(who, body)
    now = door.now()
    capture = Capture(
        resource=body,
        tenant=tenant,
        by=who.id,
        id=id_,
        if_version=None if if_match is None else int(if_match),
        saw=_seen_version(body),
        may_create=who.may("Consent", "c"),
        only_own_panel=who.clinic is not None,
        guarded=True,
    )
    trail = Trail.of(request, who, now, tenant=tenant)
    kept = await intake.take_consent(door.db, door.house, capture, trail, now)
    found = _consent(kept.resource, kept.id, kept.version, kept.recorded, (), who)
    headers = {"Location": f"{door.base}/Consent/{kept.id}/_history/{kept.version}"}
    if kept.warnings:
        headers["Warning"] = f'199 - "{kept.warnings[0]}"'
    return _answer(found, 201 if kept.created else 200, headers)


def _seen_version(body: Json) -> int | None:
    """`meta.versionId` of a body: the version its sender saw, if there is one here (CA-21)."""
    meta = body.get("meta")
    said = meta.get("versionId") if isinstance(meta, dict) else None
    if not isinstance(said, str) or not re.fullmatch(r"[1-9]\d{0,8}", said):
        return None
    return int(said)


# --- Subscription -----------------------------------------------------------------------------


def _subscription_routes(router: APIRouter, door: Door) -> None:
    def may(letters: str) -> Any:
        return Depends(require("Subscription", letters))

    @router.post("/fhir/Subscription")
    async def create(request: Request, who: Annotated[Caller, may("c")]) -> Response:
        visit = _visit(door, request, who)
        wish = await _wish(visit, await _json(request))
        async with _transaction(visit) as tx:
            own = await store.subscriptions(tx, visit.clinic, who.id)
            if sum(row.status != "off" for row in own) >= subscriptions.MOST:
                raise Rejection(
                    "business-rule", f"At most {subscriptions.MOST} Subscriptions.", status=422
                )
            id_, secret = telemetry.new_id(), subscriptions.new_secret()
            row = _row(visit, wish, id_, secret)
            await store.put_subscription(tx, row)
            await _shake_hands(tx, visit, id_, wish)
            await audit.record(tx, [visit.trail.configured(f"Subscription/{id_}")])
            kept = await store.subscription(tx, visit.clinic, id_)
        headers = {n: v for n, v in wish.headers.items() if v is not None}
        return _answer(
            _subscription(kept, headers),
            201,
            {"Location": f"{door.base}/Subscription/{id_}", SECRET_HEADER: secret},
        )

    @router.put("/fhir/Subscription/{id_}")
    async def update(request: Request, id_: str, who: Annotated[Caller, may("u")]) -> Response:
        visit = _visit(door, request, who)
        body = await _json(request)
        if isinstance(body, dict) and body.get("id") != id_:
            raise Rejection("value", "The id must be that of the address.", "Subscription.id")
        wish = await _wish(visit, body)
        async with _transaction(visit) as tx:
            known = await store.subscription(tx, visit.clinic, _uuid(id_))
            if known is None or known.client != who.id:
                raise _not_found()
            row = _row(visit, wish, known.id, None, known)
            await store.put_subscription(tx, row)
            if not wish.off:
                await store.begin_anew(tx, known.id, real_now())
                await _shake_hands(tx, visit, known.id, wish)
            await audit.record(tx, [visit.trail.configured(f"Subscription/{id_}")])
            kept = await store.subscription(tx, visit.clinic, known.id)
        return _answer(_subscription(kept))

    @router.post("/fhir/Subscription/{id_}/$rotate-secret")
    async def rotate(request: Request, id_: str, who: Annotated[Caller, may("u")]) -> Response:
        return await _rotate_secret(_visit(door, request, who), id_)

    @router.delete("/fhir/Subscription/{id_}")
    async def delete(request: Request, id_: str, who: Annotated[Caller, may("d")]) -> Response:
        visit = _visit(door, request, who)
        async with _transaction(visit) as tx:
            known = await store.subscription(tx, visit.clinic, _uuid(id_))
            if known is None or known.client != who.id:
                raise _not_found()
            await store.delete_subscription(tx, known.id)
            await audit.record(tx, [visit.trail.deleted(f"Subscription/{id_}", None)])
        return fhir_response(None, 204)

    @router.api_route("/fhir/Subscription/{id_}/$status", methods=["GET", "POST"])
    async def status(request: Request, id_: str, who: Annotated[Caller, may("r")]) -> Response:
        visit = _visit(door, request, who)
        return await _status(visit, [id_], [], must_exist=True)

    @router.api_route("/fhir/Subscription/$status", methods=["GET", "POST"])
    async def statuses(request: Request, who: Annotated[Caller, may("r")]) -> Response:
        visit = _visit(door, request, who)
        pairs = [*request.query_params.multi_items(), *await _parameters(request)]
        ids = [value for name, value in pairs if name == "id"]
        states = [value for name, value in pairs if name == "status"]
        return await _status(visit, ids, states, must_exist=False)


async def _parameters(request: Request) -> list[tuple[str, str]]:
    if request.method != "POST" or request.headers.get("content-length", "0") == "0":
        return []
    body = await _json(request)
    said = body.get("parameter", []) if isinstance(body, dict) else []
    found = []
    for one in said if isinstance(said, list) else []:
        if isinstance(one, dict):
            value = next((v for n, v in one.items() if n.startswith("value")), None)
            found.append((str(one.get("name")), str(value)))
    return found


async def _status(
    visit: Visit, ids: Sequence[str], states: Sequence[str], *, must_exist: bool
) -> Response:
    async with _transaction(visit) as tx:
        rows = await store.subscriptions(tx, visit.clinic, visit.who.id)
        chosen = [
            row
            for row in rows
            if (not ids or str(row.id) in ids) and (not states or row.status in states)
        ]
        if must_exist and not chosen:
            raise _not_found()
        await audit.record(tx, visit.trail.searched("Subscription/$status", []))
    said = [subscriptions.status(row, "query-status", visit.door.base) for row in chosen]
    return fhir_response(
        fhir.searchset(
            visit.door.base,
            said,
            [],
            len(said),
            {"self": f"{visit.door.base}/Subscription/$status"},
        )
    )


async def _wish(visit: Visit, body: Any) -> Wish:
    clinic = visit.door.house.region().clinic(visit.clinic)
    levels = clinic.content_levels if clinic else ("empty", "id-only")
    try:
        wish = subscriptions.read(body, levels, visit.now)
        await visit.door.gate(visit.clinic).address(wish.endpoint, visit.door.resolve)
    except NotOfferedError as error:
        raise Rejection(error.code, error.text, error.element, status=422) from None
    except ForbiddenTargetError as error:
        raise Rejection(
            "not-supported", str(error), "Subscription.channel.endpoint", status=422
        ) from None
    except OSError:
        raise Rejection(
            "not-supported",
            "The endpoint's host is not reachable from here.",
            "Subscription.channel.endpoint",
            status=422,
        ) from None
    return wish


async def _rotate_secret(visit: Visit, id_: str) -> Response:
    """A new signing secret; the one before signs along for a day (CA-66)."""
    secret = subscriptions.new_secret()
    async with _transaction(visit) as tx:
        known = await store.subscription(tx, visit.clinic, _uuid(id_))
        if known is None or known.client != visit.who.id:
            raise _not_found()
        box = visit.door.house.seals.seal(known.id, "webhook", secret)
        await store.renew_secret(tx, known.id, box, real_now() + subscriptions.BOTH_SIGN)
        await audit.record(tx, [visit.trail.configured(f"Subscription/{id_}")])
    said = outcome([Issue("informational", _ROTATED, severity="information")])
    return fhir_response(said, 200, {SECRET_HEADER: secret})


_ROTATED = (
    "The new secret stands in the header. For a day each notification is signed with both, the new"
    " one first."
)


def _row(
    visit: Visit, wish: Wish, id_: UUID, secret: str | None, known: Any = None
) -> dict[str, Any]:
    seals = visit.door.house.seals
    headers = {
        name: list(seals.seal(id_, f"header {name}", value))
        if value is not None
        else _kept_header(known, name)
        for name, value in wish.headers.items()
    }
    row: dict[str, Any] = {
        "id": id_,
        "clinic": visit.clinic,
        "client": visit.who.id,
        "version": 1 if known is None else known.version + 1,
        "status": "off" if wish.off else "requested",
        "topic": wish.topic,
        "filters": {name: list(values) for name, values in wish.filters.items()},
        "reason": wish.reason,
        "endpoint": wish.endpoint,
        "mime": wish.mime,
        "content": wish.content,
        "headers": headers,
        "heartbeat": wish.heartbeat,
        "timeout": wish.timeout,
        "max_count": wish.max_count,
        "ends": wish.ends,
        "contact": [dict(c) for c in wish.contact],
        "counter": 0,
        "error": None,
        "secret": known.secret if known is not None else None,
        "former_secret": known.former_secret if known is not None else None,
        "former_until": known.former_until if known is not None else None,
        "created": visit.now if known is None else known.created,
        "updated": visit.now,
        "failing_since": None,
        "failures": 0,
        "not_before": None,
        "alarmed": False,
        "last_sent": None,
    }
    if secret is not None:
        row["secret"] = list(seals.seal(id_, "webhook", secret))
    return row


def _kept_header(known: Any, name: str) -> Any:
    """A PUT of the mask keeps the value (CA-54)."""
    if known is None or name not in known.headers:
        raise Rejection(
            "value",
            "A masked header has no value to keep.",
            "Subscription.channel.header",
            status=422,
        )
    return known.headers[name]


async def _shake_hands(tx: Tx, visit: Visit, id_: UUID, wish: Wish) -> None:
    if wish.off:
        return
    row = {
        "id": telemetry.new_id(),
        "subscription": id_,
        "clinic": visit.clinic,
        "kind": "handshake",
        "number": 0,
        "event": None,
        "card": None,
        "flag": None,
        "patient": None,
        "at": visit.now,
        "state": "pending",
        "attempts": 0,
        "due": real_now(),
        "fence": 0,
    }
    await store.add_notifications(tx, [row], {})


# --- panel ------------------------------------------------------------------------------------


def _panel_route(router: APIRouter, door: Door) -> None:
    @router.post("/panel")
    async def upload(
        request: Request, who: Annotated[Caller, Depends(require("Group", "u"))]
    ) -> Response:
        if who.clinic is None:
            raise Rejection("forbidden", "A panel is a clinic's own.", status=403)
        media, *parameters = request.headers.get("content-type", "").split(";")
        if media.strip().lower() != "text/csv":
            raise Rejection("not-supported", "Send text/csv.", status=415)
        charset = next(
            (p.partition("=")[2] for p in parameters if p.strip().lower().startswith("charset=")),
            None,
        )
        asked = request.query_params
        handed = Upload(
            clinic=who.clinic,
            body=await _body(request, LARGEST_PANEL),
            charset=charset,
            mode=_mode(asked.get("mode", "delta")),
            dry_run=_yes(asked.get("dry_run", "true")),
            confirm=_report_id(asked.get("confirm")),
        )
        now = door.now()
        trail = Trail.of(request, who, now)
        async with door.db.work() as tx:
            turn = Turn(tx=tx, now=now, house=door.house)
            report = await intake.upload_panel(handed, turn, trail)
        return Response(orjson.dumps(report), media_type="application/json")


def _mode(said: str) -> Mode:
    if said not in set(Mode):
        raise Rejection("value", "delta or full is needed.", "mode")
    return Mode(said)


def _yes(said: str) -> bool:
    if said not in {"true", "false"}:
        raise Rejection("value", "true or false is needed.", "dry_run")
    return said == "true"


def _report_id(said: str | None) -> UUID | None:
    try:
        return None if said is None else UUID(said)
    except ValueError:
        raise Rejection("value", "A report's id is needed.", "confirm") from None

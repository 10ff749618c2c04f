"""The hospitals' door: FHIR R4 over HTTP under /fhir (hospital-api.md sections 2 to 7).

Every 2xx is sent after the commit that holds the fact and its event. Which site a caller writes
as comes from the region file; row-level security holds each transaction to it.
"""

import hashlib
import re
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from email.utils import format_datetime
from http import HTTPStatus
from typing import Annotated, Any, TypeVar
from urllib.parse import parse_qsl, urlencode
from uuid import UUID

import orjson
from fastapi import Depends, FastAPI, Request, Response
from sqlalchemy.exc import DBAPIError

from services.ingest import bundles, flow, gate, reading, store, taking, verbatim
from services.ingest.answers import (
    ACCEPTED,
    VALID,
    bundle_response,
    conflict,
    entry_answer,
    issue_of,
    json_text,
    read_answer,
    rejection,
    result_of,
    served,
    stamp,
    waits,
)
from services.ingest.bundles import RECORDED, Entry
from services.ingest.capability import capability
from services.ingest.flow import Door, House, Item
from services.ingest.gate import Problem
from services.ingest.negotiation import check_accept, preference, read_body
from services.ingest.reading import Identifier, Reason
from services.ingest.tables import Kept, Seen
from services.ingest.taking import Slot, rooted, sites_named
from services.ingest.verbatim import NotJsonError, Tree
from services.plumbing import audit, telemetry
from services.plumbing.audit import Trail
from services.plumbing.auth import (
    Authority,
    AuthorityAwayError,
    Caller,
    caller,
    demand,
    smart_configuration,
    spend,
)
from services.plumbing.db import Tx, sqlstate
from services.plumbing.web import FHIR_JSON, Issue, Rejection, fhir_response, outcome

MAX_RESOURCE = 1024 * 1024
MAX_BUNDLE = 16 * 1024 * 1024
KEPT_FOR = timedelta(days=30)
"""How long a refused body is kept (HA-80)."""
TRIES = 4
"""Of a transaction that another one crossed."""
PAGE = 50
LARGEST_PAGE = 500
SCOPES = ("system/Encounter.cruds", "system/Patient.cruds")

Who = Annotated[Caller, Depends(caller)]
T = TypeVar("T")


def add_door(app: FastAPI, house: House) -> None:
    """Put the routes of the hospitals' door into `app`."""
    door = _Door(house)

    @app.get("/fhir/metadata")
    async def metadata(request: Request) -> Response:
        check_accept(request)
        body = capability(house.base, await _token_url(house.authority))
        return fhir_response(body, headers=_OPEN)

    @app.get("/fhir/.well-known/smart-configuration")
    async def smart() -> Response:
        try:
            body = await smart_configuration(house.authority, SCOPES)
        except AuthorityAwayError:
            raise Rejection(
                "transient", "The authority does not answer.", status=503, headers=_LATER
            ) from None
        return Response(orjson.dumps(body), 200, _OPEN, media_type="application/json")

    app.add_api_route("/fhir", door.bundle, methods=["POST"])
    app.add_api_route("/fhir/", door.bundle, methods=["POST"])
    app.add_api_route("/fhir/$process-message", door.message, methods=["POST"])
    app.add_api_route("/fhir/{kind}/$validate", door.validate, methods=["POST"])
    app.add_api_route("/fhir/{kind}", door.create, methods=["POST"])
    app.add_api_route("/fhir/{kind}", door.update_by_condition, methods=["PUT"])
    app.add_api_route("/fhir/{kind}", door.search, methods=["GET"])
    app.add_api_route("/fhir/{kind}/{id_}", door.update, methods=["PUT"])
    app.add_api_route("/fhir/{kind}/{id_}", door.read, methods=["GET"])
    app.add_api_route("/fhir/{kind}/{id_}", door.delete, methods=["DELETE"])
    app.add_api_route("/fhir/{kind}/{id_}/_history/{version}", door.vread, methods=["GET"])


_OPEN = {"Access-Control-Allow-Origin": "*"}
_LATER = {"Retry-After": "5"}


async def _token_url(authority: Authority) -> str | None:
    try:
        return await authority.endpoint("token_endpoint")
    except AuthorityAwayError:
        return None


class _Undone(Exception):  # noqa: N818 - not an error: the transaction must not have been
    """Roll back, and answer this."""

    def __init__(self, rejection: Rejection) -> None:
        self.rejection = rejection


class _Door:
    def __init__(self, house: House) -> None:
        self.house = house

    # One resource

    async def create(self, request: Request, who: Who, kind: str) -> Response:
        _known(kind)
        demand(who, kind, "c")
        entry = await self._entry(request, "POST", kind)
        if request.url.query and "if-none-exist" not in request.headers:
            entry = replace(entry, query=request.url.query)  # HA-13
        return await self._write(request, who, entry)

    async def update(self, request: Request, who: Who, kind: str, id_: str) -> Response:
        _known(kind)
        demand(who, kind, "u")
        _check_id(id_)
        return await self._write(request, who, await self._entry(request, "PUT", kind, id_))

    async def update_by_condition(self, request: Request, who: Who, kind: str) -> Response:
        _known(kind)
        demand(who, kind, "cu")
        entry = await self._entry(request, "PUT", kind)
        return await self._write(request, who, replace(entry, query=request.url.query))

    async def delete(self, request: Request, who: Who, kind: str, id_: str) -> Response:
        _known(kind)
        if kind != "Encounter":
            raise Rejection("not-supported", "A Patient is not deleted.", status=405)
        demand(who, kind, "d")
        check_accept(request)
        if not _ID.fullmatch(id_):
            raise Rejection("not-found", "There is no such resource.", kind, status=404)
        entry = Entry(-1, "DELETE", kind, id_, if_match=request.headers.get("if-match"))
        return await self._write(request, who, entry)

    async def _entry(
        self, request: Request, method: str, kind: str, id_: str | None = None
    ) -> Entry:
        check_accept(request)
        raw = await read_body(request, MAX_RESOURCE)
        headers = request.headers
        try:
            piece = verbatim.read(raw)
        except NotJsonError as error:
            await self._refuse_raw(request, kind, raw, Problem("structure", kind, str(error)))
            raise Rejection("structure", str(error), kind) from None
        return Entry(
            -1, method, kind, id_,
            if_none_exist=headers.get("if-none-exist"),
            if_match=headers.get("if-match"),
            resource=piece.tree,
            text=piece.text,
        )  # fmt: skip

    async def _write(self, request: Request, who: Caller, entry: Entry) -> Response:
        door = self._door(request, who, [entry])
        item = taking.single(entry, door)

        async def write(tx: Tx) -> str | None:
            await flow.take_in(tx, [item], door)
            if item.problems:
                raise _Undone(rejection(item.problems))
            if item.is_ignored:
                await self._set_aside(tx, door, [item])
            return await self._shown(tx, door, item, preference(request))

        if item.problems:
            await self._refuse(door, [item])
            raise rejection(item.problems)
        try:
            shown = await self._within(door, write, lambda: _forget([item]))
        except _Undone as undone:
            await self._refuse(door, [item])
            raise undone.rejection from None
        return self._answer(request, item, shown)

    def _answer(self, request: Request, item: Item, shown: str | None) -> Response:
        if item.status == HTTPStatus.NO_CONTENT:
            return fhir_response(None, 204)
        assert item.record is not None
        assert item.record.updated is not None
        id_ = item.entry.logical_id or item.record.id
        headers = {
            "Location": f"{self.house.base}/{item.kind}/{id_}/_history/{item.version}",
            "ETag": f'W/"{item.version}"',
            "Last-Modified": format_datetime(item.record.updated, usegmt=True),
        }
        prefer = preference(request)
        if prefer == "minimal":
            return Response(b"", item.status, headers, media_type=FHIR_JSON)
        if prefer == "OperationOutcome":
            return fhir_response(outcome([result_of(item)]), item.status, headers)
        assert shown is not None
        return fhir_response(shown.encode(), item.status, headers)

    async def _shown(self, tx: Tx, door: Door, item: Item, prefer: str) -> str | None:
        """The resource as it is given back."""
        if prefer != "representation" or item.record is None or item.status == 204:
            return None
        record = item.record
        id_ = item.entry.logical_id or record.id
        text = item.text
        if text is None:
            kept = await store.read(tx, door.site, item.kind, record.id, item.version)
            assert kept is not None
            return self._open(kept, id_)
        assert record.updated is not None
        hold = None if item.hold is None else item.hold.reason
        return served(text, id_, item.version, record.updated, hold)

    # Reading

    async def read(self, request: Request, who: Who, kind: str, id_: str) -> Response:
        return await self._read(request, who, kind, id_, None)

    async def vread(
        self, request: Request, who: Who, kind: str, id_: str, version: str
    ) -> Response:
        return await self._read(request, who, kind, id_, version)

    async def _read(
        self, request: Request, who: Caller, kind: str, id_: str, version: str | None
    ) -> Response:
        _known(kind)
        demand(who, kind, "r")
        check_accept(request)
        for site in sorted(who.sites) if _ID.fullmatch(id_) else ():
            door = self._door_of(request, who, site)
            number = None if version is None else _number(version)

            async def look(
                tx: Tx, door: Door = door, number: int | None = number
            ) -> tuple[Kept, str] | None:
                found = await store.read(tx, door.site, kind, id_, number)
                if found is None or (version is not None and number is None):
                    return None
                if found.box is None or (version is None and found.deleted):
                    raise Rejection("deleted", "It was deleted.", status=410)
                interaction = "read" if version is None else "vread"
                entity = f"{kind}/{found.key}/_history/{found.version}"
                record = door.trail.read(entity, found.patient, interaction)
                await audit.record(tx, [record])
                return found, self._open(found, id_)

            shown = await self._within(door, look)
            if shown is not None:
                return read_answer(request, *shown)
        raise Rejection("not-found", "There is no such resource.", status=404)

    async def search(self, request: Request, who: Who, kind: str) -> Response:
        _known(kind)
        demand(who, kind, "s")
        check_accept(request)
        door = self._door(request, who, [])
        criteria = parse_qsl(request.url.query, keep_blank_values=True)
        return fhir_response((await self._search(door, kind, criteria)).encode())

    async def _search(self, door: Door, kind: str, criteria: Sequence[tuple[str, str]]) -> str:
        asked = _Search.of(criteria, kind, door)

        async def look(tx: Tx) -> tuple[list[Kept], int]:
            among: set[UUID] | None = None
            digests = [flow.tokens(door, kind, one) for one in asked.identifiers]
            if digests:
                every = [one for spelt in digests for one in spelt]
                matches = await store.matching(tx, door.site, every)
                among = set.intersection(
                    *(
                        {key for one in spelt for key in matches.get((kind, one), ())}
                        for spelt in digests
                    )
                )
            for ids in asked.ids:
                named = await store.named(tx, door.site, kind, ids)
                among = named if among is None else among & named
            found, total = await store.search(
                tx, door.site, kind,
                among=among, updated=asked.updated, after=asked.after, count=asked.count,
            )  # fmt: skip
            patients = [one.patient for one in found if one.patient is not None]
            query = "&".join(f"{name}=*" for name, _ in criteria)
            await audit.record(tx, door.trail.searched(f"{kind}?{query}", patients))
            return found, total

        found, total = await self._within(door, look)
        return self._searchset(kind, criteria, found, total, full=len(found) == asked.count)

    def _searchset(
        self,
        kind: str,
        criteria: Sequence[tuple[str, str]],
        found: Sequence[Kept],
        total: int,
        *,
        full: bool,
    ) -> str:
        base = self.house.base
        plain = [(name, value) for name, value in criteria if name != "_page"]
        links = [{"relation": "self", "url": _link(f"{base}/{kind}", _quiet(plain))}]
        if full and found:
            page = [*_quiet(plain), ("_page", str(found[-1].key))]
            if not any(name == "identifier" for name, _ in plain):
                links.append({"relation": "next", "url": _link(f"{base}/{kind}", page)})
        entries = ",".join(
            f'{{"fullUrl":{json_text(f"{base}/{kind}/{one.id}")},"resource":'
            f'{self._open(one, one.id)},"search":{{"mode":"match"}}}}'
            for one in found
        )
        head = {
            "resourceType": "Bundle",
            "type": "searchset",
            "total": total,
            "link": links,
        }
        opened = orjson.dumps(head).decode()
        return f'{opened[:-1]},"entry":[{entries}]}}' if entries else opened

    def _open(self, kept: Kept, id_: str) -> str:
        assert kept.box is not None
        text = self.house.keys.seals.open(kept.key, flow.BODY, *kept.box)
        hold = None if kept.hold is None else Reason(kept.hold)
        return served(text, id_, kept.version, kept.arrived, hold)

    # Bundles

    async def bundle(self, request: Request, who: Who) -> Response:
        check_accept(request)
        tree, texts, raw = await self._bundle(request)
        if tree["type"] not in ("batch", "transaction"):
            advice = "Send a batch or transaction; a message goes to $process-message."
            raise Rejection("not-supported", advice, "Bundle.type", 422)
        made = bundles.requests(tree, texts, self.house.base)
        spend(request, len(made))
        entries = [one for one in made if isinstance(one, Entry)]
        door = self._door(request, who, entries)
        slots = taking.slots_of(made, door)
        if tree["type"] == "transaction":
            await self._transaction(request, door, entries, slots, raw)
            kind = "transaction-response"
        else:
            await self._batch(door, slots)
            kind = "batch-response"
        answers = [await self._slot_answer(request, who, door, slot) for slot in slots]
        return bundle_response(kind, answers)

    async def _bundle(self, request: Request) -> tuple[Tree, list[str | None], bytes]:
        raw = await read_body(request, MAX_BUNDLE)
        try:
            tree, texts = verbatim.read_bundle(raw)
        except NotJsonError as error:
            await self._refuse_raw(
                request, "Bundle", raw, Problem("structure", "Bundle", str(error))
            )
            raise Rejection("structure", str(error), "Bundle") from None
        problems = bundles.general(tree)
        if not problems:
            problems = [
                Problem("too-long", f"Bundle.entry[{number}].resource", _TOO_LONG, 413)
                for number, text in enumerate(texts)
                if text is not None and len(text) > MAX_RESOURCE
            ]
        if problems:
            await self._refuse_raw(request, "Bundle", raw, *problems)
            raise rejection(problems)
        return tree, texts, raw

    async def _batch(self, door: Door, slots: Sequence[Slot]) -> None:
        """Each entry by itself; what is accepted is one transaction (HA-30)."""
        items = taking.items_of(slots)

        async def write(tx: Tx) -> None:
            await flow.take_in(tx, items, door)
            await self._set_aside(tx, door, [one for one in items if one.is_ignored])
            await self._keep_refused(tx, door, [one for one in items if one.problems])

        if items:
            await self._within(door, write, lambda: _forget(items))

    async def _transaction(
        self,
        request: Request,
        door: Door,
        entries: Sequence[Entry],
        slots: Sequence[Slot],
        raw: bytes,
    ) -> None:
        """All or nothing (HA-30, HA-32)."""
        problems = taking.in_one_transaction(entries, slots)
        items = taking.items_of(slots)

        async def write(tx: Tx) -> None:
            await flow.take_in(tx, items, door)
            found = [rooted(one, item.entry) for item in items for one in item.problems]
            if found:
                raise _Undone(rejection(found))
            await self._set_aside(tx, door, [one for one in items if one.is_ignored])

        if problems:
            await self._refuse_raw(request, "Bundle", raw, *problems, door=door)
            raise rejection(problems)
        try:
            await self._within(door, write, lambda: _forget(items))
        except _Undone as undone:
            found = [rooted(one, item.entry) for item in items for one in item.problems]
            await self._refuse_raw(request, "Bundle", raw, *found, door=door)
            raise undone.rejection from None

    async def _slot_answer(self, request: Request, who: Caller, door: Door, slot: Slot) -> str:
        """One entry of a response Bundle (HA-31)."""
        problems = slot.all_problems()
        if problems:
            return entry_answer(problems[0].status, told=[issue_of(one) for one in problems])
        if slot.is_dropped:
            text = "Read for what an Encounter needs of it, and not kept."
            return entry_answer(204, told=[Issue("informational", text, severity="information")])
        item = slot.item
        if item is None:
            assert slot.entry is not None
            return await self._get(request, who, door, slot.entry)
        if item.status == HTTPStatus.NO_CONTENT:
            return entry_answer(204)
        assert item.record is not None
        assert item.record.updated is not None
        id_ = item.entry.logical_id or item.record.id
        return entry_answer(
            item.status,
            location=f"{self.house.base}/{item.kind}/{id_}/_history/{item.version}",
            etag=f'W/"{item.version}"',
            modified=stamp(item.record.updated),
            told=[result_of(item)] if item.hold is not None else (),
        )

    async def _get(self, request: Request, who: Caller, door: Door, entry: Entry) -> str:
        try:
            if entry.logical_id is None:
                demand(who, entry.kind, "s")
                criteria = parse_qsl(entry.query or "", keep_blank_values=True)
                found = await self._search(door, entry.kind, criteria)
                return entry_answer(200, resource=found)
            response = await self._read(request, who, entry.kind, entry.logical_id, entry.version)
        except Rejection as rejection:
            return entry_answer(rejection.status, told=rejection.all())
        body = bytes(response.body).decode()
        return entry_answer(200, etag=response.headers["etag"], resource=body)

    # Messages

    async def message(self, request: Request, who: Who) -> Response:
        """`$process-message` (section 4)."""
        demand(who, "Encounter", "cu")
        check_accept(request)
        if request.query_params.get("async") == "true" or "response-url" in request.query_params:
            raise Rejection("not-supported", "Only answered at once: leave async out.")
        tree, texts, raw = await self._message_bundle(request)
        taken = bundles.message(tree, texts)
        if not isinstance(taken, bundles.Message):
            await self._refuse_raw(request, "Bundle", raw, *taken)
            raise rejection(taken)
        door = self._door(request, who, taken.entries, taken.source)
        door = replace(door, name="message")
        digest = hashlib.sha256(orjson.dumps(tree, option=orjson.OPT_SORT_KEYS)).hexdigest()
        items, problems = taking.message_items(taken, door)
        if problems:
            await self._refuse_raw(request, "Bundle", raw, *problems, door=door)
            raise rejection(problems)

        async def write(tx: Tx) -> tuple[int, str]:
            new = Seen(taken.header_id, digest)
            seen = await store.meet_message(tx, door.site, taken.id, new, door.now)
            if seen is not None and seen.header != taken.header_id:
                raise _Undone(conflict("duplicate", "Bundle.id is never used again."))
            if seen is not None and seen.digest != digest:
                raise _Undone(conflict("conflict", "This Bundle.id came with other content."))
            if seen is not None:
                return seen.status, seen.answer
            await flow.take_in(tx, items, door)
            found = [rooted(one, item.entry) for item in items for one in item.problems]
            if found:
                raise _Undone(rejection(found))
            told = [result_of(item) for item in items if item.hold is not None]
            answer = outcome(told or [ACCEPTED])
            said = orjson.dumps(answer).decode()
            await store.answer_message(tx, door.site, taken.id, 200, said)
            return 200, said

        try:
            status, answer = await self._within(door, write, lambda: _forget(items))
        except _Undone as undone:
            found = [
                Problem(one.code, one.expression or "Bundle", one.text, undone.rejection.status)
                for one in undone.rejection.all()
            ]
            await self._refuse_raw(request, "Bundle", raw, *found, door=door)
            raise undone.rejection from None
        return fhir_response(answer.encode(), status)

    async def _message_bundle(self, request: Request) -> tuple[Tree, list[str | None], bytes]:
        """The Bundle itself, or the `content` of Parameters (HA-40)."""
        raw = await read_body(request, MAX_BUNDLE)
        try:
            tree, texts = verbatim.read_bundle(raw)
            if tree.get("resourceType") == "Parameters":
                inner = verbatim.parameter(raw, "content")
                if inner is None:
                    raise Rejection("required", "Send the Bundle as content.", "Parameters")
                tree, texts = verbatim.read_bundle(inner.encode())
        except NotJsonError as error:
            await self._refuse_raw(
                request, "Bundle", raw, Problem("structure", "Bundle", str(error))
            )
            raise Rejection("structure", str(error), "Bundle") from None
        problems = bundles.general(tree)
        if problems:
            await self._refuse_raw(request, "Bundle", raw, *problems)
            raise rejection(problems)
        return tree, texts, raw

    # Validation (HA-19)

    async def validate(self, request: Request, who: Who, kind: str) -> Response:
        _known(kind)
        if not any(who.may(kind, letter) for letter in "cud"):
            demand(who, kind, "c")
        check_accept(request)
        raw = await read_body(request, MAX_RESOURCE)
        told: list[Issue] = []
        try:
            piece = verbatim.read(raw)
            if piece.tree.get("resourceType") == "Parameters":
                inner = verbatim.parameter(raw, "resource")
                piece = verbatim.read((inner or "{}").encode())
        except NotJsonError as error:
            told = [Issue("structure", str(error), kind)]
        else:
            entry = Entry(-1, "POST", kind, resource=piece.tree, text=piece.text)
            door = self._door(request, who, [entry])
            item = taking.single(entry, door)
            told = [issue_of(one) for one in item.problems]
            hold = getattr(item.read, "hold", None)
            if not told and hold is not None:
                told = [waits(hold, kind)]
        return fhir_response(outcome(told or [VALID]))

    # Sites

    def _door(
        self,
        request: Request,
        who: Caller,
        entries: Iterable[Entry],
        source: str | None = None,
    ) -> Door:
        """The site this request is of: the caller's one, or the one that it names (HA-79)."""
        named = {one for entry in entries for one in sites_named(entry.resource)}
        named |= {source} if source is not None else set()
        known = {one for one in named if self.house.region().site(one) is not None}
        if known - who.sites:
            raise Rejection("forbidden", "A site writes only as itself.", status=403)
        if not who.sites:
            raise Rejection("forbidden", "This client belongs to no site.", status=403)
        if len(who.sites) == 1:
            return self._door_of(request, who, next(iter(who.sites)))
        if len(known) != 1:
            advice = "Name the site as serviceProvider, managingOrganization or meta.source."
            raise Rejection("business-rule", advice, status=422)
        return self._door_of(request, who, next(iter(known)))

    def _door_of(self, request: Request, who: Caller, site: str) -> Door:
        now = self.house.clock.now()
        region = self.house.region()
        return Door(
            site=site,
            client=who.id,
            now=now,
            rules=flow.rules_of(region, site),
            region=region,
            keys=self.house.keys,
            trail=Trail.of(request, who, now, tenant=site),
            may=who.may,
            heard=self.house.heard,
        )

    async def _within(
        self,
        door: Door,
        work: Callable[[Tx], Awaitable[T]],
        again: Callable[[], None] = lambda: None,
    ) -> T:
        """`work` in one transaction of the site; once more if another one crossed it."""
        await flow.open_key(self.house)
        for tries in range(1, TRIES + 1):
            try:
                async with self.house.db.request(door.site) as tx:
                    return await work(tx)
            except DBAPIError as error:
                if sqlstate(error) not in _CROSSED or tries == TRIES:
                    raise
                again()
        raise AssertionError("the last try returns or raises")

    # Refused

    async def _refuse(self, door: Door, items: Sequence[Item]) -> None:
        async def write(tx: Tx) -> None:
            await self._keep_refused(tx, door, items)

        await self._within(door, write)

    async def _keep_refused(self, tx: Tx, door: Door, items: Iterable[Item]) -> None:
        """What its sender must correct, for a person to see (HA-80)."""
        rows = [
            self._row(item, "refused", item.problems)
            for item in items
            if item.entry.text is not None and item.problems[0].status in _KEPT_STATUS
        ]
        await self._store_refused(tx, door, rows)

    async def _set_aside(self, tx: Tx, door: Door, items: Sequence[Item]) -> None:
        """Bodies of which a condition used nothing (HA-12)."""
        problem = Problem(
            "informational", "", "The condition matched; nothing of it was used.", 200
        )
        rows = [self._row(item, "ignored-by-condition", [problem]) for item in items]
        await self._store_refused(tx, door, rows)

    def _row(self, item: Item, reason: str, problems: Sequence[Problem]) -> dict[str, Any]:
        entry = item.entry
        assert entry.text is not None
        condition = item.condition
        return self._sealed(
            entry.text,
            reason,
            {"method": entry.method, "kind": entry.kind, "id": entry.logical_id},
            problems,
            None if condition is None else (condition.system, condition.value),
        )

    def _sealed(
        self,
        text: str,
        reason: str,
        request: Mapping[str, Any],
        problems: Sequence[Problem],
        condition: tuple[str | None, str] | None = None,
    ) -> dict[str, Any]:
        digest = hashlib.sha256(text.encode()).hexdigest()
        body = orjson.dumps({"text": text, "condition": condition}).decode()
        key_id, box = self.house.keys.seals.seal(flow.owner_of(digest), flow.BODY, body)
        return {
            "digest": digest,
            "reason": reason,
            "kind": request["kind"],
            "request": request,
            "status": problems[0].status,
            "outcome": outcome([issue_of(one) for one in problems]),
            "key_id": key_id,
            "body": box,
        }

    async def _refuse_raw(
        self,
        request: Request,
        kind: str,
        raw: bytes,
        *problems: Problem,
        door: Door | None = None,
    ) -> None:
        """Keep a body that could not be taken apart. Without a site there is nowhere to."""
        who = await caller(request)
        if door is None:
            if len(who.sites) != 1:
                return
            door = self._door_of(request, who, next(iter(who.sites)))
        if problems[0].status not in _KEPT_STATUS:
            return
        text = raw.decode(errors="backslashreplace").replace("\0", "\\0")
        about = {"method": request.method, "kind": kind, "path": _path_kind(request)}
        row = self._sealed(text, "refused", about, problems)
        refusing = door

        async def write(tx: Tx) -> None:
            await self._store_refused(tx, refusing, [row])

        await self._within(door, write)

    async def _store_refused(self, tx: Tx, door: Door, rows: Sequence[Mapping[str, Any]]) -> None:
        await store.refuse(
            tx, door.site, rows,
            door=door.name, client=door.client, now=door.now, purge_at=door.now + KEPT_FOR,
        )  # fmt: skip
        if rows:
            telemetry.counter("ingest_refused_total", door.site).inc(len(rows))


_CROSSED = ("40001", "40P01", "23505")
"""SQLSTATEs of a transaction that another one crossed: serialization, deadlock, unique."""
_KEPT_STATUS = (400, 409, 422)
_TOO_LONG = f"A resource has at most {MAX_RESOURCE} bytes."


def _forget(items: Iterable[Item]) -> None:
    """Before a transaction is run again: nothing has become of these yet."""
    for item in items:
        flow.reset(item)


def _known(kind: str) -> None:
    if kind not in RECORDED:
        raise Rejection("not-found", "Encounter and Patient are kept here.", status=404)


_ID = re.compile(r"[A-Za-z0-9\-.]{1,64}")


def _check_id(id_: str) -> None:
    if not _ID.fullmatch(id_):
        advice = gate.PRIMITIVES["id"].advice
        raise Rejection("value", advice, "Resource.id")


def _number(version: str) -> int | None:
    return int(version) if version.isascii() and version.isdigit() and len(version) < 9 else None


def _path_kind(request: Request) -> str:
    return "$process-message" if request.url.path.endswith("$process-message") else ""


# Search (HA-18)


@dataclass(frozen=True, slots=True)
class _Search:
    identifiers: Sequence[Identifier]
    ids: Sequence[Sequence[str]]
    updated: tuple[datetime, datetime]
    after: UUID
    count: int

    @classmethod
    def of(cls, criteria: Iterable[tuple[str, str]], kind: str, door: Door) -> "_Search":
        identifiers: list[Identifier] = []
        ids: list[list[str]] = []
        since, to = _EVER
        after, count = store.FIRST, PAGE
        for name, value in criteria:
            if name == "identifier":
                found = bundles.condition(urlencode({name: value}), kind)
                if isinstance(found, Problem):
                    raise rejection([found])
                identifiers.append(found.identifier)
            elif name == "_id":
                ids.append([one for one in value.split(",") if _ID.fullmatch(one)])
            elif name == "_lastUpdated":
                first, last = _updated(value, door)
                since, to = max(since, first), min(to, last)
            elif name == "_count":
                if not value.isascii() or not value.isdigit() or len(value) > 9:
                    raise Rejection("value", "Send a whole number.", "_count")
                count = min(max(int(value), 1), LARGEST_PAGE)
            elif name == "_page":
                try:
                    after = UUID(value)
                except ValueError:
                    raise Rejection("value", "Follow the next link.", "_page") from None
            elif name not in _NEVER_FAIL:
                advice = "Search by identifier, _id and _lastUpdated."
                raise Rejection("not-supported", advice, kind)
        return cls(identifiers, ids, (since, to), after, count)


_NEVER_FAIL = ("_format", "_pretty", "_summary", "_elements")
_EVER = (
    datetime.fromisoformat("0001-01-02T00:00:00+00:00"),
    datetime.fromisoformat("9999-12-30T00:00:00+00:00"),
)
_PREFIXED = re.compile(r"(eq|gt|lt|ge|le|sa|eb)?(.+)")
_TICK = timedelta(microseconds=1)


def _updated(value: str, door: Door) -> tuple[datetime, datetime]:
    """The range of instants of a `_lastUpdated`, ends included. A second is a whole second."""
    parts = _PREFIXED.fullmatch(value)
    form = gate.PRIMITIVES["dateTime"]
    if parts is None or form.form is None or not form.form.fullmatch(parts[2]):
        raise Rejection("value", form.advice, "_lastUpdated")
    asked = reading.moment(parts[2], door.rules.zone)
    first, last = asked.earliest, asked.latest
    if asked.precision == "instant" and "." not in parts[2]:
        last = first + timedelta(seconds=1) - _TICK
    match parts[1]:
        case "gt" | "sa":
            return last + _TICK, _EVER[1]
        case "lt" | "eb":
            return _EVER[0], first - _TICK
        case "ge":
            return first, _EVER[1]
        case "le":
            return _EVER[0], last
        case _:
            return first, last


def _link(url: str, criteria: Sequence[tuple[str, str]]) -> str:
    return f"{url}?{urlencode(criteria)}" if criteria else url


def _quiet(criteria: Sequence[tuple[str, str]]) -> list[tuple[str, str]]:
    """Criteria as they may stand in a URL that we make: no identifier (promise 5)."""
    return [(name, value) for name, value in criteria if name != "identifier"]

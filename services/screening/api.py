"""Screening's door, for operations and the privacy officer: counting.md section 9.

It answers about persons without asking a consent, so no clinical role and no hospital or clinic
gets past it, whatever its scopes say (CS-01, CS-90).
"""

import base64
import hmac
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Annotated, Any
from uuid import UUID

import orjson
from fastapi import APIRouter, Depends, FastAPI, Path, Query, Request, Response
from pydantic import BaseModel, ConfigDict, Field

from services.plumbing import audit
from services.plumbing.audit import Trail
from services.plumbing.auth import Caller, caller
from services.plumbing.db import Database, Tx
from services.plumbing.web import Rejection
from services.screening import episodes, flag, policy, presence, registry, store, telling, why
from services.screening.flag import Cause, State
from services.screening.ledger import gather, in_force, survivor
from services.screening.policy import Policy
from services.screening.registry import Status, Stored
from services.screening.store import Asked, Listed
from services.screening.telling import Announcement, KnownSite

REGION = "*"
"""Stands as tenant for who sees the whole region: no site or clinic can be called so."""
FEWEST, USUAL, MOST = 1, 100, 1000


@dataclass(frozen=True, slots=True)
class House:
    """What the door needs of its service."""

    db: Database
    now: Callable[[], datetime]
    policy: Policy
    sites: Callable[[], Sequence[KnownSite]]
    cursor_key: bytes = field(repr=False)


def allowed(who: Annotated[Caller, Depends(caller)]) -> Caller:
    """`ops` or `privacy` by role; or a machine of the region with `system/Flag.rs`.

    A clinic's EMR has that scope too, for its own Flags in notify: not here.
    """
    is_regional = who.clinic is None and not who.sites
    if who.has("ops", "privacy") or (is_regional and who.may("Flag", "rs")):
        return who
    raise Rejection(
        "forbidden",
        "This needs the role ops or privacy, or the scope system/Flag.rs for the whole region.",
        status=403,
    )


Allowed = Annotated[Caller, Depends(allowed)]
Key = Annotated[UUID, Path()]


class ListQuery(BaseModel):
    """What of the list is wanted."""

    model_config = ConfigDict(extra="forbid")

    state: str = "watch,flagged"
    site: str | None = None
    changed_since: str | None = None
    as_of: str | None = None
    policy: str | None = None
    count: int = Field(default=USUAL, ge=FEWEST, le=MOST, alias="_count")
    cursor: str | None = None


class FlagQuery(BaseModel):
    """As of when, on what was known when, by which policy (CT-70)."""

    model_config = ConfigDict(extra="forbid")

    as_of: str | None = None
    known_at: str | None = None
    policy: str | None = None


@dataclass(frozen=True, slots=True)
class Then:
    """The instant looked at, and the instant whose knowledge counts."""

    as_of: datetime
    known_at: datetime


def add_door(app: FastAPI, house: House) -> None:
    """The questions of section 9 on `app`."""
    router = APIRouter(prefix="/v1")

    @router.get("/flags")
    async def flags(
        request: Request, who: Allowed, query: Annotated[ListQuery, Query()]
    ) -> Response:
        now = house.now()
        asked = Asked(
            states=_states(query.state),
            site=query.site,
            changed_since=instant("changed_since", query.changed_since),
            before=_opened(query.cursor, house) if query.cursor else None,
            most=query.count + 1,
        )
        then = _past("as_of", query.as_of, now)
        async with house.db.request(REGION, role(who)) as tx:
            found = await listed(tx, asked, query.policy, then)
            page, more = found[: query.count], len(found) > query.count
            trail = Trail.of(request, who, now, tenant=REGION)
            said = f"flags?{request.url.query}" if request.url.query else "flags"
            await audit.record(tx, trail.searched(said, [line.patient for line in page]))
        body: dict[str, Any] = {"flags": [_line(line) for line in page]}
        if more:
            following = request.url.include_query_params(cursor=_sealed(page[-1], house))
            body["next"] = f"{following.path}?{following.query}"
        return _json(body)

    @router.get("/patients/{key}/flag")
    async def standing(
        request: Request, who: Allowed, key: Key, query: Annotated[FlagQuery, Query()]
    ) -> Response:
        now = house.now()
        known_at = _past("known_at", query.known_at, now) or now
        then = Then(_past("as_of", query.as_of, now) or known_at, known_at)
        if then.as_of > then.known_at:
            raise Rejection("value", "as_of must not be after known_at.", "as_of", status=422)
        async with house.db.request(REGION, role(who)) as tx:
            asked = await rule(tx, query.policy, known_at, house)
            body = await explained(tx, key, then, asked, house)
            trail = Trail.of(request, who, now, tenant=REGION)
            await audit.record(tx, [trail.read(f"patients/{key}/flag", key)])
        return _json(body)

    @router.get("/patients/{key}/changes")
    async def changes(request: Request, who: Allowed, key: Key) -> Response:
        async with house.db.request(REGION, role(who)) as tx:
            rows = await store.rows(tx, [key])
            if key not in rows:
                raise _unknown()
            found = await store.changes(tx, key)
            trail = Trail.of(request, who, house.now(), tenant=REGION)
            await audit.record(tx, [trail.read(f"patients/{key}/changes", key)])
        into = rows[key].merged_into
        head = orjson.dumps({"patient": str(key), "merged_into": into and str(into)})[:-1]
        said = ",".join(change.event for change in found).encode()
        return Response(head + b',"changes":[' + said + b"]}", media_type="application/json")

    app.include_router(router)


async def listed(tx: Tx, asked: Asked, named: str | None, as_of: datetime | None) -> list[Listed]:
    """The list under the live policy, or under one in shadow; of no other one there is a list."""
    found = None if named is None else await stored(tx, named)
    if found is None or found.status is Status.LIVE:
        return await store.flags(tx, asked, as_of)
    if found.run is None:
        raise Rejection(
            "not-found",
            "This policy is neither live nor in shadow, so there is no list under it. Activate it,"
            " or ask for a patient's flag under it.",
            status=404,
        )
    if as_of is not None:
        advice = "A list in shadow is there as it stands now alone."
        raise Rejection("value", advice, "as_of", status=422)
    return await store.shadow_flags(tx, found.run, asked)


async def explained(tx: Tx, key: UUID, then: Then, rule: Policy, house: House) -> dict[str, Any]:
    """Where a patient stood at `as_of`, on what was known at `known_at` (CT-70).

    404 if nobody was known then by this key. A retired key: its survivor's, naming it.
    """
    as_of, known_at = then.as_of, then.known_at
    history = (await store.histories(tx, [key]))[key].until(known_at)
    known = history.at(known_at)
    into = in_force(known.links)
    who = survivor(key, into)
    ledger = gather([who], into, known.facts, known.persons).get(who)
    if ledger is None:
        raise _unknown()
    standing = flag.stand(ledger, rule, as_of)
    reasons = why.explain(ledger.facts, standing.judged, rule, as_of)
    cares = episodes.care([judged.group for judged in standing.judged], rule)
    live = await registry.live_at(tx, known_at) or house.policy
    is_live = rule.sha256 == live.sha256  # nothing is announced under any other
    said = await store.changes(tx, who) if is_live else []
    last = [change for change in said if change.counted <= known_at][-1:]
    told = telling.explanation(
        Announcement(
            patient=who,
            sequence=last[0].sequence if last else 0,
            as_of=as_of,
            known_at=known_at,
            cause=Cause(last[0].cause) if last else None,
            notice=flag.notice(history, who, standing, rule)
            if standing.state is State.FLAGGED
            else None,
            episode=presence.crossing(cares, standing.since, rule, as_of),
        ),
        standing,
        reasons,
        telling.coverage(house.sites(), await store.heard(tx), as_of - rule.lookback),
        rule,
    )
    body = telling.answer(told)
    return body if who == key else body | {"retired": str(key)}


async def rule(tx: Tx, named: str | None, known_at: datetime, house: House) -> Policy:
    """The policy asked for, as `name@version`; else the one that was live."""
    if named is None:
        return await registry.live_at(tx, known_at) or house.policy
    return (await stored(tx, named)).policy


async def stored(tx: Tx, named: str) -> Stored:
    """The policy called `name@version`. 404: there is none."""
    name, _, version = named.rpartition("@")
    is_number = version.isascii() and version.isdecimal() and len(version) <= policy.LONGEST
    is_known = is_number and int(version) <= policy.LAST_VERSION
    found = await registry.named(tx, name, int(version)) if is_known else None
    if found is None:
        raise Rejection("not-found", "No such policy; name it as name@version.", status=404)
    return found


def _unknown() -> Rejection:
    return Rejection("not-found", "No patient is known by this key.", status=404)


def role(who: Caller) -> str:
    """For row-level security: what lets the caller see the region."""
    return "privacy" if who.has("privacy") else "ops"


def _states(said: str) -> list[State]:
    try:
        return [State(word) for word in said.split(",")]
    except ValueError:
        known = ", ".join(State)
        raise Rejection("value", f"state is a list of {known}.", "state", status=422) from None


def instant(name: str, said: str | None) -> datetime | None:
    """An instant with its offset. A `+` that an address turned into a space is one again."""
    if said is None:
        return None
    try:
        found = datetime.fromisoformat(said.replace(" ", "+"))
    except ValueError:
        found = None
    if found is None or found.tzinfo is None:
        raise Rejection(
            "value", f"{name} is an instant with its UTC offset, as -05:00.", name, status=422
        )
    return found.astimezone(UTC)


def _past(name: str, said: str | None, now: datetime) -> datetime | None:
    found = instant(name, said)
    if found is not None and found > now:
        raise Rejection("value", f"{name} must not lie in the future.", name, status=422)
    return found


def _line(line: Listed) -> dict[str, Any]:
    return {
        "patient": str(line.patient),
        "state": line.state,
        "held": line.held,
        "since": line.since,
        "ed_visits": line.ed_visits,
        "hospital_episodes": line.hospital_episodes,
        "sites": line.sites,
        "sequence": line.sequence,
        "changed": line.changed_at,
    }


def _json(body: dict[str, Any]) -> Response:
    return Response(orjson.dumps(body), media_type="application/json")


def _sealed(line: Listed, house: House) -> str:
    """Where the next page begins; signed, so that it is ours and not a probe."""
    place = f"{line.changed_at.isoformat()} {line.patient}".encode()
    return base64.urlsafe_b64encode(_mac(place, house) + place).decode().rstrip("=")


def _opened(cursor: str, house: House) -> tuple[datetime, UUID]:
    try:
        raw = base64.urlsafe_b64decode(cursor + "=" * (-len(cursor) % 4))
    except ValueError:
        raw = b""
    mac, place = raw[:16], raw[16:]
    if not hmac.compare_digest(mac, _mac(place, house)):
        raise Rejection("value", "cursor must be one that this list gave.", "cursor", status=422)
    changed, patient = place.decode().split(" ")
    return datetime.fromisoformat(changed), UUID(patient)


def _mac(place: bytes, house: House) -> bytes:
    return hmac.digest(house.cursor_key, b"screening flags " + place, "sha256")[:16]

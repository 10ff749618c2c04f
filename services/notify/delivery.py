"""One attempt at a notification, and what its outcome means (clinic-api.md section 8).

An attempt: lease, decide, write the decision and the disclosure, commit; then send; then
record. A crash in between is a resend, never a loss (CA-68). Times here are real times, since
that is when networks fail; what is said carries business times.
"""

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from email.utils import parsedate_to_datetime
from enum import StrEnum
from typing import Any, Final, Protocol, cast

import httpx
import orjson
import structlog
from sqlalchemy import Row
from standardwebhooks.webhooks import Webhook

from services.notify import flow, looking, store, subscriptions
from services.notify.looking import Sight
from services.notify.subscriptions import Occurrence
from services.notify.telling import House
from services.plumbing import audit, egress, telemetry
from services.plumbing.audit import Trail
from services.plumbing.clock import real_now
from services.plumbing.db import Database, Tx, is_passing, sqlstate
from services.plumbing.egress import Egress, ForbiddenTargetError, Resolve
from services.plumbing.sealing import SealBrokenError, UnknownKeyError

log = structlog.get_logger()

RETRY_FOR: Final = timedelta(hours=76)
"""A long weekend (CA-61)."""
FIRST_WAIT: Final = timedelta(seconds=5)
LONGEST_WAIT: Final = timedelta(hours=1)
DEPLOYMENT: Final = timedelta(hours=1)
"""How long a destination that answers 404 or redirects is given to come back."""
EVENT_TRIES: Final = 3
"""Before an event the destination will not have becomes a dead letter."""
LEASE: Final = timedelta(seconds=90)
"""Longer than the longest timeout: a live worker never loses its own attempt."""
START_WITHIN: Final = timedelta(seconds=1)
"""From decision to request; later it is decided again (CS-50)."""
ALARM_AFTER: Final = 3
POLL: Final = 0.25
MOST: Final = 20
"""Attempts under way at once."""
ANSWER: Final = 64 * 1024
"""Bytes of an answer that are read, and thrown away."""


class Failure(StrEnum):
    """What an attempt that was no 2xx means (CA-61)."""

    TRANSIENT = "transient"
    AMBIGUOUS = "ambiguous"
    GONE = "gone"
    NOT_THERE = "not-there"
    CREDENTIALS = "credentials"
    EVENT = "event"
    FORBIDDEN = "forbidden"


@dataclass(frozen=True, slots=True)
class Answer:
    """How an attempt ended. Neither body nor headers are kept."""

    status: int | None = None
    failure: Failure | None = None
    retry_after: timedelta | None = None
    reason: str | None = None


def classify(status: int) -> Failure | None:
    """None: delivered."""
    if 200 <= status < 300:
        return None
    if status == 410:
        return Failure.GONE
    if status in {401, 403}:
        return Failure.CREDENTIALS
    if status in {400, 413, 415, 422}:
        return Failure.EVENT
    if status == 404 or 300 <= status < 400:
        return Failure.NOT_THERE
    return Failure.TRANSIENT


def wait(attempts: int, chance: float) -> timedelta:
    """5 s doubling to 1 h, full jitter: somewhere between nothing and all of it (CA-61)."""
    longest = min(FIRST_WAIT * (2 ** min(attempts - 1, 20)), LONGEST_WAIT)
    return timedelta(seconds=longest.total_seconds() * chance)


def retry_after(said: str | None, now: datetime) -> timedelta | None:
    """`Retry-After`, in seconds or as a date; an hour at most."""
    if said is None:
        return None
    if said.isascii() and said.isdigit() and len(said) < 8:
        asked = timedelta(seconds=int(said))
    else:
        try:
            asked = parsedate_to_datetime(said).astimezone(UTC) - now
        except (ValueError, TypeError):
            return None
    return max(min(asked, LONGEST_WAIT), timedelta())


@dataclass(frozen=True, slots=True)
class Next:
    """What becomes of a notification and its destination after an attempt."""

    state: str
    due: datetime
    status: str
    error: str | None
    failing_since: datetime | None
    failures: int
    not_before: datetime | None
    alarmed: bool
    alarm: str | None = None
    """`down` or `back`: one word to operations when it changes (CA-65)."""


@dataclass(frozen=True, slots=True)
class Tried:
    """How often a notification was attempted, this attempt counted."""

    kind: str
    attempts: int
    first_sent: datetime | None


class Destination(Protocol):
    """How a subscription fared until now."""

    @property
    def status(self) -> str: ...
    @property
    def error(self) -> str | None: ...
    @property
    def failing_since(self) -> datetime | None: ...
    @property
    def failures(self) -> int: ...
    @property
    def alarmed(self) -> bool: ...


def after(answer: Answer, sent: Tried, to: Destination, now: datetime, chance: float) -> Next:
    """CA-61 to CA-65. `to` is the subscription as it was before this attempt."""
    if answer.failure is None:
        active = "active" if sent.kind == "handshake" else to.status
        back = "back" if to.alarmed else None
        return Next("delivered", now, active, None, None, 0, None, False, back)
    failing_since = to.failing_since or now
    failures = to.failures + 1
    down = failures >= ALARM_AFTER or now - failing_since >= timedelta(minutes=5)
    alarm = "down" if down and not to.alarmed else None
    text = answer.reason or (f"HTTP {answer.status}" if answer.status else "no answer")
    if sent.kind == "handshake":
        return Next("dead", now, "error", text, None, 0, None, False)
    if answer.failure is Failure.EVENT:
        dead = sent.attempts >= EVENT_TRIES
        due = now + wait(sent.attempts, chance)
        return Next(
            "dead" if dead else "pending", due, to.status, to.error, to.failing_since, to.failures,
            None, to.alarmed,
        )  # fmt: skip
    first = sent.first_sent or now
    over = (
        answer.failure in {Failure.GONE, Failure.CREDENTIALS, Failure.FORBIDDEN}
        or (answer.failure is Failure.NOT_THERE and now - failing_since >= DEPLOYMENT)
        or now - first >= RETRY_FOR
    )
    if over:
        return Next("pending", now, "error", text, failing_since, failures, None, True, alarm)
    due = now + wait(sent.attempts, chance)
    not_before = None if answer.retry_after is None else now + answer.retry_after
    return Next(
        "pending", due, to.status, text, failing_since, failures, not_before, to.alarmed or down,
        alarm,
    )  # fmt: skip


@dataclass(frozen=True, slots=True)
class Attempt:
    """A leased notification with the body that may go out now."""

    notification: Row[Any]
    subscription: Row[Any]
    body: bytes = field(repr=False)
    headers: dict[str, str] = field(repr=False)
    decided: datetime
    """Real time of the decision."""
    tells: bool
    """It names the card."""


@dataclass(frozen=True, slots=True)
class Courier:
    """Sends what is due, and records how it fared. Two couriers never share an attempt."""

    db: Database
    house: House
    now: Callable[[], datetime]
    """Business time, for decisions."""
    gate: Callable[[str], Egress]
    """What a clinic's endpoints may be."""
    http: httpx.AsyncClient
    resolve: Resolve = egress.resolve
    real: Callable[[], datetime] = real_now
    chance: Callable[[], float] = random.random

    async def run(self, stop: asyncio.Event) -> None:
        """Until told to stop; what is under way is finished."""
        while not stop.is_set():
            try:
                sent = await self.round()
            except Exception as error:
                if not is_passing(error):
                    raise
                log.warning("delivery_waits", error=type(error).__name__, sqlstate=sqlstate(error))
                sent = 0
            if not sent:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(stop.wait(), POLL)

    async def round(self) -> int:
        """One attempt of everything that is due and free; how many."""
        attempts, settled = await self._prepare()
        await asyncio.gather(*(self._attempt(one) for one in attempts))
        return len(attempts) + settled

    async def _prepare(self) -> tuple[list[Attempt], int]:
        now = self.real()
        async with self.db.work() as tx:
            await store.let_hearts_beat(tx, now, self.now())
            leased = await store.lease(tx, now, now + LEASE, MOST)
            attempts = [await self._decide(tx, one) for one in leased]
        ready = [one for one in attempts if one is not None]
        return ready, len(attempts) - len(ready)

    async def _decide(self, tx: Tx, sent: Row[Any]) -> Attempt | None:
        """Decide anew for this attempt, and record it in the same transaction (CS-50)."""
        to = await store.destination(tx, sent.subscription)
        assert to is not None
        if sent.kind == "event" and to.ends is not None and to.ends <= self.now():
            await self._over(tx, sent, "the subscription has ended")
            return None
        kind = {"event": "event-notification"}.get(sent.kind, sent.kind)
        events: list[Occurrence] = []
        if sent.kind == "event":
            sight = await looking.look(
                tx, self.house, sent.clinic, self.now(), patients=[sent.patient]
            )
            events.append(self._occurrence(sent, to, sight))
            await self._record(tx, sent, sight, events[0])
        bundle = subscriptions.notification(
            to, kind, self.house.base, id_=sent.id, at=sent.at, events=events
        )
        body = orjson.dumps(bundle)
        headers = await self._headers(to)
        if headers is None:
            await self._over(tx, sent, "its headers cannot be opened")
            return None
        tells = any(e.focus is not None for e in events) and to.content != "empty"
        return Attempt(sent, to, body, headers, self.real(), tells)

    def _occurrence(self, sent: Row[Any], to: Row[Any], sight: Sight) -> Occurrence:
        """The event, with its focus only if that may be told now (CA-56)."""
        nothing = Occurrence(sent.number, sent.at, None)
        if sent.flag is not None:
            flags = {f.reference: f for f in sight.flags_seen()}
            seen = flags.get(f"Flag/{sent.flag}")
        else:
            card = next((c for c in sight.cards if c.id == sent.card), None)
            seen = None if card is None else sight.task(card)
        if seen is None:
            return nothing
        full = seen.resource if to.content == "full-resource" else None
        return Occurrence(sent.number, sent.at, seen.reference, full)

    async def _record(self, tx: Tx, sent: Row[Any], sight: Sight, event: Occurrence) -> None:
        told = sight.told.get(sent.patient)
        if told is None:
            return
        trail = Trail.background("notify", self.now()).for_tenant(sent.clinic)
        records = [flow.decision_record(trail, told.facts, sent.clinic, told)]
        row = flow.decision_row(sent.patient, sent.clinic, told.decision, sent.card, "delivery")
        if event.focus is not None:
            card = next((c for c in sight.cards if c.id == sent.card), None)
            version = "" if card is None else f"/_history/{card.version}"
            content = sight.content(sent.patient)
            if content is not None and event.resource is None:
                content = replace(content, items=("reference:1",), level="L1")
            records.append(
                trail.disclosed(
                    f"{event.focus}{version}", sent.patient, sent.clinic, content=content
                )
            )
        await store.put_decisions(tx, [row])
        await audit.record(tx, records)

    async def _headers(self, to: Row[Any]) -> dict[str, str] | None:
        found = {"Content-Type": to.mime}
        try:
            for name, (key_id, box) in to.headers.items():
                found[name] = self.house.seals.open(to.id, f"header {name}", key_id, box)
        except (UnknownKeyError, SealBrokenError):
            return None
        return found

    async def _over(self, tx: Tx, sent: Row[Any], reason: str) -> None:
        await store.release(
            tx, id=sent.id, fence=sent.fence, state="dead", attempts=sent.attempts, due=sent.due,
            sent=None, delivered=None, last_status=None, reason=reason,
        )  # fmt: skip

    async def _attempt(self, attempt: Attempt) -> None:
        """The host is looked up first, which may take long: between decision and request there is
        a second at most (CS-50).
        """
        where = await self._where(attempt.subscription)
        while self.real() - attempt.decided > START_WITHIN:
            async with self.db.work() as tx:
                again = await self._decide(tx, attempt.notification)
            if again is None:
                return
            if again.subscription.endpoint != attempt.subscription.endpoint:
                where = await self._where(again.subscription)
            attempt = again
        answer = where if isinstance(where, Answer) else await self._send(attempt, where)
        await self._settle(attempt, answer)

    async def _where(self, to: Row[Any]) -> str | Answer:
        """The address that may be called, or how an attempt ends without one."""
        try:
            return await self.gate(to.clinic).address(to.endpoint, self.resolve)
        except ForbiddenTargetError as error:
            return Answer(failure=Failure.FORBIDDEN, reason=str(error))
        except OSError:
            return Answer(failure=Failure.TRANSIENT, reason="the host is not found")

    async def _send(self, attempt: Attempt, address: str) -> Answer:
        to, sent = attempt.subscription, attempt.notification
        now = self.real()
        boxes = [to.secret]
        if to.former_until is not None and now < to.former_until:
            boxes.append(to.former_secret)
        secrets = [self.house.seals.open(to.id, "webhook", *box) for box in boxes]
        headers = attempt.headers | signature(secrets, str(sent.id), now, attempt.body)
        request = egress.request_to(self.http, to.endpoint, address, attempt.body, headers)
        try:
            async with asyncio.timeout(to.timeout):
                response = await self.http.send(request, stream=True)
                try:
                    await _drain(response)
                finally:
                    await response.aclose()
        except (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout):
            return Answer(failure=Failure.TRANSIENT, reason="no connection")
        except (TimeoutError, httpx.HTTPError):
            return Answer(failure=Failure.AMBIGUOUS, reason="no answer in time")
        failure = classify(response.status_code)
        return Answer(
            response.status_code, failure, retry_after(response.headers.get("retry-after"), now)
        )

    async def _settle(self, attempt: Attempt, answer: Answer) -> None:
        now, sent = self.real(), attempt.notification
        outcome = answer.failure or "delivered"
        telemetry.counter("notify_deliveries_total", outcome).inc()
        async with self.db.work() as tx:
            if answer.failure is None and attempt.tells and sent.card is not None:
                await store.mark_shown(tx, [sent.card])  # a card is locked before a destination
            to = await store.destination(tx, sent.subscription, hold=True)
            if to is None:
                return
            tried = Tried(sent.kind, sent.attempts + 1, sent.first_sent)
            following = after(answer, tried, cast("Destination", to), now, self.chance())
            kept = await store.release(
                tx,
                id=sent.id,
                fence=sent.fence,
                state=following.state,
                attempts=tried.attempts,
                due=following.due,
                sent=now,
                delivered=now if following.state == "delivered" else None,
                last_status=answer.status,
                reason=answer.reason or (None if answer.failure is None else str(answer.failure)),
            )
            if not kept:
                return  # another worker has it by now, and records its own
            await store.fared(
                tx,
                id=to.id,
                status=following.status,
                error=following.error,
                failing_since=following.failing_since,
                failures=following.failures,
                not_before=following.not_before,
                alarmed=following.alarmed,
                last_sent=now if following.state == "delivered" else None,
            )
        if following.alarm is not None:
            log.warning("destination", state=following.alarm, subscription=str(to.id))


async def _drain(response: httpx.Response) -> None:
    seen = 0
    async for piece in response.aiter_raw():
        seen += len(piece)
        if seen > ANSWER:
            return


def signature(secrets: Sequence[str], id_: str, at: datetime, body: bytes) -> dict[str, str]:
    """Standard Webhooks headers of one attempt (CA-66): a signature for each secret, the newest's
    first. `at` is aware; UTC is what the library takes.
    """
    moment = at.astimezone(UTC)
    signed = (Webhook(secret).sign(id_, moment, body.decode()) for secret in secrets)
    return {
        "webhook-id": id_,
        "webhook-timestamp": str(int(moment.timestamp())),
        "webhook-signature": " ".join(signed),
    }

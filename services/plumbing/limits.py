"""How much one caller may ask of one process (HA-101, CS-100): token buckets.

In memory, so that a flood costs no statement: with several processes of a service each has its
own, and a caller may ask that many times as much. Before a caller is known its address stands
for it; what a known client asks is charged to the client and the address is given it back, so
that only what is refused or public counts against an address.
"""

import math
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import NoReturn

from services.plumbing import telemetry
from services.plumbing.settings import Settings
from services.plumbing.web import Rejection

MOST_NAMES = 10_000
"""Buckets kept; those not asked of for longest are full again anyway, and go."""
UNLIMITED = ("/health/live", "/health/ready", "/metrics")
"""Asked by those who watch, as often as they like."""


@dataclass(frozen=True, slots=True)
class Rate:
    """So many a second for ever, and `burst` at once after a silence."""

    per_second: float
    burst: float


class Buckets:
    """A token bucket for each name, full when the name is new."""

    def __init__(self, rate: Rate, now: Callable[[], float] = time.monotonic) -> None:
        self._rate = rate
        self._now = now
        self._left: dict[str, tuple[float, float]] = {}
        """(tokens, as of when), the name asked of last at the end."""

    def take(self, name: str, cost: float = 1) -> float:
        """0: `cost` was taken. Else nothing was, and in so many seconds it can be.

        What costs more than a full bucket is let through by a full one, and leaves a debt.
        """
        now = self._now()
        left = self._as_of(name, now)
        lacking = min(cost, self._rate.burst) - left
        self._keep(name, left if lacking > 0 else left - cost, now)
        return lacking / self._rate.per_second if lacking > 0 else 0.0

    def give_back(self, name: str, cost: float = 1) -> None:
        now = self._now()
        self._keep(name, min(self._as_of(name, now) + cost, self._rate.burst), now)

    def _as_of(self, name: str, now: float) -> float:
        left, at = self._left.get(name, (self._rate.burst, now))
        return min(left + (now - at) * self._rate.per_second, self._rate.burst)

    def _keep(self, name: str, left: float, now: float) -> None:
        self._left.pop(name, None)
        self._left[name] = (left, now)
        if len(self._left) > MOST_NAMES:
            del self._left[next(iter(self._left))]


@dataclass(frozen=True, slots=True)
class Limits:
    """The buckets of one process; None where there is no limit."""

    service: str = ""
    clients: Buckets | None = None
    addresses: Buckets | None = None

    @classmethod
    def of(cls, settings: Settings, service: str) -> "Limits":
        """As the operator says. Under `up` and `demo` only what is set: one client there sends
        a year in a minute.
        """
        per_client = settings.client_per_second or (None if settings.local else 500)
        per_address = settings.address_per_second or (None if settings.local else 50)
        return cls(
            service,
            Buckets(Rate(per_client, settings.client_burst)) if per_client else None,
            Buckets(Rate(per_address, settings.address_burst)) if per_address else None,
        )

    def of_address(self, address: str) -> None:
        """Before anything is known of who asks. Rejection 429."""
        wait = self.addresses.take(address) if self.addresses is not None else 0.0
        if wait:
            self._refuse("address", wait)

    def of_client(self, client: str, address: str) -> None:
        """Once the client of the request is known. Rejection 429."""
        if self.addresses is not None:
            self.addresses.give_back(address)
        self.more(client, 1)

    def more(self, client: str, cost: int) -> None:
        """What a request turns out to cost beyond the one it was charged: a Bundle's entries."""
        wait = self.clients.take(client, cost) if self.clients is not None and cost > 0 else 0.0
        if wait:
            self._refuse("client", wait)

    def _refuse(self, whom: str, wait: float) -> NoReturn:
        telemetry.counter("limited_total", f"{self.service} {whom}").inc()
        raise Rejection(
            "throttled",
            "Too much at once; nothing was changed. Wait as Retry-After says and send it again.",
            status=429,
            headers={"Retry-After": str(math.ceil(wait))},
        )

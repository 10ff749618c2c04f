"""Token buckets: how much one caller may ask (HA-101)."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.plumbing import limits
from services.plumbing.limits import Buckets, Limits, Rate
from services.plumbing.settings import Settings
from services.plumbing.web import Rejection


class Seconds:
    """A clock that a test moves."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def buckets(per_second: float = 500, burst: float = 1000) -> tuple[Buckets, Seconds]:
    clock = Seconds()
    return Buckets(Rate(per_second, burst), clock), clock


def test_a_burst_then_so_many_a_second_and_the_wait_is_told() -> None:
    held, clock = buckets()
    assert [held.take("a") for _ in range(1000)] == [0.0] * 1000
    assert held.take("a") == pytest.approx(1 / 500)
    clock.now += 1
    assert [held.take("a") for _ in range(500)] == [0.0] * 500
    assert held.take("a") > 0


def test_what_is_refused_takes_nothing() -> None:
    held, clock = buckets(1, 10)
    assert held.take("a", 8) == 0
    assert held.take("a", 5) == pytest.approx(3)
    assert held.take("a", 2) == 0
    clock.now += 3
    assert held.take("a", 3) == 0


def test_one_name_is_not_charged_for_another() -> None:
    held, _ = buckets(1, 1)
    assert held.take("a") == 0
    assert held.take("a") > 0
    assert held.take("b") == 0


def test_a_bundle_larger_than_the_bucket_passes_a_full_one_and_leaves_a_debt() -> None:
    held, clock = buckets(10, 100)
    assert held.take("a", 300) == 0
    assert held.take("a") == pytest.approx(20.1)
    clock.now += 20.2
    assert held.take("a") == 0


def test_names_are_forgotten_oldest_first(monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory is bounded, whatever addresses are made up."""
    monkeypatch.setattr(limits, "MOST_NAMES", 3)
    held, _ = buckets(1, 1)
    for name in "abcd":
        held.take(name)
    assert held.take("a") == 0
    assert held.take("d") > 0


@given(
    st.lists(st.tuples(st.floats(0, 5), st.integers(1, 50)), max_size=60),
    st.floats(1, 100),
    st.integers(50, 200),
)
def test_never_more_than_burst_and_rate_allow(
    asked: list[tuple[float, int]], per_second: float, burst: int
) -> None:
    held, clock = buckets(per_second, burst)
    began, taken = clock.now, 0
    for wait, cost in asked:
        clock.now += wait
        if held.take("a", cost) == 0:
            taken += cost
    assert taken <= burst + (clock.now - began) * per_second + 1e-6


def test_a_known_client_s_requests_are_not_held_against_its_address() -> None:
    """A hospital and its neighbours may come through one address."""
    mine = Limits("ingest", buckets(1000, 1000)[0], buckets(1, 2)[0])
    for _ in range(50):
        mine.of_address("10.0.0.1")
        mine.of_client("hospital-a", "10.0.0.1")
    for _ in range(2):
        mine.of_address("10.0.0.1")
    with pytest.raises(Rejection) as refused:
        mine.of_address("10.0.0.1")
    assert (refused.value.status, refused.value.headers) == (429, {"Retry-After": "1"})


def test_the_limits_are_those_of_the_settings() -> None:
    """HA-101: 500 a second, 1,000 at once; under `up` only what is asked for."""
    said = Limits.of(Settings(), "ingest")
    assert said.clients is not None
    assert said.addresses is not None
    assert said.clients.take("a", 1000) == 0
    assert said.clients.take("a", 500) == pytest.approx(1, abs=0.1)
    assert said.addresses.take("a", 500) == 0
    assert said.addresses.take("a", 50) == pytest.approx(1, abs=0.1)
    local = Limits.of(Settings(local=True), "ingest")
    assert (local.clients, local.addresses) == (None, None)
    asked = Limits.of(Settings(local=True, client_per_second=2, client_burst=3), "ingest")
    assert asked.clients is not None
    assert asked.clients.take("a", 3) == 0
    assert asked.clients.take("a") == pytest.approx(0.5, abs=0.1)

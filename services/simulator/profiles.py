"""How large a region is, what happens how often. Every number has a name.

Sources and what is assumed: docs/simulator.md. `profile` checks what it is given (SIM-09).
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, fields, replace
from datetime import date


class SimulateError(ValueError):
    """A profile or parameter that does not exist or cannot be; its text names it (SIM-09)."""


@dataclass(frozen=True, slots=True)
class Noise:
    """What goes wrong between what happens and what is sent. Probabilities, all assumed."""

    duplicate: float = 0.02
    out_of_order: float = 0.05
    far_out_of_order: float = 0.01
    """Of messages: hours late, not minutes."""
    void: float = 0.005
    """Of encounters: one registered by mistake besides it, then entered in error."""
    merge: float = 0.001
    """Of encounters: sent under a second record of the same person, merged later."""
    merge_undone: float = 0.1
    """Of merges: undone two days later."""
    missing_discharge: float = 0.007
    wrong_offset: float = 0.001
    temporary_identity: float = 0.005
    unmapped_class: float = 0.001
    day_only: float = 0.001
    """Of encounters: only the date of the start is sent."""
    silence: float = 1.0
    """That one site is silent for 6 h in a month; what it has to say comes at the end."""
    panel_stale: float = 0.02
    """Of people on no panel: a clinic's file still has them, with an end long ago."""
    panel_bad: float = 0.003
    """Of rows of a panel: something in it is wrong, so that it is refused."""


CLEAN = Noise(*(0.0,) * len(fields(Noise)))


@dataclass(frozen=True, slots=True)
class Profile:
    """A region's size and rates. A *rate* is per person and year; the rest probabilities."""

    name: str
    seed: int = 2018
    people: int = 2_000
    sites: tuple[str, ...] = ("hospital-a", "hospital-b")
    """The connected hospitals."""
    unconnected: tuple[str, ...] = ()
    """Hospitals that people use and of which nobody hears (CR-39)."""
    clinics: int = 3
    nurses: int = 4
    start: date = date(2025, 3, 2)
    """First local day of the simulated time; the months that follow are history."""
    days: int = 365
    raised: float = 1.0
    """Factor on the rate of ED visits; 1 is natural."""
    shape: float = 0.60
    """Of the gamma that a lasting tendency follows: the larger, the more alike people are."""
    effect: float = 0.0
    """Share of ED visits that enrolment in the programme spares. 0: none, so that any fall is
    regression to the mean."""
    cast: bool = False
    """Whether the scripted people D-01 to D-15 live here."""
    noise: Noise = field(default_factory=Noise)

    left_unseen: float = 0.07
    planned_return: float = 0.04
    ed_transfer: float = 0.015
    second_hospital: float = 0.03
    second_hospital_frequent: float = 0.15
    admitted: float = 0.105
    admitted_from_fourth: float = 0.17
    stay_rate: float = 0.022
    """Direct stays, deliveries included."""
    birth_rate: float = 0.0077
    panel_one: float = 0.85
    panel_two: float = 0.02
    clinic_changed: float = 0.01
    """Of people on one panel: change of clinic in a year."""
    deny_category: float = 0.04
    deny_named: float = 0.03
    deny_all: float = 0.01
    consent_changed_rate: float = 0.005
    sensitive: float = 0.06
    never_acknowledged: float = 0.05

    @property
    def hospitals(self) -> tuple[str, ...]:
        """All that people use: the connected ones, then the others."""
        return (*self.sites, *self.unconnected)


PROFILES = {
    each.name: each
    for each in (
        Profile("demo", cast=True),
        Profile(
            "region",
            people=280_000,
            sites=("hospital-a", "hospital-b", "hospital-c"),
            unconnected=("hospital-d",),
            clinics=30,
            nurses=280,
        ),
        Profile(
            "wide",
            people=1_000_000,
            sites=("hospital-a", "hospital-b", "hospital-c"),
            clinics=100,
            nurses=1_000,
            days=730,
        ),
        Profile(
            "dense",
            people=100_000,
            sites=("hospital-a", "hospital-b", "hospital-c"),
            clinics=100,
            nurses=1_000,
            raised=25.0,
            shape=100.0,
        ),
    )
}

_AT_LEAST_ZERO = {"raised", "shape", "stay_rate", "birth_rate", "consent_changed_rate"}
"""What may be above 1."""


def profile(name: str, *, clean: bool = False, **changes: object) -> Profile:
    """The profile `name` with `changes`, such as `people=500`.

    Parameters of the noise are changed by their own name; `clean` sets all of them to 0.
    Raises SimulateError, which names the fault.
    """
    if name not in PROFILES:
        raise SimulateError(f"profile {name}: unknown; known are {', '.join(PROFILES)}")
    chosen = replace(PROFILES[name], noise=CLEAN) if clean else PROFILES[name]
    of_noise = {each.name for each in fields(Noise)}
    own = {each.name for each in fields(Profile)} - {"name", "noise"}
    for key in changes:
        if key not in own | of_noise:
            raise SimulateError(f"parameter {key}: unknown; known are {', '.join(_PARAMETERS)}")
    noise = replace(chosen.noise, **_floats(changes, of_noise))
    chosen = replace(chosen, noise=noise, **{k: v for k, v in changes.items() if k in own})  # type: ignore[arg-type]  # each is checked next
    _check(chosen)
    return chosen


def parameters(given: Mapping[str, str]) -> dict[str, object]:
    """What `given` says as text, as values of the parameters' own kinds.

    Raises SimulateError, which names the parameter that cannot be read.
    """
    kinds = {each.name: each.type for each in (*fields(Profile), *fields(Noise))}
    return {key: _value(key, kinds.get(key), text) for key, text in given.items()}


_KINDS: dict[object, str] = {
    float: "a number",
    int: "a whole number",
    bool: "true or false",
    date: "a date",
}


def _value(key: str, kind: object, text: str) -> object:
    try:
        if kind is float:
            return float(text)
        if kind is int:
            return int(text)
        if kind is bool:
            return {"true": True, "false": False}[text]
        if kind is date:
            return date.fromisoformat(text)
    except (ValueError, KeyError):
        raise SimulateError(f"parameter {key}: not {_KINDS[kind]}") from None
    return tuple(each for each in text.split(",") if each)


def _floats(changes: Mapping[str, object], names: set[str]) -> dict[str, float]:
    found = {}
    for key in names & changes.keys():
        value = changes[key]
        if not isinstance(value, int | float) or isinstance(value, bool):
            raise SimulateError(f"parameter {key}: not a number")
        found[key] = float(value)
    return found


def _check(chosen: Profile) -> None:
    for each in fields(Profile):
        value = getattr(chosen, each.name)
        if each.type is float:
            if not isinstance(value, int | float) or isinstance(value, bool):
                raise SimulateError(f"parameter {each.name}: not a number")
            free = each.name in _AT_LEAST_ZERO
            if not 0 <= value < math.inf or (value > 1 and not free):
                bounds = "below 0 or without end" if free else "outside 0 to 1"
                raise SimulateError(f"parameter {each.name}: {bounds}")
        elif each.type is int and (type(value) is not int or value < 0):
            raise SimulateError(f"parameter {each.name}: not a whole number of at least 0")
    for each in fields(Noise):
        if not 0 <= getattr(chosen.noise, each.name) <= 1:
            raise SimulateError(f"parameter {each.name}: outside 0 to 1")
    if not isinstance(chosen.start, date):
        raise SimulateError("parameter start: not a date")
    if not chosen.sites or not chosen.clinics or not chosen.nurses or not chosen.people:
        raise SimulateError("parameter sites, clinics, nurses or people: at least 1 is needed")
    if not chosen.shape or not chosen.days:
        raise SimulateError("parameter shape or days: must be above 0")


_PARAMETERS = sorted({each.name for each in (*fields(Profile), *fields(Noise))} - {"name", "noise"})

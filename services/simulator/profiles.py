"""How large a region is, how noisy its feed, what happens how often. Every number has a name.

Sources and what is assumed: docs/simulator.md. `profile` checks what it is given (SIM-09).
"""

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


CLEAN = Noise(*(0.0,) * len(fields(Noise)))


@dataclass(frozen=True, slots=True)
class Profile:
    """A region's size and rates. A *rate* is per person and year; the rest probabilities."""

    name: str
    seed: int = 2018
    people: int = 2_000
    sites: tuple[str, ...] = ("hospital-a", "hospital-b")
    """The connected hospitals."""
    clinics: int = 3
    nurses: int = 4
    start: date = date(2025, 3, 2)
    """First local day of the simulated time; the months that follow are history."""
    days: int = 365
    raised: float = 1.0
    """Factor on the rate of ED visits; 1 is natural."""
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
    deny_category: float = 0.04
    deny_named: float = 0.03
    deny_all: float = 0.01
    consent_changed_rate: float = 0.005
    sensitive: float = 0.06
    never_acknowledged: float = 0.05


PROFILES = {
    each.name: each
    for each in (
        Profile("demo", cast=True),
        Profile(
            "region",
            people=280_000,
            sites=("hospital-a", "hospital-b", "hospital-c"),
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
            raised=22.0,
        ),
    )
}

_RATES = {"raised", "stay_rate", "birth_rate", "consent_changed_rate"}


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
            raise SimulateError(f"parameter {key}: unknown")
    noise = replace(chosen.noise, **_floats(changes, of_noise))
    chosen = replace(chosen, noise=noise, **{k: v for k, v in changes.items() if k in own})  # type: ignore[arg-type]  # each is checked next
    _check(chosen)
    return chosen


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
            if value < 0 or (value > 1 and each.name not in _RATES):
                raise SimulateError(f"parameter {each.name}: outside 0 to 1")
        elif each.type is int and (type(value) is not int or value < 0):
            raise SimulateError(f"parameter {each.name}: not a whole number of at least 0")
    for each in fields(Noise):
        if not 0 <= getattr(chosen.noise, each.name) <= 1:
            raise SimulateError(f"parameter {each.name}: outside 0 to 1")
    if not isinstance(chosen.start, date):
        raise SimulateError("parameter start: not a date")
    if not chosen.sites or not chosen.clinics or not chosen.nurses or not chosen.people:
        raise SimulateError("parameter sites, clinics, nurses or people: at least 1 is needed")

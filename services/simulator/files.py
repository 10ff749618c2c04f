"""The region as files: what `passerelle simulate` writes (simulator.md section 5)."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import orjson

from services.simulator import cast, fhir, papers, profiles
from services.simulator.feed import Message, Mishap, of_person, visits
from services.simulator.life import Happening, life
from services.simulator.profiles import Profile, SimulateError
from services.simulator.region import (
    Membership,
    Person,
    Wish,
    clinic_name,
    memberships,
    people,
    wishes,
)

__all__ = ["SimulateError", "write"]


def write(
    out: Path,
    *,
    profile: str,
    seed: int,
    clean: bool = False,
    force: bool = False,
    **changes: object,
) -> dict[str, int]:
    """Writes the region `profile` into `out`; returns the number of lines of each file.

    For each hospital Patient.ndjson and Encounter.ndjson as `passerelle import` reads them,
    each encounter as it stands at the end of the time; panels as CSV, with one in which all is
    wrong; Consents; and the truth: what happened, whatever was sent of it. Memory holds one
    person at a time. Raises SimulateError for an unknown profile or an impossible parameter,
    and if `out` is not empty and `force` is not given (SIM-09).
    """
    chosen = profiles.profile(profile, clean=clean, seed=seed, **changes)
    if out.exists() and any(out.iterdir()) and not force:
        raise SimulateError(f"output folder {out}: not empty; --force overwrites")
    with ExitStack() as stack:
        folder = _Folder(out, chosen, stack)
        for one in _everybody(chosen):
            folder.add(one)
    (out / "panels" / "bad.csv").write_text(papers.bad_panel(), encoding="utf-8")
    return {**folder.lines, "panels/bad.csv": len(papers.BAD_ROWS)}


@dataclass(frozen=True, slots=True)
class _One:
    """One person, and all that there is to write."""

    person: Person
    happenings: list[Happening]
    panels: tuple[Membership, ...]
    wishes: tuple[Wish, ...]
    mishaps: Mapping[int, Mishap] | None


def _everybody(profile: Profile) -> Iterator[_One]:
    """Everybody, and what befell them until the end; the cast first."""
    end = cast.live(profile)
    for part in cast.cast(profile):
        past = [each for each in part.happenings if each.start < end]
        yield _One(part.person, past, part.panels, part.wishes, part.mishaps)
    for person in people(profile):
        yield _One(
            person,
            life(profile, person, profile.days),
            memberships(profile, person.number),
            wishes(profile, person.number),
            None,
        )


class _Folder:
    """The open files of a region, and how many lines each has."""

    def __init__(self, out: Path, profile: Profile, stack: ExitStack) -> None:
        self._profile = profile
        self._end = cast.live(profile)
        clinics = [clinic_name(index) for index in range(profile.clinics)]
        names = [f"{site}/{kind}.ndjson" for site in profile.sites for kind in _KINDS]
        names += ["truth.ndjson", "consents.ndjson", *(_panel(clinic) for clinic in clinics)]
        self.lines = dict.fromkeys(names, 0)
        self._files = {}
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            self._files[name] = stack.enter_context((out / name).open("wb"))
        for clinic in clinics:
            self._files[_panel(clinic)].write(papers.text(()).encode())

    def add(self, one: _One) -> None:
        profile = self._profile
        sent = of_person(profile, one.person, one.happenings, profile.days, one.mishaps)
        for site, name in enumerate(profile.sites):
            own = [each for each in sent if each.site == site and each.at < self._end]
            own.sort(key=lambda message: (message.at, message.order))
            self._json(f"{name}/Patient.ndjson", _patients(name, own))
            self._json(f"{name}/Encounter.ndjson", _encounters(name, site % 2 == 1, own))
        self._json("truth.ndjson", _truth(profile, one.happenings))
        said = papers.restrictions(profile, one.person, one.wishes, one.panels)
        self._json("consents.ndjson", (consent for _, consent in said))
        for clinic, row in papers.claims(one.person, one.panels):
            self._write(_panel(clinic), papers.text([row], heading=False).encode())

    def _json(self, name: str, rows: Iterable[Mapping[str, Any]]) -> None:
        for row in rows:
            self._write(name, orjson.dumps(row) + b"\n")

    def _write(self, name: str, line: bytes) -> None:
        self._files[name].write(line)
        self.lines[name] += 1


_KINDS = ("Patient", "Encounter")


def _panel(clinic: str) -> str:
    return f"panels/{clinic}.csv"


def _patients(site: str, sent: Iterable[Message]) -> Iterator[fhir.Json]:
    latest = {each.identity.record: each for each in sent}
    return (fhir.patient(site, each.identity, each.at) for each in latest.values())


def _encounters(site: str, in_place: bool, sent: Iterable[Message]) -> Iterator[fhir.Json]:
    latest = {each.encounter.visit: each for each in sent if each.encounter is not None}
    return (fhir.put(site, in_place, each)[1] for each in latest.values())


def _truth(profile: Profile, happenings: Sequence[Happening]) -> Iterator[dict[str, object]]:
    for visit in visits(happenings):
        for each in visit.pieces:
            yield {
                "person": each.person,
                "visit": visit.number,
                "site": profile.sites[each.site],
                "care": each.care.value,
                "start": each.start.isoformat(),
                "end": each.end.isoformat(),
                "leaving": each.leaving.value,
                "service": each.service.value if each.service else None,
                "planned": each.planned,
                "transfer_in": each.transfer_in,
                "code": each.code,
                "label": each.label,
            }

"""The region as files: what `passerelle simulate --out` writes (simulator.md section 5)."""

import multiprocessing
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import orjson

from services.simulator import cast, fhir, papers, profiles
from services.simulator.feed import Message, Mishap, said, visits
from services.simulator.life import FREQUENT, Happening, changed, enrolments, life
from services.simulator.profiles import Profile, SimulateError
from services.simulator.region import (
    Membership,
    Person,
    Wish,
    clinic_name,
    memberships,
    person,
    wishes,
)

__all__ = ["SimulateError", "write"]

PART = 1_000
"""People at a time: what memory holds, and what a worker process is given."""


def write(
    out: Path,
    *,
    profile: str,
    seed: int,
    clean: bool = False,
    force: bool = False,
    workers: int = 1,
    **changes: object,
) -> dict[str, int]:
    """Writes the region `profile` into `out`; returns the number of lines of each file.

    For each connected hospital Patient.ndjson and Encounter.ndjson as `passerelle import` reads
    them, each encounter as it stands at the end of the time; panels as CSV, with one in which
    all is wrong; Consents; and the truth: what happened, whatever was sent of it, and who was in
    the programme. Memory holds 1,000 people for each of `workers` processes, and the bytes do
    not depend on their number (SIM-03, SIM-10). Raises SimulateError for an unknown profile or
    an impossible parameter, and if `out` is not empty and `force` is not given (SIM-09).
    """
    chosen = profiles.profile(profile, clean=clean, seed=seed, **changes)
    if workers < 1:
        raise SimulateError("parameter workers: at least 1 is needed")
    if out.exists() and (not out.is_dir() or any(out.iterdir())) and not force:
        raise SimulateError(f"output folder {out}: not empty; --force overwrites")
    names = _names(chosen)
    lines = dict.fromkeys(names, 0)
    with ExitStack() as stack:
        files = {}
        for name in names:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            files[name] = stack.enter_context((out / name).open("wb"))
            if name.startswith("panels/"):
                files[name].write(papers.text(()).encode())
        for part in _parts(chosen, workers):
            for name, written in part.items():
                files[name].write(written.text)
                lines[name] += written.lines
    (out / "panels" / "bad.csv").write_text(papers.bad_panel(), encoding="utf-8")
    return {**lines, "panels/bad.csv": len(papers.BAD_ROWS)}


def _names(profile: Profile) -> list[str]:
    names = [f"{site}/{kind}.ndjson" for site in profile.sites for kind in ("Patient", "Encounter")]
    names += ["truth.ndjson", "enrolled.ndjson", "consents.ndjson"]
    return names + [_panel(clinic_name(index)) for index in range(profile.clinics)]


class _Written(NamedTuple):
    """A stretch of one file."""

    text: bytes
    lines: int


def _parts(profile: Profile, workers: int) -> Iterator[dict[str, _Written]]:
    """All stretches of all files: the cast first, then the people by number."""
    yield _written(profile, _scripted(profile))
    firsts = range(1, profile.people + 1, PART)
    if workers == 1:
        for first in firsts:
            yield _part(profile, first)
        return
    # Started afresh: a forked process would have the threads of this one, but not their work.
    afresh = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=afresh) as pool:
        under_way: deque[Any] = deque()
        for first in firsts:
            under_way.append(pool.submit(_part, profile, first))
            if len(under_way) > 2 * workers:
                yield under_way.popleft().result()
        while under_way:
            yield under_way.popleft().result()


def _part(profile: Profile, first: int) -> dict[str, _Written]:
    """What is written of the `PART` people from number `first` on."""
    return _written(profile, _drawn(profile, first))


class _One(NamedTuple):
    """One person, and all that there is to write."""

    person: Person
    happenings: Sequence[Happening]
    panels: Sequence[Membership]
    wishes: Sequence[Wish]
    mishaps: Mapping[int, Mishap] | None


def _scripted(profile: Profile) -> Iterator[_One]:
    end = cast.live(profile)
    for part in cast.cast(profile):
        past = [each for each in part.happenings if each.start < end]
        yield _One(part.person, past, part.panels, part.wishes, part.mishaps)


def _drawn(profile: Profile, first: int) -> Iterator[_One]:
    for number in range(first, min(first + PART, profile.people + 1)):
        who = person(profile, number)
        had = life(profile, who, profile.days)
        wished = changed(profile, wishes(profile, number), had)
        yield _One(who, had, memberships(profile, number), wished, None)


def _written(profile: Profile, people: Iterable[_One]) -> dict[str, _Written]:
    rows: dict[str, list[bytes]] = {name: [] for name in _names(profile)}
    sheets: dict[str, list[tuple[str, ...]]] = {}
    end = cast.live(profile)
    for one in people:
        for clinic, row in papers.claims(one.person, one.panels):
            sheets.setdefault(clinic, []).append(row)
        if one.wishes:
            given = papers.restrictions(profile, one.person, one.wishes, one.panels)
            rows["consents.ndjson"] += [_line(consent) for _, consent in given]
        if not one.happenings:
            continue
        told = said(profile, one.person, one.happenings, profile.days, one.mishaps)
        for name, resource in _standing(profile, told, end):
            rows[name].append(_line(resource))
        rows["truth.ndjson"] += map(_line, _truth(profile, one.happenings))
        if len(one.happenings) >= FREQUENT:
            rows["enrolled.ndjson"] += map(_line, _enrolled(profile, one))
    found = {name: _Written(b"".join(own), len(own)) for name, own in rows.items()}
    for clinic, sheet in sheets.items():
        text = papers.text(sheet, heading=False).encode()
        found[_panel(clinic)] = _Written(text, len(sheet))
    return found


def _line(row: Mapping[str, Any]) -> bytes:
    return orjson.dumps(row, option=orjson.OPT_APPEND_NEWLINE)


def _panel(clinic: str) -> str:
    return f"panels/{clinic}.csv"


def _standing(
    profile: Profile, told: Iterable[Message], end: datetime
) -> Iterator[tuple[str, fhir.Json]]:
    """Each record and each encounter as its hospital had it before `end`, with its file."""
    records: dict[tuple[int, str], Message] = {}
    encounters: dict[tuple[int, str], Message] = {}
    for one in told:  # of two things of one instant, what is said later holds
        if one.at >= end:
            continue
        key = (one.site, one.identity.record)
        if key not in records or one.at >= records[key].at:
            records[key] = one
        if one.encounter is not None:
            key = (one.site, one.encounter.visit)
            if key not in encounters or one.at >= encounters[key].at:
                encounters[key] = one
    for (site, _), one in records.items():
        name = profile.sites[site]
        yield f"{name}/Patient.ndjson", fhir.patient(name, one.identity, one.at)
    for (site, _), one in encounters.items():
        name = profile.sites[site]
        yield f"{name}/Encounter.ndjson", fhir.put(name, site % 2 == 1, one)[1]


def _truth(profile: Profile, happenings: Sequence[Happening]) -> Iterator[dict[str, object]]:
    for visit in visits(happenings):
        for each in visit.pieces:
            yield {
                "person": each.person,
                "visit": visit.number,
                "site": profile.hospitals[each.site],
                "connected": each.site < len(profile.sites),
                "care": each.care,
                "start": each.start,
                "end": each.end,
                "leaving": each.leaving,
                "service": each.service,
                "planned": each.planned,
                "transfer_in": each.transfer_in,
                "code": each.code,
                "label": each.label,
            }


def _enrolled(profile: Profile, one: _One) -> Iterator[dict[str, object]]:
    for since, until in enrolments(profile, one.person, one.happenings):
        yield {"person": one.person.number, "since": since, "until": until}

"""The region as files: what `passerelle simulate` writes (simulator.md section 5)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import orjson

from services.simulator import cast, fhir, papers, profiles
from services.simulator.feed import Message, Mishap, of_person, visits
from services.simulator.life import Happening, life
from services.simulator.profiles import Profile, SimulateError
from services.simulator.region import Person, people

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
    each encounter as it stands at the end; panels as CSV, with one in which all is wrong;
    Consents; and the truth: what happened, whatever was sent of it. Memory holds one person
    at a time. Raises SimulateError for an unknown profile or an impossible parameter, and if
    `out` is not empty and `force` is not given (SIM-09).
    """
    chosen = profiles.profile(profile, clean=clean, seed=seed, **changes)
    if out.exists() and any(out.iterdir()) and not force:
        raise SimulateError(f"output folder {out}: not empty; --force overwrites")
    written: Counter[str] = Counter()
    with ExitStack() as open_files:

        def lines(name: str, rows: Iterable[Mapping[str, Any]]) -> None:
            for row in rows:
                files[name].write(orjson.dumps(row) + b"\n")
                written[name] += 1

        names = [f"{site}/{kind}.ndjson" for site in chosen.sites for kind in _KINDS]
        files = {}
        for name in [*names, "truth.ndjson", "consents.ndjson"]:
            (out / name).parent.mkdir(parents=True, exist_ok=True)
            files[name] = open_files.enter_context((out / name).open("wb"))
        for person, happenings, mishaps in _everybody(chosen):
            sent = of_person(chosen, person, happenings, chosen.days, mishaps)
            for site, name in enumerate(chosen.sites):
                own = [message for message in sent if message.site == site]
                lines(f"{name}/Patient.ndjson", _patients(name, own))
                lines(f"{name}/Encounter.ndjson", _encounters(name, site % 2 == 1, own))
            lines("truth.ndjson", (_truth(chosen, each) for each in _told(happenings)))
        lines("consents.ndjson", (consent for _, consent in papers.consents(chosen)))
    (out / "panels").mkdir(exist_ok=True)
    for panel in papers.panels(chosen):
        (out / "panels" / f"{panel.clinic}.csv").write_text(panel.csv, encoding="utf-8")
        written[f"panels/{panel.clinic}.csv"] = panel.rows
    (out / "panels" / "bad.csv").write_text(papers.bad_panel(), encoding="utf-8")
    written["panels/bad.csv"] = len(papers.BAD_ROWS)
    return dict(written)


_KINDS = ("Patient", "Encounter")


def _everybody(
    profile: Profile,
) -> Iterable[tuple[Person, list[Happening], Mapping[int, Mishap] | None]]:
    """Everybody and what befell them in the year; of the cast only what was history."""
    now = cast.live(profile)
    for part in cast.cast(profile):
        past = [each for each in part.happenings if each.start < now]
        yield part.person, past, part.mishaps
    for person in people(profile):
        yield person, life(profile, person, profile.days), None


def _patients(site: str, sent: Iterable[Message]) -> Iterable[fhir.Json]:
    latest = {each.identity.record: each for each in sorted(sent, key=lambda m: (m.at, m.order))}
    return (fhir.patient(site, each.identity, each.at) for each in latest.values())


def _encounters(site: str, in_place: bool, sent: Iterable[Message]) -> Iterable[fhir.Json]:
    latest: dict[str, Message] = {}
    for each in sorted(sent, key=lambda message: (message.at, message.order)):
        if each.encounter is not None:
            latest[each.encounter.visit] = each
    for each in latest.values():
        yield fhir.put(site, in_place, each)[1]


def _told(happenings: Iterable[Happening]) -> Iterable[tuple[str, Happening]]:
    for visit in visits(list(happenings)):
        for piece in visit.pieces:
            yield visit.number, piece


def _truth(profile: Profile, told: tuple[str, Happening]) -> dict[str, object]:
    visit, each = told
    return {
        "person": each.person,
        "visit": visit,
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

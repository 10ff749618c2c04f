"""Events, and rows kept of them, as values of the rules; no decision here."""

from collections.abc import Mapping
from datetime import UTC, date, datetime
from typing import Any
from uuid import UUID

import orjson

from schemas.encounter_recorded_v1 import EncounterRecorded
from services.screening.ledger import Coding, Disposition, Fact, Moment, Service, Status
from services.screening.presence import Face, Said
from services.screening.presence import Moment as EpisodeMoment


def kept(event: EncounterRecorded) -> str:
    """The fact as the ledger keeps it: the event's own JSON, of which no field is lost.

    Stated again by a rebuild, it is the same fact.
    """
    if event.restated is not None:
        event = event.model_copy(update={"restated": None})
    return event.text


def fact(row: str, first_recorded: datetime, *, excluded: bool = False) -> Fact:
    """A kept fact. `first_recorded`: when the encounter's first version was recorded;
    `excluded`: a person took it out of the count (CT-17).
    """
    said: dict[str, Any] = orjson.loads(row)
    disposition, service, part_of = said["disposition"], said["service"], said["part_of"]
    return Fact(
        encounter=UUID(said["encounter"]),
        version=said["version"],
        patient=UUID(said["patient"]),
        site=said["site"],
        status=Status(said["status"]),
        classes=tuple((one["code"], _instant(one["since"])) for one in said["classes"]),
        start=_moment(said["start"]),
        end=_moment(said["end"]),
        event_time=_instant(said["event_time"]),
        recorded=_instant(said["recorded"]),
        first_recorded=first_recorded,
        triaged=said["triaged"] or said["status"] == Status.TRIAGED,
        disposition=Disposition(disposition) if disposition else None,
        service=Service(service) if service else None,
        part_of=UUID(part_of) if part_of else None,
        from_emergency=said["from_emergency"],
        transfer_in=said["transfer_in"],
        transfer_out=said["transfer_out"],
        planned=said["planned"],
        codes=_codings(said["codes"]),
        labels=_codings(said["labels"]),
        time_is_ambiguous=said["time_is_ambiguous"],
        start_is_assumed=said["start_is_assumed"],
        backfill=said["backfill"],
        excluded=excluded,
    )


def _instant(text: str) -> datetime:
    found = datetime.fromisoformat(text)
    return found if found.tzinfo is UTC else found.astimezone(UTC)


def _moment(said: Mapping[str, str] | None) -> Moment | None:
    if said is None:
        return None
    earliest = _instant(said["earliest"])
    if said["precision"] == "instant":
        return Moment(earliest, earliest)
    return Moment(earliest, _instant(said["latest"]))


def _codings(said: list[dict[str, str]] | None) -> tuple[Coding, ...] | None:
    return None if said is None else tuple(Coding(one["system"], one["code"]) for one in said)


def birth_date(text: str) -> date:
    """A sealed birth date. A year or month alone counts from its first day."""
    return date.fromisoformat(f"{text}-01-01"[:10])


def death(text: str) -> datetime:
    """A sealed death: an instant, or a date, which counts from its first instant in UTC."""
    found = datetime.fromisoformat(text)
    return found.replace(tzinfo=UTC) if found.tzinfo is None else found.astimezone(UTC)


def said_json(said: Said) -> str:
    """What notify was told of an episode, as it is kept."""
    face = said.face
    return orjson.dumps(
        {
            "moments": {str(name): at.isoformat() for name, at in said.moments.items()},
            "in_ed": face.in_ed,
            "in_hospital": face.in_hospital,
            "ended": face.ended,
            "void": face.void,
            "joined_into": face.joined_into and str(face.joined_into),
            "site": face.site,
            "encounters": [str(one) for one in face.encounters],
            "labels": None if face.labels is None else [[c.system, c.code] for c in face.labels],
        }
    ).decode()


def said(row: str) -> Said:
    found: dict[str, Any] = orjson.loads(row)
    labels, joined = found["labels"], found["joined_into"]
    return Said(
        moments={EpisodeMoment(n): _instant(at) for n, at in found["moments"].items()},
        face=Face(
            in_ed=found["in_ed"],
            in_hospital=found["in_hospital"],
            ended=found["ended"],
            void=found["void"],
            joined_into=UUID(joined) if joined else None,
            site=found["site"],
            encounters=tuple(UUID(one) for one in found["encounters"]),
            labels=None if labels is None else tuple(Coding(*one) for one in labels),
        ),
    )

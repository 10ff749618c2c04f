"""The form every event has: a fact one service states to the others.

The attributes are those of CloudEvents 1.0; `subject` is the patient key, so that a
carrier can keep the events of one patient in order without reading the data.
"""

from functools import cached_property
from typing import Annotated, ClassVar, Self
from uuid import UUID

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, StringConstraints

CANON = "https://passerelle.example.org/fhir"
"""Canonical root of everything this project defines: code systems, topics, naming systems."""

Site = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9-]{0,62}$")]
"""A hospital or installation that sends events, as the region file names it."""


class Part(BaseModel):
    """A value inside an event."""

    model_config = ConfigDict(
        frozen=True, extra="ignore", hide_input_in_errors=True, use_attribute_docstrings=True
    )


class Event(Part):
    """A fact one service states to the others; never edited.

    Fields may be added, with a default. What an old reader would misread is a new version:
    a new module, a new `type`. tests/promises/test_contracts.py holds published versions to it.
    """

    type: ClassVar[str]
    source: ClassVar[str]
    """The service that states it, and in whose outbox it is written."""
    published: ClassVar[bool] = True
    """False while nothing emits it: a draft, which may still change."""

    @property
    def subject(self) -> UUID | None:
        """Key of the patient the fact is about; None if it is about no patient."""
        raise NotImplementedError

    @cached_property
    def text(self) -> str:
        """Its JSON, written once."""
        return self.model_dump_json()

    @classmethod
    def read(cls, text: str | bytes) -> Self:
        """The event that `text` states. It keeps that text: a field that only newer readers know
        is not lost on the way.
        """
        event = cls.model_validate_json(text)
        event.__dict__["text"] = text if isinstance(text, str) else text.decode()
        return event

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied.__dict__.pop("text", None)  # a copy may say something else
        return copied


class Envelope(Part):
    """What a carrier knows of an event. `data` is the event's own JSON."""

    id: UUID
    source: str
    """The service that states it, as `passerelle/ingest`."""
    type: str
    time: AwareDatetime
    """When it was stated (business clock)."""
    subject: UUID | None
    traceparent: str | None = None
    data: bytes = Field(repr=False)


class Coding(Part):
    """A code of a named system, as FHIR has it."""

    system: str
    code: str


class Moment(Part):
    """A date or instant as the site knew it, as the range of instants it may mean (HA-05).

    For `instant` both ends are equal. For `day` they are the first and the last microsecond
    of that day in the site's zone.
    """

    earliest: AwareDatetime
    latest: AwareDatetime
    precision: Annotated[str, StringConstraints(pattern="^(instant|day)$")] = "instant"

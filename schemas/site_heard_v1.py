"""ingest → screening, notify: a site was heard from. No patient in it."""

from typing import ClassVar
from uuid import UUID

from pydantic import AwareDatetime

from schemas.envelope import Event, Site


class SiteHeard(Event):
    """For coverage and the silence banner. At most one a site and minute."""

    type: ClassVar[str] = "site.heard.v1"
    source: ClassVar[str] = "ingest"

    site: Site
    last_event: AwareDatetime
    """Event time of the newest message."""
    heard: AwareDatetime
    """When it was received."""

    @property
    def subject(self) -> UUID | None:
        return None

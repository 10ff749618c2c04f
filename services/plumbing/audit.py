"""Who did, saw and was told what: records in the shapes of IHE BALP (E-1 to E-6, CS-110).

A record is written in the transaction of its effect, so that neither is there without the
other; a read is answered only after that commit. Records hold keys, never names or identifiers.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Self
from uuid import UUID

import orjson
from fastapi import Request
from sqlalchemy import text

from services.plumbing.auth import Caller, Refused
from services.plumbing.db import Database, Tx

BALP = "https://profiles.ihe.net/ITI/BALP/StructureDefinition/IHE.BasicAudit."


class Shape(StrEnum):
    """What kind of record; the names are BALP's where BALP has one."""

    PATIENT_CREATE = "PatientCreate"
    PATIENT_UPDATE = "PatientUpdate"
    PATIENT_DELETE = "PatientDelete"
    PATIENT_READ = "PatientRead"
    PATIENT_QUERY = "PatientQuery"
    CREATE = "Create"
    UPDATE = "Update"
    DELETE = "Delete"
    READ = "Read"
    QUERY = "Query"
    DISCLOSURE = "PrivacyDisclosure.Source"
    DECISION_BY_CONSENT = "AuthZ-Consent"
    DECISION_BY_DEFAULT = "AuthZ-Role"
    REFUSED = "Refused"
    SIGN_IN = "SignIn"
    SIGN_OUT = "SignOut"
    EXPORT = "Export"
    CONFIGURATION = "Configuration"


class Outcome(IntEnum):
    SUCCESS = 0
    MINOR_FAILURE = 4
    SERIOUS_FAILURE = 8


@dataclass(frozen=True, slots=True)
class AuditRecord:
    """One record. Made by a Trail, which knows who asked."""

    recorded: datetime
    shape: Shape
    agent: str
    """Client id, person id, or `passerelle/<service>` for what nobody asked for."""
    agent_kind: str
    """`client`, `person`, `service`; `unknown` for one who was not authenticated."""
    outcome: Outcome = Outcome.SUCCESS
    reasons: tuple[str, ...] = ()
    interaction: str | None = None
    """FHIR restful-interaction code."""
    tenant: str | None = None
    """Site or clinic on whose behalf. Row-level security compares it."""
    roles: tuple[str, ...] = ()
    token_id: str | None = None
    network: str | None = None
    """IP address of the caller."""
    recipient: str | None = None
    """Clinic told, or about whom it was decided."""
    reader: str | None = None
    """Person told, where it is a single one."""
    patient: UUID | None = None
    entities: tuple[str, ...] = ()
    """References, `Task/…/_history/2`, `Consent/…/_history/1`."""
    query: str | None = None
    """A search as sent, without identifiers."""
    purpose: str | None = None
    """v3-ActReason."""
    policy: str | None = None
    request_id: str | None = None


@dataclass(frozen=True, slots=True)
class Trail:
    """What all records of one request, or of one turn of background work, have in common."""

    at: datetime
    agent: str
    agent_kind: str
    tenant: str | None = None
    roles: tuple[str, ...] = ()
    token_id: str | None = None
    network: str | None = None
    request_id: str | None = None

    @classmethod
    def of(cls, request: Request, caller: Caller, at: datetime, tenant: str | None = None) -> Self:
        """Of a request; `tenant` where a client of several sites named one (HA-79)."""
        return cls(
            at=at,
            agent=caller.id,
            agent_kind=str(caller.kind),
            tenant=tenant or caller.tenant,
            roles=tuple(sorted(caller.roles)),
            token_id=caller.token_id,
            network=request.client.host if request.client else None,
            request_id=request_id(request),
        )

    @classmethod
    def background(cls, service: str, at: datetime, tenant: str | None = None) -> Self:
        """Of work that no caller waits for: a reader's batch, a delivery, a sweep."""
        return cls(at=at, agent=f"passerelle/{service}", agent_kind="service", tenant=tenant)

    def for_tenant(self, tenant: str) -> Self:
        return replace(self, tenant=tenant)

    def created(self, entity: str, patient: UUID | None) -> AuditRecord:
        """An accepted write that made `entity` (`Encounter/<id>/_history/1`) (E-1)."""
        shape = Shape.CREATE if patient is None else Shape.PATIENT_CREATE
        return self._record(shape, "create", patient=patient, entities=(entity,))

    def updated(
        self, entity: str, patient: UUID | None, interaction: str = "update"
    ) -> AuditRecord:
        """An accepted write that changed it; `interaction` may be `patch`."""
        shape = Shape.UPDATE if patient is None else Shape.PATIENT_UPDATE
        return self._record(shape, interaction, patient=patient, entities=(entity,))

    def deleted(self, entity: str, patient: UUID | None) -> AuditRecord:
        shape = Shape.DELETE if patient is None else Shape.PATIENT_DELETE
        return self._record(shape, "delete", patient=patient, entities=(entity,))

    def read(self, entity: str, patient: UUID | None, interaction: str = "read") -> AuditRecord:
        """One resource, card or page shown to the caller (E-1); `interaction` may be `vread`."""
        shape = Shape.READ if patient is None else Shape.PATIENT_READ
        return self._record(shape, interaction, patient=patient, entities=(entity,), purpose="COC")

    def searched(self, query: str, patients: Sequence[UUID]) -> list[AuditRecord]:
        """One per patient returned, each once; one without patient if there was none (E-2).

        `query` is the search as sent, with identifiers already taken out.
        """
        found = sorted(set(patients))
        if not found:
            return [self._record(Shape.QUERY, "search-type", query=query)]
        return [
            self._record(
                Shape.PATIENT_QUERY, "search-type", patient=patient, query=query, purpose="COC"
            )
            for patient in found
        ]

    def disclosed(
        self,
        entity: str,
        patient: UUID,
        recipient: str,
        *,
        reader: str | None = None,
        purpose: str = "COC",
    ) -> AuditRecord:
        """A delivery to `recipient`, a clinic, of `entity`, a Task (E-3)."""
        return self._record(
            Shape.DISCLOSURE,
            None,
            patient=patient,
            entities=(entity,),
            recipient=recipient,
            reader=reader,
            purpose=purpose,
        )

    def decided(
        self,
        patient: UUID,
        recipient: str,
        *,
        permitted: bool,
        reasons: Sequence[str],
        consents: Sequence[str],
        policy: str,
        reader: str | None = None,
        purpose: str = "COC",
    ) -> AuditRecord:
        """A consent decision about `recipient` (CS-111).

        `consents` are those it rests on, `Consent/<id>/_history/<v>`; none = the default of
        `policy` decided. Withheld and on hold are the same outcome, told apart by `reasons`.
        """
        return self._record(
            Shape.DECISION_BY_CONSENT if consents else Shape.DECISION_BY_DEFAULT,
            None,
            outcome=Outcome.SUCCESS if permitted else Outcome.SERIOUS_FAILURE,
            reasons=tuple(reasons),
            patient=patient,
            entities=tuple(consents),
            recipient=recipient,
            reader=reader,
            policy=policy,
            purpose=purpose,
        )

    def refused(self, status: int) -> AuditRecord:
        """A 401 or 403; no patient entity (E-4)."""
        outcome = Outcome.MINOR_FAILURE if status == 401 else Outcome.SERIOUS_FAILURE
        return self._record(Shape.REFUSED, None, outcome=outcome, reasons=(str(status),))

    def signed_in(self) -> AuditRecord:
        return self._record(Shape.SIGN_IN, None)

    def signed_out(self) -> AuditRecord:
        return self._record(Shape.SIGN_OUT, None)

    def exported(self, entity: str) -> AuditRecord:
        """A report or list that left as a file, such as `panel-report`."""
        return self._record(Shape.EXPORT, None, entities=(entity,))

    def configured(self, entity: str) -> AuditRecord:
        """A change of what the service does: a subscription, a pause, a setting."""
        return self._record(Shape.CONFIGURATION, None, entities=(entity,))

    def _record(self, shape: Shape, interaction: str | None, **more: Any) -> AuditRecord:
        return AuditRecord(
            recorded=self.at,
            shape=shape,
            agent=self.agent,
            agent_kind=self.agent_kind,
            tenant=self.tenant,
            roles=self.roles,
            token_id=self.token_id,
            network=self.network,
            request_id=self.request_id,
            interaction=interaction,
            **more,
        )


_COLUMNS = (
    "recorded timestamptz, shape text, interaction text, outcome smallint, reasons text[],"
    " tenant text, agent text, agent_kind text, roles text[], token_id text, network text,"
    " recipient text, reader text, patient uuid, entities text[], query text, purpose text,"
    " policy text, request_id text"
)
_NAMES = ", ".join(column.split()[0] for column in _COLUMNS.split(", "))
_ADD = text(
    f"insert into audit ({_NAMES}) select {_NAMES}"  # noqa: S608 - both are constants above
    f" from jsonb_to_recordset(cast(:records as jsonb)) as added ({_COLUMNS})"
)


async def record(tx: Tx, records: Sequence[AuditRecord]) -> None:
    """Add `records` to the audit, in the caller's transaction, with one statement (E-6)."""
    if records:
        rows = orjson.dumps([asdict(one) for one in records]).decode()
        await tx.execute(_ADD, {"records": rows})


def refusals(db: Database, now: Callable[[], datetime]) -> Refused:
    """Records each 401 and 403 of a Doorkeeper, before it is answered (E-4)."""

    async def refused(request: Request, status: int, caller: Caller | None) -> None:
        if caller is not None:
            trail = Trail.of(request, caller, now())
        else:
            trail = Trail(
                at=now(),
                agent="unknown",
                agent_kind="unknown",
                network=request.client.host if request.client else None,
                request_id=request_id(request),
            )
        async with db.work() as tx:
            await record(tx, [trail.refused(status)])

    return refused


_REQUEST_ID = re.compile(r"[A-Za-z0-9._-]{20,64}", re.ASCII)


def request_id(request: Request) -> str | None:
    """`X-Request-Id` as sent, if it looks like one; what is shorter could be a card number."""
    sent = request.headers.get("x-request-id", "")
    return sent if _REQUEST_ID.fullmatch(sent) else None

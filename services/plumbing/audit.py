"""Who did, saw and was told what: records in the shapes of IHE BALP (E-1 to E-6, CS-110).

A record is written in the transaction of its effect, so that neither is there without the
other; a read is answered only after that commit. Records hold keys, never names or identifiers.
"""

import re
from base64 import b64encode
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from enum import IntEnum, StrEnum
from typing import Any, Self
from uuid import UUID, uuid5

import orjson
import structlog
from fastapi import Request
from sqlalchemy import Row, text
from sqlalchemy.exc import DBAPIError

from schemas.envelope import CANON
from services.plumbing.auth import Caller, Refused
from services.plumbing.db import Database, Tx, is_passing, sqlstate
from services.plumbing.web import RETRY_AFTER, Rejection

log = structlog.get_logger()

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
    items: tuple[str, ...] = ()
    """What was told, as Content says it."""
    level: str | None = None
    basis: tuple[str, ...] = ()
    request_id: str | None = None
    once: UUID | None = None
    """A second record with the same is left out."""


@dataclass(frozen=True, slots=True)
class Content:
    """What was told, and on what ground: for the report to the patient (CS-114)."""

    items: tuple[str, ...]
    """Kinds with their number, `ed-visit:4`, `hospital-stay:1`, or references; never a value."""
    level: str | None
    """`L1`, `L2`, `L3` (CS-44)."""
    basis: tuple[str, ...]
    """Consents with their versions; none: the default of `policy`."""
    policy: str


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

    def read(
        self,
        entity: str,
        patient: UUID | None,
        interaction: str = "read",
        content: Content | None = None,
    ) -> AuditRecord:
        """One resource, card or page shown to the caller (E-1); `interaction` may be `vread`."""
        shape = Shape.READ if patient is None else Shape.PATIENT_READ
        made = self._record(shape, interaction, patient=patient, entities=(entity,), purpose="COC")
        return _telling(made, content)

    def refreshed(
        self, entity: str, patient: UUID, session: UUID, content: Content | None = None
    ) -> AuditRecord:
        """`entity` with its version, shown again by a page's own refresh: kept once a session."""
        made = self.read(entity, patient, content=content)
        return replace(made, once=uuid5(session, f"{patient}/{entity}"))

    def searched(
        self, query: str, patients: Sequence[UUID], contents: Mapping[UUID, Content] | None = None
    ) -> list[AuditRecord]:
        """One per patient returned, each once; one without patient if there was none (E-2).

        `query` is the search as sent, with identifiers already taken out; `contents` by patient.
        """
        found = sorted(set(patients))
        if not found:
            return [self._record(Shape.QUERY, "search-type", query=query)]
        return [
            _telling(
                self._record(
                    Shape.PATIENT_QUERY, "search-type", patient=patient, query=query, purpose="COC"
                ),
                (contents or {}).get(patient),
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
        content: Content | None = None,
    ) -> AuditRecord:
        """A delivery to `recipient`, a clinic, of `entity`, a Task (E-3)."""
        made = self._record(
            Shape.DISCLOSURE,
            None,
            patient=patient,
            entities=(entity,),
            recipient=recipient,
            reader=reader,
            purpose=purpose,
        )
        return _telling(made, content)

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

    def exported(self, entity: str, patient: UUID | None = None) -> AuditRecord:
        """A report or list that left as a file, such as `panel-report`; `patient` if of one."""
        return self._record(Shape.EXPORT, None, entities=(entity,), patient=patient)

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


def _telling(record: AuditRecord, content: Content | None) -> AuditRecord:
    if content is None:
        return record
    return replace(
        record,
        items=content.items,
        level=content.level,
        basis=content.basis,
        policy=content.policy,
    )


_COLUMNS = (
    "recorded timestamptz, shape text, interaction text, outcome smallint, reasons text[],"
    " tenant text, agent text, agent_kind text, roles text[], token_id text, network text,"
    " recipient text, reader text, patient uuid, entities text[], query text, purpose text,"
    " policy text, items text[], level text, basis text[], request_id text, once uuid"
)
_NAMES = ", ".join(column.split()[0] for column in _COLUMNS.split(", "))
_ADD = text(
    f"insert into audit ({_NAMES}) select {_NAMES}"  # noqa: S608 - both are constants above
    f" from jsonb_to_recordset(cast(:records as jsonb)) as added ({_COLUMNS})"
    " on conflict do nothing"
)


async def record(tx: Tx, records: Sequence[AuditRecord]) -> None:
    """Add `records` to the audit, in the caller's transaction, with one statement (E-6).

    If the audit cannot be written, Rejection 503: nothing is sent, shown or done (CS-110).
    What may pass by itself is raised as it is, for a reader to wait out.
    """
    if not records:
        return
    rows = orjson.dumps([asdict(one) for one in records], default=str).decode()
    try:
        await tx.execute(_ADD, {"records": rows})
    except DBAPIError as error:
        if is_passing(error):
            raise
        log.error("audit_unwritable", sqlstate=sqlstate(error))  # noqa: TRY400 - it quotes rows
        raise Rejection(
            issue="transient",
            advice="The audit cannot be written, so nothing was done or shown.",
            status=503,
            headers={"Retry-After": RETRY_AFTER},
        ) from None


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


# As FHIR

_DCM = "http://dicom.nema.org/resources/ontology/DCM"
_REST = ("http://terminology.hl7.org/CodeSystem/audit-event-type", "rest")
_INTERACTION = "http://hl7.org/fhir/restful-interaction"
_PARTICIPATION = "http://terminology.hl7.org/CodeSystem/v3-ParticipationType"
_SOURCE, _DESTINATION = (_DCM, "110153"), (_DCM, "110152")
_LOGIN, _LOGOUT = (_DCM, "110122"), (_DCM, "110123")
_USER_AUTHENTICATION, _SECURITY_ALERT = (_DCM, "110114"), (_DCM, "110113")
_EXPORT = (_DCM, "110106")
_ACTION = {"create": "C", "update": "U", "patch": "U", "delete": "D", "search-type": "E"}
_KINDS: dict[Shape, tuple[tuple[str, str], tuple[str, str]]] = {
    Shape.DISCLOSURE: (
        _EXPORT,
        ("http://terminology.hl7.org/CodeSystem/iso-21089-lifecycle", "disclose"),
    ),
    Shape.DECISION_BY_CONSENT: (
        _SECURITY_ALERT,
        ("https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType", "AuthZ-Consent"),
    ),
    Shape.DECISION_BY_DEFAULT: (
        _SECURITY_ALERT,
        ("https://profiles.ihe.net/ITI/BALP/CodeSystem/AuthZsubType", "AuthZ-Role"),
    ),
    Shape.REFUSED: (_SECURITY_ALERT, (_DCM, "110132")),
    Shape.SIGN_IN: (_USER_AUTHENTICATION, _LOGIN),
    Shape.SIGN_OUT: (_USER_AUTHENTICATION, _LOGOUT),
    Shape.EXPORT: (_EXPORT, (f"{CANON}/CodeSystem/audit", "export")),
    Shape.CONFIGURATION: (_SECURITY_ALERT, (_DCM, "110131")),
}
_NOT_BALP = {
    Shape.DECISION_BY_DEFAULT,
    Shape.REFUSED,
    Shape.SIGN_IN,
    Shape.SIGN_OUT,
    Shape.EXPORT,
    Shape.CONFIGURATION,
}
_DECISIONS = {Shape.DECISION_BY_CONSENT, Shape.DECISION_BY_DEFAULT}
_BY_DATA_FLOW = {Shape.READ, Shape.PATIENT_READ}
"""In a read the caller is the destination; in all else BALP has it as the source."""


_LISTS = ("reasons", "roles", "entities", "items", "basis")


def stored(row: Row[Any]) -> AuditRecord:
    """The record a row of `audit` is."""
    said = row._mapping  # noqa: SLF001 - SQLAlchemy's public name for it
    kept: dict[str, Any] = {name: said[name] for name in AuditRecord.__slots__}
    kept |= {name: tuple(said[name]) for name in _LISTS}
    kept |= {"shape": Shape(said["shape"]), "outcome": Outcome(said["outcome"])}
    return AuditRecord(**kept)


def as_fhir(id_: UUID, record: AuditRecord, server: str) -> dict[str, Any]:
    """The record as an AuditEvent in its BALP profile; `server` is the service's public URL."""
    decision = record.shape in _DECISIONS
    kind, subkind = _KINDS.get(record.shape, (_REST, (_INTERACTION, record.interaction or "")))
    if record.shape is Shape.REFUSED and record.reasons == ("401",):
        kind, subkind = _USER_AUTHENTICATION, _LOGIN
    action = _ACTION.get(record.interaction or "", "R" if _is_reading(record) else "E")
    said: dict[str, Any] = {
        "resourceType": "AuditEvent",
        "id": str(id_),
        "type": _coding(*kind),
        "subtype": [_coding(*subkind)],
        "action": action,
        "recorded": record.recorded.isoformat(),
        "outcome": str(int(record.outcome)),
        "agent": _deciding(record, server) if decision else _acting(record, server),
        "source": {
            "observer": {"display": server},
            "type": [
                _coding(
                    "http://terminology.hl7.org/CodeSystem/security-source-type",
                    "6" if decision else "4",
                )
            ],
        },
    }
    if record.shape not in _NOT_BALP:
        profile = "AuthZconsent" if decision else record.shape.value
        said["meta"] = {"profile": [f"{BALP}{profile}"]}
    if record.reasons:
        said["outcomeDesc"] = ", ".join(record.reasons)
    if record.purpose is not None:
        reason = "http://terminology.hl7.org/CodeSystem/v3-ActReason"
        said["purposeOfEvent"] = [{"coding": [_coding(reason, record.purpose)]}]
    entities = list(_entities(record))
    if entities:
        said["entity"] = entities
    return said


def _is_reading(record: AuditRecord) -> bool:
    return record.shape in {Shape.READ, Shape.PATIENT_READ, Shape.DISCLOSURE, Shape.EXPORT}


def _coding(system: str, code: str) -> dict[str, str]:
    return {"system": system, "code": code}


def _agent(
    kind: tuple[str, str], who: dict[str, Any], *, requestor: bool = False, **more: Any
) -> dict[str, Any]:
    return {"type": {"coding": [_coding(*kind)]}, "who": who, "requestor": requestor, **more}


def _identified(record: AuditRecord) -> dict[str, Any]:
    system = f"{CANON}/NamingSystem/{record.agent_kind}"
    return {"identifier": {"system": system, "value": record.agent}}


def _from(record: AuditRecord, server: str) -> dict[str, str]:
    """Where the caller was; for work nobody asked for, the service itself."""
    if record.network is None:
        return {"address": server, "type": "5"}
    return {"address": record.network, "type": "2"}


def _organization(id_: str | None) -> dict[str, Any]:
    return {"reference": f"Organization/{id_}"}


def _acting(record: AuditRecord, server: str) -> list[dict[str, Any]]:
    """Client and server, and the person where there is one; of a disclosure, from and to."""
    here = {"display": server}
    at: dict[str, Any] = {"network": {"address": server, "type": "5"}}
    if record.shape is Shape.DISCLOSURE:
        to = f"{CANON}/Organization/{record.recipient}"
        agents = [
            _agent(_SOURCE, here, **at),
            _agent(
                _DESTINATION,
                _organization(record.recipient),
                network={"address": to, "type": "5"},
            ),
        ]
        if record.reader is not None:
            person = {"reference": f"Practitioner/{record.reader}"}
            agents.append(_agent((_PARTICIPATION, "IRCP"), person))
        return agents
    by_person = record.agent_kind == "person"
    mine, theirs = (
        (_SOURCE, _DESTINATION) if record.shape in _BY_DATA_FLOW else (_DESTINATION, _SOURCE)
    )
    client = {"display": "web browser"} if by_person else _identified(record)
    token = (
        {"policy": [f"urn:ietf:params:oauth:jti:{record.token_id}"]}
        if record.token_id is not None
        else {}
    )
    agents = [
        _agent(theirs, client, requestor=not by_person, network=_from(record, server), **token),
        _agent(mine, here, **at),
    ]
    if by_person:
        part = "IRCP" if _is_reading(record) or record.interaction == "search-type" else "AUT"
        agents.append(_user((_PARTICIPATION, part), _identified(record), record))
    return agents


def _deciding(record: AuditRecord, server: str) -> list[dict[str, Any]]:
    """Who would be told, for which organisation, asked through what, decided by whom (CS-111)."""
    reader = record.reader or record.recipient
    who = (
        {"reference": f"Practitioner/{reader}"}
        if record.reader is not None
        else _organization(reader)
    )
    policy = {"policy": [f"{CANON}/policy/{record.policy}"]} if record.policy is not None else {}
    return [
        _agent((_DCM, "110150"), _identified(record), network=_from(record, server)),
        _user((_PARTICIPATION, "IRCP"), who, record, **policy),
        _agent(
            ("http://terminology.hl7.org/CodeSystem/v3-RoleClass", "PROV"),
            _organization(record.recipient),
        ),
        _agent(
            ("http://terminology.hl7.org/CodeSystem/extra-security-role-type", "authserver"),
            {"display": server},
        ),
    ]


def _user(
    kind: tuple[str, str], who: dict[str, Any], record: AuditRecord, **more: Any
) -> dict[str, Any]:
    role = f"{CANON}/CodeSystem/role"
    roles = [{"coding": [_coding(role, one)]} for one in record.roles]
    return _agent(kind, who, requestor=True, **({"role": roles} if roles else {}), **more)


def _entities(record: AuditRecord) -> Iterator[dict[str, Any]]:
    entity_type = "http://terminology.hl7.org/CodeSystem/audit-entity-type"
    role = "http://terminology.hl7.org/CodeSystem/object-role"
    if record.patient is not None:
        yield {
            "what": {"reference": f"Patient/{record.patient}"},
            "type": _coding(entity_type, "1"),
            "role": _coding(role, "1"),
        }
    if record.request_id is not None and record.shape not in _DECISIONS:
        balp = "https://profiles.ihe.net/ITI/BALP/CodeSystem/BasicAuditEntityType"
        yield {
            "what": {"identifier": {"value": record.request_id}},
            "type": _coding(balp, "XrequestId"),
        }
    if record.query is not None:
        yield {
            "type": _coding(entity_type, "2"),
            "role": _coding(role, "24"),
            "query": b64encode(record.query.encode()).decode(),
        }
    for reference in record.entities:
        if record.shape in _DECISIONS:
            resource = _coding("http://hl7.org/fhir/resource-types", "Consent")
            yield {"what": {"reference": reference}, "type": resource}
        elif record.shape in (Shape.EXPORT, Shape.CONFIGURATION):
            yield {"name": reference, "type": _coding(entity_type, "2")}
        else:
            yield {
                "what": {"reference": reference},
                "type": _coding(entity_type, "2"),
                "role": _coding(role, "4"),
            }

"""What the clinics' door offers: routes and CapabilityStatement come from the same table."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from typing import Any, Final

from schemas.envelope import CANON
from services.notify.search import DEFINITIONS, INCLUDES, PARAMETERS, REVINCLUDES
from services.notify.subscriptions import PROFILE, TOPICS

OAUTH_URIS: Final = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
TOPIC_OF: Final = (
    "http://hl7.org/fhir/uv/subscriptions-backport/StructureDefinition/"
    "capabilitystatement-subscriptiontopic-canonical"
)
BACKPORT_SERVER: Final = "http://hl7.org/fhir/uv/subscriptions-backport/CapabilityStatement/backport-subscription-server-r4"
STATUS_OPERATION: Final = (
    "http://hl7.org/fhir/uv/subscriptions-backport/OperationDefinition/backport-subscription-status"
)


@dataclass(frozen=True, slots=True)
class Offer:
    """What may be done with one resource type, in FHIR's words."""

    interactions: Sequence[str]
    versioning: str = "versioned"
    update_create: bool = False


OFFERED: Final[Mapping[str, Offer]] = {
    "Task": Offer(("read", "vread", "update", "patch", "search-type"), "versioned-update"),
    "Flag": Offer(("read", "search-type")),
    "Patient": Offer(("read", "search-type")),
    "Provenance": Offer(("read", "search-type")),
    "Communication": Offer(("read", "search-type")),
    "Organization": Offer(("read", "search-type"), "no-version"),
    "PractitionerRole": Offer(("read", "search-type"), "no-version"),
    "Consent": Offer(
        ("read", "vread", "history-instance", "update", "create", "search-type"),
        "versioned-update",
        update_create=True,
    ),
    "Subscription": Offer(("read", "update", "create", "delete", "search-type")),
}
SCOPES: Final = (
    "system/Task.rus",
    "system/Flag.rs",
    "system/Patient.rs",
    "system/Provenance.rs",
    "system/Communication.rs",
    "system/Organization.rs",
    "system/PractitionerRole.rs",
    "system/Consent.cru",
    "system/Subscription.cruds",
    "system/Group.u",
)


def capability(base: str, token_url: str | None) -> dict[str, Any]:
    """The statement of the door at `base` (CA-80 to CA-82)."""
    security: dict[str, Any] = {
        "cors": True,
        "service": [
            {
                "coding": [
                    {
                        "system": "http://terminology.hl7.org/CodeSystem/restful-security-service",
                        "code": "SMART-on-FHIR",
                    }
                ]
            }
        ],
        "description": "SMART Backend Services: system scopes, RS384 or ES384 assertions.",
    }
    if token_url is not None:
        security["extension"] = [
            {"url": OAUTH_URIS, "extension": [{"url": "token", "valueUri": token_url}]}
        ]
    return {
        "resourceType": "CapabilityStatement",
        "url": f"{CANON}/CapabilityStatement/notify",
        "version": version("passerelle"),
        "name": "PasserelleNotify",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "instantiates": [BACKPORT_SERVER],
        "software": {"name": "Passerelle notify", "version": version("passerelle")},
        "implementation": {"description": "The clinics' door", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "patchFormat": ["application/json-patch+json", "application/merge-patch+json"],
        "rest": [
            {
                "mode": "server",
                "security": security,
                "resource": [_resource(type_, offer) for type_, offer in OFFERED.items()],
            }
        ],
    }


def _resource(type_: str, offer: Offer) -> dict[str, Any]:
    found: dict[str, Any] = {
        "type": type_,
        "interaction": [{"code": code} for code in offer.interactions],
        "versioning": offer.versioning,
        "readHistory": "vread" in offer.interactions,
        "updateCreate": offer.update_create,
        "searchParam": [
            {
                "name": name,
                "definition": DEFINITIONS.get(
                    name, f"http://hl7.org/fhir/SearchParameter/{type_}-{name}"
                ),
                "type": parameter.kind,
            }
            for name, parameter in PARAMETERS[type_].items()
        ],
    }
    if type_ in INCLUDES:
        found["searchInclude"] = [f"{type_}:{name}" for name in INCLUDES[type_]]
        found["searchRevInclude"] = list(REVINCLUDES[type_])
    if type_ == "Subscription":
        found["supportedProfile"] = [PROFILE]
        found["extension"] = [{"url": TOPIC_OF, "valueCanonical": topic} for topic in TOPICS]
        found["operation"] = [{"name": "status", "definition": STATUS_OPERATION}]
    return found

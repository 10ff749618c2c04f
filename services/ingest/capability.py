"""What the door says of itself: its CapabilityStatement (HA-10)."""

from importlib.metadata import version
from typing import Any

from schemas.envelope import CANON

OAUTH_URIS = "http://fhir-registry.smarthealthit.org/StructureDefinition/oauth-uris"
"""The old extension in which fhirclient looks for the token URL (section 13)."""

_INTERACTIONS = ("read", "vread", "update", "create", "search-type")


def capability(base: str, token_url: str | None) -> dict[str, Any]:
    """The statement of the door at `base`; `token_url` is left out while it is not known."""
    security: dict[str, Any] = {
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
        "url": f"{CANON}/CapabilityStatement/ingest",
        "version": version("passerelle"),
        "name": "PasserelleIngest",
        "status": "active",
        "date": "2026-01-01",
        "kind": "instance",
        "software": {"name": "Passerelle ingest", "version": version("passerelle")},
        "implementation": {"description": "The hospitals' door", "url": base},
        "fhirVersion": "4.0.1",
        "format": ["application/fhir+json", "json"],
        "rest": [
            {
                "mode": "server",
                "security": security,
                "resource": [_resource("Encounter"), _resource("Patient")],
                "interaction": [{"code": "transaction"}, {"code": "batch"}],
                "operation": [
                    {
                        "name": "process-message",
                        "definition": "http://hl7.org/fhir/OperationDefinition/"
                        "MessageHeader-process-message",
                    }
                ],
            }
        ],
    }


def _resource(kind: str) -> dict[str, Any]:
    codes = [*_INTERACTIONS, *(["delete"] if kind == "Encounter" else [])]
    return {
        "type": kind,
        "interaction": [{"code": code} for code in codes],
        "versioning": "versioned",
        "readHistory": True,
        "updateCreate": True,
        "conditionalCreate": True,
        "conditionalRead": "not-match",
        "conditionalUpdate": True,
        "conditionalDelete": "not-supported",
        "referencePolicy": ["literal", "logical", "local"],
        "searchParam": [
            {"name": "identifier", "type": "token"},
            {"name": "_id", "type": "token"},
            {"name": "_lastUpdated", "type": "date"},
        ],
        "operation": [
            {
                "name": "validate",
                "definition": "http://hl7.org/fhir/OperationDefinition/Resource-validate",
            }
        ],
    }

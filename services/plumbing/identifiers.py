"""Which identifier is meant, in one spelling, so that equal ones have equal tokens (HA-90…93)."""

import re
from collections.abc import Mapping

INFOWAY = "https://fhir.infoway-inforoute.ca/NamingSystem/"
QUEBEC = f"{INFOWAY}ca-qc-patient-healthcare-id"
ONTARIO = f"{INFOWAY}ca-on-patient-hcn"
_OTHERS = ("ab", "bc", "mb", "nb", "nl", "nt", "ns", "nu", "pe", "sk", "yt")
HEALTH_CARDS = frozenset(
    {QUEBEC, ONTARIO, *(f"{INFOWAY}ca-{province}-patient-healthcare-id" for province in _OTHERS)}
)
"""Systems of health cards: the only ones that match across sites (HA-93)."""

ALIASES: Mapping[str, str] = {
    "http://documentation.clicsante.ca/fhir/base/nam": QUEBEC,
}
"""Other names of the same systems (HA-91); the region file adds its own."""

_QUEBEC_CARD = re.compile(r"[A-Z]{4}[0-9]{8}")
_SEPARATORS = re.compile(r"[\s\-\u2010-\u2015]+")
LONGEST = 256
"""Characters; a longer value is nobody's identifier."""


def canonical_system(system: str, aliases: Mapping[str, str] = ALIASES) -> str:
    """The one name of `system`; an unknown one is its own."""
    return aliases.get(system, ALIASES.get(system, system))


def is_health_card(system: str) -> bool:
    """Whether `system`, canonical, is that of a health card."""
    return system in HEALTH_CARDS


def normalise(system: str, value: str) -> str | None:
    """`value` in the spelling its token is made of; None if it cannot be one (HA-92).

    Upper case, no spaces or hyphens. A Quebec card is four letters and eight digits. Nothing
    else is checked: no checksum rule is confirmed.
    """
    plain = _SEPARATORS.sub("", value).upper()
    if not plain or len(plain) > LONGEST or not plain.isprintable():
        return None
    if system == QUEBEC and not _QUEBEC_CARD.fullmatch(plain):
        return None
    return plain


def own_system(site: str) -> str:
    """The system of a record number that came without one: the site's own (HA-93)."""
    return f"urn:passerelle:site:{site}"

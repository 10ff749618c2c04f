"""An account of who was told what about one patient, in plain words (CS-79, CS-114).

Pure: audit records in, words out. The patient's copy leaves out refusals, which are for the
privacy officer: what was kept from somebody is not told to anybody else.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum
from zoneinfo import ZoneInfo

from babel.dates import format_datetime

from services.plumbing.audit import AuditRecord, Outcome, Shape
from services.plumbing.region import Region


class Language(StrEnum):
    FRENCH = "fr"
    ENGLISH = "en"


class Deed(StrEnum):
    """What was done with what is known of the patient."""

    SENT = "sent"
    SEEN = "seen"
    WRITTEN = "written"
    REPORTED = "reported"
    REFUSED = "refused"


@dataclass(frozen=True, slots=True)
class Line:
    """One row of the account (CS-114)."""

    at: datetime
    deed: Deed
    recipient: str | None
    """Clinic or site of the region file; None: who belongs to neither."""
    person: str | None
    """Person of the region file; None: a system."""
    system: str | None
    purpose: str | None
    items: tuple[str, ...]
    level: str | None
    basis: tuple[str, ...]
    """Consents with their versions. Empty: the default of `policy`."""
    policy: str | None
    reasons: tuple[str, ...] = ()
    """Of a refusal."""


_DEEDS = {
    Shape.DISCLOSURE: Deed.SENT,
    Shape.PATIENT_READ: Deed.SEEN,
    Shape.PATIENT_QUERY: Deed.SEEN,
    Shape.PATIENT_CREATE: Deed.WRITTEN,
    Shape.PATIENT_UPDATE: Deed.WRITTEN,
    Shape.PATIENT_DELETE: Deed.WRITTEN,
    Shape.EXPORT: Deed.REPORTED,
}
_DECISIONS = {Shape.DECISION_BY_CONSENT, Shape.DECISION_BY_DEFAULT}
_FOR_PATIENT = {Deed.SENT, Deed.SEEN, Deed.REPORTED}


def account(records: Iterable[AuditRecord]) -> list[Line]:
    """All that was done or refused, oldest first.

    A disclosure that does not say itself on what ground it was made has it from the decision of
    the same instant about the same recipient.
    """
    known = list(records)
    decided = {
        (one.patient, one.recipient, one.recorded): one
        for one in known
        if one.shape in _DECISIONS and one.outcome is Outcome.SUCCESS
    }
    lines: list[Line] = []
    for one in known:
        to = one.recipient or one.tenant
        if one.shape in _DECISIONS:
            if one.outcome is not Outcome.SUCCESS:
                lines.append(_line(one, Deed.REFUSED, to, one.entities, one.policy))
        elif one.shape in _DEEDS:
            ground = decided.get((one.patient, to, one.recorded))
            told = one.policy is not None or ground is None
            basis = one.basis if told or ground is None else ground.entities
            policy = one.policy if told or ground is None else ground.policy
            lines.append(_line(one, _DEEDS[one.shape], to, basis, policy))
    return sorted(lines, key=lambda line: (line.at, line.deed, line.recipient or ""))


def _line(
    record: AuditRecord,
    deed: Deed,
    recipient: str | None,
    basis: Sequence[str],
    policy: str | None,
) -> Line:
    by_person = record.agent_kind == "person"
    return Line(
        at=record.recorded,
        deed=deed,
        recipient=recipient,
        person=record.reader or (record.agent if by_person else None),
        system=None if by_person else record.agent,
        purpose=record.purpose,
        items=record.items,
        level=record.level,
        basis=tuple(basis),
        policy=policy,
        reasons=record.reasons if deed is Deed.REFUSED else (),
    )


def for_patient(lines: Iterable[Line]) -> list[Line]:
    """What the patient's own copy has: who was told, and who looked."""
    return [line for line in lines if line.deed in _FOR_PATIENT]


# In words

_WORDS: Mapping[str, Mapping[Language, str]] = {
    "title": {
        Language.FRENCH: "Qui a été informé de vos visites à l'hôpital",
        Language.ENGLISH: "Who was told about your hospital visits",
    },
    "title-privacy": {
        Language.FRENCH: "Registre des communications et des refus",
        Language.ENGLISH: "Register of disclosures and refusals",
    },
    "period": {
        Language.FRENCH: "Établi le {at}",
        Language.ENGLISH: "Drawn up on {at}",
    },
    "nothing": {
        Language.FRENCH: "Personne n'a été informé.",
        Language.ENGLISH: "Nobody was told anything.",
    },
    "when": {Language.FRENCH: "Date", Language.ENGLISH: "Date"},
    "who": {Language.FRENCH: "Qui", Language.ENGLISH: "Who"},
    "what": {Language.FRENCH: "Quoi", Language.ENGLISH: "What"},
    "why": {Language.FRENCH: "Pourquoi", Language.ENGLISH: "Why"},
    "ground": {Language.FRENCH: "Fondement", Language.ENGLISH: "Ground"},
    "sent": {Language.FRENCH: "Avis envoyé", Language.ENGLISH: "A notice was sent"},
    "seen": {Language.FRENCH: "Dossier consulté", Language.ENGLISH: "The record was looked at"},
    "written": {Language.FRENCH: "Dossier inscrit", Language.ENGLISH: "The record was written"},
    "reported": {
        Language.FRENCH: "Le présent registre a été tiré",
        Language.ENGLISH: "A register like this one was printed",
    },
    "refused": {Language.FRENCH: "Non communiqué", Language.ENGLISH: "Not disclosed"},
    "L1": {
        Language.FRENCH: "votre identité, l'hôpital, les dates et le nombre de visites",
        Language.ENGLISH: "your identity, the hospital, the dates and the number of visits",
    },
    "L2": {
        Language.FRENCH: "votre identité, l'hôpital, les dates, le nombre et la raison des visites",
        Language.ENGLISH: "your identity, the hospital, the dates, number and reason of the visits",
    },
    "L3": {
        Language.FRENCH: "vos visites, leur raison et le sommaire de départ",
        Language.ENGLISH: "your visits, their reason and the discharge summary",
    },
    "ed-visit": {
        Language.FRENCH: "{n} visite à l'urgence",
        Language.ENGLISH: "{n} emergency visit",
    },
    "ed-visits": {
        Language.FRENCH: "{n} visites à l'urgence",
        Language.ENGLISH: "{n} emergency visits",
    },
    "hospital-stay": {
        Language.FRENCH: "{n} séjour à l'hôpital",
        Language.ENGLISH: "{n} hospital stay",
    },
    "hospital-stays": {
        Language.FRENCH: "{n} séjours à l'hôpital",
        Language.ENGLISH: "{n} hospital stays",
    },
    "COC": {
        Language.FRENCH: "coordonner vos soins",
        Language.ENGLISH: "to coordinate your care",
    },
    "BTG": {
        Language.FRENCH: "danger pour la vie ou l'intégrité",
        Language.ENGLISH: "danger to life or integrity",
    },
    "consent": {
        Language.FRENCH: "ce que vous avez consenti ({refs})",
        Language.ENGLISH: "what you consented to ({refs})",
    },
    "statute": {
        Language.FRENCH: "la loi le permet pour vos soins (ce n'est pas un consentement)",
        Language.ENGLISH: "the law allows it for your care (this is not a consent)",
    },
    "implied": {
        Language.FRENCH: "consentement implicite à l'intérieur de l'équipe qui vous soigne",
        Language.ENGLISH: "implied consent within the team that cares for you",
    },
    "system": {
        Language.FRENCH: "système informatique ({name})",
        Language.ENGLISH: "computer system ({name})",
    },
    "nowhere": {
        Language.FRENCH: "programme Passerelle",
        Language.ENGLISH: "Passerelle programme",
    },
    "reasons": {Language.FRENCH: "raison : {why}", Language.ENGLISH: "reason: {why}"},
}
_LOCALES = {Language.FRENCH: "fr_CA", Language.ENGLISH: "en_CA"}
_FORMATS = {
    Language.FRENCH: "d MMMM y, H 'h' mm",
    Language.ENGLISH: "MMMM d, y, h:mm a",
}


def written(
    lines: Sequence[Line],
    region: Region,
    language: Language,
    now: datetime,
    *,
    privacy: bool = False,
) -> str:
    """The account as a page of text. `privacy`: with refusals and codes, for the officer."""
    say = _Words(region, language)
    title = say("title-privacy" if privacy else "title")
    parts = [title, "=" * len(title), "", say("period", at=say.instant(now)), ""]
    parts += [block for line in lines for block in say.block(line, privacy=privacy)]
    if not lines:
        parts.append(say("nothing"))
    return "\n".join(parts).rstrip() + "\n"


@dataclass(frozen=True, slots=True)
class _Words:
    region: Region
    language: Language

    def __call__(self, name: str, /, **values: str) -> str:
        return _WORDS[name][self.language].format(**values)

    def instant(self, at: datetime) -> str:
        """NW-41: `24 novembre 2026, 14 h 32`, `November 24, 2026, 2:32 p.m.`."""
        zone = ZoneInfo(self.region.timezone)
        said = format_datetime(
            at, _FORMATS[self.language], tzinfo=zone, locale=_LOCALES[self.language]
        )
        return str(said).replace("\u202f", " ")

    def block(self, line: Line, *, privacy: bool) -> list[str]:
        rows = [
            ("when", self.instant(line.at)),
            ("who", self._who(line)),
            ("what", self._what(line)),
        ]
        if line.purpose is not None:
            rows.append(("why", self._purpose(line.purpose)))
        if line.deed is Deed.REFUSED:
            rows.append(("ground", self("reasons", why=", ".join(line.reasons) or "-")))
        elif (ground := self._ground(line)) is not None:
            rows.append(("ground", ground))
        if privacy and line.policy is not None:
            rows[-1] = (rows[-1][0], f"{rows[-1][1]} [{line.policy}]")
        colon = "\u00a0: " if self.language is Language.FRENCH else ": "
        return [f"{self(name)}{colon}{value}" for name, value in rows] + [""]

    def _who(self, line: Line) -> str:
        place = self._place(line.recipient)
        if line.person is not None:
            person = self.region.person(line.person)
            return f"{person.name if person else line.person}, {place}"
        if line.deed in (Deed.SENT, Deed.REFUSED) or line.system is None:
            return place
        return f"{place}, {self('system', name=line.system)}"

    def _place(self, id_: str | None) -> str:
        if id_ is None:
            return self("nowhere")
        place = self.region.clinic(id_) or self.region.site(id_)
        return place.name.get(self.language.value, id_) if place else id_

    def _what(self, line: Line) -> str:
        told = self(line.deed.value)
        more = [self(line.level)] if line.level in ("L1", "L2", "L3") else []
        more += [self._item(item) for item in line.items]
        return f"{told} ({'; '.join(more)})" if more else told

    def _item(self, item: str) -> str:
        kind, _, number = item.partition(":")
        if kind not in ("ed-visit", "hospital-stay") or not number.isdigit():
            return item
        few = int(number) == 1 or (int(number) == 0 and self.language is Language.FRENCH)
        return self(kind if few else f"{kind}s", n=number)

    def _purpose(self, code: str) -> str:
        return self(code) if code in _WORDS else code

    def _ground(self, line: Line) -> str | None:
        if line.basis:
            return self("consent", refs=", ".join(line.basis))
        if line.policy is None:
            return None
        return self("statute" if line.policy.startswith("qc") else "implied")

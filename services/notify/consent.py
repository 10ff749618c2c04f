"""May this recipient be told, now? (CS-01 to CS-37)

Three-valued throughout: what a Consent says of an item and a reader is *yes*, *no* or
*unknown*. A deny applies unless "no"; a permit grants only on "yes" (CS-05). So whatever we
cannot read keeps an item back, and a second evaluation, with every unknown resolved towards
release, tells a Hold for a person to look at from a plain Withhold (CS-34).
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, date, datetime, timedelta, tzinfo
from enum import Enum, IntEnum, StrEnum
from itertools import groupby
from types import MappingProxyType
from typing import Final
from zoneinfo import ZoneInfo

ENGINE: Final = "1"
"""Version of the algorithm, written into every decision."""

# --- codes (CS-59), versioned data ---------------------------------------------------------

CODES: Final = "1"
TERMINOLOGY: Final = "http://terminology.hl7.org/CodeSystem/"
ACT_CODE: Final = TERMINOLOGY + "v3-ActCode"
ACT_REASON: Final = TERMINOLOGY + "v3-ActReason"
CONFIDENTIALITY: Final = TERMINOLOGY + "v3-Confidentiality"
CONSENT_ACTION: Final = TERMINOLOGY + "consentaction"
PARTICIPATION: Final = TERMINOLOGY + "v3-ParticipationType"
RESOURCE_TYPES: Final = "http://hl7.org/fhir/resource-types"
ROLE_SYSTEMS: Final = frozenset(
    TERMINOLOGY + name
    for name in (
        "v3-ParticipationType",
        "v3-ParticipationFunction",
        "v3-RoleClass",
        "v3-RoleCode",
        "contractsignertypecodes",
        "extra-security-role-type",
    )
)
SYSTEM_ALIASES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "http://hl7.org/fhir/v3/ActCode": ACT_CODE,
        "http://hl7.org/fhir/v3/ActReason": ACT_REASON,
        "http://hl7.org/fhir/v3/Confidentiality": CONFIDENTIALITY,
        "http://hl7.org/fhir/v3/ParticipationType": PARTICIPATION,
        "http://hl7.org/fhir/v3/ParticipationFunction": TERMINOLOGY + "v3-ParticipationFunction",
        "http://hl7.org/fhir/v3/RoleClass": TERMINOLOGY + "v3-RoleClass",
        "http://hl7.org/fhir/v3/RoleCode": TERMINOLOGY + "v3-RoleCode",
        "http://hl7.org/fhir/consentaction": CONSENT_ACTION,
        "http://terminology.hl7.org/ValueSet/v3-InformationSensitivityPolicy": ACT_CODE,
        "http://hl7.org/fhir/ValueSet/v3-InformationSensitivityPolicy": ACT_CODE,
        "http://hl7.org/fhir/v3/vs/InformationSensitivityPolicy": ACT_CODE,
    }
)
"""STU3 system URLs and the sensitivity ValueSet URL, as they are met in R4 Consents (CS-24)."""

PURPOSE_ABOVE: Final[Mapping[str, str | None]] = MappingProxyType(
    {
        "TREAT": None,
        "CLINTRL": "TREAT",
        "COC": "TREAT",
        "POPHLTH": "TREAT",
        "ETREAT": "TREAT",
        "BTG": "ETREAT",
        "ERTREAT": "ETREAT",
        "HOPERAT": None,
        "CAREMGT": "HOPERAT",
        "HQUALIMP": "HOPERAT",
        "PATSFTY": "HOPERAT",
        "HRESCH": None,
        "CLINTRCH": "HRESCH",
        "BIORCH": "HRESCH",
        "PATRQT": None,
        "FAMRQT": "PATRQT",
        "PWATRNY": "PATRQT",
        "HPAYMT": None,
        "PUBHLTH": None,
        "HMARKT": None,
    }
)
SENSITIVITY_ABOVE: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {
        "SPI": frozenset(),
        "MH": frozenset({"SPI"}),
        "PSY": frozenset({"SPI"}),
        "PSYTHPN": frozenset({"SPI"}),
        "BH": frozenset({"SPI"}),
        "SUD": frozenset({"SPI", "ETH"}),
        "ETH": frozenset(),
        "ETHUD": frozenset({"SUD", "ETH"}),
        "OPIOIDUD": frozenset({"SUD", "ETH"}),
        "HIV": frozenset(),
        "STD": frozenset(),
        "SEX": frozenset(),
        "SDV": frozenset(),
        "VIO": frozenset(),
        "GDIS": frozenset(),
        "SCA": frozenset(),
        "TBOO": frozenset(),
    }
)
"""Union of HL7's and IHE PCF's trees, so a code may have two parents."""
LEVELS: Final = ("U", "L", "M", "N", "R", "V")
NORMAL: Final = LEVELS.index("N")
RESTRICTED: Final = LEVELS.index("R")
ACTIONS: Final = frozenset({"access", "collect", "correct", "disclose", "use"})
FLOW: Final = frozenset({"access", "disclose"})
"""Two ends of one flow: a rule about either is about both."""
RECIPIENT_ROLES: Final = frozenset({"IRCP", "PRCP"})
_PARTICIPATIONS: Final = (
    "ADM ATND CALLBCK CON DIS ESC REF AUT INF TRANS ENT WIT CST DIR ALY BBY CAT CSM DEV NRD RDV"
    " DON EXPAGNT EXPART EXPTRGT EXSRC IND BEN CAGNT COV GUAR HLD RCT RCV IRCP NOT PRCP REFB REFT"
    " TRC LOC DST ELOC ORG RML VIA PRF DIST PPRF SPRF RESP VRF AUTHEN LA PART"
)
PARTICIPATIONS: Final = frozenset(_PARTICIPATIONS.split())
"""Codes of v3-ParticipationType; another one there is unreadable (CS-05)."""
CATEGORIES: Final = frozenset({"Group", "CareTeam", "PractitionerRole"})
PEOPLE: Final = frozenset({"Practitioner", "Patient", "RelatedPerson", "Device"})
_R4_TYPES: Final = (
    "Account ActivityDefinition AdverseEvent AllergyIntolerance Appointment AppointmentResponse"
    " AuditEvent Basic Binary BiologicallyDerivedProduct BodyStructure Bundle CapabilityStatement"
    " CarePlan CareTeam CatalogEntry ChargeItem ChargeItemDefinition Claim ClaimResponse"
    " ClinicalImpression CodeSystem Communication CommunicationRequest CompartmentDefinition"
    " Composition ConceptMap Condition Consent Contract Coverage CoverageEligibilityRequest"
    " CoverageEligibilityResponse DetectedIssue Device DeviceDefinition DeviceMetric DeviceRequest"
    " DeviceUseStatement DiagnosticReport DocumentManifest DocumentReference"
    " EffectEvidenceSynthesis Encounter Endpoint EnrollmentRequest EnrollmentResponse"
    " EpisodeOfCare EventDefinition Evidence EvidenceVariable ExampleScenario"
    " ExplanationOfBenefit FamilyMemberHistory Flag Goal GraphDefinition Group GuidanceResponse"
    " HealthcareService ImagingStudy Immunization ImmunizationEvaluation"
    " ImmunizationRecommendation ImplementationGuide InsurancePlan Invoice Library Linkage List"
    " Location Measure MeasureReport Media Medication MedicationAdministration MedicationDispense"
    " MedicationKnowledge MedicationRequest MedicationStatement MedicinalProduct"
    " MedicinalProductAuthorization MedicinalProductContraindication MedicinalProductIndication"
    " MedicinalProductIngredient MedicinalProductInteraction MedicinalProductManufactured"
    " MedicinalProductPackaged MedicinalProductPharmaceutical MedicinalProductUndesirableEffect"
    " MessageDefinition MessageHeader MolecularSequence NamingSystem NutritionOrder Observation"
    " ObservationDefinition OperationDefinition OperationOutcome Organization"
    " OrganizationAffiliation Parameters Patient PaymentNotice PaymentReconciliation Person"
    " PlanDefinition Practitioner PractitionerRole Procedure Provenance Questionnaire"
    " QuestionnaireResponse RelatedPerson RequestGroup ResearchDefinition"
    " ResearchElementDefinition ResearchStudy ResearchSubject RiskAssessment"
    " RiskEvidenceSynthesis Schedule SearchParameter ServiceRequest Slot Specimen"
    " SpecimenDefinition StructureDefinition StructureMap Subscription Substance"
    " SubstanceNucleicAcid SubstancePolymer SubstanceProtein SubstanceReferenceInformation"
    " SubstanceSourceMaterial SubstanceSpecification SupplyDelivery SupplyRequest Task"
    " TerminologyCapabilities TestReport TestScript ValueSet VerificationResult"
    " VisionPrescription"
)
R4_TYPES: Final = frozenset(_R4_TYPES.split())
"""A class that is none of these is unreadable (CS-05)."""
ICD_SYSTEMS: Final = frozenset(
    {
        "http://hl7.org/fhir/sid/icd-10-ca",
        "http://hl7.org/fhir/sid/icd-10",
        "http://hl7.org/fhir/sid/icd-10-cm",
        "urn:oid:2.16.840.1.113883.6.3",
        "urn:oid:2.16.840.1.113883.6.90",
    }
)
LABELLED_BY: Final = (
    ("F10", "F19", ("SUD",)),
    ("F20", "F99", ("MH", "PSY")),
    ("B20", "B24", ("HIV",)),
    ("Z21", "Z21", ("HIV",)),
    ("T74", "T74", ("SDV",)),
    ("Y05", "Y07", ("SDV",)),
)
"""First and last category of a diagnosis, and the sensitivities it brings (CS-59)."""


# --- values ---------------------------------------------------------------------------------


class Reason(StrEnum):
    """Why an item has its outcome (CS-61)."""

    PERMITTED = "permitted"
    IMPLIED = "implied"
    RESTRICTED = "restricted"
    NOT_COVERED = "not-covered"
    NO_CONSENT = "no-consent"
    PERFORMER_NOT_ENTITLED = "performer-not-entitled"
    UNKNOWN_READERS = "unknown-readers"
    UNKNOWN_ACTOR = "unknown-actor"
    UNKNOWN_LABEL = "unknown-label"
    UNKNOWN_CODE = "unknown-code"
    UNKNOWN_DATE = "unknown-date"
    UNKNOWN_AUTHOR = "unknown-author"
    UNKNOWN_CONDITION = "unknown-condition"
    UNKNOWN_AGE = "unknown-age"
    NOT_COMPUTABLE = "not-computable"
    CONFLICT = "conflict"
    DECISION_ERROR = "decision-error"


class Sign(StrEnum):
    """What a reader of the decision must know beside its outcome (CS-60, `flags`)."""

    NOT_COMPUTABLE = "NOT_COMPUTABLE"
    CONFLICT_NEWER_PERMIT = "CONFLICT_NEWER_PERMIT"
    PERFORMER_NOT_ENTITLED = "PERFORMER_NOT_ENTITLED"


class Effect(StrEnum):
    PERMIT = "permit"
    DENY = "deny"


class Outcome(StrEnum):
    RELEASE = "release"
    HOLD = "hold"
    WITHHOLD = "withhold"


class Found(StrEnum):
    """The consent finding alone, without the default (CS-60, `decision`)."""

    PERMIT = "permit"
    DENY = "deny"
    NO_CONSENT = "no-consent"


class Default(StrEnum):
    """What silence means (CS-32)."""

    IMPLIED = "implied"
    OPT_IN = "opt-in"


class Profile(StrEnum):
    CORE = "core"
    QC = "qc"


@dataclass(frozen=True, slots=True, order=True)
class Code:
    """A coding; None where the Consent gave only text, or left it out."""

    system: str | None
    code: str | None

    def __post_init__(self) -> None:
        system, code = self.system, self.code
        system = SYSTEM_ALIASES.get(system, system) if system is not None else None
        if system == CONFIDENTIALITY and code in {"PSY", "HIV", "ETH", "SDV"}:
            system = ACT_CODE  # deprecated there: they name a kind, not a level
        object.__setattr__(self, "system", system)


@dataclass(frozen=True, slots=True)
class Reference:
    """`literal` is `Type/id`, absolute or relative; `identifier` is `system|value`."""

    literal: str | None
    identifier: str | None = field(default=None, repr=False)


@dataclass(frozen=True, slots=True)
class Period:
    """Both ends belong to it; None is open. Partial dates were widened on reading (CS-14)."""

    start: datetime | None
    end: datetime | None

    def __contains__(self, at: datetime) -> bool:
        return (self.start is None or self.start <= at) and (self.end is None or at <= self.end)


@dataclass(frozen=True, slots=True)
class Actor:
    role: Code
    who: Reference


@dataclass(frozen=True, slots=True)
class Datum:
    """`provision.data`: `meaning` is instance, related, dependents or authoredby."""

    meaning: str | None
    what: Reference


@dataclass(frozen=True, slots=True)
class Rule:
    """One `provision`. `effect` is None only in a root that leaves it to `policyRule`."""

    effect: Effect | None
    period: Period | None = None
    actors: tuple[Actor, ...] = ()
    actions: tuple[Code, ...] = ()
    purposes: tuple[Code, ...] = ()
    labels: tuple[Code, ...] = ()
    classes: tuple[Code, ...] = ()
    codes: tuple[Code, ...] = ()
    data_period: Period | None = None
    data: tuple[Datum, ...] = ()
    children: tuple["Rule", ...] = ()

    @property
    def bare(self) -> bool:
        """Without any condition (a period is none): a container, not an exception (CS-21)."""
        return not (
            self.actors
            or self.actions
            or self.purposes
            or self.labels
            or self.classes
            or self.codes
            or self.data_period
            or self.data
        )

    @property
    def of_author(self) -> bool:
        """An author is among its actors, which makes them a matter of the item (CS-23)."""
        return bool(self.actors) and any(_is_author(actor) for actor in self.actors)

    def tree(self) -> Iterable["Rule"]:
        """Itself and all below, parents first."""
        yield self
        for child in self.children:
            yield from child.tree()


class Base(StrEnum):
    """`policyRule` (v3-ActCode) as far as it is known (CS-20)."""

    OPTIN = "OPTIN"
    OPTINR = "OPTINR"
    OPTOUT = "OPTOUT"
    OPTOUTE = "OPTOUTE"
    EMRGONLY = "EMRGONLY"

    @property
    def effect(self) -> Effect:
        return Effect.PERMIT if self in {Base.OPTIN, Base.OPTINR} else Effect.DENY


@dataclass(frozen=True, slots=True)
class Directive:
    """One version of one Consent, read. What could not be read is `computable=False` (CS-13)."""

    id: str
    """Empty: it has none, so it is no version of another."""
    version: int | None
    """None: not readable as a number, so not computable, and no other version replaces it."""
    active: bool
    privacy: bool
    """Its scope is patient privacy (CS-11)."""
    patient: Reference
    dated: datetime | None
    """`dateTime`; None = the oldest (CS-31)."""
    base: Base | None
    root: Rule | None
    by_relatives_alone: bool = False
    """All performers are RelatedPerson (CS-16)."""
    computable: bool = True
    performers: tuple[Reference, ...] = ()
    """Those named by identifier alone, where all others are RelatedPerson (CS-16)."""

    @property
    def name(self) -> str:
        version = self.version if self.version is not None else 0
        return f"Consent/{self.id or '?'}/_history/{version}"


@dataclass(frozen=True, slots=True)
class Item:
    """What would be told: one resource. None = not known; an empty set = known and none."""

    id: str
    kind: str
    """FHIR resource type."""
    custodian: str | None = None
    author: str | None = None
    start: datetime | None = None
    end: datetime | None = None
    labels: frozenset[Code] | None = field(default=None, repr=False)
    codes: frozenset[Code] | None = field(default=None, repr=False)
    encounter: str | None = None
    episode: str | None = None

    @property
    def reference(self) -> str:
        return self.id if "/" in self.id else f"{self.kind}/{self.id}"


def is_foreign(reference: str) -> bool:
    """An address elsewhere: it may name somebody we know by another one."""
    return "://" in reference


def kind_of(reference: str) -> str:
    """The type in `Type/id`."""
    return reference.partition("/")[0]


@dataclass(frozen=True, slots=True)
class Directory:
    """Who belongs where. References are `Type/id`."""

    part_of: Mapping[str, str] = field(default_factory=dict)
    affiliation: Mapping[str, frozenset[str]] = field(default_factory=dict)
    groups: Mapping[str, frozenset[str]] = field(default_factory=dict)
    """Person → Groups, CareTeams and running PractitionerRoles."""
    identifiers: Mapping[str, str] = field(default_factory=dict, repr=False)
    bases: tuple[str, ...] = ()

    def resolve(self, reference: Reference) -> str | None:
        """`Type/id`, a foreign address as it stands, or None: it cannot be known whom it names.

        An identifier says who it is where the address does not.
        """
        literal = None if reference.literal is None else self.local(reference.literal)
        if literal is not None and not is_foreign(literal):
            return literal
        return self.identifiers.get(reference.identifier or "", literal)

    def local(self, literal: str) -> str | None:
        """`Type/id` of an own address; a foreign one as it stands; None if it is no address."""
        for base in self.bases:
            literal = literal.removeprefix(base.rstrip("/") + "/")
        parts = literal.split("/")
        if len(parts) > 2 and parts[-2] == "_history":
            literal, parts = "/".join(parts[:-2]), parts[:-2]
        if is_foreign(literal):
            return literal
        return literal if len(parts) == 2 and all(parts) else None

    def upwards(self, organization: str) -> frozenset[str]:
        """An organisation and all it is part of."""
        above: set[str] = set()
        here: str | None = organization
        while here is not None and here not in above:
            above.add(here)
            here = self.part_of.get(here)
        return frozenset(above)

    def knows_group(self, group: str) -> bool:
        return any(group in groups for groups in self.groups.values())

    def of(self, person: str) -> frozenset[str]:
        """The organisations of a person."""
        return self.affiliation.get(person, frozenset())

    def works_at(self, person: str, organization: str) -> bool:
        """There, in a part of it, or in what it is part of."""
        above = self.upwards(organization)
        return any(o in above or organization in self.upwards(o) for o in self.of(person))

    def members(self, group: str) -> frozenset[str]:
        """Of a Group or CareTeam; of a PractitionerRole those who hold it."""
        return frozenset(person for person, groups in self.groups.items() if group in groups)

    def holders(self, who: str) -> frozenset[str]:
        """Of a PractitionerRole those who hold it, if any; of all others themselves."""
        held = self.members(who) if who.startswith("PractitionerRole/") else frozenset[str]()
        return held or frozenset({who})


@dataclass(frozen=True, slots=True)
class Policy:
    default: Default
    profile: Profile = Profile.QC
    optin_purposes: frozenset[str] = frozenset({"TREAT"})
    zone: tzinfo = field(default_factory=lambda: ZoneInfo("America/Toronto"))

    @property
    def name(self) -> str:
        return f"{self.profile}/{self.default}"


def any_released(visible: frozenset[str]) -> bool:
    return bool(visible)


@dataclass(frozen=True, slots=True)
class Request:
    """One attempt or view, at its own instant, for one recipient (CS-02)."""

    at: datetime
    patient: str
    recipient: str
    """`Organization/id`."""
    readers: tuple[str, ...]
    """`Practitioner/id` of each person who can read it; empty = not known who reads."""
    items: tuple[Item, ...]
    circle: bool
    """Circle of care (CS-04)."""
    aliases: frozenset[str] = frozenset()
    birth_date: date | None = field(default=None, repr=False)
    purpose: str = "COC"
    action: str = "disclose"
    directory: Directory = field(default_factory=Directory, repr=False)
    met: Callable[[frozenset[str]], bool] = field(default=any_released, repr=False)
    """Whether the card's condition is met by these items alone (CS-35, CS-40)."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one item."""

    item: str
    outcome: Outcome
    reasons: frozenset[Reason]
    basis: frozenset[str]
    explicit: bool
    """Released by a Consent, not by the default."""
    labelled: bool = False
    """Released by a Consent that names its labels (CS-45)."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Common part of both refusals: never told to the recipient, kept for the privacy officer."""

    at: datetime
    recipient: str
    readers: tuple[str, ...]
    found: Found
    findings: tuple[Finding, ...]
    signs: frozenset[Sign]
    basis: frozenset[str]
    policy: str
    reasons: frozenset[Reason]

    @property
    def obligations(self) -> frozenset[str]:
        kept_back = any(f.outcome is not Outcome.RELEASE for f in self.findings)
        return frozenset({"REDACT"} if kept_back else ())


@dataclass(frozen=True, slots=True)
class Withhold(Refusal):
    """They may not be told."""


@dataclass(frozen=True, slots=True)
class Hold(Refusal):
    """Whether they may be told is for a person to say; until then nothing goes out (CS-36)."""


@dataclass(frozen=True, slots=True)
class Permit:
    """That `recipient` may be told of `released` at `at`. Only `decide` makes one; nothing
    stores one, none is used twice.
    """

    at: datetime
    recipient: str
    readers: tuple[str, ...]
    found: Found
    findings: tuple[Finding, ...]
    signs: frozenset[Sign]
    basis: frozenset[str]
    policy: str
    released: frozenset[str]
    """Item ids; nothing else may be shown, counted or hinted at."""

    @property
    def whole(self) -> bool:
        """Nothing is kept back."""
        return len(self.released) == len(self.findings)

    @property
    def obligations(self) -> frozenset[str]:
        return frozenset({"NORDSCLCD"} if self.whole else {"NORDSCLCD", "REDACT"})


Decision = Permit | Withhold | Hold


# --- three values ---------------------------------------------------------------------------


class Answer(IntEnum):
    NO = 0
    UNKNOWN = 1
    YES = 2


@dataclass(frozen=True, slots=True)
class Test:
    """An answer, and if it is *unknown*, what is missing."""

    answer: Answer
    why: frozenset[Reason] = frozenset()


YES: Final = Test(Answer.YES)
NO: Final = Test(Answer.NO)


def unknown(reason: Reason) -> Test:
    return Test(Answer.UNKNOWN, frozenset({reason}))


def _truth(answer: bool) -> Test:
    return YES if answer else NO


def _in_doubt(tests: Sequence[Test]) -> Test:
    return Test(Answer.UNKNOWN, frozenset().union(*(t.why for t in tests)))


def every(tests: Sequence[Test]) -> Test:
    """AND; of nothing: yes."""
    found = YES
    for test in tests:
        if test.answer is Answer.NO:
            return NO
        if test.answer is Answer.UNKNOWN:
            found = test
    return _in_doubt(tests) if found.answer is Answer.UNKNOWN else YES


def some(tests: Sequence[Test]) -> Test:
    """OR; of nothing: no."""
    found = NO
    for test in tests:
        if test.answer is Answer.YES:
            return YES
        if test.answer is Answer.UNKNOWN:
            found = test
    return _in_doubt(tests) if found.answer is Answer.UNKNOWN else NO


# --- one rule against one item and one reader (CS-24) -----------------------------------------


@dataclass(frozen=True, slots=True)
class _Case:
    asked: Request
    item: Item
    reader: str | None
    """None: not known who reads."""


def purposes_above(purpose: str) -> frozenset[str]:
    """The purpose itself and its ancestors."""
    above = {purpose}
    here = PURPOSE_ABOVE.get(purpose)
    while here is not None:
        above.add(here)
        here = PURPOSE_ABOVE.get(here)
    return frozenset(above)


def _sensitivities_above(code: str) -> frozenset[str]:
    above = {code}
    for parent in SENSITIVITY_ABOVE[code]:
        above |= _sensitivities_above(parent)
    return frozenset(above)


SENSITIVITIES_ABOVE: Final[Mapping[str, frozenset[str]]] = MappingProxyType(
    {code: _sensitivities_above(code) for code in SENSITIVITY_ABOVE}
)
"""Each code with all its ancestors."""


def labelled(
    labels: frozenset[Code] | None, codes: frozenset[Code] | None
) -> frozenset[Code] | None:
    """The labels of what is to be an item, and those its diagnoses bring, again at use (CS-59).

    None stays not assessed. The decision itself takes an item's labels as they are: else it
    would release more of an item whose codes are forgotten (CP7).
    """
    if labels is None or not codes:
        return labels
    return labels | frozenset(
        Code(ACT_CODE, label)
        for code in codes
        if code.system in ICD_SYSTEMS and code.code is not None
        for first, last, brought in LABELLED_BY
        if first <= code.code.strip().upper()[:3] <= last
        for label in brought
    )


def _period(rule: Rule, case: _Case) -> Test:
    return YES if rule.period is None else _truth(case.asked.at in rule.period)


def _purpose(code: Code, case: _Case) -> Test:
    if code.system != ACT_REASON or code.code is None:
        return unknown(Reason.UNKNOWN_CONDITION)
    if code.code in purposes_above(case.asked.purpose):
        return YES
    known = code.code in PURPOSE_ABOVE and case.asked.purpose in PURPOSE_ABOVE
    return NO if known else unknown(Reason.UNKNOWN_CONDITION)


def _action(code: Code, case: _Case) -> Test:
    asked = case.asked.action
    if code.system != CONSENT_ACTION or code.code not in ACTIONS or asked not in ACTIONS:
        return unknown(Reason.UNKNOWN_CONDITION)
    return _truth(code.code == asked or (code.code in FLOW and asked in FLOW))


def _one_of(named: str, known: frozenset[str]) -> Test:
    """Whether `named` is one of `known`; of a foreign address it cannot be said that it is not."""
    if named in known:
        return YES
    return unknown(Reason.UNKNOWN_ACTOR) if is_foreign(named) else NO


def _recipient(who: Reference, case: _Case) -> Test:
    directory, reader = case.asked.directory, case.reader
    named = directory.resolve(who)
    if named is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    if named == reader:
        return YES
    kind = kind_of(named)
    if kind in CATEGORIES:
        if not directory.knows_group(named):
            return unknown(Reason.UNKNOWN_ACTOR)
        if reader is None:
            return unknown(Reason.UNKNOWN_READERS)
        return _truth(named in directory.groups.get(reader, frozenset()))
    if kind == "Organization" or is_foreign(named):
        return _one_of(named, directory.upwards(case.asked.recipient))
    if kind not in PEOPLE:
        return unknown(Reason.UNKNOWN_ACTOR)
    if reader is None and directory.works_at(named, case.asked.recipient):
        return unknown(Reason.UNKNOWN_READERS)
    return NO


def _held_by(who: Reference, holder: str | None, case: _Case, missing: Reason) -> Test:
    """Whether `who` is `holder` (a custodian, an author) or above it."""
    directory = case.asked.directory
    named = directory.resolve(who)
    if named is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    if holder is None:
        return unknown(missing)
    holders = directory.holders(holder)
    if any(named in directory.upwards(h) or named in directory.groups.get(h, ()) for h in holders):
        return YES
    kind = kind_of(named)
    if is_foreign(named) or (kind in CATEGORIES and not directory.knows_group(named)):
        return unknown(Reason.UNKNOWN_ACTOR)
    if any(kind_of(h) in CATEGORIES for h in holders):
        return unknown(missing)  # a team, or a role nobody is known to hold
    # A person wrote it: for this organisation or for another one of theirs, nobody says.
    works_there = any(named in directory.upwards(o) for h in holders for o in directory.of(h))
    return unknown(missing) if works_there else NO


def _actor(actor: Actor, case: _Case) -> Test:
    role = actor.role
    if role.system not in ROLE_SYSTEMS or role.code is None:
        return unknown(Reason.UNKNOWN_ACTOR)
    if role.system == PARTICIPATION:
        if role.code in RECIPIENT_ROLES:
            return _recipient(actor.who, case)
        if role.code == "CST":
            return _held_by(actor.who, case.item.custodian, case, Reason.UNKNOWN_ACTOR)
        if role.code == "AUT":
            return _held_by(actor.who, case.item.author, case, Reason.UNKNOWN_AUTHOR)
        if role.code not in PARTICIPATIONS:
            return unknown(Reason.UNKNOWN_ACTOR)
    match = _recipient(actor.who, case)
    return NO if match.answer is Answer.NO else unknown(Reason.UNKNOWN_ACTOR)


def _is_author(actor: Actor) -> bool:
    return actor.role.system == PARTICIPATION and actor.role.code == "AUT"


def _sensitivity_of(code: Code) -> str | None:
    """The sensitivity it names, if it names one that we know."""
    return code.code if code.system == ACT_CODE and code.code in SENSITIVITY_ABOVE else None


def _level(code: Code) -> int | None:
    if code.system == CONFIDENTIALITY and code.code in LEVELS:
        return LEVELS.index(code.code)
    return None


def confidentiality(labels: frozenset[Code]) -> int:
    """Index into LEVELS: the label's, else N; at least R with any sensitivity label (CS-24)."""
    levels = [level for code in labels if (level := _level(code)) is not None]
    stated = max(levels, default=NORMAL)
    sensitive = any(_level(code) is None for code in labels)
    return max(stated, RESTRICTED) if sensitive else stated


def _labels(rule: Rule, case: _Case) -> Test:
    labels = case.item.labels
    if labels is None:
        return unknown(Reason.UNKNOWN_LABEL)
    deny = rule.effect is Effect.DENY
    held = confidentiality(labels)
    tests = []
    for code in rule.labels:
        level = _level(code)
        if level is not None:
            tests.append(_truth(held >= level if deny else held <= level))
        elif _sensitivity_of(code) is None:
            tests.append(unknown(Reason.UNKNOWN_CONDITION))
    named = frozenset(kind for code in rule.labels if (kind := _sensitivity_of(code)) is not None)
    if named:
        tests.append(_sensitivity_denied(labels, named) if deny else _sensitivity(labels, named))
    return some(tests)


def _sensitivity_denied(labels: frozenset[Code], named: frozenset[str]) -> Test:
    """A deny: any label of the item is one of these or under one; an ancestor may be."""
    tests = []
    for code in labels:
        if _level(code) is not None:
            continue
        kind = _sensitivity_of(code)
        if kind is None:
            tests.append(unknown(Reason.UNKNOWN_LABEL))
        elif SENSITIVITIES_ABOVE[kind] & named:
            tests.append(YES)
        elif any(kind in SENSITIVITIES_ABOVE[n] for n in named):
            tests.append(unknown(Reason.UNKNOWN_LABEL))
    return some(tests)


def _sensitivity(labels: frozenset[Code], named: frozenset[str]) -> Test:
    """A permit: the item has sensitivity labels, and every one is one of these or under one."""
    tests = []
    for code in labels:
        if _level(code) is not None:
            continue
        kind = _sensitivity_of(code)
        if kind is None:
            tests.append(unknown(Reason.UNKNOWN_LABEL))
        else:
            tests.append(_truth(bool(SENSITIVITIES_ABOVE[kind] & named)))
    return every(tests) if tests else NO


def _class(code: Code, case: _Case) -> Test:
    if code.system != RESOURCE_TYPES or code.code not in R4_TYPES:
        return unknown(Reason.UNKNOWN_CONDITION)
    return _truth(code.code == case.item.kind)


def _code(code: Code, case: _Case) -> Test:
    codes = case.item.codes
    if code.system is None or code.code is None:
        return unknown(Reason.UNKNOWN_CONDITION)
    if codes is None:
        return unknown(Reason.UNKNOWN_CODE)
    if code in codes:
        return YES
    if codes and all(c.system != code.system for c in codes):
        return unknown(Reason.UNKNOWN_CODE)
    return NO


def _data_period(rule: Rule, period: Period, item: Item) -> Test:
    if item.start is None:
        return unknown(Reason.UNKNOWN_DATE)
    first, last = sorted((item.start, item.end or item.start))
    if rule.effect is Effect.DENY:
        begun = period.end is None or first <= period.end
        return _truth(begun and (period.start is None or last >= period.start))
    return _truth(first in period and last in period)


def _datum(datum: Datum, case: _Case) -> Test:
    item = case.item
    if datum.meaning == "authoredby":
        return _held_by(datum.what, item.author, case, Reason.UNKNOWN_AUTHOR)
    named = case.asked.directory.resolve(datum.what)
    if named is None or datum.meaning not in {"instance", "related", "dependents"}:
        return unknown(Reason.UNKNOWN_CONDITION)
    own = {item.reference}
    if datum.meaning != "instance":
        own |= {r for r in (item.encounter, item.episode) if r is not None}
    if named in own:
        return YES
    return unknown(Reason.UNKNOWN_CONDITION) if is_foreign(named) else NO


def _actors(rule: Rule, case: _Case) -> Test:
    return some([_actor(a, case) for a in rule.actors]) if rule.actors else YES


def _rest_of_request(rule: Rule, case: _Case) -> Test:
    """Period, purpose and action: the request part without its actors."""
    tests = [_period(rule, case)]
    if rule.purposes:
        tests.append(some([_purpose(c, case) for c in rule.purposes]))
    if rule.actions:
        tests.append(some([_action(c, case) for c in rule.actions]))
    return every(tests)


def _request_part(rule: Rule, rest: Test, case: _Case) -> Test:
    """CS-23. Actors are about the item if one of them is its author."""
    return rest if rule.of_author else every([rest, _actors(rule, case)])


def _item_part(rule: Rule, case: _Case) -> Test:
    """CS-23."""
    tests = []
    if rule.data_period is not None:
        tests.append(_data_period(rule, rule.data_period, case.item))
    if rule.labels:
        tests.append(_labels(rule, case))
    if rule.classes:
        tests.append(some([_class(c, case) for c in rule.classes]))
    if rule.codes:
        tests.append(some([_code(c, case) for c in rule.codes]))
    if rule.data:
        tests.append(some([_datum(d, case) for d in rule.data]))
    if rule.of_author:
        tests.append(_actors(rule, case))
    return every(tests)


# --- one Consent against one item and one reader (CS-20 to CS-25) -----------------------------


class _Say(StrEnum):
    PERMIT = "permit"
    DENY = "deny"
    IMPLICIT_DENY = "implicit-deny"
    SILENT = "silent"


@dataclass(frozen=True, slots=True)
class _Voice:
    say: _Say
    why: frozenset[Reason] = frozenset()
    """What was unknown on the way, or why a grant was not heard."""
    labelled: bool = False
    """A permit by a rule that names the item's labels (CS-45)."""


_SILENT: Final = _Voice(_Say.SILENT)


class _Mood(Enum):
    """How an *unknown* is taken."""

    SOBER = "sober"
    """A deny applies unless "no", a permit grants only on "yes" (CS-05)."""
    HOPEFUL = "hopeful"
    """The second evaluation of CS-34: every unknown resolved towards release."""

    def stands(self, deny: Test) -> bool:
        if self is _Mood.HOPEFUL:
            return deny.answer is Answer.YES
        return deny.answer is not Answer.NO

    def grants(self, permit: Test) -> bool:
        if self is _Mood.HOPEFUL:
            return permit.answer is not Answer.NO
        return permit.answer is Answer.YES


@dataclass(frozen=True, slots=True)
class _Matched:
    """How one rule matches a request and an item; with its children all a verdict needs."""

    rule: Rule
    rest: Test
    request: Test
    item: Test
    children: tuple["_Matched", ...]

    @property
    def both(self) -> Test:
        return every([self.request, self.item])


def _joined(voices: Iterable[_Voice]) -> frozenset[Reason]:
    return frozenset().union(*(v.why for v in voices))


def _walk(found: _Matched, mood: _Mood, above: Test, *, root: bool) -> _Voice:
    """CS-25. `above`: whether every deny above matches (4)."""
    rule = found.rule
    if found.request.answer is Answer.NO:
        return _survivors(found, mood)
    both = found.both
    below = above if rule.effect is Effect.PERMIT else every([above, both])
    voices = [_walk(child, mood, below, root=False) for child in found.children]
    voice = _spoken(voices) or _own_voice(found, _joined(voices), mood, above, root=root)
    if rule.effect is Effect.PERMIT and voice.say is _Say.PERMIT and not mood.grants(found.request):
        return _Voice(_Say.SILENT, found.request.why | voice.why)
    return voice


def _spoken(voices: Sequence[_Voice]) -> _Voice | None:
    """CS-25 (2): deny if one denies, else permit; None if none speaks."""
    for say in (_Say.DENY, _Say.PERMIT):
        if heard := [v for v in voices if v.say is say]:
            return _Voice(say, _joined(voices), all(v.labelled for v in heard))
    return None


def _own_voice(
    found: _Matched, doubts: frozenset[Reason], mood: _Mood, above: Test, *, root: bool
) -> _Voice:
    """CS-25 (3) to (5)."""
    if found.rule.effect is Effect.DENY:
        stands = mood.stands(found.both)
        return _Voice(_Say.DENY if stands else _Say.SILENT, found.both.why | doubts)
    if mood.grants(found.item):
        say = _Say.PERMIT if mood.grants(above) else _Say.SILENT
        return _Voice(say, found.item.why | above.why | doubts, bool(found.rule.labels))
    return _Voice(_Say.IMPLICIT_DENY if root else _Say.SILENT, found.item.why | doubts)


def _survivors(found: _Matched, mood: _Mood) -> _Voice:
    """CS-25 (1): a restriction naming this reader survives under a permit for another.

    That the parent's other tests are not "no" means that it has actors, who missed.
    """
    own = [
        every([found.rest, child.both])
        for child in found.children
        if child.rule.effect is Effect.DENY and child.rule.actors
    ]
    doubts = frozenset().union(*(test.why for test in own))
    if any(mood.stands(test) for test in own):
        return _Voice(_Say.DENY, doubts)
    return _Voice(_Say.SILENT, doubts)


_Row = tuple[Test, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """Answers in the order of `Rule.tree`, and a short name for this pair of rows."""

    rest: _Row
    request: _Row
    item: _Row
    key: tuple[int, int]


_NO_ROWS: Final = _Rows((), (), (), (0, 0))


class _Speaker:
    """One Consent during one decision, which asks it nothing twice.

    How a rule matches the request depends on the reader alone, and how it matches an item on
    the item alone (on both if an author is among its actors); and many items match alike. So
    the tree is walked once for each pair of rows of answers, not for each item and reader
    (CS-37, time).
    """

    def __init__(self, directive: Directive, asked: Request, policy: Policy) -> None:
        self.directive = directive
        self.computable = is_computable(directive)
        self._asked = asked
        self._policy = policy
        root = directive.root
        if root is not None and root.effect is None:
            root = replace(root, effect=_left_to(directive.base))
        self._root = root
        self._rules = tuple(root.tree()) if root is not None else ()
        self._by_reader = any(rule.of_author for rule in self._rules)
        self._requests: dict[tuple[str | None, str | None], tuple[_Row, _Row, int]] = {}
        self._items: dict[_Row, int] = {}
        self._sober: dict[tuple[int, int], _Voice] = {}
        self._hopeful: dict[tuple[int, int], _Voice] = {}

    def _item_row(self, item: Item, reader: str | None) -> tuple[_Row, int]:
        case = _Case(self._asked, item, reader)
        row = tuple([_item_part(rule, case) for rule in self._rules])
        return row, self._items.setdefault(row, len(self._items))

    def _request_rows(self, item: Item, reader: str | None) -> tuple[_Row, _Row, int]:
        """Of the item only its custodian matters to a request."""
        key = (reader, item.custodian)
        if key not in self._requests:
            case = _Case(self._asked, item, reader)
            rest = tuple([_rest_of_request(rule, case) for rule in self._rules])
            request = [_request_part(r, t, case) for r, t in zip(self._rules, rest, strict=True)]
            self._requests[key] = (rest, tuple(request), len(self._requests))
        return self._requests[key]

    def rows(self, item: Item, readers: Sequence[str | None]) -> list[_Rows]:
        """How its rules match `item` and each of `readers`; nothing, if it is not computable."""
        if not self.computable:
            return [_NO_ROWS] * len(readers)
        shared = None if self._by_reader else self._item_row(item, None)
        found = []
        for reader in readers:
            row, number = shared or self._item_row(item, reader)
            rest, request, other = self._request_rows(item, reader)
            found.append(_Rows(rest, request, row, (number, other)))
        return found

    def voice(self, rows: _Rows, mood: _Mood) -> _Voice:
        """What it says where its rules match so."""
        if not self.computable:
            say = _Say.PERMIT if mood is _Mood.HOPEFUL else _Say.DENY
            return _Voice(say, frozenset({Reason.NOT_COMPUTABLE}))
        known = self._hopeful if mood is _Mood.HOPEFUL else self._sober
        if rows.key not in known:
            known[rows.key] = self._voice(rows.rest, rows.request, rows.item, mood)
        return known[rows.key]

    def _voice(self, rest: _Row, request: _Row, item: _Row, mood: _Mood) -> _Voice:
        """With what limits its grants as a whole (CS-15, CS-16)."""
        directive, asked = self.directive, self._asked
        voice = self._rules_say(rest, request, item, mood)
        if voice.say is not _Say.PERMIT:
            return voice
        if directive.dated is not None and directive.dated > asked.at:
            return _Voice(_Say.SILENT, voice.why)
        if _relatives_matter(directive, asked, self._policy):
            grown = _is_fourteen(asked, self._policy)
            if grown is None:
                say = _Say.PERMIT if mood is _Mood.HOPEFUL else _Say.SILENT
                return _Voice(say, voice.why | {Reason.UNKNOWN_AGE}, voice.labelled)
            if grown:
                return _Voice(_Say.SILENT, voice.why | {Reason.PERFORMER_NOT_ENTITLED})
        return voice

    def _rules_say(self, rest: _Row, request: _Row, item: _Row, mood: _Mood) -> _Voice:
        """CS-20 to CS-22."""
        base, above = self.directive.base, purposes_above(self._asked.purpose)
        reached = bool(above & self._policy.optin_purposes)
        if self._root is None:
            if base is Base.EMRGONLY and "ETREAT" in above:
                return _Voice(_Say.PERMIT)
            return _Voice(_base_alone(base, reached=reached))
        if not is_in_force(self._root, self._asked.at):
            return _SILENT
        root = _matched(self._root, iter(zip(rest, request, item, strict=True)))
        if _is_container(self.directive):
            voices = [_walk(child, mood, YES, root=False) for child in root.children]
            spoken = _spoken(voices)
            return spoken or _Voice(_base_alone(base, reached=reached), _joined(voices))
        voice = _walk(root, mood, YES, root=True)
        if voice.say in {_Say.PERMIT, _Say.DENY}:
            return voice
        if base is not None and base.effect is Effect.DENY:
            return _Voice(_Say.DENY, voice.why)
        if voice.say is _Say.IMPLICIT_DENY:
            return voice
        if base is not None and self._root.effect is Effect.DENY and reached:
            return _Voice(_Say.PERMIT, voice.why)
        return voice


def _matched(rule: Rule, answers: Iterator[tuple[Test, Test, Test]]) -> _Matched:
    """`rule` and its tree with their answers, which stand in the order of `Rule.tree`."""
    rest, request, item = next(answers)
    children = tuple([_matched(child, answers) for child in rule.children])
    return _Matched(rule, rest, request, item, children)


def _base_alone(base: Base | None, *, reached: bool) -> _Say:
    """CS-20: what the base answers where no rule speaks."""
    if base is None:
        return _Say.SILENT
    if base.effect is Effect.DENY:
        return _Say.DENY
    return _Say.PERMIT if reached else _Say.SILENT


def is_in_force(root: Rule, at: datetime) -> bool:
    """CS-14."""
    return root.period is None or at in root.period


def _is_container(directive: Directive) -> bool:
    """CS-21: a root without type or condition holds exceptions to the base and is none itself."""
    root = directive.root
    return root is not None and root.effect is None and root.bare


def _left_to(base: Base | None) -> Effect:
    """CS-21: what a root without type is, an exception to its base. (A container is not walked,
    nor is one without base, which is not computable.)
    """
    return Effect.PERMIT if base is not None and base.effect is Effect.DENY else Effect.DENY


def is_computable(directive: Directive) -> bool:
    """CS-13, judged on the whole Consent before its period."""
    if not directive.computable or directive.version is None:
        return False
    root = directive.root
    if root is None:
        return directive.base is not None
    if root.effect is None and directive.base is None:
        return False
    return all(rule.effect is not None for child in root.children for rule in child.tree())


def _relatives_matter(directive: Directive, asked: Request, policy: Policy) -> bool:
    """CS-16: all performers are RelatedPerson, those named by identifier alone included."""
    if policy.profile is not Profile.QC:
        return False
    if directive.by_relatives_alone:
        return True
    named = [asked.directory.resolve(who) for who in directive.performers]
    return bool(named) and all(n is not None and "RelatedPerson" in n.split("/") for n in named)


def _fourteenth_birthday(born: date) -> date:
    try:
        return born.replace(year=born.year + 14)
    except ValueError:  # 29 February
        return date(born.year + 14, 3, 1)


def _is_fourteen(asked: Request, policy: Policy) -> bool | None:
    if asked.birth_date is None:
        return None
    return asked.at.astimezone(policy.zone).date() >= _fourteenth_birthday(asked.birth_date)


# --- all Consents, one item (CS-30 to CS-34) --------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Heard:
    """What all Consents together say of one item to one reader."""

    say: _Say
    released: bool
    reasons: frozenset[Reason]
    basis: frozenset[str]
    conflict: bool = False
    labelled: bool = False


MOMENT: Final = timedelta(microseconds=1)
_OLDEST: Final = datetime.min.replace(tzinfo=UTC)
_LAST: Final = datetime.max.replace(tzinfo=UTC)
_Voiced = tuple[Directive, _Voice]


def _hear(voices: Sequence[_Voiced], asked: Request, policy: Policy, mood: _Mood) -> _Heard:
    """CS-30 to CS-32. The reasons of a refusal are those that stay if nothing is in doubt."""
    denies = [(d, v) for d, v in voices if v.say is _Say.DENY]
    permits = [(d, v) for d, v in voices if v.say is _Say.PERMIT]
    if denies:
        newest = max(d.dated or _OLDEST for d, _ in denies)
        newer = [(d, v) for d, v in permits if (d.dated or _OLDEST) > newest]
        if newer and mood is _Mood.HOPEFUL:
            return _permitted(newer)
        restricted = frozenset({Reason.RESTRICTED})
        basis = _names(denies + newer)
        return _Heard(_Say.DENY, False, restricted, basis, conflict=bool(newer))
    if permits:
        return _permitted(permits)
    if implicit := [(d, v) for d, v in voices if v.say is _Say.IMPLICIT_DENY]:
        not_covered = frozenset({Reason.NOT_COVERED})
        return _Heard(_Say.IMPLICIT_DENY, False, not_covered, _names(implicit))
    under_treatment = "TREAT" in purposes_above(asked.purpose)
    if policy.default is Default.IMPLIED and under_treatment and asked.circle:
        return _Heard(_Say.SILENT, True, frozenset({Reason.IMPLIED}), frozenset())
    void = [(d, v) for d, v in voices if Reason.PERFORMER_NOT_ENTITLED in v.why]
    reason = Reason.PERFORMER_NOT_ENTITLED if void else Reason.NO_CONSENT
    return _Heard(_Say.SILENT, False, frozenset({reason}), _names(void))


def _permitted(permits: Sequence[_Voiced]) -> _Heard:
    labelled = any(v.labelled for _, v in permits)
    reasons = frozenset({Reason.PERMITTED})
    return _Heard(_Say.PERMIT, True, reasons, _names(permits), labelled=labelled)


def _names(voices: Iterable[_Voiced]) -> frozenset[str]:
    return frozenset(d.name for d, _ in voices)


def _readers(asked: Request) -> list[str | None]:
    """Each person who reads, those in a role or a team too; None: somebody unknown does."""
    found: set[str | None] = set()
    for reader in asked.readers or (None,):
        if reader is not None and kind_of(reader) in CATEGORIES:
            found |= asked.directory.members(reader) or {None}
        else:
            found.add(reader)
    return list(found)


def _look(
    speakers: Sequence[_Speaker], asked: Request, policy: Policy, item: Item
) -> tuple[Finding, tuple[_Heard, ...]]:
    """CS-33, CS-34: released if released for each reader; else would it be, were all known?"""
    readers = _readers(asked)

    def listen(mood: _Mood) -> list[list[_Voiced]]:
        return [
            [(s.directive, s.voice(rows[n], mood)) for s, rows in matched]
            for n in range(len(readers))
        ]

    matched = [(speaker, speaker.rows(item, readers)) for speaker in speakers]
    told = listen(_Mood.SOBER)
    sober = tuple([_hear(voices, asked, policy, _Mood.SOBER) for voices in told])
    basis = frozenset().union(*(h.basis for h in sober))
    if all(h.released for h in sober):
        reasons = frozenset().union(*(h.reasons for h in sober))
        explicit = all(h.say is _Say.PERMIT for h in sober)
        labelled = all(h.labelled for h in sober)
        return Finding(item.id, Outcome.RELEASE, reasons, basis, explicit, labelled), sober
    hoped = listen(_Mood.HOPEFUL)
    hopeful = [_hear(voices, asked, policy, _Mood.HOPEFUL) for voices in hoped]
    if not all(h.released for h in hopeful):
        final = frozenset().union(*(h.reasons for h in hopeful if not h.released))
        basis |= frozenset().union(*(h.basis for h in hopeful if not h.released))
        return Finding(item.id, Outcome.WITHHOLD, final, basis, explicit=False), sober
    doubts: set[Reason] = set()
    for heard, before, after in zip(sober, told, hoped, strict=True):
        if heard.released:
            continue
        if heard.conflict:
            doubts.add(Reason.CONFLICT)
        turned = [b for b, a in zip(before, after, strict=True) if b[1].say is not a[1].say]
        doubts |= _joined(v for _, v in turned)
        basis |= _names(turned)
    return Finding(item.id, Outcome.HOLD, frozenset(doubts), basis, explicit=False), sober


# --- the decision -----------------------------------------------------------------------------


def speaking(on_file: Iterable[Directive], asked: Request) -> list[Directive]:
    """CS-10 to CS-12: the latest version of each, if active, about privacy, of this patient.

    Where it cannot be known which version is the latest, none that may be is computable.
    """
    own = {asked.patient} | asked.aliases
    latest: list[Directive] = []
    for id_, versions in groupby(sorted(on_file, key=lambda d: d.id), key=lambda d: d.id):
        several = list(versions)
        newest = max((d.version for d in several if d.version is not None), default=None)
        may_be = [d for d in several if not id_ or d.version is None or d.version == newest]
        known = not id_ or (
            len({d.active for d in may_be}) == 1 and all(d.version is not None for d in may_be)
        )
        latest.extend(d if known else replace(d, computable=False) for d in may_be if d.active)
    return [d for d in latest if d.privacy and asked.directory.resolve(d.patient) in own]


def decide(on_file: Sequence[Directive], asked: Request, policy: Policy) -> Decision:
    """Total: what we cannot compute is a Hold for a person to look at, never a guess (CS-35)."""
    try:
        return _decide(on_file, asked, policy)
    except Exception:  # noqa: BLE001 - whatever it was, a person looks at it; nothing goes out (CS-01)
        return on_hold(asked, policy, Reason.DECISION_ERROR)


def _decide(on_file: Sequence[Directive], asked: Request, policy: Policy) -> Decision:
    rules = speaking(on_file, asked)
    speakers = [_Speaker(directive, asked, policy) for directive in rules]
    looked = [_look(speakers, asked, policy, item) for item in asked.items]
    findings = tuple(sorted((finding for finding, _ in looked), key=lambda f: f.item))
    released = frozenset(f.item for f in findings if f.outcome is Outcome.RELEASE)
    doubtful = frozenset(f.item for f in findings if f.outcome is Outcome.HOLD)
    found = _found([heard for _, heard in looked])
    signs = _signs(rules, asked, policy, [heard for _, heard in looked])
    basis = frozenset().union(*(f.basis for f in findings))
    if released and asked.met(released):
        return Permit(
            at=asked.at,
            recipient=asked.recipient,
            readers=asked.readers,
            found=found,
            findings=findings,
            signs=signs,
            basis=basis,
            policy=policy.name,
            released=released,
        )
    refused = [f for f in findings if f.outcome is not Outcome.RELEASE]
    on_hold = bool(doubtful) and asked.met(released | doubtful)
    if on_hold:
        refused = [f for f in refused if f.outcome is Outcome.HOLD]
    refusal = Hold if on_hold else Withhold
    return refusal(
        at=asked.at,
        recipient=asked.recipient,
        readers=asked.readers,
        found=found,
        findings=findings,
        signs=signs,
        basis=basis,
        policy=policy.name,
        reasons=frozenset().union(*(f.reasons for f in refused)),
    )


def on_hold(asked: Request, policy: Policy, reason: Reason) -> Hold:
    """A Hold of all items without a look at them: the decision itself failed (CS-01), or a
    Consent that may be this patient's could not be read at all.
    """
    why = frozenset({reason})
    ids = sorted(item.id for item in asked.items)
    return Hold(
        at=asked.at,
        recipient=asked.recipient,
        readers=asked.readers,
        found=Found.NO_CONSENT,
        findings=tuple(Finding(id_, Outcome.HOLD, why, frozenset(), explicit=False) for id_ in ids),
        signs=frozenset(),
        basis=frozenset(),
        policy=policy.name,
        reasons=why,
    )


def _found(heard: Sequence[tuple[_Heard, ...]]) -> Found:
    if any(all(h.say is _Say.PERMIT for h in readers) for readers in heard):
        return Found.PERMIT
    silenced = {_Say.DENY, _Say.IMPLICIT_DENY}
    if heard and all(any(h.say in silenced for h in readers) for readers in heard):
        return Found.DENY
    return Found.NO_CONSENT


def _signs(
    rules: Sequence[Directive],
    asked: Request,
    policy: Policy,
    heard: Sequence[tuple[_Heard, ...]],
) -> frozenset[Sign]:
    signs = set()
    if any(not is_computable(d) for d in rules):
        signs.add(Sign.NOT_COMPUTABLE)
    if any(h.conflict for readers in heard for h in readers):
        signs.add(Sign.CONFLICT_NEWER_PERMIT)
    in_force = [d for d in rules if d.root is None or is_in_force(d.root, asked.at)]
    if any(_relatives_matter(d, asked, policy) for d in in_force) and _is_fourteen(asked, policy):
        signs.add(Sign.PERFORMER_NOT_ENTITLED)
    return frozenset(signs)


def decide_again_at(
    on_file: Sequence[Directive], asked: Request, policy: Policy
) -> datetime | None:
    """The first instant after `asked.at` at which the calendar alone may change the answer:
    a period begins or ends, a Consent comes into force, the 14th birthday (CS-51).
    """
    instants: set[datetime] = set()
    for directive in speaking(on_file, asked):
        if directive.dated is not None:
            instants.add(directive.dated)
        for rule in directive.root.tree() if directive.root is not None else ():
            if rule.period is not None:
                instants |= {rule.period.start} if rule.period.start is not None else set()
                end = rule.period.end
                instants |= {end + MOMENT} if end is not None and end < _LAST else set()
        if _relatives_matter(directive, asked, policy) and asked.birth_date is not None:
            day = _fourteenth_birthday(asked.birth_date)
            midnight = datetime(day.year, day.month, day.day, tzinfo=policy.zone)
            instants.add(midnight.astimezone(UTC))
    return min((i for i in instants if i > asked.at), default=None)


# --- how much of a visit is shown (CS-44, CS-45) ----------------------------------------------


class Level(IntEnum):
    """Of the content of a visit; each level is an item of its own kind (CS-44)."""

    FACT = 1
    REASON = 2
    DOCUMENT = 3


KIND_OF_LEVEL: Final[Mapping[Level, str]] = MappingProxyType(
    {Level.FACT: "Encounter", Level.REASON: "Condition", Level.DOCUMENT: "DocumentReference"}
)


@dataclass(frozen=True, slots=True)
class Ceilings:
    """How far each ground reaches; settings of the region and of the clinic (CS-45)."""

    implied: Level = Level.FACT
    explicit: Level = Level.REASON
    agreed: Level = Level.REASON
    """By agreement with this clinic; DOCUMENT lets an explicit permit reach that far."""

    def reach(self, finding: Finding) -> Level:
        return max(self.explicit, self.agreed) if finding.explicit else self.implied

    def highest(self, *, explicit: bool) -> Level:
        """The highest level that can be shown at all; `explicit`: where there are Consents."""
        return max(self.implied, self.explicit, self.agreed) if explicit else self.implied


CEILINGS: Final = Ceilings()


@dataclass(frozen=True, slots=True)
class Detail:
    """How much of one visit a recipient may see."""

    level: Level
    named: bool
    """Its hospital may be named even if that alone would tell (CS-45)."""


def is_sensitive(labels: frozenset[Code] | None) -> bool:
    """Not assessed, or with a label that is no mere level of confidentiality."""
    return labels is None or any(_level(code) is None for code in labels)


def level_shown(
    labels: frozenset[Code] | None, findings: Mapping[str, Finding], ceilings: Ceilings
) -> Level | None:
    """The highest level of one visit whose lower levels are all released, up to its ceiling.

    `findings` are those of one visit, by kind of item. None: not even the fact is shown. A visit
    that is sensitive stays at FACT, unless explicit permits cover its labels (CS-45).
    """
    shown: Level | None = None
    for level in Level:
        finding = findings.get(KIND_OF_LEVEL[level])
        if finding is None or finding.outcome is not Outcome.RELEASE:
            break
        if level > Level.FACT:
            if level > ceilings.reach(finding):
                break
            if is_sensitive(labels) and not finding.labelled:
                break
        shown = level
    return shown


def detail(
    labels: frozenset[Code] | None, findings: Mapping[str, Finding], ceilings: Ceilings
) -> Detail | None:
    """Of one visit, as `level_shown`; None: not even the fact is shown."""
    level = level_shown(labels, findings, ceilings)
    if level is None:
        return None
    fact = findings[KIND_OF_LEVEL[Level.FACT]]
    named = fact.explicit and (fact.labelled or not is_sensitive(labels))
    return Detail(level, named)

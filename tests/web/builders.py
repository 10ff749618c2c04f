"""Views of people who do not exist, to look at pages with. One builder per noun."""

from dataclasses import replace
from datetime import UTC, date, datetime, timedelta
from uuid import UUID

from services.notify.web.views import (
    Card,
    CardPage,
    Channel,
    Clause,
    Conflict,
    Coverage,
    Crossing,
    Disclosure,
    Exclusion,
    Filter,
    Followed,
    Ground,
    Happening,
    Item,
    Measure,
    MyList,
    Outcome,
    PatientPage,
    Patients,
    Person,
    Progress,
    Refusal,
    Register,
    Report,
    Site,
    Standing,
    Step,
    Tier,
    Visit,
    Why,
)

NOW = datetime(2026, 11, 24, 19, 32, tzinfo=UTC)


def key(n: int) -> UUID:
    return UUID(int=(0x5F0C2A0E << 96) | (4 << 76) | (8 << 60) | n)


def person(n: int = 1, *, speaks: str | None = None) -> Person:
    names = [
        ("Test-Bouchard", "Aline"),
        ("Essai-Ouellet", "Normand"),
        ("Fictif-Tremblay-Desrochers", "Marie-Antoinette"),
        ("Exemple", "Odile"),
        ("Test-Nguyen", "Minh"),
        ("Essai-Lapointe", "Réjean"),
    ]
    family, given = names[n % len(names)]
    return Person(
        family=family,
        given=given,
        born=date(1950 + 7 * n % 50, 1 + n % 12, 1 + n),
        age=76 - 7 * n % 50,
        gender="female" if n % 2 == 0 else "male",
        card_ends=f"{1230 + n}",
        speaks=speaks,
    )


def crossing(count: int = 4, measure: Measure = Measure.ED) -> Crossing:
    return Crossing(measure, count, 4 if measure is Measure.ED else 3)


def card(
    n: int = 1,
    tier: Tier = Tier.TODAY,
    happening: Happening = Happening.THRESHOLD,
    *,
    progress: Progress = Progress.NEW,
    owner: str | None = "Camille Essai, inf.",
    mine: bool = False,
    takeable: bool = True,
    day: int | None = 2,
    late_days: int = 0,
    level: int = 1,
    speaks: str | None = None,
    retracted: str | None = None,
    measure: Measure = Measure.ED,
    count: int = 4,
) -> Card:
    return Card(
        key=key(n),
        version=3,
        tier=tier,
        happening=happening,
        at=NOW - timedelta(hours=5 * n, minutes=13),
        person=person(n, speaks=speaks),
        progress=progress,
        site="Hôpital fictif du Lac" if n % 2 else "Centre hospitalier fictif des Deux-Rives",
        crossing=crossing(count, measure),
        ground=Ground.IMPLIED,
        level=level,
        day=day,
        late_days=late_days,
        owner=owner,
        mine=mine,
        takeable=takeable,
        retracted=retracted,
    )


def coverage(*, silent: bool = False) -> Coverage:
    heard = NOW - timedelta(minutes=1)
    return Coverage(
        (
            Site("Hôpital fictif du Lac", heard=heard, data_from=NOW - timedelta(days=700)),
            Site(
                "Centre hospitalier fictif des Deux-Rives",
                heard=NOW - timedelta(hours=3) if silent else heard,
                data_from=NOW - timedelta(days=500),
                silent=silent,
            ),
            Site("Hôpital fictif de la Baie", heard=heard, data_from=NOW - timedelta(days=90)),
            Site("Hôpital fictif du Nord", connected=False),
        )
    )


def my_list(*cards: Card, snoozed: int = 2) -> MyList:
    return MyList(
        cards=cards,
        counts={Filter.ALL: len(cards), Filter.MINE: 1, Filter.UNASSIGNED: 1},
        due_now=sum(one.tier is Tier.NOW for one in cards),
        due_today=sum(one.tier is Tier.TODAY for one in cards),
        snoozed=snoozed,
    )


def busy_list() -> MyList:
    return my_list(
        card(1, Tier.NOW, Happening.ED_ARRIVAL, count=6, day=None, speaks="English"),
        card(
            2, Tier.NOW, Happening.DISCHARGED, measure=Measure.HOSPITAL, count=3, level=2,
            mine=True, progress=Progress.MINE, takeable=False,
        ),
        card(3, happening=Happening.THRESHOLD),
        card(4, happening=Happening.ED_DEPARTURE, owner=None, progress=Progress.SEEN, count=5),
        card(5, late_days=12, owner="Infirmière fictive Marie-Antoinette", count=17),
        card(8, mine=True, progress=Progress.MINE, takeable=False),
        card(6, Tier.DIGEST, Happening.WATCH, count=3),
        card(7, Tier.DIGEST, Happening.BELOW, count=3),
    )  # fmt: skip


def ed_visit(days_ago: float, hours: float | None = 5, **more: object) -> Item:
    start = NOW - timedelta(days=days_ago)
    told: dict[str, object] = {"counted": True, **more}
    return Item(
        kind=Measure.ED,
        start=start,
        end=None if hours is None else start + timedelta(hours=hours),
        sites=["Hôpital fictif du Lac"],
        **told,  # type: ignore[arg-type]  # a builder passes what its caller says
    )


def stay(days_ago: float, days: float, **more: object) -> Item:
    start = NOW - timedelta(days=days_ago)
    told: dict[str, object] = {"counted": True, **more}
    return Item(
        kind=Measure.HOSPITAL,
        start=start,
        end=start + timedelta(days=days),
        sites=["Hôpital fictif du Lac", "Centre hospitalier fictif des Deux-Rives"],
        **told,  # type: ignore[arg-type]  # a builder passes what its caller says
    )


def why() -> Why:
    return Why(
        standing=Standing.FLAGGED,
        clauses=[
            Clause(Measure.ED, 4, 4, met=True, days=365, will_be=3),
            Clause(Measure.HOSPITAL, 1, 3, met=False, days=365),
        ],
        items=[
            ed_visit(0.1, None, notes=["OPEN"]),
            ed_visit(114, 0.5, counted=False, reason="PLANNED", rule="CR-07"),
            stay(170, 8, notes=["LINKED"], encounters=2),
            ed_visit(170.3, 6.8, notes=["ADMITTED"]),
            ed_visit(260, 2.7),
            ed_visit(355, 2.6, notes=["LWBS"]),
            ed_visit(360, 30, counted=False, reason="SITE_RULE_9", day_only=True),
        ],
        policy="qc-default",
        policy_version=3,
        after=NOW - timedelta(days=365),
        until=NOW,
        since=NOW - timedelta(hours=1),
        hold_until=NOW + timedelta(days=180),
        changes_at=NOW + timedelta(days=10),
        changes_to=Standing.FLAGGED,
        crossing=crossing(),
        complete=False,
    )


def why_otherwise() -> Why:
    """Under a policy that counts sites, days in hospital, and each of three years (CT-31)."""
    return replace(
        why(),
        clauses=[
            Clause(Measure.ED_SITES, 3, 3, met=True, days=90, will_be=2),
            Clause(Measure.HOSPITAL_DAYS, 34, 31, met=True, days=365, earlier=[41, 33]),
        ],
        policy="sites-and-nights",
        crossing=Crossing(Measure.ED_SITES, 3, 3, 90),
    )


def card_page(shown: Card | None = None, explained: Why | None = None) -> CardPage:
    told = explained or why()
    newest = replace(
        told.items[0],
        causes=["J44.1 (CIM-10-CA)", "I50.0 (CIM-10-CA)"],
        ended=["home"],
        summaries=[key(77)],
    )
    return CardPage(
        card=shown or replace(card(level=3), ground=Ground.GIVEN),
        why=replace(told, items=[newest, *told.items[1:]]),
        history=[
            Step(NOW - timedelta(hours=4), Progress.NEW),
            Step(NOW - timedelta(hours=3), Progress.SEEN, "Camille Essai, inf."),
        ],
    )


def conflict() -> Conflict:
    return Conflict(
        card(progress=Progress.MINE, owner="Dominique Exemple, inf."),
        Step(NOW - timedelta(minutes=2), Progress.MINE, "Dominique Exemple, inf."),
    )


def register(*, empty: bool = False) -> Register:
    if empty:
        return Register((), ())
    return Register(
        refusals=[
            Refusal(
                NOW - timedelta(minutes=4), key(11), "Clinique fictive des Érables",
                Outcome.WITHHOLD, ["restricted"], person(1), ["Consent/TEST-consent-01/_history/2"],
            ),
            Refusal(
                NOW - timedelta(hours=4), key(12), "Clinique fictive du Vieux-Port",
                Outcome.HOLD, ["not-computable", "unknown-label"], person(2),
                ["Consent/TEST-consent-07/_history/1"],
            ),
            Refusal(
                NOW - timedelta(days=2), key(13), "Clinique fictive des Érables",
                Outcome.WITHHOLD, ["no-consent"], None,
            ),
        ],
        disclosures=[
            Disclosure(
                NOW - timedelta(minutes=9), key(14), "Clinique fictive des Érables", Channel.PAGE,
                person(3), "Camille Essai, inf.", 1,
            ),
            Disclosure(
                NOW - timedelta(hours=1), key(15), "Clinique fictive du Vieux-Port", Channel.PUSHED,
                person(4), None, 2, ["Consent/TEST-consent-03/_history/1"],
            ),
        ],
        more=True,
    )  # fmt: skip


def patients(*, empty: bool = False) -> Patients:
    people = [
        Followed(key(n), person(n), standing, n + 3, n % 2, NOW - timedelta(days=n))
        for n, standing in enumerate((Standing.FLAGGED, Standing.WATCH, Standing.BELOW), start=1)
    ]
    return Patients([] if empty else people, more=not empty)


def patient_page() -> PatientPage:
    """Three visits: one counts, one was taken out a moment ago, one was put back."""

    def item(days: int, *, counted: bool = True, stay: bool = False) -> Item:
        start = NOW - timedelta(days=days)
        return Item(
            kind=Measure.HOSPITAL if stay else Measure.ED,
            start=start,
            end=start + timedelta(hours=5),
            sites=["Hôpital fictif A"],
            counted=counted,
            reason=None if counted else "MANUAL",
            rule=None if counted else "CT-17",
        )

    def said(version: int, *, excluded: bool) -> Exclusion:
        return Exclusion(
            version=version,
            excluded=excluded,
            at=NOW - timedelta(minutes=2 + version),
            by="Claude Fictif",
            reason="registered-twice" if excluded else None,
            note="Inscrite à l'accueil, puis au triage.",
            waits=excluded,
        )

    visits = [
        Visit(key(71), NOW - timedelta(days=2), [item(2), item(2, stay=True)]),
        Visit(key(72), NOW - timedelta(days=9), [item(9, counted=False)], said(1, excluded=True)),
        Visit(key(73), NOW - timedelta(days=30), [item(30)], said(2, excluded=False)),
    ]
    return PatientPage(
        key=key(1),
        person=person(1),
        standing=Standing.WATCH,
        counted_at=NOW - timedelta(minutes=4),
        policy="qc-default",
        policy_version=1,
        visits=visits,
    )


def report(language: str, for_patient: bool) -> Report:
    said = (
        "Qui a été informé de vos visites à l'hôpital\n" if language == "fr" else "Who was told\n"
    )
    return Report(said, language, for_patient)

"""What the simulated hospitals send: legal R4, in order per patient, with the noise of a feed."""

import json
from collections import Counter, defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
from fhir.resources.R4B.bundle import Bundle
from fhir.resources.R4B.consent import Consent
from fhir.resources.R4B.encounter import Encounter
from fhir.resources.R4B.patient import Patient

from services.ingest import gate, reading, verbatim
from services.ingest.flow import rules_of
from services.ingest.reading import Reason
from services.notify import panel
from services.plumbing.identifiers import normalise
from services.plumbing.region import load
from services.simulator import cast, fhir, papers
from services.simulator.feed import Kind, Message, feed
from services.simulator.flow import REGION_FILE
from services.simulator.hospital import BATCH, waves
from services.simulator.life import Care, Leaving, Service
from services.simulator.profiles import Profile, profile
from services.simulator.region import Flaw, memberships, person

MODELS: dict[str, Any] = {
    "Encounter": Encounter,
    "Patient": Patient,
    "Bundle": Bundle,
    "Consent": Consent,
}


@cache
def demo() -> tuple[Profile, list[Message]]:
    region = profile("demo")
    return region, feed(region, region.days, cast.messages(region))


@cache
def clean() -> list[Message]:
    return feed(profile("demo", clean=True), 365)


def of(number: int) -> list[Message]:
    """What is sent of the scripted person D-`number`."""
    return [each for each in demo()[1] if each.lane == cast.FIRST + number]


def assert_legal(resource: dict[str, Any]) -> None:
    """By the model, by base R4's own table, and by the door's gate."""
    kind = resource["resourceType"]
    MODELS[kind].model_validate(resource)
    if kind in ("Encounter", "Patient"):
        piece = verbatim.read(json.dumps(resource).encode())
        assert gate.check(piece.tree, piece.text, kind) == []


def test_every_resource_that_is_put_is_legal() -> None:
    region, messages = demo()
    for message in messages:
        site = region.sites[message.site]
        assert_legal(fhir.put(site, message.site == 1, message)[1])


def test_every_notification_is_legal_and_complete() -> None:
    """HA-42, HA-43"""
    region, messages = demo()
    for message in messages[::3]:
        if message.site == 0 and message.kind not in (Kind.PATIENT, Kind.TAKEN_BACK):
            bundle = fhir.notification(region.sites[0], message)
            assert_legal(bundle)
            header, encounter, patient = (entry["resource"] for entry in bundle["entry"])
            assert header["focus"] == [{"reference": bundle["entry"][1]["fullUrl"]}]
            assert encounter["subject"]["reference"] == bundle["entry"][2]["fullUrl"]
            assert_legal(encounter)
            assert_legal(patient)
            assert header["eventCoding"]["code"] in {
                "notification-admit",
                "notification-transfer",
                "notification-discharge",
            }


def test_every_batch_and_consent_is_legal() -> None:
    region, messages = demo()
    wave = next(waves([each for each in messages if each.site == 1], BATCH))
    assert_legal(fhir.batch([fhir.put("hospital-b", True, each) for each in wave]))
    consents = [consent for _, consent in papers.consents(region)]
    assert len(consents) > 100
    for consent in consents:
        assert_legal(consent)


def test_the_door_reads_what_the_region_means() -> None:
    """The demo's region file maps every code that its hospitals send."""
    region, messages = demo()
    file = load(REGION_FILE)
    rules = {site: rules_of(file, site) for site in region.sites}
    holds: Counter[Reason] = Counter()
    for message in messages:
        if message.encounter is None:
            continue
        sent, site = message.encounter, region.sites[message.site]
        tree = fhir.put(site, message.site == 1, message)[1]
        read = reading.read_encounter(
            tree,
            rules[site],
            digest="",
            told_at=reading.event_time(tree, rules[site], message.sent),
            now=message.sent,
        )
        said = read.message
        assert said.event_time == message.at
        assert said.code == (None if sent.unmapped else sent.classes[-1][0])
        assert said.service == (SERVICES[sent.service] if sent.service else None)
        assert said.disposition == (DISPOSITIONS.get(sent.leaving) if sent.leaving else None)
        assert bool(said.planned) is sent.planned
        assert bool(said.transfer_in) is sent.transfer_in
        assert bool(said.from_emergency) is sent.from_ed
        assert {code.code for code in said.labels or ()} >= ({sent.label} if sent.label else set())
        if read.hold:
            holds[read.hold.reason] += 1
            assert sent.unmapped or sent.shifted
            expected = Reason.UNKNOWN_CLASS if sent.unmapped else Reason.FUTURE
            assert read.hold.reason is expected
    assert holds[Reason.UNKNOWN_CLASS] < 30


SERVICES = {
    Service.OBSTETRICS: "obstetrics",
    Service.NEWBORN: "newborn",
    Service.DIALYSIS: "dialysis",
    Service.CHEMOTHERAPY: "series",
    Service.PALLIATIVE: "palliative",
    Service.PSYCHIATRY: "mental-health",
    Service.DAY_SURGERY: "day-surgery",
    Service.ORGAN_DONATION: "organ-donation",
}
DISPOSITIONS = {
    Leaving.HOME: "home",
    Leaving.ADMITTED: "admitted",
    Leaving.TRANSFERRED: "transferred",
    Leaving.UNSEEN: "lwbs",
    Leaving.AGAINST_ADVICE: "left-against-advice",
    Leaving.REDIRECTED: "redirected",
    Leaving.NONACUTE: "nonacute-care",
    Leaving.DIED: "died",
    Leaving.DEAD_ON_ARRIVAL: "dead-on-arrival",
}


def test_only_temporary_records_are_read_as_temporary() -> None:
    """HA-96"""
    region, messages = demo()
    file = load(REGION_FILE)
    seen = Counter[bool]()
    for message in messages:
        site = region.sites[message.site]
        tree = fhir.patient(site, message.identity, message.at)
        read = reading.read_patient(tree, rules_of(file, site), digest="", told_at=message.at)
        assert read.temporary is (message.identity.person is None)
        seen[read.temporary] += 1
    assert seen[True]


def test_ids_are_unique_save_for_messages_sent_twice() -> None:
    """SIM-06; a duplicate is the same message, byte for byte."""
    by_id: dict[str, set[str]] = defaultdict(set)
    for message in demo()[1]:
        if message.encounter is not None:
            by_id[message.id].add(json.dumps(fhir.notification("hospital-a", message)))
    assert all(len(bodies) == 1 for bodies in by_id.values())
    sent = Counter(message.id for message in demo()[1])
    assert 0.01 < sum(n > 1 for n in sent.values()) / len(sent) < 0.03


def test_every_identifier_starts_with_test_and_every_host_is_an_example() -> None:
    """SIM-06"""
    region, messages = demo()
    for message in messages[::7]:
        resource = fhir.put(region.sites[message.site], message.site == 1, message)[1]
        for identifier in resource["identifier"]:
            assert identifier["value"].startswith("TEST")
    text = json.dumps([fhir.notification("hospital-a", each) for each in clean() if each.encounter])
    hosts = {part.split("/")[0] for part in text.split("https://")[1:]}
    assert all(host == "example.ca" or host.endswith(".example.ca") for host in hosts - _CANONICAL)


_CANONICAL = {"fhir.infoway-inforoute.ca"}


def test_the_demo_has_the_size_it_should() -> None:
    """simulator.md section 7: about 1,000 encounters, about 4,500 messages in 12 months."""
    region = profile("demo")
    messages = [each for each in feed(region, region.days) if each.encounter]
    assert 4_000 < len(messages) < 5_000
    assert 900 < len({each.encounter.visit for each in messages if each.encounter}) < 1_100


def test_most_encounters_have_three_to_six_messages() -> None:
    counts = Counter(each.encounter.visit for each in clean() if each.encounter)
    usual = sum(3 <= n <= 6 for n in counts.values())
    assert usual / len(counts) > 0.9


def test_events_are_sent_after_they_happened_and_in_order() -> None:
    """Without noise, the messages of a patient come in the order of what happened."""
    last: dict[int, datetime] = {}
    for message in clean():
        assert message.sent >= message.at
        assert message.at >= last.get(message.lane, message.at)
        last[message.lane] = message.at


def test_a_patient_is_introduced_before_a_hospital_says_what_befell_them() -> None:
    known = set()
    for message in clean():
        if message.kind is Kind.PATIENT:
            known.add((message.site, message.identity.record))
        else:
            assert (message.site, message.identity.record) in known


def test_the_second_hospital_keeps_one_encounter_from_the_ed_to_the_ward() -> None:
    """CR-02 there, CR-01 and CR-03 at the first."""
    in_place = [
        [care for care, _ in each.encounter.classes]
        for each in clean()
        if each.encounter and len(each.encounter.classes) > 1
    ]
    assert in_place
    assert all(cares[:2] == [Care.ED, Care.STAY] for cares in in_place)
    sites = {each.site for each in clean() if each.encounter and len(each.encounter.classes) > 1}
    assert sites == {1}
    tied = {each.site for each in clean() if each.encounter and each.encounter.from_ed}
    assert tied == {0}


def test_class_history_ends_with_the_class() -> None:
    message = next(each for each in clean() if each.encounter and len(each.encounter.classes) > 1)
    assert message.encounter is not None
    resource = fhir.put("hospital-b", True, message)[1]
    assert [spell["class"]["code"] for spell in resource["classHistory"]] == ["EMER", "IMP"]
    assert resource["class"]["code"] == "IMP"
    assert (
        resource["classHistory"][0]["period"]["end"]
        == (resource["classHistory"][1]["period"]["start"])
    )


@pytest.mark.parametrize(
    ("parameter", "shows"),
    [
        ("duplicate", lambda sent: len({m.id for m in sent}) < len(sent)),
        ("out_of_order", lambda sent: any(m.sent - m.at > timedelta(minutes=1) for m in sent)),
        ("far_out_of_order", lambda sent: any(m.sent - m.at > timedelta(hours=6) for m in sent)),
        ("void", lambda sent: _statuses(sent)["entered-in-error"] > 0),
        ("merge", lambda sent: any(m.identity.replaced_by for m in sent)),
        ("missing_discharge", lambda sent: not _statuses(sent)["finished"]),
        ("wrong_offset", lambda sent: any(m.encounter and m.encounter.shifted for m in sent)),
        ("temporary_identity", lambda sent: any("TMP" in m.identity.record for m in sent)),
        ("unmapped_class", lambda sent: any(m.encounter and m.encounter.unmapped for m in sent)),
        ("day_only", lambda sent: any(m.encounter and m.encounter.day_only for m in sent)),
    ],
)
def test_each_noise_parameter_makes_its_noise_and_only_then(parameter: str, shows: Any) -> None:
    """simulator.md section 2"""
    quiet = profile("demo", clean=True, people=400)
    noisy = profile("demo", clean=True, people=400, **{parameter: 1.0})
    assert shows(feed(noisy, 365))
    assert parameter == "missing_discharge" or not shows(feed(quiet, 365))
    for message in feed(noisy, 365):
        assert_legal(fhir.put("hospital-a", False, message)[1])


def _statuses(sent: Iterable[Message]) -> Counter[str]:
    return Counter(each.encounter.status for each in sent if each.encounter)


def test_one_hospital_is_silent_for_six_hours_a_month() -> None:
    region = profile("demo", people=20_000, clean=True, silence=1.0)
    sent = [each for each in feed(region, 30) if each.encounter]
    longest = max(_longest_gap(sent, site) for site in (0, 1))
    assert longest >= timedelta(hours=6)
    held_back = [each for each in sent if each.sent - each.at > timedelta(minutes=5)]
    assert held_back
    assert len({each.site for each in held_back}) <= 2


def _longest_gap(sent: list[Message], site: int) -> timedelta:
    times = [each.sent for each in sent if each.site == site]
    return max((b - a for a, b in pairwise(times)), default=timedelta())


@pytest.mark.parametrize(
    ("at", "right", "wrong"),
    [
        # Winter, offset of summer: an hour early. Summer, offset of winter: ahead (CR-43).
        (datetime(2026, 1, 15, 18, 30, tzinfo=UTC), "01-15T13:30:00-05:00", "01-15T13:30:00-04:00"),
        (datetime(2026, 7, 15, 18, 30, tzinfo=UTC), "07-15T14:30:00-04:00", "07-15T14:30:00-05:00"),
    ],
)
def test_a_wrong_offset_is_that_of_the_other_season_and_keeps_the_wall_clock(
    at: datetime, right: str, wrong: str
) -> None:
    assert fhir.stamp(at) == f"2026-{right}"
    assert fhir.stamp(at, shifted=True) == f"2026-{wrong}"


def test_one_in_ten_merges_is_undone() -> None:
    region = profile("demo", clean=True, people=400, merge=1.0, merge_undone=1.0)
    by_record: dict[str, list[Message]] = defaultdict(list)
    for message in feed(region, 365):
        if message.kind is Kind.PATIENT and len(message.identity.record) > len("TEST-00000000"):
            by_record[message.identity.record].append(message)
    assert by_record
    for told in by_record.values():
        active = [(each.identity.active, each.identity.replaced_by is None) for each in told]
        assert active == [(True, True), (False, False), (True, True)]


def test_bundles_keep_the_order_of_each_patient_and_hold_no_resource_twice() -> None:
    """HA-32; SIM-08"""
    messages = [each for each in demo()[1] if each.site == 0]
    seen: dict[int, list[Message]] = defaultdict(list)
    bundles = list(waves(messages, BATCH))
    for wave in bundles:
        assert 0 < len(wave) <= BATCH
        urls = [fhir.put("hospital-a", False, each)[0] for each in wave]
        assert len(set(urls)) == len(urls)
        for each in wave:
            seen[each.lane].append(each)
    for lane, own in seen.items():
        assert own == [each for each in messages if each.lane == lane]
    longest = max(map(len, seen.values()))
    assert len(bundles) <= max(2 * len(messages) / BATCH, longest)


def _panel(text: str, clinic: str) -> panel.Reading:
    """`text` as the panel upload reads it."""

    def normal(system: str, value: str) -> tuple[str, str] | None:
        plain = normalise(system, value)
        return None if plain is None else (system, plain)

    nurses = [each.id for each in load(REGION_FILE).people if each.clinic == clinic and each.roles]
    return panel.read(text, normal, nurses)


def test_the_upload_refuses_each_bad_row_and_reads_all_others() -> None:
    """simulator.md sections 3 and 5: a few bad rows in each panel, and a file of nothing else."""
    region = profile("demo", panel_bad=0.02)
    flaws = [
        each
        for number in range(1, region.people + 1)
        for each in memberships(region, number)
        if person(region, number).card
    ]
    bad = Counter(each.clinic for each in flaws if each.flaw is Flaw.BAD)
    columns: set[str] = set()
    for sheet in papers.panels(region):
        read = _panel(sheet.csv, sheet.clinic)
        assert len({fault.row for fault in read.faults}) == bad[sheet.clinic] > 3
        assert len(read.members) + read.duplicates == sheet.rows - bad[sheet.clinic]
        columns |= {fault.column for fault in read.faults}
    assert columns == {"card_number", "birth_date", "nurse"}
    wrong = _panel(papers.bad_panel(), "clinic-a")
    assert wrong.members == ()
    assert {fault.row for fault in wrong.faults} == {n + 2 for n in range(len(papers.BAD_ROWS))}


# The cast: what each story needs, so that the screens can show it


def live() -> datetime:
    return cast.live(demo()[0])


def test_d01_comes_a_fourth_time_in_the_first_live_minute() -> None:
    """At an hour a second, the first live minute has 60 hours."""
    arrivals = {m.encounter.start for m in of(1) if m.encounter}
    assert len(arrivals) == 4
    assert live() < max(arrivals) < live() + timedelta(hours=12)


def test_d02_sends_nine_messages_in_one_episode() -> None:
    sent = [m for m in of(2) if m.at >= live() and m.encounter]
    assert len(sent) == 9
    assert [m.site for m in sent] == [0] * 6 + [1] * 3 or {m.site for m in sent} == {0, 1}
    ended = next(m.encounter.end for m in sent if m.encounter and _left(m, Leaving.TRANSFERRED))
    again = next(m.encounter.start for m in sent if m.encounter and m.site == 1)
    assert ended is not None
    assert again - ended == timedelta(hours=3)


def _left(message: Message, leaving: Leaving) -> bool:
    return message.encounter is not None and message.encounter.leaving is leaving


def test_d04_is_taken_back() -> None:
    assert [m.encounter.status for m in of(4) if m.encounter and m.at >= live()] == [
        "arrived",
        "entered-in-error",
    ]


def test_d05_is_merged_and_unmerged_at_the_second_hospital() -> None:
    told = [m.identity for m in of(5) if m.kind is Kind.PATIENT and m.site == 1 and m.at >= live()]
    assert [(each.record, each.active, each.replaced_by) for each in told] == [
        ("TEST-90000005", True, None),
        ("TEST-90000005-04", False, "TEST-90000005"),
        ("TEST-90000005-04", True, None),
    ]
    assert told[0].cards
    assert not told[1].cards


def test_d06_loses_a_visit_from_the_window_in_the_first_live_days() -> None:
    oldest = min(m.encounter.start for m in of(6) if m.encounter)
    assert live() < oldest + timedelta(days=365) < live() + timedelta(days=4)


def test_d07_is_admitted_a_third_time() -> None:
    assert len({m.encounter.visit for m in of(7) if m.encounter}) == 3


def test_d08_denies_the_nurse_of_the_panel() -> None:
    region = demo()[0]
    (consent,) = (c for _, c in papers.consents(region) if c["id"] == "TEST-consent-90000008")
    actor = consent["provision"]["actor"][0]["reference"]["reference"]
    assert (consent["provision"]["type"], actor) == ("deny", "Practitioner/nurse-b")


def test_d09_is_labelled_from_the_first_message() -> None:
    first = next(m for m in of(9) if m.encounter and m.at >= live())
    resource = fhir.put("hospital-a", False, first)[1]
    assert {"MH", "R"} == {label["code"] for label in resource["meta"]["security"]}


def test_d10_is_on_two_panels_and_d11_on_none() -> None:
    sheets = {panel.clinic: panel.csv for panel in papers.panels(demo()[0])}
    assert [c for c, text in sheets.items() if "TEST90000010" in text] == ["clinic-a", "clinic-b"]
    assert not any("TEST90000011" in text for text in sheets.values())


def test_d12_returns_as_planned_and_is_registered_again_after_ninety_minutes() -> None:
    done = {m.encounter.visit: m.encounter for m in of(12) if m.encounter}
    assert len(done) == 6
    assert sum(each.planned for each in done.values()) == 1
    ends = {each.end for each in done.values()}
    assert sum(each.start - timedelta(minutes=90) in ends for each in done.values()) == 1


def test_d13_was_a_frequent_user_before_and_is_back_in_the_first_live_days() -> None:
    arrivals = sorted({m.encounter.start for m in of(13) if m.encounter})
    assert len(arrivals) == 5
    assert arrivals[3] < live() - timedelta(days=14)
    assert live() < arrivals[4] < live() + timedelta(days=3)


def test_d14_comes_a_fourth_time_and_has_a_nurse_whom_the_demo_signs_in_as_nobody() -> None:
    arrivals = {m.encounter.start for m in of(14) if m.encounter}
    assert len(arrivals) == 4
    assert live() < max(arrivals) < live() + timedelta(hours=12)
    sheets = {panel.clinic: panel.csv for panel in papers.panels(demo()[0])}
    (row,) = (line for line in sheets["clinic-a"].splitlines() if "TEST90000014" in line)
    assert ",nurse-d," in row


def test_d15_is_identified_the_next_day() -> None:
    told = [m for m in of(15) if m.at >= live()]
    assert told[0].identity.person is None
    merged = next(m for m in told if m.identity.replaced_by)
    assert timedelta(hours=6) < merged.at - told[0].at < timedelta(hours=30)

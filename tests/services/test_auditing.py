"""`passerelle audit`: what an officer and an operator are told (CS-113, CS-114)."""

import base64
import hashlib
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import orjson
import pytest
from pydantic import SecretStr
from sqlalchemy import text

from services.plumbing import account, audit, chain, region
from services.plumbing.account import Deed, Language
from services.plumbing.audit import AuditRecord, Content, Trail
from services.plumbing.chain import Sealer
from services.plumbing.db import Database
from services.simulator.flow import REGION_FILE
from tests.conftest import FreshDatabase

NOW = datetime(2026, 11, 24, 19, 32, tzinfo=UTC)
PATIENT = UUID("3c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c03")
OTHER = UUID("4c9e2f6a-7d11-4a52-8a0a-6b1f0e9d7c04")
SECRET = base64.b64encode(hashlib.sha256(b"TEST").digest()).decode()
CONTENT = Content(("ed-visit:4", "hospital-stay:1"), "L2", ("Consent/TEST-1/_history/2",), "qc/x")


def background(after: int = 0) -> Trail:
    return Trail.background("notify", NOW + timedelta(minutes=after), "clinic-a")


def nurse(after: int = 0) -> Trail:
    return Trail(
        at=NOW + timedelta(minutes=after),
        agent="nurse-a",
        agent_kind="person",
        tenant="clinic-a",
        roles=("clinic_cm",),
    )


def decided(trail: Trail, *, permitted: bool, **changed: Any) -> AuditRecord:
    said: dict[str, Any] = {"reasons": ["implied"], "consents": [], "policy": "qc/implied"}
    return trail.decided(PATIENT, "clinic-a", permitted=permitted, **(said | changed))


def some_years() -> list[AuditRecord]:
    return [
        background().disclosed("Task/TEST-1/_history/1", PATIENT, "clinic-a", content=CONTENT),
        decided(nurse(5), permitted=True),
        nurse(5).read("Task/TEST-1/_history/1", PATIENT),
        decided(
            background(9), permitted=False, reasons=["restricted"], consents=["Consent/TEST-2"]
        ),
        Trail(at=NOW, agent="hospital-a", agent_kind="client", tenant="hospital-a").created(
            "Encounter/TEST-1/_history/1", PATIENT
        ),
    ]


# The account, pure


def test_an_account_has_each_deed_with_recipient_person_date_purpose_items_level_basis() -> None:
    written, sent, seen, refused = sorted(
        account.account(some_years()), key=lambda line: list("wsSr").index(letter(line.deed))
    )
    assert (written.recipient, written.system) == ("hospital-a", "hospital-a")
    assert (sent.recipient, sent.person, sent.at, sent.purpose) == ("clinic-a", None, NOW, "COC")
    assert (sent.items, sent.level, sent.basis) == (CONTENT.items, "L2", CONTENT.basis)
    assert (seen.person, seen.basis, seen.policy) == ("nurse-a", (), "qc/implied")
    assert (refused.reasons, refused.basis) == (("restricted",), ("Consent/TEST-2",))


def letter(deed: Deed) -> str:
    return {Deed.WRITTEN: "w", Deed.SENT: "s", Deed.SEEN: "S", Deed.REFUSED: "r"}[deed]


def test_a_deed_takes_its_ground_only_from_the_decision_of_its_own_instant() -> None:
    decision = decided(nurse(4), permitted=True, consents=["Consent/TEST-7/_history/1"])
    read = nurse(5).read("Task/TEST-1/_history/1", PATIENT)
    (line,) = account.account([decision, read])
    assert (line.basis, line.policy) == ((), None)
    (line,) = account.account([replace(decision, recorded=read.recorded), read])
    assert line.basis == ("Consent/TEST-7/_history/1",)


def test_the_patient_s_copy_says_who_was_told_and_not_who_was_refused() -> None:
    deeds = [line.deed for line in account.for_patient(account.account(some_years()))]
    assert deeds == [Deed.SENT, Deed.SEEN]


FRENCH = """\
Qui a été informé de vos visites à l'hôpital
============================================

Établi le 24 novembre 2026, 14 h 32

Date\u00a0: 24 novembre 2026, 14 h 32
Qui\u00a0: Clinique fictive de l'Arche
Quoi\u00a0: Avis envoyé (votre identité, l'hôpital, les dates, le nombre et la raison des visites; \
4 visites à l'urgence; 1 séjour à l'hôpital)
Pourquoi\u00a0: coordonner vos soins
Fondement\u00a0: ce que vous avez consenti (Consent/TEST-1/_history/2)

Date\u00a0: 24 novembre 2026, 14 h 37
Qui\u00a0: Infirmière fictive A, Clinique fictive de l'Arche
Quoi\u00a0: Dossier consulté
Pourquoi\u00a0: coordonner vos soins
Fondement\u00a0: la loi le permet pour vos soins (ce n'est pas un consentement)
"""


def test_the_patient_s_copy_is_plain_french_or_english() -> None:
    lines = account.for_patient(account.account(some_years()))
    known = region.load(REGION_FILE)
    assert account.written(lines, known, Language.FRENCH, NOW) == FRENCH
    english = account.written(lines, known, Language.ENGLISH, NOW)
    assert "Who: Infirmière fictive A, Fictitious Arch Clinic" in english
    assert "November 24, 2026, 2:37 p.m." in english
    assert "the law allows it for your care (this is not a consent)" in english


def test_an_account_of_nothing_says_so() -> None:
    said = account.written([], region.load(REGION_FILE), Language.FRENCH, NOW)
    assert said.endswith("Personne n'a été informé.\n")


def test_the_officer_s_copy_names_refusals_with_their_reason_and_policy() -> None:
    lines = account.account(some_years())
    said = account.written(lines, region.load(REGION_FILE), Language.ENGLISH, NOW, privacy=True)
    assert "Not disclosed" in said
    assert "reason: restricted [qc/implied]" in said


def test_every_word_is_there_in_both_languages() -> None:
    assert all(set(words) == set(Language) for words in account._WORDS.values())


# The commands


async def passerelle(database: FreshDatabase, *said: str) -> subprocess.CompletedProcess[str]:
    import asyncio

    environment = {
        "PATH": "/usr/bin:/bin",
        "PASSERELLE_OWNER_DATABASE_URL": database.url("owner"),
        "PASSERELLE_CHECKPOINT_KEY": SECRET,
        "PASSERELLE_REGION": str(REGION_FILE),
    }
    command = [sys.executable, "-m", "services.cli.main", "audit", *said]
    return await asyncio.to_thread(
        subprocess.run, command, env=environment, capture_output=True, text=True, check=False
    )


@pytest.fixture
async def filled(database: FreshDatabase, db: Callable[[str], Database]) -> FreshDatabase:
    for service in ("ingest", "notify"):
        async with db(service).work() as tx:
            await audit.record(tx, some_years())
            await audit.record(tx, [background().disclosed("Task/TEST-9", OTHER, "clinic-a")])
    return database


async def test_verify_says_whole_or_names_the_first_bad_position(
    filled: FreshDatabase, db: Callable[[str], Database], tmp_path: Path
) -> None:
    key = chain.signing_key(SecretStr(SECRET))
    for service in ("ingest", "notify"):
        sealer = Sealer(db(service), key=key, folder=tmp_path)
        await sealer.seal()
        await sealer.checkpoint()
    done = await passerelle(filled, "verify", "--checkpoints", str(tmp_path))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == (
        "Whole: 12 records in 4 chains, 4 checkpoints, 0 records not sealed yet.\n"
    )
    owner = await filled.owner()
    await owner.execute("update notify.audit set agent = 'nurse-b' where agent = 'nurse-a'")
    await owner.close()
    done = await passerelle(filled, "verify", "--public-key", chain.public_part(key))
    assert done.returncode == 1
    assert done.stdout.splitlines()[0] == (
        "notify/clinic-a position 2: the record, or its place, is not as it was sealed"
    )


async def test_verify_without_the_auditor_s_role_never_says_whole(filled: FreshDatabase) -> None:
    """Row security would show an empty audit to anybody else."""
    environment = {"PATH": "/usr/bin:/bin", "PASSERELLE_DATABASE_URL": filled.url("notify")}
    done = subprocess.run(
        [sys.executable, "-m", "services.cli.main", "audit", "verify"],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 2
    assert "must have been granted passerelle_auditor" in done.stderr


async def test_a_report_is_of_one_patient_and_is_itself_recorded(
    filled: FreshDatabase, db: Callable[[str], Database]
) -> None:
    done = await passerelle(filled, "report", str(PATIENT), "--by", "privacy", "--json")
    assert done.returncode == 0, done.stderr
    said = orjson.loads(done.stdout)
    assert len(said) == 4
    assert {line["deed"] for line in said} == {"sent", "seen"}
    again = await passerelle(filled, "report", str(PATIENT), "--by", "privacy", "-l", "en")
    assert "A register like this one was printed" in again.stdout
    assert "Responsable fictive de la protection, Passerelle programme" in again.stdout
    async with db("notify").work() as tx:
        asked = await tx.execute(
            text("select agent, patient, entities from audit where shape = 'Export'")
        )
        assert [tuple(row) for row in asked] == [("privacy", PATIENT, ["disclosures"])] * 2


async def test_a_report_by_nobody_is_refused(filled: FreshDatabase) -> None:
    done = await passerelle(filled, "report", str(PATIENT), "--by", "TEST-nobody")
    assert done.returncode == 2
    assert "is nobody in" in done.stderr


async def test_the_public_key_is_printed_for_whoever_verifies_elsewhere(
    database: FreshDatabase,
) -> None:
    done = await passerelle(database, "key")
    assert done.stdout.strip() == chain.public_part(chain.signing_key(SecretStr(SECRET)))

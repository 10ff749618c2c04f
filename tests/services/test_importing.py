"""`passerelle import consents FILE`: through the clinics' door, with a token (CS-56)."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx
import orjson
import pytest
from typer.testing import CliRunner

from services.cli import importing
from services.cli.main import app
from services.plumbing.db import Database
from tests.services import notify_builders as build
from tests.services.notify_door import Doorway, consent, token
from tests.services.test_notify_api import DENY_A, PERMIT_A
from tests.services.test_notify_consents import ODD, bad


@pytest.fixture
async def door(db: Callable[[str], Database]) -> AsyncIterator[Doorway]:
    made = Doorway(db("notify"), build.house())
    yield made
    await made.close()


async def send(door: Doorway, file: Path, client: str = "hospital-a") -> importing.Report:
    async def token_for() -> str:
        return token(client)

    transport = httpx.ASGITransport(app=door.app)
    async with httpx.AsyncClient(transport=transport) as http:
        base = build.BASE.removesuffix("/fhir")
        return await importing.consents(file, base, token_for, http)


def ndjson(file: Path, *resources: Any) -> Path:
    file.write_bytes(b"\n".join(r if isinstance(r, bytes) else orjson.dumps(r) for r in resources))
    return file


async def test_every_line_is_sent_in_order_and_what_is_refused_is_named_without_values(
    door: Doorway, tmp_path: Path
) -> None:
    one, other = uuid4(), uuid4()
    file = ndjson(
        tmp_path / "consents.ndjson",
        consent(one, PERMIT_A, id="TEST-1", meta={"versionId": "4"}),
        consent(one, DENY_A, id="TEST-1", meta={"versionId": "5"}),
        b"",
        bad(other, id="TEST-2"),
        b"{not json SECRET",
        {"resourceType": "Patient", "id": "SECRET"},
        consent(other, ODD, id="TEST-3"),
        consent(other, PERMIT_A),
    )
    report = await send(door, file)
    assert (report.created, report.changed, report.same, report.held) == (3, 1, 0, 1)
    assert [line.partition(":")[0] for line in report.refused] == ["line 4", "line 5", "line 6"]
    assert "Consent.status" in report.refused[0]
    assert "SECRET" not in str(report.refused)
    found = await door.client("hospital-a").get("/fhir/Consent/TEST-1")
    assert found.json()["meta"]["versionId"] == "2"
    assert found.json()["provision"]["type"] == "deny"


async def test_a_file_sent_again_changes_nothing(door: Doorway, tmp_path: Path) -> None:
    people = [uuid4() for _ in range(3)]
    resources = [consent(p, PERMIT_A, id=f"TEST-{n}") for n, p in enumerate(people)]
    file = ndjson(tmp_path / "consents.ndjson", *resources)
    await send(door, file)
    report = await send(door, file)
    assert (report.created, report.changed, report.same) == (0, 0, 3)


async def test_a_token_that_is_not_accepted_stops_it_and_says_how_far_it_came(
    door: Doorway, tmp_path: Path
) -> None:
    file = ndjson(tmp_path / "consents.ndjson", consent(uuid4(), PERMIT_A))

    async def nothing() -> str:
        return "TEST"

    async with httpx.AsyncClient(transport=httpx.ASGITransport(app=door.app)) as http:
        with pytest.raises(importing.ImportFailedError, match=r"line 1: .*not accepted"):
            await importing.consents(file, "http://127.0.0.1:8003", nothing, http)


def test_the_command_says_what_it_needs() -> None:
    done = CliRunner().invoke(app, ["import", "consents", "none.ndjson"])
    assert done.exit_code == 2
    done = CliRunner().invoke(app, ["import", "consents", "none.ndjson", "--token-file", "none"])
    assert done.exit_code == 2

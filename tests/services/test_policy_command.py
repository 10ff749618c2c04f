"""`passerelle policy` against screening's door over HTTP (CT-50, CT-51)."""

import asyncio
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from services.cli.main import app
from services.plumbing.db import Database
from services.screening import presets, registry
from tests.histories import qc_default
from tests.services.authorities import ec_key
from tests.services.screening_door import DOOR, NOW, Door, opened
from tests.web.serving import served

MINE = "name: TEST-mine\nversion: 1\nhold_days: 90\n"


@dataclass
class Command:
    """The command, with the door it is told of."""

    door: Door
    url: str
    token: Path

    async def run(self, *words: str) -> Result:
        asked = [*words, "--url", self.url, "--token-file", str(self.token)]
        return await asyncio.to_thread(CliRunner().invoke, app, ["policy", *asked])

    async def lines(self, *words: str) -> list[str]:
        answer = await self.run(*words)
        assert answer.exit_code == 0, answer.output
        return answer.stdout.splitlines()


@pytest.fixture
async def command(db: Callable[[str], Database], tmp_path: Path) -> AsyncIterator[Command]:
    async with opened(db) as door:
        async with door.screening.at("2026-01-01 00:00-05") as turn:
            assert await registry.adopt(turn.tx, qc_default(), turn.now)
        token = await door.stage.token(
            key=ec_key("ops"), iss="ops-client", sub="ops-client", scope="system/Flag.rs"
        )
        file = tmp_path / "token"
        file.write_text(f"{token}\n")
        (tmp_path / "mine.yaml").write_text(MINE)
        async with served(door.stage.hosts[DOOR]) as url:
            yield Command(door, url, file)


async def test_a_policy_is_loaded_compared_and_activated_from_the_command_line(
    command: Command, tmp_path: Path
) -> None:
    mine = str(tmp_path / "mine.yaml")
    (loaded,) = await command.lines("load", mine)
    assert loaded.startswith("TEST-mine@1, stored: ")
    assert await command.lines("load", mine) == [loaded]
    assert (await command.lines("load", "--preset", "virginia"))[0].startswith("virginia@1, stored")
    answer = await command.run("diff", "qc-default@3", "TEST-mine@1")
    assert answer.exit_code == 1
    assert "hold_days: 180 -> 90" in answer.stdout.splitlines()
    assert (await command.run("diff", "TEST-mine@1", "TEST-mine@1")).exit_code == 0
    (shadow,) = await command.lines("activate", "virginia@1", "--mode", "shadow")
    assert shadow.startswith(f"virginia@1, shadow, since {NOW.isoformat()}, looking at everybody")
    await command.door.screening.reevaluate(NOW)
    later = "2027-04-01T00:00:00-04:00"
    assert f"live from {later[:11]}" in (
        await command.lines("activate", "TEST-mine@1", "--at", later)
    )[0].replace("T04:00:00+00:00", "T")
    listed = await command.lines("list")
    assert [line.partition(",")[0] for line in listed] == [
        "TEST-mine@1",
        "qc-default@3",
        "virginia@1",
    ]
    assert ", live, since" in listed[1]
    assert "everybody looked at" in listed[2]
    shown = await command.lines("show", "TEST-mine@1")
    assert shown[0].startswith("# TEST-mine@1")
    assert "hold_days: 90" in shown


async def test_what_screening_refuses_is_said_in_its_words(
    command: Command, tmp_path: Path
) -> None:
    await command.lines("load", str(tmp_path / "mine.yaml"))
    (tmp_path / "mine.yaml").write_text(MINE + "watch: null\n")
    for words, code, said in (
        (("load", str(tmp_path / "mine.yaml")), 1, "stored with another meaning"),
        (("activate", "qc-default@3", "--mode", "retire"), 1, "always live"),
        (("activate", "nobody@1"), 1, "No such policy"),
        (("activate", "TEST-mine@1", "--at", "2020-01-01T00:00:00Z"), 1, "now or later"),
        (("activate", "TEST-mine"), 2, "name@version"),
        (("show", "a/b@1"), 2, "name@version"),
    ):
        answer = await command.run(*words)
        assert answer.exit_code == code, (words, answer.output)
        assert said in answer.stderr


async def test_a_door_that_does_not_answer_is_said_in_one_line(
    command: Command, tmp_path: Path
) -> None:
    nowhere = ["--url", "http://127.0.0.1:9", "--token-file", str(command.token)]
    answer = await asyncio.to_thread(CliRunner().invoke, app, ["policy", "list", *nowhere])
    assert (answer.exit_code, "does not answer" in answer.stderr) == (1, True)
    answer = await asyncio.to_thread(
        CliRunner().invoke, app, ["policy", "list", "--url", command.url]
    )
    assert (answer.exit_code, "both or neither" in answer.stderr) == (2, True)


def test_a_file_is_checked_without_any_service(tmp_path: Path) -> None:
    def checked(*words: str) -> Result:
        return CliRunner().invoke(app, ["policy", "validate", *words])

    file = tmp_path / "mine.yaml"
    file.write_text(MINE)
    assert checked(str(file)).stdout.startswith("TEST-mine@1 ")
    file.write_text(MINE + "holddays: 3\n")
    bad = checked(str(file))
    assert (bad.exit_code, bad.stdout) == (1, "")
    assert f"{file}, line 4: holddays: is not a key of a policy" in bad.stderr
    file.write_bytes(b"\xff")
    assert "UTF-8" in checked(str(file)).stderr
    assert checked(str(tmp_path / "nothing.yaml")).exit_code == 1
    assert checked().exit_code == checked("--preset", "nobody").exit_code == 2
    for name in presets.names():
        assert checked("--preset", name).exit_code == 0
        shown = CliRunner().invoke(app, ["policy", "show", "--preset", name])
        assert shown.stdout == presets.text(name)

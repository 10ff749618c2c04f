"""docs/walkthrough.md is true: every command in it is run, and prints what it says."""

import asyncio
import os
import re
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

import httpx
import pytest

from tests.story.conftest import four_ports, leaks
from tests.story.feed import eventually

ROOT = Path(__file__).parents[2]
DOCUMENT = ROOT / "docs" / "walkthrough.md"
MARK = "@@@ end of block"

pytestmark = pytest.mark.slow


def blocks(text: str) -> list[tuple[str, str]]:
    """(commands, printed) of each `sh` block; printed is empty where the document shows none."""
    found = re.findall(r"```sh\n(.*?)```\n(?:```text\n(.*?)```\n)?", text, flags=re.DOTALL)
    return [(commands, printed) for commands, printed in found]


def matches(printed: str, wanted: str) -> bool:
    """Whether `printed` is `wanted`, where `…` stands for anything within a line."""
    pattern = ".*".join(re.escape(part) for part in wanted.strip().split("…"))
    return re.fullmatch(pattern, printed.strip()) is not None


async def answers(port: int) -> bool:
    async with httpx.AsyncClient(trust_env=False) as http:
        try:
            ready = [
                await http.get(f"http://127.0.0.1:{port + offset}/health/ready")
                for offset in range(4)
            ]
        except httpx.HTTPError:
            return False
    return all(one.is_success for one in ready)


async def test_the_walk_prints_what_the_document_says() -> None:
    port = four_ports()
    with tempfile.TemporaryDirectory(prefix="pw-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o711)
        data, work = Path(folder) / "d", Path(folder) / "work"
        work.mkdir()
        command = [str(Path(sys.executable).parent / "passerelle")]
        where = ["--data-dir", str(data), "--port", str(port)]
        with (Path(folder) / "up.log").open("wb") as said:
            house = subprocess.Popen([*command, "up", *where], stdout=said, stderr=said)
        try:
            up = await eventually(lambda: answers(port), 60)
            assert up, (Path(folder) / "up.log").read_text()
            document = DOCUMENT.read_text().replace("passerelle token", "passerelle_token")
            for offset in (3, 2, 1, 0):
                document = document.replace(
                    f"http://127.0.0.1:{8000 + offset}", f"http://127.0.0.1:{port + offset}"
                )
            script = (
                "set -euo pipefail\n"
                f'passerelle_token() {{ "{command[0]}" token "$@" {" ".join(where)}; }}\n'
            )
            steps = blocks(document)
            script += "".join(f"{commands}\necho '{MARK}'\n" for commands, _ in steps)
            ran = await asyncio.to_thread(
                subprocess.run,
                ["bash", "-c", script],
                cwd=work,
                capture_output=True,
                text=True,
                check=False,
                timeout=200,
            )
            printed = ran.stdout.split(f"{MARK}\n")
            for (commands, wanted), got in zip(steps, printed, strict=False):
                assert matches(got, wanted), f"{commands}\n--- printed\n{got}\n{ran.stderr[-500:]}"
            assert ran.returncode == 0, ran.stderr[-1000:]
            assert len(printed) == len(steps) + 1
        finally:
            house.send_signal(signal.SIGINT)
            house.wait(60)
        logs = [*data.glob("*.log"), *data.glob("postgres/*.log"), Path(folder) / "up.log"]
        assert leaks(logs) == []
        assert house.returncode == 0
        assert not (data / "postgres" / "data" / "postmaster.pid").exists()


def test_a_document_that_says_otherwise_is_found() -> None:
    assert not matches('"total":2', '"total":1')
    assert matches("abc 12 def", "abc … def")
    assert len([1 for _, printed in blocks(DOCUMENT.read_text()) if printed]) > 8
    assert os.access(ROOT / ".ci" / "run", os.X_OK)

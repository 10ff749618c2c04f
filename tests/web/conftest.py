"""Chromium, and pages to open with it."""

from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from tests.web.gallery import gallery
from tests.web.serving import served

CHROMIUM = "/usr/bin/chromium"
FLAGS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
HERE = Path(__file__).parent
ARTIFACTS = HERE / "artifacts"


@pytest.fixture(scope="session")
async def browser() -> AsyncIterator[Browser]:
    async with async_playwright() as playwright:
        chromium = await playwright.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield chromium
        await chromium.close()


@pytest.fixture(scope="session")
async def gallery_url() -> AsyncIterator[str]:
    """Every page of every state, from builders, on a real server."""
    async with served(gallery()) as url:
        yield url


@pytest.fixture
def complaints() -> list[str]:
    """What the browser complained of: console errors, page errors, CSP violations."""
    return []


def listen(page: Page, complaints: list[str], *, but: Sequence[str] = ()) -> None:
    """Keep what `page` complains of, save what holds one of `but` (an expected status)."""

    def heard(message: ConsoleMessage) -> None:
        if message.type in {"error", "warning"} and not any(one in message.text for one in but):
            complaints.append(message.text)

    page.on("console", heard)
    page.on("pageerror", lambda error: complaints.append(str(error)))

"""Chromium, and pages to open with it."""

import contextlib
import os
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
from playwright.async_api import Browser, ConsoleMessage, Page, async_playwright

from services.cli.postgres import OWNER
from services.notify.web.views import Tier
from services.plumbing.db import Database
from tests.conftest import TEMPLATE, Cluster, FreshDatabase
from tests.web import builders
from tests.web.desk import Drawer
from tests.web.gallery import gallery
from tests.web.house import House, house
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


@dataclass(frozen=True)
class _Standing:
    home: House
    drawer: Drawer


@pytest.fixture(scope="session")
async def _standing(
    cluster: Cluster, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[_Standing]:
    """One house for all tests of the pages; each finds the drawer as it should be."""
    drawer = Drawer({})
    async with fresh(cluster, "pages") as database:
        pools: dict[str, Database] = {}

        def db(service: str) -> Database:
            return pools.setdefault(service, Database(database.url(service), service))

        async with house(db, drawer, tmp_path_factory.mktemp("keys")) as home:
            yield _Standing(home, drawer)
        for pool in pools.values():
            await pool.close()


@contextlib.asynccontextmanager
async def fresh(cluster: Cluster, name: str) -> AsyncIterator[FreshDatabase]:
    """A database that lasts longer than one test."""
    called = f"w{os.getpid()}_{name}"
    await cluster.run(f"create database {called} template {TEMPLATE} owner {OWNER}")
    yield FreshDatabase(cluster, called)
    await cluster.run(f"drop database {called} with (force)")


@pytest.fixture
def drawer(_standing: _Standing) -> Drawer:
    """Clinic A has two cards, one of them its group's; clinic B has one."""
    _standing.drawer.fill(
        {
            "clinic-a": [builders.card(1), builders.card(2, Tier.NOW, owner=None)],
            "clinic-b": [builders.card(3)],
        }
    )
    return _standing.drawer


@pytest.fixture
def home(_standing: _Standing, drawer: Drawer) -> House:
    return _standing.home


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

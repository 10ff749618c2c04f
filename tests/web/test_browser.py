"""The pages in real Chromium: by keyboard alone, without JavaScript, and while they stand open."""

from collections.abc import AsyncIterator

import pytest
from playwright.async_api import Browser, BrowserContext, Page, expect

from services.notify.web.views import Tier
from tests.web import builders
from tests.web.conftest import listen
from tests.web.desk import Drawer
from tests.web.house import House

pytestmark = pytest.mark.browser

MINUTE = 60_000
"""Milliseconds."""
FOCUSED = """() => {
  const one = document.activeElement, style = getComputedStyle(one), box = one.getClientRects()[0];
  const lit = (style.outlineStyle !== "none" && parseFloat(style.outlineWidth) > 0)
    || style.boxShadow !== "none";
  const under = document.elementFromPoint(box.x + box.width / 2, box.y + box.height / 2);
  return {id: one.id, text: one.textContent.trim(), lit, hidden: !one.contains(under)};
}"""


@pytest.fixture
async def context(browser: Browser) -> AsyncIterator[BrowserContext]:
    opened = await browser.new_context(viewport={"width": 1280, "height": 900}, locale="fr-CA")
    yield opened
    await opened.close()


async def enter(page: Page, home: House, persona: str = "nurse-a") -> None:
    """Sign in as a person does: through the door, and by choosing a persona."""
    await page.goto(f"{home.url}/")
    await page.click("#sign-in")
    await page.click(f'button[name="persona"][value="{persona}"]')
    await page.wait_for_url(lambda url: url.startswith(home.url) and not url.endswith("/"))


async def tab_to(page: Page, id_: str) -> None:
    """Press Tab until the element has the focus; each stop on the way must be seen to have it."""
    for _ in range(60):
        await page.keyboard.press("Tab")
        stop = await page.evaluate(FOCUSED)
        assert stop["lit"], stop
        assert not stop["hidden"], stop
        if stop["id"] == id_:
            return
    raise AssertionError(f"#{id_} cannot be reached")


async def test_a_card_is_taken_on_by_keyboard_alone(
    context: BrowserContext, home: House, drawer: Drawer, complaints: list[str]
) -> None:
    """NW-91, 2.1.1, 2.4.7, 2.4.11: from the door to N1, N2, take on, and out."""
    page = await context.new_page()
    listen(page, complaints)
    await page.goto(f"{home.url}/")
    await tab_to(page, "sign-in")
    await page.keyboard.press("Enter")
    await page.focus('button[name="persona"][value="nurse-a"]')
    await page.keyboard.press("Enter")
    await expect(page.locator("h1")).to_have_text("Ma liste")
    await tab_to(page, f"card-{builders.key(1)}")
    await page.keyboard.press("Enter")
    await expect(page.locator("#why")).to_be_visible()
    await tab_to(page, f"take-{builders.key(1)}")
    await page.keyboard.press("Space")
    await expect(page.locator('[role="alert"].govuk-notification-banner')).to_be_visible()
    assert drawer.cards["clinic-a"][0].mine
    await tab_to(page, "sign-out")
    await page.keyboard.press("Enter")
    await expect(page.locator("#sign-in")).to_be_visible()
    assert complaints == []


async def test_the_first_stop_skips_to_the_content(context: BrowserContext, home: House) -> None:
    page = await context.new_page()
    await enter(page, home)
    await page.keyboard.press("Tab")
    await page.keyboard.press("Enter")
    assert await page.evaluate("location.hash") == "#main-content"


async def test_everything_works_without_javascript(
    browser: Browser, home: House, drawer: Drawer
) -> None:
    """NW-61, NW-92."""
    context = await browser.new_context(java_script_enabled=False, locale="fr-CA")
    page = await context.new_page()
    await enter(page, home)
    await expect(page.locator("#pause")).to_be_hidden()
    await page.click("#filter-unassigned")
    await expect(page.locator("#part h3, #part tbody th")).to_have_count(1)
    await page.click("#filter-all")
    await page.click("#sort-patient")
    await expect(page.locator('th[aria-sort="ascending"]')).to_contain_text("Patient")
    await page.click(f"#card-{builders.key(1)}")
    await expect(page.locator("table caption")).to_be_visible()
    await page.click("#language-en")
    await expect(page.locator("#why")).to_have_text("Why this person is listed")
    await page.click(f"#take-{builders.key(1)}")
    await expect(page.locator(".govuk-notification-banner__title")).to_contain_text("Done")
    assert drawer.cards["clinic-a"][0].mine
    await page.click("#sign-out")
    await expect(page.locator("#sign-in")).to_be_visible()
    await context.close()


async def test_the_register_works_without_javascript(
    browser: Browser, home: House, drawer: Drawer
) -> None:
    context = await browser.new_context(java_script_enabled=False, locale="fr-CA")
    page = await context.new_page()
    await enter(page, home, "privacy")
    await page.fill("#patient", "nobody")
    await page.click("#find")
    await expect(page.locator(".govuk-error-summary")).to_be_visible()
    await expect(page.locator("#patient")).to_have_value("nobody")
    await page.fill("#patient", str(builders.key(11)))
    await page.click("#find")
    assert drawer.searched[-1] == builders.key(11)
    assert page.url == f"{home.url}/register"
    await context.close()


async def test_the_list_refreshes_each_minute_and_moves_neither_focus_nor_scroll(
    context: BrowserContext, home: House, drawer: Drawer, complaints: list[str]
) -> None:
    """NW-31, 4.1.3."""
    drawer.cards["clinic-a"] += [builders.card(n) for n in range(10, 30)]
    drawer.cards["clinic-a"].append(builders.card(7, Tier.DIGEST))
    page = await context.new_page()
    listen(page, complaints)
    await page.clock.install()
    await enter(page, home)
    await page.click("#digest summary")
    await page.focus(f"#take-{builders.key(20)}")
    await page.evaluate("window.scrollTo(0, 400)")
    drawer.cards["clinic-a"].append(builders.card(8, Tier.DIGEST))
    await page.clock.fast_forward(MINUTE)
    await expect(page.locator(f"#card-{builders.key(8)}")).to_be_visible()
    await expect(page.locator("#said")).to_have_text("La liste a changé.")
    assert await page.evaluate("document.activeElement.id") == f"take-{builders.key(20)}"
    assert await page.evaluate("window.scrollY") == 400
    assert await page.locator("#digest").get_attribute("open") is not None
    assert complaints == []


async def test_a_refresh_can_be_paused_and_resumed(
    context: BrowserContext, home: House, drawer: Drawer
) -> None:
    """2.2.2."""
    page = await context.new_page()
    await page.clock.install()
    await enter(page, home)
    await page.click("#pause")
    asked = len(drawer.asked)
    await page.clock.fast_forward(3 * MINUTE)
    await expect(page.locator("#pause")).to_have_text("Reprendre l'actualisation")
    assert len(drawer.asked) == asked
    await page.click("#pause")
    async with page.expect_response(lambda answer: answer.url.endswith("/my-list")):
        await page.clock.fast_forward(MINUTE)
    assert len(drawer.asked) == asked + 1
    assert drawer.asked[-1].background


async def test_a_refresh_that_fails_is_said_and_the_list_keeps_its_date(
    context: BrowserContext, home: House, drawer: Drawer
) -> None:
    """NW-06: what stands there is old, and says so."""
    page = await context.new_page()
    await page.clock.install()
    await enter(page, home)
    drawer.away = ConnectionRefusedError()
    await page.clock.fast_forward(MINUTE)
    await expect(page.locator("#said")).to_be_visible()
    await expect(page.locator("#said")).to_have_text(
        "La liste n'a pas pu être actualisée. Elle date du 24 novembre 2026, 14 h 32."
    )
    await expect(page.locator(f"#card-{builders.key(1)}")).to_be_visible()


async def test_what_may_no_longer_be_seen_leaves_the_open_list_within_a_minute(
    context: BrowserContext, home: House, drawer: Drawer
) -> None:
    """NW-93, US-H2."""
    page = await context.new_page()
    await page.clock.install()
    await enter(page, home)
    await expect(page.locator(f"#card-{builders.key(1)}")).to_be_visible()
    del drawer.cards["clinic-a"][0]
    await page.clock.fast_forward(MINUTE)
    await expect(page.locator(f"#card-{builders.key(1)}")).to_have_count(0)


async def test_what_may_no_longer_be_seen_leaves_the_open_card_within_a_minute(
    context: BrowserContext, home: House, drawer: Drawer
) -> None:
    page = await context.new_page()
    await page.clock.install()
    await enter(page, home)
    await page.click(f"#card-{builders.key(1)}")
    del drawer.cards["clinic-a"][0]
    await page.clock.fast_forward(MINUTE)
    await expect(page.locator("h1")).to_have_text("Page introuvable")
    assert "Essai-Ouellet" not in await page.content()


async def test_of_two_who_take_the_same_card_the_second_is_told(
    browser: Browser, home: House, drawer: Drawer
) -> None:
    """NW-93."""
    first, second = [await browser.new_context(locale="fr-CA") for _ in range(2)]
    one, other = await first.new_page(), await second.new_page()
    for page in (one, other):
        await enter(page, home)
    await one.click(f"#take-{builders.key(1)}")
    await expect(one.locator("h1")).to_be_visible()
    await other.click(f"#take-{builders.key(1)}")
    await expect(other.locator("h1")).to_have_text("Cet avis a changé entre-temps")
    for context in (first, second):
        await context.close()


async def test_a_session_about_to_end_says_so_and_one_action_extends_it(
    context: BrowserContext, home: House
) -> None:
    """NW-72, 2.2.1."""
    page = await context.new_page()
    await page.clock.install()
    await enter(page, home)
    await page.click("#pause")
    await page.clock.fast_forward(27 * MINUTE)
    await expect(page.locator("#expiring")).to_be_hidden()
    await page.clock.fast_forward(2 * MINUTE)
    await expect(page.locator("#expiring")).to_be_visible()
    await page.click("#stay")
    await expect(page.locator("h1")).to_have_text("Ma liste")
    await expect(page.locator("#expiring")).to_be_hidden()


async def test_nothing_of_a_page_is_kept_in_the_browser(
    context: BrowserContext, home: House
) -> None:
    """NW-63, NW-96."""
    page = await context.new_page()
    await enter(page, home)
    await page.click(f"#card-{builders.key(1)}")
    await page.click("#language-en")
    kept = await page.evaluate("Object.entries({...localStorage, ...sessionStorage})")
    assert kept in ([], [["htmx-current-path-for-history", f"/cards/{builders.key(1)}"]])
    names = {cookie["name"] for cookie in await context.cookies()}
    assert names == {"passerelle-notify", "passerelle-authority", "passerelle-language"}
    assert await page.evaluate("document.cookie") == ""

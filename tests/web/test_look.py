"""Each page in two languages at two widths, in Chromium (NW-90): seen, measured, and kept."""

import pytest
from playwright.async_api import Browser

from services.notify.web.words import Language
from tests.web.conftest import ARTIFACTS, HERE, listen
from tests.web.gallery import PICTURES

pytestmark = pytest.mark.browser

AXE = (HERE / "vendor" / "axe.min.js").read_text()
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
RUN_AXE = """async (tags) => {
  const found = await axe.run(document, {runOnly: {type: "tag", values: tags}});
  const where = v => v.nodes.map(n => n.target + " " + n.failureSummary).join("; ");
  return found.violations.map(v => v.id + ": " + where(v));
}"""
WIDER = """() => document.documentElement.scrollWidth <= document.documentElement.clientWidth
  ? [] : [...document.querySelectorAll("body *")]
  .filter(e => e.getBoundingClientRect().right > document.documentElement.clientWidth + 1)
  .map(e => e.tagName + "." + e.className)"""


@pytest.mark.parametrize("language", list(Language))
@pytest.mark.parametrize("name", list(PICTURES))
async def test_a_page_fits_speaks_its_language_and_passes_axe(
    browser: Browser, gallery_url: str, complaints: list[str], name: str, language: Language
) -> None:
    """NW-50, NW-74, NW-90; the content security policy is on throughout."""
    ARTIFACTS.mkdir(exist_ok=True)
    context = await browser.new_context()
    page = await context.new_page()
    listen(page, complaints, but=["the server responded with a status of"])
    answer = await page.goto(f"{gallery_url}/gallery/{language}/{name}")
    assert answer is not None
    assert "style-src 'self';" in (await answer.all_headers())["content-security-policy"]
    assert await page.get_attribute("html", "lang") == language.value
    await page.evaluate(AXE)
    for width in (1280, 320):
        await page.set_viewport_size({"width": width, "height": 900})
        await page.screenshot(path=ARTIFACTS / f"{name}-{language}-{width}.png", full_page=True)
        assert await page.evaluate(WIDER) == [], width
        assert await page.evaluate(RUN_AXE, TAGS) == [], width
    for width in (1024, 800, 600):
        await page.set_viewport_size({"width": width, "height": 900})
        assert await page.evaluate(WIDER) == [], width
    assert complaints == []
    await context.close()


async def test_a_page_at_400_percent_does_not_scroll_sideways(
    browser: Browser, gallery_url: str
) -> None:
    """NW-91: 1280 px at 400 % is 320 CSS px at four device pixels each."""
    context = await browser.new_context(
        viewport={"width": 320, "height": 256}, device_scale_factor=4
    )
    page = await context.new_page()
    for name in PICTURES:
        await page.goto(f"{gallery_url}/gallery/fr/{name}")
        assert await page.evaluate(WIDER) == [], name
    await context.close()


async def test_every_target_is_at_least_24_px(browser: Browser, gallery_url: str) -> None:
    """2.5.8 for buttons, and for links that are not part of a sentence."""
    context = await browser.new_context(viewport={"width": 320, "height": 900})
    page = await context.new_page()
    for name in PICTURES:
        await page.goto(f"{gallery_url}/gallery/fr/{name}")
        small = await page.evaluate(
            """() => [...document.querySelectorAll("button, .p-nav a, .p-filters a, .p-mark")]
              .filter(e => e.checkVisibility())
              .map(e => [e.textContent.trim(), e.getBoundingClientRect()])
              .filter(([, box]) => box.width < 24 || box.height < 24).map(([text]) => text)"""
        )
        assert small == [], name
    await context.close()

"""Who may open what, what a form does, and what an error page says. Real sessions, no browser."""

import re
from collections.abc import Callable

import httpx
import pytest

from services.notify.web.pages import Pages
from services.notify.web.views import Role
from services.plumbing import region
from services.plumbing.auth import Authority, authority_client
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from services.plumbing.settings import Settings
from services.plumbing.signin import SignIn
from services.plumbing.web import make_app
from services.simulator.flow import REGION_FILE
from tests.web import builders
from tests.web.desk import Drawer
from tests.web.house import House

PERSONAS = {
    "nurse-a": Role.CLINIC_CM,
    "hospital-cm": Role.HOSP_CM,
    "physician": Role.PHYSICIAN,
    "lead-physician": Role.LEAD_MD,
    "clinic-manager": Role.CLINIC_MANAGER,
    "coordinator": Role.COORDINATOR,
    "manager": Role.MANAGER,
    "ops": Role.OPS,
    "privacy": Role.PRIVACY,
}
OPEN_TO = {
    "/my-list": {Role.CLINIC_CM},
    f"/cards/{builders.key(1)}": {Role.CLINIC_CM},
    "/patients": {Role.HOSP_CM},
    f"/patients/{builders.key(1)}": {Role.HOSP_CM},
    f"/patients/{builders.key(1)}/visits/{builders.key(71)}": {Role.HOSP_CM},
    "/register": {Role.PRIVACY},
}
"""Each page and the roles it is for; test_every_page_is_in_the_matrix keeps it whole."""
POSTED = {"/register/report"}
"""Answer a form alone; who may send it is in the matrix of every route."""
FREE = {"/", "/language", "/session", "/static/{name}"}
"""For everybody; what they do is tested one by one."""
ABSENT = builders.key(999)


def csrf(page: httpx.Response) -> str:
    found = re.search(r'name="csrf" value="([^"]+)"', page.text)
    assert found is not None
    return found[1]


async def take(
    browser: httpx.AsyncClient, n: int, version: int | str = 3, **headers: str
) -> httpx.Response:
    token = csrf(await browser.get("/my-list"))
    return await browser.post(
        f"/cards/{builders.key(n)}/take",
        data={"csrf": token, "version": str(version)},
        headers=headers,
    )


# Who may open what (NW-04, NW-94)


async def test_each_role_opens_its_pages_and_no_other(home: House) -> None:
    for persona, role in PERSONAS.items():
        async with home.signed_in(persona) as browser:
            for path, roles in OPEN_TO.items():
                answer = await browser.get(path)
                assert answer.status_code == (200 if role in roles else 403), (persona, path)


def test_every_page_is_in_the_matrix(home: House) -> None:
    """Generated from the routes: a page that nobody thought about fails here."""
    keys = re.compile(r"/\{\w+\}(?=/|$)|/[0-9a-f-]{36}")
    known = {keys.sub("/…", path) for path in (*OPEN_TO, *POSTED, *FREE)}
    assert {keys.sub("/…", path.removesuffix("/take")) for path in home.paths} == known


async def test_a_403_names_the_role_to_ask_for(home: House) -> None:
    async with home.signed_in("physician") as browser:
        answer = await browser.get("/my-list")
    assert answer.status_code == 403
    assert "Infirmière ou infirmier gestionnaire de cas (clinique)" in answer.text


async def test_a_role_without_a_page_is_told_so_at_the_door(home: House) -> None:
    async with home.signed_in("ops") as browser:
        assert (await browser.get("/")).status_code == 403


@pytest.mark.parametrize("key", [builders.key(3), ABSENT, "not-a-key", "' or 1=1"])
async def test_anothers_card_and_no_card_are_the_same_404(home: House, key: object) -> None:
    async with home.signed_in("nurse-a") as browser:
        answer = await browser.get(f"/cards/{key}")
        none = await browser.get(f"/cards/{builders.key(998)}")
    assert answer.status_code == none.status_code == 404
    strip = re.compile(r'nonce="[^"]+"|name="back" value="[^"]+"')
    assert strip.sub("", answer.text) == strip.sub("", none.text)


async def test_anothers_card_cannot_be_taken_on(home: House, drawer: Drawer) -> None:
    async with home.signed_in("nurse-a") as browser:
        assert (await take(browser, 3)).status_code == 404
    assert drawer.cards["clinic-b"][0].version == 3


# In and out


async def test_who_is_not_signed_in_is_sent_to_sign_in_and_back(home: House) -> None:
    async with home.browser() as browser:
        answer = await browser.get("/my-list?show=mine")
    assert answer.status_code == 303
    assert answer.headers["location"] == "/sign-in?to=%2Fmy-list%3Fshow%3Dmine"


async def test_the_door_says_what_this_is_and_offers_the_way_in(home: House) -> None:
    async with home.browser() as browser:
        answer = await browser.get("/")
    assert answer.status_code == 200
    assert 'action="/sign-in"' in answer.text
    assert '<html lang="fr"' in answer.text


async def test_each_lands_on_the_first_page_of_their_role(home: House) -> None:
    lands = {"nurse-a": "/my-list", "hospital-cm": "/patients", "privacy": "/register"}
    for persona, path in lands.items():
        async with home.signed_in(persona) as browser:
            assert (await browser.get("/")).headers["location"] == path


async def test_signing_out_ends_the_session(home: House) -> None:
    async with home.signed_in("nurse-a") as browser:
        token = csrf(await browser.get("/my-list"))
        out = await browser.post("/sign-out", data={"csrf": token})
        assert out.headers["location"].startswith(home.issuer)
        assert (await browser.get("/my-list")).status_code == 303


@pytest.mark.parametrize(
    "query", ["", "?state=unknown&code=x", "?state=unknown&error=access_denied"]
)
async def test_a_sign_in_that_is_not_ours_is_refused_with_a_page(home: House, query: str) -> None:
    """NW-97: the cases themselves are tests/services/test_auth_sign_in.py's."""
    async with home.browser() as browser:
        answer = await browser.get(f"/sign-in/return{query}")
    assert answer.status_code == 400
    assert "<h1" in answer.text
    assert "Connexion refusée" in answer.text
    assert "Numéro de référence" in answer.text


async def test_a_foreign_way_back_is_refused_with_a_page(home: House) -> None:
    async with home.browser() as browser:
        answer = await browser.get("/sign-in", params={"to": "https://evil.example.org/"})
    assert answer.status_code == 400
    assert "Connexion refusée" in answer.text
    assert "evil" not in answer.text


# Taking on (NW-14, NW-73)


async def test_a_card_is_taken_on_and_the_page_says_so(home: House, drawer: Drawer) -> None:
    async with home.signed_in("nurse-a") as browser:
        done = await take(browser, 1)
        assert done.status_code == 303
        page = await browser.get(done.headers["location"])
    assert "Vous avez pris cet avis en charge." in page.text
    assert drawer.cards["clinic-a"][0].mine


async def test_a_stale_form_gets_a_409_with_the_present_state_and_its_own_wish(
    home: House,
) -> None:
    async with home.signed_in("nurse-a") as browser:
        answer = await take(browser, 1, version=2)
    assert answer.status_code == 409
    assert "Camille Essai, inf." in answer.text
    assert "Prendre en charge quand même" in answer.text
    assert 'name="version" value="3"' in answer.text


@pytest.mark.parametrize("version", ["", "x", "-1", "1e3"])
async def test_a_form_without_a_version_is_a_422(home: House, version: str) -> None:
    async with home.signed_in("nurse-a") as browser:
        assert (await take(browser, 1, version=version)).status_code == 422


@pytest.mark.parametrize(
    ("data", "headers"),
    [
        ({"csrf": "forged"}, {}),
        ({}, {}),
        (None, {"Sec-Fetch-Site": "cross-site"}),
        (None, {"Sec-Fetch-Site": "same-site"}),
        (None, {"Origin": "https://evil.example.org"}),
    ],
)
async def test_a_forged_form_is_a_403_without_effect(
    home: House, drawer: Drawer, data: dict[str, str] | None, headers: dict[str, str]
) -> None:
    """NW-73."""
    async with home.signed_in("nurse-a") as browser:
        token = csrf(await browser.get("/my-list"))
        answer = await browser.post(
            f"/cards/{builders.key(1)}/take",
            data={"version": "3", **({"csrf": token} if data is None else data)},
            headers=headers,
        )
    assert answer.status_code == 403
    assert "Rien n&#39;a été modifié" in answer.text
    assert drawer.cards["clinic-a"][0].version == 3


async def test_the_token_of_one_session_does_not_serve_another(home: House) -> None:
    async with home.signed_in("nurse-a") as first, home.signed_in("nurse-a") as other:
        token = csrf(await first.get("/my-list"))
        form = {"csrf": token, "version": "3"}
        answer = await other.post(f"/cards/{builders.key(1)}/take", data=form)
    assert answer.status_code == 403


async def test_looking_ahead_is_not_seeing(home: House, drawer: Drawer) -> None:
    """NW-05."""
    async with home.signed_in("nurse-a") as browser:
        card = f"/cards/{builders.key(1)}"
        await browser.get(card, headers={"Sec-Purpose": "prefetch;prerender"})
        await browser.get(card)
    assert [ask.prefetch for ask in drawer.asked] == [True, False]


# The list, and its refresh (NW-31)


async def test_a_refresh_brings_only_what_has_changed(home: House, drawer: Drawer) -> None:
    async with home.signed_in("nurse-a") as browser:
        page = await browser.get("/my-list")
        shown = re.search(r'"X-Shown": "([0-9a-f]+)"', page.text)
        assert shown is not None
        headers = {"HX-Request": "true", "X-Background": "1", "X-Shown": shown[1]}
        same = await browser.get("/my-list", headers=headers)
        drawer.cards["clinic-a"].append(builders.card(4))
        other = await browser.get("/my-list", headers=headers)
    assert "<html" not in same.text
    assert 'id="part"' not in same.text
    assert 'data-changed="no"' in same.text
    assert 'id="part" hx-swap-oob="innerHTML"' in other.text
    assert str(builders.key(4)) in other.text
    assert [ask.background for ask in drawer.asked] == [False, True, True]


async def test_the_list_can_be_filtered_and_sorted_by_links(home: House) -> None:
    async with home.signed_in("nurse-a") as browser:
        group = await browser.get("/my-list?show=unassigned&sort=patient")
        odd = await browser.get("/my-list?show=nonsense")
    assert str(builders.key(2)) in group.text
    assert str(builders.key(1)) not in group.text
    assert str(builders.key(1)) in odd.text


async def test_an_empty_list_says_when_it_last_heard(home: House, drawer: Drawer) -> None:
    drawer.cards.clear()
    async with home.signed_in("nurse-a") as browser:
        page = await browser.get("/my-list")
    assert "Aucun avis à traiter. Dernier message reçu à 14 h 31." in page.text


async def test_a_silent_hospital_is_said_on_the_list_and_the_card(
    home: House, drawer: Drawer
) -> None:
    """NW-30."""
    drawer.coverage = builders.coverage(silent=True)
    async with home.signed_in("nurse-a") as browser:
        for path in ("/my-list", f"/cards/{builders.key(1)}"):
            page = (await browser.get(path)).text
            assert "Aucune donnée de Centre hospitalier fictif des Deux-Rives depuis" in page
            assert "3 hôpitaux sur 4 transmettent leurs données" in page


# The register (O5)


async def test_the_register_says_what_was_kept_back_and_why(home: House) -> None:
    async with home.signed_in("privacy") as browser:
        page = (await browser.get("/register")).text
    assert "Restriction demandée par la personne" in page
    assert "Consentement à lire par une personne" in page
    assert "Consent/TEST-consent-01/_history/2" in page


async def test_a_search_is_a_post_and_leaves_no_key_in_an_address(
    home: House, drawer: Drawer
) -> None:
    """NW-03."""
    async with home.signed_in("privacy") as browser:
        token = csrf(await browser.get("/register"))
        key = str(builders.key(11))
        answer = await browser.post("/register", data={"csrf": token, "patient": f" {key} "})
    assert answer.status_code == 200
    assert answer.url.path == "/register"
    assert not answer.url.query
    assert drawer.searched[-1] == builders.key(11)


async def test_a_key_that_is_none_is_a_422_that_keeps_what_was_entered(home: House) -> None:
    """NW-32."""
    async with home.signed_in("privacy") as browser:
        token = csrf(await browser.get("/register"))
        answer = await browser.post("/register", data={"csrf": token, "patient": "<Tremblay>"})
    assert answer.status_code == 422
    assert 'value="&lt;Tremblay&gt;"' in answer.text
    assert 'href="#patient"' in answer.text


# Languages (NW-40)


async def test_the_switch_stays_on_the_page_and_is_kept(home: House) -> None:
    async with home.signed_in("nurse-a") as browser:
        page = await browser.get("/my-list?show=mine")
        assert '<html lang="fr"' in page.text
        assert 'name="back" value="/my-list?show=mine"' in page.text
        form = {"csrf": csrf(page), "language": "en", "back": "/my-list?show=mine"}
        switched = await browser.post("/language", data=form)
        assert switched.headers["location"] == "/my-list?show=mine"
        assert '<html lang="en"' in (await browser.get("/my-list")).text
        assert '<html lang="en"' in (await browser.get("/cards/none")).text


async def test_a_person_starts_in_their_own_language(home: House) -> None:
    async with home.signed_in("nurse-b") as browser:
        page = await browser.get("/my-list", headers={"Accept-Language": "fr"})
    assert '<html lang="en"' in page.text
    assert page.headers["content-language"] == "en"


@pytest.mark.parametrize("back", ["https://evil.example.org/", "//evil.example.org", "\\\\x", ""])
async def test_the_switch_never_leads_away(home: House, back: str) -> None:
    async with home.browser() as browser:
        answer = await browser.post("/language", data={"language": "en", "back": back})
    assert answer.headers["location"] == "/"


@pytest.mark.parametrize("path", ["/my-list", "/nowhere", "/sign-in/return", "/cards/none"])
async def test_a_page_does_not_repeat_what_an_address_was_given(home: House, path: str) -> None:
    """A code of the issuer, or a value somebody typed into an address, is in no page."""
    async with home.signed_in("nurse-a") as browser:
        page = await browser.get(f"{path}?code=TEST12345678&show=mine&state=TEST12345678")
    assert "TEST12345678" not in page.text


async def test_another_site_cannot_switch_the_language(home: House) -> None:
    async with home.browser() as browser:
        answer = await browser.post(
            "/language",
            data={"language": "en", "back": "/"},
            headers={"Sec-Fetch-Site": "cross-site"},
        )
    assert answer.status_code == 403
    assert "set-cookie" not in answer.headers


# Errors (NW-06)


async def test_with_the_database_away_there_is_a_503_in_both_languages_and_no_list(
    home: House, drawer: Drawer
) -> None:
    async with home.signed_in("nurse-a") as browser:
        drawer.away = ConnectionRefusedError()
        answer = await browser.get("/my-list")
    assert answer.status_code == 503
    assert "Aucune liste partielle n&#39;est affichée." in answer.text
    assert '<div class="p-other" lang="en">' in answer.text
    assert "No partial list is shown." in answer.text
    assert "En attendant, téléphonez\N{NO-BREAK SPACE}: 555-0100" in answer.text
    assert "Test-" not in answer.text


async def test_an_error_of_ours_tells_nothing_of_itself(home: House, drawer: Drawer) -> None:
    async with home.signed_in("nurse-a") as browser:
        drawer.away = RuntimeError("Essai-Ouellet, Normand")
        answer = await browser.get("/my-list")
    assert answer.status_code == 500
    assert "Ouellet" not in answer.text
    assert "Traceback" not in answer.text


@pytest.mark.parametrize("path", ["/nowhere", "/cards", "/static/../pages.py", "/static/none.js"])
async def test_what_does_not_exist_is_a_page_too(home: House, path: str) -> None:
    async with home.browser() as browser:
        answer = await browser.get(path)
    assert answer.status_code == 404
    assert "Page introuvable" in answer.text


# What every page carries (NW-03, NW-74)


@pytest.mark.parametrize("path", ["/my-list", f"/cards/{builders.key(1)}", "/cards/none", "/"])
async def test_every_page_has_the_headers(home: House, path: str) -> None:
    async with home.signed_in("nurse-a") as browser:
        answer = await browser.get(path, follow_redirects=True)
    policy = answer.headers["content-security-policy"]
    nonce = re.search(r"'nonce-([^']+)'", policy)
    assert nonce is not None
    assert f'nonce="{nonce[1]}"' in answer.text
    assert re.sub(r"nonce-[^']+", "nonce-…", policy) == (
        "default-src 'none'; script-src 'self' 'nonce-…'; style-src 'self'; img-src 'self'; "
        f"font-src 'self'; connect-src 'self'; form-action 'self' {home.issuer}; "
        "base-uri 'none'; frame-ancestors 'none'"
    )
    assert answer.headers["referrer-policy"] == "no-referrer"
    assert answer.headers["cache-control"] == "no-store"
    assert answer.headers["x-content-type-options"] == "nosniff"


async def test_beyond_loopback_browsers_are_told_to_stay_on_https(
    db: Callable[[str], Database], drawer: Drawer
) -> None:
    """NW-74."""
    people = region.load(REGION_FILE)
    settings = Settings(
        issuer="https://issuer.example.org", notify_url="https://notify.example.org"
    )
    async with authority_client(Egress()) as http:
        sign_in = SignIn(
            service="notify",
            public_url=settings.notify_url,
            db=db("notify"),
            region=lambda: people,
            authority=Authority(settings.issuer, http),
            settings=settings,
        )
        pages = Pages(desk=drawer, sign_in=sign_in, region=lambda: people, issuer=settings.issuer)
        app = make_app("notify", db("notify"), error_page=pages.error)
        pages.install(app)
        transport = httpx.ASGITransport(app)
        async with httpx.AsyncClient(transport=transport, base_url=settings.notify_url) as browser:
            page = await browser.get("/")
            form = {"language": "en", "back": "/"}
            switched = await browser.post("/language", data=form)
    assert page.headers["strict-transport-security"] == "max-age=31536000"
    assert (
        "form-action 'self' https://issuer.example.org;" in page.headers["content-security-policy"]
    )
    assert "Secure" in switched.headers["set-cookie"]


async def test_a_nonce_is_used_once(home: House) -> None:
    async with home.browser() as browser:
        first, second = await browser.get("/"), await browser.get("/")
    assert first.headers["content-security-policy"] != second.headers["content-security-policy"]


async def test_no_address_on_a_page_says_who_it_is_about(home: House) -> None:
    """NW-03: random keys and names of filters only."""
    async with home.signed_in("nurse-a") as browser:
        pages = [await browser.get(path) for path in ("/my-list", f"/cards/{builders.key(1)}")]
    for page in pages:
        for address in re.findall(r'(?:href|action|hx-get|value)="(/[^"]*)"', page.text):
            assert re.fullmatch(
                r"/|/(my-list|register|consents|language|session|sign-out)(\?[a-z=&;]+)?"
                r"|/cards/[0-9a-f-]{36}(/take)?|/static/[a-z.]+\?[0-9a-f]{12}",
                address,
            ), address

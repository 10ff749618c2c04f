"""The pages on a real port, with real sessions in PostgreSQL and the loopback authority."""

import contextlib
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

import httpx
from pydantic import SecretStr
from starlette.routing import Route

from services.cli.authority import LoopbackAuthority, RelyingParty, make_authority
from services.cli.tokens import kept_key
from services.notify.web import consenting
from services.notify.web.consenting import ConsentPages
from services.notify.web.incidents import IncidentPages, Registrar
from services.notify.web.pages import Desk, Pages
from services.plumbing import region, signin
from services.plumbing.auth import Authority, authority_client
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from services.plumbing.settings import Settings
from services.plumbing.web import make_app
from services.simulator.flow import REGION_FILE
from tests.web.serving import free_port, served


@dataclass(frozen=True)
class House:
    """Addresses of notify's pages and of the authority."""

    url: str
    issuer: str
    paths: frozenset[str]
    """Of every page."""

    def browser(self) -> httpx.AsyncClient:
        """Something that keeps cookies, sends what a browser sends, and follows nothing."""
        return httpx.AsyncClient(
            base_url=self.url, trust_env=False, headers={"Sec-Fetch-Site": "same-origin"}
        )

    @contextlib.asynccontextmanager
    async def signed_in(self, persona: str) -> AsyncIterator[httpx.AsyncClient]:
        """As `browser`, after the whole way through the issuer and back."""
        async with self.browser() as browser:
            to_issuer = await browser.get("/sign-in", params={"to": "/"})
            asked = dict(parse_qsl(urlsplit(to_issuer.headers["location"]).query))
            back = await browser.post(
                f"{self.issuer}/authorize", data={**asked, "persona": persona}
            )
            done = await browser.get(back.headers["location"])
            assert done.status_code == 303, done.text
            yield browser


@contextlib.asynccontextmanager
async def house(
    db: Callable[[str], Database],
    desk: Desk,
    folder: Path,
    *,
    people: region.Region | None = None,
    phone: str = "555-0100",
    office: consenting.Desk | None = None,
    registrar: Registrar | None = None,
) -> AsyncIterator[House]:
    """Both apps, as long as the block lasts; by default with the people of the demo's region."""
    ports = free_port(), free_port()
    issuer, url = (f"http://127.0.0.1:{port}" for port in ports)
    people = people or region.load(REGION_FILE)
    settings = Settings(
        issuer=issuer,
        notify_url=url,
        oidc_client_secret=SecretStr("synthetic-secret-of-the-tests"),
        local=True,
        sign_ins_per_minute=1000,
    )
    relying = RelyingParty(
        id=settings.oidc_client_id,
        secret="synthetic-secret-of-the-tests",
        redirect_uris=frozenset({f"{url}/sign-in/return"}),
        after_sign_out=frozenset({f"{url}/"}),
    )
    async with authority_client(Egress(local=True)) as http:
        loopback = LoopbackAuthority(
            issuer=issuer,
            audience=settings.audience,
            key=kept_key(folder / "signing.json"),
            db=db("authority"),
            region=lambda: people,
            relying=relying,
            http=http,
        )
        sign_in = signin.SignIn(
            service="notify",
            public_url=url,
            db=db("notify"),
            region=lambda: people,
            authority=Authority(issuer, http),
            settings=settings,
        )
        pages = Pages(
            desk=desk,
            sign_in=sign_in,
            region=lambda: people,
            issuer=issuer,
            fallback_phone=phone,
            demo=True,
            secure=False,
        )
        app = make_app("notify", db("notify"), error_page=pages.error)
        signin.install(app, sign_in)
        pages.install(app)
        if office is not None:
            ConsentPages(pages, office).install(app)
        if registrar is not None:
            IncidentPages(pages, registrar).install(app)
        authority = make_authority(loopback, db("authority"))
        async with served(authority, ports[0]), served(app, ports[1]):
            paths = frozenset(one.path for one in pages.router().routes if isinstance(one, Route))
            yield House(url, issuer, paths)

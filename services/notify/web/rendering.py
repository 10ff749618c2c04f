"""From a view to an answer: templates, vendored files, and the headers every page has.

A page is never kept, framed, referred from, or able to run what is not ours (NW-03, NW-74).
"""

import hashlib
import json
import secrets
from base64 import b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files

from fastapi import Response
from jinja2 import (
    ChoiceLoader,
    Environment,
    PackageLoader,
    PrefixLoader,
    select_autoescape,
)

from services.notify.web.views import Filter, Order, Role, Tier
from services.notify.web.words import Words

STATIC = files("services.notify.web") / "static"
VENDORED = files("services.notify.web") / "vendored.json"

MEDIA = {
    "css": "text/css; charset=utf-8",
    "js": "text/javascript; charset=utf-8",
    "svg": "image/svg+xml",
}


@dataclass(frozen=True, slots=True)
class Asset:
    """A file the browser fetches."""

    body: bytes
    media: str

    @property
    def integrity(self) -> str:
        return f"sha384-{b64encode(hashlib.sha384(self.body).digest()).decode()}"

    @property
    def short(self) -> str:
        """Stands in the address, so that a new version is fetched anew."""
        return hashlib.sha384(self.body).hexdigest()[:12]


@cache
def assets() -> Mapping[str, Asset]:
    """Every static file by name."""
    return {
        file.name: Asset(file.read_bytes(), MEDIA[file.name.rpartition(".")[2]])
        for file in STATIC.iterdir()
    }


def vendored() -> Sequence[Mapping[str, str]]:
    """The manifest of what is not ours (NW-64): file, version, licence, source, sha384."""
    entries: list[dict[str, str]] = json.loads(VENDORED.read_text())
    return entries


@dataclass(frozen=True, slots=True)
class Reader:
    """The person in front of the page."""

    name: str
    role: Role
    place: str = ""
    """Their clinic or hospital."""


@dataclass(frozen=True, slots=True)
class Link:
    key: str
    path: str


@dataclass(frozen=True, slots=True)
class Page:
    """What every page has around its content."""

    words: Words
    path: str
    """Of this page, without the query."""
    back: str
    """Where the language switch, and a new sign-in, return to: a local path."""
    nonce: str
    reader: Reader | None = None
    csrf: str | None = None
    nav: Sequence[Link] = ()
    ends_in: int | None = None
    """Seconds until the session ends if nothing is done."""
    demo: bool = False

    @property
    def other(self) -> Words:
        return Words(self.words.language.other, self.words.zone)

    @property
    def assets(self) -> Mapping[str, Asset]:
        return assets()


def new_nonce() -> str:
    return secrets.token_urlsafe(18)


@cache
def environment() -> Environment:
    """Our templates, and those of govuk-frontend-jinja under their own name."""
    made = Environment(
        loader=ChoiceLoader(
            [
                PackageLoader("services.notify.web"),
                PrefixLoader({"govuk_frontend_jinja": PackageLoader("govuk_frontend_jinja")}),
            ]
        ),
        autoescape=select_autoescape(["html"]),
        trim_blocks=True,
        lstrip_blocks=True,
        auto_reload=False,
    )
    made.globals.update(tiers=Tier, filters=Filter, orders=Order)
    return made


def security_headers(page: Page, issuer: str) -> dict[str, str]:
    """NW-74. `issuer` is where a sign-out may go on to; HSTS is set beyond loopback, by the app."""
    policy = (
        "default-src 'none'",
        f"script-src 'self' 'nonce-{page.nonce}'",
        "style-src 'self'",
        "img-src 'self'",
        "font-src 'self'",
        "connect-src 'self'",
        f"form-action 'self' {issuer}".strip(),
        "base-uri 'none'",
        "frame-ancestors 'none'",
    )
    return {
        "Content-Security-Policy": "; ".join(policy),
        "Content-Language": page.words.language.value,
        "Referrer-Policy": "no-referrer",
        "X-Content-Type-Options": "nosniff",
        "Cache-Control": "no-store",
        "Cross-Origin-Opener-Policy": "same-origin",
        "Permissions-Policy": "camera=(), geolocation=(), microphone=()",
        "Vary": "Cookie, Accept-Language, HX-Request",
    }


def render(
    template: str, page: Page, content: Mapping[str, object], *, status: int = 200, issuer: str = ""
) -> Response:
    """`template` with `content`, as an answer with the headers of every page."""
    body = environment().get_template(template).render({**content, "page": page})
    return Response(
        body, status, security_headers(page, issuer), media_type="text/html; charset=utf-8"
    )

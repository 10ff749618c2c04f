"""An authority's or a client's own documents lead nowhere inside (SM-31, CS-97, CA-67).

The URLs are those that an endpoint may not have (test_ssrf); what is asked for is keys.
"""

import contextlib
import json
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass, field
from ipaddress import IPv4Network, IPv6Network
from typing import Any

import httpx
import pytest

from services.plumbing import auth
from services.plumbing.auth import Authority, AuthorityAwayError, Published, authority_gate
from services.plumbing.egress import Egress, GuardedTransport
from services.plumbing.settings import Settings
from tests.services.authorities import ec_key, jwks
from tests.services.test_ssrf import CORPUS, NAMES, PUBLIC, Resolver, listening

ISSUER = "https://public.example.org"


@dataclass
class Wire(httpx.AsyncBaseTransport):
    """Where requests to checked addresses arrive; answers as an issuer whose keys are at `keys`."""

    keys: str = f"{ISSUER}/jwks"
    answer: httpx.Response | None = None
    sent: list[httpx.Request] = field(default_factory=list)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.sent.append(request)
        if self.answer is not None:
            return self.answer
        document: dict[str, Any] = jwks(ec_key("issuer"))
        if request.url.path.startswith("/.well-known"):
            document = {"issuer": ISSUER, "jwks_uri": self.keys, "token_endpoint": self.keys}
        return httpx.Response(200, content=json.dumps(document))


@contextlib.asynccontextmanager
async def reaching(
    gate: Egress, lookup: Resolver | None = None, wire: Wire | None = None
) -> AsyncIterator[httpx.AsyncClient]:
    """A client as services have it; over the real wire, if none is given."""
    transport = GuardedTransport(gate, lookup or Resolver(), wire)
    async with httpx.AsyncClient(transport=transport, follow_redirects=False, timeout=5) as http:
        yield http


async def asked(url: str, http: httpx.AsyncClient) -> Exception | None:
    try:
        await Published(url, http).read()
    except (AuthorityAwayError, ValueError) as error:
        return error
    return None


async def test_no_url_of_the_corpus_is_called_for_keys() -> None:
    """SM-31: 0 connections, also where the name was public a moment ago."""
    open_ = []
    async with listening() as canary:
        resolver = Resolver(dict.fromkeys(NAMES, 1))
        async with reaching(Egress(), resolver) as http:
            for name, url in CORPUS.items():
                error = await asked(url.format(port=canary.port), http)
                if error is None:
                    open_.append(name)
                assert "127.0.0.1" not in str(error)
        assert canary.connections == 0
    assert open_ == []


async def test_a_discovery_document_cannot_send_us_inside() -> None:
    wrong = []
    for name, url in CORPUS.items():
        wire = Wire(keys=url.format(port=1))
        async with reaching(Egress(), Resolver(dict.fromkeys(NAMES, 1)), wire) as http:
            authority = Authority(ISSUER, http)
            with contextlib.suppress(AuthorityAwayError, auth.TokenError):
                await authority.verify("a.b.c", ("ES384",))
        if [one for one in wire.sent if not one.url.path.startswith("/.well-known")]:
            wrong.append(name)
    assert wrong == []


async def test_the_keys_are_got_from_the_address_that_was_checked() -> None:
    wire = Wire()
    async with reaching(Egress(), Resolver(), wire) as http:
        document = await Published(f"{ISSUER}/jwks?x=1", http).read()
    assert len(document["keys"]) == 1
    (request,) = wire.sent
    assert (request.url.host, request.url.path) == (PUBLIC, "/jwks")
    assert request.headers["host"] == "public.example.org"
    assert request.extensions["sni_hostname"] == "public.example.org"


@pytest.mark.parametrize("status", [301, 302, 307, 308])
async def test_no_redirect_is_followed(status: int) -> None:
    async with listening() as canary:
        there = f"http://127.0.0.1:{canary.port}/jwks"
        wire = Wire(answer=httpx.Response(status, headers={"Location": there}))
        async with reaching(Egress(local=True), Resolver(), wire) as http:
            assert isinstance(await asked(f"{ISSUER}/jwks", http), AuthorityAwayError)
        assert canary.connections == 0
        assert len(wire.sent) == 1


async def test_no_proxy_of_the_environment_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    async with listening() as proxy, listening(answer=ANSWER) as canary:
        for name in ("HTTP_PROXY", "ALL_PROXY", "http_proxy", "all_proxy"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
        async with auth.authority_client(Egress(local=True)) as http:
            assert await asked(f"http://127.0.0.1:{canary.port}/jwks", http) is None
        assert (canary.connections, proxy.connections) == (1, 0)


ANSWER = b'HTTP/1.1 200 OK\r\ncontent-length: 11\r\nconnection: close\r\n\r\n{"keys":[]}'


async def test_loopback_is_for_up_and_demo_alone() -> None:
    async with listening(answer=ANSWER) as canary:
        url = f"http://127.0.0.1:{canary.port}/jwks"
        for local in (False, True):
            gate = authority_gate(Settings(issuer=url, local=local))
            async with auth.authority_client(gate) as http:
                error = await asked(url, http)
            assert (error is None) is local
        assert canary.connections == 1


@dataclass
class Inside(Resolver):
    """Everything is at one address."""

    address: str = ""

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        return [self.address]


RANGES = (IPv4Network("10.3.0.0/16"), IPv6Network("fd12::/16"), IPv4Network("0.0.0.0/0"))


@pytest.mark.parametrize(
    ("address", "networks", "called"),
    [
        ("10.3.1.1", RANGES[:2], True),
        ("fd12::7", RANGES[:2], True),
        ("10.4.1.1", RANGES[:2], False),
        ("10.3.1.1", (), False),
        # What nobody opens, however wide the range.
        ("127.0.0.1", RANGES, False),
        ("169.254.169.254", RANGES, False),
        ("0.0.0.0", RANGES, False),
        ("224.0.0.1", RANGES, False),
        ("::ffff:127.0.0.1", (IPv6Network("::/0"),), False),
        ("fe80::1", (IPv6Network("::/0"),), False),
    ],
)
async def test_a_private_authority_is_reached_only_in_the_range_the_operator_opens(
    address: str, networks: tuple[IPv4Network | IPv6Network, ...], called: bool
) -> None:
    """PASSERELLE_AUTHORITY_NETWORKS."""
    settings = Settings(issuer="https://idp.example.org:8443", authority_networks=networks)
    wire = Wire()
    async with reaching(authority_gate(settings), Inside(address=address), wire) as http:
        error = await asked("https://idp.example.org:8443/jwks", http)
        other = await asked("https://idp.example.org:9443/jwks", http)
    assert (error is None) is called
    assert other is not None, "another port than the one the operator named"
    assert len(wire.sent) == int(called)

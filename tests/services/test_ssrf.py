"""No URL a client gives us makes us call what is not public (CA-67, CS-97).

Each URL of the corpus is refused at the door; and if it had got in, say because its host was
public then, the courier does not connect. A canary listens on loopback; whatever the courier's
HTTP client sends at all is counted too, for addresses where no canary can be.
"""

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import asyncpg
import httpx
import pytest

from services.notify.api import Door, add_door
from services.notify.delivery import Courier
from services.plumbing import audit, egress
from services.plumbing.auth import Auth, Authority, guard
from services.plumbing.db import Database
from services.plumbing.egress import Egress
from services.plumbing.web import make_app
from tests.conftest import FreshDatabase
from tests.services import notify_builders as build
from tests.services.authorities import ISSUER
from tests.services.notify_door import issuer, token
from tests.services.test_notify_delivery import subscription

PUBLIC = "93.184.215.14"

ADDRESSES = {
    "loopback": "127.0.0.1",
    "loopback, another": "127.1.2.3",
    "this host": "0.0.0.0",
    "this network": "0.1.2.3",
    "private 10": "10.0.0.5",
    "private 172": "172.16.5.4",
    "private 192": "192.168.1.1",
    "metadata": "169.254.169.254",
    "link-local": "169.254.7.7",
    "carrier-grade NAT": "100.64.0.1",
    "metadata of another cloud": "100.100.100.200",
    "protocol assignments": "192.0.0.192",
    "benchmarks": "198.18.0.1",
    "documentation": "203.0.113.7",
    "multicast": "224.0.0.1",
    "reserved": "240.0.0.1",
    "broadcast": "255.255.255.255",
    "6to4 relay": "192.88.99.1",
    "loopback 6": "[::1]",
    "unspecified 6": "[::]",
    "mapped loopback": "[::ffff:127.0.0.1]",
    "mapped loopback, in hexadecimal": "[::ffff:7f00:1]",
    "mapped, all groups": "[0:0:0:0:0:ffff:a00:5]",
    "mapped public": f"[::ffff:{PUBLIC}]",
    "compatible": "[::7f00:1]",
    "translated": "[::ffff:0:127.0.0.1]",
    "NAT64 of loopback": "[64:ff9b::7f00:1]",
    "NAT64 of metadata": "[64:ff9b::a9fe:a9fe]",
    "NAT64, local": "[64:ff9b:1::a00:5]",
    "6to4 of loopback": "[2002:7f00:1::]",
    "6to4 of private": "[2002:a00:5::1]",
    "Teredo": "[2001:0:7f00:1::]",
    "link-local 6": "[fe80::1]",
    "link-local 6 with zone": "[fe80::1%25eth0]",
    "site-local 6": "[fec0::1]",
    "unique local": "[fd00::1]",
    "unique local, metadata": "[fd00:ec2::254]",
    "multicast 6": "[ff02::1]",
    "documentation 6": "[2001:db8::1]",
    "discard 6": "[100::1]",
    "decimal": "2130706433",
    "decimal of metadata": "2852039166",
    "hexadecimal": "0x7f000001",
    "hexadecimal parts": "0x7f.0x0.0x0.0x1",
    "octal": "0177.0.0.1",
    "octal, padded": "00000177.0.0.01",
    "octal, whole": "017700000001",
    "two parts": "127.1",
    "three parts": "127.0.1",
    "mixed bases": "0x7f.1",
    "private in decimal": "167772165",
    "metadata in octal": "0251.0376.0251.0376",
}
"""Hosts that are addresses, however written."""

NAMES: dict[str, Sequence[Sequence[str]]] = {
    "localhost": [["127.0.0.1"]],
    "inside.example.org": [["10.0.0.5"]],
    "loopback.example.org": [["127.0.0.1"]],
    "six.example.org": [["::1"]],
    "zone.example.org": [["fe80::1%eth0"]],
    "mapped.example.org": [["::ffff:10.0.0.5"]],
    "mixed.example.org": [[PUBLIC, "127.0.0.1"]],
    "mixed-first.example.org": [["127.0.0.1", PUBLIC]],
    "mixed-six.example.org": [["::1", PUBLIC]],
    "mixed-six-last.example.org": [[PUBLIC, "fd00::1"]],
    "mixed-nat64.example.org": [[PUBLIC, "64:ff9b::a9fe:a9fe"]],
    "metadata.google.internal": [["169.254.169.254"]],
    "nowhere.example.org": [[]],
    # Public when it is looked at, private a moment later.
    "rebinding.example.org": [[PUBLIC], ["127.0.0.1"]],
    "rebinding-six.example.org": [[PUBLIC], ["::1"]],
    "rebinding-metadata.example.org": [[PUBLIC], ["169.254.169.254"]],
}
"""Names, and what a resolver says of them from one time to the next."""

FORMS = {
    "http": "http://public.example.org/hook",
    "http to loopback": "http://127.0.0.1:{port}/hook",
    "http to loopback 6": "http://[::1]:{port}/hook",
    "http to localhost": "http://localhost:{port}/hook",
    "https to the canary": "https://127.0.0.1:{port}/hook",
    "another port": "https://public.example.org:{port}/hook",
    "port nought": "https://public.example.org:0/hook",
    "port beyond all": "https://public.example.org:99999/hook",
    "user": "https://user@127.0.0.1/hook",
    "user and password": "https://public.example.org:443@127.0.0.1:{port}/hook",
    "user, encoded": "https://public.example.org%40127.0.0.1/hook",
    "user before a fragment": "https://127.0.0.1#@public.example.org/",
    "backslash": "https://public.example.org\\@127.0.0.1/hook",
    "two slashes": "https:///127.0.0.1/hook",
    "no host": "https:///hook",
    "trailing dot": "https://public.example.org./hook",
    "trailing dot of an address": "https://127.0.0.1./hook",
    "trailing dot of localhost": "https://localhost./hook",
    "circled letters": "https://ⓛⓞⓒⓐⓛⓗⓞⓢⓣ/hook",
    "full-width digits": "https://\uff11\uff12\uff17.0.0.1/hook",
    "ideographic stops": "https://127。0。0。1/hook",
    "right-to-left": "https://public.example.org\u202e/hook",
    "another script": "https://\u0435xample.org/hook",
    "line break": "https://public.example.org/hook\r\nHost: 127.0.0.1",
    "tab": "https://pub\tlic.example.org/hook",
    "space": "https://public.example.org /hook",
    "null": "https://127.0.0.1\x00.example.org/hook",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.0.0.1:{port}/_x",
    "ftp": "ftp://127.0.0.1:{port}/x",
    "data": "data:text/plain,x",
    "unix socket": "http+unix://%2Fvar%2Frun%2Fdocker.sock/x",
    "no scheme": "//127.0.0.1:{port}/hook",
    "path alone": "/hook",
    "nothing": "",
    "bracket left open": "https://[::1/hook",
    "encoded host": "https://%31%32%37.0.0.1/hook",
}
"""URLs that are refused for their form, or for what their form hides."""

CORPUS = {
    **{f"address: {name}": f"https://{host}/hook" for name, host in ADDRESSES.items()},
    **{
        f"address with port: {name}": f"https://{host}:{{port}}/hook"
        for name, host in ADDRESSES.items()
    },
    **{f"name: {name}": f"https://{name}/hook" for name in NAMES},
    **{f"form: {name}": url for name, url in FORMS.items()},
}


@dataclass
class Canary:
    """Listens on loopback, and counts who comes."""

    port: int = 0
    connections: int = 0
    answer: bytes = b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\nconnection: close\r\n\r\n"

    async def met(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        with contextlib.suppress(
            asyncio.IncompleteReadError, ConnectionError, asyncio.LimitOverrunError
        ):
            await reader.readuntil(b"\r\n\r\n")
            writer.write(self.answer)
            await writer.drain()
        writer.close()


@contextlib.asynccontextmanager
async def listening(**more: Any) -> AsyncIterator[Canary]:
    canary = Canary(**more)
    four = await asyncio.start_server(canary.met, "127.0.0.1", 0)
    canary.port = four.sockets[0].getsockname()[1]
    servers = [four]
    with contextlib.suppress(OSError):  # a machine without IPv6
        servers.append(await asyncio.start_server(canary.met, "::1", canary.port))
    try:
        yield canary
    finally:
        for server in servers:
            server.close()
            await server.wait_closed()


@dataclass
class Resolver:
    """The machine's own for addresses in any notation; for names, what NAMES says."""

    asked: dict[str, int] = field(default_factory=dict)

    async def __call__(self, host: str, port: int) -> Sequence[str]:
        if host == "public.example.org":
            return [PUBLIC]
        answers = NAMES.get(host)
        if answers is None:
            return await egress.resolve(host, port)
        time = self.asked.get(host, 0)
        self.asked[host] = time + 1
        return answers[min(time, len(answers) - 1)]


@dataclass
class Outside:
    """A door, a courier with a subscription to send to, and what left."""

    client: httpx.AsyncClient
    courier: Courier
    owner: asyncpg.Connection
    canary: Canary
    sent: list[str]
    resolver: Resolver

    async def endpoint(self, url: str) -> None:
        """As if it had been let in: the courier finds it due."""
        await self.owner.execute("delete from notify.notification")
        await self.owner.execute(
            "update notify.subscription set endpoint = $1, status = 'active', failures = 0,"
            " not_before = null, failing_since = null",
            url,
        )
        await self.owner.execute(
            "insert into notify.notification"
            " (id, subscription, clinic, kind, number, at, state, due)"
            " select gen_random_uuid(), id, clinic, 'heartbeat', 0, now(), 'pending',"
            " now() - interval '1 second' from notify.subscription"
        )

    async def state(self) -> tuple[str, int]:
        row = await self.owner.fetchrow("select state, attempts from notify.notification")
        assert row is not None
        return row["state"], row["attempts"]


@contextlib.asynccontextmanager
async def outside(
    db: Database, owner: asyncpg.Connection, *, local: bool = False, answer: bytes | None = None
) -> AsyncIterator[Outside]:
    house = build.house()
    resolver = Resolver()
    sent: list[str] = []

    async def leaves(request: httpx.Request) -> None:
        sent.append(str(request.url))

    async with contextlib.AsyncExitStack() as stack:
        more = {} if answer is None else {"answer": answer}
        canary = await stack.enter_async_context(listening(**more))
        to_issuer = await stack.enter_async_context(
            httpx.AsyncClient(transport=httpx.ASGITransport(app=issuer()))
        )
        authority = Authority(ISSUER, to_issuer)
        app = make_app("notify", db)
        guard(
            app, Auth(authority, "passerelle", house.region), audit.refusals(db, lambda: build.NOW)
        )

        def gate(_clinic: str) -> Egress:
            return Egress(local=local)

        door = Door(
            db=db,
            house=house,
            now=lambda: build.NOW,
            cursor_key=b"k" * 32,
            gate=gate,
            authority=authority,
            resolve=resolver,
        )
        add_door(app, door)
        client = await stack.enter_async_context(
            httpx.AsyncClient(
                transport=httpx.ASGITransport(app=app),
                base_url="http://127.0.0.1:8003",
                headers={"Authorization": f"Bearer {token('clinic-a-emr')}"},
            )
        )
        http = await stack.enter_async_context(egress.client())
        http.event_hooks = {"request": [leaves]}
        courier = Courier(
            db=db, house=house, now=lambda: build.NOW, gate=gate, http=http, resolve=resolver
        )
        first = "http://127.0.0.1:9/hook" if local else "https://public.example.org/hook"
        made = await client.post("/fhir/Subscription", json=subscription(first))
        assert made.status_code == 201, made.text
        yield Outside(client, courier, owner, canary, sent, resolver)


@pytest.fixture
async def owner(database: FreshDatabase) -> AsyncIterator[asyncpg.Connection]:
    made = await database.owner()
    yield made
    await made.close()


def test_the_corpus_has_at_least_sixty_urls() -> None:
    assert len(set(CORPUS.values())) >= 60


async def test_no_url_of_the_corpus_is_let_in(
    db: Callable[[str], Database], owner: asyncpg.Connection
) -> None:
    """422 at create, the same words for all that a host may hide, and nothing is called."""
    wrong = {}
    async with outside(db("notify"), owner) as here:
        for name, url in CORPUS.items():
            said = subscription(url.format(port=here.canary.port))
            answer = await here.client.post("/fhir/Subscription", json=said)
            rebinds = "rebinding" in name  # public when it is looked at here
            if answer.status_code != (201 if rebinds else 422):
                wrong[name] = answer.status_code
            if answer.status_code == 422 and len(url) > 12:
                assert url.format(port=here.canary.port) not in answer.text, name
        assert here.sent == []
        assert here.canary.connections == 0
    assert wrong == {}


async def test_the_courier_connects_to_no_url_of_the_corpus(
    db: Callable[[str], Database], owner: asyncpg.Connection
) -> None:
    """Though each is in the database, as if its host had been public when it was let in."""
    async with outside(db("notify"), owner) as here:
        here.resolver.asked = dict.fromkeys(NAMES, 1)  # looked at once already
        for name, url in CORPUS.items():
            if "\0" in url:
                continue  # the database cannot hold it
            await here.endpoint(url.format(port=here.canary.port))
            assert await here.courier.round() == 1, name
            assert (await here.state())[0] != "delivered", name
            assert here.sent == [], name
        assert here.canary.connections == 0


async def test_the_canary_would_sing(
    db: Callable[[str], Database], owner: asyncpg.Connection
) -> None:
    """Or nothing above would mean anything: `up` may call loopback, and does."""
    async with outside(db("notify"), owner, local=True) as here:
        await here.endpoint(f"http://127.0.0.1:{here.canary.port}/hook")
        await here.courier.round()
        assert here.canary.connections == 1
        assert (await here.state())[0] == "delivered"


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_no_redirect_is_followed(
    db: Callable[[str], Database], owner: asyncpg.Connection, status: int
) -> None:
    async with listening() as canary:
        to = f"http://127.0.0.1:{canary.port}/hook"
        answer = (
            f"HTTP/1.1 {status} x\r\nlocation: {to}\r\ncontent-length: 0\r\nconnection: close"
            "\r\n\r\n"
        ).encode()
        async with outside(db("notify"), owner, local=True, answer=answer) as here:
            await here.endpoint(f"http://127.0.0.1:{here.canary.port}/hook")
            await here.courier.round()
            assert here.canary.connections == 1
            assert (await here.state())[0] == "pending"
        assert canary.connections == 0


async def test_no_proxy_of_the_environment_is_used(
    db: Callable[[str], Database], owner: asyncpg.Connection, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with listening() as proxy:
        for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY"):
            monkeypatch.setenv(name, f"http://127.0.0.1:{proxy.port}")
            monkeypatch.setenv(name.lower(), f"http://127.0.0.1:{proxy.port}")
        async with outside(db("notify"), owner, local=True) as here:
            await here.endpoint(f"http://127.0.0.1:{here.canary.port}/hook")
            await here.courier.round()
            assert here.canary.connections == 1
        assert proxy.connections == 0


async def test_the_connection_goes_to_the_address_that_was_checked() -> None:
    """A second look at the name, by the client, could find another address."""
    async with egress.client() as client:
        url = "https://public.example.org/hook?x=1"
        address = await Egress().address(url, Resolver())
        request = egress.request_to(client, url, address, b"{}", {})
    assert request.url.host == PUBLIC
    assert request.headers["host"] == "public.example.org"
    assert request.extensions["sni_hostname"] == "public.example.org"

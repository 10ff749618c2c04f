"""Where we may be made to call: the SSRF guard of every URL from outside (CA-67, CS-97).

Endpoints of clinics, and what an authority or a client publishes (SM-31). The host is resolved
and every address checked at create and at each attempt, and the connection goes to the checked
address. What was found there is told to nobody.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx
import structlog

log = structlog.get_logger()

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → addresses as text."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network
_NEVER = tuple(
    ipaddress.ip_network(net)
    for net in (
        "100.64.0.0/10",  # carrier-grade NAT
        "192.0.0.0/24",
        "192.88.99.0/24",  # 6to4 relay
        "198.18.0.0/15",
        "64:ff9b::/96",  # NAT64
        "64:ff9b:1::/48",
        "2002::/16",  # 6to4
        "2001::/32",  # Teredo
        "fec0::/10",
        "::/96",  # IPv4-compatible
    )
)


class ForbiddenTargetError(Exception):
    """The address may not be called. The text says the rule, nothing of what is there."""


@dataclass(frozen=True, slots=True)
class Egress:
    """What this installation lets out."""

    local: bool = False
    """`up` and `demo`: http on loopback is allowed."""
    hosts: frozenset[str] = frozenset()
    """`host` or `host:port` that the region file opens: private addresses and other ports too."""
    ports: frozenset[str] = frozenset()
    """`host:port` that may be called though the port is not 443; its addresses are checked."""
    networks: tuple[Network, ...] = ()
    """Private ranges that the operator opens, whatever the host."""

    def check_url(self, url: str) -> SplitResult:
        """The URL's parts, if its form is allowed. ForbiddenTargetError else."""
        if not url.isascii() or any(c.isspace() or c in "\\{}<>\"'`^|" for c in url):
            raise ForbiddenTargetError("The endpoint must be a plain https URL.")
        try:
            parts = urlsplit(url)
            port = parts.port
        except ValueError:
            raise ForbiddenTargetError("The endpoint must be a plain https URL.") from None
        host = parts.hostname
        if host is None or "@" in parts.netloc or parts.fragment or host.endswith("."):
            raise ForbiddenTargetError("The endpoint must be a plain https URL, without user.")
        if self.local and parts.scheme == "http" and _is_loopback(host):
            return parts
        if parts.scheme != "https":
            raise ForbiddenTargetError("The endpoint must begin with https.")
        named = self._is_opened(host, port) or f"{host}:{port}" in self.ports
        if port not in {None, 443} and not named:
            raise ForbiddenTargetError("The endpoint's port must be 443.")
        return parts

    def _allows(self, address: Address) -> bool:
        within = (n for n in self.networks if n.version == address.version)
        return is_public(address) or (not _is_never(address) and any(address in n for n in within))

    def _is_opened(self, host: str, port: int | None) -> bool:
        return host in self.hosts or f"{host}:{port or 443}" in self.hosts

    async def address(self, url: str, resolve: Resolve) -> str:
        """The address to connect to. ForbiddenTargetError if any of the host's is forbidden;
        OSError if it has none.
        """
        parts = self.check_url(url)
        host = parts.hostname or ""
        port = parts.port or (80 if parts.scheme == "http" else 443)
        found = [ipaddress.ip_address(a.partition("%")[0]) for a in await resolve(host, port)]
        if not found:
            raise OSError("the host has no address")
        local = self.local and _is_loopback(host)
        opened = self._is_opened(host, parts.port)
        for address in found:
            if local:
                allowed = address.is_loopback
            elif opened:
                allowed = not _is_never(address)
            else:
                allowed = self._allows(address)
            if not allowed:
                raise ForbiddenTargetError("The endpoint's host is not reachable from here.")
        return str(found[0])


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "127.0.0.1", "::1"}


def _is_never(address: Address) -> bool:
    """What nobody opens: this machine, link-local (metadata of clouds), all of a network."""
    mapped = getattr(address, "ipv4_mapped", None) or address
    return bool(
        mapped.is_loopback or mapped.is_link_local or mapped.is_multicast or mapped.is_unspecified
    )


def is_public(address: Address) -> bool:
    """Neither private, loopback, link-local, shared, multicast, metadata nor IPv4 in IPv6."""
    if isinstance(address, ipaddress.IPv6Address) and address.ipv4_mapped is not None:
        return False
    if any(address in net for net in _NEVER if net.version == address.version):
        return False
    return address.is_global and not address.is_multicast and not address.is_reserved


async def resolve(host: str, port: int) -> Sequence[str]:
    """By the system's resolver. OSError if it does not know."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


def at(url: httpx.URL, address: str) -> tuple[httpx.URL, dict[str, str]]:
    """The URL that goes to the checked `address`, and the name to verify there, for TLS."""
    return url.copy_with(host=address), {"sni_hostname": url.raw_host.decode()}


def request_to(
    client: httpx.AsyncClient, url: str, address: str, body: bytes, headers: dict[str, str]
) -> httpx.Request:
    """A POST that goes to the checked address and still names and verifies the host."""
    target, extensions = at(httpx.URL(url), address)
    named = {**headers, "Host": urlsplit(url).netloc}
    return client.build_request("POST", target, content=body, headers=named, extensions=extensions)


def client() -> httpx.AsyncClient:
    """For notifications: no proxy from the environment, no redirect."""
    return httpx.AsyncClient(trust_env=False, follow_redirects=False)


class GuardedTransport(httpx.AsyncBaseTransport):
    """Sends nothing but to addresses that `gate` allows, looked up anew for each request."""

    def __init__(
        self, gate: Egress, lookup: Resolve = resolve, wire: httpx.AsyncBaseTransport | None = None
    ) -> None:
        self._gate = gate
        self._lookup = lookup
        self._wire = wire or httpx.AsyncHTTPTransport(trust_env=False)

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        """ConnectError as well where it is forbidden: who asked is not told which."""
        try:
            address = await self._gate.address(str(request.url), self._lookup)
        except ForbiddenTargetError as error:
            log.warning("call_forbidden", host=request.url.host, why=str(error))
            raise httpx.ConnectError("not reachable", request=request) from None
        except (OSError, UnicodeError):
            raise httpx.ConnectError("not reachable", request=request) from None
        request.url, more = at(request.url, address)
        request.extensions = {**request.extensions, **more}
        return await self._wire.handle_async_request(request)

    async def aclose(self) -> None:
        await self._wire.aclose()

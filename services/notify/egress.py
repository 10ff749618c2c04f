"""Where a notification may go: the SSRF guard (CA-67, CS-97).

The host is resolved and every address checked at create and at each attempt, and the
connection goes to the checked address. What was found there is told to nobody.
"""

import asyncio
import ipaddress
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from urllib.parse import SplitResult, urlsplit

import httpx

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
"""Host and port → addresses as text."""

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
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
        if port not in {None, 443} and not self._is_opened(host, port):
            raise ForbiddenTargetError("The endpoint's port must be 443.")
        return parts

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
            allowed = address.is_loopback if local else opened or is_public(address)
            if not allowed:
                raise ForbiddenTargetError("The endpoint's host is not reachable from here.")
        return str(found[0])


def _is_loopback(host: str) -> bool:
    return host in {"localhost", "127.0.0.1", "::1"}


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


def request_to(
    client: httpx.AsyncClient, url: str, address: str, body: bytes, headers: dict[str, str]
) -> httpx.Request:
    """A POST that goes to the checked address and still names and verifies the host."""
    parts = urlsplit(url)
    host = parts.hostname or ""
    literal = f"[{address}]" if ":" in address else address
    port = "" if parts.port is None else f":{parts.port}"
    target = parts._replace(netloc=f"{literal}{port}").geturl()
    return client.build_request(
        "POST",
        target,
        content=body,
        headers={**headers, "Host": parts.netloc},
        extensions={"sni_hostname": host},
    )


def client() -> httpx.AsyncClient:
    """For notifications: no proxy from the environment, no redirect."""
    return httpx.AsyncClient(trust_env=False, follow_redirects=False)

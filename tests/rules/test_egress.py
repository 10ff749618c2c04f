"""Where a notification may go: nothing private is reached (CA-67, CS-97)."""

from collections.abc import Sequence

import pytest

from services.plumbing.egress import Egress, ForbiddenTargetError

PUBLIC = "93.184.215.14"

FORBIDDEN_URLS = [
    "",
    "http://example.org/hook",
    "ftp://example.org/hook",
    "file:///etc/passwd",
    "gopher://example.org/",
    "//example.org/hook",
    "https:///hook",
    "https://user@example.org/hook",
    "https://user:secret@example.org/hook",
    "https://example.org@10.0.0.1/hook",
    "https://example.org:22/hook",
    "https://example.org:8443/hook",
    "https://example.org:99999/hook",
    "https://example.org:x/hook",
    "https://example.org./hook",
    "https://example.org/hook#fragment",
    "https://exa mple.org/hook",
    "https://example.org\\@10.0.0.1/hook",
    "https://exämple.org/hook",
    "https://example.org\t/hook",
    "https://example.org\n/hook",
    "javascript:alert(1)",
    "http://127.0.0.1/hook",
    "http://localhost/hook",
]
FORBIDDEN_ADDRESSES = [
    "0.0.0.0",
    "10.0.0.1",
    "10.255.255.255",
    "100.64.0.1",
    "100.127.255.254",
    "127.0.0.1",
    "127.8.8.8",
    "169.254.0.1",
    "169.254.169.254",
    "172.16.0.1",
    "172.31.255.254",
    "192.0.0.8",
    "192.0.2.1",
    "192.88.99.1",
    "192.168.0.1",
    "198.18.0.1",
    "198.51.100.7",
    "203.0.113.9",
    "224.0.0.1",
    "239.255.255.250",
    "240.0.0.1",
    "255.255.255.255",
    "::",
    "::1",
    "::10.0.0.1",
    "::ffff:10.0.0.1",
    "::ffff:127.0.0.1",
    "::ffff:169.254.169.254",
    "::ffff:93.184.215.14",
    "64:ff9b::a00:1",
    "64:ff9b:1::1",
    "100::1",
    "2001::1",
    "2001:db8::1",
    "2002:a00:1::1",
    "fc00::1",
    "fd00:ec2::254",
    "fe80::1",
    "fe80::1%eth0",
    "fec0::1",
    "ff02::1",
]


@pytest.mark.parametrize("url", FORBIDDEN_URLS)
async def test_a_url_of_another_form_is_refused(url: str) -> None:
    with pytest.raises(ForbiddenTargetError):
        Egress().check_url(url)


@pytest.mark.parametrize("address", FORBIDDEN_ADDRESSES)
async def test_a_host_with_a_forbidden_address_is_refused(address: str) -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return (address,)

    with pytest.raises(ForbiddenTargetError) as caught:
        await Egress().address("https://clinic.example.org/hook", resolve)
    assert address.partition("%")[0] not in str(caught.value)


async def test_one_forbidden_address_among_others_is_enough() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return (PUBLIC, "10.0.0.1")

    with pytest.raises(ForbiddenTargetError):
        await Egress().address("https://clinic.example.org/hook", resolve)


async def test_a_public_host_is_called_at_the_address_that_was_checked() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        assert (host, port) == ("clinic.example.org", 443)
        return (PUBLIC,)

    assert await Egress().address("https://clinic.example.org/hook", resolve) == PUBLIC


async def test_numbers_that_a_resolver_reads_as_private_are_refused() -> None:
    """Decimal and octal forms of 127.0.0.1 and 10.0.0.1."""
    from services.plumbing.egress import resolve

    for host in ("2130706433", "0x7f000001", "0177.0.0.1", "127.1", "10.1"):
        with pytest.raises((ForbiddenTargetError, OSError)):
            await Egress().address(f"https://{host}/hook", resolve)


async def test_loopback_is_open_to_plain_http_in_local_mode_alone() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ("127.0.0.1",)

    url = "http://127.0.0.1:9999/hook"
    assert await Egress(local=True).address(url, resolve) == "127.0.0.1"
    with pytest.raises(ForbiddenTargetError):
        await Egress().address(url, resolve)

    async def elsewhere(host: str, port: int) -> Sequence[str]:
        return ("10.0.0.1",)

    with pytest.raises(ForbiddenTargetError):
        await Egress(local=True).address("http://localhost/hook", elsewhere)


async def test_a_private_health_network_is_opened_by_name() -> None:
    async def resolve(host: str, port: int) -> Sequence[str]:
        return ("10.4.4.4",)

    gate = Egress(hosts=frozenset({"emr.example.org:8443"}))
    assert await gate.address("https://emr.example.org:8443/hook", resolve) == "10.4.4.4"
    with pytest.raises(ForbiddenTargetError):
        await gate.address("https://emr.example.org/hook", resolve)

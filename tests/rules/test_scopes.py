"""Which scope grants what (CA-70), and what a caller may (HA-99)."""

from datetime import timedelta

import pytest

from services.plumbing.auth import (
    LONGEST_LIFETIME,
    UNSAID_LIFETIME,
    Caller,
    Granted,
    Kind,
    lifetime,
    may_be_fetched,
    read_scope,
    read_scopes,
)
from services.plumbing.signin import local_path


def granted(resource_type: str, letters: str) -> Granted:
    return Granted(resource_type, frozenset(letters))


@pytest.mark.parametrize(
    ("text", "scope"),
    [
        ("system/Task.rs", granted("Task", "rs")),
        ("system/Task.cruds", granted("Task", "cruds")),
        ("system/Encounter.c", granted("Encounter", "c")),
        ("system/*.rs", granted("*", "rs")),
        ("system/Task.read", granted("Task", "rs")),
        ("system/Task.write", granted("Task", "cud")),
        ("system/Task.*", granted("Task", "cruds")),
        ("system/*.read", granted("*", "rs")),
        ("system/*.*", granted("*", "cruds")),
    ],
)
def test_a_scope_grants_its_letters(text: str, scope: Granted) -> None:
    assert read_scope(text) == scope


@pytest.mark.parametrize(
    "text",
    [
        "",
        "system/Task",
        "system/Task.",
        "system/Task.dus",
        "system/Task.sr",
        "system/Task.rr",
        "system/Task.x",
        "system/Task.READ",
        "system/Task.rs?status=requested",
        "system/task.rs",
        "system/Task.rs ",
        "system/Task.rs\n",
        "system/Tâche.rs",
        "system/Task/1.rs",
        "user/Task.rs",
        "patient/Task.rs",
        "openid",
        "launch/patient",
    ],
)
def test_what_is_not_a_scope_in_order_grants_nothing(text: str) -> None:
    assert read_scope(text) is None
    assert read_scopes([text]) == frozenset()


@pytest.mark.parametrize(
    ("have", "asked", "covered"),
    [
        ("system/Task.cruds", "system/Task.rs", True),
        ("system/Task.rs", "system/Task.rs", True),
        ("system/*.rs", "system/Task.r", True),
        ("system/Task.rs", "system/*.rs", False),
        ("system/Task.r", "system/Task.rs", False),
        ("system/Task.cruds", "system/Flag.r", False),
        ("system/*.read", "system/Task.read", True),
    ],
)
def test_a_scope_covers_what_is_within_it(have: str, asked: str, covered: bool) -> None:
    left, right = read_scope(have), read_scope(asked)
    assert left is not None
    assert right is not None
    assert left.covers(right) is covered


def a_client(token: str, region: str) -> Caller:
    return Caller(
        id="TEST-client",
        kind=Kind.CLIENT,
        scopes=read_scopes(token.split()),
        allowed=read_scopes(region.split()),
    )


@pytest.mark.parametrize(
    ("token", "region", "may"),
    [
        ("system/Task.rs", "system/Task.cruds", True),
        ("system/Task.r system/Task.s", "system/Task.rs", True),
        ("system/*.rs", "system/Task.rs", True),
        ("system/Task.rs", "system/Task.r", False),  # taken away since the token was made
        ("system/Task.rs", "", False),
        ("system/Task.r", "system/*.cruds", False),
        ("system/Flag.rs", "system/*.cruds", False),
    ],
)
def test_a_client_may_what_token_and_region_file_both_grant(
    token: str, region: str, may: bool
) -> None:
    assert a_client(token, region).may("Task", "rs") is may


def test_a_person_has_no_scope() -> None:
    person = Caller(id="TEST-person", kind=Kind.PERSON, roles=frozenset({"privacy"}))
    assert not person.may("Task", "r")
    assert person.has("ops", "privacy")
    assert not person.has("ops")


@pytest.mark.parametrize(
    ("sites", "clinic", "tenant"),
    [
        ({"hospital-a"}, None, "hospital-a"),
        (set(), "clinic-a", "clinic-a"),
        ({"hospital-a", "hospital-b"}, None, None),
        (set(), None, None),
    ],
)
def test_the_tenant_is_the_clinic_or_the_only_site(
    sites: set[str], clinic: str | None, tenant: str | None
) -> None:
    caller = Caller(id="TEST", kind=Kind.CLIENT, sites=frozenset(sites), clinic=clinic)
    assert caller.tenant == tenant


def test_the_name_of_a_person_is_in_no_repr() -> None:
    caller = Caller(id="TEST", kind=Kind.PERSON, name="TEST-canary")
    assert "TEST-canary" not in repr(caller)


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        (None, UNSAID_LIFETIME),
        ("public", UNSAID_LIFETIME),
        ("max-age=60", timedelta(seconds=60)),
        ("public, MAX-AGE=120", timedelta(seconds=120)),
        ('max-age="30"', timedelta(seconds=30)),
        ("max-age=0", timedelta()),
        ("no-store", timedelta()),
        ("no-cache, max-age=600", timedelta()),
        ("max-age=soon", timedelta()),
        ("max-age=", timedelta()),
        ("max-age=99999999999999", timedelta()),
        ("max-age=86400", LONGEST_LIFETIME),
    ],
)
def test_keys_are_kept_no_longer_than_said(said: str | None, kept: timedelta) -> None:
    """SM-31"""
    assert lifetime(said) == kept


@pytest.mark.parametrize(
    ("url", "may"),
    [
        ("https://authority.example.ca/jwks", True),
        ("http://127.0.0.1:8000/jwks", True),
        ("http://localhost:8000/jwks", True),
        ("http://authority.example.ca/jwks", False),
        ("https://user@authority.example.ca/jwks", False),
        ("https://user:pass@127.0.0.1/jwks", False),
        ("file:///etc/passwd", False),
        ("https:///jwks", False),
        ("//authority.example.ca/jwks", False),
    ],
)
def test_only_https_is_fetched_save_on_loopback(url: str, may: bool) -> None:
    assert may_be_fetched(url) is may


@pytest.mark.parametrize(
    "path",
    [
        "https://elsewhere.example.org/",
        "//elsewhere.example.org/",
        "///elsewhere.example.org/",
        "/\\elsewhere.example.org",
        "\\\\elsewhere.example.org",
        "http:elsewhere",
        "javascript:alert(1)",
        "elsewhere",
        "",
        "/a\r\nSet-Cookie: a=b",
        "/ /elsewhere.example.org",
        "/\t/elsewhere.example.org",
        "/é",
    ],
)
def test_a_return_path_that_leads_elsewhere_is_none(path: str) -> None:
    """NW-72, NW-97"""
    assert local_path(path) is None


@pytest.mark.parametrize("path", ["/", "/cards/4f", "/list?only=mine&page=2", "/a%2F%2Fb"])
def test_a_local_return_path_is_kept(path: str) -> None:
    assert local_path(path) == path

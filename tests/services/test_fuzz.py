"""Whatever is sent to any route of any service: no 5xx, no words but ours (CS-100, HA-60, NW-74).

The routes are those the apps have; requests are bent from good ones. Each answer also has the
headers that every answer has. More of them: --hypothesis-profile=thorough.
"""

import itertools
import json
import re
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

import httpx
import orjson
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.services.test_access_matrix import (
    EXPECTED,
    Row,
    Scene,
    Scenes,
    endpoints,
    scene,
    sign_in,
)

__all__ = ["scene"]

EXAMPLES = max(600, settings.default.max_examples if settings.default else 0)
CALLERS = {
    "ingest": ("hospital-a", "no token"),
    "screening": ("ops-client", "no token"),
    "notify": ("clinic-a-emr", "nurse-a", "hospital-cm", "privacy", "no session"),
}

NASTY = (
    "", " ", "\x00", "a\x00b", "..", "../../etc/passwd", "%", "%00", "%ff", "' or 1=1 --", '"',
    "\\", "0", "-1", "9" * 30, "9" * 400, "1e999", "NaN", "٣", "0x10", "true", "null", "{", "[]",
    "{}",
    "<script>alert(1)</script>", "0000-00-00", "2026-13-45", "2026-02-30T25:61:61Z", "9999-12-31",
    "0001-01-01T00:00:00+14:00", "ge2026", "eq", "|", "||", "a|b|c", ",", "," * 50, "Patient/",
    "Patient/x/_history/", "urn:uuid:", "#", "?", "&", "$validate", "_history", "İ", "ß", "\u202e",
    "\ufffe", "\N{MATHEMATICAL DOUBLE-STRUCK DIGIT ZERO}", "a" * 5_000, "\r\nX-Injected: 1", "*",
    'W/"', 'W/"99999999999999999999"',
    "c2hvcnQ", "00000000-0000-0000-0000-000000000000", "gzip", "application/fhir+json;fhirVersion=",
)  # fmt: skip
NAMES = (
    "_id", "_count", "_sort", "_lastUpdated", "_include", "_revinclude", "_page", "_cursor",
    "_format", "_summary", "_total", "_elements", "identifier", "patient", "status", "code",
    "owner", "dry_run", "mode", "confirm", "state", "as_of", "to", "page", "lang", "id", "date",
    "class", "subject", "x",
)  # fmt: skip
HEADERS = (
    "Accept", "Accept-Language", "Content-Type", "Content-Encoding", "If-Match",
    "If-None-Match", "If-None-Exist", "If-Modified-Since", "Prefer", "X-Request-Id",
    "traceparent", "Cookie", "Origin", "Sec-Fetch-Site", "X-CSRF-Token", "HX-Request", "Range",
    "X-Forwarded-For", "Last-Event-ID",
)  # fmt: skip

WORST = ("\x00", "a\x00b", "9" * 30, "\N{LATIN SMALL LETTER LONG S}", "%00")
"""What databases, numbers and paths choke on most."""

texts = st.one_of(
    st.sampled_from(WORST),
    st.sampled_from(NASTY),
    st.text(max_size=20).filter(lambda t: t.isprintable()),
)
plain = texts.map(lambda t: re.sub(r"[\x00-\x1f\x7f]", "", t).encode("latin-1", "replace"))
scalars = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), texts, st.just([]), st.just({})
)
values = st.recursive(
    scalars,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(texts, inner, max_size=3)),
    max_leaves=6,
)
deep = st.sampled_from((100, 5_000)).map(lambda n: b"[" * n + b"]" * n)
raw = st.one_of(
    st.binary(max_size=200),
    texts.map(lambda t: t.encode("utf-8", "surrogatepass")),
    deep,
    st.sampled_from((b'{"a":1,"a":2}', b'"\\ud800"', b"\xff\xfe{\x00}\x00", b"1e400", b"")),
)


def places(said: Any, at: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Where something can be bent, outermost first."""
    found = [at] if at else []
    if isinstance(said, dict):
        for name in said:
            found += places(said[name], (*at, name))
    elif isinstance(said, list):
        for number in range(len(said)):
            found += places(said[number], (*at, number))
    return found


@st.composite
def bent(draw: st.DrawFn, row: Row, ids: Mapping[str, str]) -> bytes:
    """The body of a good request, with a few of its places otherwise; or none like it at all."""
    if row.body is None or draw(st.integers(0, 4)) == 0:
        return draw(raw)
    text = row.body if isinstance(row.body, str) else orjson.dumps(row.body).decode()
    for name, id_ in ids.items():
        text = text.replace(f"{{{name}}}", id_)
    try:
        said = orjson.loads(text)
    except orjson.JSONDecodeError:
        cut = draw(st.integers(0, len(text)))
        return (text[:cut] + draw(texts) + text[cut:]).encode("utf-8", "surrogatepass")
    for _ in range(draw(st.integers(1, 3))):
        if not (where := places(said)):
            break
        *path, last = draw(st.sampled_from(where))
        inside = said
        for step in path:
            inside = inside[step]
        match draw(st.sampled_from(("other", "gone", "listed", "more"))):
            case "other":
                inside[last] = draw(values)
            case "gone":
                del inside[last]
            case "listed":
                inside[last] = [inside[last]] * draw(st.integers(0, 3))
            case "more" if isinstance(inside[last], dict):
                inside[last][draw(texts)] = draw(values)
            case _:
                inside[last] = draw(scalars)
    return dumped(said)


def dumped(said: Any) -> bytes:
    return json.dumps(said, ensure_ascii=True).encode()


@st.composite
def requests(draw: st.DrawFn, here: Scene) -> Any:
    """Service, caller, method, URL, headers and body of one request."""
    service = draw(st.sampled_from(tuple(here.apps)))
    method, template = draw(st.sampled_from(sorted(endpoints(here.apps[service]))))
    ids = here.ids
    row = EXPECTED[service][method, template]
    good = row.path.format(**ids).partition("?")[0]
    path, query = good, row.path.format(**ids).partition("?")[2]
    if "{" in template and draw(st.booleans()):
        path = re.sub(r"\{[^}]+\}", lambda _: quote(draw(texts), safe=""), template)
    if draw(st.booleans()):
        pairs = draw(st.lists(st.tuples(st.sampled_from(NAMES), texts), max_size=4))
        query = "&".join(f"{name}={quote(value, safe='')}" for name, value in pairs)
    headers = draw(st.dictionaries(st.sampled_from(HEADERS), plain, max_size=3))
    if "Content-Type" not in headers:
        headers["Content-Type"] = row.media.encode()
    verb = draw(st.sampled_from((method, method, method, "PATCH", "HEAD", "OPTIONS", "X-ODD")))
    caller = draw(st.sampled_from(CALLERS[service]))
    url = f"{path}?{query}" if query else path
    return service, caller, verb, url, headers, draw(bent(row, ids))


def faults(url: str, method: str, answer: httpx.Response) -> list[str]:
    """What is wrong with an answer, whatever was asked."""
    found = []
    path = url.partition("?")[0]
    if answer.status_code >= 500:
        found.append(f"status {answer.status_code}")
    for name, value in (
        ("x-content-type-options", "nosniff"),
        ("referrer-policy", "no-referrer"),
    ):
        if answer.headers.get(name) != value:
            found.append(f"no {name}")
    if "cache-control" not in answer.headers:
        found.append("no cache-control")
    media = answer.headers.get("content-type", "")
    policy = answer.headers.get("content-security-policy", "")
    if media.startswith("text/html") and "default-src 'none'" not in policy:
        found.append("a page without a policy")
    if answer.status_code >= 400 and path.startswith(("/fhir/", "/v1/")) and method != "HEAD":
        try:
            said = orjson.loads(answer.content)
        except orjson.JSONDecodeError:
            said = {}
        if said.get("resourceType") != "OperationOutcome":
            found.append("an error that is no OperationOutcome")
    if answer.status_code >= 400 and any(
        word in answer.text for word in ("Traceback", "asyncpg", "sqlalchemy", "pydantic")
    ):
        found.append("words of the machinery")
    return found


@pytest.fixture(scope="module")
async def signed_in(scene: Scenes) -> Scenes:
    """With a session of each person."""
    await sign_in(scene[0].database)
    return scene


_asked = itertools.count()


@settings(
    max_examples=EXAMPLES,
    deadline=None,
    database=None,
    derandomize=True,
    suppress_health_check=list(HealthCheck),
)
@given(data=st.data())
async def test_no_request_whatever_is_answered_5xx_or_in_others_words(
    signed_in: Scenes, data: st.DataObject
) -> None:
    here, http = signed_in
    if next(_asked) % 100 == 0:
        await sign_in(here.database)  # one of those before may have signed out
    service, caller, method, url, headers, body = data.draw(requests(here))
    credentials = {n: v.encode() for n, v in here.credentials(caller).items()}
    http[service].cookies.clear()
    answer = await http[service].request(method, url, headers=headers | credentials, content=body)
    assert faults(url, method, answer) == []


@pytest.mark.parametrize("service", EXPECTED)
async def test_every_route_answers_with_the_headers_of_every_answer(
    signed_in: Scenes, service: str
) -> None:
    """Good or refused, page or resource: nosniff, no referrer, never kept; pages with a policy."""
    here, http = signed_in
    wrong = {}
    for (method, template), row in EXPECTED[service].items():
        path = row.path.format(**here.ids)
        for caller in CALLERS[service]:
            for url in (path, f"{path}%00", "/nothing/here"):
                answer = await http[service].request(
                    method, url, headers={"Content-Type": row.media, **here.credentials(caller)}
                )
                if found := faults(url, method, answer):
                    wrong[f"{method} {template} {caller}"] = found
    assert wrong == {}

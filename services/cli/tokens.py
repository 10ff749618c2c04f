"""The client side of SMART Backend Services: keys of demo clients, and tokens got with them.

`passerelle token --as hospital-a` uses it, and so do the demo and the tests: the way every
hospital and clinic gets its tokens.
"""

import os
import secrets
from pathlib import Path
from typing import Any

import httpx
import orjson
from joserfc import jwt
from joserfc.errors import JoseError
from joserfc.jwk import ECKey

from services.plumbing import region
from services.plumbing.auth import Authority, AuthorityAwayError, authority_client
from services.plumbing.clock import real_now
from services.plumbing.egress import Egress

ASSERTION_TYPE = "urn:ietf:params:oauth:client-assertion-type:jwt-bearer"
ASSERTION_LASTS = 240
"""Seconds; an authority accepts at most 300 (SM-25)."""


class TokenError(Exception):
    """There is no token to be had; the message says why."""


def private_key_file(data: Path, client: str) -> Path:
    return data / "clients" / f"{client}.private.json"


def make_keys(data: Path, client: str) -> None:
    """Give `client` a key pair in the data directory, unless it has one.

    `clients/<id>.private.json` is readable by its owner only; `clients/<id>.jwks.json` is what
    the region file's `jwks_file` names.
    """
    key = kept_key(private_key_file(data, client))
    public = key.as_dict(private=False, use="sig", alg="ES384")
    jwks = data / "clients" / f"{client}.jwks.json"
    _put(jwks, orjson.dumps({"keys": [public]}), 0o644)


def kept_key(file: Path) -> ECKey:
    """The P-384 key pair of `file`, made at the first call and kept with mode 0600."""
    try:
        if not file.exists():
            file.parent.mkdir(parents=True, exist_ok=True)
            made = ECKey.generate_key("P-384", auto_kid=True)
            _put(file, orjson.dumps(made.as_dict(private=True)), 0o600)
        if file.stat().st_mode & 0o077:
            raise TokenError(f"{file} can be read by others. Close it (chmod 600) or remove it.")
        key = ECKey.import_key(orjson.loads(file.read_bytes()))
    except OSError as error:
        raise TokenError(f"{file}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, JoseError):
        raise TokenError(f"{file} is not a key. Remove it, and a new one will be made.") from None
    if not key.is_private:
        raise TokenError(f"{file} is not a private key.")
    return key


def _put(file: Path, content: bytes, mode: int) -> None:
    """Write `file` whole or not at all, closed to others from its first moment."""
    new = file.with_name(f".{file.name}.{secrets.token_hex(4)}")
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(descriptor, "wb") as to:
        to.write(content)
        to.flush()
        os.fsync(descriptor)
    new.rename(file)


def assertion(key: ECKey, client: str, token_url: str, **changed: Any) -> str:
    """A signed statement that this is `client`, for the authority at `token_url`."""
    now = int(real_now().timestamp())
    claims = {
        "iss": client,
        "sub": client,
        "aud": token_url,
        "exp": now + ASSERTION_LASTS,
        "jti": secrets.token_urlsafe(16),
        **changed,
    }
    header = {"alg": "ES384", "typ": "JWT", "kid": key.kid}
    return jwt.encode(header, claims, key, algorithms=["ES384"])


async def access_token(data: Path, issuer: str, client: str, scope: str | None = None) -> str:
    """An access token of `client`, a client of the region file of the data directory.

    `scope` defaults to all that the region file grants it. TokenError says what is missing.
    """
    entry = region.load(data / "region.yaml").client(client)
    if entry is None:
        raise TokenError(f"{client} is not a client of {data / 'region.yaml'}.")
    file = private_key_file(data, client)
    if not file.exists():
        raise TokenError(f"There is no private key of {client} in {file.parent}.")
    key = kept_key(file)
    async with authority_client(Egress(local=True)) as http:
        try:
            url = await Authority(issuer, http).endpoint("token_endpoint")
            answer = await http.post(
                url,
                data={
                    "grant_type": "client_credentials",
                    "scope": scope or " ".join(entry.scopes),
                    "client_assertion_type": ASSERTION_TYPE,
                    "client_assertion": assertion(key, client, url),
                },
            )
            said = answer.json()
        except (AuthorityAwayError, httpx.HTTPError, ValueError):
            raise TokenError(f"The authority at {issuer} does not answer. Is it running?") from None
    if answer.status_code != httpx.codes.OK:
        raise TokenError(f"The authority refuses: {said.get('error')}.")
    token: str = said["access_token"]
    return token

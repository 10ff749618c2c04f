"""What receivers verify: Standard Webhooks by the libraries they use (CA-66, CS-98)."""

import asyncio
import base64
import json
import random
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError

from services.notify.delivery import signature
from services.notify.subscriptions import BOTH_SIGN, new_secret
from services.plumbing.clock import real_now
from tests.services.test_notify_delivery import Scene, flagged, owner, scene

__all__ = ["owner", "scene"]

MESSAGES = 1_000
JAVASCRIPT = Path(__file__).parents[2] / ".tooling" / "webhooks"
"""Where `make webhooks` puts the JavaScript library."""
VERIFY = """
const { Webhook } = require("standardwebhooks");
const wrong = [];
const messages = JSON.parse(require("fs").readFileSync(0, "utf8"));
messages.forEach((one, number) => {
  try { new Webhook(one.secret).verify(one.body, one.headers); }
  catch (error) { wrong.push([number, error.message]); }
});
console.log(JSON.stringify(wrong));
"""


@dataclass(frozen=True)
class Message:
    """One notification as it would go out, and a secret its receiver has."""

    secret: str
    body: bytes
    headers: dict[str, str]


def messages(number: int, seed: int = 98) -> list[Message]:
    """Bodies of any text, secrets of 24 to 64 bytes, one or two of them, instants of any zone."""
    chance = random.Random(seed)
    found = []
    for _ in range(number):
        secrets = [
            "whsec_" + base64.b64encode(chance.randbytes(chance.randint(24, 64))).decode()
            for _ in range(chance.choice((1, 2)))
        ]
        letters = 'aé€𝄞"\\\n\u2028 {}'
        said = {"text": "".join(chance.choices(letters, k=chance.randint(0, 200)))}
        body = json.dumps(said, ensure_ascii=chance.random() < 0.5).encode()
        zone = timezone(timedelta(minutes=chance.randint(-14 * 60, 14 * 60)))
        at = (real_now() + timedelta(seconds=chance.randint(-60, 60))).astimezone(zone)
        id_ = str(UUID(int=chance.getrandbits(128), version=4))
        headers = signature(secrets, id_, at, body)
        found.append(Message(chance.choice(secrets), body, headers))
    return found


def test_a_thousand_messages_verify_in_python() -> None:
    """With either secret while two are valid, whatever zone our clock is in."""
    for one in messages(MESSAGES):
        assert Webhook(one.secret).verify(one.body, one.headers) == json.loads(one.body)


def test_what_was_changed_on_the_way_does_not_verify() -> None:
    for number, one in enumerate(messages(50)):
        other = messages(50, seed=99)[number]
        for body, headers, secret in (
            (one.body + b" ", one.headers, one.secret),
            (one.body, one.headers | {"webhook-id": "another"}, one.secret),
            (one.body, one.headers | {"webhook-timestamp": "1700000000"}, one.secret),
            (one.body, one.headers, other.secret),
        ):
            with pytest.raises(WebhookVerificationError):
                Webhook(secret).verify(body, headers)


async def test_a_thousand_messages_verify_in_javascript() -> None:
    """The library most receivers have."""
    if not (JAVASCRIPT / "node_modules" / "standardwebhooks").is_dir():
        pytest.skip("JavaScript's standardwebhooks is not there: run `make webhooks`")
    said: list[dict[str, Any]] = [
        {"secret": one.secret, "body": one.body.decode(), "headers": one.headers}
        for one in messages(MESSAGES)
    ]
    said[17]["body"] += " "
    process = await asyncio.create_subprocess_exec(
        "node",
        "-e",
        VERIFY,
        cwd=JAVASCRIPT,
        stdin=asyncio.subprocess.PIPE,
        stdout=asyncio.subprocess.PIPE,
    )
    answer, _ = await process.communicate(json.dumps(said).encode())
    assert [number for number, _ in json.loads(answer)] == [17]


async def test_a_new_secret_signs_beside_the_one_before_for_a_day(scene: Scene) -> None:
    """CA-66: a receiver changes when it can; each endpoint has its own."""
    emr = scene.door.client("clinic-a-emr")
    made = await scene.subscribe(emr)
    before = made.headers["passerelle-webhook-secret"]
    address = f"/fhir/Subscription/{made.json()['id']}"
    stranger = scene.door.client("clinic-a-other")
    assert (await stranger.post(f"{address}/$rotate-secret")).status_code == 404
    answer = await emr.post(f"{address}/$rotate-secret")
    assert answer.status_code == 200
    after = answer.headers["passerelle-webhook-secret"]
    assert after != before
    assert after not in answer.text
    await flagged(scene)
    await scene.rounds()
    headers, body = scene.endpoint.got[-1]
    assert len(headers["webhook-signature"].split(" ")) == 2
    for secret in (after, before):
        assert Webhook(secret).verify(body, headers)
    scene.passes(seconds=BOTH_SIGN.total_seconds() + 1)
    await flagged(scene)
    await scene.rounds()
    headers, body = scene.endpoint.got[-1]
    signed_at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), tz=UTC)
    assert signed_at > real_now() + BOTH_SIGN - timedelta(minutes=1)
    assert headers["webhook-signature"] == signed_again(after, headers, body)


def signed_again(secret: str, headers: dict[str, str], body: bytes) -> str:
    """As `verify` computes it; which itself refuses what is a day ahead of the real clock."""
    at = datetime.fromtimestamp(int(headers["webhook-timestamp"]), tz=UTC)
    return Webhook(secret).sign(headers["webhook-id"], at, body.decode())


def test_a_secret_is_random_and_of_the_form_that_libraries_take() -> None:
    made: set[Any] = {new_secret() for _ in range(100)}
    assert len(made) == 100
    for secret in made:
        assert secret.startswith("whsec_")
        assert 24 <= len(base64.b64decode(secret.removeprefix("whsec_"))) <= 64

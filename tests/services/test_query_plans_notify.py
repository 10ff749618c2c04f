"""Each hot query of notify is served by the indexes it names, and scans no table."""

from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text
from sqlalchemy.sql import Executable

from services.notify import store
from services.plumbing.db import Database, Tx

NOW = datetime(2026, 3, 2, tzinfo=UTC)
KEYS = {"keys": [UUID(int=1)]}
ONE = {"clinic": "clinic-a", "id": UUID(int=1)}


@pytest.fixture
async def tx(db: Callable[[str], Database]) -> AsyncIterator[Tx]:
    async with db("notify").work() as made:
        await made.execute(text("set local enable_seqscan = off"))
        yield made


async def explained(tx: Tx, query: Executable, values: dict[str, Any]) -> str:
    """The plan of `query` as it is sent."""
    sent: list[tuple[str, Any]] = []

    def listen(*said: Any) -> None:
        sent.append((said[2], said[3]))

    event.listen(tx.sync_connection, "before_cursor_execute", listen)
    await tx.execute(query, values)
    event.remove(tx.sync_connection, "before_cursor_execute", listen)
    ((statement, parameters),) = sent
    raw = await tx.get_raw_connection()
    assert raw.driver_connection is not None
    rows = await raw.driver_connection.fetch(f"explain {statement}", *parameters)
    return "\n".join(row[0] for row in rows)


@pytest.mark.parametrize(
    ("query", "values", "indexes"),
    [
        (store._FAMILY, KEYS, ["patient_pkey", "patient_merged_into"]),
        (store._NEWEST_STANDINGS, KEYS, ["standing_pkey"]),
        (store._EPISODES, KEYS, ["episode_pkey"]),
        (store._PANEL_OF, KEYS, ["token_patient", "panel_token"]),
        (store._CONSENTS_OF, KEYS, ["token_patient", "consent_token", "consent_disputed"]),
        (store._CARDS, KEYS, ["card_patient"]),
        (store._FLAGS, KEYS, ["flag_patient"]),
        (store._OUTLOOKS, KEYS, ["outlook_patient"]),
        (store._CARD, ONE, ["card_"]),
        (store._CORRECTIONS, {"encounters": [UUID(int=1)]}, ["correction_pkey"]),
        (
            store._FOLLOWED,
            {"site": "hospital-a", "most": 10},
            ["reach_pkey", "standing_pkey", "correction_"],
        ),
        (store._HISTORY, {"card": UUID(int=1)}, ["card_version_pkey"]),
        (store._MATCHED, {"key_ids": ["k"], "digests": ["d"]}, ["token_pkey"]),
        (store._DUE, {"now": NOW, "most": 10}, ["due_at"]),
        (store._CONSENT_LATEST, {"id": "x"}, ["consent_latest"]),
        (
            store._LEASE,
            {"now": NOW, "until": NOW, "most": 10},
            ["notification_due", "notification_order", "subscription_pkey"],
        ),
    ],
)
async def test_a_hot_query_is_served_by_the_indexes_it_names(
    tx: Tx, query: Executable, values: dict[str, Any], indexes: list[str]
) -> None:
    plan = await explained(tx, query, values)
    assert [name for name in indexes if name not in plan] == []
    assert "Seq Scan" not in plan

"""The states of ingest: the drawing in docs/states.md, the enum and the CHECK say the same."""

import re
from pathlib import Path

from services.ingest.reading import ADVICE, Reason
from tests.conftest import FreshDatabase

PAGE = Path(__file__).parents[2] / "docs" / "states.md"


def drawn(heading: str) -> set[str]:
    """The states in the drawing under `heading`."""
    section = PAGE.read_text().split(f"## {heading}\n")[1]
    drawing = re.search(r"```mermaid\n(.*?)```", section, re.DOTALL)
    assert drawing is not None
    return set(re.findall(r"[a-z][a-z-]+[a-z]", drawing[1].replace("stateDiagram-v2", "")))


async def checked(database: FreshDatabase, table: str, column: str) -> set[str]:
    """The values that the CHECK of a column allows."""
    owner = await database.owner()
    try:
        rule = await owner.fetchval(
            "select pg_get_constraintdef(oid) from pg_constraint"
            " where conrelid = $1::regclass and conname = $2",
            f"ingest.{table}",
            f"{table}_{column}_check",
        )
    finally:
        await owner.close()
    return set(re.findall(r"'([a-z-]+)'::text", rule))


async def test_a_held_message_is_held_for_what_is_drawn(database: FreshDatabase) -> None:
    reasons = {str(reason) for reason in Reason}
    assert drawn("A held message (ingest)") == reasons == {str(one) for one in ADVICE}
    assert await checked(database, "version", "hold") == reasons


async def test_a_refused_body_is_in_a_state_that_is_drawn(database: FreshDatabase) -> None:
    assert await checked(database, "refused", "state") == drawn("A refused body (ingest)")

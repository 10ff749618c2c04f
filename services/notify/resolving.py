"""How a person works off what is on hold (CS-36): each act is a recorded change, after which it is
decided again. Nothing here releases anything.
"""

from collections.abc import Sequence
from typing import Final
from uuid import UUID

from services.notify import intake, paper, store
from services.notify.consent import ACT_CODE
from services.notify.flow import Turn, reconsider
from services.notify.intake import Capture, Captured
from services.plumbing import audit, telemetry
from services.plumbing.audit import Trail
from services.plumbing.web import Rejection

REPLACED: Final = "replaced"
DISMISSED: Final = "dismissed"


async def dismiss(refused: UUID, item: UUID, by: str, why: str, turn: Turn, trail: Trail) -> bool:
    """A refused Consent was looked at and says nothing that binds; False: it is dealt with."""
    key_id, box = turn.house.seals.seal(refused, "why", why)
    return await _resolve(refused, item, by, turn, trail, why=[key_id, box], successor=None)


async def replaced(
    refused: UUID, item: UUID, by: str, successor: str, turn: Turn, trail: Trail
) -> bool:
    """A refused Consent was recorded rightly, as `Consent/id/_history/v`; False: it was before."""
    return await _resolve(refused, item, by, turn, trail, why=None, successor=successor)


async def _resolve(
    refused: UUID,
    item: UUID,
    by: str,
    turn: Turn,
    trail: Trail,
    *,
    why: Sequence[str] | None,
    successor: str | None,
) -> bool:
    tx, now = turn.tx, turn.now
    outcome = DISMISSED if successor is None else REPLACED
    row = await store.refused(tx, refused)
    if row is None:
        return False
    patients = [] if row.key_id is None else await store.matched(tx, [(row.key_id, row.digest)])
    roots = sorted(await store.families(tx, patients))
    await store.change_consents(tx, roots)
    await store.lock(tx, roots)
    resolved = await store.resolve_refused(
        tx, id=refused, by=by, resolution=outcome, why=why, successor=successor, now=now
    )
    if not resolved:
        return False
    about = await store.open_items(tx, [refused])
    await store.close_items(tx, [one.id for one in about], now, by=by, outcome=outcome)
    name = f"Consent/refused-{refused}"
    await audit.record(tx, [trail.updated(name, roots[0] if roots else None)])
    await reconsider(roots, turn, access=True)
    await store.credit_item(tx, item, now, by=by, outcome=outcome)
    return True


async def withdraw(
    id_: str, version: int, by: Capture, item: UUID | None, turn: Turn, trail: Trail
) -> Captured:
    """The next version of a Consent, which speaks no more (CS-58). Rejection 404, 412."""
    row = await store.consent(turn.tx, id_)
    body = None if row is None else intake.opened_consent(turn.house, row)
    if body is None:
        raise Rejection("not-found", "There is no such Consent.", status=404)
    done = await intake.capture_consent(
        Capture(
            paper.withdrawn(body),
            by.tenant,
            by.by,
            id_,
            if_version=version,
            may_create=False,
            only_own_panel=by.only_own_panel,
            any_tenant=by.any_tenant,
        ),
        turn,
        trail,
    )
    if item is not None:
        await store.credit_item(turn.tx, item, turn.now, by=by.by, outcome=REPLACED)
    return done


async def assign(
    id_: str, version: int, patient: UUID, by: str, item: UUID, turn: Turn, trail: Trail
) -> Captured | None:
    """Of which of two keys a disputed Consent is: its next version says so (CS-53).

    None: it is of neither, or not in dispute. Rejection 412 for a stale version.
    """
    row = await store.consent(turn.tx, id_)
    body = None if row is None else intake.opened_consent(turn.house, row)
    if row is None or body is None or row.disputed_with is None:
        return None
    own = await store.matched(turn.tx, [(row.key_id, row.digest)])
    if patient not in {*own, row.disputed_with}:
        return None
    resource = {**body, "patient": {"reference": f"Patient/{patient}"}}
    done = await intake.capture_consent(
        Capture(resource, row.tenant, by, id_, if_version=version, may_create=False),
        turn,
        trail,
    )
    await store.credit_item(turn.tx, item, turn.now, by=by, outcome=REPLACED)
    return done


async def assess(
    encounter: UUID,
    patient: UUID,
    labels: Sequence[str],
    by: str,
    item: UUID,
    turn: Turn,
    trail: Trail,
) -> None:
    """How sensitive a visit is whose hospital did not say; none: looked at, and it is not."""
    tx = turn.tx
    roots = sorted(await store.families(tx, [patient]))
    await store.change_consents(tx, roots)
    await store.lock(tx, roots)
    await store.add_assessment(
        tx,
        id=telemetry.new_id(),
        encounter=encounter,
        patient=patient,
        labels=[[ACT_CODE, code] for code in labels],
        by=by,
        at=turn.now,
    )
    await audit.record(tx, [trail.updated(f"Encounter/{encounter}", patient)])
    await reconsider(roots, turn, access=True)
    await store.credit_item(tx, item, turn.now, by=by, outcome=REPLACED)

"""Which carrier this installation has: the one place that chooses."""

from services.plumbing.clock import Clock
from services.plumbing.db import Database
from services.plumbing.eventlog import Carrier, PostgresCarrier, Trimmer
from services.plumbing.kafka import KafkaCarrier, Link, Relay
from services.plumbing.process import Background
from services.plumbing.settings import Settings


def reading(settings: Settings, db: Database) -> Carrier:
    """What a `Reader` of this process reads with; each reader has its own."""
    if settings.kafka_bootstrap is None:
        return PostgresCarrier(db)
    return KafkaCarrier(Link.of(settings))


def relaying(settings: Settings, db: Database) -> list[Background]:
    """What a process must run beside its door, so that what it states arrives, and then goes."""
    if settings.kafka_bootstrap is None:
        return [Trimmer(db, Clock(settings.clock)).run]
    return [Relay(db, Link.of(settings), Clock(settings.clock)).run]

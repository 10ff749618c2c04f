"""The tables of migrations/, as far as queries name them. Their meaning is said there."""

from sqlalchemy import (
    ARRAY,
    Boolean,
    Column,
    Date,
    DateTime,
    Integer,
    MetaData,
    Table,
    Text,
    Uuid,
)

metadata = MetaData()
Instant = DateTime(timezone=True)

fact = Table(
    "fact",
    metadata,
    Column("encounter", Uuid, primary_key=True),
    Column("version", Integer),
    Column("patient", Uuid),
    Column("status", Text),
    Column("start", Instant),
    Column("first_recorded", Instant),
    Column("excluded", Boolean),
    Column("fact", Text),
)
correction = Table(
    "correction",
    metadata,
    Column("encounter", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("excluded", Boolean),
    Column("recorded", Instant),
)
fact_version = Table(
    "fact_version",
    metadata,
    Column("encounter", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("patient", Uuid),
    Column("recorded", Instant),
    Column("fact", Text),
)
person_version = Table(
    "person_version",
    metadata,
    Column("key", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("birth_date", Date),
    Column("death", Instant),
    Column("recorded", Instant),
)
link_version = Table(
    "link_version",
    metadata,
    Column("retired", Uuid, primary_key=True),
    Column("version", Integer, primary_key=True),
    Column("surviving", Uuid),
    Column("active", Boolean),
    Column("recorded", Instant),
)
patient = Table(
    "patient",
    metadata,
    Column("key", Uuid, primary_key=True),
    Column("person_version", Integer),
    Column("birth_date", Date),
    Column("death", Instant),
    Column("identified", Instant),
    Column("state", Text),
    Column("held", Boolean),
    Column("since", Instant),
    Column("ed_visits", Integer),
    Column("hospital_episodes", Integer),
    Column("sites", ARRAY(Text)),
    Column("notice", Text),
    Column("face", Text),
    Column("policy", Text),
    Column("sequence", Integer),
    Column("entry", Integer),
    Column("changed_at", Instant),
    Column("merged_into", Uuid),
    Column("ever", Boolean),
    Column("episode_sequence", Integer),
    Column("due_at", Instant),
    Column("restated", Boolean),
)
change = Table(
    "change",
    metadata,
    Column("patient", Uuid, primary_key=True),
    Column("sequence", Integer, primary_key=True),
    Column("state", Text),
    Column("cause", Text),
    Column("notice", Text),
    Column("counted", Instant),
    Column("event", Text),
)
episode = Table(
    "episode",
    metadata,
    Column("patient", Uuid, primary_key=True),
    Column("episode", Uuid, primary_key=True),
    Column("said", Text),
)

-- The event log's tables, in each service's own schema. {service} is filled in by migrate.py.

create table outbox (
  -- The writing transaction. With `position` it orders the log so that a reader which stops
  -- before the oldest open transaction can never be overtaken by a late commit (ST-01).
  xid xid8 not null default pg_current_xact_id(),
  position bigint generated always as identity,
  id uuid not null default gen_random_uuid(),
  type text not null,
  subject uuid,
  time timestamptz not null,
  traceparent text,
  data text not null,
  primary key (xid, position)
);
alter table outbox enable row level security;
alter table outbox force row level security;
create policy request on outbox for insert to passerelle_{service}_request with check (true);
create policy worker on outbox to passerelle_{service}_worker using (true) with check (true);
create policy readers on outbox for select
  to passerelle_ingest_worker, passerelle_screening_worker, passerelle_notify_worker using (true);
grant insert on outbox to passerelle_{service}_request;
grant insert, delete on outbox to passerelle_{service}_worker;
grant select on outbox
  to passerelle_ingest_worker, passerelle_screening_worker, passerelle_notify_worker;

-- How far the outbox was trimmed: a reader whose place is before this has lost events.
create table outbox_trimmed (
  one boolean primary key default true check (one),
  xid xid8 not null,
  position bigint not null
);
grant select, insert, update on outbox_trimmed to passerelle_{service}_worker;
grant select on outbox_trimmed
  to passerelle_ingest_worker, passerelle_screening_worker, passerelle_notify_worker;

-- How far a reader has read, moved in the transaction of what it did.
create table place (
  reader text not null,
  source text not null,
  partition int not null,
  xid text not null,
  position bigint not null,
  moved timestamptz not null,
  primary key (reader, source, partition)
);
grant select, insert, update, delete on place to passerelle_{service}_worker;

-- Events that could not be taken in, with the reason; a person replays or discards them.
create table dead_letter (
  id uuid not null,
  reader text not null,
  type text not null,
  source text not null,
  subject uuid,
  time timestamptz not null,
  traceparent text,
  data text not null,
  reason text not null,
  attempts int not null,
  first_failed timestamptz not null,
  last_failed timestamptz not null,
  state text not null default 'waiting'
    check (state in ('waiting', 'replay', 'replayed', 'discarded')),
  settled timestamptz,
  settled_by text,
  primary key (reader, id)
);
create index dead_letter_replay on dead_letter (reader) where state = 'replay';
alter table dead_letter enable row level security;
alter table dead_letter force row level security;
create policy worker on dead_letter to passerelle_{service}_worker using (true) with check (true);
grant select, insert, update on dead_letter to passerelle_{service}_worker;

-- What a rebuild needs to state every fact again as it was stated (counting.md section 9): which
-- messages made which fact, and when; the versions of who is behind a key; how far it has come.

-- `fact`: the number of the encounter's newest fact once this message was taken in; `settled`: when
-- that was (business clock), later than `arrived` where it was held. Null while it says nothing.
alter table version add column fact int;
alter table version add column settled timestamptz;

-- Every stated version of a patient, with the values that screening opens; the newest is whole in
-- `patient`. Sealed as there.
create table patient_version (
  key uuid not null references patient,
  version int not null,
  recorded timestamptz not null,
  fields jsonb not null,
  primary key (key, version)
);

create function dates(fields jsonb) returns jsonb language sql immutable as $$
  select coalesce(jsonb_object_agg(f.key, f.value), '{}')
  from jsonb_each(fields) f where f.key in ('birthDate', 'deceased')
$$;

-- A rebuild that was asked for, and how far it has come: one at a time.
create table restatement (
  id uuid primary key,
  asked_by text not null,
  begun timestamptz not null,
  stage text not null default 'persons'
    check (stage in ('persons', 'links', 'encounters', 'ended')),
  after uuid not null default '00000000-0000-0000-0000-000000000000',
  persons int not null default 0,
  links int not null default 0,
  encounters int not null default 0,
  ended timestamptz,
  check ((ended is not null) = (stage = 'ended'))
);
create unique index restatement_under_way on restatement ((true)) where stage <> 'ended';

-- What was taken in before this file: of an encounter its newest fact alone can be stated again,
-- with the arrival of the message that made it; of a person the newest version, as of the first
-- message about them. The owner sees no row of these tables otherwise.
alter table version no force row level security;
update version v set settled = v.arrived, fact = case
    when v.version = (select max(n.version) from version n where n.key = v.key and n.said is not null)
    then r.fact_version else 0 end
from resource r where r.key = v.key and v.said is not null;
insert into patient_version (key, version, recorded, fields)
select p.key, p.version, coalesce(min(v.arrived), now()), dates(p.fields)
from patient p left join resource r on r.patient = p.key left join version v on v.key = r.key
where p.version > 0
group by p.key;
alter table version force row level security;

alter table patient_version enable row level security;
alter table patient_version force row level security;
create policy owner on patient_version to current_user using (true) with check (true);
create policy worker on patient_version to passerelle_ingest_worker using (true) with check (true);
grant select, insert, update on patient_version to passerelle_ingest_worker;
alter table restatement enable row level security;
alter table restatement force row level security;
create policy worker on restatement to passerelle_ingest_worker using (true) with check (true);
grant select, insert, update on restatement to passerelle_ingest_worker;

-- As in 0001, and each version of a patient is kept.
create or replace function settle(people jsonb, links jsonb) returns void
language plpgsql security definer set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
begin
  insert into patient (key, version, fields, sites, attributed, surviving, link_version, apart)
  select p.key, p.version, p.fields, p.sites, p.attributed, null, p.link_version, p.apart
  from jsonb_to_recordset(people) as p (
    key uuid, version int, fields jsonb, sites text[], attributed text[], link_version int,
    apart uuid[])
  order by p.key
  on conflict (key) do update set
    version = excluded.version, fields = excluded.fields, sites = excluded.sites,
    attributed = excluded.attributed, link_version = excluded.link_version,
    apart = excluded.apart;
  update patient p set surviving = s.surviving
  from jsonb_to_recordset(people) as s (key uuid, surviving uuid)
  where p.key = s.key and p.surviving is distinct from s.surviving
    and p.key = any (array(
      select s.key from jsonb_to_recordset(people) as s (key uuid)));
  update token t set patient = s.key
  from jsonb_to_recordset(people) as s (key uuid, digests text[])
  where t.digest = any (s.digests) and t.patient is null
    and t.digest = any (array(
      select unnest(s.digests) from jsonb_to_recordset(people) as s (digests text[])));
  insert into patient_version (key, version, recorded, fields)
  select p.key, p.version, p.recorded, dates(p.fields)
  from jsonb_to_recordset(people) as p (
    key uuid, version int, recorded timestamptz, fields jsonb)
  on conflict do nothing;
  insert into link (retired, version, surviving, merged, cause, record, by, at)
  select l.retired, l.version, l.surviving, l.merged, l.cause, l.record, l.by, l.at
  from jsonb_to_recordset(links) as l (
    retired uuid, version int, surviving uuid, merged boolean, cause text, record uuid, by text,
    at timestamptz);
end $$;

-- As in 0001, with the number of the fact and the time.
create or replace function keep(of_site text, of_client text, records jsonb, versions jsonb) returns void
language plpgsql set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
declare
  gone record;
begin
  insert into resource as r (key, site, kind, id, version, digest, deleted, updated, patient,
    temporary, told_at, fact_version, stated)
  select n.key, of_site, n.kind, n.id, n.version, n.digest, n.deleted, n.updated, n.patient,
    n.temporary, n.told_at, n.fact_version, n.stated
  from jsonb_to_recordset(records) as n (key uuid, kind text, id text, version int, digest text,
    deleted boolean, updated timestamptz, patient uuid, temporary boolean, told_at timestamptz,
    fact_version int, stated text)
  on conflict (key) do update set version = excluded.version, digest = excluded.digest,
    deleted = excluded.deleted, updated = excluded.updated, patient = excluded.patient,
    temporary = excluded.temporary, told_at = excluded.told_at,
    fact_version = excluded.fact_version, stated = excluded.stated;
  insert into handle (site, kind, name, key)
  select of_site, n.kind, 'id/' || n.id, n.key
  from jsonb_to_recordset(records) as n (key uuid, existed boolean, kind text, id text)
  where not n.existed
  on conflict do nothing;
  for gone in  -- rarely any
    select x.key, x.digest
    from jsonb_to_recordset(records) as n (key uuid, existed boolean, identifiers text[])
    cross join lateral (
      select i.key, i.digest from identifier i where i.key = n.key offset 0
    ) x
    where n.existed and n.identifiers is not null and x.digest <> all (n.identifiers)
  loop
    delete from identifier i where i.key = gone.key and i.digest = gone.digest;
  end loop;
  insert into identifier (site, kind, digest, key)
  select distinct of_site, n.kind, d, n.key
  from jsonb_to_recordset(records) as n (key uuid, kind text, identifiers text[]),
    unnest(n.identifiers) as d
  on conflict do nothing;
  insert into version (key, version, site, kind, key_id, body, context, digest, arrived, told_at,
    door, client, moves, said, hold, due, detail, waits_for, fact, settled)
  select n.key, n.version, of_site, n.kind, n.key_id, n.body, n.context, n.digest, n.arrived,
    n.told_at, n.door, of_client, n.moves, n.said, n.hold, n.due, n.detail, n.waits_for,
    n.fact, n.settled
  from jsonb_to_recordset(versions) as n (key uuid, version int, kind text, key_id text,
    body text, context text, digest text, arrived timestamptz, told_at timestamptz, door text,
    moves boolean, said jsonb, hold text, due timestamptz, detail text, waits_for uuid,
    fact int, settled timestamptz);
end $$;


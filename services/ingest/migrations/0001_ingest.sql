-- What the hospitals sent, and whose it is.
--
-- Functions with the owner's rights (SECURITY DEFINER, search_path pinned): meet and settle. They
-- are the only way a request reaches patient, token and link, which belong to no one site: meet
-- tells of the patients whose identifiers are presented, or whom the site's own records name, and
-- of nobody else; settle writes what was decided of those and of new keys.

-- Every name by which a site may mean a resource: `id/<logical id>` or `no/<token>`. Of fifty who
-- create the same at once the primary key lets one in (HA-24). A name may be claimed before its
-- resource has come: by a reference to it.
create table handle (
  site text not null,
  kind text not null check (kind in ('Encounter', 'Patient')),
  name text not null,
  key uuid not null,
  primary key (site, kind, name)
);

create table resource (
  key uuid primary key,
  site text not null,
  kind text not null check (kind in ('Encounter', 'Patient')),
  -- The logical id it is served under; the site's own namespace (HA-23).
  id text not null,
  version int not null,
  -- Of the newest version's content: what is sent again unchanged has no effect (HA-11).
  digest text not null,
  deleted boolean not null default false,
  updated timestamptz not null,
  -- Patient: the key this record belongs to. Encounter: that of its fact. Null while undecided.
  patient uuid,
  -- Patient: a temporary identity (HA-96).
  temporary boolean not null default false,
  -- Patient: event time of the newest message.
  told_at timestamptz not null,
  -- Encounter: version and digest of the fact last stated.
  fact_version int not null default 0,
  stated text,
  unique (site, kind, id)
);
create index resource_site on resource (site, kind, key);
create index resource_patient on resource (patient, site);

create table version (
  key uuid not null references resource,
  version int not null,
  site text not null,
  kind text not null,
  -- The received text, sealed; null for a deletion (HA-04).
  key_id text,
  body text,
  -- Conditions that came with it, sealed.
  context text,
  digest text not null,
  arrived timestamptz not null,
  -- When it says that it happened (HA-82).
  told_at timestamptz not null,
  door text not null check (door in ('rest', 'message', 'import')),
  client text not null,
  moves boolean not null default false,
  -- Encounter: what it says, once it is not held any more.
  said jsonb,
  hold text check (hold in (
    'awaiting-patient', 'unknown-class', 'start-missing', 'start-imprecise', 'future',
    'key-reused', 'identity-conflict', 'temporary-identity', 'merge-circle')),
  due timestamptz,
  detail text,
  -- Key of the Patient record whose coming or merging ends the hold.
  waits_for uuid,
  -- A person let it pass the hold, and who.
  admitted_by text,
  discarded_by text,
  discard_reason text,
  primary key (key, version)
);
create index version_held on version (site, hold) where hold is not null;
create index version_due on version (due) where hold is not null and due is not null;
create index version_waits on version (waits_for) where hold is not null and waits_for is not null;

-- Identifiers of the newest version, as tokens: for conditions and search.
create table identifier (
  site text not null,
  kind text not null,
  digest text not null,
  key uuid not null references resource,
  primary key (site, kind, digest, key)
);
create index identifier_key on identifier (key, site);

-- One person. `fields`: name → {k, b: key id and box, d: token of the value, at, by: record}.
create table patient (
  key uuid primary key,
  version int not null,
  fields jsonb not null default '{}',
  sites text[] not null default '{}',
  attributed text[] not null default '{}',
  -- A merge in force: this key is retired, that one speaks (HA-97).
  surviving uuid references patient,
  link_version int not null default 0,
  -- Keys that were told apart from this one: never merged again by itself.
  apart uuid[] not null default '{}'
);

create table token (
  digest text primary key,
  key_id text not null,
  system text not null,
  is_card boolean not null,
  patient uuid references patient
);
create index token_patient on token (patient);

-- Every merge and unmerge, with what it rests on.
create table link (
  retired uuid not null references patient,
  version int not null,
  surviving uuid not null references patient,
  merged boolean not null,
  cause text not null check (cause in ('record', 'evidence', 'person')),
  record uuid,
  by text not null,
  at timestamptz not null,
  primary key (retired, version)
);

-- Message Bundles, for ever (HA-46).
create table message (
  site text not null,
  bundle text not null,
  header text not null,
  digest text not null,
  status int not null,
  answer text not null,
  at timestamptz not null,
  primary key (site, bundle)
);
create index message_header on message (site, header);

-- What had no effect, for a person to see (HA-80). Repeats are counted, not copied.
create table refused (
  id uuid not null default gen_random_uuid() unique,
  site text not null,
  digest text not null,
  reason text not null check (reason in ('refused', 'ignored-by-condition')),
  kind text not null,
  door text not null,
  client text not null,
  request jsonb not null,
  status int not null,
  outcome jsonb not null,
  key_id text not null,
  body text,
  arrived timestamptz not null,
  told_at timestamptz,
  last_seen timestamptz not null,
  times int not null default 1,
  purge_at timestamptz not null,
  state text not null default 'waiting' check (state in ('waiting', 'replayed', 'discarded')),
  settled timestamptz,
  settled_by text,
  result text,
  primary key (site, digest, reason)
);
create index refused_waiting on refused (site, arrived) where state = 'waiting';

-- Things that are odd and stop nothing.
create table quality (
  site text not null,
  key uuid not null,
  version int not null,
  code text not null check (code in ('identifier-unusable', 'gender-differs', 'birth-date-vague')),
  expression text not null,
  at timestamptz not null,
  primary key (key, version, code, expression)
);

create table heard (
  site text primary key,
  last_event timestamptz not null,
  at timestamptz not null
);

do $$
declare t text;
begin
  foreach t in array array[
    'handle', 'resource', 'version', 'identifier', 'message', 'refused', 'quality', 'heard']
  loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format(
      'create policy request on %I to passerelle_ingest_request'
      ' using (site = current_setting(''passerelle.tenant'', true))'
      ' with check (site = current_setting(''passerelle.tenant'', true))', t);
    execute format(
      'create policy worker on %I to passerelle_ingest_worker using (true) with check (true)', t);
    execute format(
      'grant select, insert, update on %I to passerelle_ingest_request, passerelle_ingest_worker',
      t);
  end loop;
  foreach t in array array['patient', 'token', 'link'] loop
    execute format('alter table %I enable row level security', t);
    execute format('alter table %I force row level security', t);
    execute format(
      'create policy worker on %I to passerelle_ingest_worker using (true) with check (true)', t);
    execute format('create policy owner on %I to current_user using (true) with check (true)', t);
    execute format('grant select, insert, update on %I to passerelle_ingest_worker', t);
  end loop;
end $$;
create policy owner on resource to current_user using (true) with check (true);
grant delete on identifier to passerelle_ingest_request, passerelle_ingest_worker;

-- The functions of the hot path plan once a connection, and by index whatever the statistics say:
-- their first plan may be made on empty tables, and a plan that fits those reads all of a million
-- rows later. `lateral (… offset 0)` is an index look-up for each row before it, never the reverse.

-- Make the names in `names` exist, each with the key proposed for it, unless it has one already;
-- hold them all until the end of the transaction; and say which key each one has, with the
-- resource of that key and what its messages say, if it has come. Also the resources `others`.
-- Names are taken in one order, patients first, so that two who claim the same ones never wait for
-- each other. One statement to the client, three here: each sees what was committed before it.
create function claim(of_site text, kinds text[], names text[], keys uuid[], others uuid[])
returns table (
  kind text, name text, key uuid, id text, version int, digest text, deleted boolean,
  updated timestamptz, patient uuid, temporary boolean, told_at timestamptz, fact_version int,
  stated text, messages jsonb)
language plpgsql set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  insert into handle (site, kind, name, key)
  select of_site, p.kind, p.name, p.key
  from unnest(kinds, names, keys) as p (kind, name, key)
  order by p.kind desc, p.name
  on conflict do nothing;
  perform from (
    select p.kind, p.name from unnest(kinds, names) as p (kind, name) order by p.kind desc, p.name
  ) p cross join lateral (
    select h.key from handle h
    where h.site = of_site and h.kind = p.kind and h.name = p.name
    for update offset 0
  ) h;
  return query
  with wanted as (
    select p.kind, p.name, h.key, row_number() over (partition by h.key order by p.name) as nth
    from unnest(kinds, names) as p (kind, name) cross join lateral (
      select h.key from handle h
      where h.site = of_site and h.kind = p.kind and h.name = p.name offset 0
    ) h
    union all
    select null, null, o.key, 1 from unnest(others) as o (key)
  )
  select coalesce(w.kind, r.kind), w.name, w.key, r.id, r.version, r.digest, r.deleted, r.updated,
    r.patient, r.temporary, r.told_at, r.fact_version, r.stated, v.messages
  from wanted w
  left join lateral (
    select * from resource r where r.key = w.key and w.nth = 1 offset 0
  ) r on true
  left join lateral (
    select jsonb_agg(jsonb_build_object(
      'version', v.version, 'said', v.said, 'hold', v.hold, 'due', v.due,
      'waits_for', v.waits_for) order by v.version) as messages
    from version v
    where v.key = r.key and (v.said is not null or v.hold is not null)
  ) v on true;
end $$;

-- Tokens presented by a message, made known if they are new, and the patients they lead to;
-- also the patients of the site's own records among `own`. All are held until the end of the
-- transaction, in one order. A patient comes with the chain it is merged into.
create function meet(
  of_site text, digests text[], key_ids text[], systems text[], cards boolean[], own uuid[])
returns table (found jsonb)
language plpgsql security definer set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
declare
  people uuid[];
begin
  if current_setting('passerelle.tenant', true) not in (of_site, '') then
    raise insufficient_privilege;
  end if;
  insert into token (digest, key_id, system, is_card)
  select p.digest, p.key_id, p.system, p.is_card
  from unnest(digests, key_ids, systems, cards) as p (digest, key_id, system, is_card)
  order by p.digest
  on conflict do nothing;
  perform from token t where t.digest = any (digests) order by t.digest for update;
  with recursive chain (key) as (
    select t.patient from token t where t.digest = any (digests) and t.patient is not null
    union
    select o.key from unnest(own) as o (key) cross join lateral (
      select from resource r where r.patient = o.key and r.site = of_site limit 1
    ) r
    union
    select p.surviving from chain c cross join lateral (
      select p.surviving from patient p where p.key = c.key and p.surviving is not null offset 0
    ) p
  )
  select array_agg(c.key) into people from chain c;
  perform from patient p where p.key = any (people) order by p.key for update;
  return query
  select jsonb_build_object('digest', t.digest, 'patient', t.patient)
  from token t where t.digest = any (digests) and t.patient is not null
  union all
  select jsonb_build_object(
    'key', p.key, 'version', p.version, 'fields', p.fields, 'sites', p.sites,
    'attributed', p.attributed, 'surviving', p.surviving, 'link_version', p.link_version,
    'apart', p.apart,
    'link_record', (
      select l.record from link l
      where l.retired = p.key and l.version = p.link_version and l.cause = 'record'),
    'tokens', coalesce((
      select jsonb_agg(jsonb_build_object(
        'digest', t.digest, 'key_id', t.key_id, 'system', t.system, 'is_card', t.is_card))
      from token t where t.patient = p.key), '[]'))
  from patient p where p.key = any (people);
end $$;

-- What was decided of the patients that meet told of, and of new ones. A token that belongs to
-- somebody stays theirs.
create function settle(people jsonb, links jsonb) returns void
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
  insert into link (retired, version, surviving, merged, cause, record, by, at)
  select l.retired, l.version, l.surviving, l.merged, l.cause, l.record, l.by, l.at
  from jsonb_to_recordset(links) as l (
    retired uuid, version int, surviving uuid, merged boolean, cause text, record uuid, by text,
    at timestamptz);
end $$;

-- Write the records that changed, their identifiers and own names, and the versions that came.
create function keep(of_site text, of_client text, records jsonb, versions jsonb) returns void
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
    door, client, moves, said, hold, due, detail, waits_for)
  select n.key, n.version, of_site, n.kind, n.key_id, n.body, n.context, n.digest, n.arrived,
    n.told_at, n.door, of_client, n.moves, n.said, n.hold, n.due, n.detail, n.waits_for
  from jsonb_to_recordset(versions) as n (key uuid, version int, kind text, key_id text,
    body text, context text, digest text, arrived timestamptz, told_at timestamptz, door text,
    moves boolean, said jsonb, hold text, due timestamptz, detail text, waits_for uuid);
end $$;

-- Held versions that wait for the records `woken`, or for a start of the encounters `started`.
create function waiting(of_site text, woken uuid[], started uuid[])
returns table (key uuid, version int)
language plpgsql set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  return query
  select v.key, v.version from version v
  where v.site = of_site and v.hold is not null and v.waits_for = any (woken)
  union
  select v.key, v.version from version v
  where v.site = of_site and v.key = any (started)
    and v.hold in ('start-missing', 'start-imprecise');
end $$;

-- The living resources of the site that have one of these identifiers.
create function matching(of_site text, digests text[])
returns table (kind text, digest text, key uuid)
language plpgsql set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
#variable_conflict use_column
begin
  return query
  select i.kind, i.digest, i.key
  from identifier i cross join lateral (
    select from resource r where r.key = i.key and not r.deleted offset 0
  ) r
  where i.site = of_site and i.kind in ('Encounter', 'Patient') and i.digest = any (digests);
end $$;

revoke all on function meet, settle, claim, keep, waiting, matching from public;
grant execute on function meet, settle, claim, keep, waiting, matching
  to passerelle_ingest_request, passerelle_ingest_worker;

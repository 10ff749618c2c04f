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
create index identifier_key on identifier (key);

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
language plpgsql set search_path = ingest, pg_temp as $$
#variable_conflict use_column
begin
  insert into handle (site, kind, name, key)
  select of_site, p.kind, p.name, p.key
  from unnest(kinds, names, keys) as p (kind, name, key)
  order by p.kind desc, p.name
  on conflict do nothing;
  perform from handle h
  join unnest(kinds, names) as p (kind, name) on h.kind = p.kind and h.name = p.name
  where h.site = of_site
  order by h.kind desc, h.name
  for update of h;
  return query
  with wanted as (
    select h.kind, h.name, h.key, row_number() over (partition by h.key order by h.name) as nth
    from handle h
    join unnest(kinds, names) as p (kind, name) on h.kind = p.kind and h.name = p.name
    where h.site = of_site
    union all
    select null, null, o.key, 1 from unnest(others) as o (key)
  )
  select coalesce(w.kind, r.kind), w.name, w.key, r.id, r.version, r.digest, r.deleted, r.updated,
    r.patient, r.temporary, r.told_at, r.fact_version, r.stated, v.messages
  from wanted w
  left join resource r on r.key = w.key and w.nth = 1
  left join lateral (
    select jsonb_agg(jsonb_build_object(
      'version', v.version, 'said', v.said, 'hold', v.hold, 'due', v.due,
      'waits_for', v.waits_for) order by v.version) as messages
    from version v
    where v.key = r.key and (v.said is not null or v.hold is not null)
  ) v on r.key is not null;
end $$;

-- Tokens presented by a message, made known if they are new, and the patients they lead to;
-- also the patients of the site's own records among `own`. All are held until the end of the
-- transaction, in one order. A patient comes with the chain it is merged into.
create function meet(
  of_site text, digests text[], key_ids text[], systems text[], cards boolean[], own uuid[])
returns table (found jsonb)
language plpgsql security definer set search_path = ingest, pg_temp as $$
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
    select r.patient from resource r where r.site = of_site and r.patient = any (own)
    union
    select p.surviving from chain c join patient p on p.key = c.key where p.surviving is not null
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
language plpgsql security definer set search_path = ingest, pg_temp as $$
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
  where p.key = s.key and p.surviving is distinct from s.surviving;
  update token t set patient = s.key
  from jsonb_to_recordset(people) as s (key uuid, digests text[])
  where t.digest = any (s.digests) and t.patient is null;
  insert into link (retired, version, surviving, merged, cause, record, by, at)
  select l.retired, l.version, l.surviving, l.merged, l.cause, l.record, l.by, l.at
  from jsonb_to_recordset(links) as l (
    retired uuid, version int, surviving uuid, merged boolean, cause text, record uuid, by text,
    at timestamptz);
end $$;

revoke all on function meet, settle, claim from public;
grant execute on function meet, settle, claim
  to passerelle_ingest_request, passerelle_ingest_worker;

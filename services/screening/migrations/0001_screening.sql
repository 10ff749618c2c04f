-- What screening knows, and what it has said. Roles and schema are there already; the log's own
-- tables (outbox, place, dead_letter) and audit are plumbing's.
-- No table has a tenant: all of it is for operations and the privacy officer (CS-01).

-- Every version of every encounter, for what was known when (CT-02). Nothing is removed.
-- `fact` here and below is the JSON of the event, kept as text: it is read whole, never queried.
create table fact_version (
  encounter uuid not null,
  version int not null,
  patient uuid not null,
  site text not null,
  recorded timestamptz not null,  -- by ingest
  learnt timestamptz not null,    -- by screening
  fact text not null,
  primary key (encounter, version)
);
create index fact_version_patient on fact_version (patient);

-- The newest version of each encounter: what is counted (CT-15).
create table fact (
  encounter uuid primary key,
  version int not null,
  patient uuid not null,
  status text not null,
  start timestamptz,
  first_recorded timestamptz not null,
  fact text not null
);
create index fact_patient_start on fact (patient, start, encounter);

create table person_version (
  key uuid not null,
  version int not null,
  birth_date date,
  death timestamptz,
  recorded timestamptz not null,
  learnt timestamptz not null,
  primary key (key, version)
);

create table link_version (
  retired uuid not null,
  version int not null,
  surviving uuid not null,
  active boolean not null,
  recorded timestamptz not null,
  learnt timestamptz not null,
  primary key (retired, version)
);
create index link_version_surviving on link_version (surviving);

-- The newest version of each link (CT-01).
create table link (
  retired uuid primary key,
  version int not null,
  surviving uuid not null,
  active boolean not null
);
create index link_surviving on link (surviving) where active;

-- One row a patient key: the person, where they stand, and what was last said of it.
create table patient (
  key uuid primary key,
  person_version int,             -- null until patient.identified came
  birth_date date,
  death timestamptz,
  identified timestamptz,
  state text not null default 'below' check (state in ('below', 'watch', 'flagged')),
  held boolean not null default false,
  since timestamptz,
  ed_visits int not null default 0,
  hospital_episodes int not null default 0,
  sites text[] not null default '{}',
  notice text check (notice in ('alert', 'quiet')),
  face text not null default '',
  policy text,
  sequence int not null default 0,
  entry int not null default 0,
  changed_at timestamptz,         -- when the newest change was announced
  merged_into uuid,
  ever boolean not null default false,
  episode_sequence int not null default 0,
  due_at timestamptz,
  check (not held or state = 'flagged')
);
create index patient_due on patient (due_at) where due_at is not null;
create index patient_changed on patient (changed_at desc, key desc) where sequence > 0;

-- Each announced change, with its explanation as it was (counting.md section 8).
create table change (
  patient uuid not null,
  sequence int not null,
  state text not null check (state in ('below', 'watch', 'flagged')),
  cause text not null,
  notice text not null check (notice in ('alert', 'quiet')),
  held boolean not null,
  since timestamptz,
  ed_visits int not null,
  hospital_episodes int not null,
  sites text[] not null,
  counted timestamptz not null,
  event text not null,
  primary key (patient, sequence)
);
create index change_counted on change (counted desc);

-- What was last said of each care episode (CT-27).
create table episode (
  patient uuid not null,
  episode uuid not null,
  said text not null,
  primary key (patient, episode)
);

-- When each site was last heard, for coverage. No patient.
create table site (
  site text primary key,
  last_event timestamptz not null,
  heard timestamptz not null
);

-- The policies that ever were live here, in their canonical form (CT-50). No patient.
create table policy (
  name text not null,
  version int not null,
  sha256 text not null,
  canonical text not null,
  activated timestamptz not null,  -- the newest is live
  primary key (name, version)
);

do $$
declare
  each text;
begin
  foreach each in array array['fact_version', 'fact', 'person_version', 'link_version', 'link',
                              'patient', 'change', 'episode', 'site', 'policy'] loop
    execute format('alter table %I enable row level security', each);
    execute format('alter table %I force row level security', each);
    execute format('create policy request on %I for select to passerelle_screening_request'
      ' using (current_setting(''passerelle.role'', true) in (''ops'', ''privacy''))', each);
    execute format('create policy worker on %I to passerelle_screening_worker'
      ' using (true) with check (true)', each);
    execute format('grant select on %I to passerelle_screening_request', each);
    execute format('grant select, insert, update on %I to passerelle_screening_worker', each);
  end loop;
end
$$;

-- Who did, saw and was told what (IHE BALP, CS-110), in each service's own schema.
-- {service} is filled in by migrate.py. Application roles add and read; nobody changes (CS-112).

create table audit (
  position bigint generated always as identity primary key,
  id uuid not null default gen_random_uuid(),
  recorded timestamptz not null,
  shape text not null check (shape in (
    'PatientCreate', 'PatientUpdate', 'PatientDelete', 'PatientRead', 'PatientQuery',
    'Create', 'Update', 'Delete', 'Read', 'Query',
    'PrivacyDisclosure.Source', 'AuthZ-Consent', 'AuthZ-Role',
    'Refused', 'SignIn', 'SignOut', 'Export', 'Configuration')),
  interaction text,
  outcome smallint not null check (outcome in (0, 4, 8)),
  reasons text[] not null default '{}',
  tenant text,
  agent text not null,
  agent_kind text not null check (agent_kind in ('client', 'person', 'service', 'unknown')),
  roles text[] not null default '{}',
  token_id text,
  network text,
  recipient text,
  reader text,
  patient uuid,
  entities text[] not null default '{}',
  query text,
  purpose text,
  policy text,
  -- What was told: items (`2 ED visits`, references), content level, Consents it rests on (CS-114).
  items text[] not null default '{}',
  level text check (level in ('L1', 'L2', 'L3')),
  basis text[] not null default '{}',
  request_id text,
  -- Names what is recorded once only, as a page's own refreshes of one card version (E-2).
  once uuid unique,
  -- Real time, by the database; `recorded` is business time.
  written timestamptz not null default now(),
  check (shape not like 'Patient%' and shape <> 'PrivacyDisclosure.Source' or patient is not null),
  check (shape <> 'Refused' or patient is null),
  check (shape <> 'AuthZ-Consent' or cardinality(entities) > 0)
);
create index audit_patient on audit (patient, recorded) where patient is not null;
create index audit_agent on audit (agent, recorded);

alter table audit enable row level security;
alter table audit force row level security;
create policy request_adds on audit for insert to passerelle_{service}_request
  with check (coalesce(tenant, '') = current_setting('passerelle.tenant', true));
-- A decision is the privacy officer's alone: a refusal must look as if nothing had happened (CS-42).
create policy request_reads on audit for select to passerelle_{service}_request using (
  current_setting('passerelle.role', true) = 'privacy'
  or tenant = current_setting('passerelle.tenant', true) and shape not like 'AuthZ-%');
create policy worker_adds on audit for insert to passerelle_{service}_worker with check (true);
create policy worker_reads on audit for select to passerelle_{service}_worker using (true);
grant select, insert on audit to passerelle_{service}_request, passerelle_{service}_worker;
-- The sealer chains what is written, the auditor reads it and records that it did (chain.sql).
create policy sealer on audit for select to passerelle_{service}_sealer using (true);
create policy auditor_reads on audit for select to passerelle_auditor using (true);
create policy auditor_adds on audit for insert to passerelle_auditor
  with check (shape = 'Export' and agent_kind = 'person');
grant select on audit to passerelle_{service}_sealer;
grant select, insert on audit to passerelle_auditor;

-- Consents that were refused, what a person must look at, and the glass that was broken.
--
-- No function here runs with the owner's rights.

-- A Consent that is no valid R4, sealed as it came (CS-57). If it says of whom it is, nothing about
-- that patient goes out until a person has looked at it (`holds`).
create table refused_consent (
  id uuid primary key,
  -- Site or clinic that sent it.
  tenant text not null,
  captured_by text not null,
  -- Id it was sent under, if it named one that is legal.
  consent text,
  -- Token of the patient it is about; null: nobody can say.
  key_id text,
  digest text,
  -- Keyed digest of the body: what is sent again is not refused again.
  fingerprint text not null,
  -- Paths and rules, never a value.
  issues jsonb not null,
  body_key_id text not null,
  body text not null,
  holds boolean not null,
  received timestamptz not null,
  resolved timestamptz,
  resolved_by text,
  resolution text check (resolution in ('replaced', 'dismissed')),
  -- Why it was dismissed, sealed: [key id, box].
  why jsonb,
  -- The Consent version that says it rightly.
  successor text,
  check ((resolved is null) = (resolution is null)),
  check ((key_id is null) = (digest is null))
);
create unique index refused_consent_same on refused_consent (tenant, fingerprint)
  where resolved is null;
create index refused_consent_token on refused_consent (key_id, digest) where resolved is null;

-- What only a person can settle: one for each patient and reason (CS-36). Nothing here releases
-- anything; what is recorded elsewhere makes the decision another one, and that closes it.
create table work_item (
  id uuid primary key,
  -- Surviving key. Null: of whom it is nobody can say.
  patient uuid,
  -- What it is about where that is more than the patient: a refused Consent, an override.
  about uuid,
  reason text not null check (reason in ('unknown-readers', 'unknown-actor', 'unknown-label',
    'unknown-code', 'unknown-date', 'unknown-author', 'unknown-condition', 'unknown-age',
    'not-computable', 'conflict', 'decision-error', 'disputed', 'refused', 'override')),
  -- Sites whose hospital case manager sees it; the privacy officer sees every one.
  sites text[] not null,
  -- Consent versions it rests on.
  basis text[] not null,
  opened timestamptz not null,
  alarmed timestamptz,
  closed timestamptz,
  -- Person; null: another decision.
  closed_by text,
  outcome text check (outcome in ('decided', 'identified', 'replaced', 'dismissed', 'reviewed')),
  check (patient is not null or about is not null),
  check ((closed is null) = (outcome is null))
);
create unique index work_item_one on work_item (coalesce(about, patient), reason)
  where closed is null;
create index work_item_opened on work_item (opened, id) where closed is null;

-- How sensitive a visit is whose hospital did not say, as a person found (CS-24); newest speaks.
create table assessment (
  id uuid primary key,
  encounter uuid not null,
  patient uuid not null,
  -- [[system, code]]; none: it was looked at, and is not sensitive.
  labels jsonb not null,
  by text not null,
  at timestamptz not null,
  position bigint generated always as identity
);
create index assessment_patient on assessment (patient);

-- Somebody broke the glass, or tried to (CS-55).
create table override (
  id uuid primary key,
  person text not null,
  -- Their clinic or site.
  tenant text not null,
  -- Surviving key; null: nobody was found.
  patient uuid,
  ground text not null check (ground in ('risk-to-life', 'risk-to-integrity')),
  -- What the person wrote, sealed.
  why_key_id text not null,
  why text not null,
  at timestamptz not null,
  -- Null: it did not open.
  ends timestamptz,
  -- What opened it.
  opened_by text check (opened_by in ('consent', 'policy')),
  basis text[] not null,
  notice text not null check (notice in ('none', 'to-do', 'done')),
  notice_by text,
  reviewed timestamptz,
  reviewed_by text,
  verdict text check (verdict in ('justified', 'not-justified', 'incident')),
  -- What the reviewer wrote, sealed: [key id, box].
  review jsonb,
  check ((ends is null) = (opened_by is null)),
  check ((reviewed is null) = (verdict is null))
);
create index override_patient on override (patient, at);

-- What somebody had entered when they had to sign in again, sealed; for minutes (NW-72).
create table draft (
  person text not null,
  page text not null,
  key_id text not null,
  box text not null,
  at timestamptz not null,
  primary key (person, page)
);

-- Row-level security (CS-91).

-- As Consents: a clinic's request also reads those that speak of its patients, because each of its
-- reads is decided by them; none is shown to a clinic.
alter table refused_consent enable row level security;
alter table refused_consent force row level security;
create policy request_reads on refused_consent for select to passerelle_notify_request using (
  tenant = current_setting('passerelle.tenant', true)
  or current_setting('passerelle.role', true) = 'privacy'
  or exists (select from token t
    where t.key_id = refused_consent.key_id and t.digest = refused_consent.digest));
create policy worker on refused_consent to passerelle_notify_worker using (true) with check (true);
grant select on refused_consent to passerelle_notify_request;
grant select, insert, update on refused_consent to passerelle_notify_worker;

alter table work_item enable row level security;
alter table work_item force row level security;
create policy request on work_item for select to passerelle_notify_request using (
  current_setting('passerelle.role', true) = 'privacy'
  or current_setting('passerelle.role', true) = 'hosp_cm' and reason <> 'override'
    and current_setting('passerelle.tenant', true) = any(sites));
create policy worker on work_item to passerelle_notify_worker using (true) with check (true);
grant select on work_item to passerelle_notify_request;
grant select, insert, update on work_item to passerelle_notify_worker;

alter table assessment enable row level security;
alter table assessment force row level security;
create policy request on assessment for select to passerelle_notify_request using (
  exists (select from reach r where r.patient = assessment.patient));
create policy worker on assessment to passerelle_notify_worker using (true) with check (true);
grant select on assessment to passerelle_notify_request;
grant select, insert on assessment to passerelle_notify_worker;

alter table override enable row level security;
alter table override force row level security;
create policy request on override for select to passerelle_notify_request using (
  current_setting('passerelle.role', true) = 'privacy');
create policy worker on override to passerelle_notify_worker using (true) with check (true);
grant select on override to passerelle_notify_request;
grant select, insert, update on override to passerelle_notify_worker;

alter table draft enable row level security;
alter table draft force row level security;
create policy worker on draft to passerelle_notify_worker using (true) with check (true);
grant select, insert, update, delete on draft to passerelle_notify_worker;

-- The privacy officer withdraws what anybody captured, and sees what there is to withdraw.
create policy privacy_reads on consent for select to passerelle_notify_request using (
  current_setting('passerelle.role', true) = 'privacy');

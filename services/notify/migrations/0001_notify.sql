-- Whose patients are flagged, who may be told, and the cards that came of it.
--
-- A clinic's request reaches the patients in `reach`: those its panel claims or it has a card of.
-- No function here runs with the owner's rights.

-- A patient key ingest made. `merged_into` is another key of the same person.
create table patient (
  key uuid primary key,
  version int not null default 0,
  -- Field by field {"key_id", "box"}, as ingest sealed them (CS-94).
  demographics jsonb not null default '{}',
  -- Clinics a hospital recorded for the patient (CA-46).
  attributed text[] not null default '{}',
  sites text[] not null default '{}',
  merged_into uuid,
  merge_version int not null default 0,
  merged_at timestamptz
);
create index patient_merged_into on patient (merged_into) where merged_into is not null;

-- What a patient can be matched by: identifiers' tokens, and the key itself under key id `key`.
create table token (
  key_id text not null,
  digest text not null,
  patient uuid not null,
  primary key (key_id, digest, patient)
);
create index token_patient on token (patient);

create table reach (
  clinic text not null,
  patient uuid not null,
  primary key (clinic, patient)
);
create index reach_patient on reach (patient);

-- Where a patient stands, every announced sequence kept: old versions of a card are read by it.
create table standing (
  patient uuid not null,
  sequence int not null,
  explanation text not null,
  state text not null check (state in ('below', 'watch', 'flagged')),
  cause text not null,
  retracts int,
  merged_into uuid,
  -- Sequence at which the present flagged time began, and whether that entry was quiet (CT-42).
  spell int not null,
  quiet boolean not null,
  received timestamptz,
  counted timestamptz not null,
  arrived timestamptz not null,
  primary key (patient, sequence)
);

create table episode (
  patient uuid not null,
  episode uuid not null,
  sequence int not null,
  moment text not null,
  at timestamptz not null,
  site text not null,
  in_hospital boolean not null,
  ended boolean not null,
  void boolean not null,
  joined_into uuid,
  encounters uuid[] not null,
  -- Of all its encounters; null: not assessed.
  labels jsonb,
  primary key (patient, episode)
);

-- A clinic's claim that somebody is its patient. Never deleted: `superseded` ends it (CA-40).
create table panel (
  id uuid primary key,
  clinic text not null,
  -- Token of the health card.
  key_id text not null,
  digest text not null,
  -- Keyed digest of the whole row: tells a changed row from a repeated one.
  fingerprint text not null,
  -- Card, names, birth date and so on, sealed under this row's id.
  boxes jsonb not null,
  language text not null default '',
  nurse text,
  physician text,
  starts date,
  ends date,
  source text not null check (source in ('csv')),
  recorded timestamptz not null,
  superseded timestamptz,
  confirmed_on timestamptz,
  confirmed_by text check (confirmed_by in ('demographics', 'attributed', 'person'))
);
create unique index panel_present on panel (clinic, key_id, digest) where superseded is null;
create index panel_token on panel (key_id, digest);

create table panel_report (
  id uuid primary key,
  clinic text not null,
  at timestamptz not null,
  mode text not null check (mode in ('delta', 'full')),
  dry_run boolean not null,
  -- Keyed digest of the file, so that a confirmation is of the same file.
  file text not null,
  report jsonb not null
);

-- Consents as received, sealed under `uid`; each version a row (CS-56).
create table consent (
  uid uuid primary key,
  id text not null,
  version int not null,
  latest boolean not null,
  -- Site or clinic that captured it.
  tenant text not null,
  captured_by text not null,
  -- Token of the patient it is about.
  key_id text not null,
  digest text not null,
  status text not null,
  computable boolean not null,
  body_key_id text not null,
  body text not null,
  recorded timestamptz not null,
  -- After an unmerge: of which of the two it is, a person must say (CS-53).
  disputed_with uuid,
  unique (id, version)
);
create unique index consent_latest on consent (id) where latest;
create index consent_token on consent (key_id, digest) where latest;
create index consent_disputed on consent (disputed_with) where disputed_with is not null;

-- Work with one episode of one patient. What it says is composed at each view, never kept.
create table card (
  id uuid primary key,
  clinic text not null,
  patient uuid not null,
  key text not null,
  spell int not null,
  what text not null check (what in ('threshold-reached', 'left-ed', 'discharged')),
  tier text not null check (tier in ('a', 'b', 'c')),
  status text not null check (status in ('requested', 'received', 'accepted', 'in-progress',
    'on-hold', 'completed', 'rejected', 'cancelled', 'entered-in-error')),
  version int not null,
  opened timestamptz not null,
  updated timestamptz not null,
  surfaced timestamptz not null,
  owner text,
  due timestamptz,
  moment text,
  moment_at timestamptz,
  site text,
  applied int not null,
  seen timestamptz,
  closed timestamptz,
  snoozed_until timestamptz,
  until_discharge boolean not null,
  dismissal text,
  dismissal_text text,
  why text check (why in ('count-corrected', 'visit-cancelled', 'merged', 'consent-withdrawn',
    'deceased', 'panel-changed', 'wrong-person', 'no-longer-applies')),
  by_own_consent boolean not null,
  surviving uuid,
  notes jsonb not null,
  outputs jsonb not null,
  before jsonb,
  shown boolean not null,
  inbox boolean not null,
  check (why is null or status in ('cancelled', 'entered-in-error'))
);
create unique index card_one on card (clinic, patient, key)
  where status not in ('cancelled', 'entered-in-error');
create index card_patient on card (patient);
create index card_updated on card (clinic, updated, id);

create table card_version (
  card uuid not null references card,
  version int not null,
  clinic text not null,
  at timestamptz not null,
  -- Person or client; null: we did it.
  by text,
  status text not null,
  -- The work state as it was, and the standing it went with.
  state jsonb not null,
  sequence int not null,
  primary key (card, version)
);

create table flag (
  id uuid primary key,
  clinic text not null,
  patient uuid not null,
  version int not null,
  state text not null check (state in ('below', 'watch', 'flagged')),
  status text not null check (status in ('active', 'inactive', 'entered-in-error')),
  since timestamptz,
  updated timestamptz not null,
  unique (clinic, patient)
);
create index flag_patient on flag (patient);
create index flag_updated on flag (clinic, updated, id);

-- Commit order of a clinic's changes: who stamps holds the row until it commits (CA-15).
create table clinic_clock (
  clinic text primary key,
  last timestamptz not null
);

-- How a clinic and a patient were last settled: what changed since, and whether it is news.
create table outlook (
  clinic text not null,
  patient uuid not null,
  outcome text not null check (outcome in ('permit', 'withhold', 'hold')),
  reasons text[] not null,
  basis text[] not null,
  sequence int not null,
  at timestamptz not null,
  primary key (clinic, patient)
);

create index outlook_patient on outlook (patient);

-- Decisions, for the privacy officer alone (CS-35, CS-42).
create table decision (
  id uuid primary key,
  at timestamptz not null,
  clinic text not null,
  patient uuid not null,
  card uuid,
  attempt text not null check (attempt in ('card', 'delivery', 'read')),
  outcome text not null check (outcome in ('permit', 'withhold', 'hold')),
  reasons text[] not null,
  basis text[] not null,
  signs text[] not null,
  readers text[] not null,
  policy text not null
);
create index decision_at on decision (at);
create index decision_patient on decision (patient, at);

-- Flagged patients whose card nobody can be given (CA-43).
create table unroutable (
  patient uuid primary key,
  reason text not null check (reason in ('no-panel', 'ended', 'unconfirmed', 'clinic-unknown')),
  since timestamptz not null
);

-- When the calendar alone makes a patient's cards be looked at again (CS-51).
create table due (
  patient uuid primary key,
  at timestamptz not null
);
create index due_at on due (at);

create table site (
  site text primary key,
  last_event timestamptz not null,
  heard timestamptz not null
);

create table subscription (
  id uuid primary key,
  clinic text not null,
  client text not null,
  version int not null,
  status text not null check (status in ('requested', 'active', 'error', 'off')),
  topic text not null check (topic in ('card', 'flag')),
  filters jsonb not null,
  reason text not null,
  endpoint text not null,
  mime text not null,
  content text not null check (content in ('empty', 'id-only', 'full-resource')),
  -- Names of headers with sealed values.
  headers jsonb not null,
  heartbeat int,
  timeout int not null,
  max_count int not null,
  ends timestamptz,
  contact jsonb not null,
  -- Events numbered since it began, delivered or not (CA-56).
  counter bigint not null default 0,
  error text,
  -- Signing secret, sealed.
  secret jsonb not null,
  created timestamptz not null,
  updated timestamptz not null,
  -- Real time: when the destination began to fail, how often, until when to leave it alone.
  failing_since timestamptz,
  failures int not null default 0,
  not_before timestamptz,
  alarmed boolean not null default false,
  last_sent timestamptz
);
create index subscription_clinic on subscription (clinic) where status <> 'off';

-- One event for one subscription. What it says is decided and written at each attempt.
create table notification (
  id uuid primary key,
  subscription uuid not null references subscription on delete cascade,
  clinic text not null,
  kind text not null check (kind in ('event', 'handshake', 'heartbeat')),
  number bigint not null,
  event text check (event in ('opened', 're-surfaced', 'changed', 'retracted')),
  card uuid,
  flag uuid,
  patient uuid,
  -- Business time of the event.
  at timestamptz not null,
  state text not null check (state in ('pending', 'delivered', 'dead')),
  attempts int not null default 0,
  -- Real times.
  due timestamptz not null,
  leased_until timestamptz,
  fence int not null default 0,
  first_sent timestamptz,
  last_sent timestamptz,
  delivered timestamptz,
  last_status int,
  reason text
);
create index notification_due on notification (due) where state = 'pending';
create index notification_order on notification (subscription, patient, number)
  where state = 'pending';
create index notification_card on notification (clinic, card);

-- Row-level security (CS-91): a clinic's rows for that clinic, a patient's for who reaches them.

alter table patient enable row level security;
alter table patient force row level security;
create policy request on patient for select to passerelle_notify_request using (
  current_setting('passerelle.role', true) = 'privacy'
  or exists (select from reach r where r.patient = key));
create policy worker on patient to passerelle_notify_worker using (true) with check (true);
grant select on patient to passerelle_notify_request;
grant select, insert, update on patient to passerelle_notify_worker;

alter table token enable row level security;
alter table token force row level security;
create policy request on token for select to passerelle_notify_request using (
  exists (select from reach r where r.patient = token.patient));
create policy worker on token to passerelle_notify_worker using (true) with check (true);
grant select on token to passerelle_notify_request;
grant select, insert, update, delete on token to passerelle_notify_worker;

alter table reach enable row level security;
alter table reach force row level security;
create policy request on reach for select to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true));
create policy worker on reach to passerelle_notify_worker using (true) with check (true);
grant select on reach to passerelle_notify_request;
grant select, insert, update on reach to passerelle_notify_worker;

alter table standing enable row level security;
alter table standing force row level security;
create policy request on standing for select to passerelle_notify_request using (
  exists (select from reach r where r.patient = standing.patient));
create policy worker on standing to passerelle_notify_worker using (true) with check (true);
grant select on standing to passerelle_notify_request;
grant select, insert, update on standing to passerelle_notify_worker;

alter table episode enable row level security;
alter table episode force row level security;
create policy request on episode for select to passerelle_notify_request using (
  exists (select from reach r where r.patient = episode.patient));
create policy worker on episode to passerelle_notify_worker using (true) with check (true);
grant select on episode to passerelle_notify_request;
grant select, insert, update on episode to passerelle_notify_worker;

alter table panel enable row level security;
alter table panel force row level security;
create policy request on panel to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on panel to passerelle_notify_worker using (true) with check (true);
grant select, insert, update on panel to passerelle_notify_request, passerelle_notify_worker;

alter table panel_report enable row level security;
alter table panel_report force row level security;
create policy request on panel_report to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on panel_report to passerelle_notify_worker using (true) with check (true);
grant select, insert on panel_report to passerelle_notify_request, passerelle_notify_worker;

-- A Consent is written by who captured it. A clinic's request also reads those that speak of its
-- patients, because each of its reads is decided by them; what it may be shown is api.py's to say.
alter table consent enable row level security;
alter table consent force row level security;
create policy request_reads on consent for select to passerelle_notify_request using (
  tenant = current_setting('passerelle.tenant', true)
  or exists (select from token t where t.key_id = consent.key_id and t.digest = consent.digest)
  or exists (select from reach r where r.patient = consent.disputed_with));
create policy request_adds on consent for insert to passerelle_notify_request
  with check (tenant = current_setting('passerelle.tenant', true));
create policy request_changes on consent for update to passerelle_notify_request
  using (tenant = current_setting('passerelle.tenant', true))
  with check (tenant = current_setting('passerelle.tenant', true));
create policy worker on consent to passerelle_notify_worker using (true) with check (true);
grant select, insert, update on consent to passerelle_notify_request, passerelle_notify_worker;

alter table card enable row level security;
alter table card force row level security;
create policy request on card to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on card to passerelle_notify_worker using (true) with check (true);
grant select, update on card to passerelle_notify_request;
grant select, insert, update on card to passerelle_notify_worker;

alter table card_version enable row level security;
alter table card_version force row level security;
create policy request on card_version to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on card_version to passerelle_notify_worker using (true) with check (true);
grant select, insert on card_version to passerelle_notify_request, passerelle_notify_worker;

alter table flag enable row level security;
alter table flag force row level security;
create policy request on flag for select to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true));
create policy worker on flag to passerelle_notify_worker using (true) with check (true);
grant select on flag to passerelle_notify_request;
grant select, insert, update on flag to passerelle_notify_worker;

alter table clinic_clock enable row level security;
alter table clinic_clock force row level security;
create policy request on clinic_clock to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on clinic_clock to passerelle_notify_worker using (true) with check (true);
grant select, insert, update on clinic_clock to passerelle_notify_request, passerelle_notify_worker;

alter table outlook enable row level security;
alter table outlook force row level security;
create policy worker on outlook to passerelle_notify_worker using (true) with check (true);
grant select, insert, update on outlook to passerelle_notify_worker;

alter table decision enable row level security;
alter table decision force row level security;
create policy privacy on decision for select to passerelle_notify_request
  using (current_setting('passerelle.role', true) = 'privacy');
create policy worker on decision to passerelle_notify_worker using (true) with check (true);
grant select on decision to passerelle_notify_request;
grant select, insert on decision to passerelle_notify_worker;

alter table unroutable enable row level security;
alter table unroutable force row level security;
create policy worker on unroutable to passerelle_notify_worker using (true) with check (true);
grant select, insert, update, delete on unroutable to passerelle_notify_worker;

alter table due enable row level security;
alter table due force row level security;
create policy worker on due to passerelle_notify_worker using (true) with check (true);
grant select, insert, update, delete on due to passerelle_notify_worker;

-- When a hospital was last heard from is on every page (NW-30); it is about no patient.
alter table site enable row level security;
alter table site force row level security;
create policy request on site for select to passerelle_notify_request using (true);
create policy worker on site to passerelle_notify_worker using (true) with check (true);
grant select on site to passerelle_notify_request;
grant select, insert, update on site to passerelle_notify_worker;

alter table subscription enable row level security;
alter table subscription force row level security;
create policy request on subscription to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on subscription to passerelle_notify_worker using (true) with check (true);
grant select, insert, update, delete on subscription
  to passerelle_notify_request, passerelle_notify_worker;

alter table notification enable row level security;
alter table notification force row level security;
create policy request on notification to passerelle_notify_request
  using (clinic = current_setting('passerelle.tenant', true))
  with check (clinic = current_setting('passerelle.tenant', true));
create policy worker on notification to passerelle_notify_worker using (true) with check (true);
grant select, insert, update, delete on notification to passerelle_notify_request;
grant select, insert, update, delete on notification to passerelle_notify_worker;

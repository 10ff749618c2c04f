-- What a card last said to who could be told, as a digest: where a Consent, a level or the calendar
-- changes it, the card is a new version (CA-15). Empty: not known.
alter table outlook add column reads text not null default '';

-- The directory by which everybody was last decided; when it changes, all are decided again (CS-51).
create table directory (
  one boolean primary key default true check (one),
  digest text not null,
  since timestamptz not null
);
alter table directory enable row level security;
alter table directory force row level security;
create policy worker on directory to passerelle_notify_worker using (true) with check (true);
grant select, insert, update on directory to passerelle_notify_worker;

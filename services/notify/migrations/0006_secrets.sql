-- A new signing secret comes in beside the one before, which signs along until the receiver has
-- had time to change (CA-66).
alter table subscription add column former_secret jsonb;
-- Real time.
alter table subscription add column former_until timestamptz;
alter table subscription add constraint former_secret_ends
  check ((former_secret is null) = (former_until is null));

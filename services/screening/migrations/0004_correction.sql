-- Encounters a person took out of the count, or put back (CT-17): every version, for what was
-- known when (CT-02). ingest does not have them, so a rebuild from there leaves them alone.
create table correction (
  encounter uuid not null,
  version int not null,
  patient uuid not null,          -- as the person saw it
  excluded boolean not null,
  reason text,                    -- a code; what was written stays with notify
  by text not null,
  recorded timestamptz not null,  -- by notify
  learnt timestamptz not null,    -- by screening
  primary key (encounter, version)
);
alter table correction enable row level security;
alter table correction force row level security;
create policy request on correction for select to passerelle_screening_request
  using (current_setting('passerelle.role', true) in ('ops', 'privacy'));
create policy worker on correction to passerelle_screening_worker using (true) with check (true);
grant select on correction to passerelle_screening_request;
grant select, insert on correction to passerelle_screening_worker;
-- It goes with its encounter when that was kept long enough (CS-121).
create policy purger_reads on correction for select to passerelle_purger using (true);
create policy purger_deletes on correction for delete to passerelle_purger using (true);
grant select, delete on correction to passerelle_purger;

-- Whether the newest correction of this encounter excludes it.
alter table fact add column excluded boolean not null default false;

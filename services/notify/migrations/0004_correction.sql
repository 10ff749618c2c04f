-- Encounters that a hospital case manager took out of the count, or put back, with the reason
-- (CT-17). Every version stays; the highest speaks.
create table correction (
  encounter uuid not null,
  version int not null,
  patient uuid not null,
  site text not null,
  excluded boolean not null,
  reason text check (reason in ('registered-twice', 'wrong-person', 'not-a-visit', 'other')),
  -- As the person wrote it; it goes nowhere else.
  note text not null,
  by text not null,
  at timestamptz not null,
  primary key (encounter, version),
  check (excluded = (reason is not null))
);
create index correction_patient on correction (patient);
create index correction_site on correction (site);

alter table correction enable row level security;
alter table correction force row level security;
create policy request on correction to passerelle_notify_request
  using (site = current_setting('passerelle.tenant', true))
  with check (site = current_setting('passerelle.tenant', true));
create policy privacy on correction for select to passerelle_notify_request
  using (current_setting('passerelle.role', true) = 'privacy');
create policy worker on correction to passerelle_notify_worker using (true) with check (true);
grant select, insert on correction to passerelle_notify_request, passerelle_notify_worker;
-- It goes with its encounter when that was kept long enough (CS-121).
create policy purger_reads on correction for select to passerelle_purger using (true);
create policy purger_deletes on correction for delete to passerelle_purger using (true);
grant select, delete on correction to passerelle_purger;

-- A hospital reaches the patients who visited it, as a clinic does those of its panel: what it may
-- be shown of them consent decides. The owner sees no row while row security is forced on it.
comment on column reach.clinic is 'A clinic, or a hospital that the patient visited.';
alter table standing no force row level security;
alter table reach no force row level security;
insert into reach (clinic, patient)
select distinct visit ->> 'site', patient
from standing,
  jsonb_path_query(explanation::jsonb, '$.items[*].encounters[*]') as visit
on conflict do nothing;
alter table standing force row level security;
alter table reach force row level security;

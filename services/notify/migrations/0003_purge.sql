-- What has been kept long enough is destroyed by a role of its own (CS-121), never by the service.
do $$
declare
  each text;
begin
  foreach each in array array['patient', 'token', 'reach', 'standing', 'episode', 'panel',
                              'panel_report', 'consent', 'card', 'card_version', 'flag', 'outlook',
                              'decision', 'unroutable', 'due', 'notification'] loop
    execute format('create policy purger_reads on %I for select to passerelle_purger using (true)',
      each);
    execute format('create policy purger_deletes on %I for delete to passerelle_purger'
      ' using (true)', each);
    execute format('grant select, delete on %I to passerelle_purger', each);
  end loop;
end
$$;

-- A patient whose data nobody may destroy, whatever their age: a complaint, a lawsuit.
create table legal_hold (
  id uuid primary key,
  patient uuid not null,
  placed timestamptz not null,
  placed_by text not null,
  -- File or matter number; no words about the patient.
  matter text not null,
  lifted timestamptz,
  lifted_by text
);
create unique index legal_hold_in_force on legal_hold (patient) where lifted is null;
alter table legal_hold enable row level security;
alter table legal_hold force row level security;
create policy purger on legal_hold to passerelle_purger using (true) with check (true);
grant select, insert, update on legal_hold to passerelle_purger;

-- Records of the audit that have been kept long enough go, in whole segments, and each destruction
-- is a record itself (CS-121). {service} is filled in by migrate.py.

create policy purger_reads on audit for select to passerelle_purger using (true);
create policy purger_deletes on audit for delete to passerelle_purger using (true);
create policy purger_adds on audit for insert to passerelle_purger
  with check (shape in ('Delete', 'Configuration') and agent_kind = 'person');
grant select, insert, delete on audit to passerelle_purger;

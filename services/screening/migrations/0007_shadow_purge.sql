-- Where somebody stood in shadow goes with them (CS-121).
create policy purger_reads on shadow for select to passerelle_purger using (true);
create policy purger_deletes on shadow for delete to passerelle_purger using (true);
grant select, delete on shadow to passerelle_purger;

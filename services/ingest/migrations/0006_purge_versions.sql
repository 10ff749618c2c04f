-- What has been kept long enough is destroyed by a role of its own (CS-121), never by the service.
create policy purger_reads on patient_version for select to passerelle_purger using (true);
create policy purger_deletes on patient_version for delete to passerelle_purger using (true);
grant select, delete on patient_version to passerelle_purger;

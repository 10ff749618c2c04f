-- What has been kept long enough is destroyed by a role of its own (CS-121), never by the service.
do $$
declare
  each text;
begin
  foreach each in array array['handle', 'resource', 'version', 'identifier', 'quality',
                              'patient', 'token', 'link'] loop
    execute format('create policy purger_reads on %I for select to passerelle_purger using (true)',
      each);
    execute format('create policy purger_deletes on %I for delete to passerelle_purger'
      ' using (true)', each);
    execute format('grant select, delete on %I to passerelle_purger', each);
  end loop;
end
$$;

-- What has been kept long enough is destroyed by a role of its own (CS-121), never by the service.
do $$
declare
  each text;
begin
  foreach each in array array['fact_version', 'fact', 'person_version', 'link_version', 'link',
                              'patient', 'change', 'episode'] loop
    execute format('create policy purger_reads on %I for select to passerelle_purger using (true)',
      each);
    execute format('create policy purger_deletes on %I for delete to passerelle_purger'
      ' using (true)', each);
    execute format('grant select, delete on %I to passerelle_purger', each);
  end loop;
  execute 'create policy purger_reads on policy for select to passerelle_purger using (true)';
  execute 'grant select on policy to passerelle_purger';
end
$$;

-- What 0002 keeps is destroyed when its term is over, as everything else (0003).
do $$
declare
  each text;
begin
  foreach each in array array['refused_consent', 'work_item', 'assessment', 'override'] loop
    execute format('create policy purger_reads on %I for select to passerelle_purger using (true)',
      each);
    execute format('create policy purger_deletes on %I for delete to passerelle_purger'
      ' using (true)', each);
    execute format('grant select, delete on %I to passerelle_purger', each);
  end loop;
end
$$;

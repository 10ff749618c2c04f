-- A rebuild from ingest's store: what was stated again, and whether all of it has come. Facts are
-- put right beside the live ones; nothing is forgotten before it is known what stands.
create table rebuild (
  id uuid primary key,
  heard timestamptz not null,         -- its first event, by screening
  begun timestamptz,                  -- by ingest; null, as the numbers due, until it has ended there
  persons int not null default 0,
  links int not null default 0,
  encounters int not null default 0,
  persons_due int,
  links_due int,
  encounters_due int,
  completed timestamptz
);

-- Each version that has come; emptied when all have.
create table restated (
  rebuild uuid not null references rebuild,
  kind text not null check (kind in ('persons', 'links', 'encounters')),
  key uuid not null,
  version int not null,
  primary key (rebuild, kind, key, version)
);

-- Whoever is counted again because of a rebuild, and not yet was: that is quiet.
alter table patient add column restated boolean not null default false;

do $$
declare
  each text;
begin
  foreach each in array array['rebuild', 'restated'] loop
    execute format('alter table %I enable row level security', each);
    execute format('alter table %I force row level security', each);
    execute format('create policy worker on %I to passerelle_screening_worker'
      ' using (true) with check (true)', each);
  end loop;
end
$$;
grant select, insert, update on rebuild to passerelle_screening_worker;
grant select, insert, delete on restated to passerelle_screening_worker;
grant delete on fact_version, fact, person_version, link_version, link
  to passerelle_screening_worker;

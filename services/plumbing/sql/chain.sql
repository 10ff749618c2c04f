-- What makes the audit of every service tamper-evident (CS-112): a schema apart, in which a sealer
-- of each service adds links and checkpoints. Nobody but the owner of the tables could change one.

-- The records of a service and tenant in a chain. `hash` is SHA-256 over the previous link's hash
-- and the canonical JSON of the record (plumbing/chain.py); `position` counts from 1, without gaps.
create table link (
  service text not null check (service in ('ingest', 'screening', 'notify')),
  -- Empty: records that belong to no tenant.
  tenant text not null,
  position bigint not null check (position > 0),
  -- `position` of the record in the audit of the service.
  record bigint not null,
  hash bytea not null check (length(hash) = 32),
  sealed timestamptz not null default now(),
  primary key (service, tenant, position),
  unique (service, record)
);

-- Where all chains of a service stood, signed (JWS) with a key that is not in the database. Each
-- names the one before it.
create table checkpoint (
  service text not null check (service in ('ingest', 'screening', 'notify')),
  number bigint not null check (number > 0),
  at timestamptz not null,
  statement text not null,
  primary key (service, number)
);

do $$
declare
  each text;
  of_service text;
begin
  foreach each in array array['link', 'checkpoint'] loop
    execute format('alter table %I enable row level security', each);
    execute format('alter table %I force row level security', each);
    foreach of_service in array array['ingest', 'screening', 'notify'] loop
      execute format(
        'create policy %I on %I for select to %I using (service = %L)',
        of_service || '_reads', each, 'passerelle_' || of_service || '_sealer', of_service);
      execute format(
        'create policy %I on %I for insert to %I with check (service = %L)',
        of_service || '_adds', each, 'passerelle_' || of_service || '_sealer', of_service);
      execute format(
        'grant select, insert on %I to %I', each, 'passerelle_' || of_service || '_sealer');
    end loop;
    execute format('create policy auditor on %I for select to passerelle_auditor using (true)', each);
    execute format('grant select on %I to passerelle_auditor', each);
  end loop;
end
$$;

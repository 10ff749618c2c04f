-- The register of confidentiality incidents (CS-122): every version is kept, nobody is named.
create table incident (
  id uuid not null,
  version int not null check (version > 0),
  -- In the order they were opened, for people to cite.
  number int not null,
  recorded timestamptz not null,
  by text not null,
  closed boolean not null,
  -- The eight fields, sealed.
  key_id text not null,
  box text not null,
  primary key (id, version)
);
alter table incident enable row level security;
alter table incident force row level security;
create policy privacy on incident to passerelle_notify_request
  using (current_setting('passerelle.role', true) = 'privacy')
  with check (current_setting('passerelle.role', true) = 'privacy');
grant select, insert on incident to passerelle_notify_request;
create policy purger_reads on incident for select to passerelle_purger using (true);
create policy purger_deletes on incident for delete to passerelle_purger using (true);
grant select, delete on incident to passerelle_purger;

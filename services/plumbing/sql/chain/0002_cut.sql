-- Where an audit was cut because its older records had been kept long enough (CS-121): a signed
-- statement names the checkpoint from which the chains go on. Without the key nobody can make one.
create table cut (
  service text not null check (service in ('ingest', 'screening', 'notify')),
  -- The checkpoint that is now the beginning.
  checkpoint bigint not null check (checkpoint > 0),
  at timestamptz not null,
  statement text not null,
  primary key (service, checkpoint),
  foreign key (service, checkpoint) references checkpoint (service, number)
);
alter table cut enable row level security;
alter table cut force row level security;
create policy auditor on cut for select to passerelle_auditor using (true);
grant select on cut to passerelle_auditor;
create policy purger on cut to passerelle_purger using (true) with check (true);
grant select, insert on cut to passerelle_purger;

create policy purger_reads on link for select to passerelle_purger using (true);
create policy purger_deletes on link for delete to passerelle_purger using (true);
grant select, delete on link to passerelle_purger;
create policy purger_reads on checkpoint for select to passerelle_purger using (true);
grant select on checkpoint to passerelle_purger;

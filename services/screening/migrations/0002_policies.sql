-- Policies as data: stored, run in shadow, or live (CT-50, CT-51). Until now the newest was live.

-- What stands of each policy. `run` is the activation by which it is live or in shadow.
alter table policy
  add column status text not null default 'stored' check (status in ('stored', 'shadow', 'live')),
  add column run bigint,
  add column stored timestamptz;
create unique index policy_live on policy (status) where status = 'live';

-- What was asked for, and when it took effect. Never edited but for that.
create table activation (
  run bigint generated always as identity primary key,
  name text not null,
  version int not null,
  mode text not null check (mode in ('live', 'shadow', 'retire')),
  at timestamptz not null,        -- from when it is to be so
  asked timestamptz not null,
  agent text not null,            -- who asked, as the audit has them
  begun timestamptz,              -- when it took effect; null: it waits
  withdrawn timestamptz,          -- it waited, and is not wanted any more
  place uuid,                     -- how far everybody has been looked at again, by key
  evaluated timestamptz,          -- since when everybody has been
  cleared timestamptz,            -- of a shadow that is over: since when nothing of it is left
  foreign key (name, version) references policy (name, version),
  check (begun is null or withdrawn is null)
);
create index activation_waiting on activation (at) where begun is null and withdrawn is null;
create index activation_unfinished on activation (run)
  where begun is not null and evaluated is null;
create index activation_live on activation (begun desc, run desc)
  where mode = 'live' and begun is not null;

-- Where each patient stands under a policy in shadow: what is asked of it, never announced.
create table shadow (
  run bigint not null,
  patient uuid not null,
  state text not null check (state in ('below', 'watch', 'flagged')),
  held boolean not null,
  since timestamptz,
  ed_visits int not null,
  hospital_episodes int not null,
  sites text[] not null,
  changed_at timestamptz not null,
  due_at timestamptz,
  primary key (run, patient),
  check (not held or state = 'flagged')
);
create index shadow_due on shadow (run, due_at) where due_at is not null;
create index shadow_changed on shadow (run, changed_at desc, patient desc);
create index shadow_patient on shadow (patient);  -- for keys that are retired

-- The owner of the tables is bound by row security too, and has no policy of its own.
alter table policy no force row level security;
update policy set stored = activated;
insert into activation (name, version, mode, at, asked, agent, begun, evaluated)
  select name, version, 'live', activated, activated, 'passerelle/screening', activated, activated
  from policy order by activated, name, version;
update policy set status = 'live', run = newest.run
  from (select run, name, version from activation order by begun desc, run desc limit 1) newest
  where policy.name = newest.name and policy.version = newest.version;
alter table policy alter column stored set not null, drop column activated;
alter table policy force row level security;

do $$
declare
  each text;
begin
  foreach each in array array['activation', 'shadow'] loop
    execute format('alter table %I enable row level security', each);
    execute format('alter table %I force row level security', each);
    execute format('create policy request on %I for select to passerelle_screening_request'
      ' using (current_setting(''passerelle.role'', true) in (''ops'', ''privacy''))', each);
    execute format('create policy worker on %I to passerelle_screening_worker'
      ' using (true) with check (true)', each);
    execute format('grant select on %I to passerelle_screening_request', each);
    execute format('grant select, insert, update on %I to passerelle_screening_worker', each);
  end loop;
  foreach each in array array['policy', 'activation'] loop
    execute format('create policy stating on %I for insert to passerelle_screening_request'
      ' with check (current_setting(''passerelle.role'', true) = ''ops'')', each);
    execute format('create policy changing on %I for update to passerelle_screening_request'
      ' using (current_setting(''passerelle.role'', true) = ''ops'')'
      ' with check (current_setting(''passerelle.role'', true) = ''ops'')', each);
    execute format('grant insert, update on %I to passerelle_screening_request', each);
  end loop;
end
$$;
grant delete on shadow to passerelle_screening_worker;

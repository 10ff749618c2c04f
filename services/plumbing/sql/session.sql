-- Sign-ins under way and sessions of people (NW-72), in each service's own schema.
-- {service} is filled in by migrate.py. What the browser holds is kept as a SHA-256 only.

create table sign_in (
  state bytea primary key,
  browser bytea not null,
  nonce text not null,
  verifier text not null,
  return_to text not null,
  begun timestamptz not null
);
alter table sign_in enable row level security;
alter table sign_in force row level security;
create policy worker on sign_in to passerelle_{service}_worker using (true) with check (true);
grant select, insert, delete on sign_in to passerelle_{service}_worker;

create table session (
  id bytea primary key,
  person text not null,
  -- Roles the issuer asserted at sign-in; null if it asserts none and the region file decides.
  asserted text[],
  id_token text not null,
  begun timestamptz not null,
  seen timestamptz not null
);
alter table session enable row level security;
alter table session force row level security;
create policy worker on session to passerelle_{service}_worker using (true) with check (true);
grant select, insert, update, delete on session to passerelle_{service}_worker;

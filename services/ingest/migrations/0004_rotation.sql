-- A new token key comes in while messages do (CS-95, HA-98). What a message names is moved from
-- the digests of other keys to the active one's before anything is matched, under a lock that all
-- processes choose alike; so matching itself knows one key.

-- Ids of the keys that tokens were ever made with. A process that does not have one of them could
-- take a known patient for a new one, so it takes nothing in until it has. Nor does one whose own
-- active key was taken out of use.
create table token_key (
  id text primary key,
  since timestamptz not null default now(),
  retired timestamptz
);
insert into token_key (id) select distinct key_id from token;
alter table token_key enable row level security;
alter table token_key force row level security;
create policy request on token_key for select to passerelle_ingest_request using (true);
create policy worker on token_key to passerelle_ingest_worker using (true) with check (true);
create policy owner on token_key to current_user using (true) with check (true);
grant select on token_key to passerelle_ingest_request;
grant select, insert, update on token_key to passerelle_ingest_worker;

-- The key under which notify was last told this patient's tokens by a rotation.
alter table patient add column retold text;

-- A process begins to write under this key. Everybody who looked at the list before and could
-- not know of it has finished when this returns, and whoever looks later waits for its commit.
create function open_key(of_id text) returns void
language plpgsql security definer set search_path = ingest, pg_temp as $$
begin
  lock table token_key in access exclusive mode;
  insert into token_key (id) values (of_id) on conflict do nothing;
end $$;

-- Tokens under `olds` are from now on those under `news`; how many were moved.
create function renew_tokens(of_site text, olds text[], news text[], active text) returns int
language plpgsql security definer set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
declare
  moved int;
begin
  if current_setting('passerelle.tenant', true) not in (of_site, '') then
    raise insufficient_privilege;
  end if;
  -- Named under both before the keys were known to all: who has an owner tells the other.
  update token x set patient = o.patient
  from unnest(olds, news) as n (old, new)
  cross join lateral (select t.patient from token t where t.digest = n.old offset 0) o
  where x.digest = n.new and x.patient is null and o.patient is not null;
  delete from token t
  using unnest(olds, news) as n (old, new)
  where t.digest = n.old and exists (
    select from token x
    where x.digest = n.new and (t.patient is null or x.patient = t.patient));
  update token t set digest = n.new, key_id = active
  from unnest(olds, news) as n (old, new)
  where t.digest = n.old and not exists (select from token x where x.digest = n.new);
  get diagnostics moved = row_count;
  return moved;
end $$;

-- The same for all that goes by a token: tokens, identifiers and names of resources. `locks` are
-- the digests under one key that every process has, whatever its active one.
create function renew(of_site text, locks text[], olds text[], news text[], active text)
returns int
language plpgsql set search_path = ingest, pg_temp
set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off
set plan_cache_mode = force_generic_plan as $$
declare
  moved int;
begin
  perform pg_advisory_xact_lock(20261124, b.bucket) from (
    select distinct hashtext(l) & 255 as bucket from unnest(locks) as l order by 1
  ) b;
  moved := renew_tokens(of_site, olds, news, active);
  insert into identifier (site, kind, digest, key)
  select i.site, i.kind, n.new, i.key
  from unnest(olds, news) as n (old, new) cross join lateral (
    select i.site, i.kind, i.key from identifier i
    where i.site = of_site and i.kind in ('Encounter', 'Patient') and i.digest = n.old offset 0
  ) i
  on conflict do nothing;
  delete from identifier i
  where i.site = of_site and i.kind in ('Encounter', 'Patient') and i.digest = any (olds);
  update handle h set name = 'no/' || n.new
  from unnest(olds, news) as n (old, new)
  where h.site = of_site and h.kind in ('Encounter', 'Patient') and h.name = 'no/' || n.old
    and not exists (
      select from handle x
      where x.site = h.site and x.kind = h.kind and x.name = 'no/' || n.new);
  return moved;
end $$;

revoke all on function open_key, renew_tokens, renew from public;
grant execute on function open_key, renew_tokens, renew
  to passerelle_ingest_request, passerelle_ingest_worker;

-- What the loopback authority must remember across processes and restarts. No patient, no site.

-- Assertions already redeemed (SM-27), until they would be refused as expired.
create table assertion (
  client text not null,
  jti text not null,
  expires timestamptz not null,
  primary key (client, jti)
);
create index assertion_expires on assertion (expires);

-- Authorization codes not redeemed yet, as SHA-256; redeeming deletes.
create table code (
  digest bytea primary key,
  client text not null,
  redirect_uri text not null,
  challenge text not null,
  nonce text,
  person text not null,
  signed_in timestamptz not null,
  expires timestamptz not null
);

-- Who is signed on in which browser, as SHA-256 of its cookie.
create table sign_on (
  digest bytea primary key,
  person text not null,
  signed_in timestamptz not null,
  expires timestamptz not null
);

alter table assertion enable row level security;
alter table assertion force row level security;
alter table code enable row level security;
alter table code force row level security;
alter table sign_on enable row level security;
alter table sign_on force row level security;
create policy worker on assertion to passerelle_authority_worker using (true) with check (true);
create policy worker on code to passerelle_authority_worker using (true) with check (true);
create policy worker on sign_on to passerelle_authority_worker using (true) with check (true);
grant select, insert, delete on assertion, code, sign_on to passerelle_authority_worker;

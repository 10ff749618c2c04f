-- Back-tests that were asked for, and the results that are kept (CT-71). Aggregates only: no
-- patient is in it, and none can be told from it (services/screening/backtest.py).
create table backtest (
  id uuid primary key,
  asked_by text not null,
  policy text not null,           -- canonical forms (CT-50): a result says by which rule
  against text,
  first date not null,
  last date not null,
  state text not null default 'waiting'
    check (state in ('waiting', 'running', 'done', 'failed')),
  created timestamptz not null,
  attempts int not null default 0,
  percent int not null default 0,
  known_at timestamptz,           -- the snapshot it runs on
  finished timestamptz,
  result text,
  error text,
  check (first <= last),
  check ((finished is not null) = (state in ('done', 'failed'))),
  check ((result is not null) = (state = 'done'))
);
alter table backtest enable row level security;
alter table backtest force row level security;
create policy request_reads on backtest for select to passerelle_screening_request
  using (current_setting('passerelle.role', true) in ('ops', 'privacy'));
create policy request_asks on backtest for insert to passerelle_screening_request
  with check (current_setting('passerelle.role', true) in ('ops', 'privacy')
    and state = 'waiting');
create policy worker on backtest to passerelle_screening_worker using (true) with check (true);
grant select, insert on backtest to passerelle_screening_request;
grant select, update, delete on backtest to passerelle_screening_worker;

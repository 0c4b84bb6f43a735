-- The fleet's processes, for people who look at it. Which machine and process one is, is told only where one tenant has the
-- installation to itself: where several share it, that is the operator's to know (`pgmail doctor`).

create or replace function pgmail.fleet_v1()
returns table (epoch bigint, program text, state text, asleep boolean, concurrency integer, started_at timestamptz, beat_seconds double precision,
               leads boolean, staging text, host text, pid integer)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select w.epoch, w.program, w.state, w.asleep, w.concurrency, w.started_at, extract(epoch from pgmail.now() - w.beat_at)::float8,
         coalesce(l.epoch = w.epoch and l.until > pgmail.now(), false), w.staging,
         case when alone.yes then w.host end, case when alone.yes then w.pid end
  from pgmail.worker w
  left join pgmail.leader l on true
  cross join (select count(*) < 2 as yes from (select from pgmail.tenant limit 2) t) alone
  order by w.program, w.epoch
$$;

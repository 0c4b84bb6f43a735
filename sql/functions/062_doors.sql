-- Doors: what the leader makes of quotas and of what came in, about once a second (ops/docs/quotas.md). A send reads doors
-- and nothing else; what it takes in it has always tallied. So no application waits for another one, and a producer that
-- runs away is stopped after about a second of its own speed.
-- Each rule is paced by virtual scheduling, as limits are: paid_until is the moment at which all that was taken in is
-- within the rate. Beyond the present by more than a second the door closes until then, and what comes meanwhile is
-- strewn over the time that as many as came lately need: so delayed mail comes due at the rate, and in no herd.

create or replace function pgmail.quota_words(p_scope text, p_name text) returns text
language sql immutable parallel safe
as $$ select case p_scope when 'stream' then 'stream ' || p_name when 'tenant' then 'the tenant' when 'key' then 'the key' else 'the fleet' end $$;

-- The oldest mail of each tenant that is due, free, and not behind a pause: as the gauge has it, since this is asked every second.
-- It is as old as it was when the gauge was taken: what was sent since does not grow older, and closes no door.
create or replace function pgmail.oldest_due() returns table (tenant_id integer, due_at timestamptz)
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
#variable_conflict use_column
begin
  if pgmail.gauge_kept() then
    return query select o.tenant_id, min(o.due_at) + (pgmail.now() - (select c.gauged_at from pgmail.insight_cursor c))
      from pgmail.gauge_due() o where o.due_at <= pgmail.now() group by o.tenant_id;
  else
    return query select o.tenant_id, min(o.due_at) from pgmail.oldest_in_lanes() o where o.due_at is not null group by o.tenant_id;
  end if;
end
$$;

-- Opens and closes doors; how many are closed now. Null: another leader is at it.
-- Counted anew are those tenants of whom a tally was folded since the last look, and those whose rule has something of
-- before to forget; of all others the meter tells. So a look costs what moved, and one row a tenant at rest.
create or replace function pgmail.doors_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare
  now_ timestamptz := pgmail.now(); today date := (now_ at time zone 'UTC')::date; last_ timestamptz; n integer; aged boolean; pressed boolean;
  midnight timestamptz := today::timestamp at time zone 'UTC'; moved integer[]; fleet pgmail.quota; all_depth numeric; all_due_at timestamptz;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.doors', 0)) then return null; end if;
  select least(l.doors_at, now_) into last_ from pgmail.leader l;
  update pgmail.leader set doors_at = now_;
  select * into fleet from pgmail.quota q where q.scope = 'fleet';

  -- What is folded between this statement and the next is counted now, and once more at the next look.
  with gone as (delete from pgmail.tally_moved returning tenant_id)
  select array(
    select g.tenant_id from gone g
    union
    select m.tenant_id from pgmail.quota q join pgmail.quota_meter m on m.tenant_id = q.tenant_id and m.scope = q.scope and m.name = q.name
    where m.lately > 0 or m.day <> today) into moved;

  insert into pgmail.quota_meter as m (tenant_id, scope, name, seen, seen_bytes, depth, lately, paid_until, day, owed, mails, bytes)
  select s.tenant_id, s.scope, s.name, s.n, s.bytes, s.depth, s.fresh,
    least(greatest(o.paid_until, coalesce(last_, now_)), now_ + interval '366 days')
      + least(s.fresh / coalesce(q.per_second, 1000000)::double precision, 31536000) * interval '1 second',
    today,
    -- What a day took beyond its allowance is of the days that follow. Without a rule a day is no more than a count.
    case when q.per_day is null then 0
         when o.day = today then o.owed + s.fresh
         else greatest(0, coalesce(o.owed, 0) - (today - o.day) * q.per_day) + s.fresh end,
    case when o.day = today then o.mails else 0 end + s.fresh,
    case when o.day = today then o.bytes else 0 end + s.fresh_bytes
  from (
    select t.tenant_id, t.scope, t.name, t.n, t.bytes, t.depth, greatest(t.n - coalesce(x.seen, 0), 0) as fresh,
      greatest(t.bytes - coalesce(x.seen_bytes, 0), 0) as fresh_bytes
    from (
      -- Tenant by tenant: a hash of all totals would be cheap in the planner's eyes and cost what this is to save.
      select u.tenant_id, 'tenant' as scope, '' as name, y.n, y.bytes, y.depth
      from unnest(moved) u(tenant_id) cross join lateral (
        select sum(y.n) filter (where y.kind = 'enqueued') as n, sum(y.bytes) filter (where y.kind = 'enqueued') as bytes,
          sum(case y.kind when 'enqueued' then y.n else -y.n end) as depth
        from pgmail.tally_total y where y.tenant_id = u.tenant_id) y
      where y.n is not null
      union all
      select q.tenant_id, 'stream', q.name, y.n, y.bytes, y.depth
      from pgmail.quota q cross join lateral (
        select coalesce(sum(y.n) filter (where y.kind = 'enqueued'), 0) as n, coalesce(sum(y.bytes) filter (where y.kind = 'enqueued'), 0) as bytes,
          coalesce(sum(case y.kind when 'enqueued' then y.n else -y.n end), 0) as depth
        from pgmail.tally_total y where y.tenant_id = q.tenant_id and y.stream = q.name) y
      where q.scope = 'stream' and q.tenant_id = any (moved)) t
    left join pgmail.quota_meter x on x.tenant_id = t.tenant_id and x.scope = t.scope and x.name = t.name) s
  left join pgmail.quota_meter o on o.tenant_id = s.tenant_id and o.scope = s.scope and o.name = s.name
  left join pgmail.quota q on q.tenant_id = s.tenant_id and q.scope = s.scope and q.name = s.name
  order by s.tenant_id, s.scope, s.name
  on conflict (tenant_id, scope, name) do update set seen = excluded.seen, seen_bytes = excluded.seen_bytes, depth = excluded.depth,
    lately = excluded.lately, paid_until = excluded.paid_until, day = excluded.day, owed = excluded.owed, mails = excluded.mails, bytes = excluded.bytes;

  if fleet.pressure_depth is not null then
    select sum(m.depth) into all_depth from pgmail.quota_meter m
    where m.scope = 'tenant' and not exists (select from pgmail.pause s where s.tenant_id = m.tenant_id and s.scope = 'tenant');
  end if;
  select coalesce(bool_or(q.pressure_seconds is not null), false),
      coalesce(bool_or(num_nonnulls(q.pressure_depth, q.pressure_seconds) > 0), false) into aged, pressed from pgmail.quota q;
  with oldest as materialized (
    select o.tenant_id, o.due_at from pgmail.oldest_due() o where aged
  ), eldest as materialized (
    select min(o.due_at) as due_at from oldest o
  ), whole as not materialized (   -- one row a tenant that has ever sent: looked through, but not written down
    select m.tenant_id, m.depth, o.due_at, q.pressure_depth, q.pressure_seconds,
      coalesce(q.bound_mails, fleet.bound_mails) as bound_mails, coalesce(q.bound_bytes, fleet.bound_bytes) as bound_bytes,
      -- A tenant at rest has the count of its last day.
      case when m.day = today then m.mails else 0 end as mails, case when m.day = today then m.bytes else 0 end as bytes,
      (select e.due_at from eldest e) as all_due_at
    from pgmail.quota_meter m
    left join oldest o on o.tenant_id = m.tenant_id
    left join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = 'tenant'
    where m.scope = 'tenant'
  ), wanted as materialized (
    select m.tenant_id, m.name as stream, 'rate' as kind, 1 as priority, m.paid_until as until, m.lately / q.per_second::real as spread,
      format('%s takes in %s emails a second', pgmail.quota_words(m.scope, m.name), q.per_second) as reason
    from pgmail.quota q join pgmail.quota_meter m on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.paid_until > now_ + interval '1 second' and q.per_second is not null
    union all
    select m.tenant_id, m.name, 'day', 1, midnight + least(m.owed / q.per_day::double precision, 366) * interval '24 hours',
      least(m.lately / q.per_day::real, 366) * 86400, format('%s takes in %s emails a day', pgmail.quota_words(m.scope, m.name), q.per_day)
    from pgmail.quota q join pgmail.quota_meter m on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.owed >= q.per_day
    union all
    select q.tenant_id, q.name, 'queued', 1, now_ + interval '1 minute', 60,
      format('%s holds as many queued emails as it may (%s)', pgmail.quota_words(q.scope, q.name), q.max_queued)
    from pgmail.quota q
    left join pgmail.quota_meter m on m.tenant_id = q.tenant_id and m.scope = q.scope and m.name = q.name
    where q.scope in ('tenant', 'stream') and coalesce(m.depth, 0) >= q.max_queued
    union all
    -- Who stops sending has to know that it was stopped for a while; who asks again in a minute finds things as they are.
    select w.tenant_id, '', 'pressure', 3, now_ + interval '1 minute', 60,
      case when w.depth > w.pressure_depth then format('backpressure: more than %s emails of the tenant wait', w.pressure_depth)
           when w.due_at < now_ - w.pressure_seconds * interval '1 second'
             then format('backpressure: mail of the tenant has been due for more than %s seconds', w.pressure_seconds)
           when all_depth > fleet.pressure_depth then format('backpressure: more than %s emails wait', fleet.pressure_depth)
           else format('backpressure: mail has been due for more than %s seconds', fleet.pressure_seconds) end
    from whole w
    where pressed and (w.depth > w.pressure_depth or all_depth > fleet.pressure_depth or w.due_at < now_ - w.pressure_seconds * interval '1 second'
       or w.all_due_at < now_ - fleet.pressure_seconds * interval '1 second')
    union all
    select w.tenant_id, '', 'bound', 1, midnight + interval '24 hours', 0,
      case when w.mails >= w.bound_mails then format('the tenant has handed over %s emails today, which is its bound', w.bound_mails)
           else format('the tenant has handed over %s bytes today, which is its bound', w.bound_bytes) end
    from whole w where w.mails >= w.bound_mails or w.bytes >= w.bound_bytes
  ), opened as (
    delete from pgmail.door d where not exists (
      select from wanted w where w.tenant_id = d.tenant_id and w.stream = d.stream and w.kind = d.kind)
  ), closed as (
    insert into pgmail.door as d (tenant_id, stream, kind, priority, until, spread, reason)
    select w.tenant_id, w.stream, w.kind, w.priority, w.until, w.spread, w.reason from wanted w order by 1, 2, 3
    on conflict (tenant_id, stream, kind) do update set priority = excluded.priority, until = excluded.until, spread = excluded.spread,
      reason = excluded.reason
    where (d.priority, d.until, d.spread, d.reason) is distinct from (excluded.priority, excluded.until, excluded.spread, excluded.reason)
  )
  select count(*) into n from wanted;
  return n;
end
$$;

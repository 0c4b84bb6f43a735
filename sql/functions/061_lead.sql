-- What the leader does on a clock. Each is one short statement, safe to run twice and by two at once. Messages and
-- recipients are looked up one by one (lateral, limit 1): the planner, who cannot know how few are asked for, would
-- read all of them otherwise.

-- Lanes whose mail comes due by the clock: awake from a second before.
create or replace function pgmail.wake_due_v1(p_since timestamptz) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with due as materialized (
    select distinct q.tenant_id, q.lane from pgmail.queue q
    where q.later and q.due_at > p_since and q.due_at <= pgmail.now() + interval '1 second'
  ), asleep as materialized (
    select l.tenant_id, l.id from pgmail.lane l join due d on d.tenant_id = l.tenant_id and d.lane = l.id
    where not l.active order by l.tenant_id, l.id for update of l
  ), woken as (
    update pgmail.lane l set active = true, version = nextval('pgmail.lane_version'), changed_at = pgmail.now()
    from asleep a where l.tenant_id = a.tenant_id and l.id = a.id returning 1
  )
  select count(*) into n from woken;
  return n;
end
$$;

-- Lanes that hold due mail but are not active (a race, a lost touch), found again. It skips from lane to lane as lanes_present
-- does, but between active lanes only: these are most, and what they sent while a snapshot is held open lies before their
-- first row, a million dead ones in some minutes.
create or replace function pgmail.repair_lanes_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with gaps as materialized (
    select l.tenant_id, l.id, lead(l.tenant_id, 1, 2147483647) over w as to_tenant, lead(l.id, 1, 9223372036854775807) over w as to_id
    from pgmail.lane l where l.active
    window w as (order by l.tenant_id, l.id)
    union all   -- before the first
    select -2147483648, -9223372036854775808, coalesce(f.tenant_id, 2147483647), coalesce(f.id, 9223372036854775807)
    from (values (1)) one left join lateral (
      select l.tenant_id, l.id from pgmail.lane l where l.active order by l.tenant_id, l.id limit 1) f on true
  ), lost as materialized (
    select p.* from gaps g cross join lateral (
      with recursive present as (
        (select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q
         where (q.tenant_id, q.lane) > (g.tenant_id, g.id) and (q.tenant_id, q.lane) < (g.to_tenant, g.to_id)
         order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
        union all
        select x.* from present p, lateral (
          select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q
          where (q.tenant_id, q.lane) > (p.tenant_id, p.lane) and (q.tenant_id, q.lane) < (g.to_tenant, g.to_id)
          order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
      )
      select * from present) p
    where p.due_at <= pgmail.now()
  ), repaired as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select x.tenant_id, x.lane, m.stream, m.priority, r.site, x.due_at
    from lost x
    cross join lateral (select y.message_id from pgmail.queue y where y.tenant_id = x.tenant_id and y.id = x.id limit 1) q
    cross join lateral (select y.stream, y.priority from pgmail.message y
                        where y.tenant_id = x.tenant_id and y.id = q.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = x.tenant_id and y.id = x.id limit 1) r
    order by x.tenant_id, x.lane
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(), rewind_to = excluded.rewind_to
    returning 1
  )
  select count(*) into n from repaired;
  return n;
end
$$;

-- Mail past its expiry that no worker holds ends as expired. What is held waits for a person: it may have been sent. So may
-- have been all of it in a restored database, until an operator has decided.
create or replace function pgmail.expire_v1(p_most integer default 1000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with late as materialized (
    select q.tenant_id, q.id, q.message_id, q.lane, q.attempts from pgmail.queue q
    where q.expires_at <= pgmail.now() and q.leased_by is null and q.due_at <> 'infinity' and not exists (select from pgmail.fence)
    order by q.expires_at limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q using late where q.tenant_id = late.tenant_id and q.id = late.id
  ), facts as materialized (
    select late.*, m.stream, r.site from late
    cross join lateral (select y.stream from pgmail.message y
                        where y.tenant_id = late.tenant_id and y.id = late.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = late.tenant_id and y.id = late.id limit 1) r
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select tenant_id, id, message_id, 'expired', pgmail.now(), stream, site, attempts, 'expires_at passed before it was sent' from facts
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select tenant_id, id, message_id, 'email.expired', site, 'expires_at passed before it was sent' from facts
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select tenant_id, stream, 'expired', count(*), array[lane], array[count(*)] from facts group by tenant_id, stream, lane
  )
  select count(*) into n from facts;
  return n;
end
$$;

-- Folds what statements counted: into totals, what waits in each lane, and the figures of what came in (067_rollup.sql).
create or replace function pgmail.fold_tallies_v1(p_most integer default 20000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  with gone as materialized (
    delete from pgmail.tally
    where ctid = any (array(select ctid from pgmail.tally limit p_most for update skip locked))
    returning tenant_id, stream, kind, tally.n, tally.bytes, at, lanes, per_lane
  ), summed as (
    select tenant_id, stream, kind, sum(g.n) as n, coalesce(sum(g.bytes), 0) as bytes
    from gone g group by tenant_id, stream, kind order by tenant_id, stream, kind
  ), waiting as (
    insert into pgmail.backlog as b (tenant_id, lane, depth)
    select g.tenant_id, u.lane, sum(case g.kind when 'enqueued' then u.n else -u.n end) as depth
    from gone g cross join lateral unnest(g.lanes, g.per_lane) u(lane, n)
    where u.lane is not null group by g.tenant_id, u.lane having sum(case g.kind when 'enqueued' then u.n else -u.n end) <> 0
    order by g.tenant_id, u.lane
    on conflict (tenant_id, lane) do update set depth = b.depth + excluded.depth
  ), came as (
    insert into pgmail.rollup as r (tenant_id, dim, grain, at, key, kind, n)
    select g.tenant_id, 'stream', x.grain, date_bin(x.width, g.at, '2000-01-01Z') as begins, g.stream, 'enqueued', sum(g.n)
    from gone g, (values ('minute', interval '1 minute'), ('quarter', interval '15 minutes'), ('hour', interval '1 hour'), ('day', interval '1 day')) x(grain, width)
    where g.kind = 'enqueued' group by g.tenant_id, x.grain, begins, g.stream order by g.tenant_id, x.grain, begins, g.stream
    on conflict (tenant_id, dim, grain, at, key, kind, bucket) do update set n = r.n + excluded.n
  ), felt as (
    insert into pgmail.pulse as p (tenant_id, stream, at, enqueued, sent)
    select g.tenant_id, g.stream, date_bin('5 seconds', g.at, '2000-01-01Z') as slice,
      coalesce(sum(g.n) filter (where g.kind = 'enqueued'), 0), coalesce(sum(g.n) filter (where g.kind = 'sent'), 0)
    from gone g where g.kind in ('enqueued', 'sent') group by g.tenant_id, slice, g.stream order by g.tenant_id, slice, g.stream
    on conflict (tenant_id, at, stream) do update set enqueued = p.enqueued + excluded.enqueued, sent = p.sent + excluded.sent
  ), folded as (
    insert into pgmail.tally_total as t (tenant_id, stream, kind, n, bytes) select * from summed
    on conflict (tenant_id, stream, kind) do update set n = t.n + excluded.n, bytes = t.bytes + excluded.bytes returning 1
  ), moved as (
    insert into pgmail.tally_moved (tenant_id) select distinct tenant_id from summed   -- for doors_v1
  )
  select count(*) into n from folded;
  return n;
end
$$;

create or replace function pgmail.purge_idempotency_v1(p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  delete from pgmail.idempotency d using (
    select tenant_id, key from pgmail.idempotency where expires_at <= pgmail.now()
    order by expires_at limit p_most for update skip locked) x
  where d.tenant_id = x.tenant_id and d.key = x.key;
  get diagnostics n = row_count;
  return n;
end
$$;

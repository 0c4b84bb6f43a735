-- Gauges of the queue: what a page would have to look for in it, looked for by a chore instead.

-- Which lane it is, by its row or, where no worker has folded one yet, by one of its emails.
create or replace function pgmail.lane_facts(p_tenant integer, p_lane bigint, out stream text, out priority smallint, out site text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
begin
  select l.stream, l.priority, l.site into stream, priority, site from pgmail.lane l where l.tenant_id = p_tenant and l.id = p_lane;
  if not found then
    select m.stream, m.priority, r.site into stream, priority, site from pgmail.queue q
    cross join lateral (select x.stream, x.priority from pgmail.message x where x.tenant_id = q.tenant_id and x.id = q.message_id limit 1) m
    cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = q.tenant_id and x.id = q.id limit 1) r
    where q.tenant_id = p_tenant and q.lane = p_lane limit 1;
  end if;
end
$$;

-- Lanes that hold mail, as tallies have it: `backlog` and what is not folded into it yet, in the order of the index of the claim, so
-- that looking each up there costs a third of finding the lanes by skipping along it (055_lanes_present). What an upgrade
-- left out is added when states are counted.
create or replace function pgmail.lanes_known() returns table (tenant_id integer, lane bigint)
language sql stable rows 1000 security definer set search_path = pgmail, pg_temp set jit = off
as $$
  select b.tenant_id, b.lane from pgmail.backlog b where b.depth > 0
  union
  select t.tenant_id, u.lane from pgmail.tally t, unnest(t.lanes) u(lane) where u.lane is not null
  order by 1, 2
$$;

-- The oldest mail of each lane that is due and nobody's. Answers how many lanes there are; null: another process is at it.
create or replace function pgmail.gauge_lanes_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
  set enable_seqscan = off set enable_nestloop = off set enable_mergejoin = off set jit = off
as $$
declare n integer;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with known as (   -- a full join can be no nested loop, which the planner would take for what it expects to be few
    select k.tenant_id, k.lane, g.tenant_id as in_tenant, g.lane as in_lane, g.oldest_due_at as was
    from pgmail.lanes_known() k full join pgmail.gauge g on g.tenant_id = k.tenant_id and g.lane = k.lane
  ), found as materialized (
    select p.*, x.due_at from known p left join lateral (
      select q.due_at from pgmail.queue q
      where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
      order by q.due_at, q.id limit 1) x on true
  ), gone as (
    delete from pgmail.gauge g using found f where f.lane is null and g.tenant_id = f.in_tenant and g.lane = f.in_lane
  ), moved as (
    update pgmail.gauge g set oldest_due_at = f.due_at from found f
    where f.due_at is distinct from f.was and g.tenant_id = f.tenant_id and g.lane = f.lane
  ), fresh as (
    insert into pgmail.gauge (tenant_id, lane, stream, priority, site, oldest_due_at)
    select f.tenant_id, f.lane, l.stream, l.priority, l.site, f.due_at
    from found f cross join lateral pgmail.lane_facts(f.tenant_id, f.lane) l
    where f.lane is not null and f.in_lane is null and l.stream is not null
  )
  select count(f.lane) into n from found f;
  update pgmail.insight_cursor c set gauged_at = pgmail.now();
  return n;
end
$$;

-- How each lane divides into states (what pgmail.state_of says, in fewer comparisons a mail): one pass over the queue, in one process
-- and one hash, so its caller comes the more rarely the longer it takes.
-- It holds the running depths against what is there, too: both are seen in one snapshot, so that mail on its way is in
-- both or in neither, and a difference (after an upgrade) is put right by adding it, without a lock. Answers the sum of the
-- differences; null: another process is at it.
create or replace function pgmail.gauge_states_v1() returns bigint
language plpgsql volatile security definer set search_path = pgmail, pg_temp
  set work_mem = '64MB' set enable_mergejoin = off set max_parallel_workers_per_gather = 0 set jit = off
as $$
declare off_by bigint; now_ timestamptz := pgmail.now();
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with counted as (
    select q.tenant_id, q.lane, count(*) as n, count(q.leased_by) as sending,
      count(*) filter (where q.leased_by is null and q.due_at = 'infinity') as held,
      count(*) filter (where q.wait = 'scheduled' and q.leased_by is null and q.due_at > now_ and q.due_at < 'infinity') as scheduled,
      count(*) filter (where q.wait = 'deferred' and q.leased_by is null and q.due_at > now_ and q.due_at < 'infinity') as deferred,
      count(*) filter (where q.in_doubt) as in_doubt
    from pgmail.queue q group by q.tenant_id, q.lane
  ), moving as (
    select t.tenant_id, u.lane, sum(case t.kind when 'enqueued' then u.n else -u.n end)::bigint as n
    from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n) where u.lane is not null group by t.tenant_id, u.lane
  ), states as materialized (   -- what is there, what tallies say, and what was gauged last: one row a lane of any of them
    select tenant_id, lane, c.n, c.sending, c.held, c.scheduled, c.deferred, c.in_doubt, c.n - c.sending - c.held - c.scheduled - c.deferred as queued,
      b.depth, coalesce(c.n, 0) - coalesce(b.depth, 0) - coalesce(v.n, 0) as wrong, o.stream, o.priority, o.site,
      (o.queued, o.scheduled, o.deferred, o.held, o.sending, o.in_doubt)
        is distinct from (c.n - c.sending - c.held - c.scheduled - c.deferred, c.scheduled, c.deferred, c.held, c.sending, c.in_doubt) as moved
    from counted c full join pgmail.backlog b using (tenant_id, lane) full join moving v using (tenant_id, lane)
    full join pgmail.gauge o using (tenant_id, lane)
  ), righted as (
    insert into pgmail.backlog as b (tenant_id, lane, depth) select s.tenant_id, s.lane, s.wrong from states s where s.wrong <> 0 order by 1, 2
    on conflict (tenant_id, lane) do update set depth = b.depth + excluded.depth
  ), empty as (
    delete from pgmail.backlog b using states s where s.depth = 0 and s.n is null and s.wrong = 0
      and b.tenant_id = s.tenant_id and b.lane = s.lane and b.depth = 0
  ), gauged as (
    insert into pgmail.gauge as g (tenant_id, lane, stream, priority, site, queued, scheduled, deferred, held, sending, in_doubt)
    select s.tenant_id, s.lane, l.stream, l.priority, l.site, s.queued, s.scheduled, s.deferred, s.held, s.sending, s.in_doubt
    from states s cross join lateral (
      select s.stream, s.priority, s.site where s.stream is not null
      union all select f.stream, f.priority, f.site from pgmail.lane_facts(s.tenant_id, s.lane) f where s.stream is null) l
    where s.n is not null and (s.moved or s.stream is null) and l.stream is not null
    order by s.tenant_id, s.lane
    on conflict (tenant_id, lane) do update set queued = excluded.queued, scheduled = excluded.scheduled, deferred = excluded.deferred,
      held = excluded.held, sending = excluded.sending, in_doubt = excluded.in_doubt
  ), gone as (
    delete from pgmail.gauge g using states s where s.n is null and s.stream is not null and g.tenant_id = s.tenant_id and g.lane = s.lane
  )
  select coalesce(sum(abs(s.wrong)), 0) into off_by from states s;
  update pgmail.insight_cursor set counted_at = now_;
  return off_by;
end
$$;

-- What of the caller's mail waits, for who asks once (pgmail doctor): since when the oldest has been due that nobody has taken, how
-- many are held, and how many of these are in doubt (to 10,001). As gauged where the gauge is kept, held ones as counted last. Else by one
-- walk along the index of the claim, from lane to lane: held ones are the last of each, and counted to 1,000 a lane. Of the
-- lanes whose first mail is due, the 1,000 oldest are asked for mail that is free: more are not in hand at a time.
create or replace function pgmail.waits(out oldest_due_at timestamptz, out held bigint, out in_doubt bigint)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.current_tenant(); now_ timestamptz := pgmail.now();
begin
  if pgmail.gauge_kept() and (select c.counted_at > now_ - interval '1 hour' from pgmail.insight_cursor c) then
    select min(g.oldest_due_at) filter (where g.oldest_due_at <= now_), coalesce(sum(g.held), 0) into oldest_due_at, held from pgmail.gauge g where g.tenant_id = t;
  else
    with recursive present as (
      (select q.lane, q.due_at from pgmail.queue q where q.tenant_id = t order by q.lane, q.due_at, q.id limit 1)
      union all
      select x.* from present p, lateral (
        select q.lane, q.due_at from pgmail.queue q where q.tenant_id = t and q.lane > p.lane order by q.lane, q.due_at, q.id limit 1) x
    ), heads as materialized (
      select p.lane, p.due_at from present p
    )
    select (
        select min(x.due_at) from (select h.lane from heads h where h.due_at <= now_ order by h.due_at limit 1000) l
        cross join lateral (
          select q.due_at from pgmail.queue q where q.tenant_id = t and q.lane = l.lane and q.leased_by is null and q.due_at <= now_
          order by q.due_at, q.id limit 1) x),
      (select coalesce(sum(x.n), 0) from heads h cross join lateral (
         select count(*) as n from (
           select from pgmail.queue q where q.tenant_id = t and q.lane = h.lane and q.due_at = 'infinity' limit 1000) y) x)
    into oldest_due_at, held;
  end if;
  select count(*) into in_doubt from (select from pgmail.queue q where q.tenant_id = t and q.in_doubt limit 10001) y;
end
$$;

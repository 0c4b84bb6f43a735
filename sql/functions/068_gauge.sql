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

-- The oldest mail of each lane that is due and nobody's. Answers how many lanes there are; null: another process is at it.
create or replace function pgmail.gauge_lanes_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with found as materialized (
    select p.tenant_id, p.lane, x.due_at from pgmail.lane_heads() p left join lateral (
      select q.due_at from pgmail.queue q
      where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
      order by q.due_at, q.id limit 1) x on true
  ), gone as (
    delete from pgmail.gauge g where not exists (select from found f where f.tenant_id = g.tenant_id and f.lane = g.lane)
  ), moved as (
    update pgmail.gauge g set oldest_due_at = f.due_at from found f
    where g.tenant_id = f.tenant_id and g.lane = f.lane and g.oldest_due_at is distinct from f.due_at
  ), fresh as (
    insert into pgmail.gauge (tenant_id, lane, stream, priority, site, oldest_due_at)
    select f.tenant_id, f.lane, l.stream, l.priority, l.site, f.due_at
    from found f cross join lateral pgmail.lane_facts(f.tenant_id, f.lane) l
    where l.stream is not null and not exists (select from pgmail.gauge g where g.tenant_id = f.tenant_id and g.lane = f.lane)
  )
  select count(*) into n from found;
  update pgmail.insight_cursor c set gauged_at = pgmail.now() where c.gauged_at > pgmail.now() - interval '30 seconds' is not true;
  return n;
end
$$;

-- How each lane divides into states: one pass over the queue, so its caller comes the more rarely the longer it takes.
-- It holds the running depths against what is there, too: both are seen in one snapshot, so that mail on its way is in
-- both or in neither, and a difference (after an upgrade) is put right by adding it, without a lock. Answers the sum of the
-- differences; null: another process is at it.
create or replace function pgmail.gauge_states_v1() returns bigint
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare off_by bigint; now_ timestamptz := pgmail.now();
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with states as materialized (
    select q.tenant_id, q.lane, count(*) as n,
      count(*) filter (where s.state = 'queued') as queued, count(*) filter (where s.state = 'scheduled') as scheduled,
      count(*) filter (where s.state = 'deferred') as deferred, count(*) filter (where s.state = 'held') as held,
      count(*) filter (where s.state = 'sending') as sending, count(*) filter (where q.in_doubt) as in_doubt
    from pgmail.queue q,
      lateral (select pgmail.state_of(null, false, true, q.leased_by is not null, q.due_at, q.wait, now_) as state) s
    group by q.tenant_id, q.lane
  ), known as (
    select x.tenant_id, x.lane, sum(x.n) as n from (
      select tenant_id, lane, depth as n from pgmail.backlog
      union all
      select t.tenant_id, u.lane, case t.kind when 'enqueued' then u.n else -u.n end from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n)
      where u.lane is not null) x group by x.tenant_id, x.lane
  ), wrong as materialized (
    select coalesce(s.tenant_id, k.tenant_id) as tenant_id, coalesce(s.lane, k.lane) as lane, coalesce(s.n, 0) - coalesce(k.n, 0) as n
    from states s full join known k on k.tenant_id = s.tenant_id and k.lane = s.lane
    where coalesce(s.n, 0) <> coalesce(k.n, 0)
  ), righted as (
    insert into pgmail.backlog as b (tenant_id, lane, depth) select w.tenant_id, w.lane, w.n from wrong w order by 1, 2
    on conflict (tenant_id, lane) do update set depth = b.depth + excluded.depth
  ), empty as (
    delete from pgmail.backlog b where b.depth = 0
      and not exists (select from states s where s.tenant_id = b.tenant_id and s.lane = b.lane)
      and not exists (select from wrong w where w.tenant_id = b.tenant_id and w.lane = b.lane)
  ), gauged as (
    insert into pgmail.gauge as g (tenant_id, lane, stream, priority, site, queued, scheduled, deferred, held, sending, in_doubt)
    select s.tenant_id, s.lane, l.stream, l.priority, l.site, s.queued, s.scheduled, s.deferred, s.held, s.sending, s.in_doubt
    from states s
    left join pgmail.gauge o on o.tenant_id = s.tenant_id and o.lane = s.lane
    cross join lateral (
      select o.stream, o.priority, o.site where o.lane is not null
      union all select f.stream, f.priority, f.site from pgmail.lane_facts(s.tenant_id, s.lane) f where o.lane is null) l
    where l.stream is not null
      and (o.lane is null or (o.queued, o.scheduled, o.deferred, o.held, o.sending, o.in_doubt)
                             is distinct from (s.queued, s.scheduled, s.deferred, s.held, s.sending, s.in_doubt))
    order by s.tenant_id, s.lane
    on conflict (tenant_id, lane) do update set queued = excluded.queued, scheduled = excluded.scheduled, deferred = excluded.deferred,
      held = excluded.held, sending = excluded.sending, in_doubt = excluded.in_doubt
  ), gone as (
    delete from pgmail.gauge g where not exists (select from states s where s.tenant_id = g.tenant_id and s.lane = g.lane)
  )
  select coalesce(sum(abs(w.n)), 0) into off_by from wrong w;
  update pgmail.insight_cursor set counted_at = now_;
  return off_by;
end
$$;

-- Figures for /metrics of the process that leads (ops/docs/metrics.md). Nothing here counts a queue: totals are those that the
-- ledger keeps, lanes are skipped through, and what is counted at all is counted up to a bound. Names of streams, tables and
-- programs, never an address. Who asks waits for no lock for long: a table that an upgrade has in hand is left out for now.

-- By stream (p_tenants: and tenant) one row a figure:
--   enqueued sent bounced suppressed expired cancelled dead   the ledger's totals, seconds old
--   depth                 recipients that are not settled, scheduled and held ones too
--   oldest_due_seconds    how long the oldest free mail has been due that no pause keeps; absent where none is due
--   held, in_doubt        as the leader counted them last; where it did not lately, up to 1,000 a lane
create or replace function pgmail.metrics_queue_v1(p_tenants boolean default false)
returns table (tenant text, stream text, figure text, value double precision)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_mergejoin = off set jit = off
as $$
  with kept as materialized (
    select pgmail.gauge_kept() and coalesce(c.counted_at > pgmail.now() - interval '1 hour', false) as is_kept from pgmail.insight_cursor c
  ), lanes as (
    select g.tenant_id, g.stream, g.held, g.in_doubt, d.due_at
    from pgmail.gauge g left join pgmail.gauge_due() d on d.tenant_id = g.tenant_id and d.lane = g.lane and d.due_at <= pgmail.now()
    where (select k.is_kept from kept k)
    union all
    select o.tenant_id, o.stream, h.held, h.in_doubt, o.due_at
    from pgmail.oldest_in_lanes() o
    cross join lateral (
      select count(*) as held, count(*) filter (where y.in_doubt) as in_doubt
      from (select q.in_doubt from pgmail.queue q
            where q.tenant_id = o.tenant_id and q.lane = o.lane and q.due_at = 'infinity' limit 1000) y) h
    where not (select k.is_kept from kept k)
  ), figures as (
    select l.tenant_id, l.stream, f.figure, f.value
    from (select g.tenant_id, g.stream, sum(g.held)::float8 as held, sum(g.in_doubt)::float8 as in_doubt,
            extract(epoch from pgmail.now() - min(g.due_at))::float8 as seconds from lanes g group by 1, 2) l,
      lateral (values ('held', l.held), ('in_doubt', l.in_doubt), ('oldest_due_seconds', l.seconds)) f(figure, value)
    where f.value is not null
    union all
    select t.tenant_id, t.stream, t.kind, t.n::float8 from pgmail.tally_total t
    union all
    -- What there is none of is 0, not absent: else nobody sees it begin.
    select t.tenant_id, t.stream, k.kind, 0 from (select distinct y.tenant_id, y.stream from pgmail.tally_total y) t,
      unnest(array['sent', 'bounced', 'suppressed', 'expired', 'cancelled', 'dead', 'held', 'in_doubt']) k(kind)
    union all
    select t.tenant_id, t.stream, 'depth', sum(case t.kind when 'enqueued' then t.n else -t.n end)::float8
    from pgmail.tally_total t group by 1, 2
  )
  select case when p_tenants then coalesce(t.name, f.tenant_id::text) end, f.stream, f.figure,
    case f.figure when 'oldest_due_seconds' then max(f.value) when 'depth' then greatest(0, sum(f.value)) else sum(f.value) end
  from figures f left join pgmail.tenant t on p_tenants and t.id = f.tenant_id
  group by 1, 2, 3
$$;

-- The fleet and its server, one row a figure; `label` is a program, a state or a standby where there are several of one name.
-- A role that may not see other sessions (pg_read_all_stats) is told less: those figures are absent, not 0.
create or replace function pgmail.metrics_fleet_v1()
returns table (figure text, label text, value double precision)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select 'workers', w.program || ' ' || w.state, count(*)::float8 from pgmail.worker w group by w.program, w.state
  union all
  select 'beat_age_seconds', null, max(extract(epoch from clock_timestamp() - w.beat_at))::float8 from pgmail.worker w having count(*) > 0
  union all
  select 'doors_closed', null, count(*)::float8 from pgmail.door d where d.until > pgmail.now()
  union all
  select 'pauses', null, count(*)::float8 from pgmail.pause s where s.until is null or s.until > pgmail.now()
  union all
  select 'relays', r.state, count(*)::float8 from pgmail.relay r group by r.state
  union all
  select 'stopped_for_restore', null, count(*)::float8 from pgmail.fence f
  union all
  select 'reached_age_seconds', c.subject, greatest(extract(epoch from pgmail.now() - c.at), 0)::float8 from pgmail.chores_reached() c where c.at is not null
  union all
  select x.figure, null, x.value from pgmail.partition_state() p,
    lateral (values ('partition_days_left', p.days_left::float8), ('partition_strays', p.strays::float8)) x(figure, value)
  union all
  select 'notify_queue', null, pg_notification_queue_usage()
  union all
  select 'connections', null, sum(d.numbackends)::float8 from pg_stat_database d
  union all
  select 'connections_max', null, current_setting('max_connections')::float8
  union all
  select 'database_bytes', null, pg_database_size(current_database())::float8
  union all
  select 'xid_age', null, age(d.datfrozenxid)::float8 from pg_database d where d.datname = current_database()
  union all
  -- Seen by everybody: how many transactions began since the oldest one that still runs, or that a snapshot still needs.
  select 'snapshot_span', null, (pg_snapshot_xmax(s.now)::text::numeric - pg_snapshot_xmin(s.now)::text::numeric)::float8
  from (select pg_current_snapshot() as now) s
  union all
  select 'oldest_transaction_seconds', null, max(extract(epoch from clock_timestamp() - x.since))::float8
  from (select a.xact_start as since from pg_stat_activity a
        where a.datid = (select d.oid from pg_database d where d.datname = current_database()) and a.backend_type = 'client backend'
        union all select t.prepared from pg_prepared_xacts t where t.database = current_database()) x
  having max(x.since) is not null
  union all
  (select 'replication_lag_seconds', r.application_name, max(extract(epoch from r.replay_lag))::float8 from pg_stat_replication r
   where r.replay_lag is not null group by r.application_name order by 3 desc limit 10)
$$;

-- Sizes and the state of their garbage: of the tables that change all the time one by one, of the partitioned ones in sum. What is
-- wasted of the former is an estimate from what a row takes there, its share of the free space that updates need included.
create or replace function pgmail.metrics_tables_v1()
returns table (name text, bytes bigint, index_bytes bigint, live bigint, dead bigint, wasted_bytes bigint, updates bigint,
  hot_updates bigint, vacuumed_seconds double precision)
language plpgsql stable security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms'
as $$
declare r record; part record;
begin
  for r in select x.base, x.row_bytes from (values
      ('queue', 420), ('lane', 200), ('lane_touch', 110), ('tally', 90), ('tally_total', 180), ('worker', 200), ('dead_letter', null),
      ('message', null), ('recipient', null), ('event', null), ('outcome', null), ('attachment', null), ('tag', null)) x(base, row_bytes)
  loop
    name := r.base; bytes := 0; index_bytes := 0; live := 0; dead := 0; updates := 0; hot_updates := 0; vacuumed_seconds := null;
    begin
      for part in
        select s.relid, s.n_live_tup, s.n_dead_tup, s.n_tup_upd, s.n_tup_hot_upd, greatest(s.last_vacuum, s.last_autovacuum) as vacuumed
        from pg_stat_user_tables s
        where s.relid = to_regclass('pgmail.' || quote_ident(r.base))
           or s.relid in (select i.inhrelid from pg_inherits i where i.inhparent = to_regclass('pgmail.' || quote_ident(r.base)))
      loop
        bytes := bytes + pg_table_size(part.relid); index_bytes := index_bytes + pg_indexes_size(part.relid);
        live := live + part.n_live_tup; dead := dead + part.n_dead_tup;
        updates := updates + part.n_tup_upd; hot_updates := hot_updates + part.n_tup_hot_upd;
        vacuumed_seconds := least(vacuumed_seconds, extract(epoch from clock_timestamp() - part.vacuumed)::float8);
      end loop;
    exception when lock_not_available then
      continue;
    end;
    -- Less than a few pages is no garbage worth a word.
    wasted_bytes := case when r.row_bytes is not null then greatest(0, bytes - 131072 - live * r.row_bytes) end;
    return next;
  end loop;
end
$$;

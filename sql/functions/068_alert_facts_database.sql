-- What is true now of the database that carries the mail. PostgreSQL shows a session's details to itself and to members of
-- pg_read_all_stats; to others it shows who it is and which transactions it keeps alive, which is enough to name it here.
-- `grant pg_read_all_stats to OWNER` lets this say since when, and how far a standby lags.

-- Notes the next transaction id, once a minute for an hour and in steps of ten minutes for two days.
create or replace function pgmail.alert_horizon_step() returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare now_ timestamptz := pgmail.now();
begin
  if exists (select from pgmail.alert_horizon h where h.at > now_ - interval '55 seconds') then return; end if;
  insert into pgmail.alert_horizon (at, xid) values (now_, pg_snapshot_xmax(pg_current_snapshot())::text::bigint) on conflict do nothing;
  delete from pgmail.alert_horizon h where h.at < now_ - interval '2 days' or (h.at < now_ - interval '1 hour' and exists (
    select from pgmail.alert_horizon x where x.at > h.at and x.at < now_ - interval '1 hour'
      and floor(extract(epoch from x.at) / 600) = floor(extract(epoch from h.at) / 600)));
end
$$;

-- Who keeps dead rows from being removed for the longest: a session, a prepared transaction or a replication slot; and since
-- when, as far as is known. A snapshot that is older than a transaction id was taken before that one was given out, whose
-- moment is known to the minute. Of sessions that share a horizon it is the one whose own transaction it is, else the oldest.
create or replace function pgmail.oldest_snapshot(
  out who text, out pid integer, out account text, out application text, out state text, out seconds double precision, out mend text
)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare next_ bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint; h record; known timestamptz;
begin
  select * into h from (
    -- A session without a snapshot keeps nothing, however long it is idle in its transaction; nor does a mere reader of
    -- another database. A writer there does: each new snapshot counts from the oldest transaction id of all databases.
    select 'session' as what, a.pid as id, a.usename::text as owner, a.application_name::text as app, a.state::text as doing,
      case when a.datname <> current_database() then a.datname::text end as name,
      next_ - greatest(age(a.backend_xid), age(a.backend_xmin)) as xid, coalesce(a.xact_start, a.query_start) as began,
      (a.backend_xid is not null and age(a.backend_xid) >= coalesce(age(a.backend_xmin), 0))::integer as own
    from pg_stat_activity a
    where (a.backend_xid is not null or a.backend_xmin is not null) and a.pid <> pg_backend_pid()
      and (a.backend_xid is not null or coalesce(a.datname, current_database()) = current_database())
      and (a.backend_type is null or a.backend_type in ('client backend', 'walsender', 'background worker'))
    union all
    select 'prepared', null, p.owner::text, null, null, p.gid, next_ - age(p.transaction), p.prepared, 1 from pg_prepared_xacts p
    union all
    select 'slot', s.active_pid, null, null, null, s.slot_name::text, next_ - greatest(age(s.xmin), age(s.catalog_xmin)), null, 0
    from pg_replication_slots s where s.xmin is not null or s.catalog_xmin is not null
  ) x order by x.xid, x.own desc, x.began nulls last, x.id limit 1;
  if not found then return; end if;
  -- The first look after its birth: it is at least that old.
  select min(z.at) into known from pgmail.alert_horizon z where z.xid > h.xid;
  seconds := greatest(extract(epoch from clock_timestamp() - h.began), extract(epoch from pgmail.now() - known), 0);
  pid := h.id; account := h.owner; application := nullif(h.app, ''); state := h.doing;
  if h.what = 'session' then
    who := format('the session %s of %s%s%s%s', h.id, coalesce(h.owner, 'nobody'), coalesce(' (' || nullif(h.app, '') || ')', ''),
      coalesce(' in the database ' || h.name, ''), coalesce(', ' || h.doing, ''));
    mend := format('select pg_terminate_backend(%s)', h.id);
  elsif h.what = 'prepared' then
    who := format('the prepared transaction %L of %s', h.name, h.owner);
    mend := format('rollback prepared %L', h.name);
  else
    who := format('the replication slot %s', h.name);
    mend := format('select pg_drop_replication_slot(%L)', h.name);
  end if;
end
$$;

-- Dead rows of the hot tables against living ones, as the server estimates them, and how large each is.
create or replace function pgmail.hot_tables()
returns table (name text, dead bigint, living bigint, bytes bigint, vacuumed_at timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select s.relname::text, s.n_dead_tup, s.n_live_tup, pg_total_relation_size(s.relid), greatest(s.last_vacuum, s.last_autovacuum)
  from pg_stat_user_tables s where s.schemaname = 'pgmail'
    and s.relname in ('queue', 'lane', 'lane_touch', 'tally', 'tally_total', 'worker', 'bucket', 'permit', 'dead_letter', 'idempotency')
$$;

-- Standbys and slots: how far each lags in seconds (null where the server does not say), and the WAL that it keeps.
create or replace function pgmail.replicas()
returns table (name text, kind text, active boolean, lag_seconds double precision, kept_bytes numeric)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select s.slot_name::text, 'slot', s.active, null::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)
  from pg_replication_slots s where not pg_is_in_recovery()
  union all
  select coalesce(nullif(r.application_name, ''), r.pid::text), 'standby', true, extract(epoch from r.replay_lag)::float8, null
  from pg_stat_replication r
$$;

create or replace function pgmail.alert_facts_database() returns setof pgmail.alert_fact
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare most integer := current_setting('max_connections')::integer;
begin
  return query
  select r.id, null::integer, '', o.seconds, format('Dead rows are kept for %s by %s; to end it: %s.', pgmail.span_words(o.seconds), o.who, o.mend)
  from pgmail.oldest_snapshot() o join pgmail.alert_rule r on r.kind = 'old_transaction' and r.tenant_id is null and r.enabled and o.seconds > r.threshold;

  return query
  select r.id, null::integer, t.name, t.dead::float8, format('The table %s holds %s dead rows beside %s living ones (%s), last vacuumed %s.', t.name,
    pgmail.number_words(t.dead), pgmail.number_words(t.living), pg_size_pretty(t.bytes), coalesce('at ' || pgmail.at_words(t.vacuumed_at), 'never'))
  from pgmail.hot_tables() t join pgmail.alert_rule r on r.kind = 'table_bloat' and r.tenant_id is null and r.enabled and coalesce(r.about, t.name) = t.name
  where t.dead > r.threshold and t.dead > t.living;

  return query
  select r.id, null::integer, x.kind || ' ' || x.name, coalesce(x.lag_seconds, 0), case
    when x.lag_seconds > r.threshold then format('The standby %s lags %s behind.', x.name, pgmail.span_words(x.lag_seconds))
    else format('The replication slot %s %s keeps %s of WAL.', x.name, case when x.active then 'is behind and' else 'is used by nobody and' end, pg_size_pretty(x.kept_bytes)) end
  from pgmail.replicas() x
  join pgmail.alert_rule r on r.kind = 'replication' and r.tenant_id is null and r.enabled and coalesce(r.about, x.name) = x.name
  where x.lag_seconds > r.threshold or x.kept_bytes > coalesce(r.floor, 'Infinity') * case when x.active then 1 else 0.1 end;

  return query
  select r.id, null::integer, '', u.share, format('The queue of NOTIFY is %s full: a session that listens sits in a long transaction.', pgmail.share_words(u.share))
  from (select pg_notification_queue_usage() as share) u
  join pgmail.alert_rule r on r.kind = 'notify_queue' and r.tenant_id is null and r.enabled and u.share > r.threshold;

  return query
  select r.id, null::integer, '', d.age, format('The oldest transaction id of this database is %s transactions old; at 2,100,000,000 PostgreSQL takes no more writes.', pgmail.number_words(d.age::numeric))
  from (select age(x.datfrozenxid)::float8 as age from pg_database x where x.datname = current_database()) d
  join pgmail.alert_rule r on r.kind = 'wraparound' and r.tenant_id is null and r.enabled and d.age > r.threshold;

  return query
  select r.id, null::integer, '', c.n::float8 / most, format('%s of %s connections to the database are in use.', c.n, most)
  from (select count(*) as n from pg_stat_activity a where a.backend_type is null or a.backend_type = 'client backend') c
  join pgmail.alert_rule r on r.kind = 'connections' and r.tenant_id is null and r.enabled and c.n > r.threshold * most;
end
$$;

-- What `pgmail doctor` looks at. Each is a question of its own, so that a role that may not ask one can ask the others.

-- name: server :one
-- Which PostgreSQL answers, as whom, and what its clock says.
select current_setting('server_version') as version, current_setting('server_version_num')::integer as number,
       session_user::text as role, current_database()::text as database, pg_is_in_recovery() as standby,
       clock_timestamp() as now;

-- name: tenant :one
-- Which tenant this session speaks for, and whether its role carries that of a key instead.
select pgmail.current_tenant() as tenant_id;

-- name: roles :many
-- Which of the roles exist.
select r.rolname::text as name from pg_roles r where r.rolname = any(%(names)s::text[]);

-- name: partitions :one
-- Days until new mail goes to the partitions of last resort, and how many rows went there already.
select p.days_left, p.strays from pgmail.partition_state() p;

-- name: retention :one
-- What is kept for how long, and how many partitions should have gone a day ago.
select r.content_days, r.record_days, r.overdue, r.kept from pgmail.retention_state() r;

-- name: workers :many
-- Each process that beats, and how long ago it last did.
select w.epoch, w.host, w.pid, w.program, w.concurrency, w.state, w.started_at, w.staging,
       extract(epoch from clock_timestamp() - w.beat_at)::float8 as silent_seconds
from pgmail.worker w order by w.epoch;

-- name: leader :one
-- Whether somebody leads, and whether a process beats that would take a lead that has lapsed.
select coalesce(l.until > clock_timestamp(), false) as leads, l.epoch,
       exists (select from pgmail.worker w where w.beat_at > clock_timestamp() - interval '10 seconds') as candidates
from pgmail.leader l;

-- name: waiting :one
-- For how long the oldest mail has been due that nobody has taken, and how many recipients an operator, a limit or a doubt holds back.
select extract(epoch from pgmail.now() - w.oldest_due_at)::double precision as oldest_seconds, w.held, w.in_doubt from pgmail.waits() w;

-- name: depth :one
-- How much waits, of all tenants that this role sees, without a look at it.
select coalesce(sum(case t.kind when 'enqueued' then t.n else -t.n end), 0)::bigint as n
from (select x.kind, x.n from pgmail.tally x union all select y.kind, y.n from pgmail.tally_total y) t;

-- name: ledger :many
-- Tenants whose books do not balance.
select l.tenant, l.difference from pgmail.ledger l where l.difference <> 0;

-- name: quotas :many
-- What is closed now, and tenants that used four fifths of what they may hand over in a day.
select t.name as tenant, d.kind, d.reason, d.until, 1.0::float8 as part from pgmail.door d
join pgmail.tenant t on t.id = d.tenant_id where d.until > pgmail.now()
union all
select t.name, 'near', null, null, x.part::float8 from pgmail.quota_meter m
join pgmail.tenant t on t.id = m.tenant_id
left join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = 'tenant'
left join pgmail.quota f on f.scope = 'fleet'
cross join lateral (select greatest(m.mails / coalesce(q.bound_mails, f.bound_mails)::numeric,
                                    m.bytes / coalesce(q.bound_bytes, f.bound_bytes)::numeric, 0) as part) x
where m.scope = 'tenant' and m.day = (pgmail.now() at time zone 'UTC')::date and x.part between 0.8 and 1
order by part desc, kind, tenant;

-- name: bound :one
-- What one tenant may hand over in a day where it has no bound of its own.
select q.bound_mails, q.bound_bytes from pgmail.quota q where q.scope = 'fleet';

-- name: alerts :many
-- What fires, the worst first.
select a.rule, a.subject, a.tenant, a.severity, a.words, a.silenced from pgmail.alerts(true, 'firing', null, 100, null) a
order by array_position(array['critical', 'warning', 'info'], a.severity), a.since;

-- name: targets :many
-- Who is told of alerts, and whether that works.
select t.name, t.kind, t.failing_since, t.answer from pgmail.alert_targets(true) t order by t.failing_since nulls last, t.name;

-- name: reached :many
-- Up to when the leading process has done what pages and alerts hang on, what is the furthest behind first.
select c.subject, c.words, c.times, c.at, c.building, extract(epoch from pgmail.now() - c.at)::float8 as seconds
from pgmail.chores_reached() c where c.at is not null order by extract(epoch from pgmail.now() - c.at) / c.times desc;

-- name: webhooks :many
-- Endpoints that fail, or that pgmail disabled for it: those first, and the caller's own tenant's; never what may be secret of a URL.
select h.id, split_part(h.url, '?', 1) as url, h.enabled, coalesce(h.reason, h.last_error) as reason, h.failing_since, t.name as tenant,
  h.tenant_id is not distinct from pgmail.current_tenant() as own
from pgmail.hook h join pgmail.tenant t on t.id = h.tenant_id
where h.removed_at is null and h.failing_since is not null and (h.enabled or not starts_with(h.reason, 'disabled by '))
order by h.enabled, own desc, h.failing_since limit 100;

-- name: snapshot :one
-- Who keeps dead rows from being removed for the longest.
select o.who, o.seconds, o.mend from pgmail.oldest_snapshot() o;

-- name: tables :many
-- Hot tables that hold more dead rows than living ones, the worst first, and those whose autovacuum is off.
select t.name, t.dead, t.living, t.bytes, t.vacuumed_at,
  exists (select from pg_class c, unnest(c.reloptions) o where c.oid = to_regclass('pgmail.' || t.name)
          and o ~ '^autovacuum_enabled=(false|off|no|0)') as off
from pgmail.hot_tables() t order by t.dead desc;

-- name: replicas :many
-- Standbys and slots.
select r.name, r.kind, r.active, r.lag_seconds, r.kept_bytes::float8 from pgmail.replicas() r order by r.kept_bytes desc nulls last;

-- name: server_settings :one
-- Settings of the server that mail hangs on, connections in use, and how full the queue of NOTIFY is.
select current_setting('fsync')::boolean as fsync, current_setting('full_page_writes')::boolean as full_page_writes,
  current_setting('synchronous_commit') as synchronous_commit, current_setting('autovacuum')::boolean as autovacuum,
  current_setting('max_connections')::integer as max_connections, current_setting('track_counts')::boolean as track_counts,
  current_setting('superuser_reserved_connections')::integer as reserved,
  (select count(*) from pg_stat_activity a where a.backend_type is null or a.backend_type = 'client backend')::integer as used,
  pg_notification_queue_usage() as notify_share, (select age(d.datfrozenxid) from pg_database d where d.datname = current_database()) as xid_age;

-- name: pauses :many
-- What is paused without an end, the oldest first.
select p.scope, p.name, p.tenant_id is null as fleet, p.paused_by, p.reason, extract(epoch from pgmail.now() - p.paused_at)::float8 as seconds
from pgmail.pause p where p.until is null order by p.paused_at;

-- name: ends :many
-- Certificates and API keys that end within three weeks, the first to end first.
select x.what, x.days from (
  select c.name || ' (' || c.place || ')' as what, extract(epoch from c.ends_at - pgmail.now())::float8 / 86400 as days from pgmail.certificate c
  where c.seen_at > pgmail.now() - interval '3 days'
) x where x.days < 21 order by x.days;

-- name: unseen :many
-- Certificates that could not be seen, the longest first. A relay that was away for a moment is another check's matter.
select c.name || ' (' || c.place || ')' as what, c.unseen_since, c.answer from pgmail.certificate c
where c.seen_at > pgmail.now() - interval '3 days' and c.unseen_since < pgmail.now() - interval '1 hour' order by c.unseen_since;

-- name: keys :many
-- API keys that end within a week and that no other has replaced.
select k.id, k.name, extract(epoch from k.expires_at - pgmail.now())::float8 / 86400 as days from pgmail.list_keys() k
where k.revoked_at is null and k.replaced_by is null and k.expires_at between pgmail.now() and pgmail.now() + interval '7 days'
order by k.expires_at;

-- name: dead :one
-- How many dead letters wait for a person.
select count(*) as n from pgmail.dead_letter d where d.tenant_id = (select pgmail.current_tenant());

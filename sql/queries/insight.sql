-- Figures of the caller's tenant, out of roll-ups and gauges: none asks the queue, and none reads mail.

-- name: roll_up :many
-- Read on in the feed of events; no row: another process is at it, or the feed's index is being built.
select r.events, r.more from pgmail.rollup_v1(%(most)s) r;

-- name: trim_rollups :one
-- Let go of figures past their time.
select pgmail.trim_rollups_v1(5000) as gone;

-- name: gauge_lanes :one
-- Look for the oldest due mail of each lane; how many lanes there are.
select pgmail.gauge_lanes_v1() as lanes;

-- name: gauge_states :one
-- Count the queue's states once; by how much the running depths were off.
select pgmail.gauge_states_v1() as off_by;

-- name: now :one
-- The present. Depth and dead are exact; the rest is as old as the gauges, rates are of 15 seconds that are folded.
with mine as materialized (
  select t.stream, t.kind, t.n from pgmail.tally_total t
  where t.tenant_id = (select pgmail.current_tenant()) and (%(streams)s::text[] is null or t.stream = any (%(streams)s::text[]))
  union all
  select t.stream, t.kind, t.n from pgmail.tally t
  where t.tenant_id = (select pgmail.current_tenant()) and (%(streams)s::text[] is null or t.stream = any (%(streams)s::text[]))
), slices as (
  select date_bin('5 seconds', pgmail.now(), '2000-01-01Z') - interval '15 seconds' as since
)
select pgmail.now() as now,
  (select coalesce(sum(case m.kind when 'enqueued' then m.n else -m.n end), 0)::bigint from mine m) as depth,
  (select coalesce(sum(m.n), 0)::bigint from mine m where m.kind = 'dead') as dead,
  p.in_per_s, p.sent_per_s, g.oldest_due_at, g.held, g.in_doubt,
  (select count(*) from pgmail.worker w where w.program <> 'maintain' and w.beat_at > pgmail.now() - interval '30 seconds') as workers,
  (select c.rolled_at from pgmail.insight_cursor c) as rolled_at,
  (select c.counted_at from pgmail.insight_cursor c) as counted_at
from (
  select coalesce(sum(p.enqueued), 0)::float8 / 15 as in_per_s, coalesce(sum(p.sent), 0)::float8 / 15 as sent_per_s
  from pgmail.pulse p, slices s
  where p.tenant_id = (select pgmail.current_tenant()) and p.at >= s.since and p.at < s.since + interval '15 seconds'
    and (%(streams)s::text[] is null or p.stream = any (%(streams)s::text[]))) p,
  (select min(g.oldest_due_at) as oldest_due_at, coalesce(sum(g.held), 0)::bigint as held, coalesce(sum(g.in_doubt), 0)::bigint as in_doubt
   from pgmail.gauge g
   where g.tenant_id = (select pgmail.current_tenant()) and (%(streams)s::text[] is null or g.stream = any (%(streams)s::text[]))) g;

-- name: points :many
-- What happened to mail of all streams, or of these, in steps of so many seconds.
select date_bin(%(step)s * interval '1 second', r.at, '2000-01-01Z') as at, r.kind, r.bucket, sum(r.n)::bigint as n
from pgmail.rollup r
where r.tenant_id = (select pgmail.current_tenant()) and r.dim = 'stream' and r.grain = %(grain)s and r.at >= %(since)s and r.at < %(until)s
  and (%(streams)s::text[] is null or r.key = any (%(streams)s::text[]))
  and r.kind in ('enqueued', 'sent', 'deferred', 'bounced_hard', 'bounced_soft', 'bounced_block', 'bounced_other', 'dead', 'took')
group by 1, 2, 3;

-- name: depth :one
-- How much waits in all, exactly.
select coalesce(sum(case t.kind when 'enqueued' then t.n else -t.n end), 0)::bigint as depth,
  (select c.counted_at from pgmail.insight_cursor c) as counted_at, pgmail.now() as now
from (select tenant_id, kind, n from pgmail.tally union all select tenant_id, kind, n from pgmail.tally_total) t
where t.tenant_id = (select pgmail.current_tenant());

-- name: queue :many
-- How much waits, by stream, priority and site, without a look at it: depths are exact, the oldest due is as old as the last
-- gauge, states are those that were counted last. `waits_for` says what stops a lane's due mail now.
with depth as materialized (
  select x.lane, sum(x.n)::bigint as depth from (
    select b.lane, b.depth as n from pgmail.backlog b where b.tenant_id = (select pgmail.current_tenant())
    union all
    select u.lane, case t.kind when 'enqueued' then u.n else -u.n end from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n)
    where t.tenant_id = (select pgmail.current_tenant()) and u.lane is not null) x
  group by x.lane having sum(x.n) > 0
), named as materialized (
  select coalesce(l.stream, g.stream) as stream, coalesce(l.priority, g.priority) as priority, coalesce(l.site, g.site) as site, d.depth,
    coalesce(g.queued, 0) as queued, coalesce(g.scheduled, 0) as scheduled, coalesce(g.deferred, 0) as deferred,
    coalesce(g.held, 0) as held, coalesce(g.sending, 0) as sending, g.oldest_due_at
  from depth d
  left join pgmail.lane l on l.tenant_id = (select pgmail.current_tenant()) and l.id = d.lane
  left join pgmail.gauge g on g.tenant_id = (select pgmail.current_tenant()) and g.lane = d.lane
  where coalesce(l.stream, g.stream) is not null
), special as materialized (   -- as in `queue` of emails.sql
  select name as site from pgmail.limits where scope = 'site'
  union select case scope when 'site' then name else split_part(name, '/', 3) end from pgmail.pause where scope <> 'stream'
), stops as materialized (
  select x.stream, x.priority, x.site, s.words
  from (select distinct n.stream, n.priority, y.site from named n left join special y on y.site = n.site where n.oldest_due_at is not null) x
  cross join lateral pgmail.stopped_by(x.stream, x.priority, x.site) s
)
select n.stream, case n.priority when 1 then 'high' when 2 then 'normal' else 'low' end as priority, n.site, n.depth, n.queued,
  n.scheduled, n.deferred, n.held, n.sending, n.oldest_due_at, case when n.oldest_due_at is not null then s.words end as waits_for
from named n
left join special y on y.site = n.site
left join stops s on s.stream = n.stream and s.priority = n.priority and coalesce(s.site, '') = coalesce(y.site, '')
order by 1, n.priority, n.depth desc, 3;

-- name: as_of :one
-- Up to when the roll-ups hold everything.
select c.rolled_at from pgmail.insight_cursor c;

-- name: report :many
-- What became of mail, by the keys of a dimension: for each, kinds, buckets and how many, side by side.
select r.key, array_agg(r.kind) as kinds, array_agg(r.bucket) as buckets, array_agg(r.n) as ns
from (
  select x.key, x.kind, x.bucket, sum(x.n)::bigint as n from pgmail.rollup x
  where x.tenant_id = (select pgmail.current_tenant()) and x.dim = %(dim)s and x.grain = %(grain)s and x.at >= %(since)s and x.at < %(until)s
    and (%(streams)s::text[] is null or x.key = any (%(streams)s::text[]))
  group by x.key, x.kind, x.bucket) r
group by r.key;

-- name: report_by_time :many
-- The same by the moment at which each hour or day begins.
select to_char(r.at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') as key, array_agg(r.kind) as kinds, array_agg(r.bucket) as buckets,
  array_agg(r.n) as ns
from (
  select x.at, x.kind, x.bucket, sum(x.n)::bigint as n from pgmail.rollup x
  where x.tenant_id = (select pgmail.current_tenant()) and x.dim = 'stream' and x.grain = %(grain)s and x.at >= %(since)s and x.at < %(until)s
    and (%(streams)s::text[] is null or x.key = any (%(streams)s::text[]))
  group by x.at, x.kind, x.bucket) r
group by r.at;

-- name: report_by_tenant :many
-- The same of each tenant that this role sees.
select t.name as key, array_agg(r.kind) as kinds, array_agg(r.bucket) as buckets, array_agg(r.n) as ns
from (
  select y.id, x.kind, x.bucket, sum(x.n)::bigint as n
  from pgmail.tenant y cross join lateral (
    select z.kind, z.bucket, z.n from pgmail.rollup z
    where z.tenant_id = y.id and z.dim = 'stream' and z.grain = %(grain)s and z.at >= %(since)s and z.at < %(until)s) x
  group by y.id, x.kind, x.bucket) r
join pgmail.tenant t on t.id = r.id
group by t.name;

-- name: causes :many
-- The most frequent answers that were not a 250.
select c.kind, c.class as group, c.reason, nullif(c.code, 0) as code, nullif(c.enhanced, '') as enhanced, c.text,
  (sum(c.n) filter (where e.i = 1))::bigint as n, max(c.last_at) as last_at,
  -- an email that was deferred three times is one example
  array(select x.id from unnest(array_agg(e.id order by c.last_at desc, e.i)) with ordinality x(id, place)
        group by x.id order by min(x.place) limit 3) as examples
from pgmail.cause c cross join lateral unnest(c.examples) with ordinality e(id, i)
where c.tenant_id = (select pgmail.current_tenant()) and c.at >= %(since)s and c.at < %(until)s and (%(kind)s::text is null or c.kind = %(kind)s)
group by 1, 2, 3, 4, 5, 6 order by 7 desc, 8 desc limit %(most)s;

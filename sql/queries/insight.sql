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
-- The present. Depth, dead and what was ever enqueued are exact; the rest is as old as the gauges, rates are of 15 seconds that are folded.
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
  (select coalesce(sum(m.n), 0)::bigint from mine m where m.kind = 'enqueued') as enqueued,
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
-- How much waits: in all (`all`), of what a stream and a site narrow it to (`found`), by stream, by site, and by lane, the
-- `most` deepest of each; `lanes`, `sites` and `streams` are how many there are. A small queue is counted. Of a deep one depths
-- are exact without a look at it, the oldest due is as old as the last gauge, and states are those that were counted last. A lane
-- of a small one that no worker has folded yet is named by one of its emails. `waits_for` says what stops due mail now.
with counted as materialized (
  select q.lane, count(*) as depth,
    count(*) filter (where s.state = 'queued') as queued, count(*) filter (where s.state = 'scheduled') as scheduled,
    count(*) filter (where s.state = 'deferred') as deferred, count(*) filter (where s.state = 'held') as held,
    count(*) filter (where s.state = 'sending') as sending, min(q.due_at) filter (where s.state = 'queued') as oldest_due_at
  from pgmail.queue q,
    lateral (select pgmail.state_of(null, false, true, q.leased_by is not null, q.due_at, q.wait, pgmail.now()) as state) s
  where %(small)s::boolean and q.tenant_id = (select pgmail.current_tenant())
  group by q.lane
), moving as materialized (   -- what is not folded yet
  select u.lane, sum(case t.kind when 'enqueued' then u.n else -u.n end)::bigint as n
  from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n)
  where not %(small)s::boolean and t.tenant_id = (select pgmail.current_tenant()) and u.lane is not null group by u.lane
), depth as (
  select coalesce(b.lane, v.lane) as lane, coalesce(b.depth, 0) + coalesce(v.n, 0) as depth
  from (select x.lane, x.depth from pgmail.backlog x where not %(small)s::boolean and x.tenant_id = (select pgmail.current_tenant())) b
  full join moving v on v.lane = b.lane
), known as materialized (
  select d.lane, d.depth, g.stream, g.priority, g.site, g.queued, g.scheduled, g.deferred, g.held, g.sending, g.oldest_due_at
  from depth d left join pgmail.gauge g on g.tenant_id = (select pgmail.current_tenant()) and g.lane = d.lane
  where d.depth > 0
), named as (
  select k.stream, k.priority, k.site, k.depth, k.queued, k.scheduled, k.deferred, k.held, k.sending, k.oldest_due_at
  from known k where k.stream is not null
  union all
  select l.stream, l.priority, l.site, k.depth, 0, 0, 0, 0, 0, null   -- no gauge has come by yet
  from known k join pgmail.lane l on l.tenant_id = (select pgmail.current_tenant()) and l.id = k.lane where k.stream is null
  union all
  select coalesce(l.stream, f.stream), coalesce(l.priority, f.priority), coalesce(l.site, f.site), c.depth, c.queued, c.scheduled,
    c.deferred, c.held, c.sending, c.oldest_due_at
  from counted c
  left join pgmail.lane l on l.tenant_id = (select pgmail.current_tenant()) and l.id = c.lane
  left join lateral (
    select m.stream, m.priority, r.site
    from pgmail.queue q
    join pgmail.message m on m.tenant_id = q.tenant_id and m.id = q.message_id
    join pgmail.recipient r on r.tenant_id = q.tenant_id and r.id = q.id
    where l.id is null and q.tenant_id = (select pgmail.current_tenant()) and q.lane = c.lane
    limit 1) f on true
), special as materialized (   -- sites that something is said of; all others are stopped by the same, whichever they are
  select name as site from pgmail.limits where scope = 'site'
  union select case scope when 'site' then name else split_part(name, '/', 3) end from pgmail.pause where scope <> 'stream'
), mine as materialized (
  select n.*, y.site as special, (%(stream)s::text is null or n.stream = %(stream)s::text) and (%(site)s::text is null or n.site = %(site)s::text) as found
  from named n left join special y on y.site = n.site
  where n.stream is not null and (%(streams)s::text[] is null or n.stream = any (%(streams)s::text[]))
    and (%(only)s::text is null or n.site = %(only)s::text)
), streams as materialized (
  select m.stream, sum(m.depth)::bigint as depth, sum(m.queued)::bigint as queued, sum(m.scheduled)::bigint as scheduled, sum(m.deferred)::bigint as deferred,
    sum(m.held)::bigint as held, sum(m.sending)::bigint as sending, min(m.oldest_due_at) as oldest_due_at, count(*) as lanes
  from mine m group by m.stream
), depths as materialized (   -- a sum in float8 costs a fifth of one in numeric, and orders as well
  select m.site, sum(m.depth::float8) as depth from mine m where m.found group by m.site
), by_stream as (
  select x.* from streams x order by x.depth desc, x.stream limit %(most)s
), by_site as materialized (
  select m.site, sum(m.depth)::bigint as depth, sum(m.queued)::bigint as queued, sum(m.scheduled)::bigint as scheduled, sum(m.deferred)::bigint as deferred,
    sum(m.held)::bigint as held, sum(m.sending)::bigint as sending, min(m.oldest_due_at) as oldest_due_at
  from mine m where m.found and (m.site in (select d.site from depths d order by d.depth desc, d.site limit %(most)s)) is true   -- by hash
  group by m.site
), by_lane as materialized (
  select m.* from mine m where m.found order by m.depth desc, m.stream, m.site, m.priority limit %(most)s
), shown as materialized (   -- lanes of the sites that are told of
  select distinct m.site, m.stream, m.priority, m.special from mine m
  where m.found and m.oldest_due_at is not null and (m.site in (select y.site from by_site y)) is true   -- by hash, not one by one
), stops as materialized (
  select x.stream, x.priority, x.special, s.words
  from (select m.stream, m.priority, null as special from mine m where m.special is null and m.oldest_due_at is not null group by 1, 2
        union select m.stream, m.priority, m.special from shown m
        union select m.stream, m.priority, m.special from by_lane m where m.oldest_due_at is not null) x
  cross join lateral pgmail.stopped_by(x.stream, x.priority, x.special) s
), of_streams as (
  select s.stream, array_agg(distinct s.words) as words from stops s where s.words is not null group by s.stream
), of_sites as (
  select m.site, array_agg(distinct s.words) as words
  from shown m join stops s on s.stream = m.stream and s.priority = m.priority and coalesce(s.special, '') = coalesce(m.special, '')
  where s.words is not null group by m.site
)
select 'all' as part, null as stream, null as priority, null as site, coalesce(sum(x.depth), 0)::bigint as depth, coalesce(sum(x.queued), 0)::bigint as queued,
  coalesce(sum(x.scheduled), 0)::bigint as scheduled, coalesce(sum(x.deferred), 0)::bigint as deferred, coalesce(sum(x.held), 0)::bigint as held,
  coalesce(sum(x.sending), 0)::bigint as sending, min(x.oldest_due_at) as oldest_due_at, null::text[] as waits_for,
  coalesce(sum(x.lanes), 0)::bigint as lanes, null::bigint as sites, count(*) as streams
from streams x
union all
select 'found', null, null, null, coalesce(sum(m.depth), 0)::bigint, coalesce(sum(m.queued), 0)::bigint, coalesce(sum(m.scheduled), 0)::bigint,
  coalesce(sum(m.deferred), 0)::bigint, coalesce(sum(m.held), 0)::bigint, coalesce(sum(m.sending), 0)::bigint, min(m.oldest_due_at), null,
  count(*), (select count(*) from depths), null
from mine m where m.found
union all
select 'stream', x.stream, null, null, x.depth::bigint, x.queued::bigint, x.scheduled::bigint, x.deferred::bigint, x.held::bigint, x.sending::bigint,
  x.oldest_due_at, coalesce(w.words, '{}'), null, null, null
from by_stream x left join of_streams w on w.stream = x.stream
union all
select 'site', null, null, x.site, x.depth::bigint, x.queued::bigint, x.scheduled::bigint, x.deferred::bigint, x.held::bigint, x.sending::bigint,
  x.oldest_due_at, coalesce(w.words, '{}'), null, null, null
from by_site x left join of_sites w on w.site = x.site
union all
select 'lane', x.stream, case x.priority when 1 then 'high' when 2 then 'normal' else 'low' end, x.site, x.depth, x.queued, x.scheduled, x.deferred, x.held,
  x.sending, x.oldest_due_at, case when x.oldest_due_at is not null and s.words is not null then array[s.words] else '{}' end, null, null, null
from by_lane x
left join stops s on s.stream = x.stream and s.priority = x.priority and coalesce(s.special, '') = coalesce(x.special, '');

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

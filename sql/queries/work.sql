-- What a worker reads and does. Every statement on mail names one tenant.

-- name: claim :many
-- Take due rows of some lanes of one tenant, from the heads given.
select * from pgmail.claim_v3(%(tenant)s, %(epoch)s, %(lanes)b::bigint[], %(due)b, %(after)b, %(limits)b::integer[], %(traced)b,
  %(holds)b);

-- name: late :many
-- What waits behind the heads of some lanes of one tenant; where much was sent since, it takes long.
select lane, due_at, n from pgmail.late_v1(%(tenant)s, %(lanes)b::bigint[], %(since)b, %(due)b, %(after)b, %(most)s);

-- name: begin :many
-- Commit the intent to send; answers begun or locked. What is not answered must not be sent.
select id, result from pgmail.begin_v1(%(tenant)s, %(epoch)s, %(ids)b::uuid[], %(claims)b::integer[], %(relays)b::text[]);

-- name: held_by :many
-- What this worker holds in some lanes, by the database: after a claim whose answer was lost.
select q.id, q.message_id, q.lane, q.due_at, q.claims, q.attempts, q.rescues, q.expires_at, q.tried_since
from pgmail.queue q where q.tenant_id = %(tenant)s and q.lane = any(%(lanes)s::bigint[]) and q.leased_by = %(epoch)s;

-- name: settle :many
-- Record what became of claimed rows; answers locked or fenced for those that did not settle.
select * from pgmail.settle_v2(%(tenant)s, %(epoch)s, %(groups)s, %(ids)b::uuid[], %(messages)b::uuid[], %(claims)b::integer[],
  %(group)b::smallint[], %(attempts)b::smallint[], %(ms)b::integer[], %(replies)b::text[]);

-- name: suppress_bounced :one
-- Put addresses that bounced for good on the suppression list.
select s.looked, s.busy from pgmail.suppress_bounced_v1(%(most)s) s;

-- name: release :many
-- Give leases back untried.
select * from pgmail.release_v1(%(tenant)s, %(epoch)s, %(ids)s, %(claims)s, %(reason)s) as id;

-- name: postpone :many
-- Give leases back untried, to wait for so many seconds.
select * from pgmail.postpone_v1(%(tenant)s, %(epoch)s, %(ids)s, %(claims)s, %(seconds)s, %(reason)s) as id;

-- name: still_leased :many
-- Which leases could not be given back, because another transaction has locked their rows.
select q.id
from pgmail.queue q join unnest(%(ids)s, %(claims)s) r(id, claims) on r.id = q.id and r.claims = q.claims
where q.tenant_id = %(tenant)s and q.id = any(%(ids)s) and q.leased_by = %(epoch)s;

-- name: recipients :many
-- The recipients of claimed rows, by their place in the list (from 1: to tell the id again costs its reader more), and whether
-- their address was suppressed since they were enqueued. The bounds prune partitions; one by one, or a plan made before the
-- first ANALYZE may read all that lies between the bounds.
select u.n, coalesce(r.rcpt, r.address) as rcpt, r.address, r.name, r.variables, s.reason as suppressed, r.key_id
from unnest(%(ids)b::uuid[]) with ordinality u(id, n)
cross join lateral (
  select y.rcpt, y.address, y.name, y.variables, y.key_id from pgmail.recipient y
  where y.tenant_id = %(tenant)s and y.id = u.id and y.id >= %(low)s and y.id <= %(high)s limit 1) r
left join lateral (
  select x.reason from pgmail.suppression x
  where x.tenant_id = %(tenant)s and x.address = any (
      case when (select pgmail.has_erased(%(tenant)s)) then pgmail.suppressed_as(%(tenant)s, r.address) else array[r.address] end)
    and x.stream in ('', %(stream)s)
    and (x.expires_at is null or x.expires_at > pgmail.now()) limit 1) s on true;

-- name: suppressed :one
-- Why one address gets no mail of a stream by now; no row where it does.
select x.reason from pgmail.suppression x
where x.tenant_id = %(tenant)s and x.address = any (pgmail.suppressed_as(%(tenant)s, %(address)s)) and x.stream in ('', %(stream)s)
  and (x.expires_at is null or x.expires_at > pgmail.now()) limit 1;

-- name: messages :many
-- The content of messages, by their place in the list, each fetched once a process while it is cached. So many bytes, and what goes over that; null for
-- the others. To ask for the size of a large one does not read it.
select u.n, m.created_at, m.mode, m.recipients, m.template, m.template_version,
  case when coalesce(sum(octet_length(m.content)) over (order by u.n rows between unbounded preceding and 1 preceding), 0) < %(most)s
       then m.content end as content, m.scheduled_at, m.key_id, m.test, m.traceparent
from unnest(%(ids)b::uuid[]) with ordinality u(id, n)
cross join lateral (
  select y.created_at, y.mode, y.recipients, y.template, y.template_version, y.content, y.scheduled_at, y.key_id, y.test, y.traceparent
  from pgmail.message y
  where y.tenant_id = %(tenant)s and y.id = u.id and y.id >= %(low)s and y.id <= %(high)s limit 1) m;

-- name: attachments :many
-- The attachments of one message, with the bodies of named assets filled in.
select a.filename, coalesce(a.content_type, x.content_type) as content_type, a.content_id, a.asset,
  coalesce(a.body, x.body) as body, a.key_id, a.position
from pgmail.attachment a
left join pgmail.asset x on a.asset is not null and x.tenant_id = %(tenant)s and x.name = a.asset
where a.tenant_id = %(tenant)s and a.message_id = %(id)s
order by a.position;

-- name: template :one
-- One version of a template, and the versions of others that were pinned when it was published.
select t.subject, t.body_text, t.body_html, t.depends
from pgmail.template t where t.tenant_id = %(tenant)s and t.name = %(name)s and t.version = %(version)s;

-- name: streams :many
-- How each stream retries, doubts and traces.
select tenant_id, name, relay, on_doubt, trace, retry_base_seconds, retry_factor, retry_cap_seconds, retry_jitter,
  max_attempts, max_age_seconds, relays, relay_weights, seal
from pgmail.stream;

-- name: sealed_elsewhere :many
-- The tenants whose sealed mail others can open, and this worker cannot.
select pgmail.sealed_elsewhere_v1(%(mine)s) as tenant;

-- name: fold_touches :one
-- Fold what send appended into active lanes; what time it is.
select pgmail.fold_touches_v1() as folded, pgmail.now() as now;

-- name: lanes_since :many
-- Lanes that changed since a version.
select tenant_id, id, stream, priority, site, active, version, rewind_to from pgmail.lane where version > %(version)s;

-- name: lanes_active :many
-- All active lanes: at start, and now and then, since versions may commit out of order.
select tenant_id, id, stream, priority, site, active, version, rewind_to from pgmail.lane where active;

-- name: lanes_idle :one
-- Lanes that were empty for a quiet time go idle, unless the queue says otherwise.
select pgmail.idle_lanes_v1(%(tenant)s, %(lanes)s) as idled;

-- name: relays :many
-- Which relays are blocked, for how many seconds more (null: until an operator resumes them), and why.
select name, state, reason, extract(epoch from blocked_until - pgmail.now())::real as seconds from pgmail.relay;

-- name: relay_state :exec
-- Tell the fleet how a relay is.
select pgmail.relay_state_v1(%(name)s, %(state)s, %(reason)s, %(seconds)s);

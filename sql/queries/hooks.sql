-- Webhooks: endpoints of the caller's tenant, and the work of those who call them.

-- name: list :many
-- Endpoints of the caller's tenant, oldest first; one of them by its id. What waits is counted up to 10,000.
select h.id, h.url, h.description, h.types, h.streams, h.tags, h.enabled, h.reason, h.created_at, h.created_by, h.changed_at, h.fails,
       h.failing_since, h.rest_until, h.last_error, w.waiting, w.oldest_at, s.secrets
from pgmail.hook h
cross join lateral (
  select count(*) as waiting, min(q.at) as oldest_at
  from (select x.at from pgmail.hook_queue x where x.tenant_id = h.tenant_id and x.hook_id = h.id order by x.replayed, x.due_at limit 10000) q) w
cross join lateral (
  select coalesce(jsonb_agg(jsonb_build_object('id', x.id, 'created_at', x.created_at, 'ends_at', x.ends_at) order by x.id desc), '[]') as secrets
  from pgmail.hook_secret x
  where x.tenant_id = h.tenant_id and x.hook_id = h.id and (x.ends_at is null or x.ends_at > pgmail.now())) s
where h.tenant_id = (select pgmail.current_tenant()) and h.removed_at is null and (%(id)s::uuid is null or h.id = %(id)s)
order by h.id;

-- name: add :one
-- A new endpoint, with its sealed secret.
select pgmail.add_hook(%(id)s, %(url)s, %(types)s::text[], %(streams)s::text[], %(tags)s::jsonb, %(description)s, %(key)s, %(sealed)s);

-- name: set :one
-- Change an endpoint.
select pgmail.set_hook(%(id)s, %(changes)s::jsonb, %(reason)s);

-- name: remove :one
-- Take an endpoint away.
select pgmail.remove_hook(%(id)s, %(reason)s);

-- name: rotate :one
-- Another secret beside the newest one; when that ends.
select pgmail.rotate_hook(%(id)s, %(key)s, %(sealed)s, make_interval(secs => %(overlap)s), %(reason)s) as ends_at;

-- name: test :one
-- A sample event for an endpoint; the event's id.
select pgmail.test_hook(%(id)s) as event_id;

-- name: replay :one
-- Events of the log once more; how many, and from where to go on.
select r.n, r.next from pgmail.replay_hook(%(id)s, %(filter)s::jsonb, %(after)s, %(most)s, %(reason)s) r;

-- name: count_replay :one
-- How many events a replay would tell, and whether all calls of the log were looked at.
select r.n, r.complete from pgmail.count_replay(%(id)s, %(filter)s::jsonb) r;

-- name: attempts :many
-- The log of one endpoint, newest first.
select a.id, pgmail.uuid_time(a.id) as at, a.event_id, a.email_id, a.recipient_id, a.type, a.event_at, a.attempt, a.outcome, a.status, a.ms, a.error,
       a.answer, a.next_at
from pgmail.hook_attempt a
where a.tenant_id = (select pgmail.current_tenant()) and a.hook_id = %(hook)s
  and (%(after)s::uuid is null or a.id < %(after)s) and (%(event)s::uuid is null or a.event_id = %(event)s)
  and (%(type)s::text is null or a.type = %(type)s) and (%(outcome)s::text is null or a.outcome = %(outcome)s)
  and (%(since)s::timestamptz is null or a.id >= pgmail.uuid_floor(%(since)s))
  and (%(until)s::timestamptz is null or a.id < pgmail.uuid_floor(%(until)s))
order by a.id desc limit %(limit)s;

-- name: fan_out :one
-- From the feed to those who want it.
select f.queued, f.more, f.idle from pgmail.fan_out_hooks_v1(%(most)s) f;

-- name: claim :many
-- Take what is due, with what it takes to tell it.
select c.tenant_id, c.hook_id, c.event_id, c.email_id, c.recipient_id, c.type, c.at, c.attempt, c.claims, c.url, c.secrets, c.data
from pgmail.claim_hooks_v1(%(keks)s::text[], %(most)s, %(each)s, %(seconds)s, %(busy)s::uuid[], %(counts)s::integer[], %(turn)s) c;

-- name: settle :one
-- What came of calls.
select pgmail.settle_hooks_v1(%(results)s::jsonb) as n;

-- name: keep :one
-- A step of tidying; how many rows it was about.
select pgmail.keep_hooks_v1(%(days)s, %(most)s) as n;

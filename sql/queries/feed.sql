-- What happened, for those who listen: see sql/functions/066_feed.sql.

-- name: now :one
-- Which database this is, what it shows now, for how many days events and emails are kept, and whether the feed's indexes are whole.
select f.history, f.now_::text as now, f.kept_days, f.email_days, f.whole, pgmail.now() as at from pgmail.feed_now_v1() f;

-- name: since :one
-- A snapshot of before a moment.
select pgmail.feed_since_v1(%(at)s)::text as seen;

-- name: page :many
-- What one snapshot sees and an earlier one did not, after a position, of some tenants; a last row without a type: up to there.
select f.xid::text::bigint as xid, f.place, f.id, f.type, f.tenant_id, f.at, f.email_id, f.recipient_id, f.address, f.stream,
       f.tags, f.template, f.template_version, f.email_created_at, f.test, f.attempt, f.code, f.enhanced, f.reply, f.class as "class_",
       f.reason, f.phase, f.site, f.relay, f.remote_host, f.tls, f.ms, f.worker, f.detail
from pgmail.feed_v1(%(seen)s::pg_snapshot, %(now)s::pg_snapshot, %(xid)s::text::xid8, %(place)s, %(id)s, %(tenants)s::integer[],
                    %(most)s) f;

-- name: live_keys :many
-- Those of these keys that are still valid.
select k.id from pgmail.live_keys_v1(%(tenants)s::integer[], %(ids)s::uuid[]) k(id);

-- What happened, for those who listen: see sql/functions/066_feed.sql.

-- name: now :one
-- Which database this is, what it shows now, for how many days events and emails are kept, and whether the feed's indexes are whole.
select f.history, f.now_::text as now, f.kept_days, f.email_days, f.whole, pgmail.now() as at from pgmail.feed_now_v1() f;

-- name: since :one
-- A snapshot of before a moment.
select pgmail.feed_since_v1(%(at)s)::text as seen;

-- name: page :many
-- What one snapshot sees and an earlier one did not, after a position, of some tenants; a last row without a type: up to there.
-- Each event as who listens is told it, without what it has no word for: made here it costs a third of what it costs in Python.
select f.xid::text::bigint as xid, uuid_send(f.place) as place, uuid_send(f.id) as id, f.tenant_id, f.type,
  convert_to(concat(
    '{"object":"event","id":"', f.id, '","type":"', f.type,
    '","created_at":', left(to_json(f.at at time zone 'UTC')::text, -1),
    'Z","data":{"email_id":"', f.email_id, '","recipient_id":"', f.recipient_id, '"',
    ',"address":' || to_json(f.address)::text, ',"stream":' || to_json(f.stream)::text,
    ',"tags":' || nullif(f.tags, '{}')::text, ',"attempt":' || f.attempt, ',"code":' || f.code,
    ',"enhanced":' || to_json(f.enhanced)::text, ',"reply":' || to_json(f.reply)::text, ',"class":' || to_json(f.class)::text,
    ',"reason":' || to_json(f.reason)::text, ',"phase":' || to_json(f.phase)::text, ',"site":' || to_json(f.site)::text,
    ',"relay":' || to_json(f.relay)::text, ',"remote_host":' || to_json(f.remote_host)::text, ',"tls":' || to_json(f.tls)::text,
    ',"ms":' || f.ms, ',"worker":' || f.worker, ',"detail":' || to_json(f.detail)::text,
    case when f.test then ',"test":true' end,
    ',"template":{"id":' || to_json(f.template)::text || ',"version":' || coalesce(f.template_version::text, 'null') || '}',
    ',"email_created_at":' || left(to_json(f.email_created_at at time zone 'UTC')::text, -1) || 'Z"', '}}'), 'UTF8') as json
from pgmail.feed_v1(%(seen)s::pg_snapshot, %(now)s::pg_snapshot, %(xid)s::text::xid8, %(place)s, %(id)s, %(tenants)s::integer[],
                    %(most)s, %(types)s::text[], %(emails)s::uuid[]) f
-- A dump of another cluster brings transaction numbers that this one comes to later. What a transaction wrote that began after
-- the snapshot is no older than it; by the id, which says when it was written.
where f.type is null or ((f.at >= %(since)s or %(since)s::timestamptz is null)
  and (f.xid < pg_snapshot_xmax(%(seen)s::pg_snapshot) or coalesce(f.place, f.id) >= %(oldest)s));

-- name: live_keys :many
-- Those of these keys that are still valid.
select k.id from pgmail.live_keys_v1(%(tenants)s::integer[], %(ids)s::uuid[]) k(id);

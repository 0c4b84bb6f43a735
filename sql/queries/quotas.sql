-- Quotas: what may come in, and the exact counting of it over HTTP.

-- name: gate :one
-- What limits a key now. One look a second for each key that sends.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true)
)
select pgmail.quota_gate_v1(%(key_id)s) as gate from caller;

-- name: take :one
-- Places for groups of emails under the rules of a key. Nothing is lost with what a crash forgets of a second, so its
-- commit waits for no disk. Nobody holds these rows for longer than this statement.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
         set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '3s', true)
)
select pgmail.take_quota_v1(%(key_id)s, %(groups)s::integer[], %(streams)s::text[], %(counts)s::integer[]) as taken from caller;

-- name: list :many
-- Rules that the caller sees, the fleet's first, with what is used of each: by HTTP exactly, else as of the last look.
select q.scope, t.name as tenant, q.name, q.per_second, q.per_day, q.max_queued, q.pressure_depth, q.pressure_seconds,
       q.bound_mails, q.bound_bytes, q.note, q.changed_at, q.changed_by,
       case when q.scope = 'key' then case when b.day = x.today then b.used else 0 end
            else case when m.day = x.today then m.owed else 0 end end as used_today,
       case when m.day = x.today then m.mails end as mails_today, case when m.day = x.today then m.bytes end as bytes_today
from pgmail.quota q
cross join (select (pgmail.now() at time zone 'UTC')::date as today) x
left join pgmail.tenant t on t.id = q.tenant_id
left join pgmail.quota_meter m on m.tenant_id = q.tenant_id and m.scope = q.scope and m.name = q.name
left join pgmail.quota_bucket b on b.tenant_id = q.tenant_id and b.scope = q.scope and b.name = q.name
order by array_position(array['fleet', 'tenant', 'stream', 'key'], q.scope), t.name, q.name;

-- name: doors :many
-- Doors that are closed now, as far as the caller sees them, and why.
select t.name as tenant, nullif(d.stream, '') as stream, d.kind, d.priority, d.until, d.reason
from pgmail.door d join pgmail.tenant t on t.id = d.tenant_id
where d.until > pgmail.now() order by t.name, d.stream, d.kind;

-- name: set :one
-- Make a rule or change what is named of one; its name in normal form.
select pgmail.set_quota(%(scope)s, %(name)s, %(settings)s, %(tenant)s) as name;

-- name: remove :one
-- No rule from now on; whether there was one.
select pgmail.remove_quota(%(scope)s, %(name)s, %(tenant)s) as removed;

-- Limits, pauses and weights: what workers learn about once a second and ask for, and what people look at and change.

-- name: limits :many
-- Every limit that holds; a tenant's by its id. Messages a second and connections, null where there is none. How late a
-- message may be, in seconds, before it breaks a rate.
select l.scope, l.name, t.id as tenant, l.messages / l.per_seconds::float8 as rate, l.connections, l.shipped,
  pgmail.limit_margin(l.per_seconds) as margin
from pgmail.limits l
left join pgmail.tenant t on l.scope = 'tenant' and t.name = l.name
order by l.scope, l.name;

-- name: pauses :many
-- Every pause that holds now, as what a lane must equal to be stopped (null is any), and for how many seconds more.
select p.tenant_id as tenant, p.scope, p.name,
  case p.scope when 'stream' then p.name when 'lane' then split_part(p.name, '/', 1) end as stream,
  case when p.scope = 'lane' then array_position(array['high', 'normal', 'low'], split_part(p.name, '/', 2)) end as priority,
  case p.scope when 'site' then p.name when 'lane' then split_part(p.name, '/', 3) end as site,
  extract(epoch from p.until - pgmail.now())::float8 as seconds, p.reason, p.paused_by
from pgmail.pause p
where p.until is null or p.until > pgmail.now()
order by p.tenant_id nulls first, p.scope, p.name;

-- name: weights :many
-- Each tenant's share beside others.
select t.id, t.weight from pgmail.tenant t;

-- name: take_tokens :many
-- Tokens for messages about to be sent, and the database's clock when they were given.
select t.set_number, t.scope, t.name, t.moments, t.wait,
  extract(epoch from pgmail.now() + (clock_timestamp() - statement_timestamp()))::float8 as clock
from pgmail.take_tokens_v2(%(epoch)s, %(sets)s::integer[], %(scopes)s::text[], %(names)s::text[], %(wants)s::integer[], %(lead)s) t;

-- name: clock :one
-- The database's clock, to compare one's own with.
select extract(epoch from pgmail.now() + (clock_timestamp() - statement_timestamp()))::float8 as clock;

-- name: share_permits :many
-- How many connections this worker may hold of each key.
select s.scope, s.name, s.allowed
from pgmail.share_permits_v1(%(epoch)s, %(scopes)s::text[], %(names)s::text[], %(held)s::integer[], %(wanted)s::integer[]) s;

-- name: register_relays :one
-- Make the relays of a worker's settings known; how many were new.
select pgmail.register_relays_v1(%(names)s::text[]) as made;

-- name: list :many
-- The limits that the caller may see, of one scope or of one name where they are given.
select l.scope, l.name, l.messages, l.per_seconds, l.connections, case l.scope when 'relay' then l.ramp_seconds end as ramp_seconds,
  l.note, l.shipped, l.changed_at, l.changed_by
from pgmail.limits l
where (%(scope)s::text is null or l.scope = %(scope)s) and (%(name)s::text is null or l.name = %(name)s)
order by array_position(array['relay', 'tenant', 'site'], l.scope), l.name;

-- name: limit_name :one
-- The name of a limit in its normal form, the site of a domain for one, to find the row by; what it cannot be is refused when it is set.
select case %(scope)s::text when 'site'
  then coalesce((select s.site from pgmail.site_domain s where s.domain = lower(btrim(%(name)s::text))), lower(btrim(%(name)s::text)))
  else %(name)s::text end as name;

-- name: set_limit :one
-- Set a whole limit; its name in normal form.
select pgmail.set_limit(%(scope)s, %(name)s, %(messages)s::integer, %(per_seconds)s::real, %(connections)s::integer,
                        %(ramp_seconds)s::real, %(note)s) as name;

-- name: remove_limit :one
-- Whether there was a limit until now.
select pgmail.remove_limit(%(scope)s, %(name)s) as removed;

-- name: set_tenant :exec
-- Change a tenant's share beside others.
select pgmail.set_tenant(%(name)s, %(weight)s::real);

-- name: paused :many
-- The pauses that hold for the caller's tenant, its own and the fleet's; the one of a scope and name where given.
select p.scope, p.name, p.tenant_id is null as fleet, p.reason, p.until, p.paused_at, p.paused_by
from pgmail.pause p
where (p.tenant_id is null or p.tenant_id = (select pgmail.current_tenant())) and (p.until is null or p.until > pgmail.now())
  and (%(scope)s::text is null or (p.scope = %(scope)s and p.name = %(name)s and p.tenant_id is not null))
order by p.paused_at, p.scope, p.name;

-- name: pause_mail :one
-- Stop mail to a site, of a stream or of a lane; its name in normal form.
select pgmail.pause_mail(%(scope)s, %(name)s, %(reason)s, %(until)s, %(fleet)s) as name;

-- name: resume_mail :one
-- Let mail flow again; the name in normal form.
select pgmail.resume_mail(%(scope)s, %(name)s, %(reason)s, %(fleet)s) as name;

-- name: lanes :many
-- A page of the tenant's active lanes by stream, priority and site, and what stops each now.
select l.name, l.stream, case l.priority when 1 then 'high' when 2 then 'normal' else 'low' end as priority, l.site,
  l.changed_at, s.kind, s.scope, s.name as stopped_name, s.until, s.words
from (
  select pgmail.lane_name(x.stream, x.priority, x.site) as name, x.stream, x.priority, x.site, x.changed_at
  from pgmail.lane x
  where x.tenant_id = (select pgmail.current_tenant()) and x.active
    and (%(stream)s::text is null or x.stream = %(stream)s) and (%(site)s::text is null or x.site = %(site)s)
    and (%(after_stream)s::text is null
         or (x.stream, x.priority, x.site) > (%(after_stream)s, %(after_priority)s::smallint, %(after_site)s::text))
  order by x.stream, x.priority, x.site
  limit %(limit)s
) l
cross join lateral pgmail.stopped_by(l.stream, l.priority, l.site) s
order by l.stream, l.priority, l.site;

-- name: lane_stops :many
-- What stops each of these lanes now, in their order.
select pgmail.lane_name(x.stream, x.priority, x.site) as name, x.stream,
  case x.priority when 1 then 'high' when 2 then 'normal' else 'low' end as priority, x.site, s.kind, s.scope, s.name as stopped_name, s.until, s.words
from unnest(%(streams)s::text[], %(priorities)s::smallint[], %(sites)s::text[]) with ordinality x(stream, priority, site, place)
cross join lateral pgmail.stopped_by(x.stream, x.priority, x.site) s
order by x.place;

-- name: slow_site :one
-- Pause a site that refuses again and again, for a while; until when, null if it is paused already.
select pgmail.slow_site_v1(%(tenant)s, %(site)s, %(reason)s) as until;

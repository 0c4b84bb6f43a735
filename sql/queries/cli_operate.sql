-- What the command line asks beside what other ways in ask already. All but the fleet's and the tenants' acts as the
-- caller's tenant.

-- name: why :one
-- In words, one line a recipient: what it waits for, or how it ended.
select pgmail.why(%(id)s) as answer;

-- name: relays :many
-- Each relay's state, and who changed it last.
select r.name, r.state, r.reason, r.blocked_until, r.changed_at, r.changed_by from pgmail.relay r order by r.name;

-- name: pause_relay :exec
-- Stop mail to a relay, until a moment or until it is resumed.
select pgmail.pause_relay(%(name)s, %(reason)s, %(until)s);

-- name: resume_relay :exec
-- Let mail flow to a relay again.
select pgmail.resume_relay(%(name)s, %(reason)s);

-- name: dead_letter :many
-- The dead letters of an email or of one recipient, in full.
select d.recipient_id, d.message_id, r.address, r.role, m.sender, m.stream, d.site, m.template, m.template_version,
       d.died_at, d.reason, d.error, d.attempts, d.code, d.enhanced, d.reply, m.created_at, m.created_by, d.expires_at
from pgmail.dead_letter d
join pgmail.recipient r on r.tenant_id = d.tenant_id and r.id = d.recipient_id
join pgmail.message m on m.tenant_id = d.tenant_id and m.id = d.message_id
where d.tenant_id = (select pgmail.current_tenant()) and (d.recipient_id = %(id)s or d.message_id = %(id)s)
order by d.recipient_id;

-- name: tenants :many
-- All tenants that this role sees, and the database roles that speak for each.
select t.id, t.name, t.weight, t.senders, t.created_at, s.reason as suspended, s.paused_by as suspended_by, s.paused_at as suspended_at,
       coalesce((select array_agg(r.role_name::text order by r.role_name) from pgmail.database_role r where r.tenant_id = t.id),
                '{}') as roles
from pgmail.tenant t left join pgmail.pause s on s.tenant_id = t.id and s.scope = 'tenant' order by t.id;

-- name: tenants_alone :many
-- The same without the roles, for those who may not see which role speaks for whom.
select t.id, t.name, t.weight, t.senders, t.created_at from pgmail.tenant t order by t.id;

-- name: create_tenant :one
-- A new tenant with the two streams that everybody starts from; its id.
select pgmail.create_tenant(%(name)s) as id;

-- name: grant_tenant :exec
-- A database role speaks for a tenant from now on.
select pgmail.grant_tenant(%(role)s, %(tenant)s);

-- name: role_exists :one
-- Whether the cluster has a role of this name.
select exists (select from pg_roles where rolname = %(role)s) as found;

-- name: suspend_tenant :exec
-- Stop all mail of a tenant until it is resumed.
select pgmail.suspend_tenant(%(name)s, %(reason)s);

-- name: resume_tenant :exec
-- Let a tenant's mail flow again.
select pgmail.resume_tenant(%(name)s, %(reason)s);

-- name: erase_tenant :one
-- One step of a tenant's erasure; to be asked again until it is done.
select pgmail.erase_tenant(%(name)s, %(reason)s, %(discard)s) as answer;

-- name: tenant_role_sql :many
-- What makes a database role for a tenant, a statement each.
select s.statement from pgmail.tenant_role_sql(%(prefix)s, %(role)s, %(tenant)s, %(kind)s, %(content)s) s(statement);

-- name: make_tenant_role :exec
-- Make a database role for a tenant; it needs CREATEROLE.
select pgmail.make_tenant_role(%(prefix)s, %(role)s, %(tenant)s, %(kind)s, %(content)s);

-- name: revoke_tenant :one
-- Whether a database role spoke for a tenant until now.
select pgmail.revoke_tenant(%(role)s, %(reason)s) as revoked;

-- Domains that a tenant sends from, and what DNS said of them.

-- name: list :many
-- All of the caller's tenant by name, after the last one seen; one of them by its name or id.
select d.id, d.domain, d.state, d.token, d.created_at, d.created_by, d.verified_at, d.checked_at, d.answer, d.missing_since,
       d.missing_since + interval '14 days' as counts_until, d.trusted_by, d.trust_reason
from pgmail.sender_domain d
where d.tenant_id = (select pgmail.current_tenant())
  and (%(after)s::text is null or d.domain > %(after)s)
  and (%(id)s::uuid is null or d.id = %(id)s) and (%(domain)s::text is null or d.domain = %(domain)s)
order by d.domain limit %(limit)s;

-- name: add :one
-- Add a domain, or find it; its id.
select pgmail.add_domain(%(domain)s) as id;

-- name: remove :one
-- Take a domain away; its id.
select pgmail.remove_domain(%(domain)s, %(reason)s) as id;

-- name: trust :one
-- Vouch for a domain, of a tenant by name or of the caller's; its id.
select pgmail.trust_domain(%(domain)s, %(reason)s, %(tenant)s) as id;

-- name: checked :one
-- Record what a look into DNS found for a domain of the caller's tenant; its state from now on.
select pgmail.domain_checked(%(id)s, %(outcome)s, %(found)s::text[], %(said)s) as state;

-- name: due :many
-- Verified domains of all tenants whose record is to be looked at again.
select d.tenant_id, d.id, d.domain from pgmail.domains_due_v1(20) d;

-- name: looked :one
-- Record what the leader found for a domain of any tenant.
select pgmail.domain_checked_v1(%(tenant)s, %(id)s, %(outcome)s, %(found)s::text[], %(said)s) as state;

-- name: senders :one
-- Set from which domains a tenant may send: any, or verified.
select pgmail.set_senders(%(tenant)s, %(senders)s, %(reason)s);

-- name: rule :one
-- The caller's tenant and its rule about senders.
select t.name, t.senders from pgmail.tenant t where t.id = (select pgmail.current_tenant());

-- name: missing :many
-- Domains of the caller's tenant that were verified and have lost their record, with what DNS says now.
select d.domain, d.state, d.answer, d.missing_since, d.missing_since + interval '14 days' as counts_until
from pgmail.sender_domain d
where d.tenant_id = (select pgmail.current_tenant()) and d.trusted_by is null
  and (d.missing_since is not null or d.state = 'failed')
order by d.state, d.domain;

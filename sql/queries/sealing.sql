-- Data keys: what a program that seals or opens mail asks.

-- name: state :one
-- Which streams of the caller's tenant are sealed, its data keys (wrapped), and the server's time.
select s.tenant, s.now, s.streams, s.keys from pgmail.seal_state_v1() s;

-- name: first :one
-- Store the tenant's first data key; which one it has by now.
select pgmail.first_data_key_v1(%(wrapped)s, %(kek)s) as id;

-- name: keys :many
-- Data keys of one tenant, by number: for workers, which see all.
select d.id, d.kek, d.wrapped from pgmail.data_key d where d.tenant_id = %(tenant)s and d.id = any (%(ids)s::integer[]);

-- name: list :many
-- All data keys; `current` is the one that seals its tenant's new mail.
select d.tenant_id, t.name as tenant, d.id, d.kek, d.wrapped, d.created_at, d.created_by, d.wrapped_at,
       d.id = max(d.id) over (partition by d.tenant_id) as current
from pgmail.data_key d join pgmail.tenant t on t.id = d.tenant_id
order by d.tenant_id, d.id;

-- name: add :one
-- Give a tenant a new data key; its number.
select pgmail.add_data_key(%(tenant)s, %(wrapped)s, %(kek)s, %(reason)s) as id;

-- name: rewrap :one
-- Wrap a data key anew; false if somebody else did meanwhile.
select pgmail.rewrap_data_key(%(tenant)s, %(id)s, %(was)s, %(wrapped)s, %(kek)s, %(reason)s) as done;

-- name: streams :many
-- Streams that are sealed, of all tenants.
select t.name as tenant, s.name, s.seal from pgmail.stream s join pgmail.tenant t on t.id = s.tenant_id
where s.seal <> 'off' order by 1, 2;

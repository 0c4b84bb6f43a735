-- API keys, and for whom a transaction of the HTTP API acts.

-- name: act_as :exec
-- First in each of the API's transactions: the tenant, the name of the key that was checked and the client's address. Local to it, and
-- believed only from a role that carries tenants. An API process that freezes in one must not keep its locks, which
-- settles would wait for.
select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
       set_config('pgmail.source', %(source)s, true),
       set_config('idle_in_transaction_session_timeout', '10s', true);

-- name: check :one
-- Whose key has this SHA-256; no row for an unknown or revoked one.
select tenant_id, key_id, name from pgmail.check_key_v1(%(hash)s);

-- name: create :one
-- A new key of the caller's tenant; only its hash comes here.
select pgmail.create_key(%(name)s, %(hint)s, %(hash)s) as id;

-- name: revoke :one
-- Whether a key was valid until now.
select pgmail.revoke_key(%(id)s, %(reason)s) as revoked;

-- name: list :many
-- All keys of the caller's tenant, oldest first, the revoked ones too.
select id, name, hint, created_at, created_by, revoked_at from pgmail.list_keys();

-- API keys, and for whom a transaction of the HTTP API acts.

-- name: act_as :exec
-- First in each of the API's transactions: the tenant, the id and the name of the key that was checked and the client's address.
-- Local to it, and believed only from a role that carries tenants. An API process that freezes in one must not keep its locks,
-- which settles would wait for.
select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
       set_config('pgmail.key', %(key_id)s::text, true), set_config('pgmail.source', %(source)s, true),
       set_config('idle_in_transaction_session_timeout', '10s', true);

-- name: check :one
-- Whose key has this SHA-256, and what it may; no row for one that is unknown, was revoked or has expired.
select tenant_id, key_id, name, hash, scopes, test, streams, from_domains, networks, seconds_left
from pgmail.check_key_v2(%(hash)s);

-- name: check_id :one
-- Whose key has this id, and what it may, for a session that was begun with it; no row for one that has ended.
select tenant_id, key_id, name, scopes, test, streams, from_domains, networks, seconds_left
from pgmail.session_key_v1(%(tenant_id)s, %(id)s);

-- name: session_secret :one
-- What signs sessions.
select pgmail.session_secret_v1() as secret;

-- name: form_once :one
-- Whether a form of the dashboard comes for the first time.
select pgmail.form_once_v1(%(form)s) as fresh;

-- name: end_sessions :one
-- A new secret, with which no session of before is signed.
select pgmail.end_sessions(%(reason)s);

-- name: make :one
-- A new key of the caller's tenant; only its hash comes here.
select id, scopes, test, streams, from_domains, networks, expires_at
from pgmail.make_key(%(name)s, %(hint)s, %(hash)s, %(limits)s::jsonb);

-- name: find :one
-- Whether a key that is to be rotated is for tests, which its first letters say.
select test from pgmail.list_keys() where id = %(id)s;

-- name: rotate :one
-- A second key with the same limits; the first one ends after the overlap.
select id, name, scopes, test, streams, from_domains, networks, expires_at, old_expires_at
from pgmail.rotate_key(%(id)s, %(hint)s, %(hash)s, make_interval(secs => %(overlap)s), %(reason)s);

-- name: revoke :one
-- Whether a key was valid until now.
select pgmail.revoke_key(%(id)s, %(reason)s) as revoked;

-- name: list :many
-- All keys of the caller's tenant, oldest first, those that ended too.
select id, name, hint, created_at, created_by, revoked_at, scopes, test, streams, from_domains, networks, expires_at,
       replaced_by, last_used_at, last_used_from
from pgmail.list_keys();

-- name: reach :many
-- The stream of each email or recipient, whether the asking key, or one before it in its rotations, handed it over, and
-- whether it is a test.
select id, stream, own, test from pgmail.reach_v1(%(ids)s::uuid[]);

-- name: note_uses :exec
-- When and from where keys were used last.
select pgmail.note_keys_v1(%(tenants)s::integer[], %(keys)s::uuid[], %(origins)s::inet[], %(ages)s::double precision[]);

-- name: share_guesses :many
-- What this process counted of clients that try keys; what all processes have of each.
with quick as materialized (select set_config('synchronous_commit', 'off', true), set_config('lock_timeout', '1s', true))
select s.client, s.level from quick, pgmail.share_guesses_v1(%(clients)s::text[], %(counts)s::integer[]) s;

-- name: note_guesses :exec
-- A burst of tries with keys that are none.
select pgmail.note_guesses_v1(%(origin)s, %(tries)s::integer);

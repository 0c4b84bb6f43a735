-- A person's data.

-- name: erase :one
-- Erase a person of the caller's tenant, a batch of emails a call.
select pgmail.erase(%(address)s, %(reason)s, %(after)s, %(most)s, %(dry_run)s) as answer;

-- name: erase_for :one
-- The same of a tenant by its name.
select pgmail.erase_for(%(tenant)s, %(address)s, %(reason)s, %(after)s, %(most)s, %(dry_run)s) as answer;

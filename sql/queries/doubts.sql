-- Mail that is held in doubt, as people see and resolve it. Acts as the caller's tenant.

-- name: list :many
-- A page of it, the newest email first.
select d.recipient_id, d.message_id, d.address, d.stream, d.site, d.since, d.attempt, d.relay, d.remote_host, d.worker,
       d.reason, d.error
from pgmail.in_doubt(%(filter)s::jsonb, %(limit)s, %(below)s, %(above)s, %(newer)s) d;

-- name: show :many
-- That of an email or of one recipient, in full.
select d.recipient_id, d.message_id, d.address, r.role, m.sender, d.stream, d.site, d.since, d.attempt, d.relay,
       d.remote_host, d.worker, d.reason, d.error, m.created_at, m.created_by, m.expires_at
from pgmail.in_doubt('{}') d
join pgmail.recipient r on r.tenant_id = (select pgmail.current_tenant()) and r.id = d.recipient_id
join pgmail.message m on m.tenant_id = (select pgmail.current_tenant()) and m.id = d.message_id
where d.recipient_id = %(id)s or d.message_id = %(id)s
order by d.recipient_id;

-- name: resolve :one
-- End the doubt of these recipients or emails; how many recipients there were.
select coalesce(sum(pgmail.resolve(i, %(how)s, %(why)s)), 0)::integer as done from unnest(%(ids)s::uuid[]) i;

-- name: resolve_all :one
-- The same by filter, the oldest first.
select pgmail.resolve_all(%(how)s, %(filter)s::jsonb, %(why)s, %(most)s) as done;

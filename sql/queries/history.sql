-- Which history this database tells, and whether acknowledged work is missing from it (ops/docs/restore.md).

-- name: root :one
-- Which database this is, copies and backups of it included.
select h.root from pgmail.history h order by h.generation desc limit 1;

-- name: recall :one
-- Compare what a process remembered with what is here; null is another database, false a fence.
select pgmail.recall_v1(%(root)s, %(history)s, %(generation)s, %(witness)s, %(marks)s, %(seen_at)s, %(by)s, %(seen)s) as whole;

-- name: mark :one
-- One mark more, after a look at what this process remembers; what to remember once it is committed.
select m.root, m.history, m.generation, m.marks, m.at, m.place, m.fenced
from pgmail.mark_v1(%(root)s, %(history)s, %(generation)s, %(witness)s, %(marks)s, %(seen_at)s,
                    %(host)s, %(pid)s, %(program)s, %(seen)s) m;

-- name: fence :one
-- Whether all sending is stopped because acknowledged work is missing, by whom it was noticed, and what was seen.
select f.noticed_at, f.noticed_by, f.reason, f.lost_from, f.lost_until, f.seen, f.found from pgmail.fence f;

-- name: stop :exec
-- An operator stops all sending, since the database was restored and nobody noticed.
select pgmail.stop_for_restore(%(reason)s);

-- name: doubts :many
-- By tenant, how many recipients that wait may have been sent between the backup and its restore.
select d.tenant_id, d.tenant, d.recipients, d.leased, d.oldest, d.newest from pgmail.restore_doubts(%(since)s) d;

-- name: decide :one
-- Decide on the next recipients in doubt of one tenant.
select d.n, d.last from pgmail.decide_restore(%(tenant)s, %(decision)s, %(since)s, %(after)s) d;

-- name: accept :one
-- Let mail flow again; the number of the history that begins.
select pgmail.accept_restore(%(decision)s, %(reason)s) as generation;

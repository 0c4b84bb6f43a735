-- Who works, who lives, who leads.

-- name: schema :one
-- What the schema says of itself.
select version, compatible_from from pgmail.schema_version;

-- name: start :one
-- A new worker epoch.
select pgmail.worker_start_v2(%(host)s, %(pid)s, %(program)s, %(concurrency)s, %(staging)s) as epoch;

-- name: opens :exec
-- Which keys this worker has for sealed mail, by their names.
select pgmail.worker_opens_v1(%(epoch)s, %(keks)s);

-- name: beat :one
-- One beat; false when this epoch was declared dead.
select pgmail.worker_beat_v1(%(epoch)s, %(state)s, %(asleep)s) as alive;

-- name: stop :exec
-- Goodbye; what could not be given back is rescued.
select pgmail.worker_stop_v1(%(epoch)s);

-- name: workers :many
-- Every worker's beat counter: the rescuer watches them change.
select epoch, beat from pgmail.worker;

-- name: lead :one
-- Take or keep the lead.
select pgmail.lead_v1(%(epoch)s, %(seconds)s) as leading;

-- name: listen :exec
-- Hear of new mail while asleep.
listen pgmail;

-- name: echo :exec
-- The listener's test of itself: a notification to the channel it listens on.
select pg_notify('pgmail', %(payload)s);

-- name: server_process :one
-- Which process of the server answers.
select pg_backend_pid() as pid;

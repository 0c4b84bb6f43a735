-- The fleet as people see it: its processes, its relays, the version of the schema.

-- name: processes :many
-- Every process that beats: since when, how long ago its last beat was, and whether it leads.
select f.epoch, f.program, f.state, f.asleep, f.concurrency, f.started_at, f.beat_seconds, f.leads, f.staging, f.host, f.pid
from pgmail.fleet_v1() f;

-- name: relays :many
-- Each relay's state, since when and why.
select r.name, r.state, r.reason, r.blocked_until, r.changed_at, r.changed_by, r.up_since from pgmail.relay r order by r.name;

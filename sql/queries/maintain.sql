-- What the leader does on a clock. Each is short and safe to run twice.

-- name: rescue :one
-- A worker is dead: its leases go back.
select pgmail.rescue_v1(%(epoch)s) as rescued;

-- name: orphans :many
-- Workers that hold leases and have no row any more.
select epoch from pgmail.orphans_v1() as epoch;

-- name: wake_due :one
-- Lanes whose mail comes due by the clock since a moment; answers the moment to ask from next time.
select pgmail.wake_due_v1(%(since)s) as woken;

-- name: clock :one
-- The database's time, the only clock that due times know.
select pgmail.now() as now;

-- name: repair_lanes :one
-- Lanes that hold due mail without being active.
select pgmail.repair_lanes_v1() as repaired;

-- name: expire :one
-- Mail past its expiry.
select pgmail.expire_v1(1000) as expired;

-- name: fold_tallies :one
-- Fold what statements counted into totals.
select pgmail.fold_tallies_v1(20000) as folded;

-- name: doors :one
-- Open and close the doors of quotas by what came in; how many are closed now.
select pgmail.doors_v1() as closed;

-- name: purge_idempotency :one
-- Idempotency keys past their day.
select pgmail.purge_idempotency_v1(5000) as purged;

-- name: purge_suppressions :one
-- Suppressions that have expired.
select pgmail.purge_suppressions_v1(5000) as purged;

-- name: make_partition :one
-- The first weekly partition that is missing of those well ahead; null when all are there.
select pgmail.make_partition_v2(35) as made;

-- name: partition_state :one
-- Days until new mail goes to the default partition, and rows that went there already.
select days_left, strays from pgmail.partition_state();

-- name: drop_partition :one
-- The oldest partition of a table that is past its time, with how many rows of it still had to be kept; null: none is.
select d.name, d.moved from pgmail.drop_partition_v1(%(base)s) d;

-- name: drop_strays :one
-- Rows in a default partition that are past their time and settled.
select pgmail.drop_strays_v1(%(base)s, 5000) as dropped;

-- name: empty_content :one
-- Emails of streams that keep their content for less than the fleet.
select pgmail.empty_content_v1(500) as looked_at;

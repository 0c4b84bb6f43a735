-- Figures of the whole fleet, for /metrics of the process that leads.

-- name: queue :many
-- By stream, and by tenant where that is wanted: the ledger's totals, depth, oldest due, held.
select q.tenant, q.stream, q.figure, q.value from pgmail.metrics_queue_v1(%(tenants)s) q;

-- name: fleet :many
-- Processes, pauses, partitions, the server.
select f.figure, f.label, f.value from pgmail.metrics_fleet_v1() f;

-- name: tables :many
-- Sizes and dead rows of tables.
select t.name, t.bytes, t.index_bytes, t.live, t.dead, t.wasted_bytes, t.updates, t.hot_updates, t.vacuumed_seconds
from pgmail.metrics_tables_v1() t;

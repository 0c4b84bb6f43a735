-- Eyes and ears: the feed of events, figures by minute, webhooks, alerts, the dashboard's sessions.

-- The tables that change, in the order in which a send comes to them (0004 tells why).
lock table pgmail.message, pgmail.event in access exclusive mode;

------------------------------------------------------------------------------------------------ feed
-- Which transaction brought it in, as events have it: a reader's cursor is a pg_snapshot, and what is new is what the old
-- snapshot could not see. Mail of before has none, and was told long ago.
alter table pgmail.message add column xid xid8;
alter table pgmail.message alter column xid set default pg_current_xact_id();
create index message_feed on pgmail.message (xid, id);
create index event_feed on pgmail.event (xid, id);
-- end of feed

------------------------------------------------------------------------------------------------ insight
-- end of insight

------------------------------------------------------------------------------------------------ hooks
-- end of hooks

------------------------------------------------------------------------------------------------ alerts
-- end of alerts

------------------------------------------------------------------------------------------------ tracing
-- W3C Trace Context, version 00: the caller's trace, which a worker goes on with. Text without a default: no row is written.
alter table pgmail.message add column traceparent text;
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
-- end of dashboard

------------------------------------------------------------------------------------------------ compression
-- Texts are compressed by lz4 where the server has it: by its default, pglz, it was a fifth of what an enqueue costs. What
-- is stored stays as it is, and partitions to come are made like their parent.
do $do$
declare t regclass;
begin
  for t in select p.relid from pg_partition_tree('pgmail.message') p order by p.level, p.relid::regclass::text loop
    execute format('alter table only %s alter column content set compression lz4', t);
  end loop;
exception when feature_not_supported then
  null;   -- a server built without it
end
$do$;
-- end of compression

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 5;

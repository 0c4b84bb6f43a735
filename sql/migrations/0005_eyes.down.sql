-- Takes back what 0005 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ feed
drop index pgmail.event_feed;
drop index pgmail.message_feed;
alter table pgmail.message drop column xid;
-- end of feed

------------------------------------------------------------------------------------------------ insight
-- end of insight

------------------------------------------------------------------------------------------------ hooks
-- end of hooks

------------------------------------------------------------------------------------------------ alerts
-- end of alerts

------------------------------------------------------------------------------------------------ tracing
drop function if exists pgmail.metrics_queue_v1(boolean);
drop function if exists pgmail.metrics_fleet_v1();
drop function if exists pgmail.metrics_tables_v1();
drop function if exists pgmail.traceparent(jsonb);
alter type pgmail.email drop attribute if exists traceparent;
alter table pgmail.message drop column traceparent;
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
-- end of dashboard

------------------------------------------------------------------------------------------------ compression
do $do$
declare t regclass;
begin
  for t in select p.relid from pg_partition_tree('pgmail.message') p order by p.level, p.relid::regclass::text loop
    execute format('alter table only %s alter column content set compression default', t);
  end loop;
end
$do$;
-- end of compression

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

-- Takes back what 0005 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ feed
drop index pgmail.event_feed;
drop index pgmail.message_feed;
alter table pgmail.message drop column xid;
-- end of feed

------------------------------------------------------------------------------------------------ insight
drop function if exists pgmail.rollup_v1(integer, integer, integer);
drop function if exists pgmail.trim_rollups_v1(integer);
drop function if exists pgmail.cause_text(text, text);
drop function if exists pgmail.took_bucket(timestamptz, timestamptz);
drop function if exists pgmail.figure_of(text, text);
drop function if exists pgmail.gauge_lanes_v1();
drop function if exists pgmail.gauge_states_v1();
drop function if exists pgmail.lane_facts(integer, bigint);
drop table pgmail.backlog, pgmail.gauge, pgmail.pulse, pgmail.rollup, pgmail.cause, pgmail.insight_cursor;
alter table pgmail.tally drop column lanes, drop column per_lane;
-- end of insight

------------------------------------------------------------------------------------------------ hooks
-- end of hooks

------------------------------------------------------------------------------------------------ alerts
-- end of alerts

------------------------------------------------------------------------------------------------ tracing
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
drop function if exists pgmail.preview_v1(uuid);
drop function if exists pgmail.end_sessions(text);
drop function if exists pgmail.session_key_v1(integer, uuid);
drop function if exists pgmail.session_secret_v1();
drop table pgmail.session_secret;
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

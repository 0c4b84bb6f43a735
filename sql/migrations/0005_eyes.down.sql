-- Takes back what 0005 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ feed
drop function if exists pgmail.feed_v1(pg_snapshot, pg_snapshot, xid8, uuid, uuid, integer[], integer);
drop function if exists pgmail.feed_stretches(pg_snapshot, pg_snapshot, xid8);
drop function if exists pgmail.feed_since_v1(timestamptz);
drop function if exists pgmail.feed_now_v1();
drop function if exists pgmail.feed_history_v1();
drop function if exists pgmail.feed_index_next(text);
drop function if exists pgmail.live_keys_v1(integer[], uuid[]);
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
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
-- end of dashboard

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

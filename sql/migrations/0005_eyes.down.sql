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
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
-- end of dashboard

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

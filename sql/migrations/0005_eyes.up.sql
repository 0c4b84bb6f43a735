-- Eyes and ears: the feed of events, figures by minute, webhooks, alerts, the dashboard's sessions.

-- The tables that change, in the order in which a send comes to them (0004 tells why).
lock table pgmail.message, pgmail.event in access exclusive mode;

------------------------------------------------------------------------------------------------ feed
-- Which transaction brought it in, as events have it: a reader's cursor is a pg_snapshot, and what is new is what the old
-- snapshot could not see. Mail of before has none, and was told long ago.
alter table pgmail.message add column xid xid8;
alter table pgmail.message alter column xid set default pg_current_xact_id();
-- Over a full table an index takes minutes, for which mail would stand still: so here those of empty partitions only. The
-- others are made without a lock once this transaction has ended (functions/067_feed_index.sql); until then the parents'
-- stay invalid, which is how the feed knows.
create index message_feed on only pgmail.message (xid, id) where xid is not null;
create index event_feed on only pgmail.event (xid, id);
do $do$
declare p record; empty boolean;
begin
  for p in select i.inhparent::regclass::text as base, c.relname from pg_inherits i join pg_class c on c.oid = i.inhrelid
           where i.inhparent in ('pgmail.message'::regclass, 'pgmail.event'::regclass) loop
    execute format('select not exists (select from pgmail.%I)', p.relname) into empty;
    if empty then
      execute format('create index %I on pgmail.%I (xid, id) %s', p.relname || '_feed', p.relname,
        case when p.base = 'pgmail.message' then 'where xid is not null' end);
      execute format('alter index %s_feed attach partition pgmail.%I', p.base, p.relname || '_feed');
    end if;
  end loop;
end
$do$;
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
update pgmail.schema_version set version = 5;

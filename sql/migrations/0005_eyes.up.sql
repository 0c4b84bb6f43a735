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
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
-- What signs the cookies of the dashboard's sessions, in one row, so that all API processes agree.
create table pgmail.session_secret (
  singleton boolean primary key default true check (singleton),
  secret    bytea not null check (octet_length(secret) = 32),
  made_at   timestamptz not null default now()
);
insert into pgmail.session_secret (secret)
values (sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())));
-- end of dashboard

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 5;

-- Eyes and ears: the feed of events, figures by minute, webhooks, alerts, the dashboard's sessions.

-- The tables that change, in the order in which a send comes to them (0004 tells why).
lock table pgmail.tally, pgmail.message, pgmail.event in access exclusive mode;

------------------------------------------------------------------------------------------------ feed
-- Which transaction brought it in, as events have it: a reader's cursor is a pg_snapshot, and what is new is what the old
-- snapshot could not see. Mail of before has none, and was told long ago.
alter table pgmail.message add column xid xid8;
alter table pgmail.message alter column xid set default pg_current_xact_id();
create index message_feed on pgmail.message (xid, id);
create index event_feed on pgmail.event (xid, id);
-- end of feed

------------------------------------------------------------------------------------------------ insight
-- Figures without counting. Two sources: tallies, which the leader folds about once a second, and the feed of events, which
-- a chore reads behind a cursor. ops/docs/reports.md says what each figure is and how late.

-- In which lanes a statement's n mails came to wait or ceased to: what waits in a lane is the sum of these.
alter table pgmail.tally add column lanes bigint[], add column per_lane integer[];

-- How many wait in each lane, as far as tallies are folded.
create table pgmail.backlog (
  tenant_id integer not null,
  lane      bigint not null,
  depth     bigint not null,
  primary key (tenant_id, lane)
) with (fillfactor = 50);

-- What a chore saw of each lane in the queue: its oldest due mail every few seconds; its states more rarely, the deeper the
-- queue the more so.
create table pgmail.gauge (
  tenant_id     integer not null,
  lane          bigint not null,
  stream        text not null,
  priority      smallint not null,
  site          text not null,
  oldest_due_at timestamptz,              -- due and nobody's; null: nothing is
  queued        bigint not null default 0,
  scheduled     bigint not null default 0,
  deferred      bigint not null default 0,
  held          bigint not null default 0,
  sending       bigint not null default 0,
  in_doubt      bigint not null default 0,   -- of the held ones
  primary key (tenant_id, lane)
) with (fillfactor = 50);

-- What came in and went out in slices of five seconds, for as long as a live chart needs it.
create table pgmail.pulse (
  tenant_id integer not null,
  stream    text not null,
  at        timestamptz not null,
  enqueued  bigint not null,
  sent      bigint not null,
  primary key (tenant_id, at, stream)
) with (fillfactor = 50);

-- How many times what happened, by minute, hour and day (of UTC), and by dimension. `took` counts sent mail by the time it
-- took to be accepted: bucket b is from 2^((b-1)/4) ms up to 2^(b/4) ms (pgmail/domain/spread.py).
create table pgmail.rollup (
  tenant_id integer not null,
  dim       text not null check (dim in ('stream', 'site', 'relay', 'tag', 'template', 'reason')),
  grain     text not null check (grain in ('minute', 'hour', 'day')),
  at        timestamptz not null,           -- where it begins
  key       text not null,                  -- of a tag name=value, of a template name@version, of a reason class/reason
  kind      text not null check (kind in ('enqueued', 'sent', 'bounced_hard', 'bounced_soft', 'bounced_block', 'bounced_other',
                                          'deferred', 'delayed', 'suppressed', 'expired', 'cancelled', 'dead', 'in_doubt', 'held', 'took')),
  bucket    smallint not null default 0,
  n         bigint not null,
  primary key (tenant_id, dim, grain, at, key, kind, bucket)
) with (fillfactor = 70);

-- Answers that were not a 250, by hour: their texts without what differs from mail to mail, and without persons.
create table pgmail.cause (
  tenant_id integer not null,
  at        timestamptz not null,           -- the hour
  kind      text not null check (kind in ('bounced', 'deferred', 'dead', 'in_doubt')),
  class     text not null,                  -- hard soft block other
  reason    text not null,
  code      smallint not null,              -- 0: none
  enhanced  text not null,                  -- '': none
  text      text not null,
  n         bigint not null,
  last_at   timestamptz not null,
  examples  uuid[] not null,                -- emails, the newest first
  primary key (tenant_id, at, kind, class, reason, code, enhanced, text)
) with (fillfactor = 70);

-- How far the feed was read: all that `seen` sees is in the roll-ups, and of what `upto` sees beyond it, that up to
-- (at_xid, at_id). It moves in the transaction that writes the roll-ups, so nothing is counted twice or left out.
create table pgmail.insight_cursor (
  singleton  boolean primary key default true check (singleton),
  seen       pg_snapshot not null,
  upto       pg_snapshot,
  upto_at    timestamptz,                   -- when that was taken
  at_xid     xid8,
  at_id      uuid,
  since      uuid not null default '00000000-0000-0000-0000-000000000000',  -- events below are of another cluster's counting
  rolled_at  timestamptz,                   -- all of before is in the roll-ups
  counted_at timestamptz                    -- when states were counted last
) with (fillfactor = 50);
insert into pgmail.insight_cursor (seen) values (pg_current_snapshot());

alter table pgmail.backlog        enable row level security;
alter table pgmail.gauge          enable row level security;
alter table pgmail.pulse          enable row level security;
alter table pgmail.rollup         enable row level security;
alter table pgmail.cause          enable row level security;
alter table pgmail.insight_cursor enable row level security;
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

-- Eyes and ears: the feed of events, figures by minute, webhooks, alerts, the dashboard's sessions.

-- The tables that change, in the order in which a send comes to them (0004 tells why).
lock table pgmail.tally, pgmail.message, pgmail.event in access exclusive mode;

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
      execute format('create index %I on pgmail.%I (xid, id) %s', p.relname || '_xid_id_idx', p.relname,
        case when p.base = 'pgmail.message' then 'where xid is not null' end);
      execute format('alter index %s_feed attach partition pgmail.%I', p.base, p.relname || '_xid_id_idx');
    end if;
  end loop;
end
$do$;
-- Which rows a dump brought from another cluster: their transaction numbers come up here once more. `written` is the row's own
-- xmin, unless a dump brought the row too. Events from from_xid on with ids below `below` are such rows.
create table pgmail.feed_home (
  singleton boolean primary key default true check (singleton),
  written   xid,
  from_xid  xid8,
  below     uuid
);
insert into pgmail.feed_home default values;
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

-- How many times what happened, by minute, quarter, hour and day (of UTC), and by dimension. `took` counts sent mail by the time it
-- took to be accepted: bucket b is from 2^((b-1)/4) ms up to 2^(b/4) ms (pgmail/domain/spread.py).
create table pgmail.rollup (
  tenant_id integer not null,
  dim       text not null check (dim in ('stream', 'site', 'relay', 'tag', 'template', 'reason')),
  grain     text not null check (grain in ('minute', 'quarter', 'hour', 'day')),   -- quarters of an hour: streams alone
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
  gauged_at  timestamptz,                   -- when the oldest due mail of each lane was looked for last, to half a minute
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
-- Webhooks: who wants which events where, what is still to be told, and what was answered.
create table pgmail.hook (
  tenant_id     integer not null,
  id            uuid not null,
  url           text not null,
  description   text,
  types         text[] not null,              -- names of events; one may end in *
  streams       text[],                       -- null: all
  tags          jsonb,                        -- all of these; null: whatever it has
  enabled       boolean not null default true,
  reason        text,                         -- why it is not
  created_at    timestamptz not null default pgmail.now(),
  created_by    text not null,
  changed_at    timestamptz not null default pgmail.now(),
  -- How it does. Nothing is written while all goes well.
  fails         integer not null default 0,   -- calls that failed one after the other
  failing_since timestamptz,                  -- the first of them
  rest_until    timestamptz,                  -- not called before
  last_error    text,
  removed_at    timestamptz,                  -- its queue and its log go, and then it
  primary key (tenant_id, id)
) with (fillfactor = 50);

-- What signs, sealed by the tenant's data key. Two while one takes over from the other.
create table pgmail.hook_secret (
  tenant_id  integer not null,
  hook_id    uuid not null,
  id         integer not null,
  key_id     integer not null,
  sealed     bytea not null,
  created_at timestamptz not null default pgmail.now(),
  created_by text not null,
  ends_at    timestamptz,
  primary key (tenant_id, hook_id, id)
);

-- A row for each event and endpoint that is still to be told; it leaves when it was, or when nobody will try any more.
-- A claim changes what no index names, as in the queue of mail.
create table pgmail.hook_queue (
  tenant_id    integer not null,
  hook_id      uuid not null,
  event_id     uuid not null,                 -- of what tells that it was queued: the recipient's
  email_id     uuid,                          -- null of a test
  recipient_id uuid,
  type         text not null,
  at           timestamptz not null,          -- of the event
  queued_at    timestamptz not null default pgmail.now(),
  due_at       timestamptz not null default pgmail.now(),
  attempts     smallint not null default 0,
  leased_until timestamptz,
  claims       integer not null default 0,
  replayed     boolean not null default false,  -- goes after what is new, but for one call in four
  primary key (tenant_id, hook_id, event_id)
) with (fillfactor = 60, autovacuum_vacuum_scale_factor = 0, autovacuum_vacuum_threshold = 5000, autovacuum_vacuum_cost_delay = 0);
create index hook_queue_due on pgmail.hook_queue (tenant_id, hook_id, replayed, due_at);

-- The log: a row for each call, and for what was given up without one.
create table pgmail.hook_attempt (
  tenant_id    integer not null,
  hook_id      uuid not null,
  id           uuid not null default pgmail.uuid7(),
  event_id     uuid not null,
  email_id     uuid,
  recipient_id uuid,
  type         text not null,
  event_at     timestamptz not null,
  attempt      smallint not null,
  outcome      text not null check (outcome in ('delivered', 'retrying', 'failed', 'dropped')),
  status       smallint,                      -- of HTTP; null where no answer came
  ms           integer,
  error        text,
  answer       text,                          -- the beginning of what it said, of a refusal
  next_at      timestamptz,
  primary key (tenant_id, hook_id, id)
);
create index hook_attempt_event on pgmail.hook_attempt (tenant_id, hook_id, event_id);

-- Up to where the feed was read for webhooks; without a snapshot nothing is, since nobody wants any.
create table pgmail.hook_cursor (
  singleton boolean primary key default true check (singleton),
  written   xid,                              -- the transaction that wrote this row: of a row that a dump brought, another one did
  seen      pg_snapshot,                      -- all of this was queued,
  seen_at   timestamptz,                      -- and was seen at this moment or later
  until     pg_snapshot,                      -- and of this what stands before the position
  xid       xid8,
  place     uuid,
  event_id  uuid
);
insert into pgmail.hook_cursor default values;

alter table pgmail.hook         enable row level security;
alter table pgmail.hook_secret  enable row level security;
alter table pgmail.hook_queue   enable row level security;
alter table pgmail.hook_attempt enable row level security;
alter table pgmail.hook_cursor  enable row level security;
-- end of hooks

------------------------------------------------------------------------------------------------ alerts
-- What pgmail tells of by itself. A rule of the fleet has no tenant and is looked at for all of them; a tenant's own rule of
-- the same name takes its place for that tenant. What the columns mean of each kind: functions/068_alert_rules.sql.
create table pgmail.alert_rule (
  id               bigint generated always as identity primary key,
  tenant_id        integer,
  name             text not null check (name ~ '^[a-z][a-z0-9_]{0,62}$'),
  kind             text not null,
  about            text,                    -- of this stream, site or other subject alone; null: of each
  enabled          boolean not null default true,
  threshold        double precision not null check (threshold >= 0 and threshold < 'Infinity'),
  floor            double precision check (floor >= 0 and floor < 'Infinity'),
  minimum          bigint check (minimum >= 0),
  window_seconds   integer check (window_seconds between 60 and 86400),
  for_seconds      integer not null default 0 check (for_seconds between 0 and 604800),   -- holds for so long before it is told
  calm_seconds     integer not null default 60 check (calm_seconds between 0 and 86400),  -- is over for so long before that is
  renotify_seconds integer check (renotify_seconds between 60 and 2592000),               -- null: told once
  severity         text not null default 'warning' check (severity in ('info', 'warning', 'critical')),
  note             text,
  changed_at       timestamptz not null default pgmail.now(),
  changed_by       text not null default session_user,
  shipped          boolean not null default false,   -- a default of ours that no operator has changed
  unique nulls not distinct (tenant_id, name)
);

-- One row each time that something was wrong. One that is open stands for its rule and subject alone.
create table pgmail.alert (
  tenant_id   integer,                      -- null: the fleet's
  id          uuid primary key default pgmail.uuid7(),
  rule_id     bigint not null,
  rule        text not null,
  kind        text not null,
  subject     text not null,                -- a stream, a site, a relay, a worker; '' where there is but one
  severity    text not null,
  state       text not null check (state in ('pending', 'firing', 'resolved')),
  since       timestamptz not null,
  fired_at    timestamptz,
  resolved_at timestamptz,
  calm_since  timestamptz,                  -- no longer true since then, and not yet believed
  told_at     timestamptz,                  -- null: nobody was told; of one that is silenced, or pending
  value       double precision not null,
  threshold   double precision not null,
  words       text not null,                -- in a sentence
  over        text,                         -- the same in the past; null: it is open
  path        text not null                 -- of the page that shows it
) with (fillfactor = 70);
create unique index alert_open on pgmail.alert (rule_id, tenant_id, subject) nulls not distinct where state <> 'resolved';
create index alert_by_tenant on pgmail.alert (tenant_id, id);
create index alert_over on pgmail.alert (resolved_at) where state = 'resolved';

create table pgmail.alert_silence (
  tenant_id   integer,                      -- null: an operator's, of all tenants
  rule        text not null,
  subject     text not null default '*',    -- '*' is every one
  reason      text not null check (reason <> ''),
  until       timestamptz,                  -- null: until somebody ends it
  silenced_at timestamptz not null default pgmail.now(),
  silenced_by text not null default session_user,
  unique nulls not distinct (tenant_id, rule, subject)
);

-- Who is told. A tenant's hear of its own alerts, the fleet's of all.
create table pgmail.alert_target (
  tenant_id     integer,
  id            uuid primary key default pgmail.uuid7(),
  name          text not null check (name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'),
  kind          text not null check (kind in ('webhook', 'slack', 'email')),
  shown         text not null,              -- where it goes, without what is secret of it
  secret        bytea not null,             -- UTF-8 JSON: {"url", "secret"} or {"to"}; sealed where kek is set
  kek           text,
  severity      text not null default 'warning' check (severity in ('info', 'warning', 'critical')),
  created_at    timestamptz not null default pgmail.now(),
  created_by    text not null default session_user,
  told_at       timestamptz,                -- took something last
  failing_since timestamptz,
  answer        text,                       -- what went wrong last
  unique nulls not distinct (tenant_id, name)
);

create table pgmail.alert_delivery (
  tenant_id integer,
  id        uuid primary key default pgmail.uuid7(),
  target_id uuid not null,
  alert_id  uuid,                           -- null: a test
  event     text not null check (event in ('firing', 'reminder', 'resolved', 'test')),
  state     text not null default 'waiting' check (state in ('waiting', 'sent', 'failed')),
  attempts  smallint not null default 0,
  due_at    timestamptz not null default pgmail.now(),   -- of one that is under way: when it counts as lost
  made_at   timestamptz not null default pgmail.now(),
  done_at   timestamptz,
  answer    text
) with (fillfactor = 70);
create index alert_delivery_waiting on pgmail.alert_delivery (target_id, id) where state = 'waiting';
create index alert_delivery_alert on pgmail.alert_delivery (alert_id);
create index alert_delivery_done on pgmail.alert_delivery (done_at) where state <> 'waiting';

-- The ledger's totals as they were at a moment, written where they moved: what rates are made of, and a baseline.
create table pgmail.alert_meter (
  tenant_id integer not null,
  stream    text not null,
  at        timestamptz not null,
  enqueued  bigint not null,
  sent      bigint not null,
  bounced   bigint not null,
  dead      bigint not null,
  settled   bigint not null,                -- whatever the state
  primary key (tenant_id, stream, at)
);

-- The next transaction id of each minute, for an hour: how long ago an old snapshot was taken, also where the server does not say.
create table pgmail.alert_horizon (
  at  timestamptz primary key,
  xid bigint not null
);

-- Workers that fell silent and were declared dead, and those that said goodbye (stopped); for a day, the last one for longer.
create table pgmail.lost_worker (
  epoch   bigint primary key,
  host    text not null,
  pid     integer not null,
  program text not null,
  beat_at timestamptz not null,
  lost_at timestamptz not null default pgmail.now(),
  stopped boolean not null default false
);

-- Certificates as they were seen last: the API's own, and those of relays.
create table pgmail.certificate (
  name         text primary key,            -- api, or relay NAME
  place        text not null,               -- a file, or host:port
  ends_at      timestamptz,                 -- null: it was never seen
  seen_at      timestamptz not null default pgmail.now(),   -- looked at last, seen or not
  unseen_since timestamptz,                 -- cannot be seen since then, for this reason
  answer       text
);

alter table pgmail.alert_rule     enable row level security;
alter table pgmail.alert          enable row level security;
alter table pgmail.alert_silence  enable row level security;
alter table pgmail.alert_target   enable row level security;
alter table pgmail.alert_delivery enable row level security;
alter table pgmail.alert_meter    enable row level security;
alter table pgmail.alert_horizon  enable row level security;
alter table pgmail.lost_worker    enable row level security;
alter table pgmail.certificate    enable row level security;

-- What a look finds to be true: made of functions/068_alert_facts.sql and 068_alert_facts_database.sql.
create type pgmail.alert_fact as (
  rule_id bigint, tenant_id integer, subject text, value double precision, words text
);

-- Shipped rules. An upgrade neither restores nor changes what an operator touched.
insert into pgmail.alert_rule (name, kind, threshold, floor, minimum, window_seconds, for_seconds, calm_seconds, severity, note, changed_by, shipped)
values
  ('no_worker',           'no_worker',           30,     null, null, null,    30,   10, 'critical', 'seconds without a living worker while mail is due', 'pgmail', true),
  ('sending_stalled',     'sending_stalled',     300,    null, null, null,    60,   30, 'critical', 'seconds in which mail is due, nothing stops it, and none is sent', 'pgmail', true),
  ('restored_database',   'restored_database',   0,      null, null, null,     0,    0, 'critical', 'all sending is stopped for a restore', 'pgmail', true),
  ('relay_away',          'relay_away',          0,      null, null, null,   300,   60, 'critical', 'a relay does not answer', 'pgmail', true),
  ('worker_lost',         'worker_lost',         0,      null, null,  900,     0,    0, 'warning',  'a worker fell silent and was declared dead; told for this window', 'pgmail', true),
  ('oldest_due',          'oldest_due',          900,    null, null, null,    60,   60, 'warning',  'seconds that mail of a stream is due, what an operator paused aside', 'pgmail', true),
  ('queue_depth',         'queue_depth',         100000, null, null, null,   600,   60, 'warning',  'recipients of a stream that wait', 'pgmail', true),
  ('error_rate',          'error_rate',          3,      0.05,   50,  900,   120,  300, 'warning',  'times its share of the 24 hours before, from a share of floor on and so many results', 'pgmail', true),
  ('bounce_rate',         'bounce_rate',         0.05,   null,  100, 3600,     0,  300, 'warning',  'share of a stream''s results that bounced, from so many results on', 'pgmail', true),
  ('site_bounce_rate',    'site_bounce_rate',    0.1,    null,  100, 3600,     0,  300, 'warning',  'share of the results at a receiving site that bounced, from so many results on', 'pgmail', true),
  ('webhook_failing',     'webhook_failing',     3600,   null, null, null,     0,    0, 'warning',  'seconds that a webhook fails', 'pgmail', true),
  ('dead_letters',        'dead_letters',        10,     null, null,  900,     0,   60, 'warning',  'dead letters that a stream made in a window', 'pgmail', true),
  ('in_doubt',            'in_doubt',            1,      null, null, null,   300,    0, 'warning',  'recipients that are held since they may have been sent', 'pgmail', true),
  ('sender_domain',       'sender_domain',       0,      null, null, null,     0,    0, 'warning',  'a sender domain whose record is gone', 'pgmail', true),
  ('pause_forgotten',     'pause_forgotten',     259200, null, null, null,     0,    0, 'info',     'seconds that something is paused without an end', 'pgmail', true),
  ('old_transaction',     'old_transaction',     1800,   null, null, null,     0,   10, 'warning',  'seconds that a snapshot keeps dead rows from being removed', 'pgmail', true),
  ('table_bloat',         'table_bloat',         1000000, null, null, null,  600,   60, 'warning',  'dead rows of a hot table, where they outnumber the living', 'pgmail', true),
  ('replication',         'replication',         300,    10737418240, null, null, 60, 60, 'warning', 'seconds that a standby lags, or bytes (floor) that a slot keeps', 'pgmail', true),
  ('notify_queue',        'notify_queue',        0.25,   null, null, null,    60,   60, 'warning',  'share of the NOTIFY queue that is in use', 'pgmail', true),
  ('partitions_low',      'partitions_low',      14,     null, null, null,     0,    0, 'critical', 'days of partitions left, or mail in those of last resort', 'pgmail', true),
  ('wraparound',          'wraparound',          1000000000, null, null, null, 0,    0, 'critical', 'age of the oldest transaction id of the database', 'pgmail', true),
  ('connections',         'connections',         0.9,    null, null, null,    60,   60, 'warning',  'share of max_connections in use', 'pgmail', true),
  ('figures_late',        'figures_late',        300,    null, null, null,   120,   30, 'warning',  'seconds that figures or webhooks know nothing of what happens', 'pgmail', true),
  ('certificate',         'certificate',         21,     null, null, null,     0,    0, 'warning',  'days until a certificate ends', 'pgmail', true);
-- It is pgmail.tenant_or_fleet now, for alerts as for pauses.
drop function if exists pgmail.pause_tenant(boolean);
-- end of alerts

------------------------------------------------------------------------------------------------ tracing
-- W3C Trace Context, version 00: the caller's trace, which a worker goes on with. Text without a default: no row is written.
alter table pgmail.message add column traceparent text;
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

------------------------------------------------------------------------------------------------ door
-- Whose totals changed since the doors were looked at: one row a tenant and fold, gone with the next look.
create table pgmail.tally_moved (
  tenant_id integer not null
);
alter table pgmail.tally_moved enable row level security;
alter table pgmail.quota_meter add column depth bigint not null default 0;   -- enqueued and not settled, as far as folded
insert into pgmail.tally_moved select distinct tenant_id from pgmail.tally_total;
-- Which key-encryption keys a running worker has, by name; '' of each that told. Read by functions only.
create table pgmail.worker_key (
  epoch bigint not null,
  kek   text not null,
  primary key (epoch, kek)
);
alter table pgmail.worker_key enable row level security;
-- Who tries keys that are none, as all API processes together see it; a row lives for minutes. Read by functions only.
create table pgmail.guess (
  client text primary key,               -- an address, or the network that counts as one client
  level  real not null,                  -- failed tries that are not forgiven yet, at the moment `at`
  at     timestamptz not null default pgmail.now()
) with (fillfactor = 50);
alter table pgmail.guess enable row level security;
-- By named arguments it takes `test` as well now; two of them would be one too many for a call that leaves it out.
drop function if exists pgmail.send(text, text, text, text, text, text, jsonb, text, text, timestamptz, timestamptz, text, text, text[], text[], text, jsonb, jsonb, jsonb, jsonb);
-- end of door

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 5;

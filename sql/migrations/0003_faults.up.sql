-- Faults: what may have been sent, what replies mean, who gets no mail, what a restored database does, what is kept.

-- All tables of the mail's path that change, first and in the order in which a send comes to them: one that holds the
-- stream and waits for the queue would otherwise wait for us while we wait for it. Those of the migrations that follow in the
-- same transaction are among them.
lock table pgmail.database_role, pgmail.stream, pgmail.site_domain, pgmail.suppression, pgmail.worker, pgmail.queue, pgmail.tally,
  pgmail.message in access exclusive mode;

------------------------------------------------------------------------------------------------ in doubt
-- A lease on a stream that holds says here that its worker commits the intent before the end of data: while it equals
-- claims, the mail was surely not sent. Null, as a worker of an older version leaves it, is that it may have been.
-- No index may name these two, for the claim and the intent are HOT updates.
alter table pgmail.queue
  add column unsent_claims integer,
  add column begun_relay text,               -- to whom the intent was
  add column in_doubt boolean not null default false;   -- held since it may have been sent; a person resolves it
create index queue_doubt on pgmail.queue (tenant_id, id) where in_doubt;
-- What is held does not expire, and is not looked at every second.
drop index pgmail.queue_expiry;
create index queue_expiry on pgmail.queue (expires_at) where expires_at is not null and due_at <> 'infinity';
update pgmail.queue set in_doubt = true where due_at = 'infinity' and hold_reason like 'in doubt%';

------------------------------------------------------------------------------------------------ replies
-- What replies mean, as data: written anew by every `pgmail db upgrade` from sql/rules/replies.toml. Changes by hand do
-- not last, and workers go by the file.
create table pgmail.reply_reason (
  name     text primary key,
  class    text not null check (class in ('hard', 'soft', 'block', 'other')),
  blame    text not null check (blame in ('recipient', 'message', 'sender_reputation', 'sender_configuration', 'remote', 'ours')),
  follows  text not null check (follows in ('code', 'retry', 'bounce')),
  suppress boolean not null,
  slow     boolean not null,
  alert    boolean not null,
  means    text not null
);

create table pgmail.reply_rule (
  position  integer primary key,   -- the first that fits decides
  name      text not null unique,
  reason    text not null,
  final     boolean,               -- null in this and the next three: not asked
  code      text,
  enhanced  text,
  phase     text[],
  asks_text boolean not null       -- one of its patterns must be found
);

create table pgmail.reply_pattern (
  rule    integer not null,
  unless  boolean not null,        -- must not be found
  pattern text not null,
  needles text[] not null          -- one of these words is in every text in which it is found
);

-- How often pgmail paused a site by itself, for the next time to be longer.
create table pgmail.slowed_site (
  tenant_id integer not null,
  site      text not null,
  times     smallint not null,
  until     timestamptz not null,
  primary key (tenant_id, site)
);

-- Recipients whose bounce says that the address is gone for good, until a worker has put it on the suppression list: settle
-- notes them here, since it must not wait for whoever is changing that list. By recipient, so that no address is kept twice.
create table pgmail.bounced (
  tenant_id    integer not null,
  id           bigint generated always as identity,
  recipient_id uuid not null,
  source       text,
  tries        integer not null default 0,
  primary key (tenant_id, id)
);

alter table pgmail.bounced       enable row level security;
alter table pgmail.reply_reason  enable row level security;
alter table pgmail.reply_rule    enable row level security;
alter table pgmail.reply_pattern enable row level security;
alter table pgmail.slowed_site   enable row level security;

-- Whether a bounce that says that the address is gone for good stops later mail to it.
alter table pgmail.stream add column suppress_bounced boolean not null default true;

------------------------------------------------------------------------------------------------ suppression
alter table pgmail.suppression drop constraint suppression_reason_check;
alter table pgmail.suppression add constraint suppression_reason_check
  check (reason in ('bounced', 'complained', 'unsubscribed', 'manual', 'invalid'));
create index suppression_expiry on pgmail.suppression (expires_at) where expires_at is not null;

------------------------------------------------------------------------------------------------ restore
-- Which history of the mail this database tells (ops/docs/restore.md). Each restore that an operator accepted begins a
-- new generation. root is the first one's id: copies and backups of a database have it in common.
create table pgmail.history (
  generation  integer primary key check (generation > 0),
  id          uuid not null default gen_random_uuid(),
  root        uuid not null,
  began_at    timestamptz not null default pgmail.now(),
  accepted_by text,                      -- null: the first one, which no restore began
  decision    text check (decision in ('hold', 'resend', 'assume_sent')),
  reason      text
);
insert into pgmail.history (generation, id, root) select 1, x, x from (select gen_random_uuid() as x offset 0) r;

-- What each process has seen committed, counted: it keeps the same number outside the database. One row a process and
-- host, written by nobody else, so that no other process can make up for marks that were lost.
create table pgmail.witness (
  id      uuid primary key,
  marks   bigint not null,
  at      timestamptz not null default clock_timestamp(),
  host    text not null,
  pid     integer not null,
  program text not null
) with (fillfactor = 50);

-- A row: acknowledged work is missing here, and nothing may be sent until an operator has decided what is in doubt.
create table pgmail.fence (
  singleton  boolean primary key default true check (singleton),
  noticed_at timestamptz not null default pgmail.now(),
  noticed_by text not null,
  reason     text not null,
  generation integer not null default 0,   -- the newest that anybody has seen
  lost_from  timestamptz,                  -- the database remembers work up to here
  lost_until timestamptz,                  -- work of this moment was acknowledged and is missing
  seen       jsonb,                        -- system identifier, timeline and LSN when it was acknowledged, and now
  found      jsonb
);
alter table pgmail.history enable row level security;
alter table pgmail.witness enable row level security;
alter table pgmail.fence   enable row level security;

------------------------------------------------------------------------------------------------ retention
-- How long what is settled is kept, by the fleet; partitions older than that are dropped. Null: for ever.
create table pgmail.retention (
  singleton    boolean primary key default true check (singleton),
  content_days integer default 30 check (content_days between 1 and 36500),   -- message, attachment, tag
  record_days  integer default 90 check (record_days between 1 and 36500),    -- recipient, outcome, event
  changed_at   timestamptz not null default pgmail.now(),
  changed_by   text not null default session_user,
  check (record_days is null or (content_days is not null and content_days <= record_days))
);
insert into pgmail.retention default values;

-- A stream may keep less than the fleet: the texts, files and variables of its settled mail are emptied row by row.
alter table pgmail.stream add column keep_content_days integer check (keep_content_days between 1 and 36500);

-- How far that came, by the ids of messages, and those that were passed over since their mail still waited.
create table pgmail.content_mark (
  tenant_id integer not null,
  stream    text not null,
  done_to   uuid not null,
  primary key (tenant_id, stream)
);
create table pgmail.content_left (
  tenant_id  integer not null,
  message_id uuid not null,
  stream     text not null,
  primary key (tenant_id, message_id)
);

-- What erased addresses are hashed with, so that an opt-out survives without the address. Made at a tenant's first
-- erasure; nobody but the owner reads it. It may be here from before a step back, which keeps it.
create table if not exists pgmail.erasure_salt (
  tenant_id integer primary key,
  salt      bytea not null
);

alter table pgmail.retention    enable row level security;
alter table pgmail.content_mark enable row level security;
alter table pgmail.content_left enable row level security;
alter table pgmail.erasure_salt enable row level security;

------------------------------------------------------------------------------------------------ limits
-- What no schedule can be made of: NaN, which is greater than all numbers and so passed the checks, and Infinity. A delay
-- is a year at most, as in the API; what is beyond is brought back to it.
update pgmail.stream set
  retry_base_seconds = case when retry_base_seconds = 'NaN' then 30 else least(retry_base_seconds, 31536000) end,
  retry_factor       = case when retry_factor = 'NaN' then 3 else least(retry_factor, 1000) end,
  retry_cap_seconds  = case when retry_cap_seconds = 'NaN' then 14400 else least(retry_cap_seconds, 31536000) end,
  relay_weights      = (select array_agg(case when w = 'NaN' then 1 else least(w, 1000) end order by n)
                        from unnest(relay_weights) with ordinality x(w, n))
where not (retry_base_seconds <= 31536000 and retry_factor <= 1000 and retry_cap_seconds <= 31536000 and 1000 >= all (coalesce(relay_weights, '{}')));
-- Attempts are counted in a smallint; whoever is refused a thousand times is refused.
update pgmail.stream set max_attempts = 1000 where max_attempts > 1000;
alter table pgmail.stream
  add constraint stream_max_attempts_most check (max_attempts <= 1000),
  add constraint stream_retry_base_seconds_most check (retry_base_seconds <= 31536000),
  add constraint stream_retry_factor_most check (retry_factor <= 1000),
  add constraint stream_retry_cap_seconds_most check (retry_cap_seconds <= 31536000),
  add constraint stream_relay_weights_most check (1000 >= all (relay_weights));

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;

-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

-- All tables that change, those of the mail's path first and in the order in which a send comes to them: one that has looked
-- up its tenant and waits for the stream would otherwise wait for us while we wait for it.
lock table pgmail.database_role, pgmail.stream, pgmail.tenant, pgmail.site_domain, pgmail.worker, pgmail.tally, pgmail.message,
  pgmail.tally_total, pgmail.pause, pgmail.leader, pgmail.audit, pgmail.api_key in access exclusive mode;

------------------------------------------------------------------------------------------------ keys
-- What a key may do, and within which limits; null is no limit. Keys of before have what every route asked for until now:
-- all but the routes of keys, which are new.
alter table pgmail.api_key
  add column scopes       text[] not null default '{send,read,manage}'
    constraint api_key_scopes check (cardinality(scopes) > 0 and scopes <@ '{send,read,manage,admin}'),
  add column test         boolean not null default false,   -- what it sends goes to the sandbox only
  add column streams      text[],
  add column from_domains text[],                           -- example.com, or *.example.com for what lies below
  add column networks     cidr[],
  add column expires_at   timestamptz,
  add column family       uuid,                             -- the first key of its line of rotations; null: itself
  add column replaced_by  uuid,                             -- the key that a rotation made of it
  add column last_used_at timestamptz,                      -- to the minute
  add column last_used_from inet;

-- Which key handed an email over, so that one that may only send can cancel its own; null by other ways in.
alter table pgmail.message add column api_key uuid;

-- It tells more of each key now.
drop function if exists pgmail.list_keys();
-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit
-- Row-level security is forced by functions/012_secure.sql, on all tables, those of later sections and versions too.

-- A tenant that is suspended: a pause of all that it has, under its name.
alter table pgmail.pause drop constraint pause_scope_check;
alter table pgmail.pause add constraint pause_scope_check check (scope in ('site', 'stream', 'lane', 'tenant') and (scope <> 'tenant' or tenant_id is not null));

-- A role that was revoked keeps its row, without a tenant.
alter table pgmail.database_role drop constraint database_role_check;
alter table pgmail.database_role add constraint database_role_check check (tenant_id is null or not carries_tenant);

-- From where: the client's address, as the API names it or the connection has it, and what the program calls itself.
alter table pgmail.audit add column source text, add column application text;
create index audit_tenant on pgmail.audit (tenant_id, id);

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

-- Tenants that are there keep what they could do; a new one sends from its verified domains only.
alter table pgmail.tenant add column senders text not null default 'any' check (senders in ('any', 'verified'));
alter table pgmail.tenant alter column senders set default 'verified';

create table pgmail.sender_domain (
  tenant_id     integer not null,
  domain        text not null,                        -- lower-case A-labels; subdomains are meant, too
  id            uuid not null default pgmail.uuid7(),
  token         text not null,                        -- to be published as TXT of _pgmail.DOMAIN: pgmail-verify=TOKEN
  state         text not null default 'pending' check (state in ('pending', 'verified', 'failed')),
  created_at    timestamptz not null default pgmail.now(),
  created_by    text not null,
  verified_at   timestamptz,                          -- since when, without a break
  checked_at    timestamptz,
  answer        text,                                 -- what DNS said last
  missing_since timestamptz,                          -- verified, and since then no look has found the record
  trusted_by    text,                                 -- an operator vouches: DNS is not asked
  trust_reason  text,
  primary key (tenant_id, domain),
  unique (tenant_id, id)
);

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas
-- What may come in. Rules are an operator's rows; doors are what the leader makes of them about once a second, and all
-- that `send` reads. A rule of the fleet has no tenant.
create table pgmail.quota (
  tenant_id        integer,
  scope            text not null check (scope in ('fleet', 'tenant', 'stream', 'key')),
  name             text not null,         -- a stream's name, a key's id; '' of fleet and tenant
  per_second       integer check (per_second between 1 and 1000000),
  per_day          bigint check (per_day between 1 and 1000000000000),   -- a day of UTC
  max_queued       bigint check (max_queued between 0 and 1000000000000),
  pressure_depth   bigint check (pressure_depth between 1 and 1000000000000),  -- above it, mail of low priority waits
  pressure_seconds integer check (pressure_seconds between 1 and 31536000),    -- the same, by the age of the oldest due
  bound_mails      bigint check (bound_mails between 1 and 1000000000000),     -- a day, of one tenant: no more is taken
  bound_bytes      bigint check (bound_bytes between 1 and 1000000000000000),
  note             text,
  changed_at       timestamptz not null default pgmail.now(),
  changed_by       text not null default session_user,
  unique nulls not distinct (tenant_id, scope, name),
  check ((scope = 'fleet') = (tenant_id is null)),
  check ((scope in ('fleet', 'tenant')) = (name = '')),
  check (scope <> 'fleet' or (per_second is null and per_day is null and max_queued is null)),
  check (scope in ('fleet', 'tenant') or (pressure_depth is null and pressure_seconds is null
                                          and bound_mails is null and bound_bytes is null)),
  check (scope <> 'key' or max_queued is null)
);

-- What is closed, until when. Mail of this priority and below goes from `until` on, strewn over so many seconds.
create table pgmail.door (
  tenant_id integer not null,
  stream    text not null,                -- '' is every stream
  kind      text not null check (kind in ('rate', 'day', 'queued', 'pressure', 'bound')),
  priority  smallint not null default 1,
  until     timestamptz not null,
  spread    real not null default 0,
  reason    text not null,
  primary key (tenant_id, stream, kind)
) with (fillfactor = 50);

-- What was taken in, by every way in, as far as tallies are folded: the leader's memory.
create table pgmail.quota_meter (
  tenant_id  integer not null,
  scope      text not null check (scope in ('tenant', 'stream')),
  name       text not null,
  seen       bigint not null,             -- of the running totals
  seen_bytes bigint not null,
  lately     bigint not null default 0,   -- mails between the last two looks
  paid_until timestamptz not null,        -- the moment at which all that was taken in is within the rate
  day        date not null,
  owed       bigint not null default 0,   -- of the day's allowance, with what earlier days took in advance
  mails      bigint not null default 0,   -- of this day
  bytes      bigint not null default 0,
  primary key (tenant_id, scope, name)
) with (fillfactor = 50);

-- What came in by HTTP under a rule, exactly: how many in each slot of 20 ms of the last second, and in the day.
create table pgmail.quota_bucket (
  tenant_id integer not null,
  scope     text not null check (scope in ('tenant', 'stream', 'key')),
  name      text not null,
  slot      bigint not null default 0,
  counts    integer[] not null default '{}',
  day       date not null default '-infinity',
  used      bigint not null default 0,
  primary key (tenant_id, scope, name)
) with (fillfactor = 50);

alter table pgmail.quota        enable row level security;
alter table pgmail.door         enable row level security;
alter table pgmail.quota_meter  enable row level security;
alter table pgmail.quota_bucket enable row level security;

alter table pgmail.tally add column bytes bigint;
alter table pgmail.tally_total add column bytes bigint not null default 0;
alter table pgmail.leader add column doors_at timestamptz;

insert into pgmail.quota (scope, name, bound_mails, bound_bytes, note, changed_by)
values ('fleet', '', 50000000, 214748364800, 'what one tenant may hand over in a day at most', 'pgmail');

-- What was taken in before counts for no day.
insert into pgmail.quota_meter (tenant_id, scope, name, seen, seen_bytes, paid_until, day)
select tenant_id, 'tenant', '', sum(n), 0, pgmail.now(), (pgmail.now() at time zone 'UTC')::date
from pgmail.tally_total where kind = 'enqueued' group by tenant_id;

-- end of quotas

------------------------------------------------------------------------------------------------ test mail
-- A test email goes through all states and to the sandbox only. Its lanes are its own: their site is no domain, and no
-- domain may be mapped to it.
alter table pgmail.message add column test boolean not null default false;
alter table pgmail.site_domain add constraint site_domain_site_check check (site <> 'test:');
-- What a worker's settings make of mail (redirect, allow-list, prefix), in words; null: nothing. For people to compare.
alter table pgmail.worker add column staging text;

-- end of test mail

------------------------------------------------------------------------------------------------ sealing
alter table pgmail.stream add column seal text not null default 'off' constraint stream_seal_check
  check (seal in ('off', 'where_possible', 'required'));

-- What seals mail, wrapped by a key-encryption key that lies elsewhere. The newest of a tenant seals; all open.
create table pgmail.data_key (
  tenant_id  integer not null,
  id         integer not null,       -- key_id of what it sealed
  wrapped    bytea not null,         -- a nonce of 12 octets, the key, a tag of 16
  kek        text not null,          -- name of the key that it is wrapped by
  created_at timestamptz not null default pgmail.now(),
  created_by text not null,
  wrapped_at timestamptz not null default pgmail.now(),
  primary key (tenant_id, id)
);

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

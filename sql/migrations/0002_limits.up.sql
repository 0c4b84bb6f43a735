-- Limits, pauses and several relays: how much goes where, what stands still, and who goes next among tenants.
--   limits          an operator's rows: message rate and connections of a relay, a site or a tenant
--   bucket, permit  what of them is used, by the whole fleet; written by workers about once a second, never by a send
--   pause           what an operator stopped: a site, a stream or a lane, of one tenant or of all
-- Nothing of it stands in the way of `send`: a limit or a pause delays mail, it never refuses it.

create table pgmail.limits (
  scope        text not null check (scope in ('relay', 'site', 'tenant')),
  name         text not null check (name <> ''),
  messages     integer check (messages > 0),                       -- in per_seconds; null: no rate
  per_seconds  real not null default 1 check (per_seconds > 0 and per_seconds <= 86400),
  connections  integer check (connections > 0),                    -- at once, of the whole fleet; null: no cap
  ramp_seconds real not null default 30 check (ramp_seconds >= 0 and ramp_seconds <= 604800),  -- of a relay alone
  note         text,
  changed_at   timestamptz not null default pgmail.now(),
  changed_by   text not null default session_user,
  shipped      boolean not null default false,   -- a default of ours that no operator has changed
  primary key (scope, name),
  check (messages is not null or connections is not null),
  check (scope <> 'tenant' or connections is null)
);

-- The moment of the last token that was given out; the next is free one gap later. That is all a bucket holds, so a
-- quiet hour saves up nothing, and a limit that is changed holds from the next token on. Its row is also the lock
-- under which the permits of the same name are shared.
create table pgmail.bucket (
  scope   text not null,
  name    text not null,
  last_at timestamptz not null default '-infinity',
  primary key (scope, name)
) with (fillfactor = 50);

-- Connections that a worker may hold now, at most. They count while its worker row exists.
create table pgmail.permit (
  scope   text not null,
  name    text not null,
  epoch   bigint not null,
  held    integer not null check (held >= 0),
  wanted  integer not null check (wanted >= 0),
  seen_at timestamptz not null default pgmail.now(),
  primary key (scope, name, epoch)
) with (fillfactor = 50);

create table pgmail.pause (
  tenant_id integer,               -- null: of all tenants
  scope     text not null check (scope in ('site', 'stream', 'lane')),
  name      text not null,         -- of a lane: stream/priority/site, as in transactional/high/gmail.com
  reason    text not null check (reason <> ''),
  until     timestamptz,           -- null: until somebody resumes it
  paused_at timestamptz not null default pgmail.now(),
  paused_by text not null default session_user,
  unique nulls not distinct (tenant_id, scope, name)
);

alter table pgmail.limits enable row level security;
alter table pgmail.bucket enable row level security;
alter table pgmail.permit enable row level security;
alter table pgmail.pause  enable row level security;

-- Its share beside others, inside a priority: 2 gets twice what 1 gets while both have mail.
alter table pgmail.tenant add column weight real not null default 1 check (weight > 0 and weight <= 1000);

-- Several relays: in order (the next takes over while the one before is away), or, with weights, by weight among those
-- that are up. relay stays the first of them.
alter table pgmail.stream
  add column relays text[],
  add column relay_weights real[],
  add check (relays is null or (cardinality(relays) between 2 and 16 and relays[1] = relay)),
  add check (relay_weights is null or (relays is not null and cardinality(relay_weights) = cardinality(relays)
                                       and 0 < all (relay_weights)));

-- Since when it takes mail, this time: its limit is ramped up to from then on. Null: it never took any.
alter table pgmail.relay add column up_since timestamptz;

-- Defaults for large sites, of the whole fleet together. Hardly anybody publishes figures: these are common practice for a
-- sender of good standing, rather less than more. A sender that is known there, or whose relay paces mail itself, raises
-- or removes them; an upgrade neither restores nor changes what an operator touched.
insert into pgmail.limits (scope, name, messages, connections, note, changed_by, shipped)
select 'site', name, messages, connections, 'common practice, not published: ' || note, 'pgmail', true
from (values
  ('gmail.com',    50, 20, 'the rate that it takes grows with reputation'),
  ('outlook.com',  30, 10, 'few connections; it answers 421 RP-001 when mail comes too fast'),
  ('yahoo.com',    20, 10, 'it answers 421 TSS04 when mail comes too fast'),
  ('icloud.com',   10, 10, 'few mails on each connection'),
  ('comcast.net',  20, 25, 'many connections, little on each'),
  ('orange.fr',     3,  3, 'very few connections'),
  ('gmx.net',      10,  5, 'GMX, WEB.DE and mail.com are one site'),
  ('t-online.de',   5,  5, 'senders that are not known are refused'),
  ('proton.me',    10,  5, 'a cautious guess'),
  ('fastmail.com', 10,  5, 'a cautious guess'),
  ('zoho.com',     10,  5, 'a cautious guess'),
  ('mail.ru',      10, 10, 'the rate grows with reputation'),
  ('yandex.ru',    10, 10, 'the rate grows with reputation'),
  ('qq.com',        5,  5, 'low for senders from abroad'),
  ('163.com',       3,  3, 'low for senders from abroad')
) as d(name, messages, connections, note);

update pgmail.schema_version set version = 2;

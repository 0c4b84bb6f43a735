-- What `pgmail bench` asks of its own database.

-- name: drop_database :exec
-- Outside a transaction. The name is filled in as an identifier.
drop database if exists {database} with (force);

-- name: create_database :exec
-- Outside a transaction. The name is filled in as an identifier.
create database {database};

-- name: set_password :exec
-- A role that logs in over TCP needs one.
alter role {role} password {password};

-- name: server_version :one
-- For the conditions.
select current_setting('server_version') as version;

-- name: save_template :one
-- The template that the mails come from.
select pgmail.save_template(%(name)s, %(subject)s, %(text)s, %(html)s, '{name}', '{}', true) as version;

-- name: create_key :one
-- A key for the API.
select pgmail.create_key('bench', %(hint)s, %(hash)s) as id;

-- name: create_tenants :one
-- As many tenants as are wanted and not there yet, to share the fleet. They send as anybody: a bench sends to nobody.
select count(case when pgmail.create_tenant('bench ' || i) > 0 then pgmail.set_senders('bench ' || i, 'any') end) as made
from generate_series(1, %(tenants)s::int) i
where not exists (select from pgmail.tenant t where t.name = 'bench ' || i);

-- name: tenants :many
-- The tenants that create_tenants made.
select id from pgmail.tenant where name like 'bench %' order by id;

-- name: act_as :exec
-- Local to a transaction of the API's role: whose mail it is.
select set_config('pgmail.tenant', %(tenant)s::text, true);

-- name: empty :exec
-- Between two measurements in one database. Tenants, templates and keys stay.
truncate pgmail.message, pgmail.attachment, pgmail.tag, pgmail.recipient, pgmail.queue, pgmail.lane, pgmail.lane_touch,
  pgmail.event, pgmail.outcome, pgmail.dead_letter, pgmail.tally, pgmail.tally_total,
  pgmail.backlog, pgmail.gauge, pgmail.pulse, pgmail.rollup, pgmail.cause;

-- name: fill :exec
-- Queue mails of a template, one a message, over some sites, set-based, a thousand a call.
select count(*) from pgmail.send_many((
  select jsonb_agg(jsonb_build_object('from', 'Shop <shop@example.com>', 'to', 'u' || i || '@example' || i %% %(sites)s || '.com',
    'template', jsonb_build_object('id', %(template)s::text), 'variables', jsonb_build_object('name', 'User ' || i),
    'stream', %(stream)s::text))
  from generate_series(%(low)s::int, %(high)s::int) i));

-- name: fill_plain :exec
-- Queue small mails without a template, one a message: as much content as the jobs of the peers have.
select count(*) from pgmail.send_many((
  select jsonb_agg(jsonb_build_object('from', 'shop@example.com', 'to', 'u' || i || '@example' || i %% %(sites)s || '.com',
    'subject', 'Hello', 'text', 'Hi, your order shipped.', 'stream', %(stream)s::text))
  from generate_series(%(low)s::int, %(high)s::int) i));

-- name: fill_personal :exec
-- Queue one message to many recipients over some sites, each with a variable: how a mailing is sent. Broadcast mail
-- has a low priority.
select pgmail.send(jsonb_build_object('from', 'Shop <shop@example.com>', 'mode', 'personal', 'stream', 'broadcast',
  'subject', 'News for {{ name }}', 'text', 'Hello {{ name }}, here is what is new.', 'to', (
    select jsonb_agg(jsonb_build_object('address', 'u' || i || '@site' || i %% %(lanes)s || '.example.com',
      'variables', jsonb_build_object('name', 'User ' || i)))
    from generate_series(%(low)s::int, %(high)s::int) i)));

-- name: send_high :one
-- One mail that is not to wait.
select pgmail.send(jsonb_build_object('from', 'Shop <shop@example.com>', 'to', %(address)s::text,
  'subject', 'Your code', 'text', 'Your code is 123456.', 'priority', 'high')) as id;

-- name: send_one :exec
-- One mail of about 4 kB, as an application would write it.
select pgmail.send(jsonb_build_object('from', 'Shop <shop@example.com>', 'to', 'user@example' || (random() * 19)::int || '.com',
  'subject', 'Order for User', 'text', repeat('Hello User, thank you for your order. ', 45),
  'html', '<p>' || repeat('Hello User, thank you for your order. ', 45) || '</p>'));

-- name: send_thousand :exec
-- A thousand mails in one transaction.
select count(*) from pgmail.send_many((
  select jsonb_agg(jsonb_build_object('from', 'Shop <shop@example.com>', 'to', 'u' || i || '@example' || i % 20 || '.com',
    'subject', 'Order for User', 'text', repeat('Hello User, thank you for your order. ', 45),
    'html', '<p>' || repeat('Hello User, thank you for your order. ', 45) || '</p>'))
  from generate_series(1, 1000) i));

-- name: fold :one
-- So that lanes are active, as under load. Answers how many became so; a call takes some thousand touches.
select pgmail.fold_touches_v1() as folded;

-- name: vacuum :exec
-- A table that was empty when it was last analysed has wrong plans.
vacuum analyze pgmail.queue, pgmail.recipient, pgmail.message, pgmail.lane, pgmail.lane_touch;

-- name: sent :one
-- How many were sent, the time from the first to the last, and how many were not recorded together with the first.
select count(*) as count, greatest(extract(epoch from max(at) - min(at)), 0.001)::float as seconds,
  count(*) filter (where at > (select min(at) from pgmail.outcome)) as after_first
from pgmail.outcome;

-- name: progress :one
-- How many were sent so far, from the tallies: cheap enough to ask while others are measured.
select coalesce(sum(n), 0)::bigint as mails from (
  select n from pgmail.tally where kind = 'sent' union all select n from pgmail.tally_total where kind = 'sent') t;

-- name: waits :many
-- What the workers' sessions wait for at this moment; nothing is at work on a processor.
select coalesce(a.wait_event_type || ':' || a.wait_event, 'running') as waits, count(*) as sessions
from pg_stat_activity a
where a.datname = current_database() and a.application_name like 'pgmail%' and a.state = 'active' group by 1;

-- name: workers :many
-- The worker processes that are alive.
select pid, asleep from pgmail.worker where program = 'worker' order by pid;

-- name: dead_rows :one
-- Rows of the queue that no vacuum could take away yet, as the statistics have it.
select coalesce(n_dead_tup, 0) as rows from pg_stat_user_tables where schemaname = 'pgmail' and relname = 'queue';

-- name: pin :one
-- Takes the snapshot that the transaction keeps.
select version from pgmail.schema_version;

-- name: wal :one
-- Bytes of WAL written so far.
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as bytes;

-- name: messages :one
-- How many emails were enqueued.
select count(*) as count from pgmail.message;

-- name: content_bytes :one
-- What the content of a message takes as it is stored, compressed where it is.
select coalesce(avg(pg_column_size(m.content)), 0)::float as bytes from (select content from pgmail.message limit 1000) m;

-- What `pgmail bench` asks of its own database.

-- name: server_version :one
-- For the conditions.
select current_setting('server_version') as version;

-- name: fill :exec
-- Queue mails to many recipients over some sites, set-based, a thousand a call.
select count(*) from pgmail.send_many((
  select jsonb_agg(jsonb_build_object('from', 'Shop <shop@example.com>', 'to', 'u' || i || '@example' || i %% %(sites)s || '.com',
    'template', jsonb_build_object('id', %(template)s::text), 'variables', jsonb_build_object('name', 'User ' || i)))
  from generate_series(%(low)s::int, %(high)s::int) i));

-- name: sent :one
-- How many were sent, and the time from the first to the last.
select count(*) as count, greatest(extract(epoch from max(at) - min(at)), 0.001)::float as seconds from pgmail.outcome;

-- name: wal :one
-- Bytes of WAL written so far.
select pg_wal_lsn_diff(pg_current_wal_insert_lsn(), '0/0')::bigint as bytes;

-- name: messages :one
-- How many emails were enqueued.
select count(*) as count from pgmail.message;

-- name: fold :one
-- So that lanes are active, as under load.
select pgmail.fold_touches_v1() as folded;

-- name: vacuum :exec
-- A table that was empty when it was last analysed has wrong plans.
vacuum analyze pgmail.queue, pgmail.recipient, pgmail.message;

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

-- name: drop_database :exec
-- Outside a transaction. The name is filled in as an identifier.
drop database if exists {database} with (force);

-- name: create_database :exec
-- Outside a transaction. The name is filled in as an identifier.
create database {database};

-- name: set_password :exec
-- A role that logs in over TCP needs one.
alter role {role} password {password};

-- name: save_template :one
-- The template that the mails come from.
select pgmail.save_template(%(name)s, %(subject)s, %(text)s, %(html)s, '{name}', '{}', true) as version;

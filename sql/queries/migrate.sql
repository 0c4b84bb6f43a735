-- What `pgmail db upgrade | downgrade | check` ask, beside the migrations themselves.

-- name: take_turn :exec
-- Two upgrades of one database go one after the other; held until the transaction ends.
select pg_advisory_xact_lock(hashtextextended('pgmail.upgrade', 0));

-- name: wait_at_most :exec
-- An upgrade that cannot have a table's lock soon must not make all mail queue up behind it.
select set_config('lock_timeout', %(lock_timeout)s, true);

-- name: functions_may_come_in_any_order :exec
-- Functions call each other, so bodies are checked when they run.
set local check_function_bodies = off;

-- name: is_utf8 :one
-- Addresses and texts are Unicode, and normalize() needs a database that is.
select current_setting('server_encoding') = 'UTF8' as found;

-- name: schema_exists :one
-- Asked before creating: CREATE SCHEMA IF NOT EXISTS needs the right to create even where there is nothing to do.
select to_regnamespace('pgmail') is not null as found;

-- name: create_schema :exec
-- Needs CREATE on the database, nothing more.
create schema pgmail;

-- name: who_and_where :one
-- For messages, and for the statement that an administrator would run.
select session_user::text as role, current_database()::text as database,
       (select n.nspowner::regrole::text from pg_namespace n where n.nspname = 'pgmail') as owner;

-- name: version_is_kept :one
-- Whether the version row's table exists, so that reading it cannot fail for want of it.
select to_regclass('pgmail.schema_version') is not null as found;

-- name: version :one
-- The schema's version, and the oldest program version that it lets in.
select version, compatible_from from pgmail.schema_version;

-- name: mark_upgraded :exec
-- When the schema was last changed.
update pgmail.schema_version set upgraded_at = now();

-- name: rules_are_kept :one
-- Whether this schema has the tables of rules for replies.
select to_regclass('pgmail.reply_pattern') is not null as found;

-- name: load_reply_rules :exec
-- The rules for replies of this program, in place of those that were there.
select pgmail.load_reply_rules(%(rules)s::jsonb);

-- name: make_partitions :exec
-- The weekly partitions of now and the weeks ahead; a leader goes on with it.
select pgmail.make_partitions_v1();

-- name: secures :one
-- Whether this schema's functions force row-level security, as those of an older revision do not.
select to_regprocedure('pgmail.secure_next(text)') is not null as found;

-- name: secure_next :one
-- Force row-level security on the next table, by name, where it is not; no name when all is well.
select pgmail.secure_next(%(after)s) as name;

-- name: indexes_feed :one
-- Whether this schema makes the feed's indexes after an upgrade, and whether nobody else is about it: held by the session.
select to_regprocedure('pgmail.feed_index_next(text)') is not null
       and pg_try_advisory_lock(hashtextextended('pgmail.feed_index', 0)) as found;

-- name: feed_index_next :one
-- The next partition whose index of the feed is to be made, and the statements that make it.
select n.name, n.step, n.steps, n.statements from pgmail.feed_index_next(%(after)s) n;

-- name: wait_for_locks :exec
-- For the session: how long a lock is waited for.
select set_config('lock_timeout', %(lock_timeout)s, false);

-- name: holds_data :one
-- Whether a downgrade would destroy mail, or what people made.
select exists (select from pgmail.message) or exists (select from pgmail.queue)
       or exists (select from pgmail.suppression) or exists (select from pgmail.template)
       or exists (select from pgmail.asset) or exists (select from pgmail.api_key) as found;

-- name: drop_version_table :exec
-- Alembic's own table, the last thing in the schema after a downgrade to base.
drop table pgmail.alembic_version;

-- name: drop_schema :exec
-- Without CASCADE, so that whatever is left stops it.
drop schema pgmail;

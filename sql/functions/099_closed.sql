-- The last of the files, at every upgrade: what was made is shut before anybody can use it. Rights of roles come after
-- it, from roles.sql; where these cannot be given (an owner without CREATEROLE), nothing that an upgrade made is open to
-- whoever has USAGE on the schema from before.
revoke all on schema pgmail from public;
revoke all on all tables in schema pgmail from public;
revoke all on all sequences in schema pgmail from public;
revoke all on all routines in schema pgmail from public;

-- Partitions too. The version table is Alembic's, made by it and holding one word.
do $do$
begin
  perform pgmail.secure_table(c.oid) from pg_class c
   where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'alembic_version' order by c.relispartition, c.relname;
end
$do$;

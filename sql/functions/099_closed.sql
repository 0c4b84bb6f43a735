-- The last of the files, at every upgrade: what was made is shut before anybody can use it. Rights of roles come after
-- it, from roles.sql; where these cannot be given (an owner without CREATEROLE), nothing that an upgrade made is open to
-- whoever has USAGE on the schema from before.
revoke all on schema pgmail from public;
revoke all on all tables in schema pgmail from public;
revoke all on all sequences in schema pgmail from public;
revoke all on all routines in schema pgmail from public;

-- Row-level security of the tables that this transaction made or changed, and so has locked; `secure_next` does the others
-- after it, one by one. And of all whose owner is another than their policy says: nothing sees their rows, this upgrade
-- neither. The version table is Alembic's, made by it and holding one word.
do $do$
begin
  perform pgmail.secure_table(c.oid) from pg_class c
   where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'alembic_version'
     and (exists (select from pg_locks l where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.relation = c.oid
                  and l.mode = 'AccessExclusiveLock' and l.granted)
          or exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'owner' and p.polroles <> array[c.relowner]));
end
$do$;

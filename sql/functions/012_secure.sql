-- Row-level security of a table or partition: on, forced, and with the one policy without which not even the owner sees
-- a row. The owner runs the SECURITY DEFINER functions, each of which names its tenant; a condition that is `true` goes
-- when a statement is planned, so forcing costs nothing while mail flows. What other roles see is roles.sql's to say.
-- A policy names a role, and the owner may become another (a dump restored under another name): one that does not name the
-- table's owner is made anew, so that `pgmail db upgrade` puts such a database right. What is as it should be is left
-- alone, for each change takes the table's lock. Answers whether anything was changed.
create or replace function pgmail.secure_table(p_table regclass) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare c pg_class; named text; good boolean;
begin
  select x.* into strict c from pg_class x where x.oid = p_table;
  select p.polname, p.polroles = array[c.relowner] and p.polcmd = '*' and p.polpermissive
      and pg_get_expr(p.polqual, p.polrelid) = 'true' and pg_get_expr(p.polwithcheck, p.polrelid) = 'true'
    into named, good from pg_policy p where p.polrelid = p_table and p.polname = 'owner';
  if c.relrowsecurity and c.relforcerowsecurity and good then return false; end if;
  if not c.relrowsecurity then execute format('alter table %s enable row level security', p_table); end if;
  if not c.relforcerowsecurity then execute format('alter table %s force row level security', p_table); end if;
  if named is not null and not good then execute format('drop policy owner on %s', p_table); end if;
  if good is not true then execute format('create policy owner on %s to %I using (true) with check (true)', p_table, pg_get_userbyid(c.relowner)); end if;
  return true;
end
$$;

-- Secures the next table, by name after p_after, that is not as it should be; its name, null when all are. Its lock is not to
-- be had at once with those of others while mail flows: so call it until it answers null, each time in a transaction of its own.
create or replace function pgmail.secure_next(p_after text default '') returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare c record;
begin
  for c in select x.oid, x.relname from pg_class x
           where x.relnamespace = 'pgmail'::regnamespace and x.relkind in ('r', 'p') and x.relname <> 'alembic_version' and x.relname::text > p_after
           order by x.relname::text loop
    if pgmail.secure_table(c.oid) then return c.relname; end if;
  end loop;
  return null;
end
$$;

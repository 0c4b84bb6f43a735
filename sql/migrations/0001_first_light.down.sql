-- Everything that pgmail made, and nothing else; the version table stays Alembic's.
do $do$
declare o record;
begin
  for o in select c.relname, c.relkind from pg_class c
           where c.relnamespace = 'pgmail'::regnamespace and c.relkind = 'v' loop
    execute format('drop view if exists pgmail.%I cascade', o.relname);
  end loop;
  for o in select p.oid::regprocedure as f, p.prokind from pg_proc p
           where p.pronamespace = 'pgmail'::regnamespace and p.proname not in ('now', 'uuid7', 'uuid_floor', 'uuid_time') loop
    execute format('drop %s if exists %s cascade', case o.prokind when 'p' then 'procedure' else 'function' end, o.f);
  end loop;
  for o in select t.oid::regtype as t from pg_type t
           join pg_class c on c.oid = t.typrelid and c.relkind = 'c'
           where t.typnamespace = 'pgmail'::regnamespace loop
    execute format('drop type if exists %s cascade', o.t);
  end loop;
  for o in select c.oid::regclass as t from pg_class c
           where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p')
             and not c.relispartition and c.relname <> 'alembic_version' loop
    execute format('drop table if exists %s cascade', o.t);
  end loop;
  for o in select c.oid::regclass as t from pg_class c
           where c.relnamespace = 'pgmail'::regnamespace and c.relkind = 'S' loop
    execute format('drop sequence if exists %s cascade', o.t);
  end loop;
  for o in select p.oid::regprocedure as f from pg_proc p where p.pronamespace = 'pgmail'::regnamespace loop
    execute format('drop function if exists %s cascade', o.f);
  end loop;
end
$do$;

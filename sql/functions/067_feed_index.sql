-- The indexes of the feed over partitions that hold rows, made by `pgmail db upgrade` after its transaction: without a lock
-- that mail would wait for, one partition at a time, and gone on with after an interruption.

-- What is next: a partition, how far it is (done of all), and the statements that make and attach its index, each of which
-- runs outside of a transaction. No row: all is whole. An index that is there and invalid was interrupted while it was made.
create or replace function pgmail.feed_index_next(p_after text default '')
returns table (name text, step integer, steps integer, statements text[])
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  with part as (
    select b.base, c.oid, c.relname::text as name,
      exists (select from pg_index x join pg_inherits h on h.inhrelid = x.indexrelid
              where x.indrelid = c.oid and h.inhparent = to_regclass(format('pgmail.%I', b.base || '_feed'))) as attached,
      (select x.indisvalid from pg_index x where x.indrelid = c.oid and x.indexrelid = to_regclass(format('pgmail.%I', c.relname || '_xid_id_idx'))) as valid
    from unnest(array['message', 'event']) b(base)
    join pg_inherits i on i.inhparent = to_regclass('pgmail.' || b.base)
    join pg_class c on c.oid = i.inhrelid
    where to_regclass(format('pgmail.%I', b.base || '_feed')) is not null   -- not so in a schema of an older revision
  )
  select p.name, (select count(*) from part x where x.attached)::integer + 1, (select count(*) from part)::integer,
    case when p.valid is false then array[format('drop index concurrently if exists pgmail.%I', p.name || '_xid_id_idx')] else '{}' end
    || case when p.valid is true then '{}' else array[format('create index concurrently %I on pgmail.%I (xid, id)%s',
         p.name || '_xid_id_idx', p.name, case when p.base = 'message' then ' where xid is not null' else '' end)] end
    || format('alter index pgmail.%I attach partition pgmail.%I', p.base || '_feed', p.name || '_xid_id_idx')
  from part p where not p.attached and p.name > p_after
  order by p.name limit 1
$$;

-- Weekly partitions, made well ahead by whichever process leads. A DEFAULT partition takes mail when they ran out.
create or replace function pgmail.partitioned_tables() returns text[]
language sql immutable parallel safe
as $$ select array['message', 'attachment', 'tag', 'recipient', 'event', 'outcome'] $$;

-- The column whose UUIDv7 says which week a row belongs to.
create or replace function pgmail.partition_key(p_base text) returns text
language sql immutable parallel safe
as $$ select case when p_base in ('message', 'recipient') then 'id' when p_base in ('attachment', 'tag') then 'message_id' else 'recipient_id' end $$;

-- A table's weekly partitions, oldest first, with the moments from which and up to which they hold ids.
create or replace function pgmail.weekly_partitions(p_base text) returns table (name text, since timestamptz, until timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select c.relname::text, w.since, w.since + interval '168 hours'
  from pg_inherits i join pg_class c on c.oid = i.inhrelid,
    lateral (select to_date(substring(c.relname from '[0-9]{8}$'), 'YYYYMMDD')::timestamp at time zone 'UTC') w(since)
  where i.inhparent = to_regclass('pgmail.' || quote_ident(p_base)) and c.relname ~ '_[0-9]{8}$'
  order by w.since
$$;

-- Makes one partition of one table, and moves there what had gone to the default partition meanwhile. A short
-- lock_timeout, less than deadlock_timeout, gives up before a reader could be the victim.
create or replace function pgmail.make_partition(p_base text, p_week timestamptz) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare
  part text := p_base || '_' || to_char(p_week at time zone 'UTC', 'YYYYMMDD'); col text := pgmail.partition_key(p_base);
  low uuid := pgmail.uuid_floor(p_week); high uuid := pgmail.uuid_floor(p_week + interval '168 hours');
begin
  perform set_config('lock_timeout', '500ms', true);
  execute format('create table pgmail.%I (like pgmail.%I including all)', part, p_base);
  perform pgmail.secure_table(format('pgmail.%I', part)::regclass);
  execute format('lock table only pgmail.%I in access exclusive mode', p_base || '_default');
  execute format('with moved as (delete from pgmail.%I where %I >= %L and %I < %L returning *) insert into pgmail.%I select * from moved',
    p_base || '_default', col, low, col, high, part);
  execute format('alter table pgmail.%I attach partition pgmail.%I for values from (%L) to (%L)', p_base, part, low, high);
  return part;
end
$$;

-- Makes the first partition that is missing from last week to p_days ahead; its name, null when all are there. One call
-- holds locks on one table. Call it until it answers null, each time in a transaction of its own.
create or replace function pgmail.make_partition_v2(p_days integer default 35) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare w timestamptz; base text;
begin
  for w in select generate_series(date_trunc('week', pgmail.now() at time zone 'UTC') - interval '1 week',
                                  pgmail.now() at time zone 'UTC' + p_days * interval '1 day', interval '1 week') at time zone 'UTC'
  loop
    foreach base in array pgmail.partitioned_tables() loop
      if to_regclass('pgmail.' || base || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD')) is null then
        return pgmail.make_partition(base, w);
      end if;
    end loop;
  end loop;
  return null;
end
$$;

-- The same, all that is missing in one transaction: for an upgrade, and for leaders of 0.1. Answers how many.
create or replace function pgmail.make_partitions_v1(p_days integer default 35) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare made integer := 0;
begin
  perform set_config('lock_timeout', '500ms', true);
  while pgmail.make_partition_v2(p_days) is not null loop made := made + 1; end loop;
  return made;
end
$$;

-- Days left before new mail goes to the default partition, and how many rows went there already: those of the last day and
-- later. Older ones were moved there by retention and stand there until their mail is settled (086_retain.sql); it moves
-- what is a day old at least, so none of these is ever taken for a want of partitions.
create or replace function pgmail.partition_state(out days_left integer, out strays bigint)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare base text; n bigint; last_ timestamptz := 'infinity'; l timestamptz;
begin
  strays := 0;
  foreach base in array pgmail.partitioned_tables() loop
    select max(p.until) into l from pgmail.weekly_partitions(base) p;
    execute format('select count(*) from (select 1 from pgmail.%I where %I >= %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - interval '1 day')) into n;
    strays := strays + n;
    last_ := least(last_, coalesce(l, '-infinity'));
  end loop;
  days_left := case when last_ = '-infinity' then 0 else greatest(0, extract(day from last_ - pgmail.now()))::integer end;
end
$$;

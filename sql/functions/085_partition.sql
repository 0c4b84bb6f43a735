-- Weekly partitions, made well ahead by whichever process leads. A DEFAULT partition takes mail when they ran out.
create or replace function pgmail.partitioned_tables() returns text[]
language sql immutable parallel safe
as $$ select array['message', 'attachment', 'tag', 'recipient', 'event', 'outcome'] $$;

-- Makes what is missing from last week to p_days ahead; answers how many. One short transaction a call is wise: a short
-- lock_timeout, less than deadlock_timeout, gives up before a reader could be the victim. Rows that had gone to the
-- default partition are moved.
create or replace function pgmail.make_partitions_v1(p_days integer default 35) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare w timestamptz; base text; part text; col text; made integer := 0; stray bigint;
begin
  perform set_config('lock_timeout', '500ms', true);
  for w in select generate_series(date_trunc('week', pgmail.now() at time zone 'UTC') - interval '1 week',
                                  pgmail.now() at time zone 'UTC' + p_days * interval '1 day', interval '1 week') at time zone 'UTC'
  loop
    foreach base in array pgmail.partitioned_tables() loop
      part := base || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD');
      continue when to_regclass('pgmail.' || part) is not null;
      col := case base when 'message' then 'id' when 'recipient' then 'id'
                       when 'attachment' then 'message_id' when 'tag' then 'message_id' else 'recipient_id' end;
      execute format('create table pgmail.%I (like pgmail.%I including all)', part, base);
      execute format('alter table pgmail.%I enable row level security', part);
      -- Mail that arrived while this partition was missing.
      execute format('lock table only pgmail.%I in access exclusive mode', base || '_default');
      execute format('with moved as (delete from pgmail.%I where %I >= %L and %I < %L returning *) insert into pgmail.%I select * from moved',
        base || '_default', col, pgmail.uuid_floor(w), col, pgmail.uuid_floor(w + interval '1 week'), part);
      get diagnostics stray = row_count;
      execute format('alter table pgmail.%I attach partition pgmail.%I for values from (%L) to (%L)',
        base, part, pgmail.uuid_floor(w), pgmail.uuid_floor(w + interval '1 week'));
      made := made + 1;
    end loop;
  end loop;
  return made;
end
$$;

-- Weeks left before new mail goes to the default partition, and how many rows went there already.
create or replace function pgmail.partition_state(out days_left integer, out strays bigint)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare base text; n bigint; last_ timestamptz := 'infinity'; l timestamptz;
begin
  strays := 0;
  foreach base in array pgmail.partitioned_tables() loop
    execute format('select count(*) from (select 1 from pgmail.%I limit 1000) x', base || '_default') into n;
    strays := strays + n;
    select max(to_timestamp(substring(c.relname from '[0-9]{8}$'), 'YYYYMMDD') + interval '1 week') into l
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = ('pgmail.' || base)::regclass and c.relname ~ '_[0-9]{8}$';
    last_ := least(last_, coalesce(l, '-infinity'));
  end loop;
  days_left := case when last_ = '-infinity' then 0 else greatest(0, extract(day from last_ - pgmail.now()))::integer end;
end
$$;

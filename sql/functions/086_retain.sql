-- Retention: what is settled goes after its time, by whole weekly partitions; a stream that keeps its content for less
-- has it emptied row by row. Mail that is queued, held or dead is kept: its message and files, and the recipients that are
-- not settled with their record, move to the default partition before their week is dropped.
-- Each call is one short transaction on one table. Dropping takes the parent's lock for a moment, for which all others
-- wait: so it is asked for during 200 ms at most, and given up rather than waited for (lock_not_available: try later).
-- (DETACH CONCURRENTLY, which would do without, refuses a table that has a default partition.)

create or replace function pgmail.kept_days(p_base text) returns integer
language sql stable security definer set search_path = pgmail, pg_temp
as $$ select case when p_base in ('message', 'attachment', 'tag') then r.content_days else r.record_days end from pgmail.retention r $$;

-- Recipients between two ids that are not settled, p_most at most. By primary key, tenant by tenant: the rest of the queue
-- is not read. The limit is inside, since what a function answers is computed whole before a limit outside is looked at.
create or replace function pgmail.needed_recipients(p_low uuid, p_high uuid, p_most integer)
returns table (tenant_id integer, message_id uuid, recipient_id uuid)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  select t.id, x.message_id, x.id from pgmail.tenant t cross join lateral (
    select q.message_id, q.id from pgmail.queue q where q.tenant_id = t.id and q.id >= p_low and q.id < p_high
    union all
    select d.message_id, d.recipient_id from pgmail.dead_letter d where d.tenant_id = t.id and d.recipient_id >= p_low and d.recipient_id < p_high) x
  limit p_most
$$;

-- The same as emails, all of them.
create or replace function pgmail.needed_messages(p_low uuid, p_high uuid) returns table (tenant_id integer, message_id uuid)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$ select distinct n.tenant_id, n.message_id from pgmail.needed_recipients(p_low, p_high, null) n $$;

-- Which rows of a partition must be moved before it is dropped, by their places; null when they are too many to be moved
-- under a lock for which every `send` waits: more than 2,000 rows or 32 MB of texts and files, or when more than 20,000
-- recipients would have to be looked at. So it takes some tens of milliseconds at most, however much waits.
-- Of recipients, events and outcomes those of the unsettled recipients alone: the others of the same email are settled
-- and past their time like everything else, and there may be very many.
create or replace function pgmail.rows_to_keep(p_base text, p_part text, p_low uuid, p_high uuid) returns tid[]
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  rows_most constant integer := 2000; looks constant integer := 20000; bytes_most constant bigint := 32 * 1024 * 1024;
  tenants integer[]; messages uuid[]; people uuid[]; places tid[]; bytes bigint;
begin
  select array_agg(n.tenant_id), array_agg(n.message_id), array_agg(n.recipient_id) into tenants, messages, people
    from pgmail.needed_recipients(p_low, p_high, looks + 1) n;
  if cardinality(people) > looks then return null; end if;
  -- The size is that on disk, read without the contents: a file stored elsewhere in the table is not fetched for it.
  execute format('select array_agg(y.place), sum(y.bytes) from (select x.ctid as place, '
      || case p_base when 'message' then 'pg_column_size(x.content)' when 'attachment' then 'pg_column_size(x.body)' else '0' end || ' as bytes from '
      || case p_base
        when 'message' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.m'
        when 'attachment' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.message_id = n.m'
        when 'tag' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.message g on g.tenant_id = n.t and g.id = n.m
            cross join lateral jsonb_each_text(g.tags) k join pgmail.%1$I x on x.tenant_id = n.t and x.name = k.key and x.value = k.value and x.message_id = n.m'
        when 'recipient' then 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.r'
        else 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.recipient_id = n.r' end
      || ' limit %2$s) y', p_part, rows_most + 1)
    using tenants, messages, people into places, bytes;
  if cardinality(places) > rows_most or bytes > bytes_most then return null; end if;
  return coalesce(places, '{}');
end
$$;

-- Drops the oldest partition of a table that is past its time; name null when there is none. One of which too much must be
-- kept stays, for moving it would take too long under the lock, and so does one that something of somebody else hangs on (a
-- view): the next is looked at, and `overdue` of pgmail.retention_state tells.
create or replace function pgmail.drop_partition_v1(p_base text, out name text, out moved bigint)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare days integer := pgmail.kept_days(p_base); w record; low uuid; high uuid; places tid[];
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return; end if;
  perform set_config('lock_timeout', '200ms', true);
  for w in select * from pgmail.weekly_partitions(p_base) p where p.until + days * interval '24 hours' <= pgmail.now() loop
    -- What hangs on a message or a recipient goes after it: nobody is left without the state that its outcome says.
    continue when to_regclass('pgmail.' || case when p_base in ('attachment', 'tag') then 'message' when p_base in ('outcome', 'event') then 'recipient' end
                              || right(w.name, 9)) is not null;
    -- An email and its recipients are of one hour, which may be of two weeks.
    low := pgmail.uuid_floor(w.since - interval '1 hour'); high := pgmail.uuid_floor(w.until + interval '1 hour');
    continue when pgmail.rows_to_keep(p_base, w.name, low, high) is null;
    begin
    execute format('lock table only pgmail.%I in access exclusive mode', p_base);
    -- Whoever reads a partition holds its parent, too; but for VACUUM and the like, which nobody should wait for now.
    execute format('lock table only pgmail.%I, only pgmail.%I in access exclusive mode nowait', p_base || '_default', w.name);
    -- Asked again now that nothing can be written: a dead letter may have been retried meanwhile, or an email have died.
    -- If it has become too much, the lock is let go with the transaction, at once; a later round looks further.
    places := pgmail.rows_to_keep(p_base, w.name, low, high);
    if places is null then return; end if;
    execute format('alter table pgmail.%I detach partition pgmail.%I', p_base, w.name);
    execute format('insert into pgmail.%I select x.* from pgmail.%I x where x.ctid = any ($1)', p_base || '_default', w.name) using places;
    get diagnostics moved = row_count;
    execute format('drop table pgmail.%I', w.name);
    name := w.name;
    return;
    exception when dependent_objects_still_exist then
      moved := null;
    end;
  end loop;
end
$$;

-- Deletes what stands in a default partition past its time and is settled by now, p_most rows at most; how many.
create or replace function pgmail.drop_strays_v1(p_base text, p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare days integer := pgmail.kept_days(p_base); past timestamptz; n integer;
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return 0; end if;
  past := pgmail.now() - days * interval '24 hours';
  execute format($q$delete from pgmail.%1$I d where d.ctid = any (array(
      select x.ctid from pgmail.%1$I x where x.%2$I < $1
        and (x.tenant_id, x.%3$I) not in (select n.tenant_id, n.message_id from pgmail.needed_messages('00000000-0000-0000-0000-000000000000', $2) n)
      limit $3 for update skip locked))$q$,
      p_base || '_default', pgmail.partition_key(p_base), case p_base when 'message' then 'id' else 'message_id' end)
    using pgmail.uuid_floor(past), pgmail.uuid_floor(past + interval '1 hour'), p_most;
  get diagnostics n = row_count;
  return n;
end
$$;

-- What is left of a content that was emptied: who sent it, which every page that shows an email shows.
create or replace function pgmail.emptied(p_content bytea, p_key_id integer) returns bytea
language sql immutable
as $$
  select convert_to(jsonb_build_object('from', convert_from(p_content, 'UTF8')::jsonb->'from')::text, 'UTF8')
$$;

-- Empties these emails of one tenant: texts, files, variables. Those that still wait are left out; answers the rest.
create or replace function pgmail.empty_messages(p_tenant integer, p_ids uuid[]) returns uuid[]
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; people uuid[]; busy uuid[];
begin
  select array_agg(r.id), array_agg(distinct r.message_id) filter (where r.waits) into people, busy
  from unnest(p_ids) u(id) cross join lateral (
    select x.id, x.message_id,
      exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = x.id)
      or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = x.id) as waits
    from pgmail.recipient x
    where x.tenant_id = p_tenant and x.message_id = u.id and x.message_id between u.id and u.id
      and x.id >= pgmail.uuid_floor(pgmail.uuid_time(u.id) - interval '1 hour')
      and x.id < pgmail.uuid_floor(pgmail.uuid_time(u.id) + interval '1 hour')) r;
  done := array(select u.id from unnest(p_ids) u(id) where busy is null or u.id <> all (busy) order by 1);
  update pgmail.message m set content = pgmail.emptied(m.content, m.key_id), key_id = null where m.tenant_id = p_tenant and m.id = any (done);
  delete from pgmail.attachment a where a.tenant_id = p_tenant and a.message_id = any (done);
  update pgmail.recipient r set variables = null
   where r.tenant_id = p_tenant and r.id = any (people) and r.message_id = any (done) and r.variables is not null;
  return done;
end
$$;

-- Goes on with the streams that keep their content for less than the fleet: p_most emails of one stream a call, found by
-- their ids from where the last call ended. Answers how many were looked at; 0: there is nothing to do now.
create or replace function pgmail.empty_content_v1(p_most integer default 500) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare s record; mark uuid; seen uuid[]; mine uuid[]; done uuid[]; due uuid;
begin
  for s in select x.tenant_id, x.name, x.keep_content_days from pgmail.stream x where x.keep_content_days is not null order by 1, 2 loop
    due := pgmail.uuid_floor(pgmail.now() - s.keep_content_days * interval '24 hours');
    insert into pgmail.content_mark (tenant_id, stream, done_to) values (s.tenant_id, s.name, '00000000-0000-0000-0000-000000000000')
      on conflict do nothing;
    -- Two leaders for a moment: one does it.
    select c.done_to into mark from pgmail.content_mark c where c.tenant_id = s.tenant_id and c.stream = s.name for update skip locked;
    continue when not found;
    select array_agg(x.id order by x.id), array_agg(x.id) filter (where x.stream = s.name) into seen, mine from (
      select m.id, m.stream from pgmail.message m where m.tenant_id = s.tenant_id and m.id > mark and m.id < due order by m.id limit p_most) x;
    if seen is not null then
      done := pgmail.empty_messages(s.tenant_id, coalesce(mine, '{}'));
      insert into pgmail.content_left (tenant_id, message_id, stream)
      select s.tenant_id, u.id, s.name from unnest(mine) u(id) where u.id <> all (done) on conflict do nothing;
      update pgmail.content_mark c set done_to = seen[cardinality(seen)] where c.tenant_id = s.tenant_id and c.stream = s.name;
      return cardinality(seen);
    end if;
    -- What waited when its turn came; and what the fleet's own retention took meanwhile.
    select array_agg(x.message_id) into mine from (
      select l.message_id from pgmail.content_left l where l.tenant_id = s.tenant_id and l.stream = s.name
        and not exists (
          select from pgmail.recipient r
          where r.tenant_id = s.tenant_id and r.message_id = l.message_id
            and (exists (select from pgmail.queue q where q.tenant_id = s.tenant_id and q.id = r.id)
                 or exists (select from pgmail.dead_letter d where d.tenant_id = s.tenant_id and d.recipient_id = r.id)))
      order by l.message_id limit p_most) x;
    if mine is not null then
      done := pgmail.empty_messages(s.tenant_id, mine);
      delete from pgmail.content_left l where l.tenant_id = s.tenant_id and l.message_id = any (done);
      return cardinality(mine);
    end if;
  end loop;
  return 0;
end
$$;

-- Sets how many days settled mail is kept; null is for ever. What is older goes within the hour.
create or replace function pgmail.set_retention(p_content_days integer, p_record_days integer, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if p_content_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/content_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/record_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days is not null and coalesce(p_content_days > p_record_days, true) then
    perform pgmail.refuse('invalid_retention', '/content_days', 'content cannot be kept for longer than the record of it');
  end if;
  update pgmail.retention set content_days = p_content_days, record_days = p_record_days, changed_at = pgmail.now(), changed_by = pgmail.actor();
  perform pgmail.record_act(null, 'retention.set',
    format('content %s, record %s', coalesce(p_content_days || ' days', 'for ever'), coalesce(p_record_days || ' days', 'for ever')), p_reason);
end
$$;

-- What is set, and where it stands: overdue partitions are those that should have gone a day ago; kept are rows in the
-- default partitions that their time has passed (a thousand a table at most).
create or replace function pgmail.retention_state(
  out content_days integer, out record_days integer, out changed_at timestamptz, out changed_by text, out oldest_content timestamptz,
  out oldest_record timestamptz, out overdue integer, out kept bigint
)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare base text; days integer; n bigint;
begin
  select r.content_days, r.record_days, r.changed_at, r.changed_by into content_days, record_days, changed_at, changed_by from pgmail.retention r;
  select min(p.since) into oldest_content from pgmail.weekly_partitions('message') p;
  select min(p.since) into oldest_record from pgmail.weekly_partitions('recipient') p;
  overdue := 0; kept := 0;
  foreach base in array pgmail.partitioned_tables() loop
    days := pgmail.kept_days(base);
    continue when days is null;
    overdue := overdue + (select count(*) from pgmail.weekly_partitions(base) p where p.until + (days + 1) * interval '24 hours' <= pgmail.now());
    execute format('select count(*) from (select from pgmail.%I where %I < %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - days * interval '24 hours')) into n;
    kept := kept + n;
  end loop;
end
$$;

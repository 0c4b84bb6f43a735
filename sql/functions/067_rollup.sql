-- Roll-ups of what happened: the feed of events read once, behind a cursor, and added up by minute, hour and day. Called
-- by one process of the fleet every few seconds; a second one at the same moment does nothing. Of each event one look at
-- its message is taken, and nothing is asked of the queue.

-- A reply as a cause: one space, and without what differs from mail to mail or tells who it was for. Addresses, and the
-- local part of p_address where it stands as a word (but for names that are no person's), become <address> and <name>; what
-- holds a digit, other than an enhanced code, becomes #.
create or replace function pgmail.cause_text(p_text text, p_address text default null) returns text
language sql immutable parallel safe set search_path = pgmail, pg_temp
as $$
  select left(btrim(regexp_replace(regexp_replace(regexp_replace(
    case when y.name is not null and strpos(lower(x.t), y.name) > 0
         then regexp_replace(x.t, '\m' || regexp_replace(y.name, '([^a-z0-9])', '\\\1', 'g') || '\M', '<name>', 'gi') else x.t end,
    '(?<![[:alnum:]_.:=+/-])(?![245]\.\d{1,3}\.\d{1,3}(?![[:alnum:]_]))[[:alnum:]_.:=+/-]*\d[[:alnum:]_.:=+/-]*', '#', 'g'),
    '#([ ,;]+#)+', '#', 'g'),
    '\s+', ' ', 'g')), 200)
  from (select regexp_replace(left(p_text, 600), '<?[^][\s<>"''(){},;:]+@[^][\s<>"''(){},;]+>?', '<address>', 'g') as t) x,
    (select case when length(n) >= 3 and n <> all ('{account,address,admin,contact,domain,hello,host,info,inbox,mail,mailbox,message,name,newsletter,office,postmaster,recipient,sales,sender,server,service,shop,support,team,test,user,webmaster}')
                 then n end as name from (select lower(split_part(p_address, '@', 1)) as n) z) y
$$;

-- Three emails of a list, the newest first, each once: one that was deferred often is one example. Of a long list the first hundred count.
create or replace function pgmail.newest_three(p_ids uuid[]) returns uuid[]
language sql immutable parallel safe set search_path = pgmail, pg_temp
as $$
  select array(select x.id from unnest(p_ids[1:100]) with ordinality x(id, place) group by x.id order by min(x.place) limit 3)
$$;

-- How long it took, as a bucket (of immutable parts, so that it is inlined): b is from 2^((b-1)/4) ms up to 2^(b/4) ms; 0 is up to one, 160 all above 11 days.
create or replace function pgmail.took_bucket(p_since timestamptz, p_at timestamptz) returns smallint
language sql immutable parallel safe
as $$
  select case when p_at - p_since <= interval '1 millisecond' then 0
    else least(ceil(4 * ln(date_part('epoch', p_at - p_since) * 1000) / ln(2.0::float8)), 160) end::smallint
$$;

-- What a report counts an event as; null: as nothing. What came too late to settle its mail is not what became of it.
create or replace function pgmail.figure_of(p_type text, p_detail text) returns text
language sql immutable parallel safe
as $$
  select case when p_type = 'email.sent' and p_detail not like 'fenced out, %' then 'sent'
    when p_detail like 'fenced out, %' and p_type <> 'email.in_doubt' then null
    when p_type = 'email.failed' then 'dead' else substr(p_type, 7) end
$$;

-- Reads on: p_most events at most, adds them to the roll-ups and moves the cursor, in one transaction. Answers how many it
-- read; whether there is more to read now; null where another process is at it, or the index of the feed is not whole yet.
--   A day takes p_keys keys of a tenant and dimension, an hour p_texts texts of a tenant: the rest stands under (other).
--   Minutes are for charts of streams and alarms about sites and relays; of the latter two they hold no latencies.
-- New is what the cursor's snapshot could not see and the later one can, in the order of (xid, id): what was on its way
-- then, transaction by transaction, and all from its xmax on. So nothing waits for a transaction that idles elsewhere, and
-- a transaction of a million rows is taken in steps. Ids lie below `since` only in a database that another cluster wrote.
-- Without nested loops, but for look-ups by key (lateral, limit 1): the planner takes what is added up here for a row or two.
create or replace function pgmail.rollup_v1(p_most integer default 20000, p_keys integer default 500, p_texts integer default 200)
returns table (events integer, more boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
  set enable_seqscan = off set enable_bitmapscan = off set enable_nestloop = off set enable_sort = off set work_mem = '32MB' set max_parallel_workers_per_gather = 0 set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  c pgmail.insight_cursor; from_xid xid8; from_id uuid; read_ integer; last_xid xid8; last_id uuid; now_ timestamptz := pgmail.now();
  nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  wrong_ constant text[] := '{email.bounced,email.deferred,email.failed,email.in_doubt}';
  counted constant text[] := wrong_ || '{email.sent,email.delayed,email.suppressed,email.expired,email.cancelled,email.held}'::text[];
begin
  if (select i.indisvalid from pg_index i where i.indexrelid = to_regclass('pgmail.event_feed')) is not true then return; end if;
  select x.* into c from pgmail.insight_cursor x for update skip locked;
  if not found then return; end if;
  if pg_snapshot_xmax(c.seen) > pg_snapshot_xmax(pg_current_snapshot()) then
    c.seen := pg_current_snapshot(); c.upto := null; c.since := pgmail.uuid_floor(clock_timestamp());
  end if;
  if c.upto is null then
    c.upto := pg_current_snapshot(); c.upto_at := now_; c.at_xid := '0'; c.at_id := nobody;
  end if;
  -- One lower bound: of two an index may begin at the wider one, and walk over all events that are kept.
  from_xid := greatest(c.at_xid, pg_snapshot_xmax(c.seen)); from_id := case when c.at_xid >= from_xid then c.at_id else nobody end;

  with told as materialized (   -- all that is new, that which no report counts too, without a kind: it moves the cursor
    select e.xid, e.id, e.tenant_id, e.message_id, e.at, coalesce(m.stream, '(unknown)') as stream, coalesce(e.site, case when e.type = any (counted) then (
        select x.site from pgmail.recipient x where x.tenant_id = e.tenant_id and x.id = e.recipient_id limit 1) end, '(unknown)') as site,
      e.relay, m.template || coalesce('@' || m.template_version, '') as template, m.tags,
      case when e.type = any (counted) and e.id >= c.since then pgmail.figure_of(e.type, e.detail) end as kind,
      case when e.type = 'email.in_doubt' then 'in_doubt' when e.type = any (wrong_) then left(coalesce(nullif(split_part(e.detail, ': ', 1), ''), 'unknown'), 100) end as reason,
      case when e.type = 'email.sent' then pgmail.took_bucket(coalesce(m.scheduled_at, m.created_at), e.at) end as bucket,
      e.code, e.enhanced, case when e.type = any (wrong_) then coalesce(nullif(e.reply, ''), e.detail, '') end as said,
      case when e.type = any (wrong_) then (
        select x.address from pgmail.recipient x where x.tenant_id = e.tenant_id and x.id = e.recipient_id limit 1) end as address
    from (
      (select n.* from (select x from pg_snapshot_xip(c.seen) x where x >= c.at_xid order by x offset 0) open_(xid)
       cross join lateral (
         select y.tenant_id, y.recipient_id, y.id, y.message_id, y.at, y.xid, y.type, y.code, y.enhanced, y.reply, y.site, y.relay, y.detail
         from pgmail.event y where y.xid = open_.xid and y.id > case when open_.xid = c.at_xid then c.at_id else nobody end
         order by y.id limit p_most) n
       where pg_visible_in_snapshot(n.xid, c.upto))
      union all
      (select y.tenant_id, y.recipient_id, y.id, y.message_id, y.at, y.xid, y.type, y.code, y.enhanced, y.reply, y.site, y.relay, y.detail
       from pgmail.event y
       where (y.xid, y.id) > (from_xid, from_id) and y.xid < pg_snapshot_xmax(c.upto)
         and pg_visible_in_snapshot(y.xid, c.upto)
       order by y.xid, y.id limit p_most)
      limit p_most) e
    left join lateral (
      select x.stream, x.template, x.template_version, x.tags, x.scheduled_at, x.created_at from pgmail.message x
      where e.type = any (counted) and x.tenant_id = e.tenant_id and x.id = e.message_id limit 1) m on true
  ), facts as materialized (   -- many mails are alike: added up before they are taken apart by dimension
    select t.tenant_id, date_bin('1 minute', t.at, '2000-01-01Z') as at, t.kind, t.stream, t.site, t.relay, t.template, t.tags, t.reason, t.bucket,
      count(*) as n
    from told t where t.kind is not null
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
  ), lines as materialized (
    select f.tenant_id, d.dim, left(d.key, 200) as key, f.at, k.kind, k.bucket, sum(f.n) as n
    from facts f
    left join pgmail.reply_reason y on y.name = f.reason
    cross join lateral (
      select v.* from (values ('stream', f.stream), ('site', f.site), ('relay', f.relay), ('template', f.template),
        ('reason', case when f.kind in ('bounced', 'deferred') then coalesce(y.class, 'other') || '/' || f.reason end)) v(dim, key)
      where v.key is not null
      union all
      select 'tag', t.key || '=' || t.value from jsonb_each_text(f.tags) t) d
    cross join lateral (
      select case f.kind when 'bounced' then 'bounced_' || coalesce(y.class, 'other') else f.kind end as kind, 0::smallint as bucket
      union all select 'took', f.bucket where f.kind = 'sent' and f.bucket is not null) k
    group by 1, 2, 3, 4, 5, 6
  ), fresh_keys as materialized (
    select k.*, row_number() over (partition by k.tenant_id, k.dim, k.day order by k.key) as place
    from (select distinct l.tenant_id, l.dim, date_trunc('day', l.at, 'UTC') as day, l.key from lines l) k
    left join lateral (
      select true as there from pgmail.rollup r
      where r.tenant_id = k.tenant_id and r.dim = k.dim and r.grain = 'day' and r.at = k.day and r.key = k.key limit 1) known on true
    where known.there is null
  ), known_keys as materialized (
    select f.tenant_id, f.dim, f.day, (
      select count(distinct r.key) from pgmail.rollup r
      where r.tenant_id = f.tenant_id and r.dim = f.dim and r.grain = 'day' and r.at = f.day and r.key <> '(other)') as n
    from (select distinct x.tenant_id, x.dim, x.day from fresh_keys x) f
  ), named as (
    select l.tenant_id, l.dim, l.at, l.kind, l.bucket, l.n, case when f.place + w.n > p_keys then '(other)' else l.key end as key
    from lines l
    left join fresh_keys f on f.tenant_id = l.tenant_id and f.dim = l.dim and f.key = l.key and f.day = date_trunc('day', l.at, 'UTC')
    left join known_keys w on w.tenant_id = f.tenant_id and w.dim = f.dim and w.day = f.day
  ), rolled as (
    insert into pgmail.rollup as r (tenant_id, dim, grain, at, key, kind, bucket, n)
    select x.tenant_id, x.dim, g.grain, date_bin(g.width, x.at, '2000-01-01Z') as begins, x.key, x.kind, x.bucket, sum(x.n)
    from named x cross join (values ('minute', interval '1 minute'), ('quarter', interval '15 minutes'), ('hour', interval '1 hour'), ('day', interval '1 day')) g(grain, width)
    where g.grain in ('hour', 'day') or x.dim = 'stream' or (g.grain = 'minute' and x.dim in ('site', 'relay') and x.kind <> 'took')
    group by 1, 2, 3, 4, 5, 6, 7
    on conflict (tenant_id, dim, grain, at, key, kind, bucket) do update set n = r.n + excluded.n
  ), wrong as materialized (
    select t.*, coalesce(y.class, 'other') as class,
      -- of whom it speaks by name: the others' texts are alike
      case when strpos(lower(t.said), lower(split_part(t.address, '@', 1))) > 0 then t.address else '' end as named
    from told t left join pgmail.reply_reason y on y.name = t.reason where t.said is not null and t.kind is not null
  ), texts as materialized (   -- an expensive look at each text, so a bound to their number
    select x.said, x.named, case when x.place <= p_texts then pgmail.cause_text(x.said, x.named) else '(other)' end as text
    from (select w.said, w.named, row_number() over (order by count(*) desc, w.said, w.named) as place from wrong w group by 1, 2) x
  ), caused as materialized (
    select w.tenant_id, date_trunc('hour', w.at, 'UTC') as at, w.kind, w.class, w.reason, coalesce(w.code, 0) as code,
      coalesce(w.enhanced, '') as enhanced, x.text, count(*) as n, max(w.at) as last_at,
      pgmail.newest_three(array_agg(w.message_id order by w.at desc, w.message_id desc)) as examples
    from wrong w join texts x on x.said = w.said and x.named = w.named
    group by 1, 2, 3, 4, 5, 6, 7, 8
  ), fresh_causes as materialized (
    select k.*, row_number() over (partition by k.tenant_id, k.at order by k.n desc, k.text) as place from caused k
    left join lateral (
      select true as there from pgmail.cause y where y.tenant_id = k.tenant_id and y.at = k.at and y.kind = k.kind and y.class = k.class
        and y.reason = k.reason and y.code = k.code and y.enhanced = k.enhanced and y.text = k.text limit 1) known on true
    where k.text <> '(other)' and known.there is null
  ), known_causes as materialized (
    select f.tenant_id, f.at, (select count(*) from pgmail.cause y where y.tenant_id = f.tenant_id and y.at = f.at and y.text <> '(other)') as n
    from (select distinct x.tenant_id, x.at from fresh_causes x) f
  ), kept as (
    insert into pgmail.cause as y (tenant_id, at, kind, class, reason, code, enhanced, text, n, last_at, examples)
    select z.tenant_id, z.at, z.kind, z.class, case when z.full_ then '(other)' else z.reason end, case when z.full_ then 0 else z.code end,
      case when z.full_ then '' else z.enhanced end, case when z.full_ then '(other)' else z.text end, sum(z.n), max(z.last_at),
      pgmail.newest_three(array_agg(z.examples[1] order by z.last_at desc))
    from (
      select k.*, f.place + w.n > p_texts is true as full_ from caused k
      left join fresh_causes f on f.tenant_id = k.tenant_id and f.at = k.at and f.kind = k.kind and f.class = k.class and f.reason = k.reason
        and f.code = k.code and f.enhanced = k.enhanced and f.text = k.text
      left join known_causes w on w.tenant_id = f.tenant_id and w.at = f.at) z
    where z.full_
    group by 1, 2, 3, 4, 5, 6, 7, 8
    union all
    select k.tenant_id, k.at, k.kind, k.class, k.reason, k.code, k.enhanced, k.text, k.n, k.last_at, k.examples from caused k
    left join fresh_causes f on f.tenant_id = k.tenant_id and f.at = k.at and f.kind = k.kind and f.class = k.class and f.reason = k.reason
      and f.code = k.code and f.enhanced = k.enhanced and f.text = k.text
    left join known_causes w on w.tenant_id = f.tenant_id and w.at = f.at
    where f.place + w.n > p_texts is not true
    on conflict (tenant_id, at, kind, class, reason, code, enhanced, text) do update
      set n = y.n + excluded.n, last_at = greatest(y.last_at, excluded.last_at), examples = pgmail.newest_three(excluded.examples || y.examples)
  )
  select n.n, l.xid, l.id into read_, last_xid, last_id
  from (select count(*) as n from told) n left join (select x.xid, x.id from told x order by x.xid desc, x.id desc limit 1) l on true;

  more := read_ = p_most;
  update pgmail.insight_cursor x set since = c.since, seen = case when more then c.seen else c.upto end,
    upto = case when more then c.upto end, at_xid = case when more then last_xid end, at_id = case when more then last_id end,
    upto_at = c.upto_at, rolled_at = case when more then x.rolled_at else c.upto_at end;
  events := read_;
  return next;
end
$$;

-- Lets go of what is past its time: minutes and quarters after 48 hours, hours and causes after 35 days, days after two years, the pulse
-- after ten minutes. p_most rows of each table a call; answers how many.
create or replace function pgmail.trim_rollups_v1(p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer; m integer; now_ timestamptz := pgmail.now();
begin
  delete from pgmail.rollup r using (
    select x.* from pgmail.tenant t cross join unnest('{stream,site,relay,tag,template,reason}'::text[]) d(dim)
    cross join (values ('minute', interval '48 hours'), ('quarter', interval '48 hours'), ('hour', interval '35 days'), ('day', interval '731 days')) g(grain, kept)
    cross join lateral (
      select y.tenant_id, y.dim, y.grain, y.at, y.key, y.kind, y.bucket from pgmail.rollup y
      where y.tenant_id = t.id and y.dim = d.dim and y.grain = g.grain and y.at < now_ - g.kept order by y.at limit p_most) x
    limit p_most) old
  where r.tenant_id = old.tenant_id and r.dim = old.dim and r.grain = old.grain and r.at = old.at and r.key = old.key
    and r.kind = old.kind and r.bucket = old.bucket;
  get diagnostics n = row_count;
  delete from pgmail.cause c using (
    select x.* from pgmail.tenant t cross join lateral (
      select y.tenant_id, y.at, y.kind, y.class, y.reason, y.code, y.enhanced, y.text from pgmail.cause y
      where y.tenant_id = t.id and y.at < now_ - interval '35 days' order by y.at limit p_most) x
    limit p_most) old
  where c.tenant_id = old.tenant_id and c.at = old.at and c.kind = old.kind and c.class = old.class and c.reason = old.reason
    and c.code = old.code and c.enhanced = old.enhanced and c.text = old.text;
  get diagnostics m = row_count; n := n + m;
  delete from pgmail.pulse p using (
    select x.* from pgmail.tenant t cross join lateral (
      select y.tenant_id, y.at, y.stream from pgmail.pulse y
      where y.tenant_id = t.id and y.at < now_ - interval '10 minutes' order by y.at limit p_most) x
    limit p_most) old
  where p.tenant_id = old.tenant_id and p.at = old.at and p.stream = old.stream;
  get diagnostics m = row_count;
  return n + m;
end
$$;

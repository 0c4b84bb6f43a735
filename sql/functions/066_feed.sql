-- What happened, in an order that everybody sees alike and without gaps, though transactions commit in any order. Where a
-- reader is in it is two snapshots (pg_snapshot) and a position: what is new is what p_now sees and p_seen did not; once all
-- of it is told, p_now is the next p_seen. A transaction that is open elsewhere is in both, costs nothing and delays nobody:
-- what it brings is new on the day it commits.
--
-- The order is (xid, queued before events, id): of one transaction together, and inside it as it was written. email.queued
-- and email.scheduled are no event rows: the message with its recipients says them, each under its recipient's id.
-- Rows with an xid of another cluster (a restored dump) are new as little as rows without one.

-- Which database this is, as far as cursors care: another history, or a copy in another cluster, has other xids. So may a
-- standby that was promoted: the last transactions of the lost primary are not there, and their xids are given out anew. Whether
-- any were lost cannot be seen from here, so another timeline is another history even if none were. A backup
-- that was started without a recovery stays on its timeline: there the fence tells, once a process missed its marks.
create or replace function pgmail.feed_history_v1() returns uuid
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare place jsonb := pgmail.place_v1();
begin
  return md5(concat_ws('/', (select h.id from pgmail.history h order by h.generation desc limit 1),
    (select extract(epoch from f.noticed_at) from pgmail.fence f), place->>'system',
    (select d.oid from pg_database d where d.datname = current_database()), place->>'timeline'))::uuid;
end
$$;

-- What a reader asks each time: which database this is, what it shows now, for how many days events are kept (null: for
-- ever) and for how many emails, which tell that they were queued, and whether the indexes of the feed are whole (a full
-- database makes them by partition, after the upgrade).
create or replace function pgmail.feed_now_v1(
  out history uuid, out now_ pg_snapshot, out kept_days integer, out email_days integer, out whole boolean)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select pgmail.feed_history_v1(), pg_current_snapshot(), pgmail.kept_days('event'), pgmail.kept_days('message'),
    (select bool_and(i.indisvalid) from pg_index i where i.indexrelid in ('pgmail.event_feed'::regclass, 'pgmail.message_feed'::regclass))
$$;

-- Stretches of xids to look through, in order, [low, high): in them lies all that p_now sees and p_seen did not. What finished
-- long after it began, while others came and went, is looked for by itself rather than among all that came since.
create or replace function pgmail.feed_stretches(p_seen pg_snapshot, p_now pg_snapshot, p_from xid8)
returns table (low xid8, high xid8)
language sql immutable set search_path = pgmail, pg_temp
as $$
  with late as (
    select x, x::text::bigint as n from pg_snapshot_xip(p_seen) x
    where pg_visible_in_snapshot(x, p_now) and (p_from is null or x >= p_from)
  ), near as (
    select coalesce(min(n), pg_snapshot_xmax(p_seen)::text::bigint) as n from late where n > pg_snapshot_xmax(p_seen)::text::bigint - 2000
  )
  select x, (n + 1)::text::xid8 from late where n < (select near.n from near)
  union all
  select near.n::text::xid8, pg_snapshot_xmax(p_now) from near where near.n < pg_snapshot_xmax(p_now)::text::bigint
  order by 1
$$;

-- What p_now sees and p_seen did not, after a position, of these tenants (null: of all). A position is xid, place and id of the
-- row told last; place is the message's id of what tells that it was queued, null of an event; all null: from the beginning.
-- Looks at p_most of all tenants' facts at most, so that every step is short, however much one transaction brought and
-- however little of it concerns who asks. Where it ended before the end, a last row without a type says up to where it looked.
create or replace function pgmail.feed_v1(
  p_seen pg_snapshot, p_now pg_snapshot, p_xid xid8, p_place uuid, p_id uuid, p_tenants integer[], p_most integer default 1000
) returns table (
  xid xid8, place uuid, id uuid, type text, tenant_id integer, at timestamptz, email_id uuid, recipient_id uuid, address text,
  stream text, tags jsonb, template text, template_version integer, email_created_at timestamptz, test boolean,
  attempt smallint, code smallint, enhanced text, reply text, class text, reason text, phase text, site text, relay text,
  remote_host text, tls text, ms integer, worker bigint, detail text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  none constant uuid := '00000000-0000-0000-0000-000000000000'; all_ constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  s record; many integer := 0; more boolean := false;
  x xid8; after_event uuid; from_message uuid;
  xids xid8[] := '{}'; places uuid[] := '{}'; ids uuid[] := '{}'; owners uuid[] := '{}'; emails uuid[] := '{}'; tenants integer[] := '{}';
  low_owner uuid; high_owner uuid; low_email uuid; high_email uuid; low_person uuid; high_person uuid;
begin
  for s in select f.low, f.high from pgmail.feed_stretches(p_seen, p_now, p_xid) f loop
    continue when s.high <= p_xid;
    -- In the transaction of the position only what comes after it; in others all.
    if s.low <= p_xid then
      x := p_xid; after_event := case when p_place is null then p_id else none end; from_message := coalesce(p_place, all_);
    else
      x := s.low; after_event := none; from_message := none;
    end if;
    with found as (
      (select e.xid, null::uuid as place, e.id, e.recipient_id as owner, e.message_id as email, e.tenant_id from pgmail.event e
       where (e.xid, e.id) > (x, after_event) and e.xid < s.high
         and pg_visible_in_snapshot(e.xid, p_now) and not pg_visible_in_snapshot(e.xid, p_seen)
       order by e.xid, e.id limit p_most - many)
      union all
      (select m.xid, m.id, m.id, null, m.id, m.tenant_id from pgmail.message m
       where (m.xid, m.id) >= (x, from_message) and m.xid < s.high
         and pg_visible_in_snapshot(m.xid, p_now) and not pg_visible_in_snapshot(m.xid, p_seen)
       order by m.xid, m.id limit p_most - many)
    ), cut as (
      select * from found order by xid, place is null, id limit p_most - many
    )
    select xids || coalesce(array_agg(c.xid order by c.xid, c.place is null, c.id), '{}'),
      places || coalesce(array_agg(c.place order by c.xid, c.place is null, c.id), '{}'),
      ids || coalesce(array_agg(c.id order by c.xid, c.place is null, c.id), '{}'),
      owners || coalesce(array_agg(c.owner order by c.xid, c.place is null, c.id), '{}'),
      emails || coalesce(array_agg(c.email order by c.xid, c.place is null, c.id), '{}'),
      tenants || coalesce(array_agg(c.tenant_id order by c.xid, c.place is null, c.id), '{}')
    into xids, places, ids, owners, emails, tenants from cut c;
    many := cardinality(ids);
    more := many >= p_most;
    exit when more;
  end loop;
  if many = 0 then return; end if;

  -- Bounds leave of each table the one or two partitions that hold what is looked for.
  select (array_agg(o order by o))[1], (array_agg(o order by o desc))[1] into low_owner, high_owner from unnest(owners) o where o is not null;
  select (array_agg(o order by o))[1], (array_agg(o order by o desc))[1] into low_email, high_email from unnest(emails) o;
  -- The recipients of an email were made within its hour.
  select pgmail.uuid_floor(pgmail.uuid_time((array_agg(o order by o))[1]) - interval '1 hour'),
    pgmail.uuid_floor(pgmail.uuid_time((array_agg(o order by o desc))[1]) + interval '1 hour')
    into low_person, high_person from unnest(places) o where o is not null;
  return query
  with mine as materialized (
    select u.xid, u.place, u.id, u.owner, u.email, u.tenant_id
    from unnest(xids, places, ids, owners, emails, tenants) u(xid, place, id, owner, email, tenant_id)
    where p_tenants is null or u.tenant_id = any (p_tenants)
  ), happened as (
    select u.xid, u.place, u.id, e.type, u.tenant_id, e.at, u.email, u.owner, r.address, m.stream, m.tags, m.template,
      m.template_version, m.created_at, m.test, e.attempt, e.code, e.enhanced, e.reply, k.class, k.name, e.phase,
      coalesce(e.site, r.site), e.relay, e.remote_host, e.tls, e.ms, e.worker, nullif(e.detail, '') as detail
    from mine u
    cross join lateral (
      select y.* from pgmail.event y
      where y.tenant_id = u.tenant_id and y.recipient_id = u.owner and y.id = u.id and y.recipient_id >= low_owner and y.recipient_id <= high_owner
      limit 1) e
    left join lateral (
      select y.stream, y.tags, y.template, y.template_version, y.created_at, y.test from pgmail.message y
      where y.tenant_id = u.tenant_id and y.id = u.email and y.id >= low_email and y.id <= high_email limit 1) m on true
    left join lateral (
      select y.address, y.site from pgmail.recipient y
      where y.tenant_id = u.tenant_id and y.id = u.owner and y.id >= low_owner and y.id <= high_owner limit 1) r on true
    left join pgmail.reply_reason k on k.name = split_part(e.detail, ':', 1) and e.code >= 400
    where u.place is null
  ), queued as (
    select u.xid, u.place, r.id, case when m.scheduled_at is null then 'email.queued' else 'email.scheduled' end, u.tenant_id,
      m.created_at as at, m.id as message_id, r.id as recipient_id, r.address, m.stream, m.tags, m.template, m.template_version,
      m.created_at, m.test, null::smallint, null::smallint, null::text, null::text, null::text, null::text, null::text,
      r.site, null::text, null::text, null::text, null::integer, null::bigint,
      nullif(concat_ws(', ', case when m.test then 'a test, for the sandbox only' end, 'by ' || m.created_by,
        'for ' || to_char(m.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), '')
    from mine u
    cross join lateral (
      select y.id, y.scheduled_at, y.created_at, y.created_by, y.stream, y.tags, y.template, y.template_version, y.test
      from pgmail.message y where y.tenant_id = u.tenant_id and y.id = u.place and y.id >= low_email and y.id <= high_email limit 1) m
    cross join lateral (
      select y.id, y.address, y.site from pgmail.recipient y
      where y.tenant_id = u.tenant_id and y.message_id = u.place and y.message_id between u.place and u.place   -- 070_state tells why
        and y.id >= low_person and y.id < high_person
        and (p_place is null or u.place <> p_place or u.xid <> p_xid or y.id > p_id)
      offset 0) r
    where u.place is not null
  )
  select * from (select * from happened union all select * from queued) t
  order by t.xid, t.place is null, t.place, t.id;

  if more then
    xid := xids[many]; place := places[many]; id := coalesce(case when places[many] is not null then all_ end, ids[many]);
    type := null; tenant_id := null; at := null; email_id := null; recipient_id := null; address := null; stream := null;
    return next;
  end if;
end
$$;

-- The snapshot from which on all that happened at p_at or later is new: from about ten minutes before, since xids are given out
-- when a transaction first writes and not when it says what happened. Found by halves, along the order of the feed. What has
-- not committed yet is new, however old its xid: an idle transaction brings back nothing but itself.
create or replace function pgmail.feed_since_v1(p_at timestamptz) returns pg_snapshot
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare
  low bigint; high bigint; middle bigint; next_ bigint; at_ timestamptz; wanted timestamptz := p_at - interval '10 minutes';
  seen pg_snapshot := pg_current_snapshot(); running text; first text;
begin
  high := pg_snapshot_xmax(seen)::text::bigint;
  select least((select e.xid from pgmail.event e order by e.xid, e.id limit 1)::text::bigint,
               (select m.xid from pgmail.message m where m.xid is not null order by m.xid, m.id limit 1)::text::bigint, high) into low;
  -- All below low is before the moment, all from high on is not.
  while low < high loop
    middle := low + (high - low) / 2;
    select u.xid::text::bigint, u.at into next_, at_ from (
      (select e.xid, e.at from pgmail.event e where e.xid >= middle::text::xid8 order by e.xid, e.id limit 1)
      union all
      (select m.xid, m.created_at from pgmail.message m where m.xid >= middle::text::xid8 order by m.xid, m.id limit 1)) u
      order by u.xid limit 1;
    if at_ is not null and next_ < high and at_ < wanted then low := next_ + 1; else high := middle; end if;
  end loop;
  select string_agg(x::text, ',' order by x), min(x)::text into running, first from pg_snapshot_xip(seen) x where x < high::text::xid8;
  return format('%s:%s:%s', coalesce(first, high::text), high, running)::pg_snapshot;
end
$$;

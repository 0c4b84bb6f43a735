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

-- Finds out whether a dump was read in here, and then which rows it brought: rows that are seen though their transactions are
-- still to come. Once these numbers come up here, nobody is told of such rows under their ids again (feed_v1). With each
-- mark of a process, so before anybody is told of anything; one small read where nothing is new.
create or replace function pgmail.feed_settle_in() returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare ours boolean; next_ xid8; newest timestamptz;
begin
  select h.written is not distinct from h.xmin into ours from pgmail.feed_home h;
  if ours then return; end if;
  if (select bool_and(i.indisvalid) from pg_index i where i.indexrelid in ('pgmail.event_feed'::regclass, 'pgmail.message_feed'::regclass)) is not true then
    return;   -- by the next mark, then
  end if;
  select h.written is not distinct from h.xmin into ours from pgmail.feed_home h for update;
  if ours then return; end if;
  -- In one statement, whose snapshot says both what is still to come and what is seen. The last transactions have the newest ids, but for
  -- long ones: a minute for those, and for clocks.
  select n.x, max(r.at) into next_, newest from (select pg_snapshot_xmax(pg_current_snapshot()) as x offset 0) n cross join lateral (
    (select pgmail.uuid_time(e.id) as at from pgmail.event e where e.xid >= n.x order by e.xid desc, e.id desc limit 1000)
    union all
    (select pgmail.uuid_time(m.id) from pgmail.message m where m.xid >= n.x order by m.xid desc, m.id desc limit 1000)) r
  group by n.x;
  if newest is not null then
    update pgmail.feed_home set from_xid = next_, below = pgmail.uuid_floor(least(newest + interval '1 minute', clock_timestamp()));
    perform pgmail.record_act(null, 'feed.settle_in', null,
      format('a dump was restored: what happened up to %s is told to nobody anew', pgmail.iso_time(newest)));
  else
    update pgmail.feed_home set from_xid = null, below = null;
  end if;
  -- In a second statement, which finds it in the row: behind a savepoint it is not the transaction's own.
  update pgmail.feed_home set written = xmin;
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
-- Looks at about p_most of all tenants' facts at most, an email that is told being one for each recipient, so that every step is
-- short, however much one transaction brought and however little of it concerns who asks. Where it ended before the end, a last
-- row without a type says up to where it looked.
--
-- p_types and p_emails stand beside p_tenants and say what is wanted of each: all (both null), a type, or what concerns an
-- email, by its id or a recipient's; of one tenant any of what stands there. What nobody wants is looked at and passed over,
-- which costs a tenth of telling it. Of an email each recipient's are told, whichever id was given, and where nobody wants any
-- event but email.queued and email.scheduled, or any but others, the other table is not looked at.
create or replace function pgmail.feed_v1(
  p_seen pg_snapshot, p_now pg_snapshot, p_xid xid8, p_place uuid, p_id uuid, p_tenants integer[], p_most integer default 1000,
  p_types text[] default null, p_emails uuid[] default null
) returns table (
  xid xid8, place uuid, id uuid, type text, tenant_id integer, at timestamptz, email_id uuid, recipient_id uuid, address text,
  stream text, tags jsonb, template text, template_version integer, email_created_at timestamptz, test boolean,
  attempt smallint, code smallint, enhanced text, reply text, class text, reason text, phase text, site text, relay text,
  remote_host text, tls text, ms integer, worker bigint, detail text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
  set plan_cache_mode = force_generic_plan set enable_nestloop = off
as $$
#variable_conflict use_column
declare
  none constant uuid := '00000000-0000-0000-0000-000000000000'; all_ constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  s record; q record; h record; many integer := 0; room integer; more boolean := false; any_event boolean := true; any_queued boolean := true;
  x xid8; after_event uuid; from_message uuid; upto xid8; origins uuid[];
  events pgmail.event[] := '{}'; xids xid8[] := '{}'; places uuid[] := '{}'; tenants integer[] := '{}';
  foreign_xid xid8; foreign_id uuid;   -- from this on and below that: of another cluster
  low_owner uuid; high_owner uuid; low_email uuid; high_email uuid; low_person uuid; high_person uuid;
begin
  select coalesce(h.from_xid, '0'), coalesce(h.below, none) into foreign_xid, foreign_id from pgmail.feed_home h;
  if p_types is not null then
    select bool_or(w.type is null or w.type not in ('email.queued', 'email.scheduled')), bool_or(w.type is null or w.type in ('email.queued', 'email.scheduled'))
      into any_event, any_queued from unnest(p_types) w(type);
  end if;
  if p_emails is not null then
    -- Which emails recipients are of: what tells that it was queued has the email's id alone.
    select array_agg(r.message_id) into origins from unnest(p_tenants, p_emails) w(tenant, email)
    cross join lateral (select y.message_id from pgmail.recipient y where y.tenant_id = w.tenant and y.id = w.email limit 1) r;
    origins := origins || p_emails;
  end if;
  for s in select f.low, f.high from pgmail.feed_stretches(p_seen, p_now, p_xid) f loop
    continue when s.high <= p_xid;
    -- In the transaction of the position only what comes after it; in others all.
    if s.low <= p_xid then
      x := p_xid; after_event := case when p_place is null then p_id else none end; from_message := coalesce(p_place, all_);
    else
      x := s.low; after_event := none; from_message := none;
    end if;
    room := greatest(p_most - many, 1); upto := s.high;
    if any_queued then
      with found as (
        select m.xid, m.id, m.tenant_id, m.recipients, case when m.scheduled_at is null then 'email.queued' else 'email.scheduled' end as type
        from pgmail.message m
        where (m.xid, m.id) >= (x, from_message) and m.xid < s.high and (m.xid = p_xid and m.id = p_place and p_id = all_) is not true
          and pg_visible_in_snapshot(m.xid, p_now) and not pg_visible_in_snapshot(m.xid, p_seen)
          and (m.xid < foreign_xid or m.id >= foreign_id)
        order by m.xid, m.id limit room
      ), wanted as materialized (
        select w.tenant, bool_or(w.type is null and w.email is null) as everything, array_agg(w.type) as types
        from unnest(p_tenants, p_types, p_emails) w(tenant, type, email) group by w.tenant
      ), judged as (
        select f.*, p_tenants is null or coalesce(w.everything or f.type = any (w.types) or (f.id = any (origins) and w.tenant is not null), false) as told
        from found f left join wanted w on w.tenant = f.tenant_id
      ), counted as (
        select j.*, sum(case when j.told then j.recipients else 1 end) over (order by j.xid, j.id rows unbounded preceding) as facts from judged j
      )
      select array_agg(c.xid) filter (where c.told) as xids, array_agg(c.id) filter (where c.told) as ids,
        array_agg(c.tenant_id) filter (where c.told) as tenants, max(c.facts) as facts,
        (array_agg(c.xid order by c.xid desc, c.id desc))[1] as xid, (array_agg(c.id order by c.xid desc, c.id desc))[1] as id
      into q from counted c where c.facts - case when c.told then c.recipients else 1 end < room;
      -- Of the transaction in whose midst it ends no events yet: they come after all of its emails.
      if q.facts >= room then
        more := true; xid := q.xid; place := q.id; id := all_; upto := q.xid;
      end if;
      many := many + coalesce(q.facts, 0);
    end if;
    if any_event then
      with found as (
        select e.xid, e.id, e.tenant_id, e.type, e.message_id, e.recipient_id, e as event from pgmail.event e
        where (e.xid, e.id) > (x, after_event) and e.xid < upto
          and pg_visible_in_snapshot(e.xid, p_now) and not pg_visible_in_snapshot(e.xid, p_seen)
          and (e.xid < foreign_xid or e.id >= foreign_id)
        order by e.xid, e.id limit room
      ), wanted as materialized (
        select w.tenant, bool_or(w.type is null and w.email is null) as everything, array_agg(w.type) as types, array_agg(w.email) as emails
        from unnest(p_tenants, p_types, p_emails) w(tenant, type, email) group by w.tenant
      )
      select array_agg(f.event) filter (where p_tenants is null or w.everything or f.type = any (w.types)
          or f.message_id = any (w.emails) or f.recipient_id = any (w.emails)) as events, count(*) as facts,
        (array_agg(f.xid order by f.xid desc, f.id desc))[1] as xid, (array_agg(f.id order by f.xid desc, f.id desc))[1] as id
      into h from found f left join wanted w on w.tenant = f.tenant_id;
      if h.facts = room then
        more := true; xid := h.xid; place := null; id := h.id;
      end if;
      events := events || coalesce(h.events, '{}');
      many := many + h.facts;
    end if;
    if any_queued then
      -- What comes after the last event is told after it.
      select xids || coalesce(array_agg(u.xid), '{}'), places || coalesce(array_agg(u.id), '{}'), tenants || coalesce(array_agg(u.tenant_id), '{}')
        into xids, places, tenants from unnest(q.xids, q.ids, q.tenants) u(xid, id, tenant_id) where not more or u.xid <= feed_v1.xid;
    end if;
    exit when more;
  end loop;

  if events <> '{}' or xids <> '{}' then
    -- Bounds leave of each table the one or two partitions that hold what is looked for.
    select e.recipient_id into low_owner from unnest(events) e order by e.recipient_id limit 1;
    select e.recipient_id into high_owner from unnest(events) e order by e.recipient_id desc limit 1;
    select o into low_email from (select unnest(places) union all select e.message_id from unnest(events) e) u(o) order by o limit 1;
    select o into high_email from (select unnest(places) union all select e.message_id from unnest(events) e) u(o) order by o desc limit 1;
    -- The recipients of an email were made within its hour.
    select pgmail.uuid_floor(pgmail.uuid_time(o) - interval '1 hour') into low_person from unnest(places) o order by o limit 1;
    select pgmail.uuid_floor(pgmail.uuid_time(o) + interval '1 hour') into high_person from unnest(places) o order by o desc limit 1;
    return query
    with mails as materialized (
      select d.tenant_id, d.id, m.* from (
        select u.tenant_id, u.message_id from unnest(events) u union select u.tenant_id, u.id from unnest(tenants, places) u(tenant_id, id)) d(tenant_id, id)
      left join lateral (
        select y.stream, y.tags, y.template, y.template_version, y.created_at, y.test, y.scheduled_at, y.created_by
        from pgmail.message y where y.tenant_id = d.tenant_id and y.id = d.id and y.id >= low_email and y.id <= high_email limit 1) m on true
    ), happened as (
      select u.xid, 1 as kind, u.id, none as id_, null::uuid as place, u.type, u.tenant_id, u.at, u.message_id, u.recipient_id, r.address, m.stream, m.tags, m.template,
        m.template_version, m.created_at, m.test, u.attempt, u.code, u.enhanced, u.reply, k.class, k.name, u.phase,
        coalesce(u.site, r.site) as site, u.relay, u.remote_host, u.tls, u.ms, u.worker, nullif(u.detail, '') as detail
      from unnest(events) u
      join mails m on m.tenant_id = u.tenant_id and m.id = u.message_id
      left join lateral (
        select y.address, y.site from pgmail.recipient y
        where y.tenant_id = u.tenant_id and y.id = u.recipient_id and y.id >= low_owner and y.id <= high_owner limit 1) r on true
      left join lateral (
        select y.class, y.name from pgmail.reply_reason y where u.code >= 400 and y.name = split_part(u.detail, ':', 1) limit 1) k on true
    ), queued as (
      select u.xid, 0 as kind, u.id, r.id as id_, u.id as place, case when m.scheduled_at is null then 'email.queued' else 'email.scheduled' end, u.tenant_id,
        m.created_at as at, u.id as message_id, r.id as recipient_id, r.address, m.stream, m.tags, m.template, m.template_version,
        m.created_at, m.test, null::smallint, null::smallint, null::text, null::text, null::text, null::text, null::text,
        r.site, null::text, null::text, null::text, null::integer, null::bigint,
        nullif(concat_ws(', ', case when m.test then 'a test, for the sandbox only' end, 'by ' || m.created_by,
          'for ' || to_char(m.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), '')
      from unnest(xids, places, tenants) u(xid, id, tenant_id)
      join mails m on m.tenant_id = u.tenant_id and m.id = u.id
      cross join lateral (
        select y.id, y.address, y.site from pgmail.recipient y
        where y.tenant_id = u.tenant_id and y.message_id = u.id and y.message_id between u.id and u.id   -- 070_state tells why
          and y.id >= low_person and y.id < high_person
          and (p_place is null or u.id <> p_place or u.xid <> p_xid or y.id > p_id)
        offset 0) r
      where m.created_at is not null
    )
    select t.xid, t.place, case t.kind when 0 then t.id_ else t.id end, t.type, t.tenant_id, t.at, t.message_id, t.recipient_id, t.address,
      t.stream, t.tags, t.template, t.template_version, t.created_at, t.test, t.attempt, t.code, t.enhanced, t.reply, t.class, t.name, t.phase,
      t.site, t.relay, t.remote_host, t.tls, t.ms, t.worker, t.detail
    -- What it is sorted by comes first in these rows, which makes it several times quicker: no null and no text lies before it.
    from (select u.* from (select * from happened union all select * from queued) u order by u.xid, u.kind, u.id, u.id_ offset 0) t;
  end if;

  if more then
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

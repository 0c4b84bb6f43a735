-- Webhooks, told: events come from the feed into hook_queue once, are claimed by processes that call, and leave for the log.
-- What can go wrong there is the endpoint's, so all of it is kept apart from mail: other tables, no lock in common, and of the
-- feed so much at a time that the database hardly notices.

-- What is new of the feed, to all who want it: the next p_most facts at most. The cursor moves in the same transaction, so each
-- event is queued exactly once. `idle`: nobody wants events, and nothing was read. `more`: come again at once.
-- It goes back with the database, too: a restored backup or a standby that lacks the last transactions has the cursor of that
-- moment, and all goes on from there whatever was decided about the mail. Only a dump that is read into other tables brings a
-- cursor whose xids mean nothing where it lies now. Such a row was not written by the transaction that it says.
create or replace function pgmail.fan_out_hooks_v1(p_most integer default 1000, out queued integer, out more boolean, out idle boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare c record; f record; e record; tenants integer[]; types text[]; upto pg_snapshot;
begin
  queued := 0; more := false; idle := false;
  select x.*, x.written is not distinct from x.xmin as ours into c from pgmail.hook_cursor x for update skip locked;
  if not found then return; end if;
  -- Under the lock: an endpoint that is being made waits for it, and one that is made is seen.
  -- Of each tenant the types that it has endpoints for; all of them where one is for several at once ('email.*').
  select array_agg(w.tenant_id), array_agg(w.type) into tenants, types
  from (select distinct h.tenant_id, case when right(t, 1) <> '*' then t end as type
        from pgmail.hook h left join unnest(h.types) t on true where h.enabled) w;
  if tenants is null then
    idle := true;
    update pgmail.hook_cursor set written = null, seen = null, seen_at = null, until = null, xid = null, place = null, event_id = null where seen is not null;
    return;
  end if;
  select * into f from pgmail.feed_now_v1();
  if not f.whole then return; end if;
  if c.seen is null or not c.ours or pg_snapshot_xmax(c.seen) > pg_snapshot_xmax(f.now_) then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, seen = f.now_, seen_at = clock_timestamp(),
      until = null, xid = null, place = null, event_id = null;
    if c.seen is not null then
      perform pgmail.record_act(null, 'webhook.begin_anew', null, format(
        'a dump was restored: webhooks are not told what happened between %s and now, but for what was waiting for them already', pgmail.iso_time(c.seen_at)));
    end if;
    return;
  end if;
  upto := coalesce(c.until, f.now_);
  with news as materialized (
    select x.xid, x.place, x.id, x.type, x.tenant_id, x.at, x.email_id, x.recipient_id, x.stream, x.tags
    from pgmail.feed_v1(c.seen, upto, c.xid, c.place, c.event_id, tenants, p_most, types) x
  ), wanted as (
    insert into pgmail.hook_queue (tenant_id, hook_id, event_id, email_id, recipient_id, type, at)
    select n.tenant_id, h.id, n.id, n.email_id, n.recipient_id, n.type, n.at
    from news n join pgmail.hook h on h.tenant_id = n.tenant_id and h.enabled
      and exists (select from unnest(h.types) t where n.type = t or (right(t, 1) = '*' and starts_with(n.type, left(t, -1))))
      and (h.streams is null or n.stream = any (h.streams)) and (h.tags is null or n.tags @> h.tags)
    where n.type is not null
      -- A dump of another cluster brings xids that this one comes to later: what is made by one that began after the snapshot is no
      -- older than it. By the id, which says when it was written, and with a day for clocks that are wrong.
      and not (n.xid >= pg_snapshot_xmax(c.seen)
               and pgmail.uuid_time(coalesce(n.place, n.id)) < c.seen_at - interval '1 day')
    on conflict do nothing returning 1
  )
  select (select count(*) from wanted) as queued, n.xid, n.place, n.id from (select) o left join news n on n.type is null into e;
  queued := e.queued;
  more := e.xid is not null or c.until is not null;
  if e.xid is not null then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, until = upto, xid = e.xid, place = e.place, event_id = e.id;
  elsif c.until is not null or f.now_::text <> c.seen::text then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, seen = upto, seen_at = case when c.until is null then clock_timestamp() else c.seen_at end, until = null, xid = null, place = null, event_id = null;
  end if;
end
$$;

-- What an endpoint is told of an event: its id and the data that GET /events has of it. Null where its email is past its retention. Made when it is
-- told, so what was erased meanwhile is not in it.
create or replace function pgmail.hook_data(p_tenant integer, p_event uuid, p_email uuid, p_recipient uuid, p_type text) returns text
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  select json_strip_nulls(json_build_object(
    'id', p_event, 'email_id', m.id, 'recipient_id', r.id, 'address', r.address, 'stream', m.stream, 'tags', nullif(m.tags, '{}'),
    'template', case when m.template is not null then json_build_object('id', m.template, 'version', m.template_version) end,
    'email_created_at', to_char(m.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'test', nullif(m.test, false),
    'attempt', e.attempt, 'code', e.code, 'enhanced', e.enhanced, 'reply', e.reply, 'class', k.class, 'reason', k.name, 'phase', e.phase,
    'site', coalesce(e.site, r.site), 'relay', e.relay, 'remote_host', e.remote_host, 'tls', e.tls, 'ms', e.ms, 'worker', e.worker,
    'detail', nullif(case when p_event <> p_recipient then e.detail else concat_ws(', ',
      case when m.test then 'a test, for the sandbox only' end, 'by ' || m.created_by,
      'for ' || pgmail.iso_time(m.scheduled_at)) end, '')))::text
  from (select y.id, y.created_at, y.created_by, y.scheduled_at, y.stream, y.tags, y.template, y.template_version, y.test
        from pgmail.message y where y.tenant_id = p_tenant and y.id = p_email limit 1) m
  cross join lateral (select y.id, y.address, y.site from pgmail.recipient y where y.tenant_id = p_tenant and y.id = p_recipient limit 1) r
  left join lateral (
    select y.* from pgmail.event y where y.tenant_id = p_tenant and y.recipient_id = p_recipient and y.id = p_event limit 1) e on true
  left join pgmail.reply_reason k on k.name = split_part(e.detail, ':', 1) and e.code >= 400
  where p_event = p_recipient or e.id is not null
$$;

-- Takes what is due: p_most calls at most, for p_seconds, and of one endpoint p_each less those that the caller has under way
-- (p_busy, p_counts); first of the tenants with the fewest of those. An endpoint that fails is tried by one call at a time. Only what this process can sign for: p_keks names
-- the key-encryption keys that it has. Of very many endpoints with
-- something to be told 1,000 are looked at, from another one each time: p_turn is a number by chance, from 0 to 1. Of one endpoint
-- what is new goes before what is replayed, but for one call in four.
create or replace function pgmail.claim_hooks_v1(
  p_keks text[], p_most integer, p_each integer, p_seconds double precision, p_busy uuid[], p_counts integer[], p_turn double precision
) returns table (
  tenant_id integer, hook_id uuid, event_id uuid, email_id uuid, recipient_id uuid, type text, at timestamptz, attempt smallint,
  claims integer, url text, secrets jsonb, data text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  none constant uuid := '00000000-0000-0000-0000-000000000000'; most constant integer := 1000;
  now_ timestamptz := pgmail.now(); from_ integer := 0; many bigint; t integer; h uuid := none; around boolean := false;
  tenants integer[] := '{}'; hooks uuid[] := '{}';
begin
  if (select count(*) from (select from pgmail.hook limit most + 1) x) > most then
    select count(*) into many from pgmail.hook;
    select x.tenant_id into from_ from pgmail.hook x order by x.tenant_id, x.id offset floor(p_turn * many)::bigint limit 1;
    from_ := coalesce(from_, 0);
  end if;
  -- From one endpoint that something waits for to the next, around the end.
  t := from_;
  while cardinality(hooks) < most loop
    select q.tenant_id, q.hook_id into t, h from pgmail.hook_queue q where (q.tenant_id, q.hook_id) > (t, h)
    order by q.tenant_id, q.hook_id limit 1;
    if not found then
      exit when around or from_ = 0;
      around := true; t := -1; h := none;
      continue;
    end if;
    exit when around and t >= from_;
    tenants := tenants || t; hooks := hooks || h;
  end loop;
  if hooks = '{}' then return; end if;

  return query
  with found as (
    select u.t, u.h, coalesce(b.n, 0) as busy, sum(coalesce(b.n, 0)) over (partition by u.t) as tenant_busy
    from unnest(tenants, hooks) u(t, h) left join unnest(p_busy, p_counts) b(id, n) on b.id = u.h
  ), ready as (
    select h.*, f.tenant_busy, case when h.fails >= 4 then 1 else p_each end - f.busy as room
    from found f join pgmail.hook h on h.tenant_id = f.t and h.id = f.h
    where h.enabled and (h.rest_until is null or h.rest_until <= now_)
  ), picked as (
    select f.*, row_number() over (partition by f.tenant_id, f.hook_id order by
      case when f.replayed then 4 * f.place - floor(4 * p_turn) else f.place + (f.place - 1) / 3 end, f.replayed desc) as turn
    from (
      select r.url, r.tenant_busy, r.room, v.replayed, p.*,
        row_number() over (partition by p.tenant_id, p.hook_id, v.replayed order by p.due_at) as place
      from ready r cross join (values (false), (true)) v(replayed) cross join lateral (
        select q.tenant_id, q.hook_id, q.event_id, q.due_at, s.secrets from pgmail.hook_queue q
        cross join (
          select jsonb_agg(jsonb_build_object('id', s.id, 'key', s.key_id, 'kek', d.kek, 'wrapped', encode(d.wrapped, 'base64'),
              'sealed', encode(s.sealed, 'base64')) order by s.id desc) as secrets,
            bool_and(d.kek = any (p_keks)) as mine
          from pgmail.hook_secret s join pgmail.data_key d on d.tenant_id = s.tenant_id and d.id = s.key_id
          where s.tenant_id = r.tenant_id and s.hook_id = r.id and (s.ends_at is null or s.ends_at > now_)) s
        where q.tenant_id = r.tenant_id and q.hook_id = r.id and q.replayed = v.replayed and q.due_at <= now_
          and (q.leased_until is null or q.leased_until <= now_) and s.mine
        order by q.due_at limit greatest(r.room, 0) for update of q skip locked) p) f
  ), taken as (
    update pgmail.hook_queue q set leased_until = now_ + make_interval(secs => p_seconds), claims = q.claims + 1
    from (
      -- Whose tenant has the fewest calls under way goes first: endpoints that let us wait hold up nobody else's.
      select k.* from (
        select x.*, x.tenant_busy + row_number() over (partition by x.tenant_id order by x.turn, x.due_at) as share
        from picked x where x.turn <= x.room) k
      order by k.share, k.due_at limit p_most) p
    where q.tenant_id = p.tenant_id and q.hook_id = p.hook_id and q.event_id = p.event_id
    returning q.*, p.url, p.secrets
  )
  select k.tenant_id, k.hook_id, k.event_id, k.email_id, k.recipient_id, k.type, k.at, (k.attempts + 1)::smallint, k.claims, k.url, k.secrets,
    case when k.type <> 'webhook.test' then pgmail.hook_data(k.tenant_id, k.event_id, k.email_id, k.recipient_id, k.type) end
  from taken k;
end
$$;

-- What came of calls: [{tenant_id, hook_id, event_id, email_id, recipient_id, type, at, attempt, claims, outcome, seconds, gone, rest,
-- status, ms, error, answer}]; outcome as in the log. Retried ones are due again after `seconds`; `rest` keeps the endpoint from being
-- called for so long; `gone` (410) disables it, as do five days without a call that went well. A result of a lease that ran out is
-- logged, and changes nothing else.
create or replace function pgmail.settle_hooks_v1(p_results jsonb) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare now_ timestamptz := pgmail.now(); n integer; s record; ended text;
begin
  with r as materialized (
    select * from jsonb_to_recordset(p_results) x(
      tenant_id integer, hook_id uuid, event_id uuid, email_id uuid, recipient_id uuid, type text, at timestamptz, attempt smallint, claims integer,
      outcome text, seconds double precision, status smallint, ms integer, error text, answer text)
  ), mine as materialized (
    select q.tenant_id, q.hook_id, q.event_id from pgmail.hook_queue q join r using (tenant_id, hook_id, event_id)
    where q.claims = r.claims order by q.tenant_id, q.hook_id, q.event_id for update of q
  ), told as (
    delete from pgmail.hook_queue q using mine m join r using (tenant_id, hook_id, event_id)
    where q.tenant_id = m.tenant_id and q.hook_id = m.hook_id and q.event_id = m.event_id and r.outcome <> 'retrying'
  ), later as (
    update pgmail.hook_queue q set due_at = now_ + make_interval(secs => r.seconds), attempts = r.attempt, leased_until = null
    from mine m join r using (tenant_id, hook_id, event_id)
    where q.tenant_id = m.tenant_id and q.hook_id = m.hook_id and q.event_id = m.event_id and r.outcome = 'retrying'
  ), logged as (
    insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, email_id, recipient_id, type, event_at, attempt, outcome, status, ms, error, answer, next_at)
    select r.tenant_id, r.hook_id, r.event_id, r.email_id, r.recipient_id, r.type, r.at, r.attempt, r.outcome, r.status, r.ms,
      left(r.error, 300), left(r.answer, 200), case when r.outcome = 'retrying' then now_ + make_interval(secs => r.seconds) end
    from r returning 1
  )
  select count(*) into n from logged;

  -- Of each endpoint: nothing where all is well and was. By id, since others settle beside this.
  for s in
    select x.tenant_id, x.hook_id, count(*) filter (where x.outcome <> 'delivered') as bad, bool_or(x.outcome = 'delivered') as good,
      bool_or(x.outcome = 'failed') as failed, bool_or(x.gone) as gone, max(x.rest) as rest,
      max(coalesce(x.error, 'HTTP ' || x.status)) filter (where x.outcome <> 'delivered') as error
    from jsonb_to_recordset(p_results) x(tenant_id integer, hook_id uuid, outcome text, gone boolean, rest double precision, status smallint, error text)
    where x.outcome <> 'dropped'
    group by x.tenant_id, x.hook_id order by x.tenant_id, x.hook_id
  loop
    if s.good then
      update pgmail.hook h set fails = 0, failing_since = null, rest_until = null, last_error = null
       where h.tenant_id = s.tenant_id and h.id = s.hook_id and h.fails > 0;
    end if;
    continue when s.bad = 0;
    update pgmail.hook h set fails = h.fails + case when s.good then 1 else s.bad end, failing_since = coalesce(h.failing_since, now_),
      last_error = left(s.error, 300),
      -- From the fourth failure on it rests between calls, 2 s to 5 min.
      rest_until = greatest(case when not s.good and h.fails + s.bad >= 4 then now_ + make_interval(secs => least(300, power(2, least(h.fails + s.bad - 3, 10)))) end,
                            now_ + make_interval(secs => nullif(s.rest, 0)))
     where h.tenant_id = s.tenant_id and h.id = s.hook_id;
    select case when s.gone then 'it answered 410 Gone'
                when s.failed and h.failing_since < now_ - interval '5 days' then
                  format('no call has gone well since %s; the last one: %s', pgmail.iso_time(h.failing_since), h.last_error) end
      into ended from pgmail.hook h where h.tenant_id = s.tenant_id and h.id = s.hook_id and h.enabled;
    if ended is not null then
      update pgmail.hook h set enabled = false, reason = ended, changed_at = now_ where h.tenant_id = s.tenant_id and h.id = s.hook_id;
      perform pgmail.record_act(s.tenant_id, 'webhook.disable', s.hook_id::text, ended);
    end if;
  end loop;
  return n;
end
$$;

-- Keeps it small, p_most rows a step: what belonged to an endpoint that was removed, the log after p_days, and what waited for
-- p_days, which the log then has as dropped. How many rows; come again while it is as many as p_most.
create or replace function pgmail.keep_hooks_v1(p_days integer, p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare now_ timestamptz := pgmail.now(); old timestamptz := pgmail.now() - p_days * interval '24 hours'; n integer; total integer := 0;
begin
  delete from pgmail.hook_secret s where s.ends_at < now_ - interval '1 hour';
  delete from pgmail.hook_attempt a where a.ctid = any (array(
    select x.ctid from pgmail.hook h cross join lateral (
      select y.ctid from pgmail.hook_attempt y where y.tenant_id = h.tenant_id and y.hook_id = h.id
        and (h.removed_at is not null or y.id < pgmail.uuid_floor(old)) order by y.id limit p_most) x
    limit p_most));
  get diagnostics total = row_count;
  delete from pgmail.hook_queue q where q.ctid = any (array(
    select x.ctid from pgmail.hook h cross join lateral (
      select y.ctid from pgmail.hook_queue y where y.tenant_id = h.tenant_id and y.hook_id = h.id limit p_most) x
    where h.removed_at is not null limit p_most));
  get diagnostics n = row_count; total := greatest(total, n);
  with late as (
    delete from pgmail.hook_queue q where q.ctid = any (array(
      select x.ctid from pgmail.hook_queue x where x.queued_at < old and (x.leased_until is null or x.leased_until < now_) limit p_most))
    returning q.*
  )
  insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, email_id, recipient_id, type, event_at, attempt, outcome, error)
  select l.tenant_id, l.hook_id, l.event_id, l.email_id, l.recipient_id, l.type, l.at, l.attempts, 'dropped', format('it waited for %s days', p_days) from late l;
  get diagnostics n = row_count; total := greatest(total, n);
  -- A result may come in as long as a lease lasts.
  delete from pgmail.hook h where h.removed_at < now_ - interval '1 hour'
    and not exists (select from pgmail.hook_queue q where q.tenant_id = h.tenant_id and q.hook_id = h.id)
    and not exists (select from pgmail.hook_attempt a where a.tenant_id = h.tenant_id and a.hook_id = h.id);
  return total;
end
$$;

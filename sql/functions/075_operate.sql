-- What a person or an application does to mail that waits. None of it waits for a leased row: it answers too_late.
-- Each takes an email's id (all its recipients) or one recipient's. They run in an application's transaction, which may
-- stay open: so they lock no lane, which every worker would wait for, but append to lane_touch as send does.

-- {"status": "cancelled" | "partly_cancelled" | "too_late", "cancelled": n, "too_late": n}. Cancelling twice is fine. What is in doubt
-- may have been sent, and so it is too late.
create or replace function pgmail.cancel(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; was integer; who text := pgmail.actor();
begin
  -- It is stored with each recipient, twice.
  if length(cancel.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, cancel.id) f;
  select count(*) into was from pgmail.outcome o where o.tenant_id = t and o.recipient_id = any (ids) and o.state = 'cancelled';
  begin
  with free as materialized (
    select q.id, q.lane, q.attempts from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and not q.in_doubt order by q.id for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select free.id, free.lane, free.attempts, g.stream, r.site
    from free join pgmail.recipient r on r.tenant_id = t and r.id = free.id and r.id = any (ids)
    join pgmail.message g on g.tenant_id = t and g.id = m
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select t, f.id, m, 'cancelled', pgmail.now(), f.stream, f.site, f.attempts, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select t, f.id, m, 'email.cancelled', f.site, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select t, f.stream, 'cancelled', count(*), array[f.lane], array[count(*)] from facts f group by f.stream, f.lane
  )
  select count(*) into n from facts;
  exception when serialization_failure then
    n := 0;   -- REPEATABLE READ: a worker took it after this transaction's snapshot. That is too late, not a fault.
  end;
  if n > 0 then perform pgmail.record_act(t, 'email.cancel', cancel.id::text, cancel.reason); end if;
  n := n + was;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'cancelled' when n > 0 then 'partly_cancelled' else 'too_late' end,
    'cancelled', n, 'too_late', cardinality(ids) - n);
end
$$;

-- {"status": "rescheduled" | "partly_rescheduled" | "too_late", "rescheduled": n, "too_late": n}
create or replace function pgmail.reschedule(id uuid, at timestamptz) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; expiry timestamptz; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, reschedule.id) f;
  select g.expires_at into expiry from pgmail.message g where g.tenant_id = t and g.id = m;
  if reschedule.at is null or not isfinite(reschedule.at) then
    perform pgmail.refuse('invalid_time', '/scheduled_at', 'must be a moment');
  elsif reschedule.at < pgmail.now() - interval '60 seconds' then
    perform pgmail.refuse('time_in_past', '/scheduled_at', 'lies more than 60 seconds in the past');
  elsif reschedule.at > pgmail.now() + interval '366 days' then
    perform pgmail.refuse('time_too_far', '/scheduled_at', 'lies more than 366 days ahead');
  elsif reschedule.at >= expiry then
    perform pgmail.refuse('time_too_far', '/scheduled_at', 'the email expires before');
  end if;
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at <> 'infinity'
    order by q.id for update skip locked
  ), later as (
    update pgmail.queue q set due_at = greatest(reschedule.at, pgmail.now()), later = true, wait = 'scheduled', tried_since = null
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, l.id, m, case when l.due_at > pgmail.now() then 'email.scheduled' else 'email.queued' end,
      'by ' || who || ', for ' || to_char(l.due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') from later l
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, l.lane, g.stream, g.priority, min(r.site), min(l.due_at)
    from later l join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = l.id and r.id = any (ids) group by l.lane, g.stream, g.priority
  )
  select count(*) into n from later;
  exception when serialization_failure then
    n := 0;   -- as in cancel
  end;
  if n > 0 then
    perform pgmail.record_act(t, 'email.reschedule', reschedule.id::text, reschedule.at::text);
  end if;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'rescheduled' when n > 0 then 'partly_rescheduled' else 'too_late' end,
    'rescheduled', n, 'too_late', cardinality(ids) - n);
end
$$;

-- Try again now: a dead letter, a deferred, delayed or held recipient (one that was held before its time is scheduled
-- again). What is in doubt is resolved instead. Answers how many went back to the queue.
create or replace function pgmail.retry(recipient_id uuid, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, retry.recipient_id) f;
  with raised as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (ids) returning d.*
  ), queued as (
    insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, claims, expires_at)
    select t, d.recipient_id, d.message_id, d.lane, pgmail.now(), d.claims, d.expires_at from raised d
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select t, d.stream, 'dead', -count(*), array[d.lane], array[-count(*)] from raised d group by d.stream, d.lane
  ), free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at > pgmail.now()
      and (q.due_at = 'infinity' or q.wait is distinct from 'scheduled') and not q.in_doubt
    order by q.id for update skip locked
  ), pulled as (
    update pgmail.queue q set hold_reason = null, held_due_at = null,
      due_at = case when x.early then q.held_due_at else pgmail.now() end, wait = case when x.early then 'scheduled' end, later = x.early
    from (select y.id, y.wait is distinct from 'deferred' and y.held_due_at > pgmail.now() is true as early from pgmail.queue y
          where y.tenant_id = t and y.id = any (array(select free.id from free))) x
    where q.tenant_id = t and q.id = x.id and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at
  ), facts as materialized (
    select d.recipient_id as id, d.lane, d.stream, d.priority, d.site, pgmail.now() as due_at from raised d
    union all
    select p.id, p.lane, g.stream, g.priority, r.site, p.due_at from pulled p
    join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = p.id and r.id = any (ids)
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, f.lane, f.stream, f.priority, f.site, min(f.due_at) from facts f group by f.lane, f.stream, f.priority, f.site
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, f.id, m, case when f.due_at > pgmail.now() then 'email.scheduled' else 'email.queued' end,
      concat_ws(': ', 'retried by ' || who, retry.reason) from facts f
  )
  select count(*) into n from facts;
  if n = 0 and exists (select from pgmail.queue q where q.tenant_id = t and q.id = any (ids) and q.in_doubt) then
    perform pgmail.refuse('in_doubt', '/id', 'it may have been sent already, so it is not tried again: look at the other side''s log, '
      || 'then resolve it', 409);
  end if;
  if n > 0 then
    perform pgmail.record_act(t, 'email.retry', retry.recipient_id::text, retry.reason);
  end if;
  return n;
end
$$;

-- Give a dead letter up: it ends as cancelled, with who and why.
create or replace function pgmail.discard(recipient_id uuid, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, discard.recipient_id) f;
  with gone as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (ids) returning d.*
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason)
    select t, g.recipient_id, m, 'cancelled', pgmail.now(), g.stream, g.site, g.attempts, g.code, g.enhanced, g.reply,
      concat_ws(': ', 'discarded by ' || who, discard.reason) from gone g
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select t, g.recipient_id, m, 'email.cancelled', g.site, concat_ws(': ', 'discarded by ' || who, discard.reason) from gone g
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, g.stream, k.kind, k.sign * count(*)
    from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
  )
  select count(*) into n from gone;
  if n > 0 then perform pgmail.record_act(t, 'email.discard', discard.recipient_id::text, discard.reason); end if;
  return n;
end
$$;

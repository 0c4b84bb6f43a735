-- An operator stops single emails, and lets them go. As in 075: nothing waits for a leased row, no lane is locked. What is
-- held keeps its old due time and how it waited, so that a release puts it back exactly; it does not expire meanwhile.

-- {"status": "held" | "partly_held" | "too_late", "held": n, "too_late": n}. What is held already stays as it is and counts.
create or replace function pgmail.hold(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; was integer; why text;
begin
  if length(hold.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, hold.id) f;
  why := concat_ws(': ', 'by ' || pgmail.actor(), nullif(hold.reason, ''));
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at <> 'infinity'
    order by q.id for update skip locked
  ), stopped as (
    update pgmail.queue q set due_at = 'infinity', held_due_at = q.due_at, hold_reason = why
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, s.id, m, 'email.held', why from stopped s
  )
  select count(*) into n from stopped;
  exception when serialization_failure then
    n := 0;   -- as in cancel
  end;
  -- Read after the update: a second hold at the same moment finds what the first one did.
  select count(*) - n into was from pgmail.queue q
  where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at = 'infinity';
  if n > 0 then perform pgmail.record_act(t, 'email.hold', hold.id::text, hold.reason); end if;
  n := n + was;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'held' when n > 0 then 'partly_held' else 'too_late' end,
    'held', n, 'too_late', cardinality(ids) - n);
end
$$;

-- {"status": "released" | "partly_released" | "busy" | "not_held", "released": n, "busy": n, "not_held": n, "in_doubt": n}. The
-- old due time is back: what was scheduled or deferred waits on, what came due meanwhile goes now, what expired meanwhile
-- expires. What is held in doubt may have been sent, and is not released by the way: where there is nothing else to release,
-- it is refused. busy is held still, in the hands of another transaction (a cancel not yet committed): ask again.
create or replace function pgmail.release(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; busy integer; doubtful integer; who text := pgmail.actor();
begin
  if length(release.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, release.id) f;
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at = 'infinity'
      and not q.in_doubt
    order by q.id for update skip locked
  ), freed as (
    update pgmail.queue q set due_at = coalesce(q.held_due_at, pgmail.now()), held_due_at = null, hold_reason = null,
      later = q.later or q.held_due_at > pgmail.now()
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at, q.wait
  ), facts as materialized (
    select f.*, g.stream, g.priority, r.site from freed f
    join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = f.id and r.id = any (ids)
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, f.lane, f.stream, f.priority, f.site, min(f.due_at) from facts f group by f.lane, f.stream, f.priority, f.site
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, f.id, m, case when f.due_at > pgmail.now() and f.wait = 'scheduled' then 'email.scheduled' else 'email.queued' end,
      concat_ws(': ', 'released by ' || who, nullif(release.reason, '')) from facts f
  )
  select count(*) into n from facts;
  exception when serialization_failure then
    n := 0;
  end;
  select count(*) filter (where q.in_doubt), count(*) filter (where not q.in_doubt) into doubtful, busy from pgmail.queue q
  where q.tenant_id = t and q.id = any (ids) and q.due_at = 'infinity';
  if n = 0 and busy = 0 and doubtful > 0 then
    perform pgmail.refuse('in_doubt', '/id', 'it may have been sent already, so it is not released: look at the other side''s log, '
      || 'then resolve it', 409);
  end if;
  if n > 0 then perform pgmail.record_act(t, 'email.release', release.id::text, release.reason); end if;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'released' when n > 0 then 'partly_released'
      when busy > 0 then 'busy' else 'not_held' end,
    'released', n, 'busy', busy, 'not_held', cardinality(ids) - n - busy - doubtful, 'in_doubt', doubtful);
end
$$;

-- Settling: what became of claimed rows, many at once. Deletes from queue and writes event and outcome (or a dead
-- letter, or the next due time) in one statement of the caller's. Fenced by (p_epoch, claims); rows that another
-- transaction holds are skipped and answered 'locked', to be tried again.
--
-- p_results is a JSON array of objects, one a recipient:
--   id, message_id, claims     the lease
--   kind                       sent bounced deferred dead expired suppressed held
--   lane, stream, priority, site, relay   where it stood
--   delay, reason, error       deferred: seconds until the next attempt. held, dead, suppressed: why
--   began                      false: the remote side was never asked (no attempt spent)
--   doubt                      true: the remote side may have accepted; an email.in_doubt event is added
--   code, enhanced, reply, phase, remote_host, tls, ms
-- Answers (id, result): settled, locked, or fenced. A result that was fenced out is still recorded as an event; where
-- the row waits unleased, a 250 that came too late settles it and saves a copy. Settling again what was settled (its
-- answer was lost) answers fenced and records nothing twice.
create or replace function pgmail.settle_v1(p_tenant integer, p_epoch bigint, p_results jsonb)
returns table (id uuid, result text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare ok uuid[]; all_ids uuid[]; expiries jsonb; now_ timestamptz := pgmail.now();
begin
  if exists (select 1 from jsonb_array_elements(p_results) x
             where x->>'kind' is null or x->>'kind' <> all ('{sent,bounced,deferred,dead,expired,suppressed,held}')) then
    raise exception using errcode = 'invalid_parameter_value', message = 'a result of a kind that settles nothing';
  end if;
  select array_agg((x->>'id')::uuid) into all_ids from jsonb_array_elements(p_results) x;

  with locked as materialized (
    select q.id, q.expires_at
    from pgmail.queue q
    join jsonb_to_recordset(p_results) as r(id uuid, claims integer, kind text) on r.id = q.id
    where q.tenant_id = p_tenant and q.id = any (all_ids)
      and ((q.leased_by = p_epoch and q.claims = r.claims) or (q.leased_by is null and r.kind = 'sent'))
    order by q.id for update of q skip locked
  )
  select array_agg(l.id), jsonb_object_agg(l.id, l.expires_at) filter (where l.expires_at is not null)
    into ok, expiries from locked l;
  ok := coalesce(ok, '{}');

  with r as materialized (
    select * from jsonb_to_recordset(p_results) as r(id uuid, message_id uuid, claims integer, kind text, lane bigint,
      stream text, priority smallint, site text, relay text, delay real, reason text, error text, began boolean, doubt boolean,
      attempts smallint, code smallint, enhanced text, reply text, phase text, remote_host text, tls text, ms integer)
  ), tried as materialized (
    select r.*, (r.attempts + case when r.began is false then 0 else 1 end)::smallint as tried, r.id = any (ok) as ours,
      not r.id = any (ok) and (
        select true from pgmail.queue q where q.tenant_id = p_tenant and q.id = r.id
          and ((q.leased_by = p_epoch and q.claims = r.claims) or (q.leased_by is null and r.kind = 'sent'))) is true as locked
    from r
  ), mine as materialized (
    select * from tried where ours
  ), told as materialized (
    -- What is new to the record: not what waits for a lock, nor a result settled before. A scalar subquery, since a plan
    -- for EXISTS may read all events of the tenant into a hash.
    select t.* from tried t
    where t.ours or not t.locked and (
      select true from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = t.id and e.worker = p_epoch
        and e.attempt = t.tried and e.type = 'email.' || case t.kind when 'dead' then 'failed' else t.kind end limit 1) is null
  ), gone as (
    delete from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (array(select mine.id from mine where kind not in ('deferred', 'held')))
  ), later as (
    update pgmail.queue q set leased_by = null, leased_at = null, attempts = mine.tried, later = true,
      tried_since = coalesce(q.tried_since, now_),
      due_at = case mine.kind when 'held' then 'infinity' else now_ + coalesce(mine.delay, 60) * interval '1 second' end,
      wait = case mine.kind when 'held' then q.wait else 'deferred' end,
      held_due_at = case mine.kind when 'held' then q.due_at end,
      hold_reason = case mine.kind when 'held' then mine.reason end
    from mine where q.tenant_id = p_tenant and q.id = mine.id and mine.kind in ('deferred', 'held')
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced,
      reply, reason, relay, remote_host)
    select p_tenant, id, message_id, kind, now_, stream, site, tried, code, enhanced, left(reply, 1000), reason, relay, remote_host
    from mine where kind in ('sent', 'bounced', 'expired', 'suppressed')
  ), dead as (
    insert into pgmail.dead_letter (tenant_id, recipient_id, message_id, lane, stream, priority, site, died_at, reason,
      error, attempts, claims, code, enhanced, reply, expires_at)
    select p_tenant, id, message_id, lane, stream, priority, site, now_, coalesce(reason, 'unknown'), left(error, 4000),
      tried, claims, code, enhanced, left(reply, 1000), (expiries->>(id::text))::timestamptz
    from mine where kind = 'dead'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, code, enhanced, reply, phase, site,
      relay, remote_host, tls, ms, worker, detail)
    select p_tenant, r.id, r.message_id, now_,
      'email.' || case r.kind when 'dead' then 'failed' else r.kind end,
      r.tried, r.code, r.enhanced, left(r.reply, 1000), r.phase, r.site, r.relay, r.remote_host, r.tls, r.ms, p_epoch,
      concat_ws(': ', case when not r.ours then 'fenced out, its lease was lost' end, r.reason, left(r.error, 1000))
    from told r
  ), doubts as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, phase, site, relay, remote_host, worker, detail)
    select p_tenant, r.id, r.message_id, now_, 'email.in_doubt', (r.attempts + 1)::smallint, r.phase, r.site, r.relay,
      r.remote_host, p_epoch, left(r.error, 1000)
    from told r where r.doubt
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, at)
    select p_tenant, stream, kind, count(*), now_ from mine where kind not in ('deferred', 'held') group by stream, kind
  )
  select array_agg(t.id) into all_ids from tried t where t.locked;

  return query
  select (x->>'id')::uuid, case when (x->>'id')::uuid = any (ok) then 'settled'
                                when (x->>'id')::uuid = any (all_ids) then 'locked' else 'fenced' end
  from jsonb_array_elements(p_results) x;
end
$$;

-- Settling, the hot way: what became of claimed rows of one tenant, many at once. One statement deletes from queue and
-- writes event and outcome (or a dead letter, or the next due time). Fenced by (p_epoch, claims); rows that another
-- transaction holds are skipped and answered 'locked', to be tried again.
--
-- What results of a batch share comes once, in p_groups, a JSON array of objects; p_group[i] is an index in it from 1:
--   kind                       sent bounced deferred dead expired suppressed held
--   lane, stream, priority, site, relay   where it stood
--   delay, reason, error       deferred: seconds until the next attempt. held, dead, suppressed: why
--   began                      false: the remote side was never asked (no attempt spent)
--   doubt                      true: the remote side may have accepted; an email.in_doubt event is added
--   code, enhanced, phase, remote_host, tls
--   suppress                   bounced: the reply says that the address is gone for good; noted for suppress_bounced_v1
-- The rest are arrays, one element a recipient: reading one JSON object a recipient cost as much as all the writing.
-- p_attempts are those spent before this one; p_ms and p_replies may hold nulls.
-- Answers those that did not settle: locked, or fenced. A result that was fenced out is still recorded as an event; where
-- the row waits unleased, a 250 that came too late settles it and saves a copy. Settling again what was settled (its
-- answer was lost) answers fenced and records nothing twice.
create or replace function pgmail.settle_v2(
  p_tenant integer, p_epoch bigint, p_groups jsonb, p_ids uuid[], p_messages uuid[], p_claims integer[], p_group smallint[],
  p_attempts smallint[], p_ms integer[], p_replies text[]
) returns table (id uuid, result text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare done uuid[]; late uuid[]; now_ timestamptz := pgmail.now();
begin
  -- Of several tenants in one transaction: a worker that freezes in between must not keep its rows locked (as in claim_v2).
  perform set_config('idle_in_transaction_session_timeout', '3s', true);
  if exists (select from jsonb_array_elements(p_groups) x
             where x->>'kind' is null or x->>'kind' <> all ('{sent,bounced,deferred,dead,expired,suppressed,held}')) then
    raise exception using errcode = 'invalid_parameter_value', message = 'a result of a kind that settles nothing';
  end if;

  with r as materialized (
    select u.id, u.message_id, u.claims, u.ms, left(u.reply, 1000) as reply, g.kind, g.lane, g.stream, g.priority, g.site,
      g.relay, g.delay, g.reason, g.error, g.doubt, g.code, g.enhanced, g.phase, g.remote_host, g.tls,
      (u.attempts + case when g.began is false then 0 else 1 end)::smallint as tried
    from unnest(p_ids, p_messages, p_claims, p_group, p_attempts, p_ms, p_replies)
           u(id, message_id, claims, n, attempts, ms, reply)
    join rows from (jsonb_to_recordset(p_groups) as (kind text, lane bigint, stream text, priority smallint, site text,
           relay text, delay real, reason text, error text, began boolean, doubt boolean, code smallint, enhanced text,
           phase text, remote_host text, tls text)) with ordinality
         g(kind, lane, stream, priority, site, relay, delay, reason, error, began, doubt, code, enhanced, phase,
           remote_host, tls, n) on g.n = u.n
  ), mine as materialized (
    -- Row by row: a join would be planned, while the table is not analyzed, as a walk along all of it.
    select r.*, q.expires_at
    from (select * from r order by r.id) r
    cross join lateral (
      select x.expires_at from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = r.id
        and ((x.leased_by = p_epoch and x.claims = r.claims) or (x.leased_by is null and r.kind = 'sent'))
      for update skip locked) q
  ), gone as (
    -- By id, not by ctid: a row that a rescue changed after this statement began is locked in its new version, which a scan
    -- for that very version does not see.
    delete from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (array(select mine.id from mine where kind not in ('deferred', 'held')))
  ), later as (
    update pgmail.queue q set leased_by = null, leased_at = null, attempts = mine.tried, later = true,
      tried_since = coalesce(q.tried_since, now_),
      due_at = case mine.kind when 'held' then 'infinity' else now_ + coalesce(mine.delay, 60) * interval '1 second' end,
      wait = case mine.kind when 'held' then q.wait else 'deferred' end,
      held_due_at = case mine.kind when 'held' then q.due_at end,
      hold_reason = case mine.kind when 'held' then mine.reason end,
      in_doubt = mine.kind = 'held' and mine.doubt is true
    from mine where q.tenant_id = p_tenant and q.id = mine.id and mine.kind in ('deferred', 'held')
      and q.id = any (array(select m.id from mine m where m.kind in ('deferred', 'held')))
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced,
      reply, reason, relay, remote_host)
    select p_tenant, id, message_id, kind, now_, stream, site, tried, code, enhanced, reply, reason, relay, remote_host
    from mine where kind in ('sent', 'bounced', 'expired', 'suppressed')
  ), dead as (
    insert into pgmail.dead_letter (tenant_id, recipient_id, message_id, lane, stream, priority, site, died_at, reason,
      error, attempts, claims, code, enhanced, reply, expires_at)
    select p_tenant, id, message_id, lane, stream, priority, site, now_, coalesce(reason, 'unknown'), left(error, 4000),
      tried, claims, code, enhanced, reply, expires_at
    from mine where kind = 'dead'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, code, enhanced, reply, phase, site,
      relay, remote_host, tls, ms, worker, detail)
    select p_tenant, id, message_id, now_, 'email.' || case kind when 'dead' then 'failed' else kind end, tried, code,
      enhanced, reply, phase, site, relay, remote_host, tls, ms, p_epoch, concat_ws(': ', reason, left(error, 1000))
    from mine
  ), doubts as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, phase, site, relay, remote_host, worker, detail)
    select p_tenant, id, message_id, now_, 'email.in_doubt', tried, phase, site, relay, remote_host, p_epoch, left(error, 1000)
    from mine where doubt
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, at, lanes, per_lane)
    select p_tenant, x.stream, x.kind, sum(x.n), now_, array_agg(x.lane), array_agg(x.n)
    from (select stream, kind, lane, count(*)::integer as n from mine where kind not in ('deferred', 'held') group by stream, kind, lane) x
    group by x.stream, x.kind
  )
  select array_agg(mine.id) into done from mine;
  if p_groups @? '$[*] ? (@.suppress == true)' then
    perform pgmail.suppress_bounced(p_tenant, done, p_groups, p_ids, p_group);
  end if;
  if cardinality(done) = cardinality(p_ids) then return; end if;

  -- The rest: held by another transaction, or no longer ours.
  select array_agg(u.id) into late from unnest(p_ids) u(id) where done is null or u.id <> all (done);
  return query
  with r as materialized (
    select u.id, u.message_id, u.claims, u.ms, left(u.reply, 1000) as reply, g.*,
      (u.attempts + case when g.began is false then 0 else 1 end)::smallint as tried
    from unnest(p_ids, p_messages, p_claims, p_group, p_attempts, p_ms, p_replies)
           u(id, message_id, claims, n, attempts, ms, reply)
    join rows from (jsonb_to_recordset(p_groups) as (kind text, site text, relay text, reason text, error text, began boolean,
           doubt boolean, code smallint, enhanced text, phase text, remote_host text, tls text)) with ordinality
         g(kind, site, relay, reason, error, began, doubt, code, enhanced, phase, remote_host, tls, group_no) on g.group_no = u.n
    where u.id = any (late)
  ), judged as materialized (
    select r.*, (select true from pgmail.queue q where q.tenant_id = p_tenant and q.id = r.id
                   and ((q.leased_by = p_epoch and q.claims = r.claims) or (q.leased_by is null and r.kind = 'sent'))) is true as locked
    from r
  ), told as materialized (
    -- What is new to the record: not what waits for a lock, nor a result settled before. A scalar subquery, since a plan
    -- for EXISTS may read all events of the tenant into a hash.
    select j.* from judged j
    where not j.locked and (
      select true from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = j.id and e.worker = p_epoch
        and e.attempt = j.tried and e.type = 'email.' || case j.kind when 'dead' then 'failed' else j.kind end limit 1) is null
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, code, enhanced, reply, phase, site,
      relay, remote_host, tls, ms, worker, detail)
    select p_tenant, t.id, t.message_id, now_, 'email.' || case t.kind when 'dead' then 'failed' else t.kind end, t.tried,
      t.code, t.enhanced, t.reply, t.phase, t.site, t.relay, t.remote_host, t.tls, t.ms, p_epoch,
      concat_ws(': ', 'fenced out, its lease was lost', t.reason, left(t.error, 1000))
    from told t
  ), doubts as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, phase, site, relay, remote_host, worker, detail)
    select p_tenant, t.id, t.message_id, now_, 'email.in_doubt', t.tried, t.phase, t.site, t.relay, t.remote_host, p_epoch, left(t.error, 1000)
    from told t where t.doubt
  )
  select j.id, case when j.locked then 'locked' else 'fenced' end from judged j;
end
$$;

-- The same as workers of 0.1 call it: one JSON object a recipient, with id, message_id, claims, attempts, ms and reply beside
-- what a group holds; every id is answered, those that settled as 'settled'.
create or replace function pgmail.settle_v1(p_tenant integer, p_epoch bigint, p_results jsonb)
returns table (id uuid, result text)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  with r as materialized (
    select x.id, x.message_id, x.claims, x.attempts, x.ms, x.reply, x.n
    from rows from (jsonb_to_recordset(p_results) as (id uuid, message_id uuid, claims integer, attempts smallint, ms integer,
           reply text)) with ordinality x(id, message_id, claims, attempts, ms, reply, n)
  ), a as materialized (
    select array_agg(r.id order by n) as ids, array_agg(message_id order by n) as messages, array_agg(claims order by n) as claims,
      array_agg(n::smallint order by n) as groups, array_agg(attempts order by n) as attempts, array_agg(ms order by n) as ms,
      array_agg(reply order by n) as replies
    from r
  ), late as materialized (
    select s.id, s.result from a cross join lateral pgmail.settle_v2(p_tenant, p_epoch, p_results, a.ids, a.messages, a.claims,
      a.groups, a.attempts, a.ms, a.replies) s where a.ids is not null
  )
  select r.id, coalesce((select late.result from late where late.id = r.id), 'settled') from r
$$;

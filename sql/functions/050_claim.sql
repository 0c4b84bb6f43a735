-- Claim, release and rescue: who holds a row. A lease is (leased_by = worker epoch, claims): the pair is the fence.

-- Takes due rows of many lanes of one tenant, from the heads this worker remembers; p_limits[i] rows of lane i at
-- most. A HOT update: it writes no column that an index names. MATERIALIZED and the array keep LIMIT honest with
-- SKIP LOCKED. Lanes with p_traced get an email.sending event a row. A worker that was declared dead gets nothing.
-- With p_holds[i] the worker vows to commit its intent (begin_v1) before it sends a mail of lane i; `vowed` repeats it.
create or replace function pgmail.claim_v3(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[],
  p_traced boolean[], p_holds boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz, vowed boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
  -- The claim is committed once its rows were read. A worker that is frozen in between (SIGSTOP, its host gone without a
  -- word) would keep its rows, and the rescuer that waits for them, for as long as it is frozen. Local to the transaction.
  perform set_config('idle_in_transaction_session_timeout', '3s', true);
  if current_setting('server_version_num')::integer >= 170000 then   -- of several tenants: frozen before all was asked
    perform set_config('transaction_timeout', '6s', true);
  end if;
  -- The lock keeps a rescue from looking for leases before these are there; it does not keep the worker from beating.
  perform from pgmail.worker w where w.epoch = p_epoch for key share;
  if not found then
    raise exception using errcode = 'PM410', constraint = 'fenced_out',
      message = format('worker %s was declared dead; its leases were given back', p_epoch);
  end if;
  if exists (select from pgmail.fence) then return; end if;   -- restored, and nobody has decided yet what went out before
  return query
  with l as materialized (
    select * from unnest(p_lanes, p_due, p_after, p_limits, p_traced, p_holds) u(lane, head_due, head_id, most, traced, holds)
  ), k as materialized (
    select x.id, x.due_at, l.lane, l.traced
    from l cross join lateral (
      select q.id, q.due_at from pgmail.queue q
      where q.tenant_id = p_tenant and q.lane = l.lane and (q.due_at, q.id) > (l.head_due, l.head_id)
        and q.due_at <= pgmail.now() and q.leased_by is null
      order by q.due_at, q.id limit l.most for update skip locked) x
  ), u as (
    update pgmail.queue q set leased_by = p_epoch, leased_at = pgmail.now(), claims = q.claims + 1,
      unsent_claims = case when q.lane = any (array(select l.lane from l where l.holds)) then q.claims + 1 end,
      begun_relay = null
    where q.tenant_id = p_tenant and q.id = any (array(select k.id from k))
    returning q.id, q.message_id, q.lane, q.due_at, q.claims, q.attempts, q.rescues, q.expires_at, q.tried_since,
      q.unsent_claims is not null as vowed
  ), said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, worker)
    select p_tenant, u.id, u.message_id, 'email.sending', u.attempts + 1, p_epoch
    from u join k on k.id = u.id where k.traced
  )
  select u.id, u.message_id, u.lane, u.due_at, u.claims, u.attempts, u.rescues, u.expires_at, u.tried_since, u.vowed
  from u order by u.due_at, u.id;
end
$$;

-- The same as workers of 0.3 call it, which know no test email and would send it: they do not get its lanes.
create or replace function pgmail.claim_v2(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[],
  p_traced boolean[], p_holds boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz, vowed boolean)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select c.* from (
    select array_agg(lane order by n) as lanes, array_agg(due order by n) as due, array_agg(after order by n) as after,
      array_agg(most order by n) as most, array_agg(traced order by n) as traced, array_agg(holds order by n) as holds
    from unnest(p_lanes, p_due, p_after, p_limits, p_traced, p_holds) with ordinality u(lane, due, after, most, traced, holds, n)
    where not exists (select from pgmail.lane l where l.tenant_id = p_tenant and l.id = u.lane and l.site = pgmail.test_site())) x
  cross join lateral pgmail.claim_v3(p_tenant, p_epoch, x.lanes, x.due, x.after, x.most, x.traced, x.holds) c
$$;

-- The same as workers of before call it, which make no vow: after a crash all that they held is in doubt.
create or replace function pgmail.claim_v1(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[], p_traced boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select c.id, c.message_id, c.lane, c.due_at, c.claims, c.attempts, c.rescues, c.expires_at, c.tried_since
  from pgmail.claim_v2(p_tenant, p_epoch, p_lanes, p_due, p_after, p_limits, p_traced,
    array_fill(false, array[cardinality(p_lanes)])) c
$$;

-- What waits behind the heads of some lanes, from p_since[i] on: when the first of it was due, and how many there are, p_most at
-- most. It comes to be where a transaction committed late. Locks nothing, takes nothing: where rows that were sent are not
-- cleared away (a snapshot is held open) it walks over all of them, and may take as long as that takes.
create or replace function pgmail.late_v1(
  p_tenant integer, p_lanes bigint[], p_since timestamptz[], p_due timestamptz[], p_after uuid[], p_most integer
) returns table (lane bigint, due_at timestamptz, n integer)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  select l.lane, x.due_at, x.n
  from unnest(p_lanes, p_since, p_due, p_after) l(lane, since, head_due, head_id)
  cross join lateral (
    select min(y.due_at) as due_at, count(*)::integer as n from (
      select q.due_at from pgmail.queue q
      where q.tenant_id = p_tenant and q.lane = l.lane and q.due_at >= l.since and (q.due_at, q.id) <= (l.head_due, l.head_id)
        and q.leased_by is null
      order by q.due_at, q.id limit p_most) y) x
  where x.n > 0
$$;

-- The intent to send, of vowed leases, many at once: when it is committed, the end of data may follow, and a worker that
-- dies leaves these rows in doubt. A HOT update. Answers each id that is still leased so: 'begun', or 'locked' where
-- another transaction holds the row (to be tried again); what is not answered was fenced out and must not be sent.
create or replace function pgmail.begin_v1(p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_relays text[])
returns table (id uuid, result text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare begun uuid[];
begin
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out',
      message = format('worker %s was declared dead; its leases were given back', p_epoch);
  end if;
  perform set_config('idle_in_transaction_session_timeout', '3s', true);   -- as in claim_v2
  -- An intent that a crash of the server may forget is none.
  if current_setting('synchronous_commit') = 'off' then perform set_config('synchronous_commit', 'on', true); end if;
  with mine as materialized (
    select r.id, r.relay
    from (select * from unnest(p_ids, p_claims, p_relays) u(id, claims, relay) order by u.id) r
    cross join lateral (
      select x.id from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = r.id and x.leased_by = p_epoch and x.claims = r.claims
      for update skip locked) q
  ), told as (
    update pgmail.queue q set unsent_claims = null, begun_relay = mine.relay
    from mine where q.tenant_id = p_tenant and q.id = mine.id and q.id = any (array(select m.id from mine m))
    returning q.id
  )
  select array_agg(told.id) into begun from told;
  return query select b, 'begun' from unnest(begun) b;
  if cardinality(begun) = cardinality(p_ids) then return; end if;
  return query
  select r.id, 'locked' from unnest(p_ids, p_claims) r(id, claims)
  where (begun is null or r.id <> all (begun)) and (
    select true from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = r.id and q.leased_by = p_epoch and q.claims = r.claims) is true;
end
$$;

-- Gives leases back untried: on drain (no reason), or because something of ours must wait (a delay: told once a
-- mail, spends no attempt). Rows keep their due time, so heads are rewound. Answers the ids given back.
create or replace function pgmail.release_v1(
  p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_reason text default null
) returns setof uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; lanes bigint[]; dues timestamptz[]; messages uuid[];
begin
  with locked as materialized (
    select q.id from pgmail.queue q join unnest(p_ids, p_claims) r(id, claims) on r.id = q.id
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.leased_by = p_epoch and q.claims = r.claims
    order by q.id for update of q skip locked
  ), freed as (
    update pgmail.queue q set leased_by = null, leased_at = null
    where q.tenant_id = p_tenant and q.id = any (array(select locked.id from locked))
    returning q.id, q.message_id, q.lane, q.due_at
  )
  select array_agg(id), array_agg(message_id), array_agg(lane), array_agg(due_at) into done, messages, lanes, dues from freed;
  if done is null then return; end if;
  perform pgmail.touch_lanes(p_tenant, lanes, dues);
  if p_reason is not null then
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, worker, detail)
    select p_tenant, u.id, u.message_id, 'email.delayed', p_epoch, p_reason
    from unnest(done, messages) u(id, message_id)
    where not exists (select 1 from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id
                      and e.type = 'email.delayed' and e.detail = p_reason and e.at > pgmail.now() - interval '1 hour');
  end if;
  return query select unnest(done);
end
$$;

-- Gives leases back untried and lets them wait, an hour at most, each with the reason told once an hour: for what stands in the
-- way of the mail itself, as a key that this worker lacks or room for a heavy template. Released without a wait it would be
-- claimed and given back all the time. A delay, that spends no attempt. Answers the ids given back.
create or replace function pgmail.postpone_v1(
  p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_seconds double precision, p_reason text
) returns setof uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; messages uuid[]; now_ timestamptz := pgmail.now();
begin
  with locked as materialized (
    select q.id from pgmail.queue q join unnest(p_ids, p_claims) r(id, claims) on r.id = q.id
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.leased_by = p_epoch and q.claims = r.claims
    order by q.id for update of q skip locked
  ), freed as (
    update pgmail.queue q set leased_by = null, leased_at = null, later = true, wait = 'delayed',
      due_at = now_ + least(greatest(p_seconds, 1), 3600) * interval '1 second'
    where q.tenant_id = p_tenant and q.id = any (array(select locked.id from locked))
    returning q.id, q.message_id
  )
  select array_agg(id), array_agg(message_id) into done, messages from freed;
  if done is null then return; end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, worker, detail)
  select p_tenant, u.id, u.message_id, 'email.delayed', p_epoch, p_reason
  from unnest(done, messages) u(id, message_id)
  where not exists (select 1 from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id
                    and e.type = 'email.delayed' and e.detail = p_reason and e.at > now_ - interval '1 hour');
  return query select unnest(done);
end
$$;

-- Why mail is held that a worker had in hand when a restore was noticed. decide_restore knows it by this.
create or replace function pgmail.lease_doubt() returns text
language sql immutable
as $$ select 'in doubt: a worker had it when a restore was noticed' $$;

-- Takes leases away from these workers (null: from all), which are dead or ended. What they may have sent is in doubt: on
-- streams that resend it goes again, on streams that hold it waits for a person. A vowed lease without an intent was surely
-- not sent; but not while a fence stands: then the intent may be what was lost, and the settle too, so that every lease is
-- held until the operator has decided. Rows that an application has locked are left. Answers how many it took.
create or replace function pgmail.rescue_leases(p_epochs bigint[]) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare freed jsonb; t record; fenced boolean := exists (select from pgmail.fence);
begin
  -- A sequential scan: rescues are rare, and an index on leased_by would cost every claim its HOT update.
  with mine as materialized (
    select q.tenant_id, q.id, q.leased_by, fenced or q.unsent_claims is distinct from q.claims as doubt,
      fenced or (q.unsent_claims is distinct from q.claims and s.on_doubt is not distinct from 'hold') as hold
    from pgmail.queue q
    left join lateral (   -- by id, one by one: a hash of all messages would be a bad plan for a few leases
      select x.on_doubt from pgmail.message m join pgmail.stream x on x.tenant_id = m.tenant_id and x.name = m.stream
      where m.tenant_id = q.tenant_id and m.id = q.message_id limit 1) s on true
    where q.leased_by is not null and (p_epochs is null or q.leased_by = any (p_epochs))
    order by q.tenant_id, q.id for update of q skip locked
  ), given_back as (
    update pgmail.queue q set leased_by = null, leased_at = null, rescues = q.rescues + case when fenced then 0 else 1 end,
      due_at = case when mine.hold then 'infinity' else q.due_at end,
      held_due_at = case when mine.hold then q.due_at end,
      hold_reason = case when mine.hold and fenced then pgmail.lease_doubt()
                         when mine.hold then 'in doubt: its worker died and may have sent it' end, in_doubt = mine.hold
    from mine where q.tenant_id = mine.tenant_id and q.id = mine.id
    returning q.tenant_id, q.id, q.message_id, q.lane, q.due_at, q.attempts, q.begun_relay, mine.leased_by, mine.doubt, mine.hold
  )
  select jsonb_agg(to_jsonb(g)) into freed from given_back g;
  if freed is null then return 0; end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, relay, worker, detail)
  select r.tenant_id, r.id, r.message_id, x.type, case when r.doubt then r.attempts + 1 end,
    case when r.doubt then r.begun_relay end, r.leased_by,
    'worker ' || r.leased_by || case when fenced then ' had this mail when a restore was noticed; it may have been sent'
      when r.doubt then ' died; this mail may have been sent' else ' died before it sent this mail' end
  from jsonb_to_recordset(freed) r(tenant_id integer, id uuid, message_id uuid, attempts smallint, begun_relay text,
      leased_by bigint, doubt boolean, hold boolean)
    cross join (values ('email.in_doubt'), ('email.held'), ('email.delayed')) x(type)
  where case x.type when 'email.in_doubt' then r.doubt when 'email.held' then r.hold else not r.doubt end;
  for t in select r.tenant_id, array_agg(r.lane) as lanes, array_agg(r.due_at) as dues
           from jsonb_to_recordset(freed) r(tenant_id integer, lane bigint, due_at timestamptz, hold boolean)
           where not r.hold group by r.tenant_id order by r.tenant_id loop
    perform pgmail.touch_lanes(t.tenant_id, t.lanes, t.dues);
  end loop;
  return jsonb_array_length(freed);
end
$$;

-- A worker is dead: its leases go back (rescue_leases). Deletes the worker's row, which fences out all that it still tries.
-- A row that an application has locked (a cancel in an open transaction) is left to the next look for orphans. A claim on
-- its way is waited for, but not for long: the leader has more to do than this.
create or replace function pgmail.rescue_v1(p_epoch bigint) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '1s'
as $$
begin
  delete from pgmail.lost_worker l where l.lost_at < pgmail.now() - interval '1 day';
  with gone as (delete from pgmail.worker w where w.epoch = p_epoch returning w.epoch, w.host, w.pid, w.program, w.beat_at)
  insert into pgmail.lost_worker (epoch, host, pid, program, beat_at) select * from gone on conflict do nothing;
  delete from pgmail.permit p where p.epoch = p_epoch;
  return pgmail.rescue_leases(array[p_epoch]);
end
$$;

-- Workers that hold leases and have no row: rescued in part, or stopped while the database was away. A sequential scan.
create or replace function pgmail.orphans_v1() returns setof bigint
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select distinct q.leased_by from pgmail.queue q
  where q.leased_by is not null and not exists (select 1 from pgmail.worker w where w.epoch = q.leased_by)
$$;

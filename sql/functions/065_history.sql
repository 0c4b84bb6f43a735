-- A restored database must not mail everyone again. Every process counts its marks, small commits of its own, here and in
-- a file outside the database; a copy that lacks marks which were acknowledged has lost whatever was committed after
-- them. Then a fence is recorded, which stops all claims until an operator has decided. ops/docs/restore.md tells why
-- counting and not positions in the log: it works for dumps too, and a failover that lost nothing looks like nothing.

-- Where in its log this server writes. For people: it says which server and timeline each side saw.
create or replace function pgmail.place_v1() returns jsonb
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare place jsonb := '{}';
begin
  -- A hosted server may keep either to itself; one that is still recovering writes nothing.
  begin
    place := jsonb_build_object('system', (select s.system_identifier::text from pg_control_system() s));
  exception when insufficient_privilege or feature_not_supported then null;
  end;
  begin
    place := place || jsonb_build_object(
      'timeline', ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer,
      'lsn', pg_current_wal_insert_lsn());
  exception when insufficient_privilege or feature_not_supported or object_not_in_prerequisite_state then null;
  end;
  return place;
end
$$;

-- With a fence every worker ends. One that lives through a failover knows leases, vows and results of a history that is
-- lost here, and may hold by its epoch what this copy believes to be leased: it hears with its next beat, claim or intent
-- that it is fenced out, and starts anew under another epoch. What any of them had in hand is held in doubt, for the
-- operator's decision. So from here on nothing is leased, and nothing is claimed while the fence stands (claim_v2): no
-- decision can pass a lease by. The lock waits for claims on their way, which did not see the fence, and keeps claims and
-- new workers waiting until they do. Processes of maintain hold nothing, and go on.
create or replace function pgmail.end_workers() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  lock table pgmail.worker in exclusive mode;
  delete from pgmail.worker where program <> 'maintain';
  delete from pgmail.permit p where not exists (select from pgmail.worker w where w.epoch = p.epoch);
  -- A worker of the lost history may live on with an epoch that is given out here once more.
  perform setval('pgmail.worker_epoch', (select s.last_value + 1000 from pgmail.worker_epoch s));
  return pgmail.rescue_leases(null);
end
$$;

-- One at a time records a fence or takes it away, until its transaction ends.
create or replace function pgmail.lock_history() returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pg_advisory_xact_lock(hashtextextended('pgmail.history', 0)) $$;

-- Compares what a process remembers (history and generation, how many marks of a witness it saw committed, and when the
-- last one was) with what is here, and records a fence where marks are missing. Null: the memory is of another database;
-- true: nothing of it is missing, or an operator decided since; false: fenced.
create or replace function pgmail.recall_v1(
  p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamptz, p_by text, p_seen jsonb
) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare h pgmail.history; w pgmail.witness; here jsonb; why text; known boolean;
begin
  -- Found missing, it is looked at once more under the lock: an operator's decision may have been on its way, which would
  -- be followed by a fence for what it was about.
  for look in 1..2 loop
    if look = 2 then perform pgmail.lock_history(); end if;
    select x.* into h from pgmail.history x order by x.generation desc limit 1;
    if h.root <> p_root then return null; end if;
    if p_generation < h.generation then return true; end if;
    select x.* into w from pgmail.witness x where x.id = p_witness;
    if p_generation > h.generation or h.id <> p_history then
      why := format('a restore was accepted before %s, and this database knows nothing of it', p_seen_at);
    elsif p_marks > coalesce(w.marks, 0) and (w.id is not null or p_seen_at > clock_timestamp() - interval '90 days') then
      why := format('mark %s was committed at %s, and this database has %s', p_marks, p_seen_at,
        case when w.id is null then 'none of them' else format('mark %s of %s', w.marks, w.at) end);
    else
      return true;
    end if;
  end loop;
  here := pgmail.place_v1();
  known := exists (select from pgmail.fence);
  insert into pgmail.fence as f (noticed_by, reason, generation, lost_from, lost_until, seen, found)
  values (p_by, p_by || ' saw more than is here: ' || why, p_generation, w.at, p_seen_at, p_seen, here)
  on conflict (singleton) do update set generation = greatest(f.generation, excluded.generation),
    lost_from = least(f.lost_from, excluded.lost_from), lost_until = least(f.lost_until, excluded.lost_until)
  where f.generation < excluded.generation or f.lost_from > excluded.lost_from or f.lost_until > excluded.lost_until;
  if not known then perform pgmail.end_workers(); end if;
  return false;
end
$$;

-- One mark more of a process, after a look at what it remembers. Answers what to remember once this is committed, and why
-- nothing may be sent (null: it may). A null history is a process without a memory, which trusts the database; with
-- another root nothing is marked, and the answer says which database this is.
create or replace function pgmail.mark_v1(
  p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamptz,
  p_host text, p_pid integer, p_program text, p_seen jsonb,
  out root uuid, out history uuid, out generation integer, out marks bigint, out at timestamptz, out place jsonb, out fenced text
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
begin
  if p_history is not null then
    perform pgmail.recall_v1(p_root, p_history, p_generation, p_witness, p_marks, p_seen_at,
      format('%s %s on %s', p_program, p_pid, p_host), p_seen);
  end if;
  select x.root, x.id, x.generation into root, history, generation from pgmail.history x order by x.generation desc limit 1;
  if root is not distinct from p_root then
    insert into pgmail.witness as w (id, marks, host, pid, program) values (p_witness, p_marks + 1, p_host, p_pid, p_program)
    on conflict (id) do update set marks = greatest(w.marks, p_marks) + 1, at = clock_timestamp(),
      host = excluded.host, pid = excluded.pid, program = excluded.program
    returning w.marks, w.at into marks, at;
    place := pgmail.place_v1();
    perform pgmail.feed_settle_in();
  end if;
  select f.reason into fenced from pgmail.fence f;
end
$$;

-- An operator knows of a restore before any process does (their memories were lost too): nothing is sent from now on.
create or replace function pgmail.stop_for_restore(p_reason text) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  perform pgmail.lock_history();
  insert into pgmail.fence (noticed_by, reason, lost_until, found) values (pgmail.actor(), left(p_reason, 1000), clock_timestamp(), pgmail.place_v1())
  on conflict (singleton) do nothing;
  if found then perform pgmail.end_workers(); end if;
  perform pgmail.record_act(null, 'restore.stop', null, p_reason);
end
$$;

-- Mail that a restored copy knows has an id below this: it was enqueued before the last moment that is missing. What was
-- enqueued into the copy since is new, for the copy began later. Two seconds for clocks that differ.
create or replace function pgmail.restore_bound(p_since timestamptz) returns uuid
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select pgmail.uuid_floor(coalesce(p_since, (select coalesce(f.lost_until, f.noticed_at) + interval '2 seconds' from pgmail.fence f)))
$$;

-- How much is in doubt, by tenant: mail enqueued before the restore point that was due before the loss was noticed, so that
-- it may have gone out in between, and whatever workers had in hand then. leased counts leases that could not be taken away
-- yet, since another transaction has their rows locked.
create or replace function pgmail.restore_doubts(p_since timestamptz default null)
returns table (tenant_id integer, tenant text, recipients bigint, leased bigint, oldest timestamptz, newest timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select q.tenant_id, t.name, count(*) filter (where q.leased_by is null), count(*) filter (where q.leased_by is not null),
    pgmail.uuid_time(min(q.id::text)::uuid), pgmail.uuid_time(max(q.id::text)::uuid)
  from pgmail.queue q join pgmail.tenant t on t.id = q.tenant_id cross join pgmail.fence f
  where (q.id < pgmail.restore_bound(p_since) and q.due_at <= f.noticed_at)
    or q.leased_by is not null or (q.in_doubt and q.hold_reason = pgmail.lease_doubt())
  group by q.tenant_id, t.name order by t.name
$$;

-- Decides on the next p_most recipients in doubt of one tenant, after the id p_after. hold: a person looks at each.
-- resend: they go again, each with an email.in_doubt event. assume_sent: they end as sent. Answers how many were in doubt
-- and the last id; n 0 is the end. Safe to run again: what is decided is not in doubt any more, but for what is resent,
-- and that is told once. Ids in arrays and a generic plan: joined with what was just read, each of thousands of rows was
-- looked for among all the others.
create or replace function pgmail.decide_restore(
  p_tenant integer, p_decision text, p_since timestamptz, p_after uuid, p_most integer default 5000, out n integer, out last uuid
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  f pgmail.fence; words text; below uuid := pgmail.restore_bound(p_since); next_ uuid[];
  ids uuid[]; messages uuid[]; lanes bigint[]; dues timestamptz[]; tries smallint[];
begin
  select x.* into f from pgmail.fence x;
  if not found then perform pgmail.refuse('not_fenced', '/after_restore', 'no restore was noticed', 404); end if;
  if p_decision is null or p_decision <> all ('{hold,resend,assume_sent}') then
    perform pgmail.refuse('invalid_decision', '/decision', 'must be hold, resend or assume_sent');
  end if;
  words := format('in doubt: the database was restored; it may have been sent between %s and %s',
    coalesce(p_since, f.lost_from)::text, f.noticed_at);
  words := replace(words, 'between  and', 'before');
  if p_after is null and exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.leased_by is not null) then
    perform pgmail.rescue_leases(null);   -- those whose rows were locked when the fence was made
  end if;

  last := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  loop
    select array_agg(x.id order by x.id) into next_ from (
      (select q.id from pgmail.queue q
       where q.tenant_id = p_tenant and q.id > last and q.id < below and q.due_at <= f.noticed_at and q.leased_by is null
       order by q.id limit p_most)
      union
      (select q.id from pgmail.queue q
       where q.tenant_id = p_tenant and q.id > last and q.in_doubt and q.hold_reason = pgmail.lease_doubt()
       order by q.id limit p_most)
      order by 1 limit p_most) x;
    select array_agg(q.id), array_agg(q.message_id), array_agg(q.lane), array_agg(q.due_at), array_agg(q.attempts) into ids, messages, lanes, dues, tries
    from unnest(next_) u(id) cross join lateral (
      select x.id, x.message_id, x.lane, coalesce(x.held_due_at, x.due_at) as due_at, x.attempts from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = u.id and x.leased_by is null
        and (x.due_at <= f.noticed_at or (x.in_doubt and x.hold_reason = pgmail.lease_doubt()))
      for update) q;
    n := coalesce(cardinality(ids), 0); last := next_[cardinality(next_)];
    exit when n > 0 or last is null;   -- none, though some were found: each was cancelled or resolved meanwhile
  end loop;
  if n = 0 then return; end if;

  if p_decision = 'hold' then
    update pgmail.queue q set due_at = 'infinity', held_due_at = u.due_at, hold_reason = words, later = false, in_doubt = true
    from unnest(ids, dues) u(id, due_at) where q.tenant_id = p_tenant and q.id = u.id;
  elsif p_decision = 'resend' then
    -- Those that workers had in hand; the others wait where they are. accept_restore rewinds their lanes.
    update pgmail.queue q set due_at = q.held_due_at, held_due_at = null, hold_reason = null, in_doubt = false
    from unnest(ids) u(id) where q.tenant_id = p_tenant and q.id = u.id and q.in_doubt;
  else
    delete from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids);
    with facts as materialized (
      select u.*, m.stream, r.site from unnest(ids, messages, lanes, tries) u(id, message_id, lane, attempts)
      cross join lateral (select y.stream from pgmail.message y where y.tenant_id = p_tenant and y.id = u.message_id limit 1) m
      cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = p_tenant and y.id = u.id limit 1) r
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
      select p_tenant, id, message_id, 'sent', pgmail.now(), stream, site, attempts, 'assumed sent: the database was restored' from facts
    )
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select p_tenant, stream, 'sent', count(*), array[lane], array[count(*)] from facts group by stream, lane;
  end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, detail)
  select p_tenant, u.id, u.message_id, x.type, u.attempts + 1,
    concat_ws(': ', case x.type when 'email.sent' then 'assumed by ' || pgmail.actor() end, words)
  from unnest(ids, messages, tries) u(id, message_id, attempts),
    (values ('email.in_doubt', null), ('email.held', 'hold'), ('email.sent', 'assume_sent')) x(type, decision)
  where (x.decision is null or x.decision = p_decision)
    and (p_decision <> 'resend' or (
      select true from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id and e.type = 'email.in_doubt'
        and e.detail = words limit 1) is null);
  perform pgmail.record_act(p_tenant, 'email.resolve', format('%s in doubt after a restore', n), p_decision);
end
$$;

-- The operator has decided, and decide_restore went through all tenants: a new generation begins, and mail flows. Refused
-- while anything is leased: no lease from before the decision may outlive it.
create or replace function pgmail.accept_restore(p_decision text, p_reason text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare f pgmail.fence; next_ integer;
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  perform pgmail.lock_history();
  delete from pgmail.fence returning * into f;
  if not found then perform pgmail.refuse('not_fenced', '/after_restore', 'no restore was noticed', 404); end if;
  if exists (select from pgmail.queue q where q.leased_by is not null) then
    perform pgmail.refuse('still_leased', '/after_restore',
      'another transaction keeps mail locked that a worker had in hand; run it again once that has ended', 409);
  end if;
  insert into pgmail.history (generation, root, accepted_by, decision, reason)
  select greatest(max(h.generation), f.generation) + 1, min(h.root::text)::uuid, pgmail.actor(), p_decision, left(p_reason, 1000)
  from pgmail.history h returning generation into next_;
  -- Workers that live through a failover have heads beyond mail that came back.
  update pgmail.lane set active = true, version = nextval('pgmail.lane_version'), changed_at = pgmail.now(), rewind_to = '2000-01-01'
   where (tenant_id, id) in (select l.tenant_id, l.id from pgmail.lane l order by 1, 2 for update);
  delete from pgmail.witness w where w.at < clock_timestamp() - interval '180 days';
  perform pgmail.record_act(null, 'restore.' || p_decision, null, concat_ws(E'\n', p_reason, f.reason));
  return next_;
end
$$;

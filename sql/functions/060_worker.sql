-- Workers, their liveness, and who leads.

create or replace function pgmail.worker_start_v1(p_host text, p_pid integer, p_program text, p_concurrency integer) returns bigint
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.worker (host, pid, program, concurrency) values (p_host, p_pid, p_program, p_concurrency) returning epoch
$$;

-- staging: what its settings make of mail, in words (ops/docs/staging.md); null where they leave it alone.
create or replace function pgmail.worker_start_v2(p_host text, p_pid integer, p_program text, p_concurrency integer, p_staging text)
returns bigint
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.worker (host, pid, program, concurrency, staging)
  values (p_host, p_pid, p_program, p_concurrency, p_staging) returning epoch
$$;

-- One beat: liveness, and whether it wants to be woken. False: declared dead; it must start over as a new worker.
create or replace function pgmail.worker_beat_v1(p_epoch bigint, p_state text, p_asleep boolean) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.worker set beat = beat + 1, beat_at = pgmail.now(), state = p_state, asleep = p_asleep where epoch = p_epoch;
  return found;
end
$$;

-- A worker that drained says goodbye: nothing of it is left to rescue. That it did is kept, so that `why` says since when none is
-- alive; the last one's stays as long as no other goes.
create or replace function pgmail.worker_stop_v1(p_epoch bigint) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  delete from pgmail.lost_worker l where l.lost_at < pgmail.now() - interval '1 day';
  -- Before any rescue: who says goodbye is not lost.
  with gone as (delete from pgmail.worker w where w.epoch = p_epoch returning w.epoch, w.host, w.pid, w.program)
  insert into pgmail.lost_worker (epoch, host, pid, program, beat_at, stopped)
  select g.epoch, g.host, g.pid, g.program, pgmail.now(), true from gone g on conflict do nothing;
  delete from pgmail.permit where epoch = p_epoch;
  if exists (select 1 from pgmail.queue q where q.leased_by = p_epoch) then
    perform pgmail.rescue_v1(p_epoch);   -- it could not give everything back (the database was away)
  end if;
  update pgmail.leader set epoch = null, until = '-infinity' where epoch = p_epoch;
end
$$;

-- Take or keep the lead for p_seconds. A lease row, so a transaction-mode pooler may sit in between. One that ends later
-- than any lease may was written by another clock, which was set back: it binds nobody.
create or replace function pgmail.lead_v1(p_epoch bigint, p_seconds double precision) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.leader set epoch = p_epoch, until = clock_timestamp() + p_seconds * interval '1 second'
   where epoch = p_epoch or until < clock_timestamp() or until > clock_timestamp() + p_seconds * interval '10 seconds';
  return found;
end
$$;

-- The relay's health as workers found it. An operator's pause is not overwritten by a worker before its end. One that
-- comes back is ramped up to its limit from then on. It does not wait for an operator's open transaction.
create or replace function pgmail.relay_state_v1(p_name text, p_state text, p_reason text, p_seconds double precision default null) returns void
language sql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms'
as $$
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_at, changed_by)
  values (p_name, p_state, p_reason, pgmail.now() + p_seconds * interval '1 second', pgmail.now(), 'worker')
  on conflict (name) do update set state = excluded.state, reason = excluded.reason,
    blocked_until = excluded.blocked_until, changed_at = excluded.changed_at, changed_by = excluded.changed_by,
    up_since = case when excluded.state = 'up' and r.state <> 'up' and r.up_since is not null then pgmail.now() else r.up_since end
  where r.state <> 'paused' or r.changed_by = 'worker' or r.blocked_until <= pgmail.now()
$$;

-- An operator stops or starts a relay.
create or replace function pgmail.pause_relay(p_name text, p_reason text, p_until timestamptz default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_by)
  values (p_name, 'paused', p_reason, p_until, pgmail.actor())
  on conflict (name) do update set state = 'paused', reason = excluded.reason, blocked_until = excluded.blocked_until,
    changed_at = pgmail.now(), changed_by = excluded.changed_by;
  perform pgmail.record_act(null, 'relay.pause', p_name, p_reason);
end
$$;

create or replace function pgmail.resume_relay(p_name text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.relay set state = 'up', reason = null, blocked_until = null, changed_at = pgmail.now(), changed_by = pgmail.actor(),
    up_since = case when state <> 'up' and up_since is not null then pgmail.now() else up_since end
   where name = p_name;
  if not found then perform pgmail.refuse('unknown_relay', '/relay', format('no relay is named %L', p_name), 404); end if;
  perform pgmail.record_act(null, 'relay.resume', p_name, p_reason);
end
$$;

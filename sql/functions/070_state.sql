-- The state of a recipient: one function, from queue, outcome and dead_letter. ops/docs/lifecycle.md draws it.
create or replace function pgmail.state_of(
  p_outcome text, p_dead boolean, p_queued boolean, p_leased boolean, p_due_at timestamptz, p_wait text, p_now timestamptz
) returns text
language sql immutable parallel safe
as $$
  select case
    when p_outcome is not null then p_outcome
    when p_dead then 'dead'
    when not p_queued then 'unknown'
    when p_leased then 'sending'
    when p_due_at = 'infinity' then 'held'
    when p_due_at > p_now and p_wait in ('scheduled', 'deferred') then p_wait
    else 'queued' end
$$;

create or replace function pgmail.phase_of(p_state text) returns text
language sql immutable parallel safe
as $$
  select case when p_state in ('scheduled', 'queued', 'deferred', 'held') then 'queued'
              when p_state = 'sending' then 'processing'
              when p_state = 'sent' then 'sent'
              when p_state in ('bounced', 'suppressed', 'expired', 'cancelled', 'dead') then 'failed'
              else 'unknown' end
$$;

-- The message of an id that may be a message's or a recipient's, and its recipients. Ids carry time: recipients of a
-- message were made within its hour, so one or two partitions are touched. A message goes before its recipients where
-- content is kept for less time than the record.
-- Here and wherever recipients are found by their message: the bounds of the id are for the partition. Of a table that was
-- never analysed they look as narrow to the planner as the message does, and it may read a whole hour's recipients by them; so
-- the message is said twice, as between as well.
create or replace function pgmail.find_recipients(p_tenant integer, p_id uuid, out message_id uuid, out recipients uuid[])
language plpgsql stable
as $$
declare t timestamptz := pgmail.uuid_time(p_id);
begin
  select m.id into message_id from pgmail.message m where m.tenant_id = p_tenant and m.id = p_id;
  if found then
    select array_agg(r.id order by r.position) into recipients from pgmail.recipient r
     where r.tenant_id = p_tenant and r.message_id = p_id and r.message_id between p_id and p_id
       and r.id >= pgmail.uuid_floor(t - interval '1 hour') and r.id < pgmail.uuid_floor(t + interval '1 hour');
  else
    select r.message_id, array[r.id] into message_id, recipients from pgmail.recipient r where r.tenant_id = p_tenant and r.id = p_id;
    if not found then
      select min(r.message_id::text)::uuid, array_agg(r.id order by r.position) into message_id, recipients from pgmail.recipient r
       where r.tenant_id = p_tenant and r.message_id = p_id and r.message_id between p_id and p_id
         and r.id >= pgmail.uuid_floor(t - interval '1 hour') and r.id < pgmail.uuid_floor(t + interval '1 hour');
    end if;
  end if;
end
$$;

create or replace function pgmail.need_recipients(p_tenant integer, p_id uuid, out message_id uuid, out recipients uuid[])
language plpgsql stable
as $$
declare days integer;
begin
  select f.message_id, f.recipients into message_id, recipients from pgmail.find_recipients(p_tenant, p_id) f;
  if message_id is null then
    days := pgmail.kept_days('recipient');
    perform pgmail.refuse('not_found', '/id', format('no email or recipient has the id %s', p_id)
      || case when pgmail.uuid_time(p_id) < pgmail.now() - days * interval '24 hours'
         then format(', or it is past its retention of %s days', days) else '' end, 404);
  end if;
end
$$;

-- status(id): where each recipient of an email stands (or the one recipient).
create or replace function pgmail.status(id uuid)
returns table (recipient_id uuid, message_id uuid, address text, role text, phase text, state text, attempts smallint,
               due_at timestamptz, changed_at timestamptz, code smallint, enhanced text, reply text, reason text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); m uuid; ids uuid[];
  -- an email and its recipients are of one moment: bounds keep partitions of other weeks closed
  low uuid := pgmail.uuid_floor(pgmail.uuid_time(status.id) - interval '1 hour');
  high uuid := pgmail.uuid_floor(pgmail.uuid_time(status.id) + interval '1 hour');
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, status.id) f;
  return query
  select x.id, m, x.address, x.role, pgmail.phase_of(x.s), x.s, coalesce(x.o_attempts, x.d_attempts, x.q_attempts),
    nullif(x.q_due, 'infinity'), coalesce(x.o_at, x.d_at, x.leased_at, x.last_at, pgmail.uuid_time(x.id)),
    coalesce(x.o_code, x.d_code, x.last_code), coalesce(x.o_enhanced, x.d_enhanced, x.last_enhanced),
    coalesce(x.o_reply, x.d_reply, x.last_reply), coalesce(x.o_reason, x.d_reason, x.hold_reason,
      case when (select g.test from pgmail.message g where g.tenant_id = t and g.id = m) then 'a test email: it goes to the sandbox only' end)
  from (
    select r.id, r.position, r.address, r.role, o.attempts as o_attempts, d.attempts as d_attempts, q.attempts as q_attempts,
      q.due_at as q_due, q.leased_at, o.at as o_at, d.died_at as d_at, o.code as o_code, d.code as d_code,
      o.enhanced as o_enhanced, d.enhanced as d_enhanced, o.reply as o_reply, d.reply as d_reply,
      o.reason as o_reason, nullif(concat_ws(': ', d.reason, d.error), '') as d_reason, q.hold_reason,
      e.code as last_code, e.enhanced as last_enhanced, e.reply as last_reply, e.at as last_at,
      pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, pgmail.now()) as s
    from pgmail.recipient r
    left join pgmail.queue q on q.tenant_id = t and q.id = r.id and q.id = any (ids)
    left join pgmail.outcome o on o.tenant_id = t and o.recipient_id = r.id and o.recipient_id = any (ids)
      and o.recipient_id >= low and o.recipient_id < high
    left join pgmail.dead_letter d on d.tenant_id = t and d.recipient_id = r.id and d.recipient_id = any (ids)
    left join lateral (
      select y.code, y.enhanced, y.reply, y.at from pgmail.event y
      where y.tenant_id = t and y.recipient_id = r.id and y.recipient_id >= low and y.recipient_id < high
        and y.code is not null and o.recipient_id is null
      order by y.id desc limit 1) e on true
    where r.tenant_id = t and r.id = any (ids) and r.id >= low and r.id < high
  ) x order by x.position;
end
$$;

-- trace(id): the journey, oldest first. How it was queued is told by the message itself, not by an event row.
create or replace function pgmail.trace(id uuid)
returns table (at timestamptz, type text, recipient_id uuid, address text, attempt smallint, code smallint, enhanced text,
               reply text, phase text, relay text, remote_host text, tls text, ms integer, worker bigint, detail text, event_id uuid)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); m uuid; ids uuid[];
  low uuid := pgmail.uuid_floor(pgmail.uuid_time(trace.id) - interval '1 hour');
  high uuid := pgmail.uuid_floor(pgmail.uuid_time(trace.id) + interval '1 hour');
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, trace.id) f;
  return query
  select x.at, x.type, x.recipient_id, r.address, x.attempt, x.code, x.enhanced, x.reply, x.phase, x.relay, x.remote_host,
    x.tls, x.ms, x.worker, nullif(x.detail, ''), x.event_id
  from (
    select e.at, e.type, e.recipient_id, e.attempt, e.code, e.enhanced, e.reply, e.phase, e.relay, e.remote_host, e.tls,
      e.ms, e.worker, e.detail, e.id as event_id
    from pgmail.event e where e.tenant_id = t and e.recipient_id = any (ids) and e.recipient_id >= low and e.recipient_id < high
    union all
    select g.created_at, case when g.scheduled_at is null then 'email.queued' else 'email.scheduled' end, i,
      null, null, null, null, null, null, null, null, null, null,
      concat_ws(', ', case when g.test then 'a test, for the sandbox only' end, 'by ' || g.created_by, 'stream ' || g.stream,
        'template ' || g.template || ' v' || g.template_version,
        'for ' || to_char(g.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), i
    from pgmail.message g, unnest(ids) i where g.tenant_id = t and g.id = m
  ) x
  join pgmail.recipient r on r.tenant_id = t and r.id = x.recipient_id and r.id = any (ids) and r.id >= low and r.id < high
  order by x.at, x.event_id;
end
$$;

-- why(id): in one sentence a recipient, what it waits for or how it ended.
create or replace function pgmail.why(id uuid) returns text
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); s record; words text[] := '{}'; w text; q record; stop record; holder record; ahead bigint; last_ record; m pgmail.message;
begin
  for s in select * from pgmail.status(why.id) loop
    select x.* into m from pgmail.message x where x.tenant_id = t and x.id = s.message_id;
    w := null;
    if s.state in ('queued', 'deferred', 'scheduled', 'held', 'sending') then
      select x.* into q from pgmail.queue x where x.tenant_id = t and x.id = s.recipient_id;
      select e.* into last_ from pgmail.event e where e.tenant_id = t and e.recipient_id = s.recipient_id
        and e.type in ('email.deferred', 'email.delayed', 'email.in_doubt') order by e.id desc limit 1;
    end if;
    case s.state
      when 'scheduled' then w := format('is scheduled for %s', pgmail.at_words(s.due_at));
      when 'sending' then
        select x.* into holder from pgmail.worker x where x.epoch = q.leased_by;
        w := format('is being sent by worker %s%s since %s (attempt %s)', q.leased_by, ' on ' || holder.host, pgmail.at_words(q.leased_at), s.attempts + 1);
        if holder.epoch is null then
          w := w || ', but that worker is gone; it will be rescued by the leader';
        elsif holder.beat_at < pgmail.now() - interval '30 seconds' then
          w := w || format(', but that worker is silent since %s; it will be rescued by the leader', pgmail.at_words(holder.beat_at));
        end if;
      when 'deferred' then
        w := format('waits until %s: attempt %s was answered %s', pgmail.at_words(s.due_at), s.attempts,
          coalesce(nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), nullif(last_.detail, ''), 'nothing'));
        select x.* into stop from pgmail.recipient y, pgmail.lane_stop(t, m.stream, m.priority, y.site) x
         where y.tenant_id = t and y.id = s.recipient_id;
        if stop.kind <> 'limit' then w := w || '; besides, ' || stop.words; end if;
      when 'held' then
        if q.in_doubt then
          w := format('is held %s (%s). pgmail.resolve(id, ''assume_sent'') takes it for sent, pgmail.resolve(id, ''resend'') sends it again under the same Message-ID; so does pgmail doubt resolve, with --assume-sent or --resend',
            q.hold_reason, coalesce(nullif(concat_ws(', ', last_.detail, 'relay ' || last_.relay, pgmail.at_words(last_.at)), ''), 'nothing more is known'));
        else
          w := format('is held: %s. pgmail.%s(id) sends it, pgmail.cancel(id) drops it', coalesce(q.hold_reason, 'by an operator'),
            case when q.hold_reason like 'by %' then 'release' else 'retry' end);
        end if;
      when 'queued' then
        select x.* into stop from pgmail.recipient y, pgmail.lane_stop(t, m.stream, m.priority, y.site) x
         where y.tenant_id = t and y.id = s.recipient_id;
        if m.key_id is not null and pgmail.sealed_wait(t, m.key_id) is not null then
          w := 'waits: ' || pgmail.sealed_wait(t, m.key_id);
        elsif q.wait = 'delayed' and q.due_at > pgmail.now() and coalesce(stop.kind, 'workers') = 'workers' then
          -- What a worker put off is no limit's: a key that it has not.
          w := case when last_.worker is not null then format('is tried again at %s: it is %s', pgmail.at_words(q.due_at), last_.detail)
                    else format('waits for a limit until %s: %s', pgmail.at_words(q.due_at), coalesce(last_.detail, 'the stream is full')) end;
        elsif stop.kind is not null then
          w := 'waits: ' || stop.words;
          if stop.kind = 'limit' then
            select count(*) into ahead from (
              select from pgmail.queue x where x.tenant_id = t and x.lane = q.lane and (x.due_at, x.id) < (q.due_at, q.id) limit 10001) x;
            w := w || case when ahead > 10000 then '; more than 10000 of its lane are ahead' else format('; %s of its lane are ahead', ahead) end;
          end if;
        else
          select count(*) into ahead from (
            select from pgmail.queue x where x.tenant_id = t and x.lane = q.lane and (x.due_at, x.id) < (q.due_at, q.id) limit 10001) x;
          w := format('is due since %s and waits for a free worker', pgmail.at_words(q.due_at))
            || case when ahead > 10000 then '; more than 10000 of its lane are ahead' when ahead > 0 then format('; %s of its lane are ahead', ahead) else '' end;
        end if;
        if last_.type = 'email.deferred' then w := w || format(' (attempt %s was answered %s)', last_.attempt, concat_ws(' ', last_.code, last_.enhanced, last_.reply)); end if;
        if last_.type = 'email.in_doubt' then w := w || ' (an earlier attempt is in doubt: ' || coalesce(last_.detail, 'it may have been sent') || ')'; end if;
      when 'sent' then
        w := case when s.code is null and s.reason is not null then format('counts as sent since %s: %s', pgmail.at_words(s.changed_at), s.reason)
                  else format('was sent at %s: the next hop answered %s', pgmail.at_words(s.changed_at), concat_ws(' ', s.code, s.enhanced, s.reply)) end;
      when 'bounced' then w := format('bounced at %s: the remote side answered %s', pgmail.at_words(s.changed_at), concat_ws(' ', s.code, s.enhanced, s.reply));
      when 'suppressed' then
        w := case when s.reason like 'not in the allow-list%' then format('was not sent: it is %s', s.reason)
                  else format('was not sent: the address is suppressed (%s)', s.reason) end;
      when 'expired' then w := format('expired at %s: %s', pgmail.at_words(s.changed_at), s.reason);
      when 'cancelled' then w := format('was cancelled at %s%s', pgmail.at_words(s.changed_at), coalesce(' (' || s.reason || ')', ''));
      when 'dead' then w := format('is a dead letter since %s after %s attempt%s: %s%s. pgmail.retry(id) tries it again', pgmail.at_words(s.changed_at), s.attempts, case s.attempts when 1 then '' else 's' end,
          s.reason, coalesce('; last reply ' || nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), ''));
      else w := 'has no state: this is a fault of pgmail, please report it';
    end case;
    words := words || (s.address || ' ' || case when m.test then '(a test email, for the sandbox only) ' else '' end || w);
  end loop;
  return array_to_string(words, E'\n');
end
$$;

-- The ledger: what was enqueued against where it stands, from two independent sources. enqueued and the final states
-- come from tallies that each statement appended; what waits and what died is looked at where it stands. difference
-- is 0, or something was lost or counted twice.
create or replace view pgmail.ledger with (security_invoker = true) as
with counted as (
  select tenant_id, kind, sum(n) as n
  from (select tenant_id, kind, n from pgmail.tally union all select tenant_id, kind, n from pgmail.tally_total) t group by 1, 2
), waiting as (
  select tenant_id, pgmail.state_of(null, false, true, leased_by is not null, due_at, wait, pgmail.now()) as state, count(*) as n
  from pgmail.queue group by 1, 2
), died as (
  select tenant_id, count(*) as n from pgmail.dead_letter group by 1
), figures as (
  select t.name as tenant, t.id as tenant_id,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'enqueued'), 0)::bigint as enqueued,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'scheduled'), 0)::bigint as scheduled,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'queued'), 0)::bigint as queued,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'sending'), 0)::bigint as sending,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'deferred'), 0)::bigint as deferred,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'held'), 0)::bigint as held,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'sent'), 0)::bigint as sent,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'bounced'), 0)::bigint as bounced,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'suppressed'), 0)::bigint as suppressed,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'expired'), 0)::bigint as expired,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'cancelled'), 0)::bigint as cancelled,
    coalesce((select n from died d where d.tenant_id = t.id), 0)::bigint as dead
  from pgmail.tenant t
)
select *, enqueued - (scheduled + queued + sending + deferred + held + sent + bounced + suppressed + expired + cancelled + dead) as difference
from figures;

-- The same counted in full from the rows themselves: slow, for tests and for doubts.
create or replace function pgmail.recount()
returns table (tenant_id integer, state text, n bigint)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select r.tenant_id,
    pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, pgmail.now()),
    count(*)
  from pgmail.recipient r
  left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
  left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
  left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
  group by 1, 2
$$;

-- What becomes of facts: pending, firing, resolved; and who is told. One row stands for a rule and a subject as long as it is
-- open, so that it fires once and is resolved once. Telling is a queue of its own (alert_delivery), filled in the same
-- transaction and emptied by the leading process (pgmail/maintain/alerts.py): a target that is dead waits there.

-- Whether nobody is to be told of an alert now. Where one tenant is alone, its silences hold for the fleet's alerts as well.
create or replace function pgmail.is_silenced(p_tenant integer, p_rule text, p_subject text) returns boolean
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select exists (select from pgmail.alert_silence s
    where s.rule = p_rule and s.subject in ('*', p_subject) and (s.until is null or s.until > pgmail.now())
      and (s.tenant_id is null or s.tenant_id = p_tenant or (p_tenant is null and (select count(*) from pgmail.tenant) = 1)))
$$;

-- An alert that is over, in the past: how it is now, how long it lasted, what was told. p_holds: its rule is still there and on,
-- and for this tenant the one that counts.
create or replace function pgmail.over_words(p_kind text, p_subject text, p_words text, p_seconds double precision, p_holds boolean) returns text
language sql immutable parallel safe set search_path = pgmail, pg_temp
as $$
  select format('Over after %s: %s. It was: %s', pgmail.span_words(p_seconds),
    case when p_holds then (select format(k.ended, p_subject) from pgmail.alert_kinds() k where k.kind = p_kind) else 'its rule holds no more' end, p_words)
$$;

-- Puts an alert into the queue of each target that hears of it: the fleet's, and those of the tenant that it is about.
create or replace function pgmail.tell_alert(p_alert uuid, p_event text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer; ranks text[] := array['info', 'warning', 'critical'];
begin
  insert into pgmail.alert_delivery (tenant_id, target_id, alert_id, event)
  select t.tenant_id, t.id, a.id, p_event
  from pgmail.alert a join pgmail.alert_target t on array_position(ranks, a.severity) >= array_position(ranks, t.severity)
    and (t.tenant_id is null or t.tenant_id = a.tenant_id or (a.tenant_id is null and (select count(*) from pgmail.tenant) = 1))
  where a.id = p_alert
    -- Who was not told that it began is not told that it ended: a target that is new, or that gave the first up.
    and (p_event <> 'resolved' or exists (select from pgmail.alert_delivery d where d.alert_id = a.id and d.target_id = t.id
                                         and d.event = 'firing' and d.state <> 'failed'))
  order by t.id;
  get diagnostics n = row_count;
  return n;
end
$$;

-- One look: finds the facts, moves the alerts, queues what is to be told. Answers what moved, and families whose look failed:
-- theirs stay as they are. Two at once would tell twice: the second does nothing.
create or replace function pgmail.alert_step_v1()
returns table (move text, rule text, severity text, tenant text, subject text, words text, silenced boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
#variable_conflict use_column
declare
  now_ timestamptz := pgmail.now(); facts pgmail.alert_fact[] := '{}'; found_ pgmail.alert_fact[]; family_ text; blind text[] := '{}';
  a record; told boolean;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.alerts', 0)) then return; end if;
  perform pgmail.alert_meter_step();
  perform pgmail.alert_horizon_step();
  foreach family_ in array array['mail', 'rates', 'traffic', 'fleet', 'database'] loop
    begin
      execute format('select coalesce(array_agg(f), ''{}'') from pgmail.alert_facts_%s() f', family_) into found_;
      facts := facts || found_;
    exception when others then
      blind := blind || family_;
      move := 'blind'; rule := family_; words := sqlerrm; severity := 'warning'; tenant := null; subject := ''; silenced := false;
      return next;
    end;
  end loop;

  -- What is new, and what goes on; one rule tells of one subject once, whatever it found twice.
  insert into pgmail.alert as x (tenant_id, rule_id, rule, kind, subject, severity, state, since, value, threshold, words, path)
  select distinct on (f.rule_id, f.tenant_id, f.subject) f.tenant_id, r.id, r.name, r.kind, f.subject, r.severity, 'pending', now_, f.value, r.threshold, f.words, k.path
  from unnest(facts) f join pgmail.alert_rule r on r.id = f.rule_id join pgmail.alert_kinds() k on k.kind = r.kind
  order by f.rule_id, f.tenant_id, f.subject, f.value desc
  on conflict (rule_id, tenant_id, subject) where state <> 'resolved' do update set
    value = excluded.value, threshold = excluded.threshold, words = excluded.words, severity = excluded.severity, rule = excluded.rule, calm_since = null
  where (x.value, x.threshold, x.words, x.severity, x.rule) <> (excluded.value, excluded.threshold, excluded.words, excluded.severity, excluded.rule)
     or x.calm_since is not null;

  for a in
    select x.*, n.name as tenant_name, r.enabled, r.tenant_id is not null as own, r.for_seconds, r.calm_seconds, r.renotify_seconds, pgmail.is_silenced(x.tenant_id, x.rule, x.subject) as quiet,
      h.subject is not null as holds
    from pgmail.alert x left join pgmail.alert_rule r on r.id = x.rule_id left join pgmail.tenant n on n.id = x.tenant_id
    left join (select distinct f.rule_id, coalesce(f.tenant_id, 0) as tenant_id, f.subject from unnest(facts) f) h
      on h.rule_id = x.rule_id and h.tenant_id = coalesce(x.tenant_id, 0) and h.subject = x.subject
    where x.state <> 'resolved' order by x.id
  loop
    move := null; told := false;
    if not a.holds then
      if (select k.family from pgmail.alert_kinds() k where k.kind = a.kind) = any (blind) then continue; end if;
      if a.state = 'pending' then
        delete from pgmail.alert x where x.id = a.id;
        continue;
      elsif a.for_seconds is not null and coalesce(a.calm_since, now_) > now_ - a.calm_seconds * interval '1 second' then
        update pgmail.alert x set calm_since = now_ where x.id = a.id and x.calm_since is null;
        continue;
      end if;
      a.words := pgmail.over_words(a.kind, a.subject, a.words, extract(epoch from now_ - a.since)::float8, a.enabled is true and (a.tenant_id is null or a.own
        or not exists (select from pgmail.alert_rule o where o.tenant_id = a.tenant_id and o.name = a.rule)));
      update pgmail.alert x set state = 'resolved', resolved_at = now_, over = a.words where x.id = a.id;
      if a.told_at is not null and not a.quiet then perform pgmail.tell_alert(a.id, 'resolved'); end if;
      move := 'resolved';
    elsif a.state = 'pending' then
      if a.since > now_ - a.for_seconds * interval '1 second' then continue; end if;
      update pgmail.alert x set state = 'firing', fired_at = now_ where x.id = a.id;
      move := 'firing'; told := not a.quiet;
    elsif a.quiet then
      continue;
    elsif a.told_at is null then
      move := 'firing'; told := true;      -- it began in a silence, which is over
    elsif a.told_at <= now_ - a.renotify_seconds * interval '1 second' then
      perform pgmail.tell_alert(a.id, 'reminder');
      update pgmail.alert x set told_at = now_ where x.id = a.id;
      continue;
    else
      continue;
    end if;
    if told then
      perform pgmail.tell_alert(a.id, 'firing');
      update pgmail.alert x set told_at = now_ where x.id = a.id;
    end if;
    rule := a.rule; severity := a.severity; tenant := a.tenant_name; subject := a.subject; words := a.words; silenced := a.quiet;
    return next;
  end loop;
end
$$;

-- What is over for 30 days goes, and what was told of it; silences that ended, too. The meter is thinned: minutes for two hours,
-- quarters of an hour for two days, which the longest window and the day before it take; the last one before that stays, to be
-- counted from. 5,000 rows of each at most: what is answered is 0 when nothing is left to do. Once an hour, by the leader.
create or replace function pgmail.alert_purge_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare n integer; m integer; now_ timestamptz := pgmail.now(); most constant integer := 5000;
begin
  delete from pgmail.alert_meter m using (
    select y.tenant_id, y.stream, y.at from (
      select x.tenant_id, x.stream, x.at, lead(x.at) over w as next_, lead(floor(extract(epoch from x.at) / 900)) over w as next_quarter
      from pgmail.alert_meter x where x.at < now_ - interval '2 hours' window w as (partition by x.tenant_id, x.stream order by x.at)) y
    where y.next_quarter = floor(extract(epoch from y.at) / 900) or (y.at < now_ - interval '49 hours' and y.next_ < now_ - interval '48 hours')
    limit most) old
  where m.tenant_id = old.tenant_id and m.stream = old.stream and m.at = old.at;
  get diagnostics n = row_count;
  delete from pgmail.alert a where a.id in (
    select x.id from pgmail.alert x where x.state = 'resolved' and x.resolved_at < now_ - interval '30 days' order by x.resolved_at limit most);
  get diagnostics m = row_count; n := n + m;
  delete from pgmail.alert_delivery d where d.id in (
    select x.id from pgmail.alert_delivery x where x.state <> 'waiting' and x.done_at < now_ - interval '30 days' order by x.done_at limit most);
  get diagnostics m = row_count; n := n + m;
  delete from pgmail.alert_silence s where s.until <= now_;
  delete from pgmail.certificate c where c.seen_at < now_ - interval '30 days';
  return n;
end
$$;

-- Certificates as a process saw them, or could not: what was seen last stands, for what has ended may be why.
create or replace function pgmail.saw_certificate_v1(p_name text, p_place text, p_ends_at timestamptz) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.certificate (name, place, ends_at) values (left(p_name, 300), left(p_place, 300), p_ends_at)
  on conflict (name) do update set place = excluded.place, ends_at = excluded.ends_at, seen_at = pgmail.now(), unseen_since = null, answer = null
$$;

create or replace function pgmail.missed_certificate_v1(p_name text, p_place text, p_answer text) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.certificate as c (name, place, unseen_since, answer) values (left(p_name, 300), left(p_place, 300), pgmail.now(), left(p_answer, 300))
  on conflict (name) do update set seen_at = pgmail.now(), unseen_since = coalesce(c.unseen_since, excluded.unseen_since), answer = excluded.answer
$$;

-- The next delivery of each target that is due, in the order in which they were made, p_most at most; of p_busy targets none.
-- Each is taken for two minutes, and counts as lost after that: it may then be told twice. An alert's end waits for its beginning.
create or replace function pgmail.alert_take_v1(p_most integer, p_busy uuid[] default '{}')
returns table (id uuid, tenant_id integer, target_id uuid, target text, target_kind text, secret bytea, kek text, event text, attempts smallint,
               alert_id uuid, rule text, severity text, tenant text, subject text, words text, value double precision, threshold double precision,
               since timestamptz, fired_at timestamptz, resolved_at timestamptz, path text, made_at timestamptz)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
begin
  return query
  with next_ as materialized (
    select x.id from pgmail.alert_target t
    cross join lateral (
      select d.* from pgmail.alert_delivery d where d.target_id = t.id and d.state = 'waiting' order by d.id limit 1) x
    where t.id <> all (p_busy) and x.due_at <= pgmail.now() order by x.id limit p_most
  ), taken as (
    update pgmail.alert_delivery d set due_at = pgmail.now() + interval '2 minutes', attempts = d.attempts + 1
    where d.id in (select l.id from pgmail.alert_delivery l where l.id in (select n.id from next_ n) and l.state = 'waiting'
                     and l.due_at <= pgmail.now() for update skip locked)
    returning d.*
  )
  select d.id, t.tenant_id, t.id, t.name, t.kind, t.secret, t.kek, d.event, d.attempts, a.id, a.rule, a.severity, n.name, a.subject,
    case when d.event = 'resolved' then coalesce(a.over, a.words) else a.words end, a.value,
    a.threshold, a.since, a.fired_at, a.resolved_at, a.path, d.made_at
  from taken d join pgmail.alert_target t on t.id = d.target_id
  left join pgmail.alert a on a.id = d.alert_id left join pgmail.tenant n on n.id = a.tenant_id
  order by d.id;
end
$$;

-- Deliveries that were taken and broken off, as a process that stops does: the next one tells them at once. One that got through is
-- told twice. Answers how many.
create or replace function pgmail.alert_give_back_v1(p_ids uuid[]) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  update pgmail.alert_delivery d set due_at = pgmail.now(), attempts = greatest(d.attempts - 1, 0)
  where d.id = any (p_ids) and d.state = 'waiting' and d.due_at > pgmail.now();
  get diagnostics n = row_count;
  return n;
end
$$;

-- How it went. What failed is tried again after 10 s, 30 s, 1 min, 5 min, 15 min, then each half an hour, for a day; a test is
-- tried once. p_final: never again.
create or replace function pgmail.alert_told_v1(p_id uuid, p_ok boolean, p_answer text, p_final boolean default false) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare d pgmail.alert_delivery; now_ timestamptz := pgmail.now(); answer_ text := left(p_answer, 500); state_ text;
begin
  select x.* into d from pgmail.alert_delivery x where x.id = p_id and x.state = 'waiting' for update;
  if not found then return null; end if;
  state_ := case when p_ok then 'sent' when p_final or d.event = 'test' or d.made_at < now_ - interval '1 day' then 'failed' else 'waiting' end;
  update pgmail.alert_delivery x set state = state_, answer = answer_, done_at = case when state_ <> 'waiting' then now_ end,
    due_at = case when state_ = 'waiting' then now_ + (array[10, 30, 60, 300, 900, 1800])[least(greatest(d.attempts, 1), 6)] * interval '1 second' else x.due_at end
  where x.id = p_id;
  update pgmail.alert_target t set told_at = case when p_ok then now_ else t.told_at end, answer = case when p_ok then null else answer_ end,
    failing_since = case when p_ok then null else coalesce(t.failing_since, now_) end
  where t.id = d.target_id;
  return state_;
end
$$;

-- A target of the caller's tenant or the fleet. What is secret of it comes sealed where p_kek says by which key.
create or replace function pgmail.add_alert_target(
  p_name text, p_kind text, p_shown text, p_secret bytea, p_kek text, p_severity text default 'warning', p_fleet boolean default false, p_id uuid default null
) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); id_ uuid;
begin
  if coalesce(p_name, '') !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  elsif p_kind is null or p_kind not in ('webhook', 'slack', 'email') then
    perform pgmail.refuse('invalid_kind', '/kind', 'must be webhook, slack or email');
  elsif p_severity is null or p_severity not in ('info', 'warning', 'critical') then
    perform pgmail.refuse('invalid_severity', '/severity', 'must be info, warning or critical');
  elsif octet_length(p_secret) > 16384 then
    perform pgmail.refuse('invalid_target', '/url', 'is too long');
  elsif (select count(*) from pgmail.alert_target x where x.tenant_id is not distinct from t) >= 50 then
    perform pgmail.refuse('too_many', '/name', 'there are 50 targets already; remove one first', 409);
  end if;
  insert into pgmail.alert_target (tenant_id, id, name, kind, shown, secret, kek, severity, created_by)
  values (t, coalesce(p_id, pgmail.uuid7()), p_name, p_kind, left(p_shown, 500), p_secret, p_kek, p_severity, pgmail.actor())
  on conflict do nothing returning id into id_;
  if id_ is null then perform pgmail.refuse('already_there', '/name', format('a target is named %s already', p_name), 409); end if;
  perform pgmail.record_act(t, 'alert.target.add', p_name, p_kind || ' ' || left(p_shown, 500));
  return id_;
end
$$;

-- Told of nothing from now on; what waits for it is given up. False if there is none of that name.
create or replace function pgmail.remove_alert_target(p_name text, p_reason text default null, p_fleet boolean default false) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); id_ uuid;
begin
  delete from pgmail.alert_target x where x.name = p_name and x.tenant_id is not distinct from t returning x.id into id_;
  if id_ is null then return false; end if;
  delete from pgmail.alert_delivery d where d.target_id = id_ and d.state = 'waiting';
  perform pgmail.record_act(t, 'alert.target.remove', p_name, p_reason);
  return true;
end
$$;

-- Sends a test to a target; the delivery's id, to be asked for.
create or replace function pgmail.test_alert_target(p_name text, p_fleet boolean default false) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); target_ uuid; id_ uuid;
begin
  select x.id into target_ from pgmail.alert_target x where x.name = p_name and x.tenant_id is not distinct from t;
  if target_ is null then perform pgmail.refuse('not_found', '/name', format('no target is named %L', left(p_name, 63)), 404); end if;
  insert into pgmail.alert_delivery (tenant_id, target_id, event) values (t, target_, 'test') returning id into id_;
  perform pgmail.record_act(t, 'alert.target.test', p_name, null);
  return id_;
end
$$;

-- What became of a delivery of the caller's.
create or replace function pgmail.alert_delivery_state(p_id uuid, p_fleet boolean default false, out state text, out answer text)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet);
begin
  select d.state, d.answer into state, answer from pgmail.alert_delivery d where d.id = p_id and d.tenant_id is not distinct from t;
end
$$;

-- The caller's targets; with p_all those of the fleet and of all tenants. Never what is secret of them.
create or replace function pgmail.alert_targets(p_all boolean default false)
returns table (id uuid, name text, tenant text, kind text, shown text, sealed boolean, severity text, created_at timestamptz, created_by text,
               told_at timestamptz, failing_since timestamptz, answer text, waiting integer)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare t integer; every boolean := p_all;
begin
  if every then perform pgmail.tenant_or_fleet(true); else t := pgmail.need_tenant(); end if;
  return query
  select x.id, x.name, n.name, x.kind, x.shown, x.kek is not null, x.severity, x.created_at, x.created_by, x.told_at, x.failing_since, x.answer,
    (select count(*)::integer from pgmail.alert_delivery d where d.target_id = x.id and d.state = 'waiting')
  from pgmail.alert_target x left join pgmail.tenant n on n.id = x.tenant_id
  where every or x.tenant_id = t
  order by x.name, n.name nulls first;
end
$$;

-- Alerts that the caller sees, those that are open first, the newest first of each. p_state: firing, pending, resolved, open (the
-- first two), all. p_after: the id of the last one seen.
create or replace function pgmail.alerts(p_all boolean default false, p_state text default 'open', p_rule text default null, p_limit integer default 100, p_after uuid default null)
returns table (id uuid, rule text, kind text, tenant text, subject text, severity text, state text, since timestamptz, fired_at timestamptz,
               resolved_at timestamptz, value double precision, threshold double precision, unit text, words text, path text, silenced boolean, told_at timestamptz)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare t integer; every boolean := p_all; last_ pgmail.alert;
begin
  if every then perform pgmail.tenant_or_fleet(true); else t := pgmail.need_tenant(); end if;
  select x.* into last_ from pgmail.alert x where x.id = p_after;
  return query
  select x.id, x.rule, x.kind, n.name, x.subject, x.severity, x.state, x.since, x.fired_at, x.resolved_at, x.value, x.threshold, k.unit, coalesce(x.over, x.words), x.path,
    pgmail.is_silenced(x.tenant_id, x.rule, x.subject), x.told_at
  from pgmail.alert x left join pgmail.tenant n on n.id = x.tenant_id left join pgmail.alert_kinds() k on k.kind = x.kind
  where (every or pgmail.sees_alert(t, x.tenant_id, x.kind))
    and case p_state when 'all' then true when 'open' then x.state <> 'resolved' else x.state = p_state end
    and (p_rule is null or x.rule = p_rule)
    and (last_.id is null or (x.state = 'resolved') > (last_.state = 'resolved')
         or ((x.state = 'resolved') = (last_.state = 'resolved') and x.id < last_.id))
  order by x.state = 'resolved', x.id desc limit least(greatest(p_limit, 1), 1000);
end
$$;

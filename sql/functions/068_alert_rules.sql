-- Alerts: rules, silences and targets as people set them (ops/docs/alerts.md). What is looked at stands in the files
-- 068_alert_facts*, what becomes of it in 068_alert_step.

-- The kinds of rules. family: the function that looks. level: whether it is looked at for each tenant or once for the fleet;
-- a tenant changes its own rules of the first. about_what: what a subject is. path: the page that shows it. public: its mail
-- feels it. ended: how it is when it is over, %s its subject.
create or replace function pgmail.alert_kinds()
returns table (kind text, family text, level text, about_what text, unit text, path text, public boolean, ended text)
language sql immutable parallel safe
as $$
  values
    ('oldest_due', 'mail', 'tenant', 'stream', 'seconds', '/queue', false, 'mail of the stream %s is no longer late'),
    ('queue_depth', 'mail', 'tenant', 'stream', 'recipients', '/queue', false, 'the queue of the stream %s is short enough'),
    ('in_doubt', 'mail', 'tenant', '', 'recipients', '/in-doubt', false, 'what was in doubt is decided'),
    ('pause_forgotten', 'mail', 'tenant', 'what is paused', 'seconds', '/queue', false, 'the pause of %s has ended, or has an end'),
    ('sender_domain', 'mail', 'tenant', 'domain', '', '/domains', false, 'the record of %s is missing no more'),
    ('error_rate', 'rates', 'tenant', 'stream', 'times its baseline', '/dead-letters', false, 'the stream %s fails no more often than usual'),
    ('bounce_rate', 'rates', 'tenant', 'stream', 'share', '/emails', false, 'few enough emails of the stream %s bounce'),
    ('dead_letters', 'rates', 'tenant', 'stream', 'recipients', '/dead-letters', false, 'the stream %s makes few dead letters'),
    ('site_bounce_rate', 'traffic', 'tenant', 'site', 'share', '/emails', false, 'few enough emails to %s bounce'),
    ('webhook_failing', 'traffic', 'tenant', 'webhook', 'seconds', '/webhooks', false, 'the webhook %s fails no more, or was removed'),
    ('no_worker', 'mail', 'fleet', '', 'seconds', '/workers', true, 'a worker is alive, or no mail is due'),
    ('sending_stalled', 'mail', 'fleet', '', 'seconds', '/queue', true, 'mail is sent, or none is due'),
    ('restored_database', 'fleet', 'fleet', '', '', '/queue', true, 'an operator has decided, and sending goes on'),
    ('relay_away', 'fleet', 'fleet', 'relay', 'seconds', '/workers', true, 'the relay %s answers'),
    ('worker_lost', 'fleet', 'fleet', 'worker', '', '/workers', false, 'no more is told of %s, which was lost some time ago'),
    ('certificate', 'fleet', 'fleet', 'certificate', 'days', '/workers', false, 'the certificate of %s ends later, or is no longer used'),
    ('figures_late', 'fleet', 'fleet', 'what is late', 'seconds', '/workers', true, 'the %s are up to date'),
    ('partitions_low', 'fleet', 'fleet', '', 'days', '/alerts', false, 'there are partitions enough'),
    ('old_transaction', 'database', 'fleet', '', 'seconds', '/alerts', false, 'no old transaction keeps dead rows'),
    ('table_bloat', 'database', 'fleet', 'table', 'dead rows', '/alerts', false, 'the table %s is clean enough'),
    ('replication', 'database', 'fleet', 'standby or slot', 'seconds', '/alerts', false, 'the %s is behind no more'),
    ('notify_queue', 'database', 'fleet', '', 'share', '/alerts', false, 'the queue of NOTIFY is empty enough'),
    ('wraparound', 'database', 'fleet', '', 'transactions', '/alerts', false, 'transaction ids are young enough'),
    ('connections', 'database', 'fleet', '', 'share', '/alerts', false, 'connections are free')
$$;

-- The rules of a kind that hold for each tenant: its own, else the fleet's of that name.
create or replace function pgmail.alert_rules_of(p_kind text)
returns table (tenant_id integer, rule_id bigint, about text, threshold double precision, floor double precision, minimum bigint, window_seconds integer)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select t.id, r.id, r.about, r.threshold, r.floor, r.minimum, r.window_seconds
  from pgmail.alert_rule r join pgmail.tenant t on r.tenant_id = t.id
    or (r.tenant_id is null and not exists (select from pgmail.alert_rule o where o.tenant_id = t.id and o.name = r.name))
  where r.kind = p_kind and r.enabled
$$;

-- Whether the caller's tenant sees what concerns the fleet: where it is alone here, all of it; else what its mail feels.
create or replace function pgmail.sees_alert(p_caller integer, p_tenant integer, p_kind text) returns boolean
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select case when p_tenant is not null then p_tenant = p_caller
    else (select count(*) from pgmail.tenant) = 1 or coalesce((select k.public from pgmail.alert_kinds() k where k.kind = p_kind), false) end
$$;

-- Changes what is named of a rule. A tenant's first change of a rule of the fleet makes its own of that name; a new name
-- makes a rule and must say of which kind. Answers the rule.
create or replace function pgmail.set_alert_rule(p_name text, p_settings jsonb, p_reason text default null, p_fleet boolean default false)
returns pgmail.alert_rule
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); r pgmail.alert_rule; k record; field text; given jsonb; was bigint;
begin
  if coalesce(p_name, '') !~ '^[a-z][a-z0-9_]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of a-z, 0-9 and _, led by a letter');
  elsif jsonb_typeof(p_settings) is distinct from 'object' then
    perform pgmail.refuse('invalid_body', '', 'must be an object');
  elsif length(p_reason) > 1000 then
    perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters');
  end if;
  select x.* into r from pgmail.alert_rule x where x.name = p_name and x.tenant_id is not distinct from t for update;
  was := r.id;
  if was is null then
    select x.* into r from pgmail.alert_rule x where x.name = p_name and x.tenant_id is null;
    if r.id is null then
      if jsonb_typeof(p_settings->'kind') is distinct from 'string' then
        perform pgmail.refuse('unknown_rule', '/name', format('no rule is named %L; a new one needs its kind', p_name), 404);
      end if;
      -- What is not said is as in the shipped rule of that kind, as it is now.
      select x.* into r from pgmail.alert_rule x where x.kind = p_settings->>'kind' and x.tenant_id is null order by x.id limit 1;
      if r.id is null then
        select x.kind, 0 into r.kind, r.threshold from pgmail.alert_kinds() x where x.kind = p_settings->>'kind';
        r.severity := 'warning'; r.for_seconds := 0; r.calm_seconds := 60;
      end if;
      r.note := null; r.enabled := true;
    end if;
  end if;
  select x.* into k from pgmail.alert_kinds() x where x.kind = coalesce(r.kind, p_settings->>'kind');
  if k.kind is null then
    perform pgmail.refuse('invalid_rule', '/kind', 'must be one of ' || (select string_agg(x.kind, ', ' order by x.kind) from pgmail.alert_kinds() x));
  elsif p_settings ? 'kind' and p_settings->>'kind' is distinct from r.kind then
    perform pgmail.refuse('invalid_rule', '/kind', format('the rule %s is of the kind %s; take another name', p_name, r.kind));
  elsif t is not null and k.level = 'fleet' then
    perform pgmail.refuse('not_allowed', '/name', format('rules of the kind %s are the fleet''s, and an operator''s to set', k.kind), 403);
  end if;
  for field, given in select * from jsonb_each(p_settings) loop
    if field not in ('kind', 'about', 'enabled', 'threshold', 'floor', 'minimum', 'window_seconds', 'for_seconds', 'calm_seconds',
                     'renotify_seconds', 'severity', 'note') then
      perform pgmail.refuse('unknown_key', '/' || left(field, 80), 'is no setting of a rule');
    elsif field = 'enabled' and jsonb_typeof(given) <> 'boolean' then
      perform pgmail.refuse('invalid_rule', '/enabled', 'must be true or false');
    elsif field in ('severity', 'about', 'note') and jsonb_typeof(given) not in ('string', 'null') then
      perform pgmail.refuse('invalid_rule', '/' || field, 'must be a text');
    elsif field in ('threshold', 'floor', 'minimum', 'window_seconds', 'for_seconds', 'calm_seconds', 'renotify_seconds') then
      if jsonb_typeof(given) = 'null' and field in ('floor', 'minimum', 'renotify_seconds') then continue; end if;
      if jsonb_typeof(given) <> 'number' or (given::text)::numeric not between 0 and 1000000000000000 then
        perform pgmail.refuse('invalid_rule', '/' || field, 'must be a number from 0');
      elsif field <> 'threshold' and field <> 'floor' and (given::text)::numeric <> trunc((given::text)::numeric) then
        perform pgmail.refuse('invalid_rule', '/' || field, 'must be a whole number');
      elsif field = 'window_seconds' and (given::text)::numeric not between 60 and 86400 then
        perform pgmail.refuse('invalid_rule', '/window_seconds', 'must be from 60 to 86,400');
      elsif field = 'for_seconds' and (given::text)::numeric > 604800 then
        perform pgmail.refuse('invalid_rule', '/for_seconds', 'must be at most 604,800');
      elsif field = 'calm_seconds' and (given::text)::numeric > 86400 then
        perform pgmail.refuse('invalid_rule', '/calm_seconds', 'must be at most 86,400');
      elsif field = 'renotify_seconds' and (given::text)::numeric not between 60 and 2592000 then
        perform pgmail.refuse('invalid_rule', '/renotify_seconds', 'must be from 60 to 2,592,000');
      end if;
    end if;
  end loop;
  if p_settings ? 'severity' and coalesce(p_settings->>'severity', '') not in ('info', 'warning', 'critical') then
    perform pgmail.refuse('invalid_rule', '/severity', 'must be info, warning or critical');
  elsif length(p_settings->>'note') > 1000 or length(p_settings->>'about') > 300 then
    perform pgmail.refuse('invalid_rule', '/note', 'longer than 1,000 characters, or about than 300');
  end if;
  r := jsonb_populate_record(r, p_settings);
  r.tenant_id := t; r.name := p_name; r.changed_at := pgmail.now(); r.changed_by := pgmail.actor(); r.shipped := false;
  if was is null then
    insert into pgmail.alert_rule (tenant_id, name, kind, about, enabled, threshold, floor, minimum, window_seconds, for_seconds, calm_seconds,
      renotify_seconds, severity, note, changed_at, changed_by)
    values (t, p_name, r.kind, r.about, r.enabled, r.threshold, r.floor, r.minimum, r.window_seconds, r.for_seconds, r.calm_seconds,
      r.renotify_seconds, r.severity, r.note, r.changed_at, r.changed_by)
    returning * into r;
  else
    update pgmail.alert_rule x set about = r.about, enabled = r.enabled, threshold = r.threshold, floor = r.floor, minimum = r.minimum,
      window_seconds = r.window_seconds, for_seconds = r.for_seconds, calm_seconds = r.calm_seconds, renotify_seconds = r.renotify_seconds,
      severity = r.severity, note = r.note, changed_at = r.changed_at, changed_by = r.changed_by, shipped = false
    where x.id = was;
  end if;
  perform pgmail.record_act(t, 'alert.set', p_name, concat_ws(': ', p_reason, p_settings::text));
  return r;
end
$$;

-- No such rule from now on: a tenant goes back to the fleet's of that name. A shipped one is switched off instead, so that an
-- upgrade cannot bring it back. False if there is none.
create or replace function pgmail.remove_alert_rule(p_name text, p_reason text default null, p_fleet boolean default false) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet);
begin
  if t is null and exists (select from pgmail.alert_kinds() k where k.kind = p_name) then
    perform pgmail.refuse('not_allowed', '/name', format('%s comes with pgmail; switch it off instead: pgmail alert set %s --off', p_name, p_name), 409);
  end if;
  delete from pgmail.alert_rule r where r.name = p_name and r.tenant_id is not distinct from t;
  if not found then return false; end if;
  perform pgmail.record_act(t, 'alert.remove', p_name, p_reason);
  return true;
end
$$;

-- The rules that the caller sees: those that hold for its tenant, and the fleet's where it sees those. p_all: all of them, for
-- administrators. level: a tenant may set rules of its own in place of those that say `tenant`, and not of those that say `fleet`.
create or replace function pgmail.alert_rules(p_all boolean default false)
returns table (name text, tenant text, kind text, about text, enabled boolean, threshold double precision, unit text, floor double precision,
               minimum bigint, window_seconds integer, for_seconds integer, calm_seconds integer, renotify_seconds integer, severity text,
               note text, shipped boolean, changed_at timestamptz, changed_by text, firing integer, level text)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare t integer; every boolean := p_all;
begin
  if every then perform pgmail.tenant_or_fleet(true); else t := pgmail.need_tenant(); end if;
  return query
  select r.name, n.name, r.kind, r.about, r.enabled, r.threshold, k.unit, r.floor, r.minimum, r.window_seconds, r.for_seconds, r.calm_seconds,
    r.renotify_seconds, r.severity, r.note, r.shipped, r.changed_at, r.changed_by,
    (select count(*)::integer from pgmail.alert a where a.rule_id = r.id and a.state = 'firing' and (every or a.tenant_id is null or a.tenant_id = t)),
    k.level
  from pgmail.alert_rule r join pgmail.alert_kinds() k on k.kind = r.kind left join pgmail.tenant n on n.id = r.tenant_id
  where every or r.tenant_id = t
    or (r.tenant_id is null and not exists (select from pgmail.alert_rule o where o.tenant_id = t and o.name = r.name)
        and (k.level = 'tenant' or pgmail.sees_alert(t, null, r.kind)))
  order by r.name, n.name nulls first;
end
$$;

-- Nobody is told of a rule's alerts, or of one subject's, until a moment or until somebody ends it. They are looked at and
-- shown as ever. Again changes reason and end.
create or replace function pgmail.silence_alert(
  p_rule text, p_reason text, p_until timestamptz default null, p_subject text default '*', p_fleet boolean default false
) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); subject_ text := coalesce(p_subject, '*');
begin
  if not exists (select from pgmail.alert_rule r where r.name = p_rule and (r.tenant_id is null or r.tenant_id = t or t is null)) then
    perform pgmail.refuse('unknown_rule', '/name', format('no rule is named %L', left(p_rule, 63)), 404);
  elsif btrim(coalesce(p_reason, '')) = '' then
    perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why');
  elsif length(p_reason) > 1000 then
    perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters');
  elsif length(subject_) > 300 then
    perform pgmail.refuse('invalid_subject', '/subject', 'longer than 300 characters');
  elsif p_until <= pgmail.now() then
    perform pgmail.refuse('time_in_past', '/until', 'it has passed');
  end if;
  delete from pgmail.alert_silence s where s.until <= pgmail.now() and s.tenant_id is not distinct from t;
  insert into pgmail.alert_silence (tenant_id, rule, subject, reason, until, silenced_by)
  values (t, p_rule, subject_, p_reason, nullif(p_until, 'infinity'), pgmail.actor())
  on conflict (tenant_id, rule, subject) do update set reason = excluded.reason, until = excluded.until,
    silenced_at = pgmail.now(), silenced_by = excluded.silenced_by;
  perform pgmail.record_act(t, 'alert.silence', concat_ws(' ', p_rule, nullif(subject_, '*')), p_reason);
end
$$;

-- Told again from now on: of what fires, too, if nobody was told. False if it was not silenced.
create or replace function pgmail.unsilence_alert(p_rule text, p_reason text default null, p_subject text default '*', p_fleet boolean default false)
returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); held boolean;
begin
  delete from pgmail.alert_silence s
  where s.tenant_id is not distinct from t and s.rule = p_rule and s.subject = coalesce(p_subject, '*')
  returning s.until is null or s.until > pgmail.now() into held;
  if held is not true then return false; end if;
  perform pgmail.record_act(t, 'alert.unsilence', concat_ws(' ', p_rule, nullif(p_subject, '*')), p_reason);
  return true;
end
$$;

-- Silences that hold and that the caller sees.
create or replace function pgmail.alert_silences(p_all boolean default false)
returns table (rule text, subject text, tenant text, fleet boolean, reason text, until timestamptz, silenced_at timestamptz, silenced_by text)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare t integer; every boolean := p_all;
begin
  if every then perform pgmail.tenant_or_fleet(true); else t := pgmail.need_tenant(); end if;
  return query
  select s.rule, s.subject, n.name, s.tenant_id is null, s.reason, s.until, s.silenced_at, s.silenced_by
  from pgmail.alert_silence s left join pgmail.tenant n on n.id = s.tenant_id
  where (s.until is null or s.until > pgmail.now()) and (every or s.tenant_id is null or s.tenant_id = t)
  order by s.silenced_at, s.rule, s.subject;
end
$$;

-- The schema as migrations and functions make it on PostgreSQL 18, without roles, rights, weekly partitions.
-- To read, not to run. Written by `make schema`; a test proves that it equals what the files make.

CREATE SCHEMA pgmail;

CREATE TYPE pgmail.address AS (
	address text,
	rcpt text,
	name text,
	domain text,
	fault text
);

CREATE TYPE pgmail.alert_fact AS (
	rule_id bigint,
	tenant_id integer,
	subject text,
	value double precision,
	words text
);

CREATE TYPE pgmail.person AS (
	role text,
	address text,
	rcpt text,
	name text,
	domain text,
	variables jsonb
);

CREATE TYPE pgmail.email AS (
	fault_code text,
	fault_field text,
	fault_message text,
	fault_status integer,
	sender text,
	stream text,
	priority smallint,
	mode text,
	max_queued bigint,
	people pgmail.person[],
	template text,
	template_version integer,
	content bytea,
	headers jsonb,
	attachments jsonb,
	tags jsonb,
	metadata jsonb,
	due_at timestamp with time zone,
	expires_at timestamp with time zone,
	on_limit text,
	idempotency_key text,
	body_hash bytea,
	size_bytes integer,
	message_id uuid,
	seal_key integer,
	traceparent text,
	test boolean
);

CREATE TYPE pgmail.options AS (
	mode text,
	stream text,
	priority smallint,
	template text,
	template_version integer,
	missing text[],
	variables jsonb,
	metadata jsonb,
	on_limit text,
	idempotency_key text,
	body_hash bytea,
	texts jsonb
);

CREATE FUNCTION pgmail.accept_restore(p_decision text, p_reason text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.act_source() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select coalesce(
    (select nullif(left(current_setting('pgmail.source', true), 100), '') from pgmail.database_role r
      where r.role_name = session_user and r.carries_tenant),
    host(inet_client_addr()), 'local')
$$;

CREATE FUNCTION pgmail.now() RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT statement_timestamp() AS statement_timestamp;
END;

CREATE FUNCTION pgmail.uuid7() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$select uuidv7()$$;

CREATE TABLE pgmail.api_key (
    tenant_id integer NOT NULL,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    name text NOT NULL,
    hint text NOT NULL,
    hash bytea NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    revoked_at timestamp with time zone,
    scopes text[] DEFAULT '{send,read,manage}'::text[] NOT NULL,
    test boolean DEFAULT false NOT NULL,
    streams text[],
    from_domains text[],
    networks cidr[],
    expires_at timestamp with time zone,
    family uuid,
    replaced_by uuid,
    last_used_at timestamp with time zone,
    last_used_from inet,
    CONSTRAINT api_key_scopes CHECK (((cardinality(scopes) > 0) AND (scopes <@ '{send,read,manage,admin}'::text[])))
);

ALTER TABLE ONLY pgmail.api_key FORCE ROW LEVEL SECURITY;

CREATE FUNCTION pgmail.acting_admin() RETURNS pgmail.api_key
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare k pgmail.api_key;
begin
  if not exists (select from pgmail.database_role r where r.role_name = session_user and r.carries_tenant) then return k; end if;
  select * into k from pgmail.api_key x
   where x.tenant_id = pgmail.need_tenant() and x.id = pgmail.current_key() and x.revoked_at is null
     and (x.expires_at is null or x.expires_at > pgmail.now()) and 'admin' = any (x.scopes);
  if k.id is null then perform pgmail.refuse('missing_scope', '', 'this takes a key with the scope admin', 403); end if;
  return k;
end
$$;

CREATE FUNCTION pgmail.actor() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select coalesce(
    (select nullif(current_setting('pgmail.actor', true), '') from pgmail.database_role r
      where r.role_name = session_user and r.carries_tenant),
    session_user::text)
$$;

CREATE FUNCTION pgmail.add_alert_target(p_name text, p_kind text, p_shown text, p_secret bytea, p_kek text, p_severity text DEFAULT 'warning'::text, p_fleet boolean DEFAULT false, p_id uuid DEFAULT NULL::uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION pgmail.add_data_key(p_tenant text, p_wrapped bytea, p_kek text, p_reason text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = p_tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  return pgmail.store_data_key(t, p_wrapped, p_kek, p_reason, false);
end
$$;

CREATE FUNCTION pgmail.add_domain(p_domain text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); named text := pgmail.domain_ascii(btrim(p_domain, ' ')); i uuid;
begin
  -- _pgmail. in front has to fit into a name, too (RFC 1035, section 2.3.4).
  if named is null or length(named) > 245 then
    perform pgmail.refuse('invalid_domain', '/name', format('%L is no domain, as in example.com', left(p_domain, 253)));
  end if;
  select x.id into i from pgmail.sender_domain x where x.tenant_id = t and x.domain = named;
  if found then return i; end if;
  if (select count(*) from pgmail.sender_domain x where x.tenant_id = t) >= 10000 then
    perform pgmail.refuse('limit_reached', '/name', 'a tenant has at most 10,000 domains', 429);
  end if;
  insert into pgmail.sender_domain as d (tenant_id, domain, token, created_by)
  values (t, named, replace(gen_random_uuid()::text, '-', ''), pgmail.actor())
  on conflict (tenant_id, domain) do nothing returning d.id into i;
  if i is null then   -- another has just added it
    select x.id into i from pgmail.sender_domain x where x.tenant_id = t and x.domain = named;
    return i;
  end if;
  perform pgmail.record_act(t, 'domain.add', named, null);
  return i;
end
$$;

CREATE FUNCTION pgmail.add_hook(p_id uuid, p_url text, p_types text[], p_streams text[], p_tags jsonb, p_description text, p_key integer, p_sealed bytea) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook; t integer := pgmail.need_tenant();
begin
  h.tenant_id := t; h.id := p_id; h.url := p_url; h.types := p_types; h.streams := p_streams; h.tags := p_tags;
  h.description := nullif(btrim(p_description), '');
  perform pgmail.check_hook(h);
  perform pgmail.check_hook_secret(t, p_key, p_sealed);
  perform pg_advisory_xact_lock(hashtextextended('pgmail.hook/' || t, 0));
  if (select count(*) from pgmail.hook x where x.tenant_id = t and x.removed_at is null) >= 100 then
    perform pgmail.refuse('limit_reached', '', 'a tenant has at most 100 webhooks', 429);
  end if;
  insert into pgmail.hook (tenant_id, id, url, description, types, streams, tags, created_by)
  values (t, h.id, h.url, h.description, h.types, h.streams, h.tags, pgmail.actor()) on conflict do nothing;
  if not found then perform pgmail.refuse('invalid_field', '/id', 'there is a webhook of this id', 409); end if;
  insert into pgmail.hook_secret (tenant_id, hook_id, id, key_id, sealed, created_by) values (t, h.id, 1, p_key, p_sealed, pgmail.actor());
  perform pgmail.begin_hooks();
  perform pgmail.record_act(t, 'webhook.create', format('%s %s', h.id, split_part(h.url, '?', 1)), array_to_string(h.types, ', '));
end
$$;

CREATE FUNCTION pgmail.alert_delivery_state(p_id uuid, p_fleet boolean DEFAULT false, OUT state text, OUT answer text) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_or_fleet(p_fleet);
begin
  select d.state, d.answer into state, answer from pgmail.alert_delivery d where d.id = p_id and d.tenant_id is not distinct from t;
end
$$;

CREATE FUNCTION pgmail.alert_deltas(p_seconds double precision) RETURNS TABLE(tenant_id integer, stream text, sent bigint, bounced bigint, dead bigint)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare at_ timestamptz := pgmail.now() - p_seconds * interval '1 second';
begin
  return query
  with moved as (
    select t.tenant_id, t.stream, (t.sent - m.sent)::bigint as sent, (t.bounced - m.bounced)::bigint as bounced
    from (select x.tenant_id, x.stream, coalesce(sum(x.n) filter (where x.kind = 'sent'), 0) as sent,
            coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0) as bounced
          from pgmail.tally_total x where x.kind in ('sent', 'bounced') group by x.tenant_id, x.stream) t
    cross join lateral (
      select y.* from (
        (select x.sent, x.bounced, 1 as n from pgmail.alert_meter x
         where x.tenant_id = t.tenant_id and x.stream = t.stream and x.at <= at_ order by x.at desc limit 1)
        union all
        (select x.sent, x.bounced, 2 from pgmail.alert_meter x
         where x.tenant_id = t.tenant_id and x.stream = t.stream order by x.at limit 1)) y
      order by y.n limit 1) m
    where (t.sent, t.bounced) <> (m.sent, m.bounced)
  )
  select coalesce(v.tenant_id, d.tenant_id), coalesce(v.stream, d.stream), coalesce(v.sent, 0), coalesce(v.bounced, 0), coalesce(d.n, 0)
  from moved v full join pgmail.alert_died(p_seconds) d on d.tenant_id = v.tenant_id and d.stream = v.stream;
end
$$;

CREATE FUNCTION pgmail.alert_died(p_seconds double precision) RETURNS TABLE(tenant_id integer, stream text, n bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
  select t.id, x.key, x.n
  from (select pgmail.now() - p_seconds * interval '1 second') f(since) cross join pgmail.tenant t
  cross join lateral (
    select u.key, sum(u.n)::bigint as n from pgmail.rollup u
    where u.tenant_id = t.id and u.dim = 'stream' and u.grain = case when p_seconds <= 7200 then 'minute' else 'quarter' end and u.at > f.since
      and u.kind = 'dead'
    group by u.key) x
  where exists (select from pgmail.rollup h where h.tenant_id = t.id and h.dim = 'stream' and h.grain = 'hour' and h.at > f.since - interval '1 hour' and h.kind = 'dead')
$$;

CREATE FUNCTION pgmail.alert_facts_database() RETURNS SETOF pgmail.alert_fact
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare most integer := current_setting('max_connections')::integer;
begin
  return query
  select r.id, null::integer, '', o.seconds, format('Dead rows are kept for %s by %s; to end it: %s.', pgmail.span_words(o.seconds), o.who, o.mend)
  from pgmail.oldest_snapshot() o join pgmail.alert_rule r on r.kind = 'old_transaction' and r.tenant_id is null and r.enabled and o.seconds > r.threshold;

  return query
  select r.id, null::integer, t.name, t.dead::float8, format('The table %s holds %s dead rows beside %s living ones (%s), last vacuumed %s.', t.name,
    pgmail.number_words(t.dead), pgmail.number_words(t.living), pg_size_pretty(t.bytes), coalesce('at ' || pgmail.at_words(t.vacuumed_at), 'never'))
  from pgmail.hot_tables() t join pgmail.alert_rule r on r.kind = 'table_bloat' and r.tenant_id is null and r.enabled and coalesce(r.about, t.name) = t.name
  where t.dead > r.threshold and t.dead > t.living;

  return query
  select r.id, null::integer, x.kind || ' ' || x.name, coalesce(x.lag_seconds, 0), case
    when x.lag_seconds > r.threshold then format('The standby %s lags %s behind.', x.name, pgmail.span_words(x.lag_seconds))
    else format('The replication slot %s %s keeps %s of WAL.', x.name, case when x.active then 'is behind and' else 'is used by nobody and' end, pg_size_pretty(x.kept_bytes)) end
  from pgmail.replicas() x
  join pgmail.alert_rule r on r.kind = 'replication' and r.tenant_id is null and r.enabled and coalesce(r.about, x.name) = x.name
  where x.lag_seconds > r.threshold or x.kept_bytes > coalesce(r.floor, 'Infinity') * case when x.active then 1 else 0.1 end;

  return query
  select r.id, null::integer, '', u.share, format('The queue of NOTIFY is %s full: a session that listens sits in a long transaction.', pgmail.share_words(u.share))
  from (select pg_notification_queue_usage() as share) u
  join pgmail.alert_rule r on r.kind = 'notify_queue' and r.tenant_id is null and r.enabled and u.share > r.threshold;

  return query
  select r.id, null::integer, '', d.age, format('The oldest transaction id of this database is %s transactions old; at 2,100,000,000 PostgreSQL takes no more writes.', pgmail.number_words(d.age::numeric))
  from (select age(x.datfrozenxid)::float8 as age from pg_database x where x.datname = current_database()) d
  join pgmail.alert_rule r on r.kind = 'wraparound' and r.tenant_id is null and r.enabled and d.age > r.threshold;

  return query
  select r.id, null::integer, '', c.n::float8 / most, format('%s of %s connections to the database are in use.', c.n, most)
  from (select count(*) as n from pg_stat_activity a where a.backend_type is null or a.backend_type = 'client backend') c
  join pgmail.alert_rule r on r.kind = 'connections' and r.tenant_id is null and r.enabled and c.n > r.threshold * most;
end
$$;

CREATE FUNCTION pgmail.alert_facts_fleet() RETURNS SETOF pgmail.alert_fact
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare now_ timestamptz := pgmail.now();
begin
  return query
  select r.id, null::integer, '', extract(epoch from now_ - f.noticed_at)::float8,
    format('All sending is stopped since %s, for the database was restored: %s; pgmail resume --after-restore decides.', pgmail.at_words(f.noticed_at), rtrim(f.reason, '. '))
  from pgmail.fence f join pgmail.alert_rule r on r.kind = 'restored_database' and r.tenant_id is null and r.enabled;

  -- Its row is written anew by each probe, so how long it lasts is the alert's own to know.
  return query
  select r.id, null::integer, y.name, 0::float8, format('The relay %s does not answer: %s.', y.name, rtrim(coalesce(y.reason, 'unreachable'), '. '))
  from pgmail.relay y join pgmail.alert_rule r on r.kind = 'relay_away' and r.tenant_id is null and r.enabled and coalesce(r.about, y.name) = y.name
  where y.state = 'away';

  return query
  select r.id, null::integer, format('worker %s', l.epoch), extract(epoch from now_ - l.lost_at)::float8,
    format('%s on %s (process %s) fell silent at %s and was declared dead; its mail was given back.', case l.program when 'worker' then 'Worker ' || l.epoch
      else 'The process ' || l.program || ' ' || l.epoch end, l.host, l.pid, pgmail.at_words(l.beat_at))
  from pgmail.lost_worker l join pgmail.alert_rule r on r.kind = 'worker_lost' and r.tenant_id is null and r.enabled and coalesce(r.about, l.host) = l.host
  where not l.stopped and l.lost_at > now_ - coalesce(r.window_seconds, 900) * interval '1 second';

  return query
  select r.id, null::integer, c.name, x.days, format('The certificate of %s (%s) %s %s.', case c.name when 'api' then 'the API' else c.name end, c.place,
    case when x.days < 0 then 'ended at' else 'ends in ' || pgmail.span_words(x.days * 86400) || ', at' end, pgmail.at_words(c.ends_at)
      || case when c.unseen_since is not null then format('; it cannot be seen since %s (%s)', pgmail.at_words(c.unseen_since), c.answer) else '' end)
  from pgmail.certificate c cross join lateral (select extract(epoch from c.ends_at - now_)::float8 / 86400 as days) x
  join pgmail.alert_rule r on r.kind = 'certificate' and r.tenant_id is null and r.enabled and coalesce(r.about, c.name) = c.name and x.days < r.threshold
  where c.seen_at > now_ - interval '3 days';

  -- Where these stand still all looks calm.
  return query
  select r.id, null::integer, x.subject, extract(epoch from now_ - x.at)::float8, format('%s since %s%s; the log of the process that leads says why.',
    x.words, pgmail.at_words(x.at), case when x.building then ', for the index of events is not whole yet' else '' end)
  from pgmail.chores_reached() x
  join pgmail.alert_rule r on r.kind = 'figures_late' and r.tenant_id is null and r.enabled and coalesce(r.about, x.subject) = x.subject
    and x.at < now_ - r.threshold * x.times * interval '1 second'
  where x.subject <> 'alerts';   -- what does not look does not tell of it: doctor does

  return query
  select r.id, null::integer, '', p.days_left::float8, case when p.strays > 0
      then format('Mail stands in the partitions of last resort (%s rows), since weekly ones are missing; pgmail maintain makes them.', p.strays)
      else format('Partitions are made for only %s more; pgmail maintain makes them.', pgmail.span_words(p.days_left * 86400)) end
  from pgmail.partition_state() p join pgmail.alert_rule r on r.kind = 'partitions_low' and r.tenant_id is null and r.enabled
  where p.strays > 0 or p.days_left < r.threshold;
end
$$;

CREATE FUNCTION pgmail.alert_facts_mail() RETURNS SETOF pgmail.alert_fact
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare now_ timestamptz := pgmail.now(); least_ double precision;
begin
  select min(r.threshold) into least_ from pgmail.alert_rule r where r.enabled and r.kind in ('oldest_due', 'no_worker', 'sending_stalled');
  return query
  with late as materialized (
    select x.*, extract(epoch from now_ - x.due_at)::float8 as age from pgmail.late_lanes(coalesce(least_, 'Infinity')) x where least_ is not null
  )
  -- What an operator paused waits by his will.
  select r.rule_id, x.tenant_id, x.stream, x.age, format('Mail of the stream %s is due for %s (to %s): %s.', x.stream, pgmail.span_words(x.age), x.site,
    case when x.kind is null then 'nothing stops it, but no worker has taken it' else x.words end)
  from (select distinct on (l.tenant_id, l.stream) l.* from late l where l.kind is null or l.kind not in ('pause', 'restore')
        order by l.tenant_id, l.stream, l.due_at) x
  join pgmail.alert_rules_of('oldest_due') r on r.tenant_id = x.tenant_id and coalesce(r.about, x.stream) = x.stream and x.age > r.threshold
  union all
  select r.id, null, '', x.age, format('Mail is due for %s, and %s.', pgmail.span_words(x.age), x.words)
  from (select l.* from late l where l.kind = 'workers' order by l.due_at limit 1) x
  join pgmail.alert_rule r on r.kind = 'no_worker' and r.tenant_id is null and r.enabled and x.age > r.threshold
  union all
  select r.id, null, '', x.age, format('Mail is due for %s (stream %s, to %s) and nothing stops it, but for %s none was sent.',
    pgmail.span_words(x.age), x.stream, x.site, pgmail.span_words(r.threshold))
  from (select l.* from late l where l.kind is null order by l.due_at limit 1) x
  join pgmail.alert_rule r on r.kind = 'sending_stalled' and r.tenant_id is null and r.enabled and x.age > r.threshold
  where (select coalesce(sum(t.n), 0) from pgmail.tally_total t where t.kind <> 'enqueued')
      = (select coalesce(sum(m.settled), 0) from (
           select distinct on (m.tenant_id, m.stream) m.settled from pgmail.alert_meter m
           where m.at <= now_ - r.threshold * interval '1 second' or not exists (
             select from pgmail.alert_meter y where y.tenant_id = m.tenant_id and y.stream = m.stream and y.at < m.at)
           order by m.tenant_id, m.stream, m.at desc) m);

  return query
  select r.rule_id, d.tenant_id, d.stream, d.depth::float8, format('%s recipients of the stream %s wait.', pgmail.number_words(d.depth), d.stream)
  from (select t.tenant_id, t.stream, sum(case t.kind when 'enqueued' then t.n else -t.n end) as depth from pgmail.tally_total t group by 1, 2) d
  join pgmail.alert_rules_of('queue_depth') r on r.tenant_id = d.tenant_id and coalesce(r.about, d.stream) = d.stream and d.depth > r.threshold;

  return query
  select r.rule_id, d.tenant_id, '', d.n::float8, format('%s held since %s may have been sent; a person decides (pgmail doubt list).',
    case when d.n > 10000 then 'More than 10,000 recipients are' when d.n = 1 then 'One recipient is' else pgmail.number_words(d.n) || ' recipients are' end,
    case when d.n = 1 then 'it' else 'they' end)
  from (select t.id as tenant_id, y.n from pgmail.tenant t cross join lateral (
          select count(*) as n from (select from pgmail.queue x where x.tenant_id = t.id and x.in_doubt limit 10001) z) y) d
  join pgmail.alert_rules_of('in_doubt') r on r.tenant_id = d.tenant_id and d.n >= greatest(r.threshold, 1);

  return query
  select coalesce(r.rule_id, f.id), p.tenant_id, p.scope || ' ' || p.name, p.age, format('%s %s is paused by %s since %s (%s), without an end: %s.',
    initcap(p.scope), p.name, p.paused_by, pgmail.at_words(p.paused_at), pgmail.span_words(p.age), rtrim(p.reason, '. '))
  from (select x.tenant_id, x.scope, x.name, x.paused_by, x.paused_at, x.reason, extract(epoch from now_ - x.paused_at)::float8 as age
        from pgmail.pause x where x.until is null and x.scope <> 'tenant'
        union all
        select null, 'relay', y.name, y.changed_by, y.changed_at, coalesce(y.reason, 'no reason given'), extract(epoch from now_ - y.changed_at)::float8
        from pgmail.relay y where y.state = 'paused' and y.blocked_until is null and y.changed_by <> 'worker') p
  left join pgmail.alert_rules_of('pause_forgotten') r on r.tenant_id = p.tenant_id and coalesce(r.about, p.scope || ' ' || p.name) = p.scope || ' ' || p.name
  left join pgmail.alert_rule f on p.tenant_id is null and f.kind = 'pause_forgotten' and f.tenant_id is null and f.enabled
    and coalesce(f.about, p.scope || ' ' || p.name) = p.scope || ' ' || p.name
  where p.age > coalesce(r.threshold, f.threshold);

  return query
  select r.rule_id, d.tenant_id, d.domain, extract(epoch from now_ - d.missing_since)::float8, format('%s: %s.', case d.state
      when 'failed' then format('The sender domain %s lost its record and counts as verified no more', d.domain)
      else format('The record of the sender domain %s is missing since %s', d.domain, pgmail.at_words(d.missing_since)) end,
    rtrim(coalesce(d.answer, 'DNS has it no more'), '. '))
  from pgmail.sender_domain d
  join pgmail.alert_rules_of('sender_domain') r on r.tenant_id = d.tenant_id and coalesce(r.about, d.domain) = d.domain
  where d.missing_since is not null and d.verified_at is not null and d.trusted_by is null
    and extract(epoch from now_ - d.missing_since) >= r.threshold;
end
$$;

CREATE FUNCTION pgmail.alert_facts_rates() RETURNS SETOF pgmail.alert_fact
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
begin
  -- A share of failures against that of the day before this window; where there was no such mail, against a hundredth.
  return query
  select r.rule_id, r.tenant_id, w.stream, x.rate / x.usual, format(
    'Of the stream %s %s of the last %s failed (%s of %s), %s times what is usual (%s).', w.stream, pgmail.share_words(x.rate),
    pgmail.span_words(r.window_seconds), pgmail.number_words(x.bad), pgmail.number_words(x.all_), to_char(x.rate / x.usual, 'FM999,990.0'), pgmail.share_words(x.usual))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'error_rate' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('error_rate') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
    and w.bounced + w.dead > 0 and w.sent + w.bounced + w.dead >= greatest(r.minimum, 1)
  cross join lateral pgmail.alert_since(r.tenant_id, w.stream, r.window_seconds + 86400) d
  cross join lateral (
    select w.bounced + w.dead as bad, w.sent + w.bounced + w.dead as all_, (w.bounced + w.dead)::float8 / nullif(w.sent + w.bounced + w.dead, 0) as rate,
      greatest(case when (d.sent + d.bounced + d.dead) - (w.sent + w.bounced + w.dead) >= greatest(r.minimum, 1)
                    then greatest(d.bounced + d.dead - w.bounced - w.dead, 0)::float8 / nullif((d.sent + d.bounced + d.dead) - (w.sent + w.bounced + w.dead), 0) end, 0.01) as usual) x
  where x.rate >= coalesce(r.floor, 0) and x.rate > r.threshold * x.usual;

  return query
  select r.rule_id, r.tenant_id, w.stream, x.rate, format('Of the stream %s %s of the last %s bounced (%s of %s).', w.stream, pgmail.share_words(x.rate),
    pgmail.span_words(r.window_seconds), pgmail.number_words(w.bounced), pgmail.number_words(x.all_))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'bounce_rate' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('bounce_rate') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
  cross join lateral (select w.sent + w.bounced + w.dead as all_, w.bounced::float8 / nullif(w.sent + w.bounced + w.dead, 0) as rate) x
  where x.all_ >= greatest(r.minimum, 1) and x.rate > r.threshold;

  return query
  select r.rule_id, r.tenant_id, w.stream, w.dead::float8, format('%s emails of the stream %s became dead letters in the last %s; a person decides (pgmail dead list).',
    pgmail.number_words(w.dead), w.stream, pgmail.span_words(r.window_seconds))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'dead_letters' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('dead_letters') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
  where w.dead > r.threshold;
end
$$;

CREATE FUNCTION pgmail.alert_facts_traffic() RETURNS SETOF pgmail.alert_fact
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare now_ timestamptz := pgmail.now();
begin
  return query
  select r.rule_id, r.tenant_id, x.site, x.bounced / x.all_, format('Of the mail to %s %s of the last %s bounced (%s of %s).', x.site,
    pgmail.share_words(x.bounced / x.all_), pgmail.span_words(r.window_seconds), pgmail.number_words(x.bounced::numeric), pgmail.number_words(x.all_::numeric))
  from pgmail.alert_rules_of('site_bounce_rate') r
  cross join lateral (
    select u.key as site, coalesce(sum(u.n) filter (where u.kind <> 'sent'), 0)::float8 as bounced, sum(u.n)::float8 as all_
    from pgmail.rollup u
    where u.tenant_id = r.tenant_id and u.dim = 'site' and u.grain = 'minute' and u.at > now_ - r.window_seconds * interval '1 second'
      and u.kind in ('sent', 'bounced_hard', 'bounced_soft', 'bounced_block', 'bounced_other') and coalesce(r.about, u.key) = u.key
    group by u.key) x
  where x.all_ >= greatest(r.minimum, 1) and x.bounced / x.all_ > r.threshold;

  return query
  select r.rule_id, h.tenant_id, h.id::text, extract(epoch from now_ - h.failing_since)::float8, format('The webhook to %s %s since %s: %s.',
    split_part(h.url, '?', 1), case when h.enabled then 'fails' else 'failed, and is disabled' end, pgmail.at_words(h.failing_since),
    rtrim(coalesce(h.reason, h.last_error, 'no answer'), '. '))
  from pgmail.hook h join pgmail.alert_rules_of('webhook_failing') r on r.tenant_id = h.tenant_id and coalesce(r.about, h.id::text) = h.id::text
  -- One that was given up (410, or five days) is told at once; one that a person disabled needs nobody any more.
  where h.removed_at is null and h.failing_since is not null
    and case when h.enabled then h.failing_since < now_ - r.threshold * interval '1 second' else h.reason not like 'disabled by %' end;
end
$$;

CREATE FUNCTION pgmail.alert_give_back_v1(p_ids uuid[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  update pgmail.alert_delivery d set due_at = pgmail.now(), attempts = greatest(d.attempts - 1, 0)
  where d.id = any (p_ids) and d.state = 'waiting' and d.due_at > pgmail.now();
  get diagnostics n = row_count;
  return n;
end
$$;

CREATE FUNCTION pgmail.alert_horizon_step() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare now_ timestamptz := pgmail.now();
begin
  if exists (select from pgmail.alert_horizon h where h.at > now_ - interval '55 seconds') then return; end if;
  insert into pgmail.alert_horizon (at, xid) values (now_, pg_snapshot_xmax(pg_current_snapshot())::text::bigint) on conflict do nothing;
  delete from pgmail.alert_horizon h where h.at < now_ - interval '2 days' or (h.at < now_ - interval '1 hour' and exists (
    select from pgmail.alert_horizon x where x.at > h.at and x.at < now_ - interval '1 hour'
      and floor(extract(epoch from x.at) / 600) = floor(extract(epoch from h.at) / 600)));
end
$$;

CREATE FUNCTION pgmail.alert_kinds() RETURNS TABLE(kind text, family text, level text, about_what text, unit text, path text, public boolean, ended text)
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
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

CREATE FUNCTION pgmail.alert_meter_step() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer; now_ timestamptz := pgmail.now();
begin
  insert into pgmail.alert_meter (tenant_id, stream, at, enqueued, sent, bounced, dead, settled)
  select t.tenant_id, t.stream, now_, t.enqueued, t.sent, t.bounced, t.dead, t.settled
  from (select x.tenant_id, x.stream, coalesce(sum(x.n) filter (where x.kind = 'enqueued'), 0) as enqueued,
          coalesce(sum(x.n) filter (where x.kind = 'sent'), 0) as sent, coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0) as bounced,
          coalesce(sum(x.n) filter (where x.kind = 'dead'), 0) as dead, coalesce(sum(x.n) filter (where x.kind <> 'enqueued'), 0) as settled
        from pgmail.tally_total x group by x.tenant_id, x.stream) t
  left join lateral (select x.* from pgmail.alert_meter x where x.tenant_id = t.tenant_id and x.stream = t.stream order by x.at desc limit 1) m on true
  where m.at is null or (m.at <= now_ - interval '55 seconds' and (m.enqueued, m.settled, m.sent, m.bounced, m.dead) <> (t.enqueued, t.settled, t.sent, t.bounced, t.dead))
  on conflict do nothing;
  get diagnostics n = row_count;
  return n;
end
$$;

CREATE FUNCTION pgmail.alert_purge_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.alert_rules(p_all boolean DEFAULT false) RETURNS TABLE(name text, tenant text, kind text, about text, enabled boolean, threshold double precision, unit text, floor double precision, minimum bigint, window_seconds integer, for_seconds integer, calm_seconds integer, renotify_seconds integer, severity text, note text, shipped boolean, changed_at timestamp with time zone, changed_by text, firing integer, level text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.alert_rules_of(p_kind text) RETURNS TABLE(tenant_id integer, rule_id bigint, about text, threshold double precision, floor double precision, minimum bigint, window_seconds integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select t.id, r.id, r.about, r.threshold, r.floor, r.minimum, r.window_seconds
  from pgmail.alert_rule r join pgmail.tenant t on r.tenant_id = t.id
    or (r.tenant_id is null and not exists (select from pgmail.alert_rule o where o.tenant_id = t.id and o.name = r.name))
  where r.kind = p_kind and r.enabled
$$;

CREATE FUNCTION pgmail.alert_silences(p_all boolean DEFAULT false) RETURNS TABLE(rule text, subject text, tenant text, fleet boolean, reason text, until timestamp with time zone, silenced_at timestamp with time zone, silenced_by text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.alert_since(p_tenant integer, p_stream text, p_seconds double precision, OUT sent bigint, OUT bounced bigint, OUT dead bigint) RETURNS record
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select t.sent - m.sent, t.bounced - m.bounced, (
    select coalesce(sum(u.n), 0)::bigint from pgmail.rollup u
    where u.tenant_id = p_tenant and u.dim = 'stream' and u.grain = 'quarter' and u.at > pgmail.now() - p_seconds * interval '1 second'
      and u.key = p_stream and u.kind = 'dead')
  from (select coalesce(sum(x.n) filter (where x.kind = 'sent'), 0)::bigint as sent, coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0)::bigint as bounced
        from pgmail.tally_total x where x.tenant_id = p_tenant and x.stream = p_stream) t
  join pgmail.alert_meter m on m.tenant_id = p_tenant and m.stream = p_stream and m.at = coalesce(
    (select max(x.at) from pgmail.alert_meter x where x.tenant_id = p_tenant and x.stream = p_stream and x.at <= pgmail.now() - p_seconds * interval '1 second'),
    (select min(x.at) from pgmail.alert_meter x where x.tenant_id = p_tenant and x.stream = p_stream))
$$;

CREATE FUNCTION pgmail.alert_step_v1() RETURNS TABLE(move text, rule text, severity text, tenant text, subject text, words text, silenced boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.alert_take_v1(p_most integer, p_busy uuid[] DEFAULT '{}'::uuid[]) RETURNS TABLE(id uuid, tenant_id integer, target_id uuid, target text, target_kind text, secret bytea, kek text, event text, attempts smallint, alert_id uuid, rule text, severity text, tenant text, subject text, words text, value double precision, threshold double precision, since timestamp with time zone, fired_at timestamp with time zone, resolved_at timestamp with time zone, path text, made_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.alert_targets(p_all boolean DEFAULT false) RETURNS TABLE(id uuid, name text, tenant text, kind text, shown text, sealed boolean, severity text, created_at timestamp with time zone, created_by text, told_at timestamp with time zone, failing_since timestamp with time zone, answer text, waiting integer)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.alert_told_v1(p_id uuid, p_ok boolean, p_answer text, p_final boolean DEFAULT false) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.alerts(p_all boolean DEFAULT false, p_state text DEFAULT 'open'::text, p_rule text DEFAULT NULL::text, p_limit integer DEFAULT 100, p_after uuid DEFAULT NULL::uuid) RETURNS TABLE(id uuid, rule text, kind text, tenant text, subject text, severity text, state text, since timestamp with time zone, fired_at timestamp with time zone, resolved_at timestamp with time zone, value double precision, threshold double precision, unit text, words text, path text, silenced boolean, told_at timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.at_words(p_at timestamp with time zone) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select case when isfinite(p_at) then to_char(p_at at time zone 'UTC', 'YYYY-MM-DD HH24:MI:SS') || ' UTC' else p_at::text end $$;

CREATE FUNCTION pgmail.begin_hooks() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  perform from pgmail.hook_cursor for update;
  update pgmail.hook_cursor set seen = pg_current_snapshot(), seen_at = clock_timestamp(), until = null, xid = null, place = null, event_id = null
  where seen is null;
  -- In a second statement, which finds it in the row: behind a savepoint it is not the transaction's own.
  if found then update pgmail.hook_cursor set written = xmin; end if;
end
$$;

CREATE FUNCTION pgmail.begin_v1(p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_relays text[]) RETURNS TABLE(id uuid, result text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION pgmail.body_hash(p_body jsonb) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $$ begin return sha256(convert_to((p_body - array['idempotency_key', 'scheduled_at', 'expires_at', 'traceparent'])::text, 'UTF8')); end $$;

CREATE FUNCTION pgmail.cancel(id uuid, reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.cause_text(p_text text, p_address text DEFAULT NULL::text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select left(btrim(regexp_replace(regexp_replace(regexp_replace(
    case when y.name is not null and strpos(lower(x.t), y.name) > 0
         then regexp_replace(x.t, '\m' || regexp_replace(y.name, '([^a-z0-9])', '\\\1', 'g') || '\M', '<name>', 'gi') else x.t end,
    '(?<![[:alnum:]_.:=+/-])(?![245]\.\d{1,3}\.\d{1,3}(?![[:alnum:]_]))[[:alnum:]_.:=+/-]*\d[[:alnum:]_.:=+/-]*', '#', 'g'),
    '#([ ,;]+#)+', '#', 'g'),
    '\s+', ' ', 'g')), 200)
  from (select regexp_replace(left(p_text, 600), '<?[^][\s<>"''(){},;:]+@[^][\s<>"''(){},;]+>?', '<address>', 'g') as t) x,
    (select case when length(n) >= 3 and n <> all ('{account,address,admin,contact,domain,hello,host,info,inbox,mail,mailbox,message,name,newsletter,office,postmaster,recipient,sales,sender,server,service,shop,support,team,test,user,webmaster}')
                 then n end as name from (select lower(split_part(p_address, '@', 1)) as n) z) y
$$;

CREATE FUNCTION pgmail.check_filter(p_filter jsonb, p_known text[]) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare k text; v jsonb; at timestamptz; a pgmail.address;
begin
  if p_filter is null or jsonb_typeof(p_filter) <> 'object' then
    perform pgmail.refuse('invalid_field', '/filter', 'must be an object; {} is all');
  end if;
  for k, v in select * from jsonb_each(p_filter) loop
    if k <> all (p_known) then
      perform pgmail.refuse('unknown_field', '/filter/' || k, 'known here: ' || array_to_string(p_known, ', '));
    elsif jsonb_typeof(v) = 'null' then
      continue;
    elsif k = 'worker' then
      if jsonb_typeof(v) <> 'number' or v::text !~ '^[0-9]{1,18}$' then
        perform pgmail.refuse('invalid_field', '/filter/worker', 'must be the number of a worker');
      end if;
    elsif k = 'streams' then
      if jsonb_typeof(v) <> 'array' then perform pgmail.refuse('invalid_field', '/filter/streams', 'must be an array of names'); end if;
    elsif jsonb_typeof(v) <> 'string' then
      perform pgmail.refuse('invalid_field', '/filter/' || k, 'must be a string');
    elsif k = 'recipient' then
      a := pgmail.parse_address(v #>> '{}');
      if a.fault is not null then perform pgmail.refuse('invalid_address', '/filter/recipient', a.fault); end if;
    elsif k in ('doubted_before', 'doubted_after', 'died_before', 'died_after') then
      begin
        at := (v #>> '{}')::timestamptz;
      exception when others then
        perform pgmail.refuse('invalid_time', '/filter/' || k, 'must be a moment, ISO 8601');
      end;
    end if;
  end loop;
end
$_$;

CREATE TABLE pgmail.hook (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    url text NOT NULL,
    description text,
    types text[] NOT NULL,
    streams text[],
    tags jsonb,
    enabled boolean DEFAULT true NOT NULL,
    reason text,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text NOT NULL,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    fails integer DEFAULT 0 NOT NULL,
    failing_since timestamp with time zone,
    rest_until timestamp with time zone,
    last_error text,
    removed_at timestamp with time zone
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.hook FORCE ROW LEVEL SECURITY;

CREATE FUNCTION pgmail.check_hook(h pgmail.hook) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare known text[]; t text; i integer;
begin
  if h.url is null or length(h.url) > 2000 or h.url !~ '^https?://[!-~]+$' then
    perform pgmail.refuse('invalid_url', '/endpoint', 'must be https://host/path, 2,000 characters at most');
  end if;
  if length(h.description) > 500 then perform pgmail.refuse('invalid_field', '/description', 'longer than 500 characters'); end if;
  if coalesce(cardinality(h.types), 0) not between 1 and 100 then
    perform pgmail.refuse('invalid_field', '/events', 'must be 1 to 100 names of events');
  end if;
  known := array(select 'email.' || x from unnest(array['queued', 'scheduled', 'sending', 'deferred', 'delayed', 'sent', 'delivered', 'bounced',
    'complained', 'suppressed', 'expired', 'cancelled', 'held', 'in_doubt', 'failed', 'opened', 'clicked', 'unsubscribed']) x);
  for t, i in select u.t, u.o - 1 from unnest(h.types) with ordinality u(t, o) loop
    if t is null or not (t = any (known) or (t ~ '^[a-z_.]*[*]$' and exists (select from unnest(known) k where starts_with(k, left(t, -1))))) then
      perform pgmail.refuse('invalid_event_type', '/events/' || i, format('%L is no type of event; they are %s, and may end in *, as in email.*',
        left(t, 80), array_to_string(known, ', ')));
    end if;
  end loop;
  if cardinality(h.streams) not between 1 and 100 or array_position(h.streams, null) is not null or exists (
       select from unnest(h.streams) s where length(s) not between 1 and 200) then
    perform pgmail.refuse('invalid_field', '/streams', 'must be 1 to 100 names of streams, or left out for all');
  end if;
  if h.tags is not null and (jsonb_typeof(h.tags) <> 'object' or h.tags = '{}' or (select count(*) from jsonb_object_keys(h.tags)) > 20
       or exists (select from jsonb_each(h.tags) x where jsonb_typeof(x.value) <> 'string' or length(x.value #>> '{}') > 256 or length(x.key) > 256)) then
    perform pgmail.refuse('invalid_field', '/tags', 'must be up to 20 names with their values, or left out');
  end if;
end
$_$;

CREATE FUNCTION pgmail.check_hook_secret(p_tenant integer, p_key integer, p_sealed bytea) RETURNS void
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  if octet_length(p_sealed) is null or octet_length(p_sealed) not between 52 and 92
     or not exists (select from pgmail.data_key d where d.tenant_id = p_tenant and d.id = p_key) then
    perform pgmail.refuse('invalid_seal', '/secret', 'a secret is 24 to 64 octets, sealed by a data key of its tenant');
  end if;
end
$$;

CREATE FUNCTION pgmail.check_key_v1(p_hash bytea) RETURNS TABLE(tenant_id integer, key_id uuid, name text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.tenant_id, k.id, k.name from pgmail.api_key k
  where k.hash = p_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
    and not k.test and k.scopes @> '{send,read,manage}' and num_nonnulls(k.streams, k.from_domains, k.networks) = 0
$$;

CREATE FUNCTION pgmail.check_key_v2(p_hash bytea) RETURNS TABLE(tenant_id integer, key_id uuid, name text, hash bytea, scopes text[], test boolean, streams text[], from_domains text[], networks text[], seconds_left double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.tenant_id, k.id, k.name, k.hash, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[],
    extract(epoch from k.expires_at - pgmail.now())::double precision
  from pgmail.api_key k
  where k.hash = p_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
$$;

CREATE FUNCTION pgmail.chores_reached() RETURNS TABLE(subject text, words text, times integer, at timestamp with time zone, building boolean)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  with behind as (   -- pace: seconds of events a second, since it began to read them
    select x.read_to, x.upto_at, x.pace from (
      select y.*, extract(epoch from y.read_to - y.rolled_at) / greatest(extract(epoch from pgmail.now() - y.upto_at), 1)::float8 as pace
      from (select c.rolled_at, c.upto_at, least(pgmail.uuid_time(c.at_id), c.upto_at) as read_to from pgmail.insight_cursor c
            where c.upto is not null and c.at_id > '00000000-0000-0000-0000-000000000000') y
      where y.read_to > y.rolled_at) x
    where x.pace >= 1.5
  )
  select v.subject, v.words, v.times, coalesce(v.at, (select min(h.at) from pgmail.alert_horizon h)), v.subject = 'reports'
    and (select i.indisvalid from pg_index i where i.indexrelid = to_regclass('pgmail.event_feed')) is not true
  from pgmail.insight_cursor c left join behind b on true, lateral (values
    ('reports', case when b.pace is null then 'Charts, reports and rules about rates know nothing of what happened'
      else format('Charts, reports and rules about rates are read up (which takes %s more), and know nothing yet of what happened',
        pgmail.span_words(greatest(extract(epoch from b.upto_at - b.read_to)::float8 / b.pace, 1))) end,
      case when b.pace is null then 1 else 4 end, coalesce(b.read_to, c.rolled_at)),
    ('gauges', 'Nobody has looked for late mail', 1, c.gauged_at),
    ('states', 'Nobody has counted what waits in which state', 12, c.counted_at)) v(subject, words, times, at)
  union all
  select 'webhooks', 'Webhooks are told of nothing that happened', 1, h.seen_at, false from pgmail.hook_cursor h where h.seen is not null
  union all
  select 'alerts', 'Nobody has looked for alerts', 3, max(h.at), false from pgmail.alert_horizon h
$$;

CREATE FUNCTION pgmail.claim_hooks_v1(p_keks text[], p_most integer, p_each integer, p_seconds double precision, p_busy uuid[], p_counts integer[], p_turn double precision) RETURNS TABLE(tenant_id integer, hook_id uuid, event_id uuid, email_id uuid, recipient_id uuid, type text, at timestamp with time zone, attempt smallint, claims integer, url text, secrets jsonb, data text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare
  none constant uuid := '00000000-0000-0000-0000-000000000000'; most constant integer := 1000;
  now_ timestamptz := pgmail.now(); from_ integer := 0; many bigint; t integer; h uuid := none; around boolean := false;
  tenants integer[] := '{}'; hooks uuid[] := '{}';
begin
  if (select count(*) from (select from pgmail.hook limit most + 1) x) > most then
    select count(*) into many from pgmail.hook;
    select x.tenant_id into from_ from pgmail.hook x order by x.tenant_id, x.id offset floor(p_turn * many)::bigint limit 1;
    from_ := coalesce(from_, 0);
  end if;
  -- From one endpoint that something waits for to the next, around the end.
  t := from_;
  while cardinality(hooks) < most loop
    select q.tenant_id, q.hook_id into t, h from pgmail.hook_queue q where (q.tenant_id, q.hook_id) > (t, h)
    order by q.tenant_id, q.hook_id limit 1;
    if not found then
      exit when around or from_ = 0;
      around := true; t := -1; h := none;
      continue;
    end if;
    exit when around and t >= from_;
    tenants := tenants || t; hooks := hooks || h;
  end loop;
  if hooks = '{}' then return; end if;

  return query
  with found as (
    select u.t, u.h, coalesce(b.n, 0) as busy, sum(coalesce(b.n, 0)) over (partition by u.t) as tenant_busy
    from unnest(tenants, hooks) u(t, h) left join unnest(p_busy, p_counts) b(id, n) on b.id = u.h
  ), ready as (
    select h.*, f.tenant_busy, case when h.fails >= 4 then 1 else p_each end - f.busy as room
    from found f join pgmail.hook h on h.tenant_id = f.t and h.id = f.h
    where h.enabled and (h.rest_until is null or h.rest_until <= now_)
  ), picked as (
    select f.*, row_number() over (partition by f.tenant_id, f.hook_id order by
      case when f.replayed then 4 * f.place - floor(4 * p_turn) else f.place + (f.place - 1) / 3 end, f.replayed desc) as turn
    from (
      select r.url, r.tenant_busy, r.room, v.replayed, p.*,
        row_number() over (partition by p.tenant_id, p.hook_id, v.replayed order by p.due_at) as place
      from ready r cross join (values (false), (true)) v(replayed) cross join lateral (
        select q.tenant_id, q.hook_id, q.event_id, q.due_at, s.secrets from pgmail.hook_queue q
        cross join (
          select jsonb_agg(jsonb_build_object('id', s.id, 'key', s.key_id, 'kek', d.kek, 'wrapped', encode(d.wrapped, 'base64'),
              'sealed', encode(s.sealed, 'base64')) order by s.id desc) as secrets,
            bool_and(d.kek = any (p_keks)) as mine
          from pgmail.hook_secret s join pgmail.data_key d on d.tenant_id = s.tenant_id and d.id = s.key_id
          where s.tenant_id = r.tenant_id and s.hook_id = r.id and (s.ends_at is null or s.ends_at > now_)) s
        where q.tenant_id = r.tenant_id and q.hook_id = r.id and q.replayed = v.replayed and q.due_at <= now_
          and (q.leased_until is null or q.leased_until <= now_) and s.mine
        order by q.due_at limit greatest(r.room, 0) for update of q skip locked) p) f
  ), taken as (
    update pgmail.hook_queue q set leased_until = now_ + make_interval(secs => p_seconds), claims = q.claims + 1
    from (
      -- Whose tenant has the fewest calls under way goes first: endpoints that let us wait hold up nobody else's.
      select k.* from (
        select x.*, x.tenant_busy + row_number() over (partition by x.tenant_id order by x.turn, x.due_at) as share
        from picked x where x.turn <= x.room) k
      order by k.share, k.due_at limit p_most) p
    where q.tenant_id = p.tenant_id and q.hook_id = p.hook_id and q.event_id = p.event_id
    returning q.*, p.url, p.secrets
  )
  select k.tenant_id, k.hook_id, k.event_id, k.email_id, k.recipient_id, k.type, k.at, (k.attempts + 1)::smallint, k.claims, k.url, k.secrets,
    case when k.type <> 'webhook.test' then pgmail.hook_data(k.tenant_id, k.event_id, k.email_id, k.recipient_id, k.type) end
  from taken k;
end
$$;

CREATE FUNCTION pgmail.claim_v1(p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamp with time zone[], p_after uuid[], p_limits integer[], p_traced boolean[]) RETURNS TABLE(id uuid, message_id uuid, lane bigint, due_at timestamp with time zone, claims integer, attempts smallint, rescues smallint, expires_at timestamp with time zone, tried_since timestamp with time zone)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select c.id, c.message_id, c.lane, c.due_at, c.claims, c.attempts, c.rescues, c.expires_at, c.tried_since
  from pgmail.claim_v2(p_tenant, p_epoch, p_lanes, p_due, p_after, p_limits, p_traced,
    array_fill(false, array[cardinality(p_lanes)])) c
$$;

CREATE FUNCTION pgmail.claim_v2(p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamp with time zone[], p_after uuid[], p_limits integer[], p_traced boolean[], p_holds boolean[]) RETURNS TABLE(id uuid, message_id uuid, lane bigint, due_at timestamp with time zone, claims integer, attempts smallint, rescues smallint, expires_at timestamp with time zone, tried_since timestamp with time zone, vowed boolean)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select c.* from (
    select array_agg(lane order by n) as lanes, array_agg(due order by n) as due, array_agg(after order by n) as after,
      array_agg(most order by n) as most, array_agg(traced order by n) as traced, array_agg(holds order by n) as holds
    from unnest(p_lanes, p_due, p_after, p_limits, p_traced, p_holds) with ordinality u(lane, due, after, most, traced, holds, n)
    where not exists (select from pgmail.lane l where l.tenant_id = p_tenant and l.id = u.lane and l.site = pgmail.test_site())) x
  cross join lateral pgmail.claim_v3(p_tenant, p_epoch, x.lanes, x.due, x.after, x.most, x.traced, x.holds) c
$$;

CREATE FUNCTION pgmail.claim_v3(p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamp with time zone[], p_after uuid[], p_limits integer[], p_traced boolean[], p_holds boolean[]) RETURNS TABLE(id uuid, message_id uuid, lane bigint, due_at timestamp with time zone, claims integer, attempts smallint, rescues smallint, expires_at timestamp with time zone, tried_since timestamp with time zone, vowed boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.classify(p_code integer, p_enhanced text, p_phase text, p_text text) RETURNS TABLE(reason text, class text, blame text, suppress boolean, follows text, slow boolean, alert boolean, rule text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $_$
  with given as materialized (
    select coalesce(p_code::text, (regexp_match(p_text, '(^|[^0-9.])([245][0-9][0-9])([ -]|$)'))[2], '') as code,
      coalesce(nullif(btrim(p_enhanced, ' #'), ''),
        (regexp_match(p_text, '(^|[^0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})($|[^0-9.]|\.$|\.[^0-9])'))[2], '') as wide,
      coalesce(pgmail.fold_reply(p_text), '') as folded
  ), g as materialized (
    select folded, wide, code, code like '5%' and wide not like '4%' as final
    from (select folded, wide, case when code = '' and wide <> '' then left(wide, 1) || '00' else code end as code from given) x
  ), hit as materialized (
    -- A word that must be there is looked for first: running each pattern at each place takes many times as long.
    select p.rule, p.unless from pgmail.reply_pattern p cross join g
    where case when exists (select from unnest(p.needles) n where strpos(g.folded, n) > 0) then g.folded ~ p.pattern else false end
  )
  select y.name, y.class, y.blame, y.suppress, y.follows, y.slow, y.alert, r.name
  from g cross join pgmail.reply_rule r join pgmail.reply_reason y on y.name = r.reason
  where (r.final is null or r.final = g.final)
    and (r.code is null or g.code ~ ('^(' || r.code || ')$'))
    and (r.enhanced is null or g.wide ~ ('^(' || r.enhanced || ')$'))
    and (r.phase is null or p_phase = any (r.phase))
    and (not r.asks_text or exists (select from hit h where h.rule = r.position and not h.unless))
    and not exists (select from hit h where h.rule = r.position and h.unless)
  order by r.position limit 1
$_$;

CREATE FUNCTION pgmail.count_replay(p_id uuid, p_filter jsonb, OUT n integer, OUT complete boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare most constant integer := 100000; h pgmail.hook := pgmail.need_hook(p_id); s record;
begin
  select * into s from pgmail.replay_step(h, p_filter, null, most, true);
  n := s.n; complete := s.looked < most;
end
$$;

CREATE FUNCTION pgmail.covers_domain(p_domains text[], p_domain text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select exists (select from unnest(p_domains) d
                 where d = p_domain or left(d, 2) = '*.' and right(p_domain, length(d) - 1) = substr(d, 2))
$$;

CREATE FUNCTION pgmail.create_key(p_name text, p_hint text, p_hash bytea) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); i uuid;
begin
  insert into pgmail.api_key (tenant_id, name, hint, hash, created_by) values (t, p_name, p_hint, p_hash, pgmail.actor()) returning id into i;
  perform pgmail.record_act(t, 'key.create', i::text, p_name);
  return i;
end
$$;

CREATE FUNCTION pgmail.create_tenant(p_name text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  insert into pgmail.tenant (name) values (p_name) returning id into t;
  insert into pgmail.stream (tenant_id, name, priority, trace) values
    (t, 'transactional', 2, 'full'), (t, 'broadcast', 3, 'lean');
  perform pgmail.record_act(t, 'tenant.create', p_name, null);
  return t;
end
$$;

CREATE FUNCTION pgmail.current_key() RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select nullif(current_setting('pgmail.key', true), '')::uuid
  from pgmail.database_role r where r.role_name = session_user and r.carries_tenant
$$;

CREATE FUNCTION pgmail.current_tenant() RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select case when r.carries_tenant then nullif(current_setting('pgmail.tenant', true), '')::integer
              else r.tenant_id end
  from pgmail.database_role r where r.role_name = session_user
$$;

CREATE FUNCTION pgmail.dead_letter_ids(filter jsonb DEFAULT '{}'::jsonb, most integer DEFAULT 1000, below uuid DEFAULT NULL::uuid, above uuid DEFAULT NULL::uuid, newest_first boolean DEFAULT false) RETURNS SETOF uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,reason,recipient,text,template,died_after,died_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select d.recipient_id from pgmail.dead_letter d
  where d.tenant_id = t
    and (f->>'stream' is null or d.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? d.stream)
    and (f->>'site' is null or d.site = f->>'site')
    and (f->>'reason' is null or d.reason = f->>'reason')
    and (f->>'recipient' is null or exists (
      select from pgmail.recipient r
      where r.tenant_id = t and r.id = d.recipient_id and r.address = who))
    and (f->>'text' is null or strpos(lower(concat_ws(' ', d.code, d.enhanced, d.reply, d.error)), lower(f->>'text')) > 0)
    and (f->>'template' is null or exists (
      select from pgmail.message m
      where m.tenant_id = t and m.id = d.message_id and m.template = f->>'template'))
    and (f->>'died_after' is null or d.died_at >= (f->>'died_after')::timestamptz)
    and (f->>'died_before' is null or d.died_at < (f->>'died_before')::timestamptz)
    and (below is null or d.recipient_id < below) and (above is null or d.recipient_id > above)
  order by case when not newest_first then d.recipient_id end, case when newest_first then d.recipient_id end desc limit most;
end
$$;

CREATE FUNCTION pgmail.decide_restore(p_tenant integer, p_decision text, p_since timestamp with time zone, p_after uuid, p_most integer DEFAULT 5000, OUT n integer, OUT last uuid) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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

CREATE FUNCTION pgmail.discard(recipient_id uuid, reason text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.discard_all(filter jsonb DEFAULT '{}'::jsonb, reason text DEFAULT NULL::text, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select coalesce(sum(pgmail.discard(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

CREATE FUNCTION pgmail.domain_and_above(p_domain text) RETURNS text[]
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
declare rest text := p_domain; found_ text[] := array[p_domain]; dot integer;
begin
  loop
    dot := strpos(rest, '.');
    if dot = 0 then return found_; end if;
    rest := substr(rest, dot + 1);
    found_ := array_append(found_, rest);
  end loop;
end
$$;

CREATE FUNCTION pgmail.domain_ascii(p_domain text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $_$
declare d text := pgmail.lower_text(p_domain); l text; labels text[] := '{}';
begin
  if length(d) > 253 then return null; end if;
  if d ~ '[^\x01-\x7f]' then
    d := pgmail.lower_text(normalize(translate(d, U&'\3002\FF0E\FF61', '...'), NFKC));
    if d ~ '[\u0080-\u009f\u00ad\u2000-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff]' then return null; end if;
    foreach l in array string_to_array(d, '.') loop
      labels := labels || case when l ~ '[^\x01-\x7f]' then 'xn--' || pgmail.punycode(l) else l end;
    end loop;
    d := array_to_string(labels, '.');
  end if;
  if d !~ '^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
     or d ~ '(^|\.)[0-9]+$' or octet_length(d) > 253 then
    return null;
  end if;
  return d;
end
$_$;

CREATE FUNCTION pgmail.domain_checked(p_id uuid, p_outcome text, p_found text[], p_said text) RETURNS text
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select pgmail.settle_domain(pgmail.need_tenant(), p_id, p_outcome, p_found, p_said) $$;

CREATE FUNCTION pgmail.domain_checked_v1(p_tenant integer, p_id uuid, p_outcome text, p_found text[], p_said text) RETURNS text
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select pgmail.settle_domain(p_tenant, p_id, p_outcome, p_found, p_said) $$;

CREATE FUNCTION pgmail.domains_due_v1(p_most integer DEFAULT 20) RETURNS TABLE(tenant_id integer, id uuid, domain text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select d.tenant_id, d.id, d.domain from pgmail.sender_domain d
  where d.state = 'verified' and d.trusted_by is null
    and d.checked_at < pgmail.now() - case when d.missing_since is null then interval '7 days' else interval '1 day' end
  order by d.checked_at limit least(p_most, 100)
$$;

CREATE FUNCTION pgmail.domains_shown(p_name text) RETURNS SETOF text
    LANGUAGE sql IMMUTABLE STRICT
    AS $_$
  select btrim(m[1], '.-_')
  from regexp_matches(
    regexp_replace(
      translate(
        normalize(
          regexp_replace(p_name, '[\u00ad\u034f\u061c\u180b-\u180f\u2000-\u200f\u202f\u205f-\u206f\ufe00-\ufe0f\ufeff]', '', 'g'),
          NFKC),
        U&'\3002\2010\2011\2012\2013\2014\2015\2043\2212', '.--------'),
      '[\u00a2-\u00a5\u2016-\u2023\u2027\u2030-\u205e\u20a0-\u20cf]', ' ', 'g'),
    '@[^a-zA-Z0-9\u0080-\uffff]*((?:[a-zA-Z0-9._-]|[^\x01-\x7f])+)', 'g') m
  where m[1] ~ '[^.]\.+[^.]' and btrim(m[1], '.-_') !~ '^[0-9]+([.,][0-9]+){0,2}$'
$_$;

CREATE FUNCTION pgmail.doors_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare
  now_ timestamptz := pgmail.now(); today date := (now_ at time zone 'UTC')::date; last_ timestamptz; n integer; aged boolean; pressed boolean;
  midnight timestamptz := today::timestamp at time zone 'UTC'; moved integer[]; fleet pgmail.quota; all_depth numeric; all_due_at timestamptz;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.doors', 0)) then return null; end if;
  select least(l.doors_at, now_) into last_ from pgmail.leader l;
  update pgmail.leader set doors_at = now_;
  select * into fleet from pgmail.quota q where q.scope = 'fleet';

  -- What is folded between this statement and the next is counted now, and once more at the next look.
  with gone as (delete from pgmail.tally_moved returning tenant_id)
  select array(
    select g.tenant_id from gone g
    union
    select m.tenant_id from pgmail.quota q join pgmail.quota_meter m on m.tenant_id = q.tenant_id and m.scope = q.scope and m.name = q.name
    where m.lately > 0 or m.day <> today) into moved;

  insert into pgmail.quota_meter as m (tenant_id, scope, name, seen, seen_bytes, depth, lately, paid_until, day, owed, mails, bytes)
  select s.tenant_id, s.scope, s.name, s.n, s.bytes, s.depth, s.fresh,
    least(greatest(o.paid_until, coalesce(last_, now_)), now_ + interval '366 days')
      + least(s.fresh / coalesce(q.per_second, 1000000)::double precision, 31536000) * interval '1 second',
    today,
    -- What a day took beyond its allowance is of the days that follow. Without a rule a day is no more than a count.
    case when q.per_day is null then 0
         when o.day = today then o.owed + s.fresh
         else greatest(0, coalesce(o.owed, 0) - (today - o.day) * q.per_day) + s.fresh end,
    case when o.day = today then o.mails else 0 end + s.fresh,
    case when o.day = today then o.bytes else 0 end + s.fresh_bytes
  from (
    select t.tenant_id, t.scope, t.name, t.n, t.bytes, t.depth, greatest(t.n - coalesce(x.seen, 0), 0) as fresh,
      greatest(t.bytes - coalesce(x.seen_bytes, 0), 0) as fresh_bytes
    from (
      -- Tenant by tenant: a hash of all totals would be cheap in the planner's eyes and cost what this is to save.
      select u.tenant_id, 'tenant' as scope, '' as name, y.n, y.bytes, y.depth
      from unnest(moved) u(tenant_id) cross join lateral (
        select sum(y.n) filter (where y.kind = 'enqueued') as n, sum(y.bytes) filter (where y.kind = 'enqueued') as bytes,
          sum(case y.kind when 'enqueued' then y.n else -y.n end) as depth
        from pgmail.tally_total y where y.tenant_id = u.tenant_id) y
      where y.n is not null
      union all
      select q.tenant_id, 'stream', q.name, y.n, y.bytes, y.depth
      from pgmail.quota q cross join lateral (
        select coalesce(sum(y.n) filter (where y.kind = 'enqueued'), 0) as n, coalesce(sum(y.bytes) filter (where y.kind = 'enqueued'), 0) as bytes,
          coalesce(sum(case y.kind when 'enqueued' then y.n else -y.n end), 0) as depth
        from pgmail.tally_total y where y.tenant_id = q.tenant_id and y.stream = q.name) y
      where q.scope = 'stream' and q.tenant_id = any (moved)) t
    left join pgmail.quota_meter x on x.tenant_id = t.tenant_id and x.scope = t.scope and x.name = t.name) s
  left join pgmail.quota_meter o on o.tenant_id = s.tenant_id and o.scope = s.scope and o.name = s.name
  left join pgmail.quota q on q.tenant_id = s.tenant_id and q.scope = s.scope and q.name = s.name
  order by s.tenant_id, s.scope, s.name
  on conflict (tenant_id, scope, name) do update set seen = excluded.seen, seen_bytes = excluded.seen_bytes, depth = excluded.depth,
    lately = excluded.lately, paid_until = excluded.paid_until, day = excluded.day, owed = excluded.owed, mails = excluded.mails, bytes = excluded.bytes;

  if fleet.pressure_depth is not null then
    select sum(m.depth) into all_depth from pgmail.quota_meter m
    where m.scope = 'tenant' and not exists (select from pgmail.pause s where s.tenant_id = m.tenant_id and s.scope = 'tenant');
  end if;
  select coalesce(bool_or(q.pressure_seconds is not null), false),
      coalesce(bool_or(num_nonnulls(q.pressure_depth, q.pressure_seconds) > 0), false) into aged, pressed from pgmail.quota q;
  with oldest as materialized (
    select o.tenant_id, o.due_at from pgmail.oldest_due() o where aged
  ), eldest as materialized (
    select min(o.due_at) as due_at from oldest o
  ), whole as not materialized (   -- one row a tenant that has ever sent: looked through, but not written down
    select m.tenant_id, m.depth, o.due_at, q.pressure_depth, q.pressure_seconds,
      coalesce(q.bound_mails, fleet.bound_mails) as bound_mails, coalesce(q.bound_bytes, fleet.bound_bytes) as bound_bytes,
      -- A tenant at rest has the count of its last day.
      case when m.day = today then m.mails else 0 end as mails, case when m.day = today then m.bytes else 0 end as bytes,
      (select e.due_at from eldest e) as all_due_at
    from pgmail.quota_meter m
    left join oldest o on o.tenant_id = m.tenant_id
    left join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = 'tenant'
    where m.scope = 'tenant'
  ), wanted as materialized (
    select m.tenant_id, m.name as stream, 'rate' as kind, 1 as priority, m.paid_until as until, m.lately / q.per_second::real as spread,
      format('%s takes in %s emails a second', pgmail.quota_words(m.scope, m.name), q.per_second) as reason
    from pgmail.quota q join pgmail.quota_meter m on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.paid_until > now_ + interval '1 second' and q.per_second is not null
    union all
    select m.tenant_id, m.name, 'day', 1, midnight + least(m.owed / q.per_day::double precision, 366) * interval '24 hours',
      least(m.lately / q.per_day::real, 366) * 86400, format('%s takes in %s emails a day', pgmail.quota_words(m.scope, m.name), q.per_day)
    from pgmail.quota q join pgmail.quota_meter m on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.owed >= q.per_day
    union all
    select q.tenant_id, q.name, 'queued', 1, now_ + interval '1 minute', 60,
      format('%s holds as many queued emails as it may (%s)', pgmail.quota_words(q.scope, q.name), q.max_queued)
    from pgmail.quota q
    left join pgmail.quota_meter m on m.tenant_id = q.tenant_id and m.scope = q.scope and m.name = q.name
    where q.scope in ('tenant', 'stream') and coalesce(m.depth, 0) >= q.max_queued
    union all
    -- Who stops sending has to know that it was stopped for a while; who asks again in a minute finds things as they are.
    select w.tenant_id, '', 'pressure', 3, now_ + interval '1 minute', 60,
      case when w.depth > w.pressure_depth then format('backpressure: more than %s emails of the tenant wait', w.pressure_depth)
           when w.due_at < now_ - w.pressure_seconds * interval '1 second'
             then format('backpressure: mail of the tenant has been due for more than %s seconds', w.pressure_seconds)
           when all_depth > fleet.pressure_depth then format('backpressure: more than %s emails wait', fleet.pressure_depth)
           else format('backpressure: mail has been due for more than %s seconds', fleet.pressure_seconds) end
    from whole w
    where pressed and (w.depth > w.pressure_depth or all_depth > fleet.pressure_depth or w.due_at < now_ - w.pressure_seconds * interval '1 second'
       or w.all_due_at < now_ - fleet.pressure_seconds * interval '1 second')
    union all
    select w.tenant_id, '', 'bound', 1, midnight + interval '24 hours', 0,
      case when w.mails >= w.bound_mails then format('the tenant has handed over %s emails today, which is its bound', w.bound_mails)
           else format('the tenant has handed over %s bytes today, which is its bound', w.bound_bytes) end
    from whole w where w.mails >= w.bound_mails or w.bytes >= w.bound_bytes
  ), opened as (
    delete from pgmail.door d where not exists (
      select from wanted w where w.tenant_id = d.tenant_id and w.stream = d.stream and w.kind = d.kind)
  ), closed as (
    insert into pgmail.door as d (tenant_id, stream, kind, priority, until, spread, reason)
    select w.tenant_id, w.stream, w.kind, w.priority, w.until, w.spread, w.reason from wanted w order by 1, 2, 3
    on conflict (tenant_id, stream, kind) do update set priority = excluded.priority, until = excluded.until, spread = excluded.spread,
      reason = excluded.reason
    where (d.priority, d.until, d.spread, d.reason) is distinct from (excluded.priority, excluded.until, excluded.spread, excluded.reason)
  )
  select count(*) into n from wanted;
  return n;
end
$$;

CREATE FUNCTION pgmail.drop_partition_v1(p_base text, OUT name text, OUT moved bigint) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $_$
declare days integer := pgmail.kept_days(p_base); w record; low uuid; high uuid; places tid[];
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return; end if;
  perform set_config('lock_timeout', '200ms', true);
  for w in select * from pgmail.weekly_partitions(p_base) p where p.until + days * interval '24 hours' <= pgmail.now() loop
    -- What hangs on a message or a recipient goes after it: nobody is left without the state that its outcome says.
    continue when to_regclass('pgmail.' || case when p_base in ('attachment', 'tag') then 'message' when p_base in ('outcome', 'event') then 'recipient' end
                              || right(w.name, 9)) is not null;
    -- An email and its recipients are of one hour, which may be of two weeks.
    low := pgmail.uuid_floor(w.since - interval '1 hour'); high := pgmail.uuid_floor(w.until + interval '1 hour');
    continue when pgmail.rows_to_keep(p_base, w.name, low, high) is null;
    begin
    execute format('lock table only pgmail.%I in access exclusive mode', p_base);
    -- Whoever reads a partition holds its parent, too; but for VACUUM and the like, which nobody should wait for now.
    execute format('lock table only pgmail.%I, only pgmail.%I in access exclusive mode nowait', p_base || '_default', w.name);
    -- Asked again now that nothing can be written: a dead letter may have been retried meanwhile, or an email have died.
    -- If it has become too much, the lock is let go with the transaction, at once; a later round looks further.
    places := pgmail.rows_to_keep(p_base, w.name, low, high);
    if places is null then return; end if;
    execute format('alter table pgmail.%I detach partition pgmail.%I', p_base, w.name);
    execute format('insert into pgmail.%I select x.* from pgmail.%I x where x.ctid = any ($1)', p_base || '_default', w.name) using places;
    get diagnostics moved = row_count;
    execute format('drop table pgmail.%I', w.name);
    name := w.name;
    return;
    exception when dependent_objects_still_exist then
      moved := null;
    end;
  end loop;
end
$_$;

CREATE FUNCTION pgmail.drop_strays_v1(p_base text, p_most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $_$
declare days integer := pgmail.kept_days(p_base); past timestamptz; n integer;
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return 0; end if;
  past := pgmail.now() - days * interval '24 hours';
  execute format($q$delete from pgmail.%1$I d where d.ctid = any (array(
      select x.ctid from pgmail.%1$I x where x.%2$I < $1
        and (x.tenant_id, x.%3$I) not in (select n.tenant_id, n.message_id from pgmail.needed_messages('00000000-0000-0000-0000-000000000000', $2) n)
      limit $3 for update skip locked))$q$,
      p_base || '_default', pgmail.partition_key(p_base), case p_base when 'message' then 'id' else 'message_id' end)
    using pgmail.uuid_floor(past), pgmail.uuid_floor(past + interval '1 hour'), p_most;
  get diagnostics n = row_count;
  return n;
end
$_$;

CREATE FUNCTION pgmail.emptied(p_content bytea, p_key_id integer) RETURNS bytea
    LANGUAGE sql IMMUTABLE
    AS $$
  select convert_to(jsonb_build_object('from', convert_from(p_content, 'UTF8')::jsonb->'from')::text, 'UTF8')
$$;

CREATE FUNCTION pgmail.empty_content_v1(p_most integer DEFAULT 500) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare s record; mark uuid; seen uuid[]; mine uuid[]; done uuid[]; due uuid;
begin
  for s in select x.tenant_id, x.name, x.keep_content_days from pgmail.stream x where x.keep_content_days is not null order by 1, 2 loop
    due := pgmail.uuid_floor(pgmail.now() - s.keep_content_days * interval '24 hours');
    insert into pgmail.content_mark (tenant_id, stream, done_to) values (s.tenant_id, s.name, '00000000-0000-0000-0000-000000000000')
      on conflict do nothing;
    -- Two leaders for a moment: one does it.
    select c.done_to into mark from pgmail.content_mark c where c.tenant_id = s.tenant_id and c.stream = s.name for update skip locked;
    continue when not found;
    select array_agg(x.id order by x.id), array_agg(x.id) filter (where x.stream = s.name) into seen, mine from (
      select m.id, m.stream from pgmail.message m where m.tenant_id = s.tenant_id and m.id > mark and m.id < due order by m.id limit p_most) x;
    if seen is not null then
      done := pgmail.empty_messages(s.tenant_id, coalesce(mine, '{}'));
      insert into pgmail.content_left (tenant_id, message_id, stream)
      select s.tenant_id, u.id, s.name from unnest(mine) u(id) where u.id <> all (done) on conflict do nothing;
      update pgmail.content_mark c set done_to = seen[cardinality(seen)] where c.tenant_id = s.tenant_id and c.stream = s.name;
      return cardinality(seen);
    end if;
    -- What waited when its turn came; and what the fleet's own retention took meanwhile.
    select array_agg(x.message_id) into mine from (
      select l.message_id from pgmail.content_left l where l.tenant_id = s.tenant_id and l.stream = s.name
        and not exists (
          select from pgmail.recipient r
          where r.tenant_id = s.tenant_id and r.message_id = l.message_id
            and (exists (select from pgmail.queue q where q.tenant_id = s.tenant_id and q.id = r.id)
                 or exists (select from pgmail.dead_letter d where d.tenant_id = s.tenant_id and d.recipient_id = r.id)))
      order by l.message_id limit p_most) x;
    if mine is not null then
      done := pgmail.empty_messages(s.tenant_id, mine);
      delete from pgmail.content_left l where l.tenant_id = s.tenant_id and l.message_id = any (done);
      return cardinality(mine);
    end if;
  end loop;
  return 0;
end
$$;

CREATE FUNCTION pgmail.empty_messages(p_tenant integer, p_ids uuid[]) RETURNS uuid[]
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare done uuid[]; people uuid[]; busy uuid[];
begin
  select array_agg(r.id), array_agg(distinct r.message_id) filter (where r.waits) into people, busy
  from unnest(p_ids) u(id) cross join lateral (
    select x.id, x.message_id,
      exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = x.id)
      or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = x.id) as waits
    from pgmail.recipient x
    where x.tenant_id = p_tenant and x.message_id = u.id and x.message_id between u.id and u.id
      and x.id >= pgmail.uuid_floor(pgmail.uuid_time(u.id) - interval '1 hour')
      and x.id < pgmail.uuid_floor(pgmail.uuid_time(u.id) + interval '1 hour')) r;
  done := array(select u.id from unnest(p_ids) u(id) where busy is null or u.id <> all (busy) order by 1);
  update pgmail.message m set content = pgmail.emptied(m.content, m.key_id), key_id = null where m.tenant_id = p_tenant and m.id = any (done);
  delete from pgmail.attachment a where a.tenant_id = p_tenant and a.message_id = any (done);
  update pgmail.recipient r set variables = null
   where r.tenant_id = p_tenant and r.id = any (people) and r.message_id = any (done) and r.variables is not null;
  return done;
end
$$;

CREATE FUNCTION pgmail.end_sessions(p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.session_secret
     set secret = sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
         made_at = pgmail.now();
  perform pgmail.record_act(null, 'session.end_all', null, p_reason);
end
$$;

CREATE FUNCTION pgmail.end_workers() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  lock table pgmail.worker in exclusive mode;
  delete from pgmail.worker where program <> 'maintain';
  delete from pgmail.permit p where not exists (select from pgmail.worker w where w.epoch = p.epoch);
  -- A worker of the lost history may live on with an epoch that is given out here once more.
  perform setval('pgmail.worker_epoch', (select s.last_value + 1000 from pgmail.worker_epoch s));
  return pgmail.rescue_leases(null);
end
$$;

CREATE FUNCTION pgmail.erase(address text, reason text, after uuid DEFAULT NULL::uuid, most integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS jsonb
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select pgmail.erase_batch(pgmail.need_tenant(), erase.address, erase.reason, erase.after, erase.most, erase.dry_run) $$;

CREATE FUNCTION pgmail.erase_batch(p_tenant integer, p_address text, p_reason text, p_after uuid, p_most integer, p_dry_run boolean) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
declare
  a pgmail.address := pgmail.parse_address(p_address); person text; who text := pgmail.actor(); now_ timestamptz := pgmail.now();
  ids uuid[]; late uuid[]; mine uuid[]; alone uuid[]; named uuid[]; busy uuid[];
  cancelled_ integer := 0; discarded_ integer := 0; waiting_ integer := 0; changed_ integer := 0; listed integer; next_ uuid;
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 10000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 10,000'); end if;
  if not p_dry_run then
    -- Two erasures of one tenant go one after the other: they may meet in an email.
    perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || p_tenant, 0));
    insert into pgmail.erasure_salt (tenant_id, salt)
    values (p_tenant, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))) on conflict do nothing;
  end if;
  person := pgmail.erased_token(p_tenant, a.address);

  select array_agg(x.id order by x.id) into ids from (
    select y.id from pgmail.recipient y where y.tenant_id = p_tenant and y.address = a.address and (p_after is null or y.id > p_after)
    order by y.id limit p_most) x;
  ids := coalesce(ids, '{}');
  next_ := case when cardinality(ids) = p_most then ids[p_most] end;

  if p_dry_run then
    select count(*) filter (where q.leased_by is null), coalesce(array_agg(q.id) filter (where q.leased_by is not null), '{}') into cancelled_, late
      from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids);
    select count(*) into discarded_ from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids);
  else
    with free as materialized (
      select q.id, q.message_id, q.lane, q.attempts, case when q.in_doubt then ' (in doubt: it may have been sent)' else '' end as doubt from pgmail.queue q
      where q.tenant_id = p_tenant and q.id = any (ids) and q.leased_by is null order by q.id for update skip locked
    ), gone as (
      delete from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
    ), facts as materialized (
      select free.*, g.stream, y.site from free
      cross join lateral (select x.stream from pgmail.message x where x.tenant_id = p_tenant and x.id = free.message_id limit 1) g
      cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = free.id limit 1) y
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
      select p_tenant, f.id, f.message_id, 'cancelled', now_, f.stream, f.site, f.attempts, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, f.id, f.message_id, 'email.cancelled', f.site, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
      select p_tenant, f.stream, 'cancelled', count(*), array[f.lane], array[count(*)] from facts f group by f.stream, f.lane
    )
    select count(*) into cancelled_ from facts;
    with gone as (
      delete from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids) returning d.*
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason)
      select p_tenant, g.recipient_id, g.message_id, 'cancelled', now_, g.stream, g.site, g.attempts, g.code, g.enhanced, g.reply,
        'discarded by ' || who || ': the person was erased' from gone g
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, g.recipient_id, g.message_id, 'email.cancelled', g.site, 'discarded by ' || who || ': the person was erased' from gone g
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n) select p_tenant, g.stream, k.kind, k.sign * count(*)
      from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
    )
    select count(*) into discarded_ from gone;
    late := array(select q.id from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids));
  end if;

  -- Which of these emails are this person's alone, which of the others name the person, and which of those still wait.
  select array_agg(x.message_id) filter (where x.sole), array_agg(x.message_id) filter (where not x.sole and x.in_it and not x.waits),
      array_agg(x.message_id) filter (where not x.sole and x.in_it and x.waits)
    into alone, named, busy
  from (
    select y.message_id, o.sole, o.waits, g.in_it
    from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    cross join lateral (
      select pgmail.erased_content(m.content, m.key_id, a.address, 'x@erased.invalid') <> m.content
          or pgmail.erased_text(m.metadata::text, a.address, '') <> m.metadata::text
          or strpos(lower(m.idempotency_key), a.address) > 0 or m.sender = a.address as in_it
      from pgmail.message m where m.tenant_id = p_tenant and m.id = y.message_id limit 1) g
    cross join lateral (
      select count(*) = 0 as sole, coalesce(bool_or(
          exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = z.id)
          or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = z.id)), false) as waits
      from pgmail.recipient z where z.tenant_id = p_tenant and z.message_id = y.message_id and z.id <> u.id) o
    where u.id <> all (late)) x;
  mine := array(
    select u.id from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    where u.id <> all (late) and (busy is null or y.message_id <> all (busy)));
  waiting_ := cardinality(ids) - cardinality(late) - cardinality(mine);
  changed_ := coalesce(cardinality(alone), 0) + coalesce(cardinality(named), 0);
  select count(*) into listed from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address;

  if not p_dry_run then
    -- Tags, which hold no @ but may hold a name, are found by name and value.
    delete from pgmail.tag x using (
      select m.id, k.key, k.value from pgmail.message m, jsonb_each_text(m.tags) k where m.tenant_id = p_tenant and m.id = any (alone)) g
     where x.tenant_id = p_tenant and x.name = g.key and x.value = g.value and x.message_id = g.id;
    update pgmail.message m set content = pgmail.erased_content(pgmail.emptied(m.content, m.key_id), null, a.address, person), key_id = null, tags = null,
      metadata = null, idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (alone);
    delete from pgmail.attachment x where x.tenant_id = p_tenant and x.message_id = any (alone);
    update pgmail.message m set content = pgmail.erased_content(m.content, m.key_id, a.address, person),
      metadata = pgmail.erased_text(m.metadata::text, a.address, person)::jsonb,
      idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (named);
    update pgmail.event e set reply = pgmail.erased_text(e.reply, a.address, person), detail = pgmail.erased_text(e.detail, a.address, person)
     where e.tenant_id = p_tenant and e.recipient_id = any (mine)
       and (e.reply, e.detail) is distinct from (pgmail.erased_text(e.reply, a.address, person), pgmail.erased_text(e.detail, a.address, person));
    update pgmail.outcome o set reply = pgmail.erased_text(o.reply, a.address, person), reason = pgmail.erased_text(o.reason, a.address, person)
     where o.tenant_id = p_tenant and o.recipient_id = any (mine)
       and (o.reply, o.reason) is distinct from (pgmail.erased_text(o.reply, a.address, person), pgmail.erased_text(o.reason, a.address, person));
    update pgmail.recipient y set address = person, rcpt = null, name = null, variables = null, key_id = null
     where y.tenant_id = p_tenant and y.id = any (mine);
    if p_after is null then
      perform pgmail.record_act(p_tenant, 'person.erase', person, pgmail.erased_text(p_reason, a.address, person));
    end if;
    if next_ is null then
      with opted as (
        delete from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address returning s.*
      )
      insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
      select o.tenant_id, person, o.stream, o.reason, pgmail.erased_text(o.source, a.address, person), o.created_at, o.created_by, o.expires_at from opted o
      on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
        created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at;
      update pgmail.audit x set object = pgmail.erased_text(x.object, a.address, person), reason = pgmail.erased_text(x.reason, a.address, person)
       where x.tenant_id = p_tenant
         and (x.object, x.reason) is distinct from (pgmail.erased_text(x.object, a.address, person), pgmail.erased_text(x.reason, a.address, person));
    end if;
  end if;
  return jsonb_build_object('person', person, 'recipients', cardinality(mine), 'messages', changed_, 'cancelled', cancelled_,
    'discarded', discarded_, 'too_late', cardinality(late), 'waiting', waiting_, 'suppressions', case when next_ is null then listed else 0 end, 'next', next_);
end
$$;

CREATE FUNCTION pgmail.erase_for(tenant text, address text, reason text, after uuid DEFAULT NULL::uuid, most integer DEFAULT 1000, dry_run boolean DEFAULT false) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = erase_for.tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(tenant, 63)), 404); end if;
  return pgmail.erase_batch(t, address, reason, after, most, dry_run);
end
$$;

CREATE FUNCTION pgmail.erase_tenant(p_name text, p_reason text, p_discard boolean DEFAULT false, p_most integer DEFAULT 5000) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $_$
declare
  t integer := pgmail.tenant_named(p_name); part regclass; discarded_ integer := 0; n integer; leased integer; gone_ text;
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 100000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 100,000'); end if;
  if exists (select from pgmail.database_role r where r.role_name = session_user and r.tenant_id = t) then
    perform pgmail.refuse('own_tenant', '/name', 'the role that you are speaks for this tenant; erase it as another one', 409);
  end if;
  if not p_discard and (exists (select from pgmail.queue q where q.tenant_id = t) or exists (select from pgmail.dead_letter d where d.tenant_id = t)) then
    perform pgmail.refuse('mail_waits', '/name', format('the tenant %s has mail that waits or is dead; give it up with it (discard), or send it first', p_name), 409);
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || t, 0));

  if not exists (select from pgmail.pause p where p.tenant_id = t and p.scope = 'tenant' and p.reason = 'it is being erased') then
    perform pgmail.record_act(t, 'tenant.erase', 'tenant ' || t, p_reason);
    insert into pgmail.pause (tenant_id, scope, name, reason, paused_by) values (t, 'tenant', p_name, 'it is being erased', pgmail.actor())
    on conflict (tenant_id, scope, name) do update set reason = excluded.reason, paused_at = pgmail.now(), paused_by = excluded.paused_by;
  end if;
  update pgmail.database_role r set tenant_id = null where r.tenant_id = t;   -- as revoke_tenant, and for its reason
  delete from pgmail.api_key k where k.tenant_id = t;

  with free as materialized (
    select q.id, q.message_id, q.lane from pgmail.queue q
    where q.tenant_id = t and q.leased_by is null order by q.id limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select coalesce(g.stream, 'unknown') as stream, free.lane from free left join lateral (
      select x.stream from pgmail.message x where x.tenant_id = t and x.id = free.message_id limit 1) g on true
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select t, f.stream, 'cancelled', count(*), array[f.lane], array[count(*)] from facts f group by f.stream, f.lane
  )
  select count(*) into discarded_ from facts;
  with gone as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (array(
      select x.recipient_id from pgmail.dead_letter x where x.tenant_id = t order by x.recipient_id limit p_most for update skip locked))
    returning d.stream
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, g.stream, k.kind, k.sign * count(*)
    from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
  )
  select count(*) into n from gone;
  discarded_ := discarded_ + n;
  select count(*) into leased from pgmail.queue q where q.tenant_id = t and q.leased_by is not null;
  if discarded_ > 0 or exists (select from pgmail.queue q where q.tenant_id = t)
     or exists (select from pgmail.dead_letter d where d.tenant_id = t) then
    return jsonb_build_object('tenant', t, 'discarded', discarded_, 'deleted', 0, 'sending', leased, 'done', false);
  end if;

  -- By place in the partition: a tenant's rows are found by the key, which its id leads.
  for part in select x from pgmail.tables_of_tenants() x loop
    execute format('delete from %s d where d.ctid = any (array(select x.ctid from %s x where x.tenant_id = $1 limit $2))', part, part)
      using t, p_most;
    get diagnostics n = row_count;
    if n > 0 then
      return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', n, 'sending', 0, 'done', false);
    end if;
  end loop;

  delete from pgmail.limits l where l.scope = 'tenant' and l.name = p_name;
  delete from pgmail.bucket b where b.scope = 'tenant' and b.name = p_name;
  delete from pgmail.permit h where h.scope = 'tenant' and h.name = p_name;
  gone_ := 'erased-' || t;
  -- It stays suspended: a transaction that handed mail over before may commit it only now, and nobody is left to want it.
  -- Another call, by the name that it has from now on, erases that too.
  delete from pgmail.pause p where p.tenant_id = t and p.scope <> 'tenant';
  update pgmail.pause p set name = gone_, reason = 'it was erased' where p.tenant_id = t;
  update pgmail.tenant x set name = gone_ where x.id = t;
  update pgmail.audit a set object = null, reason = null where a.tenant_id = t and a.action <> 'tenant.erase';
  perform pgmail.record_act(t, 'tenant.erased', gone_, null);
  return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', 0, 'sending', 0, 'done', true);
end
$_$;

CREATE FUNCTION pgmail.erased_boxes(p_boxes jsonb, p_address text, p_token text) RETURNS jsonb
    LANGUAGE sql IMMUTABLE
    AS $$
  select coalesce(jsonb_agg(case when pgmail.lower_text(x->>'address') = p_address then jsonb_build_object('address', p_token) else x end order by i), '[]')
  from jsonb_array_elements(p_boxes) with ordinality u(x, i)
$$;

CREATE FUNCTION pgmail.erased_content(p_content bytea, p_key_id integer, p_address text, p_token text) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare was jsonb; c jsonb; k text;
begin
  was := convert_from(p_content, 'UTF8')::jsonb; c := was;
  foreach k in array array['to', 'cc', 'reply_to'] loop
    if jsonb_typeof(c->k) = 'array' then c := jsonb_set(c, array[k], pgmail.erased_boxes(c->k, p_address, p_token)); end if;
  end loop;
  c := pgmail.erased_text(c::text, p_address, p_token)::jsonb;
  return case when c = was then p_content else convert_to(c::text, 'UTF8') end;
end
$$;

CREATE FUNCTION pgmail.erased_text(p_text text, p_address text, p_token text) RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$
  select regexp_replace(p_text,
    '(?<=^|[^A-Za-z0-9._%+-]|\\[nrtbf])' || regexp_replace(p_address, '([^[:alnum:]@_])', '\\\1', 'g') || '(?![A-Za-z0-9-]|\.[A-Za-z0-9])',
    p_token, 'gi')
$$;

CREATE FUNCTION pgmail.erased_token(p_tenant integer, p_address text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select 'erased-' || left(encode(sha256(s.salt || sha256(s.salt || convert_to(p_address, 'UTF8'))), 'hex'), 32) || '@erased.invalid'
  from pgmail.erasure_salt s where s.tenant_id = p_tenant
$$;

CREATE FUNCTION pgmail.expire_v1(p_most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with late as materialized (
    select q.tenant_id, q.id, q.message_id, q.lane, q.attempts from pgmail.queue q
    where q.expires_at <= pgmail.now() and q.leased_by is null and q.due_at <> 'infinity' and not exists (select from pgmail.fence)
    order by q.expires_at limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q using late where q.tenant_id = late.tenant_id and q.id = late.id
  ), facts as materialized (
    select late.*, m.stream, r.site from late
    cross join lateral (select y.stream from pgmail.message y
                        where y.tenant_id = late.tenant_id and y.id = late.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = late.tenant_id and y.id = late.id limit 1) r
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select tenant_id, id, message_id, 'expired', pgmail.now(), stream, site, attempts, 'expires_at passed before it was sent' from facts
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select tenant_id, id, message_id, 'email.expired', site, 'expires_at passed before it was sent' from facts
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select tenant_id, stream, 'expired', count(*), array[lane], array[count(*)] from facts group by tenant_id, stream, lane
  )
  select count(*) into n from facts;
  return n;
end
$$;

CREATE FUNCTION pgmail.fan_out_hooks_v1(p_most integer DEFAULT 1000, OUT queued integer, OUT more boolean, OUT idle boolean) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare c record; f record; e record; tenants integer[]; types text[]; upto pg_snapshot;
begin
  queued := 0; more := false; idle := false;
  select x.*, x.written is not distinct from x.xmin as ours into c from pgmail.hook_cursor x for update skip locked;
  if not found then return; end if;
  -- Under the lock: an endpoint that is being made waits for it, and one that is made is seen.
  -- Of each tenant the types that it has endpoints for; all of them where one is for several at once ('email.*').
  select array_agg(w.tenant_id), array_agg(w.type) into tenants, types
  from (select distinct h.tenant_id, case when right(t, 1) <> '*' then t end as type
        from pgmail.hook h left join unnest(h.types) t on true where h.enabled) w;
  if tenants is null then
    idle := true;
    update pgmail.hook_cursor set written = null, seen = null, seen_at = null, until = null, xid = null, place = null, event_id = null where seen is not null;
    return;
  end if;
  select * into f from pgmail.feed_now_v1();
  if not f.whole then return; end if;
  if c.seen is null or not c.ours or pg_snapshot_xmax(c.seen) > pg_snapshot_xmax(f.now_) then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, seen = f.now_, seen_at = clock_timestamp(),
      until = null, xid = null, place = null, event_id = null;
    if c.seen is not null then
      perform pgmail.record_act(null, 'webhook.begin_anew', null, format(
        'a dump was restored: webhooks are not told what happened between %s and now, but for what was waiting for them already', pgmail.iso_time(c.seen_at)));
    end if;
    return;
  end if;
  upto := coalesce(c.until, f.now_);
  with news as materialized (
    select x.xid, x.place, x.id, x.type, x.tenant_id, x.at, x.email_id, x.recipient_id, x.stream, x.tags
    from pgmail.feed_v1(c.seen, upto, c.xid, c.place, c.event_id, tenants, p_most, types) x
  ), wanted as (
    insert into pgmail.hook_queue (tenant_id, hook_id, event_id, email_id, recipient_id, type, at)
    select n.tenant_id, h.id, n.id, n.email_id, n.recipient_id, n.type, n.at
    from news n join pgmail.hook h on h.tenant_id = n.tenant_id and h.enabled
      and exists (select from unnest(h.types) t where n.type = t or (right(t, 1) = '*' and starts_with(n.type, left(t, -1))))
      and (h.streams is null or n.stream = any (h.streams)) and (h.tags is null or n.tags @> h.tags)
    where n.type is not null
      -- A dump of another cluster brings xids that this one comes to later: what is made by one that began after the snapshot is no
      -- older than it. By the id, which says when it was written, and with a day for clocks that are wrong.
      and not (n.xid >= pg_snapshot_xmax(c.seen)
               and pgmail.uuid_time(coalesce(n.place, n.id)) < c.seen_at - interval '1 day')
    on conflict do nothing returning 1
  )
  select (select count(*) from wanted) as queued, n.xid, n.place, n.id from (select) o left join news n on n.type is null into e;
  queued := e.queued;
  more := e.xid is not null or c.until is not null;
  if e.xid is not null then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, until = upto, xid = e.xid, place = e.place, event_id = e.id;
  elsif c.until is not null or f.now_::text <> c.seen::text then
    update pgmail.hook_cursor set written = pg_current_xact_id()::xid, seen = upto, seen_at = case when c.until is null then clock_timestamp() else c.seen_at end, until = null, xid = null, place = null, event_id = null;
  end if;
end
$$;

CREATE FUNCTION pgmail.faulty(p_code text, p_field text, p_message text, p_status integer DEFAULT 422) RETURNS pgmail.email
    LANGUAGE plpgsql IMMUTABLE
    AS $$
declare e pgmail.email;
begin
  e.fault_code := p_code; e.fault_field := p_field; e.fault_message := p_message; e.fault_status := p_status;
  return e;
end
$$;

CREATE FUNCTION pgmail.feed_history_v1() RETURNS uuid
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare place jsonb := pgmail.place_v1();
begin
  return md5(concat_ws('/', (select h.id from pgmail.history h order by h.generation desc limit 1),
    (select extract(epoch from f.noticed_at) from pgmail.fence f), place->>'system',
    (select d.oid from pg_database d where d.datname = current_database()), place->>'timeline'))::uuid;
end
$$;

CREATE FUNCTION pgmail.feed_index_next(p_after text DEFAULT ''::text) RETURNS TABLE(name text, step integer, steps integer, statements text[])
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  with part as (
    select b.base, c.oid, c.relname::text as name,
      exists (select from pg_index x join pg_inherits h on h.inhrelid = x.indexrelid
              where x.indrelid = c.oid and h.inhparent = to_regclass(format('pgmail.%I', b.base || '_feed'))) as attached,
      (select x.indisvalid from pg_index x where x.indrelid = c.oid and x.indexrelid = to_regclass(format('pgmail.%I', c.relname || '_xid_id_idx'))) as valid
    from unnest(array['message', 'event']) b(base)
    join pg_inherits i on i.inhparent = to_regclass('pgmail.' || b.base)
    join pg_class c on c.oid = i.inhrelid
    where to_regclass(format('pgmail.%I', b.base || '_feed')) is not null   -- not so in a schema of an older revision
  )
  select p.name, (select count(*) from part x where x.attached)::integer + 1, (select count(*) from part)::integer,
    case when p.valid is false then array[format('drop index concurrently if exists pgmail.%I', p.name || '_xid_id_idx')] else '{}' end
    || case when p.valid is true then '{}' else array[format('create index concurrently %I on pgmail.%I (xid, id)%s',
         p.name || '_xid_id_idx', p.name, case when p.base = 'message' then ' where xid is not null' else '' end)] end
    || format('alter index pgmail.%I attach partition pgmail.%I', p.base || '_feed', p.name || '_xid_id_idx')
  from part p where not p.attached and p.name > p_after
  order by p.name limit 1
$$;

CREATE FUNCTION pgmail.feed_now_v1(OUT history uuid, OUT now_ pg_snapshot, OUT kept_days integer, OUT email_days integer, OUT whole boolean) RETURNS record
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select pgmail.feed_history_v1(), pg_current_snapshot(), pgmail.kept_days('event'), pgmail.kept_days('message'),
    (select bool_and(i.indisvalid) from pg_index i where i.indexrelid in ('pgmail.event_feed'::regclass, 'pgmail.message_feed'::regclass))
$$;

CREATE FUNCTION pgmail.feed_settle_in() RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare ours boolean; next_ xid8; newest timestamptz;
begin
  select h.written is not distinct from h.xmin into ours from pgmail.feed_home h;
  if ours then return; end if;
  if (select bool_and(i.indisvalid) from pg_index i where i.indexrelid in ('pgmail.event_feed'::regclass, 'pgmail.message_feed'::regclass)) is not true then
    return;   -- by the next mark, then
  end if;
  select h.written is not distinct from h.xmin into ours from pgmail.feed_home h for update;
  if ours then return; end if;
  -- In one statement, whose snapshot says both what is still to come and what is seen. The last transactions have the newest ids, but for
  -- long ones: a minute for those, and for clocks.
  select n.x, max(r.at) into next_, newest from (select pg_snapshot_xmax(pg_current_snapshot()) as x offset 0) n cross join lateral (
    (select pgmail.uuid_time(e.id) as at from pgmail.event e where e.xid >= n.x order by e.xid desc, e.id desc limit 1000)
    union all
    (select pgmail.uuid_time(m.id) from pgmail.message m where m.xid >= n.x order by m.xid desc, m.id desc limit 1000)) r
  group by n.x;
  if newest is not null then
    update pgmail.feed_home set from_xid = next_, below = pgmail.uuid_floor(least(newest + interval '1 minute', clock_timestamp()));
    perform pgmail.record_act(null, 'feed.settle_in', null,
      format('a dump was restored: what happened up to %s is told to nobody anew', pgmail.iso_time(newest)));
  else
    update pgmail.feed_home set from_xid = null, below = null;
  end if;
  -- In a second statement, which finds it in the row: behind a savepoint it is not the transaction's own.
  update pgmail.feed_home set written = xmin;
end
$$;

CREATE FUNCTION pgmail.feed_since_v1(p_at timestamp with time zone) RETURNS pg_snapshot
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare
  low bigint; high bigint; middle bigint; next_ bigint; at_ timestamptz; wanted timestamptz := p_at - interval '10 minutes';
  seen pg_snapshot := pg_current_snapshot(); running text; first text;
begin
  high := pg_snapshot_xmax(seen)::text::bigint;
  select least((select e.xid from pgmail.event e order by e.xid, e.id limit 1)::text::bigint,
               (select m.xid from pgmail.message m where m.xid is not null order by m.xid, m.id limit 1)::text::bigint, high) into low;
  -- All below low is before the moment, all from high on is not.
  while low < high loop
    middle := low + (high - low) / 2;
    select u.xid::text::bigint, u.at into next_, at_ from (
      (select e.xid, e.at from pgmail.event e where e.xid >= middle::text::xid8 order by e.xid, e.id limit 1)
      union all
      (select m.xid, m.created_at from pgmail.message m where m.xid >= middle::text::xid8 order by m.xid, m.id limit 1)) u
      order by u.xid limit 1;
    if at_ is not null and next_ < high and at_ < wanted then low := next_ + 1; else high := middle; end if;
  end loop;
  select string_agg(x::text, ',' order by x), min(x)::text into running, first from pg_snapshot_xip(seen) x where x < high::text::xid8;
  return format('%s:%s:%s', coalesce(first, high::text), high, running)::pg_snapshot;
end
$$;

CREATE FUNCTION pgmail.feed_stretches(p_seen pg_snapshot, p_now pg_snapshot, p_from xid8) RETURNS TABLE(low xid8, high xid8)
    LANGUAGE sql IMMUTABLE
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  with late as (
    select x, x::text::bigint as n from pg_snapshot_xip(p_seen) x
    where pg_visible_in_snapshot(x, p_now) and (p_from is null or x >= p_from)
  ), near as (
    select coalesce(min(n), pg_snapshot_xmax(p_seen)::text::bigint) as n from late where n > pg_snapshot_xmax(p_seen)::text::bigint - 2000
  )
  select x, (n + 1)::text::xid8 from late where n < (select near.n from near)
  union all
  select near.n::text::xid8, pg_snapshot_xmax(p_now) from near where near.n < pg_snapshot_xmax(p_now)::text::bigint
  order by 1
$$;

CREATE FUNCTION pgmail.feed_v1(p_seen pg_snapshot, p_now pg_snapshot, p_xid xid8, p_place uuid, p_id uuid, p_tenants integer[], p_most integer DEFAULT 1000, p_types text[] DEFAULT NULL::text[], p_emails uuid[] DEFAULT NULL::uuid[]) RETURNS TABLE(xid xid8, place uuid, id uuid, type text, tenant_id integer, at timestamp with time zone, email_id uuid, recipient_id uuid, address text, stream text, tags jsonb, template text, template_version integer, email_created_at timestamp with time zone, test boolean, attempt smallint, code smallint, enhanced text, reply text, class text, reason text, phase text, site text, relay text, remote_host text, tls text, ms integer, worker bigint, detail text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET enable_nestloop TO 'off'
    AS $$
#variable_conflict use_column
declare
  none constant uuid := '00000000-0000-0000-0000-000000000000'; all_ constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  s record; q record; h record; many integer := 0; room integer; more boolean := false; any_event boolean := true; any_queued boolean := true;
  x xid8; after_event uuid; from_message uuid; upto xid8; origins uuid[];
  events pgmail.event[] := '{}'; xids xid8[] := '{}'; places uuid[] := '{}'; tenants integer[] := '{}';
  foreign_xid xid8; foreign_id uuid;   -- from this on and below that: of another cluster
  low_owner uuid; high_owner uuid; low_email uuid; high_email uuid; low_person uuid; high_person uuid;
begin
  select coalesce(h.from_xid, '0'), coalesce(h.below, none) into foreign_xid, foreign_id from pgmail.feed_home h;
  if p_types is not null then
    select bool_or(w.type is null or w.type not in ('email.queued', 'email.scheduled')), bool_or(w.type is null or w.type in ('email.queued', 'email.scheduled'))
      into any_event, any_queued from unnest(p_types) w(type);
  end if;
  if p_emails is not null then
    -- Which emails recipients are of: what tells that it was queued has the email's id alone.
    select array_agg(r.message_id) into origins from unnest(p_tenants, p_emails) w(tenant, email)
    cross join lateral (select y.message_id from pgmail.recipient y where y.tenant_id = w.tenant and y.id = w.email limit 1) r;
    origins := origins || p_emails;
  end if;
  for s in select f.low, f.high from pgmail.feed_stretches(p_seen, p_now, p_xid) f loop
    continue when s.high <= p_xid;
    -- In the transaction of the position only what comes after it; in others all.
    if s.low <= p_xid then
      x := p_xid; after_event := case when p_place is null then p_id else none end; from_message := coalesce(p_place, all_);
    else
      x := s.low; after_event := none; from_message := none;
    end if;
    room := greatest(p_most - many, 1); upto := s.high;
    if any_queued then
      with found as (
        select m.xid, m.id, m.tenant_id, m.recipients, case when m.scheduled_at is null then 'email.queued' else 'email.scheduled' end as type
        from pgmail.message m
        where (m.xid, m.id) >= (x, from_message) and m.xid < s.high and (m.xid = p_xid and m.id = p_place and p_id = all_) is not true
          and pg_visible_in_snapshot(m.xid, p_now) and not pg_visible_in_snapshot(m.xid, p_seen)
          and (m.xid < foreign_xid or m.id >= foreign_id)
        order by m.xid, m.id limit room
      ), wanted as materialized (
        select w.tenant, bool_or(w.type is null and w.email is null) as everything, array_agg(w.type) as types
        from unnest(p_tenants, p_types, p_emails) w(tenant, type, email) group by w.tenant
      ), judged as (
        select f.*, p_tenants is null or coalesce(w.everything or f.type = any (w.types) or (f.id = any (origins) and w.tenant is not null), false) as told
        from found f left join wanted w on w.tenant = f.tenant_id
      ), counted as (
        select j.*, sum(case when j.told then j.recipients else 1 end) over (order by j.xid, j.id rows unbounded preceding) as facts from judged j
      )
      select array_agg(c.xid) filter (where c.told) as xids, array_agg(c.id) filter (where c.told) as ids,
        array_agg(c.tenant_id) filter (where c.told) as tenants, max(c.facts) as facts,
        (array_agg(c.xid order by c.xid desc, c.id desc))[1] as xid, (array_agg(c.id order by c.xid desc, c.id desc))[1] as id
      into q from counted c where c.facts - case when c.told then c.recipients else 1 end < room;
      -- Of the transaction in whose midst it ends no events yet: they come after all of its emails.
      if q.facts >= room then
        more := true; xid := q.xid; place := q.id; id := all_; upto := q.xid;
      end if;
      many := many + coalesce(q.facts, 0);
    end if;
    if any_event then
      with found as (
        select e.xid, e.id, e.tenant_id, e.type, e.message_id, e.recipient_id, e as event from pgmail.event e
        where (e.xid, e.id) > (x, after_event) and e.xid < upto
          and pg_visible_in_snapshot(e.xid, p_now) and not pg_visible_in_snapshot(e.xid, p_seen)
          and (e.xid < foreign_xid or e.id >= foreign_id)
        order by e.xid, e.id limit room
      ), wanted as materialized (
        select w.tenant, bool_or(w.type is null and w.email is null) as everything, array_agg(w.type) as types, array_agg(w.email) as emails
        from unnest(p_tenants, p_types, p_emails) w(tenant, type, email) group by w.tenant
      )
      select array_agg(f.event) filter (where p_tenants is null or w.everything or f.type = any (w.types)
          or f.message_id = any (w.emails) or f.recipient_id = any (w.emails)) as events, count(*) as facts,
        (array_agg(f.xid order by f.xid desc, f.id desc))[1] as xid, (array_agg(f.id order by f.xid desc, f.id desc))[1] as id
      into h from found f left join wanted w on w.tenant = f.tenant_id;
      if h.facts = room then
        more := true; xid := h.xid; place := null; id := h.id;
      end if;
      events := events || coalesce(h.events, '{}');
      many := many + h.facts;
    end if;
    if any_queued then
      -- What comes after the last event is told after it.
      select xids || coalesce(array_agg(u.xid), '{}'), places || coalesce(array_agg(u.id), '{}'), tenants || coalesce(array_agg(u.tenant_id), '{}')
        into xids, places, tenants from unnest(q.xids, q.ids, q.tenants) u(xid, id, tenant_id) where not more or u.xid <= feed_v1.xid;
    end if;
    exit when more;
  end loop;

  if events <> '{}' or xids <> '{}' then
    -- Bounds leave of each table the one or two partitions that hold what is looked for.
    select e.recipient_id into low_owner from unnest(events) e order by e.recipient_id limit 1;
    select e.recipient_id into high_owner from unnest(events) e order by e.recipient_id desc limit 1;
    select o into low_email from (select unnest(places) union all select e.message_id from unnest(events) e) u(o) order by o limit 1;
    select o into high_email from (select unnest(places) union all select e.message_id from unnest(events) e) u(o) order by o desc limit 1;
    -- The recipients of an email were made within its hour.
    select pgmail.uuid_floor(pgmail.uuid_time(o) - interval '1 hour') into low_person from unnest(places) o order by o limit 1;
    select pgmail.uuid_floor(pgmail.uuid_time(o) + interval '1 hour') into high_person from unnest(places) o order by o desc limit 1;
    return query
    with mails as materialized (
      select d.tenant_id, d.id, m.* from (
        select u.tenant_id, u.message_id from unnest(events) u union select u.tenant_id, u.id from unnest(tenants, places) u(tenant_id, id)) d(tenant_id, id)
      left join lateral (
        select y.stream, y.tags, y.template, y.template_version, y.created_at, y.test, y.scheduled_at, y.created_by
        from pgmail.message y where y.tenant_id = d.tenant_id and y.id = d.id and y.id >= low_email and y.id <= high_email limit 1) m on true
    ), happened as (
      select u.xid, 1 as kind, u.id, none as id_, null::uuid as place, u.type, u.tenant_id, u.at, u.message_id, u.recipient_id, r.address, m.stream, m.tags, m.template,
        m.template_version, m.created_at, m.test, u.attempt, u.code, u.enhanced, u.reply, k.class, k.name, u.phase,
        coalesce(u.site, r.site) as site, u.relay, u.remote_host, u.tls, u.ms, u.worker, nullif(u.detail, '') as detail
      from unnest(events) u
      join mails m on m.tenant_id = u.tenant_id and m.id = u.message_id
      left join lateral (
        select y.address, y.site from pgmail.recipient y
        where y.tenant_id = u.tenant_id and y.id = u.recipient_id and y.id >= low_owner and y.id <= high_owner limit 1) r on true
      left join lateral (
        select y.class, y.name from pgmail.reply_reason y where u.code >= 400 and y.name = split_part(u.detail, ':', 1) limit 1) k on true
    ), queued as (
      select u.xid, 0 as kind, u.id, r.id as id_, u.id as place, case when m.scheduled_at is null then 'email.queued' else 'email.scheduled' end, u.tenant_id,
        m.created_at as at, u.id as message_id, r.id as recipient_id, r.address, m.stream, m.tags, m.template, m.template_version,
        m.created_at, m.test, null::smallint, null::smallint, null::text, null::text, null::text, null::text, null::text,
        r.site, null::text, null::text, null::text, null::integer, null::bigint,
        nullif(concat_ws(', ', case when m.test then 'a test, for the sandbox only' end, 'by ' || m.created_by,
          'for ' || to_char(m.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), '')
      from unnest(xids, places, tenants) u(xid, id, tenant_id)
      join mails m on m.tenant_id = u.tenant_id and m.id = u.id
      cross join lateral (
        select y.id, y.address, y.site from pgmail.recipient y
        where y.tenant_id = u.tenant_id and y.message_id = u.id and y.message_id between u.id and u.id   -- 070_state tells why
          and y.id >= low_person and y.id < high_person
          and (p_place is null or u.id <> p_place or u.xid <> p_xid or y.id > p_id)
        offset 0) r
      where m.created_at is not null
    )
    select t.xid, t.place, case t.kind when 0 then t.id_ else t.id end, t.type, t.tenant_id, t.at, t.message_id, t.recipient_id, t.address,
      t.stream, t.tags, t.template, t.template_version, t.created_at, t.test, t.attempt, t.code, t.enhanced, t.reply, t.class, t.name, t.phase,
      t.site, t.relay, t.remote_host, t.tls, t.ms, t.worker, t.detail
    -- What it is sorted by comes first in these rows, which makes it several times quicker: no null and no text lies before it.
    from (select u.* from (select * from happened union all select * from queued) u order by u.xid, u.kind, u.id, u.id_ offset 0) t;
  end if;

  if more then
    type := null; tenant_id := null; at := null; email_id := null; recipient_id := null; address := null; stream := null;
    return next;
  end if;
end
$$;

CREATE FUNCTION pgmail.figure_of(p_type text, p_detail text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case when p_type = 'email.sent' and p_detail not like 'fenced out, %' then 'sent'
    when p_detail like 'fenced out, %' and p_type <> 'email.in_doubt' then null
    when p_type = 'email.failed' then 'dead' else substr(p_type, 7) end
$$;

CREATE FUNCTION pgmail.find_emails(p_start text, p_limit integer, p_below uuid, p_above uuid, p_newer boolean, p_state text, p_tag_name text, p_tag_value text, p_stream text, p_streams text[], p_only_tests boolean, p_recipient text, p_patience interval DEFAULT '00:00:00.1'::interval, p_slack integer DEFAULT 20000, OUT ids uuid[], OUT more boolean, OUT place uuid) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET jit TO 'off'
    AS $_$
declare
  t integer := pgmail.need_tenant(); began timestamptz := clock_timestamp();
  nobody constant uuid := '00000000-0000-0000-0000-000000000000'; beyond constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  by_recipient boolean := p_start not in ('time', 'tag'); at_ uuid; size_ integer; n integer; last_ uuid; met uuid[]; got uuid[] := '{}';
  least_ integer; stepped timestamptz; safe integer; again boolean := by_recipient and p_newer; ended boolean := false; step text; table_ text; key_ text; good text; state_ text;
begin
  select x.table_, x.key_, x.good into strict table_, key_, good from (values
    ('time', 'pgmail.message', 'id', 'true'),
    ('tag', 'pgmail.tag', 'message_id', 'true'),
    ('recipient', 'pgmail.recipient', 'id', 'true'),
    ('outcome', 'pgmail.outcome', 'recipient_id', 's.state = $5'),
    ('queue', 'pgmail.queue', 'id', 'pgmail.state_of(null, false, true, s.leased_by is not null, s.due_at, s.wait, $6) = $5'),
    ('dead', 'pgmail.dead_letter', 'recipient_id', 'true')) x(start, table_, key_, good)
  where x.start = p_start;

  -- The state of a recipient, where the walk is not along those that are in it. By keys, one by one, whatever the planner
  -- knows of tables that were filled a moment ago (why a message is said twice: 070_state).
  state_ := $q$ exists (
    select from (select r.id from pgmail.recipient r where r.tenant_id = $1 and %s offset 0) r
    left join lateral (select x.* from pgmail.queue x where x.tenant_id = $1 and x.id = r.id limit 1) q on true
    left join lateral (select x.state from pgmail.outcome x where x.tenant_id = $1 and x.recipient_id = r.id limit 1) o on true
    left join lateral (select true as there from pgmail.dead_letter x where x.tenant_id = $1 and x.recipient_id = r.id limit 1) d on true
    where pgmail.state_of(o.state, d.there is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, $6) = $5) $q$;
  good := good || case when p_start <> 'time' then $q$ and exists (
      select from pgmail.message m where m.tenant_id = $1 and m.id = c.email $q$ || case when p_stream is not null then ' and m.stream = $7' else '' end
      || case when p_streams is not null then ' and m.stream = any ($8)' else '' end || case when p_only_tests then ' and m.test' else '' end || ')'
    else case when p_stream is not null then ' and s.stream = $7' else '' end || case when p_streams is not null then ' and s.stream = any ($8)' else '' end
      || case when p_only_tests then ' and s.test' else '' end end
    || case when p_tag_name is not null and p_start <> 'tag' then
      ' and exists (select from pgmail.tag g where g.tenant_id = $1 and g.name = $9 and g.value = $10 and g.message_id = c.email)' else '' end
    || case when p_state is null or p_start in ('outcome', 'queue', 'dead') then ''
      when p_start = 'recipient' then ' and ' || format(state_, 'r.id = s.id')
      else ' and ' || format(state_, $q$r.message_id = c.email and r.message_id between c.email and c.email and r.id >= pgmail.uuid_floor(pgmail.uuid_time(c.email) - interval '1 hour')
        and r.id < pgmail.uuid_floor(pgmail.uuid_time(c.email) + interval '1 hour')$q$) end;
  step := format($q$
    select count(*), (array_agg(c.place order by c.place %1$s))[1], coalesce(array_agg(distinct c.email) filter (where c.good), '{}')
    from (
      select s.%2$I as place, c.email, c.email > $3 and c.email < $4 and %3$s as good
      from (select y.* from %4$s y where y.tenant_id = $1 %5$s and y.%2$I %6$s $2 and y.%2$I > $3 %7$s order by y.%2$I %8$s limit $11) s,
        lateral (select %9$s as email) c) c $q$,
    case when p_newer then 'desc' else 'asc' end, key_, good, table_,
    case p_start when 'tag' then 'and y.name = $9 and y.value = $10' when 'recipient' then 'and y.address = $12' else '' end,
    case when p_newer then '>' else '<' end, case when by_recipient or not p_newer then '' else format('and y.%I < $4', key_) end,
    case when p_newer then 'asc' else 'desc' end, case when p_start = 'time' then 's.id' else 's.message_id' end);

  if p_newer then
    at_ := coalesce(p_above, nobody);
  else
    at_ := coalesce(p_below, beyond);
    if by_recipient and p_below is not null then
      execute format('select y.%1$I from %2$s y where y.tenant_id = $1 %3$s and y.%1$I >= $2 order by y.%1$I offset $3 limit 1', key_, table_,
        case when p_start = 'recipient' then 'and y.address = $4' else '' end) into at_ using t, p_below, p_slack, p_recipient;
      at_ := coalesce(at_, beyond);
    end if;
  end if;

  -- An email may have 1,000 recipients, whose states are looked up one by one: few emails at first.
  least_ := case when p_start = 'time' and good = 'true' then p_limit + 1 when p_start in ('time', 'tag') and p_state is not null then 8
    else greatest(500, p_limit + 1) end;
  size_ := least_;
  loop
    stepped := clock_timestamp();
    execute step into n, last_, met using t, at_, coalesce(p_above, nobody), coalesce(p_below, beyond), p_state, pgmail.now(), p_stream, p_streams,
      p_tag_name, p_tag_value, size_, p_recipient;
    at_ := coalesce(last_, at_);
    ended := n < size_;
    select coalesce(array_agg(distinct u), '{}') into got from unnest(got || met) u;
    select count(*) into safe from unnest(got) u where ended or not by_recipient or (u >= at_) <> p_newer;
    exit when ended or (safe > p_limit and not again)
      or (clock_timestamp() - began >= p_patience and (p_newer or p_below is null or at_ < p_below));   -- it must come nearer its end
    again := again and safe <= p_limit;   -- upwards an email may be met after ones that are newer: a look beyond
    size_ := case when clock_timestamp() - stepped > p_patience / 4 then greatest(size_ / 2, least_) else least(size_ * 2, 8000) end;
  end loop;

  place := case when not ended and safe <= p_limit then at_ end;
  more := not ended or safe > p_limit;
  select coalesce(array_agg(x.id order by x.id desc), '{}') into ids from (
    select u as id from unnest(got) u where ended or not by_recipient or (u >= at_) <> p_newer
    order by case when p_newer then u end, case when not p_newer then u end desc limit p_limit) x;
end
$_$;

CREATE FUNCTION pgmail.find_recipients(p_tenant integer, p_id uuid, OUT message_id uuid, OUT recipients uuid[]) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
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

CREATE FUNCTION pgmail.first_data_key_v1(p_wrapped bytea, p_kek text) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select pgmail.store_data_key(pgmail.need_tenant(), p_wrapped, p_kek, null, true) $$;

CREATE FUNCTION pgmail.fits(p_variables jsonb, p_most integer) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$ select octet_length(p_variables::text) <= p_most and not p_variables @? '$.**{33}' $_$;

CREATE FUNCTION pgmail.fits_sealed(p_sealed bytea, p_plain bigint) RETURNS boolean
    LANGUAGE sql IMMUTABLE
    AS $$ select coalesce(octet_length(p_sealed) between 28 and 2 * p_plain + 1024, false) $$;

CREATE FUNCTION pgmail.fleet_v1() RETURNS TABLE(epoch bigint, program text, state text, asleep boolean, concurrency integer, started_at timestamp with time zone, beat_seconds double precision, leads boolean, staging text, host text, pid integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select w.epoch, w.program, w.state, w.asleep, w.concurrency, w.started_at, extract(epoch from pgmail.now() - w.beat_at)::float8,
         coalesce(l.epoch = w.epoch and l.until > pgmail.now(), false), w.staging,
         case when alone.yes then w.host end, case when alone.yes then w.pid end
  from pgmail.worker w
  left join pgmail.leader l on true
  cross join (select count(*) < 2 as yes from (select from pgmail.tenant limit 2) t) alone
  order by w.program, w.epoch
$$;

CREATE FUNCTION pgmail.fold_reply(p_text text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
  select btrim(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    translate(left(p_text, 2000),
      E'ABCDEFGHIJKLMNOPQRSTUVWXYZАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁё'
        || E'áàâäãåāăąçćčďđéèêëēėęěíìîïīğñńňóòôöõøōőŕřśšşșťţțúùûüūůűýÿžźżłœæ'
        || E'ßÁÀÂÄÃÅĂĄÇĆČĎĐÉÈÊËĖĘĚÍÌÎÏİĞÑŃŇÓÒÔÖÕØŐŔŘŚŠŞȘŤŢȚÚÙÛÜŮŰÝŽŹŻŁŒÆı'
        || E'’‘`´“”„«»"‐‑–—\t\r\n\f\u000b\u00a0',
      E'abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъыьэюяее'
        || E'aaaaaaaaacccddeeeeeeeeiiiiignnnoooooooorrsssstttuuuuuuuyyzzzloa'
        || E'saaaaaaaacccddeeeeeeeiiiiignnnooooooorrsssstttuuuuuuyzzzloai'
        || E'''''''''''''''''''''----      '),
    ' {2,}', ' ', 'g'),
    '[a-z0-9._%+=&*$!#/?{}|~^''-]+@[a-z0-9._-]+', '@', 'g'),
    '(^| )[245][0-9][0-9][ -]#?[245]\.[0-9]{1,3}\.[0-9]{1,3}( |$)|(^| )[45][0-9][0-9]-', ' ', 'g'),
    ' {2,}', ' ', 'g'), ' ')
$_$;

CREATE FUNCTION pgmail.fold_tallies_v1(p_most integer DEFAULT 20000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  with gone as materialized (
    delete from pgmail.tally
    where ctid = any (array(select ctid from pgmail.tally limit p_most for update skip locked))
    returning tenant_id, stream, kind, tally.n, tally.bytes, at, lanes, per_lane
  ), summed as (
    select tenant_id, stream, kind, sum(g.n) as n, coalesce(sum(g.bytes), 0) as bytes
    from gone g group by tenant_id, stream, kind order by tenant_id, stream, kind
  ), waiting as (
    insert into pgmail.backlog as b (tenant_id, lane, depth)
    select g.tenant_id, u.lane, sum(case g.kind when 'enqueued' then u.n else -u.n end) as depth
    from gone g cross join lateral unnest(g.lanes, g.per_lane) u(lane, n)
    where u.lane is not null group by g.tenant_id, u.lane having sum(case g.kind when 'enqueued' then u.n else -u.n end) <> 0
    order by g.tenant_id, u.lane
    on conflict (tenant_id, lane) do update set depth = b.depth + excluded.depth
  ), came as (
    insert into pgmail.rollup as r (tenant_id, dim, grain, at, key, kind, n)
    select g.tenant_id, 'stream', x.grain, date_bin(x.width, g.at, '2000-01-01Z') as begins, g.stream, 'enqueued', sum(g.n)
    from gone g, (values ('minute', interval '1 minute'), ('quarter', interval '15 minutes'), ('hour', interval '1 hour'), ('day', interval '1 day')) x(grain, width)
    where g.kind = 'enqueued' group by g.tenant_id, x.grain, begins, g.stream order by g.tenant_id, x.grain, begins, g.stream
    on conflict (tenant_id, dim, grain, at, key, kind, bucket) do update set n = r.n + excluded.n
  ), felt as (
    insert into pgmail.pulse as p (tenant_id, stream, at, enqueued, sent)
    select g.tenant_id, g.stream, date_bin('5 seconds', g.at, '2000-01-01Z') as slice,
      coalesce(sum(g.n) filter (where g.kind = 'enqueued'), 0), coalesce(sum(g.n) filter (where g.kind = 'sent'), 0)
    from gone g where g.kind in ('enqueued', 'sent') group by g.tenant_id, slice, g.stream order by g.tenant_id, slice, g.stream
    on conflict (tenant_id, at, stream) do update set enqueued = p.enqueued + excluded.enqueued, sent = p.sent + excluded.sent
  ), folded as (
    insert into pgmail.tally_total as t (tenant_id, stream, kind, n, bytes) select * from summed
    on conflict (tenant_id, stream, kind) do update set n = t.n + excluded.n, bytes = t.bytes + excluded.bytes returning 1
  ), moved as (
    insert into pgmail.tally_moved (tenant_id) select distinct tenant_id from summed   -- for doors_v1
  )
  select count(*) into n from folded;
  return n;
end
$$;

CREATE FUNCTION pgmail.fold_touches_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  with gone as (
    delete from pgmail.lane_touch
    where ctid = any(array(select ctid from pgmail.lane_touch limit 5000 for update skip locked))
    returning *
  ), touched as (
    select tenant_id, lane, min(stream) as stream, min(priority) as priority, min(site) as site, min(due_at) as due_at
    from gone group by tenant_id, lane order by tenant_id, lane
  ), folded as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select tenant_id, lane, stream, priority, site, due_at from touched
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(),
      -- an old rewind was seen by every worker a minute after it was written
      rewind_to = case when l.changed_at > pgmail.now() - interval '1 minute'
                       then least(l.rewind_to, excluded.rewind_to) else excluded.rewind_to end
    returning 1
  )
  select count(*) into n from folded;
  return n;
end
$$;

CREATE FUNCTION pgmail.form_once_v1(p_form uuid) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  insert into pgmail.idempotency (tenant_id, key, body_hash, ids, created_at, expires_at)
  values (pgmail.need_tenant(), 'form of the dashboard ' || p_form, '', '{}', pgmail.now(), pgmail.now() + interval '24 hours')
  on conflict do nothing;
  return found;
end
$$;

CREATE FUNCTION pgmail.gauge_due() RETURNS TABLE(tenant_id integer, lane bigint, stream text, priority smallint, site text, due_at timestamp with time zone)
    LANGUAGE sql STABLE
    AS $$
  with paused as materialized (
    select p.tenant_id, p.scope, p.name from pgmail.pause p where p.until is null or p.until > pgmail.now()
  )
  select g.tenant_id, g.lane, g.stream, g.priority, g.site, g.oldest_due_at from pgmail.gauge g
  where g.oldest_due_at is not null
    and (not exists (select from paused)
      or (g.tenant_id not in (select p.tenant_id from paused p where p.scope = 'tenant' and p.tenant_id is not null)
        and ('stream', g.stream) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and ('site', g.site) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and ('lane', pgmail.lane_name(g.stream, g.priority, g.site)) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and (g.tenant_id, 'stream', g.stream) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)
        and (g.tenant_id, 'site', g.site) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)
        and (g.tenant_id, 'lane', pgmail.lane_name(g.stream, g.priority, g.site)) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)))
$$;

CREATE FUNCTION pgmail.gauge_kept() RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
  select coalesce((select c.gauged_at > pgmail.now() - interval '3 minutes' from pgmail.insight_cursor c), false)
$$;

CREATE FUNCTION pgmail.gauge_lanes_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with known as (   -- a full join can be no nested loop, which the planner would take for what it expects to be few
    select k.tenant_id, k.lane, g.tenant_id as in_tenant, g.lane as in_lane, g.oldest_due_at as was
    from pgmail.lanes_known() k full join pgmail.gauge g on g.tenant_id = k.tenant_id and g.lane = k.lane
  ), found as materialized (
    select p.*, x.due_at from known p left join lateral (
      select q.due_at from pgmail.queue q
      where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
      order by q.due_at, q.id limit 1) x on true
  ), gone as (
    delete from pgmail.gauge g using found f where f.lane is null and g.tenant_id = f.in_tenant and g.lane = f.in_lane
  ), moved as (
    update pgmail.gauge g set oldest_due_at = f.due_at from found f
    where f.due_at is distinct from f.was and g.tenant_id = f.tenant_id and g.lane = f.lane
  ), fresh as (
    insert into pgmail.gauge (tenant_id, lane, stream, priority, site, oldest_due_at)
    select f.tenant_id, f.lane, l.stream, l.priority, l.site, f.due_at
    from found f cross join lateral pgmail.lane_facts(f.tenant_id, f.lane) l
    where f.lane is not null and f.in_lane is null and l.stream is not null
  )
  select count(f.lane) into n from found f;
  update pgmail.insight_cursor c set gauged_at = pgmail.now();
  return n;
end
$$;

CREATE FUNCTION pgmail.gauge_states_v1() RETURNS bigint
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET work_mem TO '64MB'
    SET enable_mergejoin TO 'off'
    SET max_parallel_workers_per_gather TO '0'
    SET jit TO 'off'
    AS $$
declare off_by bigint; now_ timestamptz := pgmail.now();
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.gauge', 0)) then return null; end if;
  with counted as (
    select q.tenant_id, q.lane, count(*) as n, count(q.leased_by) as sending,
      count(*) filter (where q.leased_by is null and q.due_at = 'infinity') as held,
      count(*) filter (where q.wait = 'scheduled' and q.leased_by is null and q.due_at > now_ and q.due_at < 'infinity') as scheduled,
      count(*) filter (where q.wait = 'deferred' and q.leased_by is null and q.due_at > now_ and q.due_at < 'infinity') as deferred,
      count(*) filter (where q.in_doubt) as in_doubt
    from pgmail.queue q group by q.tenant_id, q.lane
  ), moving as (
    select t.tenant_id, u.lane, sum(case t.kind when 'enqueued' then u.n else -u.n end)::bigint as n
    from pgmail.tally t, unnest(t.lanes, t.per_lane) u(lane, n) where u.lane is not null group by t.tenant_id, u.lane
  ), states as materialized (   -- what is there, what tallies say, and what was gauged last: one row a lane of any of them
    select tenant_id, lane, c.n, c.sending, c.held, c.scheduled, c.deferred, c.in_doubt, c.n - c.sending - c.held - c.scheduled - c.deferred as queued,
      b.depth, coalesce(c.n, 0) - coalesce(b.depth, 0) - coalesce(v.n, 0) as wrong, o.stream, o.priority, o.site,
      (o.queued, o.scheduled, o.deferred, o.held, o.sending, o.in_doubt)
        is distinct from (c.n - c.sending - c.held - c.scheduled - c.deferred, c.scheduled, c.deferred, c.held, c.sending, c.in_doubt) as moved
    from counted c full join pgmail.backlog b using (tenant_id, lane) full join moving v using (tenant_id, lane)
    full join pgmail.gauge o using (tenant_id, lane)
  ), righted as (
    insert into pgmail.backlog as b (tenant_id, lane, depth) select s.tenant_id, s.lane, s.wrong from states s where s.wrong <> 0 order by 1, 2
    on conflict (tenant_id, lane) do update set depth = b.depth + excluded.depth
  ), empty as (
    delete from pgmail.backlog b using states s where s.depth = 0 and s.n is null and s.wrong = 0
      and b.tenant_id = s.tenant_id and b.lane = s.lane and b.depth = 0
  ), gauged as (
    insert into pgmail.gauge as g (tenant_id, lane, stream, priority, site, queued, scheduled, deferred, held, sending, in_doubt)
    select s.tenant_id, s.lane, l.stream, l.priority, l.site, s.queued, s.scheduled, s.deferred, s.held, s.sending, s.in_doubt
    from states s cross join lateral (
      select s.stream, s.priority, s.site where s.stream is not null
      union all select f.stream, f.priority, f.site from pgmail.lane_facts(s.tenant_id, s.lane) f where s.stream is null) l
    where s.n is not null and (s.moved or s.stream is null) and l.stream is not null
    order by s.tenant_id, s.lane
    on conflict (tenant_id, lane) do update set queued = excluded.queued, scheduled = excluded.scheduled, deferred = excluded.deferred,
      held = excluded.held, sending = excluded.sending, in_doubt = excluded.in_doubt
  ), gone as (
    delete from pgmail.gauge g using states s where s.n is null and s.stream is not null and g.tenant_id = s.tenant_id and g.lane = s.lane
  )
  select coalesce(sum(abs(s.wrong)), 0) into off_by from states s;
  update pgmail.insight_cursor set counted_at = now_;
  return off_by;
end
$$;

CREATE FUNCTION pgmail.grant_tenant(p_role name, p_tenant text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer; r record;
begin
  select id into t from pgmail.tenant where name = p_tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', p_tenant), 404); end if;
  select x.carries_tenant, x.tenant_id, n.name into r
  from pgmail.database_role x left join pgmail.tenant n on n.id = x.tenant_id where x.role_name = p_role for update of x;
  if r.carries_tenant then
    perform pgmail.refuse('not_allowed', '/role', format('the role %I carries the tenant of each key, and is of none', p_role), 409);
  elsif r.tenant_id <> t then
    perform pgmail.refuse('speaks_for_another', '/role', format('the role %I speaks for the tenant %s; revoke that first', p_role, r.name), 409);
  end if;
  insert into pgmail.database_role as x (role_name, tenant_id) values (p_role, t)
    on conflict (role_name) do update set tenant_id = excluded.tenant_id where not x.carries_tenant;
  perform pgmail.record_act(t, 'tenant.grant', p_role::text, null);
end
$$;

CREATE FUNCTION pgmail.has_bidi(p_text text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select p_text ~ '[\u202a-\u202e\u2066-\u2069]' $$;

CREATE FUNCTION pgmail.has_control(p_text text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' $$;

CREATE FUNCTION pgmail.has_erased(p_tenant integer) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select exists (select from pgmail.erasure_salt x where x.tenant_id = p_tenant) $$;

CREATE FUNCTION pgmail.hold(id uuid, reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.hook_data(p_tenant integer, p_event uuid, p_email uuid, p_recipient uuid, p_type text) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
  select json_strip_nulls(json_build_object(
    'id', p_event, 'email_id', m.id, 'recipient_id', r.id, 'address', r.address, 'stream', m.stream, 'tags', nullif(m.tags, '{}'),
    'template', case when m.template is not null then json_build_object('id', m.template, 'version', m.template_version) end,
    'email_created_at', to_char(m.created_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS.US"Z"'), 'test', nullif(m.test, false),
    'attempt', e.attempt, 'code', e.code, 'enhanced', e.enhanced, 'reply', e.reply, 'class', k.class, 'reason', k.name, 'phase', e.phase,
    'site', coalesce(e.site, r.site), 'relay', e.relay, 'remote_host', e.remote_host, 'tls', e.tls, 'ms', e.ms, 'worker', e.worker,
    'detail', nullif(case when p_event <> p_recipient then e.detail else concat_ws(', ',
      case when m.test then 'a test, for the sandbox only' end, 'by ' || m.created_by,
      'for ' || pgmail.iso_time(m.scheduled_at)) end, '')))::text
  from (select y.id, y.created_at, y.created_by, y.scheduled_at, y.stream, y.tags, y.template, y.template_version, y.test
        from pgmail.message y where y.tenant_id = p_tenant and y.id = p_email limit 1) m
  cross join lateral (select y.id, y.address, y.site from pgmail.recipient y where y.tenant_id = p_tenant and y.id = p_recipient limit 1) r
  left join lateral (
    select y.* from pgmail.event y where y.tenant_id = p_tenant and y.recipient_id = p_recipient and y.id = p_event limit 1) e on true
  left join pgmail.reply_reason k on k.name = split_part(e.detail, ':', 1) and e.code >= 400
  where p_event = p_recipient or e.id is not null
$$;

CREATE FUNCTION pgmail.hot_tables() RETURNS TABLE(name text, dead bigint, living bigint, bytes bigint, vacuumed_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select s.relname::text, s.n_dead_tup, s.n_live_tup, pg_total_relation_size(s.relid), greatest(s.last_vacuum, s.last_autovacuum)
  from pg_stat_user_tables s where s.schemaname = 'pgmail'
    and s.relname in ('queue', 'lane', 'lane_touch', 'tally', 'tally_total', 'worker', 'bucket', 'permit', 'dead_letter', 'idempotency')
$$;

CREATE FUNCTION pgmail.idle_lanes_v1(p_tenant integer, p_lanes bigint[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with quiet as materialized (
    select l.id from pgmail.lane l
    where l.tenant_id = p_tenant and l.id = any(p_lanes) and l.active
      and l.changed_at < pgmail.now() - interval '30 seconds'
      and not exists (select 1 from pgmail.queue q
                      where q.tenant_id = p_tenant and q.lane = l.id and q.due_at <= pgmail.now() + interval '5 seconds')
    order by l.id for update of l skip locked
  ), idled as (
    update pgmail.lane l set active = false, version = nextval('pgmail.lane_version'), changed_at = pgmail.now(),
      rewind_to = null
    from quiet where l.tenant_id = p_tenant and l.id = quiet.id returning 1
  )
  select count(*) into n from idled;
  return n;
end
$$;

CREATE FUNCTION pgmail.in_doubt(filter jsonb DEFAULT '{}'::jsonb, most integer DEFAULT NULL::integer, below uuid DEFAULT NULL::uuid, above uuid DEFAULT NULL::uuid, newer boolean DEFAULT false) RETURNS TABLE(recipient_id uuid, message_id uuid, address text, stream text, site text, since timestamp with time zone, attempt smallint, relay text, remote_host text, worker bigint, reason text, error text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,relay,worker,recipient,doubted_after,doubted_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select q.id, q.message_id, r.address, m.stream, r.site, coalesce(e.at, q.held_due_at), coalesce(e.attempt, q.attempts),
    coalesce(e.relay, q.begun_relay), e.remote_host, e.worker, q.hold_reason, e.detail
  from pgmail.queue q
  cross join lateral (
    select x.address, x.site from pgmail.recipient x where x.tenant_id = t and x.id = q.id limit 1) r
  cross join lateral (
    select x.stream from pgmail.message x where x.tenant_id = t and x.id = q.message_id limit 1) m
  left join lateral (
    select x.at, x.attempt, x.relay, x.remote_host, x.worker, x.detail from pgmail.event x
    where x.tenant_id = t and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
  where q.tenant_id = t and q.in_doubt
    and (below is null or q.id < below) and (above is null or q.id > above)
    and (f->>'stream' is null or m.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? m.stream)
    and (f->>'site' is null or r.site = f->>'site')
    and (f->>'recipient' is null or r.address = who)
    and (f->>'relay' is null or coalesce(e.relay, q.begun_relay) = f->>'relay')
    and (f->>'worker' is null or e.worker = (f->>'worker')::bigint)
    and (f->>'doubted_after' is null or e.at >= (f->>'doubted_after')::timestamptz)
    and (f->>'doubted_before' is null or e.at < (f->>'doubted_before')::timestamptz)
  order by case when newer then q.id end, case when not newer then q.id end desc
  limit most;
end
$$;

CREATE FUNCTION pgmail.is_plain(p_address text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
  select octet_length(p_address) <= 64 and p_address collate "C" ~
    '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?$'
$_$;

CREATE FUNCTION pgmail.is_sender_domain(p_tenant integer, p_domain text) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
  select exists (select from pgmail.sender_domain d where d.tenant_id = p_tenant and d.state = 'verified'
                 and d.domain = any (pgmail.domain_and_above(p_domain)))
$$;

CREATE FUNCTION pgmail.is_silenced(p_tenant integer, p_rule text, p_subject text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select exists (select from pgmail.alert_silence s
    where s.rule = p_rule and s.subject in ('*', p_subject) and (s.until is null or s.until > pgmail.now())
      and (s.tenant_id is null or s.tenant_id = p_tenant or (p_tenant is null and (select count(*) from pgmail.tenant) = 1)))
$$;

CREATE FUNCTION pgmail.iso_time(p_at timestamp with time zone) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') $$;

CREATE FUNCTION pgmail.keep_hooks_v1(p_days integer, p_most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare now_ timestamptz := pgmail.now(); old timestamptz := pgmail.now() - p_days * interval '24 hours'; n integer; total integer := 0;
begin
  delete from pgmail.hook_secret s where s.ends_at < now_ - interval '1 hour';
  delete from pgmail.hook_attempt a where a.ctid = any (array(
    select x.ctid from pgmail.hook h cross join lateral (
      select y.ctid from pgmail.hook_attempt y where y.tenant_id = h.tenant_id and y.hook_id = h.id
        and (h.removed_at is not null or y.id < pgmail.uuid_floor(old)) order by y.id limit p_most) x
    limit p_most));
  get diagnostics total = row_count;
  delete from pgmail.hook_queue q where q.ctid = any (array(
    select x.ctid from pgmail.hook h cross join lateral (
      select y.ctid from pgmail.hook_queue y where y.tenant_id = h.tenant_id and y.hook_id = h.id limit p_most) x
    where h.removed_at is not null limit p_most));
  get diagnostics n = row_count; total := greatest(total, n);
  with late as (
    delete from pgmail.hook_queue q where q.ctid = any (array(
      select x.ctid from pgmail.hook_queue x where x.queued_at < old and (x.leased_until is null or x.leased_until < now_) limit p_most))
    returning q.*
  )
  insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, email_id, recipient_id, type, event_at, attempt, outcome, error)
  select l.tenant_id, l.hook_id, l.event_id, l.email_id, l.recipient_id, l.type, l.at, l.attempts, 'dropped', format('it waited for %s days', p_days) from late l;
  get diagnostics n = row_count; total := greatest(total, n);
  -- A result may come in as long as a lease lasts.
  delete from pgmail.hook h where h.removed_at < now_ - interval '1 hour'
    and not exists (select from pgmail.hook_queue q where q.tenant_id = h.tenant_id and q.hook_id = h.id)
    and not exists (select from pgmail.hook_attempt a where a.tenant_id = h.tenant_id and a.hook_id = h.id);
  return total;
end
$$;

CREATE FUNCTION pgmail.kept_days(p_base text) RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select case when p_base in ('message', 'attachment', 'tag') then r.content_days else r.record_days end from pgmail.retention r $$;

CREATE FUNCTION pgmail.key_conflict() RETURNS pgmail.email
    LANGUAGE sql IMMUTABLE
    AS $$ select pgmail.faulty('idempotency_conflict', '/idempotency_key', 'this key was used with another email in the last 24 hours', 409) $$;

CREATE FUNCTION pgmail.key_limits(k pgmail.api_key, p jsonb) RETURNS pgmail.api_key
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare f text; v jsonb; i integer; x text; xs text[]; n cidr;
begin
  if jsonb_typeof(p) is distinct from 'object' then perform pgmail.refuse('invalid_body', '', 'the limits of a key are a JSON object'); end if;
  k.test := false;
  for f, v in select key, value from jsonb_each(p) order by key collate "C" loop
    if f not in ('scopes', 'test', 'streams', 'from_domains', 'networks', 'expires_at') then
      perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(f), 'no such key');
    end if;
    if jsonb_typeof(v) = 'null' then continue; end if;
    if f = 'test' then
      if jsonb_typeof(v) <> 'boolean' then perform pgmail.refuse('invalid_field', '/test', 'must be true or false'); end if;
      k.test := v::boolean;
      continue;
    elsif f = 'expires_at' then
      begin
        k.expires_at := (v #>> '{}')::timestamptz;
      exception when others then
        perform pgmail.refuse('invalid_time', '/expires_at', 'must be a moment');
      end;
      if not isfinite(k.expires_at) then perform pgmail.refuse('invalid_time', '/expires_at', 'must be a moment'); end if;
      if k.expires_at <= pgmail.now() then perform pgmail.refuse('time_in_past', '/expires_at', 'it has passed'); end if;
      continue;
    end if;
    if jsonb_typeof(v) <> 'array' or jsonb_array_length(v) not between 1 and 100
       or exists (select from jsonb_array_elements(v) e where jsonb_typeof(e) <> 'string') then
      perform pgmail.refuse('invalid_field', '/' || f, 'must be an array of 1 to 100 strings, or left out');
    end if;
    xs := array(select distinct lower(e) from jsonb_array_elements_text(v) e order by 1);
    for x, i in select e, o - 1 from jsonb_array_elements_text(v) with ordinality u(e, o) loop
      if f = 'scopes' and x not in ('send', 'read', 'manage', 'admin') then
        perform pgmail.refuse('unknown_scope', '/scopes/' || i, 'must be send, read, manage or admin');
      elsif f = 'streams' and not exists (select from pgmail.stream s where s.tenant_id = k.tenant_id and s.name = x) then
        perform pgmail.refuse('unknown_stream', '/streams/' || i, format('no stream is named %L', left(x, 63)));
      elsif f = 'from_domains' and (octet_length(x) > 255 or lower(x) !~
          '^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$') then
        perform pgmail.refuse('invalid_domain', '/from_domains/' || i, 'must be a domain in ASCII (A-labels), or *. and one');
      elsif f = 'networks' then
        begin
          n := x::cidr;
        exception when others then
          perform pgmail.refuse('invalid_network', '/networks/' || i, 'must be a network such as 192.0.2.0/24, without bits beyond its length');
        end;
      end if;
    end loop;
    case f
      when 'scopes' then k.scopes := xs;
      when 'streams' then k.streams := array(select distinct e from jsonb_array_elements_text(v) e order by 1);
      when 'from_domains' then k.from_domains := xs;
      when 'networks' then k.networks := array(select distinct e::cidr from unnest(xs) e order by 1);
    end case;
  end loop;
  return k;
end
$_$;

CREATE FUNCTION pgmail.lane_facts(p_tenant integer, p_lane bigint, OUT stream text, OUT priority smallint, OUT site text) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
begin
  select l.stream, l.priority, l.site into stream, priority, site from pgmail.lane l where l.tenant_id = p_tenant and l.id = p_lane;
  if not found then
    select m.stream, m.priority, r.site into stream, priority, site from pgmail.queue q
    cross join lateral (select x.stream, x.priority from pgmail.message x where x.tenant_id = q.tenant_id and x.id = q.message_id limit 1) m
    cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = q.tenant_id and x.id = q.id limit 1) r
    where q.tenant_id = p_tenant and q.lane = p_lane limit 1;
  end if;
end
$$;

CREATE FUNCTION pgmail.lane_id(p_tenant integer, p_stream text, p_priority integer, p_site text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select hashtextextended(p_tenant || '/' || p_stream || '/' || p_priority || '/' || p_site, 0) $$;

CREATE FUNCTION pgmail.lane_name(p_stream text, p_priority integer, p_site text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select p_stream || '/' || case p_priority when 1 then 'high' when 2 then 'normal' else 'low' end || '/' || p_site $$;

CREATE FUNCTION pgmail.lane_stop(t integer, p_stream text, p_priority integer, p_site text, OUT kind text, OUT scope text, OUT name text, OUT until timestamp with time zone, OUT words text) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
  now_ timestamptz := pgmail.now(); relays_ text[]; up_ text[]; p pgmail.pause; r record;
begin
  select 'restore', 'fleet', 'all', format('all sending is stopped since %s, for the database was restored: %s; pgmail resume --after-restore decides',
    pgmail.at_words(f.noticed_at), f.reason) into kind, scope, name, words from pgmail.fence f;
  if found then return; end if;

  -- A tenant's suspension; else of several pauses the one that lasts longest.
  select x.* into p from pgmail.pause x
   where (x.tenant_id is null or x.tenant_id = t) and (x.until is null or x.until > now_)
     and (x.scope = 'tenant' or (x.scope = 'site' and x.name = p_site) or (x.scope = 'stream' and x.name = p_stream)
          or (x.scope = 'lane' and x.name = pgmail.lane_name(p_stream, p_priority, p_site)))
   order by x.scope = 'tenant' desc, x.until desc nulls first, x.tenant_id nulls first limit 1;
  if found then
    kind := 'pause'; scope := p.scope; name := p.name; until := p.until;
    words := format('%s %s is %s by %s since %s%s: %s', p.scope, p.name, case p.scope when 'tenant' then 'suspended' else 'paused' end,
      p.paused_by, pgmail.at_words(p.paused_at), ' until ' || pgmail.at_words(p.until), p.reason);
    return;
  end if;

  if p_site = pgmail.test_site() then return; end if;   -- no relay takes test email, and no limit counts it

  select coalesce(s.relays, array[s.relay]) into relays_ from pgmail.stream s where s.tenant_id = t and s.name = p_stream;
  relays_ := coalesce(relays_, array['default']);
  select array_agg(n.name order by n.i) filter (where coalesce(y.state, 'up') = 'up') as up, min(n.name) as name,
    nullif(min(coalesce(y.blocked_until, 'infinity')), 'infinity') as until,
    string_agg(case y.state
      when 'paused' then format('relay %s is paused by %s since %s%s: %s', y.name, y.changed_by, pgmail.at_words(y.changed_at),
                                ' until ' || pgmail.at_words(y.blocked_until), coalesce(y.reason, 'no reason given'))
      when 'away' then format('relay %s is away since %s: %s; next try at %s', y.name, pgmail.at_words(y.changed_at),
                              coalesce(y.reason, 'unreachable'), coalesce(pgmail.at_words(y.blocked_until), 'once')) end, '; and ' order by n.i) as words
    into r from unnest(relays_) with ordinality n(name, i) left join pgmail.relay y on y.name = n.name;
  up_ := r.up;
  if up_ is null then
    kind := 'relay'; scope := 'relay'; name := r.name; until := r.until;
    words := case when cardinality(relays_) > 1 then 'none of its relays takes mail: ' else '' end || r.words;
    return;
  end if;

  -- Of the relays that are up the one whose token comes first, then the latest of that, the site's and the tenant's.
  with limited as (
    select l.scope, l.name, l.connections, pgmail.rate_words(l.messages, l.per_seconds) as rate,
      case when l.messages is not null and b.last_at > '-infinity'
           then b.last_at + pgmail.limit_gap(l, y.up_since, now_) * interval '1 second' end as free_at,
      coalesce((select sum(h.held) from pgmail.permit h join pgmail.worker w on w.epoch = h.epoch
                where h.scope = l.scope and h.name = l.name), 0) >= l.connections as full_
    from pgmail.limits l
    left join pgmail.bucket b on b.scope = l.scope and b.name = l.name
    left join pgmail.relay y on l.scope = 'relay' and y.name = l.name
    where (l.scope = 'site' and l.name = p_site) or (l.scope = 'relay' and l.name = any (up_))
      or (l.scope = 'tenant' and l.name = (select x.name from pgmail.tenant x where x.id = t))
  ), binding as (
    select * from limited where scope <> 'relay' and (free_at > now_ or full_)
    union all
    (select * from limited where scope = 'relay' and (free_at > now_ or full_)
       and (select count(*) from limited where scope = 'relay' and (free_at > now_ or full_)) = cardinality(up_)
     order by free_at nulls first limit 1)
  )
  select * into r from binding order by free_at > now_ desc nulls last, free_at desc limit 1;
  if found then
    kind := 'limit'; scope := r.scope; name := r.name; until := case when r.free_at > now_ then r.free_at end;
    words := case when until is not null
      then format('%s %s is limited to %s; its next token is free at %s', r.scope, r.name, r.rate, pgmail.at_words(r.free_at))
      else format('%s %s is limited to %s connections, and all are in use', r.scope, r.name, r.connections) end;
    return;
  end if;

  -- A process that only leads sends nothing.
  if exists (select from pgmail.worker x where x.program <> 'maintain' and x.beat_at > now_ - interval '30 seconds') then
    if not exists (select from pgmail.worker x where x.program <> 'maintain' and x.state = 'running') then
      kind := 'workers'; words := 'all workers are about to stop and take nothing new';
    end if;
    return;
  end if;
  kind := 'workers';
  words := coalesce((
    select format('no worker is alive since %s, when worker %s on %s %s', pgmail.at_words(y.beat_at), y.epoch, y.host,
      case when y.stopped then 'was stopped' else 'fell silent' end)
    from (select x.epoch, x.host, x.beat_at, false as stopped from pgmail.worker x where x.program <> 'maintain'
          union all
          select x.epoch, x.host, x.beat_at, x.stopped from pgmail.lost_worker x where x.program <> 'maintain') y
    order by y.beat_at desc, y.epoch desc limit 1), 'no worker is running');
end
$$;

CREATE FUNCTION pgmail.lanes_known() RETURNS TABLE(tenant_id integer, lane bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
  select b.tenant_id, b.lane from pgmail.backlog b where b.depth > 0
  union
  select t.tenant_id, u.lane from pgmail.tally t, unnest(t.lanes) u(lane) where u.lane is not null
  order by 1, 2
$$;

CREATE FUNCTION pgmail.lanes_present() RETURNS TABLE(tenant_id integer, lane bigint, due_at timestamp with time zone, id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
  with recursive present as (
    (select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  )
  select p.tenant_id, p.lane, p.due_at, p.id from present p
$$;

CREATE FUNCTION pgmail.late_lanes(p_seconds double precision, p_most integer DEFAULT 1000) RETURNS TABLE(tenant_id integer, stream text, site text, due_at timestamp with time zone, kind text, words text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_mergejoin TO 'off'
    SET enable_sort TO 'off'
    SET jit TO 'off'
    AS $$
  with special as materialized (
    select l.name as site from pgmail.limits l where l.scope = 'site' union select pgmail.test_site()
  ), late as materialized (
    select g.tenant_id, g.stream, g.priority, g.site, g.due_at as oldest_due_at, y.site as special
    from pgmail.gauge_due() g left join special y on y.site = g.site
    where g.due_at <= pgmail.now() - p_seconds * interval '1 second' and not exists (select from pgmail.fence)
  ), latest as (   -- by two hashes, without a sort of all lanes by these texts, which takes three times as long
    select l.tenant_id, l.stream, l.priority, l.special, min(l.oldest_due_at) as oldest_due_at from late l group by 1, 2, 3, 4
  ), alike as (
    select l.tenant_id, l.stream, l.priority, l.special, l.oldest_due_at, min(l.site) as site
    from late l join latest x on x.tenant_id = l.tenant_id and x.stream = l.stream and x.priority = l.priority
      and coalesce(x.special, '') = coalesce(l.special, '') and x.oldest_due_at = l.oldest_due_at
    group by 1, 2, 3, 4, 5
  ), placed as (
    select a.*, row_number() over (partition by a.tenant_id, a.stream order by a.oldest_due_at) as of_stream,
      row_number() over (order by a.oldest_due_at) as of_all
    from alike a
  )
  select g.tenant_id, g.stream, g.site, g.oldest_due_at, s.kind, s.words
  from (select x.* from placed x where x.of_stream = 1 or x.of_all <= p_most offset 0) g
  cross join lateral pgmail.lane_stop(g.tenant_id, g.stream, g.priority, g.site) s
$$;

CREATE FUNCTION pgmail.late_v1(p_tenant integer, p_lanes bigint[], p_since timestamp with time zone[], p_due timestamp with time zone[], p_after uuid[], p_most integer) RETURNS TABLE(lane bigint, due_at timestamp with time zone, n integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.lead_v1(p_epoch bigint, p_seconds double precision) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.leader set epoch = p_epoch, until = clock_timestamp() + p_seconds * interval '1 second'
   where epoch = p_epoch or until < clock_timestamp() or until > clock_timestamp() + p_seconds * interval '10 seconds';
  return found;
end
$$;

CREATE FUNCTION pgmail.lease_doubt() RETURNS text
    LANGUAGE sql IMMUTABLE
    AS $$ select 'in doubt: a worker had it when a restore was noticed' $$;

CREATE TABLE pgmail.limits (
    scope text NOT NULL,
    name text NOT NULL,
    messages integer,
    per_seconds real DEFAULT 1 NOT NULL,
    connections integer,
    ramp_seconds real DEFAULT 30 NOT NULL,
    note text,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    shipped boolean DEFAULT false NOT NULL,
    CONSTRAINT limits_check CHECK (((messages IS NOT NULL) OR (connections IS NOT NULL))),
    CONSTRAINT limits_check1 CHECK (((scope <> 'tenant'::text) OR (connections IS NULL))),
    CONSTRAINT limits_connections_check CHECK ((connections > 0)),
    CONSTRAINT limits_messages_check CHECK ((messages > 0)),
    CONSTRAINT limits_name_check CHECK ((name <> ''::text)),
    CONSTRAINT limits_per_seconds_check CHECK (((per_seconds > (0)::double precision) AND (per_seconds <= (86400)::double precision))),
    CONSTRAINT limits_ramp_seconds_check CHECK (((ramp_seconds >= (0)::double precision) AND (ramp_seconds <= (604800)::double precision))),
    CONSTRAINT limits_scope_check CHECK ((scope = ANY (ARRAY['relay'::text, 'site'::text, 'tenant'::text])))
);

ALTER TABLE ONLY pgmail.limits FORCE ROW LEVEL SECURITY;

CREATE FUNCTION pgmail.limit_gap(p_limit pgmail.limits, p_up_since timestamp with time zone, p_now timestamp with time zone) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select (p_limit.per_seconds::double precision + pgmail.limit_margin(p_limit.per_seconds)) / p_limit.messages
    / case when p_limit.scope = 'relay' and p_limit.ramp_seconds > 0
           then least(1, greatest(0.1, coalesce(extract(epoch from p_now - p_up_since), 0)::double precision / p_limit.ramp_seconds))
           else 1 end
$$;

CREATE FUNCTION pgmail.limit_margin(p_per_seconds real) RETURNS double precision
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select greatest(p_per_seconds::double precision * 0.015, 0.015) $$;

CREATE FUNCTION pgmail.limit_name(p_scope text, p_name text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
begin
  if p_scope = 'site' then return pgmail.site_name(p_name, '/name'); end if;
  if p_scope = 'relay' then
    if coalesce(p_name, '') !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
      perform pgmail.refuse('invalid_name', '/name', 'a relay is named by 1 to 63 of A-Z a-z 0-9 _ . -, led by a letter or digit');
    end if;
  elsif p_scope = 'tenant' then
    if not exists (select from pgmail.tenant t where t.name = p_name) then
      perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_name, 63)), 404);
    end if;
  else
    perform pgmail.refuse('invalid_scope', '/scope', 'must be relay, site or tenant');
  end if;
  return p_name;
end
$_$;

CREATE FUNCTION pgmail.list_keys() RETURNS TABLE(id uuid, name text, hint text, created_at timestamp with time zone, created_by text, revoked_at timestamp with time zone, scopes text[], test boolean, streams text[], from_domains text[], networks text[], expires_at timestamp with time zone, replaced_by uuid, last_used_at timestamp with time zone, last_used_from text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
#variable_conflict use_column
declare maker pgmail.api_key := pgmail.acting_admin();
begin
  return query
  select k.id, k.name, k.hint, k.created_at, k.created_by, k.revoked_at, k.scopes, k.test, k.streams, k.from_domains,
    k.networks::text[], k.expires_at, k.replaced_by, k.last_used_at, host(k.last_used_from)
  from pgmail.api_key k
  where k.tenant_id = pgmail.need_tenant()
    and (maker.id is null or k.id = maker.id or (
      (k.test or not maker.test)
      and (maker.streams is null or k.streams <@ maker.streams)
      and (maker.from_domains is null or k.from_domains is not null
        and not exists (select from unnest(k.from_domains) d where not pgmail.covers_domain(maker.from_domains, d)))
      and (maker.networks is null or k.networks is not null
        and not exists (select from unnest(k.networks) n where not n <<= any (maker.networks)))))
  order by k.created_at, k.id;
end
$$;

CREATE FUNCTION pgmail.live_keys_v1(p_tenants integer[], p_ids uuid[]) RETURNS SETOF uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.id from unnest(p_tenants, p_ids) u(tenant, id) join pgmail.api_key k on k.tenant_id = u.tenant and k.id = u.id
  where k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
$$;

CREATE FUNCTION pgmail.load_reply_rules(p_table jsonb) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  delete from pgmail.reply_pattern;
  delete from pgmail.reply_rule;
  delete from pgmail.reply_reason;
  insert into pgmail.reply_reason (name, class, blame, follows, suppress, slow, alert, means)
  select x.name, x.class, x.blame, x.follows, x.suppress, x.slow, x.alert, x.means
  from jsonb_to_recordset(p_table->'reasons') as x(name text, class text, blame text, follows text, suppress boolean,
    slow boolean, alert boolean, means text);
  insert into pgmail.reply_rule (position, name, reason, final, code, enhanced, phase, asks_text)
  select x.position, x.name, x.reason, x.final, x.code, x.enhanced, x.phase, x.asks_text
  from jsonb_to_recordset(p_table->'rules') as x(position integer, name text, reason text, final boolean, code text,
    enhanced text, phase text[], asks_text boolean);
  get diagnostics n = row_count;
  insert into pgmail.reply_pattern (rule, unless, pattern, needles)
  select x.rule, x.unless, x.pattern, x.needles
  from jsonb_to_recordset(p_table->'patterns') as x(rule integer, unless boolean, pattern text, needles text[]);
  return n;
end
$$;

CREATE FUNCTION pgmail.lock_history() RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select pg_advisory_xact_lock(hashtextextended('pgmail.history', 0)) $$;

CREATE FUNCTION pgmail.lower_text(p_text text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ select case when p_text ~ '[^\x01-\x7f]' then lower(translate(p_text, U&'\0130\03A3', U&'i\03C3') collate pg_catalog.pg_c_utf8) collate "default"
                       else lower(p_text collate "C") collate "default" end $$;

CREATE FUNCTION pgmail.make_key(p_name text, p_hint text, p_hash bytea, p_limits jsonb) RETURNS TABLE(id uuid, scopes text[], test boolean, streams text[], from_domains text[], networks text[], expires_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
#variable_conflict use_column
declare maker pgmail.api_key := pgmail.acting_admin(); k pgmail.api_key;
begin
  k.tenant_id := pgmail.need_tenant();
  if p_name is null or btrim(p_name) = '' or octet_length(p_name) > 200 or pgmail.has_control(p_name) then
    perform pgmail.refuse('invalid_name', '/name', 'must say in 1 to 200 octets who uses the key');
  end if;
  if octet_length(p_hash) is distinct from 32 or p_hint is null then
    perform pgmail.refuse('invalid_key', '', 'a key is stored by its SHA-256 and its first characters');
  end if;
  k := pgmail.key_limits(k, p_limits);
  k.test := k.test or coalesce(maker.test, false);
  -- A key for tests lies in more places, and is guarded less, than one that mail goes out by.
  k.scopes := coalesce(k.scopes, case when k.test then '{send}'::text[] else '{send,read,manage}' end);
  k.streams := coalesce(k.streams, maker.streams);
  k.from_domains := coalesce(k.from_domains, maker.from_domains);
  k.networks := coalesce(k.networks, maker.networks);
  k.expires_at := coalesce(k.expires_at, maker.expires_at);
  perform pgmail.need_within(k, maker);
  if starts_with(p_hint, 'pgm_test_') is distinct from k.test then
    perform pgmail.refuse('invalid_key', '/test', 'keys for tests begin with pgm_test_, and no others do');
  end if;
  insert into pgmail.api_key as a (tenant_id, name, hint, hash, created_by, scopes, test, streams, from_domains, networks, expires_at)
  values (k.tenant_id, p_name, p_hint, p_hash, pgmail.actor(), k.scopes, k.test, k.streams, k.from_domains, k.networks, k.expires_at)
  returning a.id into k.id;
  perform pgmail.record_act(k.tenant_id, 'key.create', k.id::text, p_name || ': ' || array_to_string(k.scopes, ', '));
  return query select k.id, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[], k.expires_at;
end
$$;

CREATE FUNCTION pgmail.make_partition(p_base text, p_week timestamp with time zone) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare
  part text := p_base || '_' || to_char(p_week at time zone 'UTC', 'YYYYMMDD'); col text := pgmail.partition_key(p_base);
  low uuid := pgmail.uuid_floor(p_week); high uuid := pgmail.uuid_floor(p_week + interval '168 hours');
begin
  perform set_config('lock_timeout', '500ms', true);
  execute format('create table pgmail.%I (like pgmail.%I including all)', part, p_base);
  perform pgmail.secure_table(format('pgmail.%I', part)::regclass);
  execute format('lock table only pgmail.%I in access exclusive mode', p_base || '_default');
  execute format('with moved as (delete from pgmail.%I where %I >= %L and %I < %L returning *) insert into pgmail.%I select * from moved',
    p_base || '_default', col, low, col, high, part);
  execute format('alter table pgmail.%I attach partition pgmail.%I for values from (%L) to (%L)', p_base, part, low, high);
  return part;
end
$$;

CREATE FUNCTION pgmail.make_partition_v2(p_days integer DEFAULT 35) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare w timestamptz; base text;
begin
  for w in select generate_series(date_trunc('week', pgmail.now() at time zone 'UTC') - interval '1 week',
                                  pgmail.now() at time zone 'UTC' + p_days * interval '1 day', interval '1 week') at time zone 'UTC'
  loop
    foreach base in array pgmail.partitioned_tables() loop
      if to_regclass('pgmail.' || base || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD')) is null then
        return pgmail.make_partition(base, w);
      end if;
    end loop;
  end loop;
  return null;
end
$$;

CREATE FUNCTION pgmail.make_partitions_v1(p_days integer DEFAULT 35) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare made integer := 0;
begin
  perform set_config('lock_timeout', '500ms', true);
  while pgmail.make_partition_v2(p_days) is not null loop made := made + 1; end loop;
  return made;
end
$$;

CREATE FUNCTION pgmail.make_tenant_role(p_prefix text, p_role text, p_tenant text, p_kind text, p_content boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare statement text;
begin
  for statement in select s from pgmail.tenant_role_sql(p_prefix, p_role, p_tenant, p_kind, p_content) s loop
    execute statement;
  end loop;
  perform pgmail.grant_tenant(p_role, p_tenant);
end
$$;

CREATE FUNCTION pgmail.mark_v1(p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamp with time zone, p_host text, p_pid integer, p_program text, p_seen jsonb, OUT root uuid, OUT history uuid, OUT generation integer, OUT marks bigint, OUT at timestamp with time zone, OUT place jsonb, OUT fenced text) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.metrics_fleet_v1() RETURNS TABLE(figure text, label text, value double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select 'workers', w.program || ' ' || w.state, count(*)::float8 from pgmail.worker w group by w.program, w.state
  union all
  select 'beat_age_seconds', null, max(extract(epoch from clock_timestamp() - w.beat_at))::float8 from pgmail.worker w having count(*) > 0
  union all
  select 'doors_closed', null, count(*)::float8 from pgmail.door d where d.until > pgmail.now()
  union all
  select 'pauses', null, count(*)::float8 from pgmail.pause s where s.until is null or s.until > pgmail.now()
  union all
  select 'relays', r.state, count(*)::float8 from pgmail.relay r group by r.state
  union all
  select 'stopped_for_restore', null, count(*)::float8 from pgmail.fence f
  union all
  select 'reached_age_seconds', c.subject, greatest(extract(epoch from pgmail.now() - c.at), 0)::float8 from pgmail.chores_reached() c where c.at is not null
  union all
  select x.figure, null, x.value from pgmail.partition_state() p,
    lateral (values ('partition_days_left', p.days_left::float8), ('partition_strays', p.strays::float8)) x(figure, value)
  union all
  select 'notify_queue', null, pg_notification_queue_usage()
  union all
  select 'connections', null, sum(d.numbackends)::float8 from pg_stat_database d
  union all
  select 'connections_max', null, current_setting('max_connections')::float8
  union all
  select 'database_bytes', null, pg_database_size(current_database())::float8
  union all
  select 'xid_age', null, age(d.datfrozenxid)::float8 from pg_database d where d.datname = current_database()
  union all
  -- Seen by everybody: how many transactions began since the oldest one that still runs, or that a snapshot still needs.
  select 'snapshot_span', null, (pg_snapshot_xmax(s.now)::text::numeric - pg_snapshot_xmin(s.now)::text::numeric)::float8
  from (select pg_current_snapshot() as now) s
  union all
  select 'oldest_transaction_seconds', null, max(extract(epoch from clock_timestamp() - x.since))::float8
  from (select a.xact_start as since from pg_stat_activity a
        where a.datid = (select d.oid from pg_database d where d.datname = current_database()) and a.backend_type = 'client backend'
        union all select t.prepared from pg_prepared_xacts t where t.database = current_database()) x
  having max(x.since) is not null
  union all
  (select 'replication_lag_seconds', r.application_name, max(extract(epoch from r.replay_lag))::float8 from pg_stat_replication r
   where r.replay_lag is not null group by r.application_name order by 3 desc limit 10)
$$;

CREATE FUNCTION pgmail.metrics_queue_v1(p_tenants boolean DEFAULT false) RETURNS TABLE(tenant text, stream text, figure text, value double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $$
  with kept as materialized (
    select pgmail.gauge_kept() and coalesce(c.counted_at > pgmail.now() - interval '1 hour', false) as is_kept from pgmail.insight_cursor c
  ), lanes as (
    select g.tenant_id, g.stream, g.held, g.in_doubt, d.due_at
    from pgmail.gauge g left join pgmail.gauge_due() d on d.tenant_id = g.tenant_id and d.lane = g.lane and d.due_at <= pgmail.now()
    where (select k.is_kept from kept k)
    union all
    select o.tenant_id, o.stream, h.held, h.in_doubt, o.due_at
    from pgmail.oldest_in_lanes() o
    cross join lateral (
      select count(*) as held, count(*) filter (where y.in_doubt) as in_doubt
      from (select q.in_doubt from pgmail.queue q
            where q.tenant_id = o.tenant_id and q.lane = o.lane and q.due_at = 'infinity' limit 1000) y) h
    where not (select k.is_kept from kept k)
  ), figures as (
    select l.tenant_id, l.stream, f.figure, f.value
    from (select g.tenant_id, g.stream, sum(g.held)::float8 as held, sum(g.in_doubt)::float8 as in_doubt,
            extract(epoch from pgmail.now() - min(g.due_at))::float8 as seconds from lanes g group by 1, 2) l,
      lateral (values ('held', l.held), ('in_doubt', l.in_doubt), ('oldest_due_seconds', l.seconds)) f(figure, value)
    where f.value is not null
    union all
    select t.tenant_id, t.stream, t.kind, t.n::float8 from pgmail.tally_total t
    union all
    -- What there is none of is 0, not absent: else nobody sees it begin.
    select t.tenant_id, t.stream, k.kind, 0 from (select distinct y.tenant_id, y.stream from pgmail.tally_total y) t,
      unnest(array['sent', 'bounced', 'suppressed', 'expired', 'cancelled', 'dead', 'held', 'in_doubt']) k(kind)
    union all
    select t.tenant_id, t.stream, 'depth', sum(case t.kind when 'enqueued' then t.n else -t.n end)::float8
    from pgmail.tally_total t group by 1, 2
  )
  select case when p_tenants then coalesce(t.name, f.tenant_id::text) end, f.stream, f.figure,
    case f.figure when 'oldest_due_seconds' then max(f.value) when 'depth' then greatest(0, sum(f.value)) else sum(f.value) end
  from figures f left join pgmail.tenant t on p_tenants and t.id = f.tenant_id
  group by 1, 2, 3
$$;

CREATE FUNCTION pgmail.metrics_tables_v1() RETURNS TABLE(name text, bytes bigint, index_bytes bigint, live bigint, dead bigint, wasted_bytes bigint, updates bigint, hot_updates bigint, vacuumed_seconds double precision)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
declare r record; part record;
begin
  for r in select x.base, x.row_bytes from (values
      ('queue', 420), ('lane', 200), ('lane_touch', 110), ('tally', 90), ('tally_total', 180), ('worker', 200), ('dead_letter', null),
      ('message', null), ('recipient', null), ('event', null), ('outcome', null), ('attachment', null), ('tag', null)) x(base, row_bytes)
  loop
    name := r.base; bytes := 0; index_bytes := 0; live := 0; dead := 0; updates := 0; hot_updates := 0; vacuumed_seconds := null;
    begin
      for part in
        select s.relid, s.n_live_tup, s.n_dead_tup, s.n_tup_upd, s.n_tup_hot_upd, greatest(s.last_vacuum, s.last_autovacuum) as vacuumed
        from pg_stat_user_tables s
        where s.relid = to_regclass('pgmail.' || quote_ident(r.base))
           or s.relid in (select i.inhrelid from pg_inherits i where i.inhparent = to_regclass('pgmail.' || quote_ident(r.base)))
      loop
        bytes := bytes + pg_table_size(part.relid); index_bytes := index_bytes + pg_indexes_size(part.relid);
        live := live + part.n_live_tup; dead := dead + part.n_dead_tup;
        updates := updates + part.n_tup_upd; hot_updates := hot_updates + part.n_tup_hot_upd;
        vacuumed_seconds := least(vacuumed_seconds, extract(epoch from clock_timestamp() - part.vacuumed)::float8);
      end loop;
    exception when lock_not_available then
      continue;
    end;
    -- Less than a few pages is no garbage worth a word.
    wasted_bytes := case when r.row_bytes is not null then greatest(0, bytes - 131072 - live * r.row_bytes) end;
    return next;
  end loop;
end
$$;

CREATE FUNCTION pgmail.missed_certificate_v1(p_name text, p_place text, p_answer text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.certificate as c (name, place, unseen_since, answer) values (left(p_name, 300), left(p_place, 300), pgmail.now(), left(p_answer, 300))
  on conflict (name) do update set seen_at = pgmail.now(), unseen_since = coalesce(c.unseen_since, excluded.unseen_since), answer = excluded.answer
$$;

CREATE TABLE pgmail.sender_domain (
    tenant_id integer NOT NULL,
    domain text NOT NULL,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    token text NOT NULL,
    state text DEFAULT 'pending'::text NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text NOT NULL,
    verified_at timestamp with time zone,
    checked_at timestamp with time zone,
    answer text,
    missing_since timestamp with time zone,
    trusted_by text,
    trust_reason text,
    CONSTRAINT sender_domain_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'verified'::text, 'failed'::text])))
);

ALTER TABLE ONLY pgmail.sender_domain FORCE ROW LEVEL SECURITY;

CREATE FUNCTION pgmail.need_domain(p_domain text) RETURNS pgmail.sender_domain
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); d pgmail.sender_domain;
begin
  select * into d from pgmail.sender_domain x
   where x.tenant_id = t and (x.domain = pgmail.domain_ascii(p_domain) or x.id::text = lower(p_domain));
  if not found then
    perform pgmail.refuse('not_found', '/name', format('no domain of this tenant is named %s', left(p_domain, 253)), 404);
  end if;
  return d;
end
$$;

CREATE FUNCTION pgmail.need_hook(p_id uuid) RETURNS pgmail.hook
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook;
begin
  select x.* into h from pgmail.hook x where x.tenant_id = pgmail.need_tenant() and x.id = p_id and x.removed_at is null;
  if not found then perform pgmail.refuse('not_found', '/id', format('no webhook has the id %s', p_id), 404); end if;
  return h;
end
$$;

CREATE FUNCTION pgmail.need_key(p_id uuid) RETURNS pgmail.api_key
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare maker pgmail.api_key := pgmail.acting_admin(); k pgmail.api_key; like_k pgmail.api_key;
begin
  select * into k from pgmail.api_key x
   where x.tenant_id = pgmail.need_tenant() and x.id = p_id and x.revoked_at is null
     and (x.expires_at is null or x.expires_at > pgmail.now()) for update;
  if k.id is not null then
    like_k := k;
    like_k.expires_at := maker.expires_at;   -- one may end or replace a key that would have outlived one's own
    begin
      perform pgmail.need_within(like_k, maker);
      return k;
    exception when sqlstate 'PM403' then null;   -- as list_keys does not show it either
    end;
  end if;
  perform pgmail.refuse('not_found', '/id', format('no valid key has the id %s', p_id), 404);
end
$$;

CREATE FUNCTION pgmail.need_recipients(p_tenant integer, p_id uuid, OUT message_id uuid, OUT recipients uuid[]) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
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

CREATE FUNCTION pgmail.need_tenant() RETURNS integer
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.current_tenant();
begin
  if t is null then
    raise exception using errcode = 'PM403', constraint = 'no_tenant',
      message = format('the database role %I belongs to no tenant', session_user),
      hint = format('An administrator grants one: select pgmail.grant_tenant(%L, ''default'')', session_user);
  end if;
  return t;
end
$$;

CREATE FUNCTION pgmail.need_within(k pgmail.api_key, maker pgmail.api_key) RETURNS void
    LANGUAGE plpgsql STABLE
    AS $$
declare f text;
begin
  if maker.id is null then return; end if;
  f := case
    when maker.test and not k.test then '/test'
    when maker.streams is not null and not coalesce(k.streams <@ maker.streams, false) then '/streams'
    when maker.from_domains is not null and (k.from_domains is null
      or exists (select from unnest(k.from_domains) d where not pgmail.covers_domain(maker.from_domains, d))) then '/from_domains'
    when maker.networks is not null and (k.networks is null
      or exists (select from unnest(k.networks) n where not n <<= any (maker.networks))) then '/networks'
    when maker.expires_at is not null and (k.expires_at is null or k.expires_at > maker.expires_at) then '/expires_at'
  end;
  if f is not null then perform pgmail.refuse('exceeds_key', f, 'this would be more than the key that asks has', 403); end if;
end
$$;

CREATE FUNCTION pgmail.needed_messages(p_low uuid, p_high uuid) RETURNS TABLE(tenant_id integer, message_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$ select distinct n.tenant_id, n.message_id from pgmail.needed_recipients(p_low, p_high, null) n $$;

CREATE FUNCTION pgmail.needed_recipients(p_low uuid, p_high uuid, p_most integer) RETURNS TABLE(tenant_id integer, message_id uuid, recipient_id uuid)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
  select t.id, x.message_id, x.id from pgmail.tenant t cross join lateral (
    select q.message_id, q.id from pgmail.queue q where q.tenant_id = t.id and q.id >= p_low and q.id < p_high
    union all
    select d.message_id, d.recipient_id from pgmail.dead_letter d where d.tenant_id = t.id and d.recipient_id >= p_low and d.recipient_id < p_high) x
  limit p_most
$$;

CREATE FUNCTION pgmail.newest_three(p_ids uuid[]) RETURNS uuid[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select array(select x.id from unnest(p_ids[1:100]) with ordinality x(id, place) group by x.id order by min(x.place) limit 3)
$$;

CREATE FUNCTION pgmail.note_guesses_v1(p_from text, p_tries integer) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select pgmail.record_act(null, 'key.guess', left(p_from, 64), format('%s tries with keys that are none', p_tries))
$$;

CREATE FUNCTION pgmail.note_keys_v1(p_tenants integer[], p_keys uuid[], p_from inet[], p_ages double precision[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  with free as materialized (
    select k.tenant_id, k.id, u.origin, pgmail.now() - u.age * interval '1 second' as at
    from unnest(p_tenants, p_keys, p_from, p_ages) u(tenant, key, origin, age)
    join pgmail.api_key k on k.tenant_id = u.tenant and k.id = u.key
    where k.last_used_at is null or k.last_used_at < pgmail.now() - u.age * interval '1 second' - interval '30 seconds'
    order by k.tenant_id, k.id for update of k skip locked
  )
  update pgmail.api_key k set last_used_at = f.at, last_used_from = coalesce(f.origin, k.last_used_from)
  from free f where k.tenant_id = f.tenant_id and k.id = f.id
$$;

CREATE FUNCTION pgmail.number_words(p_n numeric) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select to_char(round(p_n), 'FM999,999,999,999,990') $$;

CREATE FUNCTION pgmail.octets_of(p_base64 jsonb) RETURNS bytea
    LANGUAGE plpgsql IMMUTABLE
    AS $$
begin
  if jsonb_typeof(p_base64) is distinct from 'string' then return null; end if;
  return decode(p_base64 #>> '{}', 'base64');
exception when others then
  return null;
end
$$;

CREATE FUNCTION pgmail.oldest_due() RETURNS TABLE(tenant_id integer, due_at timestamp with time zone)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
  if pgmail.gauge_kept() then
    return query select o.tenant_id, min(o.due_at) + (pgmail.now() - (select c.gauged_at from pgmail.insight_cursor c))
      from pgmail.gauge_due() o where o.due_at <= pgmail.now() group by o.tenant_id;
  else
    return query select o.tenant_id, min(o.due_at) from pgmail.oldest_in_lanes() o where o.due_at is not null group by o.tenant_id;
  end if;
end
$$;

CREATE FUNCTION pgmail.oldest_in_lanes() RETURNS TABLE(tenant_id integer, lane bigint, stream text, due_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER ROWS 100
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
  select p.tenant_id, p.lane, l.stream,
    case when not exists (
        select from pgmail.pause s
        where (s.tenant_id is null or s.tenant_id = p.tenant_id) and (s.until is null or s.until > pgmail.now())
          and (s.scope = 'tenant'
               or s.name = case s.scope when 'site' then l.site when 'stream' then l.stream else pgmail.lane_name(l.stream, l.priority, l.site) end))
      then (select q.due_at from pgmail.queue q
            where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
            order by q.due_at, q.id limit 1) end
  from pgmail.lanes_present() p join pgmail.lane l on l.tenant_id = p.tenant_id and l.id = p.lane
$$;

CREATE FUNCTION pgmail.oldest_snapshot(OUT who text, OUT pid integer, OUT account text, OUT application text, OUT state text, OUT seconds double precision, OUT mend text) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare next_ bigint := pg_snapshot_xmax(pg_current_snapshot())::text::bigint; h record; known timestamptz;
begin
  select * into h from (
    -- A session without a snapshot keeps nothing, however long it is idle in its transaction; nor does a mere reader of
    -- another database. A writer there does: each new snapshot counts from the oldest transaction id of all databases.
    select 'session' as what, a.pid as id, a.usename::text as owner, a.application_name::text as app, a.state::text as doing,
      case when a.datname <> current_database() then a.datname::text end as name,
      next_ - greatest(age(a.backend_xid), age(a.backend_xmin)) as xid, coalesce(a.xact_start, a.query_start) as began,
      (a.backend_xid is not null and age(a.backend_xid) >= coalesce(age(a.backend_xmin), 0))::integer as own
    from pg_stat_activity a
    where (a.backend_xid is not null or a.backend_xmin is not null) and a.pid <> pg_backend_pid()
      and (a.backend_xid is not null or coalesce(a.datname, current_database()) = current_database())
      and (a.backend_type is null or a.backend_type in ('client backend', 'walsender', 'background worker'))
    union all
    select 'prepared', null, p.owner::text, null, null, p.gid, next_ - age(p.transaction), p.prepared, 1 from pg_prepared_xacts p
    union all
    select 'slot', s.active_pid, null, null, null, s.slot_name::text, next_ - greatest(age(s.xmin), age(s.catalog_xmin)), null, 0
    from pg_replication_slots s where s.xmin is not null or s.catalog_xmin is not null
  ) x order by x.xid, x.own desc, x.began nulls last, x.id limit 1;
  if not found then return; end if;
  -- The first look after its birth: it is at least that old.
  select min(z.at) into known from pgmail.alert_horizon z where z.xid > h.xid;
  seconds := greatest(extract(epoch from clock_timestamp() - h.began), extract(epoch from pgmail.now() - known), 0);
  pid := h.id; account := h.owner; application := nullif(h.app, ''); state := h.doing;
  if h.what = 'session' then
    who := format('the session %s of %s%s%s%s', h.id, coalesce(h.owner, 'nobody'), coalesce(' (' || nullif(h.app, '') || ')', ''),
      coalesce(' in the database ' || h.name, ''), coalesce(', ' || h.doing, ''));
    mend := format('select pg_terminate_backend(%s)', h.id);
  elsif h.what = 'prepared' then
    who := format('the prepared transaction %L of %s', h.name, h.owner);
    mend := format('rollback prepared %L', h.name);
  else
    who := format('the replication slot %s', h.name);
    mend := format('select pg_drop_replication_slot(%L)', h.name);
  end if;
end
$$;

CREATE FUNCTION pgmail.orphans_v1() RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select distinct q.leased_by from pgmail.queue q
  where q.leased_by is not null and not exists (select 1 from pgmail.worker w where w.epoch = q.leased_by)
$$;

CREATE FUNCTION pgmail.over_words(p_kind text, p_subject text, p_words text, p_seconds double precision, p_holds boolean) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select format('Over after %s: %s. It was: %s', pgmail.span_words(p_seconds),
    case when p_holds then (select format(k.ended, p_subject) from pgmail.alert_kinds() k where k.kind = p_kind) else 'its rule holds no more' end, p_words)
$$;

CREATE FUNCTION pgmail.parse_address(p_text text) RETURNS pgmail.address
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $_$
declare a pgmail.address; spec text; name_ text; cut integer; local_ text;
begin
  if octet_length(p_text) > 1000 then a.fault := 'longer than 1,000 octets'; return a; end if;
  if p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' then a.fault := 'has a control character'; return a; end if;
  spec := btrim(p_text, ' ');
  if right(spec, 1) = '>' then
    cut := length(spec) - strpos(reverse(spec), '<') + 1;
    if cut > length(spec) then a.fault := 'has ">" without "<"'; return a; end if;
    name_ := btrim(left(spec, cut - 1), ' ');
    spec := substr(spec, cut + 1, length(spec) - cut - 1);
    if left(name_, 1) = '"' then
      if name_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted name'; return a; end if;
      name_ := regexp_replace(substr(name_, 2, length(name_) - 2), '\\(.)', '\1', 'g');
    elsif name_ ~ '[<>"]' then
      a.fault := 'has <, > or " in an unquoted name'; return a;
    end if;
  end if;
  cut := length(spec) - strpos(reverse(spec), '@') + 1;
  if cut > length(spec) then a.fault := 'has no @'; return a; end if;
  local_ := left(spec, cut - 1);
  if local_ = '' then a.fault := 'has nothing before the @'; return a; end if;
  if octet_length(local_) > 64 then a.fault := 'has more than 64 octets before the @'; return a; end if;
  if local_ !~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*$' then
    if left(local_, 1) = '"' then
      if local_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted local part'; return a; end if;
    elsif local_ ~ '[][ ()<>@,;:\\"]' or local_ ~ '(^\.|\.\.|\.$)' then
      a.fault := 'has a character or dot before the @ where none may stand'; return a;
    end if;
  end if;
  if pgmail.has_bidi(local_) then a.fault := 'has a mark that turns the direction of the text'; return a; end if;
  a.domain := pgmail.domain_ascii(substr(spec, cut + 1));
  if a.domain is null then a.fault := 'has no valid domain after the @'; return a; end if;
  a.rcpt := local_ || '@' || a.domain;
  if octet_length(a.rcpt) > 254 then
    a := null; a.fault := 'longer than 254 octets'; return a;
  end if;
  a.address := pgmail.lower_text(a.rcpt);
  a.name := nullif(name_, '');
  return a;
end
$_$;

CREATE FUNCTION pgmail.parse_time(p_text text) RETURNS timestamp with time zone
    LANGUAGE plpgsql STABLE
    AS $_$
begin
  if p_text !~ '^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?([Zz]|[+-]\d\d(:?\d\d)?)$' then return null; end if;
  return replace(p_text, ',', '.')::timestamptz;
exception when others then
  return null;
end
$_$;

CREATE FUNCTION pgmail.partition_key(p_base text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select case when p_base in ('message', 'recipient') then 'id' when p_base in ('attachment', 'tag') then 'message_id' else 'recipient_id' end $$;

CREATE FUNCTION pgmail.partition_state(OUT days_left integer, OUT strays bigint) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare base text; n bigint; last_ timestamptz := 'infinity'; l timestamptz;
begin
  strays := 0;
  foreach base in array pgmail.partitioned_tables() loop
    select max(p.until) into l from pgmail.weekly_partitions(base) p;
    execute format('select count(*) from (select 1 from pgmail.%I where %I >= %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - interval '1 day')) into n;
    strays := strays + n;
    last_ := least(last_, coalesce(l, '-infinity'));
  end loop;
  days_left := case when last_ = '-infinity' then 0 else greatest(0, extract(day from last_ - pgmail.now()))::integer end;
end
$$;

CREATE FUNCTION pgmail.partitioned_tables() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select array['message', 'attachment', 'tag', 'recipient', 'event', 'outcome'] $$;

CREATE FUNCTION pgmail.pause_mail(p_scope text, p_name text, p_reason text, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_fleet boolean DEFAULT false) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); named text;
begin
  named := pgmail.pause_target(t, p_scope, p_name);
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_until <= pgmail.now() then perform pgmail.refuse('time_in_past', '/until', 'it has passed'); end if;
  delete from pgmail.pause p where p.until <= pgmail.now() and p.tenant_id is not distinct from t;
  insert into pgmail.pause (tenant_id, scope, name, reason, until, paused_by)
  values (t, p_scope, named, p_reason, nullif(p_until, 'infinity'), pgmail.actor())
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, until = excluded.until,
    paused_at = pgmail.now(), paused_by = excluded.paused_by;
  perform pgmail.record_act(t, p_scope || '.pause', named, p_reason);
  return named;
end
$$;

CREATE FUNCTION pgmail.pause_relay(p_name text, p_reason text, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_by)
  values (p_name, 'paused', p_reason, p_until, pgmail.actor())
  on conflict (name) do update set state = 'paused', reason = excluded.reason, blocked_until = excluded.blocked_until,
    changed_at = pgmail.now(), changed_by = excluded.changed_by;
  perform pgmail.record_act(null, 'relay.pause', p_name, p_reason);
end
$$;

CREATE FUNCTION pgmail.pause_target(p_tenant integer, p_scope text, p_name text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare stream_ text; word text; site_ text;
begin
  if p_name is null or p_name = '' then
    perform pgmail.refuse('missing_field', '/' || coalesce(p_scope, 'site'), 'is required');
  elsif p_scope = 'site' then
    return pgmail.site_name(p_name, '/site');
  elsif p_scope = 'stream' then
    stream_ := p_name;
  elsif p_scope = 'lane' then
    stream_ := split_part(p_name, '/', 1); word := split_part(p_name, '/', 2); site_ := split_part(p_name, '/', 3);
    if word not in ('high', 'normal', 'low') or array_length(string_to_array(p_name, '/'), 1) <> 3 then
      perform pgmail.refuse('invalid_lane', '/lane', 'must be stream/priority/site, as in transactional/high/gmail.com');
    end if;
    site_ := pgmail.site_name(site_, '/lane');
  else
    perform pgmail.refuse('invalid_scope', '/scope', 'must be site, stream or lane');
  end if;
  if not exists (select from pgmail.stream s where s.name = stream_ and (p_tenant is null or s.tenant_id = p_tenant)) then
    perform pgmail.refuse('unknown_stream', '/' || p_scope, format('no stream is named %L', left(stream_, 63)));
  end if;
  return case p_scope when 'stream' then stream_ else concat_ws('/', stream_, word, site_) end;
end
$$;

CREATE FUNCTION pgmail.phase_of(p_state text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case when p_state in ('scheduled', 'queued', 'deferred', 'held') then 'queued'
              when p_state = 'sending' then 'processing'
              when p_state = 'sent' then 'sent'
              when p_state in ('bounced', 'suppressed', 'expired', 'cancelled', 'dead') then 'failed'
              else 'unknown' end
$$;

CREATE FUNCTION pgmail.place_v1() RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.plain_mailbox(p_text text) RETURNS pgmail.person
    LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
    AS $_$
declare p pgmail.person; given text := p_text;
begin
  if right(given, 1) = '>' then
    p.name := btrim(split_part(given, '<', 1), ' ');
    if octet_length(given) > 600 or split_part(given, '<', 3) <> ''
       or p.name collate "C" !~ '^(?:"[^"\\<>\u0001-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*"|[^"<>\u0001-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*)$' then
      return null;
    end if;
    p.name := nullif(btrim(p.name, '"'), '');
    given := left(split_part(given, '<', 2), -1);
  end if;
  if not pgmail.is_plain(given) then return null; end if;
  p.role := 'to';
  p.address := lower(given collate "C");
  p.domain := split_part(p.address, '@', 2);
  if given <> p.address then p.rcpt := nullif(split_part(given, '@', 1) || '@' || p.domain, p.address); end if;
  return p;
end
$_$;

CREATE FUNCTION pgmail.plain_options(p_tenant integer, p_body jsonb) RETURNS pgmail.options
    LANGUAGE plpgsql STABLE
    AS $_$
declare
  o pgmail.options; b jsonb; t jsonb; shared jsonb; required text[];
begin
  -- A key that nobody knows is a fault though it be null; the others are as if absent then.
  if p_body - array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables','headers','attachments',
       'tags','metadata','stream','priority','scheduled_at','expires_at','on_limit','idempotency_key','test','traceparent'] <> '{}' then
    return null;
  end if;
  b := pgmail.without_nulls(p_body); t := b->'template'; shared := b->'variables';
  o.texts := b - array['from', 'to', 'mode', 'template', 'variables', 'stream', 'priority', 'on_limit', 'idempotency_key', 'metadata', 'test', 'traceparent'];
  if o.texts - array['subject', 'text', 'html'] <> '{}' then return null; end if;
  if shared is not null and jsonb_typeof(shared) <> 'object' then return null; end if;
  if t is not null then
    shared := coalesce(shared, '{}');
    if jsonb_typeof(t) = 'object' then
      if t - array['id', 'variables'] <> '{}' or jsonb_typeof(t->'id') is distinct from 'string' then return null; end if;
      if t->'variables' <> 'null' then
        if jsonb_typeof(t->'variables') <> 'object' then return null; end if;
        shared := (t->'variables') || shared;
      end if;
      t := t->'id';
    end if;
    if jsonb_typeof(t) <> 'string' then return null; end if;
    select x.name, x.version, x.required into o.template, o.template_version, required from pgmail.template x
     where x.tenant_id = p_tenant and x.name = t #>> '{}' and x.state = 'published' order by x.version desc limit 1;
    if not found then return null; end if;
    if not shared ?& required then o.missing := array(select r from unnest(required) r where not shared ? r); end if;
  end if;
  o.stream := coalesce(b->>'stream', 'transactional');
  if jsonb_typeof(b->'stream') <> 'string' or jsonb_typeof(b->'test') <> 'boolean' then return null; end if;
  o.on_limit := coalesce(b->>'on_limit', 'delay');
  if o.on_limit not in ('delay', 'hold', 'error') then return null; end if;
  if b ? 'priority' then
    o.priority := case b->>'priority' when 'high' then 1 when 'normal' then 2 when 'low' then 3 end;
    if o.priority is null then return null; end if;
  end if;
  if b ? 'metadata' then
    o.metadata := b->'metadata';
    if jsonb_typeof(o.metadata) <> 'object' or octet_length(o.metadata::text) > 16384 then return null; end if;
  end if;
  if b ? 'idempotency_key' then
    o.idempotency_key := b->>'idempotency_key';
    if jsonb_typeof(b->'idempotency_key') <> 'string' or o.idempotency_key !~ '^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$' then return null; end if;
    o.body_hash := pgmail.body_hash(b);
  end if;
  o.mode := coalesce(b->>'mode', 'envelope');
  if o.mode not in ('envelope', 'personal') then return null; end if;
  -- One recipient's own variables make templates of the texts for all of them.
  if shared is null and o.mode = 'personal' and p_body->'to' @? '$[*].variables ? (@ != null)' then shared := '{}'; end if;
  if not pgmail.fits(shared, 1048576) then return null; end if;
  o.variables := shared;
  return o;
end
$_$;

CREATE FUNCTION pgmail.plain_people(p_to jsonb, p_personal boolean, p_missing text[]) RETURNS pgmail.person[]
    LANGUAGE plpgsql STABLE
    AS $$
declare people pgmail.person[]; all_plain boolean;
begin
  with given as materialized (
    select o, (p).address collate "C" as address, (p).rcpt, name, (p).domain, variables,
      (p).address is not null and plain and coalesce(octet_length(name) <= 600, true)
        and case when variables is null then p_missing = '{}'
                 else p_personal and jsonb_typeof(variables) = 'object' and variables ?& p_missing
                      and pgmail.fits(variables, 262144) end as plain
    from (
      select o, pgmail.plain_mailbox(x->>'address') as p, nullif(btrim(x->>'name', ' '), '') as name,
        nullif(x->'variables', 'null') as variables,
        right(x->>'address', 1) <> '>' and not coalesce(pgmail.has_control(x->>'name'), false)
          and coalesce(jsonb_typeof(x->'name'), 'null') in ('string', 'null') and x - array['address', 'name', 'variables'] = '{}' as plain
      from jsonb_array_elements(case jsonb_typeof(p_to) when 'array' then p_to else jsonb_build_array(p_to) end) with ordinality u(x, o)
      where jsonb_typeof(x) = 'object'
      union all
      select o, p, (p).name, null, true
      from (select o, pgmail.plain_mailbox(x #>> '{}') as p
            from jsonb_array_elements(case jsonb_typeof(p_to) when 'array' then p_to else '[]' end) with ordinality u(x, o)
            where jsonb_typeof(x) <> 'object' offset 0) s
      offset 0) m
  ), chosen as (
    -- of equal addresses the first
    select distinct on (address) * from given order by address, o
  )
  select (select bool_and(coalesce(g.plain, false)) from given g),
    array_agg(('to', address, rcpt, name, domain, variables)::pgmail.person order by o)
    into all_plain, people from chosen;
  if all_plain and cardinality(people) <= (case when p_personal then 1000 else 50 end) then return people; end if;
  return null;
end
$$;

CREATE FUNCTION pgmail.pointer(p_name text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select replace(replace(left(p_name, 200), '~', '~0'), '/', '~1') $$;

CREATE FUNCTION pgmail.postpone_v1(p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_seconds double precision, p_reason text) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.preview_v1(p_id uuid) RETURNS TABLE(message_id uuid, variables bytea, key_id integer)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select r.message_id, r.variables, r.key_id from pgmail.recipient r where r.tenant_id = pgmail.need_tenant() and r.id = p_id
$$;

CREATE FUNCTION pgmail.publish_template(p_name text, p_version integer, p_required text[], p_depends jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant();
begin
  update pgmail.template x set state = 'published', required = p_required, depends = p_depends,
    published_at = coalesce(x.published_at, pgmail.now())
  where x.tenant_id = t and x.name = p_name and x.version = p_version;
  if not found then
    perform pgmail.refuse('unknown_template', '/name', format('no template %L in version %s', p_name, p_version), 404);
  end if;
  perform pgmail.record_act(t, 'template.publish', p_name || ' v' || p_version, null);
end
$$;

CREATE FUNCTION pgmail.punycode(p_label text) RETURNS text
    LANGUAGE plpgsql IMMUTABLE STRICT PARALLEL SAFE
    AS $$
declare
  n integer := 128; delta integer := 0; bias integer := 72; h integer; b integer; m integer; q integer; k integer;
  t integer; c integer; digit integer; total integer := length(p_label); codes integer[]; out_ text := '';
  first boolean := true;
begin
  select array_agg(ascii(x) order by i) into codes from unnest(string_to_array(p_label, null)) with ordinality u(x, i);
  select coalesce(string_agg(chr(x), '' order by i), '') into out_ from unnest(codes) with ordinality u(x, i) where x < 128;
  b := length(out_); h := b;
  if b > 0 then out_ := out_ || '-'; end if;
  while h < total loop
    select min(x) into m from unnest(codes) x where x >= n;
    delta := delta + (m - n) * (h + 1);
    n := m;
    foreach c in array codes loop
      if c < n then delta := delta + 1; end if;
      if c = n then
        q := delta; k := 36;
        loop
          t := case when k <= bias then 1 when k >= bias + 26 then 26 else k - bias end;
          exit when q < t;
          digit := t + (q - t) % (36 - t);
          out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', digit + 1, 1);
          q := (q - t) / (36 - t);
          k := k + 36;
        end loop;
        out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', q + 1, 1);
        -- adapt the bias
        delta := case when first then delta / 700 else delta / 2 end;
        first := false;
        delta := delta + delta / (h + 1);
        k := 0;
        while delta > 455 loop delta := delta / 35; k := k + 36; end loop;
        bias := k + 36 * delta / (delta + 38);
        delta := 0;
        h := h + 1;
      end if;
    end loop;
    delta := delta + 1; n := n + 1;
  end loop;
  return out_;
end
$$;

CREATE FUNCTION pgmail.purge_idempotency_v1(p_most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  delete from pgmail.idempotency d using (
    select tenant_id, key from pgmail.idempotency where expires_at <= pgmail.now()
    order by expires_at limit p_most for update skip locked) x
  where d.tenant_id = x.tenant_id and d.key = x.key;
  get diagnostics n = row_count;
  return n;
end
$$;

CREATE FUNCTION pgmail.purge_suppressions_v1(p_most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with late as materialized (
    select s.tenant_id, s.address, s.stream from pgmail.suppression s where s.expires_at <= pgmail.now()
    order by s.expires_at limit p_most for update skip locked
  )
  delete from pgmail.suppression s using late x
  where s.tenant_id = x.tenant_id and s.address = x.address and s.stream = x.stream;
  get diagnostics n = row_count;
  return n;
end
$$;

CREATE FUNCTION pgmail.put_sealed(p_tenant integer, p_sealed jsonb, e pgmail.email) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $_$
declare open_ jsonb; files jsonb; given uuid; octets bytea; fits boolean;
begin
  if jsonb_typeof(p_sealed) is distinct from 'object'
     or p_sealed - array['tenant', 'id', 'key', 'content', 'attachments', 'variables', 'hash'] <> '{}'
     or coalesce(p_sealed->>'id', '') !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
     or coalesce(p_sealed->>'key', '') !~ '^[1-9][0-9]{0,8}$' then
    return pgmail.faulty('invalid_seal', '/sealed', 'is not as pgmail writes it; clients leave this key out');
  end if;
  if p_sealed->>'tenant' is distinct from p_tenant::text then
    return pgmail.faulty('invalid_seal', '/sealed/tenant', 'was sealed for another tenant: one Sealer is for one tenant''s connections');
  end if;
  given := (p_sealed->>'id')::uuid;
  if pgmail.uuid_time(given) not between clock_timestamp() - interval '10 minutes' and clock_timestamp() + interval '10 minutes' then
    return pgmail.faulty('invalid_seal', '/sealed/id', 'is of another time: the clock of the host that sealed it is wrong');
  end if;
  if not exists (select from pgmail.data_key d where d.tenant_id = p_tenant and d.id = (p_sealed->>'key')::integer) then
    return pgmail.faulty('invalid_seal', '/sealed/key', 'there is no such data key');
  end if;
  octets := pgmail.octets_of(p_sealed->'content');
  -- The names of files are sealed with the content, and in the clear stand beside it.
  if not pgmail.fits_sealed(octets, octet_length(e.content) + coalesce((
       select sum(octet_length(coalesce(to_jsonb(a->>'filename')::text, 'null')) + 1) from jsonb_array_elements(e.attachments) a), 0)) then
    return pgmail.faulty('invalid_seal', '/sealed/content', 'is not the sealed form of this email');
  end if;

  if e.attachments is not null then
    select jsonb_agg(case when a ? 'content' then a || jsonb_build_object('content', s, 'filename', 'sealed') else a end order by i),
        coalesce(bool_and(pgmail.fits_sealed(pgmail.octets_of(s), (a->>'size')::bigint)) filter (where a ? 'content'), true)
      into files, fits
      from (select x as a, p_sealed->'attachments'->(o - 1)::integer as s, o as i
            from jsonb_array_elements(e.attachments) with ordinality u(x, o)) y;
    if not fits then return pgmail.faulty('invalid_seal', '/sealed/attachments', 'are not the sealed form of these attachments'); end if;
    e.attachments := files;
  end if;
  if exists (select from unnest(e.people) p where p.variables is not null) then
    if exists (select from unnest(e.people) p where p.variables is not null
               and not pgmail.fits_sealed(pgmail.octets_of(p_sealed->'variables'->p.address), octet_length(p.variables::text))) then
      return pgmail.faulty('invalid_seal', '/sealed/variables', 'are not the sealed form of these variables');
    end if;
    e.people := array(
      select (p.role, p.address, p.rcpt, p.name, p.domain,
              case when p.variables is not null then p_sealed->'variables'->p.address end)::pgmail.person
      from unnest(e.people) with ordinality p order by p.ordinality);
  end if;

  -- Who it is from and to stands open, beside what is sealed; that there are variables makes templates of the texts. Headers
  -- that are null nobody can read who knows nothing of sealing: an older worker makes a dead letter of it, not an empty mail.
  open_ := convert_from(e.content, 'UTF8')::jsonb;
  open_ := open_ - array['subject', 'text', 'html', 'headers'] || jsonb_build_object('sealed', p_sealed->'content', 'headers', null)
           || case when open_ ? 'variables' then '{"variables": {}}'::jsonb else '{}' end;
  e.content := convert_to(open_::text, 'UTF8');
  e.message_id := given;
  e.seal_key := (p_sealed->>'key')::integer;
  if e.idempotency_key is not null then
    -- Keyed: the plain hash of a short text, such as a code of six digits, would tell the text.
    octets := pgmail.octets_of(p_sealed->'hash');
    if octets is null or octet_length(octets) <> 32 then
      return pgmail.faulty('invalid_seal', '/sealed/hash', 'is needed beside an idempotency key');
    end if;
    e.body_hash := octets;
  end if;
  return e;
end
$_$;

CREATE FUNCTION pgmail.quota_gate_v1(p_key uuid) RETURNS jsonb
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare t integer := pgmail.need_tenant(); now_ timestamptz := pgmail.now(); rules jsonb; doors jsonb; low jsonb;
begin
  -- A rule of a key is of its whole line of rotations, under the id of the first.
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  select jsonb_agg(jsonb_build_array(q.scope, q.name) order by q.scope, q.name) into rules from pgmail.quota q
   where q.tenant_id = t and (q.scope <> 'key' or q.name = p_key::text) and coalesce(q.per_second, q.per_day, q.max_queued) is not null;
  select jsonb_agg(jsonb_build_object('stream', d.stream, 'kind', d.kind, 'priority', d.priority, 'reason', d.reason,
           'seconds', extract(epoch from d.until - now_)) order by d.stream, d.kind) into doors from pgmail.door d
   where d.tenant_id = t and d.until > now_;
  if doors @> '[{"kind": "pressure"}]' then
    select jsonb_agg(s.name order by s.name) into low from pgmail.stream s where s.tenant_id = t and s.priority = 3;
  end if;
  return jsonb_build_object('rules', coalesce(rules, '[]'), 'doors', coalesce(doors, '[]'), 'low', coalesce(low, '[]'));
end
$$;

CREATE FUNCTION pgmail.quota_target(p_scope text, p_name text, p_tenant text, OUT tenant integer, OUT named text) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  named := '';
  if p_scope = 'fleet' then return; end if;
  if p_scope is null or p_scope not in ('tenant', 'stream', 'key') then
    perform pgmail.refuse('invalid_scope', '/scope', 'must be fleet, tenant, stream or key');
  end if;
  if p_scope = 'tenant' then p_tenant := coalesce(p_tenant, nullif(p_name, '')); end if;
  if p_tenant is null then
    tenant := pgmail.need_tenant();
  else
    select t.id into tenant from pgmail.tenant t where t.name = p_tenant;
    if not found then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  end if;
  if p_scope = 'stream' then
    named := p_name;
    if not exists (select from pgmail.stream s where s.tenant_id = tenant and s.name = p_name) then
      perform pgmail.refuse('unknown_stream', '/name', format('no stream is named %L', left(p_name, 63)), 404);
    end if;
  elsif p_scope = 'key' then
    -- Keys have ids that no two tenants share. Meant is the whole line of rotations, under the id of its first key: a rule
    -- follows a key, and the two that overlap share it.
    select k.tenant_id, coalesce(k.family, k.id)::text into tenant, named from pgmail.api_key k
     where k.id::text = lower(p_name) and (p_tenant is null or k.tenant_id = tenant);
    if not found then perform pgmail.refuse('unknown_key', '/name', 'no key has this id; pgmail key list shows ids', 404); end if;
  end if;
end
$$;

CREATE FUNCTION pgmail.quota_words(p_scope text, p_name text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select case p_scope when 'stream' then 'stream ' || p_name when 'tenant' then 'the tenant' when 'key' then 'the key' else 'the fleet' end $$;

CREATE FUNCTION pgmail.rate_words(p_messages integer, p_per_seconds real) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select p_messages || case p_per_seconds when 1 then ' a second' when 60 then ' a minute' when 3600 then ' an hour'
    when 86400 then ' a day' else ' in ' || p_per_seconds || ' seconds' end
$$;

CREATE FUNCTION pgmail.reach_v1(p_ids uuid[]) RETURNS TABLE(id uuid, stream text, own boolean, test boolean)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); mine uuid[];
begin
  -- Backwards only: a key that leaked, and was rotated for it, does not reach what its follower sends.
  mine := array(with recursive line(id) as (
                  select pgmail.current_key() union select f.id from line l join pgmail.api_key f on f.tenant_id = t and f.replaced_by = l.id)
                select l.id from line l where l.id is not null);
  return query
  select i, m.stream, coalesce(m.api_key = any (mine), false), m.test
  from unnest(p_ids) i
  cross join lateral (
    select i as message_id
    union all
    select x.message_id from pgmail.recipient x where x.tenant_id = t and x.id = i
  ) r
  join pgmail.message m on m.tenant_id = t and m.id = r.message_id;
end
$$;

CREATE FUNCTION pgmail.read_any(p_tenant integer, p_body jsonb) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $$
declare e pgmail.email := pgmail.read_plain(p_tenant, p_body);
begin
  if e.sender is null then return pgmail.read_sealed(p_tenant, p_body); end if;
  return e;
end
$$;

CREATE FUNCTION pgmail.read_email(p_tenant integer, p_body jsonb) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $_$
declare
  e pgmail.email; b jsonb := p_body; v jsonb; item jsonb; a pgmail.address; f text; i integer; n integer;
  field text; role_ text; vars jsonb; missing text; now_ timestamptz := pgmail.now();
  shown jsonb; from_ jsonb; reply_to jsonb; to_ jsonb := '[]'; cc_ jsonb := '[]'; single boolean; most integer;
  s pgmail.stream; t pgmail.template; people pgmail.person[] := '{}'; addresses text[] := '{}'; sub text; txt text; htm text; at_ timestamptz; k text; bytes bigint := 0; content jsonb; sender_domain text;
begin
  -- 0: the body
  if b is null or jsonb_typeof(b) <> 'object' then
    return pgmail.faulty('invalid_body', '', 'an email is a JSON object');
  end if;
  if b - array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables','headers',
               'attachments','tags','metadata','stream','priority','scheduled_at','expires_at','on_limit',
               'idempotency_key','test','traceparent'] <> '{}' then
    select min(x collate "C") into k from jsonb_object_keys(b) x
     where x <> all (array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables',
                           'headers','attachments','tags','metadata','stream','priority','scheduled_at','expires_at',
                           'on_limit','idempotency_key','test','traceparent']);
    return pgmail.faulty('unknown_key', '/' || pgmail.pointer(k), format('no such key: %s', left(k, 80)));
  end if;
  b := pgmail.without_nulls(b);

  -- 1: from
  v := b->'from';
  if v is null or v = '""' then return pgmail.faulty('missing_field', '/from', 'a sender is required'); end if;
  if jsonb_typeof(v) <> 'string' then return pgmail.faulty('invalid_address', '/from', 'must be a string'); end if;
  a := pgmail.parse_address(v #>> '{}');
  if a.fault is not null then return pgmail.faulty('invalid_address', '/from', a.fault); end if;
  if pgmail.has_bidi(v #>> '{}') then return pgmail.faulty('invalid_address', '/from', 'has a mark that turns the direction of the text'); end if;
  e.sender := a.address; sender_domain := a.domain;
  from_ := jsonb_build_object('address', a.rcpt);
  if a.name is not null then from_ := from_ || jsonb_build_object('name', a.name); end if;

  -- 2 and 3: recipients and mode (which decides what a recipient may carry)
  e.mode := 'envelope';
  v := b->'mode';
  if v is not null and v in ('"envelope"', '"personal"') then e.mode := v #>> '{}'; end if;
  most := case e.mode when 'personal' then 1000 else 50 end;
  v := b->'to';
  if v is null or v = '""' or v = '[]' then
    return pgmail.faulty('missing_field', '/to', 'at least one recipient is required');
  end if;
  field := null;   -- of the first thing that mode forbids; told after the addresses were judged
  foreach role_ in array array['to', 'cc', 'bcc'] loop
    v := b->role_;
    continue when v is null;
    single := jsonb_typeof(v) <> 'array';
    n := case when single then 1 else jsonb_array_length(v) end;
    for i in 0 .. n - 1 loop
      item := case when single then v else v->i end;
      f := case when single then '/' || role_ else '/' || role_ || '/' || i end;
      vars := null;
      if jsonb_typeof(item) = 'object' then
        if jsonb_typeof(item->'address') is distinct from 'string'
           or coalesce(jsonb_typeof(item->'name'), 'null') not in ('string', 'null')
           or item - array['address', 'name', 'variables'] <> '{}' then
          return pgmail.faulty('invalid_address', f, 'an object here has "address", and may have "name" and "variables"');
        end if;
        a := pgmail.parse_address(item->>'address');
        if a.fault is null and a.name is not null then a.fault := 'has a name inside "address"'; end if;
        if a.fault is null and item->>'name' is not null then
          if pgmail.has_control(item->>'name') or octet_length(item->>'name') > 1000 then
            a.fault := 'has a control character in its name, or more than 1,000 octets';
          end if;
          a.name := nullif(btrim(item->>'name', ' '), '');
        end if;
        vars := nullif(item->'variables', 'null');
        if vars is not null and e.mode = 'envelope' then field := coalesce(field, f || '/variables'); end if;
      elsif jsonb_typeof(item) = 'string' then
        a := pgmail.parse_address(item #>> '{}');
      else
        return pgmail.faulty('invalid_address', f, 'must be a string or an object');
      end if;
      if a.fault is not null then return pgmail.faulty('invalid_address', f, a.fault); end if;
      if role_ <> 'to' and e.mode = 'personal' then field := coalesce(field, '/' || role_); end if;
      continue when a.address = any (addresses);
      addresses := array_append(addresses, a.address);
      people := array_append(people, (role_, a.address, nullif(a.rcpt, a.address), a.name, a.domain, vars)::pgmail.person);
      if role_ <> 'bcc' and e.mode = 'envelope' then
        shown := jsonb_build_object('address', a.rcpt);
        if a.name is not null then shown := shown || jsonb_build_object('name', a.name); end if;
        if role_ = 'to' then to_ := to_ || shown; else cc_ := cc_ || shown; end if;
      end if;
      if cardinality(addresses) > most then
        return pgmail.faulty('too_many_recipients', '/to', format('more than %s recipients', most));
      end if;
    end loop;
  end loop;
  v := b->'mode';
  if v is not null and v not in ('"envelope"', '"personal"') then
    return pgmail.faulty('invalid_mode', '/mode', 'must be "envelope" or "personal"');
  end if;
  if field is not null then
    return pgmail.faulty('invalid_mode', field, case e.mode when 'personal'
      then 'not in personal mode: each recipient has an email of its own'
      else 'variables of one recipient need mode "personal"' end);
  end if;

  -- 4: reply_to
  v := b->'reply_to';
  if v is not null then
    reply_to := '[]';
    single := jsonb_typeof(v) <> 'array';
    n := case when single then 1 else jsonb_array_length(v) end;
    for i in 0 .. n - 1 loop
      item := case when single then v else v->i end;
      f := case when single then '/reply_to' else '/reply_to/' || i end;
      if jsonb_typeof(item) <> 'string' then return pgmail.faulty('invalid_address', f, 'must be a string'); end if;
      a := pgmail.parse_address(item #>> '{}');
      if a.fault is not null then return pgmail.faulty('invalid_address', f, a.fault); end if;
      reply_to := reply_to || jsonb_strip_nulls(jsonb_build_object('address', a.rcpt, 'name', a.name));
    end loop;
    if n > 50 then return pgmail.faulty('invalid_address', '/reply_to', 'more than 50 addresses'); end if;
  end if;

  -- 5: template
  v := b->'template';
  if v is not null then
    if jsonb_typeof(v) = 'string' then v := jsonb_build_object('id', v); end if;
    if jsonb_typeof(v) <> 'object' or v - array['id', 'variables', 'version'] <> '{}'
       or jsonb_typeof(v->'id') is distinct from 'string'
       or coalesce(jsonb_typeof(v->'version'), 'null') not in ('number', 'null')
       or (v->>'version') !~ '^[1-9][0-9]{0,8}$' then
      return pgmail.faulty('invalid_template', '/template', 'must be {"id": name, "variables": {...}, "version": n}');
    end if;
    select * into t from pgmail.template x
     where x.tenant_id = p_tenant and x.name = v->>'id' and x.state = 'published'
       and (v->>'version' is null or x.version = (v->>'version')::integer)
     order by x.version desc limit 1;
    if not found then
      return pgmail.faulty('unknown_template', '/template/id', format('no published template is named %L%s', left(v->>'id', 128),
        coalesce(' in version ' || (v->>'version'), '')));
    end if;
    e.template := t.name; e.template_version := t.version;
  end if;

  -- 6 and 7: subject and bodies
  if b ? 'subject' then
    if jsonb_typeof(b->'subject') <> 'string' then return pgmail.faulty('invalid_subject', '/subject', 'must be a string'); end if;
    sub := b->>'subject';
    if length(sub) > 998 then return pgmail.faulty('invalid_subject', '/subject', 'longer than 998 characters'); end if;
    if pgmail.has_control(sub) then return pgmail.faulty('invalid_subject', '/subject', 'has a control character'); end if;
  elsif e.template is null then
    return pgmail.faulty('missing_field', '/subject', 'a subject is required');
  end if;
  if (b ? 'text' and jsonb_typeof(b->'text') <> 'string') then return pgmail.faulty('invalid_text', '/text', 'must be a string'); end if;
  if (b ? 'html' and jsonb_typeof(b->'html') <> 'string') then return pgmail.faulty('invalid_text', '/html', 'must be a string'); end if;
  txt := b->>'text'; htm := b->>'html';
  if e.template is not null then
    if txt is not null then return pgmail.faulty('invalid_text', '/text', 'a template brings its own'); end if;
    if htm is not null then return pgmail.faulty('invalid_text', '/html', 'a template brings its own'); end if;
  elsif txt is null and htm is null then
    return pgmail.faulty('missing_field', '/text', 'text, html or a template is required');
  end if;

  -- 8: variables
  if b ? 'variables' and jsonb_typeof(b->'variables') <> 'object' then
    return pgmail.faulty('invalid_variables', '/variables', 'must be an object');
  end if;
  if coalesce(jsonb_typeof(v->'variables'), 'null') not in ('object', 'null') then
    return pgmail.faulty('invalid_variables', '/template/variables', 'must be an object');
  end if;
  if exists (select from unnest(people) p where jsonb_typeof(p.variables) <> 'object') then
    select ord - 1 into n from jsonb_array_elements(case when jsonb_typeof(b->'to') = 'array' then b->'to' else jsonb_build_array(b->'to') end)
      with ordinality u(x, ord)
     where jsonb_typeof(x) = 'object' and coalesce(jsonb_typeof(x->'variables'), 'null') not in ('object', 'null')
     order by ord limit 1;
    return pgmail.faulty('invalid_variables',
      case when jsonb_typeof(b->'to') = 'array' then format('/to/%s/variables', n) else '/to/variables' end, 'must be an object');
  end if;
  k := pgmail.variables_fault(b->'variables', 1048576);
  if k is not null then return pgmail.faulty('invalid_variables', '/variables', k); end if;
  k := pgmail.variables_fault(v->'variables', 1048576);
  if k is not null then return pgmail.faulty('invalid_variables', '/template/variables', k); end if;
  if exists (select from unnest(people) p where p.variables is not null) then
    select ord - 1, pgmail.variables_fault(x->'variables', 262144) into n, k
      from jsonb_array_elements(case when jsonb_typeof(b->'to') = 'array' then b->'to' else jsonb_build_array(b->'to') end) with ordinality u(x, ord)
     where jsonb_typeof(x) = 'object' and not pgmail.fits(x->'variables', 262144) order by ord limit 1;
    if found then
      return pgmail.faulty('invalid_variables', case when jsonb_typeof(b->'to') = 'array' then format('/to/%s/variables', n) else '/to/variables' end, k);
    end if;
  end if;
  if v is not null and v->'variables' <> 'null' then
    vars := (v->'variables') || coalesce(b->'variables', '{}');
  else
    vars := b->'variables';
  end if;
  if e.template is not null then
    vars := coalesce(vars, '{}');
    if t.required <> '{}' then
      select min(r collate "C") into missing from unnest(t.required) r
       where not vars ? r and exists (select from unnest(people) p where p.variables is null or not p.variables ? r);
      if missing is not null then
        return pgmail.faulty('missing_variable', '/variables', format('the template needs %L', missing));
      end if;
    end if;
  end if;

  -- 9 to 12: headers, attachments, tags, metadata
  if b ?| array['headers', 'attachments', 'tags', 'metadata'] then
    e := pgmail.read_extras(p_tenant, b, e);
    if e.fault_code is not null then return e; end if;
  end if;

  -- 13 and 14: stream and priority
  if b ? 'stream' and jsonb_typeof(b->'stream') <> 'string' then
    return pgmail.faulty('unknown_stream', '/stream', 'must be a string');
  end if;
  select * into s from pgmail.stream x where x.tenant_id = p_tenant and x.name = coalesce(b->>'stream', 'transactional');
  if not found then
    return pgmail.faulty('unknown_stream', '/stream', format('no stream is named %L', left(coalesce(b->>'stream', 'transactional'), 63)));
  end if;
  e.stream := s.name; e.max_queued := s.max_queued;
  e.priority := case when b ? 'priority' then case b->>'priority' when 'high' then 1 when 'normal' then 2 when 'low' then 3 end
                     else s.priority end;
  if e.priority is null or (b ? 'priority' and jsonb_typeof(b->'priority') <> 'string') then
    return pgmail.faulty('invalid_priority', '/priority', 'must be "high", "normal" or "low"');
  end if;

  -- 15 and 16: when, and until when
  if b ? 'scheduled_at' then
    if jsonb_typeof(b->'scheduled_at') = 'string' then at_ := pgmail.parse_time(b->>'scheduled_at'); end if;
    if at_ is null then
      return pgmail.faulty('invalid_time', '/scheduled_at', 'must be ISO 8601 with an offset, as 2026-11-21T09:00:00Z');
    elsif at_ < now_ - interval '60 seconds' and not pgmail.was_sent(p_tenant, b) then
      return pgmail.faulty('time_in_past', '/scheduled_at', 'lies more than 60 seconds in the past');
    elsif at_ > now_ + interval '366 days' then
      return pgmail.faulty('time_too_far', '/scheduled_at', 'lies more than 366 days ahead');
    end if;
    if at_ > now_ then e.due_at := at_; end if;
  end if;
  if b ? 'expires_at' then
    at_ := null;
    if jsonb_typeof(b->'expires_at') = 'string' then at_ := pgmail.parse_time(b->>'expires_at'); end if;
    if at_ is null then
      return pgmail.faulty('invalid_time', '/expires_at', 'must be ISO 8601 with an offset, as 2026-11-21T09:00:00Z');
    elsif at_ <= coalesce(e.due_at, now_) and not pgmail.was_sent(p_tenant, b) then
      return pgmail.faulty('time_in_past', '/expires_at', 'must lie after now and after scheduled_at');
    elsif at_ > now_ + interval '732 days' then
      return pgmail.faulty('time_too_far', '/expires_at', 'lies more than 732 days ahead');
    end if;
    e.expires_at := at_;
  end if;

  -- 17 and 18: on_limit, idempotency_key
  e.on_limit := 'delay';
  if b ? 'on_limit' then
    if b->'on_limit' not in ('"delay"', '"hold"', '"error"') then
      return pgmail.faulty('invalid_on_limit', '/on_limit', 'must be "delay", "hold" or "error"');
    end if;
    e.on_limit := b->>'on_limit';
  end if;
  if b ? 'idempotency_key' then
    if jsonb_typeof(b->'idempotency_key') <> 'string' or b->>'idempotency_key' !~ '^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$' then
      return pgmail.faulty('invalid_idempotency_key', '/idempotency_key', 'must be 1 to 256 printable ASCII characters');
    end if;
    e.idempotency_key := b->>'idempotency_key';
    e.body_hash := pgmail.body_hash(b);
  end if;

  -- 18b: test
  if b ? 'test' and jsonb_typeof(b->'test') <> 'boolean' then
    return pgmail.faulty('invalid_test', '/test', 'must be true or false');
  end if;
  e.test := coalesce(b->'test' = 'true', false);
  -- 18c: traceparent, never a fault
  if b ? 'traceparent' then e.traceparent := pgmail.traceparent(b); end if;

  -- 19: size. read_extras left the attachments' part in size_bytes.
  bytes := coalesce(e.size_bytes, 0)::bigint + coalesce(octet_length(sub), 0) + coalesce(octet_length(txt), 0) + coalesce(octet_length(htm), 0);
  if bytes > 26214400 then
    return pgmail.faulty('too_large', '', format('%s octets; at most 26,214,400', bytes), 413);
  end if;
  e.size_bytes := bytes;

  -- 20: who may send as whom. A repetition is answered with the first id, whatever holds by now.
  f := pgmail.sender_fault(p_tenant, sender_domain, from_->>'name');
  if f is not null and not pgmail.was_sent(p_tenant, b) then return pgmail.faulty('unverified_domain', '/from', f, 403); end if;

  content := jsonb_build_object('from', from_);
  if e.headers is not null then content := content || jsonb_build_object('headers', e.headers); end if;
  if e.mode = 'envelope' then
    content := content || jsonb_build_object('to', to_);
    if cc_ <> '[]' then content := content || jsonb_build_object('cc', cc_); end if;
  end if;
  if reply_to is not null and reply_to <> '[]' then content := content || jsonb_build_object('reply_to', reply_to); end if;
  if sub is not null then content := content || jsonb_build_object('subject', sub); end if;
  if txt is not null then content := content || jsonb_build_object('text', txt); end if;
  if htm is not null then content := content || jsonb_build_object('html', htm); end if;
  if e.attachments is not null then content := content || jsonb_build_object('attachments', jsonb_array_length(e.attachments)); end if;
  -- One recipient's own variables make templates of the texts for all of them.
  if vars is null and exists (select from unnest(people) p where p.variables is not null) then vars := '{}'; end if;
  if vars is not null then content := content || jsonb_build_object('variables', vars); end if;
  e.content := convert_to(content::text, 'UTF8');
  e.headers := null;
  e.people := people;
  return e;
end
$_$;

CREATE FUNCTION pgmail.read_extras(p_tenant integer, b jsonb, e pgmail.email) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $_$
declare
  v jsonb; item jsonb; r record; i integer; f text; kept jsonb; part jsonb; bytes bigint := 0; n integer;
  asset pgmail.asset; name_ text; val text;
begin
  v := b->'headers';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_header', '/headers', 'must be an object'); end if;
    if (select count(*) from jsonb_object_keys(v)) > 50 then
      return pgmail.faulty('invalid_header', '/headers', 'more than 50 headers');
    end if;
    for r in select x.key, x.value from jsonb_each(v) x order by x.key collate "C" loop
      f := '/headers/' || pgmail.pointer(r.key);
      if r.key !~ '^[!-9;-~]{1,76}$' then return pgmail.faulty('invalid_header', f, 'not a header name'); end if;
      if lower(r.key) in ('from', 'to', 'cc', 'bcc', 'subject', 'date', 'message-id', 'reply-to', 'sender',
                          'return-path', 'received', 'mime-version', 'dkim-signature', 'return-receipt-to',
                          'disposition-notification-to', 'authentication-results', 'domainkey-signature', 'x-google-dkim-signature',
                          'received-spf', 'x-received', 'delivered-to', 'x-original-to', 'envelope-to', 'envelope-from',
                          'original-recipient', 'apparently-to', 'errors-to')
         or lower(r.key) ~ '^(content-|resent-|arc-|dkim-|bimi-|x-envelope-)' then
        return pgmail.faulty('reserved_header', f, 'pgmail sets this header itself');
      end if;
      if jsonb_typeof(r.value) <> 'string' then return pgmail.faulty('invalid_header', f, 'must be a string'); end if;
      if length(r.value #>> '{}') > 2000 then return pgmail.faulty('invalid_header', f, 'longer than 2,000 characters'); end if;
      if pgmail.has_control(r.value #>> '{}') then return pgmail.faulty('invalid_header', f, 'has a control character'); end if;
    end loop;
    if v <> '{}' then e.headers := v; end if;
  end if;

  v := b->'attachments';
  if v is not null then
    if jsonb_typeof(v) <> 'array' then return pgmail.faulty('invalid_attachment', '/attachments', 'must be an array'); end if;
    if jsonb_array_length(v) > 100 then return pgmail.faulty('invalid_attachment', '/attachments', 'more than 100 attachments'); end if;
    kept := '[]';
    for i in 0 .. jsonb_array_length(v) - 1 loop
      item := v->i; f := '/attachments/' || i; part := '{}';
      if jsonb_typeof(item) <> 'object' then return pgmail.faulty('invalid_attachment', f, 'must be an object'); end if;
      if item - array['filename', 'content', 'content_type', 'content_id', 'asset', 'path'] <> '{}' then
        return pgmail.faulty('invalid_attachment', f, 'has an unknown key');
      end if;
      if item->>'path' is not null then
        return pgmail.faulty('invalid_attachment', f || '/path', 'attachments are not fetched from URLs; send the content');
      end if;
      foreach name_ in array array['filename', 'content_type', 'content_id', 'asset'] loop
        val := item->>name_;
        continue when val is null;
        if jsonb_typeof(item->name_) <> 'string' or pgmail.has_control(val) or octet_length(val) > 255 or btrim(val, ' ') = '' then
          return pgmail.faulty('invalid_attachment', f || '/' || name_, 'must be a string of 1 to 255 octets without control characters');
        end if;
        part := part || jsonb_build_object(name_, val);
      end loop;
      if pgmail.has_bidi(item->>'filename') then
        return pgmail.faulty('invalid_attachment', f || '/filename', 'has a mark that turns the direction of the text');
      end if;
      val := item->>'content_id';
      if val ~ '[<> ]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'has a space, < or >'); end if;
      if val ~ '[^\x21-\x7e]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'must be ASCII'); end if;
      val := lower(item->>'content_type');
      if val is not null and (val !~ '^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}( *; *[a-z0-9_-]+=("[^"\\]*"|[^ ;"\\]+))*$'
                              or val ~ '^(multipart|message)/') then
        return pgmail.faulty('invalid_attachment', f || '/content_type', 'must be a type/subtype other than multipart and message');
      end if;
      if item->>'asset' is not null then
        if item->>'content' is not null then
          return pgmail.faulty('invalid_attachment', f, 'has both content and asset');
        end if;
        select * into asset from pgmail.asset x where x.tenant_id = p_tenant and x.name = item->>'asset';
        if not found then
          return pgmail.faulty('unknown_asset', f || '/asset', format('no asset is named %L', left(item->>'asset', 128)));
        end if;
        part := jsonb_build_object('filename', asset.filename, 'content_type', asset.content_type) || part
                || jsonb_build_object('size', asset.size_bytes);
        bytes := bytes + asset.size_bytes;
      else
        if item->>'filename' is null then
          return pgmail.faulty('invalid_attachment', f || '/filename', 'a filename is required');
        end if;
        if jsonb_typeof(item->'content') is distinct from 'string' then
          return pgmail.faulty('invalid_attachment', f || '/content', 'must be the content in base64');
        end if;
        -- Only an upper bound before decoding: a body far too large is not worth decoding.
        if octet_length(item->>'content') > 60000000 then
          return pgmail.faulty('too_large', '', 'an attachment alone exceeds 26,214,400 octets', 413);
        end if;
        begin
          n := octet_length(decode(item->>'content', 'base64'));
        exception when others then
          return pgmail.faulty('invalid_attachment', f || '/content', 'is not valid base64');
        end;
        part := part || jsonb_build_object('content', item->>'content', 'size', n);
        bytes := bytes + n;
      end if;
      kept := kept || part;
    end loop;
    if kept <> '[]' then e.attachments := kept; end if;
    e.size_bytes := least(bytes, 2000000000);
  end if;

  v := b->'tags';
  if v is not null then
    if jsonb_typeof(v) not in ('array', 'object') then return pgmail.faulty('invalid_tag', '/tags', 'must be an array or an object'); end if;
    kept := '{}';
    n := 0;
    for r in
      select '/tags/' || (ord - 1) as field, x->'name' as name, x->'value' as value,
             jsonb_typeof(x) = 'object' and x - array['name', 'value'] = '{}' as shape
      from jsonb_array_elements(case jsonb_typeof(v) when 'array' then v else '[]' end) with ordinality u(x, ord)
      union all
      select * from (select '/tags/' || pgmail.pointer(x.key), to_jsonb(x.key), x.value, true
      from jsonb_each(case jsonb_typeof(v) when 'object' then v else '{}' end) x order by x.key collate "C") o
    loop
      n := n + 1;
      if n > 20 then return pgmail.faulty('invalid_tag', '/tags', 'more than 20 tags'); end if;
      if not r.shape or jsonb_typeof(r.name) is distinct from 'string' or jsonb_typeof(r.value) is distinct from 'string'
         or r.name #>> '{}' !~ '^[A-Za-z0-9_-]+$' or r.value #>> '{}' !~ '^[A-Za-z0-9_-]+$'
         or length(r.name #>> '{}') > 256 or length(r.value #>> '{}') > 256 then
        return pgmail.faulty('invalid_tag', r.field, 'names and values are 1 to 256 of A-Z a-z 0-9 _ -');
      end if;
      kept := kept || jsonb_build_object(r.name #>> '{}', r.value);
    end loop;
    if kept <> '{}' then e.tags := kept; end if;
  end if;

  v := b->'metadata';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_metadata', '/metadata', 'must be an object'); end if;
    if octet_length(v::text) > 16384 then return pgmail.faulty('invalid_metadata', '/metadata', 'more than 16 kB as JSON'); end if;
    e.metadata := v;
  end if;
  return e;
end
$_$;

CREATE FUNCTION pgmail.read_plain(p_tenant integer, p_body jsonb) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $_$
declare
  e pgmail.email; o pgmail.options; p pgmail.person; texts jsonb; subject text; head text; bytes bigint; from_name text; rule text;
begin
  if jsonb_typeof(p_body) is distinct from 'object' then return null; end if;

  p := pgmail.plain_mailbox(p_body->>'from');
  if p.address is null then return null; end if;
  e.sender := p.address; from_name := p.name;
  head := '{"from": ' || pgmail.shown(coalesce(p.rcpt, p.address), p.name);

  e.stream := 'transactional'; e.mode := 'envelope'; e.on_limit := 'delay'; e.test := false;
  if p_body - array['from', 'to', 'subject', 'text', 'html'] = '{}' then
    texts := jsonb_strip_nulls(p_body - array['from', 'to']);
  else
    o := pgmail.plain_options(p_tenant, p_body);
    if o.mode is null then return null; end if;
    e.stream := o.stream; e.priority := o.priority; e.mode := o.mode; e.template := o.template; e.template_version := o.template_version;
    e.metadata := o.metadata; e.on_limit := o.on_limit; e.idempotency_key := o.idempotency_key; e.body_hash := o.body_hash;
    e.test := coalesce(p_body->'test' = 'true', false);
    if p_body ? 'traceparent' then e.traceparent := pgmail.traceparent(p_body); end if;
    texts := o.texts;
  end if;

  if jsonb_typeof(p_body->'to') = 'string' then
    p := pgmail.plain_mailbox(p_body->>'to');
    if p.address is null or o.missing is not null then return null; end if;
    e.people := array[p];
    if e.mode = 'envelope' then head := head || ', "to": [' || pgmail.shown(coalesce(p.rcpt, p.address), p.name) || ']'; end if;
  else
    e.people := pgmail.plain_people(p_body->'to', e.mode = 'personal', coalesce(o.missing, '{}'));
    if e.people is null then return null; end if;
    if e.mode = 'envelope' then head := head || ', "to": [' || pgmail.shown_people(e.people) || ']'; end if;
  end if;

  if texts @? 'strict $.* ? (@.type() != "string")' then return null; end if;
  if e.template is null then
    if not (texts ? 'subject' and texts ?| array['text', 'html']) then return null; end if;
  elsif texts ?| array['text', 'html'] then
    return null;
  end if;
  subject := texts->>'subject';
  if length(subject) > 998 or pgmail.has_control(subject) then return null; end if;
  bytes := coalesce(octet_length(subject), 0) + coalesce(octet_length(texts->>'text'), 0) + coalesce(octet_length(texts->>'html'), 0);
  if bytes > 26214400 then return null; end if;
  e.size_bytes := bytes;
  if o.variables is not null then head := head || ', "variables": ' || o.variables::text; end if;
  -- The texts' own JSON goes on after its opening brace.
  if texts <> '{}' then head := head || ', '; end if;
  e.content := convert_to(head, 'UTF8') || substring(convert_to(texts::text, 'UTF8') from 2);

  select coalesce(e.priority, s.priority), s.max_queued, (select x.senders from pgmail.tenant x where x.id = p_tenant)
    into e.priority, e.max_queued, rule
    from pgmail.stream s where s.tenant_id = p_tenant and s.name = e.stream and s.seal = 'off';
  if not found then return null; end if;
  -- Who may send as whom: what sender_fault says, where that is plain. Apart, so that the rule 'any' pays for none of it.
  if rule = 'verified' and (from_name ~ '[@\ufe6b\uff20]' or not pgmail.is_sender_domain(p_tenant, split_part(e.sender, '@', 2))) then
    return null;
  end if;
  return e;
end
$_$;

CREATE FUNCTION pgmail.read_relays(p_relay jsonb, OUT names text[], OUT weights real[]) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare x jsonb; i integer := 0; n integer; field text := '/relay'; weighted boolean;
begin
  if jsonb_typeof(p_relay) = 'string' then p_relay := jsonb_build_array(p_relay); else field := '/relay/0'; end if;
  if jsonb_typeof(p_relay) is distinct from 'array' or jsonb_array_length(p_relay) not between 1 and 16 then
    perform pgmail.refuse('invalid_relay', '/relay', 'must be the name of a relay, or 1 to 16 of them in an array');
  end if;
  n := jsonb_array_length(p_relay);
  names := '{}'; weights := '{}';
  for x in select * from jsonb_array_elements(p_relay) loop
    if n > 1 or field <> '/relay' then field := '/relay/' || i; end if;
    weighted := jsonb_typeof(x) = 'object';
    if weighted is distinct from (jsonb_typeof(p_relay->0) = 'object') or not weighted and jsonb_typeof(x) <> 'string' then
      perform pgmail.refuse('invalid_relay', field, 'must be the name of a relay, or all of them objects of name and weight');
    elsif weighted and (jsonb_typeof(x->'name') is distinct from 'string' or jsonb_typeof(x->'weight') is distinct from 'number'
                        or exists (select from jsonb_object_keys(x) y where y not in ('name', 'weight'))) then
      perform pgmail.refuse('invalid_relay', field, 'must be an object of name and weight');
    elsif weighted and not ((x->>'weight')::numeric >= 0.001 and (x->>'weight')::numeric <= 1000) then
      perform pgmail.refuse('invalid_relay', field || '/weight', 'must be from 0.001 to 1000');
    end if;
    names := names || case when weighted then x->>'name' else x#>>'{}' end;
    if weighted then weights := weights || (x->>'weight')::real; end if;
    i := i + 1;
    if names[i] = any (names[:i - 1]) then
      perform pgmail.refuse('invalid_relay', field, format('relay %L comes twice', left(names[i], 63)));
    elsif not exists (select from pgmail.relay r where r.name = names[i]) then
      perform pgmail.refuse('unknown_relay', field, format(
        'no relay is named %L; a worker that has it in PGMAIL_RELAY_URLS must have started once', left(names[i], 63)));
    end if;
  end loop;
  if cardinality(weights) = 0 then weights := null; end if;
end
$$;

CREATE FUNCTION pgmail.read_sealed(p_tenant integer, p_body jsonb) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $$
declare e pgmail.email; b jsonb; sealed jsonb;
begin
  if jsonb_typeof(p_body) is distinct from 'object' or not p_body ? 'sealed' then
    e := pgmail.read_email(p_tenant, p_body);
    if e.fault_code is null and exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = e.stream and s.seal = 'required') then
      return pgmail.faulty('sealing_required', '/stream', format(
        'stream %L takes sealed mail only: by HTTP or Python, from a program that has PGMAIL_SEAL_KEYS', e.stream));
    end if;
    return e;
  end if;
  b := p_body - 'sealed'; sealed := p_body->'sealed';
  e := pgmail.read_email(p_tenant, b);
  if e.fault_code = 'time_in_past' and exists (
       select from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = b->>'idempotency_key'
         and d.body_hash = pgmail.octets_of(sealed->'hash') and d.expires_at > pgmail.now()) then
    e := pgmail.read_email(p_tenant, b - array['scheduled_at', 'expires_at']);   -- a repetition of what was right then
  end if;
  if e.fault_code is not null then return e; end if;
  return pgmail.put_sealed(p_tenant, sealed, e);
end
$$;

CREATE FUNCTION pgmail.recall_v1(p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamp with time zone, p_by text, p_seen jsonb) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.record_act(p_tenant integer, p_action text, p_object text, p_reason text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.audit (tenant_id, actor, action, object, reason, source, application)
  values (p_tenant, pgmail.actor(), p_action, p_object, p_reason, pgmail.act_source(),
    nullif(current_setting('application_name', true), ''))
$$;

CREATE FUNCTION pgmail.recount() RETURNS TABLE(tenant_id integer, state text, n bigint)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select r.tenant_id,
    pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, pgmail.now()),
    count(*)
  from pgmail.recipient r
  left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
  left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
  left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
  group by 1, 2
$$;

CREATE FUNCTION pgmail.refuse(p_code text, p_field text, p_message text, p_status integer DEFAULT 422) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  raise exception using errcode = 'PM' || p_status, constraint = p_code, detail = p_field,
    message = case when p_field = '' then p_message else p_field || ': ' || p_message end;
end
$$;

CREATE FUNCTION pgmail.refuse_email(e pgmail.email, p_before text) RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if e.due_at is null then perform pgmail.refuse(e.fault_code, p_before || e.fault_field, e.fault_message, e.fault_status); end if;
  raise exception using errcode = 'PM' || e.fault_status, constraint = e.fault_code, detail = p_before || e.fault_field,
    message = p_before || e.fault_field || ': ' || e.fault_message, hint = 'Try again after ' || pgmail.iso_time(e.due_at)
      || ', or let it wait: "on_limit": "delay".';
end
$$;

CREATE FUNCTION pgmail.refuse_first(p_faults pgmail.email[]) RETURNS void
    LANGUAGE plpgsql
    AS $$
declare r record;
begin
  select x.* into r from (select generate_subscripts(p_faults, 1) - 1 as i, unnest(p_faults) as e) x
   where (x.e).fault_code is not null order by x.i limit 1;
  if found then
    perform pgmail.refuse_email(r.e, '/' || r.i);
  end if;
end
$$;

CREATE FUNCTION pgmail.register_relays_v1(p_names text[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  insert into pgmail.relay (name, changed_by)
  select x, 'worker' from (select distinct unnest(p_names) as x) u
  where not exists (select from pgmail.relay r where r.name = u.x) order by x
  on conflict do nothing;
  get diagnostics n = row_count;
  return n;
end
$$;

CREATE FUNCTION pgmail.relay_state_v1(p_name text, p_state text, p_reason text, p_seconds double precision DEFAULT NULL::double precision) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_at, changed_by)
  values (p_name, p_state, p_reason, pgmail.now() + p_seconds * interval '1 second', pgmail.now(), 'worker')
  on conflict (name) do update set state = excluded.state, reason = excluded.reason,
    blocked_until = excluded.blocked_until, changed_at = excluded.changed_at, changed_by = excluded.changed_by,
    up_since = case when excluded.state = 'up' and r.state <> 'up' and r.up_since is not null then pgmail.now() else r.up_since end
  where r.state <> 'paused' or r.changed_by = 'worker' or r.blocked_until <= pgmail.now()
$$;

CREATE FUNCTION pgmail.release(id uuid, reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.release_v1(p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_reason text DEFAULT NULL::text) RETURNS SETOF uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.remove_alert_rule(p_name text, p_reason text DEFAULT NULL::text, p_fleet boolean DEFAULT false) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.remove_alert_target(p_name text, p_reason text DEFAULT NULL::text, p_fleet boolean DEFAULT false) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); id_ uuid;
begin
  delete from pgmail.alert_target x where x.name = p_name and x.tenant_id is not distinct from t returning x.id into id_;
  if id_ is null then return false; end if;
  delete from pgmail.alert_delivery d where d.target_id = id_ and d.state = 'waiting';
  perform pgmail.record_act(t, 'alert.target.remove', p_name, p_reason);
  return true;
end
$$;

CREATE FUNCTION pgmail.remove_domain(p_domain text, p_reason text DEFAULT NULL::text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare d pgmail.sender_domain := pgmail.need_domain(p_domain);
begin
  delete from pgmail.sender_domain x where x.tenant_id = d.tenant_id and x.id = d.id;
  perform pgmail.record_act(d.tenant_id, 'domain.remove', d.domain, p_reason);
  return d.id;
end
$$;

CREATE FUNCTION pgmail.remove_hook(p_id uuid, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook := pgmail.need_hook(p_id);
begin
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  update pgmail.hook x set removed_at = pgmail.now(), enabled = false, reason = 'removed' where x.tenant_id = h.tenant_id and x.id = h.id;
  delete from pgmail.hook_secret x where x.tenant_id = h.tenant_id and x.hook_id = h.id;
  perform pgmail.record_act(h.tenant_id, 'webhook.remove', format('%s %s', h.id, split_part(h.url, '?', 1)), p_reason);
end
$$;

CREATE FUNCTION pgmail.remove_limit(p_scope text, p_name text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare named text := pgmail.limit_name(p_scope, p_name);
begin
  delete from pgmail.limits l where l.scope = p_scope and l.name = named;
  if not found then return false; end if;
  perform pgmail.record_act(null, 'limit.remove', p_scope || ' ' || named, null);
  return true;
end
$$;

CREATE FUNCTION pgmail.remove_quota(p_scope text, p_name text, p_tenant text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare x record;
begin
  if p_scope = 'fleet' then perform pgmail.refuse('not_allowed', '/scope', 'the fleet''s rule stays; set what it should not limit to none', 409); end if;
  if p_scope = 'key' and p_name ~ '^[0-9a-fA-F-]{36}$' then
    select q.tenant_id as tenant, q.name as named into x from pgmail.quota q
     where q.scope = 'key' and q.name = coalesce((select k.family::text from pgmail.api_key k where k.id::text = lower(p_name)), lower(p_name));
    if not found then return false; end if;   -- its key may have gone since
  else
    select * into x from pgmail.quota_target(p_scope, p_name, p_tenant);
  end if;
  delete from pgmail.quota q where q.tenant_id = x.tenant and q.scope = p_scope and q.name = x.named;
  if not found then return false; end if;
  delete from pgmail.quota_bucket b where b.tenant_id = x.tenant and b.scope = p_scope and b.name = x.named;
  if p_scope = 'stream' then delete from pgmail.quota_meter m where m.tenant_id = x.tenant and m.scope = 'stream' and m.name = x.named; end if;
  perform pgmail.record_act(x.tenant, 'quota.remove', concat_ws(' ', p_scope, nullif(x.named, '')), null);
  return true;
end
$_$;

CREATE FUNCTION pgmail.repair_lanes_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with gaps as materialized (
    select l.tenant_id, l.id, lead(l.tenant_id, 1, 2147483647) over w as to_tenant, lead(l.id, 1, 9223372036854775807) over w as to_id
    from pgmail.lane l where l.active
    window w as (order by l.tenant_id, l.id)
    union all   -- before the first
    select -2147483648, -9223372036854775808, coalesce(f.tenant_id, 2147483647), coalesce(f.id, 9223372036854775807)
    from (values (1)) one left join lateral (
      select l.tenant_id, l.id from pgmail.lane l where l.active order by l.tenant_id, l.id limit 1) f on true
  ), lost as materialized (
    select p.* from gaps g cross join lateral (
      with recursive present as (
        (select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q
         where (q.tenant_id, q.lane) > (g.tenant_id, g.id) and (q.tenant_id, q.lane) < (g.to_tenant, g.to_id)
         order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
        union all
        select x.* from present p, lateral (
          select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q
          where (q.tenant_id, q.lane) > (p.tenant_id, p.lane) and (q.tenant_id, q.lane) < (g.to_tenant, g.to_id)
          order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
      )
      select * from present) p
    where p.due_at <= pgmail.now()
  ), repaired as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select x.tenant_id, x.lane, m.stream, m.priority, r.site, x.due_at
    from lost x
    cross join lateral (select y.message_id from pgmail.queue y where y.tenant_id = x.tenant_id and y.id = x.id limit 1) q
    cross join lateral (select y.stream, y.priority from pgmail.message y
                        where y.tenant_id = x.tenant_id and y.id = q.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = x.tenant_id and y.id = x.id limit 1) r
    order by x.tenant_id, x.lane
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(), rewind_to = excluded.rewind_to
    returning 1
  )
  select count(*) into n from repaired;
  return n;
end
$$;

CREATE FUNCTION pgmail.replay_hook(p_id uuid, p_filter jsonb, p_after uuid DEFAULT NULL::uuid, p_most integer DEFAULT 5000, p_reason text DEFAULT NULL::text, OUT n integer, OUT next uuid) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook := pgmail.need_hook(p_id); s record;
begin
  if p_most is null or p_most not between 1 and 10000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 10,000'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select * into s from pgmail.replay_step(h, p_filter, p_after, p_most, false);
  n := s.n; next := case when s.looked = p_most then s.last end;
  if p_after is null then
    perform pgmail.record_act(h.tenant_id, 'webhook.replay', h.id::text, concat_ws(': ', coalesce(p_filter, '{}')::text, p_reason));
  end if;
end
$$;

CREATE FUNCTION pgmail.replay_step(h pgmail.hook, p_filter jsonb, p_after uuid, p_most integer, p_dry boolean, OUT n integer, OUT looked integer, OUT last uuid) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare k text; wanted text := coalesce(p_filter->>'outcome', 'failed');
begin
  if jsonb_typeof(p_filter) <> 'object' then perform pgmail.refuse('invalid_field', '/filter', 'must be an object'); end if;
  for k in select x from jsonb_object_keys(p_filter) x where x <> all ('{since,until,type,outcome,event}') loop
    perform pgmail.refuse('unknown_key', '/filter/' || left(k, 80), 'there is no such key');
  end loop;
  if wanted not in ('failed', 'delivered', 'all') then
    perform pgmail.refuse('invalid_field', '/filter/outcome', 'must be failed, delivered or all');
  end if;
  with look as materialized (
    select a.* from pgmail.hook_attempt a
    where a.tenant_id = h.tenant_id and a.hook_id = h.id and (p_after is null or a.id > p_after) order by a.id limit p_most
  ), again as materialized (
    select distinct on (a.event_id) a.* from look a
    where (p_filter->>'since' is null or a.event_at >= (p_filter->>'since')::timestamptz)
      and (p_filter->>'until' is null or a.event_at < (p_filter->>'until')::timestamptz)
      and (p_filter->>'type' is null or a.type = p_filter->>'type')
      and (p_filter->>'event' is null or a.event_id::text = p_filter->>'event')
      and (wanted = 'all' or (wanted = 'delivered' and a.outcome = 'delivered') or (wanted = 'failed' and a.outcome in ('failed', 'dropped')
        and not exists (select from pgmail.hook_attempt d where d.tenant_id = h.tenant_id and d.hook_id = h.id and d.event_id = a.event_id
                        and d.outcome = 'delivered')))
    order by a.event_id, a.id
  ), queued as (
    insert into pgmail.hook_queue as q (tenant_id, hook_id, event_id, email_id, recipient_id, type, at, replayed)
    select a.tenant_id, a.hook_id, a.event_id, a.email_id, a.recipient_id, a.type, a.event_at, true from again a where not p_dry order by a.event_id
    on conflict (tenant_id, hook_id, event_id) do update set due_at = least(q.due_at, excluded.due_at)
  )
  select (select count(*) from again), (select count(*) from look), (select l.id from look l order by l.id desc limit 1) into n, looked, last;
end
$$;

CREATE FUNCTION pgmail.replicas() RETURNS TABLE(name text, kind text, active boolean, lag_seconds double precision, kept_bytes numeric)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select s.slot_name::text, 'slot', s.active, null::float8, pg_wal_lsn_diff(pg_current_wal_lsn(), s.restart_lsn)
  from pg_replication_slots s where not pg_is_in_recovery()
  union all
  select coalesce(nullif(r.application_name, ''), r.pid::text), 'standby', true, extract(epoch from r.replay_lag)::float8, null
  from pg_stat_replication r
$$;

CREATE FUNCTION pgmail.reschedule(id uuid, at timestamp with time zone) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.rescue_leases(p_epochs bigint[]) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.rescue_v1(p_epoch bigint) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET lock_timeout TO '1s'
    AS $$
begin
  delete from pgmail.lost_worker l where l.lost_at < pgmail.now() - interval '1 day';
  with gone as (delete from pgmail.worker w where w.epoch = p_epoch returning w.epoch, w.host, w.pid, w.program, w.beat_at)
  insert into pgmail.lost_worker (epoch, host, pid, program, beat_at) select * from gone on conflict do nothing;
  delete from pgmail.permit p where p.epoch = p_epoch;
  return pgmail.rescue_leases(array[p_epoch]);
end
$$;

CREATE FUNCTION pgmail.resolve(id uuid, how text, reason text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); ids uuid[]; n integer;
begin
  select f.recipients into ids from pgmail.need_recipients(t, resolve.id) f;
  n := pgmail.resolve_ids(t, ids, how, reason);
  if n > 0 then perform pgmail.record_act(t, 'email.resolve', resolve.id::text, concat_ws(': ', how, reason)); end if;
  return n;
end
$$;

CREATE FUNCTION pgmail.resolve_all(how text, filter jsonb DEFAULT '{}'::jsonb, reason text DEFAULT NULL::text, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare t integer := pgmail.need_tenant(); n integer;
begin
  n := pgmail.resolve_ids(t, array(
    select d.recipient_id from pgmail.in_doubt(resolve_all.filter, least(greatest(coalesce(most, 1000), 0), 10000), null, null, true) d), how, reason);
  if n > 0 then
    perform pgmail.record_act(t, 'email.resolve', format('%s in doubt by filter %s', n, resolve_all.filter), concat_ws(': ', how, reason));
  end if;
  return n;
end
$$;

CREATE FUNCTION pgmail.resolve_ids(p_tenant integer, p_ids uuid[], p_how text, p_reason text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer; words text;
begin
  if p_how is null or p_how not in ('assume_sent', 'resend') then
    perform pgmail.refuse('invalid_field', '/how', 'must be assume_sent or resend');
  end if;
  words := concat_ws(': ', case p_how when 'resend' then 'resent by ' else 'assumed sent by ' end || pgmail.actor(), p_reason);
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.in_doubt and q.leased_by is null
    order by q.id for update skip locked
  ), facts as materialized (
    select q.id, q.message_id, q.lane, m.stream, m.priority, r.site, coalesce(e.relay, q.begun_relay) as relay, e.remote_host,
      greatest(e.attempt, q.attempts) as attempt
    from pgmail.queue q
    cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = q.id limit 1) r
    cross join lateral (
      select x.stream, x.priority from pgmail.message x where x.tenant_id = p_tenant and x.id = q.message_id limit 1) m
    left join lateral (
      select x.attempt, x.relay, x.remote_host from pgmail.event x
      where x.tenant_id = p_tenant and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
    where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), gone as (
    delete from pgmail.queue q
    where p_how = 'assume_sent' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason, relay, remote_host)
    select p_tenant, f.id, f.message_id, 'sent', pgmail.now(), f.stream, f.site, f.attempt, words, f.relay, f.remote_host
    from facts f where p_how = 'assume_sent'
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select p_tenant, f.stream, 'sent', count(*), array[f.lane], array[count(*)] from facts f where p_how = 'assume_sent' group by f.stream, f.lane
  ), back as (
    update pgmail.queue q set due_at = pgmail.now(), later = false, wait = null, hold_reason = null, held_due_at = null, in_doubt = false
    where p_how = 'resend' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select distinct p_tenant, f.lane, f.stream, f.priority, f.site, pgmail.now() from facts f where p_how = 'resend'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, site, relay, remote_host, detail)
    select p_tenant, f.id, f.message_id, case p_how when 'resend' then 'email.queued' else 'email.sent' end,
      case p_how when 'assume_sent' then f.attempt end, f.site, f.relay, f.remote_host, words
    from facts f
  )
  select count(*) into n from facts;
  return n;
end
$$;

CREATE FUNCTION pgmail.restore_bound(p_since timestamp with time zone) RETURNS uuid
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select pgmail.uuid_floor(coalesce(p_since, (select coalesce(f.lost_until, f.noticed_at) + interval '2 seconds' from pgmail.fence f)))
$$;

CREATE FUNCTION pgmail.restore_doubts(p_since timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS TABLE(tenant_id integer, tenant text, recipients bigint, leased bigint, oldest timestamp with time zone, newest timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select q.tenant_id, t.name, count(*) filter (where q.leased_by is null), count(*) filter (where q.leased_by is not null),
    pgmail.uuid_time(min(q.id::text)::uuid), pgmail.uuid_time(max(q.id::text)::uuid)
  from pgmail.queue q join pgmail.tenant t on t.id = q.tenant_id cross join pgmail.fence f
  where (q.id < pgmail.restore_bound(p_since) and q.due_at <= f.noticed_at)
    or q.leased_by is not null or (q.in_doubt and q.hold_reason = pgmail.lease_doubt())
  group by q.tenant_id, t.name order by t.name
$$;

CREATE FUNCTION pgmail.resume_mail(p_scope text, p_name text, p_reason text DEFAULT NULL::text, p_fleet boolean DEFAULT false) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); named text; other pgmail.pause;
begin
  -- A stream that has gone since is no reason to keep its pause.
  named := case p_scope when 'stream' then p_name else pgmail.pause_target(t, p_scope, p_name) end;
  delete from pgmail.pause p where p.tenant_id is not distinct from t and p.scope = p_scope and p.name = named;
  if not found then
    select * into other from pgmail.pause p where p.tenant_id is null and p.scope = p_scope and p.name = named;
    perform pgmail.refuse('not_paused', '/' || p_scope, case when t is not null and other.name is not null
      then format('%s %s is paused for the whole fleet, by %s: %s', p_scope, named, other.paused_by, other.reason)
      else format('%s %s is not paused', p_scope, left(named, 300)) end, 404);
  end if;
  perform pgmail.record_act(t, p_scope || '.resume', named, p_reason);
  return named;
end
$$;

CREATE FUNCTION pgmail.resume_relay(p_name text, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.relay set state = 'up', reason = null, blocked_until = null, changed_at = pgmail.now(), changed_by = pgmail.actor(),
    up_since = case when state <> 'up' and up_since is not null then pgmail.now() else up_since end
   where name = p_name;
  if not found then perform pgmail.refuse('unknown_relay', '/relay', format('no relay is named %L', p_name), 404); end if;
  perform pgmail.record_act(null, 'relay.resume', p_name, p_reason);
end
$$;

CREATE FUNCTION pgmail.resume_tenant(p_name text, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_named(p_name);
begin
  delete from pgmail.pause p where p.tenant_id = t and p.scope = 'tenant';
  if not found then perform pgmail.refuse('not_suspended', '/name', format('the tenant %s is not suspended', p_name), 404); end if;
  perform pgmail.record_act(t, 'tenant.resume', p_name, p_reason);
end
$$;

CREATE FUNCTION pgmail.retention_state(OUT content_days integer, OUT record_days integer, OUT changed_at timestamp with time zone, OUT changed_by text, OUT oldest_content timestamp with time zone, OUT oldest_record timestamp with time zone, OUT overdue integer, OUT kept bigint) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare base text; days integer; n bigint;
begin
  select r.content_days, r.record_days, r.changed_at, r.changed_by into content_days, record_days, changed_at, changed_by from pgmail.retention r;
  select min(p.since) into oldest_content from pgmail.weekly_partitions('message') p;
  select min(p.since) into oldest_record from pgmail.weekly_partitions('recipient') p;
  overdue := 0; kept := 0;
  foreach base in array pgmail.partitioned_tables() loop
    days := pgmail.kept_days(base);
    continue when days is null;
    overdue := overdue + (select count(*) from pgmail.weekly_partitions(base) p where p.until + (days + 1) * interval '24 hours' <= pgmail.now());
    execute format('select count(*) from (select from pgmail.%I where %I < %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - days * interval '24 hours')) into n;
    kept := kept + n;
  end loop;
end
$$;

CREATE FUNCTION pgmail.retry(recipient_id uuid, reason text DEFAULT NULL::text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.retry_all(filter jsonb DEFAULT '{}'::jsonb, reason text DEFAULT NULL::text, most integer DEFAULT 1000) RETURNS integer
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select coalesce(sum(pgmail.retry(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

CREATE FUNCTION pgmail.revoke_key(p_id uuid, p_reason text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare k pgmail.api_key;
begin
  begin
    k := pgmail.need_key(p_id);
  exception when sqlstate 'PM404' then
    return false;
  end;
  update pgmail.api_key x set revoked_at = pgmail.now() where x.tenant_id = k.tenant_id and x.id = k.id;
  perform pgmail.record_act(k.tenant_id, 'key.revoke', p_id::text, p_reason);
  return true;
end
$$;

CREATE FUNCTION pgmail.revoke_tenant(p_role name, p_reason text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  select r.tenant_id into t from pgmail.database_role r where r.role_name = p_role for update;
  if t is null then return false; end if;
  update pgmail.database_role r set tenant_id = null where r.role_name = p_role;
  perform pgmail.record_act(t, 'role.revoke', p_role::text, p_reason);
  return true;
end
$$;

CREATE FUNCTION pgmail.rewrap_data_key(p_tenant integer, p_id integer, p_was bytea, p_wrapped bytea, p_kek text, p_reason text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
begin
  if octet_length(p_wrapped) is distinct from 60 or p_kek is null or p_kek !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
    perform pgmail.refuse('invalid_data_key', '', 'a data key is 32 octets, wrapped, and names the key that it is wrapped by');
  end if;
  update pgmail.data_key d set wrapped = p_wrapped, kek = p_kek, wrapped_at = pgmail.now()
   where d.tenant_id = p_tenant and d.id = p_id and d.wrapped = p_was;
  if not found then return false; end if;
  perform pgmail.record_act(p_tenant, 'data_key.rewrap', format('%s by %s', p_id, p_kek), p_reason);
  return true;
end
$_$;

CREATE FUNCTION pgmail.rollup_v1(p_most integer DEFAULT 20000, p_keys integer DEFAULT 500, p_texts integer DEFAULT 200) RETURNS TABLE(events integer, more boolean)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_bitmapscan TO 'off'
    SET enable_nestloop TO 'off'
    SET enable_sort TO 'off'
    SET work_mem TO '32MB'
    SET max_parallel_workers_per_gather TO '0'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
  c pgmail.insight_cursor; from_xid xid8; from_id uuid; read_ integer; last_xid xid8; last_id uuid; now_ timestamptz := pgmail.now();
  nobody constant uuid := '00000000-0000-0000-0000-000000000000';
  wrong_ constant text[] := '{email.bounced,email.deferred,email.failed,email.in_doubt}';
  counted constant text[] := wrong_ || '{email.sent,email.delayed,email.suppressed,email.expired,email.cancelled,email.held}'::text[];
begin
  if (select i.indisvalid from pg_index i where i.indexrelid = to_regclass('pgmail.event_feed')) is not true then return; end if;
  select x.* into c from pgmail.insight_cursor x for update skip locked;
  if not found then return; end if;
  if pg_snapshot_xmax(c.seen) > pg_snapshot_xmax(pg_current_snapshot()) then
    c.seen := pg_current_snapshot(); c.upto := null; c.since := pgmail.uuid_floor(clock_timestamp());
  end if;
  if c.upto is null then
    c.upto := pg_current_snapshot(); c.upto_at := now_; c.at_xid := '0'; c.at_id := nobody;
  end if;
  -- One lower bound: of two an index may begin at the wider one, and walk over all events that are kept.
  from_xid := greatest(c.at_xid, pg_snapshot_xmax(c.seen)); from_id := case when c.at_xid >= from_xid then c.at_id else nobody end;

  with told as materialized (   -- all that is new, that which no report counts too, without a kind: it moves the cursor
    select e.xid, e.id, e.tenant_id, e.message_id, e.at, coalesce(m.stream, '(unknown)') as stream, coalesce(e.site, case when e.type = any (counted) then (
        select x.site from pgmail.recipient x where x.tenant_id = e.tenant_id and x.id = e.recipient_id limit 1) end, '(unknown)') as site,
      e.relay, m.template || coalesce('@' || m.template_version, '') as template, m.tags,
      case when e.type = any (counted) and e.id >= c.since then pgmail.figure_of(e.type, e.detail) end as kind,
      case when e.type = 'email.in_doubt' then 'in_doubt' when e.type = any (wrong_) then left(coalesce(nullif(split_part(e.detail, ': ', 1), ''), 'unknown'), 100) end as reason,
      case when e.type = 'email.sent' then pgmail.took_bucket(coalesce(m.scheduled_at, m.created_at), e.at) end as bucket,
      e.code, e.enhanced, case when e.type = any (wrong_) then coalesce(nullif(e.reply, ''), e.detail, '') end as said,
      case when e.type = any (wrong_) then (
        select x.address from pgmail.recipient x where x.tenant_id = e.tenant_id and x.id = e.recipient_id limit 1) end as address
    from (
      (select n.* from (select x from pg_snapshot_xip(c.seen) x where x >= c.at_xid order by x offset 0) open_(xid)
       cross join lateral (
         select y.tenant_id, y.recipient_id, y.id, y.message_id, y.at, y.xid, y.type, y.code, y.enhanced, y.reply, y.site, y.relay, y.detail
         from pgmail.event y where y.xid = open_.xid and y.id > case when open_.xid = c.at_xid then c.at_id else nobody end
         order by y.id limit p_most) n
       where pg_visible_in_snapshot(n.xid, c.upto))
      union all
      (select y.tenant_id, y.recipient_id, y.id, y.message_id, y.at, y.xid, y.type, y.code, y.enhanced, y.reply, y.site, y.relay, y.detail
       from pgmail.event y
       where (y.xid, y.id) > (from_xid, from_id) and y.xid < pg_snapshot_xmax(c.upto)
         and pg_visible_in_snapshot(y.xid, c.upto)
       order by y.xid, y.id limit p_most)
      limit p_most) e
    left join lateral (
      select x.stream, x.template, x.template_version, x.tags, x.scheduled_at, x.created_at from pgmail.message x
      where e.type = any (counted) and x.tenant_id = e.tenant_id and x.id = e.message_id limit 1) m on true
  ), facts as materialized (   -- many mails are alike: added up before they are taken apart by dimension
    select t.tenant_id, date_bin('1 minute', t.at, '2000-01-01Z') as at, t.kind, t.stream, t.site, t.relay, t.template, t.tags, t.reason, t.bucket,
      count(*) as n
    from told t where t.kind is not null
    group by 1, 2, 3, 4, 5, 6, 7, 8, 9, 10
  ), lines as materialized (
    select f.tenant_id, d.dim, left(d.key, 200) as key, f.at, k.kind, k.bucket, sum(f.n) as n
    from facts f
    left join pgmail.reply_reason y on y.name = f.reason
    cross join lateral (
      select v.* from (values ('stream', f.stream), ('site', f.site), ('relay', f.relay), ('template', f.template),
        ('reason', case when f.kind in ('bounced', 'deferred') then coalesce(y.class, 'other') || '/' || f.reason end)) v(dim, key)
      where v.key is not null
      union all
      select 'tag', t.key || '=' || t.value from jsonb_each_text(f.tags) t) d
    cross join lateral (
      select case f.kind when 'bounced' then 'bounced_' || coalesce(y.class, 'other') else f.kind end as kind, 0::smallint as bucket
      union all select 'took', f.bucket where f.kind = 'sent' and f.bucket is not null) k
    group by 1, 2, 3, 4, 5, 6
  ), fresh_keys as materialized (
    select k.*, row_number() over (partition by k.tenant_id, k.dim, k.day order by k.key) as place
    from (select distinct l.tenant_id, l.dim, date_trunc('day', l.at, 'UTC') as day, l.key from lines l) k
    left join lateral (
      select true as there from pgmail.rollup r
      where r.tenant_id = k.tenant_id and r.dim = k.dim and r.grain = 'day' and r.at = k.day and r.key = k.key limit 1) known on true
    where known.there is null
  ), known_keys as materialized (
    select f.tenant_id, f.dim, f.day, (
      select count(distinct r.key) from pgmail.rollup r
      where r.tenant_id = f.tenant_id and r.dim = f.dim and r.grain = 'day' and r.at = f.day and r.key <> '(other)') as n
    from (select distinct x.tenant_id, x.dim, x.day from fresh_keys x) f
  ), named as (
    select l.tenant_id, l.dim, l.at, l.kind, l.bucket, l.n, case when f.place + w.n > p_keys then '(other)' else l.key end as key
    from lines l
    left join fresh_keys f on f.tenant_id = l.tenant_id and f.dim = l.dim and f.key = l.key and f.day = date_trunc('day', l.at, 'UTC')
    left join known_keys w on w.tenant_id = f.tenant_id and w.dim = f.dim and w.day = f.day
  ), rolled as (
    insert into pgmail.rollup as r (tenant_id, dim, grain, at, key, kind, bucket, n)
    select x.tenant_id, x.dim, g.grain, date_bin(g.width, x.at, '2000-01-01Z') as begins, x.key, x.kind, x.bucket, sum(x.n)
    from named x cross join (values ('minute', interval '1 minute'), ('quarter', interval '15 minutes'), ('hour', interval '1 hour'), ('day', interval '1 day')) g(grain, width)
    where g.grain in ('hour', 'day') or x.dim = 'stream' or (g.grain = 'minute' and x.dim in ('site', 'relay') and x.kind <> 'took')
    group by 1, 2, 3, 4, 5, 6, 7
    on conflict (tenant_id, dim, grain, at, key, kind, bucket) do update set n = r.n + excluded.n
  ), wrong as materialized (
    select t.*, coalesce(y.class, 'other') as class,
      -- of whom it speaks by name: the others' texts are alike
      case when strpos(lower(t.said), lower(split_part(t.address, '@', 1))) > 0 then t.address else '' end as named
    from told t left join pgmail.reply_reason y on y.name = t.reason where t.said is not null and t.kind is not null
  ), texts as materialized (   -- an expensive look at each text, so a bound to their number
    select x.said, x.named, case when x.place <= p_texts then pgmail.cause_text(x.said, x.named) else '(other)' end as text
    from (select w.said, w.named, row_number() over (order by count(*) desc, w.said, w.named) as place from wrong w group by 1, 2) x
  ), caused as materialized (
    select w.tenant_id, date_trunc('hour', w.at, 'UTC') as at, w.kind, w.class, w.reason, coalesce(w.code, 0) as code,
      coalesce(w.enhanced, '') as enhanced, x.text, count(*) as n, max(w.at) as last_at,
      pgmail.newest_three(array_agg(w.message_id order by w.at desc, w.message_id desc)) as examples
    from wrong w join texts x on x.said = w.said and x.named = w.named
    group by 1, 2, 3, 4, 5, 6, 7, 8
  ), fresh_causes as materialized (
    select k.*, row_number() over (partition by k.tenant_id, k.at order by k.n desc, k.text) as place from caused k
    left join lateral (
      select true as there from pgmail.cause y where y.tenant_id = k.tenant_id and y.at = k.at and y.kind = k.kind and y.class = k.class
        and y.reason = k.reason and y.code = k.code and y.enhanced = k.enhanced and y.text = k.text limit 1) known on true
    where k.text <> '(other)' and known.there is null
  ), known_causes as materialized (
    select f.tenant_id, f.at, (select count(*) from pgmail.cause y where y.tenant_id = f.tenant_id and y.at = f.at and y.text <> '(other)') as n
    from (select distinct x.tenant_id, x.at from fresh_causes x) f
  ), kept as (
    insert into pgmail.cause as y (tenant_id, at, kind, class, reason, code, enhanced, text, n, last_at, examples)
    select z.tenant_id, z.at, z.kind, z.class, case when z.full_ then '(other)' else z.reason end, case when z.full_ then 0 else z.code end,
      case when z.full_ then '' else z.enhanced end, case when z.full_ then '(other)' else z.text end, sum(z.n), max(z.last_at),
      pgmail.newest_three(array_agg(z.examples[1] order by z.last_at desc))
    from (
      select k.*, f.place + w.n > p_texts is true as full_ from caused k
      left join fresh_causes f on f.tenant_id = k.tenant_id and f.at = k.at and f.kind = k.kind and f.class = k.class and f.reason = k.reason
        and f.code = k.code and f.enhanced = k.enhanced and f.text = k.text
      left join known_causes w on w.tenant_id = f.tenant_id and w.at = f.at) z
    where z.full_
    group by 1, 2, 3, 4, 5, 6, 7, 8
    union all
    select k.tenant_id, k.at, k.kind, k.class, k.reason, k.code, k.enhanced, k.text, k.n, k.last_at, k.examples from caused k
    left join fresh_causes f on f.tenant_id = k.tenant_id and f.at = k.at and f.kind = k.kind and f.class = k.class and f.reason = k.reason
      and f.code = k.code and f.enhanced = k.enhanced and f.text = k.text
    left join known_causes w on w.tenant_id = f.tenant_id and w.at = f.at
    where f.place + w.n > p_texts is not true
    on conflict (tenant_id, at, kind, class, reason, code, enhanced, text) do update
      set n = y.n + excluded.n, last_at = greatest(y.last_at, excluded.last_at), examples = pgmail.newest_three(excluded.examples || y.examples)
  )
  select n.n, l.xid, l.id into read_, last_xid, last_id
  from (select count(*) as n from told) n left join (select x.xid, x.id from told x order by x.xid desc, x.id desc limit 1) l on true;

  more := read_ = p_most;
  update pgmail.insight_cursor x set since = c.since, seen = case when more then c.seen else c.upto end,
    upto = case when more then c.upto end, at_xid = case when more then last_xid end, at_id = case when more then last_id end,
    upto_at = c.upto_at, rolled_at = case when more then x.rolled_at else c.upto_at end;
  events := read_;
  return next;
end
$$;

CREATE FUNCTION pgmail.rotate_hook(p_id uuid, p_key integer, p_sealed bytea, p_overlap interval, p_reason text DEFAULT NULL::text) RETURNS timestamp with time zone
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook := pgmail.need_hook(p_id); newest integer; ends timestamptz := pgmail.now() + p_overlap;
begin
  if p_overlap is null or p_overlap not between interval '0' and interval '30 days' then
    perform pgmail.refuse('invalid_field', '/overlap', 'must be 0 to 30 days');
  end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  perform pgmail.check_hook_secret(h.tenant_id, p_key, p_sealed);
  perform from pgmail.hook x where x.tenant_id = h.tenant_id and x.id = h.id for update;
  select max(s.id) into newest from pgmail.hook_secret s where s.tenant_id = h.tenant_id and s.hook_id = h.id;
  update pgmail.hook_secret s set ends_at = case when s.id = newest then ends else least(s.ends_at, pgmail.now()) end
   where s.tenant_id = h.tenant_id and s.hook_id = h.id and coalesce(s.ends_at, 'infinity') > pgmail.now();
  insert into pgmail.hook_secret (tenant_id, hook_id, id, key_id, sealed, created_by)
  values (h.tenant_id, h.id, coalesce(newest, 0) + 1, p_key, p_sealed, pgmail.actor());
  perform pgmail.record_act(h.tenant_id, 'webhook.rotate', h.id::text, concat_ws(': ', 'the old secret ends ' || ends::text, p_reason));
  return ends;
end
$$;

CREATE FUNCTION pgmail.rotate_key(p_id uuid, p_hint text, p_hash bytea, p_overlap interval, p_reason text DEFAULT NULL::text) RETURNS TABLE(id uuid, name text, scopes text[], test boolean, streams text[], from_domains text[], networks text[], expires_at timestamp with time zone, old_expires_at timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
#variable_conflict use_column
declare k pgmail.api_key := pgmail.need_key(p_id); maker pgmail.api_key := pgmail.acting_admin(); made uuid; ends timestamptz;
begin
  if k.replaced_by is not null then
    perform pgmail.refuse('already_rotated', '/id', format('the key %s has replaced it', k.replaced_by), 409);
  end if;
  if p_overlap is null or p_overlap not between interval '0' and interval '366 days' then
    perform pgmail.refuse('invalid_field', '/overlap', 'must be from 0 to 366 days');
  end if;
  if octet_length(p_hash) is distinct from 32 or starts_with(p_hint, 'pgm_test_') is distinct from k.test then
    perform pgmail.refuse('invalid_key', '', 'a key is stored by its SHA-256 and its first characters; those for tests begin with pgm_test_');
  end if;
  ends := least(pgmail.now() + (k.expires_at - k.created_at), maker.expires_at);
  insert into pgmail.api_key as a (tenant_id, name, hint, hash, created_by, scopes, test, streams, from_domains, networks, expires_at, family)
  values (k.tenant_id, k.name, p_hint, p_hash, pgmail.actor(), k.scopes, k.test, k.streams, k.from_domains, k.networks, ends,
    coalesce(k.family, k.id))
  returning a.id into made;
  update pgmail.api_key x set replaced_by = made, expires_at = least(x.expires_at, pgmail.now() + p_overlap)
   where x.tenant_id = k.tenant_id and x.id = k.id
  returning x.expires_at into k.expires_at;
  perform pgmail.record_act(k.tenant_id, 'key.rotate', k.id::text,
    concat_ws(': ', format('%s follows it, it ends %s', made, k.expires_at), p_reason));
  return query select made, k.name, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[], ends, k.expires_at;
end
$$;

CREATE FUNCTION pgmail.rows_to_keep(p_base text, p_part text, p_low uuid, p_high uuid) RETURNS tid[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET enable_hashjoin TO 'off'
    SET enable_mergejoin TO 'off'
    SET jit TO 'off'
    AS $_$
declare
  rows_most constant integer := 2000; looks constant integer := 20000; bytes_most constant bigint := 32 * 1024 * 1024;
  tenants integer[]; messages uuid[]; people uuid[]; places tid[]; bytes bigint;
begin
  select array_agg(n.tenant_id), array_agg(n.message_id), array_agg(n.recipient_id) into tenants, messages, people
    from pgmail.needed_recipients(p_low, p_high, looks + 1) n;
  if cardinality(people) > looks then return null; end if;
  -- The size is that on disk, read without the contents: a file stored elsewhere in the table is not fetched for it.
  execute format('select array_agg(y.place), sum(y.bytes) from (select x.ctid as place, '
      || case p_base when 'message' then 'pg_column_size(x.content)' when 'attachment' then 'pg_column_size(x.body)' else '0' end || ' as bytes from '
      || case p_base
        when 'message' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.m'
        when 'attachment' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.message_id = n.m'
        when 'tag' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.message g on g.tenant_id = n.t and g.id = n.m
            cross join lateral jsonb_each_text(g.tags) k join pgmail.%1$I x on x.tenant_id = n.t and x.name = k.key and x.value = k.value and x.message_id = n.m'
        when 'recipient' then 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.r'
        else 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.recipient_id = n.r' end
      || ' limit %2$s) y', p_part, rows_most + 1)
    using tenants, messages, people into places, bytes;
  if cardinality(places) > rows_most or bytes > bytes_most then return null; end if;
  return coalesce(places, '{}');
end
$_$;

CREATE FUNCTION pgmail.save_asset(p_name text, p_filename text, p_content_type text, p_body bytea) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare t integer := pgmail.need_tenant();
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if octet_length(p_body) > 26214400 then perform pgmail.refuse('too_large', '/content', 'more than 26,214,400 octets', 413); end if;
  if pgmail.has_control(p_filename) or pgmail.has_control(p_content_type) or pgmail.has_bidi(p_filename) then
    perform pgmail.refuse('invalid_attachment', '/filename', 'has a control character, or a mark that turns the direction of the text');
  end if;
  insert into pgmail.asset as a (tenant_id, name, filename, content_type, size_bytes, body, created_by)
  values (t, p_name, p_filename, p_content_type, octet_length(p_body), p_body, pgmail.actor())
  on conflict (tenant_id, name) do update set filename = excluded.filename, content_type = excluded.content_type,
    size_bytes = excluded.size_bytes, body = excluded.body, created_at = pgmail.now(), created_by = excluded.created_by;
  perform pgmail.record_act(t, 'asset.save', p_name, null);
end
$_$;

CREATE FUNCTION pgmail.save_stream(p_name text, p_settings jsonb) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare t integer := pgmail.need_tenant(); s pgmail.stream; k text; named text[]; weighed real[]; broken text; field text;
begin
  if p_name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of a-z 0-9 _ -, led by a letter or digit');
  end if;
  if jsonb_typeof(p_settings) is distinct from 'object' then
    perform pgmail.refuse('invalid_body', '', 'the settings of a stream are a JSON object');
  end if;
  select min(x collate "C") into k from jsonb_object_keys(p_settings) x
   where x <> all (array['priority', 'relay', 'on_doubt', 'trace', 'retry_base_seconds', 'retry_factor', 'retry_cap_seconds',
     'retry_jitter', 'max_attempts', 'max_age_seconds', 'max_queued', 'keep_content_days', 'suppress_bounced', 'seal']);
  if k is not null then perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(k), 'no such key'); end if;
  if p_settings ? 'relay' then
    select x.names, x.weights into named, weighed from pgmail.read_relays(p_settings->'relay') x;
  end if;
  insert into pgmail.stream (tenant_id, name) values (t, p_name) on conflict do nothing;
  select * into s from pgmail.stream x where x.tenant_id = t and x.name = p_name for update;
  begin
    s := jsonb_populate_record(s, p_settings - 'relay');
    if named is not null then
      s.relay := named[1];
      s.relays := case when cardinality(named) > 1 then named end;
      s.relay_weights := case when cardinality(named) > 1 then weighed end;
    end if;
    update pgmail.stream x set priority = s.priority, relay = s.relay, relays = s.relays, relay_weights = s.relay_weights, on_doubt = s.on_doubt, trace = s.trace,
      retry_base_seconds = s.retry_base_seconds, retry_factor = s.retry_factor, retry_cap_seconds = s.retry_cap_seconds,
      retry_jitter = s.retry_jitter, max_attempts = s.max_attempts, max_age_seconds = s.max_age_seconds, max_queued = s.max_queued,
      keep_content_days = s.keep_content_days, suppress_bounced = s.suppress_bounced, seal = s.seal
    where x.tenant_id = t and x.name = p_name;
  exception
    when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range then
      get stacked diagnostics broken = constraint_name;
      field := substring(broken from '^stream_(.+)_[a-z]+$');
      if field is null or not p_settings ? field then
        select coalesce(min(x), 'name') into field from jsonb_object_keys(p_settings) x;
      end if;
      -- The constraint in words: the words that it allows, or its comparison.
      perform pgmail.refuse('invalid_stream', '/' || field, coalesce((
        select case when d.def like '%ARRAY[%'
          then 'must be one of ' || (select string_agg(w[1], ', ') from regexp_matches(d.def, '''([a-z_]+)''', 'g') w)
          else 'must be so that ' || lower(regexp_replace(d.def, '^CHECK |::double precision|[()]', '', 'g')) end
        from pg_constraint c, lateral (select pg_get_constraintdef(c.oid)) d(def)
        where c.conrelid = 'pgmail.stream'::regclass and c.conname = broken), sqlerrm));
  end;
  perform pgmail.record_act(t, 'stream.save', p_name, p_settings::text);
end
$_$;

CREATE FUNCTION pgmail.save_template(p_name text, p_subject text, p_text text, p_html text, p_required text[], p_depends jsonb, p_publish boolean) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare t integer := pgmail.need_tenant(); v integer;
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if p_text is null and p_html is null then perform pgmail.refuse('missing_field', '/text', 'text or html is required'); end if;
  if octet_length(p_subject) > 16384 then perform pgmail.refuse('too_large', '/subject', 'more than 16,384 octets', 413); end if;
  if octet_length(p_text) > 1048576 then perform pgmail.refuse('too_large', '/text', 'more than 1,048,576 octets', 413); end if;
  if octet_length(p_html) > 1048576 then perform pgmail.refuse('too_large', '/html', 'more than 1,048,576 octets', 413); end if;
  -- Two people saving at once get two versions, not a fault.
  perform pg_advisory_xact_lock(hashtextextended('pgmail.template/' || t || '/' || p_name, 0));
  select coalesce(max(x.version), 0) + 1 into v from pgmail.template x where x.tenant_id = t and x.name = p_name;
  insert into pgmail.template (tenant_id, name, version, state, subject, body_text, body_html, required, depends, created_by, published_at)
  values (t, p_name, v, case when p_publish then 'published' else 'draft' end, p_subject, p_text, p_html,
    p_required, p_depends, pgmail.actor(), case when p_publish then pgmail.now() end);
  perform pgmail.record_act(t, 'template.save', p_name || ' v' || v, case when p_publish then 'published' end);
  return v;
end
$_$;

CREATE FUNCTION pgmail.saw_certificate_v1(p_name text, p_place text, p_ends_at timestamp with time zone) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.certificate (name, place, ends_at) values (left(p_name, 300), left(p_place, 300), p_ends_at)
  on conflict (name) do update set place = excluded.place, ends_at = excluded.ends_at, seen_at = pgmail.now(), unseen_since = null, answer = null
$$;

CREATE FUNCTION pgmail.seal_state_v1(OUT tenant integer, OUT now timestamp with time zone, OUT streams jsonb, OUT keys jsonb) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  tenant := pgmail.need_tenant(); now := clock_timestamp();
  select coalesce(jsonb_object_agg(s.name, s.seal), '{}') into streams from pgmail.stream s where s.tenant_id = tenant and s.seal <> 'off';
  -- Those of a tenant that seals nothing are not needed.
  select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'kek', d.kek, 'wrapped', encode(d.wrapped, 'base64')) order by d.id), '[]')
    into keys from pgmail.data_key d where d.tenant_id = tenant;
end
$$;

CREATE FUNCTION pgmail.sealed_elsewhere_v1(p_mine text[]) RETURNS SETOF integer
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare others text[];
begin
  select array_agg(distinct k.kek) into others from pgmail.worker_key k join pgmail.worker w on w.epoch = k.epoch
   where k.kek <> all (p_mine || ''::text);
  if others is null then return; end if;
  return query
  select d.tenant_id from (
    select distinct on (x.tenant_id) x.tenant_id, x.kek from pgmail.data_key x order by x.tenant_id, x.id desc) d
  where d.kek = any (others);
end
$$;

CREATE FUNCTION pgmail.sealed_wait(p_tenant integer, p_key integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select format('it is sealed with the key %L, which no running worker has (PGMAIL_SEAL_KEYS)', d.kek)
  from pgmail.data_key d
  where d.tenant_id = p_tenant and d.id = p_key
    and exists (select from pgmail.worker w where w.program = 'worker')
    and not exists (
      select from pgmail.worker w where w.program = 'worker' and (
        not exists (select from pgmail.worker_key k where k.epoch = w.epoch)
        or exists (select from pgmail.worker_key k where k.epoch = w.epoch and k.kek = d.kek)))
$$;

CREATE FUNCTION pgmail.secure_next(p_after text DEFAULT ''::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare c record;
begin
  for c in select x.oid, x.relname from pg_class x
           where x.relnamespace = 'pgmail'::regnamespace and x.relkind in ('r', 'p') and x.relname <> 'alembic_version' and x.relname::text > p_after
           order by x.relname::text loop
    if pgmail.secure_table(c.oid) then return c.relname; end if;
  end loop;
  return null;
end
$$;

CREATE FUNCTION pgmail.secure_table(p_table regclass) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare c pg_class; named text; good boolean;
begin
  select x.* into strict c from pg_class x where x.oid = p_table;
  select p.polname, p.polroles = array[c.relowner] and p.polcmd = '*' and p.polpermissive
      and pg_get_expr(p.polqual, p.polrelid) = 'true' and pg_get_expr(p.polwithcheck, p.polrelid) = 'true'
    into named, good from pg_policy p where p.polrelid = p_table and p.polname = 'owner';
  if c.relrowsecurity and c.relforcerowsecurity and good then return false; end if;
  if not c.relrowsecurity then execute format('alter table %s enable row level security', p_table); end if;
  if not c.relforcerowsecurity then execute format('alter table %s force row level security', p_table); end if;
  if named is not null and not good then execute format('drop policy owner on %s', p_table); end if;
  if good is not true then execute format('create policy owner on %s to %I using (true) with check (true)', p_table, pg_get_userbyid(c.relowner)); end if;
  return true;
end
$$;

CREATE FUNCTION pgmail.sees_alert(p_caller integer, p_tenant integer, p_kind text) RETURNS boolean
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select case when p_tenant is not null then p_tenant = p_caller
    else (select count(*) from pgmail.tenant) = 1 or coalesce((select k.public from pgmail.alert_kinds() k where k.kind = p_kind), false) end
$$;

CREATE FUNCTION pgmail.send(email jsonb) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET work_mem TO '256MB'
    AS $$
declare
  t integer; key_ uuid; e pgmail.email; p pgmail.person; now_ timestamptz := pgmail.now(); site_ text; lane_ bigint; active_ boolean; asleep_ boolean;
  gone boolean; closed_ boolean; message_ uuid; recipient_ uuid; held uuid; done record;
begin
  -- as current_tenant and current_key say, without their price
  select case when r.carries_tenant then nullif(current_setting('pgmail.tenant', true), '')::integer else r.tenant_id end,
      case when r.carries_tenant then nullif(current_setting('pgmail.key', true), '')::uuid end
    into t, key_ from pgmail.database_role r where r.role_name = session_user;
  if t is null then t := pgmail.need_tenant(); end if;

  e := pgmail.read_plain(t, email);
  if e.sender is null then
    e := pgmail.read_sealed(t, email);
    if e.fault_code is not null then perform pgmail.refuse(e.fault_code, e.fault_field, e.fault_message, e.fault_status); end if;
  end if;

  -- One recipient and nothing beside the texts, as most mail is: what store_emails does, in as few statements as it takes.
  if cardinality(e.people) = 1 and e.max_queued is null and e.attachments is null and e.tags is null and e.on_limit = 'delay'
    and e.seal_key is null then
    p := e.people[1];
    select site, lane, exists (select from pgmail.lane l where l.tenant_id = t and l.id = lane and l.active),
        exists (select from pgmail.suppression y where y.tenant_id = t and y.stream in ('', e.stream)
                and y.address = any (case when exists (select from pgmail.erasure_salt x where x.tenant_id = t)
                                     then pgmail.suppressed_as(t, p.address) else array[p.address] end)
                and (y.expires_at is null or y.expires_at > now_)),
        e.due_at is null and exists (select from pgmail.worker w where w.asleep),
        exists (select from pgmail.door d where d.tenant_id = t and d.stream in ('', e.stream) and d.until > now_ and d.priority <= e.priority)
      into site_, lane_, active_, gone, asleep_, closed_
      from (select site, pgmail.lane_id(t, e.stream, e.priority, site) as lane
            from (select case when e.test then pgmail.test_site() else coalesce((select d.site from pgmail.site_domain d where d.domain = p.domain), p.domain) end as site offset 0) x offset 0) y;
    if not (gone or closed_) then
      message_ := pgmail.uuid7(); recipient_ := pgmail.uuid7();
      if e.idempotency_key is not null then
        held := pgmail.take_key(t, e.idempotency_key, e.body_hash, message_);
        if held is null then
          e := pgmail.key_conflict();
          perform pgmail.refuse(e.fault_code, e.fault_field, e.fault_message, e.fault_status);
        elsif held <> message_ then
          return held;
        end if;
      end if;
      if not active_ then
        insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
        values (t, lane_, e.stream, e.priority, site_, coalesce(e.due_at, now_));
      end if;
      with recipients as (
        insert into pgmail.recipient (tenant_id, id, message_id, position, role, address, rcpt, name, site, variables)
        values (t, recipient_, message_, 1, p.role, p.address, p.rcpt, p.name, site_, convert_to(p.variables::text, 'UTF8'))
      ), queued as (
        insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, later, wait, expires_at)
        values (t, recipient_, message_, lane_, coalesce(e.due_at, now_), e.due_at is not null,
          case when e.due_at is not null then 'scheduled' end, e.expires_at)
      ), counted as (
        insert into pgmail.tally (tenant_id, stream, kind, n, at, bytes, lanes, per_lane)
        values (t, e.stream, 'enqueued', 1, now_, octet_length(e.content) + coalesce(octet_length(p.variables::text), 0), array[lane_], '{1}')
      )
      insert into pgmail.message (tenant_id, id, created_at, created_by, stream, priority, mode, sender, recipients, scheduled_at,
        expires_at, template, template_version, size_bytes, metadata, idempotency_key, content, api_key, test, traceparent)
      values (t, message_, now_, session_user, e.stream, e.priority, e.mode, e.sender, 1, e.due_at,
        e.expires_at, e.template, e.template_version, e.size_bytes, e.metadata, e.idempotency_key, e.content, key_, e.test, e.traceparent);
      if asleep_ then perform pgmail.wake(); end if;
      return message_;
    end if;
  end if;

  done := pgmail.store_emails(t, array[e]);
  if done.ids[1] is null then perform pgmail.refuse_email(done.faults[1], ''); end if;
  return done.ids[1];
end
$$;

CREATE FUNCTION pgmail.send(sender text, recipient text, subject text DEFAULT NULL::text, text text DEFAULT NULL::text, html text DEFAULT NULL::text, template text DEFAULT NULL::text, variables jsonb DEFAULT NULL::jsonb, stream text DEFAULT NULL::text, priority text DEFAULT NULL::text, send_at timestamp with time zone DEFAULT NULL::timestamp with time zone, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, idempotency_key text DEFAULT NULL::text, on_limit text DEFAULT NULL::text, cc text[] DEFAULT NULL::text[], bcc text[] DEFAULT NULL::text[], reply_to text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, attachments jsonb DEFAULT NULL::jsonb, tags jsonb DEFAULT NULL::jsonb, metadata jsonb DEFAULT NULL::jsonb, test boolean DEFAULT NULL::boolean) RETURNS uuid
    LANGUAGE sql
    AS $$
  select pgmail.send(jsonb_build_object(
    'from', sender, 'to', recipient, 'subject', subject, 'text', "text", 'html', html,
    'template', case when template is not null then jsonb_build_object('id', template) end,
    'variables', variables, 'stream', stream, 'priority', priority,
    'scheduled_at', to_json(send_at), 'expires_at', to_json(expires_at),
    'idempotency_key', idempotency_key, 'on_limit', on_limit, 'cc', to_jsonb(cc), 'bcc', to_jsonb(bcc),
    'reply_to', reply_to, 'headers', headers, 'attachments', attachments, 'tags', tags, 'metadata', metadata,
    'test', test))
$$;

CREATE FUNCTION pgmail.send_many(items jsonb, strict boolean DEFAULT true, idempotency_key text DEFAULT NULL::text) RETURNS TABLE("position" integer, id uuid, code text, field text, message text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    SET work_mem TO '256MB'
    AS $_$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); emails pgmail.email[]; done record;
  hash_ bytea; key_ text := ' ' || idempotency_key; held_hash bytea; held_ids uuid[];
begin
  if items is null or jsonb_typeof(items) <> 'array' then
    perform pgmail.refuse('invalid_body', '', 'a batch is a JSON array of emails');
  end if;
  if jsonb_array_length(items) > 10000 then
    perform pgmail.refuse('batch_too_large', '', format('%s emails; at most 10,000 at once', jsonb_array_length(items)), 413);
  end if;
  if idempotency_key is not null then
    if idempotency_key !~ '^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$' then
      perform pgmail.refuse('invalid_idempotency_key', '/idempotency_key', 'must be 1 to 256 printable ASCII characters');
    end if;
    select sha256(convert_to(coalesce(jsonb_agg(case when jsonb_typeof(x) <> 'object' then x
             when x ? 'sealed' then jsonb_build_object('sealed', x->'sealed'->'hash')   -- no two sealings are alike
             else x - array['scheduled_at', 'expires_at', 'traceparent'] end order by o)::text, '') || (strict is true), 'UTF8'))
      into hash_ from jsonb_array_elements(items) with ordinality u(x, o);
    insert into pgmail.idempotency as d (tenant_id, key, body_hash, ids, created_at, expires_at)
    values (t, key_, hash_, '{}', pgmail.now(), pgmail.now() + interval '24 hours')
    on conflict (tenant_id, key) do update set body_hash = excluded.body_hash, ids = '{}',
      created_at = excluded.created_at, expires_at = excluded.expires_at
    where d.expires_at <= pgmail.now();
    if not found then
      select d.body_hash, d.ids into held_hash, held_ids from pgmail.idempotency d where d.tenant_id = t and d.key = key_;
      if held_hash <> hash_ then
        perform pgmail.refuse('idempotency_conflict', '/idempotency_key',
          'this key was used with another batch in the last 24 hours', 409);
      end if;
    end if;
  end if;

  emails := array(select pgmail.read_any(t, x) from jsonb_array_elements(items) x);
  if emails = '{}' then return; end if;
  if held_ids is not null then
    -- A replay: the ids of the first time, and the same faults. What was right then may lie in the past by now.
    return query select g - 1, held_ids[g], (f).fault_code, (f).fault_field, (f).fault_message
      from (select g, case when held_ids[g] is not null then null when (e).fault_code is not null then e
              else pgmail.faulty('idempotency_conflict', '/idempotency_key', 'was refused when this batch was sent first; use a new key', 409)
              end as f
            from (select generate_subscripts(emails, 1) as g, unnest(emails) as e) x offset 0) y;
    return;
  end if;
  if strict then perform pgmail.refuse_first(emails); end if;
  done := pgmail.store_emails(t, emails);
  if strict then perform pgmail.refuse_first(done.faults); end if;
  if idempotency_key is not null then
    update pgmail.idempotency d set ids = done.ids where d.tenant_id = t and d.key = key_;
  end if;
  return query select g - 1, x.id, (f).fault_code, (f).fault_field, (f).fault_message
    from (select generate_subscripts(done.ids, 1) as g, unnest(done.ids) as id, unnest(done.faults) as f) x;
end
$_$;

CREATE FUNCTION pgmail.sender_fault(p_tenant integer, p_domain text, p_name text) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
declare shown text;
begin
  if not exists (select from pgmail.tenant x where x.id = p_tenant and x.senders = 'verified') then return null; end if;
  if not pgmail.is_sender_domain(p_tenant, p_domain) then
    return format('%s is no verified domain of this tenant; add it (pgmail domain add %s, or POST /domains), publish the '
                  'TXT record that this shows, and verify it', p_domain, p_domain);
  end if;
  if p_name ~ '[@\ufe6b\uff20]' then
    -- What is no domain at all is refused as well: to a reader it is one.
    select s into shown from pgmail.domains_shown(p_name) s
     where not coalesce(pgmail.is_sender_domain(p_tenant, pgmail.domain_ascii(s)), false) limit 1;
    if shown is not null then
      return format('the name shows an address at %s, which is no verified domain of this tenant', left(shown, 255));
    end if;
  end if;
  return null;
end
$$;

CREATE FUNCTION pgmail.session_key_v1(p_tenant integer, p_id uuid) RETURNS TABLE(tenant_id integer, key_id uuid, name text, scopes text[], test boolean, streams text[], from_domains text[], networks text[], seconds_left double precision)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.tenant_id, k.id, k.name, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[],
    extract(epoch from k.expires_at - pgmail.now())::double precision
  from pgmail.api_key k
  where k.tenant_id = p_tenant and k.id = p_id and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
$$;

CREATE FUNCTION pgmail.session_secret_v1() RETURNS bytea
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select s.secret from pgmail.session_secret s
$$;

CREATE TABLE pgmail.alert_rule (
    id bigint NOT NULL,
    tenant_id integer,
    name text NOT NULL,
    kind text NOT NULL,
    about text,
    enabled boolean DEFAULT true NOT NULL,
    threshold double precision NOT NULL,
    floor double precision,
    minimum bigint,
    window_seconds integer,
    for_seconds integer DEFAULT 0 NOT NULL,
    calm_seconds integer DEFAULT 60 NOT NULL,
    renotify_seconds integer,
    severity text DEFAULT 'warning'::text NOT NULL,
    note text,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    shipped boolean DEFAULT false NOT NULL,
    CONSTRAINT alert_rule_calm_seconds_check CHECK (((calm_seconds >= 0) AND (calm_seconds <= 86400))),
    CONSTRAINT alert_rule_floor_check CHECK (((floor >= (0)::double precision) AND (floor < 'Infinity'::double precision))),
    CONSTRAINT alert_rule_for_seconds_check CHECK (((for_seconds >= 0) AND (for_seconds <= 604800))),
    CONSTRAINT alert_rule_minimum_check CHECK ((minimum >= 0)),
    CONSTRAINT alert_rule_name_check CHECK ((name ~ '^[a-z][a-z0-9_]{0,62}$'::text)),
    CONSTRAINT alert_rule_renotify_seconds_check CHECK (((renotify_seconds >= 60) AND (renotify_seconds <= 2592000))),
    CONSTRAINT alert_rule_severity_check CHECK ((severity = ANY (ARRAY['info'::text, 'warning'::text, 'critical'::text]))),
    CONSTRAINT alert_rule_threshold_check CHECK (((threshold >= (0)::double precision) AND (threshold < 'Infinity'::double precision))),
    CONSTRAINT alert_rule_window_seconds_check CHECK (((window_seconds >= 60) AND (window_seconds <= 86400)))
);

ALTER TABLE ONLY pgmail.alert_rule FORCE ROW LEVEL SECURITY;

CREATE FUNCTION pgmail.set_alert_rule(p_name text, p_settings jsonb, p_reason text DEFAULT NULL::text, p_fleet boolean DEFAULT false) RETURNS pgmail.alert_rule
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
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
$_$;

CREATE FUNCTION pgmail.set_hook(p_id uuid, p_changes jsonb, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook := pgmail.need_hook(p_id); was pgmail.hook := h; k text;
begin
  if jsonb_typeof(p_changes) is distinct from 'object' then perform pgmail.refuse('invalid_field', '', 'must be an object'); end if;
  for k in select x from jsonb_object_keys(p_changes) x where x <> all ('{endpoint,events,streams,tags,description,status}') loop
    perform pgmail.refuse('unknown_key', '/' || left(k, 80), 'there is no such key');
  end loop;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  for k in select x from unnest('{events,streams}'::text[]) x where jsonb_typeof(p_changes->x) not in ('array', 'null') loop
    perform pgmail.refuse('invalid_field', '/' || k, 'must be a list');
  end loop;
  if p_changes ? 'endpoint' then h.url := p_changes->>'endpoint'; end if;
  if p_changes ? 'description' then h.description := nullif(btrim(p_changes->>'description'), ''); end if;
  if p_changes ? 'tags' then h.tags := nullif(p_changes->'tags', 'null'); end if;
  if p_changes ? 'events' then
    h.types := case when jsonb_typeof(p_changes->'events') = 'array' then array(select jsonb_array_elements_text(p_changes->'events')) end;
  end if;
  if p_changes ? 'streams' then
    h.streams := case when jsonb_typeof(p_changes->'streams') = 'array' then array(select jsonb_array_elements_text(p_changes->'streams')) end;
  end if;
  if p_changes ? 'status' then
    if p_changes->>'status' is null or p_changes->>'status' not in ('enabled', 'disabled') then
      perform pgmail.refuse('invalid_field', '/status', 'must be "enabled" or "disabled"');
    end if;
    h.enabled := p_changes->>'status' = 'enabled';
    h.reason := case when not h.enabled then concat_ws(': ', 'disabled by ' || pgmail.actor(), p_reason) end;
  end if;
  perform pgmail.check_hook(h);
  update pgmail.hook x set url = h.url, types = h.types, streams = h.streams, tags = h.tags, description = h.description,
    enabled = h.enabled, reason = h.reason, changed_at = pgmail.now(),
    -- Another address, or once more: it is called at once, as if nothing had been.
    fails = case when h.url <> was.url or h.enabled > was.enabled then 0 else x.fails end,
    failing_since = case when h.url <> was.url or h.enabled > was.enabled then null else x.failing_since end,
    rest_until = case when h.url <> was.url or h.enabled > was.enabled then null else x.rest_until end,
    last_error = case when h.url <> was.url or h.enabled > was.enabled then null else x.last_error end
  where x.tenant_id = h.tenant_id and x.id = h.id;
  -- With other types too: whoever reads events has looked already which are wanted, and would pass over the new ones.
  if h.enabled and (not was.enabled or h.types <> was.types) then perform pgmail.begin_hooks(); end if;
  perform pgmail.record_act(h.tenant_id,
    case when h.enabled > was.enabled then 'webhook.enable' when h.enabled < was.enabled then 'webhook.disable' else 'webhook.set' end,
    format('%s %s', h.id, split_part(h.url, '?', 1)),
    concat_ws(': ', (select string_agg(x, ', ' order by x) from jsonb_object_keys(p_changes) x), p_reason));
end
$$;

CREATE FUNCTION pgmail.set_limit(p_scope text, p_name text, p_messages integer, p_per_seconds real DEFAULT 1, p_connections integer DEFAULT NULL::integer, p_ramp_seconds real DEFAULT 30, p_note text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare named text := pgmail.limit_name(p_scope, p_name);
begin
  if p_messages is null and p_connections is null then
    perform pgmail.refuse('missing_field', '/messages', 'a limit has messages (in per_seconds), connections or both');
  elsif p_messages <= 0 then
    perform pgmail.refuse('invalid_limit', '/messages', 'must be greater than 0; to stop mail, pause it');
  elsif p_per_seconds is null or not (p_per_seconds > 0 and p_per_seconds <= 86400) then
    perform pgmail.refuse('invalid_limit', '/per_seconds', 'must be greater than 0 and at most 86400');
  elsif p_connections <= 0 then
    perform pgmail.refuse('invalid_limit', '/connections', 'must be greater than 0; to stop mail, pause it');
  elsif p_scope = 'tenant' and p_connections is not null then
    perform pgmail.refuse('invalid_limit', '/connections', 'a tenant has a rate, and shares the connections of relay and site');
  elsif p_ramp_seconds is null or not (p_ramp_seconds >= 0 and p_ramp_seconds <= 604800) then
    perform pgmail.refuse('invalid_limit', '/ramp_seconds', 'must be from 0 to 604800');
  elsif length(p_note) > 1000 then
    perform pgmail.refuse('invalid_limit', '/note', 'longer than 1,000 characters');
  end if;
  insert into pgmail.limits (scope, name, messages, per_seconds, connections, ramp_seconds, note, changed_by)
  values (p_scope, named, p_messages, p_per_seconds, p_connections, p_ramp_seconds, p_note, pgmail.actor())
  on conflict (scope, name) do update set messages = excluded.messages, per_seconds = excluded.per_seconds,
    connections = excluded.connections, ramp_seconds = excluded.ramp_seconds, note = excluded.note,
    changed_at = pgmail.now(), changed_by = excluded.changed_by, shipped = false;
  perform pgmail.record_act(null, 'limit.set', p_scope || ' ' || named, concat_ws(', ',
    pgmail.rate_words(p_messages, p_per_seconds), p_connections || ' connections', p_note));
  return named;
end
$$;

CREATE FUNCTION pgmail.set_quota(p_scope text, p_name text, p_settings jsonb, p_tenant text DEFAULT NULL::text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare x record; r record; row_ pgmail.quota; top bigint; fits text[];
begin
  select * into x from pgmail.quota_target(p_scope, p_name, p_tenant);
  if jsonb_typeof(p_settings) is distinct from 'object' or p_settings = '{}' then
    perform pgmail.refuse('invalid_body', '', 'a quota is a JSON object of what it limits');
  end if;
  fits := case p_scope when 'fleet' then array['pressure_depth', 'pressure_seconds', 'bound_mails', 'bound_bytes']
    when 'tenant' then array['per_second', 'per_day', 'max_queued', 'pressure_depth', 'pressure_seconds', 'bound_mails', 'bound_bytes']
    when 'stream' then array['per_second', 'per_day', 'max_queued'] else array['per_second', 'per_day'] end;
  for r in select key, value from jsonb_each(p_settings) order by key collate "C" loop
    if r.key = 'note' then
      if jsonb_typeof(r.value) not in ('string', 'null') or length(r.value #>> '{}') > 1000 then
        perform pgmail.refuse('invalid_quota', '/note', 'must be a text of at most 1,000 characters');
      end if;
    elsif r.key = 'max_queued' and p_scope = 'key' then
      perform pgmail.refuse('unknown_key', '/max_queued',
        'is no limit of a key: what waits is counted by stream and tenant, so set it on the key''s stream or its tenant');
    elsif r.key <> all (fits) then
      perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(r.key),
        format('a quota of a %s has %s and note', p_scope, array_to_string(fits, ', ')));
    else
      top := case r.key when 'per_second' then 1000000 when 'pressure_seconds' then 31536000 when 'bound_bytes' then 1000000000000000 else 1000000000000 end;
      if r.value <> 'null' and (jsonb_typeof(r.value) <> 'number' or r.value #>> '{}' !~ '^[0-9]{1,16}$'
          or not (r.value #>> '{}')::bigint between case r.key when 'max_queued' then 0 else 1 end and top) then
        perform pgmail.refuse('invalid_quota', '/' || r.key, format('must be a whole number from %s to %s',
          case r.key when 'max_queued' then 0 else 1 end, top));
      end if;
    end if;
  end loop;
  insert into pgmail.quota (tenant_id, scope, name) values (x.tenant, p_scope, x.named) on conflict do nothing;
  select * into row_ from pgmail.quota q where q.tenant_id is not distinct from x.tenant and q.scope = p_scope and q.name = x.named for update;
  row_ := jsonb_populate_record(row_, p_settings);
  update pgmail.quota q set per_second = row_.per_second, per_day = row_.per_day, max_queued = row_.max_queued,
    pressure_depth = row_.pressure_depth, pressure_seconds = row_.pressure_seconds, bound_mails = row_.bound_mails,
    bound_bytes = row_.bound_bytes, note = row_.note, changed_at = pgmail.now(), changed_by = pgmail.actor()
  where q.tenant_id is not distinct from x.tenant and q.scope = p_scope and q.name = x.named;
  if p_scope = 'stream' then
    -- What came before the rule does not count.
    insert into pgmail.quota_meter (tenant_id, scope, name, seen, seen_bytes, depth, paid_until, day)
    select x.tenant, 'stream', x.named, coalesce(sum(t.n) filter (where t.kind = 'enqueued'), 0),
      coalesce(sum(t.bytes) filter (where t.kind = 'enqueued'), 0), coalesce(sum(case t.kind when 'enqueued' then t.n else -t.n end), 0),
      pgmail.now(), (pgmail.now() at time zone 'UTC')::date
    from pgmail.tally_total t where t.tenant_id = x.tenant and t.stream = x.named
    on conflict do nothing;
  end if;
  -- What came in under the old rule is not held against the new one.
  update pgmail.quota_meter m set paid_until = pgmail.now(), owed = least(m.owed, coalesce(row_.per_day, 0)) where m.tenant_id = x.tenant and m.scope = p_scope and m.name = x.named;
  perform pgmail.record_act(x.tenant, 'quota.set', concat_ws(' ', p_scope, nullif(x.named, '')), p_settings::text);
  return x.named;
end
$_$;

CREATE FUNCTION pgmail.set_retention(p_content_days integer, p_record_days integer, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  if p_content_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/content_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/record_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days is not null and coalesce(p_content_days > p_record_days, true) then
    perform pgmail.refuse('invalid_retention', '/content_days', 'content cannot be kept for longer than the record of it');
  end if;
  update pgmail.retention set content_days = p_content_days, record_days = p_record_days, changed_at = pgmail.now(), changed_by = pgmail.actor();
  perform pgmail.record_act(null, 'retention.set',
    format('content %s, record %s', coalesce(p_content_days || ' days', 'for ever'), coalesce(p_record_days || ' days', 'for ever')), p_reason);
end
$$;

CREATE FUNCTION pgmail.set_senders(p_tenant text, p_senders text, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  if p_senders is null or p_senders not in ('any', 'verified') then
    perform pgmail.refuse('invalid_senders', '/senders', 'must be "any" or "verified"');
  end if;
  update pgmail.tenant x set senders = p_senders where x.name = p_tenant returning x.id into t;
  if t is null then perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  perform pgmail.record_act(t, 'tenant.set', p_tenant, concat_ws(': ', 'senders ' || p_senders, p_reason));
end
$$;

CREATE FUNCTION pgmail.set_tenant(p_name text, p_weight real) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  if p_weight is null or not (p_weight > 0 and p_weight <= 1000) then
    perform pgmail.refuse('invalid_weight', '/weight', 'must be greater than 0 and at most 1000');
  end if;
  update pgmail.tenant set weight = p_weight where name = p_name returning id into t;
  if t is null then perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_name, 63)), 404); end if;
  perform pgmail.record_act(t, 'tenant.set', p_name, 'weight ' || p_weight);
end
$$;

CREATE FUNCTION pgmail.settle_domain(p_tenant integer, p_id uuid, p_outcome text, p_found text[], p_said text) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare d pgmail.sender_domain; now_ timestamptz := pgmail.now(); there boolean; gone boolean; new_state text;
begin
  select * into d from pgmail.sender_domain x where x.tenant_id = p_tenant and x.id = p_id for update;
  if not found then return null; end if;
  there := p_outcome = 'answered' and 'pgmail-verify=' || d.token = any (coalesce(p_found, '{}'));
  gone := p_outcome in ('answered', 'no_record', 'no_name') and not there;
  new_state := case when d.trusted_by is not null or there then 'verified'
                    when d.state = 'verified' and gone and d.missing_since < now_ - interval '14 days' then 'failed'
                    else d.state end;
  update pgmail.sender_domain x set state = new_state, checked_at = now_, answer = left(p_said, 500),
    verified_at = case new_state when 'verified' then coalesce(x.verified_at, now_) end,
    missing_since = case when not there and d.trusted_by is null and new_state <> 'pending' then coalesce(x.missing_since, now_) end
  where x.tenant_id = p_tenant and x.id = p_id;
  if new_state <> d.state then
    perform pgmail.record_act(p_tenant, case new_state when 'verified' then 'domain.verify' else 'domain.lapse' end, d.domain, left(p_said, 500));
  end if;
  return new_state;
end
$$;

CREATE FUNCTION pgmail.settle_hooks_v1(p_results jsonb) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare now_ timestamptz := pgmail.now(); n integer; s record; ended text;
begin
  with r as materialized (
    select * from jsonb_to_recordset(p_results) x(
      tenant_id integer, hook_id uuid, event_id uuid, email_id uuid, recipient_id uuid, type text, at timestamptz, attempt smallint, claims integer,
      outcome text, seconds double precision, status smallint, ms integer, error text, answer text)
  ), mine as materialized (
    select q.tenant_id, q.hook_id, q.event_id from pgmail.hook_queue q join r using (tenant_id, hook_id, event_id)
    where q.claims = r.claims order by q.tenant_id, q.hook_id, q.event_id for update of q
  ), told as (
    delete from pgmail.hook_queue q using mine m join r using (tenant_id, hook_id, event_id)
    where q.tenant_id = m.tenant_id and q.hook_id = m.hook_id and q.event_id = m.event_id and r.outcome <> 'retrying'
  ), later as (
    update pgmail.hook_queue q set due_at = now_ + make_interval(secs => r.seconds), attempts = r.attempt, leased_until = null
    from mine m join r using (tenant_id, hook_id, event_id)
    where q.tenant_id = m.tenant_id and q.hook_id = m.hook_id and q.event_id = m.event_id and r.outcome = 'retrying'
  ), logged as (
    insert into pgmail.hook_attempt (tenant_id, hook_id, event_id, email_id, recipient_id, type, event_at, attempt, outcome, status, ms, error, answer, next_at)
    select r.tenant_id, r.hook_id, r.event_id, r.email_id, r.recipient_id, r.type, r.at, r.attempt, r.outcome, r.status, r.ms,
      left(r.error, 300), left(r.answer, 200), case when r.outcome = 'retrying' then now_ + make_interval(secs => r.seconds) end
    from r returning 1
  )
  select count(*) into n from logged;

  -- Of each endpoint: nothing where all is well and was. By id, since others settle beside this.
  for s in
    select x.tenant_id, x.hook_id, count(*) filter (where x.outcome <> 'delivered') as bad, bool_or(x.outcome = 'delivered') as good,
      bool_or(x.outcome = 'failed') as failed, bool_or(x.gone) as gone, max(x.rest) as rest,
      max(coalesce(x.error, 'HTTP ' || x.status)) filter (where x.outcome <> 'delivered') as error
    from jsonb_to_recordset(p_results) x(tenant_id integer, hook_id uuid, outcome text, gone boolean, rest double precision, status smallint, error text)
    where x.outcome <> 'dropped'
    group by x.tenant_id, x.hook_id order by x.tenant_id, x.hook_id
  loop
    if s.good then
      update pgmail.hook h set fails = 0, failing_since = null, rest_until = null, last_error = null
       where h.tenant_id = s.tenant_id and h.id = s.hook_id and h.fails > 0;
    end if;
    continue when s.bad = 0;
    update pgmail.hook h set fails = h.fails + case when s.good then 1 else s.bad end, failing_since = coalesce(h.failing_since, now_),
      last_error = left(s.error, 300),
      -- From the fourth failure on it rests between calls, 2 s to 5 min.
      rest_until = greatest(case when not s.good and h.fails + s.bad >= 4 then now_ + make_interval(secs => least(300, power(2, least(h.fails + s.bad - 3, 10)))) end,
                            now_ + make_interval(secs => nullif(s.rest, 0)))
     where h.tenant_id = s.tenant_id and h.id = s.hook_id;
    select case when s.gone then 'it answered 410 Gone'
                when s.failed and h.failing_since < now_ - interval '5 days' then
                  format('no call has gone well since %s; the last one: %s', pgmail.iso_time(h.failing_since), h.last_error) end
      into ended from pgmail.hook h where h.tenant_id = s.tenant_id and h.id = s.hook_id and h.enabled;
    if ended is not null then
      update pgmail.hook h set enabled = false, reason = ended, changed_at = now_ where h.tenant_id = s.tenant_id and h.id = s.hook_id;
      perform pgmail.record_act(s.tenant_id, 'webhook.disable', s.hook_id::text, ended);
    end if;
  end loop;
  return n;
end
$$;

CREATE FUNCTION pgmail.settle_v1(p_tenant integer, p_epoch bigint, p_results jsonb) RETURNS TABLE(id uuid, result text)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.settle_v2(p_tenant integer, p_epoch bigint, p_groups jsonb, p_ids uuid[], p_messages uuid[], p_claims integer[], p_group smallint[], p_attempts smallint[], p_ms integer[], p_replies text[]) RETURNS TABLE(id uuid, result text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
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
$_$;

CREATE FUNCTION pgmail.share_guesses_v1(p_clients text[], p_counts integer[]) RETURNS TABLE(client text, level real)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
#variable_conflict use_column
begin
  delete from pgmail.guess where ctid = any (array(
    select g.ctid from pgmail.guess g where g.at < pgmail.now() - interval '10 minutes' limit 1000 for update skip locked));
  return query
  insert into pgmail.guess as g (client, level, at)
  select left(u.client, 64), least(40, sum(greatest(u.n, 0))), pgmail.now() from unnest(p_clients, p_counts) u(client, n)
  group by 1 order by 1
  on conflict (client) do update set
    level = least(40, greatest(0, g.level - extract(epoch from excluded.at - g.at)::real / 3) + excluded.level), at = excluded.at
  returning g.client, g.level;
end
$$;

CREATE FUNCTION pgmail.share_permits_v1(p_epoch bigint, p_scopes text[], p_names text[], p_held integer[], p_wanted integer[]) RETURNS TABLE(scope text, name text, allowed integer)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare k record; w record; rest integer; sharers integer; share integer; others bigint; turn text := '';
begin
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out', message = format('worker %s was declared dead', p_epoch);
  end if;
  delete from pgmail.permit p where p.epoch = p_epoch
    and (p.scope, p.name) not in (select x.scope, x.name from unnest(p_scopes, p_names) x(scope, name));
  insert into pgmail.bucket (scope, name)
  select l.scope, l.name from pgmail.limits l join (select distinct x.scope, x.name from unnest(p_scopes, p_names) x(scope, name)) u
    on u.scope = l.scope and u.name = l.name
  where l.connections is not null and not exists (select from pgmail.bucket b where b.scope = l.scope and b.name = l.name)
  order by l.scope, l.name on conflict do nothing;
  perform from pgmail.bucket b
  where (b.scope, b.name) in (select x.scope, x.name from unnest(p_scopes, p_names) x(scope, name))
  order by b.scope, b.name for no key update;
  for k in
    select u.scope, u.name, u.held, u.wanted, l.connections, b.scope is not null as locked
    from (select x.scope, x.name, sum(greatest(x.held, 0))::integer as held, sum(greatest(x.wanted, 0))::integer as wanted
          from unnest(p_scopes, p_names, p_held, p_wanted) x(scope, name, held, wanted) group by x.scope, x.name) u
    left join pgmail.limits l on l.scope = u.scope and l.name = u.name
    left join pgmail.bucket b on b.scope = u.scope and b.name = u.name
    order by u.scope, u.name
  loop
    scope := k.scope; name := k.name;
    if k.connections is null or not k.locked then   -- no cap, or one that came after the locks were taken
      delete from pgmail.permit p where p.scope = k.scope and p.name = k.name and p.epoch = p_epoch;
      allowed := null;
      return next; continue;
    end if;
    -- From the least wanted up, each an equal part of what is left: what the modest leave goes to the others.
    rest := k.connections; share := 0;
    select count(*) into sharers from pgmail.permit p join pgmail.worker w on w.epoch = p.epoch
     where p.scope = k.scope and p.name = k.name and p.epoch <> p_epoch and p.wanted > 0;
    sharers := sharers + case when k.wanted > 0 then 1 else 0 end;
    turn := case when sharers > k.connections then floor(extract(epoch from pgmail.now()) / 60)::text else '' end;
    for w in
      select x.epoch, x.wanted from (
        select p.epoch, p.wanted from pgmail.permit p join pgmail.worker v on v.epoch = p.epoch
        where p.scope = k.scope and p.name = k.name and p.epoch <> p_epoch
        union all select p_epoch, k.wanted) x
      where x.wanted > 0 order by x.wanted, case when turn <> '' then md5(turn || x.epoch) end, x.epoch
    loop
      if w.epoch = p_epoch then share := least(w.wanted, rest / greatest(sharers, 1)); exit; end if;
      rest := rest - least(w.wanted, rest / greatest(sharers, 1));
      sharers := sharers - 1;
    end loop;
    select coalesce(sum(p.held), 0) into others from pgmail.permit p join pgmail.worker v on v.epoch = p.epoch
     where p.scope = k.scope and p.name = k.name and p.epoch <> p_epoch;
    allowed := least(share, greatest(k.held, k.connections - others));
    insert into pgmail.permit as p (scope, name, epoch, held, wanted, seen_at)
    values (k.scope, k.name, p_epoch, greatest(k.held, allowed), k.wanted, pgmail.now())
    on conflict (scope, name, epoch) do update set held = excluded.held, wanted = excluded.wanted, seen_at = excluded.seen_at;
    return next;
  end loop;
end
$$;

CREATE FUNCTION pgmail.share_words(p_share double precision) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select to_char(p_share * 100, case when p_share < 0.1 then 'FM990.0' else 'FM990' end) || ' %' $$;

CREATE FUNCTION pgmail.shown(p_rcpt text, p_name text) RETURNS text
    LANGUAGE sql STABLE PARALLEL SAFE
    AS $$ select case when p_name is null then '{"address": "' || p_rcpt || '"}'
                  else '{"name": ' || to_json(p_name)::text || ', "address": "' || p_rcpt || '"}' end $$;

CREATE FUNCTION pgmail.shown_people(p_people pgmail.person[]) RETURNS text
    LANGUAGE plpgsql STABLE
    AS $$
begin
  return (select string_agg(pgmail.shown(rcpt, name), ', ' order by o)
          from (select coalesce(p.rcpt, p.address) as rcpt, p.name, p.ordinality as o from unnest(p_people) with ordinality p offset 0) q);
end
$$;

CREATE FUNCTION pgmail.silence_alert(p_rule text, p_reason text, p_until timestamp with time zone DEFAULT NULL::timestamp with time zone, p_subject text DEFAULT '*'::text, p_fleet boolean DEFAULT false) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.site_name(p_text text, p_field text) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare d text := pgmail.domain_ascii(btrim(p_text));
begin
  if d is null then perform pgmail.refuse('invalid_site', p_field, 'must be a domain such as gmail.com'); end if;
  return coalesce((select s.site from pgmail.site_domain s where s.domain = d), d);
end
$$;

CREATE FUNCTION pgmail.slow_site_v1(p_tenant integer, p_site text, p_reason text) RETURNS timestamp with time zone
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET lock_timeout TO '100ms'
    AS $$
declare now_ timestamptz := pgmail.now(); s pgmail.slowed_site;
begin
  if exists (select from pgmail.pause p where (p.tenant_id = p_tenant or p.tenant_id is null) and p.scope = 'site'
             and p.name = p_site and (p.until is null or p.until > now_)) then return null; end if;
  insert into pgmail.slowed_site as x (tenant_id, site, times, until) values (p_tenant, p_site, 1, now_ + interval '1 minute')
  on conflict (tenant_id, site) do update set
    times = case when x.until > now_ - interval '2 hours' then least(x.times + 1, 7) else 1 end,
    until = now_ + least(interval '1 hour', interval '1 minute' *
      case when x.until > now_ - interval '2 hours' then 2 ^ least(x.times, 6) else 1 end)
    where x.until <= now_   -- several workers at once: the first one's
  returning * into s;
  if s.until is null then return null; end if;
  insert into pgmail.pause (tenant_id, scope, name, reason, until, paused_by)
  values (p_tenant, 'site', p_site, left(coalesce(nullif(btrim(p_reason), ''), 'it refused several times'), 1000), s.until, 'pgmail')
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, until = excluded.until, paused_at = now_,
    paused_by = excluded.paused_by;
  insert into pgmail.audit (tenant_id, actor, action, object, reason)
  values (p_tenant, 'pgmail', 'site.pause', p_site, format('until %s: %s', s.until, left(p_reason, 900)));
  return s.until;
end
$$;

CREATE FUNCTION pgmail.span_words(p_seconds double precision) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case when n = 1 then '1 ' || unit else n || ' ' || unit || 's' end
  from (select case when s < 120 then round(s) when s < 7200 then round(s / 60) when s < 172800 then round(s / 3600) else round(s / 86400) end as n,
          case when s < 120 then 'second' when s < 7200 then 'minute' when s < 172800 then 'hour' else 'day' end as unit
        from (select greatest(p_seconds, 0)) x(s)) y
$$;

CREATE FUNCTION pgmail.state_of(p_outcome text, p_dead boolean, p_queued boolean, p_leased boolean, p_due_at timestamp with time zone, p_wait text, p_now timestamp with time zone) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case
    when p_outcome is not null then p_outcome
    when p_dead then 'dead'
    when not p_queued then 'unknown'
    when p_leased then 'sending'
    when p_due_at = 'infinity' then 'held'
    when p_due_at > p_now and p_wait in ('scheduled', 'deferred') then p_wait
    else 'queued' end
$$;

CREATE FUNCTION pgmail.status(id uuid) RETURNS TABLE(recipient_id uuid, message_id uuid, address text, role text, phase text, state text, attempts smallint, due_at timestamp with time zone, changed_at timestamp with time zone, code smallint, enhanced text, reply text, reason text)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.stop_for_restore(p_reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  perform pgmail.lock_history();
  insert into pgmail.fence (noticed_by, reason, lost_until, found) values (pgmail.actor(), left(p_reason, 1000), clock_timestamp(), pgmail.place_v1())
  on conflict (singleton) do nothing;
  if found then perform pgmail.end_workers(); end if;
  perform pgmail.record_act(null, 'restore.stop', null, p_reason);
end
$$;

CREATE FUNCTION pgmail.stopped_by(p_stream text, p_priority integer, p_site text, OUT kind text, OUT scope text, OUT name text, OUT until timestamp with time zone, OUT words text) RETURNS record
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ select * from pgmail.lane_stop(pgmail.need_tenant(), p_stream, p_priority, p_site) $$;

CREATE FUNCTION pgmail.store_data_key(p_tenant integer, p_wrapped bytea, p_kek text, p_reason text, p_first boolean) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare n integer;
begin
  if octet_length(p_wrapped) is distinct from 60 or p_kek is null or p_kek !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
    perform pgmail.refuse('invalid_data_key', '', 'a data key is 32 octets, wrapped, and names the key that it is wrapped by');
  end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  perform pg_advisory_xact_lock(hashtextextended('pgmail.data_key/' || p_tenant, 0));
  select max(d.id) into n from pgmail.data_key d where d.tenant_id = p_tenant;
  if n is not null and p_first then return n; end if;
  n := coalesce(n, 0) + 1;
  insert into pgmail.data_key (tenant_id, id, wrapped, kek, created_by) values (p_tenant, n, p_wrapped, p_kek, pgmail.actor());
  perform pgmail.record_act(p_tenant, 'data_key.create', n::text, coalesce(p_reason, case when p_first then 'the first of its tenant' end));
  return n;
end
$_$;

CREATE FUNCTION pgmail.store_emails(p_tenant integer, p_emails pgmail.email[], OUT ids uuid[], OUT faults pgmail.email[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
declare
  now_ timestamptz := pgmail.now(); r record; held uuid; wake boolean;
  suspended text; asking boolean; keyed boolean; limited boolean; attached boolean; tagged boolean; suppressing boolean; erased boolean; shut boolean; fresh boolean[];
  kinds text[]; untils timestamptz[]; spreads real[]; reasons text[]; done pgmail.email;   -- of the door that is closed to each, if one is
begin
  select array_agg(case when (e).fault_code is null then coalesce((e).message_id, pgmail.uuid7()) end), array_agg(case when (e).fault_code is not null then e end),
      array_agg((e).fault_code is null), bool_or((e).idempotency_key is not null), bool_or((e).max_queued is not null),
      bool_or((e).attachments is not null), bool_or((e).tags is not null), bool_or((e).on_limit <> 'delay'),
      (select exists (select from pgmail.suppression s where s.tenant_id = p_tenant)), (select pgmail.has_erased(p_tenant)),
      (select exists (select from pgmail.door d where d.tenant_id = p_tenant and d.until > now_))
    into ids, faults, fresh, keyed, limited, attached, tagged, asking, suppressing, erased, shut from (select unnest(p_emails) as e) x;

  -- A suspended tenant's mail waits by itself (011_tenants.sql): only those who asked for something else are told here.
  if asking then suspended := pgmail.suspension(p_tenant); end if;
  if suspended is not null then
    for r in select x.ordinality as i from unnest(p_emails) with ordinality x
             where x.on_limit = 'error' and fresh[x.ordinality]
               and not exists (select from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = x.idempotency_key and d.expires_at > now_)
    loop
      fresh[r.i] := false; ids[r.i] := null;
      faults[r.i] := pgmail.faulty('tenant_suspended', '/on_limit', suspended, 403);
    end loop;
  end if;

  if limited or shut then
    -- Each email's strictest door: a bound before all others, then what stays closed longest. A full stream's depth comes from
    -- folded tallies, seconds old, never a count: a wall with a soft edge, as doors are.
    with kinds as (
      select distinct (e).stream, (e).priority, (e).max_queued from (select unnest(p_emails) as e, unnest(fresh) as kept) x where kept
    ), closed as materialized (
      select k.stream, k.priority, d.kind, d.until, d.spread, d.reason from kinds k cross join lateral (
        select u.* from (
          select y.kind, y.until, y.spread, y.reason from pgmail.door y
          where y.tenant_id = p_tenant and y.stream in ('', k.stream) and y.until > now_ and y.priority <= k.priority
          union all
          select 'full', now_ + interval '30 seconds', 30, 'the stream holds as many queued emails as it may'
          where (select coalesce(sum(case kind when 'enqueued' then t.n else -t.n end), 0) from pgmail.tally_total t
                 where t.tenant_id = p_tenant and t.stream = k.stream) >= k.max_queued) u
        order by u.kind = 'bound' desc, u.until desc limit 1) d
    )
    select array_agg(c.kind order by x.i), array_agg(c.until order by x.i), array_agg(c.spread order by x.i), array_agg(c.reason order by x.i)
      into kinds, untils, spreads, reasons
      from (select generate_subscripts(p_emails, 1) as i, unnest(p_emails) as e) x
      left join closed c on c.stream = (x.e).stream and c.priority = (x.e).priority;
    for r in select x.stream, x.ordinality as i from unnest(p_emails) with ordinality x
             where kinds[x.ordinality] is not null and (x.on_limit = 'error' or kinds[x.ordinality] = 'bound') and fresh[x.ordinality]
               -- A key that was used already answers with what it holds, however full the stream is by now.
               and not exists (select from pgmail.idempotency d where d.tenant_id = p_tenant
                               and d.key = x.idempotency_key and d.expires_at > now_)
    loop
      fresh[r.i] := false; ids[r.i] := null;
      if kinds[r.i] = 'full' then
        done := pgmail.faulty('limit_reached', '/stream', format('stream %L holds as many queued emails as it may', r.stream), 429);
      elsif kinds[r.i] = 'pressure' then
        done := pgmail.faulty('backpressure', '/stream', format('%s; try again after %s', reasons[r.i], pgmail.iso_time(untils[r.i])), 503);
      else
        done := pgmail.faulty('limit_reached', '/stream', format('%s; try again after %s', reasons[r.i], pgmail.iso_time(untils[r.i])), 429);
      end if;
      done.due_at := untils[r.i];
      faults[r.i] := done;
    end loop;
  end if;

  if keyed then
    for r in select x.idempotency_key as key, x.body_hash, x.ordinality as i, ids[x.ordinality] as id from unnest(p_emails) with ordinality x
             where x.idempotency_key is not null and fresh[x.ordinality] order by x.idempotency_key collate "C", x.ordinality
    loop
      held := pgmail.take_key(p_tenant, r.key, r.body_hash, r.id);
      if held is distinct from r.id then
        fresh[r.i] := false; ids[r.i] := held;
        if held is null then faults[r.i] := pgmail.key_conflict(); end if;
      end if;
    end loop;
  end if;

  if not (true = any (fresh)) then return; end if;

  insert into pgmail.message (tenant_id, id, created_at, created_by, stream, priority, mode, sender, recipients,
    scheduled_at, expires_at, template, template_version, size_bytes, tags, metadata, idempotency_key, content, key_id, api_key, test, traceparent)
  select p_tenant, id, now_, session_user, (e).stream, (e).priority, (e).mode, (e).sender, cardinality((e).people),
    (e).due_at, (e).expires_at, (e).template, (e).template_version, (e).size_bytes, (e).tags, (e).metadata,
    (e).idempotency_key, (e).content, (e).seal_key, (select pgmail.current_key()), (e).test, (e).traceparent
  from (select unnest(p_emails) as e, unnest(ids) as id, unnest(fresh) as kept) x where kept;

  if attached then
    insert into pgmail.attachment (tenant_id, message_id, position, filename, content_type, content_id, asset, size_bytes, body, key_id)
    select p_tenant, id, ord, a->>'filename', a->>'content_type', a->>'content_id', a->>'asset', (a->>'size')::integer,
      decode(a->>'content', 'base64'), case when a ? 'content' then (e).seal_key end
    from (select unnest(p_emails) as e, unnest(ids) as id, unnest(fresh) as kept) x,
      jsonb_array_elements((e).attachments) with ordinality u(a, ord)
    where kept and (e).attachments is not null;
  end if;
  if tagged then
    insert into pgmail.tag (tenant_id, name, value, message_id)
    select p_tenant, t.key, t.value, id
    from (select unnest(p_emails) as e, unnest(ids) as id, unnest(fresh) as kept) x, jsonb_each_text((e).tags) t
    where kept and (e).tags is not null;
  end if;

  with people as (
    select id as message_id, (e).test as test, (e).stream as stream, (e).priority as priority, (e).due_at as due_at, (e).expires_at as expires_at, (e).on_limit as on_limit,
      -- mail for later meets the limit then, unless its sender wants to be asked
      (kind is not null and ((e).on_limit = 'hold' or coalesce((e).due_at, now_) < until)) or (suspended is not null and (e).on_limit = 'hold') as is_full,
      -- strewn, or all that waited would come at once
      until + random() * spread * interval '1 second' as later_at,
      case when (e).on_limit = 'hold' then coalesce(suspended, reason) else reason end as limit_said,
      (e).seal_key as key_id, unnest((e).people) as p, generate_subscripts((e).people, 1) as position
    from (select unnest(p_emails) as e, unnest(ids) as id, unnest(fresh) as kept, unnest(kinds) as kind, unnest(untils) as until,
            unnest(spreads) as spread, unnest(reasons) as reason) x where kept
  ), judged as materialized (
    select pgmail.uuid7() as id, x.*, pgmail.lane_id(p_tenant, x.stream, x.priority, x.site) as lane, u.reason as suppressed, u.source
    from (
      select m.message_id, m.stream, m.priority, m.due_at, m.expires_at, m.on_limit, m.is_full, m.later_at, m.limit_said, m.key_id, m.position, (m.p).role, (m.p).address,
        (m.p).rcpt, (m.p).name, (m.p).variables, case when m.test then pgmail.test_site() else coalesce(s.site, (m.p).domain) end as site
      from people m left join pgmail.site_domain s on s.domain = (m.p).domain offset 0) x
    left join lateral (
      select y.reason, y.source from pgmail.suppression y
      where suppressing and y.tenant_id = p_tenant and y.address = any (case when erased then pgmail.suppressed_as(p_tenant, x.address) else array[x.address] end) and y.stream in ('', x.stream)
        and (y.expires_at is null or y.expires_at > now_)
      limit 1) u on true
  ), recipients as (
    insert into pgmail.recipient (tenant_id, id, message_id, position, role, address, rcpt, name, site, variables, key_id)
    select p_tenant, id, message_id, position, role, address, rcpt, name, site,
      case when key_id is null then convert_to(variables::text, 'UTF8') else decode(variables #>> '{}', 'base64') end,
      case when variables is not null then key_id end from judged
  ), queued as (
    insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, later, wait, hold_reason, held_due_at, expires_at)
    select p_tenant, id, message_id, lane,
      case when is_full and on_limit = 'hold' then 'infinity'
           when is_full then later_at
           else coalesce(due_at, now_) end,
      due_at is not null or is_full,
      case when is_full then 'delayed' when due_at is not null then 'scheduled' end,
      case when is_full and on_limit = 'hold' then limit_said end,
      case when is_full and on_limit = 'hold' then coalesce(due_at, now_) end,
      expires_at
    from judged where suppressed is null
  ), limits_said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, at, site, detail)
    select p_tenant, id, message_id, case on_limit when 'hold' then 'email.held' else 'email.delayed' end, now_, site, limit_said
    from judged where is_full and suppressed is null
  ), settled as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, reason)
    select p_tenant, id, message_id, 'suppressed', now_, stream, site, suppressed from judged where suppressed is not null
  ), said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, at, site, detail)
    select p_tenant, id, message_id, 'email.suppressed', now_, site, suppressed || coalesce(': ' || source, '')
    from judged where suppressed is not null
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select p_tenant, j.lane, j.stream, j.priority, j.site, j.due_at
    from (select lane, min(stream) as stream, min(priority) as priority, min(site) as site, min(coalesce(due_at, now_)) as due_at
          from judged where suppressed is null group by lane) j
    where not exists (select from pgmail.lane l where l.tenant_id = p_tenant and l.id = j.lane and l.active)
  ), counted as (
    insert into pgmail.tally (tenant_id, stream, kind, n, at, bytes, lanes, per_lane)
    select p_tenant, j.stream, 'enqueued', sum(j.n), now_, coalesce(sum(j.bytes), 0) + (
        select sum(octet_length((x.e).content) + case when (x.e).attachments is not null then (x.e).size_bytes else 0 end)
        from (select unnest(p_emails) as e, unnest(fresh) as kept) x where kept and (x.e).stream = j.stream),
        array_agg(j.lane), array_agg(j.waiting)
      from (select stream, lane, count(*) as n, (count(*) filter (where suppressed is null))::integer as waiting,
              sum(octet_length(variables::text)) as bytes from judged group by stream, lane) j group by j.stream
    union all
    select p_tenant, stream, 'suppressed', count(*), now_, null, null, null from judged where suppressed is not null group by stream
  )
  select bool_or(suppressed is null and due_at is null) into wake from judged;
  if wake then perform pgmail.wake(); end if;
end
$$;

CREATE FUNCTION pgmail.suppress(p_address text, p_reason text DEFAULT 'manual'::text, p_source text DEFAULT NULL::text, p_stream text DEFAULT ''::text, p_expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address); f record;
begin
  select * into f from pgmail.suppression_fault(t, a.fault, p_reason, p_source, coalesce(p_stream, ''), p_expires_at);
  if f.code is not null then perform pgmail.refuse(f.code, f.field, f.message); end if;
  insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by, expires_at)
  values (t, a.address, coalesce(p_stream, ''), p_reason, p_source, pgmail.actor(), p_expires_at)
  on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
    created_at = pgmail.now(), created_by = excluded.created_by, expires_at = excluded.expires_at;
  perform pgmail.record_act(t, 'suppression.add', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return a.address;
end
$$;

CREATE FUNCTION pgmail.suppress_bounced(p_tenant integer, p_done uuid[], p_groups jsonb, p_ids uuid[], p_group smallint[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.bounced (tenant_id, recipient_id, source)
  select p_tenant, u.id, concat_ws(' ', g.x->>'code', g.x->>'enhanced', g.x->>'reason')
  from unnest(p_ids, p_group) u(id, n)
  join jsonb_array_elements(p_groups) with ordinality g(x, n) on g.n = u.n
  where u.id = any (p_done) and g.x->'suppress' = 'true' and g.x->>'kind' = 'bounced'
    and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = g.x->>'stream' and not s.suppress_bounced)
$$;

CREATE FUNCTION pgmail.suppress_bounced_v1(p_most integer DEFAULT 50, OUT looked integer, OUT busy integer) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET lock_timeout TO '100ms'
    SET jit TO 'off'
    AS $$
declare r record; waited integer := 0;
begin
  perform set_config('idle_in_transaction_session_timeout', '3s', true);   -- as in claim_v2
  looked := 0; busy := 0;
  for r in
    with mine as materialized (
      select b.tenant_id, b.id, b.recipient_id, b.source, b.tries from pgmail.bounced b
      order by b.tries, b.tenant_id, b.id limit p_most for update skip locked)
    select m.tenant_id, y.address, array_agg(m.id) as ids, min(m.source) as source
    from mine m left join lateral (
      select x.address from pgmail.recipient x where x.tenant_id = m.tenant_id and x.id = m.recipient_id limit 1) y on true
    group by m.tenant_id, y.address order by min(m.tries), m.tenant_id, y.address
  loop
    looked := looked + cardinality(r.ids);
    begin
      if waited >= 3 then raise lock_not_available; end if;
      if r.address is not null then   -- null: so old that retention took the recipient
        insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by)
        values (r.tenant_id, r.address, '', 'bounced', r.source, 'pgmail')
        on conflict (tenant_id, address, stream) do update
          set reason = excluded.reason, source = excluded.source, created_at = pgmail.now(), created_by = excluded.created_by, expires_at = null
          where suppression.expires_at <= pgmail.now();
      end if;
      delete from pgmail.bounced b where b.tenant_id = r.tenant_id and b.id = any (r.ids);
    exception when lock_not_available or deadlock_detected then
      busy := busy + cardinality(r.ids);
      if waited < 3 then
        update pgmail.bounced b set tries = b.tries + 1 where b.tenant_id = r.tenant_id and b.id = any (r.ids);
      end if;
      waited := waited + 1;
    end;
  end loop;
end
$$;

CREATE FUNCTION pgmail.suppress_many(p_addresses text[], p_streams text[], p_reasons text[], p_sources text[], p_created timestamp with time zone[], p_expires timestamp with time zone[], p_strict boolean DEFAULT true, p_store boolean DEFAULT true, p_audit bigint DEFAULT NULL::bigint, OUT audit bigint, OUT added integer, OUT changed integer, OUT unchanged integer, OUT faults jsonb, OUT entries jsonb) RETURNS record
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $_$
declare t integer := pgmail.need_tenant(); who text := pgmail.actor(); now_ timestamptz := pgmail.now(); bad jsonb;
begin
  if cardinality(p_addresses) > 10000 then perform pgmail.refuse('batch_too_large', '', 'at most 10,000 entries at once', 413); end if;
  with given as materialized (
    select u.n - 1 as position, pgmail.parse_address(u.address) as a, coalesce(u.stream, '') as stream, u.reason, u.source,
      least(coalesce(u.created, now_), now_) as created, u.expires
    from unnest(p_addresses, p_streams, p_reasons, p_sources, p_created, p_expires)
      with ordinality u(address, stream, reason, source, created, expires, n)
  ), judged as materialized (
    select g.position, (g.a).address as address, g.stream, g.reason, g.source, g.created, g.expires, f.code, f.field, f.message
    from given g cross join lateral pgmail.suppression_fault(t, (g.a).fault, g.reason, g.source, g.stream, g.expires) f
  ), fresh as materialized (
    select distinct on (j.address, j.stream) j.* from judged j where j.code is null
    order by j.address, j.stream, j.position desc
  ), compared as materialized (
    select f.*, s.address is not null as known,
      s.address is not null and (s.reason, s.source, s.expires_at) is not distinct from (f.reason, f.source, f.expires) as same
    from fresh f left join lateral (
      select x.address, x.reason, x.source, x.expires_at from pgmail.suppression x
      where x.tenant_id = t and x.address = f.address and x.stream = f.stream limit 1) s on true
  ), stored as (
    -- In one order for all: two imports at once do not deadlock.
    insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
    select t, c.address, c.stream, c.reason, c.source, c.created, who, c.expires from compared c
    where not c.same and p_store and not (p_strict and exists (select from judged j where j.code is not null))
    order by c.address, c.stream
    on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
      created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at
  )
  select count(*) filter (where not c.known), count(*) filter (where c.known and not c.same), count(*) filter (where c.same),
    (select jsonb_agg(jsonb_build_object('position', j.position, 'code', j.code, 'field', j.field, 'message', j.message)
       order by j.position) from judged j where j.code is not null),
    jsonb_agg(jsonb_build_array(c.address, c.stream) order by c.position)
  into added, changed, unchanged, bad, entries from compared c;
  faults := coalesce(bad, '[]'); entries := coalesce(entries, '[]');
  if p_strict and bad is not null then
    perform pgmail.refuse(bad->0->>'code', '/' || (bad->0->>'position') || (bad->0->>'field'), bad->0->>'message');
  end if;
  audit := p_audit;
  if not p_store then return; end if;
  if audit is null then
    insert into pgmail.audit (tenant_id, actor, action, object, reason, source, application)
    values (t, who, 'suppression.import', '0', null, pgmail.act_source(), nullif(current_setting('application_name', true), ''))
    returning id into audit;
  end if;
  update pgmail.audit x set object = (x.object::bigint + added + changed)::text,
    reason = (select string_agg(k.reason, ', ' order by k.reason) from (
      select trim(y) as reason from string_to_table(x.reason, ',') y
      union select distinct r from unnest(p_reasons) r where r ~ '^[a-z]{1,20}$') k)
  where x.id = audit and x.tenant_id = t and x.actor = who and x.action = 'suppression.import';
  if not found then perform pgmail.refuse('not_found', '/audit', 'no such import of yours', 404); end if;
end
$_$;

CREATE FUNCTION pgmail.suppressed_as(p_tenant integer, p_address text) RETURNS text[]
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$ begin return array_remove(array[p_address, pgmail.erased_token(p_tenant, p_address)], null); end $$;

CREATE FUNCTION pgmail.suppression_fault(p_tenant integer, p_fault text, p_reason text, p_source text, p_stream text, p_expires_at timestamp with time zone, OUT code text, OUT field text, OUT message text) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
begin
  if p_fault is not null then
    code := 'invalid_address'; field := '/address'; message := p_fault;
  elsif p_reason is null or p_reason not in ('bounced', 'complained', 'unsubscribed', 'manual', 'invalid') then
    code := 'invalid_reason'; field := '/reason'; message := 'must be bounced, complained, unsubscribed, manual or invalid';
  elsif p_stream <> '' and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = p_stream) then
    code := 'unknown_stream'; field := '/stream'; message := format('no stream is named %L', left(p_stream, 63));
  elsif length(p_source) > 1000 then
    code := 'invalid_source'; field := '/source'; message := 'longer than 1,000 characters';
  elsif p_expires_at <= pgmail.now() then
    code := 'time_in_past'; field := '/expires_at'; message := 'it has passed';
  elsif p_expires_at > pgmail.now() + interval '100 years' then
    code := 'time_too_far'; field := '/expires_at'; message := 'lies more than 100 years ahead; leave it out for ever';
  end if;
end
$$;

CREATE FUNCTION pgmail.suspend_tenant(p_name text, p_reason text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_named(p_name);
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  insert into pgmail.pause (tenant_id, scope, name, reason, paused_by) values (t, 'tenant', p_name, p_reason, pgmail.actor())
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, paused_at = pgmail.now(), paused_by = excluded.paused_by;
  perform pgmail.record_act(t, 'tenant.suspend', p_name, p_reason);
end
$$;

CREATE FUNCTION pgmail.suspension(p_tenant integer) RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select format('the tenant is suspended since %s: %s', p.paused_at, p.reason)
  from pgmail.pause p where p.tenant_id = p_tenant and p.scope = 'tenant'
$$;

CREATE FUNCTION pgmail.tables_of_tenants() RETURNS SETOF regclass
    LANGUAGE sql STABLE
    AS $$
  select c.oid::regclass from pg_class c
  where c.relnamespace = 'pgmail'::regnamespace and c.relkind = 'r'
    and c.relname not in ('tally', 'tally_total', 'audit', 'queue', 'dead_letter', 'pause', 'tenant')
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
  order by c.relispartition, c.relname
$$;

CREATE FUNCTION pgmail.take_key(p_tenant integer, p_key text, p_hash bytea, p_id uuid) RETURNS uuid
    LANGUAGE plpgsql
    AS $$
declare now_ timestamptz := pgmail.now(); held record;
begin
  insert into pgmail.idempotency as d (tenant_id, key, body_hash, ids, created_at, expires_at)
  values (p_tenant, p_key, p_hash, array[p_id], now_, now_ + interval '24 hours')
  on conflict (tenant_id, key) do update set body_hash = excluded.body_hash, ids = excluded.ids,
    created_at = excluded.created_at, expires_at = excluded.expires_at
  where d.expires_at <= now_;
  if found then return p_id; end if;
  select d.body_hash, d.ids into held from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = p_key;
  return case when held.body_hash = p_hash then held.ids[1] end;
end
$$;

CREATE FUNCTION pgmail.take_quota_v1(p_key uuid, p_groups integer[], p_streams text[], p_counts integer[]) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    AS $$
declare
  slots constant integer := 52; length constant double precision := 0.02;
  t integer := pgmail.need_tenant(); now_ timestamptz; today date; midnight double precision; slot_ bigint; g record; r record; d record;
  answers jsonb := '[]'; rules jsonb; i integer; k integer; n bigint; room bigint; away double precision; worst double precision;
  scopes text[]; names text[]; seconds integer[]; days bigint[]; used_ bigint[]; counts_ jsonb := '[]'; in_second bigint[]; mine integer[];
  no_scope text; no_kind text; no_seconds double precision; no_most bigint;
begin
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  insert into pgmail.quota_bucket (tenant_id, scope, name)
  select q.tenant_id, q.scope, q.name from pgmail.quota q
  where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
    and coalesce(q.per_second, q.per_day) is not null
    and not exists (select from pgmail.quota_bucket b where b.tenant_id = t and b.scope = q.scope and b.name = q.name)
  order by q.scope, q.name on conflict do nothing;
  perform from pgmail.quota_bucket b
  where b.tenant_id = t and (b.scope = 'tenant' or b.scope = 'key' and b.name = p_key::text or b.scope = 'stream' and b.name = any (p_streams))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: it is later now.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  today := (now_ at time zone 'UTC')::date;
  midnight := extract(epoch from (today + 1)::timestamp at time zone 'UTC' - now_);
  slot_ := floor(extract(epoch from now_) / length);

  for r in
    select q.scope, q.name, q.per_second, q.per_day, case when b.day = today then b.used else 0 end as used,
      -- Ten seconds ahead of now is another clock, one that was set back.
      array(select case when b.slot > slot_ + 500 or b.slot - ((b.slot - p) % slots + slots) % slots <= slot_ - slots then 0
                        else coalesce(b.counts[p + 1], 0) end from generate_series(0, slots - 1) p) as counts
    from pgmail.quota q join pgmail.quota_bucket b on b.tenant_id = t and b.scope = q.scope and b.name = q.name
    where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
      and coalesce(q.per_second, q.per_day) is not null
    order by q.scope, q.name
  loop
    scopes := scopes || r.scope; names := names || r.name; seconds := seconds || r.per_second; days := days || r.per_day; used_ := used_ || r.used;
    counts_ := counts_ || jsonb_build_array(to_jsonb(r.counts));
    in_second := in_second || (select sum(x) from unnest(r.counts) x);
  end loop;

  for g in
    select u.number, sum(u.n)::bigint as n from unnest(p_groups, p_counts) u(number, n) group by u.number order by u.number
  loop
    no_scope := null; no_seconds := -1; no_most := null;
    -- Closed by what came in otherwise, or holding as much as it may.
    select x.kind, x.stream, extract(epoch from x.until - now_) as seconds into d from pgmail.door x
     where x.tenant_id = t and x.until > now_ and x.kind <> 'pressure'
       and x.stream in (select '' union all select u.stream from unnest(p_groups, p_streams) u(number, stream) where u.number = g.number)
     order by x.until desc limit 1;
    if found then
      no_scope := case d.stream when '' then 'tenant' else 'stream' end; no_kind := d.kind; no_seconds := d.seconds;
    end if;
    mine := '{}';
    for i in 1 .. coalesce(cardinality(scopes), 0) loop
      n := case when scopes[i] = 'stream' then (select sum(u.n) from unnest(p_groups, p_streams, p_counts) u(number, stream, n)
                                               where u.number = g.number and u.stream = names[i]) else g.n end;
      mine := mine || coalesce(n, 0)::integer;
      continue when coalesce(n, 0) = 0;
      if n > least(seconds[i], days[i]) then   -- too many at once, whenever that is
        no_scope := scopes[i]; no_kind := case when n > seconds[i] then 'rate' else 'day' end; no_seconds := null;
        no_most := least(seconds[i], days[i]); exit;
      end if;
      if in_second[i] + n > seconds[i] then
        -- until so many of the oldest have left the window
        room := in_second[i] + n - seconds[i]; away := 0;
        for k in 1 .. slots loop
          room := room - (counts_ #>> array[(i - 1)::text, ((slot_ + k) % slots)::text])::bigint;
          away := k * length;
          exit when room <= 0;
        end loop;
        if away > no_seconds then no_scope := scopes[i]; no_kind := 'rate'; no_seconds := away; end if;
      end if;
      if used_[i] + n > days[i] and midnight > no_seconds then no_scope := scopes[i]; no_kind := 'day'; no_seconds := midnight; end if;
    end loop;
    if no_scope is null then
      for i in 1 .. coalesce(cardinality(scopes), 0) loop
        in_second[i] := in_second[i] + mine[i]; used_[i] := used_[i] + mine[i];
        k := slot_ % slots;
        counts_ := jsonb_set(counts_, array[(i - 1)::text, k::text],
          to_jsonb((counts_ #>> array[(i - 1)::text, k::text])::bigint + mine[i]));
      end loop;
      answers := answers || jsonb_build_array('{"granted": true}'::jsonb);
    else
      answers := answers || jsonb_build_array(jsonb_build_object('granted', false, 'scope', no_scope, 'kind', no_kind, 'seconds', no_seconds, 'most', no_most));
    end if;
  end loop;

  if scopes is not null then
    update pgmail.quota_bucket b set slot = slot_, day = today, used = used_[x.i],
      counts = array(select v::integer from jsonb_array_elements_text(counts_->(x.i::integer - 1)) with ordinality w(v, o) order by o)
    from unnest(scopes, names) with ordinality x(scope, name, i)
    where b.tenant_id = t and b.scope = x.scope and b.name = x.name;
    select jsonb_agg(jsonb_build_object('scope', x.scope, 'stream', case x.scope when 'stream' then x.name end,
             'per_second', x.per_second, 'left', greatest(x.per_second - x.busy, 0), 'per_day', x.per_day, 'left_today', greatest(x.per_day - x.used, 0),
             'midnight', midnight) order by x.i)
      into rules from unnest(scopes, names, seconds, days, in_second, used_) with ordinality x(scope, name, per_second, per_day, busy, used, i);
  end if;
  return jsonb_build_object('answers', answers, 'rules', coalesce(rules, '[]'));
end
$$;

CREATE FUNCTION pgmail.take_tokens_v1(p_epoch bigint, p_scopes text[], p_names text[], p_wants integer[]) RETURNS TABLE(scope text, name text, granted integer, starts_in double precision, gap double precision, wait double precision)
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  with u as materialized (
    select x.scope, x.name, least(sum(greatest(x.want, 0)), 1000000)::integer as want, (row_number() over (order by x.scope, x.name))::integer as n
    from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name
  ), t as materialized (
    select * from pgmail.take_tokens_v2(p_epoch, (select array_agg(n order by n) from u), (select array_agg(u.scope order by n) from u),
      (select array_agg(u.name order by n) from u), (select array_agg(want order by n) from u))
  )
  select u.scope, u.name, cardinality(t.moments), coalesce(t.moments[1], t.wait + 0.25), t.gap, t.wait
  from u join t on t.set_number = u.n
  order by u.scope, u.name
$$;

CREATE FUNCTION pgmail.take_tokens_v2(p_epoch bigint, p_sets integer[], p_scopes text[], p_names text[], p_wants integer[], p_lead double precision DEFAULT 0) RETURNS TABLE(set_number integer, scope text, name text, moments double precision[], gap double precision, wait double precision)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
#variable_conflict use_column
declare
  horizon constant double precision := 0.5;
  -- How far a key's tokens may be passed over for the sake of another one's: what nobody then uses is lost.
  most_passed constant double precision := 0.05;
  most_passed_moments constant integer := 1000;
  lead constant double precision := least(greatest(p_lead, 0), horizon / 2);
  now_ timestamptz; s record; i integer; n integer; t double precision; first double precision; slowest integer;
  scopes_ text[]; names_ text[]; gaps double precision[]; free double precision[]; before double precision[]; up text[];
  passed jsonb := '{}'; mine double precision[];
begin
  -- One that was declared dead must not spend what its successors need.
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out', message = format('worker %s was declared dead', p_epoch);
  end if;
  insert into pgmail.bucket (scope, name)
  select l.scope, l.name from pgmail.limits l join (select distinct x.scope, x.name from unnest(p_scopes, p_names) x(scope, name)) u
    on u.scope = l.scope and u.name = l.name
  where l.messages is not null and not exists (select from pgmail.bucket b where b.scope = l.scope and b.name = l.name)
  order by l.scope, l.name on conflict do nothing;
  perform from pgmail.bucket b
  where (b.scope, b.name) in (select x.scope, x.name from unnest(p_scopes, p_names) x(scope, name))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: tokens start from here, or those who waited longest would be handed moments that
  -- have passed, and spend them in one burst.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  -- No token is given further ahead than the horizon: a last one that lies there was given by another clock, which was set
  -- back, or was that of a server that is gone. Nobody waits for what that one called the present.
  -- Without its bucket (the limit came after the locks were taken) it is as if the limit came a moment later.
  select array_agg(k.scope order by k.scope, k.name), array_agg(k.name order by k.scope, k.name), array_agg(k.gap order by k.scope, k.name),
    array_agg(case when k.last_at = '-infinity' then lead
              when k.last_at > now_ + interval '10 seconds' then greatest(lead, k.gap)
              else greatest(lead, extract(epoch from k.last_at - now_)::double precision + k.gap) end order by k.scope, k.name),
    array_agg(k.name order by k.name) filter (where k.unheard)
  into scopes_, names_, gaps, free, up
  from (
    select u.scope, u.name, b.last_at, r.name is not null and r.up_since is null and u.want > 0 as unheard,
      pgmail.limit_gap(l, coalesce(r.up_since, case when r.name is null then now_ - interval '8 days' else now_ end), now_) as gap
    from (select x.scope, x.name, max(x.want) as want from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name) u
    join pgmail.limits l on l.scope = u.scope and l.name = u.name and l.messages is not null
    join pgmail.bucket b on b.scope = u.scope and b.name = u.name
    left join pgmail.relay r on u.scope = 'relay' and r.name = u.name) k;
  if up is not null then
    -- Its first mail. Past a row that an operator's open transaction holds: nobody's tokens wait for that.
    update pgmail.relay r set up_since = now_
     where r.name in (select x.name from pgmail.relay x where x.name = any (up) and x.up_since is null order by x.name
                      for no key update skip locked);
  end if;
  before := free;
  for s in
    select u.number, least(max(greatest(u.want, 0)), 1000000) as want,
      array_agg(distinct k.at) filter (where k.at is not null) as keys
    from unnest(p_sets, p_scopes, p_names, p_wants) u(number, scope, name, want)
    left join unnest(scopes_, names_) with ordinality k(scope, name, at) on k.scope = u.scope and k.name = u.name
    group by u.number order by u.number
  loop
    set_number := s.number; moments := '{}'; gap := 0; wait := 0; scope := null; name := null;
    if s.keys is null then
      moments := array_fill(0::double precision, array[s.want]);
      return next; continue;
    end if;
    loop
      slowest := s.keys[1]; first := free[slowest];
      foreach i in array s.keys loop
        if free[i] > free[slowest] then slowest := i; end if;
        gap := greatest(gap, gaps[i]);
        first := least(first, free[i]);
      end loop;
      t := free[slowest];
      scope := scopes_[slowest]; name := names_[slowest];
      if t - first > most_passed then wait := greatest(0, t - lead - most_passed * 0.8); exit; end if;
      if t > horizon then wait := greatest(0, t - horizon / 2); exit; end if;
      exit when cardinality(moments) >= s.want;
      if cardinality(s.keys) = 1 then   -- all at once: there may be thousands
        n := least(s.want, 1 + floor((horizon - t) / gaps[slowest])::integer);
        moments := array(select t + g * gaps[slowest] from generate_series(0, n - 1) g);
        free[slowest] := t + n * gaps[slowest];
        continue;
      end if;
      moments := moments || t;
      foreach i in array s.keys loop
        if free[i] + gaps[i] <= t then
          n := least(floor((t - free[i]) / gaps[i])::integer, most_passed_moments);
          select array_agg(free[i] + g * gaps[i] order by g) into mine from generate_series(0, n - 1) g;
          passed := jsonb_set(passed, array[i::text], coalesce(passed->(i::text), '[]') || to_jsonb(mine));
        end if;
        free[i] := t + gaps[i];
      end loop;
    end loop;
    return next;
  end loop;
  if scopes_ is null then return; end if;
  update pgmail.bucket b set last_at = now_ + (x.free - x.gap) * interval '1 second'
  from unnest(scopes_, names_, gaps, free, before) x(scope, name, gap, free, before)
  where b.scope = x.scope and b.name = x.name and x.free > x.before;
  return query select null::integer, scopes_[k.key::integer], names_[k.key::integer],
    array(select v.value::double precision from jsonb_array_elements_text(k.value) v), gaps[k.key::integer], 0::double precision
  from jsonb_each(passed) k;
end
$$;

CREATE FUNCTION pgmail.tell_alert(p_alert uuid, p_event text) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.tenant_named(p_name text) RETURNS integer
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = p_name;
  if t is null then perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_name, 63)), 404); end if;
  return t;
end
$$;

CREATE FUNCTION pgmail.tenant_or_fleet(p_fleet boolean) RETURNS integer
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  if not p_fleet then return pgmail.need_tenant(); end if;
  if exists (select from pgmail.database_role r where r.role_name = session_user and r.carries_tenant) then
    perform pgmail.refuse('not_allowed', '/fleet', 'an API key acts for its tenant only', 403);
  end if;
  return null;
end
$$;

CREATE FUNCTION pgmail.tenant_role_sql(p_prefix text, p_role text, p_tenant text, p_kind text, p_content boolean DEFAULT false) RETURNS SETOF text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare t integer := pgmail.tenant_named(p_tenant); other text;
begin
  if p_kind is null or p_kind not in ('producer', 'analyst') then perform pgmail.refuse('invalid_kind', '/kind', 'must be producer or analyst'); end if;
  if p_content and p_kind <> 'analyst' then perform pgmail.refuse('invalid_kind', '/content', 'a producer reads no mail but its status'); end if;
  if p_role is null or p_role !~ '^[a-z_][a-z0-9_]{0,62}$' or p_role ~ '^pg_' then
    perform pgmail.refuse('invalid_role', '/role', 'must be 1 to 63 of a-z, 0-9 and _, with neither a digit nor pg_ first');
  end if;
  if starts_with(p_role, p_prefix) then
    perform pgmail.refuse('invalid_role', '/role', format('names that begin with %s are for pgmail''s own roles', p_prefix));
  end if;
  if not exists (select from pg_roles r where r.rolname = p_role) then
    return next format('create role %I login inherit nosuperuser nocreatedb nocreaterole noreplication', p_role);
  elsif exists (select from pg_roles r where r.rolname = p_role
                and (r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolreplication)) then
    perform pgmail.refuse('invalid_role', '/role', format('the role %I may do more than a tenant''s role should; choose another', p_role), 409);
  elsif exists (select from pg_auth_members m join pg_roles r on r.oid = m.member join pg_roles g on g.oid = m.roleid
                where r.rolname = p_role and g.rolname <> p_prefix || p_kind) then
    perform pgmail.refuse('invalid_role', '/role', format('the role %I has the rights of other roles, too; choose another', p_role), 409);
  end if;
  select n.name into other from pgmail.database_role x join pgmail.tenant n on n.id = x.tenant_id where x.role_name = p_role and n.id <> t;
  if other is not null then
    perform pgmail.refuse('speaks_for_another', '/role', format('the role %I speaks for the tenant %s; revoke that first', p_role, other), 409);
  end if;
  -- What it was granted before, for another tenant maybe, outlives a revoke: contents are read by a right of the role's own.
  if exists (select from pg_roles r where r.rolname = p_role) then
    return next format('revoke select on pgmail.my_content, pgmail.my_attachment, pgmail.my_variables from %I', p_role);
  end if;
  return next format('grant %I to %I', p_prefix || p_kind, p_role);
  if p_content then
    return next format('grant select on pgmail.my_content, pgmail.my_attachment, pgmail.my_variables to %I', p_role);
  end if;
end
$_$;

CREATE FUNCTION pgmail.test_alert_target(p_name text, p_fleet boolean DEFAULT false) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.tenant_or_fleet(p_fleet); target_ uuid; id_ uuid;
begin
  select x.id into target_ from pgmail.alert_target x where x.name = p_name and x.tenant_id is not distinct from t;
  if target_ is null then perform pgmail.refuse('not_found', '/name', format('no target is named %L', left(p_name, 63)), 404); end if;
  insert into pgmail.alert_delivery (tenant_id, target_id, event) values (t, target_, 'test') returning id into id_;
  perform pgmail.record_act(t, 'alert.target.test', p_name, null);
  return id_;
end
$$;

CREATE FUNCTION pgmail.test_hook(p_id uuid) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare h pgmail.hook := pgmail.need_hook(p_id); event uuid := pgmail.uuid7();
begin
  if not h.enabled then perform pgmail.refuse('webhook_disabled', '/id', 'it is disabled; enable it first', 409); end if;
  insert into pgmail.hook_queue (tenant_id, hook_id, event_id, type, at) values (h.tenant_id, h.id, event, 'webhook.test', pgmail.now());
  perform pgmail.record_act(h.tenant_id, 'webhook.test', h.id::text, null);
  return event;
end
$$;

CREATE FUNCTION pgmail.test_site() RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select 'test:' $$;

CREATE FUNCTION pgmail.took_bucket(p_since timestamp with time zone, p_at timestamp with time zone) RETURNS smallint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case when p_at - p_since <= interval '1 millisecond' then 0
    else least(ceil(4 * ln(date_part('epoch', p_at - p_since) * 1000) / ln(2.0::float8)), 160) end::smallint
$$;

CREATE FUNCTION pgmail.touch_lanes(p_tenant integer, p_lanes bigint[], p_due timestamp with time zone[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
  select p_tenant, l.id, l.stream, l.priority, l.site, r.due
  from (select lane, min(due) as due from unnest(p_lanes, p_due) u(lane, due) group by lane) r
  join pgmail.lane l on l.tenant_id = p_tenant and l.id = r.lane
$$;

CREATE FUNCTION pgmail.trace(id uuid) RETURNS TABLE(at timestamp with time zone, type text, recipient_id uuid, address text, attempt smallint, code smallint, enhanced text, reply text, phase text, relay text, remote_host text, tls text, ms integer, worker bigint, detail text, event_id uuid)
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.traceparent(p_body jsonb) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $_$
  select case when jsonb_typeof(p_body->'traceparent') = 'string'
    and p_body->>'traceparent' ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' then p_body->>'traceparent' end
$_$;

CREATE FUNCTION pgmail.trim_rollups_v1(p_most integer DEFAULT 5000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer; m integer; now_ timestamptz := pgmail.now();
begin
  delete from pgmail.rollup r using (
    select x.* from pgmail.tenant t cross join unnest('{stream,site,relay,tag,template,reason}'::text[]) d(dim)
    cross join (values ('minute', interval '48 hours'), ('quarter', interval '48 hours'), ('hour', interval '35 days'), ('day', interval '731 days')) g(grain, kept)
    cross join lateral (
      select y.tenant_id, y.dim, y.grain, y.at, y.key, y.kind, y.bucket from pgmail.rollup y
      where y.tenant_id = t.id and y.dim = d.dim and y.grain = g.grain and y.at < now_ - g.kept order by y.at limit p_most) x
    limit p_most) old
  where r.tenant_id = old.tenant_id and r.dim = old.dim and r.grain = old.grain and r.at = old.at and r.key = old.key
    and r.kind = old.kind and r.bucket = old.bucket;
  get diagnostics n = row_count;
  delete from pgmail.cause c using (
    select x.* from pgmail.tenant t cross join lateral (
      select y.tenant_id, y.at, y.kind, y.class, y.reason, y.code, y.enhanced, y.text from pgmail.cause y
      where y.tenant_id = t.id and y.at < now_ - interval '35 days' order by y.at limit p_most) x
    limit p_most) old
  where c.tenant_id = old.tenant_id and c.at = old.at and c.kind = old.kind and c.class = old.class and c.reason = old.reason
    and c.code = old.code and c.enhanced = old.enhanced and c.text = old.text;
  get diagnostics m = row_count; n := n + m;
  delete from pgmail.pulse p using (
    select x.* from pgmail.tenant t cross join lateral (
      select y.tenant_id, y.at, y.stream from pgmail.pulse y
      where y.tenant_id = t.id and y.at < now_ - interval '10 minutes' order by y.at limit p_most) x
    limit p_most) old
  where p.tenant_id = old.tenant_id and p.at = old.at and p.stream = old.stream;
  get diagnostics m = row_count;
  return n + m;
end
$$;

CREATE FUNCTION pgmail.trust_domain(p_domain text, p_reason text, p_tenant text DEFAULT NULL::text) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer; named text := pgmail.domain_ascii(btrim(p_domain, ' ')); i uuid;
begin
  if p_tenant is null then t := pgmail.need_tenant(); else select x.id into t from pgmail.tenant x where x.name = p_tenant; end if;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  if named is null or length(named) > 245 then
    perform pgmail.refuse('invalid_domain', '/name', format('%L is no domain, as in example.com', left(p_domain, 253)));
  end if;
  if coalesce(btrim(p_reason), '') = '' then perform pgmail.refuse('missing_field', '/reason', 'say why this domain is trusted without a record'); end if;
  insert into pgmail.sender_domain as d (tenant_id, domain, token, state, created_by, verified_at, trusted_by, trust_reason)
  values (t, named, replace(gen_random_uuid()::text, '-', ''), 'verified', pgmail.actor(), pgmail.now(), pgmail.actor(), p_reason)
  on conflict (tenant_id, domain) do update set state = 'verified', verified_at = coalesce(d.verified_at, excluded.verified_at),
    missing_since = null, trusted_by = excluded.trusted_by, trust_reason = excluded.trust_reason
  returning d.id into i;
  perform pgmail.record_act(t, 'domain.trust', named, p_reason);
  return i;
end
$$;

CREATE FUNCTION pgmail.unsilence_alert(p_rule text, p_reason text DEFAULT NULL::text, p_subject text DEFAULT '*'::text, p_fleet boolean DEFAULT false) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE FUNCTION pgmail.unsuppress(p_address text, p_stream text DEFAULT ''::text, p_reason text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address);
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  delete from pgmail.suppression s where s.tenant_id = t and s.address = a.address and s.stream = coalesce(p_stream, '');
  if not found then return false; end if;
  perform pgmail.record_act(t, 'suppression.remove', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return true;
end
$$;

CREATE FUNCTION pgmail.uuid_floor(p_at timestamp with time zone) RETURNS uuid
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT ((encode(SUBSTRING(int8send(((EXTRACT(epoch FROM p_at) * (1000)::numeric))::bigint) FROM 3), 'hex'::text) || '00000000000000000000'::text))::uuid AS uuid;
END;

CREATE FUNCTION pgmail.uuid_time(p_id uuid) RETURNS timestamp with time zone
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT to_timestamp((((((('x'::text || lpad("left"(replace((p_id)::text, '-'::text, ''::text), 12), 16, '0'::text)))::bit(64))::bigint)::numeric / 1000.0))::double precision) AS to_timestamp;
END;

CREATE FUNCTION pgmail.variables_fault(p_variables jsonb, p_most integer) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select case when octet_length(p_variables::text) > p_most then p_most || ' octets as JSON at most' else 'nested more than 32 deep' end
      where not pgmail.fits(p_variables, p_most) $$;

CREATE FUNCTION pgmail.waits(OUT oldest_due_at timestamp with time zone, OUT held bigint, OUT in_doubt bigint) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare t integer := pgmail.current_tenant(); now_ timestamptz := pgmail.now();
begin
  if pgmail.gauge_kept() and (select c.counted_at > now_ - interval '1 hour' from pgmail.insight_cursor c) then
    select min(g.oldest_due_at) filter (where g.oldest_due_at <= now_), coalesce(sum(g.held), 0) into oldest_due_at, held from pgmail.gauge g where g.tenant_id = t;
  else
    with recursive present as (
      (select q.lane, q.due_at from pgmail.queue q where q.tenant_id = t order by q.lane, q.due_at, q.id limit 1)
      union all
      select x.* from present p, lateral (
        select q.lane, q.due_at from pgmail.queue q where q.tenant_id = t and q.lane > p.lane order by q.lane, q.due_at, q.id limit 1) x
    ), heads as materialized (
      select p.lane, p.due_at from present p
    )
    select (
        select min(x.due_at) from (select h.lane from heads h where h.due_at <= now_ order by h.due_at limit 1000) l
        cross join lateral (
          select q.due_at from pgmail.queue q where q.tenant_id = t and q.lane = l.lane and q.leased_by is null and q.due_at <= now_
          order by q.due_at, q.id limit 1) x),
      (select coalesce(sum(x.n), 0) from heads h cross join lateral (
         select count(*) as n from (
           select from pgmail.queue q where q.tenant_id = t and q.lane = h.lane and q.due_at = 'infinity' limit 1000) y) x)
    into oldest_due_at, held;
  end if;
  select count(*) into in_doubt from (select from pgmail.queue q where q.tenant_id = t and q.in_doubt limit 10001) y;
end
$$;

CREATE FUNCTION pgmail.wake() RETURNS void
    LANGUAGE plpgsql
    AS $$
begin
  if coalesce(current_setting('pgmail.notify', true), '') <> 'off' and exists (select from pgmail.worker w where w.asleep) then
    perform pg_notify('pgmail', '');
  end if;
end
$$;

CREATE FUNCTION pgmail.wake_due_v1(p_since timestamp with time zone) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with due as materialized (
    select distinct q.tenant_id, q.lane from pgmail.queue q
    where q.later and q.due_at > p_since and q.due_at <= pgmail.now() + interval '1 second'
  ), asleep as materialized (
    select l.tenant_id, l.id from pgmail.lane l join due d on d.tenant_id = l.tenant_id and d.lane = l.id
    where not l.active order by l.tenant_id, l.id for update of l
  ), woken as (
    update pgmail.lane l set active = true, version = nextval('pgmail.lane_version'), changed_at = pgmail.now()
    from asleep a where l.tenant_id = a.tenant_id and l.id = a.id returning 1
  )
  select count(*) into n from woken;
  return n;
end
$$;

CREATE FUNCTION pgmail.was_sent(p_tenant integer, p_body jsonb) RETURNS boolean
    LANGUAGE sql STABLE
    AS $$
  select exists (select 1 from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = p_body->>'idempotency_key'
    and d.body_hash = pgmail.body_hash(p_body) and d.expires_at > pgmail.now())
$$;

CREATE FUNCTION pgmail.weekly_partitions(p_base text) RETURNS TABLE(name text, since timestamp with time zone, until timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
  select c.relname::text, w.since, w.since + interval '168 hours'
  from pg_inherits i join pg_class c on c.oid = i.inhrelid,
    lateral (select to_date(substring(c.relname from '[0-9]{8}$'), 'YYYYMMDD')::timestamp at time zone 'UTC') w(since)
  where i.inhparent = to_regclass('pgmail.' || quote_ident(p_base)) and c.relname ~ '_[0-9]{8}$'
  order by w.since
$_$;

CREATE FUNCTION pgmail.why(id uuid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
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

CREATE FUNCTION pgmail.without_nulls(p_body jsonb) RETURNS jsonb
    LANGUAGE plpgsql IMMUTABLE
    AS $_$
begin
  if p_body @? 'strict $.* ? (@ == null)' then
    return (select coalesce(jsonb_object_agg(x.key, x.value), '{}') from jsonb_each(p_body) x where x.value <> 'null');
  end if;
  return p_body;
end
$_$;

CREATE FUNCTION pgmail.worker_beat_v1(p_epoch bigint, p_state text, p_asleep boolean) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.worker set beat = beat + 1, beat_at = pgmail.now(), state = p_state, asleep = p_asleep where epoch = p_epoch;
  return found;
end
$$;

CREATE FUNCTION pgmail.worker_opens_v1(p_epoch bigint, p_keks text[]) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  delete from pgmail.worker_key k where not exists (select from pgmail.worker w where w.epoch = k.epoch);
  insert into pgmail.worker_key (epoch, kek) select p_epoch, k from (select unnest(p_keks) union select '') x(k) on conflict do nothing;
$$;

CREATE FUNCTION pgmail.worker_start_v1(p_host text, p_pid integer, p_program text, p_concurrency integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.worker (host, pid, program, concurrency) values (p_host, p_pid, p_program, p_concurrency) returning epoch
$$;

CREATE FUNCTION pgmail.worker_start_v2(p_host text, p_pid integer, p_program text, p_concurrency integer, p_staging text) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.worker (host, pid, program, concurrency, staging)
  values (p_host, p_pid, p_program, p_concurrency, p_staging) returning epoch
$$;

CREATE FUNCTION pgmail.worker_stop_v1(p_epoch bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
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

CREATE TABLE pgmail.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE pgmail.alert (
    tenant_id integer,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    rule_id bigint CONSTRAINT alert_rule_id_not_null1 NOT NULL,
    rule text NOT NULL,
    kind text NOT NULL,
    subject text NOT NULL,
    severity text NOT NULL,
    state text NOT NULL,
    since timestamp with time zone NOT NULL,
    fired_at timestamp with time zone,
    resolved_at timestamp with time zone,
    calm_since timestamp with time zone,
    told_at timestamp with time zone,
    value double precision NOT NULL,
    threshold double precision NOT NULL,
    words text NOT NULL,
    over text,
    path text NOT NULL,
    CONSTRAINT alert_state_check CHECK ((state = ANY (ARRAY['pending'::text, 'firing'::text, 'resolved'::text])))
)
WITH (fillfactor='70');

ALTER TABLE ONLY pgmail.alert FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.alert_delivery (
    tenant_id integer,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    target_id uuid NOT NULL,
    alert_id uuid,
    event text NOT NULL,
    state text DEFAULT 'waiting'::text NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    due_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    made_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    done_at timestamp with time zone,
    answer text,
    CONSTRAINT alert_delivery_event_check CHECK ((event = ANY (ARRAY['firing'::text, 'reminder'::text, 'resolved'::text, 'test'::text]))),
    CONSTRAINT alert_delivery_state_check CHECK ((state = ANY (ARRAY['waiting'::text, 'sent'::text, 'failed'::text])))
)
WITH (fillfactor='70');

ALTER TABLE ONLY pgmail.alert_delivery FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.alert_horizon (
    at timestamp with time zone NOT NULL,
    xid bigint NOT NULL
);

ALTER TABLE ONLY pgmail.alert_horizon FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.alert_meter (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    at timestamp with time zone NOT NULL,
    enqueued bigint NOT NULL,
    sent bigint NOT NULL,
    bounced bigint NOT NULL,
    dead bigint NOT NULL,
    settled bigint NOT NULL
);

ALTER TABLE ONLY pgmail.alert_meter FORCE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_rule ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME pgmail.alert_rule_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE pgmail.alert_silence (
    tenant_id integer,
    rule text NOT NULL,
    subject text DEFAULT '*'::text NOT NULL,
    reason text NOT NULL,
    until timestamp with time zone,
    silenced_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    silenced_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT alert_silence_reason_check CHECK ((reason <> ''::text))
);

ALTER TABLE ONLY pgmail.alert_silence FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.alert_target (
    tenant_id integer,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    name text NOT NULL,
    kind text NOT NULL,
    shown text NOT NULL,
    secret bytea NOT NULL,
    kek text,
    severity text DEFAULT 'warning'::text NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    told_at timestamp with time zone,
    failing_since timestamp with time zone,
    answer text,
    CONSTRAINT alert_target_kind_check CHECK ((kind = ANY (ARRAY['webhook'::text, 'slack'::text, 'email'::text]))),
    CONSTRAINT alert_target_name_check CHECK ((name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$'::text)),
    CONSTRAINT alert_target_severity_check CHECK ((severity = ANY (ARRAY['info'::text, 'warning'::text, 'critical'::text])))
);

ALTER TABLE ONLY pgmail.alert_target FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.asset (
    tenant_id integer NOT NULL,
    name text NOT NULL,
    filename text NOT NULL,
    content_type text NOT NULL,
    size_bytes integer NOT NULL,
    body bytea NOT NULL,
    key_id integer,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT asset_name_check CHECK ((name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$'::text))
);

ALTER TABLE ONLY pgmail.asset FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.attachment (
    tenant_id integer NOT NULL,
    message_id uuid NOT NULL,
    "position" smallint NOT NULL,
    filename text NOT NULL,
    content_type text,
    content_id text,
    asset text,
    size_bytes integer NOT NULL,
    body bytea,
    key_id integer,
    CONSTRAINT attachment_check CHECK (((body IS NULL) = (asset IS NOT NULL)))
)
PARTITION BY RANGE (message_id);

ALTER TABLE ONLY pgmail.attachment FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.attachment_default (
    tenant_id integer CONSTRAINT attachment_tenant_id_not_null NOT NULL,
    message_id uuid CONSTRAINT attachment_message_id_not_null NOT NULL,
    "position" smallint CONSTRAINT attachment_position_not_null NOT NULL,
    filename text CONSTRAINT attachment_filename_not_null NOT NULL,
    content_type text,
    content_id text,
    asset text,
    size_bytes integer CONSTRAINT attachment_size_bytes_not_null NOT NULL,
    body bytea,
    key_id integer,
    CONSTRAINT attachment_check CHECK (((body IS NULL) = (asset IS NOT NULL)))
);

ALTER TABLE ONLY pgmail.attachment_default FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.audit (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    tenant_id integer,
    actor text NOT NULL,
    action text NOT NULL,
    object text,
    reason text,
    source text,
    application text
);

ALTER TABLE ONLY pgmail.audit FORCE ROW LEVEL SECURITY;

ALTER TABLE pgmail.audit ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME pgmail.audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE pgmail.backlog (
    tenant_id integer NOT NULL,
    lane bigint NOT NULL,
    depth bigint NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.backlog FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.bounced (
    tenant_id integer NOT NULL,
    id bigint NOT NULL,
    recipient_id uuid NOT NULL,
    source text,
    tries integer DEFAULT 0 NOT NULL
);

ALTER TABLE ONLY pgmail.bounced FORCE ROW LEVEL SECURITY;

ALTER TABLE pgmail.bounced ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME pgmail.bounced_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE pgmail.bucket (
    scope text NOT NULL,
    name text NOT NULL,
    last_at timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.bucket FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.cause (
    tenant_id integer NOT NULL,
    at timestamp with time zone NOT NULL,
    kind text NOT NULL,
    class text NOT NULL,
    reason text NOT NULL,
    code smallint NOT NULL,
    enhanced text NOT NULL,
    text text NOT NULL,
    n bigint NOT NULL,
    last_at timestamp with time zone NOT NULL,
    examples uuid[] NOT NULL,
    CONSTRAINT cause_kind_check CHECK ((kind = ANY (ARRAY['bounced'::text, 'deferred'::text, 'dead'::text, 'in_doubt'::text])))
)
WITH (fillfactor='70');

ALTER TABLE ONLY pgmail.cause FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.certificate (
    name text NOT NULL,
    place text NOT NULL,
    ends_at timestamp with time zone,
    seen_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    unseen_since timestamp with time zone,
    answer text
);

ALTER TABLE ONLY pgmail.certificate FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.content_left (
    tenant_id integer NOT NULL,
    message_id uuid NOT NULL,
    stream text NOT NULL
);

ALTER TABLE ONLY pgmail.content_left FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.content_mark (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    done_to uuid NOT NULL
);

ALTER TABLE ONLY pgmail.content_mark FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.data_key (
    tenant_id integer NOT NULL,
    id integer NOT NULL,
    wrapped bytea NOT NULL,
    kek text NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text NOT NULL,
    wrapped_at timestamp with time zone DEFAULT pgmail.now() NOT NULL
);

ALTER TABLE ONLY pgmail.data_key FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.database_role (
    role_name name NOT NULL,
    tenant_id integer,
    carries_tenant boolean DEFAULT false NOT NULL,
    CONSTRAINT database_role_check CHECK (((tenant_id IS NULL) OR (NOT carries_tenant)))
);

ALTER TABLE ONLY pgmail.database_role FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.dead_letter (
    tenant_id integer NOT NULL,
    recipient_id uuid NOT NULL,
    message_id uuid NOT NULL,
    lane bigint NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    site text NOT NULL,
    died_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    reason text NOT NULL,
    error text,
    attempts smallint NOT NULL,
    claims integer DEFAULT 0 NOT NULL,
    code smallint,
    enhanced text,
    reply text,
    expires_at timestamp with time zone
);

ALTER TABLE ONLY pgmail.dead_letter FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.door (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL,
    priority smallint DEFAULT 1 NOT NULL,
    until timestamp with time zone NOT NULL,
    spread real DEFAULT 0 NOT NULL,
    reason text NOT NULL,
    CONSTRAINT door_kind_check CHECK ((kind = ANY (ARRAY['rate'::text, 'day'::text, 'queued'::text, 'pressure'::text, 'bound'::text])))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.door FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.erasure_salt (
    tenant_id integer NOT NULL,
    salt bytea NOT NULL
);

ALTER TABLE ONLY pgmail.erasure_salt FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.event (
    tenant_id integer NOT NULL,
    recipient_id uuid NOT NULL,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    message_id uuid NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() NOT NULL,
    type text NOT NULL,
    attempt smallint,
    code smallint,
    enhanced text,
    reply text,
    phase text,
    site text,
    relay text,
    remote_host text,
    tls text,
    ms integer,
    worker bigint,
    detail text,
    CONSTRAINT event_type_check CHECK ((type = ANY (ARRAY['email.queued'::text, 'email.scheduled'::text, 'email.sending'::text, 'email.deferred'::text, 'email.delayed'::text, 'email.sent'::text, 'email.delivered'::text, 'email.bounced'::text, 'email.complained'::text, 'email.suppressed'::text, 'email.expired'::text, 'email.cancelled'::text, 'email.held'::text, 'email.in_doubt'::text, 'email.failed'::text, 'email.opened'::text, 'email.clicked'::text, 'email.unsubscribed'::text])))
)
PARTITION BY RANGE (recipient_id);

ALTER TABLE ONLY pgmail.event FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.event_default (
    tenant_id integer CONSTRAINT event_tenant_id_not_null NOT NULL,
    recipient_id uuid CONSTRAINT event_recipient_id_not_null NOT NULL,
    id uuid DEFAULT pgmail.uuid7() CONSTRAINT event_id_not_null NOT NULL,
    message_id uuid CONSTRAINT event_message_id_not_null NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() CONSTRAINT event_at_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id() CONSTRAINT event_xid_not_null NOT NULL,
    type text CONSTRAINT event_type_not_null NOT NULL,
    attempt smallint,
    code smallint,
    enhanced text,
    reply text,
    phase text,
    site text,
    relay text,
    remote_host text,
    tls text,
    ms integer,
    worker bigint,
    detail text,
    CONSTRAINT event_type_check CHECK ((type = ANY (ARRAY['email.queued'::text, 'email.scheduled'::text, 'email.sending'::text, 'email.deferred'::text, 'email.delayed'::text, 'email.sent'::text, 'email.delivered'::text, 'email.bounced'::text, 'email.complained'::text, 'email.suppressed'::text, 'email.expired'::text, 'email.cancelled'::text, 'email.held'::text, 'email.in_doubt'::text, 'email.failed'::text, 'email.opened'::text, 'email.clicked'::text, 'email.unsubscribed'::text])))
);

ALTER TABLE ONLY pgmail.event_default FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.feed_home (
    singleton boolean DEFAULT true NOT NULL,
    written xid,
    from_xid xid8,
    below uuid,
    CONSTRAINT feed_home_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.feed_home FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.fence (
    singleton boolean DEFAULT true NOT NULL,
    noticed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    noticed_by text NOT NULL,
    reason text NOT NULL,
    generation integer DEFAULT 0 NOT NULL,
    lost_from timestamp with time zone,
    lost_until timestamp with time zone,
    seen jsonb,
    found jsonb,
    CONSTRAINT fence_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.fence FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.gauge (
    tenant_id integer NOT NULL,
    lane bigint NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    site text NOT NULL,
    oldest_due_at timestamp with time zone,
    queued bigint DEFAULT 0 NOT NULL,
    scheduled bigint DEFAULT 0 NOT NULL,
    deferred bigint DEFAULT 0 NOT NULL,
    held bigint DEFAULT 0 NOT NULL,
    sending bigint DEFAULT 0 NOT NULL,
    in_doubt bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.gauge FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.guess (
    client text NOT NULL,
    level real NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.guess FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.history (
    generation integer NOT NULL,
    id uuid DEFAULT gen_random_uuid() NOT NULL,
    root uuid NOT NULL,
    began_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    accepted_by text,
    decision text,
    reason text,
    CONSTRAINT history_decision_check CHECK ((decision = ANY (ARRAY['hold'::text, 'resend'::text, 'assume_sent'::text]))),
    CONSTRAINT history_generation_check CHECK ((generation > 0))
);

ALTER TABLE ONLY pgmail.history FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.hook_attempt (
    tenant_id integer NOT NULL,
    hook_id uuid NOT NULL,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    event_id uuid NOT NULL,
    email_id uuid,
    recipient_id uuid,
    type text NOT NULL,
    event_at timestamp with time zone NOT NULL,
    attempt smallint NOT NULL,
    outcome text NOT NULL,
    status smallint,
    ms integer,
    error text,
    answer text,
    next_at timestamp with time zone,
    CONSTRAINT hook_attempt_outcome_check CHECK ((outcome = ANY (ARRAY['delivered'::text, 'retrying'::text, 'failed'::text, 'dropped'::text])))
);

ALTER TABLE ONLY pgmail.hook_attempt FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.hook_cursor (
    singleton boolean DEFAULT true NOT NULL,
    written xid,
    seen pg_snapshot,
    seen_at timestamp with time zone,
    until pg_snapshot,
    xid xid8,
    place uuid,
    event_id uuid,
    CONSTRAINT hook_cursor_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.hook_cursor FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.hook_queue (
    tenant_id integer NOT NULL,
    hook_id uuid NOT NULL,
    event_id uuid NOT NULL,
    email_id uuid,
    recipient_id uuid,
    type text NOT NULL,
    at timestamp with time zone NOT NULL,
    queued_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    due_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    leased_until timestamp with time zone,
    claims integer DEFAULT 0 NOT NULL,
    replayed boolean DEFAULT false NOT NULL
)
WITH (fillfactor='60', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY pgmail.hook_queue FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.hook_secret (
    tenant_id integer NOT NULL,
    hook_id uuid NOT NULL,
    id integer NOT NULL,
    key_id integer NOT NULL,
    sealed bytea NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text NOT NULL,
    ends_at timestamp with time zone
);

ALTER TABLE ONLY pgmail.hook_secret FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.idempotency (
    tenant_id integer NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    ids uuid[] NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

ALTER TABLE ONLY pgmail.idempotency FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.insight_cursor (
    singleton boolean DEFAULT true NOT NULL,
    seen pg_snapshot NOT NULL,
    upto pg_snapshot,
    upto_at timestamp with time zone,
    at_xid xid8,
    at_id uuid,
    since uuid DEFAULT '00000000-0000-0000-0000-000000000000'::uuid NOT NULL,
    rolled_at timestamp with time zone,
    gauged_at timestamp with time zone,
    counted_at timestamp with time zone,
    CONSTRAINT insight_cursor_singleton_check CHECK (singleton)
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.insight_cursor FORCE ROW LEVEL SECURITY;

CREATE SEQUENCE pgmail.lane_version
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE pgmail.lane (
    tenant_id integer NOT NULL,
    id bigint NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    site text NOT NULL,
    active boolean DEFAULT true NOT NULL,
    version bigint DEFAULT nextval('pgmail.lane_version'::regclass) NOT NULL,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    rewind_to timestamp with time zone
)
WITH (fillfactor='70');

ALTER TABLE ONLY pgmail.lane FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.lane_touch (
    tenant_id integer NOT NULL,
    lane bigint NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    site text NOT NULL,
    due_at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY pgmail.lane_touch FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.leader (
    singleton boolean DEFAULT true NOT NULL,
    epoch bigint,
    until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    doors_at timestamp with time zone,
    CONSTRAINT leader_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.leader FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.queue (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    message_id uuid NOT NULL,
    lane bigint NOT NULL,
    due_at timestamp with time zone NOT NULL,
    leased_by bigint,
    leased_at timestamp with time zone,
    claims integer DEFAULT 0 NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    rescues smallint DEFAULT 0 NOT NULL,
    tried_since timestamp with time zone,
    later boolean DEFAULT false NOT NULL,
    wait text,
    hold_reason text,
    held_due_at timestamp with time zone,
    expires_at timestamp with time zone,
    unsent_claims integer,
    begun_relay text,
    in_doubt boolean DEFAULT false NOT NULL,
    CONSTRAINT queue_wait_check CHECK ((wait = ANY (ARRAY['scheduled'::text, 'deferred'::text, 'delayed'::text])))
)
WITH (fillfactor='45', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_scale_factor='0.2', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0.2');

ALTER TABLE ONLY pgmail.queue FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tally (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL,
    n bigint NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    bytes bigint,
    lanes bigint[],
    per_lane integer[],
    CONSTRAINT tally_kind_check CHECK ((kind = ANY (ARRAY['enqueued'::text, 'sent'::text, 'bounced'::text, 'suppressed'::text, 'expired'::text, 'cancelled'::text, 'dead'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

ALTER TABLE ONLY pgmail.tally FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tally_total (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL,
    n bigint NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.tally_total FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tenant (
    id integer NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    weight real DEFAULT 1 NOT NULL,
    senders text DEFAULT 'verified'::text NOT NULL,
    CONSTRAINT tenant_senders_check CHECK ((senders = ANY (ARRAY['any'::text, 'verified'::text]))),
    CONSTRAINT tenant_weight_check CHECK (((weight > (0)::double precision) AND (weight <= (1000)::double precision)))
);

ALTER TABLE ONLY pgmail.tenant FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.ledger WITH (security_invoker='true') AS
 WITH counted AS (
         SELECT t.tenant_id,
            t.kind,
            sum(t.n) AS n
           FROM ( SELECT tally.tenant_id,
                    tally.kind,
                    tally.n
                   FROM pgmail.tally
                UNION ALL
                 SELECT tally_total.tenant_id,
                    tally_total.kind,
                    tally_total.n
                   FROM pgmail.tally_total) t
          GROUP BY t.tenant_id, t.kind
        ), waiting AS (
         SELECT queue.tenant_id,
            pgmail.state_of(NULL::text, false, true, (queue.leased_by IS NOT NULL), queue.due_at, queue.wait, pgmail.now()) AS state,
            count(*) AS n
           FROM pgmail.queue
          GROUP BY queue.tenant_id, (pgmail.state_of(NULL::text, false, true, (queue.leased_by IS NOT NULL), queue.due_at, queue.wait, pgmail.now()))
        ), died AS (
         SELECT dead_letter.tenant_id,
            count(*) AS n
           FROM pgmail.dead_letter
          GROUP BY dead_letter.tenant_id
        ), figures AS (
         SELECT t.name AS tenant,
            t.id AS tenant_id,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'enqueued'::text))), (0)::numeric))::bigint AS enqueued,
            COALESCE(( SELECT w.n
                   FROM waiting w
                  WHERE ((w.tenant_id = t.id) AND (w.state = 'scheduled'::text))), (0)::bigint) AS scheduled,
            COALESCE(( SELECT w.n
                   FROM waiting w
                  WHERE ((w.tenant_id = t.id) AND (w.state = 'queued'::text))), (0)::bigint) AS queued,
            COALESCE(( SELECT w.n
                   FROM waiting w
                  WHERE ((w.tenant_id = t.id) AND (w.state = 'sending'::text))), (0)::bigint) AS sending,
            COALESCE(( SELECT w.n
                   FROM waiting w
                  WHERE ((w.tenant_id = t.id) AND (w.state = 'deferred'::text))), (0)::bigint) AS deferred,
            COALESCE(( SELECT w.n
                   FROM waiting w
                  WHERE ((w.tenant_id = t.id) AND (w.state = 'held'::text))), (0)::bigint) AS held,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'sent'::text))), (0)::numeric))::bigint AS sent,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'bounced'::text))), (0)::numeric))::bigint AS bounced,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'suppressed'::text))), (0)::numeric))::bigint AS suppressed,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'expired'::text))), (0)::numeric))::bigint AS expired,
            (COALESCE(( SELECT c.n
                   FROM counted c
                  WHERE ((c.tenant_id = t.id) AND (c.kind = 'cancelled'::text))), (0)::numeric))::bigint AS cancelled,
            COALESCE(( SELECT d.n
                   FROM died d
                  WHERE (d.tenant_id = t.id)), (0)::bigint) AS dead
           FROM pgmail.tenant t
        )
 SELECT tenant,
    tenant_id,
    enqueued,
    scheduled,
    queued,
    sending,
    deferred,
    held,
    sent,
    bounced,
    suppressed,
    expired,
    cancelled,
    dead,
    (enqueued - ((((((((((scheduled + queued) + sending) + deferred) + held) + sent) + bounced) + suppressed) + expired) + cancelled) + dead)) AS difference
   FROM figures;

CREATE TABLE pgmail.lost_worker (
    epoch bigint NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    program text NOT NULL,
    beat_at timestamp with time zone NOT NULL,
    lost_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    stopped boolean DEFAULT false NOT NULL
);

ALTER TABLE ONLY pgmail.lost_worker FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.message (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    created_at timestamp with time zone NOT NULL,
    created_by text NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    mode text NOT NULL,
    sender text NOT NULL,
    recipients smallint NOT NULL,
    scheduled_at timestamp with time zone,
    expires_at timestamp with time zone,
    template text,
    template_version integer,
    size_bytes integer NOT NULL,
    tags jsonb,
    metadata jsonb,
    replay_of uuid,
    idempotency_key text,
    content bytea NOT NULL,
    key_id integer,
    api_key uuid,
    test boolean DEFAULT false NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id(),
    traceparent text,
    CONSTRAINT message_mode_check CHECK ((mode = ANY (ARRAY['envelope'::text, 'personal'::text])))
)
PARTITION BY RANGE (id);

ALTER TABLE ONLY pgmail.message FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.message_default (
    tenant_id integer CONSTRAINT message_tenant_id_not_null NOT NULL,
    id uuid CONSTRAINT message_id_not_null NOT NULL,
    created_at timestamp with time zone CONSTRAINT message_created_at_not_null NOT NULL,
    created_by text CONSTRAINT message_created_by_not_null NOT NULL,
    stream text CONSTRAINT message_stream_not_null NOT NULL,
    priority smallint CONSTRAINT message_priority_not_null NOT NULL,
    mode text CONSTRAINT message_mode_not_null NOT NULL,
    sender text CONSTRAINT message_sender_not_null NOT NULL,
    recipients smallint CONSTRAINT message_recipients_not_null NOT NULL,
    scheduled_at timestamp with time zone,
    expires_at timestamp with time zone,
    template text,
    template_version integer,
    size_bytes integer CONSTRAINT message_size_bytes_not_null NOT NULL,
    tags jsonb,
    metadata jsonb,
    replay_of uuid,
    idempotency_key text,
    content bytea CONSTRAINT message_content_not_null NOT NULL,
    key_id integer,
    api_key uuid,
    test boolean DEFAULT false CONSTRAINT message_test_not_null NOT NULL,
    xid xid8 DEFAULT pg_current_xact_id(),
    traceparent text,
    CONSTRAINT message_mode_check CHECK ((mode = ANY (ARRAY['envelope'::text, 'personal'::text])))
);

ALTER TABLE ONLY pgmail.message_default FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.my_attachment WITH (security_barrier='true') AS
 SELECT message_id,
    "position",
    filename,
    content_type,
    content_id,
    asset,
    size_bytes,
    body,
    key_id
   FROM pgmail.attachment
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_content WITH (security_barrier='true') AS
 SELECT id AS message_id,
    content,
    key_id
   FROM pgmail.message
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_dead_letter WITH (security_barrier='true') AS
 SELECT recipient_id,
    message_id,
    stream,
    priority,
    site,
    died_at,
    reason,
    error,
    attempts,
    code,
    enhanced,
    reply,
    expires_at
   FROM pgmail.dead_letter
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_event WITH (security_barrier='true') AS
 SELECT recipient_id,
    id,
    message_id,
    at,
    type,
    attempt,
    code,
    enhanced,
    reply,
    phase,
    site,
    relay,
    remote_host,
    tls,
    ms,
    detail
   FROM pgmail.event
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_message WITH (security_barrier='true') AS
 SELECT id,
    created_at,
    created_by,
    stream,
    priority,
    mode,
    sender,
    recipients,
    scheduled_at,
    expires_at,
    template,
    template_version,
    size_bytes,
    tags,
    metadata,
    replay_of,
    idempotency_key
   FROM pgmail.message
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE TABLE pgmail.outcome (
    tenant_id integer NOT NULL,
    recipient_id uuid NOT NULL,
    message_id uuid NOT NULL,
    state text NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    stream text NOT NULL,
    site text NOT NULL,
    attempts smallint DEFAULT 0 NOT NULL,
    code smallint,
    enhanced text,
    reply text,
    reason text,
    relay text,
    remote_host text,
    CONSTRAINT outcome_state_check CHECK ((state = ANY (ARRAY['sent'::text, 'bounced'::text, 'suppressed'::text, 'expired'::text, 'cancelled'::text])))
)
PARTITION BY RANGE (recipient_id);

ALTER TABLE ONLY pgmail.outcome FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.my_outcome WITH (security_barrier='true') AS
 SELECT recipient_id,
    message_id,
    state,
    at,
    stream,
    site,
    attempts,
    code,
    enhanced,
    reply,
    reason,
    relay,
    remote_host
   FROM pgmail.outcome
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_queue WITH (security_barrier='true') AS
 SELECT id,
    message_id,
    pgmail.state_of(NULL::text, false, true, (leased_by IS NOT NULL), due_at, wait, pgmail.now()) AS state,
        CASE
            WHEN (due_at = 'infinity'::timestamp with time zone) THEN held_due_at
            ELSE due_at
        END AS due_at,
    leased_at,
    attempts,
    hold_reason,
    in_doubt,
    expires_at
   FROM pgmail.queue
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE TABLE pgmail.recipient (
    tenant_id integer NOT NULL,
    id uuid NOT NULL,
    message_id uuid NOT NULL,
    "position" smallint NOT NULL,
    role text NOT NULL,
    address text NOT NULL,
    rcpt text,
    name text,
    site text NOT NULL,
    variables bytea,
    key_id integer,
    CONSTRAINT recipient_role_check CHECK ((role = ANY (ARRAY['to'::text, 'cc'::text, 'bcc'::text])))
)
PARTITION BY RANGE (id);

ALTER TABLE ONLY pgmail.recipient FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.my_recipient WITH (security_barrier='true') AS
 SELECT id,
    message_id,
    "position",
    role,
    address,
    rcpt,
    name,
    site
   FROM pgmail.recipient
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE TABLE pgmail.stream (
    tenant_id integer NOT NULL,
    name text NOT NULL,
    priority smallint DEFAULT 2 NOT NULL,
    relay text DEFAULT 'default'::text NOT NULL,
    on_doubt text DEFAULT 'resend'::text NOT NULL,
    trace text DEFAULT 'full'::text NOT NULL,
    retry_base_seconds real DEFAULT 30 NOT NULL,
    retry_factor real DEFAULT 3 NOT NULL,
    retry_cap_seconds real DEFAULT 14400 NOT NULL,
    retry_jitter real DEFAULT 0.2 NOT NULL,
    max_attempts integer DEFAULT 20 NOT NULL,
    max_age_seconds integer DEFAULT 259200 NOT NULL,
    max_queued bigint,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    relays text[],
    relay_weights real[],
    suppress_bounced boolean DEFAULT true NOT NULL,
    keep_content_days integer,
    seal text DEFAULT 'off'::text NOT NULL,
    CONSTRAINT stream_check CHECK (((relays IS NULL) OR (((cardinality(relays) >= 2) AND (cardinality(relays) <= 16)) AND (relays[1] = relay)))),
    CONSTRAINT stream_check1 CHECK (((relay_weights IS NULL) OR ((relays IS NOT NULL) AND (cardinality(relay_weights) = cardinality(relays)) AND ((0)::double precision < ALL (relay_weights))))),
    CONSTRAINT stream_keep_content_days_check CHECK (((keep_content_days >= 1) AND (keep_content_days <= 36500))),
    CONSTRAINT stream_max_age_seconds_check CHECK ((max_age_seconds > 0)),
    CONSTRAINT stream_max_attempts_check CHECK ((max_attempts > 0)),
    CONSTRAINT stream_max_attempts_most CHECK ((max_attempts <= 1000)),
    CONSTRAINT stream_max_queued_check CHECK ((max_queued >= 0)),
    CONSTRAINT stream_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text)),
    CONSTRAINT stream_on_doubt_check CHECK ((on_doubt = ANY (ARRAY['resend'::text, 'hold'::text]))),
    CONSTRAINT stream_priority_check CHECK (((priority >= 1) AND (priority <= 3))),
    CONSTRAINT stream_relay_weights_most CHECK (((1000)::double precision >= ALL (relay_weights))),
    CONSTRAINT stream_retry_base_seconds_check CHECK ((retry_base_seconds > (0)::double precision)),
    CONSTRAINT stream_retry_base_seconds_most CHECK ((retry_base_seconds <= (31536000)::double precision)),
    CONSTRAINT stream_retry_cap_seconds_check CHECK ((retry_cap_seconds > (0)::double precision)),
    CONSTRAINT stream_retry_cap_seconds_most CHECK ((retry_cap_seconds <= (31536000)::double precision)),
    CONSTRAINT stream_retry_factor_check CHECK ((retry_factor >= (1)::double precision)),
    CONSTRAINT stream_retry_factor_most CHECK ((retry_factor <= (1000)::double precision)),
    CONSTRAINT stream_retry_jitter_check CHECK (((retry_jitter >= (0)::double precision) AND (retry_jitter <= (1)::double precision))),
    CONSTRAINT stream_seal_check CHECK ((seal = ANY (ARRAY['off'::text, 'where_possible'::text, 'required'::text]))),
    CONSTRAINT stream_trace_check CHECK ((trace = ANY (ARRAY['full'::text, 'lean'::text])))
);

ALTER TABLE ONLY pgmail.stream FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.my_stream WITH (security_barrier='true') AS
 SELECT name,
    priority,
    relay,
    on_doubt,
    trace,
    max_attempts,
    max_age_seconds,
    max_queued,
    suppress_bounced,
    keep_content_days,
    created_at
   FROM pgmail.stream
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE TABLE pgmail.suppression (
    tenant_id integer NOT NULL,
    address text NOT NULL,
    stream text DEFAULT ''::text NOT NULL,
    reason text NOT NULL,
    source text,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT suppression_reason_check CHECK ((reason = ANY (ARRAY['bounced'::text, 'complained'::text, 'unsubscribed'::text, 'manual'::text, 'invalid'::text])))
);

ALTER TABLE ONLY pgmail.suppression FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.my_suppression WITH (security_barrier='true') AS
 SELECT address,
    stream,
    reason,
    source,
    created_at,
    created_by,
    expires_at
   FROM pgmail.suppression
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE VIEW pgmail.my_total WITH (security_barrier='true') AS
 SELECT stream,
    kind,
    (sum(n))::bigint AS n
   FROM ( SELECT tally.stream,
            tally.kind,
            tally.n
           FROM pgmail.tally
          WHERE (tally.tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
        UNION ALL
         SELECT tally_total.stream,
            tally_total.kind,
            tally_total.n
           FROM pgmail.tally_total
          WHERE (tally_total.tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))) t
  GROUP BY stream, kind
 OFFSET 0;

CREATE VIEW pgmail.my_variables WITH (security_barrier='true') AS
 SELECT id AS recipient_id,
    message_id,
    variables,
    key_id
   FROM pgmail.recipient
  WHERE (tenant_id = ( SELECT pgmail.current_tenant() AS current_tenant))
 OFFSET 0;

CREATE TABLE pgmail.outcome_default (
    tenant_id integer CONSTRAINT outcome_tenant_id_not_null NOT NULL,
    recipient_id uuid CONSTRAINT outcome_recipient_id_not_null NOT NULL,
    message_id uuid CONSTRAINT outcome_message_id_not_null NOT NULL,
    state text CONSTRAINT outcome_state_not_null NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() CONSTRAINT outcome_at_not_null NOT NULL,
    stream text CONSTRAINT outcome_stream_not_null NOT NULL,
    site text CONSTRAINT outcome_site_not_null NOT NULL,
    attempts smallint DEFAULT 0 CONSTRAINT outcome_attempts_not_null NOT NULL,
    code smallint,
    enhanced text,
    reply text,
    reason text,
    relay text,
    remote_host text,
    CONSTRAINT outcome_state_check CHECK ((state = ANY (ARRAY['sent'::text, 'bounced'::text, 'suppressed'::text, 'expired'::text, 'cancelled'::text])))
);

ALTER TABLE ONLY pgmail.outcome_default FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.pause (
    tenant_id integer,
    scope text NOT NULL,
    name text NOT NULL,
    reason text NOT NULL,
    until timestamp with time zone,
    paused_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    paused_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT pause_reason_check CHECK ((reason <> ''::text)),
    CONSTRAINT pause_scope_check CHECK (((scope = ANY (ARRAY['site'::text, 'stream'::text, 'lane'::text, 'tenant'::text])) AND ((scope <> 'tenant'::text) OR (tenant_id IS NOT NULL))))
);

ALTER TABLE ONLY pgmail.pause FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.permit (
    scope text NOT NULL,
    name text NOT NULL,
    epoch bigint NOT NULL,
    held integer NOT NULL,
    wanted integer NOT NULL,
    seen_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    CONSTRAINT permit_held_check CHECK ((held >= 0)),
    CONSTRAINT permit_wanted_check CHECK ((wanted >= 0))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.permit FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.pulse (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    at timestamp with time zone NOT NULL,
    enqueued bigint NOT NULL,
    sent bigint NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.pulse FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.quota (
    tenant_id integer,
    scope text NOT NULL,
    name text NOT NULL,
    per_second integer,
    per_day bigint,
    max_queued bigint,
    pressure_depth bigint,
    pressure_seconds integer,
    bound_mails bigint,
    bound_bytes bigint,
    note text,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT quota_bound_bytes_check CHECK (((bound_bytes >= 1) AND (bound_bytes <= '1000000000000000'::bigint))),
    CONSTRAINT quota_bound_mails_check CHECK (((bound_mails >= 1) AND (bound_mails <= '1000000000000'::bigint))),
    CONSTRAINT quota_check CHECK (((scope = 'fleet'::text) = (tenant_id IS NULL))),
    CONSTRAINT quota_check1 CHECK (((scope = ANY (ARRAY['fleet'::text, 'tenant'::text])) = (name = ''::text))),
    CONSTRAINT quota_check2 CHECK (((scope <> 'fleet'::text) OR ((per_second IS NULL) AND (per_day IS NULL) AND (max_queued IS NULL)))),
    CONSTRAINT quota_check3 CHECK (((scope = ANY (ARRAY['fleet'::text, 'tenant'::text])) OR ((pressure_depth IS NULL) AND (pressure_seconds IS NULL) AND (bound_mails IS NULL) AND (bound_bytes IS NULL)))),
    CONSTRAINT quota_check4 CHECK (((scope <> 'key'::text) OR (max_queued IS NULL))),
    CONSTRAINT quota_max_queued_check CHECK (((max_queued >= 0) AND (max_queued <= '1000000000000'::bigint))),
    CONSTRAINT quota_per_day_check CHECK (((per_day >= 1) AND (per_day <= '1000000000000'::bigint))),
    CONSTRAINT quota_per_second_check CHECK (((per_second >= 1) AND (per_second <= 1000000))),
    CONSTRAINT quota_pressure_depth_check CHECK (((pressure_depth >= 1) AND (pressure_depth <= '1000000000000'::bigint))),
    CONSTRAINT quota_pressure_seconds_check CHECK (((pressure_seconds >= 1) AND (pressure_seconds <= 31536000))),
    CONSTRAINT quota_scope_check CHECK ((scope = ANY (ARRAY['fleet'::text, 'tenant'::text, 'stream'::text, 'key'::text])))
);

ALTER TABLE ONLY pgmail.quota FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.quota_bucket (
    tenant_id integer NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    slot bigint DEFAULT 0 NOT NULL,
    counts integer[] DEFAULT '{}'::integer[] NOT NULL,
    day date DEFAULT '-infinity'::date NOT NULL,
    used bigint DEFAULT 0 NOT NULL,
    CONSTRAINT quota_bucket_scope_check CHECK ((scope = ANY (ARRAY['tenant'::text, 'stream'::text, 'key'::text])))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.quota_bucket FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.quota_meter (
    tenant_id integer NOT NULL,
    scope text NOT NULL,
    name text NOT NULL,
    seen bigint NOT NULL,
    seen_bytes bigint NOT NULL,
    lately bigint DEFAULT 0 NOT NULL,
    paid_until timestamp with time zone NOT NULL,
    day date NOT NULL,
    owed bigint DEFAULT 0 NOT NULL,
    mails bigint DEFAULT 0 NOT NULL,
    bytes bigint DEFAULT 0 NOT NULL,
    depth bigint DEFAULT 0 NOT NULL,
    CONSTRAINT quota_meter_scope_check CHECK ((scope = ANY (ARRAY['tenant'::text, 'stream'::text])))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.quota_meter FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.recipient_default (
    tenant_id integer CONSTRAINT recipient_tenant_id_not_null NOT NULL,
    id uuid CONSTRAINT recipient_id_not_null NOT NULL,
    message_id uuid CONSTRAINT recipient_message_id_not_null NOT NULL,
    "position" smallint CONSTRAINT recipient_position_not_null NOT NULL,
    role text CONSTRAINT recipient_role_not_null NOT NULL,
    address text CONSTRAINT recipient_address_not_null NOT NULL,
    rcpt text,
    name text,
    site text CONSTRAINT recipient_site_not_null NOT NULL,
    variables bytea,
    key_id integer,
    CONSTRAINT recipient_role_check CHECK ((role = ANY (ARRAY['to'::text, 'cc'::text, 'bcc'::text])))
);

ALTER TABLE ONLY pgmail.recipient_default FORCE ROW LEVEL SECURITY;

CREATE VIEW pgmail.refusal WITH (security_invoker='true') AS
 SELECT e.tenant_id,
    e.recipient_id,
    e.message_id,
    e.at,
    e.type,
    e.attempt,
    e.site,
    e.relay,
    e.remote_host,
    e.code,
    e.enhanced,
    e.phase,
    e.reply,
    e.detail,
    c.reason,
    c.class,
    c.blame,
    c.suppress,
    c.rule
   FROM (pgmail.event e
     CROSS JOIN LATERAL pgmail.classify((e.code)::integer, e.enhanced, e.phase, e.reply) c(reason, class, blame, suppress, follows, slow, alert, rule))
  WHERE (e.code >= 400);

CREATE TABLE pgmail.relay (
    name text NOT NULL,
    state text DEFAULT 'up'::text NOT NULL,
    reason text,
    blocked_until timestamp with time zone,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    up_since timestamp with time zone,
    CONSTRAINT relay_state_check CHECK ((state = ANY (ARRAY['up'::text, 'away'::text, 'paused'::text])))
);

ALTER TABLE ONLY pgmail.relay FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.reply_pattern (
    rule integer NOT NULL,
    unless boolean NOT NULL,
    pattern text NOT NULL,
    needles text[] NOT NULL
);

ALTER TABLE ONLY pgmail.reply_pattern FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.reply_reason (
    name text NOT NULL,
    class text NOT NULL,
    blame text NOT NULL,
    follows text NOT NULL,
    suppress boolean NOT NULL,
    slow boolean NOT NULL,
    alert boolean NOT NULL,
    means text NOT NULL,
    CONSTRAINT reply_reason_blame_check CHECK ((blame = ANY (ARRAY['recipient'::text, 'message'::text, 'sender_reputation'::text, 'sender_configuration'::text, 'remote'::text, 'ours'::text]))),
    CONSTRAINT reply_reason_class_check CHECK ((class = ANY (ARRAY['hard'::text, 'soft'::text, 'block'::text, 'other'::text]))),
    CONSTRAINT reply_reason_follows_check CHECK ((follows = ANY (ARRAY['code'::text, 'retry'::text, 'bounce'::text])))
);

ALTER TABLE ONLY pgmail.reply_reason FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.reply_rule (
    "position" integer NOT NULL,
    name text NOT NULL,
    reason text NOT NULL,
    final boolean,
    code text,
    enhanced text,
    phase text[],
    asks_text boolean NOT NULL
);

ALTER TABLE ONLY pgmail.reply_rule FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.retention (
    singleton boolean DEFAULT true NOT NULL,
    content_days integer DEFAULT 30,
    record_days integer DEFAULT 90,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT retention_check CHECK (((record_days IS NULL) OR ((content_days IS NOT NULL) AND (content_days <= record_days)))),
    CONSTRAINT retention_content_days_check CHECK (((content_days >= 1) AND (content_days <= 36500))),
    CONSTRAINT retention_record_days_check CHECK (((record_days >= 1) AND (record_days <= 36500))),
    CONSTRAINT retention_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.retention FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.rollup (
    tenant_id integer NOT NULL,
    dim text NOT NULL,
    grain text NOT NULL,
    at timestamp with time zone NOT NULL,
    key text NOT NULL,
    kind text NOT NULL,
    bucket smallint DEFAULT 0 NOT NULL,
    n bigint NOT NULL,
    CONSTRAINT rollup_dim_check CHECK ((dim = ANY (ARRAY['stream'::text, 'site'::text, 'relay'::text, 'tag'::text, 'template'::text, 'reason'::text]))),
    CONSTRAINT rollup_grain_check CHECK ((grain = ANY (ARRAY['minute'::text, 'quarter'::text, 'hour'::text, 'day'::text]))),
    CONSTRAINT rollup_kind_check CHECK ((kind = ANY (ARRAY['enqueued'::text, 'sent'::text, 'bounced_hard'::text, 'bounced_soft'::text, 'bounced_block'::text, 'bounced_other'::text, 'deferred'::text, 'delayed'::text, 'suppressed'::text, 'expired'::text, 'cancelled'::text, 'dead'::text, 'in_doubt'::text, 'held'::text, 'took'::text])))
)
WITH (fillfactor='70');

ALTER TABLE ONLY pgmail.rollup FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.schema_version (
    singleton boolean DEFAULT true NOT NULL,
    version integer NOT NULL,
    compatible_from integer NOT NULL,
    installed_at timestamp with time zone DEFAULT now() NOT NULL,
    upgraded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT schema_version_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.schema_version FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.session_secret (
    singleton boolean DEFAULT true NOT NULL,
    secret bytea NOT NULL,
    made_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT session_secret_secret_check CHECK ((octet_length(secret) = 32)),
    CONSTRAINT session_secret_singleton_check CHECK (singleton)
);

ALTER TABLE ONLY pgmail.session_secret FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.site_domain (
    domain text NOT NULL,
    site text NOT NULL,
    CONSTRAINT site_domain_site_check CHECK ((site <> 'test:'::text))
);

ALTER TABLE ONLY pgmail.site_domain FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.slowed_site (
    tenant_id integer NOT NULL,
    site text NOT NULL,
    times smallint NOT NULL,
    until timestamp with time zone NOT NULL
);

ALTER TABLE ONLY pgmail.slowed_site FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tag (
    tenant_id integer NOT NULL,
    name text NOT NULL,
    value text NOT NULL,
    message_id uuid NOT NULL
)
PARTITION BY RANGE (message_id);

ALTER TABLE ONLY pgmail.tag FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tag_default (
    tenant_id integer CONSTRAINT tag_tenant_id_not_null NOT NULL,
    name text CONSTRAINT tag_name_not_null NOT NULL,
    value text CONSTRAINT tag_value_not_null NOT NULL,
    message_id uuid CONSTRAINT tag_message_id_not_null NOT NULL
);

ALTER TABLE ONLY pgmail.tag_default FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.tally_moved (
    tenant_id integer NOT NULL
);

ALTER TABLE ONLY pgmail.tally_moved FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.template (
    tenant_id integer NOT NULL,
    name text NOT NULL,
    version integer NOT NULL,
    state text DEFAULT 'draft'::text NOT NULL,
    subject text,
    body_text text,
    body_html text,
    required text[] DEFAULT '{}'::text[] NOT NULL,
    depends jsonb DEFAULT '{}'::jsonb NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    published_at timestamp with time zone,
    CONSTRAINT template_name_check CHECK ((name ~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$'::text)),
    CONSTRAINT template_state_check CHECK ((state = ANY (ARRAY['draft'::text, 'published'::text]))),
    CONSTRAINT template_version_check CHECK ((version > 0))
);

ALTER TABLE ONLY pgmail.template FORCE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tenant ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME pgmail.tenant_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE pgmail.witness (
    id uuid NOT NULL,
    marks bigint NOT NULL,
    at timestamp with time zone DEFAULT clock_timestamp() NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    program text NOT NULL
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.witness FORCE ROW LEVEL SECURITY;

CREATE SEQUENCE pgmail.worker_epoch
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;

CREATE TABLE pgmail.worker (
    epoch bigint DEFAULT nextval('pgmail.worker_epoch'::regclass) NOT NULL,
    host text NOT NULL,
    pid integer NOT NULL,
    program text NOT NULL,
    concurrency integer NOT NULL,
    state text DEFAULT 'running'::text NOT NULL,
    asleep boolean DEFAULT false NOT NULL,
    beat bigint DEFAULT 0 NOT NULL,
    beat_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    started_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    staging text,
    CONSTRAINT worker_state_check CHECK ((state = ANY (ARRAY['running'::text, 'draining'::text])))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.worker FORCE ROW LEVEL SECURITY;

CREATE TABLE pgmail.worker_key (
    epoch bigint NOT NULL,
    kek text NOT NULL
);

ALTER TABLE ONLY pgmail.worker_key FORCE ROW LEVEL SECURITY;

ALTER TABLE ONLY pgmail.attachment ATTACH PARTITION pgmail.attachment_default DEFAULT;

ALTER TABLE ONLY pgmail.event ATTACH PARTITION pgmail.event_default DEFAULT;

ALTER TABLE ONLY pgmail.message ATTACH PARTITION pgmail.message_default DEFAULT;

ALTER TABLE ONLY pgmail.outcome ATTACH PARTITION pgmail.outcome_default DEFAULT;

ALTER TABLE ONLY pgmail.recipient ATTACH PARTITION pgmail.recipient_default DEFAULT;

ALTER TABLE ONLY pgmail.tag ATTACH PARTITION pgmail.tag_default DEFAULT;

ALTER TABLE ONLY pgmail.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

ALTER TABLE ONLY pgmail.alert_delivery
    ADD CONSTRAINT alert_delivery_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.alert_horizon
    ADD CONSTRAINT alert_horizon_pkey PRIMARY KEY (at);

ALTER TABLE ONLY pgmail.alert_meter
    ADD CONSTRAINT alert_meter_pkey PRIMARY KEY (tenant_id, stream, at);

ALTER TABLE ONLY pgmail.alert
    ADD CONSTRAINT alert_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.alert_rule
    ADD CONSTRAINT alert_rule_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.alert_rule
    ADD CONSTRAINT alert_rule_tenant_id_name_key UNIQUE NULLS NOT DISTINCT (tenant_id, name);

ALTER TABLE ONLY pgmail.alert_silence
    ADD CONSTRAINT alert_silence_tenant_id_rule_subject_key UNIQUE NULLS NOT DISTINCT (tenant_id, rule, subject);

ALTER TABLE ONLY pgmail.alert_target
    ADD CONSTRAINT alert_target_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.alert_target
    ADD CONSTRAINT alert_target_tenant_id_name_key UNIQUE NULLS NOT DISTINCT (tenant_id, name);

ALTER TABLE ONLY pgmail.api_key
    ADD CONSTRAINT api_key_hash_key UNIQUE (hash);

ALTER TABLE ONLY pgmail.api_key
    ADD CONSTRAINT api_key_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.asset
    ADD CONSTRAINT asset_pkey PRIMARY KEY (tenant_id, name);

ALTER TABLE ONLY pgmail.attachment
    ADD CONSTRAINT attachment_pkey PRIMARY KEY (tenant_id, message_id, "position");

ALTER TABLE ONLY pgmail.attachment_default
    ADD CONSTRAINT attachment_default_pkey PRIMARY KEY (tenant_id, message_id, "position");

ALTER TABLE ONLY pgmail.audit
    ADD CONSTRAINT audit_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.backlog
    ADD CONSTRAINT backlog_pkey PRIMARY KEY (tenant_id, lane);

ALTER TABLE ONLY pgmail.bounced
    ADD CONSTRAINT bounced_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.bucket
    ADD CONSTRAINT bucket_pkey PRIMARY KEY (scope, name);

ALTER TABLE ONLY pgmail.cause
    ADD CONSTRAINT cause_pkey PRIMARY KEY (tenant_id, at, kind, class, reason, code, enhanced, text);

ALTER TABLE ONLY pgmail.certificate
    ADD CONSTRAINT certificate_pkey PRIMARY KEY (name);

ALTER TABLE ONLY pgmail.content_left
    ADD CONSTRAINT content_left_pkey PRIMARY KEY (tenant_id, message_id);

ALTER TABLE ONLY pgmail.content_mark
    ADD CONSTRAINT content_mark_pkey PRIMARY KEY (tenant_id, stream);

ALTER TABLE ONLY pgmail.data_key
    ADD CONSTRAINT data_key_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.database_role
    ADD CONSTRAINT database_role_pkey PRIMARY KEY (role_name);

ALTER TABLE ONLY pgmail.dead_letter
    ADD CONSTRAINT dead_letter_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.door
    ADD CONSTRAINT door_pkey PRIMARY KEY (tenant_id, stream, kind);

ALTER TABLE ONLY pgmail.erasure_salt
    ADD CONSTRAINT erasure_salt_pkey PRIMARY KEY (tenant_id);

ALTER TABLE ONLY pgmail.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (tenant_id, recipient_id, id);

ALTER TABLE ONLY pgmail.event_default
    ADD CONSTRAINT event_default_pkey PRIMARY KEY (tenant_id, recipient_id, id);

ALTER TABLE ONLY pgmail.feed_home
    ADD CONSTRAINT feed_home_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.fence
    ADD CONSTRAINT fence_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.gauge
    ADD CONSTRAINT gauge_pkey PRIMARY KEY (tenant_id, lane);

ALTER TABLE ONLY pgmail.guess
    ADD CONSTRAINT guess_pkey PRIMARY KEY (client);

ALTER TABLE ONLY pgmail.history
    ADD CONSTRAINT history_pkey PRIMARY KEY (generation);

ALTER TABLE ONLY pgmail.hook_attempt
    ADD CONSTRAINT hook_attempt_pkey PRIMARY KEY (tenant_id, hook_id, id);

ALTER TABLE ONLY pgmail.hook_cursor
    ADD CONSTRAINT hook_cursor_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.hook
    ADD CONSTRAINT hook_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.hook_queue
    ADD CONSTRAINT hook_queue_pkey PRIMARY KEY (tenant_id, hook_id, event_id);

ALTER TABLE ONLY pgmail.hook_secret
    ADD CONSTRAINT hook_secret_pkey PRIMARY KEY (tenant_id, hook_id, id);

ALTER TABLE ONLY pgmail.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (tenant_id, key);

ALTER TABLE ONLY pgmail.insight_cursor
    ADD CONSTRAINT insight_cursor_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.lane
    ADD CONSTRAINT lane_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.leader
    ADD CONSTRAINT leader_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.limits
    ADD CONSTRAINT limits_pkey PRIMARY KEY (scope, name);

ALTER TABLE ONLY pgmail.lost_worker
    ADD CONSTRAINT lost_worker_pkey PRIMARY KEY (epoch);

ALTER TABLE ONLY pgmail.message
    ADD CONSTRAINT message_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.message_default
    ADD CONSTRAINT message_default_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.outcome
    ADD CONSTRAINT outcome_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.outcome_default
    ADD CONSTRAINT outcome_default_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.pause
    ADD CONSTRAINT pause_tenant_id_scope_name_key UNIQUE NULLS NOT DISTINCT (tenant_id, scope, name);

ALTER TABLE ONLY pgmail.permit
    ADD CONSTRAINT permit_pkey PRIMARY KEY (scope, name, epoch);

ALTER TABLE ONLY pgmail.pulse
    ADD CONSTRAINT pulse_pkey PRIMARY KEY (tenant_id, at, stream);

ALTER TABLE ONLY pgmail.queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.quota_bucket
    ADD CONSTRAINT quota_bucket_pkey PRIMARY KEY (tenant_id, scope, name);

ALTER TABLE ONLY pgmail.quota_meter
    ADD CONSTRAINT quota_meter_pkey PRIMARY KEY (tenant_id, scope, name);

ALTER TABLE ONLY pgmail.quota
    ADD CONSTRAINT quota_tenant_id_scope_name_key UNIQUE NULLS NOT DISTINCT (tenant_id, scope, name);

ALTER TABLE ONLY pgmail.recipient
    ADD CONSTRAINT recipient_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.recipient_default
    ADD CONSTRAINT recipient_default_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.relay
    ADD CONSTRAINT relay_pkey PRIMARY KEY (name);

ALTER TABLE ONLY pgmail.reply_reason
    ADD CONSTRAINT reply_reason_pkey PRIMARY KEY (name);

ALTER TABLE ONLY pgmail.reply_rule
    ADD CONSTRAINT reply_rule_name_key UNIQUE (name);

ALTER TABLE ONLY pgmail.reply_rule
    ADD CONSTRAINT reply_rule_pkey PRIMARY KEY ("position");

ALTER TABLE ONLY pgmail.retention
    ADD CONSTRAINT retention_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.rollup
    ADD CONSTRAINT rollup_pkey PRIMARY KEY (tenant_id, dim, grain, at, key, kind, bucket);

ALTER TABLE ONLY pgmail.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.sender_domain
    ADD CONSTRAINT sender_domain_pkey PRIMARY KEY (tenant_id, domain);

ALTER TABLE ONLY pgmail.sender_domain
    ADD CONSTRAINT sender_domain_tenant_id_id_key UNIQUE (tenant_id, id);

ALTER TABLE ONLY pgmail.session_secret
    ADD CONSTRAINT session_secret_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.site_domain
    ADD CONSTRAINT site_domain_pkey PRIMARY KEY (domain);

ALTER TABLE ONLY pgmail.slowed_site
    ADD CONSTRAINT slowed_site_pkey PRIMARY KEY (tenant_id, site);

ALTER TABLE ONLY pgmail.stream
    ADD CONSTRAINT stream_pkey PRIMARY KEY (tenant_id, name);

ALTER TABLE ONLY pgmail.suppression
    ADD CONSTRAINT suppression_pkey PRIMARY KEY (tenant_id, address, stream);

ALTER TABLE ONLY pgmail.tag
    ADD CONSTRAINT tag_pkey PRIMARY KEY (tenant_id, name, value, message_id);

ALTER TABLE ONLY pgmail.tag_default
    ADD CONSTRAINT tag_default_pkey PRIMARY KEY (tenant_id, name, value, message_id);

ALTER TABLE ONLY pgmail.tally_total
    ADD CONSTRAINT tally_total_pkey PRIMARY KEY (tenant_id, stream, kind);

ALTER TABLE ONLY pgmail.template
    ADD CONSTRAINT template_pkey PRIMARY KEY (tenant_id, name, version);

ALTER TABLE ONLY pgmail.tenant
    ADD CONSTRAINT tenant_name_key UNIQUE (name);

ALTER TABLE ONLY pgmail.tenant
    ADD CONSTRAINT tenant_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.witness
    ADD CONSTRAINT witness_pkey PRIMARY KEY (id);

ALTER TABLE ONLY pgmail.worker_key
    ADD CONSTRAINT worker_key_pkey PRIMARY KEY (epoch, kek);

ALTER TABLE ONLY pgmail.worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (epoch);

CREATE INDEX alert_by_tenant ON pgmail.alert USING btree (tenant_id, id);

CREATE INDEX alert_delivery_alert ON pgmail.alert_delivery USING btree (alert_id);

CREATE INDEX alert_delivery_done ON pgmail.alert_delivery USING btree (done_at) WHERE (state <> 'waiting'::text);

CREATE INDEX alert_delivery_waiting ON pgmail.alert_delivery USING btree (target_id, id) WHERE (state = 'waiting'::text);

CREATE UNIQUE INDEX alert_open ON pgmail.alert USING btree (rule_id, tenant_id, subject) NULLS NOT DISTINCT WHERE (state <> 'resolved'::text);

CREATE INDEX alert_over ON pgmail.alert USING btree (resolved_at) WHERE (state = 'resolved'::text);

CREATE INDEX audit_tenant ON pgmail.audit USING btree (tenant_id, id);

CREATE INDEX event_feed ON ONLY pgmail.event USING btree (xid, id);

CREATE INDEX event_default_xid_id_idx ON pgmail.event_default USING btree (xid, id);

CREATE INDEX hook_attempt_event ON pgmail.hook_attempt USING btree (tenant_id, hook_id, event_id);

CREATE INDEX hook_queue_due ON pgmail.hook_queue USING btree (tenant_id, hook_id, replayed, due_at);

CREATE INDEX idempotency_expiry ON pgmail.idempotency USING btree (expires_at);

CREATE INDEX lane_by_version ON pgmail.lane USING btree (version);

CREATE INDEX message_feed ON ONLY pgmail.message USING btree (xid, id) WHERE (xid IS NOT NULL);

CREATE INDEX message_default_xid_id_idx ON pgmail.message_default USING btree (xid, id) WHERE (xid IS NOT NULL);

CREATE INDEX queue_claim ON pgmail.queue USING btree (tenant_id, lane, due_at, id);

CREATE INDEX queue_doubt ON pgmail.queue USING btree (tenant_id, id) WHERE in_doubt;

CREATE INDEX queue_expiry ON pgmail.queue USING btree (expires_at) WHERE ((expires_at IS NOT NULL) AND (due_at <> 'infinity'::timestamp with time zone));

CREATE INDEX queue_later ON pgmail.queue USING btree (due_at, tenant_id, lane) WHERE later;

CREATE INDEX recipient_address ON ONLY pgmail.recipient USING btree (tenant_id, address, id);

CREATE INDEX recipient_default_tenant_id_address_id_idx ON pgmail.recipient_default USING btree (tenant_id, address, id);

CREATE INDEX recipient_message ON ONLY pgmail.recipient USING btree (tenant_id, message_id);

CREATE INDEX recipient_default_tenant_id_message_id_idx ON pgmail.recipient_default USING btree (tenant_id, message_id);

CREATE INDEX suppression_expiry ON pgmail.suppression USING btree (expires_at) WHERE (expires_at IS NOT NULL);

ALTER INDEX pgmail.attachment_pkey ATTACH PARTITION pgmail.attachment_default_pkey;

ALTER INDEX pgmail.event_pkey ATTACH PARTITION pgmail.event_default_pkey;

ALTER INDEX pgmail.event_feed ATTACH PARTITION pgmail.event_default_xid_id_idx;

ALTER INDEX pgmail.message_pkey ATTACH PARTITION pgmail.message_default_pkey;

ALTER INDEX pgmail.message_feed ATTACH PARTITION pgmail.message_default_xid_id_idx;

ALTER INDEX pgmail.outcome_pkey ATTACH PARTITION pgmail.outcome_default_pkey;

ALTER INDEX pgmail.recipient_pkey ATTACH PARTITION pgmail.recipient_default_pkey;

ALTER INDEX pgmail.recipient_address ATTACH PARTITION pgmail.recipient_default_tenant_id_address_id_idx;

ALTER INDEX pgmail.recipient_message ATTACH PARTITION pgmail.recipient_default_tenant_id_message_id_idx;

ALTER INDEX pgmail.tag_pkey ATTACH PARTITION pgmail.tag_default_pkey;

ALTER TABLE pgmail.alert ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_delivery ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_horizon ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_meter ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_rule ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_silence ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.alert_target ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.api_key ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.asset ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.attachment ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.attachment_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.audit ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.backlog ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.bounced ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.bucket ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.cause ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.certificate ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.content_left ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.content_mark ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.data_key ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.database_role ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.dead_letter ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.door ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.erasure_salt ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.event ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.event_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.feed_home ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.fence ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.gauge ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.guess ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.history ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.hook ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.hook_attempt ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.hook_cursor ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.hook_queue ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.hook_secret ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.idempotency ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.insight_cursor ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.lane ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.lane_touch ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.leader ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.limits ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.lost_worker ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.message ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.message_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.outcome ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.outcome_default ENABLE ROW LEVEL SECURITY;

CREATE POLICY owner ON pgmail.alert TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_delivery TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_horizon TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_meter TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_rule TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_silence TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.alert_target TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.api_key TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.asset TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.attachment TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.attachment_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.audit TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.backlog TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.bounced TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.bucket TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.cause TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.certificate TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.content_left TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.content_mark TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.data_key TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.database_role TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.dead_letter TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.door TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.erasure_salt TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.event TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.event_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.feed_home TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.fence TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.gauge TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.guess TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.history TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.hook TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.hook_attempt TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.hook_cursor TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.hook_queue TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.hook_secret TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.idempotency TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.insight_cursor TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.lane TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.lane_touch TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.leader TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.limits TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.lost_worker TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.message TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.message_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.outcome TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.outcome_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.pause TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.permit TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.pulse TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.queue TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.quota TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.quota_bucket TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.quota_meter TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.recipient TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.recipient_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.relay TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.reply_pattern TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.reply_reason TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.reply_rule TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.retention TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.rollup TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.schema_version TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.sender_domain TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.session_secret TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.site_domain TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.slowed_site TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.stream TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.suppression TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tag TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tag_default TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tally TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tally_moved TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tally_total TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.template TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.tenant TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.witness TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.worker TO pgmail_owner USING (true) WITH CHECK (true);

CREATE POLICY owner ON pgmail.worker_key TO pgmail_owner USING (true) WITH CHECK (true);

ALTER TABLE pgmail.pause ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.permit ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.pulse ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.queue ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.quota ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.quota_bucket ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.quota_meter ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.recipient ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.recipient_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.relay ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.reply_pattern ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.reply_reason ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.reply_rule ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.retention ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.rollup ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.schema_version ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.sender_domain ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.session_secret ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.site_domain ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.slowed_site ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.stream ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.suppression ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tag ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tag_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tally ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tally_moved ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tally_total ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.template ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tenant ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.witness ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.worker ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.worker_key ENABLE ROW LEVEL SECURITY;

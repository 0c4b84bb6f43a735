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
	roles text[],
	addresses text[],
	rcpts text[],
	names text[],
	domains text[],
	variables jsonb[],
	template text,
	template_version integer,
	content jsonb,
	attachments jsonb,
	tags jsonb,
	metadata jsonb,
	due_at timestamp with time zone,
	expires_at timestamp with time zone,
	on_limit text,
	idempotency_key text,
	body_hash bytea,
	size_bytes integer
);

CREATE FUNCTION pgmail.actor() RETURNS text
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select coalesce(
    (select nullif(current_setting('pgmail.actor', true), '') from pgmail.database_role r
      where r.role_name = session_user and r.carries_tenant),
    session_user::text)
$$;

CREATE FUNCTION pgmail.body_hash(p_body jsonb) RETURNS bytea
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select sha256(convert_to((p_body - array['idempotency_key', 'scheduled_at', 'expires_at'])::text, 'UTF8')) $$;

CREATE FUNCTION pgmail.cancel(id uuid, reason text DEFAULT NULL::text) RETURNS jsonb
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; was integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, cancel.id) f;
  select count(*) into was from pgmail.outcome o where o.tenant_id = t and o.recipient_id = any (ids) and o.state = 'cancelled';
  begin
  with free as materialized (
    select q.id, q.attempts from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null order by q.id for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select free.id, free.attempts, g.stream, r.site
    from free join pgmail.recipient r on r.tenant_id = t and r.id = free.id and r.id = any (ids)
    join pgmail.message g on g.tenant_id = t and g.id = m
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select t, f.id, m, 'cancelled', pgmail.now(), f.stream, f.site, f.attempts, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select t, f.id, m, 'email.cancelled', f.site, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, f.stream, 'cancelled', count(*) from facts f group by f.stream
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

CREATE FUNCTION pgmail.check_key_v1(p_hash bytea) RETURNS TABLE(tenant_id integer, key_id uuid, name text)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.tenant_id, k.id, k.name from pgmail.api_key k where k.hash = p_hash and k.revoked_at is null
$$;

CREATE FUNCTION pgmail.claim_v1(p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamp with time zone[], p_after uuid[], p_limits integer[], p_traced boolean[]) RETURNS TABLE(id uuid, message_id uuid, lane bigint, due_at timestamp with time zone, claims integer, attempts smallint, rescues smallint, expires_at timestamp with time zone, tried_since timestamp with time zone)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
#variable_conflict use_column
begin
  -- The lock keeps a rescue from looking for leases before these are there; it does not keep the worker from beating.
  perform from pgmail.worker w where w.epoch = p_epoch for key share;
  if not found then
    raise exception using errcode = 'PM410', constraint = 'fenced_out',
      message = format('worker %s was declared dead; its leases were given back', p_epoch);
  end if;
  return query
  with l as materialized (
    select * from unnest(p_lanes, p_due, p_after, p_limits, p_traced) u(lane, head_due, head_id, most, traced)
  ), k as materialized (
    select x.id, x.due_at, l.lane, l.traced
    from l cross join lateral (
      select q.id, q.due_at from pgmail.queue q
      where q.tenant_id = p_tenant and q.lane = l.lane and (q.due_at, q.id) > (l.head_due, l.head_id)
        and q.due_at <= pgmail.now() and q.leased_by is null
      order by q.due_at, q.id limit l.most for update skip locked) x
  ), u as (
    update pgmail.queue q set leased_by = p_epoch, leased_at = pgmail.now(), claims = q.claims + 1
    where q.tenant_id = p_tenant and q.id = any (array(select k.id from k))
    returning q.id, q.message_id, q.lane, q.due_at, q.claims, q.attempts, q.rescues, q.expires_at, q.tried_since
  ), said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, worker)
    select p_tenant, u.id, u.message_id, 'email.sending', u.attempts + 1, p_epoch
    from u join k on k.id = u.id where k.traced
  )
  select u.id, u.message_id, u.lane, u.due_at, u.claims, u.attempts, u.rescues, u.expires_at, u.tried_since
  from u order by u.due_at, u.id;
end
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

CREATE FUNCTION pgmail.current_tenant() RETURNS integer
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select case when r.carries_tenant then nullif(current_setting('pgmail.tenant', true), '')::integer
              else r.tenant_id end
  from pgmail.database_role r where r.role_name = session_user
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

CREATE FUNCTION pgmail.expire_v1(p_most integer DEFAULT 1000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with late as materialized (
    select q.tenant_id, q.id, q.message_id, q.attempts from pgmail.queue q
    where q.expires_at <= pgmail.now() and q.leased_by is null and q.due_at <> 'infinity'
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
    insert into pgmail.tally (tenant_id, stream, kind, n) select tenant_id, stream, 'expired', count(*) from facts group by 1, 2
  )
  select count(*) into n from facts;
  return n;
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

CREATE FUNCTION pgmail.find_recipients(p_tenant integer, p_id uuid, OUT message_id uuid, OUT recipients uuid[]) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
declare t timestamptz := pgmail.uuid_time(p_id);
begin
  select m.id into message_id from pgmail.message m where m.tenant_id = p_tenant and m.id = p_id;
  if found then
    select array_agg(r.id order by r.position) into recipients from pgmail.recipient r
     where r.tenant_id = p_tenant and r.message_id = p_id
       and r.id >= pgmail.uuid_floor(t - interval '1 hour') and r.id < pgmail.uuid_floor(t + interval '1 hour');
  else
    select r.message_id, array[r.id] into message_id, recipients from pgmail.recipient r where r.tenant_id = p_tenant and r.id = p_id;
  end if;
end
$$;

CREATE FUNCTION pgmail.fold_tallies_v1(p_most integer DEFAULT 20000) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare n integer;
begin
  with gone as (
    delete from pgmail.tally
    where ctid = any (array(select ctid from pgmail.tally limit p_most for update skip locked))
    returning tenant_id, stream, kind, tally.n
  ), summed as (
    select tenant_id, stream, kind, sum(g.n) as n from gone g group by tenant_id, stream, kind order by tenant_id, stream, kind
  ), folded as (
    insert into pgmail.tally_total as t (tenant_id, stream, kind, n) select * from summed
    on conflict (tenant_id, stream, kind) do update set n = t.n + excluded.n returning 1
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

CREATE FUNCTION pgmail.grant_tenant(p_role name, p_tenant text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer;
begin
  select id into t from pgmail.tenant where name = p_tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', p_tenant), 404); end if;
  insert into pgmail.database_role (role_name, tenant_id) values (p_role, t)
    on conflict (role_name) do update set tenant_id = excluded.tenant_id, carries_tenant = false;
  perform pgmail.record_act(t, 'tenant.grant', p_role::text, null);
end
$$;

CREATE FUNCTION pgmail.has_control(p_text text) RETURNS boolean
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' $$;

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

CREATE FUNCTION pgmail.lane_id(p_tenant integer, p_stream text, p_priority integer, p_site text) RETURNS bigint
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select hashtextextended(p_tenant || '/' || p_stream || '/' || p_priority || '/' || p_site, 0) $$;

CREATE FUNCTION pgmail.lead_v1(p_epoch bigint, p_seconds double precision) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.leader set epoch = p_epoch, until = clock_timestamp() + p_seconds * interval '1 second'
   where epoch = p_epoch or until < clock_timestamp();
  return found;
end
$$;

CREATE FUNCTION pgmail.list_keys() RETURNS TABLE(id uuid, name text, hint text, created_at timestamp with time zone, created_by text, revoked_at timestamp with time zone)
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select k.id, k.name, k.hint, k.created_at, k.created_by, k.revoked_at from pgmail.api_key k
  where k.tenant_id = pgmail.need_tenant() order by k.created_at
$$;

CREATE FUNCTION pgmail.lower_text(p_text text) RETURNS text
    LANGUAGE sql IMMUTABLE STRICT PARALLEL SAFE
    AS $$ select case when p_text ~ '[^\x01-\x7f]' then lower(translate(p_text, U&'\0130\03A3', U&'i\03C3') collate pg_catalog.pg_c_utf8) collate "default"
                       else lower(p_text collate "C") collate "default" end $$;

CREATE FUNCTION pgmail.make_partitions_v1(p_days integer DEFAULT 35) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare w timestamptz; base text; part text; col text; made integer := 0; stray bigint;
begin
  perform set_config('lock_timeout', '500ms', true);
  for w in select generate_series(date_trunc('week', pgmail.now() at time zone 'UTC') - interval '1 week',
                                  pgmail.now() at time zone 'UTC' + p_days * interval '1 day', interval '1 week') at time zone 'UTC'
  loop
    foreach base in array pgmail.partitioned_tables() loop
      part := base || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD');
      continue when to_regclass('pgmail.' || part) is not null;
      col := case base when 'message' then 'id' when 'recipient' then 'id'
                       when 'attachment' then 'message_id' when 'tag' then 'message_id' else 'recipient_id' end;
      execute format('create table pgmail.%I (like pgmail.%I including all)', part, base);
      execute format('alter table pgmail.%I enable row level security', part);
      -- Mail that arrived while this partition was missing.
      execute format('lock table only pgmail.%I in access exclusive mode', base || '_default');
      execute format('with moved as (delete from pgmail.%I where %I >= %L and %I < %L returning *) insert into pgmail.%I select * from moved',
        base || '_default', col, pgmail.uuid_floor(w), col, pgmail.uuid_floor(w + interval '1 week'), part);
      get diagnostics stray = row_count;
      execute format('alter table pgmail.%I attach partition pgmail.%I for values from (%L) to (%L)',
        base, part, pgmail.uuid_floor(w), pgmail.uuid_floor(w + interval '1 week'));
      made := made + 1;
    end loop;
  end loop;
  return made;
end
$$;

CREATE FUNCTION pgmail.need_recipients(p_tenant integer, p_id uuid, OUT message_id uuid, OUT recipients uuid[]) RETURNS record
    LANGUAGE plpgsql STABLE
    AS $$
begin
  select f.message_id, f.recipients into message_id, recipients from pgmail.find_recipients(p_tenant, p_id) f;
  if message_id is null then
    perform pgmail.refuse('not_found', '/id', format('no email or recipient has the id %s', p_id), 404);
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

CREATE FUNCTION pgmail.now() RETURNS timestamp with time zone
    LANGUAGE sql STABLE PARALLEL SAFE
    BEGIN ATOMIC
 SELECT statement_timestamp() AS statement_timestamp;
END;

CREATE FUNCTION pgmail.orphans_v1() RETURNS SETOF bigint
    LANGUAGE sql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  select distinct q.leased_by from pgmail.queue q
  where q.leased_by is not null and not exists (select 1 from pgmail.worker w where w.epoch = q.leased_by)
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

CREATE FUNCTION pgmail.partition_state(OUT days_left integer, OUT strays bigint) RETURNS record
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $_$
declare base text; n bigint; last_ timestamptz := 'infinity'; l timestamptz;
begin
  strays := 0;
  foreach base in array pgmail.partitioned_tables() loop
    execute format('select count(*) from (select 1 from pgmail.%I limit 1000) x', base || '_default') into n;
    strays := strays + n;
    select max(to_timestamp(substring(c.relname from '[0-9]{8}$'), 'YYYYMMDD') + interval '1 week') into l
      from pg_inherits i join pg_class c on c.oid = i.inhrelid
     where i.inhparent = ('pgmail.' || base)::regclass and c.relname ~ '_[0-9]{8}$';
    last_ := least(last_, coalesce(l, '-infinity'));
  end loop;
  days_left := case when last_ = '-infinity' then 0 else greatest(0, extract(day from last_ - pgmail.now()))::integer end;
end
$_$;

CREATE FUNCTION pgmail.partitioned_tables() RETURNS text[]
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select array['message', 'attachment', 'tag', 'recipient', 'event', 'outcome'] $$;

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

CREATE FUNCTION pgmail.phase_of(p_state text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$
  select case when p_state in ('scheduled', 'queued', 'deferred', 'held') then 'queued'
              when p_state = 'sending' then 'processing'
              when p_state = 'sent' then 'sent'
              when p_state in ('bounced', 'suppressed', 'expired', 'cancelled', 'dead') then 'failed'
              else 'unknown' end
$$;

CREATE FUNCTION pgmail.pointer(p_name text) RETURNS text
    LANGUAGE sql IMMUTABLE PARALLEL SAFE
    AS $$ select replace(replace(p_name, '~', '~0'), '/', '~1') $$;

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

CREATE FUNCTION pgmail.read_email(p_tenant integer, p_body jsonb) RETURNS pgmail.email
    LANGUAGE plpgsql STABLE
    AS $_$
declare
  e pgmail.email; b jsonb := p_body; v jsonb; item jsonb; a pgmail.address; f text; i integer; n integer;
  field text; role_ text; vars jsonb; missing text; now_ timestamptz := pgmail.now();
  shown jsonb; from_ jsonb; reply_to jsonb; to_ jsonb := '[]'; cc_ jsonb := '[]'; single boolean; most integer;
  s pgmail.stream; t pgmail.template; sub text; txt text; htm text; at_ timestamptz; k text; bytes bigint := 0;
begin
  -- 0: the body
  if b is null or jsonb_typeof(b) <> 'object' then
    return pgmail.faulty('invalid_body', '', 'an email is a JSON object');
  end if;
  if b - array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables','headers',
               'attachments','tags','metadata','stream','priority','scheduled_at','expires_at','on_limit',
               'idempotency_key'] <> '{}' then
    select min(x collate "C") into k from jsonb_object_keys(b) x
     where x <> all (array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables',
                           'headers','attachments','tags','metadata','stream','priority','scheduled_at','expires_at',
                           'on_limit','idempotency_key']);
    return pgmail.faulty('unknown_key', '/' || pgmail.pointer(k), format('no such key: %s', left(k, 80)));
  end if;
  if b @? 'strict $.* ? (@ == null)' then
    select coalesce(jsonb_object_agg(x.key, x.value), '{}') into b from jsonb_each(b) x where x.value <> 'null';
  end if;

  -- 1: from
  v := b->'from';
  if v is null or v = '""' then return pgmail.faulty('missing_field', '/from', 'a sender is required'); end if;
  if jsonb_typeof(v) <> 'string' then return pgmail.faulty('invalid_address', '/from', 'must be a string'); end if;
  a := pgmail.parse_address(v #>> '{}');
  if a.fault is not null then return pgmail.faulty('invalid_address', '/from', a.fault); end if;
  e.sender := a.address;
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
  e.roles := '{}'; e.addresses := '{}'; e.rcpts := '{}'; e.names := '{}'; e.domains := '{}'; e.variables := '{}';
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
      continue when a.address = any (e.addresses);
      e.roles := e.roles || role_; e.addresses := e.addresses || a.address;
      e.rcpts := e.rcpts || case when a.rcpt <> a.address then a.rcpt end;
      e.names := e.names || a.name; e.domains := e.domains || a.domain;
      e.variables := array_append(e.variables, vars);
      if role_ <> 'bcc' and e.mode = 'envelope' then
        shown := jsonb_build_object('address', a.rcpt);
        if a.name is not null then shown := shown || jsonb_build_object('name', a.name); end if;
        if role_ = 'to' then to_ := to_ || shown; else cc_ := cc_ || shown; end if;
      end if;
      if cardinality(e.addresses) > most then
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
  for i in 1 .. cardinality(e.variables) loop
    if jsonb_typeof(e.variables[i]) <> 'object' then
      select ord - 1 into n from jsonb_array_elements(case when jsonb_typeof(b->'to') = 'array' then b->'to' else jsonb_build_array(b->'to') end)
        with ordinality u(x, ord)
       where jsonb_typeof(x) = 'object' and coalesce(jsonb_typeof(x->'variables'), 'null') not in ('object', 'null')
       order by ord limit 1;
      return pgmail.faulty('invalid_variables',
        case when jsonb_typeof(b->'to') = 'array' then format('/to/%s/variables', n) else '/to/variables' end, 'must be an object');
    end if;
  end loop;
  if v is not null and v->'variables' <> 'null' then
    vars := (v->'variables') || coalesce(b->'variables', '{}');
  else
    vars := b->'variables';
  end if;
  if e.template is not null then
    vars := coalesce(vars, '{}');
    if t.required <> '{}' then
      select min(r collate "C") into missing from unnest(t.required) r
       where not vars ? r and exists (select 1 from unnest(e.variables) x where x is null or not x ? r);
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

  -- 19: size. read_extras left the attachments' part in size_bytes.
  bytes := coalesce(e.size_bytes, 0)::bigint + coalesce(octet_length(sub), 0) + coalesce(octet_length(txt), 0) + coalesce(octet_length(htm), 0);
  if bytes > 26214400 then
    return pgmail.faulty('too_large', '', format('%s octets; at most 26,214,400', bytes), 413);
  end if;
  e.size_bytes := bytes;

  e.content := coalesce(e.content, '{}') || jsonb_build_object('from', from_);
  if e.mode = 'envelope' then
    e.content := e.content || jsonb_build_object('to', to_);
    if cc_ <> '[]' then e.content := e.content || jsonb_build_object('cc', cc_); end if;
  end if;
  if reply_to is not null and reply_to <> '[]' then e.content := e.content || jsonb_build_object('reply_to', reply_to); end if;
  if sub is not null then e.content := e.content || jsonb_build_object('subject', sub); end if;
  if txt is not null then e.content := e.content || jsonb_build_object('text', txt); end if;
  if htm is not null then e.content := e.content || jsonb_build_object('html', htm); end if;
  if e.attachments is not null then e.content := e.content || jsonb_build_object('attachments', jsonb_array_length(e.attachments)); end if;
  -- One recipient's own variables make templates of the texts for all of them.
  if vars is null and exists (select 1 from unnest(e.variables) x where x is not null) then vars := '{}'; end if;
  if vars is not null then e.content := e.content || jsonb_build_object('variables', vars); end if;
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
                          'disposition-notification-to', 'authentication-results')
         or lower(r.key) ~ '^(content-|resent-|arc-)' then
        return pgmail.faulty('reserved_header', f, 'pgmail sets this header itself');
      end if;
      if jsonb_typeof(r.value) <> 'string' then return pgmail.faulty('invalid_header', f, 'must be a string'); end if;
      if length(r.value #>> '{}') > 2000 then return pgmail.faulty('invalid_header', f, 'longer than 2,000 characters'); end if;
      if pgmail.has_control(r.value #>> '{}') then return pgmail.faulty('invalid_header', f, 'has a control character'); end if;
    end loop;
    if v <> '{}' then e.content := coalesce(e.content, '{}') || jsonb_build_object('headers', v); end if;
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

CREATE FUNCTION pgmail.record_act(p_tenant integer, p_action text, p_object text, p_reason text) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.audit (tenant_id, actor, action, object, reason)
  values (p_tenant, pgmail.actor(), p_action, p_object, p_reason)
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

CREATE FUNCTION pgmail.relay_state_v1(p_name text, p_state text, p_reason text, p_seconds double precision DEFAULT NULL::double precision) RETURNS void
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_at, changed_by)
  values (p_name, p_state, p_reason, pgmail.now() + p_seconds * interval '1 second', pgmail.now(), 'worker')
  on conflict (name) do update set state = excluded.state, reason = excluded.reason,
    blocked_until = excluded.blocked_until, changed_at = excluded.changed_at, changed_by = excluded.changed_by
  where r.state <> 'paused' or r.changed_by = 'worker' or r.blocked_until <= pgmail.now()
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

CREATE FUNCTION pgmail.repair_lanes_v1() RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare n integer;
begin
  with recursive present as (
    (select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q
      where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  ), lost as materialized (
    select p.* from present p
    where p.due_at <= pgmail.now()
      and not exists (select 1 from pgmail.lane l where l.tenant_id = p.tenant_id and l.id = p.lane and l.active)
  ), repaired as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select x.tenant_id, x.lane, m.stream, m.priority, r.site, x.due_at
    from lost x
    cross join lateral (select y.stream, y.priority from pgmail.message y
                        where y.tenant_id = x.tenant_id and y.id = x.message_id limit 1) m
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

CREATE FUNCTION pgmail.rescue_v1(p_epoch bigint) RETURNS integer
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare freed jsonb; t record;
begin
  delete from pgmail.worker w where w.epoch = p_epoch;
  -- A sequential scan: rescues are rare, and an index on leased_by would cost every claim its HOT update.
  with mine as materialized (
    select q.tenant_id, q.id, s.on_doubt is not distinct from 'hold' as hold
    from pgmail.queue q
    left join lateral (   -- by id, one by one: a hash of all messages would be a bad plan for a few leases
      select x.on_doubt from pgmail.message m join pgmail.stream x on x.tenant_id = m.tenant_id and x.name = m.stream
      where m.tenant_id = q.tenant_id and m.id = q.message_id limit 1) s on true
    where q.leased_by = p_epoch order by q.id for update of q skip locked
  ), given_back as (
    update pgmail.queue q set leased_by = null, leased_at = null, rescues = q.rescues + 1,
      due_at = case when mine.hold then 'infinity' else q.due_at end,
      held_due_at = case when mine.hold then q.due_at end,
      hold_reason = case when mine.hold then 'in doubt: its worker died and may have sent it' end
    from mine where q.tenant_id = mine.tenant_id and q.id = mine.id
    returning q.tenant_id, q.id, q.message_id, q.lane, q.due_at, q.attempts, mine.hold
  )
  select jsonb_agg(to_jsonb(g)) into freed from given_back g;
  if freed is null then return 0; end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, worker, detail)
  select r.tenant_id, r.id, r.message_id, x.type, r.attempts + 1, p_epoch,
    'worker ' || p_epoch || ' died; this mail may have been sent'
  from jsonb_to_recordset(freed) r(tenant_id integer, id uuid, message_id uuid, attempts smallint, hold boolean),
    (values ('email.in_doubt', true), ('email.held', false)) x(type, always)
  where x.always or r.hold;
  for t in select r.tenant_id, array_agg(r.lane) as lanes, array_agg(r.due_at) as dues
           from jsonb_to_recordset(freed) r(tenant_id integer, lane bigint, due_at timestamptz, hold boolean)
           where not r.hold group by r.tenant_id order by r.tenant_id loop
    perform pgmail.touch_lanes(t.tenant_id, t.lanes, t.dues);
  end loop;
  return jsonb_array_length(freed);
end
$$;

CREATE FUNCTION pgmail.resume_relay(p_name text, p_reason text DEFAULT NULL::text) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.relay set state = 'up', reason = null, blocked_until = null, changed_at = pgmail.now(), changed_by = pgmail.actor()
   where name = p_name;
  if not found then perform pgmail.refuse('unknown_relay', '/relay', format('no relay is named %L', p_name), 404); end if;
  perform pgmail.record_act(null, 'relay.resume', p_name, p_reason);
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
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, d.stream, 'dead', -count(*) from raised d group by d.stream
  ), free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at > pgmail.now()
      and (q.due_at = 'infinity' or q.wait is distinct from 'scheduled')
    order by q.id for update skip locked
  ), pulled as (
    update pgmail.queue q set due_at = greatest(q.held_due_at, pgmail.now()), hold_reason = null, held_due_at = null,
      wait = case when q.held_due_at > pgmail.now() then 'scheduled' end, later = q.held_due_at > pgmail.now() is true
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at
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
  if n > 0 then
    perform pgmail.record_act(t, 'email.retry', retry.recipient_id::text, retry.reason);
  end if;
  return n;
end
$$;

CREATE FUNCTION pgmail.revoke_key(p_id uuid, p_reason text DEFAULT NULL::text) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant();
begin
  update pgmail.api_key k set revoked_at = pgmail.now() where k.tenant_id = t and k.id = p_id and k.revoked_at is null;
  if not found then return false; end if;
  perform pgmail.record_act(t, 'key.revoke', p_id::text, p_reason);
  return true;
end
$$;

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
  if pgmail.has_control(p_filename) or pgmail.has_control(p_content_type) then
    perform pgmail.refuse('invalid_attachment', '/filename', 'has a control character');
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
declare t integer := pgmail.need_tenant(); s pgmail.stream; k text;
begin
  if p_name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of a-z 0-9 _ -, led by a letter or digit');
  end if;
  if jsonb_typeof(p_settings) is distinct from 'object' then
    perform pgmail.refuse('invalid_body', '', 'the settings of a stream are a JSON object');
  end if;
  select min(x collate "C") into k from jsonb_object_keys(p_settings) x
   where x <> all (array['priority', 'relay', 'on_doubt', 'trace', 'retry_base_seconds', 'retry_factor', 'retry_cap_seconds',
     'retry_jitter', 'max_attempts', 'max_age_seconds', 'max_queued']);
  if k is not null then perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(k), 'no such key'); end if;
  if p_settings ? 'relay' and not exists (select 1 from pgmail.relay r where r.name = p_settings->>'relay') then
    perform pgmail.refuse('unknown_relay', '/relay', format('no relay is named %L', left(p_settings->>'relay', 63)));
  end if;
  insert into pgmail.stream (tenant_id, name) values (t, p_name) on conflict do nothing;
  select * into s from pgmail.stream x where x.tenant_id = t and x.name = p_name for update;
  begin
    s := jsonb_populate_record(s, p_settings);
    update pgmail.stream x set priority = s.priority, relay = s.relay, on_doubt = s.on_doubt, trace = s.trace,
      retry_base_seconds = s.retry_base_seconds, retry_factor = s.retry_factor, retry_cap_seconds = s.retry_cap_seconds,
      retry_jitter = s.retry_jitter, max_attempts = s.max_attempts, max_age_seconds = s.max_age_seconds, max_queued = s.max_queued
    where x.tenant_id = t and x.name = p_name;
  exception
    when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range then
      perform pgmail.refuse('invalid_stream', '/' || coalesce((select min(x) from jsonb_object_keys(p_settings) x), 'name'), sqlerrm);
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

CREATE FUNCTION pgmail.send(email jsonb) RETURNS uuid
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
declare
  t integer := pgmail.need_tenant();
  e pgmail.email := pgmail.read_email(t, email);
  done record;
begin
  if e.fault_code is null then
    done := pgmail.store_emails(t, array[e]);
    if done.ids[1] is not null then return done.ids[1]; end if;
    e := done.faults[1];
  end if;
  perform pgmail.refuse(e.fault_code, e.fault_field, e.fault_message, e.fault_status);
end
$$;

CREATE FUNCTION pgmail.send(sender text, recipient text, subject text DEFAULT NULL::text, text text DEFAULT NULL::text, html text DEFAULT NULL::text, template text DEFAULT NULL::text, variables jsonb DEFAULT NULL::jsonb, stream text DEFAULT NULL::text, priority text DEFAULT NULL::text, send_at timestamp with time zone DEFAULT NULL::timestamp with time zone, expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone, idempotency_key text DEFAULT NULL::text, on_limit text DEFAULT NULL::text, cc text[] DEFAULT NULL::text[], bcc text[] DEFAULT NULL::text[], reply_to text DEFAULT NULL::text, headers jsonb DEFAULT NULL::jsonb, attachments jsonb DEFAULT NULL::jsonb, tags jsonb DEFAULT NULL::jsonb, metadata jsonb DEFAULT NULL::jsonb) RETURNS uuid
    LANGUAGE sql
    AS $$
  select pgmail.send(jsonb_build_object(
    'from', sender, 'to', recipient, 'subject', subject, 'text', "text", 'html', html,
    'template', case when template is not null then jsonb_build_object('id', template) end,
    'variables', variables, 'stream', stream, 'priority', priority,
    'scheduled_at', to_json(send_at), 'expires_at', to_json(expires_at),
    'idempotency_key', idempotency_key, 'on_limit', on_limit, 'cc', to_jsonb(cc), 'bcc', to_jsonb(bcc),
    'reply_to', reply_to, 'headers', headers, 'attachments', attachments, 'tags', tags, 'metadata', metadata))
$$;

CREATE FUNCTION pgmail.send_many(items jsonb, strict boolean DEFAULT true, idempotency_key text DEFAULT NULL::text) RETURNS TABLE("position" integer, id uuid, code text, field text, message text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $_$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); emails pgmail.email[]; good pgmail.email[]; places integer[]; done record;
  e pgmail.email; i integer; hash_ bytea; key_ text := ' ' || idempotency_key; held_hash bytea; held_ids uuid[]; codes pgmail.email[]; all_ids uuid[];
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
    select sha256(convert_to(coalesce(jsonb_agg(case jsonb_typeof(x) when 'object'
             then x - array['scheduled_at', 'expires_at'] else x end order by o)::text, '') || (strict is true), 'UTF8'))
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

  select array_agg(pgmail.read_email(t, x) order by o) into emails from jsonb_array_elements(items) with ordinality u(x, o);
  if emails is null then return; end if;
  codes := emails;
  if held_ids is not null then
    -- A replay: the ids of the first time, and the same faults. What was right then may lie in the past by now.
    for i in 1 .. cardinality(emails) loop
      if held_ids[i] is not null then
        codes[i] := null;
      elsif (codes[i]).fault_code is null then
        codes[i] := pgmail.faulty('idempotency_conflict', '/idempotency_key', 'was refused when this batch was sent first; use a new key', 409);
      end if;
    end loop;
    return query select (g - 1)::integer, held_ids[g], (codes[g]).fault_code, (codes[g]).fault_field, (codes[g]).fault_message
      from generate_series(1, cardinality(codes)) g;
    return;
  end if;
  if strict then
    for i in 1 .. cardinality(emails) loop
      e := emails[i];
      if e.fault_code is not null then
        perform pgmail.refuse(e.fault_code, '/' || (i - 1) || e.fault_field, e.fault_message, e.fault_status);
      end if;
    end loop;
  end if;
  select array_agg(emails[g] order by g), array_agg(g order by g) into good, places
    from generate_series(1, cardinality(emails)) g where (emails[g]).fault_code is null;
  all_ids := array_fill(null::uuid, array[cardinality(emails)]);
  if good is not null then
    done := pgmail.store_emails(t, good);
    for i in 1 .. cardinality(good) loop
      all_ids[places[i]] := done.ids[i];
      if done.ids[i] is null then
        e := done.faults[i];
        if strict then
          perform pgmail.refuse(e.fault_code, '/' || (places[i] - 1) || e.fault_field, e.fault_message, e.fault_status);
        end if;
        codes[places[i]] := e;
      end if;
    end loop;
  end if;
  if idempotency_key is not null then
    update pgmail.idempotency d set ids = all_ids where d.tenant_id = t and d.key = key_;
  end if;
  return query select (g - 1)::integer, all_ids[g], (codes[g]).fault_code, (codes[g]).fault_field, (codes[g]).fault_message
    from generate_series(1, cardinality(codes)) g;
end
$_$;

CREATE FUNCTION pgmail.settle_v1(p_tenant integer, p_epoch bigint, p_results jsonb) RETURNS TABLE(id uuid, result text)
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    SET plan_cache_mode TO 'force_generic_plan'
    AS $$
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
    coalesce(x.o_reply, x.d_reply, x.last_reply), coalesce(x.o_reason, x.d_reason, x.hold_reason)
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

CREATE FUNCTION pgmail.store_emails(p_tenant integer, p_emails pgmail.email[], OUT ids uuid[], OUT faults pgmail.email[]) RETURNS record
    LANGUAGE plpgsql
    AS $$
declare
  n integer := cardinality(p_emails); now_ timestamptz := pgmail.now(); keyed boolean; limited boolean; wake boolean;
  full_streams text[]; fresh boolean[];
begin
  select array_agg(pgmail.uuid7() order by i), array_agg(true) into ids, fresh from generate_series(1, n) i;
  faults := array_fill(null::pgmail.email, array[n]);
  select bool_or(x.idempotency_key is not null), bool_or(x.max_queued is not null) into keyed, limited from unnest(p_emails) x;

  if limited then
    -- Depth comes from folded tallies: seconds old, never a count. A limit is a wall with a soft edge.
    select array_agg(s.stream) into full_streams
    from (select distinct x.stream, x.max_queued from unnest(p_emails) x where x.max_queued is not null) s
    where (select coalesce(sum(case kind when 'enqueued' then t.n else -t.n end), 0) from pgmail.tally_total t
           where t.tenant_id = p_tenant and t.stream = s.stream) >= s.max_queued;
    if full_streams is not null then
      for i in 1 .. n loop
        -- A key that was used already answers with what it holds, however full the stream is by now.
        if (p_emails[i]).stream = any (full_streams) and (p_emails[i]).on_limit = 'error'
           and not exists (select 1 from pgmail.idempotency d where d.tenant_id = p_tenant
                           and d.key = (p_emails[i]).idempotency_key and d.expires_at > now_) then
          fresh[i] := false; ids[i] := null;
          faults[i] := pgmail.faulty('limit_reached', '/stream',
            format('stream %L holds as many queued emails as it may', (p_emails[i]).stream), 429);
        end if;
      end loop;
    end if;
  end if;

  if keyed then
    declare r record; held record;
    begin
      for r in select x.idempotency_key as key, x.body_hash, x.ord::integer as i
               from unnest(p_emails) with ordinality x(fault_code, fault_field, fault_message, fault_status, sender, stream,
                 priority, mode, max_queued, roles, addresses, rcpts, names, domains, variables, template,
                 template_version, content, attachments, tags, metadata, due_at, expires_at, on_limit,
                 idempotency_key, body_hash, size_bytes, ord)
               where x.idempotency_key is not null and fresh[x.ord]
               order by x.idempotency_key collate "C", x.ord
      loop
        -- Waits for another transaction that holds the same key: two orders of one key must not both be sent.
        insert into pgmail.idempotency as d (tenant_id, key, body_hash, ids, created_at, expires_at)
        values (p_tenant, r.key, r.body_hash, array[ids[r.i]], now_, now_ + interval '24 hours')
        on conflict (tenant_id, key) do update set body_hash = excluded.body_hash, ids = excluded.ids,
          created_at = excluded.created_at, expires_at = excluded.expires_at
        where d.expires_at <= now_
        returning true into held;
        continue when found;
        select d.body_hash, d.ids into held from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = r.key;
        fresh[r.i] := false;
        if held.body_hash = r.body_hash then
          ids[r.i] := held.ids[1];
        else
          ids[r.i] := null;
          faults[r.i] := pgmail.faulty('idempotency_conflict', '/idempotency_key',
            'this key was used with another email in the last 24 hours', 409);
        end if;
      end loop;
    end;
  end if;

  if not (true = any (fresh)) then return; end if;

  insert into pgmail.message (tenant_id, id, created_at, created_by, stream, priority, mode, sender, recipients,
    scheduled_at, expires_at, template, template_version, size_bytes, tags, metadata, idempotency_key, content)
  select p_tenant, ids[i], now_, session_user, (e).stream, (e).priority, (e).mode, (e).sender, cardinality((e).addresses),
    (e).due_at, (e).expires_at, (e).template, (e).template_version, (e).size_bytes, (e).tags, (e).metadata,
    (e).idempotency_key, convert_to((e).content::text, 'UTF8')
  from (select i, p_emails[i] as e from generate_series(1, n) i where fresh[i]) x;

  insert into pgmail.attachment (tenant_id, message_id, position, filename, content_type, content_id, asset, size_bytes, body)
  select p_tenant, ids[i], ord, a->>'filename', a->>'content_type', a->>'content_id', a->>'asset', (a->>'size')::integer,
    decode(a->>'content', 'base64')
  from generate_series(1, n) i, jsonb_array_elements((p_emails[i]).attachments) with ordinality u(a, ord)
  where fresh[i] and (p_emails[i]).attachments is not null;

  insert into pgmail.tag (tenant_id, name, value, message_id)
  select p_tenant, t.key, t.value, ids[i]
  from generate_series(1, n) i, jsonb_each_text((p_emails[i]).tags) t
  where fresh[i] and (p_emails[i]).tags is not null;

  with expanded as materialized (
    select pgmail.uuid7() as id, x.*, coalesce(s.site, x.domain) as site
    from (select ids[i] as message_id, i, (e).stream, (e).priority, (e).due_at, (e).expires_at, (e).on_limit,
            -- mail for later meets the limit then, unless its sender wants to be asked
            coalesce((e).stream = any (full_streams), false)
              and ((e).on_limit = 'hold' or coalesce((e).due_at, now_) < now_ + interval '1 minute') as is_full,
            r.ord, r.role, r.address, r.rcpt, r.name, r.domain, r.variables
          from (select i, p_emails[i] as e from generate_series(1, n) i where fresh[i]) m,
            unnest((e).roles, (e).addresses, (e).rcpts, (e).names, (e).domains, (e).variables)
              with ordinality r(role, address, rcpt, name, domain, variables, ord)) x
    left join pgmail.site_domain s on s.domain = x.domain
  ), judged as materialized (
    select x.*, pgmail.lane_id(p_tenant, x.stream, x.priority, x.site) as lane, u.reason as suppressed, u.source
    from expanded x
    left join lateral (
      select y.reason, y.source from pgmail.suppression y
      where y.tenant_id = p_tenant and y.address = x.address and y.stream in ('', x.stream)
        and (y.expires_at is null or y.expires_at > now_)
      limit 1) u on true
  ), recipients as (
    insert into pgmail.recipient (tenant_id, id, message_id, position, role, address, rcpt, name, site, variables)
    select p_tenant, id, message_id, ord, role, address, rcpt, name, site, convert_to(variables::text, 'UTF8') from judged
  ), queued as (
    insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, later, wait, hold_reason, held_due_at, expires_at)
    select p_tenant, id, message_id, lane,
      case when is_full and on_limit = 'hold' then 'infinity'
           when is_full then now_ + interval '1 minute'
           else coalesce(due_at, now_) end,
      due_at is not null or is_full,
      case when is_full then 'delayed' when due_at is not null then 'scheduled' end,
      case when is_full and on_limit = 'hold' then 'the stream holds as many queued emails as it may' end,
      case when is_full and on_limit = 'hold' then coalesce(due_at, now_) end,
      expires_at
    from judged where suppressed is null
  ), limits_said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, at, site, detail)
    select p_tenant, id, message_id, case on_limit when 'hold' then 'email.held' else 'email.delayed' end, now_, site,
      'the stream holds as many queued emails as it may'
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
    select p_tenant, j.lane, min(j.stream), min(j.priority), min(j.site), min(coalesce(j.due_at, now_))
    from judged j
    where j.suppressed is null
      and not exists (select 1 from pgmail.lane l where l.tenant_id = p_tenant and l.id = j.lane and l.active)
    group by j.lane
  ), counted as (
    insert into pgmail.tally (tenant_id, stream, kind, n, at)
    select p_tenant, stream, 'enqueued', count(*), now_ from judged group by stream
    union all
    select p_tenant, stream, 'suppressed', count(*), now_ from judged where suppressed is not null group by stream
  )
  select bool_or(suppressed is null and due_at is null) into wake from judged;

  -- A hint for workers that sleep; polling is the truth. Two-phase commit refuses NOTIFY: set pgmail.notify = 'off'.
  if wake and coalesce(current_setting('pgmail.notify', true), '') <> 'off'
     and exists (select 1 from pgmail.worker w where w.asleep) then
    perform pg_notify('pgmail', '');
  end if;
end
$$;

CREATE FUNCTION pgmail.suppress(p_address text, p_reason text DEFAULT 'manual'::text, p_source text DEFAULT NULL::text, p_stream text DEFAULT ''::text, p_expires_at timestamp with time zone DEFAULT NULL::timestamp with time zone) RETURNS text
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address);
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  if p_reason is null or p_reason not in ('bounced', 'complained', 'unsubscribed', 'manual') then
    perform pgmail.refuse('invalid_reason', '/reason', 'must be bounced, complained, unsubscribed or manual');
  end if;
  if coalesce(p_stream, '') <> '' and not exists (select 1 from pgmail.stream s where s.tenant_id = t and s.name = p_stream) then
    perform pgmail.refuse('unknown_stream', '/stream', format('no stream is named %L', left(p_stream, 63)));
  end if;
  if length(p_source) > 1000 then perform pgmail.refuse('invalid_source', '/source', 'longer than 1,000 characters'); end if;
  if p_expires_at <= pgmail.now() then perform pgmail.refuse('time_in_past', '/expires_at', 'it has passed'); end if;
  if p_expires_at > pgmail.now() + interval '100 years' then
    perform pgmail.refuse('time_too_far', '/expires_at', 'lies more than 100 years ahead; leave it out for ever');
  end if;
  insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by, expires_at)
  values (t, a.address, coalesce(p_stream, ''), p_reason, p_source, pgmail.actor(), p_expires_at)
  on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
    created_at = pgmail.now(), created_by = excluded.created_by, expires_at = excluded.expires_at;
  perform pgmail.record_act(t, 'suppression.add', a.address, p_reason);
  return a.address;
end
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
      concat_ws(', ', 'by ' || g.created_by, 'stream ' || g.stream,
        'template ' || g.template || ' v' || g.template_version,
        'for ' || to_char(g.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), i
    from pgmail.message g, unnest(ids) i where g.tenant_id = t and g.id = m
  ) x
  join pgmail.recipient r on r.tenant_id = t and r.id = x.recipient_id and r.id = any (ids) and r.id >= low and r.id < high
  order by x.at, x.event_id;
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
  perform pgmail.record_act(t, 'suppression.remove', a.address, p_reason);
  return true;
end
$$;

CREATE FUNCTION pgmail.uuid7() RETURNS uuid
    LANGUAGE sql PARALLEL SAFE
    AS $$select uuidv7()$$;

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

CREATE FUNCTION pgmail.why(id uuid) RETURNS text
    LANGUAGE plpgsql STABLE SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    SET enable_seqscan TO 'off'
    SET jit TO 'off'
    AS $$
declare t integer := pgmail.need_tenant(); s record; words text[] := '{}'; w text; q record; r pgmail.relay; st pgmail.stream; last_ record; m pgmail.message;
begin
  for s in select * from pgmail.status(why.id) loop
    select x.* into m from pgmail.message x where x.tenant_id = t and x.id = s.message_id;
    w := null;
    if s.state in ('queued', 'deferred', 'scheduled', 'held', 'sending') then
      select x.* into q from pgmail.queue x where x.tenant_id = t and x.id = s.recipient_id;
      select x.* into st from pgmail.stream x where x.tenant_id = t and x.name = m.stream;
      select x.* into r from pgmail.relay x where x.name = coalesce(st.relay, 'default');
      select e.* into last_ from pgmail.event e where e.tenant_id = t and e.recipient_id = s.recipient_id
        and e.type in ('email.deferred', 'email.delayed', 'email.in_doubt') order by e.id desc limit 1;
    end if;
    case s.state
      when 'scheduled' then w := format('is scheduled for %s', s.due_at);
      when 'sending' then
        w := format('is being sent by worker %s since %s (attempt %s)', q.leased_by, q.leased_at, s.attempts + 1);
        if not exists (select 1 from pgmail.worker x where x.epoch = q.leased_by) then
          w := w || ', but that worker is gone; it will be rescued by the leader';
        end if;
      when 'deferred' then
        w := format('waits until %s: attempt %s was answered %s', s.due_at, s.attempts,
          coalesce(nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), nullif(last_.detail, ''), 'nothing'));
      when 'held' then w := format('is held: %s. pgmail.retry(id) sends it, pgmail.cancel(id) drops it', coalesce(q.hold_reason, 'by an operator'));
      when 'queued' then
        if r.state = 'paused' then
          w := format('waits: relay %s is paused by %s since %s: %s', r.name, r.changed_by, r.changed_at, coalesce(r.reason, 'no reason given'));
        elsif r.state = 'away' then
          w := format('waits: relay %s is away since %s: %s; next try at %s', r.name, r.changed_at, coalesce(r.reason, 'unreachable'), r.blocked_until);
        elsif q.wait = 'delayed' and q.due_at > pgmail.now() then
          w := format('waits for a limit until %s: %s', q.due_at, coalesce(last_.detail, 'the stream is full'));
        elsif not exists (select 1 from pgmail.worker) then
          w := 'waits: no worker is running';
        elsif not exists (select 1 from pgmail.worker x where x.beat_at > pgmail.now() - interval '30 seconds') then
          w := format('waits: no worker is alive since %s', (select max(x.beat_at) from pgmail.worker x));
        else
          w := format('is due since %s and waits for a free worker', q.due_at);
        end if;
        if last_.type = 'email.deferred' then w := w || format(' (attempt %s was answered %s)', last_.attempt, concat_ws(' ', last_.code, last_.enhanced, last_.reply)); end if;
        if last_.type = 'email.in_doubt' then w := w || ' (an earlier attempt is in doubt: ' || coalesce(last_.detail, 'it may have been sent') || ')'; end if;
      when 'sent' then w := format('was sent at %s: the next hop answered %s', s.changed_at, concat_ws(' ', s.code, s.enhanced, s.reply));
      when 'bounced' then w := format('bounced at %s: the remote side answered %s', s.changed_at, concat_ws(' ', s.code, s.enhanced, s.reply));
      when 'suppressed' then w := format('was not sent: the address is suppressed (%s)', s.reason);
      when 'expired' then w := format('expired at %s: %s', s.changed_at, s.reason);
      when 'cancelled' then w := format('was cancelled at %s%s', s.changed_at, coalesce(' (' || s.reason || ')', ''));
      when 'dead' then w := format('is a dead letter since %s after %s attempts: %s%s. pgmail.retry(id) tries it again', s.changed_at, s.attempts,
          s.reason, coalesce('; last reply ' || nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), ''));
      else w := 'has no state: this is a fault of pgmail, please report it';
    end case;
    words := words || (s.address || ' ' || w);
  end loop;
  return array_to_string(words, E'\n');
end
$$;

CREATE FUNCTION pgmail.worker_beat_v1(p_epoch bigint, p_state text, p_asleep boolean) RETURNS boolean
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  update pgmail.worker set beat = beat + 1, beat_at = pgmail.now(), state = p_state, asleep = p_asleep where epoch = p_epoch;
  return found;
end
$$;

CREATE FUNCTION pgmail.worker_start_v1(p_host text, p_pid integer, p_program text, p_concurrency integer) RETURNS bigint
    LANGUAGE sql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
  insert into pgmail.worker (host, pid, program, concurrency) values (p_host, p_pid, p_program, p_concurrency) returning epoch
$$;

CREATE FUNCTION pgmail.worker_stop_v1(p_epoch bigint) RETURNS void
    LANGUAGE plpgsql SECURITY DEFINER
    SET search_path TO 'pgmail', 'pg_temp'
    AS $$
begin
  if exists (select 1 from pgmail.queue q where q.leased_by = p_epoch) then
    perform pgmail.rescue_v1(p_epoch);   -- it could not give everything back (the database was away)
  else
    delete from pgmail.worker where epoch = p_epoch;
  end if;
  update pgmail.leader set epoch = null, until = '-infinity' where epoch = p_epoch;
end
$$;

CREATE TABLE pgmail.alembic_version (
    version_num character varying(32) NOT NULL
);

CREATE TABLE pgmail.api_key (
    tenant_id integer NOT NULL,
    id uuid DEFAULT pgmail.uuid7() NOT NULL,
    name text NOT NULL,
    hint text NOT NULL,
    hash bytea NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    revoked_at timestamp with time zone
);

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

CREATE TABLE pgmail.audit (
    id bigint NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    tenant_id integer,
    actor text NOT NULL,
    action text NOT NULL,
    object text,
    reason text
);

ALTER TABLE pgmail.audit ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME pgmail.audit_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

CREATE TABLE pgmail.database_role (
    role_name name NOT NULL,
    tenant_id integer,
    carries_tenant boolean DEFAULT false NOT NULL,
    CONSTRAINT database_role_check CHECK (((tenant_id IS NOT NULL) <> carries_tenant))
);

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

CREATE TABLE pgmail.idempotency (
    tenant_id integer NOT NULL,
    key text NOT NULL,
    body_hash bytea NOT NULL,
    ids uuid[] NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    expires_at timestamp with time zone NOT NULL
);

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

CREATE TABLE pgmail.lane_touch (
    tenant_id integer NOT NULL,
    lane bigint NOT NULL,
    stream text NOT NULL,
    priority smallint NOT NULL,
    site text NOT NULL,
    due_at timestamp with time zone NOT NULL
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='2000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE pgmail.leader (
    singleton boolean DEFAULT true NOT NULL,
    epoch bigint,
    until timestamp with time zone DEFAULT '-infinity'::timestamp with time zone NOT NULL,
    CONSTRAINT leader_singleton_check CHECK (singleton)
);

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
    CONSTRAINT queue_wait_check CHECK ((wait = ANY (ARRAY['scheduled'::text, 'deferred'::text, 'delayed'::text])))
)
WITH (fillfactor='45', autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_insert_scale_factor='0.2', autovacuum_vacuum_cost_delay='0', autovacuum_analyze_scale_factor='0.2');

CREATE TABLE pgmail.tally (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL,
    n bigint NOT NULL,
    at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    CONSTRAINT tally_kind_check CHECK ((kind = ANY (ARRAY['enqueued'::text, 'sent'::text, 'bounced'::text, 'suppressed'::text, 'expired'::text, 'cancelled'::text, 'dead'::text])))
)
WITH (autovacuum_vacuum_scale_factor='0', autovacuum_vacuum_threshold='5000', autovacuum_vacuum_cost_delay='0');

CREATE TABLE pgmail.tally_total (
    tenant_id integer NOT NULL,
    stream text NOT NULL,
    kind text NOT NULL,
    n bigint NOT NULL
)
WITH (fillfactor='50');

CREATE TABLE pgmail.tenant (
    id integer NOT NULL,
    name text NOT NULL,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL
);

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
    CONSTRAINT message_mode_check CHECK ((mode = ANY (ARRAY['envelope'::text, 'personal'::text])))
)
PARTITION BY RANGE (id);

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
    CONSTRAINT message_mode_check CHECK ((mode = ANY (ARRAY['envelope'::text, 'personal'::text])))
);

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

CREATE TABLE pgmail.relay (
    name text NOT NULL,
    state text DEFAULT 'up'::text NOT NULL,
    reason text,
    blocked_until timestamp with time zone,
    changed_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    changed_by text DEFAULT SESSION_USER NOT NULL,
    CONSTRAINT relay_state_check CHECK ((state = ANY (ARRAY['up'::text, 'away'::text, 'paused'::text])))
);

CREATE TABLE pgmail.schema_version (
    singleton boolean DEFAULT true NOT NULL,
    version integer NOT NULL,
    compatible_from integer NOT NULL,
    installed_at timestamp with time zone DEFAULT now() NOT NULL,
    upgraded_at timestamp with time zone DEFAULT now() NOT NULL,
    CONSTRAINT schema_version_singleton_check CHECK (singleton)
);

CREATE TABLE pgmail.site_domain (
    domain text NOT NULL,
    site text NOT NULL
);

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
    CONSTRAINT stream_max_age_seconds_check CHECK ((max_age_seconds > 0)),
    CONSTRAINT stream_max_attempts_check CHECK ((max_attempts > 0)),
    CONSTRAINT stream_max_queued_check CHECK ((max_queued >= 0)),
    CONSTRAINT stream_name_check CHECK ((name ~ '^[a-z0-9][a-z0-9_-]{0,62}$'::text)),
    CONSTRAINT stream_on_doubt_check CHECK ((on_doubt = ANY (ARRAY['resend'::text, 'hold'::text]))),
    CONSTRAINT stream_priority_check CHECK (((priority >= 1) AND (priority <= 3))),
    CONSTRAINT stream_retry_base_seconds_check CHECK ((retry_base_seconds > (0)::double precision)),
    CONSTRAINT stream_retry_cap_seconds_check CHECK ((retry_cap_seconds > (0)::double precision)),
    CONSTRAINT stream_retry_factor_check CHECK ((retry_factor >= (1)::double precision)),
    CONSTRAINT stream_retry_jitter_check CHECK (((retry_jitter >= (0)::double precision) AND (retry_jitter <= (1)::double precision))),
    CONSTRAINT stream_trace_check CHECK ((trace = ANY (ARRAY['full'::text, 'lean'::text])))
);

CREATE TABLE pgmail.suppression (
    tenant_id integer NOT NULL,
    address text NOT NULL,
    stream text DEFAULT ''::text NOT NULL,
    reason text NOT NULL,
    source text,
    created_at timestamp with time zone DEFAULT pgmail.now() NOT NULL,
    created_by text DEFAULT SESSION_USER NOT NULL,
    expires_at timestamp with time zone,
    CONSTRAINT suppression_reason_check CHECK ((reason = ANY (ARRAY['bounced'::text, 'complained'::text, 'unsubscribed'::text, 'manual'::text])))
);

CREATE TABLE pgmail.tag (
    tenant_id integer NOT NULL,
    name text NOT NULL,
    value text NOT NULL,
    message_id uuid NOT NULL
)
PARTITION BY RANGE (message_id);

CREATE TABLE pgmail.tag_default (
    tenant_id integer CONSTRAINT tag_tenant_id_not_null NOT NULL,
    name text CONSTRAINT tag_name_not_null NOT NULL,
    value text CONSTRAINT tag_value_not_null NOT NULL,
    message_id uuid CONSTRAINT tag_message_id_not_null NOT NULL
);

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

ALTER TABLE pgmail.tenant ALTER COLUMN id ADD GENERATED BY DEFAULT AS IDENTITY (
    SEQUENCE NAME pgmail.tenant_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);

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
    CONSTRAINT worker_state_check CHECK ((state = ANY (ARRAY['running'::text, 'draining'::text])))
)
WITH (fillfactor='50');

ALTER TABLE ONLY pgmail.attachment ATTACH PARTITION pgmail.attachment_default DEFAULT;

ALTER TABLE ONLY pgmail.event ATTACH PARTITION pgmail.event_default DEFAULT;

ALTER TABLE ONLY pgmail.message ATTACH PARTITION pgmail.message_default DEFAULT;

ALTER TABLE ONLY pgmail.outcome ATTACH PARTITION pgmail.outcome_default DEFAULT;

ALTER TABLE ONLY pgmail.recipient ATTACH PARTITION pgmail.recipient_default DEFAULT;

ALTER TABLE ONLY pgmail.tag ATTACH PARTITION pgmail.tag_default DEFAULT;

ALTER TABLE ONLY pgmail.alembic_version
    ADD CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num);

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

ALTER TABLE ONLY pgmail.database_role
    ADD CONSTRAINT database_role_pkey PRIMARY KEY (role_name);

ALTER TABLE ONLY pgmail.dead_letter
    ADD CONSTRAINT dead_letter_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.event
    ADD CONSTRAINT event_pkey PRIMARY KEY (tenant_id, recipient_id, id);

ALTER TABLE ONLY pgmail.event_default
    ADD CONSTRAINT event_default_pkey PRIMARY KEY (tenant_id, recipient_id, id);

ALTER TABLE ONLY pgmail.idempotency
    ADD CONSTRAINT idempotency_pkey PRIMARY KEY (tenant_id, key);

ALTER TABLE ONLY pgmail.lane
    ADD CONSTRAINT lane_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.leader
    ADD CONSTRAINT leader_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.message
    ADD CONSTRAINT message_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.message_default
    ADD CONSTRAINT message_default_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.outcome
    ADD CONSTRAINT outcome_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.outcome_default
    ADD CONSTRAINT outcome_default_pkey PRIMARY KEY (tenant_id, recipient_id);

ALTER TABLE ONLY pgmail.queue
    ADD CONSTRAINT queue_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.recipient
    ADD CONSTRAINT recipient_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.recipient_default
    ADD CONSTRAINT recipient_default_pkey PRIMARY KEY (tenant_id, id);

ALTER TABLE ONLY pgmail.relay
    ADD CONSTRAINT relay_pkey PRIMARY KEY (name);

ALTER TABLE ONLY pgmail.schema_version
    ADD CONSTRAINT schema_version_pkey PRIMARY KEY (singleton);

ALTER TABLE ONLY pgmail.site_domain
    ADD CONSTRAINT site_domain_pkey PRIMARY KEY (domain);

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

ALTER TABLE ONLY pgmail.worker
    ADD CONSTRAINT worker_pkey PRIMARY KEY (epoch);

CREATE INDEX idempotency_expiry ON pgmail.idempotency USING btree (expires_at);

CREATE INDEX lane_by_version ON pgmail.lane USING btree (version);

CREATE INDEX queue_claim ON pgmail.queue USING btree (tenant_id, lane, due_at, id);

CREATE INDEX queue_expiry ON pgmail.queue USING btree (expires_at) WHERE (expires_at IS NOT NULL);

CREATE INDEX queue_later ON pgmail.queue USING btree (due_at, tenant_id, lane) WHERE later;

CREATE INDEX recipient_address ON ONLY pgmail.recipient USING btree (tenant_id, address, id);

CREATE INDEX recipient_default_tenant_id_address_id_idx ON pgmail.recipient_default USING btree (tenant_id, address, id);

CREATE INDEX recipient_message ON ONLY pgmail.recipient USING btree (tenant_id, message_id);

CREATE INDEX recipient_default_tenant_id_message_id_idx ON pgmail.recipient_default USING btree (tenant_id, message_id);

ALTER INDEX pgmail.attachment_pkey ATTACH PARTITION pgmail.attachment_default_pkey;

ALTER INDEX pgmail.event_pkey ATTACH PARTITION pgmail.event_default_pkey;

ALTER INDEX pgmail.message_pkey ATTACH PARTITION pgmail.message_default_pkey;

ALTER INDEX pgmail.outcome_pkey ATTACH PARTITION pgmail.outcome_default_pkey;

ALTER INDEX pgmail.recipient_pkey ATTACH PARTITION pgmail.recipient_default_pkey;

ALTER INDEX pgmail.recipient_address ATTACH PARTITION pgmail.recipient_default_tenant_id_address_id_idx;

ALTER INDEX pgmail.recipient_message ATTACH PARTITION pgmail.recipient_default_tenant_id_message_id_idx;

ALTER INDEX pgmail.tag_pkey ATTACH PARTITION pgmail.tag_default_pkey;

ALTER TABLE pgmail.api_key ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.asset ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.attachment ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.attachment_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.audit ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.database_role ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.dead_letter ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.event ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.event_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.idempotency ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.lane ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.lane_touch ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.leader ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.message ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.message_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.outcome ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.outcome_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.queue ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.recipient ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.recipient_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.relay ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.schema_version ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.site_domain ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.stream ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.suppression ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tag ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tag_default ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tally ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tally_total ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.template ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.tenant ENABLE ROW LEVEL SECURITY;

ALTER TABLE pgmail.worker ENABLE ROW LEVEL SECURITY;

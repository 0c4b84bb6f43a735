-- Limits: message rates as tokens, connections as permits, both of the whole fleet (ops/docs/limits.md).
-- A rate is paced by virtual scheduling (the generic cell rate algorithm of ITU-T I.371): a bucket knows the moment of
-- its last token, and the next one lies a gap later. Each token is for one message at one moment, so nothing bursts,
-- and workers that fetch them a handful at a time spend no more than one that fetches each by itself.

-- How much later than its moment a message may reach the remote without breaking a window of so many seconds: the time that
-- the tokens of a window are spread wider than the window. Workers use two thirds of it at most (pgmail/worker/limiter.py); the
-- rest is for clocks that were compared over a network, and for the way to the remote.
create or replace function pgmail.limit_margin(p_per_seconds real) returns double precision
language sql immutable parallel safe
as $$ select greatest(p_per_seconds::double precision * 0.015, 0.015) $$;

-- The gap between two tokens, in seconds; null without a rate. Messages that begin at most the margin after the moments
-- of their tokens are, in any window of per_seconds, no more than the moments in a window that much longer: with this
-- gap, as many as are allowed. A relay is ramped up to from a tenth of its rate, since it was up.
create or replace function pgmail.limit_gap(p_limit pgmail.limits, p_up_since timestamptz, p_now timestamptz) returns double precision
language sql immutable parallel safe
as $$
  select (p_limit.per_seconds::double precision + pgmail.limit_margin(p_limit.per_seconds)) / p_limit.messages
    / case when p_limit.scope = 'relay' and p_limit.ramp_seconds > 0
           then least(1, greatest(0.1, coalesce(extract(epoch from p_now - p_up_since), 0)::double precision / p_limit.ramp_seconds))
           else 1 end
$$;

-- 10 a minute, as a person says it.
create or replace function pgmail.rate_words(p_messages integer, p_per_seconds real) returns text
language sql immutable parallel safe
as $$
  select p_messages || case p_per_seconds when 1 then ' a second' when 60 then ' a minute' when 3600 then ' an hour'
    when 86400 then ' a day' else ' in ' || p_per_seconds || ' seconds' end
$$;

-- A receiving site as lanes name it: the domain in lower-case A-labels, or the group that it belongs to.
create or replace function pgmail.site_name(p_text text, p_field text) returns text
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare d text := pgmail.domain_ascii(btrim(p_text));
begin
  if d is null then perform pgmail.refuse('invalid_site', p_field, 'must be a domain such as gmail.com'); end if;
  return coalesce((select s.site from pgmail.site_domain s where s.domain = d), d);
end
$$;

-- What a limit is on, in its normal form; refused where there can be no such thing. A relay may be known later.
create or replace function pgmail.limit_name(p_scope text, p_name text) returns text
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
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
$$;

-- Sets the whole limit: what is left out is not limited. Answers its name in normal form. Workers obey within a second.
create or replace function pgmail.set_limit(
  p_scope text, p_name text, p_messages integer, p_per_seconds real default 1, p_connections integer default null,
  p_ramp_seconds real default 30, p_note text default null
) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- No limit from now on, one of the defaults' too: an upgrade does not bring it back. False if there was none.
create or replace function pgmail.remove_limit(p_scope text, p_name text) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare named text := pgmail.limit_name(p_scope, p_name);
begin
  delete from pgmail.limits l where l.scope = p_scope and l.name = named;
  if not found then return false; end if;
  perform pgmail.record_act(null, 'limit.remove', p_scope || ' ' || named, null);
  return true;
end
$$;

-- A tenant's share beside others.
create or replace function pgmail.set_tenant(p_name text, p_weight real) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- How many connections this worker may hold of each key; null where there is no cap. It names every key of which it
-- holds or wants any: what it names no longer, it has given back. p_held is what it holds and will not exceed until the
-- answer; p_wanted is what it could use, those included.
-- Fair among the workers that want some: what one leaves is lent to the others. Who holds more than its share is told
-- so, and gives back as its mails end; what it may still hold counts until it says that it does not. So the sum of what
-- living workers may hold never passes the cap.
-- With fewer connections than workers, those who have one take turns of a minute: a worker whose connection hangs does not
-- keep it from the others for good.
create or replace function pgmail.share_permits_v1(p_epoch bigint, p_scopes text[], p_names text[], p_held integer[], p_wanted integer[])
returns table (scope text, name text, allowed integer)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off set plan_cache_mode = force_generic_plan
as $$
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

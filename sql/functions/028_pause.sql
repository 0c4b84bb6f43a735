-- Pauses, and what stands in the way of a lane's mail now. A pause is a row that workers read once a second: it moves no
-- mail and touches no lane, so a pause of a million recipients costs what one of a single costs.

-- A lane as people name it: stream/priority/site.
create or replace function pgmail.lane_name(p_stream text, p_priority integer, p_site text) returns text
language sql immutable parallel safe
as $$ select p_stream || '/' || case p_priority when 1 then 'high' when 2 then 'normal' else 'low' end || '/' || p_site $$;

-- The name of what is to be paused, in normal form; refused where there can be no such thing. p_tenant null: any's.
create or replace function pgmail.pause_target(p_tenant integer, p_scope text, p_name text) returns text
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
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

-- Stops mail to a site, of a stream or of a lane: the caller's tenant's, or with p_fleet everybody's. Mail waits
-- meanwhile. Again changes reason and end. Answers the name in normal form. Keys of the API act for their tenant only.
create or replace function pgmail.pause_mail(
  p_scope text, p_name text, p_reason text, p_until timestamptz default null, p_fleet boolean default false
) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- Lets it flow again. Refused where it is not paused: who expects a pause to end should hear that it was another one.
create or replace function pgmail.resume_mail(p_scope text, p_name text, p_reason text default null, p_fleet boolean default false)
returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- What keeps the mail of a lane from being sent now: the first of a restore that nobody has decided on, a pause, its relays, a
-- limit, no worker. kind is restore, pause, relay, limit or workers (null: nothing does), scope and name say of what, until
-- when it ends by itself as far as is known, words tell it in half a sentence.
create or replace function pgmail.lane_stop(
  t integer, p_stream text, p_priority integer, p_site text, out kind text, out scope text, out name text, out until timestamptz, out words text
)
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off set plan_cache_mode = force_generic_plan
as $$
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

-- The same for a lane of the caller's tenant.
create or replace function pgmail.stopped_by(
  p_stream text, p_priority integer, p_site text, out kind text, out scope text, out name text, out until timestamptz, out words text
)
language sql stable security definer set search_path = pgmail, pg_temp
as $$ select * from pgmail.lane_stop(pgmail.need_tenant(), p_stream, p_priority, p_site) $$;


-- The relays of a worker's settings, so that streams and limits may name them. Writes only what is new.
create or replace function pgmail.register_relays_v1(p_names text[]) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- Webhooks: endpoints that are told of a tenant's events (ops/docs/webhooks.md). Here is what people do with them; 069_hooks_queue.sql
-- tells them. Secrets come sealed by the tenant's data key: this database never sees one.

create or replace function pgmail.need_hook(p_id uuid) returns pgmail.hook
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare h pgmail.hook;
begin
  select x.* into h from pgmail.hook x where x.tenant_id = pgmail.need_tenant() and x.id = p_id and x.removed_at is null;
  if not found then perform pgmail.refuse('not_found', '/id', format('no webhook has the id %s', p_id), 404); end if;
  return h;
end
$$;

-- Refuses what no endpoint can have. The URL's own law (which hosts, which ports) is that of who calls it, at each call.
create or replace function pgmail.check_hook(h pgmail.hook) returns void
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
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
$$;

create or replace function pgmail.check_hook_secret(p_tenant integer, p_key integer, p_sealed bytea) returns void
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
begin
  if octet_length(p_sealed) is null or octet_length(p_sealed) not between 52 and 92
     or not exists (select from pgmail.data_key d where d.tenant_id = p_tenant and d.id = p_key) then
    perform pgmail.refuse('invalid_seal', '/secret', 'a secret is 24 to 64 octets, sealed by a data key of its tenant');
  end if;
end
$$;

-- A new endpoint. Who seals its secret makes its id, since what is sealed is bound to it. At most 100 a tenant. It is told what
-- commits from now on.
create or replace function pgmail.add_hook(
  p_id uuid, p_url text, p_types text[], p_streams text[], p_tags jsonb, p_description text, p_key integer, p_sealed bytea
) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- Where nobody wanted events until now, they are read from this moment on. The lock keeps whoever reads them from stopping
-- because it does not see the new endpoint yet.
create or replace function pgmail.begin_hooks() returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  perform from pgmail.hook_cursor for update;
  update pgmail.hook_cursor set seen = pg_current_snapshot(), seen_at = clock_timestamp(), until = null, xid = null, place = null, event_id = null
  where seen is null;
  -- In a second statement, which finds it in the row: behind a savepoint it is not the transaction's own.
  if found then update pgmail.hook_cursor set written = xmin; end if;
end
$$;

-- Changes what p_changes names of "endpoint", "events", "streams", "tags", "description", "status" (enabled or disabled). What
-- waits for a disabled endpoint goes on waiting, and what happens meanwhile is not kept for it.
create or replace function pgmail.set_hook(p_id uuid, p_changes jsonb, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- Takes an endpoint away. What waited for it and its log go step by step, soon (keep_hooks_v1).
create or replace function pgmail.remove_hook(p_id uuid, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare h pgmail.hook := pgmail.need_hook(p_id);
begin
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  update pgmail.hook x set removed_at = pgmail.now(), enabled = false, reason = 'removed' where x.tenant_id = h.tenant_id and x.id = h.id;
  delete from pgmail.hook_secret x where x.tenant_id = h.tenant_id and x.hook_id = h.id;
  perform pgmail.record_act(h.tenant_id, 'webhook.remove', format('%s %s', h.id, split_part(h.url, '?', 1)), p_reason);
end
$$;

-- Another secret, which signs from now on, beside the newest one until p_overlap has passed; all older ones end now.
create or replace function pgmail.rotate_hook(p_id uuid, p_key integer, p_sealed bytea, p_overlap interval, p_reason text default null)
returns timestamptz
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- Tells an endpoint a sample event; the event's id, under which its log has it.
create or replace function pgmail.test_hook(p_id uuid) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare h pgmail.hook := pgmail.need_hook(p_id); event uuid := pgmail.uuid7();
begin
  if not h.enabled then perform pgmail.refuse('webhook_disabled', '/id', 'it is disabled; enable it first', 409); end if;
  insert into pgmail.hook_queue (tenant_id, hook_id, event_id, type, at) values (h.tenant_id, h.id, event, 'webhook.test', pgmail.now());
  perform pgmail.record_act(h.tenant_id, 'webhook.test', h.id::text, null);
  return event;
end
$$;

-- A look at p_most calls of an endpoint's log, on from p_after: the events that p_filter finds in them are queued once more, or
-- only counted (p_dry). How many, at how many calls it looked, and the last of these.
create or replace function pgmail.replay_step(
  h pgmail.hook, p_filter jsonb, p_after uuid, p_most integer, p_dry boolean, out n integer, out looked integer, out last uuid
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
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

-- Tells what was told, or was not, once more: the events in the log that p_filter finds, by "since" and "until" (the event's
-- time), "type", "outcome" (failed, if nothing is said: what was given up, and was not delivered later; delivered; or all) and
-- "event". What is new is told before it. Looks at p_most calls, on from p_after; how many will be told, and from where to go on: null at the end.
create or replace function pgmail.replay_hook(
  p_id uuid, p_filter jsonb, p_after uuid default null, p_most integer default 5000, p_reason text default null, out n integer, out next uuid
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
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

-- How many events replay_hook would tell, among the oldest 100,000 calls of the log. `complete`: there are no more calls than that.
create or replace function pgmail.count_replay(p_id uuid, p_filter jsonb, out n integer, out complete boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare most constant integer := 100000; h pgmail.hook := pgmail.need_hook(p_id); s record;
begin
  select * into s from pgmail.replay_step(h, p_filter, null, most, true);
  n := s.n; complete := s.looked < most;
end
$$;

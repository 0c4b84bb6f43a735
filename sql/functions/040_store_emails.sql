-- Stores emails as they were read: all of them in a handful of set-based statements, whatever their number.
-- A good guest: it updates nothing and inserts nothing unique that another transaction could hold, but for the
-- caller's own idempotency keys, taken in sorted order. Answers the ids in the order of p_emails. Where one has a fault,
-- or is refused after all (its key was used with another body, or a limit with on_limit = 'error'), the id is null and
-- faults says why.
-- An array of records is unnested in the select list, in step with those beside it: subscripts would walk it anew each
-- time, and a function in FROM would copy every content.

-- Takes a key for an email about to be stored under p_id. Answers p_id; the id of the first time where this very email
-- was stored under it; null where another one was. Waits for a transaction that holds the same key: two orders of one
-- key must not both be sent.
create or replace function pgmail.take_key(p_tenant integer, p_key text, p_hash bytea, p_id uuid) returns uuid
language plpgsql volatile
as $$
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

create or replace function pgmail.key_conflict() returns pgmail.email
language sql immutable
as $$ select pgmail.faulty('idempotency_conflict', '/idempotency_key', 'this key was used with another email in the last 24 hours', 409) $$;

-- A hint for workers that sleep; polling is the truth. Two-phase commit refuses NOTIFY: set pgmail.notify = 'off'.
create or replace function pgmail.wake() returns void
language plpgsql volatile
as $$
begin
  if coalesce(current_setting('pgmail.notify', true), '') <> 'off' and exists (select from pgmail.worker w where w.asleep) then
    perform pg_notify('pgmail', '');
  end if;
end
$$;

create or replace function pgmail.store_emails(p_tenant integer, p_emails pgmail.email[],
  out ids uuid[], out faults pgmail.email[])
language plpgsql volatile
as $$
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

-- Stores emails that read_email found good: all of them in a handful of set-based statements, whatever their number.
-- A good guest: it updates nothing and inserts nothing unique that another transaction could hold, but for the
-- caller's own idempotency keys, taken in sorted order. Answers the ids in the order of p_emails; where an email was
-- refused after all (its key was used with another body, or a limit with on_limit = 'error') the id is null and the
-- fault says why.
create or replace function pgmail.store_emails(p_tenant integer, p_emails pgmail.email[],
  out ids uuid[], out faults pgmail.email[])
language plpgsql volatile
as $$
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

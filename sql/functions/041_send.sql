-- The ways in by SQL: send (an email as jsonb, or named arguments) and send_many. All run in the caller's
-- transaction and as its tenant; a rollback, to a savepoint too, sends nothing.

-- work_mem: what is taken apart here may be sealed when it is stored, and must not lie in a temporary file until then.
create or replace function pgmail.send(email jsonb) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan set work_mem = '256MB'
as $$
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

-- The same by named arguments. sender and recipient have no default, so that an uncast literal finds the jsonb form.
create or replace function pgmail.send(
  sender text, recipient text, subject text default null, "text" text default null, html text default null,
  template text default null, variables jsonb default null, stream text default null, priority text default null,
  send_at timestamptz default null, expires_at timestamptz default null, idempotency_key text default null,
  on_limit text default null, cc text[] default null, bcc text[] default null, reply_to text default null,
  headers jsonb default null, attachments jsonb default null, tags jsonb default null, metadata jsonb default null,
  test boolean default null
) returns uuid
language sql volatile
as $$
  select pgmail.send(jsonb_build_object(
    'from', sender, 'to', recipient, 'subject', subject, 'text', "text", 'html', html,
    'template', case when template is not null then jsonb_build_object('id', template) end,
    'variables', variables, 'stream', stream, 'priority', priority,
    'scheduled_at', to_json(send_at), 'expires_at', to_json(expires_at),
    'idempotency_key', idempotency_key, 'on_limit', on_limit, 'cc', to_jsonb(cc), 'bcc', to_jsonb(bcc),
    'reply_to', reply_to, 'headers', headers, 'attachments', attachments, 'tags', tags, 'metadata', metadata,
    'test', test))
$$;

-- Refuses an email for its fault. Where a limit is the reason, the hint says when to try again.
create or replace function pgmail.refuse_email(e pgmail.email, p_before text) returns void
language plpgsql
as $$
begin
  if e.due_at is null then perform pgmail.refuse(e.fault_code, p_before || e.fault_field, e.fault_message, e.fault_status); end if;
  raise exception using errcode = 'PM' || e.fault_status, constraint = e.fault_code, detail = p_before || e.fault_field,
    message = p_before || e.fault_field || ': ' || e.fault_message, hint = 'Try again after ' || pgmail.iso_time(e.due_at)
      || ', or let it wait: "on_limit": "delay".';
end
$$;

create or replace function pgmail.iso_time(p_at timestamptz) returns text
language sql immutable parallel safe
as $$ select to_char(p_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') $$;

-- Refuses a batch for the first fault in it, if there is one.
create or replace function pgmail.refuse_first(p_faults pgmail.email[]) returns void
language plpgsql
as $$
declare r record;
begin
  select x.* into r from (select generate_subscripts(p_faults, 1) - 1 as i, unnest(p_faults) as e) x
   where (x.e).fault_code is not null order by x.i limit 1;
  if found then
    perform pgmail.refuse_email(r.e, '/' || r.i);
  end if;
end
$$;

-- Many at once. strict: the first fault refuses them all (its field led by the item's position, /2/to/0); otherwise
-- good ones are stored and each bad one has its code, field and message. position counts from 0, as a JSON pointer.
-- idempotency_key holds for the whole array: sent again with the same body it answers the same ids. Keys of batches are
-- a space of their own, led by a blank, and so are taken before those of the items: keys are locked in sorted order.
create or replace function pgmail.send_many(items jsonb, strict boolean default true, idempotency_key text default null)
returns table ("position" integer, id uuid, code text, field text, message text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan set work_mem = '256MB'
as $$
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
$$;

-- The ways in by SQL: send (an email as jsonb, or named arguments) and send_many. All run in the caller's
-- transaction and as its tenant; a rollback, to a savepoint too, sends nothing.

create or replace function pgmail.send(email jsonb) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
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

-- The same by named arguments. sender and recipient have no default, so that an uncast literal finds the jsonb form.
create or replace function pgmail.send(
  sender text, recipient text, subject text default null, "text" text default null, html text default null,
  template text default null, variables jsonb default null, stream text default null, priority text default null,
  send_at timestamptz default null, expires_at timestamptz default null, idempotency_key text default null,
  on_limit text default null, cc text[] default null, bcc text[] default null, reply_to text default null,
  headers jsonb default null, attachments jsonb default null, tags jsonb default null, metadata jsonb default null
) returns uuid
language sql volatile
as $$
  select pgmail.send(jsonb_build_object(
    'from', sender, 'to', recipient, 'subject', subject, 'text', "text", 'html', html,
    'template', case when template is not null then jsonb_build_object('id', template) end,
    'variables', variables, 'stream', stream, 'priority', priority,
    'scheduled_at', to_json(send_at), 'expires_at', to_json(expires_at),
    'idempotency_key', idempotency_key, 'on_limit', on_limit, 'cc', to_jsonb(cc), 'bcc', to_jsonb(bcc),
    'reply_to', reply_to, 'headers', headers, 'attachments', attachments, 'tags', tags, 'metadata', metadata))
$$;

-- Many at once. strict: the first fault refuses them all (its field led by the item's position, /2/to/0); otherwise
-- good ones are stored and each bad one has its code, field and message. position counts from 0, as a JSON pointer.
-- idempotency_key holds for the whole array: sent again with the same body it answers the same ids. Keys of batches are
-- a space of their own, led by a blank, and so are taken before those of the items: keys are locked in sorted order.
create or replace function pgmail.send_many(items jsonb, strict boolean default true, idempotency_key text default null)
returns table ("position" integer, id uuid, code text, field text, message text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
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
$$;

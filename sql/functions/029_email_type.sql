-- What the readers make of an email, and what is stored: one record an email, with its recipients inside.

do $do$ begin
  -- An older shape goes, with the functions that speak of it; the files that follow make them again.
  if exists (select 1 from pg_attribute where attrelid = to_regclass('pgmail.email') and attname = 'roles' and not attisdropped) then
    drop type pgmail.email cascade;
  end if;
  if to_regtype('pgmail.person') is null then
    create type pgmail.person as (
      role      text,
      address   text,   -- lower-case: what is compared
      rcpt      text,   -- what is sent to, where that differs from address
      name      text,
      domain    text,
      variables jsonb
    );
  end if;
  if to_regtype('pgmail.options') is null then
    create type pgmail.options as (
      mode text, stream text, priority smallint, template text, template_version integer,
      missing text[],    -- what the template needs and each recipient has to give
      variables jsonb,   -- shared by all
      metadata jsonb, on_limit text, idempotency_key text, body_hash bytea,
      texts jsonb        -- subject, text and html, as far as given
    );
  end if;
  if to_regtype('pgmail.email') is null then
    create type pgmail.email as (
      fault_code text, fault_field text, fault_message text, fault_status integer,
      sender text, stream text, priority smallint, mode text, max_queued bigint, people pgmail.person[],
      template text, template_version integer,
      content bytea,     -- JSON in UTF-8: from, to, cc, reply_to, subject, text, html, headers, variables, and how many attachments
      headers jsonb, attachments jsonb, tags jsonb, metadata jsonb,
      due_at timestamptz, expires_at timestamptz, on_limit text,
      idempotency_key text, body_hash bytea, size_bytes integer
    );
  end if;
  -- sealed mail: the id that its sealing is bound to, and the number of its data key
  if not exists (select 1 from pg_attribute where attrelid = 'pgmail.email'::regclass and attname = 'seal_key' and not attisdropped) then
    alter type pgmail.email add attribute message_id uuid, add attribute seal_key integer;
  end if;
end $do$;

-- The caller's trace (W3C Trace Context), which is carried on to the worker.
do $do$ begin
  if not exists (select 1 from pg_attribute where attrelid = 'pgmail.email'::regclass and attname = 'traceparent' and not attisdropped) then
    alter type pgmail.email add attribute traceparent text;
  end if;
end $do$;

-- Whether it is a test: recorded as any other, delivered to the sandbox only.
do $do$ begin
  if not exists (select 1 from pg_attribute where attrelid = 'pgmail.email'::regclass and attname = 'test' and not attisdropped) then
    alter type pgmail.email add attribute test boolean;
  end if;
end $do$;

-- The traceparent of a body, or null. What is none is as if absent (W3C Trace Context, section 4.3): an order is worth more
-- than its mail, and its mail more than its trace. Version 00, with ids that are not all zeros.
create or replace function pgmail.traceparent(p_body jsonb) returns text
language sql immutable parallel safe
as $$
  select case when jsonb_typeof(p_body->'traceparent') = 'string'
    and p_body->>'traceparent' ~ '^00-(?!0{32})[0-9a-f]{32}-(?!0{16})[0-9a-f]{16}-[0-9a-f]{2}$' then p_body->>'traceparent' end
$$;

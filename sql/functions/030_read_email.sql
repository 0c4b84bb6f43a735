-- One email as handed over, read and judged: the law of ops/docs/email.md in its order. Raises nothing: the first
-- fault stands in the result, so that a batch can tell each item its own. A statement costs microseconds here and there
-- are a hundred: the plain email is read by one (032_read_plain.sql), in the same way.

create or replace function pgmail.faulty(p_code text, p_field text, p_message text, p_status integer default 422)
returns pgmail.email
language plpgsql immutable
as $$
declare e pgmail.email;
begin
  e.fault_code := p_code; e.fault_field := p_field; e.fault_message := p_message; e.fault_status := p_status;
  return e;
end
$$;

-- A name as a JSON pointer step (RFC 6901, section 3), of an endless one its beginning.
create or replace function pgmail.pointer(p_name text) returns text
language sql immutable parallel safe
as $$ select replace(replace(left(p_name, 200), '~', '~0'), '/', '~1') $$;

create or replace function pgmail.has_control(p_text text) returns boolean
language sql immutable parallel safe
as $$ select p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' $$;

-- ISO 8601 with an offset, or null. The cast decides about the calendar; the pattern insists on date, time, offset.
create or replace function pgmail.parse_time(p_text text) returns timestamptz
language plpgsql stable
as $$
begin
  if p_text !~ '^\d{4}-\d\d-\d\d[Tt ]\d\d:\d\d(:\d\d([.,]\d{1,9})?)?([Zz]|[+-]\d\d(:?\d\d)?)$' then return null; end if;
  return replace(p_text, ',', '.')::timestamptz;
exception when others then
  return null;
end
$$;

-- An object without its keys that are null, which are as if absent.
create or replace function pgmail.without_nulls(p_body jsonb) returns jsonb
language plpgsql immutable
as $$
begin
  if p_body @? 'strict $.* ? (@ == null)' then
    return (select coalesce(jsonb_object_agg(x.key, x.value), '{}') from jsonb_each(p_body) x where x.value <> 'null');
  end if;
  return p_body;
end
$$;

-- What makes two emails of one key the same. Times are often computed anew for a retry (now() + 1 hour), and its trace is another.
create or replace function pgmail.body_hash(p_body jsonb) returns bytea
language plpgsql immutable parallel safe
as $$ begin return sha256(convert_to((p_body - array['idempotency_key', 'scheduled_at', 'expires_at', 'traceparent'])::text, 'UTF8')); end $$;

-- Whether this very email was taken in under its key: a repetition is answered with the first id, even when its times
-- have passed since.
create or replace function pgmail.was_sent(p_tenant integer, p_body jsonb) returns boolean
language sql stable
as $$
  select exists (select 1 from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = p_body->>'idempotency_key'
    and d.body_hash = pgmail.body_hash(p_body) and d.expires_at > pgmail.now())
$$;

create or replace function pgmail.read_email(p_tenant integer, p_body jsonb) returns pgmail.email
language plpgsql stable
as $$
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
$$;

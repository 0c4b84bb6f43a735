-- The plain email, read in a dozen steps: what nearly all mail looks like. A plain email has none of the rarer parts, and
-- addresses of ASCII letters. Whatever is not plain goes through read_email, which is the law; a plain one reads the same
-- by both (tests/sql/test_fast_reader.py). Nothing here finds a fault: a wrong email is not plain.
-- plpgsql pays for the expressions that it comes to, SQL for all that a statement names, once an execution: one statement
-- for all cases read a single email slower and a batch about as fast. Functions of one SQL expression are inlined.

-- Dot-atom of ASCII, a domain of two labels or more whose last begins with a letter. Of 64 octets at most no part is too long.
create or replace function pgmail.is_plain(p_address text) returns boolean
language sql immutable parallel safe
as $$
  select octet_length(p_address) <= 64 and p_address collate "C" ~
    '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(?:\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*@(?:[A-Za-z0-9](?:[A-Za-z0-9-]*[A-Za-z0-9])?\.)+[A-Za-z](?:[A-Za-z0-9-]*[A-Za-z0-9])?$'
$$;

-- A mailbox as most are written: a plain address, alone or in angle brackets after words without <, > and ", or after
-- something quoted without \. Null if it is another. The text of any JSON value may be asked about: that of an array or
-- object which holds an @ has a " where no address has one.
create or replace function pgmail.plain_mailbox(p_text text) returns pgmail.person
language plpgsql immutable parallel safe
as $$
declare p pgmail.person; given text := p_text;
begin
  if right(given, 1) = '>' then
    p.name := btrim(split_part(given, '<', 1), ' ');
    if octet_length(given) > 600 or split_part(given, '<', 3) <> ''
       or p.name collate "C" !~ '^(?:"[^"\\<>\u0001-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*"|[^"<>\u0001-\u001f\u007f-\u009f\u2028-\u202e\u2066-\u2069]*)$' then
      return null;
    end if;
    p.name := nullif(btrim(p.name, '"'), '');
    given := left(split_part(given, '<', 2), -1);
  end if;
  if not pgmail.is_plain(given) then return null; end if;
  p.role := 'to';
  p.address := lower(given collate "C");
  p.domain := split_part(p.address, '@', 2);
  if given <> p.address then p.rcpt := nullif(split_part(given, '@', 1) || '@' || p.domain, p.address); end if;
  return p;
end
$$;

-- As a header shows it, in JSON. A plain address needs no escape.
create or replace function pgmail.shown(p_rcpt text, p_name text) returns text
language sql stable parallel safe
as $$ select case when p_name is null then '{"address": "' || p_rcpt || '"}'
                  else '{"name": ' || to_json(p_name)::text || ', "address": "' || p_rcpt || '"}' end $$;

create or replace function pgmail.shown_people(p_people pgmail.person[]) returns text
language plpgsql stable
as $$
begin
  return (select string_agg(pgmail.shown(rcpt, name), ', ' order by o)
          from (select coalesce(p.rcpt, p.address) as rcpt, p.name, p.ordinality as o from unnest(p_people) with ordinality p offset 0) q);
end
$$;

-- The recipients of a "to" that is an array or an object. Null where one of them is not plain, where there are too many,
-- or where one lacks a variable that the template needs and the email does not give to all.
create or replace function pgmail.plain_people(p_to jsonb, p_personal boolean, p_missing text[]) returns pgmail.person[]
language plpgsql stable
as $$
declare people pgmail.person[]; all_plain boolean;
begin
  with given as materialized (
    select o, (p).address collate "C" as address, (p).rcpt, name, (p).domain, variables,
      (p).address is not null and plain and coalesce(octet_length(name) <= 600, true)
        and case when variables is null then p_missing = '{}'
                 else p_personal and jsonb_typeof(variables) = 'object' and variables ?& p_missing
                      and pgmail.fits(variables, 262144) end as plain
    from (
      select o, pgmail.plain_mailbox(x->>'address') as p, nullif(btrim(x->>'name', ' '), '') as name,
        nullif(x->'variables', 'null') as variables,
        right(x->>'address', 1) <> '>' and not coalesce(pgmail.has_control(x->>'name'), false)
          and coalesce(jsonb_typeof(x->'name'), 'null') in ('string', 'null') and x - array['address', 'name', 'variables'] = '{}' as plain
      from jsonb_array_elements(case jsonb_typeof(p_to) when 'array' then p_to else jsonb_build_array(p_to) end) with ordinality u(x, o)
      where jsonb_typeof(x) = 'object'
      union all
      select o, p, (p).name, null, true
      from (select o, pgmail.plain_mailbox(x #>> '{}') as p
            from jsonb_array_elements(case jsonb_typeof(p_to) when 'array' then p_to else '[]' end) with ordinality u(x, o)
            where jsonb_typeof(x) <> 'object' offset 0) s
      offset 0) m
  ), chosen as (
    -- of equal addresses the first
    select distinct on (address) * from given order by address, o
  )
  select (select bool_and(coalesce(g.plain, false)) from given g),
    array_agg(('to', address, rcpt, name, domain, variables)::pgmail.person order by o)
    into all_plain, people from chosen;
  if all_plain and cardinality(people) <= (case when p_personal then 1000 else 50 end) then return people; end if;
  return null;
end
$$;

-- What an email has beside from, to and its texts. Null where that is not plain.
create or replace function pgmail.plain_options(p_tenant integer, p_body jsonb) returns pgmail.options
language plpgsql stable
as $$
declare
  o pgmail.options; b jsonb; t jsonb; shared jsonb; required text[];
begin
  -- A key that nobody knows is a fault though it be null; the others are as if absent then.
  if p_body - array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables','headers','attachments',
       'tags','metadata','stream','priority','scheduled_at','expires_at','on_limit','idempotency_key','test','traceparent'] <> '{}' then
    return null;
  end if;
  b := pgmail.without_nulls(p_body); t := b->'template'; shared := b->'variables';
  o.texts := b - array['from', 'to', 'mode', 'template', 'variables', 'stream', 'priority', 'on_limit', 'idempotency_key', 'metadata', 'test', 'traceparent'];
  if o.texts - array['subject', 'text', 'html'] <> '{}' then return null; end if;
  if shared is not null and jsonb_typeof(shared) <> 'object' then return null; end if;
  if t is not null then
    shared := coalesce(shared, '{}');
    if jsonb_typeof(t) = 'object' then
      if t - array['id', 'variables'] <> '{}' or jsonb_typeof(t->'id') is distinct from 'string' then return null; end if;
      if t->'variables' <> 'null' then
        if jsonb_typeof(t->'variables') <> 'object' then return null; end if;
        shared := (t->'variables') || shared;
      end if;
      t := t->'id';
    end if;
    if jsonb_typeof(t) <> 'string' then return null; end if;
    select x.name, x.version, x.required into o.template, o.template_version, required from pgmail.template x
     where x.tenant_id = p_tenant and x.name = t #>> '{}' and x.state = 'published' order by x.version desc limit 1;
    if not found then return null; end if;
    if not shared ?& required then o.missing := array(select r from unnest(required) r where not shared ? r); end if;
  end if;
  o.stream := coalesce(b->>'stream', 'transactional');
  if jsonb_typeof(b->'stream') <> 'string' or jsonb_typeof(b->'test') <> 'boolean' then return null; end if;
  o.on_limit := coalesce(b->>'on_limit', 'delay');
  if o.on_limit not in ('delay', 'hold', 'error') then return null; end if;
  if b ? 'priority' then
    o.priority := case b->>'priority' when 'high' then 1 when 'normal' then 2 when 'low' then 3 end;
    if o.priority is null then return null; end if;
  end if;
  if b ? 'metadata' then
    o.metadata := b->'metadata';
    if jsonb_typeof(o.metadata) <> 'object' or octet_length(o.metadata::text) > 16384 then return null; end if;
  end if;
  if b ? 'idempotency_key' then
    o.idempotency_key := b->>'idempotency_key';
    if jsonb_typeof(b->'idempotency_key') <> 'string' or o.idempotency_key !~ '^[\x21-\x7e]([\x20-\x7e]{0,254}[\x21-\x7e])?$' then return null; end if;
    o.body_hash := pgmail.body_hash(b);
  end if;
  o.mode := coalesce(b->>'mode', 'envelope');
  if o.mode not in ('envelope', 'personal') then return null; end if;
  -- One recipient's own variables make templates of the texts for all of them.
  if shared is null and o.mode = 'personal' and p_body->'to' @? '$[*].variables ? (@ != null)' then shared := '{}'; end if;
  if not pgmail.fits(shared, 1048576) then return null; end if;
  o.variables := shared;
  return o;
end
$$;

-- The email where it is plain; where it is not, its sender is null.
create or replace function pgmail.read_plain(p_tenant integer, p_body jsonb) returns pgmail.email
language plpgsql stable
as $$
declare
  e pgmail.email; o pgmail.options; p pgmail.person; texts jsonb; subject text; head text; bytes bigint; from_name text; rule text;
begin
  if jsonb_typeof(p_body) is distinct from 'object' then return null; end if;

  p := pgmail.plain_mailbox(p_body->>'from');
  if p.address is null then return null; end if;
  e.sender := p.address; from_name := p.name;
  head := '{"from": ' || pgmail.shown(coalesce(p.rcpt, p.address), p.name);

  e.stream := 'transactional'; e.mode := 'envelope'; e.on_limit := 'delay'; e.test := false;
  if p_body - array['from', 'to', 'subject', 'text', 'html'] = '{}' then
    texts := jsonb_strip_nulls(p_body - array['from', 'to']);
  else
    o := pgmail.plain_options(p_tenant, p_body);
    if o.mode is null then return null; end if;
    e.stream := o.stream; e.priority := o.priority; e.mode := o.mode; e.template := o.template; e.template_version := o.template_version;
    e.metadata := o.metadata; e.on_limit := o.on_limit; e.idempotency_key := o.idempotency_key; e.body_hash := o.body_hash;
    e.test := coalesce(p_body->'test' = 'true', false);
    if p_body ? 'traceparent' then e.traceparent := pgmail.traceparent(p_body); end if;
    texts := o.texts;
  end if;

  if jsonb_typeof(p_body->'to') = 'string' then
    p := pgmail.plain_mailbox(p_body->>'to');
    if p.address is null or o.missing is not null then return null; end if;
    e.people := array[p];
    if e.mode = 'envelope' then head := head || ', "to": [' || pgmail.shown(coalesce(p.rcpt, p.address), p.name) || ']'; end if;
  else
    e.people := pgmail.plain_people(p_body->'to', e.mode = 'personal', coalesce(o.missing, '{}'));
    if e.people is null then return null; end if;
    if e.mode = 'envelope' then head := head || ', "to": [' || pgmail.shown_people(e.people) || ']'; end if;
  end if;

  if texts @? 'strict $.* ? (@.type() != "string")' then return null; end if;
  if e.template is null then
    if not (texts ? 'subject' and texts ?| array['text', 'html']) then return null; end if;
  elsif texts ?| array['text', 'html'] then
    return null;
  end if;
  subject := texts->>'subject';
  if length(subject) > 998 or pgmail.has_control(subject) then return null; end if;
  bytes := coalesce(octet_length(subject), 0) + coalesce(octet_length(texts->>'text'), 0) + coalesce(octet_length(texts->>'html'), 0);
  if bytes > 26214400 then return null; end if;
  e.size_bytes := bytes;
  if o.variables is not null then head := head || ', "variables": ' || o.variables::text; end if;
  -- The texts' own JSON goes on after its opening brace.
  if texts <> '{}' then head := head || ', '; end if;
  e.content := convert_to(head, 'UTF8') || substring(convert_to(texts::text, 'UTF8') from 2);

  select coalesce(e.priority, s.priority), s.max_queued, (select x.senders from pgmail.tenant x where x.id = p_tenant)
    into e.priority, e.max_queued, rule
    from pgmail.stream s where s.tenant_id = p_tenant and s.name = e.stream and s.seal = 'off';
  if not found then return null; end if;
  -- Who may send as whom: what sender_fault says, where that is plain. Apart, so that the rule 'any' pays for none of it.
  if rule = 'verified' and (from_name ~ '[@\ufe6b\uff20]' or not pgmail.is_sender_domain(p_tenant, split_part(e.sender, '@', 2))) then
    return null;
  end if;
  return e;
end
$$;

-- One email by the shorter way where it can be.
create or replace function pgmail.read_any(p_tenant integer, p_body jsonb) returns pgmail.email
language plpgsql stable
as $$
declare e pgmail.email := pgmail.read_plain(p_tenant, p_body);
begin
  if e.sender is null then return pgmail.read_sealed(p_tenant, p_body); end if;
  return e;
end
$$;

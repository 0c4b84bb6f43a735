-- Of all functions that follow: those on the path of mail have enable_seqscan off, since a plan made while a table was
-- small stays until the next ANALYZE, and a burst of a million comes sooner; and jit off, which would otherwise compile
-- statements of microseconds.

-- Who calls: the tenant of the session's database role. SECURITY DEFINER functions keep session_user, so this holds
-- inside them too. Only a role marked carries_tenant (the API's) may name a tenant, in a transaction-local setting.
create or replace function pgmail.current_tenant() returns integer
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select case when r.carries_tenant then nullif(current_setting('pgmail.tenant', true), '')::integer
              else r.tenant_id end
  from pgmail.database_role r where r.role_name = session_user
$$;

create or replace function pgmail.need_tenant() returns integer
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.current_tenant();
begin
  if t is null then
    raise exception using errcode = 'PM403', constraint = 'no_tenant',
      message = format('the database role %I belongs to no tenant', session_user),
      hint = format('An administrator grants one: select pgmail.grant_tenant(%L, ''default'')', session_user);
  end if;
  return t;
end
$$;

-- Raises a fault as every way in knows it: SQLSTATE PM + HTTP status, CONSTRAINT the code, DETAIL the field.
create or replace function pgmail.refuse(p_code text, p_field text, p_message text, p_status integer default 422)
returns void
language plpgsql
as $$
begin
  raise exception using errcode = 'PM' || p_status, constraint = p_code, detail = p_field,
    message = case when p_field = '' then p_message else p_field || ': ' || p_message end;
end
$$;

-- A role speaks for a tenant from now on. The owner's and the admin role's to call. Who speaks for another tenant is revoked
-- first, so that nobody's application hands its mail over as somebody else's without a word; the API's role is none of any.
create or replace function pgmail.grant_tenant(p_role name, p_tenant text) returns void
language plpgsql security definer set search_path = pgmail, pg_temp
as $$
declare t integer; r record;
begin
  select id into t from pgmail.tenant where name = p_tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', p_tenant), 404); end if;
  select x.carries_tenant, x.tenant_id, n.name into r
  from pgmail.database_role x left join pgmail.tenant n on n.id = x.tenant_id where x.role_name = p_role for update of x;
  if r.carries_tenant then
    perform pgmail.refuse('not_allowed', '/role', format('the role %I carries the tenant of each key, and is of none', p_role), 409);
  elsif r.tenant_id <> t then
    perform pgmail.refuse('speaks_for_another', '/role', format('the role %I speaks for the tenant %s; revoke that first', p_role, r.name), 409);
  end if;
  insert into pgmail.database_role as x (role_name, tenant_id) values (p_role, t)
    on conflict (role_name) do update set tenant_id = excluded.tenant_id where not x.carries_tenant;
  perform pgmail.record_act(t, 'tenant.grant', p_role::text, null);
end
$$;

-- A new tenant with the two streams that everybody starts from.
create or replace function pgmail.create_tenant(p_name text) returns integer
language plpgsql security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  insert into pgmail.tenant (name) values (p_name) returning id into t;
  insert into pgmail.stream (tenant_id, name, priority, trace) values
    (t, 'transactional', 2, 'full'), (t, 'broadcast', 3, 'lean');
  perform pgmail.record_act(t, 'tenant.create', p_name, null);
  return t;
end
$$;

-- What an operator did: who, when, why. The actor is the session's role, or the key that the API named for it.
create or replace function pgmail.actor() returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(
    (select nullif(current_setting('pgmail.actor', true), '') from pgmail.database_role r
      where r.role_name = session_user and r.carries_tenant),
    session_user::text)
$$;

-- From where it came: the address of the API's client, which only the API's own role may name; else the connection's.
create or replace function pgmail.act_source() returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(
    (select nullif(left(current_setting('pgmail.source', true), 100), '') from pgmail.database_role r
      where r.role_name = session_user and r.carries_tenant),
    host(inet_client_addr()), 'local')
$$;

-- The name of the application is what that program says of itself.
create or replace function pgmail.record_act(p_tenant integer, p_action text, p_object text, p_reason text) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.audit (tenant_id, actor, action, object, reason, source, application)
  values (p_tenant, pgmail.actor(), p_action, p_object, p_reason, pgmail.act_source(),
    nullif(current_setting('application_name', true), ''))
$$;

-- A tenant stopped and let go again, and the database roles that speak for one.

-- The id of a tenant by its name.
create or replace function pgmail.tenant_named(p_name text) returns integer
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = p_name;
  if t is null then perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_name, 63)), 404); end if;
  return t;
end
$$;

-- Stops all mail of a tenant until somebody resumes it: a pause, which workers learn of within a second, of all that it has
-- and will hand over. New mail follows its on_limit: delay is taken and waits, hold is held, error is refused. Again
-- changes the reason. Only an administrator lifts it.
create or replace function pgmail.suspend_tenant(p_name text, p_reason text) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_named(p_name);
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  insert into pgmail.pause (tenant_id, scope, name, reason, paused_by) values (t, 'tenant', p_name, p_reason, pgmail.actor())
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, paused_at = pgmail.now(), paused_by = excluded.paused_by;
  perform pgmail.record_act(t, 'tenant.suspend', p_name, p_reason);
end
$$;

-- Lets it flow again, the oldest first. What senders asked to hold stays held until somebody releases it.
create or replace function pgmail.resume_tenant(p_name text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_named(p_name);
begin
  delete from pgmail.pause p where p.tenant_id = t and p.scope = 'tenant';
  if not found then perform pgmail.refuse('not_suspended', '/name', format('the tenant %s is not suspended', p_name), 404); end if;
  perform pgmail.record_act(t, 'tenant.resume', p_name, p_reason);
end
$$;

-- Why a tenant is suspended, in a sentence for its senders; null where it is not.
create or replace function pgmail.suspension(p_tenant integer) returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select format('the tenant is suspended since %s: %s', p.paused_at, p.reason)
  from pgmail.pause p where p.tenant_id = p_tenant and p.scope = 'tenant'
$$;

-- What an administrator runs to make a database role that speaks for a tenant, a statement each. It gets no rights of its
-- own but those of the group role of its kind, producer or analyst; p_content lets an analyst read texts, files and
-- variables. Whose it is stands in database_role, which it can neither read nor change.
create or replace function pgmail.tenant_role_sql(p_prefix text, p_role text, p_tenant text, p_kind text, p_content boolean default false)
returns setof text
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.tenant_named(p_tenant); other text;
begin
  if p_kind is null or p_kind not in ('producer', 'analyst') then perform pgmail.refuse('invalid_kind', '/kind', 'must be producer or analyst'); end if;
  if p_content and p_kind <> 'analyst' then perform pgmail.refuse('invalid_kind', '/content', 'a producer reads no mail but its status'); end if;
  if p_role is null or p_role !~ '^[a-z_][a-z0-9_]{0,62}$' or p_role ~ '^pg_' then
    perform pgmail.refuse('invalid_role', '/role', 'must be 1 to 63 of a-z, 0-9 and _, with neither a digit nor pg_ first');
  end if;
  if starts_with(p_role, p_prefix) then
    perform pgmail.refuse('invalid_role', '/role', format('names that begin with %s are for pgmail''s own roles', p_prefix));
  end if;
  if not exists (select from pg_roles r where r.rolname = p_role) then
    return next format('create role %I login inherit nosuperuser nocreatedb nocreaterole noreplication', p_role);
  elsif exists (select from pg_roles r where r.rolname = p_role
                and (r.rolsuper or r.rolbypassrls or r.rolcreaterole or r.rolreplication)) then
    perform pgmail.refuse('invalid_role', '/role', format('the role %I may do more than a tenant''s role should; choose another', p_role), 409);
  elsif exists (select from pg_auth_members m join pg_roles r on r.oid = m.member join pg_roles g on g.oid = m.roleid
                where r.rolname = p_role and g.rolname <> p_prefix || p_kind) then
    perform pgmail.refuse('invalid_role', '/role', format('the role %I has the rights of other roles, too; choose another', p_role), 409);
  end if;
  select n.name into other from pgmail.database_role x join pgmail.tenant n on n.id = x.tenant_id where x.role_name = p_role and n.id <> t;
  if other is not null then
    perform pgmail.refuse('speaks_for_another', '/role', format('the role %I speaks for the tenant %s; revoke that first', p_role, other), 409);
  end if;
  -- What it was granted before, for another tenant maybe, outlives a revoke: contents are read by a right of the role's own.
  if exists (select from pg_roles r where r.rolname = p_role) then
    return next format('revoke select on pgmail.my_content, pgmail.my_attachment, pgmail.my_variables from %I', p_role);
  end if;
  return next format('grant %I to %I', p_prefix || p_kind, p_role);
  if p_content then
    return next format('grant select on pgmail.my_content, pgmail.my_attachment, pgmail.my_variables to %I', p_role);
  end if;
end
$$;

-- Makes it. As the caller: nobody makes roles by a right that is not their own.
create or replace function pgmail.make_tenant_role(p_prefix text, p_role text, p_tenant text, p_kind text, p_content boolean default false)
returns void
language plpgsql volatile
as $$
declare statement text;
begin
  for statement in select s from pgmail.tenant_role_sql(p_prefix, p_role, p_tenant, p_kind, p_content) s loop
    execute statement;
  end loop;
  perform pgmail.grant_tenant(p_role, p_tenant);
end
$$;

-- A database role speaks for nobody from now on: at once, in open sessions too. Roles that carry tenants stay. Its row
-- stays as well, without a tenant: roles.sql gives tenants to shipped roles that have no row, with every upgrade.
create or replace function pgmail.revoke_tenant(p_role name, p_reason text default null) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  select r.tenant_id into t from pgmail.database_role r where r.role_name = p_role for update;
  if t is null then return false; end if;
  update pgmail.database_role r set tenant_id = null where r.role_name = p_role;
  perform pgmail.record_act(t, 'role.revoke', p_role::text, p_reason);
  return true;
end
$$;

-- Row-level security of a table or partition: on, forced, and with the one policy without which not even the owner sees
-- a row. The owner runs the SECURITY DEFINER functions, each of which names its tenant; a condition that is `true` goes
-- when a statement is planned, so forcing costs nothing while mail flows. What other roles see is roles.sql's to say.
-- A policy names a role, and the owner may become another (a dump restored under another name): one that does not name the
-- table's owner is made anew, so that `pgmail db upgrade` puts such a database right. What is as it should be is left
-- alone, for each change takes the table's lock. Answers whether anything was changed.
create or replace function pgmail.secure_table(p_table regclass) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare c pg_class; named text; good boolean;
begin
  select x.* into strict c from pg_class x where x.oid = p_table;
  select p.polname, p.polroles = array[c.relowner] and p.polcmd = '*' and p.polpermissive
      and pg_get_expr(p.polqual, p.polrelid) = 'true' and pg_get_expr(p.polwithcheck, p.polrelid) = 'true'
    into named, good from pg_policy p where p.polrelid = p_table and p.polname = 'owner';
  if c.relrowsecurity and c.relforcerowsecurity and good then return false; end if;
  if not c.relrowsecurity then execute format('alter table %s enable row level security', p_table); end if;
  if not c.relforcerowsecurity then execute format('alter table %s force row level security', p_table); end if;
  if named is not null and not good then execute format('drop policy owner on %s', p_table); end if;
  if good is not true then execute format('create policy owner on %s to %I using (true) with check (true)', p_table, pg_get_userbyid(c.relowner)); end if;
  return true;
end
$$;

-- Secures the next table, by name after p_after, that is not as it should be; its name, null when all are. Its lock is not to
-- be had at once with those of others while mail flows: so call it until it answers null, each time in a transaction of its own.
create or replace function pgmail.secure_next(p_after text default '') returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare c record;
begin
  for c in select x.oid, x.relname from pg_class x
           where x.relnamespace = 'pgmail'::regnamespace and x.relkind in ('r', 'p') and x.relname <> 'alembic_version' and x.relname::text > p_after
           order by x.relname::text loop
    if pgmail.secure_table(c.oid) then return c.relname; end if;
  end loop;
  return null;
end
$$;

-- Addresses: parsed, judged and normalised here, for every way in (ops/docs/email.md, "Addresses").

-- A label of an internationalised domain as Punycode, without the prefix (RFC 3492, section 6.3).
create or replace function pgmail.punycode(p_label text) returns text
language plpgsql immutable strict parallel safe
as $$
declare
  n integer := 128; delta integer := 0; bias integer := 72; h integer; b integer; m integer; q integer; k integer;
  t integer; c integer; digit integer; total integer := length(p_label); codes integer[]; out_ text := '';
  first boolean := true;
begin
  select array_agg(ascii(x) order by i) into codes from unnest(string_to_array(p_label, null)) with ordinality u(x, i);
  select coalesce(string_agg(chr(x), '' order by i), '') into out_ from unnest(codes) with ordinality u(x, i) where x < 128;
  b := length(out_); h := b;
  if b > 0 then out_ := out_ || '-'; end if;
  while h < total loop
    select min(x) into m from unnest(codes) x where x >= n;
    delta := delta + (m - n) * (h + 1);
    n := m;
    foreach c in array codes loop
      if c < n then delta := delta + 1; end if;
      if c = n then
        q := delta; k := 36;
        loop
          t := case when k <= bias then 1 when k >= bias + 26 then 26 else k - bias end;
          exit when q < t;
          digit := t + (q - t) % (36 - t);
          out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', digit + 1, 1);
          q := (q - t) / (36 - t);
          k := k + 36;
        end loop;
        out_ := out_ || substr('abcdefghijklmnopqrstuvwxyz0123456789', q + 1, 1);
        -- adapt the bias
        delta := case when first then delta / 700 else delta / 2 end;
        first := false;
        delta := delta + delta / (h + 1);
        k := 0;
        while delta > 455 loop delta := delta / 35; k := k + 36; end loop;
        bias := k + 36 * delta / (delta + 38);
        delta := 0;
        h := h + 1;
      end if;
    end loop;
    delta := delta + 1; n := n + 1;
  end loop;
  return out_;
end
$$;

-- Lower case, one character for one, whatever the database's locale: a Turkish one would make a dotless i of ASCII, and
-- C would leave what is not ASCII as it is. Dotted capital I and final sigma are where locales differ.
do $do$
declare c text := (
  select quote_ident(collname) from pg_collation
  where collname in ('pg_c_utf8', 'C.utf8', 'C.UTF-8', 'en_US.utf8', 'en_US.UTF-8', 'und-x-icu')
    and collnamespace = 'pg_catalog'::regnamespace and collencoding in (-1, pg_char_to_encoding('UTF8'))
  order by array_position(array['pg_c_utf8', 'C.utf8', 'C.UTF-8', 'en_US.utf8', 'en_US.UTF-8', 'und-x-icu'], collname::text) limit 1);
begin
  execute format($f$
    create or replace function pgmail.lower_text(p_text text) returns text
    language sql immutable strict parallel safe
    as $b$ select case when p_text ~ '[^\x01-\x7f]' then lower(translate(p_text, U&'\0130\03A3', U&'i\03C3') collate pg_catalog.%s) collate "default"
                       else lower(p_text collate "C") collate "default" end $b$$f$, coalesce(c, '"default"'));
end $do$;

-- A domain in lower-case A-labels, or null when it is none. Full-width and other dots count as dots (RFC 3490, 3.1).
create or replace function pgmail.domain_ascii(p_domain text) returns text
language plpgsql immutable strict parallel safe
as $$
declare d text := pgmail.lower_text(p_domain); l text; labels text[] := '{}';
begin
  if length(d) > 253 then return null; end if;
  if d ~ '[^\x01-\x7f]' then
    d := pgmail.lower_text(normalize(translate(d, U&'\3002\FF0E\FF61', '...'), NFKC));
    if d ~ '[\u0080-\u009f\u00ad\u2000-\u206f\ufe00-\ufe0f\ufeff\ufff0-\uffff]' then return null; end if;
    foreach l in array string_to_array(d, '.') loop
      labels := labels || case when l ~ '[^\x01-\x7f]' then 'xn--' || pgmail.punycode(l) else l end;
    end loop;
    d := array_to_string(labels, '.');
  end if;
  if d !~ '^([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$'
     or d ~ '(^|\.)[0-9]+$' or octet_length(d) > 253 then
    return null;
  end if;
  return d;
end
$$;

do $do$ begin
  if to_regtype('pgmail.address') is null then
    create type pgmail.address as (
      address text,   -- lower-case: what is compared
      rcpt    text,   -- the local part as given, the domain in A-labels: what is sent to
      name    text,
      domain  text,
      fault   text    -- why it is no address; the rest is null then
    );
  end if;
end $do$;

create or replace function pgmail.parse_address(p_text text) returns pgmail.address
language plpgsql immutable parallel safe
as $$
declare a pgmail.address; spec text; name_ text; cut integer; local_ text;
begin
  if octet_length(p_text) > 1000 then a.fault := 'longer than 1,000 octets'; return a; end if;
  if p_text ~ '[\u0001-\u001f\u007f-\u009f\u2028\u2029]' then a.fault := 'has a control character'; return a; end if;
  spec := btrim(p_text, ' ');
  if right(spec, 1) = '>' then
    cut := length(spec) - strpos(reverse(spec), '<') + 1;
    if cut > length(spec) then a.fault := 'has ">" without "<"'; return a; end if;
    name_ := btrim(left(spec, cut - 1), ' ');
    spec := substr(spec, cut + 1, length(spec) - cut - 1);
    if left(name_, 1) = '"' then
      if name_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted name'; return a; end if;
      name_ := regexp_replace(substr(name_, 2, length(name_) - 2), '\\(.)', '\1', 'g');
    elsif name_ ~ '[<>"]' then
      a.fault := 'has <, > or " in an unquoted name'; return a;
    end if;
  end if;
  cut := length(spec) - strpos(reverse(spec), '@') + 1;
  if cut > length(spec) then a.fault := 'has no @'; return a; end if;
  local_ := left(spec, cut - 1);
  if local_ = '' then a.fault := 'has nothing before the @'; return a; end if;
  if octet_length(local_) > 64 then a.fault := 'has more than 64 octets before the @'; return a; end if;
  if local_ !~ '^[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+(\.[A-Za-z0-9!#$%&''*+/=?^_`{|}~-]+)*$' then
    if left(local_, 1) = '"' then
      if local_ !~ '^"([^"\\]|\\.)*"$' then a.fault := 'has an unfinished quoted local part'; return a; end if;
    elsif local_ ~ '[][ ()<>@,;:\\"]' or local_ ~ '(^\.|\.\.|\.$)' then
      a.fault := 'has a character or dot before the @ where none may stand'; return a;
    end if;
  end if;
  if pgmail.has_bidi(local_) then a.fault := 'has a mark that turns the direction of the text'; return a; end if;
  a.domain := pgmail.domain_ascii(substr(spec, cut + 1));
  if a.domain is null then a.fault := 'has no valid domain after the @'; return a; end if;
  a.rcpt := local_ || '@' || a.domain;
  if octet_length(a.rcpt) > 254 then
    a := null; a.fault := 'longer than 254 octets'; return a;
  end if;
  a.address := pgmail.lower_text(a.rcpt);
  a.name := nullif(name_, '');
  return a;
end
$$;

-- Whether anybody was ever erased here: only then are addresses looked up by their tokens, too (pgmail.suppressed_as).
create or replace function pgmail.has_erased(p_tenant integer) returns boolean
language sql stable security definer set search_path = pgmail, pg_temp
as $$ select exists (select from pgmail.erasure_salt x where x.tenant_id = p_tenant) $$;

-- UUIDv7 below PostgreSQL 18 (RFC 9562, section 5.7), as one expression that the planner inlines: a function that is
-- called costs a single send more than the id. 48 bits of milliseconds, the version, 12 bits of the millisecond's
-- fraction, so that ids of one session mostly ascend; the variant and what is random are those of a UUIDv4.
do $do$
begin
  if current_setting('server_version_num')::int < 180000 then
    create or replace function pgmail.uuid7() returns uuid language sql volatile parallel safe as $b$
      select (overlay(lpad(to_hex(floor(date_part('epoch', clock_timestamp()) * 4096000)::bigint), 15, '0') placing '7' from 13 for 0)
              || substr(gen_random_uuid()::text, 20))::uuid $b$;
  end if;
end
$do$;

-- Who may send as whom (ops/docs/senders.md): the rule of a tenant, asked at the door by read_plain and read_email.
-- Under the rule 'any', which asks nothing, it costs one look at the tenant; no statement of its own, no lock.

-- Marks that turn the direction of what follows (UAX 9, sections 2.1 to 2.4): they make a name or a file's name read as
-- something else. Marks of one character (U+200E, U+200F, U+061C) are left: right-to-left text needs them.
create or replace function pgmail.has_bidi(p_text text) returns boolean
language sql immutable parallel safe
as $$ select p_text ~ '[\u202a-\u202e\u2066-\u2069]' $$;

-- A domain and all that it lies in: of a.example.com those are a.example.com, example.com and com.
create or replace function pgmail.domain_and_above(p_domain text) returns text[]
language plpgsql immutable strict parallel safe
as $$
declare rest text := p_domain; found_ text[] := array[p_domain]; dot integer;
begin
  loop
    dot := strpos(rest, '.');
    if dot = 0 then return found_; end if;
    rest := substr(rest, dot + 1);
    found_ := array_append(found_, rest);
  end loop;
end
$$;

-- Whether a domain, or one that it lies in, is the tenant's and verified.
create or replace function pgmail.is_sender_domain(p_tenant integer, p_domain text) returns boolean
language sql stable
as $$
  select exists (select from pgmail.sender_domain d where d.tenant_id = p_tenant and d.state = 'verified'
                 and d.domain = any (pgmail.domain_and_above(p_domain)))
$$;

-- All that reads as the domain of an address in a display name: what stands behind each @, of letters, digits and . _ - with a
-- dot inside. What else stands between @ and it, or behind it, hides nothing of it from a reader. Nor does what is invisible
-- or almost, which is dropped first: marks of no width, variation selectors, spaces thinner than a blank. Dots and dashes of
-- other kinds are taken for what they look like. Quotation marks and the like end a domain, other characters outside ASCII are
-- part of it, for there are such domains.
create or replace function pgmail.domains_shown(p_name text) returns setof text
language sql immutable strict
as $$
  select btrim(m[1], '.-_')
  from regexp_matches(
    regexp_replace(
      translate(
        normalize(
          regexp_replace(p_name, '[\u00ad\u034f\u061c\u180b-\u180f\u2000-\u200f\u202f\u205f-\u206f\ufe00-\ufe0f\ufeff]', '', 'g'),
          NFKC),
        U&'\3002\2010\2011\2012\2013\2014\2015\2043\2212', '.--------'),
      '[\u2016-\u2023\u2027\u2030-\u205e]', ' ', 'g'),
    '@[^a-zA-Z0-9\u0080-\uffff]*((?:[a-zA-Z0-9._-]|[^\x01-\x7f])+)', 'g') m
  where m[1] ~ '[^.]\.+[^.]'
$$;

-- Why the tenant may not send from this domain under this name, with what to do; null if it may. A name that shows an
-- address is judged by that, too: it is what people see.
create or replace function pgmail.sender_fault(p_tenant integer, p_domain text, p_name text) returns text
language plpgsql stable
as $$
declare shown text;
begin
  if not exists (select from pgmail.tenant x where x.id = p_tenant and x.senders = 'verified') then return null; end if;
  if not pgmail.is_sender_domain(p_tenant, p_domain) then
    return format('%s is no verified domain of this tenant; add it (pgmail domain add %s, or POST /domains), publish the '
                  'TXT record that this shows, and verify it', p_domain, p_domain);
  end if;
  if p_name ~ '[@\ufe6b\uff20]' then
    -- What is no domain at all is refused as well: to a reader it is one.
    select s into shown from pgmail.domains_shown(p_name) s
     where not coalesce(pgmail.is_sender_domain(p_tenant, pgmail.domain_ascii(s)), false) limit 1;
    if shown is not null then
      return format('the name shows an address at %s, which is no verified domain of this tenant', left(shown, 255));
    end if;
  end if;
  return null;
end
$$;

-- A lane is (tenant, stream, priority, site). Its id is computed, so that no row need exist when mail goes into it.
create or replace function pgmail.lane_id(p_tenant integer, p_stream text, p_priority integer, p_site text) returns bigint
language sql immutable parallel safe
as $$ select hashtextextended(p_tenant || '/' || p_stream || '/' || p_priority || '/' || p_site, 0) $$;

-- The site of all test email, so that it has lanes of its own: none of its mail waits for a real receiver or costs one
-- anything, and a worker sees by the lane that it goes to the sandbox. No domain has a colon, and site_domain refuses it.
create or replace function pgmail.test_site() returns text
language sql immutable parallel safe
as $$ select 'test:' $$;

-- Folds what send appended into active lanes. Any worker may; two at once share the rows.
create or replace function pgmail.fold_touches_v1() returns integer
language plpgsql security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  with gone as (
    delete from pgmail.lane_touch
    where ctid = any(array(select ctid from pgmail.lane_touch limit 5000 for update skip locked))
    returning *
  ), touched as (
    select tenant_id, lane, min(stream) as stream, min(priority) as priority, min(site) as site, min(due_at) as due_at
    from gone group by tenant_id, lane order by tenant_id, lane
  ), folded as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select tenant_id, lane, stream, priority, site, due_at from touched
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(),
      -- an old rewind was seen by every worker a minute after it was written
      rewind_to = case when l.changed_at > pgmail.now() - interval '1 minute'
                       then least(l.rewind_to, excluded.rewind_to) else excluded.rewind_to end
    returning 1
  )
  select count(*) into n from folded;
  return n;
end
$$;

-- Something in these lanes became due again in the past (released, rescued, retried): appended like a send's touch,
-- and folded into a rewind by a worker. It locks nothing, since the caller may be an application's long transaction.
-- A lane without a row was touched by its send and is not folded yet: it has no head to go back.
create or replace function pgmail.touch_lanes(p_tenant integer, p_lanes bigint[], p_due timestamptz[]) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
  select p_tenant, l.id, l.stream, l.priority, l.site, r.due
  from (select lane, min(due) as due from unnest(p_lanes, p_due) u(lane, due) group by lane) r
  join pgmail.lane l on l.tenant_id = p_tenant and l.id = r.lane
$$;

-- Lanes that this worker found empty for a quiet time: idle, unless the queue says otherwise.
create or replace function pgmail.idle_lanes_v1(p_tenant integer, p_lanes bigint[]) returns integer
language plpgsql security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with quiet as materialized (
    select l.id from pgmail.lane l
    where l.tenant_id = p_tenant and l.id = any(p_lanes) and l.active
      and l.changed_at < pgmail.now() - interval '30 seconds'
      and not exists (select 1 from pgmail.queue q
                      where q.tenant_id = p_tenant and q.lane = l.id and q.due_at <= pgmail.now() + interval '5 seconds')
    order by l.id for update of l skip locked
  ), idled as (
    update pgmail.lane l set active = false, version = nextval('pgmail.lane_version'), changed_at = pgmail.now(),
      rewind_to = null
    from quiet where l.tenant_id = p_tenant and l.id = quiet.id returning 1
  )
  select count(*) into n from idled;
  return n;
end
$$;

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

-- Tokens: which message may begin when, under one rate or several at once (ops/docs/limits.md). A token is a moment. No two
-- of a bucket lie closer than its gap, and a message under several rates has one moment in all their buckets: a token
-- that waited for another one would be spent late, together with the next.

-- Tokens for messages that are about to be sent, for at most half a second ahead. p_sets[i] says in which set the key
-- (p_scopes[i], p_names[i]) is: the rates that a message is under at the same time. A key may be in several sets; p_wants[i]
-- is the number wanted of a set, the same in all its rows. No moment is sooner than p_lead seconds (a quarter at most): so
-- long it takes this worker to have the mail ready, and what is sooner would lapse. Sets are served in the order of their numbers.
-- Answers a row for each set: moments, in seconds from the answer; fewer than wanted: ask again after wait seconds, for
-- (scope, name) has no more until then. They lie gap apart at least. A set of keys without a rate answers as many moments of 0 as were wanted.
-- And a row with set_number null for each key of which free moments were passed over because another key of its set had
-- none then: they are the asker's, for mail under that key alone.
-- Rows are locked by key in order, for this statement only.
create or replace function pgmail.take_tokens_v2(
  p_epoch bigint, p_sets integer[], p_scopes text[], p_names text[], p_wants integer[], p_lead double precision default 0
) returns table (set_number integer, scope text, name text, moments double precision[], gap double precision, wait double precision)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  horizon constant double precision := 0.5;
  -- How far a key's tokens may be passed over for the sake of another one's: what nobody then uses is lost.
  most_passed constant double precision := 0.05;
  most_passed_moments constant integer := 1000;
  lead constant double precision := least(greatest(p_lead, 0), horizon / 2);
  now_ timestamptz; s record; i integer; n integer; t double precision; first double precision; slowest integer;
  scopes_ text[]; names_ text[]; gaps double precision[]; free double precision[]; before double precision[]; up text[];
  passed jsonb := '{}'; mine double precision[];
begin
  -- One that was declared dead must not spend what its successors need.
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out', message = format('worker %s was declared dead', p_epoch);
  end if;
  insert into pgmail.bucket (scope, name)
  select l.scope, l.name from pgmail.limits l join (select distinct x.scope, x.name from unnest(p_scopes, p_names) x(scope, name)) u
    on u.scope = l.scope and u.name = l.name
  where l.messages is not null and not exists (select from pgmail.bucket b where b.scope = l.scope and b.name = l.name)
  order by l.scope, l.name on conflict do nothing;
  perform from pgmail.bucket b
  where (b.scope, b.name) in (select x.scope, x.name from unnest(p_scopes, p_names) x(scope, name))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: tokens start from here, or those who waited longest would be handed moments that
  -- have passed, and spend them in one burst.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  -- No token is given further ahead than the horizon: a last one that lies there was given by another clock, which was set
  -- back, or was that of a server that is gone. Nobody waits for what that one called the present.
  -- Without its bucket (the limit came after the locks were taken) it is as if the limit came a moment later.
  select array_agg(k.scope order by k.scope, k.name), array_agg(k.name order by k.scope, k.name), array_agg(k.gap order by k.scope, k.name),
    array_agg(case when k.last_at = '-infinity' then lead
              when k.last_at > now_ + interval '10 seconds' then greatest(lead, k.gap)
              else greatest(lead, extract(epoch from k.last_at - now_)::double precision + k.gap) end order by k.scope, k.name),
    array_agg(k.name order by k.name) filter (where k.unheard)
  into scopes_, names_, gaps, free, up
  from (
    select u.scope, u.name, b.last_at, r.name is not null and r.up_since is null and u.want > 0 as unheard,
      pgmail.limit_gap(l, coalesce(r.up_since, case when r.name is null then now_ - interval '8 days' else now_ end), now_) as gap
    from (select x.scope, x.name, max(x.want) as want from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name) u
    join pgmail.limits l on l.scope = u.scope and l.name = u.name and l.messages is not null
    join pgmail.bucket b on b.scope = u.scope and b.name = u.name
    left join pgmail.relay r on u.scope = 'relay' and r.name = u.name) k;
  if up is not null then
    -- Its first mail. Past a row that an operator's open transaction holds: nobody's tokens wait for that.
    update pgmail.relay r set up_since = now_
     where r.name in (select x.name from pgmail.relay x where x.name = any (up) and x.up_since is null order by x.name
                      for no key update skip locked);
  end if;
  before := free;
  for s in
    select u.number, least(max(greatest(u.want, 0)), 1000000) as want,
      array_agg(distinct k.at) filter (where k.at is not null) as keys
    from unnest(p_sets, p_scopes, p_names, p_wants) u(number, scope, name, want)
    left join unnest(scopes_, names_) with ordinality k(scope, name, at) on k.scope = u.scope and k.name = u.name
    group by u.number order by u.number
  loop
    set_number := s.number; moments := '{}'; gap := 0; wait := 0; scope := null; name := null;
    if s.keys is null then
      moments := array_fill(0::double precision, array[s.want]);
      return next; continue;
    end if;
    loop
      slowest := s.keys[1]; first := free[slowest];
      foreach i in array s.keys loop
        if free[i] > free[slowest] then slowest := i; end if;
        gap := greatest(gap, gaps[i]);
        first := least(first, free[i]);
      end loop;
      t := free[slowest];
      scope := scopes_[slowest]; name := names_[slowest];
      if t - first > most_passed then wait := greatest(0, t - lead - most_passed * 0.8); exit; end if;
      if t > horizon then wait := greatest(0, t - horizon / 2); exit; end if;
      exit when cardinality(moments) >= s.want;
      if cardinality(s.keys) = 1 then   -- all at once: there may be thousands
        n := least(s.want, 1 + floor((horizon - t) / gaps[slowest])::integer);
        moments := array(select t + g * gaps[slowest] from generate_series(0, n - 1) g);
        free[slowest] := t + n * gaps[slowest];
        continue;
      end if;
      moments := moments || t;
      foreach i in array s.keys loop
        if free[i] + gaps[i] <= t then
          n := least(floor((t - free[i]) / gaps[i])::integer, most_passed_moments);
          select array_agg(free[i] + g * gaps[i] order by g) into mine from generate_series(0, n - 1) g;
          passed := jsonb_set(passed, array[i::text], coalesce(passed->(i::text), '[]') || to_jsonb(mine));
        end if;
        free[i] := t + gaps[i];
      end loop;
    end loop;
    return next;
  end loop;
  if scopes_ is null then return; end if;
  update pgmail.bucket b set last_at = now_ + (x.free - x.gap) * interval '1 second'
  from unnest(scopes_, names_, gaps, free, before) x(scope, name, gap, free, before)
  where b.scope = x.scope and b.name = x.name and x.free > x.before;
  return query select null::integer, scopes_[k.key::integer], names_[k.key::integer],
    array(select v.value::double precision from jsonb_array_elements_text(k.value) v), gaps[k.key::integer], 0::double precision
  from jsonb_each(passed) k;
end
$$;

-- The same as workers of 0.2 call it: each key by itself, keys that are named twice added up. Token i (from 0) of a key is
-- good from starts_in + i * gap seconds after the answer. A key without a rate answers what it asked for, with gap 0.
create or replace function pgmail.take_tokens_v1(p_epoch bigint, p_scopes text[], p_names text[], p_wants integer[])
returns table (scope text, name text, granted integer, starts_in double precision, gap double precision, wait double precision)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  with u as materialized (
    select x.scope, x.name, least(sum(greatest(x.want, 0)), 1000000)::integer as want, (row_number() over (order by x.scope, x.name))::integer as n
    from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name
  ), t as materialized (
    select * from pgmail.take_tokens_v2(p_epoch, (select array_agg(n order by n) from u), (select array_agg(u.scope order by n) from u),
      (select array_agg(u.name order by n) from u), (select array_agg(want order by n) from u))
  )
  select u.scope, u.name, cardinality(t.moments), coalesce(t.moments[1], t.wait + 0.25), t.gap, t.wait
  from u join t on t.set_number = u.n
  order by u.scope, u.name
$$;

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

-- Whose pause it is: the caller's tenant's, or the whole fleet's (null), which is not for API keys.
create or replace function pgmail.pause_tenant(p_fleet boolean) returns integer
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
begin
  if not p_fleet then return pgmail.need_tenant(); end if;
  if exists (select from pgmail.database_role r where r.role_name = session_user and r.carries_tenant) then
    perform pgmail.refuse('not_allowed', '/fleet', 'an API key acts for its tenant only', 403);
  end if;
  return null;
end
$$;

-- Stops mail to a site, of a stream or of a lane: the caller's tenant's, or with p_fleet everybody's. Mail waits
-- meanwhile. Again changes reason and end. Answers the name in normal form. Keys of the API act for their tenant only.
create or replace function pgmail.pause_mail(
  p_scope text, p_name text, p_reason text, p_until timestamptz default null, p_fleet boolean default false
) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.pause_tenant(p_fleet); named text;
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
declare t integer := pgmail.pause_tenant(p_fleet); named text; other pgmail.pause;
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

-- What keeps the mail of a lane of the caller's tenant from being sent now: the first of a restore that nobody has decided
-- on, a pause, its relays, a limit, no worker. kind is restore, pause, relay, limit or workers (null: nothing does), scope and name say of what, until when it ends
-- by itself as far as is known, words tell it in half a sentence.
create or replace function pgmail.stopped_by(
  p_stream text, p_priority integer, p_site text, out kind text, out scope text, out name text, out until timestamptz, out words text
)
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); now_ timestamptz := pgmail.now(); relays_ text[]; up_ text[]; p pgmail.pause; r record;
begin
  select 'restore', 'fleet', 'all', format('all sending is stopped since %s, for the database was restored: %s; pgmail resume --after-restore decides',
    f.noticed_at, f.reason) into kind, scope, name, words from pgmail.fence f;
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
      p.paused_by, p.paused_at, ' until ' || p.until, p.reason);
    return;
  end if;

  if p_site = pgmail.test_site() then return; end if;   -- no relay takes test email, and no limit counts it

  select coalesce(s.relays, array[s.relay]) into relays_ from pgmail.stream s where s.tenant_id = t and s.name = p_stream;
  relays_ := coalesce(relays_, array['default']);
  select array_agg(n.name order by n.i) filter (where coalesce(y.state, 'up') = 'up') as up, min(n.name) as name,
    nullif(min(coalesce(y.blocked_until, 'infinity')), 'infinity') as until,
    string_agg(case y.state
      when 'paused' then format('relay %s is paused by %s since %s%s: %s', y.name, y.changed_by, y.changed_at,
                                ' until ' || y.blocked_until, coalesce(y.reason, 'no reason given'))
      when 'away' then format('relay %s is away since %s: %s; next try at %s', y.name, y.changed_at,
                              coalesce(y.reason, 'unreachable'), y.blocked_until) end, '; and ' order by n.i) as words
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
      then format('%s %s is limited to %s; its next token is free at %s', r.scope, r.name, r.rate, r.free_at)
      else format('%s %s is limited to %s connections, and all are in use', r.scope, r.name, r.connections) end;
    return;
  end if;

  if not exists (select from pgmail.worker x) then
    kind := 'workers'; words := 'no worker is running';
  elsif not exists (select from pgmail.worker x where x.beat_at > now_ - interval '30 seconds') then
    kind := 'workers'; words := format('no worker is alive since %s', (select max(x.beat_at) from pgmail.worker x));
  end if;
end
$$;

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

-- Whether it is a test: recorded as any other, delivered to the sandbox only.
do $do$ begin
  if not exists (select 1 from pg_attribute where attrelid = 'pgmail.email'::regclass and attname = 'test' and not attisdropped) then
    alter type pgmail.email add attribute test boolean;
  end if;
end $do$;

-- What variables may come to, as JSON in octets and in depth: a render copies them, and a reader walks them.
create or replace function pgmail.fits(p_variables jsonb, p_most integer) returns boolean
language sql immutable parallel safe
as $$ select octet_length(p_variables::text) <= p_most and not p_variables @? '$.**{33}' $$;

create or replace function pgmail.variables_fault(p_variables jsonb, p_most integer) returns text
language sql immutable parallel safe
as $$ select case when octet_length(p_variables::text) > p_most then p_most || ' octets as JSON at most' else 'nested more than 32 deep' end
      where not pgmail.fits(p_variables, p_most) $$;

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

-- What makes two emails of one key the same. Times are often computed anew for a retry (now() + 1 hour).
create or replace function pgmail.body_hash(p_body jsonb) returns bytea
language plpgsql immutable parallel safe
as $$ begin return sha256(convert_to((p_body - array['idempotency_key', 'scheduled_at', 'expires_at'])::text, 'UTF8')); end $$;

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
               'idempotency_key','test'] <> '{}' then
    select min(x collate "C") into k from jsonb_object_keys(b) x
     where x <> all (array['from','to','cc','bcc','mode','reply_to','template','subject','text','html','variables',
                           'headers','attachments','tags','metadata','stream','priority','scheduled_at','expires_at',
                           'on_limit','idempotency_key','test']);
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

-- The rarer parts of an email: headers, attachments, tags, metadata. Called by read_email with what it knows so far;
-- puts them into the record, checked, and the attachments' octets into size_bytes.
create or replace function pgmail.read_extras(p_tenant integer, b jsonb, e pgmail.email) returns pgmail.email
language plpgsql stable
as $$
declare
  v jsonb; item jsonb; r record; i integer; f text; kept jsonb; part jsonb; bytes bigint := 0; n integer;
  asset pgmail.asset; name_ text; val text;
begin
  v := b->'headers';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_header', '/headers', 'must be an object'); end if;
    if (select count(*) from jsonb_object_keys(v)) > 50 then
      return pgmail.faulty('invalid_header', '/headers', 'more than 50 headers');
    end if;
    for r in select x.key, x.value from jsonb_each(v) x order by x.key collate "C" loop
      f := '/headers/' || pgmail.pointer(r.key);
      if r.key !~ '^[!-9;-~]{1,76}$' then return pgmail.faulty('invalid_header', f, 'not a header name'); end if;
      if lower(r.key) in ('from', 'to', 'cc', 'bcc', 'subject', 'date', 'message-id', 'reply-to', 'sender',
                          'return-path', 'received', 'mime-version', 'dkim-signature', 'return-receipt-to',
                          'disposition-notification-to', 'authentication-results', 'domainkey-signature', 'x-google-dkim-signature',
                          'received-spf', 'x-received', 'delivered-to', 'x-original-to', 'envelope-to', 'envelope-from',
                          'original-recipient', 'apparently-to', 'errors-to')
         or lower(r.key) ~ '^(content-|resent-|arc-|dkim-|bimi-|x-envelope-)' then
        return pgmail.faulty('reserved_header', f, 'pgmail sets this header itself');
      end if;
      if jsonb_typeof(r.value) <> 'string' then return pgmail.faulty('invalid_header', f, 'must be a string'); end if;
      if length(r.value #>> '{}') > 2000 then return pgmail.faulty('invalid_header', f, 'longer than 2,000 characters'); end if;
      if pgmail.has_control(r.value #>> '{}') then return pgmail.faulty('invalid_header', f, 'has a control character'); end if;
    end loop;
    if v <> '{}' then e.headers := v; end if;
  end if;

  v := b->'attachments';
  if v is not null then
    if jsonb_typeof(v) <> 'array' then return pgmail.faulty('invalid_attachment', '/attachments', 'must be an array'); end if;
    if jsonb_array_length(v) > 100 then return pgmail.faulty('invalid_attachment', '/attachments', 'more than 100 attachments'); end if;
    kept := '[]';
    for i in 0 .. jsonb_array_length(v) - 1 loop
      item := v->i; f := '/attachments/' || i; part := '{}';
      if jsonb_typeof(item) <> 'object' then return pgmail.faulty('invalid_attachment', f, 'must be an object'); end if;
      if item - array['filename', 'content', 'content_type', 'content_id', 'asset', 'path'] <> '{}' then
        return pgmail.faulty('invalid_attachment', f, 'has an unknown key');
      end if;
      if item->>'path' is not null then
        return pgmail.faulty('invalid_attachment', f || '/path', 'attachments are not fetched from URLs; send the content');
      end if;
      foreach name_ in array array['filename', 'content_type', 'content_id', 'asset'] loop
        val := item->>name_;
        continue when val is null;
        if jsonb_typeof(item->name_) <> 'string' or pgmail.has_control(val) or octet_length(val) > 255 or btrim(val, ' ') = '' then
          return pgmail.faulty('invalid_attachment', f || '/' || name_, 'must be a string of 1 to 255 octets without control characters');
        end if;
        part := part || jsonb_build_object(name_, val);
      end loop;
      if pgmail.has_bidi(item->>'filename') then
        return pgmail.faulty('invalid_attachment', f || '/filename', 'has a mark that turns the direction of the text');
      end if;
      val := item->>'content_id';
      if val ~ '[<> ]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'has a space, < or >'); end if;
      if val ~ '[^\x21-\x7e]' then return pgmail.faulty('invalid_attachment', f || '/content_id', 'must be ASCII'); end if;
      val := lower(item->>'content_type');
      if val is not null and (val !~ '^[a-z0-9][a-z0-9!#$&^_.+-]{0,126}/[a-z0-9][a-z0-9!#$&^_.+-]{0,126}( *; *[a-z0-9_-]+=("[^"\\]*"|[^ ;"\\]+))*$'
                              or val ~ '^(multipart|message)/') then
        return pgmail.faulty('invalid_attachment', f || '/content_type', 'must be a type/subtype other than multipart and message');
      end if;
      if item->>'asset' is not null then
        if item->>'content' is not null then
          return pgmail.faulty('invalid_attachment', f, 'has both content and asset');
        end if;
        select * into asset from pgmail.asset x where x.tenant_id = p_tenant and x.name = item->>'asset';
        if not found then
          return pgmail.faulty('unknown_asset', f || '/asset', format('no asset is named %L', left(item->>'asset', 128)));
        end if;
        part := jsonb_build_object('filename', asset.filename, 'content_type', asset.content_type) || part
                || jsonb_build_object('size', asset.size_bytes);
        bytes := bytes + asset.size_bytes;
      else
        if item->>'filename' is null then
          return pgmail.faulty('invalid_attachment', f || '/filename', 'a filename is required');
        end if;
        if jsonb_typeof(item->'content') is distinct from 'string' then
          return pgmail.faulty('invalid_attachment', f || '/content', 'must be the content in base64');
        end if;
        -- Only an upper bound before decoding: a body far too large is not worth decoding.
        if octet_length(item->>'content') > 60000000 then
          return pgmail.faulty('too_large', '', 'an attachment alone exceeds 26,214,400 octets', 413);
        end if;
        begin
          n := octet_length(decode(item->>'content', 'base64'));
        exception when others then
          return pgmail.faulty('invalid_attachment', f || '/content', 'is not valid base64');
        end;
        part := part || jsonb_build_object('content', item->>'content', 'size', n);
        bytes := bytes + n;
      end if;
      kept := kept || part;
    end loop;
    if kept <> '[]' then e.attachments := kept; end if;
    e.size_bytes := least(bytes, 2000000000);
  end if;

  v := b->'tags';
  if v is not null then
    if jsonb_typeof(v) not in ('array', 'object') then return pgmail.faulty('invalid_tag', '/tags', 'must be an array or an object'); end if;
    kept := '{}';
    n := 0;
    for r in
      select '/tags/' || (ord - 1) as field, x->'name' as name, x->'value' as value,
             jsonb_typeof(x) = 'object' and x - array['name', 'value'] = '{}' as shape
      from jsonb_array_elements(case jsonb_typeof(v) when 'array' then v else '[]' end) with ordinality u(x, ord)
      union all
      select * from (select '/tags/' || pgmail.pointer(x.key), to_jsonb(x.key), x.value, true
      from jsonb_each(case jsonb_typeof(v) when 'object' then v else '{}' end) x order by x.key collate "C") o
    loop
      n := n + 1;
      if n > 20 then return pgmail.faulty('invalid_tag', '/tags', 'more than 20 tags'); end if;
      if not r.shape or jsonb_typeof(r.name) is distinct from 'string' or jsonb_typeof(r.value) is distinct from 'string'
         or r.name #>> '{}' !~ '^[A-Za-z0-9_-]+$' or r.value #>> '{}' !~ '^[A-Za-z0-9_-]+$'
         or length(r.name #>> '{}') > 256 or length(r.value #>> '{}') > 256 then
        return pgmail.faulty('invalid_tag', r.field, 'names and values are 1 to 256 of A-Z a-z 0-9 _ -');
      end if;
      kept := kept || jsonb_build_object(r.name #>> '{}', r.value);
    end loop;
    if kept <> '{}' then e.tags := kept; end if;
  end if;

  v := b->'metadata';
  if v is not null then
    if jsonb_typeof(v) <> 'object' then return pgmail.faulty('invalid_metadata', '/metadata', 'must be an object'); end if;
    if octet_length(v::text) > 16384 then return pgmail.faulty('invalid_metadata', '/metadata', 'more than 16 kB as JSON'); end if;
    e.metadata := v;
  end if;
  return e;
end
$$;

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
       'tags','metadata','stream','priority','scheduled_at','expires_at','on_limit','idempotency_key','test'] <> '{}' then
    return null;
  end if;
  b := pgmail.without_nulls(p_body); t := b->'template'; shared := b->'variables';
  o.texts := b - array['from', 'to', 'mode', 'template', 'variables', 'stream', 'priority', 'on_limit', 'idempotency_key', 'metadata', 'test'];
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

-- Sealed mail: an email whose texts, variables and files were sealed before they came here (ops/docs/sealing.md). Its plain body
-- comes along and is judged as any other, by the same law and in the same statement; what is stored of it is the sealed form,
-- which came under the key "sealed": {"tenant", "id", "key", "content", "attachments", "variables", "hash"}. No way in that people write
-- by hand takes that key: pgmail's own programs add it.

create or replace function pgmail.octets_of(p_base64 jsonb) returns bytea
language plpgsql immutable
as $$
begin
  if jsonb_typeof(p_base64) is distinct from 'string' then return null; end if;
  return decode(p_base64 #>> '{}', 'base64');
exception when others then
  return null;
end
$$;

-- Sealed octets of a plain text of this size: a nonce of 12 and a tag of 16 more. JSON of the same values may be written in
-- several ways (1e9 or 1000000000), so twice is allowed; what is far larger is not the same thing.
create or replace function pgmail.fits_sealed(p_sealed bytea, p_plain bigint) returns boolean
language sql immutable
as $$ select coalesce(octet_length(p_sealed) between 28 and 2 * p_plain + 1024, false) $$;

-- Puts the sealed form into an email that was read. Who seals makes the id, since what is sealed is bound to it; it must be of
-- now, or its row would be looked for in another partition than it is in.
create or replace function pgmail.put_sealed(p_tenant integer, p_sealed jsonb, e pgmail.email) returns pgmail.email
language plpgsql stable
as $$
declare open_ jsonb; files jsonb; given uuid; octets bytea; fits boolean;
begin
  if jsonb_typeof(p_sealed) is distinct from 'object'
     or p_sealed - array['tenant', 'id', 'key', 'content', 'attachments', 'variables', 'hash'] <> '{}'
     or coalesce(p_sealed->>'id', '') !~ '^[0-9a-f]{8}-[0-9a-f]{4}-7[0-9a-f]{3}-[89ab][0-9a-f]{3}-[0-9a-f]{12}$'
     or coalesce(p_sealed->>'key', '') !~ '^[1-9][0-9]{0,8}$' then
    return pgmail.faulty('invalid_seal', '/sealed', 'is not as pgmail writes it; clients leave this key out');
  end if;
  if p_sealed->>'tenant' is distinct from p_tenant::text then
    return pgmail.faulty('invalid_seal', '/sealed/tenant', 'was sealed for another tenant: one Sealer is for one tenant''s connections');
  end if;
  given := (p_sealed->>'id')::uuid;
  if pgmail.uuid_time(given) not between clock_timestamp() - interval '10 minutes' and clock_timestamp() + interval '10 minutes' then
    return pgmail.faulty('invalid_seal', '/sealed/id', 'is of another time: the clock of the host that sealed it is wrong');
  end if;
  if not exists (select from pgmail.data_key d where d.tenant_id = p_tenant and d.id = (p_sealed->>'key')::integer) then
    return pgmail.faulty('invalid_seal', '/sealed/key', 'there is no such data key');
  end if;
  octets := pgmail.octets_of(p_sealed->'content');
  -- The names of files are sealed with the content, and in the clear stand beside it.
  if not pgmail.fits_sealed(octets, octet_length(e.content) + coalesce((
       select sum(octet_length(coalesce(to_jsonb(a->>'filename')::text, 'null')) + 1) from jsonb_array_elements(e.attachments) a), 0)) then
    return pgmail.faulty('invalid_seal', '/sealed/content', 'is not the sealed form of this email');
  end if;

  if e.attachments is not null then
    select jsonb_agg(case when a ? 'content' then a || jsonb_build_object('content', s, 'filename', 'sealed') else a end order by i),
        coalesce(bool_and(pgmail.fits_sealed(pgmail.octets_of(s), (a->>'size')::bigint)) filter (where a ? 'content'), true)
      into files, fits
      from (select x as a, p_sealed->'attachments'->(o - 1)::integer as s, o as i
            from jsonb_array_elements(e.attachments) with ordinality u(x, o)) y;
    if not fits then return pgmail.faulty('invalid_seal', '/sealed/attachments', 'are not the sealed form of these attachments'); end if;
    e.attachments := files;
  end if;
  if exists (select from unnest(e.people) p where p.variables is not null) then
    if exists (select from unnest(e.people) p where p.variables is not null
               and not pgmail.fits_sealed(pgmail.octets_of(p_sealed->'variables'->p.address), octet_length(p.variables::text))) then
      return pgmail.faulty('invalid_seal', '/sealed/variables', 'are not the sealed form of these variables');
    end if;
    e.people := array(
      select (p.role, p.address, p.rcpt, p.name, p.domain,
              case when p.variables is not null then p_sealed->'variables'->p.address end)::pgmail.person
      from unnest(e.people) with ordinality p order by p.ordinality);
  end if;

  -- Who it is from and to stands open, beside what is sealed; that there are variables makes templates of the texts. Headers
  -- that are null nobody can read who knows nothing of sealing: an older worker makes a dead letter of it, not an empty mail.
  open_ := convert_from(e.content, 'UTF8')::jsonb;
  open_ := open_ - array['subject', 'text', 'html', 'headers'] || jsonb_build_object('sealed', p_sealed->'content', 'headers', null)
           || case when open_ ? 'variables' then '{"variables": {}}'::jsonb else '{}' end;
  e.content := convert_to(open_::text, 'UTF8');
  e.message_id := given;
  e.seal_key := (p_sealed->>'key')::integer;
  if e.idempotency_key is not null then
    -- Keyed: the plain hash of a short text, such as a code of six digits, would tell the text.
    octets := pgmail.octets_of(p_sealed->'hash');
    if octets is null or octet_length(octets) <> 32 then
      return pgmail.faulty('invalid_seal', '/sealed/hash', 'is needed beside an idempotency key');
    end if;
    e.body_hash := octets;
  end if;
  return e;
end
$$;

-- The email by the whole law, where it is not plain: sealed, or on a stream where that matters.
create or replace function pgmail.read_sealed(p_tenant integer, p_body jsonb) returns pgmail.email
language plpgsql stable
as $$
declare e pgmail.email; b jsonb; sealed jsonb;
begin
  if jsonb_typeof(p_body) is distinct from 'object' or not p_body ? 'sealed' then
    e := pgmail.read_email(p_tenant, p_body);
    if e.fault_code is null and exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = e.stream and s.seal = 'required') then
      return pgmail.faulty('sealing_required', '/stream', format(
        'stream %L takes sealed mail only: by HTTP or Python, from a program that has PGMAIL_SEAL_KEYS', e.stream));
    end if;
    return e;
  end if;
  b := p_body - 'sealed'; sealed := p_body->'sealed';
  e := pgmail.read_email(p_tenant, b);
  if e.fault_code = 'time_in_past' and exists (
       select from pgmail.idempotency d where d.tenant_id = p_tenant and d.key = b->>'idempotency_key'
         and d.body_hash = pgmail.octets_of(sealed->'hash') and d.expires_at > pgmail.now()) then
    e := pgmail.read_email(p_tenant, b - array['scheduled_at', 'expires_at']);   -- a repetition of what was right then
  end if;
  if e.fault_code is not null then return e; end if;
  return pgmail.put_sealed(p_tenant, sealed, e);
end
$$;

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
    scheduled_at, expires_at, template, template_version, size_bytes, tags, metadata, idempotency_key, content, key_id, api_key, test)
  select p_tenant, id, now_, session_user, (e).stream, (e).priority, (e).mode, (e).sender, cardinality((e).people),
    (e).due_at, (e).expires_at, (e).template, (e).template_version, (e).size_bytes, (e).tags, (e).metadata,
    (e).idempotency_key, (e).content, (e).seal_key, (select pgmail.current_key()), (e).test
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
    insert into pgmail.tally (tenant_id, stream, kind, n, at, bytes)
    select p_tenant, j.stream, 'enqueued', count(*), now_, coalesce(sum(octet_length(j.variables::text)), 0) + (
        select sum(octet_length((x.e).content) + case when (x.e).attachments is not null then (x.e).size_bytes else 0 end)
        from (select unnest(p_emails) as e, unnest(fresh) as kept) x where kept and (x.e).stream = j.stream)
      from judged j group by j.stream
    union all
    select p_tenant, stream, 'suppressed', count(*), now_, null from judged where suppressed is not null group by stream
  )
  select bool_or(suppressed is null and due_at is null) into wake from judged;
  if wake then perform pgmail.wake(); end if;
end
$$;

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
        insert into pgmail.tally (tenant_id, stream, kind, n, at, bytes)
        values (t, e.stream, 'enqueued', 1, now_, octet_length(e.content) + coalesce(octet_length(p.variables::text), 0))
      )
      insert into pgmail.message (tenant_id, id, created_at, created_by, stream, priority, mode, sender, recipients, scheduled_at,
        expires_at, template, template_version, size_bytes, metadata, idempotency_key, content, api_key, test)
      values (t, message_, now_, session_user, e.stream, e.priority, e.mode, e.sender, 1, e.due_at,
        e.expires_at, e.template, e.template_version, e.size_bytes, e.metadata, e.idempotency_key, e.content, key_, e.test);
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
             else x - array['scheduled_at', 'expires_at'] end order by o)::text, '') || (strict is true), 'UTF8'))
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

-- Claim, release and rescue: who holds a row. A lease is (leased_by = worker epoch, claims): the pair is the fence.

-- Takes due rows of many lanes of one tenant, from the heads this worker remembers; p_limits[i] rows of lane i at
-- most. A HOT update: it writes no column that an index names. MATERIALIZED and the array keep LIMIT honest with
-- SKIP LOCKED. Lanes with p_traced get an email.sending event a row. A worker that was declared dead gets nothing.
-- With p_holds[i] the worker vows to commit its intent (begin_v1) before it sends a mail of lane i; `vowed` repeats it.
create or replace function pgmail.claim_v3(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[],
  p_traced boolean[], p_holds boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz, vowed boolean)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
begin
  -- The claim is committed once its rows were read. A worker that is frozen in between (SIGSTOP, its host gone without a
  -- word) would keep its rows, and the rescuer that waits for them, for as long as it is frozen. Local to the transaction.
  perform set_config('idle_in_transaction_session_timeout', '3s', true);
  if current_setting('server_version_num')::integer >= 170000 then   -- of several tenants: frozen before all was asked
    perform set_config('transaction_timeout', '6s', true);
  end if;
  -- The lock keeps a rescue from looking for leases before these are there; it does not keep the worker from beating.
  perform from pgmail.worker w where w.epoch = p_epoch for key share;
  if not found then
    raise exception using errcode = 'PM410', constraint = 'fenced_out',
      message = format('worker %s was declared dead; its leases were given back', p_epoch);
  end if;
  if exists (select from pgmail.fence) then return; end if;   -- restored, and nobody has decided yet what went out before
  return query
  with l as materialized (
    select * from unnest(p_lanes, p_due, p_after, p_limits, p_traced, p_holds) u(lane, head_due, head_id, most, traced, holds)
  ), k as materialized (
    select x.id, x.due_at, l.lane, l.traced
    from l cross join lateral (
      select q.id, q.due_at from pgmail.queue q
      where q.tenant_id = p_tenant and q.lane = l.lane and (q.due_at, q.id) > (l.head_due, l.head_id)
        and q.due_at <= pgmail.now() and q.leased_by is null
      order by q.due_at, q.id limit l.most for update skip locked) x
  ), u as (
    update pgmail.queue q set leased_by = p_epoch, leased_at = pgmail.now(), claims = q.claims + 1,
      unsent_claims = case when q.lane = any (array(select l.lane from l where l.holds)) then q.claims + 1 end,
      begun_relay = null
    where q.tenant_id = p_tenant and q.id = any (array(select k.id from k))
    returning q.id, q.message_id, q.lane, q.due_at, q.claims, q.attempts, q.rescues, q.expires_at, q.tried_since,
      q.unsent_claims is not null as vowed
  ), said as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, worker)
    select p_tenant, u.id, u.message_id, 'email.sending', u.attempts + 1, p_epoch
    from u join k on k.id = u.id where k.traced
  )
  select u.id, u.message_id, u.lane, u.due_at, u.claims, u.attempts, u.rescues, u.expires_at, u.tried_since, u.vowed
  from u order by u.due_at, u.id;
end
$$;

-- The same as workers of 0.3 call it, which know no test email and would send it: they do not get its lanes.
create or replace function pgmail.claim_v2(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[],
  p_traced boolean[], p_holds boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz, vowed boolean)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select c.* from (
    select array_agg(lane order by n) as lanes, array_agg(due order by n) as due, array_agg(after order by n) as after,
      array_agg(most order by n) as most, array_agg(traced order by n) as traced, array_agg(holds order by n) as holds
    from unnest(p_lanes, p_due, p_after, p_limits, p_traced, p_holds) with ordinality u(lane, due, after, most, traced, holds, n)
    where not exists (select from pgmail.lane l where l.tenant_id = p_tenant and l.id = u.lane and l.site = pgmail.test_site())) x
  cross join lateral pgmail.claim_v3(p_tenant, p_epoch, x.lanes, x.due, x.after, x.most, x.traced, x.holds) c
$$;

-- The same as workers of before call it, which make no vow: after a crash all that they held is in doubt.
create or replace function pgmail.claim_v1(
  p_tenant integer, p_epoch bigint, p_lanes bigint[], p_due timestamptz[], p_after uuid[], p_limits integer[], p_traced boolean[]
) returns table (id uuid, message_id uuid, lane bigint, due_at timestamptz, claims integer, attempts smallint,
                 rescues smallint, expires_at timestamptz, tried_since timestamptz)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select c.id, c.message_id, c.lane, c.due_at, c.claims, c.attempts, c.rescues, c.expires_at, c.tried_since
  from pgmail.claim_v2(p_tenant, p_epoch, p_lanes, p_due, p_after, p_limits, p_traced,
    array_fill(false, array[cardinality(p_lanes)])) c
$$;

-- The intent to send, of vowed leases, many at once: when it is committed, the end of data may follow, and a worker that
-- dies leaves these rows in doubt. A HOT update. Answers each id that is still leased so: 'begun', or 'locked' where
-- another transaction holds the row (to be tried again); what is not answered was fenced out and must not be sent.
create or replace function pgmail.begin_v1(p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_relays text[])
returns table (id uuid, result text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare begun uuid[];
begin
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out',
      message = format('worker %s was declared dead; its leases were given back', p_epoch);
  end if;
  perform set_config('idle_in_transaction_session_timeout', '3s', true);   -- as in claim_v2
  -- An intent that a crash of the server may forget is none.
  if current_setting('synchronous_commit') = 'off' then perform set_config('synchronous_commit', 'on', true); end if;
  with mine as materialized (
    select r.id, r.relay
    from (select * from unnest(p_ids, p_claims, p_relays) u(id, claims, relay) order by u.id) r
    cross join lateral (
      select x.id from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = r.id and x.leased_by = p_epoch and x.claims = r.claims
      for update skip locked) q
  ), told as (
    update pgmail.queue q set unsent_claims = null, begun_relay = mine.relay
    from mine where q.tenant_id = p_tenant and q.id = mine.id and q.id = any (array(select m.id from mine m))
    returning q.id
  )
  select array_agg(told.id) into begun from told;
  return query select b, 'begun' from unnest(begun) b;
  if cardinality(begun) = cardinality(p_ids) then return; end if;
  return query
  select r.id, 'locked' from unnest(p_ids, p_claims) r(id, claims)
  where (begun is null or r.id <> all (begun)) and (
    select true from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = r.id and q.leased_by = p_epoch and q.claims = r.claims) is true;
end
$$;

-- Gives leases back untried: on drain (no reason), or because something of ours must wait (a delay: told once a
-- mail, spends no attempt). Rows keep their due time, so heads are rewound. Answers the ids given back.
create or replace function pgmail.release_v1(
  p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_reason text default null
) returns setof uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; lanes bigint[]; dues timestamptz[]; messages uuid[];
begin
  with locked as materialized (
    select q.id from pgmail.queue q join unnest(p_ids, p_claims) r(id, claims) on r.id = q.id
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.leased_by = p_epoch and q.claims = r.claims
    order by q.id for update of q skip locked
  ), freed as (
    update pgmail.queue q set leased_by = null, leased_at = null
    where q.tenant_id = p_tenant and q.id = any (array(select locked.id from locked))
    returning q.id, q.message_id, q.lane, q.due_at
  )
  select array_agg(id), array_agg(message_id), array_agg(lane), array_agg(due_at) into done, messages, lanes, dues from freed;
  if done is null then return; end if;
  perform pgmail.touch_lanes(p_tenant, lanes, dues);
  if p_reason is not null then
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, worker, detail)
    select p_tenant, u.id, u.message_id, 'email.delayed', p_epoch, p_reason
    from unnest(done, messages) u(id, message_id)
    where not exists (select 1 from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id
                      and e.type = 'email.delayed' and e.detail = p_reason and e.at > pgmail.now() - interval '1 hour');
  end if;
  return query select unnest(done);
end
$$;

-- Gives leases back untried and lets them wait, an hour at most, each with the reason told once an hour: for what stands in the
-- way of the mail itself, as a key that this worker lacks or room for a heavy template. Released without a wait it would be
-- claimed and given back all the time. A delay, that spends no attempt. Answers the ids given back.
create or replace function pgmail.postpone_v1(
  p_tenant integer, p_epoch bigint, p_ids uuid[], p_claims integer[], p_seconds double precision, p_reason text
) returns setof uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; messages uuid[]; now_ timestamptz := pgmail.now();
begin
  with locked as materialized (
    select q.id from pgmail.queue q join unnest(p_ids, p_claims) r(id, claims) on r.id = q.id
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.leased_by = p_epoch and q.claims = r.claims
    order by q.id for update of q skip locked
  ), freed as (
    update pgmail.queue q set leased_by = null, leased_at = null, later = true, wait = 'delayed',
      due_at = now_ + least(greatest(p_seconds, 1), 3600) * interval '1 second'
    where q.tenant_id = p_tenant and q.id = any (array(select locked.id from locked))
    returning q.id, q.message_id
  )
  select array_agg(id), array_agg(message_id) into done, messages from freed;
  if done is null then return; end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, worker, detail)
  select p_tenant, u.id, u.message_id, 'email.delayed', p_epoch, p_reason
  from unnest(done, messages) u(id, message_id)
  where not exists (select 1 from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id
                    and e.type = 'email.delayed' and e.detail = p_reason and e.at > now_ - interval '1 hour');
  return query select unnest(done);
end
$$;

-- Why mail is held that a worker had in hand when a restore was noticed. decide_restore knows it by this.
create or replace function pgmail.lease_doubt() returns text
language sql immutable
as $$ select 'in doubt: a worker had it when a restore was noticed' $$;

-- Takes leases away from these workers (null: from all), which are dead or ended. What they may have sent is in doubt: on
-- streams that resend it goes again, on streams that hold it waits for a person. A vowed lease without an intent was surely
-- not sent; but not while a fence stands: then the intent may be what was lost, and the settle too, so that every lease is
-- held until the operator has decided. Rows that an application has locked are left. Answers how many it took.
create or replace function pgmail.rescue_leases(p_epochs bigint[]) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare freed jsonb; t record; fenced boolean := exists (select from pgmail.fence);
begin
  -- A sequential scan: rescues are rare, and an index on leased_by would cost every claim its HOT update.
  with mine as materialized (
    select q.tenant_id, q.id, q.leased_by, fenced or q.unsent_claims is distinct from q.claims as doubt,
      fenced or (q.unsent_claims is distinct from q.claims and s.on_doubt is not distinct from 'hold') as hold
    from pgmail.queue q
    left join lateral (   -- by id, one by one: a hash of all messages would be a bad plan for a few leases
      select x.on_doubt from pgmail.message m join pgmail.stream x on x.tenant_id = m.tenant_id and x.name = m.stream
      where m.tenant_id = q.tenant_id and m.id = q.message_id limit 1) s on true
    where q.leased_by is not null and (p_epochs is null or q.leased_by = any (p_epochs))
    order by q.tenant_id, q.id for update of q skip locked
  ), given_back as (
    update pgmail.queue q set leased_by = null, leased_at = null, rescues = q.rescues + case when fenced then 0 else 1 end,
      due_at = case when mine.hold then 'infinity' else q.due_at end,
      held_due_at = case when mine.hold then q.due_at end,
      hold_reason = case when mine.hold and fenced then pgmail.lease_doubt()
                         when mine.hold then 'in doubt: its worker died and may have sent it' end, in_doubt = mine.hold
    from mine where q.tenant_id = mine.tenant_id and q.id = mine.id
    returning q.tenant_id, q.id, q.message_id, q.lane, q.due_at, q.attempts, q.begun_relay, mine.leased_by, mine.doubt, mine.hold
  )
  select jsonb_agg(to_jsonb(g)) into freed from given_back g;
  if freed is null then return 0; end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, relay, worker, detail)
  select r.tenant_id, r.id, r.message_id, x.type, case when r.doubt then r.attempts + 1 end,
    case when r.doubt then r.begun_relay end, r.leased_by,
    'worker ' || r.leased_by || case when fenced then ' had this mail when a restore was noticed; it may have been sent'
      when r.doubt then ' died; this mail may have been sent' else ' died before it sent this mail' end
  from jsonb_to_recordset(freed) r(tenant_id integer, id uuid, message_id uuid, attempts smallint, begun_relay text,
      leased_by bigint, doubt boolean, hold boolean)
    cross join (values ('email.in_doubt'), ('email.held'), ('email.delayed')) x(type)
  where case x.type when 'email.in_doubt' then r.doubt when 'email.held' then r.hold else not r.doubt end;
  for t in select r.tenant_id, array_agg(r.lane) as lanes, array_agg(r.due_at) as dues
           from jsonb_to_recordset(freed) r(tenant_id integer, lane bigint, due_at timestamptz, hold boolean)
           where not r.hold group by r.tenant_id order by r.tenant_id loop
    perform pgmail.touch_lanes(t.tenant_id, t.lanes, t.dues);
  end loop;
  return jsonb_array_length(freed);
end
$$;

-- A worker is dead: its leases go back (rescue_leases). Deletes the worker's row, which fences out all that it still tries.
-- A row that an application has locked (a cancel in an open transaction) is left to the next look for orphans. A claim on
-- its way is waited for, but not for long: the leader has more to do than this.
create or replace function pgmail.rescue_v1(p_epoch bigint) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '1s'
as $$
begin
  delete from pgmail.worker w where w.epoch = p_epoch;
  delete from pgmail.permit p where p.epoch = p_epoch;
  return pgmail.rescue_leases(array[p_epoch]);
end
$$;

-- Workers that hold leases and have no row: rescued in part, or stopped while the database was away. A sequential scan.
create or replace function pgmail.orphans_v1() returns setof bigint
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select distinct q.leased_by from pgmail.queue q
  where q.leased_by is not null and not exists (select 1 from pgmail.worker w where w.epoch = q.leased_by)
$$;

-- Settling, the hot way: what became of claimed rows of one tenant, many at once. One statement deletes from queue and
-- writes event and outcome (or a dead letter, or the next due time). Fenced by (p_epoch, claims); rows that another
-- transaction holds are skipped and answered 'locked', to be tried again.
--
-- What results of a batch share comes once, in p_groups, a JSON array of objects; p_group[i] is an index in it from 1:
--   kind                       sent bounced deferred dead expired suppressed held
--   lane, stream, priority, site, relay   where it stood
--   delay, reason, error       deferred: seconds until the next attempt. held, dead, suppressed: why
--   began                      false: the remote side was never asked (no attempt spent)
--   doubt                      true: the remote side may have accepted; an email.in_doubt event is added
--   code, enhanced, phase, remote_host, tls
--   suppress                   bounced: the reply says that the address is gone for good; noted for suppress_bounced_v1
-- The rest are arrays, one element a recipient: reading one JSON object a recipient cost as much as all the writing.
-- p_attempts are those spent before this one; p_ms and p_replies may hold nulls.
-- Answers those that did not settle: locked, or fenced. A result that was fenced out is still recorded as an event; where
-- the row waits unleased, a 250 that came too late settles it and saves a copy. Settling again what was settled (its
-- answer was lost) answers fenced and records nothing twice.
create or replace function pgmail.settle_v2(
  p_tenant integer, p_epoch bigint, p_groups jsonb, p_ids uuid[], p_messages uuid[], p_claims integer[], p_group smallint[],
  p_attempts smallint[], p_ms integer[], p_replies text[]
) returns table (id uuid, result text)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare done uuid[]; late uuid[]; now_ timestamptz := pgmail.now();
begin
  -- Of several tenants in one transaction: a worker that freezes in between must not keep its rows locked (as in claim_v2).
  perform set_config('idle_in_transaction_session_timeout', '3s', true);
  if exists (select from jsonb_array_elements(p_groups) x
             where x->>'kind' is null or x->>'kind' <> all ('{sent,bounced,deferred,dead,expired,suppressed,held}')) then
    raise exception using errcode = 'invalid_parameter_value', message = 'a result of a kind that settles nothing';
  end if;

  with r as materialized (
    select u.id, u.message_id, u.claims, u.ms, left(u.reply, 1000) as reply, g.kind, g.lane, g.stream, g.priority, g.site,
      g.relay, g.delay, g.reason, g.error, g.doubt, g.code, g.enhanced, g.phase, g.remote_host, g.tls,
      (u.attempts + case when g.began is false then 0 else 1 end)::smallint as tried
    from unnest(p_ids, p_messages, p_claims, p_group, p_attempts, p_ms, p_replies)
           u(id, message_id, claims, n, attempts, ms, reply)
    join rows from (jsonb_to_recordset(p_groups) as (kind text, lane bigint, stream text, priority smallint, site text,
           relay text, delay real, reason text, error text, began boolean, doubt boolean, code smallint, enhanced text,
           phase text, remote_host text, tls text)) with ordinality
         g(kind, lane, stream, priority, site, relay, delay, reason, error, began, doubt, code, enhanced, phase,
           remote_host, tls, n) on g.n = u.n
  ), mine as materialized (
    -- Row by row: a join would be planned, while the table is not analyzed, as a walk along all of it.
    select r.*, q.expires_at
    from (select * from r order by r.id) r
    cross join lateral (
      select x.expires_at from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = r.id
        and ((x.leased_by = p_epoch and x.claims = r.claims) or (x.leased_by is null and r.kind = 'sent'))
      for update skip locked) q
  ), gone as (
    -- By id, not by ctid: a row that a rescue changed after this statement began is locked in its new version, which a scan
    -- for that very version does not see.
    delete from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (array(select mine.id from mine where kind not in ('deferred', 'held')))
  ), later as (
    update pgmail.queue q set leased_by = null, leased_at = null, attempts = mine.tried, later = true,
      tried_since = coalesce(q.tried_since, now_),
      due_at = case mine.kind when 'held' then 'infinity' else now_ + coalesce(mine.delay, 60) * interval '1 second' end,
      wait = case mine.kind when 'held' then q.wait else 'deferred' end,
      held_due_at = case mine.kind when 'held' then q.due_at end,
      hold_reason = case mine.kind when 'held' then mine.reason end,
      in_doubt = mine.kind = 'held' and mine.doubt is true
    from mine where q.tenant_id = p_tenant and q.id = mine.id and mine.kind in ('deferred', 'held')
      and q.id = any (array(select m.id from mine m where m.kind in ('deferred', 'held')))
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced,
      reply, reason, relay, remote_host)
    select p_tenant, id, message_id, kind, now_, stream, site, tried, code, enhanced, reply, reason, relay, remote_host
    from mine where kind in ('sent', 'bounced', 'expired', 'suppressed')
  ), dead as (
    insert into pgmail.dead_letter (tenant_id, recipient_id, message_id, lane, stream, priority, site, died_at, reason,
      error, attempts, claims, code, enhanced, reply, expires_at)
    select p_tenant, id, message_id, lane, stream, priority, site, now_, coalesce(reason, 'unknown'), left(error, 4000),
      tried, claims, code, enhanced, reply, expires_at
    from mine where kind = 'dead'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, code, enhanced, reply, phase, site,
      relay, remote_host, tls, ms, worker, detail)
    select p_tenant, id, message_id, now_, 'email.' || case kind when 'dead' then 'failed' else kind end, tried, code,
      enhanced, reply, phase, site, relay, remote_host, tls, ms, p_epoch, concat_ws(': ', reason, left(error, 1000))
    from mine
  ), doubts as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, phase, site, relay, remote_host, worker, detail)
    select p_tenant, id, message_id, now_, 'email.in_doubt', tried, phase, site, relay, remote_host, p_epoch, left(error, 1000)
    from mine where doubt
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, at)
    select p_tenant, stream, kind, count(*), now_ from mine where kind not in ('deferred', 'held') group by stream, kind
  )
  select array_agg(mine.id) into done from mine;
  if p_groups @? '$[*] ? (@.suppress == true)' then
    perform pgmail.suppress_bounced(p_tenant, done, p_groups, p_ids, p_group);
  end if;
  if cardinality(done) = cardinality(p_ids) then return; end if;

  -- The rest: held by another transaction, or no longer ours.
  select array_agg(u.id) into late from unnest(p_ids) u(id) where done is null or u.id <> all (done);
  return query
  with r as materialized (
    select u.id, u.message_id, u.claims, u.ms, left(u.reply, 1000) as reply, g.*,
      (u.attempts + case when g.began is false then 0 else 1 end)::smallint as tried
    from unnest(p_ids, p_messages, p_claims, p_group, p_attempts, p_ms, p_replies)
           u(id, message_id, claims, n, attempts, ms, reply)
    join rows from (jsonb_to_recordset(p_groups) as (kind text, site text, relay text, reason text, error text, began boolean,
           doubt boolean, code smallint, enhanced text, phase text, remote_host text, tls text)) with ordinality
         g(kind, site, relay, reason, error, began, doubt, code, enhanced, phase, remote_host, tls, group_no) on g.group_no = u.n
    where u.id = any (late)
  ), judged as materialized (
    select r.*, (select true from pgmail.queue q where q.tenant_id = p_tenant and q.id = r.id
                   and ((q.leased_by = p_epoch and q.claims = r.claims) or (q.leased_by is null and r.kind = 'sent'))) is true as locked
    from r
  ), told as materialized (
    -- What is new to the record: not what waits for a lock, nor a result settled before. A scalar subquery, since a plan
    -- for EXISTS may read all events of the tenant into a hash.
    select j.* from judged j
    where not j.locked and (
      select true from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = j.id and e.worker = p_epoch
        and e.attempt = j.tried and e.type = 'email.' || case j.kind when 'dead' then 'failed' else j.kind end limit 1) is null
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, code, enhanced, reply, phase, site,
      relay, remote_host, tls, ms, worker, detail)
    select p_tenant, t.id, t.message_id, now_, 'email.' || case t.kind when 'dead' then 'failed' else t.kind end, t.tried,
      t.code, t.enhanced, t.reply, t.phase, t.site, t.relay, t.remote_host, t.tls, t.ms, p_epoch,
      concat_ws(': ', 'fenced out, its lease was lost', t.reason, left(t.error, 1000))
    from told t
  ), doubts as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, at, type, attempt, phase, site, relay, remote_host, worker, detail)
    select p_tenant, t.id, t.message_id, now_, 'email.in_doubt', t.tried, t.phase, t.site, t.relay, t.remote_host, p_epoch, left(t.error, 1000)
    from told t where t.doubt
  )
  select j.id, case when j.locked then 'locked' else 'fenced' end from judged j;
end
$$;

-- The same as workers of 0.1 call it: one JSON object a recipient, with id, message_id, claims, attempts, ms and reply beside
-- what a group holds; every id is answered, those that settled as 'settled'.
create or replace function pgmail.settle_v1(p_tenant integer, p_epoch bigint, p_results jsonb)
returns table (id uuid, result text)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  with r as materialized (
    select x.id, x.message_id, x.claims, x.attempts, x.ms, x.reply, x.n
    from rows from (jsonb_to_recordset(p_results) as (id uuid, message_id uuid, claims integer, attempts smallint, ms integer,
           reply text)) with ordinality x(id, message_id, claims, attempts, ms, reply, n)
  ), a as materialized (
    select array_agg(r.id order by n) as ids, array_agg(message_id order by n) as messages, array_agg(claims order by n) as claims,
      array_agg(n::smallint order by n) as groups, array_agg(attempts order by n) as attempts, array_agg(ms order by n) as ms,
      array_agg(reply order by n) as replies
    from r
  ), late as materialized (
    select s.id, s.result from a cross join lateral pgmail.settle_v2(p_tenant, p_epoch, p_results, a.ids, a.messages, a.claims,
      a.groups, a.attempts, a.ms, a.replies) s where a.ids is not null
  )
  select r.id, coalesce((select late.result from late where late.id = r.id), 'settled') from r
$$;

-- What follows from refusals beside the mail's own fate: addresses that get no more mail, and sites that are left alone.

-- Notes the recipients of settled bounces whose group says `suppress` (a fact about the address: gone, closed, its domain
-- takes no mail), unless their stream has it switched off. Called by settle, for what it settled. It only appends: to insert
-- into the list itself would wait for any open transaction that has the same address in hand, and all settling with it.
create or replace function pgmail.suppress_bounced(
  p_tenant integer, p_done uuid[], p_groups jsonb, p_ids uuid[], p_group smallint[]
) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.bounced (tenant_id, recipient_id, source)
  select p_tenant, u.id, concat_ws(' ', g.x->>'code', g.x->>'enhanced', g.x->>'reason')
  from unnest(p_ids, p_group) u(id, n)
  join jsonb_array_elements(p_groups) with ordinality g(x, n) on g.n = u.n
  where u.id = any (p_done) and g.x->'suppress' = 'true' and g.x->>'kind' = 'bounced'
    and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = g.x->>'stream' and not s.suppress_bounced)
$$;

-- Puts noted addresses on the list, p_most a call: for ever, on all streams of the tenant; one that is suppressed already
-- stays as it is, and of a person erased meanwhile it is the token. An address that another transaction has in hand is
-- waited for during 100 ms, three of them at most, and left for a later call: less than deadlock_timeout, so that nobody
-- is the victim of a deadlock with us. Those tried before come last, so that they keep nobody else waiting.
-- Answers how many it looked at, and how many of these it had to leave.
create or replace function pgmail.suppress_bounced_v1(p_most integer default 50, out looked integer, out busy integer)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms' set jit = off
as $$
declare r record; waited integer := 0;
begin
  perform set_config('idle_in_transaction_session_timeout', '3s', true);   -- as in claim_v2
  looked := 0; busy := 0;
  for r in
    with mine as materialized (
      select b.tenant_id, b.id, b.recipient_id, b.source, b.tries from pgmail.bounced b
      order by b.tries, b.tenant_id, b.id limit p_most for update skip locked)
    select m.tenant_id, y.address, array_agg(m.id) as ids, min(m.source) as source
    from mine m left join lateral (
      select x.address from pgmail.recipient x where x.tenant_id = m.tenant_id and x.id = m.recipient_id limit 1) y on true
    group by m.tenant_id, y.address order by min(m.tries), m.tenant_id, y.address
  loop
    looked := looked + cardinality(r.ids);
    begin
      if waited >= 3 then raise lock_not_available; end if;
      if r.address is not null then   -- null: so old that retention took the recipient
        insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by)
        values (r.tenant_id, r.address, '', 'bounced', r.source, 'pgmail')
        on conflict (tenant_id, address, stream) do update
          set reason = excluded.reason, source = excluded.source, created_at = pgmail.now(), created_by = excluded.created_by, expires_at = null
          where suppression.expires_at <= pgmail.now();
      end if;
      delete from pgmail.bounced b where b.tenant_id = r.tenant_id and b.id = any (r.ids);
    exception when lock_not_available or deadlock_detected then
      busy := busy + cardinality(r.ids);
      if waited < 3 then
        update pgmail.bounced b set tries = b.tries + 1 where b.tenant_id = r.tenant_id and b.id = any (r.ids);
      end if;
      waited := waited + 1;
    end;
  end loop;
end
$$;

-- Pauses a site of one tenant for a while, because it said again and again that it wants no more now: a minute, and twice as
-- long each time that it begins again within two hours after the last end, up to an hour. Answers the end; null where it is
-- paused already, by anybody. The row is as an operator's: `pgmail why` shows it, `pgmail resume --site` ends it.
-- Nobody waits for an operator's open transaction here, least of all a worker with mail in hand.
create or replace function pgmail.slow_site_v1(p_tenant integer, p_site text, p_reason text) returns timestamptz
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms'
as $$
declare now_ timestamptz := pgmail.now(); s pgmail.slowed_site;
begin
  if exists (select from pgmail.pause p where (p.tenant_id = p_tenant or p.tenant_id is null) and p.scope = 'site'
             and p.name = p_site and (p.until is null or p.until > now_)) then return null; end if;
  insert into pgmail.slowed_site as x (tenant_id, site, times, until) values (p_tenant, p_site, 1, now_ + interval '1 minute')
  on conflict (tenant_id, site) do update set
    times = case when x.until > now_ - interval '2 hours' then least(x.times + 1, 7) else 1 end,
    until = now_ + least(interval '1 hour', interval '1 minute' *
      case when x.until > now_ - interval '2 hours' then 2 ^ least(x.times, 6) else 1 end)
    where x.until <= now_   -- several workers at once: the first one's
  returning * into s;
  if s.until is null then return null; end if;
  insert into pgmail.pause (tenant_id, scope, name, reason, until, paused_by)
  values (p_tenant, 'site', p_site, left(coalesce(nullif(btrim(p_reason), ''), 'it refused several times'), 1000), s.until, 'pgmail')
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, until = excluded.until, paused_at = now_,
    paused_by = excluded.paused_by;
  insert into pgmail.audit (tenant_id, actor, action, object, reason)
  values (p_tenant, 'pgmail', 'site.pause', p_site, format('until %s: %s', s.until, left(p_reason, 900)));
  return s.until;
end
$$;

-- Workers, their liveness, and who leads.

create or replace function pgmail.worker_start_v1(p_host text, p_pid integer, p_program text, p_concurrency integer) returns bigint
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.worker (host, pid, program, concurrency) values (p_host, p_pid, p_program, p_concurrency) returning epoch
$$;

-- staging: what its settings make of mail, in words (ops/docs/staging.md); null where they leave it alone.
create or replace function pgmail.worker_start_v2(p_host text, p_pid integer, p_program text, p_concurrency integer, p_staging text)
returns bigint
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.worker (host, pid, program, concurrency, staging)
  values (p_host, p_pid, p_program, p_concurrency, p_staging) returning epoch
$$;

-- One beat: liveness, and whether it wants to be woken. False: declared dead; it must start over as a new worker.
create or replace function pgmail.worker_beat_v1(p_epoch bigint, p_state text, p_asleep boolean) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.worker set beat = beat + 1, beat_at = pgmail.now(), state = p_state, asleep = p_asleep where epoch = p_epoch;
  return found;
end
$$;

-- A worker that drained says goodbye: nothing of it is left to rescue.
create or replace function pgmail.worker_stop_v1(p_epoch bigint) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if exists (select 1 from pgmail.queue q where q.leased_by = p_epoch) then
    perform pgmail.rescue_v1(p_epoch);   -- it could not give everything back (the database was away)
  else
    delete from pgmail.worker where epoch = p_epoch;
    delete from pgmail.permit where epoch = p_epoch;
  end if;
  update pgmail.leader set epoch = null, until = '-infinity' where epoch = p_epoch;
end
$$;

-- Take or keep the lead for p_seconds. A lease row, so a transaction-mode pooler may sit in between. One that ends later
-- than any lease may was written by another clock, which was set back: it binds nobody.
create or replace function pgmail.lead_v1(p_epoch bigint, p_seconds double precision) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.leader set epoch = p_epoch, until = clock_timestamp() + p_seconds * interval '1 second'
   where epoch = p_epoch or until < clock_timestamp() or until > clock_timestamp() + p_seconds * interval '10 seconds';
  return found;
end
$$;

-- The relay's health as workers found it. An operator's pause is not overwritten by a worker before its end. One that
-- comes back is ramped up to its limit from then on. It does not wait for an operator's open transaction.
create or replace function pgmail.relay_state_v1(p_name text, p_state text, p_reason text, p_seconds double precision default null) returns void
language sql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms'
as $$
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_at, changed_by)
  values (p_name, p_state, p_reason, pgmail.now() + p_seconds * interval '1 second', pgmail.now(), 'worker')
  on conflict (name) do update set state = excluded.state, reason = excluded.reason,
    blocked_until = excluded.blocked_until, changed_at = excluded.changed_at, changed_by = excluded.changed_by,
    up_since = case when excluded.state = 'up' and r.state <> 'up' and r.up_since is not null then pgmail.now() else r.up_since end
  where r.state <> 'paused' or r.changed_by = 'worker' or r.blocked_until <= pgmail.now()
$$;

-- An operator stops or starts a relay.
create or replace function pgmail.pause_relay(p_name text, p_reason text, p_until timestamptz default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  insert into pgmail.relay as r (name, state, reason, blocked_until, changed_by)
  values (p_name, 'paused', p_reason, p_until, pgmail.actor())
  on conflict (name) do update set state = 'paused', reason = excluded.reason, blocked_until = excluded.blocked_until,
    changed_at = pgmail.now(), changed_by = excluded.changed_by;
  perform pgmail.record_act(null, 'relay.pause', p_name, p_reason);
end
$$;

create or replace function pgmail.resume_relay(p_name text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.relay set state = 'up', reason = null, blocked_until = null, changed_at = pgmail.now(), changed_by = pgmail.actor(),
    up_since = case when state <> 'up' and up_since is not null then pgmail.now() else up_since end
   where name = p_name;
  if not found then perform pgmail.refuse('unknown_relay', '/relay', format('no relay is named %L', p_name), 404); end if;
  perform pgmail.record_act(null, 'relay.resume', p_name, p_reason);
end
$$;

-- What the leader does on a clock. Each is one short statement, safe to run twice and by two at once. Messages and
-- recipients are looked up one by one (lateral, limit 1): the planner, who cannot know how few are asked for, would
-- read all of them otherwise.

-- Lanes whose mail comes due by the clock: awake from a second before.
create or replace function pgmail.wake_due_v1(p_since timestamptz) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with due as materialized (
    select distinct q.tenant_id, q.lane from pgmail.queue q
    where q.later and q.due_at > p_since and q.due_at <= pgmail.now() + interval '1 second'
  ), asleep as materialized (
    select l.tenant_id, l.id from pgmail.lane l join due d on d.tenant_id = l.tenant_id and d.lane = l.id
    where not l.active order by l.tenant_id, l.id for update of l
  ), woken as (
    update pgmail.lane l set active = true, version = nextval('pgmail.lane_version'), changed_at = pgmail.now()
    from asleep a where l.tenant_id = a.tenant_id and l.id = a.id returning 1
  )
  select count(*) into n from woken;
  return n;
end
$$;

-- Lanes that hold due mail but are not active (a race, a lost touch): found by skipping from lane to lane along the
-- claim index, so the cost is the number of lanes, not of mails.
create or replace function pgmail.repair_lanes_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with recursive present as (
    (select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q
      where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  ), lost as materialized (
    select p.* from present p
    where p.due_at <= pgmail.now()
      and not exists (select 1 from pgmail.lane l where l.tenant_id = p.tenant_id and l.id = p.lane and l.active)
  ), repaired as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select x.tenant_id, x.lane, m.stream, m.priority, r.site, x.due_at
    from lost x
    cross join lateral (select y.stream, y.priority from pgmail.message y
                        where y.tenant_id = x.tenant_id and y.id = x.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = x.tenant_id and y.id = x.id limit 1) r
    order by x.tenant_id, x.lane
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(), rewind_to = excluded.rewind_to
    returning 1
  )
  select count(*) into n from repaired;
  return n;
end
$$;

-- Mail past its expiry that no worker holds ends as expired. What is held waits for a person: it may have been sent. So may
-- have been all of it in a restored database, until an operator has decided.
create or replace function pgmail.expire_v1(p_most integer default 1000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with late as materialized (
    select q.tenant_id, q.id, q.message_id, q.attempts from pgmail.queue q
    where q.expires_at <= pgmail.now() and q.leased_by is null and q.due_at <> 'infinity' and not exists (select from pgmail.fence)
    order by q.expires_at limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q using late where q.tenant_id = late.tenant_id and q.id = late.id
  ), facts as materialized (
    select late.*, m.stream, r.site from late
    cross join lateral (select y.stream from pgmail.message y
                        where y.tenant_id = late.tenant_id and y.id = late.message_id limit 1) m
    cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = late.tenant_id and y.id = late.id limit 1) r
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select tenant_id, id, message_id, 'expired', pgmail.now(), stream, site, attempts, 'expires_at passed before it was sent' from facts
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select tenant_id, id, message_id, 'email.expired', site, 'expires_at passed before it was sent' from facts
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select tenant_id, stream, 'expired', count(*) from facts group by 1, 2
  )
  select count(*) into n from facts;
  return n;
end
$$;

create or replace function pgmail.fold_tallies_v1(p_most integer default 20000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  with gone as (
    delete from pgmail.tally
    where ctid = any (array(select ctid from pgmail.tally limit p_most for update skip locked))
    returning tenant_id, stream, kind, tally.n, tally.bytes
  ), summed as (
    select tenant_id, stream, kind, sum(g.n) as n, coalesce(sum(g.bytes), 0) as bytes
    from gone g group by tenant_id, stream, kind order by tenant_id, stream, kind
  ), folded as (
    insert into pgmail.tally_total as t (tenant_id, stream, kind, n, bytes) select * from summed
    on conflict (tenant_id, stream, kind) do update set n = t.n + excluded.n, bytes = t.bytes + excluded.bytes returning 1
  )
  select count(*) into n from folded;
  return n;
end
$$;

create or replace function pgmail.purge_idempotency_v1(p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  delete from pgmail.idempotency d using (
    select tenant_id, key from pgmail.idempotency where expires_at <= pgmail.now()
    order by expires_at limit p_most for update skip locked) x
  where d.tenant_id = x.tenant_id and d.key = x.key;
  get diagnostics n = row_count;
  return n;
end
$$;

-- Doors: what the leader makes of quotas and of what came in, about once a second (ops/docs/quotas.md). A send reads doors
-- and nothing else; what it takes in it has always tallied. So no application waits for another one, and a producer that
-- runs away is stopped after about a second of its own speed.
-- Each rule is paced by virtual scheduling, as limits are: paid_until is the moment at which all that was taken in is
-- within the rate. Beyond the present by more than a second the door closes until then, and what comes meanwhile is
-- strewn over the time that as many as came lately need: so delayed mail comes due at the rate, and in no herd.

create or replace function pgmail.quota_words(p_scope text, p_name text) returns text
language sql immutable parallel safe
as $$ select case p_scope when 'stream' then 'stream ' || p_name when 'tenant' then 'the tenant' when 'key' then 'the key' else 'the fleet' end $$;

-- The oldest mail of each tenant that is due, free, and not behind a pause. Found by skipping from lane to lane, as repairs do.
create or replace function pgmail.oldest_due() returns table (tenant_id integer, due_at timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  with recursive present as (
    (select q.tenant_id, q.lane from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane from pgmail.queue q where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  )
  select p.tenant_id, min(x.due_at)
  from present p
  join pgmail.lane l on l.tenant_id = p.tenant_id and l.id = p.lane
  cross join lateral (
    select q.due_at from pgmail.queue q
    where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
    order by q.due_at, q.id limit 1) x
  where not exists (
    select from pgmail.pause s
    where (s.tenant_id is null or s.tenant_id = p.tenant_id) and (s.until is null or s.until > pgmail.now())
      -- A suspended tenant's is all of its mail: what an operator stopped is nobody else's reason to wait.
      and (s.scope = 'tenant'
           or s.name = case s.scope when 'site' then l.site when 'stream' then l.stream else pgmail.lane_name(l.stream, l.priority, l.site) end))
  group by p.tenant_id
$$;

-- Opens and closes doors; how many are closed now. Null: another leader is at it.
create or replace function pgmail.doors_v1() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare
  now_ timestamptz := pgmail.now(); today date := (now_ at time zone 'UTC')::date; last_ timestamptz; n integer; aged boolean;
  midnight timestamptz := today::timestamp at time zone 'UTC';
begin
  if not pg_try_advisory_xact_lock(hashtextextended('pgmail.doors', 0)) then return null; end if;
  select least(l.doors_at, now_) into last_ from pgmail.leader l;
  update pgmail.leader set doors_at = now_;

  insert into pgmail.quota_meter as m (tenant_id, scope, name, seen, seen_bytes, lately, paid_until, day, owed, mails, bytes)
  select s.tenant_id, s.scope, s.name, s.n, s.bytes, s.fresh,
    least(greatest(o.paid_until, coalesce(last_, now_)), now_ + interval '366 days')
      + least(s.fresh / coalesce(q.per_second, 1000000)::double precision, 31536000) * interval '1 second',
    today,
    -- What a day took beyond its allowance is of the days that follow. Without a rule a day is no more than a count.
    case when q.per_day is null then 0
         when o.day = today then o.owed + s.fresh
         else greatest(0, coalesce(o.owed, 0) - (today - o.day) * q.per_day) + s.fresh end,
    case when o.day = today then o.mails else 0 end + s.fresh,
    case when o.day = today then o.bytes else 0 end + s.fresh_bytes
  from (
    select t.tenant_id, t.scope, t.name, t.n, t.bytes, greatest(t.n - coalesce(x.seen, 0), 0) as fresh,
      greatest(t.bytes - coalesce(x.seen_bytes, 0), 0) as fresh_bytes
    from (
      select tenant_id, 'tenant' as scope, '' as name, sum(tally_total.n) as n, sum(tally_total.bytes) as bytes
      from pgmail.tally_total where kind = 'enqueued' group by tenant_id
      union all
      select q.tenant_id, 'stream', q.name, coalesce(t.n, 0), coalesce(t.bytes, 0) from pgmail.quota q
      left join pgmail.tally_total t on t.tenant_id = q.tenant_id and t.stream = q.name and t.kind = 'enqueued'
      where q.scope = 'stream') t
    left join pgmail.quota_meter x on x.tenant_id = t.tenant_id and x.scope = t.scope and x.name = t.name) s
  left join pgmail.quota_meter o on o.tenant_id = s.tenant_id and o.scope = s.scope and o.name = s.name
  left join pgmail.quota q on q.tenant_id = s.tenant_id and q.scope = s.scope and q.name = s.name
  where o.tenant_id is null or s.fresh > 0 or s.fresh_bytes > 0 or o.lately > 0 or o.day <> today
  order by s.tenant_id, s.scope, s.name
  on conflict (tenant_id, scope, name) do update set seen = excluded.seen, seen_bytes = excluded.seen_bytes, lately = excluded.lately,
    paid_until = excluded.paid_until, day = excluded.day, owed = excluded.owed, mails = excluded.mails, bytes = excluded.bytes;

  select coalesce(bool_or(q.pressure_seconds is not null), false) into aged from pgmail.quota q;
  with depths as materialized (
    select tenant_id, stream, sum(case kind when 'enqueued' then t.n else -t.n end) as depth from pgmail.tally_total t group by tenant_id, stream
  ), oldest as materialized (
    select o.tenant_id, o.due_at from pgmail.oldest_due() o where aged
  ), whole as materialized (   -- one row a tenant that has ever sent
    select m.tenant_id, coalesce(d.depth, 0) as depth, o.due_at, q.pressure_depth, q.pressure_seconds, q.max_queued,
      coalesce(q.bound_mails, f.bound_mails) as bound_mails, coalesce(q.bound_bytes, f.bound_bytes) as bound_bytes, m.mails, m.bytes,
      f.pressure_depth as fleet_depth, f.pressure_seconds as fleet_seconds,
      (select sum(x.depth) from depths x
       where not exists (select from pgmail.pause s where s.tenant_id = x.tenant_id and s.scope = 'tenant')) as all_depth, (select min(x.due_at) from oldest x) as all_due_at
    from pgmail.quota_meter m
    left join (select tenant_id, sum(x.depth) as depth from depths x group by tenant_id) d on d.tenant_id = m.tenant_id
    left join oldest o on o.tenant_id = m.tenant_id
    left join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = 'tenant'
    left join pgmail.quota f on f.scope = 'fleet'
    where m.scope = 'tenant'
  ), wanted as materialized (
    select m.tenant_id, m.name as stream, 'rate' as kind, 1 as priority, m.paid_until as until, m.lately / q.per_second::real as spread,
      format('%s takes in %s emails a second', pgmail.quota_words(m.scope, m.name), q.per_second) as reason
    from pgmail.quota_meter m join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.paid_until > now_ + interval '1 second' and q.per_second is not null
    union all
    select m.tenant_id, m.name, 'day', 1, midnight + least(m.owed / q.per_day::double precision, 366) * interval '24 hours',
      least(m.lately / q.per_day::real, 366) * 86400, format('%s takes in %s emails a day', pgmail.quota_words(m.scope, m.name), q.per_day)
    from pgmail.quota_meter m join pgmail.quota q on q.tenant_id = m.tenant_id and q.scope = m.scope and q.name = m.name
    where m.owed >= q.per_day
    union all
    select q.tenant_id, q.name, 'queued', 1, now_ + interval '1 minute', 60,
      format('%s holds as many queued emails as it may (%s)', pgmail.quota_words(q.scope, q.name), q.max_queued)
    from pgmail.quota q
    where q.scope in ('tenant', 'stream')
      and (select coalesce(sum(d.depth), 0) from depths d
           where d.tenant_id = q.tenant_id and (q.scope = 'tenant' or d.stream = q.name)) >= q.max_queued
    union all
    -- Who stops sending has to know that it was stopped for a while; who asks again in a minute finds things as they are.
    select w.tenant_id, '', 'pressure', 3, now_ + interval '1 minute', 60,
      case when w.depth > w.pressure_depth then format('backpressure: more than %s emails of the tenant wait', w.pressure_depth)
           when w.due_at < now_ - w.pressure_seconds * interval '1 second'
             then format('backpressure: mail of the tenant has been due for more than %s seconds', w.pressure_seconds)
           when w.all_depth > w.fleet_depth then format('backpressure: more than %s emails wait', w.fleet_depth)
           else format('backpressure: mail has been due for more than %s seconds', w.fleet_seconds) end
    from whole w
    where w.depth > w.pressure_depth or w.all_depth > w.fleet_depth or w.due_at < now_ - w.pressure_seconds * interval '1 second'
       or w.all_due_at < now_ - w.fleet_seconds * interval '1 second'
    union all
    select w.tenant_id, '', 'bound', 1, midnight + interval '24 hours', 0,
      case when w.mails >= w.bound_mails then format('the tenant has handed over %s emails today, which is its bound', w.bound_mails)
           else format('the tenant has handed over %s bytes today, which is its bound', w.bound_bytes) end
    from whole w where w.mails >= w.bound_mails or w.bytes >= w.bound_bytes
  ), opened as (
    delete from pgmail.door d where not exists (
      select from wanted w where w.tenant_id = d.tenant_id and w.stream = d.stream and w.kind = d.kind)
  ), closed as (
    insert into pgmail.door as d (tenant_id, stream, kind, priority, until, spread, reason)
    select w.tenant_id, w.stream, w.kind, w.priority, w.until, w.spread, w.reason from wanted w order by 1, 2, 3
    on conflict (tenant_id, stream, kind) do update set priority = excluded.priority, until = excluded.until, spread = excluded.spread,
      reason = excluded.reason
    where (d.priority, d.until, d.spread, d.reason) is distinct from (excluded.priority, excluded.until, excluded.spread, excluded.reason)
  )
  select count(*) into n from wanted;
  return n;
end
$$;

-- Quotas over HTTP, where they are exact: rates of keys, tenants and streams are counted in one row each, which all API
-- processes share, before the email's own transaction. Callers without a rule are never asked about.

-- Whether anything limits this key now: rules of its tenant, its streams and itself, doors that are closed, and the
-- streams whose mail is of low priority unless it says otherwise (asked for only while such mail waits).
create or replace function pgmail.quota_gate_v1(p_key uuid) returns jsonb
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare t integer := pgmail.need_tenant(); now_ timestamptz := pgmail.now(); rules jsonb; doors jsonb; low jsonb;
begin
  -- A rule of a key is of its whole line of rotations, under the id of the first.
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  select jsonb_agg(jsonb_build_array(q.scope, q.name) order by q.scope, q.name) into rules from pgmail.quota q
   where q.tenant_id = t and (q.scope <> 'key' or q.name = p_key::text) and coalesce(q.per_second, q.per_day, q.max_queued) is not null;
  select jsonb_agg(jsonb_build_object('stream', d.stream, 'kind', d.kind, 'priority', d.priority, 'reason', d.reason,
           'seconds', extract(epoch from d.until - now_)) order by d.stream, d.kind) into doors from pgmail.door d
   where d.tenant_id = t and d.until > now_;
  if doors @> '[{"kind": "pressure"}]' then
    select jsonb_agg(s.name order by s.name) into low from pgmail.stream s where s.tenant_id = t and s.priority = 3;
  end if;
  return jsonb_build_object('rules', coalesce(rules, '[]'), 'doors', coalesce(doors, '[]'), 'low', coalesce(low, '[]'));
end
$$;

-- Takes places for groups of emails, each group wholly or not at all, in their order: p_groups[i] is the group of
-- p_counts[i] recipients of stream p_streams[i]. Answers {"answers": [{"granted", "scope", "kind", "seconds", "most"}], "rules":
-- [{"scope", "stream", "per_second", "left", "per_day", "left_today", "midnight"}]}, groups in the order of their numbers. What was
-- refused: by which rule, and after how many seconds to ask again; null seconds: never, for `most` is the most at once.
-- In any second no more come in than the rule says, and bursts may use all of it: the last 52 slots of 20 ms are counted, two
-- more than a second has, for the way from here to the email's own transaction. So 96 % of a rate can be used.
create or replace function pgmail.take_quota_v1(p_key uuid, p_groups integer[], p_streams text[], p_counts integer[]) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare
  slots constant integer := 52; length constant double precision := 0.02;
  t integer := pgmail.need_tenant(); now_ timestamptz; today date; midnight double precision; slot_ bigint; g record; r record; d record;
  answers jsonb := '[]'; rules jsonb; i integer; k integer; n bigint; room bigint; away double precision; worst double precision;
  scopes text[]; names text[]; seconds integer[]; days bigint[]; used_ bigint[]; counts_ jsonb := '[]'; in_second bigint[]; mine integer[];
  no_scope text; no_kind text; no_seconds double precision; no_most bigint;
begin
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  insert into pgmail.quota_bucket (tenant_id, scope, name)
  select q.tenant_id, q.scope, q.name from pgmail.quota q
  where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
    and coalesce(q.per_second, q.per_day) is not null
    and not exists (select from pgmail.quota_bucket b where b.tenant_id = t and b.scope = q.scope and b.name = q.name)
  order by q.scope, q.name on conflict do nothing;
  perform from pgmail.quota_bucket b
  where b.tenant_id = t and (b.scope = 'tenant' or b.scope = 'key' and b.name = p_key::text or b.scope = 'stream' and b.name = any (p_streams))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: it is later now.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  today := (now_ at time zone 'UTC')::date;
  midnight := extract(epoch from (today + 1)::timestamp at time zone 'UTC' - now_);
  slot_ := floor(extract(epoch from now_) / length);

  for r in
    select q.scope, q.name, q.per_second, q.per_day, case when b.day = today then b.used else 0 end as used,
      -- Ten seconds ahead of now is another clock, one that was set back.
      array(select case when b.slot > slot_ + 500 or b.slot - ((b.slot - p) % slots + slots) % slots <= slot_ - slots then 0
                        else coalesce(b.counts[p + 1], 0) end from generate_series(0, slots - 1) p) as counts
    from pgmail.quota q join pgmail.quota_bucket b on b.tenant_id = t and b.scope = q.scope and b.name = q.name
    where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
      and coalesce(q.per_second, q.per_day) is not null
    order by q.scope, q.name
  loop
    scopes := scopes || r.scope; names := names || r.name; seconds := seconds || r.per_second; days := days || r.per_day; used_ := used_ || r.used;
    counts_ := counts_ || jsonb_build_array(to_jsonb(r.counts));
    in_second := in_second || (select sum(x) from unnest(r.counts) x);
  end loop;

  for g in
    select u.number, sum(u.n)::bigint as n from unnest(p_groups, p_counts) u(number, n) group by u.number order by u.number
  loop
    no_scope := null; no_seconds := -1; no_most := null;
    -- Closed by what came in otherwise, or holding as much as it may.
    select x.kind, x.stream, extract(epoch from x.until - now_) as seconds into d from pgmail.door x
     where x.tenant_id = t and x.until > now_ and x.kind <> 'pressure'
       and x.stream in (select '' union all select u.stream from unnest(p_groups, p_streams) u(number, stream) where u.number = g.number)
     order by x.until desc limit 1;
    if found then
      no_scope := case d.stream when '' then 'tenant' else 'stream' end; no_kind := d.kind; no_seconds := d.seconds;
    end if;
    mine := '{}';
    for i in 1 .. coalesce(cardinality(scopes), 0) loop
      n := case when scopes[i] = 'stream' then (select sum(u.n) from unnest(p_groups, p_streams, p_counts) u(number, stream, n)
                                               where u.number = g.number and u.stream = names[i]) else g.n end;
      mine := mine || coalesce(n, 0)::integer;
      continue when coalesce(n, 0) = 0;
      if n > least(seconds[i], days[i]) then   -- too many at once, whenever that is
        no_scope := scopes[i]; no_kind := case when n > seconds[i] then 'rate' else 'day' end; no_seconds := null;
        no_most := least(seconds[i], days[i]); exit;
      end if;
      if in_second[i] + n > seconds[i] then
        -- until so many of the oldest have left the window
        room := in_second[i] + n - seconds[i]; away := 0;
        for k in 1 .. slots loop
          room := room - (counts_ #>> array[(i - 1)::text, ((slot_ + k) % slots)::text])::bigint;
          away := k * length;
          exit when room <= 0;
        end loop;
        if away > no_seconds then no_scope := scopes[i]; no_kind := 'rate'; no_seconds := away; end if;
      end if;
      if used_[i] + n > days[i] and midnight > no_seconds then no_scope := scopes[i]; no_kind := 'day'; no_seconds := midnight; end if;
    end loop;
    if no_scope is null then
      for i in 1 .. coalesce(cardinality(scopes), 0) loop
        in_second[i] := in_second[i] + mine[i]; used_[i] := used_[i] + mine[i];
        k := slot_ % slots;
        counts_ := jsonb_set(counts_, array[(i - 1)::text, k::text],
          to_jsonb((counts_ #>> array[(i - 1)::text, k::text])::bigint + mine[i]));
      end loop;
      answers := answers || jsonb_build_array('{"granted": true}'::jsonb);
    else
      answers := answers || jsonb_build_array(jsonb_build_object('granted', false, 'scope', no_scope, 'kind', no_kind, 'seconds', no_seconds, 'most', no_most));
    end if;
  end loop;

  if scopes is not null then
    update pgmail.quota_bucket b set slot = slot_, day = today, used = used_[x.i],
      counts = array(select v::integer from jsonb_array_elements_text(counts_->(x.i::integer - 1)) with ordinality w(v, o) order by o)
    from unnest(scopes, names) with ordinality x(scope, name, i)
    where b.tenant_id = t and b.scope = x.scope and b.name = x.name;
    select jsonb_agg(jsonb_build_object('scope', x.scope, 'stream', case x.scope when 'stream' then x.name end,
             'per_second', x.per_second, 'left', greatest(x.per_second - x.busy, 0), 'per_day', x.per_day, 'left_today', greatest(x.per_day - x.used, 0),
             'midnight', midnight) order by x.i)
      into rules from unnest(scopes, names, seconds, days, in_second, used_) with ordinality x(scope, name, per_second, per_day, busy, used, i);
  end if;
  return jsonb_build_object('answers', answers, 'rules', coalesce(rules, '[]'));
end
$$;

-- What replies of other mail servers mean: the rules of sql/rules/replies.toml, as pgmail/domain/replies.py evaluates
-- them too. A test runs both over one corpus. They are loaded anew by every `pgmail db upgrade`, so that what was
-- recorded can be looked at with the rules of today (pgmail.refusal).

-- A reply's text as patterns see it: small letters without accents, one space, addresses as @, and without the codes
-- that lead each line. The letters of the first string become those of the second.
create or replace function pgmail.fold_reply(p_text text) returns text
language sql immutable parallel safe set search_path = pgmail, pg_temp
as $$
  select btrim(regexp_replace(regexp_replace(regexp_replace(regexp_replace(
    translate(left(p_text, 2000),
      E'ABCDEFGHIJKLMNOPQRSTUVWXYZАБВГДЕЖЗИЙКЛМНОПРСТУФХЦЧШЩЪЫЬЭЮЯЁё'
        || E'áàâäãåāăąçćčďđéèêëēėęěíìîïīğñńňóòôöõøōőŕřśšşșťţțúùûüūůűýÿžźżłœæ'
        || E'ßÁÀÂÄÃÅĂĄÇĆČĎĐÉÈÊËĖĘĚÍÌÎÏİĞÑŃŇÓÒÔÖÕØŐŔŘŚŠŞȘŤŢȚÚÙÛÜŮŰÝŽŹŻŁŒÆı'
        || E'’‘`´“”„«»"‐‑–—\t\r\n\f\u000b\u00a0',
      E'abcdefghijklmnopqrstuvwxyzабвгдежзийклмнопрстуфхцчшщъыьэюяее'
        || E'aaaaaaaaacccddeeeeeeeeiiiiignnnoooooooorrsssstttuuuuuuuyyzzzloa'
        || E'saaaaaaaacccddeeeeeeeiiiiignnnooooooorrsssstttuuuuuuyzzzloai'
        || E'''''''''''''''''''''----      '),
    ' {2,}', ' ', 'g'),
    '[a-z0-9._%+=&*$!#/?{}|~^''-]+@[a-z0-9._-]+', '@', 'g'),
    '(^| )[245][0-9][0-9][ -]#?[245]\.[0-9]{1,3}\.[0-9]{1,3}( |$)|(^| )[45][0-9][0-9]-', ' ', 'g'),
    ' {2,}', ' ', 'g'), ' ')
$$;

-- The rules anew, from the table of this program's rules: {reasons: [...], rules: [...], patterns: [...]}. The owner's.
create or replace function pgmail.load_reply_rules(p_table jsonb) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  delete from pgmail.reply_pattern;
  delete from pgmail.reply_rule;
  delete from pgmail.reply_reason;
  insert into pgmail.reply_reason (name, class, blame, follows, suppress, slow, alert, means)
  select x.name, x.class, x.blame, x.follows, x.suppress, x.slow, x.alert, x.means
  from jsonb_to_recordset(p_table->'reasons') as x(name text, class text, blame text, follows text, suppress boolean,
    slow boolean, alert boolean, means text);
  insert into pgmail.reply_rule (position, name, reason, final, code, enhanced, phase, asks_text)
  select x.position, x.name, x.reason, x.final, x.code, x.enhanced, x.phase, x.asks_text
  from jsonb_to_recordset(p_table->'rules') as x(position integer, name text, reason text, final boolean, code text,
    enhanced text, phase text[], asks_text boolean);
  get diagnostics n = row_count;
  insert into pgmail.reply_pattern (rule, unless, pattern, needles)
  select x.rule, x.unless, x.pattern, x.needles
  from jsonb_to_recordset(p_table->'patterns') as x(rule integer, unless boolean, pattern text, needles text[]);
  return n;
end
$$;

-- What a reply means. All but the text may be null: code and enhanced code are then read from the text, p_phase is a word
-- of pgmail's phases (connect greeting ehlo starttls auth mail rcpt data body dot). One row, always. follows: code (4xx
-- waits, 5xx bounces), retry (waits even after a 5xx) or bounce.
create or replace function pgmail.classify(p_code integer, p_enhanced text, p_phase text, p_text text)
returns table (reason text, class text, blame text, suppress boolean, follows text, slow boolean, alert boolean, rule text)
language sql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
  with given as materialized (
    select coalesce(p_code::text, (regexp_match(p_text, '(^|[^0-9.])([245][0-9][0-9])([ -]|$)'))[2], '') as code,
      coalesce(nullif(btrim(p_enhanced, ' #'), ''),
        (regexp_match(p_text, '(^|[^0-9.])([245]\.[0-9]{1,3}\.[0-9]{1,3})($|[^0-9.]|\.$|\.[^0-9])'))[2], '') as wide,
      coalesce(pgmail.fold_reply(p_text), '') as folded
  ), g as materialized (
    select folded, wide, code, code like '5%' and wide not like '4%' as final
    from (select folded, wide, case when code = '' and wide <> '' then left(wide, 1) || '00' else code end as code from given) x
  ), hit as materialized (
    -- A word that must be there is looked for first: running each pattern at each place takes many times as long.
    select p.rule, p.unless from pgmail.reply_pattern p cross join g
    where case when exists (select from unnest(p.needles) n where strpos(g.folded, n) > 0) then g.folded ~ p.pattern else false end
  )
  select y.name, y.class, y.blame, y.suppress, y.follows, y.slow, y.alert, r.name
  from g cross join pgmail.reply_rule r join pgmail.reply_reason y on y.name = r.reason
  where (r.final is null or r.final = g.final)
    and (r.code is null or g.code ~ ('^(' || r.code || ')$'))
    and (r.enhanced is null or g.wide ~ ('^(' || r.enhanced || ')$'))
    and (r.phase is null or p_phase = any (r.phase))
    and (not r.asks_text or exists (select from hit h where h.rule = r.position and not h.unless))
    and not exists (select from hit h where h.rule = r.position and h.unless)
  order by r.position limit 1
$$;

-- Refusals as they were recorded, with what they mean by the rules of today; `detail` begins with what was thought then.
create or replace view pgmail.refusal with (security_invoker = true) as
select e.tenant_id, e.recipient_id, e.message_id, e.at, e.type, e.attempt, e.site, e.relay, e.remote_host, e.code, e.enhanced,
  e.phase, e.reply, e.detail, c.reason, c.class, c.blame, c.suppress, c.rule
from pgmail.event e
cross join lateral pgmail.classify(e.code, e.enhanced, e.phase, e.reply) c
where e.code >= 400;

-- A restored database must not mail everyone again. Every process counts its marks, small commits of its own, here and in
-- a file outside the database; a copy that lacks marks which were acknowledged has lost whatever was committed after
-- them. Then a fence is recorded, which stops all claims until an operator has decided. ops/docs/restore.md tells why
-- counting and not positions in the log: it works for dumps too, and a failover that lost nothing looks like nothing.

-- Where in its log this server writes. For people: it says which server and timeline each side saw.
create or replace function pgmail.place_v1() returns jsonb
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
begin
  return jsonb_build_object(
    'system', (select s.system_identifier::text from pg_control_system() s),
    'timeline', ('x' || left(pg_walfile_name(pg_current_wal_insert_lsn()), 8))::bit(32)::integer,
    'lsn', pg_current_wal_insert_lsn());
exception when insufficient_privilege then
  return '{}';   -- a hosted server may keep it to itself
end
$$;

-- With a fence every worker ends. One that lives through a failover knows leases, vows and results of a history that is
-- lost here, and may hold by its epoch what this copy believes to be leased: it hears with its next beat, claim or intent
-- that it is fenced out, and starts anew under another epoch. What any of them had in hand is held in doubt, for the
-- operator's decision. So from here on nothing is leased, and nothing is claimed while the fence stands (claim_v2): no
-- decision can pass a lease by. The lock waits for claims on their way, which did not see the fence, and keeps claims and
-- new workers waiting until they do. Processes of maintain hold nothing, and go on.
create or replace function pgmail.end_workers() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  lock table pgmail.worker in exclusive mode;
  delete from pgmail.worker where program <> 'maintain';
  delete from pgmail.permit p where not exists (select from pgmail.worker w where w.epoch = p.epoch);
  -- A worker of the lost history may live on with an epoch that is given out here once more.
  perform setval('pgmail.worker_epoch', (select s.last_value + 1000 from pgmail.worker_epoch s));
  return pgmail.rescue_leases(null);
end
$$;

-- One at a time records a fence or takes it away, until its transaction ends.
create or replace function pgmail.lock_history() returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pg_advisory_xact_lock(hashtextextended('pgmail.history', 0)) $$;

-- Compares what a process remembers (history and generation, how many marks of a witness it saw committed, and when the
-- last one was) with what is here, and records a fence where marks are missing. Null: the memory is of another database;
-- true: nothing of it is missing, or an operator decided since; false: fenced.
create or replace function pgmail.recall_v1(
  p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamptz, p_by text, p_seen jsonb
) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare h pgmail.history; w pgmail.witness; here jsonb; why text; known boolean;
begin
  -- Found missing, it is looked at once more under the lock: an operator's decision may have been on its way, which would
  -- be followed by a fence for what it was about.
  for look in 1..2 loop
    if look = 2 then perform pgmail.lock_history(); end if;
    select x.* into h from pgmail.history x order by x.generation desc limit 1;
    if h.root <> p_root then return null; end if;
    if p_generation < h.generation then return true; end if;
    select x.* into w from pgmail.witness x where x.id = p_witness;
    if p_generation > h.generation or h.id <> p_history then
      why := format('a restore was accepted before %s, and this database knows nothing of it', p_seen_at);
    elsif p_marks > coalesce(w.marks, 0) and (w.id is not null or p_seen_at > clock_timestamp() - interval '90 days') then
      why := format('mark %s was committed at %s, and this database has %s', p_marks, p_seen_at,
        case when w.id is null then 'none of them' else format('mark %s of %s', w.marks, w.at) end);
    else
      return true;
    end if;
  end loop;
  here := pgmail.place_v1();
  known := exists (select from pgmail.fence);
  insert into pgmail.fence as f (noticed_by, reason, generation, lost_from, lost_until, seen, found)
  values (p_by, p_by || ' saw more than is here: ' || why, p_generation, w.at, p_seen_at, p_seen, here)
  on conflict (singleton) do update set generation = greatest(f.generation, excluded.generation),
    lost_from = least(f.lost_from, excluded.lost_from), lost_until = least(f.lost_until, excluded.lost_until)
  where f.generation < excluded.generation or f.lost_from > excluded.lost_from or f.lost_until > excluded.lost_until;
  if not known then perform pgmail.end_workers(); end if;
  return false;
end
$$;

-- One mark more of a process, after a look at what it remembers. Answers what to remember once this is committed, and why
-- nothing may be sent (null: it may). A null history is a process without a memory, which trusts the database; with
-- another root nothing is marked, and the answer says which database this is.
create or replace function pgmail.mark_v1(
  p_root uuid, p_history uuid, p_generation integer, p_witness uuid, p_marks bigint, p_seen_at timestamptz,
  p_host text, p_pid integer, p_program text, p_seen jsonb,
  out root uuid, out history uuid, out generation integer, out marks bigint, out at timestamptz, out place jsonb, out fenced text
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
begin
  if p_history is not null then
    perform pgmail.recall_v1(p_root, p_history, p_generation, p_witness, p_marks, p_seen_at,
      format('%s %s on %s', p_program, p_pid, p_host), p_seen);
  end if;
  select x.root, x.id, x.generation into root, history, generation from pgmail.history x order by x.generation desc limit 1;
  if root is not distinct from p_root then
    insert into pgmail.witness as w (id, marks, host, pid, program) values (p_witness, p_marks + 1, p_host, p_pid, p_program)
    on conflict (id) do update set marks = greatest(w.marks, p_marks) + 1, at = clock_timestamp(),
      host = excluded.host, pid = excluded.pid, program = excluded.program
    returning w.marks, w.at into marks, at;
    place := pgmail.place_v1();
  end if;
  select f.reason into fenced from pgmail.fence f;
end
$$;

-- An operator knows of a restore before any process does (their memories were lost too): nothing is sent from now on.
create or replace function pgmail.stop_for_restore(p_reason text) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  perform pgmail.lock_history();
  insert into pgmail.fence (noticed_by, reason, lost_until, found) values (pgmail.actor(), left(p_reason, 1000), clock_timestamp(), pgmail.place_v1())
  on conflict (singleton) do nothing;
  if found then perform pgmail.end_workers(); end if;
  perform pgmail.record_act(null, 'restore.stop', null, p_reason);
end
$$;

-- Mail that a restored copy knows has an id below this: it was enqueued before the last moment that is missing. What was
-- enqueued into the copy since is new, for the copy began later. Two seconds for clocks that differ.
create or replace function pgmail.restore_bound(p_since timestamptz) returns uuid
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select pgmail.uuid_floor(coalesce(p_since, (select coalesce(f.lost_until, f.noticed_at) + interval '2 seconds' from pgmail.fence f)))
$$;

-- How much is in doubt, by tenant: mail enqueued before the restore point that was due before the loss was noticed, so that
-- it may have gone out in between, and whatever workers had in hand then. leased counts leases that could not be taken away
-- yet, since another transaction has their rows locked.
create or replace function pgmail.restore_doubts(p_since timestamptz default null)
returns table (tenant_id integer, tenant text, recipients bigint, leased bigint, oldest timestamptz, newest timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select q.tenant_id, t.name, count(*) filter (where q.leased_by is null), count(*) filter (where q.leased_by is not null),
    pgmail.uuid_time(min(q.id::text)::uuid), pgmail.uuid_time(max(q.id::text)::uuid)
  from pgmail.queue q join pgmail.tenant t on t.id = q.tenant_id cross join pgmail.fence f
  where (q.id < pgmail.restore_bound(p_since) and q.due_at <= f.noticed_at)
    or q.leased_by is not null or (q.in_doubt and q.hold_reason = pgmail.lease_doubt())
  group by q.tenant_id, t.name order by t.name
$$;

-- Decides on the next p_most recipients in doubt of one tenant, after the id p_after. hold: a person looks at each.
-- resend: they go again, each with an email.in_doubt event. assume_sent: they end as sent. Answers how many were in doubt
-- and the last id; n 0 is the end. Safe to run again: what is decided is not in doubt any more, but for what is resent,
-- and that is told once. Ids in arrays and a generic plan: joined with what was just read, each of thousands of rows was
-- looked for among all the others.
create or replace function pgmail.decide_restore(
  p_tenant integer, p_decision text, p_since timestamptz, p_after uuid, p_most integer default 5000, out n integer, out last uuid
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off set plan_cache_mode = force_generic_plan
as $$
declare
  f pgmail.fence; words text; below uuid := pgmail.restore_bound(p_since); next_ uuid[];
  ids uuid[]; messages uuid[]; dues timestamptz[]; tries smallint[];
begin
  select x.* into f from pgmail.fence x;
  if not found then perform pgmail.refuse('not_fenced', '/after_restore', 'no restore was noticed', 404); end if;
  if p_decision is null or p_decision <> all ('{hold,resend,assume_sent}') then
    perform pgmail.refuse('invalid_decision', '/decision', 'must be hold, resend or assume_sent');
  end if;
  words := format('in doubt: the database was restored; it may have been sent between %s and %s',
    coalesce(p_since, f.lost_from)::text, f.noticed_at);
  words := replace(words, 'between  and', 'before');
  if p_after is null and exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.leased_by is not null) then
    perform pgmail.rescue_leases(null);   -- those whose rows were locked when the fence was made
  end if;

  last := coalesce(p_after, '00000000-0000-0000-0000-000000000000');
  loop
    select array_agg(x.id order by x.id) into next_ from (
      (select q.id from pgmail.queue q
       where q.tenant_id = p_tenant and q.id > last and q.id < below and q.due_at <= f.noticed_at and q.leased_by is null
       order by q.id limit p_most)
      union
      (select q.id from pgmail.queue q
       where q.tenant_id = p_tenant and q.id > last and q.in_doubt and q.hold_reason = pgmail.lease_doubt()
       order by q.id limit p_most)
      order by 1 limit p_most) x;
    select array_agg(q.id), array_agg(q.message_id), array_agg(q.due_at), array_agg(q.attempts) into ids, messages, dues, tries
    from unnest(next_) u(id) cross join lateral (
      select x.id, x.message_id, coalesce(x.held_due_at, x.due_at) as due_at, x.attempts from pgmail.queue x
      where x.tenant_id = p_tenant and x.id = u.id and x.leased_by is null
        and (x.due_at <= f.noticed_at or (x.in_doubt and x.hold_reason = pgmail.lease_doubt()))
      for update) q;
    n := coalesce(cardinality(ids), 0); last := next_[cardinality(next_)];
    exit when n > 0 or last is null;   -- none, though some were found: each was cancelled or resolved meanwhile
  end loop;
  if n = 0 then return; end if;

  if p_decision = 'hold' then
    update pgmail.queue q set due_at = 'infinity', held_due_at = u.due_at, hold_reason = words, later = false, in_doubt = true
    from unnest(ids, dues) u(id, due_at) where q.tenant_id = p_tenant and q.id = u.id;
  elsif p_decision = 'resend' then
    -- Those that workers had in hand; the others wait where they are. accept_restore rewinds their lanes.
    update pgmail.queue q set due_at = q.held_due_at, held_due_at = null, hold_reason = null, in_doubt = false
    from unnest(ids) u(id) where q.tenant_id = p_tenant and q.id = u.id and q.in_doubt;
  else
    delete from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids);
    with facts as materialized (
      select u.*, m.stream, r.site from unnest(ids, messages, tries) u(id, message_id, attempts)
      cross join lateral (select y.stream from pgmail.message y where y.tenant_id = p_tenant and y.id = u.message_id limit 1) m
      cross join lateral (select y.site from pgmail.recipient y where y.tenant_id = p_tenant and y.id = u.id limit 1) r
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
      select p_tenant, id, message_id, 'sent', pgmail.now(), stream, site, attempts, 'assumed sent: the database was restored' from facts
    )
    insert into pgmail.tally (tenant_id, stream, kind, n) select p_tenant, stream, 'sent', count(*) from facts group by stream;
  end if;
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, detail)
  select p_tenant, u.id, u.message_id, x.type, u.attempts + 1,
    concat_ws(': ', case x.type when 'email.sent' then 'assumed by ' || pgmail.actor() end, words)
  from unnest(ids, messages, tries) u(id, message_id, attempts),
    (values ('email.in_doubt', null), ('email.held', 'hold'), ('email.sent', 'assume_sent')) x(type, decision)
  where (x.decision is null or x.decision = p_decision)
    and (p_decision <> 'resend' or (
      select true from pgmail.event e where e.tenant_id = p_tenant and e.recipient_id = u.id and e.type = 'email.in_doubt'
        and e.detail = words limit 1) is null);
  perform pgmail.record_act(p_tenant, 'email.resolve', format('%s in doubt after a restore', n), p_decision);
end
$$;

-- The operator has decided, and decide_restore went through all tenants: a new generation begins, and mail flows. Refused
-- while anything is leased: no lease from before the decision may outlive it.
create or replace function pgmail.accept_restore(p_decision text, p_reason text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare f pgmail.fence; next_ integer;
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  perform pgmail.lock_history();
  delete from pgmail.fence returning * into f;
  if not found then perform pgmail.refuse('not_fenced', '/after_restore', 'no restore was noticed', 404); end if;
  if exists (select from pgmail.queue q where q.leased_by is not null) then
    perform pgmail.refuse('still_leased', '/after_restore',
      'another transaction keeps mail locked that a worker had in hand; run it again once that has ended', 409);
  end if;
  insert into pgmail.history (generation, root, accepted_by, decision, reason)
  select greatest(max(h.generation), f.generation) + 1, min(h.root::text)::uuid, pgmail.actor(), p_decision, left(p_reason, 1000)
  from pgmail.history h returning generation into next_;
  -- Workers that live through a failover have heads beyond mail that came back.
  update pgmail.lane set active = true, version = nextval('pgmail.lane_version'), changed_at = pgmail.now(), rewind_to = '2000-01-01'
   where (tenant_id, id) in (select l.tenant_id, l.id from pgmail.lane l order by 1, 2 for update);
  delete from pgmail.witness w where w.at < clock_timestamp() - interval '180 days';
  perform pgmail.record_act(null, 'restore.' || p_decision, null, concat_ws(E'\n', p_reason, f.reason));
  return next_;
end
$$;

-- The state of a recipient: one function, from queue, outcome and dead_letter. ops/docs/lifecycle.md draws it.
create or replace function pgmail.state_of(
  p_outcome text, p_dead boolean, p_queued boolean, p_leased boolean, p_due_at timestamptz, p_wait text, p_now timestamptz
) returns text
language sql immutable parallel safe
as $$
  select case
    when p_outcome is not null then p_outcome
    when p_dead then 'dead'
    when not p_queued then 'unknown'
    when p_leased then 'sending'
    when p_due_at = 'infinity' then 'held'
    when p_due_at > p_now and p_wait in ('scheduled', 'deferred') then p_wait
    else 'queued' end
$$;

create or replace function pgmail.phase_of(p_state text) returns text
language sql immutable parallel safe
as $$
  select case when p_state in ('scheduled', 'queued', 'deferred', 'held') then 'queued'
              when p_state = 'sending' then 'processing'
              when p_state = 'sent' then 'sent'
              when p_state in ('bounced', 'suppressed', 'expired', 'cancelled', 'dead') then 'failed'
              else 'unknown' end
$$;

-- The message of an id that may be a message's or a recipient's, and its recipients. Ids carry time: recipients of a
-- message were made within its hour, so one or two partitions are touched. A message goes before its recipients where
-- content is kept for less time than the record.
create or replace function pgmail.find_recipients(p_tenant integer, p_id uuid, out message_id uuid, out recipients uuid[])
language plpgsql stable
as $$
declare t timestamptz := pgmail.uuid_time(p_id);
begin
  select m.id into message_id from pgmail.message m where m.tenant_id = p_tenant and m.id = p_id;
  if found then
    select array_agg(r.id order by r.position) into recipients from pgmail.recipient r
     where r.tenant_id = p_tenant and r.message_id = p_id
       and r.id >= pgmail.uuid_floor(t - interval '1 hour') and r.id < pgmail.uuid_floor(t + interval '1 hour');
  else
    select r.message_id, array[r.id] into message_id, recipients from pgmail.recipient r where r.tenant_id = p_tenant and r.id = p_id;
    if not found then
      select min(r.message_id::text)::uuid, array_agg(r.id order by r.position) into message_id, recipients from pgmail.recipient r
       where r.tenant_id = p_tenant and r.message_id = p_id
         and r.id >= pgmail.uuid_floor(t - interval '1 hour') and r.id < pgmail.uuid_floor(t + interval '1 hour');
    end if;
  end if;
end
$$;

create or replace function pgmail.need_recipients(p_tenant integer, p_id uuid, out message_id uuid, out recipients uuid[])
language plpgsql stable
as $$
declare days integer;
begin
  select f.message_id, f.recipients into message_id, recipients from pgmail.find_recipients(p_tenant, p_id) f;
  if message_id is null then
    days := pgmail.kept_days('recipient');
    perform pgmail.refuse('not_found', '/id', format('no email or recipient has the id %s', p_id)
      || case when pgmail.uuid_time(p_id) < pgmail.now() - days * interval '24 hours'
         then format(', or it is past its retention of %s days', days) else '' end, 404);
  end if;
end
$$;

-- status(id): where each recipient of an email stands (or the one recipient).
create or replace function pgmail.status(id uuid)
returns table (recipient_id uuid, message_id uuid, address text, role text, phase text, state text, attempts smallint,
               due_at timestamptz, changed_at timestamptz, code smallint, enhanced text, reply text, reason text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); m uuid; ids uuid[];
  -- an email and its recipients are of one moment: bounds keep partitions of other weeks closed
  low uuid := pgmail.uuid_floor(pgmail.uuid_time(status.id) - interval '1 hour');
  high uuid := pgmail.uuid_floor(pgmail.uuid_time(status.id) + interval '1 hour');
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, status.id) f;
  return query
  select x.id, m, x.address, x.role, pgmail.phase_of(x.s), x.s, coalesce(x.o_attempts, x.d_attempts, x.q_attempts),
    nullif(x.q_due, 'infinity'), coalesce(x.o_at, x.d_at, x.leased_at, x.last_at, pgmail.uuid_time(x.id)),
    coalesce(x.o_code, x.d_code, x.last_code), coalesce(x.o_enhanced, x.d_enhanced, x.last_enhanced),
    coalesce(x.o_reply, x.d_reply, x.last_reply), coalesce(x.o_reason, x.d_reason, x.hold_reason,
      case when (select g.test from pgmail.message g where g.tenant_id = t and g.id = m) then 'a test email: it goes to the sandbox only' end)
  from (
    select r.id, r.position, r.address, r.role, o.attempts as o_attempts, d.attempts as d_attempts, q.attempts as q_attempts,
      q.due_at as q_due, q.leased_at, o.at as o_at, d.died_at as d_at, o.code as o_code, d.code as d_code,
      o.enhanced as o_enhanced, d.enhanced as d_enhanced, o.reply as o_reply, d.reply as d_reply,
      o.reason as o_reason, nullif(concat_ws(': ', d.reason, d.error), '') as d_reason, q.hold_reason,
      e.code as last_code, e.enhanced as last_enhanced, e.reply as last_reply, e.at as last_at,
      pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, pgmail.now()) as s
    from pgmail.recipient r
    left join pgmail.queue q on q.tenant_id = t and q.id = r.id and q.id = any (ids)
    left join pgmail.outcome o on o.tenant_id = t and o.recipient_id = r.id and o.recipient_id = any (ids)
      and o.recipient_id >= low and o.recipient_id < high
    left join pgmail.dead_letter d on d.tenant_id = t and d.recipient_id = r.id and d.recipient_id = any (ids)
    left join lateral (
      select y.code, y.enhanced, y.reply, y.at from pgmail.event y
      where y.tenant_id = t and y.recipient_id = r.id and y.recipient_id >= low and y.recipient_id < high
        and y.code is not null and o.recipient_id is null
      order by y.id desc limit 1) e on true
    where r.tenant_id = t and r.id = any (ids) and r.id >= low and r.id < high
  ) x order by x.position;
end
$$;

-- trace(id): the journey, oldest first. How it was queued is told by the message itself, not by an event row.
create or replace function pgmail.trace(id uuid)
returns table (at timestamptz, type text, recipient_id uuid, address text, attempt smallint, code smallint, enhanced text,
               reply text, phase text, relay text, remote_host text, tls text, ms integer, worker bigint, detail text, event_id uuid)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare
  t integer := pgmail.need_tenant(); m uuid; ids uuid[];
  low uuid := pgmail.uuid_floor(pgmail.uuid_time(trace.id) - interval '1 hour');
  high uuid := pgmail.uuid_floor(pgmail.uuid_time(trace.id) + interval '1 hour');
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, trace.id) f;
  return query
  select x.at, x.type, x.recipient_id, r.address, x.attempt, x.code, x.enhanced, x.reply, x.phase, x.relay, x.remote_host,
    x.tls, x.ms, x.worker, nullif(x.detail, ''), x.event_id
  from (
    select e.at, e.type, e.recipient_id, e.attempt, e.code, e.enhanced, e.reply, e.phase, e.relay, e.remote_host, e.tls,
      e.ms, e.worker, e.detail, e.id as event_id
    from pgmail.event e where e.tenant_id = t and e.recipient_id = any (ids) and e.recipient_id >= low and e.recipient_id < high
    union all
    select g.created_at, case when g.scheduled_at is null then 'email.queued' else 'email.scheduled' end, i,
      null, null, null, null, null, null, null, null, null, null,
      concat_ws(', ', case when g.test then 'a test, for the sandbox only' end, 'by ' || g.created_by, 'stream ' || g.stream,
        'template ' || g.template || ' v' || g.template_version,
        'for ' || to_char(g.scheduled_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"')), i
    from pgmail.message g, unnest(ids) i where g.tenant_id = t and g.id = m
  ) x
  join pgmail.recipient r on r.tenant_id = t and r.id = x.recipient_id and r.id = any (ids) and r.id >= low and r.id < high
  order by x.at, x.event_id;
end
$$;

-- why(id): in one sentence a recipient, what it waits for or how it ended.
create or replace function pgmail.why(id uuid) returns text
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); s record; words text[] := '{}'; w text; q record; stop record; ahead bigint; last_ record; m pgmail.message;
begin
  for s in select * from pgmail.status(why.id) loop
    select x.* into m from pgmail.message x where x.tenant_id = t and x.id = s.message_id;
    w := null;
    if s.state in ('queued', 'deferred', 'scheduled', 'held', 'sending') then
      select x.* into q from pgmail.queue x where x.tenant_id = t and x.id = s.recipient_id;
      select e.* into last_ from pgmail.event e where e.tenant_id = t and e.recipient_id = s.recipient_id
        and e.type in ('email.deferred', 'email.delayed', 'email.in_doubt') order by e.id desc limit 1;
    end if;
    case s.state
      when 'scheduled' then w := format('is scheduled for %s', s.due_at);
      when 'sending' then
        w := format('is being sent by worker %s since %s (attempt %s)', q.leased_by, q.leased_at, s.attempts + 1);
        if not exists (select 1 from pgmail.worker x where x.epoch = q.leased_by) then
          w := w || ', but that worker is gone; it will be rescued by the leader';
        end if;
      when 'deferred' then
        w := format('waits until %s: attempt %s was answered %s', s.due_at, s.attempts,
          coalesce(nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), nullif(last_.detail, ''), 'nothing'));
      when 'held' then
        if q.in_doubt then
          w := format('is held %s (%s). pgmail.resolve(id, ''assume_sent'') takes it for sent, pgmail.resolve(id, ''resend'') sends it again under the same Message-ID',
            q.hold_reason, coalesce(nullif(concat_ws(', ', last_.detail, 'relay ' || last_.relay, last_.at), ''), 'nothing more is known'));
        else
          w := format('is held: %s. pgmail.%s(id) sends it, pgmail.cancel(id) drops it', coalesce(q.hold_reason, 'by an operator'),
            case when q.hold_reason like 'by %' then 'release' else 'retry' end);
        end if;
      when 'queued' then
        select x.* into stop from pgmail.recipient y, pgmail.stopped_by(m.stream, m.priority, y.site) x
         where y.tenant_id = t and y.id = s.recipient_id;
        if q.wait = 'delayed' and q.due_at > pgmail.now() and coalesce(stop.kind, 'workers') = 'workers' then
          w := format('waits for a limit until %s: %s', q.due_at, coalesce(last_.detail, 'the stream is full'));
        elsif stop.kind is not null then
          w := 'waits: ' || stop.words;
          if stop.kind = 'limit' then
            select count(*) into ahead from (
              select from pgmail.queue x where x.tenant_id = t and x.lane = q.lane and (x.due_at, x.id) < (q.due_at, q.id) limit 10001) x;
            w := w || case when ahead > 10000 then '; more than 10000 of its lane are ahead' else format('; %s of its lane are ahead', ahead) end;
          end if;
        else
          w := format('is due since %s and waits for a free worker', q.due_at);
        end if;
        if last_.type = 'email.deferred' then w := w || format(' (attempt %s was answered %s)', last_.attempt, concat_ws(' ', last_.code, last_.enhanced, last_.reply)); end if;
        if last_.type = 'email.in_doubt' then w := w || ' (an earlier attempt is in doubt: ' || coalesce(last_.detail, 'it may have been sent') || ')'; end if;
      when 'sent' then
        w := case when s.code is null and s.reason is not null then format('counts as sent since %s: %s', s.changed_at, s.reason)
                  else format('was sent at %s: the next hop answered %s', s.changed_at, concat_ws(' ', s.code, s.enhanced, s.reply)) end;
      when 'bounced' then w := format('bounced at %s: the remote side answered %s', s.changed_at, concat_ws(' ', s.code, s.enhanced, s.reply));
      when 'suppressed' then
        w := case when s.reason like 'not in the allow-list%' then format('was not sent: it is %s', s.reason)
                  else format('was not sent: the address is suppressed (%s)', s.reason) end;
      when 'expired' then w := format('expired at %s: %s', s.changed_at, s.reason);
      when 'cancelled' then w := format('was cancelled at %s%s', s.changed_at, coalesce(' (' || s.reason || ')', ''));
      when 'dead' then w := format('is a dead letter since %s after %s attempts: %s%s. pgmail.retry(id) tries it again', s.changed_at, s.attempts,
          s.reason, coalesce('; last reply ' || nullif(concat_ws(' ', s.code, s.enhanced, s.reply), ''), ''));
      else w := 'has no state: this is a fault of pgmail, please report it';
    end case;
    words := words || (s.address || ' ' || case when m.test then '(a test email, for the sandbox only) ' else '' end || w);
  end loop;
  return array_to_string(words, E'\n');
end
$$;

-- The ledger: what was enqueued against where it stands, from two independent sources. enqueued and the final states
-- come from tallies that each statement appended; what waits and what died is looked at where it stands. difference
-- is 0, or something was lost or counted twice.
create or replace view pgmail.ledger with (security_invoker = true) as
with counted as (
  select tenant_id, kind, sum(n) as n
  from (select tenant_id, kind, n from pgmail.tally union all select tenant_id, kind, n from pgmail.tally_total) t group by 1, 2
), waiting as (
  select tenant_id, pgmail.state_of(null, false, true, leased_by is not null, due_at, wait, pgmail.now()) as state, count(*) as n
  from pgmail.queue group by 1, 2
), died as (
  select tenant_id, count(*) as n from pgmail.dead_letter group by 1
), figures as (
  select t.name as tenant, t.id as tenant_id,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'enqueued'), 0)::bigint as enqueued,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'scheduled'), 0)::bigint as scheduled,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'queued'), 0)::bigint as queued,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'sending'), 0)::bigint as sending,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'deferred'), 0)::bigint as deferred,
    coalesce((select n from waiting w where w.tenant_id = t.id and state = 'held'), 0)::bigint as held,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'sent'), 0)::bigint as sent,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'bounced'), 0)::bigint as bounced,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'suppressed'), 0)::bigint as suppressed,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'expired'), 0)::bigint as expired,
    coalesce((select n from counted c where c.tenant_id = t.id and kind = 'cancelled'), 0)::bigint as cancelled,
    coalesce((select n from died d where d.tenant_id = t.id), 0)::bigint as dead
  from pgmail.tenant t
)
select *, enqueued - (scheduled + queued + sending + deferred + held + sent + bounced + suppressed + expired + cancelled + dead) as difference
from figures;

-- The same counted in full from the rows themselves: slow, for tests and for doubts.
create or replace function pgmail.recount()
returns table (tenant_id integer, state text, n bigint)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select r.tenant_id,
    pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, pgmail.now()),
    count(*)
  from pgmail.recipient r
  left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
  left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
  left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
  group by 1, 2
$$;

-- What a person or an application does to mail that waits. None of it waits for a leased row: it answers too_late.
-- Each takes an email's id (all its recipients) or one recipient's. They run in an application's transaction, which may
-- stay open: so they lock no lane, which every worker would wait for, but append to lane_touch as send does.

-- {"status": "cancelled" | "partly_cancelled" | "too_late", "cancelled": n, "too_late": n}. Cancelling twice is fine. What is in doubt
-- may have been sent, and so it is too late.
create or replace function pgmail.cancel(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; was integer; who text := pgmail.actor();
begin
  -- It is stored with each recipient, twice.
  if length(cancel.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, cancel.id) f;
  select count(*) into was from pgmail.outcome o where o.tenant_id = t and o.recipient_id = any (ids) and o.state = 'cancelled';
  begin
  with free as materialized (
    select q.id, q.attempts from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and not q.in_doubt order by q.id for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select free.id, free.attempts, g.stream, r.site
    from free join pgmail.recipient r on r.tenant_id = t and r.id = free.id and r.id = any (ids)
    join pgmail.message g on g.tenant_id = t and g.id = m
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
    select t, f.id, m, 'cancelled', pgmail.now(), f.stream, f.site, f.attempts, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select t, f.id, m, 'email.cancelled', f.site, concat_ws(': ', 'by ' || who, cancel.reason) from facts f
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, f.stream, 'cancelled', count(*) from facts f group by f.stream
  )
  select count(*) into n from facts;
  exception when serialization_failure then
    n := 0;   -- REPEATABLE READ: a worker took it after this transaction's snapshot. That is too late, not a fault.
  end;
  if n > 0 then perform pgmail.record_act(t, 'email.cancel', cancel.id::text, cancel.reason); end if;
  n := n + was;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'cancelled' when n > 0 then 'partly_cancelled' else 'too_late' end,
    'cancelled', n, 'too_late', cardinality(ids) - n);
end
$$;

-- {"status": "rescheduled" | "partly_rescheduled" | "too_late", "rescheduled": n, "too_late": n}
create or replace function pgmail.reschedule(id uuid, at timestamptz) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; expiry timestamptz; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, reschedule.id) f;
  select g.expires_at into expiry from pgmail.message g where g.tenant_id = t and g.id = m;
  if reschedule.at is null or not isfinite(reschedule.at) then
    perform pgmail.refuse('invalid_time', '/scheduled_at', 'must be a moment');
  elsif reschedule.at < pgmail.now() - interval '60 seconds' then
    perform pgmail.refuse('time_in_past', '/scheduled_at', 'lies more than 60 seconds in the past');
  elsif reschedule.at > pgmail.now() + interval '366 days' then
    perform pgmail.refuse('time_too_far', '/scheduled_at', 'lies more than 366 days ahead');
  elsif reschedule.at >= expiry then
    perform pgmail.refuse('time_too_far', '/scheduled_at', 'the email expires before');
  end if;
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at <> 'infinity'
    order by q.id for update skip locked
  ), later as (
    update pgmail.queue q set due_at = greatest(reschedule.at, pgmail.now()), later = true, wait = 'scheduled', tried_since = null
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, l.id, m, case when l.due_at > pgmail.now() then 'email.scheduled' else 'email.queued' end,
      'by ' || who || ', for ' || to_char(l.due_at at time zone 'UTC', 'YYYY-MM-DD"T"HH24:MI:SS"Z"') from later l
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, l.lane, g.stream, g.priority, min(r.site), min(l.due_at)
    from later l join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = l.id and r.id = any (ids) group by l.lane, g.stream, g.priority
  )
  select count(*) into n from later;
  exception when serialization_failure then
    n := 0;   -- as in cancel
  end;
  if n > 0 then
    perform pgmail.record_act(t, 'email.reschedule', reschedule.id::text, reschedule.at::text);
  end if;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'rescheduled' when n > 0 then 'partly_rescheduled' else 'too_late' end,
    'rescheduled', n, 'too_late', cardinality(ids) - n);
end
$$;

-- Try again now: a dead letter, a deferred, delayed or held recipient (one that was held before its time is scheduled
-- again). What is in doubt is resolved instead. Answers how many went back to the queue.
create or replace function pgmail.retry(recipient_id uuid, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, retry.recipient_id) f;
  with raised as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (ids) returning d.*
  ), queued as (
    insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, claims, expires_at)
    select t, d.recipient_id, d.message_id, d.lane, pgmail.now(), d.claims, d.expires_at from raised d
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, d.stream, 'dead', -count(*) from raised d group by d.stream
  ), free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at > pgmail.now()
      and (q.due_at = 'infinity' or q.wait is distinct from 'scheduled') and not q.in_doubt
    order by q.id for update skip locked
  ), pulled as (
    update pgmail.queue q set hold_reason = null, held_due_at = null,
      due_at = case when x.early then q.held_due_at else pgmail.now() end, wait = case when x.early then 'scheduled' end, later = x.early
    from (select y.id, y.wait is distinct from 'deferred' and y.held_due_at > pgmail.now() is true as early from pgmail.queue y
          where y.tenant_id = t and y.id = any (array(select free.id from free))) x
    where q.tenant_id = t and q.id = x.id and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at
  ), facts as materialized (
    select d.recipient_id as id, d.lane, d.stream, d.priority, d.site, pgmail.now() as due_at from raised d
    union all
    select p.id, p.lane, g.stream, g.priority, r.site, p.due_at from pulled p
    join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = p.id and r.id = any (ids)
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, f.lane, f.stream, f.priority, f.site, min(f.due_at) from facts f group by f.lane, f.stream, f.priority, f.site
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, f.id, m, case when f.due_at > pgmail.now() then 'email.scheduled' else 'email.queued' end,
      concat_ws(': ', 'retried by ' || who, retry.reason) from facts f
  )
  select count(*) into n from facts;
  if n = 0 and exists (select from pgmail.queue q where q.tenant_id = t and q.id = any (ids) and q.in_doubt) then
    perform pgmail.refuse('in_doubt', '/id', 'it may have been sent already, so it is not tried again: look at the other side''s log, '
      || 'then resolve it', 409);
  end if;
  if n > 0 then
    perform pgmail.record_act(t, 'email.retry', retry.recipient_id::text, retry.reason);
  end if;
  return n;
end
$$;

-- Give a dead letter up: it ends as cancelled, with who and why.
create or replace function pgmail.discard(recipient_id uuid, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; who text := pgmail.actor();
begin
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, discard.recipient_id) f;
  with gone as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (ids) returning d.*
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason)
    select t, g.recipient_id, m, 'cancelled', pgmail.now(), g.stream, g.site, g.attempts, g.code, g.enhanced, g.reply,
      concat_ws(': ', 'discarded by ' || who, discard.reason) from gone g
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
    select t, g.recipient_id, m, 'email.cancelled', g.site, concat_ws(': ', 'discarded by ' || who, discard.reason) from gone g
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, g.stream, k.kind, k.sign * count(*)
    from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
  )
  select count(*) into n from gone;
  if n > 0 then perform pgmail.record_act(t, 'email.discard', discard.recipient_id::text, discard.reason); end if;
  return n;
end
$$;

-- What a person decides about many at once: mail that is held in doubt, and dead letters. A filter is an object whose
-- keys narrow it; {} is all of the tenant. Each call takes p_most rows at most, oldest first, and answers how many it
-- moved: call again until it answers 0. Rows that another transaction holds are passed over.

-- Refuses a key that a filter does not know, which else would mean more than was asked for, and a value of no use.
create or replace function pgmail.check_filter(p_filter jsonb, p_known text[]) returns void
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare k text; v jsonb; at timestamptz; a pgmail.address;
begin
  if p_filter is null or jsonb_typeof(p_filter) <> 'object' then
    perform pgmail.refuse('invalid_field', '/filter', 'must be an object; {} is all');
  end if;
  for k, v in select * from jsonb_each(p_filter) loop
    if k <> all (p_known) then
      perform pgmail.refuse('unknown_field', '/filter/' || k, 'known here: ' || array_to_string(p_known, ', '));
    elsif jsonb_typeof(v) = 'null' then
      continue;
    elsif k = 'worker' then
      if jsonb_typeof(v) <> 'number' or v::text !~ '^[0-9]{1,18}$' then
        perform pgmail.refuse('invalid_field', '/filter/worker', 'must be the number of a worker');
      end if;
    elsif k = 'streams' then
      if jsonb_typeof(v) <> 'array' then perform pgmail.refuse('invalid_field', '/filter/streams', 'must be an array of names'); end if;
    elsif jsonb_typeof(v) <> 'string' then
      perform pgmail.refuse('invalid_field', '/filter/' || k, 'must be a string');
    elsif k = 'recipient' then
      a := pgmail.parse_address(v #>> '{}');
      if a.fault is not null then perform pgmail.refuse('invalid_address', '/filter/recipient', a.fault); end if;
    elsif k in ('doubted_before', 'doubted_after', 'died_before', 'died_after') then
      begin
        at := (v #>> '{}')::timestamptz;
      exception when others then
        perform pgmail.refuse('invalid_time', '/filter/' || k, 'must be a moment, ISO 8601');
      end;
    end if;
  end loop;
end
$$;

-- What is held in doubt: mail that may have been sent, on streams that hold. `since` is when it came to be in doubt, and
-- relay, worker and attempt are those of the attempt that nobody knows the end of. Filter: stream, site, relay, worker,
-- recipient (an address), doubted_after (included) and doubted_before (not). Newest email first, unless `newer` asks for
-- those next above an id.
create or replace function pgmail.in_doubt(
  filter jsonb default '{}', most integer default null, below uuid default null, above uuid default null, newer boolean default false
) returns table (recipient_id uuid, message_id uuid, address text, stream text, site text, since timestamptz, attempt smallint,
                 relay text, remote_host text, worker bigint, reason text, error text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,relay,worker,recipient,doubted_after,doubted_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select q.id, q.message_id, r.address, m.stream, r.site, coalesce(e.at, q.held_due_at), coalesce(e.attempt, q.attempts),
    coalesce(e.relay, q.begun_relay), e.remote_host, e.worker, q.hold_reason, e.detail
  from pgmail.queue q
  cross join lateral (
    select x.address, x.site from pgmail.recipient x where x.tenant_id = t and x.id = q.id limit 1) r
  cross join lateral (
    select x.stream from pgmail.message x where x.tenant_id = t and x.id = q.message_id limit 1) m
  left join lateral (
    select x.at, x.attempt, x.relay, x.remote_host, x.worker, x.detail from pgmail.event x
    where x.tenant_id = t and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
  where q.tenant_id = t and q.in_doubt
    and (below is null or q.id < below) and (above is null or q.id > above)
    and (f->>'stream' is null or m.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? m.stream)
    and (f->>'site' is null or r.site = f->>'site')
    and (f->>'recipient' is null or r.address = who)
    and (f->>'relay' is null or coalesce(e.relay, q.begun_relay) = f->>'relay')
    and (f->>'worker' is null or e.worker = (f->>'worker')::bigint)
    and (f->>'doubted_after' is null or e.at >= (f->>'doubted_after')::timestamptz)
    and (f->>'doubted_before' is null or e.at < (f->>'doubted_before')::timestamptz)
  order by case when newer then q.id end, case when not newer then q.id end desc
  limit most;
end
$$;

-- Ends the doubt of these recipients; those that are not held in doubt are passed over.
create or replace function pgmail.resolve_ids(p_tenant integer, p_ids uuid[], p_how text, p_reason text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer; words text;
begin
  if p_how is null or p_how not in ('assume_sent', 'resend') then
    perform pgmail.refuse('invalid_field', '/how', 'must be assume_sent or resend');
  end if;
  words := concat_ws(': ', case p_how when 'resend' then 'resent by ' else 'assumed sent by ' end || pgmail.actor(), p_reason);
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.in_doubt and q.leased_by is null
    order by q.id for update skip locked
  ), facts as materialized (
    select q.id, q.message_id, q.lane, m.stream, m.priority, r.site, coalesce(e.relay, q.begun_relay) as relay, e.remote_host,
      greatest(e.attempt, q.attempts) as attempt
    from pgmail.queue q
    cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = q.id limit 1) r
    cross join lateral (
      select x.stream, x.priority from pgmail.message x where x.tenant_id = p_tenant and x.id = q.message_id limit 1) m
    left join lateral (
      select x.attempt, x.relay, x.remote_host from pgmail.event x
      where x.tenant_id = p_tenant and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
    where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), gone as (
    delete from pgmail.queue q
    where p_how = 'assume_sent' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason, relay, remote_host)
    select p_tenant, f.id, f.message_id, 'sent', pgmail.now(), f.stream, f.site, f.attempt, words, f.relay, f.remote_host
    from facts f where p_how = 'assume_sent'
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n)
    select p_tenant, f.stream, 'sent', count(*) from facts f where p_how = 'assume_sent' group by f.stream
  ), back as (
    update pgmail.queue q set due_at = pgmail.now(), later = false, wait = null, hold_reason = null, held_due_at = null, in_doubt = false
    where p_how = 'resend' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select distinct p_tenant, f.lane, f.stream, f.priority, f.site, pgmail.now() from facts f where p_how = 'resend'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, site, relay, remote_host, detail)
    select p_tenant, f.id, f.message_id, case p_how when 'resend' then 'email.queued' else 'email.sent' end,
      case p_how when 'assume_sent' then f.attempt end, f.site, f.relay, f.remote_host, words
    from facts f
  )
  select count(*) into n from facts;
  return n;
end
$$;

-- One email's recipients, or one recipient, that are held in doubt: 'assume_sent' settles them as sent, 'resend' puts them
-- back into the queue, under the same Message-ID. Answers how many.
create or replace function pgmail.resolve(id uuid, how text, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); ids uuid[]; n integer;
begin
  select f.recipients into ids from pgmail.need_recipients(t, resolve.id) f;
  n := pgmail.resolve_ids(t, ids, how, reason);
  if n > 0 then perform pgmail.record_act(t, 'email.resolve', resolve.id::text, concat_ws(': ', how, reason)); end if;
  return n;
end
$$;

-- The same by filter, of pgmail.in_doubt.
create or replace function pgmail.resolve_all(how text, filter jsonb default '{}', reason text default null, most integer default 1000)
returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); n integer;
begin
  n := pgmail.resolve_ids(t, array(
    select d.recipient_id from pgmail.in_doubt(resolve_all.filter, least(greatest(coalesce(most, 1000), 0), 10000), null, null, true) d), how, reason);
  if n > 0 then
    perform pgmail.record_act(t, 'email.resolve', format('%s in doubt by filter %s', n, resolve_all.filter), concat_ws(': ', how, reason));
  end if;
  return n;
end
$$;

-- The dead letters that a filter means, oldest first: stream, site, reason, recipient (an address), text (found in the
-- error, the last reply or its enhanced code, capitals or not), died_after (included), died_before (not).
-- Between ids that are given; with newest_first the other way round.
create or replace function pgmail.dead_letter_ids(
  filter jsonb default '{}', most integer default 1000, below uuid default null, above uuid default null, newest_first boolean default false
) returns setof uuid
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,reason,recipient,text,died_after,died_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select d.recipient_id from pgmail.dead_letter d
  where d.tenant_id = t
    and (f->>'stream' is null or d.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? d.stream)
    and (f->>'site' is null or d.site = f->>'site')
    and (f->>'reason' is null or d.reason = f->>'reason')
    and (f->>'recipient' is null or exists (
      select from pgmail.recipient r
      where r.tenant_id = t and r.id = d.recipient_id and r.address = who))
    and (f->>'text' is null or strpos(lower(concat_ws(' ', d.code, d.enhanced, d.reply, d.error)), lower(f->>'text')) > 0)
    and (f->>'died_after' is null or d.died_at >= (f->>'died_after')::timestamptz)
    and (f->>'died_before' is null or d.died_at < (f->>'died_before')::timestamptz)
    and (below is null or d.recipient_id < below) and (above is null or d.recipient_id > above)
  order by case when not newest_first then d.recipient_id end, case when newest_first then d.recipient_id end desc limit most;
end
$$;

-- Dead letters back into the queue, due now, by filter of pgmail.dead_letter_ids. Answers how many.
create or replace function pgmail.retry_all(filter jsonb default '{}', reason text default null, most integer default 1000) returns integer
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(sum(pgmail.retry(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

-- Dead letters given up, by the same filter; they end as cancelled. Answers how many.
create or replace function pgmail.discard_all(filter jsonb default '{}', reason text default null, most integer default 1000) returns integer
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(sum(pgmail.discard(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

-- An operator stops single emails, and lets them go. As in 075: nothing waits for a leased row, no lane is locked. What is
-- held keeps its old due time and how it waited, so that a release puts it back exactly; it does not expire meanwhile.

-- {"status": "held" | "partly_held" | "too_late", "held": n, "too_late": n}. What is held already stays as it is and counts.
create or replace function pgmail.hold(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; was integer; why text;
begin
  if length(hold.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, hold.id) f;
  why := concat_ws(': ', 'by ' || pgmail.actor(), nullif(hold.reason, ''));
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at <> 'infinity'
    order by q.id for update skip locked
  ), stopped as (
    update pgmail.queue q set due_at = 'infinity', held_due_at = q.due_at, hold_reason = why
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, s.id, m, 'email.held', why from stopped s
  )
  select count(*) into n from stopped;
  exception when serialization_failure then
    n := 0;   -- as in cancel
  end;
  -- Read after the update: a second hold at the same moment finds what the first one did.
  select count(*) - n into was from pgmail.queue q
  where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at = 'infinity';
  if n > 0 then perform pgmail.record_act(t, 'email.hold', hold.id::text, hold.reason); end if;
  n := n + was;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'held' when n > 0 then 'partly_held' else 'too_late' end,
    'held', n, 'too_late', cardinality(ids) - n);
end
$$;

-- {"status": "released" | "partly_released" | "busy" | "not_held", "released": n, "busy": n, "not_held": n, "in_doubt": n}. The
-- old due time is back: what was scheduled or deferred waits on, what came due meanwhile goes now, what expired meanwhile
-- expires. What is held in doubt may have been sent, and is not released by the way: where there is nothing else to release,
-- it is refused. busy is held still, in the hands of another transaction (a cancel not yet committed): ask again.
create or replace function pgmail.release(id uuid, reason text default null) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); m uuid; ids uuid[]; n integer; busy integer; doubtful integer; who text := pgmail.actor();
begin
  if length(release.reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  select f.message_id, f.recipients into m, ids from pgmail.need_recipients(t, release.id) f;
  begin
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = t and q.id = any (ids) and q.leased_by is null and q.due_at = 'infinity'
      and not q.in_doubt
    order by q.id for update skip locked
  ), freed as (
    update pgmail.queue q set due_at = coalesce(q.held_due_at, pgmail.now()), held_due_at = null, hold_reason = null,
      later = q.later or q.held_due_at > pgmail.now()
    where q.tenant_id = t and q.id = any (array(select free.id from free)) returning q.id, q.lane, q.due_at, q.wait
  ), facts as materialized (
    select f.*, g.stream, g.priority, r.site from freed f
    join pgmail.message g on g.tenant_id = t and g.id = m
    join pgmail.recipient r on r.tenant_id = t and r.id = f.id and r.id = any (ids)
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select t, f.lane, f.stream, f.priority, f.site, min(f.due_at) from facts f group by f.lane, f.stream, f.priority, f.site
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, detail)
    select t, f.id, m, case when f.due_at > pgmail.now() and f.wait = 'scheduled' then 'email.scheduled' else 'email.queued' end,
      concat_ws(': ', 'released by ' || who, nullif(release.reason, '')) from facts f
  )
  select count(*) into n from facts;
  exception when serialization_failure then
    n := 0;
  end;
  select count(*) filter (where q.in_doubt), count(*) filter (where not q.in_doubt) into doubtful, busy from pgmail.queue q
  where q.tenant_id = t and q.id = any (ids) and q.due_at = 'infinity';
  if n = 0 and busy = 0 and doubtful > 0 then
    perform pgmail.refuse('in_doubt', '/id', 'it may have been sent already, so it is not released: look at the other side''s log, '
      || 'then resolve it', 409);
  end if;
  if n > 0 then perform pgmail.record_act(t, 'email.release', release.id::text, release.reason); end if;
  return jsonb_build_object('status', case when n = cardinality(ids) then 'released' when n > 0 then 'partly_released'
      when busy > 0 then 'busy' else 'not_held' end,
    'released', n, 'busy', busy, 'not_held', cardinality(ids) - n - busy - doubtful, 'in_doubt', doubtful);
end
$$;

-- Weekly partitions, made well ahead by whichever process leads. A DEFAULT partition takes mail when they ran out.
create or replace function pgmail.partitioned_tables() returns text[]
language sql immutable parallel safe
as $$ select array['message', 'attachment', 'tag', 'recipient', 'event', 'outcome'] $$;

-- The column whose UUIDv7 says which week a row belongs to.
create or replace function pgmail.partition_key(p_base text) returns text
language sql immutable parallel safe
as $$ select case when p_base in ('message', 'recipient') then 'id' when p_base in ('attachment', 'tag') then 'message_id' else 'recipient_id' end $$;

-- A table's weekly partitions, oldest first, with the moments from which and up to which they hold ids.
create or replace function pgmail.weekly_partitions(p_base text) returns table (name text, since timestamptz, until timestamptz)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select c.relname::text, w.since, w.since + interval '168 hours'
  from pg_inherits i join pg_class c on c.oid = i.inhrelid,
    lateral (select to_date(substring(c.relname from '[0-9]{8}$'), 'YYYYMMDD')::timestamp at time zone 'UTC') w(since)
  where i.inhparent = to_regclass('pgmail.' || quote_ident(p_base)) and c.relname ~ '_[0-9]{8}$'
  order by w.since
$$;

-- Makes one partition of one table, and moves there what had gone to the default partition meanwhile. A short
-- lock_timeout, less than deadlock_timeout, gives up before a reader could be the victim.
create or replace function pgmail.make_partition(p_base text, p_week timestamptz) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare
  part text := p_base || '_' || to_char(p_week at time zone 'UTC', 'YYYYMMDD'); col text := pgmail.partition_key(p_base);
  low uuid := pgmail.uuid_floor(p_week); high uuid := pgmail.uuid_floor(p_week + interval '168 hours');
begin
  perform set_config('lock_timeout', '500ms', true);
  execute format('create table pgmail.%I (like pgmail.%I including all)', part, p_base);
  perform pgmail.secure_table(format('pgmail.%I', part)::regclass);
  execute format('lock table only pgmail.%I in access exclusive mode', p_base || '_default');
  execute format('with moved as (delete from pgmail.%I where %I >= %L and %I < %L returning *) insert into pgmail.%I select * from moved',
    p_base || '_default', col, low, col, high, part);
  execute format('alter table pgmail.%I attach partition pgmail.%I for values from (%L) to (%L)', p_base, part, low, high);
  return part;
end
$$;

-- Makes the first partition that is missing from last week to p_days ahead; its name, null when all are there. One call
-- holds locks on one table. Call it until it answers null, each time in a transaction of its own.
create or replace function pgmail.make_partition_v2(p_days integer default 35) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare w timestamptz; base text;
begin
  for w in select generate_series(date_trunc('week', pgmail.now() at time zone 'UTC') - interval '1 week',
                                  pgmail.now() at time zone 'UTC' + p_days * interval '1 day', interval '1 week') at time zone 'UTC'
  loop
    foreach base in array pgmail.partitioned_tables() loop
      if to_regclass('pgmail.' || base || '_' || to_char(w at time zone 'UTC', 'YYYYMMDD')) is null then
        return pgmail.make_partition(base, w);
      end if;
    end loop;
  end loop;
  return null;
end
$$;

-- The same, all that is missing in one transaction: for an upgrade, and for leaders of 0.1. Answers how many.
create or replace function pgmail.make_partitions_v1(p_days integer default 35) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare made integer := 0;
begin
  perform set_config('lock_timeout', '500ms', true);
  while pgmail.make_partition_v2(p_days) is not null loop made := made + 1; end loop;
  return made;
end
$$;

-- Days left before new mail goes to the default partition, and how many rows went there already: those of the last day and
-- later. Older ones were moved there by retention and stand there until their mail is settled (086_retain.sql); it moves
-- what is a day old at least, so none of these is ever taken for a want of partitions.
create or replace function pgmail.partition_state(out days_left integer, out strays bigint)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare base text; n bigint; last_ timestamptz := 'infinity'; l timestamptz;
begin
  strays := 0;
  foreach base in array pgmail.partitioned_tables() loop
    select max(p.until) into l from pgmail.weekly_partitions(base) p;
    execute format('select count(*) from (select 1 from pgmail.%I where %I >= %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - interval '1 day')) into n;
    strays := strays + n;
    last_ := least(last_, coalesce(l, '-infinity'));
  end loop;
  days_left := case when last_ = '-infinity' then 0 else greatest(0, extract(day from last_ - pgmail.now()))::integer end;
end
$$;

-- Retention: what is settled goes after its time, by whole weekly partitions; a stream that keeps its content for less
-- has it emptied row by row. Mail that is queued, held or dead is kept: its message and files, and the recipients that are
-- not settled with their record, move to the default partition before their week is dropped.
-- Each call is one short transaction on one table. Dropping takes the parent's lock for a moment, for which all others
-- wait: so it is asked for during 200 ms at most, and given up rather than waited for (lock_not_available: try later).
-- (DETACH CONCURRENTLY, which would do without, refuses a table that has a default partition.)

create or replace function pgmail.kept_days(p_base text) returns integer
language sql stable security definer set search_path = pgmail, pg_temp
as $$ select case when p_base in ('message', 'attachment', 'tag') then r.content_days else r.record_days end from pgmail.retention r $$;

-- Recipients between two ids that are not settled, p_most at most. By primary key, tenant by tenant: the rest of the queue
-- is not read. The limit is inside, since what a function answers is computed whole before a limit outside is looked at.
create or replace function pgmail.needed_recipients(p_low uuid, p_high uuid, p_most integer)
returns table (tenant_id integer, message_id uuid, recipient_id uuid)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  select t.id, x.message_id, x.id from pgmail.tenant t cross join lateral (
    select q.message_id, q.id from pgmail.queue q where q.tenant_id = t.id and q.id >= p_low and q.id < p_high
    union all
    select d.message_id, d.recipient_id from pgmail.dead_letter d where d.tenant_id = t.id and d.recipient_id >= p_low and d.recipient_id < p_high) x
  limit p_most
$$;

-- The same as emails, all of them.
create or replace function pgmail.needed_messages(p_low uuid, p_high uuid) returns table (tenant_id integer, message_id uuid)
language sql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$ select distinct n.tenant_id, n.message_id from pgmail.needed_recipients(p_low, p_high, null) n $$;

-- Which rows of a partition must be moved before it is dropped, by their places; null when they are too many to be moved
-- under a lock for which every `send` waits: more than 2,000 rows or 32 MB of texts and files, or when more than 20,000
-- recipients would have to be looked at. So it takes some tens of milliseconds at most, however much waits.
-- Of recipients, events and outcomes those of the unsettled recipients alone: the others of the same email are settled
-- and past their time like everything else, and there may be very many.
create or replace function pgmail.rows_to_keep(p_base text, p_part text, p_low uuid, p_high uuid) returns tid[]
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  rows_most constant integer := 2000; looks constant integer := 20000; bytes_most constant bigint := 32 * 1024 * 1024;
  tenants integer[]; messages uuid[]; people uuid[]; places tid[]; bytes bigint;
begin
  select array_agg(n.tenant_id), array_agg(n.message_id), array_agg(n.recipient_id) into tenants, messages, people
    from pgmail.needed_recipients(p_low, p_high, looks + 1) n;
  if cardinality(people) > looks then return null; end if;
  -- The size is that on disk, read without the contents: a file stored elsewhere in the table is not fetched for it.
  execute format('select array_agg(y.place), sum(y.bytes) from (select x.ctid as place, '
      || case p_base when 'message' then 'pg_column_size(x.content)' when 'attachment' then 'pg_column_size(x.body)' else '0' end || ' as bytes from '
      || case p_base
        when 'message' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.m'
        when 'attachment' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.%1$I x on x.tenant_id = n.t and x.message_id = n.m'
        when 'tag' then '(select distinct * from unnest($1, $2) u(t, m)) n join pgmail.message g on g.tenant_id = n.t and g.id = n.m
            cross join lateral jsonb_each_text(g.tags) k join pgmail.%1$I x on x.tenant_id = n.t and x.name = k.key and x.value = k.value and x.message_id = n.m'
        when 'recipient' then 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.id = n.r'
        else 'unnest($1, $3) n(t, r) join pgmail.%1$I x on x.tenant_id = n.t and x.recipient_id = n.r' end
      || ' limit %2$s) y', p_part, rows_most + 1)
    using tenants, messages, people into places, bytes;
  if cardinality(places) > rows_most or bytes > bytes_most then return null; end if;
  return coalesce(places, '{}');
end
$$;

-- Drops the oldest partition of a table that is past its time; name null when there is none. One of which too much must be
-- kept stays, for moving it would take too long under the lock, and so does one that something of somebody else hangs on (a
-- view): the next is looked at, and `overdue` of pgmail.retention_state tells.
create or replace function pgmail.drop_partition_v1(p_base text, out name text, out moved bigint)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare days integer := pgmail.kept_days(p_base); w record; low uuid; high uuid; places tid[];
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return; end if;
  perform set_config('lock_timeout', '200ms', true);
  for w in select * from pgmail.weekly_partitions(p_base) p where p.until + days * interval '24 hours' <= pgmail.now() loop
    -- What hangs on a message or a recipient goes after it: nobody is left without the state that its outcome says.
    continue when to_regclass('pgmail.' || case when p_base in ('attachment', 'tag') then 'message' when p_base in ('outcome', 'event') then 'recipient' end
                              || right(w.name, 9)) is not null;
    -- An email and its recipients are of one hour, which may be of two weeks.
    low := pgmail.uuid_floor(w.since - interval '1 hour'); high := pgmail.uuid_floor(w.until + interval '1 hour');
    continue when pgmail.rows_to_keep(p_base, w.name, low, high) is null;
    begin
    execute format('lock table only pgmail.%I in access exclusive mode', p_base);
    -- Whoever reads a partition holds its parent, too; but for VACUUM and the like, which nobody should wait for now.
    execute format('lock table only pgmail.%I, only pgmail.%I in access exclusive mode nowait', p_base || '_default', w.name);
    -- Asked again now that nothing can be written: a dead letter may have been retried meanwhile, or an email have died.
    -- If it has become too much, the lock is let go with the transaction, at once; a later round looks further.
    places := pgmail.rows_to_keep(p_base, w.name, low, high);
    if places is null then return; end if;
    execute format('alter table pgmail.%I detach partition pgmail.%I', p_base, w.name);
    execute format('insert into pgmail.%I select x.* from pgmail.%I x where x.ctid = any ($1)', p_base || '_default', w.name) using places;
    get diagnostics moved = row_count;
    execute format('drop table pgmail.%I', w.name);
    name := w.name;
    return;
    exception when dependent_objects_still_exist then
      moved := null;
    end;
  end loop;
end
$$;

-- Deletes what stands in a default partition past its time and is settled by now, p_most rows at most; how many.
create or replace function pgmail.drop_strays_v1(p_base text, p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare days integer := pgmail.kept_days(p_base); past timestamptz; n integer;
begin
  if days is null or p_base <> all (pgmail.partitioned_tables()) then return 0; end if;
  past := pgmail.now() - days * interval '24 hours';
  execute format($q$delete from pgmail.%1$I d where d.ctid = any (array(
      select x.ctid from pgmail.%1$I x where x.%2$I < $1
        and (x.tenant_id, x.%3$I) not in (select n.tenant_id, n.message_id from pgmail.needed_messages('00000000-0000-0000-0000-000000000000', $2) n)
      limit $3 for update skip locked))$q$,
      p_base || '_default', pgmail.partition_key(p_base), case p_base when 'message' then 'id' else 'message_id' end)
    using pgmail.uuid_floor(past), pgmail.uuid_floor(past + interval '1 hour'), p_most;
  get diagnostics n = row_count;
  return n;
end
$$;

-- What is left of a content that was emptied: who sent it, which every page that shows an email shows.
create or replace function pgmail.emptied(p_content bytea, p_key_id integer) returns bytea
language sql immutable
as $$
  select convert_to(jsonb_build_object('from', convert_from(p_content, 'UTF8')::jsonb->'from')::text, 'UTF8')
$$;

-- Empties these emails of one tenant: texts, files, variables. Those that still wait are left out; answers the rest.
create or replace function pgmail.empty_messages(p_tenant integer, p_ids uuid[]) returns uuid[]
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare done uuid[]; people uuid[]; busy uuid[];
begin
  select array_agg(r.id), array_agg(distinct r.message_id) filter (where r.waits) into people, busy
  from unnest(p_ids) u(id) cross join lateral (
    select x.id, x.message_id,
      exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = x.id)
      or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = x.id) as waits
    from pgmail.recipient x
    where x.tenant_id = p_tenant and x.message_id = u.id
      and x.id >= pgmail.uuid_floor(pgmail.uuid_time(u.id) - interval '1 hour')
      and x.id < pgmail.uuid_floor(pgmail.uuid_time(u.id) + interval '1 hour')) r;
  done := array(select u.id from unnest(p_ids) u(id) where busy is null or u.id <> all (busy) order by 1);
  update pgmail.message m set content = pgmail.emptied(m.content, m.key_id), key_id = null where m.tenant_id = p_tenant and m.id = any (done);
  delete from pgmail.attachment a where a.tenant_id = p_tenant and a.message_id = any (done);
  update pgmail.recipient r set variables = null
   where r.tenant_id = p_tenant and r.id = any (people) and r.message_id = any (done) and r.variables is not null;
  return done;
end
$$;

-- Goes on with the streams that keep their content for less than the fleet: p_most emails of one stream a call, found by
-- their ids from where the last call ended. Answers how many were looked at; 0: there is nothing to do now.
create or replace function pgmail.empty_content_v1(p_most integer default 500) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare s record; mark uuid; seen uuid[]; mine uuid[]; done uuid[]; due uuid;
begin
  for s in select x.tenant_id, x.name, x.keep_content_days from pgmail.stream x where x.keep_content_days is not null order by 1, 2 loop
    due := pgmail.uuid_floor(pgmail.now() - s.keep_content_days * interval '24 hours');
    insert into pgmail.content_mark (tenant_id, stream, done_to) values (s.tenant_id, s.name, '00000000-0000-0000-0000-000000000000')
      on conflict do nothing;
    -- Two leaders for a moment: one does it.
    select c.done_to into mark from pgmail.content_mark c where c.tenant_id = s.tenant_id and c.stream = s.name for update skip locked;
    continue when not found;
    select array_agg(x.id order by x.id), array_agg(x.id) filter (where x.stream = s.name) into seen, mine from (
      select m.id, m.stream from pgmail.message m where m.tenant_id = s.tenant_id and m.id > mark and m.id < due order by m.id limit p_most) x;
    if seen is not null then
      done := pgmail.empty_messages(s.tenant_id, coalesce(mine, '{}'));
      insert into pgmail.content_left (tenant_id, message_id, stream)
      select s.tenant_id, u.id, s.name from unnest(mine) u(id) where u.id <> all (done) on conflict do nothing;
      update pgmail.content_mark c set done_to = seen[cardinality(seen)] where c.tenant_id = s.tenant_id and c.stream = s.name;
      return cardinality(seen);
    end if;
    -- What waited when its turn came; and what the fleet's own retention took meanwhile.
    select array_agg(x.message_id) into mine from (
      select l.message_id from pgmail.content_left l where l.tenant_id = s.tenant_id and l.stream = s.name
        and not exists (
          select from pgmail.recipient r
          where r.tenant_id = s.tenant_id and r.message_id = l.message_id
            and (exists (select from pgmail.queue q where q.tenant_id = s.tenant_id and q.id = r.id)
                 or exists (select from pgmail.dead_letter d where d.tenant_id = s.tenant_id and d.recipient_id = r.id)))
      order by l.message_id limit p_most) x;
    if mine is not null then
      done := pgmail.empty_messages(s.tenant_id, mine);
      delete from pgmail.content_left l where l.tenant_id = s.tenant_id and l.message_id = any (done);
      return cardinality(mine);
    end if;
  end loop;
  return 0;
end
$$;

-- Sets how many days settled mail is kept; null is for ever. What is older goes within the hour.
create or replace function pgmail.set_retention(p_content_days integer, p_record_days integer, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if p_content_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/content_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days not between 1 and 36500 then
    perform pgmail.refuse('invalid_retention', '/record_days', 'must be 1 to 36,500 days, or null for ever');
  elsif p_record_days is not null and coalesce(p_content_days > p_record_days, true) then
    perform pgmail.refuse('invalid_retention', '/content_days', 'content cannot be kept for longer than the record of it');
  end if;
  update pgmail.retention set content_days = p_content_days, record_days = p_record_days, changed_at = pgmail.now(), changed_by = pgmail.actor();
  perform pgmail.record_act(null, 'retention.set',
    format('content %s, record %s', coalesce(p_content_days || ' days', 'for ever'), coalesce(p_record_days || ' days', 'for ever')), p_reason);
end
$$;

-- What is set, and where it stands: overdue partitions are those that should have gone a day ago; kept are rows in the
-- default partitions that their time has passed (a thousand a table at most).
create or replace function pgmail.retention_state(
  out content_days integer, out record_days integer, out changed_at timestamptz, out changed_by text, out oldest_content timestamptz,
  out oldest_record timestamptz, out overdue integer, out kept bigint
)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare base text; days integer; n bigint;
begin
  select r.content_days, r.record_days, r.changed_at, r.changed_by into content_days, record_days, changed_at, changed_by from pgmail.retention r;
  select min(p.since) into oldest_content from pgmail.weekly_partitions('message') p;
  select min(p.since) into oldest_record from pgmail.weekly_partitions('recipient') p;
  overdue := 0; kept := 0;
  foreach base in array pgmail.partitioned_tables() loop
    days := pgmail.kept_days(base);
    continue when days is null;
    overdue := overdue + (select count(*) from pgmail.weekly_partitions(base) p where p.until + (days + 1) * interval '24 hours' <= pgmail.now());
    execute format('select count(*) from (select from pgmail.%I where %I < %L limit 1000) x', base || '_default',
      pgmail.partition_key(base), pgmail.uuid_floor(pgmail.now() - days * interval '24 hours')) into n;
    kept := kept + n;
  end loop;
end
$$;

-- Erasure: a person's data goes, the accounting stays. The address becomes a token, which is the same for the same address
-- and tenant, so that counts by person and de-duplication stay; salted and hashed, so that it does not lead back.

create or replace function pgmail.erased_token(p_tenant integer, p_address text) returns text
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select 'erased-' || left(encode(sha256(s.salt || sha256(s.salt || convert_to(p_address, 'UTF8'))), 'hex'), 32) || '@erased.invalid'
  from pgmail.erasure_salt s where s.tenant_id = p_tenant
$$;

-- What an address is called on the suppression list: itself, and its token where it was erased. Who opted out and was
-- erased stays opted out.
create or replace function pgmail.suppressed_as(p_tenant integer, p_address text) returns text[]
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$ begin return array_remove(array[p_address, pgmail.erased_token(p_tenant, p_address)], null); end $$;

-- A text, or the text of a JSON value, with the address replaced wherever it stands as a whole, in upper or lower case.
create or replace function pgmail.erased_text(p_text text, p_address text, p_token text) returns text
language sql immutable
as $$
  select regexp_replace(p_text,
    '(?<=^|[^A-Za-z0-9._%+-]|\\[nrtbf])' || regexp_replace(p_address, '([^[:alnum:]@_])', '\\\1', 'g') || '(?![A-Za-z0-9-]|\.[A-Za-z0-9])',
    p_token, 'gi')
$$;

-- A list of mailboxes with the person's own made anonymous.
create or replace function pgmail.erased_boxes(p_boxes jsonb, p_address text, p_token text) returns jsonb
language sql immutable
as $$
  select coalesce(jsonb_agg(case when pgmail.lower_text(x->>'address') = p_address then jsonb_build_object('address', p_token) else x end order by i), '[]')
  from jsonb_array_elements(p_boxes) with ordinality u(x, i)
$$;

-- A content with the person taken out, lists and texts; as it was where the person is not in it. Of what is sealed only the
-- lists stand open.
create or replace function pgmail.erased_content(p_content bytea, p_key_id integer, p_address text, p_token text) returns bytea
language plpgsql immutable
as $$
declare was jsonb; c jsonb; k text;
begin
  was := convert_from(p_content, 'UTF8')::jsonb; c := was;
  foreach k in array array['to', 'cc', 'reply_to'] loop
    if jsonb_typeof(c->k) = 'array' then c := jsonb_set(c, array[k], pgmail.erased_boxes(c->k, p_address, p_token)); end if;
  end loop;
  c := pgmail.erased_text(c::text, p_address, p_token)::jsonb;
  return case when c = was then p_content else convert_to(c::text, 'UTF8') end;
end
$$;

-- One batch: up to p_most emails of the person from the recipient id p_after on. What waits is cancelled, dead letters
-- are discarded; then address, name and variables go, the texts and files of emails to this person alone, and the
-- address in those that others got, in replies and in the record.
-- Answers {"person": token, "recipients", "messages", "cancelled", "discarded", "too_late", "waiting", "suppressions", "next"}.
--   too_late      being sent this moment    waiting   named in an email that others still wait for. Neither was erased: run again.
--   next          go on with this as p_after; null: done
create or replace function pgmail.erase_batch(
  p_tenant integer, p_address text, p_reason text, p_after uuid, p_most integer, p_dry_run boolean
) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_hashjoin = off set enable_mergejoin = off set jit = off
as $$
declare
  a pgmail.address := pgmail.parse_address(p_address); person text; who text := pgmail.actor(); now_ timestamptz := pgmail.now();
  ids uuid[]; late uuid[]; mine uuid[]; alone uuid[]; named uuid[]; busy uuid[];
  cancelled_ integer := 0; discarded_ integer := 0; waiting_ integer := 0; changed_ integer := 0; listed integer; next_ uuid;
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 10000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 10,000'); end if;
  if not p_dry_run then
    -- Two erasures of one tenant go one after the other: they may meet in an email.
    perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || p_tenant, 0));
    insert into pgmail.erasure_salt (tenant_id, salt)
    values (p_tenant, sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()))) on conflict do nothing;
  end if;
  person := pgmail.erased_token(p_tenant, a.address);

  select array_agg(x.id order by x.id) into ids from (
    select y.id from pgmail.recipient y where y.tenant_id = p_tenant and y.address = a.address and (p_after is null or y.id > p_after)
    order by y.id limit p_most) x;
  ids := coalesce(ids, '{}');
  next_ := case when cardinality(ids) = p_most then ids[p_most] end;

  if p_dry_run then
    select count(*) filter (where q.leased_by is null), coalesce(array_agg(q.id) filter (where q.leased_by is not null), '{}') into cancelled_, late
      from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids);
    select count(*) into discarded_ from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids);
  else
    with free as materialized (
      select q.id, q.message_id, q.attempts, case when q.in_doubt then ' (in doubt: it may have been sent)' else '' end as doubt from pgmail.queue q
      where q.tenant_id = p_tenant and q.id = any (ids) and q.leased_by is null order by q.id for update skip locked
    ), gone as (
      delete from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
    ), facts as materialized (
      select free.*, g.stream, y.site from free
      cross join lateral (select x.stream from pgmail.message x where x.tenant_id = p_tenant and x.id = free.message_id limit 1) g
      cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = free.id limit 1) y
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
      select p_tenant, f.id, f.message_id, 'cancelled', now_, f.stream, f.site, f.attempts, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, f.id, f.message_id, 'email.cancelled', f.site, 'by ' || who || ': the person was erased' || f.doubt from facts f
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n) select p_tenant, f.stream, 'cancelled', count(*) from facts f group by f.stream
    )
    select count(*) into cancelled_ from facts;
    with gone as (
      delete from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = any (ids) returning d.*
    ), outcomes as (
      insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason)
      select p_tenant, g.recipient_id, g.message_id, 'cancelled', now_, g.stream, g.site, g.attempts, g.code, g.enhanced, g.reply,
        'discarded by ' || who || ': the person was erased' from gone g
    ), events as (
      insert into pgmail.event (tenant_id, recipient_id, message_id, type, site, detail)
      select p_tenant, g.recipient_id, g.message_id, 'email.cancelled', g.site, 'discarded by ' || who || ': the person was erased' from gone g
    ), tallies as (
      insert into pgmail.tally (tenant_id, stream, kind, n) select p_tenant, g.stream, k.kind, k.sign * count(*)
      from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
    )
    select count(*) into discarded_ from gone;
    late := array(select q.id from pgmail.queue q where q.tenant_id = p_tenant and q.id = any (ids));
  end if;

  -- Which of these emails are this person's alone, which of the others name the person, and which of those still wait.
  select array_agg(x.message_id) filter (where x.sole), array_agg(x.message_id) filter (where not x.sole and x.in_it and not x.waits),
      array_agg(x.message_id) filter (where not x.sole and x.in_it and x.waits)
    into alone, named, busy
  from (
    select y.message_id, o.sole, o.waits, g.in_it
    from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    cross join lateral (
      select pgmail.erased_content(m.content, m.key_id, a.address, 'x@erased.invalid') <> m.content
          or pgmail.erased_text(m.metadata::text, a.address, '') <> m.metadata::text
          or strpos(lower(m.idempotency_key), a.address) > 0 or m.sender = a.address as in_it
      from pgmail.message m where m.tenant_id = p_tenant and m.id = y.message_id limit 1) g
    cross join lateral (
      select count(*) = 0 as sole, coalesce(bool_or(
          exists (select from pgmail.queue q where q.tenant_id = p_tenant and q.id = z.id)
          or exists (select from pgmail.dead_letter d where d.tenant_id = p_tenant and d.recipient_id = z.id)), false) as waits
      from pgmail.recipient z where z.tenant_id = p_tenant and z.message_id = y.message_id and z.id <> u.id) o
    where u.id <> all (late)) x;
  mine := array(
    select u.id from unnest(ids) u(id)
    cross join lateral (select z.message_id from pgmail.recipient z where z.tenant_id = p_tenant and z.id = u.id limit 1) y
    where u.id <> all (late) and (busy is null or y.message_id <> all (busy)));
  waiting_ := cardinality(ids) - cardinality(late) - cardinality(mine);
  changed_ := coalesce(cardinality(alone), 0) + coalesce(cardinality(named), 0);
  select count(*) into listed from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address;

  if not p_dry_run then
    -- Tags, which hold no @ but may hold a name, are found by name and value.
    delete from pgmail.tag x using (
      select m.id, k.key, k.value from pgmail.message m, jsonb_each_text(m.tags) k where m.tenant_id = p_tenant and m.id = any (alone)) g
     where x.tenant_id = p_tenant and x.name = g.key and x.value = g.value and x.message_id = g.id;
    update pgmail.message m set content = pgmail.erased_content(pgmail.emptied(m.content, m.key_id), null, a.address, person), key_id = null, tags = null,
      metadata = null, idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (alone);
    delete from pgmail.attachment x where x.tenant_id = p_tenant and x.message_id = any (alone);
    update pgmail.message m set content = pgmail.erased_content(m.content, m.key_id, a.address, person),
      metadata = pgmail.erased_text(m.metadata::text, a.address, person)::jsonb,
      idempotency_key = case when strpos(lower(m.idempotency_key), a.address) = 0 then m.idempotency_key end, sender = case m.sender when a.address then person else m.sender end
     where m.tenant_id = p_tenant and m.id = any (named);
    update pgmail.event e set reply = pgmail.erased_text(e.reply, a.address, person), detail = pgmail.erased_text(e.detail, a.address, person)
     where e.tenant_id = p_tenant and e.recipient_id = any (mine)
       and (e.reply, e.detail) is distinct from (pgmail.erased_text(e.reply, a.address, person), pgmail.erased_text(e.detail, a.address, person));
    update pgmail.outcome o set reply = pgmail.erased_text(o.reply, a.address, person), reason = pgmail.erased_text(o.reason, a.address, person)
     where o.tenant_id = p_tenant and o.recipient_id = any (mine)
       and (o.reply, o.reason) is distinct from (pgmail.erased_text(o.reply, a.address, person), pgmail.erased_text(o.reason, a.address, person));
    update pgmail.recipient y set address = person, rcpt = null, name = null, variables = null, key_id = null
     where y.tenant_id = p_tenant and y.id = any (mine);
    if p_after is null then
      perform pgmail.record_act(p_tenant, 'person.erase', person, pgmail.erased_text(p_reason, a.address, person));
    end if;
    if next_ is null then
      with opted as (
        delete from pgmail.suppression s where s.tenant_id = p_tenant and s.address = a.address returning s.*
      )
      insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
      select o.tenant_id, person, o.stream, o.reason, pgmail.erased_text(o.source, a.address, person), o.created_at, o.created_by, o.expires_at from opted o
      on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
        created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at;
      update pgmail.audit x set object = pgmail.erased_text(x.object, a.address, person), reason = pgmail.erased_text(x.reason, a.address, person)
       where x.tenant_id = p_tenant
         and (x.object, x.reason) is distinct from (pgmail.erased_text(x.object, a.address, person), pgmail.erased_text(x.reason, a.address, person));
    end if;
  end if;
  return jsonb_build_object('person', person, 'recipients', cardinality(mine), 'messages', changed_, 'cancelled', cancelled_,
    'discarded', discarded_, 'too_late', cardinality(late), 'waiting', waiting_, 'suppressions', case when next_ is null then listed else 0 end, 'next', next_);
end
$$;

-- Erases a person of the caller's tenant: `most` emails a call, on from `after`, until `next` is null.
create or replace function pgmail.erase(address text, reason text, after uuid default null, most integer default 1000, dry_run boolean default false) returns jsonb
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pgmail.erase_batch(pgmail.need_tenant(), erase.address, erase.reason, erase.after, erase.most, erase.dry_run) $$;

-- The same of another tenant, by its name: an administrator's.
create or replace function pgmail.erase_for(
  tenant text, address text, reason text, after uuid default null, most integer default 1000, dry_run boolean default false
) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = erase_for.tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(tenant, 63)), 404); end if;
  return pgmail.erase_batch(t, address, reason, after, most, dry_run);
end
$$;

-- A tenant that leaves: everything of it goes, batch by batch; what remains is its row without a name, the totals of what
-- it sent (tally_total, for the bill) and the record of what operators did, without its objects and reasons.

-- The tables that hold a tenant's rows, partitions one by one. From the catalogue, so that a table that is new to pgmail is
-- emptied too. The queue goes first and by its own rules, dead letters next.
create or replace function pgmail.tables_of_tenants() returns setof regclass
language sql stable
as $$
  select c.oid::regclass from pg_class c
  where c.relnamespace = 'pgmail'::regnamespace and c.relkind = 'r'
    and c.relname not in ('tally', 'tally_total', 'audit', 'queue', 'dead_letter', 'pause', 'tenant')
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
  order by c.relispartition, c.relname
$$;

-- One step of it, of p_most rows at most. The first shuts the door: the tenant is suspended, its keys and roles speak for
-- nobody. Refused where mail is queued or dead (mail_waits) unless p_discard gives it up; what is being sent this moment is
-- left to a later step. Call it until `done`.
-- Answers {"tenant": its id, "discarded", "deleted", "sending", "done"}.
create or replace function pgmail.erase_tenant(p_name text, p_reason text, p_discard boolean default false, p_most integer default 5000)
returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare
  t integer := pgmail.tenant_named(p_name); part regclass; discarded_ integer := 0; n integer; leased integer; gone_ text;
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 100000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 100,000'); end if;
  if exists (select from pgmail.database_role r where r.role_name = session_user and r.tenant_id = t) then
    perform pgmail.refuse('own_tenant', '/name', 'the role that you are speaks for this tenant; erase it as another one', 409);
  end if;
  if not p_discard and (exists (select from pgmail.queue q where q.tenant_id = t) or exists (select from pgmail.dead_letter d where d.tenant_id = t)) then
    perform pgmail.refuse('mail_waits', '/name', format('the tenant %s has mail that waits or is dead; give it up with it (discard), or send it first', p_name), 409);
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || t, 0));

  if not exists (select from pgmail.pause p where p.tenant_id = t and p.scope = 'tenant' and p.reason = 'it is being erased') then
    perform pgmail.record_act(t, 'tenant.erase', 'tenant ' || t, p_reason);
    insert into pgmail.pause (tenant_id, scope, name, reason, paused_by) values (t, 'tenant', p_name, 'it is being erased', pgmail.actor())
    on conflict (tenant_id, scope, name) do update set reason = excluded.reason, paused_at = pgmail.now(), paused_by = excluded.paused_by;
  end if;
  update pgmail.database_role r set tenant_id = null where r.tenant_id = t;   -- as revoke_tenant, and for its reason
  delete from pgmail.api_key k where k.tenant_id = t;

  with free as materialized (
    select q.id, q.message_id from pgmail.queue q
    where q.tenant_id = t and q.leased_by is null order by q.id limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select coalesce(g.stream, 'unknown') as stream from free left join lateral (
      select x.stream from pgmail.message x where x.tenant_id = t and x.id = free.message_id limit 1) g on true
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, f.stream, 'cancelled', count(*) from facts f group by f.stream
  )
  select count(*) into discarded_ from facts;
  with gone as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (array(
      select x.recipient_id from pgmail.dead_letter x where x.tenant_id = t order by x.recipient_id limit p_most for update skip locked))
    returning d.stream
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, g.stream, k.kind, k.sign * count(*)
    from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
  )
  select count(*) into n from gone;
  discarded_ := discarded_ + n;
  select count(*) into leased from pgmail.queue q where q.tenant_id = t and q.leased_by is not null;
  if discarded_ > 0 or exists (select from pgmail.queue q where q.tenant_id = t)
     or exists (select from pgmail.dead_letter d where d.tenant_id = t) then
    return jsonb_build_object('tenant', t, 'discarded', discarded_, 'deleted', 0, 'sending', leased, 'done', false);
  end if;

  -- By place in the partition: a tenant's rows are found by the key, which its id leads.
  for part in select x from pgmail.tables_of_tenants() x loop
    execute format('delete from %s d where d.ctid = any (array(select x.ctid from %s x where x.tenant_id = $1 limit $2))', part, part)
      using t, p_most;
    get diagnostics n = row_count;
    if n > 0 then
      return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', n, 'sending', 0, 'done', false);
    end if;
  end loop;

  delete from pgmail.limits l where l.scope = 'tenant' and l.name = p_name;
  delete from pgmail.bucket b where b.scope = 'tenant' and b.name = p_name;
  delete from pgmail.permit h where h.scope = 'tenant' and h.name = p_name;
  gone_ := 'erased-' || t;
  -- It stays suspended: a transaction that handed mail over before may commit it only now, and nobody is left to want it.
  -- Another call, by the name that it has from now on, erases that too.
  delete from pgmail.pause p where p.tenant_id = t and p.scope <> 'tenant';
  update pgmail.pause p set name = gone_, reason = 'it was erased' where p.tenant_id = t;
  update pgmail.tenant x set name = gone_ where x.id = t;
  update pgmail.audit a set object = null, reason = null where a.tenant_id = t and a.action <> 'tenant.erase';
  perform pgmail.record_act(t, 'tenant.erased', gone_, null);
  return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', 0, 'sending', 0, 'done', true);
end
$$;

-- What an analyst of one tenant sees in psql and BI tools: views of its own rows. Not the tables: under row-level security
-- the planner still estimates from the statistics of all tenants' rows, and EXPLAIN shows its estimates, so that
-- `where address < 'm'` would tell bit by bit who else writes to whom. Here nothing is estimated by a column (`security_barrier`
-- keeps the planner from the statistics behind it) and no condition goes further in than the tenant's own (`offset 0`).
-- A condition is tested on each row of the tenant: for one email there are status, trace and why, which use ids.
-- Content is in three views of their own, which pgmail tenant role --content grants.
-- A view holds on to columns: none is made while the schema is of an older revision.
do $do$
begin
  if (select v.version from pgmail.schema_version v) < 4 then return; end if;

  create or replace view pgmail.my_message with (security_barrier = true) as
  select id, created_at, created_by, stream, priority, mode, sender, recipients, scheduled_at, expires_at, template, template_version,
    size_bytes, tags, metadata, replay_of, idempotency_key
  from pgmail.message where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_recipient with (security_barrier = true) as
  select id, message_id, position, role, address, rcpt, name, site
  from pgmail.recipient where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_queue with (security_barrier = true) as
  select id, message_id, pgmail.state_of(null, false, true, leased_by is not null, due_at, wait, pgmail.now()) as state,
    case when due_at = 'infinity' then held_due_at else due_at end as due_at, leased_at, attempts, hold_reason, in_doubt, expires_at
  from pgmail.queue where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_event with (security_barrier = true) as
  select recipient_id, id, message_id, at, type, attempt, code, enhanced, reply, phase, site, relay, remote_host, tls, ms, detail
  from pgmail.event where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_outcome with (security_barrier = true) as
  select recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason, relay, remote_host
  from pgmail.outcome where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_dead_letter with (security_barrier = true) as
  select recipient_id, message_id, stream, priority, site, died_at, reason, error, attempts, code, enhanced, reply, expires_at
  from pgmail.dead_letter where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_suppression with (security_barrier = true) as
  select address, stream, reason, source, created_at, created_by, expires_at
  from pgmail.suppression where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_stream with (security_barrier = true) as
  select name, priority, relay, on_doubt, trace, max_attempts, max_age_seconds, max_queued, suppress_bounced, keep_content_days, created_at
  from pgmail.stream where tenant_id = (select pgmail.current_tenant()) offset 0;

  -- Totals since the beginning, kept when mail is past its retention: enqueued and the final states.
  create or replace view pgmail.my_total with (security_barrier = true) as
  select stream, kind, sum(n)::bigint as n from (
    select stream, kind, n from pgmail.tally where tenant_id = (select pgmail.current_tenant())
    union all
    select stream, kind, n from pgmail.tally_total where tenant_id = (select pgmail.current_tenant())) t
  group by stream, kind offset 0;

  -- Content: only to analysts to whom it was granted. With a key_id it is sealed, and says nothing here.
  create or replace view pgmail.my_content with (security_barrier = true) as
  select id as message_id, content, key_id from pgmail.message where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_attachment with (security_barrier = true) as
  select message_id, position, filename, content_type, content_id, asset, size_bytes, body, key_id
  from pgmail.attachment where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_variables with (security_barrier = true) as
  select id as recipient_id, message_id, variables, key_id from pgmail.recipient where tenant_id = (select pgmail.current_tenant()) offset 0;
end
$do$;

-- Keys of the HTTP API: who holds one may do what its scopes say, within its limits. A key's SHA-256 is stored, never the
-- key. Making, listing, rotating and revoking is for the admin's role, and for the API's only while it acts for a living key
-- with the scope admin; then nothing is given or touched that has more than that key has.

-- The key that the API acts for. It is believed from roles that carry tenants only; all others have none.
create or replace function pgmail.current_key() returns uuid
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select nullif(current_setting('pgmail.key', true), '')::uuid
  from pgmail.database_role r where r.role_name = session_user and r.carries_tenant
$$;

-- The living admin key behind the API's request, looked up anew; a row of nulls for roles that need none.
create or replace function pgmail.acting_admin() returns pgmail.api_key
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare k pgmail.api_key;
begin
  if not exists (select from pgmail.database_role r where r.role_name = session_user and r.carries_tenant) then return k; end if;
  select * into k from pgmail.api_key x
   where x.tenant_id = pgmail.need_tenant() and x.id = pgmail.current_key() and x.revoked_at is null
     and (x.expires_at is null or x.expires_at > pgmail.now()) and 'admin' = any (x.scopes);
  if k.id is null then perform pgmail.refuse('missing_scope', '', 'this takes a key with the scope admin', 403); end if;
  return k;
end
$$;

-- Whether one of these domains, *.example.com among them, holds a domain, or all that a wildcard means.
create or replace function pgmail.covers_domain(p_domains text[], p_domain text) returns boolean
language sql immutable parallel safe
as $$
  select exists (select from unnest(p_domains) d
                 where d = p_domain or left(d, 2) = '*.' and right(p_domain, length(d) - 1) = substr(d, 2))
$$;

-- Refuses a key that has more than its maker; a maker of nulls has everything.
create or replace function pgmail.need_within(k pgmail.api_key, maker pgmail.api_key) returns void
language plpgsql stable
as $$
declare f text;
begin
  if maker.id is null then return; end if;
  f := case
    when maker.test and not k.test then '/test'
    when maker.streams is not null and not coalesce(k.streams <@ maker.streams, false) then '/streams'
    when maker.from_domains is not null and (k.from_domains is null
      or exists (select from unnest(k.from_domains) d where not pgmail.covers_domain(maker.from_domains, d))) then '/from_domains'
    when maker.networks is not null and (k.networks is null
      or exists (select from unnest(k.networks) n where not n <<= any (maker.networks))) then '/networks'
    when maker.expires_at is not null and (k.expires_at is null or k.expires_at > maker.expires_at) then '/expires_at'
  end;
  if f is not null then perform pgmail.refuse('exceeds_key', f, 'this would be more than the key that asks has', 403); end if;
end
$$;

-- Fills the limits of a key in from JSON: scopes, test, streams, from_domains, networks, expires_at. What is left out is
-- null, and false for test.
create or replace function pgmail.key_limits(k pgmail.api_key, p jsonb) returns pgmail.api_key
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare f text; v jsonb; i integer; x text; xs text[]; n cidr;
begin
  if jsonb_typeof(p) is distinct from 'object' then perform pgmail.refuse('invalid_body', '', 'the limits of a key are a JSON object'); end if;
  k.test := false;
  for f, v in select key, value from jsonb_each(p) order by key collate "C" loop
    if f not in ('scopes', 'test', 'streams', 'from_domains', 'networks', 'expires_at') then
      perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(f), 'no such key');
    end if;
    if jsonb_typeof(v) = 'null' then continue; end if;
    if f = 'test' then
      if jsonb_typeof(v) <> 'boolean' then perform pgmail.refuse('invalid_field', '/test', 'must be true or false'); end if;
      k.test := v::boolean;
      continue;
    elsif f = 'expires_at' then
      begin
        k.expires_at := (v #>> '{}')::timestamptz;
      exception when others then
        perform pgmail.refuse('invalid_time', '/expires_at', 'must be a moment');
      end;
      if not isfinite(k.expires_at) then perform pgmail.refuse('invalid_time', '/expires_at', 'must be a moment'); end if;
      if k.expires_at <= pgmail.now() then perform pgmail.refuse('time_in_past', '/expires_at', 'it has passed'); end if;
      continue;
    end if;
    if jsonb_typeof(v) <> 'array' or jsonb_array_length(v) not between 1 and 100
       or exists (select from jsonb_array_elements(v) e where jsonb_typeof(e) <> 'string') then
      perform pgmail.refuse('invalid_field', '/' || f, 'must be an array of 1 to 100 strings, or left out');
    end if;
    xs := array(select distinct lower(e) from jsonb_array_elements_text(v) e order by 1);
    for x, i in select e, o - 1 from jsonb_array_elements_text(v) with ordinality u(e, o) loop
      if f = 'scopes' and x not in ('send', 'read', 'manage', 'admin') then
        perform pgmail.refuse('unknown_scope', '/scopes/' || i, 'must be send, read, manage or admin');
      elsif f = 'streams' and not exists (select from pgmail.stream s where s.tenant_id = k.tenant_id and s.name = x) then
        perform pgmail.refuse('unknown_stream', '/streams/' || i, format('no stream is named %L', left(x, 63)));
      elsif f = 'from_domains' and (octet_length(x) > 255 or lower(x) !~
          '^(\*\.)?([a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?\.)+[a-z]([a-z0-9-]{0,61}[a-z0-9])?$') then
        perform pgmail.refuse('invalid_domain', '/from_domains/' || i, 'must be a domain in ASCII (A-labels), or *. and one');
      elsif f = 'networks' then
        begin
          n := x::cidr;
        exception when others then
          perform pgmail.refuse('invalid_network', '/networks/' || i, 'must be a network such as 192.0.2.0/24, without bits beyond its length');
        end;
      end if;
    end loop;
    case f
      when 'scopes' then k.scopes := xs;
      when 'streams' then k.streams := array(select distinct e from jsonb_array_elements_text(v) e order by 1);
      when 'from_domains' then k.from_domains := xs;
      when 'networks' then k.networks := array(select distinct e::cidr from unnest(xs) e order by 1);
    end case;
  end loop;
  return k;
end
$$;

-- A new key within limits (key_limits); answers it. Without scopes it has send, read and manage, one for tests only send. What the asking key is limited to and the new one says nothing of,
-- the new one has from it.
create or replace function pgmail.make_key(p_name text, p_hint text, p_hash bytea, p_limits jsonb)
returns table (id uuid, scopes text[], test boolean, streams text[], from_domains text[], networks text[], expires_at timestamptz)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare maker pgmail.api_key := pgmail.acting_admin(); k pgmail.api_key;
begin
  k.tenant_id := pgmail.need_tenant();
  if p_name is null or btrim(p_name) = '' or octet_length(p_name) > 200 or pgmail.has_control(p_name) then
    perform pgmail.refuse('invalid_name', '/name', 'must say in 1 to 200 octets who uses the key');
  end if;
  if octet_length(p_hash) is distinct from 32 or p_hint is null then
    perform pgmail.refuse('invalid_key', '', 'a key is stored by its SHA-256 and its first characters');
  end if;
  k := pgmail.key_limits(k, p_limits);
  k.test := k.test or coalesce(maker.test, false);
  -- A key for tests lies in more places, and is guarded less, than one that mail goes out by.
  k.scopes := coalesce(k.scopes, case when k.test then '{send}'::text[] else '{send,read,manage}' end);
  k.streams := coalesce(k.streams, maker.streams);
  k.from_domains := coalesce(k.from_domains, maker.from_domains);
  k.networks := coalesce(k.networks, maker.networks);
  k.expires_at := coalesce(k.expires_at, maker.expires_at);
  perform pgmail.need_within(k, maker);
  if starts_with(p_hint, 'pgm_test_') is distinct from k.test then
    perform pgmail.refuse('invalid_key', '/test', 'keys for tests begin with pgm_test_, and no others do');
  end if;
  insert into pgmail.api_key as a (tenant_id, name, hint, hash, created_by, scopes, test, streams, from_domains, networks, expires_at)
  values (k.tenant_id, p_name, p_hint, p_hash, pgmail.actor(), k.scopes, k.test, k.streams, k.from_domains, k.networks, k.expires_at)
  returning a.id into k.id;
  perform pgmail.record_act(k.tenant_id, 'key.create', k.id::text, p_name || ': ' || array_to_string(k.scopes, ', '));
  return query select k.id, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[], k.expires_at;
end
$$;

-- A key without limits that may do all but what the scope admin is for, as programs of before ask for one.
create or replace function pgmail.create_key(p_name text, p_hint text, p_hash bytea) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); i uuid;
begin
  insert into pgmail.api_key (tenant_id, name, hint, hash, created_by) values (t, p_name, p_hint, p_hash, pgmail.actor()) returning id into i;
  perform pgmail.record_act(t, 'key.create', i::text, p_name);
  return i;
end
$$;

-- A key of the caller's tenant that is valid, locked, and within what the asking key has; else not_found.
create or replace function pgmail.need_key(p_id uuid) returns pgmail.api_key
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare maker pgmail.api_key := pgmail.acting_admin(); k pgmail.api_key; like_k pgmail.api_key;
begin
  select * into k from pgmail.api_key x
   where x.tenant_id = pgmail.need_tenant() and x.id = p_id and x.revoked_at is null
     and (x.expires_at is null or x.expires_at > pgmail.now()) for update;
  if k.id is not null then
    like_k := k;
    like_k.expires_at := maker.expires_at;   -- one may end or replace a key that would have outlived one's own
    begin
      perform pgmail.need_within(like_k, maker);
      return k;
    exception when sqlstate 'PM403' then null;   -- as list_keys does not show it either
    end;
  end if;
  perform pgmail.refuse('not_found', '/id', format('no valid key has the id %s', p_id), 404);
end
$$;

-- A second key with the limits of the first, which ends after the overlap. A key that expires is followed by one that lives
-- as long as it was to live, at most as long as the asking key.
create or replace function pgmail.rotate_key(p_id uuid, p_hint text, p_hash bytea, p_overlap interval, p_reason text default null)
returns table (id uuid, name text, scopes text[], test boolean, streams text[], from_domains text[], networks text[],
               expires_at timestamptz, old_expires_at timestamptz)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare k pgmail.api_key := pgmail.need_key(p_id); maker pgmail.api_key := pgmail.acting_admin(); made uuid; ends timestamptz;
begin
  if k.replaced_by is not null then
    perform pgmail.refuse('already_rotated', '/id', format('the key %s has replaced it', k.replaced_by), 409);
  end if;
  if p_overlap is null or p_overlap not between interval '0' and interval '366 days' then
    perform pgmail.refuse('invalid_field', '/overlap', 'must be from 0 to 366 days');
  end if;
  if octet_length(p_hash) is distinct from 32 or starts_with(p_hint, 'pgm_test_') is distinct from k.test then
    perform pgmail.refuse('invalid_key', '', 'a key is stored by its SHA-256 and its first characters; those for tests begin with pgm_test_');
  end if;
  ends := least(pgmail.now() + (k.expires_at - k.created_at), maker.expires_at);
  insert into pgmail.api_key as a (tenant_id, name, hint, hash, created_by, scopes, test, streams, from_domains, networks, expires_at, family)
  values (k.tenant_id, k.name, p_hint, p_hash, pgmail.actor(), k.scopes, k.test, k.streams, k.from_domains, k.networks, ends,
    coalesce(k.family, k.id))
  returning a.id into made;
  update pgmail.api_key x set replaced_by = made, expires_at = least(x.expires_at, pgmail.now() + p_overlap)
   where x.tenant_id = k.tenant_id and x.id = k.id
  returning x.expires_at into k.expires_at;
  perform pgmail.record_act(k.tenant_id, 'key.rotate', k.id::text,
    concat_ws(': ', format('%s follows it, it ends %s', made, k.expires_at), p_reason));
  return query select made, k.name, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[], ends, k.expires_at;
end
$$;

-- Ends a key at once; false if none is valid under this id.
create or replace function pgmail.revoke_key(p_id uuid, p_reason text default null) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare k pgmail.api_key;
begin
  begin
    k := pgmail.need_key(p_id);
  exception when sqlstate 'PM404' then
    return false;
  end;
  update pgmail.api_key x set revoked_at = pgmail.now() where x.tenant_id = k.tenant_id and x.id = k.id;
  perform pgmail.record_act(k.tenant_id, 'key.revoke', p_id::text, p_reason);
  return true;
end
$$;

-- All keys of the caller's tenant, oldest first, those that ended too; an asking key sees none that has more than it has.
create or replace function pgmail.list_keys()
returns table (id uuid, name text, hint text, created_at timestamptz, created_by text, revoked_at timestamptz, scopes text[],
               test boolean, streams text[], from_domains text[], networks text[], expires_at timestamptz, replaced_by uuid,
               last_used_at timestamptz, last_used_from text)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
declare maker pgmail.api_key := pgmail.acting_admin();
begin
  return query
  select k.id, k.name, k.hint, k.created_at, k.created_by, k.revoked_at, k.scopes, k.test, k.streams, k.from_domains,
    k.networks::text[], k.expires_at, k.replaced_by, k.last_used_at, host(k.last_used_from)
  from pgmail.api_key k
  where k.tenant_id = pgmail.need_tenant()
    and (maker.id is null or k.id = maker.id or (
      (k.test or not maker.test)
      and (maker.streams is null or k.streams <@ maker.streams)
      and (maker.from_domains is null or k.from_domains is not null
        and not exists (select from unnest(k.from_domains) d where not pgmail.covers_domain(maker.from_domains, d)))
      and (maker.networks is null or k.networks is not null
        and not exists (select from unnest(k.networks) n where not n <<= any (maker.networks)))))
  order by k.created_at, k.id;
end
$$;

-- Whose key has this hash, and what it may: the one look-up that comes before the tenant is known. seconds_left: until it
-- expires, by this server's clock.
create or replace function pgmail.check_key_v2(p_hash bytea)
returns table (tenant_id integer, key_id uuid, name text, hash bytea, scopes text[], test boolean, streams text[],
               from_domains text[], networks text[], seconds_left double precision)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select k.tenant_id, k.id, k.name, k.hash, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[],
    extract(epoch from k.expires_at - pgmail.now())::double precision
  from pgmail.api_key k
  where k.hash = p_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
$$;

-- The same for API processes of before, which know no limits: keys that have some are unknown to them.
create or replace function pgmail.check_key_v1(p_hash bytea) returns table (tenant_id integer, key_id uuid, name text)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select k.tenant_id, k.id, k.name from pgmail.api_key k
  where k.hash = p_hash and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
    and not k.test and k.scopes @> '{send,read,manage}' and num_nonnulls(k.streams, k.from_domains, k.networks) = 0
$$;

-- When keys were used last, and from where; p_ages are seconds since. What another process writes this moment is left to it.
create or replace function pgmail.note_keys_v1(p_tenants integer[], p_keys uuid[], p_from inet[], p_ages double precision[]) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  with free as materialized (
    select k.tenant_id, k.id, u.origin, pgmail.now() - u.age * interval '1 second' as at
    from unnest(p_tenants, p_keys, p_from, p_ages) u(tenant, key, origin, age)
    join pgmail.api_key k on k.tenant_id = u.tenant and k.id = u.key
    where k.last_used_at is null or k.last_used_at < pgmail.now() - u.age * interval '1 second' - interval '30 seconds'
    order by k.tenant_id, k.id for update of k skip locked
  )
  update pgmail.api_key k set last_used_at = f.at, last_used_from = coalesce(f.origin, k.last_used_from)
  from free f where k.tenant_id = f.tenant_id and k.id = f.id
$$;

-- Somebody tries keys that are none: a row in the audit for each burst, of no tenant.
create or replace function pgmail.note_guesses_v1(p_from text, p_tries integer) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select pgmail.record_act(null, 'key.guess', left(p_from, 64), format('%s tries with keys that are none', p_tries))
$$;

-- The stream of each of these emails or recipients, whether the asking key, or one that it follows by rotation, handed it
-- over, and whether it is a test. What is unknown has no row.
do $$
begin
  -- A function that answers fewer columns cannot be replaced; grants come after the functions.
  if not exists (select from pg_proc p where p.oid = to_regprocedure('pgmail.reach_v1(uuid[])') and 'test' = any (p.proargnames)) then
    drop function if exists pgmail.reach_v1(uuid[]);
  end if;
end
$$;
create or replace function pgmail.reach_v1(p_ids uuid[]) returns table (id uuid, stream text, own boolean, test boolean)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); mine uuid[];
begin
  -- Backwards only: a key that leaked, and was rotated for it, does not reach what its follower sends.
  mine := array(with recursive line(id) as (
                  select pgmail.current_key() union select f.id from line l join pgmail.api_key f on f.tenant_id = t and f.replaced_by = l.id)
                select l.id from line l where l.id is not null);
  return query
  select i, m.stream, coalesce(m.api_key = any (mine), false), m.test
  from unnest(p_ids) i
  cross join lateral (
    select i as message_id
    union all
    select x.message_id from pgmail.recipient x where x.tenant_id = t and x.id = i
  ) r
  join pgmail.message m on m.tenant_id = t and m.id = r.message_id;
end
$$;

-- What a tenant keeps beside its mail: templates, assets, streams. All act as the caller's tenant.

-- Saves a new version of a template, as a draft or published. required and depends come from the compiler of the
-- Python ways in, which checked the source.
create or replace function pgmail.save_template(
  p_name text, p_subject text, p_text text, p_html text, p_required text[], p_depends jsonb, p_publish boolean
) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); v integer;
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if p_text is null and p_html is null then perform pgmail.refuse('missing_field', '/text', 'text or html is required'); end if;
  if octet_length(p_subject) > 16384 then perform pgmail.refuse('too_large', '/subject', 'more than 16,384 octets', 413); end if;
  if octet_length(p_text) > 1048576 then perform pgmail.refuse('too_large', '/text', 'more than 1,048,576 octets', 413); end if;
  if octet_length(p_html) > 1048576 then perform pgmail.refuse('too_large', '/html', 'more than 1,048,576 octets', 413); end if;
  -- Two people saving at once get two versions, not a fault.
  perform pg_advisory_xact_lock(hashtextextended('pgmail.template/' || t || '/' || p_name, 0));
  select coalesce(max(x.version), 0) + 1 into v from pgmail.template x where x.tenant_id = t and x.name = p_name;
  insert into pgmail.template (tenant_id, name, version, state, subject, body_text, body_html, required, depends, created_by, published_at)
  values (t, p_name, v, case when p_publish then 'published' else 'draft' end, p_subject, p_text, p_html,
    p_required, p_depends, pgmail.actor(), case when p_publish then pgmail.now() end);
  perform pgmail.record_act(t, 'template.save', p_name || ' v' || v, case when p_publish then 'published' end);
  return v;
end
$$;

create or replace function pgmail.publish_template(p_name text, p_version integer, p_required text[], p_depends jsonb) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant();
begin
  update pgmail.template x set state = 'published', required = p_required, depends = p_depends,
    published_at = coalesce(x.published_at, pgmail.now())
  where x.tenant_id = t and x.name = p_name and x.version = p_version;
  if not found then
    perform pgmail.refuse('unknown_template', '/name', format('no template %L in version %s', p_name, p_version), 404);
  end if;
  perform pgmail.record_act(t, 'template.publish', p_name || ' v' || p_version, null);
end
$$;

create or replace function pgmail.save_asset(p_name text, p_filename text, p_content_type text, p_body bytea) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant();
begin
  if p_name !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 128 of A-Z a-z 0-9 _ . -, led by a letter or digit');
  end if;
  if octet_length(p_body) > 26214400 then perform pgmail.refuse('too_large', '/content', 'more than 26,214,400 octets', 413); end if;
  if pgmail.has_control(p_filename) or pgmail.has_control(p_content_type) or pgmail.has_bidi(p_filename) then
    perform pgmail.refuse('invalid_attachment', '/filename', 'has a control character, or a mark that turns the direction of the text');
  end if;
  insert into pgmail.asset as a (tenant_id, name, filename, content_type, size_bytes, body, created_by)
  values (t, p_name, p_filename, p_content_type, octet_length(p_body), p_body, pgmail.actor())
  on conflict (tenant_id, name) do update set filename = excluded.filename, content_type = excluded.content_type,
    size_bytes = excluded.size_bytes, body = excluded.body, created_at = pgmail.now(), created_by = excluded.created_by;
  perform pgmail.record_act(t, 'asset.save', p_name, null);
end
$$;

-- What a stream's key `relay` says: a name, several in the order in which they are tried, or objects of name and weight.
create or replace function pgmail.read_relays(p_relay jsonb, out names text[], out weights real[])
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare x jsonb; i integer := 0; n integer; field text := '/relay'; weighted boolean;
begin
  if jsonb_typeof(p_relay) = 'string' then p_relay := jsonb_build_array(p_relay); else field := '/relay/0'; end if;
  if jsonb_typeof(p_relay) is distinct from 'array' or jsonb_array_length(p_relay) not between 1 and 16 then
    perform pgmail.refuse('invalid_relay', '/relay', 'must be the name of a relay, or 1 to 16 of them in an array');
  end if;
  n := jsonb_array_length(p_relay);
  names := '{}'; weights := '{}';
  for x in select * from jsonb_array_elements(p_relay) loop
    if n > 1 or field <> '/relay' then field := '/relay/' || i; end if;
    weighted := jsonb_typeof(x) = 'object';
    if weighted is distinct from (jsonb_typeof(p_relay->0) = 'object') or not weighted and jsonb_typeof(x) <> 'string' then
      perform pgmail.refuse('invalid_relay', field, 'must be the name of a relay, or all of them objects of name and weight');
    elsif weighted and (jsonb_typeof(x->'name') is distinct from 'string' or jsonb_typeof(x->'weight') is distinct from 'number'
                        or exists (select from jsonb_object_keys(x) y where y not in ('name', 'weight'))) then
      perform pgmail.refuse('invalid_relay', field, 'must be an object of name and weight');
    elsif weighted and not ((x->>'weight')::numeric >= 0.001 and (x->>'weight')::numeric <= 1000) then
      perform pgmail.refuse('invalid_relay', field || '/weight', 'must be from 0.001 to 1000');
    end if;
    names := names || case when weighted then x->>'name' else x#>>'{}' end;
    if weighted then weights := weights || (x->>'weight')::real; end if;
    i := i + 1;
    if names[i] = any (names[:i - 1]) then
      perform pgmail.refuse('invalid_relay', field, format('relay %L comes twice', left(names[i], 63)));
    elsif not exists (select from pgmail.relay r where r.name = names[i]) then
      perform pgmail.refuse('unknown_relay', field, format(
        'no relay is named %L; a worker that has it in PGMAIL_RELAY_URLS must have started once', left(names[i], 63)));
    end if;
  end loop;
  if cardinality(weights) = 0 then weights := null; end if;
end
$$;

-- Creates a stream or changes what is named; keys as the columns of pgmail.stream, and relay as read_relays has it.
create or replace function pgmail.save_stream(p_name text, p_settings jsonb) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); s pgmail.stream; k text; named text[]; weighed real[];
begin
  if p_name !~ '^[a-z0-9][a-z0-9_-]{0,62}$' then
    perform pgmail.refuse('invalid_name', '/name', 'must be 1 to 63 of a-z 0-9 _ -, led by a letter or digit');
  end if;
  if jsonb_typeof(p_settings) is distinct from 'object' then
    perform pgmail.refuse('invalid_body', '', 'the settings of a stream are a JSON object');
  end if;
  select min(x collate "C") into k from jsonb_object_keys(p_settings) x
   where x <> all (array['priority', 'relay', 'on_doubt', 'trace', 'retry_base_seconds', 'retry_factor', 'retry_cap_seconds',
     'retry_jitter', 'max_attempts', 'max_age_seconds', 'max_queued', 'keep_content_days', 'suppress_bounced', 'seal']);
  if k is not null then perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(k), 'no such key'); end if;
  if p_settings ? 'relay' then
    select x.names, x.weights into named, weighed from pgmail.read_relays(p_settings->'relay') x;
  end if;
  insert into pgmail.stream (tenant_id, name) values (t, p_name) on conflict do nothing;
  select * into s from pgmail.stream x where x.tenant_id = t and x.name = p_name for update;
  begin
    s := jsonb_populate_record(s, p_settings - 'relay');
    if named is not null then
      s.relay := named[1];
      s.relays := case when cardinality(named) > 1 then named end;
      s.relay_weights := case when cardinality(named) > 1 then weighed end;
    end if;
    update pgmail.stream x set priority = s.priority, relay = s.relay, relays = s.relays, relay_weights = s.relay_weights, on_doubt = s.on_doubt, trace = s.trace,
      retry_base_seconds = s.retry_base_seconds, retry_factor = s.retry_factor, retry_cap_seconds = s.retry_cap_seconds,
      retry_jitter = s.retry_jitter, max_attempts = s.max_attempts, max_age_seconds = s.max_age_seconds, max_queued = s.max_queued,
      keep_content_days = s.keep_content_days, suppress_bounced = s.suppress_bounced, seal = s.seal
    where x.tenant_id = t and x.name = p_name;
  exception
    when check_violation or not_null_violation or invalid_text_representation or numeric_value_out_of_range then
      perform pgmail.refuse('invalid_stream', '/' || coalesce((select min(x) from jsonb_object_keys(p_settings) x), 'name'), sqlerrm);
  end;
  perform pgmail.record_act(t, 'stream.save', p_name, p_settings::text);
end
$$;

-- Who gets no mail: added, taken back, imported. An entry is (address, stream); stream '' is every stream. Mail to it is
-- settled as suppressed when it is enqueued (040) and again before it is sent (queries/work.sql), whatever it waited for.

-- One entry; one that is there is replaced. Answers the address in its normal form.
create or replace function pgmail.suppress(
  p_address text, p_reason text default 'manual', p_source text default null, p_stream text default '',
  p_expires_at timestamptz default null
) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address); f record;
begin
  select * into f from pgmail.suppression_fault(t, a.fault, p_reason, p_source, coalesce(p_stream, ''), p_expires_at);
  if f.code is not null then perform pgmail.refuse(f.code, f.field, f.message); end if;
  insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by, expires_at)
  values (t, a.address, coalesce(p_stream, ''), p_reason, p_source, pgmail.actor(), p_expires_at)
  on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
    created_at = pgmail.now(), created_by = excluded.created_by, expires_at = excluded.expires_at;
  perform pgmail.record_act(t, 'suppression.add', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return a.address;
end
$$;

-- Whether the address was suppressed on this stream.
create or replace function pgmail.unsuppress(p_address text, p_stream text default '', p_reason text default null) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address);
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  delete from pgmail.suppression s where s.tenant_id = t and s.address = a.address and s.stream = coalesce(p_stream, '');
  if not found then return false; end if;
  perform pgmail.record_act(t, 'suppression.remove', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return true;
end
$$;

-- What is wrong with an entry, if anything; p_fault is what parsing its address found.
create or replace function pgmail.suppression_fault(
  p_tenant integer, p_fault text, p_reason text, p_source text, p_stream text, p_expires_at timestamptz,
  out code text, out field text, out message text
)
language plpgsql stable
as $$
begin
  if p_fault is not null then
    code := 'invalid_address'; field := '/address'; message := p_fault;
  elsif p_reason is null or p_reason not in ('bounced', 'complained', 'unsubscribed', 'manual', 'invalid') then
    code := 'invalid_reason'; field := '/reason'; message := 'must be bounced, complained, unsubscribed, manual or invalid';
  elsif p_stream <> '' and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = p_stream) then
    code := 'unknown_stream'; field := '/stream'; message := format('no stream is named %L', left(p_stream, 63));
  elsif length(p_source) > 1000 then
    code := 'invalid_source'; field := '/source'; message := 'longer than 1,000 characters';
  elsif p_expires_at <= pgmail.now() then
    code := 'time_in_past'; field := '/expires_at'; message := 'it has passed';
  elsif p_expires_at > pgmail.now() + interval '100 years' then
    code := 'time_too_far'; field := '/expires_at'; message := 'lies more than 100 years ahead; leave it out for ever';
  end if;
end
$$;

-- Many entries, in one statement: up to 10,000, as arrays of one length (p_created may hold nulls: now). What is there
-- already with the same reason, source and expiry is left as it is, so that a file imported again changes nothing; of two
-- rows for one entry the later one counts. p_strict: the first fault refuses them all, its field led by the position;
-- otherwise faults are answered and the rest is stored. p_store false only says what would happen.
-- One import is one audit row, however many calls it takes: give the audit of the first answer to the next ones.
create or replace function pgmail.suppress_many(
  p_addresses text[], p_streams text[], p_reasons text[], p_sources text[], p_created timestamptz[], p_expires timestamptz[],
  p_strict boolean default true, p_store boolean default true, p_audit bigint default null,
  out audit bigint, out added integer, out changed integer, out unchanged integer, out faults jsonb, out entries jsonb
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); who text := pgmail.actor(); now_ timestamptz := pgmail.now(); bad jsonb;
begin
  if cardinality(p_addresses) > 10000 then perform pgmail.refuse('batch_too_large', '', 'at most 10,000 entries at once', 413); end if;
  with given as materialized (
    select u.n - 1 as position, pgmail.parse_address(u.address) as a, coalesce(u.stream, '') as stream, u.reason, u.source,
      least(coalesce(u.created, now_), now_) as created, u.expires
    from unnest(p_addresses, p_streams, p_reasons, p_sources, p_created, p_expires)
      with ordinality u(address, stream, reason, source, created, expires, n)
  ), judged as materialized (
    select g.position, (g.a).address as address, g.stream, g.reason, g.source, g.created, g.expires, f.code, f.field, f.message
    from given g cross join lateral pgmail.suppression_fault(t, (g.a).fault, g.reason, g.source, g.stream, g.expires) f
  ), fresh as materialized (
    select distinct on (j.address, j.stream) j.* from judged j where j.code is null
    order by j.address, j.stream, j.position desc
  ), compared as materialized (
    select f.*, s.address is not null as known,
      s.address is not null and (s.reason, s.source, s.expires_at) is not distinct from (f.reason, f.source, f.expires) as same
    from fresh f left join lateral (
      select x.address, x.reason, x.source, x.expires_at from pgmail.suppression x
      where x.tenant_id = t and x.address = f.address and x.stream = f.stream limit 1) s on true
  ), stored as (
    -- In one order for all: two imports at once do not deadlock.
    insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
    select t, c.address, c.stream, c.reason, c.source, c.created, who, c.expires from compared c
    where not c.same and p_store and not (p_strict and exists (select from judged j where j.code is not null))
    order by c.address, c.stream
    on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
      created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at
  )
  select count(*) filter (where not c.known), count(*) filter (where c.known and not c.same), count(*) filter (where c.same),
    (select jsonb_agg(jsonb_build_object('position', j.position, 'code', j.code, 'field', j.field, 'message', j.message)
       order by j.position) from judged j where j.code is not null),
    jsonb_agg(jsonb_build_array(c.address, c.stream) order by c.position)
  into added, changed, unchanged, bad, entries from compared c;
  faults := coalesce(bad, '[]'); entries := coalesce(entries, '[]');
  if p_strict and bad is not null then
    perform pgmail.refuse(bad->0->>'code', '/' || (bad->0->>'position') || (bad->0->>'field'), bad->0->>'message');
  end if;
  audit := p_audit;
  if not p_store then return; end if;
  if audit is null then
    insert into pgmail.audit (tenant_id, actor, action, object, reason, source, application)
    values (t, who, 'suppression.import', '0', null, pgmail.act_source(), nullif(current_setting('application_name', true), ''))
    returning id into audit;
  end if;
  update pgmail.audit x set object = (x.object::bigint + added + changed)::text,
    reason = (select string_agg(k.reason, ', ' order by k.reason) from (
      select trim(y) as reason from string_to_table(x.reason, ',') y
      union select distinct r from unnest(p_reasons) r where r ~ '^[a-z]{1,20}$') k)
  where x.id = audit and x.tenant_id = t and x.actor = who and x.action = 'suppression.import';
  if not found then perform pgmail.refuse('not_found', '/audit', 'no such import of yours', 404); end if;
end
$$;

-- What has expired suppresses nothing any more; the leader clears it away. Answers how many.
create or replace function pgmail.purge_suppressions_v1(p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with late as materialized (
    select s.tenant_id, s.address, s.stream from pgmail.suppression s where s.expires_at <= pgmail.now()
    order by s.expires_at limit p_most for update skip locked
  )
  delete from pgmail.suppression s using late x
  where s.tenant_id = x.tenant_id and s.address = x.address and s.stream = x.stream;
  get diagnostics n = row_count;
  return n;
end
$$;

-- Data keys, which seal mail: stored wrapped (sealed) by a key-encryption key that this database never sees. The newest seals
-- new mail, all of them open what they sealed; so none is ever deleted while it may be needed.

-- A new data key for a tenant; its number. `p_first`: only where there is none yet, else the newest there is.
create or replace function pgmail.store_data_key(p_tenant integer, p_wrapped bytea, p_kek text, p_reason text, p_first boolean) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  if octet_length(p_wrapped) is distinct from 60 or p_kek is null or p_kek !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
    perform pgmail.refuse('invalid_data_key', '', 'a data key is 32 octets, wrapped, and names the key that it is wrapped by');
  end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  perform pg_advisory_xact_lock(hashtextextended('pgmail.data_key/' || p_tenant, 0));
  select max(d.id) into n from pgmail.data_key d where d.tenant_id = p_tenant;
  if n is not null and p_first then return n; end if;
  n := coalesce(n, 0) + 1;
  insert into pgmail.data_key (tenant_id, id, wrapped, kek, created_by) values (p_tenant, n, p_wrapped, p_kek, pgmail.actor());
  perform pgmail.record_act(p_tenant, 'data_key.create', n::text, coalesce(p_reason, case when p_first then 'the first of its tenant' end));
  return n;
end
$$;

-- The caller's tenant's first one, made by whatever program seals first.
create or replace function pgmail.first_data_key_v1(p_wrapped bytea, p_kek text) returns integer
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pgmail.store_data_key(pgmail.need_tenant(), p_wrapped, p_kek, null, true) $$;

-- A new one for a tenant, by name: an administrator's. New mail is sealed with it within a second.
create or replace function pgmail.add_data_key(p_tenant text, p_wrapped bytea, p_kek text, p_reason text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  select x.id into t from pgmail.tenant x where x.name = p_tenant;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  return pgmail.store_data_key(t, p_wrapped, p_kek, p_reason, false);
end
$$;

-- The same data key, wrapped by another key-encryption key. False where it is no longer wrapped as `p_was`: somebody else did it.
create or replace function pgmail.rewrap_data_key(p_tenant integer, p_id integer, p_was bytea, p_wrapped bytea, p_kek text, p_reason text)
returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  if octet_length(p_wrapped) is distinct from 60 or p_kek is null or p_kek !~ '^[A-Za-z0-9][A-Za-z0-9_.-]{0,62}$' then
    perform pgmail.refuse('invalid_data_key', '', 'a data key is 32 octets, wrapped, and names the key that it is wrapped by');
  end if;
  update pgmail.data_key d set wrapped = p_wrapped, kek = p_kek, wrapped_at = pgmail.now()
   where d.tenant_id = p_tenant and d.id = p_id and d.wrapped = p_was;
  if not found then return false; end if;
  perform pgmail.record_act(p_tenant, 'data_key.rewrap', format('%s by %s', p_id, p_kek), p_reason);
  return true;
end
$$;

-- What a program that seals for the caller's tenant must know, in one look: which streams are sealed, the keys, and what time it
-- is here, since ids that it makes must be of this time.
create or replace function pgmail.seal_state_v1(out tenant integer, out now timestamptz, out streams jsonb, out keys jsonb)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
begin
  tenant := pgmail.need_tenant(); now := clock_timestamp();
  select coalesce(jsonb_object_agg(s.name, s.seal), '{}') into streams from pgmail.stream s where s.tenant_id = tenant and s.seal <> 'off';
  -- Those of a tenant that seals nothing are not needed.
  select coalesce(jsonb_agg(jsonb_build_object('id', d.id, 'kek', d.kek, 'wrapped', encode(d.wrapped, 'base64')) order by d.id), '[]')
    into keys from pgmail.data_key d where d.tenant_id = tenant;
end
$$;

-- The domains that a tenant sends from: added with a token, verified by a TXT record that only the domain's owner can
-- publish, looked at again once a week. The look into DNS is a program's; what it means is decided here.

-- A domain of the caller's tenant, by its name or its id.
create or replace function pgmail.need_domain(p_domain text) returns pgmail.sender_domain
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); d pgmail.sender_domain;
begin
  select * into d from pgmail.sender_domain x
   where x.tenant_id = t and (x.domain = pgmail.domain_ascii(p_domain) or x.id::text = lower(p_domain));
  if not found then
    perform pgmail.refuse('not_found', '/name', format('no domain of this tenant is named %s', left(p_domain, 253)), 404);
  end if;
  return d;
end
$$;

-- Adds a domain and answers its id; one that is there already stays as it is. At most 10,000 a tenant.
create or replace function pgmail.add_domain(p_domain text) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); named text := pgmail.domain_ascii(btrim(p_domain, ' ')); i uuid;
begin
  -- _pgmail. in front has to fit into a name, too (RFC 1035, section 2.3.4).
  if named is null or length(named) > 245 then
    perform pgmail.refuse('invalid_domain', '/name', format('%L is no domain, as in example.com', left(p_domain, 253)));
  end if;
  select x.id into i from pgmail.sender_domain x where x.tenant_id = t and x.domain = named;
  if found then return i; end if;
  if (select count(*) from pgmail.sender_domain x where x.tenant_id = t) >= 10000 then
    perform pgmail.refuse('limit_reached', '/name', 'a tenant has at most 10,000 domains', 429);
  end if;
  insert into pgmail.sender_domain as d (tenant_id, domain, token, created_by)
  values (t, named, replace(gen_random_uuid()::text, '-', ''), pgmail.actor())
  on conflict (tenant_id, domain) do nothing returning d.id into i;
  if i is null then   -- another has just added it
    select x.id into i from pgmail.sender_domain x where x.tenant_id = t and x.domain = named;
    return i;
  end if;
  perform pgmail.record_act(t, 'domain.add', named, null);
  return i;
end
$$;

-- Mail from it is refused from now on, if the tenant's rule is 'verified'; what is queued still goes.
create or replace function pgmail.remove_domain(p_domain text, p_reason text default null) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare d pgmail.sender_domain := pgmail.need_domain(p_domain);
begin
  delete from pgmail.sender_domain x where x.tenant_id = d.tenant_id and x.id = d.id;
  perform pgmail.record_act(d.tenant_id, 'domain.remove', d.domain, p_reason);
  return d.id;
end
$$;

-- An operator vouches for a domain: it counts as verified, and DNS is not asked. The admin's and the owner's to call, for
-- their own tenant or one by name.
create or replace function pgmail.trust_domain(p_domain text, p_reason text, p_tenant text default null) returns uuid
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer; named text := pgmail.domain_ascii(btrim(p_domain, ' ')); i uuid;
begin
  if p_tenant is null then t := pgmail.need_tenant(); else select x.id into t from pgmail.tenant x where x.name = p_tenant; end if;
  if t is null then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  if named is null or length(named) > 245 then
    perform pgmail.refuse('invalid_domain', '/name', format('%L is no domain, as in example.com', left(p_domain, 253)));
  end if;
  if coalesce(btrim(p_reason), '') = '' then perform pgmail.refuse('missing_field', '/reason', 'say why this domain is trusted without a record'); end if;
  insert into pgmail.sender_domain as d (tenant_id, domain, token, state, created_by, verified_at, trusted_by, trust_reason)
  values (t, named, replace(gen_random_uuid()::text, '-', ''), 'verified', pgmail.actor(), pgmail.now(), pgmail.actor(), p_reason)
  on conflict (tenant_id, domain) do update set state = 'verified', verified_at = coalesce(d.verified_at, excluded.verified_at),
    missing_since = null, trusted_by = excluded.trusted_by, trust_reason = excluded.trust_reason
  returning d.id into i;
  perform pgmail.record_act(t, 'domain.trust', named, p_reason);
  return i;
end
$$;

-- What a look into DNS found: outcome 'answered' with the texts of all TXT records; 'no_record', 'no_name'; or a failure of
-- DNS itself ('server_failed', 'timed_out', 'unreachable', 'malformed'). said is for people. A verified domain without
-- its record goes on counting for 14 days, in which the doctor warns; a failure of DNS never ends a verification, for it
-- may be ours. Answers the state.
create or replace function pgmail.settle_domain(p_tenant integer, p_id uuid, p_outcome text, p_found text[], p_said text) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare d pgmail.sender_domain; now_ timestamptz := pgmail.now(); there boolean; gone boolean; new_state text;
begin
  select * into d from pgmail.sender_domain x where x.tenant_id = p_tenant and x.id = p_id for update;
  if not found then return null; end if;
  there := p_outcome = 'answered' and 'pgmail-verify=' || d.token = any (coalesce(p_found, '{}'));
  gone := p_outcome in ('answered', 'no_record', 'no_name') and not there;
  new_state := case when d.trusted_by is not null or there then 'verified'
                    when d.state = 'verified' and gone and d.missing_since < now_ - interval '14 days' then 'failed'
                    else d.state end;
  update pgmail.sender_domain x set state = new_state, checked_at = now_, answer = left(p_said, 500),
    verified_at = case new_state when 'verified' then coalesce(x.verified_at, now_) end,
    missing_since = case when not there and d.trusted_by is null and new_state <> 'pending' then coalesce(x.missing_since, now_) end
  where x.tenant_id = p_tenant and x.id = p_id;
  if new_state <> d.state then
    perform pgmail.record_act(p_tenant, case new_state when 'verified' then 'domain.verify' else 'domain.lapse' end, d.domain, left(p_said, 500));
  end if;
  return new_state;
end
$$;

-- For a domain of the caller's tenant: who verifies by hand or over HTTP.
create or replace function pgmail.domain_checked(p_id uuid, p_outcome text, p_found text[], p_said text) returns text
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pgmail.settle_domain(pgmail.need_tenant(), p_id, p_outcome, p_found, p_said) $$;

-- For one of any tenant: the leader, who looks at verified domains again.
create or replace function pgmail.domain_checked_v1(p_tenant integer, p_id uuid, p_outcome text, p_found text[], p_said text) returns text
language sql volatile security definer set search_path = pgmail, pg_temp
as $$ select pgmail.settle_domain(p_tenant, p_id, p_outcome, p_found, p_said) $$;

-- Verified domains whose record is to be looked at again: after a week, where it was missing after a day.
create or replace function pgmail.domains_due_v1(p_most integer default 20) returns table (tenant_id integer, id uuid, domain text)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select d.tenant_id, d.id, d.domain from pgmail.sender_domain d
  where d.state = 'verified' and d.trusted_by is null
    and d.checked_at < pgmail.now() - case when d.missing_since is null then interval '7 days' else interval '1 day' end
  order by d.checked_at limit least(p_most, 100)
$$;

-- From which domains a tenant may send: 'any', or 'verified' ones only. Holds for the next email.
create or replace function pgmail.set_senders(p_tenant text, p_senders text, p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer;
begin
  if p_senders is null or p_senders not in ('any', 'verified') then
    perform pgmail.refuse('invalid_senders', '/senders', 'must be "any" or "verified"');
  end if;
  update pgmail.tenant x set senders = p_senders where x.name = p_tenant returning x.id into t;
  if t is null then perform pgmail.refuse('unknown_tenant', '/name', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  perform pgmail.record_act(t, 'tenant.set', p_tenant, concat_ws(': ', 'senders ' || p_senders, p_reason));
end
$$;

-- Quotas as operators set them: rows, obeyed within about a second (ops/docs/quotas.md). Not for API keys: who is limited
-- does not move the limit.

-- Whose rule is meant: the tenant (null: the fleet), and the name in normal form. p_tenant null is the caller's own; a rule of
-- a tenant may have the tenant's name in either.
create or replace function pgmail.quota_target(p_scope text, p_name text, p_tenant text, out tenant integer, out named text)
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
begin
  named := '';
  if p_scope = 'fleet' then return; end if;
  if p_scope is null or p_scope not in ('tenant', 'stream', 'key') then
    perform pgmail.refuse('invalid_scope', '/scope', 'must be fleet, tenant, stream or key');
  end if;
  if p_scope = 'tenant' then p_tenant := coalesce(p_tenant, nullif(p_name, '')); end if;
  if p_tenant is null then
    tenant := pgmail.need_tenant();
  else
    select t.id into tenant from pgmail.tenant t where t.name = p_tenant;
    if not found then perform pgmail.refuse('unknown_tenant', '/tenant', format('no tenant is named %L', left(p_tenant, 63)), 404); end if;
  end if;
  if p_scope = 'stream' then
    named := p_name;
    if not exists (select from pgmail.stream s where s.tenant_id = tenant and s.name = p_name) then
      perform pgmail.refuse('unknown_stream', '/name', format('no stream is named %L', left(p_name, 63)), 404);
    end if;
  elsif p_scope = 'key' then
    -- Keys have ids that no two tenants share. Meant is the whole line of rotations, under the id of its first key: a rule
    -- follows a key, and the two that overlap share it.
    select k.tenant_id, coalesce(k.family, k.id)::text into tenant, named from pgmail.api_key k
     where k.id::text = lower(p_name) and (p_tenant is null or k.tenant_id = tenant);
    if not found then perform pgmail.refuse('unknown_key', '/name', 'no key has this id; pgmail key list shows ids', 404); end if;
  end if;
end
$$;

-- Makes a rule, or changes what is named of one: {"per_second", "per_day", "max_queued", "pressure_depth", "pressure_seconds",
-- "bound_mails", "bound_bytes", "note"}; null takes one away. Answers the name in normal form.
create or replace function pgmail.set_quota(p_scope text, p_name text, p_settings jsonb, p_tenant text default null) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare x record; r record; row_ pgmail.quota; top bigint; fits text[];
begin
  select * into x from pgmail.quota_target(p_scope, p_name, p_tenant);
  if jsonb_typeof(p_settings) is distinct from 'object' or p_settings = '{}' then
    perform pgmail.refuse('invalid_body', '', 'a quota is a JSON object of what it limits');
  end if;
  fits := case p_scope when 'fleet' then array['pressure_depth', 'pressure_seconds', 'bound_mails', 'bound_bytes']
    when 'tenant' then array['per_second', 'per_day', 'max_queued', 'pressure_depth', 'pressure_seconds', 'bound_mails', 'bound_bytes']
    when 'stream' then array['per_second', 'per_day', 'max_queued'] else array['per_second', 'per_day'] end;
  for r in select key, value from jsonb_each(p_settings) order by key collate "C" loop
    if r.key = 'note' then
      if jsonb_typeof(r.value) not in ('string', 'null') or length(r.value #>> '{}') > 1000 then
        perform pgmail.refuse('invalid_quota', '/note', 'must be a text of at most 1,000 characters');
      end if;
    elsif r.key <> all (fits) then
      perform pgmail.refuse('unknown_key', '/' || pgmail.pointer(r.key),
        format('a quota of a %s has %s and note', p_scope, array_to_string(fits, ', ')));
    else
      top := case r.key when 'per_second' then 1000000 when 'pressure_seconds' then 31536000 when 'bound_bytes' then 1000000000000000 else 1000000000000 end;
      if r.value <> 'null' and (jsonb_typeof(r.value) <> 'number' or r.value #>> '{}' !~ '^[0-9]{1,16}$'
          or not (r.value #>> '{}')::bigint between case r.key when 'max_queued' then 0 else 1 end and top) then
        perform pgmail.refuse('invalid_quota', '/' || r.key, format('must be a whole number from %s to %s',
          case r.key when 'max_queued' then 0 else 1 end, top));
      end if;
    end if;
  end loop;
  insert into pgmail.quota (tenant_id, scope, name) values (x.tenant, p_scope, x.named) on conflict do nothing;
  select * into row_ from pgmail.quota q where q.tenant_id is not distinct from x.tenant and q.scope = p_scope and q.name = x.named for update;
  row_ := jsonb_populate_record(row_, p_settings);
  update pgmail.quota q set per_second = row_.per_second, per_day = row_.per_day, max_queued = row_.max_queued,
    pressure_depth = row_.pressure_depth, pressure_seconds = row_.pressure_seconds, bound_mails = row_.bound_mails,
    bound_bytes = row_.bound_bytes, note = row_.note, changed_at = pgmail.now(), changed_by = pgmail.actor()
  where q.tenant_id is not distinct from x.tenant and q.scope = p_scope and q.name = x.named;
  if p_scope = 'stream' then
    -- What came before the rule does not count.
    insert into pgmail.quota_meter (tenant_id, scope, name, seen, seen_bytes, paid_until, day)
    select x.tenant, 'stream', x.named, coalesce(sum(t.n), 0), coalesce(sum(t.bytes), 0), pgmail.now(), (pgmail.now() at time zone 'UTC')::date
    from pgmail.tally_total t where t.tenant_id = x.tenant and t.stream = x.named and t.kind = 'enqueued'
    on conflict do nothing;
  end if;
  -- What came in under the old rule is not held against the new one.
  update pgmail.quota_meter m set paid_until = pgmail.now(), owed = least(m.owed, coalesce(row_.per_day, 0)) where m.tenant_id = x.tenant and m.scope = p_scope and m.name = x.named;
  perform pgmail.record_act(x.tenant, 'quota.set', concat_ws(' ', p_scope, nullif(x.named, '')), p_settings::text);
  return x.named;
end
$$;

-- No rule from now on; false if there was none. The fleet's has the bounds that hold for every tenant, and stays.
create or replace function pgmail.remove_quota(p_scope text, p_name text, p_tenant text default null) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare x record;
begin
  if p_scope = 'fleet' then perform pgmail.refuse('not_allowed', '/scope', 'the fleet''s rule stays; set what it should not limit to none', 409); end if;
  if p_scope = 'key' and p_name ~ '^[0-9a-fA-F-]{36}$' then
    select q.tenant_id as tenant, q.name as named into x from pgmail.quota q
     where q.scope = 'key' and q.name = coalesce((select k.family::text from pgmail.api_key k where k.id::text = lower(p_name)), lower(p_name));
    if not found then return false; end if;   -- its key may have gone since
  else
    select * into x from pgmail.quota_target(p_scope, p_name, p_tenant);
  end if;
  delete from pgmail.quota q where q.tenant_id = x.tenant and q.scope = p_scope and q.name = x.named;
  if not found then return false; end if;
  delete from pgmail.quota_bucket b where b.tenant_id = x.tenant and b.scope = p_scope and b.name = x.named;
  if p_scope = 'stream' then delete from pgmail.quota_meter m where m.tenant_id = x.tenant and m.scope = 'stream' and m.name = x.named; end if;
  perform pgmail.record_act(x.tenant, 'quota.remove', concat_ws(' ', p_scope, nullif(x.named, '')), null);
  return true;
end
$$;

-- The last of the files, at every upgrade: what was made is shut before anybody can use it. Rights of roles come after
-- it, from roles.sql; where these cannot be given (an owner without CREATEROLE), nothing that an upgrade made is open to
-- whoever has USAGE on the schema from before.
revoke all on schema pgmail from public;
revoke all on all tables in schema pgmail from public;
revoke all on all sequences in schema pgmail from public;
revoke all on all routines in schema pgmail from public;

-- Row-level security of the tables that this transaction made or changed, and so has locked; `secure_next` does the others
-- after it, one by one. And of all whose owner is another than their policy says: nothing sees their rows, this upgrade
-- neither. The version table is Alembic's, made by it and holding one word.
do $do$
begin
  perform pgmail.secure_table(c.oid) from pg_class c
   where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p') and c.relname <> 'alembic_version'
     and (exists (select from pg_locks l where l.pid = pg_backend_pid() and l.locktype = 'relation' and l.relation = c.oid
                  and l.mode = 'AccessExclusiveLock' and l.granted)
          or exists (select from pg_policy p where p.polrelid = c.oid and p.polname = 'owner' and p.polroles <> array[c.relowner]));
end
$do$;


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

-- Which of these keys are still valid: asked once a second for all who listen to the feed.
create or replace function pgmail.live_keys_v1(p_tenants integer[], p_ids uuid[]) returns setof uuid
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select k.id from unnest(p_tenants, p_ids) u(tenant, id) join pgmail.api_key k on k.tenant_id = u.tenant and k.id = u.id
  where k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
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

-- Adds what one process counted of clients that try keys which are none, and answers how many tries all processes have seen of
-- each: forgiven at one in three seconds, 40 at most (pgmail/api/guesses.py).
create or replace function pgmail.share_guesses_v1(p_clients text[], p_counts integer[]) returns table (client text, level real)
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
#variable_conflict use_column
begin
  delete from pgmail.guess where ctid = any (array(
    select g.ctid from pgmail.guess g where g.at < pgmail.now() - interval '10 minutes' limit 1000 for update skip locked));
  return query
  insert into pgmail.guess as g (client, level, at)
  select left(u.client, 64), least(40, sum(greatest(u.n, 0))), pgmail.now() from unnest(p_clients, p_counts) u(client, n)
  group by 1 order by 1
  on conflict (client) do update set
    level = least(40, greatest(0, g.level - extract(epoch from excluded.at - g.at)::real / 3) + excluded.level), at = excluded.at
  returning g.client, g.level;
end
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

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

-- Whose it is, what an operator sets: the caller's tenant's, or the whole fleet's (null), which is not for API keys.
create or replace function pgmail.tenant_or_fleet(p_fleet boolean) returns integer
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

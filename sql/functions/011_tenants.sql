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

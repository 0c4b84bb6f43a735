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

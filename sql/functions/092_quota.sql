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
    elsif r.key = 'max_queued' and p_scope = 'key' then
      perform pgmail.refuse('unknown_key', '/max_queued',
        'is no limit of a key: what waits is counted by stream and tenant, so set it on the key''s stream or its tenant');
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
    insert into pgmail.quota_meter (tenant_id, scope, name, seen, seen_bytes, depth, paid_until, day)
    select x.tenant, 'stream', x.named, coalesce(sum(t.n) filter (where t.kind = 'enqueued'), 0),
      coalesce(sum(t.bytes) filter (where t.kind = 'enqueued'), 0), coalesce(sum(case t.kind when 'enqueued' then t.n else -t.n end), 0),
      pgmail.now(), (pgmail.now() at time zone 'UTC')::date
    from pgmail.tally_total t where t.tenant_id = x.tenant and t.stream = x.named
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

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

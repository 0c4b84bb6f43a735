-- Sessions of the dashboard. A session is a signed word in a cookie that names the key it was begun with; nothing of it is
-- stored here but the secret that signs all of them, which every API process shares.

-- The secret that signs sessions, 32 octets.
create or replace function pgmail.session_secret_v1() returns bytea
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select s.secret from pgmail.session_secret s
$$;

-- Whose key has this id, and what it may; no row for one that is unknown, was revoked or has expired. For sessions, whose
-- signature was checked: an id alone proves nothing.
create or replace function pgmail.session_key_v1(p_tenant integer, p_id uuid)
returns table (tenant_id integer, key_id uuid, name text, scopes text[], test boolean, streams text[],
               from_domains text[], networks text[], seconds_left double precision)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select k.tenant_id, k.id, k.name, k.scopes, k.test, k.streams, k.from_domains, k.networks::text[],
    extract(epoch from k.expires_at - pgmail.now())::double precision
  from pgmail.api_key k
  where k.tenant_id = p_tenant and k.id = p_id and k.revoked_at is null and (k.expires_at is null or k.expires_at > pgmail.now())
$$;

-- Ends all sessions of all tenants: whoever is signed in signs in again.
create or replace function pgmail.end_sessions(p_reason text default null) returns void
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  update pgmail.session_secret
     set secret = sha256(uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid()) || uuid_send(gen_random_uuid())),
         made_at = pgmail.now();
  perform pgmail.record_act(null, 'session.end_all', null, p_reason);
end
$$;

-- Whether a form of the dashboard comes for the first time: false for one that was done already, within a day. In the
-- transaction that does what it asks for, so that one which was refused may come again; of two at once the second waits.
create or replace function pgmail.form_once_v1(p_form uuid) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
begin
  insert into pgmail.idempotency (tenant_id, key, body_hash, ids, created_at, expires_at)
  values (pgmail.need_tenant(), 'form of the dashboard ' || p_form, '', '{}', pgmail.now(), pgmail.now() + interval '24 hours')
  on conflict do nothing;
  return found;
end
$$;

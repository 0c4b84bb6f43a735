-- The preview of an email: what is its recipient's own, which the API shows to nobody by itself.

-- A recipient's variables as they were handed over (JSON, or sealed with the data key key_id); no row for one that the tenant
-- has not.
create or replace function pgmail.preview_v1(p_id uuid) returns table (message_id uuid, variables bytea, key_id integer)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select r.message_id, r.variables, r.key_id from pgmail.recipient r where r.tenant_id = pgmail.need_tenant() and r.id = p_id
$$;

-- Takes back what 0004 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ keys
-- An older program would take a key with limits for one without: such keys end here.
update pgmail.api_key set revoked_at = pgmail.now()
 where revoked_at is null
   and (test or not scopes @> '{send,read,manage}' or num_nonnulls(streams, from_domains, networks, expires_at) > 0);
drop function if exists pgmail.list_keys();
drop function if exists pgmail.check_key_v2(bytea);
drop function if exists pgmail.make_key(text, text, bytea, jsonb);
drop function if exists pgmail.rotate_key(uuid, text, bytea, interval, text);
drop function if exists pgmail.note_keys_v1(integer[], uuid[], inet[], double precision[]);
drop function if exists pgmail.note_guesses_v1(text, integer);
drop function if exists pgmail.reach_v1(uuid[]);
drop function if exists pgmail.need_key(uuid);
drop function if exists pgmail.key_limits(pgmail.api_key, jsonb);
drop function if exists pgmail.need_within(pgmail.api_key, pgmail.api_key);
drop function if exists pgmail.covers_domain(text[], text);
drop function if exists pgmail.acting_admin();
drop function if exists pgmail.current_key();
alter table pgmail.message drop column api_key;
alter table pgmail.api_key
  drop column scopes, drop column test, drop column streams, drop column from_domains, drop column networks,
  drop column expires_at, drop column family, drop column replaced_by, drop column last_used_at, drop column last_used_from;
-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas

-- end of quotas

------------------------------------------------------------------------------------------------ test mail

-- end of test mail

------------------------------------------------------------------------------------------------ sealing

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;

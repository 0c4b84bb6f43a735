-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

------------------------------------------------------------------------------------------------ keys
-- What a key may do, and within which limits; null is no limit. Keys of before have what every route asked for until now:
-- all but the routes of keys, which are new.
alter table pgmail.api_key
  add column scopes       text[] not null default '{send,read,manage}'
    constraint api_key_scopes check (cardinality(scopes) > 0 and scopes <@ '{send,read,manage,admin}'),
  add column test         boolean not null default false,   -- what it sends goes to the sandbox only
  add column streams      text[],
  add column from_domains text[],                           -- example.com, or *.example.com for what lies below
  add column networks     cidr[],
  add column expires_at   timestamptz,
  add column family       uuid,                             -- the first key of its line of rotations; null: itself
  add column replaced_by  uuid,                             -- the key that a rotation made of it
  add column last_used_at timestamptz,                      -- to the minute
  add column last_used_from inet;

-- Which key handed an email over, so that one that may only send can cancel its own; null by other ways in.
alter table pgmail.message add column api_key uuid;

-- It tells more of each key now.
drop function if exists pgmail.list_keys();
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
update pgmail.schema_version set version = 4;

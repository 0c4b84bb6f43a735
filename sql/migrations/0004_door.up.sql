-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

------------------------------------------------------------------------------------------------ keys

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
alter table pgmail.stream add column seal text not null default 'off' constraint stream_seal_check
  check (seal in ('off', 'where_possible', 'required'));

-- What seals mail, wrapped by a key-encryption key that lies elsewhere. The newest of a tenant seals; all open.
create table pgmail.data_key (
  tenant_id  integer not null,
  id         integer not null,       -- key_id of what it sealed
  wrapped    bytea not null,         -- a nonce of 12 octets, the key, a tag of 16
  kek        text not null,          -- name of the key that it is wrapped by
  created_at timestamptz not null default pgmail.now(),
  created_by text not null,
  wrapped_at timestamptz not null default pgmail.now(),
  primary key (tenant_id, id)
);

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

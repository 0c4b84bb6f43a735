-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit
-- Row-level security is forced by functions/012_secure.sql, on all tables, those of later sections and versions too.

-- A tenant that is suspended: a pause of all that it has, under its name.
alter table pgmail.pause drop constraint pause_scope_check;
alter table pgmail.pause add constraint pause_scope_check check (scope in ('site', 'stream', 'lane', 'tenant') and (scope <> 'tenant' or tenant_id is not null));

-- From where: the client's address, as the API names it or the connection has it, and what the program calls itself.
alter table pgmail.audit add column source text, add column application text;
create index audit_tenant on pgmail.audit (tenant_id, id);

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

-- Tenants that are there keep what they could do; a new one sends from its verified domains only.
alter table pgmail.tenant add column senders text not null default 'any' check (senders in ('any', 'verified'));
alter table pgmail.tenant alter column senders set default 'verified';

create table pgmail.sender_domain (
  tenant_id     integer not null,
  domain        text not null,                        -- lower-case A-labels; subdomains are meant, too
  id            uuid not null default pgmail.uuid7(),
  token         text not null,                        -- to be published as TXT of _pgmail.DOMAIN: pgmail-verify=TOKEN
  state         text not null default 'pending' check (state in ('pending', 'verified', 'failed')),
  created_at    timestamptz not null default pgmail.now(),
  created_by    text not null,
  verified_at   timestamptz,                          -- since when, without a break
  checked_at    timestamptz,
  answer        text,                                 -- what DNS said last
  missing_since timestamptz,                          -- verified, and since then no look has found the record
  trusted_by    text,                                 -- an operator vouches: DNS is not asked
  trust_reason  text,
  primary key (tenant_id, domain),
  unique (tenant_id, id)
);

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas

-- end of quotas

------------------------------------------------------------------------------------------------ test mail

-- end of test mail

------------------------------------------------------------------------------------------------ sealing

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

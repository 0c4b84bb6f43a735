-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit
-- Row-level security is forced by functions/012_secure.sql, on all tables, those of later sections and versions too.

-- A tenant that is suspended: a pause of all that it has, under its name.
alter table pgmail.pause drop constraint pause_scope_check;
alter table pgmail.pause add constraint pause_scope_check check (scope in ('site', 'stream', 'lane', 'tenant') and (scope <> 'tenant' or tenant_id is not null));

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

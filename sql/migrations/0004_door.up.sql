-- The guarded door: who may hand mail over, from which domains, how much, and what of it lies sealed.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit
-- Row-level security is forced by functions/099_closed.sql, on these and all others. It takes each table's lock: first those
-- of the mail's path, in the order in which a send and then a settle come to them, so that a short wait is all it costs.
lock table pgmail.database_role, pgmail.template, pgmail.stream, pgmail.site_domain, pgmail.lane, pgmail.suppression, pgmail.erasure_salt,
  pgmail.worker, pgmail.idempotency, pgmail.lane_touch, pgmail.recipient, pgmail.queue, pgmail.tally, pgmail.message, pgmail.attachment,
  pgmail.tag, pgmail.event, pgmail.outcome, pgmail.dead_letter in access exclusive mode;

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

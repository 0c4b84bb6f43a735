-- Takes back what 0004 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas
drop function if exists pgmail.take_quota_v1(uuid, integer[], text[], integer[]);
drop function if exists pgmail.quota_gate_v1(uuid);
drop function if exists pgmail.doors_v1();
drop function if exists pgmail.oldest_due();
drop function if exists pgmail.set_quota(text, text, jsonb, text);
drop function if exists pgmail.remove_quota(text, text, text);
drop function if exists pgmail.quota_target(text, text, text);
drop function if exists pgmail.quota_words(text, text);
drop function if exists pgmail.refuse_email(pgmail.email, text);
drop function if exists pgmail.iso_time(timestamptz);
drop function if exists pgmail.variables_fault(jsonb, integer);
drop function if exists pgmail.fits(jsonb, integer);
drop table pgmail.quota_bucket;
drop table pgmail.quota_meter;
drop table pgmail.door;
drop table pgmail.quota;
alter table pgmail.leader drop column doors_at;
alter table pgmail.tally_total drop column bytes;
alter table pgmail.tally drop column bytes;

-- end of quotas

------------------------------------------------------------------------------------------------ test mail

-- end of test mail

------------------------------------------------------------------------------------------------ sealing

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;

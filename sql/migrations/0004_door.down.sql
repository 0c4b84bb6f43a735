-- Takes back what 0004 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ keys

-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit

drop index pgmail.audit_tenant;
drop function if exists pgmail.act_source();
alter table pgmail.audit drop column source, drop column application;

-- end of tenants and audit

------------------------------------------------------------------------------------------------ domains of senders

drop function if exists pgmail.add_domain(text);
drop function if exists pgmail.remove_domain(text, text);
drop function if exists pgmail.trust_domain(text, text, text);
drop function if exists pgmail.domain_checked(uuid, text, text[], text);
drop function if exists pgmail.domain_checked_v1(integer, uuid, text, text[], text);
drop function if exists pgmail.domains_due_v1(integer);
drop function if exists pgmail.settle_domain(integer, uuid, text, text[], text);
drop function if exists pgmail.need_domain(text);
drop function if exists pgmail.set_senders(text, text, text);
drop function if exists pgmail.sender_fault(integer, text, text);
drop function if exists pgmail.is_sender_domain(integer, text);
drop function if exists pgmail.domain_and_above(text);
drop function if exists pgmail.has_bidi(text);
drop table pgmail.sender_domain;
alter table pgmail.tenant drop column senders;

-- end of domains of senders

------------------------------------------------------------------------------------------------ quotas

-- end of quotas

------------------------------------------------------------------------------------------------ test mail

-- end of test mail

------------------------------------------------------------------------------------------------ sealing

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;

-- Takes back what 0003 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ in doubt

------------------------------------------------------------------------------------------------ replies

------------------------------------------------------------------------------------------------ suppression
drop function if exists pgmail.hold(uuid, text);
drop function if exists pgmail.release(uuid, text);
drop function if exists pgmail.suppress_many(text[], text[], text[], text[], timestamptz[], timestamptz[], boolean, boolean, bigint);
drop function if exists pgmail.suppression_fault(integer, text, text, text, text, timestamptz);
drop function if exists pgmail.purge_suppressions_v1(integer);
drop index pgmail.suppression_expiry;
update pgmail.suppression set reason = 'bounced' where reason = 'invalid';
alter table pgmail.suppression drop constraint suppression_reason_check;
alter table pgmail.suppression add constraint suppression_reason_check
  check (reason in ('bounced', 'complained', 'unsubscribed', 'manual'));

------------------------------------------------------------------------------------------------ restore

------------------------------------------------------------------------------------------------ retention

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 2;

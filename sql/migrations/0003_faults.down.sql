-- Takes back what 0003 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ in doubt
drop function if exists pgmail.discard_all(jsonb, text, integer);
drop function if exists pgmail.retry_all(jsonb, text, integer);
drop function if exists pgmail.dead_letter_ids(jsonb, integer, uuid, uuid, boolean);
drop function if exists pgmail.resolve_all(text, jsonb, text, integer);
drop function if exists pgmail.resolve(uuid, text, text);
drop function if exists pgmail.resolve_ids(integer, uuid[], text, text);
drop function if exists pgmail.in_doubt(jsonb, integer, uuid, uuid, boolean);
drop function if exists pgmail.check_filter(jsonb, text[]);
drop function if exists pgmail.begin_v1(integer, bigint, uuid[], integer[], text[]);
drop function if exists pgmail.claim_v2(integer, bigint, bigint[], timestamptz[], uuid[], integer[], boolean[], boolean[]);
drop index pgmail.queue_doubt;
alter table pgmail.queue drop column in_doubt, drop column begun_relay, drop column unsent_claims;

------------------------------------------------------------------------------------------------ replies

------------------------------------------------------------------------------------------------ suppression

------------------------------------------------------------------------------------------------ restore

------------------------------------------------------------------------------------------------ retention

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 2;

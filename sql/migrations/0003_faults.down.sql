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
drop index pgmail.queue_expiry;
create index queue_expiry on pgmail.queue (expires_at) where expires_at is not null;
alter table pgmail.queue drop column in_doubt, drop column begun_relay, drop column unsent_claims;

------------------------------------------------------------------------------------------------ replies
drop view if exists pgmail.refusal;
drop function if exists pgmail.classify(integer, text, text, text);
drop function if exists pgmail.load_reply_rules(jsonb);
drop function if exists pgmail.fold_reply(text);
drop function if exists pgmail.suppress_bounced(integer, uuid[], jsonb, uuid[], smallint[]);
drop function if exists pgmail.suppress_bounced_v1(integer);
drop function if exists pgmail.slow_site_v1(integer, text, text);
drop table pgmail.slowed_site;
insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by)
select distinct on (b.tenant_id, r.address) b.tenant_id, r.address, '', 'bounced', b.source, 'pgmail'
from pgmail.bounced b join pgmail.recipient r on r.tenant_id = b.tenant_id and r.id = b.recipient_id
order by b.tenant_id, r.address
on conflict do nothing;
drop table pgmail.bounced;
drop table pgmail.reply_pattern;
drop table pgmail.reply_rule;
drop table pgmail.reply_reason;
alter table pgmail.stream drop column suppress_bounced;

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
drop function if exists pgmail.mark_v1(uuid, uuid, integer, uuid, bigint, timestamptz, text, integer, text, jsonb);
drop function if exists pgmail.end_workers();
drop function if exists pgmail.lock_history();
drop function if exists pgmail.rescue_leases(bigint[]);
drop function if exists pgmail.lease_doubt();
drop function if exists pgmail.recall_v1(uuid, uuid, integer, uuid, bigint, timestamptz, text, jsonb);
drop function if exists pgmail.place_v1();
drop function if exists pgmail.stop_for_restore(text);
drop function if exists pgmail.restore_doubts(timestamptz);
drop function if exists pgmail.restore_bound(timestamptz);
drop function if exists pgmail.decide_restore(integer, text, timestamptz, uuid, integer);
drop function if exists pgmail.accept_restore(text, text);

drop table pgmail.fence;
drop table pgmail.witness;
drop table pgmail.history;

------------------------------------------------------------------------------------------------ retention
drop function if exists pgmail.erase(text, text, uuid, integer, boolean);
drop function if exists pgmail.erase_for(text, text, text, uuid, integer, boolean);
drop function if exists pgmail.erase_batch(integer, text, text, uuid, integer, boolean);
drop function if exists pgmail.erased_text(text, text, text);
drop function if exists pgmail.erased_boxes(jsonb, text, text);
drop function if exists pgmail.erased_content(bytea, integer, text, text);
drop function if exists pgmail.erased_token(integer, text);
drop function if exists pgmail.suppressed_as(integer, text);
drop function if exists pgmail.has_erased(integer);
drop function if exists pgmail.make_partition_v2(integer);
drop function if exists pgmail.make_partition(text, timestamptz);
drop function if exists pgmail.weekly_partitions(text);
drop function if exists pgmail.partition_key(text);
drop function if exists pgmail.kept_days(text);
drop function if exists pgmail.needed_messages(uuid, uuid);
drop function if exists pgmail.needed_recipients(uuid, uuid, integer);
drop function if exists pgmail.rows_to_keep(text, text, uuid, uuid);
drop function if exists pgmail.drop_partition_v1(text);
drop function if exists pgmail.drop_strays_v1(text, integer);
drop function if exists pgmail.empty_content_v1(integer);
drop function if exists pgmail.empty_messages(integer, uuid[]);
drop function if exists pgmail.emptied(bytea, integer);
drop function if exists pgmail.set_retention(integer, integer, text);
drop function if exists pgmail.retention_state();

-- erasure_salt stays: the tokens of erased people on the suppression list mean nothing without it, and with another salt
-- after the next upgrade who opted out and was erased would get mail again.
drop table pgmail.content_left;
drop table pgmail.content_mark;
alter table pgmail.stream drop column keep_content_days;
drop table pgmail.retention;

------------------------------------------------------------------------------------------------ limits
drop function if exists pgmail.take_tokens_v2(bigint, integer[], text[], text[], integer[], double precision);
drop function if exists pgmail.limit_margin(real);
alter table pgmail.stream
  drop constraint stream_max_attempts_most, drop constraint stream_retry_base_seconds_most, drop constraint stream_retry_factor_most,
  drop constraint stream_retry_cap_seconds_most, drop constraint stream_relay_weights_most;

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 2;

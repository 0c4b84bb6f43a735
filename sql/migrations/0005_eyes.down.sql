-- Takes back what 0005 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ feed
drop function if exists pgmail.feed_v1(pg_snapshot, pg_snapshot, xid8, uuid, uuid, integer[], integer, text[], uuid[]);
drop function if exists pgmail.feed_stretches(pg_snapshot, pg_snapshot, xid8);
drop function if exists pgmail.feed_since_v1(timestamptz);
drop function if exists pgmail.feed_now_v1();
drop function if exists pgmail.feed_history_v1();
drop function if exists pgmail.feed_index_next(text);
drop function if exists pgmail.feed_settle_in();
drop function if exists pgmail.live_keys_v1(integer[], uuid[]);
drop table pgmail.feed_home;
drop index pgmail.event_feed;
drop index pgmail.message_feed;
alter table pgmail.message drop column xid;
-- end of feed

------------------------------------------------------------------------------------------------ insight
drop function if exists pgmail.rollup_v1(integer, integer, integer);
drop function if exists pgmail.trim_rollups_v1(integer);
drop function if exists pgmail.cause_text(text, text);
drop function if exists pgmail.newest_three(uuid[]);
drop function if exists pgmail.took_bucket(timestamptz, timestamptz);
drop function if exists pgmail.figure_of(text, text);
drop function if exists pgmail.gauge_lanes_v1();
drop function if exists pgmail.gauge_states_v1();
drop function if exists pgmail.lane_facts(integer, bigint);
drop function if exists pgmail.lanes_known();
drop function if exists pgmail.waits();
drop function if exists pgmail.gauge_due();
drop function if exists pgmail.gauge_kept();
drop function if exists pgmail.lanes_present();
drop function if exists pgmail.oldest_in_lanes();
drop table pgmail.backlog, pgmail.gauge, pgmail.pulse, pgmail.rollup, pgmail.cause, pgmail.insight_cursor;
alter table pgmail.tally drop column lanes, drop column per_lane;
-- end of insight

------------------------------------------------------------------------------------------------ hooks
drop function pgmail.need_hook(uuid), pgmail.check_hook(pgmail.hook), pgmail.check_hook_secret(integer, integer, bytea),
  pgmail.add_hook(uuid, text, text[], text[], jsonb, text, integer, bytea), pgmail.begin_hooks(), pgmail.set_hook(uuid, jsonb, text),
  pgmail.remove_hook(uuid, text), pgmail.rotate_hook(uuid, integer, bytea, interval, text), pgmail.test_hook(uuid),
  pgmail.replay_hook(uuid, jsonb, uuid, integer, text), pgmail.count_replay(uuid, jsonb),
  pgmail.replay_step(pgmail.hook, jsonb, uuid, integer, boolean), pgmail.fan_out_hooks_v1(integer),
  pgmail.hook_data(integer, uuid, uuid, uuid, text),
  pgmail.claim_hooks_v1(text[], integer, integer, double precision, uuid[], integer[], double precision), pgmail.settle_hooks_v1(jsonb),
  pgmail.keep_hooks_v1(integer, integer);
drop table pgmail.hook_cursor, pgmail.hook_attempt, pgmail.hook_queue, pgmail.hook_secret, pgmail.hook;
-- end of hooks

------------------------------------------------------------------------------------------------ alerts
do $do$
declare f regprocedure;
begin
  for f in select p.oid::regprocedure from pg_proc p where p.pronamespace = 'pgmail'::regnamespace and p.proname in (
    'late_lanes', 'alert_died', 'alert_deltas', 'alert_since', 'alert_meter_step', 'alert_facts_mail', 'alert_facts_rates', 'alert_facts_traffic', 'alert_facts_fleet', 'chores_reached',
    'alert_horizon_step', 'oldest_snapshot', 'hot_tables', 'replicas', 'alert_facts_database', 'alert_kinds',
    'alert_rules_of', 'alert_tenant', 'sees_alert', 'set_alert_rule', 'remove_alert_rule', 'alert_rules',
    'silence_alert', 'unsilence_alert', 'alert_silences', 'is_silenced', 'over_words', 'tell_alert', 'alert_step_v1',
    'alert_purge_v1', 'saw_certificate_v1', 'missed_certificate_v1', 'alert_take_v1', 'alert_give_back_v1', 'alert_told_v1', 'add_alert_target', 'remove_alert_target',
    'test_alert_target', 'alert_delivery_state', 'alert_targets', 'alerts', 'at_words', 'span_words',
    'number_words', 'share_words', 'lane_stop')
  loop
    execute format('drop function %s', f);
  end loop;
end
$do$;
drop function if exists pgmail.tenant_or_fleet(boolean);
drop type pgmail.alert_fact;
drop table pgmail.alert_delivery, pgmail.alert_target, pgmail.alert_silence, pgmail.alert, pgmail.alert_rule, pgmail.alert_meter,
  pgmail.alert_horizon, pgmail.lost_worker, pgmail.certificate;
-- end of alerts

------------------------------------------------------------------------------------------------ tracing
drop function if exists pgmail.metrics_queue_v1(boolean);
drop function if exists pgmail.metrics_fleet_v1();
drop function if exists pgmail.metrics_tables_v1();
drop function if exists pgmail.traceparent(jsonb);
alter type pgmail.email drop attribute if exists traceparent;
alter table pgmail.message drop column traceparent;
-- end of tracing

------------------------------------------------------------------------------------------------ dashboard
drop function if exists pgmail.find_emails(text, integer, uuid, uuid, boolean, text, text, text, text, text[], boolean, text, interval, integer);
drop function if exists pgmail.preview_v1(uuid);
drop function if exists pgmail.end_sessions(text);
drop function if exists pgmail.session_key_v1(integer, uuid);
drop function if exists pgmail.session_secret_v1();
drop function if exists pgmail.form_once_v1(uuid);
drop table pgmail.session_secret;
drop function if exists pgmail.fleet_v1();
-- end of dashboard

------------------------------------------------------------------------------------------------ compression
do $do$
declare t regclass;
begin
  for t in select p.relid from pg_partition_tree('pgmail.message') p order by p.level, p.relid::regclass::text loop
    execute format('alter table only %s alter column content set compression default', t);
  end loop;
end
$do$;
-- end of compression

------------------------------------------------------------------------------------------------ door
drop function if exists pgmail.send(text, text, text, text, text, text, jsonb, text, text, timestamptz, timestamptz, text, text, text[], text[], text, jsonb, jsonb, jsonb, jsonb, boolean);
drop function if exists pgmail.worker_opens_v1(bigint, text[]);
drop function if exists pgmail.sealed_elsewhere_v1(text[]);
drop function if exists pgmail.sealed_wait(integer, integer);
drop function if exists pgmail.share_guesses_v1(text[], integer[]);
drop table pgmail.guess;
drop table pgmail.worker_key;
drop table pgmail.tally_moved;
alter table pgmail.quota_meter drop column depth;
-- end of door

------------------------------------------------------------------------------------------------ claim
drop function if exists pgmail.late_v1(integer, bigint[], timestamptz[], timestamptz[], uuid[], integer);
-- end of claim

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 4;

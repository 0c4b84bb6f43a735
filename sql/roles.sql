-- Database roles. `{prefix}` is a setting (roles are cluster-wide). The first section needs CREATEROLE and is printed
-- for an administrator where the owner has none; the second is the owner's to run, again after each upgrade.
--   api       the HTTP API: carries the tenant of the key it checked
--   worker    claims, sends, settles; any worker can lead, so it may maintain too
--   maintain  a process that only leads
--   producer  an application: send, send_many, status, trace, why, cancel, reschedule of its tenant, and nothing else
--   reader    psql and BI of those who run pgmail: the tables, one tenant's rows, no texts and no files
--   analyst   psql and BI of a tenant: views of its own rows, from which nothing is learnt of others
--   admin     an operator: sees all, acts as its tenant
-- Roles have no password here; set one (`alter role {prefix}worker password '...'`) or use your server's other ways.

-- section: create
do $do$
declare r text;
begin
  foreach r in array array['api', 'worker', 'maintain', 'producer', 'reader', 'analyst', 'admin'] loop
    if not exists (select 1 from pg_roles where rolname = '{prefix}' || r) then
      execute format('create role %I login noinherit', '{prefix}' || r);
    end if;
  end loop;
end
$do$;

-- section: grant
revoke all on schema pgmail from public;
revoke all on all tables in schema pgmail from public;
revoke all on all sequences in schema pgmail from public;
revoke all on all routines in schema pgmail from public;

grant usage on schema pgmail to {prefix}api, {prefix}worker, {prefix}maintain, {prefix}producer, {prefix}reader, {prefix}analyst, {prefix}admin;
revoke all on all tables in schema pgmail from {prefix}api, {prefix}worker, {prefix}maintain, {prefix}producer, {prefix}reader, {prefix}analyst, {prefix}admin;
revoke all on all routines in schema pgmail from {prefix}api, {prefix}worker, {prefix}maintain, {prefix}producer, {prefix}reader, {prefix}analyst, {prefix}admin;

-- Pure helpers that views and queries of every role use.
grant execute on function pgmail.now(), pgmail.uuid_floor(timestamptz), pgmail.uuid_time(uuid), pgmail.current_tenant(),
  pgmail.state_of(text, boolean, boolean, boolean, timestamptz, text, timestamptz), pgmail.phase_of(text),
  pgmail.fold_reply(text), pgmail.classify(integer, text, text, text)
  to {prefix}api, {prefix}worker, {prefix}maintain, {prefix}reader, {prefix}analyst, {prefix}admin;

-- producer
grant execute on function
  pgmail.send(jsonb),
  pgmail.send(text, text, text, text, text, text, jsonb, text, text, timestamptz, timestamptz, text, text, text[], text[], text, jsonb, jsonb, jsonb, jsonb, boolean),
  pgmail.send_many(jsonb, boolean, text),
  pgmail.status(uuid), pgmail.trace(uuid), pgmail.why(uuid), pgmail.cancel(uuid, text), pgmail.reschedule(uuid, timestamptz)
  to {prefix}producer, {prefix}api, {prefix}admin;

-- reader
grant execute on function pgmail.status(uuid), pgmail.trace(uuid), pgmail.why(uuid) to {prefix}reader, {prefix}analyst;
grant execute on function pgmail.find_emails(text, integer, uuid, uuid, boolean, text, text, text, text, text[], boolean, text, interval, integer)
  to {prefix}reader, {prefix}api, {prefix}admin;
grant execute on function pgmail.in_doubt(jsonb, integer, uuid, uuid, boolean), pgmail.dead_letter_ids(jsonb, integer, uuid, uuid, boolean)
  to {prefix}reader, {prefix}api, {prefix}admin;

-- analyst: texts, files and variables (my_content, my_attachment, my_variables) are granted to single roles, by name
grant select on pgmail.my_message, pgmail.my_recipient, pgmail.my_queue, pgmail.my_event, pgmail.my_outcome, pgmail.my_dead_letter,
  pgmail.my_suppression, pgmail.my_stream, pgmail.my_total, pgmail.schema_version, pgmail.reply_reason to {prefix}analyst;

-- what operators and the API manage
grant execute on function
  pgmail.retry(uuid, text), pgmail.discard(uuid, text), pgmail.hold(uuid, text), pgmail.release(uuid, text),
  pgmail.retry_all(jsonb, text, integer), pgmail.discard_all(jsonb, text, integer),
  pgmail.resolve(uuid, text, text), pgmail.resolve_all(text, jsonb, text, integer),
  pgmail.create_key(text, text, bytea), pgmail.revoke_key(uuid, text), pgmail.list_keys(),
  pgmail.save_template(text, text, text, text, text[], jsonb, boolean), pgmail.publish_template(text, integer, text[], jsonb),
  pgmail.save_asset(text, text, text, bytea), pgmail.suppress(text, text, text, text, timestamptz),
  pgmail.unsuppress(text, text, text),
  pgmail.suppress_many(text[], text[], text[], text[], timestamptz[], timestamptz[], boolean, boolean, bigint),
  pgmail.save_stream(text, jsonb),
  pgmail.pause_mail(text, text, text, timestamptz, boolean), pgmail.resume_mail(text, text, text, boolean),
  pgmail.erase(text, text, uuid, integer, boolean)
  to {prefix}api, {prefix}admin;
grant execute on function pgmail.stopped_by(text, integer, text), pgmail.lane_name(text, integer, text)
  to {prefix}api, {prefix}reader, {prefix}admin;
revoke execute on function pgmail.create_key(text, text, bytea) from {prefix}api;   -- the first key comes from the command line
grant execute on function pgmail.check_key_v1(bytea) to {prefix}api;

-- domains of senders
grant execute on function pgmail.add_domain(text), pgmail.remove_domain(text, text), pgmail.domain_checked(uuid, text, text[], text)
  to {prefix}api, {prefix}admin;
grant execute on function pgmail.trust_domain(text, text, text), pgmail.set_senders(text, text, text) to {prefix}admin;
grant execute on function pgmail.domain_checked_v1(integer, uuid, text, text[], text), pgmail.domains_due_v1(integer)
  to {prefix}worker, {prefix}maintain;
grant select on pgmail.sender_domain to {prefix}api, {prefix}reader, {prefix}admin;

-- keys: the API's role may make and rotate them for a living admin key only, which these functions look up
grant execute on function pgmail.make_key(text, text, bytea, jsonb), pgmail.rotate_key(uuid, text, bytea, interval, text)
  to {prefix}api, {prefix}admin;
grant execute on function pgmail.check_key_v2(bytea), pgmail.reach_v1(uuid[]), pgmail.note_guesses_v1(text, integer), pgmail.share_guesses_v1(text[], integer[]),
  pgmail.note_keys_v1(integer[], uuid[], inet[], double precision[]) to {prefix}api;
-- sessions of the dashboard, and what it shows of an email
grant execute on function pgmail.session_secret_v1(), pgmail.session_key_v1(integer, uuid), pgmail.form_once_v1(uuid) to {prefix}api;
grant execute on function pgmail.end_sessions(text) to {prefix}admin;
grant execute on function pgmail.preview_v1(uuid) to {prefix}api;

grant execute on function pgmail.grant_tenant(name, text), pgmail.create_tenant(text), pgmail.recount(),
  pgmail.pause_relay(text, text, timestamptz), pgmail.resume_relay(text, text), pgmail.partition_state(),
  pgmail.retention_state(), pgmail.set_retention(integer, integer, text), pgmail.erase_for(text, text, text, uuid, integer, boolean),
  pgmail.set_limit(text, text, integer, real, integer, real, text), pgmail.remove_limit(text, text), pgmail.set_tenant(text, real),
  pgmail.suspend_tenant(text, text), pgmail.resume_tenant(text, text), pgmail.erase_tenant(text, text, boolean, integer),
  pgmail.revoke_tenant(name, text)
  to {prefix}admin;

-- worker, and what leading takes
grant execute on function
  pgmail.claim_v1(integer, bigint, bigint[], timestamptz[], uuid[], integer[], boolean[]),
  pgmail.claim_v2(integer, bigint, bigint[], timestamptz[], uuid[], integer[], boolean[], boolean[]),
  pgmail.claim_v3(integer, bigint, bigint[], timestamptz[], uuid[], integer[], boolean[], boolean[]),
  pgmail.late_v1(integer, bigint[], timestamptz[], timestamptz[], uuid[], integer),
  pgmail.begin_v1(integer, bigint, uuid[], integer[], text[]),
  pgmail.release_v1(integer, bigint, uuid[], integer[], text), pgmail.settle_v1(integer, bigint, jsonb),
  pgmail.settle_v2(integer, bigint, jsonb, uuid[], uuid[], integer[], smallint[], smallint[], integer[], text[]),
  pgmail.relay_state_v1(text, text, text, double precision), pgmail.idle_lanes_v1(integer, bigint[]),
  pgmail.suppressed_as(integer, text), pgmail.has_erased(integer), pgmail.slow_site_v1(integer, text, text),
  pgmail.suppress_bounced_v1(integer),
  pgmail.take_tokens_v1(bigint, text[], text[], integer[]), pgmail.take_tokens_v2(bigint, integer[], text[], text[], integer[], double precision),
  pgmail.limit_margin(real),
  pgmail.share_permits_v1(bigint, text[], text[], integer[], integer[]), pgmail.register_relays_v1(text[])
  to {prefix}worker;
grant execute on function
  pgmail.worker_start_v1(text, integer, text, integer), pgmail.worker_start_v2(text, integer, text, integer, text),
  pgmail.worker_beat_v1(bigint, text, boolean), pgmail.worker_stop_v1(bigint),
  pgmail.lead_v1(bigint, double precision), pgmail.rescue_v1(bigint), pgmail.orphans_v1(), pgmail.fold_touches_v1(), pgmail.wake_due_v1(timestamptz),
  pgmail.repair_lanes_v1(), pgmail.expire_v1(integer), pgmail.fold_tallies_v1(integer), pgmail.purge_idempotency_v1(integer),
  pgmail.purge_suppressions_v1(integer),
  pgmail.make_partitions_v1(integer), pgmail.partition_state(), pgmail.make_partition_v2(integer), pgmail.drop_partition_v1(text),
  pgmail.drop_strays_v1(text, integer), pgmail.empty_content_v1(integer), pgmail.retention_state()
  to {prefix}worker, {prefix}maintain;
grant select on pgmail.message, pgmail.attachment, pgmail.recipient, pgmail.template, pgmail.asset, pgmail.stream,
  pgmail.suppression, pgmail.lane, pgmail.tenant, pgmail.queue to {prefix}worker;
grant execute on function
  pgmail.mark_v1(uuid, uuid, integer, uuid, bigint, timestamptz, text, integer, text, jsonb),
  pgmail.recall_v1(uuid, uuid, integer, uuid, bigint, timestamptz, text, jsonb)
  to {prefix}api, {prefix}worker, {prefix}maintain;
grant execute on function
  pgmail.stop_for_restore(text), pgmail.restore_doubts(timestamptz),
  pgmail.decide_restore(integer, text, timestamptz, uuid, integer), pgmail.accept_restore(text, text)
  to {prefix}admin;
grant select on pgmail.history, pgmail.fence, pgmail.witness to {prefix}api, {prefix}worker, {prefix}maintain, {prefix}reader, {prefix}admin;
grant select on pgmail.relay, pgmail.worker, pgmail.leader, pgmail.schema_version, pgmail.site_domain
  to {prefix}api, {prefix}worker, {prefix}maintain, {prefix}reader, {prefix}admin;

-- the dashboard's page of the fleet
grant execute on function pgmail.fleet_v1() to {prefix}api, {prefix}admin;

-- sealing: wrapped data keys are of no use without the key that wraps them
grant execute on function pgmail.seal_state_v1() to {prefix}api, {prefix}producer, {prefix}admin;
grant execute on function pgmail.first_data_key_v1(bytea, text) to {prefix}api, {prefix}admin;
grant execute on function pgmail.add_data_key(text, bytea, text, text),
  pgmail.rewrap_data_key(integer, integer, bytea, bytea, text, text) to {prefix}admin;
grant execute on function pgmail.postpone_v1(integer, bigint, uuid[], integer[], double precision, text) to {prefix}worker;
grant select on pgmail.data_key to {prefix}worker, {prefix}admin;
grant execute on function pgmail.worker_opens_v1(bigint, text[]), pgmail.sealed_elsewhere_v1(text[]) to {prefix}worker;
-- end of sealing

-- feed: what happened, of the tenants of keys that were checked
grant execute on function pgmail.feed_now_v1(), pgmail.feed_since_v1(timestamptz),
  pgmail.feed_v1(pg_snapshot, pg_snapshot, xid8, uuid, uuid, integer[], integer, text[], uuid[])
  to {prefix}api, {prefix}worker, {prefix}maintain, {prefix}admin;
grant execute on function pgmail.live_keys_v1(integer[], uuid[]) to {prefix}api;
-- end of feed

grant select on pgmail.reply_reason, pgmail.reply_rule, pgmail.reply_pattern, pgmail.slowed_site, pgmail.refusal
  to {prefix}api, {prefix}reader, {prefix}admin;
grant select on pgmail.limits, pgmail.pause to {prefix}api, {prefix}worker, {prefix}reader, {prefix}admin;
grant select on pgmail.bucket, pgmail.permit to {prefix}admin;

-- The API serves an email with its texts, and never a file or an asset's; a reader reads neither.
grant select on pgmail.tag, pgmail.queue, pgmail.lane, pgmail.event, pgmail.outcome, pgmail.dead_letter, pgmail.tally, pgmail.tally_total,
  pgmail.tenant, pgmail.stream, pgmail.suppression, pgmail.audit, pgmail.ledger to {prefix}api, {prefix}reader, {prefix}admin;
grant select on pgmail.message, pgmail.template to {prefix}api, {prefix}admin;
grant select on pgmail.recipient, pgmail.attachment, pgmail.asset to {prefix}admin;
do $do$
declare g record;
begin
  for g in
    select x.name, x.roles, string_agg(quote_ident(a.attname), ', ' order by a.attnum) as columns
    from (values
      ('pgmail.recipient'::regclass,  '{prefix}api, {prefix}reader', array['variables']),
      ('pgmail.asset'::regclass,      '{prefix}api, {prefix}reader', array['body']),
      ('pgmail.message'::regclass,    '{prefix}reader', array['content']),
      ('pgmail.attachment'::regclass, '{prefix}reader', array['body']),
      ('pgmail.template'::regclass,   '{prefix}reader', array['subject', 'body_text', 'body_html'])) x(name, roles, hidden)
    join pg_attribute a on a.attrelid = x.name and a.attnum > 0 and not a.attisdropped and a.attname <> all (x.hidden)
    group by x.name, x.roles
  loop
    execute format('grant select (%s) on %s to %s', g.columns, g.name, g.roles);
  end loop;
end
$do$;

-- webhooks
grant execute on function
  pgmail.add_hook(uuid, text, text[], text[], jsonb, text, integer, bytea), pgmail.set_hook(uuid, jsonb, text), pgmail.remove_hook(uuid, text),
  pgmail.rotate_hook(uuid, integer, bytea, interval, text), pgmail.test_hook(uuid), pgmail.replay_hook(uuid, jsonb, uuid, integer, text),
  pgmail.count_replay(uuid, jsonb)
  to {prefix}api, {prefix}admin;
grant execute on function
  pgmail.fan_out_hooks_v1(integer), pgmail.claim_hooks_v1(text[], integer, integer, double precision, uuid[], integer[], double precision),
  pgmail.settle_hooks_v1(jsonb), pgmail.keep_hooks_v1(integer, integer)
  to {prefix}worker, {prefix}maintain;
grant select on pgmail.hook, pgmail.hook_queue, pgmail.hook_attempt to {prefix}api, {prefix}reader, {prefix}admin;
grant select (tenant_id, hook_id, id, created_at, created_by, ends_at) on pgmail.hook_secret to {prefix}api, {prefix}reader, {prefix}admin;
-- end of webhooks

-- quotas: what may come in
grant execute on function pgmail.set_quota(text, text, jsonb, text), pgmail.remove_quota(text, text, text) to {prefix}admin;
grant execute on function pgmail.quota_gate_v1(uuid), pgmail.take_quota_v1(uuid, integer[], text[], integer[]) to {prefix}api;
grant execute on function pgmail.doors_v1() to {prefix}worker, {prefix}maintain;
grant select on pgmail.quota, pgmail.door, pgmail.quota_meter, pgmail.quota_bucket to {prefix}api, {prefix}reader, {prefix}admin;

-- metrics: figures over all tenants, for who leads
grant execute on function pgmail.metrics_queue_v1(boolean), pgmail.metrics_fleet_v1(), pgmail.metrics_tables_v1()
  to {prefix}worker, {prefix}maintain, {prefix}admin;
-- end of metrics
-- figures
grant execute on function pgmail.rollup_v1(integer, integer, integer), pgmail.trim_rollups_v1(integer), pgmail.gauge_lanes_v1(),
  pgmail.gauge_states_v1() to {prefix}worker, {prefix}maintain;
grant execute on function pgmail.waits() to {prefix}api, {prefix}reader, {prefix}worker, {prefix}maintain, {prefix}admin;
grant select on pgmail.backlog, pgmail.gauge, pgmail.pulse, pgmail.rollup, pgmail.cause to {prefix}api, {prefix}reader, {prefix}admin;
grant select (rolled_at, gauged_at, counted_at) on pgmail.insight_cursor to {prefix}api, {prefix}reader, {prefix}admin;
-- end of figures
-- alerts: what is secret of a target is for who tells alone, and sealed where there is a key
grant execute on function
  pgmail.set_alert_rule(text, jsonb, text, boolean), pgmail.remove_alert_rule(text, text, boolean), pgmail.alert_rules(boolean),
  pgmail.silence_alert(text, text, timestamptz, text, boolean), pgmail.unsilence_alert(text, text, text, boolean), pgmail.alert_silences(boolean),
  pgmail.add_alert_target(text, text, text, bytea, text, text, boolean, uuid), pgmail.remove_alert_target(text, text, boolean),
  pgmail.test_alert_target(text, boolean), pgmail.alert_delivery_state(uuid, boolean), pgmail.alert_targets(boolean),
  pgmail.alerts(boolean, text, text, integer, uuid)
  to {prefix}api, {prefix}admin;
grant execute on function pgmail.alert_step_v1(), pgmail.alert_purge_v1(), pgmail.alert_take_v1(integer, uuid[]), pgmail.alert_give_back_v1(uuid[]),
  pgmail.alert_told_v1(uuid, boolean, text, boolean) to {prefix}worker, {prefix}maintain;
grant execute on function pgmail.saw_certificate_v1(text, text, timestamptz), pgmail.missed_certificate_v1(text, text, text) to {prefix}worker, {prefix}maintain;
grant execute on function pgmail.oldest_snapshot(), pgmail.hot_tables(), pgmail.replicas(), pgmail.chores_reached() to {prefix}worker, {prefix}maintain, {prefix}admin;
grant select on pgmail.alert, pgmail.alert_rule, pgmail.alert_silence to {prefix}reader, {prefix}admin;
grant select on pgmail.lost_worker, pgmail.certificate to {prefix}admin;
-- end of alerts

-- Row-level security. Policies name the roles they are for; the owner's own are functions/012_secure.sql's. Making one takes
-- its table's lock, and those of many tables at once are not to be had while mail flows: so those that are as they should
-- be are left alone, and an upgrade that changes none locks no table for them.
do $do$
declare
  t record; p record; fleet text[] := array['{prefix}api', '{prefix}worker', '{prefix}maintain', '{prefix}reader', '{prefix}admin'];
  mine text := '= (select pgmail.current_tenant())'; wanted jsonb := '[]';
begin
  for t in select c.oid::regclass as name, c.relname, c.relrowsecurity as secured,
             exists (select 1 from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped) as by_tenant
           from pg_class c
           where c.relnamespace = 'pgmail'::regnamespace and c.relkind in ('r', 'p') and not c.relispartition
             and c.relname <> 'alembic_version'
  loop
    if not t.secured then execute format('alter table %s enable row level security', t.name); end if;
    if t.relname in ('relay', 'worker', 'leader', 'schema_version', 'site_domain', 'reply_reason', 'reply_rule', 'reply_pattern',
                     'history', 'witness', 'fence', 'insight_cursor') then
      wanted := wanted || jsonb_build_object('tab', t.name, 'named', 'fleet', 'condition', 'true', 'roles',
        fleet || case when t.relname in ('schema_version', 'reply_reason') then array['{prefix}analyst'] else '{}' end);
    elsif t.relname in ('bucket', 'permit', 'lost_worker', 'certificate') then
      wanted := wanted || jsonb_build_object('tab', t.name, 'named', 'every', 'roles', array['{prefix}admin'], 'condition', 'true');
    elsif t.relname = 'limits' then
      -- What holds for a tenant: the limits of relays and sites, and its own. pgmail.tenant shows a tenant itself only.
      wanted := wanted
        || jsonb_build_object('tab', t.name, 'named', 'tenant', 'roles', array['{prefix}api', '{prefix}reader'],
                              'condition', 'scope <> ''tenant''::text or name in (select x.name from pgmail.tenant x)')
        || jsonb_build_object('tab', t.name, 'named', 'every', 'roles', array['{prefix}worker', '{prefix}admin'], 'condition', 'true');
    elsif t.by_tenant or t.relname = 'tenant' then
      wanted := wanted
        || jsonb_build_object('tab', t.name, 'named', 'tenant', 'roles', array['{prefix}api', '{prefix}reader'], 'condition',
             case when t.relname in ('pause', 'quota', 'alert_rule', 'alert_silence') then 'tenant_id is null or tenant_id ' when t.relname = 'tenant' then 'id ' else 'tenant_id ' end || mine)
        || jsonb_build_object('tab', t.name, 'named', 'every', 'roles', array['{prefix}worker', '{prefix}maintain', '{prefix}admin'], 'condition', 'true');
    end if;
  end loop;
  -- As PostgreSQL writes a condition back, without blanks, brackets and the names that it gives to columns.
  for p in
    select w.*, h.polname is not null as there, coalesce(w.tab, h.polrelid::regclass) as on_, coalesce('{prefix}' || w.named, h.polname) as called
    from jsonb_to_recordset(wanted) w(tab regclass, named text, roles text[], condition text)
    full join (select x.* from pg_policy x join pg_class c on c.oid = x.polrelid
               where c.relnamespace = 'pgmail'::regnamespace and x.polname in ('{prefix}tenant', '{prefix}every', '{prefix}fleet')) h
      on h.polrelid = w.tab and h.polname = '{prefix}' || w.named
    where w.tab is null or h.polname is null or h.polcmd <> 'r' or not h.polpermissive
      or (select array_agg(r.rolname::text order by r.rolname::text) from pg_roles r where r.oid = any (h.polroles))
         is distinct from (select array_agg(x order by x) from unnest(w.roles) x)
      or lower(regexp_replace(replace(pg_get_expr(h.polqual, h.polrelid), ' AS current_tenant', ''), '[\s()]', '', 'g'))
         <> lower(regexp_replace(w.condition, '[\s()]', '', 'g'))
  loop
    if p.there then execute format('drop policy %I on %s', p.called, p.on_); end if;
    if p.tab is not null then
      execute format('create policy %I on %s for select to %s using (%s)', p.called, p.on_,
        (select string_agg(quote_ident(x), ', ') from unnest(p.roles) x), p.condition);
    end if;
  end loop;
end
$do$;

insert into pgmail.database_role (role_name, tenant_id, carries_tenant) values
  ('{prefix}api', null, true), ('{prefix}producer', 1, false), ('{prefix}reader', 1, false), ('{prefix}analyst', 1, false), ('{prefix}admin', 1, false)
on conflict (role_name) do nothing;

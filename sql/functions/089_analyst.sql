-- What an analyst of one tenant sees in psql and BI tools: views of its own rows. Not the tables: under row-level security
-- the planner still estimates from the statistics of all tenants' rows, and EXPLAIN shows its estimates, so that
-- `where address < 'm'` would tell bit by bit who else writes to whom. Here nothing is estimated by a column (`security_barrier`
-- keeps the planner from the statistics behind it) and no condition goes further in than the tenant's own (`offset 0`).
-- A condition is tested on each row of the tenant: for one email there are status, trace and why, which use ids.
-- Content is in three views of their own, which pgmail tenant role --content grants.
-- A view holds on to columns: none is made while the schema is of an older revision.
do $do$
begin
  if (select v.version from pgmail.schema_version v) < 4 then return; end if;

  create or replace view pgmail.my_message with (security_barrier = true) as
  select id, created_at, created_by, stream, priority, mode, sender, recipients, scheduled_at, expires_at, template, template_version,
    size_bytes, tags, metadata, replay_of, idempotency_key
  from pgmail.message where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_recipient with (security_barrier = true) as
  select id, message_id, position, role, address, rcpt, name, site
  from pgmail.recipient where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_queue with (security_barrier = true) as
  select id, message_id, pgmail.state_of(null, false, true, leased_by is not null, due_at, wait, pgmail.now()) as state,
    case when due_at = 'infinity' then held_due_at else due_at end as due_at, leased_at, attempts, hold_reason, in_doubt, expires_at
  from pgmail.queue where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_event with (security_barrier = true) as
  select recipient_id, id, message_id, at, type, attempt, code, enhanced, reply, phase, site, relay, remote_host, tls, ms, detail
  from pgmail.event where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_outcome with (security_barrier = true) as
  select recipient_id, message_id, state, at, stream, site, attempts, code, enhanced, reply, reason, relay, remote_host
  from pgmail.outcome where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_dead_letter with (security_barrier = true) as
  select recipient_id, message_id, stream, priority, site, died_at, reason, error, attempts, code, enhanced, reply, expires_at
  from pgmail.dead_letter where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_suppression with (security_barrier = true) as
  select address, stream, reason, source, created_at, created_by, expires_at
  from pgmail.suppression where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_stream with (security_barrier = true) as
  select name, priority, relay, on_doubt, trace, max_attempts, max_age_seconds, max_queued, suppress_bounced, keep_content_days, created_at
  from pgmail.stream where tenant_id = (select pgmail.current_tenant()) offset 0;

  -- Totals since the beginning, kept when mail is past its retention: enqueued and the final states.
  create or replace view pgmail.my_total with (security_barrier = true) as
  select stream, kind, sum(n)::bigint as n from (
    select stream, kind, n from pgmail.tally where tenant_id = (select pgmail.current_tenant())
    union all
    select stream, kind, n from pgmail.tally_total where tenant_id = (select pgmail.current_tenant())) t
  group by stream, kind offset 0;

  -- Content: only to analysts to whom it was granted. With a key_id it is sealed, and says nothing here.
  create or replace view pgmail.my_content with (security_barrier = true) as
  select id as message_id, content, key_id from pgmail.message where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_attachment with (security_barrier = true) as
  select message_id, position, filename, content_type, content_id, asset, size_bytes, body, key_id
  from pgmail.attachment where tenant_id = (select pgmail.current_tenant()) offset 0;

  create or replace view pgmail.my_variables with (security_barrier = true) as
  select id as recipient_id, message_id, variables, key_id from pgmail.recipient where tenant_id = (select pgmail.current_tenant()) offset 0;
end
$do$;

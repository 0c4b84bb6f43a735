-- Takes back what 0004 made; functions first, since functions/ of an older program do not drop them.

------------------------------------------------------------------------------------------------ keys
-- An older program would take a key with limits for one without: such keys end here.
update pgmail.api_key set revoked_at = pgmail.now()
 where revoked_at is null
   and (test or not scopes @> '{send,read,manage}' or num_nonnulls(streams, from_domains, networks, expires_at) > 0);
drop function if exists pgmail.list_keys();
drop function if exists pgmail.check_key_v2(bytea);
drop function if exists pgmail.make_key(text, text, bytea, jsonb);
drop function if exists pgmail.rotate_key(uuid, text, bytea, interval, text);
drop function if exists pgmail.note_keys_v1(integer[], uuid[], inet[], double precision[]);
drop function if exists pgmail.note_guesses_v1(text, integer);
drop function if exists pgmail.reach_v1(uuid[]);
drop function if exists pgmail.need_key(uuid);
drop function if exists pgmail.key_limits(pgmail.api_key, jsonb);
drop function if exists pgmail.need_within(pgmail.api_key, pgmail.api_key);
drop function if exists pgmail.covers_domain(text[], text);
drop function if exists pgmail.acting_admin();
drop function if exists pgmail.current_key();
alter table pgmail.message drop column api_key;
alter table pgmail.api_key
  drop column scopes, drop column test, drop column streams, drop column from_domains, drop column networks,
  drop column expires_at, drop column family, drop column replaced_by, drop column last_used_at, drop column last_used_from;
-- end of keys

------------------------------------------------------------------------------------------------ tenants and audit
drop view if exists pgmail.my_message, pgmail.my_recipient, pgmail.my_queue, pgmail.my_event, pgmail.my_outcome, pgmail.my_dead_letter,
  pgmail.my_suppression, pgmail.my_stream, pgmail.my_total, pgmail.my_content, pgmail.my_attachment, pgmail.my_variables;
drop function if exists pgmail.erase_tenant(text, text, boolean, integer);
drop function if exists pgmail.tables_of_tenants();
drop function if exists pgmail.make_tenant_role(text, text, text, text, boolean);
drop function if exists pgmail.tenant_role_sql(text, text, text, text, boolean);
drop function if exists pgmail.revoke_tenant(name, text);
drop function if exists pgmail.suspend_tenant(text, text);
drop function if exists pgmail.resume_tenant(text, text);
drop function if exists pgmail.suspension(integer);
drop function if exists pgmail.tenant_named(text);
drop function if exists pgmail.secure_next(text);
drop function if exists pgmail.secure_table(regclass);
-- Row-level security as it was: on, and not forced on the owner.
do $do$
declare t regclass;
begin
  for t in select p.polrelid::regclass from pg_policy p join pg_class c on c.oid = p.polrelid
           where c.relnamespace = 'pgmail'::regnamespace and p.polname = 'owner' loop
    execute format('drop policy owner on %s', t);
    execute format('alter table %s no force row level security', t);
  end loop;
end
$do$;
-- The mail of a suspended tenant stays where it is: all its streams are paused instead, for the same reason.
insert into pgmail.pause (tenant_id, scope, name, reason, until, paused_at, paused_by)
select p.tenant_id, 'stream', s.name, p.reason, p.until, p.paused_at, p.paused_by
from pgmail.pause p join pgmail.stream s on s.tenant_id = p.tenant_id where p.scope = 'tenant'
on conflict (tenant_id, scope, name) do update set reason = excluded.reason, until = null;
delete from pgmail.pause p where p.scope = 'tenant';
alter table pgmail.pause drop constraint pause_scope_check;
alter table pgmail.pause add constraint pause_scope_check check (scope in ('site', 'stream', 'lane'));

-- A role that was revoked has no row where that program looks; one that it ships speaks again with its next upgrade.
delete from pgmail.database_role r where r.tenant_id is null and not r.carries_tenant;
alter table pgmail.database_role drop constraint database_role_check;
alter table pgmail.database_role add constraint database_role_check check ((tenant_id is not null) <> carries_tenant);

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
drop function if exists pgmail.domains_shown(text);
drop function if exists pgmail.is_sender_domain(integer, text);
drop function if exists pgmail.domain_and_above(text);
drop function if exists pgmail.has_bidi(text);
drop table pgmail.sender_domain;
alter table pgmail.tenant drop column senders;

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
-- Programs of before would send test email: what of it waits is cancelled for good, and told.
with gone as (
  delete from pgmail.queue q using pgmail.message m, pgmail.recipient r
  where m.tenant_id = q.tenant_id and m.id = q.message_id and m.test and r.tenant_id = q.tenant_id and r.id = q.id
  returning q.tenant_id, q.id, q.message_id, m.stream, r.site
), outcomes as (
  insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, reason)
  select tenant_id, id, message_id, 'cancelled', pgmail.now(), stream, site, 'a test email, which the older program would send' from gone
), told as (
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, at, site, detail)
  select tenant_id, id, message_id, 'email.cancelled', pgmail.now(), site, 'a test email, which the older program would send' from gone
)
insert into pgmail.tally (tenant_id, stream, kind, n, at)
select tenant_id, stream, 'cancelled', count(*), pgmail.now() from gone group by tenant_id, stream;
with gone as (
  delete from pgmail.dead_letter d using pgmail.message m where m.tenant_id = d.tenant_id and m.id = d.message_id and m.test
  returning d.tenant_id, d.recipient_id, d.message_id, d.stream, d.site, d.attempts
), outcomes as (
  insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason)
  select tenant_id, recipient_id, message_id, 'cancelled', pgmail.now(), stream, site, attempts, 'a test email, which the older program would send' from gone
), told as (
  insert into pgmail.event (tenant_id, recipient_id, message_id, type, at, site, detail)
  select tenant_id, recipient_id, message_id, 'email.cancelled', pgmail.now(), site, 'a test email, which the older program would send' from gone
)
insert into pgmail.tally (tenant_id, stream, kind, n, at)
select g.tenant_id, g.stream, k.kind, k.sign * count(*), pgmail.now()
from gone g, (values ('dead', -1), ('cancelled', 1)) k(kind, sign) group by g.tenant_id, g.stream, k.kind, k.sign;
drop function if exists pgmail.claim_v3(integer, bigint, bigint[], timestamptz[], uuid[], integer[], boolean[], boolean[]);
drop function if exists pgmail.worker_start_v2(text, integer, text, integer, text);
drop function if exists pgmail.test_site();
alter type pgmail.email drop attribute if exists test;
alter table pgmail.worker drop column staging;
alter table pgmail.site_domain drop constraint site_domain_site_check;
alter table pgmail.message drop column test;

-- end of test mail

------------------------------------------------------------------------------------------------ sealing
do $do$ begin
  if exists (select from pgmail.data_key) then
    raise exception using errcode = 'PM409', constraint = 'sealed_mail', message = 'there are data keys, and without them sealed mail '
      || 'can never be read again; once none is needed: delete from pgmail.data_key';
  end if;
end $do$;
drop function if exists pgmail.postpone_v1(integer, bigint, uuid[], integer[], double precision, text);
drop function if exists pgmail.seal_state_v1();
drop function if exists pgmail.rewrap_data_key(integer, integer, bytea, bytea, text, text);
drop function if exists pgmail.add_data_key(text, bytea, text, text);
drop function if exists pgmail.first_data_key_v1(bytea, text);
drop function if exists pgmail.store_data_key(integer, bytea, text, text, boolean);
drop function if exists pgmail.read_sealed(integer, jsonb);
drop function if exists pgmail.put_sealed(integer, jsonb, pgmail.email);
drop function if exists pgmail.fits_sealed(bytea, bigint);
drop function if exists pgmail.octets_of(jsonb);
alter type pgmail.email drop attribute if exists message_id, drop attribute if exists seal_key;
drop table pgmail.data_key;
alter table pgmail.stream drop column seal;

-- end of sealing

------------------------------------------------------------------------------------------------ version
update pgmail.schema_version set version = 3;

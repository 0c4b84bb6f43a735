-- A tenant that leaves: everything of it goes, batch by batch; what remains is its row without a name, the totals of what
-- it sent (tally_total, for the bill) and the record of what operators did, without its objects and reasons.

-- The tables that hold a tenant's rows, partitions one by one. From the catalogue, so that a table that is new to pgmail is
-- emptied too. The queue goes first and by its own rules, dead letters next.
create or replace function pgmail.tables_of_tenants() returns setof regclass
language sql stable
as $$
  select c.oid::regclass from pg_class c
  where c.relnamespace = 'pgmail'::regnamespace and c.relkind = 'r'
    and c.relname not in ('tally', 'tally_total', 'audit', 'queue', 'dead_letter', 'pause', 'tenant')
    and exists (select from pg_attribute a where a.attrelid = c.oid and a.attname = 'tenant_id' and not a.attisdropped)
  order by c.relispartition, c.relname
$$;

-- One step of it, of p_most rows at most. The first shuts the door: the tenant is suspended, its keys and roles speak for
-- nobody. Refused where mail is queued or dead (mail_waits) unless p_discard gives it up; what is being sent this moment is
-- left to a later step. Call it until `done`.
-- Answers {"tenant": its id, "discarded", "deleted", "sending", "done"}.
create or replace function pgmail.erase_tenant(p_name text, p_reason text, p_discard boolean default false, p_most integer default 5000)
returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare
  t integer := pgmail.tenant_named(p_name); part regclass; discarded_ integer := 0; n integer; leased integer; gone_ text;
begin
  if btrim(coalesce(p_reason, '')) = '' then perform pgmail.refuse('missing_field', '/reason', 'is required: others will ask why'); end if;
  if length(p_reason) > 1000 then perform pgmail.refuse('invalid_reason', '/reason', 'longer than 1,000 characters'); end if;
  if p_most is null or p_most not between 1 and 100000 then perform pgmail.refuse('invalid_limit', '/most', 'must be 1 to 100,000'); end if;
  if exists (select from pgmail.database_role r where r.role_name = session_user and r.tenant_id = t) then
    perform pgmail.refuse('own_tenant', '/name', 'the role that you are speaks for this tenant; erase it as another one', 409);
  end if;
  if not p_discard and (exists (select from pgmail.queue q where q.tenant_id = t) or exists (select from pgmail.dead_letter d where d.tenant_id = t)) then
    perform pgmail.refuse('mail_waits', '/name', format('the tenant %s has mail that waits or is dead; give it up with it (discard), or send it first', p_name), 409);
  end if;
  perform pg_advisory_xact_lock(hashtextextended('pgmail.erase/' || t, 0));

  if not exists (select from pgmail.pause p where p.tenant_id = t and p.scope = 'tenant' and p.reason = 'it is being erased') then
    perform pgmail.record_act(t, 'tenant.erase', 'tenant ' || t, p_reason);
    insert into pgmail.pause (tenant_id, scope, name, reason, paused_by) values (t, 'tenant', p_name, 'it is being erased', pgmail.actor())
    on conflict (tenant_id, scope, name) do update set reason = excluded.reason, paused_at = pgmail.now(), paused_by = excluded.paused_by;
  end if;
  update pgmail.database_role r set tenant_id = null where r.tenant_id = t;   -- as revoke_tenant, and for its reason
  delete from pgmail.api_key k where k.tenant_id = t;

  with free as materialized (
    select q.id, q.message_id, q.lane from pgmail.queue q
    where q.tenant_id = t and q.leased_by is null order by q.id limit p_most for update skip locked
  ), gone as (
    delete from pgmail.queue q where q.tenant_id = t and q.id = any (array(select free.id from free))
  ), facts as materialized (
    select coalesce(g.stream, 'unknown') as stream, free.lane from free left join lateral (
      select x.stream from pgmail.message x where x.tenant_id = t and x.id = free.message_id limit 1) g on true
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select t, f.stream, 'cancelled', count(*), array[f.lane], array[count(*)] from facts f group by f.stream, f.lane
  )
  select count(*) into discarded_ from facts;
  with gone as (
    delete from pgmail.dead_letter d where d.tenant_id = t and d.recipient_id = any (array(
      select x.recipient_id from pgmail.dead_letter x where x.tenant_id = t order by x.recipient_id limit p_most for update skip locked))
    returning d.stream
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n) select t, g.stream, k.kind, k.sign * count(*)
    from gone g, (values ('cancelled', 1), ('dead', -1)) k(kind, sign) group by g.stream, k.kind, k.sign
  )
  select count(*) into n from gone;
  discarded_ := discarded_ + n;
  select count(*) into leased from pgmail.queue q where q.tenant_id = t and q.leased_by is not null;
  if discarded_ > 0 or exists (select from pgmail.queue q where q.tenant_id = t)
     or exists (select from pgmail.dead_letter d where d.tenant_id = t) then
    return jsonb_build_object('tenant', t, 'discarded', discarded_, 'deleted', 0, 'sending', leased, 'done', false);
  end if;

  -- By place in the partition: a tenant's rows are found by the key, which its id leads.
  for part in select x from pgmail.tables_of_tenants() x loop
    execute format('delete from %s d where d.ctid = any (array(select x.ctid from %s x where x.tenant_id = $1 limit $2))', part, part)
      using t, p_most;
    get diagnostics n = row_count;
    if n > 0 then
      return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', n, 'sending', 0, 'done', false);
    end if;
  end loop;

  delete from pgmail.limits l where l.scope = 'tenant' and l.name = p_name;
  delete from pgmail.bucket b where b.scope = 'tenant' and b.name = p_name;
  delete from pgmail.permit h where h.scope = 'tenant' and h.name = p_name;
  gone_ := 'erased-' || t;
  -- It stays suspended: a transaction that handed mail over before may commit it only now, and nobody is left to want it.
  -- Another call, by the name that it has from now on, erases that too.
  delete from pgmail.pause p where p.tenant_id = t and p.scope <> 'tenant';
  update pgmail.pause p set name = gone_, reason = 'it was erased' where p.tenant_id = t;
  update pgmail.tenant x set name = gone_ where x.id = t;
  update pgmail.audit a set object = null, reason = null where a.tenant_id = t and a.action <> 'tenant.erase';
  perform pgmail.record_act(t, 'tenant.erased', gone_, null);
  return jsonb_build_object('tenant', t, 'discarded', 0, 'deleted', 0, 'sending', 0, 'done', true);
end
$$;

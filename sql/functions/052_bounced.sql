-- What follows from refusals beside the mail's own fate: addresses that get no more mail, and sites that are left alone.

-- Notes the recipients of settled bounces whose group says `suppress` (a fact about the address: gone, closed, its domain
-- takes no mail), unless their stream has it switched off. Called by settle, for what it settled. It only appends: to insert
-- into the list itself would wait for any open transaction that has the same address in hand, and all settling with it.
create or replace function pgmail.suppress_bounced(
  p_tenant integer, p_done uuid[], p_groups jsonb, p_ids uuid[], p_group smallint[]
) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.bounced (tenant_id, recipient_id, source)
  select p_tenant, u.id, concat_ws(' ', g.x->>'code', g.x->>'enhanced', g.x->>'reason')
  from unnest(p_ids, p_group) u(id, n)
  join jsonb_array_elements(p_groups) with ordinality g(x, n) on g.n = u.n
  where u.id = any (p_done) and g.x->'suppress' = 'true' and g.x->>'kind' = 'bounced'
    and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = g.x->>'stream' and not s.suppress_bounced)
$$;

-- Puts noted addresses on the list, p_most a call: for ever, on all streams of the tenant; one that is suppressed already
-- stays as it is, and of a person erased meanwhile it is the token. An address that another transaction has in hand is
-- waited for during 100 ms, three of them at most, and left for a later call: less than deadlock_timeout, so that nobody
-- is the victim of a deadlock with us. Those tried before come last, so that they keep nobody else waiting.
-- Answers how many it looked at, and how many of these it had to leave.
create or replace function pgmail.suppress_bounced_v1(p_most integer default 50, out looked integer, out busy integer)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms' set jit = off
as $$
declare r record; waited integer := 0;
begin
  perform set_config('idle_in_transaction_session_timeout', '3s', true);   -- as in claim_v2
  looked := 0; busy := 0;
  for r in
    with mine as materialized (
      select b.tenant_id, b.id, b.recipient_id, b.source, b.tries from pgmail.bounced b
      order by b.tries, b.tenant_id, b.id limit p_most for update skip locked)
    select m.tenant_id, y.address, array_agg(m.id) as ids, min(m.source) as source
    from mine m left join lateral (
      select x.address from pgmail.recipient x where x.tenant_id = m.tenant_id and x.id = m.recipient_id limit 1) y on true
    group by m.tenant_id, y.address order by min(m.tries), m.tenant_id, y.address
  loop
    looked := looked + cardinality(r.ids);
    begin
      if waited >= 3 then raise lock_not_available; end if;
      if r.address is not null then   -- null: so old that retention took the recipient
        insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by)
        values (r.tenant_id, r.address, '', 'bounced', r.source, 'pgmail')
        on conflict (tenant_id, address, stream) do update
          set reason = excluded.reason, source = excluded.source, created_at = pgmail.now(), created_by = excluded.created_by, expires_at = null
          where suppression.expires_at <= pgmail.now();
      end if;
      delete from pgmail.bounced b where b.tenant_id = r.tenant_id and b.id = any (r.ids);
    exception when lock_not_available or deadlock_detected then
      busy := busy + cardinality(r.ids);
      if waited < 3 then
        update pgmail.bounced b set tries = b.tries + 1 where b.tenant_id = r.tenant_id and b.id = any (r.ids);
      end if;
      waited := waited + 1;
    end;
  end loop;
end
$$;

-- Pauses a site of one tenant for a while, because it said again and again that it wants no more now: a minute, and twice as
-- long each time that it begins again within two hours after the last end, up to an hour. Answers the end; null where it is
-- paused already, by anybody. The row is as an operator's: `pgmail why` shows it, `pgmail resume --site` ends it.
-- Nobody waits for an operator's open transaction here, least of all a worker with mail in hand.
create or replace function pgmail.slow_site_v1(p_tenant integer, p_site text, p_reason text) returns timestamptz
language plpgsql volatile security definer set search_path = pgmail, pg_temp set lock_timeout = '100ms'
as $$
declare now_ timestamptz := pgmail.now(); s pgmail.slowed_site;
begin
  if exists (select from pgmail.pause p where (p.tenant_id = p_tenant or p.tenant_id is null) and p.scope = 'site'
             and p.name = p_site and (p.until is null or p.until > now_)) then return null; end if;
  insert into pgmail.slowed_site as x (tenant_id, site, times, until) values (p_tenant, p_site, 1, now_ + interval '1 minute')
  on conflict (tenant_id, site) do update set
    times = case when x.until > now_ - interval '2 hours' then least(x.times + 1, 7) else 1 end,
    until = now_ + least(interval '1 hour', interval '1 minute' *
      case when x.until > now_ - interval '2 hours' then 2 ^ least(x.times, 6) else 1 end)
    where x.until <= now_   -- several workers at once: the first one's
  returning * into s;
  if s.until is null then return null; end if;
  insert into pgmail.pause (tenant_id, scope, name, reason, until, paused_by)
  values (p_tenant, 'site', p_site, left(coalesce(nullif(btrim(p_reason), ''), 'it refused several times'), 1000), s.until, 'pgmail')
  on conflict (tenant_id, scope, name) do update set reason = excluded.reason, until = excluded.until, paused_at = now_,
    paused_by = excluded.paused_by;
  insert into pgmail.audit (tenant_id, actor, action, object, reason)
  values (p_tenant, 'pgmail', 'site.pause', p_site, format('until %s: %s', s.until, left(p_reason, 900)));
  return s.until;
end
$$;

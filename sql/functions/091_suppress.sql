-- Who gets no mail: added, taken back, imported. An entry is (address, stream); stream '' is every stream. Mail to it is
-- settled as suppressed when it is enqueued (040) and again before it is sent (queries/work.sql), whatever it waited for.

-- One entry; one that is there is replaced. Answers the address in its normal form.
create or replace function pgmail.suppress(
  p_address text, p_reason text default 'manual', p_source text default null, p_stream text default '',
  p_expires_at timestamptz default null
) returns text
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address); f record;
begin
  select * into f from pgmail.suppression_fault(t, a.fault, p_reason, p_source, coalesce(p_stream, ''), p_expires_at);
  if f.code is not null then perform pgmail.refuse(f.code, f.field, f.message); end if;
  insert into pgmail.suppression (tenant_id, address, stream, reason, source, created_by, expires_at)
  values (t, a.address, coalesce(p_stream, ''), p_reason, p_source, pgmail.actor(), p_expires_at)
  on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
    created_at = pgmail.now(), created_by = excluded.created_by, expires_at = excluded.expires_at;
  perform pgmail.record_act(t, 'suppression.add', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return a.address;
end
$$;

-- Whether the address was suppressed on this stream.
create or replace function pgmail.unsuppress(p_address text, p_stream text default '', p_reason text default null) returns boolean
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); a pgmail.address := pgmail.parse_address(p_address);
begin
  if a.fault is not null then perform pgmail.refuse('invalid_address', '/address', a.fault); end if;
  delete from pgmail.suppression s where s.tenant_id = t and s.address = a.address and s.stream = coalesce(p_stream, '');
  if not found then return false; end if;
  perform pgmail.record_act(t, 'suppression.remove', concat_ws(' ', a.address, nullif(p_stream, '')), p_reason);
  return true;
end
$$;

-- What is wrong with an entry, if anything; p_fault is what parsing its address found.
create or replace function pgmail.suppression_fault(
  p_tenant integer, p_fault text, p_reason text, p_source text, p_stream text, p_expires_at timestamptz,
  out code text, out field text, out message text
)
language plpgsql stable
as $$
begin
  if p_fault is not null then
    code := 'invalid_address'; field := '/address'; message := p_fault;
  elsif p_reason is null or p_reason not in ('bounced', 'complained', 'unsubscribed', 'manual', 'invalid') then
    code := 'invalid_reason'; field := '/reason'; message := 'must be bounced, complained, unsubscribed, manual or invalid';
  elsif p_stream <> '' and not exists (select from pgmail.stream s where s.tenant_id = p_tenant and s.name = p_stream) then
    code := 'unknown_stream'; field := '/stream'; message := format('no stream is named %L', left(p_stream, 63));
  elsif length(p_source) > 1000 then
    code := 'invalid_source'; field := '/source'; message := 'longer than 1,000 characters';
  elsif p_expires_at <= pgmail.now() then
    code := 'time_in_past'; field := '/expires_at'; message := 'it has passed';
  elsif p_expires_at > pgmail.now() + interval '100 years' then
    code := 'time_too_far'; field := '/expires_at'; message := 'lies more than 100 years ahead; leave it out for ever';
  end if;
end
$$;

-- Many entries, in one statement: up to 10,000, as arrays of one length (p_created may hold nulls: now). What is there
-- already with the same reason, source and expiry is left as it is, so that a file imported again changes nothing; of two
-- rows for one entry the later one counts. p_strict: the first fault refuses them all, its field led by the position;
-- otherwise faults are answered and the rest is stored. p_store false only says what would happen.
-- One import is one audit row, however many calls it takes: give the audit of the first answer to the next ones.
create or replace function pgmail.suppress_many(
  p_addresses text[], p_streams text[], p_reasons text[], p_sources text[], p_created timestamptz[], p_expires timestamptz[],
  p_strict boolean default true, p_store boolean default true, p_audit bigint default null,
  out audit bigint, out added integer, out changed integer, out unchanged integer, out faults jsonb, out entries jsonb
)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); who text := pgmail.actor(); now_ timestamptz := pgmail.now(); bad jsonb;
begin
  if cardinality(p_addresses) > 10000 then perform pgmail.refuse('batch_too_large', '', 'at most 10,000 entries at once', 413); end if;
  with given as materialized (
    select u.n - 1 as position, pgmail.parse_address(u.address) as a, coalesce(u.stream, '') as stream, u.reason, u.source,
      least(coalesce(u.created, now_), now_) as created, u.expires
    from unnest(p_addresses, p_streams, p_reasons, p_sources, p_created, p_expires)
      with ordinality u(address, stream, reason, source, created, expires, n)
  ), judged as materialized (
    select g.position, (g.a).address as address, g.stream, g.reason, g.source, g.created, g.expires, f.code, f.field, f.message
    from given g cross join lateral pgmail.suppression_fault(t, (g.a).fault, g.reason, g.source, g.stream, g.expires) f
  ), fresh as materialized (
    select distinct on (j.address, j.stream) j.* from judged j where j.code is null
    order by j.address, j.stream, j.position desc
  ), compared as materialized (
    select f.*, s.address is not null as known,
      s.address is not null and (s.reason, s.source, s.expires_at) is not distinct from (f.reason, f.source, f.expires) as same
    from fresh f left join lateral (
      select x.address, x.reason, x.source, x.expires_at from pgmail.suppression x
      where x.tenant_id = t and x.address = f.address and x.stream = f.stream limit 1) s on true
  ), stored as (
    -- In one order for all: two imports at once do not deadlock.
    insert into pgmail.suppression as s (tenant_id, address, stream, reason, source, created_at, created_by, expires_at)
    select t, c.address, c.stream, c.reason, c.source, c.created, who, c.expires from compared c
    where not c.same and p_store and not (p_strict and exists (select from judged j where j.code is not null))
    order by c.address, c.stream
    on conflict (tenant_id, address, stream) do update set reason = excluded.reason, source = excluded.source,
      created_at = excluded.created_at, created_by = excluded.created_by, expires_at = excluded.expires_at
  )
  select count(*) filter (where not c.known), count(*) filter (where c.known and not c.same), count(*) filter (where c.same),
    (select jsonb_agg(jsonb_build_object('position', j.position, 'code', j.code, 'field', j.field, 'message', j.message)
       order by j.position) from judged j where j.code is not null),
    jsonb_agg(jsonb_build_array(c.address, c.stream) order by c.position)
  into added, changed, unchanged, bad, entries from compared c;
  faults := coalesce(bad, '[]'); entries := coalesce(entries, '[]');
  if p_strict and bad is not null then
    perform pgmail.refuse(bad->0->>'code', '/' || (bad->0->>'position') || (bad->0->>'field'), bad->0->>'message');
  end if;
  audit := p_audit;
  if not p_store then return; end if;
  if audit is null then
    insert into pgmail.audit (tenant_id, actor, action, object, reason, source, application)
    values (t, who, 'suppression.import', '0', null, pgmail.act_source(), nullif(current_setting('application_name', true), ''))
    returning id into audit;
  end if;
  update pgmail.audit x set object = (x.object::bigint + added + changed)::text,
    reason = (select string_agg(k.reason, ', ' order by k.reason) from (
      select trim(y) as reason from string_to_table(x.reason, ',') y
      union select distinct r from unnest(p_reasons) r where r ~ '^[a-z]{1,20}$') k)
  where x.id = audit and x.tenant_id = t and x.actor = who and x.action = 'suppression.import';
  if not found then perform pgmail.refuse('not_found', '/audit', 'no such import of yours', 404); end if;
end
$$;

-- What has expired suppresses nothing any more; the leader clears it away. Answers how many.
create or replace function pgmail.purge_suppressions_v1(p_most integer default 5000) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with late as materialized (
    select s.tenant_id, s.address, s.stream from pgmail.suppression s where s.expires_at <= pgmail.now()
    order by s.expires_at limit p_most for update skip locked
  )
  delete from pgmail.suppression s using late x
  where s.tenant_id = x.tenant_id and s.address = x.address and s.stream = x.stream;
  get diagnostics n = row_count;
  return n;
end
$$;

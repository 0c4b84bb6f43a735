-- What a person decides about many at once: mail that is held in doubt, and dead letters. A filter is an object whose
-- keys narrow it; {} is all of the tenant. Each call takes p_most rows at most, oldest first, and answers how many it
-- moved: call again until it answers 0. Rows that another transaction holds are passed over.

-- Refuses a key that a filter does not know, which else would mean more than was asked for, and a value of no use.
create or replace function pgmail.check_filter(p_filter jsonb, p_known text[]) returns void
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare k text; v jsonb; at timestamptz; a pgmail.address;
begin
  if p_filter is null or jsonb_typeof(p_filter) <> 'object' then
    perform pgmail.refuse('invalid_field', '/filter', 'must be an object; {} is all');
  end if;
  for k, v in select * from jsonb_each(p_filter) loop
    if k <> all (p_known) then
      perform pgmail.refuse('unknown_field', '/filter/' || k, 'known here: ' || array_to_string(p_known, ', '));
    elsif jsonb_typeof(v) = 'null' then
      continue;
    elsif k = 'worker' then
      if jsonb_typeof(v) <> 'number' or v::text !~ '^[0-9]{1,18}$' then
        perform pgmail.refuse('invalid_field', '/filter/worker', 'must be the number of a worker');
      end if;
    elsif k = 'streams' then
      if jsonb_typeof(v) <> 'array' then perform pgmail.refuse('invalid_field', '/filter/streams', 'must be an array of names'); end if;
    elsif jsonb_typeof(v) <> 'string' then
      perform pgmail.refuse('invalid_field', '/filter/' || k, 'must be a string');
    elsif k = 'recipient' then
      a := pgmail.parse_address(v #>> '{}');
      if a.fault is not null then perform pgmail.refuse('invalid_address', '/filter/recipient', a.fault); end if;
    elsif k in ('doubted_before', 'doubted_after', 'died_before', 'died_after') then
      begin
        at := (v #>> '{}')::timestamptz;
      exception when others then
        perform pgmail.refuse('invalid_time', '/filter/' || k, 'must be a moment, ISO 8601');
      end;
    end if;
  end loop;
end
$$;

-- What is held in doubt: mail that may have been sent, on streams that hold. `since` is when it came to be in doubt, and
-- relay, worker and attempt are those of the attempt that nobody knows the end of. Filter: stream, site, relay, worker,
-- recipient (an address), doubted_after (included) and doubted_before (not). Newest email first, unless `newer` asks for
-- those next above an id.
create or replace function pgmail.in_doubt(
  filter jsonb default '{}', most integer default null, below uuid default null, above uuid default null, newer boolean default false
) returns table (recipient_id uuid, message_id uuid, address text, stream text, site text, since timestamptz, attempt smallint,
                 relay text, remote_host text, worker bigint, reason text, error text)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,relay,worker,recipient,doubted_after,doubted_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select q.id, q.message_id, r.address, m.stream, r.site, coalesce(e.at, q.held_due_at), coalesce(e.attempt, q.attempts),
    coalesce(e.relay, q.begun_relay), e.remote_host, e.worker, q.hold_reason, e.detail
  from pgmail.queue q
  cross join lateral (
    select x.address, x.site from pgmail.recipient x where x.tenant_id = t and x.id = q.id limit 1) r
  cross join lateral (
    select x.stream from pgmail.message x where x.tenant_id = t and x.id = q.message_id limit 1) m
  left join lateral (
    select x.at, x.attempt, x.relay, x.remote_host, x.worker, x.detail from pgmail.event x
    where x.tenant_id = t and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
  where q.tenant_id = t and q.in_doubt
    and (below is null or q.id < below) and (above is null or q.id > above)
    and (f->>'stream' is null or m.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? m.stream)
    and (f->>'site' is null or r.site = f->>'site')
    and (f->>'recipient' is null or r.address = who)
    and (f->>'relay' is null or coalesce(e.relay, q.begun_relay) = f->>'relay')
    and (f->>'worker' is null or e.worker = (f->>'worker')::bigint)
    and (f->>'doubted_after' is null or e.at >= (f->>'doubted_after')::timestamptz)
    and (f->>'doubted_before' is null or e.at < (f->>'doubted_before')::timestamptz)
  order by case when newer then q.id end, case when not newer then q.id end desc
  limit most;
end
$$;

-- Ends the doubt of these recipients; those that are not held in doubt are passed over.
create or replace function pgmail.resolve_ids(p_tenant integer, p_ids uuid[], p_how text, p_reason text) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer; words text;
begin
  if p_how is null or p_how not in ('assume_sent', 'resend') then
    perform pgmail.refuse('invalid_field', '/how', 'must be assume_sent or resend');
  end if;
  words := concat_ws(': ', case p_how when 'resend' then 'resent by ' else 'assumed sent by ' end || pgmail.actor(), p_reason);
  with free as materialized (
    select q.id from pgmail.queue q
    where q.tenant_id = p_tenant and q.id = any (p_ids) and q.in_doubt and q.leased_by is null
    order by q.id for update skip locked
  ), facts as materialized (
    select q.id, q.message_id, q.lane, m.stream, m.priority, r.site, coalesce(e.relay, q.begun_relay) as relay, e.remote_host,
      greatest(e.attempt, q.attempts) as attempt
    from pgmail.queue q
    cross join lateral (select x.site from pgmail.recipient x where x.tenant_id = p_tenant and x.id = q.id limit 1) r
    cross join lateral (
      select x.stream, x.priority from pgmail.message x where x.tenant_id = p_tenant and x.id = q.message_id limit 1) m
    left join lateral (
      select x.attempt, x.relay, x.remote_host from pgmail.event x
      where x.tenant_id = p_tenant and x.recipient_id = q.id and x.type = 'email.in_doubt' order by x.id desc limit 1) e on true
    where q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), gone as (
    delete from pgmail.queue q
    where p_how = 'assume_sent' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), outcomes as (
    insert into pgmail.outcome (tenant_id, recipient_id, message_id, state, at, stream, site, attempts, reason, relay, remote_host)
    select p_tenant, f.id, f.message_id, 'sent', pgmail.now(), f.stream, f.site, f.attempt, words, f.relay, f.remote_host
    from facts f where p_how = 'assume_sent'
  ), tallies as (
    insert into pgmail.tally (tenant_id, stream, kind, n, lanes, per_lane)
    select p_tenant, f.stream, 'sent', count(*), array[f.lane], array[count(*)] from facts f where p_how = 'assume_sent' group by f.stream, f.lane
  ), back as (
    update pgmail.queue q set due_at = pgmail.now(), later = false, wait = null, hold_reason = null, held_due_at = null, in_doubt = false
    where p_how = 'resend' and q.tenant_id = p_tenant and q.id = any (array(select free.id from free))
  ), touched as (
    insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
    select distinct p_tenant, f.lane, f.stream, f.priority, f.site, pgmail.now() from facts f where p_how = 'resend'
  ), events as (
    insert into pgmail.event (tenant_id, recipient_id, message_id, type, attempt, site, relay, remote_host, detail)
    select p_tenant, f.id, f.message_id, case p_how when 'resend' then 'email.queued' else 'email.sent' end,
      case p_how when 'assume_sent' then f.attempt end, f.site, f.relay, f.remote_host, words
    from facts f
  )
  select count(*) into n from facts;
  return n;
end
$$;

-- One email's recipients, or one recipient, that are held in doubt: 'assume_sent' settles them as sent, 'resend' puts them
-- back into the queue, under the same Message-ID. Answers how many.
create or replace function pgmail.resolve(id uuid, how text, reason text default null) returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
#variable_conflict use_column
declare t integer := pgmail.need_tenant(); ids uuid[]; n integer;
begin
  select f.recipients into ids from pgmail.need_recipients(t, resolve.id) f;
  n := pgmail.resolve_ids(t, ids, how, reason);
  if n > 0 then perform pgmail.record_act(t, 'email.resolve', resolve.id::text, concat_ws(': ', how, reason)); end if;
  return n;
end
$$;

-- The same by filter, of pgmail.in_doubt.
create or replace function pgmail.resolve_all(how text, filter jsonb default '{}', reason text default null, most integer default 1000)
returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare t integer := pgmail.need_tenant(); n integer;
begin
  n := pgmail.resolve_ids(t, array(
    select d.recipient_id from pgmail.in_doubt(resolve_all.filter, least(greatest(coalesce(most, 1000), 0), 10000), null, null, true) d), how, reason);
  if n > 0 then
    perform pgmail.record_act(t, 'email.resolve', format('%s in doubt by filter %s', n, resolve_all.filter), concat_ws(': ', how, reason));
  end if;
  return n;
end
$$;

-- The dead letters that a filter means, oldest first: stream, site, reason, recipient (an address), text (found in the
-- error, the last reply or its enhanced code, capitals or not), template (a name), died_after (included), died_before (not).
-- Between ids that are given; with newest_first the other way round.
create or replace function pgmail.dead_letter_ids(
  filter jsonb default '{}', most integer default 1000, below uuid default null, above uuid default null, newest_first boolean default false
) returns setof uuid
language plpgsql stable security definer set search_path = pgmail, pg_temp
as $$
declare t integer := pgmail.need_tenant(); f jsonb := filter; who text;
begin
  perform pgmail.check_filter(f, '{stream,streams,site,reason,recipient,text,template,died_after,died_before}');
  who := (pgmail.parse_address(f->>'recipient')).address;
  return query
  select d.recipient_id from pgmail.dead_letter d
  where d.tenant_id = t
    and (f->>'stream' is null or d.stream = f->>'stream')
    and (f->>'streams' is null or f->'streams' ? d.stream)
    and (f->>'site' is null or d.site = f->>'site')
    and (f->>'reason' is null or d.reason = f->>'reason')
    and (f->>'recipient' is null or exists (
      select from pgmail.recipient r
      where r.tenant_id = t and r.id = d.recipient_id and r.address = who))
    and (f->>'text' is null or strpos(lower(concat_ws(' ', d.code, d.enhanced, d.reply, d.error)), lower(f->>'text')) > 0)
    and (f->>'template' is null or exists (
      select from pgmail.message m
      where m.tenant_id = t and m.id = d.message_id and m.template = f->>'template'))
    and (f->>'died_after' is null or d.died_at >= (f->>'died_after')::timestamptz)
    and (f->>'died_before' is null or d.died_at < (f->>'died_before')::timestamptz)
    and (below is null or d.recipient_id < below) and (above is null or d.recipient_id > above)
  order by case when not newest_first then d.recipient_id end, case when newest_first then d.recipient_id end desc limit most;
end
$$;

-- Dead letters back into the queue, due now, by filter of pgmail.dead_letter_ids. Answers how many.
create or replace function pgmail.retry_all(filter jsonb default '{}', reason text default null, most integer default 1000) returns integer
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(sum(pgmail.retry(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

-- Dead letters given up, by the same filter; they end as cancelled. Answers how many.
create or replace function pgmail.discard_all(filter jsonb default '{}', reason text default null, most integer default 1000) returns integer
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  select coalesce(sum(pgmail.discard(i, reason)), 0)::integer from pgmail.dead_letter_ids(filter, most) i
$$;

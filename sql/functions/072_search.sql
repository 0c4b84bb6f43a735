-- Searching emails, newest first, at a bounded price: a walk along the index of one table, from the newest or from a place, that
-- ends with a page, with the table, or with its patience. It then says up to where it looked, and the next search goes on there.
-- So five million queued make it no slower: what is rare among them takes several searches, and none of them long.

-- A page of ids of emails. p_start is the table that is walked: time (all mail), tag, recipient (an address), outcome and queue
-- (of a state), dead. The other filters are looked up for what it meets; null is any. Between p_below and p_above, either may
-- be null, next below the one or (p_newer) next above the other. Answers p_limit ids at most, newest first; whether there are
-- or may be more that way; and where its patience ended, the place, an id to be given as p_below or p_above.
--   Ids of recipients come after that of their email, so along them an email is in its order once the walk has passed its own
-- id. One whose recipients came more than p_slack rows of others later than itself is missed at the border of two pages.
create or replace function pgmail.find_emails(
  p_start text, p_limit integer, p_below uuid, p_above uuid, p_newer boolean, p_state text, p_tag_name text, p_tag_value text,
  p_stream text, p_streams text[], p_only_tests boolean, p_recipient text,
  p_patience interval default '100 milliseconds', p_slack integer default 20000,
  out ids uuid[], out more boolean, out place uuid
)
language plpgsql stable security definer set search_path = pgmail, pg_temp set enable_seqscan = off set enable_bitmapscan = off set jit = off
as $$
declare
  t integer := pgmail.need_tenant(); began timestamptz := clock_timestamp();
  nobody constant uuid := '00000000-0000-0000-0000-000000000000'; beyond constant uuid := 'ffffffff-ffff-ffff-ffff-ffffffffffff';
  by_recipient boolean := p_start not in ('time', 'tag'); at_ uuid; size_ integer; n integer; last_ uuid; met uuid[]; got uuid[] := '{}';
  least_ integer; stepped timestamptz; safe integer; again boolean := by_recipient and p_newer; ended boolean := false; step text; table_ text; key_ text; good text; state_ text;
begin
  select x.table_, x.key_, x.good into strict table_, key_, good from (values
    ('time', 'pgmail.message', 'id', 'true'),
    ('tag', 'pgmail.tag', 'message_id', 'true'),
    ('recipient', 'pgmail.recipient', 'id', 'true'),
    ('outcome', 'pgmail.outcome', 'recipient_id', 's.state = $5'),
    ('queue', 'pgmail.queue', 'id', 'pgmail.state_of(null, false, true, s.leased_by is not null, s.due_at, s.wait, $6) = $5'),
    ('dead', 'pgmail.dead_letter', 'recipient_id', 'true')) x(start, table_, key_, good)
  where x.start = p_start;

  -- The state of a recipient, where the walk is not along those that are in it. By keys, one by one, whatever the planner
  -- knows of tables that were filled a moment ago (why a message is said twice: 070_state).
  state_ := $q$ exists (
    select from (select r.id from pgmail.recipient r where r.tenant_id = $1 and %s offset 0) r
    left join lateral (select x.* from pgmail.queue x where x.tenant_id = $1 and x.id = r.id limit 1) q on true
    left join lateral (select x.state from pgmail.outcome x where x.tenant_id = $1 and x.recipient_id = r.id limit 1) o on true
    left join lateral (select true as there from pgmail.dead_letter x where x.tenant_id = $1 and x.recipient_id = r.id limit 1) d on true
    where pgmail.state_of(o.state, d.there is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait, $6) = $5) $q$;
  good := good || case when p_start <> 'time' then $q$ and exists (
      select from pgmail.message m where m.tenant_id = $1 and m.id = c.email $q$ || case when p_stream is not null then ' and m.stream = $7' else '' end
      || case when p_streams is not null then ' and m.stream = any ($8)' else '' end || case when p_only_tests then ' and m.test' else '' end || ')'
    else case when p_stream is not null then ' and s.stream = $7' else '' end || case when p_streams is not null then ' and s.stream = any ($8)' else '' end
      || case when p_only_tests then ' and s.test' else '' end end
    || case when p_tag_name is not null and p_start <> 'tag' then
      ' and exists (select from pgmail.tag g where g.tenant_id = $1 and g.name = $9 and g.value = $10 and g.message_id = c.email)' else '' end
    || case when p_state is null or p_start in ('outcome', 'queue', 'dead') then ''
      when p_start = 'recipient' then ' and ' || format(state_, 'r.id = s.id')
      else ' and ' || format(state_, $q$r.message_id = c.email and r.message_id between c.email and c.email and r.id >= pgmail.uuid_floor(pgmail.uuid_time(c.email) - interval '1 hour')
        and r.id < pgmail.uuid_floor(pgmail.uuid_time(c.email) + interval '1 hour')$q$) end;
  step := format($q$
    select count(*), (array_agg(c.place order by c.place %1$s))[1], coalesce(array_agg(distinct c.email) filter (where c.good), '{}')
    from (
      select s.%2$I as place, c.email, c.email > $3 and c.email < $4 and %3$s as good
      from (select y.* from %4$s y where y.tenant_id = $1 %5$s and y.%2$I %6$s $2 and y.%2$I > $3 %7$s order by y.%2$I %8$s limit $11) s,
        lateral (select %9$s as email) c) c $q$,
    case when p_newer then 'desc' else 'asc' end, key_, good, table_,
    case p_start when 'tag' then 'and y.name = $9 and y.value = $10' when 'recipient' then 'and y.address = $12' else '' end,
    case when p_newer then '>' else '<' end, case when by_recipient or not p_newer then '' else format('and y.%I < $4', key_) end,
    case when p_newer then 'asc' else 'desc' end, case when p_start = 'time' then 's.id' else 's.message_id' end);

  if p_newer then
    at_ := coalesce(p_above, nobody);
  else
    at_ := coalesce(p_below, beyond);
    if by_recipient and p_below is not null then
      execute format('select y.%1$I from %2$s y where y.tenant_id = $1 %3$s and y.%1$I >= $2 order by y.%1$I offset $3 limit 1', key_, table_,
        case when p_start = 'recipient' then 'and y.address = $4' else '' end) into at_ using t, p_below, p_slack, p_recipient;
      at_ := coalesce(at_, beyond);
    end if;
  end if;

  -- An email may have 1,000 recipients, whose states are looked up one by one: few emails at first.
  least_ := case when p_start = 'time' and good = 'true' then p_limit + 1 when p_start in ('time', 'tag') and p_state is not null then 8
    else greatest(500, p_limit + 1) end;
  size_ := least_;
  loop
    stepped := clock_timestamp();
    execute step into n, last_, met using t, at_, coalesce(p_above, nobody), coalesce(p_below, beyond), p_state, pgmail.now(), p_stream, p_streams,
      p_tag_name, p_tag_value, size_, p_recipient;
    at_ := coalesce(last_, at_);
    ended := n < size_;
    select coalesce(array_agg(distinct u), '{}') into got from unnest(got || met) u;
    select count(*) into safe from unnest(got) u where ended or not by_recipient or (u >= at_) <> p_newer;
    exit when ended or (safe > p_limit and not again)
      or (clock_timestamp() - began >= p_patience and (p_newer or p_below is null or at_ < p_below));   -- it must come nearer its end
    again := again and safe <= p_limit;   -- upwards an email may be met after ones that are newer: a look beyond
    size_ := case when clock_timestamp() - stepped > p_patience / 4 then greatest(size_ / 2, least_) else least(size_ * 2, 8000) end;
  end loop;

  place := case when not ended and safe <= p_limit then at_ end;
  more := not ended or safe > p_limit;
  select coalesce(array_agg(x.id order by x.id desc), '{}') into ids from (
    select u as id from unnest(got) u where ended or not by_recipient or (u >= at_) <> p_newer
    order by case when p_newer then u end, case when not p_newer then u end desc limit p_limit) x;
end
$$;

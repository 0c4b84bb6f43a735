-- Tokens: which message may begin when, under one rate or several at once (ops/docs/limits.md). A token is a moment. No two
-- of a bucket lie closer than its gap, and a message under several rates has one moment in all their buckets: a token
-- that waited for another one would be spent late, together with the next.

-- Tokens for messages that are about to be sent, for at most half a second ahead. p_sets[i] says in which set the key
-- (p_scopes[i], p_names[i]) is: the rates that a message is under at the same time. A key may be in several sets; p_wants[i]
-- is the number wanted of a set, the same in all its rows. No moment is sooner than p_lead seconds (a quarter at most): so
-- long it takes this worker to have the mail ready, and what is sooner would lapse. Sets are served in the order of their numbers.
-- Answers a row for each set: moments, in seconds from the answer; fewer than wanted: ask again after wait seconds, for
-- (scope, name) has no more until then. They lie gap apart at least. A set of keys without a rate answers as many moments of 0 as were wanted.
-- And a row with set_number null for each key of which free moments were passed over because another key of its set had
-- none then: they are the asker's, for mail under that key alone.
-- Rows are locked by key in order, for this statement only.
create or replace function pgmail.take_tokens_v2(
  p_epoch bigint, p_sets integer[], p_scopes text[], p_names text[], p_wants integer[], p_lead double precision default 0
) returns table (set_number integer, scope text, name text, moments double precision[], gap double precision, wait double precision)
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off set plan_cache_mode = force_generic_plan
as $$
#variable_conflict use_column
declare
  horizon constant double precision := 0.5;
  -- How far a key's tokens may be passed over for the sake of another one's: what nobody then uses is lost.
  most_passed constant double precision := 0.05;
  most_passed_moments constant integer := 1000;
  lead constant double precision := least(greatest(p_lead, 0), horizon / 2);
  now_ timestamptz; s record; i integer; n integer; t double precision; first double precision; slowest integer;
  scopes_ text[]; names_ text[]; gaps double precision[]; free double precision[]; before double precision[]; up text[];
  passed jsonb := '{}'; mine double precision[];
begin
  -- One that was declared dead must not spend what its successors need.
  if not exists (select from pgmail.worker w where w.epoch = p_epoch) then
    raise exception using errcode = 'PM410', constraint = 'fenced_out', message = format('worker %s was declared dead', p_epoch);
  end if;
  insert into pgmail.bucket (scope, name)
  select l.scope, l.name from pgmail.limits l join (select distinct x.scope, x.name from unnest(p_scopes, p_names) x(scope, name)) u
    on u.scope = l.scope and u.name = l.name
  where l.messages is not null and not exists (select from pgmail.bucket b where b.scope = l.scope and b.name = l.name)
  order by l.scope, l.name on conflict do nothing;
  perform from pgmail.bucket b
  where (b.scope, b.name) in (select x.scope, x.name from unnest(p_scopes, p_names) x(scope, name))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: tokens start from here, or those who waited longest would be handed moments that
  -- have passed, and spend them in one burst.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  -- No token is given further ahead than the horizon: a last one that lies there was given by another clock, which was set
  -- back, or was that of a server that is gone. Nobody waits for what that one called the present.
  -- Without its bucket (the limit came after the locks were taken) it is as if the limit came a moment later.
  select array_agg(k.scope order by k.scope, k.name), array_agg(k.name order by k.scope, k.name), array_agg(k.gap order by k.scope, k.name),
    array_agg(case when k.last_at = '-infinity' then lead
              when k.last_at > now_ + interval '10 seconds' then greatest(lead, k.gap)
              else greatest(lead, extract(epoch from k.last_at - now_)::double precision + k.gap) end order by k.scope, k.name),
    array_agg(k.name order by k.name) filter (where k.unheard)
  into scopes_, names_, gaps, free, up
  from (
    select u.scope, u.name, b.last_at, r.name is not null and r.up_since is null and u.want > 0 as unheard,
      pgmail.limit_gap(l, coalesce(r.up_since, case when r.name is null then now_ - interval '8 days' else now_ end), now_) as gap
    from (select x.scope, x.name, max(x.want) as want from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name) u
    join pgmail.limits l on l.scope = u.scope and l.name = u.name and l.messages is not null
    join pgmail.bucket b on b.scope = u.scope and b.name = u.name
    left join pgmail.relay r on u.scope = 'relay' and r.name = u.name) k;
  if up is not null then
    -- Its first mail. Past a row that an operator's open transaction holds: nobody's tokens wait for that.
    update pgmail.relay r set up_since = now_
     where r.name in (select x.name from pgmail.relay x where x.name = any (up) and x.up_since is null order by x.name
                      for no key update skip locked);
  end if;
  before := free;
  for s in
    select u.number, least(max(greatest(u.want, 0)), 1000000) as want,
      array_agg(distinct k.at) filter (where k.at is not null) as keys
    from unnest(p_sets, p_scopes, p_names, p_wants) u(number, scope, name, want)
    left join unnest(scopes_, names_) with ordinality k(scope, name, at) on k.scope = u.scope and k.name = u.name
    group by u.number order by u.number
  loop
    set_number := s.number; moments := '{}'; gap := 0; wait := 0; scope := null; name := null;
    if s.keys is null then
      moments := array_fill(0::double precision, array[s.want]);
      return next; continue;
    end if;
    loop
      slowest := s.keys[1]; first := free[slowest];
      foreach i in array s.keys loop
        if free[i] > free[slowest] then slowest := i; end if;
        gap := greatest(gap, gaps[i]);
        first := least(first, free[i]);
      end loop;
      t := free[slowest];
      scope := scopes_[slowest]; name := names_[slowest];
      if t - first > most_passed then wait := greatest(0, t - lead - most_passed * 0.8); exit; end if;
      if t > horizon then wait := greatest(0, t - horizon / 2); exit; end if;
      exit when cardinality(moments) >= s.want;
      if cardinality(s.keys) = 1 then   -- all at once: there may be thousands
        n := least(s.want, 1 + floor((horizon - t) / gaps[slowest])::integer);
        moments := array(select t + g * gaps[slowest] from generate_series(0, n - 1) g);
        free[slowest] := t + n * gaps[slowest];
        continue;
      end if;
      moments := moments || t;
      foreach i in array s.keys loop
        if free[i] + gaps[i] <= t then
          n := least(floor((t - free[i]) / gaps[i])::integer, most_passed_moments);
          select array_agg(free[i] + g * gaps[i] order by g) into mine from generate_series(0, n - 1) g;
          passed := jsonb_set(passed, array[i::text], coalesce(passed->(i::text), '[]') || to_jsonb(mine));
        end if;
        free[i] := t + gaps[i];
      end loop;
    end loop;
    return next;
  end loop;
  if scopes_ is null then return; end if;
  update pgmail.bucket b set last_at = now_ + (x.free - x.gap) * interval '1 second'
  from unnest(scopes_, names_, gaps, free, before) x(scope, name, gap, free, before)
  where b.scope = x.scope and b.name = x.name and x.free > x.before;
  return query select null::integer, scopes_[k.key::integer], names_[k.key::integer],
    array(select v.value::double precision from jsonb_array_elements_text(k.value) v), gaps[k.key::integer], 0::double precision
  from jsonb_each(passed) k;
end
$$;

-- The same as workers of 0.2 call it: each key by itself, keys that are named twice added up. Token i (from 0) of a key is
-- good from starts_in + i * gap seconds after the answer. A key without a rate answers what it asked for, with gap 0.
create or replace function pgmail.take_tokens_v1(p_epoch bigint, p_scopes text[], p_names text[], p_wants integer[])
returns table (scope text, name text, granted integer, starts_in double precision, gap double precision, wait double precision)
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  with u as materialized (
    select x.scope, x.name, least(sum(greatest(x.want, 0)), 1000000)::integer as want, (row_number() over (order by x.scope, x.name))::integer as n
    from unnest(p_scopes, p_names, p_wants) x(scope, name, want) group by x.scope, x.name
  ), t as materialized (
    select * from pgmail.take_tokens_v2(p_epoch, (select array_agg(n order by n) from u), (select array_agg(u.scope order by n) from u),
      (select array_agg(u.name order by n) from u), (select array_agg(want order by n) from u))
  )
  select u.scope, u.name, cardinality(t.moments), coalesce(t.moments[1], t.wait + 0.25), t.gap, t.wait
  from u join t on t.set_number = u.n
  order by u.scope, u.name
$$;

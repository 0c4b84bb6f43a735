-- Quotas over HTTP, where they are exact: rates of keys, tenants and streams are counted in one row each, which all API
-- processes share, before the email's own transaction. Callers without a rule are never asked about.

-- Whether anything limits this key now: rules of its tenant, its streams and itself, doors that are closed, and the
-- streams whose mail is of low priority unless it says otherwise (asked for only while such mail waits).
create or replace function pgmail.quota_gate_v1(p_key uuid) returns jsonb
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare t integer := pgmail.need_tenant(); now_ timestamptz := pgmail.now(); rules jsonb; doors jsonb; low jsonb;
begin
  -- A rule of a key is of its whole line of rotations, under the id of the first.
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  select jsonb_agg(jsonb_build_array(q.scope, q.name) order by q.scope, q.name) into rules from pgmail.quota q
   where q.tenant_id = t and (q.scope <> 'key' or q.name = p_key::text) and coalesce(q.per_second, q.per_day, q.max_queued) is not null;
  select jsonb_agg(jsonb_build_object('stream', d.stream, 'kind', d.kind, 'priority', d.priority, 'reason', d.reason,
           'seconds', extract(epoch from d.until - now_)) order by d.stream, d.kind) into doors from pgmail.door d
   where d.tenant_id = t and d.until > now_;
  if doors @> '[{"kind": "pressure"}]' then
    select jsonb_agg(s.name order by s.name) into low from pgmail.stream s where s.tenant_id = t and s.priority = 3;
  end if;
  return jsonb_build_object('rules', coalesce(rules, '[]'), 'doors', coalesce(doors, '[]'), 'low', coalesce(low, '[]'));
end
$$;

-- Takes places for groups of emails, each group wholly or not at all, in their order: p_groups[i] is the group of
-- p_counts[i] recipients of stream p_streams[i]. Answers {"answers": [{"granted", "scope", "kind", "seconds", "most"}], "rules":
-- [{"scope", "stream", "per_second", "left", "per_day", "left_today", "midnight"}]}, groups in the order of their numbers. What was
-- refused: by which rule, and after how many seconds to ask again; null seconds: never, for `most` is the most at once.
-- In any second no more come in than the rule says, and bursts may use all of it: the last 52 slots of 20 ms are counted, two
-- more than a second has, for the way from here to the email's own transaction. So 96 % of a rate can be used.
create or replace function pgmail.take_quota_v1(p_key uuid, p_groups integer[], p_streams text[], p_counts integer[]) returns jsonb
language plpgsql volatile security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare
  slots constant integer := 52; length constant double precision := 0.02;
  t integer := pgmail.need_tenant(); now_ timestamptz; today date; midnight double precision; slot_ bigint; g record; r record; d record;
  answers jsonb := '[]'; rules jsonb; i integer; k integer; n bigint; room bigint; away double precision; worst double precision;
  scopes text[]; names text[]; seconds integer[]; days bigint[]; used_ bigint[]; counts_ jsonb := '[]'; in_second bigint[]; mine integer[];
  no_scope text; no_kind text; no_seconds double precision; no_most bigint;
begin
  p_key := coalesce((select k.family from pgmail.api_key k where k.tenant_id = t and k.id = p_key), p_key);
  insert into pgmail.quota_bucket (tenant_id, scope, name)
  select q.tenant_id, q.scope, q.name from pgmail.quota q
  where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
    and coalesce(q.per_second, q.per_day) is not null
    and not exists (select from pgmail.quota_bucket b where b.tenant_id = t and b.scope = q.scope and b.name = q.name)
  order by q.scope, q.name on conflict do nothing;
  perform from pgmail.quota_bucket b
  where b.tenant_id = t and (b.scope = 'tenant' or b.scope = 'key' and b.name = p_key::text or b.scope = 'stream' and b.name = any (p_streams))
  order by b.scope, b.name for no key update;
  -- The wait for the lock is over: it is later now.
  now_ := pgmail.now() + (clock_timestamp() - statement_timestamp());
  today := (now_ at time zone 'UTC')::date;
  midnight := extract(epoch from (today + 1)::timestamp at time zone 'UTC' - now_);
  slot_ := floor(extract(epoch from now_) / length);

  for r in
    select q.scope, q.name, q.per_second, q.per_day, case when b.day = today then b.used else 0 end as used,
      -- Ten seconds ahead of now is another clock, one that was set back.
      array(select case when b.slot > slot_ + 500 or b.slot - ((b.slot - p) % slots + slots) % slots <= slot_ - slots then 0
                        else coalesce(b.counts[p + 1], 0) end from generate_series(0, slots - 1) p) as counts
    from pgmail.quota q join pgmail.quota_bucket b on b.tenant_id = t and b.scope = q.scope and b.name = q.name
    where q.tenant_id = t and (q.scope = 'tenant' or q.scope = 'key' and q.name = p_key::text or q.scope = 'stream' and q.name = any (p_streams))
      and coalesce(q.per_second, q.per_day) is not null
    order by q.scope, q.name
  loop
    scopes := scopes || r.scope; names := names || r.name; seconds := seconds || r.per_second; days := days || r.per_day; used_ := used_ || r.used;
    counts_ := counts_ || jsonb_build_array(to_jsonb(r.counts));
    in_second := in_second || (select sum(x) from unnest(r.counts) x);
  end loop;

  for g in
    select u.number, sum(u.n)::bigint as n from unnest(p_groups, p_counts) u(number, n) group by u.number order by u.number
  loop
    no_scope := null; no_seconds := -1; no_most := null;
    -- Closed by what came in otherwise, or holding as much as it may.
    select x.kind, x.stream, extract(epoch from x.until - now_) as seconds into d from pgmail.door x
     where x.tenant_id = t and x.until > now_ and x.kind <> 'pressure'
       and x.stream in (select '' union all select u.stream from unnest(p_groups, p_streams) u(number, stream) where u.number = g.number)
     order by x.until desc limit 1;
    if found then
      no_scope := case d.stream when '' then 'tenant' else 'stream' end; no_kind := d.kind; no_seconds := d.seconds;
    end if;
    mine := '{}';
    for i in 1 .. coalesce(cardinality(scopes), 0) loop
      n := case when scopes[i] = 'stream' then (select sum(u.n) from unnest(p_groups, p_streams, p_counts) u(number, stream, n)
                                               where u.number = g.number and u.stream = names[i]) else g.n end;
      mine := mine || coalesce(n, 0)::integer;
      continue when coalesce(n, 0) = 0;
      if n > least(seconds[i], days[i]) then   -- too many at once, whenever that is
        no_scope := scopes[i]; no_kind := case when n > seconds[i] then 'rate' else 'day' end; no_seconds := null;
        no_most := least(seconds[i], days[i]); exit;
      end if;
      if in_second[i] + n > seconds[i] then
        -- until so many of the oldest have left the window
        room := in_second[i] + n - seconds[i]; away := 0;
        for k in 1 .. slots loop
          room := room - (counts_ #>> array[(i - 1)::text, ((slot_ + k) % slots)::text])::bigint;
          away := k * length;
          exit when room <= 0;
        end loop;
        if away > no_seconds then no_scope := scopes[i]; no_kind := 'rate'; no_seconds := away; end if;
      end if;
      if used_[i] + n > days[i] and midnight > no_seconds then no_scope := scopes[i]; no_kind := 'day'; no_seconds := midnight; end if;
    end loop;
    if no_scope is null then
      for i in 1 .. coalesce(cardinality(scopes), 0) loop
        in_second[i] := in_second[i] + mine[i]; used_[i] := used_[i] + mine[i];
        k := slot_ % slots;
        counts_ := jsonb_set(counts_, array[(i - 1)::text, k::text],
          to_jsonb((counts_ #>> array[(i - 1)::text, k::text])::bigint + mine[i]));
      end loop;
      answers := answers || jsonb_build_array('{"granted": true}'::jsonb);
    else
      answers := answers || jsonb_build_array(jsonb_build_object('granted', false, 'scope', no_scope, 'kind', no_kind, 'seconds', no_seconds, 'most', no_most));
    end if;
  end loop;

  if scopes is not null then
    update pgmail.quota_bucket b set slot = slot_, day = today, used = used_[x.i],
      counts = array(select v::integer from jsonb_array_elements_text(counts_->(x.i::integer - 1)) with ordinality w(v, o) order by o)
    from unnest(scopes, names) with ordinality x(scope, name, i)
    where b.tenant_id = t and b.scope = x.scope and b.name = x.name;
    select jsonb_agg(jsonb_build_object('scope', x.scope, 'stream', case x.scope when 'stream' then x.name end,
             'per_second', x.per_second, 'left', greatest(x.per_second - x.busy, 0), 'per_day', x.per_day, 'left_today', greatest(x.per_day - x.used, 0),
             'midnight', midnight) order by x.i)
      into rules from unnest(scopes, names, seconds, days, in_second, used_) with ordinality x(scope, name, per_second, per_day, busy, used, i);
  end if;
  return jsonb_build_object('answers', answers, 'rules', coalesce(rules, '[]'));
end
$$;

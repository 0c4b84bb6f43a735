-- What is true now of what rules ask: the facts of mail and of the fleet. Each function answers one row for each rule and
-- subject that is over its threshold, with a sentence; the state machine (068_alert_step) makes alerts of them. Cheap: totals
-- that are folded already, the head of each lane, a few small tables. Nothing counts a table that grows with mail.

-- Lanes whose oldest mail is due for so many seconds and that no operator stopped, and what stops each (028_pause: lane_stop).
-- From the gauge, which a chore keeps: a few seconds late, and not read from the queue. Sites that no limit names are stopped
-- by the same, so the latest stands for all of a stream and priority. Of each stream the latest one is there, however many
-- others are late; of the rest the p_most latest.
create or replace function pgmail.late_lanes(p_seconds double precision, p_most integer default 1000)
returns table (tenant_id integer, stream text, site text, due_at timestamptz, kind text, words text)
language sql stable security definer set search_path = pgmail, pg_temp
  set enable_mergejoin = off set enable_sort = off set jit = off
as $$
  with special as materialized (
    select l.name as site from pgmail.limits l where l.scope = 'site' union select pgmail.test_site()
  ), late as materialized (
    select g.tenant_id, g.stream, g.priority, g.site, g.due_at as oldest_due_at, y.site as special
    from pgmail.gauge_due() g left join special y on y.site = g.site
    where g.due_at <= pgmail.now() - p_seconds * interval '1 second' and not exists (select from pgmail.fence)
  ), latest as (   -- by two hashes, without a sort of all lanes by these texts, which takes three times as long
    select l.tenant_id, l.stream, l.priority, l.special, min(l.oldest_due_at) as oldest_due_at from late l group by 1, 2, 3, 4
  ), alike as (
    select l.tenant_id, l.stream, l.priority, l.special, l.oldest_due_at, min(l.site) as site
    from late l join latest x on x.tenant_id = l.tenant_id and x.stream = l.stream and x.priority = l.priority
      and coalesce(x.special, '') = coalesce(l.special, '') and x.oldest_due_at = l.oldest_due_at
    group by 1, 2, 3, 4, 5
  ), placed as (
    select a.*, row_number() over (partition by a.tenant_id, a.stream order by a.oldest_due_at) as of_stream,
      row_number() over (order by a.oldest_due_at) as of_all
    from alike a
  )
  select g.tenant_id, g.stream, g.site, g.oldest_due_at, s.kind, s.words
  from (select x.* from placed x where x.of_stream = 1 or x.of_all <= p_most offset 0) g
  cross join lateral pgmail.lane_stop(g.tenant_id, g.stream, g.priority, g.site) s
$$;

-- How many recipients of each stream became dead letters since so many seconds ago, those that were tried again since
-- included: totals go down with each retry, and would hide what dies meanwhile. From the roll-ups, which keep minutes and
-- quarters for two days; hours first, since most tenants have none.
create or replace function pgmail.alert_died(p_seconds double precision)
returns table (tenant_id integer, stream text, n bigint)
language sql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
  select t.id, x.key, x.n
  from (select pgmail.now() - p_seconds * interval '1 second') f(since) cross join pgmail.tenant t
  cross join lateral (
    select u.key, sum(u.n)::bigint as n from pgmail.rollup u
    where u.tenant_id = t.id and u.dim = 'stream' and u.grain = case when p_seconds <= 7200 then 'minute' else 'quarter' end and u.at > f.since
      and u.kind = 'dead'
    group by u.key) x
  where exists (select from pgmail.rollup h where h.tenant_id = t.id and h.dim = 'stream' and h.grain = 'hour' and h.at > f.since - interval '1 hour' and h.kind = 'dead')
$$;

-- How many of each stream were settled, and how, since so many seconds ago, where any were: this moment's totals less those of
-- then. Where the meter does not reach back so far, since it began. Of dead letters all that were made (alert_died).
create or replace function pgmail.alert_deltas(p_seconds double precision)
returns table (tenant_id integer, stream text, sent bigint, bounced bigint, dead bigint)
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
#variable_conflict use_column
declare at_ timestamptz := pgmail.now() - p_seconds * interval '1 second';
begin
  return query
  with moved as (
    select t.tenant_id, t.stream, (t.sent - m.sent)::bigint as sent, (t.bounced - m.bounced)::bigint as bounced
    from (select x.tenant_id, x.stream, coalesce(sum(x.n) filter (where x.kind = 'sent'), 0) as sent,
            coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0) as bounced
          from pgmail.tally_total x where x.kind in ('sent', 'bounced') group by x.tenant_id, x.stream) t
    cross join lateral (
      select y.* from (
        (select x.sent, x.bounced, 1 as n from pgmail.alert_meter x
         where x.tenant_id = t.tenant_id and x.stream = t.stream and x.at <= at_ order by x.at desc limit 1)
        union all
        (select x.sent, x.bounced, 2 from pgmail.alert_meter x
         where x.tenant_id = t.tenant_id and x.stream = t.stream order by x.at limit 1)) y
      order by y.n limit 1) m
    where (t.sent, t.bounced) <> (m.sent, m.bounced)
  )
  select coalesce(v.tenant_id, d.tenant_id), coalesce(v.stream, d.stream), coalesce(v.sent, 0), coalesce(v.bounced, 0), coalesce(d.n, 0)
  from moved v full join pgmail.alert_died(p_seconds) d on d.tenant_id = v.tenant_id and d.stream = v.stream;
end
$$;

-- The same of one stream.
create or replace function pgmail.alert_since(
  p_tenant integer, p_stream text, p_seconds double precision, out sent bigint, out bounced bigint, out dead bigint
)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  select t.sent - m.sent, t.bounced - m.bounced, (
    select coalesce(sum(u.n), 0)::bigint from pgmail.rollup u
    where u.tenant_id = p_tenant and u.dim = 'stream' and u.grain = 'quarter' and u.at > pgmail.now() - p_seconds * interval '1 second'
      and u.key = p_stream and u.kind = 'dead')
  from (select coalesce(sum(x.n) filter (where x.kind = 'sent'), 0)::bigint as sent, coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0)::bigint as bounced
        from pgmail.tally_total x where x.tenant_id = p_tenant and x.stream = p_stream) t
  join pgmail.alert_meter m on m.tenant_id = p_tenant and m.stream = p_stream and m.at = coalesce(
    (select max(x.at) from pgmail.alert_meter x where x.tenant_id = p_tenant and x.stream = p_stream and x.at <= pgmail.now() - p_seconds * interval '1 second'),
    (select min(x.at) from pgmail.alert_meter x where x.tenant_id = p_tenant and x.stream = p_stream))
$$;

-- Writes the meter, once a minute and where something moved. alert_purge_v1 thins it.
create or replace function pgmail.alert_meter_step() returns integer
language plpgsql volatile security definer set search_path = pgmail, pg_temp
as $$
declare n integer; now_ timestamptz := pgmail.now();
begin
  insert into pgmail.alert_meter (tenant_id, stream, at, enqueued, sent, bounced, dead, settled)
  select t.tenant_id, t.stream, now_, t.enqueued, t.sent, t.bounced, t.dead, t.settled
  from (select x.tenant_id, x.stream, coalesce(sum(x.n) filter (where x.kind = 'enqueued'), 0) as enqueued,
          coalesce(sum(x.n) filter (where x.kind = 'sent'), 0) as sent, coalesce(sum(x.n) filter (where x.kind = 'bounced'), 0) as bounced,
          coalesce(sum(x.n) filter (where x.kind = 'dead'), 0) as dead, coalesce(sum(x.n) filter (where x.kind <> 'enqueued'), 0) as settled
        from pgmail.tally_total x group by x.tenant_id, x.stream) t
  left join lateral (select x.* from pgmail.alert_meter x where x.tenant_id = t.tenant_id and x.stream = t.stream order by x.at desc limit 1) m on true
  where m.at is null or (m.at <= now_ - interval '55 seconds' and (m.enqueued, m.settled, m.sent, m.bounced, m.dead) <> (t.enqueued, t.settled, t.sent, t.bounced, t.dead))
  on conflict do nothing;
  get diagnostics n = row_count;
  return n;
end
$$;

-- Facts of mail that waits.
create or replace function pgmail.alert_facts_mail() returns setof pgmail.alert_fact
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare now_ timestamptz := pgmail.now(); least_ double precision;
begin
  select min(r.threshold) into least_ from pgmail.alert_rule r where r.enabled and r.kind in ('oldest_due', 'no_worker', 'sending_stalled');
  return query
  with late as materialized (
    select x.*, extract(epoch from now_ - x.due_at)::float8 as age from pgmail.late_lanes(coalesce(least_, 'Infinity')) x where least_ is not null
  )
  -- What an operator paused waits by his will.
  select r.rule_id, x.tenant_id, x.stream, x.age, format('Mail of the stream %s is due for %s (to %s): %s.', x.stream, pgmail.span_words(x.age), x.site,
    case when x.kind is null then 'nothing stops it, but no worker has taken it' else x.words end)
  from (select distinct on (l.tenant_id, l.stream) l.* from late l where l.kind is null or l.kind not in ('pause', 'restore')
        order by l.tenant_id, l.stream, l.due_at) x
  join pgmail.alert_rules_of('oldest_due') r on r.tenant_id = x.tenant_id and coalesce(r.about, x.stream) = x.stream and x.age > r.threshold
  union all
  select r.id, null, '', x.age, format('Mail is due for %s, and %s.', pgmail.span_words(x.age), x.words)
  from (select l.* from late l where l.kind = 'workers' order by l.due_at limit 1) x
  join pgmail.alert_rule r on r.kind = 'no_worker' and r.tenant_id is null and r.enabled and x.age > r.threshold
  union all
  select r.id, null, '', x.age, format('Mail is due for %s (stream %s, to %s) and nothing stops it, but for %s none was sent.',
    pgmail.span_words(x.age), x.stream, x.site, pgmail.span_words(r.threshold))
  from (select l.* from late l where l.kind is null order by l.due_at limit 1) x
  join pgmail.alert_rule r on r.kind = 'sending_stalled' and r.tenant_id is null and r.enabled and x.age > r.threshold
  where (select coalesce(sum(t.n), 0) from pgmail.tally_total t where t.kind <> 'enqueued')
      = (select coalesce(sum(m.settled), 0) from (
           select distinct on (m.tenant_id, m.stream) m.settled from pgmail.alert_meter m
           where m.at <= now_ - r.threshold * interval '1 second' or not exists (
             select from pgmail.alert_meter y where y.tenant_id = m.tenant_id and y.stream = m.stream and y.at < m.at)
           order by m.tenant_id, m.stream, m.at desc) m);

  return query
  select r.rule_id, d.tenant_id, d.stream, d.depth::float8, format('%s recipients of the stream %s wait.', pgmail.number_words(d.depth), d.stream)
  from (select t.tenant_id, t.stream, sum(case t.kind when 'enqueued' then t.n else -t.n end) as depth from pgmail.tally_total t group by 1, 2) d
  join pgmail.alert_rules_of('queue_depth') r on r.tenant_id = d.tenant_id and coalesce(r.about, d.stream) = d.stream and d.depth > r.threshold;

  return query
  select r.rule_id, d.tenant_id, '', d.n::float8, format('%s held since %s may have been sent; a person decides (pgmail doubt list).',
    case when d.n > 10000 then 'More than 10,000 recipients are' when d.n = 1 then 'One recipient is' else pgmail.number_words(d.n) || ' recipients are' end,
    case when d.n = 1 then 'it' else 'they' end)
  from (select t.id as tenant_id, y.n from pgmail.tenant t cross join lateral (
          select count(*) as n from (select from pgmail.queue x where x.tenant_id = t.id and x.in_doubt limit 10001) z) y) d
  join pgmail.alert_rules_of('in_doubt') r on r.tenant_id = d.tenant_id and d.n >= greatest(r.threshold, 1);

  return query
  select coalesce(r.rule_id, f.id), p.tenant_id, p.scope || ' ' || p.name, p.age, format('%s %s is paused by %s since %s (%s), without an end: %s.',
    initcap(p.scope), p.name, p.paused_by, pgmail.at_words(p.paused_at), pgmail.span_words(p.age), rtrim(p.reason, '. '))
  from (select x.tenant_id, x.scope, x.name, x.paused_by, x.paused_at, x.reason, extract(epoch from now_ - x.paused_at)::float8 as age
        from pgmail.pause x where x.until is null and x.scope <> 'tenant'
        union all
        select null, 'relay', y.name, y.changed_by, y.changed_at, coalesce(y.reason, 'no reason given'), extract(epoch from now_ - y.changed_at)::float8
        from pgmail.relay y where y.state = 'paused' and y.blocked_until is null and y.changed_by <> 'worker') p
  left join pgmail.alert_rules_of('pause_forgotten') r on r.tenant_id = p.tenant_id and coalesce(r.about, p.scope || ' ' || p.name) = p.scope || ' ' || p.name
  left join pgmail.alert_rule f on p.tenant_id is null and f.kind = 'pause_forgotten' and f.tenant_id is null and f.enabled
    and coalesce(f.about, p.scope || ' ' || p.name) = p.scope || ' ' || p.name
  where p.age > coalesce(r.threshold, f.threshold);

  return query
  select r.rule_id, d.tenant_id, d.domain, extract(epoch from now_ - d.missing_since)::float8, format('%s: %s.', case d.state
      when 'failed' then format('The sender domain %s lost its record and counts as verified no more', d.domain)
      else format('The record of the sender domain %s is missing since %s', d.domain, pgmail.at_words(d.missing_since)) end,
    rtrim(coalesce(d.answer, 'DNS has it no more'), '. '))
  from pgmail.sender_domain d
  join pgmail.alert_rules_of('sender_domain') r on r.tenant_id = d.tenant_id and coalesce(r.about, d.domain) = d.domain
  where d.missing_since is not null and d.verified_at is not null and d.trusted_by is null
    and extract(epoch from now_ - d.missing_since) >= r.threshold;
end
$$;

-- Facts of what became of mail lately, by stream.
create or replace function pgmail.alert_facts_rates() returns setof pgmail.alert_fact
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
begin
  -- A share of failures against that of the day before this window; where there was no such mail, against a hundredth.
  return query
  select r.rule_id, r.tenant_id, w.stream, x.rate / x.usual, format(
    'Of the stream %s %s of the last %s failed (%s of %s), %s times what is usual (%s).', w.stream, pgmail.share_words(x.rate),
    pgmail.span_words(r.window_seconds), pgmail.number_words(x.bad), pgmail.number_words(x.all_), to_char(x.rate / x.usual, 'FM999,990.0'), pgmail.share_words(x.usual))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'error_rate' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('error_rate') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
    and w.bounced + w.dead > 0 and w.sent + w.bounced + w.dead >= greatest(r.minimum, 1)
  cross join lateral pgmail.alert_since(r.tenant_id, w.stream, r.window_seconds + 86400) d
  cross join lateral (
    select w.bounced + w.dead as bad, w.sent + w.bounced + w.dead as all_, (w.bounced + w.dead)::float8 / nullif(w.sent + w.bounced + w.dead, 0) as rate,
      greatest(case when (d.sent + d.bounced + d.dead) - (w.sent + w.bounced + w.dead) >= greatest(r.minimum, 1)
                    then greatest(d.bounced + d.dead - w.bounced - w.dead, 0)::float8 / nullif((d.sent + d.bounced + d.dead) - (w.sent + w.bounced + w.dead), 0) end, 0.01) as usual) x
  where x.rate >= coalesce(r.floor, 0) and x.rate > r.threshold * x.usual;

  return query
  select r.rule_id, r.tenant_id, w.stream, x.rate, format('Of the stream %s %s of the last %s bounced (%s of %s).', w.stream, pgmail.share_words(x.rate),
    pgmail.span_words(r.window_seconds), pgmail.number_words(w.bounced), pgmail.number_words(x.all_))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'bounce_rate' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('bounce_rate') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
  cross join lateral (select w.sent + w.bounced + w.dead as all_, w.bounced::float8 / nullif(w.sent + w.bounced + w.dead, 0) as rate) x
  where x.all_ >= greatest(r.minimum, 1) and x.rate > r.threshold;

  return query
  select r.rule_id, r.tenant_id, w.stream, w.dead::float8, format('%s emails of the stream %s became dead letters in the last %s; a person decides (pgmail dead list).',
    pgmail.number_words(w.dead), w.stream, pgmail.span_words(r.window_seconds))
  from (select distinct y.window_seconds as seconds from pgmail.alert_rule y where y.kind = 'dead_letters' and y.enabled) v
  cross join lateral pgmail.alert_deltas(v.seconds) w
  join pgmail.alert_rules_of('dead_letters') r on r.tenant_id = w.tenant_id and r.window_seconds = v.seconds and coalesce(r.about, w.stream) = w.stream
  where w.dead > r.threshold;
end
$$;

-- Facts of receiving sites, from the roll-ups of events, and of webhooks.
create or replace function pgmail.alert_facts_traffic() returns setof pgmail.alert_fact
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare now_ timestamptz := pgmail.now();
begin
  return query
  select r.rule_id, r.tenant_id, x.site, x.bounced / x.all_, format('Of the mail to %s %s of the last %s bounced (%s of %s).', x.site,
    pgmail.share_words(x.bounced / x.all_), pgmail.span_words(r.window_seconds), pgmail.number_words(x.bounced::numeric), pgmail.number_words(x.all_::numeric))
  from pgmail.alert_rules_of('site_bounce_rate') r
  cross join lateral (
    select u.key as site, coalesce(sum(u.n) filter (where u.kind <> 'sent'), 0)::float8 as bounced, sum(u.n)::float8 as all_
    from pgmail.rollup u
    where u.tenant_id = r.tenant_id and u.dim = 'site' and u.grain = 'minute' and u.at > now_ - r.window_seconds * interval '1 second'
      and u.kind in ('sent', 'bounced_hard', 'bounced_soft', 'bounced_block', 'bounced_other') and coalesce(r.about, u.key) = u.key
    group by u.key) x
  where x.all_ >= greatest(r.minimum, 1) and x.bounced / x.all_ > r.threshold;

  return query
  select r.rule_id, h.tenant_id, h.id::text, extract(epoch from now_ - h.failing_since)::float8, format('The webhook to %s %s since %s: %s.',
    split_part(h.url, '?', 1), case when h.enabled then 'fails' else 'failed, and is disabled' end, pgmail.at_words(h.failing_since),
    rtrim(coalesce(h.reason, h.last_error, 'no answer'), '. '))
  from pgmail.hook h join pgmail.alert_rules_of('webhook_failing') r on r.tenant_id = h.tenant_id and coalesce(r.about, h.id::text) = h.id::text
  -- One that was given up (410, or five days) is told at once; one that a person disabled needs nobody any more.
  where h.removed_at is null and h.failing_since is not null
    and case when h.enabled then h.failing_since < now_ - r.threshold * interval '1 second' else h.reason not like 'disabled by %' end;
end
$$;

-- Up to when the leading process has done what pages, reports and alerts hang on, and what it means where that stands still.
-- times: of the patience with the others, since states are counted, and alerts looked for, the more rarely the more there is.
-- building: it has to wait for an index. What has not been done once counts from the first look for alerts.
--   Roll-ups that read what piled up (a burst, or while no process led) are as far as the last event that was read. Where
-- that runs half as fast again as the clock, or faster, they have four times the patience, and say how long it takes.
create or replace function pgmail.chores_reached()
returns table (subject text, words text, times integer, at timestamptz, building boolean)
language sql stable security definer set search_path = pgmail, pg_temp
as $$
  with behind as (   -- pace: seconds of events a second, since it began to read them
    select x.read_to, x.upto_at, x.pace from (
      select y.*, extract(epoch from y.read_to - y.rolled_at) / greatest(extract(epoch from pgmail.now() - y.upto_at), 1)::float8 as pace
      from (select c.rolled_at, c.upto_at, least(pgmail.uuid_time(c.at_id), c.upto_at) as read_to from pgmail.insight_cursor c
            where c.upto is not null and c.at_id > '00000000-0000-0000-0000-000000000000') y
      where y.read_to > y.rolled_at) x
    where x.pace >= 1.5
  )
  select v.subject, v.words, v.times, coalesce(v.at, (select min(h.at) from pgmail.alert_horizon h)), v.subject = 'reports'
    and (select i.indisvalid from pg_index i where i.indexrelid = to_regclass('pgmail.event_feed')) is not true
  from pgmail.insight_cursor c left join behind b on true, lateral (values
    ('reports', case when b.pace is null then 'Charts, reports and rules about rates know nothing of what happened'
      else format('Charts, reports and rules about rates are read up (which takes %s more), and know nothing yet of what happened',
        pgmail.span_words(greatest(extract(epoch from b.upto_at - b.read_to)::float8 / b.pace, 1))) end,
      case when b.pace is null then 1 else 4 end, coalesce(b.read_to, c.rolled_at)),
    ('gauges', 'Nobody has looked for late mail', 1, c.gauged_at),
    ('states', 'Nobody has counted what waits in which state', 12, c.counted_at)) v(subject, words, times, at)
  union all
  select 'webhooks', 'Webhooks are told of nothing that happened', 1, h.seen_at, false from pgmail.hook_cursor h where h.seen is not null
  union all
  select 'alerts', 'Nobody has looked for alerts', 3, max(h.at), false from pgmail.alert_horizon h
$$;

-- Facts of the fleet.
create or replace function pgmail.alert_facts_fleet() returns setof pgmail.alert_fact
language plpgsql stable security definer set search_path = pgmail, pg_temp set jit = off
as $$
declare now_ timestamptz := pgmail.now();
begin
  return query
  select r.id, null::integer, '', extract(epoch from now_ - f.noticed_at)::float8,
    format('All sending is stopped since %s, for the database was restored: %s; pgmail resume --after-restore decides.', pgmail.at_words(f.noticed_at), rtrim(f.reason, '. '))
  from pgmail.fence f join pgmail.alert_rule r on r.kind = 'restored_database' and r.tenant_id is null and r.enabled;

  -- Its row is written anew by each probe, so how long it lasts is the alert's own to know.
  return query
  select r.id, null::integer, y.name, 0::float8, format('The relay %s does not answer: %s.', y.name, rtrim(coalesce(y.reason, 'unreachable'), '. '))
  from pgmail.relay y join pgmail.alert_rule r on r.kind = 'relay_away' and r.tenant_id is null and r.enabled and coalesce(r.about, y.name) = y.name
  where y.state = 'away';

  return query
  select r.id, null::integer, format('worker %s', l.epoch), extract(epoch from now_ - l.lost_at)::float8,
    format('%s on %s (process %s) fell silent at %s and was declared dead; its mail was given back.', case l.program when 'worker' then 'Worker ' || l.epoch
      else 'The process ' || l.program || ' ' || l.epoch end, l.host, l.pid, pgmail.at_words(l.beat_at))
  from pgmail.lost_worker l join pgmail.alert_rule r on r.kind = 'worker_lost' and r.tenant_id is null and r.enabled and coalesce(r.about, l.host) = l.host
  where not l.stopped and l.lost_at > now_ - coalesce(r.window_seconds, 900) * interval '1 second';

  return query
  select r.id, null::integer, c.name, x.days, format('The certificate of %s (%s) %s %s.', case c.name when 'api' then 'the API' else c.name end, c.place,
    case when x.days < 0 then 'ended at' else 'ends in ' || pgmail.span_words(x.days * 86400) || ', at' end, pgmail.at_words(c.ends_at)
      || case when c.unseen_since is not null then format('; it cannot be seen since %s (%s)', pgmail.at_words(c.unseen_since), c.answer) else '' end)
  from pgmail.certificate c cross join lateral (select extract(epoch from c.ends_at - now_)::float8 / 86400 as days) x
  join pgmail.alert_rule r on r.kind = 'certificate' and r.tenant_id is null and r.enabled and coalesce(r.about, c.name) = c.name and x.days < r.threshold
  where c.seen_at > now_ - interval '3 days';

  -- Where these stand still all looks calm.
  return query
  select r.id, null::integer, x.subject, extract(epoch from now_ - x.at)::float8, format('%s since %s%s; the log of the process that leads says why.',
    x.words, pgmail.at_words(x.at), case when x.building then ', for the index of events is not whole yet' else '' end)
  from pgmail.chores_reached() x
  join pgmail.alert_rule r on r.kind = 'figures_late' and r.tenant_id is null and r.enabled and coalesce(r.about, x.subject) = x.subject
    and x.at < now_ - r.threshold * x.times * interval '1 second'
  where x.subject <> 'alerts';   -- what does not look does not tell of it: doctor does

  return query
  select r.id, null::integer, '', p.days_left::float8, case when p.strays > 0
      then format('Mail stands in the partitions of last resort (%s rows), since weekly ones are missing; pgmail maintain makes them.', p.strays)
      else format('Partitions are made for only %s more; pgmail maintain makes them.', pgmail.span_words(p.days_left * 86400)) end
  from pgmail.partition_state() p join pgmail.alert_rule r on r.kind = 'partitions_low' and r.tenant_id is null and r.enabled
  where p.strays > 0 or p.days_left < r.threshold;
end
$$;

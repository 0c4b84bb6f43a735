-- Lanes that hold mail. Told from the queue itself: found by skipping from lane to lane along the claim index, so the cost is
-- the number of lanes, not of mails (50,000 lanes: some tenths of a second). Told from the gauge, which one chore of the leader
-- keeps (068_gauge): a twentieth of that, and a few seconds late. Nothing on the path of mail asks; the leader does.

-- The first row of each lane, due or not: out of the index alone, where a vacuum has come by.
create or replace function pgmail.lanes_present()
returns table (tenant_id integer, lane bigint, due_at timestamptz, id uuid)
language sql stable rows 100 security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  with recursive present as (
    (select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane, q.due_at, q.id from pgmail.queue q where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  )
  select p.tenant_id, p.lane, p.due_at, p.id from present p
$$;

-- When the oldest mail of each lane was due that is free and that no pause keeps: null where there is none. A suspended tenant's
-- is all of its mail: what an operator stopped is nobody else's reason to wait. A lane that no worker has folded yet is left out.
create or replace function pgmail.oldest_in_lanes()
returns table (tenant_id integer, lane bigint, stream text, due_at timestamptz)
language sql stable rows 100 security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  select p.tenant_id, p.lane, l.stream,
    case when not exists (
        select from pgmail.pause s
        where (s.tenant_id is null or s.tenant_id = p.tenant_id) and (s.until is null or s.until > pgmail.now())
          and (s.scope = 'tenant'
               or s.name = case s.scope when 'site' then l.site when 'stream' then l.stream else pgmail.lane_name(l.stream, l.priority, l.site) end))
      then (select q.due_at from pgmail.queue q
            where q.tenant_id = p.tenant_id and q.lane = p.lane and q.leased_by is null and q.due_at <= pgmail.now()
            order by q.due_at, q.id limit 1) end
  from pgmail.lanes_present() p join pgmail.lane l on l.tenant_id = p.tenant_id and l.id = p.lane
$$;

-- Lanes of the gauge whose mail is due and that no pause keeps. Not of the definer, without settings: taken into the statement of
-- its caller. Pauses are few and lanes are many: each lane looks into hashes of them.
create or replace function pgmail.gauge_due()
returns table (tenant_id integer, lane bigint, stream text, priority smallint, site text, due_at timestamptz)
language sql stable
as $$
  with paused as materialized (
    select p.tenant_id, p.scope, p.name from pgmail.pause p where p.until is null or p.until > pgmail.now()
  )
  select g.tenant_id, g.lane, g.stream, g.priority, g.site, g.oldest_due_at from pgmail.gauge g
  where g.oldest_due_at is not null
    and (not exists (select from paused)
      or (g.tenant_id not in (select p.tenant_id from paused p where p.scope = 'tenant' and p.tenant_id is not null)
        and ('stream', g.stream) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and ('site', g.site) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and ('lane', pgmail.lane_name(g.stream, g.priority, g.site)) not in (select p.scope, p.name from paused p where p.tenant_id is null)
        and (g.tenant_id, 'stream', g.stream) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)
        and (g.tenant_id, 'site', g.site) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)
        and (g.tenant_id, 'lane', pgmail.lane_name(g.stream, g.priority, g.site)) not in (select p.tenant_id, p.scope, p.name from paused p where p.tenant_id is not null)))
$$;

-- Whether the gauge is kept: else who asks has to look for himself. The chore comes once in a minute at least, however many lanes.
create or replace function pgmail.gauge_kept() returns boolean
language sql stable
as $$
  select coalesce((select c.gauged_at > pgmail.now() - interval '3 minutes' from pgmail.insight_cursor c), false)
$$;

-- Lanes that hold mail, told from the queue itself: found by skipping from lane to lane along the claim index, so the cost is
-- the number of lanes, not of mails (50,000 lanes: some tenths of a second). Nothing on the path of mail asks; the leader does.

-- The first row of each lane, due or not.
create or replace function pgmail.lane_heads()
returns table (tenant_id integer, lane bigint, due_at timestamptz, message_id uuid, id uuid)
language sql stable rows 100 security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
  with recursive present as (
    (select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q order by q.tenant_id, q.lane, q.due_at, q.id limit 1)
    union all
    select x.* from present p, lateral (
      select q.tenant_id, q.lane, q.due_at, q.message_id, q.id from pgmail.queue q where (q.tenant_id, q.lane) > (p.tenant_id, p.lane)
      order by q.tenant_id, q.lane, q.due_at, q.id limit 1) x
  )
  select p.tenant_id, p.lane, p.due_at, p.message_id, p.id from present p
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
  from pgmail.lane_heads() p join pgmail.lane l on l.tenant_id = p.tenant_id and l.id = p.lane
$$;

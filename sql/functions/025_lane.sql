-- A lane is (tenant, stream, priority, site). Its id is computed, so that no row need exist when mail goes into it.
create or replace function pgmail.lane_id(p_tenant integer, p_stream text, p_priority integer, p_site text) returns bigint
language sql immutable parallel safe
as $$ select hashtextextended(p_tenant || '/' || p_stream || '/' || p_priority || '/' || p_site, 0) $$;

-- The site of all test email, so that it has lanes of its own: none of its mail waits for a real receiver or costs one
-- anything, and a worker sees by the lane that it goes to the sandbox. No domain has a colon, and site_domain refuses it.
create or replace function pgmail.test_site() returns text
language sql immutable parallel safe
as $$ select 'test:' $$;

-- Folds what send appended into active lanes. Any worker may; two at once share the rows.
create or replace function pgmail.fold_touches_v1() returns integer
language plpgsql security definer set search_path = pgmail, pg_temp
as $$
declare n integer;
begin
  with gone as (
    delete from pgmail.lane_touch
    where ctid = any(array(select ctid from pgmail.lane_touch limit 5000 for update skip locked))
    returning *
  ), touched as (
    select tenant_id, lane, min(stream) as stream, min(priority) as priority, min(site) as site, min(due_at) as due_at
    from gone group by tenant_id, lane order by tenant_id, lane
  ), folded as (
    insert into pgmail.lane as l (tenant_id, id, stream, priority, site, rewind_to)
    select tenant_id, lane, stream, priority, site, due_at from touched
    on conflict (tenant_id, id) do update set active = true, version = nextval('pgmail.lane_version'),
      changed_at = pgmail.now(),
      -- an old rewind was seen by every worker a minute after it was written
      rewind_to = case when l.changed_at > pgmail.now() - interval '1 minute'
                       then least(l.rewind_to, excluded.rewind_to) else excluded.rewind_to end
    returning 1
  )
  select count(*) into n from folded;
  return n;
end
$$;

-- Something in these lanes became due again in the past (released, rescued, retried): appended like a send's touch,
-- and folded into a rewind by a worker. It locks nothing, since the caller may be an application's long transaction.
-- A lane without a row was touched by its send and is not folded yet: it has no head to go back.
create or replace function pgmail.touch_lanes(p_tenant integer, p_lanes bigint[], p_due timestamptz[]) returns void
language sql volatile security definer set search_path = pgmail, pg_temp
as $$
  insert into pgmail.lane_touch (tenant_id, lane, stream, priority, site, due_at)
  select p_tenant, l.id, l.stream, l.priority, l.site, r.due
  from (select lane, min(due) as due from unnest(p_lanes, p_due) u(lane, due) group by lane) r
  join pgmail.lane l on l.tenant_id = p_tenant and l.id = r.lane
$$;

-- Lanes that this worker found empty for a quiet time: idle, unless the queue says otherwise.
create or replace function pgmail.idle_lanes_v1(p_tenant integer, p_lanes bigint[]) returns integer
language plpgsql security definer set search_path = pgmail, pg_temp set enable_seqscan = off set jit = off
as $$
declare n integer;
begin
  with quiet as materialized (
    select l.id from pgmail.lane l
    where l.tenant_id = p_tenant and l.id = any(p_lanes) and l.active
      and l.changed_at < pgmail.now() - interval '30 seconds'
      and not exists (select 1 from pgmail.queue q
                      where q.tenant_id = p_tenant and q.lane = l.id and q.due_at <= pgmail.now() + interval '5 seconds')
    order by l.id for update of l skip locked
  ), idled as (
    update pgmail.lane l set active = false, version = nextval('pgmail.lane_version'), changed_at = pgmail.now(),
      rewind_to = null
    from quiet where l.tenant_id = p_tenant and l.id = quiet.id returning 1
  )
  select count(*) into n from idled;
  return n;
end
$$;

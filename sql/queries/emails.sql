-- What the HTTP API asks about email. `send`, `send_many` and `send_group` are whole transactions of one statement: the
-- tenant is set in a materialized part that runs before the function can be called, which saves BEGIN and COMMIT.

-- name: send :one
-- Enqueue one email for a tenant. Waits three seconds at most for another request with the same idempotency key.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
         set_config('pgmail.key', %(key_id)s::text, true), set_config('lock_timeout', '3s', true)
)
select pgmail.send(%(email)s::jsonb) as id from caller;

-- name: send_many :many
-- Enqueue a batch for a tenant, in the batch's order.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
         set_config('pgmail.key', %(key_id)s::text, true), set_config('lock_timeout', '3s', true)
)
select (x.sent).position, (x.sent).id::text, (x.sent).code, (x.sent).field, (x.sent).message
from (select pgmail.send_many(%(emails)s::jsonb, %(strict)s, %(key)s) as sent from caller offset 0) x
order by 1;

-- name: send_group :many
-- Enqueue emails of several requests of one tenant, each for itself, in their order. The caller says how long to wait
-- for a lock: shortly, where many wait for a key that another transaction holds.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
         set_config('pgmail.key', %(key_id)s::text, true), set_config('lock_timeout', %(lock_timeout)s, true)
)
select (x.sent).id::text, (x.sent).code, (x.sent).field, (x.sent).message
from (select pgmail.send_many(%(emails)s::jsonb, false) as sent from caller offset 0) x
order by (x.sent).position;

-- name: recipients :many
-- Where each recipient of an email stands, or the one recipient; refused as not_found for an unknown id.
select s.recipient_id, s.message_id, s.address, s.role, s.phase, s.state, s.attempts, s.due_at, s.changed_at, s.code,
       s.enhanced, s.reply, s.reason, coalesce(r.rcpt, r.address) as rcpt, r.name
from pgmail.status(%(id)s) s
join pgmail.recipient r on r.tenant_id = (select pgmail.current_tenant()) and r.id = s.recipient_id
order by r.position;

-- name: message :one
-- An email as it was handed over. Of content that is sealed (`key_id`) only the lists of people stand open.
select m.id, m.created_at, m.stream, m.priority, m.mode, m.sender, m.recipients, m.scheduled_at, m.expires_at, m.template,
       m.template_version, m.size_bytes, m.tags, m.metadata, m.replay_of, m.test,
       m.content, m.key_id
from pgmail.message m
where m.tenant_id = (select pgmail.current_tenant()) and m.id = %(id)s;

-- name: list :many
-- A page of emails, newest first, without bodies. Planned anew each time (never prepared), so that filters that are
-- null vanish and one branch of `candidate` does the work: the one that starts from the narrowest filter. `newer` takes
-- the page next above an id instead of next below. `people` are 50 recipients at most.
with candidate as (
  (select m.id from pgmail.message m
    where %(start)s::text = 'time' and m.tenant_id = (select pgmail.current_tenant())
      and (%(below)s::uuid is null or m.id < %(below)s::uuid)
      and (%(above)s::uuid is null or m.id > %(above)s::uuid)
      and (%(stream)s::text is null or m.stream = %(stream)s::text)
      and (%(streams)s::text[] is null or m.stream = any (%(streams)s::text[]))
      and (not %(only_tests)s::boolean or m.test)
      and (%(state)s::text is null or exists (
        select from pgmail.recipient r
        join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
        where r.tenant_id = m.tenant_id and r.message_id = m.id and o.state = %(state)s::text
          and r.id >= pgmail.uuid_floor(pgmail.uuid_time(m.id) - interval '1 hour')
          and r.id < pgmail.uuid_floor(pgmail.uuid_time(m.id) + interval '1 hour')))
    order by case when %(newer)s::boolean then m.id end, case when not %(newer)s::boolean then m.id end desc
    limit %(limit)s)
  union all
  select t.message_id from pgmail.tag t
   where %(start)s::text = 'tag' and t.tenant_id = (select pgmail.current_tenant())
     and t.name = %(tag_name)s::text and t.value = %(tag_value)s::text
  union all
  select distinct r.message_id from pgmail.recipient r
   where %(start)s::text = 'recipient' and r.tenant_id = (select pgmail.current_tenant())
     and r.address = %(recipient)s::text
     and (%(below)s::uuid is null
          or r.id < pgmail.uuid_floor(pgmail.uuid_time(%(below)s::uuid) + interval '1 hour'))
     and (%(above)s::uuid is null
          or r.id >= pgmail.uuid_floor(pgmail.uuid_time(%(above)s::uuid) - interval '1 hour'))
  union all
  select distinct o.message_id from pgmail.outcome o
   where %(start)s::text = 'outcome' and o.tenant_id = (select pgmail.current_tenant()) and o.state = %(state)s::text
     and (%(below)s::uuid is null
          or o.recipient_id < pgmail.uuid_floor(pgmail.uuid_time(%(below)s::uuid) + interval '1 hour'))
     and (%(above)s::uuid is null
          or o.recipient_id >= pgmail.uuid_floor(pgmail.uuid_time(%(above)s::uuid) - interval '1 hour'))
  union all
  select distinct q.message_id from pgmail.queue q
   where %(start)s::text = 'queue' and q.tenant_id = (select pgmail.current_tenant())
     and pgmail.state_of(null, false, true, q.leased_by is not null, q.due_at, q.wait, pgmail.now()) = %(state)s::text
  union all
  select distinct d.message_id from pgmail.dead_letter d
   where %(start)s::text = 'dead' and d.tenant_id = (select pgmail.current_tenant())
), page as (
  select m.*
  from candidate c join pgmail.message m on m.tenant_id = (select pgmail.current_tenant()) and m.id = c.id
  where (%(below)s::uuid is null or m.id < %(below)s::uuid)
    and (%(above)s::uuid is null or m.id > %(above)s::uuid)
    and (%(stream)s::text is null or m.stream = %(stream)s::text)
    and (%(streams)s::text[] is null or m.stream = any (%(streams)s::text[]))
    and (not %(only_tests)s::boolean or m.test)
    and (%(tag_name)s::text is null or %(start)s::text = 'tag' or exists (
      select from pgmail.tag t where t.tenant_id = m.tenant_id and t.name = %(tag_name)s::text
        and t.value = %(tag_value)s::text and t.message_id = m.id))
    -- One recipient must meet both, address and state; a candidate that started from one of them has met it.
    and ((%(state)s::text is null and %(recipient)s::text is null)
         or (%(state)s::text is null and %(start)s::text = 'recipient')
         or %(start)s::text in ('time', 'outcome', 'queue', 'dead') or exists (
      select from pgmail.recipient r
      left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
      left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
      left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
      where r.tenant_id = m.tenant_id and r.message_id = m.id
        and r.id >= pgmail.uuid_floor(pgmail.uuid_time(m.id) - interval '1 hour')
        and r.id < pgmail.uuid_floor(pgmail.uuid_time(m.id) + interval '1 hour')
        and (%(recipient)s::text is null or r.address = %(recipient)s::text)
        and (%(state)s::text is null
             or pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at,
                                q.wait, pgmail.now()) = %(state)s::text)))
  order by case when %(newer)s::boolean then m.id end, case when not %(newer)s::boolean then m.id end desc
  limit %(limit)s
)
select p.id, p.created_at, p.stream, p.priority, p.mode, p.sender, p.recipients, p.scheduled_at, p.expires_at, p.template,
       p.template_version, p.size_bytes, p.tags,
       convert_from(p.content, 'UTF8')::jsonb - array['html', 'text', 'variables', 'headers', 'sealed'] as content, p.key_id,
       s.people, s.states, s.last_state
from page p
left join lateral (
  select jsonb_agg(jsonb_build_object('role', x.role, 'address', x.rcpt, 'name', x.name) order by x.position)
           filter (where x.position <= 50) as people,
         (array_agg(x.state order by x.at desc, x.position))[1] as last_state,
         array_agg(x.state) as states
  from (
    select r.position, r.role, coalesce(r.rcpt, r.address) as rcpt, r.name,
      pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait,
                      pgmail.now()) as state,
      coalesce(o.at, d.died_at, q.leased_at, pgmail.uuid_time(r.id)) as at
    from pgmail.recipient r
    left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
    left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
    left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
    where r.tenant_id = p.tenant_id and r.message_id = p.id
      and r.id >= pgmail.uuid_floor(pgmail.uuid_time(p.id) - interval '1 hour')
      and r.id < pgmail.uuid_floor(pgmail.uuid_time(p.id) + interval '1 hour')
  ) x
) s on true
order by p.id desc;

-- name: events :many
-- The journey of an email or of one recipient, oldest first; refused as not_found for an unknown id.
select t.at, t.type, t.recipient_id, t.address, t.attempt, t.code, t.enhanced, t.reply, t.phase, t.relay, t.remote_host,
       t.tls, t.ms, t.worker, t.detail, t.event_id
from pgmail.trace(%(id)s) t order by t.at, t.event_id;

-- name: cancel :one
-- Cancel what is not being sent this moment.
select pgmail.cancel(%(id)s, %(reason)s) as answer;

-- name: reschedule :one
-- Move what is not being sent this moment.
select pgmail.reschedule(%(id)s, %(at)s) as answer;

-- name: hold :one
-- Stop what is not being sent this moment, until it is released.
select pgmail.hold(%(id)s, %(reason)s) as answer;

-- name: release :one
-- Let what an operator or a limit holds go again.
select pgmail.release(%(id)s, %(reason)s) as answer;

-- name: queue :many
-- How much waits, by stream, priority and site, and since when. For people who look, not for a hot path: it counts. A
-- lane that no worker has folded yet is named by one of its emails. `waits_for` says what stops a lane's due mail now.
with depth as materialized (
  select q.lane, count(*) as depth,
    count(*) filter (where s.state = 'queued') as queued,
    count(*) filter (where s.state = 'scheduled') as scheduled,
    count(*) filter (where s.state = 'deferred') as deferred,
    count(*) filter (where s.state = 'held') as held,
    count(*) filter (where s.state = 'sending') as sending,
    min(q.due_at) filter (where s.state = 'queued') as oldest_due_at
  from pgmail.queue q,
    lateral (select pgmail.state_of(null, false, true, q.leased_by is not null, q.due_at, q.wait, pgmail.now()) as state) s
  where q.tenant_id = (select pgmail.current_tenant())
  group by q.lane
), named as materialized (
  select coalesce(l.stream, f.stream) as stream, coalesce(l.priority, f.priority) as priority, coalesce(l.site, f.site) as site, d.*
  from depth d
  left join pgmail.lane l on l.tenant_id = (select pgmail.current_tenant()) and l.id = d.lane
  left join lateral (
    select m.stream, m.priority, r.site
    from pgmail.queue q
    join pgmail.message m on m.tenant_id = q.tenant_id and m.id = q.message_id
    join pgmail.recipient r on r.tenant_id = q.tenant_id and r.id = q.id
    where l.id is null and q.tenant_id = (select pgmail.current_tenant()) and q.lane = d.lane
    limit 1
  ) f on true
), special as materialized (   -- sites that something is said of; all others are stopped by the same, whichever they are
  select name as site from pgmail.limits where scope = 'site'
  union select case scope when 'site' then name else split_part(name, '/', 3) end from pgmail.pause where scope <> 'stream'
), stops as materialized (
  select x.stream, x.priority, x.site, s.words
  from (select distinct n.stream, n.priority, y.site from named n left join special y on y.site = n.site where n.queued > 0) x
  cross join lateral pgmail.stopped_by(x.stream, x.priority, x.site) s
)
select n.stream, case n.priority when 1 then 'high' when 2 then 'normal' else 'low' end as priority, n.site, n.depth, n.queued,
  n.scheduled, n.deferred, n.held, n.sending, n.oldest_due_at, case when n.queued > 0 then s.words end as waits_for
from named n
left join special y on y.site = n.site
left join stops s on s.stream = n.stream and s.priority = n.priority and coalesce(s.site, '') = coalesce(y.site, '')
order by 1, n.priority, n.depth desc, 3;

-- name: dead_letters :many
-- A page of dead letters, the newest email first.
select d.recipient_id, d.message_id, r.address, d.stream, d.site, d.died_at, d.reason, d.error, d.attempts, d.code,
       d.enhanced, d.reply, m.template, m.template_version
from pgmail.dead_letter_ids(%(filter)s::jsonb, %(limit)s, %(below)s, %(above)s, not %(newer)s::boolean) i
join pgmail.dead_letter d on d.tenant_id = (select pgmail.current_tenant()) and d.recipient_id = i
join pgmail.recipient r on r.tenant_id = d.tenant_id and r.id = d.recipient_id
left join pgmail.message m on m.tenant_id = d.tenant_id and m.id = d.message_id
order by case when %(newer)s::boolean then d.recipient_id end, case when not %(newer)s::boolean then d.recipient_id end desc;

-- name: dead_letters_by_ids :many
-- Those of these ids, of recipients or of emails, that are dead letters; oldest first, so that locks have one order.
select d.recipient_id
from pgmail.dead_letter d
where d.tenant_id = (select pgmail.current_tenant())
  and (d.recipient_id = any (%(ids)s::uuid[]) or d.message_id = any (%(ids)s::uuid[]))
  and (%(streams)s::text[] is null or d.stream = any (%(streams)s::text[]))
order by d.recipient_id limit %(limit)s;

-- name: dead_letters_by_filter :many
-- Dead letters that a filter means, oldest first, below an id.
select i as recipient_id from pgmail.dead_letter_ids(%(filter)s::jsonb, %(limit)s, %(below)s) i;

-- name: retry :one
-- Put these dead letters back into the queue; how many went.
select coalesce(sum(pgmail.retry(i, %(why)s)), 0)::integer as done from unnest(%(ids)s::uuid[]) i;

-- name: discard :one
-- Give these dead letters up; how many there were.
select coalesce(sum(pgmail.discard(i, %(why)s)), 0)::integer as done from unnest(%(ids)s::uuid[]) i;

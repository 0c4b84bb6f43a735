-- What the HTTP API asks about email. `send`, `send_many` and `send_group` are whole transactions of one statement: the
-- tenant is set in a materialized part that runs before the function can be called, which saves BEGIN and COMMIT.

-- name: send :one
-- Enqueue one email for a tenant. The caller says how long to wait for another request with the same idempotency key.
with caller as materialized (
  select set_config('pgmail.tenant', %(tenant_id)s::text, true), set_config('pgmail.actor', %(actor)s, true),
         set_config('pgmail.key', %(key_id)s::text, true), set_config('lock_timeout', %(lock_timeout)s, true)
)
select pgmail.send(%(email)s::jsonb)::text as id from caller;

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
cross join lateral (   -- one by one: the planner takes a function's rows for a thousand, and would read all recipients for them
  select x.rcpt, x.address, x.name, x.position from pgmail.recipient x
  where x.tenant_id = (select pgmail.current_tenant()) and x.id = s.recipient_id limit 1) r
order by r.position;

-- name: message :one
-- An email as it was handed over. Of content that is sealed (`key_id`) only the lists of people stand open.
select m.id, m.created_at, m.stream, m.priority, m.mode, m.sender, m.recipients, m.scheduled_at, m.expires_at, m.template,
       m.template_version, m.size_bytes, m.tags, m.metadata, m.replay_of, m.test,
       m.content, m.key_id
from pgmail.message m
where m.tenant_id = (select pgmail.current_tenant()) and m.id = %(id)s;

-- name: find :one
-- A page of a search: ids, whether there may be more, and where it ended before it had looked at everything.
select f.ids, f.more, f.place
from pgmail.find_emails(%(start)s, %(limit)s, %(below)s, %(above)s, %(newer)s, %(state)s, %(tag_name)s, %(tag_value)s, %(stream)s,
                        %(streams)s::text[], %(only_tests)s, %(recipient)s) f;

-- name: list :many
-- These emails, newest first, without bodies. By keys throughout (why a message is said twice: 070_state). `people` are 50
-- recipients at most, and states those of the first 100: a page of mailings would be tens of thousands of look-ups.
with page as (
  select m.* from unnest(%(ids)s::uuid[]) u(id)
  cross join lateral (select x.* from pgmail.message x where x.tenant_id = (select pgmail.current_tenant()) and x.id = u.id limit 1) m
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
    where r.tenant_id = p.tenant_id and r.message_id = p.id and r.message_id between p.id and p.id and r.position <= 100
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

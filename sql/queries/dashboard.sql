-- What pages of the dashboard ask besides what the API asks.

-- name: why :one
-- In a sentence for each of some recipients, why it is where it is. A mailing has a thousand, of which few are looked at.
select string_agg(pgmail.why(u.id), E'\n' order by u.n) as answer from unnest(%(ids)s::uuid[]) with ordinality u(id, n);

-- name: preview :one
-- A recipient's own variables.
select message_id, variables, key_id from pgmail.preview_v1(%(id)s);

-- name: states :many
-- Where the recipients of these emails stand, in the words of the list of emails: the first 100 of each. By primary keys throughout.
select m.id, array_agg(pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null,
                                       q.due_at, q.wait, pgmail.now())) as states
from unnest(%(ids)s::uuid[]) u(id)
join pgmail.message m on m.tenant_id = (select pgmail.current_tenant()) and m.id = u.id
join pgmail.recipient r on r.tenant_id = m.tenant_id and r.message_id = m.id and r.message_id between m.id and m.id and r.position <= 100   -- 070_state tells why
  and r.id >= pgmail.uuid_floor(pgmail.uuid_time(m.id) - interval '1 hour')
  and r.id < pgmail.uuid_floor(pgmail.uuid_time(m.id) + interval '1 hour')
left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
group by m.id;

-- name: newer :one
-- How many emails came in after this one, a hundred at most.
select count(*) as n from (
  select from pgmail.message m
  where m.tenant_id = (select pgmail.current_tenant()) and (%(id)s::uuid is null or m.id > %(id)s::uuid)
    and (%(stream)s::text is null or m.stream = %(stream)s::text)
    and (%(streams)s::text[] is null or m.stream = any (%(streams)s::text[]))
    and (not %(only_tests)s::boolean or m.test)
  limit 100
) x;

-- Who did what, when, from where and why.

-- name: list :many
-- Acts that this role sees, newest first, before an id; filters as given. Action and object may end in * for what begins so.
select a.id, a.at, t.name as tenant, a.actor, a.action, a.object, a.reason, a.source, a.application
from pgmail.audit a left join pgmail.tenant t on t.id = a.tenant_id
where (not %(own)s or a.tenant_id = (select pgmail.current_tenant()))
  and (%(before)s::bigint is null or a.id < %(before)s)
  and (%(since)s::timestamptz is null or a.at >= %(since)s) and (%(until)s::timestamptz is null or a.at < %(until)s)
  and (%(actor)s::text is null or a.actor = %(actor)s)
  and (%(action)s::text is null or a.action = %(action)s
       or right(%(action)s, 1) = '*' and starts_with(a.action, left(%(action)s, -1)))
  and (%(object)s::text is null or a.object = %(object)s
       or right(%(object)s, 1) = '*' and starts_with(a.object, left(%(object)s, -1)))
order by a.id desc limit %(limit)s;

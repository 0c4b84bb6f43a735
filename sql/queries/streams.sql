-- Streams of the caller's tenant: how mail of one kind is sent, retried and limited.

-- name: list :many
-- All streams, by name; one of them where a name is given. `relay` as it was set: one, several in order, or with weights.
select s.name, case s.priority when 1 then 'high' when 2 then 'normal' else 'low' end as priority,
       case when s.relays is null then to_jsonb(s.relay) when s.relay_weights is null then to_jsonb(s.relays)
            else (select jsonb_agg(jsonb_build_object('name', r.name, 'weight', r.weight) order by r.i)
                  from unnest(s.relays, s.relay_weights) with ordinality r(name, weight, i)) end as relay,
       s.on_doubt,
       s.trace, s.retry_base_seconds, s.retry_factor, s.retry_cap_seconds, s.retry_jitter, s.max_attempts,
       s.max_age_seconds, s.max_queued, s.keep_content_days, s.suppress_bounced, s.seal, s.created_at
from pgmail.stream s
where s.tenant_id = (select pgmail.current_tenant()) and (%(name)s::text is null or s.name = %(name)s)
order by s.name;

-- name: save :exec
-- Create a stream, or change what is named of one.
select pgmail.save_stream(%(name)s, %(settings)s::jsonb);

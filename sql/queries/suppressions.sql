-- Addresses that get no mail from the caller's tenant, from one stream or from all.

-- name: add :one
-- Suppress an address; its normal form.
select pgmail.suppress(%(address)s, %(reason)s, %(source)s, %(stream)s, %(expires_at)s) as address;

-- name: add_many :one
-- Suppress many addresses at once: how many were added, changed and as they should be already, and what was wrong.
select audit, added, changed, unchanged, faults, entries
from pgmail.suppress_many(%(addresses)s::text[], %(streams)s::text[], %(reasons)s::text[], %(sources)s::text[],
  %(created)s::timestamptz[], %(expires)s::timestamptz[], %(strict)s, %(store)s, %(audit)s::bigint);

-- name: remove :one
-- Whether the address was suppressed on this stream ('' is all streams).
select pgmail.unsuppress(%(address)s, %(stream)s, %(reason)s) as removed;

-- name: list :many
-- By address and stream, after the last pair seen; all of one stream, reason or address where these are given.
select s.address, s.stream, s.reason, s.source, s.created_at, s.created_by, s.expires_at
from pgmail.suppression s
where s.tenant_id = (select pgmail.current_tenant())
  and (%(after_address)s::text is null or (s.address, s.stream) > (%(after_address)s, %(after_stream)s))
  and (%(expired)s or s.expires_at is null or s.expires_at > pgmail.now())
  and (%(address)s::text is null or s.address = %(address)s)
  and (%(stream)s::text is null or s.stream = %(stream)s)
  and (%(reason)s::text is null or s.reason = %(reason)s)
order by s.address, s.stream limit %(limit)s;

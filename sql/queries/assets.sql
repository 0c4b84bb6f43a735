-- Assets of the caller's tenant: files stored once and attached by name.

-- name: save :exec
-- Store a file under a name, or another in its place.
select pgmail.save_asset(%(name)s, %(filename)s, %(content_type)s, %(body)s);

-- name: list :many
-- What is stored, by name, without the files themselves. `after` is the last name seen.
select a.name, a.filename, a.content_type, a.size_bytes, a.created_at, a.created_by
from pgmail.asset a
where a.tenant_id = (select pgmail.current_tenant()) and (%(after)s::text is null or a.name > %(after)s)
order by a.name limit %(limit)s;

-- name: get :one
-- What is known of one asset.
select a.name, a.filename, a.content_type, a.size_bytes, a.created_at, a.created_by
from pgmail.asset a
where a.tenant_id = (select pgmail.current_tenant()) and a.name = %(name)s;

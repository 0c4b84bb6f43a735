-- How long settled mail is kept.

-- name: show :one
-- What is set, and where it stands.
select r.content_days, r.record_days, r.changed_at, r.changed_by, r.oldest_content, r.oldest_record, r.overdue, r.kept
from pgmail.retention_state() r;

-- name: set :exec
-- Set both; null is for ever.
select pgmail.set_retention(%(content_days)s, %(record_days)s, %(reason)s);

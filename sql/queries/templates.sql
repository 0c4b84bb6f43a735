-- Templates of the caller's tenant, for people to look at. Saving and publishing is publish.sql's.

-- name: list :many
-- Each template once, by name: its newest version and the published one that mail gets. `after` is the last name seen.
select t.name, max(t.version) as newest_version,
       max(t.version) filter (where t.state = 'published') as published_version,
       min(t.created_at) as created_at, max(t.created_at) as updated_at
from pgmail.template t
where t.tenant_id = (select pgmail.current_tenant()) and (%(after)s::text is null or t.name > %(after)s)
group by t.name order by t.name limit %(limit)s;

-- name: get :one
-- One version in full: the named one, or else the published one, or else the newest draft.
select t.name, t.version, t.state, t.subject, t.body_text, t.body_html, t.required, t.depends,
       t.created_at, t.created_by, t.published_at
from pgmail.template t
where t.tenant_id = (select pgmail.current_tenant()) and t.name = %(name)s
  and (%(version)s::integer is null or t.version = %(version)s)
order by (t.state = 'published') desc, t.version desc limit 1;

-- name: versions :many
-- All versions of one template, newest first, without their sources.
select t.version, t.state, t.required, t.depends, t.created_at, t.created_by, t.published_at
from pgmail.template t
where t.tenant_id = (select pgmail.current_tenant()) and t.name = %(name)s order by t.version desc;

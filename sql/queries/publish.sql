-- What saving and publishing a template asks: the sources it leans on, and the two functions that store it. All act
-- as the caller's tenant.

-- name: published_sources :many
-- The newest published version of each of some templates, with its source.
select distinct on (t.name) t.name, t.version, t.subject, t.body_text, t.body_html
from pgmail.template t
where t.tenant_id = pgmail.current_tenant() and t.name = any(%(names)s) and t.state = 'published'
order by t.name, t.version desc;

-- name: source_of_version :one
-- One version of a template, published or not, with its source.
select t.name, t.version, t.subject, t.body_text, t.body_html
from pgmail.template t
where t.tenant_id = pgmail.current_tenant() and t.name = %(name)s and t.version = %(version)s;

-- name: newest_version :one
-- The number of the newest version of a template, published or not; null if there is none.
select max(t.version) as version
from pgmail.template t
where t.tenant_id = pgmail.current_tenant() and t.name = %(name)s;

-- name: save_template :one
-- Store a new version, as a draft or published; answers its number.
select pgmail.save_template(%(name)s, %(subject)s, %(text)s, %(html)s, %(required)s, %(depends)s, %(publish)s) as version;

-- name: publish_template :exec
-- Publish a version that is stored.
select pgmail.publish_template(%(name)s, %(version)s, %(required)s, %(depends)s);

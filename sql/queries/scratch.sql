-- A database of pgmail's own on somebody's server, for `pgmail demo`: made, used, dropped. {names} are identifiers and
-- literals that Python quotes, since these statements take no parameters.

-- name: about_here :one
-- What the named database holds, and what its role may do.
select current_database()::text as database, current_user::text as role,
       to_regnamespace('pgmail') is not null as holds_pgmail,
       r.rolsuper or r.rolcreatedb as may_create_databases, r.rolsuper or r.rolcreaterole as may_create_roles
from pg_roles r where r.rolname = current_user;

-- name: leftovers :many
-- Databases that earlier runs of this role made and could not drop: theirs by name, by mark and by owner.
select d.datname::text as name from pg_database d
where starts_with(d.datname, %(stem)s) and shobj_description(d.oid, 'pg_database') = %(mark)s
  and pg_has_role(d.datdba, 'usage');

-- name: orphans :many
-- Roles of such databases that are gone. A role is named as its database, an underscore and what it is for.
select r.rolname::text as name from pg_roles r
where r.rolname ~ ('^' || %(stem)s || '[0-9a-f]+_[a-z]+$')
  and not exists (select from pg_database d where d.datname = substring(r.rolname from '^(.*)_[a-z]+$'));

-- name: create_database :exec
-- From template0: what somebody put into template1 has no place here.
create database {database} template template0 encoding 'UTF8';

-- name: mark_database :exec
-- So that a later run knows whose it is, and a person too.
comment on database {database} is {mark};

-- name: drop_database :exec
-- Refused while somebody is connected: then its demo may be alive.
drop database if exists {database};

-- name: drop_database_now :exec
-- At the end of the run that made it; whoever is still connected is not.
drop database if exists {database} with (force);

-- name: drop_role :exec
-- Roles own nothing outside the database that is gone.
drop role if exists {role};

-- name: roles :many
-- The roles that exist with this first part of their names.
select r.rolname::text as name from pg_roles r where starts_with(r.rolname, %(prefix)s);

-- name: set_password :exec
-- A SCRAM verifier, made on this side: the password itself is in no log of the server.
alter role {role} password {verifier};

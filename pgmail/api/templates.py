"""`/templates`: save a version, publish it, look at them. `pgmail.publish` compiles and stores.

What can go wrong: a template that would fail when it is rendered; it is refused here, at its part
(`invalid_template` at `/html`).
"""

from __future__ import annotations

from typing import Any

import msgspec
from litestar import Request, get, post

from pgmail import publish
from pgmail.api import params, shapes
from pgmail.api.bodies import read_json, read_struct
from pgmail.api.openapi import operation
from pgmail.api.params import SEE, caller_of, database_of
from pgmail.errors import Refused
from pgmail.store import templates as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]


class NewTemplate(msgspec.Struct, forbid_unknown_fields=True):
    """The body of a POST: a new version of the template `name`."""

    name: str
    subject: str | None = None
    text: str | None = None
    html: str | None = None
    publish: bool = False


class Publish(msgspec.Struct, forbid_unknown_fields=True):
    """Which version to publish; the newest if none is named."""

    version: int | None = None


@post("/templates", scope="manage", status_code=200, operation_class=operation("Template"))
async def save_template(request: AnyRequest) -> dict[str, Any]:
    """Save a new version of a template, as a draft or published."""
    new = read_struct((await read_json(request)).value, NewTemplate)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        saved = await publish.save(
            connection, new.name, subject=new.subject, text=new.text, html=new.html, publish=new.publish
        )
    return _saved(saved)


@post(
    "/templates/{name:str}/publish",
    scope="manage",
    status_code=200,
    operation_class=operation("PublishTemplate", path="name"),
)
async def publish_template(request: AnyRequest) -> dict[str, Any]:
    """Publish a version, the newest unless one is named."""
    name = params.path_name(request)
    body = read_struct((await read_json(request, empty={})).value or {}, Publish)
    if body.version is not None and not 1 <= body.version < 2**31:
        raise Refused("unknown_template", "/version", f"there is no version {body.version}", 404)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        saved = await publish.publish(connection, name, body.version)
    return _saved(saved)


@get("/templates", scope=SEE, operation_class=operation(query=("limit", "after")))
async def list_templates(request: AnyRequest) -> dict[str, Any]:
    """List templates by name; `after` is a name."""
    given = params.query(request, "limit", "after")
    limit = params.limit_of(given)
    async with acting_as(database_of(request), caller_of(request)) as connection:
        rows = await store.listing(connection, limit=limit + 1, after=given.get("after"))
    data = [
        {
            "object": "template",
            "id": row.name,
            "name": row.name,
            "newest_version": row.newest_version,
            "published_version": row.published_version,
            "created_at": shapes.moment(row.created_at),
            "updated_at": shapes.moment(row.updated_at),
        }
        for row in rows[:limit]
    ]
    return shapes.listed(data, more=len(rows) > limit)


@get("/templates/{name:str}", scope=SEE, operation_class=operation(path="name", query=("version",)))
async def get_template(request: AnyRequest) -> dict[str, Any]:
    """Show one version in full: the one asked for, the published one, or the newest draft."""
    name, given = params.path_name(request), params.query(request, "version")
    version = params.number_of(given, "version")
    async with acting_as(database_of(request), caller_of(request)) as connection:
        row = await store.get(connection, name, version)
        versions = await store.versions(connection, name) if row is not None else []
    if row is None:
        raise Refused("not_found", "/name", f"no such template: {name[:128]!r}", 404)
    return {
        "object": "template",
        "id": row.name,
        "name": row.name,
        "version": row.version,
        "state": row.state,
        "subject": row.subject,
        "text": row.body_text,
        "html": row.body_html,
        "required": row.required,
        "depends": row.depends,
        "created_at": shapes.moment(row.created_at),
        "created_by": row.created_by,
        "published_at": shapes.moment(row.published_at),
        "versions": [{"version": item.version, "state": item.state} for item in versions],
    }


def _saved(saved: publish.Saved) -> dict[str, Any]:
    return {
        "object": "template",
        "id": saved.name,
        "name": saved.name,
        "version": saved.version,
        "state": "published" if saved.published else "draft",
        "required": list(saved.required),
        "depends": dict(saved.depends),
    }

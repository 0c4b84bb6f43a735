"""What `/schema` says beyond what the handlers' types tell: bodies, filters, keys.

Handlers read their bodies as octets, so that the request path has no layer of models; here the same bodies
are described for people and generators. What can go wrong: a key of an email that is missing here; a test
holds this table against the law (`domain.check.KEYS`).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from litestar import Request
from litestar.openapi.config import OpenAPIConfig
from litestar.openapi.plugins import JsonRenderPlugin
from litestar.openapi.spec import (
    Components,
    OpenAPIFormat,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
    SecurityScheme,
)

from pgmail import __name__ as title

_STRING, _OBJECT = OpenAPIType.STRING, OpenAPIType.OBJECT
_TEXT = Schema(type=_STRING)
_INTEGER = Schema(type=OpenAPIType.INTEGER)
_REAL = Schema(type=OpenAPIType.NUMBER)
_MOMENT = Schema(type=_STRING, format=OpenAPIFormat.DATE_TIME)
_UUID = Schema(type=_STRING, format=OpenAPIFormat.UUID)
_BOOLEAN = Schema(type=OpenAPIType.BOOLEAN)
_ANY_OBJECT = Schema(type=_OBJECT)


def _list(of: Schema) -> Schema:
    return Schema(type=OpenAPIType.ARRAY, items=of)


def _object(required: Sequence[str] = (), **properties: Schema) -> Schema:
    return Schema(
        type=_OBJECT,
        properties=dict(properties),
        required=list(required) or None,
        additional_properties=False,
    )


def _words(*words: str) -> Schema:
    return Schema(type=_STRING, enum=list(words))


_MAILBOX = Schema(
    one_of=[_TEXT, _object(["address"], address=_TEXT, name=_TEXT, variables=_ANY_OBJECT)],
    description="addr@domain, Name <addr@domain>, or an object; variables only in personal mode",
)
_MAILBOXES = Schema(one_of=[_MAILBOX, _list(_MAILBOX)])
_CONTENT = Schema(one_of=[_TEXT, _list(_INTEGER)], description="base64, or an array of octets")

EMAIL: Mapping[str, Schema] = {
    "from": Schema(type=_STRING, description="addr@domain or Name <addr@domain>"),
    "to": _MAILBOXES,
    "cc": _MAILBOXES,
    "bcc": _MAILBOXES,
    "mode": _words("envelope", "personal"),
    "reply_to": Schema(one_of=[_TEXT, _list(_TEXT)]),
    "template": _object(["id"], id=_TEXT, version=_INTEGER, variables=_ANY_OBJECT),
    "subject": Schema(type=_STRING, max_length=998),
    "text": _TEXT,
    "html": _TEXT,
    "variables": Schema(type=_OBJECT, description="with these, subject, text and html are templates"),
    "headers": Schema(type=_OBJECT, additional_properties=_TEXT),
    "attachments": _list(
        _object(filename=_TEXT, content=_CONTENT, content_type=_TEXT, content_id=_TEXT, asset=_TEXT)
    ),
    "tags": Schema(one_of=[_list(_object(["name", "value"], name=_TEXT, value=_TEXT)), _ANY_OBJECT]),
    "metadata": Schema(type=_OBJECT, description="kept and shown, not sent; at most 16 kB as JSON"),
    "stream": Schema(type=_STRING, default="transactional"),
    "priority": _words("high", "normal", "low"),
    "scheduled_at": Schema(type=_STRING, description="ISO 8601 with an offset, or as in 'in 5 minutes'"),
    "expires_at": _MOMENT,
    "on_limit": _words("delay", "hold", "error"),
    "idempotency_key": Schema(type=_STRING, max_length=256, description="or the header Idempotency-Key"),
    "traceparent": Schema(type=_STRING, description="W3C Trace Context; what is none is as if absent"),
    "test": Schema(
        type=OpenAPIType.BOOLEAN, description="recorded as any email, delivered to the sandbox only"
    ),
}

_DEAD = _object(
    ids=_list(_UUID),
    filter=_object(
        stream=_TEXT,
        site=_TEXT,
        reason=_TEXT,
        recipient=_TEXT,
        text=_TEXT,
        template=_TEXT,
        died_after=_MOMENT,
        died_before=_MOMENT,
    ),
    reason=_TEXT,
)
_SUPPRESSION = _object(
    address=_TEXT, email=_TEXT, stream=_TEXT, reason=_TEXT, source=_TEXT, expires_at=_MOMENT
)
_SCHEMAS = {
    "Email": Schema(
        type=_OBJECT, properties=dict(EMAIL), required=["from", "to"], additional_properties=False
    ),
    "Batch": Schema(
        type=OpenAPIType.ARRAY,
        items=Reference(ref="#/components/schemas/Email"),
        min_items=1,
        max_items=1_000,
    ),
    "Reschedule": _object(["scheduled_at"], id=_TEXT, scheduled_at=_TEXT),
    "Reason": _object(reason=_TEXT),
    "Template": _object(["name"], name=_TEXT, subject=_TEXT, text=_TEXT, html=_TEXT, publish=_BOOLEAN),
    "PublishTemplate": _object(version=_INTEGER),
    "Asset": _object(["name", "content"], name=_TEXT, filename=_TEXT, content=_CONTENT, content_type=_TEXT),
    "Stream": _object(
        priority=_words("high", "normal", "low"),
        relay=Schema(
            one_of=[_TEXT, _list(_TEXT), _list(_object(["name", "weight"], name=_TEXT, weight=_REAL))],
            description="one, several in the order in which they are tried, or several by weight",
        ),
        on_doubt=_words("resend", "hold"),
        trace=_words("full", "lean"),
        retry_base_seconds=_REAL,
        retry_factor=_REAL,
        retry_cap_seconds=_REAL,
        retry_jitter=_REAL,
        max_attempts=_INTEGER,
        max_age_seconds=_INTEGER,
        suppress_bounced=_BOOLEAN,
        max_queued=Schema(type=[OpenAPIType.INTEGER, OpenAPIType.NULL]),
        keep_content_days=Schema(type=[OpenAPIType.INTEGER, OpenAPIType.NULL]),
        seal=_words("off", "where_possible", "required"),
    ),
    "Key": _object(
        ["name"],
        name=_TEXT,
        scopes=_list(_words("send", "read", "manage", "admin")),
        test=_BOOLEAN,
        streams=_list(_TEXT),
        from_domains=Schema(
            type=OpenAPIType.ARRAY,
            items=_TEXT,
            description="example.com, or *.example.com for what lies below",
        ),
        networks=_list(_TEXT),
        expires_at=_MOMENT,
    ),
    "Webhook": _object(
        ["endpoint"],
        endpoint=Schema(type=_STRING, description="https://..."),
        events=_list(Schema(type=_STRING, description="a type of event; it may end in *, as in email.*")),
        streams=_list(_TEXT),
        tags=Schema(type=_OBJECT, additional_properties=_TEXT, description="all of these, by name"),
        description=_TEXT,
        signing_secret=Schema(type=_STRING, description="to take one over from elsewhere: whsec_..."),
    ),
    "WebhookChange": _object(
        endpoint=_TEXT,
        events=_list(_TEXT),
        streams=Schema(one_of=[_list(_TEXT), Schema(type=OpenAPIType.NULL)]),
        tags=Schema(
            one_of=[Schema(type=_OBJECT, additional_properties=_TEXT), Schema(type=OpenAPIType.NULL)]
        ),
        description=_TEXT,
        status=_words("enabled", "disabled"),
        reason=_TEXT,
    ),
    "SecretRotation": _object(
        overlap=Schema(type=OpenAPIType.NUMBER, description="seconds"), signing_secret=_TEXT, reason=_TEXT
    ),
    "Replay": _object(
        since=_MOMENT,
        until=_MOMENT,
        type=_TEXT,
        outcome=_words("failed", "delivered", "all"),
        event=_UUID,
        reason=_TEXT,
        dry_run=_BOOLEAN,
    ),
    "Rotation": _object(overlap=Schema(type=OpenAPIType.NUMBER, description="seconds"), reason=_TEXT),
    "Suppressions": Schema(one_of=[_SUPPRESSION, _list(_SUPPRESSION)], description="one, or up to 1,000"),
    "Erasure": _object(["address", "reason"], address=_TEXT, reason=_TEXT, after=_TEXT, dry_run=_BOOLEAN),
    "Domain": _object(["name"], name=_TEXT, region=_TEXT, custom_return_path=_TEXT),
    "DeadLetters": _DEAD,
    "InDoubt": _object(
        ["how"],
        how=Schema(type=_STRING, enum=["assume_sent", "resend"]),
        ids=_list(_UUID),
        filter=_object(
            stream=_TEXT,
            site=_TEXT,
            relay=_TEXT,
            worker=_INTEGER,
            recipient=_TEXT,
            doubted_after=_MOMENT,
            doubted_before=_MOMENT,
        ),
        reason=_TEXT,
    ),
    "Pause": _object(
        ["reason"],
        site=_TEXT,
        stream=_TEXT,
        lane=Schema(type=_STRING, description="stream/priority/site"),
        reason=_TEXT,
        until=_MOMENT,
    ),
    "AlertRule": _object(
        kind=Schema(type=_STRING, description="of a new rule: what it looks at"),
        about=Schema(type=[_STRING, OpenAPIType.NULL], description="this stream or other subject alone"),
        enabled=_BOOLEAN,
        threshold=_REAL,
        floor=_REAL,
        minimum=_INTEGER,
        window_seconds=_INTEGER,
        for_seconds=_INTEGER,
        calm_seconds=_INTEGER,
        renotify_seconds=Schema(type=[OpenAPIType.INTEGER, OpenAPIType.NULL]),
        severity=_words("info", "warning", "critical"),
        note=_TEXT,
        reason=_TEXT,
    ),
    "AlertTarget": _object(
        ["name", "kind"],
        name=_TEXT,
        kind=_words("webhook", "slack", "email"),
        url=_TEXT,
        secret=Schema(type=_STRING, description="signs a webhook's calls, as Standard Webhooks has it"),
        to=Schema(one_of=[_TEXT, _list(_TEXT)]),
        severity=_words("info", "warning", "critical"),
    ),
    "Silence": _object(["reason"], reason=_TEXT, until=_MOMENT, subject=_TEXT),
    "Unsilence": _object(reason=_TEXT, subject=_TEXT),
    "Resume": _object(site=_TEXT, stream=_TEXT, lane=_TEXT, reason=_TEXT),
    "Problem": _object(
        ["type", "title", "status", "detail", "code", "field", "statusCode", "name", "message"],
        type=_TEXT,
        title=_TEXT,
        status=_INTEGER,
        detail=_TEXT,
        code=_TEXT,
        field=Schema(type=_STRING, description="a JSON pointer (RFC 6901) into the body"),
        statusCode=_INTEGER,
        name=_TEXT,
        message=_TEXT,
        instance=_TEXT,
    ),
}


_PROBLEM = OpenAPIResponse(
    description="What went wrong (RFC 9457)",
    content={
        "application/problem+json": OpenAPIMediaType(schema=Reference(ref="#/components/schemas/Problem"))
    },
)


_PROBLEMS = {str(status): _PROBLEM for status in (400, 401, 403, 404, 408, 409, 410, 413, 415, 422, 429, 503)}


class _Document(JsonRenderPlugin):
    """The document, with the schemas above; Litestar keeps only those that it made from handlers' types."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        components = openapi_schema["components"]
        schemas = components["schemas"] | {name: schema.to_schema() for name, schema in _SCHEMAS.items()}
        return self.render_json(request, openapi_schema | {"components": components | {"schemas": schemas}})


def config() -> OpenAPIConfig:
    """Return the configuration of `/schema`: the document itself, and no page that loads foreign scripts."""
    return OpenAPIConfig(
        title=title,
        version="1",
        path="/schema",
        render_plugins=[_Document(path=["/", "/openapi.json"])],
        components=Components(security_schemes={"key": SecurityScheme(type="http", scheme="bearer")}),
    )


def operation(
    body: str | None = None,
    *,
    path: str | None = None,
    query: Sequence[str] = (),
    headers: Mapping[str, str] | None = None,
) -> type[Operation]:
    """Return a kind of operation whose body is a schema by name, with these parameters."""

    @dataclass
    class Described(Operation):
        def __post_init__(self) -> None:
            if body is not None:
                content = {
                    "application/json": OpenAPIMediaType(schema=Reference(ref=f"#/components/schemas/{body}"))
                }
                self.request_body = RequestBody(content=content, required=True)
            extra: list[Any] = []
            if path is not None:
                extra.append(Parameter(name=path, param_in="path", schema=_TEXT, required=True))
            extra += [Parameter(name=name, param_in="query", schema=_TEXT) for name in query]
            extra += [
                Parameter(name=name, param_in="header", schema=_TEXT, description=text)
                for name, text in (headers or {}).items()
            ]
            # Litestar describes a path's parameter where it knows its type; ours stands in its place.
            ours = {(each.name, each.param_in) for each in extra}
            theirs = [
                each
                for each in self.parameters or []
                if not isinstance(each, Parameter) or (each.name, each.param_in) not in ours
            ]
            self.parameters = [*theirs, *extra] or None
            self.responses = {**(self.responses or {}), **_PROBLEMS}

    return Described

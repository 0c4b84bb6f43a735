"""Errors as HTTP says them: RFC 9457 problem details, with the keys that Resend's SDKs read.

`problem_of` is the one place where an error becomes a status. What can go wrong: an error that nobody
foresaw. It is a 500 whose body says nothing but an id; the log has that id and the traceback.

Resend's SDKs read bodies of the type `application/json` only, and say so (`Accept`). A client that asks for
that type and not for `application/problem+json` gets the same body under it.
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Mapping
from http import HTTPStatus
from types import MappingProxyType
from typing import Any

import msgspec
import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException

from pgmail.errors import DatabaseAway, Refused, SchemaMismatch
from pgmail.store.emails import InDoubt

log = structlog.get_logger()

PROBLEM = "application/problem+json"
RETRY_SECONDS: Mapping[int, int] = MappingProxyType({429: 60, 503: 5})

# Resend's names of errors, by our code; then by status.
_NAMES = {
    "missing_field": "missing_required_field",
    "unverified_domain": "validation_error",
    "missing_variable": "missing_required_field",
    "invalid_idempotency_key": "invalid_idempotency_key",
    "idempotency_conflict": "invalid_idempotent_request",
    "idempotency_in_flight": "concurrent_idempotent_requests",
    "missing_api_key": "missing_api_key",
    "tenant_suspended": "validation_error",
    "invalid_api_key": "invalid_api_key",
}
_NAMES_BY_STATUS = {
    403: "restricted_api_key",
    404: "not_found",
    405: "method_not_allowed",
    429: "rate_limit_exceeded",
    500: "application_error",
    503: "service_unavailable",
}
# What SQL refuses with another status than 422, for answers that tell code, field and message only.
_STATUSES = {
    "unverified_domain": 403,
    "tenant_suspended": 403,
    "idempotency_conflict": 409,
    "limit_reached": 429,
    "too_large": 413,
    "backpressure": 503,
}
# What the framework refuses by itself, in pgmail's words.
_CODES = {
    400: "invalid_request",
    401: "missing_api_key",
    404: "not_found",
    405: "method_not_allowed",
    413: "too_large",
}
_MESSAGES = {
    404: "there is no such route; GET /schema lists them all",
    405: "this route does not know that method",
    413: "the body of the request is larger than PGMAIL_MAX_BODY_BYTES",
}
_AWAY = "the database cannot be reached; nothing was stored, ask again"
_DOUBT = (
    "the connection to the database broke under the request; what it asked for may have been stored: "
    "with an Idempotency-Key ask again with the same, without one look before you do"
)


class Problem(msgspec.Struct, frozen=True, kw_only=True):
    """A problem as it goes over the wire.

    `type` is `urn:pgmail:` and the code; `field` a JSON pointer (RFC 6901) into the body, empty when the
    whole request is meant. `statusCode`, `name` and `message` are what Resend's SDKs read.
    """

    type: str
    title: str
    status: int
    detail: str
    code: str
    field: str
    status_code: int = msgspec.field(name="statusCode")
    name: str
    message: str
    instance: str | msgspec.UnsetType = msgspec.UNSET


def problem_of(error: Exception) -> tuple[Problem, dict[str, str]]:
    """Return what an error is to a client, and the headers that go with it."""
    if isinstance(error, Refused):
        headers = {"WWW-Authenticate": "Bearer"} if error.status == 401 else {}
        headers |= getattr(error, "headers", {})  # of a quota, which knows when to try again
        if error.status == 408:
            headers["Connection"] = "close"  # what is still on its way is not waited for
        if error.retry_after is not None:
            headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
        return _problem(error.code, error.field, error.message, error.status), _wait(error.status) | headers
    if isinstance(error, DatabaseAway):
        return _problem("database_away", "", _DOUBT if isinstance(error, InDoubt) else _AWAY, 503), _wait(503)
    if isinstance(error, SchemaMismatch):
        return _problem(
            "schema_mismatch", "", "the database and this program do not fit together", 503
        ), _wait(503)
    if isinstance(error, HTTPException) and error.status_code < 500:
        status = error.status_code
        problem = _problem(
            _CODES.get(status, "invalid_request"), "", _MESSAGES.get(status, error.detail), status
        )
        return problem, dict(error.headers or {}) | _wait(status)
    instance = f"urn:pgmail:error:{secrets.token_hex(8)}"
    problem = _problem("internal_error", "", f"a fault of pgmail, logged as {instance}", 500)
    return msgspec.structs.replace(problem, instance=instance), {}


def status_of(code: str) -> int:
    """Return the status that goes with the code of an email's fault."""
    return _STATUSES.get(code, 422)


def problem_for(error: Exception, method: str, path: str) -> tuple[Problem, dict[str, str]]:
    """Return what an error is to a client, as `problem_of`, and log it if it is a fault of ours."""
    problem, headers = problem_of(error)
    if problem.status == 500:
        log.error("request failed", instance=problem.instance, method=method, path=path, exc_info=error)
    return problem, headers


def answer(request: Request[Any, Any, Any], error: Exception) -> Response[Problem]:
    """Answer a request with the problem of an error (an exception handler)."""
    problem, headers = problem_for(error, request.method, request.scope["path"])
    return Response(
        problem,
        status_code=problem.status,
        media_type=media_type(request.headers.get("accept", "")),
        headers=headers,
    )


def media_type(accept: str) -> str:
    """Return the type to answer a problem in, from an `Accept` header (RFC 9110, section 12.5.1)."""
    plain = "application/json" in accept and PROBLEM not in accept
    return "application/json" if plain else PROBLEM


def _problem(code: str, field: str, message: str, status: int) -> Problem:
    name = _NAMES.get(code) or _NAMES_BY_STATUS.get(status, "validation_error")
    return Problem(
        type=f"urn:pgmail:{code}",
        title=HTTPStatus(status).phrase,
        status=status,
        detail=message,
        code=code,
        field=field,
        status_code=status,
        name=name,
        message=f"{field}: {message}" if field else message,
    )


def _wait(status: int) -> dict[str, str]:
    return {"Retry-After": str(RETRY_SECONDS[status])} if status in RETRY_SECONDS else {}

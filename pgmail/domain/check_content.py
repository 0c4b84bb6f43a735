"""Rows 5 to 9, 11, 12 of the law of an email: template, subject, bodies, variables, headers, tags, metadata.

What can go wrong: whether a stored template exists and what it requires is known to SQL alone, and whether an
inline template compiles to `pgmail.render` alone. What passes here is well-formed, not yet renderable.
"""

from __future__ import annotations

import json
import re
from typing import Any

from pgmail.domain.check_body import control_in, items, kind, refuse

MAX_SUBJECT = 998  # characters
MAX_HEADERS = 50
MAX_HEADER_VALUE = 2_000  # characters
MAX_TAGS = 20
MAX_METADATA = 16_384  # octets as JSON
MAX_VERSION = 999_999_999
MAX_VARIABLES = 1_048_576  # octets as JSON, shared by all recipients
MAX_OWN_VARIABLES = 262_144  # of one recipient
MAX_LEVELS = 32  # of variables within variables

_HEADER_NAME = re.compile("[!-9;-~]{1,76}")
_RESERVED = frozenset(
    {
        *("from", "to", "cc", "bcc", "subject", "date", "message-id", "reply-to", "sender", "return-path"),
        *("received", "mime-version", "dkim-signature", "return-receipt-to", "disposition-notification-to"),
        "authentication-results",
        # what signatures cover, and what servers on the way write: forged, it lies about who sent and how it came
        *("domainkey-signature", "x-google-dkim-signature", "received-spf", "x-received", "delivered-to"),
        *(
            "x-original-to",
            "envelope-to",
            "envelope-from",
            "original-recipient",
            "apparently-to",
            "errors-to",
        ),
    }
)
_RESERVED_PREFIXES = ("content-", "resent-", "arc-", "dkim-", "bimi-", "x-envelope-")
_TAG = re.compile("[A-Za-z0-9_-]{1,256}")
_TAG_RULE = "1 to 256 of A-Z, a-z, 0-9, _ and -"
_TEMPLATE_KEYS = frozenset({"id", "variables", "version"})


def check_template(body: dict[str, Any]) -> None:
    """Row 5, but for whether the template exists."""
    template = body.get("template")
    if template is None:
        return
    if isinstance(template, str):
        return
    if not isinstance(template, dict):
        refuse(
            "invalid_template",
            "template",
            because=f'an object as in {{"id": "welcome"}}, not {kind(template)}',
        )
    if unknown := template.keys() - _TEMPLATE_KEYS:
        because = f"a template is named by id, version and variables, not {min(unknown)!r}"
        refuse("invalid_template", "template", because=because)
    name, version = template.get("id"), template.get("version")
    if not isinstance(name, str):
        refuse("invalid_template", "template", because="the id of a template is its name, a string")
    if version is None:
        return
    if type(version) is not int or not 1 <= version <= MAX_VERSION:  # a bool is an int to Python
        refuse("invalid_template", "template", because="the version of a template is a whole number from 1")


def check_subject(body: dict[str, Any]) -> None:
    """Row 6."""
    subject = body.get("subject")
    if subject is None:
        if body.get("template") is None:
            refuse("missing_field", "subject", because="an email without a template needs a subject")
        return
    if not isinstance(subject, str):
        refuse("invalid_subject", "subject", because=f"a string, not {kind(subject)}")
    if len(subject) > MAX_SUBJECT:
        refuse("invalid_subject", "subject", because=f"{len(subject):,} characters; at most {MAX_SUBJECT}")
    if control := control_in(subject):
        refuse(
            "invalid_subject", "subject", because=f"there is a control character or line break ({control})"
        )


def check_text(body: dict[str, Any]) -> None:
    """Row 7."""
    template = body.get("template")
    for key in ("text", "html"):
        value = body.get(key)
        if value is None:
            continue
        if not isinstance(value, str):
            refuse("invalid_text", key, because=f"a string, not {kind(value)}")
    if template is not None:
        for key in ("text", "html"):
            if body.get(key) is not None:
                refuse(
                    "invalid_text", key, because="an email with a template takes its text and html from there"
                )
    elif body.get("text") is None and body.get("html") is None:
        refuse("missing_field", "text", because="an email without a template needs text, html or both")


def check_variables(body: dict[str, Any]) -> None:
    """Row 8, but for whether a stored template has all it requires. Types first, then sizes."""
    found: list[tuple[object, int, tuple[str | int, ...]]] = [
        (body.get("variables"), MAX_VARIABLES, ("variables",))
    ]
    template = body.get("template")
    if isinstance(template, dict):
        found.append((template.get("variables"), MAX_VARIABLES, ("template", "variables")))
    found += [
        (item.get("variables"), MAX_OWN_VARIABLES, ("to", *rest, "variables"))
        for rest, item in items(body.get("to"))
        if isinstance(item, dict)
    ]
    for value, _, path in found:
        if not isinstance(value, dict | None):
            refuse("invalid_variables", *path, because=f"an object, not {kind(value)}")
    for value, most, path in found:
        if value:
            _check_extent(value, most, path)


def _check_extent(value: object, most: int, path: tuple[str | int, ...]) -> None:
    """Refuse variables that are too large or too deep; measured as PostgreSQL writes jsonb."""
    level: list[object] = [value]
    for _ in range(MAX_LEVELS):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list | tuple):
                inner.extend(item)
        level = inner
    if any(isinstance(item, dict | list | tuple) and item for item in level):
        refuse("invalid_variables", *path, because=f"nested more than {MAX_LEVELS} deep")
    size = len(json.dumps(value, ensure_ascii=False).encode())
    if size > most:
        refuse("invalid_variables", *path, because=f"{size:,} octets as JSON; at most {most:,}")


def check_headers(body: dict[str, Any]) -> None:
    """Row 9: names as RFC 5322 section 3.6.8 has them, none that pgmail writes itself."""
    headers = body.get("headers")
    if headers is None:
        return
    if not isinstance(headers, dict):
        refuse("invalid_header", "headers", because=f"an object of names and values, not {kind(headers)}")
    if len(headers) > MAX_HEADERS:
        refuse("invalid_header", "headers", because=f"{len(headers)} headers; at most {MAX_HEADERS}")
    for name in sorted(headers):
        value, lower = headers[name], name.lower()
        if not _HEADER_NAME.fullmatch(name):
            because = "a header's name is 1 to 76 printable ASCII characters without space and colon"
            refuse("invalid_header", "headers", name, because=because)
        if lower in _RESERVED or lower.startswith(_RESERVED_PREFIXES):
            refuse("reserved_header", "headers", name, because="pgmail or a later server writes this header")
        if not isinstance(value, str):
            refuse("invalid_header", "headers", name, because=f"a string, not {kind(value)}")
        if len(value) > MAX_HEADER_VALUE:
            because = f"{len(value):,} characters; at most {MAX_HEADER_VALUE:,}"
            refuse("invalid_header", "headers", name, because=because)
        if control := control_in(value):
            because = f"there is a control character or line break ({control})"
            refuse("invalid_header", "headers", name, because=because)


def check_tags(body: dict[str, Any]) -> None:
    """Row 11."""
    tags = body.get("tags")
    if tags is None:
        return
    if not isinstance(tags, list | dict):
        refuse("invalid_tag", "tags", because=f"an array of name and value, or an object, not {kind(tags)}")
    if isinstance(tags, dict):
        for count, name in enumerate(sorted(tags)):
            _check_count(count, len(tags))
            _tag(name, tags[name], name)
        return
    for position, tag in enumerate(tags):
        _check_count(position, len(tags))
        if not isinstance(tag, dict) or tag.keys() != {"name", "value"}:
            refuse("invalid_tag", "tags", position, because='a tag is {"name": ..., "value": ...}')
        _tag(tag["name"], tag["value"], position)


def check_metadata(body: dict[str, Any]) -> None:
    """Row 12. Measured as PostgreSQL writes jsonb: a space after each colon and comma."""
    metadata = body.get("metadata")
    if metadata is None:
        return
    if not isinstance(metadata, dict):
        refuse("invalid_metadata", "metadata", because=f"an object, not {kind(metadata)}")
    size = len(json.dumps(metadata, ensure_ascii=False).encode())
    if size > MAX_METADATA:
        because = f"{size:,} octets as JSON; at most {MAX_METADATA:,}"
        refuse("invalid_metadata", "metadata", because=because)


def _check_count(before: int, tags: int) -> None:
    if before >= MAX_TAGS:
        refuse("invalid_tag", "tags", because=f"{tags} tags; at most {MAX_TAGS}")


def _tag(name: object, value: object, at: str | int) -> None:
    for what, text in (("name", name), ("value", value)):
        if not isinstance(text, str) or not _TAG.fullmatch(text):
            refuse("invalid_tag", "tags", at, because=f"the {what} of a tag is {_TAG_RULE}")

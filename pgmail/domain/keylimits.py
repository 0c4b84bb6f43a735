"""The limits of a key that are about the email itself: which streams, and from which domains.

They are judged on the body as it goes to the database, after the law has found nothing wrong with it, so that
what is checked is what is sent. What can go wrong: a domain that this side and SQL write differently in
A-labels (`address`). So the sender's domain goes on in the A-labels that were judged here.
"""

from __future__ import annotations

from collections.abc import Collection
from typing import Any

from pgmail.domain.address import normalise_domain, parse
from pgmail.errors import Refused

DEFAULT_STREAM = "transactional"
WILD = "*."


def within(
    body: dict[str, Any], streams: Collection[str] | None, domains: Collection[str] | None
) -> dict[str, Any]:
    """Return a body that the law has passed as it may go on; None is no limit.

    Raises Refused (403): `stream_not_allowed` at /stream, `from_not_allowed` at /from.
    """
    if streams is not None:
        need_stream(body.get("stream") or DEFAULT_STREAM, streams)
    if domains is None:
        return body
    sender = str(body["from"])
    domain = parse(sender).domain
    if not covers(domains, domain):
        because = f"this API key may not send from {domain}; it may from {', '.join(sorted(domains))}"
        raise Refused("from_not_allowed", "/from", because, 403)
    return body if sender.isascii() else {**body, "from": _in_a_labels(sender, domain)}


def need_stream(stream: str, streams: Collection[str] | None) -> None:
    """Refuse (403) a stream that is not one of these; None is no limit."""
    if streams is not None and stream not in streams:
        because = (
            f"this API key may not use the stream {stream[:63]!r}; it may use {', '.join(sorted(streams))}"
        )
        raise Refused("stream_not_allowed", "/stream", because, 403)


def covers(domains: Collection[str], domain: str) -> bool:
    """Tell whether a domain (lower case, A-labels) is one of these, or lies below one written `*.example.com`."""
    if domain in domains:
        return True
    _, dot, above = domain.partition(".")
    while dot:
        if WILD + above in domains:
            return True
        _, dot, above = above.partition(".")
    return False


def normalise(domain: str) -> str:
    """Return `example.com` or `*.example.com` in lower-case A-labels. Raises ValueError with a reason."""
    wild = WILD if domain.startswith(WILD) else ""
    return wild + normalise_domain(domain.removeprefix(WILD))


def _in_a_labels(sender: str, domain: str) -> str:
    """Write the domain of `Name <addr@domain>` anew, and nothing else."""
    text = sender.strip(" ")
    head = text.rpartition("@")[0]
    return f"{head}@{domain}>" if text.endswith(">") else f"{head}@{domain}"

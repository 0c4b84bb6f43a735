"""The questions about webhooks: what each asks for, in what words, and how its fields are read.

What can go wrong: a question that shows a secret. A URL's query may hold one, so questions name an endpoint without it.
"""

from __future__ import annotations

from typing import Any
from uuid import UUID

from pgmail.dashboard.frame import link
from pgmail.dashboard.manage.questions import SPAN_WORDS, Ask, Field, Given, read_id, why
from pgmail.errors import Refused

HOME = "/dashboard/webhooks"
REPLAYED = (
    ("failed", "what was given up, and not delivered later"),
    ("delivered", "what was delivered"),
    ("all", "everything in the log"),
)
OVERLAPS = (
    ("0", "at once"), ("3600", "in an hour"), ("86400", "in a day"), ("604800", "in a week"),
    ("2592000", "in 30 days"),
)  # fmt: skip


def place(id: str | UUID) -> str:
    """Return the path of one endpoint's page."""
    return link(f"{HOME}/endpoint", id=str(id))


def tags(given: Given) -> dict[str, str] | None:
    """Return `name=value` by blanks or commas as pairs; None for whatever they are. Raises Refused."""
    pairs = [text.partition("=") for text in given.words("tags")]
    if any(not name or not sign for name, sign, _ in pairs):
        raise Refused("invalid_field", "/tags", "must be name=value, several by commas")
    return {name: value for name, _, value in pairs} or None


def wanted(given: Given) -> bool:
    """Tell whether it is to be enabled. Refused `invalid_field`."""
    return given.choice("to", (("enabled", ""), ("disabled", "")), "enabled or disabled") == "enabled"


def adding(given: Given) -> Ask:
    """Where, and of what it is told."""
    return Ask(
        title="Add a webhook",
        no="Not now",
        action=f"{HOME}/add",
        button="Add it",
        back=HOME,
        words=("Its signing secret is shown once, right after this.",),
        fields=fields(given.one("endpoint"), given.one("events") or "email.*", given.one("streams"),
                       given.one("tags"), given.one("description")),
    )  # fmt: skip


def changing(row: Any, given: Given) -> Ask:
    """What is to be another."""
    if given.has("endpoint"):  # it was refused: what was typed stays
        held = [given.one(name) for name in ("endpoint", "events", "streams", "tags", "description")]
    else:
        tags = ", ".join(f"{name}={value}" for name, value in (row.tags or {}).items())
        held = [row.url, ", ".join(row.types), ", ".join(row.streams or ()), tags, row.description or ""]
    return Ask(
        title="Change the webhook",
        action=f"{HOME}/change",
        button="Save",
        back=place(row.id),
        fields=(*fields(*held), why(given, placeholder="the receiver moved")),
        hidden=(("id", str(row.id)),),
    )


def fields(endpoint: str, events: str, streams: str, tags: str, description: str) -> tuple[Field, ...]:
    """What an endpoint is made of, as a form holds it."""
    return (
        Field("endpoint", "URL", "url", value=endpoint, required=True, longest=2_000, focus=True,
              placeholder="https://example.com/hooks/email"),
        Field("events", "Events", value=events, placeholder="email.*",
              help="Such as email.bounced, email.complained; email.* is all."),
        Field("streams", "Streams", value=streams, placeholder="all", help="Only these, by name; empty is all."),
        Field("tags", "Tags", value=tags, placeholder="shop=eu",
              help="Only email with all of these, as name=value; empty is all."),
        Field("description", "What it is for", value=description, longest=500, placeholder="our CRM"),
    )  # fmt: skip


def switching(row: Any, given: Given) -> Ask:
    """Why it is called again, or no more."""
    on = wanted(given)
    words = (
        ("What waits for it is told at once, as if nothing had been.",)
        if on
        else ("It is called no more. Events of the time in between are not told later.",)
    )
    return Ask(
        title=f"{'Enable' if on else 'Disable'} {short(row)}?",
        action=f"{HOME}/switch",
        button="Enable" if on else "Disable",
        back=place(row.id),
        words=words,
        fields=(why(given, placeholder="it is mended" if on else "the receiver is taken down"),),
        hidden=(("id", str(row.id)), ("to", given.one("to"))),
        danger=not on,
    )


def rotating(row: Any, given: Given) -> Ask:
    """When the old secret ends."""
    return Ask(
        title=f"Rotate the secret of {short(row)}?",
        action=f"{HOME}/rotate",
        button="Rotate",
        back=place(row.id),
        words=("A new secret is made and shown once; calls carry both signatures until the old one ends.",),
        fields=(
            Field("overlap", "The old secret ends", "select", value=given.one("overlap") or "86400",
                  options=OVERLAPS),
            why(given, placeholder="every 90 days"),
        ),
        hidden=(("id", str(row.id)),),
    )  # fmt: skip


def testing(row: Any) -> Ask:
    """Whether a sample is to be sent."""
    return Ask(
        title=f"Send a sample event to {short(row)}?",
        no="Not now",
        action=f"{HOME}/test",
        button="Send it",
        back=place(row.id),
        words=("It is signed as any, and its type is webhook.test.",),
        hidden=(("id", str(row.id)),),
    )


def replaying(row: Any, given: Given) -> Ask:
    """What is to be told once more: one event, or by outcome and time."""
    event = given.one("event")
    chosen = given.one("outcome") or ("all" if event else "failed")
    fields = (
        Field("outcome", "Which events", "select", value=chosen, options=REPLAYED),
        Field("since", "When they happened", "select", value=given.one("since"), options=SPAN_WORDS),
        why(given, placeholder="they lost their data of last night"),
    )
    return Ask(
        title=f"Tell {short(row)} once more?" if not event else "Tell this event once more?",
        no="Not now",
        action=f"{HOME}/replay",
        button="Replay" if event else "Count them",
        back=place(row.id),
        words=("Events keep their ids, so that a receiver knows those that it has.",),
        fields=fields[2:] if event else fields,
        hidden=(("id", str(row.id)), *((("event", event), ("outcome", chosen)) if event else ())),
    )


def replayed(given: Given) -> dict[str, str]:
    """Return what is to be told once more, as a filter of the log. Raises Refused."""
    filter_ = {"outcome": given.choice("outcome", REPLAYED, "choose what is told once more")}
    if event := given.one("event"):
        filter_["event"] = str(read_id(event))
    if since := given.since("since"):
        filter_["since"] = since.isoformat()
    return filter_


def telling(row: Any, given: Given, events: str, *, complete: bool) -> Ask:
    """Whether so many are to be told once more: asked before anything is done."""
    events = events if complete else f"at least {events}"
    kept = [(name, given.one(name)) for name in ("id", "outcome", "since", "why")]
    what, when = dict(REPLAYED)[given.one("outcome")], dict(SPAN_WORDS).get(given.one("since"), "any time")
    return Ask(
        title=f"Tell {short(row)} {events} once more?",
        no="Not now",
        action=f"{HOME}/replay",
        button="Replay",
        back=place(row.id),
        words=(f"That is {what}, of {when}. What is new goes first.",),
        hidden=(*kept, ("count", events)),
        stay=True,
    )


def removing(row: Any, given: Given) -> Ask:
    """Why it goes."""
    return Ask(
        title=f"Remove {short(row)}?",
        action=f"{HOME}/remove",
        button="Remove",
        back=place(row.id),
        words=("What waits for it is not told, and its log goes with it. This cannot be undone.",),
        fields=(why(given, placeholder="nobody listens there"),),
        hidden=(("id", str(row.id)),),
        danger=True,
    )


def short(row: Any) -> str:
    """Return an endpoint's name for a question: without its query, which may hold secrets."""
    url = str(row.url).partition("?")[0]
    return url if len(url) <= 80 else f"{url[:79]}…"

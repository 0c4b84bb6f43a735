"""What every action of these pages goes by: a question, asked by GET and answered by POST at the same address.

A question is shown in a dialog, or as a page of its own where no script runs. What can go wrong: an answer that the
law refuses. Then the question is asked again, with what was typed and why it was refused; nothing was done.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import msgspec
from litestar import Request, Response

from pgmail.dashboard.frame import done, page
from pgmail.domain.keys import Scope
from pgmail.domain.when import parse_iso
from pgmail.errors import Refused
from pgmail.store.emails import MAX_ACTS, Page
from pgmail.store.keys import form_once
from pgmail.store.tenant import Connection

AnyRequest = Request[Any, Any, Any]

MANAGE: Scope = "manage"
SPANS = {"1h": 3_600, "24h": 86_400, "7d": 604_800, "30d": 2_592_000}
SPAN_WORDS = (
    ("", "any time"),
    ("1h", "the last hour"),
    ("24h", "24 hours"),
    ("7d", "7 days"),
    ("30d", "30 days"),
)
MAX_REASON = 500


class Field(msgspec.Struct, frozen=True):
    """One field of a form. `kind` is an input's type, or `area`, `select`, `checks` or `file`.

    `options` are pairs of value and words; `value` is what it holds: a text, or for `checks` those that are on.
    `least`, `most` and `step` bound a number; `help` says what it is for and what its limits are.
    """

    name: str
    label: str
    kind: str = "text"
    value: Any = ""
    help: str = ""
    options: Sequence[tuple[str, str]] = ()
    required: bool = False
    least: float | None = None
    most: float | None = None
    step: float | str | None = None
    longest: int | None = None
    rows: int = 4
    placeholder: str = ""
    unit: str = ""
    focus: bool = False
    mono: bool = False


class Ask(msgspec.Struct, frozen=True):
    """A question: what will be done, what is asked for it, and what the button says.

    `no` is what the way out of it says; `hidden` go along unseen; `back` is where to go when it is done, or not to be
    done; `stay` is of one that answers another.
    """

    title: str
    action: str
    button: str
    back: str
    words: Sequence[str] = ()
    fields: Sequence[Field] = ()
    hidden: Sequence[tuple[str, str]] = ()
    danger: bool = False
    no: str = "Keep as it is"
    stay: bool = False
    files: bool = False


class Given:
    """What came with a request, by name: of its query, or of its form."""

    def __init__(self, items: Iterable[tuple[str, Any]]) -> None:
        """Take pairs of name and text. Raises Refused (`invalid_field`) for a text with U+0000."""
        self._items: dict[str, list[Any]] = {}
        for name, value in items:
            if isinstance(value, str) and "\0" in value:
                raise Refused("invalid_field", f"/{name[:80]}", "holds U+0000")
            self._items.setdefault(name, []).append(value)

    def one(self, name: str) -> str:
        """Return the first text of a name without the blanks around it; empty where there is none."""
        values = self._items.get(name)
        return values[0].strip() if values and isinstance(values[0], str) else ""

    def but(self, **texts: str) -> Given:
        """Return the same with other texts of these names."""
        kept = [
            (name, value) for name, values in self._items.items() if name not in texts for value in values
        ]
        return Given([*kept, *texts.items()])

    def raw(self, name: str) -> str:
        """Return a text as it was typed, its line ends as LF: browsers send CR LF."""
        values = self._items.get(name)
        return values[0].replace("\r\n", "\n") if values and isinstance(values[0], str) else ""

    def file(self, name: str) -> Any | None:
        """Return an uploaded file, or None."""
        values = self._items.get(name)
        return None if not values or isinstance(values[0], str) else values[0]

    def many(self, name: str) -> list[str]:
        """Return all texts of a name that are not empty."""
        return [
            text for value in self._items.get(name, []) if isinstance(value, str) and (text := value.strip())
        ]

    def has(self, name: str) -> bool:
        """Tell whether a name was given at all."""
        return name in self._items

    def words(self, name: str) -> list[str]:
        """Return the words of a text, parted by commas or blanks."""
        return self.one(name).replace(",", " ").split()

    def uuid(self, name: str) -> UUID:
        """Return an id. Refused `not_found` (404): nothing has an id that is no UUID."""
        return read_id(self.one(name))

    def uuids(self, name: str) -> list[UUID]:
        """Return all ids of a name. Refused `not_found` (404), and `too_large` for more than a page ever names."""
        texts = self.many(name)
        if len(texts) > MAX_ACTS:
            raise Refused("too_large", f"/{name}", f"more than {MAX_ACTS:,} at once; use a filter", 413)
        return [read_id(text) for text in texts]

    def since(self, name: str) -> datetime | None:
        """Return the moment at which a span of `SPANS` began; None for any time."""
        seconds = SPANS.get(self.one(name))
        return None if seconds is None else datetime.now(UTC) - timedelta(seconds=seconds)

    def moment(self, name: str) -> datetime | None:
        """Return a moment that a question of ours wrote, in ISO 8601; None for none. Refused `invalid_field`."""
        text = self.one(name)
        try:
            return parse_iso(text) if text else None
        except ValueError:
            raise Refused("invalid_field", f"/{name}", "is no moment: ask again") from None

    def choice(self, name: str, options: Iterable[tuple[str, str]], because: str) -> str:
        """Return one of the options of a field. Refused `invalid_field`, with why, for anything else."""
        text = self.one(name)
        if text not in dict(options):
            raise Refused("invalid_field", f"/{name}", because)
        return text

    def seconds(self, name: str, options: Iterable[tuple[str, str]], because: str) -> timedelta | None:
        """Return a time of a field whose options are seconds; None where it is empty. Refused as `choice`."""
        text = self.choice(name, options, because)
        return timedelta(seconds=int(text)) if text else None

    def reason(self) -> str:
        """Return why something is to be done. Refused `missing_field` where nothing was said."""
        text = self.one("why")
        if not text:
            raise Refused("missing_field", "/why", "say why: it stands in the audit beside your key's name")
        return text[:MAX_REASON]


async def given_of(request: AnyRequest) -> Given:
    """Return what came with a request: the form of a POST, the query of others."""
    if request.method != "POST":
        return Given(request.query_params.multi_items())
    return Given((await request.form()).multi_items())


def read_id(text: str) -> UUID:
    """Return an id. Refused `not_found` (404)."""
    try:
        return UUID(text)
    except ValueError:
        raise Refused("not_found", "/id", f"nothing has the id {text[:80]!r}", 404) from None


def why(given: Given, *, placeholder: str = "") -> Field:
    """Return the field that asks for a reason."""
    return Field(
        "why", "Why", value=given.one("why"), required=True, longest=MAX_REASON, placeholder=placeholder,
        help="Stands in the audit, beside the name of your key.",
    )  # fmt: skip


def ask(request: AnyRequest, question: Ask, error: Refused | None = None) -> Response[Any]:
    """Show a question, in a dialog or as a page."""
    template = "manage/ask.html" if "hx-request" in request.headers else "manage/ask_page.html"
    status = 200 if error is None else 422
    return page(request, template, title=question.title, status_code=status, ask=question, error=error)


def told(request: AnyRequest, template: str, **facts: Any) -> Response[Any]:
    """Show what came of an answer and has to be read: in the dialog, or as a page."""
    if "hx-request" in request.headers:
        return page(request, template, **facts)
    return page(request, "manage/told_page.html", part=template, **facts)


async def once(connection: Connection, given: Given) -> None:
    """Take a form for done, in the transaction that does it. Raises Refused (`done_already`, 409) for one that was.

    A second click where no script runs and a page that is loaded again send a form twice. For what is the same
    however often it is done this is not needed.
    """
    if given.has("once") and not await form_once(connection, given.uuid("once")):
        because = (
            "this was done already: the form was sent twice. Send it again only if it is to be done once more"
        )
        raise Refused("done_already", "", because, 409)


async def act(
    request: AnyRequest, question: Ask, deed: Callable[[], Awaitable[str]], back: str | None = None
) -> Response[Any]:
    """Do what a question was about and say what `deed` says of it; or ask again, with why it was refused."""
    try:
        said = await deed()
    except Refused as refused:
        return ask(request, question, refused)
    return done(request, said, question.back if back is None else back)


def page_of(given: Given, limit: int = 25) -> Page:
    """Return which part of a list by id was asked for."""
    after, before = given.one("after"), given.one("before")
    return Page(limit, read_id(after) if after else None, read_id(before) if before and not after else None)


def kept_of(given: Given, filters: Iterable[str]) -> dict[str, str]:
    """Return the parts of a filter that are set, as a link repeats them."""
    return {name: text for name in filters if (text := given.one(name))}


def until_now(given: Given) -> Given:
    """Return the same as far as it is about what there is now: what comes while a question is read is left alone."""
    return given if given.has("until") else given.but(until=datetime.now(UTC).isoformat())


def all_that_match(kept: Mapping[str, str], without: str) -> str:
    """Return what a filter reaches, in words; `without` says it where none is set."""
    said = ", ".join(f"{name} {text}" for name, text in kept.items())
    return f"All that match: {said}." if said else without


def number(count: int, one: str, many: str | None = None) -> str:
    """Return a count with its word: `1 dead letter`, `1,204 dead letters`."""
    return f"{count:,} {one if count == 1 else many or one + 's'}"

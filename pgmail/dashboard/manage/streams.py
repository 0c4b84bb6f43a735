"""Streams: how mail of one kind is sent, retried and limited. Each field says what it may be.

What can go wrong: two people save one form. Only what was changed in it is stored, so that neither takes back what the
other did elsewhere in it.
"""

from __future__ import annotations

from typing import Any, NamedTuple

from litestar import Request, Response, get, post

from pgmail.access.reach import need_live
from pgmail.dashboard.frame import done, page
from pgmail.dashboard.guard import SEE, caller_of, database_of, may
from pgmail.dashboard.manage.questions import MANAGE, Field, Given, given_of
from pgmail.domain.keylimits import need_stream
from pgmail.errors import Refused
from pgmail.store import fleet
from pgmail.store import streams as store
from pgmail.store.tenant import acting_as

AnyRequest = Request[Any, Any, Any]

HOME = "/dashboard/streams"
YEAR = 31_536_000
UNLIMITED = 1_000_000_000_000


class Setting(NamedTuple):
    """One setting of a stream. A whole number has `whole`; `empty` says what an empty field means, if it may be."""

    name: str
    label: str
    help: str
    options: tuple[tuple[str, str], ...] = ()
    unit: str = ""
    least: float | None = None
    most: float | None = None
    whole: bool = False
    empty: str = ""


SETTINGS = (
    Setting("priority", "Priority", "What goes first where mail waits; a small share is kept for the lowest.",
            (("high", "high"), ("normal", "normal"), ("low", "low"))),
    Setting("relay", "Relays", "One name; or several, tried in this order: main, spare; or shared by weight: "
            "main=3, spare=1. 16 at most."),
    Setting("on_doubt", "When a reply was lost", "An email that may have been sent already is sent again, or held "
            "for a person.", (("resend", "send again"), ("hold", "hold it"))),
    Setting("trace", "Journey", "Lean keeps one event less of each attempt.", (("full", "full"), ("lean", "lean"))),
    Setting("retry_base_seconds", "First retry after", "Above 0, a year at most.", unit="seconds", least=0.001,
            most=YEAR),
    Setting("retry_factor", "Each further wait is", "1 to 1,000.", unit="times the one before", least=1, most=1_000),
    Setting("retry_cap_seconds", "Longest wait", "Above 0, a year at most.", unit="seconds", least=0.001,
            most=YEAR),
    Setting("retry_jitter", "Left to chance", "0 to 1: a part of each wait, so that retries do not come all at "
            "once.", least=0, most=1),
    Setting("max_attempts", "Attempts", "1 to 1,000; then it is a dead letter.", unit="attempts", least=1, most=1_000,
            whole=True),
    Setting("max_age_seconds", "Given up after", "1 second to a year; a later attempt is not made.", unit="seconds",
            least=1, most=YEAR, whole=True),
    Setting("suppress_bounced", "After a hard bounce", "Whether the address is suppressed for all streams.",
            (("true", "suppress the address"), ("false", "go on sending"))),
    Setting("max_queued", "At most queued", "From 0 on; what comes beyond waits, is held or refused, as its sender "
            "said.", unit="recipients", least=0, most=UNLIMITED, whole=True, empty="no limit"),
    Setting("keep_content_days", "Content kept", "1 to 36,500 days after it was sent.", unit="days", least=1,
            most=36_500, whole=True, empty="as the fleet's retention says"),
    Setting("seal", "Sealed at rest", "Needs PGMAIL_SEAL_KEYS where mail is handed over.",
            (("off", "no"), ("where_possible", "where possible"), ("required", "always, or refused"))),
)  # fmt: skip


@get("/streams", scope=SEE)
async def show_streams(request: AnyRequest) -> Response[Any]:
    """The page."""
    caller = caller_of(request)
    async with acting_as(database_of(request), caller) as connection:
        rows = await store.listing(connection)
    return page(
        request, "manage/streams.html", title="Streams",
        rows=[row for row in rows if caller.streams is None or row.name in caller.streams],
        relays_of=relay_text, may_act=may(caller, MANAGE),
    )  # fmt: skip


@get("/streams/edit", scope=SEE)
async def show_stream(request: AnyRequest) -> Response[Any]:
    """One stream and all of its settings; without a name, those of a new one."""
    given = await given_of(request)
    return await _form(request, given.one("name"), None, None)


@post("/streams/edit", scope=MANAGE, status_code=200)
async def save_stream(request: AnyRequest) -> Response[Any]:
    """Create a stream, or change what was changed of one."""
    given, caller = await given_of(request), caller_of(request)
    name, new = given.one("name"), given.one("new") == "yes"
    try:
        need_live(caller)
        need_stream(name, caller.streams)
        async with acting_as(database_of(request), caller) as connection:
            row = await store.get(connection, name)
            if new:
                _need_free(row)
            before = _texts(row) if row is not None else {}
            changes = _changes(given, before)
            if changes or row is None:
                await store.save(connection, name, changes)
    except Refused as refused:
        return await _form(request, name, given, refused)
    said = (
        f"Stream {name} saved; mail that is handed over from now on goes by it."
        if changes or row is None
        else ""
    )
    return done(request, said or "Nothing was changed.", f"{HOME}/edit?name={name}")


def _need_free(row: Any) -> None:
    if row is not None:
        raise Refused("name_taken", "/name", f"there is a stream {row.name} already", 409)


async def _form(request: AnyRequest, name: str, given: Given | None, error: Refused | None) -> Response[Any]:
    caller = caller_of(request)
    new = (given.one("new") == "yes") if given is not None else not name
    async with acting_as(database_of(request), caller) as connection:
        row = await store.get(connection, name) if name else None
        relays = await fleet.relays(connection)
    if (
        name
        and given is None
        and (row is None or (caller.streams is not None and name not in caller.streams))
    ):
        raise Refused("not_found", "/name", f"no such stream: {name[:63]!r}", 404)
    texts = dict(_texts(row)) if row is not None else {}
    if given is not None:
        texts |= {setting.name: given.one(setting.name) for setting in SETTINGS if given.has(setting.name)}
    return page(
        request, "manage/stream.html", title=f"Stream {name}" if name and not new else "New stream",
        status_code=422 if error else 200, name=name, new=new, fields=[_field(setting, texts) for setting in SETTINGS],
        relays=[relay.name for relay in relays], error=error, may_act=may(caller, MANAGE), row=row,
    )  # fmt: skip


def _field(setting: Setting, texts: dict[str, str]) -> Field:
    kind = "select" if setting.options else "text" if setting.least is None else "number"
    return Field(
        setting.name, setting.label, kind, value=texts.get(setting.name, ""), help=setting.help,
        options=setting.options if texts else [("", "the default"), *setting.options],
        least=setting.least, most=setting.most, step=1 if setting.whole else "any", unit=setting.unit,
        placeholder=setting.empty or ("" if texts else "the default"),
    )  # fmt: skip


def relay_text(relay: Any) -> str:
    """Write a stream's relays as the form takes them: `main, spare`, or `main=3, spare=1`."""
    if isinstance(relay, str):
        return relay
    return ", ".join(
        item if isinstance(item, str) else f"{item['name']}={item['weight']:g}" for item in relay
    )


def read_relays(text: str) -> Any:
    """Read relays as the form has them. Raises Refused `invalid_relay`."""
    items: list[Any] = []
    for part in text.replace("\n", ",").split(","):
        name, is_weighted, weight = (piece.strip() for piece in part.partition("="))
        if not is_weighted:
            items.append(name)
            continue
        try:
            items.append({"name": name, "weight": float(weight)})
        except ValueError:
            raise Refused(
                "invalid_relay", "/relay", f"{weight[:40]!r} is no weight: main=3, spare=1"
            ) from None
    return items[0] if len(items) == 1 and isinstance(items[0], str) else items


def _texts(row: Any) -> dict[str, str]:
    """Return the settings of a row as the form shows them."""
    found = {}
    for setting in SETTINGS:
        value = getattr(row, setting.name)
        if setting.name == "relay":
            found["relay"] = relay_text(value)
        elif value is None:
            found[setting.name] = ""
        elif isinstance(value, bool):
            found[setting.name] = "true" if value else "false"
        else:
            found[setting.name] = f"{value:.6g}" if isinstance(value, float) else str(value)
    return found


def _changes(given: Given, before: dict[str, str]) -> dict[str, Any]:
    """Return what differs from `before`, as the store takes it. Raises Refused with the field."""
    changes: dict[str, Any] = {}
    for setting in SETTINGS:
        if not given.has(setting.name):
            continue
        text = given.one(setting.name)
        if text == before.get(setting.name, ""):
            continue
        changes[setting.name] = _value(setting, text)
    return changes


def _value(setting: Setting, text: str) -> Any:
    where = f"/{setting.name}"
    if setting.name == "relay":
        return read_relays(text)
    if setting.options:
        if text not in dict(setting.options):
            raise Refused("invalid_stream", where, f"{setting.label}: choose one of those offered")
        return text == "true" if setting.name == "suppress_bounced" else text
    if not text and setting.empty:
        return None
    try:
        number: float = int(text) if setting.whole else float(text)
    except ValueError:
        what = "a whole number" if setting.whole else "a number"
        raise Refused("invalid_stream", where, f"{setting.label}: must be {what}") from None
    least, most = setting.least or 0, setting.most or 0
    if not least <= number <= most:
        raise Refused("invalid_stream", where, f"{setting.label}: {setting.help}")
    return number


HANDLERS = (show_streams, show_stream, save_stream)

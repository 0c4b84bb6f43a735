"""A mailing from beginning to end: ask the database, judge every row, hand the rows over.

    mailing = Mailing(order, connect=..., watch=...)
    with mailing:
        asyncio.run(mailing.ask())        # is this email all right, and what does its template need?
        mailing.scan()                    # is this list all right?
        asyncio.run(mailing.send())       # or not, for a dry run

`scan` runs for as long as the list is, so it is no coroutine: Ctrl-C ends it at once. What can go wrong is
said where it happens; all of it can be run again, and goes on where it stopped.
"""

from __future__ import annotations

import hashlib
from contextlib import ExitStack
from datetime import datetime
from pathlib import Path
from typing import Any, Literal, Self

import msgspec

from pgmail.client_bodies import checked
from pgmail.client_seal import Sealer
from pgmail.domain.address import parse
from pgmail.domain.check_people import MAX_RECIPIENTS
from pgmail.errors import Refused, TemplateFault
from pgmail.mailing import scan as scanning
from pgmail.mailing import trial
from pgmail.mailing.people import People
from pgmail.mailing.scan import Scan
from pgmail.mailing.send import Connect, Handed, Sending, Watch
from pgmail.mailing.state import FORMAT, Begin, State, utc_now
from pgmail.mailing.table import Table
from pgmail.store.single import Connection

CHUNK = MAX_RECIPIENTS["personal"]  # rows, the most that one email takes
STREAM = "broadcast"  # so that a mailing does not stand before a password reset

# Not compared when a mailing is resumed: they are its identity, or often computed anew.
_APART = frozenset({"from", "to", "mode", "stream", "scheduled_at", "expires_at"})


class Order(msgspec.Struct, kw_only=True):
    """What to send to whom. `body` has the keys of an email but `to`, `mode` and `idempotency_key`.

    `chunk` is 1 to 1,000 rows. `state` defaults to a file beside the list, named by the mailing.
    """

    path: Path
    body: dict[str, Any]
    name: str | None = None
    chunk: int = CHUNK
    delimiter: str | None = None
    address_column: str | None = None
    typed: bool = False
    keep_empty: bool = False
    state: Path | None = None
    doubtful: Literal["skip", "send"] | None = None


class Mailing:
    """One run of a mailing; its parts in the order in which they are called."""

    def __init__(self, order: Order, *, connect: Connect, watch: Watch, sealer: Sealer | None = None) -> None:
        """Open the list. Raises OSError, and Refused for the list's header or for the email.

        `sealer` has the keys for streams that seal.
        """
        self._sealer = sealer
        self._order, self._connect, self._watch = order, connect, watch
        self._stack = ExitStack()
        self.table = self._stack.enter_context(
            Table(order.path, delimiter=order.delimiter, address_column=order.address_column)
        )
        try:
            self._people = People(self.table.header, typed=order.typed, keep_empty=order.keep_empty)
            self._body = _body(order, self._people.variables, utc_now())
            self._people.require(_inline(self._body) - self._body["variables"].keys())
        except BaseException:
            self._stack.close()
            raise
        self._identity: dict[str, str | None] = {}
        self._state: State | None = None
        self._sending: Sending | None = None
        self.found = Scan(order.chunk)

    def __enter__(self) -> Self:
        """Nothing more to do: the list is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the list and the state."""
        self._stack.close()

    @property
    def handed(self) -> Handed:
        """What was handed over so far."""
        return Handed() if self._sending is None else self._sending.handed

    async def ask(self) -> None:
        """Try the email in a transaction that is rolled back. Raises Refused, DatabaseAway, StatementFailed."""
        async with self._connect() as connection:
            body = {key: value for key, value in self._body.items() if key != "to"}
            self._people.require(await trial.required(connection, body, self._sealer))
            self._identity = _identity(self._order, self._body, connection)

    def open_state(self) -> State:
        """Open the state, or begin one; its chunk size counts from then on. Raises as `State.open` does."""
        order = self._order
        options = {
            key: _digest(value)
            for key, value in {**self._body, **_reading(order)}.items()
            if key not in _APART
        }
        at = self._body.get("scheduled_at")
        begin = Begin(FORMAT, self._identity, options, order.chunk, utc_now(), at)
        path = order.state
        if path is None:
            path = order.path.with_name(f"{order.path.name}.{_digest(self._identity)[:8]}.mailing")
        self._state = self._stack.enter_context(State.open(path, begin))
        if self._state.begin.chunk != order.chunk:
            self._watch.say(f"this mailing was begun with chunks of {self._state.begin.chunk}; so it goes on")
        return self._state

    def scan(self) -> Scan:
        """Judge every row. Raises Refused: `invalid_csv`, and `list_changed` against what was handed over."""
        chunk = self._order.chunk if self._state is None else self._state.begin.chunk
        self.found = scanning.scan(
            self.table, self._people, chunk, refuse=self._watch.refuse, progress=self._watch.progress
        )
        if self._state is not None:
            self._state.check(self.found.digests, self.found.rows)
        return self.found

    async def send(self) -> Handed:
        """Hand over what is left. Raises as `Sending.run` does."""
        if self._state is None:
            raise RuntimeError("open_state comes before send")
        body = {key: value for key, value in self._body.items() if key not in ("to", "scheduled_at")}
        self._sending = Sending(
            self.table,
            self._people,
            self.found,
            self._state,
            body,
            connect=self._connect,
            watch=self._watch,
            doubtful=self._order.doubtful,
            sealer=self._sealer,
        )
        return await self._sending.run()


def _body(order: Order, variables: frozenset[str], now: datetime) -> dict[str, Any]:
    """The email as SQL takes it, to one made-up recipient who brings every column. Raises Refused."""
    body = {"stream": STREAM, **order.body, "mode": "personal"}
    # The texts are templates even where no column is a variable.
    body["variables"] = body.get("variables") if body.get("variables") is not None else {}
    sender = body.get("from")
    try:
        address = parse(sender).rcpt if isinstance(sender, str) else ""
    except ValueError:
        address = ""
    body["to"] = [{"address": address or "nobody@example.com", "variables": dict.fromkeys(variables, "")}]
    return checked(body, now)


def _inline(body: dict[str, Any]) -> frozenset[str]:
    """The variables that texts given with the mailing certainly need; a stored template's come from SQL."""
    if body.get("template") is not None:
        return frozenset()
    from pgmail.render.templates import Source, check_source  # noqa: PLC0415 - most mailings need no compiler

    source = Source(subject=body.get("subject"), text=body.get("text"), html=body.get("html"))
    try:
        return check_source(source, {})
    except TemplateFault as fault:  # `checked` has compiled it, so this is for the reader
        raise Refused("invalid_template", f"/{fault.part}", fault.message) from fault


def _identity(order: Order, body: dict[str, Any], connection: Connection) -> dict[str, str | None]:
    """What makes two runs one mailing, wherever they run.

    The database counts for the state only by where it is: a copy of it, for tests, is another one.
    """
    template = body.get("template")
    info = connection.info
    given = info.get_parameters()
    database = "/".join(
        (given.get("host") or info.host, str(given.get("port") or info.port), info.dbname, info.user)
    )
    return {
        "name": order.name,
        "template": template.get("id") if isinstance(template, dict) else template,
        "sender": body["from"],
        "stream": body["stream"],
        "database": database,
    }


def _reading(order: Order) -> dict[str, Any]:
    """How cells become recipients, which is part of what was sent."""
    return {"address_column": order.address_column, "typed": order.typed, "keep_empty": order.keep_empty}


def _digest(value: object) -> str:
    return hashlib.blake2b(msgspec.json.encode(value, order="sorted"), digest_size=8).hexdigest()

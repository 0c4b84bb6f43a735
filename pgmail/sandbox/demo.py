"""`pgmail demo`: the whole system at work for a few seconds, and its accounts.

A PostgreSQL, a sink that delivers to nobody, the API and workers start; a shop's mail goes in by four ways at
once; the accounts are closed when no recipient is under way any more. It works in a database of its own, and
mail cannot leave this machine: the only relay is the sink.

What can go wrong: mail stands still (a worker hangs, say). After `STALL_SECONDS` without any change the
accounts are closed as they are, and do not balance. A signal ends the demo in good order; so does the end of
the process that started it. `kill -9` leaves that to the guards of each process.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack
from pathlib import Path
from types import FrameType
from uuid import UUID

import msgspec

from pgmail import sqlfiles
from pgmail.config import Settings
from pgmail.sandbox import demo_account, demo_settings
from pgmail.sandbox.demo_account import Account, SinkReport
from pgmail.sandbox.demo_fleet import PGMAIL, Fleet, sink
from pgmail.sandbox.demo_place import Place, place
from pgmail.sandbox.demo_send import Doors, Sending
from pgmail.sandbox.demo_show import Show, quoted
from pgmail.sandbox.demo_stock import stock
from pgmail.sandbox.inbox import Inbox
from pgmail.sandbox.traffic import Fate, Planned, make_traffic
from pgmail.store import scratch
from pgmail.store.scratch import Connection

STALL_SECONDS = 30.0
POLL_SECONDS = 0.05
LEDGER_SECONDS = 0.2
PARENT_POLL_SECONDS = 0.5

ServeInbox = Callable[[Inbox], AbstractContextManager[str]]
"""Serves the inbox page while the context lasts; yields its URL."""

_Q = sqlfiles.queries("demo")


class Options(msgspec.Struct, frozen=True, kw_only=True):
    """What was asked for. `messages` and `processes` from 1."""

    messages: int = 1000
    processes: int = 2
    keep: bool = False
    as_json: bool = False


def run_demo(settings: Settings, options: Options, serve_inbox: ServeInbox) -> int:
    """Run the demo; its exit code: 0 only if every recipient is accounted for.

    Raises SandboxError, Refused or DatabaseAway when it cannot be held at all.
    """
    show = Show()
    began = time.monotonic()
    plan = make_traffic(options.messages)
    dsn = settings.owner_database_url or settings.database_url or None
    with ending_in_good_order(), ExitStack() as stack:
        here = stack.enter_context(place(Path(settings.data_folder), dsn))
        show.step(f"{here.server}: the database {here.scratch.name}, its roles with new passwords")
        mails = here.run / "mail"
        sinking = stack.enter_context(sink(here.run, mails if options.keep else None))
        fleet = Fleet(here.run, here.scratch, sinking.port, options.processes)
        stack.callback(fleet.stop)
        fleet.start()
        key = stock(here.scratch)
        connection = stack.enter_context(scratch.connect(here.scratch.dsn("admin")))
        inbox = stack.enter_context(serve_inbox(Inbox(mails))) if options.keep else None
        fleet.wait_ready(connection)
        show.step(f"API on {fleet.url}, {options.processes} workers, a sink on port {sinking.port}")
        if inbox is not None:
            show.step(f"inbox on {inbox}")
        doors = Doors(here.scratch.dsn("producer"), fleet.port, key, fleet.config)
        report = SinkReport(sinking.report)
        sending = Sending(plan, doors)
        stack.callback(sending.stop)
        ledger = follow(fleet, sending, report, connection, show)
        show.step(f"{len(sending.sent):,} emails handed in, {report.read():,} arrived; closing the accounts")
        account = close(sending, report, connection, ledger)
        show.account(account, sending, time.monotonic() - began)
        chosen = interesting(sending)
        title = f"The journey of email {chosen}"
        rows = scratch.run(connection, _Q["trace"], {"id": chosen}).fetchall()
        show.journey(title, rows)
        if options.keep:
            show.where(places(here, fleet, key, chosen, inbox or ""))
        else:
            show.where(
                {
                    "look": "pgmail demo --keep leaves it running, with the dashboard and an inbox to read the mail in"
                }
            )
        if options.as_json:
            show.line(msgspec.json.encode(account.summary).decode())
        if options.keep:
            keep_running(fleet)
        return 0 if account.balanced else 1


def follow(
    fleet: Fleet, sending: Sending, report: SinkReport, connection: Connection, show: Show
) -> dict[str, int]:
    """Send the plan and wait until no recipient is under way; the last ledger seen."""
    expected = sum(fate is Fate.SENT for planned in sending.plan for fate in planned.fates.values())
    sending.start()
    with show.progress(sending, expected) as watching:
        seen: object = None
        changed_at = looked_at = time.monotonic()
        ledger = read_ledger(connection)
        while True:
            fleet.tend()
            going_on = sending.going_on
            arrived = report.read()
            watching.update(arrived)
            now = time.monotonic()
            if now - looked_at >= LEDGER_SECONDS:
                ledger, looked_at = read_ledger(connection), now
                if not going_on and demo_account.still_open(ledger) == 0:
                    return ledger
            state = (len(sending.sent), arrived, tuple(ledger.values()))
            if state != seen:
                seen, changed_at = state, now
            elif now - changed_at > STALL_SECONDS:
                return ledger
            time.sleep(POLL_SECONDS)


def close(sending: Sending, report: SinkReport, connection: Connection, ledger: dict[str, int]) -> Account:
    """Close the accounts, and have an eye on the shop's own table: as many orders as emails by SQL."""
    rows = scratch.run(connection, _Q["recipients"]).fetchall()
    account = demo_account.close(sending.sent, rows, ledger, report, clock_ahead(connection))
    orders = scratch.run(connection, _Q["count_orders"]).fetchone().orders
    if orders != sending.done["sql"]:
        account = account.doubting(
            f"the shop has {orders} orders, and {sending.done['sql']} emails of theirs"
        )
    if unsent := len(sending.plan) - len(sending.sent):
        account = account.doubting(f"{unsent} emails of the plan were not handed in")
    return account


def read_ledger(connection: Connection) -> dict[str, int]:
    """The ledger of the demo's tenant, by state."""
    return {
        name: int(value) for name, value in scratch.run(connection, _Q["ledger"]).fetchone()._asdict().items()
    }


def clock_ahead(connection: Connection) -> float:
    """Seconds that the server's clock is ahead of ours; 0 where that is less than asking takes."""
    before = time.time()
    theirs = scratch.run(connection, _Q["clock"]).fetchone().now
    after = time.time()
    ahead = float(theirs) - (before + after) / 2
    return ahead if abs(ahead) > after - before else 0.0


def interesting(sending: Sending) -> UUID:
    """The email whose journey tells most: one that was put off, else one that bounced, else any."""

    def rank(planned: Planned) -> int:
        return 0 if planned.greylisted else 1 if Fate.BOUNCED in planned.fates.values() else 2

    return min(sending.sent, key=lambda sent: (rank(sent.planned), sent.planned.number)).id


def places(here: Place, fleet: Fleet, key: str, chosen: UUID, inbox: str) -> dict[str, str]:
    """Where to look while it runs: commands to copy."""
    changes = demo_settings.changes() | {"PGMAIL_CONFIG": _near(fleet.config)}
    psql = "psql" if shutil.which("psql") or here.psql is None else str(here.psql)
    if shutil.which("pgmail"):
        pgmail = ["pgmail"]
    elif Path(sys.argv[0]).name == "pgmail":
        pgmail = [_near(Path(sys.argv[0]))]
    else:
        pgmail = list(PGMAIL)
    # What this shell has set would win over the file.
    setting = " ".join(f"{name}={quoted(value) if value else ''}" for name, value in changes.items())
    return {
        "dashboard": f"{fleet.url}/dashboard",
        "its key": key,
        "inbox": inbox,
        "psql": quoted(psql, here.scratch.dsn("admin")),
        "API": quoted("curl", "-H", f"Authorization: Bearer {key}", f"{fleet.url}/emails"),
        "trace": f"{setting} {quoted(*pgmail, 'trace', str(chosen))}",
        "end": "Ctrl-C",
    }


def keep_running(fleet: Fleet) -> None:
    """Wait for a signal, which is how this ends."""
    with contextlib.suppress(KeyboardInterrupt, SystemExit):
        while True:
            fleet.tend()
            time.sleep(POLL_SECONDS * 4)


@contextlib.contextmanager
def ending_in_good_order() -> Iterator[None]:
    """Turn the first SIGINT, SIGTERM or SIGHUP, or the end of our parent, into an exception; no later one.

    So nothing interrupts what is being taken down; but a second SIGINT, from somebody who will not wait, ends
    the process at once, and the guards do the rest.
    """
    told: list[int] = []

    def tell(number: int, _: FrameType | None) -> None:
        told.append(number)
        if len(told) == 1:
            if number == signal.SIGINT:
                raise KeyboardInterrupt
            raise SystemExit(128 + number)
        if number == signal.SIGINT:
            os._exit(130)

    numbers = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    before = {number: signal.signal(number, tell) for number in numbers}
    over = threading.Event()
    threading.Thread(target=_watch_parent, args=(os.getppid(), over), name="parent", daemon=True).start()
    try:
        yield
    finally:
        over.set()
        for number, handler in before.items():
            signal.signal(number, handler)


def _watch_parent(parent: int, over: threading.Event) -> None:
    """Tell this process to end when the one that started it is gone. The first process of all never is."""
    while parent > 1 and not over.wait(PARENT_POLL_SECONDS):
        if os.getppid() != parent:
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _near(path: Path) -> str:
    """A path as short as it can be written from here."""
    relative = os.path.relpath(path)
    return min(relative, str(path), key=len)

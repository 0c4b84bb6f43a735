"""What a demo shows: steps, live progress, the accounts, where to look.

On a terminal bars move; elsewhere each step and each stretch of progress is a line, so that a log reads well.
Nothing here decides anything. What can go wrong: a reply of a remote server in a trace could hold control
characters; they are replaced.
"""

from __future__ import annotations

import shlex
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any

from rich import box
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from pgmail.sandbox.demo_account import Account
from pgmail.sandbox.demo_send import Sending
from pgmail.sandbox.traffic import WAYS

NAMES: Mapping[str, str] = {
    "sql": "SQL, with an order",
    "http": "HTTP",
    "python": "Python client",
    "cli": "pgmail send",
    "arrived": "arrived",
}
LINE_SECONDS = 2.0  # between two lines of progress where there is no terminal
WIDE = 10_000


class Show:
    """The demo's voice on standard output."""

    def __init__(self, console: Console | None = None) -> None:
        self.console = console or Console(highlight=False, markup=False, emoji=False)
        if not self.console.is_terminal:
            self.console = Console(
                file=self.console.file, highlight=False, markup=False, emoji=False, width=WIDE
            )
        self._began = time.monotonic()

    def step(self, text: str) -> None:
        """Say what is done, with the seconds since the start."""
        seconds = Text(f"{time.monotonic() - self._began:6.1f} s  ", style="dim")
        self.console.print(seconds + Text(text), soft_wrap=True)

    @contextmanager
    def progress(self, sending: Sending, expected: int) -> Iterator[Watching]:
        """Show the sending and the arriving while this lasts."""
        if self.console.is_terminal:
            bars = Progress(
                TextColumn("          {task.description:<20}"),
                BarColumn(36),
                MofNCompleteColumn(),
                TimeElapsedColumn(),
                console=self.console,
                transient=True,
            )
            with bars:
                yield Watching(self, sending, expected, bars)
        else:
            yield Watching(self, sending, expected, None)

    def account(self, account: Account, sending: Sending, seconds: float) -> None:
        """Show the result: every recipient, and how quickly."""
        summary = account.summary
        table = Table(box=box.SIMPLE, show_header=True, header_style="dim", pad_edge=False)
        for heading, justify in (("recipients", "left"), ("ledger", "right"), ("counted elsewhere", "left")):
            table.add_column(heading, justify=justify)  # type: ignore[arg-type]  # literals
        sink = f"{account.at_sink:,} at the sink, by Message-ID; {summary.copies} copies"
        table.add_row("handed in", f"{summary.recipients:,}", f"in {summary.messages:,} emails, four ways")
        table.add_row("sent", f"{summary.sent:,}", sink)
        table.add_row("bounced", f"{summary.bounced:,}", "refused by the sink, as planned")
        table.add_row("cancelled", f"{summary.cancelled:,}", "taken back in time, as planned")
        table.add_row("dead or held", f"{summary.dead + summary.held:,}", "")
        table.add_row("lost", f"{summary.lost:,}", f"the ledger differs by {account.ledger['difference']}")
        self.console.print()
        self.console.print(table)
        latency = (
            f"; from enqueue to accepted p50 {summary.p50_ms:,.0f} ms, p99 {summary.p99_ms:,.0f} ms"
            if summary.p50_ms is not None and summary.p99_ms is not None
            else ""
        )
        self._line(f"{summary.mails_per_s:,.0f} mails/s{latency}. The whole demo took {seconds:.1f} s.")
        self._line(
            f"{sending.rolled_back} transactions were rolled back: none of their mail exists. "
            f"{sending.repeated} requests were asked twice with one Idempotency-Key: each counts once."
        )
        for doubt in account.doubts:
            self._line(f"! {doubt}", style="bold red")
        if account.balanced:
            self._line("Every recipient is accounted for.", style="bold green")
        else:
            self._line("NOT every recipient is accounted for.", style="bold red")

    def journey(self, title: str, rows: Sequence[Any]) -> None:
        """Show the trace of one email."""
        self.console.print()
        self._line(title, style="bold")
        first = rows[0].at if rows else None
        for row in rows:
            reply = " ".join(str(part) for part in (row.code, row.enhanced, row.reply) if part)
            words = printable("  ".join(part for part in (reply, row.detail) if part))
            self._line(f"  {_since(first, row.at):>9}  {row.type:<16} {words}")

    def where(self, places: Mapping[str, str]) -> None:
        """Say where to look; a line each."""
        self.console.print()
        width = max(map(len, places)) + 2
        for name, place in places.items():
            # Whole on a line, however long: it is there to be copied.
            self.console.print(Text(f"{name:<{width}}", style="bold") + Text(place), soft_wrap=True)

    def line(self, text: str) -> None:
        """Print a line as it stands: what programs read, or the last word."""
        self.console.file.write(text + "\n")
        self.console.file.flush()

    def _line(self, text: str, style: str = "") -> None:
        self.console.print(Text(text, style=style), soft_wrap=not self.console.is_terminal)


class Watching:
    """Progress under way. `update` as often as you like."""

    def __init__(self, show: Show, sending: Sending, expected: int, bars: Progress | None) -> None:
        self._show, self._sending, self._expected = show, sending, expected
        self._bars = bars
        self._told_at = time.monotonic()
        self._told = -1
        self._tasks: dict[str, TaskID] = {}
        if bars is not None:
            for way in WAYS:
                if sending.planned[way]:
                    self._tasks[way] = bars.add_task(NAMES[way], total=sending.planned[way])
            self._tasks["arrived"] = bars.add_task(NAMES["arrived"], total=expected)

    def update(self, arrived: int) -> None:
        """Show how far it is."""
        if self._bars is not None:
            done = self._sending.done
            for way, task in self._tasks.items():
                self._bars.update(task, completed=arrived if way == "arrived" else done[way])
        elif time.monotonic() - self._told_at >= LINE_SECONDS:
            state = (len(self._sending.sent), arrived)
            if sum(state) != self._told:
                self._show.step(f"{state[0]:,} emails handed in, {arrived:,} of {self._expected:,} arrived")
            self._told, self._told_at = sum(state), time.monotonic()


def quoted(*words: str) -> str:
    """Words as a shell takes them."""
    return shlex.join(words)


def printable(text: str) -> str:
    """Text that cannot write to a terminal anything but itself."""
    return "".join(char if char.isprintable() else "\N{REPLACEMENT CHARACTER}" for char in text)


def _since(first: datetime | None, at: datetime) -> str:
    if first is None or at == first:
        return at.astimezone(UTC).strftime("%H:%M:%S")
    return f"+{(at - first).total_seconds() * 1000:,.0f} ms"

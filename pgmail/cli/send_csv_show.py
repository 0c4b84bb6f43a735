"""How a mailing shows what it does: a progress bar on a terminal, a line now and then elsewhere.

All of it goes to standard error; standard output is for the result. What can go wrong: a list with a million
bad rows. The first hundred are shown, all are counted, and `--rejected` has every one of them.
"""

from __future__ import annotations

import csv
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

import click

from pgmail.cli import output
from pgmail.mailing.table import REPORT_COLUMNS

if TYPE_CHECKING:
    from rich.progress import Progress, TaskID

    from pgmail.mailing.scan import Refusal, Scan
    from pgmail.mailing.table import Table

SHOWN = 100  # refused rows on standard error
EVERY_SECONDS = 10.0  # between two lines about progress where there is no terminal


class Reporter:
    """Shows progress, tells of refused rows and writes them down. A `mailing.send.Watch`."""

    def __init__(
        self, path: Path, rejected: Path | None, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        """`path` is the list; `rejected` is where refused rows go."""
        self._path, self._rejected, self._clock = path, rejected, clock
        self._stack = ExitStack()
        self._write: Callable[[list[Any]], Any] | None = None
        self._kept: list[int] = []
        self._width = 0
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._refusals = 0
        self._counts_rows = False
        self._what, self._total, self._last = "", 0, (clock(), 0)

    def __enter__(self) -> Self:
        """Nothing more to do."""
        return self

    def __exit__(self, *_: object) -> None:
        """Take the bar down and close the file."""
        self.end()
        self._stack.close()

    def begin(self, table: Table, name: str | None) -> None:
        """The list is about to be read; what the file for refused rows held is gone. Raises OSError."""
        if self._rejected is not None:
            file = self._rejected.open("w", encoding="utf-8", errors="surrogateescape", newline="")
            # A list of refused rows that was mended may be refused again: its reports are replaced.
            names = table.header.names
            self._width = len(names)
            self._kept = [place for place, column in enumerate(names) if column not in REPORT_COLUMNS]
            writer = csv.writer(
                self._stack.enter_context(file), delimiter=table.delimiter, lineterminator="\n"
            )
            self._write = writer.writerow
            self._write([*REPORT_COLUMNS, *(names[place] for place in self._kept)])
        if sys.stderr.isatty():
            self._bar = _bar()
            self._bar.start()
        what = f"checking {self._path.name}" + (f" for {name}" if name else "")
        self._phase(what, table.size, rows=False)

    def scanned(self, found: Scan) -> None:
        """The first pass is over."""
        for line, first in found.shown:
            self.say(f"{self._path}:{line}: the address is that of line {first}; it is sent once")
        if found.duplicates > len(found.shown):
            self.say(f"{found.duplicates - len(found.shown):,} more rows repeat an address")
        self._phase("handing over", found.rows, rows=True)

    def refuse(self, refusal: Refusal) -> None:
        """Tell of a row that is not sent; the first hundred are shown."""
        row, fault = refusal.row, refusal.fault
        self._refusals += 1
        if self._write is not None:
            # One of another width is kept as it stands: which of its cells is which nobody knows.
            cells = row.cells
            if len(cells) == self._width:
                cells = [cells[place] for place in self._kept]
            self._write([row.line, fault.column, fault.code, fault.message, *cells])
        if self._refusals <= SHOWN:
            column = f"{fault.column}: " if fault.column else ""
            self.say(f"{self._path}:{row.line}: {column}{fault.message} [{fault.code}]")
        elif self._refusals == SHOWN + 1:
            hint = (
                "all are in the file of --rejected"
                if self._rejected
                else "--rejected FILE would hold them all"
            )
            self.say(f"more rows are refused than are shown here; {hint}")

    def progress(self, done: int, refused: int) -> None:
        """So much of the phase is done."""
        now = self._clock()
        then, before = self._last
        if self._bar is not None and self._task is not None:
            told = [f"{refused:,} refused"] if refused else []
            if self._counts_rows:
                rate = (done - before) / max(now - then, 0.001)
                told = [f"{done:,} of {self._total:,} rows", f"{rate:,.0f}/s", *told]
            self._bar.update(self._task, completed=done, told=", ".join(told))
        elif now - then >= EVERY_SECONDS:
            share = 100 * done / self._total if self._total else 100
            rate_told = f", {(done - before) / (now - then):,.0f} rows/s" if self._counts_rows else ""
            self._last = (now, done)
            self.say(f"{self._what}: {share:.0f} %{rate_told}, {refused:,} refused")

    def say(self, text: str) -> None:
        """Write a line to standard error, above the bar if there is one."""
        line = output.cell(" ".join(text.split()))
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False, soft_wrap=True)
        else:
            click.echo(line, err=True)

    def end(self) -> None:
        """Take the bar down. Twice is fine."""
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def _phase(self, what: str, total: int, *, rows: bool) -> None:
        """The first pass counts octets, the second rows."""
        self._counts_rows = rows
        self._what, self._total, self._last = what, total, (self._clock(), 0)
        if self._bar is not None:
            if self._task is not None:
                self._bar.remove_task(self._task)
            self._task = self._bar.add_task(what, total=total, told="")


def _bar() -> Progress:
    from rich import progress  # noqa: PLC0415 - only a terminal needs it
    from rich.console import Console  # noqa: PLC0415

    return progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.TaskProgressColumn(),
        progress.TextColumn("{task.fields[told]}", markup=False),
        progress.TimeRemainingColumn(),
        console=Console(stderr=True),
    )

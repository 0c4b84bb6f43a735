"""What commands print: tables for people, JSON for programs.

A table on a terminal fits it and wraps; elsewhere columns are aligned and lines are as long as they must be,
so that `grep` and `less -S` work. JSON is the stable interface: keys as in SQL, times ISO 8601 in UTC, octets
in base64.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Mapping, Sequence
from datetime import UTC, datetime
from shutil import get_terminal_size
from typing import Any

import click
import msgspec

WIDE = 10_000  # columns where there is no terminal to fit
EMPTY = "-"


def show(rows: Sequence[Any], columns: Mapping[str, str], *, as_json: bool, none: str = "nothing") -> None:
    """Print rows: for people the `columns` (key to heading), as JSON an array with all keys."""
    dicts = [plain(row) for row in rows]
    if as_json:
        print_json(dicts)
    elif not dicts:
        click.echo(none)
    else:
        table(columns.values(), [[row.get(key) for key in columns] for row in dicts])


def show_one(row: Any, *, as_json: bool, leave_out: Iterable[str] = ()) -> None:
    """Print one object: for people a line for each key that has a value."""
    facts = plain(row)
    if as_json:
        print_json(facts)
        return
    shown = [(key, value) for key, value in facts.items() if value is not None and key not in set(leave_out)]
    table(None, [[key.replace("_", " "), value] for key, value in shown])


def print_json(value: Any) -> None:
    """Print a value as JSON."""
    encoded = msgspec.json.encode(value, enc_hook=str)
    click.echo(msgspec.json.format(encoded, indent=2).decode())


def table(headings: Iterable[str] | None, rows: Iterable[Sequence[Any]]) -> None:
    """Print an aligned table."""
    from rich import box  # noqa: PLC0415 - `pgmail --help` and --json need none of it
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415
    from rich.text import Text  # noqa: PLC0415

    terminal = sys.stdout.isatty()
    made = Table(box=box.SIMPLE_HEAD if terminal and headings else None, show_header=headings is not None)
    made.pad_edge = False
    for number, heading in enumerate(headings or ("", "")):
        numeric = headings is not None and all(isinstance(row[number], int) for row in rows)
        made.add_column(heading, justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(cell(value)) for value in row))
    # Text as it is: no markup in an address or a reply, no colours where nobody sees them.
    # Both, or the library assumes 80 columns where TERM is dumb.
    width, height = get_terminal_size() if terminal else (WIDE, 25)
    console = Console(width=width, height=height, highlight=False, markup=False, soft_wrap=False)
    with console.capture() as captured:
        console.print(made)
    click.echo("\n".join(line.rstrip() for line in captured.get().rstrip("\n").splitlines()))


def cell(value: Any) -> str:
    """A value as people read it: times in UTC to the second, nothing as a dash; on one line, unless long text."""
    if value is None or value == "":
        return EMPTY
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, datetime):
        return value.astimezone(UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    if isinstance(value, float):
        # Whole ones in full: nobody reads 1e+06.
        return f"{value:.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:g}"
    if isinstance(value, Mapping):
        return ", ".join(f"{key}={cell(item)}" for key, item in value.items()) or EMPTY
    if isinstance(value, list | tuple):
        return ", ".join(cell(item) for item in value) or EMPTY
    text = str(value)
    # A reply of a remote server must not write to this terminal.
    return "".join(
        char if char.isprintable() or char == "\n" else "\N{REPLACEMENT CHARACTER}" for char in text
    )


def plain(row: Any) -> dict[str, Any]:
    """A row, a struct or a mapping as a dictionary, with times in UTC."""
    if isinstance(row, msgspec.Struct):
        facts = msgspec.structs.asdict(row)
    elif hasattr(row, "_asdict"):
        facts = row._asdict()
    else:
        facts = dict(row)
    return {
        key: value.astimezone(UTC) if isinstance(value, datetime) else value for key, value in facts.items()
    }

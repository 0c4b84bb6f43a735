"""`pgmail suppression import | export`: lists of addresses in files, of any length, in bounded memory.

An import goes chunk by chunk, each committed by itself; run again after a crash it changes only what is missing.
What can go wrong: a file with wrong rows. Each is told with its line on standard error, the others are imported,
and the exit code is 1.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

import click
import msgspec

from pgmail.cli import common, output
from pgmail.errors import PgmailError

if TYPE_CHECKING:
    from pgmail.domain.suppression_file import Bad, Entry

CHUNK = 2_000  # rows a statement
SHOWN = 100  # faults in the answer as JSON; all of them are on standard error


@click.command("export", short_help="Write all entries to a file.")
@click.option(
    "--output", "target", metavar="FILE", default="-", help="Where to. Defaults to standard output."
)
@click.option("--jsonl", is_flag=True, help="JSON lines instead of CSV.")
@click.option("--stream", metavar="NAME", help="Only this stream's own entries.")
@click.option("--reason", metavar="WORD", help="Only those of this reason.")
def export(target: str, jsonl: bool, stream: str | None, reason: str | None) -> None:
    """Write all entries that suppress something, in their order; `import` reads them back."""

    async def act(file: TextIO) -> None:
        from pgmail.store import suppressions  # noqa: PLC0415

        table = csv.writer(file)
        if not jsonl:
            table.writerow(suppressions.COLUMNS)
        async for rows in suppressions.pages(common.database, stream=stream, reason=reason):
            for row in rows:
                facts = {name: output.plain(row)[name] for name in suppressions.COLUMNS}
                if jsonl:
                    file.write(msgspec.json.encode(facts).decode() + "\n")
                else:
                    table.writerow([x.isoformat() if hasattr(x, "isoformat") else x for x in facts.values()])

    with ExitStack() as stack:
        file = sys.stdout
        if target != "-":
            file = stack.enter_context(Path(target).open("w", encoding="utf-8", newline=""))
        common.run(act(file))


@click.command("import", short_help="Read entries from a file.")
@click.argument("file", metavar="FILE")
@click.option("--stream", metavar="NAME", help="For rows that name none. Defaults to all streams.")
@click.option(
    "--reason", default="manual", show_default=True, metavar="WORD", help="For rows that give none of ours."
)
@click.option("--expires-at", metavar="TIME", help="For rows that name none. Defaults to never.")
@click.option("--dry-run", is_flag=True, help="Only say what would happen.")
@common.as_json
def import_(file: str, expires_at: str | None, dry_run: bool, as_json: bool, **given: str) -> None:
    """Suppress all addresses of FILE (`-`: standard input): CSV, one address a line, or JSON lines."""
    until = common.moment(expires_at, "expires_at")
    stream, reason = given["stream"] or "", given["reason"]
    counts = {"rows": 0, "added": 0, "changed": 0, "unchanged": 0, "refused": 0}
    faults: list[dict[str, Any]] = []

    def complain(bad: Bad) -> None:
        counts["refused"] += 1
        if len(faults) < SHOWN:
            faults.append(bad._asdict())
        click.echo(output.cell(f"line {bad.line}: {bad.address}: {bad.message} [{bad.code}]"), err=True)

    async def act(rows: Iterator[Entry | Bad]) -> None:
        from pgmail.domain.suppression_file import Bad  # noqa: PLC0415
        from pgmail.store import suppressions  # noqa: PLC0415

        audit = None
        async with common.database() as connection:
            while chunk := list(islice(rows, CHUNK)):
                counts["rows"] += len(chunk)
                found = []
                for row in chunk:
                    if isinstance(row, Bad):
                        complain(row)
                    else:
                        found.append(row)
                answer = await suppressions.add_many(
                    connection,
                    [
                        suppressions.Entry(
                            row.address, row.stream or stream, row.reason or reason, row.source,
                            row.created_at, row.expires_at or until,
                        )
                        for row in found
                    ],
                    strict=False, store=not dry_run, audit=audit,
                )  # fmt: skip
                audit = answer.audit
                for name in ("added", "changed", "unchanged"):
                    counts[name] += getattr(answer, name)
                for fault in answer.faults:
                    row = found[fault["position"]]
                    complain(Bad(row.line, row.address, fault["code"], fault["message"]))
                if sys.stderr.isatty():
                    click.echo(f"\r{counts['rows']} rows", nl=False, err=True)
        if sys.stderr.isatty():
            click.echo(err=True)

    from pgmail.domain.suppression_file import read  # noqa: PLC0415

    with ExitStack() as stack:
        source = sys.stdin.buffer if file == "-" else stack.enter_context(Path(file).open("rb"))
        # What is no UTF-8 becomes U+FFFD, and a fault of its row.
        lines = io.TextIOWrapper(source, encoding="utf-8", errors="replace", newline="")  # type: ignore[arg-type,unused-ignore]  # binary
        common.run(act(read(lines)))
    if as_json:
        output.print_json(counts | {"dry_run": dry_run, "faults": faults})
    else:
        words = ", ".join(f"{counts[name]} {name}" for name in ("added", "changed", "unchanged", "refused"))
        click.echo(f"{'would be: ' if dry_run else ''}{words}")
    if counts["refused"]:
        raise PgmailError(f"{counts['refused']} of {counts['rows']} rows were refused")

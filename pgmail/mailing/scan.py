"""The first pass over a list: every row is judged before anything is sent.

Whoever sends a million emails learns of a broken list now, and not in the middle. What is kept for the second
pass is a bit a row (left out, or not) and a digest a chunk, so memory grows by 150 kB a million rows.

A chunk is a fixed number of rows as they stand in the file, the bad ones too: mending or refusing a row moves
no other row to another chunk, whose key would then be a new one.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable

import msgspec

from pgmail.mailing.duplicates import Duplicates
from pgmail.mailing.people import People, Unfit
from pgmail.mailing.table import Fault, Row, Table

DIGEST_OCTETS = 16
STEP = 1_000  # rows between two words about progress


class Refusal(msgspec.Struct, frozen=True):
    """A row that is not sent, and why."""

    row: Row
    fault: Fault


class Scan(msgspec.Struct):
    """What a list holds: rows in all, those refused, those that repeat an address, and each chunk's digest."""

    chunk: int  # rows
    rows: int = 0
    refused: int = 0
    duplicates: int = 0
    shown: list[tuple[int, int]] = []
    digests: list[bytes] = []
    left_out: bytearray = msgspec.field(default_factory=bytearray)

    def leaves_out(self, row: int) -> bool:
        """Tell whether a row, counted from 0, is refused or a duplicate."""
        return bool(self.left_out[row >> 3] & 1 << (row & 7))


def scan(
    table: Table,
    people: People,
    chunk: int,
    *,
    refuse: Callable[[Refusal], None],
    progress: Callable[[int, int], None],
) -> Scan:
    """Judge every row. `refuse` hears of each bad one, `progress` of octets read and rows refused.

    Raises Refused (`invalid_csv`) when the file breaks off or holds no row.
    """
    found = Scan(chunk)
    bits, rows = found.left_out, 0
    batch: list[list[str]] = []
    with Duplicates() as addresses:
        for row in table.rows():
            if not rows & 7:
                bits.append(0)
            fault = row.fault
            if fault is None:
                try:
                    addresses.add(people.check(row.cells), rows, row.line)
                except Unfit as unfit:
                    fault = unfit.fault
            if fault is not None:
                bits[rows >> 3] |= 1 << (rows & 7)
                found.refused += 1
                refuse(Refusal(row, fault))
            batch.append(row.cells)
            rows += 1
            if len(batch) == chunk:
                found.digests.append(digest(table, batch))
                batch = []
            if not rows % STEP:
                progress(table.position, found.refused)
        if batch:
            found.digests.append(digest(table, batch))
        found.rows = rows
        found.duplicates = addresses.mark(bits)
        found.shown = addresses.shown
    progress(table.size, found.refused)
    return found


def digest(table: Table, rows: list[list[str]]) -> bytes:
    """What tells one chunk from another: the cells with the names of their columns, however they are quoted."""
    cells = [table.header.names, *rows]
    if not (text := "".join(map("".join, rows))).isascii():
        # Octets that were no UTF-8 stand as lone surrogates here, which JSON has no way to write.
        try:
            text.encode()
        except UnicodeEncodeError:
            cells = [[cell.encode("utf-8", "surrogateescape") for cell in row] for row in cells]  # type: ignore[misc]  # for the digest only
    return hashlib.blake2b(msgspec.json.encode(cells), digest_size=DIGEST_OCTETS).digest()

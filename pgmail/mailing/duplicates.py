"""Which rows repeat an address that an earlier row has, over a list of any length in bounded memory.

An address is remembered by two 64-bit hashes with keys of this process, in one of 1,024 buckets. A bucket
that fills goes to a temporary file; at the end each bucket is read by itself. So memory holds one bucket,
whose size is a thousandth of the list, and 4 MB of buffers. A list of 100 million addresses takes 3 GB of
temporary disk.

What can go wrong: two addresses with the same 128 bits would be taken for one. Over 100 million addresses the
odds are 1 in 10^22.
"""

from __future__ import annotations

import heapq
import tempfile
from array import array
from typing import IO, Self

BUCKETS = 1_024
SPILL = 128  # records of a bucket that are kept in memory; 32 octets each
SHOWN = 20  # duplicates that are told with their lines

_FIELDS = 4  # two hashes, row, line


class Duplicates:
    """Collects addresses in the order of their rows, then tells which were there before."""

    def __init__(self) -> None:
        self._open: list[array[int]] = [array("q") for _ in range(BUCKETS)]
        self._blocks: list[array[int]] = [array("q") for _ in range(BUCKETS)]
        self._file: IO[bytes] | None = None
        self.shown: list[tuple[int, int]] = []

    def __enter__(self) -> Self:
        """Nothing to do yet: the temporary file is made when it is needed."""
        return self

    def __exit__(self, *_: object) -> None:
        """Give the temporary file back."""
        if self._file is not None:
            self._file.close()

    def add(self, address: str, row: int, line: int) -> None:
        """Remember the address of a row."""
        first = hash(address)
        bucket = self._open[first & (BUCKETS - 1)]
        # The second hash is of another text, and so tells nothing that the first one knows.
        bucket.extend((first, hash(address + "\n"), row, line))
        if len(bucket) >= SPILL * _FIELDS:
            self._spill(first & (BUCKETS - 1))

    def mark(self, rows: bytearray) -> int:
        """Set the bit of every row that repeats an earlier one's address; how many.

        `shown` then holds (line, line of the first) of the first few.
        """
        count = 0
        lowest: list[tuple[int, int]] = []  # a heap of negated lines: the last of the first few on top
        for bucket in range(BUCKETS):
            seen: dict[tuple[int, int], int] = {}
            values = iter(self._records(bucket))
            for first, second, row, line in zip(values, values, values, values, strict=True):
                before = seen.setdefault((first, second), line)
                if before == line:
                    continue
                rows[row >> 3] |= 1 << (row & 7)
                count += 1
                push = heapq.heappush if len(lowest) < SHOWN else heapq.heappushpop
                push(lowest, (-line, before))
        self.shown = sorted((-line, before) for line, before in lowest)
        return count

    def _spill(self, bucket: int) -> None:
        if self._file is None:
            self._file = tempfile.TemporaryFile(prefix="pgmail-mailing-")  # noqa: SIM115 - closed in __exit__
        self._blocks[bucket].append(self._file.tell())
        self._open[bucket].tofile(self._file)
        self._open[bucket] = array("q")

    def _records(self, bucket: int) -> array[int]:
        records = array("q")
        if self._file is not None:
            for offset in self._blocks[bucket]:
                self._file.seek(offset)
                records.fromfile(self._file, SPILL * _FIELDS)
        records.extend(self._open[bucket])
        return records

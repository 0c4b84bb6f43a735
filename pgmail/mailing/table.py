"""A list of recipients in a CSV file (RFC 4180, leniently): encoding, delimiter, header and rows.

Read line by line, so that memory does not grow with the file. UTF-8 with or without a byte order mark; the
delimiter is told from the header. Lines and rows differ where a quoted cell holds line breaks: a row is known
by the line that it begins on, counted from 1 with the header, as editors show it.

What can go wrong: a quote that is never closed swallows the rows behind it. That is not one bad row but a file
that cannot be trusted, and refuses it all (`invalid_csv`); so does a cell of more than 131,072 characters,
which is what such a quote looks like first. A row that is broken within its own line is only that row's fault.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, NoReturn, Self

import msgspec

from pgmail.errors import Refused

if TYPE_CHECKING:
    import _csv  # where the type of a reader is before Python 3.13

DELIMITERS = (",", ";", "\t")
ADDRESS_COLUMNS = ("email", "address", "to")  # the first of these that the header has
NAME_COLUMN = "name"
REPORT_COLUMNS = ("pgmail_line", "pgmail_column", "pgmail_code", "pgmail_reason")
"""What a file of refused rows has beside its own columns; no variables where they are read again."""

_WIDE = (b"\xff\xfe", b"\xfe\xff")


class Fault(msgspec.Struct, frozen=True):
    """What is wrong with a row: the column's name (empty: the row), a stable code, and words."""

    column: str
    code: str
    message: str


class Row(msgspec.Struct, frozen=True, gc=False):
    """A row: the line that it begins on, its cells as they stand, and a fault that reading it found."""

    line: int
    cells: list[str]
    fault: Fault | None = None


class Header(msgspec.Struct, frozen=True):
    """The columns: all names as they stand, where address and display name are, and the variables.

    `variables` is (position, name) for each; address and display name are variables as well.
    """

    names: tuple[str, ...]
    address: int
    name: int | None
    variables: tuple[tuple[int, str], ...]

    @property
    def address_name(self) -> str:
        """The address column as the file calls it."""
        return self.names[self.address]


class Table:
    """An open file. `header` and `delimiter` are known from the start; `rows` may be walked more than once."""

    def __init__(
        self, path: Path, *, delimiter: str | None = None, address_column: str | None = None
    ) -> None:
        """Open the file and read its header. Raises OSError, and Refused (`invalid_csv`) at once."""
        self.path = path
        self._file = path.open("rb", buffering=0)
        try:
            if not self._file.seekable():
                refuse(f"{path} is no file that can be read twice; store the list first")
            self.size = self._file.seek(0, io.SEEK_END)
            self._odd = False
            self.delimiter, self.header = self._open(delimiter, address_column)
        except BaseException:
            self._file.close()
            raise

    def __enter__(self) -> Self:
        """Nothing more to do: it is open."""
        return self

    def __exit__(self, *_: object) -> None:
        """Close the file."""
        self._file.close()

    @property
    def position(self) -> int:
        """Octets read so far, in steps of a buffer: for a progress bar."""
        return self._file.tell()

    def rows(self) -> Iterator[Row]:
        """Walk the rows from the first; blank ones are left out. Raises Refused (`invalid_csv`).

        One walk at a time: a second one takes the file from the first.
        """
        reader = self._reader(self.delimiter)
        next(reader)
        width = len(self.header.names)
        ended = reader.line_num
        while True:
            line = ended + 1
            try:
                cells = next(reader)
            except StopIteration:
                return
            except csv.Error as error:
                ended = reader.line_num
                if ended > line or "end of data" in str(error) or "limit" in str(error):
                    refuse(f"line {line}: the quote of a cell is not closed where it should be ({error})")
                yield Row(line, [self._last.rstrip("\r\n")], Fault("", "invalid_row", str(error)))
                continue
            ended = reader.line_num
            if not any(cells):
                continue
            odd, self._odd = self._odd, False
            if len(cells) != width:
                if len(cells) < width or any(cells[width:]):
                    said = f"{len(cells)} cells, and the header has {width}"
                    yield Row(line, cells, Fault("", "invalid_row", said))
                    continue
                del cells[width:]
            yield Row(line, cells, self._odd_cell(cells) if odd else None)

    def _odd_cell(self, cells: Sequence[str]) -> Fault | None:
        """What PostgreSQL could not store: octets that are no UTF-8, and U+0000."""
        for name, cell in zip(self.header.names, cells, strict=True):
            if "\0" in cell:
                return Fault(name, "invalid_row", "the cell holds U+0000, which PostgreSQL cannot store")
            try:
                cell.encode()
            except UnicodeEncodeError:
                return Fault(name, "invalid_row", "the cell is not UTF-8 text")
        return None

    def _reader(self, delimiter: str) -> _csv.Reader:
        return csv.reader(self._lines(), delimiter=delimiter, strict=True)

    def _lines(self) -> Iterator[str]:
        """Lines as text. Octets that are no UTF-8 come as lone surrogates, so that they can be written back."""
        self._file.seek(0)
        # A reader of its own on the same descriptor: a walk that is given up takes nothing with it.
        lines = open(  # noqa: SIM115 - it holds no descriptor
            self._file.fileno(), encoding="utf-8-sig", errors="surrogateescape", newline="", closefd=False
        )
        for text in lines:
            if not text.isascii() or "\0" in text:
                self._odd = True
            self._last = text
            yield text

    def _open(self, delimiter: str | None, address_column: str | None) -> tuple[str, Header]:
        self._file.seek(0)
        if self._file.read(2) in _WIDE:
            refuse("the file is UTF-16; store it as UTF-8")
        found = {}
        for candidate in (delimiter,) if delimiter else DELIMITERS:
            try:
                names = next(self._reader(candidate), None)
            except csv.Error:
                continue
            if names is not None:
                found[candidate] = [name.strip() for name in names]
        if not found:
            refuse("the file has no header row")
        # Which delimiter shows a column of addresses? Failing that, the one that shows the most columns.
        best = max(found, key=lambda one: (_address(found[one], address_column) is not None, len(found[one])))
        return best, _header(found[best], address_column)


def refuse(because: str, code: str = "invalid_csv") -> NoReturn:
    """Raise what makes the whole file unusable."""
    raise Refused(code, "", because)


def _address(names: Sequence[str], wanted: str | None) -> int | None:
    """Where the addresses are. A column is found whatever its case."""
    lower = [name.casefold() for name in names]
    for name in (wanted.strip().casefold(),) if wanted else ADDRESS_COLUMNS:
        if name in lower:
            return lower.index(name)
    return None


def _header(names: Sequence[str], address_column: str | None) -> Header:
    for name in names:
        if "\0" in name or not _is_text(name):
            refuse("the header row is not UTF-8 text")
    if double := sorted({name for name in names if name and names.count(name) > 1}):
        refuse(f"the header row names the column {double[0]!r} twice")
    address = _address(names, address_column)
    if address is None:
        wanted = repr(address_column) if address_column else ", ".join(map(repr, ADDRESS_COLUMNS))
        shown = ", ".join(map(repr, names[:20]))
        refuse(f"no column is named {wanted}; the header row has {shown}", "missing_column")
    lower = [name.casefold() for name in names]
    display = lower.index(NAME_COLUMN) if NAME_COLUMN in lower else None
    variables = tuple(
        (position, column) for position, column in enumerate(names) if column and column not in REPORT_COLUMNS
    )
    return Header(tuple(names), address, None if display == address else display, variables)


def _is_text(text: str) -> bool:
    try:
        text.encode()
    except UnicodeEncodeError:
        return False
    return True

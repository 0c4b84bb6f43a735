"""A row of a list as a recipient: judged as the law of an email would (row 2 and 8), then written down.

Every column is a variable of this recipient, address and display name too. An empty cell gives no variable,
so that the shared one or the template's `default` takes its place, and a variable without which the template
cannot be rendered refuses its row rather than sending `Dear ,`; `keep_empty` makes it an empty text.

What can go wrong: SQL has the last word about an address and may refuse what passed here (see
`domain.address`). `send` deals with that.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from pgmail.domain.address import parse, with_name
from pgmail.errors import Refused
from pgmail.mailing.table import Fault, Header

_BRACKETS = ("{", "[", '"')  # what begins so is meant as JSON


class Unfit(ValueError):  # noqa: N818 - it is about the row, not an error of ours
    """A row that makes no recipient."""

    def __init__(self, fault: Fault) -> None:
        super().__init__(fault.message)
        self.fault = fault


class People:
    """Reads rows of one header. `require` names variables that each row has to bring."""

    def __init__(self, header: Header, *, typed: bool = False, keep_empty: bool = False) -> None:
        """`typed`: a cell that is JSON (`12`, `true`, `["a"]`) is that value; any other is text."""
        self.header = header
        self._keep_empty = keep_empty
        self._typed = typed
        self._columns = {name: position for position, name in header.variables}
        self._required: list[tuple[int, str]] = []
        self._values: Callable[[Sequence[str]], Iterable[tuple[str, Any]]]
        self._values = self._typed_values if typed else self._texts

    @property
    def variables(self) -> frozenset[str]:
        """The names that rows can bring."""
        return frozenset(self._columns)

    def require(self, names: Iterable[str]) -> None:
        """From now on a row without one of these is unfit. Raises Refused (`missing_variable`): no such column."""
        for name in sorted(names):
            if (position := self._columns.get(name)) is None:
                near = [column for column in self._columns if column.casefold() == name.casefold()]
                hint = f"; the column {near[0]!r} is another name, case counts" if near else ""
                because = f"the template needs {name!r}, and neither a column nor --variable gives it{hint}"
                raise Refused("missing_variable", "/variables", because)
            if (position, name) not in self._required:
                self._required.append((position, name))

    def check(self, cells: Sequence[str]) -> str:
        """Return the address by which recipients are compared. Raises Unfit for the first fault of a row."""
        header = self.header
        text = cells[header.address]
        name = cells[header.name] if header.name is not None else ""
        if not text.strip(" "):
            raise Unfit(Fault(header.address_name, "missing_field", "the cell for the address is empty"))
        try:
            found = with_name(text, name) if name and "<" not in text else parse(text)
        except ValueError as error:
            raise Unfit(Fault(header.address_name, "invalid_address", str(error))) from None
        if not self._keep_empty:
            for position, variable in self._required:
                if not cells[position]:
                    because = f"the template needs {variable!r}, and the cell is empty"
                    raise Unfit(Fault(variable, "missing_variable", because))
        if self._typed:
            for _ in self._typed_values(cells):
                pass
        return found.address

    def recipient(self, cells: Sequence[str]) -> dict[str, Any]:
        """Return a row that `check` passed as an item of `to`."""
        header = self.header
        address, name = cells[header.address].strip(" "), ""
        if "<" in address:
            found = parse(address)
            address, name = found.rcpt, found.name or ""
        if header.name is not None:
            name = name or cells[header.name]
        made: dict[str, Any] = {"address": address, "variables": dict(self._values(cells))}
        if name:
            made["name"] = name
        return made

    def _texts(self, cells: Sequence[str]) -> Iterable[tuple[str, Any]]:
        if self._keep_empty:
            return [(name, cells[position]) for position, name in self.header.variables]
        return [(name, cells[position]) for position, name in self.header.variables if cells[position]]

    def _typed_values(self, cells: Sequence[str]) -> Iterable[tuple[str, Any]]:
        for position, name in self.header.variables:
            cell = cells[position]
            if not cell:
                if self._keep_empty:
                    yield name, ""
            elif position in (self.header.address, self.header.name):
                yield name, cell  # whoever is called True keeps the name
            else:
                yield name, _typed(cell, name)


def _typed(cell: str, column: str) -> Any:
    """The value of a cell: JSON (RFC 8259), or else text."""
    try:
        value = msgspec.json.decode(cell)
        msgspec.json.encode(value)
    except (msgspec.DecodeError, msgspec.EncodeError, RecursionError, UnicodeEncodeError) as error:
        if cell.lstrip().startswith(_BRACKETS):
            raise Unfit(Fault(column, "invalid_variables", f"the cell is not JSON: {error}")) from None
        return cell
    if "\\u0000" in cell:
        raise Unfit(
            Fault(column, "invalid_variables", "the cell holds U+0000, which PostgreSQL cannot store")
        )
    return value

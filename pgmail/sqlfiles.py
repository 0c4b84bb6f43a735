"""Where the SQL lives: `sql/` and `alembic/`, in a checkout or in an installed wheel.

Python holds no SQL. State changes are functions in `sql/functions`, reads are named queries in `sql/queries`:

    -- name: claim_batch :many
    -- What it is for, in a line or two.
    select ...;

The word after the name is what the caller gets: `one` row or none, `many` rows, or nothing (`exec`). What can
go wrong: a file is missing or a header is malformed; both are faults of the installation and raise at first
use.
"""

from __future__ import annotations

import functools
import re
from pathlib import Path
from typing import Literal, NamedTuple

REPLY_RULES = "rules/replies.toml"  # what replies of other mail servers mean, as data

_PACKAGE = Path(__file__).resolve().parent
_HEADER = re.compile(r"^--[ \t]*name:[ \t]*(.*)$", re.MULTILINE)
_TITLE = re.compile(r"([a-z][a-z0-9_]*)[ \t]+:(one|many|exec)[ \t]*\r?")


class Query(NamedTuple):
    """One named query. `text` is the statement without its last semicolon; `purpose` the comment above it."""

    name: str
    kind: Literal["one", "many", "exec"]
    text: str
    purpose: str


class Migration(NamedTuple):
    """One step of the schema: `name` is `0001_first_light`, with the files that make and unmake it."""

    number: int
    name: str
    up: Path
    down: Path


@functools.cache
def home() -> Path:
    """The folder that holds `sql/` and `alembic/`.

    An installation is looked for first: beside an installed package, a folder named `sql` may be anyone's.
    """
    for folder in (_PACKAGE / "_files", _PACKAGE.parent):
        if (folder / "sql" / "migrations").is_dir():
            return folder
    raise FileNotFoundError(
        f"pgmail's SQL files are neither in {_PACKAGE / '_files'} nor in {_PACKAGE.parent}"
    )


def sql_folder() -> Path:
    """`sql/`."""
    return home() / "sql"


def alembic_folder() -> Path:
    """`alembic/`, the script location of pgmail's own migrations."""
    return home() / "alembic"


@functools.cache
def read(name: str) -> str:
    """The text of a file below `sql/`, such as `roles.sql` or `migrations/0001_first_light.up.sql`."""
    return (sql_folder() / name).read_text(encoding="utf-8")


@functools.cache
def functions() -> list[Path]:
    """`sql/functions/*.sql`, in the order in which they are applied: by file name."""
    return sorted((sql_folder() / "functions").glob("*.sql"), key=lambda path: path.name)


@functools.cache
def migrations() -> list[Migration]:
    """`sql/migrations/NNNN_name.up.sql` with their `.down.sql`, oldest first. ValueError for half a pair."""
    folder = sql_folder() / "migrations"
    ups = {path.name.removesuffix(".up.sql"): path for path in folder.glob("*.up.sql")}
    downs = {path.name.removesuffix(".down.sql"): path for path in folder.glob("*.down.sql")}
    if alone := sorted(ups.keys() ^ downs.keys()):
        raise ValueError(f"migrations without their other half in {folder}: {', '.join(alone)}")
    return [Migration(int(name.split("_", 1)[0]), name, ups[name], downs[name]) for name in sorted(ups)]


@functools.cache
def queries(name: str) -> dict[str, Query]:
    """The named queries of `sql/queries/<name>.sql`, by their names."""
    return parse(read(f"queries/{name}.sql"), f"queries/{name}.sql")


def parse(text: str, source: str) -> dict[str, Query]:
    """The named queries in `text`. `source` is used in errors.

    ValueError when a header is malformed, a name comes twice, a query has no purpose or no statement, or when
    something other than comments stands before the first header.
    """
    found: dict[str, Query] = {}
    preamble, *rest = _HEADER.split(text)
    if any(line.strip() and not line.lstrip().startswith("--") for line in preamble.splitlines()):
        raise ValueError(f"{source}: a statement before the first '-- name:' line")
    for title, block in zip(rest[::2], rest[1::2], strict=True):
        match = _TITLE.fullmatch(title)
        if match is None:
            raise ValueError(
                f"{source}: '-- name: {title.strip()}' is not '-- name: some_name :one|:many|:exec'"
            )
        query = _query(match[1], match[2], block)
        if query.name in found:
            raise ValueError(f"{source}: {query.name} comes twice")
        if not query.text or not query.purpose:
            raise ValueError(f"{source}: {query.name} has no {'purpose' if query.text else 'statement'}")
        found[query.name] = query
    return found


def _query(name: str, kind: str, block: str) -> Query:
    lines = block.strip().splitlines()
    start = next((i for i, line in enumerate(lines) if not line.startswith("--")), len(lines))
    purpose = " ".join(line.removeprefix("--").strip() for line in lines[:start])
    text = "\n".join(lines[start:]).strip().removesuffix(";").rstrip()
    # The title's pattern lets only the three kinds through.
    return Query(name, kind, text, purpose)  # type: ignore[arg-type]

"""Other people's connections: run one query on whatever an application uses, in the transaction it is in.

No driver is imported here. The kind of a connection is told by the module that its class, or a class it
inherits from, was defined in; what is then called is that driver's public interface. Nothing is begun,
committed or rolled back, and no setting of the connection is touched. On asynchronous connections the answer
is a coroutine.

What can go wrong: the database refuses inside the caller's transaction. PostgreSQL then wants a rollback, to
a savepoint at least. Its refusals (SQLSTATE class PM) come out as `Refused`, whatever the driver wraps them
in; every other error is the caller's own and comes out as the driver raised it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Coroutine, Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from typing import Any, TypeVar

from pgmail.errors import Refused
from pgmail.sqlfiles import Query

T = TypeVar("T")
Params = Sequence[str | None]
Read = Callable[[str], T]

_MARK = re.compile(r"\$([1-9])")
_SUPPORTED = (
    "a connection or cursor of psycopg 3, a connection of asyncpg, a Connection or Session of SQLAlchemy "
    "(asynchronous ones too), or django.db.connection"
)
_MOST_CAUSES = 10  # links of a chain of errors that are looked at


def ask(connection: Any, query: Query, params: Params, read: Read[T]) -> T | Coroutine[Any, Any, T]:
    """Run a query that answers one text, and return what `read` makes of it (or a coroutine of that).

    `params` are texts for `$1`, `$2` ... Raises TypeError for what is no connection known here, and Refused
    for what the database refuses.
    """
    for made in type(connection).__mro__:
        if run := _RUNNERS.get(made.__module__.partition(".")[0]):
            answer: T | Coroutine[Any, Any, T] = run(connection, made, query, params, read)
            return answer
    raise _no_connection(connection)


def _no_connection(given: Any) -> TypeError:
    kind = type(given)
    return TypeError(f"{kind.__module__}.{kind.__qualname__} is not {_SUPPORTED}")


def _psycopg(
    connection: Any, made: type, query: Query, params: Params, read: Read[T]
) -> T | Coroutine[Any, Any, T]:
    # A cursor's own result must stay as it is, so another one of its connection is used. The rows' shape is
    # asked for each time: the application may have set a factory that knows only its own columns.
    owner = connection if hasattr(connection, "cursor") else connection.connection
    cursor = owner.cursor(row_factory=_plain_rows)
    raw = any("Raw" in base.__name__ for base in type(cursor).__mro__)
    text, values = (query.text, list(params)) if raw else _positional(query.text, params)
    if "Async" in made.__name__:
        return _psycopg_async(cursor, text, values, read)
    with _refusals(), cursor:
        cursor.execute(text, values)
        return read(cursor.fetchone()[0])


async def _psycopg_async(cursor: Any, text: str, values: list[str | None], read: Read[T]) -> T:
    with _refusals():
        async with cursor:
            await cursor.execute(text, values)
            return read((await cursor.fetchone())[0])


def _sqlalchemy(
    connection: Any, made: type, query: Query, params: Params, read: Read[T]
) -> T | Coroutine[Any, Any, T]:
    if not (hasattr(connection, "exec_driver_sql") or hasattr(connection, "connection")):
        raise _no_connection(connection)  # an Engine or a sessionmaker: neither has a transaction
    if made.__module__.startswith("sqlalchemy.ext.asyncio"):
        return _sqlalchemy_async(connection, query, params, read)
    with _refusals():
        if not hasattr(connection, "exec_driver_sql"):  # a Session
            connection = connection.connection()
        text, values = _for_dialect(connection, query, params)
        return read(connection.exec_driver_sql(text, tuple(values)).scalar_one())


async def _sqlalchemy_async(connection: Any, query: Query, params: Params, read: Read[T]) -> T:
    with _refusals():
        if not hasattr(connection, "exec_driver_sql"):
            connection = await connection.connection()
        text, values = _for_dialect(connection, query, params)
        return read((await connection.exec_driver_sql(text, tuple(values))).scalar_one())


def _django(connection: Any, _: type, query: Query, params: Params, read: Read[T]) -> T:
    if not hasattr(connection, "cursor"):
        raise _no_connection(connection)  # `connections`, without the name of one
    text, values = _positional(query.text, params)
    with _refusals(), connection.cursor() as cursor:
        cursor.execute(text, values)
        return read(cursor.fetchone()[0])


def _asyncpg(connection: Any, _: type, query: Query, params: Params, read: Read[T]) -> Coroutine[Any, Any, T]:
    if not hasattr(connection, "is_in_transaction"):
        raise TypeError("a pool has no transaction to send in; acquire a connection of it")
    return _asyncpg_async(connection, query, params, read)


async def _asyncpg_async(connection: Any, query: Query, params: Params, read: Read[T]) -> T:
    with _refusals():
        return read(await connection.fetchval(query.text, *params))


_RUNNERS: dict[str, Callable[..., Any]] = {
    "psycopg": _psycopg,
    "sqlalchemy": _sqlalchemy,
    "django": _django,
    "asyncpg": _asyncpg,
}


def _plain_rows(_: Any) -> Callable[[Sequence[Any]], Sequence[Any]]:
    """Psycopg's row factory for rows as they come."""
    return lambda values: values


def _for_dialect(connection: Any, query: Query, params: Params) -> tuple[str, list[str | None]]:
    """The statement in the style of the driver below SQLAlchemy."""
    if connection.dialect.paramstyle == "numeric_dollar":
        return query.text, list(params)
    return _positional(query.text, params)


def _positional(text: str, params: Params) -> tuple[str, list[str | None]]:
    """The statement with `%s` for `$1`, and the values in the order of the marks."""
    rewritten, order = _rewrite(text)
    return rewritten, [params[number] for number in order]


@lru_cache(maxsize=32)
def _rewrite(text: str) -> tuple[str, tuple[int, ...]]:
    order = tuple(int(match[1]) - 1 for match in _MARK.finditer(text))
    return _MARK.sub("%s", text), order


@contextmanager
def _refusals() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if (refused := _refusal(error)) is not None:
            raise refused from error
        raise


def _refusal(error: BaseException) -> Refused | None:
    """What the database refused, if that is what is at the bottom of an error."""
    seen: list[BaseException] = []
    wanted: list[Any] = [error]
    while wanted and len(seen) < _MOST_CAUSES:
        link = wanted.pop(0)
        if not isinstance(link, BaseException) or link in seen:
            continue
        seen.append(link)
        state = getattr(link, "sqlstate", None)
        if isinstance(state, str) and state.startswith("PM"):
            diag = getattr(link, "diag", None)
            if diag is not None:
                facts = (diag.constraint_name, diag.message_detail, diag.message_primary)
                return _refused(state, *facts)
            if hasattr(link, "constraint_name"):
                return _refused(state, link.constraint_name, getattr(link, "detail", None), link.args[0])
        # SQLAlchemy keeps the driver's error in `orig`; its asyncpg dialect and Django chain it.
        wanted += [getattr(link, "orig", None), link.__cause__]
    return None


def _refused(state: str, code: str | None, field: str | None, message: str | None) -> Refused:
    status = int(state[2:]) if state[2:].isdigit() else 422
    field = field or ""
    text = (message or "refused").removeprefix(f"{field}: ")
    return Refused(code or "refused", field, text, status)

"""The statements that nearly all requests come to, on connections that are kept for them and spoken to by libpq.

A pool that lends, a cursor, and a socket that the event loop learns of and forgets again cost a process more than
the email that is stored. So a connection is borrowed for a second of statements, the loop watches its socket all that
time, and statements go as libpq takes them: prepared under a name of their own, parameters and answers as text.

What can go wrong, and how it ends:
- The server closed the connection while nobody used it. Its socket tells before anything is sent on it; it goes back
  to the pool, which makes another, and no statement is lost. Nobody listens here, so a server has nothing else to say
  between two statements but that a parameter changed; a connection with something to read is tried first.
- The connection breaks under a statement: psycopg's OperationalError, without an SQLSTATE unless the server still said
  why. Whether the statement was committed is not known, and it is not sent again from here.
- Who waits is cancelled in the middle of a statement. The connection is closed, for its answer is another's.
- A pooler sits in between, which may have each statement run on another connection of its own. Then nothing is
  prepared (see `database`).
- The pool has no connection to spare for long (`keep` is False): each goes back after its statement.
"""

from __future__ import annotations

import asyncio
import re
import select
from collections.abc import Mapping
from weakref import WeakKeyDictionary

import psycopg
from psycopg import errors
from psycopg.pq import ExecStatus, TransactionStatus
from psycopg.pq.abc import PGresult

from pgmail.errors import DatabaseAway
from pgmail.sqlfiles import Query
from pgmail.store.database import Connection, Database
from pgmail.store.faults import translate

KEEP_SECONDS = 1.0  # then the pool sees the connection again, which looks at its age
_DEAD_IN_A_ROW = 20  # connections found dead before the database is taken to be away
_PLACE = re.compile(r"%\((\w+)\)s")
_DONE = frozenset({ExecStatus.TUPLES_OK, ExecStatus.COMMAND_OK})

Row = tuple[str | None, ...]


class Statement:
    """A named query as libpq takes it: `$1` for each parameter's name, in the order in which they come first."""

    __slots__ = ("name", "names", "text")

    def __init__(self, query: Query) -> None:
        self.names = tuple(dict.fromkeys(_PLACE.findall(query.text)))
        places = {name: f"${number}" for number, name in enumerate(self.names, 1)}
        self.text = _PLACE.sub(lambda found: places[found[1]], query.text).replace("%%", "%").encode()
        self.name = f"pgmail_{query.name}".encode()


class Hotline:
    """Runs statements, each a transaction of its own. For one event loop."""

    def __init__(self, database: Database, *, keep: bool) -> None:
        """`database` lends connections untried. `keep` them for as long as they are busy: it is for nobody else."""
        self._database = database
        self._keep = keep
        self._free: list[_Held] = []
        self._asking = 0
        self._prepared: WeakKeyDictionary[Connection, set[bytes]] = WeakKeyDictionary()

    async def rows(self, statement: Statement, values: Mapping[str, str]) -> list[Row]:
        """Run a statement and return its rows, each value as text.

        Raises DatabaseAway and Refused as `Database` does, and psycopg's errors that are none of these.
        """
        try:
            held = await self._take()
            try:
                return await held.run(statement, values)
            finally:
                await self._give(held)
        except Exception as error:
            if (known := translate(error)) is not None:
                raise known from error
            raise

    async def close(self) -> None:
        """Give all connections back to the pool. Statements under way give theirs back when they end."""
        self._keep = False
        while self._free:
            await self._return(self._free.pop())

    async def _take(self) -> _Held:
        """Return a connection that is not known to be dead. Costs no round trip as long as all is well."""
        for _ in range(_DEAD_IN_A_ROW):
            held = self._free.pop() if self._free else await self._borrow()
            try:
                if not held.spoke() or await held.answers():
                    return held
            except BaseException:
                await self._return(held)
                raise
            await self._return(held)
        raise DatabaseAway("connections are closed as soon as they are made")

    async def _borrow(self) -> _Held:
        self._asking += 1
        try:
            connection = await self._database.borrow()
        finally:
            self._asking -= 1
        return _Held(connection, self._prepared.setdefault(connection, set()))

    async def _give(self, held: _Held) -> None:
        """Keep a connection for the next statement, unless it is broken, was kept long, or somebody waits for one."""
        if self._keep and not self._asking and held.lives and held.since + KEEP_SECONDS > held.loop.time():
            self._free.append(held)
        else:
            await self._return(held)

    async def _return(self, held: _Held) -> None:
        held.forget()
        await self._database.give_back(held.connection)


class _Held:
    """A borrowed connection, its socket watched by the loop."""

    __slots__ = (
        *(
            "_answer",
            "_encoding",
            "_fileno",
            "_full",
            "_pgconn",
            "_poll",
            "_prepared",
            "_prepares",
            "_results",
        ),
        *("_watched", "connection", "loop", "since"),
    )

    def __init__(self, connection: Connection, prepared: set[bytes]) -> None:
        self.connection = connection
        self.loop = asyncio.get_running_loop()
        self.since = self.loop.time()
        self._pgconn = connection.pgconn
        self._fileno = connection.fileno()
        self._encoding = connection.info.encoding
        self._prepares = connection.prepare_threshold is not None
        self._prepared = prepared
        self._answer: asyncio.Future[None] | None = None
        self._results: list[PGresult] = []
        self._poll = select.poll()
        self._poll.register(self._fileno, select.POLLIN)
        self._watched = False
        self._full = False  # its socket takes no more for the moment

    @property
    def lives(self) -> bool:
        """Whether the connection is not known to be broken, and waits for a statement."""
        return self._pgconn.transaction_status == TransactionStatus.IDLE

    def spoke(self) -> bool:
        """Tell whether the server said something that nobody asked for."""
        return bool(self._poll.poll(0))

    async def answers(self) -> bool:
        """Tell whether the server answers. A connection on which it does not is closed."""
        self.forget()
        try:
            await self.connection.execute(b"")
        except psycopg.OperationalError:
            await self.connection.close()
            return False
        return True

    def forget(self) -> None:
        """Have the loop watch the socket no longer."""
        if self._watched:
            self._watched = self._full = False
            self.loop.remove_reader(self._fileno)
            self.loop.remove_writer(self._fileno)

    async def run(self, statement: Statement, values: Mapping[str, str]) -> list[Row]:
        """Run a statement and return its rows. Raises psycopg's errors."""
        given = [values[name].encode(self._encoding) for name in statement.names]
        try:
            return await self._ask(statement, given)
        except errors.InvalidSqlStatementName:
            # Nothing ran. psycopg forgets all that is prepared after a rollback of its own, where the pool is shared.
            self._prepared.clear()
            return await self._ask(statement, given)

    async def _ask(self, statement: Statement, given: list[bytes]) -> list[Row]:
        if not self._prepares:
            self._pgconn.send_query_params(statement.text, given)
        else:
            if statement.name not in self._prepared:
                self._pgconn.send_prepare(statement.name, statement.text)
                await self._result()
                self._prepared.add(statement.name)
            self._pgconn.send_query_prepared(statement.name, given)
        return _rows(await self._result(), self._encoding)

    async def _result(self) -> PGresult:
        """Wait for the answer to what was sent. Raises psycopg's errors."""
        if not self._watched:
            self._watched = True
            self.loop.add_reader(self._fileno, self._read)
        self._results = []
        self._answer = self.loop.create_future()
        self._write()
        try:
            await self._answer
        except asyncio.CancelledError:
            self.forget()
            await self.connection.close()
            raise
        except psycopg.Error:
            # What the server said before it hung up says more.
            if not any(result.status == ExecStatus.FATAL_ERROR for result in self._results):
                raise
        finally:
            self._answer = None
        result = self._results[-1]
        if result.status in _DONE:
            return result
        error = errors.error_from_result(result, encoding=self._encoding)
        if error.sqlstate is None:  # libpq's own words, and so of a connection that broke
            raise psycopg.OperationalError(str(error))
        raise error

    def _write(self) -> None:
        """Send what libpq has not sent yet; a large statement goes piece by piece."""
        try:
            if self._pgconn.flush():
                self._full = True
                self.loop.add_writer(self._fileno, self._write)
            elif self._full:
                self._full = False
                self.loop.remove_writer(self._fileno)
        except psycopg.Error as error:
            self._broke(error)

    def _read(self) -> None:
        """Take in what the server said."""
        if self._answer is None or self._answer.done():
            self.forget()  # it is heard before the next statement
            return
        try:
            # To the end of what there is: uvloop tells of a socket's error once only, however much lies before it.
            while True:
                self._pgconn.consume_input()
                while not self._pgconn.is_busy():
                    result = self._pgconn.get_result()
                    if result is None:
                        self._answer.set_result(None)
                        return
                    self._results.append(result)
                if not self.spoke():
                    return
        except psycopg.Error as error:
            self._broke(error)

    def _broke(self, error: psycopg.Error) -> None:
        self.forget()
        if self._answer is not None and not self._answer.done():
            self._answer.set_exception(error)


def _rows(result: PGresult, encoding: str) -> list[Row]:
    columns = range(result.nfields)
    return [
        tuple(_text(result.get_value(row, column), encoding) for column in columns)
        for row in range(result.ntuples)
    ]


def _text(value: bytes | None, encoding: str) -> str | None:
    return None if value is None else value.decode(encoding)

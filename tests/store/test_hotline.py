"""Statements of the hot path: connections are kept, and none that broke is used or costs an email."""

import asyncio
import contextlib
import socket
import struct
import threading
from uuid import uuid4

import psycopg
import pytest
import uvloop

from pgmail.errors import DatabaseAway
from pgmail.sqlfiles import Query
from pgmail.store import emails
from pgmail.store.database import Database
from pgmail.store.hotline import Hotline, Statement
from pgmail.store.keys import Caller
from tests.waiting import eventually
from tests.worker.cable import cable_to


def statement(text, name="said"):
    return Statement(Query(name, "many", text, "a test"))


ECHO = statement("select %(b)s::text, %(a)s, nullif(%(a)s, 'x') union all select %(a)s::text, '%%', %(b)s")
LENGTH = statement("select length(%(text)s)::text, %(text)s::text", "length")
PID = statement("select pg_backend_pid()::text", "pid")
NAPS = statement("select pg_sleep(%(seconds)s::float8)::text", "naps")
SENT = statement("select count(*)::text from pg_prepared_statements where name = 'pgmail_pid'", "sent")
FAILS = statement("select (1 / %(n)s::integer)::text", "fails")


@contextlib.asynccontextmanager
async def hotline(dsn, *, keep=True, high=2, **pool):
    database = Database(dsn, name="hot", low=0, high=high, wait_seconds=5.0, **pool)
    await database.open()
    made = Hotline(database, keep=keep)
    try:
        yield made
    finally:
        await made.close()
        await database.close()


def lent(line):
    """How often the pool was asked for a connection."""
    return line._database._pool.get_stats()["requests_num"]


def end(db, pid):
    with psycopg.connect(db.superuser_dsn, autocommit=True) as connection:
        connection.execute("select pg_terminate_backend(%s::integer, 10000)", [pid])


@pytest.mark.parametrize("keep", [True, False])
async def test_values_and_answers_are_text_whatever_is_in_them(db, keep):
    async with hotline(db.dsn, keep=keep) as line:
        for a, b in (("x", "%(a)s"), ("", "'\\ \n\u20ac"), ("x", "$1")):
            found = await line.rows(ECHO, {"a": a, "b": b, "unused": "?"})
            assert found == [(b, a, None if a == "x" else a), (a, "%", b)]


async def test_a_large_statement_and_its_large_answer_pass_piece_by_piece(db):
    text = "0123456789€" * 800_000
    async with hotline(db.dsn) as line:
        assert await line.rows(LENGTH, {"text": text}) == [(str(len(text)), text)]
        assert await line.rows(LENGTH, {"text": "after"}) == [("5", "after")]


async def test_a_kept_connection_is_asked_for_once(db, monkeypatch):
    monkeypatch.setattr("pgmail.store.hotline.KEEP_SECONDS", 600.0)
    async with hotline(db.dsn) as line:
        first = await line.rows(PID, {})
        assert {tuple(await line.rows(PID, {})) for _ in range(20)} == {tuple(first)}
        assert lent(line) == 1


async def test_a_connection_that_was_kept_long_is_shown_to_its_pool(db, monkeypatch):
    monkeypatch.setattr("pgmail.store.hotline.KEEP_SECONDS", 0.0)
    async with hotline(db.dsn) as line:
        found = {(await line.rows(PID, {}))[0] for _ in range(5)}
        assert (len(found), lent(line)) == (1, 5)
        assert await line.rows(SENT, {}) == [("1",)]


async def test_nobody_waits_for_a_connection_that_is_only_kept(db):
    async with hotline(db.dsn, high=1) as line:
        async with asyncio.timeout(30):
            await asyncio.gather(*(line.rows(PID, {}) for _ in range(20)))
        assert len(line._free) <= 1
    async with hotline(db.dsn, high=1, keep=False) as line:
        await line.rows(PID, {})
        async with line._database.connection() as connection:
            await connection.execute("select 1")


async def test_a_connection_closed_while_nobody_used_it_is_replaced_unnoticed(db):
    async with hotline(db.dsn) as line:
        for _ in range(3):
            ((pid,),) = await line.rows(PID, {})
            end(db, pid)
        ((new,),) = await line.rows(PID, {})
        assert new != pid


async def test_a_connection_ended_under_a_statement_says_so_and_is_used_no_more(db):
    async with hotline(db.dsn) as line:
        ((pid,),) = await line.rows(PID, {})
        asked = asyncio.create_task(line.rows(NAPS, {"seconds": "60"}))
        await asyncio.to_thread(under_way, db, pid)
        await asyncio.to_thread(end, db, pid)
        with pytest.raises(DatabaseAway) as caught:
            await asked
        assert isinstance(caught.value.__cause__, psycopg.errors.AdminShutdown)
        assert await line.rows(PID, {}) != [(pid,)]


async def test_a_wire_that_is_cut_under_a_statement_is_told_without_words_of_the_server(db):
    async with cable_to(db.dsn) as cable, hotline(cable.dsn(db.dsn)) as line:
        ((pid,),) = await line.rows(PID, {})
        asked = asyncio.create_task(line.rows(NAPS, {"seconds": "60"}))
        await asyncio.to_thread(under_way, db, pid)
        cable.cut()
        with pytest.raises(DatabaseAway) as caught:
            await asked
        assert isinstance(caught.value.__cause__, psycopg.OperationalError)
        assert caught.value.__cause__.sqlstate is None
    end(db, pid)


async def test_the_answer_to_who_no_longer_waits_is_nobody_elses(db):
    async with hotline(db.dsn, high=1) as line:
        ((pid,),) = await line.rows(PID, {})
        asked = asyncio.create_task(line.rows(NAPS, {"seconds": "0.2"}))
        await asyncio.to_thread(under_way, db, pid)
        asked.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asked
        assert await line.rows(PID, {}) != [(pid,)]


async def test_a_statement_that_fails_leaves_its_connection_fit(db):
    async with hotline(db.dsn) as line:
        pid = await line.rows(PID, {})
        with pytest.raises(psycopg.errors.DivisionByZero):
            await line.rows(FAILS, {"n": "0"})
        assert await line.rows(FAILS, {"n": "1"}) == [("1",)]
        assert await line.rows(PID, {}) == pid


async def test_nothing_is_prepared_behind_a_pooler(db, monkeypatch):
    async def behind(_):
        return True

    async with hotline(db.dsn) as line:
        await line.rows(PID, {})
        assert await line.rows(SENT, {}) == [("1",)]
    monkeypatch.setattr("pgmail.store.database.pooled", behind)
    async with hotline(db.dsn) as line:
        await line.rows(PID, {})
        assert await line.rows(SENT, {}) == [("0",)]


async def test_what_is_kept_goes_back_at_the_end(db):
    async with hotline(db.dsn) as line:
        await line.rows(PID, {})
        await line.close()
        assert line._database._pool.get_stats()["pool_available"] == 1
        await line.rows(PID, {})
        await eventually(lambda: line._database._pool.get_stats()["pool_available"] == 1)


async def test_a_statement_that_is_no_longer_prepared_is_prepared_anew(db):
    # psycopg forgets all that is prepared on a connection after a rollback, where the pool is shared.
    async with hotline(db.dsn, high=1, keep=False) as line:
        pid = await line.rows(PID, {})
        async with line._database.connection() as connection:
            await connection.execute("deallocate all")
        assert await line.rows(PID, {}) == pid
        assert await line.rows(SENT, {}) == [("1",)]


async def test_a_connection_in_the_midst_of_a_statement_is_not_kept(monkeypatch):
    def makes_no_sense(held):
        held._broke(psycopg.OperationalError("what was read makes no sense"))

    monkeypatch.setattr("pgmail.store.hotline._Held._read", makes_no_sense)
    async with solitary(last_word(b"57P01")) as database:
        line = Hotline(database, keep=True)
        with pytest.raises(DatabaseAway):
            await line.rows(PID, {})
        assert (line._free, database.returned) == ([], 1)


async def test_a_trial_that_fails_oddly_takes_no_connection_along(monkeypatch):
    async def odd(_):
        raise RuntimeError("odd")

    monkeypatch.setattr("pgmail.store.hotline._Held.spoke", lambda _: True)
    monkeypatch.setattr("pgmail.store.hotline._Held.answers", odd)
    async with solitary(b"") as database:
        with pytest.raises(RuntimeError):
            await Hotline(database, keep=True).rows(PID, {})
        assert database.returned == 1


def said(kind, body):
    """A message as PostgreSQL writes it."""
    return kind + struct.pack(">i", len(body) + 4) + body


def last_word(code):
    return said(b"E", b"SFATAL\0VFATAL\0C%s\0Mended\0\0" % code)


@pytest.mark.parametrize("word", [last_word(b"57P01"), b"T\0\0"], ids=["fatal", "part"])
@pytest.mark.parametrize("loop", [asyncio.new_event_loop, uvloop.new_event_loop])
def test_a_word_and_a_reset_that_arrive_together_are_both_heard(loop, word):
    """What a process finds that was busy meanwhile. uvloop tells of a socket in error once."""

    async def asked():
        async with solitary(word, at_once=False) as database:
            statement = asyncio.create_task(Hotline(database, keep=True).rows(PID, {}))
            await database.lent.wait()
            await asyncio.sleep(0)
            database.busy_until_it_reset()
            async with asyncio.timeout(10):
                with pytest.raises(DatabaseAway):
                    await statement

    with asyncio.Runner(loop_factory=loop) as runner:
        runner.run(asked())


class Solitary:
    """A database with one connection to a port."""

    def __init__(self, server, word):
        self.port = server.getsockname()[1]
        self.lent = asyncio.Event()
        self.go = threading.Event()
        self.peer = threading.Thread(target=says_and_resets, args=(server, word, self.go))
        self.peer.start()
        self.returned = 0

    async def borrow(self):
        dsn = f"host=127.0.0.1 port={self.port} user=x dbname=x sslmode=disable gssencmode=disable"
        connection = await psycopg.AsyncConnection.connect(dsn, autocommit=True)
        self.lent.set()
        return connection

    async def give_back(self, connection):
        self.returned += 1
        await connection.close()

    def busy_until_it_reset(self):
        """Keep the event loop from hearing anything until all has arrived."""
        self.go.set()
        self.peer.join(10)
        assert not self.peer.is_alive()


@contextlib.asynccontextmanager
async def solitary(word, *, at_once=True):
    with socket.create_server(("127.0.0.1", 0)) as server:
        database = Solitary(server, word)
        if at_once:
            database.go.set()
        yield database
        database.go.set()
        database.peer.join()


async def test_what_a_pooler_says_of_a_server_that_broke_leaves_open_whether_an_email_is_stored():
    async with solitary(last_word(b"08P01")) as database:
        line = Hotline(database, keep=True)
        with pytest.raises(emails.InDoubt):
            await emails.send_group(line, Caller(1, uuid4(), "app"), ["{}"], lock_ms=50, repeatable=False)


def says_and_resets(server, word, go):
    """Greet one client as PostgreSQL does; answer its statement by a last word, or part of one, and a reset."""
    client, _ = server.accept()
    client.recv(65_536)
    client.sendall(
        said(b"R", bytes(4))
        + said(b"S", b"client_encoding\0UTF8\0")
        + said(b"S", b"server_version\x0018.0\0")
        + said(b"K", bytes(8))
        + said(b"Z", b"I")
    )
    client.recv(65_536)
    go.wait(10)
    client.sendall(word)
    client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    client.close()


def under_way(db, pid):
    """Return when the statement of a connection sleeps."""
    with psycopg.connect(db.superuser_dsn, autocommit=True) as watcher:
        question = "select wait_event = 'PgSleep' from pg_stat_activity where pid = %s::integer"
        while not (watcher.execute(question, [pid]).fetchone() or [False])[0]:
            pass

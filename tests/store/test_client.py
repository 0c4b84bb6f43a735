"""The Python client on every connection that it knows, against a real database."""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import django
import psycopg
import psycopg.rows
import pytest
import sqlalchemy
from django.conf import settings as django_settings
from django.db import connections as django_connections
from sqlalchemy.ext.asyncio import create_async_engine
from sqlalchemy.orm import Session, scoped_session, sessionmaker

import pgmail
from tests.corpus import cases

GOOD = {"sender": "shop@example.com", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}


class Driver:
    """One kind of connection under test: what the client gets, and how its owner commits."""

    def __init__(self, connection, run, commit, rollback):
        self.connection = connection
        self._steps = {"run": run, "commit": commit, "rollback": rollback}

    async def _do(self, step, *args):
        answer = self._steps[step](*args)
        return await answer if inspect.isawaitable(answer) else answer

    async def run(self, statement):
        return await self._do("run", statement)

    async def commit(self):
        await self._do("commit")

    async def rollback(self):
        await self._do("rollback")

    async def client(self, name, *args, **kwargs):
        answer = getattr(pgmail, name)(self.connection, *args, **kwargs)
        return await answer if inspect.isawaitable(answer) else answer


def url(db, driver):
    return db.dsn_for("producer").replace("postgresql://", f"postgresql+{driver}://")


@asynccontextmanager
async def psycopg_connection(db):
    with db.connect("producer", autocommit=False) as c:
        yield Driver(c, c.execute, c.commit, c.rollback)


@asynccontextmanager
async def psycopg_cursor(db):
    with db.connect("producer", autocommit=False) as c, c.cursor() as cursor:
        yield Driver(cursor, c.execute, c.commit, c.rollback)


@asynccontextmanager
async def psycopg_raw_cursors(db):
    with db.connect("producer", autocommit=False, cursor_factory=psycopg.RawCursor) as c:
        yield Driver(c, c.execute, c.commit, c.rollback)


@asynccontextmanager
async def psycopg_async(db):
    async with await db.aconnect("producer", autocommit=False) as c:
        yield Driver(c, c.execute, c.commit, c.rollback)


@asynccontextmanager
async def psycopg_async_cursor(db):
    async with await db.aconnect("producer", autocommit=False) as c, c.cursor() as cursor:
        yield Driver(cursor, c.execute, c.commit, c.rollback)


@asynccontextmanager
async def sqlalchemy_connection(db):
    engine = sqlalchemy.create_engine(url(db, "psycopg"))
    with engine.connect() as c:
        yield Driver(c, c.exec_driver_sql, c.commit, c.rollback)
    engine.dispose()


@asynccontextmanager
async def sqlalchemy_session(db):
    engine = sqlalchemy.create_engine(url(db, "psycopg"))
    with Session(engine) as s:
        yield Driver(s, lambda text: s.execute(sqlalchemy.text(text)), s.commit, s.rollback)
    engine.dispose()


@asynccontextmanager
async def sqlalchemy_scoped_session(db):
    engine = sqlalchemy.create_engine(url(db, "psycopg"))
    s = scoped_session(sessionmaker(engine))
    yield Driver(s, lambda text: s.execute(sqlalchemy.text(text)), s.commit, s.rollback)
    s.remove()
    engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_connection(db, driver="psycopg_async"):
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import create_async_engine

    engine = create_async_engine(url(db, driver))
    async with engine.connect() as c:
        yield Driver(c, c.exec_driver_sql, c.commit, c.rollback)
    await engine.dispose()


@asynccontextmanager
async def sqlalchemy_async_session(db):
    pytest.importorskip("greenlet")
    from sqlalchemy.ext.asyncio import AsyncSession, create_async_engine

    engine = create_async_engine(url(db, "asyncpg"))
    async with AsyncSession(engine) as s:
        yield Driver(s, lambda text: s.execute(sqlalchemy.text(text)), s.commit, s.rollback)
    await engine.dispose()


def sqlalchemy_over_asyncpg(db):
    return sqlalchemy_async_connection(db, "asyncpg")


@asynccontextmanager
async def django_connection(db):
    if not django_settings.configured:
        django_settings.configure(USE_TZ=True)
        django.setup()
    from django.db import connection, connections
    from django.db.backends.postgresql.base import DatabaseWrapper

    address = psycopg.conninfo.conninfo_to_dict(db.dsn_for("producer"))
    facts = {
        "ENGINE": "django.db.backends.postgresql",
        "NAME": address["dbname"],
        "USER": address["user"],
        "PASSWORD": address["password"],
        "HOST": address["host"],
        "PORT": address["port"],
        "OPTIONS": {},
        "TIME_ZONE": None,
        "CONN_MAX_AGE": 0,
        "CONN_HEALTH_CHECKS": False,
        "AUTOCOMMIT": False,
        "ATOMIC_REQUESTS": False,
        "TEST": {},
    }
    connections["default"] = DatabaseWrapper(facts, "default")

    def run(statement):
        with connection.cursor() as cursor:
            cursor.execute(statement)

    with pytest.MonkeyPatch.context() as patch:
        # These tests are coroutines, whatever the driver; Django is not called by two of them at once.
        patch.setenv("DJANGO_ALLOW_ASYNC_UNSAFE", "true")
        yield Driver(connection, run, connection.commit, connection.rollback)
        connection.close()


class AsyncpgTransaction:
    """asyncpg is autocommit unless told otherwise, so its owner begins."""

    def __init__(self, connection):
        self.connection = connection
        self.now = None

    async def begin(self):
        self.now = self.connection.transaction()
        await self.now.start()

    async def end(self, how):
        await getattr(self.now, how)()
        await self.begin()

    async def commit(self):
        await self.end("commit")

    async def rollback(self):
        await self.end("rollback")


@asynccontextmanager
async def asyncpg_connection(db):
    c = await asyncpg.connect(db.dsn_for("producer"))
    transaction = AsyncpgTransaction(c)
    await transaction.begin()
    yield Driver(c, c.execute, transaction.commit, transaction.rollback)
    await c.close()


@asynccontextmanager
async def asyncpg_of_a_pool(db):
    async with (
        asyncpg.create_pool(db.dsn_for("producer"), min_size=1, max_size=1) as pool,
        pool.acquire() as c,
    ):
        transaction = AsyncpgTransaction(c)
        await transaction.begin()
        yield Driver(c, c.execute, transaction.commit, transaction.rollback)
        await transaction.now.rollback()


DRIVERS = [
    psycopg_connection,
    psycopg_async,
    sqlalchemy_session,
    sqlalchemy_async_session,
    django_connection,
    asyncpg_connection,
]
VARIANTS = [
    psycopg_cursor,
    psycopg_raw_cursors,
    psycopg_async_cursor,
    sqlalchemy_connection,
    sqlalchemy_scoped_session,
    sqlalchemy_async_connection,
    sqlalchemy_over_asyncpg,
    asyncpg_of_a_pool,
]


@pytest.fixture(params=DRIVERS, ids=lambda made: made.__name__)
async def driver(request, db) -> AsyncIterator[Driver]:
    """Each driver in its usual form."""
    async with request.param(db) as made:
        yield made


@pytest.fixture(params=DRIVERS + VARIANTS, ids=lambda made: made.__name__)
async def any_driver(request, db) -> AsyncIterator[Driver]:
    """Each driver in all its forms, for what is the heart of the matter."""
    async with request.param(db) as made:
        yield made


@pytest.fixture
def stored(db):
    """How many emails others can see."""
    with db.connect() as connection:
        yield lambda: connection.execute("select count(*) from pgmail.message").fetchone()[0]


async def test_a_committed_send_is_enqueued_once_and_a_rolled_back_one_not_at_all(any_driver, stored):
    await any_driver.client("send", **GOOD)
    await any_driver.rollback()
    assert stored() == 0
    email_id = await any_driver.client("send", **GOOD)
    assert type(email_id) is UUID
    assert stored() == 0  # nothing was committed behind the application's back
    await any_driver.commit()
    assert stored() == 1


async def test_a_rollback_to_a_savepoint_takes_its_mail_back_and_keeps_the_rest(driver, stored):
    await driver.client("send", **GOOD)
    await driver.run("savepoint here")
    await driver.client("send", **GOOD)
    await driver.run("rollback to savepoint here")
    await driver.commit()
    assert stored() == 1


async def test_an_email_refused_before_the_database_leaves_the_transaction_usable(driver, stored):
    await driver.client("send", **GOOD)
    with pytest.raises(pgmail.Refused) as refused:
        await driver.client("send", **GOOD | {"to": ["ada@example.org", "nobody"]})
    assert (refused.value.code, refused.value.field) == ("invalid_address", "/to/1")
    await driver.client("send", **GOOD)
    await driver.commit()
    assert stored() == 2


async def test_what_only_the_database_knows_comes_out_as_the_same_error_from_every_driver(any_driver, stored):
    await any_driver.client("send", **GOOD)
    await any_driver.run("savepoint here")
    with pytest.raises(pgmail.Refused) as refused:
        await any_driver.client("send", **GOOD | {"stream": "nowhere"})
    found = refused.value
    assert (found.code, found.field, found.status) == ("unknown_stream", "/stream", 422)
    assert "nowhere" in found.message
    assert not found.message.startswith("/stream")
    await any_driver.run("rollback to savepoint here")
    await any_driver.commit()
    assert stored() == 1


async def test_a_batch_is_enqueued_in_one_statement_and_in_order(driver, stored):
    batch = [GOOD | {"to": f"user{n}@example.org", "from": GOOD["sender"]} for n in range(3)]
    for body in batch:
        del body["sender"]
    sent = await driver.client("send_many", batch)
    await driver.commit()
    assert [one.position for one in sent] == [0, 1, 2]
    assert stored() == 3
    standing = await driver.client("status", sent[2].id)
    assert [one.address for one in standing] == ["user2@example.org"]


async def test_status_cancel_and_reschedule_speak_of_the_same_email(driver):
    later = datetime.now(UTC) + timedelta(hours=2)
    email_id = await driver.client("send", **GOOD, scheduled_at=later)
    (standing,) = await driver.client("status", email_id)
    assert (standing.state, standing.phase, standing.role) == ("scheduled", "queued", "to")
    assert standing.due_at == later
    assert standing.message_id == email_id
    moved = await driver.client("reschedule", str(email_id), later + timedelta(hours=1))
    assert moved == pgmail.Change("rescheduled", 1, 0)
    (standing,) = await driver.client("status", standing.recipient_id)
    assert standing.due_at == later + timedelta(hours=1)
    assert await driver.client("cancel", email_id, "a mistake") == pgmail.Change("cancelled", 1, 0)
    (standing,) = await driver.client("status", email_id)
    assert (standing.state, standing.phase) == ("cancelled", "failed")
    assert "a mistake" in standing.reason
    assert await driver.client("reschedule", email_id, "in 5 minutes") == pgmail.Change("too_late", 0, 1)


async def test_an_id_that_is_not_here_is_not_found(driver):
    with pytest.raises(pgmail.Refused) as refused:
        await driver.client("status", uuid4())
    assert (refused.value.code, refused.value.status) == ("not_found", 404)


async def test_a_fault_that_is_not_ours_stays_the_drivers_own(driver):
    await driver.run("set local search_path = pg_catalog")
    await driver.run("set local statement_timeout = 1")
    batch = [
        {"from": "shop@example.com", "to": f"u{n}@example.org", "subject": "x", "text": "x"}
        for n in range(999)
    ]
    with pytest.raises(Exception, match="statement timeout") as caught:
        await driver.client("send_many", batch)
    assert not isinstance(caught.value, pgmail.PgmailError)
    await driver.rollback()


async def test_a_row_factory_of_the_application_does_not_matter(db):
    class Own:
        def __init__(self, *, nothing):
            pass

    with db.connect("producer", row_factory=psycopg.rows.class_row(Own)) as connection:
        assert pgmail.status(connection, pgmail.send(connection, **GOOD))


async def test_a_codec_for_jsonb_does_not_matter(db):
    connection = await asyncpg.connect(db.dsn_for("producer"))
    try:
        for kind in ("json", "jsonb"):
            await connection.set_type_codec(kind, encoder=repr, decoder=len, schema="pg_catalog")
        assert await pgmail.status(connection, await pgmail.send(connection, **GOOD))
        assert (await pgmail.cancel(connection, await pgmail.send(connection, **GOOD))).reached == 1
    finally:
        await connection.close()


async def test_a_cursors_own_result_is_left_alone(db):
    with db.connect("producer") as connection, connection.cursor() as cursor:
        cursor.execute("select 42")
        pgmail.send(cursor, **GOOD)
        assert cursor.fetchone() == (42,)


async def test_an_atomic_block_of_django_decides(db, stored):
    async with django_connection(db) as driver:
        from django.db import transaction

        driver.connection.set_autocommit(True)

        def order(*, fail):
            with transaction.atomic():
                pgmail.send(driver.connection, **GOOD)
                if fail:
                    raise LookupError

        order(fail=False)
        with pytest.raises(LookupError):
            order(fail=True)
        with transaction.atomic():
            with pytest.raises(pgmail.Refused), transaction.atomic():
                pgmail.send(driver.connection, **GOOD, stream="nowhere")
            pgmail.send(driver.connection, **GOOD)
        assert stored() == 2


async def test_a_nested_transaction_of_sqlalchemy_survives_a_refusal(db, stored):
    engine = sqlalchemy.create_engine(url(db, "psycopg"))
    with Session(engine) as session, session.begin():
        pgmail.send(session, **GOOD)
        with pytest.raises(pgmail.Refused), session.begin_nested():
            pgmail.send(session, **GOOD, stream="nowhere")
        pgmail.send(session, **GOOD)
    engine.dispose()
    assert stored() == 2


async def test_a_pipeline_of_psycopg_may_be_open(db, stored):
    with db.connect("producer", autocommit=False) as connection, connection.pipeline():
        pgmail.send(connection, **GOOD)
        connection.commit()
    assert stored() == 1


@pytest.mark.parametrize("wrong", [None, 7, "postgresql://localhost/x", object()])
def test_what_is_no_connection_is_a_type_error_that_names_those_it_takes(wrong):
    with pytest.raises(TypeError, match=r"asyncpg.*SQLAlchemy.*django"):
        pgmail.send(wrong, **GOOD)


@pytest.mark.parametrize(
    "wrong",
    [
        sqlalchemy.create_engine("postgresql+psycopg://"),
        sessionmaker(),
        create_async_engine("postgresql+asyncpg://"),
        django_connections,
        psycopg,
    ],
)
def test_what_only_makes_connections_is_refused_as_well(wrong):
    with pytest.raises(
        TypeError, match=r"(Engine|sessionmaker|Handler|module) is not a connection.*SQLAlchemy"
    ):
        pgmail.send(wrong, **GOOD)


async def test_a_pool_is_refused_since_it_has_no_transaction(db):
    async with asyncpg.create_pool(db.dsn_for("producer"), min_size=0) as pool:
        with pytest.raises(TypeError, match="acquire a connection"):
            pgmail.send(pool, **GOOD)


async def test_the_law_holds_for_a_batch_and_names_the_position(db, stored):
    good = {"from": "shop@example.com", "to": "ada@example.org", "subject": "Hi", "text": "Hello"}
    with db.connect("producer") as connection:
        with pytest.raises(pgmail.Refused) as refused:
            pgmail.send_many(connection, [good, good | {"to": ["x"]}])
        assert (refused.value.code, refused.value.field) == ("invalid_address", "/1/to/0")
        with pytest.raises(pgmail.Refused) as refused:
            pgmail.send_many(connection, [good, good | {"stream": "nowhere"}])
        assert (refused.value.code, refused.value.field) == ("unknown_stream", "/1/stream")
        assert stored() == 0
        sent = pgmail.send_many(
            connection,
            [good | {"to": ["x"]}, good, good | {"stream": "nowhere"}, pgmail.Email(**GOOD), "what"],
            strict=False,
        )
        assert [one.position for one in sent] == [0, 1, 2, 3, 4]
        assert [one.code for one in sent] == ["invalid_address", None, "unknown_stream", None, "invalid_body"]
        assert [one.field for one in sent] == ["/to/0", None, "/stream", None, ""]
        assert [one.id is None for one in sent] == [True, False, True, False, True]
        assert pgmail.send_many(connection, []) == []
    assert stored() == 2


async def test_a_batch_with_a_key_is_sent_once(db, stored):
    with db.connect("producer") as connection:
        batch = [pgmail.Email(**GOOD), {"from": "shop@example.com"}]
        first = pgmail.send_many(connection, batch, strict=False, idempotency_key="batch-1")
        again = pgmail.send_many(connection, batch, strict=False, idempotency_key="batch-1")
        assert first == again
        with pytest.raises(pgmail.Refused) as refused:
            pgmail.send_many(connection, batch[:1] * 2, strict=False, idempotency_key="batch-1")
        assert (refused.value.code, refused.value.status) == ("idempotency_conflict", 409)
        with pytest.raises(pgmail.Refused, match="idempotency_key"):
            pgmail.send_many(connection, batch, idempotency_key=" ")
    assert stored() == 1


@pytest.mark.parametrize("wrong", ["a text", {"from": "x"}, 7, pgmail.Email(**GOOD), None])
def test_what_is_no_batch_is_refused(wrong):
    with pytest.raises(pgmail.Refused, match="list of emails"):
        pgmail.send_many(object(), wrong)


def test_a_batch_that_is_too_large_is_refused_before_it_is_looked_at():
    with pytest.raises(pgmail.Refused, match="at most 10,000") as refused:
        pgmail.send_many(object(), [None] * 10_001)
    assert refused.value.status == 413


async def test_the_whole_email_arrives(db):
    email = pgmail.Email(
        sender="Shop <shop@example.com>",
        to=[pgmail.Recipient(address="ada@example.org", name="Ada", variables={"who": "Ada"})],
        mode="personal",
        subject="Hi {{ who }}",
        text="Hello {{ who }}",
        variables={},
        attachments=[pgmail.Attachment(filename="a.bin", content=b"\x00\xff")],
        tags={"kind": "welcome"},
        metadata={"order": 7},
        idempotency_key="one",
        scheduled_at="in 5 minutes",
        expires_at=datetime.now(UTC) + timedelta(days=1),
    )
    with db.connect("producer") as connection:
        first = pgmail.send(connection, email)
        assert pgmail.send(connection, email) == first
    with db.connect() as owner:
        assert owner.execute("select body from pgmail.attachment").fetchall() == [(b"\x00\xff",)]
        assert owner.execute("select name, value from pgmail.tag").fetchall() == [("kind", "welcome")]
        (due,) = owner.execute("select due_at from pgmail.queue").fetchone()
    assert timedelta(minutes=4) < due - datetime.now(UTC) < timedelta(minutes=6)


async def test_concurrent_sends_of_one_key_are_one_email(db, stored):
    async def one():
        async with await db.aconnect("producer") as connection:
            return await pgmail.send(connection, **GOOD, idempotency_key="same")

    assert len(set(await asyncio.gather(*(one() for _ in range(4))))) == 1
    assert stored() == 1


def needs(db, case):
    """Bring the database to what a case of the corpus wants."""
    with db.connect() as owner:
        for need in case.needs:
            word, _, name = need.partition(":")
            if word == "template":
                owner.execute(
                    "select pgmail.save_template(%s, 'Hi {{ name }}', '{{ name }}', null, '{name}', '{}', true)",
                    [name],
                )
            elif word == "asset":
                owner.execute("select pgmail.save_asset(%s, 'l.png', 'image/png', 'x')", [name])
            elif word == "suppressed":
                owner.execute("select pgmail.suppress(%s)", [name])
            elif word == "used_key":
                pgmail.send(owner, **GOOD, idempotency_key=name)
            elif word == "full_stream":
                owner.execute("select pgmail.save_stream(%s, '{\"max_queued\": 0}')", [name])
            else:
                raise LookupError(need)


MATTERS = [number for number, case in enumerate(cases(datetime.now(UTC), "python")) if case.needs]


async def test_the_corpus_gets_the_same_answers_from_python(db):
    wrong = []
    with db.connect("producer") as connection:
        for case in (case for case in cases(datetime.now(UTC), "python") if not case.needs):
            wrong += judge(connection, case)
    assert not wrong


@pytest.mark.parametrize("number", MATTERS)
async def test_the_corpus_gets_the_same_answers_where_the_database_matters(db, number):
    case = cases(datetime.now(UTC), "python")[number]
    needs(db, case)
    with db.connect("producer") as connection:
        assert not judge(connection, case)


def judge(connection, case):
    try:
        pgmail.send(connection, case.body)
    except pgmail.Refused as refused:
        found = (refused.code, refused.field, refused.status)
        expected = case.expect and (case.expect.code, case.expect.field, case.expect.status)
        return [] if found == expected else [(case.name, found, expected, str(refused))]
    return [(case.name, "ok", case.expect)] if case.expect else []

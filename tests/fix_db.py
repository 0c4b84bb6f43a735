"""Databases for tests: real PostgreSQL, a fresh database for each test.

One server of each major version serves the whole run, all xdist workers included. The controller owns it;
whoever needs it first asks at the controller's desk, and it is started and its template migrated then. A run
of unit tests starts none. Should the controller be killed, the server's guard ends it.

    def test_something(db):
        with db.connect() as connection: ...             # as the owner, autocommit, rows are tuples
        with db.connect("producer") as connection: ...   # as a real role with its own password
        async with await db.aconnect("worker") as connection: ...
        some_program(db.dsn, db.dsn_for("api"))

`db` is a copy of the migrated template; `empty_db` has no pgmail schema. Tests marked `every_server` run on every
major version found here, those in tests/sql on the newest, some files on the oldest as well (`--pg 18,16` says
otherwise); the others on 18.
"""

import contextlib
import hashlib
import os
import re
import secrets
import shutil
import subprocess
import tempfile
import threading
import uuid
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from multiprocessing.connection import Client, Listener
from pathlib import Path
from typing import Any
from urllib.parse import quote

import psycopg
import pytest
from psycopg import sql

from pgmail.errors import SandboxError
from pgmail.sandbox.datafolder import FolderInUse
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import migrate

PREFIX = "pgmail_"
TEMPLATE = "pgmail_template"
EMBEDDED = (18, 16)
MEMORY_FOLDER_BYTES = 4 << 30
# Files of tests/sql that run on the oldest server, too: plans, regular expressions, locks and partitions, where
# versions differ. All of them on all servers: --pg 18,16,15.
ON_THE_OLDEST = {
    *(
        "test_plans",
        "test_plans_hot",
        "test_replies",
        "test_fast_reader",
        "test_lease",
        "test_ledger",
        "test_send",
    ),
    *(
        "test_retention",
        "test_restore",
        "test_doubt",
        "test_tokens",
        "test_erase",
        "test_settle_beside_rescue",
    ),
}
_DESK = "PYTEST_PGMAIL_DESK"
_DESK_KEY: "pytest.StashKey[Desk]" = pytest.StashKey()


@dataclass(frozen=True)
class Server:
    """A running server, as the workers see it. Roles share one password of this run."""

    major: int
    host: str
    port: int
    superuser_password: str
    role_password: str
    binaries: Path

    def dsn(self, database: str, user: str = "postgres") -> str:
        word = self.superuser_password if user == "postgres" else self.role_password
        return f"postgresql://{user}:{quote(word)}@{self.host}:{self.port}/{database}"


@dataclass
class Database:
    """One test's own database. `connect` and `aconnect` are closed with the test if it forgets."""

    name: str
    server: Server
    _open: list[Any] = field(default_factory=list)

    @property
    def dsn(self) -> str:
        """The owner's: not a superuser, may create roles."""
        return self.dsn_for("owner")

    @property
    def superuser_dsn(self) -> str:
        return self.server.dsn(self.name)

    def dsn_for(self, role: str) -> str:
        """`owner`, `api`, `worker`, `maintain`, `producer`, `reader` or `admin`."""
        return self.server.dsn(self.name, PREFIX + role)

    def connect(self, role: str = "owner", **options: Any) -> psycopg.Connection[Any]:
        """Autocommit unless told otherwise; `options` are psycopg's."""
        made = psycopg.connect(self.dsn_for(role), **({"autocommit": True} | options))
        self._open.append(made)
        return made

    async def aconnect(self, role: str = "owner", **options: Any) -> psycopg.AsyncConnection[Any]:
        made = await psycopg.AsyncConnection.connect(self.dsn_for(role), **({"autocommit": True} | options))
        self._open.append(made)
        return made

    def close(self) -> None:
        for connection in self._open:
            connection.pgconn.finish()
        self._open.clear()


class Desk:
    """In the controller: starts a server when it is first asked for, and stops them all at the end."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[int, EmbeddedPostgres] = {}
        self._answers: dict[int, Server | str] = {}
        key = secrets.token_bytes(16)
        # By default one caller may wait, and others be lost, while a server starts: workers call all at once.
        self._listener = Listener(("127.0.0.1", 0), backlog=64, authkey=key)
        os.environ[_DESK] = f"{self._listener.address[1]}:{key.hex()}"
        self._thread = threading.Thread(target=self._serve, name="test-desk", daemon=True)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            with self._listener.accept() as caller:
                major = caller.recv()
                if major is None:
                    return
                if major not in self._answers:
                    self._answers[major] = self._answer(major)
                caller.send(self._answers[major])

    def _answer(self, major: int) -> Server | str:
        try:
            return self._start(major)
        except Exception as error:  # noqa: BLE001 - the asking test shows it
            return f"{type(error).__name__}: {error} {' '.join(getattr(error, '__notes__', ()))}"

    def _start(self, major: int) -> Server:
        for slot in count():
            running = EmbeddedPostgres(
                self._folder / f"{major}-{slot}",
                major,
                durable=False,
                binaries=None if major in EMBEDDED else other_servers()[major],
                settings={"max_connections": "200"},
            )
            try:
                running.remove()  # of a run that was killed
                running.start()
            except FolderInUse:  # another run, now
                continue
            break
        self._running[major] = running
        address = running.address
        server = Server(
            major, address.host, address.port, address.password, secrets.token_hex(12), running.binaries
        )
        make_template(server)
        return server

    def close(self) -> None:
        with ask_desk() as desk:
            desk.send(None)
        self._thread.join()
        self._listener.close()
        for running in self._running.values():
            running.remove()
        with contextlib.suppress(OSError):
            self._folder.rmdir()
        del os.environ[_DESK]


def make_template(server: Server) -> None:
    """Migrate the template as an owner without superuser rights, then let every role log in."""
    owner = sql.Identifier(PREFIX + "owner")
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as admin:
        admin.execute(
            sql.SQL("create role {} login createrole password {}").format(owner, server.role_password)
        )
        admin.execute(sql.SQL("create database {} owner {}").format(sql.Identifier(TEMPLATE), owner))
        migrate.upgrade(server.dsn(TEMPLATE, PREFIX + "owner"), prefix=PREFIX)
        # A tenant that a test makes may send as anybody, as the first one may; tests of the rule set it.
        with psycopg.connect(server.dsn(TEMPLATE, PREFIX + "owner"), autocommit=True) as made:
            made.execute("alter table pgmail.tenant alter column senders set default 'any'")
        for (role,) in admin.execute(
            "select rolname from pg_roles where starts_with(rolname, %s)", [PREFIX]
        ).fetchall():
            admin.execute(
                sql.SQL("alter role {} login password {}").format(sql.Identifier(role), server.role_password)
            )


@cache
def other_servers() -> dict[int, Path]:
    """Installed PostgreSQL servers by major version, the embedded ones' versions left out."""
    places = sorted(Path("/usr/lib/postgresql").glob("*/bin"))
    if found := shutil.which("initdb"):
        places.append(Path(found).resolve().parent)
    servers = {}
    for place in places:
        if (place / "postgres").is_file() and (place / "initdb").is_file():
            said = subprocess.run(
                [place / "postgres", "--version"], capture_output=True, text=True, check=True
            )
            major = int(re.search(r"\) (\d+)", said.stdout)[1])
            if major >= 15 and major not in EMBEDDED:
                servers[major] = place
    return servers


def ask_desk() -> Any:
    port, key = os.environ[_DESK].split(":")
    return Client(("127.0.0.1", int(port)), authkey=bytes.fromhex(key))


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--pg", default="", help="major versions to test on, such as 18 or 18,16. Defaults to those found."
    )


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "every_server: runs on every PostgreSQL major version found here")
    config.addinivalue_line("markers", "one_server: runs on PostgreSQL 18 only, though it is in tests/sql")
    if not hasattr(config, "workerinput"):
        config.stash[_DESK_KEY] = Desk(_servers_folder(config.rootpath))


def _servers_folder(root: Path) -> Path:
    """Where the servers' data is: in memory where there is enough of it, for each test makes hundreds of files."""
    memory, name = Path("/dev/shm"), f"tests-{os.getuid()}"
    with contextlib.suppress(OSError):
        if shutil.disk_usage(memory).free > MEMORY_FOLDER_BYTES:
            checkout = hashlib.sha256(str(root).encode()).hexdigest()[:8]
            folder = memory / f"pgmail-{name}-{checkout}"
            folder.mkdir(exist_ok=True)
            if folder.stat().st_uid == os.getuid():
                return folder
    try:
        folder = root / ".pgmail" / name
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        folder = Path(tempfile.mkdtemp(prefix="pgmail-tests-"))
    return folder


def pytest_unconfigure(config: pytest.Config) -> None:
    if desk := config.stash.get(_DESK_KEY, None):
        desk.close()


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "pg_major" not in metafunc.fixturenames:
        return
    in_sql = metafunc.config.rootpath / "tests" / "sql" in metafunc.definition.path.parents
    marked = metafunc.definition.get_closest_marker
    if marked("every_server") or (in_sql and not marked("one_server")):
        wanted = [int(word) for word in metafunc.config.getoption("--pg").split(",") if word]
        majors = sorted({*EMBEDDED, *other_servers()}, reverse=True)
        if in_sql and not marked("every_server") and not wanted:
            oldest = {majors[-1]} if metafunc.module.__name__.rpartition(".")[2] in ON_THE_OLDEST else set()
            majors = sorted({majors[0], *oldest}, reverse=True)
        chosen = [major for major in majors if not wanted or major in wanted]
        metafunc.parametrize(
            "pg_major", chosen, ids=[f"pg{n}" for n in chosen], indirect=True, scope="session"
        )


@pytest.fixture(scope="session")
def pg_major(request: pytest.FixtureRequest) -> int:
    return getattr(request, "param", 18)


@pytest.fixture(scope="session")
def server(pg_major: int) -> Server:
    """The running server of a major version, 18 unless the test runs on every one."""
    with ask_desk() as desk:
        desk.send(pg_major)
        answer = desk.recv()
    if isinstance(answer, str):
        raise SandboxError(answer)
    return answer


@pytest.fixture(scope="session")
def server_admin(server: Server) -> Iterator[psycopg.Connection[Any]]:
    """The superuser's connection to the database `postgres`."""
    with psycopg.connect(server.dsn("postgres"), autocommit=True) as connection:
        yield connection


@pytest.fixture
def db(server: Server, server_admin: psycopg.Connection[Any]) -> Iterator[Database]:
    """A fresh copy of the migrated template."""
    yield from _fresh(server, server_admin, TEMPLATE)


@pytest.fixture
def empty_db(server: Server, server_admin: psycopg.Connection[Any]) -> Iterator[Database]:
    """A fresh database that has never heard of pgmail, owned by the role `owner`."""
    yield from _fresh(server, server_admin, "template0")


@pytest.fixture
def app(db: Database) -> psycopg.Connection[Any]:
    """An application: the producer's connection, autocommit."""
    return db.connect("producer")


@pytest.fixture
def owner(db: Database) -> psycopg.Connection[Any]:
    """The owner's connection, autocommit, to look and to arrange."""
    return db.connect()


def _fresh(server: Server, admin: psycopg.Connection[Any], template: str) -> Iterator[Database]:
    name = f"test_{uuid.uuid4().hex}"
    # file_copy asks for two checkpoints, which cost little without fsync; wal_log writes each block thrice.
    admin.execute(
        sql.SQL("create database {} template {} owner {} strategy file_copy").format(
            sql.Identifier(name), sql.Identifier(template), sql.Identifier(PREFIX + "owner")
        )
    )
    made = Database(name, server)
    try:
        yield made
    finally:
        made.close()
        admin.execute(sql.SQL("drop database {} with (force)").format(sql.Identifier(name)))

"""Database servers of a test's own, to be killed, copied and promoted; and pgmail's processes on them.

A data folder is prepared once a run (`initdb`, the migrations), and each test gets copies of it. Servers are the
embedded PostgreSQL, durable: what they acknowledged is on disk. A server keeps its port when it is started again, as a
real one does.
"""

import json
import os
import secrets
import shutil
import signal
import subprocess
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Self
from unittest import mock
from urllib.parse import quote
from uuid import uuid4

import psycopg
from psycopg import sql

from pgmail.domain.keys import make_key
from pgmail.sandbox import datafolder, postgres, programs
from pgmail.sandbox.postgres import EmbeddedPostgres
from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql.kit import one
from tests.waiting import eventually_now

Process = subprocess.Popen[str]
WORD = secrets.token_hex(8)  # the password of every role of this run
# Dead after two seconds: a test waits for that.
QUICK = {"BEAT_INTERVAL_MS": "200", "SILENCE_SECONDS": "2", "POLL_INTERVAL_MS": "200", "DRAIN_SECONDS": "8"}


class Server:
    """One server in a folder. `settings` are PostgreSQL's."""

    def __init__(self, folder: Path, **settings: str) -> None:
        self.embedded = EmbeddedPostgres(folder, settings={"max_connections": "60"} | settings)
        self.port: int | None = None

    @property
    def pgdata(self) -> Path:
        return self.embedded.data_folder / "pgdata"

    def start(self) -> Self:
        if self.port is None:
            self.port = self.embedded.start().port
        else:
            with mock.patch.object(postgres, "free_port", return_value=self.port):
                self.embedded.start()
        return self

    def stop(self) -> None:
        self.embedded.stop()

    def kill(self) -> None:
        """`kill -9` of the first process; its children notice and go."""
        os.kill(self.embedded.pid, signal.SIGKILL)
        self.embedded.stop()

    def dsn(self, role: str = "owner") -> str:
        user, word = (
            (PREFIX + role, WORD) if role != "postgres" else ("postgres", self.embedded.address.password)
        )
        return f"postgresql://{user}:{quote(word)}@127.0.0.1:{self.port}/mail"

    def connect(self, role: str = "owner", **options: Any) -> psycopg.Connection[Any]:
        return psycopg.connect(self.dsn(role), **({"autocommit": True} | options))

    def ask(self, text: str, params: Any = None, role: str = "owner") -> Any:
        with self.connect(role) as connection:
            return one(connection, text, params)

    def prepare(self) -> None:
        """Make the database, its schema and its roles."""
        with psycopg.connect(self.embedded.dsn(), autocommit=True) as admin:
            owner = sql.Identifier(PREFIX + "owner")
            admin.execute(sql.SQL("create role {} login createrole password {}").format(owner, WORD))
            admin.execute(sql.SQL("create database mail owner {}").format(owner))
            migrate.upgrade(self.dsn(), prefix=PREFIX)
            found = admin.execute("select rolname from pg_roles where starts_with(rolname, %s)", [PREFIX])
            for (role,) in found.fetchall():
                admin.execute(sql.SQL("alter role {} password {}").format(sql.Identifier(role), WORD))

    def copy_to(self, folder: Path, **settings: str) -> "Server":
        """A stopped server's folder, copied: a backup, or a new test's server."""
        made = Server(folder, **settings)
        home, runner = made.embedded.data_folder, programs.account()
        datafolder.make_own(home, runner)
        shutil.copy2(self.embedded.data_folder / "password", home / "password")
        shutil.copytree(self.pgdata, made.pgdata, symlinks=True)
        if runner:
            for path in (home, *home.rglob("*")):
                os.chown(path, runner.uid, runner.gid, follow_symlinks=False)
        return made

    def base_backup(self, folder: Path, *options: str, **settings: str) -> "Server":
        """`pg_basebackup` of the running server; with `-R` a standby of it."""
        made = Server(folder, **settings)
        home, runner = made.embedded.data_folder, programs.account()
        datafolder.make_own(home, runner)
        shutil.copy2(self.embedded.data_folder / "password", home / "password")
        if runner:
            os.chown(home / "password", runner.uid, runner.gid)
        done = subprocess.run(
            [self.embedded.binaries / "pg_basebackup", "--pgdata", made.pgdata, "--checkpoint=fast", *options,
             "--dbname", f"{self.embedded.dsn()}?application_name=standby"],
            cwd=home, capture_output=True, text=True, check=False, **self.account,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return made

    def promote(self) -> None:
        """Make a standby the primary."""
        with psycopg.connect(self.embedded.dsn(), autocommit=True) as connection:
            assert one(connection, "select pg_promote()")

    def cut(self) -> int:
        """End all connections of pgmail's; how many."""
        with psycopg.connect(self.embedded.dsn(), autocommit=True) as connection:
            return one(
                connection,
                "select count(pg_terminate_backend(pid)) from pg_stat_activity "
                "where usename like 'pgmail%' and pid <> pg_backend_pid()",
            )

    def backends(self) -> list[int]:
        """The processes of the running server but the first."""
        with psycopg.connect(self.embedded.dsn(), autocommit=True) as connection:
            return [row[0] for row in connection.execute("select pid from pg_stat_activity").fetchall()]

    @property
    def account(self) -> dict[str, Any]:
        """How to start a program as the server's account."""
        runner = programs.account()
        return {"user": runner.uid, "group": runner.gid, "extra_groups": []} if runner else {}

    def remove(self) -> None:
        self.embedded.remove()


def environment(**more: str) -> dict[str, str]:
    """Ours, without settings of pgmail."""
    return {name: word for name, word in os.environ.items() if not name.startswith("PGMAIL_")} | more


class Fleet:
    """pgmail's processes of one host, and an SMTP server that outlives them all."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.processes: list[Process] = []
        self._report = folder / "report"
        argv = ["-m", "pgmail.sandbox.sink", "--report", str(self._report), "--tarpit", "2"]
        self.sink = self._start(argv, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        self.sink_port = json.loads(self.sink.stdout.readline())["port"]

    def worker(self, dsn: str, **settings: str) -> Process:
        return self._pgmail(
            ["worker"], dsn, RELAY_URL=f"smtp://127.0.0.1:{self.sink_port}?tls=none", **settings
        )

    def maintain(self, dsn: str, **settings: str) -> Process:
        return self._pgmail(["maintain"], dsn, **settings)

    def api(self, dsn: str, **settings: str) -> "Api":
        key, hint, hashed = make_key()
        with psycopg.connect(dsn.replace("pgmail_api", "pgmail_owner"), autocommit=True) as owner:
            owner.execute("select pgmail.create_key('test', %s, %s)", [hint, hashed])
        process = self._pgmail(["api", "--port", "0"], dsn, **settings)

        def port() -> int | None:
            for line in self.log(process).splitlines():
                facts = json.loads(line)
                if facts["event"] == "listening":
                    return int(facts["port"])
            return None

        return Api(process, eventually_now(port, 30), key)

    def pgmail(self, *words: str, dsn: str) -> "subprocess.CompletedProcess[str]":
        """A command of an operator."""
        return subprocess.run(
            [sys.executable, "-m", "pgmail", *words],
            env=environment(PGMAIL_DATABASE_URL=dsn), cwd=self.folder, capture_output=True, text=True,
            check=False, timeout=60,
        )  # fmt: skip

    def log(self, process: Process) -> str:
        return (self.folder / f"log-{process.args[-1]}").read_text()

    @property
    def arrived(self) -> Counter[str]:
        """How often each Message-ID was accepted."""
        if not self._report.exists():
            return Counter()
        lines = self._report.read_text().splitlines()
        return Counter(json.loads(line)["message_id"] for line in lines)

    def end(self, process: Process) -> None:
        """Let one drain."""
        process.terminate()
        assert process.wait(20) == 0

    def close(self) -> None:
        for process in self.processes:
            if process.poll() is None:
                process.kill()
            process.wait(10)
            for pipe in (process.stdin, process.stdout):
                if pipe is not None:
                    pipe.close()

    def _pgmail(self, words: list[str], dsn: str, **settings: str) -> Process:
        env = {f"PGMAIL_{name}": word for name, word in (QUICK | settings).items()}
        return self._start(
            ["-m", "pgmail", *words],
            log=True,
            env=environment(PGMAIL_DATABASE_URL=dsn, PGMAIL_LOG_FORMAT="json", **env),
        )

    def _start(self, argv: list[str], *, log: bool = False, env: Any = None, **pipes: Any) -> Process:
        name = str(len(self.processes))
        # A word more in its arguments, which Python passes over before `-m`, names its log.
        argv = [sys.executable, *argv]
        env = env or environment()
        if log:
            with (self.folder / f"log-{name}").open("w") as file:
                made = subprocess.Popen(
                    argv, env=env, cwd=self.folder, stdin=subprocess.DEVNULL, stdout=file,
                    stderr=subprocess.STDOUT, text=True,
                )  # fmt: skip
        else:
            made = subprocess.Popen(argv, env=env, text=True, **pipes)
        made.args = [*argv, name]
        self.processes.append(made)
        return made


class Api:
    """An API process, and its key."""

    def __init__(self, process: Process, port: int, key: str) -> None:
        self.process, self.port, self.key = process, port, key

    def get(self, path: str) -> tuple[int, Any]:
        return self._call(urllib.request.Request(f"http://127.0.0.1:{self.port}{path}"))

    def send(self, to: str, key: str) -> tuple[int, Any]:
        body = {"from": "a@example.com", "to": to, "subject": "s", "text": "t"}
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.port}/emails",
            data=json.dumps(body).encode(),
            headers={
                "Authorization": f"Bearer {self.key}",
                "Content-Type": "application/json",
                "Idempotency-Key": key,
            },
        )
        return self._call(request)

    def _call(self, request: urllib.request.Request) -> tuple[int, Any]:
        try:
            with urllib.request.urlopen(request, timeout=15) as answer:
                return answer.status, json.load(answer)
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)


class Client:
    """An application that sends by HTTP, each email until it is acknowledged, as long as `with` lasts."""

    def __init__(self, *apis: Api, pause: float = 0.02) -> None:
        self.acknowledged: list[str] = []
        self.answers: Counter[int] = Counter()
        self._apis, self._pause, self._over = apis, pause, threading.Event()
        self._threads = [threading.Thread(target=self._run, args=(api,)) for api in apis]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *exc: object) -> None:
        self._over.set()
        for thread in self._threads:
            thread.join(60)

    def more(self, n: int, seconds: float = 30.0) -> None:
        """Wait for so many more acknowledgements."""
        goal = len(self.acknowledged) + n
        eventually_now(lambda: len(self.acknowledged) >= goal, seconds, what=f"answers {dict(self.answers)}")

    def _run(self, api: Api) -> None:
        while not self._over.is_set():
            key = uuid4().hex
            while True:
                try:
                    status, answer = api.send(f"{key[:12]}@d{int(key[:2], 16) % 5}.example.org", key)
                except OSError:
                    status, answer = 0, None
                self.answers[status] += 1
                if status == 200:
                    self.acknowledged.append(answer["id"])
                    break
                if self._over.is_set():
                    return
                time.sleep(0.1)
            time.sleep(self._pause)


def accounted(server: Server, fleet: Fleet, acknowledged: list[str]) -> dict[str, int]:
    """Each acknowledged email is there, the books balance, each copy has its in-doubt event; recipients by state."""
    with server.connect() as owner:
        found = {
            str(row[0])
            for row in owner.execute(
                "select id from pgmail.message where id = any(%s::uuid[])", [acknowledged]
            )
        }
        assert set(acknowledged) - found == set(), "acknowledged, and lost"
        assert one(owner, "select sum(abs(difference)) from pgmail.ledger") == 0
        for message_id, times in fleet.arrived.items():
            if times > 1:
                doubts = one(
                    owner,
                    "select count(*) from pgmail.event where type = 'email.in_doubt' and message_id = %s",
                    [message_id.partition("@")[0]],
                )
                assert doubts >= times - 1, f"{message_id} arrived {times} times and nobody said so"
        return dict(owner.execute("select state, sum(n)::int from pgmail.recount() group by 1").fetchall())


def all_settled(server: Server) -> bool:
    """Whether nothing waits."""
    return server.ask("select count(*) = 0 from pgmail.queue") is True


def prepared(folder: Path) -> Iterator[Server]:
    """A server whose folder is copied by tests; stopped."""
    made = Server(folder)
    made.start()
    try:
        made.prepare()
        made.stop()
        yield made
    finally:
        made.remove()

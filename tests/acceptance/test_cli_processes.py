"""`pgmail` as people run it: real processes, real signals, real exit codes."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import urllib.error
import urllib.request

import psycopg
import pytest

from tests.acceptance.test_processes import gone, until

PGMAIL = [sys.executable, "-m", "pgmail"]
AWAY = "postgresql://nobody@127.0.0.1:1/nothing"


def environ(**settings: str) -> dict[str, str]:
    kept = {name: text for name, text in os.environ.items() if not name.startswith("PGMAIL_")}
    return kept | {f"PGMAIL_{name.upper()}": text for name, text in settings.items()}


def pgmail(*args: str, **settings: str) -> subprocess.CompletedProcess:
    return subprocess.run(
        [*PGMAIL, *args], env=environ(**settings), capture_output=True, text=True, check=False, timeout=120
    )


@pytest.mark.parametrize(
    "words",
    [
        ["send", "--from", "a@example.com", "--to", "b@example.org", "--subject", "x", "--text", "x"],
        ["queue"],
        ["key", "create", "--name", "x"],
        ["tenant", "list"],
        ["db", "check"],
        ["db", "upgrade"],
        ["template", "publish", "x"],
    ],
    ids=" ".join,
)
def test_a_database_that_is_away_is_one_line_and_exit_code_1(words):
    done = pgmail(*words, database_url=AWAY)
    assert done.returncode == 1
    assert done.stdout == ""
    assert len(done.stderr.splitlines()) == 1
    assert done.stderr.startswith("pgmail: ")
    assert "Traceback" not in done.stderr


def test_doctor_says_that_the_database_is_away():
    done = pgmail("doctor", "--json", database_url=AWAY)
    assert done.returncode == 1
    assert [(row["check"], row["status"]) for row in json.loads(done.stdout)] == [
        ("database", "failed"),
        ("settings", "ok"),
    ]


def test_debugging_shows_the_traceback_as_well():
    done = pgmail("queue", database_url=AWAY, debug="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "pgmail: the database cannot be reached" in done.stderr


def test_wrong_settings_are_a_line_each():
    done = pgmail("queue", database_url="mysql://x", api_port="x", worker_procesess="2")
    assert done.returncode == 1
    assert len(done.stderr.splitlines()) == 3
    assert json.loads(pgmail("doctor", "--json", api_port="x").stdout)[0]["status"] == "failed"


def test_no_database_at_all_is_a_line_that_says_what_to_set():
    done = pgmail("queue")
    assert (done.returncode, len(done.stderr.splitlines())) == (1, 1)
    assert "PGMAIL_DATABASE_URL" in done.stderr
    assert "PGMAIL_DATABASE_URL" in pgmail("serve").stderr
    assert pgmail("doctor").returncode == 1


def test_config_show_names_every_setting_and_no_password():
    done = pgmail("config", "show", "--json", database_url="postgresql://me:hidden@127.0.0.1/x")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    assert rows["PGMAIL_DATABASE_URL"]["source"] == "environment"
    assert rows["PGMAIL_API_PORT"]["source"] == "default"
    assert (
        "hidden"
        not in done.stdout + pgmail("config", "show", database_url="postgresql://me:hidden@h/x").stdout
    )


def test_help_loads_nothing_heavy():
    script = (
        "import sys; from click.testing import CliRunner; from pgmail.cli.main import cli; import pgmail.app;"
        "r = CliRunner().invoke(cli, ['--help']); assert r.exit_code == 0, r;"
        "heavy = {'litestar', 'alembic', 'sqlalchemy', 'rich', 'psycopg', 'jinja2', 'aiosmtplib', 'uvicorn', 'idna'};"
        "print(sorted(heavy & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert pgmail("--version").stdout.startswith("pgmail ")


def test_a_reader_that_goes_away_is_no_failure(db):
    with subprocess.Popen(
        [*PGMAIL, "stream", "list", "--json"],
        env=environ(database_url=db.dsn),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        process.stdout.close()
        errors = process.stderr.read()
        assert process.wait(60) == 0
    assert errors == b""


class Running:
    """`pgmail` going on in the background, its log read as it comes."""

    def __init__(self, db, *args, **settings):
        self.db = db
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        facts = {
            "database_url": db.dsn,
            "worker_database_url": db.dsn_for("worker"),
            "api_database_url": db.dsn_for("api"),
            "api_port": str(self.port),
            "log_format": "json",
            "drain_seconds": "5",
            **settings,
        }
        self.process = subprocess.Popen(
            [*PGMAIL, *args], env=environ(**facts), stderr=subprocess.PIPE, text=True
        )

    def alive(self, program: str, count: int = 1) -> list[int]:
        """The ids of processes that beat, once there are so many."""

        def look():
            assert self.process.poll() is None, self.process.stderr.read()
            with psycopg.connect(self.db.dsn) as connection:
                rows = connection.execute(
                    "select pid from pgmail.worker where program = %s order by epoch", [program]
                ).fetchall()
            return [pid for (pid,) in rows] if len(rows) >= count else None

        return until(look)

    def answers(self) -> bool:
        """Wait until the API does."""

        def look():
            assert self.process.poll() is None, self.process.stderr.read()
            with (
                contextlib.suppress(urllib.error.URLError, ConnectionError),
                urllib.request.urlopen(f"http://127.0.0.1:{self.port}/health/live", timeout=5) as answer,
            ):
                return answer.status == 200
            return False

        return until(look)

    def stop(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        _, self.log = self.process.communicate(timeout=60)
        return self.process.returncode

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self.process.poll() is None:
            self.process.kill()
        self.process.wait()
        self.process.stderr.close()


def leads(db) -> bool:
    with psycopg.connect(db.dsn) as connection:
        return connection.execute("select until > now() from pgmail.leader").fetchone()[0]


def test_serve_runs_everything_and_sigterm_ends_it_with_0(db):
    with Running(db, "serve", "--processes", "2") as running:
        workers = running.alive("worker", 2)
        assert running.answers()
        until(lambda: leads(db))
        assert running.stop() == 0
        assert "Traceback" not in running.log
        assert all(gone(pid) for pid in workers)
    with psycopg.connect(db.dsn) as connection:
        assert connection.execute("select count(*) from pgmail.worker").fetchone() == (0,)


def test_a_worker_killed_under_serve_comes_back_and_all_go_when_serve_is_killed(db):
    with Running(db, "serve") as running:
        (first,) = running.alive("worker")
        running.answers()
        os.kill(first, signal.SIGKILL)
        second = until(lambda: [pid for pid in running.alive("worker") if pid != first])[-1]
        running.process.kill()
        until(lambda: gone(second))

        def closed():
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", running.port), 1):
                return False
            return True

        until(closed)


def test_several_api_processes_share_a_port(db):
    with Running(db, "api", "--processes", "2") as running:
        assert running.answers()
        assert running.stop(signal.SIGINT) == 0


def test_one_api_process_ends_with_0(db):
    with Running(db, "api") as running:
        assert running.answers()
        assert running.stop() == 0


def test_a_port_that_is_taken_is_one_line_and_exit_code_1(db):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        settings = {"database_url": db.dsn, "api_port": str(taken.getsockname()[1]), "log_level": "error"}
        for command in ("api", "serve"):
            done = pgmail(command, **settings)
            assert done.returncode == 1
            lines = [line for line in done.stderr.splitlines() if line.startswith("pgmail: ")]
            assert len(lines) == 1
            assert "cannot listen" in lines[0]
            assert "Traceback" not in done.stderr


def test_several_api_processes_need_a_port_with_a_name(db):
    done = pgmail("api", "--port", "0", "--processes", "2", database_url=db.dsn, log_level="error")
    assert (done.returncode, "name it" in done.stderr) == (1, True)


def test_maintain_leads_and_sigterm_ends_it_with_0(db):
    with Running(db, "maintain") as running:
        running.alive("maintain")
        until(lambda: leads(db))
        assert running.stop() == 0
    assert not leads(db)


def test_one_worker_drains_and_says_goodbye(db):
    with Running(db, "worker", "--concurrency", "3") as running:
        running.alive("worker")
        assert running.stop() == 0
    with psycopg.connect(db.dsn) as connection:
        assert connection.execute("select count(*) from pgmail.worker").fetchone() == (0,)


def test_workers_under_a_tree_end_with_it(db):
    with Running(db, "worker", "--processes", "2") as running:
        workers = running.alive("worker", 2)
        assert running.stop() == 0
        assert all(gone(pid) for pid in workers)

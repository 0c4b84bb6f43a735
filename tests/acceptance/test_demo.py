"""`pgmail demo` as a person runs it: real processes, a server of its own or a given one, kill -9."""

import contextlib
import json
import os
import pwd
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import psycopg
import pytest

from pgmail.sandbox import programs
from tests.acceptance.test_embedded import interpreter_of

ROOT = Path(__file__).resolve().parents[2]
PACKAGES = Path(psycopg.__file__).resolve().parents[1]
KEYS = ["messages", "recipients", "sent", "bounced", "dead", "held", "cancelled"]
KEYS += ["lost", "copies", "mails_per_s", "p50_ms", "p99_ms"]
SECONDS = 120
LINUX = pytest.mark.skipif(sys.platform != "linux", reason="looks for processes in /proc")

pytestmark = pytest.mark.timeout(300)
_started: "list[subprocess.Popen[str]]" = []


@pytest.fixture
def home() -> Iterator[Path]:
    """A folder that every account reaches; the demo's data is in it."""
    folder = Path(tempfile.mkdtemp(prefix="demo-test-")).resolve()
    folder.chmod(0o755)
    yield folder
    for pid in processes_of(folder):
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)
    while _started:
        _started.pop().communicate()
    shutil.rmtree(folder, ignore_errors=True)


def environment(home: Path, **more: str) -> dict[str, str]:
    """This process's, without settings of pgmail's or of these tests; children inherit the mark."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith("PGMAIL_")}
    return kept | {"DEMO_TEST_HOME": str(home), "PYTHONUNBUFFERED": "1"} | more


def start(home: Path, *words: str, url: str = "") -> "subprocess.Popen[str]":
    """Start `pgmail demo`; it and its children carry `home` in their environment."""
    return spawn(home, [sys.executable, "-m", "pgmail", "demo", *words], url)


def spawn(home: Path, argv: list[str], url: str = "") -> "subprocess.Popen[str]":
    process = subprocess.Popen(
        argv,
        cwd=home,
        env=environment(home, PGMAIL_DATABASE_URL=url),
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    _started.append(process)
    return process


def finish(demo: "subprocess.Popen[str]") -> tuple[int, str, str]:
    out, err = demo.communicate(timeout=SECONDS)
    return demo.returncode, out, err


def wait_for(demo: "subprocess.Popen[str]", pattern: str) -> str:
    """Read lines until one matches; the lines so far."""
    seen = ""
    for line in demo.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"{pattern} never came: {seen}\n{demo.stderr.read()}")


def processes_of(home: Path) -> list[int]:
    """Processes that were started by a demo of this folder, or work in it. Zombies have ended."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            mark = f"DEMO_TEST_HOME={home}\0".encode()
            working = (entry / "cwd").readlink().is_relative_to(home)
            if working or mark in (entry / "environ").read_bytes() + b"\0":
                found.append(int(entry.name))
    return found


def all_gone(home: Path, within_seconds: float = 15) -> bool:
    until = time.monotonic() + within_seconds
    while processes_of(home):
        if time.monotonic() > until:
            return False
        time.sleep(0.05)
    return True


def check_figures(figures: dict, messages: int) -> None:
    assert list(figures) == KEYS
    assert figures["messages"] == messages
    assert figures["recipients"] == figures["sent"] + figures["bounced"] + figures["cancelled"]
    assert figures["recipients"] > messages
    assert (figures["lost"], figures["copies"], figures["dead"], figures["held"]) == (0, 0, 0, 0)
    assert figures["bounced"] >= 1
    assert figures["cancelled"] >= 1
    assert 0 < figures["p50_ms"] <= figures["p99_ms"]


@LINUX
def test_every_recipient_is_accounted_for_and_nothing_is_left_running(home):
    taken = socket.socket()
    with taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        with contextlib.suppress(OSError):  # taken by somebody else will do as well
            taken.bind(("127.0.0.1", 8025))
            taken.listen()
        code, out, err = finish(start(home, "--messages", "60", "--json"))
    assert (code, err) == (0, "")
    *shown, last = out.splitlines()
    check_figures(json.loads(last), 60)
    assert "Every recipient is accounted for." in shown
    assert "http://127.0.0.1:8025" not in out
    assert "\x1b" not in out
    assert all_gone(home, 3)
    assert [path.name for path in home.iterdir()] == [".pgmail"]


@pytest.mark.long
@LINUX
def test_kept_it_can_be_looked_at_until_ctrl_c(home):
    demo = start(home, "--messages", "50", "--processes", "1", "--keep")
    shown = wait_for(demo, r"^end ")
    dashboard = re.search(r"^dashboard +(\S+)$", shown, re.MULTILINE)[1]
    with urllib.request.urlopen(dashboard, timeout=10) as answer:
        assert b'name="key"' in answer.read()  # it wants the key that stands below
    assert re.search(r"^its key +pgm_live_\S+$", shown, re.MULTILINE)
    inbox = re.search(r"^inbox +(\S+)$", shown, re.MULTILINE)[1]
    with urllib.request.urlopen(inbox + "?q=postcard", timeout=10) as answer:
        page = answer.read().decode()
    mail = re.search(r'href="(/mail/[0-9-]+)', page)[1]
    with urllib.request.urlopen(f"{inbox.rstrip('/')}{mail}/html", timeout=10) as answer:
        assert "data:image/png;base64," in answer.read().decode()
    trace = re.search(r"^trace +(.*)$", shown, re.MULTILINE)[1]
    told = subprocess.run(
        ["/bin/sh", "-c", trace],
        cwd=home,
        env=environment(home),
        capture_output=True,
        text=True,
        check=False,
    )
    assert (told.returncode, told.stderr) == (0, "")
    assert "email.deferred" in told.stdout
    request = re.search(r"'(Authorization: [^']+)' (\S+)$", shown, re.MULTILINE)
    name, _, value = request[1].partition(": ")
    with urllib.request.urlopen(
        urllib.request.Request(request[2], headers={name: value}), timeout=10
    ) as answer:
        assert json.load(answer)["object"] == "list"
    demo.send_signal(signal.SIGINT)
    code, _, err = finish(demo)
    assert (code, err) == (0, "")
    assert all_gone(home, 3)


@LINUX
def test_kill_9_leaves_nothing_that_the_next_run_trips_over(home):
    killed = start(home, "--messages", "60", "--processes", "1")
    wait_for(killed, "API on")
    assert len(processes_of(home)) > 5
    killed.kill()
    finish(killed)
    code, out, err = finish(start(home, "--messages", "20", "--processes", "1", "--json"))
    assert (code, err) == (0, "")
    assert json.loads(out.splitlines()[-1])["lost"] == 0
    assert all_gone(home)


@pytest.mark.long
@LINUX
def test_it_ends_with_the_process_that_started_it(home):
    words = f"'{sys.executable}' -m pgmail demo --messages 20 --processes 1 --keep; true"
    parent = spawn(home, ["/bin/sh", "-c", words])
    wait_for(parent, r"^end ")
    parent.kill()
    assert all_gone(home)


@pytest.mark.long
@LINUX
def test_ctrl_c_in_the_middle_takes_everything_down(home):
    demo = start(home, "--messages", "5000", "--processes", "1")
    wait_for(demo, "arrived")
    demo.send_signal(signal.SIGINT)
    code, _, err = finish(demo)
    assert code == 130
    assert "Traceback" not in err
    assert all_gone(home, 3)


def test_a_database_that_holds_a_pgmail_schema_is_refused_and_left_alone(home, db):
    with db.connect() as connection:
        code, out, err = finish(start(home, "--messages", "5", url=db.dsn))
        assert connection.execute("select count(*) from pgmail.message").fetchone() == (0,)
    assert code == 1
    assert out == ""
    assert re.fullmatch(r"pgmail: the database \S+ holds a pgmail schema, .*\[holds_pgmail\]\n", err)


def test_a_role_that_may_not_create_databases_is_told_so(home, empty_db):
    code, _, err = finish(start(home, "--messages", "5", url=empty_db.dsn))
    assert code == 1
    assert "lacks CREATEDB" in err
    assert err.count("\n") == 1


@pytest.mark.long
def test_on_a_given_server_it_makes_a_database_of_its_own_and_drops_it(home, empty_db, server_admin):
    stale = "pgmail_demo_00000000"
    server_admin.execute(f"create database {stale}")
    server_admin.execute(
        f"comment on database {stale} is 'Made by `pgmail demo`, which may drop it at any time.'"
    )
    server_admin.execute(f"create role {stale}_worker")
    stranger = "pgmail_demo_11111111"
    server_admin.execute(f"create database {stranger}")
    try:
        demo = start(home, "--messages", "20", "--processes", "1", "--json", url=empty_db.superuser_dsn)
        code, out, err = finish(demo)
        assert (code, err) == (0, "")
        assert json.loads(out.splitlines()[-1])["lost"] == 0
        left = server_admin.execute(
            "select datname from pg_database where datname like 'pgmail\\_demo\\_%' "
            "union all select rolname from pg_roles where rolname like 'pgmail\\_demo\\_%'"
        ).fetchall()
        assert left == [(stranger,)]
    finally:
        server_admin.execute(f"drop database {stranger}")


def test_an_ordinary_user_can_run_it(home):
    user = "nobody" if os.geteuid() == 0 else None
    if user and not programs.reachable(PACKAGES, programs.Account(*pwd.getpwnam(user)[2:4], user)):
        pytest.skip(f"the user {user} does not reach this checkout")
    home.chmod(0o777)
    done = subprocess.run(
        [interpreter_of(user), "-m", "pgmail", "demo", "--messages", "20", "--processes", "1", "--json"],
        cwd=home,
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
        env={
            "PATH": os.environ["PATH"],
            "PYTHONPATH": f"{ROOT}:{PACKAGES}",
            "PYTHONDONTWRITEBYTECODE": "1",
            "DEMO_TEST_HOME": str(home),
        },
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout.splitlines()[-1])["lost"] == 0


def test_wrong_usage_is_said_before_anything_is_started(home):
    code, out, err = finish(start(home, "--messages", "0"))
    assert code == 2
    assert out == ""
    assert "--messages" in err
    assert not list(home.iterdir())

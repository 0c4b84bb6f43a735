"""`kill -9` and SIGSTOP of a real worker at each moment of a mail, on streams that hold and on streams that resend.

The SMTP server is a script that stops at a moment of the test's choice and counts the final dots that it saw. One
mail of each kind of stream is at that moment when the worker is killed; then another declares it dead.
"""

import contextlib
import signal
import socketserver
import subprocess
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from psycopg.errors import LockNotAvailable

from tests.acceptance.test_worker_processes import hiring
from tests.sql.kit import Hand, differences, events, one, rows, send, state, stream
from tests.waiting import eventually_now

pytestmark = pytest.mark.one_server


class Server(socketserver.ThreadingTCPServer):
    """Stops each connection at `stop_at` (before the greeting, the 354, or the reply to the dot) until told."""

    daemon_threads = True
    block_on_close = False

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Talk)
        self.stop_at = ""
        self.reached: Counter[str] = Counter()
        self.dots: list[str] = []
        self.go = threading.Event()

    def moment(self, name: str) -> None:
        self.reached[name] += 1
        if self.stop_at == name:
            self.go.wait(60)


class Talk(socketserver.StreamRequestHandler):
    """SMTP without extensions, one step at a time."""

    server: Server

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # the worker was killed
            self._talk()

    def say(self, text: str) -> None:
        self.wfile.write(f"{text}\r\n".encode())

    def _talk(self) -> None:
        self.server.moment("greeting")
        self.say("220 script")
        recipient = ""
        while line := self.rfile.readline():
            word = line[:4].upper()
            if word == b"RCPT":
                recipient = line.decode().partition("<")[2].partition(">")[0]
            if word == b"DATA":
                self.server.moment("data")
                self.say("354 go on")
                while (line := self.rfile.readline()) != b".\r\n":
                    if not line:
                        return
                self.server.dots.append(recipient)
                self.server.moment("dot")
            self.say("250 ok" if word != b"QUIT" else "221 bye")


@pytest.fixture
def server_() -> Iterator[Server]:
    made = Server()
    thread = threading.Thread(target=made.serve_forever, kwargs={"poll_interval": 0.05})
    thread.start()
    yield made
    made.go.set()
    made.shutdown()
    thread.join()
    made.server_close()


@pytest.fixture
def start_worker(db, server_, tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[str]]]:
    quick = {"PGMAIL_SILENCE_SECONDS": "2", "PGMAIL_BEAT_INTERVAL_MS": "200"}
    with hiring(db, server_.server_address[1], tmp_path, **quick) as (start, started):
        yield start
        for process in started:
            if process.poll() is None:
                process.send_signal(signal.SIGCONT)


class Scene:
    """A worker that has one mail of each kind of stream at a moment."""

    def __init__(self, db, server_: Server, start: Callable[..., subprocess.Popen[str]]) -> None:
        self.owner, self.app, self.server = db.connect(), db.connect("producer"), server_
        stream(self.owner, "careful", on_doubt="hold", trace="full")
        stream(self.owner, "bold", on_doubt="resend", trace="full")
        self._start = start

    def reach(self, moment: str) -> None:
        """Hire a worker and bring both mails there."""
        # Relays are ramped up to: one mail goes through first, so that two may be on the wire.
        self.worker = self._start()
        first = send(self.app, "first@example.org", stream="bold")
        eventually_now(lambda: state(self.app, first) == "sent", 40)
        self.server.dots.clear()
        before = self.server.reached[moment]
        self.server.stop_at = moment
        self.held = send(self.app, "held@example.org", stream="careful")
        self.resent = send(self.app, "resent@example.org", stream="bold")
        eventually_now(lambda: self.server.reached[moment] - before == 2, 40)
        self.epoch = one(self.owner, "select min(leased_by) from pgmail.queue where leased_by is not null")

    def kill(self) -> None:
        self.worker.kill()
        self.worker.wait(10)

    def rescue(self) -> None:
        def rescued() -> bool:
            # It may have been stopped while its beat was on the way: the leader, too, tries again then.
            with contextlib.suppress(LockNotAvailable):
                return one(self.owner, "select pgmail.rescue_v1(%s)", [self.epoch]) == 2
            return False

        eventually_now(rescued, 15)

    def found(self) -> tuple[str, bool, str, bool]:
        """State and doubt of the mail that is held, then of the one that is sent again."""
        held, resent = (
            (state(self.app, mail), "in_doubt" in events(self.app, mail)) for mail in (self.held, self.resent)
        )
        return (*held, *resent)


@pytest.fixture
def scene(db, server_, start_worker) -> Scene:
    return Scene(db, server_, start_worker)


def test_killed_before_the_end_of_data_is_allowed_nothing_is_in_doubt_where_it_would_be_held(scene):
    scene.reach("data")
    scene.kill()
    scene.rescue()
    assert scene.found() == ("queued", False, "queued", True)
    assert scene.server.dots == []
    (detail,) = rows(
        scene.app, "select detail from pgmail.trace(%s) where type = 'email.delayed'", [scene.held]
    )
    assert detail[0] == f"worker {scene.epoch} died before it sent this mail"
    assert differences(scene.owner) == [0]


def test_killed_after_the_claim_and_before_a_word_was_said(db, scene, start_worker):
    scene.server.stop_at = "greeting"
    scene.worker = start_worker()
    scene.held = send(scene.app, "held@example.org", stream="careful")
    scene.resent = send(scene.app, "resent@example.org", stream="bold")
    leased = "select count(*) from pgmail.queue where leased_by is not null"
    eventually_now(lambda: one(scene.owner, leased) == 2 and scene.server.reached["greeting"], 40)
    scene.epoch = one(scene.owner, "select min(leased_by) from pgmail.queue")
    scene.kill()
    scene.rescue()
    assert scene.found() == ("queued", False, "queued", True)
    assert scene.server.dots == []


def test_killed_between_the_commit_and_the_dot_the_mail_is_held_though_it_was_not_sent(
    db, server_admin, scene
):
    scene.reach("data")
    # The intent itself: a claim waits for that lock too, and the settle of the mail that may be sent again.
    blocked = (
        "select count(*) from pg_stat_activity"
        " where datname = %s and wait_event_type = 'Lock' and query ~ 'begin_v1'"
    )
    with db.connect(autocommit=False) as lock:
        lock.execute("lock table pgmail.queue in share mode")
        scene.server.go.set()
        eventually_now(lambda: one(server_admin, blocked, [db.name]) > 0)
        # At once: an intent waits for a lock for two seconds, and then the mail is not sent now.
        scene.worker.send_signal(signal.SIGSTOP)
        lock.rollback()
    eventually_now(
        lambda: one(scene.owner, "select count(*) from pgmail.queue where unsent_claims = claims") == 0
    )
    scene.kill()
    assert one(scene.owner, "select pgmail.rescue_v1(%s)", [scene.epoch]) >= 1
    assert (state(scene.app, scene.held), "in_doubt" in events(scene.app, scene.held)) == ("held", True)
    assert "held@example.org" not in scene.server.dots


def test_killed_after_the_dot_and_before_its_answer_the_mail_is_in_doubt(scene):
    scene.reach("dot")
    scene.kill()
    scene.rescue()
    assert scene.found() == ("held", True, "queued", True)
    assert sorted(scene.server.dots) == ["held@example.org", "resent@example.org"]


def test_a_paused_worker_that_wakes_too_late_sends_no_dot_and_starts_over(scene, tmp_path):
    scene.reach("data")
    scene.worker.send_signal(signal.SIGSTOP)
    scene.rescue()
    stopped = time.monotonic()
    scene.server.go.set()
    eventually_now(lambda: time.monotonic() - stopped > 1.2, what="half of the silence that kills")
    scene.worker.send_signal(signal.SIGCONT)
    assert scene.worker.wait(20) == 75  # start me again, as a new worker
    assert scene.found() == ("queued", False, "queued", True)
    assert scene.server.dots == []
    told = (tmp_path / "worker-0.log").read_text()
    assert "worker.fenced_out" in told
    assert "mail.withheld" in told
    assert '"withheld": 2' in told or '"withheld":2' in told
    assert differences(scene.owner) == [0]


def test_a_paused_worker_past_the_dot_settles_nothing_that_another_holds_and_counts_it(db, scene, tmp_path):
    scene.reach("dot")
    scene.worker.send_signal(signal.SIGSTOP)
    scene.rescue()
    other = Hand(db.connect("worker"))
    (lease,) = other.claim(holds=True)  # the held one is not to be had
    assert lease.message_id == scene.resent
    scene.server.go.set()
    scene.worker.send_signal(signal.SIGCONT)
    assert scene.worker.wait(20) == 75
    assert state(scene.app, scene.resent) == "sending"
    assert other.settle(lease) == ["settled"]
    # The mail in doubt was sent, as its late answer says: nobody has to decide any more.
    assert state(scene.app, scene.held) == "sent"
    told = (tmp_path / "worker-0.log").read_text()
    assert "settle.fenced" in told
    assert differences(scene.owner) == [0]

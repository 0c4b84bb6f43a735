"""Mail that workers died with: the guilty one is quarantined, whatever it crashes, and nobody is blamed for company."""

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections import Counter

import pytest

from pgmail.config import Settings
from pgmail.domain.reply import Envelope, Phase
from pgmail.errors import TemplateFault
from pgmail.render.templates import Bundle, Source
from pgmail.sandbox.sink_rules import Answer
from pgmail.transport.base import TooLate
from pgmail.transport.relay import SmtpRelay
from pgmail.worker import apart
from pgmail.worker import ward as module
from pgmail.worker.apart import Made, Render, Renderer, environ_of
from pgmail.worker.ward import Crashed, Ward, WardAway
from tests.sql.kit import differences, one, rows, send, send_many, state
from tests.waiting import eventually
from tests.worker.kit import settled
from tests.worker.test_sender import a_job

# A worker, and its processes apart, in which rendering one kind of mail and sending another end the process.
SCRIPT = """
import ctypes, os, sys
from pgmail import app
from pgmail.config import Settings
from pgmail.domain.reply import Phase, Reply, Result
from pgmail.transport.relay import SmtpRelay
from pgmail.worker import content, supervisor

assemble = content.assemble

def dangerous(mail, **more):
    if mail.subject == "poison":
        os._exit(139)
    if mail.subject == "endless":
        while True:
            pass
    if mail.subject == "segfault":
        ctypes.string_at(0)
    return assemble(mail, **more)

content.assemble = dangerous

class Deadly(SmtpRelay):
    async def deliver(self, envelope, on_dot=None):
        if envelope.recipient.startswith("deadly"):
            os._exit(7)
        return await super().deliver(envelope, on_dot)

def transports():
    return {"default": Deadly.from_url(sys.argv[1])}

if sys.argv[-1] == "apart":
    from pgmail.worker.apart import serve
    serve(transports)
else:
    settings = Settings(beat_interval_ms=100, silence_seconds=1.5, poll_interval_ms=150, drain_seconds=8.0)
    sys.exit(supervisor.run_one(
        settings, transports(), make_leader=app._make_leader(settings), dsn=sys.argv[2], concurrency=8,
        ward_argv=[sys.executable, *sys.argv, "apart"],
    ))
"""


@pytest.fixture
def program(tmp_path, sink) -> list[str]:
    path = tmp_path / "worker.py"
    path.write_text(SCRIPT)
    return [sys.executable, str(path), f"smtp://127.0.0.1:{sink.port}?tls=none"]


@pytest.fixture
def fleet(program, db, tmp_path):
    """Keeps a worker running as an operator's service manager does; counts how each ended."""

    class Fleet:
        def __init__(self):
            self.ends = Counter()
            self.process = None

        def start(self):
            with (tmp_path / "log").open("a") as log:
                self.process = subprocess.Popen(
                    [*program, db.dsn_for("worker")], stdin=subprocess.DEVNULL, stdout=log, stderr=log
                )

        def keep(self):
            code = self.process.poll()
            if code is not None:
                self.ends[code] += 1
                self.start()

        def stop(self):
            self.process.terminate()
            self.ends[self.process.wait(20)] += 1

    made = Fleet()
    made.start()
    yield made
    if made.process.poll() is None:
        made.process.kill()
    made.process.wait(10)


async def until_settled(fleet, owner, app, number, seconds=90):
    def over():
        fleet.keep()
        found = settled(owner)
        return found if sum(found[kind] for kind in ("sent", "dead")) == number else None

    return await eventually(over, seconds)


@pytest.mark.parametrize(
    "case",
    [
        pytest.param(
            (
                {"subject": "poison"},
                1,
                139,
                "rendering it alone, in a process apart, ended with exit code 139",
            ),
            marks=pytest.mark.long,
        ),
        ({"subject": "segfault"}, 1, -11, "rendering it alone, in a process apart, was ended by SIGSEGV"),
        pytest.param(
            (
                {"to": "deadly@example.org"},
                2,
                7,
                "sending it alone, in a process apart, ended with exit code 7",
            ),
            marks=pytest.mark.long,
        ),
    ],
    ids=["renderer exits", "renderer segfaults", "transport exits"],
)
async def test_what_crashes_a_process_is_quarantined_and_its_company_is_sent(fleet, app, owner, case):
    guilty, workers, code, words = case
    body = {"from": "a@example.com", "subject": "fine", "text": "t"}
    mails = [{**body, "to": f"u{n}@example.org"} for n in range(30)]
    mails[11].update(guilty)
    ids = [row[1] for row in send_many(app, mails)]
    assert await until_settled(fleet, owner, app, 30) == {"sent": 29, "dead": 1}
    assert fleet.ends == {code: workers}
    ((message, reason, error),) = rows(owner, "select message_id, reason, error from pgmail.dead_letter")
    assert (message, reason) == (ids[11], "poison")
    assert words in error
    assert f"workers that died while they held it: {workers}" in error
    assert differences(owner) == [0]
    fleet.stop()
    assert fleet.ends == {code: workers, 0: 1}


async def test_workers_that_are_killed_again_and_again_blame_no_mail(fleet, app, owner):
    body = {"from": "a@example.com", "subject": "fine", "text": "t"}
    send_many(app, [{**body, "to": f"u{n}@example.org"} for n in range(60)])
    send(app, "lasting@example.org", subject="fine")
    owner.execute("update pgmail.queue set rescues = 30")
    for _ in range(3):
        before = one(owner, "select max(epoch) from pgmail.worker") or 0
        await eventually(
            lambda before=before: (
                fleet.keep()
                or one(owner, "select count(*) from pgmail.worker where epoch > %s", [before])
                or settled(owner) == {"sent": 61}
            ),
            30,
        )
        fleet.process.send_signal(signal.SIGKILL)
        fleet.process.wait(10)
    assert await until_settled(fleet, owner, app, 61) == {"sent": 61}
    assert differences(owner) == [0]


@pytest.fixture
async def ward(program):
    made = Ward([*program, "apart"])
    yield made
    await made.close()


def order(subject="fine", **content):
    job = a_job(
        content={"from": {"address": "shop@example.com"}, "subject": subject, "text": "Hello"} | content
    )
    return Render(job.message.row, "", job.person, (), None, eightbit=False)


async def test_bytes_made_apart_are_those_that_the_worker_makes(ward):
    from pgmail.worker.content import Library, Message

    wanted = order(subject="Hi {{ name }}", variables={"name": "Zoë"})
    here = Library(None, "").wire_now(1, Message(wanted.message), wanted.person, eightbit=False)
    assert await ward.render(wanted) == here


async def test_a_fault_of_a_template_is_no_crash(ward):
    with pytest.raises(TemplateFault) as caught:
        await ward.render(order(subject="{{ missing }}", variables={}))
    assert (caught.value.kind, caught.value.part) == ("missing_variable", "subject")
    assert (await ward.render(order())).body


async def test_a_killed_process_is_not_yet_the_mails_fault_and_a_hanging_one_is(ward, monkeypatch):
    await ward.render(order())
    (process,) = ward._idle
    process.process.send_signal(signal.SIGSTOP)
    asyncio.get_running_loop().call_later(0.2, process.process.kill)
    assert (await ward.render(order())).body
    (process,) = ward._idle
    process.process.send_signal(signal.SIGSTOP)
    monkeypatch.setattr(module, "RENDER_SECONDS", 0.2)
    monkeypatch.setattr(module, "START_SECONDS", 30)
    with pytest.raises(Crashed, match="without an end"):
        await ward._ask(order())


async def test_a_delivery_asks_before_the_dot_and_is_the_transports(ward, sink):
    envelope = Envelope(sender="a@example.com", recipient="b@example.org", body=b"Subject: x\r\n\r\nHi\r\n")
    asked = []

    async def on_dot():
        asked.append(sink.total)

    result = await ward.deliver("default", envelope, on_dot)
    assert (result.phase, result.accepted, asked) == (Phase.DOT, True, [0])
    assert sink.total == 1


async def test_a_process_that_cannot_start_blames_nobody():
    for argv in (["/nowhere/at/all"], [sys.executable, "-c", "raise SystemExit(3)"]):
        away = Ward(argv)
        with pytest.raises(WardAway):
            await away.render(order())
        await away.close()


async def test_idle_processes_end(ward, monkeypatch):
    monkeypatch.setattr(module, "IDLE_SECONDS", 0.05)
    await ward.render(order())
    (process,) = ward._idle
    await eventually(lambda: process.process.returncode is not None)
    assert not ward._idle


async def test_a_process_apart_compiles_a_template_once(monkeypatch):
    """Under a rate, a suspect that is made again and again would else be late each time."""
    real, compiled = apart.compile_bundle, []
    monkeypatch.setattr(apart, "compile_bundle", lambda bundle: compiled.append(bundle) or real(bundle))
    renderer = Renderer()
    mail = order(variables={"name": "Ada"})
    for text in ("One {{ name }}", "One {{ name }}", "Two {{ name }}", "One {{ name }}"):
        bundle = Bundle(Source("Hi", text, None))
        made = renderer.render(Render(mail.message, "", mail.person, (), bundle, eightbit=False))
        assert isinstance(made, Made)
        assert text[:3].encode() + b" Ada" in made.wire.body
    assert [bundle.main.text[:3] for bundle in compiled] == ["One", "Two"]


async def go() -> None:
    """Let the dot go out."""


async def test_mail_whose_moment_passed_while_a_process_started_is_not_sent_and_the_process_stays(ward, sink):
    facts = {"sender": "a@example.com", "recipient": "b@example.org", "body": b"Subject: x\r\n\r\nHi\r\n"}
    with pytest.raises(TooLate):
        await ward.deliver("default", Envelope(**facts, not_after=time.monotonic() + 0.001), go)
    assert (len(ward._idle), sink.total) == (1, 0)
    late = Envelope(**facts, not_after=time.monotonic() + 10)
    assert (await ward.deliver("default", late, go)).accepted


async def test_a_connection_that_opens_slowly_stays_apart_for_the_next_moment_of_its_mail(
    program, open_sink, monkeypatch
):
    slow = await open_sink(
        rule=lambda at: Answer(text="220 hi", delay_seconds=0.2) if at.phase is Phase.GREETING else None
    )
    url = f"smtp://127.0.0.1:{slow.port}?tls=none&max_connections=1"
    ward, relay = Ward([*program[:2], url, "apart"]), SmtpRelay.from_url(url)
    facts = {"sender": "a@example.com", "recipient": "b@example.org", "body": b"Subject: x\r\n\r\nHi\r\n"}
    try:
        assert (await ward.deliver("default", Envelope(**facts), go, relay)).accepted  # a process has started
        with pytest.raises(TooLate):
            await ward.deliver("default", Envelope(**facts, not_after=time.monotonic() + 0.1), go, relay)
        assert (slow.total, relay.open_connections) == (1, 1)  # its place is taken
        soon = Envelope(**facts, not_after=time.monotonic() + 0.15)
        assert (await ward.deliver("default", soon, go, relay)).accepted
        assert (slow.total, relay.open_connections) == (2, 0)

        monkeypatch.setattr(module, "OPEN_SECONDS", 0.01)
        with pytest.raises(TooLate):
            await ward.deliver("default", Envelope(**facts, not_after=time.monotonic() + 0.1), go, relay)
        await eventually(lambda: relay.open_connections == 0)  # nobody came for it
        assert (await ward.deliver("default", Envelope(**facts), go, relay)).accepted
    finally:
        await ward.close()
        await relay.close()


async def test_a_suspect_under_a_rate_is_sent_whatever_its_connection_takes(
    db, app, owner, open_sink, tmp_path
):
    slow = await open_sink(
        rule=lambda at: Answer(text="220 hi", delay_seconds=0.03) if at.phase is Phase.GREETING else None
    )
    path = tmp_path / "worker.py"
    path.write_text(SCRIPT)
    owner.execute("select pgmail.set_limit('site', 'example.org', 10)")
    mail = send(app)
    owner.execute("update pgmail.queue set rescues = 2")  # two workers died while they held it
    with (tmp_path / "log").open("w") as log:
        worker = subprocess.Popen(  # noqa: ASYNC220 - it returns at once
            [sys.executable, str(path), f"smtp://127.0.0.1:{slow.port}?tls=none", db.dsn_for("worker")],
            stdin=subprocess.DEVNULL, stdout=log, stderr=log,
        )  # fmt: skip
    try:
        await eventually(lambda: state(app, mail) == "sent", 40)
    finally:
        worker.terminate()
        worker.wait(20)
    assert one(owner, "select attempts from pgmail.outcome") == 1


async def test_a_delivery_apart_takes_the_place_of_one_of_the_workers_connections(ward, sink):
    relay = SmtpRelay.from_url(f"smtp://127.0.0.1:{sink.port}?tls=none&max_connections=1")
    envelope = Envelope(sender="a@example.com", recipient="b@example.org", body=b"Subject: x\r\n\r\nHi\r\n")
    assert (await relay.deliver(envelope)).accepted
    assert relay.idle_connections == 1
    seen = []

    async def on_dot() -> None:
        seen.append((relay.open_connections, relay.idle_connections, len(sink.connections)))

    assert (await ward.deliver("default", envelope, on_dot, relay)).accepted
    assert seen == [(1, 0, 1)]
    assert relay.open_connections == 0
    await relay.close()


async def test_a_process_that_hangs_ends_with_its_killed_worker(program, tmp_path):
    script = tmp_path / "hangs.py"
    script.write_text(
        "import asyncio, sys\n"
        "from pgmail.worker.ward import Ward\n"
        "from tests.worker.test_ward import order\n"
        "asyncio.run(Ward(sys.argv[1:]).render(order(subject='endless')))\n"
    )
    read, write = os.pipe()
    os.set_blocking(read, False)
    # Whoever holds the other end of the pipe lives: the worker, and its process apart, which inherits it as its stderr.
    worker = await asyncio.create_subprocess_exec(sys.executable, script, *program, "apart", stderr=write)
    os.close(write)

    def over() -> bool:
        try:
            return os.read(read, 4096) == b"" or over()
        except BlockingIOError:
            return False

    try:
        await eventually(lambda: endless(worker.pid), 60)
        worker.kill()
        await worker.wait()
        await eventually(over, 10)
    finally:
        os.close(read)


def endless(worker: int) -> bool:
    """Whether a child of this process spins."""
    told = subprocess.run(
        ["ps", "-A", "-o", "ppid=,time="], capture_output=True, text=True, check=True
    ).stdout
    return any(line.split()[0] == str(worker) and line.split()[1][-2:] >= "04" for line in told.splitlines())


def test_a_process_apart_has_neither_database_nor_keys_nor_what_else_lies_in_the_environment(tmp_path):
    (tmp_path / "pgmail.toml").write_text('database_url = "postgresql://u:canary@db/x"\n')
    secret = {
        "PGMAIL_DATABASE_URL": "postgresql://u:canary@db/x",
        "PGMAIL_SEAL_KEYS": "k=" + "canary",
        "PGPASSWORD": "canary",
        "AWS_SECRET_ACCESS_KEY": "canary",
    }
    settings = Settings(relay_url="smtp://user:word@127.0.0.1:2525?tls=none", worker_concurrency=7)
    environ = environ_of(settings, {**os.environ, **secret})
    program = """
import os, pathlib
from pgmail.app import transports
from pgmail.cli import common
found = common.settings()
print(found, dict(os.environ))
print(list(transports(found)), found.worker_concurrency)
print(pathlib.Path("/proc/self/environ").read_text())
"""
    argv = [sys.executable, "-c", program]
    shown = subprocess.run(argv, env=environ, cwd=tmp_path, capture_output=True, text=True, check=True).stdout
    assert "canary" not in shown
    assert "['default'] 7" in shown
    assert "user:word" in shown  # what it delivers with

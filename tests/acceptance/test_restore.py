"""Restore fencing with real servers and real processes: a backup that is restored, standbys that are promoted."""

import json
import socketserver
import threading

import pytest

from tests.acceptance.own_server import Server, accounted, all_settled
from tests.sql.kit import body, events, send, send_many, state
from tests.waiting import eventually_now

START_ME_AGAIN = 75  # EX_TEMPFAIL: what a worker that was fenced out asks of who started it


def stopped(server: Server) -> str | None:
    """Why all sending is stopped."""
    return server.ask("select reason from pgmail.fence")


def mail(server: Server, n: int, name: str) -> None:
    with server.connect("producer") as app:
        send_many(app, [body(f"{name}{i}@example.org") for i in range(n)])


def test_a_restored_backup_sends_nothing_until_an_operator_has_decided(new_server, servers, fleet, tmp_path):
    server = new_server()
    server.ask("select pgmail.pause_mail('site', 'example.org', 'the backup is to know them', null)")
    worker = fleet.worker(server.dsn("worker"))
    mail(server, 20, "old")
    eventually_now(lambda: server.ask("select coalesce(sum(marks), 0) from pgmail.witness") > 1, 30)
    backup = servers(server.base_backup(tmp_path / "backup", "--wal-method=fetch"))
    server.ask("select pgmail.resume_mail('site', 'example.org', 'the backup is made')")
    eventually_now(lambda: all_settled(server), 30)
    fleet.end(worker)
    server.stop()
    assert sum(fleet.arrived.values()) == 20

    backup.start()
    backup.ask("select pgmail.resume_mail('site', 'example.org', 'no pause is to hide what is tested')")
    worker = fleet.worker(backup.dsn("worker"))
    assert "saw more than is here" in eventually_now(lambda: stopped(backup), 30)
    mail(backup, 5, "new")  # mail is taken in meanwhile
    eventually_now(lambda: "sending.stopped" in fleet.log(worker))
    # The backup knows of a lead that its worker never gave up: until it lapses there is no other.
    new = "select l.epoch = (select max(w.epoch) from pgmail.worker w) from pgmail.leader l"
    eventually_now(lambda: backup.ask(new), 30)
    doctor = fleet.pgmail("doctor", "--json", dsn=backup.dsn("admin"))
    failed = {row["check"] for row in json.loads(doctor.stdout) if row["status"] == "failed"}
    assert "restore" in failed
    assert failed <= {"restore", "alerts"}  # which say so, too, once the leader has looked
    shown = fleet.pgmail("resume", "--after-restore", "--dry-run", "--json", dsn=backup.dsn("admin"))
    assert [row["recipients"] for row in json.loads(shown.stdout)["in_doubt"]] == [20]
    assert worker.poll() is None
    assert sum(fleet.arrived.values()) == 20

    done = fleet.pgmail(
        "resume", "--after-restore", "--reason", "disk died", "--yes", dsn=backup.dsn("admin")
    )
    assert done.returncode == 0, done.stderr
    assert "20 recipients in doubt are held" in done.stdout
    eventually_now(lambda: sum(fleet.arrived.values()) == 25, 30)
    eventually_now(lambda: backup.ask("select count(*) from pgmail.queue") == 20)
    assert accounted(backup, fleet, []) == {"held": 20, "sent": 5}
    assert set(fleet.arrived.values()) == {1}
    eventually_now(lambda: "sending.goes_on" in fleet.log(worker))


def test_a_promoted_standby_that_has_everything_stops_nobody(new_server, servers, fleet, tmp_path):
    primary = new_server()
    standby = servers(primary.base_backup(tmp_path / "standby", "--write-recovery-conf")).start()
    with primary.connect("postgres") as admin:
        admin.execute("alter system set synchronous_standby_names = '*'")
        admin.execute("select pg_reload_conf()")
        eventually_now(
            lambda: admin.execute("select sync_state from pg_stat_replication").fetchone() == ("sync",)
        )
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    dsn = (
        primary.dsn("worker").replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
    )
    worker = fleet.worker(dsn)
    mail(primary, 50, "x")
    eventually_now(lambda: all_settled(primary), 30)
    primary.kill()
    standby.promote()
    mail(standby, 20, "y")
    eventually_now(lambda: sum(fleet.arrived.values()) >= 70 and all_settled(standby), 40)
    assert stopped(standby) is None
    assert accounted(standby, fleet, []) == {"sent": 70}
    assert worker.poll() is None
    assert "sending.stopped" not in fleet.log(worker)


def test_a_promoted_standby_that_lacks_acknowledged_work_stops_all_sending(
    new_server, servers, fleet, tmp_path
):
    primary = new_server()
    standby = servers(primary.base_backup(tmp_path / "standby", "--write-recovery-conf")).start()
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    dsn = (
        primary.dsn("worker").replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
    )
    api = fleet.api(
        primary.dsn("api").replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
    )
    worker = fleet.worker(dsn)
    with primary.connect("postgres") as admin:
        # What was written so far is there; from now on nothing reaches it.
        behind = "select pg_current_wal_lsn() - replay_lsn from pg_stat_replication"
        mail(primary, 10, "known")
        eventually_now(lambda: all_settled(primary), 30)
        eventually_now(lambda: (admin.execute(behind).fetchone() or (1,))[0] < 4096)
    standby.stop()
    assert api.send("lost@example.org", "key-1")[0] == 200
    eventually_now(lambda: sum(fleet.arrived.values()) == 11 and all_settled(primary), 30)
    before = primary.ask("select sum(marks) from pgmail.witness")
    eventually_now(lambda: primary.ask("select sum(marks) from pgmail.witness") > before + 1, 15)
    primary.kill()
    standby.start().promote()
    assert stopped_within(standby)
    mail(standby, 5, "later")
    assert worker.wait(30) == START_ME_AGAIN
    worker = fleet.worker(dsn)
    status, answer = eventually_now(lambda: (found := api.get("/health/ready"))[0] == 200 and found, 30)
    assert (status, answer["status"]) == (200, "ok")
    assert answer["sending"].startswith("stopped since")
    assert api.send("taken@example.org", "key-2")[0] == 200
    assert sum(fleet.arrived.values()) == 11
    done = fleet.pgmail(
        "resume",
        "--after-restore",
        "--resend",
        "--reason",
        "lost 1",
        "--yes",
        "--json",
        dsn=standby.dsn("admin"),
    )
    assert json.loads(done.stdout)["decision"] == "resend", done.stderr
    eventually_now(lambda: all_settled(standby), 40)
    assert worker.poll() is None
    assert accounted(standby, fleet, [])["sent"] == standby.ask("select count(*) from pgmail.outcome")


class SlowSmtp(socketserver.ThreadingTCPServer):
    """Takes all mail; recipients are answered once `go` is set. `dots` are the recipients of what it accepted."""

    allow_reuse_address = daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Talk)
        self.asked, self.go = threading.Event(), threading.Event()
        self.dots: list[str] = []


class _Talk(socketserver.StreamRequestHandler):
    server: SlowSmtp

    def handle(self) -> None:
        to = ""
        self._say("220 here")
        while line := self.rfile.readline():
            word = line.strip().decode()
            if word.upper().startswith("RCPT"):
                to = word.partition("<")[2].partition(">")[0]
                self.server.asked.set()
                self.server.go.wait(60)
            if word.upper() == "DATA":
                self._say("354 go on")
                while self.rfile.readline().strip() != b".":
                    pass
                self.server.dots.append(to)
            self._say("250 well")

    def _say(self, line: str) -> None:
        self.wfile.write(line.encode() + b"\r\n")


@pytest.fixture
def slow_smtp():
    with SlowSmtp() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.go.set()
        server.shutdown()
        thread.join()


def test_a_lease_of_a_worker_that_lives_through_a_lossy_failover_makes_no_second_copy(
    new_server, servers, fleet, tmp_path, *, slow_smtp
):
    fleet.sink_port = slow_smtp.server_address[1]
    primary = new_server()
    primary.ask("""select pgmail.save_stream('transactional', '{"on_doubt": "hold"}')""")
    standby = servers(primary.base_backup(tmp_path / "standby", "--write-recovery-conf")).start()
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    dsn = (
        primary.dsn("worker").replace(f"127.0.0.1:{primary.port}", hosts) + "?target_session_attrs=read-write"
    )
    worker = fleet.worker(dsn)
    with primary.connect("producer") as app:
        first = send(app, "first@example.org")
    assert slow_smtp.asked.wait(30)  # it is leased, and the intent to send it not committed yet
    leased = "select count(*) = 1 from pgmail.queue where leased_by is not null and unsent_claims = claims"
    eventually_now(lambda: standby.ask(leased, role="postgres"), 20)
    standby.stop()  # what follows does not reach it: the intent, the settle, and marks
    slow_smtp.go.set()
    eventually_now(lambda: all_settled(primary), 30)
    before = primary.ask("select sum(marks) from pgmail.witness")
    eventually_now(lambda: primary.ask("select sum(marks) from pgmail.witness") > before + 1, 15)
    primary.kill()
    standby.start().promote()
    assert stopped_within(standby)
    assert worker.wait(30) == START_ME_AGAIN  # it knows a history that is lost
    assert "worker.fenced_out" in fleet.log(worker)
    worker = fleet.worker(dsn)
    eventually_now(lambda: "sending.stopped" in fleet.log(worker), 30)
    done = fleet.pgmail(
        "resume", "--after-restore", "--hold", "--reason", "lost", "--yes", dsn=standby.dsn("admin")
    )
    assert "1 recipients in doubt are held" in done.stdout, done.stderr
    with standby.connect("producer") as app:
        send(app, "second@example.org")
        eventually_now(lambda: len(slow_smtp.dots) == 2, 40)
        fleet.end(worker)  # a deploy
        fleet.worker(dsn)
        send(app, "third@example.org")
        eventually_now(lambda: len(slow_smtp.dots) == 3, 40)
        assert slow_smtp.dots == [f"{name}@example.org" for name in ("first", "second", "third")]
        assert (state(app, first), events(app, first)[-2:]) == ("held", ["in_doubt", "held"])


def stopped_within(server: Server, seconds: float = 30) -> str:
    reason: str = eventually_now(lambda: stopped(server), seconds)
    return reason

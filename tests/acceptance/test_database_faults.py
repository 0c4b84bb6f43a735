"""The database fails under real workers and a real API, and comes back: nothing acknowledged is lost.

A full disk is a limit on the size of files that the running server may write (RLIMIT_FSIZE). The first thing that
cannot be written then is the log, at which PostgreSQL gives up as it does on a disk without room for it. That a table
has no room is class 53 of SQLSTATE, which `tests/store/test_faults.py` has.
"""

import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import psycopg
import pytest

from tests.acceptance.own_server import Client, Fleet, Server, accounted, all_settled
from tests.sql.kit import body, one, send, send_many
from tests.waiting import eventually_now


def restarted(server: Server) -> None:
    server.stop()
    server.start()


def killed(server: Server) -> None:
    server.kill()
    server.start()


def cut_off(server: Server) -> None:
    assert server.cut() > 3


@pytest.mark.parametrize("fault", [restarted, killed, cut_off])
def test_nothing_acknowledged_is_lost_and_no_live_worker_is_rescued(
    new_server, fleet, fault: Callable[[Server], None]
):
    server = new_server()
    worker = fleet.worker(server.dsn("worker"))
    api = fleet.api(server.dsn("api"))
    eventually_now(lambda: server.ask("select count(*) from pgmail.worker") == 1, 30)
    epoch = server.ask("select epoch from pgmail.worker")
    with Client(api) as client:
        client.more(20)
        fault(server)
        client.more(20)
    eventually_now(lambda: all_settled(server), 40)
    assert accounted(server, fleet, client.acknowledged).keys() == {"sent"}
    assert server.ask("select reason from pgmail.fence") is None
    assert server.ask("select array_agg(epoch) from pgmail.worker") == [epoch]
    assert worker.poll() is None
    assert api.process.poll() is None
    assert "leader.rescued" not in fleet.log(worker)


def test_a_database_that_is_away_longer_than_silence_rescues_no_live_worker(new_server, fleet):
    server = new_server()
    workers = [fleet.worker(server.dsn("worker")) for _ in range(2)]
    eventually_now(lambda: server.ask("select count(*) from pgmail.worker") == 2, 30)
    epochs = server.ask("select array_agg(epoch order by epoch) from pgmail.worker")
    server.stop()
    # Twice the silence after which a worker counts as dead: as each of them logs its failed beats.
    eventually_now(lambda: all(fleet.log(worker).count("beat.failed") >= 2 for worker in workers), 30)
    server.start()
    with server.connect("producer") as app:
        send_many(app, [body(f"x{n}@example.org") for n in range(50)])
    eventually_now(lambda: all_settled(server), 40)
    assert server.ask("select array_agg(epoch order by epoch) from pgmail.worker") == epochs
    assert not any("leader.rescued" in fleet.log(worker) for worker in workers)
    assert accounted(server, fleet, []) == {"sent": 50}


def test_a_failover_to_a_synchronous_standby_loses_nothing_acknowledged(
    new_server, servers, fleet, tmp_path: Path
):
    primary = new_server()
    standby = servers(primary.base_backup(tmp_path / "standby", "--write-recovery-conf")).start()
    with primary.connect("postgres") as admin:
        admin.execute("alter system set synchronous_standby_names = '*'")
        admin.execute("select pg_reload_conf()")
        sync = "select sync_state from pg_stat_replication"
        eventually_now(lambda: admin.execute(sync).fetchone() == ("sync",))

    def both(role: str) -> str:
        hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
        address = primary.dsn(role).replace(f"127.0.0.1:{primary.port}", hosts)
        return f"{address}?target_session_attrs=read-write"

    fleet.worker(both("worker"))
    api = fleet.api(both("api"))
    with Client(api) as client:
        client.more(20)
        primary.kill()
        standby.promote()
        with standby.connect("postgres") as admin:  # the base backup brought the setting along
            admin.execute("alter system reset synchronous_standby_names")
            admin.execute("select pg_reload_conf()")
        client.more(20, 40)
    eventually_now(lambda: all_settled(standby), 40)
    assert accounted(standby, fleet, client.acknowledged).keys() == {"sent"}
    assert standby.ask("select reason from pgmail.fence") is None


@pytest.mark.skipif(
    shutil.which("prlimit") is None, reason="prlimit (util-linux) changes a running server's limits"
)
def test_a_log_that_cannot_be_written_refuses_mail_and_loses_none(new_server, fleet):
    server = new_server()
    fleet.worker(server.dsn("worker"))
    api = fleet.api(server.dsn("api"))
    with Client(api) as client:
        client.more(10)
        pids = [server.embedded.pid, *server.backends()]
        for pid in pids:
            # As the server's own account; one of them may be gone by now.
            subprocess.run(
                ["prlimit", f"--pid={pid}", "--fsize=16384:"],
                check=False,
                capture_output=True,
                **server.account,
            )
        eventually_now(lambda: set(client.answers) - {200, 0} or None, 30)
        restarted(server)  # somebody made room
        client.more(10, 60)
    eventually_now(lambda: all_settled(server), 40)
    assert accounted(server, fleet, client.acknowledged).keys() == {"sent"}
    assert set(client.answers) <= {200, 503, 0}
    assert server.ask("select reason from pgmail.fence") is None


def test_locks_that_an_application_holds_delay_mail_and_no_more(new_server, fleet):
    server = new_server()
    fleet.worker(server.dsn("worker"))
    with server.connect("producer", autocommit=False) as app, server.connect("producer") as other:
        waiting = [row[1] for row in send_many(other, [body(f"x{n}@example.org") for n in range(5)])]
        app.execute("set transaction isolation level repeatable read")
        mail = send(app)
        for one_ in waiting:
            app.execute("select pgmail.cancel(%s)", [one_])  # sent by now, or cancelled, and its row held
        other.execute("set lock_timeout = '1ms'")
        send_many(other, [body(f"y{n}@example.org") for n in range(20)])
        app.commit()
        assert one(other, "select count(*) from pgmail.status(%s)", [mail]) == 1
    eventually_now(lambda: all_settled(server), 40)
    assert sum(accounted(server, fleet, []).values()) == 26


def test_two_phase_commit_hands_mail_over_once_it_is_committed(new_server, fleet):
    server = new_server(max_prepared_transactions="5")
    fleet.worker(server.dsn("worker"), NOTIFY="false")
    eventually_now(lambda: server.ask("select count(*) from pgmail.worker") == 1, 30)
    first, second = (server.connect("producer", autocommit=False) for _ in range(2))
    try:
        first.tpc_begin("order-1")
        send(first)
        first.tpc_prepare()
        first.close()
        assert not fleet.arrived
        (order,) = second.tpc_recover()
        second.rollback()
        second.tpc_commit(order)
    finally:
        first.close()
        second.close()
    eventually_now(lambda: sum(fleet.arrived.values()) == 1 and all_settled(server), 30)
    assert accounted(server, fleet, []) == {"sent": 1}


def test_a_notify_queue_that_is_full_is_the_applications_only_while_it_lasts(new_server, fleet):
    """A listener in an open transaction keeps the queue from being emptied; senders notify only those asleep."""
    server = new_server(max_notify_queue_pages="64")
    with server.connect("postgres", autocommit=False) as stuck, server.connect("postgres") as filler:
        stuck.execute("listen pgmail")
        stuck.commit()
        stuck.execute("select 1")  # a transaction that never ends
        fill = "select count(pg_notify('pgmail', 'test ' || i || repeat('x', 7000))) from generate_series(1, 2000) i"
        with pytest.raises(psycopg.errors.ProgramLimitExceeded):
            filler.execute(fill)
        worker = fleet.worker(server.dsn("worker"))
        eventually_now(lambda: server.ask("select count(*) from pgmail.worker") == 1, 30)
        with server.connect("producer") as app:
            send_many(app, [body(f"x{n}@example.org") for n in range(10)])
        eventually_now(lambda: all_settled(server), 30)
        stuck.rollback()
    assert accounted(server, fleet, []) == {"sent": 10}
    assert worker.poll() is None


def test_an_application_that_is_killed_in_its_transaction_hands_nothing_over(new_server, fleet: Fleet):
    server = new_server()
    fleet.worker(server.dsn("worker"))
    with server.connect("producer", autocommit=False) as app:
        send(app)
        server.cut()
        with pytest.raises(psycopg.OperationalError):
            app.commit()
    with server.connect("producer") as app:
        send(app)
    eventually_now(lambda: all_settled(server) and sum(fleet.arrived.values()) == 1, 30)
    assert accounted(server, fleet, []) == {"sent": 1}

"""pgbouncer in transaction mode between pgmail and PostgreSQL: each transaction may run on another connection."""

import os
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator
from pwd import getpwnam

import psycopg
import pytest

from tests.acceptance.own_server import WORD, Client, Fleet, Server, accounted, all_settled
from tests.fix_db import PREFIX
from tests.sql.kit import send
from tests.waiting import eventually_now

PROGRAM = shutil.which("pgbouncer", path=f"{os.environ.get('PATH', '')}:/usr/sbin")
pytestmark = pytest.mark.skipif(PROGRAM is None, reason="pgbouncer is not installed")
ROLES = ("owner", "worker", "api", "producer")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def pool(tmp_path_factory) -> Iterator[Callable[[Server], Callable[[str], str]]]:
    """Put a pooler before a server, with fewer connections than it has clients; answers the DSN of a role."""
    started: list[subprocess.Popen[bytes]] = []
    folder = tmp_path_factory.mktemp("pooler")

    def make(server: Server) -> Callable[[str], str]:
        port = free_port()
        (folder / "users").write_text("".join(f'"{PREFIX}{role}" "{WORD}"\n' for role in ROLES))
        (folder / "ini").write_text(
            f"[databases]\nmail = host=127.0.0.1 port={server.port}\n"
            f"[pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n"
            f"auth_type = plain\nauth_file = {folder}/users\n"
            "pool_mode = transaction\ndefault_pool_size = 3\nserver_round_robin = 1\n"
        )
        options: list[str] = []
        if os.geteuid() == 0:  # which pgbouncer refuses to run as
            nobody = getpwnam("nobody")
            for path in (folder, *folder.iterdir()):
                os.chown(path, nobody.pw_uid, nobody.pw_gid)
            for above in (folder.parent, folder.parent.parent):
                above.chmod(above.stat().st_mode | 0o011)
            options = ["-u", "nobody"]
        started.append(
            subprocess.Popen([PROGRAM, "-q", *options, folder / "ini"], stderr=subprocess.DEVNULL, cwd="/")
        )

        def dsn(role: str) -> str:
            return f"postgresql://{PREFIX}{role}:{WORD}@127.0.0.1:{port}/mail"

        def answers() -> bool:
            try:
                with psycopg.connect(dsn("owner"), autocommit=True, connect_timeout=2) as connection:
                    return connection.execute("select 1").fetchone() == (1,)
            except psycopg.OperationalError:
                return False

        eventually_now(answers, 30)
        return dsn

    yield make
    for process in started:
        process.kill()
        process.wait(10)


def test_mail_flows_through_a_pooler_and_no_process_minds(new_server, fleet: Fleet, pool):
    server = new_server()
    dsn = pool(server)
    workers = [fleet.worker(dsn("worker")) for _ in range(2)]
    api = fleet.api(dsn("api"))
    with Client(api) as client:
        client.more(60)  # so many that statements would be prepared
    eventually_now(lambda: all_settled(server), 40)
    assert accounted(server, fleet, client.acknowledged).keys() == {"sent"}
    with psycopg.connect(dsn("producer"), autocommit=True, prepare_threshold=None) as app:
        for number in range(10):
            send(app, f"u{number}@example.org")
            eventually_now(lambda: all_settled(server), 10)
    assert max(fleet.arrived.values()) == 1
    for process in (*workers, api.process):
        assert process.poll() is None
        assert "prepared statement" not in fleet.log(process)
        fleet.end(process)

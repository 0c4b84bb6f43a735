"""The embedded PostgreSQL: starts anywhere, leaves nothing behind, harms nobody."""

import os
import pwd
import shutil
import signal
import stat
import subprocess
import sys
import tempfile
from pathlib import Path

import psycopg
import pytest

from pgmail.errors import SandboxError
from pgmail.sandbox import datafolder, programs
from pgmail.sandbox.guard import Guarded, guarded_popen
from pgmail.sandbox.postgres import EmbeddedPostgres
from tests.acceptance.test_guard import gone

ROOT = Path(__file__).resolve().parents[2]
AS_ROOT = pytest.mark.skipif(os.geteuid() != 0, reason="only root lends the server an account")
OWNER = """
import signal, sys
from pathlib import Path
from pgmail.sandbox.postgres import EmbeddedPostgres
server = EmbeddedPostgres(Path(sys.argv[1]), durable=False)
server.start()
print(server.pid, server.dsn(), server.data_folder, flush=True)
signal.pause()
"""
GUEST = """
import os, subprocess, tempfile
from pathlib import Path
from pgmail.sandbox.postgres import EmbeddedPostgres
with tempfile.TemporaryDirectory() as folder:
    with EmbeddedPostgres(Path(folder) / "pg", durable=False) as server:
        ask = [server.binaries / "psql", server.dsn(), "-Atc", "select 'as', current_user"]
        subprocess.run(ask, check=True)
        print(os.getuid())
"""


@pytest.fixture
def folder(tmp_path):
    """A data folder; removed after the test wherever it was moved to."""
    wanted = tmp_path / "pg"
    yield wanted
    EmbeddedPostgres(wanted).remove()


def identity(server: EmbeddedPostgres) -> int:
    with psycopg.connect(server.dsn()) as connection:
        return connection.execute("select system_identifier from pg_control_system()").fetchone()[0]


def test_a_stopped_server_is_gone_and_starts_again_with_its_data(folder):
    server = EmbeddedPostgres(folder, durable=False)
    with server:
        first, pid = identity(server), server.pid
    assert gone(pid, 0.1)
    assert server.pid is None
    with server:
        assert identity(server) == first
    server.stop()
    with pytest.raises(SandboxError, match="not running"):
        server.dsn()


def test_it_listens_on_loopback_only_and_asks_for_a_password(folder):
    with EmbeddedPostgres(folder, durable=False) as server:
        address = server.address
        assert stat.S_IMODE((server.data_folder / "password").stat().st_mode) == 0o600
        assert stat.S_IMODE(server.data_folder.stat().st_mode) == 0o700
        with psycopg.connect(server.dsn()) as connection:
            assert connection.execute("show listen_addresses").fetchone() == ("127.0.0.1",)
            assert connection.execute(
                "select lower('ÄÖ'), current_setting('server_encoding')"
            ).fetchone() == (
                "äö",
                "UTF8",
            )
        for password in ("", "wrong"):
            with pytest.raises(psycopg.OperationalError, match=r"password"):
                psycopg.connect(server.address.dsn(user=address.user, password=password))


def test_it_is_durable_unless_told_otherwise(folder):
    for durable, expected in ((True, "on"), (False, "off")):
        with (
            EmbeddedPostgres(folder, durable=durable) as server,
            psycopg.connect(server.dsn()) as connection,
        ):
            shown = [
                connection.execute(f"show {name}").fetchone()[0] for name in ("fsync", "full_page_writes")
            ]
            assert shown == [expected, expected]


def test_data_of_another_major_version_is_refused_and_left_alone(folder):
    with EmbeddedPostgres(folder, 16, durable=False) as server:
        first = identity(server)
    with pytest.raises(SandboxError, match="holds the data of PostgreSQL 16"):
        EmbeddedPostgres(folder, 18).start()
    with EmbeddedPostgres(folder, 16, durable=False) as server:
        assert identity(server) == first


def test_a_folder_in_use_is_refused_and_its_server_goes_on(folder):
    with EmbeddedPostgres(folder, durable=False) as server:
        second = EmbeddedPostgres(folder)
        with pytest.raises(datafolder.FolderInUse, match="in use"):
            second.start()
        with pytest.raises(datafolder.FolderInUse):
            second.remove()
        assert identity(server)


def test_killing_the_parent_leaves_no_server_and_the_next_start_succeeds(folder):
    with subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline().split()[0])
        owner.send_signal(signal.SIGKILL)
    # At once, while the guard may still be stopping the old one.
    with EmbeddedPostgres(folder, durable=False) as server:
        assert server.pid != pid
        assert gone(pid, 0.1)


def test_killing_the_parent_is_enough_to_end_the_server(folder):
    with subprocess.Popen([sys.executable, "-c", OWNER, folder], stdout=subprocess.PIPE, text=True) as owner:
        pid = int(owner.stdout.readline().split()[0])
        owner.send_signal(signal.SIGKILL)
    assert gone(pid)


def unguarded(server: EmbeddedPostgres) -> Guarded:
    """A server in the folder that our lock knows nothing of, as one whose guard was killed on macOS."""
    runner = programs.account()
    return guarded_popen(
        [
            server.binaries / "postgres",
            *("-D", server.data_folder / "pgdata"),
            *("-c", "listen_addresses="),
            *("-c", f"unix_socket_directories={server.data_folder}"),
        ],
        user=runner.uid if runner else None,
        cwd=server.data_folder,
        stderr=subprocess.DEVNULL,
    )


def test_a_server_that_outlived_its_run_is_stopped_by_its_id(folder):
    server = EmbeddedPostgres(folder, durable=False)
    with server:
        first = identity(server)
    with unguarded(server) as stale:
        while datafolder.pid_file(server.data_folder)[-1:] != ["ready   "]:
            assert stale.poll() is None
        with server:
            assert gone(stale.pid, 0.1)
            assert identity(server) == first


def test_a_pid_file_with_the_id_of_another_program_is_no_server(folder):
    server = EmbeddedPostgres(folder, durable=False)
    with server:
        lines = datafolder.pid_file(server.data_folder)
    with guarded_popen([sys.executable, "-c", "import signal; signal.pause()"]) as bystander:
        (server.data_folder / "pgdata" / "postmaster.pid").write_text(
            "\n".join([str(bystander.pid), *lines[1:]]) + "\n"
        )
        with server:
            assert identity(server)
        assert bystander.poll() is None


def test_a_half_made_folder_of_an_interrupted_first_start_is_made_anew(folder):
    server = EmbeddedPostgres(folder, durable=False)
    server.start()
    server.stop()
    (server.data_folder / "pgdata").rename(server.data_folder / "pgdata.new")
    with server:
        assert identity(server)
    assert not (server.data_folder / "pgdata.new").exists()


def interpreter_of(user: str | None) -> str:
    """A Python that the user can run: this one may lie where only root gets to."""
    for python in (sys.executable, "/usr/bin/python3", "/usr/local/bin/python3"):
        try:
            new_enough = "import sys; sys.exit(sys.version_info < (3, 11))"
            subprocess.run([python, "-c", new_enough], user=user, cwd="/", check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            continue
        return python
    pytest.skip(f"the user {user} reaches no Python 3.11")


def test_it_runs_as_an_ordinary_user():
    user = "nobody" if os.geteuid() == 0 else None
    packages = Path(psycopg.__file__).resolve().parents[1]
    if user and not programs.reachable(packages, programs.Account(*pwd.getpwnam(user)[2:4], user)):
        pytest.skip(f"the user {user} does not reach this checkout")
    done = subprocess.run(
        [interpreter_of(user), "-c", GUEST],
        cwd="/",
        user=user,
        group=pwd.getpwnam(user).pw_gid if user else None,
        extra_groups=[] if user else None,
        env={"PATH": os.environ["PATH"], "PYTHONPATH": f"{ROOT}:{packages}", "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    answer, uid = done.stdout.split()
    assert answer == "as|postgres"
    assert uid != "0"


@AS_ROOT
def test_root_keeps_the_data_where_the_servers_account_can_reach_it(tmp_path, folder):
    tmp_path.chmod(0o700)
    with EmbeddedPostgres(folder, durable=False) as server:
        assert server.data_folder != folder
        assert server.data_folder.stat().st_uid == programs.account().uid
        assert stat.S_IMODE(tmp_path.stat().st_mode) == 0o700


@AS_ROOT
def test_root_copies_programs_that_the_servers_account_cannot_reach(tmp_path, monkeypatch):
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", home)
        installation = programs.bundled(18).parent
        hidden = tmp_path / "site" / installation.parent.name / installation.name
        shutil.copytree(installation, hidden)
        libraries = installation.parent.parent / f"{installation.parent.name}.libs"
        if libraries.is_dir():
            shutil.copytree(libraries, tmp_path / "site" / libraries.name)
        tmp_path.chmod(0o700)
        first = programs.usable(hidden / "bin", programs.account())
        assert first.is_relative_to(home)
        assert programs.usable(hidden / "bin", programs.account()) == first
        with EmbeddedPostgres(Path(home) / "pg", durable=False, binaries=hidden / "bin") as server:
            assert identity(server)


@AS_ROOT
@pytest.mark.parametrize("plant", ["folder of another", "link", "open to all"])
def test_a_planted_folder_is_refused(plant, monkeypatch, tmp_path):
    runner = programs.account()
    with tempfile.TemporaryDirectory() as home:
        Path(home).chmod(0o755)
        monkeypatch.setattr(tempfile, "tempdir", home)
        ours = programs.shelter(runner)
        assert programs.shelter(runner) == ours
        if plant == "folder of another":
            os.chown(ours, runner.uid, runner.gid)
        elif plant == "link":
            ours.rmdir()
            ours.symlink_to(tmp_path)
        else:
            ours.chmod(0o777)
        with pytest.raises(SandboxError, match="made by someone else"):
            programs.shelter(runner)


def test_an_unknown_version_is_refused_in_one_line():
    with pytest.raises(SandboxError, match="no embedded PostgreSQL 14"):
        programs.bundled(14)

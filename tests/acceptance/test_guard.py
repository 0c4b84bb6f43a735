"""A guarded program never outlives the process that asked for it."""

import errno
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pgmail.sandbox.guard import guarded_popen

WAITS = "import signal; print('up', flush=True); signal.pause()"
DEAF = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + WAITS
ASKER = """
import sys, signal
from pgmail.sandbox.guard import guarded_popen
child = guarded_popen([sys.executable, "-c", "import signal; signal.pause()"])
print(child.pid, child.guard_pid, flush=True)
signal.pause()
"""


def gone(pid: int, within_seconds: float = 15) -> bool:
    """Whether the process ends in time; a zombie that nobody has reaped yet has ended."""
    until = time.monotonic() + within_seconds
    while time.monotonic() < until:
        try:
            os.kill(pid, 0)
            shown = subprocess.run(
                ["ps", "-o", "stat=", "-p", str(pid)], capture_output=True, text=True, check=False
            )
            if shown.stdout.strip().startswith("Z"):
                return True
        except ProcessLookupError:
            return True
        time.sleep(0.02)
    return False


def started(code: str, **options):
    child = guarded_popen([sys.executable, "-c", code], stdout=subprocess.PIPE, **options)
    assert child.stdout.readline() == b"up\n"
    return child


def test_stopping_ends_the_child_and_its_guard_and_twice_is_fine():
    with started(WAITS) as child:
        assert child.poll() is None
        assert child.stop() == -signal.SIGTERM
        assert child.stop() == -signal.SIGTERM
        assert gone(child.pid, 0.1)
        assert gone(child.guard_pid, 0.1)


def test_an_exit_code_comes_through():
    with guarded_popen([sys.executable, "-c", "raise SystemExit(3)"]) as child:
        assert child.wait(20) == 3
        assert child.poll() == 3


def test_a_signal_is_passed_on():
    with started(WAITS) as child:
        child.send_signal(signal.SIGUSR1)
        assert child.wait(20) == -signal.SIGUSR1


def test_a_child_that_ignores_the_ladder_is_killed():
    with started(DEAF, ladder=((signal.SIGTERM, 0.1),)) as child:
        assert child.stop() == -signal.SIGKILL


def test_a_program_that_is_not_there_is_an_oserror_of_the_asker():
    with pytest.raises(FileNotFoundError) as caught:
        guarded_popen([Path("/nowhere/at/all")])
    assert caught.value.errno == errno.ENOENT


def test_ctrl_c_in_the_terminal_reaches_only_the_asker():
    with started(WAITS) as child:
        assert os.getsid(child.pid) == child.pid
        assert os.getsid(child.guard_pid) == child.guard_pid


def test_killing_the_asker_ends_child_and_guard():
    with subprocess.Popen([sys.executable, "-c", ASKER], stdout=subprocess.PIPE) as asker:
        child, guard = map(int, asker.stdout.readline().split())
        asker.kill()
    assert gone(child)
    assert gone(guard)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells a child of its parent's death")
def test_killing_the_guard_ends_the_child():
    with started(WAITS) as child:
        os.kill(child.guard_pid, signal.SIGKILL)
        assert gone(child.pid)
        assert child.wait(20) == -signal.SIGKILL


@pytest.mark.skipif(os.geteuid() != 0, reason="only root may change the user")
def test_root_runs_the_child_as_the_account_named_with_its_groups_only():
    code = "import os; print(os.getuid(), os.getgroups()); "
    with guarded_popen(["/usr/bin/env", "id", "-u"], user="nobody", stdout=subprocess.PIPE) as child:
        assert child.stdout.read().strip() != b"0", code

"""The tree of processes: it keeps its children running and takes them down with it."""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from pgmail import processes
from pgmail.processes import LIFELINE, ProcessTree, Spec, die_with_parent
from tests.waiting import eventually_now

# A child writes its id into a folder and stays until it is told to go.
CHILD = """
import os, pathlib, signal, sys, time
from pgmail.processes import die_with_parent
joined = die_with_parent(seconds=5)
folder = pathlib.Path(sys.argv[1])
behaviour = sys.argv[2] if len(sys.argv) > 2 else ""
if behaviour == "deaf":
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
(folder / f"{os.getpid()}.part").write_text(str(joined))
(folder / f"{os.getpid()}.part").rename(folder / f"{os.getpid()}.pid")
if behaviour.startswith("exit"):
    sys.exit(int(behaviour[4:]))
while True:
    signal.pause()
"""
# One that has trouble with its end.
LEAVES_WITH_3 = """
import os, pathlib, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
(pathlib.Path(sys.argv[1]) / f"{os.getpid()}.pid").touch()
while True:
    signal.pause()
"""
# A parent of such children, to be signalled itself. It says what became of them, for whoever wonders about its code;
# children of a machine that has a lot to do take their time to go.
PARENT = """
import sys
from pgmail.processes import ProcessTree, Spec
child = [sys.executable, "-c", sys.argv[2], sys.argv[1]]
def note(word, facts):
    print(word, dict(facts), file=sys.stderr, flush=True)
sys.exit(ProcessTree([Spec("child", child, 2)], drain_seconds=60, note=note).run())
"""


def until(condition, seconds=60):
    """Wait for what must come."""
    return eventually_now(condition, seconds)


def pids(folder: Path, count: int) -> list[int]:
    """The ids of children that are up, once there are so many."""

    def enough():
        found = [int(path.stem) for path in folder.glob("*.pid")]
        return found if len(found) >= count else None

    return until(enough)


def gone(pid: int) -> bool:
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="ascii")
    except OSError:
        if Path("/proc/self").exists():
            return True
        return subprocess.run(["ps", "-p", str(pid)], capture_output=True, check=False).returncode != 0
    return stat.rpartition(")")[2].split()[0] == "Z"


def spec(folder: Path, behaviour: str = "", count: int = 1) -> Spec:
    return Spec("child", [sys.executable, "-c", CHILD, str(folder), behaviour], count)


def test_children_run_until_the_tree_stops_and_stopping_twice_is_fine(tmp_path):
    notes = []
    tree = ProcessTree(
        [spec(tmp_path, count=2)], note=lambda word, facts: notes.append((word, facts["process"]))
    )
    with tree:
        assert {child.name for child in tree.children} == {"child 1", "child 2"}
        assert sorted(pids(tmp_path, 2)) == sorted(child.pid for child in tree.children)
        assert tree.tend() is None
        with pytest.raises(RuntimeError):
            tree.start()
        assert tree.stop() == 0
    assert notes == [("started", "child 1"), ("started", "child 2")]
    assert all(gone(pid) for pid in pids(tmp_path, 2))
    assert tree.stop() == 0
    assert all(path.read_text() == "True" for path in tmp_path.glob("*.pid"))


def test_a_child_that_crashes_is_started_again_after_a_wait_that_grows(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "BACKOFF_SECONDS", (0.05, 10.0))
    waits = []

    def note(word, facts):
        if word == "restarting":
            waits.append(facts["wait_seconds"])

    with ProcessTree([spec(tmp_path, "exit7")], note=note) as tree:

        def third():
            tree.tend()
            return len(waits) >= 3

        until(third)
        assert not tree.failed
        assert tree.children[0].restarts >= 3
    assert waits[:3] == [0.05, 0.1, 0.2]


def test_a_child_killed_outright_is_started_again(tmp_path):
    with ProcessTree([spec(tmp_path)]) as tree:
        (first,) = pids(tmp_path, 1)
        os.kill(first, signal.SIGKILL)

        def again():
            tree.tend()
            return tree.children[0].pid not in {None, first}

        until(again)
        assert len(pids(tmp_path, 2)) == 2


@pytest.mark.parametrize("code", [1, 2])
def test_a_child_that_cannot_start_ends_the_tree(tmp_path, code):
    with ProcessTree([spec(tmp_path, f"exit{code}"), spec(tmp_path)]) as tree:

        def failed():
            tree.tend()
            return tree.failed

        until(failed)
        assert tree.stop() == 0


def test_one_that_ran_for_long_is_started_again_whatever_its_code(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "SETTLED_SECONDS", 0.0)
    with ProcessTree([spec(tmp_path, "exit1")]) as tree:

        def again():
            tree.tend()
            return tree.children[0].restarts >= 1

        until(again)
        assert not tree.failed


def test_a_child_that_does_not_go_is_killed_and_told(tmp_path):
    notes = []
    tree = ProcessTree([spec(tmp_path, "deaf")], drain_seconds=0.3, note=lambda word, _: notes.append(word))
    tree.start()
    (pid,) = pids(tmp_path, 1)
    assert tree.stop() == 1
    assert gone(pid)
    assert notes == ["started", "killed"]


def test_a_child_that_fails_as_it_goes_makes_the_code_1_and_is_told(tmp_path):
    notes = []
    argv = [sys.executable, "-c", LEAVES_WITH_3, str(tmp_path)]
    tree = ProcessTree(
        [Spec("child", argv)], note=lambda word, facts: notes.append((word, facts.get("code")))
    )
    tree.start()
    pids(tmp_path, 1)
    assert tree.stop() == 1
    assert notes == [("started", None), ("ended", 3)]


def test_a_program_that_does_not_exist_is_an_error_and_leaves_nothing(tmp_path):
    tree = ProcessTree([spec(tmp_path), Spec("nothing", [str(tmp_path / "nothing")])])
    with pytest.raises(FileNotFoundError):
        tree.start()
    assert all(child.pid is None for child in tree.children)


def start_parent(folder: Path) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", PARENT, str(folder), CHILD])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_signal_to_the_parent_drains_all_of_them(tmp_path, number):
    parent = start_parent(tmp_path)
    children = pids(tmp_path, 2)
    parent.send_signal(number)
    assert parent.wait(30) == 0
    assert all(gone(pid) for pid in children)


def test_children_die_with_a_parent_that_is_killed_outright(tmp_path):
    parent = start_parent(tmp_path)
    children = pids(tmp_path, 2)
    parent.kill()
    parent.wait(30)
    for pid in children:
        until(lambda pid=pid: gone(pid))


def test_a_parent_brings_back_a_child_that_was_killed(tmp_path):
    parent = start_parent(tmp_path)
    try:
        os.kill(pids(tmp_path, 2)[0], signal.SIGKILL)
        assert len(pids(tmp_path, 3)) == 3
    finally:
        parent.terminate()
        assert parent.wait(30) == 0


def test_run_ends_with_1_when_a_child_cannot_start(tmp_path):
    assert ProcessTree([spec(tmp_path, "exit2")]).run() == 1


def test_run_stops_at_a_signal_and_hands_the_handlers_back(tmp_path):
    before = signal.getsignal(signal.SIGTERM)

    def tell():
        pids(tmp_path, 1)
        os.kill(os.getpid(), signal.SIGTERM)

    teller = threading.Thread(target=tell)
    teller.start()
    assert ProcessTree([spec(tmp_path)]).run() == 0
    teller.join()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_second_signal_ends_the_wait_for_a_drain(tmp_path):
    def tell():
        pids(tmp_path, 1)
        os.kill(os.getpid(), signal.SIGTERM)
        os.kill(os.getpid(), signal.SIGINT)

    teller = threading.Thread(target=tell)
    teller.start()
    began = time.monotonic()
    assert ProcessTree([spec(tmp_path, "deaf")], drain_seconds=300).run() == 1
    teller.join()
    assert time.monotonic() - began < 60


def test_a_second_signal_that_comes_before_the_drain_began_counts_as_well(tmp_path):
    tree = ProcessTree([spec(tmp_path, "deaf")], drain_seconds=300)
    tree.start()
    pids(tmp_path, 1)
    tree._signals = 2  # as the handler leaves it
    began = time.monotonic()
    assert tree.stop() == 1
    assert time.monotonic() - began < 60


def test_a_system_without_room_for_a_process_takes_no_other_child_down(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "BACKOFF_SECONDS", (0.05, 10.0))
    notes = []
    with ProcessTree([spec(tmp_path, count=2)], note=lambda word, facts: notes.append((word, facts))) as tree:
        first, second = (child.pid for child in tree.children)
        pids(tmp_path, 2)
        real, fails = subprocess.Popen, [BlockingIOError(11, "no room"), BlockingIOError(11, "no room")]

        def popen(*words, **options):
            if fails:
                raise fails.pop()
            return real(*words, **options)

        monkeypatch.setattr(processes.subprocess, "Popen", popen)
        os.kill(first, signal.SIGKILL)

        def again():
            tree.tend()
            return tree.children[0].pid not in {None, first}

        until(again)
        assert not tree.failed
        assert tree.children[1].pid == second
        assert [facts["wait_seconds"] for word, facts in notes if word == "restarting"] == [0.05, 0.1, 0.2]


def test_a_process_that_no_tree_started_has_nobody_to_die_with(monkeypatch):
    monkeypatch.delenv(LIFELINE, raising=False)
    assert die_with_parent() is False
    monkeypatch.setenv(LIFELINE, f"{2**20}:1")  # inherited by a grandchild, without the pipe
    assert die_with_parent() is False
    assert LIFELINE not in os.environ


def test_an_orphan_is_told_to_drain_and_then_ended(monkeypatch):
    done = []
    monkeypatch.setattr(processes.os, "kill", lambda pid, number: done.append((pid, number)))
    monkeypatch.setattr(processes.os, "_exit", done.append)
    read, write = os.pipe()
    os.close(write)
    processes._watch(read, 0.0, signal.SIGTERM)
    os.close(read)
    assert done == [(os.getpid(), signal.SIGTERM), 1]

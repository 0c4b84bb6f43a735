"""The commands that go on: which processes they start, with which settings, and the code they end with."""

import os
import sys

import pytest
from click.testing import CliRunner

from pgmail import log, processes
from pgmail.app import main
from pgmail.cli import common, front, parts, run
from pgmail.cli.main import cli
from pgmail.errors import SettingsError


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    for name in [name for name in os.environ if name.startswith("PGMAIL_")]:
        monkeypatch.delenv(name)
    monkeypatch.delenv(processes.LIFELINE, raising=False)
    monkeypatch.setenv("PGMAIL_DATABASE_URL", "postgresql://127.0.0.1/x")
    monkeypatch.setattr(log, "configure", lambda *_, **__: None)  # it is the whole process's
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def given(monkeypatch):
    """What commands ask for, in place of the real rooms: each call is kept and answered with 7."""
    calls = {}
    for name in ("run_api", "run_worker", "run_workers", "run_maintain", "check_relay"):
        calls[name] = []
    monkeypatch.setattr(run, "part", lambda name: lambda *args: calls[name].append(args) or 7)
    return calls


@pytest.fixture
def trees(monkeypatch):
    """The trees that commands would run."""
    made = []

    class Tree:
        def __init__(self, specs, **options):
            made.append((specs, options))
            options["note"]("started", {"process": "x"})
            options["note"]("restarting", {"process": "x"})

        def run(self):
            return 5

    monkeypatch.setattr(processes, "ProcessTree", Tree)
    return made


def invoke(*words):
    return CliRunner().invoke(cli, words)


def test_serve_is_a_tree_of_api_and_workers(given, trees):
    words = ["--port", "9", "--host", "::1", "--processes", "3", "--concurrency", "4"]
    assert invoke("serve", *words).exit_code == 5
    (((api, worker), options),) = trees
    assert (api.name, api.count, api.argv) == ("api", 1, [sys.executable, "-m", "pgmail", "api"])
    assert api.env == {"PGMAIL_API_HOST": "::1", "PGMAIL_API_PORT": "9", "PGMAIL_API_PROCESSES": "1"}
    assert (worker.name, worker.count) == ("worker", 3)
    assert worker.argv[-4:] == ["--processes", "1", "--concurrency", "4"]
    assert options["drain_seconds"] == 35
    assert len(given["check_relay"]) == 1


def test_one_api_process_runs_here_and_several_in_a_tree(given, trees, monkeypatch):
    assert invoke("api", "--port", "0").exit_code == 0
    assert given["run_api"][0][0].api_port == 0
    assert trees == []
    assert invoke("api", "--processes", "2").exit_code == 5
    assert trees[0][0][0].count == 2
    assert "name it" in invoke("api", "--processes", "2", "--port", "0").stderr
    # The same command as a child of that tree is one of the processes.
    monkeypatch.setenv(processes.LIFELINE, "1000000:1")
    assert invoke("api", "--processes", "2").exit_code == 0
    assert len(given["run_api"]) == 2


def test_one_worker_runs_here_and_several_under_their_supervisor(given, trees):
    assert invoke("worker").exit_code == 7
    assert invoke("worker", "--processes", "3", "--concurrency", "9").exit_code == 7
    assert given["run_worker"][0][0].worker_processes == 1
    assert given["run_workers"][0][1:] == (3, 9)
    assert trees == []


def test_maintain_ends_with_the_code_of_what_it_ran(given):
    assert invoke("maintain").exit_code == 7
    assert len(given["run_maintain"]) == 1


def test_an_option_out_of_range_is_a_fault_of_settings(given):
    result = invoke("worker", "--concurrency", "0")
    assert result.exit_code == 1
    assert "--worker-concurrency" in result.stderr


def test_serve_without_a_database_starts_nothing(given, trees, monkeypatch):
    monkeypatch.delenv("PGMAIL_DATABASE_URL")
    assert invoke("serve").exit_code == 1
    assert trees == []


def test_a_relay_that_is_wrong_is_said_by_the_parent(given, trees, monkeypatch):
    def refuse(_):
        raise SettingsError(["PGMAIL_RELAY_URL: no"])

    monkeypatch.setattr(run, "part", lambda _: refuse)
    for words in (["serve"], ["worker", "--processes", "2"]):
        result = invoke(*words)
        assert (result.exit_code, result.stderr) == (1, "pgmail: PGMAIL_RELAY_URL: no\n")
    assert trees == []


def test_the_version_is_printed():
    assert invoke("--version").stdout.startswith("pgmail ")


def test_main_is_the_command(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["pgmail", "config", "show", "--json"])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    assert "PGMAIL_DATABASE_URL" in capsys.readouterr().out
    assert callable(parts.part("run_api"))


def test_doctor_reports_faults_of_settings(monkeypatch):
    monkeypatch.setenv("PGMAIL_API_PORT", "x")
    result = invoke("doctor")
    assert result.exit_code == 1
    assert "PGMAIL_API_PORT" in result.stdout
    monkeypatch.delenv("PGMAIL_API_PORT")
    monkeypatch.delenv("PGMAIL_DATABASE_URL")
    assert "PGMAIL_DATABASE_URL" in invoke("doctor").stdout
    monkeypatch.setenv("PGMAIL_DATABASE_URL", "postgresql://127.0.0.1:1/x")
    assert "cannot be reached" in invoke("doctor").stdout


def test_standard_output_is_pointed_at_nothing_once_its_reader_is_gone(monkeypatch):
    moved = []
    monkeypatch.setattr(front.os, "dup2", lambda *_: moved.append(1))
    front._close_quietly()
    assert len(moved) <= 1


def test_an_option_that_is_not_given_is_no_setting():
    assert common.settings({"api_port": None}).sources["api_port"] == "default"

# ruff: noqa: F401, F811 - fixtures of another file
"""What strangers write into templates harms neither a worker nor the mail beside theirs."""

import json
import os
import sys
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest

from tests.acceptance.test_worker_processes import app, far, owner, start_worker
from tests.attacks import COMPILE_BOMBS, RUNTIME_BOMBS
from tests.sql.kit import differences, one, rows
from tests.waiting import eventually_now

GOOD, BAD, HEAVY = 500, 50, 5
A_SECOND = 50  # good mails handed over
SEND = "select pgmail.send(%s::jsonb)"


def email(to: str, html: str) -> str:
    return json.dumps(
        {
            "from": "shop@example.com",
            "to": to,
            "subject": "Hi {{ name }}",
            "html": html,
            "variables": {"name": "Ada", "x": "text", "names": ["a", "b"]},
        }
    )


def hand_over(app: Any, kind: str, bombs: Iterable[str]) -> None:
    """So many good mails at an even pace, and the others evenly between them."""
    began, between = time.monotonic(), dict(zip(range(0, GOOD, GOOD // BAD), bombs, strict=False))
    for n in range(GOOD):
        # The pace of an application; nothing is waited for.
        time.sleep(max(0.0, began + n / A_SECOND - time.monotonic()))
        app.execute(SEND, [email(f"{kind}{n}@example.org", f"<p>{{{{ name }}}} {n}</p>")])
        if n in between:
            app.execute(SEND, [email(f"bad{n}@example.net", between[n])])
        if between and n % (GOOD // HEAVY) == 7:
            heavy = "{% for i in range(20000) %}{{ i }} {% endfor %}"
            app.execute(SEND, [email(f"heavy{n}@example.com", heavy)])


def milliseconds(owner: Any, kind: str) -> tuple[float, float]:
    """Median and 99th percentile from enqueued to sent."""
    found = rows(
        owner,
        "select percentile_cont(0.5) within group (order by s), percentile_cont(0.99) within group (order by s) from ("
        " select extract(epoch from o.at - m.created_at)::float8 * 1000 as s from pgmail.outcome o"
        " join pgmail.message m on m.id = o.message_id join pgmail.recipient r on r.id = o.recipient_id"
        " where o.state = 'sent' and r.address like %s) x",
        [f"{kind}%@example.org"],
    )
    return found[0]


def most_megabytes(pid: int) -> float:
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("VmHWM"))


def seconds_of(pid: int) -> float:
    """Processor time of a process, without its children."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


def sent(owner: Any, pattern: str) -> int:
    return one(
        owner,
        "select count(*) from pgmail.outcome o join pgmail.recipient r on r.id = o.recipient_id"
        " where o.state = 'sent' and r.address like %s",
        [pattern],
    )


@pytest.mark.long
def test_fifty_malicious_mails_between_five_hundred_good_ones_harm_none_of_them(
    app, owner, start_worker, capsys
):
    worker = start_worker()
    for n in range(100):  # its relay is ramped up to
        app.execute(SEND, [email(f"first{n}@example.org", "<p>{{ name }}")])
    eventually_now(lambda: sent(owner, "first%") == 100, seconds=60)
    started = seconds_of(worker.pid)
    hand_over(app, "before", ())
    eventually_now(lambda: sent(owner, "before%") == GOOD, seconds=60)
    before, memory = milliseconds(owner, "before"), most_megabytes(worker.pid)
    idle = seconds_of(worker.pid)
    bombs = [
        *RUNTIME_BOMBS[:: len(RUNTIME_BOMBS) // 30][:30],
        *COMPILE_BOMBS[:: len(COMPILE_BOMBS) // 20][:20],
    ]
    assert len(bombs) == BAD
    hand_over(app, "among", bombs)
    eventually_now(lambda: sent(owner, "among%") == GOOD, seconds=60)
    eventually_now(lambda: not one(owner, "select count(*) from pgmail.queue"), seconds=90)
    among, grown = milliseconds(owner, "among"), most_megabytes(worker.pid)
    took = idle - started, seconds_of(worker.pid) - idle
    with capsys.disabled():
        sys.stdout.write(
            f"\ngood mail, p50 and p99: {before[0]:.0f} and {before[1]:.0f} ms alone,"
            f" {among[0]:.0f} and {among[1]:.0f} ms among {BAD} bombs; worker at most {memory:.0f} and {grown:.0f} MB,"
            f" {took[0]:.1f} and {took[1]:.1f} s of processor time\n"
        )
    assert worker.poll() is None
    assert one(owner, "select count(*) from pgmail.worker where program = 'worker'") == 1
    assert sent(owner, "heavy%") == HEAVY
    dead = dict(rows(owner, "select reason, count(*)::int from pgmail.dead_letter group by 1"))
    assert dead.keys() == {"template"}
    assert dead["template"] + sent(owner, "bad%") == BAD
    assert dead["template"] >= BAD * 2 // 3
    assert differences(owner) == [0]
    # By its own processor time: on a busy machine the wall clock tells what others do. Within the full bounds of a
    # template, fifty bombs would take the worker more than fifteen seconds.
    assert took[1] < took[0] + 10
    assert among[1] < 5 * before[1] + 10_000
    assert grown < memory + 100

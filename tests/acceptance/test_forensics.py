"""ops/docs/forensics.md: every query on the page runs, in psql, and answers what the page says.

The page's answers are about one made-up lunch hour, played here by hand on a clock that stands still.
`PGMAIL_WRITE_FORENSICS=1` writes the answers anew.
"""

import os
import re
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.fix_clock import DatabaseClock
from tests.fix_db import Database, Server
from tests.sql.kit import Hand, Lease, body, differences, one, send

PAGE = Path(__file__).resolve().parents[2] / "ops" / "docs" / "forensics.md"
_ENTRY = re.compile(
    r"^## (?P<number>\d+)\. (?P<question>[^\n]+)\n(?P<words>.*?)```sql\n(?P<query>.*?)```\n```\n(?P<answer>.*?)```\n",
    re.MULTILINE | re.DOTALL,
)


class Entry(NamedTuple):
    number: int
    question: str
    query: str
    answer: str
    span: tuple[int, int]  # of the answer in the page


def entries() -> list[Entry]:
    return [
        Entry(int(x["number"]), x["question"], x["query"], x["answer"], x.span("answer"))
        for x in _ENTRY.finditer(PAGE.read_text())
    ]


class Lunch:
    """What happened from noon on."""

    def __init__(self, db: Database, clock: DatabaseClock) -> None:
        self.clock = clock
        clock.freeze(datetime(2026, 11, 21, 12, tzinfo=UTC))
        self.app, self.owner, self.admin = db.connect("producer"), db.connect(), db.connect("admin")
        self.first, self.second = (Hand(db.connect("worker")) for _ in range(2))
        for epoch, host in ((self.first.epoch, "mail-1"), (self.second.epoch, "mail-2")):
            self.owner.execute("update pgmail.worker set host = %s where epoch = %s", [host, epoch])

    def after(self, seconds: float) -> None:
        self.clock.advance(seconds)

    def to(self, address: str, **more: Any) -> tuple[Any, Lease]:
        """Send and claim."""
        mail = send(self.app, address, **more)
        self.after(1)
        return mail, self.first.claim()[-1]

    def end(self, lease: Lease, kind: str, address: str, words: str = "", **more: Any) -> None:
        """Settle with a reply such as `451 4.7.1 Try later`."""
        site = address.rpartition("@")[2]
        if words:
            code, enhanced, reply = words.split(" ", 2)
            more |= {"code": int(code), "enhanced": enhanced, "reply": reply, "phase": "dot"}
        facts = {"site": site, "relay": "default", "remote_host": f"mx.{site}:25", "ms": 80} | more
        assert self.first.settle(lease, kind, **facts) == ["settled"]


@pytest.fixture
def lunch(db: Database, db_clock: DatabaseClock) -> dict[str, str]:  # noqa: PLR0915 - a story
    """Plays it; the ids and addresses that the page's queries ask about."""
    x = Lunch(db, db_clock)
    x.admin.execute("select pgmail.save_stream('invoices', '{\"on_doubt\": \"hold\"}')")
    x.admin.execute(
        "select pgmail.save_template('welcome', 'Welcome', 'Hi {{ name }}', null, '{name}', '{}', true)"
    )

    story, lease = x.to("ada@example.org", subject="Your order")
    x.end(lease, "deferred", "ada@example.org", "451 4.7.1 Greylisting in action", delay=30)
    x.after(31)
    (lease,) = x.first.claim()
    x.after(1)
    x.end(lease, "sent", "ada@example.org", "250 2.0.0 Ok: queued as 4F1", ms=840, tls="TLSv1.3")

    for n in range(3):
        to = f"n{n}@gmail.com"
        _, lease = x.to(to, subject=None, text=None, template={"id": "welcome"}, variables={"name": n})
        x.end(lease, "sent", to, "250 2.0.0 OK", ms=100 + 50 * n)
    _, lease = x.to("nobody@gmail.com")
    x.end(lease, "bounced", "nobody@gmail.com", "550 5.1.1 No such user")
    x.after(60)

    for n in range(2):
        _, lease = x.to(f"full{n}@example.net")
        x.end(
            lease,
            "dead",
            f"full{n}@example.net",
            "452 4.2.2 Mailbox full",
            reason="attempts_exhausted",
            attempts=19,
        )
    _, lease = x.to("tom@example.net", text="{{ name }}", variables={})
    x.end(
        lease, "dead", "tom@example.net", reason="template", error="text, line 1: 'name' is undefined", began=False,
        remote_host=None, ms=None,
    )  # fmt: skip

    # A reply that was lost: one stream waits for a person, another sends again.
    doubtful, lease = x.to("cfo@example.com", stream="invoices", subject="Invoice 7")
    x.end(
        lease, "held", "cfo@example.com", stream="invoices", phase="dot", doubt=True, error="connection reset",
        reason="in doubt: the reply to the end of data was lost",
    )  # fmt: skip
    _, lease = x.to("zoe@example.org")
    x.first.release([lease])
    (lease,) = x.second.claim()
    x.after(9)
    one(x.owner, "select pgmail.rescue_v1(%s)", [x.second.epoch])
    (again,) = x.first.claim()
    x.end(again, "sent", "zoe@example.org", "250 2.0.0 Ok: queued as 4F2")
    x.second.settle(lease, "sent", code=250, enhanced="2.0.0", reply="Ok: queued as 4F3", relay="default")
    x.after(60)

    x.admin.execute("select pgmail.suppress('eve@example.org', 'complained', 'feedback loop')")
    send(x.app, "eve@example.org")
    cancelled = send(x.app, "oscar@example.org", subject="Old offer")
    one(x.admin, "select pgmail.cancel(%s, 'the offer is over')", [cancelled])
    send(x.app, "late@example.org", expires_at=x.clock.now().replace(second=59).isoformat())
    x.after(60)
    one(x.owner, "select pgmail.expire_v1()")

    for n in range(2):
        to = f"busy{n}@gmail.com"
        _, lease = x.to(to)
        x.end(lease, "deferred", to, "421 4.7.0 Try again later, closing connection", delay=600)
    _, lease = x.to("slow@example.net")
    x.end(lease, "deferred", "slow@example.net", "452 4.2.2 Mailbox full", delay=600)
    send(x.app, "ada@example.org", subject="Tomorrow", scheduled_at="2026-11-22T09:00:00Z")
    x.to("now@example.org")  # on the wire
    x.after(20)
    send(x.app, "next@example.org", subject="Next")
    send(x.app, "news@gmail.com", stream="broadcast")
    x.admin.execute("select pgmail.pause_relay('bulk', 'new address, warming up')")
    x.after(9)
    one(x.first.connection, "select pgmail.worker_beat_v1(%s, 'running', false)", [x.first.epoch])
    x.after(1)
    assert differences(x.owner) == [0]
    return {"email": str(story), "address": "ada@example.org", "doubtful": str(doubtful)}


def run(server: Server, dsn: str, query: str, variables: dict[str, str]) -> str:
    """What psql prints, without blanks at the ends of lines."""
    argv = [server.binaries / "psql", "-X", "-q", "-v", "ON_ERROR_STOP=1", "-P", "footer=off"]
    argv += [word for name, value in variables.items() for word in ("-v", f"{name}={value}")]
    done = subprocess.run(
        [*argv, "-f", "-", dsn], input=query, capture_output=True, text=True, check=False, timeout=30,
        env={"PATH": os.environ["PATH"], "PGTZ": "UTC", "LC_ALL": "C.UTF-8", "PGCLIENTENCODING": "UTF8"},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return "".join(line.rstrip() + "\n" for line in done.stdout.splitlines() if line.strip())


def test_the_page_has_its_twenty_questions_in_order():
    found = entries()
    assert [entry.number for entry in found] == list(range(1, len(found) + 1))
    assert len(found) >= 20
    assert len({entry.question for entry in found}) == len(found)
    assert PAGE.read_text().count("```sql") == len(found)


def test_every_query_of_the_page_answers_what_the_page_says(db, server, lunch):
    page, wrong = PAGE.read_text(), []
    # One of the questions is about the whole server: an application that forgot its transaction.
    with psycopg.connect(db.dsn_for("producer"), application_name="shop") as forgetful:
        forgetful.execute("set transaction isolation level repeatable read")
        forgetful.execute("select pgmail.send(%s)", [Jsonb(body("forgotten@example.org"))])
        for entry in reversed(entries()):
            dsn = db.superuser_dsn if "pg_stat_activity" in entry.query else db.dsn_for("admin")
            answer = run(server, dsn, entry.query, lunch)
            if answer != entry.answer:
                wrong.append(f"{entry.number}. {entry.question}\n{answer}")
                page = page[: entry.span[0]] + answer + page[entry.span[1] :]
    if os.environ.get("PGMAIL_WRITE_FORENSICS"):
        PAGE.write_text(page)
    else:
        assert not wrong, "\n".join(wrong)

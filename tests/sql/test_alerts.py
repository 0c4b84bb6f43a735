"""Alerts: each condition made true fires once and is resolved once; what is silenced stays quiet; telling is a queue."""

import uuid

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit
from tests.sql.kit import refusal, rows

A_DAY = 86_400


class Fleet:
    """A database with a clock: an operator, the leader that looks, an application."""

    def __init__(self, db, clock):
        self.db, self.clock = db, clock
        self.owner, self.leader, self.app = db.connect(), db.connect("worker"), db.connect("producer")
        self.moves = []

    def look(self, seconds=0):
        """Let time pass, and look; what moved."""
        if seconds:
            self.clock.advance(seconds)
        moved = rows(self.leader, "select move, rule, subject from pgmail.alert_step_v1()")
        self.moves += moved
        return moved

    def words(self, rule):
        return kit.one(
            self.owner, "select words from pgmail.alert where rule = %s order by id desc limit 1", [rule]
        )

    def set(self, rule, **settings):
        self.owner.execute("select pgmail.set_alert_rule(%s, %s, p_fleet => true)", [rule, Jsonb(settings)])

    def tally(self, stream="transactional", tenant=1, **kinds):
        for kind, n in kinds.items():
            self.owner.execute(
                "insert into pgmail.tally_total as t (tenant_id, stream, kind, n) values (%s, %s, %s, %s)"
                " on conflict (tenant_id, stream, kind) do update set n = t.n + excluded.n",
                [tenant, stream, kind, n],
            )

    def beat(self, epoch):
        self.owner.execute("update pgmail.worker set beat_at = pgmail.now() where epoch = %s", [epoch])


@pytest.fixture
def fleet(db, db_clock):
    db_clock.freeze()
    return Fleet(db, db_clock)


def worker(fleet):
    return kit.one(fleet.leader, "select pgmail.worker_start_v1('host-a', 77, 'worker', 4)")


def due(fleet, to="ada@example.org", **more):
    """A mail that waits, its lane known."""
    made = kit.send(fleet.app, to, **more)
    fleet.leader.execute("select pgmail.fold_touches_v1()")
    return made


# ---------------------------------------------------------------- conditions: how each begins and ends
def no_worker(fleet):
    due(fleet)
    fleet.look()
    return [], lambda: worker(fleet)


def sending_stalled(fleet):
    due(fleet)
    epoch = worker(fleet)
    fleet.look()
    fleet.clock.advance(400)
    fleet.beat(epoch)
    fleet.look()
    fleet.clock.advance(70)
    fleet.beat(epoch)

    def sent():
        fleet.tally(sent=1)
        fleet.beat(epoch)

    return [], sent


def oldest_due(fleet):
    due(fleet)
    fleet.owner.execute("update pgmail.relay set state = 'away', reason = 'connection refused'")
    fleet.set("relay_away", enabled=False)
    fleet.look()
    fleet.clock.advance(1000)
    fleet.look()
    return [], lambda: fleet.owner.execute("delete from pgmail.queue")


def queue_depth(fleet):
    fleet.tally(enqueued=150_000)
    fleet.look()
    fleet.clock.advance(540)
    return [], lambda: fleet.tally(sent=60_000)


def error_rate(fleet):
    fleet.tally(sent=9_990, bounced=10)
    fleet.look(A_DAY / 2)
    fleet.tally(sent=500)
    fleet.look(A_DAY / 2)
    fleet.tally(sent=80, bounced=20)
    fleet.look(300)
    fleet.clock.advance(100)
    return ["bounce_rate"], lambda: fleet.tally(sent=20_000)


def bounce_rate(fleet):
    fleet.tally(sent=1)
    fleet.look(60)
    fleet.set("error_rate", enabled=False)
    fleet.tally(sent=180, bounced=20)
    return [], lambda: fleet.tally(sent=4_000)


def dead_letters(fleet):
    fleet.set("error_rate", enabled=False)
    fleet.look()
    fleet.tally(dead=1)
    fleet.look(60)
    fleet.tally(dead=11)
    return [], lambda: fleet.tally(dead=-11)


def in_doubt(fleet):
    due(fleet)
    fleet.owner.execute("update pgmail.queue set due_at = 'infinity', in_doubt = true, hold_reason = 'in doubt'")
    fleet.look()
    fleet.clock.advance(250)
    return [], lambda: fleet.owner.execute("update pgmail.queue set in_doubt = false")


def sender_domain(fleet):
    fleet.owner.execute(
        "insert into pgmail.sender_domain (tenant_id, domain, token, state, created_by, verified_at, missing_since, answer)"
        " values (1, 'example.com', 't', 'verified', 'me', pgmail.now(), pgmail.now(), 'NXDOMAIN')"
    )
    return [], lambda: fleet.owner.execute("update pgmail.sender_domain set missing_since = null")


def pause_forgotten(fleet):
    fleet.app.execute("select 1")
    fleet.db.connect("admin").execute("select pgmail.pause_mail('site', 'gmail.com', 'they asked us to')")
    fleet.look()
    fleet.clock.advance(4 * A_DAY)
    return [], lambda: fleet.db.connect("admin").execute("select pgmail.resume_mail('site', 'gmail.com')")


def restored_database(fleet):
    fleet.owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', 'it went back by an hour')")
    return [], lambda: fleet.owner.execute("delete from pgmail.fence")


def relay_away(fleet):
    fleet.owner.execute("update pgmail.relay set state = 'away', reason = 'connection refused'")
    fleet.look()
    fleet.clock.advance(290)
    return [], lambda: fleet.owner.execute("update pgmail.relay set state = 'up'")


def worker_lost(fleet):
    epoch = worker(fleet)
    fleet.clock.advance(10)
    fleet.leader.execute("select pgmail.rescue_v1(%s)", [epoch])
    return [], lambda: fleet.clock.advance(1000)


def certificate(fleet):
    fleet.leader.execute(
        "select pgmail.saw_certificate_v1('relay default', 'mx.example.org:587', pgmail.now() + interval '5 days')"
    )
    return [], lambda: fleet.leader.execute(
        "select pgmail.saw_certificate_v1('relay default', 'mx.example.org:587', pgmail.now() + interval '90 days')"
    )


def partitions_low(fleet):
    fleet.set("partitions_low", threshold=100)
    return [], lambda: fleet.set("partitions_low", threshold=1)


def old_transaction(fleet):
    holder = fleet.db.connect("producer", autocommit=False, application_name="report.py")
    holder.execute("set transaction isolation level repeatable read")
    holder.execute("select pgmail.now()")
    fleet.owner.execute("select pg_current_xact_id()")
    fleet.look()
    fleet.clock.advance(1900)
    return [], holder.close


def notify_queue(fleet):
    fleet.set("notify_queue", enabled=False)
    fleet.owner.execute(
        "create or replace function pgmail.alert_facts_database() returns setof pgmail.alert_fact language sql as"
        " $$ select id, null::integer, '', 0.5, 'half full' from pgmail.alert_rule where kind = 'notify_queue' and enabled $$"
    )
    fleet.look()
    fleet.set("notify_queue", enabled=True, for_seconds=0)
    return [], lambda: fleet.set("notify_queue", enabled=False)


CONDITIONS = [
    no_worker,
    sending_stalled,
    oldest_due,
    queue_depth,
    error_rate,
    bounce_rate,
    dead_letters,
    in_doubt,
    sender_domain,
    pause_forgotten,
    restored_database,
    relay_away,
    worker_lost,
    certificate,
    partitions_low,
    old_transaction,
    notify_queue,
]


@pytest.mark.parametrize("condition", CONDITIONS, ids=lambda one: one.__name__)
def test_a_condition_fires_once_and_is_resolved_once(fleet, condition):
    also, mend = condition(fleet)
    name = condition.__name__

    def told():
        return [move for move, rule, _ in fleet.moves if rule == name]

    assert told() == []
    for _ in range(12):
        fleet.look(10)
    assert told() == ["firing"], fleet.moves
    assert fleet.words(name).endswith("."), fleet.words(name)
    assert {rule for _, rule, _ in fleet.moves} <= {name, *also}
    mend()
    for _ in range(45):
        fleet.look(10)
    assert told() == ["firing", "resolved"], (fleet.moves, fleet.words(name))
    assert [move for move, _, _ in fleet.moves if move == "blind"] == []

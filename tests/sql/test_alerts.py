"""Alerts: each condition made true fires once and is resolved once; a silence is quiet; telling is a queue."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from pgmail.store import migrate
from tests.fix_db import PREFIX
from tests.sql import kit
from tests.sql.kit import rows
from tests.waiting import eventually_now

A_DAY = 86_400


class Fleet:
    """A database with a clock: an operator, the leader that looks, an application."""

    def __init__(self, db, clock):
        self.db, self.clock = db, clock
        self.owner, self.leader, self.app = db.connect(), db.connect("worker"), db.connect("producer")
        self.moves, self.alive, self.counts = [], [], True

    def look(self, seconds=0):
        """Let time pass, and look; what moved."""
        if seconds:
            self.clock.advance(seconds)
        for epoch in self.alive:
            self.owner.execute("update pgmail.worker set beat_at = pgmail.now() where epoch = %s", [epoch])
        if self.counts:
            self.leader.execute("select pgmail.gauge_lanes_v1()")
            self.owner.execute(
                "update pgmail.insight_cursor set rolled_at = pgmail.now(), counted_at = pgmail.now()"
            )
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
            if kind == "dead" and n > 0:
                self.owner.execute(
                    "insert into pgmail.rollup as r (tenant_id, dim, grain, at, key, kind, n)"
                    " select %s, 'stream', g, date_bin(w::interval, pgmail.now(), '2000-01-01Z'), %s, 'dead', %s"
                    " from (values ('minute', '1 min'), ('quarter', '15 min'), ('hour', '1 h')) v(g, w)"
                    " on conflict (tenant_id, dim, grain, at, key, kind, bucket) do update set n = r.n + excluded.n",
                    [tenant, stream, n],
                )

    def hire(self):
        """A worker that beats."""
        self.alive.append(worker(self))


@pytest.fixture
def fleet(db, db_clock):
    db_clock.freeze()
    made = Fleet(db, db_clock)
    # It would see transactions of other tests, which share the server, grow old as this test's clock is moved.
    made.set("old_transaction", enabled=False)
    return made


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
    return [], fleet.hire


def sending_stalled(fleet):
    due(fleet)
    fleet.hire()
    fleet.look()
    fleet.look(350)

    def sent():
        fleet.tally(sent=1)
        fleet.owner.execute("delete from pgmail.queue")

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
    fleet.clock.advance(1000)
    fleet.tally(sent=80, bounced=20)
    fleet.look()
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
    fleet.tally(dead=-200)  # an operator tries all of them again, and that hides nothing
    fleet.tally(dead=11)
    return [], lambda: fleet.clock.advance(900)


def in_doubt(fleet):
    due(fleet)
    fleet.owner.execute(
        "update pgmail.queue set due_at = 'infinity', in_doubt = true, hold_reason = 'in doubt'"
    )
    fleet.look()
    fleet.clock.advance(250)
    return [], lambda: fleet.owner.execute("update pgmail.queue set in_doubt = false")


def sender_domain(fleet):
    fleet.owner.execute(
        "insert into pgmail.sender_domain"
        " (tenant_id, domain, token, state, created_by, verified_at, missing_since, answer)"
        " values (1, 'example.com', 't', 'verified', 'me', pgmail.now(), pgmail.now(), 'NXDOMAIN')"
    )
    return [], lambda: fleet.owner.execute("update pgmail.sender_domain set missing_since = null")


def pause_forgotten(fleet):
    fleet.db.connect("admin").execute("select pgmail.pause_mail('site', 'gmail.com', 'they asked us to')")
    fleet.look()
    fleet.clock.advance(4 * A_DAY)
    return [], lambda: fleet.db.connect("admin").execute("select pgmail.resume_mail('site', 'gmail.com')")


def restored_database(fleet):
    fleet.owner.execute(
        "insert into pgmail.fence (noticed_by, reason) values ('me', 'it went back by an hour')"
    )
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
    holder.execute("select count(*) from pg_class")
    fleet.owner.execute("select pg_current_xact_id()")
    fleet.set("old_transaction", enabled=True)
    fleet.look()
    fleet.clock.advance(1900)

    def closed():
        holder.close()
        # The server is the whole run's: a transaction of another test, begun before the clock was moved, is old too.
        age = "select seconds from pgmail.oldest_snapshot()"
        eventually_now(
            lambda: (kit.one(fleet.owner, age) or 0) < 1000, 60, what="other tests' transactions end"
        )

    return [], closed


def notify_queue(fleet):
    fleet.set("notify_queue", enabled=False)
    fleet.owner.execute(
        "create or replace function pgmail.alert_facts_database() returns setof pgmail.alert_fact language sql as"
        " $$ select id, null::integer, '', 0.5, 'It is half full.'"
        " from pgmail.alert_rule where kind = 'notify_queue' and enabled $$"
    )
    fleet.look()
    fleet.set("notify_queue", enabled=True, for_seconds=0)
    return [], lambda: fleet.set("notify_queue", enabled=False)


def site_bounce_rate(fleet):
    for kind, n in (("sent", 800), ("bounced_hard", 150), ("bounced_block", 50), ("deferred", 5_000)):
        fleet.owner.execute(
            "insert into pgmail.rollup (tenant_id, dim, grain, at, key, kind, n)"
            " values (1, 'site', 'minute', pgmail.now(), 'gmail.com', %s, %s)",
            [kind, n],
        )
    return [], lambda: fleet.owner.execute("update pgmail.rollup set n = 100000 where kind = 'sent'")


def webhook_failing(fleet):
    fleet.owner.execute(
        "insert into pgmail.hook (tenant_id, id, url, types, created_by, failing_since, last_error)"
        " values (1, pgmail.uuid7(), 'https://x.example/hook?secret', '{*}', 'me',"
        " pgmail.now() - interval '2 hours', '500')"
    )
    return [], lambda: fleet.owner.execute("update pgmail.hook set failing_since = null")


def figures_late(fleet):
    fleet.look()
    fleet.counts = False
    fleet.look(290)
    fleet.look(110)  # under the dozen times that counted states may be late

    def counts():
        fleet.counts = True

    return [], counts


CONDITIONS = [
    figures_late,
    site_bounce_rate,
    webhook_failing,
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

    def told():  # of a subject, where there are several
        first = min((subject for _, rule, subject in fleet.moves if rule == name), default=None)
        return [move for move, rule, subject in fleet.moves if (rule, subject) == (name, first)]

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


def test_a_webhook_that_was_given_up_is_told_at_once_and_one_that_a_person_disabled_is_not(fleet):
    fleet.owner.execute(
        "insert into pgmail.hook (tenant_id, id, url, types, created_by, failing_since, enabled, reason)"
        " values (1, pgmail.uuid7(), 'https://gone.example/', '{*}', 'me', pgmail.now(), false,"
        " 'it answered 410 Gone'), (1, pgmail.uuid7(), 'https://off.example/', '{*}', 'me',"
        " pgmail.now() - interval '1 day', false, 'disabled by me')"
    )
    fleet.look()
    fleet.look(10)
    assert [move for move, rule, _ in fleet.moves if rule == "webhook_failing"] == ["firing"]
    words = fleet.words("webhook_failing")
    assert "gone.example" in words
    assert "410 Gone" in words


# ---------------------------------------------------------------- silence, rules, tenants
def fence(fleet, reason="it went back by an hour"):
    fleet.owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', %s)", [reason])


def target(fleet, name="ops", role="admin", *, fleet_wide=True, severity="warning"):
    return kit.one(
        fleet.db.connect(role),
        "select pgmail.add_alert_target(%s, 'webhook', 'https://x/...', %s, null, %s, %s)",
        [name, b'{"url":"https://x/"}', severity, fleet_wide],
    )


def told(fleet):
    """What was queued for whom, in order."""
    return rows(
        fleet.owner,
        "select t.name, d.event from pgmail.alert_delivery d join pgmail.alert_target t on t.id = d.target_id"
        " order by d.id",
    )


def test_what_is_silenced_stays_quiet_and_is_told_when_the_silence_ends_first(fleet):
    target(fleet)
    admin = fleet.db.connect("admin")
    admin.execute(
        "select pgmail.silence_alert('restored_database', 'we know', pgmail.now() + interval '1 hour', p_fleet => true)"
    )
    fence(fleet)
    fleet.look()
    fleet.look(60)
    assert [move for move, _, _ in fleet.moves] == ["firing"]  # shown and logged
    assert told(fleet) == []
    fleet.look(3600)
    assert told(fleet) == [("ops", "firing")]
    admin.execute("select pgmail.silence_alert('restored_database', 'again', p_fleet => true)")
    fleet.owner.execute("delete from pgmail.fence")
    fleet.look(10)
    assert told(fleet) == [("ops", "firing")]  # it ended in a silence
    assert (
        kit.one(admin, "select pgmail.unsilence_alert('restored_database', 'done', p_fleet => true)") is True
    )
    acts = rows(
        fleet.owner, "select action, reason from pgmail.audit where action like 'alert.%silence' order by id"
    )
    assert acts == [("alert.silence", "we know"), ("alert.silence", "again"), ("alert.unsilence", "done")]


def test_each_target_hears_once_that_it_began_and_once_that_it_ended_by_its_severity(fleet):
    target(fleet, "ops")
    target(fleet, "pager", severity="critical")
    target(fleet, "diary", severity="info")
    fence(fleet)
    for _ in range(3):
        fleet.look(10)
    fleet.owner.execute("delete from pgmail.fence")
    for _ in range(3):
        fleet.look(10)
    assert sorted(told(fleet)) == [
        (name, event) for name in ("diary", "ops", "pager") for event in ("firing", "resolved")
    ]
    fleet.owner.execute(
        "update pgmail.relay set state = 'paused', changed_by = 'me', changed_at = '2020-01-01'"
    )
    fleet.look(10)
    assert told(fleet)[6:] == [("diary", "firing")]  # info


def test_a_reminder_comes_as_often_as_a_rule_says(fleet):
    target(fleet)
    fleet.set("restored_database", renotify_seconds=600)
    fence(fleet)
    for _ in range(25):
        fleet.look(60)
    assert [event for _, event in told(fleet)] == ["firing", "reminder", "reminder"]


def test_a_tenant_has_rules_and_targets_of_its_own_and_hears_of_itself_only(fleet):
    fleet.owner.execute("select pgmail.create_tenant('shop')")
    fleet.owner.execute(
        "select pgmail.revoke_tenant('pgmail_admin'), pgmail.grant_tenant('pgmail_admin', 'shop')"
    )
    target(fleet, "operator", "owner")
    shop = fleet.db.connect("admin")
    target(fleet, "own", fleet_wide=False)
    shop.execute(
        "select pgmail.set_alert_rule('queue_depth', %s)", [Jsonb({"threshold": 5, "for_seconds": 0})]
    )
    fleet.tally(tenant=2, enqueued=10)
    fleet.tally(tenant=1, enqueued=10)
    fence(fleet)
    fleet.look()
    assert sorted(told(fleet)) == [("operator", "firing"), ("operator", "firing"), ("own", "firing")]
    seen = rows(shop, "select rule, tenant from pgmail.alerts()")
    assert sorted(seen, key=str) == [("queue_depth", "shop"), ("restored_database", None)]
    with pytest.raises(psycopg.Error) as error:
        shop.execute("select pgmail.set_alert_rule('no_worker', '{\"threshold\": 5}')")
    assert kit.refusal(error.value).code == "not_allowed"
    assert kit.one(shop, "select pgmail.remove_alert_rule('queue_depth')") is True
    for _ in range(10):
        fleet.look(10)
    assert ("resolved", "queue_depth", "transactional") in fleet.moves


@pytest.mark.parametrize(
    ("settings", "field"),
    [
        ({"threshold": -1}, "/threshold"),
        ({"threshold": "many"}, "/threshold"),
        ({"for_seconds": 1.5}, "/for_seconds"),
        ({"window_seconds": 5}, "/window_seconds"),
        ({"severity": "loud"}, "/severity"),
        ({"enabled": 1}, "/enabled"),
        ({"colour": "red"}, "/colour"),
        ({"kind": "bounce_rate"}, "/kind"),
        ({"floor": 1e300}, "/floor"),
    ],
)
def test_a_setting_that_is_none_is_refused_at_its_field(fleet, settings, field):
    with pytest.raises(psycopg.Error) as error:
        fleet.set("queue_depth", **settings)
    assert kit.refusal(error.value).field == field


def test_a_rule_of_another_name_watches_one_stream_and_a_shipped_one_is_switched_off_not_removed(fleet):
    fleet.set("depth_of_resets", kind="queue_depth", about="transactional", threshold=3, for_seconds=0)
    fleet.tally(enqueued=5)
    fleet.tally(stream="broadcast", enqueued=5)
    assert fleet.look() == [("firing", "depth_of_resets", "transactional")]
    with pytest.raises(psycopg.Error) as error:
        fleet.owner.execute("select pgmail.remove_alert_rule('queue_depth', p_fleet => true)")
    assert kit.refusal(error.value).code == "not_allowed"
    assert kit.one(fleet.owner, "select pgmail.remove_alert_rule('depth_of_resets', p_fleet => true)") is True
    assert fleet.look(1) == [("resolved", "depth_of_resets", "transactional")]


def test_a_family_that_cannot_be_looked_at_keeps_its_alerts_and_hurts_no_other(fleet):
    fence(fleet)
    fleet.look()
    fleet.owner.execute(
        "create or replace function pgmail.alert_facts_fleet() returns setof pgmail.alert_fact language plpgsql as"
        " $$ begin raise exception 'no such thing'; end $$"
    )
    fleet.tally(enqueued=200_000)
    fleet.set("queue_depth", for_seconds=0)
    assert sorted(fleet.look(100)) == [("blind", "fleet", ""), ("firing", "queue_depth", "transactional")]
    assert kit.one(fleet.owner, "select state from pgmail.alert where rule = 'restored_database'") == "firing"


def test_two_looks_at_once_tell_once(fleet, db):
    target(fleet)
    fence(fleet)
    first = db.connect("worker", autocommit=False)
    assert len(rows(first, "select * from pgmail.alert_step_v1()")) == 1
    assert fleet.look() == []
    first.commit()
    assert fleet.look() == []
    assert told(fleet) == [("ops", "firing")]


# ---------------------------------------------------------------- the queue of what is told
def take(fleet, most=10):
    return rows(fleet.leader, "select id, target, event, attempts from pgmail.alert_take_v1(%s)", [most])


def test_a_delivery_that_fails_comes_again_later_and_in_order_and_not_before_the_first(fleet):
    target(fleet)
    fence(fleet)
    fleet.look()
    fleet.owner.execute("delete from pgmail.fence")
    fleet.look(10)
    ((first, _, event, attempts),) = take(fleet)
    assert (event, attempts) == ("firing", 1)
    assert take(fleet) == []  # taken
    assert kit.one(fleet.leader, "select pgmail.alert_told_v1(%s, false, 'HTTP 500')", [first]) == "waiting"
    assert take(fleet) == []
    fleet.clock.advance(11)
    assert take(fleet) == [(first, "ops", "firing", 2)]
    fleet.clock.advance(121)  # who took it died
    assert take(fleet) == [(first, "ops", "firing", 3)]
    assert kit.one(fleet.leader, "select pgmail.alert_told_v1(%s, true, null)", [first]) == "sent"
    assert [event for _, _, event, _ in take(fleet)] == ["resolved"]
    shown = rows(fleet.owner, "select answer, failing_since, told_at is not null from pgmail.alert_target")
    assert shown == [(None, None, True)]


def test_a_target_that_is_dead_for_a_day_is_given_up_and_hears_of_no_end(fleet):
    target(fleet)
    fence(fleet)
    fleet.look()
    for _ in range(80):
        fleet.clock.advance(1801)
        for id_, *_ in take(fleet):
            last = kit.one(fleet.leader, "select pgmail.alert_told_v1(%s, false, 'away')", [id_])
    assert last == "failed"
    fleet.owner.execute("delete from pgmail.fence")
    fleet.look(10)
    assert told(fleet) == [("ops", "firing")]


def test_nobody_but_who_tells_reads_what_is_secret_of_a_target(db, fleet):
    target(fleet)
    for role in ("api", "reader", "admin", "producer", "maintain", "worker"):
        with pytest.raises(psycopg.errors.InsufficientPrivilege):
            db.connect(role).execute("select secret from pgmail.alert_target")


def test_what_is_over_is_told_in_the_past_with_how_long_it_was_and_what_was_told(fleet):
    target(fleet)
    fleet.set("relay_away", for_seconds=0, calm_seconds=0)
    fleet.owner.execute("update pgmail.relay set state = 'away', reason = 'connection refused'")
    fleet.look()
    fleet.look(1_860)
    fleet.owner.execute("update pgmail.relay set state = 'up'")
    moved = "select words from pgmail.alert_step_v1() where move = 'resolved'"
    said = kit.one(fleet.leader, moved)
    assert said == (
        "Over after 31 minutes: the relay default answers."
        " It was: The relay default does not answer: connection refused."
    )
    assert kit.one(fleet.owner, "select words from pgmail.alerts(true, 'resolved')") == said
    # Who is told late that it began is told so as it was then.
    words = "select event, words from pgmail.alert_take_v1(1)"
    assert rows(fleet.leader, words) == [("firing", "The relay default does not answer: connection refused.")]
    fleet.owner.execute(
        "update pgmail.alert_delivery set state = 'sent', done_at = now() where event = 'firing'"
    )
    assert rows(fleet.leader, words) == [("resolved", said)]
    # A rule that is switched off says nothing of how it is.
    fleet.owner.execute("update pgmail.relay set state = 'away'")
    fleet.look()
    fleet.set("relay_away", enabled=False)
    assert "Over after 0 seconds: its rule holds no more. It was: " in kit.one(fleet.leader, moved)


def test_every_kind_says_how_it_is_when_it_is_over_and_has_a_rule(fleet):
    kinds = rows(fleet.owner, "select kind, format(ended, 'x'), level from pgmail.alert_kinds()")
    assert {kind for kind, _, _ in kinds} == {
        row[0] for row in rows(fleet.owner, "select kind from pgmail.alert_rule")
    }
    assert all(ended and not ended.endswith(".") for _, ended, _ in kinds)
    shown = dict(rows(fleet.owner, "select name, level from pgmail.alert_rules(true)"))
    assert shown == {kind: level for kind, _, level in kinds}


def test_what_a_retry_takes_away_hides_no_dead_letters_of_others(fleet):
    """The condition above does the same; here with real mail."""
    fleet.set("dead_letters", threshold=2)
    hand = kit.Hand(fleet.leader)
    ids = [due(fleet, f"u{n}@example.org") for n in range(6)]
    first = hand.claim(most=3)
    hand.settle(first, "dead", reason="attempts", error="x")
    fleet.leader.execute("select pgmail.fold_tallies_v1(), pgmail.rollup_v1()")
    fleet.look(60)
    admin = fleet.db.connect("admin")
    admin.execute("select pgmail.retry(x.id) from unnest(%s::uuid[]) x(id)", [ids[:3]])
    hand.settle(hand.claim(most=3), "dead", reason="attempts", error="x")
    fleet.leader.execute("select pgmail.fold_tallies_v1(), pgmail.rollup_v1()")
    fleet.look(60)
    assert "6 emails of the stream transactional became dead letters" in fleet.words("dead_letters")


def test_a_purge_takes_a_part_at_a_time_and_keeps_what_counts(fleet):
    old, many = "pgmail.now() - interval '31 days'", 5_200
    fleet.owner.execute(
        "insert into pgmail.alert (tenant_id, rule_id, rule, kind, subject, severity, state, since, resolved_at, value,"
        f" threshold, words, path) select null, 1, 'x', 'no_worker', n::text, 'info', 'resolved', {old}, {old}, 1, 1,"
        " 'x', '/'"
        " from generate_series(1, %s) n",
        [many],
    )
    fleet.owner.execute(
        "insert into pgmail.alert_meter select 1, 's', pgmail.now() - n * interval '1 minute', 0, 0, 0, 0, 0"
        " from generate_series(1, 4000) n"
    )
    fence(fleet)
    fleet.look()
    gone = []
    while (n := kit.one(fleet.leader, "select pgmail.alert_purge_v1()")) > 0:
        gone.append(n)
    assert len(gone) == 2
    assert rows(fleet.owner, "select rule from pgmail.alert") == [("restored_database",)]
    kept = "select count(*) from pgmail.alert_meter where stream = 's' and at "
    assert 110 <= kit.one(fleet.owner, kept + "> pgmail.now() - interval '2 hours'") <= 121
    assert 180 <= kit.one(fleet.owner, kept + "< pgmail.now() - interval '2 hours'") <= 200
    assert kit.one(fleet.owner, kept + "< pgmail.now() - interval '48 hours'") >= 1


def test_a_certificate_that_cannot_be_seen_goes_on_to_count_as_it_was(fleet):
    saw = "select pgmail.saw_certificate_v1('relay default', 'mx:587', pgmail.now() + interval '2 days')"
    fleet.leader.execute(saw)
    fleet.look()
    for _ in range(4):
        fleet.clock.advance(A_DAY)
        fleet.leader.execute(
            "select pgmail.missed_certificate_v1('relay default', 'mx:587', 'connection refused')"
        )
        fleet.look()
    assert [move for move, rule, _ in fleet.moves if rule == "certificate"] == ["firing"]
    assert "ended at " in fleet.words("certificate")
    assert "it cannot be seen since" in fleet.words("certificate")
    fleet.clock.advance(4 * A_DAY)  # nobody looks at it any more: the relay is gone
    fleet.look()
    assert [move for move, rule, _ in fleet.moves if rule == "certificate"] == ["firing", "resolved"]


def test_an_upgrade_leaves_what_an_operator_set(db, fleet):
    fleet.set("queue_depth", threshold=7)
    migrate.upgrade(db.dsn, prefix=PREFIX)
    kept = rows(fleet.owner, "select threshold, shipped from pgmail.alert_rule where name = 'queue_depth'")
    assert kept == [(7.0, False)]


def gauges(fleet, tenant, sites, seconds):
    """Lanes as the chore saw them, whose oldest mail is due for so long."""
    fleet.owner.execute(
        "insert into pgmail.gauge (tenant_id, lane, stream, priority, site, oldest_due_at)"
        " select %s, n, 'transactional', 2, 's' || n || '.example', pgmail.now() - %s * interval '1 second'"
        " from generate_series(1, %s) n",
        [tenant, seconds, sites],
    )


def late(fleet, most=1000):
    return {
        (row[0], row[1])
        for row in rows(
            fleet.owner,
            "select tenant_id, stream from pgmail.late_lanes(900, %s) where kind is not null",
            [most],
        )
    }


def test_lanes_that_are_late_or_paused_in_hundreds_hide_no_other_tenants(fleet):
    admin = fleet.db.connect("admin")
    fleet.owner.execute("select pgmail.create_tenant('shop')")
    other = kit.one(fleet.owner, "select id from pgmail.tenant where name = 'shop'")
    gauges(fleet, 1, 300, 9_000)
    gauges(fleet, other, 1, 1_000)
    assert late(fleet, most=1) == {(1, "transactional"), (other, "transactional")}
    admin.execute("select pgmail.pause_mail('stream', 'transactional', 'they asked us to')")
    assert late(fleet) == {(other, "transactional")}


def test_one_tenants_mail_in_doubt_hides_no_others(fleet):
    fleet.owner.execute("select pgmail.create_tenant('shop')")
    fleet.owner.execute(
        "insert into pgmail.queue (tenant_id, id, message_id, lane, due_at, in_doubt)"
        " select t, gen_random_uuid(), gen_random_uuid(), 1, 'infinity', true"
        " from unnest(array[1, 2], array[12000, 1]) u(t, n), generate_series(1, n)"
    )
    found = rows(
        fleet.owner, "select tenant_id, value from pgmail.alert_facts_mail() where words like '%held%'"
    )
    assert sorted(found) == [(1, 10_001), (2, 1)]

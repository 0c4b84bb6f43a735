"""What `pgmail doctor` finds of the server and of what people should know: each fault with what mends it."""

import psycopg
import pytest

from pgmail.cli import doctor_alerts, doctor_checks, doctor_database, doctor_finding
from pgmail.cli.doctor_finding import span
from pgmail.config import Settings
from tests.sql import kit
from tests.waiting import eventually_now

pytestmark = pytest.mark.one_server


async def ask(db, check, role="admin"):
    connection = await db.aconnect(role)
    return await check(connection, Settings())


async def test_what_fires_is_told_worst_first_with_the_command_that_shows_it(db, owner):
    assert (await ask(db, doctor_alerts.firing)).status == "ok"
    owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', 'an hour is missing')")
    owner.execute(
        'select pgmail.set_alert_rule(\'relay_away\', \'{"for_seconds": 0, "severity": "info"}\', null, true)'
    )
    owner.execute("update pgmail.relay set state = 'away'")
    db.connect("worker").execute("select pgmail.alert_step_v1()")
    found = await ask(db, doctor_alerts.firing)
    assert (found.status, found.mend) == ("failed", "pgmail alert show restored_database")
    assert found.message.endswith("(and 1 more)")


async def test_nobody_told_and_a_target_that_fails_are_told(db, owner):
    assert (await ask(db, doctor_alerts.targets)).status == "warning"
    owner.execute(
        "insert into pgmail.alert_target (name, kind, shown, secret, failing_since, answer)"
        " values ('ops', 'slack', 'x', '', now(), 'HTTP 404')"
    )
    found = await ask(db, doctor_alerts.targets)
    assert (found.status, found.mend) == ("failed", "pgmail alert target test ops")
    owner.execute("update pgmail.alert_target set failing_since = null, kind = 'email'")
    found = await ask(db, doctor_alerts.targets)
    assert (found.status, "PGMAIL_ALERT_RELAY_URL" in found.mend) == ("warning", True)
    other = Settings(alert_relay_url="smtp://other.example:25")
    assert (await doctor_alerts.targets(await db.aconnect("admin"), other)).status == "ok"


@pytest.mark.parametrize(
    ("scope", "name", "tenant", "mend"),
    [
        ("site", "gmail.com", 1, "pgmail resume --site gmail.com"),
        ("stream", "broadcast", None, "pgmail resume --stream broadcast --fleet"),
        ("tenant", "default", 1, "pgmail tenant resume default"),
    ],
)
async def test_a_pause_that_was_forgotten_is_told_with_what_ends_it(db, owner, scope, name, *, tenant, mend):
    owner.execute(
        "insert into pgmail.pause (tenant_id, scope, name, reason, paused_at)"
        " values (%s, %s, %s, 'x', now() - interval '5 days')",
        [tenant, scope, name],
    )
    found = await ask(db, doctor_alerts.pauses)
    assert (found.status, found.mend) == ("warning", mend)
    assert "for 5 days" in found.message


async def test_a_certificate_and_a_key_that_end_are_told(db, owner):
    owner.execute(
        "insert into pgmail.certificate (name, place, ends_at) values ('api', 'x:443', now() + interval '5 days')"
    )
    assert "api (x:443) ends in 5 days" in (await ask(db, doctor_alerts.certificates)).message
    owner.execute("update pgmail.certificate set ends_at = now() - interval '1 day'")
    assert (await ask(db, doctor_alerts.certificates)).status == "failed"
    owner.execute("delete from pgmail.certificate")
    owner.execute("select pgmail.missed_certificate_v1('relay default', 'mx:587', 'connection refused')")
    assert (await ask(db, doctor_alerts.certificates)).status == "ok"  # a relay may be away for a moment
    owner.execute("update pgmail.certificate set unseen_since = now() - interval '2 hours'")
    found = await ask(db, doctor_alerts.certificates)
    assert (found.status, "relay default (mx:587) cannot be seen since" in found.message) == ("warning", True)
    owner.execute("select pgmail.create_key('shop', 'pgm_x', sha256('x'))")
    assert (await ask(db, doctor_alerts.keys)).status == "ok"
    owner.execute("update pgmail.api_key set expires_at = now() + interval '3 days'")
    assert "'shop' ends in 3 days" in (await ask(db, doctor_alerts.keys)).message


@pytest.fixture
def holder(db, owner):
    """A reader with the oldest snapshot of the server: tests share it, and others' transactions count too."""
    made = db.connect("producer", autocommit=False, application_name="report.py")
    made.isolation_level = psycopg.IsolationLevel.REPEATABLE_READ
    older = "select count(*) from pg_stat_activity where backend_xid is not null and datname <> current_database()"

    def oldest():
        made.rollback()
        if kit.one(made, older):
            return False
        # The transaction id from which the snapshot counts on is the next one: taken here, it is nobody else's.
        first = kit.one(made, "select pg_snapshot_xmin(pg_current_snapshot())::text")
        return kit.one(owner, "select pg_current_xact_id()::text") == first

    eventually_now(oldest, 60)
    return made


async def test_who_keeps_dead_rows_is_named_with_what_ends_it(db, owner, db_clock, holder):
    db.connect("worker").execute("select pgmail.alert_step_v1()")
    assert (await ask(db, doctor_database.oldest)).status == "ok"
    db_clock.advance(3_600)
    found = await ask(db, doctor_database.oldest)
    assert found.status == "failed"
    assert "of pgmail_producer (report.py)" in found.message
    assert found.mend == f"select pg_terminate_backend({holder.info.backend_pid})"
    owner_may_not = found.mend  # an administrator of the server runs it
    holder.close()
    assert owner_may_not != (await ask(db, doctor_database.oldest)).mend


async def test_autovacuum_that_is_off_and_a_slot_that_nobody_uses_are_told(db, owner):
    assert (await ask(db, doctor_database.dead_rows)).status == "ok"
    owner.execute("alter table pgmail.queue set (autovacuum_enabled = false)")
    found = await ask(db, doctor_database.dead_rows)
    assert (found.status, found.mend) == ("failed", "alter table pgmail.queue reset (autovacuum_enabled)")
    assert (await ask(db, doctor_database.replication)).status == "ok"


async def test_the_server_of_the_tests_would_forget_what_it_committed(db):
    found = await ask(db, doctor_database.settings_of)
    assert (found.status, found.mend) == ("failed", "alter system set fsync = on; select pg_reload_conf()")
    assert (await ask(db, doctor_database.wraparound)).status == "ok"
    assert (await ask(db, doctor_database.notify)).status == "ok"
    assert "connections" in (await ask(db, doctor_database.connections)).check


@pytest.mark.parametrize(
    ("seconds", "words"), [(5, "5 seconds"), (600, "10 minutes"), (7_200, "2 hours"), (500_000, "6 days")]
)
def test_a_span_is_told_in_the_unit_that_says_it_best(seconds, words):
    assert span(seconds) == words


async def test_figures_that_stand_still_and_looks_that_do_not_come_are_told(db, owner, db_clock):
    assert (await ask(db, doctor_alerts.figures)).message == "nobody has looked yet"
    worker = db.connect("worker")
    look = (
        "select pgmail.alert_step_v1(), pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1(), pgmail.rollup_v1()"
    )
    worker.execute(look)
    assert (await ask(db, doctor_alerts.figures)).status == "ok"
    db_clock.advance(500)
    worker.execute("select pgmail.gauge_lanes_v1(), pgmail.alert_step_v1()")
    found = await ask(db, doctor_alerts.figures)
    assert (found.status, found.message.split(" know")[0]) == (
        "failed",
        "Charts, reports and rules about rates",
    )
    db_clock.advance(3_500)
    worker.execute("select pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1(), pgmail.rollup_v1()")
    found = await ask(db, doctor_alerts.figures)
    assert found.status == "failed"
    assert found.message.startswith("Nobody has looked for alerts since 2")
    assert found.message.endswith(" UTC (58 minutes): nobody leads")
    worker.execute(look)
    assert (await ask(db, doctor_alerts.figures)).status == "ok"


async def test_a_webhook_that_fails_or_was_disabled_is_told_with_what_mends_it(db, owner):
    assert (await ask(db, doctor_alerts.webhooks)).status == "ok"
    (id_,) = owner.execute(
        "insert into pgmail.hook (tenant_id, id, url, types, created_by, failing_since, last_error)"
        " values (1, pgmail.uuid7(), 'https://x.example/hook?secret', '{*}', 'me', '2026-01-02 03:04+00', 'HTTP 500')"
        " returning id"
    ).fetchone()
    found = await ask(db, doctor_alerts.webhooks)
    assert (found.status, found.mend) == ("warning", f"mend it, then pgmail webhook test {id_}")
    assert found.message == "https://x.example/hook fails since 2026-01-02 03:04 UTC: HTTP 500"
    owner.execute("update pgmail.hook set enabled = false, reason = 'it answered 410 Gone'")
    found = await ask(db, doctor_alerts.webhooks)
    assert (found.status, "410 Gone" in found.message) == ("failed", True)
    assert f"pgmail webhook set {id_} --enable" in found.mend
    owner.execute("update pgmail.hook set reason = 'disabled by ada: it moves'")
    assert (await ask(db, doctor_alerts.webhooks)).status == "ok"  # by a person's will


@pytest.mark.parametrize("takes", [True, False], ids=["the next one leads", "nobody takes it"])
async def test_a_lead_that_lapsed_is_given_the_time_in_which_another_takes_it(db, owner, takes, monkeypatch):
    epoch = kit.one(owner, "select pgmail.worker_start_v1('host-a', 77, 'worker', 4)")
    waits = []

    async def wait(seconds):
        waits.append(seconds)
        if takes:
            owner.execute("select pgmail.lead_v1(%s, 60)", [epoch])

    monkeypatch.setattr(doctor_finding.asyncio, "sleep", wait)
    found = await ask(db, doctor_checks._leader)
    assert (found.status, sum(waits)) == (("ok", 0.5) if takes else ("failed", 2))


async def test_without_a_process_that_could_lead_nobody_is_waited_for(db, monkeypatch):
    monkeypatch.delattr(doctor_finding.asyncio, "sleep")
    assert (await ask(db, doctor_checks._leader)).status == "failed"


@pytest.mark.parametrize("kept", [False, True], ids=["nobody leads", "gauged"])
async def test_mail_that_is_late_or_waits_for_a_person_is_told_of_whatever_lane(db, owner, kept, monkeypatch):
    async def mail():
        if kept:  # as the chore of a leader does
            owner.execute("select pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1()")
        assert kit.one(owner, "select pgmail.gauge_kept()") is kept
        return await ask(db, doctor_checks._mail)

    app = db.connect("producer")
    for n in range(4):
        kit.send(app, f"u@d{n}.example.org")
    assert [found.status for found in await mail()] == ["ok", "ok"]
    assert (await ask(db, doctor_checks._ledger)).status == "ok"
    owner.execute("select pgmail.hold(id) from pgmail.message order by id limit 2")
    late, people = await mail()
    assert (late.status, people.status, people.mend) == ("ok", "warning", "GET /emails?state=held")
    assert people.message == "mail waits for a person's word: 2 held by an operator or a limit"
    owner.execute("update pgmail.queue set due_at = due_at - interval '1 hour' where due_at < 'infinity'")
    assert "due for 60 minutes" in (await mail())[0].message
    owner.execute("update pgmail.queue set leased_by = 1 where due_at < 'infinity'")  # somebody has taken it
    assert (await mail())[0].status == "ok"
    owner.execute("update pgmail.queue set leased_by = null")
    owner.execute(
        "update pgmail.queue set in_doubt = true"
        " where id = (select min(id::text)::uuid from pgmail.queue where due_at = 'infinity')"
    )
    late, people = await mail()
    assert people.message.endswith("1 in doubt (may have been sent), 1 held by an operator or a limit")
    assert people.mend == "pgmail doubt list; GET /emails?state=held"
    owner.execute(
        "insert into pgmail.tally (tenant_id, stream, kind, n) values (1, 'transactional', 'enqueued', 1)"
    )
    assert (await ask(db, doctor_checks._ledger)).status == "failed"
    monkeypatch.setattr(doctor_checks, "MOST_COUNTED", 3)
    assert "select * from pgmail.ledger" in (await ask(db, doctor_checks._ledger)).message


async def test_figures_that_are_read_up_quickly_have_patience_and_say_how_long_it_takes(db, owner, db_clock):
    worker = db.connect("worker")
    worker.execute(
        "select pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1(), pgmail.rollup_v1(), pgmail.alert_step_v1()"
    )

    def reading(began, read_to):
        """So many seconds ago it began to read the two hours before, and up to then it has read."""
        owner.execute(
            "update pgmail.insight_cursor set rolled_at = pgmail.now() - interval '2 hours', upto = seen, at_xid = '1',"
            " upto_at = pgmail.now() - %s * interval '1 second',"
            " at_id = pgmail.uuid_floor(pgmail.now() - %s * interval '1 second')",
            [began, read_to],
        )

    def alerts():
        facts = "select words from pgmail.alert_facts_fleet() where subject = 'reports'"
        return [words for (words,) in kit.rows(owner, facts)]

    reading(began=60, read_to=1_000)  # 6200 seconds of events in a minute
    assert alerts() == []
    assert (await ask(db, doctor_alerts.figures)).status == "ok"
    reading(began=600, read_to=5_000)  # 2200 in ten: twenty minutes to go
    assert "are read up (which takes 20 minutes more)" in alerts()[0]
    found = await ask(db, doctor_alerts.figures)
    assert (found.status, "UTC (83 minutes)" in found.message) == ("failed", True)
    reading(began=1_000, read_to=6_500)  # no faster than the clock
    assert "rates know nothing of what happened since" in alerts()[0]

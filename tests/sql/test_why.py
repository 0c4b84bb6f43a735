"""`why` says in one sentence what a mail waits for or how it ended: every cause, in words that a person understands.

Times are in UTC, whatever the time zone of who asks.
"""

import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.sql import kit
from tests.sql.kit import Hand

AT = r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d UTC"


class Mail:
    """One mail to ada@example.org, and who works on it."""

    def __init__(self, db):
        self.app, self.owner, self.admin = db.connect("producer"), db.connect(), db.connect("admin")
        self.hand = Hand(db.connect("worker"))
        self.owner.execute("set timezone = 'Asia/Kolkata'")
        self.id = None

    def send(self, **more):
        self.id = kit.send(self.app, **more)
        self.hand.fold()

    def set(self, columns):
        self.owner.execute("update pgmail.queue set " + columns)

    def event(self, kind, **facts):
        self.owner.execute(
            "insert into pgmail.event"
            " (tenant_id, recipient_id, message_id, type, attempt, code, enhanced, reply, worker, detail)"
            " select tenant_id, id, message_id, %(kind)s, %(attempt)s, %(code)s, %(enhanced)s, %(reply)s, %(worker)s,"
            " %(detail)s from pgmail.queue",
            dict.fromkeys(("attempt", "code", "enhanced", "reply", "worker", "detail"))
            | facts
            | {"kind": kind},
        )

    def relay(self, state, reason, by="worker"):
        self.owner.execute(
            "update pgmail.relay set state = %s, reason = %s, changed_by = %s,"
            " blocked_until = case when %s = 'away' then pgmail.now() + interval '30 seconds' end",
            [state, reason, by, state],
        )


def waits(mail):
    mail.send()


def behind_others(mail):
    for _ in range(3):
        mail.send()


def scheduled(mail):
    mail.send(scheduled_at=(datetime.now(UTC) + timedelta(days=2)).isoformat())


def leased(mail):
    mail.send()
    mail.hand.claim()


def leased_by_the_silent(mail):
    leased(mail)
    mail.owner.execute("update pgmail.worker set beat_at = pgmail.now() - interval '1 minute'")


def leased_by_the_gone(mail):
    leased(mail)
    mail.owner.execute("delete from pgmail.worker")


def deferred(mail):
    mail.send()
    mail.set("due_at = pgmail.now() + interval '5 minutes', wait = 'deferred', attempts = 1, later = true")
    mail.event("email.deferred", attempt=1, code=451, enhanced="4.7.1", reply="greylisted")


def deferred_and_paused(mail):
    deferred(mail)
    mail.admin.execute("select pgmail.pause_mail('site', 'example.org', 'they asked us to')")


def paused_site(mail):
    mail.send()
    mail.admin.execute("select pgmail.pause_mail('site', 'example.org', 'they asked us to')")


def paused_stream_until(mail):
    mail.send()
    mail.admin.execute(
        "select pgmail.pause_mail('stream', 'transactional', 'release', pgmail.now() + interval '1 hour')"
    )


def suspended(mail):
    mail.send()
    mail.admin.execute("select pgmail.suspend_tenant('default', 'unpaid')")


def fenced(mail):
    mail.send()
    mail.owner.execute("insert into pgmail.fence (noticed_by, reason) values ('me', 'an hour is missing')")


def relay_away(mail):
    mail.send()
    mail.relay("away", "connection refused")


def relay_paused(mail):
    mail.send()
    mail.relay("paused", "moving house", by="ada")


def limited(mail):
    mail.send()
    mail.admin.execute("select pgmail.set_limit('site', 'example.org', 1, 60)")
    mail.owner.execute(
        "insert into pgmail.bucket (scope, name, last_at) values ('site', 'example.org', pgmail.now())"
    )


def no_worker(mail):
    mail.send()
    mail.owner.execute("delete from pgmail.worker")


def worker_rescued(mail):
    mail.send()
    mail.hand.connection.execute("select pgmail.rescue_v1(%s)", [mail.hand.epoch])


def worker_silent(mail):
    mail.send()
    mail.owner.execute("update pgmail.worker set beat_at = pgmail.now() - interval '1 hour'")


def worker_stopped(mail):
    mail.send()
    mail.owner.execute("insert into pgmail.lost_worker values (0, 'b', 1, 'worker', '2020-01-01')")
    mail.hand.connection.execute("select pgmail.worker_stop_v1(%s)", [mail.hand.epoch])


def only_a_leader(mail):
    mail.send()
    mail.owner.execute("update pgmail.worker set program = 'maintain'")


def draining(mail):
    mail.send()
    mail.owner.execute("update pgmail.worker set state = 'draining'")


def behind_a_quota(mail):
    mail.send()
    mail.set("due_at = pgmail.now() + interval '1 minute', wait = 'delayed', later = true")
    mail.event("email.delayed", detail="the tenant takes in 10 emails a second")


def without_its_key(mail):
    mail.send()
    mail.set("due_at = pgmail.now() + interval '1 minute', wait = 'delayed', later = true")
    mail.event(
        "email.delayed", worker=1, detail="sealed with data key 1, and the key 'k' is not in PGMAIL_SEAL_KEYS"
    )


def held(mail):
    mail.send()
    mail.admin.execute("select pgmail.hold(%s, 'wrong price')", [mail.id])


def in_doubt(mail):
    mail.send()
    mail.set("due_at = 'infinity', in_doubt = true, hold_reason = 'in doubt: its worker died'")


def cancelled(mail):
    mail.send()
    mail.app.execute("select pgmail.cancel(%s, 'ordered twice')", [mail.id])


def suppressed(mail):
    mail.admin.execute("select pgmail.suppress('ada@example.org', 'complained', null, '')")
    mail.send()


SENTENCES = {
    waits: rf"is due since {AT} and waits for a free worker",
    behind_others: rf"is due since {AT} and waits for a free worker; 2 of its lane are ahead",
    scheduled: rf"is scheduled for {AT}",
    leased: rf"is being sent by worker \d+ on host since {AT} \(attempt 1\)",
    leased_by_the_silent: rf"is being sent .*, but that worker is silent since {AT}; it will be rescued by the leader",
    leased_by_the_gone: rf"is being sent by worker \d+ since {AT} \(attempt 1\), but that worker is gone; .*",
    deferred: rf"waits until {AT}: attempt 1 was answered 451 4\.7\.1 greylisted",
    deferred_and_paused: rf"waits until {AT}: .* greylisted; besides, site example\.org is paused by pgmail_admin .*",
    paused_site: rf"waits: site example\.org is paused by pgmail_admin since {AT}: they asked us to",
    paused_stream_until: rf"waits: stream transactional is paused by pgmail_admin since {AT} until {AT}: release",
    suspended: rf"waits: tenant default is suspended by pgmail_admin since {AT}: unpaid",
    fenced: rf"waits: all sending is stopped since {AT}, for the database was restored: an hour is missing; .* decides",
    relay_away: rf"waits: relay default is away since {AT}: connection refused; next try at {AT}",
    relay_paused: rf"waits: relay default is paused by ada since {AT}: moving house",
    limited: rf"waits: site example\.org is limited to 1 a minute; its next token is free at {AT}; 0 of .* ahead",
    no_worker: r"waits: no worker is running",
    worker_rescued: rf"waits: no worker is alive since {AT}, when worker \d+ on host fell silent",
    worker_silent: rf"waits: no worker is alive since {AT}, when worker \d+ on host fell silent",
    worker_stopped: rf"waits: no worker is alive since {AT}, when worker \d+ on host was stopped",
    only_a_leader: r"waits: no worker is running",
    draining: r"waits: all workers are about to stop and take nothing new",
    behind_a_quota: rf"waits for a limit until {AT}: the tenant takes in 10 emails a second",
    without_its_key: rf"is tried again at {AT}: it is sealed with data key 1, .* is not in PGMAIL_SEAL_KEYS",
    held: r"is held: by pgmail_admin: wrong price\. pgmail\.release\(id\) sends it, pgmail\.cancel\(id\) drops it",
    in_doubt: r"is held in doubt: its worker died \(nothing more is known\)\. pgmail\.resolve.* sends it again .*",
    cancelled: rf"was cancelled at {AT} \(by pgmail_producer: ordered twice\)",
    suppressed: r"was not sent: the address is suppressed \(.*complained.*\)",
}


@pytest.mark.parametrize("cause", SENTENCES, ids=lambda one: one.__name__)
def test_why_says_each_cause_in_a_sentence(db, cause):
    mail = Mail(db)
    cause(mail)
    mail.app.execute("set timezone = 'Asia/Kolkata'")
    said = kit.one(mail.app, "select pgmail.why(%s)", [mail.id])
    assert re.fullmatch("ada@example.org " + SENTENCES[cause], said), said

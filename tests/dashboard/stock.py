"""A tenant with something on every page: mail that waits, died or is in doubt, templates, suppressions, pauses."""

from typing import Any

from tests.sql import kit
from tests.sql.kit import Hand

HOSTILE = "<script>alert(1)</script>\"'><img src=x onerror=alert(2)>{{ 7*7 }}&lt;"
HTML = "<h1>Welcome, {{ name }}</h1>\n<p>Your shop is open.</p>\n"


def fill(db: Any, text: str = "mailbox is full, try again later", many: int = 3) -> dict[str, Any]:
    """Fill the first tenant's pages; ids of what was made. `text` stands wherever somebody else's words may."""
    with db.connect() as owner, db.connect("worker") as connection:
        hand = Hand(connection)
        kit.stream(owner, "careful", on_doubt="hold")
        kit.stream(owner, "receipts", priority=1, max_queued=50_000)
        connection.execute("select pgmail.register_relays_v1(array['default', 'spare'])")
        # in doubt: their worker died with them
        doubts = [kit.send(owner, f"doubt{n}@example.org", stream="careful") for n in range(2)]
        hand.fold()
        hand.begin(hand.claim(holds=True))
        other = Hand(connection)
        other.rescue(hand.epoch)
        # dead letters
        dead = [kit.send(owner, f"dead{n}@gmail.com", stream="receipts") for n in range(many)]
        other.fold()
        leases = [lease for lease in other.claim() if lease.message_id in dead]
        other.settle(
            leases, "dead", reason="attempts_exhausted", code=452, enhanced="4.2.2", reply=text, error=text,
            stream="receipts", site="gmail.com",
        )  # fmt: skip
        # waiting
        waiting = [
            kit.send(owner, f"u{n}@{site}")
            for site in ("example.org", "gmail.com", "example.net")
            for n in range(4)
        ]
        soon = kit.one(owner, "select to_json(now() + interval '3 days') #>> '{}'")
        kit.send(owner, "later@example.org", scheduled_at=soon, stream="receipts")
        other.fold()
        owner.execute("select pgmail.pause_mail('site', 'example.net', %s)", [text])
        owner.execute("select pgmail.suppress('gone@example.org', 'bounced', %s)", [text])
        owner.execute("select pgmail.add_domain('example.com')")
        for version, live in ((HTML, True), (HTML + "<p>Order anything.</p>\n", False)):
            owner.execute(
                "select pgmail.save_template('welcome', 'Welcome, {{ name }}', null, %s, array['name'], '{}', %s)",
                [version, live],
            )
        _ears(owner, text)
        people = [row[0] for row in owner.execute("select recipient_id from pgmail.dead_letter")]
    return {"dead": dead, "waiting": waiting, "doubts": doubts, "dead_people": people}


def _ears(owner: Any, text: str) -> None:
    """An alert that fires and one that is over, a silence, who is told, and an endpoint that was called."""
    alert = """
        insert into pgmail.alert (tenant_id, rule_id, rule, kind, subject, severity, state, since, fired_at,
          resolved_at, value, threshold, words, path)
        select 1, r.id, r.name, r.kind, %(subject)s, r.severity, %(state)s,
          now() - interval '9 minutes', now() - interval '4 minutes',
          case when %(state)s = 'resolved' then now() end, 40, r.threshold, %(words)s, k.path
        from pgmail.alert_rule r join pgmail.alert_kinds() k on k.kind = r.kind where r.kind = %(kind)s"""
    for kind, subject, state in (
        ("dead_letters", "receipts", "firing"),
        ("bounce_rate", "careful", "firing"),
        ("queue_depth", "careful", "resolved"),
    ):
        words = f"{kind} of {subject}: {text}"
        owner.execute(alert, {"kind": kind, "subject": subject, "state": state, "words": words})
    owner.execute("select pgmail.silence_alert('pause_forgotten', %s)", [text])
    owner.execute(
        "insert into pgmail.alert_target (tenant_id, name, kind, shown, secret, answer, failing_since)"
        " values (1, 'pager', 'webhook', 'https://pager.example.com/…', '', %s, now())",
        [text],
    )
    hook = kit.one(
        owner,
        "insert into pgmail.hook (tenant_id, id, url, description, types, created_by, failing_since, fails,"
        " last_error)"
        " values (1, pgmail.uuid7(), 'https://hooks.example.com/mail', %s, '{email.*}', 'key ada', now(), 3,"
        " %s) returning id",
        [text, text],
    )
    owner.execute(
        "insert into pgmail.hook_attempt (tenant_id, hook_id, id, event_id, type, event_at, attempt, outcome,"
        " status, ms, answer)"
        " select 1, %s, pgmail.uuid7(), pgmail.uuid7(), 'email.bounced', now(), n, 'failed', 500, 12,"
        " %s from generate_series(1, 3) n",
        [hook, text],
    )

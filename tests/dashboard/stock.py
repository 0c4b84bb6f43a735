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
        people = [row[0] for row in owner.execute("select recipient_id from pgmail.dead_letter")]
    return {"dead": dead, "waiting": waiting, "doubts": doubts, "dead_people": people}

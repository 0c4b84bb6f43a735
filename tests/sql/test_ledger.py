"""The ledger: exact through any walk, from two sources, so that it can disagree."""

import random
from datetime import timedelta

import pytest

from tests.sql import kit
from tests.sql.kit import Hand

KINDS = ("sent", "sent", "sent", "bounced", "deferred", "deferred", "dead", "held", "suppressed", "expired")


class Walk:
    """A fleet and its applications, one random step at a time."""

    def __init__(self, db, clock, seed):
        self.dice, self.db, self.clock = random.Random(seed), db, clock
        self.owner, self.app = db.connect(), db.connect("producer")
        kit.stream(self.owner, "careful", on_doubt="hold")
        kit.stream(self.owner, "tiny", max_queued=5)
        self.owner.execute("select pgmail.suppress('u0@example.org')")
        self.hands = [Hand(db.connect("worker")) for _ in range(3)]
        self.leases, self.stale, self.ids = [], [], []
        self.keys = 0

    def step(self):
        names = (
            *(
                "send",
                "send",
                "send_many",
                "claim",
                "claim",
                "settle",
                "settle",
                "settle_stale",
                "release",
                "rescue",
            ),
            *("cancel", "reschedule", "retry", "resolve", "discard", "expire", "fold", "time", "roll_back"),
        )
        getattr(self, self.dice.choice(names))()

    def email(self):
        to = [
            f"u{self.dice.randrange(8)}@{self.dice.choice(('example.org', 'gmail.com', 'googlemail.com'))}"
            for _ in range(3)
        ]
        more = {}
        if self.dice.random() < 0.3:
            more["scheduled_at"] = (
                self.clock.now() + timedelta(seconds=self.dice.randrange(1, 900))
            ).isoformat()
        if self.dice.random() < 0.3:
            more["expires_at"] = (
                self.clock.now() + timedelta(seconds=self.dice.randrange(901, 2000))
            ).isoformat()
        if self.dice.random() < 0.3:
            more["idempotency_key"] = f"k{self.keys}"
            self.keys += self.dice.random() < 0.5
        stream = self.dice.choice(("transactional", "broadcast", "careful", "tiny"))
        return kit.body(to, stream=stream, on_limit=self.dice.choice(("delay", "hold")), **more)

    def send(self):
        self.ids += [row[1] for row in kit.send_many(self.app, [self.email()], strict=False) if row[1]]

    def send_many(self):
        items = [self.email() for _ in range(4)] + [7]
        self.ids += [row[1] for row in kit.send_many(self.app, items, strict=False) if row[1]]

    def roll_back(self):
        with self.app.transaction(force_rollback=True):
            kit.send_many(self.app, [self.email()], strict=False)
            self.cancel()

    def claim(self):
        hand = self.dice.choice(self.hands)
        self.leases += [(hand, lease) for lease in hand.claim(self.dice.randrange(1, 4))]

    def take(self):
        self.dice.shuffle(self.leases)
        taken = self.leases[: self.dice.randrange(1, 6)]
        self.leases = self.leases[len(taken) :]
        return taken

    def stream_of(self, lease):
        return kit.one(self.owner, "select stream from pgmail.message where id = %s", [lease.message_id])

    def settle(self):
        for hand, lease in self.take():
            hand.settle(
                lease, self.dice.choice(KINDS), stream=self.stream_of(lease), delay=self.dice.randrange(300),
                doubt=self.dice.random() < 0.2, reason="walk",
            )  # fmt: skip
            self.stale.append((hand, lease))

    def settle_stale(self):
        for hand, lease in self.dice.sample(self.stale, min(3, len(self.stale))):
            hand.settle(lease, self.dice.choice(KINDS), stream=self.stream_of(lease), delay=1)

    def release(self):
        for hand, lease in self.take():
            hand.release([lease], self.dice.choice((None, "relay away")))
            self.stale.append((hand, lease))

    def rescue(self):
        if self.dice.random() < 0.4:
            dead = self.hands.pop(0)
            self.hands.append(Hand(self.db.connect("worker")))
            self.hands[-1].rescue(dead.epoch)
            self.stale += [(hand, lease) for hand, lease in self.leases if hand is dead]
            self.leases = [(hand, lease) for hand, lease in self.leases if hand is not dead]

    def some(self, call, *params):
        if self.ids:
            mail = self.dice.choice(self.ids)
            if self.dice.random() < 0.5:
                mail = self.dice.choice(kit.recipients(self.owner, mail))
            self.owner.execute(f"select pgmail.{call}", [mail, *params])

    def cancel(self):
        self.some("cancel(%s)")

    def reschedule(self):
        try:
            self.some("reschedule(%s, %s)", self.clock.now() + timedelta(seconds=self.dice.randrange(600)))
        except Exception as error:
            if getattr(error, "sqlstate", None) != "PM422":  # beyond its expiry
                raise

    def retry(self):
        try:
            self.some("retry(%s)")
        except Exception as error:
            if getattr(error, "sqlstate", None) != "PM409":  # in doubt: that is resolved
                raise

    def resolve(self):
        if not self.ids:
            return
        doubtful = kit.rows(self.owner, "select id from pgmail.queue where in_doubt order by id")
        if doubtful:
            how = self.dice.choice(["assume_sent", "resend"])
            self.owner.execute("select pgmail.resolve(%s, %s)", [self.dice.choice(doubtful)[0], how])

    def discard(self):
        self.some("discard(%s)")

    def expire(self):
        self.owner.execute("select pgmail.expire_v1(5)")

    def fold(self):
        self.hands[0].fold()
        self.owner.execute(
            "select pgmail.fold_tallies_v1(7), pgmail.repair_lanes_v1(), pgmail.wake_due_v1('-infinity')"
        )

    def time(self):
        self.clock.advance(self.dice.randrange(300))


def test_the_ledger_is_exact_after_every_stretch_of_a_random_walk(db, db_clock):
    follow(Walk(db, db_clock, 1))


@pytest.mark.one_server
@pytest.mark.parametrize("seed", [2, 3])
def test_the_ledger_is_exact_on_other_walks_too(db, db_clock, seed):
    follow(Walk(db, db_clock, seed))


def follow(walk):
    for _ in range(8):
        for _ in range(25):
            walk.step()
        assert kit.differences(walk.owner) == [0]
    assert kit.count(walk.owner, "outcome") > 20  # it was a walk
    assert kit.rows(walk.owner, "select * from pgmail.recount() where state = 'unknown'") == []
    # Nothing is in two places, and every recipient in one.
    assert kit.one(
        walk.owner,
        "select bool_and((q.id is not null)::int + (o.recipient_id is not null)::int"
        " + (d.recipient_id is not null)::int = 1) from pgmail.recipient r"
        " left join pgmail.queue q on q.id = r.id left join pgmail.outcome o on o.recipient_id = r.id"
        " left join pgmail.dead_letter d on d.recipient_id = r.id",
    )


@pytest.mark.parametrize(
    ("damage", "difference"),
    [
        ("delete from pgmail.queue where id = (select min(id::text)::uuid from pgmail.queue)", 1),
        ("insert into pgmail.tally (tenant_id, stream, kind, n) values (1, 'transactional', 'sent', 1)", -1),
    ],
    ids=["a row was lost", "a row was counted twice"],
)
def test_the_ledger_can_disagree(app, owner, damage, difference):
    kit.send_many(app, [kit.body() for _ in range(3)])
    assert kit.rows(owner, "select enqueued, queued, difference from pgmail.ledger") == [(3, 3, 0)]
    owner.execute(damage)
    assert kit.rows(owner, "select difference from pgmail.ledger") == [(difference,)]


def test_folding_moves_tallies_into_totals_and_no_figure(app, owner, hand):
    for n in range(5):
        kit.send(app, f"u{n}@example.org")
    hand.settle(hand.claim(2))
    before = kit.rows(owner, "select * from pgmail.ledger")
    assert hand.connection.execute("select pgmail.fold_tallies_v1()").fetchone() == (2,)
    assert kit.count(owner, "tally") == 0
    assert kit.rows(owner, "select * from pgmail.ledger") == before


def test_each_tenant_has_a_ledger_of_its_own(db, app, owner):
    kit.send(app)
    owner.execute("select pgmail.create_tenant('second')")
    assert kit.rows(owner, "select tenant, enqueued from pgmail.ledger order by 1") == [
        ("default", 1),
        ("second", 0),
    ]
    assert kit.rows(db.connect("reader"), "select tenant, enqueued from pgmail.ledger") == [("default", 1)]

"""The life of a recipient: ops/docs/lifecycle.md, pgmail.domain.states and the SQL say one thing."""

import re
from datetime import timedelta
from itertools import product
from pathlib import Path
from typing import NamedTuple

import pytest

from pgmail.domain import states
from tests.sql import kit
from tests.sql.kit import Hand

PAGE = (Path(__file__).parents[2] / "ops/docs/lifecycle.md").read_text(encoding="utf-8")
STATES = {state.value for state in states.State}


class Row(NamedTuple):
    """One move of the page."""

    before: str
    by: str
    after: str
    event: str
    who: str


def table(title):
    """The cells of the page's table under a title, without its head."""
    part = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("|")][2:]
    return [tuple(cell.strip().strip("`") for cell in line.strip("|").split("|")) for line in lines]


MOVES = [Row(*cells) for cells in table("Moves")]


def words(owner, table_, column):
    """The words that a CHECK allows."""
    (definition,) = [
        text
        for (text,) in kit.rows(
            owner,
            "select pg_get_constraintdef(oid) from pg_constraint where conrelid = %s::regclass and contype = 'c'",
            [f"pgmail.{table_}"],
        )
        if re.search(rf"\b{column}\b", text)
    ]
    return set(re.findall(r"'([^']+)'", definition))


def test_page_and_states_name_the_same_states_in_the_same_phases():
    assert {(name, phase) for name, phase, _ in table("States")} == {
        (state.value, phase.value) for state, phase in states.PHASE_OF.items()
    }


def test_page_and_states_name_the_same_moves():
    code = {
        Row(
            "-" if move.state is None else move.state.value,
            move.mover,
            move.next.value,
            "-" if move.event is None else move.event.value,
            move.who,
        )
        for move in states.MOVES
    }
    assert set(MOVES) == code


def test_final_states_have_no_move_and_every_other_state_has_one():
    assert {row.before for row in MOVES} - {"-"} == STATES - {state.value for state in states.FINAL}


def test_sql_answers_no_state_but_these_and_all_of_them(owner):
    final = [None, *(state.value for state in states.FINAL)]
    due = ["-infinity", "infinity", "2001-01-01", "1999-01-01"]
    wait = [None, "scheduled", "deferred", "delayed"]
    answered = set()
    for outcome, dead, queued, leased, at, why in product(final, *[[True, False]] * 3, due, wait):
        answered.add(
            kit.one(
                owner,
                "select pgmail.state_of(%s, %s, %s, %s, %s, %s, '2000-01-01')",
                [outcome, dead, queued, leased, at, why],
            )
        )
    assert answered == STATES | {"unknown"}


def test_phases_are_the_same_in_sql(owner):
    for state, phase in states.PHASE_OF.items():
        assert kit.one(owner, "select pgmail.phase_of(%s)", [state.value]) == phase.value


def test_the_words_of_the_checks_are_those_of_the_states(owner):
    final = {state.value for state in states.FINAL}
    assert words(owner, "outcome", "state") == final
    assert words(owner, "tally", "kind") == final | {"enqueued", "dead"}
    assert words(owner, "event", "type") == {event.value for event in states.EventType}
    ledger = {column.name for column in owner.execute("select * from pgmail.ledger").description}
    assert ledger == STATES | {"tenant", "tenant_id", "enqueued", "difference"}


class Life:
    """Puts a recipient into a state, and moves it by name."""

    def __init__(self, db, clock):
        self.clock, self.owner, self.app = clock, db.connect(), db.connect("producer")
        self.workers = db.connect("worker"), db.connect("worker")
        self.renew()
        self.admin = db.connect("admin")
        self.vow = False  # what is claimed next is not sent before its intent is committed
        kit.stream(self.owner, "full", max_queued=0)
        kit.stream(self.owner, "careful", on_doubt="hold")
        self.owner.execute("select pgmail.suppress('gone@example.org')")

    def renew(self):
        """Two workers that nobody declared dead."""
        self.hand, self.second = map(Hand, self.workers)

    def at(self, **delta):
        return (self.clock.now() + timedelta(**delta)).isoformat()

    def put(self, state, **more):
        """An email of one recipient in this state; its id."""
        if state == "scheduled":
            return kit.send(self.app, scheduled_at=self.at(hours=1), **more)
        if state == "suppressed":
            return kit.send(self.app, "gone@example.org", **more)
        mail = kit.send(self.app, expires_at=self.at(hours=3), **more)
        if state == "cancelled":
            self.app.execute("select pgmail.cancel(%s)", [mail])
        elif state != "queued":
            self.lease = self.claim(mail)
            if state != "sending":
                self.hand.settle(self.lease, state, delay=7200, reason="because")
        assert kit.state(self.app, mail) == state
        return mail

    def claim(self, mail):
        vow, self.vow = self.vow, False
        (lease,) = [lease for lease in self.hand.claim(holds=vow) if lease.message_id == mail]
        return lease

    def late_doubt(self):
        """An email that is held in doubt, for its worker died."""
        mail = self.put("sending", stream="careful")
        self.second.rescue(self.hand.epoch)
        assert kit.state(self.app, mail) == "held"
        return mail

    def move(self, row):
        """Make the move of a row; the email's id."""
        if row.by == "send":
            return {
                "queued": lambda: kit.send(self.app),
                "scheduled": lambda: self.put("scheduled"),
                "suppressed": lambda: self.put("suppressed"),
                "held": lambda: kit.send(self.app, stream="full", on_limit="hold"),
            }[row.after]()
        if row.by == "late 250":
            return self.late(row.before)
        if row.by == "resolve":
            mail = self.late_doubt()
            how = "resend" if row.after == "queued" else "assume_sent"
            assert kit.one(self.admin, "select pgmail.resolve(%s, %s)", [mail, how]) == 1
            return mail
        more = {"stream": "careful"} if (row.by, row.after) == ("rescue", "held") else {}
        if (row.before, row.by) == ("held", "release"):
            mail = self.put(row.after)
            self.operate("hold", mail)
            self.operate("let go", mail)
            return mail
        if (row.by, row.event) == ("rescue", "email.delayed"):
            more, self.vow = {"stream": "careful"}, True
        if (row.before, row.after) == ("held", "scheduled"):
            mail = kit.send(self.app, stream="full", on_limit="hold", scheduled_at=self.at(hours=1))
        else:
            mail = self.put(row.before, **more)
        self.operate(row.by, mail, row.after, row.event)
        return mail

    def late(self, state):
        """The worker is declared dead with a lease; its 250 comes when the mail stands in `state`."""
        mail = self.put("sending", stream="careful" if state == "held" else "transactional")
        lease = self.lease
        self.second.rescue(self.hand.epoch)
        if state == "deferred":
            (again,) = [x for x in self.second.claim() if x.message_id == mail]
            self.second.settle(again, "deferred", delay=7200)
        assert kit.state(self.app, mail) == state
        assert self.hand.settle(lease, "sent") == ["settled"]
        return mail

    def operate(self, by, mail, after=None, event=None):
        if by == "due":
            self.clock.advance(timedelta(hours=2, minutes=1))
        elif by == "expire":
            self.clock.advance(timedelta(hours=4))
            self.hand.connection.execute("select pgmail.expire_v1()")
        elif by == "reschedule":
            at = self.clock.now() + timedelta(minutes=0 if after == "queued" else 30)
            self.app.execute("select pgmail.reschedule(%s, %s)", [mail, at])
        elif by == "resolve":
            self.admin.execute("select pgmail.resolve(%s, 'resend')", [mail])
        elif by in {"cancel", "retry", "discard", "hold"}:
            self.admin.execute(f"select pgmail.{by}(%s)", [mail])
        elif by == "let go":  # an operator's release; a worker releases its leases
            self.admin.execute("select pgmail.release(%s)", [mail])
        elif by == "claim":
            self.claim(mail)
        elif by == "settle":
            self.hand.settle(self.lease, after, delay=60, reason="because", doubt=event == "email.in_doubt")
        elif by == "release":
            self.hand.release([self.lease], "relay away" if event == "email.delayed" else None)
        elif by == "restore":
            decision = {"held": "hold", "queued": "resend", "sent": "assume_sent"}[after]
            self.admin.execute("select pgmail.stop_for_restore('restored')")
            self.admin.execute("select pgmail.decide_restore(1, %s, null, null)", [decision])
            self.admin.execute("select pgmail.accept_restore(%s, 'restored')", [decision])
        elif by == "rescue":
            self.second.rescue(self.hand.epoch)
        else:
            raise AssertionError(by)


@pytest.fixture
def life(db, db_clock):
    return Life(db, db_clock)


@pytest.mark.parametrize("before", dict.fromkeys(row.before for row in MOVES))
def test_every_move_of_the_page_is_made_and_told_as_it_says(life, before):
    for row in (row for row in MOVES if row.before == before):
        life.renew()
        mail = life.move(row)
        assert (row, kit.state(life.app, mail)) == (row, row.after)
        told = [f"email.{event}" for event in kit.events(life.app, mail)]
        if row.event == "-":
            assert told[-1] in {"email.queued", "email.scheduled", "email.sending", "email.deferred"}, row
        else:
            assert row.event in told[-2:], row
        assert kit.differences(life.owner) == [0]


def test_no_operation_makes_a_move_that_the_page_does_not_have(life):
    listed = {(row.before, row.by) for row in MOVES if row.by != "resolve"} | {
        ("scheduled", "expire")
    }  # that of `put` has become due by then
    for state, by in product(
        sorted(STATES),
        ("cancel", "reschedule", "retry", "discard", "expire", "hold", "let go", "resolve"),
    ):
        if (state, {"let go": "release"}.get(by, by)) in listed - {("sending", "release")}:
            continue
        life.renew()
        mail = life.put(state)
        told = kit.events(life.app, mail)
        life.operate(by, mail)
        assert (by, kit.state(life.app, mail)) == (by, state)
        assert kit.events(life.app, mail) == told

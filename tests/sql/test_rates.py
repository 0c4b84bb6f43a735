"""Rates: what all workers together are given never exceeds a limit, in any window, and comes without bursts."""

import threading
from datetime import timedelta

import psycopg
import pytest

from tests.sql import kit
from tests.sql.kit import Hand, Refusal

pytestmark = pytest.mark.one_server

FIELDS = {
    "scope": None,
    "name": None,
    "messages": None,
    "per_seconds": 1.0,
    "connections": None,
    "ramp_seconds": 30.0,
    "note": None,
}


def limit(owner, *values, **named):
    """Values in the order of FIELDS, or by their names."""
    given = dict(FIELDS) | dict(zip(FIELDS, values, strict=False)) | named
    return kit.one(
        owner,
        "select pgmail.set_limit(%(scope)s, %(name)s, %(messages)s::int, %(per_seconds)s::real,"
        " %(connections)s::int, %(ramp_seconds)s::real, %(note)s)",
        given,
    )


def take(hand, *wants):
    """(granted, starts_in, gap, wait) of each (scope, name, tokens), by key."""
    found = kit.rows(
        hand.connection,
        "select * from pgmail.take_tokens_v1(%s, %s, %s, %s)",
        [hand.epoch, *(list(column) for column in zip(*wants, strict=True))],
    )
    return {row[:2]: row[2:] for row in found}


def take_at(hand, scope, name, tokens):
    """The moments of the tokens. The bucket's row is ours until the end, so its last token is ours as well."""
    with hand.connection.transaction():
        granted, _, gap, wait = take(hand, (scope, name, tokens))[scope, name]
        last = kit.one(
            hand.connection, "select last_at from pgmail.bucket where scope = %s and name = %s", [scope, name]
        )
    return [last - timedelta(seconds=(granted - 1 - i) * gap) for i in range(granted)], wait


def worker(db):
    """As the owner, to look at buckets as well."""
    return Hand(db.connect())


def most_in(moments, seconds):
    """The most moments in any window [t, t + seconds)."""
    moments, first, most = sorted(moments), 0, 0
    for i, moment in enumerate(moments):
        while (moment - moments[first]).total_seconds() >= seconds:
            first += 1
        most = max(most, i - first + 1)
    return most


@pytest.mark.parametrize(("messages", "per_seconds"), [(100, 1), (10, 60), (14, 1)])
def test_four_workers_that_all_ask_never_exceed_a_rate_in_any_window_and_reach_it(
    db, owner, db_clock, messages, per_seconds
):
    limit(owner, "site", "big.example", messages, per_seconds)
    began = db_clock.freeze()
    workers, moments, gate = [worker(db) for _ in range(4)], [], threading.Barrier(4)
    waits = [0.0] * len(workers)

    def work(number):
        for _ in range(20):
            if gate.wait(60) == 0:
                db_clock.advance(min(waits))  # the first who was told to ask again now does
            gate.wait(60)
            found, waits[number] = take_at(workers[number], "site", "big.example", messages)
            moments.extend(found)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most_in(moments, per_seconds) <= messages
    gaps = [(b - a).total_seconds() for a, b in zip(sorted(moments), sorted(moments)[1:], strict=False)]
    assert min(gaps) >= per_seconds / messages * 1.0149
    elapsed = (db_clock.now() - began).total_seconds()
    assert len(moments) >= elapsed * messages / per_seconds * 0.98 - 1


def test_a_quiet_hour_saves_up_nothing(db, owner, db_clock):
    limit(owner, "site", "big.example", 10)
    hand = worker(db)
    db_clock.freeze()
    assert len(take_at(hand, "site", "big.example", 100)[0]) == 5
    db_clock.advance(3600)
    moments, _ = take_at(hand, "site", "big.example", 100)
    assert len(moments) == 5
    assert moments[0] >= db_clock.now()


def test_tokens_are_given_out_half_a_second_ahead_and_then_a_time_to_ask_again(db, owner, db_clock):
    limit(owner, "site", "slow.example", 1, 60)
    hand = worker(db)
    db_clock.freeze()
    assert take(hand, ("site", "slow.example", 5))["site", "slow.example"][0] == 1
    granted, starts_in, gap, wait = take(hand, ("site", "slow.example", 5))["site", "slow.example"]
    assert (granted, gap) == (0, pytest.approx(60.9))
    assert starts_in == pytest.approx(60.9, abs=2)
    assert wait == pytest.approx(starts_in - 0.25)
    db_clock.advance(wait)
    granted, starts_in, _, _ = take(hand, ("site", "slow.example", 5))["site", "slow.example"]
    assert granted == 1
    assert 0 <= starts_in <= 0.5


def test_what_has_no_rate_is_given_at_once(db, owner, hand):
    limit(owner, "relay", "default", connections=10)
    found = take(hand, ("site", "free.example", 7), ("relay", "default", 3))
    assert found == {("site", "free.example"): (7, 0, 0, 0), ("relay", "default"): (3, 0, 0, 0)}
    assert kit.count(owner, "bucket") == 0


def test_keys_that_are_named_twice_are_added_up(db, owner, hand):
    limit(owner, "site", "big.example", 10)
    (found,) = take(hand, ("site", "big.example", 2), ("site", "big.example", 1)).values()
    assert found[0] == 3


def test_a_changed_limit_holds_from_the_next_token_on(db, owner, db_clock):
    hand = worker(db)
    limit(owner, "site", "big.example", 1, 3600)
    take(hand, ("site", "big.example", 1))
    assert take(hand, ("site", "big.example", 1))["site", "big.example"][3] > 3000
    limit(owner, "site", "big.example", 100)
    db_clock.advance(1)
    assert take(hand, ("site", "big.example", 10))["site", "big.example"][0] == 10


def test_an_operator_who_leaves_a_transaction_open_delays_no_worker(db, owner, hand):
    limit(owner, "relay", "default", 100)
    owner.execute("set lock_timeout = '5s'")
    hand.connection.execute("set lock_timeout = '5s'")
    with db.connect(autocommit=False) as operator:
        limit(operator, "relay", "default", 50)
        operator.execute("select pgmail.pause_relay('default', 'thinking')")
        operator.execute("select pgmail.pause_mail('stream', 'broadcast', 'thinking')")
        assert take(hand, ("relay", "default", 1))["relay", "default"][0] == 1
        operator.rollback()


def test_a_relay_is_ramped_up_to_from_its_first_mail_and_when_it_comes_back(db, owner, hand, db_clock):
    limit(owner, "relay", "default", 100, ramp_seconds=30)

    def gap():
        return take(hand, ("relay", "default", 1))["relay", "default"][2]

    assert gap() == pytest.approx(0.1015, rel=0.1)  # a tenth of it
    db_clock.advance(15)
    assert gap() == pytest.approx(0.0203, rel=0.2)
    db_clock.advance(60)
    assert gap() == pytest.approx(0.01015)
    owner.execute("select pgmail.relay_state_v1('default', 'up', null)")
    assert gap() == pytest.approx(0.01015)  # it was up
    owner.execute("select pgmail.relay_state_v1('default', 'away', 'refused', 1)")
    db_clock.advance(600)
    owner.execute("select pgmail.relay_state_v1('default', 'up', null)")
    assert gap() == pytest.approx(0.1015, rel=0.1)
    db_clock.advance(60)
    owner.execute("select pgmail.pause_relay('default', 'moving')")
    owner.execute("select pgmail.resume_relay('default')")
    assert gap() == pytest.approx(0.1015, rel=0.1)


def test_a_ramp_of_nothing_and_the_limit_of_a_relay_without_a_row_hold_at_once(db, owner, hand):
    limit(owner, "relay", "default", 100, ramp_seconds=0)
    limit(owner, "relay", "unheard", 100)
    found = take(hand, ("relay", "default", 1), ("relay", "unheard", 1))
    assert [row[2] for row in found.values()] == [pytest.approx(0.01015)] * 2


def test_a_worker_that_was_declared_dead_gets_no_tokens(db, hand):
    hand.rescue()
    with pytest.raises(psycopg.Error) as refused:
        take(hand, ("site", "big.example", 1))
    assert refused.value.sqlstate == "PM410"


def test_large_sites_have_defaults_that_say_where_they_come_from(owner):
    shipped = kit.rows(owner, "select name, messages, connections, note from pgmail.limits where shipped")
    assert {"gmail.com", "outlook.com", "yahoo.com", "icloud.com", "orange.fr"} <= {row[0] for row in shipped}
    assert all(row[1] and row[2] and row[3] for row in shipped)
    grouped = kit.rows(owner, "select domain from pgmail.site_domain join pgmail.limits on name = domain")
    assert grouped == []


def test_a_limit_is_set_on_the_group_that_a_domain_belongs_to_and_is_the_operators_from_then_on(db, owner):
    admin = db.connect("admin")
    assert limit(admin, "site", "GoogleMail.com", 5, 60, note="a new address") == "gmail.com"
    row = kit.rows(
        owner,
        "select messages, connections, shipped, changed_by, note from pgmail.limits where name = 'gmail.com'",
    )
    assert row == [(5, None, False, "pgmail_admin", "a new address")]
    assert kit.one(admin, "select pgmail.remove_limit('site', 'googlemail.com')")
    assert not kit.one(admin, "select pgmail.remove_limit('site', 'gmail.com')")
    told = kit.rows(owner, "select action, object, reason, actor from pgmail.audit order by id")
    assert told == [
        ("limit.set", "site gmail.com", "5 a minute, a new address", "pgmail_admin"),
        ("limit.remove", "site gmail.com", None, "pgmail_admin"),
    ]


@pytest.mark.parametrize(
    ("values", "code", "field", "status"),
    [
        (("planet", "mars", 1), "invalid_scope", "/scope", 422),
        (("site", "not a domain", 1), "invalid_site", "/name", 422),
        (("site", None, 1), "invalid_site", "/name", 422),
        (("relay", "a b", 1), "invalid_name", "/name", 422),
        (("tenant", "nobody", 1), "unknown_tenant", "/name", 404),
        (("tenant", "default", 1, 1, 5), "invalid_limit", "/connections", 422),
        (("site", "a.example"), "missing_field", "/messages", 422),
        (("site", "a.example", 0), "invalid_limit", "/messages", 422),
        (("site", "a.example", 1, 0), "invalid_limit", "/per_seconds", 422),
        (("site", "a.example", 1, "nan"), "invalid_limit", "/per_seconds", 422),
        (("site", "a.example", 1, 1, -1), "invalid_limit", "/connections", 422),
        (("relay", "default", 1, 1, None, -1), "invalid_limit", "/ramp_seconds", 422),
        (("site", "a.example", 1, 1, None, 30, "x" * 1001), "invalid_limit", "/note", 422),
    ],
)
def test_what_can_be_no_limit_is_refused_with_its_field(owner, values, code, field, status):
    with pytest.raises(psycopg.Error) as refused:
        limit(owner, *values)
    assert kit.refusal(refused.value) == Refusal(code, field, f"PM{status}")


def test_a_tenants_weight_is_set_and_wrong_ones_are_refused(owner):
    owner.execute("select pgmail.set_tenant('default', 2.5)")
    assert kit.rows(owner, "select name, weight from pgmail.tenant") == [("default", 2.5)]
    for name, weight, code in (("default", 0, "invalid_weight"), ("nobody", 1, "unknown_tenant")):
        with pytest.raises(psycopg.Error) as refused:
            owner.execute("select pgmail.set_tenant(%s, %s::real)", [name, weight])
        assert refused.value.diag.constraint_name == code


def test_a_tenant_sees_the_limits_of_relays_and_sites_and_its_own(db, owner):
    owner.execute("select pgmail.create_tenant('neighbour')")
    owner.execute("delete from pgmail.limits")
    for scope, name in (
        ("tenant", "default"),
        ("tenant", "neighbour"),
        ("relay", "default"),
        ("site", "a.example"),
    ):
        limit(owner, scope, name, 1)
    seen = "select scope, name from pgmail.limits order by 1, 2"
    mine = [("relay", "default"), ("site", "a.example"), ("tenant", "default")]
    assert kit.rows(db.connect("reader"), seen) == mine
    assert len(kit.rows(db.connect("worker"), seen)) == len(kit.rows(db.connect("admin"), seen)) == 4

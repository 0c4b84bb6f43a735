"""Plans: what runs all day finds its rows by index, however full or skewed the queue, and however old the plan."""

import json
import re
from datetime import UTC, datetime, timedelta

import pytest

from tests.sql import kit

_INNER = re.compile(r"return query\n(?P<claim>.*?);\nend", re.DOTALL)


@pytest.fixture
def claim_plan(owner):
    """The plan of the claim's own statement, with a head and a limit put in for its parameters."""
    source = kit.one(owner, "select prosrc from pg_proc where proname = 'claim_v3'")
    statement = _INNER.search(source)["claim"]
    values = {
        "p_lanes": "array[{0}]::bigint[]",
        "p_due": "array[{1}]::timestamptz[]",
        "p_after": "array[{2}]::uuid[]",
        "p_limits": "array[{3}]::int[]",
        "p_traced": "array[{4}]::bool[]",
        "p_holds": "array[{4}]::bool[]",
        "p_tenant": "1",
        "p_epoch": "1",
    }
    for name, value in values.items():
        statement = re.sub(rf"\b{name}\b", value, statement)

    def plan(lanes):
        n = len(lanes)
        text = statement.format(
            ",".join(map(str, lanes)),
            ",".join(["'-infinity'"] * n),
            ",".join([f"'{kit.NOBODY}'"] * n),
            ",".join(["10"] * n),
            ",".join(["true"] * n),
        )
        made = kit.one(owner, f"explain (format json) {text}")
        return made if isinstance(made, list) else json.loads(made)

    return plan


def nodes(plan):
    yield plan
    for below in plan.get("Plans", ()):
        yield from nodes(below)


def lateral(plan):
    """The nodes below the lock that the claim takes."""
    (lock,) = [node for node in nodes(plan[0]["Plan"]) if node["Node Type"] == "LockRows"]
    return list(nodes(lock))[1:]


def fill(owner, domain):
    """20,000 rows; which lane the n-th goes into is `domain`, an expression in n."""
    owner.execute(
        "insert into pgmail.queue (tenant_id, id, message_id, lane, due_at) select 1, pgmail.uuid7(), pgmail.uuid7(),"
        f" pgmail.lane_id(1, 'transactional', 2, 'd' || ({domain})), pgmail.now() - n * interval '1 ms'"
        " from generate_series(1, 20000) n"
    )


def test_a_claim_walks_its_index_without_scan_and_sort(owner, claim_plan):
    owner.execute("set enable_seqscan = off")  # as the function has it
    for domain in (None, "n % 500", "case when n % 100 = 0 then n % 500 else 0 end"):  # empty, even, skewed
        owner.execute("truncate pgmail.queue")
        if domain:
            fill(owner, domain)
        for analyzed in (False, True):
            if analyzed:
                owner.execute("vacuum analyze pgmail.queue")
            lanes = [row[0] for row in kit.rows(owner, "select distinct lane from pgmail.queue limit 20")]
            below = lateral(claim_plan(lanes or [1, 2, 3]))
            found = [(node["Node Type"], node.get("Index Name")) for node in below]
            assert found == [("Index Scan", "queue_claim")], (domain, analyzed)


def read_by_scan(connections, owner):
    for connection in connections:
        connection.execute("select pg_stat_force_next_flush()")
    return {
        name: (scans, found)
        for name, scans, found in kit.rows(
            owner,
            "select relname, seq_scan, coalesce(idx_scan, 0) from pg_stat_user_tables where schemaname = 'pgmail'",
        )
    }


def test_plans_cached_while_the_queue_was_empty_scan_nothing_once_it_is_full(app, owner, hand):
    def live():
        mail = kit.send(app)
        lanes = [kit.one(owner, "select pgmail.lane_id(1, 'transactional', 2, 'example.org')")]
        hand.settle(hand.claim(1, lanes=lanes))
        other = kit.send(app)
        hand.release(hand.claim(1, lanes=lanes))
        app.execute("select pgmail.reschedule(%s, now() + interval '1 hour')", [other])
        app.execute("select pgmail.cancel(%s)", [other])
        for call in ("status", "trace", "why"):
            app.execute(f"select pgmail.{call}(%s)", [mail])
        hand.fold()
        hand.connection.execute(
            "select pgmail.repair_lanes_v1(), pgmail.expire_v1(), pgmail.wake_due_v1('-infinity')"
        )

    owner.execute("vacuum analyze")
    for _ in range(8):  # after five the plans are generic ones
        live()
    owner.execute("vacuum analyze pgmail.queue, pgmail.message, pgmail.recipient, pgmail.lane")
    live()
    fill(owner, "n % 500")
    kit.send_many(owner, [kit.body(f"u{n}@example.org") for n in range(200)])
    before = read_by_scan((app, hand.connection), owner)
    live()
    after = read_by_scan((app, hand.connection), owner)
    # A short list without an index, and a table of a moment, may be read whole.
    scanned = {name for name in after if after[name][0] > before[name][0]} - {"worker", "lane_touch", "fence"}
    assert scanned == set()


def test_a_look_up_by_id_touches_one_partition(app, owner):
    mail = kit.send(app, ["a@example.org", "b@example.org"])
    recipient = kit.recipients(app, mail)[0]
    for _ in range(6):
        kit.states(app, mail)
        kit.states(app, recipient)
    before = read_by_scan((app,), owner)
    for one in (mail, recipient):
        for call in ("status", "trace"):
            app.execute(f"select pgmail.{call}(%s)", [one])
    after = read_by_scan((app,), owner)
    # A part is a week from Monday on (UTC); an hour is looked at on either side of an id.
    now = datetime.now(UTC)
    near = (now + timedelta(hours=hours) for hours in (-1, 1))
    mondays = {f"{each - timedelta(days=each.weekday()):%Y%m%d}" for each in near}
    for base in ("message", "recipient", "event", "outcome"):
        touched = {name for name in after if name.startswith(base + "_") and after[name] != before[name]}
        assert touched
        assert touched <= {f"{base}_{monday}" for monday in mondays}, touched

"""What a worker does all day, as its own role, over 60 partitions: rows read are rows used, however full the queue.

Counted by the server's own statistics rather than read off a plan: a plan that reads too much is wrong whatever
its shape. `PGMAIL_PLAN_ROWS=1000000` makes the long run of `make bench`.
"""

import os

import pytest

from pgmail import sqlfiles
from tests.sql import kit

ROWS = int(os.environ.get("PGMAIL_PLAN_ROWS", "5000"))
LANES = 20
TAKEN = 200
WORK = sqlfiles.queries("work")
SHAPES = {
    "empty": None,
    "even": "n % 1000",
    "skewed": "case when n % 100 = 0 then n % 1000 else 0 end",
}


def fill(owner, lane):
    """Rows with a recipient each, over lanes by an expression in n; half of them due in the future."""
    owner.execute(
        f"""with m as (select pgmail.uuid7() as id, n from generate_series(1, {ROWS}) n),
        r as (insert into pgmail.recipient (tenant_id, id, message_id, position, role, address, site)
          select 1, id, id, 1, 'to', 'u' || n || '@d' || ({lane}) || '.example', 'd' || ({lane}) || '.example' from m),
        c as (insert into pgmail.message (tenant_id, id, created_at, created_by, stream, priority, mode, sender,
            recipients, size_bytes, content)
          select 1, id, pgmail.now(), 'test', 'transactional', 2, 'envelope', 'a@example.com', 1, 1, '{{}}' from m)
        insert into pgmail.queue (tenant_id, id, message_id, lane, due_at)
        select 1, id, id, pgmail.lane_id(1, 'transactional', 2, 'd' || ({lane}) || '.example'),
          pgmail.now() + case when n % 2 = 0 then -1 else 1 end * interval '1 hour' from m"""
    )


def read(connection, owner):
    """By table: rows read by scan, rows fetched by index."""
    connection.execute("select pg_stat_force_next_flush()")
    return {
        name: (scanned, fetched)
        for name, scanned, fetched in kit.rows(
            owner,
            "select relname, seq_tup_read, coalesce(idx_tup_fetch, 0) from pg_stat_user_tables"
            " where schemaname = 'pgmail'",
        )
    }


@pytest.mark.parametrize("analyzed", [False, True], ids=["never analyzed", "analyzed"])
@pytest.mark.parametrize("shape", SHAPES)
def test_claim_load_and_settle_read_what_they_use(db, owner, hand, shape, analyzed):
    kit.one(owner, "select pgmail.make_partitions_v1(420)")
    assert kit.one(owner, "select count(*) from pg_inherits where inhparent = 'pgmail.event'::regclass") >= 60
    if SHAPES[shape]:
        fill(owner, SHAPES[shape])
    if analyzed:
        owner.execute("vacuum analyze pgmail.queue, pgmail.recipient, pgmail.message")
    lanes = [row[0] for row in kit.rows(owner, "select distinct lane from pgmail.queue limit %s", [LANES])]
    lanes = lanes or list(range(LANES))
    worker = hand.connection
    hand.claim(1, lanes=lanes[:1])  # whatever a first call reads once

    before = read(worker, owner)
    leases = hand.claim(TAKEN // LANES, lanes=lanes)
    if leases:
        ids = [lease.id for lease in leases]
        span = {"tenant": 1, "ids": ids, "low": min(ids), "high": max(ids), "most": 1 << 30}
        people = worker.execute(
            WORK["recipients"].text.encode(), span | {"stream": "transactional"}
        ).fetchall()
        contents = worker.execute(WORK["messages"].text.encode(), span).fetchall()
        assert len(people) == len(contents) == len(leases)
        assert set(hand.settle(leases)) == {"settled"}
    after = read(worker, owner)

    used = {name: (after[name][0] - before[name][0], after[name][1] - before[name][1]) for name in after}
    assert (len(leases) > 0) == (shape != "empty")
    # A list of a few rows may be read whole; what grows may not.
    scanned = {name: n for name, (n, _) in used.items() if n > 50 and not name.startswith("pg_")}
    assert scanned == {}
    fetched = sum(n for _, n in used.values())
    # A row is found to be claimed, to be updated, to be loaded (three tables) and to be settled.
    assert fetched <= 8 * len(leases) + 5 * LANES, {name: n for name, n in used.items() if any(n)}
    for base in ("recipient", "message", "event", "outcome"):
        assert sum(1 for name, (_, n) in used.items() if name.startswith(base + "_") and n) <= 1

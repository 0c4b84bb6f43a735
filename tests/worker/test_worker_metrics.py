"""What a worker tells of itself, and of the fleet while it leads."""

import asyncio
import socket
from collections import Counter

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.store import metrics as store
from pgmail.store.metrics import FleetFigures
from tests.waiting import eventually
from tests.worker.kit import ACCEPTED, Scripted, settled

REFUSED = Result(phase=Phase.RCPT, reply=Reply(550, "no such user", "5.1.1"), ms=3)
LOST = Result(phase=Phase.DOT, error="connection lost", ms=3)


def free_port():
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return min(one.getsockname()[1], 64_000)


def send(app, count=1, site="gmail.com"):
    for n in range(count):
        app.execute(
            "select pgmail.send(jsonb_build_object('from', 'a@example.com', 'to', %s::text, 'subject', 's',"
            " 'text', 't'))",
            [f"u{n}@{site}"],
        )


async def scrape(port):
    """Every sample by its name and labels."""
    async with httpx.AsyncClient() as client:
        answer = await client.get(f"http://127.0.0.1:{port}/metrics")
    assert answer.status_code == 200
    found = {}
    for family in text_string_to_metric_families(answer.text):
        for sample in family.samples:
            found[sample.name, *sorted(sample.labels.items())] = sample.value
    return found


def value(found, name, **labels):
    return found.get((f"pgmail_{name}", *sorted(labels.items())))


async def test_a_worker_tells_what_it_claimed_sent_and_was_answered_and_the_leader_the_fleet(
    db, app, crew, monkeypatch
):
    monkeypatch.setattr(store, "LEAST_SECONDS", 0.05)
    monkeypatch.setattr(store, "SHARE", 1)
    port = free_port()
    transport = Scripted(REFUSED, LOST, otherwise=ACCEPTED)
    send(app, 3)
    send(app, 2, site="nobody-knows.example")
    await crew.hire({"default": transport}, metrics_port=port, concurrency=4)
    with db.connect() as owner:
        owner.autocommit = True
        await eventually(lambda: settled(owner)["sent"] == 3, 30)

        async def told():
            found = await scrape(port)
            done = value(found, "recipients_total", stream="transactional", result="sent") == 3
            return (
                found
                if done and value(found, "results_total", result="deferred", stream="transactional")
                else None
            )

        found = await eventually(told, 30)
    assert value(found, "claimed_total") >= 5
    assert value(found, "claim_round_trips_total") >= 1
    assert value(found, "results_total", result="sent", stream="transactional") == 3
    assert value(found, "results_total", result="bounced", stream="transactional") == 1
    assert value(found, "in_doubt_total") == 1
    replies = Counter()
    for (name, *labels), n in found.items():
        if name == "pgmail_replies_total":
            replies[dict(labels)["site"]] += n
    assert set(replies) <= {"gmail.com", "other"}
    assert sum(replies.values()) == 5
    for phase in ("queue", "render", "smtp", "connection", "claim", "settle"):
        assert value(found, "phase_seconds_count", phase=phase) >= 1, phase
    assert value(found, "slots") == 4
    assert value(found, "relay_up", relay="default") == 1
    assert value(found, "pool_connections", pool="worker") >= 1
    # the fleet
    assert value(found, "leading") == 1
    assert value(found, "recipients_total", stream="transactional", result="enqueued") == 5
    assert value(found, "workers", program="worker", state="running") == 1
    assert value(found, "partition_days_left") > 14
    assert value(found, "table_bytes", table="queue") > 0
    assert value(found, "snapshot_span") >= 0
    assert not any("@" in str(key) or "nobody-knows" in str(key) for key in found)


async def test_who_does_not_lead_tells_nothing_of_the_fleet(db, app, crew):
    port = free_port()
    await crew.hire(metrics_port=port, lead=False)

    async def ready():
        async with httpx.AsyncClient() as client:
            try:
                answer = await client.get(f"http://127.0.0.1:{port}/health/ready")
            except httpx.TransportError:
                return False
        return answer.status_code == 200

    await eventually(ready, 30)
    found = await scrape(port)
    assert value(found, "leading") == 0
    assert value(found, "slots") == 8
    assert not any(name in ("pgmail_queue_depth", "pgmail_table_bytes") for name, *_ in found)


async def test_figures_of_the_queue_know_depth_held_doubt_and_what_a_pause_keeps(db, app, pool):
    send(app, 3, site="example.org")
    send(app, 1, site="example.net")
    with db.connect() as owner:
        owner.execute("select pgmail.fold_touches_v1(), pgmail.fold_tallies_v1()")
        owner.execute(
            "update pgmail.queue set due_at = 'infinity', in_doubt = true"
            " where id = (select min(id::text)::uuid from pgmail.queue)"
        )
        owner.execute("select pgmail.gauge_lanes_v1()")
        owner.execute("update pgmail.insight_cursor set rolled_at = pgmail.now() - interval '1 hour'")
    figures = FleetFigures(pool, lambda: True)
    await figures.refresh()
    found = {(sample.family, sample.labels): sample.value for sample in figures.samples()}
    assert found["queue_depth", ("transactional",)] == 4
    assert found["held", ("transactional",)] == 1
    assert found["held_in_doubt", ("transactional",)] == 1
    assert found["oldest_due_seconds", ("transactional",)] >= 0
    assert found["reached_age_seconds", ("gauges",)] < 60
    assert found["reached_age_seconds", ("reports",)] >= 3600
    assert not any(
        name == "reached_age_seconds" and labels == ("states",) for name, labels in found
    )  # not once yet
    with db.connect() as owner:
        owner.execute("select pgmail.pause_mail('stream', 'transactional', 'maintenance', null, true)")
    paused = FleetFigures(pool, lambda: True)
    await paused.refresh()
    assert not any(sample.family == "oldest_due_seconds" for sample in paused.samples())


async def test_tenants_are_named_where_that_is_wanted_only(db, app, pool):
    send(app)
    with db.connect() as owner:
        owner.execute("select pgmail.fold_touches_v1(), pgmail.fold_tallies_v1()")
    for tenants, labels in ((False, ("transactional",)), (True, ("default", "transactional"))):
        figures = FleetFigures(pool, lambda: True, tenants=tenants)
        await figures.refresh()
        assert [sample.labels for sample in figures.samples() if sample.family == "queue_depth"] == [labels]


async def test_figures_are_asked_for_no_more_often_than_they_may_and_old_ones_stay_without_a_database(
    pool, monkeypatch
):
    now = [100.0]
    figures = FleetFigures(pool, lambda: True, clock=lambda: now[0])
    await figures.refresh()
    first = figures._quick
    await figures.refresh()
    assert figures._quick is first
    now[0] += store.LEAST_SECONDS + 1
    await figures.refresh()
    assert figures._quick is not first
    kept = figures._quick
    await pool.close()
    now[0] += store.LEAST_SECONDS + 1
    await figures.refresh()
    assert figures._quick is kept
    assert [s.value for s in figures.samples() if s.family == "figures_age_seconds"] == [
        store.LEAST_SECONDS + 1
    ]


async def test_a_table_that_an_upgrade_has_in_hand_is_left_out_and_nobody_waits(db, pool):
    async with asyncio.timeout(20):
        with db.connect() as owner, owner.transaction():
            owner.execute("lock table pgmail.lane in access exclusive mode")
            figures = FleetFigures(pool, lambda: True)
            await asyncio.wait_for(figures._database.many(store._Q["tables"]), 10)


@pytest.mark.parametrize("role", ["producer", "reader", "api"])
def test_the_fleets_figures_are_for_who_leads_and_for_administrators(db, role):
    import psycopg

    for call in ("metrics_queue_v1()", "metrics_fleet_v1()", "metrics_tables_v1()"):
        with db.connect(role) as connection, pytest.raises(psycopg.errors.InsufficientPrivilege):
            connection.execute(f"select * from pgmail.{call}")

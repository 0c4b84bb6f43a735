"""A producer that runs away: what it gets in before the leader closes the door, and that nobody else notices."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

from psycopg.types.json import Jsonb

from tests.sql.kit import body, differences, one, rows
from tests.waiting import eventually
from tests.worker.kit import Recording

RATE = 50


async def test_a_runaway_producer_is_stopped_within_two_seconds_of_its_own_speed_and_nothing_is_lost(
    db, crew, owner
):
    owner.execute("select pgmail.set_quota('tenant', '', %s)", [Jsonb({"per_second": RATE})])
    hired = await crew.hire({"default": Recording()})
    await eventually(lambda: one(owner, "select doors_at is not null from pgmail.leader"))
    email, sent, seconds = json.dumps(body()), 0, 4.0

    def run_away() -> float:
        nonlocal sent
        with db.connect("producer") as producer:
            began = time.monotonic()
            while time.monotonic() < began + seconds:
                producer.execute("select pgmail.send(%s::jsonb)", [email])
                sent += 1
            return sent / (time.monotonic() - began)

    with ThreadPoolExecutor(1) as thread:
        speed = await asyncio.get_running_loop().run_in_executor(thread, run_away)
    at_once = sent - one(owner, "select count(*) from pgmail.event where type = 'email.delayed'")
    said = f"{at_once} at {speed:.0f} a second before the door closed: {at_once / speed:.2f} s"
    assert speed > 2 * RATE
    assert RATE < at_once < speed * 3, said
    # Each further second was put behind what was there: at the rate, in no herd.
    ahead = rows(
        owner,
        "select extract(epoch from due_at - now())::float8 from pgmail.queue where wait = 'delayed' order by 1",
    )
    assert ahead[-1][0] > (sent / RATE) * 0.5
    await hired.stop()
    owner.execute("select pgmail.fold_tallies_v1()")
    assert differences(owner) == [0]


async def test_while_one_tenant_floods_anothers_mail_leaves_within_a_second(db, crew, owner):
    """Of the same priority: without a quota it is the fair share that sees to it."""
    second = one(owner, "select pgmail.create_tenant('second')")
    flood = [body(f"u{i}@example.org") for i in range(3000)]
    with db.connect("producer") as producer:
        producer.execute("select pgmail.send_many(%s)", [Jsonb(flood)])
    relay = Recording(takes=0.02)
    hired = await crew.hire({"default": relay}, concurrency=8)
    await eventually(lambda: len(relay.begun_to) > 100)
    api = db.connect("api")
    api.execute("select set_config('pgmail.tenant', %s, false)", [str(second)])
    began = time.monotonic()
    api.execute("select pgmail.send(%s)", [Jsonb(body("one@second.example"))])
    await eventually(lambda: "one@second.example" in relay.begun_to)
    assert time.monotonic() - began < 1.0
    assert len(relay.begun_to) < 3000
    await hired.stop()
    assert differences(owner) == [0, 0]

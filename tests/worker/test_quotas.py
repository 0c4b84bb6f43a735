"""A producer that runs away: what it gets in before the leader closes the door, and that nobody else notices."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

from psycopg.types.json import Jsonb

from tests.sql.kit import body, differences, one, rows
from tests.waiting import eventually
from tests.worker.kit import Recording

RATE = 20  # far below what a busy machine still hands over in a second


async def test_a_runaway_producer_is_stopped_after_some_seconds_of_its_own_speed_and_nothing_is_lost(
    db, crew, owner
):
    owner.execute("select pgmail.set_quota('tenant', '', %s)", [Jsonb({"per_second": RATE})])
    hired = await crew.hire({"default": Recording()})
    await eventually(lambda: one(owner, "select doors_at is not null from pgmail.leader"))
    email, sent = json.dumps(body()), 0
    delayed = "select count(*) from pgmail.event where type = 'email.delayed'"

    def run_away() -> float:
        """Send for four seconds at least, and until the door has been closed for many."""
        nonlocal sent
        with db.connect("producer") as producer, db.connect() as looking:
            began = time.monotonic()
            while time.monotonic() < began + 4 or (
                one(looking, delayed) < 10 * RATE and time.monotonic() < began + 60
            ):
                for _ in range(RATE):
                    producer.execute("select pgmail.send(%s::jsonb)", [email])
                sent += RATE
            return sent / (time.monotonic() - began)

    with ThreadPoolExecutor(1) as thread:
        speed = await asyncio.get_running_loop().run_in_executor(thread, run_away)
    at_once = sent - one(owner, delayed)
    said = f"{at_once} at {speed:.0f} a second before the door closed: {at_once / speed:.2f} s"
    assert speed > 2 * RATE
    # A leader that has the machine for itself closes it after one to two seconds.
    assert RATE < at_once < speed * 10, said
    # Each further second was put behind what was there: at the rate, in no herd.
    ahead = rows(
        owner,
        "select extract(epoch from due_at - now())::float8 from pgmail.queue where wait = 'delayed' order by 1",
    )
    assert ahead[-1][0] > (sent / RATE) * 0.4
    await hired.stop()
    owner.execute("select pgmail.fold_tallies_v1()")
    assert differences(owner) == [0]


async def test_while_one_tenant_floods_anothers_mail_leaves_long_before_its_end(db, crew, owner):
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
    before = len(relay.begun_to)
    api.execute("select pgmail.send(%s)", [Jsonb(body("one@second.example"))])
    await eventually(lambda: "one@second.example" in relay.begun_to)
    # Of 400 a second at most. In mails, not in seconds: a busy machine slows both.
    assert relay.begun_to.index("one@second.example") - before < 1000
    await hired.stop()
    assert differences(owner) == [0, 0]

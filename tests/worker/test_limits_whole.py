"""Limits, relays, weights, pauses and priorities with whole workers: several in one process, one database."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator
from typing import Any

import psycopg
import pytest

from pgmail.store import limits
from pgmail.worker import content
from tests.fix_db import PREFIX
from tests.sql.kit import events, one, rows, send, send_many, state, stream
from tests.waiting import eventually
from tests.worker.kit import ACCEPTED, AWAY, Crew, Recording, most_in_a_window, settled


def many(app: Any, n: int, to: str = "x{}@example.org", **more: Any) -> None:
    body = {"from": "a@example.com", "subject": "s", "text": "t", **more}
    for start in range(0, n, 1000):
        send_many(app, [{**body, "to": to.format(i)} for i in range(start, min(n, start + 1000))])


class Tenant:
    """Another tenant's application."""

    def __init__(self, owner: Any, app: Any, name: str) -> None:
        self.id = one(owner, "select pgmail.create_tenant(%s)", [name])
        self._owner, self._app, self.name = owner, app, name

    def __enter__(self) -> psycopg.Connection[Any]:
        self._speak_for(self.name)
        return self._app

    def __exit__(self, *_: object) -> None:
        self._speak_for("default")

    def _speak_for(self, name: str) -> None:
        self._owner.execute(
            "select pgmail.revoke_tenant(%(role)s), pgmail.grant_tenant(%(role)s, %(name)s)",
            {"role": PREFIX + "producer", "name": name},
        )


async def started(owner: Any, n: int = 1) -> None:
    """Wait until so many workers live."""
    await eventually(lambda: one(owner, "select count(*) from pgmail.worker") == n)


class Noise:
    """What this machine adds to moments that the fleet shares: how long answers and the event loop were late."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.answer = self.stall = 0.0
        self._real = limits.take_tokens
        monkeypatch.setattr(limits, "take_tokens", self._take)

    @property
    def seconds(self) -> float:
        return self.answer + self.stall

    async def _take(self, *arguments: Any) -> Any:
        asked = time.monotonic()
        found = await self._real(*arguments)
        self.answer = max(self.answer, time.monotonic() - asked)
        return found

    async def listen(self) -> None:
        while True:
            asked = time.monotonic()
            await asyncio.sleep(0.001)
            self.stall = max(self.stall, time.monotonic() - asked - 0.001)


@pytest.fixture
async def noise(monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Noise]:
    made = Noise(monkeypatch)
    task = asyncio.create_task(made.listen())
    yield made
    task.cancel()
    await asyncio.gather(task, return_exceptions=True)


async def test_three_workers_keep_one_rate_in_every_window_and_use_it(app, owner, crew, noise):
    owner.execute("select pgmail.set_limit('site', 'slow.example', 50)")
    transport = Recording()
    for _ in range(3):
        await crew.hire({"default": transport}, concurrency=4)
    await started(owner, 3)
    many(app, 160, "x{}@slow.example")
    many(app, 100, "x{}@free.example")
    await eventually(lambda: transport.sites()["slow.example"] == 160, 30)
    at = [moment for moment, to in zip(transport.begun_at, transport.begun_to, strict=True) if "slow" in to]
    assert most_in_a_window(at, 1.0 - noise.seconds) <= 50
    # A machine that holds a worker up for longer than the margin of the limit costs it the tokens in between.
    assert most_in_a_window(at, 2.0) >= 0.7 * 100
    await eventually(lambda: settled(owner) == {"sent": 260})
    assert one(owner, "select max(attempts) from pgmail.outcome") == 1  # nothing was tried in vain


async def test_three_workers_hold_no_more_connections_than_the_cap_together(app, owner, crew):
    owner.execute("select pgmail.set_limit('site', 'slow.example', null, 1, 4)")
    transport = Recording(takes=0.02)
    for _ in range(3):
        await crew.hire({"default": transport}, concurrency=8)
    await started(owner, 3)
    many(app, 200, "x{}@slow.example")
    await eventually(lambda: settled(owner) == {"sent": 200}, 30)
    assert transport.most <= 4
    assert transport.most >= 3


async def test_while_the_first_relay_is_away_mail_goes_by_the_second_and_by_the_first_when_it_is_back(
    app, owner, crew
):
    first, second = Recording(), Recording()
    await crew.hire({"first": first, "second": second, "default": Recording()})
    await eventually(
        lambda: one(owner, "select count(*) from pgmail.relay where name in ('first', 'second')") == 2
    )
    stream(owner, "news", relay=["first", "second"])
    many(app, 20, stream="news")
    await eventually(lambda: settled(owner) == {"sent": 20})
    assert (len(first.delivered), second.begun) == (20, 0)

    first.otherwise = AWAY
    first.probes_as(AWAY)
    many(app, 20, "y{}@example.org", stream="news")
    await eventually(lambda: settled(owner) == {"sent": 40})
    assert len(second.delivered) == 20
    assert rows(owner, "select distinct attempts from pgmail.outcome") == [(1,)]

    first.otherwise = ACCEPTED
    first.probes_as(None)
    await eventually(lambda: one(owner, "select state from pgmail.relay where name = 'first'") == "up")
    mail = send(app, stream="news")
    await eventually(lambda: state(app, mail) == "sent")
    sent_by = one(owner, "select relay from pgmail.outcome where message_id = %s", [mail])
    if sent_by == "second":  # the worker had not learnt yet
        many(app, 5, "z{}@example.org", stream="news")
        await eventually(lambda: settled(owner) == {"sent": 46})
    assert one(owner, "select count(*) from pgmail.outcome where relay = 'first'") > 20


async def test_mail_of_a_stream_whose_only_relay_is_away_waits_beside_mail_that_goes(app, owner, crew):
    away, well = Recording(otherwise=AWAY), Recording()
    away.probes_as(AWAY)
    await crew.hire({"first": away, "default": well})
    await eventually(lambda: one(owner, "select count(*) from pgmail.relay where name = 'first'") == 1)
    stream(owner, "news", relay="first")
    waits = send(app, stream="news")
    await eventually(lambda: "delayed" in events(app, waits))
    many(app, 50)
    await eventually(lambda: settled(owner) == {"sent": 50, "queued": 1})
    assert away.begun <= 3  # it is left alone


async def test_relays_share_a_streams_mail_by_weight(app, owner, crew):
    light, heavy = Recording(), Recording()
    await crew.hire({"light": light, "heavy": heavy, "default": Recording()})
    await eventually(
        lambda: one(owner, "select count(*) from pgmail.relay where name in ('light', 'heavy')") == 2
    )
    stream(owner, "news", relay=[{"name": "light", "weight": 1}, {"name": "heavy", "weight": 3}])
    many(app, 600, "x@d{}.example", stream="news")  # as many lanes: each claim of a lane picks one
    await eventually(lambda: settled(owner) == {"sent": 600}, 30)
    assert len(heavy.delivered) / 600 == pytest.approx(0.75, abs=0.1)


async def test_tenants_share_by_weight_while_both_have_mail(app, owner, crew):
    other = Tenant(owner, app, "other")
    owner.execute("select pgmail.set_tenant('other', 3)")
    many(app, 600, "x{}@mine.example")
    with other as theirs:
        many(theirs, 600, "x{}@theirs.example")
    transport = Recording(takes=0.002)
    await crew.hire({"default": transport}, concurrency=8)
    await eventually(lambda: transport.begun >= 600, 30)
    # While both had mail: three of theirs for each of mine.
    last_of_theirs = max(n for n, to in enumerate(transport.begun_to) if to.endswith("@theirs.example"))
    both = Counter(to.rpartition("@")[2] for to in transport.begun_to[: min(last_of_theirs, 600)])
    assert both["theirs.example"] / both["mine.example"] == pytest.approx(3, rel=0.25)
    await eventually(lambda: settled(owner) == {"sent": 1200}, 30)


@pytest.mark.parametrize("by", ["rows", "notice"])
async def test_a_paused_site_waits_while_others_go_and_resuming_lets_it_go(app, owner, crew, by):
    owner.execute("select pgmail.grant_tenant(%s, 'default')", [PREFIX + "owner"])
    owner.execute("select pgmail.pause_mail('site', 'slow.example', 'they asked us to')")
    transport = Recording()
    await crew.hire({"default": transport}, notify=by == "notice")
    many(app, 20, "x{}@slow.example")
    many(app, 20, "x{}@free.example")
    await eventually(lambda: settled(owner) == {"sent": 20, "queued": 20})
    # A pause set while the worker runs holds within a second, too.
    owner.execute("select pgmail.pause_mail('site', 'other.example', 'they, too')")
    learnt = send(app, "x@free.example")
    await eventually(lambda: state(app, learnt) == "sent")
    assert transport.sites() == {"free.example": 21}
    assert "paused" in one(
        app, "select pgmail.why(%s)", [one(owner, "select message_id from pgmail.queue limit 1")]
    )
    owner.execute("select pgmail.resume_mail('site', 'slow.example')")
    await eventually(lambda: settled(owner) == {"sent": 41})


async def test_a_pause_stops_mail_that_a_worker_has_claimed_and_not_begun(app, owner, crew):
    owner.execute("select pgmail.grant_tenant(%s, 'default')", [PREFIX + "owner"])
    hanging = Hanging("slow.example")
    await crew.hire({"default": hanging}, concurrency=8)
    many(app, 16, "x{}@slow.example")
    claimed = "select count(*) from pgmail.queue where leased_by is not null"
    # The relay is new: one on the wire, the others wait their turn.
    await eventually(lambda: len(hanging.begun_to) == 1 and one(owner, claimed) >= 8)
    owner.execute("select pgmail.pause_mail('stream', 'transactional', 'wrong content')")
    try:
        await eventually(lambda: one(owner, claimed) == 1)
    finally:
        hanging.let.set()
    await eventually(lambda: settled(owner) == {"sent": 1, "queued": 15})
    assert len(hanging.begun_to) == 1
    waits = one(owner, "select message_id from pgmail.queue limit 1")
    assert "delayed" in events(app, waits)
    owner.execute("select pgmail.resume_mail('stream', 'transactional')")
    await eventually(lambda: settled(owner) == {"sent": 16}, 30)
    assert one(owner, "select max(attempts) from pgmail.outcome") == 1


@pytest.mark.usefixtures("trusted")
async def test_large_mails_take_no_more_memory_than_there_is_for_them(app, owner, crew, monkeypatch):
    """By bytes, not by rows: a claim of a hundred mails of four megabytes must not be in memory at once."""
    monkeypatch.setattr(content, "HELD_BYTES", 600_000)
    libraries, held = set(), []
    real = content.Library.load

    async def load(self: content.Library, loads: Any) -> Any:
        libraries.add(self)
        found = await real(self, loads)
        held.append(self._held())
        return found

    monkeypatch.setattr(content.Library, "load", load)
    await crew.hire({"default": Recording(takes=0.01)}, concurrency=16)
    many(app, 40, text="x" * 100_000)
    many(app, 5, "y{}@example.org", priority="high")
    await eventually(lambda: settled(owner) == {"sent": 45}, 30)
    assert 400_000 < max(held) < 1_000_000  # of nine megabytes
    assert one(owner, "select max(attempts) from pgmail.outcome") == 1
    assert one(owner, "select count(*) from pgmail.event where type = 'email.delayed'") == 0
    await eventually(lambda: not any(library.full for library in libraries))


async def test_a_tenant_that_floods_does_not_keep_anothers_single_mail_waiting(app, owner, crew):
    other = Tenant(owner, app, "other")
    many(app, 4000, "x{}@flood.example")
    transport = Recording(takes=0.005)
    await crew.hire({"default": transport}, concurrency=8)
    await eventually(lambda: transport.begun > 100)
    with other as theirs:
        sent_at = time.monotonic()
        send(theirs, "one@single.example")
    await eventually(lambda: "one@single.example" in transport.begun_to)
    place = transport.begun_to.index("one@single.example")
    assert transport.begun_at[place] - sent_at < 5.0
    assert place < 3500  # the flood was not over


async def test_a_high_priority_mail_overtakes_a_flood_of_low_ones(app, owner, crew):
    many(app, 3000, "x{}@flood.example", priority="low")
    transport = Recording(takes=0.005)
    await crew.hire({"default": transport}, concurrency=8)
    await eventually(lambda: transport.begun > 100)
    sent_at = time.monotonic()
    send(app, "reset@urgent.example", priority="high")
    await eventually(lambda: "reset@urgent.example" in transport.begun_to)
    place = transport.begun_to.index("reset@urgent.example")
    assert transport.begun_at[place] - sent_at < 5.0
    assert place < 2500


class Hanging(Recording):
    """One whose answers for some sites never come, until a test lets them."""

    def __init__(self, *sites: str) -> None:
        super().__init__()
        self._sites = sites
        self.let = asyncio.Event()

    async def deliver(self, envelope: Any, on_dot: Any = None) -> Any:
        if envelope.recipient.rpartition("@")[2] in self._sites:
            self.begun_to.append(envelope.recipient)
            await self.let.wait()
            return ACCEPTED
        return await super().deliver(envelope, on_dot)


@pytest.fixture
async def hanging(crew: Crew) -> AsyncIterator[Hanging]:
    made = Hanging("slow.example")
    yield made
    made.let.set()


@pytest.mark.usefixtures("trusted")
async def test_while_all_other_slots_hang_in_low_mail_a_high_one_still_goes(app, owner, crew, hanging):
    await crew.hire({"default": hanging}, concurrency=20)
    many(app, 100, "x{}@slow.example", priority="low")
    await eventually(lambda: len(hanging.begun_to) == 16)
    high = send(app, "ada@quick.example", priority="high")
    await eventually(lambda: state(app, high) == "sent")
    normal = send(app, "bob@quick.example")
    await eventually(lambda: state(app, normal) == "sent")
    assert hanging.sites()["slow.example"] == 16
    hanging.let.set()
    await eventually(lambda: settled(owner) == {"sent": 102})


@pytest.mark.usefixtures("trusted")
async def test_a_capped_slow_site_takes_its_connections_and_nobody_elses_slots(app, owner, crew, hanging):
    owner.execute("select pgmail.set_limit('site', 'slow.example', null, 1, 3)")
    await crew.hire({"default": hanging}, concurrency=8)
    many(app, 100, "x{}@slow.example")
    await eventually(lambda: hanging.sites()["slow.example"] == 3)
    many(app, 50, "x{}@quick.example")
    await eventually(lambda: settled(owner)["sent"] == 50)
    assert hanging.sites()["slow.example"] == 3
    hanging.let.set()
    await eventually(lambda: settled(owner) == {"sent": 150})


async def test_while_a_relay_is_ramped_up_to_a_low_mail_that_hangs_does_not_hold_an_urgent_one(
    app, owner, crew
):
    hanging = Hanging("slow.example")
    await crew.hire({"default": hanging}, concurrency=8)
    many(app, 10, "x{}@slow.example", priority="low")
    await eventually(lambda: len(hanging.begun_to) == 1)  # it is new: one at a time
    high = send(app, "ada@quick.example", priority="high")
    try:
        await eventually(lambda: state(app, high) == "sent")
    finally:
        hanging.let.set()
    await eventually(lambda: settled(owner) == {"sent": 11})


@pytest.mark.usefixtures("trusted")
async def test_a_worker_that_has_no_permit_any_more_gives_back_what_waits_for_it(
    app, owner, crew, hanging, monkeypatch
):
    owner.execute("select pgmail.set_limit('site', 'slow.example', null, 1, 2)")
    await crew.hire({"default": hanging}, concurrency=8)
    many(app, 10, "x{}@slow.example")
    claimed = "select count(*) from pgmail.queue where leased_by is not null"
    # Two on the wire and two that are ready to follow.
    await eventually(lambda: len(hanging.begun_to) == 2 and one(owner, claimed) == 4)
    real = limits.share_permits

    async def none(database: Any, epoch: int, shares: Any) -> dict[Any, int | None]:
        return dict.fromkeys(await real(database, epoch, shares), 0)

    monkeypatch.setattr(limits, "share_permits", none)
    await eventually(lambda: one(owner, claimed) == 2)
    monkeypatch.setattr(limits, "share_permits", real)
    hanging.let.set()
    await eventually(lambda: settled(owner) == {"sent": 10}, 30)
    assert one(owner, "select max(attempts) from pgmail.outcome") == 1

"""Tokens and permits as workers get them from the fleet: real SQL, as the worker's role."""

import asyncio
import time
from collections.abc import Callable
from itertools import pairwise
from typing import Any

import pytest

from pgmail.errors import DatabaseAway
from pgmail.store import limits as store
from pgmail.store.database import Database as Pool
from pgmail.store.faults import FencedOut
from pgmail.worker import limiter as module
from pgmail.worker.job import Job
from pgmail.worker.limiter import Limiter, Token
from pgmail.worker.outbox import Outbox
from tests.sql.kit import Hand, one
from tests.waiting import eventually
from tests.worker.cable import cable_to
from tests.worker.kit import a_job, begin

SITE, OTHER, RELAY = ("site", "big.example"), ("site", "other.example"), ("relay", "default")


class Clock:
    """The real one, which a test may move on."""

    def __init__(self) -> None:
        self.ahead = 0.0

    def __call__(self) -> float:
        return time.monotonic() + self.ahead


class Desk:
    """One worker's limiter and outbox."""

    def __init__(self, pool: Pool, epoch: int) -> None:
        self.pool, self.clock = pool, Clock()
        self.outbox = Outbox(100, self.clock)
        self.limiter = Limiter(pool, lambda: epoch, self.outbox, self.clock)
        self.limiter._lead = 0.0  # the mail is ready at once

    async def learn(self) -> None:
        self.limiter.learn(await store.limits(self.pool))

    async def tokens(self, n: int, *keys: store.Key) -> list[Token]:
        """As many as are to be had at once."""
        await self.limiter.fetch({keys: n})
        return self.limiter.reserve(keys, n) or []

    def put(self, n: int, *keys: store.Key) -> None:
        """Mails that were claimed under limits, in front of the slots."""
        for _ in range(n):
            job = a_job()
            job.gates = self.limiter.gates(keys)
            self.outbox.put(job)

    def begin(self) -> list[Job]:
        return begin(self.outbox)

    async def share(self) -> None:
        """As if a second had passed."""
        self.clock.ahead += module.SHARE_SECONDS
        await self.limiter.share()


@pytest.fixture
def set_limit(owner) -> Callable[..., None]:
    def set_(
        key: store.Key, rate: int | None = None, connections: int | None = None, per: float = 1.0
    ) -> None:
        owner.execute("select pgmail.set_limit(%s, %s, %s, %s::real, %s, 0)", [*key, rate, per, connections])

    return set_


@pytest.fixture
def desks(db, pool) -> Callable[[int], list[Desk]]:
    def make(n: int) -> list[Desk]:
        connection = db.connect("worker")
        return [Desk(pool, Hand(connection).epoch) for _ in range(n)]

    return make


@pytest.fixture
async def desk(desks) -> Desk:
    (made,) = desks(1)
    return made


def gaps(tokens: list[Token]) -> list[float]:
    at = sorted(token.at for token in tokens)
    return [later - before for before, later in pairwise(at)]


async def test_without_limits_nothing_is_asked_and_nothing_held_back(desk):
    await desk.learn()
    assert desk.limiter.keys(1, "default", "nowhere.example") == ()
    assert desk.limiter.stopped(()) is None
    assert desk.limiter.allowed("default") is None
    assert not await desk.limiter.share()


async def test_a_mail_is_under_the_limits_of_its_relay_its_site_and_its_tenant(desk, set_limit):
    for key in (SITE, RELAY, ("tenant", "default")):
        set_limit(key, 10)
    await desk.learn()
    assert desk.limiter.keys(1, "default", "big.example") == (RELAY, SITE, ("tenant", "default"))
    assert desk.limiter.keys(2, "second", "big.example") == (SITE,)
    assert desk.limiter.keys(2, "second", "nowhere.example") == ()


async def test_tokens_come_paced_for_half_a_second_and_then_the_limit_stops_its_lanes(desk, set_limit):
    set_limit(SITE, 100)
    await desk.learn()
    before = time.monotonic()
    tokens = await desk.tokens(500, SITE)
    assert 45 <= len(tokens) <= 51
    assert min(gaps(tokens)) >= 0.01014
    assert tokens[0].at >= before
    while desk.limiter.stopped((SITE,)) is None:  # half a second's are out: soon none is there until later
        tokens += await desk.tokens(500, SITE)
    assert len(tokens) <= 80
    assert module.LEAST_WAIT <= desk.limiter.seconds(SITE) <= 0.5
    desk.clock.ahead += 0.5
    assert desk.limiter.stopped((SITE,)) is None


async def test_a_worker_that_wants_few_takes_few_and_leaves_the_rest_to_others(desks, set_limit):
    set_limit(SITE, 100)
    one_, other = desks(2)
    await one_.learn()
    await other.learn()
    assert len(await one_.tokens(5, SITE)) == 5
    assert len(await other.tokens(500, SITE)) >= 40


async def test_tokens_of_several_workers_lie_a_gap_apart_all_together(desks, set_limit):
    set_limit(SITE, 200)
    workers = desks(3)
    for worker in workers:
        await worker.learn()
    tokens: list[Token] = []
    until = time.monotonic() + 1.2

    async def work(worker: Desk) -> None:
        while time.monotonic() < until:
            tokens.extend(await worker.tokens(7, SITE))
            await asyncio.sleep(0.003)

    await asyncio.gather(*(work(worker) for worker in workers))
    seconds = max(token.at for token in tokens) - min(token.at for token in tokens)
    assert 0.9 * 200 <= len(tokens) / seconds <= 1.02 * 200
    at = sorted(token.at for token in tokens)
    # What an answer's way took moves its tokens: a handful each, by milliseconds, and never a burst.
    assert all(at[n + 100] - at[n] >= 0.45 for n in range(len(at) - 100))


async def test_tokens_that_lapsed_are_not_given_out(desk, set_limit):
    set_limit(SITE, 100)
    await desk.learn()
    await desk.limiter.fetch({(SITE,): 20})
    desk.clock.ahead += 0.1
    left = desk.limiter.reserve((SITE,), 20)
    assert 9 <= len(left) <= 12
    assert all(token.until >= desk.clock() for token in left)
    desk.clock.ahead += 5
    assert desk.limiter.reserve((SITE,), 20) == []


async def test_tokens_without_a_mail_go_to_the_next_lane_in_their_order(desk, set_limit):
    set_limit(SITE, 100)
    await desk.learn()
    tokens = await desk.tokens(10, SITE)
    desk.limiter.back((SITE,), tokens[4:])
    assert desk.limiter.reserve((SITE,), 6) == tokens[4:]


async def test_under_several_limits_a_mail_takes_a_token_of_each_and_goes_by_the_latest(desk, set_limit):
    set_limit(SITE, 20)
    set_limit(RELAY, 100)
    await desk.learn()
    tokens = await desk.tokens(50, RELAY, SITE)
    assert 7 <= len(tokens) <= 11  # the slower one's
    assert min(gaps(tokens)) >= 0.0507
    assert all(token.until >= token.at for token in tokens)


async def test_a_rate_of_ten_a_minute_gives_one_mail_and_a_long_wait(desk, set_limit):
    set_limit(SITE, 10, per=60)
    await desk.learn()
    assert len(await desk.tokens(50, SITE)) == 1
    await desk.limiter.fetch({(SITE,): 1})
    assert desk.limiter.stopped((SITE,)) == SITE
    assert desk.limiter.seconds(SITE) == module.MOST_WAIT


async def test_a_changed_rate_holds_from_the_next_fetch(desk, set_limit):
    set_limit(SITE, 20)
    await desk.learn()
    await desk.tokens(100, SITE)
    set_limit(SITE, 200)
    await desk.learn()

    async def quick() -> list[Token]:
        desk.limiter._rates[SITE].ready_at = 0.0  # past the wait that the old rate asked for
        found = await desk.tokens(100, SITE)
        return found if len(found) > 1 else []

    assert max(gaps(await eventually(quick))) <= 0.006


async def test_a_rate_that_was_removed_holds_nobody_back(desk, set_limit, owner):
    set_limit(SITE, 1)
    await desk.learn()
    await desk.tokens(5, SITE)
    await desk.limiter.fetch({(SITE,): 5})
    assert desk.limiter.stopped((SITE,)) == SITE
    one(owner, "select pgmail.remove_limit('site', 'big.example')")
    await desk.learn()
    assert desk.limiter.keys(1, "default", "big.example") == ()
    assert desk.limiter.stopped((SITE,)) is None


async def test_before_permits_are_granted_nothing_goes_and_then_no_more_than_the_cap(desk, set_limit):
    set_limit(SITE, connections=4)
    await desk.learn()
    assert desk.limiter.stopped((SITE,)) == SITE
    assert await desk.limiter.share()
    assert desk.limiter.stopped((SITE,)) is None
    assert desk.limiter.reserve((SITE,), 100) == [Token(0.0, 0.0)] * 4 * module.AHEAD
    desk.put(8, SITE)
    assert len(desk.begin()) == 4
    assert desk.limiter.stopped((SITE,)) == SITE  # the next ones are ready in front of the slots


async def test_the_permits_of_several_workers_never_sum_above_the_cap(desks, set_limit):
    set_limit(SITE, connections=5)
    workers = desks(4)
    for worker in workers:
        await worker.learn()
    on_the_wire: dict[Desk, list[Job]] = {worker: [] for worker in workers}
    at_once: list[int] = []
    for turn in range(60):
        worker = workers[turn * 7 % 4]
        worker.limiter.stopped((SITE,))  # it has mail for it
        await worker.share()
        if worker.outbox.gate(SITE).claimed < 3:
            worker.put(3, SITE)
        on_the_wire[worker] += worker.begin()
        at_once.append(sum(len(jobs) for jobs in on_the_wire.values()))
        if turn % 3 and on_the_wire[workers[turn % 4]]:
            workers[turn % 4].outbox.done(on_the_wire[workers[turn % 4]].pop())
    assert max(at_once) <= 5
    assert max(at_once) >= 4
    assert len({worker for worker, jobs in on_the_wire.items() if jobs}) >= 2  # they share


async def test_what_a_worker_does_not_use_is_lent_to_the_one_that_can(desks, set_limit):
    set_limit(SITE, connections=6)
    busy, modest = desks(2)
    for worker in (busy, modest):
        await worker.learn()
        worker.limiter.stopped((SITE,))
    await busy.share()
    assert busy.limiter._caps[SITE].gate.limit == 6
    await modest.share()
    for _ in range(3):
        busy.limiter.stopped((SITE,))
        busy.put(20, SITE)
        modest.limiter.gates((SITE,))  # one mail, and no wish for more
        await busy.share()
        modest.clock.ahead += module.SHARE_SECONDS
        await modest.limiter.share()
    limits = [worker.limiter._caps[SITE].gate.limit for worker in (busy, modest)]
    assert sum(limits) <= 6
    assert limits[0] >= 3
    assert limits[1] >= 1


async def test_a_key_that_a_worker_no_longer_uses_is_given_back(desks, set_limit):
    set_limit(SITE, connections=3)
    first, second = desks(2)
    for worker in (first, second):
        await worker.learn()
        worker.limiter.stopped((SITE,))
    await first.share()
    assert first.outbox.gate(SITE).limit == 3
    await second.share()
    assert second.outbox.gate(SITE).limit == 0
    first.clock.ahead += module.UNUSED_SECONDS
    other = ("site", "another.example")
    set_limit(other, connections=1)
    await first.learn()
    first.limiter.stopped((other,))  # it uses another: so it asks, and names the first no more
    await first.share()
    assert first.outbox.gate(SITE).limit == 0
    second.limiter.stopped((SITE,))
    await second.share()
    assert second.outbox.gate(SITE).limit == 3


async def test_a_lowered_cap_is_obeyed_as_mails_end(desk, set_limit):
    set_limit(SITE, connections=6)
    await desk.learn()
    desk.limiter.stopped((SITE,))
    await desk.share()
    desk.put(12, SITE)
    busy = desk.begin()
    assert len(busy) == 6
    set_limit(SITE, connections=2)
    await desk.learn()
    await desk.share()
    assert desk.outbox.gate(SITE).limit == 2
    while len(busy) > 2:
        desk.outbox.done(busy.pop())
        assert desk.begin() == []
    desk.outbox.done(busy.pop())
    assert len(desk.begin()) == 1


async def test_a_cap_that_was_removed_opens_its_gate_to_all_who_wait(desk, set_limit, owner):
    set_limit(SITE, connections=1)
    await desk.learn()
    desk.limiter.stopped((SITE,))
    await desk.share()
    desk.put(10, SITE)
    assert len(desk.begin()) == 1
    one(owner, "select pgmail.remove_limit('site', 'big.example')")
    await desk.learn()
    assert len(desk.begin()) == 9
    assert desk.limiter.keys(1, "default", "big.example") == ()


@pytest.mark.parametrize("what", ["tokens", "permits"])
async def test_a_worker_that_was_declared_dead_gets_neither_tokens_nor_permits(desk, set_limit, owner, what):
    set_limit(SITE, 100, connections=5)
    await desk.learn()
    desk.limiter.stopped((SITE,))
    await desk.share()
    one(owner, "select pgmail.rescue_v1(%s)", [desk.limiter._epoch()])
    with pytest.raises(FencedOut):
        await (desk.tokens(5, SITE) if what == "tokens" else desk.share())


async def test_with_the_database_away_no_token_comes_and_permits_stay_as_they_were(db, set_limit):
    epoch = Hand(db.connect("worker")).epoch
    set_limit(SITE, 100, connections=3)
    async with cable_to(db.dsn_for("worker")) as cable:
        pool = Pool(cable.dsn(db.dsn_for("worker")), name="test", wait_seconds=0.3)
        await pool.open()
        await eventually(pool.reachable)  # which a slow machine may not be in the time set above
        desk = Desk(pool, epoch)
        await desk.learn()
        desk.limiter.stopped((SITE,))
        await desk.share()
        cable.cut()
        for ask in (desk.limiter.fetch({(SITE,): 5}), desk.share()):
            with pytest.raises(DatabaseAway):
                await ask
        assert desk.limiter.reserve((SITE,), 5) == []
        assert desk.outbox.gate(SITE).limit == 3
        cable.mend()

        async def again() -> Any:
            try:
                return await desk.tokens(5, SITE)
            except DatabaseAway:
                return []

        assert len(await eventually(again)) <= 3  # no more than it has permits for; in a stall one lapses
        await pool.close()


async def test_no_token_is_for_a_moment_before_its_mail_can_be_ready(desk, set_limit):
    set_limit(SITE, 100)
    await desk.learn()
    desk.limiter.took(0.1)
    asked = time.monotonic()
    (token,) = await desk.tokens(1, SITE)
    assert token.at - asked >= 0.12
    desk.limiter.took(60)
    (token,) = await desk.tokens(1, SITE)
    assert token.at - time.monotonic() <= 0.25


async def test_a_token_for_more_limits_serves_mail_under_fewer_of_them(desk, set_limit):
    set_limit(SITE, 20)
    set_limit(RELAY, 100)
    await desk.learn()
    await desk.limiter.fetch({(RELAY, SITE): 1})
    assert desk.limiter.reserve((OTHER,), 1) is None
    assert len(desk.limiter.reserve((RELAY,), 5) or []) == 1

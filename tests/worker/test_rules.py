"""What operators lay down is obeyed by a worker within a learn, and names what stops a lane."""

from collections.abc import Callable

import pytest

from pgmail.shaping.verdict import decide
from pgmail.store.work import LaneRow
from pgmail.worker import rules as module
from pgmail.worker.lanes import Lane, LaneBook
from pgmail.worker.limiter import Limiter
from pgmail.worker.outbox import Outbox
from pgmail.worker.relays import Relays
from pgmail.worker.rules import Paused, RelaysAway, Rules
from tests.fix_db import PREFIX
from tests.sql.kit import Hand, one, stream
from tests.worker.kit import ACCEPTED, AWAY, Clock, Scripted


class Office:
    """The rules of one worker, with what they stand on."""

    def __init__(self, pool, epoch: int, clock: Clock) -> None:
        self.outbox = Outbox(8, clock.monotonic)
        self.limiter = Limiter(pool, lambda: epoch, self.outbox, clock.monotonic)
        self.relays = Relays(pool, {name: Scripted() for name in ("default", "second")}, self.outbox)
        self.rules = Rules(pool, self.relays, self.limiter)
        self.book = LaneBook(clock.monotonic)
        self.clock = clock

    async def learn(self) -> None:
        self.clock.now += module.LEARN_SECONDS
        assert await self.rules.learn()

    def lane(
        self, tenant: int = 1, stream: str = "transactional", priority: int = 2, site: str = "a.example"
    ) -> Lane:
        return Lane(
            LaneRow(tenant, hash((tenant, stream, priority, site)), stream, priority, site, True, 1, None), 0
        )


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    made = Clock()
    for name in ("rules", "relays"):
        monkeypatch.setattr(f"pgmail.worker.{name}.time", made)
    return made


@pytest.fixture
async def office(db, pool, clock) -> Office:
    made = Office(pool, Hand(db.connect("worker")).epoch, clock)
    await made.rules.learn()
    return made


@pytest.fixture
def pause(app, owner) -> Callable[..., None]:
    """Pause as the tenant, or as the owner for the whole fleet."""

    def do(scope: str, name: str, *, fleet: bool = False) -> None:
        owner.execute("select pgmail.pause_mail(%s, %s, 'said so', null, %s)", [scope, name, fleet])

    owner.execute("select pgmail.grant_tenant(%s, 'default')", [PREFIX + "owner"])
    return do


@pytest.mark.parametrize(
    ("scope", "name", "stopped", "free"),
    [
        ("site", "a.example", {}, {"site": "b.example"}),
        ("stream", "transactional", {}, {"stream": "broadcast"}),
        ("lane", "transactional/normal/a.example", {}, {"priority": 1}),
    ],
)
async def test_a_pause_stops_its_lanes_and_no_others_until_it_is_resumed(
    office, owner, pause, *, scope, name, stopped, free
):
    pause(scope, name)
    assert office.rules.stopped(office.lane(**stopped)) is None  # not learnt yet
    await office.learn()
    key = office.rules.stopped(office.lane(**stopped))
    assert key == Paused(1, scope, name)
    assert office.rules.stopped(office.lane(**free)) is None
    assert office.rules.stopped(office.lane(tenant=2, **stopped)) is None
    owner.execute("select pgmail.resume_mail(%s, %s)", [scope, name])
    await office.learn()
    assert office.rules.stopped(office.lane(**stopped)) is None


async def test_a_pause_of_the_fleet_stops_every_tenant(office, pause):
    pause("site", "a.example", fleet=True)
    await office.learn()
    for tenant in (1, 2, 77):
        assert office.rules.stopped(office.lane(tenant=tenant)) == Paused(None, "site", "a.example")
    assert office.rules.stopped(office.lane(site="b.example")) is None


async def test_a_lane_parked_under_a_pause_is_freed_by_its_end_and_not_by_anothers(office, owner, pause):
    pause("site", "a.example")
    pause("site", "b.example")
    await office.learn()
    rows = [
        LaneRow(1, n, "transactional", 2, f"{site}.example", True, 1, None) for n, site in enumerate("ab", 1)
    ]
    office.book.update(rows, complete=True)
    assert office.book.choose(lambda _: 10, office.rules.stopped) == []
    assert len(office.book.parked()) == 2
    assert office.rules.free(office.book) is None  # no clock ends a pause: somebody does
    owner.execute("select pgmail.resume_mail('site', 'b.example')")
    await office.learn()
    office.rules.free(office.book)
    ((_, lanes, _),) = office.book.choose(lambda _: 10, office.rules.stopped)
    assert [lane.site for lane in lanes] == ["b.example"]
    assert office.book.parked() == [Paused(1, "site", "a.example")]


async def test_lanes_wait_while_all_relays_of_their_stream_are_away_and_go_when_one_is_back(office, owner):
    await office.relays.learn()
    stream(owner, "news", relay=["default", "second"])
    await office.learn()
    lane = office.lane(stream="news")
    assert office.rules.relay(lane) == "default"
    await office.relays.record("default", decide(AWAY))
    assert (office.rules.relay(lane), office.rules.stopped(lane)) == ("second", None)
    assert office.rules.stopped(office.lane()) == RelaysAway(1, "transactional")  # it has but the one
    await office.relays.record("second", decide(AWAY))
    assert office.rules.stopped(lane) == RelaysAway(1, "news")
    office.book.update([LaneRow(1, 9, "news", 2, "a.example", True, 1, None)], complete=True)
    assert office.book.choose(lambda _: 10, office.rules.stopped) == []
    office.rules.free(office.book)
    assert office.book.parked() == [RelaysAway(1, "news")]
    await office.relays.record("second", decide(ACCEPTED))
    await office.learn()
    office.rules.free(office.book)
    assert [len(lanes) for _, lanes, _ in office.book.choose(lambda _: 10, office.rules.stopped)] == [1]


async def test_lanes_of_a_stream_whose_relay_this_process_has_not_wait(office, owner):
    owner.execute("insert into pgmail.relay (name) values ('elsewhere')")
    stream(owner, "news", relay="elsewhere")
    await office.learn()
    assert office.rules.stopped(office.lane(stream="news")) == RelaysAway(1, "news")


async def test_a_pause_is_named_before_a_relay_and_a_relay_before_a_limit(office, owner, pause):
    pause("site", "a.example")
    owner.execute("select pgmail.set_limit('site', 'a.example', null, 1, 1)")
    await office.learn()
    await office.relays.record("default", decide(AWAY))
    lane = office.lane()
    assert office.rules.stopped(lane) == Paused(1, "site", "a.example")
    owner.execute("select pgmail.resume_mail('site', 'a.example')")
    await office.learn()
    assert office.rules.stopped(lane) == RelaysAway(1, "transactional")
    await office.relays.record("default", decide(ACCEPTED))
    await office.learn()
    assert office.rules.stopped(lane) == ("site", "a.example")  # no permit was granted yet


async def test_lanes_with_one_limit_share_a_key_and_are_freed_a_few_at_a_time_when_it_is_time(office, owner):
    owner.execute("select pgmail.set_limit('relay', 'default', 1, 1, null, 0)")
    await office.learn()
    key = ("relay", "default")
    for _ in range(3):  # all that is to be had now
        await office.limiter.fetch({(key,): 5})
        office.limiter.reserve((key,), 5)
    n = 3 * module.FREED_AT_ONCE
    rows = [LaneRow(1, i, "transactional", 2, f"s{i}.example", True, 1, None) for i in range(n)]
    office.book.update(rows, complete=True)
    assert office.book.choose(lambda _: 500, office.rules.stopped) == []
    assert office.book.parked() == [key]
    wait = office.rules.free(office.book)
    assert 0 < wait <= 1
    assert office.book.next_look() is None
    office.clock.now += wait + 0.01
    office.rules.free(office.book)
    ((_, lanes, _),) = office.book.choose(lambda _: n, lambda _: None)
    assert len(lanes) == module.FREED_AT_ONCE
    assert office.book.parked() == [key]


async def test_what_is_parked_by_hand_is_freed_at_its_time(office):
    key = ("site", "a.example")
    office.book.update([LaneRow(1, 9, "transactional", 2, "a.example", True, 1, None)], complete=True)
    ((_, [lane], _),) = office.book.choose(lambda _: 10, lambda _: None)
    office.book.park(lane, key)
    office.rules.park_until(key, 3.0)
    assert office.rules.free(office.book) == pytest.approx(3.0)
    office.clock.now += 3
    assert office.rules.free(office.book) is None
    assert office.book.next_look() == 0


async def test_it_is_learnt_once_a_second_and_a_stream_that_is_new_at_once(office, owner):
    assert not await office.rules.learn()
    stream(owner, "news", trace="lean", max_attempts=3)
    assert office.rules.stream(1, "news").max_attempts == 20  # by the defaults, until it is known
    assert (await office.rules.policy(1, "news")).max_attempts == 3
    assert not office.rules.traced(office.lane(stream="news"))
    assert office.rules.traced(office.lane())
    assert (await office.rules.policy(1, "gone")).trace == "full"


async def test_weights_of_tenants_are_learnt(office, owner):
    assert office.rules.weights[1] == 1.0
    other = one(owner, "select pgmail.create_tenant('other')")
    owner.execute("select pgmail.set_tenant('other', 3)")
    await office.learn()
    assert office.rules.weights == {1: 1.0, other: 3.0}

"""The overview: figures and charts, live, one refresh for all who look; charts in words; figures as people say them."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.dashboard import words
from pgmail.dashboard.charts import Series, ceiling, chart
from pgmail.dashboard.live import Channel, Hub
from pgmail.errors import Refused
from tests.dashboard.conftest import ROOT, browser
from tests.sql.kit import Hand, send
from tests.waiting import eventually

START = datetime(2026, 5, 1, 9, 0, tzinfo=UTC)


def moments(count, step=60):
    return [START + timedelta(seconds=step * i) for i in range(count)]


async def test_it_shows_figures_charts_and_what_is_wrong(page):
    answer = await page.get(ROOT)
    assert answer.status_code == 200, answer.text
    for word in (
        "Waiting",
        "Oldest due",
        "Time to accept",
        "Dead letters",
        "Throughput",
        "No worker is alive",
    ):
        assert word in answer.text
    assert answer.text.count('<figure class="chart">') == 3
    for span in ("24h", "7d", "nonsense"):
        assert (await page.get(f"{ROOT}?span={span}")).status_code == 200


async def test_it_says_that_nothing_was_sent_until_something_was_and_never_again(db, key):
    hand, hint = Hand(db.connect("worker")), "Nothing has been sent here yet"
    async with browser(db.dsn_for("api"), key) as page:
        hub = page.app.state.live
        _, task = await first_event(page, f"{ROOT}/live/overview?span=1h")
        await eventually(lambda: len(hub) == 1 and next(iter(hub._channels.values())).parts)
        parts = next(iter(hub._channels.values())).parts
        assert hint in parts["notice"]
        assert hint in (await page.get(ROOT)).text
        send(db.connect("producer"))
        hand.settle(hand.claim(), "sent", code=250, reply="ok")
        # No chart has it yet, and in an hour none has it any more.
        assert hint not in (await page.get(ROOT)).text
        await eventually(lambda: hint not in next(iter(hub._channels.values())).parts["notice"])
        hub.stopping.set()
        await asyncio.wait_for(task, 30)


async def first_event(page, path):
    """The first event of a stream; the connection is cut then."""
    found = asyncio.get_running_loop().create_future()

    async def listen():
        async with page.stream("GET", path) as answer:
            assert answer.status_code == 200
            assert answer.headers["content-type"].startswith("text/event-stream")
            async for line in answer.aiter_lines():
                if line.startswith("data: ") and not found.done():
                    found.set_result(json.loads(line.removeprefix("data: ")))

    return found, asyncio.create_task(listen())


async def test_its_parts_come_by_themselves_until_the_server_ends(db, key):
    async with browser(db.dsn_for("api"), key) as page:
        hub = page.app.state.live
        tasks = []
        for _ in range(3):
            _, task = await first_event(page, f"{ROOT}/live/overview?span=1h")
            tasks.append(task)
        await eventually(lambda: len(hub) == 1 and next(iter(hub._channels.values())).listeners == 3)
        channel = next(iter(hub._channels.values()))
        await eventually(lambda: channel.version)
        assert {"tiles", "charts", "notice"} <= set(channel.parts)
        hub.stopping.set()
        await asyncio.wait_for(asyncio.gather(*tasks), 30)
        assert len(hub) == 0


async def test_a_revoked_key_ends_its_streams(db, key, monkeypatch):
    monkeypatch.setattr("pgmail.dashboard.live.CHECK_SECONDS", 0.05)
    async with browser(db.dsn_for("api"), key) as page:
        found, task = await first_event(page, f"{ROOT}/live/overview?span=1h")
        await eventually(lambda: len(page.app.state.live) == 1)
        with db.connect() as connection:
            connection.execute("update pgmail.api_key set revoked_at = now()")
        await asyncio.wait_for(task, 30)
        assert "tiles" in await found
        assert len(page.app.state.live) == 0


async def test_a_listener_gets_the_newest_only_and_a_fault_ends_nothing():
    hub = Hub(asyncio.Event())
    answers = iter([{"a": "1"}, RuntimeError("x"), {"a": "1"}, {"a": "2", "b": "3"}, None])

    async def make():
        answer = next(answers)
        if isinstance(answer, Exception):
            raise answer
        return answer

    async with hub.listen("key", make, 0.001) as channel:
        await eventually(lambda: channel.final)
        assert channel.parts == {"a": "2", "b": "3"}
        assert channel.version == 3  # the answer that was as before woke nobody
    assert len(hub) == 0


async def test_one_key_leaves_room_for_others(monkeypatch):
    monkeypatch.setattr("pgmail.dashboard.live.MOST_PAGES_OF_KEY", 2)
    hub = Hub(asyncio.Event())

    async def make():
        return {"a": "1"}

    async with hub.listen("x", make, 9, "ada"), hub.listen("x", make, 9, "ada"):
        with pytest.raises(Refused, match="too many live pages"):
            hub.need_room("x", "ada")
        hub.need_room("x", "bob")
    hub.need_room("x", "ada")


def test_how_long_ago_something_was_is_no_news():
    channel = Channel()
    channel.tell({"a": "<time data-ago>3 s ago</time> <b>1</b>"})
    news = channel.news
    channel.tell({"a": "<time data-ago>4 s ago</time> <b>1</b>"})
    assert not news.is_set()
    channel.tell({"a": "<time data-ago>4 s ago</time> <b>2</b>"})
    assert news.is_set()


def test_what_did_not_change_wakes_nobody():
    channel = Channel()
    channel.tell({"a": "1"})
    news = channel.news
    channel.tell({"a": "1"})
    assert not news.is_set()
    channel.tell({"a": "2"})
    assert news.is_set()


@pytest.mark.parametrize(
    ("most", "top"), [(0, 1), (0.3, 0.4), (1, 1), (3, 4), (4.1, 5), (7, 10), (120, 200), (999_999, 1e6)]
)
def test_an_axis_ends_at_a_round_number(most, top):
    assert ceiling(most) == pytest.approx(top)


def test_a_chart_has_gaps_where_there_is_no_figure_and_says_itself_in_words():
    text = str(chart("Latency", moments(6), [Series("p50", [1, 2, None, 4, None, 900])], read=words.ms))
    assert text.count('class="stroke series-1"') == 3
    assert "Latency. p50: last 900 ms, highest 900 ms at 09:05 UTC." in text
    assert text.count("<title>") == 6
    assert " style=" not in text


def test_a_chart_escapes_names_and_bears_nothing():
    text = str(chart("<b>", [], [Series("<i>", [])]))
    assert "<b>" not in text
    assert "<i>" not in text
    assert "no figures yet" in text


def test_figures_read_as_people_say_them():
    assert [words.number(value) for value in (None, 0, 0.25, 12_345, 9.96)] == [
        "\u2013",
        "0",
        "0.2",
        "12,345",
        "10.0",
    ]
    assert [words.compact(value) for value in (0, 950, 1000, 12_345, 4.5e6)] == [
        "0",
        "950",
        "1k",
        "12.3k",
        "4.5M",
    ]
    assert [words.ms(value) for value in (None, 34.4, 1200, 180_000)] == ["\u2013", "34 ms", "1.2 s", "3 min"]
    assert [words.percent(value) for value in (0, 0.123, 1)] == ["0%", "12.3%", "100%"]
    assert [words.threshold(*each) for each in ((None, ""), (0, "seconds"), (259_200, "seconds"), (0.05, "share"))] == [
        "\u2013", "any", "3 days", "5%",
    ]  # fmt: skip
    assert [words.threshold(each, "recipients") for each in (1, 100_000)] == [
        "1 recipient",
        "100,000 recipients",
    ]
    assert words.threshold(3, "times its baseline") == "3 times its baseline"
    assert [words.rate(*each) for each in ((50, 1), (3, 60), (9, 3_600), (100, 300))] == [
        "50 a second", "3 a minute", "9 an hour", "100 in 5 min",
    ]  # fmt: skip
    assert words.reason("unknown_user: no such box_1") == "unknown user: no such box_1"
    assert words.reason("by pgmail_owner, stream a_b") == "by pgmail_owner, stream a_b"
    assert words.parted("<i>@example.org") == "&lt;i&gt;<wbr>@example.org"
    assert words.ago(START, START + timedelta(minutes=3)) == "3 min ago"
    assert words.ago(START, START - timedelta(hours=2)) == "in 2 h"
    assert words.ago(START, START) == "just now"
    assert words.label("email.in_doubt") == "In doubt"
    assert (words.plural(1, "email"), words.plural(1200, "email")) == ("1 email", "1,200 emails")
    assert (words.size(512), words.size(3400), words.size(2_500_000)) == ("512 B", "3.4 kB", "2.5 MB")

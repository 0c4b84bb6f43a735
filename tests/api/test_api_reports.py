"""Reports over HTTP: what became of mail, as JSON and CSV, of the key's tenant and streams only."""

import csv
import io
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.store.insight import SMALL_QUEUE
from tests.api.conftest import client, new_key
from tests.sql import kit
from tests.sql.kit import Hand
from tests.sql.test_rollup import roll


@pytest.fixture
def mails(db):
    """Ten sent, two bounced, one deferred, one that waits; rolled up."""
    app, hand = db.connect("producer"), Hand(db.connect("worker"))
    for n in range(10):
        kit.send(app, f"u{n}@example.org", tags={"batch": str(n % 2)})
    hand.settle(hand.claim(), relay="default", code=250)
    for n in range(3):
        kit.send(app, f"v{n}@gmail.com", stream="broadcast")
    first, *rest = hand.claim()
    more = {"stream": "broadcast", "site": "gmail.com", "relay": "second"}
    hand.settle(first, "deferred", reason="rate-limited", code=421, reply="4.7.28 too fast", delay=60, **more)
    hand.settle(
        rest,
        "bounced",
        reason="recipient-gone",
        code=550,
        enhanced="5.1.1",
        reply="5.1.1 no such user",
        **more,
    )
    hand.connection.execute("select pgmail.fold_tallies_v1()")
    roll(hand.connection)
    return hand


async def test_a_report_tells_what_became_of_mail_by_each_dimension(api, mails):
    told = (await api.get("/reports?by=stream")).json()
    assert told["by"] == "stream"
    assert [(line["key"], line["sent"], line["bounced"], line["deferred"]) for line in told["data"]] == [
        ("transactional", 10, 0, 0),
        ("broadcast", 0, 2, 1),
    ]
    total = told["total"]
    assert (total["sent"], total["bounced"], total["hard"], total["deferred"]) == (10, 2, 2, 1)
    assert total["bounce_rate"] == pytest.approx(2 / 12)
    assert 0 <= total["p50_ms"] <= total["p95_ms"] < 60_000
    for by, keys in {
        "site": {"example.org", "gmail.com"},
        "relay": {"default", "second"},
        "tag": {"batch=0", "batch=1"},
        "reason": {"hard/recipient-gone", "block/rate-limited"},
        "template": set(),
    }.items():
        assert {line["key"] for line in (await api.get(f"/reports?by={by}")).json()["data"]} == keys, by
    for by in ("hour", "day"):
        (line, *_) = (await api.get(f"/reports?by={by}")).json()["data"]
        assert line["key"].endswith(":00:00Z")


@pytest.mark.parametrize("asked", [("?by=site&format=csv", {}), ("?by=site", {"Accept": "text/csv"})])
async def test_a_report_comes_as_csv(api, mails, asked):
    query, headers = asked
    answer = await api.get(f"/reports{query}", headers=headers)
    assert answer.headers["content-type"] == "text/csv; charset=utf-8"
    names, *lines = list(csv.reader(io.StringIO(answer.text)))
    assert names[:3] == ["site", "sent", "bounced"]
    assert [line[:3] for line in lines] == [["example.org", "10", "0"], ["gmail.com", "0", "2"]]


@pytest.mark.parametrize(
    ("query", "field"),
    [
        ("by=tenant", "/by"),
        ("format=xml", "/format"),
        ("since=2026-01-02T00:00:00Z&until=2026-01-01T00:00:00Z", "/since"),
        ("since=2001-01-01T00:00:00Z", "/since"),
        ("sience=2001-01-01T00:00:00Z", "/sience"),
    ],
)
async def test_what_is_no_report_is_refused_by_name(api, query, field):
    answer = await api.get(f"/reports?{query}")
    assert answer.status_code == 422
    assert answer.json()["field"] == field


async def test_causes_are_told_with_emails_to_look_at(api, mails):
    told = (await api.get("/reports/causes")).json()["data"]
    assert [(one["kind"], one["group"], one["reason"], one["n"]) for one in told] == [
        ("bounced", "hard", "recipient-gone", 2),
        ("deferred", "block", "rate-limited", 1),
    ]
    assert told[0]["text"] == "5.1.1 no such user"
    assert len(told[0]["examples"]) == 2
    assert (await api.get(f"/emails/{told[0]['examples'][0]}")).status_code == 200
    assert len((await api.get("/reports/causes?kind=deferred")).json()["data"]) == 1
    assert (await api.get("/reports/causes?kind=sent")).status_code == 422


async def test_an_email_that_was_put_off_twice_is_one_example(api, db):
    hand = Hand(db.connect("worker"))
    kit.send(db.connect("producer"), "ada@example.org")
    for _ in range(2):
        hand.settle(hand.claim(), "deferred", reason="temporary", code=450, reply="4.2.0 later", delay=0)
    roll(hand.connection)
    (cause,) = (await api.get("/reports/causes")).json()["data"]
    assert (cause["n"], len(cause["examples"])) == (2, 1)


async def test_a_key_limited_to_streams_sees_their_figures_only(db, mails):
    async with client(db.dsn_for("api"), _limited(db)) as mine:
        told = (await mine.get("/reports?by=hour")).json()
        assert (told["total"]["sent"], told["total"]["bounced"]) == (0, 2)
        for path in ("/reports?by=site", "/reports/causes"):
            answer = await mine.get(path)
            assert (answer.status_code, answer.json()["code"]) == (403, "stream_not_allowed")


def _limited(db):
    """Such a key, made by an operator."""
    key = new_key(db, "news")
    with db.connect() as owner:
        owner.execute("update pgmail.api_key set streams = '{broadcast}' where name = 'news'")
    return key


async def test_another_tenant_sees_none_of_it(db, mails):
    with db.connect() as owner:
        owner.execute("select pgmail.create_tenant('second')")
    key = new_key(db, "theirs")
    with db.connect() as owner:
        owner.execute("update pgmail.api_key set tenant_id = 2 where name = 'theirs'")
    async with client(db.dsn_for("api"), key) as theirs:
        for by in ("stream", "site", "hour"):
            assert (await theirs.get(f"/reports?by={by}")).json()["data"] == []
        assert (await theirs.get("/reports/causes")).json()["data"] == []


async def test_a_report_of_more_than_two_days_is_of_whole_days(api, db):
    """Each hour stands at 1 and each day at 24, so that what was sent is how many hours were added up."""
    with db.connect() as owner:
        for grain, width, n in (("hour", "1 hour", 1), ("day", "1 day", 24)):
            owner.execute(
                "insert into pgmail.rollup (tenant_id, dim, grain, at, key, kind, n)"
                " select 1, d, %s, at, 'a', 'sent', %s from unnest('{site,stream}'::text[]) d,"
                " date_trunc('day', now(), 'UTC') today,"
                " generate_series(today - interval '9 days', today, %s::interval) at",
                [grain, n, width],
            )
    today = datetime.now(UTC).replace(hour=0, minute=0, second=0, microsecond=0)
    for first, last, by, hours in (
        (-30, -25, "site", 5),
        (-73, -25, "site", 48),
        (-74, -25, "site", 72),
        (-74, -25, "hour", 49),
        (-74, -25, "day", 72),
    ):
        since, until = (f"{today + timedelta(hours=n):%Y-%m-%dT%H:%M:%SZ}" for n in (first, last))
        told = (await api.get(f"/reports?by={by}&since={since}&until={until}")).json()
        assert told["total"]["sent"] == hours, (first, by)


async def test_a_deep_queue_is_not_counted_and_its_depth_is_exact_all_the_same(api, db, mails, monkeypatch):
    monkeypatch.setattr("pgmail.store.insight.SMALL_QUEUE", 2)
    assert SMALL_QUEUE > 2
    app = db.connect("producer")
    kit.send_many(app, [kit.body(f"w{n}@example.org") for n in range(5)])
    maintain = db.connect("maintain")
    maintain.execute("select pgmail.fold_touches_v1(), pgmail.gauge_lanes_v1(), pgmail.gauge_states_v1()")
    kit.send(app, "late@example.org")  # after all gauges, and not folded
    told = (await api.get("/queue")).json()
    assert (told["depth"], told["queued"], told["deferred"]) == (7, 5, 1)
    assert told["counted_at"]
    assert {(item["stream"], item["site"], item["depth"]) for item in told["data"]} == {
        ("transactional", "example.org", 6),
        ("broadcast", "gmail.com", 1),
    }
    assert told["oldest_due_at"]

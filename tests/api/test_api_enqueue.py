"""POST /emails without the framework: the same rules, the same answers, whatever the way in."""

import asyncio
import json
from datetime import UTC, datetime

import pytest

from pgmail.api.intake import left_to_sql
from pgmail.api.server import pools
from pgmail.config import Settings
from pgmail.domain.check import check_email
from pgmail.errors import Refused
from tests.api.conftest import EMAIL

BAD = [
    EMAIL | {"to": "nobody"},
    EMAIL | {"from": "x"},
    EMAIL | {"subject": "a\nb"},
    EMAIL | {"priority": "huge"},
    EMAIL | {"headers": {"Bcc": "x"}},
    EMAIL | {"tags": [{"name": "ü", "value": "x"}]},
    {"to": "ada@example.org", "subject": "Hi", "text": "Hello"},
]


def words(body):
    """What the law in Python says of a body."""
    with pytest.raises(Refused) as caught:
        check_email(body, now=datetime.now(UTC))
    fault = caught.value
    return fault.code, fault.field, fault.message


@pytest.mark.parametrize("body", BAD)
async def test_what_sql_refuses_is_told_in_the_words_of_the_law_here(api, body):
    assert left_to_sql(body)
    raw = json.dumps(body, ensure_ascii=False).encode()
    found = (await api.post("/emails", content=raw)).json()
    assert (found["code"], found["field"], found["detail"]) == words(body)
    code, field, message = words(body)
    strict = (await api.post("/emails/batch", content=b"[%b,%b]" % (json.dumps(EMAIL).encode(), raw))).json()
    assert (strict["code"], strict["field"], strict["detail"]) == (code, f"/1{field}", message)
    headers = {"x-batch-validation": "permissive"}
    (error,) = (await api.post("/emails/batch", content=b"[%b]" % raw, headers=headers)).json()["errors"]
    assert (error["code"], error["field"], error["message"]) == (code, field, f"{field}: {message}")


@pytest.mark.parametrize(
    "changes",
    [
        {"scheduled_at": "in 5 minutes"},
        {"expires_at": "2030-01-01T00:00:00Z"},
        {"variables": {"name": "Ada"}},
        {"attachments": []},
        {"to": "ada@müller.example"},
        {"to": [{"address": "ada@example.org"}]},
        {"subject": None},
        {"metadata": {"n": float("inf")}},
        {"metadata": {"n": 10**400, "x": float("nan")}},
        {"unknown": 1},
    ],
)
def test_what_sql_cannot_judge_is_judged_here(changes):
    assert not left_to_sql(EMAIL | changes)


def test_what_is_nested_deeply_is_judged_here():
    deep = 1
    for _ in range(30):
        deep = [deep]
    assert not left_to_sql(EMAIL | {"metadata": {"n": deep}})
    assert left_to_sql(
        EMAIL | {"from": "Zoë <zoe@example.com>", "metadata": {"n": [1, 2.5, None, {"a": True}]}}
    )


async def test_a_path_that_only_looks_alike_does_the_same(api):
    one = await api.post("/emails/", json=EMAIL, headers={"Idempotency-Key": "a"})
    other = await api.post("/emails", json=EMAIL, headers={"Idempotency-Key": "a"})
    assert one.status_code == 200
    assert (one.json(), one.headers["content-type"]) == (other.json(), other.headers["content-type"])
    bad = [await api.post(path, json=EMAIL | {"to": "x"}) for path in ("/emails/", "/emails")]
    assert bad[0].json() == bad[1].json()
    assert bad[0].headers == bad[1].headers


async def drive(app, key, messages, *, headers=()):
    """Run one request through the application as a server would; what it answered."""
    scope = {
        "type": "http", "asgi": {"version": "3.0"}, "http_version": "1.1", "method": "POST", "scheme": "http",
        "path": "/emails", "raw_path": b"/emails", "query_string": b"", "root_path": "",
        "headers": [(b"authorization", f"Bearer {key}".encode()), *headers],
    }  # fmt: skip
    waiting, sent = list(messages), []

    async def receive():
        return waiting.pop(0)

    async def send(message):
        sent.append(message)

    await app(scope, receive, send)
    return sent


async def test_a_body_in_pieces_is_put_together(api, key):
    raw = json.dumps(EMAIL).encode()
    pieces = [
        {"type": "http.request", "body": raw[i : i + 10], "more_body": True} for i in range(0, len(raw), 10)
    ]
    sent = await drive(api.app, key, [*pieces, {"type": "http.request"}])
    assert [message["type"] for message in sent] == ["http.response.start", "http.response.body"]
    assert sent[0]["status"] == 200


async def test_who_hangs_up_before_the_end_of_the_body_is_not_answered(api, key, db):
    half = {"type": "http.request", "body": json.dumps(EMAIL).encode(), "more_body": True}
    assert await drive(api.app, key, [half, {"type": "http.disconnect"}]) == []
    with db.connect() as connection:
        assert connection.execute("select count(*) from pgmail.message").fetchone() == (0,)


async def test_of_a_header_given_twice_the_first_counts(api, key):
    raw = {"type": "http.request", "body": json.dumps(EMAIL).encode()}
    keys = [(b"idempotency-key", b"a"), (b"idempotency-key", b"b")]
    first = await drive(api.app, key, [raw], headers=keys)
    again = await drive(api.app, key, [raw], headers=keys[:1])
    assert first[1]["body"] == again[1]["body"]


def test_a_quarter_of_the_connections_is_for_single_sends():
    sizes = {
        size: [
            pool._pool.max_size
            for pool in pools(Settings(api_database_url="postgresql:///x", api_pool_size=size))
        ]
        for size in (2, 3, 4, 8)
    }
    assert sizes == {2: [1, 1], 3: [2, 1], 4: [3, 1], 8: [6, 2]}
    shared, sends = pools(Settings(api_database_url="postgresql:///x", api_pool_size=1))
    assert shared is sends
    assert shared._pool.max_size == 1


async def test_many_at_once_are_all_answered_and_all_stored(api, db):
    answers = await asyncio.gather(*(api.post("/emails", json=EMAIL) for _ in range(150)))
    ids = {answer.json()["id"] for answer in answers}
    with db.connect() as connection:
        stored = {str(id_) for (id_,) in connection.execute("select id from pgmail.message")}
    assert stored == ids
    assert len(ids) == 150

"""POST /emails/batch: all or nothing, or the good ones; always in the order handed over."""

import asyncio
import json
from datetime import UTC, datetime, timedelta

import pytest

from tests.api.conftest import EMAIL

BAD = EMAIL | {"to": "nobody"}
PERMISSIVE = {"x-batch-validation": "permissive"}


def count(db, table="message"):
    with db.connect() as connection:
        return connection.execute(f"select count(*) from pgmail.{table}").fetchone()[0]


async def test_a_batch_answers_an_id_for_each_in_order(api, db):
    batch = [EMAIL | {"subject": str(i)} for i in range(20)]
    ids = [item["id"] for item in (await api.post("/emails/batch", json=batch)).json()["data"]]
    assert len(set(ids)) == 20
    for i in (0, 7, 19):
        assert (await api.get(f"/emails/{ids[i]}")).json()["subject"] == str(i)


async def test_strict_refuses_all_for_the_first_fault_led_by_its_position(api, db):
    answer = await api.post("/emails/batch", json=[EMAIL, EMAIL, EMAIL | {"to": ["a@b.co", "nobody"]}, BAD])
    assert answer.status_code == 422
    assert (answer.json()["code"], answer.json()["field"]) == ("invalid_address", "/2/to/1")
    assert count(db) == 0


async def test_strict_refuses_all_for_a_fault_that_only_the_database_finds(api, db):
    answer = await api.post("/emails/batch", json=[EMAIL, EMAIL | {"stream": "none"}])
    assert (answer.status_code, answer.json()["field"]) == (422, "/1/stream")
    assert count(db) == 0


async def test_permissive_stores_the_good_and_tells_each_bad_one(api, db):
    template = EMAIL | {"text": "{{ x", "variables": {}}
    batch = [EMAIL, BAD, EMAIL | {"stream": "none"}, 5, template, EMAIL]
    answer = (await api.post("/emails/batch", json=batch, headers=PERMISSIVE)).json()
    assert len(answer["data"]) == count(db) == 2
    assert [(item["index"], item["code"], item["field"]) for item in answer["errors"]] == [
        (1, "invalid_address", "/to"),
        (2, "unknown_stream", "/stream"),
        (3, "invalid_body", ""),
        (4, "invalid_template", "/text"),
    ]
    assert all(item["message"] for item in answer["errors"])


async def test_permissive_without_a_good_one_is_an_answer_not_a_fault(api, db):
    answer = await api.post("/emails/batch", json=[BAD], headers=PERMISSIVE)
    assert (answer.status_code, answer.json()["data"]) == (200, [])


async def test_a_batch_sent_again_with_its_key_answers_the_same(api, db):
    batch, headers = [EMAIL, BAD, EMAIL], PERMISSIVE | {"Idempotency-Key": "batch-1"}
    first = await api.post("/emails/batch", json=batch, headers=headers)
    again = await api.post("/emails/batch", json=batch, headers=headers)
    assert first.json() == again.json()
    assert count(db) == 2
    other = await api.post("/emails/batch", json=[EMAIL], headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")
    assert other.json()["name"] == "invalid_idempotent_request"


async def test_a_batch_sent_again_answers_the_same_when_its_time_has_come(api, db_clock, monkeypatch):
    soon = (datetime.now(UTC) + timedelta(minutes=1)).isoformat()
    batch = [EMAIL | {"scheduled_at": soon}]
    headers = {"Idempotency-Key": "batch-1"}
    first = await api.post("/emails/batch", json=batch, headers=headers)
    db_clock.advance(3600)
    later = type(
        "Later", (datetime,), {"now": classmethod(lambda cls, tz: datetime.now(tz) + timedelta(hours=1))}
    )
    monkeypatch.setattr("pgmail.api.emails.datetime", later)
    again = await api.post("/emails/batch", json=batch, headers=headers)
    assert (again.status_code, again.json()) == (200, first.json())
    new = await api.post("/emails/batch", json=batch)
    assert (new.status_code, new.json()["field"]) == (422, "/0/scheduled_at")


async def test_each_email_of_a_batch_may_have_a_key_of_its_own(api, db):
    batch = [EMAIL | {"idempotency_key": "a"}, EMAIL | {"idempotency_key": "b"}]
    first, again = [(await api.post("/emails/batch", json=batch)).json() for _ in range(2)]
    assert first == again
    assert count(db) == 2


@pytest.mark.parametrize(
    ("batch", "headers", "expected"),
    [
        ([], {}, (422, "invalid_body", "")),
        ({}, {}, (422, "invalid_body", "")),
        ("x", {}, (422, "invalid_body", "")),
        ([EMAIL] * 1001, {}, (413, "batch_too_large", "")),
        ([EMAIL], {"Idempotency-Key": ""}, (422, "invalid_idempotency_key", "/idempotency_key")),
        ([EMAIL], {"x-batch-validation": "lax"}, (422, "invalid_parameter", "/x-batch-validation")),
    ],
)
async def test_what_is_no_batch_is_refused(api, db, batch, headers, expected):
    answer = await api.post("/emails/batch", json=batch, headers=headers)
    assert (answer.status_code, answer.json()["code"], answer.json()["field"]) == expected
    assert count(db) == 0


async def test_a_thousand_go_at_once_with_attachments_and_schedules(api, db):
    extra = {"attachments": [{"filename": "a.txt", "content": [104, 105]}], "scheduled_at": "tomorrow at 9am"}
    answer = await api.post("/emails/batch", json=[EMAIL | extra] * 1000)
    assert (answer.status_code, len(answer.json()["data"])) == (200, 1000)
    assert (count(db), count(db, "attachment")) == (1000, 1000)


async def test_one_key_sent_ten_times_at_once_is_one_email(api, db):
    headers = {"Idempotency-Key": "order-1"}
    answers = await asyncio.gather(*(api.post("/emails", json=EMAIL, headers=headers) for _ in range(10)))
    assert {answer.status_code for answer in answers} == {200}
    assert len({answer.json()["id"] for answer in answers}) == 1
    assert count(db) == 1


async def test_a_key_with_another_body_is_a_conflict(api):
    headers = {"Idempotency-Key": "order-1"}
    await api.post("/emails", json=EMAIL, headers=headers)
    answer = await api.post("/emails", json=EMAIL | {"subject": "Other"}, headers=headers)
    assert (answer.status_code, answer.json()["field"]) == (409, "/idempotency_key")


async def test_a_key_in_header_and_body_must_be_one(api, db):
    body = EMAIL | {"idempotency_key": "a"}
    same = await api.post("/emails", json=body, headers={"Idempotency-Key": "a"})
    again = await api.post("/emails", json=EMAIL, headers={"Idempotency-Key": "a"})
    other = await api.post("/emails", json=body, headers={"Idempotency-Key": "b"})
    assert same.json() == again.json()
    assert (other.status_code, other.json()["code"]) == (422, "invalid_idempotency_key")
    assert count(db) == 1


@pytest.mark.parametrize("path", ["/emails", "/emails/batch"])
async def test_a_key_in_flight_elsewhere_is_409_and_free_again_afterwards(api, db, path):
    body = EMAIL if path == "/emails" else [EMAIL]
    with db.connect(autocommit=False) as other:
        ways = {
            "/emails": 'select pgmail.send(%s::jsonb || \'{"idempotency_key": "order-1"}\')',
            "/emails/batch": "select pgmail.send_many(jsonb_build_array(%s::jsonb), true, 'order-1')",
        }
        other.execute(ways[path], [json.dumps(EMAIL)])
        answer = await api.post(path, json=body, headers={"Idempotency-Key": "order-1"})
        assert answer.status_code == 409, answer.text
        assert answer.json()["code"] == "idempotency_in_flight"
        assert answer.json()["name"] == "concurrent_idempotent_requests"
        other.rollback()
    assert (await api.post(path, json=body, headers={"Idempotency-Key": "order-1"})).status_code == 200


async def test_a_table_locked_for_another_reason_is_503_not_a_conflict(api, db):
    with db.connect(autocommit=False) as other:
        other.execute("lock table pgmail.message in access exclusive mode")
        answer = await api.post("/emails", json=EMAIL)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
        other.rollback()

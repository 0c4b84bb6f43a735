"""Errors over HTTP: problem details for everyone, Resend's keys for its SDKs, nothing of our insides."""

import asyncio
import re

import httpx
import pytest
from litestar import get

from pgmail import sqlfiles
from pgmail.api import problems
from pgmail.api.app import create_app
from pgmail.config import Settings
from pgmail.errors import DatabaseAway
from pgmail.store.database import Database
from pgmail.store.emails import InDoubt
from tests.api.conftest import EMAIL, client, waits_for_a_lock


async def test_a_problem_has_the_keys_of_the_rfc_and_of_resend(api):
    answer = await api.post("/emails", json={"to": "a@example.org"})
    assert answer.headers["content-type"] == "application/problem+json"
    assert answer.json() == {
        "type": "urn:pgmail:missing_field",
        "title": "Unprocessable Entity",
        "status": 422,
        "detail": answer.json()["detail"],
        "code": "missing_field",
        "field": "/from",
        "statusCode": 422,
        "name": "missing_required_field",
        "message": f"/from: {answer.json()['detail']}",
    }


@pytest.mark.parametrize(
    ("accept", "expected"),
    [
        ("", "application/problem+json"),
        ("*/*", "application/problem+json"),
        ("application/json", "application/json"),
        ("application/problem+json, application/json", "application/problem+json"),
    ],
)
async def test_a_client_that_reads_json_only_gets_json(api, accept, expected):
    answer = await api.get("/emails/none", headers={"Accept": accept})
    assert answer.headers["content-type"] == expected


async def test_no_route_and_no_method_are_problems_too(api):
    none = await api.get("/nothing")
    assert (none.status_code, none.json()["code"]) == (404, "not_found")
    wrong = await api.put("/emails", json={})
    assert (wrong.status_code, wrong.json()["code"]) == (405, "method_not_allowed")
    assert "POST" in wrong.headers["allow"]


async def test_an_unexpected_error_tells_the_client_an_id_and_the_log_the_rest(db, key, caplog, monkeypatch):
    logged = []
    monkeypatch.setattr(problems.log, "error", lambda *words, **fields: logged.append(fields), raising=False)

    @get("/broken")
    async def broken() -> None:
        raise KeyError("a secret")

    async with client(db.dsn_for("api"), key, make=create_app) as api:
        api.app.register(broken)
        answer = await api.get("/broken")
    found = answer.json()
    assert (answer.status_code, found["code"], found["name"]) == (500, "internal_error", "application_error")
    assert "secret" not in answer.text
    assert "Traceback" not in answer.text
    assert [fields["instance"] for fields in logged] == [found["instance"]]
    assert isinstance(logged[0]["exc_info"], KeyError)


async def test_without_a_database_there_is_a_503_and_afterwards_all_is_well(wire, key):
    async with client(wire.dsn, key, wait_seconds=1.0) as api:
        assert (await api.post("/emails", json=EMAIL)).status_code == 200
        await wire.cut()
        answer = await api.post("/emails", json=EMAIL)
        assert (answer.status_code, answer.json()["code"]) == (503, "database_away")
        assert answer.headers["retry-after"] == "5"
        ready = await api.get("/health/ready")
        assert (ready.status_code, ready.json()["problem"]) == (503, "the database cannot be reached")
        assert (await api.get("/health/live")).status_code == 200
        await wire.mend()
        async with asyncio.timeout(60):
            while (answer := await api.post("/emails", json=EMAIL)).status_code == 503:
                pass  # each waits for a connection, up to a second
        assert answer.status_code == 200
        assert (await api.get("/health/ready")).json() == {"status": "ok"}


async def test_a_database_lost_under_a_request_is_a_503(wire, key, db):
    async with client(wire.dsn, key, wait_seconds=1.0) as api:
        with db.connect(autocommit=False) as other, db.connect() as watcher:
            other.execute("lock table pgmail.message in access exclusive mode")
            asked = asyncio.create_task(api.post("/emails", json=EMAIL))
            await waits_for_a_lock(watcher)
            await wire.cut()
            assert (await asked).status_code == 503
            other.rollback()


async def test_health_needs_no_key_and_ready_names_a_schema_that_refuses_us(db):
    async with client(db.dsn_for("api"), None) as api:
        assert (await api.get("/health/live")).json() == {"status": "ok"}
        assert (await api.get("/health/ready")).json() == {"status": "ok"}
        with db.connect() as connection:
            connection.execute("update pgmail.schema_version set compatible_from = 99, version = 99")
        ready = await api.get("/health/ready")
        assert (ready.status_code, ready.headers["retry-after"]) == (503, "5")
        assert "refuses this program" in ready.json()["problem"]


async def test_ready_says_when_there_is_no_schema(empty_db):
    async with client(empty_db.dsn, None) as api:
        assert "no pgmail schema" in (await api.get("/health/ready")).json()["problem"]


async def test_ready_says_when_the_database_role_is_the_wrong_one(db):
    async with client(db.dsn_for("producer"), None) as api:
        ready = await api.get("/health/ready")
        assert ready.status_code == 503
        assert "PGMAIL_API_DATABASE_URL" in ready.json()["problem"]


def test_every_status_has_a_problem_of_its_own():
    problem, headers = problems.problem_of(DatabaseAway("connection to 10.0.0.1 refused"))
    assert (problem.status, headers) == (503, {"Retry-After": "5"})
    assert "10.0.0.1" not in problem.detail


async def test_a_pool_that_is_never_opened_is_no_500(db, key):
    app = create_app(Settings(), Database(db.dsn_for("api"), name="closed"))
    transport = httpx.ASGITransport(app=app, raise_app_exceptions=False)
    headers = {"Authorization": f"Bearer {key}"}
    async with httpx.AsyncClient(transport=transport, base_url="http://x.test", headers=headers) as api:
        for answer in [await api.post("/emails", json=EMAIL), await api.get("/queue")]:
            assert answer.status_code == 503
            assert "pool" not in answer.text


def test_what_may_have_been_stored_is_not_said_to_be_nothing():
    problem, _ = problems.problem_of(InDoubt("server closed the connection unexpectedly"))
    assert (problem.status, problem.code) == (503, "database_away")
    assert "may have been stored" in problem.detail


def test_each_code_has_the_status_that_sql_gives_it():
    told = {}
    for statement in "".join(file.read_text() for file in sqlfiles.functions()).split(";\n"):
        code, status = (
            re.search(r"pgmail\.faulty\('(\w+)'", statement),
            re.search(r", (4\d\d)\)(?: \$\$)?\s*$", statement),
        )
        if code and status:
            told[code[1]] = int(status[1])
    assert {"idempotency_conflict", "limit_reached", "too_large"} <= told.keys()
    assert {code: problems.status_of(code) for code in told} == told
    assert problems.status_of("invalid_address") == 422

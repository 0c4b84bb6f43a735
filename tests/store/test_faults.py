"""Which of PostgreSQL's errors are whose."""

import psycopg
import pytest
from psycopg import errors
from psycopg_pool import PoolTimeout

from pgmail.errors import DatabaseAway, Refused
from pgmail.store.faults import FencedOut, first_line, refusal, translate
from tests.sql.kit import body


@pytest.mark.parametrize(
    "error",
    [
        psycopg.OperationalError("connection refused"),
        PoolTimeout("no connection"),
        errors.AdminShutdown("terminating"),
        errors.CannotConnectNow("starting up"),
        errors.CrashShutdown("crash"),
        errors.TooManyConnections("too many"),
        errors.DiskFull("full"),
        errors.IoError("a disk"),
        errors.InternalError_("could not write to log file"),
        errors.OutOfMemory("none left"),
        errors.ReadOnlySqlTransaction("a standby"),
        errors.IdleInTransactionSessionTimeout("we stood still"),
        errors.ConnectionFailure("broke"),
        errors.DeadlockDetected("deadlock"),
        errors.SerializationFailure("again"),
        errors.LockNotAvailable("a lock_timeout"),
        errors.QueryCanceled("a statement_timeout"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_what_passes_by_itself_counts_as_a_database_that_is_away(error):
    assert isinstance(translate(error), DatabaseAway)


@pytest.mark.parametrize(
    "error",
    [ValueError("x"), errors.UndefinedTable("x"), errors.SyntaxError("x"), errors.UniqueViolation("x")],
    ids=lambda error: type(error).__name__,
)
def test_a_fault_of_ours_stays_what_it_is(error):
    assert translate(error) is None


def test_what_the_law_refuses_carries_code_field_and_status(db):
    with db.connect("producer") as app, pytest.raises(psycopg.Error) as raised:
        app.execute("select pgmail.send(%s::jsonb)", [psycopg.types.json.Jsonb(body("nobody"))])
    refused = translate(raised.value)
    assert isinstance(refused, Refused)
    assert (refused.code, refused.field, refused.status) == ("invalid_address", "/to", 422)
    assert str(refused) == f"/to: {refused.message}"


def test_a_worker_that_is_fenced_out_hears_so(db):
    with db.connect("worker") as worker, pytest.raises(psycopg.Error) as raised:
        worker.execute("select * from pgmail.claim_v1(1, 999, '{}', '{}', '{}', '{}', '{}')")
    fenced = translate(raised.value)
    assert isinstance(fenced, FencedOut)
    assert "worker 999 was declared dead" in str(fenced)


def test_a_refusal_of_another_status_and_without_words_is_still_one():
    assert refusal("PM404", None, None, None).status == 404
    assert refusal("PMxyz", "odd", "/x", "/x: words").message == "words"
    assert refusal("PMxyz", "odd", "/x", "/x: words").status == 422


def test_the_first_line_is_for_people():
    assert first_line(ValueError("one\ntwo")) == "one"
    assert first_line(ValueError("")) == "ValueError"

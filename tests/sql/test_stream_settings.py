"""What a stream's settings may be: no schedule is made of what is not a number, or has no end."""

import psycopg
import pytest
from psycopg.types.json import Jsonb

from tests.sql import kit

pytestmark = pytest.mark.one_server

COLUMNS = ("retry_base_seconds", "retry_factor", "retry_cap_seconds", "retry_jitter")


@pytest.mark.parametrize("value", ["NaN", "Infinity", "-Infinity", 1e30, 1e300, -1, "x"])
@pytest.mark.parametrize("column", COLUMNS)
def test_a_retry_that_is_no_finite_number_is_refused_and_nothing_is_stored(owner, column, value):
    with pytest.raises(psycopg.Error) as refused:
        owner.execute("select pgmail.save_stream('news', %s)", [Jsonb({column: value})])
    assert (refused.value.diag.constraint_name, refused.value.sqlstate) == ("invalid_stream", "PM422")
    assert refused.value.diag.message_detail == f"/{column}"
    assert kit.rows(owner, "select 1 from pgmail.stream where name = 'news'") == []


@pytest.mark.parametrize("value", ["NaN", "Infinity"])
@pytest.mark.parametrize("column", COLUMNS)
def test_nor_can_it_be_written_into_the_table(owner, column, value):
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute(f"update pgmail.stream set {column} = '{value}'")


def test_attempts_are_fewer_than_their_counter_can_hold(owner):
    with pytest.raises(psycopg.Error) as refused:
        owner.execute("select pgmail.save_stream('news', %s)", [Jsonb({"max_attempts": 1001})])
    assert (refused.value.diag.constraint_name, refused.value.diag.message_detail) == (
        "invalid_stream",
        "/max_attempts",
    )
    kit.stream(owner, "news", max_attempts=1000)


@pytest.mark.parametrize("weight", ["NaN", "Infinity"])
def test_nor_can_a_relays_weight(owner, weight):
    with pytest.raises(psycopg.errors.CheckViolation):
        owner.execute(
            f"update pgmail.stream set relays = array[relay, 'x'], relay_weights = array[1, '{weight}'::real]"
        )


def test_the_longest_schedule_that_the_api_takes_is_taken(owner):
    most = {
        "retry_base_seconds": 31_536_000,
        "retry_cap_seconds": 31_536_000,
        "retry_factor": 1000,
        "retry_jitter": 1,
    }
    kit.stream(owner, "news", **most)
    assert kit.rows(owner, "select retry_factor from pgmail.stream where name = 'news'") == [(1000,)]


@pytest.mark.parametrize(
    ("settings", "field", "words"),
    [
        ({"priority": 2, "seal": "no"}, "/seal", "must be one of off, where_possible, required"),
        ({"on_doubt": "what"}, "/on_doubt", "must be one of resend, hold"),
        ({"max_attempts": 1001}, "/max_attempts", "must be so that max_attempts <= 1000"),
        ({"priority": 4}, "/priority", "must be so that priority >= 1 and priority <= 3"),
        ({"retry_factor": 0.5}, "/retry_factor", "must be so that retry_factor >= 1"),
    ],
)
def test_a_refusal_names_the_setting_and_says_what_it_may_be(owner, settings, field, words):
    with pytest.raises(psycopg.Error) as refused:
        owner.execute("select pgmail.save_stream('news', %s)", [Jsonb(settings)])
    assert refused.value.diag.message_detail == field
    assert refused.value.diag.message_primary == f"{field}: {words}"

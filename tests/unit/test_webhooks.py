"""Webhooks without a network: signatures by the specification's example, the schedule, Retry-After."""

import time
from datetime import UTC, datetime, timedelta

import pytest

from pgmail.domain import webhooks
from pgmail.hooks.deliverer import _Load, _shown, _Tokens, payload
from pgmail.shaping.hook_retry import WAITS, judge, retry_seconds

NOW = datetime(2026, 1, 1, tzinfo=UTC)


def verdict(status, attempt=1, retry_after=None, chance=0.5):
    return judge(status, attempt, retry_after, now=NOW, random=lambda: chance)


def test_a_signature_is_that_of_the_specification():
    secret = webhooks.read_secret("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    made = webhooks.signature(secret, "msg_p5jXN8AQM9LWM0D4loKWxJek", 1614265330, b'{"test": 2432232314}')
    assert made == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_two_secrets_make_two_signatures_the_newest_first():
    made = webhooks.headers("a", 1, b"{}", [b"n" * 32, b"o" * 32])["webhook-signature"]
    assert made.split(" ") == [webhooks.signature(word * 32, "a", 1, b"{}") for word in (b"n", b"o")]


@pytest.mark.parametrize(
    "text", ["", "whsec_", "whsec_!", "MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw", "whsec_" + "AAAA" * 5]
)
def test_what_is_no_secret_is_refused(text):
    with pytest.raises(ValueError, match="whsec_"):
        webhooks.read_secret(text)


def test_a_secret_is_read_as_it_was_shown():
    secret = webhooks.new_secret()
    assert webhooks.read_secret(webhooks.shown_secret(secret)) == secret


@pytest.mark.parametrize("status", [200, 201, 204, 299])
def test_any_2xx_is_success(status):
    assert verdict(status).outcome == "delivered"


@pytest.mark.parametrize("status", [None, 100, 301, 307, 400, 401, 404, 408, 429, 500, 503])
def test_anything_else_is_tried_again(status):
    assert verdict(status).outcome == "retrying"


def test_410_is_given_up_and_the_endpoint_is_gone():
    found = verdict(410)
    assert (found.outcome, found.gone) == ("failed", True)


def test_the_schedule_is_ten_calls_in_about_75_hours_each_wait_spread_by_a_tenth():
    waits = [verdict(500, attempt).seconds for attempt in range(1, 10)]
    assert waits == list(WAITS)
    assert 75 <= sum(waits) / 3_600 <= 76
    assert verdict(500, 10).outcome == "failed"
    for attempt, wait in enumerate(WAITS, 1):
        assert verdict(500, attempt, chance=0.0).seconds == pytest.approx(wait * 0.9)
        assert verdict(500, attempt, chance=0.999999).seconds == pytest.approx(wait * 1.1)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        (None, 0),
        ("", 0),
        ("soon", 0),
        ("-5", 0),
        ("1.5", 0),
        ("120", 120),
        (" 120 ", 120),
        ("99999999999999999999", 86_400),
        ("Thu, 01 Jan 2026 00:10:00 GMT", 600),
        ("Thu, 01 Jan 2026 00:10:00", 600),
        ("Wed, 31 Dec 2025 00:00:00 GMT", 0),
        ("Fri, 01 Jan 2100 00:00:00 GMT", 86_400),
        ("٣", 0),
    ],
)
def test_retry_after_is_read_in_both_forms_and_bounded(text, seconds):
    assert retry_seconds(text, NOW) == seconds


def test_retry_after_makes_it_later_never_sooner():
    assert verdict(503, 1, "600").seconds == 600
    assert verdict(503, 4, "10").seconds == WAITS[3]


def test_a_busy_endpoint_rests_as_a_whole_and_an_hour_at_most():
    assert verdict(429, 1, "600").rest == 600
    assert verdict(503, 1, "86400").rest == 3_600
    assert verdict(404, 1, "600").rest == 0


def test_a_payload_is_json_of_type_timestamp_and_data():
    at = datetime(2026, 1, 1, 1, 2, 3, 456_789, tzinfo=UTC) + timedelta(hours=0)
    assert payload("email.sent", at, b'{"id":1}') == (
        b'{"type":"email.sent","timestamp":"2026-01-01T01:02:03.456Z","data":{"id":1}}'
    )


def test_an_answer_in_the_log_has_no_address_and_one_line():
    assert _shown("no such\n<ada@example.org>\0 here") == "no such <***> here"
    assert len(_shown("x" * 1_000)) == 200


def test_while_mail_needs_all_the_process_has_a_tenth_of_the_calls_is_made(monkeypatch):
    now, used = [0.0], [0.0]
    monkeypatch.setattr(time, "monotonic", lambda: now[0])
    monkeypatch.setattr(time, "process_time", lambda: used[0])
    pressed = [True]
    load, tokens = _Load(lambda: pressed[0]), _Tokens(100)
    tokens.take(100)
    for seconds, high in ((0.9, True), (0.1, False)):  # of a processor, in a second
        now[0] += 1
        used[0] += seconds
        assert load.high() is high
    now[0] += 1
    used[0] += 0.9
    pressed[0] = False
    assert not load.high()
    pressed[0] = True
    tokens.left()
    tokens.take(100)
    tokens.slow = load.high()
    now[0] += 1
    assert tokens.left() == 10


def test_tokens_are_a_second_worth_at_most():
    tokens = _Tokens(10)
    assert tokens.left() == 10
    tokens.take(10)
    assert tokens.left() == 0

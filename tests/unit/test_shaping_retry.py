"""Retry schedules, backoff and circuits, with a clock and a chance of the test's own."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.shaping.backoff import Backoff, exponential, jittered
from pgmail.shaping.circuit import Circuit
from pgmail.shaping.retry import RetryPolicy, next_delay
from pgmail.shaping.verdict import decide


def _middle():
    return 0.5


def _schedule(policy, chance=_middle):
    age, attempt, delays = 0.0, 1, []
    while (delay := next_delay(policy, attempt, chance, age_seconds=age)) is not None:
        delays.append(delay)
        age += delay
        attempt += 1
    return delays


def test_the_default_schedule_is_the_documented_one():
    delays = _schedule(RetryPolicy())
    assert [round(delay / 60) for delay in delays[:10]] == [1, 2, 4, 8, 16, 32, 64, 128, 240, 240]
    assert sum(delays) == pytest.approx(4 * 86_400)


def test_the_last_attempt_is_at_the_maximum_age_and_none_comes_after():
    policy = RetryPolicy(base_seconds=10, factor=1, cap_seconds=10, max_age_seconds=25)
    assert _schedule(policy) == [10, 10, 5]
    assert next_delay(policy, 4, _middle, age_seconds=25) is None


def test_attempts_are_counted_with_the_first():
    policy = RetryPolicy(max_attempts=3)
    assert len(_schedule(policy)) == 2
    assert _schedule(RetryPolicy(max_attempts=1)) == []


@given(
    attempt=st.integers(1, 10**9),
    chance=st.floats(0, 1, exclude_max=True),
    jitter=st.floats(0, 1),
    factor=st.floats(1, 1e6),
)
def test_a_delay_is_within_its_jitter_whatever_the_attempt(attempt, chance, jitter, factor):
    policy = RetryPolicy(jitter=jitter, factor=factor)
    delay = next_delay(policy, attempt, lambda: chance)
    assert delay is not None
    assert 0 <= delay <= policy.cap_seconds * (1 + jitter)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("base_seconds", 0),
        ("base_seconds", float("nan")),
        ("factor", 0.5),
        ("cap_seconds", 1),
        ("jitter", 1.5),
        ("max_attempts", 0),
        ("max_age_seconds", 0),
        ("max_age_seconds", None),
    ],
)
def test_a_policy_that_is_no_schedule_names_its_field(field, value):
    named = "max_attempts" if value is None else field
    with pytest.raises(ValueError, match=f"^{named}: "):
        RetryPolicy(**{field: value})


def test_attempts_count_from_one():
    with pytest.raises(ValueError, match="attempt: counts from 1"):
        next_delay(RetryPolicy(), 0, _middle)


def test_backoff_doubles_to_its_cap_and_starts_over_after_a_success():
    backoff = Backoff(_middle)
    assert [backoff.next() for _ in range(8)] == [1, 2, 4, 8, 16, 32, 60, 60]
    backoff.reset()
    assert backoff.next() == 1
    with pytest.raises(ValueError, match="backoff"):
        Backoff(_middle, base=0)


def test_exponential_never_overflows_and_jitter_is_even():
    assert exponential(1, 10, 60, 10_000) == 60
    assert jittered(10, 0.5, lambda: 0.0) == 5
    assert jittered(10, 0.5, lambda: 0.75) == 12.5
    assert jittered(10, 0, random.random) == 10


# --- circuits ---


class Clock:
    now = 1000.0

    def __call__(self):
        return self.now


AWAY = decide(Result(phase=Phase.CONNECT, error="connection refused"))
SENT = decide(Result(phase=Phase.DOT, reply=Reply(250, "ok")))
BOUNCED = decide(Result(phase=Phase.RCPT, reply=Reply(550, "no")))
LOCKED = decide(Result(phase=Phase.AUTH, reply=Reply(535, "no")))
DOUBT = decide(Result(phase=Phase.DOT))


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def circuit(clock):
    return Circuit(clock, _middle)


def test_a_closed_circuit_lets_everybody_through(circuit):
    for verdict in (SENT, BOUNCED, DOUBT):
        circuit.record(verdict)
        assert circuit.allow()
    assert (circuit.state, circuit.wait_seconds(), circuit.reason) == ("closed", 0, None)


@pytest.mark.parametrize("verdict", [AWAY, LOCKED])
def test_a_relay_that_is_away_opens_it_and_one_probe_is_let_through(circuit, clock, verdict):
    circuit.record(verdict)
    assert (circuit.state, circuit.reason, circuit.wait_seconds()) == ("open", verdict.reason, 1.0)
    assert not circuit.allow()
    clock.now += 1
    assert [circuit.allow() for _ in range(3)] == [True, False, False]
    assert circuit.state == "probing"


def test_each_failed_probe_doubles_the_wait_up_to_a_minute(circuit, clock):
    waits = []
    for _ in range(8):
        circuit.record(AWAY)
        waits.append(circuit.wait_seconds())
        clock.now += waits[-1]
        assert circuit.allow()
    assert waits == [1, 2, 4, 8, 16, 32, 60, 60]


@pytest.mark.parametrize("verdict", [SENT, BOUNCED])
def test_any_answer_closes_it_and_the_next_wait_is_short_again(circuit, clock, verdict):
    for _ in range(3):
        circuit.record(AWAY)
        clock.now += 60
        circuit.allow()
    circuit.record(verdict)
    assert circuit.allow()
    circuit.record(AWAY)
    assert circuit.wait_seconds() == 1


def test_late_failures_of_mails_on_their_way_do_not_lengthen_the_wait(circuit):
    for _ in range(50):
        circuit.record(AWAY)
    assert circuit.wait_seconds() == 1


def test_a_probe_that_breaks_half_way_opens_it_again(circuit, clock):
    circuit.record(AWAY)
    clock.now += 1
    assert circuit.allow()
    circuit.record(DOUBT)
    assert (circuit.state, circuit.wait_seconds()) == ("open", 2)


def test_a_probe_that_never_reports_is_replaced(circuit, clock):
    circuit.record(AWAY)
    clock.now += 1
    assert circuit.allow()
    clock.now += 119
    assert not circuit.allow()
    clock.now += 1
    assert circuit.allow()

"""The parts of a session without I/O: what is said for a mail, what must not be said, and its one timer."""

import asyncio
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.transport.commands import Capabilities, Extensions, refused_here, stuffed
from pgmail.transport.watch import Watch
from tests.fix_smtp import an_envelope

PIECES = st.lists(
    st.sampled_from([b"\r\n", b"\r", b"\n", b".", b"..", b"a", b"\x85", b"\x0b", b"\x00"]), max_size=12
)
LINES = st.lists(st.sampled_from([b".", b"..", b"", b"a", b".a", b"a."]), max_size=8).map(
    lambda lines: b"".join(line + b"\r\n" for line in lines)
)


@given(PIECES)
def test_a_bare_cr_or_lf_is_found_wherever_it_stands(pieces):
    body = b"".join(pieces)
    bare = re.search(rb"(?<!\r)\n|\r(?!\n)", body) is not None
    refusal = refused_here(an_envelope(body=body), Extensions())
    assert (refusal is not None and refusal.enhanced == "5.6.0") is bare


@given(LINES)
def test_every_line_that_begins_with_a_dot_gets_another_and_no_other_does(body):
    wire, end = stuffed(body)
    assert wire == re.sub(rb"(?m)^\.", b"..", body)
    assert end == b".\r\n"
    assert (wire + end).index(b".\r\n" if not body else b"\r\n.\r\n") == max(0, len(wire) - 2)


def test_what_is_switched_off_counts_as_not_offered():
    offered = {"pipelining": "", "chunking": "", "size": "100"}
    assert Extensions.from_ehlo(offered).chunking
    without = Extensions.from_ehlo(offered, pipelining=False, chunking=False)
    assert (without.pipelining, without.chunking, without.size) == (False, False, 100)
    assert without.capabilities() == Capabilities(
        eightbit=False, smtputf8=False, pipelining=False, chunking=False, size=100
    )


class Clock:
    """An event loop's clock and timers, moved by hand."""

    def __init__(self):
        self.now = 0.0
        self.timers = []

    def time(self):
        return self.now

    def call_at(self, when, call):
        handle = asyncio.TimerHandle(when, call, (), self)
        self.timers.append(handle)
        return handle

    def get_debug(self):
        return False

    def _timer_handle_cancelled(self, handle):
        self.timers.remove(handle)

    def move_to(self, now):
        self.now = now
        for handle in [handle for handle in self.timers if handle.when() <= now]:
            self.timers.remove(handle)
            handle._run()


@pytest.fixture
def clock():
    return Clock()


def test_a_wait_ends_at_its_own_deadline_and_one_timer_serves_them_all(clock):
    ended = []
    watch = Watch(clock, lambda seconds: ended.append((clock.now, seconds)))
    watch.wait(100, clock.now)
    for at in range(90):
        clock.move_to(at)
        watch.wait(100, at)
        assert len(clock.timers) == 1
    clock.move_to(100)
    assert not ended
    watch.wait(5, 101)  # sooner than the timer is armed for
    assert len(clock.timers) == 1
    clock.move_to(105.9)
    assert not ended
    clock.move_to(106)
    assert ended == [(106, 5)]
    assert not watch.waiting


def test_what_rests_or_was_cancelled_never_ends(clock):
    watch = Watch(clock, pytest.fail)
    watch.wait(1, clock.now)
    watch.rest()
    clock.move_to(2)
    watch.wait(1, clock.now)
    watch.cancel()
    clock.move_to(10)
    assert clock.timers == []

"""Who is dead: silence over our own reads."""

import pytest

from pgmail.maintain.rescuer import Watch

SILENCE = 5.0


class Reader:
    """Reads beats every half a second, on a clock of its own."""

    def __init__(self) -> None:
        self.now = 100.0
        self.watch = Watch(SILENCE, lambda: self.now)

    def read(self, beats: dict[int, int], seconds: float = 0.5) -> list[int]:
        self.now += seconds
        return self.watch.saw(beats)

    def for_seconds(self, seconds: float, beats: dict[int, int]) -> list[int]:
        """The dead that were found by the end."""
        dead: list[int] = []
        for _ in range(int(seconds / 0.5)):
            dead = self.read(beats)
        return dead


@pytest.fixture
def reader() -> Reader:
    return Reader()


def test_a_worker_is_dead_when_its_beat_stood_still_through_the_silence(reader):
    assert reader.for_seconds(5.0, {1: 7}) == []
    assert reader.for_seconds(1.0, {1: 7}) == [1]


def test_a_worker_that_beats_lives(reader):
    for n in range(40):
        assert reader.read({1: n, 2: 0 if n < 5 else n}) == []


def test_only_the_silent_one_is_dead(reader):
    for n in range(12):
        dead = reader.read({1: n, 2: 3})
    assert dead == [2]


def test_a_read_that_failed_proves_nothing_and_gives_everyone_a_full_grace(reader):
    reader.for_seconds(4.5, {1: 7})
    reader.watch.failed()
    assert reader.for_seconds(5.0, {1: 7}) == []
    assert reader.for_seconds(1.0, {1: 7}) == [1]


def test_who_could_not_read_for_long_gives_everyone_a_full_grace(reader):
    reader.for_seconds(4.5, {1: 7})
    assert reader.read({1: 7}, seconds=60) == []
    assert reader.for_seconds(4.5, {1: 7}) == []


def test_a_worker_that_went_is_forgotten(reader):
    reader.for_seconds(4.5, {1: 7})
    assert reader.read({}) == []
    assert reader.for_seconds(4.5, {1: 7}) == []


def test_silence_is_not_measured_by_a_clock_of_the_workers(reader):
    """A beat that goes backwards is a beat too: what counts is that it moved."""
    for n in range(20):
        assert reader.read({1: -n}) == []

"""States, event types and ids: the tables agree with themselves and with the schema."""

from __future__ import annotations

import re
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.domain import ids, states
from pgmail.domain.states import FINAL, IN_QUEUE, LATER, MOVES, PHASE_OF, EventType, State

SCHEMA = Path(__file__).parents[2] / "sql" / "migrations" / "0001_first_light.up.sql"


def words_of_check(table, column):
    """The words a CHECK of the schema allows."""
    text = SCHEMA.read_text(encoding="utf-8")
    body = text[text.index(f"create table pgmail.{table} (") :]
    found = re.search(rf"\b{column}\s+text[^\n]*check \({column} in \(([^)]*)\)", body)
    return set(re.findall(r"'([^']+)'", found[1]))


def test_each_state_has_a_phase_and_a_place():
    assert set(PHASE_OF) == set(State)
    assert IN_QUEUE | FINAL | {State.DEAD} == set(State)
    assert not IN_QUEUE & FINAL


def test_the_schema_stores_the_same_words():
    assert words_of_check("event", "type") == {str(event) for event in EventType}
    assert words_of_check("outcome", "state") == {str(state) for state in FINAL}


def test_final_states_are_final_and_all_others_can_be_left():
    for state in State:
        assert bool(states.movers(state)) == (state not in FINAL), state


def test_every_state_is_reached_from_an_enqueue():
    reached, new = set(), {move.next for move in MOVES if move.state is None}
    while new:
        reached |= new
        new = {move.next for move in MOVES if move.state in reached} - reached
    assert reached == set(State)


def test_every_state_can_come_to_an_end():
    ends = set(FINAL)
    while more := {move.state for move in MOVES if move.next in ends and move.state} - ends:
        ends |= more
    assert ends == set(State)


def test_moves_are_told_once_and_a_leased_row_moves_by_its_worker_the_rescuer_or_a_restore():
    assert len(MOVES) == len(set(MOVES))
    assert states.movers(State.SENDING) == {"settle", "release", "rescue", "restore"}
    assert states.next_states(State.SCHEDULED, "cancel") == {State.CANCELLED}
    assert states.next_states(State.SENDING, "cancel") == frozenset()
    assert states.next_states(None, "send") == {State.QUEUED, State.SCHEDULED, State.SUPPRESSED, State.HELD}


def test_every_event_type_is_of_a_move_or_comes_later():
    told = {move.event for move in MOVES} - {None}
    assert told | LATER == set(EventType)


# ------------------------------------------------------------------------------------------------ ids

moments = st.datetimes(
    min_value=datetime(1970, 1, 1),  # noqa: DTZ001 - the zone is given
    max_value=datetime(9999, 1, 1),  # noqa: DTZ001
    timezones=st.just(UTC),
)


@given(moments)
def test_an_id_carries_its_time_and_lies_above_its_floor(moment):
    made = ids.make(moment)
    assert (made.version, made.variant) == (7, "specified in RFC 4122")
    assert ids.time_of(made) == moment.replace(microsecond=moment.microsecond // 1000 * 1000)
    assert ids.floor(moment) <= made < ids.floor(moment + timedelta(milliseconds=1))


@given(moments, st.integers(min_value=1, max_value=10**9))
def test_ids_sort_by_time_to_the_microsecond(moment, microseconds):
    assert ids.make(moment) < ids.make(moment + timedelta(microseconds=microseconds))


def test_ids_of_the_same_moment_differ():
    moment = datetime(2026, 11, 21, tzinfo=UTC)
    assert len({ids.make(moment) for _ in range(1000)}) == 1000


def test_a_known_id_is_read_as_rfc_9562_has_it():
    assert ids.time_of(UUID("017F22E2-79B0-7CC3-98C4-DC0C0C07398F")) == datetime(
        2022, 2, 22, 19, 22, 22, tzinfo=UTC
    )


def test_what_has_no_time_is_refused():
    with pytest.raises(ValueError, match="version 7"):
        ids.time_of(uuid4())
    with pytest.raises(ValueError, match="aware"):
        ids.make(datetime(2026, 1, 1))  # noqa: DTZ001 - naive on purpose
    with pytest.raises(ValueError, match="1970"):
        ids.floor(datetime(1969, 1, 1, tzinfo=UTC))

"""The state of a mailing: what was handed over survives a crash, and nothing else is taken for it."""

from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from pgmail.errors import Refused
from pgmail.mailing.state import FORMAT, Begin, Settled, State, in_doubt

NOW = datetime(2026, 11, 22, 12, 0, tzinfo=UTC)
DIGESTS = [bytes([n]) * 16 for n in range(4)]
ID = UUID(int=7)


def begin(**changes):
    facts = {"identity": {"name": None, "template": "t"}, "options": {"subject": "1"}, "chunk": 3}
    return Begin(FORMAT, **{**facts, "at": NOW, **changes})


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code


@pytest.fixture
def path(tmp_path):
    return tmp_path / "list.csv.mailing"


@pytest.fixture
def written(path):
    with State.open(path, begin(scheduled_at="2026-11-23T09:00:00Z")) as state:
        state.begin_chunk(0, DIGESTS[0], NOW)
        state.settle(Settled(0, DIGESTS[0].hex(), ID, 2, [(3, "email", "invalid_address", "no")]))
        state.begin_chunk(1, DIGESTS[1], NOW)
    return path


def test_what_was_settled_and_what_was_begun_is_known_again(written):
    with State.open(written, begin(chunk=1_000, at=NOW + timedelta(days=1))) as state:
        assert state.begin.chunk == 3
        assert state.begin.scheduled_at == "2026-11-23T09:00:00Z"
        assert state.settled[0].id == ID
        assert state.settled[0].refused == [(3, "email", "invalid_address", "no")]
        assert list(state.begun) == [1]
        assert state.begin_chunk(1, DIGESTS[1], NOW + timedelta(hours=5)) == NOW  # its key is that old


@pytest.mark.parametrize("cut", range(1, 60, 7))
def test_a_line_that_a_crash_cut_short_is_dropped(written, cut):
    whole = written.read_bytes()
    written.write_bytes(whole[:-cut])
    with State.open(written, begin()) as state:
        assert list(state.settled) == [0]
        assert not state.begun
        state.begin_chunk(1, DIGESTS[1], NOW)
    with State.open(written, begin()) as state:
        assert list(state.begun) == [1]


@pytest.mark.parametrize("text", [b'{"line":"mailing","for', b""])
def test_a_crash_before_the_first_chunk_leaves_nothing_behind(path, text):
    path.write_bytes(text)
    with State.open(path, begin()) as state:
        assert not state.begun
    with State.open(
        path, begin(options={"subject": "2"})
    ) as state:  # nothing was handed over, so it may change
        assert state.begin.options == {"subject": "2"}


def test_a_file_that_is_no_state_is_left_as_it_is(path):
    for text in (b"email\na@example.com", b'{"line":"mailing"}\n{}\n'):
        path.write_bytes(text)
        assert refused(lambda: State.open(path, begin())) == "other_mailing"
        assert path.read_bytes() == text


def test_another_mailing_and_other_options_are_told_apart(written):
    assert (
        refused(lambda: State.open(written, begin(identity={"name": "x", "template": "t"})))
        == "other_mailing"
    )
    with pytest.raises(Refused, match="another subject") as caught:
        State.open(written, begin(options={"subject": "2"}))
    assert caught.value.code == "other_options"


def test_two_runs_at_once_are_refused(written):
    with State.open(written, begin()):
        assert refused(lambda: State.open(written, begin())) == "mailing_busy"
    State.open(written, begin()).__exit__()


def test_a_list_that_was_changed_where_it_was_handed_over_is_refused(written):
    with State.open(written, begin()) as state:
        rows = 2 * state.begin.chunk + 1
        state.check(DIGESTS, rows)
        state.check([*DIGESTS[:2], b"x" * 16], rows)
        assert refused(lambda: state.check(DIGESTS[:1], state.begin.chunk)) == "list_changed"
        assert refused(lambda: state.check([b"x" * 16, *DIGESTS[1:]], rows)) == "list_changed"
        assert refused(lambda: state.check([DIGESTS[0], b"x" * 16], rows)) == "list_changed"  # begun counts


@pytest.mark.parametrize(
    ("rows", "named"),
    [(9, "in rows 1 to 3 after"), (2, "in rows 1 to 2 after"), (1, "in row 1 after"), (0, "in row 1 after")],
)
def test_no_row_is_named_that_the_list_does_not_have(path, rows, named):
    with State.open(path, begin()) as state:
        state.begin_chunk(0, DIGESTS[0], NOW)
        with pytest.raises(Refused, match=named):
            state.check([b"x" * 16], rows)


@pytest.mark.parametrize(
    ("age", "doubtful"),
    [
        (timedelta(0), False),
        (timedelta(hours=22, minutes=59), False),
        (timedelta(hours=23), True),
        (timedelta(days=9), True),
        (timedelta(minutes=-5), False),
        (timedelta(days=-1), True),
    ],
)
def test_a_chunk_is_in_doubt_once_its_key_may_be_gone(age, doubtful):
    assert in_doubt(NOW, NOW + age) is doubtful

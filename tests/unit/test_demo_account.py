"""The accounts of a demo: they balance when they should, and every way of being wrong is seen."""

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any
from uuid import uuid4

import msgspec
import pytest

from pgmail.sandbox import demo_account
from pgmail.sandbox.demo_account import SinkReport, message_id, percentile_ms
from pgmail.sandbox.demo_send import Sent
from pgmail.sandbox.traffic import Fate, make_traffic


class Books:
    """Three sources that agree, to be spoilt by a test."""

    def __init__(self, path) -> None:
        self.path = path
        self.sent = [Sent(planned, uuid4()) for planned in make_traffic(50)]
        self.rows: list[Any] = []
        self.arrivals: list[dict[str, Any]] = []
        self.ahead = 0.0
        for planned, id_ in self.sent:
            for address, fate in planned.fates.items():
                mode = planned.body.get("mode", "envelope")
                row = SimpleNamespace(
                    id=uuid4(), message_id=id_, address=address, mode=mode, created_at=100.0, state=fate
                )
                self.rows.append(row)
                if fate is Fate.SENT:
                    self.arrive(row.id if mode == "personal" else id_, address)
        self.ledger = dict.fromkeys(
            ("scheduled", "queued", "sending", "deferred", "held", "suppressed", "expired", "dead"), 0
        )
        self.ledger["enqueued"] = len(self.rows)
        for fate in Fate:
            self.ledger[fate.value] = sum(row.state == fate for row in self.rows)
        self.ledger["difference"] = 0

    def arrive(self, id_, address: str, at: float = 100.5) -> None:
        self.arrivals.append({"message_id": f"<{message_id(id_)}>", "recipient": address.upper(), "at": at})

    def close(self):
        self.path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in self.arrivals))
        return demo_account.close(self.sent, self.rows, self.ledger, SinkReport(self.path), self.ahead)

    def a_row(self, state: Fate = Fate.SENT):
        return next(row for row in self.rows if row.state == state and row.mode == "envelope")


@pytest.fixture
def books(tmp_path):
    return Books(tmp_path / "sink.jsonl")


def test_three_sources_that_agree_balance(books):
    account = books.close()
    assert account.balanced
    assert account.doubts == ()
    summary = account.summary
    assert (summary.messages, summary.recipients) == (50, len(books.rows))
    assert (summary.lost, summary.copies) == (0, 0)
    assert (summary.p50_ms, summary.p99_ms) == (500.0, 500.0)
    assert summary.mails_per_s > 0


def test_a_second_copy_is_counted_and_is_no_loss(books):
    row = books.a_row()
    books.arrive(row.message_id, row.address)
    account = books.close()
    assert account.balanced
    assert account.summary.copies == 1


def test_a_clock_that_is_ahead_does_not_make_mail_arrive_late(books):
    for row in books.rows:
        row.created_at += 3600
    books.ahead = 3600.0
    assert books.close().summary.p50_ms == 500.0


def lose_at_sink(books: Books) -> None:
    books.arrivals.pop()


def lose_row(books: Books) -> None:
    books.rows.pop()


def leave_open(books: Books) -> None:
    row = books.a_row()
    row.state = "queued"
    books.arrivals = [line for line in books.arrivals if line["recipient"] != row.address.upper()]
    books.ledger["sent"] -= 1
    books.ledger["queued"] += 1


@pytest.mark.parametrize("spoil", [lose_at_sink, lose_row, leave_open])
def test_what_is_missing_is_lost(books, spoil: Callable[[Books], None]):
    spoil(books)
    account = books.close()
    assert account.summary.lost == 1
    assert not account.balanced


def arrive_unsent(books: Books) -> None:
    books.arrive(uuid4(), "stranger@example.org")


def arrive_though_cancelled(books: Books) -> None:
    row = books.a_row(Fate.CANCELLED)
    books.arrive(row.message_id, row.address)


def die(books: Books) -> None:
    row = books.a_row(Fate.BOUNCED)
    row.state = "dead"
    books.ledger["bounced"] -= 1
    books.ledger["dead"] += 1


def a_row_too_many(books: Books) -> None:
    books.rows.append(SimpleNamespace(**vars(books.a_row()) | {"message_id": uuid4()}))


def differ(books: Books) -> None:
    books.ledger["difference"] = 1


def count_wrong(books: Books) -> None:
    books.ledger["sent"] += 1


@pytest.mark.parametrize(
    "spoil", [arrive_unsent, arrive_though_cancelled, die, a_row_too_many, differ, count_wrong]
)
def test_what_was_not_to_be_is_a_doubt(books, spoil: Callable[[Books], None]):
    spoil(books)
    account = books.close()
    assert not account.balanced
    assert account.summary.lost == 0


def test_many_doubts_are_told_in_a_few_lines(books):
    books.arrivals.clear()
    account = books.close()
    assert len(account.doubts) == demo_account.MOST_DOUBTS + 1
    assert account.doubts[-1].startswith("and ")
    assert account.doubting("first").doubts[0] == "first"


def test_a_report_is_read_as_it_grows_and_half_a_line_waits(tmp_path):
    path = tmp_path / "report"
    line = b'{"message_id":"a@x","recipient":"b@y","at":1.0}\n'
    path.write_bytes(line + line[:20])
    report = SinkReport(path)
    assert report.read() == 1
    with path.open("ab") as file:
        file.write(line[20:])
    assert report.read() == 2
    assert report.counts == {("a@x", "b@y"): 2}


@pytest.mark.parametrize(
    ("seconds", "part", "expected"),
    [
        ([], 0.5, None),
        ([1], 0.99, 1000.0),
        ([1, 2, 3, 4], 0.5, 2000.0),
        (list(range(1, 201)), 0.99, 198_000.0),
    ],
)
def test_percentiles_are_of_the_nearest_rank(seconds, part, expected):
    assert percentile_ms(seconds, part) == expected

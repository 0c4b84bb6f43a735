"""The first pass: every row is judged, duplicates are found however long the list, chunks have digests."""

import tracemalloc

import pytest

from pgmail.errors import Refused
from pgmail.mailing import duplicates
from pgmail.mailing.duplicates import BUCKETS, SHOWN, SPILL, Duplicates
from pgmail.mailing.people import People
from pgmail.mailing.scan import scan
from pgmail.mailing.send import chunks, key_of
from pgmail.mailing.table import Table


def look(path, chunk=3, **options):
    refusals = []
    with Table(path) as table:
        people = People(table.header, **options)
        found = scan(table, people, chunk, refuse=refusals.append, progress=lambda *_: None)
        parts = list(chunks(table, people, found, lambda _: False))
    return found, refusals, parts


@pytest.fixture
def listed(tmp_path):
    def write(text):
        path = tmp_path / "list.csv"
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_every_row_is_sent_refused_or_a_duplicate(listed):
    found, refusals, parts = look(
        listed("email\na@example.com\nnobody\nb@example.com\nA@EXAMPLE.com\nc@example.com\nb@example.com\n")
    )
    assert (found.rows, found.refused, found.duplicates) == (6, 1, 2)
    assert [(one.row.line, one.fault.code) for one in refusals] == [(3, "invalid_address")]
    assert found.shown == [(5, 2), (7, 4)]
    assert [[person["address"] for person in part.people] for part in parts] == [
        ["a@example.com", "b@example.com"],
        ["c@example.com"],
    ]


def test_a_refused_row_does_not_make_a_later_one_a_duplicate(listed):
    with Table(listed("email,x\na@example.com,\na@example.com,1\n")) as table:
        people = People(table.header)
        people.require({"x"})
        found = scan(table, people, 10, refuse=lambda _: None, progress=lambda *_: None)
    assert (found.refused, found.duplicates, found.leaves_out(0), found.leaves_out(1)) == (1, 0, True, False)


def test_mending_one_row_changes_the_digest_of_its_own_chunk_alone(listed):
    rows = [f"u{n}@example.com" for n in range(9)]
    before = look(listed("email\n" + "\n".join(rows)))[0].digests
    after = look(listed("email\n" + "\n".join([*rows[:4], "nobody", *rows[5:]])))[0].digests
    assert [one == other for one, other in zip(before, after, strict=True)] == [True, False, True]


def test_a_digest_does_not_depend_on_how_cells_are_written(listed):
    plain = look(listed("email,x\na@example.com,1\n"))[0].digests
    assert look(listed('email;x\r\n"a@example.com";"1"\r\n'))[0].digests == plain
    assert look(listed("email,y\na@example.com,1\n"))[0].digests != plain


def test_octets_that_are_no_utf_8_have_a_digest_too(tmp_path):
    path = tmp_path / "list.csv"
    digests = []
    for octet in (b"\xe9", b"\xe8"):
        path.write_bytes(b"email\na@example.com\n" + octet + b"@example.com\n")
        found, refusals, _ = look(path)
        assert [one.fault.message for one in refusals] == ["the cell is not UTF-8 text"]
        digests += found.digests
    assert len(set(digests)) == 2


def test_a_list_that_changes_while_it_is_read_is_noticed(listed):
    path = listed("email\na@example.com\nb@example.com\n")
    with Table(path) as table:
        people = People(table.header)
        found = scan(table, people, 1, refuse=lambda _: None, progress=lambda *_: None)
        for text in ("email\na@example.com\nc@example.com\n", "email\na@example.com\n"):
            path.write_text(text, encoding="utf-8")
            with pytest.raises(Refused) as caught:
                list(chunks(table, people, found, lambda _: False))
            assert caught.value.code == "list_changed"


def test_duplicates_are_found_across_what_was_written_to_disk():
    rows = BUCKETS * SPILL + 5_000
    marks = bytearray(rows // 8 + 10)
    with Duplicates() as seen:
        for row in range(rows):
            seen.add(f"u{row}@example.com", row, row + 2)
        for row in range(40):
            seen.add(f"u{row * 1000}@example.com", rows + row, rows + row + 2)
        assert seen.mark(marks) == 40
    assert marks[: rows // 8] == bytes(rows // 8)
    assert seen.shown == [(rows + row + 2, row * 1000 + 2) for row in range(SHOWN)]


def test_memory_does_not_grow_with_the_list(tmp_path, monkeypatch):
    monkeypatch.setattr(duplicates, "SPILL", 2)
    path = tmp_path / "list.csv"

    def peak(rows):
        path.write_text("email\n" + "".join(f"u{n}@example.com\n" for n in range(rows)), encoding="ascii")
        with Table(path) as table:
            people = People(table.header)
            tracemalloc.start()
            try:
                found = scan(table, people, 100, refuse=lambda _: None, progress=lambda *_: None)
                for _ in chunks(table, people, found, lambda _: False):
                    pass
                return tracemalloc.get_traced_memory()[1]
            finally:
                tracemalloc.stop()

    peak(1_000)  # what is kept for good, such as caches
    assert peak(6_000) < peak(2_000) + 100_000


def test_a_key_is_the_mailings_and_the_chunks_wherever_it_runs():
    mailing = {
        "name": None,
        "template": "t",
        "sender": "a@example.com",
        "stream": "broadcast",
        "database": "x",
    }
    key = key_of(mailing, b"1" * 16, 0)
    assert 1 <= len(key) <= 256
    assert key_of({**mailing, "database": "another name of it"}, b"1" * 16, 0) == key
    others = [
        key_of({**mailing, "name": "again"}, b"1" * 16, 0),
        key_of({**mailing, "template": "u"}, b"1" * 16, 0),
        key_of({**mailing, "stream": "other"}, b"1" * 16, 0),
        key_of(mailing, b"2" * 16, 0),
        key_of(mailing, b"1" * 16, 1),
    ]
    assert len({key, *others}) == 6

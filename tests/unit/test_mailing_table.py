"""Lists of recipients as people's programs write them."""

import contextlib

import pytest

from pgmail.errors import Refused
from pgmail.mailing.table import Table


@pytest.fixture
def table(tmp_path):
    opened = []

    def make(text, **options):
        path = tmp_path / "list.csv"
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        opened.append(Table(path, **options))
        return opened[-1]

    yield make
    for one in opened:
        one.__exit__()


def cells(table):
    return [row.cells for row in table.rows()]


def refused(call):
    with pytest.raises(Refused) as caught:
        call()
    return caught.value.code, caught.value.message


@pytest.mark.parametrize(
    ("text", "delimiter"),
    [
        ("email,name\na@example.com,Ada\n", ","),
        ("email;name\r\na@example.com;Ada\r\n", ";"),
        ("email\tname\na@example.com\tAda", "\t"),
        ('name;"email"\nx;a@example.com\n', ";"),
        ("a,b,c;email\nx;a@example.com\n", ";"),
        ("email\na@example.com\n", ","),
    ],
)
def test_the_header_tells_the_delimiter(table, text, delimiter):
    made = table(text)
    assert made.delimiter == delimiter
    assert made.header.address_name == "email"
    assert [row.fault for row in made.rows()] == [None]


def test_a_delimiter_may_be_given(table):
    assert cells(table("email|name\na@example.com|A;B,C\n", delimiter="|")) == [["a@example.com", "A;B,C"]]


@pytest.mark.parametrize("mark", [b"", b"\xef\xbb\xbf"])
def test_a_byte_order_mark_is_no_part_of_the_first_column(table, mark):
    made = table(mark + "email,name\na@example.com,Žofie\n".encode())
    assert made.header.names == ("email", "name")
    assert cells(made) == [["a@example.com", "Žofie"]]
    assert cells(made) == [["a@example.com", "Žofie"]]  # and again


@pytest.mark.parametrize(
    ("header", "option", "parts"),
    [
        ("Email,Name,code", None, ("Email", 1, ["Email", "Name", "code"])),
        ("to,address,email", None, ("email", None, ["to", "address", "email"])),
        (" address ,", None, ("address", None, ["address"])),
        ("email,mail", "MAIL", ("mail", None, ["email", "mail"])),
        ("name,pgmail_line,to,pgmail_reason", None, ("to", 0, ["name", "to"])),
        ("name,x", "name", ("name", None, ["name", "x"])),
    ],
)
def test_columns_have_their_parts(table, header, option, parts):
    made = table(header + "\n", address_column=option).header
    assert (made.address_name, made.name, [column for _, column in made.variables]) == parts


@pytest.mark.parametrize(
    ("text", "code", "hint"),
    [
        ("", "invalid_csv", "no header"),
        ("mail,name\n", "missing_column", "'email', 'address', 'to'"),
        ("email,x,x\n", "invalid_csv", "'x' twice"),
        ("email,x\n".encode("utf-16"), "invalid_csv", "UTF-16"),
        (b"email,n\xe9\n", "invalid_csv", "not UTF-8"),
    ],
)
def test_a_list_without_a_usable_header_is_refused(table, text, code, hint):
    found = refused(lambda: table(text))
    assert found[0] == code
    assert hint in found[1]


def test_the_column_that_is_asked_for_must_be_there(table):
    assert "'mail'" in refused(lambda: table("email\n", address_column="mail"))[1]


def test_rows_are_known_by_the_line_that_they_begin_on(table):
    text = 'email,note\n\na@example.com,"two\r\nlines"\n,\nb@example.com,"say ""x"""\n'
    assert [(row.line, row.cells) for row in table(text).rows()] == [
        (3, ["a@example.com", "two\r\nlines"]),
        (6, ["b@example.com", 'say "x"']),
    ]


@pytest.mark.parametrize(
    ("row", "column", "hint"),
    [
        (b"a@example.com", "", "1 cells"),
        (b"a@example.com,x,y", "", "3 cells"),
        (b'a@example.com,"x"y', "", "expected after"),
        (b"a@example.com,n\xe9", "name", "not UTF-8"),
        (b"a@example.com,x\x00", "name", "U+0000"),
    ],
)
def test_a_broken_row_is_its_own_fault_and_no_other_rows(table, row, column, hint):
    found = list(table(b"email,name\n" + row + b"\nb@example.com,Bob\n").rows())
    assert [one.line for one in found] == [2, 3]
    assert (found[0].fault.column, found[0].fault.code) == (column, "invalid_row")
    assert hint in found[0].fault.message
    assert found[1].fault is None


def test_empty_cells_past_the_header_are_no_fault(table):
    assert cells(table("email\na@example.com,,\n")) == [["a@example.com"]]


@pytest.mark.parametrize(
    "rest",
    ["x\nb@example.com,y\n", 'x\nb@example.com,"y"\n', "x" * 140_000 + '"\n'],
    ids=["end", "next", "long"],
)
def test_a_quote_that_is_not_closed_refuses_the_list_by_its_line(table, rest):
    made = table('email,name\na@example.com,x\nc@example.com,"' + rest)
    code, message = refused(lambda: cells(made))
    assert code == "invalid_csv"
    assert "line 3:" in message


def test_what_cannot_be_read_twice_is_refused(tmp_path):
    import os
    import threading

    fifo = tmp_path / "pipe"
    os.mkfifo(fifo)

    def write():
        with contextlib.suppress(BrokenPipeError):  # the reader may have gone as soon as it saw what it is
            fifo.write_bytes(b"email\n")

    writer = threading.Thread(target=write)
    writer.start()
    assert "read twice" in refused(lambda: Table(fifo))[1]
    writer.join()

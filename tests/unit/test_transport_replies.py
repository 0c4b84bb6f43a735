"""Octets to replies: however they are cut, whatever they hold."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.domain.reply import Reply
from pgmail.transport.replies import MAX_REPLY_BYTES, MAX_TEXT_CHARS, ReplyParser, make_reply

STREAM = b"220 hi\r\n250-a\r\n250-b c\n250 d\r\n354\r\n550-5.1.1 no\r\n550 5.1.1 body\r\n"
REPLIES = [(220, b"hi"), (250, b"a\nb c\nd"), (354, b""), (550, b"5.1.1 no\n5.1.1 body")]


@given(st.lists(st.integers(0, len(STREAM)), max_size=12))
def test_replies_are_the_same_however_the_network_cuts_them(cuts):
    parser = ReplyParser()
    edges = [0, *sorted(cuts), len(STREAM)]
    got = [reply for start, end in pairwise(edges) for reply in parser.feed(STREAM[start:end])]
    assert got == REPLIES
    assert parser.partial == b""
    assert parser.fault is None


@given(st.binary(max_size=200))
def test_no_octets_make_the_parser_raise(octets):
    parser = ReplyParser()
    for reply in parser.feed(octets):
        assert 200 <= reply.code < 600
        reply.parsed()


@pytest.mark.parametrize(
    "octets",
    [b"hello\r\n", b"199 x\r\n", b"600 x\r\n", b"25\r\n", b"\r\n", b"250_x\r\n", b"250-a\r\n251 b\r\n",
     b"\xff\xfe\r\n", "²50 x\r\n".encode()],
)  # fmt: skip
def test_what_comes_before_nonsense_counts_and_nothing_after(octets):
    parser = ReplyParser()
    assert parser.feed(b"250 good\r\n" + octets + b"250 late\r\n") == [(250, b"good")]
    assert parser.fault
    assert parser.feed(b"250 later\r\n") == []


@pytest.mark.parametrize("piece", [b"x" * 1000, b"250-" + b"x" * 996 + b"\r\n"])
def test_a_reply_without_end_is_given_up(piece):
    parser = ReplyParser()
    fed = 0
    while parser.fault is None:
        assert parser.feed(piece) == []
        fed += len(piece)
        assert fed < MAX_REPLY_BYTES + 5000
    assert "longer than" in parser.fault


def test_a_line_too_long_in_one_piece_is_given_up():
    parser = ReplyParser()
    assert parser.feed(b"250 " + b"x" * MAX_REPLY_BYTES + b"\r\n") == []
    assert "longer than" in parser.fault


def test_half_a_reply_can_be_shown():
    parser = ReplyParser()
    parser.feed(b"250-one\r\n250 tw")
    assert parser.partial == b"one\n250 tw"


@pytest.mark.parametrize(
    ("code", "text", "reply"),
    [
        (250, "2.1.0 OK", Reply(250, "OK", "2.1.0")),
        (250, "OK 2.1.0", Reply(250, "OK 2.1.0")),
        (550, "5.1.1", Reply(550, "", "5.1.1")),
        (550, "5.1.1 a\n5.1.1  b\nc", Reply(550, "a b c", "5.1.1")),
        (550, "5.1.1 a\n5.7.1 b", Reply(550, "a 5.7.1 b", "5.1.1")),
        (550, "5.1.1x a", Reply(550, "5.1.1x a")),
        (451, "4.7.500 busy", Reply(451, "busy", "4.7.500")),
        (550, "3.1.1 a", Reply(550, "3.1.1 a")),
        (550, "a\x00b\x1b[31m\u2028c", Reply(550, "a b [31m c")),
        (354, "", Reply(354, "")),
    ],
)
def test_the_enhanced_code_is_split_off_and_the_text_is_printable(code, text, reply):
    assert make_reply(code, text) == reply


def test_a_long_text_is_cut():
    reply = make_reply(550, "x" * 5000)
    assert len(reply.text) == MAX_TEXT_CHARS
    assert reply.text.endswith("…")

"""Cursors of the feed: what goes in comes out, and what was cut or changed is no cursor."""

import random
from uuid import UUID

import pytest

from pgmail.domain.cursor import MAX_TEXT, Cursor, Encoder, Position, Snapshot, parse

HISTORY = bytes(range(8))
ID, PLACE = UUID(int=7 << 100), UUID(int=8 << 100)
SEEN = Snapshot(1_000, 1_010, (1_000, 1_004))
PLAIN = Cursor(HISTORY, SEEN, 1_790_000_000)


@pytest.mark.parametrize(
    "cursor",
    [
        PLAIN,
        PLAIN._replace(since=1_790_000_000_123),
        PLAIN._replace(now=Snapshot(1_004, 1_020, (1_004,))),
        PLAIN._replace(now=Snapshot(1_004, 1_020), position=Position(1_011, None, ID)),
        PLAIN._replace(now=Snapshot(1_004, 1_020), position=Position(1_000, PLACE, ID)),
        PLAIN._replace(seen=Snapshot(2**40, 2**62, (2**40 + 1, 2**50)), now=Snapshot(2**41, 2**62)),
    ],
)
def test_what_goes_in_comes_out(cursor):
    assert parse(str(cursor)) == cursor
    assert str(cursor).replace("-", "").replace("_", "").isalnum(), "safe in a URL"


def test_cursors_of_one_page_share_their_snapshots():
    during = PLAIN._replace(now=Snapshot(1_004, 1_020))
    made = Encoder(during)
    for xid in range(1_000, 1_020):
        position = Position(xid, None, ID)
        assert made(position) == str(during._replace(position=position))


def test_snapshots_are_read_and_written_as_postgresql_does():
    for text in ("10:20:10,14,15", "10:10:"):
        assert str(Snapshot.parse(text)) == text


def test_what_was_cut_or_changed_is_no_cursor():
    text = str(PLAIN._replace(now=Snapshot(1_004, 1_020), position=Position(1_000, PLACE, ID)))
    dice = random.Random(1)
    for _ in range(300):
        at = dice.randrange(len(text))
        other = dice.choice([c for c in "ABCxyz019-_" if c != text[at]])
        changed = text[:at] + other + text[at + 1 :]
        try:
            assert parse(changed) == parse(text), "the last character has bits that mean nothing"
        except ValueError as error:
            assert "cursor" in str(error)  # noqa: PT017
        with pytest.raises(ValueError, match="cursor"):
            parse(text[:at])


@pytest.mark.parametrize("text", ["", "x", "é", "A" * (MAX_TEXT + 1), "AAAA" * 20, "%%%"])
def test_nonsense_is_no_cursor(text):
    with pytest.raises(ValueError, match="cursor"):
        parse(text)


def test_another_version_says_so():
    import binascii
    from base64 import urlsafe_b64decode, urlsafe_b64encode

    text = str(PLAIN)
    octets = b"\x02" + urlsafe_b64decode(text + "=" * (-len(text) % 4))[1:-4]
    octets += binascii.crc32(octets).to_bytes(4, "big")
    with pytest.raises(ValueError, match="another version"):
        parse(urlsafe_b64encode(octets).decode())

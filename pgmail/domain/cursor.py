"""Where a reader of the feed is, as one word that it keeps and gives back: opaque, and safe in a URL.

A cursor holds two snapshots of the database and the position of the event told last. What is new is what the later
snapshot sees and the earlier one did not; once all of that is told, the later one is all there is. With it go the
database that it is of, since transaction numbers mean nothing in another one, and when it was made, since what
retention took cannot be told any more.

What can go wrong: a cursor that was cut or changed by a byte is another position, and events would be missed
without a word. A checksum finds that. It is no secret: whose events are told is the key's to say, not the cursor's.
"""

from __future__ import annotations

import binascii
from base64 import urlsafe_b64decode, urlsafe_b64encode
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

VERSION = 1
MAX_TEXT = 32_768  # characters; a snapshot with a thousand transactions under way is 3 kB
HISTORY_BYTES = 8

_HAS_NOW, _HAS_POSITION, _HAS_PLACE, _HAS_SINCE = 1, 2, 4, 8
_MOST = (1 << 63) - 1
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Snapshot(NamedTuple):
    """PostgreSQL's `pg_snapshot`: all transactions below `xmin` are over, none from `xmax` on; `under_way` between."""

    xmin: int
    xmax: int
    under_way: tuple[int, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Snapshot:
        """Read `xmin:xmax:xip,xip`. Raises ValueError."""
        xmin, xmax, rest = text.split(":")
        return cls(int(xmin), int(xmax), tuple(int(xid) for xid in rest.split(",") if xid))

    def __str__(self) -> str:
        return f"{self.xmin}:{self.xmax}:{','.join(map(str, self.under_way))}"


class Position(NamedTuple):
    """The event told last: its transaction, its id, and of an email that was queued the message's id."""

    xid: int
    place: UUID | None
    id: UUID


class Cursor(NamedTuple):
    """`seen`: all that it shows is told. `now`: of what it shows more, all up to `position` is told; None: nothing yet.

    `history` are the first octets of the database's own id, `made` when `seen` was new, in seconds since 1970. What
    happened before `since` (milliseconds since 1970) is passed over.
    """

    history: bytes
    seen: Snapshot
    made: int
    now: Snapshot | None = None
    position: Position | None = None
    since: int | None = None

    @property
    def made_at(self) -> datetime:
        """When its snapshot was taken, to the second."""
        return datetime.fromtimestamp(self.made, UTC)

    def __str__(self) -> str:
        return Encoder(self)(self.position)


class Encoder:
    """Writes many cursors of one pair of snapshots, as each event of a page has its own.

    What they have in common is written once: an event costs a microsecond, however many transactions are under way.
    """

    def __init__(self, cursor: Cursor) -> None:
        flags = 0 if cursor.since is None else _HAS_SINCE
        body = bytearray(cursor.history)
        _put(body, cursor.made)
        if cursor.since is not None:
            _put(body, cursor.since)
        _put_snapshot(body, cursor.seen, 0)
        if cursor.now is not None:
            flags |= _HAS_NOW
            _put_snapshot(body, cursor.now, cursor.seen.xmin)
        self._flags, self._body = flags, bytes(body)
        self._xid = -1  # whose heads these are: without a place, and with one
        self._heads: tuple[_Head, _Head]

    def __call__(self, position: Position | None) -> str:
        """Return the cursor of these snapshots at a position."""
        if position is None:
            return _Head(bytes((VERSION, self._flags)) + self._body).sealed(b"").decode()
        place = position.place
        return self.at(position.xid, None if place is None else place.bytes, position.id.bytes).decode()

    def at(self, xid: int, place: bytes | None, id: bytes) -> bytes:
        """Return the cursor at a position whose ids are octets."""
        if xid != self._xid:
            tail = bytearray()
            _put(tail, xid)
            flags = self._flags | _HAS_POSITION
            self._heads = (
                _Head(bytes((VERSION, flags)) + self._body + tail),
                _Head(bytes((VERSION, flags | _HAS_PLACE)) + self._body + tail),
            )
            self._xid = xid
        return self._heads[0].sealed(id) if place is None else self._heads[1].sealed(place + id)


class _Head:
    """The octets that many cursors begin with: their checksum, and as far as it goes their base64."""

    def __init__(self, octets: bytes) -> None:
        whole = len(octets) - len(octets) % 3
        self._crc = binascii.crc32(octets)
        self._text, self._rest = urlsafe_b64encode(octets[:whole]), octets[whole:]

    def sealed(self, tail: bytes) -> bytes:
        octets = self._rest + tail + binascii.crc32(tail, self._crc).to_bytes(4, "big")
        return self._text + binascii.b2a_base64(octets, newline=False).translate(_URL_SAFE, b"=")


def parse(text: str) -> Cursor:
    """Read a cursor. Raises ValueError, in words for who gave it."""
    if len(text) > MAX_TEXT:
        raise ValueError("is too long to be a cursor")
    try:
        octets = urlsafe_b64decode(text.encode("ascii") + b"=" * (-len(text) % 4))
    except ValueError:
        raise ValueError("is not a cursor of this feed") from None
    if len(octets) < 6 + HISTORY_BYTES or binascii.crc32(octets[:-4]) != int.from_bytes(octets[-4:], "big"):
        raise ValueError("is not a cursor of this feed, or was cut or changed on its way")
    if octets[0] != VERSION:
        raise ValueError("is of another version of pgmail; begin anew, with since if need be")
    try:
        return _read(_Reader(octets[2:-4]), octets[1])
    except (ValueError, OverflowError, OSError):  # the last two of moments that no clock shows
        raise ValueError("is not a cursor of this feed") from None


def _read(source: _Reader, flags: int) -> Cursor:
    history = source.take(HISTORY_BYTES)
    made = source.number()
    datetime.fromtimestamp(made, UTC)
    since = source.number() if flags & _HAS_SINCE else None
    seen = source.snapshot(0)
    now = source.snapshot(seen.xmin) if flags & _HAS_NOW else None
    position = None
    if flags & _HAS_POSITION:
        xid = source.number()
        place = UUID(bytes=source.take(16)) if flags & _HAS_PLACE else None
        position = Position(xid, place, UUID(bytes=source.take(16)))
    source.end()
    if (now is None) is not (position is None) and now is None:
        raise ValueError("a position in no snapshot")
    return Cursor(history, seen, made, now, position, since)


class _Reader:
    """Octets, read from the front. ValueError where they end too soon or too late."""

    def __init__(self, octets: bytes) -> None:
        self._octets, self._at = octets, 0

    def take(self, count: int) -> bytes:
        found = self._octets[self._at : self._at + count]
        if len(found) != count:
            raise ValueError("ends too soon")
        self._at += count
        return found

    def number(self) -> int:
        value = shift = 0
        while True:
            (octet,) = self.take(1)
            value |= (octet & 0x7F) << shift
            if octet < 0x80:
                break
            shift += 7
        if value > _MOST:
            raise ValueError("is no number of 63 bits")
        return value

    def snapshot(self, base: int) -> Snapshot:
        xmin = base + self.number()
        xmax = xmin + self.number()
        count, at, found = self.number(), xmin, []
        for _ in range(min(count, len(self._octets))):
            at += self.number()
            found.append(at)
        if xmax > _MOST or len(found) != count or (found and found[-1] >= xmax) or len(set(found)) != count:
            raise ValueError("is no snapshot")
        if not xmin:
            raise ValueError("is no snapshot")
        return Snapshot(xmin, xmax, tuple(found))

    def end(self) -> None:
        if self._at != len(self._octets):
            raise ValueError("ends too late")


def _put(to: bytearray, value: int) -> None:
    while value >= 0x80:
        to.append(value & 0x7F | 0x80)
        value >>= 7
    to.append(value)


def _put_snapshot(to: bytearray, snapshot: Snapshot, base: int) -> None:
    if snapshot.xmin < base:
        raise ValueError("the later snapshot is of before the earlier one")
    _put(to, snapshot.xmin - base)
    _put(to, snapshot.xmax - snapshot.xmin)
    _put(to, len(snapshot.under_way))
    at = snapshot.xmin
    for xid in snapshot.under_way:
        _put(to, xid - at)
        at = xid

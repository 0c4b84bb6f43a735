"""Arrays of ids and numbers as PostgreSQL reads them in binary, packed at once, for statements on mail.

The driver dumps a list one element after the other, each by a function of its own: half a microsecond an element,
nine elements a mail. Here a list becomes one value with its type; elements are never null.

What can go wrong: a number that does not fit its type is an `OverflowError`, before anything is sent. An empty array
has no dimension, as PostgreSQL has it.
"""

from __future__ import annotations

import struct
import sys
from array import array
from collections.abc import Sequence
from uuid import UUID

import psycopg
from psycopg.adapt import Buffer, Dumper
from psycopg.pq import Format

_UUID, _UUIDS = 2950, 2951
_INT4, _INT4S = 23, 1007
_INT2, _INT2S = 21, 1005

_HEAD = struct.Struct(">iiI")  # dimensions, whether there are nulls, type of the elements
_DIMENSION = struct.Struct(">ii")  # how many, number of the first
_SIZED = 16 << 128  # the length of an id, before its 16 octets


class Uuids:
    """A `uuid[]`."""

    __slots__ = ("octets",)

    def __init__(self, values: Sequence[UUID]) -> None:
        octets = int.to_bytes
        self.octets = _head(_UUID, len(values)) + b"".join(
            [octets(value.int | _SIZED, 20, "big") for value in values]
        )


class Integers:
    """An `integer[]`."""

    __slots__ = ("octets",)

    def __init__(self, values: Sequence[int]) -> None:
        flat = [4, 0] * len(values)
        flat[1::2] = values
        self.octets = _head(_INT4, len(values)) + _big(array("i", flat))


class Smallints:
    """A `smallint[]`."""

    __slots__ = ("octets",)

    def __init__(self, values: Sequence[int]) -> None:
        flat = [0, 2, 0] * len(values)  # a length has four octets
        flat[2::3] = values
        self.octets = _head(_INT2, len(values)) + _big(array("h", flat))


def _big(numbers: array[int]) -> bytes:
    """Their octets in the order of the network."""
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()


def _head(oid: int, n: int) -> bytes:
    return _HEAD.pack(1, 0, oid) + _DIMENSION.pack(n, 1) if n else _HEAD.pack(0, 0, oid)


class _Dumper(Dumper):
    format = Format.BINARY

    def dump(self, obj: Uuids | Integers | Smallints) -> Buffer:
        """Its octets, which are ready."""
        return obj.octets


class _UuidsDumper(_Dumper):
    oid = _UUIDS


class _IntegersDumper(_Dumper):
    oid = _INT4S


class _SmallintsDumper(_Dumper):
    oid = _INT2S


psycopg.adapters.register_dumper(Uuids, _UuidsDumper)
psycopg.adapters.register_dumper(Integers, _IntegersDumper)
psycopg.adapters.register_dumper(Smallints, _SmallintsDumper)

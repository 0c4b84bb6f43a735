"""Packed arrays reach PostgreSQL as what they are, in binary, and as the driver itself would have sent them."""

from uuid import UUID

import pytest
from psycopg.adapt import PyFormat, Transformer

from pgmail.store.arrays import Integers, Smallints, Uuids

IDS = [UUID(int=0), UUID("018f2b6e-7a1c-7000-8000-000000000001"), UUID(int=2**128 - 1)]


def test_ids_are_packed_as_the_driver_packs_them():
    assert Uuids(IDS).octets == Transformer().get_dumper(IDS, PyFormat.BINARY).dump(IDS)


@pytest.mark.parametrize(
    ("packed", "type_", "values"),
    [
        (Uuids, "uuid[]", IDS),
        (Integers, "integer[]", [0, 1, -1, 2**31 - 1, -(2**31)]),
        (Smallints, "smallint[]", [0, 1, -1, 2**15 - 1, -(2**15)]),
    ],
)
def test_arrays_come_back_as_they_went(owner, packed, type_, values):
    for some in (values, values[:1], []):
        row = owner.execute("select x, pg_typeof(x)::text from (select %b as x) y", [packed(some)]).fetchone()
        assert row == (some, type_)


@pytest.mark.parametrize(("packed", "number"), [(Integers, 2**31), (Smallints, 2**15)])
def test_a_number_that_does_not_fit_is_refused_here(packed, number):
    with pytest.raises(OverflowError):
        packed([number])

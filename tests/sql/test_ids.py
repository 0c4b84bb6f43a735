"""Ids carry time: UUIDv7 of the server or of our own, their floor and their moment."""

import time
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pgmail import sqlfiles
from tests.sql import kit


@pytest.fixture(params=["as installed", "our own"])
def uuid7(request, owner):
    """The name of a function that makes ids; our own is used below PostgreSQL 18, and proved on all."""
    if request.param == "as installed":
        return "pgmail.uuid7"
    source = sqlfiles.read("migrations/0001_first_light.up.sql")
    body = source.split("as $b$")[1].split("$b$$f$")[0]
    owner.execute(f"create function pgmail.own_uuid7() returns uuid language sql volatile as $b${body}$b$")
    return "pgmail.own_uuid7"


def test_an_id_has_version_seven_its_variant_and_this_moment(owner, uuid7):
    before = time.time()
    ids = [row[0] for row in kit.rows(owner, f"select {uuid7}() from generate_series(1, 500)")]
    after = time.time()
    assert len(set(ids)) == 500
    for made in ids:
        assert (made.version, made.variant) == (7, "specified in RFC 4122")
        assert before - 1 < (made.int >> 80) / 1000 < after + 1


def test_ids_of_one_session_ascend_by_the_millisecond(owner, uuid7):
    ids = [row[0] for row in kit.rows(owner, f"select {uuid7}() from generate_series(1, 5000)")]
    stamps = [made.int >> 80 for made in ids]
    assert stamps == sorted(stamps)
    assert stamps[-1] > stamps[0]


def test_the_moment_of_an_id_is_told_to_the_millisecond(owner, uuid7):
    made = kit.one(owner, f"select {uuid7}()")
    moment = kit.one(owner, "select pgmail.uuid_time(%s)", [made])
    assert moment == datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=made.int >> 80)


@pytest.fixture
def reads(db):
    connection = db.connect("reader")
    connection.execute("set timezone = 'Asia/Kathmandu'")  # a moment is one whatever the session's zone
    return connection


def test_the_floor_of_a_moment_is_below_every_id_of_it_and_above_all_before(reads):
    @settings(max_examples=40)
    @given(st.integers(0, 2**47), st.integers(0, 2**74 - 1))
    def promise(ms, rest):
        ms %= 4_000_000_000_000  # the year 2096
        moment = datetime.fromtimestamp(0, UTC) + timedelta(milliseconds=ms)
        floor = kit.one(reads, "select pgmail.uuid_floor(%s)", [moment])
        assert floor.int == ms << 80
        inside = UUID(int=(ms << 80) | (7 << 76) | rest)
        assert (
            floor.int
            <= inside.int
            < kit.one(reads, "select pgmail.uuid_floor(%s)", [moment + timedelta(milliseconds=1)]).int
        )
        assert kit.one(reads, "select pgmail.uuid_time(%s)", [inside]) == moment

    promise()

"""Who is there in most tests of the SQL: an application and two workers moved by hand."""

import pytest

from tests.sql.kit import Hand


@pytest.fixture
def hand(db):
    return Hand(db.connect("worker"))


@pytest.fixture
def other(db):
    return Hand(db.connect("worker"))

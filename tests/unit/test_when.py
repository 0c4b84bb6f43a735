"""Moments as people write them."""

from __future__ import annotations

import contextlib
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pgmail.domain.when import is_iso, parse, parse_iso, parse_past

NOW = datetime(2026, 11, 21, 12, 30, 15, 250, tzinfo=UTC)  # a Saturday


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-21T12:30:15.000250"),
        ("in 1 min", "2026-11-21T12:31:15.000250"),
        ("In 5 Minutes", "2026-11-21T12:35:15.000250"),
        ("in  an  hour", "2026-11-21T13:30:15.000250"),
        ("in 90 seconds", "2026-11-21T12:31:45.000250"),
        ("in 2 hours", "2026-11-21T14:30:15.000250"),
        ("in 3 days", "2026-11-24T12:30:15.000250"),
        ("in a week", "2026-11-28T12:30:15.000250"),
        ("tomorrow", "2026-11-22T12:30:15.000250"),
        ("tomorrow at 9am", "2026-11-22T09:00"),
        ("tomorrow 9:05 pm", "2026-11-22T21:05"),
        ("tomorrow at 12am", "2026-11-22T00:00"),
        ("tomorrow at noon", "2026-11-22T12:00"),
        ("tomorrow at midnight", "2026-11-22T00:00"),
        ("today at 17:30", "2026-11-21T17:30"),
        ("today at 9am", "2026-11-21T09:00"),
        ("today at 17:30 UTC", "2026-11-21T17:30"),
        ("today at 17:30Z", "2026-11-21T17:30"),
        ("today at 17:30 +02:00", "2026-11-21T15:30"),
        ("today at 17:30 utc-0500", "2026-11-21T22:30"),
        ("saturday at 13:00", "2026-11-21T13:00"),
        ("saturday at 12:00", "2026-11-28T12:00"),
        ("saturday", "2026-11-28T12:30:15.000250"),
        ("next saturday at 13:00", "2026-11-28T13:00"),
        ("next monday at 10:15", "2026-11-23T10:15"),
        ("on friday at 3pm", "2026-11-27T15:00"),
        ("this sunday 8 a.m.", "2026-11-22T08:00"),
        ("2026-11-21T09:00:00Z", "2026-11-21T09:00"),
        ("2026-11-21 09:00+02", "2026-11-21T07:00"),
        ("2026-11-21t09:00:00.1234567-0530", "2026-11-21T14:30:00.123456"),
        ("2026-11-21T09:00:00,5z", "2026-11-21T09:00:00.5"),
    ],
)
def test_a_moment_is_read_in_utc(text, expected):
    moment = parse(text, NOW)
    assert moment == datetime.fromisoformat(expected + "+00:00")
    assert moment.tzinfo is UTC


@pytest.mark.parametrize(
    "text",
    [
        "",
        "soon",
        "in",
        "in five minutes",
        "in 5 fortnights",
        "in -5 minutes",
        "tomorrow at 9",
        "tomorrow at 25:00",
        "tomorrow at 13pm",
        "tomorrow at 0am",
        "tomorrow at 9:75am",
        "next tomorrow",
        "someday at 9am",
        "at 9am",
        "friday at 3pm ET",
        "friday at 3pm Europe/Prague",
        "today at 17:30 +16:00",
        "2026-11-21",
        "2026-11-21T09:00:00",
        "2026-11-21T09:00:00 Z",
        "2026-02-30T09:00:00Z",
        "2026-11-21T24:00:00Z",
        "2026-11-21T09:00:00+02:60",
        "0001-01-01T00:00:00+15:00",
        "20261121T090000Z",
        "x" * 1_000_000,
        "2026-11-21T09:00:00Z" + " " * 200 + "x",
    ],
)
def test_what_is_not_read_is_refused_naming_the_formats(text):
    with pytest.raises(ValueError, match=r"2026-11-21T09:00:00Z.*tomorrow at 9am"):
        parse(text, NOW)


def test_a_named_zone_is_refused_by_its_name():
    with pytest.raises(ValueError, match="time zone 'ET' is not read"):
        parse("friday at 3pm et", NOW)


def test_far_away_stays_in_the_calendar():
    assert parse("in 999999999 weeks", NOW).year == 2036


def test_iso_is_told_from_words():
    assert is_iso("2026-11-21T09:00:00Z")
    assert not is_iso("tomorrow at 9am")
    with pytest.raises(ValueError, match="not an ISO 8601 time"):
        parse_iso("tomorrow at 9am")


@given(st.text(max_size=60))
def test_any_text_is_a_moment_or_a_reason(text):
    with contextlib.suppress(ValueError):
        assert parse(text, NOW).utcoffset() == timedelta()


@given(st.datetimes(timezones=st.just(UTC), max_value=datetime(9000, 1, 1)))  # noqa: DTZ001 - zone is given
def test_what_python_writes_is_read_back(moment):
    assert parse(moment.isoformat(), NOW) == moment


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("now", "2026-11-21T12:30:15.000250"),
        ("2 hours ago", "2026-11-21T10:30:15.000250"),
        ("An Hour  ago", "2026-11-21T11:30:15.000250"),
        ("90m", "2026-11-21T11:00:15.000250"),
        ("7 days", "2026-11-14T12:30:15.000250"),
        ("today", "2026-11-21T00:00:00"),
        ("yesterday", "2026-11-20T00:00:00"),
        ("2026-01-02", "2026-01-02T00:00:00"),
        ("2026-01-02T03:04:05+01:00", "2026-01-02T02:04:05"),
    ],
)
def test_a_moment_to_look_back_to_is_read(text, expected):
    assert parse_past(text, NOW) == datetime.fromisoformat(expected).replace(tzinfo=UTC)


@pytest.mark.parametrize(
    "text", ["", "nonsense", "a day", "in 2 hours", "5 lightyears", "2026-02-30", "2026-01-02T03:04:05"]
)
def test_what_is_no_moment_of_the_past_names_what_is(text):
    with pytest.raises(ValueError, match=r"write an ISO 8601 time.*2 hours ago"):
        parse_past(text, NOW)

"""Logging: one line an event, nothing in it that must not outlive the mail."""

from __future__ import annotations

import io
import json
import logging
import time

import pytest
import structlog

from pgmail import log as pgmail_log
from pgmail.log import configure, mask_text, without_addresses


class Octets(io.BytesIO):
    """A raw stream that may be broken."""

    broken = False

    def write(self, data):
        if self.broken:
            raise BrokenPipeError
        return super().write(data)


class Stream(io.TextIOWrapper):
    def lines(self):
        self.flush()
        return self.buffer.getvalue().decode().splitlines()


@pytest.fixture
def out():
    root = logging.getLogger()
    before = root.handlers[:], root.level
    yield Stream(Octets(), encoding="utf-8")
    root.handlers[:], level = before
    root.setLevel(level)
    structlog.reset_defaults()


def test_a_line_is_one_json_object(out):
    configure("info", "json", stream=out)
    structlog.get_logger().info("sent", recipient="x", ms=12, ok=True, none=None)
    (line,) = out.lines()
    event = json.loads(line)
    assert event.pop("at").endswith("Z")
    assert event == {"event": "sent", "recipient": "x", "ms": 12, "ok": True, "none": None, "level": "info"}


def test_addresses_are_masked_at_info_and_above_but_not_at_debug(out):
    configure("debug", "json", stream=out)
    log = structlog.get_logger()
    for method in (log.debug, log.info, log.warning, log.error):
        method(
            "to ada@example.org", to=["Ada <ada@example.org>"], deep={"ada@example.org": {"x": ("b@c.cz",)}}
        )
    debug, *others = map(json.loads, out.lines())
    assert debug["event"] == "to ada@example.org"
    for event in others:
        assert event["event"] == "to a***@example.org"
        assert event["to"] == ["Ada <a***@example.org>"]
        assert event["deep"] == {"a***@example.org": {"x": ["b***@c.cz"]}}


def test_bodies_and_secrets_are_dropped_at_all_levels(out):
    configure("debug", "json", stream=out)
    structlog.get_logger().debug(
        "x",
        html="<p>",
        variables={"a": 1},
        password="p",
        deep={"token": "t", "kept": 1},
        raw=b"x",
        octets=b"abc",
    )
    event = json.loads(out.lines()[0])
    assert set(event) == {"event", "level", "at", "deep", "octets"}
    assert event["deep"] == {"kept": 1}
    assert event["octets"] == "<3 octets>"


def test_passwords_in_urls_are_masked_at_all_levels(out):
    configure("debug", "json", stream=out)
    structlog.get_logger().debug("connecting", url="postgres://u:pw@h/db", error=ValueError("smtp://u:pw@h"))
    line = out.lines()[0]
    assert "pw" not in line
    assert "postgres://u:***@h/db" in line


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("a@b.cz", "a***@b.cz"),
        ("<ada.l+x@b.cz>,bob@c.cz", "<a***@b.cz>,b***@c.cz"),
        ('"john doe"@b.cz', '"***"@b.cz'),
        ("žofie@b.cz", "ž***@b.cz"),
        ("postgres://u:pw@h/db", "postgres://u:***@h/db"),
        ("no address @ all", "no address @ all"),
        ("@", "@"),
        ("postgres://u:p@ss@h/db", "postgres://u:***@h/db"),
        ("plain", "plain"),
    ],
)
def test_an_address_keeps_its_first_letter_and_its_domain(text, masked):
    assert mask_text(text) == masked


def test_masking_costs_linear_time():
    began = time.process_time()
    mask_text("a" * 1_000_000 + "@" + "b@" * 100_000 + '"' * 100_000)
    assert time.process_time() - began < 5


def test_lines_below_the_level_are_not_written(out):
    configure("warning", "json", stream=out)
    structlog.get_logger().info("no")
    logging.getLogger("uvicorn").info("no")
    structlog.get_logger().warning("yes")
    assert len(out.lines()) == 1


def test_the_standard_library_writes_the_same_lines(out):
    configure("info", "json", stream=out)
    logger = logging.getLogger("some.library")
    logger.info("to %s", "ada@example.org")
    logger.info("100%")
    logger.log(25, "between")
    logger.info("%d", "no number")
    logging.getLogger("uvicorn.error").warning("up")
    try:
        int("ada@example.org")
    except ValueError:
        logger.exception("failed")
    events = [json.loads(line) for line in out.lines()]
    assert [(event["event"], event["level"], event["logger"]) for event in events[:3]] == [
        ("to a***@example.org", "info", "some.library"),
        ("100%", "info", "some.library"),
        ("between", "info", "some.library"),
    ]
    assert events[3]["event"] == "%d ('no number',)"
    assert events[4]["event"] == "up"
    assert events[5]["exception"].endswith("with base 10: 'a***@example.org'")


def test_a_terminal_gets_readable_lines_and_a_pipe_json(out, monkeypatch):
    configure("info", "auto", stream=out)
    structlog.get_logger().info("one")
    monkeypatch.setattr(out, "isatty", lambda: True)
    configure("info", "auto", stream=out)
    structlog.get_logger().info("two", to="ada@example.org")
    one, two = out.lines()
    assert json.loads(one)["event"] == "one"
    assert not two.startswith("{")
    assert "a***@example.org" in two


def test_a_stream_of_text_alone_will_do():
    out = io.StringIO()
    root = logging.getLogger()
    before = root.handlers[:], root.level
    try:
        configure("info", "console", stream=out)
        structlog.get_logger().info("one")
        configure("info", "json", stream=out)
        structlog.get_logger().info("two")
    finally:
        root.handlers[:], level = before
        root.setLevel(level)
        structlog.reset_defaults()
    assert len(out.getvalue().splitlines()) == 2


def test_a_line_that_cannot_be_encoded_is_still_written(out):
    configure("info", "json", stream=out)
    structlog.get_logger().info("half \ud800", big=2**70)
    assert json.loads(out.lines()[0])["event"] == "half ?"


def test_deep_values_are_cut_off_rather_than_followed(out):
    deep = "ada@example.org"
    for _ in range(50):
        deep = [deep]
    configure("info", "json", stream=out)
    structlog.get_logger().info("x", deep=deep)
    assert "ada@" not in out.lines()[0]


def test_a_broken_stream_loses_lines_but_raises_nothing(out):
    configure("info", "json", stream=out)
    log = structlog.get_logger().bind()
    out.buffer.broken = True
    log.info("lost")
    out.buffer.broken = False
    log.info("kept")
    assert [json.loads(line)["event"] for line in out.lines()] == ["kept"]


def test_standard_error_is_the_default(out, monkeypatch):
    monkeypatch.setattr(pgmail_log.sys, "stderr", out)
    configure("error")
    structlog.get_logger().error("x")
    assert len(out.lines()) == 1


def test_a_line_costs_little(out):
    configure("info", "json", stream=out)
    log = structlog.get_logger().bind(worker=7)
    began = time.process_time()
    for _ in range(2_000):
        log.info("sent", recipient="ada@example.org", ms=12, site="example.org", code=250)
    assert (time.process_time() - began) / 2_000 < 500e-6


@pytest.mark.parametrize(
    ("said", "kept"),
    [
        ("<ada@example.org>: Recipient address rejected", "<@>: Recipient address rejected"),
        ('to "ada b"@example.org and bob@example.org, no', "to @ and @, no"),
        ("see https://x.example/?to=ada%40example.org now", "see @ now"),
        ("Client host [192.0.2.1] blocked", "Client host [192.0.2.1] blocked"),
    ],
)
def test_a_remotes_words_go_without_addresses(said, kept):
    assert "ada" not in without_addresses(said)
    assert without_addresses(said).endswith(kept.rpartition("@")[2])

"""A relay's URL, and `make_transport`: what is read, what is refused, and that passwords stay inside."""

from pathlib import Path

import pytest

from pgmail.transport.base import Transport
from pgmail.transport.build import make_transport
from pgmail.transport.capture import CaptureTransport
from pgmail.transport.console import ConsoleTransport
from pgmail.transport.file import FileTransport
from pgmail.transport.relay import SmtpRelay
from pgmail.transport.relay_config import RelayConfig, Timeouts


def test_all_parts_of_a_url_are_read():
    config = RelayConfig.from_url(
        "smtp://us%40er:p%3Ass@mx.example:2587?tls=starttls&verify=false&ca=/ca.pem&helo=me.example"
        "&max_connections=3&max_mails_per_connection=7&idle_seconds=1.5&timeout_scale=0.5"
        "&pipelining=false&chunking=false"
    )
    assert config == RelayConfig(
        host="mx.example",
        port=2587,
        user="us@er",
        password="p:ss",
        tls="starttls",
        verify=False,
        ca="/ca.pem",
        helo="me.example",
        max_connections=3,
        max_mails_per_connection=7,
        idle_seconds=1.5,
        timeout_scale=0.5,
        pipelining=False,
        chunking=False,
    )


@pytest.mark.parametrize(
    ("url", "tls", "verify", "port"),
    [
        ("smtp://h", "opportunistic", False, 25),
        ("smtp://h?tls=none", "none", False, 25),
        ("smtp://h?tls=starttls", "starttls", True, 587),
        ("smtp://h?tls=implicit", "implicit", True, 465),
        ("smtps://h", "implicit", True, 465),
        ("smtps://h:1?verify=false", "implicit", False, 1),
    ],
)
def test_defaults_follow_the_kind_of_tls(url, tls, verify, port):
    config = RelayConfig.from_url(url)
    assert (config.tls, config.verify, config.port) == (tls, verify, port)


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("http://h", "scheme"),
        ("smtp://", "host"),
        ("smtp://[::1", "host"),
        ("smtp://u:hunter2@[h", "host"),
        ("smtp://h/path", "path"),
        ("smtp://h:0", "port"),
        ("smtp://h:99999", "port"),
        ("smtp://h:x", "port"),
        ("smtp://u@h", "password"),
        ("smtp://:hunter2@h", "user"),
        ("smtp://h?tls=maybe", "tls"),
        ("smtps://h?tls=none", "tls"),
        ("smtp://h?verify=yes", "verify"),
        ("smtp://h?verify=true", "verify"),
        ("smtp://h?ca=/x", "ca"),
        ("smtp://h?helo=a%20b", "helo"),
        ("smtp://h?helo=", "helo"),
        ("smtp://h?max_connections=0", "max_connections"),
        ("smtp://h?max_connections=1.5", "max_connections"),
        ("smtp://h?idle_seconds=nan", "idle_seconds"),
        ("smtp://h?pipelining=no", "pipelining"),
        ("smtp://h?chunking=", "chunking"),
        ("smtp://h?colour=red", "colour"),
        ("smtp://h?tls=none&tls=none", "tls"),
    ],
)
def test_a_wrong_part_is_named_and_the_password_is_not_shown(url, part):
    with pytest.raises(ValueError, match=f"^{part}: ") as caught:
        RelayConfig.from_url(url)
    assert "hunter2" not in str(caught.value)


def test_the_password_is_not_shown():
    relay = SmtpRelay.from_url("smtp://user:hunter2@mx.example:26")
    for text in (repr(relay.config), str(relay.config), str(relay.config.__rich_repr__()), relay.name):
        assert "hunter2" not in text
    assert "password='***'" in repr(relay.config)
    assert relay.name == "smtp://mx.example:26"


def test_an_address_is_shown_in_brackets():
    assert RelayConfig.from_url("smtp://[::1]:25").remote == "[::1]:25"


def test_time_limits_are_those_of_rfc_5321_times_the_scale():
    limits = RelayConfig.from_url("smtp://h?timeout_scale=2").timeouts
    assert (limits.greeting, limits.mail, limits.rcpt, limits.data, limits.block, limits.dot) == (
        600, 600, 600, 240, 360, 1200,
    )  # fmt: skip
    assert Timeouts().connect == 30


@pytest.mark.parametrize(
    ("url", "kind"),
    [
        ("smtp://h", SmtpRelay),
        ("smtps://h", SmtpRelay),
        ("file:{folder}/out", FileTransport),
        ("file:out?sync=false", FileTransport),
        ("console:", ConsoleTransport),
        ("console://", ConsoleTransport),
        ("capture:?count=5", CaptureTransport),
    ],
)
def test_a_url_makes_its_transport(url, kind, tmp_path):
    transport = make_transport(url.format(folder=tmp_path))
    assert isinstance(transport, kind)
    assert isinstance(transport, Transport)


def test_a_file_url_may_be_absolute_or_relative():
    assert make_transport("file:///var/out%20box").folder == Path("/var/out box")
    assert make_transport("file:out").folder == Path("out")


@pytest.mark.parametrize(
    ("url", "part"),
    [
        ("mx.example", "scheme"),
        ("ftp://h", "scheme"),
        ("file:", "path"),
        ("file://host/x", "host"),
        ("file:/x?sync=1", "sync"),
        ("file:/x?colour=red", "colour"),
        ("console:x", "path"),
        ("console:?x=1", "x"),
        ("capture:?count=0", "count"),
        ("capture:?count=-1", "count"),
    ],
)
def test_a_wrong_url_names_its_wrong_part(url, part):
    with pytest.raises(ValueError, match=f"^{part}: "):
        make_transport(url)

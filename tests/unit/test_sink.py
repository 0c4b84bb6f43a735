"""The SMTP sink: what its addresses make it do, what it counts, how strict it is, and its own process."""

import asyncio
import base64
import json
import os
import signal
import smtplib
import socket
import sys
from pathlib import Path

import pytest

from pgmail.domain.reply import Phase
from pgmail.errors import SandboxError
from pgmail.sandbox import sink as sink_module
from pgmail.sandbox.sink import Sink
from pgmail.sandbox.sink_parse import message_id_of
from pgmail.sandbox.sink_process import main
from pgmail.sandbox.sink_rules import BEHAVIOURS, Answer, first_word
from tests.fix_smtp import an_envelope


class Talk:
    """A client that says lines as they are."""

    def __init__(self, reader, writer):
        self.reader, self.writer = reader, writer

    async def say(self, *lines: str) -> str:
        """Send lines in one piece; return the last line of the last reply."""
        self.writer.write("".join(f"{line}\r\n" for line in lines).encode())
        for _ in lines:
            reply = await self.reply()
        return reply

    async def reply(self) -> str:
        while True:
            line = (await asyncio.wait_for(self.reader.readline(), 5)).decode().rstrip()
            if line[3:4] != "-":
                return line


@pytest.fixture
async def talk():
    """Open a connection and read its greeting: `client = await talk(sink.port)`."""
    writers = []

    async def start(port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writers.append(writer)
        client = Talk(reader, writer)
        assert (await client.reply()).startswith("220 ")
        return client

    yield start
    for writer in writers:
        writer.close()


@pytest.mark.parametrize(
    ("word", "phase", "code", "enhanced", "stored"),
    [
        ("ada", Phase.DOT, 250, "2.0.0", 1),
        ("deferonce", Phase.DOT, 451, "4.7.1", 0),
        ("defer", Phase.RCPT, 451, "4.7.500", 0),
        ("bounce", Phase.RCPT, 550, "5.1.1", 0),
        ("full", Phase.RCPT, 452, "4.2.2", 0),
        ("blocked", Phase.DATA, 550, "5.7.1", 0),
        ("drop", Phase.DOT, None, None, 1),
        ("dropbefore", Phase.DOT, None, None, 0),
        ("slow", Phase.DOT, 250, "2.0.0", 1),
        ("reset", Phase.RCPT, None, None, 0),
    ],
)
async def test_the_first_word_of_the_address_decides(
    *, sink, open_relay, word, phase, code, enhanced, stored
):
    result = await open_relay(sink.port).deliver(an_envelope(f"{word}.ada@example.org"))
    assert result.phase is phase
    if code is None:
        assert result.reply is None
    else:
        assert (result.reply.code, result.reply.enhanced) == (code, enhanced)
    assert sink.total == stored
    assert word == "ada" or word in BEHAVIOURS


async def test_greylisting_ends_with_the_second_try_of_the_same_mail(sink, open_relay):
    relay = open_relay(sink.port)
    codes = [
        (await relay.deliver(an_envelope("deferonce.a@example.org", id=name))).reply.code
        for name in ("1@x", "1@x", "2@x", "2@x", "2@x")
    ]
    assert codes == [451, 250, 451, 250, 250]
    assert sink.by_message_id == {"1@x": 1, "2@x": 2}
    assert sink.by_recipient["2@x", "deferonce.a@example.org"] == 2


async def test_a_busy_sender_is_told_421(sink, open_relay):
    result = await open_relay(sink.port).deliver(an_envelope(sender="busy@example.com"))
    assert (result.phase, result.reply.code) == (Phase.MAIL, 421)


def test_the_first_word_is_the_local_part_up_to_its_dot():
    assert [first_word(a) for a in ("Bounce.a@b.c", "bounce@b.c", "x", "")] == ["bounce", "bounce", "x", ""]


async def test_another_client_agrees_with_it(sink):
    """smtplib, with several recipients in one mail."""
    mail = b"Subject: Hi\r\nMESSAGE-id:\r\n <odd@x>\r\n\r\n.dot\r\n"
    recipients = ["b@x.example", "bounce@x.example", "c@x.example"]

    def send():
        with smtplib.SMTP("127.0.0.1", sink.port) as client:
            client.noop()
            return client.sendmail("a@x.example", recipients, mail)

    refused = await asyncio.to_thread(send)
    assert list(refused) == ["bounce@x.example"]
    assert refused["bounce@x.example"][0] == 550
    assert [stored.recipient for stored in sink.accepted] == ["b@x.example", "c@x.example"]
    assert sink.by_message_id == {"odd@x": 2}
    assert sink.accepted[0].source == mail


@pytest.mark.parametrize(
    ("source", "found"),
    [
        (b"A: b\r\nMessage-ID: <1@x>\r\n\r\nText", "1@x"),
        (b"Message-ID: <1@x>\r\n\r\n", "1@x"),
        (b"message-id:\r\n <1@x>\r\n\r\n", "1@x"),
        (b"A: b\r\n\r\nMessage-ID: <1@x>\r\n", ""),
        (b"Message-ID: <1@x>\r\n", "1@x"),
        (b"", ""),
    ],
)
def test_the_message_id_is_found_in_the_header_only(source, found):
    assert message_id_of(source) == found


async def test_wait_for_ends_with_the_mail_or_says_how_many_came(sink, open_relay):
    relay = open_relay(sink.port)
    waiting = asyncio.create_task(sink.wait_for(2))
    await relay.deliver(an_envelope())
    assert not waiting.done()
    await relay.deliver(an_envelope())
    await waiting
    await sink.wait_for(2)
    with pytest.raises(TimeoutError, match="2 of 3 mails"):
        await sink.wait_for(3, seconds=0.01)


async def test_sources_are_kept_within_bounds_and_counts_go_on(open_sink, open_relay, tmp_path, monkeypatch):
    monkeypatch.setattr(sink_module, "RECORDS", 3)
    sink = await open_sink(keep_mails=2, keep_bytes=1000, folder=tmp_path / "box")
    relay = open_relay(sink.port)
    for size in (10, 2000, 10, 10):
        await relay.deliver(an_envelope(lines=b"x" * size + b"\r\n"))
    assert [stored.source is not None for stored in sink.accepted] == [True, False, True]
    assert (sink.total, len(list((tmp_path / "box").iterdir()))) == (4, 4)


async def test_the_report_has_one_line_for_each_mail_also_for_one_not_acknowledged(
    open_sink, open_relay, tmp_path
):
    report = tmp_path / "report"
    for _ in range(2):
        sink = await open_sink(report=report)
        relay = open_relay(sink.port)
        await relay.deliver(an_envelope(id="1@x"))
        await relay.deliver(an_envelope("drop@example.org", id="2@x"))
        await relay.deliver(an_envelope("bounce@example.org", id="3@x"))
        await sink.stop()
    lines = [json.loads(line) for line in report.read_text().splitlines()]
    assert [(line["message_id"], line["replied"]) for line in lines] == [("1@x", True), ("2@x", False)] * 2
    assert lines[0].keys() == {"message_id", "sender", "recipient", "at", "bytes", "replied"}


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        (["MAIL FROM:<a@b>"], "503 5.5.1"),
        (["EHLO x", "RCPT TO:<a@b>"], "503 5.5.1"),
        (["EHLO x", "DATA"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@b>", "DATA"], "554 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@b>", "MAIL FROM:<a@b>"], "503 5.5.1"),
        (["EHLO x", "MAIL FROM:<a@b>", "RSET", "RCPT TO:<a@b>"], "503 5.5.1"),
        (["EHLO x", "MAIL a@b"], "501 5.1.7"),
        (["EHLO x", "MAIL FROM:<a@b> SIZE=99999999"], "552 5.3.4"),
        (["EHLO x", "MAIL FROM:<a@b> SIZE=x BODY=7BIT"], "250 2.1.0"),
        (["EHLO x", "MAIL FROM:<a@b>", "RCPT TO:<>"], "501 5.1.3"),
        (["EHLO x", "MAIL FROM:<>", 'RCPT TO:<"a>b"@c>'], "250 2.1.5"),
        (["HELO x", "MAIL FROM:<a@b>"], "250 2.1.0"),
        (["NOOP"], "250 2.0.0"),
        (["TURN"], "500 5.5.1"),
        (["x" * 5000], "500 5.5.6"),
        (["STARTTLS"], "502 5.5.1"),
        (["AUTH PLAIN"], "502 5.5.1"),
        (["QUIT"], "221 2.0.0"),
    ],
)
async def test_commands_out_of_order_or_shape_are_refused(sink, talk, lines, code):
    assert (await (await talk(sink.port)).say(*lines)).startswith(code)


async def test_a_line_without_end_is_refused(sink, talk):
    client = await talk(sink.port)
    client.writer.write(b"x" * 100_000)
    assert (await client.reply()).startswith("500 5.5.6")


def _word(text: str) -> str:
    return base64.b64encode(text.encode()).decode()


@pytest.mark.parametrize(
    ("lines", "code"),
    [
        ([f"AUTH PLAIN {_word(chr(0) + 'u' + chr(0) + 'p')}"], "235"),
        (["AUTH PLAIN", _word("\0u\0p")], "235"),
        (["AUTH LOGIN", _word("u"), _word("p")], "235"),
        ([f"auth login {_word('u')}", _word("p")], "235"),
        ([f"AUTH LOGIN {_word('u')}", _word("wrong")], "535"),
        (["AUTH PLAIN", "*"], "501 5.7.0"),
        (["AUTH PLAIN !"], "501 5.5.2"),
        (["AUTH CRAM-MD5"], "504"),
        (["AUTH PLAIN", _word("\0u\0p"), "AUTH PLAIN"], "503"),
        (["MAIL FROM:<a@b>"], "530 5.7.0"),
    ],
)
async def test_the_login_is_answered_as_rfc_4954_says(open_sink, talk, lines, code):
    sink = await open_sink(user="u", password="p")
    client = await talk(sink.port)
    assert (await client.say("EHLO x", *lines)).startswith(code)


async def test_a_mail_too_big_is_refused_and_the_connection_goes_on(open_sink, talk):
    sink = await open_sink(max_bytes=1000)
    client = await talk(sink.port)
    await client.say("EHLO x")
    for size in (1100, 5000):
        assert (await client.say("MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")).startswith("354")
        for _ in range(size // 100):
            client.writer.write(b"y" * 98 + b"\r\n")
            await client.writer.drain()
        assert (await client.say(".")).startswith("552 5.3.4")
    assert sink.total == 0
    assert (await client.say("NOOP")).startswith("250")


async def test_only_crlf_dot_crlf_ends_a_mail(sink, talk):
    client = await talk(sink.port)
    await client.say("EHLO x", "MAIL FROM:<a@b>", "RCPT TO:<c@d>", "DATA")
    client.writer.write(b"a\n.\nb\r\n.\nc\r\n.")
    client.writer.write(b"\r\n")
    assert (await client.reply()).startswith("250 2.0.0")
    assert sink.accepted[0].source == b"a\n.\nb\r\n\nc\r\n"


async def test_a_rule_can_slow_down_each_step(open_sink, open_relay):
    slow = {Phase.GREETING: "220 x", Phase.EHLO: "250 x", Phase.MAIL: "250 x", Phase.DATA: "354 x"}

    def rule(asked):
        if asked.phase is Phase.BODY:
            return Answer(delay_seconds=0.01)
        text = slow.get(asked.phase)
        return text and Answer(text=text, delay_seconds=0.01)

    sink = await open_sink(rule=rule)
    assert (await open_relay(sink.port).deliver(an_envelope())).accepted


async def test_stopping_ends_a_connection_in_a_tarpit(open_sink):
    asked = asyncio.Event()

    def rule(_asked):
        asked.set()
        return Answer(text="220 x", delay_seconds=60)

    sink = await open_sink(rule=rule)
    reader, writer = await asyncio.open_connection("127.0.0.1", sink.port)
    await asyncio.wait_for(asked.wait(), 5)
    await sink.stop()
    await sink.stop()
    assert await reader.read() == b""
    writer.close()


async def test_a_client_that_gives_up_tls_does_not_disturb(open_sink, open_relay, server_tls, talk):
    sink = await open_sink(tls=server_tls)
    client = await talk(sink.port)
    assert (await client.say("EHLO x", "STARTTLS")).startswith("220")
    client.writer.write(b"not TLS at all\r\n" * 10)
    await client.reader.read()
    assert (await open_relay(sink.port).deliver(an_envelope())).tls
    with pytest.raises(SandboxError):
        Sink().tls_context()


async def test_a_port_that_is_taken_is_a_clear_error(sink):
    with pytest.raises(SandboxError, match="cannot start on"):
        await Sink(port=sink.port).start()


# --- the process ---


async def _start(*options):
    process = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "pgmail.sandbox.sink", *options,
        stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
    )  # fmt: skip
    return process, json.loads(await process.stdout.readline())


@pytest.mark.parametrize("end", ["terminate", "stdin"])
async def test_as_a_process_it_reports_and_ends_with_its_parent(open_relay, tmp_path, end):
    report = tmp_path / "report"
    process, ready = await _start("--report", str(report), "--folder", str(tmp_path / "box"))
    assert ready["pid"] == process.pid
    relay = open_relay(ready["port"])
    assert (await relay.deliver(an_envelope())).accepted
    if end == "terminate":
        process.terminate()
    process.stdin.close()
    _, errors = await asyncio.wait_for(process.communicate(), 20)
    assert (process.returncode, errors) == (0, b"")
    assert json.loads(report.read_text())["message_id"] == "one@example.com"
    assert len(list((tmp_path / "box").iterdir())) == 1


def _run_main(monkeypatch, arguments, stdin):
    monkeypatch.setattr(sys, "stdin", stdin)
    return main(arguments)


def test_the_process_ends_when_its_input_ends(monkeypatch, capsys, certificate_authority, tmp_path):
    certificate = tmp_path / "cert.pem"
    certificate_authority.issue_cert("127.0.0.1").private_key_and_cert_chain_pem.write_to_path(certificate)
    reading, writing = os.pipe()
    os.write(writing, b"words are ignored")
    os.close(writing)
    with os.fdopen(reading) as stdin:
        assert _run_main(monkeypatch, ["--certificate", str(certificate)], stdin) == 0
    assert json.loads(capsys.readouterr().out)["port"] > 0


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_the_process_ends_on_a_signal_and_dev_null_does_not_end_it(monkeypatch, capsys, number):
    usual = Sink.start

    async def start_and_signal(self):
        await usual(self)
        os.kill(os.getpid(), number)

    monkeypatch.setattr(Sink, "start", start_and_signal)
    with Path(os.devnull).open() as stdin:
        assert _run_main(monkeypatch, [], stdin) == 0
    assert _run_main(monkeypatch, [], None) == 0


def test_a_process_that_cannot_start_says_why(capsys):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        assert main(["--port", str(taken.getsockname()[1])]) == 1
    assert "cannot start" in capsys.readouterr().err

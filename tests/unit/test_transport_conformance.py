"""What every transport promises (`transport.base`), run against each."""

import asyncio
import contextlib
import io
import re

import pytest

from pgmail.domain.reply import Phase
from pgmail.transport.base import Transport, ready
from pgmail.transport.capture import CaptureTransport
from pgmail.transport.console import ConsoleTransport, show
from pgmail.transport.file import FileTransport
from pgmail.transport.relay import SmtpRelay
from tests.fix_smtp import an_envelope


class Box:
    """A transport and how to see what arrived: a list of (sender, recipient, source)."""

    def __init__(self, transport, arrived, *, keeps_source=True):
        self.transport = transport
        self.arrived = arrived
        self.keeps_source = keeps_source


def _relay(sink):
    return Box(
        SmtpRelay.from_url(sink.url), lambda: [(m.sender, m.recipient, m.source) for m in sink.accepted]
    )


def _file(folder):
    def arrived():
        found = []
        for path in sorted(folder.glob("*.eml")):
            head, rest = re.fullmatch(
                rb"(Return-Path: <.*?>\r\nDelivered-To: .*?\r\n)(.*)", path.read_bytes(), re.DOTALL
            ).groups()
            sender, recipient = re.findall(r"Return-Path: <(.*)>\r\nDelivered-To: (.*)\r\n", head.decode())[0]
            found.append((sender, recipient, rest))
        return found

    return Box(FileTransport(folder), arrived)


def _console():
    stream = io.StringIO()

    def arrived():
        return [
            (sender, recipient, None)
            for sender, recipient in re.findall(r"from <(.*)> to <(.*)>, \d+ octets", stream.getvalue())
        ]

    return Box(ConsoleTransport(stream), arrived, keeps_source=False)


def _capture():
    transport = CaptureTransport()
    return Box(
        transport,
        lambda: [(m.envelope.sender, m.envelope.recipient, m.envelope.body) for m in transport.mails],
    )


@pytest.fixture(params=["relay", "file", "console", "capture"])
async def box(request, sink, tmp_path):
    made = {
        "relay": lambda: _relay(sink),
        "file": lambda: _file(tmp_path / "out" / "box"),
        "console": _console,
        "capture": _capture,
    }[request.param]()
    yield made
    await made.transport.close()


MAILS = {
    "plain": an_envelope(),
    "null sender": an_envelope(sender=""),
    "dots": an_envelope(lines=b".\r\n..\r\n.a\r\n\r\n.\r\n"),
    "dot first": an_envelope(body=b".\r\nx\r\n"),
    "no text": an_envelope(lines=b""),
    "nothing": an_envelope(body=b""),
    "eight bits": an_envelope(lines="Grüße\r\n".encode(), eightbit=True),
    "internationalised": an_envelope("jörg@example.org", smtputf8=True, eightbit=True),
    "quoted": an_envelope('"a b"@example.org'),
    "big": an_envelope(lines=b".\r\n" + (b"x" * 98 + b"\r\n") * 160_000),
}


@pytest.mark.parametrize("mail", MAILS.values(), ids=MAILS)
async def test_a_mail_arrives_as_it_was(box, mail):
    result = await box.transport.deliver(mail)
    assert result.accepted
    assert not result.in_doubt
    assert result.ms >= 0
    source = mail.body if box.keeps_source else None
    assert box.arrived() == [(mail.sender, mail.recipient, source)]


async def test_many_mails_at_once_arrive_once_each(box):
    mails = [an_envelope(f"a{n}@example.org", id=f"{n}@x") for n in range(30)]
    results = await asyncio.gather(*(box.transport.deliver(mail) for mail in mails))
    assert all(result.accepted for result in results)
    assert sorted(recipient for _, recipient, _ in box.arrived()) == sorted(mail.recipient for mail in mails)


async def test_on_dot_comes_before_the_mail_is_there_and_its_error_keeps_it_away(box):
    seen = []

    async def look():
        seen.append(len(box.arrived()))

    async def fail():
        raise OSError("the database is away")

    assert (await box.transport.deliver(an_envelope(), look)).accepted
    with pytest.raises(OSError, match="database"):
        await box.transport.deliver(an_envelope(), fail)
    assert (seen, len(box.arrived())) == ([0], 1)


async def test_a_probe_says_ready_and_leaves_no_mail(box):
    result = await box.transport.probe()
    assert ready(result)
    assert not result.accepted
    assert box.arrived() == []


async def test_closing_twice_is_fine_and_use_afterwards_is_an_error(box):
    assert isinstance(box.transport, Transport)
    assert box.transport.name
    await box.transport.close()
    await box.transport.close()
    with pytest.raises(RuntimeError, match="is closed"):
        await box.transport.deliver(an_envelope())
    with pytest.raises(RuntimeError, match="is closed"):
        await box.transport.probe()


# --- what each promises beyond that ---


async def test_a_folder_that_cannot_be_made_is_a_result(tmp_path):
    (tmp_path / "file").write_text("")
    transport = FileTransport(tmp_path / "file" / "box")
    result = await transport.deliver(an_envelope())
    assert (result.phase, result.reply) == (Phase.CONNECT, None)
    assert "cannot write to" in result.error
    assert not ready(await transport.probe())


async def test_a_file_is_never_seen_half_written(tmp_path):
    transport = FileTransport(tmp_path, sync=False)

    async def gone():
        next(path for path in tmp_path.iterdir() if path.name.startswith(".")).unlink()

    result = await transport.deliver(an_envelope(), gone)
    assert (result.phase, result.reply) == (Phase.BODY, None)
    assert list(tmp_path.iterdir()) == []
    assert (await transport.deliver(an_envelope())).accepted
    (path,) = tmp_path.iterdir()
    assert path.suffix == ".eml"


async def test_a_full_disk_is_a_fault_of_the_body_and_leaves_nothing(tmp_path, monkeypatch):
    def full(_descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pgmail.transport.file.os.fsync", full)
    result = await FileTransport(tmp_path).deliver(an_envelope())
    assert (result.phase, result.error) == (
        Phase.BODY,
        f"cannot write to {tmp_path}: No space left on device",
    )
    assert list(tmp_path.iterdir()) == []


async def test_an_address_cannot_add_header_lines_to_the_file(tmp_path):
    await FileTransport(tmp_path).deliver(an_envelope("a@b.example\r\nX-Evil: 1"))
    (path,) = tmp_path.iterdir()
    assert b"\r\nDelivered-To: a@b.exampleX-Evil: 1\r\n" in path.read_bytes()


async def test_a_closed_terminal_is_a_result_and_control_characters_do_not_reach_it(capsys):
    stream = io.StringIO()
    stream.close()
    result = await ConsoleTransport(stream).deliver(an_envelope())
    assert (result.phase, result.reply) == (Phase.BODY, None)
    assert "\x1b" not in show(an_envelope(body=b"Subject: \x1b[2J\r\n\r\n"))
    assert (await ConsoleTransport().deliver(an_envelope(lines=b"the text\r\n"))).accepted
    printed = capsys.readouterr().out
    assert "Subject: Hi" in printed
    assert "the text" not in printed


async def test_memory_is_bounded_by_count_and_by_octets():
    transport = CaptureTransport(count=3, limit_bytes=1000)
    for n in range(5):
        await transport.deliver(an_envelope(f"a{n}@example.org"))
    assert [m.envelope.recipient[:2] for m in transport.mails] == ["a2", "a3", "a4"]
    await transport.deliver(an_envelope("big@example.org", lines=b"x" * 5000))
    assert [m.envelope.recipient for m in transport.mails] == ["big@example.org"]
    assert transport.total == 6
    transport.clear()
    assert (transport.mails, transport.total) == ([], 6)
    with pytest.raises(ValueError, match="count"):
        CaptureTransport(count=0)


async def test_a_test_can_wait_for_captured_mail():
    transport = CaptureTransport()
    waiting = asyncio.create_task(transport.wait_for(2))
    await transport.deliver(an_envelope())
    assert not waiting.done()
    await transport.deliver(an_envelope())
    await waiting
    await transport.wait_for(1)
    with pytest.raises(TimeoutError):
        await transport.wait_for(3, seconds=0.01)
    with contextlib.suppress(TimeoutError):
        await transport.wait_for(4, seconds=0)

"""A process apart: what a worker's `Ward` starts, gives one mail at a time, and watches.

Orders come on standard input, answers go to standard output: four octets of length, then MessagePack. It knows
no database and no other mail, and keeps nothing from one order to the next but a few compiled templates: a suspect of
a large mailing, whose template takes long to compile, is one of many.

What can go wrong here is what it is for. It ends with its worker: at the end of its input, at once, and where a
rendering that never ends keeps it from reading that, by `die_with_parent`.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import os
import re
import resource
import signal
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, cast

import msgspec

from pgmail.config import CONFIG_ENV
from pgmail.config_rows import PREFIX
from pgmail.domain.mail import Part
from pgmail.domain.reply import Envelope, Result
from pgmail.errors import TemplateFault
from pgmail.processes import die_with_parent
from pgmail.render.cache import TemplateCache
from pgmail.render.mime import Wire
from pgmail.render.templates import Bundle, compile_bundle
from pgmail.store.work import MessageRow, RecipientRow
from pgmail.transport.base import TooLate, Transport
from pgmail.transport.relay import SmtpRelay
from pgmail.worker.content import Library, Message

if TYPE_CHECKING:
    from pgmail.config import Settings
    from pgmail.store.database import Database


class Render(msgspec.Struct, tag=True):
    """Make the bytes of one mail; without a bundle its template is its own."""

    message: MessageRow
    message_id_domain: str
    person: RecipientRow
    parts: tuple[Part, ...]
    bundle: Bundle | None
    eightbit: bool
    subject_prefix: str = ""


class Deliver(msgspec.Struct, tag=True):
    """Hand one envelope to a relay, by its name; asks before the final dot."""

    relay: str
    envelope: Envelope


class Go(msgspec.Struct, tag=True):
    """The answer to `Dot`: the final dot may go out."""


class Ready(msgspec.Struct, tag=True):
    """The process has started."""


class Made(msgspec.Struct, tag=True):
    """The bytes of a mail."""

    wire: Wire


class Faulty(msgspec.Struct, tag=True):
    """Its template has a fault, as of `TemplateFault`."""

    kind: str
    part: str
    message: str
    line: int | None


class Failed(msgspec.Struct, tag=True):
    """Something raised what nobody expected."""

    error: str


class Dot(msgspec.Struct, tag=True):
    """The final dot is next: wait for `Go`."""


class Late(msgspec.Struct, tag=True):
    """The moment of a mail passed; nothing of it was said. The connection stays for the next order."""


class Delivered(msgspec.Struct, tag=True):
    """What came of a delivery."""

    result: Result


_ENVIRON = re.compile(
    r"PATH|HOME|LANG(UAGE)?|LC_[A-Z]+|TZ|TMPDIR|VIRTUAL_ENV|PYTHON[A-Z]+|LD_LIBRARY_PATH|SSL_CERT_(FILE|DIR)"
)
NEEDED = ("relay_url", "relay_urls", "helo_name", "smtp_timeout_scale", "worker_concurrency")
"""Settings that relays are made of: all that a process apart has of them."""


def environ_of(settings: Settings, environ: Mapping[str, str]) -> dict[str, str]:
    """The environment of a process apart, in which strangers' templates run: no database, no keys, no other secret.

    `environ` is the worker's. The file of settings is not read there, since it may hold all of them.
    """
    given = {name: value for name, value in environ.items() if _ENVIRON.fullmatch(name)}
    values = {f"{PREFIX}{name.upper()}": str(getattr(settings, name)) for name in NEEDED}
    return given | values | {CONFIG_ENV: os.devnull}


Order = Render | Deliver | Go
Answer = Ready | Made | Faulty | Failed | Dot | Late | Delivered
NICENESS = 10  # what takes long takes the processor from no other mail
MEMORY_BYTES = (
    3 * 1024**3
)  # of addresses, of which a process at rest has a tenth; one mail must not take the host
KEPT_TEMPLATES, KEPT_BYTES = 20, 8 * 1024 * 1024
_encode = msgspec.msgpack.Encoder().encode
_read_order = msgspec.msgpack.Decoder(Order).decode
_answers: msgspec.msgpack.Decoder[Answer] = msgspec.msgpack.Decoder(Answer)


def serve(make_transports: Callable[[], Mapping[str, Transport]]) -> None:
    """Be a process apart: render and deliver what comes on standard input until it ends."""
    die_with_parent(seconds=0, by=signal.SIGKILL)
    with contextlib.suppress(OSError):
        os.nice(NICENESS)
    with contextlib.suppress(ValueError, OSError):  # a lower limit holds already
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY_BYTES, resource.getrlimit(resource.RLIMIT_AS)[1]))
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # its worker decides when it ends
    # Answers have the pipe for themselves: what else is printed goes where errors go.
    pipe = os.dup(1)
    os.dup2(2, 1)
    with os.fdopen(pipe, "wb", buffering=0) as answers, contextlib.suppress(BrokenPipeError):
        asyncio.run(_serve(make_transports, lambda answer: _write(answers.fileno(), answer)))


async def _serve(
    make_transports: Callable[[], Mapping[str, Transport]], answer: Callable[[Answer], None]
) -> None:
    orders: asyncio.Queue[Order] = asyncio.Queue()
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader()
    await loop.connect_read_pipe(lambda: asyncio.StreamReaderProtocol(reader), sys.stdin)

    async def listen() -> None:
        try:
            while True:
                size = await reader.readexactly(4)
                orders.put_nowait(_read_order(await reader.readexactly(int.from_bytes(size))))
        except asyncio.IncompleteReadError:
            os._exit(0)  # the worker is gone or done; what is on the wire is in doubt already

    render = Renderer().render
    listening = loop.create_task(listen())
    transports: Mapping[str, Transport] | None = None
    answer(Ready())
    while not listening.done():
        order = await orders.get()
        try:
            if isinstance(order, Render):
                answer(render(order))
            elif isinstance(order, Deliver):
                if transports is None:
                    transports = make_transports()
                said = await _deliver(order, transports, orders, answer)
                if not isinstance(said, Late):
                    for transport in transports.values():
                        await transport.close()
                    transports = None
                answer(said)
        except BrokenPipeError:
            return
        except MemoryError:
            answer(Faulty("too_big", "mail", "it takes more memory than one mail may", None))
        except Exception as error:  # noqa: BLE001 - the worker settles it, in these words
            transports = None
            answer(Failed(f"{type(error).__name__}: {error}"))


class Renderer:
    """Makes mail from what comes with an order, and keeps templates that it compiled."""

    def __init__(self) -> None:
        self._compiled = TemplateCache(KEPT_TEMPLATES, KEPT_BYTES)
        # Nothing is left to fetch: it needs no database. Templates of messages' own are kept in there.
        self._library = Library(cast("Database", None), "", TemplateCache(KEPT_TEMPLATES, KEPT_BYTES))

    def render(self, order: Render) -> Answer:
        """Make one mail."""
        message = Message(order.message, order.message_id_domain)
        message.parts = order.parts
        bundle = order.bundle
        try:
            if bundle is not None:
                # By what is in it: two tenants may have templates of one name.
                digest = hashlib.blake2b(_encode(bundle), digest_size=16).digest()
                message.compiled = self._compiled.get(digest, lambda: compile_bundle(bundle))
            self._library.subject_prefix = order.subject_prefix
            made = self._library.wire_now(0, message, order.person, eightbit=order.eightbit)
        except TemplateFault as fault:
            return Faulty(fault.kind, fault.part, fault.message, fault.line)
        assert made is not None  # noqa: S101 - all that it needs came with the order
        return Made(made)


async def _deliver(
    order: Deliver,
    transports: Mapping[str, Transport],
    orders: asyncio.Queue[Order],
    answer: Callable[[Answer], None],
) -> Answer:
    async def ask() -> None:
        answer(Dot())
        await orders.get()

    transport = transports[order.relay]
    # First a connection: none is left of the mail before, and to open one may always take longer than a moment lasts.
    if isinstance(transport, SmtpRelay) and (refused := await transport.warm()) is not None:
        return Delivered(refused)
    try:
        return Delivered(await transport.deliver(order.envelope, ask))
    except TooLate:
        return Late()


def read_answer(body: bytes) -> Answer:
    """An answer as it came through the pipe."""
    return _answers.decode(body)


def framed(value: Order | Answer) -> bytes:
    """A value as it goes through a pipe."""
    body = _encode(value)
    return len(body).to_bytes(4) + body


def _write(fd: int, value: Answer) -> None:
    left = memoryview(framed(value))
    while left:
        left = left[os.write(fd, left) :]

"""Processes apart, for mail that a worker died with: what crashes them is guilty by itself, and nothing else dies.

A mail that some worker held when it died is a suspect, with all others that this worker held; most are innocent,
and a worker may die for reasons of its own any number of times. So nothing is counted: a suspect is rendered in
a process that holds this one mail, and one that was held by two dead workers is sent from there, too. If that
process ends or hangs over it, the mail is what did it. Innocents lose some milliseconds.

    worker     Ward       one pipe each way; up to `MOST` processes, started when there is a suspect
    process    serve      reads an order, answers, reads the next; ends with its worker

What can go wrong: the process is killed by somebody else. A rendering is therefore tried in a second one before
the mail is blamed; a delivery is not, since the mail may have been sent. One that cannot even start blames
nobody: `WardAway`, and the mail waits.
"""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import time
from collections.abc import Mapping, Sequence

import structlog

from pgmail.domain.reply import Envelope, Result
from pgmail.errors import PgmailError, TemplateFault
from pgmail.processes import LIFELINE
from pgmail.render.mime import Wire
from pgmail.transport.base import OnDot, TooLate, Transport
from pgmail.transport.relay import SmtpRelay
from pgmail.worker.apart import (
    Answer,
    Deliver,
    Delivered,
    Dot,
    Failed,
    Faulty,
    Go,
    Late,
    Made,
    Order,
    Render,
    framed,
    read_answer,
)

_log = structlog.get_logger()

MOST = 4
START_SECONDS = 60.0
RENDER_SECONDS = 60.0
DELIVER_SECONDS = 1_800.0  # a transport has time limits of its own; this one is for a transport that hangs
IDLE_SECONDS = 15.0
OPEN_SECONDS = 5.0  # that a connection made apart waits for the next moment of a mail under a rate


class Crashed(PgmailError):  # noqa: N818 - a state of affairs
    """The process that had this mail and no other ended or hung over it."""


class WardAway(PgmailError):  # noqa: N818 - a state of affairs
    """No process could be started."""


class _Process:
    """One process apart, and the pipes to it."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        self.process = process
        self.retire: asyncio.TimerHandle | None = None
        self.has = contextlib.AsyncExitStack()  # while it keeps a connection: its places

    async def ask(self, order: Order, seconds: float) -> Answer:
        """Give an order and wait for its answer. Raises Crashed; the process has ended then."""
        assert self.process.stdin is not None  # noqa: S101 - made with pipes
        try:
            with contextlib.suppress(ConnectionError):  # the end of what it answers tells
                self.process.stdin.write(framed(order))
            return await self.answer(seconds)
        except BaseException:
            await self.end()
            raise

    async def answer(self, seconds: float) -> Answer:
        """Wait for an answer. Raises Crashed."""
        assert self.process.stdout is not None  # noqa: S101 - made with pipes
        try:
            async with asyncio.timeout(seconds):
                size = await self.process.stdout.readexactly(4)
                return read_answer(await self.process.stdout.readexactly(int.from_bytes(size)))
        except TimeoutError:
            raise Crashed(f"was at it for {seconds:g} s without an end") from None
        except (asyncio.IncompleteReadError, ConnectionError):
            code = await self.process.wait()
            raise Crashed(_ended(code)) from None

    async def end(self) -> None:
        """End it at once."""
        with contextlib.suppress(ProcessLookupError):
            self.process.kill()
        await self.close()

    async def close(self) -> None:
        """Let it end, or end it."""
        if self.process.stdin is not None:
            self.process.stdin.close()
        try:
            async with asyncio.timeout(2):
                await self.process.wait()
        except TimeoutError:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()
            await self.process.wait()


class Ward:
    """The processes apart of one worker. `argv` starts one, which calls `serve`."""

    def __init__(self, argv: Sequence[str], environ: Mapping[str, str] | None = None) -> None:
        """`environ` is their whole environment; None is this process's own."""
        self._argv = list(argv)
        self._environ = environ
        self._idle: list[_Process] = []
        self._open: dict[str, _Process] = {}  # by relay: one that keeps a connection, for the next mail there
        self._places = asyncio.Semaphore(MOST)
        self._ending: set[asyncio.Task[None]] = set()
        self._lifeline: tuple[int, int] | None = None

    async def render(self, order: Render) -> Wire:
        """Make a mail's bytes. Raises TemplateFault, Crashed, WardAway, and RuntimeError for what else was raised."""
        try:
            answer = await self._ask(order)
        except Crashed as crashed:
            _log.warning("ward.crashed", message=str(order.message.id), error=str(crashed), again=True)
            answer = await self._ask(order)
        match answer:
            case Made(wire=wire):
                return wire
            case Faulty(kind=kind, part=part, message=message, line=line):
                raise TemplateFault(kind, part, message, line)
            case Failed(error=error):
                raise RuntimeError(error)
            case _:
                raise Crashed(f"answered {type(answer).__name__}")

    async def deliver(
        self, relay: str, envelope: Envelope, on_dot: OnDot, transport: Transport | None = None
    ) -> Result:
        """Hand an envelope over, as a transport's `deliver`; `transport` is the worker's own to the same relay.

        Raises Crashed: if `on_dot` was over by then, the mail may have been sent. Raises TooLate where the envelope's
        moment passed before there were a process and a connection to be had; both stay for the next try.
        """
        async with contextlib.AsyncExitStack() as places:
            process = await self._take_open(relay, places)
            if process is None:
                await places.enter_async_context(self._places)
                await places.enter_async_context(_place(transport, envelope.not_after))
                process = await self._take()
                if envelope.not_after is not None and time.monotonic() > envelope.not_after:
                    self._put_back(process)
                    raise TooLate
            answer = await process.ask(Deliver(relay, envelope), DELIVER_SECONDS)
            if isinstance(answer, Late):
                await self._keep_open(relay, process, places)
                raise TooLate
            if isinstance(answer, Dot):
                try:
                    await on_dot()
                except BaseException:
                    await process.end()  # before the dot: nothing was sent
                    raise
                answer = await process.ask(Go(), DELIVER_SECONDS)
            self._put_back(process)
        if isinstance(answer, Delivered):
            return answer.result
        raise RuntimeError(answer.error if isinstance(answer, Failed) else type(answer).__name__)

    async def close(self) -> None:
        """End all processes."""
        processes, self._idle = [*self._idle, *self._open.values()], []
        self._open.clear()
        for process in processes:
            if process.retire is not None:
                process.retire.cancel()
        await asyncio.gather(*(_end(process) for process in processes), *self._ending)
        if self._lifeline is not None:
            for end in self._lifeline:
                os.close(end)
            self._lifeline = None

    async def _ask(self, order: Render) -> Answer:
        async with self._places:
            process = await self._take()
            answer = await process.ask(order, RENDER_SECONDS)
            self._put_back(process)
            return answer

    async def _take(self) -> _Process:
        while self._idle:
            process = self._idle.pop()
            if process.retire is not None:
                process.retire.cancel()
            if process.process.returncode is None:
                return process
        if self._lifeline is None:
            self._lifeline = (
                os.pipe()
            )  # nobody else has the other end: it ends with this process, however that ends
        lifeline = self._lifeline[0]
        try:
            # Of a session of its own: who interrupts a worker at a terminal must not seem to be a crash.
            made = await asyncio.create_subprocess_exec(
                *self._argv,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                start_new_session=True,
                env=dict(os.environ if self._environ is None else self._environ)
                | {LIFELINE: f"{lifeline}:{os.getpid()}"},
                pass_fds=(lifeline,),
                limit=1 << 20,
            )
        except OSError as error:
            raise WardAway(f"no process could be started: {error}") from error
        process = _Process(made)
        try:
            await process.answer(START_SECONDS)
        except BaseException as error:
            await process.end()
            if isinstance(error, Crashed):
                raise WardAway(f"a new process {error}") from None
            raise
        return process

    async def _take_open(self, relay: str, places: contextlib.AsyncExitStack) -> _Process | None:
        """Take the process that has a connection to a relay; its places go over to `places`."""
        process = self._open.pop(relay, None)
        if process is None:
            return None
        if process.retire is not None:
            process.retire.cancel()
        if process.process.returncode is not None:
            await process.has.aclose()
            return None
        places.push_async_exit(process.has.pop_all())
        return process

    async def _keep_open(self, relay: str, process: _Process, places: contextlib.AsyncExitStack) -> None:
        """Keep a process with its connection, and its places, for the next moment of whoever was late."""
        if relay in self._open:  # one waits already
            await process.close()
            return
        process.has = places.pop_all()
        self._open[relay] = process
        process.retire = asyncio.get_running_loop().call_later(
            OPEN_SECONDS, self._retire_open, relay, process
        )

    def _retire_open(self, relay: str, process: _Process) -> None:
        if self._open.get(relay) is process:
            del self._open[relay]
            self._end_beside(process)

    def _put_back(self, process: _Process) -> None:
        self._idle.append(process)
        process.retire = asyncio.get_running_loop().call_later(IDLE_SECONDS, self._retire, process)

    def _retire(self, process: _Process) -> None:
        if process in self._idle:
            self._idle.remove(process)
            self._end_beside(process)

    def _end_beside(self, process: _Process) -> None:
        task = asyncio.create_task(_end(process))
        self._ending.add(task)
        task.add_done_callback(self._ending.discard)


async def _end(process: _Process) -> None:
    """Let it end, and only then others have its places: its connection is gone."""
    try:
        await process.close()
    finally:
        await process.has.aclose()


def _place(
    transport: Transport | None, not_after: float | None
) -> contextlib.AbstractAsyncContextManager[None]:
    """Have a relay keep one connection less for as long as a process apart has one, so that it sees no more."""
    return transport.lend(not_after) if isinstance(transport, SmtpRelay) else contextlib.nullcontext()


def _ended(code: int) -> str:
    if code < 0:
        with contextlib.suppress(ValueError):
            return f"was ended by {signal.Signals(-code).name}"
    return f"ended with exit code {code}"

"""One life for everything that lives long: start, started, drain, stop.

A part (listener, claimer, settler, HTTP server) is a `Service`; most are a `Loop`: one task with a `run` of
its own. `run_all` starts parts in order, waits until told to stop or until one crashes, drains and stops them
in reverse, and raises the first crash.

What can go wrong: a part that dies quietly while the rest goes on. So nothing here swallows an exception:
`ended` raises it, and `run_all` stops everything for it. Stopping twice is fine, stopping what never started
too.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Sequence
from typing import Protocol

START_GRACE_SECONDS = 0.2  # for a part to be ready, after this was told to stop
STOP_SECONDS = 10.0  # for a part to react to its cancellation, before it is given up


class Service(Protocol):
    """A long-lived part."""

    name: str

    async def start(self) -> None:
        """Start, and return when it works. Raises what keeps it from working."""
        ...

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - it bounds a whole phase, not one await
        """Take nothing new and finish what is under way, `timeout` seconds at most. True if all was done."""
        ...

    async def stop(self) -> None:
        """Stop at once, and return when it stands still. May be called at any time, any number of times."""
        ...

    async def ended(self) -> None:
        """Return when it has stopped; raises what it crashed of."""
        ...


class Loop:
    """A service that is one task. A subclass writes `run`.

    `run` calls `self.ready()` once it works, and returns when `self.draining` is set and its work is done.
    Returning earlier without being asked counts as a crash.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.draining = asyncio.Event()
        self._ready = False
        self._ready_or_over = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    async def run(self) -> None:
        """Do the work. Cancelled by `stop`."""
        raise NotImplementedError

    def ready(self) -> None:
        """Say that the service works now."""
        self._ready = True
        self._ready_or_over.set()

    @property
    def running(self) -> bool:
        """Whether its task is alive."""
        return self._task is not None and not self._task.done()

    async def start(self) -> None:
        """Start the task and return when it is ready. Raises what it crashed of before that; once only."""
        if self._task is not None:
            raise RuntimeError(f"{self.name} was started before")
        self._task = asyncio.create_task(self._live(), name=self.name)
        self._task.add_done_callback(lambda _: self._ready_or_over.set())
        await self.started()

    async def started(self) -> None:
        """Return when the service is ready. Raises what it crashed of before that."""
        await self._ready_or_over.wait()
        if not self._ready:
            await self.ended()
            raise RuntimeError(f"{self.name} was stopped before it was ready")

    async def drain(self, timeout: float) -> bool:  # noqa: ASYNC109 - as in Service
        """Ask `run` to finish and wait for it. True if it did in time; it goes on running otherwise."""
        self.draining.set()
        if self._task is None:
            return True
        done, _ = await asyncio.wait({self._task}, timeout=timeout)
        return bool(done)

    async def stop(self) -> None:
        """Cancel `run` and wait until it is gone. What it crashed of is for `ended` to raise."""
        self.draining.set()
        task = self._task
        if task is None or task.done():
            return
        task.cancel()
        _, alive = await asyncio.wait({task}, timeout=STOP_SECONDS)
        if alive:
            raise TimeoutError(f"{self.name} did not stop within {STOP_SECONDS:g} s of being cancelled")

    async def ended(self) -> None:
        """Return when the task is over; raises what it crashed of. At once if it never started."""
        if self._task is None:
            return
        await asyncio.wait({self._task})
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            raise error

    async def _live(self) -> None:
        await self.run()
        if not self.draining.is_set():
            raise RuntimeError(f"{self.name} ended without being asked to")


async def run_all(services: Sequence[Service], *, until: asyncio.Event, drain_seconds: float = 0.0) -> None:
    """Run services until `until` is set, one of them ends, or this call is cancelled.

    They start in order; all that started are drained (together `drain_seconds` at most, not after a crash)
    and stopped, last first. Raises the first crash; faults of stopping are raised only if there was none.
    """
    begun: list[Service] = []
    faults: list[BaseException] = []
    try:
        for service in services:
            begun.append(service)
            if not await _started(service, until):
                await _drain(begun[:-1], drain_seconds)
                break
        else:
            await _first_end(begun, until)
            await _drain(begun, drain_seconds)
    except BaseException as error:  # noqa: BLE001 - a cancellation too must stop what runs; raised below
        faults.append(error)
    for service in reversed(begun):
        try:
            await service.stop()
        except BaseException as error:  # noqa: BLE001 - one that cannot stop must not keep the others running
            faults.append(error)
    if faults:
        raise faults[0]


async def first_of(*waits: Awaitable[object], seconds: float | None = None) -> None:
    """Return when one of them is over, or after so many seconds; the others are cancelled. What one raises is not."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    try:
        await asyncio.wait(tasks, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()


async def _started(service: Service, until: asyncio.Event) -> bool:
    """Start a service. False if it was not ready when this was told to stop: it may wait for ever for a database."""
    starts = asyncio.create_task(service.start())
    told = asyncio.create_task(until.wait())
    try:
        await asyncio.wait({starts, told}, return_when=asyncio.FIRST_COMPLETED)
        if not starts.done():
            await asyncio.wait({starts}, timeout=START_GRACE_SECONDS)  # most are ready at once
        if starts.done():
            await starts
            return True
        return False
    finally:
        for task in (starts, told):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _first_end(services: Sequence[Service], until: asyncio.Event) -> None:
    """Wait for the signal, or for a service that ends; raises its crash."""
    told = asyncio.create_task(until.wait())
    ends = [asyncio.create_task(service.ended()) for service in services]
    try:
        done, _ = await asyncio.wait({told, *ends}, return_when=asyncio.FIRST_COMPLETED)
        for end in ends:
            if end in done:
                await end
    finally:
        for task in (told, *ends):
            task.cancel()
            with contextlib.suppress(asyncio.CancelledError, Exception):
                await task


async def _drain(services: Sequence[Service], seconds: float) -> None:
    """Drain in reverse, all from one budget of time."""
    loop = asyncio.get_running_loop()
    end = loop.time() + seconds
    for service in reversed(services):
        await service.drain(max(end - loop.time(), 0.0))

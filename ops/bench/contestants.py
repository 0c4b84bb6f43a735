"""How one run of each contestant is made.

A run answers the figures of one contestant; the first of them is the one that is compared. Numbers of jobs are
such that each run takes a few seconds on a small machine.
"""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from prepare import PEERS, Prepared
from services import Services, has, program, run

from pgmail.errors import SandboxError
from pgmail.sandbox.bench.http_load import Request, load
from pgmail.sandbox.bench.intake import EMAIL
from pgmail.sandbox.guard import guarded_popen

Figures = dict[str, float]
RUN_SECONDS = 900
MIX = 20  # connections and, times four, jobs at a time of BullMQ in the mail race: the best that was found
CONNECTIONS = (1, 16, 64)


@dataclass(frozen=True)
class Stage:
    """Where a run takes place. `scale` shortens it: 1 is the whole distance."""

    services: Services
    prepared: Prepared
    scale: float = 1.0

    def count(self, whole: int) -> int:
        """So many jobs, on the scale of this run."""
        return max(round(whole * self.scale), 200)

    def seconds(self, whole: int) -> int:
        """So many seconds, on the scale of this run."""
        return max(round(whole * self.scale), 1)


@dataclass(frozen=True)
class Contestant:
    """One entry of a race. `needs` are programs without which it cannot start."""

    name: str
    persists: str
    run: Callable[[Stage], Figures]
    needs: Sequence[str] = ()

    def missing(self) -> list[str]:
        """What it needs and is not installed."""
        lacking = has(*self.needs)
        if "postfix" in self.needs and os.geteuid() != 0:
            lacking.append("root")
        return lacking


def pgmail(bench: str, figure: str, whole: int = 0, **options: int) -> Callable[[Stage], Figures]:
    """`pgmail bench`, with `whole` mails or else five seconds a part."""

    def go(stage: Stage) -> Figures:
        argv: list[str] = [sys.executable, "-m", "pgmail", "bench", bench, "--json"]
        amount = ["--mails", str(stage.count(whole))] if whole else ["--seconds", str(stage.seconds(5))]
        argv += [*amount, *(word for name, value in options.items() for word in (f"--{name}", str(value)))]
        folder = stage.services.work / "pgmail"
        found = json.loads(run(argv, seconds=RUN_SECONDS, PGMAIL_DATA_FOLDER=str(folder)))
        more = {key: value for key, value in found.items() if isinstance(value, int | float)}
        return {figure: found[figure], **more}

    return go


def bullmq(figure: str, processes: int, whole: int, *, mail: bool) -> Callable[[Stage], Figures]:
    """BullMQ workers in one or two processes: no-ops, or nodemailer."""

    def go(stage: Stage) -> Figures:
        driver = ["node", str(stage.prepared.node / "bullmq.mjs")]
        jobs = stage.count(whole)
        with ExitStack() as stack:
            redis = ["--redis", str(stack.enter_context(stage.services.redis()))]
            working = [*driver, "--do", "work", *redis]
            if mail:
                working += ["--smtp", str(stack.enter_context(stage.services.sink()))]
                working += [
                    "--connections",
                    str(MIX // processes),
                    "--concurrency",
                    str(4 * MIX // processes),
                ]
            payload = "template" if mail else "small"
            filled = _said(
                run(
                    [*driver, "--do", "fill", *redis, "--jobs", str(jobs), "--payload", payload],
                    seconds=RUN_SECONDS,
                )
            )
            started = [stack.enter_context(guarded_popen(working, stdout=-1)) for _ in range(processes)]
            parts = [_said(worker.stdout.read().decode() if worker.stdout else "") for worker in started]
        done = sum(part["done"] for part in parts)
        if done != jobs or any(part["failed"] for part in parts):
            raise SandboxError(f"{done:g} of {jobs} jobs were done")
        began = min(part["first"] for part in parts if part["done"])
        ended = max(part["last"] for part in parts)
        return {figure: (jobs - 1) / (ended - began) * 1000, "enqueue_per_s": filled["per_s"]}

    return go


def bullmq_fill(stage: Stage) -> Figures:
    """BullMQ's addBulk of a thousand whole mails."""
    with stage.services.redis() as redis:
        argv = ["node", stage.prepared.node / "bullmq.mjs", "--do", "fill", "--redis", str(redis)]
        said = _said(
            run([*argv, "--jobs", str(stage.count(40_000)), "--payload", "full"], seconds=RUN_SECONDS)
        )
    return {"send_many_per_s": said["per_s"]}


def on_postgres(driver: str, figure: str, whole: int, **options: object) -> Callable[[Stage], Figures]:
    """A driver that queues and works in one process, on PostgreSQL; with work=0 it only queues whole mails."""

    def go(stage: Stage) -> Figures:
        script = stage.prepared.node / driver if driver.endswith(".mjs") else PEERS / driver
        argv: list[str | Path] = ["node" if driver.endswith(".mjs") else stage.prepared.python, script]
        given = {"jobs": stage.count(whole), **options}
        if not given.get("work", 1):
            given["payload"] = "full"
        argv += [word for name, value in given.items() for word in (f"--{name}", str(value))]
        with stage.services.postgres() as dsn:
            said = _said(run([*argv, "--dsn", dsn], seconds=RUN_SECONDS))
        return {figure: said["per_s" if given.get("work", 1) else "enqueue_per_s"], **said}

    return go


def celery(figure: str, whole: int, *, work: int) -> Callable[[Stage], Figures]:
    """Celery with two processes and smtplib."""

    def go(stage: Stage) -> Figures:
        with stage.services.redis() as redis, stage.services.sink() as sink:
            argv = [stage.prepared.python, PEERS / "celery_run.py", "--jobs", str(stage.count(whole))]
            said = _said(
                run(
                    [*argv, "--work", str(work)], seconds=RUN_SECONDS, cwd=PEERS,
                    RACE_REDIS=str(redis), RACE_SMTP=str(sink), PYTHONDONTWRITEBYTECODE="1",
                )
            )  # fmt: skip
        return {figure: said["per_s" if work else "enqueue_per_s"], **said}

    return go


def postfix(stage: Stage) -> Figures:
    """Postfix that relays mails of 4 kB that are ready made, from 20 sessions, until it has none left."""
    mails = stage.count(10_000)
    with stage.services.sink() as sink, stage.services.postfix(sink) as relay:
        argv = [program("smtp-source"), "-d", "-s", "20", "-l", "4000", "-m", str(mails)]
        argv += ["-f", "shop@example.com", "-t", "user@example.org", f"127.0.0.1:{relay.port}"]
        began = time.monotonic()
        run(argv, seconds=RUN_SECONDS)
        accepted = time.monotonic()
        relay.drained(RUN_SECONDS)
        ended = time.monotonic()
    return {"mails_per_s": mails / (ended - began), "accepted_per_s": mails / (accepted - began)}


def express(stage: Stage) -> Figures:
    """Express that adds to BullMQ, under the same load as pgmail's API."""
    body = json.dumps(EMAIL).encode()
    figures: Figures = {}
    with stage.services.redis() as redis:
        argv = ["node", stage.prepared.node / "express.mjs", "--redis", str(redis)]
        with guarded_popen(argv, stdout=-1) as server:
            port = int(_said(server.stdout.readline().decode() if server.stdout else "")["port"])
            request = Request(f"http://127.0.0.1:{port}/emails", body, {})
            load(request, 4, stage.seconds(2), stage.services.work)
            for connections in CONNECTIONS:
                found = load(request, connections, stage.seconds(5), stage.services.work)
                figures[f"rps_{connections}"] = found.per_s
                figures[f"p50_{connections}_ms"] = found.p50_ms
                figures[f"p99_{connections}_ms"] = found.p99_ms
    return {"rps_16": figures["rps_16"], **figures}


def _said(output: str) -> Figures:
    """The last line of a driver, which is JSON. SandboxError when it said none."""
    lines = output.strip().splitlines()
    try:
        found: Figures = json.loads(lines[-1])
    except (IndexError, ValueError):
        raise SandboxError(
            f"a driver ended without figures: {output.strip()[-400:] or 'no output'}"
        ) from None
    return found

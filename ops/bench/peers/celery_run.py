"""Celery on Redis with two processes: queue mails, then work them until the broker holds none."""

from __future__ import annotations

import os
import subprocess
import sys
import time

import redis
from celery_mail import app, send
from shared import options, say

START_SECONDS = 60


def main() -> None:
    """Say how many were queued and sent a second."""
    given = options(__doc__)
    broker = redis.Redis(port=int(os.environ["RACE_REDIS"]))
    began = time.perf_counter()
    with app.producer_pool.acquire() as producer:
        for number in range(given.jobs):
            send.apply_async((f"u{number}@example.com", f"User {number}"), producer=producer)
    figures = {"enqueue_per_s": given.jobs / (time.perf_counter() - began)}
    if given.work:
        argv = [sys.executable, "-m", "celery", "-A", "celery_mail", "worker"]
        argv += ["--concurrency", "2", "--loglevel", "ERROR"]
        worker = subprocess.Popen(argv, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            end = time.monotonic() + START_SECONDS
            while broker.llen("celery") == given.jobs and time.monotonic() < end:
                time.sleep(0.005)
            began = time.perf_counter()
            while (broker.llen("celery") or broker.hlen("unacked")) and worker.poll() is None:
                time.sleep(0.01)
            figures["per_s"] = given.jobs / (time.perf_counter() - began)
            if worker.poll() is not None:
                raise SystemExit("the worker ended")
        finally:
            worker.terminate()
            worker.wait()
    say(**figures)


main()

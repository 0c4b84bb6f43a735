"""How a bench reads rates, waits and latencies, at little cost to what it measures.

Progress is the sum of the tallies, some hundred rows; counting outcomes would cost more than the sending. Rates
are taken between moments when mail was flowing, so that start-up does not count. What can go wrong: nothing
flows, which is a SandboxError after a bounded wait.
"""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import msgspec

from pgmail.errors import SandboxError
from pgmail.sandbox.bench.ground import Place
from pgmail.sandbox.bench.workers import Workers
from pgmail.store import bench as store

POLL_SECONDS = 0.1
STALL_SECONDS = 60.0


class Meter:
    """Watches running workers."""

    def __init__(self, asking: store.Session, workers: Workers) -> None:
        self.asking = asking
        self._workers = workers
        self._waits: Counter[str] = Counter()
        self._looks = 0

    def wait_sent(self, mails: int) -> None:
        """Wait until so many were sent. SandboxError when none moves for a minute, or a worker ends."""
        last, since = -1, time.monotonic()
        while (now := self.asking.progress()) < mails:
            if now > last:
                last, since = now, time.monotonic()
            elif time.monotonic() - since > STALL_SECONDS:
                raise SandboxError(f"only {now} of {mails} mails were sent")
            self._look()
            time.sleep(POLL_SECONDS)

    def rate(self, seconds: float, most: float = math.inf) -> int:
        """Mails a second from now for so many seconds, or until `most` in all were sent."""
        first, began = self.asking.progress(), time.monotonic()
        while True:
            time.sleep(POLL_SECONDS)
            sent, now = self.asking.progress(), time.monotonic()
            if now - began >= seconds or sent >= most:
                break
            self._look()
        return round((sent - first) / (now - began))

    def slices(self, seconds: float, count: int) -> list[int]:
        """Mails a second in each of `count` equal parts of the time from now on."""
        rates = []
        before, then = self.asking.progress(), time.monotonic()
        began = then
        for number in range(1, count + 1):
            while (left := began + seconds * number / count - time.monotonic()) > 0:
                self._look()
                time.sleep(min(left, 0.5))
            sent, now = self.asking.progress(), time.monotonic()
            rates.append(round((sent - before) / (now - then)))
            before, then = sent, now
        return rates

    def waits(self) -> dict[str, float]:
        """How many of pgmail's sessions were on a processor (`running`) or waited for what, on average."""
        looks = max(self._looks, 1)
        return {word: round(count / looks, 2) for word, count in self._waits.most_common(6)}

    def _look(self) -> None:
        self._workers.check()
        self._waits.update(self.asking.waits())
        self._looks += 1


@contextmanager
def watching(here: Place, workers: Workers) -> Iterator[Meter]:
    """A meter of running workers, with a connection of its own."""
    workers.ready()
    with store.session(here.owner) as asking:
        yield Meter(asking, workers)


class Report:
    """The sink's report, read while it grows: when it accepted the mail for which recipient."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._offset = 0
        self._at: dict[str, float] = {}

    def accepted(self) -> Mapping[str, float]:
        """Recipients and the Unix time of their first mail, as far as it is written by now."""
        with self._path.open("rb") as file:
            file.seek(self._offset)
            whole = file.read().rpartition(b"\n")[0]
        if whole:
            self._offset += len(whole) + 1
            for line in whole.split(b"\n"):
                mail = msgspec.json.decode(line)
                self._at.setdefault(mail["recipient"], mail["at"])
        return self._at


def percentile(values: Sequence[float], share: float) -> float:
    """The value that `share` of all are at or below: the nearest rank, never one that did not occur."""
    if not values:
        raise SandboxError("nothing was measured")
    return sorted(values)[max(math.ceil(share * len(values)) - 1, 0)]


def spread(seconds: Sequence[float]) -> dict[str, float]:
    """Percentiles of durations in seconds, as `p50_ms` and so on."""
    shares = {"p50_ms": 0.5, "p90_ms": 0.9, "p99_ms": 0.99, "worst_ms": 1.0}
    return {name: round(percentile(seconds, share) * 1000, 2) for name, share in shares.items()}

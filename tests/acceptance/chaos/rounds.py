"""Rounds of a chaos run: what is killed, when, and what must hold afterwards.

Everything random comes from one seed, which is in every failure. Each round kills while leases are held (a victim is
stopped, its leases counted, and only then killed or left stopped; with none it runs on and is tried again), waits for
the rescue, lets the clients finish what they have open and closes the accounts.
"""

import os
import random
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from tests.acceptance.chaos import account
from tests.acceptance.chaos.load import Load
from tests.acceptance.chaos.place import HOLD, Place, Worker, place

RESCUE_SECONDS = 10.0
WAKE_SECONDS = 15.0
SETTLE_SECONDS = 0.3  # for a statement that a killed process had sent
WEIGHTS = {
    "worker": 8,
    "workers": 3,
    "stop": 4,
    "postgres": 4,
    "api": 3,
    "both": 3,
    "api-stop": 1,
    "postgres-stop": 1,
}
SHORT = ("worker", "postgres")


@dataclass
class Figures:
    """What a run found."""

    rounds: int = 0
    seed: int = 0
    kills: Counter[str] = field(default_factory=Counter)
    leases_at_kills: int = 0
    fewest_leases: int = 0
    enqueued: int = 0
    acknowledged: int = 0
    answer_lost: int = 0
    retries: int = 0  # of HTTP clients
    sent: int = 0
    held: int = 0
    in_doubt: int = 0
    copies: int = 0
    lost: int = 0
    fenced: int = 0  # results of woken workers that came too late
    saved: int = 0  # 250s of theirs that settled a row that waited
    after_waking: int = 0  # dots of theirs that the far side accepted all the same
    rescue_p50_seconds: float = 0.0
    rescue_max_seconds: float = 0.0
    seconds: float = 0.0

    def line(self) -> str:
        """As one line of JSON."""
        return msgspec.json.encode(self).decode()


class Rounds:
    """Kills, one round after the other."""

    def __init__(self, here: Place, load: Load, seed: int, say: Callable[[str], None]) -> None:
        self.here, self.load, self.say = here, load, say
        self.figures = Figures(seed=seed)
        self._dice = random.Random(f"rounds:{seed}")
        self._rescues: list[float] = []
        self._leases: list[int] = []
        self._does: dict[str, Callable[[], None]] = {
            "worker": lambda: self._kill_workers(1),
            "workers": lambda: self._kill_workers(2),
            "stop": self._stop_worker,
            "postgres": self._kill_postgres,
            "api": self._kill_api,
            "both": self._kill_both,
            "api-stop": self._stop_api,
            "postgres-stop": self._stop_postgres,
        }

    def run(self, kinds: Sequence[str] | int) -> Figures:
        """Do these rounds, or so many random ones; then let all mail come to its end. Raises AssertionError."""
        if isinstance(kinds, int):
            kinds = self._dice.choices(list(WEIGHTS), list(WEIGHTS.values()), k=kinds)
        began = time.monotonic()
        self.load.start()
        for number, kind in enumerate(kinds, 1):
            self.here.whole()
            self.here.pause(self._dice.uniform(0.1, 1.0))
            self._does[kind]()
            self.figures.rounds = number
            self._close(f"round {number}, {kind}")
            self.load.resume()
        self.load.stop()
        self._until_quiet()
        self._close("the end")
        self.figures.seconds = round(time.monotonic() - began, 1)
        return self.figures

    # --- kinds of rounds ---

    def _kill_workers(self, count: int) -> None:
        victims, epochs = self._stopped(count)
        self._kill(victims)
        self._await_rescue(epochs)

    def _stop_worker(self) -> None:
        (victim,), (epoch,) = self._stopped(1)
        self.figures.kills["stop"] += 1
        pid = victim.pid
        try:
            self._await_rescue([epoch])
        finally:
            woken_at = self.here.sql("select clock_timestamp() as at")[0].at
            os.kill(pid, signal.SIGCONT)
        # It comes back as another worker, or not at all while this one lives.
        self.here.wait(lambda: victim.child.pid != pid, WAKE_SECONDS, what=f"{victim.name} noticed and ended")
        self._nothing_settled(victim, epoch, woken_at)

    def _kill_postgres(self) -> None:
        before = self.here.whole()
        self._server_dies()
        self._server_returns(before, keep=len(before))

    def _kill_api(self) -> None:
        """With questions open, and mail under way."""
        self.here.wait(lambda: self.load.in_flight and self._held(), what="requests and leases")
        assert self.here.api.pid is not None
        os.kill(self.here.api.pid, signal.SIGKILL)
        self.figures.kills["api"] += 1
        self.here.wait(lambda: self.here.api.restarts and self.here.api.pid, what="the API was started again")

    def _kill_both(self) -> None:
        """A worker and PostgreSQL at one moment."""
        before = self.here.whole()
        victims, epochs = self._stopped(1)
        self._server_dies()
        self._kill(victims)
        self._server_returns(before, keep=len(before) - 1)
        self._await_rescue(epochs)

    def _stop_api(self) -> None:
        """With questions open, for as long as a client's patience lasts and no longer."""
        self.here.wait(lambda: self.load.in_flight and self._held(), what="requests and leases")
        pid = self.here.api.pid
        assert pid is not None
        with self.here.frozen([pid]):
            self.figures.kills["api-stop"] += 1
            self.here.pause(self._dice.uniform(2.0, 6.0))

    def _stop_postgres(self) -> None:
        """All its processes, for longer than the silence: connections hang, and nobody is told why."""
        before = self.here.whole()
        self.here.wait(self._held, what="leases")
        self._note_leases(self._held())
        with self.here.frozen(self.here.server_pids()):
            self.figures.kills["postgres-stop"] += 1
            self.here.pause(self._dice.uniform(6.0, 9.0))
        self._workers_lived(before, keep=len(before))

    # --- parts ---

    def _held(self) -> int:
        return self.here.leases()

    def _note_leases(self, count: int) -> None:
        assert count > 0
        self._leases.append(count)

    def _stopped(self, count: int) -> tuple[list[Worker], list[int]]:
        """Stop so many workers, each of which holds leases; and their epochs."""
        for _ in range(200):
            epochs = self.here.whole()
            victims = self._dice.sample(self.here.workers, count)
            mine = [epochs[worker.pid] for worker in victims]
            for worker in victims:
                os.kill(worker.pid, signal.SIGSTOP)
            leases = [self.here.leases(epoch) for epoch in mine]
            if all(leases):
                self._note_leases(sum(leases))
                return victims, mine
            for worker in victims:
                os.kill(worker.pid, signal.SIGCONT)
            self.here.pause(0.05)
        raise AssertionError("no worker ever held a lease")

    def _kill(self, victims: list[Worker]) -> None:
        for worker in victims:
            os.kill(worker.pid, signal.SIGKILL)
            self.figures.kills["worker"] += 1

    def _await_rescue(self, epochs: list[int]) -> None:
        """Wait until the leases are back; on streams that hold, those that are held are the right ones."""
        at = time.monotonic()
        self.here.pause(SETTLE_SECONDS)
        holding = self._holding(epochs)
        self.here.wait(
            lambda: self.here.leases(*epochs) == 0,
            RESCUE_SECONDS * 3,
            what=f"the leases of {epochs} were back",
        )
        seconds = time.monotonic() - at
        self._rescues.append(seconds)
        assert seconds < RESCUE_SECONDS, f"the leases of {epochs} were back after {seconds:.1f} s"
        gone = self.here.sql("select epoch from pgmail.worker where epoch = any (%s)", epochs)
        assert not gone, f"workers {gone} were rescued and are still there"
        doubted = {row.id for row in self.here.sql(_DOUBTED, epochs)}
        assert {id_ for id_, begun in holding.items() if begun} == doubted & holding.keys(), (
            "held are the begun ones"
        )

    def _holding(self, epochs: list[int]) -> dict[Any, bool]:
        """Leases of streams that hold, and whether their dot may have gone out."""
        text = """
            select q.id, q.unsent_claims is distinct from q.claims as begun from pgmail.queue q
            join pgmail.message m on m.tenant_id = q.tenant_id and m.id = q.message_id
            where q.leased_by = any (%s) and m.stream = %s"""
        return {row.id: row.begun for row in self.here.sql(text, epochs, HOLD)}

    def _server_dies(self) -> None:
        self.here.wait(self._held, what="leases")
        self._note_leases(self._held())
        self.here.kill_server()
        self.figures.kills["postgres"] += 1

    def _server_returns(self, before: dict[int, int], *, keep: int) -> None:
        """Start it again after a while. No living worker may be rescued for that."""
        self.here.pause(self._dice.uniform(0.0, 3.0))
        self.here.start_server()
        self._workers_lived(before, keep=keep)

    def _workers_lived(self, before: dict[int, int], *, keep: int) -> None:
        """So many workers beat on under their old epochs."""
        beats = {row.epoch: row.beat for row in self.here.sql("select epoch, beat from pgmail.worker")}

        def beating() -> bool:
            now = self.here.sql("select epoch, beat from pgmail.worker")
            return sum(row.beat > beats.get(row.epoch, row.beat) for row in now) >= keep

        self.here.wait(beating, 30, what="the workers found the database again")
        alive = {pid: epoch for pid, epoch in self.here.epochs().items() if before.get(pid) == epoch}
        assert len(alive) >= keep, f"workers were {before}, and only {alive} lived through it"

    def _nothing_settled(self, victim: Worker, epoch: int, woken_at: Any) -> None:
        """What a woken worker wrote: that it came too late, or that a row that waited was accepted after all."""
        for row in self.here.sql(_WRITTEN, epoch, woken_at):
            if row.type == "email.in_doubt":
                continue
            if (row.detail or "").startswith("fenced out"):
                self.figures.fenced += 1
            else:
                assert row.type == "email.sent", f"worker {epoch} woke, was fenced, and wrote {row}"
                self.figures.saved += 1
        seconds = woken_at.timestamp()
        late = [x for x in account.accepted(self.here.report) if x.by == victim.name and x.at > seconds]
        again = self.here.epochs().get(victim.child.pid or 0)
        if again is None:  # what came after is not the next worker's
            self.figures.after_waking += len(late)
        assert self.here.leases(epoch) == 0

    # --- accounts ---

    def _until_quiet(self) -> None:
        """Wait until all mail has come to its end: as long as that takes, but not two minutes in which none does."""
        left: int | None = None

        def moved() -> tuple[int] | None:
            now = self.here.sql("select count(*)::int as n from pgmail.queue where due_at <> 'infinity'")[0].n
            return None if now == left else (now,)

        while left != 0:
            (left,) = self.here.wait(moved, 120, what=f"all mail came to its end, {left} are left")

    def _close(self, when: str) -> None:
        self.here.whole()
        if when != "the end":
            self.load.pause()
        found = account.close(self.here, self.load)
        if when == "the end" and found.still_open:
            found.doubts.append(f"{found.still_open} recipients have not come to an end")
        figures = self.figures
        for name in ("enqueued", "acknowledged", "answer_lost", "sent", "held", "in_doubt", "copies", "lost"):
            setattr(figures, name, getattr(found, name))
        figures.retries = self.load.retries
        figures.leases_at_kills, figures.fewest_leases = sum(self._leases), min(self._leases, default=0)
        if self._rescues:
            figures.rescue_p50_seconds = round(statistics.median(self._rescues), 2)
            figures.rescue_max_seconds = round(max(self._rescues), 2)
        self.say(f"{when}: {figures.line()}")
        assert not found.doubts, f"seed {figures.seed}, {when}: " + "; ".join(found.doubts)


_DOUBTED = """
select distinct recipient_id as id from pgmail.event where type = 'email.in_doubt' and worker = any (%s)
  and detail like 'worker %% died%%'"""
_WRITTEN = "select type, detail, recipient_id from pgmail.event where worker = %s and at > %s"


def run(
    folder: Path, kinds: Sequence[str] | int, *, seed: int, workers: int = 3, drop: float = 0.03,
    settings: dict[str, str] | None = None, say: Callable[[str], None] = print,
) -> Figures:  # fmt: skip
    """Make a place in `folder`, which may not exist, and run rounds in it. AssertionError tells what did not hold."""
    say(f"chaos: seed {seed}, in {folder}")
    with place(folder, seed=seed, workers=workers, drop=drop, settings=settings or {}) as here:
        load = Load(here, seed)
        try:
            return Rounds(here, load, seed, say).run(kinds)
        finally:
            load.stop()

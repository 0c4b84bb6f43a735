"""Sending a plan through all four ways in at once: SQL, HTTP, the Python client, the command line.

    sql      an application's transaction each: its order and its mail; now and then one that is rolled back
    http     POST /emails and /emails/batch; now and then one asked twice with its Idempotency-Key
    python   pgmail.send and pgmail.send_many, with the rights of a producer
    cli      pgmail send --json -, a process each

Each way has threads of its own, which end when their part is sent, when told to stop, or with the first
fault, which stops the others. What can go wrong: a way refuses an email of the plan, or answers two ids for
one key. Both are faults of pgmail and end the demo.
"""

from __future__ import annotations

import http.client
import subprocess
import threading
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Protocol
from uuid import UUID

import msgspec

from pgmail import client, sqlfiles
from pgmail.errors import SandboxError
from pgmail.sandbox import demo_settings
from pgmail.sandbox.demo_fleet import PGMAIL
from pgmail.sandbox.ports import HOST
from pgmail.sandbox.traffic import WAYS, Planned, Way
from pgmail.store import scratch

BLOCK = 40  # of these the first half goes one by one, the rest in one batch
ROLLBACK_EVERY = 25
REPEAT_EVERY = 25
THREADS: dict[Way, int] = {"sql": 1, "http": 2, "python": 1, "cli": 4}
CANCEL_REASON = "the customer changed her mind"
CLI_SECONDS = 60.0

_Q = sqlfiles.queries("demo")


class Sent(NamedTuple):
    """An email that a way in took, and the id it answered."""

    planned: Planned
    id: UUID


class Doors(NamedTuple):
    """What the ways in need to know of the demo's database and processes."""

    producer: str  # connection string
    port: int  # the API's
    key: str
    config: Path  # settings of the command line


class Sending:
    """The sending of one plan. `sent` grows meanwhile."""

    def __init__(self, plan: Sequence[Planned], doors: Doors) -> None:
        self.plan = plan
        self.sent: list[Sent] = []
        self.done: Counter[str] = Counter()  # by way
        self.rolled_back = 0  # transactions whose mail must not exist
        self.repeated = 0  # requests that were asked twice and must count once
        self.planned: Counter[str] = Counter(planned.way for planned in plan)
        self._fault: BaseException | None = None
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._doors = doors
        self._threads: list[threading.Thread] = []
        for way in WAYS:
            mine = [planned for planned in plan if planned.way == way]
            for number in range(THREADS[way]):
                part = mine[number :: THREADS[way]]
                self._threads.append(
                    threading.Thread(target=self._run, args=(way, part), name=f"{way}-{number}", daemon=True)
                )

    def start(self) -> None:
        """Begin."""
        for thread in self._threads:
            thread.start()

    @property
    def going_on(self) -> bool:
        """Whether a way is still at work. Raises the first fault of any of them."""
        if self._fault is not None:
            raise self._fault
        return any(thread.is_alive() for thread in self._threads)

    def stop(self) -> None:
        """Stop between two emails, and wait for that. Twice is fine."""
        self._stop.set()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join()

    def _run(self, way: Way, mails: Sequence[Planned]) -> None:
        try:
            door = self._open(way)
            try:
                for group in groups(mails, alone=way in ("sql", "cli")):
                    if self._stop.is_set():
                        return
                    ids = door.send(group)
                    for planned, id_ in zip(group, ids, strict=True):
                        if planned.cancel:
                            door.cancel(id_)
                        self._took(way, Sent(planned, id_))
            finally:
                door.close()
        except BaseException as error:  # noqa: BLE001 - told to the thread that waits for us
            self._fault = self._fault or error
            self._stop.set()

    def _took(self, way: Way, sent: Sent) -> None:
        with self._lock:
            self.sent.append(sent)
            self.done[way] += 1

    def _open(self, way: Way) -> Door:
        doors = self._doors
        if way == "sql":
            return BySql(doors.producer, self._count_rollback)
        if way == "http":
            return ByHttp(doors.port, doors.key, self._count_repeat)
        if way == "python":
            return ByPython(doors.producer)
        return ByCommand(doors.config)

    def _count_rollback(self) -> None:
        with self._lock:
            self.rolled_back += 1

    def _count_repeat(self) -> None:
        with self._lock:
            self.repeated += 1


class Door(Protocol):
    """One way in, as one thread uses it."""

    def send(self, group: Sequence[Planned]) -> list[UUID]:
        """Hand emails over, committed when this returns; their ids, in their order."""

    def cancel(self, id_: UUID) -> None:
        """Take an email back."""

    def close(self) -> None:
        """Let go of connections."""


class BySql:
    """An application that places orders: the order and its mail are one transaction."""

    def __init__(self, dsn: str, rolled_back: Callable[[], None]) -> None:
        self._lent = scratch.connect(dsn, "shop")
        self._connection = self._lent.__enter__()
        self._rolled_back = rolled_back
        self._placed = 0

    def send(self, group: Sequence[Planned]) -> list[UUID]:
        """Place an order for each."""
        ids = []
        for planned in group:
            self._placed += 1
            if self._placed % ROLLBACK_EVERY == 0:
                self._change_of_mind(planned)
            with scratch.known_errors(), self._connection.transaction():
                ids.append(self._place(planned.number, planned.body_at(datetime.now(UTC))))
        return ids

    def cancel(self, id_: UUID) -> None:
        """Take an email back."""
        with scratch.known_errors():
            scratch.run(self._connection, _Q["cancel"], {"id": id_, "reason": CANCEL_REASON})

    def close(self) -> None:
        """Close the connection."""
        self._lent.__exit__(None, None, None)

    def _change_of_mind(self, planned: Planned) -> None:
        """Begin an order and roll it back: its mail must never be seen."""
        body = planned.body | {"to": f"rolledback.{planned.number}@example.org", "cc": None, "bcc": None}
        body.pop("mode", None)
        with scratch.known_errors(), self._connection.transaction(force_rollback=True):
            self._place(planned.number, body)
        self._rolled_back()

    def _place(self, number: int, body: dict[str, Any]) -> UUID:
        values = {"number": f"HB-{number}", "customer": str(body["to"]), "email": _json(body)}
        placed: UUID = scratch.run(self._connection, _Q["place_order"], values).fetchone().id
        return placed


class ByHttp:
    """A client of the HTTP API, with one connection that stays open."""

    def __init__(self, port: int, key: str, repeated: Callable[[], None]) -> None:
        self._connection = http.client.HTTPConnection(HOST, port, timeout=30)
        self._headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        self._repeated = repeated
        self._asked = 0

    def send(self, group: Sequence[Planned]) -> list[UUID]:
        """One request; every so often it is asked again, as by a client whose answer was lost."""
        now = datetime.now(UTC)
        bodies = [planned.body_at(now) for planned in group]
        if len(bodies) > 1:
            answer = self._post("/emails/batch", bodies)
            return [UUID(item["id"]) for item in answer["data"]]
        key = {"Idempotency-Key": f"mail-{group[0].number}"}
        id_ = self._post("/emails", bodies[0], key)["id"]
        self._asked += 1
        if self._asked % REPEAT_EVERY == 0:
            if self._post("/emails", bodies[0], key)["id"] != id_:
                raise SandboxError(f"the same Idempotency-Key was answered with another id than {id_}")
            self._repeated()
        return [UUID(id_)]

    def cancel(self, id_: UUID) -> None:
        """Take an email back."""
        self._post(f"/emails/{id_}/cancel", None)

    def close(self) -> None:
        """Close the connection."""
        self._connection.close()

    def _post(self, path: str, body: Any, headers: dict[str, str] | None = None) -> Any:
        octets = b"" if body is None else msgspec.json.encode(body)
        try:
            self._connection.request("POST", path, octets, self._headers | (headers or {}))
            with self._connection.getresponse() as response:
                said = response.read()
        except (OSError, http.client.HTTPException) as error:
            raise SandboxError(f"POST {path}: {error or type(error).__name__}") from error
        if response.status >= 300:
            raise SandboxError(
                f"POST {path} was answered {response.status}: {said[:500].decode(errors='replace')}"
            )
        return msgspec.json.decode(said)


class ByPython:
    """A program that uses the Python client on a connection of its own."""

    def __init__(self, dsn: str) -> None:
        self._lent = scratch.connect(dsn, "newsletter")
        self._connection = self._lent.__enter__()

    def send(self, group: Sequence[Planned]) -> list[UUID]:
        """`send` for one, `send_many` for more."""
        now = datetime.now(UTC)
        bodies = [planned.body_at(now) for planned in group]
        with scratch.known_errors(), self._connection.transaction():
            if len(bodies) == 1:
                return [client.send(self._connection, bodies[0])]
            return [sent.id for sent in client.send_many(self._connection, bodies)]

    def cancel(self, id_: UUID) -> None:
        """Take an email back."""
        with scratch.known_errors():
            client.cancel(self._connection, id_, CANCEL_REASON)

    def close(self) -> None:
        """Close the connection."""
        self._lent.__exit__(None, None, None)


class ByCommand:
    """A person, or a script, at the command line."""

    def __init__(self, config: Path) -> None:
        self._environment = demo_settings.environment(config)

    def send(self, group: Sequence[Planned]) -> list[UUID]:
        """A process for each."""
        now = datetime.now(UTC)
        return [UUID(self._pgmail("send", "--json", "-", body=planned.body_at(now))) for planned in group]

    def cancel(self, id_: UUID) -> None:
        """Take an email back."""
        self._pgmail("cancel", str(id_))

    def close(self) -> None:
        """Nothing is kept open."""

    def _pgmail(self, *words: str, body: dict[str, Any] | None = None) -> str:
        ended = subprocess.run(
            [*PGMAIL, *words],
            input=b"" if body is None else msgspec.json.encode(body),
            capture_output=True,
            env=self._environment,
            timeout=CLI_SECONDS,
            check=False,
        )
        if ended.returncode != 0:
            raise SandboxError(f"pgmail {words[0]} failed: {ended.stderr.decode(errors='replace').strip()}")
        return ended.stdout.decode().strip()


def groups(mails: Sequence[Planned], *, alone: bool) -> Iterator[Sequence[Planned]]:
    """Mails one by one or, unless `alone`, the second half of each block in one go."""
    for start in range(0, len(mails), BLOCK):
        block = mails[start : start + BLOCK]
        single = len(block) if alone else (len(block) + 1) // 2
        for planned in block[:single]:
            yield [planned]
        if block[single:]:
            yield block[single:]


def _json(body: dict[str, Any]) -> str:
    return msgspec.json.encode(body).decode()

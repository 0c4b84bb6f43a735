"""Clients under whose mail everything is killed. What they were told, they remember.

Over HTTP a client sends each email with an Idempotency-Key and, as a good client, tries the same again until it is
told 200. Over SQL it does not try again: an email whose statement failed is `unanswered`, and may stand or not.
Every email has an address of its own, by which it is found again.
"""

import http.client
import itertools
import random
import threading
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import psycopg
from psycopg.types.json import Jsonb

from tests.acceptance.chaos.place import HOLD, RESEND, Place

SITES = 12
HTTP_SECONDS = 10.0
AGAIN_SECONDS = 0.1
GIVE_UP_TRIES = 600


class Load:
    """Threads that send until told to stop. `pause` returns when every client has an answer and waits."""

    def __init__(self, here: Place, seed: int, *, http_clients: int = 4, sql_clients: int = 2) -> None:
        self.acknowledged: dict[str, str] = {}  # address: the id that was answered
        self.unanswered: set[str] = set()
        self.wrong: list[str] = []
        self.retries = 0
        self.in_flight = 0
        self._here, self._seed = here, seed
        self._numbers = itertools.count(1)
        self._lock = threading.Lock()
        self._over, self._go = threading.Event(), threading.Event()
        self._clients = http_clients + sql_clients
        self._resting = threading.Semaphore(0)
        self._awake = threading.Semaphore(0)
        jobs: list[tuple[str, Callable[[random.Random], None]]] = [
            *(("http", self._http) for _ in range(http_clients)),
            *(("sql", self._sql) for _ in range(sql_clients)),
        ]
        self._threads = [
            threading.Thread(target=self._run, args=(f"{way}{n}", client), name=f"{way}{n}", daemon=True)
            for n, (way, client) in enumerate(jobs)
        ]

    def start(self) -> None:
        """Begin to send."""
        self._go.set()
        for thread in self._threads:
            thread.start()

    def pause(self) -> None:
        """Return when no client has an open question. Everything it needs for that must run."""
        self._go.clear()
        for _ in self._threads:
            while not self._over.is_set() and not self._resting.acquire(timeout=0.02):
                self._here.tend()

    def resume(self) -> None:
        """Send on."""
        self._go.set()
        for _ in self._threads:
            self._awake.release()

    def stop(self) -> None:
        """End the clients; twice is fine."""
        self._over.set()
        self._go.set()
        for _ in self._threads:
            self._awake.release()
        for thread in self._threads:
            if thread.ident is not None:
                thread.join(HTTP_SECONDS * 2)

    def _run(self, name: str, client: Callable[[random.Random], None]) -> None:
        try:
            client(random.Random(f"{self._seed}:{name}"))
        except BaseException as error:  # noqa: BLE001 - told by the run, which looks at `wrong`
            self.wrong.append(f"client {name} ended: {error!r}")
            self._over.set()
        while not self._over.is_set():  # its part in a pause
            self._rest()

    def _rest(self) -> None:
        """Wait between two emails, and through a pause."""
        if not self._go.is_set():
            self._resting.release()
            self._awake.acquire()

    def _email(self, way: str, dice: random.Random) -> dict[str, Any]:
        with self._lock:
            number = next(self._numbers)
        return {
            "from": "Chaos <chaos@example.com>",
            "to": [f"{way}{number}@site{dice.randrange(SITES)}.example.org"],
            "subject": f"Mail {number}",
            "text": "Hello.",
            "stream": dice.choice((RESEND, HOLD)),
            "priority": dice.choice(("high", "normal", "normal", "low")),
        }

    def _told(self, address: str, id_: str) -> None:
        with self._lock:
            self.acknowledged[address] = id_

    def _http(self, dice: random.Random) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._here.port, timeout=HTTP_SECONDS)
        while not self._over.is_set():
            self._rest()
            email = self._email("h", dice)
            address = email["to"][0]
            with self._lock:
                self.in_flight += 1
            for _ in range(GIVE_UP_TRIES):
                try:
                    status, answer = self._here.post(connection, email, f"chaos-{self._seed}-{address}")
                except (OSError, http.client.HTTPException, ValueError):
                    connection.close()
                    status, answer = 0, None
                if status == 200:
                    self._told(address, answer["id"])
                    break
                if status not in {0, 409, 429, 500, 502, 503, 504}:
                    self.wrong.append(f"{address} was refused: {status} {answer}")
                    break
                if status == 500:
                    self.wrong.append(f"{address}: the API knew no better than {answer}")
                with self._lock:
                    self.retries += 1
                if self._over.wait(AGAIN_SECONDS):
                    self.unanswered.add(address)
                    break
            else:
                self.wrong.append(f"{address} was never answered: {status} {answer}")
                self.unanswered.add(address)
            with self._lock:
                self.in_flight -= 1
            self._over.wait(dice.uniform(0.0, 0.12))
        connection.close()

    def _sql(self, dice: random.Random) -> None:
        connection: psycopg.Connection[Any] | None = None
        while not self._over.is_set():
            self._rest()
            if connection is None or connection.closed:
                with suppress(psycopg.OperationalError):
                    dsn = self._here.made.dsn("producer")
                    connection = psycopg.connect(dsn, autocommit=True, connect_timeout=5)
            if connection is None or connection.closed:
                self._over.wait(AGAIN_SECONDS)
                continue
            email = self._email("s", dice)
            try:
                row = connection.execute("select pgmail.send(%s)", [Jsonb(email)]).fetchone()
                self._told(email["to"][0], str(row[0]))
            except psycopg.Error as error:
                if not connection.closed and not isinstance(error, psycopg.OperationalError):
                    self.wrong.append(f"{email['to'][0]}: {error}")
                self.unanswered.add(email["to"][0])
            self._over.wait(dice.uniform(0.0, 0.12))
        if connection is not None:
            connection.close()

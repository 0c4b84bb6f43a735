"""Sample traffic: a shop's mail for a while, as a plan. What is sent, by which way, and what should become of it.

A plan is made before anything is sent and knows nothing of the database: so it can be held against what the
ledger and the receiving side say. The same seed gives the same plan.

    for planned in make_traffic(1000): send(planned.body_at(datetime.now(UTC)))

Each round of fifty holds every kind at least once. What can go wrong: nothing is checked here, the ways in do
that; and the last, broken round of a small plan lacks some kinds.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Any, Literal

import msgspec

from pgmail.domain import address
from pgmail.sandbox import traffic_kinds
from pgmail.sandbox.traffic_kinds import Guest
from pgmail.sandbox.traffic_words import DOMAINS, PEOPLE

Way = Literal["sql", "http", "python", "cli"]
WAYS: tuple[Way, ...] = ("sql", "http", "python", "cli")
MOST_BY_CLI = 12
"""Each of these is a process of its own, half a second of a processor."""
UNICODE_EVERY = 97
"""Every so many emails go to a local part beyond ASCII (RFC 6531)."""


class Fate(StrEnum):
    """What should become of a recipient: the states of the ledger that a plan can end in."""

    SENT = "sent"
    BOUNCED = "bounced"
    CANCELLED = "cancelled"


class Planned(msgspec.Struct, frozen=True, kw_only=True):
    """One email to send. `fates` has its recipients, by address as pgmail compares them.

    `cancel`: it is scheduled far ahead and taken back after it was sent. `greylisted`: the receiving side
    puts it off once. `due_in_seconds`: scheduled so far ahead of the moment of sending.
    """

    number: int  # from 1
    way: Way
    kind: str
    body: dict[str, Any]
    fates: dict[str, Fate]
    due_in_seconds: float | None = None
    cancel: bool = False
    greylisted: bool = False

    def body_at(self, now: datetime) -> dict[str, Any]:
        """The body of `POST /emails`, sent at the aware moment `now`."""
        if self.due_in_seconds is None:
            return self.body
        due = now + timedelta(seconds=self.due_in_seconds)
        return {**self.body, "scheduled_at": due.isoformat()}

    @property
    def prompt(self) -> bool:
        """Whether nothing but pgmail decides how soon it arrives."""
        return self.due_in_seconds is None and not self.greylisted and not self.cancel


class Kind(msgspec.Struct, frozen=True):
    """A kind of mail: how many of it are in a round of fifty, and what writes it.

    `steer`: the word before the local part that tells the sink what to do.
    """

    name: str
    share: int
    write: Callable[[traffic_kinds.Scene], dict[str, Any]]
    people: int = 1
    fate: Fate = Fate.SENT
    steer: str = ""
    due_in_seconds: float | None = None
    cancel: bool = False


KINDS: tuple[Kind, ...] = (
    Kind("order", 8, traffic_kinds.order),
    Kind("welcome", 7, traffic_kinds.welcome),
    Kind("newsletter", 6, traffic_kinds.newsletter),
    Kind("reset", 5, traffic_kinds.reset),
    Kind("receipt", 4, traffic_kinds.receipt),
    Kind("invoice", 4, traffic_kinds.invoice),
    Kind("greeting", 4, traffic_kinds.greeting),
    Kind("postcard", 3, traffic_kinds.postcard),
    Kind("team", 2, traffic_kinds.team, people=4),
    Kind("reminder", 2, traffic_kinds.reminder, due_in_seconds=2.0),
    Kind("invitation", 1, traffic_kinds.invitation, people=3),
    Kind("terms", 1, traffic_kinds.terms),
    Kind("greylisted", 1, traffic_kinds.order, steer="deferonce"),
    Kind("gone", 1, traffic_kinds.receipt, steer="bounce", fate=Fate.BOUNCED),
    Kind("withdrawn", 1, traffic_kinds.reminder, fate=Fate.CANCELLED, due_in_seconds=3600.0, cancel=True),
)


def make_traffic(messages: int, seed: int = 1) -> list[Planned]:
    """A plan of so many emails, numbered from 1. ValueError below 1."""
    if messages < 1:
        raise ValueError(f"messages: must be at least 1, not {messages}")
    # Not for secrets: the same seed has to give the same mail.
    rng = random.Random(seed)  # noqa: S311
    ways = _ways(messages, rng)
    kinds = _kinds(rng)
    return [_plan(number, ways[number - 1], next(kinds), rng) for number in range(1, messages + 1)]


def _plan(number: int, way: Way, kind: Kind, rng: random.Random) -> Planned:
    guests = [_someone(rng, number, place, kind.steer) for place in range(kind.people)]
    body = kind.write(traffic_kinds.Scene(number=number, guests=guests, rng=rng))
    return Planned(
        number=number,
        way=way,
        kind=kind.name,
        body={**body, "tags": {"demo": kind.name}},
        fates={address.parse(guest.address).address: kind.fate for guest in guests},
        due_in_seconds=kind.due_in_seconds,
        cancel=kind.cancel,
        greylisted=kind.steer == "deferonce",
    )


def _someone(rng: random.Random, number: int, place: int, steer: str) -> Guest:
    """Somebody at an address that nobody else in the plan has."""
    person = rng.choice(PEOPLE)
    local = ".".join(word for word in (steer, person.local, f"{number}{'abcd'[place]}") if word)
    if place == 0 and number % UNICODE_EVERY == 0 and not steer:
        local = f"ünï.{number}"
    addr = f"{local}@{rng.choice(DOMAINS)}"
    return Guest(person, addr, with_name(person.name, addr))


def with_name(name: str, addr: str) -> str:
    """`Name <addr>`, quoted where RFC 5322 asks for it."""
    if not name:
        return addr
    if any(char in name for char in '"(),:;<>@[\\].'):
        quoted = name.replace("\\", "\\\\").replace('"', '\\"')
        return f'"{quoted}" <{addr}>'
    return f"{name} <{addr}>"


def _kinds(rng: random.Random) -> Iterator[Kind]:
    """Kinds without end, in rounds that hold each as often as its share says."""
    while True:
        round_ = [kind for kind in KINDS for _ in range(kind.share)]
        rng.shuffle(round_)
        yield from round_


def _ways(messages: int, rng: random.Random) -> list[Way]:
    by_cli = min(MOST_BY_CLI, messages // 20 + (messages >= len(WAYS)))
    rest: tuple[Way, ...] = ("sql", "http", "python")
    ways: list[Way] = ["cli" for _ in range(by_cli)]
    ways += [rest[n % len(rest)] for n in range(messages - by_cli)]
    rng.shuffle(ways)
    return ways

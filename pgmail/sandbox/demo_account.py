"""The accounts of a demo: what was handed in, what the ledger says, what the receiving side counted.

Three sources that know nothing of each other: the plan with the ids that the ways in answered, the database
(the ledger's sums and each recipient's state), and the report that the sink wrote. `close` holds them against
each other, recipient by recipient.

What can go wrong is what this is for; `Account.balanced` is false then and `Account.doubts` says in words
where. A mail whose reply was lost arrives twice: that is a copy, which is counted, not a doubt.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from uuid import UUID

import msgspec

from pgmail.sandbox.demo_send import Sent
from pgmail.sandbox.demo_settings import DOMAIN
from pgmail.sandbox.traffic import Fate

OPEN = ("scheduled", "queued", "sending", "deferred")
FINAL = frozenset({"sent", "bounced", "suppressed", "expired", "cancelled", "dead", "held"})
MOST_DOUBTS = 10

Key = tuple[str, str]
"""Message-ID and recipient, both lower-case."""


class Summary(msgspec.Struct, frozen=True, kw_only=True):
    """The last line of `pgmail demo --json`.

    Rate and latencies are of mail that nothing but pgmail held up: not scheduled, not put off by the sink. A
    latency is from the statement that enqueued it to the sink's acceptance. The rate is from the first mail
    enqueued to the last accepted, without the command line's, each of which waits for a process to start.
    """

    messages: int
    recipients: int
    sent: int
    bounced: int
    dead: int
    held: int
    cancelled: int
    lost: int  # expected at the sink, or final in the ledger, and not there
    copies: int  # at the sink, beyond one for each Message-ID and recipient
    mails_per_s: float
    p50_ms: float | None
    p99_ms: float | None


class Account(NamedTuple):
    """The result. `doubts` are sentences, none when all is well."""

    summary: Summary
    at_sink: int  # different (Message-ID, recipient)
    ledger: Mapping[str, int]
    doubts: tuple[str, ...]

    @property
    def balanced(self) -> bool:
        """Whether every recipient is accounted for."""
        return not self.doubts

    def doubting(self, doubt: str) -> Account:
        """The same with one more doubt, the first."""
        return self._replace(doubts=(doubt, *self.doubts))


class Arrival(msgspec.Struct, frozen=True):
    """A line of the sink's report."""

    message_id: str
    recipient: str
    at: float


class SinkReport:
    """The sink's report, read as it grows."""

    def __init__(self, path: Path) -> None:
        self.counts: Counter[Key] = Counter()
        self.first_at: dict[Key, float] = {}
        self._path = path
        self._offset = 0

    def read(self) -> int:
        """Read what is new; how many mails arrived in all."""
        with self._path.open("rb") as file:
            file.seek(self._offset, os.SEEK_SET)
            new = file.read()
        whole = new[: new.rfind(b"\n") + 1]  # a line may be on its way
        self._offset += len(whole)
        for line in whole.splitlines():
            arrival = msgspec.json.decode(line, type=Arrival)
            key = (arrival.message_id.strip("<>").lower(), arrival.recipient.lower())
            self.counts[key] += 1
            self.first_at.setdefault(key, arrival.at)
        return self.counts.total()


def message_id(id_: UUID) -> str:
    """The Message-ID of an email with this id (of a recipient's, in personal mode)."""
    return f"{id_.hex}@{DOMAIN}"


def close(
    sent: Sequence[Sent], rows: Sequence[Any], ledger: Mapping[str, int], report: SinkReport, clock: float
) -> Account:
    """Hold the three sources against each other.

    `rows`: the query `recipients`. `clock`: seconds that the server's clock is ahead of this host's.
    """
    report.read()
    by_place = {(row.message_id, row.address): row for row in rows}
    doubts: list[str] = []
    lost = 0
    expected: set[Key] = set()
    prompt: list[tuple[float, float]] = []
    bulk: list[tuple[float, float]] = []
    for planned, id_ in sent:
        for address, fate in planned.fates.items():
            row = by_place.pop((id_, address), None)
            if row is None:
                lost += 1
                doubts.append(f"email {id_} has no recipient {address} in the database")
                continue
            key = (message_id(row.id if row.mode == "personal" else id_), address)
            arrived = report.counts.get(key, 0)
            if arrived:
                expected.add(key)
            if row.state not in FINAL or (row.state == Fate.SENT and not arrived):
                lost += 1
                doubts.append(f"{address} of email {id_} is {row.state} and arrived {arrived} times")
            elif row.state != fate or (arrived and row.state != Fate.SENT):
                doubts.append(
                    f"{address} of email {id_} is {row.state}, was to be {fate}, and arrived {arrived} times"
                )
            elif planned.prompt and arrived:
                prompt.append((row.created_at - clock, report.first_at[key]))
                if planned.way != "cli":
                    bulk.append(prompt[-1])
    doubts += [f"email {place[0]} to {place[1]} is in the database and was never sent" for place in by_place]
    strangers = report.counts.keys() - expected
    doubts += [f"{key[0]} arrived for {key[1]} and nobody sent it" for key in strangers]
    at_sink = len(expected)
    doubts += _sums(ledger, recipients=sum(len(item.planned.fates) for item in sent), at_sink=at_sink)
    latencies = sorted(max(at - created, 0.0) for created, at in prompt)
    summary = Summary(
        messages=len(sent),
        recipients=ledger["enqueued"],
        sent=ledger["sent"],
        bounced=ledger["bounced"],
        dead=ledger["dead"],
        held=ledger["held"],
        cancelled=ledger["cancelled"],
        lost=lost,
        copies=report.counts.total() - len(report.counts),
        mails_per_s=_rate(bulk or prompt),
        p50_ms=percentile_ms(latencies, 0.50),
        p99_ms=percentile_ms(latencies, 0.99),
    )
    return Account(summary, at_sink, ledger, tuple(shorten(doubts)))


def shorten(doubts: Sequence[str]) -> list[str]:
    """The first of them, and how many more there are."""
    more = len(doubts) - MOST_DOUBTS
    return [*doubts[:MOST_DOUBTS], *([f"and {more} more"] if more > 0 else [])]


def still_open(ledger: Mapping[str, int]) -> int:
    """How many recipients have not come to an end."""
    return sum(ledger[state] for state in OPEN)


def percentile_ms(ordered: Sequence[float], part: float) -> float | None:
    """The nearest-rank percentile of ascending seconds, in milliseconds; None of nothing."""
    if not ordered:
        return None
    rank = max(1, -(-len(ordered) * int(part * 100) // 100))
    return round(ordered[rank - 1] * 1000, 1)


def _sums(ledger: Mapping[str, int], *, recipients: int, at_sink: int) -> list[str]:
    doubts = []
    if ledger["difference"] != 0:
        doubts.append(f"the ledger differs by {ledger['difference']}")
    if ledger["enqueued"] != recipients:
        doubts.append(f"{recipients} recipients were handed in, the ledger has {ledger['enqueued']}")
    if ledger["sent"] != at_sink:
        doubts.append(f"the ledger has {ledger['sent']} sent, the sink has {at_sink}")
    if waiting := still_open(ledger):
        doubts.append(f"{waiting} recipients have not come to an end")
    return doubts


def _rate(mails: Sequence[tuple[float, float]]) -> float:
    """Mails a second, from the first that was enqueued to the last that arrived."""
    if not mails:
        return 0.0
    seconds = max(at for _, at in mails) - min(created for created, _ in mails)
    return round(len(mails) / max(seconds, 0.001), 1)

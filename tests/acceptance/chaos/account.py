"""The accounts of a chaos run: what clients were told, what the database says, what the far side wrote down.

Three sources that know nothing of each other, held against each other mail by mail. `Account.doubts` are sentences,
none when all is well:

- every acknowledged email is there, once, under the id that was answered; what is there besides was sent by a client
  that got no answer; each recipient stands in exactly one place, and the ledger says the same with difference 0
- what is `sent` was accepted by the far side, and what the far side accepted is nobody's invention
- every copy beyond the first has an `email.in_doubt` event of its own; mail of a stream that holds has no copies
- nothing is dead: random kills are no poison
"""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import msgspec

from pgmail.sandbox.demo_account import FINAL, OPEN, message_id, shorten
from tests.acceptance.chaos.load import Load
from tests.acceptance.chaos.place import HOLD, Place

_STATES = (*OPEN, *sorted(FINAL))
_RECIPIENTS = """
select r.id, r.message_id, r.address, m.stream,
  (o.recipient_id is not null)::int + (d.recipient_id is not null)::int + (q.id is not null)::int as places,
  pgmail.state_of(o.state, d.recipient_id is not null, q.id is not null, q.leased_by is not null, q.due_at, q.wait,
                  pgmail.now()) as state,
  coalesce(e.doubts, 0)::int as doubts, d.error
from pgmail.recipient r
join pgmail.message m on m.tenant_id = r.tenant_id and m.id = r.message_id
left join pgmail.queue q on q.tenant_id = r.tenant_id and q.id = r.id
left join pgmail.outcome o on o.tenant_id = r.tenant_id and o.recipient_id = r.id
left join pgmail.dead_letter d on d.tenant_id = r.tenant_id and d.recipient_id = r.id
left join (select tenant_id, recipient_id, count(*) as doubts from pgmail.event where type = 'email.in_doubt'
           group by 1, 2) e on e.tenant_id = r.tenant_id and e.recipient_id = r.id
"""


class Accepted(msgspec.Struct, frozen=True):
    """A line of the far side's report."""

    message_id: str
    recipient: str
    at: float
    by: str
    replied: bool


def accepted(report: Path) -> list[Accepted]:
    """What the far side accepted so far, oldest first."""
    whole = report.read_bytes()
    lines = whole[: whole.rfind(b"\n") + 1].splitlines()
    return [msgspec.json.decode(line, type=Accepted) for line in lines]


@dataclass
class Account:
    """What was found; counts are of recipients."""

    enqueued: int = 0
    acknowledged: int = 0
    answer_lost: int = 0  # committed, and no client was told
    still_open: int = 0
    sent: int = 0
    held: int = 0
    in_doubt: int = 0  # recipients with an event of it
    copies: int = 0
    lost: int = 0
    doubts: list[str] = field(default_factory=list)


def close(here: Place, load: Load) -> Account:
    """Hold the three against each other. No client may have an open question; workers may go on.

    The report is read before the database, for a copy's event comes before the copy; and after it, for a dot comes
    before its settlement.
    """
    earlier = Counter((line.message_id, line.recipient) for line in accepted(here.report))
    with here.snapshot():
        rows = here.sql(_RECIPIENTS)
        ledger = here.sql("select * from pgmail.ledger where enqueued > 0")
        recount = Counter({row.state: row.n for row in here.sql("select state, n from pgmail.recount()")})
    later = Counter((line.message_id, line.recipient) for line in accepted(here.report))
    account = Account(enqueued=len(rows), acknowledged=len(load.acknowledged), doubts=list(load.wrong))
    by_address = {row.address: row for row in rows}
    _told(account, rows, by_address, load)
    for row in rows:
        _recipient(account, row, earlier, later)
    known = {(message_id(row.message_id), row.address) for row in rows}
    account.doubts += [f"{key} arrived and nobody sent it" for key in later.keys() - known]
    _sums(account, ledger, recount, Counter(row.state for row in rows))
    account.doubts = shorten(account.doubts)
    return account


def _told(account: Account, rows: list[Any], by_address: dict[str, Any], load: Load) -> None:
    """What clients were told."""
    for address, count in Counter(row.address for row in rows).items():
        if count > 1:
            account.doubts.append(f"{address} was enqueued {count} times")
    for address, id_ in load.acknowledged.items():
        row = by_address.get(address)
        if row is None or str(row.message_id) != id_:
            account.lost += 1
            account.doubts.append(f"{address} was acknowledged as {id_}; the database has {row}")
    untold = by_address.keys() - load.acknowledged.keys()
    account.answer_lost = len(untold)
    strange = untold - load.unanswered
    account.doubts += [
        f"{address} is there, and no client was without an answer for it" for address in strange
    ]


def _recipient(account: Account, row: Any, earlier: Counter[Any], later: Counter[Any]) -> None:
    """One recipient: where it stands, and what the far side has."""
    key = (message_id(row.message_id), row.address)
    account.in_doubt += row.doubts > 0
    if row.places != 1 or row.state == "unknown":
        account.lost += 1
        account.doubts.append(f"{row.address} stands in {row.places} places, as {row.state}")
    if row.state in OPEN:
        account.still_open += 1
    elif row.state == "sent":
        account.sent += 1
        if not later[key]:
            account.lost += 1
            account.doubts.append(f"{row.address} is sent and the far side never had it")
    elif row.state == "held" and row.stream == HOLD:
        account.held += 1
        if not row.doubts:
            account.doubts.append(f"{row.address} is held and was never in doubt")
    else:
        account.doubts.append(f"{row.address} is {row.state}: {row.error}")
    if (copies := earlier[key] - 1) > 0:
        account.copies += copies
        if row.stream == HOLD:
            account.doubts.append(f"{row.address} arrived {copies + 1} times, and its stream holds")
        elif row.doubts < copies:
            account.doubts.append(f"{row.address} has {copies} copies and was {row.doubts} times in doubt")


def _sums(account: Account, ledger: list[Any], recount: Counter[str], states: Counter[str]) -> None:
    """The ledger's two sources and the full count."""
    found = _figures(states)
    for line in ledger:
        if line.difference != 0 or line.enqueued != account.enqueued:
            account.doubts.append(
                f"the ledger differs by {line.difference}, and has {line.enqueued} of {account.enqueued} enqueued"
            )
        if (told := _figures({state: getattr(line, state) for state in _STATES})) != found:
            account.doubts.append(f"the ledger has {told}, its recipients are {found}")
    if (counted := _figures(recount)) != found:
        account.doubts.append(f"recounted {counted}, the recipients are {found}")


def _figures(states: Mapping[str, int]) -> dict[str, int]:
    """How many stand where. What is open is one figure: a deferred mail is due by itself between two questions."""
    figures = {state: n for state, n in states.items() if n and state not in OPEN}
    return figures | {"open": sum(states.get(state, 0) for state in OPEN)}

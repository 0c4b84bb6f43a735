"""What tests of the lane book share: a clock that stands still, lanes, and claims that give what a test wants."""

from collections import Counter
from collections.abc import Iterable
from datetime import datetime
from itertools import islice
from uuid import UUID

from pgmail.store.work import LaneRow, Lease
from pgmail.worker.lanes import Lane, LaneBook
from tests.worker.kit import NOON


def row(
    lane: int = 1,
    tenant: int = 1,
    priority: int = 2,
    *,
    active: bool = True,
    version: int = 1,
    rewind_to: datetime | None = None,
) -> LaneRow:
    return LaneRow(tenant, lane, "transactional", priority, f"d{lane}.example", active, version, rewind_to)


def lease(lane: Lane, due: datetime = NOON, id: int = 1) -> Lease:
    return Lease(lane.tenant, UUID(int=id), UUID(int=9), lane.id, due, 1, 0, 0, None)


def take(book: LaneBook, slots: int = 10, *, most: int | None = None, due: datetime = NOON) -> list[Lane]:
    """One claim that gives every lane all it asked for, or `most` in all."""
    return [lane for _, lanes, _ in claim(book, slots, most=most, due=due) for lane in lanes]


def claim(
    book: LaneBook, slots: int = 10, tenants: int = 1, *, most: int | None = None, due: datetime = NOON
) -> list[tuple[int, list[Lane], int]]:
    """The same for several tenants; (tenant, lanes, rows that it got) of each."""
    got = []
    for tenant, lanes, share in book.choose(lambda _: slots, go, tenants):
        claims = book.claims(lanes, share, untraced)
        asked = ((lane, n) for lane, each in zip(lanes, claims, strict=True) for n in range(each.limit))
        found = [lease(lane, due, n + 1) for lane, n in islice(asked, most)]
        book.claimed(lanes, claims, found)
        got.append((tenant, lanes, len(found)))
    return got


def rows_of_tenants(book: LaneBook, rounds: int, slots: int, tenants: int = 8) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(rounds):
        for tenant, _, n in claim(book, slots, tenants):
            found[tenant] += n
    return found


def go(_: Lane) -> None:
    """Nothing stops a lane."""


def untraced(_: Lane) -> bool:
    return False


class Stops:
    """What stops lanes, and how often each was asked about."""

    def __init__(self, *ids: int, key: str = "a limit") -> None:
        self.ids, self.key = set(ids), key
        self.asked: Counter[int] = Counter()

    def __call__(self, lane: Lane) -> str | None:
        self.asked[lane.id] += 1
        return self.key if lane.id in self.ids else None


def served(book: LaneBook, rounds: int, of: str, **more: int) -> Counter[int]:
    found: Counter[int] = Counter()
    for _ in range(rounds):
        for lane in take(book, **more):
            found[getattr(lane, of)] += 1
    return found


def learn(book: LaneBook, rows: Iterable[LaneRow], *, complete: bool = False) -> bool:
    return book.update(rows, complete=complete)

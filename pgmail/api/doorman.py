"""Quotas at the door of HTTP: who is limited takes places before the email goes to the database.

A key that no rule concerns costs one look a second and nothing else. For one under a rule, places are taken in
a row that all API processes share, those of requests that come at once together: so the rate holds however many
processes there are. A place is used at once or lost, never kept, so no process has more than is its own.

What can go wrong: a client that does not heed Retry-After and asks a thousand times a second. After a refusal
this process refuses by itself until the rule's next moment, a second at most, and asks nobody; it does so before
the email is judged or sealed (`glance`), and where it was not about one stream before the body is even read as
JSON. And a database that is away: nobody under a rule is let in, whose email could not be stored either.

Answers carry `RateLimit-Policy` and `RateLimit` (draft-ietf-httpapi-ratelimit-headers, revision 10: lists of RFC
9651 strings with parameters): `q` emails in `w` seconds; `r` are left, and more in `t` seconds.
"""

from __future__ import annotations

import asyncio
import math
from collections import Counter
from collections.abc import Iterable, Mapping
from functools import partial
from typing import Any, NamedTuple
from uuid import UUID

from pgmail.clock import Clock, SystemClock
from pgmail.errors import DatabaseAway, Refused
from pgmail.singleflight import SingleFlight
from pgmail.store import quotas as store
from pgmail.store.database import Database
from pgmail.store.keys import Caller

TTL_SECONDS = 1.0
EARLY_SECONDS = (
    0.3  # of these, the last ones, in which a request has the question asked anew and does not wait
)
STALE_SECONDS = 10.0  # so long the last look counts when another cannot be had
MAX_KEPT = 10_000
MAX_GROUPS = 500  # in one statement
ANY_STREAM = ""  # of what is refused whatever its stream
LOW = 3  # the priority that backpressure stops
DAY = 86_400

_PEOPLE = ("to", "cc", "bcc")
_WORDS = {"rate": "a second", "day": "a day"}


class Limited(Refused):
    """Too much for now: 429 for a quota, 503 for backpressure. `headers` say when to try again."""

    def __init__(self, code: str, message: str, status: int, headers: Mapping[str, str]) -> None:
        super().__init__(code, "", message, status)
        self.headers = dict(headers)


class _Kept(NamedTuple):
    until: float
    gate: store.Gate


class _Asking:
    """Requests of one key that wait for places."""

    def __init__(self) -> None:
        self.waiting: list[
            tuple[dict[str, int], asyncio.Future[tuple[store.Answer, list[store.Used]] | Exception]]
        ] = []
        self.task: asyncio.Task[None] | None = None


class Doorman:
    """Lets emails of limited keys in, or says when to come again. For one event loop."""

    def __init__(self, database: Database, clock: Clock | None = None) -> None:
        self._database = database
        self._clock = clock or SystemClock()
        # By key: callers differ by the address that each request came from, too, and those are without end.
        self._gates: dict[UUID, _Kept] = {}
        self._looks = SingleFlight[UUID, store.Gate]()
        self._asking: dict[UUID, _Asking] = {}
        self._dry: dict[tuple[UUID, str], tuple[float, store.Answer, list[store.Used]]] = {}

    def glance(self, caller: Caller, bodies: Any = None) -> None:
        """Refuse at once, from memory, what was refused a moment ago and would be again; nothing is asked or taken.

        Without bodies only what concerns every email of the caller. Raises Limited.
        """
        if not self._dry:
            return
        emails = _emails(bodies)
        streams = dict.fromkeys((ANY_STREAM, *map(_stream, emails)))
        found = self._known_dry(caller, streams)
        if found is not None:
            answer, rules = found
            rules = [rule for rule in rules if rule.stream is None or rule.stream in streams]
            raise _refusal(answer, max(1, sum(map(_recipients, emails))), _headers(rules))

    async def let_in(self, caller: Caller, bodies: Any) -> dict[str, str]:
        """Let an email in, or a list of them together; the headers that go with the answer.

        A body need not be right: what is not is refused later. Raises Limited: `rate_exceeded` and
        `limit_reached` (429), `backpressure` (503); and DatabaseAway.
        """
        kept = self._gates.get(caller.key_id)
        left = 0.0 if kept is None else kept.until - self._clock.monotonic()
        if kept is None or left <= 0:
            gate = await self._looks.ask(caller.key_id, partial(self._ask_gate, caller))
        else:
            gate = kept.gate
            if left <= EARLY_SECONDS:
                self._looks.begin(caller.key_id, partial(self._ask_gate, caller))
        if not (gate.rules or gate.doors):
            return {}
        emails = _emails(bodies)
        for body in emails:
            _press(gate, body)
        wanted = Counter[str]()
        for body in emails:
            wanted[_stream(body)] += _recipients(body)
        if not wanted or not _concerned(gate, wanted):
            return {}
        answer, rules = await self._take(caller, dict(wanted))
        rules = [rule for rule in rules if rule.stream is None or rule.stream in wanted]
        headers = _headers(rules)
        if answer.granted:
            return headers
        raise _refusal(answer, wanted.total(), headers)

    async def _ask_gate(self, caller: Caller) -> store.Gate:
        asked = self._clock.monotonic()
        try:
            gate = await store.gate(self._database, caller)
        except DatabaseAway:
            # A connection that broke is no reason to refuse what the next one may store.
            known = self._gates.get(caller.key_id)
            if known is None or asked > known.until + STALE_SECONDS:
                raise
            return known.gate
        if len(self._gates) >= MAX_KEPT:
            self._gates.clear()
        self._gates[caller.key_id] = _Kept(asked + TTL_SECONDS, gate)
        return gate

    async def _take(self, caller: Caller, group: dict[str, int]) -> tuple[store.Answer, list[store.Used]]:
        dry = self._known_dry(caller, (ANY_STREAM, *group))
        if dry is not None:
            return dry
        asking = self._asking.setdefault(caller.key_id, _Asking())
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        asking.waiting.append((group, future))
        if asking.task is None:
            asking.task = asyncio.create_task(self._serve(caller, asking))
        found = await future
        if isinstance(found, Exception):
            raise found
        answer, rules = found
        return answer, rules

    def _known_dry(
        self, caller: Caller, streams: Iterable[str]
    ) -> tuple[store.Answer, list[store.Used]] | None:
        """What a caller was told last for one of these streams, while that holds."""
        for stream in streams:
            until, answer, rules = self._dry.get((caller.key_id, stream), (0.0, None, []))
            if answer is not None and self._clock.monotonic() < until:
                return answer, rules
        return None

    async def _serve(self, caller: Caller, asking: _Asking) -> None:
        """Ask for all who wait, and again for those who came meanwhile."""
        while asking.waiting:
            groups, asking.waiting = asking.waiting[:MAX_GROUPS], asking.waiting[MAX_GROUPS:]
            try:
                taken = await store.take(self._database, caller, [group for group, _ in groups])
            except Exception as error:  # noqa: BLE001 - each request tells it
                for _, future in groups:
                    _tell(future, error)
                continue
            for (group, future), answer in zip(groups, taken.answers, strict=True):
                self._note(caller, group, answer, taken.rules)
                _tell(future, (answer, taken.rules))
        del self._asking[caller.key_id]

    def _note(
        self, caller: Caller, group: Mapping[str, int], answer: store.Answer, rules: list[store.Used]
    ) -> None:
        """Remember that nothing is left for a single recipient of a stream, so that nobody asks in vain."""
        if answer.granted or answer.seconds is None or sum(group.values()) != 1:
            return
        (stream,) = group
        if answer.scope != "stream":
            stream = ANY_STREAM  # the key's or the tenant's: another stream would not help
        if len(self._dry) >= MAX_KEPT:
            self._dry.clear()
        self._dry[caller.key_id, stream] = (
            self._clock.monotonic() + min(answer.seconds, TTL_SECONDS), answer, rules
        )  # fmt: skip


def _tell(future: asyncio.Future[Any], answer: Any) -> None:
    if not future.done():  # else the client has hung up
        future.set_result(answer)


def _emails(bodies: Any) -> list[dict[str, Any]]:
    """The emails in a body, or a list of them, that is not checked yet."""
    return [body for body in (bodies if isinstance(bodies, list) else [bodies]) if isinstance(body, dict)]


def _stream(body: Mapping[str, Any]) -> str:
    given = body.get("stream")
    return given if isinstance(given, str) else "transactional"


def _recipients(body: Mapping[str, Any]) -> int:
    """How many addresses a body names; the same one twice counts twice."""
    given = (body.get(key) for key in _PEOPLE)
    return max(1, sum(len(item) if isinstance(item, list) else item is not None for item in given))


def _concerned(gate: store.Gate, streams: Iterable[str]) -> bool:
    """Whether a rule or a closed door is about mail of these streams."""
    streams = frozenset(streams)
    return any(scope != "stream" or name in streams for scope, name in gate.rules) or any(
        door.kind == "bound" for door in gate.doors
    )


def _press(gate: store.Gate, body: Mapping[str, Any]) -> None:
    """Refuse mail of low priority under backpressure, unless its sender says that it may wait."""
    if body.get("on_limit") in {"delay", "hold"}:
        return
    priority = body.get("priority")
    if not (priority == "low" or (priority is None and _stream(body) in gate.low)):
        return
    for door in gate.doors:
        if door.kind == "pressure" and door.priority <= LOW and door.stream in {"", _stream(body)}:
            because = f'{door.reason}; send it later, or let it wait here: "on_limit": "delay"'
            raise Limited("backpressure", because, 503, _again(door.seconds))


def _refusal(answer: store.Answer, wanted: int, headers: Mapping[str, str]) -> Limited:
    whose = f"the {answer.scope}'s"
    if answer.seconds is None:
        because = f"{wanted} recipients at once; {whose} quota allows {answer.most} {_WORDS[answer.kind]}"
        return Limited("rate_exceeded", because, 429, {**headers, **_again(1)})
    words = {
        "rate": f"{whose} emails of this second are used up",
        "day": f"{whose} emails of today (UTC) are used up",
        "queued": f"{whose} queue holds as many emails as it may",
        "bound": "the tenant has handed over as much today as it may in a day",
    }
    code = "rate_exceeded" if answer.kind in _WORDS else "limit_reached"
    return Limited(code, words.get(answer.kind, answer.kind), 429, {**headers, **_again(answer.seconds)})


def _again(seconds: float) -> dict[str, str]:
    return {"Retry-After": str(max(1, math.ceil(seconds)))}  # whole seconds (RFC 9110, section 10.2.3)


def _headers(rules: Iterable[store.Used]) -> dict[str, str]:
    """What answers say of the rules: `"key-second";q=50;w=1` and `"key-second";r=49;t=1`."""
    policies, left = [], []
    for rule in rules:
        if rule.per_second is not None:
            policies.append(f'"{rule.scope}-second";q={rule.per_second};w=1')
            left.append(f'"{rule.scope}-second";r={rule.left};t=1')
        if rule.per_day is not None:
            policies.append(f'"{rule.scope}-day";q={rule.per_day};w={DAY}')
            left.append(f'"{rule.scope}-day";r={rule.left_today};t={math.ceil(rule.midnight)}')
    if not policies:
        return {}
    return {"RateLimit-Policy": ", ".join(policies), "RateLimit": ", ".join(left)}

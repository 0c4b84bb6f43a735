"""A site that refuses again and again is left alone; a stray reply pauses nothing."""

from typing import Any

import pytest
import structlog

from pgmail.domain.reply import Phase, Reply, Result
from pgmail.errors import DatabaseAway
from pgmail.shaping.verdict import Verdict, decide
from pgmail.store import limits
from pgmail.worker.slowing import MOST_KEPT, SEVERAL, Slowing


def said(code: int, text: str) -> Verdict:
    return decide(Result(phase=Phase.RCPT, reply=Reply(code, text)))


LISTED = said(554, "Client host [192.0.2.1] blocked using zen.spamhaus.org")
GONE = said(550, "User unknown")


class Bench:
    """A slowing whose pauses are kept, with a clock moved by hand."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 100.0
        self.paused: list[tuple[int, str, str]] = []
        self.away = False
        monkeypatch.setattr(limits, "slow_site", self._slow)
        self.slowing = Slowing(None, lambda: self.now)

    async def _slow(self, _: Any, tenant: int, site: str, reason: str) -> None:
        if self.away:
            raise DatabaseAway("gone")
        self.paused.append((tenant, site, reason))

    async def hear(
        self, verdict: Verdict = LISTED, times: int = 1, *, site: str = "gmail.com", tenant: int = 1
    ) -> None:
        for _ in range(times):
            await self.slowing.learn(tenant, site, "default", verdict)


@pytest.fixture
def bench(monkeypatch):
    return Bench(monkeypatch)


async def test_several_within_a_minute_pause_the_site_with_the_last_reply(bench):
    await bench.hear(times=SEVERAL - 1)
    assert bench.paused == []
    await bench.hear()
    ((tenant, site, reason),) = bench.paused
    assert (tenant, site) == (1, "gmail.com")
    assert "554 Client host [192.0.2.1] blocked using zen.spamhaus.org" in reason


async def test_nobodys_address_gets_into_the_pause_or_the_log(bench):
    with structlog.testing.capture_logs() as lines:
        await bench.hear(
            said(
                554,
                "<ada@example.org>: [192.0.2.1] blocked using zen.spamhaus.org, see x.example/?e=ada%40b.example",
            ),
            5,
        )
    ((_, _, reason),) = bench.paused
    assert "blocked" in reason
    assert "ada" not in reason + str(lines)


async def test_stray_replies_pause_nothing(bench):
    for _ in range(20):
        await bench.hear()
        bench.now += 30
    assert bench.paused == []


async def test_tenants_and_sites_are_counted_apart(bench):
    for site in ("gmail.com", "gmx.de"):
        for tenant in (1, 2):
            await bench.hear(times=SEVERAL - 1, site=site, tenant=tenant)
    assert bench.paused == []


async def test_other_refusals_do_not_count(bench):
    await bench.hear(GONE, times=50)
    assert bench.paused == []


async def test_a_database_that_is_away_is_borne(bench):
    bench.away = True
    await bench.hear(times=SEVERAL)
    bench.away = False
    await bench.hear(times=SEVERAL)
    assert len(bench.paused) == 1


async def test_what_is_counted_does_not_grow_for_ever(bench):
    for number in range(MOST_KEPT):
        await bench.hear(site=f"s{number}.example")
    bench.now += 61
    await bench.hear()
    assert len(bench.slowing._seen) == 1

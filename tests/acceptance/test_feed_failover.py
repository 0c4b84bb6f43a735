"""A standby takes over that lacks the last transactions: who listens hears of it, and webhooks leave nothing out."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx

from pgmail.store import hooks
from pgmail.store.database import Database
from tests.acceptance.own_server import Server
from tests.api.conftest import new_key
from tests.api.test_api_server import serving
from tests.sql.kit import one, rows, send
from tests.sse import listening
from tests.waiting import eventually

HOOK = """
with h as (insert into pgmail.hook (tenant_id, id, url, types, created_by)
           values (1, pgmail.uuid7(), 'https://a.example', '{*}', 'x'))
select pgmail.begin_hooks()
"""


def mail(server: Server) -> str:
    with server.connect("producer") as app:
        return str(send(app))


async def told_of(dsn: str) -> None:
    """What the leader does for webhooks, until nothing is new."""
    pool = Database(dsn, name="test")
    await pool.open()
    try:
        while (await hooks.fan_out(pool, 1_000)).more:
            pass
    finally:
        await pool.close()


async def page(url: str, key: str, **query: Any) -> httpx.Response:
    async with httpx.AsyncClient(headers={"Authorization": f"Bearer {key}"}, timeout=30) as client:
        return await client.get(f"{url}/events", params=query)


async def test_after_a_lossy_failover_nobody_goes_on_as_if_nothing_had_been(new_server, servers, tmp_path):
    primary: Server = await asyncio.to_thread(new_server)
    primary.ask(HOOK)
    standby = servers(primary.base_backup(tmp_path / "standby", "--write-recovery-conf")).start()
    hosts = f"127.0.0.1:{primary.port},127.0.0.1:{standby.port}"
    more = "?target_session_attrs=read-write"
    key = new_key(primary)
    with serving(primary.dsn("api").replace(f"127.0.0.1:{primary.port}", hosts) + more) as url:
        async with listening(url, key) as stream, asyncio.timeout(90):
            known = mail(primary)
            await stream.take(1)
            await told_of(primary.dsn("worker"))
            waiting = mail(primary)  # of which no webhook was told yet
            await stream.take(1)
            at = primary.ask("select pg_current_wal_flush_lsn()")
            await eventually(
                lambda: standby.ask("select pg_last_wal_replay_lsn() >= %s", [at], role="postgres"), 20
            )
            standby.stop()  # what follows does not reach it
            for _ in range(3):
                mail(primary)
            lost = (await stream.take(3))[-1].id
            primary.kill()
            standby.start().promote()
            # Its transactions take the numbers of those that are lost, and more.
            late = [mail(standby) for _ in range(30)]
            (gone,) = await stream.take(1)
            assert (gone.type, gone.data["reason"]) == ("dropped", "cursor_gone")
        answer = await page(url, key, cursor=lost)
        assert (answer.status_code, answer.json()["code"]) == (410, "cursor_gone")
        assert "It was made at" in answer.json()["detail"]
        since = (datetime.now(UTC) - timedelta(minutes=20)).isoformat()
        events = (await page(url, key, since=since)).json()["data"]
        assert [event["data"]["email_id"] for event in events] == [known, waiting, *late]
    await told_of(standby.dsn("worker"))
    with standby.connect() as owner:
        assert one(owner, "select count(*) from pgmail.audit where action = 'webhook.begin_anew'") == 0
        queued = rows(owner, "select email_id::text from pgmail.hook_queue order by at, event_id")
        assert [email for (email,) in queued] == [known, waiting, *late]

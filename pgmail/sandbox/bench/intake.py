"""`enqueue` and `api`: how fast mail is taken in, by SQL and over HTTP. No worker runs meanwhile."""

from __future__ import annotations

import msgspec

from pgmail.errors import SandboxError
from pgmail.sandbox.bench import http_load
from pgmail.sandbox.bench.ground import START_SECONDS, Api, Place, conditions, until
from pgmail.sandbox.bench.workers import peak_rss_mb
from pgmail.sandbox.ports import answers
from pgmail.store import bench as store

EMAIL = {
    "from": "shop@example.com",
    "to": "alice@example.com",
    "subject": "Hello",
    "text": "Hi Alice, your order shipped.",
}
BATCH = 1000
BATCH_CONNECTIONS = 4
CONNECTIONS = (1, 16, 64)


def enqueue(here: Place, *, seconds: int = 5) -> dict[str, object]:
    """SQL `send` from 1 and 16 clients, one a transaction, and `send_many` of 1,000; a mail has 4 kB.

    `wal_bytes` are of a mail sent one by one, its content included; `content_bytes` is what that takes.
    """
    here.fresh()
    before = conditions(here, seconds_each=seconds)
    one = store.text("send_one")
    store.warm(here.owner)
    wal, count = store.wal(here.owner), store.messages(here.owner)
    figures: dict[str, object] = {
        "send_1_per_s": round(here.pgbench(one, 1, seconds)),
        "send_16_per_s": round(here.pgbench(one, 16, seconds)),
    }
    written = (store.wal(here.owner) - wal) / max(1, store.messages(here.owner) - count)
    many = here.pgbench(store.text("send_thousand"), 1, seconds)
    return figures | {
        "send_many_per_s": round(many * 1000),
        "wal_bytes": round(written),
        "content_bytes": round(store.content_bytes(here.owner)),
        "conditions": before,
    }


def api(here: Place, *, seconds: int = 5) -> dict[str, object]:
    """`POST /emails` at one API process from 1, 16 and 64 kept-open connections, and batches of 1,000 from 4.

    Every answer must be a success and every mail that was answered must be in the database.
    """
    here.fresh()
    client = http_load.client()
    before = conditions(here, seconds_each=seconds, client=client, batch_connections=BATCH_CONNECTIONS)
    server = here.api()
    try:
        figures = _posted(here, server, seconds)
    finally:
        server.process.stop()
    return figures | {"conditions": before}


def _posted(here: Place, server: Api, seconds: int) -> dict[str, object]:
    """The figures of a running API. SandboxError when a mail that was answered is not there."""
    url, headers = f"http://127.0.0.1:{server.port}", {"Authorization": f"Bearer {server.key}"}
    one = http_load.Request(f"{url}/emails", msgspec.json.encode(EMAIL), headers)
    batch = http_load.Request(f"{url}/emails/batch", msgspec.json.encode([EMAIL] * BATCH), headers)
    until(lambda: answers(f"{url}/health/ready"), START_SECONDS, "the API does not become ready")
    http_load.load(one, 4, min(seconds, 2), here.folder)  # so that plans and connections are there
    stored, answered = store.messages(here.owner), 0
    figures: dict[str, object] = {}
    for connections in CONNECTIONS:
        found = http_load.load(one, connections, seconds, here.folder)
        answered += found.answered
        figures[f"rps_{connections}"] = round(found.per_s)
        figures[f"p50_{connections}_ms"] = round(found.p50_ms, 2)
        figures[f"p99_{connections}_ms"] = round(found.p99_ms, 2)
    # The client of our own waits for the answers under way; wrk would forget them, and they are long.
    many = http_load.own(batch, BATCH_CONNECTIONS, seconds)
    answered += many.answered * BATCH
    if (count := store.messages(here.owner) - stored) < answered:
        raise SandboxError(f"{answered} emails were answered with success, {count} are in the database")
    peak = peak_rss_mb(server.process.pid)
    return figures | {
        "batch_per_s": round(many.per_s * BATCH),
        "peak_rss_mb": [peak] if peak is not None else [],
    }

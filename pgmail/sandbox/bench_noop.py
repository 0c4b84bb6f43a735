"""A worker whose relay is nowhere: it claims, renders and settles, and calls each mail sent that it threw away.

For `pgmail bench queue` and the like, which measure the queue and not SMTP. No setting leads here, on purpose:
a relay that loses mail is nothing that a configuration should be able to name.

    PGMAIL_DATABASE_URL=... python -m pgmail.sandbox.bench_noop
"""

from __future__ import annotations

from collections.abc import Callable

from pgmail import config, log
from pgmail.domain.reply import Envelope, Phase, Reply, Result
from pgmail.maintain.leader import Leader
from pgmail.service import Service
from pgmail.store.database import Database
from pgmail.store.presence import Presence
from pgmail.transport.base import OnDot
from pgmail.worker.supervisor import run_one

_READY = Result(phase=Phase.CONNECT, reply=Reply(250, "ready", "2.0.0"))
_TAKEN = Result(phase=Phase.DOT, reply=Reply(250, "discarded", "2.0.0"))


class Nowhere:
    """A `Transport` that takes every mail and keeps none."""

    name = "nowhere"

    async def deliver(self, envelope: Envelope, on_dot: OnDot | None = None) -> Result:  # noqa: ARG002 - a Transport's
        """Say that the mail was taken."""
        if on_dot is not None:
            await on_dot()
        return _TAKEN

    async def probe(self) -> Result:
        """Say that it is ready."""
        return _READY

    async def close(self) -> None:
        """Let go of nothing."""


def main() -> int:
    """Run one worker until SIGTERM or SIGINT; its exit code."""
    settings = config.load()
    log.configure(settings.log_level, settings.log_format)  # type: ignore[arg-type]  # checked as read

    def make_leader(database: Database, presence: Presence) -> tuple[Service, Callable[[], bool]]:
        leader = Leader(database, presence, silence_seconds=settings.silence_seconds)
        return leader, lambda: leader.leading

    return run_one(
        settings,
        {"default": Nowhere()},
        make_leader=make_leader,
        dsn=settings.database("worker"),
        concurrency=settings.worker_concurrency,
    )


if __name__ == "__main__":
    raise SystemExit(main())

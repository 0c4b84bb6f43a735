"""The composition root: the only file that knows every room. It wires them and hands them to the command line.

Rooms on one floor do not know each other: the API and the sandbox are given to the command line by name, the
leader to the worker as something that it starts. Everything is loaded when it is asked for, so that
`pgmail --help` costs a tenth of a second.

What can go wrong: a name here that no longer exists. A test loads each of them.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from typing import TYPE_CHECKING, Any

from pgmail.cli import parts
from pgmail.cli.main import cli

if TYPE_CHECKING:
    from collections.abc import Callable
    from contextlib import AbstractContextManager

    from pgmail.config import Settings
    from pgmail.maintain.chores import Chore
    from pgmail.service import Service
    from pgmail.store.database import Database
    from pgmail.store.presence import Presence
    from pgmail.transport.base import Transport
    from pgmail.transport.guarded_http import GuardedHttp
    from pgmail.worker.process import MakeLeader

PARTS = {
    "run_demo": "pgmail.app:run_demo",
    "run_api": "pgmail.app:run_api",
    "run_worker": "pgmail.app:run_worker",
    "run_workers": "pgmail.worker.supervisor:run_workers",
    "run_maintain": "pgmail.app:run_maintain",
    "check_relay": "pgmail.app:transports",
    "run_bench": "pgmail.sandbox.bench:run",
}


def main() -> None:
    """Run the command `pgmail`."""
    parts.provide(**PARTS)
    cli(prog_name="pgmail")


def run_api(settings: Settings, **options: Any) -> None:
    """Run the HTTP API, and the dashboard beside it, until told to stop."""
    from pgmail.api.server import serve  # noqa: PLC0415
    from pgmail.dashboard.mount import mount  # noqa: PLC0415

    serve(settings, mounts=[mount], **options)


def run_worker(settings: Settings) -> int:
    """Run one worker in this process until it is told to stop; its exit code."""
    from pgmail.worker.supervisor import run_one  # noqa: PLC0415

    return run_one(
        settings,
        transports(settings),
        make_leader=_make_leader(settings),
        dsn=settings.database("worker"),
        concurrency=settings.worker_concurrency,
        ward_argv=[sys.executable, "-c", "from pgmail.app import run_apart; run_apart()"],
        beside=lambda database, pressed: _beside(settings, database, pressed),
    )


def run_apart() -> None:
    """Be a process apart of a worker, which started it: see `worker.ward`."""
    from pgmail.cli import common  # noqa: PLC0415
    from pgmail.worker.apart import serve  # noqa: PLC0415

    serve(lambda: transports(common.settings()))


def run_maintain(settings: Settings) -> int:
    """Run a process that only leads, until SIGTERM or SIGINT; its exit code."""
    import uvloop  # noqa: PLC0415

    uvloop.run(_maintain(settings))
    return 0


def run_demo(settings: Settings, **options: Any) -> int:
    """Run the demo, with the dashboard's inbox page for the sandbox's mail; its exit code."""
    from pgmail import log  # noqa: PLC0415
    from pgmail.sandbox import demo  # noqa: PLC0415

    log.configure("warning")  # what the processes of the demo say stands in its folder
    return demo.run_demo(settings, demo.Options(**options), _serve_inbox)


def _serve_inbox(mails: Any) -> AbstractContextManager[str]:
    from pgmail.dashboard.server import serve_inbox  # noqa: PLC0415 - most demos keep no mail

    return serve_inbox(mails)


def transports(settings: Settings) -> dict[str, Transport]:
    """The relays that workers of these settings can use, by name. Connects nowhere.

    Raises SettingsError for a relay's address that the settings let pass and the transport does not.
    """
    import msgspec  # noqa: PLC0415

    from pgmail.errors import SettingsError  # noqa: PLC0415
    from pgmail.transport.relay import SmtpRelay  # noqa: PLC0415
    from pgmail.transport.relay_config import RelayConfig  # noqa: PLC0415

    made: dict[str, Transport] = {}
    faults: list[str] = []
    for name, url in settings.relays.items():
        try:
            config = RelayConfig.from_url(url)
        except ValueError as error:
            faults.append(
                f"PGMAIL_RELAY_URL: {error}" if name == "default" else f"PGMAIL_RELAY_URLS: {name}: {error}"
            )
            continue
        changes: dict[str, object] = {"timeout_scale": config.timeout_scale * settings.smtp_timeout_scale}
        if config.helo is None:
            changes["helo"] = settings.helo
        if "max_connections=" not in url:
            # Else the emails that a worker may send at a time would wait for each other's connections.
            changes["max_connections"] = settings.worker_concurrency
        made[name] = SmtpRelay(msgspec.structs.replace(config, **changes))
    if faults:
        raise SettingsError(faults)
    return made


def _make_leader(settings: Settings) -> MakeLeader:
    """Return what makes a worker's leader: the service, and whether it leads now."""

    def make(database: Database, presence: Presence) -> tuple[Service, Callable[[], bool]]:
        from pgmail.maintain.away import Away  # noqa: PLC0415
        from pgmail.maintain.leader import Leader  # noqa: PLC0415

        leader = Leader(
            database,
            presence,
            silence_seconds=settings.silence_seconds,
            name_servers=settings.name_servers,
            chores=_chores(settings, database),
            show_tenants=settings.metrics_tenants,
            away=Away(settings.alert_url),
        )
        return leader, lambda: leader.leading

    return make


def _chores(settings: Settings, database: Database) -> list[Chore]:
    """Return what one process of the fleet does beside leading it."""
    from pgmail.hooks.chores import FanOut, Tidy  # noqa: PLC0415
    from pgmail.maintain.figures import figures  # noqa: PLC0415

    return [
        *figures(database),
        FanOut(database),
        Tidy(database, settings.hook_log_days),
        *_alert_chores(settings, database),
    ]


def _beside(
    settings: Settings, database: Database, pressed: Callable[[], bool] = lambda: False
) -> list[Service]:
    """Return what each process that works or leads runs beside that."""
    from pgmail.hooks.compose import deliverers  # noqa: PLC0415

    return deliverers(settings, database, pressed)


def _alert_chores(settings: Settings, database: Database) -> list[Chore]:
    """Return what looks after alerts. Raises SettingsError for a relay's address that the transport refuses."""
    from pgmail.domain.address import parse  # noqa: PLC0415
    from pgmail.domain.targets import networks_of  # noqa: PLC0415
    from pgmail.errors import SettingsError  # noqa: PLC0415
    from pgmail.maintain.alerts import AlertLook, AlertTeller  # noqa: PLC0415
    from pgmail.maintain.certificates import Certificates  # noqa: PLC0415
    from pgmail.sealing import keks  # noqa: PLC0415
    from pgmail.transport.relay import SmtpRelay  # noqa: PLC0415
    from pgmail.transport.relay_config import RelayConfig  # noqa: PLC0415

    try:
        configs = {name: RelayConfig.from_url(url) for name, url in settings.relays.items()}
        # The one for alerts first; the others where that does not answer.
        urls = dict.fromkeys(filter(None, (settings.alert_relay_url, *settings.relays.values())))
        relays = [SmtpRelay(RelayConfig.from_url(url)) for url in urls]
    except ValueError as error:
        raise SettingsError(
            [f"PGMAIL_RELAY_URL, PGMAIL_RELAY_URLS or PGMAIL_ALERT_RELAY_URL: {error}"]
        ) from None

    def http() -> GuardedHttp:
        from pgmail.transport.guarded_http import GuardedHttp  # noqa: PLC0415 - large, and most tell nobody

        return GuardedHttp(networks_of(settings.hook_networks), name_servers=settings.name_servers)

    host = settings.helo if "[" not in settings.helo else "localhost.localdomain"
    teller = AlertTeller(
        database,
        keks=keks.read(settings),
        http=http,
        relays=relays,
        sender=parse(settings.alert_from).address if settings.alert_from else f"pgmail@{host}",
        public_url=settings.public_url,
    )
    return [AlertLook(database), teller, Certificates(database, settings, configs)]


async def _maintain(settings: Settings) -> None:
    from pgmail.metrics.counts import Source  # noqa: PLC0415
    from pgmail.metrics.listener import Listener  # noqa: PLC0415
    from pgmail.metrics.page import Page  # noqa: PLC0415
    from pgmail.service import run_all  # noqa: PLC0415
    from pgmail.store.database import Database  # noqa: PLC0415
    from pgmail.store.history import Witness  # noqa: PLC0415
    from pgmail.store.presence import Presence  # noqa: PLC0415

    until = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, until.set)
    witness = Witness("maintain", settings.state_dir)
    dsn = settings.database("worker")
    database = Database(dsn, name="pgmail maintain", low=1, high=2, greet=witness.greet)
    witness.watch(database)
    presence = Presence(
        database,
        program="maintain",
        concurrency=0,
        beat_ms=settings.beat_interval_ms,
        silence_seconds=settings.silence_seconds,
    )
    leader, _ = _make_leader(settings)(database, presence)
    page = Page("maintain", [part for part in (presence, leader, database) if isinstance(part, Source)])
    metrics = Listener(settings, page, presence.health)
    await database.open()
    try:
        parts: list[Service] = [metrics, witness, presence, leader, *_beside(settings, database)]
        await run_all(parts, until=until, drain_seconds=settings.drain_seconds)
    finally:
        await database.close()
